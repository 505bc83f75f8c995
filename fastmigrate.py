"""Upgrade a SQLite database to the schema that your code expects.

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

Each script runs exactly once, in the order of the numbers. After any
return, error, kill or power cut, the database is at exactly one version:
it has all of the scripts up to that number, and nothing of the next.

This file is all there is: copy it into your application, or install it
with pip. It needs Python 3.9 and SQLite 3.26, or newer, and nothing else.
`python -m fastmigrate --help` lists what else it does.

The calls have these arguments and exceptions in common:

    db_path         the database file; a path is a string or an os.PathLike
    migrations_dir  the directory that holds the migration scripts
    to              the last version to apply; None for the latest
    connect         called as connect(path) for every connection: for a
                    database that needs an extension, a collation or a key

    FileNotFoundError  there is no such database or directory; this is
                       always a MigrationError too
    UnversionedError   the database has no version; a MigrationError
    ValueError         two scripts have one number, or a name is not UTF-8
    MigrationError     anything else that prevents the call. Unless a
                       migration had already run, nothing was changed.

How it works:

    Batch. Pending SQL scripts share one transaction, which also sets the
    version (the one row of the table _meta).
    Replay. If a script fails, the batch is rolled back, and the scripts
    before the failed one run again without it. If a script has to run in
    another way, the batch starts again with a new _Plan for this script.
    Working copy. A script that cannot run inside a transaction (.py, .sh,
    VACUUM) runs on a copy of the database. The runner holds the write lock
    of the database from before the copy is made until the swap is done.
    Swap. SQLite's backup API writes the copy, with the new version in it,
    over the database in one transaction. Until this transaction commits,
    the database is untouched, so a failure leaves nothing to undo.
    History. The table _migration_history holds the name and checksum of
    each applied script. Comparing it with the directory shows which scripts
    are edited, late, missing or in conflict.

The code comes in this order: public calls, the run, SQL scripts, working
copies, references, script files, history, the database file, processes,
schemas, messages, the command line.
"""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import sys
import time

TYPE_CHECKING = False  # as in typing, which takes long to import
if TYPE_CHECKING:
    import argparse
    import subprocess
    import tempfile
    from collections import Counter
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path, PurePath
    from types import FrameType
    from typing import IO, Any, NoReturn, Union

    StrPath = Union[str, "os.PathLike[str]"]
    Connect = Callable[[str], sqlite3.Connection]
    ForeignKey = tuple[str, str, tuple[str, ...], Union[tuple[str, ...], None]]
    KeysThatDangle = dict[tuple[str, ...], tuple[ForeignKey, "Counter[Any]"]]
    Row = tuple[str, str, str]  # of the history: name, checksum, when it was applied
    Reader = Callable[[sqlite3.Connection, int], Any]  # of a database at a version
    Tokens = list[tuple[str, str, int]]  # (kind, text, start)
    Schema = dict[tuple[str, ...], tuple[str, str, str]]  # (type, name, SQL) by meaning

__version__ = "1.0.0"
__all__ = [
    "MigrationError", "UnversionedError", "arun_migrations", "build_db",
    "create_database_backup", "create_db", "create_db_backup", "enroll_db", "ensure_meta_table",
    "ensure_versioned_db", "extract_version_from_filename", "get_db_schema", "get_db_version",
    "get_migration_scripts", "get_schema", "main", "migrate", "new_migration", "recreate_table",
    "rehearse", "restore_db", "run_migrations", "set_db_version", "setup_logging", "squash",
    "status", "verify",
]

# Applications written for the fastmigrate package import from `fastmigrate.core`. Registering
# this module as its own submodule `core` makes that work, under any name it was copied to.
core = sys.modules[__name__ + ".core"] = sys.modules[__name__]

MAX_VERSION = 9999
BLOCK = 256 * 1024  # bytes of a script that are read, and run, at a time
POLL_SECONDS = 0.05  # between two tries to get a lock that somebody else holds
BACKUP_PAGES = 8192  # in one step of a backup; Ctrl-C gets through between two steps
TICK_INSTRUCTIONS = 100_000  # of SQLite's bytecode between two calls of tick(), for Ctrl-C
SQLITE_BUSY, SQLITE_LOCKED, SQLITE_CONSTRAINT = 5, 6, 19  # in sqlite3 from Python 3.11 on
WEAK_JOURNALS = ("off", "memory")  # with which SQLite cannot undo a transaction after a crash
# PRAGMAs that change the whole process, the application included.
PROCESS_PRAGMAS = ("hard_heap_limit", "soft_heap_limit", "temp_store_directory")
WORKING_COPY = r"-copy-(?:\d{4}|backup|restore)-\d+-[0-9a-f]{6}(?:-journal|-wal|-shm)?"

CREATE_META = (
    "CREATE TABLE main._meta (id INTEGER PRIMARY KEY CHECK (id = 1), "
    "version INTEGER NOT NULL DEFAULT 0)")
INSERT_META = "INSERT OR REPLACE INTO main._meta (id, version) VALUES (1, ?)"
HAS_HISTORY = "SELECT 1 FROM main.sqlite_master WHERE name = '_migration_history'"

EXTENSIONS = (".sql", ".py", ".sh")


# ------------------------------------------------------------------ the public calls


class MigrationError(sqlite3.Error):
    """A refusal or a failure. Its text tells a person what to do next.

    If a script failed, `path` is its path, a string, and `line`, from 1, is
    where the failing `statement` begins. `version` is where the database
    stands now. Each is None if it does not apply.
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


class _MissingError(MigrationError, FileNotFoundError):
    """A database, a directory or a file does not exist."""


class _TwinsError(MigrationError, ValueError):
    """Several scripts have one number."""


class _EmptyError(UnversionedError):
    """The file has 0 bytes, or no table at all: it is no database yet."""


def ensure_versioned_db(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> int:
    """Create the database at version 0 if there is none; return its version.

    Parent folders are created too. If many processes call this at once, one
    creates the database, and the others wait for it. A database that exists
    stays as it was, byte for byte.
    """
    database = _Database(db_path, connect=connect)
    if database.is_missing() and database.create():
        return 0
    return database.read()[0]


create_db = ensure_versioned_db


def run_migrations(db_path: StrPath, migrations_dir: StrPath, verbose: bool = False,
                   **options: Any) -> bool:
    """Call migrate() with the same options. Return True, or False with the
    reason logged as an error."""
    try:
        _migrate(db_path, migrations_dir, verbose=verbose, **options)
    except MigrationError as error:
        _log("error", str(error))
        return False
    return True


async def arun_migrations(db_path: StrPath, migrations_dir: StrPath, verbose: bool = False,
                          **options: Any) -> bool:
    """Call run_migrations() in a thread, for asyncio."""
    import asyncio
    return await asyncio.to_thread(run_migrations, db_path, migrations_dir, verbose, **options)


def migrate(db_path: StrPath, migrations_dir: StrPath, *, to: int | None = None,
            backup: bool = False, timeout: float = 30.0,
            connect: Connect = sqlite3.connect, verbose: bool = False) -> list[Path]:
    """Apply the pending scripts in order, each exactly once; return their paths.

    When this returns or raises, or the process dies, the database is at
    exactly one version. With nothing pending, nothing is written or locked.

    Args:
        backup: make a backup first, if anything is pending.
        timeout: seconds to wait for another process that uses the database.
        verbose: print what the command line prints, with the output of
            scripts.

    Raises: MigrationError also if a script fails: see its attributes.
    """
    applied_scripts = _migrate(db_path, migrations_dir, to, backup, timeout, connect, verbose)
    if not applied_scripts:
        return []
    from pathlib import Path  # which takes long to import: run_migrations() does without
    return [Path(applied.script.path) for applied in applied_scripts]


def _migrate(db_path: StrPath, migrations_dir: StrPath, to: int | None = None,
             backup: bool = False, timeout: float = 30.0, connect: Connect = sqlite3.connect,
             verbose: bool = False) -> list[_Applied]:
    database = _Database(db_path, timeout, connect, _Report(verbose, verbose))
    return _Run(database, migrations_dir, to, backup).run()


def get_db_version(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> int:
    """Return the version. Nothing is written, and no writer waits."""
    return _Database(db_path, connect=connect).read()[0]


def set_db_version(db_path: StrPath, version: int, *, connect: Connect = sqlite3.connect) -> None:
    """Set the version by hand, from 0 to 9999, and run no script. All scripts
    up to it count as applied.

    This puts an unversioned database under management: it gets the table
    `_meta`.
    """
    _check_version(version)
    _Database(db_path, connect=connect).set_version(version)


def _check_version(version: object) -> None:
    """Raise MigrationError if this is no number that a version can have."""
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= MAX_VERSION:
        raise MigrationError(f"{version!r} is not a version. Nothing was changed. Give a number "
                             f"from 0 to {MAX_VERSION}.")


def ensure_meta_table(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> None:
    """Put an unversioned database under management at version 0. A
    versioned one stays as it is."""
    database = _Database(db_path, connect=connect)
    try:
        database.read()
    except UnversionedError:
        database.set_version(0, only_unversioned=True)  # another process may have been faster


# Applications import these two from the `core` of the fastmigrate package.
_ensure_meta_table = ensure_meta_table
_set_db_version = set_db_version


def create_db_backup(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> Path | None:
    """Copy the database to NAME.YYYYMMDD_HHMMSS.backup beside it. Return the
    path of the copy, or None with the reason logged as an error.

    The copy is one consistent state, even if others write to the database
    meanwhile. It is readable by no more users than the database. An
    existing file is never overwritten: if the name for this second is
    taken, the copy is named for the next free second.
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
    """Replace the contents of the database with those of a backup. Others
    may have the database open.

    The backup must be a sound database with a version. The old contents are
    kept beside the database, in a file named *.before-restore.

    Raises: FileNotFoundError if there is no such backup.
    """
    _restore(_Database(db_path, connect=connect), os.fsdecode(backup_path))


def build_db(migrations_dir: StrPath, path: StrPath | None = None, *, to: int | None = None,
             connect: Connect = sqlite3.connect) -> sqlite3.Connection:
    """Return a connection to a new database at the latest version, for a
    test: in memory, or in a new file at `path`.

    Raises: MigrationError also if there is a database at `path`.
    """
    if path is None:
        with _MemoryDatabase(connect) as memory:
            memory.replay(migrations_dir, to)
            connection = connect(":memory:")  # with the caller's settings, not with ours
            _copy_pages(memory.connection, connection)
            return connection
    database = _BuiltFile(path, connect=connect)
    if not database.is_missing() or not database.create():
        raise MigrationError(f"{database.name} already exists. Nothing was changed. Give the "
                             "path of a new file.")
    try:
        _replay(database, migrations_dir, to)
    except BaseException:
        _remove_database(database.path)
        raise
    return connect(database.path)


def status(db_path: StrPath, migrations_dir: StrPath, *,
           connect: Connect = sqlite3.connect) -> dict[str, Any]:
    """Return where a database stands. Nothing is written.

    Returns: {"db": path, "version", "latest": that of the last script,
        "migrations": [{"version", "name", "state", "applied_at"}],
        "problems": [text], "warnings": [text], "blocked": True if a problem
        keeps pending scripts from being run}. A state is applied, pending,
        edited, late, missing or conflict. The time is UTC, in ISO 8601, or
        None. --check fails if there are problems or pending scripts.
    """
    return _status(_Database(db_path, connect=connect), os.fsdecode(migrations_dir))


def verify(db_path: StrPath, migrations_dir: StrPath, *, connect: Connect = sqlite3.connect) -> str:
    """Return how the schema of a database differs from that of its scripts:
    a unified diff, "" if it does not.

    The scripts up to the version of the database are run on a scratch
    database. What .py and .sh scripts do outside of it really happens.
    """
    return _verify(_Database(db_path, connect=connect), os.fsdecode(migrations_dir))


def rehearse(db_path: StrPath, migrations_dir: StrPath, *, to: int | None = None,
             examples: int = 0, connect: Connect = sqlite3.connect) -> dict[str, Any]:
    """Run the pending scripts on a copy. The database stays untouched.

    What .py and .sh scripts do outside of the copy really happens.

    Args:
        examples: how many changed values to return for each column. They
            may be personal.

    Returns: a dict with these keys:
        "migrations": [{"version", "name", "seconds"}] of the scripts
        "diff": a unified diff of the schema
        "rows": {table: [before, after]} if the number of rows changes
        "lost": {table: {column: number of values}} of dropped columns
        "changed": the same, of values that change in kept columns
        "filled": the same, of new columns, counting only the old rows
        "examples": {table: {column: [[key, before, after]]}}
        "sequences": {table: [before, after]} if AUTOINCREMENT goes back
        "broken": [text], one for each object that no longer works
    """
    return _rehearse(_Database(db_path, connect=connect), os.fsdecode(migrations_dir), to,
                     examples)


def enroll_db(db_path: StrPath, migrations_dir: StrPath, *,
              connect: Connect = sqlite3.connect) -> int:
    """Put an unversioned database under management; return its version.

    The database gets the highest version at which the scripts build its
    schema. If there are no scripts, 0001-initialize.sql is written from the
    schema, after a proof that it builds the same one; the version is 1.

    Raises: MigrationError also if the database has a version already, or if
        no version has its schema: the text shows the nearest as a diff.
    """
    return _enroll(_Database(db_path, connect=connect), os.fsdecode(migrations_dir))


def squash(migrations_dir: StrPath, to: int, *, connect: Connect = sqlite3.connect) -> Path:
    """Replace the scripts up to number `to` by one that builds the same
    schema and rows. Return its path, NNNN-squashed.sql.

    The new script is proved first: run on an empty database, it must give
    the same schema, rows, rowids and sequences. The old scripts then move
    into the folder before-NNNN. The new script runs on new databases only.
    A database at or above this version counts it as applied. A database
    below is refused until the old scripts have migrated it.
    """
    from pathlib import Path
    _check_version(to)
    return Path(_squash(os.fsdecode(migrations_dir), to, connect, _Report()))


def new_migration(migrations_dir: StrPath, description: str, *, schema: StrPath | None = None,
                  rename: Mapping[str, str] = {}, drop: Iterable[str] = (),  # noqa: B006
                  fill: Mapping[str, str] = {},  # noqa: B006
                  connect: Connect = sqlite3.connect) -> Path:
    """Create the next script, named by the description; return its path.

    A description that ends in .py or .sh makes such a script. The directory
    is created too. With `schema`, a file of CREATE statements, the script
    leads from the schema of the scripts to that of the file. Review it, and
    run it like any other. What it drops or rebuilds is logged as a warning.

    Args:
        schema: path of the file; get_schema() gives its first text. It is
            not used for a script in Python or shell.
        rename: new names, by those of today: {"users.name": "full_name",
            "posts": "articles"}.
        drop: tables and columns whose data is no longer needed:
            ["users.fax", "old"].
        fill: values, as SQL expressions over the row of today, for columns
            that are new or become NOT NULL: {"users.n": "length(name)"}. In
            an existing column, the value replaces each NULL; if the
            expression names the column itself, it replaces every value. The
            expression has to use the new names of what is renamed.

    Raises: ValueError also if there are no words, or 9999 is taken;
        FileNotFoundError if there is no such schema file; MigrationError
        with the questions that `rename`, `drop` or `fill` must answer, or
        if the scripts already lead to this schema.
    """
    from pathlib import Path
    if schema is None and (rename or drop or fill):
        raise MigrationError("rename, drop and fill need a schema file. Nothing was written.")
    answers = {"rename": dict(rename), "drop": list(drop),
               "fill": {name: str(value) for name, value in fill.items()}}
    return Path(_write_next_script(migrations_dir, description, schema, answers, connect,
                                   _Report()))


def _write_next_script(migrations_dir: StrPath, description: str, schema: StrPath | None,
                       answers: dict[str, Any], connect: Connect, report: _Report,
                       may_be_empty: bool = False) -> str:
    """Create the next script, with the statements that lead to a schema file if that is given;
    return its path."""
    text, notes = "", list[str]()
    if schema is not None and os.path.splitext(description)[1] not in EXTENSIONS[1:]:
        text, notes = _compare_with_scripts(migrations_dir, schema, connect, report, **answers)
        same = f"the scripts already lead to the schema of {os.fsdecode(schema)}"
        if not text and not may_be_empty:
            raise MigrationError(f"{same}. Nothing was written. For a script that changes data, "
                                 "leave out the schema.")
        if not text:
            report.warn(f"{same}: the new script is empty")
    path = _create_script(os.fsdecode(migrations_dir), description, text, notes)
    for note in notes:
        report.warn(f"{os.path.basename(path)} {' '.join(note.split())}")
    return path


def get_schema(migrations_dir: StrPath, *, to: int | None = None,
               connect: Connect = sqlite3.connect) -> str:
    """Return the schema that the scripts up to a version lead to, as SQL
    that builds it.

    The scripts are run on a scratch database. The tables come by name, each
    with its indexes and triggers, then the views by name, each with its
    triggers.
    """
    return _schema_of_scripts(migrations_dir, to, connect, _Report())


def get_db_schema(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> str:
    """Return the schema of a database, versioned or not, like get_schema().
    The tables of migration tools, this one included, are left out."""
    database = _Database(db_path, connect=connect)
    database.must_exist()

    def read() -> str:
        with _closing(database.open()) as connection:
            connection.execute("BEGIN")
            return _schema_text(_read_schema(connection))

    with database.explained():
        return str(database.retry_while_locked(read))


def get_migration_scripts(migrations_dir: StrPath) -> dict[int, Path]:
    """Return the paths of the scripts in a directory by version, in order."""
    from pathlib import Path
    names = _scripts(migrations_dir)
    return {version: Path(migrations_dir, name) for version, name in sorted(names.items())}


def extract_version_from_filename(filename: str) -> int | None:
    """Return the version in the file name of a script, None if it is not
    named like one."""
    import re
    found = re.fullmatch(r"([0-9]{4})-.*\.(sql|py|sh)", str(filename), re.S)
    return int(found[1]) or None if found else None


def recreate_table(db_path: StrPath, table_name: str, new_column_defs: str, *,
                   connect: Connect = sqlite3.connect) -> None:
    """Rebuild a table with other column definitions.

    Rows, rowids, AUTOINCREMENT sequence, indexes and triggers are kept, and
    so are STRICT and WITHOUT ROWID. Views, triggers and foreign keys that
    refer to the table go on doing so.

    Args:
        new_column_defs: the definitions of columns and table constraints,
            separated by commas. All present columns must be among them.

    Raises: MigrationError also if a reference would dangle.
    """
    database = _Database(db_path, connect=connect)
    database.must_exist()
    with database.explained(), database.writing() as connection:
        before = _read_dangling(connection, _parents(connection))
        statements = _recreate(connection, table_name, new_column_defs,
                               lambda: database.open(":memory:"))
        try:
            for statement in statements:
                connection.execute(statement).fetchall()
        except connection.IntegrityError as error:
            raise MigrationError(
                f"the rows of {table_name} in {database.name} do not fit the new definition: "
                f"{error} ({table_name}_new is the new table). Nothing was changed. Change the "
                "rows first, or the definition.") from error
        found = _compare_dangling(before, _read_dangling(connection, _parents(connection)))
        if any(dangling.new for dangling in found):
            what, _ = _explain_dangling(connection, found, "--")
            raise MigrationError(f"{what}. Nothing was changed.")
        database.commit(connection)


def setup_logging(verbose: bool = False) -> None:
    """Let logging print warnings and errors to stderr; with `verbose`, debug
    messages of all modules too."""
    import logging
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING,
                        format="%(levelname)s: %(message)s")


# ------------------------------------------------------------------ the run


class _Moved(Exception):
    """Another process has migrated the database in the meantime: it is at `version` now."""

    def __init__(self, version: int) -> None:
        self.version = version


class _Retry(Exception):
    """Roll back to the last commit and start again: some scripts have to be run in another
    way. `plans` holds new plans by version; those of other scripts stay as they are."""

    def __init__(self, plans: dict[int, _Plan]) -> None:
        self.plans = plans


class _Plan:
    """How a script is to be run. Each script starts with the cheapest way for its kind; a
    try that shows that another way is needed raises _Retry with the next plan."""

    def __init__(self, on_copy: bool = False, own_transaction: bool = False,
                 statements_from: int = sys.maxsize) -> None:
        self.on_copy = on_copy  # on a working copy; else in the batch
        self.own_transaction = own_transaction  # commit before it and after it
        self.statements_from = statements_from  # from this line on, one statement at a time

    def but(self, **changes: Any) -> _Plan:
        """Return this plan with some changes."""
        return _Plan(**{**vars(self), **changes})


class _Applied:
    """A script that was applied, as the history and the report need it."""

    def __init__(self, script: _Script, checksum: str, seconds: float = 0, note: str = "",
                 changes: _Changes | None = None) -> None:
        self.script = script
        self.checksum = checksum
        self.seconds = seconds
        self.note = note  # for the report
        self.changes = changes  # None: not known


class _Run:
    """One run of the pending scripts of a directory on a database: what it is to do, how,
    and what it has done so far."""

    def __init__(self, database: _Database, migrations_dir: StrPath, to: int | None = None,
                 backup: bool = False, listing: _Listing | None = None) -> None:
        self.database = database
        self.folder = os.fsdecode(migrations_dir)
        if to is not None:
            _check_version(to)
        self.to = sys.maxsize if to is None else to
        self.version = 0  # where the database stands
        self.applied: list[_Applied] = []
        self.never_run: list[str] = []  # scripts that need other numbers, for the command line
        self.broken: list[str] = []  # what no longer works after the run, as messages
        self.objects_before: list[Any] | None = None  # the schema when the run began
        self.measures = False  # count the dangling references before each script
        self.listing: _Listing  # of the directory, from run() on
        self._shared_listing = listing  # that listing, if this is one of several databases
        self._backup_wanted = backup
        self._head_modes: dict[int, _HeadJournalMode] = {}  # by version
        self._plans: dict[int, _Plan] = {}  # by version; each retry adds some, and none is lost
        self._describe_work: Callable[[], str] = str  # for the progress

    def run(self) -> list[_Applied]:
        """Apply what is pending and return it.

        Raises: MigrationError.
        """
        database, report = self.database, self.database.report
        with database.explained(changes=True):
            self.listing = listing = self._shared_listing or _scan_for(database, self.folder)
            if not self._inspect(listing):
                is_clean = self.version <= listing.latest and not self.never_run
                report.result(f"{database.name} is {'up to date ' * is_clean}at version "
                              f"{self.version}{self._missed()}")
                return []
            scripts = [_Script(self.folder, version, name)
                       for version, name in sorted(listing.names.items()) if version <= self.to]
            try:
                self._apply(scripts)
            except MigrationError:
                self._warn_of_broken()  # of the scripts before the failed one
                raise
            self._warn_of_broken()
            report.result(f"{database.name} is at version {self.version}, "
                          f"{_plural(len(self.applied), 'migration')} applied{self._missed()}")
            return self.applied

    def _missed(self) -> str:
        """Return what the last line of a run adds if scripts never ran on this database."""
        number = len(self.never_run)
        return f"; {_plural(number, 'script')} never ran: see the warning" if number else ""

    def _inspect(self, listing: _Listing) -> bool:
        """Read the version, and return True if a script is pending. Warn about edited, late,
        missing and conflicting scripts, and note those that never ran.

        Raises: MigrationError if nothing may run: the database is beyond `to`, a script was
            renumbered after it ran, two scripts have one number, or the squashed script cannot
            bring this database to its version.
        """
        database = self.database

        def read(connection: sqlite3.Connection, version: int) -> tuple[bool, list[_State], str]:
            pending = listing.latest > version and any(
                version < number <= self.to for number in listing.names)
            states = _read_states(connection, version, listing, database.name,
                                  thorough=pending or bool(listing.twins))
            return pending, states, _squash_refusal(connection, version, self.to, listing,
                                                    database.name)

        found: tuple[bool, list[_State], str]
        self.version, found = database.read(read)
        pending, states, refusal = found
        if self.to < self.version:
            raise MigrationError(
                f"{database.name} is at version {self.version}, beyond {self.to}. Nothing was "
                "changed. There are no down migrations: restore a backup, with restore_db() or "
                "--restore.", version=self.version)
        refusals, warnings = [refusal] if refusal else [], []
        if states or listing.ignored or self.version > listing.latest:
            several = bool(self._shared_listing)
            findings = _Findings(states, listing, self.version, database, several,
                                 of_directory=not several, to=self.to)
            self.never_run, warnings = findings.never_run, findings.warnings
            refusals = findings.refusals or refusals
        if refusals:
            raise MigrationError("\n".join(refusals), version=self.version)
        for problem in warnings:
            database.report.warn(problem)
        return pending

    def _apply(self, scripts: list[_Script]) -> None:
        """The whole story: set the journal mode that the next script begins with; run what comes
        next, together with its version; commit; go on.

        Each turn takes the write lock and reads the version again, because another process
        may have been faster. A script that fails is remembered until those before it, whose
        transaction it has shared, are applied again without it.

        The loop ends because each turn commits a script, or sees that another process has, or
        gives a script a new plan, of which there are few, or turns the measuring on, or
        leaves fewer scripts before the one that failed.
        """
        failure: _ScriptFailed | None = None
        while True:
            failed = failure.script.version if failure else MAX_VERSION + 1
            pending = [script for script in scripts if self.version < script.version < failed]
            if not pending:
                break
            run_next = _run_on_copy if self.plan(pending[0]).on_copy else _run_batch
            try:
                # Only the first script sets the mode: a batch ends before one with such PRAGMAs.
                with self._head_mode(pending[0]):
                    self._note(run_next(self, pending))
            except _Moved as moved:
                self.version = moved.version
                # The other process may have run scripts that were squashed here. The squashed
                # script must not run on top of them.
                if 0 < self.version < self.listing.squashed_version:
                    self.version, refusal = self.database.read(
                        lambda connection, version: _squash_refusal(
                            connection, version, self.to, self.listing, self.database.name))
                    if refusal:
                        raise MigrationError(refusal, version=self.version) from None
                if failure and self.version >= failure.script.version:
                    failure = None  # the other process has applied it
            except _LockedError as error:
                if not self.applied:
                    raise
                raise _LockedError(error.who, self.database.standing()) from None
            except _Unmeasured:
                self.measures = True
            except _Retry as retry:
                self._plans.update(retry.plans)
            except _ScriptFailed as error:
                failure = error
                if self.plan(error.script).on_copy:
                    break  # it ran alone: those before it are committed already
            finally:
                self.database.report.end_progress()
        if failure:
            raise _explain_failure(failure, self.database)

    def _head_mode(self, script: _Script) -> _HeadJournalMode:
        """Return the journal mode that a script begins with: one object for all tries to run it,
        because the first of them may change a mode that only the last one can restore."""
        if script.version not in self._head_modes:
            self._head_modes[script.version] = _HeadJournalMode(self, script)
        return self._head_modes[script.version]

    def plan(self, script: _Script) -> _Plan:
        """Return how a script is to be run."""
        return self._plans.get(script.version) or _Plan(on_copy=not script.is_sql)

    def check_version(self, connection: sqlite3.Connection) -> None:
        """Check that the database is where this run left it. Unless the write lock is held, that
        may change at any time.

        Raises: _Moved.
        """
        version = _read_version(connection, self.database.name)
        if version != self.version:
            raise _Moved(version)

    def prepare_once(self, connection: sqlite3.Connection) -> None:
        """Note the schema, and make the backup that was asked for. Call this with the write lock
        held and a script left to run: of many processes that start at once, those that find
        nothing left to run then make no backup."""
        if self.objects_before is None:
            self.objects_before = _select_objects(connection)
        if self._backup_wanted:
            self.database.report.result(f"Backup: {self.database.back_up()}")
            self._backup_wanted = False

    def show_progress_of(self, describe: Callable[[], str]) -> None:
        """From now on, `describe` says what is being done."""
        self._describe_work = describe

    def tick(self) -> None:
        """Called now and then while SQLite or a script works: lets signals through, and shows
        progress."""
        self.database.report.check_stop()
        self.database.report.progress(self._describe_work)

    def _note(self, done: list[_Applied]) -> None:
        """Report scripts that were committed, and note the version that they lead to."""
        report = self.database.report
        for applied in done:
            report.result(f"Applied {applied.script.name}{report.target} "
                          f"({_seconds(applied.seconds)}{applied.note})")
        self.applied += done
        self.version = done[-1].script.version

    def record(self, connection: sqlite3.Connection, done: list[_Applied]) -> None:
        """Write scripts into the history, in the transaction that applies them. A new history
        also gets what was broken before this run: --check must not blame the scripts for it."""
        if connection.execute(HAS_HISTORY).fetchall():
            broken: Iterable[str] = ()
        else:
            broken = _broken_in(self.objects_before or [])
        _record(connection, self.version, done, self.listing, broken)

    def _warn_of_broken(self) -> None:
        """Warn about triggers, views and foreign keys that the run broke. That is known only at
        its end, because a later script may have fixed what an earlier one broke."""
        ran = [(applied.script.name, applied.changes) for applied in self.applied
               if applied.changes is None or applied.changes.can_break]
        if not ran:
            return
        try:
            found = self.database.read(lambda connection, version: _newly_broken(
                connection, self.objects_before or []), unenforced=True)[1]
        except (sqlite3.Error, OSError) as error:  # the scripts are committed: only warn
            reason = _reason(error.__cause__ or error, self.database.name, self.database.errors)
            self.database.report.warn("what the run may have broken could not be checked: "
                                      + reason)
            return
        for name, (reason, sql) in found.items():
            self.broken.append(_describe_broken(
                name, reason, f"after {_blame(name, reason, sql, ran)}"))
            self.database.report.warn(self.broken[-1])


# ------------------------------------------------------------------ SQL scripts


UPDATE_META = "UPDATE main._meta SET version = ? WHERE id = 1"
SQLITE_SAVEPOINT = 32
BATCH_SECONDS = 0.5  # after so long a transaction takes no further script


def _run_batch(run: _Run, pending: list[_Script]) -> list[_Applied]:
    """Run SQL scripts in one transaction for BATCH_SECONDS, and commit it. Return the scripts
    that were committed, which is at least one. (A commit for each of 1,000 small scripts
    takes twenty times as long.)

    Raises:
        _ScriptFailed: a script failed. The batch was rolled back; the caller runs the scripts
            before this one again, without it.
        _Retry: a script has to be run in another way. The batch was rolled back.
        _Unmeasured: references dangle. The batch was rolled back; the caller runs it again and
            measures them before each script.
        _Moved: another process was faster. No script was run.
        _LockedError: somebody held the database for too long.
    """
    with run.database.writing() as connection:
        run.check_version(connection)
        run.prepare_once(connection)
        return _Batch(run, connection).run(pending)


class _Batch:
    """SQL scripts that share one transaction."""

    def __init__(self, run: _Run, connection: sqlite3.Connection) -> None:
        self._run = run
        self._database = run.database
        self._connection = connection
        self._authorizer = _Authorizer()
        self._references = _References(connection, run.measures)
        self._done: list[_Applied] = []
        connection.set_authorizer(_as_authorizer(self._authorizer.callback()))
        connection.set_progress_handler(_as_progress_handler(run.tick), TICK_INSTRUCTIONS)

    def run(self, pending: list[_Script]) -> list[_Applied]:
        """Run scripts until the time is up or one needs a transaction of its own; commit."""
        began, script = time.monotonic(), pending[0]
        try:
            for script in pending:
                plan = self._run.plan(script)
                if self._done and (plan.on_copy or plan.own_transaction
                                   or time.monotonic() - began > BATCH_SECONDS):
                    break
                reading = _Reading(script)
                blocks = reading.blocks()
                header = _read_header(script, next(blocks, (1, ""))[1])
                if self._done and (header.no_transaction or header.pragmas):
                    break  # it needs a transaction of its own: the next batch begins with it
                if header.no_transaction:
                    raise _Retry({script.version: plan.but(on_copy=True)})
                effects = self._run_script(script, plan, reading, header, blocks)
                if effects.stateful or header.pragmas or plan.own_transaction:
                    break  # the next script gets a fresh connection
        except BaseException as error:
            self._roll_back()
            raise _to_failure(self._database, script, error) from None
        try:
            self._commit()
        except BaseException as error:
            self._roll_back()
            raise self._explain_commit(error) from None
        return self._done

    def _run_script(self, script: _Script, plan: _Plan, reading: _Reading, header: _Header,
                    blocks: Iterator[tuple[int, str]]) -> _Effects:
        """Run one script in the open transaction, and set its version."""
        connection, since = self._connection, time.perf_counter()
        self._run.show_progress_of(reading.progress)
        if header.pragmas:
            self._run_head(script, header)
        self._references.start()
        enforced = bool(header.pragmas) and connection.execute(  # off without such a PRAGMA
            "PRAGMA foreign_keys").fetchall() == [(1,)]
        effects = self._authorizer.begin_script(enforced)
        # The first block was taken from `blocks` to read the header; header.rest is its remainder.
        self._run_blocks(script, plan, effects, header.rest, blocks)
        self._authorizer.end_script()
        if effects.savepoints:
            raise _ScriptFailed(
                script, f"it leaves the savepoint {effects.savepoints[-1]} open",
                remedy="End it with RELEASE")
        _check_references(connection, self._database.report, script, header,
                          self._references.dangling(effects.changes))
        _set_version(connection, script.version)
        is_blank = not header.pragmas and _skip_blank(header.rest, 0) == len(header.rest)
        self._done.append(_Applied(script, reading.checksum, time.perf_counter() - since,
                                   ", no statement in it" if is_blank else "", effects.changes))
        return effects

    def _run_head(self, script: _Script, header: _Header) -> None:
        """Leave the transaction for the PRAGMAs that work only outside of one. Nothing is lost:
        a script that begins with such PRAGMAs is the first of its batch."""
        connection = self._connection
        connection.execute("ROLLBACK")
        for line, statement in header.pragmas:
            # The journal mode is set already, by _HeadJournalMode; and without syncs, a power
            # cut could damage the database.
            if _parse_pragma(statement)[0] not in ("journal_mode", "synchronous"):
                _execute(self._database, connection, script, line, statement)
        self._database.begin(connection)
        self._run.check_version(connection)

    def _run_blocks(self, script: _Script, plan: _Plan, effects: _Effects, text: str,
                    blocks: Iterator[tuple[int, str]]) -> None:
        """Run a script block by block. A block that fails is run again one statement at a
        time, because SQLite does not say which of its statements failed."""
        connection, line, undo = self._connection, 1, _UndoSection(script)
        while line:
            undo.check(text, line)
            singly = line >= plan.statements_from
            for number, piece in _statements(text, line) if singly else ((line, text),):
                effects.expect_commit()
                try:
                    connection.executescript(piece)
                except self._database.errors as error:
                    if effects.needs_autocommit or _needs_autocommit(str(error)):
                        raise _Retry({script.version: plan.but(on_copy=True)}) from None
                    failure = _to_failure(self._database, script, error, number, piece,
                                          effects.denied)
                    if singly or not isinstance(failure, _ScriptFailed):
                        raise failure from None
                    raise _Retry({script.version: plan.but(statements_from=line)}) from None
                if not connection.in_transaction:
                    raise _Retry({script.version: plan.but(on_copy=True)})
            self._run.tick()
            line, text = next(blocks, (0, ""))

    def _commit(self) -> None:
        """Write the history, check that the version has stayed what was set, and commit."""
        connection, last = self._connection, self._done[-1].script
        self._run.record(connection, self._done)
        version = _read_version(connection, self._database.name)
        if not connection.execute(HAS_META).fetchall():
            raise MigrationError("_meta is gone from sqlite_master")
        if version != last.version:
            raise MigrationError(f"_meta says {version}, where {last.version} was written. A "
                                 "trigger on _meta must not change that")
        self._database.commit(connection)

    def _explain_commit(self, error: BaseException) -> BaseException:
        """Return the exception for a commit that failed. A batch of several scripts gets a
        _Retry that commits each script separately, to find the one at fault."""
        script = self._done[-1].script
        failure = _to_failure(self._database, script, error)
        if isinstance(error, MigrationError) and not isinstance(error, _LockedError):
            failure = _ScriptFailed(script, f"it has spoilt the version: {error}")
        if len(self._done) > 1 and isinstance(failure, _ScriptFailed):
            return _Retry({done.script.version: self._run.plan(done.script).but(
                own_transaction=True) for done in self._done})
        return failure

    def _roll_back(self) -> None:
        """Roll back. An error here must not hide the one that made it necessary; only an
        interrupt goes before it."""
        connection = self._connection
        connection.set_authorizer(lambda *details: sqlite3.SQLITE_OK)  # None fails before 3.11
        connection.set_progress_handler(None, 0)  # a second signal must not disturb this
        try:
            if connection.in_transaction:  # else SQLite has rolled back already
                connection.execute("ROLLBACK")
        except self._database.errors as error:  # closing the connection rolls back
            if _is_interrupt(error):
                raise KeyboardInterrupt from None


class _HeadJournalMode:
    """Give the database the journal mode that an SQL script begins with, before the script
    runs. ROLLBACK does not undo this change, so __exit__ undoes it if the script fails or has to
    be run again in another way, as far as no other connection stands in the way."""

    def __init__(self, run: _Run, script: _Script) -> None:
        self._run = run
        self._wanted = "" if isinstance(run.database, _MemoryDatabase) else (
            _head_journal_mode(script))
        self._before = ""  # the mode to restore; "" if there is nothing to restore

    def __enter__(self) -> None:
        if self._wanted:
            before = self._set_mode(self._wanted)
            if (before == "wal") != (self._wanted == "wal"):  # only WAL is kept in the file
                self._before = before

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error and self._before and not isinstance(error, _Moved):
            try:
                self._set_mode(self._before, patiently=False)
            except self._run.database.errors + (_Moved,):
                pass  # the error of the script is the one to tell

    def _set_mode(self, mode: str, patiently: bool = True) -> str:
        """Set a journal mode, if the database is where this run left it; return the old mode.

        Each try uses a new connection. A connection that has read a database in WAL mode keeps
        a lock until it is closed, so two processes that start at once would block each other.
        """
        database, wait = self._run.database, _Wait(self._run.database)
        while True:
            try:
                with _closing(database.open()) as connection:
                    self._run.check_version(connection)
                    before = _journal_mode(connection)
                    if before != mode:
                        _journal_mode(connection, mode)
                    return before
            except database.errors as error:
                if not _is_locked(error) or not patiently:
                    raise
            wait.pause()


def _head_journal_mode(script: _Script) -> str:
    """Return the journal mode that an SQL script begins with, "" if it sets none."""
    if not script.is_sql:
        return ""
    header = _read_header(script, next(_Reading(script).blocks(), (1, ""))[1])
    modes = [value for pragma, value in (_parse_pragma(text) for _, text in header.pragmas)
             if pragma == "journal_mode" and value in ("delete", "persist", "truncate", "wal")]
    return modes[-1] if modes else ""


def _set_version(connection: sqlite3.Connection, version: int) -> None:
    """Set the version. What is written is read again before the commit."""
    connection.execute(UPDATE_META, (version,)).fetchall()  # PRAGMA count_changes makes a row


def _needs_autocommit(message: str) -> bool:
    """Return whether SQLite says that a statement does not work inside a transaction."""
    return any(sign in message for sign in (
        "within a transaction", "within transaction", "inside a transaction")) or (
        message.startswith("database ") and message.endswith(" is locked")
        and message != "database is locked")  # DETACH


CREATING = (sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_VTABLE, sqlite3.SQLITE_CREATE_VIEW,
            sqlite3.SQLITE_CREATE_TRIGGER)
DROPPING = (sqlite3.SQLITE_DROP_TABLE, sqlite3.SQLITE_DROP_VTABLE, sqlite3.SQLITE_DROP_VIEW,
            sqlite3.SQLITE_DROP_TRIGGER)


class _Effects:
    """What a script did, as SQLite's authorizer callback saw it.

    authorize() ignores the script's own BEGIN and COMMIT, denies statements that cannot run in
    our transaction, and records what matters afterwards.
    """

    def __init__(self, enforced: bool, known: set[str]) -> None:
        self.needs_autocommit = False  # a statement does not fit in a transaction
        self.denied = ""  # why a statement was denied for another reason
        self.stateful = False  # it changed the connection: settings, ATTACH, temporary tables
        self.changes = _Changes()
        self.savepoints: list[str] = []  # that are open
        self._enforced = enforced  # foreign keys are enforced in this transaction
        self._wants_enforced = enforced  # by the last PRAGMA foreign_keys of the script
        self._in_transaction = False  # between a BEGIN and a COMMIT of the script
        self._expects_commit = False  # the next COMMIT is that of executescript()
        self._known = known  # tables in changes.changed: the callback allows further INSERTs

    def expect_commit(self) -> None:
        """The next COMMIT is not the script's: executescript() begins with one of its own."""
        self._expects_commit = True

    def authorize(self, action: int, first: str | None, second: str | None,
                  schema: str | None) -> int:
        """Return whether SQLite may do what a statement asks for."""
        name, of, changes = _fold(first or ""), _fold(second or ""), self.changes
        if action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE):
            allowed = self._authorize_write(name, schema)
            if first and schema == "main" and allowed == sqlite3.SQLITE_OK:
                self._known.add(first)
            return allowed
        if action == sqlite3.SQLITE_TRANSACTION:
            return self._transaction(name)
        if action == sqlite3.SQLITE_PRAGMA:
            return self._pragma(name, of)
        if action == SQLITE_SAVEPOINT:
            _track_savepoint(self.savepoints, name, of)
        elif action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
            self.stateful = True
        elif action in CREATING:
            changes.made.add(name)
            if action in (sqlite3.SQLITE_CREATE_VIEW, sqlite3.SQLITE_CREATE_TRIGGER):
                changes.note_break()
        elif action in DROPPING:
            changes.dropped.add(name)
            changes.note_break()
        elif action == sqlite3.SQLITE_CREATE_INDEX:
            changes.changed.add(of)
        elif action == sqlite3.SQLITE_DROP_INDEX:
            changes.changed.add(of)
            changes.dropped.add(name)
        elif action == sqlite3.SQLITE_ALTER_TABLE:
            changes.made.add(of)
            changes.changed.add(of)
            changes.note_break()
        elif action == sqlite3.SQLITE_FUNCTION and second == "sqlite_rename_table":
            changes.note_everything()  # RENAME TO rewrites every object that names the table
        return sqlite3.SQLITE_OK

    def _authorize_write(self, table: str, schema: str | None) -> int:
        """Authorize a write to a table. PRAGMA foreign_keys does nothing in our transaction, so
        if the script has set it to another value, the write must not run here."""
        if table.startswith("sqlite_"):
            self.stateful |= table.startswith("sqlite_temp_")
            return sqlite3.SQLITE_OK
        if schema == "main":
            self.changes.changed.add(table)
        if self._wants_enforced == self._enforced:
            return sqlite3.SQLITE_OK
        if self._in_transaction and self._enforced:
            self.denied = (
                "PRAGMA foreign_keys = OFF does nothing after BEGIN: this could delete rows of "
                "other tables with those of its own. Move the PRAGMA before BEGIN.")
        else:
            self.needs_autocommit = True
        return sqlite3.SQLITE_DENY

    def _transaction(self, operation: str) -> int:
        if operation == "rollback":
            self.needs_autocommit = True
            return sqlite3.SQLITE_DENY
        if self._expects_commit:
            self._expects_commit = False
            return sqlite3.SQLITE_IGNORE
        self._in_transaction = operation == "begin"
        if self.savepoints and not self._in_transaction:
            self.needs_autocommit = True  # only a COMMIT that is run releases them
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_IGNORE

    def _pragma(self, name: str, value: str) -> int:
        self.stateful |= bool(value)
        if name == "foreign_keys" and value:
            self._known.clear()
            self._wants_enforced = value in ("on", "yes", "true") or (
                value.isdecimal() and value.strip("0") != "")
        elif name == "writable_schema":
            self.changes.note_everything()
        elif value and (name in ("synchronous", "query_only", "count_changes")
                        or name in PROCESS_PRAGMAS
                        or name == "journal_mode" and value in WEAK_JOURNALS):
            # It would fail, or stop us, or the application; or SQLite could not roll back, because
            # there is no journal on the disk.
            return sqlite3.SQLITE_IGNORE
        elif not self._in_transaction and (  # else it does nothing, or fails, as it should
                name == "wal_checkpoint" or name == "journal_mode" and value):
            self.needs_autocommit = True
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK


class _Authorizer:
    """SQLite's authorizer callback for all scripts of a batch. It passes the statements of a
    script to that script's _Effects, and allows our own statements."""

    def __init__(self) -> None:
        self._effects: _Effects | None = None  # of the script that runs
        self._known: set[str] = set()  # see _Effects

    def callback(self) -> Callable[..., int]:
        """Return the function for set_authorizer(). SQLite calls it for every statement of a
        long script, so it is a plain function, which is much faster than a method, and decides
        the usual cases itself. It can allow all writes to sqlite_master, because SQLite also
        asks about the CREATE, ALTER or DROP that causes them."""
        known, insert, sqlite_ok = self._known, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_OK
        reading = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)

        def authorize(action: int, first: str | None, second: str | None, schema: str | None,
                      source: str | None) -> int:
            if (first in known and action == insert or action in reading
                    or first == "sqlite_master"):
                return sqlite_ok
            if self._effects:
                return self._effects.authorize(action, first, second, schema)
            return sqlite_ok
        return authorize

    def begin_script(self, enforced: bool) -> _Effects:
        """From here on, statements are those of a script; `enforced` tells whether foreign
        keys are. Return what holds the effects of the script."""
        self._known.clear()
        self._effects = _Effects(enforced, self._known)
        return self._effects

    def end_script(self) -> None:
        """From here on, statements are our own."""
        self._effects = None


def _track_savepoint(open_ones: list[str], operation: str, name: str) -> None:
    """Note that a script opened or released a savepoint; a release ends those inside it."""
    if operation == "begin":
        open_ones.append(name)
    elif operation == "release" and name in open_ones:
        while open_ones.pop() != name:
            pass


# ------------------------------------------------------------------ scripts on a working copy


GATE_PAGES, GATE_STEP = 80, 64  # pages in the gate and in a backup step: _replace_in_wal()


class _CopyRejected(Exception):
    """The script has left something that cannot become the database."""

    def __init__(self, what: str, remedy: str = "Fix the script") -> None:
        super().__init__(what)
        self.remedy = remedy


class _StartAgain(Exception):
    """Before the write lock was held, another process changed the journal mode or removed our
    copy as a leftover. Nothing has run yet."""


def _run_on_copy(run: _Run, pending: list[_Script]) -> list[_Applied]:
    """Run the first script on a working copy of the database, and make the copy the database
    in one transaction, which holds the version too.

    Raises:
        _ScriptFailed: it failed. The database has not been touched.
        _Moved: another process was faster. Nothing has run.
        _LockedError: somebody held the database for too long. Nothing has run.
    """
    database, script = run.database, pending[0]
    done: list[_Applied] = []
    modes: list[str] = []  # the journal modes that an SQL script sets
    reading = _Reading(script)
    beginning = next(reading.blocks(), (1, ""))[1] if script.is_sql else reading.read_beginning()
    header = _read_header(script, beginning)
    copy = database.working_copy(f"{script.version:04d}", run.tick)

    def work(reader: sqlite3.Connection) -> int:
        run.check_version(reader)
        copy.remove_leftovers()
        run.prepare_once(reader)
        since = time.perf_counter()
        run.show_progress_of(lambda: f"{script.name}: copying {database.name}")
        copy.fill_from(reader)
        before, output = _fingerprint(copy.path), ""
        if script.is_sql:
            checksum = _run_statements(run, script, copy.path, modes)
        else:
            checksum = reading.read_to_end()
            run.show_progress_of(lambda: f"{script.name} is running")
            output = _run_process(run, script, copy.path)
        unchanged = _fingerprint(copy.path) == before
        _conclude_on_copy(run, script, header, copy.path, checksum)
        if unchanged and "database is locked" in output:
            database.report.warn(f"{script.name} did not change {database.name}, and it printed "
                                 f"\"database is locked\". {_WORKS_ON_COPY.format(database.name)}")
        done.append(_Applied(script, checksum, time.perf_counter() - since,
                             ", the database is unchanged" if unchanged else ""))
        run.show_progress_of(lambda: f"{script.name}: writing {database.name}")
        copy.remove_leftovers()  # the script of a killed runner can have made its copy anew
        return script.version

    try:
        copy.replace_database(work)
    except _CopyRejected as error:
        raise _ScriptFailed(script, str(error), remedy=error.remedy) from None
    except _LockedError as error:
        if not done:
            raise
        raise _ScriptFailed(script, f"its work was discarded, because {error.who}",
                            remedy=error.remedy) from None
    except BaseException as error:
        raise _to_failure(database, script, error) from None
    if modes and modes[-1] != "wal" and _is_in_wal(database):
        database.report.warn(f"{database.name} stays in WAL mode after {script.name}. Leave WAL "
                             "mode at the head of an SQL script")
    return done


_WORKS_ON_COPY = ("A script has to work on the database that is its first argument, which is a "
                  "copy of {}. The database itself is locked until the copy has replaced it.")


def _conclude_on_copy(run: _Run, script: _Script, header: _Header, path: str,
                      checksum: str) -> None:
    """Check what a script made of its copy, and write version and history into it."""
    database = run.database
    if not os.path.isfile(path):  # SQLite would create an empty one
        raise _ScriptFailed(script, "it removed the database that it was given")
    with _closing(database.open(path)) as connection:
        connection.set_progress_handler(_as_progress_handler(run.tick), TICK_INSTRUCTIONS)
        version = _read_version_of_copy(database, script, connection)
        if version not in (run.version, script.version):
            raise _ScriptFailed(script, f"it set the version to {version}; it may only leave it "
                                        f"at {run.version}, or set it to {script.version}")
        tables = _parents(connection)
        if any(_dangles(connection, table) for table in tables):
            before = database.read(lambda original, version: _read_dangling(
                original, _parents(original)))[1]
            _check_references(connection, database.report, script, header, _compare_dangling(
                before, _read_dangling(connection, tables)))
        _set_version(connection, script.version)
        run.record(connection, [_Applied(script, checksum)])
        version = _read_version(connection, "the working copy")
        if version != script.version:
            raise _ScriptFailed(script, f"_meta says {version}, where {script.version} was "
                                        "written. A trigger on _meta must not change that")
        database.commit(connection)


def _read_version_of_copy(database: _Database, script: _Script, connection: sqlite3.Connection,
                          ) -> int:
    """Begin a transaction on a copy that a script has left; return the version it holds.

    Raises: _ScriptFailed if the copy is damaged or has no version.
    """
    given, version = "the database that it was given", -1
    try:
        _prepare_for_writing(connection, durable=False)
        database.begin(connection)
        version = _read_version(connection, given)
        damage = _find_damage(connection)
    except _LockedError:
        raise _ScriptFailed(script, f"a process that it started still holds {given}",
                            remedy="Let it wait for the processes that it starts") from None
    except MigrationError as error:
        what = str(error).split(". ")[0]  # the rest is advice for a database, not for a copy
        raise _ScriptFailed(script, f"it has spoilt the version: {what}") from None
    except database.errors as error:
        if version >= 0 and str(error).startswith(("no such", "unknown function")):
            return version  # quick_check needs what only the application has
        if not _is_damage(error):
            raise
        damage = str(error)
    if damage:
        raise _ScriptFailed(script, f"it has damaged {given}: {damage}")
    return version


def _run_statements(run: _Run, script: _Script, path: str, modes: list[str]) -> str:
    """Run an SQL script on the database at a path, each statement by itself and outside of any
    transaction of ours, up to the first error. A transaction that it leaves open is committed.
    Append the journal modes that it sets to `modes`; return its checksum."""
    database, reading = run.database, _Reading(script)
    run.show_progress_of(reading.progress)
    with _closing(database.open(path)) as connection:
        _prepare_for_writing(connection, durable=False)
        connection.set_progress_handler(_as_progress_handler(run.tick), TICK_INSTRUCTIONS)
        # An authorizer of the application's `connect` could deny a statement, which looks as if
        # an interrupt had come. In a batch, our own one is in its place.
        connection.set_authorizer(lambda *details: sqlite3.SQLITE_OK)
        connection.text_factory = bytes  # text that is not UTF-8 is nobody's business here
        line, undo = 1, _UndoSection(script)
        for line, text in reading.blocks():
            undo.check(text, line)
            for number, statement in _statements(text, line):
                pragma, value = _parse_pragma(statement)
                if pragma == "journal_mode" and value:
                    modes.append(value)
                if pragma not in PROCESS_PRAGMAS:
                    _execute(database, connection, script, number, statement)
            run.tick()
        if connection.in_transaction:
            _execute(database, connection, script, line, "COMMIT")
    return reading.checksum


def _execute(database: _Database, connection: sqlite3.Connection, script: _Script, line: int,
             statement: str) -> None:
    """Execute one statement of a script outside of any transaction of ours."""
    try:
        database.execute_patiently(connection, statement)
    except database.errors + (sqlite3.Warning,) as error:
        raise _to_failure(database, script, error, line, statement) from None


class _WorkingCopy:
    """A copy of the database beside it, and how the copy becomes the database.

    The write lock of the database is held without a gap from before the copy is filled to
    the end of the transaction that writes the copy over the database. Otherwise a write of
    another connection in between would be lost. BEGIN alone cannot hold the lock, because
    SQLite makes no backup into a connection that has a transaction open. In rollback-journal
    modes, an exclusive connection holds the lock. In WAL mode, where readers keep connections
    from being exclusive, a backup that was begun early holds it.

    If anything fails before that transaction commits, the database has not been touched, so
    there is nothing to put back. If a process is killed, its copy stays, until a process that
    holds the lock and has a script to run on a copy removes it.
    """

    def __init__(self, database: _Database, label: str, tick: Callable[[], None]) -> None:
        self._database = database
        self._tick = tick
        self.path = f"{os.path.realpath(database.path)}-copy-{label}-{_unique()}"
        self._identity = (0, 0, 0)  # of the file that we created

    def replace_database(self, work: Callable[[sqlite3.Connection], int]) -> None:
        """Hold the write lock; let `work` fill and change the copy; then make it the database.

        `work` gets a connection that reads the database, and returns the version that the
        copy is at. An exception in it leaves the database as it was.
        """
        while True:
            try:
                self._database.must_exist()
                with _closing(self._database.open()) as target, \
                        _closing(self._database.open()) as reader:
                    if self._database.prepare_for_writing(target) == "wal":
                        self._replace_in_wal(target, reader, work)
                    else:
                        self._replace_in_rollback_mode(target, reader, work)
                return
            except _StartAgain:
                pass
            finally:
                try:
                    _remove_database(self.path)
                except KeyboardInterrupt:
                    _remove_database(self.path)  # it came before all of it was removed
                    raise

    def _replace_in_rollback_mode(self, target: sqlite3.Connection, reader: sqlite3.Connection,
                                  work: Callable[[sqlite3.Connection], int]) -> None:
        """Readers read on until the copy is complete; then our COMMIT waits for them."""
        database = self._database
        database.begin(target)
        if _journal_mode(target) == "wal":
            raise _StartAgain  # another process has changed it just before we had the lock
        # This PRAGMA comes after BEGIN: if BEGIN recovered a hot journal in exclusive mode,
        # `target` would be exclusive at once, and `reader` could never read. It comes before
        # COMMIT, because COMMIT would release the lock in normal mode.
        target.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        self._create()
        version = work(reader)
        reader.close()
        # The empty transaction ends, and its lock stays: it is exclusive from here on.
        database.commit(target)
        with _closing(self._database.open(self.path)) as source:
            self._pin(source, version)
            _copy_pages(source, target, self._watch_time())

    def _replace_in_wal(self, target: sqlite3.Connection, reader: sqlite3.Connection,
                        work: Callable[[sqlite3.Connection], int]) -> None:
        """Hold the lock by a backup that has begun. Readers are never disturbed.

        1. At the path of the copy, lay out a small database, the gate.
        2. Begin to back up the gate over the database. The first step of a backup takes the
           write lock, and the backup keeps it to its end.
        3. Between two steps, let `work` fill the gate's file with the copy and change it.
        4. Go on. SQLite sees that the source of the backup has changed, and copies all of it
           anew, in the one transaction that has been open since step 2.
        """
        database, wait, worked = self._database, _Wait(self._database), False
        # Wait for the lock before the gate exists: its holder may remove a gate as a leftover.
        database.begin(target)
        target.execute("ROLLBACK")
        with _closing(self._make_gate(target)) as gate:

            def step(status: int, remaining: int, total: int) -> None:
                nonlocal wait, worked
                is_locked = status & 0xFF in (SQLITE_BUSY, SQLITE_LOCKED)
                if is_locked:
                    wait.pause()
                self._tick()
                if status > 0xFF and is_locked and not worked:
                    raise _StartAgain  # after an extended code, the backup would give up
                if worked or status:
                    return
                # The lock is held from here on. Whoever held it before us may have taken our
                # gate for a leftover, or changed the journal mode.
                if _identify(self.path) != self._identity or _journal_mode(reader) != "wal":
                    raise _StartAgain
                worked = True
                version = work(reader)
                self._check_page_size(reader)
                self._take_in_replacement(gate)
                self._pin(gate, version)
                wait = _Wait(database)  # the time of the script does not count

            _copy_pages(gate, target, step, pages=GATE_STEP)
        try:  # the whole database is in the log now, and would stay there beside the file
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except database.errors:
            pass  # all is committed: no reason to fail

    def _create(self) -> None:
        """Create the empty, private file that becomes the copy."""
        _create_private(self.path, self._database.path)
        self._identity = _identify(self.path)
        if self._identity == (0, 0, 0):
            raise _StartAgain  # whoever holds the lock took it for a leftover

    def _make_gate(self, target: sqlite3.Connection) -> sqlite3.Connection:
        """Return a connection to a new database at the path of the copy. It has more pages
        than a step of the backup copies, or the first step would be the last and commit it."""
        database = self._database
        size = int(target.execute("PRAGMA page_size").fetchall()[0][0])
        encoding = target.execute("PRAGMA encoding").fetchall()[0][0]
        self._create()
        gate = None
        try:
            gate = database.open(self.path)
            _prepare_for_writing(gate, durable=False)
            for statement in ("PRAGMA journal_mode = DELETE", "PRAGMA auto_vacuum = NONE",
                              f"PRAGMA page_size = {size}", f"PRAGMA encoding = '{encoding}'",
                              "CREATE TABLE gate (x)",
                              f"INSERT INTO gate VALUES (zeroblob({GATE_PAGES * size}))",
                              "DROP TABLE gate"):
                gate.execute(statement).fetchall()
            if int(gate.execute("PRAGMA page_count").fetchall()[0][0]) <= GATE_STEP:
                raise sqlite3.OperationalError("the gate is too small")
        except BaseException as error:
            if gate:
                gate.close()
            if isinstance(error, database.errors) and _identify(self.path) != self._identity:
                raise _StartAgain from None  # whoever holds the lock took it for a leftover
            raise
        return gate

    def fill_from(self, source: sqlite3.Connection) -> None:
        """Fill the copy with the contents of another database."""
        with _closing(self._database.open(self.path)) as copy:
            copy.execute("PRAGMA synchronous = OFF").fetchall()  # a power cut ends the run anyway
            _copy_pages(source, copy, self._watch_time())
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # the source may be in WAL mode

    def _take_in_replacement(self, gate: sqlite3.Connection) -> None:
        """If the script put another file in the place of the copy, as `mv new.db "$1"` does,
        copy that into the file that the running backup reads."""
        if _identify(self.path)[:2] == self._identity[:2]:  # a script may change the mode
            return
        with _closing(self._database.open(self.path)) as other:
            if _journal_mode(other, "DELETE") != "delete":
                raise _CopyRejected("a process that it started still uses the database that it "
                                    "was given", "Let it wait for the processes that it starts")
            # With a journal on the disk, SQLite does not write to a file that was moved. (Some
            # builds do not know the mode OFF.)
            gate.execute("PRAGMA journal_mode = MEMORY").fetchall()
            _copy_pages(other, gate, self._watch_time())

    def _check_page_size(self, reader: sqlite3.Connection) -> None:
        with _closing(self._database.open(self.path)) as copy:  # not the gate: it has the old size
            sizes = [c.execute("PRAGMA page_size").fetchall()[0][0] for c in (reader, copy)]
        if sizes[0] != sizes[1]:
            raise _CopyRejected(
                f"it changed the page size from {sizes[0]} to {sizes[1]}, which SQLite does not "
                "do in WAL mode",
                "Leave WAL mode in an SQL script before this one, with PRAGMA journal_mode = "
                "DELETE;")

    def _pin(self, source: sqlite3.Connection, version: int) -> None:
        """Begin a read transaction on the copy, so that no process can change it any more, and
        check that it still has the version that `work` returned."""
        source.execute("BEGIN")
        found = _read_version(source, "the working copy")
        if found != version:
            raise _CopyRejected(f"the version of its copy changed from {version} to {found} after "
                                "it had ended", "Let it wait for the processes that it starts")

    def _watch_time(self) -> Callable[[int, int, int], None]:
        """Return a progress function for one backup, which by itself would wait for a lock
        for ever."""
        wait = _Wait(self._database)

        def progress(status: int, remaining: int, total: int) -> None:
            if status & 0xFF in (SQLITE_BUSY, SQLITE_LOCKED):
                wait.pause()
            self._tick()
        return progress

    def remove_leftovers(self) -> None:
        """Remove the copies of processes that were killed. Call this with the write lock held:
        then no other runner's script is at work on a copy. Two kinds of live files can be
        removed too: the gate of a process that waits for the lock, and the file of a backup,
        which needs no lock. The process then notices that, and starts again."""
        for path in self._database.find_copies():
            if not path.startswith(self.path):  # nor our own -journal, -wal and -shm
                _remove_database(path)


class _MemoryCopy(_WorkingCopy):
    """A working copy of a database in memory: there is no lock to hold."""

    def __init__(self, database: _MemoryDatabase, path: str, tick: Callable[[], None]) -> None:
        super().__init__(database, "", tick)
        self._memory = database
        self.path = path

    def replace_database(self, work: Callable[[sqlite3.Connection], int]) -> None:
        """Let `work` fill and change the copy; then make it the database."""
        try:
            version = work(self._memory.connection)
            with _closing(self._database.open(self.path)) as source:
                self._pin(source, version)
                self._memory.renew(source)
        finally:
            _remove_database(self.path)


def _unique() -> str:
    """Return a unique part of a file name. It begins with the process id, which _Wait reads."""
    return f"{os.getpid()}-{os.urandom(3).hex()}"


def _identify(path: str) -> tuple[int, int, int]:
    """Return device, inode and mode of the file at a path, zeros if there is none. The mode tells
    a private file of ours from one that SQLite created in its place, with the same inode."""
    try:
        status = os.stat(path)
        return status.st_dev, status.st_ino, status.st_mode
    except OSError:
        return 0, 0, 0


def _fingerprint(path: str) -> tuple[object, ...]:
    """Return what differs after anybody has written to the copy: SQLite counts the changes in
    the header of the file."""
    try:
        with open(path, "rb", buffering=0) as file:
            header = file.read(100)
    except OSError:
        header = b""
    return _identify(path), header, os.path.exists(path + "-wal")


# ------------------------------------------------------------------ foreign keys, triggers, views


MISMATCH = "foreign key mismatch"  # the parent has no such key


# What a script can have broken, and when that is judged. A reference that dangles fails the
# script that left it. A trigger, a view or a foreign key that does not work any more is judged
# at the end of the run, because a later script may fix it, and is only a warning.


class _Changes:
    """What a script did that can break a reference, a trigger or a view. Names are folded."""

    def __init__(self) -> None:
        self.changed: set[str] = set()  # tables whose rows, columns or indexes it changed
        self.made: set[str] = set()  # tables, views and triggers that it created or altered
        self.dropped: set[str] = set()  # tables, views, triggers and indexes
        self.everything = False  # it renamed a table, or wrote the schema by hand
        self.can_break = False  # a trigger, a view or a foreign key may not work any more

    def note_break(self) -> None:
        """Note that a trigger, a view or a foreign key was made, or that something was altered
        or dropped which one of them may need. New tables and changed rows break none of them."""
        self.can_break = True

    def note_everything(self) -> None:
        """Note that any table may have been changed."""
        self.everything = True
        self.can_break = True


class _Unmeasured(Exception):
    """References dangle, and it is not known which of them did so before the script."""


class _References:
    """Finds the dangling references that the scripts of one transaction leave.

    It remembers which table refers to which, because to read that anew for each script took
    1,000 small scripts from 0.7 s to 14.6 s.
    """

    def __init__(self, connection: sqlite3.Connection, measured: bool) -> None:
        self._connection = connection
        self._measured = measured  # know what dangles before each script
        self._before: KeysThatDangle | None = None  # what dangled before this one, if measured
        self._is_known = False  # which table refers to which
        self._parents: dict[str, set[str]] = {}  # of each child
        self._children: dict[str, set[str]] = {}  # of each parent

    def start(self) -> None:
        """A script is about to run."""
        if self._measured and self._before is None:
            self._before = _read_dangling(self._connection, _parents(self._connection))

    def dangling(self, changes: _Changes) -> list[_Dangling]:
        """Return what dangles, old or new, after a script, if the script can have changed that:
        else []. Call this after each script.

        Raises:
            _Unmeasured: something dangles. Roll back, and run the scripts again with an
                object that is `measured`. Most databases have no dangling references, so
                the measuring, which reads all tables, is done only then.
        """
        affected = self._affected(changes)
        if self._before is None:
            if any(_dangles(self._connection, child) for child in affected):
                raise _Unmeasured
            return []
        if not affected:
            return []
        before = self._before
        self._before = _read_dangling(self._connection, self._parents)
        return _compare_dangling(before, self._before)

    def _affected(self, changes: _Changes) -> set[str]:
        """Return the tables whose foreign keys a script can have broken."""
        if changes.everything or not self._is_known:
            self._is_known, self._parents, self._children = True, {}, {}
            for child, parents in _parents(self._connection).items():
                self._refer(child, parents)
            if self._parents:
                changes.note_break()
        else:
            for table in changes.made | changes.dropped:
                parents = {_fold(row[2]) for row in self._connection.execute(
                    f"PRAGMA main.foreign_key_list({_quoted(table)})").fetchall()}
                self._refer(table, parents)
                if parents:
                    changes.note_break()
        if changes.everything:
            return set(self._parents)
        touched = changes.changed | changes.made | changes.dropped
        return touched.intersection(self._parents).union(
            *(self._children.get(table, ()) for table in touched))

    def _refer(self, child: str, parents: set[str]) -> None:
        """Remember which tables a table refers to now."""
        for parent in self._parents.pop(child, ()):
            self._children[parent].discard(child)
        if parents:
            self._parents[child] = parents
        for parent in parents:
            self._children.setdefault(parent, set()).add(child)


def _fold(name: str) -> str:
    """Return a name in the one form that SQLite compares: it ignores the case of A to Z only."""
    if name.isascii():
        return name.lower()
    return name.encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


SELECT_REFERENCES = (
    'SELECT t.name, f."table" FROM main.sqlite_master AS t, '
    "pragma_foreign_key_list(t.name, 'main') AS f WHERE t.type = 'table'")


def _parents(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Return {table: the tables that it refers to} for the tables with foreign keys."""
    found: dict[str, set[str]] = {}
    for child, parent in connection.execute(SELECT_REFERENCES).fetchall():
        found.setdefault(_fold(child), set()).add(_fold(parent))
    return found


def _dangles(connection: sqlite3.Connection, child: str) -> bool:
    """Return whether a table has a dangling reference, or perhaps one."""
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA main.foreign_key_check({_quoted(child)})")
        return cursor.fetchone() is not None
    except connection.OperationalError as error:
        if MISMATCH not in str(error):
            raise
        return True  # one foreign key that cannot work hides the others of its table
    finally:
        cursor.close()  # there may be millions of further rows


def _foreign_keys(connection: sqlite3.Connection, child: str) -> list[ForeignKey]:
    """Return (child, parent, columns of the child, key) of each foreign key of a table: see
    _key_of_parent()."""
    found: dict[int, list[Any]] = {}
    for row in connection.execute(
            f"PRAGMA main.foreign_key_list({_quoted(child)})").fetchall():
        found.setdefault(row[0], []).append(row)
    return [(child, rows[0][2], tuple(row[3] for row in rows),
             _key_of_parent(connection, rows[0][2], [row[4] for row in rows]))
            for rows in found.values()]


def _key_of_parent(connection: sqlite3.Connection, parent: str, named: list[str | None],
                   ) -> tuple[str, ...] | None:
    """Return the columns of the parent that a foreign key refers to: those that it names, or
    the primary key.

    Return () if these columns are no unique key: SQLite then checks nothing. Return None if
    there is no such table: every reference then dangles.
    """
    try:
        columns = connection.execute(f"PRAGMA main.table_info({_quoted(parent)})").fetchall()
    except connection.OperationalError:
        return ()  # a view that does not compile
    if not columns:
        return None
    keys = [[row[1] for row in sorted(columns, key=lambda row: row[5]) if row[5]]]  # primary
    wanted = [column for column in named if column] or keys[0]
    for _, index, unique, _, partial in connection.execute(
            f"PRAGMA main.index_list({_quoted(parent)})").fetchall():
        if unique and not partial:
            keys.append([row[2] or "" for row in connection.execute(
                f"PRAGMA main.index_info({_quoted(index)})").fetchall()])
    works = len(wanted) == len(named) and any(
        sorted(map(_fold, key)) == sorted(map(_fold, wanted)) for key in keys)
    return tuple(wanted) if works else ()


def _read_dangling(connection: sqlite3.Connection, tables: Iterable[str]) -> KeysThatDangle:
    """Return {name: (foreign key, what dangles)} of all foreign keys of some tables. By the
    name, which is (child, parent, column, ...), a foreign key is found again after a script."""
    from collections import Counter
    found: KeysThatDangle = {}
    for child in tables:
        for key in _foreign_keys(connection, child):
            name = tuple(map(_fold, (child, key[1], *key[2])))
            found.setdefault(name, (key, Counter()))[1].update(_dangling_values(connection, key))
    return found


def _dangling_values(connection: sqlite3.Connection, foreign_key: ForeignKey) -> dict[Any, int]:
    """Return {value: the number of rows that refer to it} of what dangles.

    The value is a tuple of bytes for two reasons: 1 and '1' must be the same value after a
    rebuild has changed the type of a column, and text that is not UTF-8 must be readable. A
    parent row is found as SQLite does it for foreign keys, by the collation and affinity of the
    parent's column: that column is on the left, and + takes the affinity from the child's.
    """
    child, parent, columns, key = foreign_key
    if key == ():
        return {}
    own = [f"c.{_quoted(column)}" for column in columns]
    condition = " AND ".join(f"{column} IS NOT NULL" for column in own)
    if key:
        condition += f" AND NOT EXISTS (SELECT 1 FROM main.{_quoted(parent)} AS p WHERE " + (
            " AND ".join(f"p.{_quoted(t)} = +{column}" for t, column in zip(key, own))) + ")"
    values = ", ".join(f"CAST({column} AS BLOB)" for column in own)
    rows = connection.execute(f"SELECT count(*), {values} FROM main.{_quoted(child)} AS c "
                              f"WHERE {condition} GROUP BY {values}")
    return {tuple(value): number for number, *value in rows}


class _Dangling:
    """What dangles of one foreign key after a script."""

    def __init__(self, key: ForeignKey, old: Counter[Any], new: Counter[Any]) -> None:
        self.child, self.parent, self.columns, parent_key = key
        self.gone = parent_key is None  # there is no table `parent`
        self.old = sum(old.values())  # references that dangled before the script too
        self.new = sum(new.values())
        self.example = next(iter(new), ())  # a value that dangles now

    def describe(self, connection: sqlite3.Connection) -> str:
        """Return a sentence on one of the new ones."""
        child = _read_table(connection, self.child)[0]
        if self.gone:
            return f"{child} refers to the table {self.parent}, which does not exist"
        where = " AND ".join(f"CAST({_quoted(column)} AS BLOB) = ?" for column in self.columns)
        try:
            rowid = connection.execute(f"SELECT min(rowid) FROM main.{_quoted(self.child)} "
                                       f"WHERE {where}", self.example).fetchall()[0][0]
            row = f"{child} row {rowid}"
        except connection.OperationalError:  # it is WITHOUT ROWID
            row = f"a row of {child} with " + " and ".join(
                f"{column} = {data.decode(errors='replace')}"
                for column, data in zip(self.columns, self.example))
        return f"{row} refers to a row of {self.parent} that does not exist"


def _compare_dangling(before: KeysThatDangle, now: KeysThatDangle) -> list[_Dangling]:
    """Return what dangles now, and how much of it did not dangle before.

    Rows are matched by the value that dangles, because a rebuild can renumber them, and tables
    WITHOUT ROWID have no row numbers. A foreign key with a new name can be an old one whose
    table or column was renamed: the values of all keys that are gone count as old for it.
    """
    from collections import Counter
    known = {name: Counter(values) for name, (_, values) in before.items()}
    renamed = sum((known[name] for name in before.keys() - now), Counter())
    found = []
    for name, (key, values) in now.items():
        tolerated = known.get(name, renamed)
        old = values & tolerated
        tolerated.subtract(old)
        if values:
            found.append(_Dangling(key, old, values - old))
    return found


def _check_references(connection: sqlite3.Connection, report: _Report, script: _Script,
                      header: _Header, found: list[_Dangling]) -> None:
    """Fail a script that leaves references dangling; tolerate those from before it."""
    new, old = sum(each.new for each in found), sum(each.old for each in found)
    if new and "no-foreign-key-check" not in header.directives:
        what, remedy = _explain_dangling(connection, found, "--" if script.is_sql else "#")
        raise _ScriptFailed(script, what, remedy=remedy)
    if new:
        report.warn(f"{script.name} leaves {_plural(new, 'dangling reference')}, as its "
                    "no-foreign-key-check allows")
    if old:
        report.warn(f"{_plural(old, 'reference')} to rows that do not exist, from before "
                    f"{script.name}: see PRAGMA foreign_key_check")


def _explain_dangling(connection: sqlite3.Connection, found: list[_Dangling], comment: str,
                      ) -> tuple[str, str]:
    """Return what a script is refused for, and what to do. `comment` begins a comment in the
    language of the script."""
    new = sorted((each for each in found if each.new), key=lambda each: not each.gone)
    number, by_table = sum(each.new for each in new), dict[str, int]()
    for each in new:
        table = _read_table(connection, each.child)[0]
        by_table[table] = by_table.get(table, 0) + each.new
    counts = ", ".join(f"{table} {count}" for table, count in by_table.items())
    of_tables = f" ({counts})" if len(by_table) > 1 else ""
    what = (f"it leaves {_plural(number, 'dangling reference')}{of_tables}: "
            f"{new[0].describe(connection)}")
    if not new[0].gone:
        actions = {row[6] for row in connection.execute(
            f"PRAGMA main.foreign_key_list({_quoted(new[0].child)})").fetchall()
            if _fold(row[2]) == _fold(new[0].parent) and row[6] not in ("NO ACTION", "RESTRICT")}
        cascade = "" if comment != "--" or not actions else (
            f" To make ON DELETE {min(actions)} of {next(iter(by_table))} do that, put `PRAGMA "
            "foreign_keys = ON;` before its first statement.")
        return what, (f"Let the script change or delete these rows too.{cascade} If this is "
                      f"intended, start it with the line `{comment} fastmigrate: "
                      "no-foreign-key-check`")
    return what, (f"Keep {new[0].parent}, or first drop {new[0].child} or rebuild it without this "
                  "foreign key. If that followed a table that the script renamed, begin the script "
                  "with the line `PRAGMA legacy_alter_table = ON;`. If a later script creates "
                  f"{new[0].parent}, begin this one with `{comment} fastmigrate: "
                  "no-foreign-key-check`")


# -------------------------------------------------------------- what no longer works

# What SQLite says about an object that needs something only the application has.
OF_THE_APPLICATION = (
    "no such function", "no such collation sequence", "no such module", "no such tokenizer",
    "wrong number of arguments to function", "unsafe use of", "not authorized",
    "is prohibited", "vtable constructor failed")


def _has_what_can_break(objects: list[Any]) -> bool:
    """Return whether there is a trigger, a view or a foreign key in a schema."""
    return any(kind in ("view", "trigger") or "references" in sql.lower()
               for kind, *_, sql in objects)


def _broken_in(objects: list[Any]) -> list[str]:
    """Return the names of what does not work in a schema."""
    if not _has_what_can_break(objects):
        return []
    with _closing(_empty_copy(objects)) as scratch:
        return list(_broken_objects(scratch, objects))


def _newly_broken(connection: sqlite3.Connection, before: list[Any],
                  ) -> dict[str, tuple[str, str]]:
    """Return what _broken_objects() finds now and does not find in the schema `before`. To
    look at that only now costs nothing if nothing is broken, which is nearly always."""
    broken = _broken_objects(connection, _read_objects(connection))
    if not broken:
        return {}
    with _closing(_empty_copy(before)) as scratch:
        old = _broken_objects(scratch, before)
    return {name: found for name, found in broken.items() if name not in old}


def _broken_objects(connection: sqlite3.Connection, objects: list[Any],
                    ) -> dict[str, tuple[str, str]]:
    """Return {name: (reason, its SQL)} of the views and triggers that do not compile, and of
    the tables with a foreign key that cannot work. Nothing is written: EXPLAIN only compiles.

    Foreign keys must be off in this connection, or SQLite reports them as faults of triggers.
    """
    broken = {}
    for kind, name, _, sql in objects:
        reason = ""
        if kind == "view":
            reason = _compile(connection, f"SELECT * FROM main.{_quoted(name)}", objects)
        elif kind == "table":
            reason = _broken_foreign_key(connection, name)
        if reason:
            broken[f"{kind} {name}"] = reason, sql
    tables = dict.fromkeys(table for kind, _, table, _ in objects if kind == "trigger")
    suspects = {table: reason for table in tables
                if (reason := _compile_writes(connection, table, objects))}
    if suspects:
        broken.update(_broken_triggers(objects, suspects) or {
            f"a trigger of {table}": (reason, table) for table, reason in suspects.items()})
    return broken


def _broken_triggers(objects: list[Any], tables: Container[str]) -> dict[str, tuple[str, str]]:
    """Return {name: (reason, its SQL)} of the triggers of some tables that do not compile.

    SQLite does not say which trigger is at fault: one of the table itself, or one that it sets
    off on another table. So each trigger is tried without the others, in an empty copy of the
    schema. Only triggers of other views stay, because a view without them cannot be written to.
    """
    broken: dict[str, tuple[str, str]] = {}
    views = {name for kind, name, *_ in objects if kind == "view"}
    triggers = [row[1:] for row in objects if row[0] == "trigger"]
    with _closing(_empty_copy(objects)) as scratch:
        for name, table, sql in triggers:
            if table in tables:
                scratch.execute("BEGIN")
                for other, owner, _ in triggers:
                    if other != name and (owner == table or owner not in views):
                        scratch.execute(f"DROP TRIGGER IF EXISTS {_quoted(other)}")
                reason = _compile_writes(scratch, table, objects)
                scratch.execute("ROLLBACK")
                if reason:
                    broken[f"trigger {name}"] = reason, sql
    return broken


def _compile_writes(connection: sqlite3.Connection, table: str, objects: list[Any]) -> str:
    """Return why a statement that sets off the triggers of a table does not compile, or ""."""
    quoted = _quoted(table)
    try:
        columns = [_quoted(row[1]) for row in connection.execute(
            f"PRAGMA main.table_xinfo({quoted})").fetchall() if not row[6]]  # not generated
    except connection.OperationalError:
        return ""  # a view that does not compile itself
    for statement in (f"INSERT INTO main.{quoted} DEFAULT VALUES", f"DELETE FROM main.{quoted}",
                      f"UPDATE main.{quoted} SET " + ", ".join(f"{c} = {c}" for c in columns)):
        reason = _compile(connection, statement, objects)
        # No trigger of a view replaces this kind of write, so no trigger is broken.
        if reason and reason != f"cannot modify {table} because it is a view":
            return reason
    return ""


def _compile(connection: sqlite3.Connection, statement: str, objects: list[Any]) -> str:
    """Return why a statement does not compile, "" if it does or if the reason is that this
    connection lacks what the application's connections have."""
    # The time makes each text unique. Otherwise Python would reuse a statement that it has
    # compiled, and SQLite does not compile an EXPLAIN again after the schema has changed.
    try:
        connection.execute(f"EXPLAIN {statement} -- {time.perf_counter_ns()}").close()
        return ""
    except connection.OperationalError as error:
        reason = str(error)
        if any(sign in reason for sign in OF_THE_APPLICATION):
            return ""
        if reason == "interrupted" or _meaning_of(reason, ""):
            raise
    # A missing table is no fault if _empty_copy() could not create it, or if it is a function
    # of the application that returns rows: SELECT * FROM series(1, 9)
    table = _fold(reason.partition("no such table: ")[2])
    table = table[5:] if table.startswith("main.") else table
    is_known = table and any(
        _fold(name) == table or kind == "view" and f" {table}(" in _fold(sql)
        for kind, name, _, sql in objects)
    return "" if is_known else reason


def _broken_foreign_key(connection: sqlite3.Connection, child: str) -> str:
    """Return why a foreign key of a table cannot work, or ""."""
    for _, parent, columns, key in _foreign_keys(connection, child):
        if key is None:
            return f"{', '.join(columns)} refers to the table {parent}, which does not exist"
        if not key:
            return (f"what {', '.join(columns)} refers to in {parent} is neither its primary key "
                    "nor unique")
    return ""


def _empty_copy(objects: list[Any]) -> sqlite3.Connection:
    """Return a database in memory with a schema and no rows. Objects that need something that
    only the application has are left out; _compile() does not report what needs these objects.
    """
    scratch = sqlite3.connect(":memory:", isolation_level=None)
    scratch.execute("PRAGMA foreign_keys = OFF")
    for *_, sql in objects:
        try:
            scratch.execute(sql)
        except sqlite3.Error:
            pass
    return scratch


def _describe_broken(name: str, reason: str, where: str) -> str:
    """Return the message for something that _broken_objects() found. `where` is "after" and
    the name of a script, or "in" and that of a database."""
    if name.startswith("table "):
        return (f"{where}, {name} has a foreign key that cannot work: {reason}. Fix that in a "
                "further script.")
    return (f"{where}, {name} does not compile: {reason}. Drop it and create it again in a "
            "further script.")


def _blame(name: str, reason: str, sql: str, ran: list[tuple[str, _Changes | None]]) -> str:
    """Return the script that most likely broke something, or "this run" if none stands out.

    This is the last script that dropped what the reason names, or else what the SQL of the
    broken object names. If there is none, it is the last script that created or altered that.

    `ran` holds the scripts of the run that can have broken something, with what they changed,
    None if that is unknown. The search for a creator stops at a script whose changes are
    unknown, because that script may be the one.
    """
    import re
    for kind in ("dropped", "made"):
        for text in (reason, f"{name} {sql}"):
            words = set(re.findall(r"[\w$]+", _fold(text)))
            for script, changes in reversed(ran):
                if changes and not words.isdisjoint(getattr(changes, kind)):
                    return script
                if changes is None and kind == "made":
                    break
    return ran[0][0] if len(ran) == 1 else "this run"


def _stale_object_remedy(error: str) -> str:
    """Return what to do if ALTER TABLE failed because a view or a trigger does not compile, ""
    for any other error. ALTER TABLE compiles all views and triggers, so the broken one need not
    have to do with the altered table."""
    import re
    found = re.match(r"error in (view|trigger) (.*?)(?: after [a-z ]+)?: ", error)
    return "" if not found else (
        f"Drop the {found[1]} {found[2]} before this statement, and create it again after it if "
        "it is still needed; or begin the script with the line `PRAGMA legacy_alter_table = ON;`")


def _broken_and_known(connection: sqlite3.Connection,
                      ) -> tuple[dict[str, tuple[str, str]], set[str]]:
    """Return what is broken now, and the names of what was broken already when the history
    began. Without a history, everything that is broken counts as known."""
    broken = _broken_objects(connection, _read_objects(connection))
    if not broken:
        return {}, set()
    if not connection.execute(HAS_HISTORY).fetchall():
        return broken, set(broken)
    return broken, {name for names, in connection.execute(
        "SELECT CAST(checksum AS TEXT) FROM main._migration_history WHERE name = ''").fetchall()
        for name in names.split("\n")}


# ------------------------------------------------------------------ script files


# PRAGMAs that do nothing, or fail, inside a transaction. If a script begins with them, they run
# before the transaction. All other PRAGMAs run inside it, so that user_version and
# application_id are rolled back with it.
OUTSIDE_PRAGMAS = frozenset((
    "auto_vacuum", "encoding", "foreign_keys", "journal_mode", "locking_mode", "page_size",
    "synchronous", "temp_store", "wal_checkpoint"))
DIRECTIVES = ("no-foreign-key-check", "no-transaction", "squashed")


class _Script:
    """A migration script in its directory."""

    def __init__(self, folder: str, version: int, name: str) -> None:
        self.version = version
        self.name = name
        self.path = os.path.join(folder, name)
        self.is_sql = name.endswith(".sql")


class _Header:
    """How an SQL script begins: directives in its opening comment, the PRAGMAs that must run
    before BEGIN, and the rest of the text."""

    def __init__(self, directives: set[str], pragmas: list[tuple[int, str]], rest: str) -> None:
        self.directives = directives
        self.pragmas = pragmas  # (line, statement)
        self.rest = rest
        self.no_transaction = "no-transaction" in directives


class _Reading:
    """One pass over a script's file, which yields the text and then knows the checksum."""

    def __init__(self, script: _Script) -> None:
        self._script = script
        self._done = 0  # bytes read
        self.checksum = ""  # known when all of it was read

    def progress(self) -> str:
        try:
            size = os.path.getsize(self._script.path)
        except OSError:  # it was removed meanwhile
            size = 0
        if self._done >= size:
            return f"{self._script.name} is running"
        return f"{self._script.name}: {100 * self._done // size} % of {size / 1e6:.1f} MB"

    def lines(self) -> Iterator[bytes]:
        """Yield the file in runs of whole lines, of about BLOCK bytes each. The byte order mark
        is left out, and CRLF becomes LF, as in the sqlite3 program.

        The checksum detects accidental edits. Byte order marks, CRLF, and white space at the
        end of a line or of the file do not change it.

        Raises: _ScriptFailed if the file cannot be read.
        """
        import zlib  # hashlib takes longer to import than a script to run
        self._done = crc = length = 0
        held = b""  # white space that counts only if something follows it
        try:
            with open(self._script.path, "rb") as file:
                if file.read(3) != b"\xef\xbb\xbf":
                    file.seek(0)
                while data := file.read(BLOCK):
                    if data[-1:] != b"\n":
                        data += file.readline()
                    self._done += len(data)
                    returns = b"\r" in data
                    yield data.replace(b"\r\n", b"\n") if returns else data
                    if (returns or b" \n" in data or b"\t" in data and b"\t\n" in data
                            or b"\f" in data or b"\v" in data):
                        data = b"\n".join([line.rstrip() for line in data.split(b"\n")])
                    kept = data.rstrip()
                    if kept:
                        crc = zlib.crc32(held + kept, crc)
                        length += len(held + kept)
                        held = b""
                    held += data[len(kept):]
        except OSError as error:
            raise _unreadable(self._script, error) from None
        self.checksum = f"{crc:08x}-{length:x}"

    def read_beginning(self) -> str:
        """Return how the script begins. The checksum is not known then."""
        return next(self.lines(), b"").decode(errors="replace")

    def read_to_end(self) -> str:
        """Read all of the script; return its checksum."""
        for _ in self.lines():
            pass
        return self.checksum

    def blocks(self) -> Iterator[tuple[int, str]]:
        """Yield an SQL script as (number of the first line, text of whole statements).

        Raises: _ScriptFailed if it cannot be read, or is not UTF-8.
        """
        line, wanted = 1, 0
        parts: list[str] = []
        for data in self.lines():
            parts.append(self._decode(data, line, parts))
            # If no statement ends in the text, search again only after the text has doubled.
            # Otherwise the time for a long statement would grow with the square of its length.
            if sum(map(len, parts)) < wanted:
                continue
            text = "".join(parts)
            cut = _find_end_of_statements(text)
            if cut:
                yield line, text[:cut]
                line += text.count("\n", 0, cut)
            parts = [text[cut:]]
            wanted = 0 if cut else 2 * len(text)
        rest = "".join(parts)
        if rest:
            yield line, rest

    def _decode(self, data: bytes, line: int, before: list[str]) -> str:
        """Return the text of `data`, which follows after the parts `before`. They begin in
        the given line."""
        wrong, position, text = "it holds a NUL character", data.find(b"\0"), ""
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            wrong, position = "it is not UTF-8", error.start
        if position >= 0:
            line += sum(part.count("\n") for part in before) + data.count(b"\n", 0, position)
            raise _ScriptFailed(self._script, wrong, line, remedy="Save it as UTF-8")
        return text


def _unreadable(script: _Script, error: OSError) -> _ScriptFailed:
    link = f", from {os.readlink(script.path)}" if os.path.islink(script.path) else ""
    return _ScriptFailed(script, f"it cannot be read{link}: {error.strerror}",
                         remedy="Make the file readable")


def _read_header(script: _Script, text: str) -> _Header:
    """Parse the opening comment for directives, and remove the leading PRAGMAs that must run
    before BEGIN."""
    import re
    start = _skip_blank(text, 0)
    if not script.is_sql:
        start = len(re.split(r"(?m)^(?!#|[^\S\n]*$)", text, maxsplit=1)[0])
    directives: set[str] = set()
    for line, comment in enumerate(text[:start].splitlines(), 1):
        before, _, words = comment.partition("fastmigrate:")
        for word in re.findall(r"[^\s,*/]+", "" if before.strip("-#/* \t") else words):
            if word not in DIRECTIVES:
                raise _ScriptFailed(script, f"it has the unknown directive {word!r}", line,
                                    remedy=f"Write one of {', '.join(DIRECTIVES)}")
            directives.add(word)
    pragmas: list[tuple[int, str]] = []
    if text[start:start + 6].lower() != "pragma":
        return _Header(directives, pragmas, text)
    for line, statement in _statements(text, 1):
        pragma = _parse_pragma(statement)[0]
        if not pragma:
            break
        if pragma in OUTSIDE_PRAGMAS:
            pragmas.append((line, statement))
            start = text.index(statement, _skip_blank(text, start))
            text = (text[:start] + "\n" * statement.count("\n")
                    + text[start + len(statement):])
    return _Header(directives, pragmas, text)


def _parse_pragma(statement: str) -> tuple[str, str]:
    """Return the name of a PRAGMA and the value that it sets, both "" for other statements."""
    if statement[:6].lower() != "pragma":
        return "", ""
    first, *words = [_fold(_bare(text)) for kind, text, _ in _tokens(statement)
                     if kind != "comment"]
    if words[1:2] == ["."]:
        del words[:2]  # the name of the schema
    if first != "pragma" or not words:
        return "", ""
    sets = words[1:2] in (["="], ["("])
    return words[0], "".join(words[2:4] if words[2:3] == ["-"] else words[2:3]) if sets else ""


def _find_end_of_statements(text: str) -> int:
    """Return the length of a prefix of the text that consists of whole statements. Only the end
    of the text and the last few lines that end in ; are tried; 0 if none of them fits."""
    end = len(text)
    for _ in range(8):
        if not end or sqlite3.complete_statement(text[:end]):
            return end
        end = text.rfind(";\n", 0, end - 1) + 1
    return 0


def _skip_blank(text: str, position: int) -> int:
    """Return the first position from this one that is not white space, comment or ;"""
    if text[position:position + 1].isalpha():  # as in nearly every script; the rest is slow
        return position
    import re
    skipped = re.compile(r"(?:[ \t\n\f\r;]+|--[^\n]*|/\*.*?(?:\*/|\Z))*", re.S)
    return skipped.match(text, position).end()  # type: ignore[union-attr]


def _statements(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield the single statements of an SQL text, each with the number of its first line."""
    import re
    token = re.compile(
        r"""'[^']*'?|"[^"]*"?|`[^`]*`?|\[[^\]]*\]?|--[^\n]*|/\*.*?(?:\*/|\Z)|;|\bend\b""",
        re.S | re.I)
    counted, start = 0, _skip_blank(text, 0)
    trigger, end = False, 0  # only a ; directly after END ends CREATE TRIGGER
    for found in token.finditer(text, start):
        if found.group().lower() == "end":
            end = found.end()
        if found.group() != ";" or found.start() < start:
            continue
        if trigger and _skip_blank(text, end) < found.start():
            continue
        if not sqlite3.complete_statement(text[start:found.end()]):
            trigger = True
            continue
        line, counted = line + text.count("\n", counted, start), start
        yield line, text[start:found.end()]
        start, trigger = _skip_blank(text, found.end()), False
    if start < len(text):
        yield line + text.count("\n", counted, start), text[start:].rstrip()


class _UndoSection:
    """Refuses a script of another tool that would undo itself: a comment divides it from the
    statements that undo it, and there are such statements."""

    def __init__(self, script: _Script) -> None:
        self._script = script
        self._line = 0  # of the comment, 0 if it was not met yet
        self._begins_with_up = False  # then a bare `-- Down` is such a comment, too

    def check(self, text: str, line: int) -> None:
        """Look at the next block of the script, which begins in a line."""
        if self._line:
            runs = _skip_blank(text, 0) < len(text)
        else:
            self._line, end = self._find(text, line) if "--" in text else (0, 0)
            runs = self._line > 0 and _skip_blank(text, end) < len(text)
        if runs:
            raise _ScriptFailed(
                self._script, "another tool's section to undo the script begins here, and "
                "fastmigrate runs a script to its end", self._line,
                remedy="Delete the script's text from this line on")

    def _find(self, text: str, line: int) -> tuple[int, int]:
        """Return the line of the comment and where in the text it ends, zeros if there is none."""
        import re
        if line == 1:
            self._begins_with_up = bool(re.match(
                r"(--[^\n]*\n|\s)*--\s*@?up\s*\n", text, re.I))
        undo = re.compile(r"--\s*(\+(goose|migrate|micrate)\s+down|migrate:down)\b", re.I)
        if self._begins_with_up:
            undo = re.compile(r"--\s*@?down\s*\Z", re.I)
        elif not undo.search(text):  # as in nearly every script; the rest is slow
            return 0, 0
        tokens = re.compile(  # so that a line within a string is not taken for a comment
            r"""'[^']*'?|"[^"]*"?|`[^`]*`?|\[[^\]]*\]?|/\*.*?(?:\*/|\Z)|--[^\n]*""", re.S)
        for found in tokens.finditer(text):
            before = text.rfind("\n", 0, found.start()) + 1
            if undo.match(found.group()) and not text[before:found.start()].strip():
                return line + text.count("\n", 0, found.start()), found.end()
        return 0, 0


# ------------------------------------------------------------------ the migrations directory


NAMING_RULE = ("a migration script is named NNNN-description.ext: four digits from 0001, "
               "a dash, and sql, py or sh")


class _Listing:
    """What a migrations directory holds: read once, and never changed."""

    __slots__ = ("folder", "names", "twins", "ignored", "latest", "squashed_version")

    def __init__(self, folder: str, names: dict[int, str], twins: dict[int, list[str]],
                 ignored: list[str]) -> None:
        self.folder = folder
        self.names = names  # of the scripts, by number
        self.twins = twins  # the names of all scripts of a number that several have
        self.ignored = ignored  # what looks like a script, but is not named like one
        self.latest = max(names, default=0)
        self.squashed_version = _squashed_version(folder, names)  # 0 if there is none

    def names_of(self, number: int) -> list[str]:
        """Return the scripts of a number: one, unless it is missing or several have it."""
        return self.twins.get(number) or [self.names[number]] if number in self.names else []


def _scan(migrations_dir: StrPath) -> _Listing:
    """List the migrations directory. Raises OSError or ValueError if it cannot be used."""
    folder = os.fsdecode(migrations_dir)
    names: dict[int, str] = {}
    twins: dict[int, list[str]] = {}
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:  # the rule of extract_version_from_filename(), inlined for speed
                name = entry.name
                digits = name[:4]
                try:
                    is_script = (
                        name[4:5] == "-" and digits.isdecimal() and digits.isascii()
                        and name.endswith(EXTENSIONS)
                        # A broken link counts as a script, so that it fails and is not skipped.
                        and (entry.is_file() or entry.is_symlink() and not os.path.exists(entry)))
                except OSError:
                    is_script = True  # a link to itself, which fails too
                if is_script:
                    number = int(digits)
                    if names.setdefault(number, name) is not name:
                        twins.setdefault(number, [names[number]]).append(name)
                else:
                    others.append(name)
        "".join(names.values()).encode()
    except FileNotFoundError:
        raise _MissingError(f"there is no migrations directory {folder}. Create it, or name "
                            "another one (--migrations).") from None
    except OSError as error:
        raise type(error)(f"the migrations directory {folder} cannot be read: {error.strerror}. "
                          "Make it readable for this user, or name another one (--migrations)."
                          ) from None
    except UnicodeEncodeError as error:
        name = next(name for name in names.values() if error.object[error.start] in name)
        shown = os.fsencode(name).decode(errors="backslashreplace")
        raise ValueError(f"the name of the script {shown} in {folder} is not UTF-8, and cannot be "
                         "recorded. Nothing was run. Rename it.") from None
    if 0 in names:
        others += twins.pop(0, [names[0]])
        del names[0]
    twins = {number: sorted(twins[number]) for number in sorted(twins)}
    names.update((number, twins[number][0]) for number in twins)  # not what the system lists first
    return _Listing(folder, names, twins, _look_like_scripts(others, no_scripts=not names))


def _look_like_scripts(others: list[str], no_scripts: bool) -> list[str]:
    """Return the names that were probably meant as scripts. In a directory without any script
    (`no_scripts`), these include names by the rules of other tools: V1__x.sql, x.up.sql, and
    2024_x, a folder."""
    found = {name for name in others
             if name[:1].isdecimal() and name.lower().endswith(EXTENSIONS)}
    if no_scripts and others:
        import re
        other_tools = re.compile(r"\d[^.]*|[VUR][\d._]*__.*\.sql|.*\.(up|down|do|undo)\.sql", re.I)
        found.update(filter(other_tools.fullmatch, others))
    return sorted(found)


def _scan_for(database: _Database, folder: str) -> _Listing:
    """List the migrations directory of a database. If there is no directory, an error of the
    database is raised first: to enroll an unversioned database needs no directory."""
    try:
        return _scan(folder)
    except FileNotFoundError:
        database.read()
        raise


def _scripts(migrations_dir: StrPath) -> dict[int, str]:
    """Return the names of the scripts by number. Raises ValueError if two have one number."""
    listing = _scan(migrations_dir)
    _refuse_twins(listing)
    return listing.names


def _refuse_twins(listing: _Listing) -> None:
    """Raise _TwinsError if two scripts have one number."""
    for text in _describe_twins(listing):
        raise _TwinsError(text)


def _describe_twins(listing: _Listing, ran: dict[str, list[str]] | None = None,
                    new_names: dict[str, str] = {}) -> list[str]:  # noqa: B006
    """Report the numbers that several scripts have. `ran` holds the databases on which each
    script ran, if that is known."""
    texts = []
    for number, names in listing.twins.items():
        many = "two" if len(names) == 2 else len(names)
        text = (f"{many} scripts have the number {number:04d}, so nothing is run: {_cut(names)} "
                f"in {listing.folder}. ")
        moving = [name for name in names if name in new_names]
        where: list[str] = []
        if ran is not None:
            where = [f"{name} is applied to {_cut(ran[name])}" for name in names if name in ran]
            text += f"{'; '.join(where) or 'None of them is applied'}. "
        checksums = {_checksum_or_none(listing.folder, name) for name in names}
        if len(checksums) == 1 and checksums.pop().partition("-")[2] not in ("", "0"):  # not empty
            text += "They are the same: delete all but one."
        elif where[1:]:
            text += ("Give each a number above the latest, and change it to do nothing if already "
                     "applied.")
        else:
            text += _squash_again(listing, names) or (
                "Renumber one that production does not have; other databases that have it are "
                "then told what to do" + (f". If that is {_cut(moving)}" if moving else "")
                + _move_commands(moving, new_names, listing.folder))
        texts.append(text)
    return texts


def _describe_ignored(listing: _Listing) -> str:
    return f"ignored (bad file name): {_cut(listing.ignored)}. In {listing.folder}, {NAMING_RULE}."


def _program_for(db: str, folder: str) -> str:
    """Return the command line for a database and its scripts, ready to paste."""
    import shlex
    paths = [os.path.join(".", path) if path.startswith("-") else path for path in (db, folder)]
    db, folder = map(shlex.quote, paths)
    return f"fastmigrate --db {db}" + (f" --migrations {folder}" if folder != "migrations" else "")


def _cut(names: list[str]) -> str:
    """Return a list of names for a message, cut if it is long."""
    more = f" and {len(names) - 8} more" if names[8:] else ""
    return ", ".join(names[:8]) + more


def _move_commands(names: list[str], new_names: dict[str, str], folder: str) -> str:
    """Return the end of a sentence that tells the user to rename scripts: the mv commands, or
    just a full stop if not every script has a new name."""
    import shlex
    if not names or not new_names.keys() >= {*names[:8]}:
        return "."

    def quoted(name: str) -> str:
        path = os.path.join(folder, name)
        return shlex.quote(os.path.join(".", path) if path.startswith("-") else path)

    return ":" + "".join(f"\n    mv {quoted(name)} {quoted(new_names[name])}"
                         for name in names[:8])


# ------------------------------------------------------------------ history

# The table _migration_history has one row for each script that was applied, or that counts as
# applied because the database was enrolled or its version was set by hand. In the second case
# --enroll or the next run writes the row, without a time. Special rows:
#
#   no name      the version was set by hand to a number without a script: all scripts up to it
#                count as applied
#   no checksum  the script is gone and the user accepted that, or the script could not be read.
#                The row stays, because only a row above shows that a script was added late.
#   version 0    the checksum column names what was broken already when the history began

CREATE_HISTORY = (
    "CREATE TABLE IF NOT EXISTS main._migration_history (version INTEGER PRIMARY KEY, "
    "name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at TEXT NOT NULL)")
INSERT_HISTORY = (
    "INSERT OR REPLACE INTO main._migration_history (version, name, checksum, applied_at) "
    "VALUES (?, ?, ?, ?)")
DELETE_HISTORY = "DELETE FROM main._migration_history WHERE version BETWEEN ? AND ?"
SELECT_HISTORY = (  # text, whatever something else has written there
    "SELECT version, ifnull(CAST(name AS TEXT), ''), ifnull(CAST(checksum AS TEXT), ''), "
    "ifnull(CAST(applied_at AS TEXT), '') FROM main._migration_history "
    "WHERE typeof(version) = 'integer' AND version <= ?")
SELECT_NEWEST = (  # a count(*) with a condition would read every row at every start
    "SELECT version, name = ?, (SELECT count(*) FROM main._migration_history) "
    "- (SELECT count(*) FROM main._migration_history WHERE version = 0) "
    "FROM main._migration_history ORDER BY version DESC LIMIT 1")
NO_ROW: Row = ("", "", "")  # of a script that the history does not have
SELECT_NUMBERS = (
    "SELECT group_concat(version) FROM "
    "(SELECT version FROM main._migration_history WHERE version > 0 ORDER BY version)")


def _read_history(connection: sqlite3.Connection, version: int, db: str) -> dict[int, Row]:
    """Return (name, checksum, time) of what was applied up to a version, {} without a history.

    Raises: MigrationError if the table of this name is somebody else's.
    """
    before = connection.text_factory
    connection.text_factory = lambda data: data.decode(errors="replace")
    try:
        rows = connection.execute(SELECT_HISTORY, (version,)).fetchall()
        return {row[0]: row[1:] for row in rows}
    except connection.OperationalError as error:
        if "no such column" in str(error):
            raise MigrationError(f"{db} has a table _migration_history that is not fastmigrate's "
                                 f"({error}). Nothing was changed. Rename it.") from None
        if "no such table" not in str(error):
            raise
        return {}
    finally:
        connection.text_factory = before


def _is_as_recorded(connection: sqlite3.Connection, version: int, listing: _Listing) -> bool:
    """Return whether the history has the numbers of the directory's scripts, and the name of the
    last. Every start of the application calls this, so it reads few rows and no file."""
    names = listing.names
    try:
        newest = connection.execute(SELECT_NEWEST, (names.get(version),)).fetchall()
    except connection.OperationalError:
        return False  # _read_history() tells why
    last, same_name, count = newest[0] if newest else (0, 0, 0)
    if not same_name or not last == version == listing.latest or count != len(names):
        return False
    return bool(count == last) or connection.execute(  # they are 1, 2, ... without a gap
        SELECT_NUMBERS).fetchall() == [(",".join(map(str, sorted(names))),)]


class _State:
    """How a script that there is or was stands to one database: its state, one of those that
    _read_states() explains, and the row of the history under its number."""

    def __init__(self, number: int, name: str, state: str, row: Row) -> None:
        self.number = number
        self.name = name
        self.state = state
        self.row = row  # NO_ROW if there is none
        self.is_there = state not in ("missing", "squashed")  # in the directory
        self.has_run = state in ("applied", "edited")  # under this name, or counts as applied
        self.applied_at = row[2] or None if self.has_run or state == "missing" else None


def _read_states(connection: sqlite3.Connection, version: int, listing: _Listing, db: str, *,
                 thorough: bool) -> list[_State]:
    """Return the state of each script that there is or was, in order. The states:

    pending   its number is above the version of the database
    applied   it ran, or counts as applied because the version was set by hand
    edited    it ran, with another text
    conflict  another script ran under its number: both name and text differ
    late      it never ran, though a script with a higher number did
    missing   it ran, and is no longer in the directory
    squashed  it ran, and the squashed script has replaced it

    Unless it is `thorough`, scripts below the version are compared by their numbers alone, and
    the result is [] if nothing can be wrong (the common case at start-up).
    """
    if not thorough and _is_as_recorded(connection, version, listing):
        return []
    history = _read_history(connection, version, db)
    if not history and not thorough:
        return []
    squashed = listing.squashed_version
    replaced = [number for number in history
                if number <= squashed and number not in listing.names]
    states = [_State(number, history[number][0], "squashed", history.pop(number))
              for number in replaced]
    ran_above = False  # a script ran above this number, and the version was not set in between
    for number in sorted({*listing.names, *history}, reverse=True):  # from the last to the first
        row = history.get(number, NO_ROW)
        recorded, checksum, _ = row
        if number not in listing.names and recorded and checksum:
            states.append(_State(number, recorded, "missing", row))
        for name in reversed(listing.names_of(number)):
            state = "applied"
            if number > version:
                state = "pending"
            elif number not in history:
                state = "late" if ran_above else state
            elif not recorded or number == squashed and name != recorded:
                pass  # the version was set by hand, or the squashed script replaced this one
            elif thorough or number == version and name != recorded:
                state = _compare(listing.folder, name, recorded, checksum)
            states.append(_State(number, name, state, row))
        if number in history:  # a row without a name stands for all scripts below it, too
            ran_above = bool(recorded)
    return states[::-1]


def _compare(folder: str, name: str, recorded: str, checksum: str) -> str:
    """Return the state of a script under whose number the history has a name and checksum."""
    if name == recorded and not checksum or _checksum(folder, name) == checksum:
        return "applied"  # under another name it is the same script, renamed
    return "edited" if name == recorded else "conflict"


def _checksum(folder: str, name: str) -> str:
    try:
        return _Reading(_Script(folder, 0, name)).read_to_end()
    except _ScriptFailed as error:
        raise MigrationError(f"{error.script.path}: {error.what}. {error.remedy}, then run this "
                             "again.") from None


def _checksum_or_none(folder: str, name: str) -> str:
    """Return the checksum of a script, "" if it cannot be read."""
    try:
        return _checksum(folder, name)
    except MigrationError:
        return ""


# -------------------------------------------------------------- what is wrong with it


def _refuse_twins_for(database: _Database, listing: _Listing) -> None:
    """Raise MigrationError if two scripts have one number; it says which of them ran."""
    if listing.twins:
        version, states = database.read(lambda connection, version: _read_states(
            connection, version, listing, database.name, thorough=True))
        findings = _Findings(states, listing, version, database, False, of_directory=True)
        raise MigrationError("\n".join(findings.refusals), version=version)


class _Findings:
    """The problems of a migrations directory, compared with the history of one database."""

    def __init__(self, states: list[_State], listing: _Listing, version: int,
                 database: _Database, several: bool, of_directory: bool,
                 to: int = MAX_VERSION) -> None:
        """Find the problems.

        Args:
            to: the last version that the run is to reach.
            several: this is one of several databases. Suggest no new names, because a script
                that never ran here may have run on another one.
            of_directory: report problems of the directory itself too.
        """
        db, program = database.name, _program_for(database.path_as_given, listing.folder)
        renumbered = _find_renumbered(states, listing)
        below = [each.name for each in states if each.is_there
                 and each.number < listing.squashed_version]
        # Any of the refusals stops the run.
        self.refusals = _describe_renumbered(renumbered, states, listing, db, program, to)

        def is_open(each: _State) -> bool:
            """Return whether nothing else explains this state."""
            if each.row[0] in renumbered.values() and (each.state == "missing" or self.refusals):
                return False
            return each.name not in renumbered and each.name not in below

        remaining = list(filter(is_open, states))
        self.never_run = [each.name for each in remaining  # they need other numbers
                          if each.state in ("late", "conflict")]
        ran = {each.name: [db] for each in states if each.has_run}
        new_names = {} if several else _propose_names(self.never_run, ran, listing, version)
        self.warnings = _describe_states(
            [each for each in remaining if each.number not in listing.twins],
            listing, version, db, program, new_names)
        if renumbered and not self.refusals:
            names, olds = [*renumbered], [*renumbered.values()]
            self.warnings.append(
                f"{_cut(names)}: already applied to {db}, as {_cut(olds)}. Restore the old name"
                + _move_commands(names, {} if several else renumbered, listing.folder))
        if below:
            squashed = listing.names[listing.squashed_version]
            self.warnings.append(
                f"{_cut(below)}: below {squashed}, which replaced the scripts up to its number. "
                "Delete what it replaced, and give what is new a number above the latest.")
        if of_directory:
            self.refusals += _describe_twins(listing, ran, new_names)
            self.warnings += [_describe_ignored(listing)] if listing.ignored else []


def _find_renumbered(states: list[_State], listing: _Listing) -> dict[str, str]:
    """Return {name now: name when it ran} of the scripts in the directory that ran under another
    number. They are known by their description and checksum; the name that the history has is
    no longer there, or in a folder that a squash has made."""
    there = {each.name for each in states if each.is_there}
    if any(each.state == "squashed" for each in states):
        there.update(*(os.listdir(os.path.join(listing.folder, name))
                       for name in os.listdir(listing.folder)
                       if name[:7] == "before-" and name[7:].isdecimal()))
    gone = {}
    for each in states:
        is_renamed = each.is_there and each.has_run and each.number != listing.squashed_version
        if each.row[0] and each.row[0] not in there and not is_renamed:
            gone[each.row[0][4:], each.row[1]] = each.row[0]
    words = {description for description, _ in gone}
    renumbered: dict[str, str] = {}
    for each in states:
        if each.state in ("pending", "late", "conflict") and each.name[4:] in words:
            checksum = _checksum_or_none(listing.folder, each.name)
            old = gone.get((each.name[4:], checksum))
            if old and old not in renumbered.values() and not checksum.endswith("-0"):  # empty
                renumbered[each.name] = old
    return renumbered


def _describe_renumbered(renumbered: dict[str, str], states: list[_State], listing: _Listing,
                         db: str, program: str, to: int) -> list[str]:
    """Report the scripts that were renumbered after they had been applied, if one of them is
    pending, up to version `to`, and would run twice: one message, or none."""
    ran = [each for each in states if each.is_there and each.name in renumbered]
    if all(each.state != "pending" or each.number > to for each in ran):
        return []
    last = ran[-1].number
    before = min(each.number for each in states if each.row[0] in renumbered.values())
    lacking = [each for each in states if each.state in ("pending", "late", "conflict")
               and each.name not in renumbered and each.number < last]
    first, end = ((lacking[0].number, lacking[-1].number) if lacking else (last, 0))
    base = min(first, before) - 1  # the history forgets what is above it
    between = [each for each in states if each.is_there and base < each.number <= end]
    ways = []
    if between == lacking and end < ran[0].number and base >= listing.squashed_version:
        # Nothing but the lacking scripts runs between the two versions that are set.
        why = (f"run {_cut([each.name for each in lacking])} alone, which {db} lacks"
               if lacking else "let it count as applied under its new number")
        steps = [f"--set-version {base}", *([f"--to {end}"] if lacking else []),
                 f"--set-version {last}"]
        ways.append(f"{why}:" + " &&".join(f"\n    {program} {step}" for step in steps))
        if not lacking:
            ways.append("restore the old name" + _move_commands(
                [each.name for each in ran], renumbered, listing.folder))
    if lacking or not ways:
        ways.append(f"restore a backup of {db} from before version {before}, or create {db} anew")
    ways.append("add a comment to the script, if it has to run again")
    what = "; ".join(f"{each.name} is already applied to {db}, as {renumbered[each.name]}"
                     for each in ran)
    return ["\n- ".join([
        f"{what}. Nothing is run, or it would be applied twice. Do one of these:", *ways])]


def _propose_names(never_run: Iterable[str], ran: Container[str], listing: _Listing,
                  version: int) -> dict[str, str]:
    """Return {name: new name}, with the next free numbers, for the scripts that need another
    number and are not in `ran`. If none of the scripts that share a number ran, the first of
    them keeps it."""
    names = {name for name in never_run if name not in ran}
    for twins in listing.twins.values():
        names.update(name for name in twins if name not in ran)
        if names.issuperset(twins):
            names.discard(twins[0])
    free = range(max(version, listing.latest) + 1, MAX_VERSION + 1)
    return {name: f"{number:04d}{name[4:]}" for number, name in zip(free, sorted(names))}


PROBLEMS = {  # what a state of scripts means to a person, and what to do
    "late": "{names}: never run on {db}, which was already at a higher version. Unless production "
            "has it, renumber it above the latest script{move}",
    "conflict": "{names}: never run on {db}, where {others} ran under the same number. If an "
                "applied script was both renamed and edited, restore its name, run {program} "
                "--accept, then rename it again. Else, unless production has it, give the new "
                "script the next free number{move}",
    "edited": "{names}: edited since applied to {db}, which does not have the change. Undo the "
              "edit, and put the change into a new migration. If {db} needs no change (after an "
              "edit of a comment, say), run {program} --accept instead.",
    "missing": "{names}: applied to {db}, but not in {folder} any more. Put back what is missing, "
               "because a new database would be built without it, or run {program} --accept.",
}


def _describe_states(states: list[_State], listing: _Listing, version: int, db: str,
                     program: str, new_names: dict[str, str]) -> list[str]:
    """Return one message for each kind of difference between directory and history."""
    folder, latest, texts = listing.folder, listing.latest, []
    if version > latest:
        texts.append(f"{db} is at version {version}, newer than the scripts in {folder}, which "
                     f"end at {latest}. Use the release of the application that has the others, or "
                     "put them back.")
    for kind, text in PROBLEMS.items():
        found = [each for each in states
                 if each.state == kind and (kind != "missing" or each.number < latest)]
        if found:
            names, others = [each.name for each in found], [each.row[0] for each in found]
            texts.append(text.format(names=_cut(names), others=_cut(others), db=db, folder=folder,
                                     program=program,
                                     move=_move_commands(names, new_names, folder)))
    return texts


# -------------------------------------------------------------- writing it


def _record(connection: sqlite3.Connection, version: int, done: list[_Applied],
            listing: _Listing, broken: Iterable[str]) -> None:
    """Record the scripts in `done`, which were applied to a database at `version`. Also record
    the scripts up to `version` that count as applied and have no row yet. `broken` names what
    was broken before the first script, so that --check does not blame the scripts for it."""
    connection.execute(CREATE_HISTORY)
    # Another tool may have lowered the version and left the rows above it.
    connection.execute(DELETE_HISTORY, (version + 1, MAX_VERSION)).fetchall()
    now = _utc()
    rows = [(applied.script.version, applied.script.name, applied.checksum, now)
            for applied in done]
    if broken:
        rows.append((0, "", "\n".join(broken), now))
    is_recorded = connection.execute(
        "SELECT 1 FROM main._migration_history WHERE version = ?", (version,)).fetchall()
    if version and not is_recorded:
        if version not in listing.names:
            rows.append((version, "", "", now))
        rows += [(each.number, each.name, _checksum_or_none(listing.folder, each.name), "")
                 for each in _read_states(connection, version, listing, "the database",
                                          thorough=True)
                 if each.state == "applied" and each.row == NO_ROW]
    connection.executemany(INSERT_HISTORY, rows)


def _forget(connection: sqlite3.Connection, version: int, db: str) -> None:
    """Remove the scripts above a version from the history, if there is one."""
    if _read_history(connection, MAX_VERSION, db):
        connection.execute(DELETE_HISTORY, (version + 1, MAX_VERSION))


def _accept_edits(database: _Database, folder: str) -> list[str]:
    """Record the applied scripts as they are now, and those that were deleted as gone; return the
    names of those whose record has changed. Scripts that never ran are not recorded, so they stay
    pending, late or in conflict."""
    accepted: list[str] = []
    listing = _scan(folder)
    _refuse_twins_for(database, listing)
    with database.explained(), database.writing() as connection:
        version = _read_version(connection, database.name)
        if not connection.execute(HAS_HISTORY).fetchall():
            _record(connection, version, [], listing, _broken_in(
                _select_objects(connection)))
        states = _read_states(connection, version, listing, database.name, thorough=True)
        renumbered = _find_renumbered(states, listing).values()  # the names of before
        for each in states:
            number, name, row = each.number, each.name, each.row
            if listing.squashed_version == number and row[0] not in ("", name):
                continue  # this database ran the scripts that the squashed one replaced
            if each.has_run:
                new = name, _checksum(folder, name)
            elif each.state == "missing" and number < listing.latest and name not in renumbered:
                new = name, ""
            else:
                continue  # it never ran, or is one of a newer release, or will be renamed back
            if number < min(version, *listing.names):  # nothing below it can be late
                connection.execute(DELETE_HISTORY, (number, number))
            elif row[:2] != new:
                connection.execute(INSERT_HISTORY, (number, *new, row[2]))
            else:
                continue
            accepted.append(name)
        database.commit(connection)
    return accepted


# -------------------------------------------------------------- status


def _status(database: _Database, folder: str, listing: _Listing | None = None,
            several: bool = False) -> dict[str, Any]:
    """Return what status() returns. A caller that passes a `listing` has already reported the
    problems of the directory itself, so they are left out."""
    found = listing or _scan_for(database, folder)

    def read(connection: sqlite3.Connection, version: int) -> tuple[Any, ...]:
        return (_read_states(connection, version, found, database.name, thorough=True),
                _squash_refusal(connection, version, MAX_VERSION, found, database.name),
                *_broken_and_known(connection))

    version, (states, refusal, broken, known) = database.read(read, unenforced=True)
    findings = _Findings(states, found, version, database, several, not listing)
    described = {name: _describe_broken(name, reason, f"in {database.name}")
                 for name, (reason, _) in broken.items()}
    return {
        "db": database.path_as_given, "version": version, "latest": found.latest,
        "migrations": [{"version": each.number, "name": each.name, "state": each.state,
                        "applied_at": each.applied_at}
                       for each in states if each.state != "squashed"],
        "blocked": bool(refusal or findings.refusals),
        "problems": [*([refusal] if refusal else []), *findings.refusals, *findings.warnings,
                     *(text for name, text in described.items() if name not in known)],
        "warnings": [*(text for name, text in described.items() if name in known),
                     *([] if several else _describe_copies(database))]}


def _describe_copies(database: _Database) -> list[str]:
    """Report the working copies beside the database."""
    folder = os.path.dirname(database.path_as_given)
    return [f"{os.path.join(folder, os.path.basename(path))} is the working copy of a run that is "
            "at work, or was killed: the next run that has a script to run on a copy removes it"
            for path in database.find_copies() if not path.endswith(("-journal", "-wal", "-shm"))]


# ------------------------------------------------------------------ the database file


SELECT_META = "SELECT id, version FROM main._meta LIMIT 2"
IS_PYPY = sys.implementation.name == "pypy"
TEXT = bytes.decode if IS_PYPY else str  # the usual text_factory; PyPy shows b'...' by str


class _closing:
    """Close a connection on exit, which rolls back what was not committed. (contextlib.closing
    would do that too, but its import takes some milliseconds at every start.)"""

    def __init__(self, connection: sqlite3.Connection,
                 close: Callable[[], None] | None = None) -> None:
        self.connection = connection
        self._close = close or connection.close

    def __enter__(self) -> sqlite3.Connection:
        return self.connection

    def __exit__(self, *details: object) -> None:
        self._close()


class _Database:
    """A database file: how it is opened, read, locked and copied."""

    def __init__(self, path: StrPath, timeout: float = 30.0,
                 connect: Connect = sqlite3.connect, report: _Report | None = None,
                 durable: bool = True) -> None:
        self.path_as_given = os.fsdecode(path)
        self.name = self.path_as_given  # as messages call it
        _check_path(self.path_as_given)
        if not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise MigrationError(f"timeout={timeout!r} is not a number of seconds. Nothing was "
                                 "changed.")
        try:
            # Absolute, so that SQLite takes it for no URI. Not by abspath(), which resolves the
            # .. of link/../app.db without looking where the link leads.
            self.path = self.path_as_given if os.path.isabs(self.path_as_given) else (
                os.path.join(os.getcwd(), self.path_as_given))
        except FileNotFoundError:
            raise _MissingError("the working directory does not exist any more. Change to one "
                                "that does, then run this again.") from None
        self.timeout = timeout
        self.connect = connect
        self.report = report or _Report()
        self.errors: tuple[type[Exception], ...] = (sqlite3.Error,)
        self._durable = durable  # must outlive a power cut

    # -------------------------------------------------------------- connections

    def open(self, path: str = "") -> sqlite3.Connection:
        """Connect to the database, or to a copy of it. With isolation_level None, the sqlite3
        module begins no transaction behind our back."""
        if self.connect is sqlite3.connect and self._durable:
            return sqlite3.connect(path or self.path, timeout=0.1, isolation_level=None)
        tries: list[str] = []

        def connect() -> sqlite3.Connection:
            if tries:  # a connection that `connect` left open when it failed keeps its lock
                import gc
                gc.collect()
            tries.append(path)
            return self._connect(path)

        opened: sqlite3.Connection = self.retry_while_locked(connect)
        return opened

    def open_at_once(self) -> sqlite3.Connection:
        """Connect to the database; raise if it is locked in a way that matters for that."""
        if self.connect is sqlite3.connect and self._durable:
            return self.open()
        return self._connect("")

    def _connect(self, path: str) -> sqlite3.Connection:
        """Connect by the application's function, and undo its settings that matter. Its PRAGMAs
        and ours read the database, so a lock can stop them."""
        try:
            connection: Any = self.connect(path or self.path)
        except sqlite3.Error as error:
            if "not authorized" not in str(error):
                raise
            raise MigrationError(f"connect() failed: {error}. Nothing was changed. To load an "
                                 "extension, it has to call enable_load_extension(True) first."
                                 ) from error
        self._check_driver(connection)
        if IS_PYPY:  # a statement that `connect` left unfinished runs until it is collected
            import gc
            gc.collect()
        self.errors = (sqlite3.Error, connection.Error)  # a driver may have its own
        if getattr(connection, "autocommit", -1) != -1:
            connection.autocommit = -1  # LEGACY_TRANSACTION_CONTROL
        try:
            connection.isolation_level = None
            connection.row_factory = None
            connection.text_factory = TEXT
            for pragma in ("busy_timeout = 100", "locking_mode = NORMAL", "count_changes = OFF",
                           f"synchronous = {'FULL' if self._durable else 'OFF'}"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
        except BaseException:
            connection.close()
            raise
        opened: sqlite3.Connection = connection
        return opened

    def _check_driver(self, connection: object) -> None:
        lacks = [name for name in ("backup", "executescript", "isolation_level",
                                   "set_authorizer", "set_progress_handler", "Error")
                 if not hasattr(connection, name)]
        if lacks:
            kind = type(connection)
            raise MigrationError(
                f"connect() returned a {kind.__module__}.{kind.__qualname__}, which has no "
                f"{lacks[0]}. Nothing was changed. Return a connection of the sqlite3 module, "
                "or of a driver with the same interface, such as sqlcipher3.")

    def writing(self) -> _closing:
        """Return a context with a new connection, in a transaction that holds the write lock."""
        self.must_exist()
        connection = self.open()
        try:
            self.prepare_for_writing(connection)
            self.begin(connection)
            return _closing(connection)
        except BaseException:
            connection.close()
            raise

    def read(self, also: Reader = lambda connection, version: None,
             unenforced: bool = False) -> tuple[int, Any]:
        """Return (version, also(connection, version)), both read in one read transaction; if
        `unenforced`, by a connection with foreign keys off. Takes no lock that blocks a writer.

        Raises: as get_db_version().
        """
        self.must_exist()

        def read() -> tuple[int, Any]:
            connection = self.open()
            if unenforced:
                connection.execute("PRAGMA foreign_keys = OFF").fetchall()
            return self._read(connection, also)

        try:
            found: tuple[int, Any] = self.retry_while_locked(read)
            return found
        except self.errors + (MemoryError,) as error:
            if "readonly" in str(error) or "unable to open" in str(error):
                return self._read_immutable(also, error)
            raise self.explain(error) from error

    def _read(self, connection: sqlite3.Connection, also: Reader) -> tuple[int, Any]:
        with _closing(connection):
            connection.execute("BEGIN")  # all of it is one state, and locked once
            version = _read_version(connection, self.name)
            return version, also(connection, version)

    def _read_immutable(self, also: Reader, error: Exception) -> tuple[int, Any]:
        """Read a database in WAL mode in a directory in which this user cannot write. SQLite
        opens it only with immutable=1, and then ignores the log: so there must not be one."""
        real = os.path.realpath(self.path)
        if (self.connect is not sqlite3.connect or os.access(os.path.dirname(real), os.W_OK)
                or os.path.exists(real + "-wal")):
            raise self.explain(error) from error
        from pathlib import PurePath
        with self.explained():
            uri = _uri(PurePath(self.path)) + "?immutable=1"
            return self._read(sqlite3.connect(uri, uri=True), also)

    def must_exist(self) -> None:
        """Raise FileNotFoundError if there is no file, so that SQLite creates none."""
        try:
            mode = os.stat(self.path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise _MissingError(
                f"there is no database {self.name}. To create it, call ensure_versioned_db(), or "
                "run fastmigrate with --createdb. Name another database with --db.") from None
        except OSError as error:
            raise self.explain(error) from error
        if mode >> 12 == 4:
            raise MigrationError(f"{self.name} is a directory, not a database. Name the "
                                 "database file.")

    def working_copy(self, label: str, tick: Callable[[], None]) -> _WorkingCopy:
        """Return a working copy of the database; `label` is a part of its name."""
        return _WorkingCopy(self, label, tick)

    # -------------------------------------------------------------- errors and waiting

    def explained(self, changes: bool = False) -> _Explained:
        """Return a context that turns errors of SQLite and of the system into MigrationError.
        With `changes`, the code in it may change the database, so the message tells the version.
        """
        return _Explained(self, changes)

    def explain(self, error: BaseException, state: str = "Nothing was changed.") -> MigrationError:
        """Return a MigrationError for an error of SQLite or of the system."""
        return _explain(error, self.name, self.errors, state)

    def standing(self) -> str:
        """Return a sentence on where the database stands now."""
        if not os.path.exists(self.path):
            return "Nothing was changed."
        try:
            return f"{self.name} is at version {self.read()[0]}."
        except (sqlite3.Error, OSError) as error:
            return self.unreadable(error)

    def unreadable(self, error: Exception) -> str:
        """Return a sentence on why the version cannot be read."""
        reason = _reason(error.__cause__ or error, self.name, self.errors)
        return f"The version of {self.name} cannot be read now: {reason}."

    def standing_after(self, script: _Script, version: int) -> str:
        """Return a sentence on where the database stands after a script failed."""
        if version < script.version:
            return f"{self.name} is still at version {version}; the script was rolled back."
        return f"{self.name} is at version {version}: the script is applied all the same."

    def retry_while_locked(self, act: Callable[[], Any]) -> Any:
        """Call `act`, again and again while the database is locked; return its result.

        Raises: MigrationError if the lock outlasts the timeout.
        """
        wait: _Wait | None = None
        while True:
            try:
                return act()
            except self.errors as error:
                if not _is_locked(error):
                    raise
            wait = wait or _Wait(self)
            wait.pause()

    def execute_patiently(self, connection: sqlite3.Connection, statement: str) -> None:
        """Execute a statement outside of our transactions; wait while the database is locked."""
        self.retry_while_locked(lambda: connection.execute(statement).fetchall())

    def prepare_for_writing(self, connection: sqlite3.Connection) -> str:
        """Prepare a connection to the database for changes; return its journal mode."""
        return str(self.retry_while_locked(  # to read the mode takes a lock
            lambda: _prepare_for_writing(connection, self._durable)))

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a transaction that holds the write lock from its first moment. (A transaction
        that begins with a read fails at its first write, without waiting, if another process
        has written in between.)"""
        self.retry_while_locked(lambda: connection.execute("BEGIN IMMEDIATE"))

    def commit(self, connection: sqlite3.Connection) -> None:
        """Commit as soon as all readers have finished. COMMIT is tried in short turns, so that
        Ctrl-C gets through. Between two turns, the transaction keeps its lock."""
        self.retry_while_locked(lambda: connection.execute("COMMIT"))

    def find_copies(self) -> list[str]:
        """Return the paths of the working copies beside the database."""
        import re
        found = []
        beside_link = os.path.realpath(os.path.dirname(self.path)), os.path.basename(self.path)
        # A backup lies beside the link. Each file has one spelling here.
        for folder, name in {os.path.split(os.path.realpath(self.path)), beside_link}:
            pattern = re.compile(re.escape(name) + WORKING_COPY)
            try:
                found += [os.path.join(folder, other) for other in os.listdir(folder)
                          if pattern.fullmatch(other)]
            except OSError:
                pass  # a directory that this user may enter, and not list
        return sorted(found)

    # -------------------------------------------------------------- changing by hand

    def create(self) -> bool:
        """Create the database at version 0, unless it exists. Return whether this call did it.

        It is laid out in one transaction in the file at its path: of many processes that do
        this at once, one creates it, and the others wait for its lock. (To build it under
        another name and then link it would need hard links, which some file systems lack.)
        """
        real = os.path.realpath(self.path) if os.path.islink(self.path) else self.path
        with self.explained():
            os.makedirs(os.path.dirname(real), exist_ok=True)
            with _closing(self.open()) as connection:
                if self.connect is not sqlite3.connect:  # it may have turned the journal off
                    self.prepare_for_writing(connection)
                self.begin(connection)
                if not _is_empty(connection):
                    return False
                connection.execute(CREATE_META)
                connection.execute(INSERT_META, (0,)).fetchall()
                self.commit(connection)
                return True

    def is_missing(self) -> bool:
        """Return whether there is no database yet: no file, or one without any table, such
        as a file of 0 bytes."""
        try:
            if not os.path.getsize(self.path):
                return True
        except (FileNotFoundError, NotADirectoryError):
            return True
        try:
            self.read()
        except _EmptyError:
            return True
        except _LockedError:
            raise
        except (MigrationError, OSError):
            pass  # a database exists; the call that reads it next reports the error
        return False

    def set_version(self, version: int, only_unversioned: bool = False) -> None:
        """Set the version by hand, and delete the scripts above it from the history. If
        `only_unversioned`, a database that has a version stays as it is."""
        self.must_exist()
        with self.explained(), self.writing() as connection:
            trouble: Exception | None = None
            try:
                _read_version(connection, self.name)
                if only_unversioned:
                    return
            except UnversionedError:
                connection.execute(CREATE_META)
            except MigrationError as error:
                trouble = error  # a row that is missing or wrong can be set right
            try:
                if connection.execute(UPDATE_META, (version,)).rowcount != 1:
                    connection.execute(INSERT_META, (version,)).fetchall()
                _read_version(connection, self.name)
            except self.errors as error:
                raise trouble or error from None
            _forget(connection, version, self.name)
            self.commit(connection)

    # -------------------------------------------------------------- backups

    def back_up(self, ending: str = ".backup") -> str:
        """Copy the database to a backup beside it, named by the time; return its path."""
        self.must_exist()
        for attempt in range(3):
            new = f"{self.path}-copy-backup-{_unique()}"  # beside its final name, not a link's end
            try:
                _create_private(new, self.path, writable=True)
                self.copy_to(new, _identify(new))
                if not os.stat(self.path).st_mode & 0o200:
                    os.chmod(new, os.stat(new).st_mode & ~0o200)
                return self._place_backup(new, ending)
            except self.errors + (OSError,) as error:
                # If `new` is gone, another process, which was about to run a script on a copy,
                # took ours for a leftover and deleted it. Then try again.
                if os.path.exists(new) or attempt == 2:
                    raise MigrationError(f"no backup of {self.name} could be made: "
                                         f"{self.explain(error)}") from error
            finally:
                _remove_database(new)
        raise AssertionError("unreachable")

    def copy_to(self, path: str, made: tuple[int, int, int] | None = None) -> None:
        """Copy one state of the database into a new file, or into the empty one that was `made`
        at the path, and make it durable."""
        def step(status: int, remaining: int, total: int) -> None:
            if status & 0xFF in (SQLITE_BUSY, SQLITE_LOCKED):
                wait.pause()
            self.report.check_stop()
            self.report.progress(lambda: f"backup of {self.name}: "
                                 f"{100 * (total - remaining) // (total or 1)} %")

        wait = _Wait(self)
        with _closing(self.open()) as source, _closing(self.open(path)) as copy:
            if made and _identify(path) != made:  # SQLite created one that others may read
                _remove_database(path)
                raise FileNotFoundError(errno.ENOENT, "another process removed it", path)
            copy.execute("PRAGMA journal_mode = OFF").fetchall()  # nothing to roll back to
            copy.execute("PRAGMA synchronous = OFF").fetchall()  # it is synced when complete
            source.execute("BEGIN")  # one state from here on, whoever writes meanwhile
            self.retry_while_locked(
                lambda: source.execute("SELECT 1 FROM sqlite_master").fetchall())
            _copy_pages(source, copy, step)
        self.report.end_progress()
        if self._durable:
            _sync(path)

    def _place_backup(self, new: str, ending: str) -> str:
        """Rename a complete backup to its final name; return that. An empty file reserves the
        name first, because os.replace() would overwrite a backup that another process has just
        made. (A hard link would not, but some file systems have none.)"""
        stamp = _reserve_stamped_name(self.path, ending)
        try:
            os.replace(new, self.path + stamp)
        except BaseException:
            _remove(self.path + stamp)
            raise
        _sync(os.path.dirname(self.path))
        return self.path_as_given + stamp


def _prepare_for_writing(connection: sqlite3.Connection, durable: bool = True) -> str:
    """Prepare a connection for changes of ours or of a script; return its journal mode.

    Turn foreign keys off, because the rebuild of a table drops it, and with foreign keys on
    DROP TABLE may delete the rows that refer to it. They may be on because of the application's
    `connect`, or because SQLite was built that way. Put the journal on the disk, because SQLite
    cannot roll back after a crash without it.
    """
    connection.execute("PRAGMA foreign_keys = OFF").fetchall()
    if not durable:
        connection.execute("PRAGMA synchronous = OFF").fetchall()
    mode = _journal_mode(connection)
    return _journal_mode(connection, "DELETE") if durable and mode in WEAK_JOURNALS else mode


def _journal_mode(connection: sqlite3.Connection, wanted: str = "") -> str:
    """Set the journal mode if `wanted` is given. Return the mode that the database has now."""
    setting = f" = {wanted}" if wanted else ""
    return str(connection.execute(f"PRAGMA main.journal_mode{setting}").fetchall()[0][0])


def _is_in_wal(database: _Database) -> bool:
    """Return whether a database is known to be in WAL mode. A database that cannot be read now
    is not."""
    try:
        with _closing(database.open()) as connection:
            return _journal_mode(connection) == "wal"
    except database.errors:
        return False


def _check_path(path: str) -> None:
    """Refuse URLs and ":memory:". Other tools accept them, but here they would become the names
    of new files."""
    if path and "\0" not in path and path != ":memory:" and not path.lower().startswith(
            ("file:", "sqlite:", "sqlite3:")):
        return
    what = "For a database in memory, call build_db()." if path == ":memory:" else (
        "Give the path of its file, without a scheme: data/app.db")
    raise MigrationError(
        f"{path!r} is not the path of a database file. Nothing was changed. {what}")


# This query reads sqlite_master, because a script can delete _meta there with PRAGMA
# writable_schema. Its own connection still finds the table, but no later one does.
HAS_META = "SELECT 1 FROM main.sqlite_master WHERE name = '_meta' COLLATE NOCASE"


def _is_empty(connection: sqlite3.Connection) -> bool:
    """Return whether a database has no table, view or anything else."""
    return not connection.execute("SELECT 1 FROM main.sqlite_master LIMIT 1").fetchall()


# -------------------------------------------------------------- the sqlite3 module


def _copy_pages(source: sqlite3.Connection, target: sqlite3.Connection,
                progress: Callable[[int, int, int], None] | None = None,
                pages: int = BACKUP_PAGES) -> None:
    """Copy a database over another. `progress` is called after each step of so many pages. If
    its status is SQLITE_BUSY or SQLITE_LOCKED, it must wait for a moment or raise, because the
    backup tries again at once."""
    try:
        source.backup(target, pages=pages, progress=progress, sleep=0)
    except AttributeError:  # PyPy fails to build its error
        raise target._get_exception() from None  # type: ignore[attr-defined]


def _as_authorizer(authorize: Callable[..., int]) -> Callable[..., int]:
    """Return what set_authorizer() takes. On PyPy, which passes C strings, that is a wrapper."""
    if not IS_PYPY:
        return authorize
    from _sqlite3_cffi import ffi  # type: ignore[import-not-found]

    def with_texts(action: int, *details: Any) -> int:
        try:
            return authorize(action, *(ffi.string(text).decode() if text else None
                                       for text in details))
        except BaseException:  # PyPy would print the exception, and allow the action
            return sqlite3.SQLITE_DENY
    return with_texts


def _as_progress_handler(tick: Callable[[], None]) -> Callable[[], Any]:
    """Return what set_progress_handler() takes. An exception in `tick` has to interrupt the
    statement. PyPy would print the exception and go on, so there the wrapper returns True."""
    if not IS_PYPY:
        return tick

    def interrupts() -> bool:
        try:
            tick()
            return False
        except BaseException:
            return True
    return interrupts


class _MemoryDatabase(_Database):
    """A database in memory, which no other process sees: nothing is locked, and nothing
    outlives this process. Scripts that need a file get one in a temporary directory."""

    def __init__(self, connect: Connect, report: _Report | None = None) -> None:
        super().__init__("memory", connect=connect, report=report, durable=False)
        self.name = "the database in memory"
        self.connection = self.open()
        self.connection.executescript(f"{CREATE_META}; INSERT INTO _meta VALUES (1, 0);")
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def open(self, path: str = "") -> sqlite3.Connection:
        """Connect to a new, empty database in memory, or to a working copy."""
        return super().open(path or ":memory:")

    def open_at_once(self) -> sqlite3.Connection:
        return self.open()

    def __enter__(self) -> _MemoryDatabase:
        return self

    def __exit__(self, *details: object) -> None:
        self.connection.close()
        if self._folder:
            self._folder.cleanup()

    def replay(self, migrations_dir: StrPath, to: int | None = None) -> None:
        """Run the scripts up to a version."""
        _replay(self, migrations_dir, to)

    def standing_after(self, script: _Script, version: int) -> str:
        return "This was a trial in a scratch database: nothing was changed."

    def must_exist(self) -> None:
        """It does."""

    def find_copies(self) -> list[str]:
        return []

    def read(self, also: Reader = lambda connection, version: None,
             unenforced: bool = False) -> tuple[int, Any]:
        version = _read_version(self.connection, self.name)
        return version, also(self.connection, version)

    def writing(self) -> _closing:
        _prepare_for_writing(self.connection, durable=False)
        self.connection.execute("BEGIN")
        return _closing(self.connection, self.renew)

    def renew(self, source: sqlite3.Connection | None = None) -> None:
        """Copy the database, or another one, to a new connection, and close the old one: to get
        rid of the temporary tables, attached databases and settings that a script left in it,
        and because the page size of a database in memory cannot change."""
        old, self.connection = self.connection, self.open()
        if old.in_transaction:
            old.execute("ROLLBACK")
        old.set_authorizer(lambda *details: sqlite3.SQLITE_OK)
        _copy_pages(source or old, self.connection)
        old.close()

    def working_copy(self, label: str, tick: Callable[[], None]) -> _WorkingCopy:
        import tempfile
        if not self._folder:
            self._folder = tempfile.TemporaryDirectory(prefix="fastmigrate-")
        return _MemoryCopy(self, os.path.join(self._folder.name, f"scratch.db-{label}"), tick)


class _LockedError(MigrationError):
    """Another connection has held the database for longer than the timeout."""

    remedy = "Wait for it to finish, or raise timeout=, or --timeout"

    def __init__(self, who: str, state: str = "Nothing was changed.") -> None:
        super().__init__(f"database is locked: {who}. {state} {self.remedy}, then run this again.")
        self.who = who


class _Wait:
    """One wait for a lock that another connection holds. It warns once, and raises when the
    time is up. If the version changes or another script runs, the other process is making
    progress: then the time begins anew, and the next warning is due."""

    def __init__(self, database: _Database) -> None:
        self._database = database
        self._since = self._looked = time.monotonic()
        self._reported = False
        self._seen: tuple[str, object] | None = None  # who held it, and the version

    def pause(self) -> None:
        """Wait for a moment; raise MigrationError if the time is up."""
        database, now = self._database, time.monotonic()
        database.report.check_stop()
        if now - self._looked > min(0.5, database.timeout) or now - self._since > database.timeout:
            self._looked = now
            seen = self._look()
            if self._seen is not None and seen != self._seen:
                self._since, self._reported = now, False
            self._seen = seen
        waited = now - self._since
        holder = self._seen[0] if self._seen else "another connection"
        if waited >= database.timeout:
            raise _LockedError(f"{holder} has held {database.name} for more than "
                               f"{database.timeout:g} s")
        if waited > 0.5 and not self._reported:
            self._reported = True
            database.report.warn(f"waiting up to {database.timeout:g} s: {holder} holds "
                                 f"{database.name}")
        time.sleep(POLL_SECONDS * (0.5 + os.urandom(1)[0] / 256))  # not in step with others

    def _look(self) -> tuple[str, object]:
        database = self._database
        version = None
        try:
            with _closing(database.open_at_once()) as connection:
                version = connection.execute(SELECT_META).fetchall()
        except database.errors:
            pass
        holder = "another connection"
        for path in database.find_copies():
            number, process = path.rpartition("-copy-")[2].split("-")[:2]
            if number.isdecimal() and process != str(os.getpid()):
                holder = f"process {process}, which runs the script {number},"
        return holder, version


def _uri(path: PurePath) -> str:
    """Return the URI of a file as SQLite reads it. SQLite rejects a host name in a URI, so a
    Windows share \\\\host\\dir becomes file:////host/dir."""
    from urllib.parse import quote
    text = path.as_posix()
    return "file://" + "/" * (text[:1] != "/") + quote(os.fsencode(text), safe="/:")


def _is_damage(error: BaseException | None) -> bool:
    return any(sign in str(error) for sign in ("not a database", "malformed"))


def _is_locked(error: BaseException) -> bool:
    """Return whether SQLite failed because of a lock, so that it makes sense to try again. (The
    text of a _LockedError begins alike, but then the time is up.)"""
    return not isinstance(error, MigrationError) and str(error).startswith((
        "database is locked", "database table is locked", "database schema is locked",
        "locking protocol"))


def _read_version(connection: sqlite3.Connection, name: str) -> int:
    """Return the version that `_meta` holds; raise MigrationError if it holds none."""
    try:
        rows = connection.execute(SELECT_META).fetchall()
    except connection.OperationalError as error:
        if "no such table" in str(error):
            if _is_empty(connection):
                raise _EmptyError(
                    f"{name} is empty. To make it a database at version 0, call "
                    "ensure_versioned_db(), or run fastmigrate with --createdb.") from None
            raise UnversionedError(
                f"{name} is unversioned: it has no table _meta. Put it under management with "
                "enroll_db() or --enroll, or with set_db_version() or --set-version if you "
                "know its version.") from None
        if "no such column" in str(error):
            raise MigrationError(
                f"{name} has a table _meta that is not fastmigrate's ({error}). Rename it: "
                "the version of the database is kept in a table of this name.") from None
        raise
    if len(rows) == 1 and rows[0][0] == 1 and type(rows[0][1]) is int and rows[0][1] >= 0:
        return int(rows[0][1])
    held = ", ".join(repr(row) for row in rows) or "no row"
    can_be_set = not rows or len(rows) == 1 and rows[0][0] == 1
    remedy = ("Set the version with set_db_version() or --set-version if you know it."
              if can_be_set else "Delete its other rows, or rename it if it is not fastmigrate's.")
    raise MigrationError(f"{name} has a damaged table _meta: it must hold one row, (1, version), "
                         f"and holds {held}. {remedy}")


# -------------------------------------------------------------- restoring


def _restore(database: _Database, backup: str) -> int:
    """Replace the content of the database by that of a backup; return its version.

    The locks and the steps are those of a script on a working copy (see _WorkingCopy). The old
    content is kept beside the database, in a file with the ending .before-restore.
    """
    source = _Database(backup, database.timeout, database.connect, database.report)
    if not os.path.exists(source.path):
        raise _MissingError(f"there is no backup {backup}. Nothing was changed.")
    if os.path.isdir(source.path):
        raise MigrationError(f"{backup} is a directory, not a backup. Nothing was changed. Name "
                             "the file of a backup.")
    if os.path.exists(database.path) and os.path.samefile(source.path, database.path):
        raise MigrationError(f"{backup} is the database itself. Nothing was changed. Name a "
                             "backup of it.")
    if os.path.isdir(database.path):
        database.must_exist()  # which says so
    version, kept, aside = _read_sound_version(source), list[str](), ""
    with database.explained(changes=True):
        created = not os.path.exists(database.path)
        try:
            if created:
                real = os.path.realpath(database.path)
                os.makedirs(os.path.dirname(real), exist_ok=True)
                _create_private(real, source.path, writable=True)
            elif os.path.getsize(database.path) and _is_unreadable(database):
                with _closing(_lock_unreadable(database)):
                    aside = _keep_bytes(database)
                    # By name, because closing a descriptor would drop this process's locks.
                    os.truncate(database.path, 0)
                _remove(*(database.path + end for end in ("-journal", "-wal", "-shm")))
            _leave_wal_for(database, source)
            copy = database.working_copy("restore", lambda: None)

            def work(reader: sqlite3.Connection) -> int:
                copy.remove_leftovers()
                if not _is_empty(reader):
                    kept.append(database.back_up(".before-restore"))
                with _closing(source.open()) as backed_up:
                    copy.fill_from(backed_up)
                return version

            copy.replace_database(work)
        except _CopyRejected as error:
            raise MigrationError(f"{backup} cannot replace {database.name} in WAL mode: {error}. "
                                 f"{database.standing()} Leave WAL mode, then run this again."
                                 ) from error
        except BaseException as error:
            if isinstance(error, _LockedError):  # nothing was replaced: nothing needs to be kept
                _remove(*kept)
                kept.clear()
            if created:
                _remove_if_empty(database)
            if aside and database.is_missing():
                _put_back(database.path, database.path + aside)
                aside = ""
            raise
        finally:
            for path in (*kept, *([database.path_as_given + aside] if aside else ())):
                database.report.result(f"What {database.name} held is kept in {path}")
        return version


def _remove_if_empty(database: _Database) -> None:
    """Remove a database without any table, unless another process has begun to use it."""
    try:
        with _closing(database.open()) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            if _is_empty(connection):
                _remove_database(database.path)
    except database.errors:
        pass


def _is_unreadable(database: _Database) -> bool:
    """Return whether SQLite cannot read the database: it is damaged, or encrypted with a key that
    we were not given."""
    try:
        with _closing(database.open()) as connection:
            connection.execute("SELECT 1 FROM sqlite_master").fetchall()
    except database.errors as error:
        return _is_damage(error)  # the next write fails with any other, and reports it
    return False


def _lock_unreadable(database: _Database) -> sqlite3.Connection:
    """Return a connection that keeps others, who may be able to read what we cannot, from
    writing, as far as it can be locked. In WAL mode it must not be, because the end of the
    connection would empty the log into the file."""
    connection = database.open()
    try:
        if not os.path.exists(database.path + "-wal"):
            database.retry_while_locked(lambda: connection.execute("BEGIN EXCLUSIVE"))
    except _LockedError:
        connection.close()
        raise
    except database.errors:
        pass  # it is so damaged that it cannot even be locked
    return connection


def _keep_bytes(database: _Database) -> str:
    """Copy a database and its log byte for byte to a file that ends in .before-restore. Return
    what the name of that has beyond that of the database."""
    kept = _reserve_stamped_name(database.path, ".before-restore")
    try:
        for end in ("", "-wal"):
            if os.path.exists(database.path + end):
                if end:
                    _create_private(database.path + kept + end, database.path)
                _copy_bytes(database.path + end, database.path + kept + end)
                _sync(database.path + kept + end)
        _sync(os.path.dirname(database.path))
    except BaseException:
        _remove(database.path + kept, database.path + kept + "-wal")
        raise
    return kept


def _put_back(path: str, kept: str) -> None:
    """Fill a database that was emptied with what _keep_bytes() has kept, and remove that. It is
    still the same file, which others may have open and links may lead to."""
    _remove(*(path + end for end in ("-journal", "-wal", "-shm")))
    for end in ("-wal", ""):
        if os.path.exists(kept + end):
            _copy_bytes(kept + end, path + end)
            _sync(path + end)
    _remove(kept, kept + "-wal")


def _leave_wal_for(database: _Database, source: _Database) -> None:
    """Leave WAL mode if the backup has another page size, which SQLite does not change in WAL
    mode; raise if that fails. Leave it also if the backup is not in WAL mode, but ignore a
    failure then, because the restore works without it."""
    with _closing(source.open()) as backup:
        mode = _journal_mode(backup)
        size = backup.execute("PRAGMA page_size").fetchall()
    with _closing(database.open()) as connection:
        if database.retry_while_locked(lambda: _journal_mode(connection)) != "wal":
            return
        sizes_differ = connection.execute("PRAGMA page_size").fetchall() != size
        try:
            if sizes_differ:
                database.retry_while_locked(lambda: _journal_mode(connection, "DELETE"))
            elif mode != "wal":
                _journal_mode(connection, "DELETE")
        except database.errors:
            if sizes_differ:
                raise


def _read_sound_version(source: _Database) -> int:
    """Return the version of a backup. Raise MigrationError if it is no database that can be
    restored."""
    def check(connection: sqlite3.Connection, version: int) -> None:
        try:
            damage = _find_damage(connection)
        except source.errors as error:
            if not str(error).startswith(("no such", "unknown function")):
                raise
            source.report.warn(f"{source.name} could not be checked to its end ({error}): give "
                               "a connect that provides it")
            return
        if damage:
            raise sqlite3.DatabaseError(f"database disk image is malformed: {damage}")

    try:
        return source.read(check)[0]
    except MigrationError as error:
        why = ("it is empty" if isinstance(error, _EmptyError)
               else "it has no version" if isinstance(error, UnversionedError)
               else _reason(error.__cause__ or error, source.name, source.errors))
        raise MigrationError(f"{source.name} is no backup to restore: {why}. Nothing was changed. "
                             "Name another one.") from error


def _find_damage(connection: sqlite3.Connection) -> str:
    """Return what is damaged in a database, "" if nothing is. A row that breaks a constraint
    of its table is no damage: scripts can put such rows in."""
    connection.execute("PRAGMA ignore_check_constraints = ON").fetchall()
    for line, in connection.execute("PRAGMA main.quick_check").fetchall():
        about_rows = line.startswith(("NULL value in", "CHECK constraint failed")) or (
            " value in " in line and not line.startswith("***"))
        if line != "ok" and not about_rows:
            return " ".join(str(line).split("\n")[:2])
    return ""


# -------------------------------------------------------------- files


def _create_private(path: str, like: str, writable: bool = False) -> None:
    """Create an empty file. No user can read it who cannot read the file `like`."""
    status = os.stat(like)
    mode = status.st_mode & 0o777 | (0o600 if writable else 0)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, mode & 0o600)
    try:
        if os.name == "posix":
            made = os.fstat(descriptor)
            for owner in (status.st_uid, -1):  # only root can change the owner too
                if (made.st_uid, made.st_gid) == (status.st_uid, status.st_gid):
                    break
                try:
                    os.fchown(descriptor, owner, status.st_gid)
                    break
                except OSError:
                    pass
            else:
                mode &= 0o707  # the file got another group, which must not read it
            if _has_access_list(like) or _has_access_list(path):
                mode &= 0o707  # with such a list, these bits are its mask, not the group's rights
            if os.fstat(descriptor).st_mode & 0o777 != mode:
                try:
                    os.fchmod(descriptor, mode)
                except OSError:
                    pass  # a file system without modes; what it has is what the database has
    except BaseException:
        _remove(path)
        raise
    finally:
        os.close(descriptor)


def _reserve_stamped_name(path: str, ending: str) -> str:
    """Create an empty, private file whose name is that of a database, the time, and an ending.
    Return what its name has beyond that of the database."""
    now = int(time.time())
    while True:
        stamp = time.strftime(".%Y%m%d_%H%M%S", time.localtime(now)) + ending
        try:
            _create_private(path + stamp, path)
            return stamp
        except FileExistsError:
            now += 1  # two in one second: this one takes the next


def _has_access_list(path: str) -> bool:
    """Return whether a file has a POSIX access control list."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except (OSError, AttributeError):
        return False


def _copy_bytes(source: str, target: str) -> None:
    """Copy a file as it is. The source is left open until the process ends: if it is a
    database, closing it would drop every lock that this process holds on it."""
    descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    with open(target, "wb") as file:
        while data := os.read(descriptor, BLOCK):
            file.write(data)


def _sync(path: str) -> None:
    """Make a file, or the names in a directory, survive a power cut."""
    folder = os.path.isdir(path)
    if folder and os.name == "nt":
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
        if sys.platform == "darwin":  # there, fsync() does not reach the disk
            import fcntl
            try:
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            except OSError:
                pass  # some file systems do not know that
    except OSError:
        if not folder:
            raise
    finally:
        os.close(descriptor)


def _remove(*paths: str) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _remove_database(path: str) -> None:
    """Remove a database with its -journal, -wal and -shm; ignore what cannot be removed. (On
    Windows a file that is open stays, and the next run tries again.)"""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil
        shutil.rmtree(path, ignore_errors=True)  # a script made a directory there
    for end in ("", "-journal", "-wal", "-shm"):
        try:
            os.unlink(path + end)
        except OSError:
            pass


# ------------------------------------------------------------------ processes


KILL_SECONDS = 0.5  # between asking a script to end and ending it


def _run_process(run: _Run, script: _Script, path: str) -> str:
    """Run a .py or .sh script until it, and all processes that it started, have exited. Return
    the last lines of its output, "" if the output was shown as it came.

    Raises: _ScriptFailed.
    """
    import subprocess
    report, command = run.database.report, _interpreter(script)
    posix = os.name == "posix"
    with _output_file(os.path.dirname(path)) as output:
        shown = None if report.shows_output else output
        # The script and its child processes inherit `held`, and write nothing to it. `alive` is
        # at end of file when the last of them has exited: that is what poll() waits for.
        alive, held = os.pipe()
        started: list[subprocess.Popen[bytes]] = []
        try:
            try:
                _start(started, [*command, path], stdin=subprocess.DEVNULL, stdout=shown,
                       stderr=shown, start_new_session=posix, env=_environment(run, script),
                       pass_fds=(held,) if posix else ())
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise _ScriptFailed(
                    script, "{} cannot be run: {}".format(command[0].replace("\0", "\\0"), reason),
                    remedy="Install it, or name another one in the script's first line") from None
            finally:
                os.close(held)
            failed = _wait_for(run, script, started[0], alive)
        except BaseException:
            for process in started:
                _terminate(process, alive)
            raise
        finally:
            os.close(alive)
        tail = _tail(output)
    if failed:
        hint = "\n" + _WORKS_ON_COPY.format(run.database.name) if (
            "database is locked" in tail) else ""
        raise _ScriptFailed(script, failed, output=tail + hint)
    return tail


def _start(started: list[subprocess.Popen[bytes]], command: list[str], **options: Any) -> None:
    """Start a process and append it to `started`.

    A KeyboardInterrupt between the start and the append would leave a process that nobody
    could end. So a thread starts it, because Python raises KeyboardInterrupt in the main
    thread only. (Blocking the signals is no way: the new process would inherit that.)
    """
    import subprocess
    import threading
    errors: list[Exception] = []
    wanted: list[bool] = []
    go, finished = threading.Event(), threading.Event()

    def start() -> None:
        go.wait()
        try:
            if wanted:
                started.append(subprocess.Popen(command, **options))
        except (OSError, ValueError) as error:  # a NUL character in the first line, say
            errors.append(error)
        finally:
            finished.set()

    try:
        try:
            threading.Thread(target=start, daemon=True).start()
        except RuntimeError as error:  # a limit on the number of processes
            raise OSError(errno.EAGAIN, str(error)) from None
        wanted.append(True)  # an interrupt before this line starts nothing
        go.set()
        finished.wait()
    finally:
        go.set()
        while wanted and not finished.is_set():
            try:
                finished.wait()
            except KeyboardInterrupt:
                pass  # one is on its way already
    if errors:
        raise errors[0]


def _wait_for(run: _Run, script: _Script, process: subprocess.Popen[bytes], alive: int) -> str:
    """Wait until a script, and all that it started, have exited. Return how it failed, "" if
    it did not."""
    timeout = run.database.timeout
    while not _wait_until_exited(process, alive, 0.5) and process.poll() is None:
        run.tick()
    failed = _describe_exit(process.wait())
    if failed:
        _terminate(process, alive)
        return failed
    if _wait_until_exited(process, alive, min(0.5, timeout)):
        return ""
    run.database.report.warn(f"{script.name} has ended, but not all processes that it started: "
                             f"waiting up to {timeout:g} s for them")
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if _wait_until_exited(process, alive, min(0.5, deadline - time.monotonic())):
            return ""
        run.tick()
    _terminate(process, alive)
    return f"it ended, but processes that it started did not, for {timeout:g} s"


def _wait_until_exited(process: subprocess.Popen[bytes], alive: int, timeout: float) -> bool:
    """Return whether a script, and all that it started, exit within the time in seconds.

    A process belongs to the script if it holds the other end of the pipe `alive` or is in the
    script's process group. Either alone misses some: Python's subprocess closes the pipe in a
    child, and a child with a new session leaves the group. (On Windows only the script itself
    counts.)
    """
    if os.name == "posix":
        import select
        poll, deadline = select.poll(), time.monotonic() + min(timeout, 1e6)
        poll.register(alive, select.POLLIN)
        if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            return False
        while process.poll() is None or _is_group_alive(process.pid):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001 if process.returncode is None else POLL_SECONDS)
        return True
    import subprocess
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _is_group_alive(group: int) -> bool:
    """Return whether a process of a group is running. /proc is read too, because killpg() also
    succeeds for a zombie: a process that has exited, but whose parent has not waited for it.
    In a container a zombie may stay for ever."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        processes = [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return True  # this system has no /proc
    for name in processes:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, _, process_group = file.read().rpartition(b")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(process_group) == group and state not in (b"Z", b"X"):
            return True
    return not processes


def _terminate(process: subprocess.Popen[bytes], alive: int) -> None:
    """Send SIGTERM to a script and its child processes, then SIGKILL to those that are left. (A
    process with a new session cannot be reached, but it was given only the copy to write to.)"""
    import signal
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            if os.name == "posix":
                os.killpg(process.pid, number)
            else:
                process.terminate()
        except (ProcessLookupError, PermissionError):
            pass  # none is left
        if _wait_until_exited(process, alive, KILL_SECONDS):
            break
    process.wait()


def _environment(run: _Run, script: _Script) -> dict[str, str]:
    """Return the environment of a script. PYTHONPATH lets a .py script import what the
    application can import. The standard library and site-packages are left out of it, because
    Python finds them anyway."""
    environment = {**os.environ, "FASTMIGRATE_VERSION": str(script.version),
                   "FASTMIGRATE_DB": run.database.path_as_given}
    if script.name.endswith(".py"):
        library, site = os.path.dirname(os.__file__), sys.modules.get("site")
        packages = [*getattr(site, "getsitepackages", list)(), getattr(site, "USER_SITE", "")]
        paths = [os.path.abspath(path) for path in sys.path]
        environment["PYTHONPATH"] = os.pathsep.join(
            path for path in dict.fromkeys(paths)
            if not path.startswith(library) and not path.endswith(".zip/lib")
            and path not in packages
            and not (path.endswith(".zip") and os.path.dirname(path) == os.path.dirname(library)))
    return environment


def _interpreter(script: _Script) -> list[str]:
    """Return the command that runs a .py or .sh script. The caller appends the script's only
    argument, the path of the working copy."""
    # Without "./" the interpreter would take a path that begins with "-" for an option.
    path = os.path.join(".", script.path) if script.path.startswith("-") else script.path
    if script.name.endswith(".py"):
        if getattr(sys, "frozen", False) or not sys.executable:
            raise _ScriptFailed(script, "this program contains no Python interpreter to run it",
                                remedy="Write it in SQL")
        return [sys.executable, path]
    try:
        with open(script.path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise _unreadable(script, error) from None
    if b"\r\n" in text:
        raise _ScriptFailed(script, "its lines end in CR LF, and a shell would take the CR for a "
                                    "part of the last word", text.count(b"\n", 0, text.index(
                                        b"\r\n")) + 1, remedy="Save it with LF line ends")
    if text.startswith(b"\xef\xbb\xbf"):
        raise _ScriptFailed(script, "it begins with a byte order mark, which a shell would take "
                                    "for a command", 1, remedy="Save it without the mark")
    if text[:2] != b"#!":
        return ["sh", path]
    command = os.fsdecode(text.partition(b"\n")[0][2:].strip()).split(None, 1)
    if os.name == "nt" and command and not os.path.exists(command[0]):
        import shutil  # `#!/usr/bin/env bash` and `#!/bin/sh` are found by their last word
        name = (command[-1] if command[0].endswith("/env") else command[0]).rpartition("/")[2]
        command = [shutil.which(name) or name]
    return [*command, path]


def _output_file(folder: str) -> IO[bytes]:
    """Return a temporary file; in `folder` if the system has no temporary directory."""
    import tempfile
    try:
        return tempfile.TemporaryFile()
    except FileNotFoundError:
        return tempfile.TemporaryFile(dir=folder)


def _describe_exit(status: int) -> str:
    """Return how a script failed, "" if it did not."""
    if status >= 0:
        return f"it failed with exit status {status}" if status else ""
    import signal
    names = {number.value: number.name for number in signal.Signals}
    return f"it was killed by {names.get(-status, f'signal {-status}')}"


def _tail(output: IO[bytes]) -> str:
    """Return the last lines of a script's output."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - 4000))
    lines = output.read().decode(errors="replace").splitlines()
    return "\n".join((["..."] if size > 4000 or len(lines) > 20 else []) + lines[-20:])


# ------------------------------------------------------------------ schemas


SELECT_SHADOWS = "SELECT name FROM pragma_table_list WHERE type = 'shadow' AND schema = 'main'"
SELECT_OBJECTS = (
    "SELECT type, name, tbl_name, sql FROM main.sqlite_master "
    "WHERE sql IS NOT NULL AND lower(substr(name, 1, 7)) <> 'sqlite_' "
    "ORDER BY type = 'trigger', lower(substr(sql, 1, 15)) = 'create virtual ', type = 'view', "
    "type = 'index', rowid")

# A virtual table stores its data in shadow tables. Here are the endings of their names, by
# module, because SQLite before 3.37 cannot tell which tables are shadows, and a newer one
# cannot if it lacks the module.
SHADOWS = {
    "fts3": "content|docsize|segdir|segments|stat", "fts5": "config|content|data|docsize|idx",
    "rtree": "node|parent|rowid", "vss0": "data|index", "spellfix1": "vocab",
    "vec0": r"auxiliary|chunks|info|rowids|(vector_chunks|metadatachunks|metadatatext)\d\d"}
SHADOWS.update(fts4=SHADOWS["fts3"], rtree_i32=SHADOWS["rtree"], geopoly=SHADOWS["rtree"])

# Tables that are no part of what an application made: ours, and those that other tools
# create for themselves.
OWN_TABLES = frozenset(("_meta", "_migration_history", "_litestream_seq", "_litestream_lock"))
BOOKKEEPING = frozenset("""
    __diesel_schema_migrations __drizzle_migrations __efmigrationshistory __efmigrationslock
    _prisma_migrations _sqlite_migrations _sqlx_migrations _yoyo_log _yoyo_migration
    _yoyo_version alembic_version android_metadata ar_internal_metadata atlas_schema_revisions
    d1_migrations databasechangelog databasechangeloglock django_migrations
    doctrine_migration_versions flyway_schema_history goose_db_version gorp_migrations
    knex_migrations knex_migrations_lock kysely_migration kysely_migration_lock
    migratehistory mikro_orm_migrations phinxlog refinery_schema_history room_master_table
    schema_migrations sequelizemeta yoyo_lock""".split())

# The keywords that cannot be a name unless they are quoted, and some that had better not.
RESERVED = frozenset("""
    add all alter always and as autoincrement between case cast check collate commit constraint
    create cross current_date current_time current_timestamp default deferrable delete
    distinct drop else escape except exists false foreign from full glob group having if in
    index indexed inner insert intersect into is isnull join left like limit match natural
    not nothing notnull null on or order outer over primary raise references regexp returning right
    select set table then to transaction true union unique update using values when where
    window with without""".split())
TABLE_CONSTRAINTS = ("constraint", "primary", "unique", "check", "foreign")
BEFORE_EXPRESSION = ("as", "check", "default")  # what is in parentheses behind these
BEFORE_TABLE = ("from", "into", "join", "on", "references", "table", "update")
SCHEMA_PRAGMAS = ("application_id", "user_version")
CONSTANTS = ("current_date", "current_time", "current_timestamp", "false", "null", "true")


def _bare(token: str) -> str:
    """Return a name without the quotes that it may be written in."""
    if token[:1] not in ('"', "'", "`", "["):
        return token
    return token[1:-1].replace(token[-1] * 2, token[-1])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is_plain(name: str) -> bool:
    """Return whether a name needs no quotes in SQL."""
    return (name.isascii() and name.replace("$", "_").isidentifier() and name[0] != "$"
            and _fold(name) not in RESERVED)


def _name(name: str) -> str:
    """Return a name as SQL has to write it, in quotes only if it needs them."""
    return name if _is_plain(name) else _quoted(name)


def _string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _tokens(sql: str) -> Tokens:
    """Return (kind, text, start) of each token; a kind is word, quoted, string, comment, other.

    White space is left out. What SQLite takes for white space and for letters is not what
    Python's \\s and \\w match.
    """
    import re
    pattern = re.compile(r"""
          [ \t\n\f\r]+
        | (?P<comment> --[^\n]* | /\*.*?(?:\*/|\Z) )
        | (?P<string> '(?:[^']|'')*'? )
        | (?P<quoted> "(?:[^"]|"")*"? | `(?:[^`]|``)*`? | \[[^\]]*\]? )
        | (?P<word> [A-Za-z0-9_$\x80-\U0010ffff]+ )
        | (?P<other> . )""", re.S | re.X)
    return [(found.lastgroup, found.group(), found.start())
            for found in pattern.finditer(sql) if found.lastgroup]


def _split_table(sql: str) -> tuple[Tokens, list[Tokens], list[Tokens], Tokens]:
    """Return the tokens of a CREATE TABLE: what stands before the columns, each column, each
    table constraint, and the options behind the last parenthesis."""
    parts: list[Tokens] = [[]]
    depth = 0
    for token in _tokens(sql):
        sign = token[1] if token[0] == "other" else ""
        depth += (sign == "(") - (sign == ")")
        if (sign, depth) in (("(", 1), (",", 1), (")", 0)):
            parts.append([])
        elif token[0] != "comment":
            parts[-1].append(token)
    head, *elements, options = parts
    constraints = [element for element in elements if element[0][0] == "word"
                   and _fold(element[0][1]) in TABLE_CONSTRAINTS]
    columns = [element for element in elements if element not in constraints]
    return head, columns, constraints, options


def _is_table(sql: str) -> bool:
    """Return whether this creates a table that is not virtual."""
    return _fold(sql[:13]) == "create table "


def _key_of(tokens: Tokens, names: set[str], is_expression: bool = False) -> list[str]:
    """Return normalized tokens: two ways to write the same thing give the same list.

    In an expression, SQLite takes a token in double quotes for a string if it is none of
    `names`, so its letter case counts. An expression stands in parentheses after CHECK,
    GENERATED AS or DEFAULT. If `is_expression`, all of the tokens are one.
    """
    key: list[str] = []
    depth = int(is_expression)
    for kind, text, _ in tokens:
        if text == "(" and (depth or key and key[-1] in BEFORE_EXPRESSION):
            depth += 1
        elif text == ")" and depth:
            depth -= 1
        if kind == "quoted":
            name = _bare(text)
            is_string = key[-1:] == ["default"] or (
                depth and text[0] == '"' and _fold(name) not in names)
            key.append(_string(name) if is_string else _fold(name))
        elif kind == "word" and key[-1:] == ["default"] and text.isidentifier() and (
                _fold(text) not in CONSTANTS):
            key.append(_string(text))  # a bare word is a string there
        elif kind != "comment":
            key.append(text if kind == "string" else _fold(text))
    return key


def _schema_key(sql: str, names: Iterable[str] = ()) -> tuple[str, ...]:
    """Return a key that is the same for two CREATE statements if they differ only in white
    space, comments, letter case or the quoting of names.

    `names` holds the columns, tables and views of the schema, in small letters.
    """
    if not _is_table(sql):
        tokens = _tokens(sql)
        words = {_fold(text) for kind, text, _ in tokens if kind == "word"}
        aliases = {_fold(_bare(after[1])) for token, after in zip(tokens, tokens[1:])
                   if _fold(token[1]) == "as"}
        return tuple(_key_of(tokens, {*names, *words, *aliases},
                             is_expression=not _module(sql)))
    head, columns, constraints, options = _split_table(sql)
    own = {"rowid", "oid", "_rowid_", _fold(_bare(head[-1][1])),
           *(_fold(_bare(column[0][1])) for column in columns)}
    key = _key_of(head, own)
    # ALTER TABLE puts a new column after the table constraints, where an author writes it
    # before them. Both mean the same.
    for element in (*columns, *constraints):
        key += ["(", *_key_of(element, own)]
    return (*key, ")", *sorted(_key_of(options, own)))


def _content_table(sql: str) -> str | None:
    """Return the table that a full-text index names as its content, "" if it has none, None
    if it holds its own."""
    texts = [text for kind, text, _ in _tokens(sql) if kind != "comment"]
    for name, sign, value in zip(texts, texts[1:], texts[2:]):
        if _fold(name) == "content" and sign == "=":
            return _bare(value)
    return None


def _module(sql: str) -> str:
    """Return the module of a virtual table, "" for all else."""
    if _fold(sql[:15]) != "create virtual ":  # as SQLite writes it
        return ""
    texts = [text for kind, text, _ in _tokens(sql) if kind != "comment"]
    return _fold(_bare(texts[5]))


def _select_objects(connection: sqlite3.Connection) -> list[Any]:
    """Return what SELECT_OBJECTS finds, also if a name is not UTF-8."""
    before = connection.text_factory
    connection.text_factory = lambda data: data.decode(errors="replace")
    try:
        return connection.execute(SELECT_OBJECTS).fetchall()
    finally:
        connection.text_factory = before


def _read_objects(connection: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    """Return (type, name, table, SQL) of each object in a database, in an order in which they
    can be created. What SQLite and virtual tables create for themselves is left out."""
    import re
    objects = _select_objects(connection)
    try:
        shadows = {_fold(name) for name, in connection.execute(SELECT_SHADOWS).fetchall()}
    except connection.OperationalError:
        shadows = set()  # SQLite before 3.37, which cannot tell
    contents = set()
    for _, name, _, sql in objects:
        pattern = SHADOWS.get(_module(sql))
        if pattern:
            shadows.update(_fold(of) for _, _, of, _ in objects if re.fullmatch(
                f"{re.escape(_fold(name))}_({pattern})", _fold(of)))
            content = _content_table(sql)
            contents.add(_fold(content or ""))
            if content or content == "" and "contentless_unindexed" not in _fold(sql):
                contents.add(f"{_fold(name)}_content")  # such an index has no table of this name
    # SQLite calls a table a shadow because of its name alone. So `contents` are taken out: they
    # may have such a name, but the application created them for an index to read from.
    return [found for found in objects if _fold(found[2]) not in shadows - contents]


def _read_bookkeeping(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the tables in which other migration tools keep their books."""
    return [name for kind, name, _, _ in _read_objects(connection)
            if kind == "table" and _fold(name) in BOOKKEEPING]


def _read_application(connection: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    """Return _read_objects() without the tables of fastmigrate and of other tools."""
    return [found for found in _read_objects(connection)
            if _fold(found[2]) not in OWN_TABLES and _fold(found[2]) not in BOOKKEEPING]


def _read_schema(connection: sqlite3.Connection, version: int = 0) -> Schema:
    """Return the schema of the application: {(table, *_schema_key()): (type, name, SQL)}, in an
    order in which the SQL can be run. If user_version or application_id is not 0, the PRAGMA
    that sets it is a part of the schema."""
    schema: Schema = {}
    for pragma in SCHEMA_PRAGMAS:
        value = connection.execute(f"PRAGMA {pragma}").fetchall()[0][0]
        if value:
            schema["", pragma, str(value)] = ("pragma", pragma, f"PRAGMA {pragma} = {value}")
    objects = _read_application(connection)
    names = {_fold(name) for _, name, _, _ in objects}
    names.update(_fold(_bare(column[0][1])) for _, _, _, sql in objects if _is_table(sql)
                 for column in _split_table(sql)[1])
    for kind, name, table, sql in objects:
        schema[(_fold(table), *_schema_key(sql, names))] = (kind, name, sql)
    return schema


def _terminated(sql: str) -> str:
    """Return a statement with its semicolon. If the statement ends in a comment, close that
    first, because the semicolon would be a part of the comment."""
    kind, text, _ = _tokens(sql)[-1]
    if kind == "comment" and text[:2] == "--":
        return f"{sql}\n;"
    unclosed = kind == "comment" and not (len(text) > 3 and text.endswith("*/"))
    return f"{sql} */;" if unclosed else f"{sql};"


def _without_rename_quotes(sql: str, tables: Container[str]) -> str:
    """Return a statement without the quotes that ALTER TABLE ... RENAME writes around the name
    of a table or view. If other plain names are quoted too, its author writes so. `tables` holds
    the names in small letters: without quotes, anything else could be another thing."""
    tokens = [token for token in _tokens(sql) if token[0] != "comment"]
    renamed = []
    for index, (kind, text, start) in enumerate(tokens):
        if kind != "quoted" or not _is_plain(_bare(text)):
            continue
        before = _fold(tokens[index - 1][1])
        after = tokens[index + 1][1] if index + 1 < len(tokens) else ""
        is_table = _fold(_bare(text)) in tables and (before in BEFORE_TABLE or after == ".")
        if text[0] != '"' or not is_table:
            return sql
        renamed.append((start, text))
    for start, text in reversed(renamed):
        sql = sql[:start] + _bare(text) + sql[start + len(text):]
    return sql


def _schema_text(schema: Schema) -> str:
    """Return a schema as a text that builds it: tables by name, each with its indexes and
    triggers, then views by name, each with its triggers."""
    views = {_fold(name) for kind, name, _ in schema.values() if kind == "view"}
    tables = {_fold(name) for kind, name, _ in schema.values() if kind in ("table", "view")}
    kinds = ("pragma", "table", "view", "index", "trigger")

    def place(item: tuple[tuple[str, ...], tuple[str, str, str]]) -> tuple[Any, ...]:
        (owner, *key), (kind, name, sql) = item
        # A full-text index over another table may need that table when it is created.
        needs_table = kind == "table" and bool(_module(sql) and _content_table(sql))
        return (kind != "pragma", owner in views, needs_table, owner, kinds.index(kind),
                _fold(name), key)

    return "".join(_terminated(_without_rename_quotes(sql, tables)) + "\n"
                   for _, (_, _, sql) in sorted(schema.items(), key=place))


def _diff_schemas(before: Schema, after: Schema, name_before: str, name_after: str) -> str:
    """Return a unified diff of the objects that do not mean the same, "" if all do."""
    import difflib

    def lines(keys: set[tuple[str, ...]], schema: Schema) -> list[str]:
        return [line for key in sorted(keys)
                for line in _terminated(schema[key][2]).split("\n")]

    return "\n".join(difflib.unified_diff(
        lines(before.keys() - after, before), lines(after.keys() - before, after),
        name_before, name_after, lineterm="", n=99))


def _diff_from_scripts(scratch: _MemoryDatabase, migrations_dir: StrPath, version: int,
                       other: Schema, name: str) -> str:
    """Return how the schema `other` differs from the one that the scripts up to `version`
    build, "" if it does not. `scratch` must not be at a higher version. It is migrated to
    `version`."""
    scratch.replay(migrations_dir, version)
    own = scratch.read(_read_schema)[1]
    return _diff_schemas(own, other, f"the scripts up to {version}", name)


# ------------------------------------------------------------------ from schema.sql to a script


TEMPLATES = {  # of new scripts
    ".sql": "-- {}\n",
    ".sh": "#!/bin/sh\n# {}: the database is $1\nset -eu\n",
    ".py": "# {}\n\nimport sqlite3\nimport sys\n\n"
           "connection = sqlite3.connect(sys.argv[1])\nwith connection:\n    pass\n",
}


class _Column:
    """A column of a table, as SQLite understands its definition."""

    def __init__(self, row: tuple[Any, ...], is_rowid: bool) -> None:
        _, self.name, self.type, not_null, default, in_key, hidden = row
        self.is_rowid = is_rowid  # INTEGER PRIMARY KEY, another name of the rowid
        self.is_generated = hidden > 1
        self.not_null = bool(not_null)
        self.in_key = bool(in_key)
        self.default = ""  # an expression, "" for NULL
        if _fold(default or "null").strip("() ") != "null":
            # SQLite takes a name that is a default for a string.
            is_name = len(_tokens(default)) == 1 and (default[0] in '"`[' or (
                default.isidentifier() and _fold(default) not in CONSTANTS))
            self.default = _string(_bare(default)) if is_name else default


def _read_columns(connection: sqlite3.Connection, table: str) -> dict[str, _Column]:
    """Return the columns of a table by name in small letters, {} if there is no such table."""
    rows = [row for row in connection.execute(
        f"PRAGMA table_xinfo({_quoted(table)})").fetchall() if row[6] != 1]
    # A key of one column has no index only if it is INTEGER PRIMARY KEY, which is the rowid.
    has_rowid_key = sum(1 for row in rows if row[5]) == 1 and not any(
        row[3] == "pk" for row in connection.execute(
            f"PRAGMA index_list({_quoted(table)})").fetchall())
    return {_fold(row[1]): _Column(row, has_rowid_key and row[5] > 0) for row in rows}


def _read_tables(connection: sqlite3.Connection) -> dict[str, tuple[str, str]]:
    """Return (name, SQL) of each table by its name in small letters."""
    return {_fold(name): (name, sql) for kind, name, _, sql in _read_application(connection)
            if kind == "table"}


def _read_table(connection: sqlite3.Connection, table: str) -> tuple[str, str]:
    """Return (name, SQL) of a table that there is."""
    found: tuple[str, str] = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE",
        (table,)).fetchall()[0]
    return found


def _has_rowid(sql: str) -> bool:
    return "without" not in _key_of(_split_table(sql)[-1], set())


def _is_sequenced(sql: str) -> bool:
    return any(kind == "word" and _fold(text) == "autoincrement" for kind, text, _ in _tokens(sql))


def _names(connection: sqlite3.Connection) -> set[str]:
    """Return all names that are taken in a database, in small letters."""
    return {_fold(name) for name, in connection.execute(
        "SELECT name FROM sqlite_master").fetchall()}


def _free_name(name: str, taken: Container[str]) -> str:
    while _fold(name) in taken:
        name += "_"
    return name


def _source(sql: str, element: Tokens) -> str:
    """Return the text of a part of a statement, as its author wrote it."""
    return sql[element[0][2]:element[-1][2] + len(element[-1][1])] if element else ""


def _definitions(sql: str) -> list[str]:
    """Return the columns, constraints and options of a table, each in one line."""
    _, columns, constraints, options = _split_table(sql)
    return [" ".join(_source(sql, part).split()) for part in (*columns, *constraints, options)]


class _Change:
    """The statements that turn one schema into another.

    No rules here tell what ALTER TABLE can do, because that depends on the version of SQLite.
    Instead, each way to change a table is tried on a scratch database, the cheapest first. It
    is kept only if the table then has the wanted definition.
    """

    def __init__(self, scratch: sqlite3.Connection, wanted: sqlite3.Connection,
                 open_memory: Callable[[], sqlite3.Connection]) -> None:
        self.scratch = scratch  # begins with the schema of today
        self.wanted = wanted  # has the schema that is wanted
        self.open_memory = open_memory
        self.statements: list[tuple[str, str]] = []  # (comment or "", statement)
        self.notes: list[str] = []  # what is renamed, dropped, replaced and rebuilt
        self.rebuilt: set[str] = set()
        self.failure = ""  # why the last attempt failed

    def do(self, statement: str, comment: str = "") -> None:
        self.scratch.execute(statement).fetchall()
        self.statements.append((comment, statement))

    def tables(self, table: str) -> list[tuple[str, str]]:
        """Return (name, SQL) of a table as it is and as it is wanted."""
        return [_read_table(each, table) for each in (self.scratch, self.wanted)]

    def drop(self, kind: str, name: str) -> None:
        wanted = {(of, _fold(other)) for of, other, *_ in _read_application(self.wanted)}
        note = f"{'replaces' if (kind, _fold(name)) in wanted else 'drops'} the {kind} {name}"
        self.notes.append(note)
        self.do(f"DROP {kind.upper()} {_name(name)}", note)

    def rename(self, statement: str) -> None:
        """Run a RENAME. If SQLite cannot rewrite a view or trigger for it (say because it reads
        the column through another view), drop that first. create_missing() runs at the end,
        and creates it again."""
        import re
        while True:
            try:
                self.do(statement)
                return
            except self.scratch.Error as error:
                broken = re.match("error in (view|trigger) (.+?)(?::| after )", str(error), re.S)
                if not broken:
                    raise MigrationError(f"{statement}: {error}. Nothing was written.") from error
                self.drop(broken[1], broken[2])

    def create_missing(self, *kinds: str) -> set[str]:
        """Create the wanted objects of some kinds that do not exist yet. Return their names in
        small letters."""
        there = {(kind, _fold(name)) for kind, name, *_ in _read_application(self.scratch)}
        missing = [(_fold(name), sql) for kind, name, _, sql in _read_application(self.wanted)
                   if kind in kinds and (kind, _fold(name)) not in there]
        for _, sql in missing:
            self.do(sql)
        return {name for name, _ in missing}

    def attempt(self, table: str, statements: list[str], comment: str = "") -> bool:
        """Run statements; keep them only if the definition of the table is then as wanted."""
        self.scratch.execute("SAVEPOINT attempt")
        self.failure = ""
        try:
            for statement in statements:
                self.scratch.execute(statement).fetchall()
            (name, sql), (_, wanted) = self.tables(table)
            if _schema_key(sql) != _schema_key(wanted):
                self.failure = "the result is another table"
            elif self.scratch.execute(f"SELECT 1 FROM {_quoted(name)}").fetchall():
                # The tables here are empty, but a SELECT with an aggregate returns a row.
                self.failure = "a value for each row must not be an aggregate of all rows"
        except (self.scratch.Error, self.scratch.Warning, ValueError) as error:
            self.failure = str(error)  # a Warning: older Pythons for two statements in one
        if self.failure:
            self.scratch.execute("ROLLBACK TO attempt")
        self.scratch.execute("RELEASE attempt")
        if not self.failure:
            self.statements += [(comment, statements[0]), *(("", each) for each in statements[1:])]
        return not self.failure

    def alter(self, table: str, fill: dict[str, str]) -> None:
        """Change the definition of a table, by ALTER TABLE if that will do."""
        added = [] if fill else self.added_columns(table)
        if not added or not self.attempt(table, added):
            self.rebuild(table, fill)

    def added_columns(self, table: str) -> list[str]:
        """Return the ALTER TABLE ... ADD COLUMN that may suffice, [] if they cannot.

        Whether SQLite accepts a column depends on its version, and on whether the table has
        rows. So the statements are tried on a table with one row. Then a second row is
        inserted, because in a STRICT table ALTER TABLE accepts a default of the wrong type, and
        only the next INSERT fails.
        """
        (name, _), (_, after) = self.tables(table)
        _, columns, _, options = _split_table(after)
        old = _read_columns(self.scratch, table)
        definitions = [_source(after, column) for column in columns
                       if _fold(_bare(column[0][1])) not in old]
        strict = "STRICT" if "strict" in _key_of(options, set()) else ""
        with _closing(self.open_memory()) as trial:
            trial.execute("PRAGMA foreign_keys = OFF").fetchall()  # some builds have them on
            columns_of_today = ", ".join(f"{_quoted(column)} ANY" for column in old)
            try:
                trial.execute(f"CREATE TABLE trial ({columns_of_today}) {strict}")
                trial.execute("INSERT INTO trial DEFAULT VALUES")
                for definition in definitions:
                    trial.execute(f"ALTER TABLE trial ADD COLUMN {definition}")
                trial.execute("INSERT INTO trial DEFAULT VALUES")
            except trial.Error:
                return []
        return [f"ALTER TABLE {_name(name)} ADD COLUMN {each}" for each in definitions]

    def rebuild(self, table: str, fill: dict[str, str]) -> None:
        """Rebuild a table. Its indexes and triggers are dropped with the old one, and
        create_missing() creates them again."""
        if not self.rebuilt:
            self.do("PRAGMA legacy_alter_table = ON",
                    "lets RENAME work although views or triggers name the dropped table")
        (name, before), (_, after) = self.tables(table)
        old, new = _definitions(before), _definitions(after)
        notes = [f"rebuilds the table {name}"]
        notes += [f"removes from the definition of {name}: {x}" for x in old if x and x not in new]
        notes += [f"adds to the definition of {name}: {x}" for x in new if x and x not in old]
        notes += [f"replaces NULL in {name}.{column} by its default"
                  for column in self.defaulted(table, fill)]
        for statements in self.rebuilds(table, self.copied(table, fill)):
            if self.attempt(table, statements, "\n".join(notes)):
                self.rebuilt.add(table)
                self.notes += notes
                return
        hint = " Look at the values that are given by fill." if fill else ""
        raise MigrationError(f"no statements were found that change the table {name} as wanted: "
                             f"{self.failure}. Nothing was changed.{hint}")

    def defaulted(self, table: str, fill: Container[str]) -> list[str]:
        """Return the columns whose NULLs get the default, because NULL is no longer allowed."""
        old = _read_columns(self.scratch, table)
        return [column.name for key, column in _read_columns(self.wanted, table).items()
                if key in old and key not in fill and column.default
                and column.not_null and not old[key].not_null]

    def copied(self, table: str, fill: dict[str, str]) -> dict[str, str]:
        """Return {column: SQL for its value in a row of the old table} of the columns that a
        rebuild fills. For an existing column, a value that does not use the column itself
        replaces only its NULLs. The rowids are copied too, unless an INTEGER PRIMARY KEY holds
        them."""
        old, new = _read_columns(self.scratch, table), _read_columns(self.wanted, table)
        found, defaulted = {}, self.defaulted(table, fill)
        for key, column in new.items():
            was, name = old.get(key), _name(column.name)
            value = fill.get(key) or (column.default if column.name in defaulted else "")
            if "--" in value:
                value += "\n"  # the end of a comment
            if was and not value:
                value = name
            elif was and not (key in fill and self.reads(table, key, value)):
                value = f"ifnull({name}, {value})"
            if value and not column.is_generated:
                found[name] = value
        rowid = next((name for name in ("rowid", "_rowid_", "oid")
                      if name not in old and name not in new), "")
        is_keyed = any(column.is_rowid and _name(column.name) in found for column in new.values())
        if rowid and not is_keyed and all(_has_rowid(sql) for _, sql in self.tables(table)):
            return {rowid: rowid, **found}
        return found

    def reads(self, table: str, column: str, expression: str) -> bool:
        """Return whether an expression over a row of a table reads a column of it. SQLite tells,
        because its text may hold the name in another meaning: date('now')."""
        found: set[tuple[str, str]] = set()

        def note(action: int, of: str | None, name: str | None, *more: object) -> int:
            if action == sqlite3.SQLITE_READ:
                found.add((_fold(of or ""), _fold(name or "")))
            return sqlite3.SQLITE_OK

        self.scratch.set_authorizer(_as_authorizer(note))
        try:
            self.scratch.execute(f"EXPLAIN SELECT ({expression}\n) FROM {_quoted(table)} "
                                 f"-- {time.perf_counter_ns()}").close()  # compiled each time
        finally:
            self.scratch.set_authorizer(lambda *details: sqlite3.SQLITE_OK)
        return (table, column) in found

    def rebuilds(self, table: str, copied: dict[str, str]) -> tuple[list[str], list[str]]:
        """Return two ways to rebuild a table. The first creates the new table under another name,
        which fails if the definition contains the table's own name, as in CHECK (users.age > 0).
        The second has no such limit, but copies the rows twice."""
        (name, before), (_, after) = self.tables(table)
        new = _free_name(f"{name}_new", _names(self.scratch) | _names(self.wanted))
        columns, values = ", ".join(copied), ", ".join(copied.values())
        # With ON CONFLICT REPLACE or IGNORE in a constraint, a plain INSERT would drop rows.
        conflicts = any(_fold(text) == "conflict" for _, text, _ in _tokens(after))
        insert = "INSERT OR ABORT" if conflicts else "INSERT"
        named = ", ".join(f"{value} AS {column}" for column, value in copied.items())
        keep, put_back = [], []
        if _is_sequenced(before) and _is_sequenced(after):
            move = "UPDATE sqlite_sequence SET name = {} WHERE name = {}"
            keep = [move.format(_string(new), _string(name))]
            put_back = [move.format(_string(name), _string(new))]
        _, written, start = _split_table(after)[0][-1]
        after_as_new = after[:start] + _name(new) + after[start + len(written):]
        name, new = _name(name), _name(new)
        return ([after_as_new, *keep,
                 f"{insert} INTO {new} ({columns})\nSELECT {values} FROM {name}",
                 f"DROP TABLE {name}", f"ALTER TABLE {new} RENAME TO {name}"],
                [f"CREATE TABLE {new} AS SELECT {named} FROM {name}", *keep,
                 f"DROP TABLE {name}", after, *put_back,
                 f"{insert} INTO {name} ({columns}) SELECT * FROM {new}", f"DROP TABLE {new}"])

    def fill_indexes(self, created: Container[str]) -> None:
        """Fill the full-text indexes that are new, or whose content was rebuilt."""
        tables, names = _read_tables(self.wanted), _names(self.wanted)
        for table, (name, sql) in tables.items():
            content = _fold(_content_table(sql) or "")
            if content in names and _module(sql).startswith("fts") and (
                    table in created or content in self.rebuilt
                    or self.rebuilt and content not in tables):  # a view
                self.do(f"INSERT INTO {_name(name)} ({_name(name)}) VALUES ('rebuild')",
                        f"fills the full-text index {name}")


# -------------------------------------------------------------- questions and answers


def _split_dotted(text: str) -> tuple[str, str]:
    """Return (table, column) of TABLE.COLUMN, (table, "") of TABLE; a name that holds a dot
    is in double quotes, as SQL has it. Raises ValueError for anything else."""
    import re
    found = re.fullmatch(r'("(?:[^"]|"")+"|[^".]+)(?:\.("(?:[^"]|"")+"|[^".]+))?', text, re.S)
    if not found:
        raise ValueError(f"{text!r} is not TABLE or TABLE.COLUMN; put a name that holds a dot in "
                         'double quotes: "a.b".c')
    return _bare(found[1]), _bare(found[2] or "")


def _split_answer(text: str) -> tuple[str, str]:
    """Return (name, value) of NAME=VALUE. Raises ValueError for anything else."""
    import re
    found = re.fullmatch(r'((?:"(?:[^"]|"")*"|[^"=])+)=(.*\S.*)', text, re.S)
    if not found:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    return found[1], found[2].strip()


def _dotted(table: str, column: str = "") -> str:
    """Return TABLE.COLUMN as _split_dotted() reads it."""
    return ".".join(_quoted(name) if any(sign in name for sign in '".=') else name
                    for name in (table, column) if name)


def _option(option: str, name: str, value: str = "") -> str:
    """Return an answer as it is typed, on the command line and in Python."""
    import shlex
    answer = f"{name}={value}" if value else name
    typed = shlex.quote(answer)
    if "'" in answer and not any(sign in answer for sign in '"$`\\!'):
        typed = f'"{answer}"'  # which is easier to read
    python = f"{{{name!r}: {value!r}}}" if value else f"[{name!r}]"
    return f"    --{option} {typed}    (in Python: {option}={python})"


class _Answers:
    """The --rename, --drop and --fill of a person, for tables and columns that are gone or need
    values.

    The key of each answer is (table, column) in small letters, by the names that they have now
    in the scratch database. The column is "" for a table. So each RENAME that is run also
    changes the keys of the other answers.
    """

    def __init__(self, change: _Change, path: str, rename: dict[str, str], drop: Iterable[str],
                 fill: dict[str, str]) -> None:
        self.change, self.path = change, path
        # The names of today, for messages, by those that the scratch database has now.
        self.titles = {table: name for table, (name, _) in _read_tables(change.scratch).items()}
        self.column_titles = {
            (table, key): column.name for table in self.titles
            for key, column in _read_columns(change.scratch, table).items()}
        self.drops = {self.find("drop", text): "" for text in drop}
        self.fills = {self.find("fill", text): sql for text, sql in fill.items()}
        self.renames = {self.find("rename", text): _bare(new) for text, new in rename.items()}

    def refuse(self, what: str, why: str) -> NoReturn:
        raise MigrationError(f"{what}: {why}. Nothing was written.")

    def find(self, option: str, text: str) -> tuple[str, str]:
        """Return (table, column) of what an option names."""
        try:
            table, column = map(_fold, _split_dotted(text))
        except ValueError as error:
            self.refuse(option, str(error))
        if table not in self.titles:
            self.refuse(f"{option} {text}", f"the schema of the scripts has no table {table}")
        if option == "fill" and not column:
            self.refuse(f"fill {text}", "a column is filled: TABLE.COLUMN")
        if option != "fill" and column not in {"", *_read_columns(self.change.scratch, table)}:
            self.refuse(f"{option} {text}",
                        f"the schema of the scripts has no column {column} in {table}")
        return table, column

    def rename(self) -> None:
        """Run the renames, those of columns first. If another table or column has the new name
        and is to be renamed or dropped too, it is first moved to a free name."""
        change = self.change
        while self.renames:
            of_columns = [named for named in self.renames if named[1]]
            table, column = named = (of_columns or list(self.renames))[0]
            new = self.renames.pop(named)
            wanted, taken = set(_read_tables(change.wanted)), _names(change.scratch)
            holder = (_fold(new), "")
            if column:
                wanted = set(_read_columns(change.wanted, self.renames.get((table, ""), table)))
                taken, holder = set(_read_columns(change.scratch, table)), (table, _fold(new))
            what = f"rename {_dotted(*named)}={new}"
            if _fold(new) not in wanted:
                self.refuse(what, f"{self.path} has no {new}" + f" in {table}" * bool(column))
            if _fold(new) in taken and holder != named:
                if holder not in self.drops and holder not in self.renames:
                    self.refuse(what, f"there is a {new}, which has to be renamed or dropped too")
                self.move(*holder, _free_name(f"{new}_old", taken | wanted))
            self.move(table, column, new)

    def move(self, table: str, column: str, new: str) -> None:
        """Rename a table or column, and let the other answers follow."""
        what = _read_table(self.change.scratch, table)[0]
        start = f"ALTER TABLE {_name(what)} RENAME"
        if column:
            old = _read_columns(self.change.scratch, table)[column].name
            what, start = f"{what}.{old}", f"{start} COLUMN {_name(old)}"
        if not column and _fold(new) == table:  # to SQLite, the name is taken by the table itself
            between = _name(_free_name(f"{new}_old", _names(self.change.scratch)))
            self.change.rename(f"{start} TO {between}")
            start = f"ALTER TABLE {between} RENAME"
        self.change.rename(f"{start} TO {_name(new)}")
        self.change.notes.append(f"renames the {'column' if column else 'table'} {what} to {new}")

        def new_key(named: tuple[str, str]) -> tuple[str, str]:
            if column:
                return (table, _fold(new)) if named == (table, column) else named
            return (_fold(new), named[1]) if named[0] == table else named

        self.titles = {new_key((key, ""))[0]: title for key, title in self.titles.items()}
        self.drops, self.fills, self.renames, self.column_titles = (
            {new_key(named): value for named, value in answers.items()}
            for answers in (self.drops, self.fills, self.renames, self.column_titles))


def _questions(answers: _Answers) -> Iterator[str]:
    """Yield the lines of the questions to the person. A change is not guessed if it could lose
    data or has two meanings."""
    scratch, wanted = answers.change.scratch, answers.change.wanted
    today, tables = _read_tables(scratch), _read_tables(wanted)
    for table, (name, sql) in sorted(today.items()):
        title, new = answers.titles[table], tables.get(table, ("", ""))[1]
        drop, is_dropped = _option("drop", _dotted(title)), (table, "") in answers.drops
        if new and not _module(sql) and not _module(new):
            if is_dropped:
                answers.refuse(f"drop {title}", f"{answers.path} still has the table {name}")
            yield from _column_questions(answers, table)
        elif is_dropped:
            continue
        elif not new:
            yield f"  The table {title} is gone. Was it renamed, or is it dropped with its rows?"
            yield from (_option("rename", _dotted(title), _dotted(other))
                        for other, _ in tables.values() if _fold(other) not in today)
            yield drop
        elif _holds_content(sql) and _schema_key(sql) != _schema_key(new):
            yield (f"  The table {title} has content of its own, which the new virtual or plain "
                   "table cannot\n  take over. Write that script by hand, or let the content go:")
            yield drop


def _holds_content(sql: str) -> bool:
    """Return whether a table has content that cannot be made anew from elsewhere."""
    module = _module(sql)
    return not (module and _content_table(sql)) and module not in (
        "fts5vocab", "fts4aux", "dbstat")


def _column_questions(answers: _Answers, table: str) -> Iterator[str]:
    """Yield the questions about the columns of a table that stays."""
    import re
    title, path = answers.titles[table], answers.path
    old, new = (_read_columns(each, table) for each in (
        answers.change.scratch, answers.change.wanted))
    is_open = False
    for key, column in old.items():
        dotted = _dotted(title, answers.column_titles[table, key])
        is_dropped = (table, key) in answers.drops
        stays = key in new and (column.is_generated or not new[key].is_generated)
        if stays and is_dropped:
            answers.refuse(f"drop {dotted}", f"{path} still has the column {column.name}")
        if not stays and not is_dropped:
            is_open = True
            what = "becomes a generated one" if key in new else "is gone"
            yield f"  The column {dotted} {what}. Was it renamed, or is it dropped with its values?"
            yield from (_option("rename", dotted, other.name) for other in new.values()
                        if _fold(other.name) not in old)
            yield _option("drop", dotted)
    for key, column in new.items():
        was, of_today = old.get(key), answers.column_titles.get((table, key), column.name)
        is_required = column.not_null or column.in_key
        if was:
            is_required = column.not_null and not was.not_null and not column.in_key
        has_value = column.default or column.is_rowid or column.is_generated
        if not was and is_open:
            continue  # this may be the new name of an old column, which has values
        if is_required and not has_value and (table, key) not in answers.fills:
            is_number = re.search("int|real|num|floa|doub|dec|bool", _fold(column.type))
            rows = "where it is NULL" if was else "that there are"
            yield (f"  The column {title}.{column.name} must not be NULL and has no default. Give "
                   f"its value for the\n  rows {rows}, as SQL:")
            yield _option("fill", _dotted(title, of_today), "0" if is_number else "''")
            if was:
                yield "  or its own name, if there are no such rows: the script fails if there are"
                yield _option("fill", _dotted(title, of_today), _name(column.name))


def _check_fills(answers: _Answers) -> None:
    """Refuse a fill that fits no column, or is no expression over a row of its table."""
    change = answers.change
    for (table, key), value in answers.fills.items():
        of_today = answers.column_titles.get((table, key), key)
        what = f"fill {_dotted(answers.titles[table], of_today)}"
        column = _read_columns(change.wanted, table).get(key)
        if not column or column.is_generated:
            answers.refuse(what, f"{answers.path} has no such column that takes a value")
        if len({_schema_key(sql) for _, sql in change.tables(table)}) == 1:
            answers.refuse(what, "the definition of this table does not change. Write an UPDATE "
                                 "into a script")
        try:
            change.scratch.execute(f"SELECT ({value}\n) FROM {_quoted(table)}").fetchall()
        except (change.scratch.Error, change.scratch.Warning, ValueError) as error:
            answers.refuse(what, f"{error} (the tables are those of today there, and what is "
                                 "renamed has its new name)")


# -------------------------------------------------------------- the whole change


def _change_schema(change: _Change, fills: dict[tuple[str, str], str]) -> None:
    """Find the statements that lead to the wanted schema."""
    scratch, wanted = change.scratch, change.wanted
    schema = _read_schema(wanted)
    for kind in ("trigger", "index", "view"):
        for key, (of, name, _) in _read_schema(scratch).items():
            if of == kind and key not in schema:
                change.drop(kind, name)
    today, tables = _read_tables(scratch), _read_tables(wanted)
    changed = [table for table, (_, sql) in today.items() if table in tables
               and _schema_key(sql) != _schema_key(tables[table][1])]
    for table in changed:
        if _module(today[table][1]) or _module(tables[table][1]):
            change.drop("table", today[table][0])
    created = change.create_missing("table")
    for table in changed:
        if table not in created:
            change.alter(table, {column: sql for (of, column), sql in fills.items() if of == table})
    for table, (name, _) in today.items():  # after the others, whose values may come from these
        if table not in tables:
            change.drop("table", name)
    for pragma in SCHEMA_PRAGMAS:
        old, new = (each.execute(f"PRAGMA {pragma}").fetchall()[0][0] for each in (scratch, wanted))
        if old != new:
            change.do(f"PRAGMA {pragma} = {new}", f"sets {pragma} from {old} to {new}")
    change.create_missing("index", "view", "trigger")
    change.fill_indexes(created)


def _copy_schema(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Create in an empty database what an application made in another, without its rows."""
    target.execute("PRAGMA foreign_keys = OFF")  # some builds have them on
    for *_, sql in _read_application(source):
        target.execute(sql).fetchall()
    _copy_pragmas(source, target)


def _copy_pragmas(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    for pragma in SCHEMA_PRAGMAS:
        value = source.execute(f"PRAGMA {pragma}").fetchall()[0][0]
        target.execute(f"PRAGMA {pragma} = {value}")


def _read_schema_file(path: str) -> str:
    """Return the text of a schema file."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read().replace("\r\n", "\n")
    except FileNotFoundError:
        raise _MissingError(
            f"there is no schema file {path}. Nothing was written. Write it with fastmigrate "
            f"--print-schema > {path}, or with get_schema().") from None
    except OSError as error:
        raise _explain(error, "", (sqlite3.Error,), "Nothing was written.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise MigrationError(f"{path}:{line}: this is not UTF-8. Nothing was written. Save the "
                             "file as UTF-8.", path=path, line=line) from error


def _run_schema_file(wanted: sqlite3.Connection, text: str, path: str) -> None:
    """Run the statements of a schema file in an empty database. Raises MigrationError with the
    line of a statement that is not allowed there or that SQLite rejects."""
    why, line, statement = "there is no statement in it", 1, ""
    for number, statement in _statements(text, 1):
        why, line = _run_schema_statement(wanted, statement), number
        if why:
            break
    if why:
        raise MigrationError(f"{path}:{line}: {why}. Nothing was written. A schema file holds "
                             "the CREATE statements of the schema, as --print-schema and "
                             "get_schema() give them.", path=path, line=line, statement=statement)


def _run_schema_statement(wanted: sqlite3.Connection, statement: str) -> str:
    """Run a statement of a schema file; return why that may not hold it, "" if it may."""
    words = [_fold(_bare(word)) for kind, word, _ in _tokens(statement) if kind != "comment"]
    refusal = f"{' '.join(statement.split()[:3])} ... creates no part of a schema"
    name = words[5:6] if words[2:5] == ["if", "not", "exists"] else words[2:3]
    if words[:2] == ["create", "table"] and name and name[0].startswith("sqlite_"):
        return ""  # the sqlite3 program's .schema prints these, which SQLite makes itself
    if words[:1] != ["create"] and words[:2] not in (["pragma", each] for each in SCHEMA_PRAGMAS):
        return refusal
    try:
        wanted.execute(statement).fetchall()
        has_temporary = wanted.execute("SELECT 1 FROM sqlite_temp_master").fetchall()
        return refusal if has_temporary else ""
    except (wanted.Error, wanted.Warning, ValueError) as error:
        return str(error)


def _compare_with_scripts(migrations_dir: StrPath, schema: StrPath, connect: Connect,
                          report: _Report, rename: dict[str, str], drop: list[str],
                          fill: dict[str, str]) -> tuple[str, list[str]]:
    """Return the statements that lead from the schema of the scripts to that of a file, ""
    if there is no difference, and notes on what they drop and rebuild.

    Raises: MigrationError with the questions that a person has to answer.
    """
    path = os.fsdecode(schema)
    text = _read_schema_file(path)
    with _MemoryDatabase(connect, report.of_scratch()) as scripts, scripts.explained(), \
            _closing(scripts.open(":memory:")) as scratch, \
            _closing(scripts.open(":memory:")) as wanted:
        if os.path.exists(migrations_dir):
            _announce(report, migrations_dir)
            scripts.replay(migrations_dir, None)
        _copy_schema(scripts.connection, scratch)
        _copy_pragmas(scratch, wanted)  # a file that does not speak of these leaves them alone
        _run_schema_file(wanted, text, path)
        change = _Change(scratch, wanted, lambda: scripts.open(":memory:"))
        answers = _Answers(change, path, rename, drop, fill)
        answers.rename()
        questions = list(_questions(answers))
        _check_fills(answers)
        if questions:
            raise MigrationError(
                f"{path} leaves questions open. Nothing was written. Answer them, and run this "
                "again:\n" + "\n".join(questions))
        try:
            _change_schema(change, answers.fills)
            remains = _diff_schemas(_read_schema(scratch), _read_schema(wanted), "the script", path)
        except scratch.Error as error:
            if isinstance(error, MigrationError):
                raise
            remains = str(error)
        if remains:
            raise MigrationError(f"no script was found that leads exactly to {path}. Nothing was "
                                 f"written. Write it by hand. What remains:\n{remains}")
        broken = _newly_broken(scratch, _read_objects(scripts.connection))
        for name, (reason, _) in broken.items():
            raise MigrationError(f"{path}: {name} would not work any more: {reason}. Nothing was "
                                 f"written. Change or remove it in {path}, then run this again.",
                                 path=path)
        lines = ["\n" * bool(comment) + "".join(f"-- {line}\n" for line in comment.splitlines())
                 + _terminated(statement) for comment, statement in change.statements]
        return "\n".join(lines).lstrip("\n"), change.notes


def _verify_schema_file(migrations_dir: StrPath, schema: str, connect: Connect,
                        report: _Report) -> str:
    """Return how a schema file differs from the schema of the scripts, "" if it does not."""
    text = _read_schema_file(schema)
    _announce(report, migrations_dir)
    with _MemoryDatabase(connect, report.of_scratch()) as scripts, scripts.explained():
        scripts.replay(migrations_dir, None)
        with _closing(scripts.open(":memory:")) as wanted:
            _copy_pragmas(scripts.connection, wanted)
            _run_schema_file(wanted, text, schema)
            return _diff_schemas(_read_schema(scripts.connection), _read_schema(wanted),
                                 "the scripts", schema)


def _recreate(connection: sqlite3.Connection, table_name: str, definitions: str,
              open_memory: Callable[[], sqlite3.Connection]) -> list[str]:
    """Return the statements that give a table other definitions of its columns."""
    table = _fold(table_name)
    name, sql = _read_tables(connection).get(table, ("", ""))
    if not sql or _module(sql):
        what = "is a virtual table, which cannot be rebuilt" if sql else "does not exist"
        raise MigrationError(f"the table {table_name} {what}. Nothing was changed.")
    options = _source(sql, _split_table(sql)[-1])
    changed = f"CREATE TABLE {_name(name)} (\n{definitions}\n) {options}".rstrip()
    with _closing(open_memory()) as scratch, _closing(open_memory()) as wanted:
        _copy_schema(connection, scratch)
        try:
            for *_, each in _read_application(connection):
                wanted.execute(changed if each == sql else each).fetchall()
        except (wanted.Error, wanted.Warning, ValueError) as error:
            raise MigrationError(f"the new definition of {name} is not valid: {error}. Nothing "
                                 "was changed.") from error
        new = _read_columns(wanted, name)
        missing = [column.name for key, column in _read_columns(scratch, name).items()
                   if key not in new or new[key].is_generated and not column.is_generated]
        if missing:
            raise MigrationError(f"the new definition of {name} lacks {', '.join(missing)}, whose "
                                 "values would be lost. Nothing was changed.")
        change = _Change(scratch, wanted, open_memory)
        change.rebuild(table, {})
        change.create_missing("index", "trigger")
        change.fill_indexes(())
        return [statement for _, statement in change.statements]


def _schema_of_scripts(migrations_dir: StrPath, to: int | None, connect: Connect,
                       report: _Report) -> str:
    """Return what get_schema() returns."""
    _announce(report, migrations_dir, to=MAX_VERSION if to is None else to)
    with _MemoryDatabase(connect, report.of_scratch()) as scratch:
        scratch.replay(migrations_dir, to)
        return _schema_text(scratch.read(_read_schema)[1])


def _create_script(folder: str, description: str, text: str, notes: list[str]) -> str:
    """Create the next script, with statements and notes or empty; return its path."""
    import re
    words, extension = os.path.splitext(description)
    if extension not in EXTENSIONS:
        words, extension = description, ".sql"
    slug = re.sub(r"[\W_]+", "-", words).strip("-").lower()
    if not slug:
        raise ValueError(f"{description!r} has no words to name a script by")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise _explain(error, "", (sqlite3.Error,), "Nothing was written.") from error
    number = max(_scripts(folder), default=0) + 1
    if number > MAX_VERSION:
        raise ValueError(f"there is a script {MAX_VERSION} already, the last there can be")
    path = os.path.join(folder, f"{number:04d}-{slug}{extension}")
    head = TEMPLATES[extension].format(" ".join(words.split()))
    if notes:
        head += "--\n-- This script\n" + "".join(
            f"--   {' '.join(note.split())}\n" for note in notes)
    head = head.replace("fastmigrate:", "fastmigrate :")  # no directive is meant
    text = head + ("\n" + text.rstrip("\n") + "\n" if text else "")
    try:
        with open(path, "xb") as file:
            file.write(text.encode(errors="backslashreplace"))  # an argument may hold any bytes
            file.flush()
    except FileExistsError:
        raise MigrationError(f"another process has just written {path}. Nothing was written by "
                             "this one. Run this again.") from None
    except BaseException as error:
        if isinstance(error, OSError):
            error = _explain(error, "", (sqlite3.Error,), "Nothing was written.")
        try:
            os.unlink(path)
        except OSError:
            pass  # it could not even be created
        raise error from None
    return path


# ------------------------------------------------------------------ squash


INSERT_SIZE = 64 * 1024  # characters of one INSERT, beyond which another one begins
SQUASHED_ENDING = "-squashed.sql"


def _squash(folder: str, to: int, connect: Connect, report: _Report) -> str:
    """Do what squash() does; return the path as a string. The directory changes only in the
    last step, when the new script is proved."""
    import tempfile
    path = os.path.join(folder, f"{to:04d}{SQUASHED_ENDING}")
    before = os.path.join(folder, f"before-{to:04d}")
    names = _squash_names(folder, to, path, before)
    _announce(report, folder, to=to)
    with tempfile.TemporaryDirectory(prefix="fastmigrate-") as room:
        built = _ScratchFile(os.path.join(room, "built.db"), connect, report.of_scratch())
        new = os.path.join(room, os.path.basename(path))
        built.replay(folder, to)
        with built.explained():
            with open(new, "w", encoding="utf-8", newline="") as file:
                file.writelines(_squash_text(built, to))
            wrong = _squash_difference(built, to, room)
            if wrong:
                raise MigrationError(
                    f"{path} would not build what the scripts up to {to} build: {wrong}. Nothing "
                    "was changed. Squash up to a script before the one that made this.")
            _squash_place(new, path, before, names)
    report.result(f"wrote {path}; moved {_plural(len(names), 'script')} to {before}")
    return path


def _squash_names(folder: str, to: int, path: str, before: str) -> dict[int, str]:
    """Return the names of the scripts to squash, by version; refuse what cannot be squashed."""
    listing = _scan(folder)
    _refuse_twins(listing)
    names = {version: name for version, name in listing.names.items() if version <= to}
    if to not in names or to == listing.squashed_version:
        raise MigrationError(f"{folder} has no script with the number {to:04d}, or it is squashed "
                             "already. Nothing was changed. Give the number of the last script "
                             "to squash.")
    for taken in (path, *(os.path.join(before, name) for name in names.values())):
        if os.path.lexists(taken):
            raise MigrationError(f"{taken} already exists, and squash puts a script there. Nothing "
                                 "was changed. Move it out of the way first.")
    return names


def _squash_place(new: str, path: str, before: str, names: dict[int, str]) -> None:
    """Put the new script into the directory, and move the old ones into a folder of it.

    The script of the new one's own number moves last. Until it has moved, the directory has
    two scripts of one number, which every run refuses: a half-done squash is never run.
    """
    import shutil
    folder = os.path.dirname(path) or "."
    with open(new, "rb") as source, open(path, "xb") as target:  # fails if another was faster
        try:
            shutil.copyfileobj(source, target)
            target.flush()
            _sync(path)
            os.makedirs(before, exist_ok=True)
        except BaseException:
            target.close()  # Windows removes no open file
            _remove(path)
            raise
    try:
        for _, name in sorted(names.items()):
            os.rename(os.path.join(folder, name), os.path.join(before, name))
    except OSError as error:
        raise MigrationError(f"{os.fsdecode(error.filename)}: {error.strerror}. The squash "
                             "stopped, and no script is lost. Fix this. " + _describe_squash_again(
                                 folder, os.path.basename(path), "Then ")) from error
    _sync(before)
    _sync(folder)


def _squash_again(listing: _Listing, names: list[str]) -> str:
    """Return what to do about several scripts of one number if a squash that was cut off can
    have left them, "" if not."""
    name = f"{names[0][:4]}{SQUASHED_ENDING}"
    return "" if name not in names else (
        _describe_squash_again(listing.folder, name, "If a squash was cut off, ")
        + "; else give the newer one another number.")


def _describe_squash_again(folder: str, name: str, start: str) -> str:
    """Return how to undo a squash that was cut off. `name` is that of its script."""
    return (f"{start}move the scripts in {os.path.join(folder, f'before-{name[:4]}')} back to "
            f"{folder}, delete {os.path.join(folder, name)} if it exists, and squash again")


def _squash_difference(built: _ScratchFile, to: int, room: str) -> str:
    """Return how the database that the only script in the directory `room` builds differs from
    `built`, "" if it does not. Each is written as a script, and the texts are compared: they
    are equal only for equal databases, because different values are never written alike."""
    from itertools import zip_longest
    proof = _ScratchFile(os.path.join(room, "proof.db"), built.connect, _Silence())
    try:
        proof.replay(room, None)
    except proof.errors as error:
        return "it fails: " + _first_line(error).replace(room + os.sep, "")
    for wanted, found in zip_longest(_squash_text(built, to), _squash_text(proof, to)):
        if wanted != found:
            return f"it leads to {str(found)[:200]!r} instead of {str(wanted)[:200]!r}"
    return ""


def _squash_text(database: _ScratchFile, to: int) -> Iterator[str]:
    """Yield the script that builds a database on an empty one, in pieces.

    Indexes follow the rows because that is faster. Views come before virtual tables because
    one may read its content from a view. Triggers come last so that none fires for a row.
    """
    with _closing(database.open()) as connection, _closing(database.open()) as rows:
        rows.text_factory = bytearray  # text need not be UTF-8; blobs are bytes
        objects = [("virtual" if _module(sql) else kind, name, sql.rstrip())
                   for kind, name, _, sql in _read_objects(connection)
                   if _fold(name) not in OWN_TABLES]
        tables = [_Table(connection, name, sql) for kind, name, sql in objects if kind == "table"]
        yield "-- fastmigrate: squashed\n"
        if any(_dangles(connection, child) for child in _parents(connection)):
            yield "-- fastmigrate: no-foreign-key-check\n"
        yield (f"-- The schema and the rows that the scripts up to {to:04d} lead to. The scripts "
               f"are in\n-- before-{to:04d}. A database at version {to} or above never runs "
               "this.\n")
        if _journal_mode(connection) == "wal":
            yield "PRAGMA journal_mode = WAL;\n"
        for table in tables:
            yield f"{_terminated(table.sql)}\n"
        checks = any("check" in _fold(table.sql) for table in tables)
        if checks:  # a row may have been written while they were not enforced
            yield "PRAGMA ignore_check_constraints = ON;\n"
        for table in tables:
            yield from _dump_rows(rows, table)
        if checks:
            yield "PRAGMA ignore_check_constraints = OFF;\n"
        if any(_is_sequenced(table.sql) for table in tables):
            yield "DELETE FROM sqlite_sequence;\n"
            yield from _dump_rows(rows, _Table(
                connection, *_read_table(connection, "sqlite_sequence")))
        for wanted in ("index", "view", "virtual", "trigger"):
            for kind, name, sql in objects:
                if kind == wanted:
                    yield f"{_terminated(sql)}\n"
                if kind == wanted == "virtual":
                    yield _fill_virtual(connection, name, sql)
        for pragma in ("user_version", "application_id"):
            value = connection.execute(f"PRAGMA {pragma}").fetchall()[0][0]
            if value:
                yield f"PRAGMA {pragma} = {value};\n"


def _fill_virtual(connection: sqlite3.Connection, name: str, sql: str) -> str:
    """Return the statement that fills a new virtual table: "" unless it is a full-text index
    over another table. Refuse one that has rows of its own."""
    table = _quoted(name)
    if _content_table(sql):
        return f"INSERT INTO {table} ({table}) VALUES ('rebuild');\n"
    try:
        has_rows = _holds_content(sql) and bool(
            connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall())
    except connection.OperationalError:
        has_rows = True  # what it holds cannot be read: an index without its texts
    if has_rows:
        raise MigrationError(
            f"the virtual table {name} has rows of its own, which cannot be squashed. Nothing was "
            "changed. Squash up to a script before the one that fills it, or let a script above "
            "fill it.")
    return ""


def _squashed_version(folder: str, names: dict[int, str]) -> int:
    """Return the number of the script that replaced all below it, 0 if there is none.

    So that no start pays for it, only a script that can be one is opened: by its name, or
    because it is the first there and not number 1.
    """
    first, found = min(names, default=0), 0
    for version, name in names.items():
        if name.endswith(SQUASHED_ENDING) or version == first > 1 and name.endswith(".sql"):
            script = _Script(folder, version, name)
            try:
                header = _read_header(script, _Reading(script).read_beginning())
            except _ScriptFailed:
                continue  # whoever runs it hears of it
            if "squashed" in header.directives:
                found = max(found, version)
    return found


def _squash_refusal(connection: sqlite3.Connection, version: int, to: int, listing: _Listing,
                    database: str) -> str:
    """Return why the squashed script cannot bring a database to a version, "" if it can or
    is not needed. It builds new databases only: the rows of others may be changed by now."""
    last, folder, names = listing.squashed_version, listing.folder, listing.names
    if version >= last or to <= version:
        return ""
    squashes = [os.path.join(folder, name) for name in sorted(os.listdir(folder))
                if f"before-{version + 1:04d}" <= name <= f"before-{last:04d}"]
    here = " and ".join(filter(os.path.isdir, squashes))
    release = f"a release that still has the scripts up to {last}" + (
        f" (here they are in {here})" if here else "")
    tables = [name for kind, name, *_ in _read_application(connection) if kind == "table"]
    if version:
        why = f"{database} is at version {version}"
        do = f"Migrate the database first with {release}."
    elif to < last:
        why = f"there is no version {to} in {folder} any more"
        do = f"Stop at {last} or above, or use {release}."
    elif min(names) < last:
        why = f"{names[min(names)]} in {folder} has a number below {names[last]}"
        do = (f"Delete it if {names[last]} replaced it; else give it a number above the latest "
              "script.")
    elif tables:
        why = f"{database} is at version 0 and has tables ({_cut(sorted(tables))})"
        do = (f"If the tables are those of version {last}, set the version with --set-version or "
              "set_db_version(); else begin with an empty database.")
    else:
        return ""
    return (f"{why}, and the scripts up to {last} in {folder} were squashed into one, which builds "
            f"new databases only. Nothing was changed. {do}")


# -------------------------------------------------------------- rows as SQL


class _Table:
    """A table that is not virtual: what its rows store, and what tells them from each other."""

    def __init__(self, connection: sqlite3.Connection, name: str, sql: str) -> None:
        self.name = name
        self.sql = sql
        self.columns = _read_columns(connection, name)  # by name in small letters
        self.has_integer_key = any(column.is_rowid for column in self.columns.values())
        names = ("rowid", "_rowid_", "oid") if _has_rowid(sql) else ()
        # The name by which the rowid can be read: "" if columns have taken them all.
        self.rowid = next((name for name in names if name not in self.columns), "")
        self.sequence = 0  # the highest id that AUTOINCREMENT has given
        if _is_sequenced(sql):
            self.sequence = connection.execute(
                "SELECT ifnull(max(CAST(seq AS INTEGER)), 0) FROM sqlite_sequence WHERE name = ?",
                (self.name,)).fetchall()[0][0]

    def stored(self) -> list[str]:
        """Return, quoted, the columns whose values a row stores, and before them its rowid if
        none of them is that."""
        columns = [_quoted(each.name) for each in self.columns.values() if not each.is_generated]
        return [self.rowid, *columns] if self.rowid and not self.has_integer_key else columns


def _dump_rows(connection: sqlite3.Connection, table: _Table) -> Iterator[str]:
    """Yield the INSERT statements, in pieces, that bring back the rows of a table exactly."""
    columns = table.stored()
    # A unary plus changes no value, but keeps `connect` with detect_types from converting it.
    values = ", ".join(f"+{column} AS c" for column in columns)
    left, end = 0, ""  # the characters that still fit into this INSERT, and how it ends
    for row in connection.execute(
            f"SELECT {values} FROM main.{_quoted(table.name)} NOT INDEXED"):
        if left <= 0:
            yield f"{end}INSERT INTO {_quoted(table.name)} ({', '.join(columns)}) VALUES\n"
            left, end = INSERT_SIZE, ";\n"
        else:
            yield ",\n"
        text = f"({', '.join([_literal(connection, value) for value in row])})"
        left -= len(text)
        yield text
    yield end


def _literal(connection: sqlite3.Connection, value: Any) -> str:
    """Return a value as SQL; text is given as bytearray. What an editor, a checkout or the
    reading of scripts could change in a text is written as bytes: control characters, blanks
    at the end of a line, what is not UTF-8."""
    if isinstance(value, float):
        return _float_literal(connection, value)
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    if isinstance(value, bytearray):
        text = value.decode(errors="surrogateescape")  # which cannot be printed
        if text.replace("\n", "").isprintable() and " \n" not in text:
            return _string(text)
        return f"CAST(X'{value.hex()}' AS TEXT)"
    return "NULL" if value is None else str(value)


def _float_literal(connection: sqlite3.Connection, value: float) -> str:
    """Return a float as SQL that every version of SQLite reads as the same bits. SQLite reads
    some long decimals one bit too high or low, and its versions differ. Such a float is written
    as a whole number that is multiplied or divided by powers of two, which is exact in all."""
    import math
    text = repr(value).replace("inf", "9e999")
    if len(text.partition("e")[0].strip("-0.")) <= 15 and connection.execute(
            f"SELECT {text}").fetchall()[0][0] == value:
        return text
    mantissa, exponent = math.frexp(value)
    exponent -= 53
    powers = [min(52, abs(exponent) - done) for done in range(0, abs(exponent), 52)]
    return f"CAST({int(mantissa * 2 ** 53)} AS REAL)" + "".join(
        f" {'*' if exponent > 0 else '/'} {2 ** power}.0" for power in powers)


# ------------------------------------------------------------------ comparing and enrolling


class _ScratchFile(_Database):
    """A database in a temporary directory, for what has to be a file."""

    def __init__(self, path: str, connect: Connect, report: _Report) -> None:
        super().__init__(path, connect=connect, report=report, durable=False)
        self.name = "the scratch database"

    def replay(self, migrations_dir: StrPath, to: int | None) -> None:
        """Create the database, and run the scripts up to a version."""
        self.create()
        _replay(self, migrations_dir, to)


class _BuiltFile(_Database):
    """A new database, which is removed if a script fails."""

    def standing_after(self, script: _Script, version: int) -> str:
        return f"{self.name} was not kept."


class _Rehearsed(_Database):
    """A copy of a database, for a rehearsal."""

    def __init__(self, original: _Database, path: str) -> None:
        super().__init__(path, original.timeout, original.connect, original.report, durable=False)
        self.name = f"the copy of {original.name}"
        self.path_as_given = original.path_as_given  # for commands to paste
        self.original = original.name
        original.copy_to(path)

    def standing_after(self, script: _Script, version: int) -> str:
        return f"This was a rehearsal: {self.original} is untouched."


def _verify(database: _Database, folder: str) -> str:
    """Return what verify() returns."""
    with database.explained():
        listing = _scan(folder)
        _refuse_twins_for(database, listing)
    version, schema = database.read(
        lambda connection, version: _schema_without_tools(database, connection))
    _announce(database.report, folder, to=version)
    with _MemoryDatabase(database.connect, database.report.of_scratch()) as scratch:
        return _diff_from_scripts(scratch, folder, version, schema, database.name)


def _schema_without_tools(database: _Database, connection: sqlite3.Connection) -> Schema:
    """Return the schema of a database; name the tables of other tools, which are no part of it."""
    tables = _read_bookkeeping(connection)
    if tables:
        database.report.result(f"left out of the schema of {database.name}, as another tool's "
                               f"bookkeeping: {_cut(tables)}")
    return _read_schema(connection)


def _replay(scratch: _Database, migrations_dir: StrPath, to: int | None) -> None:
    """Run the scripts up to a version on a scratch database, which cannot tell which of several
    scripts of one number ran on a real one."""
    listing = _scan(migrations_dir)
    _refuse_twins(listing)
    if listing.ignored:
        scratch.report.warn(_describe_ignored(listing))
    _Run(scratch, migrations_dir, to, listing=listing).run()


def _announce(report: _Report, migrations_dir: StrPath, where: str = "a scratch database",
              version: int = 0, to: int = MAX_VERSION) -> None:
    """Warn of the scripts that can write elsewhere than to their database: .py, .sh and ATTACH.
    Call this before the scripts above `version`, up to `to`, run on `where`."""
    import re
    attach = re.compile(rb"""\battach\s+(?:database\s+)?('[^']*'|"[^"]*"|[?:@$]\w*)\s+as\s""", re.I)
    folder = os.fsdecode(migrations_dir)
    scripts = [_Script(folder, number, name) for number, name in sorted(_scan(folder).names.items())
               if version < number <= to]

    def acts_elsewhere(script: _Script) -> bool:
        try:
            return not script.is_sql or any(map(attach.search, _Reading(script).lines()))
        except _ScriptFailed:
            return False  # it cannot be read, as the run will report

    found = [script.name for script in scripts if acts_elsewhere(script)]
    if found:
        report.warn(f"now running on {where}: {_cut(found)}. What they do outside of it "
                    "(files, other databases, the network) really happens.")


# -------------------------------------------------------------- enrolling


def _enroll(database: _Database, folder: str) -> int:
    """Do what enroll_db() does. The write lock is held, so that no other process changes the
    schema or sets the version meanwhile."""
    with database.explained(), database.writing() as connection:
        try:
            version = _read_version(connection, database.name)
        except _EmptyError:
            raise
        except UnversionedError:
            pass
        else:
            raise MigrationError(f"{database.name} is already versioned, at version {version}. "
                                 "Nothing was changed. Run fastmigrate without --enroll.")
        _forget(connection, MAX_VERSION, database.name)  # fails if the history is not ours
        schema = _schema_without_tools(database, connection)
        objects, written = _select_objects(connection), list[str]()
        listing = _scan(folder) if os.path.exists(folder) else None
        if listing:
            _refuse_twins(listing)
            if listing.ignored:
                database.report.warn(_describe_ignored(listing))
        if listing and listing.names:
            _announce(database.report, folder)
            version = _find_version(database, schema, folder, sorted(listing.names))
        else:
            version, written = 1, _enroll_script(database, schema, folder)
            listing = _scan(folder)
        try:
            connection.execute(CREATE_META)
            connection.execute(INSERT_META, (version,)).fetchall()
            _record(connection, version, [], listing, _broken_in(objects))
            database.commit(connection)
        except BaseException:
            if connection.in_transaction:  # it was not committed
                _remove(*written)
            raise
        for path in written:
            database.report.result(f"wrote {path}")
        return version


def _find_version(database: _Database, schema: Schema, folder: str, versions: list[int]) -> int:
    """Return the highest version whose schema, replayed, is this one."""
    with _MemoryDatabase(database.connect, database.report.of_scratch()) as scratch:
        diffs = {version: _diff_from_scripts(scratch, folder, version, schema, database.name)
                 for version in versions}
    fitting = [version for version in versions if not diffs[version]]
    if not fitting:
        nearest = min(reversed(diffs.values()), key=lambda diff: diff.count("\n"))
        squashed = _scan(folder).squashed_version
        older = (f" The scripts up to {squashed} were squashed into one: if it has the schema of "
                 "an older version, enroll and migrate it first with a release that still has the "
                 f"scripts up to {squashed}." if squashed else "")
        raise MigrationError(f"no version has the schema of {database.name}. The nearest:\n"
                             f"{nearest}\nNothing was changed. Write the next script so that it "
                             "leads to this schema, or change the database to fit, then run this "
                             f"again.{older}")
    if len(fitting) > 1:
        database.report.warn(
            f"the versions {', '.join(map(str, fitting))} all have the schema of "
            f"{database.name}. If the data is not that of {fitting[-1]}, use --set-version.")
    return fitting[-1]


def _enroll_script(database: _Database, schema: Schema, folder: str) -> list[str]:
    """Write the first script, which builds a schema, after a proof that it does; return the
    paths of what was written."""
    import tempfile
    text = ("-- The schema as it was when this database was put under management.\n"
            + _schema_text(schema))
    with tempfile.TemporaryDirectory(prefix="fastmigrate-") as room, \
            _MemoryDatabase(database.connect, database.report.of_scratch()) as scratch:
        _create_script(room, "initialize", text, [])
        diff = _diff_from_scripts(scratch, room, 1, schema, database.name)
    if diff:
        raise MigrationError(
            f"the schema of {database.name}, written as a script, builds another one:\n{diff}"
            "\nNothing was changed. Write 0001 by hand, then run this again.")
    path = _create_script(folder, "initialize", text, [])
    if os.path.basename(path) != "0001-initialize.sql":
        _remove(path)
        raise MigrationError(f"another process wrote to {folder} meanwhile. Nothing was "
                             "changed by this one. Run this again.")
    _sync(path)
    return [path]


# -------------------------------------------------------------- rehearsing


def _rehearse(database: _Database, folder: str, to: int | None, examples: int) -> dict[str, Any]:
    """Return what rehearse() returns."""
    import tempfile
    with database.explained():
        listing = _scan(folder)
        _refuse_twins_for(database, listing)
    _announce(database.report, folder, f"a copy of {database.name}", database.read()[0],
              MAX_VERSION if to is None else to)
    with database.explained(), tempfile.TemporaryDirectory(prefix="fastmigrate-") as room:
        copy, before = _Rehearsed(database, os.path.join(room, "copy.db")), f"{room}/before.db"
        copy.copy_to(before)
        version, (schema, rows, tables, names) = copy.read(_read_contents)
        run = _Run(copy, folder, to)
        run.run()
        _, (new_schema, new_rows, new_tables, new_names) = copy.read(_read_contents)
        with _closing(copy.open()) as connection:
            connection.set_progress_handler(  # lets Ctrl-C in
                _as_progress_handler(database.report.check_stop), TICK_INSTRUCTIONS)
            connection.text_factory = lambda text: text.decode(errors="replace")
            connection.execute("ATTACH ? AS before", (before,)).fetchall()
            compared = _compare_rows(connection, tables, new_tables, examples)
    return {
        "migrations": [{"version": each.script.version, "name": each.script.name,
                        "seconds": each.seconds} for each in run.applied],
        "diff": _diff_schemas(schema, new_schema, f"{database.name} at version {version}",
                              "after the pending scripts"),
        "rows": {name: [rows.get(table, 0), new_rows.get(table, 0)]
                 for table, name in sorted({**names, **new_names}.items())
                 if rows.get(table, 0) != new_rows.get(table, 0)},
        **compared, "broken": run.broken}


def _read_contents(connection: sqlite3.Connection, version: int,
                   ) -> tuple[Schema, dict[str, int], dict[str, _Table], dict[str, str]]:
    """Return the schema; and by the names of the tables in small letters: the number of rows of
    each that can be read, those that are not virtual, and the names as they are written."""
    schema, rows, tables, names = _read_schema(connection), {}, {}, {}
    for kind, name, sql in schema.values():
        if kind != "table":
            continue
        if not _module(sql):
            tables[_fold(name)] = _Table(connection, name, sql)
        names[_fold(name)] = name
        try:
            rows[_fold(name)] = _count(connection, _quoted(name), "1")[0]
        except connection.OperationalError:
            if not _module(sql):
                raise  # a virtual one may lack what it reads from
    return schema, rows, tables, names


def _compare_rows(connection: sqlite3.Connection, before: dict[str, _Table],
                  after: dict[str, _Table], examples: int) -> dict[str, dict[str, Any]]:
    """Compare the tables of the attached database `before` with those of the same name: return
    {"lost": {table: {column: values}}, "changed": {table: {column: values}}, "filled": {table:
    {column: values}}, "examples": {table: {column: [[key, before, after]]}}, "sequences":
    {table: [before, after]}}.

    SQLite compares, table by table, so that memory holds no rows.
    """
    found: dict[str, dict[str, Any]] = {
        "lost": {}, "changed": {}, "filled": {}, "examples": {}, "sequences": {}}
    for table in sorted(before.keys() & after.keys()):
        old, new = before[table], after[table]
        back = [old.sequence, new.sequence] if new.sequence < old.sequence else []
        for kind, values in zip(found, (*_compare_table(connection, old, new, examples), back)):
            if values:
                found[kind][new.name] = values
    return found


def _compare_table(connection: sqlite3.Connection, old: _Table, new: _Table, examples: int,
                   ) -> tuple[dict[str, int], dict[str, int], dict[str, int], dict[str, Any]]:
    """Return four dictionaries by column: how many values, other than NULL, were lost with a
    dropped column; how many values changed in a kept one; how many of the old rows have a value
    in a new one; and examples of the changed values.

    A dropped column has lost nothing if a new or a changed column holds its values now. A row
    that is not found by its old key counts as a change of the key. Rows by which the table has
    become smaller are not counted here, because the number of rows shows them.
    """
    gone = [each.name for column, each in old.columns.items() if column not in new.columns]
    kept = [each.name for column, each in new.columns.items() if column in old.columns]
    added = [each.name for column, each in new.columns.items() if column not in old.columns]
    key = _matching_key(old, new)
    source, target = f"before.{_quoted(old.name)} AS b", f"main.{_quoted(new.name)} AS a"
    joined = f"{source} JOIN {target} ON " + (" AND ".join(f"b.{n} = a.{n}" for n in key) or "0")
    matched, *numbers = _count(connection, joined, "1", *(_differs(name, name) for name in kept),
                               *(f"a.{_quoted(name)} IS NOT NULL" for name in added))
    changed = {name: number for name, number in zip(kept, numbers) if number}
    filled = {name: number for name, number in zip(added, numbers[len(kept):]) if number}
    lost = {}
    for name in gone:
        holds = f"b.{_quoted(name)} IS NOT NULL"
        number = _count(connection, source, holds)[0]
        moved_to = []
        for other in (*added, *changed):
            held, lost_here = _count(
                connection, joined, holds, f"{holds} AND {_differs(name, other)}")
            if held and not lost_here:
                moved_to.append(other)
        if number and not moved_to:
            lost[name] = number
        for other in moved_to:
            filled.pop(other, None)
    compared = [(name, f"b.{_quoted(name)}", _differs(name, name)) for name in changed]
    compared += [(name, "NULL", f"a.{_quoted(name)} IS NOT NULL") for name in filled]
    shown = {name: [[*row] for row in connection.execute(
        f"SELECT {', '.join(f'b.{n}' for n in key)}, {before}, a.{_quoted(name)} "
        f"FROM {joined} WHERE {condition} LIMIT {examples}").fetchall()]
        for name, before, condition in (compared if examples else ())}
    rows = _count(connection, source, " AND ".join(f"b.{n} IS NOT NULL" for n in key) or "0")
    moved = min(rows + _count(connection, target, "1")) - matched
    if moved > 0:
        changed[", ".join(map(_bare, key))] = moved
    return lost, changed, filled, shown


def _matching_key(old: _Table, new: _Table) -> list[str]:
    """Return, quoted, the columns by which the rows of a table are matched with those before: its
    primary key as it was or, if that has gone or has another type, the rowid; none if there
    is none, or if it is the key of only one of them."""
    def kind(table: _Table, column: str) -> str:
        declared = table.columns[column].type.upper() if column in table.columns else "none"
        return "INT" if "INT" in declared else declared

    key = [name for name, column in old.columns.items() if column.in_key]
    if key and all(kind(old, name) == kind(new, name) for name in key):
        return [_quoted(old.columns[name].name) for name in key]
    same = old.rowid == new.rowid and old.has_integer_key == new.has_integer_key
    return [old.rowid] if old.rowid and same else []


def _count(connection: sqlite3.Connection, source: str, *conditions: str) -> list[int]:
    """Return the number of rows for which each condition holds."""
    sums = ", ".join(f"ifnull(sum({condition}), 0)" for condition in conditions)
    return [*connection.execute(f"SELECT {sums} FROM {source}").fetchall()[0]]


def _differs(old: str, new: str) -> str:
    """Return a condition for two values that differ. Text is compared by its letters, whatever
    the collation. A column may have got another type: 7 and 7.0 are the same, and so are 7 and
    '7', but not 7 and '007'."""
    a, b = f"a.{_quoted(new)}", f"b.{_quoted(old)}"
    return (f"(+{a} COLLATE BINARY IS NOT +{b} AND (typeof({a}) = typeof({b}) "
            f"OR CAST({a} AS TEXT) COLLATE BINARY IS NOT CAST({b} AS TEXT)))")


# ------------------------------------------------------------------ messages


# The beginnings of SQLite's messages, each with (what it means to a person, what to do).
SQLITE_ERRORS: dict[str | tuple[str, ...], tuple[str, str]] = {
    "database is locked": ("database is locked: another connection holds {db}",
                           "Wait for it to finish, or raise --timeout"),
    "file is not a database": ("{db} is not a database, or is encrypted",
                               "Name the database file with --db, or give its key in connect"),
    ("no such module", "no such function", "no such collation sequence", "unknown function"): (
        "{text}", "Give a connect that provides it"),
    ("database disk image is malformed", "malformed database schema"): (
        "{db} is damaged ({text})", "Restore a backup of it with --restore"),
    "attempt to write a readonly database": (
        "{db} is read-only, and there is something to write",
        "Make the file and its directory writable for this user"),
    "unable to open database file": (
        "{db} cannot be opened ({text})",
        "Make the file and its directory readable and writable for this user"),
    "database or disk is full": ("no space is left for {db} ({text})", "Free some disk space"),
    "disk I/O error": ("the file system failed for {db} ({text})",
                       "Check that there is space, and that the disk is sound"),
    "out of memory": ("SQLite has no memory left ({text})", "Remove its limit on memory"),
}


OS_REMEDIES = {  # by the number of the system's error
    errno.ENOSPC: "Free some disk space",
    errno.EDQUOT: "Free some disk space",
    errno.EACCES: "Make the file and its directory writable for this user",
    errno.EPERM: "Make the file and its directory writable for this user",
    errno.EROFS: "Make the file and its directory writable for this user",
    errno.ENAMETOOLONG: "Use a shorter name",
    errno.ENOTDIR: "Name another path, because a part of this one is a file",
    errno.EEXIST: "Name another path, because a part of this one is a file",
}


class _ScriptFailed(Exception):
    """A script failed. What it did is rolled back, or was done on a copy."""

    def __init__(self, script: _Script, what: str, line: int | None = None,
                 statement: str | None = None, *, remedy: str = "Fix the script",
                 output: str = "") -> None:
        super().__init__(what)
        self.script = script
        self.what = what
        self.line = line
        self.statement = statement
        self.remedy = remedy
        self.output = output  # the end of what the script printed


def _explain_failure(failure: _ScriptFailed, database: _Database) -> MigrationError:
    """Build the MigrationError for the caller. Only now is it known where the database stands:
    the scripts before the failed one have been committed."""
    script, version = failure.script, None
    try:
        version = database.read()[0]
        state = database.standing_after(script, version)
    except (sqlite3.Error, OSError) as error:
        state = database.unreadable(error)
    where = script.path if failure.line is None else f"{script.path}:{failure.line}"
    lines = [line[:100] + ("..." if line[100:] else "")
             for line in (failure.statement or "").splitlines()]
    if len(lines) > 6:
        lines[5:] = [f"... ({len(lines) - 5} more lines)"]
    text = "\n    ".join([f"{where}: {failure.what}", *lines, *failure.output.splitlines()])
    return MigrationError(f"{text}\n{state}\n{failure.remedy}, then run this again.",
                          path=script.path, line=failure.line, statement=failure.statement,
                          version=version)


def _to_failure(database: _Database, script: _Script, error: BaseException,
                line: int | None = None, statement: str = "", why: str = "") -> BaseException:
    """Translate an exception raised while `script` ran. An SQLite error becomes _ScriptFailed,
    or KeyboardInterrupt if that is what caused it; a MigrationError and any other exception
    is returned unchanged."""
    if isinstance(error, MigrationError) or not isinstance(
            error, database.errors + (sqlite3.Warning, MemoryError)):
        return error
    if database.report.is_stopped() or not why and _is_interrupt(error, statement):
        return KeyboardInterrupt()
    message, remedy = why or str(error) or "out of memory", "Fix the script"
    meaning = _meaning_of(message, database.name)
    if statement.startswith("."):
        message = "a command of the sqlite3 program, not SQL"
        statement = statement.split("\n")[0]
    elif statement and not sqlite3.complete_statement(statement) and (
            "incomplete input" in message or "unrecognized token" in message):
        message = "the file ends within this statement, or within a quote in it"
    elif meaning:
        message, remedy = meaning
    elif stale := _stale_object_remedy(message):
        remedy = stale
    elif not statement:
        message = f"it cannot be committed with its version: {message}"
    return _ScriptFailed(script, message, line, statement or None, remedy=remedy)


def _is_interrupt(error: BaseException, statement: str = "") -> bool:
    """Return whether an error stands for a KeyboardInterrupt that was raised in a callback of
    SQLite. The sqlite3 module drops that exception. SQLite reports that the authorizer denied
    the statement, or that the progress handler interrupted it.

    Two other errors look like this: load_extension() is denied if extensions are off, and
    RAISE() in a trigger gives an IntegrityError with any text. (To catch the interrupt in the
    callbacks themselves works on Python 3.9, but never on 3.12 and 3.13.)
    """
    message = str(error)
    is_constraint = type(error).__name__ == "IntegrityError" or (  # PyPy's executescript()
        getattr(error, "sqlite_errorcode", 0) & 0xFF == SQLITE_CONSTRAINT)
    if isinstance(error, MigrationError) or is_constraint:
        return False
    return message == "interrupted" or "load_extension" not in statement.lower() and (
        message.startswith(("not authorized", "authorization denied"))
        or message.endswith("is prohibited"))


class _Explained:
    """Turn errors of SQLite and of the system into MigrationError. If what happens in this
    context can have changed the database, the message tells at which version it is now."""

    def __init__(self, database: _Database, changes: bool) -> None:
        self.database = database
        self.changes = changes

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        errors = self.database.errors
        if isinstance(error, errors) and _is_interrupt(error):
            raise KeyboardInterrupt from None
        if isinstance(error, MigrationError) or not isinstance(
                error, errors + (OSError, ValueError, MemoryError)):
            return
        state = self.database.standing() if self.changes else "Nothing was changed."
        raise self.database.explain(error, state) from error


def _explain(error: BaseException, name: str, errors: tuple[type[Exception], ...],
             state: str) -> MigrationError:
    """Return an error of SQLite's, or of the system's, as one of ours. `state` tells what has
    become of the database."""
    if isinstance(error, MigrationError):
        return error
    text = _reason(error, name, errors)
    meaning = _meaning_of(str(error), name) if isinstance(error, errors) else None
    if meaning:
        return MigrationError(f"{text}. {state} {meaning[1]}, then run this again.")
    remedy = OS_REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    if remedy:
        return MigrationError(f"{text}. {state} {remedy}, then run this again.")
    if isinstance(error, OSError) and "temporary directory" in str(error):
        text = ("no temporary directory can be written. Set TMPDIR to a directory with room for "
                "a copy of the database")
    return MigrationError(f"{name}: {text}" if isinstance(error, errors) else text)


def _reason(error: BaseException, name: str, errors: tuple[type[Exception], ...]) -> str:
    """Return what an error of SQLite's, or of the system's, means, in a few words."""
    if isinstance(error, OSError) and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    meaning = _meaning_of(str(error), name) if isinstance(error, errors) else None
    return meaning[0] if meaning else str(error) or "out of memory"  # MemoryError has no text


def _meaning_of(text: str, name: str) -> tuple[str, str] | None:
    """Return what an error of SQLite's means and what to do, None if it is in the SQL."""
    for sign, (meaning, remedy) in SQLITE_ERRORS.items():
        if text.startswith(sign):
            return meaning.format(db=name, text=text), remedy
    return None


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]


def _in_a_line(error: BaseException) -> str:
    """Return the message of an error in one line; of a failed script with the beginning of the
    statement, or the last line that it printed."""
    first, *lines = str(error).split("\n")
    shown = [line.strip() for line in lines if line.startswith("    ")]
    if shown and getattr(error, "path", None):
        return f"{first} ({shown[0 if error.statement else -1]})"  # type: ignore[attr-defined]
    return (first.rpartition(". ")[0] or first[:-1]) if first.endswith(":") else first


def _log(level: str, text: str) -> None:
    import logging  # no start-up that has nothing to say pays for it
    getattr(logging.getLogger("fastmigrate"), level)(text)


def _say(text: str, end: str = "\n", *, result: bool = False) -> None:
    file = sys.stdout if result else sys.stderr  # None if it was closed
    try:
        if file:
            print(text + end, end="", file=file, flush=True)  # at once: threads write too
    except (OSError, ValueError):
        pass  # nobody reads it: no reason for a migration to fail


class _Report:
    """Where the results, the warnings and the progress of a run go."""

    def __init__(self, results: bool = False, shows_output: bool = False, logged: bool = True,
                 target: str = "", stop: Sequence[int] = (),
                 said: set[str] | None = None) -> None:
        self.results = results  # print on stdout what was done
        self.shows_output = shows_output  # show the output of scripts as it comes
        self.logged = logged  # warnings are logged, else they go to stderr
        self.target = target  # " to NAME" where several databases are migrated
        self._stop = stop  # no longer empty when the work is to stop
        self._terminal = results and not logged and bool(
            sys.stderr and sys.stderr.isatty())  # show progress there
        self._said = set[str]() if said is None else said  # the warnings that were shown
        self._shown = self._started = 0.0

    def of_scratch(self) -> _Report:
        """Return a report for the work on a scratch database: it shows the warnings alone."""
        return _Report(logged=self.logged, stop=self._stop, said=self._said)

    def result(self, text: str) -> None:
        if self.results:
            self.end_progress()
            _say(text, result=True)

    def warn(self, text: str) -> None:
        if text in self._said:
            return  # a script that is run again says the same again
        self._said.add(text)
        self.end_progress()
        if self.logged:
            _log("warning", text)
        else:
            _say(f"warning: {text}")

    def error(self, text: str) -> None:
        self.end_progress()
        _say(f"error: {text}")

    def is_stopped(self) -> bool:
        """Return whether a signal has come. Its KeyboardInterrupt may never arrive here, because
        Python raises it in the main thread only, and SQLite swallows it in a callback."""
        return bool(self._stop)

    def check_stop(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self._stop:
            raise KeyboardInterrupt

    def progress(self, describe: Callable[[], str]) -> None:
        """Show what is being done, if it has lasted for more than a second."""
        if not self._terminal:
            return
        now = time.monotonic()
        self._started = self._started or now
        if now - self._started > 1 and now - self._shown > 0.1:
            self._shown = now
            _say("\r\x1b[K" + describe()[:79], end="")

    def end_progress(self) -> None:
        """What progress was shown for is over."""
        if self._shown:
            _say("\r\x1b[K", end="")
        self._started = self._shown = 0.0


class _Silence(_Report):
    """A report for work that repeats what was reported."""

    def warn(self, text: str) -> None:
        pass


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _seconds(duration: float) -> str:
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.1f} s"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ------------------------------------------------------------------ the command line


EXAMPLES = """
examples:
  fastmigrate --db app.db --createdb     create an empty database at version 0
  fastmigrate --new "add users"          create the next script, to be edited
  fastmigrate --db app.db --rehearse     try the pending scripts on a copy
  fastmigrate --db app.db --backup       back up app.db, then migrate it
  fastmigrate --db app.db --status       see what is applied or pending
  fastmigrate --db 'tenants/*.db'        migrate many databases

exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted by
SIGINT, 143 by SIGTERM, 129 by SIGHUP
"""


def _parser() -> argparse.ArgumentParser:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"error: {message}; see --help\n")

    parser = Parser(
        prog="fastmigrate", allow_abbrev=False, add_help=False, epilog=EXAMPLES,
        usage="fastmigrate [--db PATH] [--migrations DIR] [options]",
        description="Upgrade a SQLite database to the schema that your code expects: run the\n"
                    "migration scripts that it has not had yet, in order, each exactly once.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("where").add_argument
    add("--db", metavar="PATH", nargs="+", action="extend",
        help="the database; several, or a pattern in quotes (data/database.db)")
    add("--migrations", metavar="DIR", help="the migrations directory (migrations)")
    add("--config", metavar="FILE",
        help="an ini file with db, migrations and schema in [paths] (.fastmigrate)")
    add = parser.add_argument_group("migrating").add_argument
    add("--backup", action="store_true", help="make a backup first, if anything is pending")
    add("--to", metavar="N", type=_number(int, 0, MAX_VERSION), help="stop after version N")
    add("--timeout", metavar="S", type=_number(float, 0, 10 ** 9), default=30.0,
        help="seconds to wait for another process (30)")
    add("--jobs", metavar="N", type=_number(int, 1, 999), default=1,
        help="how many databases to work on at a time (1)")
    _add_actions(parser)
    add = parser.add_argument_group("from a schema file to a script").add_argument
    add("--schema", metavar="FILE", help="with --new: write the script that leads to the schema "
        "in FILE; with --verify: compare FILE with the schema of the scripts")
    for option, metavar, text in (
            ("--rename", "TABLE[.COLUMN]=NAME", "with --new: what gets another name"),
            ("--drop", "TABLE[.COLUMN]", "with --new: what is dropped, with its data"),
            ("--fill", "TABLE.COLUMN=SQL", "with --new: the value of a column in existing rows")):
        add(option, metavar=metavar, action="append", default=[], help=text)
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="with --status: for programs")
    add("-v", "--verbose", action="store_true",
        help="show the output of scripts, and changed values")
    add("-q", "--quiet", action="store_true", help="show warnings and errors only")
    add("--version", action="version", version=f"fastmigrate {__version__}",
        help="show the version of fastmigrate")
    add("-h", "--help", action="help", help="show this help")
    return parser


def _add_actions(parser: argparse.ArgumentParser) -> None:
    """Add the options that ask for something else than to migrate, of which one may be given."""
    add = parser.add_argument_group(
        "instead of migrating").add_mutually_exclusive_group().add_argument
    for flag, text in (
            ("--createdb", "create an empty database at version 0"),
            ("--status", "show the version, and the state of every script"),
            ("--check", "exit 0 only if every script is applied, and unchanged"),
            ("--verify", "compare the schema with that of the scripts"),
            ("--rehearse", "run what is pending on a copy; show what it changes"),
            ("--print-schema", "print the schema that the scripts lead to"),
            ("--enroll", "put an existing database under management"),
            ("--accept", "record the applied scripts as they are now")):
        add(flag, dest="action", action="store_const", const=flag[2:], help=text)
    add("--new", metavar="WORDS", help="create the next script; print its path")
    add("--squash", metavar="N", type=_number(int, 1, MAX_VERSION),
        help="replace the scripts up to N by a single one")
    add("--set-version", metavar="N", type=_number(int, 0, MAX_VERSION),
        help="set the version by hand; run no script")
    add("--restore", metavar="FILE",
        help="restore this backup; newest stands for the newest one")


def _number(kind: type, low: int, high: int) -> Callable[[str], Any]:
    import argparse

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            if low <= value <= high:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
    return parse


def _parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments, and the paths of the databases. A config gives defaults."""
    import re
    parser = _parser()
    for argument in sys.argv[1:] if argv is None else argv:
        if re.fullmatch("--[a-z-]+=--", argument):  # argparse made a list of that before 3.13
            parser.error(f"{argument[:-3]} needs a value")
    config = _read_config(parser.parse_args(argv).config)
    parser.set_defaults(migrations=config["migrations"], schema_of_config=config["schema"])
    arguments = parser.parse_args(argv)
    new, answers = arguments.new, (arguments.rename or arguments.drop or arguments.fill)
    schema = arguments.schema or arguments.schema_of_config
    migrates = new is None and (
        arguments.action, arguments.squash, arguments.set_version, arguments.restore) == (None,) * 4
    needs_database = new is None and arguments.squash is None and not (
        arguments.action == "print-schema" or arguments.schema is not None)
    databases = _find_databases(arguments.db or [config["db"]]) if needs_database else []
    for broken, rule in (
            (arguments.backup and not migrates, "--backup is only for migrating"),
            (arguments.to is not None and not migrates
             and arguments.action not in ("rehearse", "print-schema"),
             "--to is only for migrating, --rehearse and --print-schema"),
            (arguments.json and arguments.action != "status", "--json is only for --status"),
            (arguments.schema is not None and new is None and arguments.action != "verify",
             "--schema is only for --new and --verify"),
            (arguments.restore is not None and len(databases) > 1,
             "--restore takes only one database"),
            (answers and new is None, "--rename, --drop and --fill are only for --new"),
            (answers and new is not None and new.endswith(EXTENSIONS[1:]),
             "--rename, --drop and --fill are only for an SQL script"),
            (answers and not schema, "--rename, --drop and --fill need a schema: --schema FILE")):
        if broken:
            parser.error(rule)
    try:
        _read_answers(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments, databases


def _read_answers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return --rename, --drop and --fill as new_migration() takes them.

    Raises: ValueError if one is not of its form.
    """
    rename, fill = ([_split_answer(text) for text in texts]
                    for texts in (arguments.rename, arguments.fill))
    for name in (*dict(rename), *arguments.drop):
        _split_dotted(name)
    for name, _ in fill:
        if not _split_dotted(name)[1]:
            raise ValueError(f"{name!r} is not TABLE.COLUMN")
    if len(dict(rename)) < len(rename) or len(dict(fill)) < len(fill):
        raise ValueError("--rename and --fill take each name once")
    return {"rename": dict(rename), "drop": arguments.drop, "fill": dict(fill)}


def _read_config(named: str | None) -> dict[str, str]:
    """Return the paths of a config, or of .fastmigrate if that exists, else the defaults. Paths
    in a config are relative to it."""
    paths = {"db": os.path.join("data", "database.db"), "migrations": "migrations", "schema": ""}
    path = ".fastmigrate" if named is None else named
    if named is None and not os.path.exists(path):
        return paths
    import configparser
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        with open(path, encoding="utf-8-sig") as file:
            parser.read_file(file)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        what = (f"cannot be read: {error.strerror}" if isinstance(error, OSError) else
                f"is broken: {' '.join(str(error).split())}")
        raise MigrationError(f"the config {path} {what}. Nothing was changed. Name another one "
                             "with --config.") from error
    for section in parser.sections():
        for key, value in parser[section].items():
            if section != "paths" or key not in paths:
                _say(f"warning: {path}: unknown key {key} in [{section}]. The keys are db, "
                     "migrations and schema in [paths].")
            elif value:
                paths[key] = os.path.join(os.path.dirname(path), value)
    return paths


def _find_databases(patterns: list[str]) -> list[str]:
    """Return the databases that paths and patterns name, without what lies beside them."""
    import glob
    import re
    found: list[str] = []
    beside = re.compile(r".*(?:\.backup|\.before-restore|-journal|-wal|-shm|"
                        + WORKING_COPY + ")", re.S)
    for pattern in patterns:
        matches = [pattern]
        if not os.path.lexists(pattern) and glob.has_magic(pattern):
            matches = sorted(path for path in glob.glob(pattern) if not beside.fullmatch(path))
            if "*" in pattern and not matches:
                raise MigrationError(f"no file matches {pattern}. Name databases with --db.")
        found += matches or [pattern]
    return list(dict.fromkeys(found))


# -------------------------------------------------------------- one database


class _Outcome:
    """What became of one database: the exit code, and how it stands, in a few words."""

    def __init__(self, code: int, text: str, never_run: Iterable[str] = ()) -> None:
        self.code = code
        self.text = text
        self.never_run = never_run  # scripts that need other numbers


def _command(arguments: argparse.Namespace, database: _Database, several: bool = False,
             listing: _Listing | None = None) -> _Outcome:
    """Do what the command line asks for with one database. With a listing of the migrations
    directory, the caller reports what is wrong with that."""
    folder, action, report = arguments.migrations, arguments.action, database.report
    path = database.path_as_given
    if action in ("status", "check"):
        found = _status(database, folder, listing, several)
        return _show(found, action, arguments.json, several, report, folder)
    if action == "verify":
        return _Outcome(_show_difference(
            _verify(database, folder), path, "was changed by other means than its scripts, or a "
            "script was edited or never ran on it (--check tells). To keep a change by other "
            "means, write a script that makes it, and mark that as applied with --set-version.",
            report), "as the scripts say")
    if action == "rehearse":
        examples = 3 if arguments.verbose else 0
        return _show_rehearsal(_rehearse(database, folder, arguments.to, examples), path, report)
    if action == "createdb":
        created = database.is_missing() and database.create()
        what = "created" if created else "already exists"
        report.result(f"{path} {what}, at version {database.read()[0]}")
        return _Outcome(0, "created" if created else "there already")
    if action == "accept":
        names = _accept_edits(database, folder)
        report.result(f"accepted for {path}: {_cut(names)}" if names else
                      f"nothing to accept for {path}")
        return _Outcome(0, "accepted")
    if action == "enroll":
        version = _enroll(database, folder)
        report.result(f"{path} is under management now, at version {version}")
    elif arguments.set_version is not None:
        database.set_version(version := arguments.set_version)
        report.result(f"{path} is at version {version} now; no script was run")
    elif arguments.restore is not None:
        backup = _find_backup(database) if arguments.restore == "newest" else arguments.restore
        version = _restore(database, backup)
        report.result(f"{path} is what {backup} is, at version {version}: the next run goes on "
                      "from there")
    else:
        run = _Run(database, folder, arguments.to, arguments.backup, listing)
        run.run()
        return _Outcome(0, f"at version {run.version}", run.never_run)
    return _Outcome(0, f"at version {version}")


def _find_backup(database: _Database) -> str:
    """Return the newest backup of a database, by the time in its name."""
    import glob
    import re
    path = database.path_as_given
    pattern = re.compile(re.escape(os.path.basename(path)) + r"\.\d{8}_\d{6}\.backup", re.S)
    found = [name for name in glob.glob(glob.escape(path) + ".*.backup")
             if pattern.fullmatch(os.path.basename(name)) and os.path.getsize(name)]
    if not found:
        raise MigrationError(f"there is no backup of {path}: no file matches {path}.*.backup. "
                             "Nothing was changed. Name one.")
    return max(found)


def _show(found: dict[str, Any], action: str, as_json: bool, several: bool,
          report: _Report, folder: str) -> _Outcome:
    """Show what --status or --check found: for one database all of it, for several a line."""
    never_run = [m["name"] for m in found["migrations"] if m["state"] in ("late", "conflict")]
    if action == "check":
        code = _show_checked(found, several, report, folder)
        return _Outcome(code, "as the scripts say", never_run)
    if as_json:
        _print_json(found, several)
    elif several:
        _say(_summary(found), result=True)
    else:
        _show_status(found)
    return _Outcome(0, f"at version {found['version']}", never_run)


def _print_json(found: dict[str, Any], several: bool) -> None:
    """Print JSON, for one of several databases in a line. Not by _say(), because a program must
    not take a part of the output for all of it."""
    import json
    print(json.dumps(found, indent=None if several else 1) + "\n", end="", flush=True)


def _summary(found: dict[str, Any]) -> str:
    """Return how a database stands, in a line."""
    states = [m["state"] for m in found["migrations"] if m["state"] != "applied"]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    problem = (found["problems"] or ["up to date"])[0].partition(". ")[0].split("\n")[0]
    return f"{found['db']} is at version {found['version']}: {counts or problem}"


def _show_checked(found: dict[str, Any], several: bool, report: _Report, folder: str) -> int:
    """Show what --check found; return the exit code."""
    path, problems = found["db"], list(found["problems"])
    pending = [m["name"] for m in found["migrations"] if m["state"] == "pending"]
    if pending and not found["blocked"]:
        problems.append(f"{path}: {len(pending)} pending: {_cut(pending)}. Run "
                        f"{_program_for(path, folder)}")
    is_short = several and not report.results  # without --verbose
    for problem in [_summary(found)] if is_short and problems else problems:
        report.error(problem)
    if not problems:
        report.result(f"{path} is at version {found['version']}, as the scripts say")
    for warning in found["warnings"]:
        report.warn(warning)
    return int(bool(problems))


def _show_status(found: dict[str, Any]) -> None:
    """Show what --status found: each script in a line of at most 80 columns."""
    _say(f"{found['db']} is at version {found['version']}; the scripts end at "
         f"{found['latest']}", result=True)
    width = min(47, max((len(script["name"]) for script in found["migrations"]), default=0))
    for script in found["migrations"]:
        name = script["name"]
        name = name if len(name) <= width else name[:width - 3] + "..."
        when = (script["applied_at"] or "").replace("T", " ")
        _say(f"  {name:{width}}  {script['state']:9}{when}".rstrip(), result=True)
    for problem in (*found["problems"], *found["warnings"]):
        _say(f"warning: {problem}")


def _show_difference(diff: str, path: str, problem: str, report: _Report) -> int:
    """Show what --verify found; return the exit code."""
    report.result(diff.rstrip("\n") or f"the schema of {path} is that of the scripts")
    if diff:
        report.error(f"{path} {problem}")
    return int(bool(diff))


def _show_rehearsal(found: dict[str, Any], path: str, report: _Report) -> _Outcome:
    def by_column(tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {f"{table}.{column}": value for table, columns in tables.items()
                for column, value in columns.items()}

    if found["diff"]:
        report.result("\n" + found["diff"].rstrip("\n"))
    examples = by_column(found["examples"])
    for title, changes in (
            ("rows", found["rows"]),
            ("values lost with a dropped column", by_column(found["lost"])),
            ("values changed", by_column(found["changed"])),
            ("values in new columns", by_column(found["filled"])),
            ("AUTOINCREMENT goes back, so that ids are used again", found["sequences"])):
        if changes:
            report.result(f"\n{title}:")
        width = max(map(len, changes), default=0)
        for name, number in changes.items():
            text = number if isinstance(number, int) else " -> ".join(map(str, number))
            report.result(f"  {name:{width}}  {text}")
            for *key, before, after in examples.get(name, ()):
                report.result(f"    {', '.join(map(repr, key))}: {before!r} -> {after!r}")
    elsewhere = "" if all(m["name"].endswith(".sql") for m in found["migrations"]) else (
        " What .py and .sh scripts do outside of the database, they did.")
    report.result(f"\nThis was a rehearsal: {path} is untouched.{elsewhere}")
    if found["broken"]:
        report.error("the scripts leave something that no longer works: see the warnings")
    return _Outcome(int(bool(found["broken"])), "rehearsed")


# -------------------------------------------------------------- several databases


def _several(arguments: argparse.Namespace, databases: list[str], connect: Connect,
             signals: _Signals) -> int:
    """Do with each of several databases what the command line asks for; sum up; return the
    exit code.

    With --jobs, threads work on them: they wait for the disk most of the time. (Processes
    were slower, and a pool of processes hangs on some Pythons when one is killed.)
    """
    action, todo, outcomes = arguments.action, databases[::-1], dict[str, _Outcome]()
    listing = None  # read once, and its problems are reported once
    needs_scripts = action not in ("createdb", "enroll") and arguments.set_version is None
    if needs_scripts and not arguments.json:
        listing = _scan(arguments.migrations)
        if listing.twins and action not in ("status", "check"):
            raise ValueError("\nerror: ".join(
                _describe_shared_problems(databases, connect, listing, set())))

    def work() -> None:
        while todo and not signals.came:
            try:
                path = todo.pop()
            except IndexError:
                break  # another thread took the last
            outcomes[path] = _work_on(arguments, path, connect, signals.came, listing)

    if arguments.jobs > 1 and action != "enroll":  # the first may write the script for all
        _in_threads(min(arguments.jobs, len(todo)), work, signals)
    else:
        work()
    signals.let_through()
    never_run = {name for outcome in outcomes.values() for name in outcome.never_run}
    problems = (_describe_shared_problems(databases, connect, listing, never_run)
                if listing else [])
    for problem in problems:
        _say(f"{'error' if action == 'check' else 'warning'}: {problem}")
    failed = [path for path in databases if outcomes[path].code]
    if not (arguments.quiet or arguments.json or action == "check" and problems):
        texts = ["failed" if each.code else each.text for each in outcomes.values()]
        _say(", ".join(f"{_plural(texts.count(text), 'database')} {text}"
                       for text in dict.fromkeys(texts)), result=True)
    if failed:
        is_short = not arguments.verbose and "failed" in [each.text for each in outcomes.values()]
        _say(f"error: {len(failed)} of {len(databases)} failed: {_cut(failed)}"
             + ("; --verbose tells the whole story" if is_short else ""))
    return int(bool(failed or action == "check" and problems))


def _work_on(arguments: argparse.Namespace, path: str, connect: Connect, stop: list[int],
             listing: _Listing | None) -> _Outcome:
    """Do with one of several databases what is asked for; report a failure in one line."""
    tells_all = (arguments.verbose or arguments.action == "enroll") and not arguments.quiet
    report = _Report(tells_all, arguments.verbose, logged=False, target=f" to {path}", stop=stop)
    try:
        database = _Database(path, arguments.timeout, connect, report)
        return _command(arguments, database, True, listing)
    except (sqlite3.Error, OSError, ValueError, MemoryError) as error:
        text = str(error) if arguments.verbose else _in_a_line(error)
        report.error(text if path in text else f"{path}: {text}")
        if arguments.json:
            _print_json({"db": path, "error": str(error)}, several=True)
        return _Outcome(1, "failed")


def _in_threads(number: int, work: Callable[[], None], signals: _Signals) -> None:
    """Run `work` in so many threads, and wait for all of them. A signal asks them to stop, but
    raises nothing in this thread until signals.let_through() is called."""
    import threading

    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except KeyboardInterrupt:
            pass  # it was asked to stop
        except BaseException as error:  # of the application's `connect`, say
            errors.append(error)

    # In Python 3.9 to 3.12, an exception during join() marks the thread as ended although it
    # still works. The process would then exit too early.
    signals.hold_back()
    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(POLL_SECONDS)  # in turns: on Windows a signal comes in between
    if errors:
        raise errors[0]


def _describe_shared_problems(databases: list[str], connect: Connect, listing: _Listing,
                              suspects: set[str]) -> list[str]:
    """Report what is wrong with the migrations directory of several databases. `suspects` are
    scripts that never ran on one of them, and need other numbers."""
    ran: dict[str, list[str]] = {}
    newest = 0
    for path in databases if suspects or listing.twins else ():
        try:
            version, states = _Database(path, connect=connect).read(
                lambda connection, version: _read_states(
                    connection, version, listing, "", thorough=True))
        except (sqlite3.Error, OSError):
            continue  # this is reported when the database is worked on
        newest = max(newest, version)
        for each in states:
            if each.has_run:
                ran.setdefault(each.name, []).append(path)
    new_names = _propose_names(suspects, ran, listing, newest)
    texts = _describe_twins(listing, ran, new_names)
    alone = sorted(suspects.difference(*listing.twins.values()))
    texts += [f"{name}: applied to {_cut(ran[name])}, but not to all of these databases. Give it "
              "a number above the latest, and change it to do nothing if already applied."
              for name in alone if name in ran]
    free = [name for name in alone if name not in ran]
    if free:
        texts.append(f"{_cut(free)}: applied to none of these databases. The next free number"
                     f"{_move_commands(free, new_names, listing.folder)}")
    return texts + ([_describe_ignored(listing)] if listing.ignored else [])


# -------------------------------------------------------------- the program


class _Signals:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a KeyboardInterrupt. Later signals, and all
    after hold_back(), are only noted in `came`. The old handlers are restored on exit."""

    def __init__(self) -> None:
        self.came: list[int] = []  # not empty when the work is to stop
        self._held_back = True  # until it is known where a KeyboardInterrupt is caught
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        import signal
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # the last one is on Windows
            number = getattr(signal, name, None)
            if number is None or name == "SIGHUP" and (
                    signal.getsignal(number) != signal.SIG_DFL):
                continue  # there is none on Windows, and nohup ignores it
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:
                break  # not in the main thread: signals are somebody else's
        return self

    def __exit__(self, *details: object) -> None:
        import signal
        self.hold_back()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came.append(number)
        if len(self.came) == 1 and not self._held_back and not _is_callback_of_pypy(frame):
            raise KeyboardInterrupt

    def hold_back(self) -> None:
        """From here on, a signal is noted in `came`, and interrupts nothing."""
        self._held_back = True

    def let_through(self) -> None:
        """Raise KeyboardInterrupt if a signal has come, or when the first one comes."""
        self._held_back = False
        if self.came:
            raise KeyboardInterrupt


def _is_callback_of_pypy(frame: FrameType | None) -> bool:
    """Return whether SQLite has called the code that runs, on PyPy, which prints exceptions
    there and goes on: the next function that looks for signals ends the work."""
    while IS_PYPY and frame:
        if frame.f_code.co_filename.endswith("_sqlite3.py") and frame.f_code.co_name in (
                "authorizer", "progress_handler", "collation_callback", "_function_callback"):
            return True
        frame = frame.f_back
    return False


def main(argv: list[str] | None = None, *, connect: Connect = sqlite3.connect) -> int:
    """Run the command line; return its exit code: 0 done, 1 refused or
    failed, 2 wrong usage, 130 interrupted, 143 terminated, 129 hung up.

    Args:
        argv: the arguments, without the program's name; None for those of
            the process.
        connect: for a program that is the command line of databases that
            need an extension or a key.
    """
    databases: list[str] = []
    with _Signals() as signals:
        try:
            try:
                signals.let_through()
                code = _main(argv, connect, databases, signals)
            except SystemExit as error:  # of argparse, or of the application's `connect`
                if isinstance(error.code, str):
                    _say(f"error: {error.code}")
                code = error.code if isinstance(error.code, int) else int(bool(error.code))
            except (sqlite3.Error, OSError, ValueError, MemoryError) as error:
                signals.hold_back()
                if isinstance(error, OSError) and error.filename:
                    error = _explain(error, "", (sqlite3.Error,), "Nothing was changed.")
                _say(f"error: {error or 'out of memory'}")
                code = 1
            signals.hold_back()
        except KeyboardInterrupt:
            standing = "--status tells where each database stands." if len(databases) != 1 else (
                _Database(databases[0], 0.3, connect).standing())
            _say(f"interrupted: {standing} Run this again to go on.")
            code = 128 + (signals.came or [2])[0]
    return code


def _main(argv: list[str] | None, connect: Connect, databases: list[str],
          signals: _Signals) -> int:
    """Do what the command line asks for; return the exit code. Append to `databases` those that
    it names, for the message of an interrupt."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold any bytes
    arguments, named = _parse_arguments(argv)
    report = _Report(not arguments.quiet, arguments.verbose, logged=False, stop=signals.came)
    if arguments.new is not None:
        typed = arguments.schema  # with that of the config, a script may be meant to be empty
        schema = arguments.schema_of_config or None if typed is None else typed
        _say(_write_next_script(arguments.migrations, arguments.new, schema,
                                _read_answers(arguments), connect, report,
                                may_be_empty=typed is None), result=True)
        return 0
    if arguments.squash is not None:
        _squash(arguments.migrations, arguments.squash, connect, report)
        return 0
    if arguments.action == "print-schema":
        if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # as schema.sql is read
        # Not by _say(): half a file must not pass for the whole one.
        text = _schema_of_scripts(arguments.migrations, arguments.to, connect, report)
        print(text, end="", flush=True)
        return 0
    if arguments.schema is not None:
        path = arguments.schema
        diff = _verify_schema_file(arguments.migrations, path, connect, report)
        return _show_difference(
            diff, path, "is not the schema of the scripts. Write the script that leads to it with "
            f"--new WORDS --schema {path}, or write {path} anew with --print-schema.", report)
    databases += named
    if len(databases) > 1:
        return _several(arguments, databases, connect, signals)
    database = _Database(databases[0], arguments.timeout, connect, report)
    return _command(arguments, database).code


def _program() -> int:
    """Be the program of this process: no signal changes its exit code while Python ends."""
    import signal
    for number in (signal.SIGINT, signal.SIGTERM):  # main() has other handlers
        signal.signal(number, signal.SIG_IGN)
    while os.open(os.devnull, os.O_RDWR) < 2:
        pass  # a stream is closed: no file of ours must be taken for it
    return main()


if __name__ == "__main__":
    sys.exit(_program())
