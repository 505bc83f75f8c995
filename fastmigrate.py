"""Bring a SQLite database to the version that your code expects.

Number your migration scripts and put them in one directory:

    migrations/0001-create-users.sql
    migrations/0002-backfill-emails.py
    migrations/0003-import.sh

Then, when your application starts:

    from fastmigrate import ensure_versioned_db, run_migrations

    ensure_versioned_db("data/app.db")
    if not run_migrations("data/app.db", "migrations"):
        raise SystemExit(1)

or from a shell:

    python -m fastmigrate --db data/app.db --migrations migrations

Every script runs once, in the order of its number. The version of the database is
kept in the one-row table `_meta`, and changes in one transaction with the script
that leads to it. Scripts that cannot run inside a transaction (.py, .sh, VACUUM)
run under a snapshot of the database, which a failure puts back. So the database
is always at exactly one version, whatever happens.

This file is all there is: copy it into your application, or install it with pip.
It needs Python 3.9 or newer and its standard library. `python -m fastmigrate --help`
tells what else it does.

The calls have these arguments and exceptions in common, and name what else there is:

    db_path         the database file; a path is a string or an os.PathLike
    migrations_dir  the directory that holds the migration scripts
    to              the last version to apply; None for the latest
    connect         called as connect(path) for every connection, for a database that
                    needs an extension, a collation or a key

    FileNotFoundError  there is no such database; the call does not create it
    UnversionedError   the database has no version; a MigrationError
    MigrationError     all else that is in the way; where no migration ran, nothing was
                       changed
"""

from __future__ import annotations

import io
import os
import sqlite3
import sys
import time

TYPE_CHECKING = False  # as in typing, which takes long to import
if TYPE_CHECKING:
    import argparse
    import subprocess
    from collections.abc import Callable, Container, Iterable, Iterator
    from pathlib import Path, PurePath
    from typing import Any, NoReturn, Union

    StrPath = Union[str, "os.PathLike[str]"]
    Connect = Callable[[str], sqlite3.Connection]
    Reader = Callable[[sqlite3.Connection, int], Any]  # of a database at a version
    Dangling = dict[tuple[str, str], list[Any]]  # rows by (table, parent)
    Schema = dict[tuple[str, ...], tuple[str, str, str]]  # (type, name, SQL) by meaning

__version__ = "1.0.0"
__all__ = [
    "MigrationError", "UnversionedError", "arun_migrations", "build_db", "create_database_backup",
    "create_db", "create_db_backup", "enroll_db", "ensure_meta_table", "ensure_versioned_db",
    "extract_version_from_filename", "get_db_version", "get_migration_scripts", "main", "migrate",
    "new_migration", "recreate_table", "rehearse", "restore_db", "run_migrations",
    "set_db_version", "setup_logging", "status", "verify",
]

# Applications written for the fastmigrate package import from its module `core`; this
# also holds where the file was copied into a package under any name.
core = sys.modules[__name__ + ".core"] = sys.modules[__name__]

MAX_VERSION = 9999
BLOCK = 256 * 1024  # bytes of a script that are read, and run, at a time
BATCH_SECONDS = 0.5  # after so long a transaction takes no further script
POLL_SECONDS = 0.05  # between two looks at a lock that somebody else holds
KILL_SECONDS = 0.5  # between asking a script to end and ending it
BACKUP_PAGES = 8192  # copied between two chances to be interrupted
TICK_INSTRUCTIONS = 100_000  # of SQLite's machine, between two such chances
SQLITE_DONE = 101
MISMATCH = "foreign key mismatch"  # the parent has no such key

CREATE_META = (
    "CREATE TABLE _meta (id INTEGER PRIMARY KEY CHECK (id = 1), "
    "version INTEGER NOT NULL DEFAULT 0)")
INSERT_META = "INSERT OR REPLACE INTO _meta (id, version) VALUES (1, ?)"
SELECT_META = "SELECT id, version FROM _meta LIMIT 2"
UPDATE_META = "UPDATE _meta SET version = ? WHERE id = 1"
CREATE_HISTORY = (
    "CREATE TABLE IF NOT EXISTS _migration_history (version INTEGER PRIMARY KEY, "
    "name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at TEXT NOT NULL)")
HAS_HISTORY = "SELECT 1 FROM sqlite_master WHERE name = '_migration_history'"
SELECT_EXTENT = "SELECT count(*), min(version), max(version) FROM _migration_history"
INSERT_HISTORY = "INSERT OR REPLACE INTO _migration_history VALUES (?, ?, ?, ?)"
SELECT_HISTORY = (
    "SELECT version, name, checksum, applied_at FROM _migration_history "
    "WHERE version <= ? ORDER BY version")
SELECT_RECORDED = "SELECT version FROM _migration_history WHERE version = ?"
DELETE_HISTORY = "DELETE FROM _migration_history WHERE version BETWEEN ? AND ?"
SELECT_REFERENCES = (
    'SELECT lower(t.name), lower(f."table") '
    "FROM sqlite_master AS t, pragma_foreign_key_list(t.name, 'main') AS f "
    "WHERE t.type = 'table' AND t.sql LIKE '%references%'")
SELECT_PARENTS = 'SELECT lower("table") FROM pragma_foreign_key_list(?, \'main\')'
SELECT_DANGLING = "SELECT parent, rowid FROM pragma_foreign_key_check(?, 'main')"
SELECT_SHADOWS = "SELECT name FROM pragma_table_list WHERE type = 'shadow'"
SELECT_SCHEMA = (  # in an order in which each object finds those it needs
    "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL "
    "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
    "AND tbl_name NOT IN ('_meta', '_migration_history', "
    "'_litestream_seq', '_litestream_lock') "  # of a replicator, which makes them itself
    "ORDER BY type = 'trigger', type = 'view', type = 'index', rowid")

# In the history this joins a checksum to the version before it, where other means than a
# run had led to that: scripts up to there count as applied, though nothing records them.
AFTER = " after "

EXTENSIONS = (".sql", ".py", ".sh")
DIRECTIVES = ("no-foreign-key-check", "no-transaction")

# PRAGMAs that do nothing, or fail, inside a transaction. Where a script begins with
# them they run before the transaction; the others run inside it, and so are undone
# with it (user_version, application_id).
OUTSIDE_PRAGMAS = frozenset((
    "auto_vacuum", "encoding", "foreign_keys", "journal_mode", "locking_mode", "page_size",
    "synchronous", "temp_store", "wal_checkpoint"))

# What makes shadow tables of virtual tables known, where SQLite does not say it.
SHADOWS = ("auxiliary", "chunks", "config", "content", "data", "docsize", "idx", "info",
           "metadatachunks", "metadatatext", "node", "parent", "rowid", "rowids", "segdir",
           "segments", "stat", "vector_chunks")

NAMING_RULE = ("a migration script is named NNNN-description.ext: four digits from 0001, "
               "a dash, and sql, py or sh")

DRIFT = {  # what a state of a script means to a person
    "late": "{names}: never run on {db}, which was at a higher version when this script "
            "was added. Give it a number above the latest.",
    "edited": "{names}: edited since it was applied to {db}, which does not have the "
              "change. Put the change into a new migration, or if none is needed run "
              "--accept.",
    "missing": "{names}: applied to {db}, but not in {folder} any more. Put it back, for "
               "a new database would be built without it, or run --accept.",
}

# How what SQLite says begins: what it means to a person, and what to do.
SQLITE_ERRORS: dict[str | tuple[str, ...], tuple[str, str]] = {
    "database is locked": ("database is locked: another connection holds {db}",
                           "Wait for that, or wait longer with --timeout"),
    "file is not a database": ("{db} is not a database, or is encrypted",
                               "Name the database file with --db, or give its key in connect"),
    "no such module": ("{text}", "Give a connect that loads it"),
    ("database disk image is malformed", "malformed database schema"): (
        "{db} is damaged ({text})", "Restore a backup of it with --restore"),
    "attempt to write a readonly database": (
        "{db} is read-only, and there is something to write",
        "Make the file and its directory writable for this user"),
    "unable to open database file": (
        "{db} cannot be opened ({text})",
        "Make the file and its directory readable and writable for this user"),
    "database or disk is full": ("no room is left for {db} ({text})", "Make room"),
    "disk I/O error": ("the file system failed for {db} ({text})",
                       "See that there is room, and that the disk is sound"),
}

TEMPLATES = {  # of new scripts
    ".sql": "-- {}\n",
    ".sh": "#!/bin/sh\n# {}: the database is $1\nset -eu\n",
    ".py": "# {}\n\nimport sqlite3\nimport sys\n\n"
           "connection = sqlite3.connect(sys.argv[1])\nwith connection:\n    pass\n",
}

EXAMPLES = """
examples:
  fastmigrate --db app.db --createdb     create an empty database at version 0
  fastmigrate --db app.db                migrate it from ./migrations
  fastmigrate --new "add users"          create the next script
  fastmigrate --db app.db --rehearse     try what is pending on a copy
  fastmigrate --db app.db --status       see what is applied, and what pending
  fastmigrate --db 'tenants/*.db'        migrate many databases

exit codes: 0 done, 1 refused or failed, 2 usage, 130 SIGINT, 143 SIGTERM
"""


# ------------------------------------------------------------------ the public calls


class MigrationError(sqlite3.Error):
    """A refusal or a failure; its text is for a person and says what to do next.

    Where a script failed, `path` names it, a string, and `line`, from 1, is where the
    failing `statement` begins. `version` is where the database stands now. Each is None
    where it does not apply.
    """

    path: str | None = None
    line: int | None = None
    statement: str | None = None
    version: int | None = None

    def __init__(self, message: str, **attributes: str | int | None) -> None:
        super().__init__(message)
        vars(self).update(attributes)


class UnversionedError(MigrationError):
    """The database is sound, but has no version: it has no table `_meta`."""


def ensure_versioned_db(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> int:
    """Create the database at version 0 if there is none; return its version.

    Of many processes that call this at once exactly one creates the database, and it
    appears at its path whole; parent folders are created. What exists is left as it was,
    byte for byte.
    """
    database = _Database(db_path, connect=connect)
    if not os.path.exists(database.path) and database.create():
        return 0
    return database.look()[0]


create_db = ensure_versioned_db


def run_migrations(db_path: StrPath, migrations_dir: StrPath, verbose: bool = False,
                   **options: Any) -> bool:
    """Do as migrate(), with its options; return True, or False with the reason logged as an
    error."""
    try:
        migrate(db_path, migrations_dir, verbose=verbose, **options)
    except MigrationError as error:
        _log("error", str(error))
        return False
    return True


async def arun_migrations(db_path: StrPath, migrations_dir: StrPath, verbose: bool = False,
                          **options: Any) -> bool:
    """Do as run_migrations(), in a thread of its own."""
    import asyncio
    return await asyncio.to_thread(run_migrations, db_path, migrations_dir, verbose, **options)


def migrate(db_path: StrPath, migrations_dir: StrPath, *, to: int | None = None,
            backup: bool = False, snapshot: bool = True, timeout: float = 30.0,
            connect: Connect = sqlite3.connect, verbose: bool = False) -> list[Path]:
    """Apply the pending migration scripts in order, each exactly once; return their paths.

    When this returns, and also when it raises or the process dies, the database is at
    exactly one version. Where nothing is pending, nothing is written or locked.

    Args:
        backup: make a backup first, if anything is pending.
        snapshot: copy the database before each script that cannot run inside a
            transaction, and put the copy back if it fails. Without it such a script,
            if it fails or is cut off, leaves what it had done so far.
        timeout: seconds to wait for another process that holds the database.
        verbose: print what the command line prints, with the output of scripts.

    Raises: MigrationError also where there is no such database.
    """
    database = _Database(db_path, timeout, connect, _Report(verbose, verbose))
    applied = _Run(database, migrations_dir, to, backup, snapshot).run()
    if not applied:
        return []
    from pathlib import Path  # which takes long to import
    return [Path(script.path) for script in applied]


def get_db_version(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> int:
    """Return the version of the database, without writing to it."""
    return _Database(db_path, connect=connect).look()[0]


def set_db_version(db_path: StrPath, version: int, *, connect: Connect = sqlite3.connect) -> None:
    """Set the version by hand, from 0 to 9999, running no script: those up to it count as
    applied. Puts an unversioned database under management, which adds the table `_meta`.
    """
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= MAX_VERSION:
        raise MigrationError(f"{version!r} is not a version: give a number from 0 to {MAX_VERSION}")
    _Database(db_path, connect=connect).set_version(version)


def ensure_meta_table(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> None:
    """Put an unversioned database under management at version 0; leave a versioned one."""
    database = _Database(db_path, connect=connect)
    try:
        database.look()
    except UnversionedError:
        database.set_version(0)


def create_db_backup(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> Path | None:
    """Copy the database to NAME.YYYYMMDD_HHMMSS.backup beside it; return the copy's path, or
    None with the reason logged where no backup could be made.

    The copy is one consistent state of the database, also while others write to it. It
    is never readable by more users than the database is, and takes no existing name:
    one that is taken stands for the next second.
    """
    from pathlib import Path
    try:
        return Path(_Database(db_path, connect=connect).back_up())
    except (MigrationError, OSError) as error:
        _log("error", str(error))
        return None


create_database_backup = create_db_backup


def restore_db(db_path: StrPath, backup_path: StrPath, *,
               connect: Connect = sqlite3.connect) -> None:
    """Make the database what a backup is, also while other connections have it open.

    The backup must be a sound database with a version. What the database held is kept as
    a backup of its own.

    Raises: FileNotFoundError if there is no such backup.
    """
    _Database(db_path, connect=connect).restore(os.fsdecode(backup_path))


def build_db(migrations_dir: StrPath, *, to: int | None = None,
             connect: Connect = sqlite3.connect) -> sqlite3.Connection:
    """Return a connection to a new database in memory, at the latest version."""
    with _Scratch(connect) as scratch:
        scratch.replay(migrations_dir, to)
        memory = connect(":memory:")
        with _closing(scratch.open()) as connection:
            connection.backup(memory)
        return memory


def status(db_path: StrPath, migrations_dir: StrPath, *,
           connect: Connect = sqlite3.connect) -> dict[str, Any]:
    """Return where a database stands, without writing anything: {"db", "version", "latest",
    "migrations": [{"version", "name", "state", "applied_at"}], "problems": [text]}, where
    state is applied, pending, edited, late or missing, and the time UTC in ISO 8601.

    Raises: MigrationError also where there is no such database.
    """
    return _Run(_Database(db_path, connect=connect), migrations_dir).status()


def verify(db_path: StrPath, migrations_dir: StrPath, *, connect: Connect = sqlite3.connect) -> str:
    """Replay the scripts into a scratch database, up to the version of this one, and
    return how the schema of this one differs, as a unified diff: "" if it does not.
    """
    return _verify(_Database(db_path, connect=connect), migrations_dir)


def rehearse(db_path: StrPath, migrations_dir: StrPath, *, to: int | None = None,
             connect: Connect = sqlite3.connect) -> dict[str, Any]:
    """Run what is pending, scripts included, on a copy of the database; leave that untouched.

    Returns {"migrations": [{"version", "name", "seconds"}], "diff": the schema's unified
    diff, "rows": {table: [before, after]} where their number changes}.
    """
    return _rehearse(_Database(db_path, connect=connect), migrations_dir, to)


def enroll_db(db_path: StrPath, migrations_dir: StrPath, *,
              connect: Connect = sqlite3.connect) -> int:
    """Put an unversioned database under management, and return its version.

    Where there are scripts, the version is the highest whose replayed schema is that of
    the database. Where there are none, 0001-initialize.sql is written from the schema and
    proved to rebuild it, and the version is 1. The MigrationError for a database whose
    schema no version has shows how it differs from the nearest.
    """
    return _enroll(_Database(db_path, connect=connect), os.fsdecode(migrations_dir))


def new_migration(migrations_dir: StrPath, description: str) -> Path:
    """Create the next migration script, named by the words of the description, and return
    its path; a description that ends in .py or .sh makes it such a script. The directory
    is created too.

    Raises: ValueError if there are no words, two scripts have one index, or 9999 is taken.
    """
    import re
    from pathlib import Path
    words, extension = os.path.splitext(description)
    if extension not in EXTENSIONS:
        words, extension = description, ".sql"
    slug = re.sub(r"[\W_]+", "-", words).strip("-").lower()
    if not slug:
        raise ValueError(f"{description!r} has no words to name a script by")
    os.makedirs(migrations_dir, exist_ok=True)
    number = max(_scan(migrations_dir)[0], default=0) + 1
    if number > MAX_VERSION:
        raise ValueError(f"there is a script {MAX_VERSION} already, the last there can be")
    path = Path(os.fsdecode(migrations_dir), f"{number:04d}-{slug}{extension}")
    with open(path, "x", encoding="utf-8") as file:
        try:
            file.write(TEMPLATES[extension].format(" ".join(words.split())))
            file.flush()
        except OSError:
            os.unlink(path)
            raise
    return path


def get_migration_scripts(migrations_dir: StrPath) -> dict[int, Path]:
    """Return the migration scripts of a directory by version, in order.

    Raises: ValueError if two scripts have one index; FileNotFoundError.
    """
    from pathlib import Path
    names, _ = _scan(migrations_dir)
    return {version: Path(migrations_dir, name) for version, name in sorted(names.items())}


def extract_version_from_filename(filename: str) -> int | None:
    """Return the version of a migration script's file name, None if it is not one's."""
    import re
    found = re.fullmatch(r"([0-9]{4})-.*\.(sql|py|sh)", str(filename), re.S)
    return int(found[1]) or None if found else None


def recreate_table(db_path: StrPath, table_name: str, new_column_defs: str, *,
                   connect: Connect = sqlite3.connect) -> None:
    """Rebuild a table with other column definitions, its rows, indexes and triggers kept.

    The definitions are those of columns and table constraints, separated by commas; all
    present columns must be among them. No row of a table that refers to this one is
    touched, and nothing changes if a reference would be left dangling.
    """
    database = _Database(db_path, connect=connect)
    table, new = _quoted(table_name), _quoted(table_name + "_new")
    database.must_exist()
    with database.explained(), _closing(database.writing()) as connection:
        kept = [sql for sql, in connection.execute(
            "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND type IN ('index', 'trigger') "
            "AND sql IS NOT NULL", (table_name,))]
        columns = ", ".join(_quoted(row[1]) for row in connection.execute(
            f"PRAGMA table_info({table})"))
        if not columns:
            raise MigrationError(f"there is no table {table_name}. Nothing was changed.")
        before = _dangling(connection)
        for statement in (
                f"CREATE TABLE {new} (\n{new_column_defs}\n)",
                f"INSERT INTO {new} ({columns}) SELECT {columns} FROM {table}",
                f"DROP TABLE {table}", f"ALTER TABLE {new} RENAME TO {table}", *kept):
            connection.execute(statement)
        after = _dangling(connection)
        for (child, parent), row, _ in _newly_dangling(before, after, None):
            raise MigrationError(f"{child} row {row} would refer to a row of {parent} that "
                                 "does not exist. Nothing was changed.")
        database.commit(connection)


def setup_logging(verbose: bool = False) -> None:
    """Let logging print the messages of fastmigrate; with `verbose`, debug messages too."""
    import logging
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING,
                        format="%(levelname)s: %(message)s")


# ------------------------------------------------------------------ the run


class _Again(Exception):
    """What was done since the last commit is to be undone and tried in another way."""


class _Failed(MigrationError):
    """A script failed; what it did is undone, or is about to be."""

    def __init__(self, script: _Script, what: str, line: int | None = None,
                 statement: str | None = None, *, remedy: str = "Mend the script",
                 output: str = "") -> None:
        where = script.path if line is None else f"{script.path}:{line}"
        super().__init__(f"{where}: {what}", path=script.path, line=line, statement=statement)
        self.script = script
        self.remedy = remedy
        self.output = output  # the end of what the script printed
        self.kept = ""  # what has become of the database, if not what it was

    def settled(self, database: str, version: int) -> MigrationError:
        """Return the error that the caller gets, now that everything has settled."""
        lines = [line[:100] + ("..." if line[100:] else "")
                 for line in (self.statement or "").splitlines()]
        if len(lines) > 6:
            lines[5:] = [f"... ({len(lines) - 5} more lines)"]
        text = "\n    ".join([str(self), *lines, *self.output.splitlines()])
        state = self.kept or f"{database} is at version {version}; nothing of this script was kept."
        return MigrationError(f"{text}\n{state}\n{self.remedy}, then run this again.",
                              path=self.path, line=self.line, statement=self.statement,
                              version=version)


class _Run:
    """One run of the pending scripts of a directory on a database."""

    def __init__(self, database: _Database, migrations_dir: StrPath, to: int | None = None,
                 backup: bool = False, snapshot: bool = True) -> None:
        self.database = database
        self.report = database.report
        self.folder = os.fsdecode(migrations_dir)
        self.to = MAX_VERSION if to is None else to
        self.backup = backup
        self.snapshot = snapshot
        self.version = 0  # where the database stands
        self.applied: list[_Script] = []
        self._now: _Script | None = None  # the script that is running
        self._singly = False  # commit after each script

    def run(self) -> list[_Script]:
        """Apply what is pending and return it; raise MigrationError."""
        database = self.database
        with database.explained():
            names, near = _scan(self.folder)
            if near:
                self.report.warn(near)
            try:
                pending = self._look(names)
            except (MigrationError, FileNotFoundError):
                if not database.snapshot.exists():
                    raise
                pending = True  # a script that was cut off may have spoilt what is there
            if not pending:
                up_to_date = "up to date " if self.version <= max(names, default=0) else ""
                self.report.result(f"{database.shown} is {up_to_date}at version {self.version}")
                return []
            self._apply([_Script(self.folder, version, names[version])
                         for version in sorted(names) if version <= self.to])
            number = len(self.applied)
            self.report.result(f"{database.shown} is at version {self.version}, "
                               f"{_plural(number, 'migration')} applied")
            return self.applied

    def _look(self, names: dict[int, str]) -> bool:
        """Return whether there is anything to do; warn of what is not as it should be."""
        database = self.database

        def see(connection: sqlite3.Connection, version: int) -> tuple[bool, Any]:
            pending = any(version < v <= self.to for v in names)
            return pending, self._states(connection, version, names, thorough=pending)

        self.version, (pending, states) = database.look(see)
        if self.to < self.version:
            raise MigrationError(
                f"{database.shown} is at version {self.version}, beyond {self.to}, and only a "
                "backup leads back. Nothing was changed. See --restore.")
        for problem in self._problems(names, states):
            self.report.warn(problem)
        return pending or database.snapshot.exists()

    def _apply(self, scripts: list[_Script]) -> None:
        """The whole story: take the write lock; see where the database stands, for another
        process may have been faster; run what comes next, together with its version;
        commit; go on. What fails is undone and remembered until those before it are in."""
        database, failed = self.database, None
        while True:
            with _closing(database.writing()) as connection:  # undoes what is not committed
                try:
                    self.version = _read_version(connection, database.shown)
                    if failed and self.version >= failed.script.version:
                        failed = None  # another process brought it in meanwhile
                    last = failed.script.version if failed else MAX_VERSION + 1
                    pending = [s for s in scripts if self.version < s.version < last]
                    if not pending:
                        break
                    if self.backup:
                        self.report.result(f"Backup: {database.back_up()}")
                        self.backup = False
                    run = self._run_alone if pending[0].alone else self._run_batch
                    done = run(connection, pending)
                    self.applied += done
                    self.version = done[-1].version
                    for script in done:
                        self.report.result(f"Applied {script.name}{self.report.to} "
                                           f"({_seconds(script.seconds)})")
                    if self.version == pending[-1].version:
                        break
                except _Again:
                    pass
                except _Failed as failure:
                    failed = failure
                    if failed.script.alone:
                        break  # those before it are in
                finally:
                    self.report.done()
        if failed:
            raise failed.settled(database.shown, self.version)

    def _failure(self, script: _Script, error: BaseException, line: int | None = None,
                 statement: str = "", why: str = "") -> BaseException:
        """Return what an error comes to: that of SQLite is a failure of the script, or an
        interrupt; others stay what they are."""
        if isinstance(error, _Failed) or not isinstance(
                error, self.database.errors + (sqlite3.Warning,)):
            return error
        if not why and _is_interrupt(error, statement):
            return KeyboardInterrupt()
        if not statement and _is_locked(error):
            return self.database.explain(error)
        message, remedy = why or str(error), "Mend the script"
        meaning = self.database.meaning(message)
        if statement.startswith("."):
            message = "a command of the sqlite3 program, not SQL"
            statement = statement.split("\n")[0]
        elif statement and not sqlite3.complete_statement(statement) and (
                "incomplete input" in message or "unrecognized token" in message):
            message = "the file ends within this statement, or within a quote in it"
        elif meaning:
            message, remedy = meaning
        elif not statement:
            message = f"it cannot be committed with its version: {message}"
        return _Failed(script, message, line, statement or None, remedy=remedy)

    def _conclude(self, connection: sqlite3.Connection, script: _Script,
                  before: Dangling | None, after: Dangling, rebuilt: Container[str] | None) -> None:
        """Write the version to which a script has led. Refuse references that dangle since it
        ran; tolerate older ones."""
        if connection.execute(UPDATE_META, (script.version,)).rowcount != 1:
            raise sqlite3.OperationalError("the row of _meta is gone")
        for table, parent in [key for key, rows in after.items() if rows == [MISMATCH]]:
            del after[table, parent]
            self.report.warn(
                f"after {script.name}, {table} has a foreign key that cannot work: there is no "
                f"table {parent}, or what it refers to there is neither a primary key nor "
                "unique. Mend that in a further script.")
        if not after:
            return
        if before is None:
            script.measured = True
            raise _Again  # run it once more, to tell the new ones from the old
        new = _newly_dangling(before, after, rebuilt)
        number = sum(count for *_, count in new)
        if new and "no-foreign-key-check" not in script.directives:
            (table, parent), row, _ = new[0]
            raise _Failed(
                script, f"it leaves {_plural(number, 'reference')} dangling: {table} row {row} "
                f"refers to a row of {parent} that does not exist",
                remedy="Mend the script or, if this is meant, begin it with the line "
                       f"`{'--' if script.sql else '#'} fastmigrate: no-foreign-key-check`")
        self.report.warn(
            f"{script.name} leaves {_plural(number, 'reference')} dangling, as its "
            "no-foreign-key-check allows" if new else
            f"{self.database.shown} has {_plural(sum(map(len, after.values())), 'reference')} "
            "to rows that do not exist, from before this run. See PRAGMA foreign_key_check.")

    def _commit(self, connection: sqlite3.Connection, scripts: list[_Script]) -> None:
        """Write the history of the scripts that lead on from where we stand, and commit."""
        connection.execute(CREATE_HISTORY)
        if self.version and not connection.execute(SELECT_RECORDED, (self.version,)).fetchone():
            scripts[0].checksum += f"{AFTER}{self.version}"
        connection.executemany(INSERT_HISTORY, [
            (script.version, script.name, script.checksum, _utc()) for script in scripts])
        self.database.commit(connection)

    def _tick(self) -> None:
        """Called now and then while SQLite works: a chance for signals, and for progress."""
        if self._now:
            self.report.progress(self._now.progress)

    # -------------------------------------------------------------- SQL in a transaction

    def _run_batch(self, connection: sqlite3.Connection, pending: list[_Script],
                   ) -> list[_Script]:
        """Run SQL scripts in the transaction that is open, for BATCH_SECONDS, and commit;
        return those that are in.

        Raises:
            _Failed: a script failed; those before it are to be run again without it.
            _Again: a script is to be run in another way, which is noted in it.
        """
        watch, references = _Watch(), _References(connection)
        connection.set_authorizer(watch.authorizer())
        connection.set_progress_handler(self._tick, TICK_INSTRUCTIONS)
        mode, began, done = _journal_mode(connection), time.monotonic(), list[_Script]()
        script = pending[0]
        try:
            for script in pending:
                if done and (script.alone or self._singly
                             or time.monotonic() - began > BATCH_SECONDS):
                    break
                self._now, since = script, time.perf_counter()
                blocks = script.blocks()
                text = script.open(next(blocks, (1, ""))[1])
                if done and (script.alone or script.pragmas):
                    break  # this transaction is not for that; the next begins with it
                if script.alone:
                    raise _Again
                if script.pragmas:
                    self._run_pragmas(connection, script)
                before = _dangling(connection, references.tables()) if script.measured else None
                watch.start(bool(script.pragmas) and connection.execute(
                    "PRAGMA foreign_keys").fetchone() == (1,))
                self._run_blocks(connection, watch, script, text, blocks)
                watch.on = False
                self._conclude(connection, script, before, references.dangling(watch),
                               watch.made | watch.dropped)
                script.seconds = time.perf_counter() - since
                done.append(script)
                if watch.stateful or script.pragmas:
                    break  # the next script gets a fresh connection
            script = done[-1]  # the one to blame if they cannot be committed
            self._commit(connection, done)
            return done
        except BaseException as error:
            self._undo(connection, mode)
            failure = self._failure(script, error)
            if len(done) > 1 and script is done[-1] and isinstance(failure, _Failed):
                self._singly = True  # to see which of them it is that cannot be committed
                raise _Again from None
            raise failure from None

    def _undo(self, connection: sqlite3.Connection, mode: str) -> None:
        """Roll back, also what a PRAGMA before the transaction did to the file."""
        connection.set_authorizer(lambda *details: sqlite3.SQLITE_OK)
        try:
            if connection.in_transaction:  # else SQLite has rolled back already
                connection.execute("ROLLBACK")
            # unless another process was faster, and meant the mode that is set now
            if (_journal_mode(connection) != mode
                    and _read_version(connection, self.database.shown) == self.version):
                connection.execute(f"PRAGMA journal_mode = {mode}")
        except self.database.errors:
            pass  # the first error is the one to tell; closing rolls back too

    def _run_pragmas(self, connection: sqlite3.Connection, script: _Script) -> None:
        """Leave the transaction for the PRAGMAs that work only outside of one."""
        connection.execute("ROLLBACK")
        for line, statement in script.pragmas:
            self._execute(connection, script, line, statement)
        self.database.begin(connection)
        if _read_version(connection, self.database.shown) != self.version:
            raise _Again  # another process was faster

    def _run_blocks(self, connection: sqlite3.Connection, watch: _Watch, script: _Script,
                    text: str, blocks: Iterator[tuple[int, str]]) -> None:
        """Run a script in the open transaction, block by block."""
        line = 1
        while line:
            careful = line >= script.careful_from
            for number, piece in _statements(text, line) if careful else ((line, text),):
                watch.implicit_commit = True
                try:
                    connection.executescript(piece)
                except self.database.errors as error:
                    failure = self._failure(script, error, number, piece, watch.denied)
                    if watch.misfit or _needs_autocommit(str(error)):
                        script.alone = True
                    elif careful or not isinstance(failure, _Failed):
                        raise failure from None
                    else:
                        script.careful_from = line  # from here on, statement by statement
                    raise _Again from None
                if not connection.in_transaction:
                    script.alone = True
                    raise _Again
            if watch.defined:
                watch.refers |= "references" in text.lower()
                watch.defined = False
            self._tick()
            line, text = next(blocks, (0, ""))

    # -------------------------------------------------------------- scripts on their own

    def _run_alone(self, connection: sqlite3.Connection, pending: list[_Script],
                   ) -> list[_Script]:
        """Run the first script, which does not fit in a transaction, under a snapshot.

        Raises:
            _Failed: it failed, and what it did was put back.
        """
        database, since = self.database, time.perf_counter()
        self._now = script = pending[0]
        script.open(next(script.blocks(), (1, ""))[1] if script.sql else script.read())
        before = {} if self.snapshot else _dangling(connection)
        try:
            database.snapshot.take(script.name, self.snapshot)
        except database.errors + (OSError,) as error:
            raise _Failed(script, f"no snapshot can be made: {database.reason(error)}",
                          remedy="Make room and rights beside the database, or run it with "
                                 "--no-snapshot") from None
        try:
            connection.close()  # and with it the write lock: the script needs that
            if script.sql:
                self._run_statements(script)
            else:
                self._run_process(script)
            with _closing(database.open()) as connection:
                database.begin(connection)
                version = _read_version(connection, database.shown)
                if version not in (self.version, script.version):
                    raise _Failed(script, f"it set the version to {version}; it leads from "
                                          f"{self.version} to {script.version}")
                after = _dangling(connection)
                if after and self.snapshot:  # which tells what dangled before
                    before = database.snapshot.read(_dangling)
                self._conclude(connection, script, before, after, None)
                self._commit(connection, [script])
        except BaseException as error:
            failure = self._failure(script, error)
            self._give_up(script, failure)
            raise failure from None
        database.snapshot.drop()
        script.seconds = time.perf_counter() - since
        return [script]

    def _give_up(self, script: _Script, error: BaseException) -> None:
        """Put back what a script changed that failed or was interrupted."""
        database, kept, remedy = self.database, "", ""
        try:
            if script.outlived:
                database.snapshot.release()
                kept = (f"A process that it started is still running, and may write to "
                        f"{database.shown}: the next run waits for its end"
                        f"{', and puts back what was there' if self.snapshot else ''}.")
                remedy = "End that process"
            elif self.snapshot:
                database.snapshot.put_back()
            else:
                database.snapshot.drop()
                kept = (f"There was no snapshot: {database.shown} is at version {self.version}, "
                        f"and holds what {script.name} did before it failed.")
                remedy = "Make the database right by hand, or restore a backup"
        except database.errors + (OSError,) as second:
            database.snapshot.release()
            raise MigrationError(
                f"{str(error) or script.path + ': interrupted'}\n{database.shown} could not be put "
                f"back: {database.reason(second)}\nIt holds what the script left. " + (
                    f"The next run puts it back, from {database.snapshot.path}, before anything "
                    "else." if os.path.exists(database.snapshot.path) else
                    "Restore a backup of it with --restore."),
                path=script.path, version=self.version) from error
        if kept and isinstance(error, _Failed):
            error.kept, error.remedy = kept, remedy
        elif kept:
            self.report.warn(kept)

    def _run_statements(self, script: _Script) -> None:
        """Run an SQL script as the sqlite3 program does, each statement by itself."""
        with _closing(self.database.open()) as connection:
            _unenforce(connection)
            connection.set_progress_handler(self._tick, TICK_INSTRUCTIONS)
            line = 1
            for line, text in script.blocks():
                for number, statement in _statements(text, line):
                    self._execute(connection, script, number, statement)
            if connection.in_transaction:
                self._execute(connection, script, line, "COMMIT")

    def _execute(self, connection: sqlite3.Connection, script: _Script, line: int,
                 statement: str) -> None:
        """Execute one statement outside of any transaction of ours."""
        def execute() -> None:
            for _ in connection.execute(statement):
                pass

        try:
            self.database.patiently(execute)
        except self.database.errors + (sqlite3.Warning,) as error:
            raise self._failure(script, error, line, statement) from None

    # -------------------------------------------------------------- processes

    def _run_process(self, script: _Script) -> None:
        """Run a .py or .sh script, and all that it starts, to their end."""
        import subprocess
        import tempfile
        posix, timeout, command = os.name == "posix", self.database.timeout, script.command()
        with tempfile.TemporaryFile() as output:
            shown = None if self.report.output else output
            alive, held = os.pipe()  # at its end when no process of the script's is left
            try:
                process = subprocess.Popen(
                    [*command, self.database.given], stdin=subprocess.DEVNULL,
                    stdout=shown, stderr=shown, start_new_session=posix,
                    env={**os.environ, "FASTMIGRATE_VERSION": str(script.version),
                         "FASTMIGRATE_SNAPSHOT": f"{os.getpid()} {self.database.snapshot.path}"},
                    pass_fds=(self.database.snapshot.lock, held) if posix else ())
            except OSError as error:
                os.close(alive)
                raise _Failed(script, f"{command[0]} cannot be run: {error.strerror}",
                              remedy="Install it, or name another one in the script's first "
                                     "line") from None
            finally:
                os.close(held)
            try:
                while not _ends(process, alive, 0.5) and process.poll() is None:
                    self._tick()
                failed = _describe(process.wait())
                if not failed and not _ends(process, alive, min(0.5, timeout)):
                    self.report.warn(f"{script.name} has ended, but not all processes that it "
                                     f"started: waiting up to {timeout:g} s for them")
                    if not _ends(process, alive, timeout):
                        failed = ("it ended, but processes that it started did not, for "
                                  f"{timeout:g} s")
                if failed:
                    raise _Failed(script, failed, output=_tail(output))
            except BaseException:
                script.outlived = not _end(process, alive)
                raise
            finally:
                os.close(alive)

    # -------------------------------------------------------------- looking

    def status(self) -> dict[str, Any]:
        """Return what status() returns."""
        database = self.database
        with database.explained():
            names, near = _scan(self.folder)
            self.version, states = database.look(
                lambda connection, version: self._states(connection, version, names))
            problems = self._problems(names, states)
            if near:
                problems.append(near)
            if database.snapshot.exists():
                problems.append(f"{database.snapshot.holder()} has not finished a script: the "
                                "next run waits for it or, if it died, sets that right.")
        keys = ("version", "name", "state", "applied_at")
        return {"db": database.given, "version": self.version, "latest": max(names, default=0),
                "migrations": [dict(zip(keys, state)) for state in states],
                "problems": problems}

    def _problems(self, names: dict[int, str], states: list[tuple[Any, ...]]) -> list[str]:
        """Say where the directory is not what was applied, once for each kind."""
        database, latest, problems = self.database.shown, max(names, default=0), []
        if self.version > latest:
            problems.append(
                f"{database} is at version {self.version}, newer than the scripts in "
                f"{self.folder}, which end at {latest}: is this an old release of the "
                "application?")
        for kind, text in DRIFT.items():
            found = [name for number, name, state, *_ in states
                     if state == kind and (kind != "missing" or number < latest)]
            if found:
                problems.append(text.format(names=", ".join(found), db=database,
                                            folder=self.folder))
        return problems

    def accept(self) -> list[str]:
        """Record the applied scripts as they stand now; return the names of those that
        were recorded otherwise."""
        database, accepted = self.database, []
        names, _ = _scan(self.folder)
        with database.explained(), _closing(database.writing()) as connection:
            version = _read_version(connection, database.shown)
            connection.execute(CREATE_HISTORY)
            for number, name, state, when, mark in self._states(connection, version, names):
                if state == "missing":
                    connection.execute(DELETE_HISTORY, (number, number))
                elif state == "edited" or state == "applied" and not when:
                    script = _Script(self.folder, number, name)
                    script.read()
                    connection.execute(INSERT_HISTORY, (
                        number, name, script.checksum + mark, when or _utc()))
                else:
                    continue
                accepted.append(name)
            database.commit(connection)
        return accepted

    def _states(self, connection: sqlite3.Connection, version: int, names: dict[int, str],
                thorough: bool = True) -> list[tuple[Any, ...]]:
        """Return (version, name, state, when it was applied, mark in its checksum) of each
        script that there is or was, in order. Unless it is to be thorough, none is compared
        with its checksum, which reads it; and none is returned where it is quickly told that
        the history records just the scripts that there are.
        """
        try:
            extent = connection.execute(SELECT_EXTENT).fetchone()
        except connection.OperationalError as error:
            if "no such table" not in str(error):
                raise
            extent = (0, None, None)
        number, first, last = len(names), min(names, default=0), max(names, default=0)
        if not thorough and (not extent[0] or last - first + 1 == number
                             and extent == (number, first, last)):
            return []
        recorded = {} if not extent[0] else {
            row[0]: row[1:] for row in connection.execute(SELECT_HISTORY, (version,))}
        states: list[tuple[Any, ...]] = []
        passed = version  # from here up no run passed over a script: none is late
        for number in sorted({*names, *recorded}, reverse=True):
            row: tuple[Any, ...] = recorded.get(number, ("", "", None))
            name, checksum, when = row
            checksum, mark, after = checksum.partition(AFTER)
            if number in recorded:
                passed = int(after or 0)  # or to the one before it, which comes next
            script = _Script(self.folder, number, str(names.get(number, name)))
            state = "applied"  # also where the history does not reach
            if number not in names:
                state = "missing"
            elif number > version:
                state = "pending"
            elif number not in recorded:
                state = "late" if number > passed else state
            elif thorough:
                script.read()
                state = "edited" if checksum != script.checksum else state
            states.append((number, script.name, state, when, mark + after))
        return states[::-1]


def _unenforce(connection: sqlite3.Connection) -> None:
    """Turn foreign keys off, or the rebuild of a table deletes its children. They may be on
    by the application's `connect`, or by the way SQLite was built."""
    connection.execute("PRAGMA foreign_keys = OFF")


def _journal_mode(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def _is_interrupt(error: Exception, statement: str = "") -> bool:
    """Return whether an error stands for a KeyboardInterrupt that was raised in a function
    that SQLite called. It is lost there: an authorizer then counts as denying, and a progress
    handler as interrupting. (Where extensions are off, load_extension() is denied too; and
    an IntegrityError may say whatever the script's RAISE() does.)"""
    message = str(error)
    if isinstance(error, MigrationError) or type(error).__name__ == "IntegrityError":
        return False
    return message == "interrupted" or "load_extension" not in statement.lower() and (
        message.startswith("not authorized") or message.endswith("is prohibited"))


def _needs_autocommit(message: str) -> bool:
    """Return whether SQLite says that a statement does not work inside a transaction."""
    return any(sign in message for sign in (
        "within a transaction", "within transaction", "inside a transaction")) or (
        message.startswith("database ") and message.endswith(" is locked")
        and message != "database is locked")  # DETACH


def _end(process: subprocess.Popen[bytes], alive: int) -> bool:
    """Ask a script and what it started to end, then end them; return whether all did."""
    import signal
    over = False
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            if os.name == "posix":
                os.killpg(process.pid, number)
            else:
                process.terminate()
        except (ProcessLookupError, PermissionError):
            pass  # none is left
        over = _ends(process, alive, KILL_SECONDS)
    process.wait()
    return over


def _ends(process: subprocess.Popen[bytes], alive: int, timeout: float) -> bool:
    """Return whether a script, and all that hold the other end of its pipe, end within the
    time. (On Windows they cannot inherit that.)"""
    if os.name == "posix":
        import select
        poll = select.poll()
        poll.register(alive, select.POLLIN)
        return bool(poll.poll(1000 * min(timeout, 1e6)))
    import subprocess
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _describe(status: int) -> str:
    """Return how a script failed, "" if it did not."""
    if status >= 0:
        return f"it failed with exit status {status}" if status else ""
    import signal
    names = {number.value: number.name for number in signal.Signals}
    return f"it was killed by {names.get(-status, f'signal {-status}')}"


def _tail(output: Any) -> str:
    """Return the last lines of a script's output."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - 4000))
    lines = output.read().decode(errors="replace").splitlines()
    return "\n".join((["..."] if size > 4000 or len(lines) > 20 else []) + lines[-20:])


# ------------------------------------------------------------------ reading scripts


class _Script:
    """A migration script, and what has been learnt about it in this run."""

    def __init__(self, folder: str, version: int, name: str) -> None:
        self.version = version
        self.name = name
        self.path = os.path.join(folder, name)
        self.sql = name.endswith(".sql")
        self.alone = not self.sql  # does not fit in a transaction: runs under a snapshot
        self.careful_from = sys.maxsize  # the line of the block that failed
        self.measured = False  # what dangled before it matters, since something does after
        self.outlived = False  # a process that it started cannot be ended
        self.directives: set[str] = set()
        self.pragmas: list[tuple[int, str]] = []  # (line, statement), to run before BEGIN
        self.checksum = ""  # known when all of it was read
        self.seconds = 0.0
        self._done = 0  # bytes read

    def progress(self) -> str:
        size = os.path.getsize(self.path)
        if self._done >= size:
            return f"{self.name} is running"
        return f"{self.name}: {100 * self._done // size} % of {size / 1e6:.1f} MB"

    def lines(self) -> Iterator[bytes]:
        """Yield the file in runs of whole lines, of about BLOCK bytes each, without its byte
        order mark and with line ends as the sqlite3 program reads them. The checksum is against
        accidents: these, and white space at the end of a line or of the file, do not count.

        Raises:
            _Failed: it cannot be read.
        """
        import zlib  # hashlib takes longer to import than a script to run
        self._done = crc = length = 0
        held = b""  # white space that counts only if something follows it
        try:
            with open(self.path, "rb") as file:
                if file.read(3) != b"\xef\xbb\xbf":
                    file.seek(0)
                while data := file.read(BLOCK):
                    if data[-1:] != b"\n":
                        data += file.readline()
                    self._done += len(data)
                    returns = b"\r" in data
                    yield data.replace(b"\r\n", b"\n") if returns else data
                    if returns or b" \n" in data or b"\t" in data and b"\t\n" in data:
                        data = b"\n".join([line.rstrip() for line in data.split(b"\n")])
                    kept = data.rstrip()
                    if kept:
                        crc = zlib.crc32(held + kept, crc)
                        length += len(held + kept)
                        held = b""
                    held += data[len(kept):]
        except OSError as error:
            raise _Failed(self, f"it cannot be read: {error.strerror}",
                          remedy="Make the file readable") from None
        self.checksum = f"{crc:08x}-{length:x}"

    def read(self) -> str:
        """Read all of the script, for its checksum; return how it begins."""
        runs = self.lines()
        beginning = next(runs, b"")
        for _ in runs:
            pass
        return beginning.decode(errors="replace")

    def blocks(self) -> Iterator[tuple[int, str]]:
        """Yield an SQL script as (number of the first line, text of whole statements).

        Raises:
            _Failed: it cannot be read, or is not UTF-8.
        """
        line, wanted = 1, 0
        parts: list[str] = []
        for data in self.lines():
            parts.append(self._decode(data, line, parts))
            # A statement that goes on is looked at again when the text has doubled, so that a
            # long one costs no more than its length.
            if sum(map(len, parts)) < wanted:
                continue
            text = "".join(parts)
            cut = _whole(text)
            if cut:
                yield line, text[:cut]
                line += text.count("\n", 0, cut)
            parts = [text[cut:]]
            wanted = 0 if cut else 2 * len(text)
        rest = "".join(parts)
        if rest:
            yield line, rest

    def _decode(self, data: bytes, line: int, before: list[str]) -> str:
        """Return the text of what follows after some that begins in a line."""
        wrong, position, text = "it holds a NUL character", data.find(b"\0"), ""
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            wrong, position = "it is not UTF-8", error.start
        if position >= 0:
            line += sum(part.count("\n") for part in before) + data.count(b"\n", 0, position)
            raise _Failed(self, wrong, line, remedy="Save it as UTF-8")
        return text

    def open(self, text: str) -> str:
        """Read the directives in the opening comment, and the PRAGMAs after it that belong
        before a transaction; return the text without these."""
        import re
        start = _skip(text, 0)
        if not self.sql:
            start = len(re.split(r"(?m)^(?!#|[^\S\n]*$)", text, maxsplit=1)[0])
        self.directives = set()
        for line, comment in enumerate(text[:start].splitlines(), 1):
            for word in re.findall(r"[^\s,*/]+", comment.partition("fastmigrate:")[2]):
                if word not in DIRECTIVES:
                    raise _Failed(self, f"it has the unknown directive {word!r}", line,
                                  remedy=f"Write one of {', '.join(DIRECTIVES)}")
                self.directives.add(word)
        self.alone |= "no-transaction" in self.directives
        self.pragmas = []
        if self.alone or text[start:start + 6].lower() != "pragma":
            return text
        for line, statement in _statements(text, 1):
            found = re.match(r"pragma\s+(?:\w+\s*\.\s*)?(\w+)", statement, re.I)
            if not found:
                break
            if found.group(1).lower() in OUTSIDE_PRAGMAS:
                self.pragmas.append((line, statement))
                start = text.index(statement, start)
                text = (text[:start] + "\n" * statement.count("\n")
                        + text[start + len(statement):])
        return text

    def command(self) -> list[str]:
        """Return the command that runs a script that is not SQL, but for its argument."""
        path = os.path.join(".", self.path) if self.path.startswith("-") else self.path
        if self.name.endswith(".py"):
            if getattr(sys, "frozen", False) or not sys.executable:
                raise _Failed(self, "this program brings no Python interpreter of its own to "
                              "run it with", remedy="Write it in SQL")
            return [sys.executable, path]
        with open(self.path, "rb") as file:
            first = os.fsdecode(file.readline().strip())
        return [*(first[2:].split(None, 1) if first[:2] == "#!" else ["sh"]), path]


def _scan(migrations_dir: StrPath) -> tuple[dict[int, str], str]:
    """Return the names of the scripts by version, and a warning of near misses, or ""."""
    names: dict[int, str] = {}
    others: list[str] = []
    folder = os.fsdecode(migrations_dir)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:  # as extract_version_from_filename(), for speed without it
                name = entry.name
                number = name.partition("-")[0]
                if (len(number) == 4 and number.isdecimal() and number.isascii()
                        and name.endswith(EXTENSIONS) and entry.is_file()):
                    version = int(number)
                    if names.setdefault(version, name) is not name:
                        raise ValueError(
                            f"two scripts have the index {version:04d}: {names[version]} and "
                            f"{name} in {folder}. Nothing was run. Give one another number.")
                else:
                    others.append(name)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no migrations directory {folder}. Create it, or "
                                "name another one with --migrations.") from None
    except NotADirectoryError:
        raise NotADirectoryError(f"{folder} is a file, not a migrations directory. Name one "
                                 "with --migrations.") from None
    if 0 in names:
        others.append(names.pop(0))
    near = ", ".join(sorted(name for name in others if name[:1].isdecimal()
                            and name.lower().endswith(EXTENSIONS)))
    return names, near and f"not run, for their names: {near}. In {folder}, {NAMING_RULE}."


def _whole(text: str) -> int:
    """Return the length of a start of the text that is whole statements, 0 if none is
    found near its end."""
    end = len(text)
    for _ in range(8):
        if sqlite3.complete_statement(text[:end]):
            return end
        end = text.rfind(";\n", 0, max(0, end - 1)) + 1
    return 0


def _skip(text: str, position: int) -> int:
    """Return the first position from this one that is not white space, comment or ;"""
    import re
    skipped = re.compile(r"(?:[ \t\n\f\r;]+|--[^\n]*|/\*.*?(?:\*/|\Z))*", re.S)
    return skipped.match(text, position).end()  # type: ignore[union-attr]


def _statements(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield the single statements of an SQL text, each with the number of its first line."""
    import re
    token = re.compile(
        r"""'[^']*'?|"[^"]*"?|`[^`]*`?|\[[^\]]*\]?|--[^\n]*|/\*.*?(?:\*/|\Z)|;|\bend\b""",
        re.S | re.I)
    counted, start = 0, _skip(text, 0)
    trigger, end = False, 0  # the ; of a trigger is one that follows END
    for found in token.finditer(text, start):
        if found.group().lower() == "end":
            end = found.end()
        if found.group() != ";" or found.start() < start:
            continue
        if trigger and _skip(text, end) < found.start():
            continue
        if not sqlite3.complete_statement(text[start:found.end()]):
            trigger = True
            continue
        line, counted = line + text.count("\n", counted, start), start
        yield line, text[start:found.end()]
        start, trigger = _skip(text, found.end()), False
    if start < len(text):
        yield line + text.count("\n", counted, start), text[start:].rstrip()


# ------------------------------------------------------------------ what a script does


class _Watch:
    """SQLite's authorizer: keeps a script inside the runner's transaction, and notes what
    it does that matters afterwards."""

    def __init__(self) -> None:
        self.on = False  # SQL of the runner's own passes unseen
        self._known: set[str] = set()  # tables whose next INSERT needs no thought

    def authorizer(self) -> Callable[..., int]:
        """Return what SQLite is to ask. It asks for every statement of a long script, so the
        usual answer comes from a plain function, which is much faster than this object."""
        known, insert, sqlite_ok = self._known, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_OK
        reading = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)

        def authorize(action: int, first: str | None, second: str | None, schema: str | None,
                      source: str | None) -> int:
            if (first in known and action == insert or action in reading
                    or first == "sqlite_master"):
                return sqlite_ok
            return self(action, first, second, schema, source)
        return authorize

    def start(self, enforced: bool) -> None:
        """A script begins; `enforced` tells whether foreign keys are."""
        self.on = True
        self._known.clear()
        self.misfit = False  # a statement was denied that does not fit in a transaction
        self.denied = ""  # why else one was denied
        self.stateful = False  # it changed the connection
        self.everything = False  # it may have changed any table
        self.defined = False  # it created or altered a table since this was set back
        self.refers = False  # it may have made a foreign key
        self.made: set[str] = set()  # tables that it created or altered
        self.dropped: set[str] = set()
        self.changed: set[str] = set()  # tables whose rows, or columns, it changed
        self.enforced = self.wanted = enforced
        self.own = False  # a transaction of the script's own is open
        self.implicit_commit = False

    def __call__(self, action: int, first: str | None, second: str | None,
                 schema: str | None, source: str | None) -> int:
        if not self.on:
            return sqlite3.SQLITE_OK
        name, other = (first or "").lower(), (second or "").lower()
        if action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE):
            allowed = self._change(name, schema)
            if first and schema == "main" and allowed == sqlite3.SQLITE_OK:
                self._known.add(first)  # changed already, if it is an INSERT
            return allowed
        if action == sqlite3.SQLITE_TRANSACTION:
            return self._transaction(name)
        if action == sqlite3.SQLITE_PRAGMA:
            return self._pragma(name, other)
        if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
            self.stateful = True
        elif action in (sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_VTABLE):
            self.made.add(name)
            self.defined = True
        elif action in (sqlite3.SQLITE_DROP_TABLE, sqlite3.SQLITE_DROP_VTABLE):
            self.dropped.add(name)
        elif action == sqlite3.SQLITE_DROP_INDEX:
            self.changed.add(other)
        elif action == sqlite3.SQLITE_ALTER_TABLE:
            self.made.add(other)
            self.changed.add(other)
            self.defined = True
        elif action == sqlite3.SQLITE_FUNCTION and other == "sqlite_rename_table":
            self.everything = True  # ALTER TABLE calls that, on all that may name the table
        return sqlite3.SQLITE_OK

    def _misfit(self) -> int:
        self.misfit = True
        return sqlite3.SQLITE_DENY

    def _change(self, table: str, schema: str | None) -> int:
        if table.startswith("sqlite_"):
            self.stateful |= table.startswith("sqlite_temp_")
            return sqlite3.SQLITE_OK
        if schema == "main":
            self.changed.add(table)
        if self.wanted == self.enforced:
            return sqlite3.SQLITE_OK
        if self.own and self.enforced:
            self.denied = (
                "PRAGMA foreign_keys = OFF does nothing after BEGIN: this could delete rows of "
                "other tables with those of its own. Move the PRAGMA before BEGIN.")
            return sqlite3.SQLITE_DENY
        return self._misfit()

    def _transaction(self, operation: str) -> int:
        if operation == "rollback":
            return self._misfit()
        # executescript() commits an open transaction before it begins, and a script may do
        # so itself: neither is to reach the runner's transaction.
        if self.implicit_commit:
            self.implicit_commit = False
        else:
            self.own = operation == "begin"
        return sqlite3.SQLITE_IGNORE

    def _pragma(self, name: str, value: str) -> int:
        self.stateful |= bool(value)
        if name == "foreign_keys" and value:
            self._known.clear()
            self.wanted = value in ("on", "yes", "true") or value.isdecimal() and int(value) > 0
        elif name == "writable_schema":
            self.everything = True
        elif name in ("synchronous", "query_only") and value:
            return sqlite3.SQLITE_IGNORE  # would fail, or stop us; matters to this connection only
        elif (name == "wal_checkpoint" or name == "journal_mode" and value) and not self.own:
            return self._misfit()
        return sqlite3.SQLITE_OK


class _References:
    """Finds the references that a script can have left dangling."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._parents: dict[str, set[str]] | None = None  # of each table that has any

    def tables(self) -> dict[str, set[str]]:
        """Return the tables that refer to others, with those that they refer to."""
        if self._parents is None:
            self._parents = {}
            for child, parent in self._connection.execute(SELECT_REFERENCES):
                self._parents.setdefault(child, set()).add(parent)
        return self._parents

    def dangling(self, watch: _Watch) -> Dangling:
        """Return what dangles in the tables that the script changed, and in those that
        refer to one that it changed or dropped. A table that it dropped and that is referred
        to counts also where the other has no rows to dangle."""
        if watch.dropped or watch.everything:
            self._parents = None  # to be read anew
        elif self._parents is not None and watch.refers:
            for table in watch.made:
                self._parents[table] = {
                    parent for parent, in self._connection.execute(SELECT_PARENTS, (table,))}
        changed = watch.changed | watch.dropped
        if not (changed or watch.everything):
            return {}
        tables = self.tables()
        found = _dangling(self._connection, [
            child for child, parents in tables.items()
            if watch.everything or child in changed or parents & changed])
        if watch.dropped:
            names = self._connection.execute("SELECT lower(name) FROM sqlite_master")
            gone = watch.dropped.difference(name for name, in names)
            for child, parents in tables.items():
                for parent in parents & gone:
                    found.setdefault((child, parent), [MISMATCH])
        return found


def _dangling(connection: sqlite3.Connection, tables: Iterable[str] | None = None) -> Dangling:
    """Return the rows that refer to rows that do not exist, by (table, parent): those of
    some tables, or of all."""
    found: Dangling = {}
    for table in _References(connection).tables() if tables is None else tables:
        try:
            for parent, row in connection.execute(SELECT_DANGLING, (table,)):
                found.setdefault((table, parent), []).append(row)
        except connection.OperationalError as error:
            if MISMATCH not in str(error):
                raise
            parent = str(error).rpartition('referencing "')[2].rstrip('"').lower()
            found.setdefault((table, parent), []).append(MISMATCH)
    return found


def _newly_dangling(before: Dangling, after: Dangling, rebuilt: Container[str] | None,
                    ) -> list[tuple[tuple[str, str], Any, int]]:
    """Return ((table, parent), a row, number of rows) for what dangles only after.

    In a table that was rebuilt the rows may have other numbers, so there the count
    decides; None stands for all tables.
    """
    found = []
    for key, rows in after.items():
        old = set(before.get(key, ()))
        new = [row for row in rows if row not in old]
        number = len(new)
        if rebuilt is None or key[0] in rebuilt or None in rows:
            number = len(rows) - len(before.get(key, ()))
        if number > 0:
            found.append((key, (new or rows)[0], number))
    return found


# ------------------------------------------------------------------ the database file


class _closing:
    """Close a connection in the end, which rolls back what was not committed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __enter__(self) -> sqlite3.Connection:
        return self.connection

    def __exit__(self, *details: object) -> None:
        self.connection.close()


class _Explained:
    """Turn errors of SQLite and of the system into MigrationError."""

    def __init__(self, database: _Database) -> None:
        self.database = database

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, self.database.errors) and _is_interrupt(error):
            raise KeyboardInterrupt from None
        if isinstance(error, MigrationError) or not isinstance(
                error, self.database.errors + (OSError, ValueError)):
            return
        raise self.database.explain(error) from error


class _Database:
    """A database file: how it is opened, locked and copied."""

    def __init__(self, path: StrPath, timeout: float = 30.0,
                 connect: Connect = sqlite3.connect, report: _Report | None = None) -> None:
        self.given = os.fsdecode(path)  # as scripts get it
        self.shown = self.given  # as messages name it
        if not self.given or "\0" in self.given or self.given.startswith("sqlite:/"):
            raise MigrationError(f"{self.given!r} is not the path of a database. Name its file "
                                 "with --db.")
        self.path = os.path.abspath(self.given)  # so that SQLite never takes it for a URI
        self.timeout = timeout
        self.connect = connect
        self.report = report or _Report()
        self.errors: tuple[type[Exception], ...] = (sqlite3.Error,)
        self.snapshot = _Snapshot(self)
        self.lasting = True  # must outlive a power cut

    def open(self, path: str = "") -> sqlite3.Connection:
        """Connect to the database, or to a copy of it; only we begin transactions."""
        if self.connect is sqlite3.connect and self.lasting:
            return sqlite3.connect(path or self.path, timeout=0.1, isolation_level=None)
        connection: Any = self.connect(path or self.path)
        self.errors = (sqlite3.Error, connection.Error)  # a driver may have its own
        if getattr(connection, "autocommit", -1) != -1:
            connection.autocommit = -1  # LEGACY_TRANSACTION_CONTROL
        connection.isolation_level = None
        connection.row_factory = None
        connection.text_factory = str
        connection.execute("PRAGMA busy_timeout = 100")
        if not self.lasting:
            connection.execute("PRAGMA synchronous = OFF")
        opened: sqlite3.Connection = connection
        return opened

    def look(self, also: Reader = lambda connection, version: None) -> tuple[int, Any]:
        """Return the version, and what `also` reads; nothing is written, and nothing held
        that a writer would wait for.

        Raises: as get_db_version().
        """
        self.must_exist()
        try:
            found: tuple[int, Any] = self.patiently(lambda: self._look(self.open(), also))
            return found
        except self.errors as error:
            if "readonly" in str(error) or "unable to open" in str(error):
                return self._look_immutable(also, error)
            raise self.explain(error) from error

    def _look(self, connection: sqlite3.Connection, also: Reader) -> tuple[int, Any]:
        with _closing(connection):
            connection.execute("BEGIN")  # all of it is one state, and locked once
            version = _read_version(connection, self.shown)
            return version, also(connection, version)

    def _look_immutable(self, also: Reader, error: Exception) -> tuple[int, Any]:
        """Look at a database in WAL mode where nobody can write, as SQLite does it only when
        told that nobody will. Its log must be empty, and so not there."""
        real = os.path.realpath(self.path)
        if (self.connect is not sqlite3.connect or os.access(os.path.dirname(real), os.W_OK)
                or os.path.exists(real + "-wal")):
            raise self.explain(error) from error
        from pathlib import PurePath
        with self.explained():
            uri = _uri(PurePath(self.path)) + "?immutable=1"
            return self._look(sqlite3.connect(uri, uri=True), also)

    def must_exist(self) -> None:
        """Raise FileNotFoundError if there is no file, so that SQLite creates none."""
        try:
            mode = os.stat(self.path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"there is no database {self.shown}. Create it with "
                                    "--createdb, or name another one with --db.") from None
        if mode >> 12 == 4:
            raise MigrationError(f"{self.shown} is a directory, not a database. Name the "
                                 "database file with --db.")

    # -------------------------------------------------------------- errors and waiting

    def explained(self) -> _Explained:
        return _Explained(self)

    def meaning(self, text: str) -> tuple[str, str] | None:
        """Return what an error of SQLite's means and what to do, None if it is in the SQL."""
        for sign, (meaning, remedy) in SQLITE_ERRORS.items():
            if text.startswith(sign):
                return meaning.format(db=self.shown, text=text), remedy
        return None

    def reason(self, error: BaseException) -> str:
        """Return what an error of SQLite's, or of the system's, means, in a few words."""
        if isinstance(error, OSError) and error.filename:
            return f"{os.fsdecode(error.filename)}: {error.strerror}"
        meaning = self.meaning(str(error)) if isinstance(error, self.errors) else None
        return meaning[0] if meaning else str(error)

    def explain(self, error: BaseException) -> MigrationError:
        """Return an error of SQLite's, or of the system's, as one of ours."""
        if isinstance(error, MigrationError):
            return error
        text = self.reason(error)
        meaning = self.meaning(str(error)) if isinstance(error, self.errors) else None
        if meaning:
            return MigrationError(f"{text}. Nothing was changed. {meaning[1]}, then run this "
                                  "again.")
        return MigrationError(f"{self.shown}: {text}" if isinstance(error, self.errors) else text)

    def patiently(self, act: Callable[[], Any]) -> Any:
        """Return what `act` returns, trying again for as long as the database is locked and
        there is time to wait."""
        wait = _Wait(self)
        while True:
            try:
                return act()
            except self.errors as error:
                if not _is_locked(error) or not wait.goes_on("another connection"):
                    raise
            time.sleep(POLL_SECONDS)

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a transaction that holds the write lock from its first moment. (One that
        asks for it later fails at once if another process has written meanwhile.)"""
        self.patiently(lambda: connection.execute("BEGIN IMMEDIATE"))

    def commit(self, connection: sqlite3.Connection) -> None:
        """Commit, when those who read have done so."""
        self.patiently(lambda: connection.execute("COMMIT"))

    def writing(self) -> sqlite3.Connection:
        """Return a new connection that holds the write lock, after the work of any runner
        that died was put right. Waits for one whose script still runs."""
        snapshot, wait, waited_for = self.snapshot, _Wait(self), ""
        while True:
            if not snapshot.is_held():  # else the script is not to meet our locks
                snapshot.make_place()
                self.must_exist()
                connection = self.open()
                try:
                    _unenforce(connection)
                    self.begin(connection)
                    if not snapshot.exists() or snapshot.is_of_caller():
                        return connection
                    try:
                        version = _read_version(connection, self.shown)
                    except MigrationError:
                        version = -1  # the script that was cut off may have taken it away
                    if snapshot.clear(version):
                        return connection
                except BaseException as error:
                    snapshot.release()
                    connection.close()
                    if (isinstance(error, MigrationError) or not isinstance(error, self.errors)
                            or not _is_damage(error) or not os.path.exists(snapshot.path)
                            or not snapshot.take_lock()):
                        raise
                connection.close()
                if snapshot.lock >= 0:
                    snapshot.recover()
                    continue
            holder = snapshot.holder()
            if holder != waited_for:
                wait, waited_for = _Wait(self), holder  # it gets on: wait afresh
            if not wait.goes_on(holder):
                raise MigrationError(
                    f"database is locked: {holder} has held {self.shown} for more than "
                    f"{self.timeout:g} s. Nothing was changed. Wait for that, or wait longer "
                    "with --timeout, then run this again.")
            time.sleep(POLL_SECONDS)

    # -------------------------------------------------------------- changing by hand

    def create(self) -> bool:
        """Create the database at version 0; return False if somebody else was faster."""
        real = os.path.realpath(self.path)
        with self.explained():
            os.makedirs(os.path.dirname(real), exist_ok=True)
            new = _aside(real)
            try:
                self.lay_out(new)
                return _place(new, real)
            finally:
                _remove(new, new + "-journal")

    def lay_out(self, path: str) -> None:
        """Make a file that is not there yet a database at version 0."""
        with _closing(self.open(path)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # it is synced when complete
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(CREATE_META)
            connection.execute(INSERT_META, (0,))
            connection.execute("COMMIT")

    def set_version(self, version: int) -> None:
        """Set the version by hand; what lies above it is no longer recorded as applied."""
        self.must_exist()
        with self.explained(), _closing(self.writing()) as connection:
            trouble: Exception | None = None
            try:
                _read_version(connection, self.shown)
            except UnversionedError:
                connection.execute(CREATE_META)
            except MigrationError as error:
                trouble = error  # a row that is missing or wrong can be set right
            try:
                connection.execute(INSERT_META, (version,))
                _read_version(connection, self.shown)
            except self.errors as error:
                raise trouble or error from None
            if connection.execute(HAS_HISTORY).fetchone():
                try:
                    connection.execute(SELECT_HISTORY, (version,))
                except connection.OperationalError as error:
                    raise MigrationError(
                        f"{self.shown} has a table _migration_history that is not fastmigrate's "
                        f"({error}). Nothing was changed. Rename it.") from None
                connection.execute(DELETE_HISTORY, (version + 1, MAX_VERSION))
            self.commit(connection)

    def restore(self, backup: str) -> None:
        """Copy a backup over the database, once it is proved sound."""
        source = _Database(backup, self.timeout, self.connect, self.report)
        if not os.path.exists(source.path):
            raise FileNotFoundError(f"there is no backup {backup}. Nothing was changed.")
        if os.path.exists(self.path) and os.path.samefile(source.path, self.path):
            raise MigrationError(f"{backup} is the database itself. Nothing was changed. Name a "
                                 "backup of it.")
        try:
            source.look(_prove_sound)
        except MigrationError as error:
            why = ("it has no version" if isinstance(error, UnversionedError)
                   else source.reason(error.__cause__ or error))
            raise MigrationError(f"{backup} is no backup to restore: {why}. Nothing was changed. "
                                 "Name another one.") from error
        with self.explained():
            try:
                if not os.path.exists(self.path):
                    os.makedirs(os.path.dirname(self.path), exist_ok=True)
                    _create_private(self.path, source.path)
                if self.snapshot.exists() and not self.snapshot.take_lock():
                    raise MigrationError(f"{self.snapshot.holder()} holds {self.shown}. Nothing "
                                         "was changed. Run this again when that is done.")
                if os.path.getsize(self.path):
                    self.report.result(f"What {self.shown} held is kept in {self.keep()}")
                self.copy(source.path, self.path, "restore")
                self.snapshot.remove()  # of a runner that died: it is not to come back
            finally:
                self.snapshot.release()

    def keep(self) -> str:
        """Back up what is about to be overwritten, byte for byte if SQLite cannot read it: it
        may be damaged, or encrypted with a key that we were not given. Return the path."""
        try:
            return self.back_up()
        except MigrationError as error:
            if not _is_damage(error.__cause__):
                raise
            kept = self.back_up(_copy_bytes)
            if os.path.exists(self.path + "-wal"):
                log = os.path.abspath(kept) + "-wal"
                _create_private(log, self.path)
                _copy_bytes(self.path + "-wal", log)
            self.make_way()
            return kept

    def is_readable(self) -> bool:
        try:
            with _closing(self.open()) as connection:
                connection.execute("SELECT 1 FROM sqlite_master").fetchall()
        except self.errors as error:
            return not _is_damage(error)
        return True

    def make_way(self) -> None:
        """Empty a database that SQLite cannot read, so that it can be written."""
        os.truncate(self.path, 0)  # by name: closing a descriptor would drop locks
        _remove(self.path + "-journal", self.path + "-wal", self.path + "-shm")

    # -------------------------------------------------------------- copies

    def back_up(self, copy: Callable[[str, str], None] | None = None) -> str:
        """Copy the database to a backup beside it, named by the time; return its path."""
        self.must_exist()
        new, now = _aside(self.path), int(time.time())
        try:
            _create_private(new, self.path)
            (copy or self.copy)(self.path, new)
            while True:
                end = time.strftime(".%Y%m%d_%H%M%S.backup", time.localtime(now))
                if _place(new, self.path + end):
                    return self.given + end
                now += 1  # two in one second: this one takes the next
        except self.errors + (OSError,) as error:
            raise MigrationError(f"no backup of {self.shown} could be made: {self.reason(error)}. "
                                 "Nothing was changed. Make room and rights beside it, then run "
                                 "this again.") from error
        finally:
            _remove(new)

    def copy(self, source: str, target: str, doing: str = "backup") -> None:
        """Copy one state of a database over another, in one transaction of that."""
        wait = _Wait(self)

        def step(status: int, remaining: int, total: int) -> None:
            copied = status in (sqlite3.SQLITE_OK, SQLITE_DONE)
            if not copied and not wait.goes_on("another connection"):
                raise sqlite3.OperationalError("database is locked")
            self.report.progress(
                lambda: f"{doing}: {100 * (total - remaining) // (total or 1)} % of {total} pages")

        with _closing(self.open(source)) as old, _closing(self.open(target)) as new:
            if target != self.path:  # a new file: nothing to roll back to
                new.execute("PRAGMA journal_mode = OFF")
                new.execute("PRAGMA synchronous = OFF")  # it is synced when it is complete
            elif _journal_mode(new) == "wal":
                sizes = {c.execute("PRAGMA page_size").fetchone() for c in (old, new)}
                if len(sizes) > 1:  # which SQLite does not change in this mode
                    self.patiently(lambda: new.execute("PRAGMA journal_mode = DELETE"))
                elif _journal_mode(old) != "wal":
                    try:
                        new.execute("PRAGMA journal_mode = DELETE")  # a copy would not change it
                    except self.errors as error:
                        if not _is_locked(error):
                            raise
            old.execute("BEGIN")  # one state from here on, whoever writes meanwhile
            self.patiently(lambda: old.execute("SELECT 1 FROM sqlite_master").fetchone())
            old.backup(new, pages=BACKUP_PAGES, progress=step, sleep=POLL_SECONDS)
        self.report.done()


class _Wait:
    """One wait for somebody else: tells of it once, and knows when the time is up."""

    def __init__(self, database: _Database) -> None:
        self._database = database
        self._since = time.monotonic()
        self._told = False

    def goes_on(self, whom: str) -> bool:
        database, waited = self._database, time.monotonic() - self._since
        if waited > 0.5 and not self._told and waited < database.timeout:
            self._told = True
            database.report.warn(f"waiting up to {database.timeout:g} s: {whom} holds "
                                 f"{database.shown}")
        return waited < database.timeout


class _Undisturbed:
    """Let SIGINT and SIGTERM wait until what is half done is done."""

    def __enter__(self) -> None:
        import signal
        self._before: Any = None
        if hasattr(signal, "pthread_sigmask"):
            self._before = signal.pthread_sigmask(
                signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

    def __exit__(self, *details: object) -> None:
        import signal
        if self._before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


class _Snapshot:
    """The copy of a database that is put back if a script on its own fails, and its lock.

    Both are made, judged and removed only by who has the write lock of the database, so no
    one waits for a file that is gone. A script inherits the lock: it outlives a runner
    that was killed. (The lock has a file of its own, for on macOS and the BSDs an flock()
    on the copy would keep SQLite, whose locks are fcntl()'s, from reading it.)
    """

    def __init__(self, database: _Database) -> None:
        self._database = database
        real = os.path.realpath(database.path) if os.path.islink(database.path) else database.path
        self.path = real + "-snapshot"
        self._lock_path = self.path + "-lock"
        self.lock = -1  # the descriptor, where we hold it

    def exists(self) -> bool:
        """Return whether a runner is, or died, in the middle of a script on its own."""
        return os.path.exists(self._lock_path) or os.path.exists(self.path)

    def is_held(self) -> bool:
        """Return whether a runner, or its script, seems to be at work: for waiting only."""
        if self.is_of_caller():
            return False
        try:
            descriptor = _try_lock(self._lock_path)
        except OSError:
            return False  # there is none
        if descriptor >= 0:
            os.close(descriptor)
        return descriptor < 0

    def is_of_caller(self) -> bool:
        """Return whether it is a script that calls us, and for that script that it was made."""
        made = os.environ.get("FASTMIGRATE_SNAPSHOT")  # inherited also by what outlives it
        return made is not None and made == f"{self._note()[0]} {self.path}"

    def take(self, name: str, copied: bool) -> None:
        """Take the lock for a script and, unless there is to be no copy, make that."""
        new = self.path + "-new"
        for _ in range(100):
            if self.take_lock():
                break
            time.sleep(0.01)  # somebody has a look, as is_held() does
        else:  # it is another's, and so is the copy: a script that migrates its own database
            raise OSError(11, "somebody holds the lock", self._lock_path)
        try:
            os.write(self.lock, f"{os.getpid()}\n{name}\n{'copied' if copied else ''}\n"
                     .encode(errors="replace"))
            if copied:
                _create_private(new, self._database.path)
                self._database.copy(self._database.path, new, "snapshot")
                _sync(new)
                os.replace(new, self.path)
                _sync(os.path.dirname(new))
        except BaseException:
            self.remove()
            raise

    def take_lock(self) -> bool:
        if not os.path.exists(self._lock_path):
            _create_private(self._lock_path, self._database.path)
        self.lock = _try_lock(self._lock_path)
        return self.lock >= 0

    def release(self) -> None:
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def remove(self) -> None:
        """Remove the copy and the lock; the write lock is held, or the lock."""
        _remove(*(self.path + end for end in ("", "-new", "-wal", "-shm", "-journal")))
        self.release()  # Windows removes no open file
        _remove(self._lock_path)

    def drop(self) -> None:
        """Remove the copy and the lock."""
        with _Undisturbed(), _closing(self._database.open()) as connection:
            self._database.begin(connection)
            self.remove()

    def put_back(self) -> None:
        """Make the database what it was when the copy was made; remove that."""
        database = self._database
        with _Undisturbed():
            self._version()  # proves that it is there, and a snapshot
            self.make_place()
            try:
                database.copy(self.path, database.path, "putting back")
            except database.errors as error:
                if not _is_damage(error) or database.is_readable():
                    raise
                self.read(lambda copy: _prove_sound(copy, 0))
                database.make_way()
                database.copy(self.path, database.path, "putting back")
            self.drop()

    def make_place(self) -> None:
        """Make the database an empty file where a script has removed it."""
        if os.path.exists(self.path) and not os.path.exists(self._database.path):
            try:
                _create_private(self._database.path, self.path)
            except FileExistsError:
                pass  # somebody else has done so

    def clear(self, version: int) -> bool:
        """Return whether the way is free. Else a runner or its script holds the lock or,
        where nobody did, we do now, and must recover(). We hold the write lock."""
        if not self.take_lock():
            return False
        if os.path.exists(self.path):
            leads_to = extract_version_from_filename(self._note()[1]) or version
            if self._version() >= version or version != leads_to:
                return False
            # else the script had finished, and only the removal was missing
        else:
            _, name, copied = self._note()
            if not copied and (extract_version_from_filename(name) or 0) > version:
                self._database.report.warn(
                    f"{name} was cut off in a run without a snapshot: {self._database.shown} "
                    "may hold a part of what it did. It is run again now.")
        self.remove()
        return True

    def recover(self) -> None:
        """Put back the copy of a runner that died; keep what it left as a backup."""
        database, kept = self._database, ""
        try:
            self._version()
            kept = database.keep()
            self.put_back()
        except database.errors + (OSError,) as error:
            if kept and os.path.getsize(database.path):  # else it is the only copy
                _remove(os.path.abspath(kept))
            raise MigrationError(
                f"an earlier run died while a script was running, and {database.shown} cannot "
                f"be put back: {database.reason(error)}\nIt holds what that script left; its "
                f"snapshot {self.path} is kept. Mend this, then run this again: the snapshot is "
                "put back first.") from error
        finally:
            self.release()
        database.report.warn(
            f"an earlier run died while a script was running. {database.shown} was put back to "
            f"where it stood before that script. What was there, with a part of that script's "
            f"work, is kept in {kept}, which you may delete.")

    def read(self, what: Callable[[sqlite3.Connection], Any]) -> Any:
        if not os.path.exists(self.path):  # SQLite would create an empty one
            raise FileNotFoundError(2, "the snapshot is gone", self.path)
        with _closing(self._database.open(self.path)) as copy:
            return what(copy)

    def _version(self) -> int:
        try:
            return int(self.read(lambda copy: _read_version(copy, self.path)))
        except self._database.errors as error:
            raise MigrationError(
                f"{self.path} is not a snapshot that fastmigrate made: {error}\nNothing was "
                "changed. Move it out of the way, then run this again.") from error

    def _note(self) -> tuple[str, str, bool]:
        """Return process, script, and whether there is to be a copy."""
        try:
            with open(self._lock_path, encoding="utf-8", errors="replace") as file:
                process, name, copied = file.read().split("\n")[:3]
            return process, name, bool(copied)
        except (OSError, ValueError):
            return "", "", True  # it died before it could write it, or has just ended

    def holder(self) -> str:
        process, name, _ = self._note()
        return f"{name}, which process {process} started," if process else "another process"


def _uri(path: PurePath) -> str:
    """Return the URI of a file as SQLite reads it. (It knows no host: the path of a share
    is to follow as it is, with four slashes in all.)"""
    from urllib.parse import quote
    text = path.as_posix()
    return "file://" + "/" * (text[:1] != "/") + quote(os.fsencode(text), safe="/:")


def _is_damage(error: BaseException | None) -> bool:
    return any(sign in str(error) for sign in ("not a database", "malformed"))


def _is_locked(error: BaseException) -> bool:
    return str(error).startswith(("database is locked", "database table is locked",
                                  "database schema is locked", "locking protocol"))


def _read_version(connection: sqlite3.Connection, name: str) -> int:
    """Return the version that `_meta` holds; raise MigrationError if it holds none."""
    try:
        rows = connection.execute(SELECT_META).fetchall()
    except connection.OperationalError as error:
        if "no such table" in str(error):
            raise UnversionedError(
                f"{name} is unversioned: it has no table _meta. Put it under management with "
                "--enroll, or with --set-version if you know its version.") from None
        if "no such column" in str(error):
            raise MigrationError(
                f"{name} has a table _meta that is not fastmigrate's ({error}). Rename it: "
                "the version of the database is kept in a table of this name.") from None
        raise
    if len(rows) == 1 and rows[0][0] == 1 and type(rows[0][1]) is int and rows[0][1] >= 0:
        return int(rows[0][1])
    held = ", ".join(repr(row) for row in rows) or "no row"
    raise MigrationError(
        f"{name} has a damaged table _meta: it must hold one row, (1, version), and holds "
        f"{held}. Set the version with --set-version if you know it.")


def _prove_sound(connection: sqlite3.Connection, version: int) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed: {found}")


def _create_private(path: str, like: str) -> None:
    """Create an empty file that no more users can read than can the other file."""
    status = os.stat(like)
    mode = status.st_mode & 0o777
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode & 0o600)
    try:
        if os.name == "posix":
            made = os.fstat(descriptor)
            for owner in (status.st_uid, -1):
                if (made.st_uid, made.st_gid) == (status.st_uid, status.st_gid):
                    break
                try:
                    os.fchown(descriptor, owner, status.st_gid)
                    break
                except OSError:
                    pass
            else:
                mode &= 0o707  # another group is not to read it
            os.fchmod(descriptor, mode)
    except BaseException:
        _remove(path)
        raise
    finally:
        os.close(descriptor)


def _copy_bytes(source: str, target: str) -> None:
    """Copy a file as it is. The source is left open until the process ends: if it is a
    database, closing it would drop every lock that this process holds on it."""
    descriptor = os.open(source, os.O_RDONLY)
    with open(target, "wb") as file:
        while True:
            data = os.read(descriptor, BLOCK)
            if not data:
                break
            file.write(data)


def _aside(path: str) -> str:
    """Return a name beside a file for one that takes its place when it is complete; remove
    what processes of this host left that died before that."""
    if os.name != "posix":
        return f"{path}-new-{os.getpid()}-{os.urandom(4).hex()}"
    host = f"-new-{os.uname().nodename}-"  # processes are numbered by host, or container
    folder, name = os.path.split(path + host)
    for other in os.listdir(folder):
        process = other[len(name):].partition("-")[0]
        if other.startswith(name) and process.isdecimal():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                _remove(os.path.join(folder, other))
            except OSError:
                pass  # it is alive, and somebody else's
    return f"{path}{host}{os.getpid()}-{os.urandom(4).hex()}"


def _place(new: str, path: str) -> bool:
    """Give a complete file its name for good; return False if that is taken."""
    _sync(new)
    try:
        if os.name == "nt":
            os.rename(new, path)  # fails there if the name is taken
        else:
            os.link(new, path)
            _remove(new)
    except FileExistsError:
        return False
    except OSError:  # a file system without links, such as exFAT
        if os.path.exists(path):
            return False
        os.rename(new, path)
    _sync(os.path.dirname(path))
    return True


def _try_lock(path: str) -> int:
    """Return a file descriptor that holds the lock of a file, -1 if somebody else does."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        if os.name == "nt":
            import msvcrt
            os.lseek(descriptor, 1 << 30, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return -1


def _sync(path: str) -> None:
    """Make a file, or the names in a directory, survive a power cut."""
    folder = os.path.isdir(path)
    if folder and os.name == "nt":
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(*paths: str) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


# ------------------------------------------------------------------ schemas


class _Scratch(_Database):
    """A database in a temporary directory that goes away in every case."""

    def __init__(self, connect: Connect, logged: bool = True) -> None:
        import tempfile
        self._folder = tempfile.TemporaryDirectory(prefix="fastmigrate-")
        super().__init__(os.path.join(self._folder.name, "scratch.db"), connect=connect,
                         report=_Report(logged=logged))
        self.shown = "the scratch database"
        self.lasting = False

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *details: object) -> None:
        self._folder.cleanup()

    def replay(self, migrations_dir: StrPath, to: int | None) -> None:
        """Bring the database from where it is to a version."""
        if not os.path.exists(self.path):
            self.lay_out(self.path)
        _Run(self, migrations_dir, to).run()

    def diff(self, migrations_dir: StrPath, version: int, other: Schema, name: str) -> str:
        """Return how another schema differs from that of a version, "" if it does not."""
        self.replay(migrations_dir, version)
        return _diff(self.look(_schema)[1], other, f"the scripts up to {version}", name)


def _schema(connection: sqlite3.Connection, version: int = 0) -> Schema:
    """Return (type, name, SQL) of what an application made, in order, by what it means."""
    try:
        shadows = {name for name, in connection.execute(SELECT_SHADOWS)}
    except connection.OperationalError:  # SQLite before 3.37
        shadows = set()
    found = connection.execute(SELECT_SCHEMA).fetchall()
    for _, table, sql in found:
        if sql[:14].upper() == "CREATE VIRTUAL":
            shadows.update(f"{table}_{end}" for end in SHADOWS)
    return {_meaning(sql): (kind, name, sql) for kind, name, sql in found
            if name not in shadows and name.rstrip("0123456789") not in shadows}


def _meaning(sql: str) -> tuple[str, ...]:
    """Return the tokens of a CREATE statement in one form for all ways to write it: white
    space, comments, letter case and the quoting of names do not count."""
    import re
    pattern = re.compile(r"""
          \s+ | --[^\n]* | /\*.*?(?:\*/|\Z)
        | (?P<string> '(?:[^']|'')*' )
        | (?P<quoted> "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] )
        | (?P<other> [\w$]+ | . )""", re.S | re.X)
    tokens: list[str] = []
    for found in pattern.finditer(sql):
        token = found.group()
        if found["quoted"] and tokens[-1:] == ["default"]:
            tokens.append(f"'{token[1:-1]}'")  # SQLite takes it for a string there
        elif found["quoted"]:
            tokens.append(token[1:-1].replace(token[-1] * 2, token[-1]).lower())
        elif found["string"]:
            tokens.append(token)
        elif found["other"]:
            tokens.append(token.lower())
    # ALTER TABLE adds a column behind the constraints of the table; written out, it stands
    # before them. So they go to the end here.
    columns: list[str] = []
    constraints: list[str] = []
    into, depth = columns, 0
    for token, following in zip(tokens, [*tokens[1:], ""]):
        depth += (token == "(") - (token == ")")
        if depth == 0 or token == "," and depth == 1:
            constrains = following in ("constraint", "primary", "unique", "check", "foreign")
            into = constraints if depth and constrains else columns
        into.append(token)
    return (*columns, *constraints)


def _diff(before: Schema, after: Schema, name_before: str, name_after: str) -> str:
    """Return a unified diff of the objects that do not mean the same."""
    import difflib

    def lines(meanings: set[tuple[str, ...]], schema: Schema) -> list[str]:
        return [line for meaning in sorted(meanings)
                for line in f"{schema[meaning][2]};".split("\n")]

    return "\n".join(difflib.unified_diff(
        lines(before.keys() - after, before), lines(after.keys() - before, after),
        name_before, name_after, lineterm="", n=99))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _contents(connection: sqlite3.Connection, version: int) -> tuple[Schema, dict[str, int]]:
    """Return the schema, and the number of rows in each table."""
    schema = _schema(connection)
    return schema, {
        name: connection.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()[0]
        for kind, name, _ in schema.values() if kind == "table"}


def _verify(database: _Database, migrations_dir: StrPath) -> str:
    version, schema = database.look(_schema)
    with _Scratch(database.connect, database.report.logged) as scratch:
        return scratch.diff(migrations_dir, version, schema, database.shown)


def _rehearse(database: _Database, migrations_dir: StrPath, to: int | None) -> dict[str, Any]:
    database.look()  # says what is in the way in the name of the database itself
    with _Scratch(database.connect) as copy, database.explained():
        copy.report, copy.timeout = database.report, database.timeout
        copy.shown = f"the copy of {database.shown}"
        _create_private(copy.path, database.path)
        database.copy(database.path, copy.path, "copy")
        version, (schema, rows) = copy.look(_contents)
        scripts = _Run(copy, migrations_dir, to).run()
        _, (new_schema, new_rows) = copy.look(_contents)
    return {
        "migrations": [{"version": script.version, "name": script.name,
                        "seconds": script.seconds} for script in scripts],
        "diff": _diff(schema, new_schema, f"{database.shown} at version {version}",
                      "after the pending scripts"),
        "rows": {table: [rows.get(table, 0), new_rows.get(table, 0)]
                 for table in sorted({*rows, *new_rows})
                 if rows.get(table, 0) != new_rows.get(table, 0)}}


def _enroll(database: _Database, folder: str) -> int:
    try:
        version = database.look()[0]
    except UnversionedError:
        pass
    else:
        raise MigrationError(f"{database.shown} is versioned already, and at version {version}. "
                             "Nothing was changed.")
    with database.explained():
        with _closing(database.open()) as connection:
            schema = _schema(connection)
        versions = sorted(_scan(folder)[0]) if os.path.exists(folder) else []
        if versions:
            version = _find_version(database, schema, folder, versions)
            database.set_version(version)
            return version
        if not schema:
            raise MigrationError(f"{database.shown} has nothing in it to enroll. Nothing was "
                                 "changed. Use --set-version 0 to begin with it at version 0.")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "0001-initialize.sql")
        try:
            with open(path, "x", encoding="utf-8", newline="\n") as file:
                file.write("-- The schema as it was when this database was put under "
                           "management.\n")
                file.writelines(f"{sql};\n" for *_, sql in schema.values())
            _find_version(database, schema, folder, [1])
            database.set_version(1)
        except BaseException:
            _remove(path)
            raise
        database.report.result(f"{path} holds its schema")
        return 1


def _find_version(database: _Database, schema: Schema, folder: str, versions: list[int]) -> int:
    """Return the highest version whose schema, replayed, is this one."""
    with _Scratch(database.connect, database.report.logged) as scratch:
        diffs = {version: scratch.diff(folder, version, schema, database.shown)
                 for version in versions}
    fitting = [version for version in versions if not diffs[version]]
    if not fitting:
        nearest = min(reversed(diffs.values()), key=lambda diff: diff.count("\n"))
        raise MigrationError(f"no version has the schema of {database.shown}. The nearest:\n"
                             f"{nearest}\nNothing was changed. Write a script that leads to "
                             "this schema, or change the database to fit, then run this again.")
    if len(fitting) > 1:
        database.report.warn(
            f"the versions {', '.join(map(str, fitting))} all have the schema of "
            f"{database.shown}. If the data is not that of {fitting[-1]}, use --set-version.")
    return fitting[-1]


# ------------------------------------------------------------------ messages


def _log(level: str, text: str) -> None:
    import logging  # no start-up that has nothing to say pays for it
    getattr(logging.getLogger("fastmigrate"), level)(text)


def _say(text: str, end: str = "\n", *, result: bool = False) -> None:
    file = sys.stdout if result else sys.stderr  # None if it was closed
    try:
        if file:
            print(text, end=end, file=file, flush=True)
    except (OSError, ValueError):
        pass  # nobody reads it: no reason for a migration to fail


class _Report:
    """Where the results, the warnings and the progress of a run go."""

    def __init__(self, results: bool = False, output: bool = False, logged: bool = True) -> None:
        self.results = results  # say on stdout what was done
        self.output = output  # show the output of scripts as it comes
        self.logged = logged  # warnings are logged, else they go to stderr
        self.to = ""  # " to NAME" where several databases are migrated
        self.terminal = results and not logged and bool(
            sys.stderr and sys.stderr.isatty())  # show progress there
        self._said: set[str] = set()
        self._shown = self._started = 0.0

    def result(self, text: str) -> None:
        if self.results:
            self.done()
            _say(text, result=True)

    def warn(self, text: str) -> None:
        if text in self._said:
            return  # a script that is run again says the same again
        self._said.add(text)
        self.done()
        if self.logged:
            _log("warning", text)
        else:
            _say(f"warning: {text}")

    def progress(self, text: Callable[[], str]) -> None:
        """Show what is being done, where it has lasted for more than a second."""
        if not self.terminal:
            return
        now = time.monotonic()
        self._started = self._started or now
        if now - self._started > 1 and now - self._shown > 0.1:
            self._shown = now
            _say("\r\x1b[K" + text()[:79], end="")

    def done(self) -> None:
        """What progress was shown for is over."""
        if self._shown:
            _say("\r\x1b[K", end="")
        self._started = self._shown = 0.0


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _seconds(duration: float) -> str:
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.1f} s"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ------------------------------------------------------------------ the command line


def _parser() -> argparse.ArgumentParser:
    import argparse

    def number(kind: type, low: int, high: int) -> Callable[[str], Any]:
        def parse(text: str) -> Any:
            try:
                if low <= kind(text) <= high:
                    return kind(text)
            except ValueError:
                pass
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return parse

    version = number(int, 0, MAX_VERSION)
    parser = argparse.ArgumentParser(
        prog="fastmigrate", allow_abbrev=False, add_help=False, epilog=EXAMPLES,
        usage="fastmigrate [--db PATH] [--migrations DIR] [options]",
        description="Bring a SQLite database to the version that your code expects.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("where").add_argument
    add("--db", metavar="PATH", nargs="+", help="database or pattern (data/database.db)")
    add("--migrations", metavar="DIR", help="migrations directory (migrations)")
    add("--config", metavar="FILE", help="ini file: db and migrations in [paths] (.fastmigrate)")
    add = parser.add_argument_group("migrating").add_argument
    add("--backup", action="store_true", help="make a backup first")
    add("--to", metavar="N", type=version, help="stop after version N")
    add("--timeout", metavar="S", type=number(float, 0, 10 ** 9), default=30.0,
        help="seconds to wait for another process (30)")
    add("--no-snapshot", action="store_true", help="what .py and .sh do stays if they fail")
    add("--jobs", metavar="N", type=number(int, 1, 999), default=1,
        help="processes, for several databases (1)")
    add = parser.add_argument_group(
        "instead of migrating").add_mutually_exclusive_group().add_argument
    for flag, text in (
            ("--createdb", "create an empty database at version 0"),
            ("--status", "show the version and the state of every script"),
            ("--check", "exit 0 only if nothing is pending and nothing is amiss"),
            ("--verify", "compare the schema with that of the scripts"),
            ("--rehearse", "run what is pending on a copy; show what it changes"),
            ("--enroll", "put an existing database under management"),
            ("--accept", "record the applied scripts as they stand now")):
        add(flag, dest="action", action="store_const", const=flag[2:], help=text)
    add("--new", metavar="WORDS", help="create the next script; print its path")
    add("--set-version", metavar="N", type=version, help="set the version by hand; run nothing")
    add("--restore", metavar="FILE", help="make the database what a backup is")
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="with --status")
    add("-v", "--verbose", action="store_true", help="show the output of scripts")
    add("-q", "--quiet", action="store_true", help="show warnings and errors only")
    add("--version", action="version", version=f"fastmigrate {__version__}",
        help="show the version of fastmigrate")
    add("-h", "--help", action="help", help="show this")
    return parser


def _configure(arguments: argparse.Namespace) -> None:
    """Fill in what the command line does not say: from the config, else the defaults."""
    path = ".fastmigrate" if arguments.config is None else arguments.config
    paths = {"db": os.path.join("data", "database.db"), "migrations": "migrations"}
    if arguments.config is not None or os.path.exists(path):
        import configparser
        parser = configparser.ConfigParser(interpolation=None)
        try:
            with open(path, encoding="utf-8-sig") as file:
                parser.read_file(file)
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            what = "cannot be read" if isinstance(error, OSError) else "is broken"
            raise MigrationError(f"the config {path} {what}: {' '.join(str(error).split())}"
                                 ) from error
        for section in parser.sections():
            for key, value in parser[section].items():
                if section != "paths" or key not in paths:
                    _say(f"warning: {path}: unknown key {key} in [{section}]. There are db "
                         "and migrations in [paths].")
                elif value:
                    paths[key] = os.path.join(os.path.dirname(path), value)
    arguments.db = _databases(arguments.db or [paths["db"]])
    if arguments.migrations is None:
        arguments.migrations = paths["migrations"]


def _databases(patterns: list[str]) -> list[str]:
    """Return the databases that paths and patterns name."""
    found: list[str] = []
    for pattern in patterns:
        matches = [pattern]
        if not os.path.lexists(pattern):
            import glob
            matches = sorted(path for path in glob.glob(pattern) if not path.endswith((
                ".backup", "-journal", "-wal", "-shm", "-snapshot", "-snapshot-lock")))
            if "*" in pattern and not matches:
                raise MigrationError(f"there is no database {pattern}. Name others with --db.")
        found += matches or [pattern]
    return list(dict.fromkeys(found))


def _command(arguments: argparse.Namespace, path: str) -> int:
    """Do what the command line asks for with one database; return the exit code."""
    report = _Report(not arguments.quiet, arguments.verbose, logged=False)
    report.to = f" to {path}" if len(arguments.db) > 1 else ""
    folder, action = arguments.migrations, arguments.action
    database = _Database(path, arguments.timeout, arguments.connect, report)
    run = _Run(database, folder, arguments.to, arguments.backup, not arguments.no_snapshot)
    if action == "createdb":
        created = not os.path.exists(database.path) and database.create()
        report.result(f"{path} {'created' if created else 'is there already'}, at version "
                      f"{database.look()[0]}")
    elif action == "status":
        if arguments.json:
            import json
            _say(json.dumps(run.status(), indent=1 if len(arguments.db) == 1 else None),
                 result=True)
        else:
            _show_status(run.status())
    elif action == "check":
        return _show_check(run.status(), report)
    elif action == "verify":
        diff = _verify(database, folder)
        report.result(diff or f"the schema of {path} is that of the scripts")
        if diff:
            _say(f"error: {path} was changed by other means than its scripts. To keep that, "
                 "write a script that does it, and give its number to --set-version.")
        return int(bool(diff))
    elif action == "rehearse":
        _show_rehearsal(_rehearse(database, folder, arguments.to), path, report)
    elif action == "enroll":
        report.result(f"{path} is under management now, at version {_enroll(database, folder)}")
    elif action == "accept":
        names = run.accept()
        report.result(f"accepted for {path}: {', '.join(names) or 'nothing, all is recorded so'}")
    elif arguments.set_version is not None:
        database.set_version(arguments.set_version)
        report.result(f"{path} is at version {arguments.set_version} now; no script was run")
    elif arguments.restore is not None:
        database.restore(arguments.restore)
        report.result(f"{path} is what {arguments.restore} is, at version {database.look()[0]}: "
                      "the next run goes on from there")
    else:
        run.run()
    return 0


def _show_status(status: dict[str, Any]) -> None:
    _say(f"{status['db']} is at version {status['version']}; the scripts end at "
         f"{status['latest']}", result=True)
    colours = {"applied": 32, "pending": 33} if (
        sys.stdout and sys.stdout.isatty() and not os.environ.get("NO_COLOR")) else None
    width = min(47, max((len(script["name"]) for script in status["migrations"]), default=0))
    for script in status["migrations"]:
        name, state = script["name"], f"{script['state']:9}"
        name = name if len(name) <= width else name[:width - 3] + "..."
        if colours:
            state = f"\x1b[{colours.get(script['state'], 31)}m{state}\x1b[0m"
        when = (script["applied_at"] or "").replace("T", " ")
        _say(f"  {name:{width}}  {state}{when}".rstrip(), result=True)
    for problem in status["problems"]:
        _say(f"warning: {problem}")


def _show_check(status: dict[str, Any], report: _Report) -> int:
    problems = status["problems"]
    pending = [m["name"] for m in status["migrations"] if m["state"] == "pending"]
    if pending:
        problems.append(f"pending: {', '.join(pending)}. Run fastmigrate.")
    for problem in problems:
        _say(f"error: {problem}")
    if not problems:
        report.result(f"{status['db']} is at version {status['version']}, as the scripts say")
    return int(bool(problems))


def _show_rehearsal(found: dict[str, Any], path: str, report: _Report) -> None:
    if found["diff"]:
        report.result("\n" + found["diff"])
    if found["rows"]:
        report.result("\nrows:")
        width = max(map(len, found["rows"]))
        for table, (before, after) in found["rows"].items():
            report.result(f"  {table:{width}}  {before} -> {after}")
    elsewhere = "" if all(m["name"].endswith(".sql") for m in found["migrations"]) else (
        " What .py and .sh scripts do elsewhere than in the database, they did.")
    report.result(f"\nThis was a rehearsal: {path} is untouched.{elsewhere}")


def _several(arguments: argparse.Namespace) -> int:
    """Do with each of several databases what the command line asks for, and sum up."""
    import collections
    if arguments.jobs > 1:
        codes = _in_processes(arguments)
    else:
        codes = []
        for path in arguments.db:
            codes.append(_one(arguments, path))
            if codes[-1] > 2:
                return codes[-1]  # interrupted
    failed = [path for path, code in zip(arguments.db, codes) if code]
    if not arguments.quiet and not arguments.json:
        states = collections.Counter(
            "failed" if code else f"at version {get_db_version(path, connect=arguments.connect)}"
            for path, code in zip(arguments.db, codes))
        _say(", ".join(f"{_plural(count, 'database')} {at}" for at, count in states.items()),
             result=True)
    if failed:
        _say(f"error: {len(failed)} of {len(codes)} failed: {', '.join(failed)}")
    return int(bool(failed))


def _one(arguments: argparse.Namespace, path: str) -> int:
    return _guarded(lambda: _command(arguments, path), [path], arguments.connect)


def _in_processes(arguments: argparse.Namespace) -> list[int]:
    """Work on several databases at a time, each in a process of its own; return their exit
    codes. (A pool of processes hangs on some Pythons when one of them is killed.)"""
    import multiprocessing
    import multiprocessing.connection
    codes: dict[str, int] = {}
    running: dict[Any, Any] = {}  # (process, path) by what becomes ready when it ends
    todo = arguments.db[::-1]
    try:
        while todo or running:
            while todo and len(running) < arguments.jobs:
                with _Undisturbed():
                    path = todo.pop()
                    process = multiprocessing.Process(target=_be_process, args=(arguments, path))
                    process.start()
                    running[process.sentinel] = process, path
            for sentinel in multiprocessing.connection.wait(list(running)):
                process, path = running.pop(sentinel)
                process.join()
                codes[path] = process.exitcode
                if codes[path] < 0:
                    _say(f"error: {path}: its process was killed by signal {-codes[path]}")
    except KeyboardInterrupt:
        for process, _ in running.values():
            process.terminate()  # ends the script it is at, and puts that back
        for process, _ in running.values():
            process.join()
        raise
    return [codes[path] for path in arguments.db]


def _be_process(arguments: argparse.Namespace, path: str) -> NoReturn:
    """Work on one database; from here on signals are this process's own."""
    import signal
    _ignore_signals()

    def act() -> int:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        return _command(arguments, path)

    sys.exit(_guarded(act, [path], arguments.connect))


def _guarded(act: Callable[[], int], databases: list[str], connect: Connect) -> int:
    """Return the exit code that `act` does, or that of one message for what is refused,
    fails, or is interrupted by a signal."""
    import signal
    came: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        if len(came) == 1:  # further ones do not disturb the putting back that follows
            raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, interrupt)
    except ValueError:
        pass  # not in the main thread: signals are somebody else's
    try:
        return act()
    except SystemExit as error:
        return int(error.code or 0)
    except (sqlite3.Error, OSError, ValueError) as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say(f"interrupted: {_standing(databases, connect)} Run this again to go on.")
        return 128 + (came or [signal.SIGINT])[0]
    finally:
        came.append(0)  # too late to interrupt anything
        for each, handler in before.items():
            signal.signal(each, handler)


def main(argv: list[str] | None = None, *, connect: Connect = sqlite3.connect) -> int:
    """Run the command line; return its exit code: 0 done, 1 refused or failed, 2 usage,
    130 interrupted, 143 terminated.

    Args:
        argv: the arguments, without the program's name; None for those of the process.
        connect: a program that passes its own is the command line for databases that
            need an extension or a key.
    """
    databases: list[str] = []

    def act() -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a path may hold any bytes
        parser = _parser()
        arguments = parser.parse_args(argv)
        arguments.connect = connect
        if arguments.json and arguments.action != "status":
            parser.error("--json goes with --status")
        _configure(arguments)
        if arguments.new is not None:
            print(new_migration(arguments.migrations, arguments.new))
            return 0
        databases.extend(arguments.db)
        if arguments.restore is not None and len(databases) > 1:
            parser.error("--restore goes with one database")
        return _command(arguments, *databases) if len(databases) == 1 else _several(arguments)

    return _guarded(act, databases, connect)


def _standing(databases: list[str], connect: Connect) -> str:
    """Return what to say after an interrupt of where the databases stand."""
    if len(databases) != 1:
        return "--status tells where a database stands."
    database = _Database(databases[0], 0.3, connect)
    try:
        state = f"{database.given} is at version {database.look()[0]}"
    except (sqlite3.Error, OSError) as error:
        reason = database.reason(error.__cause__ or error)
        return f"the version of {database.given} cannot be read now ({reason})."
    if database.snapshot.exists():
        state += ", with a script not settled, which the next run puts right before anything else"
    return f"{state}."


def _program() -> int:
    """Be the program of this process: no signal changes its exit code while Python ends."""
    _ignore_signals()  # after main(), which has handlers of its own
    while os.open(os.devnull, os.O_RDWR) < 2:
        pass  # a stream is closed: no file of ours is to be taken for it
    return main()


def _ignore_signals() -> None:
    import signal
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(_program())
