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
    ValueError         two scripts have one number, or a name is not UTF-8; calls that
                       open a database raise a MigrationError instead
    MigrationError     anything else that prevents the call. Unless a
                       migration had already run, nothing was changed.

How it works:

    Batch. Pending SQL scripts share one transaction, which also sets the
    version (the one row of the table _meta).
    Replay. If a script fails, the batch is rolled back, and the scripts
    before the failed one run again without it. If a script has to run in
    another way, that is added to its _Plan, and the batch starts again.
    Working copy. A script that cannot run inside a transaction (.py, .sh,
    VACUUM) runs on a copy of the database. The runner holds the write lock
    of the database from before the copy is made until the swap is done.
    Swap. SQLite's backup API writes the copy, with the new version in it,
    over the database in one transaction. Until this transaction commits,
    the database is untouched, so a failure leaves nothing to undo.
    History. The table _migration_history holds the name and checksum of
    each applied script. Comparing it with the directory shows which scripts
    are edited, late, missing or in conflict.

The code comes in this order: public calls; the run, SQL scripts, working
copies; foreign keys, script files, history, the database file, scratch
databases, processes, schemas, what no longer works, from schema.sql to a
script, squash, enrolling, messages, the command line. The run, SQL
scripts and working copies are 980 lines, and carry the promises. What comes
after them can be skipped until it is needed.
"""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import sys
import time
from collections import Counter, deque, namedtuple  # sqlite3 imports collections, too
from operator import attrgetter, methodcaller  # and collections this

TYPE_CHECKING = False  # as in typing, which takes long to import
if TYPE_CHECKING:
    import argparse
    import subprocess
    import tempfile
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import IO, Any, NoReturn, TypeVar, Union

    StrPath = Union[str, "os.PathLike[str]"]
    Connect = Callable[[str], sqlite3.Connection]
    ForeignKey = tuple[str, str, tuple[str, ...]]  # child, parent, columns of the child
    KeysThatDangle = dict[ForeignKey, "Counter[Any]"]  # see _read_dangling()
    Row = tuple[str, str, str]  # of the history: name, checksum, when it was applied
    History = dict[int, Row]  # by number
    T = TypeVar("T")
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
GIVEN = "the database that it was given"  # the working copy of a script, in messages
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
    return 0 if database.create() else database.read()[0]


create_db = ensure_versioned_db


def run_migrations(db_path: StrPath, migrations_dir: StrPath, verbose: bool = False,
                   **options: Any) -> bool:
    """Call migrate() with the same options. Return True, or False with the
    reason logged as an error."""
    try:
        migrate(db_path, migrations_dir, verbose=verbose, **options)
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
    database = _Database(db_path, timeout, connect, _Report(verbose, verbose))
    applied_scripts = _Run(database, migrations_dir, to, backup).run()
    if not applied_scripts:
        return []
    from pathlib import Path  # which takes long to import
    return [Path(applied.script.path) for applied in applied_scripts]


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


def _last_version(to: int | None) -> int:
    """Return the last version to apply; raise MigrationError if `to` is none."""
    if to is not None:
        _check_version(to)
    return MAX_VERSION if to is None else to


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
        return Path(_back_up(_Database(db_path, connect=connect)))
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
        with _Scratch(connect) as scratch:
            _replay(scratch, migrations_dir, to)
            connection = connect(":memory:")  # with the caller's settings, not with ours
            with _closing(scratch.open()) as built:
                _journal_mode(built, "DELETE")
                _copy_pages(built, connection)
            return connection
    database = _ScratchFile(path, os.fsdecode(path), f"{os.fsdecode(path)} was not kept.",
                            connect=connect)
    if not database.create():
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
    database, folder = _as_database(db_path, connect), os.fsdecode(migrations_dir)
    with database.explained():
        listing = _scan(folder)
        _refuse_twins_for(database, listing)
    version, (schema, history) = database.read(lambda connection, version: (
        _schema_without_tools(database, connection), _read_history(connection, version)))
    states = _compare_history(history, version, listing)
    for problem in sum(_find_problems(states, listing, version, database,
                                      several=bool(database.report.target)), []):
        database.report.warn(problem)
    return _diff_schemas(_schema_of_scripts(folder, version, database.connect, database.report),
                         schema, f"the scripts up to {version}", database.name)


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
        "untouched": False if the database itself was changed meanwhile, by
            another program or by a script that does not use the copy
    """
    database, folder = _as_database(db_path, connect), os.fsdecode(migrations_dir)
    with database.explained():
        listing = _scan(folder)
        _refuse_twins_for(database, listing)
    _announce(database.report, listing, database.read()[0], to)
    with database.explained(), _temporary_directory() as room:
        before = os.path.join(room, "before.db")
        copy = _ScratchFile(os.path.join(room, "copy.db"), f"the copy of {database.name}",
                            f"This was a rehearsal: {database.name} is untouched.",
                            database.path_as_given, timeout=database.timeout,
                            connect=database.connect, report=database.report, durable=False)
        _copy_database(database, copy.path)
        _copy_database(copy, before)
        version, (schema, tables) = copy.read(_read_contents)
        run = _Run(copy, folder, to)
        untouched = _run_beside(run, database)
        _, (new_schema, new_tables) = copy.read(_read_contents)
        with _closing(copy.open()) as connection:
            connection.set_progress_handler(  # lets Ctrl-C in
                _as_callback(database.report.check_stop), TICK_INSTRUCTIONS)
            connection.execute("ATTACH ? AS before", (before,)).fetchall()
            compared = _compare_tables(connection, tables, new_tables, examples)
    return {
        "migrations": [{"version": each.script.version, "name": each.script.name,
                        "seconds": each.seconds} for each in run.applied],
        "diff": _diff_schemas(schema, new_schema, f"{database.name} at version {version}",
                              "after the pending scripts"),
        **compared, "broken": run.broken, "untouched": untouched}


def enroll_db(db_path: StrPath, migrations_dir: StrPath, *,
              connect: Connect = sqlite3.connect) -> int:
    """Put an unversioned database under management; return its version.

    The database gets the highest version at which the scripts build its
    schema. If there are no scripts, 0001-initialize.sql is written from the
    schema, after a proof that it builds the same one; the version is 1.

    Raises: MigrationError also if the database has a version already, or if
        no version has its schema: the text shows the nearest as a diff.
    """
    database, folder = _as_database(db_path, connect), os.fsdecode(migrations_dir)
    # The lock is held, so that no other process changes the schema or sets the version meanwhile.
    with database.explained(), database.writing() as connection:
        if connection.execute(HAS_META).fetchall() or _is_empty(connection):
            version = _read_version(connection, database.name)  # raises if it is empty
            raise MigrationError(f"{database.name} is already versioned, at version {version}. "
                                 "Nothing was changed. Run fastmigrate without --enroll.")
        _read_history(connection, MAX_VERSION)  # fails if it is not ours
        schema = _schema_without_tools(database, connection)
        written = ""
        listing = _scan_unique(folder) if os.path.exists(folder) else _Listing(folder, {}, {}, [])
        if listing.ignored:
            database.report.warn(_describe_ignored(listing))
        if listing.names:
            _announce(database.report, listing)
            version = _find_version(database, schema, listing)
        else:
            version, written = 1, _write_first_script(database, schema, folder)
            listing = _scan(folder)
        try:
            connection.execute(CREATE_META)
            connection.execute(INSERT_META, (version,)).fetchall()
            _record(connection, version, [], listing, _read_objects(connection))
            database.commit(connection)
        except BaseException:
            if written and connection.in_transaction:  # it was not committed
                _remove(written)
            raise
        if written:
            database.report.result(f"wrote {written}")
        return version


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
            an existing column, the value replaces NULL only. The expression
            has to use the new names of what is renamed.

    Raises: ValueError also if there are no words, or 9999 is taken;
        FileNotFoundError if there is no such schema file; MigrationError
        with the questions that `rename`, `drop` or `fill` must answer, or
        if the scripts already lead to this schema.
    """
    from pathlib import Path
    if schema is None and (rename or drop or fill):
        raise MigrationError("rename, drop and fill need a schema file. Nothing was written.")
    return Path(_write_next_script(
        migrations_dir, description, schema, connect, _Report(),
        rename={name: str(new) for name, new in rename.items()},
        drop=[drop] if isinstance(drop, str) else list(drop),
        fill={name: str(value) for name, value in fill.items()}))


def _write_next_script(migrations_dir: StrPath, description: str, schema: StrPath | None,
                       connect: Connect, report: _Report, may_be_empty: bool = False,
                       **answers: Any) -> str:
    """Create the next script, with the statements that lead to a schema file if that is given;
    return its path."""
    text, notes = "", list[str]()
    if schema is not None and not description.lower().endswith(EXTENSIONS[1:]):
        text, notes = _compare_with_scripts(migrations_dir, schema, connect, report, **answers)
        same = f"the scripts already lead to the schema of {os.fsdecode(schema)}"
        if not text and not may_be_empty:
            raise MigrationError(f"{same}. Nothing was written. For a script that changes data, "
                                 "leave out the schema. To write a script anew, delete it first.")
        if not text:
            report.warn(f"{same}: the new script is empty")
    path = _create_script(os.fsdecode(migrations_dir), description, text, notes)
    for note in notes:
        if not note.startswith("adds "):  # nothing can be lost by that
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
    return _schema_text(_schema_of_scripts(migrations_dir, to, connect, _Report()))


def get_db_schema(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> str:
    """Return the schema of a database, versioned or not, like get_schema().
    The tables of migration tools, this one included, are left out."""
    return _schema_text(_Database(db_path, connect=connect).read_unversioned(_read_schema))


def get_migration_scripts(migrations_dir: StrPath) -> dict[int, Path]:
    """Return the paths of the scripts in a directory by version, in order."""
    from pathlib import Path
    names = _scan_unique(migrations_dir).names
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
    with database.explained(), database.writing() as connection:
        before, objects = _read_dangling(connection), _read_objects(connection)
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
        _, dangling = _compare_dangling(before, _read_dangling(connection))
        if dangling:
            what, _ = _explain_dangling(connection, dangling, "--")
            raise MigrationError(f"the new definition of {table_name}: {what}. Nothing was "
                                 "changed.")
        for fault in _newly_broken(connection, objects).values():
            raise MigrationError(f"with the new definition of {table_name}, {fault}. Nothing was "
                                 "changed.")
        database.commit(connection)


def setup_logging(verbose: bool = False) -> None:
    """Let logging print warnings and errors to stderr; with `verbose`, debug
    messages of all modules too."""
    import logging
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING,
                        format="%(levelname)s: %(message)s")


# ------------------------------------------------------------------ the run


class _Moved(Exception):
    """Another process has changed the version in the meantime, to what is now run.version."""


class _Retry(Exception):
    """Scripts have to be run in another way: roll back to the last commit and start again."""

    def __init__(self, *scripts: _Script, **changes: Any) -> None:
        self.scripts = scripts
        self.changes = changes  # what is added to their plans


# How a script is to be run: on a working copy, or else in the batch; in a transaction of its own,
# so that the batch is committed before it and after it; and from which line on one statement at a
# time. Each script starts with the cheapest plan for its kind. A try that shows that another way is
# needed raises _Retry, and what an earlier try has shown stays in the plan.
_Plan = namedtuple("_Plan", "on_copy own_transaction statements_from",
                   defaults=(False, False, sys.maxsize))


# A script that was applied: the note is for the report; `changes` is None if it is not known what
# the script changed.
_Applied = namedtuple("_Applied", "script checksum seconds note changes", defaults=(None,))


class _Run:
    """One run of the pending scripts of a directory on a database: what it is to do, how,
    and what it has done so far."""

    def __init__(self, database: _Database, migrations_dir: StrPath, to: int | None = None,
                 backup: bool = False, listing: _Listing | None = None) -> None:
        self.database = database
        self.folder = os.fsdecode(migrations_dir)
        self.to = _last_version(to)
        self.version = 0  # where the database stands
        self.applied: list[_Applied] = []
        self.never_run: list[str] = []  # scripts that need other numbers to be run at all
        self.broken: list[str] = []  # what no longer works after the run, as messages
        self.counts_dangling = False  # count the dangling references before each script
        self.listing: _Listing  # of the directory, from run() on
        self._shared_listing = listing  # that listing, if this is one of several databases
        self._backup_wanted = backup
        self._objects_before: list[Any] | None = None  # the schema when the run began
        self._mode_set_for = 0  # the script for which WAL mode was entered or left last, or 0
        self._mode_before = ""  # the journal mode before that was set
        self._plans: dict[int, _Plan] = {}  # by version, for scripts that were tried
        self._describe_work: Callable[[], str] = str  # for the progress

    def run(self) -> list[_Applied]:
        """Apply what is pending and return it. Raises MigrationError."""
        database, report = self.database, self.database.report
        with database.explained(changes=True):
            self.listing = listing = self._shared_listing or _scan_for(database, self.folder)
            if self._inspect(listing):
                try:
                    self._apply([_Script(self.folder, version, name) for version, name in sorted(
                        listing.names.items()) if version <= self.to])
                except BaseException as error:
                    self._restore_mode()
                    if isinstance(error, MigrationError):
                        self._warn_of_broken()  # of the scripts before the failed one
                    raise
                self._warn_of_broken()
            applied = f", {_plural(len(self.applied), 'migration')} applied" * bool(self.applied)
            is_clean = self.version == listing.latest and not self.never_run and not applied
            what = "up to date at version" if is_clean else "at version"
            report.result(f"{database.name} is {what} {self.version}{applied}")
            return self.applied

    def _inspect(self, listing: _Listing) -> bool:
        """Read the version, and return True if a script is pending. Warn about edited, late,
        missing and conflicting scripts, and note those that never ran.

        Raises: MigrationError if nothing may run: the database is beyond `to`, a script was
            renumbered after it ran, two scripts have one number, or the squashed script cannot
            bring this database to its version.
        """
        database = self.database

        def read(connection: sqlite3.Connection, version: int) -> tuple[bool, History]:
            pending = listing.latest > version and any(
                version < number <= self.to for number in listing.names)
            if not pending and not listing.twins and _is_as_recorded(connection, version, listing):
                return False, {}
            return pending, _read_history(connection, version)

        self.version, (pending, history) = database.read(read)
        if self.to < self.version:
            raise MigrationError(
                f"{database.name} is at version {self.version}, beyond {self.to}. Nothing was "
                "changed. There are no down migrations: restore a backup, with restore_db() or "
                "--restore.", version=self.version)
        several, thorough = bool(self._shared_listing), pending or bool(listing.twins)
        if not (history or thorough or listing.ignored or self.version > listing.latest):
            self._check_squash()
            return False  # as at nearly every start
        states = (_compare_history(history, self.version, listing, thorough)
                  if history or thorough else [])
        refusals, warnings = _find_problems(
            states, listing, self.version, database, several=several,
            of_directory=not several, to=self.to)
        self.never_run = [each.name for each in states if each.needs_number]
        if refusals:
            raise MigrationError("\n".join(refusals), version=self.version)
        self._check_squash()
        for problem in warnings:
            database.report.warn(problem)
        return bool(pending)

    def _apply(self, scripts: list[_Script]) -> None:
        """The whole story: set the journal mode that the next script begins with; run what comes
        next, together with its version; commit; go on.

        Each turn takes the write lock and reads the version again, because another process
        may have been faster. A script that fails is remembered until those before it, whose
        transaction it has shared, are applied again without it.

        The loop ends because each turn commits a script, or sees that another process has, or
        adds to the plan of a script, or turns `counts_dangling` on, or leaves fewer scripts before
        the one that failed. What was added to a plan stays: else two reasons could alternate.
        """
        failure: _ScriptFailed | None = None
        while True:
            if failure and failure.script.version <= self.version:
                failure = None  # another process has applied it
            end = failure.script.version if failure else MAX_VERSION + 1
            pending = [script for script in scripts if self.version < script.version < end]
            if not pending:
                break
            run_next = _run_on_copy if self.plan(pending[0]).on_copy else _run_batch
            try:
                self._set_head_mode(pending[0])
                self._note(run_next(self, pending))
            except _Moved:
                self._check_squash()
            except _Unmeasured:
                self.counts_dangling = True
            except _Retry as retry:
                for script in retry.scripts:
                    self._plans[script.version] = self.plan(script)._replace(**retry.changes)
            except _ScriptFailed as error:
                failure = error
            except _LockedError as error:
                if not self.applied:
                    raise  # it says that nothing was changed
                raise _LockedError(error.who, f"This run has brought {self.database.name} to "
                                   f"version {self.version}.") from None
            finally:
                self.database.report.end_progress()
        if failure:
            raise _explain_failure(failure, self.database)

    def plan(self, script: _Script) -> _Plan:
        """Return how a script is to be run."""
        return self._plans.get(script.version) or _Plan(on_copy=not script.is_sql)

    def _check_squash(self) -> None:
        """Raise MigrationError if the squashed script is pending, but must not run here, for
        example because another process has just run some of the scripts that it replaced."""
        if self.version < self.listing.squashed_version:
            version, refusal = self.database.read(lambda connection, version: _squash_refusal(
                connection, version, self.to, self.listing, self.database.name))
            if refusal:
                raise MigrationError(refusal, version=version) from None

    def _set_head_mode(self, script: _Script) -> None:
        """Give the database the journal mode that an SQL script begins with. A batch ends before
        such a script, so only the first one of a turn sets a mode."""
        if not script.is_sql:
            return
        pragmas = [_parse_pragma(statement) for _, statement in self.read(script)[1].pragmas]
        modes = [value for name, value in pragmas if name == "journal_mode"
                 and value in ("delete", "persist", "truncate", "wal")]
        if modes:
            self.database.retry_while_locked(lambda: self._set_mode(modes[-1], script.version))

    def _restore_mode(self) -> None:
        """Undo what _set_head_mode() did for a script that was not applied, as ROLLBACK cannot,
        unless another connection stands in the way."""
        if self._mode_set_for > self.version:
            try:
                self._set_mode(self._mode_before, 0)
            except self.database.errors + (_Moved,):
                pass  # the error of the script is the one to tell

    def _set_mode(self, mode: str, version: int) -> None:
        """Set the journal mode for the script of a version, 0 for none, if the database is where
        this run left it. Note the old mode first, because an interrupt may come meanwhile.

        Each call uses a new connection. A connection that has read a database in WAL mode keeps
        a lock until it is closed, so two processes that start at once would block each other.
        """
        self.database.must_exist()
        with _closing(self.database.open()) as connection:
            self.check_not_moved(connection)
            before = _journal_mode(connection)
            if before == mode:
                return
            if version and "wal" in (before, mode):  # only WAL is kept in the file
                self._mode_set_for, self._mode_before = version, before
            _journal_mode(connection, mode)

    def check_not_moved(self, connection: sqlite3.Connection) -> None:
        """Raise _Moved, and note the version, if the database is not where this run left it.
        Unless the write lock is held, that may change at any time."""
        version = _read_version(connection, self.database.name)
        if version != self.version:
            self.version = version
            raise _Moved

    def prepare_once(self, connection: sqlite3.Connection) -> None:
        """Note the schema, and make the backup that was asked for. Call this with the write lock
        held and a script left to run: of many processes that start at once, those that find
        nothing left to run then make no backup."""
        if self._objects_before is None:
            self._objects_before = connection.execute(SELECT_OBJECTS).fetchall()
        if self._backup_wanted:
            self.database.report.result(f"Backup: {_back_up(self.database)}")
            self._backup_wanted = False

    def read(self, script: _Script) -> tuple[_Reading, _Header, Iterator[tuple[int, str]]]:
        """Begin to read a script, and show the progress of that. Return also its header, and the
        blocks after its PRAGMAs. (If it is not SQL, all of it is read.)"""
        reading = _Reading(script)
        self._describe_work = reading.progress
        if not script.is_sql:
            header = _read_header(script, reading.read_beginning())
            reading.read_to_end()
            return reading, header, iter(())
        blocks = reading.blocks()
        header = _read_header(script, next(blocks, (1, ""))[1])

        def rest() -> Iterator[tuple[int, str]]:
            yield 1, header.rest
            yield from blocks

        return reading, header, rest()

    def tick(self) -> None:
        """Called now and then while SQLite or a script works: lets signals through, and shows
        progress."""
        self.database.report.check_stop()
        self.database.report.progress(self._describe_work)

    def commit(self, connection: sqlite3.Connection, done: list[_Applied]) -> None:
        """Commit scripts, with the history and the version, which they must have left alone."""
        _record(connection, self.version, done, self.listing, self._objects_before or [])
        script = done[-1].script
        _fail_if_version_changed(script, connection, script.version)  # by a trigger
        self.database.commit(connection)

    def _note(self, done: list[_Applied]) -> None:
        """Report scripts that were committed, and note the version that they lead to."""
        report = self.database.report
        for applied in done:
            duration = (f"{applied.seconds * 1000:.0f} ms" if applied.seconds < 1
                        else f"{applied.seconds:.1f} s")
            report.result(f"Applied {applied.script.name}{report.target} "
                          f"({duration}{applied.note})")
        self.applied += done
        self.version = done[-1].script.version

    def _warn_of_broken(self) -> None:
        """Warn about triggers, views and foreign keys that the run broke. That is known only at
        its end, because a later script may have fixed what an earlier one broke."""
        ran = [(applied.script.name, applied.changes) for applied in self.applied
               if applied.changes is None or applied.changes.can_break]
        if not ran:
            return
        before, warn = self._objects_before or [], self.database.report.warn
        try:
            found, lost = self.database.read(lambda connection, version: (
                _newly_broken(connection, before), _lost_with_tables(connection, before, ran)))[1]
        except (sqlite3.Error, OSError) as error:  # the scripts are committed: only warn
            reason = _diagnose(error, self.database.name)[0]
            warn(f"what the run may have broken could not be checked: {reason}")
            return
        for name, fault in found.items():
            self.broken.append(
                f"after {_blame(name, fault, ran)}, {fault}. Fix that in a further script.")
            warn(self.broken[-1])
        if lost:
            warn(f"{_cut(lost)}: dropped with its table, and not created again. Create what is "
                 "still needed in a script.")


def _fail_if_version_changed(script: _Script, connection: sqlite3.Connection, *allowed: int,
                             ) -> None:
    """Fail a script that has left the database without a version, or with one that is not
    allowed."""
    try:
        version = _read_version(connection, GIVEN)
        if not connection.execute(HAS_META).fetchall():
            raise MigrationError("_meta is gone from sqlite_master")
    except MigrationError as error:
        what = str(error).split(". ")[0]  # the rest is advice for a database that stays
        raise _ScriptFailed(script, f"it has spoilt the version: {what}") from None
    if version not in allowed:
        raise _ScriptFailed(script, f"it set the version to {version}, and may only set it to "
                                    f"{' or '.join(map(str, allowed))}")


# ------------------------------------------------------------------ SQL scripts


UPDATE_META = "UPDATE main._meta SET version = ? WHERE id = 1"
SQLITE_SAVEPOINT = 32
BATCH_SECONDS = 0.5  # after so long a transaction takes no further script


def _run_batch(run: _Run, pending: list[_Script]) -> list[_Applied]:
    """Run SQL scripts in one transaction until the time is up or one needs another transaction;
    commit. Return those that were committed: at least one. (A commit for each of 1,000 small
    scripts takes twenty times as long.)

    If a script fails, all is rolled back, and the caller runs those before it again, without it.
    """
    with run.database.writing() as connection:
        run.check_not_moved(connection)
        run.prepare_once(connection)
        batch, script, committing = _Batch(run, connection), pending[0], False
        try:
            for script in pending:
                if not batch.run(script):
                    break
            # `done` is not empty, because the first script is never put off. If the commit fails,
            # the last script is blamed.
            script, committing = batch.done[-1].script, True
            run.commit(connection, batch.done)
        except BaseException as error:
            batch.roll_back()
            failure = _to_failure(run.database, script, error)
            done = [applied.script for applied in batch.done]
            if committing and done[1:] and isinstance(failure, _ScriptFailed):
                # Commit each of them by itself, to find the one at fault.
                raise _Retry(*done, own_transaction=True) from None
            raise failure from None
        return batch.done


class _Batch:
    """SQL scripts that share one transaction."""

    def __init__(self, run: _Run, connection: sqlite3.Connection) -> None:
        self.done: list[_Applied] = []
        self._run = run
        self._database = run.database
        self._connection = connection
        self._began = time.monotonic()
        self._authorizer = _Authorizer()
        self._references = _References(connection, run.counts_dangling)
        connection.set_authorizer(_as_callback(self._authorizer.callback()))
        connection.set_progress_handler(_as_callback(run.tick), TICK_INSTRUCTIONS)

    def run(self, script: _Script) -> bool:
        """Run one script, and set its version. Return whether the batch goes on. If it does not,
        `done` tells whether the script ran: it did not if it needs another transaction, and it did
        if the next one needs another connection."""
        plan = self._run.plan(script)
        if self.done and (plan.on_copy or plan.own_transaction
                          or time.monotonic() - self._began > BATCH_SECONDS):
            return False  # it was not run
        connection, authorizer, since = self._connection, self._authorizer, time.perf_counter()
        reading, header, blocks = self._run.read(script)
        no_transaction = "no-transaction" in header.directives
        if self.done and (no_transaction or header.pragmas):
            return False  # it was not run
        if no_transaction:
            raise _Retry(script, on_copy=True)
        if "squashed" in header.directives and any(
                kind == "table" for kind, *_ in _read_application(connection)):
            raise _ScriptFailed(script, "it was squashed from scripts, and builds new databases "
                                "only, but this one has tables", remedy="Delete it")
        enforced = bool(header.pragmas) and self._run_head(script, header)
        self._references.start()
        authorizer.start(enforced, is_first=not self.done)
        self._run_blocks(script, blocks, plan.statements_from)
        if authorizer.savepoints:
            raise _ScriptFailed(
                script, f"it leaves the savepoint {authorizer.savepoints[-1]} open",
                remedy="End it with RELEASE")
        _check_references(connection, self._database.report, script, header,
                          *self._references.dangling(authorizer.changes))
        # fetchall(), because with PRAGMA count_changes an UPDATE returns a row.
        connection.execute(UPDATE_META, (script.version,)).fetchall()
        is_blank = not header.pragmas and _skip_blank(header.rest, 0) == len(header.rest)
        self.done.append(_Applied(script, reading.checksum, time.perf_counter() - since,
                                  ", no statement in it" * is_blank, authorizer.changes))
        needs_new_connection = authorizer.stateful or header.pragmas
        return not (needs_new_connection or plan.own_transaction)

    def _run_head(self, script: _Script, header: _Header) -> bool:
        """Leave the transaction for the PRAGMAs that work only outside of one. Nothing is lost:
        a script that begins with such PRAGMAs is the first of its batch. Return whether foreign
        keys are enforced now."""
        connection = self._connection
        connection.execute("ROLLBACK")
        for line, statement in header.pragmas:
            # The journal mode is set already, by _set_head_mode(); and without syncs, a power
            # cut could damage the database.
            if _parse_pragma(statement)[0] not in ("journal_mode", "synchronous"):
                _execute(self._database, connection, script, line, statement)
        self._database.begin(connection)
        self._run.check_not_moved(connection)
        return connection.execute("PRAGMA foreign_keys").fetchall() == [(1,)]

    def _run_blocks(self, script: _Script, blocks: Iterable[tuple[int, str]],
                    statements_from: int) -> None:
        """Run a script block by block. A block that fails is run again one statement at a
        time, because SQLite does not say which of its statements failed."""
        authorizer, connection = self._authorizer, self._connection
        for line, text in blocks:
            singly = line >= statements_from
            for number, piece in _statements(text, line) if singly else ((line, text),):
                try:
                    if singly:  # a database that the script has attached may be locked
                        self._database.retry_while_locked(
                            lambda: authorizer.execute(connection, piece))  # noqa: B023
                    else:
                        authorizer.execute(connection, piece)
                except self._database.errors as error:
                    if authorizer.needs_own_transaction:
                        raise _Retry(script, own_transaction=True) from None
                    if authorizer.needs_autocommit or _asks_for_autocommit(str(error)):
                        raise _Retry(script, on_copy=True) from None
                    failure = _to_failure(self._database, script, error, number, piece,
                                          authorizer.denied)
                    if singly or not isinstance(failure, _ScriptFailed):
                        raise failure from None
                    raise _Retry(script, statements_from=line) from None
                # No script is known that ends the transaction. If one does, nothing could be rolled
                # back any more.
                if not connection.in_transaction:
                    raise _Retry(script, on_copy=True)
            self._run.tick()

    def roll_back(self) -> None:
        """Roll back. An error here must not hide the one that made it necessary; only an
        interrupt goes before it."""
        connection = self._connection
        connection.set_authorizer(lambda *details: sqlite3.SQLITE_OK)  # None needs Python 3.11
        connection.set_progress_handler(None, 0)  # a second signal must not disturb this
        try:
            if connection.in_transaction:  # else SQLite has rolled back already
                connection.execute("ROLLBACK")
        except self._database.errors as error:  # closing the connection rolls back
            if _is_interrupt(error):
                raise KeyboardInterrupt from None


def _asks_for_autocommit(message: str) -> bool:
    """Return whether SQLite says that a statement does not work inside a transaction."""
    return any(sign in message for sign in (
        "within a transaction", "within transaction", "inside a transaction")) or (
        message.startswith("database ") and message.endswith(" is locked")
        and message != "database is locked")  # DETACH


CREATING = (sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_VTABLE, sqlite3.SQLITE_CREATE_VIEW,
            sqlite3.SQLITE_CREATE_TRIGGER)
DROPPING = (sqlite3.SQLITE_DROP_TABLE, sqlite3.SQLITE_DROP_VTABLE, sqlite3.SQLITE_DROP_VIEW,
            sqlite3.SQLITE_DROP_TRIGGER)
# These functions count what a connection has done. A script that calls them gets a transaction of
# its own, so that they never count an earlier script.
COUNTERS = ("changes", "last_insert_rowid", "total_changes")


class _Authorizer:
    """SQLite's authorizer callback for the scripts of a batch.

    While a script runs, it ignores the script's own BEGIN and COMMIT, denies statements that
    cannot run in our transaction, and records what matters afterwards. It allows all of our
    own statements.
    """

    def __init__(self) -> None:
        self._is_on = False  # statements of a script are running
        self._expects_commit = False  # the next COMMIT is that with which executescript() begins
        # Tables, spelled as in the statement: a further INSERT into one needs no check.
        self._known: set[str] = set()

    def start(self, enforced: bool, is_first: bool) -> None:
        """Forget the script before. The next one `is_first` in its transaction or not, and foreign
        keys are `enforced` or not."""
        self.needs_autocommit = False  # a statement does not fit in a transaction
        self.needs_own_transaction = False  # it calls one of COUNTERS
        self.denied = ""  # why a statement was denied for another reason
        self.stateful = False  # it changed the connection: settings, ATTACH, temporary tables
        self.changes = _Changes()
        self.savepoints: list[str] = []  # that are open
        self._is_first = is_first
        self._enforced = enforced  # foreign keys are enforced in this transaction
        self._wants_enforced = enforced  # by the last PRAGMA foreign_keys of the script
        self._in_transaction = False  # between a BEGIN and a COMMIT of the script
        self._known.clear()

    def execute(self, connection: sqlite3.Connection, text: str) -> None:
        """Execute statements of the script."""
        self._is_on = True
        self._expects_commit = True
        try:
            connection.executescript(text)
        finally:
            self._is_on = False

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
                    or first == "sqlite_master" or not self._is_on):
                return sqlite_ok
            return self._authorize(action, first or "", second or "", schema)
        return authorize

    def _authorize(self, action: int, first: str, second: str, schema: str | None) -> int:
        """Return whether SQLite may do what a statement of the script asks for."""
        name, of, changes = _fold(first), _fold(second), self.changes
        if action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE):
            return self._write(first, name, schema)
        if action == sqlite3.SQLITE_TRANSACTION:
            return self._transaction(name)
        if action == sqlite3.SQLITE_PRAGMA:
            return self._pragma(name, of)
        if action == SQLITE_SAVEPOINT:
            if name == "begin":
                self.savepoints.append(of)
            elif name == "release" and of in self.savepoints:
                while self.savepoints.pop() != of:
                    pass  # a release also ends those inside it
        elif action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
            self.stateful = True
        elif action in CREATING:
            changes.made.add(name)
            if action in (sqlite3.SQLITE_CREATE_VIEW, sqlite3.SQLITE_CREATE_TRIGGER):
                changes.note_break()
        elif action in DROPPING:
            if action != sqlite3.SQLITE_DROP_TRIGGER or of not in changes.dropped:
                changes.dropped.add(name)  # else it goes with its table
            changes.note_break()
        elif action == sqlite3.SQLITE_CREATE_INDEX:
            changes.changed.add(of)
        elif action == sqlite3.SQLITE_DROP_INDEX:
            changes.changed.add(of)
            changes.dropped.add(name)
            changes.note_break()  # a foreign key may need a unique index
        elif action == sqlite3.SQLITE_ALTER_TABLE:
            changes.made.add(of)
            changes.changed.add(of)
            changes.note_break()
        elif action == sqlite3.SQLITE_FUNCTION and second == "sqlite_rename_table":
            changes.note_everything()  # RENAME TO rewrites every object that names the table
        elif action == sqlite3.SQLITE_FUNCTION and of in COUNTERS and not self._is_first:
            self.needs_own_transaction = True
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _write(self, table: str, name: str, schema: str | None) -> int:
        """Authorize a write to a table. PRAGMA foreign_keys does nothing in our transaction, so
        if the script has set it to another value, the write must not run here."""
        if name.startswith("sqlite_"):
            self.stateful |= name.startswith("sqlite_temp_")
            return sqlite3.SQLITE_OK
        if schema == "main":
            self.changes.changed.add(name)
        if self._wants_enforced == self._enforced:
            if schema == "main":
                self._known.add(table)
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


# ------------------------------------------------------------------ scripts on a working copy


GATE_PAGES, GATE_STEP = 80, 64  # pages in the gate and in a backup step: _replace_in_wal()
_WORKS_ON_COPY = ("A script has to work on the database that is its first argument, which is a "
                  "copy of {}. The database itself is locked until the copy has replaced it.")


class _CopyRejected(Exception):
    """The script has left something that cannot become the database."""


class _StartAgain(Exception):
    """Before the write lock was held, another process changed the journal mode or removed our
    copy as a leftover. Nothing has run yet."""


def _run_on_copy(run: _Run, pending: list[_Script]) -> list[_Applied]:
    """Run the first script on a working copy of the database, and make the copy the database
    in one transaction, which holds the version too. If that fails, the database is untouched."""
    database, script = run.database, pending[0]
    copy = _WorkingCopy(database, f"{script.version:04d}", run.tick)
    done: list[_Applied] = []

    def work(reader: sqlite3.Connection) -> int:
        run.check_not_moved(reader)
        copy.remove_leftovers()  # first, because ours needs the space
        run.prepare_once(reader)
        done.append(_work_on_copy(run, script, copy, reader))
        copy.remove_leftovers()  # the script of a killed runner can have made its copy anew
        return script.version

    try:
        copy.replace_database(work)
    except _CopyRejected as error:
        raise _ScriptFailed(script, str(error)) from None
    except _LockedError as error:
        if not done:  # the script has not run, or not to its end
            raise
        raise _ScriptFailed(script, f"its work was discarded, because {error.who}",
                            remedy=error.remedy) from None
    except BaseException as error:
        raise _to_failure(database, script, error) from None
    return done


def _work_on_copy(run: _Run, script: _Script, copy: _WorkingCopy, reader: sqlite3.Connection,
                  ) -> _Applied:
    """Fill the copy, run the script on it, check it, and write version and history into it."""
    since, output = time.perf_counter(), ""
    reading, header, blocks = run.read(script)
    copy.fill_from(reader)
    before = _fingerprint(copy.path)
    if script.is_sql:
        mode = _run_statements(run, script, header, blocks, copy.path)
        if mode in ("delete", "persist", "truncate") and _journal_mode(reader) == "wal":
            run.database.report.warn(f"{run.database.name} stays in WAL mode after {script.name}: "
                                     "only a PRAGMA before all other statements can end this mode")
    else:
        output = _run_process(run, script, copy.path)
    if not os.path.isfile(copy.path):  # SQLite would create an empty one
        raise _ScriptFailed(script, f"it removed {GIVEN}")
    is_unchanged, name = _fingerprint(copy.path) == before, run.database.name
    if is_unchanged and "database is locked" in output:
        run.database.report.warn(f"{script.name} did not change {name}, and it printed "
                                 f"\"database is locked\". {_WORKS_ON_COPY.format(name)}")
    applied = _Applied(script, reading.checksum, time.perf_counter() - since,
                       ", the database is unchanged" if is_unchanged else "")
    try:
        with _closing(run.database.open(copy.path)) as connection:
            connection.set_progress_handler(_as_callback(run.tick), TICK_INSTRUCTIONS)
            _check_copy(run, script, header, connection)
            connection.execute(UPDATE_META, (script.version,)).fetchall()
            run.commit(connection, [applied])
    except _LockedError:
        raise _ScriptFailed(script, f"a process that it started still holds {GIVEN}",
                            remedy="Let it wait for the processes that it starts") from None
    except run.database.errors as error:
        if isinstance(error, MigrationError) or not _is_damage(error):
            raise
        raise _ScriptFailed(script, f"it has damaged {GIVEN}: {error}") from None
    return applied


def _check_copy(run: _Run, script: _Script, header: _Header, connection: sqlite3.Connection,
                ) -> None:
    """Begin a transaction on a copy that a script has left. Fail the script if the copy is
    damaged, has a wrong version, or has references that dangle."""
    database = run.database
    _prepare_for_writing(connection, durable=False)
    database.begin(connection)
    _fail_if_version_changed(script, connection, run.version, script.version)
    damage = _find_damage(connection)
    if damage:
        raise _ScriptFailed(script, f"it has damaged {GIVEN}: {damage}")
    if _dangles(connection):
        before = database.read(lambda original, version: _read_dangling(original))[1]
        _check_references(connection, database.report, script, header,
                          *_compare_dangling(before, _read_dangling(connection)))


def _run_statements(run: _Run, script: _Script, header: _Header,
                    blocks: Iterable[tuple[int, str]], path: str) -> str:
    """Run an SQL script on the database at a path, each statement by itself and outside of any
    transaction of ours, up to the first error. A transaction that it leaves open is committed.
    Return the journal mode that it sets, "" if it sets none."""
    from itertools import chain
    database, line, mode = run.database, 1, ""
    with _closing(database.open(path)) as connection:
        _prepare_for_writing(connection, durable=False)
        connection.set_progress_handler(_as_callback(run.tick), TICK_INSTRUCTIONS)
        # An authorizer of the application's `connect` could deny a statement, which looks as if
        # an interrupt had come. In a batch, our own one is in its place.
        connection.set_authorizer(lambda *details: sqlite3.SQLITE_OK)
        for line, text in chain(header.pragmas, blocks):
            for number, statement in _statements(text, line):
                pragma, value = _parse_pragma(statement)
                if pragma == "journal_mode":
                    mode = value or mode
                if pragma not in PROCESS_PRAGMAS:
                    _execute(database, connection, script, number, statement)
            run.tick()
        if connection.in_transaction:
            _execute(database, connection, script, line, "COMMIT")
    return mode


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
                _remove_database(self.path)

    def _replace_in_rollback_mode(self, target: sqlite3.Connection, reader: sqlite3.Connection,
                                  work: Callable[[sqlite3.Connection], int]) -> None:
        """Readers read on until the copy is complete. Then our COMMIT waits for them, because
        SQLite makes the lock an exclusive one for it, even if the transaction is empty."""
        database = self._database
        database.begin(target)
        if _journal_mode(target) == "wal":
            raise _StartAgain  # another process has changed it just before we had the lock
        # locking_mode = EXCLUSIVE has to come between BEGIN and COMMIT. If BEGIN recovered a hot
        # journal in exclusive mode, `target` would be exclusive at once, and `reader` could never
        # read. In normal mode, COMMIT would release the lock, and the row of a writer that gets in
        # between would be lost.
        target.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        self._create()
        version = work(reader)
        reader.close()
        # The empty transaction ends. In exclusive mode its lock stays, so that nobody can write.
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
        database, worked = self._database, False
        # Wait for the lock before the gate exists: its holder may remove a gate as a leftover.
        database.begin(target)
        target.execute("ROLLBACK")
        with _closing(self._make_gate(target)) as gate:
            watch = self._watch_time()

            def step(status: int, remaining: int, total: int) -> None:
                nonlocal watch, worked
                watch(status, remaining, total)
                is_locked = status & 0xFF in (SQLITE_BUSY, SQLITE_LOCKED)
                if is_locked and status > 0xFF and not worked:
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
                watch = self._watch_time()  # the time of the script does not count

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
        size = _page_size(target)
        encoding = target.execute("PRAGMA encoding").fetchall()[0][0]
        self._create()
        gate = None
        try:
            gate = database.open(self.path)
            _prepare_for_writing(gate, durable=False)
            gate.executescript(
                f"PRAGMA journal_mode = DELETE; PRAGMA auto_vacuum = NONE; "
                f"PRAGMA page_size = {size}; PRAGMA encoding = '{encoding}'; CREATE TABLE gate (x);"
                f"INSERT INTO gate VALUES (zeroblob({GATE_PAGES * size})); DROP TABLE gate;")
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
            try:
                _journal_mode(other, "DELETE")
            except self._database.errors as error:
                if not _is_locked(error):
                    raise
                raise _CopyRejected(f"a process that it started still uses {GIVEN}") from None
            # With a journal on the disk, SQLite does not write to a file that was moved. (MEMORY,
            # because some builds do not know the mode OFF.)
            gate.execute("PRAGMA journal_mode = MEMORY").fetchall()
            _copy_pages(other, gate, self._watch_time())

    def _check_page_size(self, reader: sqlite3.Connection) -> None:
        with _closing(self._database.open(self.path)) as copy:  # not the gate: it has the old size
            sizes = _page_size(reader), _page_size(copy)
        if sizes[0] != sizes[1]:
            raise _CopyRejected(
                f"it changed the page size from {sizes[0]} to {sizes[1]}, which SQLite does not "
                "do in WAL mode: an SQL script before this one has to leave that mode, with "
                "PRAGMA journal_mode = DELETE")

    def _pin(self, source: sqlite3.Connection, version: int) -> None:
        """Begin a read transaction on the copy, so that no process can change it any more, and
        check that it still has the version that `work` returned."""
        source.execute("BEGIN")
        found = _read_version(source, "the working copy")
        if found != version:
            raise _CopyRejected(f"the version of its copy changed from {version} to {found} after "
                                "it had ended")

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
    with open(path, "rb", buffering=0) as file:
        return _identify(path), file.read(100)


# ------------------------------------------------------------------ foreign keys

# A reference that dangles fails the script that left it. A trigger, a view or a foreign key that
# does not work any more is judged at the end of the run, because a later script may fix it, and
# is only a warning: see "what no longer works", far below.


class _Changes:
    """What a script did that can break a reference, a trigger or a view. Names are folded."""

    def __init__(self) -> None:
        self.changed: set[str] = set()  # tables whose rows, columns or indexes it changed
        self.made: set[str] = set()  # tables, views and triggers that it created or altered
        self.dropped: set[str] = set()  # tables, views, triggers and indexes
        self.everything = False  # it renamed a table, or wrote the schema by hand
        self.can_break = False  # a trigger, a view or a foreign key may not work any more

    def note_everything(self) -> None:
        """Note that any table may have been changed."""
        self.everything = self.can_break = True

    def note_break(self) -> None:
        """Note that a trigger, a view or a foreign key was made, or that something was altered
        or dropped which one of them may need. New tables and changed rows break none of them."""
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
        self._children: set[str] | None = None  # the tables with foreign keys; None: not read
        self._affected_by: dict[str, set[str]] = {}  # children by table; some may be outdated

    def start(self) -> None:
        """A script is about to run."""
        if self._measured and self._before is None:
            self._before = _read_dangling(self._connection)

    def dangling(self, changes: _Changes) -> tuple[int, KeysThatDangle]:
        """Return what _compare_dangling() finds after a script. Call this after each script.

        Raises:
            _Unmeasured: something dangles. Roll back, and run the scripts again with an
                object that is `measured`. Most databases have no dangling references, so
                the measuring, which reads all tables, is done only then.
        """
        affected = self._affected(changes)
        if self._before is None:
            if any(_dangles(self._connection, child) for child in affected):
                raise _Unmeasured
        elif affected:
            before, self._before = self._before, _read_dangling(self._connection)
            return _compare_dangling(before, self._before)
        return 0, {}

    def _affected(self, changes: _Changes) -> set[str]:
        """Update what is remembered after a script; return the tables whose foreign keys the
        script can have broken."""
        tables: Iterable[str] = changes.made | changes.dropped
        if changes.everything or self._children is None:
            self._children = set()
            tables = _table_names(self._connection)
        for child in map(_fold, tables):
            parents = {_fold(key[1]) for key, _ in _foreign_keys(self._connection, child)}
            self._children.discard(child)
            if parents:
                if child in changes.made:
                    changes.note_break()
                self._children.add(child)
                for table in (child, *parents):
                    self._affected_by.setdefault(table, set()).add(child)
        if changes.everything:
            return self._children
        touched = changes.changed | changes.made | changes.dropped
        affected = set[str]().union(*(self._affected_by.get(table, ()) for table in touched))
        return affected & self._children


def _fold(name: str) -> str:
    """Return a name in the one form that SQLite compares: it ignores the case of A to Z only."""
    if name.isascii():
        return name.lower()
    return name.encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


def _table_names(connection: sqlite3.Connection) -> list[str]:
    return [name for name, in connection.execute(
        "SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()]


def _dangles(connection: sqlite3.Connection, child: str = "") -> bool:
    """Return whether a table, or any table, has a dangling reference, or perhaps one."""
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA main.foreign_key_check" + (f"({_quoted(child)})" if child else ""))
        return cursor.fetchone() is not None
    except connection.OperationalError as error:
        if "foreign key mismatch" not in str(error):
            raise
        return True  # one foreign key that cannot work hides all others
    finally:
        cursor.close()  # there may be millions of further rows


def _foreign_keys(connection: sqlite3.Connection, child: str,
                  ) -> list[tuple[ForeignKey, list[str | None]]]:
    """Return each foreign key of a table, as (child, parent, columns), with the columns of the
    parent that it names; None stands for a column of the primary key."""
    found: dict[int, list[Any]] = {}
    for row in connection.execute(
            f"PRAGMA main.foreign_key_list({_quoted(child)})").fetchall():
        found.setdefault(row[0], []).append(row)
    return [((child, rows[0][2], tuple(row[3] for row in rows)), [row[4] for row in rows])
            for rows in found.values()]


def _key_of_parent(connection: sqlite3.Connection, parent: str, named: list[str | None],
                   ) -> list[str] | None:
    """Return the columns of the parent that a foreign key refers to.

    Return [] if these columns are no unique key: SQLite then checks nothing. Return None if
    there is no such table: every reference then dangles.
    """
    try:
        columns = connection.execute(f"PRAGMA main.table_info({_quoted(parent)})").fetchall()
    except connection.OperationalError:
        return []  # a view that does not compile
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
    return wanted if works else []


def _read_dangling(connection: sqlite3.Connection) -> KeysThatDangle:
    """Return {foreign key: {value: the number of rows that refer to it}} of what dangles.

    The value is a tuple of bytes for two reasons: 1 and '1' must be the same value after a
    rebuild has changed the type of a column, and text that is not UTF-8 must be readable. A
    parent row is found as SQLite does it for foreign keys, by the collation and affinity of the
    parent's column: that column is on the left, and + takes the affinity from the child's.
    """
    found: KeysThatDangle = {}
    for child in _table_names(connection):
        for foreign_key, named in _foreign_keys(connection, child):
            _, parent, columns = foreign_key
            dangling = found.setdefault(foreign_key, Counter())
            key = _key_of_parent(connection, parent, named)
            if key == []:
                continue
            own = [f"c.{_quoted(column)}" for column in columns]
            condition = " AND ".join(f"{column} IS NOT NULL" for column in own)
            if key:
                same = [f"p.{_quoted(of)} = +{column}" for of, column in zip(key, own)]
                condition += (f" AND NOT EXISTS (SELECT 1 FROM main.{_quoted(parent)} AS p "
                              f"WHERE {' AND '.join(same)})")
            values = ", ".join(f"CAST({column} AS BLOB)" for column in own)
            for number, *value in connection.execute(
                    f"SELECT count(*), {values} FROM main.{_quoted(child)} AS c "
                    f"WHERE {condition} GROUP BY {values}"):
                dangling[tuple(value)] += number
    return found


def _compare_dangling(before: KeysThatDangle, now: KeysThatDangle) -> tuple[int, KeysThatDangle]:
    """Return the number of references that dangle now and did before; and those that did not.
    What is found in `before` is taken out of it, so that it is not found twice.

    Rows are matched by the value that dangles, because a rebuild can renumber them, and tables
    WITHOUT ROWID have no row numbers. A foreign key that was not there before can be an old one
    whose table or column was renamed: the values of all keys that are gone count as old for it.
    """
    renamed = sum((before[key] for key in before.keys() - now), Counter())
    number, new = 0, {}
    for key, values in now.items():
        tolerated = before.get(key, renamed)
        old = values & tolerated
        tolerated.subtract(old)
        number += sum(old.values())
        if values != old:
            new[key] = values - old
    return number, new


def _check_references(connection: sqlite3.Connection, report: _Report, script: _Script,
                      header: _Header, old: int, new: KeysThatDangle) -> None:
    """Fail a script that leaves references dangling; tolerate those that dangled before it."""
    if new:
        what, remedy = _explain_dangling(connection, new, "--" if script.is_sql else "#")
        if "no-foreign-key-check" not in header.directives:
            raise _ScriptFailed(script, what, remedy=remedy)
        report.warn(f"{script.name}: {what} (allowed by its no-foreign-key-check)")
    if old:
        report.warn(f"{_plural(old, 'reference')} to rows that do not exist, from before "
                    f"{script.name}: see PRAGMA foreign_key_check")


def _explain_dangling(connection: sqlite3.Connection, new: KeysThatDangle, comment: str,
                      ) -> tuple[str, str]:
    """Return what a script is refused for, with one example, and what to do. `comment` begins a
    comment in the language of the script."""
    number = sum(sum(values.values()) for values in new.values())
    tables = list(dict.fromkeys(child for child, _, _ in new))
    what = f"it leaves {_plural(number, 'dangling reference')}" + (
        f" in {_cut(tables)}: " if tables[1:] else ": ")
    directive = f"the line `{comment} fastmigrate: no-foreign-key-check`"
    for child, parent, _ in new:
        if not connection.execute(f"PRAGMA main.table_info({_quoted(parent)})").fetchall():
            return f"{what}{child} refers to the table {parent}, which does not exist", (
                f"Keep {parent}, or rebuild {child} without this foreign key. If it followed a "
                "renamed table, begin the script with `PRAGMA legacy_alter_table = ON;`. If a "
                f"later script creates {parent}, begin this one with {directive}")
    (child, parent, columns), values = next(iter(new.items()))
    example = next(iter(values))
    condition = " AND ".join(f"CAST({_quoted(column)} AS BLOB) = ?" for column in columns)
    try:
        ((rowid,),) = connection.execute(
            f"SELECT min(rowid) FROM main.{_quoted(child)} WHERE {condition}", example).fetchall()
        row = f"{child} row {rowid}"
    except connection.OperationalError:  # it is WITHOUT ROWID
        row = f"a row of {child} with " + " and ".join(
            f"{column} = {value.decode(errors='replace')}"
            for column, value in zip(columns, example))
    on_delete = "" if comment == "#" else (
        "(Foreign keys are off while a script runs, so ON DELETE does nothing unless the script "
        "begins with `PRAGMA foreign_keys = ON;`.) ")
    return f"{what}{row} refers to a row of {parent} that does not exist", (
        f"Let the script change or delete these rows too. {on_delete}If this is intended, start "
        f"it with {directive}")


# ------------------------------------------------------------------ script files


# PRAGMAs that do nothing, or fail, inside a transaction. If a script begins with them, they run
# before the transaction. All other PRAGMAs run inside it, so that user_version and
# application_id are rolled back with it.
OUTSIDE_PRAGMAS = frozenset((
    "encoding", "foreign_keys", "journal_mode", "locking_mode", "page_size",
    "synchronous", "temp_store", "wal_checkpoint"))
DIRECTIVES = ("no-foreign-key-check", "no-transaction", "squashed")
COMMENT = r"--[^\n]*|/\*.*?(?:\*/|\Z)"
QUOTED_OR_COMMENT = rf"""'[^']*'?|"[^"]*"?|`[^`]*`?|\[[^\]]*\]?|{COMMENT}"""
# Comments of other tools, before the statements that undo a script. The shorter `-- down` is
# such a comment only in a script that begins with `-- up`.
UNDO = r"--[ \t]*(?:\+(?:goose|migrate|micrate)[ \t]+down|migrate:down)\b[^\n]*"
SHORT_UP, SHORT_DOWN = r"(?:--[^\n]*\n|\s)*--[ \t]*@?up\s*\n", r"--[ \t]*@?down[ \t]*$"


class _Script:
    def __init__(self, folder: str, version: int, name: str) -> None:
        self.version = version
        self.name = name
        self.path = os.path.join(folder, name)
        self.is_sql = name.endswith(".sql")


# How an SQL script begins: the directives in its opening comment, the PRAGMAs that must run before
# BEGIN, as (line, statement), and the rest of the text.
_Header = namedtuple("_Header", "directives pragmas rest")


class _Reading:
    """One pass over a script's file, which yields the text and then knows the checksum."""

    def __init__(self, script: _Script) -> None:
        self._script = script
        self._done = 0  # bytes read
        self.checksum = ""  # known when all of it was read

    def progress(self) -> str:
        return f"{self._script.name} is running, {self._done / 1e6:.1f} MB read"

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
                while data := file.read(BLOCK) + file.readline():
                    self._done += len(data)
                    data = data.replace(b"\r\n", b"\n")
                    yield data
                    if (b" \n" in data or b"\t\n" in data or b"\r" in data or b"\f" in data
                            or b"\v" in data):
                        data = b"\n".join([line.rstrip() for line in data.split(b"\n")])
                    held += data
                    kept = held.rstrip()
                    crc = zlib.crc32(kept, crc)
                    length += len(kept)
                    held = held[len(kept):]
        except OSError as error:
            path = self._script.path
            link = f"it is a link to {os.readlink(path)}, and " if os.path.islink(path) else ""
            raise _ScriptFailed(self._script, f"{link}it cannot be read: {error.strerror}",
                                remedy="Make the file readable, or put it back") from None
        self.checksum = f"{crc:08x}-{length:x}"

    def read_beginning(self) -> str:
        return next(self.lines(), b"").decode(errors="replace")

    def read_to_end(self) -> str:
        """Return the checksum."""
        for _ in self.lines():
            pass
        return self.checksum

    def blocks(self) -> Iterator[tuple[int, str]]:
        """Yield an SQL script as (number of the first line, text of whole statements).

        Raises: _ScriptFailed if it cannot be read, is not UTF-8, or would undo itself.
        """
        import re
        if self._script.name.lower().endswith(".down.sql"):
            raise _ScriptFailed(self._script, "its name ends in .down.sql, as that of "
                                "another tool's script that undoes a migration",
                                remedy="Delete it, or rename it if it is a migration")
        undo, undo_line = UNDO, 0
        for line, text in self._whole_statements():
            end = 0  # of the comment after which the script would undo itself
            if line == 1 and re.match(SHORT_UP, text, re.I):
                undo = f"{UNDO}|{SHORT_DOWN}"
            for found in re.finditer(undo, text, re.I | re.M) if "--" in text else ():
                before = text[:found.start()]
                is_alone = not before.rpartition("\n")[2].strip()
                # In a string or in another comment, a ; would not end a statement.
                if is_alone and not undo_line and sqlite3.complete_statement(before + ";"):
                    undo_line, end = line + before.count("\n"), found.end()
            if undo_line and _skip_blank(text, end) < len(text):
                raise _ScriptFailed(
                    self._script, "another tool's section to undo the script begins here, and "
                    "fastmigrate runs a script to its end", undo_line,
                    remedy="Delete the script's text from this line on")
            yield line, text

    def _whole_statements(self) -> Iterator[tuple[int, str]]:
        """Yield the script in pieces that end where a statement ends, each with the number of its
        first line."""
        first = line = 1  # of the text that was not yielded yet, and of the data
        text, wanted = "", 0
        for data in self.lines():
            try:
                text += data.decode()
                fault, position = "it holds a NUL character", data.find(b"\0")
            except UnicodeDecodeError as error:
                fault, position = "it is not UTF-8", error.start
            if position >= 0:
                raise _ScriptFailed(self._script, fault, line + data.count(b"\n", 0, position),
                                    remedy="Save it as UTF-8")
            line += data.count(b"\n")
            # If no statement ends in the text, search again only after the text has doubled.
            # Otherwise the time for a long statement would grow with the square of its length.
            if len(text) >= wanted:
                cut = _find_end_of_statements(text)
                if cut:
                    yield first, text[:cut]
                first += text.count("\n", 0, cut)
                text = text[cut:]
                wanted = 2 * len(text)
        import re
        for found in re.finditer(QUOTED_OR_COMMENT, text, re.S) if "/*" in text else ():
            if _is_open_comment(found.group()):
                raise _ScriptFailed(self._script, "a comment begins here, and does not end",
                                    first + text.count("\n", 0, found.start()),
                                    remedy="End it with */")
        if text:
            yield first, text


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
                                    remedy=f"Write one of {', '.join(DIRECTIVES[:2])}")
            directives.add(word)
    pragmas: list[tuple[int, str]] = []
    if text[start:start + 6].lower() != "pragma":  # as in nearly every script; the rest is slow
        return _Header(directives, pragmas, text)
    for line, statement in _statements(text, 1):
        pragma = _parse_pragma(statement)[0]
        if not pragma:
            break
        start = _skip_blank(text, start)
        end = start + len(statement)
        if pragma in OUTSIDE_PRAGMAS:
            pragmas.append((line, statement))
            # Blanks in its place: the lines of the rest keep their numbers.
            text = text[:start] + re.sub(".", " ", statement) + text[end:]
        start = end
    return _Header(directives, pragmas, text)


def _parse_pragma(statement: str) -> tuple[str, str]:
    """Return the name of a PRAGMA and the value that it sets, both "" for other statements."""
    if statement[:6].lower() != "pragma":
        return "", ""
    words = [_fold(_bare(text)) for kind, text, _ in _tokens(statement) if kind != "comment"]
    words += [""] * 4  # of a short statement
    if words[2] == ".":
        del words[1:3]  # the name of the schema
    value = words[3] + words[4] if words[3] == "-" else words[3]
    return words[1], value if words[2] in ("=", "(") else ""


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
    skipped = re.compile(rf"(?:[ \t\n\f\r;]+|{COMMENT})*", re.S)
    return skipped.match(text, position).end()  # type: ignore[union-attr]


def _statements(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield the single statements of an SQL text, each with the number of its first line."""
    import re
    counted, start = 0, _skip_blank(text, 0)
    in_trigger, after_end = False, 0  # only a ; directly after END ends CREATE TRIGGER
    for found in re.finditer(QUOTED_OR_COMMENT + r"|;|\bend\b", text, re.S | re.I):
        if found.group().lower() == "end":
            after_end = found.end()
        if found.group() != ";" or found.start() < start:
            continue
        if in_trigger and _skip_blank(text, after_end) < found.start():
            continue
        if not sqlite3.complete_statement(text[start:found.end()]):
            in_trigger = True
            continue
        line, counted = line + text.count("\n", counted, start), start
        yield line, text[start:found.end()]
        start, in_trigger = _skip_blank(text, found.end()), False
    if start < len(text):
        yield line + text.count("\n", counted, start), text[start:].rstrip()


# ------------------------------------------------------------------ the migrations directory


NAMING_RULE = ("a migration script is named NNNN-description.ext: four digits from 0001, "
               "a dash, and sql, py or sh")


class _Listing:
    """What a migrations directory holds: read once, and never changed."""

    def __init__(self, folder: str, names: dict[int, str], twins: dict[int, list[str]],
                 ignored: list[str]) -> None:
        self.folder = folder
        self.names = names  # of the scripts, by number
        self.twins = twins  # all names of a number that several scripts have
        self.ignored = ignored  # what looks like a script, but is not named like one
        self.latest = max(names, default=0)
        self.squashed_version = _squashed_version(folder, names)  # 0 if there is none


def _scan(migrations_dir: StrPath) -> _Listing:
    """List the migrations directory. Raises MigrationError or ValueError if it cannot be used."""
    folder = os.fsdecode(migrations_dir)
    names: dict[int, str] = {}
    twins: dict[int, list[str]] = {}
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            # The rule of extract_version_from_filename(), inlined for speed.
            for entry in sorted(entries, key=attrgetter("name")):
                name = entry.name
                digits = name[:4]
                if (name[4:5] == "-" and digits.isdecimal() and digits.isascii()
                        and digits != "0000" and name.endswith(EXTENSIONS)
                        # A broken link counts as a script, so that it fails and is not skipped.
                        and (entry.is_file(follow_symlinks=False) or entry.is_symlink() and (
                            os.path.isfile(entry.path) or not os.path.exists(entry.path)))):
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
        raise _explain(error) from None
    except UnicodeEncodeError as error:
        name = next(name for name in names.values() if error.object[error.start] in name)
        shown = os.fsencode(name).decode(errors="backslashreplace")
        raise ValueError(f"the name of the script {shown} in {folder} is not UTF-8, and cannot be "
                         "recorded. Nothing was run. Rename it.") from None
    return _Listing(folder, names, twins, _look_like_scripts(folder, others, no_scripts=not names))


def _look_like_scripts(folder: str, others: list[str], no_scripts: bool) -> list[str]:
    """Return the names that were probably meant as scripts. In a directory without any script
    (`no_scripts`), these are all .sql files but schema.sql, and folders of such files."""
    found = {name for name in others
             if name[:1].isdecimal() and name.lower().endswith(EXTENSIONS)}
    for name in others if no_scripts else ():
        try:
            names = os.listdir(os.path.join(folder, name))
        except OSError:
            names = [name]
        if any(each.lower().endswith(".sql") and each != "schema.sql" for each in names):
            found.add(name)
    return sorted(found)


def _scan_for(database: _Database, folder: str) -> _Listing:
    """List the migrations directory. If there is none, and the database is missing or unversioned
    too, report that first: --enroll creates the directory."""
    try:
        return _scan(folder)
    except _MissingError:
        database.read()
        raise


def _scan_unique(migrations_dir: StrPath) -> _Listing:
    """List the migrations directory; raise ValueError if two scripts have one number."""
    listing = _scan(migrations_dir)
    if listing.twins:
        raise _TwinsError("\n".join(_describe_twins(listing)))
    return listing


def _describe_twins(listing: _Listing, db: str = "", applied: Iterable[str] = (),
                    new_names: dict[str, str] | None = None) -> list[str]:
    """Report the numbers that several scripts have. For the database `db`, also report which
    of the scripts are applied, and suggest new names for the others."""
    texts = []
    for number, names in listing.twins.items():
        many = "two" if len(names) == 2 else len(names)
        text = (f"{many} scripts have the number {number:04d}, so nothing is run: {_cut(names)} "
                f"in {listing.folder}. ")
        if db:
            ran = [name for name in names if name in applied]
            text += f"{_cut(ran) or 'None of them'} is applied to {db}. "
        checksums = {_checksum(listing.folder, name) for name in names}
        if f"{number:04d}{SQUASHED_ENDING}" in names:
            text += (f"If a squash was cut off, move the scripts in before-{number:04d} back, then "
                     "delete that folder and the squashed script. Else renumber one of them.")
        elif len(checksums) == 1 and checksums.pop().strip("0-"):
            text += "They are the same: delete all but one."
        else:
            text += ("Renumber one that production does not have (and any later script of yours "
                     f"that needs it){_move_commands(listing.folder, names, new_names or {})}")
        texts.append(text)
    return texts


def _describe_ignored(listing: _Listing) -> str:
    return f"ignored (bad file name): {_cut(listing.ignored)}. In {listing.folder}, {NAMING_RULE}."


def _cut(names: list[str]) -> str:
    """Return a list of names for a message, cut if it is long."""
    more = f" and {len(names) - 8} more" if names[8:] else ""
    return ", ".join(names[:8]) + more


def _shell_path(path: str) -> str:
    import shlex
    return shlex.quote(os.path.join(".", path) if path.startswith("-") else path)


def _program_for(database: _Database, folder: str) -> str:
    """Return the command line for a database and its scripts, ready to paste."""
    migrations = f" --migrations {_shell_path(folder)}" if folder != "migrations" else ""
    return f"{database.report.program} --db {_shell_path(database.path_as_given)}{migrations}"


def _started_as() -> str:
    """Return how this process was started, if it is the command line."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec and spec.name.rpartition(".")[2] == "fastmigrate":
        return f"python -m {spec.name}"  # also myapp.fastmigrate
    if (not spec or spec.name == "__main__") and sys.argv[0].endswith((".py", ".pyz")):
        return f"python {_shell_path(sys.argv[0])}"  # perhaps a program with its own `connect`
    return "fastmigrate"


def _move_commands(folder: str, names: list[str], new_names: dict[str, str]) -> str:
    """Return the end of a sentence that asks for scripts to be renamed: mv commands for those
    that have a new name, or just a full stop."""
    moves = [[_shell_path(os.path.join(folder, each)) for each in (name, new_names[name])]
             for name in names[:8] if name in new_names]
    return ":" + "".join(f"\n    mv {old} {new}" for old, new in moves) if moves else "."


# ------------------------------------------------------------------ history

# The table _migration_history has one row for each script that was applied, or that counts as
# applied because the database was enrolled or its version was set by hand. In the second case
# --enroll or the next run writes the row, without a time. Special rows:
#
#   no name      the version was set by hand to a number without a script: all scripts up to it
#                count as applied
#   no checksum  the script is gone, and the user accepted that. The row stays, because only a
#                row above shows that a script was added late.
#   version 0    the checksum column names what was broken already when the history began

CREATE_HISTORY = (
    "CREATE TABLE main._migration_history (version INTEGER PRIMARY KEY, "
    "name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at TEXT NOT NULL)")
INSERT_HISTORY = (
    "INSERT OR REPLACE INTO main._migration_history (version, name, checksum, applied_at) "
    "VALUES (?, ?, ?, ?)")
DELETE_HISTORY = "DELETE FROM main._migration_history WHERE version BETWEEN ? AND ?"
SELECT_HISTORY = (  # text, whatever something else has written there
    "SELECT version, CAST(name AS TEXT), CAST(checksum AS TEXT), CAST(applied_at AS TEXT) "
    "FROM main._migration_history WHERE typeof(version) = 'integer' AND version <= ?")
SELECT_NEWEST = (  # a count(*) with a condition would read every row at every start
    "SELECT version, name = ?, (SELECT count(*) FROM main._migration_history) "
    "- (SELECT count(*) FROM main._migration_history WHERE version = 0) "
    "FROM main._migration_history ORDER BY version DESC LIMIT 1")
SELECT_NUMBERS = (
    "SELECT group_concat(version) FROM "
    "(SELECT version FROM main._migration_history WHERE version > 0 ORDER BY version)")
NO_ROW: Row = ("", "", "")  # of a script that the history does not have


def _read_history(connection: sqlite3.Connection, version: int) -> History:
    """Return (name, checksum, time) of what was applied up to a version, {} without a history.

    Raises: MigrationError if the table of this name is somebody else's.
    """
    try:
        rows = connection.execute(SELECT_HISTORY, (version,)).fetchall()
        return {row[0]: row[1:] for row in rows}
    except connection.OperationalError as error:
        if "no such column" in str(error):
            raise MigrationError("the database has a table _migration_history that is not "
                                 f"fastmigrate's ({error}). Nothing was changed. Rename it."
                                 ) from None
        if "no such table" not in str(error):
            raise
        return {}


def _is_as_recorded(connection: sqlite3.Connection, version: int, listing: _Listing) -> bool:
    """Return whether the history has the numbers of the directory's scripts, and the name of the
    last. Every start of the application calls this, so it reads few rows and no file."""
    names = listing.names
    try:
        newest = connection.execute(SELECT_NEWEST, (names.get(version),)).fetchall()
    except connection.OperationalError:
        return False  # _read_history() tells why
    if version != listing.latest or newest != [(version, 1, len(names))]:
        return False
    return version == len(names) or connection.execute(  # they are 1, 2, ... without a gap
        SELECT_NUMBERS).fetchall() == [(",".join(map(str, sorted(names))),)]


class _State:
    """How a script that there is or was stands to one database: its state, one of those that
    _compare_history() explains, and the row of the history under its number."""

    def __init__(self, number: int, name: str, state: str, row: Row) -> None:
        self.number = number
        self.name = name
        self.state = state
        self.row = row  # NO_ROW if there is none
        self.is_there = state not in ("missing", "squashed")  # in the directory
        self.has_run = state in ("applied", "edited")  # under this name, or counts as applied
        self.needs_number = state in ("late", "conflict")  # to be run at all
        self.has_not_run = self.needs_number or state == "pending"
        self.applied_at = row[2] or None if self.has_run or state == "missing" else None


def _compare_history(history: History, version: int, listing: _Listing, thorough: bool = True,
                     ) -> list[_State]:
    """Return the state of each script that there is or was, in order. (This reads scripts, so
    better call it when no transaction is open.) The states:

    pending   its number is above the version of the database
    applied   it ran, or counts as applied because the version was set by hand
    edited    it ran, with another text
    conflict  another script ran under its number: both name and text differ
    late      it never ran, though a script with a higher number did
    missing   it ran, and is no longer in the directory
    squashed  it ran, and the squashed script has replaced it

    Unless it is `thorough`, scripts below the version are compared by their numbers alone.
    """
    states = []
    ran_above = False  # a script ran above this number, and the version was not set in between
    for number in sorted({*listing.names, *history}, reverse=True):  # from the last to the first
        row = history.get(number, NO_ROW)
        recorded_name, checksum, _ = row
        name_there = listing.names.get(number)
        names = listing.twins.get(number) or ([name_there] if name_there else [])
        if not names and number <= listing.squashed_version:
            states.append(_State(number, recorded_name, "squashed", row))
        elif not names and recorded_name and checksum:
            states.append(_State(number, recorded_name, "missing", row))
        for name in reversed(names):
            state = "applied"  # also if the version was set by hand, or a squashed script has run
            if number > version:
                state = "pending"
            elif number not in history and ran_above:
                state = "late"
            elif (recorded_name
                    and (number != listing.squashed_version or name == recorded_name)
                    and (thorough or number == version and name != recorded_name)):
                state = _compare(listing.folder, name, recorded_name, checksum)
            states.append(_State(number, name, state, row))
        if number in history:  # without a name, it says that all below it count as applied
            ran_above = bool(recorded_name)
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


# -------------------------------------------------------------- what is wrong with it


PROBLEMS = {  # what a state of scripts means to a person, and what to do
    "late": "{names}: never run on {db}, which was already at a higher version. Unless production "
            "has it, renumber it above the latest script{move}",
    "conflict": "{names}: never run on {db}, where {others} ran under the same number. (If it is "
                "{others}, renamed and edited: restore that name, run {program} --accept, then "
                "rename it again.) Unless production has it, give it the next free number{move}",
    "edited": "{names}: edited since applied to {db}, which does not have the change. Undo the "
              "edit, and put the change into a new migration. If {db} needs no change (after an "
              "edit of a comment, say), run {program} --accept instead. If it was built with an "
              "edit that is undone by now, build it anew, or make it fit (--verify tells), then "
              "--accept.",
    "missing": "{names}: applied to {db}, but not in {folder} any more. Put back what is missing, "
               "because a new database would be built without it, or run {program} --accept.",
}


def _find_problems(states: list[_State], listing: _Listing, version: int, database: _Database, *,
                   several: bool = False, of_directory: bool = True, to: int = MAX_VERSION,
                   ) -> tuple[list[str], list[str]]:
    """Compare a migrations directory with the history of a database. Return the problems that
    keep scripts from being run, up to version `to`, and those to warn of.

    Args:
        several: this is one of several databases. Suggest no new names, because a script
            that never ran here may have run on another one.
        of_directory: report problems of the directory itself too.
    """
    new_names = {} if several else _propose_names(states, listing, version)
    renumbered = _find_renumbered(states, listing.folder)
    applied = [each.name for each in states if each.has_run]
    refusals = _describe_renumbered(states, renumbered, listing, database, to)
    if refusals:  # their commands also run what never ran
        states = [each for each in states if not each.needs_number]
    # A script that ran under another number, and is not pending, only has to get its name back.
    moved = [each.name for each in states if each.needs_number and each.name in renumbered]
    states = [each for each in states
              if each.name not in moved and each.name not in renumbered.values()]
    warnings = _describe_states(states, listing, version, database, new_names)
    if moved:
        warnings.append(_list_renumbered(moved, renumbered, database.name) + ". Restore the name"
                        + _move_commands(listing.folder, moved, renumbered))
    if of_directory:
        refusals += _describe_twins(listing, database.name, applied, new_names)
        warnings += [_describe_ignored(listing)] if listing.ignored else []
    return refusals, warnings


def _refuse_twins_for(database: _Database, listing: _Listing) -> None:
    """Raise _TwinsError if two scripts have one number; it says which of them ran."""
    if listing.twins:
        version, history = database.read(_read_history)
        states = _compare_history(history, version, listing)
        refusals, _ = _find_problems(states, listing, version, database)
        raise _TwinsError("\n".join(refusals), version=version)


def _propose_names(states: list[_State], listing: _Listing, version: int) -> dict[str, str]:
    """Return {name: new name}, with the next free numbers, for the scripts that never ran and
    for all but the first of the pending ones that share a number."""
    names = [each.name for each in states if each.needs_number
             or each.state == "pending" and each.name != listing.names[each.number]]
    free = range(max(version, listing.latest) + 1, MAX_VERSION + 1)
    return {name: f"{number:04d}{name[4:]}" for number, name in zip(free, names)}


def _find_renumbered(states: list[_State], folder: str) -> dict[str, str]:
    """Return {name: name when it ran} of the scripts that ran under another number: the history
    has their description and checksum under a name that is no longer in the directory."""
    there = {each.name for each in states if each.is_there}
    gone = {(each.row[0][4:], each.row[1]): each.row[0] for each in states
            if each.row[1].strip("0-") and each.row[0] not in there}  # not of an empty script
    descriptions = {description for description, _ in gone}
    renumbered = {}
    for each in states:
        if each.has_not_run and each.name[4:] in descriptions:
            old = gone.pop((each.name[4:], _checksum(folder, each.name)), None)
            if old:
                renumbered[each.name] = old
    return renumbered


def _list_renumbered(names: Iterable[str], renumbered: dict[str, str], db: str) -> str:
    return "; ".join(f"{name} is already applied to {db}, as {renumbered[name]}" for name in names)


def _describe_renumbered(states: list[_State], renumbered: dict[str, str], listing: _Listing,
                         database: _Database, to: int) -> list[str]:
    """Report the scripts that ran under another number, if one of them is pending and would run
    twice: one message, or none."""
    found = [each for each in states if each.name in renumbered]
    if not any(each.state == "pending" and each.number <= to for each in found):
        return []
    db, last = database.name, found[-1].number
    lacking = [each for each in states if each.has_not_run and each.number < last
               and each.name not in renumbered]
    first = min(each.number for each in states if each in lacking
                or each.row[0] in renumbered.values())
    end = lacking[-1].number if lacking else 0
    # Setting a lower version makes the history forget what is above that.
    steps = [f"--set-version {first - 1}", f"--to {end}" * bool(lacking), f"--set-version {last}"]
    commands = " &&".join(f"\n    {_program_for(database, listing.folder)} {step}"
                          for step in filter(None, steps))
    between = [each for each in states if each.is_there and first <= each.number <= end]
    if first <= listing.squashed_version or between != lacking or end > found[0].number:
        # Scripts that ran, or are gone, lie between those that have to run.
        way = f"Restore a backup of {db} from before version {first}, or create {db} anew."
    elif lacking:
        way = (f"Stop the application. Run {_cut([each.name for each in lacking])} alone, which "
               f"{db} lacks. (If a line fails, fix the cause, and go on with that line. Until "
               f"the last one has succeeded, run nothing else on {db}.){commands}")
    else:
        way = (f"Count it as applied under its new number:{commands}\nOr, if no other database has "
               "the new number, restore the old name"
               + _move_commands(listing.folder, [*renumbered], renumbered))
    return [f"{_list_renumbered(renumbered, renumbered, db)}. Nothing is run, or it would be "
            f"applied twice. (If it has to run again, add a comment to it.) {way}"]


def _describe_states(states: list[_State], listing: _Listing, version: int, database: _Database,
                     new_names: dict[str, str]) -> list[str]:
    """Return one message for each kind of difference between directory and history."""
    db, folder, latest = database.name, listing.folder, listing.latest
    squashed, texts = listing.squashed_version, []
    if version > latest:
        texts.append(f"{db} is at version {version}, newer than the scripts in {folder}, which "
                     f"end at {latest}. Use the release of the application that has the others, or "
                     "put them back.")
    for kind, text in PROBLEMS.items():
        # What is missing above the latest script belongs to a newer release.
        found = [each for each in states if each.state == kind
                 and squashed <= each.number <= latest and each.number not in listing.twins]
        if found:
            names = [each.name for each in found]
            texts.append(text.format(
                names=_cut(names), others=_cut([each.row[0] for each in found]), db=db,
                folder=folder, program=_program_for(database, folder),
                move=_move_commands(folder, names, new_names)))
    below = [each.name for each in states if each.is_there and each.number < squashed]
    if below:
        texts.append(f"{_cut(below)}: below {listing.names[squashed]}, which replaced the scripts "
                     "up to its number. Delete what it replaced, and give what is new a number "
                     "above the latest.")
    return texts


# -------------------------------------------------------------- writing it


def _record(connection: sqlite3.Connection, version: int, done: list[_Applied],
            listing: _Listing, objects: list[Any]) -> None:
    """Record the scripts in `done`, which were applied to a database at `version`, and those up
    to `version` that count as applied and have no row yet. If the history begins here, record
    what was broken before, among `objects`, so that --check does not blame the scripts for it."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    rows = [(applied.script.version, applied.script.name, applied.checksum, now)
            for applied in done]
    if not connection.execute(HAS_HISTORY).fetchall():
        connection.execute(CREATE_HISTORY)
        broken = _broken_objects(objects)
        rows += [(0, "", "\n".join(broken), now)] if broken else []
    # Another tool may have lowered the version and left the rows above it.
    connection.execute(DELETE_HISTORY, (version + 1, MAX_VERSION)).fetchall()
    is_recorded = connection.execute(
        "SELECT 1 FROM main._migration_history WHERE version = ?", (version,)).fetchall()
    if version and not is_recorded:
        if version not in listing.names:
            rows.append((version, "", "", now))
        rows += [(each.number, each.name, _checksum(listing.folder, each.name), "")
                 for each in _compare_history(
                     _read_history(connection, version), version, listing)
                 if each.state == "applied" and each.row == NO_ROW]
    connection.executemany(INSERT_HISTORY, rows)


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
            _record(connection, version, [], listing, _read_objects(connection))
        states = _compare_history(_read_history(connection, version), version, listing)
        # Without the checksums of these rows, the next run would apply the scripts twice.
        renumbered = _find_renumbered(states, folder).values()
        for each in states:
            number, name, row = each.number, each.name, each.row
            if each.state == "missing" and number < listing.latest and name not in renumbered:
                new = name, ""
            # The squashed script has not run if the row names one that it replaced.
            elif each.has_run and (number != listing.squashed_version or row[0] in ("", name)):
                new = name, _checksum(folder, name)
            else:
                continue
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
    with database.explained():
        found = listing or _scan_for(database, folder)

    def read(connection: sqlite3.Connection, version: int) -> tuple[Any, ...]:
        return (_read_history(connection, version),
                _squash_refusal(connection, version, MAX_VERSION, found, database.name),
                *_broken_and_known(connection))

    version, (history, squash_refusal, broken, known) = database.read(read)
    states = _compare_history(history, version, found)
    refusals, problems = _find_problems(states, found, version, database, several=several,
                                        of_directory=not listing)
    if squash_refusal:
        refusals.insert(0, squash_refusal)
    problems, warnings = refusals + problems, [] if several else _describe_copies(database)
    for name, fault in broken.items():
        (warnings if name in known else problems).append(
            f"in {database.name}, {fault}. Fix that in a further script.")
    return {
        "db": database.path_as_given, "version": version, "latest": found.latest,
        "migrations": [{"version": each.number, "name": each.name, "state": each.state,
                        "applied_at": each.applied_at}
                       for each in states if each.state != "squashed"],
        "blocked": bool(refusals), "problems": problems, "warnings": warnings}


def _describe_copies(database: _Database) -> list[str]:
    """Report the working copies beside the database."""
    folder = os.path.dirname(database.path_as_given)
    return [f"{os.path.join(folder, os.path.basename(path))} is the working copy of a run that is "
            "at work, or was killed. If none is at work, it can be deleted; the next run that has "
            "a script to run on a copy does that too."
            for path in database.find_copies() if not path.endswith(("-journal", "-wal", "-shm"))]


# ------------------------------------------------------------------ the database file


SELECT_META = "SELECT id, version, rowid FROM main._meta LIMIT 2"  # a view has no rowid
IS_PYPY = sys.implementation.name == "pypy"
# The text_factory of our connections, because text in a database need not be UTF-8. (A function
# in Python would be called for each value, and take three times as long.)
DECODE = methodcaller("decode", errors="replace")


class _closing:
    """Close a connection on exit, which rolls back what was not committed. (contextlib.closing
    would do that too, but its import takes some milliseconds at every start.)"""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __enter__(self) -> sqlite3.Connection:
        return self.connection

    def __exit__(self, *details: object) -> None:
        self.connection.close()


class _Database:
    """A database file: how it is opened, read, locked and created."""

    def __init__(self, path: StrPath, timeout: float = 30.0,
                 connect: Connect = sqlite3.connect, report: _Report | None = None,
                 durable: bool = True) -> None:
        self.path_as_given = given = os.fsdecode(path)
        self.name = given  # in messages
        # Other tools accept URLs and ":memory:". Here they would be the names of new files.
        if not given or "\0" in given or given == ":memory:" or "://" in given or (
                given.lower().startswith(("file:", "sqlite:", "sqlite3:"))):
            raise MigrationError(
                f"{given!r} is not the path of a database file. Nothing was changed. Give the path "
                "of its file, without a scheme: data/app.db. (A database in memory comes of "
                "build_db().)")
        if not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise MigrationError(f"timeout={timeout!r} is not a number of seconds. Nothing was "
                                 "changed. Give a number from 0.")
        try:
            folder = "" if os.path.isabs(given) else os.getcwd()
        except FileNotFoundError:
            raise _MissingError("the working directory does not exist any more. Change to one "
                                "that does, then run this again.") from None
        # Absolute, so that SQLite takes it for no URI. Not by abspath(), which resolves the
        # .. of link/../app.db without looking where the link leads.
        self.path = os.path.join(folder, given)
        self.timeout = timeout
        self.connect = connect
        self.report = report or _Report()
        self.errors: tuple[type[Exception], ...] = (sqlite3.Error,)  # and those of `connect`
        self.durable = durable  # must outlive a power cut

    def __fspath__(self) -> str:
        return self.path_as_given

    # -------------------------------------------------------------- connections

    def open(self, path: str = "") -> sqlite3.Connection:
        """Connect to the database, or to a copy of it. With isolation_level None, the sqlite3
        module begins no transaction behind our back."""
        if self.connect is sqlite3.connect:
            plain = sqlite3.connect(path or self.path, timeout=0.1, isolation_level=None)
            plain.text_factory = DECODE
            return plain
        return self.retry_while_locked(lambda: self.open_at_once(path))

    def open_at_once(self, path: str = "") -> sqlite3.Connection:
        """Connect by the application's function, and undo its settings that matter. Its PRAGMAs
        and ours read the database, so this fails if the database is locked."""
        try:
            connection: Any = self.connect(path or self.path)
        except sqlite3.Error as error:
            if "not authorized" in str(error):
                raise MigrationError("connect() may not load an extension. Nothing was changed. It "
                                     "has to call enable_load_extension(True) first.") from error
            raise
        for name in "backup", "executescript", "set_authorizer", "set_progress_handler", "Error":
            if not hasattr(connection, name):
                raise MigrationError(
                    f"connect() returned a {type(connection).__module__} connection, which lacks "
                    f"{name}. Nothing was changed. Return one of sqlite3, or of a driver with its "
                    "interface, such as sqlcipher3.")
        _collect_on_pypy()
        self.errors = (sqlite3.Error, connection.Error)  # a driver may have its own
        if getattr(connection, "autocommit", -1) != -1:
            connection.autocommit = -1  # LEGACY_TRANSACTION_CONTROL
        try:
            connection.isolation_level = None
            connection.row_factory = None
            connection.text_factory = DECODE
            if connection.execute("PRAGMA locking_mode").fetchall() != [("normal",)]:
                _leave_exclusive_mode(connection)
            for pragma in ("busy_timeout = 100", "count_changes = OFF",
                           f"synchronous = {'FULL' if self.durable else 'OFF'}"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection  # type: ignore[no-any-return]

    def writing(self, new: bool = False) -> _closing:
        """Return a context with a connection in a transaction that holds the write lock. Only a
        `new` database may be missing."""
        if not new:
            self.must_exist()
        connection = self.open()
        try:
            self.prepare_for_writing(connection)
            self.begin(connection)
            return _closing(connection)
        except BaseException:
            connection.close()
            raise

    def read(self, also: Reader = lambda *details: None) -> tuple[int, Any]:
        """Return (version, also(connection, version)), both of one state. A writer waits no longer
        than this takes, and in WAL mode not at all."""
        def read(connection: sqlite3.Connection) -> tuple[int, Any]:
            version = _read_version(connection, self.name)
            return version, also(connection, version)

        return self.read_unversioned(read)

    def read_unversioned(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Return act(connection), with a connection in a read transaction."""
        def read_by(connection: sqlite3.Connection) -> T:
            with _closing(connection):
                connection.execute("BEGIN")  # all of it is one state, and locked once
                return act(connection)

        self.must_exist()
        try:
            return self.retry_while_locked(lambda: read_by(self.open()))
        except MigrationError:
            raise
        except self.errors + (MemoryError,) as error:
            if not self._needs_immutable(error):
                raise _explain(error, name=self.name) from error
        from urllib.parse import quote
        uri = f"file://{quote(os.fsencode(self.path))}?mode=ro&immutable=1"
        with self.explained():
            connection = sqlite3.connect(uri, uri=True)
            connection.text_factory = DECODE
            return read_by(connection)

    def _needs_immutable(self, error: Exception) -> bool:
        """Return whether a read failed because the database is in WAL mode, in a directory in
        which this user cannot write. SQLite opens it only with immutable=1, and then ignores a log
        and a journal: so there must not be one. (On Windows, os.access() cannot tell.)"""
        real = os.path.realpath(self.path)
        return (("readonly" in str(error) or "unable to open" in str(error))
                and self.connect is sqlite3.connect
                and not os.access(os.path.dirname(real), os.W_OK)
                and not any(map(os.path.exists, (real + "-wal", real + "-journal"))))

    def must_exist(self) -> None:
        """Raise FileNotFoundError if there is no file, so that SQLite creates none."""
        try:
            size = os.stat(self.path).st_size
        except (FileNotFoundError, NotADirectoryError):
            raise _MissingError(
                f"there is no database {self.name}. To create it, call ensure_versioned_db(), or "
                "run fastmigrate with --createdb; to bring it back, restore a backup with "
                "--restore. Name another database with --db.") from None
        except OSError as error:
            raise _explain(error, name=self.name) from error
        is_folder = os.path.isdir(self.path)
        if is_folder or 0 < size < 100:  # SQLite would take one byte for an empty database
            what = "a directory, not a database" if is_folder else "not a database"
            raise MigrationError(f"{self.name} is {what}. Nothing was changed. Name the database "
                                 "file with --db.")

    def find_copies(self) -> list[str]:
        """Return the paths of the working copies beside the database. If its path is a link,
        those of scripts lie where it leads, and those of backups beside the link."""
        import glob
        import re
        folder, name = os.path.split(self.path)
        beside_link = os.path.join(os.path.realpath(folder), name)
        return sorted(path for file in {beside_link, os.path.realpath(self.path)}
                      for path in glob.glob(glob.escape(file) + "-copy-*")
                      if re.fullmatch(re.escape(file) + WORKING_COPY, path))

    # -------------------------------------------------------------- errors and waiting

    def explained(self, changes: bool = False) -> _Explained:
        """Return a context that turns errors into MigrationError. With `changes`, the code in
        it may change the database, so the message tells the version."""
        return _Explained(self, changes)

    def standing(self) -> str:
        """Return a sentence on where the database stands now."""
        if not os.path.exists(self.path):
            return f"There is no database {self.name} now."
        try:
            return f"{self.name} is at version {self.read()[0]}."
        except (sqlite3.Error, OSError) as error:
            return self.unreadable(error)

    def unreadable(self, error: Exception) -> str:
        """Return a sentence on why the version cannot be read."""
        if isinstance(error, UnversionedError):
            return f"{self.name} is unversioned."
        return (f"The version of {self.name} cannot be read now: "
                f"{_diagnose(error, self.name)[0].rstrip('.')}.")

    def standing_after(self, script: _Script, version: int) -> str:
        """Return a sentence on where the database stands after a script failed."""
        if version < script.version:
            return f"{self.name} is still at version {version}; the script was rolled back."
        return f"{self.name} is at version {version}: the script is applied all the same."

    def retry_while_locked(self, act: Callable[[], T]) -> T:
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
            _collect_on_pypy()
            wait = wait or _Wait(self)
            wait.pause()

    def execute_patiently(self, connection: sqlite3.Connection, statement: str) -> None:
        """Execute a statement that begins or ends a transaction, or is outside of one."""
        # Not fetchall(): memory must not hold all rows of a SELECT.
        self.retry_while_locked(lambda: deque(connection.execute(statement), maxlen=0))

    def prepare_for_writing(self, connection: sqlite3.Connection) -> str:
        return self.retry_while_locked(  # to read the mode takes a lock
            lambda: _prepare_for_writing(connection, self.durable))

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a transaction that holds the write lock from its first moment. (A transaction
        that begins with a read fails at its first write, without waiting, if another process
        has written in between.)"""
        self.execute_patiently(connection, "BEGIN IMMEDIATE")

    def commit(self, connection: sqlite3.Connection) -> None:
        """Commit as soon as all readers have finished. COMMIT is tried in short turns, so that
        Ctrl-C gets through. Between two turns, the transaction keeps its lock."""
        try:
            self.execute_patiently(connection, "COMMIT")
        except _LockedError:  # we hold the write lock, so it is no writer
            raise _LockedError(f"a reader has held {self.name} for more than {self.timeout:g} s"
                               ) from None

    # -------------------------------------------------------------- changing by hand

    def create(self) -> bool:
        """Create the database at version 0, unless it exists. Return whether this call did it.

        It is laid out in one transaction in the file at its path: of many processes that do
        this at once, one creates it, and the others wait for its lock. (To build it under
        another name and then link it would need hard links, which some file systems lack.)
        """
        try:
            self.read()
            return False
        except (_MissingError, _EmptyError):  # a file without any table is no database yet
            pass
        except UnversionedError:  # it has tables, or another process has created it meanwhile
            return False
        with self.explained():
            os.makedirs(os.path.dirname(_follow_link(self.path)), exist_ok=True)
            with self.writing(new=True) as connection:
                is_new = _is_empty(connection)
                if is_new:
                    connection.execute(CREATE_META)
                    connection.execute(INSERT_META, (0,)).fetchall()
                    self.commit(connection)
        return is_new

    def set_version(self, version: int, only_unversioned: bool = False,
                    listing: _Listing | None = None) -> None:
        """Set the version by hand, and delete the scripts above it from the history. Those of the
        `listing` that count as applied now are recorded as they are; without it, the next run does
        that. If `only_unversioned`, a database that has a version stays as it is."""
        with self.explained(), self.writing() as connection:
            trouble: Exception | None = None
            try:
                _read_version(connection, self.name)
                if only_unversioned:
                    return
            except UnversionedError as error:
                if version and isinstance(error, _EmptyError):
                    raise
                connection.execute(CREATE_META)
            except MigrationError as error:
                trouble = error  # to be raised unless the new version sets it right
            try:
                if connection.execute(UPDATE_META, (version,)).rowcount != 1:
                    connection.execute(INSERT_META, (version,)).fetchall()
                _read_version(connection, self.name)
            except self.errors as error:
                raise trouble or error from None
            if _read_history(connection, MAX_VERSION):
                connection.execute(DELETE_HISTORY, (version + 1, MAX_VERSION))
            if version and listing and not listing.twins:
                _record(connection, version, [], listing, _read_objects(connection))
            self.commit(connection)


def _as_database(db_path: StrPath, connect: Connect) -> _Database:
    """Return the database at a path. The command line passes its own database, with its timeout
    and its report, to the public calls."""
    return db_path if isinstance(db_path, _Database) else _Database(db_path, connect=connect)


def _leave_exclusive_mode(connection: sqlite3.Connection) -> None:
    """Let other connections use the database again, after `connect` has set locking_mode."""
    if connection.execute("PRAGMA locking_mode = NORMAL").fetchall() != [("normal",)]:
        raise MigrationError(
            "connect() reads the database with locking_mode = EXCLUSIVE, which cannot be left "
            "again in WAL mode. Nothing was changed. Give a connect() that does not set this mode.")
    connection.execute("SELECT 1 FROM main.sqlite_master").fetchall()  # this gives up the lock


def _prepare_for_writing(connection: sqlite3.Connection, durable: bool = True) -> str:
    """Prepare a connection for changes of ours or of a script; return its journal mode.

    Turn foreign keys off, because the rebuild of a table drops it, and with foreign keys on
    DROP TABLE may delete the rows that refer to it. They may be on because of the application's
    `connect`, or because SQLite was built that way. Put the journal on the disk, because SQLite
    cannot roll back after a crash without it.
    """
    connection.execute("PRAGMA foreign_keys = OFF").fetchall()
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}").fetchall()
    mode = _journal_mode(connection)
    return _journal_mode(connection, "DELETE") if durable and mode in WEAK_JOURNALS else mode


def _journal_mode(connection: sqlite3.Connection, wanted: str = "") -> str:
    """Set the journal mode if `wanted` is given; return the mode that the database has now."""
    setting = f" = {wanted}" if wanted else ""
    return str(connection.execute(f"PRAGMA main.journal_mode{setting}").fetchall()[0][0])


def _page_size(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA main.page_size").fetchall()[0][0])


# This query reads sqlite_master, because a script can delete _meta there with PRAGMA
# writable_schema. Its own connection still finds the table, but no later one does.
HAS_META = "SELECT 1 FROM main.sqlite_master WHERE name = '_meta' COLLATE NOCASE"


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT 1 FROM main.sqlite_master LIMIT 1").fetchall()


def _read_version(connection: sqlite3.Connection, name: str) -> int:
    """Return the version that `_meta` holds; raise MigrationError if it holds none."""
    try:
        rows = connection.execute(SELECT_META).fetchall()
    except connection.OperationalError as error:
        if "no such column" in str(error):
            raise MigrationError(
                f"{name} has a table _meta that is not fastmigrate's ({error}). Rename it: "
                "the version of the database is kept in a table of this name.") from None
        if "no such table" not in str(error):
            raise
        if _is_empty(connection):
            raise _EmptyError(
                f"{name} is empty. To make it a database at version 0, call "
                "ensure_versioned_db(), or run fastmigrate with --createdb.") from None
        raise UnversionedError(
            f"{name} is unversioned: it has no table _meta. Put it under management with "
            "enroll_db() or --enroll, or with set_db_version() or --set-version if you "
            "know its version.") from None
    if len(rows) == 1:
        number, version, rowid = rows[0]
        if number == 1 and type(version) is int and version >= 0 and rowid is not None:
            return version
    held = ", ".join(repr(row[:2]) for row in rows) or "no row"
    delete = "delete all other rows, and " if rows else ""
    raise MigrationError(
        f"{name} has a damaged table _meta: it must be a table with one row, (1, version), and has "
        f"{held}. Rename it if it is not fastmigrate's. Else {delete}set the version with "
        "set_db_version() or --set-version.")


# -------------------------------------------------------------- waiting


class _LockedError(MigrationError):
    """Another connection has held the database for longer than the timeout."""

    remedy = ("If it is a connection of your own, commit first. Else wait for it to finish, or "
              "raise the timeout (--timeout, or timeout= of migrate())")

    def __init__(self, who: str, state: str = "Nothing was changed.") -> None:
        super().__init__(f"database is locked: {who}. {state} {self.remedy}, then run this again.")
        self.who = who


class _Wait:
    """One wait for a lock that another connection holds. It warns, and raises when the time is
    up. If the version changes or another script runs, the other process is making progress:
    then the time begins anew."""

    def __init__(self, database: _Database) -> None:
        self._database = database
        self._since = self._looked = time.monotonic()
        self._holder = ""  # who held it, and the version, when that was looked at last
        self._version: object = None

    def pause(self) -> None:
        """Wait for a moment; raise MigrationError if the time is up."""
        database, now = self._database, time.monotonic()
        database.report.check_stop()
        if now - self._looked > 0.5 or now - self._since >= database.timeout:
            holder, version = self._look()
            version = version or self._version  # None if it cannot be read just now
            if self._holder and (holder, version) != (self._holder, self._version):
                self._since = now
            self._holder, self._version, self._looked = holder, version, now
            if now - self._since >= database.timeout:
                raise _LockedError(f"{holder} has held {database.name} for more than "
                                   f"{database.timeout:g} s")
            database.report.warn(f"waiting up to {database.timeout:g} s: {holder} holds "
                                 f"{database.name}")
        time.sleep(POLL_SECONDS * (0.5 + os.urandom(1)[0] / 256))  # not in step with others

    def _look(self) -> tuple[str, object]:
        """Return who holds the database, and its version, None if that cannot be read."""
        database, holder, version = self._database, "another connection", None
        try:
            with _closing(database.open_at_once()) as connection:
                version = connection.execute(SELECT_META).fetchall()
        except database.errors:
            pass
        for path in database.find_copies():
            number, process = path.rpartition("-copy-")[2].split("-")[:2]
            if number.isdecimal() and process != str(os.getpid()):
                holder = f"process {process}, which runs the script {number},"
        return holder, version


def _is_locked(error: BaseException) -> bool:
    """Return whether SQLite failed because of a lock, so that it makes sense to try again. (The
    text of a _LockedError begins alike, but then the time is up.)"""
    return not isinstance(error, MigrationError) and str(error).startswith((
        "database is locked", "database table is locked", "database schema is locked",
        "locking protocol"))


# -------------------------------------------------------------- the sqlite3 module


def _collect_on_pypy() -> None:
    """End the statements and connections that nobody refers to any more, because they keep their
    locks. An application's `connect` may have left some. CPython ends them by itself."""
    if IS_PYPY:
        import gc
        gc.collect()


def _copy_pages(source: sqlite3.Connection, target: sqlite3.Connection,
                progress: Callable[[int, int, int], None] | None = None,
                pages: int = 0) -> None:
    """Copy a database over another. `progress` is called after each step of so many pages. If
    its status is SQLITE_BUSY or SQLITE_LOCKED, it must wait for a moment or raise, because the
    backup tries again at once."""
    try:
        source.backup(target, pages=pages or BACKUP_PAGES, progress=progress, sleep=0)
    except AttributeError:  # PyPy fails to build its error
        raise target._get_exception() from None  # type: ignore[attr-defined]


def _as_callback(act: Callable[..., Any]) -> Callable[..., Any]:
    """Return what set_authorizer() and set_progress_handler() take. On PyPy that is a wrapper,
    because PyPy passes C strings, and would print an exception and go on."""
    if not IS_PYPY:
        return act
    from _sqlite3_cffi import ffi  # type: ignore[import-not-found]

    def call(*details: Any) -> Any:
        try:  # an authorizer gets a number and four texts, a progress handler nothing
            return act(*details[:1], *(ffi.string(text).decode() if text else None
                                       for text in details[1:]))
        except BaseException:
            return sqlite3.SQLITE_DENY  # as true, it interrupts the statement
    return call


def _is_damage(error: BaseException | None) -> bool:
    return any(sign in str(error) for sign in ("not a database", "malformed"))


# -------------------------------------------------------------- backups


def _back_up(database: _Database, ending: str = ".backup", tries_left: int = 2) -> str:
    """Copy the database to a backup beside it, named by the time; return its path."""
    database.must_exist()
    # Beside its final name, which is not where a link leads.
    new = f"{database.path}-copy-backup-{_unique()}"
    try:
        _copy_database(database, new)
        # An empty file reserves the name first, because os.replace() would overwrite a backup that
        # another process has just made. (A hard link would not, but some file systems have none.)
        stamp = _take_stamped_name(database.path, ending,
                                   lambda name: _create_private(name, database.path))
        try:
            os.replace(new, database.path + stamp)
        except BaseException:
            _remove(database.path + stamp)
            raise
        _sync(os.path.dirname(database.path))
        return database.path_as_given + stamp
    except database.errors + (OSError,) as error:
        if os.path.exists(new) or not tries_left:
            raise MigrationError(f"no backup of {database.name} could be made: "
                                 f"{_explain(error, name=database.name)}") from error
        # Else another process removed our copy as a leftover: try again.
    finally:
        _remove_database(new)
    return _back_up(database, ending, tries_left - 1)


def _copy_database(database: _Database, path: str, like: str = "") -> None:
    """Copy one state of the database into a new, private file, and make that durable."""
    def step(status: int, remaining: int, total: int) -> None:
        if status & 0xFF in (SQLITE_BUSY, SQLITE_LOCKED):
            wait.pause()
        database.report.check_stop()
        database.report.progress(lambda: f"backup of {database.name}: "
                                 f"{100 * (total - remaining) // (total or 1)} %")

    def copy_from(source: sqlite3.Connection) -> None:
        with _closing(database.open(path)) as copy:
            if _identify(path) != made:  # SQLite created one that others may read
                _remove_database(path)
                raise FileNotFoundError(errno.ENOENT, "another process removed it", path)
            copy.execute("PRAGMA journal_mode = OFF").fetchall()  # nothing to roll back to
            copy.execute("PRAGMA synchronous = OFF").fetchall()  # it is synced when complete
            source.execute("SELECT 1 FROM sqlite_master").fetchall()  # one state from here on
            _copy_pages(source, copy, step)

    wait = _Wait(database)
    _create_private(path, like or database.path)
    made = _identify(path)
    database.read_unversioned(copy_from)
    database.report.end_progress()
    if database.durable:
        _sync(path)


# -------------------------------------------------------------- restoring


SIDE_FILES = ("-shm", "-wal", "-journal")  # what SQLite may keep beside a database


def _restore(database: _Database, backup: str) -> int:
    """Replace the content of the database by that of a backup; return its version. The old
    content is kept in a file with the ending .before-restore."""
    source = _Database(backup, database.timeout, database.connect, database.report)
    exists = os.path.exists(database.path)
    if not os.path.isfile(source.path):
        raise _MissingError(f"there is no backup {source.name}. Nothing was changed. Name another "
                            "one.")
    if os.path.isdir(database.path):
        database.must_exist()  # which refuses a directory
    if exists and os.path.samefile(source.path, database.path):
        raise MigrationError(f"{source.name} is the database itself. Nothing was changed. Name a "
                             "backup of it.")
    version = _read_sound_version(source)
    with database.explained(changes=True):
        if exists and not _is_unreadable(database):
            _restore_over(database, source, version)
        else:
            _restore_anew(database, source)
    return version


def _restore_over(database: _Database, source: _Database, version: int) -> None:
    """Restore by the steps of a script on a working copy: see _WorkingCopy."""
    kept: list[str] = []
    copy = _WorkingCopy(database, "restore", database.report.check_stop)

    def work(reader: sqlite3.Connection) -> int:
        copy.remove_leftovers()
        if not _is_empty(reader):
            kept.append(_back_up(database, ".before-restore"))
        source.read_unversioned(copy.fill_from)
        return version

    try:
        _match_page_size(database, source)
        copy.replace_database(work)
    except _LockedError:
        _remove(*kept)  # nothing was replaced
        kept.clear()
        raise
    except _CopyRejected as error:
        raise MigrationError(f"{source.name} cannot replace {database.name}: {error}. "
                             f"{database.standing()} Run this again.") from error
    finally:
        for path in kept:
            database.report.result(f"What {database.name} held is kept in {path}")


def _restore_anew(database: _Database, source: _Database) -> None:
    """Restore where there is no database, or one that SQLite cannot read: its file becomes the
    one with the ending .before-restore. The new file is complete before anything is touched."""
    file, moved, succeeded = _follow_link(database.path_as_given), list[tuple[str, str]](), False
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
    new, existed = f"{file}-copy-restore-{_unique()}", os.path.exists(file)
    try:
        _copy_database(source, new, like=file if existed else source.path)
        with _closing(database.open(new)) as connection:
            _journal_mode(connection, "DELETE")
            connection.execute("BEGIN EXCLUSIVE")  # who opens it under its name waits for us
            seen = _identify_content(file)
            is_usable = os.path.exists(file) and not (existed and _is_unreadable(database))
            if is_usable or _is_empty(connection):  # or another process has removed the copy
                raise MigrationError(f"another process is just restoring {database.name}. Run "
                                     "this again.")
            try:
                _set_aside(file, seen, moved)
                _give_name(new, file)
                succeeded = True
            except BaseException:
                _put_back(file, moved)
                raise
        _sync(os.path.dirname(file) or ".")
    except FileExistsError:
        raise MigrationError(f"another process has just created {database.name}, which was not "
                             "replaced. Run this again if you want to replace it.") from None
    finally:
        _remove_database(new)
        if moved:
            report = database.report.result if succeeded else database.report.warn
            report(f"What {database.name} held is kept in {moved[0][1]}")


def _set_aside(file: str, seen: tuple[int, int, int], moved: list[tuple[str, str]]) -> None:
    """Rename a database, and a log or journal beside it, to a new name with the ending
    .before-restore. Append (old name, new name) of each to `moved`. Raise FileExistsError if it is
    no longer the file that was `seen`.

    The database goes first: without it, nobody can use its log. If a database is there again by
    then, another process has just created it, and a log that differs from the one seen before
    belongs to it.
    """
    logs = {end: _identify_content(file + end) for end in SIDE_FILES if os.path.exists(file + end)}
    if not logs and not os.path.lexists(file):
        return
    kept = file + _take_stamped_name(file, ".before-restore", _reserve)
    if os.path.lexists(file) and _identify_content(file) == seen:
        moved.append((file, kept))
        os.replace(file, kept)
    else:
        os.unlink(kept)
        if os.path.lexists(file):  # another process has just created it
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), file)
    for end in SIDE_FILES:
        if os.path.lexists(file + end) and (_identify_content(file + end) == logs.get(end)
                                            or not os.path.lexists(file)):
            moved.append((file + end, kept + end))
            os.replace(file + end, kept + end)
            if _identify_content(kept + end) != logs.get(end) and os.path.lexists(file):
                _give_name(kept + end, file + end)  # of a database that was created just now
    _sync(os.path.dirname(file) or ".")


def _put_back(file: str, moved: list[tuple[str, str]]) -> None:
    """Undo _set_aside() as far as no other process has created a database there; leave the rest
    in `moved`. If only a log was moved, leave it there, because beside a new database SQLite
    would apply it."""
    if moved and moved[0][0] != file:
        moved[:] = [each for each in moved if os.path.lexists(each[1])]
        return
    try:
        while moved:
            old, kept = moved[0]
            if os.path.lexists(old) and os.path.lexists(kept) and not os.path.getsize(kept):
                _remove(kept)  # it was not moved: this is what reserved the name
            elif os.path.lexists(kept):
                _give_name(kept, old)
            del moved[0]
    except OSError:
        pass


def _reserve(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _identify_content(path: str) -> tuple[int, int, int]:
    """Return what tells a file from another of the same name, zeros if there is none. (A system
    may give the inode of a deleted file to the next new one.)"""
    try:
        status = os.stat(path)
        return status.st_ino, status.st_mtime_ns, status.st_size
    except OSError:
        return 0, 0, 0


def _is_unreadable(database: _Database) -> bool:
    """Return whether SQLite cannot read the database: it is damaged, or encrypted with a key that
    we were not given."""
    if 0 < os.path.getsize(database.path) < 100:
        return True
    try:
        with _closing(database.open()) as connection:
            connection.execute("SELECT 1 FROM sqlite_master").fetchall()
    except database.errors as error:
        return _is_damage(error)  # the next write fails with any other, and reports it
    return False


def _match_page_size(database: _Database, source: _Database) -> None:
    """Leave WAL mode if a backup has another page size, which SQLite does not change in it."""
    wanted = source.read_unversioned(_page_size)
    with _closing(database.open()) as connection:
        def match() -> None:
            if _page_size(connection) != wanted and _journal_mode(connection) == "wal":
                _journal_mode(connection, "DELETE")

        database.retry_while_locked(match)


def _read_sound_version(source: _Database) -> int:
    """Return the version of a backup. Raise MigrationError if it cannot be restored."""
    try:
        version, damage = source.read(lambda connection, version: _find_damage(connection))
        if not damage:
            return version
        trouble = f"it is damaged ({damage})"
    except MigrationError as error:
        text = str(error)
        if text.startswith(source.name):  # which may hold a full stop
            text = "it" + text[len(source.name):]
        trouble = text.split(". ")[0]  # the rest is advice for a database, not for a backup
    raise MigrationError(f"{source.name} is no backup to restore: {trouble}. Nothing was changed. "
                         "Name another one.")


def _find_damage(connection: sqlite3.Connection) -> str:
    """Return what is damaged in a database, "" if nothing is. Two things are no damage: a row
    that breaks a constraint of its table, because scripts can put such rows in; and a function
    that is missing here, because the application has it."""
    connection.execute("PRAGMA ignore_check_constraints = ON").fetchall()
    try:
        lines = connection.execute("PRAGMA main.quick_check").fetchall()
    except connection.Error as error:
        if str(error).startswith(("no such", "unknown function")):
            return ""
        raise
    for line, in lines:
        about_rows = line.startswith(("NULL value in", "CHECK constraint failed")) or (
            " value in " in line and not line.startswith("***"))
        if line != "ok" and not about_rows:
            return " ".join(str(line).split("\n")[:2])
    return ""


# -------------------------------------------------------------- files


def _create_private(path: str, like: str) -> None:
    """Create an empty file. No user but its owner can read it who cannot read the file `like`."""
    status = os.stat(like)
    mode = status.st_mode & 0o777 | 0o600
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, mode & 0o600)
    try:
        if os.name == "posix":
            for owner in (-1, status.st_uid):  # only root can change the owner too
                try:
                    os.fchown(descriptor, owner, status.st_gid)
                except OSError:
                    pass
            # An access list may deny somebody what the mode gives to all others.
            if _has_access_list(like) or _has_access_list(path):
                mode &= 0o700
            elif os.fstat(descriptor).st_gid != status.st_gid:
                mode &= 0o707
            os.fchmod(descriptor, mode)
    except OSError:
        pass  # a file system without modes; what it has is what the database has
    finally:
        os.close(descriptor)


def _has_access_list(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except (OSError, AttributeError):
        return False


def _take_stamped_name(path: str, ending: str, take: Callable[[str], None]) -> str:
    """Call `take` with a name that is made of that of a database, the time, and an ending, until
    the name is free. Return what was appended to the path of the database."""
    now = int(time.time())
    while True:
        stamp = time.strftime(".%Y%m%d_%H%M%S", time.localtime(now)) + ending
        now += 1  # two in one second: the other takes the next
        if any(os.path.lexists(path + stamp + end) for end in SIDE_FILES):
            continue  # a log that was kept, without a database
        try:
            take(path + stamp)
            return stamp
        except FileExistsError:
            pass


def _follow_link(path: str) -> str:
    """Return where a path leads if it is a link. (Any other path keeps its own spelling.)"""
    return os.path.realpath(path) if os.path.islink(path) else path


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
    except OSError as error:
        if not folder:
            raise type(error)(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)


def _remove(*paths: str) -> None:
    """Remove files; ignore what cannot be removed."""
    for path in paths:
        try:
            os.unlink(path)
        except OSError:
            pass


def _remove_database(path: str) -> None:
    """Remove a database with its -journal, -wal and -shm; ignore what cannot be removed. (On
    Windows a file that is open stays, and the next run tries again.)"""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil
        shutil.rmtree(path, ignore_errors=True)  # a script made a directory there
    _remove(path, *(path + end for end in SIDE_FILES))


# ------------------------------------------------------------------ scratch databases


class _ScratchFile(_Database):
    """A database file that is removed after its use, or if a script fails. The error of that
    script ends with the sentence `outcome`. Commands to paste are for the database `original`."""

    def __init__(self, path: StrPath, name: str, outcome: str, original: str = "",
                 **options: Any) -> None:
        super().__init__(path, **options)
        self.name = name
        self.path_as_given = original or self.path_as_given
        self._outcome = outcome

    def standing_after(self, script: _Script, version: int) -> str:
        return self._outcome


def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    import tempfile
    try:
        return tempfile.TemporaryDirectory(prefix="fastmigrate-")
    except OSError as error:
        raise _explain(error) from error


class _Scratch(_ScratchFile):
    """A new database in a temporary directory, which is removed on exit."""

    def __init__(self, connect: Connect, report: _Report | None = None) -> None:
        self._room = _temporary_directory()
        super().__init__(os.path.join(self._room.name, "scratch.db"), "the scratch database",
                         "This was a trial in a scratch database: nothing was changed.",
                         connect=connect, report=report, durable=False)

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *details: object) -> None:
        self._room.cleanup()


def _replay(scratch: _Database, migrations_dir: StrPath, to: int | None) -> None:
    """Run the scripts up to a version on a scratch database, which is created if need be."""
    listing = _scan_unique(migrations_dir)
    if listing.ignored:
        scratch.report.warn(_describe_ignored(listing))
    scratch.create()
    _Run(scratch, migrations_dir, to, listing=listing).run()


def _announce(report: _Report, listing: _Listing, version: int = 0, to: int | None = None) -> None:
    """Warn that scripts above `version`, up to `to`, are about to run on a scratch database or
    copy, if they can write elsewhere: .py, .sh and ATTACH."""
    import re
    attach = re.compile(rb"""\battach\s+(database\s+)?['"]""", re.I)
    found, last = [], _last_version(to)
    for number, name in sorted(listing.names.items()):
        script = _Script(listing.folder, number, name)
        try:
            if version < number <= last and (
                    not script.is_sql or any(map(attach.search, _Reading(script).lines()))):
                found.append(name)
        except _ScriptFailed:
            pass  # it cannot be read, as the run will report
    if found:
        report.warn(f"now running on a scratch database or copy: {_cut(found)}. What is done "
                    "outside of it (files, other databases, the network) really happens.")


# ------------------------------------------------------------------ processes


TURN_SECONDS = 0.5  # for so long at a time a script is waited for; then Ctrl-C gets through


def _run_process(run: _Run, script: _Script, path: str) -> str:
    """Run a .py or .sh script until it, and all processes that it started, have exited. Return
    the last lines of its output, "" if the output was shown as it came.

    Raises: _ScriptFailed.
    """
    import subprocess
    import tempfile
    command, posix = [*_interpreter(script), path], os.name == "posix"
    try:
        folder = tempfile.gettempdir()
    except OSError:  # no temporary directory can be written
        folder = os.path.dirname(path)
    # The script and its child processes inherit `held`, and write nothing to it. `alive` is at
    # end of file when the last of them has exited: that is what poll() waits for.
    alive_end, held_end = os.pipe()
    with open(alive_end, "rb", 0) as alive, open(held_end, "wb", 0) as held, \
            tempfile.TemporaryFile(dir=folder) as output:
        shown = None if run.database.report.shows_output else output
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=shown, stderr=shown,
                env=_environment(run, script), start_new_session=posix,
                pass_fds=(held.fileno(),) if posix else ())
        except (OSError, ValueError) as error:
            name, reason = command[0].replace("\0", "\\0"), getattr(error, "strerror", error)
            raise _ScriptFailed(script, f"{name} cannot be run: {reason}", remedy="Install it, or "
                                "name another one in the script's first line") from None
        held.close()
        # An exception before this line would leave a process that nobody ends. In a program that
        # calls the library, that can be a KeyboardInterrupt. The process has only the copy to
        # write to.
        try:
            failed = _wait_for(run, script, process, alive)
        except BaseException:
            _terminate(process, alive)
            raise
        if failed:
            _terminate(process, alive)
        output.seek(max(0, output.seek(0, os.SEEK_END) - 4000))
        tail = "\n".join(output.read().decode(errors="replace").splitlines()[-20:])
    if not failed:
        return tail
    if "database is locked" in tail:
        tail += "\n" + _WORKS_ON_COPY.format(run.database.name)
    was_killed = failed.startswith("it was killed")
    raise _ScriptFailed(script, f"{failed}\n{tail}",
                        remedy="Find out what killed it" if was_killed else "Fix the script")


def _wait_for(run: _Run, script: _Script, process: subprocess.Popen[bytes],
              alive: IO[bytes]) -> str:
    """Wait until a script, and all that it started, have exited. Return how it failed, "" if
    it did not."""
    while not _wait_until_exited(process, alive) and process.poll() is None:
        run.tick()
    status = process.wait()
    if status < 0:
        import signal
        names = {number.value: number.name for number in signal.Signals}
        return f"it was killed by {names.get(-status, f'signal {-status}')}"
    if status:
        return f"it failed with exit status {status}"
    timeout = run.database.timeout
    deadline = time.monotonic() + timeout
    while not _wait_until_exited(process, alive):
        run.tick()
        run.database.report.warn(f"{script.name} has ended, but not all processes that it "
                                 f"started: waiting up to {timeout:g} s for them")
        if time.monotonic() > deadline:
            return f"it ended, but processes that it started did not, for {timeout:g} s"
    return ""


def _wait_until_exited(process: subprocess.Popen[bytes], alive: IO[bytes]) -> bool:
    """Wait for TURN_SECONDS at most; return whether a script, and all that it started, have
    exited.

    A process belongs to the script if it holds the other end of the pipe `alive` or is in the
    script's process group. Either alone misses some: Python's subprocess closes the pipe in a
    child, and a child with a new session leaves the group. (On Windows only the script itself
    counts.)
    """
    deadline = time.monotonic() + TURN_SECONDS
    if os.name == "posix":
        import select
        poll = select.poll()
        poll.register(alive, select.POLLIN)
        if not poll.poll(1000 * TURN_SECONDS):
            return False
    while process.poll() is None or _is_group_alive(process.pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.001 if process.returncode is None else POLL_SECONDS)
    return True


def _terminate(process: subprocess.Popen[bytes], alive: IO[bytes]) -> None:
    """Send SIGTERM to a script and its child processes, then SIGKILL to those that are left. (A
    process with a new session cannot be reached, but it was given only the copy to write to.)"""
    import signal
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            if os.name == "posix":
                os.killpg(process.pid, number)
            else:
                process.terminate()
        except OSError:
            pass  # none is left
        if _wait_until_exited(process, alive):
            break
    process.wait()


def _is_group_alive(group: int) -> bool:
    """Return whether a process of a group is running. /proc is read too, because killpg() also
    succeeds for a zombie: a process that has exited, but whose parent has not waited for it.
    In a container a zombie may stay for ever."""
    if os.name != "posix":
        return False
    try:
        os.killpg(group, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it runs as another user
    import glob
    states = set()
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path, "rb") as file:
                state, _, process_group = file.read().rpartition(b")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it has just exited
        if int(process_group) == group:
            states.add(state)
    return not states or not states <= {b"Z", b"X"}  # without /proc, there are none


def _environment(run: _Run, script: _Script) -> dict[str, str]:
    """Return the environment of a script. PYTHONPATH lets a .py script import what the
    application can. The standard library and site-packages are not in it, because another Python
    that the script starts must not find them."""
    environment = {**os.environ, "FASTMIGRATE_VERSION": str(script.version),
                   "FASTMIGRATE_DB": run.database.path_as_given}
    if script.name.endswith(".py"):
        import site
        library = os.path.dirname(os.__file__)
        packages = (*site.getsitepackages(), site.getusersitepackages())
        environment["PYTHONPATH"] = os.pathsep.join(
            path for path in dict.fromkeys(map(os.path.abspath, sys.path))
            if path not in packages and not path.startswith(library)
            and not (path.endswith(".zip") and os.path.dirname(path) == os.path.dirname(library)))
    return environment


def _interpreter(script: _Script) -> list[str]:
    """Return the command that runs a .py or .sh script, but for the script's argument."""
    # Without "./" the interpreter would take a path that begins with "-" for an option.
    path = os.path.join(".", script.path) if script.path.startswith("-") else script.path
    if script.name.endswith(".py"):
        if getattr(sys, "frozen", False) or not sys.executable:
            raise _ScriptFailed(script, "this program contains no Python interpreter to run it",
                                remedy="Write it in SQL")
        return [sys.executable, path]
    with open(script.path, "rb") as file:
        text = file.read()
    # A shell would take these characters for a part of a word.
    if b"\r\n" in text:
        raise _ScriptFailed(script, "it has CR LF line ends", remedy="Save it with LF line ends")
    if text.startswith(b"\xef\xbb\xbf"):
        raise _ScriptFailed(script, "it begins with a byte order mark", remedy="Remove the mark")
    if text[:2] != b"#!":
        return ["sh", path]
    command = os.fsdecode(text.partition(b"\n")[0][2:].strip()).split(None, 1)
    if os.name == "nt" and command and not os.path.exists(command[0]):
        import shutil  # `#!/usr/bin/env bash` and `#!/bin/sh` are found by their last word
        name = (command[-1] if command[0].endswith("/env") else command[0]).rpartition("/")[2]
        command = [shutil.which(name) or name]
    return [*command, path]


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
SCHEMA_PRAGMAS = ("application_id", "user_version")
CONSTANTS = ("current_date", "current_time", "current_timestamp", "false", "null", "true")


def _bare(token: str) -> str:
    """Return a name without the quotes that it may be written in."""
    if token[:1] not in ('"', "'", "`", "["):
        return token
    return token[1:-1].replace(token[-1] * 2, token[-1])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _name(name: str) -> str:
    """Return a name as SQL has to write it, in quotes only if it needs them."""
    is_plain = name.isascii() and name.isidentifier() and _fold(name) not in RESERVED
    return name if is_plain else _quoted(name)


def _string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _tokens(sql: str) -> Tokens:
    """Return (kind, text, start) of each token; a kind is word, quoted, string, comment, other.
    (What SQLite takes for white space and for letters is not what \\s and \\w match.)"""
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


def _texts(sql: str) -> list[str]:
    """Return the texts of the tokens but comments."""
    return [text for kind, text, _ in _tokens(sql) if kind != "comment"]


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


def _key_of(tokens: Tokens, names: Container[str], is_expression: bool = False) -> list[str]:
    """Return normalized tokens: two ways to write the same thing give the same list.

    In an expression, SQLite takes a token in double quotes for a string if it is none of
    `names`, so its letter case counts. All tokens are one if `is_expression`; else those in
    parentheses after CHECK, GENERATED AS or DEFAULT.
    """
    key: list[str] = []
    depth = int(is_expression)
    for kind, text, _ in tokens:
        if kind == "comment":
            continue
        if text == "(" and (depth or key and key[-1] in BEFORE_EXPRESSION):
            depth += 1
        elif text == ")" and depth:
            depth -= 1
        bare = _bare(text) if kind == "quoted" else text
        is_string = kind == "string" or depth and text[0] == '"' and _fold(bare) not in names
        if key[-1:] == ["default"]:  # a name is a string there, too
            is_string = _is_default_string(text)
        key.append(_string(_bare(text)) if is_string else _fold(bare))
    return key


def _is_default_string(text: str) -> bool:
    return text[0] in "\"'`[" or text.isidentifier() and _fold(text) not in CONSTANTS


def _schema_key(sql: str, names: Iterable[str] = ()) -> tuple[str, ...]:
    """Return a key that is the same for two CREATE statements if they differ only in white
    space, comments, letter case or the quoting of names. `names` are those of the schema, in
    small letters."""
    if not _is_table(sql):
        tokens = _tokens(sql)
        words = {_fold(text) for kind, text, _ in tokens if kind == "word"}
        aliases = {_fold(_bare(after[1])) for token, after in zip(tokens, tokens[1:])
                   if _fold(token[1]) == "as"}
        return tuple(_key_of(tokens, {*names, *words, *aliases}, is_expression=not _module(sql)))
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
    texts = _texts(sql)
    for name, sign, value in zip(texts, texts[1:], texts[2:]):
        if _fold(name) == "content" and sign == "=":
            return _bare(value)
    return None


def _module(sql: str) -> str:
    """Return the module of a virtual table, "" for all else."""
    is_virtual = _fold(sql[:15]) == "create virtual "  # as SQLite writes it
    return _fold(_bare(_texts(sql)[5])) if is_virtual else ""


def _read_objects(connection: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    """Return (type, name, table, SQL) of each object in a database, in an order in which they
    can be created. What SQLite and virtual tables create for themselves is left out."""
    import re
    objects = connection.execute(SELECT_OBJECTS).fetchall()
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
            setting = f"{pragma} = {value}"
            schema["", setting] = ("pragma", setting, f"PRAGMA {setting}")
    objects = _read_application(connection)
    names = {_fold(name) for _, name, _, _ in objects}
    names.update(_fold(_bare(column[0][1])) for _, _, _, sql in objects if _is_table(sql)
                 for column in _split_table(sql)[1])
    for kind, name, table, sql in objects:
        schema[(_fold(table), *_schema_key(sql, names))] = (kind, name, _without_quotes(sql, name))
    return schema


def _without_quotes(sql: str, table: str) -> str:
    """Return a CREATE TABLE without the quotes that ALTER TABLE ... RENAME writes around the name.
    If anything else is in double quotes too, the author may write so."""
    if sql.startswith(f'CREATE TABLE "{table}"') and sql.count('"') == 2 and _name(table) == table:
        return sql.replace(f'"{table}"', table, 1)
    return sql


def _terminated(sql: str) -> str:
    """Return a statement with its semicolon, which must not become a part of a comment."""
    end = _tokens(sql)[-1][1]
    return f"{sql}\n;" if end.startswith("--") else f"{sql}{'*/' * _is_open_comment(end)};"


def _is_open_comment(token: str) -> bool:
    return token.startswith("/*") and not token[2:].endswith("*/")


def _schema_text(schema: Schema) -> str:
    """Return a schema as a text that builds it: tables by name, each with its indexes and
    triggers, then views by name, each with its triggers."""
    views = {_fold(name) for kind, name, _ in schema.values() if kind == "view"}
    kinds = ("pragma", "table", "view", "index", "trigger")

    def place(item: tuple[tuple[str, ...], tuple[str, str, str]]) -> tuple[Any, ...]:
        (owner, *_), (kind, name, sql) = item
        # A full-text index over another table may need that table when it is created.
        needs_table = kind == "table" and bool(_module(sql) and _content_table(sql))
        return (kind != "pragma", owner in views, needs_table, owner, kinds.index(kind), name)

    return "".join(f"{_terminated(sql)}\n" for _, (*_, sql) in sorted(schema.items(), key=place))


def _diff_schemas(before: Schema, after: Schema, name_before: str, name_after: str) -> str:
    """Return a unified diff of the objects that do not mean the same, "" if all do."""
    import difflib

    def lines(keys: set[tuple[str, ...]], schema: Schema) -> list[str]:
        return [line for key in sorted(keys)
                for line in _terminated(schema[key][2]).split("\n")]

    return "\n".join(difflib.unified_diff(
        lines(before.keys() - after, before), lines(after.keys() - before, after),
        name_before, name_after, lineterm="", n=99))


def _schema_of_scripts(migrations_dir: StrPath, to: int | None, connect: Connect,
                       report: _Report) -> Schema:
    """Run the scripts up to a version on a scratch database; return the schema that they lead
    to."""
    _announce(report, _scan(migrations_dir), to=to)
    with _Scratch(connect, report.of_scratch()) as scratch:
        _replay(scratch, migrations_dir, to)
        return scratch.read(_read_schema)[1]  # type: ignore[no-any-return]


# ------------------------------------------------------------------ what no longer works

# What SQLite says about an object that needs something only the application has.
OF_THE_APPLICATION = (
    "no such function", "no such collation sequence", "no such module", "no such tokenizer",
    "wrong number of arguments to function", "unsafe use of", "not authorized",
    "is prohibited", "vtable constructor failed")


def _newly_broken(connection: sqlite3.Connection, before: list[Any]) -> dict[str, str]:
    """Return what _broken_objects() finds now, and not in the schema `before`, which is tried
    only if something is broken now."""
    broken = _broken_objects(_read_objects(connection), connection)
    old = _broken_objects(before) if broken else {}
    return {name: fault for name, fault in broken.items() if name not in old}


def _broken_objects(objects: list[Any], connection: sqlite3.Connection | None = None,
                    ) -> dict[str, str]:
    """Return {name: fault} of what does not work in a schema: views and triggers that do not
    compile, and tables with a foreign key that cannot work. `connection` is to a database with
    this schema, if there is one: to look up foreign keys, it needs no copy of the schema."""
    faults, has_code = {}, any(kind in ("view", "trigger") for kind, *_ in objects)
    if connection and not has_code:
        faults = {f"table {name}": _find_fault_of_keys(connection, name, ())
                  for kind, name, *_ in objects if kind == "table"}
    elif has_code or any("references" in sql.lower() for *_, sql in objects):
        # Not by the application's `connect`, which may make a file of this name. What needs a
        # function that only the application has is no fault.
        with _closing(sqlite3.connect(":memory:", isolation_level=None)) as scratch:
            copy = _EmptyCopy(scratch, objects)
            faults = {f"{kind} {name}": copy.find_fault(kind, name, table, sql)
                      for kind, name, table, sql in objects}
    return {name: f"{name} {fault}" for name, fault in faults.items() if fault}


class _EmptyCopy:
    """A copy of a schema in memory, in which each object is tried by itself. A trigger of a table
    is there only while it is tried, because SQLite does not say which trigger is at fault."""

    def __init__(self, connection: sqlite3.Connection, objects: list[Any]) -> None:
        self._connection = connection
        self._views = {_fold(name): _fold(sql) for kind, name, _, sql in objects if kind == "view"}
        self._lacking: set[str] = set()  # tables that need something only the application has
        # If foreign keys were on, SQLite would report them as faults of triggers.
        connection.execute("PRAGMA foreign_keys = OFF").fetchall()
        for kind, _, table, sql in objects:
            if kind == "trigger" and _fold(table) not in self._views:  # which it makes writable
                continue
            try:
                connection.execute(sql).fetchall()
            except connection.Error:
                self._lacking.add(_fold(table))

    def find_fault(self, kind: str, name: str, table: str, sql: str) -> str:
        """Return what is wrong with an object, or ""."""
        reason = ""
        if kind == "table":
            return _find_fault_of_keys(self._connection, name, self._lacking)
        if kind == "view":
            reason = self._compile(f"SELECT * FROM main.{_quoted(name)}")
        elif kind == "trigger":
            reason = self._compile_trigger(table, sql)
        return f"does not compile: {reason}" if reason else ""

    def _compile_trigger(self, table: str, sql: str) -> str:
        """Return why a statement that sets off a trigger, and no other of its table, does not
        compile, or ""."""
        execute, quoted = self._connection.execute, _quoted(table)
        execute("BEGIN")
        try:
            for other, in execute("SELECT name FROM sqlite_master WHERE type = 'trigger' "
                                  "AND tbl_name = ? COLLATE NOCASE", (table,)).fetchall():
                execute(f"DROP TRIGGER {_quoted(other)}")
            execute(sql)
            rows = execute(f"PRAGMA main.table_xinfo({quoted})").fetchall()
            names = {"rowid", "oid", "_rowid_", *(_fold(row[1]) for row in rows)}
            columns = [_quoted(row[1]) for row in rows if not row[6]]  # not generated
            writes = {
                "insert": f"INSERT INTO main.{quoted} DEFAULT VALUES",
                "delete": f"DELETE FROM main.{quoted}",
                "update": f"UPDATE main.{quoted} SET " + ", ".join(f"{c} = {c}" for c in columns)}
            # Behind the name, the event comes before all else that is called like one.
            texts = _texts(sql)[3:]
            event = next(filter(writes.__contains__, map(_fold, texts)))
            reason = self._compile(writes[event]) or (
                _find_lacking_column(texts, names) if event == "update" else "")
            # A trigger that writes to its own view may need one that we have dropped.
            return "" if _fold(reason).startswith(f"cannot modify {_fold(table)} ") else reason
        except self._connection.Error:
            return ""  # its table is lacking, or its view does not compile itself
        finally:
            execute("ROLLBACK")

    def _compile(self, statement: str) -> str:
        """Return why a statement does not compile, "" if it does or if the reason is that this
        connection lacks what the application's connections have."""
        # The time makes each text unique. Otherwise Python would reuse a statement that it has
        # compiled, and SQLite does not compile an EXPLAIN again after the schema has changed.
        try:
            self._connection.execute(f"EXPLAIN {statement} -- {time.perf_counter_ns()}").close()
            return ""
        except self._connection.Error as error:
            reason = str(error)
        import re
        table = _fold(reason.partition("no such table: ")[2]).removeprefix("main.")
        # FROM series(1, 9), but not WITH series(n) AS (...)
        function = rf"(\bfrom|\bjoin|\bin|,|\()\s*{re.escape(table)}\((?![^()]*\)\s*as\s*\()"
        is_elsewhere = table in self._lacking or table.startswith("sqlite_") or table and any(
            re.search(function, sql) for sql in self._views.values())
        return "" if is_elsewhere or any(map(reason.__contains__, OF_THE_APPLICATION)) else reason


def _find_lacking_column(trigger: list[str], columns: set[str]) -> str:
    """Return what is wrong if a trigger is for an UPDATE OF a column that its table lacks, else "".
    SQLite takes such a trigger, and never runs it. `trigger` are the texts behind its name."""
    folded = [*map(_fold, trigger)]
    start = folded.index("update") + 1
    named = trigger[start + 1:folded.index("on", start)] if folded[start] == "of" else []
    return next((f"no such column: {_bare(text)}" for text in named
                 if text != "," and _fold(_bare(text)) not in columns), "")


def _find_fault_of_keys(connection: sqlite3.Connection, child: str, lacking: Container[str],
                        ) -> str:
    """Return why a foreign key of a table cannot work, "" if all can. A parent that is `lacking`
    here is no fault."""
    for (_, parent, columns), named in _foreign_keys(connection, child):
        key = _key_of_parent(connection, parent, named)
        if not key and _fold(parent) not in lacking:
            why = "does not exist" if key is None else "has no such primary or unique key"
            return (f"has a foreign key that cannot work: {', '.join(columns)} refers to "
                    f"the table {parent}, which {why}")
    return ""


def _lost_with_tables(connection: sqlite3.Connection, before: list[Any],
                      ran: list[tuple[str, _Changes | None]]) -> list[str]:
    """Return the indexes and triggers that scripts have dropped without naming them: DROP TABLE
    drops those of its table too, and a rebuild has to create them again. Nothing is returned if a
    script ran on a copy, because it is not known what that script dropped."""
    before = [found for found in before if found[0] in ("index", "trigger")]
    if not before or any(changes is None for _, changes in ran):
        return []
    named = set[str]().union(*(changes.dropped for _, changes in ran if changes))
    altered = named.union(*(changes.made for _, changes in ran if changes))
    now = connection.execute(SELECT_OBJECTS).fetchall()
    there = {(kind, _fold(name)) for kind, name, *_ in now}
    return [f"{kind} {name} of {table}" for kind, name, table, _ in before
            if (kind, _fold(name)) not in there and ("table", _fold(table)) in there
            and _fold(name) not in named and _fold(table) in altered]


def _blame(name: str, fault: str, ran: list[tuple[str, _Changes | None]]) -> str:
    """Return the last script of the run that dropped, altered or created the broken object, or
    what SQLite's reason names; else the only script; else "this run"."""
    import re
    words = {_fold(name.partition(" ")[2]), *re.findall(r"[\w$]+", _fold(fault.partition(": ")[2]))}
    for script, changes in reversed(ran):
        if changes and words & (changes.dropped | changes.made):
            return script
    return ran[0][0] if len(ran) == 1 else "this run"


def _broken_and_known(connection: sqlite3.Connection,
                      ) -> tuple[dict[str, str], set[str]]:
    """Return what is broken now, and the names of what was broken already when the history
    began. Without a history, everything that is broken counts as known."""
    broken = _broken_objects(_read_objects(connection), connection)
    if not broken or not connection.execute(HAS_HISTORY).fetchall():
        return broken, set(broken)
    return broken, {name for names, in connection.execute(
        "SELECT CAST(checksum AS TEXT) FROM main._migration_history WHERE name = ''").fetchall()
        for name in names.split("\n")}


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
        self.default = default or ""  # an expression, "" for NULL
        if _fold(self.default).strip("() ") == "null":
            self.default = ""
        elif len(_tokens(self.default)) == 1 and _is_default_string(self.default):
            self.default = _string(_bare(self.default))

    def needs_value(self, was: _Column | None) -> bool:
        """Return whether rows may have no value yet that this column accepts. `was` is the column
        before, None if it is new."""
        if self.default or self.is_generated:
            return False
        if self.is_rowid:  # NULL becomes an invented number there
            return bool(was and not was.is_rowid and not was.not_null)
        if was:
            return self.not_null and not was.not_null and not self.in_key
        return self.not_null or self.in_key


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


def _has_rowid(sql: str) -> bool:
    return "without" not in _key_of(_split_table(sql)[-1], set())


def _is_sequenced(sql: str) -> bool:
    return any(kind == "word" and _fold(text) == "autoincrement" for kind, text, _ in _tokens(sql))


def _source(sql: str, element: Tokens) -> str:
    """Return the text of a part of a statement, as its author wrote it."""
    return sql[element[0][2]:element[-1][2] + len(element[-1][1])] if element else ""


def _definitions(sql: str) -> dict[tuple[str, ...], str]:
    """Return the columns of a table by ("column", name in small letters), and its constraints and
    options by their text, each in one line."""
    _, columns, constraints, options = _split_table(sql)
    found: dict[tuple[str, ...], str] = {}
    for part in filter(None, (*columns, *constraints, options)):
        text = " ".join(_source(sql, part).split())
        found[("column", _fold(_bare(part[0][1]))) if part in columns else (text,)] = text
    return found


class _Change:
    """The statements that turn one schema into another.

    No rules here tell what ALTER TABLE can do, because that depends on the version of SQLite.
    Instead, each way to change a table is tried on a scratch database, the cheapest first. It
    is kept only if the table then has the wanted definition.
    """

    def __init__(self, scratch: sqlite3.Connection, wanted: sqlite3.Connection,
                 tick: Callable[[], None]) -> None:
        self.scratch = scratch  # begins with the schema of today, and never has rows
        self.wanted = wanted  # has the schema that is wanted
        self.statements: list[str] = []
        self.notes: list[str] = []  # what is renamed, dropped, replaced and rebuilt
        self.renewed: set[str] = set()  # rebuilt tables, dropped views: an index may read them
        self.tick = tick  # lets Ctrl-C in

    def do(self, statement: str, note: str = "") -> None:
        """Run a statement, and add it to the script. A note is also the comment before it."""
        self.tick()
        self.scratch.execute(statement).fetchall()
        if note:
            self.notes.append(note)
            statement = f"-- {' '.join(note.split())}\n{statement}"
        self.statements.append(statement)

    def both(self, table: str) -> list[tuple[str, str]]:
        """Return (name, SQL) of a table as it is and as it is wanted."""
        return [_read_tables(each)[table] for each in (self.scratch, self.wanted)]

    def columns(self, table: str) -> list[dict[str, _Column]]:
        """Return the columns of a table as they are and as they are wanted."""
        return [_read_columns(each, table) for each in (self.scratch, self.wanted)]

    def free_name(self, name: str) -> str:
        """Return a name for a table that nothing has, neither now nor as wanted."""
        taken = {_fold(other) for each in (self.scratch, self.wanted)
                 for other, in each.execute("SELECT name FROM sqlite_master").fetchall()}
        while _fold(name) in taken:
            name += "_"
        return name

    def plain_tables(self) -> set[str]:
        """Return the tables that stay, and are virtual neither now nor as wanted."""
        tables = _read_tables(self.wanted)
        return {table for table, (_, sql) in _read_tables(self.scratch).items()
                if table in tables and not _module(sql) and not _module(tables[table][1])}

    def is_changed(self, table: str) -> bool:
        """Return whether the definition of a table is not yet the wanted one."""
        return len({_schema_key(sql) for _, sql in self.both(table)}) > 1

    def run(self, fills: dict[tuple[str, str], str]) -> None:
        """Change all that still differs. `fills` holds SQL by (table, column)."""
        self.drop_others(_read_schema(self.wanted), "trigger", "view", "index")
        today, tables = _read_tables(self.scratch), _read_tables(self.wanted)
        changed = self.in_order_of_fills(
            [table for table in today if table in tables and self.is_changed(table)], fills)
        plain = self.plain_tables()
        for table in changed:
            if table not in plain:
                self.drop("table", today[table][0])
                if _holds_content(tables[table][1]):
                    self.notes.append(f"leaves the table {tables[table][0]} empty")
        created = self.create_missing("table")
        for table in changed:
            fill = {column: sql for (of, column), sql in fills.items() if of == table}
            if table in plain and (fill or self.attempt(table, self.added_columns(table))):
                self.rebuild(table, fill)
        for table, (name, _) in today.items():  # after the others, whose values may come from these
            if table not in tables:
                self.drop("table", name)
        for pragma in SCHEMA_PRAGMAS:
            old, new = (each.execute(f"PRAGMA {pragma}").fetchall()[0][0]
                        for each in (self.scratch, self.wanted))
            if old != new:
                self.do(f"PRAGMA {pragma} = {new}")
        self.create_missing("index", "view", "trigger")
        self.fill_indexes(created)

    def in_order_of_fills(self, changed: list[str], fills: dict[tuple[str, str], str],
                          ) -> list[str]:
        """Return the tables in such an order that each value to fill reads the other tables before
        they change."""
        import graphlib
        read = {table: set[str]() for table in changed}
        for (table, _), sql in fills.items():
            words = {_fold(_bare(text)) for text in _texts(sql)}
            if table in read and words & {"select", "in"}:  # else it reads its own row alone
                read[table] |= words
        try:
            return [*graphlib.TopologicalSorter({
                table: [other for other in changed if other != table and table in read[other]]
                for table in changed}).static_order()]
        except graphlib.CycleError:
            raise MigrationError(
                f"the values to fill in {_cut(changed)} read each other's table. Nothing was "
                "written. Fill one of them in this script, and the other in the next."
                ) from None

    def drop_others(self, kept: Schema, *kinds: str) -> None:
        """Drop the triggers, views or indexes that are not among those to keep."""
        for key, (kind, name, _) in reversed(list(_read_schema(self.scratch).items())):
            if kind in kinds and key not in kept:
                self.drop(kind, name)

    def rename(self, statement: str, note: str) -> None:
        """Run a RENAME. SQLite carries the name into views and triggers. If it cannot (one reads
        the column through another view, say), they are dropped; run() creates them again."""
        try:
            self.do(statement, note)
        except self.scratch.Error:
            self.drop_others({}, "trigger", "view")
            self.do(statement, note)

    def drop(self, kind: str, name: str) -> None:
        wanted = {(of, _fold(other)) for of, other, *_ in _read_application(self.wanted)}
        verb = "replaces" if (kind, _fold(name)) in wanted else "drops"
        self.do(f"DROP {kind.upper()} {_name(name)}", f"{verb} the {kind} {name}")
        if kind == "view" and verb == "replaces":
            self.renewed.add(_fold(name))

    def create_missing(self, *kinds: str) -> set[str]:
        """Create the wanted objects of some kinds that do not exist yet. Return their names in
        small letters."""
        there = {(kind, _fold(name)) for kind, name, _ in _read_schema(self.scratch).values()}
        created = set()
        for kind, name, sql in _read_schema(self.wanted).values():
            if kind in kinds and (kind, _fold(name)) not in there:
                self.do(sql)
                created.add(_fold(name))
        return created

    def attempt(self, table: str, statements: list[str]) -> str:
        """Add statements to the script if they lead to the wanted definition of a table. Else
        undo them, and return what is wrong."""
        done, failure = len(self.statements), ""
        self.scratch.execute("SAVEPOINT attempt")
        try:
            for statement in statements:
                self.do(statement)
            if self.is_changed(table):
                failure = "the result is another table"
        except self.scratch.Error as error:
            failure = str(error)
        if failure:
            del self.statements[done:]
            self.scratch.execute("ROLLBACK TO attempt")
        self.scratch.execute("RELEASE attempt")
        return failure

    def added_columns(self, table: str) -> list[str]:
        """Return the ALTER TABLE ... ADD COLUMN that may suffice, [] if they cannot.

        Whether SQLite accepts a column may depend on rows, so it is added to a table with one
        row. If the table is STRICT, a default of the wrong type makes only the next INSERT fail.
        """
        (name, _), (_, after) = self.both(table)
        _, columns, _, options = _split_table(after)
        old = _read_columns(self.scratch, table)
        added = [_source(after, column) for column in columns
                 if _fold(_bare(column[0][1])) not in old]
        words = [{_fold(_bare(text)) for text in _texts(definition)} for definition in added]
        if any("check" in each and each & old.keys() for each in words):
            return []  # SQLite before 3.35 does not check the rows that are there
        strict = "STRICT" if "strict" in _key_of(options, ()) else ""
        columns_of_today = ", ".join(f"{_quoted(column)} ANY" for column in old)
        self.scratch.execute(f"CREATE TEMP TABLE trial ({columns_of_today}) {strict}")
        try:
            self.scratch.execute("INSERT INTO temp.trial DEFAULT VALUES")
            for definition in added:
                self.scratch.execute(f"ALTER TABLE temp.trial ADD COLUMN {definition}")
            self.scratch.execute("INSERT INTO temp.trial DEFAULT VALUES")
        except self.scratch.Error:
            return []
        finally:
            self.scratch.execute("DROP TABLE temp.trial")
        return [f"ALTER TABLE {_name(name)} ADD COLUMN {definition}" for definition in added]

    def rebuild(self, table: str, fill: dict[str, str]) -> None:
        """Rebuild a table. Its indexes and triggers are dropped with the old one, and
        create_missing() creates them again."""
        (name, before), (_, after) = self.both(table)
        old, new = _definitions(before), _definitions(after)
        note = " ".join(f"rebuilds the table {name}".split())  # a name may hold a line end
        self.notes.append(note)
        for key, text in {**old, **new}.items():
            if key not in new and key[0] == "column":
                column = _read_columns(self.scratch, table)[key[1]]
                self.notes.append(f"drops the column {name}.{column.name}"
                                  + ", with its data" * (not column.is_generated))
            elif key not in new:
                self.notes.append(f"removes from the definition of {name}: {text}")
            elif key not in old:
                self.notes.append(f"adds to the definition of {name}: {text}")
            elif text != old[key]:
                self.notes.append(f"changes in {name}: {old[key]} -> {text}")
        for first, *others in self.rebuilds(table, self.values(table, fill)):
            failure = self.attempt(table, [f"-- {note}\n{first}", *others])
            if not failure:
                self.renewed.add(table)
                return
        raise MigrationError(f"the table {name} cannot be changed as wanted: {failure}. Nothing "
                             "was changed.")

    def values(self, table: str, fill: dict[str, str]) -> dict[str, str]:
        """Return {column: SQL for its value in a row of the old table} of the columns that a
        rebuild fills. In an existing column, a value of `fill` replaces only NULL, and so does
        a default if NULL is no longer allowed. The rowids are copied too, unless an INTEGER
        PRIMARY KEY holds them."""
        old, new = self.columns(table)
        values = {}
        for key, column in new.items():
            was, name = old.get(key), _name(column.name)
            value = fill.get(key, "")
            if was and not value and column.not_null and not was.not_null and column.default:
                value = column.default
                self.notes.append(f"replaces NULL in {table}.{column.name} by its default")
            if "--" in value:
                value += "\n"  # the end of a comment
            if was and column.is_rowid and value:  # '' is refused as another type, unlike NULL
                value = "''" if value == name else f"ifnull({value}, '')"
            if was:
                value = name if value in ("", name) else f"ifnull({name}, {value})"
            if value and not column.is_generated:
                values[name] = value
        rowid = next((each for each in ("rowid", "_rowid_", "oid")
                      if each not in old and each not in new), "")
        is_keyed = any(column.is_rowid and _name(column.name) in values for column in new.values())
        if rowid and not is_keyed and all(_has_rowid(sql) for _, sql in self.both(table)):
            return {rowid: rowid, **values}
        return values

    def rebuilds(self, table: str, values: dict[str, str]) -> tuple[list[str], list[str]]:
        """Return two ways to rebuild a table. The first creates the new table under another name,
        which fails if the definition contains the table's own name, as in CHECK (users.age > 0).
        The second has no such limit, but copies the rows twice."""
        (name, before), (_, after) = self.both(table)
        new = self.free_name(f"{name}_new")
        move_sequence, move_back = [], []
        if _is_sequenced(before) and _is_sequenced(after):
            move = "UPDATE sqlite_sequence SET name = {} WHERE name = {}"
            move_sequence = [move.format(_string(new), _string(name))]
            move_back = [move.format(_string(name), _string(new))]
        _, written, start = _split_table(after)[0][-1]
        create_new = after[:start] + _name(new) + after[start + len(written):]
        # With ON CONFLICT REPLACE or IGNORE in a constraint, a plain INSERT would drop rows.
        conflicts = any(_fold(text) == "conflict" for _, text, _ in _tokens(after))
        insert = "INSERT OR ABORT INTO" if conflicts else "INSERT INTO"
        columns, selected = ", ".join(values), ", ".join(values.values())
        named = ", ".join(f"{value} AS {column}" for column, value in values.items())
        name, new = _name(name), _name(new)
        return (["PRAGMA legacy_alter_table = ON",  # RENAME is to leave all other objects alone
                 create_new, *move_sequence,
                 f"{insert} {new} ({columns})\nSELECT {selected} FROM {name}",
                 f"DROP TABLE {name}", f"ALTER TABLE {new} RENAME TO {name}"],
                [f"CREATE TABLE {new} AS SELECT {named} FROM {name}", *move_sequence,
                 f"DROP TABLE {name}", after, *move_back,
                 f"{insert} {name} ({columns}) SELECT * FROM {new}", f"DROP TABLE {new}"])

    def fill_indexes(self, created: Container[str]) -> None:
        """Fill the full-text indexes that are new, or whose content was rebuilt."""
        tables = _read_tables(self.wanted)
        names = {_fold(name) for _, name, *_ in _read_application(self.wanted)}
        for table, (name, sql) in tables.items():
            content = _fold(_content_table(sql) or "")
            if content in names and _module(sql).startswith("fts") and (
                    table in created or content in self.renewed
                    or self.renewed and content not in tables):  # a view
                self.do(f"INSERT INTO {_name(name)} ({_name(name)}) VALUES ('rebuild')",
                        f"fills the full-text index {name}")


# -------------------------------------------------------------- questions and answers


def _split_dotted(text: str) -> tuple[str, str]:
    """Return (table, column) of TABLE.COLUMN, (table, "") of TABLE. A name that holds a dot or an
    equals sign is in double quotes, as in SQL. Raises ValueError for anything else."""
    import re
    name = r'("(?:[^"]|"")+"|[^".][^.]*)'
    found = re.fullmatch(rf"{name}(?:\.{name})?", text, re.S)
    if not found:
        raise ValueError(f"{text!r} is not TABLE or TABLE.COLUMN")
    return _bare(found[1]), _bare(found[2] or "")


def _dotted(*names: str) -> str:
    """Return TABLE or TABLE.COLUMN as _split_dotted() reads it."""
    return ".".join(_quoted(name) if any(sign in name for sign in '".=') else name
                    for name in names)


def _option(option: str, name: str, value: str = "") -> str:
    """Return an answer as it is typed, on the command line and in Python."""
    import shlex
    answer = f"{name}={value}" if value else name
    typed = shlex.quote(answer)
    if "'" in answer and not any(sign in answer for sign in '"$`\\!'):
        typed = f'"{answer}"'  # which is easier to read
    python = f"{{{name!r}: {value!r}}}" if value else f"[{name!r}]"
    between = "=" if answer.startswith("-") else " "
    return f"    --{option}{between}{typed}    (in Python: {option}={python})"


class _Answers:
    """The --rename, --drop and --fill of a person.

    They name tables and columns as these are called today. In the code, a name is (table, column)
    in small letters; the column is "" for the table itself. now() leads to the names after the
    renames.
    """

    def __init__(self, change: _Change, path: str, rename: dict[str, str], drop: Iterable[str],
                 fill: dict[str, str]) -> None:
        self.change, self.path = change, path
        self.titles = _read_names(change.scratch)
        self.drops = {self.find("drop", text) for text in drop}
        self.fills = {self.find("fill", text): sql for text, sql in fill.items()}
        self.renames = {self.find("rename", text): new for text, new in rename.items()}

    def refuse(self, what: str, why: str) -> NoReturn:
        raise MigrationError(f"{what}: {why}. Nothing was written.")

    def find(self, option: str, text: str) -> tuple[str, str]:
        """Return the name that an option has. A column to be filled may be new."""
        try:
            table, column = map(_fold, _split_dotted(text))
        except ValueError as error:
            self.refuse(option, str(error))
        if (table, "" if option == "fill" else column) not in self.titles:
            has_not = table if option == "fill" else text
            hint = "" if column or option == "fill" else (
                " (name a column as TABLE.COLUMN; indexes, views and triggers need no answer)")
            self.refuse(f"{option} {text}", f"the schema of the scripts has no {has_not}{hint}")
        return table, column

    def now(self, name: tuple[str, str]) -> tuple[str, str]:
        table, column = name
        if column:
            column = _fold(self.renames.get(name, column))
        return _fold(self.renames.get((table, ""), table)), column

    def rename(self) -> None:
        """Run the renames. What is dropped, and has the new name, first gets another one."""
        wanted = _read_names(self.change.wanted)
        for name, new in list(self.renames.items()):
            what = f"rename {self.titles[name]}={new}"
            if self.now(name) == name:
                self.refuse(what, "this is the same name, because letter case does not count")
            if self.now(name) not in wanted:
                self.refuse(what, f"{self.path} has no {new}")
            if [*map(self.now, self.renames)].count(self.now(name)) > 1:
                self.refuse(what, "two are to have this name")
            holder = (name[0], _fold(new)) if name[1] else (_fold(new), "")
            if holder in self.titles and holder not in self.drops:
                self.refuse(what, f"there is a {new}. Rename in two scripts")
            if holder in self.titles:
                self.renames = {holder: self.change.free_name(f"{new}_to_drop"), **self.renames}
        # Columns come first, while their tables have the names of today.
        for name, new in sorted(self.renames.items(), key=lambda item: not item[0][1]):
            table, column = _split_dotted(self.titles[name])
            of_column = f"COLUMN {_name(column)} " if column else ""
            self.change.rename(f"ALTER TABLE {_name(table)} RENAME {of_column}TO {_name(new)}",
                               f"renames {self.titles[name]} to {new}")

    def questions(self) -> Iterator[str]:
        """Yield the lines of the questions to the person. A change is not guessed if it could
        lose data or has two meanings."""
        titles = {self.now(name): title for name, title in self.titles.items()}
        gone, dropped = _find_gone(self.change), {self.now(name) for name in self.drops}
        for name in dropped:
            if name not in gone and (name[0], "") not in gone:
                self.refuse(f"drop {titles[name]}", f"{self.path} still has it")
        for name in sorted(gone.keys() - dropped):
            why, new_names = gone[name]
            yield f"  {titles[name]} {why}"
            yield from (_option("rename", titles[name], new) for new in new_names)
            yield _option("drop", titles[name])
            yield (f"  Or did a script add it after {self.path} was written? Then write that anew "
                   "with --print-schema,\n  and make your change again")
        unclear = {table for table, _ in gone.keys() - dropped}  # a new column may be a renamed one
        filled = {self.now(name) for name in self.fills}
        for table in sorted(self.change.plain_tables() - unclear):
            old, new = self.change.columns(table)
            for key, column in new.items():
                if (table, key) not in filled and column.needs_value(old.get(key)):
                    title = titles.get((table, key)) or (
                        f"{titles[table, '']}.{_dotted(column.name)}")
                    yield from _ask_for_value(title, column, key in old)

    def filled(self) -> dict[tuple[str, str], str]:
        """Return the values to fill, by the names after the renames. Refuse one that would do
        nothing, or that is no expression over a row."""
        scratch = self.change.scratch
        for name, sql in self.fills.items():
            what, (table, column) = f"fill {'.'.join(name)}", self.now(name)
            found = _read_columns(self.change.wanted, table).get(column)
            if not found or found.is_generated or not self.change.is_changed(table):
                self.refuse(what, f"{self.path} has no such column to fill, or does not change the "
                                  "table. To change data alone, write an UPDATE. To write a script "
                                  "anew, delete it first")
            try:
                rows = scratch.execute(f"SELECT ({sql}\n) FROM {_quoted(table)}").fetchall()
            except (scratch.Error, scratch.Warning, ValueError) as error:
                self.refuse(what, f"{str(error).rstrip('.')}. The value sees the tables of today, "
                                  "with their new names. For one from a new table, give a "
                                  "placeholder such as 0; in the script, fill that table after its "
                                  "CREATE, and put the SELECT in place of the 0")
            if rows:  # although the table is empty
                self.refuse(what, "this aggregate gives one value for the whole table. For a value "
                                  "for each row, write (SELECT count(*) FROM ... WHERE ...)")
        return {self.now(name): sql for name, sql in self.fills.items()}


def _ask_for_value(title: str, column: _Column, has_values: bool) -> Iterator[str]:
    """Yield the lines of the question about a column that must not be NULL any more."""
    import re
    kind = _fold(column.type)
    is_number = re.search("int|real|num|floa|doub|dec|bool", kind)
    value = "x''" if kind == "blob" else "0" if is_number else "''"
    what = "What replaces NULL" if has_values else "What do the present rows get"
    yield f"  {title} must not be NULL and has no default. {what}, as SQL?"
    if not column.is_rowid:  # which needs another value in each row
        yield _option("fill", title, value)
    if has_values:
        yield "  Or, if no row has NULL there, its own name: the script fails if one has"
        yield _option("fill", title, _name(column.name))


def _read_names(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """Return all tables and columns, as they are written, by (table, column) in small letters."""
    names = {}
    for table, (title, _) in _read_tables(connection).items():
        names[table, ""] = _dotted(title)
        for key, column in _read_columns(connection, table).items():
            names[table, key] = _dotted(title, column.name)
    return names


def _holds_content(sql: str) -> bool:
    """Return whether a table has content that cannot be made anew from elsewhere."""
    module = _module(sql)
    return not (module and _content_table(sql)) and module not in (
        "fts5vocab", "fts4aux", "dbstat")


def _find_gone(change: _Change) -> dict[tuple[str, str], tuple[str, list[str]]]:
    """Return what would lose its data, by (table, column): why, and the names that are new beside
    it. The column is "" for a whole table."""
    why = "is gone. Was it renamed, or is it dropped with its data?"
    today, tables = _read_tables(change.scratch), _read_tables(change.wanted)
    plain, gone = change.plain_tables(), {}
    for table, (_, sql) in today.items():
        if table not in tables:
            gone[table, ""] = why, [name for of, (name, _) in tables.items() if of not in today]
        elif table not in plain and _holds_content(sql) and change.is_changed(table):
            gone[table, ""] = ("has content of its own, which the new table cannot take over. "
                               "Write that script by hand, or let it go:"), []
    for table in plain:
        old, new = change.columns(table)
        for key, column in old.items():
            if key not in new or new[key].is_generated and not column.is_generated:
                gone[table, key] = why, [each.name for of, each in new.items()
                                         if of not in old and not each.is_generated]
    return gone


# -------------------------------------------------------------- the whole change


def _copy_schema(schema: Schema, target: sqlite3.Connection) -> None:
    """Create a schema in an empty database."""
    target.execute("PRAGMA foreign_keys = OFF")  # some builds have them on
    for _, _, sql in schema.values():
        target.execute(sql).fetchall()


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
        raise _explain(error, "Nothing was written.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise MigrationError(f"{path}:{line}: this is not UTF-8. Nothing was written. Save the "
                             "file as UTF-8.", path=path, line=line) from error


def _run_schema_file(scripts: Schema, wanted: sqlite3.Connection, text: str,
                     path: str) -> None:
    """Run the statements of a schema file in an empty database. Raises MigrationError with the
    line of a statement that is not allowed there or that SQLite rejects."""
    for kind, _, sql in scripts.values():
        if kind == "pragma":  # a file that does not speak of these leaves them alone
            wanted.execute(sql)
    line, statement = 1, ""
    try:
        for line, statement in _statements(text, 1):  # noqa: B007
            _run_schema_statement(wanted, statement)
        if not statement:
            raise ValueError("there is no statement in it")
    except (wanted.Error, wanted.Warning, ValueError) as error:
        what, remedy = _diagnose(error)
        raise MigrationError(
            f"{path}:{line}: {what.rstrip('.')}. Nothing was written. " + (
                f"{remedy}." if remedy else "A schema file holds the CREATE statements of the "
                "schema, as --print-schema and get_schema() give them."),
            path=path, line=line, statement=statement) from error


def _run_schema_statement(wanted: sqlite3.Connection, statement: str) -> None:
    """Run a statement of a schema file. Raises ValueError if it creates no part of a schema."""
    words = [_fold(_bare(word)) for kind, word, _ in _tokens(statement) if kind != "comment"]
    if words[:2] == ["create", "table"] and words[2:] and words[2].startswith("sqlite_"):
        return  # the sqlite3 program's .schema prints these, which SQLite creates itself
    is_allowed = words[:1] == ["create"] or words[:2] in (["pragma", p] for p in SCHEMA_PRAGMAS)
    temporary = "SELECT count(*) FROM sqlite_temp_master"  # connect() may have made some
    before = wanted.execute(temporary).fetchall()
    if is_allowed:
        wanted.execute(statement).fetchall()
    if not is_allowed or wanted.execute(temporary).fetchall() != before:
        raise ValueError(f"{' '.join(statement.split()[:3])} ... creates no part of a schema")


def _compare_with_scripts(migrations_dir: StrPath, schema: StrPath, connect: Connect,
                          report: _Report, rename: dict[str, str], drop: list[str],
                          fill: dict[str, str]) -> tuple[str, list[str]]:
    """Return the statements that lead from the schema of the scripts to that of a file, ""
    if there is no difference, and notes on what they drop and rebuild.

    Raises: MigrationError with the questions that a person has to answer.
    """
    path = os.fsdecode(schema)
    text = _read_schema_file(path)
    today: Schema = {}
    if os.path.exists(migrations_dir):
        today = _schema_of_scripts(migrations_dir, None, connect, report)
    with _Scratch(connect) as room, room.explained(), \
            _closing(room.open(":memory:")) as scratch, \
            _closing(room.open(":memory:")) as wanted:
        _copy_schema(today, scratch)
        objects = _read_objects(scratch)
        _run_schema_file(today, wanted, text, path)
        change = _Change(scratch, wanted, report.check_stop)
        answers = _Answers(change, path, rename, drop, fill)
        try:
            answers.rename()
            questions, fills = list(answers.questions()), answers.filled()
            if questions:
                raise MigrationError(
                    f"{path} leaves questions open. Nothing was written. Answer them, and run this "
                    "again:\n" + "\n".join(questions))
            change.run(fills)
            remains = _diff_schemas(_read_schema(scratch), _read_schema(wanted), "the script", path)
        except scratch.Error as error:
            if isinstance(error, MigrationError):
                raise
            remains = str(error)
        if remains:
            raise MigrationError(f"no script was found that leads exactly to {path}. Nothing was "
                                 f"written. Write it by hand. What remains:\n{remains}")
        for fault in _newly_broken(scratch, objects).values():
            raise MigrationError(f"{path}: {fault}. Nothing was written. Change or remove it "
                                 f"in {path}, then run this again.", path=path)
        lines = ["\n" * statement.startswith("--") + _terminated(statement)
                 for statement in change.statements]
        return "\n".join(lines).lstrip("\n"), change.notes


def _verify_schema_file(migrations_dir: StrPath, schema: str, connect: Connect,
                        report: _Report) -> str:
    """Return how a schema file differs from the schema of the scripts, "" if it does not."""
    text = _read_schema_file(schema)
    today = _schema_of_scripts(migrations_dir, None, connect, report)
    with _Scratch(connect) as room, room.explained(), _closing(room.open(":memory:")) as wanted:
        _run_schema_file(today, wanted, text, schema)
        return _diff_schemas(today, _read_schema(wanted), "the scripts", schema)


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
        _copy_schema(_read_schema(connection), scratch)
        try:
            for *_, each in _read_application(connection):
                wanted.execute(changed if each == sql else each).fetchall()
        except (wanted.Error, wanted.Warning, ValueError) as error:
            raise MigrationError(f"the new definition of {name} is not valid: "
                                 f"{str(error).rstrip('.')}. Nothing was changed.") from error
        change = _Change(scratch, wanted, lambda: None)
        missing = ", ".join(column for _, column in _find_gone(change))
        if missing:
            raise MigrationError(f"the new definition of {name} lacks {missing}, whose values "
                                 "would be lost. Nothing was changed.")
        change.rebuild(table, {})
        change.create_missing("index", "trigger")
        change.fill_indexes(())
        return change.statements


def _create_script(folder: str, description: str, text: str, notes: list[str]) -> str:
    """Create the next script, with statements and notes or empty; return its path."""
    import re
    words, extension = os.path.splitext(description)
    extension = extension.lower()
    if extension not in EXTENSIONS:
        words, extension = description, ".sql"
    slug = re.sub(r"[\W_]+", "-", words).strip("-").lower()
    if not slug:
        raise ValueError(f"{description!r} has no words to name a script by")
    head = TEMPLATES[extension].format(" ".join(words.split()))
    if notes:
        head += "--\n-- This script\n" + "".join(
            f"--   {' '.join(note.split())}\n" for note in notes)
    head = head.replace("fastmigrate:", "fastmigrate :")  # no directive is meant
    text = head + ("\n" + text.rstrip("\n") + "\n" if text else "")
    path, hidden = folder, ""
    try:
        os.makedirs(folder, exist_ok=True)
        number, hidden = _reserve_number(folder)
        path = os.path.join(folder, f"{number:04d}-{slug}{extension}")
        with open(hidden, "wb") as file:
            file.write(text.encode(errors="backslashreplace"))  # an argument may hold any bytes
        _sync(hidden)
        _give_name(hidden, path)
        _sync(folder)
    except MigrationError:
        raise
    except OSError as error:
        raise _explain(OSError(error.errno, error.strerror, path), "Nothing was written.") from None
    finally:
        _remove(hidden)
    return path


def _reserve_number(folder: str) -> tuple[int, str]:
    """Return the next number of a script, and the path of a new hidden file: as long as it is
    there, no other process gets this number."""
    for number in range(_scan_unique(folder).latest + 1, MAX_VERSION + 1):
        hidden = os.path.join(folder, f".{number:04d}.new")
        try:
            open(hidden, "xb").close()
        except FileExistsError:  # of another process, which is at work or was killed
            continue
        if _scan(folder).latest < number:
            return number, hidden
        _remove(hidden)  # another process was faster
    raise ValueError(f"there is a script {MAX_VERSION} already, the last there can be")


def _give_name(hidden: str, path: str) -> None:
    """Give a complete file its name, so that a kill leaves no half of it there. Raises
    FileExistsError if the name is taken."""
    try:
        os.link(hidden, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        os.rename(hidden, path)
    else:
        _remove(hidden)


# ------------------------------------------------------------------ squash


INSERT_ROWS = 16  # of one INSERT
SQUASHED_ENDING = "-squashed.sql"


def _squash(folder: str, to: int, connect: Connect, report: _Report) -> str:
    """Do what squash() does; return the path as a string. The directory changes only in the
    last step, when the new script is proved."""
    import filecmp
    path = os.path.join(folder, f"{to:04d}{SQUASHED_ENDING}")
    before = os.path.join(folder, f"before-{to:04d}")
    listing = _scan_unique(folder)
    for taken in filter(os.path.lexists, (path, before)):
        raise MigrationError(f"{taken} already exists, and squash puts scripts there. Nothing "
                             "was changed. Move it out of the way first.")
    if to not in listing.names:
        raise MigrationError(f"{folder} has no script with the number {to:04d}. Nothing was "
                             "changed. Give the number of the last script to squash.")
    names = [name for version, name in sorted(listing.names.items()) if version <= to]
    _announce(report, listing, to=to)
    with _temporary_directory() as room:
        new_folder = os.path.join(room, "new")
        new = _write_squashed(folder, new_folder, to, connect, report)
        proof = _write_squashed(new_folder, os.path.join(room, "proof"), to, connect, report)
        # Different values are never written alike, so equal texts mean equal databases.
        if not filecmp.cmp(new, proof, shallow=False):
            raise MigrationError(f"the squashed script would not build what the scripts up to {to} "
                                 "build. Nothing was changed. Squash fewer scripts.")
        _place_squashed(new, path, before, names)
    report.result(f"wrote {path}; moved {_plural(len(names), 'script')} to {before}")
    return path


def _write_squashed(source: str, target: str, to: int, connect: Connect, report: _Report) -> str:
    """Run the scripts in the directory `source`. Write one script that builds the same database
    into the new directory `target`; return its path."""
    os.mkdir(target)
    path = os.path.join(target, f"{to:04d}{SQUASHED_ENDING}")
    with _Scratch(connect, report.of_scratch()) as database:
        _replay(database, source, to)
        with database.explained(), open(path, "w", encoding="utf-8", newline="") as file:
            for piece in _squash_text(database, to):
                report.check_stop()
                file.write(piece)
    return path


def _place_squashed(new: str, path: str, before: str, names: list[str]) -> None:
    """Put the new script into the directory, and move the old ones into the folder `before`.

    The script of the new one's own number moves last. Until it has moved, the directory has
    two scripts of one number, which every run refuses: a half-done squash is never run. To undo
    a squash that was cut off, move the scripts in `before` back; delete it and the new script.
    """
    import shutil
    folder = os.path.dirname(path)
    try:
        open(path, "xb").close()  # fails if another process was faster
        try:
            shutil.copyfile(new, path)
            _sync(path)
            os.mkdir(before)
        except BaseException:
            _remove(path)  # no script has moved yet
            raise
    except OSError as error:
        raise _explain(error) from error
    try:
        for name in names:
            os.rename(os.path.join(folder, name), os.path.join(before, name))
    except OSError as error:
        raise MigrationError(
            f"{_diagnose(error)[0]}. The squash stopped, and no script is lost. To undo it, move "
            f"the scripts in {before} back to {folder}; delete {before} and {path}.") from error
    _sync(before)
    _sync(folder)


def _squash_text(database: _Database, to: int) -> Iterator[str]:
    """Yield the script that builds a database on an empty one, in pieces.

    The order of the objects is that of _read_objects(): indexes follow the rows because that is
    faster; views come before virtual tables because one may read its content from a view;
    triggers come last so that none fires for a row.
    """
    with _closing(database.open()) as connection, _closing(database.open()) as rows:
        rows.text_factory = bytearray  # text need not be UTF-8; blobs are bytes
        objects = [(kind, name, sql.rstrip()) for kind, name, _, sql in _read_objects(connection)
                   if _fold(name) not in OWN_TABLES]
        tables = [sql for kind, _, sql in objects if kind == "table" and not _module(sql)]
        has_checks = any("check" in _fold(sql) for sql in tables)
        yield "-- fastmigrate: squashed\n"
        if _dangles(connection):
            yield "-- fastmigrate: no-foreign-key-check\n"
        yield (f"-- The schema and the rows that the scripts up to {to:04d} lead to. The scripts "
               f"are in\n-- before-{to:04d}. A database at version {to} or above never runs "
               "this.\n")
        if _journal_mode(connection) == "wal":
            yield "PRAGMA journal_mode = WAL;\n"
        if has_checks:  # a row may have been written while they were not enforced
            yield "PRAGMA ignore_check_constraints = ON;\n"
        for kind, name, sql in objects:
            yield f"{_terminated(sql)}\n"
            if _module(sql):
                yield _fill_virtual(connection, name, sql)
            elif kind == "table":
                yield from _dump_rows(rows, _Table(connection, name, sql))
        if has_checks:
            yield "PRAGMA ignore_check_constraints = OFF;\n"
        if any(map(_is_sequenced, tables)):
            yield "DELETE FROM sqlite_sequence;\n"
            sequences = _Table(connection, "sqlite_sequence",
                               "CREATE TABLE sqlite_sequence(name, seq)")
            yield from _dump_rows(rows, sequences)
        for kind, _, sql in _read_schema(connection).values():
            if kind == "pragma":
                yield f"{sql};\n"


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
            except (_ScriptFailed, ValueError):  # such as a NUL character
                continue  # whoever runs it hears of it
            if "squashed" in header.directives:
                found = max(found, version)
    return found


def _squash_refusal(connection: sqlite3.Connection, version: int, to: int, listing: _Listing,
                    database: str) -> str:
    """Return why the squashed script cannot bring a database to a version, "" if it can or
    is not needed. It builds new databases only: the rows of others may be changed by now."""
    last, names = listing.squashed_version, listing.names
    if version >= last or to <= version:
        return ""
    tables = [name for kind, name, *_ in _read_application(connection) if kind == "table"]
    if version:
        before = os.path.join(listing.folder, f"before-{last:04d}")
        here = f", or with --migrations {_shell_path(before)}" * os.path.isdir(before)
        reason = (f"{database} is at version {version}. Migrate it first with a release that "
                  f"still has the scripts up to {last}{here}.")
    elif to < last:
        reason = f"there is no version {to} any more. Stop at {last} or above."
    elif min(names) < last:
        reason = (f"{names[min(names)]} has a lower number. Delete it if {names[last]} replaced "
                  "it; else give it a number above the latest script.")
    elif tables:
        reason = (f"{database} has tables ({_cut(sorted(tables))}). If they are those of version "
                  f"{last}, set the version with --set-version or set_db_version(); else begin "
                  "with an empty database.")
    else:
        return ""
    return (f"the scripts up to {last} in {listing.folder} were squashed into one, which builds "
            f"new databases only, but {reason} Nothing was changed.")


# -------------------------------------------------------------- rows as SQL


class _Table:
    """A table: how many rows it has and, unless it is virtual, what they store and what tells
    them from each other."""

    def __init__(self, connection: sqlite3.Connection, name: str, sql: str) -> None:
        is_virtual = bool(_module(sql))
        self.name = name
        # By name in small letters; none if it is virtual.
        self.columns = {} if is_virtual else _read_columns(connection, name)
        self.has_integer_key = any(column.is_rowid for column in self.columns.values())
        names = ("rowid", "_rowid_", "oid") if self.columns and _has_rowid(sql) else ()
        # The name by which the rowid can be read: "" if columns have taken them all.
        self.rowid = next((name for name in names if name not in self.columns), "")
        self.sequence = 0  # the highest id that AUTOINCREMENT has given
        if self.columns and _is_sequenced(sql):
            self.sequence = connection.execute(
                "SELECT ifnull(max(CAST(seq AS INTEGER)), 0) FROM sqlite_sequence WHERE name = ?",
                (name,)).fetchall()[0][0]
        self.rows = 0
        try:
            self.rows = _count(connection, _quoted(name), "1")[0]
        except connection.OperationalError:
            if not is_virtual:
                raise  # a virtual one may lack what it reads from


def _dump_rows(connection: sqlite3.Connection, table: _Table) -> Iterator[str]:
    """Yield the INSERT statements that bring back the rows of a table exactly."""
    columns = [_quoted(each.name) for each in table.columns.values() if not each.is_generated]
    if table.rowid and not table.has_integer_key:
        columns.insert(0, table.rowid)
    insert = f"INSERT INTO {_quoted(table.name)} ({', '.join(columns)}) VALUES\n"
    # A unary plus changes no value, but keeps `connect` with detect_types from converting it.
    values = ", ".join(f"+{column} AS c" for column in columns)
    cursor = connection.execute(f"SELECT {values} FROM main.{_quoted(table.name)} NOT INDEXED")
    while rows := cursor.fetchmany(INSERT_ROWS):
        texts = [f"({', '.join([_literal(connection, value) for value in row])})" for row in rows]
        yield insert + ",\n".join(texts) + ";\n"


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


def _schema_without_tools(database: _Database, connection: sqlite3.Connection) -> Schema:
    """Return the schema of a database; name the tables of other tools, which are no part of it."""
    tables = [name for kind, name, *_ in _read_objects(connection)
              if kind == "table" and _fold(name) in BOOKKEEPING]
    if tables:
        database.report.result(f"left out of the schema of {database.name}, as another tool's "
                               f"bookkeeping: {_cut(tables)}")
    return _read_schema(connection)


# -------------------------------------------------------------- enrolling


def _find_version(database: _Database, schema: Schema, listing: _Listing) -> int:
    """Return the highest version whose schema, replayed, is this one."""
    diffs = {}
    with _Scratch(database.connect, database.report.of_scratch()) as scratch:
        for version in sorted(listing.names):
            _replay(scratch, listing.folder, version)
            diffs[version] = _diff_schemas(scratch.read(_read_schema)[1], schema,
                                           f"the scripts up to {version}", database.name)
    fitting = [version for version, diff in diffs.items() if not diff]
    if not fitting:
        nearest = min(reversed(diffs), key=lambda version: diffs[version].count("\n"))
        way = ("add a script that leads to this schema, for the other databases too, and run this "
               "again" if nearest == max(diffs) else f"set the version to {nearest} with "
               "--set-version, and let the next script bring all databases to one schema")
        raise MigrationError(f"no version has the schema of {database.name}. The nearest:\n"
                             f"{diffs[nearest]}\nNothing was changed. Change the database to fit, "
                             f"then run this again. Or {way}.")
    if len(fitting) > 1:
        database.report.warn(
            f"the versions {', '.join(map(str, fitting))} all have the schema of "
            f"{database.name}. If the data is not that of {fitting[-1]}, use --set-version.")
    return fitting[-1]


def _write_first_script(database: _Database, schema: Schema, folder: str) -> str:
    """Write the script that builds a schema, after a proof that it does; return its path."""
    text = ("-- The schema as it was when this database was put under management.\n"
            + _schema_text(schema))
    with _temporary_directory() as room:
        _create_script(room, "initialize", text, [])
        try:
            _find_version(database, schema, _scan(room))
        except MigrationError as error:
            raise MigrationError(f"the schema of {database.name} cannot be written as a script: "
                                 f"{error} Write 0001 by hand, then run this again.") from error
    path = _create_script(folder, "initialize", text, [])
    if os.path.basename(path) != "0001-initialize.sql":
        _remove(path)
        raise MigrationError(f"another process wrote to {folder} meanwhile. Nothing was "
                             "changed by this one. Run this again.")
    return path


# -------------------------------------------------------------- rehearsing


def _run_beside(run: _Run, original: _Database) -> bool:
    """Run scripts on a copy of a database. Return whether the database stayed as it was meanwhile;
    warn if it did not, even if a script failed."""
    files = [os.path.realpath(original.path) + end for end in ("", "-wal")]

    def look() -> list[object]:  # who only reads makes an empty log
        return [each[2] and each for each in map(_identify_content, files)]

    before = look()
    try:
        run.run()
    finally:
        is_same = look() == before
        if not is_same:
            original.report.warn(
                f"the file of {original.name} was written during the rehearsal: by another "
                "program (in WAL mode, closing it is enough), or by a script that opens it in "
                "place of its first argument. If that is so, correct the script.")
    return is_same


def _read_contents(connection: sqlite3.Connection, version: int,
                   ) -> tuple[Schema, dict[str, _Table]]:
    """Return the schema, and the tables by their names in small letters."""
    schema = _read_schema(connection)
    return schema, {_fold(name): _Table(connection, name, sql)
                    for kind, name, sql in schema.values() if kind == "table"}


def _compare_tables(connection: sqlite3.Connection, before: dict[str, _Table],
                    after: dict[str, _Table], examples: int) -> dict[str, dict[str, Any]]:
    """Compare the tables of the attached database `before` with those of today. Return what
    rehearse() returns under the keys below. SQLite compares, so that memory holds no rows."""
    found: dict[str, dict[str, Any]] = {
        "rows": {}, "lost": {}, "changed": {}, "filled": {}, "examples": {}, "sequences": {}}
    for table in sorted({*before, *after}):
        old, new = before.get(table), after.get(table)
        name = (new or before[table]).name
        rows = [each.rows if each else 0 for each in (old, new)]
        if rows[0] != rows[1]:
            found["rows"][name] = rows
        if old and new and old.columns and new.columns:
            for kind, values in _compare_table(connection, old, new, examples).items():
                if values:
                    found[kind][name] = values
            if new.sequence < old.sequence:
                found["sequences"][name] = [old.sequence, new.sequence]
    return found


def _compare_table(connection: sqlite3.Connection, old: _Table, new: _Table, examples: int,
                   ) -> dict[str, dict[str, Any]]:
    """Compare a table that is not virtual. Return by column how many values were lost with a
    dropped one, changed in a kept one, and are in a new one; and examples of the last two.

    A dropped column has lost nothing if a new or a changed column holds its values now. A row
    that is not found by its old key counts as a change of the key. Rows by which the table has
    become smaller are not counted here, because the number of rows shows them.
    """
    key = _matching_key(old, new)
    source = f"before.{_quoted(old.name)} AS b"
    joined = f"{source} JOIN main.{_quoted(new.name)} AS a ON " + (
        " AND ".join(f"b.{column} = a.{column}" for column in key) or "0")
    conditions = {
        each.name: _differs(each.name, each.name, each.type != old.columns[column].type)
        if column in old.columns else f"a.{_quoted(each.name)} IS NOT NULL"
        for column, each in new.columns.items()}
    matched, *numbers = _count(connection, joined, "1", *conditions.values())
    differing = {name: number for name, number in zip(conditions, numbers) if number}
    lost, holders = {}, set[str]()
    for name in [each.name for column, each in old.columns.items() if column not in new.columns]:
        holds = f"b.{_quoted(name)} IS NOT NULL"
        number, = _count(connection, source, holds)
        there, *kept = _count(connection, joined, holds, *(
            f"{holds} AND NOT {_differs(name, other)}" for other in differing))
        found = [other for other, count in zip(differing, kept) if count == there > 0]
        holders.update(found)  # all values of the dropped column are in these now
        if number and not found:
            lost[name] = number
    changed = {name: number for name, number in differing.items() if _fold(name) in old.columns}
    filled = {name: number for name, number in differing.items()
              if name not in changed and name not in holders}
    shown = {}
    for name in (*changed, *filled) if examples else ():
        was = f"b.{_quoted(name)}" if name in changed else "NULL"
        shown[name] = [[*row] for row in connection.execute(
            f"SELECT {', '.join(f'b.{column}' for column in key)}, {was}, a.{_quoted(name)} "
            f"FROM {joined} WHERE {conditions[name]} LIMIT {examples}").fetchall()]
    keyed, = _count(connection, source, " AND ".join(f"b.{n} IS NOT NULL" for n in key) or "0")
    moved = min(keyed, new.rows) - matched
    if moved > 0:
        changed[", ".join(map(_bare, key))] = moved
    return {"lost": lost, "changed": changed, "filled": filled, "examples": shown}


def _matching_key(old: _Table, new: _Table) -> list[str]:
    """Return, quoted, the columns by which the rows of a table are matched with those before:
    its primary key as it was or, if that has gone, the rowid; none if there is none, or if
    it is the key of only one of them."""
    key = {name: _quoted(column.name) for name, column in old.columns.items() if column.in_key}
    if key and key.keys() <= new.columns.keys():
        return [*key.values()]
    same = old.rowid == new.rowid and old.has_integer_key == new.has_integer_key
    return [old.rowid] if old.rowid and same else []


def _count(connection: sqlite3.Connection, source: str, *conditions: str) -> list[int]:
    """Return the number of rows for which each condition holds."""
    sums = ", ".join(f"ifnull(sum({condition}), 0)" for condition in conditions)
    return [*connection.execute(f"SELECT {sums} FROM {source}").fetchall()[0]]


def _differs(old: str, new: str, other_type: bool = True) -> str:
    """Return a condition for two values that differ. Text is compared by its letters, whatever
    the collation. 7 and 7.0 are the same. If the column has got another type, so are 7 and '7',
    but not 7 and '007'."""
    a, b = f"a.{_quoted(new)}", f"b.{_quoted(old)}"
    condition = f"+{a} COLLATE BINARY IS NOT +{b}"
    return f"({condition})" if not other_type else (
        f"({condition} AND (typeof({a}) = typeof({b}) "
        f"OR CAST({a} AS TEXT) COLLATE BINARY IS NOT CAST({b} AS TEXT)))")


# ------------------------------------------------------------------ messages


WRITABLE = "Make the file and its directory readable and writable for this user"
# The beginnings of error messages, each with (what it means to a person, what to do).
ERRORS: dict[str | tuple[str, ...], tuple[str, str]] = {
    "database is locked": ("database is locked: another connection holds {db}",
                           "Wait for it to finish, or raise --timeout"),
    "file is not a database": ("{db} is not a database, or is encrypted",
                               "Name the database file with --db, give its key in connect, or "
                               "restore a backup with --restore"),
    ("no such module", "no such function", "no such collation sequence", "unknown function"): (
        "{text}", "Correct the name or, if the application provides it, pass its connect"),
    # ALTER TABLE compiles all views and triggers, not only those of the altered table.
    ("error in view", "error in trigger"): (
        "{text}", "Drop that view or trigger first, and create it again afterwards if it is still "
        "needed; or begin the script with the line `PRAGMA legacy_alter_table = ON;`"),
    "UNIQUE constraint failed": ("{text}", "Change or remove the rows that have the same value, "
                                  "earlier in the script"),
    ("database disk image is malformed", "malformed database schema"): (
        "{db} is damaged ({text})", "Restore a backup of it with --restore"),
    ("attempt to write a readonly database", "unable to open database file"): (
        "{db} is read-only, or cannot be opened ({text})", WRITABLE),
    "database or disk is full": ("no space is left for {db} ({text})", "Free some disk space"),
    "disk I/O error": ("the file system failed for {db} ({text})",
                       "Check that there is space, and that the disk is sound"),
    "out of memory": ("SQLite has no memory left ({text})", "Remove its limit on memory"),
    "[Errno 2] No usable temporary directory": (
        "no temporary directory can be written",
        "Set TMPDIR to a directory with room for a copy of the database"),
}
OS_REMEDIES = {  # by the number of the system's error
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some disk space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), WRITABLE),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST), "Name another path"),
}


class _ScriptFailed(Exception):
    """A script failed. What it did is rolled back, or was done on a copy. The lines of `what`
    after the first are what it printed."""

    def __init__(self, script: _Script, what: str, line: int | None = None,
                 statement: str | None = None, *, remedy: str = "Fix the script") -> None:
        super().__init__(what)
        self.script, self.what, self.remedy = script, what, remedy
        self.line, self.statement = line, statement


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
    statement = (failure.statement or "").strip()
    shown = "\n".join(statement.splitlines()[:6])[:500]
    if shown != statement:
        shown += " ..."
    text = "\n    ".join(f"{where}: {failure.what}\n{shown}".rstrip().splitlines())
    return MigrationError(f"{text}\n{state}\n{failure.remedy}, then run this again.",
                          path=script.path, line=failure.line, statement=failure.statement,
                          version=version)


def _to_failure(database: _Database, script: _Script, error: BaseException,
                line: int | None = None, statement: str = "", why: str = "") -> BaseException:
    """Translate an exception raised while `script` ran. An SQLite error becomes _ScriptFailed,
    or KeyboardInterrupt if that is what caused it; a MigrationError and any other exception
    is returned unchanged. `why` is the reason if the authorizer denied the statement."""
    if statement and (isinstance(error, _LockedError) or _is_locked(error)):
        # We hold the lock of the script's own database, unless that is a copy.
        return _ScriptFailed(script, "database is locked: another connection holds a database that "
                             "it has attached (or it has attached its own)", line, statement,
                             remedy=_LockedError.remedy)
    if isinstance(error, MigrationError) or not isinstance(
            error, database.errors + (sqlite3.Warning, MemoryError)):
        return error
    if database.report.stop or not why and _is_interrupt(error, statement):
        return KeyboardInterrupt()
    what, remedy = _diagnose(error, database.name)
    if why:
        what = why
    elif statement.startswith("."):
        what = "a command of the sqlite3 program, not SQL"
        statement = statement.split("\n")[0]
    elif statement and not sqlite3.complete_statement(statement) and (
            "incomplete input" in what or "unrecognized token" in what):
        what = "the file ends within this statement, or within a quote in it"
    elif what.endswith("syntax error") and _fold(statement[:12]) == "alter table ":
        remedy = ("Fix the script. For a change that ALTER TABLE cannot make in SQLite "
                  f"{sqlite3.sqlite_version}, let --new WORDS --schema FILE, or "
                  "new_migration(schema=...), write the script")
    elif not statement and not remedy:
        what = f"it cannot be committed with its version: {what}"
    return _ScriptFailed(script, what, line, statement or None,
                         remedy=remedy or "Fix the script")


def _is_interrupt(error: BaseException, statement: str = "") -> bool:
    """Return whether an error stands for a KeyboardInterrupt that was raised in a callback. The
    sqlite3 module drops it, and SQLite reports that the authorizer denied the statement, or that
    the progress handler interrupted it. (To catch the interrupt in the callbacks works on Python
    3.9, but never on 3.12 and 3.13.)

    Two other errors look like this: load_extension() is denied if extensions are off, and
    RAISE() in a trigger gives an IntegrityError with any text.
    """
    message = str(error)
    if isinstance(error, MigrationError) or type(error).__name__ == "IntegrityError" or (
            getattr(error, "sqlite_errorcode", 0) & 0xFF == SQLITE_CONSTRAINT):  # for PyPy
        return False
    return message == "interrupted" or "load_extension" not in statement.lower() and (
        message.startswith(("not authorized", "authorization denied"))
        or message.startswith("access to ") and message.endswith(" is prohibited"))


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
        if isinstance(error, errors) and str(error) == "interrupted":  # by a progress handler
            raise KeyboardInterrupt from None
        if isinstance(error, errors + (OSError, ValueError, MemoryError)) and not isinstance(
                error, MigrationError):
            state = self.database.standing() if self.changes else "Nothing was changed."
            raise _explain(error, state, self.database.name) from error


def _explain(error: BaseException, state: str = "Nothing was changed.",
             name: str = "") -> MigrationError:
    """Return an error of SQLite's, or of the system's, as one of ours. `state` tells what has
    become of the database `name`."""
    if isinstance(error, MigrationError):
        return error
    what, remedy = _diagnose(error, name)
    if remedy:
        return MigrationError(f"{what}. {state} {remedy}, then run this again.")
    if isinstance(error, ValueError):
        return MigrationError(what)
    return MigrationError(f"{name}: " * bool(name) + f"{what.rstrip('.')}. {state}")


def _diagnose(error: BaseException, name: str = "") -> tuple[str, str]:
    """Return what an error, or the one that caused it, means for the database `name`; and what
    to do, "" if that is not known."""
    if isinstance(error, MigrationError):
        error = error.__cause__ or error
    text = str(error) or "out of memory"  # MemoryError has no text
    if isinstance(error, OSError) and error.filename:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in OS_REMEDIES:
        return text, OS_REMEDIES[error.errno]
    for signs, (meaning, remedy) in ERRORS.items():
        if text.startswith(signs):
            return meaning.format(db=name, text=text), remedy
    return text, ""


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
                 said: set[str] | None = None, program: str = "fastmigrate") -> None:
        self.results = results  # print on stdout what was done
        self.shows_output = shows_output  # show the output of scripts as it comes
        self.target = target  # " to NAME" where several databases are migrated
        self.stop = stop  # no longer empty when a signal has come
        self.program = program  # how it was started, for commands to paste
        self._logged = logged  # warnings are logged, else they go to stderr
        self._terminal = results and not logged and sys.stderr and sys.stderr.isatty()
        self._said = set[str]() if said is None else said  # the warnings that were shown
        self._due = 0.0  # when progress is shown next; 0 if nothing is in progress

    def of_scratch(self) -> _Report:
        """Return a report for the work on a scratch database: it shows the warnings alone."""
        return _Report(logged=self._logged, stop=self.stop, said=self._said, program=self.program)

    def result(self, text: str) -> None:
        if self.results:
            self.end_progress()
            _say(text, result=True)

    def warn(self, text: str) -> None:
        if text in self._said:  # a script that is run again says the same again
            return
        self._said.add(text)
        self.end_progress()
        if self._logged:
            _log("warning", text)
        else:
            _say(f"warning: {text}")

    def check_stop(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self.stop:
            raise KeyboardInterrupt

    def progress(self, describe: Callable[[], str]) -> None:
        """Show on a terminal what is being done, if it lasts for more than a second."""
        if not self._terminal:
            return
        now = time.monotonic()
        self._due = self._due or now + 1
        if now > self._due:
            self._due = now + 0.1
            _say("\r\x1b[K" + describe()[:79], end="")

    def end_progress(self) -> None:
        if self._due:
            _say("\r\x1b[K", end="")
        self._due = 0.0


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

    def assignment(text: str) -> tuple[str, str]:  # argparse names these functions in its errors
        import re
        found = re.fullmatch(r'((?:"(?:[^"]|"")*"|[^"=])+)=(.*\S.*)', text, re.S)
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
        return found[1], found[2].strip()

    def name(text: str) -> str:
        _split_dotted(text)
        return text

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
    for option, kind, metavar, text in (
            ("--rename", assignment, "TABLE[.COLUMN]=NAME", "with --new: what gets another name"),
            ("--drop", name, "TABLE[.COLUMN]", "with --new: what is dropped, with its data"),
            ("--fill", assignment, "TABLE.COLUMN=SQL", "with --new: a column's value in old rows")):
        add(option, type=kind, metavar=metavar, action="append", default=[], help=text)
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="with --status: for programs")
    add("-v", "--verbose", action="store_true",
        help="show the output of scripts, and changed values")
    add("-q", "--quiet", action="store_true",
        help="show only warnings, errors, and what was asked for")
    add("--version", action="version", version=f"fastmigrate {__version__}",
        help="show the version of fastmigrate")
    add("-h", "--help", action="help", help="show this help")
    return parser


def _add_actions(parser: argparse.ArgumentParser) -> None:
    """Add the options that ask for something else than to migrate, of which one may be given."""
    import argparse

    class Action(argparse.Action):
        def __call__(self, parser: Any, arguments: Any, value: Any, flag: Any = None) -> None:
            arguments.action, arguments.value = flag, value

    parser.set_defaults(action="migrating", value=None)
    group = parser.add_argument_group("instead of migrating").add_mutually_exclusive_group()
    for flag, (_, metavar, text) in ACTIONS.items():
        if flag.startswith("--"):
            group.add_argument(flag, action=Action, metavar=metavar, help=text,
                               nargs=None if metavar else 0,
                               type=_number(int, int(flag == "--squash"), MAX_VERSION)
                               if metavar == "N" else str)


def _number(kind: type, lowest: int, highest: int) -> Callable[[str], Any]:
    import argparse

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            if lowest <= value <= highest:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {lowest} to {highest}")
    return parse


USES = {  # the actions that an option is for; _parse_arguments() checks some others
    "backup": ["migrating"],
    "to": ["migrating", "--rehearse", "--print-schema"],
    "json": ["--status"],
    "schema": ["--new", "--verify"],
}


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments. `config` holds the paths of the config; `db` the databases, none for
    an action that needs none; `action` the flag of the action, and `value` the flag's value."""
    parser = _parser()
    for argument in sys.argv[1:] if argv is None else argv:
        name, _, value = argument.partition("=")
        if name.startswith("--") and value == "--":  # argparse made a list of that before 3.13
            parser.error(f"{name} needs a value")
    arguments = parser.parse_args(argv)
    for option, actions in USES.items():
        is_given = getattr(arguments, option) != parser.get_default(option)
        if is_given and arguments.action not in actions:
            parser.error(f"--{option} is only for {', '.join(actions)}")
    arguments.program = _started_as() if argv is None else "fastmigrate"
    arguments.config = config = _read_config(arguments.config)
    if arguments.migrations is None:
        arguments.migrations = config["migrations"]
    for texts in (arguments.rename, arguments.fill):
        if len(dict(texts)) < len(texts):
            parser.error("--rename and --fill take each name once")
    has_schema = arguments.action == "--new" and (arguments.schema or config["schema"]) and (
        not arguments.value.lower().endswith(EXTENSIONS[1:]))  # such a script has no schema
    if (arguments.rename or arguments.drop or arguments.fill) and not has_schema:
        parser.error("--rename, --drop and --fill are only for --new with --schema, in SQL")
    needs_database = ACTIONS[arguments.action][0] and arguments.schema is None
    arguments.db = _find_databases(arguments.db or [config["db"]]) if needs_database else []
    if arguments.action == "--restore" and len(arguments.db) > 1:
        parser.error("--restore takes only one database")
    return arguments


def _read_config(named: str | None) -> dict[str, str]:
    """Return the paths of a config, or of .fastmigrate if that exists, else the defaults."""
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
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise MigrationError(f"the config {path} cannot be read: {reason}. "
                             "Nothing was changed. Fix it, or name another one with --config."
                             ) from error
    for section in parser.sections():
        for key, value in parser[section].items():
            if section != "paths" or key not in paths:
                _say(f"warning: {path}: unknown key {key} in [{section}]. The keys are db, "
                     "migrations and schema in [paths].")
            elif not value and key != "schema":
                raise MigrationError(f"the line `{key} =` of the config {path} has no value. "
                                     "Nothing was changed. Write a path there, or delete the line.")
            elif value:
                paths[key] = os.path.join(os.path.dirname(path), value)
    return paths


def _find_databases(patterns: list[str]) -> list[str]:
    """Return the databases that paths and patterns name, without what lies beside them."""
    import glob
    import re
    beside = re.compile(r".*(\.backup|\.before-restore|-journal|-wal|-shm|" + WORKING_COPY + ")",
                        re.S)
    found: list[str] = []
    for pattern in patterns:
        matches = [pattern] if os.path.lexists(pattern) else sorted(
            path for path in glob.glob(pattern)
            if not beside.fullmatch(path) and not os.path.isdir(path))
        if "*" in pattern and not matches:
            raise MigrationError(f"no file matches {pattern}. Name databases with --db.")
        found += matches or [pattern]
    return list(dict.fromkeys(found))


# -------------------------------------------------------------- one database


class _Command:
    """What the command line does with one database: a method for each action."""

    def __init__(self, arguments: argparse.Namespace, database: _Database,
                 listing: _Listing | None = None) -> None:
        self.arguments = arguments
        self.database = database
        self.listing = listing  # if the directory is read once for several databases
        self.path = database.path_as_given
        self.folder = arguments.migrations
        self.report = database.report
        self.several = len(arguments.db) > 1

    def migrate(self) -> int:
        """Return how many scripts were applied."""
        return len(_Run(self.database, self.folder, self.arguments.to, self.arguments.backup,
                        self.listing).run())

    def create(self) -> None:
        what = "created" if self.database.create() else "already exists"
        self.report.result(f"{self.path} {what}, at version {self.database.read()[0]}")

    def set_version(self) -> None:
        version, folder = self.arguments.value, self.folder
        self.database.set_version(version, listing=_scan(folder) if os.path.isdir(folder) else None)
        self.report.result(f"{self.path} is at version {version} now; no script was run")

    def enroll(self) -> None:
        version = enroll_db(self.database, self.folder)
        self.report.result(f"{self.path} is under management now, at version {version}")

    def restore(self) -> None:
        backup = self.arguments.value
        if backup == "newest":
            backup = self.find_newest_backup()
        version = _restore(self.database, backup)
        self.report.result(f"{self.path} is what {backup} is, at version {version}: the next run "
                           "goes on from there")

    def find_newest_backup(self) -> str:
        """Return the newest backup of the database, by the time in its name."""
        import glob
        pattern = f"{glob.escape(self.path)}.{'[0-9]' * 8}_{'[0-9]' * 6}.backup"
        backups = [path for path in glob.glob(pattern)
                   if os.path.isfile(path) and os.path.getsize(path)]  # a reserved name has 0 bytes
        if not backups:
            raise MigrationError(f"there is no backup of {self.path}: no file matches "
                                 f"{self.path}.*.backup. Nothing was changed. Name the file.")
        return max(backups)

    def accept(self) -> None:
        names = _accept_edits(self.database, self.folder)
        self.report.result(f"accepted for {self.path}: {_cut(names)}" if names else
                           f"nothing to accept for {self.path}")

    def verify(self) -> None:
        _show_difference(verify(self.database, self.folder), self.report, self.path, (
            "was changed by other means than its scripts, or a script was edited or never ran on "
            "it (--check tells, unless that was accepted). To keep a change by other means, write "
            "a script that makes it, and mark that as applied with --set-version."))

    def check(self) -> None:
        found = _status(self.database, self.folder, self.listing, self.several)
        problems = found["problems"]
        pending = [each["name"] for each in found["migrations"] if each["state"] == "pending"]
        if pending and not found["blocked"]:
            problems.append(f"{self.path}: {len(pending)} pending: {_cut(pending)}. Run "
                            + _program_for(self.database, self.folder))
        for warning in found["warnings"]:
            self.report.warn(warning)
        if problems:
            raise MigrationError("\nerror: ".join(problems))
        self.report.result(f"{self.path} is at version {found['version']}, as the scripts say")

    def status(self) -> None:
        found = _status(self.database, self.folder, self.listing, self.several)
        if self.arguments.json:
            _print_json(found)
            return
        _say(f"{self.path} is at version {found['version']}; the scripts end at "
             f"{found['latest']}", result=True)
        width = max((len(each["name"]) for each in found["migrations"]), default=0)
        for each in [] if self.several else found["migrations"]:
            when = (each["applied_at"] or "").replace("T", " ")
            _say(f"  {each['name']:{width}}  {each['state']:9}{when}".rstrip(), result=True)
        for problem in found["problems"] + found["warnings"]:
            self.report.warn(problem)

    def rehearse(self) -> None:
        found = rehearse(self.database, self.folder, to=self.arguments.to,
                         examples=3 if self.arguments.verbose else 0)
        def show(text: str) -> None:  # with --quiet too, but not for many databases
            if self.report.results or not self.several:
                _say(text, result=True)

        if found["diff"]:
            show("\n" + found["diff"].rstrip("\n"))
        for title, kind in (
                ("rows", "rows"),
                ("values lost with a dropped column", "lost"),
                ("values changed", "changed"),
                ("values in new columns", "filled"),
                ("AUTOINCREMENT goes back, so that ids are used again", "sequences")):
            if found[kind]:
                show("\n".join([f"\n{title}:", *_describe_changes(found, kind)]))
        end = f": {self.path} is untouched" if found["untouched"] else f" on a copy of {self.path}"
        self.report.result(f"\nThis was a rehearsal{end}.")
        if found["broken"]:
            raise MigrationError("the scripts leave something that no longer works: see the "
                                 "warnings")


# What each action does with a database (None: it needs none), the name of its value, the help.
ACTIONS: dict[str, tuple[Any, str | None, str]] = {
    "migrating": (_Command.migrate, None, ""),
    "--createdb": (_Command.create, None, "create an empty database at version 0"),
    "--status": (_Command.status, None, "show the version, and the state of every script"),
    "--check": (_Command.check, None, "exit 0 only if every script is applied, and unchanged"),
    "--verify": (_Command.verify, None, "compare the schema with that of the scripts"),
    "--rehearse": (_Command.rehearse, None, "run what is pending on a copy; show what it changes"),
    "--print-schema": (None, None, "print the schema that the scripts lead to"),
    "--enroll": (_Command.enroll, None, "put an existing database under management"),
    "--accept": (_Command.accept, None, "record the applied scripts as they are now"),
    "--new": (None, "WORDS", "create the next script; print its path"),
    "--squash": (None, "N", "replace the scripts up to N by a single one"),
    "--set-version": (_Command.set_version, "N", "set the version by hand; run no script"),
    "--restore": (_Command.restore, "FILE", "restore this backup; FILE may be newest"),
}


def _print_json(found: dict[str, Any]) -> None:
    import json
    # Not by _say(): a program must not take a part of the output for all of it.
    print(json.dumps(found) + "\n", end="", flush=True)


def _show_difference(diff: str, report: _Report, path: str, problem: str) -> None:
    """Show what --verify found. Raises MigrationError if there is a difference."""
    if diff:
        _say(diff.rstrip("\n"), result=True)
        raise MigrationError(f"{path} {problem}")
    report.result(f"the schema of {path} is that of the scripts")


def _describe_changes(found: dict[str, Any], kind: str) -> Iterator[str]:
    """Yield a line for each table or column that a rehearsal has changed in one way."""
    for table, changes in found[kind].items():
        if isinstance(changes, list):
            yield f"  {table}  {changes[0]} -> {changes[1]}"
            continue
        for column, number in changes.items():
            yield f"  {table}.{column}  {number}"
            for *key, before, after in found["examples"].get(table, {}).get(column, []):
                yield f"    {', '.join(map(repr, key))}: {before!r} -> {after!r}"


def _work_on_scripts(arguments: argparse.Namespace, connect: Connect, report: _Report) -> None:
    """Do what needs no database."""
    folder, schema = arguments.migrations, arguments.schema
    if arguments.action == "--new":
        # Without --schema, the script may be empty, for a change of data alone.
        path = _write_next_script(
            folder, arguments.value, schema or arguments.config["schema"] or None, connect,
            report, may_be_empty=not schema, rename=dict(arguments.rename), drop=arguments.drop,
            fill=dict(arguments.fill))
        _say(path, result=True)
    elif arguments.action == "--squash":
        _squash(folder, arguments.value, connect, report)
    elif arguments.action == "--print-schema":
        if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # as schema.sql is read
        # Not by _say(): half a file must not pass for the whole one.
        print(_schema_text(_schema_of_scripts(folder, arguments.to, connect, report)), end="",
              flush=True)
    else:
        _show_difference(_verify_schema_file(folder, schema, connect, report), report, schema, (
            "is not the schema of the scripts. Write the script that leads to it with --new WORDS "
            f"--schema {schema}, or write {schema} anew with --print-schema."))


# -------------------------------------------------------------- several databases


def _work_on_several(arguments: argparse.Namespace, connect: Connect, signals: list[int]) -> int:
    """Do what the command line asks for with each of several databases; return the exit code.
    The migrations directory is read once, and its problems are reported once."""
    databases, action, listing = arguments.db, arguments.action, None
    if action not in ("--createdb", "--enroll", "--set-version") and not arguments.json:
        listing = _scan(arguments.migrations)
        problems = _describe_twins(listing)
        problems += [_describe_ignored(listing)] if listing.ignored else []
        if problems and (action == "--check" or listing.twins and action != "--status"):
            raise MigrationError("\n".join(problems))
        for problem in problems:
            _say(f"warning: {problem}")

    def work(path: str) -> int | None:
        """Work on one of them, and return how many scripts were applied. If that fails, report
        why, and return None."""
        shows = arguments.verbose and not arguments.quiet
        report = _Report(shows, shows, logged=False, target=f" to {path}", stop=signals,
                         program=arguments.program)
        try:
            report.check_stop()
            database = _Database(path, arguments.timeout, connect, report)
            return ACTIONS[action][0](_Command(arguments, database, listing)) or 0
        except (sqlite3.Error, OSError, ValueError, MemoryError) as error:
            text = str(error) or "out of memory"
            report.end_progress()
            _say(f"error: {text}" if path in text else f"error: {path}: {text}")
            if arguments.json:
                _print_json({"db": path, "error": str(error)})
            return None

    if arguments.jobs > 1 and action != "--enroll":  # the first may write the script for all
        numbers = _in_threads(arguments.jobs, work, databases)
    else:
        numbers = [work(path) for path in databases]
    failed = [path for path, number in zip(databases, numbers) if number is None]
    if not arguments.quiet and not arguments.json:
        done = len(databases) - len(failed)
        applied = f" ({_plural(sum(filter(None, numbers)), 'migration')} applied)"
        _say(f"{_plural(done, 'database')} done" + applied * bool(done and action == "migrating"),
             result=True)
    if failed:
        _say(f"error: {len(failed)} of {len(databases)} failed: {_cut(failed)}")
    return int(bool(failed))


def _in_threads(number: int, work: Callable[[str], T], paths: list[str]) -> list[T]:
    """Return what `work` returns for each path. The threads wait for the disk most of the time.
    (Processes were slower, and a pool of processes hangs on some Pythons if one is killed.)"""
    import threading
    todo, errors = iter(paths), list[BaseException]()
    results: dict[str, T] = {}

    def run() -> None:  # (concurrent.futures takes longer than a small database)
        for path in todo:  # all threads take their paths from this one iterator
            try:
                results[path] = work(path)
            except BaseException as error:  # a signal has come, or `connect` failed
                errors.append(error)
            if errors:
                return

    threads = [threading.Thread(target=run) for _ in range(min(number, len(paths)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(POLL_SECONDS)  # in turns: on Windows a signal comes in between
    if errors:
        raise errors[0]
    return [results[path] for path in paths]


# -------------------------------------------------------------- the program


class _Signals:
    """Note SIGINT, SIGTERM and SIGHUP in a list, so that _Report.check_stop() ends the work. The
    handler raises no exception, which SQLite would drop in its callbacks, and which could leave a
    process that has just been started. The old handlers are restored on exit."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> list[int]:
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
        return self._came

    def _handle(self, number: int, frame: object) -> None:
        self._came.append(number)

    def __exit__(self, *details: object) -> None:
        import signal
        for number, handler in self._before.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None, *, connect: Connect = sqlite3.connect) -> int:
    """Run the command line; return its exit code: 0 done, 1 refused or
    failed, 2 wrong usage, 130 interrupted, 143 terminated, 129 hung up.

    Args:
        argv: the arguments, without the program's name; None for those of
            the process.
        connect: for a program that is the command line of databases that
            need an extension or a key.
    """
    arguments: argparse.Namespace | None = None
    with _Signals() as signals:
        try:
            arguments = _parse_arguments(argv)
            return _main(arguments, connect, signals)
        except SystemExit as error:  # of argparse, or of the application's `connect`
            if isinstance(error.code, str):
                _say(f"error: {error.code}")
            return error.code if isinstance(error.code, int) else int(bool(error.code))
        except (sqlite3.Error, OSError, ValueError, MemoryError) as error:
            if isinstance(error, OSError) and error.filename:
                error = _explain(error)
            _say(f"error: {str(error) or 'out of memory'}")
            return 1
        except KeyboardInterrupt:
            standing = "--status tells where each database stands."
            if arguments and len(arguments.db) == 1:
                standing = _Database(arguments.db[0], 0.3, connect).standing()
            _say(f"interrupted: {standing} Run this again to go on.")
            return 128 + (signals or [2])[0]


def _main(arguments: argparse.Namespace, connect: Connect, signals: list[int]) -> int:
    """Do what the command line asks for; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold any bytes
    if len(arguments.db) > 1:
        return _work_on_several(arguments, connect, signals)
    report = _Report(not arguments.quiet, arguments.verbose, logged=False, stop=signals,
                     program=arguments.program)
    if arguments.db:
        database = _Database(arguments.db[0], arguments.timeout, connect, report)
        ACTIONS[arguments.action][0](_Command(arguments, database))
    else:
        _work_on_scripts(arguments, connect, report)
    return 0


def _program() -> int:
    """Be the program of this process: no signal changes its exit code while Python ends."""
    import signal
    for number in (signal.SIGINT, signal.SIGTERM):  # main() has other handlers
        # Not SIG_IGN: Python complains if a signal is pending when main() restores that.
        signal.signal(number, lambda *details: None)
    while os.open(os.devnull, os.O_RDWR) < 2:
        pass  # a stream is closed: no file of ours must be taken for it
    return main()


if __name__ == "__main__":
    sys.exit(_program())
