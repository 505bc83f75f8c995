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
It needs Python 3.9 or newer and its standard library.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    import subprocess
    from collections.abc import Callable, Container, Iterable, Iterator
    from pathlib import Path
    from typing import Any, NoReturn, Union

    StrPath = Union[str, "os.PathLike[str]"]
    Connect = Callable[[str], sqlite3.Connection]
    Applied = tuple[int, str, str, str]  # a row of the history
    Reader = Callable[[sqlite3.Connection, int], Any]  # of a database at a version
    Dangling = dict[tuple[str, str], list[Any]]  # rows by (table, parent)

__version__ = "1.0.0"
__all__ = [
    "MigrationError", "create_database_backup", "create_db", "create_db_backup",
    "ensure_meta_table", "ensure_versioned_db", "extract_version_from_filename",
    "get_db_version", "get_migration_scripts", "main", "migrate", "run_migrations",
    "set_db_version",
]

# Applications written for the fastmigrate package import from its module `core`; this
# also holds where the file was copied into a package under any name.
core = sys.modules[__name__ + ".core"] = sys.modules[__name__]

NAMING_RULE = ("a migration script is named NNNN-description.ext: "
               "four digits from 0001, a dash, and sql, py or sh")
MAX_VERSION = 9999

BLOCK = 256 * 1024  # bytes of a script that are read, and run, at a time
BATCH_SECONDS = 0.5  # after so long a transaction takes no further script
POLL_SECONDS = 0.05  # between two looks at a lock that somebody else holds
KILL_SECONDS = 0.5  # between asking a script to end and ending it
BACKUP_PAGES = 2048  # copied between two chances to be interrupted
TICK_INSTRUCTIONS = 100_000  # of SQLite's machine, between two such chances

CREATE_META = (
    "CREATE TABLE _meta (id INTEGER PRIMARY KEY CHECK (id = 1), "
    "version INTEGER NOT NULL DEFAULT 0)"
)
INSERT_META = "INSERT OR REPLACE INTO _meta (id, version) VALUES (1, ?)"
SELECT_META = "SELECT id, version FROM _meta LIMIT 2"
UPDATE_META = "UPDATE _meta SET version = ? WHERE id = 1"
CREATE_HISTORY = (
    "CREATE TABLE IF NOT EXISTS _migration_history (version INTEGER PRIMARY KEY, "
    "name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at TEXT NOT NULL)"
)
INSERT_HISTORY = "INSERT OR REPLACE INTO _migration_history VALUES (?, ?, ?, ?)"
SELECT_HISTORY = (
    "SELECT version, name, checksum, applied_at FROM _migration_history "
    "WHERE version <= ? ORDER BY version"
)
SELECT_RECORDED = "SELECT version FROM _migration_history WHERE version <= ?"
DELETE_HISTORY = "DELETE FROM _migration_history WHERE version > ?"
SELECT_REFERENCES = (
    'SELECT lower(t.name), lower(f."table") '
    "FROM sqlite_master AS t, pragma_foreign_key_list(t.name) AS f "
    "WHERE t.type = 'table' AND t.sql LIKE '%references%'"
)
SELECT_PARENTS = 'SELECT lower("table") FROM pragma_foreign_key_list(?)'
SELECT_DANGLING = "SELECT parent, rowid FROM pragma_foreign_key_check(?)"

# Joins a checksum in the history to the version before it, where other means than a run
# had led to that: the scripts up to there count as applied, though nothing records them.
AFTER = " after "

DIRECTIVES = frozenset(("no-foreign-key-check", "no-transaction"))

# PRAGMAs that do nothing, or fail, inside a transaction. Where a script begins with
# them they run before the transaction; the others run inside it, and so are undone
# with it (user_version, application_id).
OUTSIDE_PRAGMAS = frozenset((
    "auto_vacuum", "encoding", "foreign_keys", "journal_mode", "locking_mode", "page_size",
    "synchronous", "temp_store", "wal_checkpoint",
))


# ------------------------------------------------------------------ the public calls


class MigrationError(sqlite3.Error):
    """A refusal or a failure; its text is for a person and says what to do next.

    Attributes, each None where it does not apply:
        path: the migration script, as a string.
        line: the line of the script at which the failing statement begins, from 1.
        statement: the failing statement.
        version: the version at which the database stands now.
    """

    def __init__(self, message: str, *, path: str | None = None, line: int | None = None,
                 statement: str | None = None, version: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.line = line
        self.statement = statement
        self.version = version


class UnversionedError(MigrationError):
    """The database is sound, but has no version: it has no table `_meta`."""


def ensure_versioned_db(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> int:
    """Create the database at version 0 if there is none; return its version.

    Of many processes that call this at once exactly one creates the database, and it
    appears at its path whole, so that none meets an empty file. Parent folders are
    created.

    Args:
        db_path: the database file.
        connect: called as connect(path) for every connection.

    Raises:
        MigrationError: the file exists and is not a versioned database, or cannot be
            read or created. An existing file is left as it was, byte for byte.
    """
    database = _Database(db_path, connect=connect)
    if not os.path.lexists(database.path):
        database.create()
    return database.look()[0]


create_db = ensure_versioned_db


def run_migrations(db_path: StrPath, migrations_dir: StrPath, verbose: bool = False,
                   **options: Any) -> bool:
    """Apply what is pending; return True, or False with the reason logged as an error.

    Args:
        db_path: the database file; it must exist and be versioned.
        migrations_dir: the directory that holds the migration scripts.
        verbose: print on stdout what the command line prints, and show the output of
            .py and .sh scripts as it comes.
        options: as for migrate().
    """
    try:
        migrate(db_path, migrations_dir, verbose=verbose, **options)
    except MigrationError as error:
        _log("error", str(error))
        return False
    return True


def migrate(db_path: StrPath, migrations_dir: StrPath, *, to: int | None = None,
            backup: bool = False, snapshot: bool = True, timeout: float = 30.0,
            connect: Connect = sqlite3.connect, verbose: bool = False) -> list[Path]:
    """Apply the pending migration scripts in order, each exactly once; return them.

    When this returns, and also when it raises or the process dies, the database is at
    exactly one version. Where nothing is pending, nothing is written or locked.

    Args:
        db_path: the database file; it must exist and be versioned.
        migrations_dir: the directory that holds the migration scripts.
        to: the last version to apply; None for the latest.
        backup: make a backup first, if anything is pending.
        snapshot: copy the database before each script that cannot run inside a
            transaction, and put the copy back if it fails. Without it such a script,
            if it fails or is cut off, leaves what it had done so far.
        timeout: seconds to wait for another process that holds the database.
        connect: called as connect(path) for every connection.
        verbose: print what the command line prints.

    Raises:
        MigrationError: with `path`, `line`, `statement` where a script failed, and
            `version`, where the database stands.
    """
    report = _Report(results=verbose, output=verbose)
    database = _Database(db_path, timeout, connect, report)
    run = _Run(database, migrations_dir, to=to, backup=backup, snapshot=snapshot)
    applied = run.run()
    from pathlib import Path
    return [Path(script.path) for script in applied]


def get_db_version(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> int:
    """Return the version of the database, without writing to it.

    Raises:
        FileNotFoundError: there is no such file.
        UnversionedError: the database has no table `_meta`.
        MigrationError: not a database, damaged, locked, or `_meta` is not as it must be.
    """
    return _Database(db_path, connect=connect).look()[0]


def set_db_version(db_path: StrPath, version: int, *,
                   connect: Connect = sqlite3.connect) -> None:
    """Set the version by hand, running no script; puts an unversioned database under
    management, which adds the table `_meta`.

    Args:
        db_path: the database file.
        version: from 0 to 9999: all scripts up to it count as applied.

    Raises:
        FileNotFoundError: there is no such file.
        MigrationError: the version is no such number, or the database cannot be
            written, or has a `_meta` that is somebody else's. Nothing was changed.
    """
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= MAX_VERSION:
        raise MigrationError(f"{version!r} is not a version: give a number from 0 to {MAX_VERSION}")
    _Database(db_path, connect=connect).set_version(version)


def ensure_meta_table(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> None:
    """Give an existing unversioned database a `_meta` at version 0; leave a versioned one.

    Raises: as set_db_version().
    """
    database = _Database(db_path, connect=connect)
    try:
        database.look()
    except UnversionedError:
        database.set_version(0)


def create_db_backup(db_path: StrPath, *, connect: Connect = sqlite3.connect) -> Path | None:
    """Copy the database to NAME.YYYYMMDD_HHMMSS.backup beside it; return the copy's path.

    The copy is one consistent state of the database, also while others write to it. It
    is never readable by more users than the database is, and takes no existing name:
    one that is taken stands for the next second.

    Returns:
        The path, or None with the reason logged where no backup could be made.
    """
    from pathlib import Path
    try:
        return Path(_Database(db_path, connect=connect).back_up())
    except (MigrationError, OSError) as error:
        _log("error", str(error))
        return None


create_database_backup = create_db_backup


def get_migration_scripts(migrations_dir: StrPath) -> dict[int, Path]:
    """Return the migration scripts of a directory by version, in order.

    Raises:
        ValueError: two scripts have one index.
        FileNotFoundError: there is no such directory.
    """
    from pathlib import Path
    names, _ = _scan(migrations_dir)
    return {version: Path(migrations_dir, name) for version, name in sorted(names.items())}


def extract_version_from_filename(filename: str) -> int | None:
    """Return the version of a migration script's file name, None if it is not one's."""
    name = str(filename)
    index = name[:4]
    if name[4:5] != "-" or not (index.isdecimal() and index.isascii()) or index == "0000":
        return None
    return int(index) if len(index) == 4 and name.endswith((".sql", ".py", ".sh")) else None


# ------------------------------------------------------------------ messages


def _log(level: str, text: str) -> None:
    import logging  # no start-up that has nothing to say pays for it
    getattr(logging.getLogger("fastmigrate"), level)(text)


class _Report:
    """Where the results, the warnings and the progress of a run go."""

    def __init__(self, *, results: bool = False, output: bool = False,
                 terminal: bool = False, logged: bool = True) -> None:
        self.results = results  # say on stdout what was done
        self.output = output  # show the output of scripts as it comes
        self.terminal = terminal  # show progress on stderr
        self.logged = logged  # warnings are logged, else they go to stderr
        self._shown = 0.0
        self._started = 0.0

    def result(self, text: str) -> None:
        if self.results:
            self.done()
            try:
                print(text, flush=True)
            except (OSError, ValueError):
                self.results = False  # nobody reads: no reason for a migration to fail

    def warn(self, text: str) -> None:
        self.done()
        if self.logged:
            _log("warning", text)
        else:
            _complain("warning: " + text)

    def progress(self, text: Callable[[], str]) -> None:
        """Show what is being done, where it has lasted for more than a second."""
        if not self.terminal:
            return
        now = time.monotonic()
        self._started = self._started or now
        if now - self._started > 1 and now - self._shown > 0.1:
            self._shown = now
            _complain("\r\x1b[K" + text()[:79], end="")

    def done(self) -> None:
        """The work that progress was shown for is over."""
        if self._shown:
            _complain("\r\x1b[K", end="")
        self._started = self._shown = 0.0


def _complain(text: str, end: str = "\n") -> None:
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # stderr is closed: there is nowhere to say so


def _seconds(duration: float) -> str:
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.1f} s"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ------------------------------------------------------------------ the migrations directory


class _Script:
    """A migration script, and what has been learnt about it in this run."""

    def __init__(self, directory: str, version: int, name: str) -> None:
        self.version = version
        self.name = name
        self.path = os.path.join(directory, name)
        self.sql = name.endswith(".sql")
        self.alone = not self.sql  # does not fit in a transaction: runs under a snapshot
        self.careful_from: int | None = None  # the line of the block that failed
        self.measured = False  # violations before it are counted, since there are some after
        self.checksum = ""
        self.seconds = 0.0


def _scan(migrations_dir: StrPath) -> tuple[dict[int, str], list[str]]:
    """Return the names of the scripts by version, and those that are near misses."""
    names: dict[int, str] = {}
    near: list[str] = []
    folder = os.fspath(migrations_dir)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                version = extract_version_from_filename(name)
                if version is None or entry.is_dir():
                    if version or (name[:1].isdecimal()
                                   and name.lower().endswith((".sql", ".py", ".sh"))):
                        near.append(name)
                elif version in names:
                    raise ValueError(
                        f"two scripts have the index {version:04d}: {names[version]} and {name} "
                        f"in {folder}. Nothing was run. Give one of them another number.")
                else:
                    names[version] = name
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no migrations directory {folder}. Create it, or name another one "
            "with --migrations.") from None
    except NotADirectoryError:
        raise NotADirectoryError(f"{folder} is a file, not a migrations directory. Name "
                                 "the directory with --migrations.") from None
    return names, sorted(near)


# ------------------------------------------------------------------ reading SQL


class _Digest:
    """The checksum of a script: a byte order mark, the kind of line end, and white space
    at the end of a line or of the file do not count."""

    def __init__(self) -> None:
        import hashlib
        self._hash = hashlib.sha256()
        self._held = b""  # white space that counts only if something follows it

    def update(self, data: bytes) -> None:
        """Take whole lines."""
        if b"\r" in data or b" \n" in data or b"\t\n" in data:
            data = b"\n".join([line.rstrip() for line in data.split(b"\n")])
        kept = data.rstrip()
        if kept:
            self._hash.update(self._held + kept)
            self._held = b""
        self._held += data[len(kept):]

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _lines(path: str) -> Iterator[bytes]:
    """Yield a file in runs of whole lines, of about BLOCK bytes each, without its BOM."""
    with open(path, "rb") as file:
        start = True
        while True:
            data = file.read(BLOCK)
            if data and data[-1:] != b"\n":
                data += file.readline()
            if start and data[:3] == b"\xef\xbb\xbf":
                data = data[3:]
            start = False
            if not data:
                return
            yield data


def _checksum(path: str) -> str:
    digest = _Digest()
    for data in _lines(path):
        digest.update(data)
    return digest.hexdigest()


def _blocks(script: _Script) -> Iterator[tuple[int, str]]:
    """Yield an SQL script as (number of its first line, text of whole statements).

    The checksum of the script is set when all of it was read.
    """
    digest = _Digest()
    line, rest, wanted = 1, "", 0
    for data in _lines(script.path):
        digest.update(data)
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")  # as the sqlite3 program reads it
        try:
            text = rest + data.decode()
        except UnicodeDecodeError as error:
            at = line + rest.count("\n") + data.count(b"\n", 0, error.start)
            raise _Unfit(at, "is not UTF-8", "Save the script as UTF-8.") from None
        if "\0" in text:
            at = line + text.count("\n", 0, text.index("\0"))
            raise _Unfit(at, "holds a NUL character", "Take it out.")
        # A statement that goes on is looked at again when the text has doubled, so that
        # a long one costs no more than its length.
        cut = _whole(text) if len(text) >= wanted else 0
        if cut:
            yield line, text[:cut]
            line += text.count("\n", 0, cut)
            rest, wanted = text[cut:], 0
        else:
            rest, wanted = text, max(wanted, 2 * len(text))
    if rest:
        yield line, rest
    script.checksum = digest.hexdigest()


def _whole(text: str) -> int:
    """Return the length of a start of the text that is whole statements, 0 if none is
    found near its end."""
    end = len(text)
    for _ in range(8):
        if sqlite3.complete_statement(text[:end]):
            return end
        end = text.rfind(";\n", 0, end - 1) + 1
        if end == 0:
            break
    return 0


def _skip(text: str, position: int) -> int:
    """Return the first position from this one that is not white space, comment or ;"""
    while True:
        while text[position:position + 1] in (" ", "\t", "\n", "\f", "\r", ";"):
            position += 1
        if text.startswith("--", position):
            end = text.find("\n", position)
        elif text.startswith("/*", position):
            end = text.find("*/", position + 2) + 1
        else:
            return position
        if end <= 0:
            return len(text)  # a comment that lasts to the end
        position = end + 1


def _statements(text: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield the single statements of an SQL text, each with the number of its first line."""
    import re
    token = re.compile(
        r"""'[^']*'?|"[^"]*"?|`[^`]*`?|\[[^\]]*\]?|--[^\n]*|/\*.*?(?:\*/|\Z)|;""", re.S)
    counted = 0
    start = _skip(text, 0)
    for found in token.finditer(text, start):
        if found.group() != ";" or found.start() < start:
            continue
        if not sqlite3.complete_statement(text[start:found.end()]):
            continue  # the ; is one inside a trigger
        line, counted = line + text.count("\n", counted, start), start
        yield line, text[start:found.end()]
        start = _skip(text, found.end())
    if start < len(text):
        yield line + text.count("\n", counted, start), text[start:]


def _directives(script: _Script, opening: str) -> frozenset[str]:
    """Return the words that follow `fastmigrate:` in the opening comment of a script."""
    found: set[str] = set()
    for number, line in enumerate(opening.splitlines(), 1):
        _, marked, words = line.partition("fastmigrate:")
        for word in words.replace(",", " ").replace("*/", " ").split() if marked else ():
            if word not in DIRECTIVES:
                raise _Unfit(number, f"has the unknown directive {word!r}",
                             "Write one of " + ", ".join(sorted(DIRECTIVES)))
            found.add(word)
    return frozenset(found)


def _script_directives(script: _Script) -> frozenset[str]:
    """Return the directives of a .py or .sh script."""
    opening = []
    for data in _lines(script.path):
        for line in data.decode(errors="replace").splitlines():
            if line.strip() and not line.startswith("#"):
                break
            opening.append(line)
        break
    return _directives(script, "\n".join(opening))


def _leading_pragmas(text: str) -> tuple[list[tuple[int, str]], str]:
    """Return the PRAGMAs at the start of an SQL text that must run outside a transaction,
    as (line, statement), and the text without them but with all its lines."""
    if text[_skip(text, 0):][:6].lower() != "pragma":
        return [], text
    import re
    name = re.compile(r"pragma\s+(?:\w+\s*\.\s*)?(\w+)", re.I)
    pragmas = []
    for line, statement in _statements(text, 1):
        found = name.match(statement)
        if not found:
            break
        if found.group(1).lower() in OUTSIDE_PRAGMAS:
            pragmas.append((line, statement))
            text = text.replace(statement, "\n" * statement.count("\n"), 1)
    return pragmas, text


class _Unfit(Exception):
    """A script that cannot be run as it stands: line, what is wrong, what to do."""

    def __init__(self, line: int | None, what: str, remedy: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what
        self.remedy = remedy


class _Misfit(Exception):
    """A script that does not fit in a transaction."""


# ------------------------------------------------------------------ what a script does


class _Watch:
    """SQLite's authorizer: keeps a script inside the runner's transaction, and notes what
    it does that matters afterwards."""

    def __init__(self) -> None:
        self.on = False  # SQL of the runner's own passes unseen

    def start(self, enforced: bool) -> None:
        """A script begins; `enforced` tells whether foreign keys are."""
        self.on = True
        self.misfit = ""  # why the script does not fit in a transaction
        self.refused = ""  # why it is not safe to run at all
        self.stateful = False  # it changed the connection
        self.everything = False  # it may have changed any table
        self.touched: set[str] = set()
        self.created: set[str] = set()
        self.dropped: set[str] = set()
        self.altered: set[str] = set()
        self.enforced = self.wanted = enforced
        self.own = False  # a transaction of the script's own is open
        self.implicit_commit = False

    def __call__(self, action: int, first: str | None, second: str | None,
                 schema: str | None, source: str | None) -> int:
        if not self.on or action in (sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT):
            return sqlite3.SQLITE_OK
        name = (first or "").lower()
        if action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE):
            return self._change(name, schema)
        if action == sqlite3.SQLITE_TRANSACTION:
            return self._transaction(first or "")
        if action == sqlite3.SQLITE_PRAGMA:
            return self._pragma(name, (second or "").lower())
        if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
            self.stateful = True
        elif action in (sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_VTABLE):
            self.created.add(name)
        elif action in (sqlite3.SQLITE_DROP_TABLE, sqlite3.SQLITE_DROP_VTABLE):
            self.dropped.add(name)
        elif action == sqlite3.SQLITE_ALTER_TABLE:
            self.altered.add((second or "").lower())
        return sqlite3.SQLITE_OK

    def _change(self, table: str, schema: str | None) -> int:
        if table.startswith("sqlite_"):
            self.stateful |= table.startswith("sqlite_temp_")
            return sqlite3.SQLITE_OK
        if schema == "main":
            self.touched.add(table)
        if self.wanted != self.enforced:
            if self.own and self.enforced:
                self.refused = ("PRAGMA foreign_keys=OFF does nothing inside a transaction: "
                                "rows of other tables could be deleted with those of this one. "
                                "Move the PRAGMA before BEGIN.")
            self.misfit = "PRAGMA foreign_keys in the middle of the script"
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _transaction(self, operation: str) -> int:
        if operation == "ROLLBACK":
            self.misfit = "ROLLBACK"
            return sqlite3.SQLITE_DENY
        # executescript() commits an open transaction before it begins; so does a script
        # with a COMMIT of its own. Both are to leave the runner's transaction alone.
        if self.implicit_commit:
            self.implicit_commit = False
        else:
            self.own = operation == "BEGIN"
        return sqlite3.SQLITE_IGNORE

    def _pragma(self, name: str, value: str) -> int:
        if value:
            self.stateful = True
        if name == "foreign_keys" and value:
            self.wanted = value in ("on", "yes", "true") or value.isdecimal() and int(value) > 0
        elif name == "writable_schema":
            self.everything = True
        elif name == "synchronous" and value:
            return sqlite3.SQLITE_IGNORE  # would fail, and matters to this connection only
        elif (name == "wal_checkpoint" or name == "journal_mode" and value) and not self.own:
            self.misfit = f"PRAGMA {name} in the middle of the script"
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK


class _References:
    """Finds the tables in which a script can have left references dangling."""

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

    def suspects(self, watch: _Watch) -> Iterable[str]:
        """Return those in which what the script did can have left one dangling."""
        gone = watch.dropped | watch.altered
        if gone or watch.everything:
            self._parents = None
        elif not watch.touched:
            self._parents = None if watch.created else self._parents
            return ()
        elif self._parents is not None:
            for table in watch.created:
                parents = {parent for parent, in self._connection.execute(
                    SELECT_PARENTS, (table,))}
                if parents:
                    self._parents[table] = parents
        tables = self.tables()
        if watch.everything or watch.altered and self._gone(watch.altered | watch.touched):
            return tables
        parents = watch.touched - watch.created | gone
        return [child for child, its in tables.items()
                if child in watch.touched or child in watch.altered or its & parents]

    def _gone(self, names: set[str]) -> bool:
        there = {name for name, in self._connection.execute(
            "SELECT lower(name) FROM sqlite_master")}
        return not names <= there


def _dangling(connection: sqlite3.Connection, tables: Iterable[str]) -> Dangling:
    """Return the rows that refer to rows that do not exist, by (table, parent)."""
    found: Dangling = {}
    for table in tables:
        try:
            for parent, row in connection.execute(SELECT_DANGLING, (table,)):
                found.setdefault((table, parent), []).append(row)
        except sqlite3.OperationalError as error:
            if "foreign key mismatch" not in str(error):
                raise  # else the parent has no such key: SQLite itself cannot check this
    return found


def _newly_dangling(before: Dangling, after: Dangling, rebuilt: Container[str] | None,
                    ) -> list[tuple[str, str, Any, int]]:
    """Return (table, parent, one row, number of rows) for what dangles only after.

    In a table that was rebuilt the rows may have other numbers, so there the count
    decides; None stands for all tables.
    """
    found = []
    for (table, parent), rows in after.items():
        old = before.get((table, parent), [])
        new = sorted(set(rows) - set(old), key=str) or rows
        counted = rebuilt is None or table in rebuilt or None in rows
        number = len(rows) - len(old) if counted else len(set(rows) - set(old))
        if number > 0:
            found.append((table, parent, new[0], number))
    return found


# ------------------------------------------------------------------ the database file


class _Wait:
    """One wait for somebody else: tells of it once, and gives up when the time is up."""

    def __init__(self, database: _Database) -> None:
        self._database = database
        self._since = time.monotonic()
        self._told = False

    def check(self, whom: str) -> None:
        """Raise MigrationError if the time is up."""
        database, waited = self._database, time.monotonic() - self._since
        if waited >= database.timeout:
            raise MigrationError(
                f"database is locked: {database.given} is held by {whom}, for longer than "
                f"{database.timeout:g} s. Nothing was changed. Run this again when that is "
                "done, or wait longer with --timeout.")
        if waited > 0.5 and not self._told:
            self._told = True
            database.report.warn(f"waiting up to {database.timeout:g} s: {database.given} is "
                                 f"held by {whom}")


SOMEBODY = "another process"


class _Database:
    """A database file: how it is opened, locked, copied, put back."""

    def __init__(self, path: StrPath, timeout: float = 30.0,
                 connect: Connect = sqlite3.connect, report: _Report | None = None) -> None:
        self.given = os.fsdecode(path)
        if not self.given or "\0" in self.given:
            raise MigrationError(f"{self.given!r} is not the path of a database")
        self.path = os.path.abspath(self.given)  # so that SQLite never takes it for a URI
        self.timeout = timeout
        self.connect = connect
        self.report = report or _Report()
        self.errors: tuple[type[Exception], ...] = (sqlite3.Error,)
        self._lock = -1

    @property
    def snapshot(self) -> str:
        """The snapshot's path: beside the file itself, whatever link led there."""
        return os.path.realpath(self.path) + "-snapshot"

    def open(self, path: str | None = None) -> sqlite3.Connection:
        """Connect to the database, or to a copy of it; no transaction is begun but by us."""
        connection = self.connect(path or self.path)
        self.errors = (sqlite3.Error, connection.Error)  # a driver's own, as SQLCipher's
        if getattr(connection, "autocommit", -1) != -1:
            connection.autocommit = -1  # type: ignore[attr-defined] # LEGACY_TRANSACTION_CONTROL
        connection.isolation_level = None
        connection.row_factory = None
        connection.execute("PRAGMA busy_timeout = 100")
        connection.execute("PRAGMA foreign_keys = OFF")  # or a rebuilt table takes its children
        return connection

    def look(self, also: Reader = lambda connection, version: None) -> tuple[int, Any]:
        """Return the version, and what `also` reads; nothing is written, and nothing held
        that a writer would wait for."""
        self.must_exist()
        wait = _Wait(self)
        while True:
            connection = None
            try:
                connection = self.open()
                version = _read_version(connection, self.given)
                return version, also(connection, version)
            except self.errors as error:
                if "unable to open" in str(error) or "readonly" in str(error):
                    return self._look_immutable(also, error)
                if not _is_locked(error):
                    raise self.explain(error) from error
            finally:
                if connection:
                    connection.close()
            wait.check(SOMEBODY)

    def _look_immutable(self, also: Reader, error: Exception) -> tuple[int, Any]:
        """Look at a database in WAL mode in a directory in which nobody can write: SQLite
        opens that only when told that nobody does. Its log must be empty, so not there."""
        folder = os.path.dirname(os.path.realpath(self.path))
        if (self.connect is not sqlite3.connect or os.access(folder, os.W_OK)
                or os.path.exists(os.path.realpath(self.path) + "-wal")):
            raise self.explain(error) from error
        from pathlib import Path
        connection = sqlite3.connect(Path(self.path).as_uri() + "?immutable=1", uri=True)
        try:
            version = _read_version(connection, self.given)
            return version, also(connection, version)
        except self.errors as second:
            raise self.explain(second) from second
        finally:
            connection.close()

    def must_exist(self) -> None:
        """Raise FileNotFoundError if there is no file, so that SQLite creates none."""
        if not os.path.exists(self.path):
            raise FileNotFoundError(
                f"there is no database {self.given}. Create it with --createdb, or name "
                "another one with --db.")
        if os.path.isdir(self.path):
            raise MigrationError(f"{self.given} is a directory, not a database. Name the "
                                 "database file with --db.")

    def explain(self, error: BaseException) -> MigrationError:
        """Return an error of SQLite's, or of the system's, as one of ours."""
        if isinstance(error, MigrationError):
            return error
        text = str(error)
        if isinstance(error, OSError):
            what = error.strerror or text
            text = f"{error.filename}: {what}" if error.filename else text
            return MigrationError(text)
        for sign, meaning in SQLITE_ERRORS.items():
            if sign in text:
                return MigrationError(meaning.format(db=self.given, text=text))
        return MigrationError(f"{self.given}: {text}")

    # -------------------------------------------------------------- creating

    def create(self) -> None:
        """Create the database at version 0, unless somebody else is faster."""
        folder = os.path.dirname(self.path)
        new = f"{self.path}-new-{os.getpid()}-{id(self)}"
        try:
            os.makedirs(folder, exist_ok=True)
            try:
                connection = self.open(new)
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(CREATE_META)
                    connection.execute(INSERT_META, (0,))
                    connection.execute("COMMIT")
                finally:
                    connection.close()
                if os.name == "nt":
                    os.rename(new, self.path)  # fails there if the name is taken
                else:
                    os.link(new, self.path)
                    _sync(folder)
            finally:
                _remove(new, new + "-journal")
        except FileExistsError:
            if not os.path.exists(self.path):
                raise MigrationError(f"cannot create {self.given}: it is a link to nothing, or "
                                     "lies in something that is no directory") from None
        except self.errors + (OSError,) as error:
            raise MigrationError(f"cannot create the database {self.given}: "
                                 f"{self.explain(error)}") from error

    def set_version(self, version: int) -> None:
        """Set the version by hand; what lies above it is no longer recorded as applied."""
        self.must_exist()
        connection = self.writing()
        try:
            trouble: sqlite3.Error | None = None
            try:
                _read_version(connection, self.given)
            except UnversionedError:
                connection.execute(CREATE_META)
            except MigrationError as error:
                trouble = error  # a row that is missing or wrong can be set right
            try:
                connection.execute(INSERT_META, (version,))
                _read_version(connection, self.given)
            except self.errors as error:
                raise trouble or error from None
            if _has_history(connection):
                connection.execute(DELETE_HISTORY, (version,))
            self.commit(connection)
        except self.errors as error:
            raise self.explain(error) from error
        finally:
            connection.close()

    # -------------------------------------------------------------- locking

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a transaction that holds the write lock from its first moment. (One that
        asks for it later fails at once if another process has written meanwhile.)"""
        wait = _Wait(self)
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except self.errors as error:
                if not _is_locked(error):
                    raise self.explain(error) from error
            wait.check(SOMEBODY)

    def commit(self, connection: sqlite3.Connection) -> None:
        """Commit, waiting for readers."""
        wait = _Wait(self)
        while True:
            try:
                connection.execute("COMMIT")
                return
            except self.errors as error:
                if not _is_locked(error):
                    raise
            wait.check("a reader")

    def writing(self) -> sqlite3.Connection:
        """Return a new connection that holds the write lock, after the work of any runner
        that died was put right. Waits for one whose script still runs."""
        wait, waited_at = _Wait(self), -2
        while True:
            connection = self.open()
            try:
                self.begin(connection)
                if not self.interrupted():
                    return connection
                try:
                    version = _read_version(connection, self.given)
                except MigrationError:
                    version = -1  # the script that was cut off may have taken `_meta` away
                if self._judge(version):
                    return connection
            except BaseException:
                self.release()
                connection.close()
                raise
            connection.close()
            if self._lock >= 0:
                self._recover()
                continue
            if version != waited_at:
                wait, waited_at = _Wait(self), version  # it gets on: wait afresh
            wait.check(self._holder())
            time.sleep(POLL_SECONDS)

    def interrupted(self) -> bool:
        """Return whether a runner is, or died, in the middle of a script of its own."""
        return os.path.exists(self.snapshot) or os.path.exists(self.snapshot + "-lock")

    def _judge(self, version: int) -> bool:
        """Return whether the way is free. Else a runner or its script holds the snapshot or,
        where nobody does, we do so now, and it must be put back. We hold the write lock."""
        if not self._take_lock():
            return False
        if os.path.exists(self.snapshot):
            if self._snapshot_version() >= version:
                return False
            # else the script had finished, and only the removal was missing
        else:
            _, name, copied = self._read_lock()
            leads_to = extract_version_from_filename(name) or 0
            if not copied and leads_to > version:
                self.report.warn(
                    f"{name} was cut off in an earlier run that made no snapshot: {self.given} "
                    "may hold a part of what it did. It is run again now.")
        self._drop_snapshot()
        return True

    # The lock is not on the snapshot itself: on macOS and the BSDs an flock() keeps
    # SQLite, whose locks are fcntl()'s, from reading the file, in the same process too.

    def _take_lock(self) -> bool:
        path = self.snapshot + "-lock"
        if not os.path.exists(path):
            _create_private(path, self.path)
        self._lock = _try_lock(path)
        return self._lock >= 0

    def _read_lock(self) -> tuple[str, str, bool]:
        """Return process id, script name, and whether there is a snapshot."""
        try:
            with open(self.snapshot + "-lock", encoding="utf-8", errors="replace") as file:
                pid, name, copied = file.read().split("\n")[:3]
            return pid, name, copied == "snapshot"
        except (OSError, ValueError):
            return "", "", True  # it died before it could write it, or has just ended

    def _holder(self) -> str:
        pid, name, _ = self._read_lock()
        return f"process {pid}, which runs {name}" if pid else SOMEBODY

    # -------------------------------------------------------------- copies

    def take_snapshot(self, name: str, copied: bool) -> int:
        """Copy the database to its snapshot and take that's lock; return the lock's file
        descriptor, which the script inherits. The write lock is held.

        Args:
            name: the script's.
            copied: whether there is to be a copy; else there is only the lock.
        """
        new = self.snapshot + "-new"
        _remove(new)  # left by a runner that died at this
        try:
            if not self._take_lock():
                raise MigrationError(f"cannot lock {self.snapshot}-lock")
            os.ftruncate(self._lock, 0)
            os.write(self._lock, f"{os.getpid()}\n{name}\n{'snapshot' if copied else ''}\n"
                     .encode(errors="replace"))
            if copied:
                _create_private(new, self.path)
                self.copy(self.path, new, "snapshot")
                _sync(new)
                os.replace(new, self.snapshot)
                _sync(os.path.dirname(new))
        except BaseException:
            self._drop_snapshot()
            raise
        return self._lock

    def put_back(self) -> None:
        """Make the database what it was when the snapshot was taken, and drop that."""
        self.copy(self.snapshot, self.path, "putting back")
        self.drop_snapshot()

    def drop_snapshot(self) -> None:
        """Remove the snapshot and its lock, as all who judge them do: with the write lock."""
        connection = self.open()
        try:
            self.begin(connection)
            self._drop_snapshot()
        finally:
            connection.close()

    def _drop_snapshot(self) -> None:
        _remove(*(self.snapshot + end for end in ("", "-new", "-wal", "-shm", "-journal")))
        self.release()  # Windows removes no open file
        _remove(self.snapshot + "-lock")

    def release(self) -> None:
        """Give up the snapshot's lock; the snapshot stays."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _recover(self) -> None:
        """Put back the snapshot of a runner that died; keep what it left as a backup."""
        try:
            kept = self.back_up()
            self.put_back()
        finally:
            self.release()
        self.report.warn(
            f"an earlier run died while a script was running. {self.given} was put back to "
            f"where it stood before that script; what was there is kept in {kept}, which you "
            "may delete.")

    def in_snapshot(self, read: Callable[[sqlite3.Connection], Any]) -> Any:
        """Return what `read` returns for the snapshot."""
        connection = self.open(self.snapshot)
        try:
            return read(connection)
        finally:
            connection.close()

    def _snapshot_version(self) -> int:
        try:
            return int(self.in_snapshot(lambda copy: _read_version(copy, self.snapshot)))
        except self.errors as error:
            raise MigrationError(
                f"{self.snapshot} is not a snapshot that fastmigrate made ({error}). Nothing "
                "was changed. Move it out of the way, then run this again.") from error

    def back_up(self) -> str:
        """Copy the database to a backup beside it, named by the time; return its path."""
        self.must_exist()
        now = int(time.time())
        while True:
            stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(now))
            path = f"{self.path}.{stamp}.backup"
            try:
                _create_private(path, self.path)
                break
            except FileExistsError:
                now += 1  # two in one second: this one takes the next
            except OSError as error:
                raise MigrationError(f"cannot make the backup {path}: {error.strerror}. "
                                     "Nothing was changed.") from error
        try:
            self.copy(self.path, path, "backup")
            _sync(path)
            _sync(os.path.dirname(path))
        except BaseException as error:
            _remove(path)
            if isinstance(error, (*self.errors, OSError)):
                raise MigrationError(f"cannot make the backup {path}: {self.explain(error)} "
                                     "Nothing was changed.") from error
            raise
        return self.given + path[len(self.path):]

    def copy(self, source: str, target: str, doing: str) -> None:
        """Copy one state of a database over another, in one transaction of that."""
        wait = _Wait(self)

        def step(status: int, remaining: int, total: int) -> None:
            if status in (sqlite3.SQLITE_OK, SQLITE_DONE):
                done = 100 * (total - remaining) // (total or 1)
                self.report.progress(lambda: f"{doing}: {done} % of {total} pages")
            else:
                wait.check(SOMEBODY)

        opened = []
        try:
            for path in (source, target):
                opened.append(self.open(path))
            if target != self.path:  # a new file: nothing to roll back to
                opened[1].execute("PRAGMA journal_mode = OFF")
                opened[1].execute("PRAGMA synchronous = OFF")  # it is synced when complete
            else:
                self._restore_journal_mode(*opened)
            opened[0].execute("BEGIN")  # one state from here on, whoever writes meanwhile
            opened[0].execute("SELECT 1 FROM sqlite_master").fetchone()
            opened[0].backup(opened[1], pages=BACKUP_PAGES, progress=step, sleep=POLL_SECONDS)
        finally:
            for connection in opened:
                connection.close()
            self.report.done()

    def _restore_journal_mode(self, source: sqlite3.Connection,
                              target: sqlite3.Connection) -> None:
        """Leave WAL mode where the script entered it: the copy would keep that."""
        modes = [c.execute("PRAGMA journal_mode").fetchone()[0] for c in (source, target)]
        if modes[1] == "wal" != modes[0]:
            try:
                target.execute("PRAGMA journal_mode = DELETE")
            except self.errors as error:
                if not _is_locked(error):
                    raise


SQLITE_DONE = 101
SQLITE_ERRORS = {  # what SQLite says, and what that means to a person
    "locked": "{db}: {text}: another process holds it. Nothing was changed. Run this again "
              "when that is done, or wait longer with --timeout.",
    "not a database": "{db} is not a database, or is encrypted ({text}). Name the database "
                      "file with --db.",
    "malformed": "{db} is damaged ({text}). Restore a backup of it.",
    "readonly": "{db} is read-only ({text}), and there is something to write. Make the file "
                "and its directory writable for this user.",
    "unable to open": "cannot open {db} ({text}). This user must be able to read the file, "
                      "and to write it and its directory.",
    "is full": "no room is left on the disk or below a limit of file sizes ({text}: {db}). "
               "Make room, then run this again.",
    "disk I/O error": "the file system failed for {db} ({text}). See that there is room and "
                      "that the disk is sound, then run this again.",
}


def _is_locked(error: Exception) -> bool:
    return "locked" in str(error) or "locking protocol" in str(error)


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
                f"{name}: the table _meta is not fastmigrate's ({error}). Rename it: "
                "fastmigrate keeps the version of the database in a table of this name."
            ) from None
        raise
    if len(rows) == 1 and rows[0][0] == 1 and type(rows[0][1]) is int and rows[0][1] >= 0:
        return int(rows[0][1])
    held = ", ".join(repr(row) for row in rows) or "no row"
    raise MigrationError(
        f"{name}: the table _meta is damaged: it must hold one row, (1, version), and holds "
        f"{held}. Set the version with --set-version if you know it.")


def _history(connection: sqlite3.Connection, version: int, names: dict[int, str],
             edits: bool) -> list[Applied] | None:
    """Return what the history records up to a version, None where it is not wanted: there
    is no history, or it has just the scripts there are, and none is to be compared."""
    if not _has_history(connection):
        return None
    if not edits:
        recorded = {v for v, in connection.execute(SELECT_RECORDED, (version,))}
        if recorded == {v for v in names if v <= version}:
            return None
    return connection.execute(SELECT_HISTORY, (version,)).fetchall()


def _has_history(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '_migration_history'"
    ).fetchone())


def _create_private(path: str, like: str) -> None:
    """Create an empty file that no more users can read than can the other file."""
    status = os.stat(like)
    mode = status.st_mode & 0o777
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode & 0o600)
    try:
        if os.name == "posix":
            made = os.fstat(descriptor)
            if (made.st_uid, made.st_gid) != (status.st_uid, status.st_gid):
                for owner in (status.st_uid, -1):
                    try:
                        os.fchown(descriptor, owner, status.st_gid)
                        break
                    except OSError:
                        pass
                else:
                    mode &= ~0o070  # another group is not to read it
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


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
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
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


# ------------------------------------------------------------------ the run


class _Again(Exception):
    """Everything since the last commit is to be undone and tried in another way."""


class _Failed(Exception):
    """A script failed; what it had done is undone, or is about to be."""

    def __init__(self, script: _Script, what: str, *, line: int | None = None,
                 statement: str | None = None, remedy: str = "Mend the script",
                 output: str = "") -> None:
        super().__init__(what)
        self.script = script
        self.what = what
        self.line = line
        self.statement = statement
        self.remedy = remedy
        self.output = output  # the end of what the script printed
        self.state = ""

    def error(self, database: str, version: int) -> MigrationError:
        """Return the error that the caller gets, now that everything has settled."""
        where = self.script.path if self.line is None else f"{self.script.path}:{self.line}"
        parts = [f"{where}: {self.what}"]
        parts += ["    " + line for line in _excerpt(self.statement or "")]
        parts += ["    " + line for line in self.output.splitlines()]
        state = self.state or f"Nothing of this script was kept: {database} is at version {version}."
        parts.append(f"{state} {self.remedy}, then run this again.")
        return MigrationError("\n".join(parts), path=self.script.path, line=self.line,
                              statement=self.statement, version=version)


def _excerpt(text: str) -> list[str]:
    lines = [line[:100] + ("..." if len(line) > 100 else "") for line in text.splitlines()]
    return lines if len(lines) <= 6 else [*lines[:5], f"... ({len(lines) - 5} more lines)"]


class _Run:
    """One run of the pending scripts of a directory on a database."""

    def __init__(self, database: _Database, migrations_dir: StrPath, *, to: int | None = None,
                 backup: bool = False, snapshot: bool = True) -> None:
        self.database = database
        self.report = database.report
        self.folder = os.fsdecode(migrations_dir)
        self.to = MAX_VERSION if to is None else to
        self.backup = backup
        self.snapshot = snapshot
        self.applied: list[_Script] = []
        self._now: _Script | None = None  # the script that is running

    def run(self) -> list[_Script]:
        """Apply what is pending and return it; raise MigrationError."""
        try:
            return self._run()
        except self.database.errors as error:
            if str(error) == "interrupted":
                raise KeyboardInterrupt from None
            raise self.database.explain(error) from error
        except (OSError, ValueError) as error:
            raise MigrationError(str(error)) from error

    def _run(self) -> list[_Script]:
        names, near = _scan(self.folder)
        if near:
            self.report.warn(f"not run, for their names: {', '.join(near)}. "
                             f"In {self.folder}, {NAMING_RULE}.")
        database, start = self.database, 0
        try:
            start, rows = database.look(lambda connection, version: _history(
                connection, version, names, edits=any(version < v <= self.to for v in names)))
            self._check_target(start)
        except MigrationError:
            if not database.interrupted():
                raise
        else:
            pending = any(start < version <= self.to for version in names)
            self._warn_of_drift(start, names, rows or [], pending)
            if not pending and not database.interrupted():
                self.report.result(f"{database.given} is up to date at version {start}")
                return []
        self._apply([_Script(self.folder, version, names[version])
                     for version in sorted(names) if version <= self.to])
        end = self.applied[-1].version if self.applied else database.look()[0]
        self.report.result(f"{database.given} is at version {end}" + (
            f", {_plural(len(self.applied), 'migration')} applied" if self.applied else ""))
        return self.applied

    def _check_target(self, version: int) -> None:
        if self.to < version:
            raise MigrationError(
                f"{self.database.given} is at version {version}, beyond {self.to}: there is no "
                "way back but a backup. Nothing was changed. See --restore.")

    def _apply(self, scripts: list[_Script]) -> None:
        """The whole story: take the write lock; see where the database stands, for another
        process may have been faster; run what comes next, together with its version;
        commit; go on. What fails is undone and remembered until those before it are in."""
        database, failed = self.database, None
        while True:
            connection = database.writing()
            try:
                version = _read_version(connection, database.given)
                if failed and version >= failed.script.version:
                    failed = None  # another process brought it in meanwhile
                pending = [script for script in scripts if script.version > version
                           and (failed is None or script.version < failed.script.version)]
                if not pending:
                    break
                if self.backup:
                    self.report.result(f"Backup: {database.back_up()}")
                    self.backup = False
                if pending[0].alone:
                    self._run_alone(connection, version, pending[0])
                else:
                    self._run_batch(connection, version, pending)
            except _Again:
                pass
            except _Failed as failure:
                failed = failure
            finally:
                connection.close()  # and undo what is not committed
                self.report.done()
        if failed:
            raise failed.error(database.given, version)

    def _finished(self, scripts: list[_Script]) -> None:
        """These scripts are committed."""
        self.applied += scripts
        for script in scripts:
            self.report.result(f"Applied {script.name} ({_seconds(script.seconds)})")

    def _record(self, connection: sqlite3.Connection, before: int, script: _Script,
                recorded: set[int]) -> None:
        """Write the version and the history, in the transaction of the script."""
        try:
            if connection.execute(UPDATE_META, (script.version,)).rowcount != 1:
                raise sqlite3.OperationalError("its row is gone")
        except self.database.errors as error:
            raise _Failed(script, "the script spoils the table _meta, where the version is "
                          f"kept: {error}") from None
        # Versions that other means than a run led to are not in the history, and not late.
        checksum = script.checksum
        if before and before not in recorded:
            checksum += f"{AFTER}{before}"
        connection.execute(INSERT_HISTORY, (script.version, script.name, checksum, time.strftime(
            "%Y-%m-%dT%H:%M:%SZ", time.gmtime())))
        recorded.add(script.version)

    # -------------------------------------------------------------- SQL in a transaction

    def _run_batch(self, connection: sqlite3.Connection, version: int,
                   pending: list[_Script]) -> None:
        """Run SQL scripts in the transaction that is open, for BATCH_SECONDS, and commit.

        Raises:
            _Failed: a script failed; those before it are to be run again without it.
            _Again: a script must be run in another way, which is noted in it.
        """
        watch, references = _Watch(), _References(connection)
        connection.set_authorizer(watch)
        connection.set_progress_handler(self._tick, TICK_INSTRUCTIONS)
        connection.execute(CREATE_HISTORY)
        recorded = {v for v, in connection.execute(SELECT_RECORDED, (MAX_VERSION,))}
        started, done = time.monotonic(), list[_Script]()
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        try:
            for script in pending:
                if script.alone or time.monotonic() - started > BATCH_SECONDS:
                    break
                self._now, began = script, time.perf_counter()
                blocks = self._readable(script, _blocks(script))
                text = next(blocks, (1, ""))[1]
                directives, pragmas, text = self._open_script(script, text)
                if "no-transaction" in directives:
                    script.alone = True
                if done and (script.alone or pragmas):
                    break
                if script.alone:
                    raise _Again
                if pragmas:
                    self._run_pragmas(connection, version, script, pragmas)
                before = _dangling(connection, references.tables()) if script.measured else {}
                watch.start(bool(pragmas) and _enforces(connection))
                self._run_blocks(connection, watch, script, text, blocks)
                watch.on = False
                self._check_references(script, directives, before, _dangling(
                    connection, references.suspects(watch)),
                    watch.created | watch.dropped | watch.altered)
                self._record(connection, version, script, recorded)
                version = script.version
                script.seconds = time.perf_counter() - began
                done.append(script)
                if watch.stateful or pragmas:
                    break  # the next script gets a fresh connection
            self._commit(connection, done[-1])
        except BaseException:
            self._undo(connection, mode)
            raise
        self._finished(done)

    def _commit(self, connection: sqlite3.Connection, script: _Script) -> None:
        try:
            self.database.commit(connection)
        except sqlite3.IntegrityError as error:
            raise _Failed(script, str(error)) from None

    def _undo(self, connection: sqlite3.Connection, mode: str) -> None:
        """Roll back, also what a PRAGMA before the transaction did to the file."""
        connection.set_authorizer(lambda *details: sqlite3.SQLITE_OK)
        try:
            if connection.in_transaction:  # else SQLite has rolled back already
                connection.execute("ROLLBACK")
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != mode:
                connection.execute(f"PRAGMA journal_mode = {mode}")
        except self.database.errors:
            pass  # the first error is the one to tell; closing rolls back too

    def _readable(self, script: _Script, blocks: Iterator[tuple[int, str]],
                  ) -> Iterator[tuple[int, str]]:
        """Yield the blocks; say of a script that cannot be read that it failed."""
        try:
            yield from blocks
        except _Unfit as unfit:
            raise _Failed(script, f"the script {unfit.what}", line=unfit.line,
                          remedy=unfit.remedy.rstrip(".")) from None
        except OSError as error:
            raise _Failed(script, f"cannot be read: {error.strerror}",
                          remedy="Make it readable") from None

    def _open_script(self, script: _Script, text: str,
                     ) -> tuple[frozenset[str], list[tuple[int, str]], str]:
        """Return the directives of an SQL script, the PRAGMAs that go before its
        transaction, and the text of its first block without these."""
        directives: frozenset[str] = frozenset()
        if "fastmigrate:" in text:
            try:
                directives = _directives(script, text[:_skip(text, 0)])
            except _Unfit as unfit:
                raise _Failed(script, f"the script {unfit.what}", line=unfit.line,
                              remedy=unfit.remedy) from None
        if "no-transaction" in directives:
            return directives, [], text
        pragmas, text = _leading_pragmas(text)
        return directives, pragmas, text

    def _run_pragmas(self, connection: sqlite3.Connection, version: int, script: _Script,
                     pragmas: list[tuple[int, str]]) -> None:
        """Leave the transaction for the PRAGMAs that work only outside of one."""
        connection.execute("ROLLBACK")
        for line, statement in pragmas:
            self._execute(connection, script, line, statement)
        self.database.begin(connection)
        connection.execute(CREATE_HISTORY)
        if _read_version(connection, self.database.given) != version:
            raise _Again  # another process was faster

    def _run_blocks(self, connection: sqlite3.Connection, watch: _Watch, script: _Script,
                    first: str, blocks: Iterator[tuple[int, str]]) -> None:
        """Run a script in the open transaction, block by block."""
        line, text = 1, first
        while True:
            careful = script.careful_from is not None and line >= script.careful_from
            for number, piece in _statements(text, line) if careful else ((line, text),):
                watch.implicit_commit = True
                try:
                    connection.executescript(piece)
                    if not connection.in_transaction:
                        raise _Misfit
                except self.database.errors + (_Misfit,) as error:
                    self._judge(error, watch, script, number, piece, careful)
            line, text = next(blocks, (0, ""))
            if not line:
                return
            self._tick()

    def _judge(self, error: Exception, watch: _Watch, script: _Script, line: int, text: str,
               careful: bool) -> NoReturn:
        """Raise what follows from an error in a script: it runs again, or has failed."""
        message = watch.refused or str(error)
        if message == "interrupted" or (message == "not authorized" and not watch.misfit):
            raise KeyboardInterrupt from None  # it came while SQLite had the word
        if not watch.refused and (watch.misfit or isinstance(error, _Misfit)
                                  or _needs_autocommit(message)):
            script.alone = True
            raise _Again from None
        if not careful:
            script.careful_from = line  # from this block on, statement by statement
            raise _Again from None
        raise self._failure(script, line, text, message) from None

    def _failure(self, script: _Script, line: int, statement: str, message: str) -> _Failed:
        if statement.startswith("."):
            message = "a command of the sqlite3 program, not SQL"
            statement = statement.splitlines()[0]
        elif not sqlite3.complete_statement(statement) and (
                "incomplete input" in message or "unrecognized token" in message):
            message = "the file ends within this statement, or within a quote in it"
        elif "is full" in message or "disk I/O" in message:
            message = str(self.database.explain(sqlite3.OperationalError(message)))
            return _Failed(script, message, line=line, remedy="Make room")
        return _Failed(script, message, line=line, statement=statement.strip())

    def _check_references(self, script: _Script, directives: frozenset[str], before: Dangling,
                          after: Dangling, rebuilt: Container[str] | None) -> None:
        """Refuse references that dangle since this script ran; tolerate older ones."""
        if not after:
            return
        if not script.measured:
            script.measured = True
            raise _Again  # run it once more, to tell the new ones from the old
        new = _newly_dangling(before, after, rebuilt)
        number = sum(count for *_, count in new)
        if new and "no-foreign-key-check" not in directives:
            table, parent, row, _ = new[0]
            raise _Failed(
                script, f"leaves {_plural(number, 'reference')} dangling: {table} row {row} "
                f"refers to a row of {parent} that does not exist",
                remedy="Mend the script or, if this is meant, begin it with the line "
                       f"`{'--' if script.sql else '#'} fastmigrate: no-foreign-key-check`")
        if new:
            self.report.warn(f"{script.name} leaves {_plural(number, 'reference')} dangling, "
                             "as its no-foreign-key-check allows")
        else:
            total = sum(map(len, after.values()))
            self.report.warn(f"{self.database.given} has {_plural(total, 'reference')} to rows "
                             "that do not exist, from before this run; see PRAGMA "
                             "foreign_key_check")

    # -------------------------------------------------------------- scripts on their own

    def _run_alone(self, connection: sqlite3.Connection, version: int,
                   script: _Script) -> None:
        """Run a script that does not fit in a transaction, under a snapshot.

        Raises:
            _Failed: it failed, and what it did was put back.
        """
        database, began = self.database, time.perf_counter()
        self._now = script
        directives = self._read_directives(script)
        # What dangled before can be read from the snapshot, should that be asked.
        before = None if self.snapshot else _dangling(
            connection, _References(connection).tables())
        lock = database.take_snapshot(script.name, self.snapshot)
        try:
            connection.close()  # and with it the write lock: the script needs that
            if script.sql:
                self._run_statements(script)
            else:
                self._run_process(script, lock)
            self._settle(script, version, directives, before)
        except BaseException as error:
            self._give_up(script, version, error)
            raise
        database.drop_snapshot()
        script.seconds = time.perf_counter() - began
        self._finished([script])

    def _read_directives(self, script: _Script) -> frozenset[str]:
        try:
            if script.sql:
                text = next(self._readable(script, _blocks(script)), (1, ""))[1]
                return self._open_script(script, text)[0]
            script.checksum = _checksum(script.path)
            return _script_directives(script)
        except _Unfit as unfit:
            raise _Failed(script, unfit.what, line=unfit.line, remedy=unfit.remedy) from None
        except OSError as error:
            raise _Failed(script, f"cannot be read: {error.strerror}",
                          remedy="Make it readable") from None

    def _settle(self, script: _Script, before: int, directives: frozenset[str],
                dangled: Dangling | None) -> None:
        """Write the version that a script which ran on its own has led to."""
        connection = self.database.open()
        try:
            self.database.begin(connection)
            version = _read_version(connection, self.database.given)
            if version not in (before, script.version):
                raise _Failed(script, f"set the version to {version}; it leads from {before} "
                                      f"to {script.version}")
            after = _dangling(connection, _References(connection).tables())
            if after and dangled is None:
                dangled = self.database.in_snapshot(
                    lambda copy: _dangling(copy, _References(copy).tables()))
            script.measured = True
            self._check_references(script, directives, dangled or {}, after, None)
            connection.execute(CREATE_HISTORY)
            recorded = {v for v, in connection.execute(SELECT_RECORDED, (MAX_VERSION,))}
            self._record(connection, before, script, recorded)
            self._commit(connection, script)
        finally:
            connection.close()

    def _give_up(self, script: _Script, version: int, error: BaseException) -> None:
        """Put back the snapshot of a script that failed or was interrupted."""
        database = self.database
        try:
            if self.snapshot:
                database.put_back()
            else:
                database.drop_snapshot()
                left = (f"There was no snapshot: what {script.name} did before it failed is "
                        f"in {database.given}, which is at version {version}.")
                if isinstance(error, _Failed):
                    error.state = left
                    error.remedy = "Make the database right by hand, or restore a backup"
                else:
                    self.report.warn(left)
        except database.errors + (OSError,) as second:
            database.release()
            if not os.path.exists(database.snapshot):
                raise
            raise MigrationError(
                f"{script.path}: {error or 'interrupted'}\n{database.given} could not be put "
                f"back ({database.explain(second)})\nIt holds what the script left. The snapshot "
                f"{database.snapshot} is kept: the next run puts it back before anything else.",
                path=script.path, version=version) from error

    def _run_statements(self, script: _Script) -> None:
        """Run an SQL script as the sqlite3 program does, each statement by itself."""
        connection = self.database.open()
        try:
            connection.set_progress_handler(self._tick, TICK_INSTRUCTIONS)
            for line, text in self._readable(script, _blocks(script)):
                for number, statement in _statements(text, line):
                    self._execute(connection, script, number, statement)
            if connection.in_transaction:
                connection.execute("COMMIT")
        finally:
            connection.close()

    def _execute(self, connection: sqlite3.Connection, script: _Script, line: int,
                 statement: str) -> None:
        """Execute one statement outside of any transaction of ours."""
        wait = _Wait(self.database)
        while True:
            try:
                for _ in connection.execute(statement):
                    pass
                return
            except self.database.errors + (sqlite3.Warning,) as error:
                if str(error) == "interrupted":
                    raise KeyboardInterrupt from None
                if not _is_locked(error):
                    raise self._failure(script, line, statement, str(error)) from None
            try:
                wait.check(SOMEBODY)
            except MigrationError as error:
                raise _Failed(script, str(error), line=line,
                              remedy="See what holds the database") from None

    # -------------------------------------------------------------- processes

    def _run_process(self, script: _Script, lock: int) -> None:
        """Run a .py or .sh script and all that it starts to their end."""
        import subprocess
        import tempfile
        command = [*_interpreter(script), self.database.given]
        environment = {**os.environ, "FASTMIGRATE_VERSION": str(script.version)}
        alive, held = os.pipe()  # reads as closed when no process of the script's is left
        os.set_inheritable(held, True)
        with tempfile.TemporaryFile() as output:
            if self.report.output:
                sys.stdout.flush()
            streams: dict[str, Any] = {}
            if not self.report.output:
                streams.update(stdout=output, stderr=output)
            if os.name == "posix":
                streams.update(pass_fds=(lock, held), start_new_session=True)
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment,
                                           **streams)
            except OSError as error:
                os.close(alive)
                os.close(held)
                raise _Failed(script, f"cannot run {command[0]}: {error.strerror}",
                              remedy="Install it, or name another one in the script's first "
                                     "line") from None
            os.close(held)
            try:
                status = self._wait_for(process)
                over = status != 0 or self._is_over(script, alive)
            except BaseException:
                _end(process)
                raise
            finally:
                os.close(alive)
            if status == 0 and over:
                return
            _end(process)
            said = _tail(output)
        raise _Failed(script, _describe(status) if status else "ended, but processes that it "
                      f"started went on for {self.database.timeout:g} s after it", output=said)

    def _wait_for(self, process: subprocess.Popen[bytes]) -> int:
        if not self.report.terminal:
            return process.wait()
        import subprocess
        while True:
            try:
                return process.wait(0.5)
            except subprocess.TimeoutExpired:
                self._tick()

    def _is_over(self, script: _Script, alive: int) -> bool:
        """Return whether all processes of a script end within the time to wait."""
        if os.name != "posix":
            return True
        import select
        if select.select([alive], [], [], min(0.5, self.database.timeout))[0]:
            return True
        self.report.warn(f"{script.name} has ended, but not all processes that it started: "
                         f"waiting for them up to {self.database.timeout:g} s")
        return bool(select.select([alive], [], [], self.database.timeout)[0])

    def _tick(self) -> None:
        """Called now and then while SQLite works: a chance for signals, and to show where
        a run is."""
        if self._now:
            name = self._now.name
            self.report.progress(lambda: f"{name} is running")

    # -------------------------------------------------------------- drift

    def _warn_of_drift(self, version: int, names: dict[int, str], rows: list[Applied],
                       pending: bool) -> None:
        """Say where the directory is not what was applied, once for each kind."""
        database, found = self.database.given, dict[str, list[str]]()
        for script in _states(self.folder, version, names, rows, edits=pending):
            found.setdefault(script[2], []).append(script[1])
        latest = max(names, default=0)
        if version > latest:
            found.pop("missing", None)  # those that are not there yet
            self.report.warn(
                f"{database} is at version {version}, newer than the scripts in {self.folder}, "
                f"which end at {latest}: this may be an old release of the application.")
        for state, text in DRIFT.items():
            if state in found:
                self.report.warn(text.format(names=", ".join(found[state]), db=database,
                                             folder=self.folder))


DRIFT = {  # what a state of a script means to a person
    "late": "{names}: never run on {db}, which was at a higher version when this script was "
            "added. Give it a number above the latest.",
    "edited": "{names}: edited since it was applied to {db}, which does not have the change. "
              "Put the change into a new migration, or if none is needed run --accept.",
    "missing": "{names}: applied to {db}, but not there any more in {folder}. Put it back: a "
               "new database would be built without it.",
}


def _states(folder: str, version: int, names: dict[int, str], rows: list[Applied],
            edits: bool) -> list[tuple[int, str, str, str | None]]:
    """Return (version, name, state, when applied) for each script there is or was.

    Args:
        rows: the history up to the version; what it does not reach counts as applied.
        edits: compare the scripts with their checksums, which reads them all.
    """
    recorded = {row[0]: row for row in rows}
    skipped: set[int] = set()  # numbers that a run passed over: a script there came late
    last = 0
    for number, _, checksum, _ in rows:
        _, marked, after = checksum.partition(AFTER)
        skipped.update(range((int(after) if marked else last) + 1, number))
        last = number
    found = []
    for number in sorted({*names, *recorded}):
        _, name, checksum, when = recorded.get(number, (0, "", "", None))
        if number not in names:
            state = "missing"
        elif number > version:
            state = "pending"
        elif number not in recorded:
            state = "late" if number in skipped else "applied"
        elif edits and checksum.partition(AFTER)[0] != _checksum(os.path.join(folder, names[number])):
            state = "edited"
        else:
            state = "applied"
        found.append((number, names.get(number, name), state, when))
    return found


def _enforces(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("PRAGMA foreign_keys").fetchone()[0])


def _needs_autocommit(message: str) -> bool:
    """Return whether SQLite says that a statement does not work inside a transaction."""
    return ("within a transaction" in message or "within transaction" in message
            or "inside a transaction" in message
            or message.startswith("database ") and message.endswith(" is locked")
            and message != "database is locked")


def _interpreter(script: _Script) -> list[str]:
    """Return the command that runs a script, but for the argument."""
    path = script.path if not script.path.startswith("-") else os.path.join(".", script.path)
    if script.name.endswith(".py"):
        return [sys.executable or "python3", path]
    with open(script.path, "rb") as file:
        first = os.fsdecode(file.readline().strip())
    return [*(first[2:].split(None, 1) if first.startswith("#!") else ["sh"]), path]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a script and what it started to end, then end them; wait for the script."""
    import signal
    import subprocess

    def send(number: int) -> None:
        try:
            if os.name == "posix":
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        except (ProcessLookupError, PermissionError):
            pass  # none is left

    if process.poll() is None:
        send(signal.SIGTERM)
        try:
            process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    send(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.wait()


def _describe(status: int) -> str:
    if status > 0:
        return f"failed with exit status {status}"
    import signal
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _tail(output: Any) -> str:
    """Return the last lines of a script's output."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - 4000))
    lines = output.read().decode(errors="replace").splitlines()
    return "\n".join((["..."] if size > 4000 or len(lines) > 20 else []) + lines[-20:])


# ------------------------------------------------------------------ the command line


class _Interrupted:
    """Turns SIGINT and SIGTERM into one KeyboardInterrupt; further ones do not disturb the
    putting back that follows."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> _Interrupted:
        import signal
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._interrupt)
            except ValueError:
                pass  # not in the main thread: signals are somebody else's
        return self

    def __exit__(self, *details: object) -> None:
        import signal
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: object) -> None:
        if not self.number:
            self.number = number
            raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    import argparse

    def version(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and int(text) <= MAX_VERSION):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MAX_VERSION}")
        return int(text)

    def seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1
        if not 0 <= value < 1e9:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
        return value

    parser = argparse.ArgumentParser(
        prog="fastmigrate", allow_abbrev=False,
        description="Bring a SQLite database to the version that your code expects.")
    parser.add_argument("--db", metavar="PATH", help="the database (data/database.db)")
    parser.add_argument("--migrations", metavar="DIR",
                        help="the migrations directory (migrations)")
    parser.add_argument("--config", metavar="FILE",
                        help="ini file with [paths] db and migrations (.fastmigrate)")
    parser.add_argument("--backup", action="store_true", help="make a backup first")
    parser.add_argument("--to", metavar="N", type=version, help="stop after version N")
    parser.add_argument("--timeout", metavar="S", type=seconds, default=30.0,
                        help="seconds to wait for another process (30)")
    parser.add_argument("--no-snapshot", action="store_true",
                        help="do not copy the database before a script that cannot run in a "
                             "transaction: if it fails, what it did stays")
    parser.add_argument("-v", "--verbose", action="store_true",
                        help="show the output of scripts as it comes")
    parser.add_argument("-q", "--quiet", action="store_true",
                        help="print warnings and errors only")
    parser.add_argument("--version", action="version", version=f"fastmigrate {__version__}")
    actions = parser.add_argument_group("instead of migrating").add_mutually_exclusive_group()
    actions.add_argument("--createdb", action="store_true",
                         help="create an empty database at version 0")
    actions.add_argument("--set-version", metavar="N", type=version,
                         help="set the version by hand; run nothing")
    return parser


def _configure(arguments: argparse.Namespace) -> None:
    """Fill in what the command line does not say: from the config, else the defaults."""
    given, path = arguments.config, arguments.config or ".fastmigrate"
    paths: dict[str, str] = {}
    if given or os.path.exists(path):
        import configparser
        parser = configparser.ConfigParser(interpolation=None)
        try:
            with open(path, encoding="utf-8-sig") as file:
                parser.read_file(file)
        except OSError as error:
            raise MigrationError(f"cannot read the config {path}: {error.strerror}") from error
        except (configparser.Error, UnicodeDecodeError) as error:
            text = " ".join(str(error).split())
            raise MigrationError(f"the config {path} is broken: {text}") from error
        folder = os.path.dirname(path)
        for section in parser.sections() or [""]:
            for key, value in parser[section].items() if section else ():
                if section == "paths" and key in ("db", "migrations") and value:
                    paths[key] = os.path.join(folder, value)
                else:
                    _complain(f"warning: {path}: unknown [{section}] {key}; there are "
                              "db and migrations in [paths]")
    arguments.db = arguments.db or paths.get("db") or os.path.join("data", "database.db")
    arguments.migrations = arguments.migrations or paths.get("migrations") or "migrations"


def _command(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    _configure(arguments)
    report = _Report(results=not arguments.quiet, output=arguments.verbose, logged=False,
                     terminal=not arguments.quiet and sys.stderr.isatty())
    database = _Database(arguments.db, arguments.timeout, report=report)
    if arguments.createdb:
        existed = os.path.lexists(database.path)
        if not existed:
            database.create()
        report.result(f"{database.given} {'is there already, ' if existed else 'created '}"
                      f"at version {database.look()[0]}")
    elif arguments.set_version is not None:
        database.set_version(arguments.set_version)
        report.result(f"{database.given} is at version {arguments.set_version} now; no script "
                      "was run")
    else:
        _Run(database, arguments.migrations, to=arguments.to, backup=arguments.backup,
             snapshot=not arguments.no_snapshot).run()


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 refused or failed, 2 usage,
    130 interrupted, 143 terminated."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a path may hold any bytes
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as error:
        return int(error.code or 0)
    with _Interrupted() as interrupted:
        try:
            _command(arguments)
            return 0
        except (sqlite3.Error, OSError, ValueError) as error:
            _complain(f"error: {error}")
            return 1
        except KeyboardInterrupt:
            _complain(_interruption(arguments))
            return 128 + (interrupted.number or 2)


def _interruption(arguments: argparse.Namespace) -> str:
    try:
        version = _Database(arguments.db, 1.0).look()[0]
    except (sqlite3.Error, OSError) as error:
        return f"interrupted. {error}"
    return f"interrupted: {arguments.db} is at version {version}. Run this again to go on."


if __name__ == "__main__":
    sys.exit(main())
