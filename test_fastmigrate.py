"""The promises of fastmigrate, each kept by tests that are named as sentences.

Run them with `python -m unittest`; they need the standard library only.
"""


import asyncio
import contextlib
import errno
import io
import json
import logging
import os
import pickle
import random
import re
import select
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import unittest
import zipapp
import zipfile
from pathlib import Path
from unittest import mock

import fastmigrate
from fastmigrate import MigrationError, migrate

MODULE = Path(fastmigrate.__file__).resolve()


logging.getLogger("fastmigrate").addHandler(logging.NullHandler())  # tests look at them


posix_only = unittest.skipUnless(os.name == "posix", "needs POSIX")
IS_PYPY = sys.implementation.name == "pypy"


PARENTS = """
CREATE TABLE artist (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE album (id INTEGER PRIMARY KEY,
                    artist INTEGER REFERENCES artist (id) ON DELETE CASCADE);
INSERT INTO artist VALUES (1, 'a'), (2, 'b');
INSERT INTO album VALUES (10, 1), (11, 2), (12, 1);
"""


REBUILD = """
CREATE TABLE artist_new (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
INSERT INTO artist_new SELECT id, name FROM artist;
DROP TABLE artist;
ALTER TABLE artist_new RENAME TO artist;
"""


PY_INSERT = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=30)\n"


COPY = r"x\.db-copy-.*"  # what a killed runner leaves beside x.db


# What a Python script of a test begins with. meet() tells the test that the script has come
# to this place, and waits there until the test lets it go on (see Meeting).
PY_HEAD = """
import os, shutil, signal, sqlite3, subprocess, sys

def meet():
    with open({home!r} + "/arrived", "w") as file:
        file.write(".")
    os.read(os.open({home!r} + "/go-on", os.O_RDONLY), 1)

connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
execute = connection.execute
"""


# What a shell script of a test begins with: `sql FILE STATEMENT`. There may be no sqlite3
# program, and it may not be of the version of this Python's SQLite.
SH_HEAD = """
sql() {{
    "{python}" -S -E -c 'import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
for row in connection.execute(sys.argv[2]):
    print(*row)' "$1" "$2"
}}
meet() {{ printf . > "{home}/arrived"; read -r line < "{home}/go-on"; }}
"""


FEATURES = {
    "fts5": "CREATE VIRTUAL TABLE f USING fts5 (x)",
    "rtree": "CREATE VIRTUAL TABLE r USING rtree (id, a, b)",
    "generated columns": "CREATE TABLE g (a, b AS (a) STORED)",
    "strict tables": "CREATE TABLE s (a INT) STRICT",
}


def known(statement):
    """Whether this SQLite has what a statement needs."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError:
            return False
        return True


def needs(*features):
    """Skip a test where SQLite lacks a feature, by its name in FEATURES, or is older than a
    version, such as (3, 31)."""
    for feature in features:
        if isinstance(feature, tuple):
            if sqlite3.sqlite_version_info < feature:
                return unittest.skip(f"needs SQLite {'.'.join(map(str, feature))}")
        elif not known(FEATURES[feature]):
            return unittest.skip(f"SQLite has no {feature}")
    return lambda test: test


class Result:
    """What the command line printed, and its exit code: below zero for a signal."""

    def __init__(self, code, out="", err=""):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n{self.out}{self.err}"


class Forked:
    """A function that runs in a process of its own, which is forked from that of the tests,
    so that it can be killed, limited or given another user. SQLite must not be taken through
    a fork, so the test has no connection open when it makes one."""

    def __init__(self, act):
        self._read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            signal.alarm(120)  # it is not to outlive the tests
            try:
                try:
                    result = act() or Result(0)
                except BaseException:
                    result = Result(9, err=traceback.format_exc())
                os.write(write, pickle.dumps((result.code, result.out, result.err))[:60_000])
            finally:
                os._exit(0)
        os.close(write)

    def result(self):
        """Wait for the end of the process, and return what came of it."""
        status = os.waitpid(self.pid, 0)[1]
        os.set_blocking(self._read, False)
        try:
            return Result(*pickle.loads(os.read(self._read, 65536)))
        except EOFError:
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            return Result(code)
        finally:
            os.close(self._read)


class Meeting:
    """Two fifos in the directory of a test, through which a script, or anything else, says
    that it has come to a place, and is told to go on."""

    def __init__(self, test):
        self._test = test
        self._ends = []
        for name in ("arrived", "go-on"):
            os.mkfifo(name)
            self._ends.append(os.open(name, os.O_RDWR))  # so that no end of it blocks
            test.addCleanup(os.close, self._ends[-1])

    def wait(self, process):
        """Wait until a script arrives, which `process` runs."""
        while not self.has_arrived(0.05):
            if process.poll() is not None:
                self._test.fail(f"it ended before it came so far: {self._test.end(process)}")
        self.receive()

    def receive(self):
        """Wait until anybody arrives."""
        if not self.has_arrived(60):
            self._test.fail("nobody has arrived for 60 s")
        os.read(self._ends[0], 1)

    def has_arrived(self, seconds=0.0):
        return bool(select.select(self._ends[:1], [], [], seconds)[0])

    def let_go(self):
        os.write(self._ends[1], b"\n")

    def arrive(self):
        """Arrive: for a function in another process."""
        os.write(self._ends[0], b".")

    def attend(self):
        """Arrive, and wait to be let go: for a function in another process."""
        self.arrive()
        os.read(self._ends[1], 1)


def connecting(at, mode=""):
    """Return a `connect` whose connections call `at` before each of their calls, and at each
    step of a backup, with what that is: so a test can stop, fail or kill a run wherever it
    talks to SQLite."""
    class Connection(sqlite3.Connection):
        def execute(self, statement, *parameters):
            at(statement)
            return super().execute(statement, *parameters)

        def executescript(self, text):
            at(text)
            return super().executescript(text)

        def backup(self, target, *, progress=None, **options):
            def step(*numbers):
                at("step")
                if progress:
                    progress(*numbers)

            at("backup")
            super().backup(target, progress=step, **options)
            at("backed up")

    def connect(path):
        connection = sqlite3.connect(path, factory=Connection)
        if mode:
            with contextlib.suppress(sqlite3.OperationalError):  # it is locked
                sqlite3.Connection.execute(connection, f"PRAGMA journal_mode = {mode}").fetchall()
        return connection

    return connect


class Case(unittest.TestCase):
    """A test in a directory of its own, with a database x.db and a directory m."""

    mode = "delete"  # the journal mode of the database

    def setUp(self):
        self.home = Path(tempfile.mkdtemp(prefix="fastmigrate-test-")).resolve()
        self.addCleanup(shutil.rmtree, self.home, True)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.home)
        os.mkdir("m")

    def create(self, db="x.db", mode=None):
        fastmigrate.create_db(db)
        if (mode or self.mode) == "wal":
            self.sql("PRAGMA journal_mode = wal", db)

    def script(self, name, text="", folder="m"):
        path = Path(folder, name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def py_script(self, name, *lines, head=""):
        """Write a Python script that has opened its database as `connection`, where each
        execute() commits. `head` is what its file begins with."""
        text = "\n".join(textwrap.dedent(line) for line in lines)
        return self.script(name, head + PY_HEAD.format(home=str(self.home)) + text + "\n")

    def sh_script(self, name, *lines, head="#!/bin/sh"):
        """Write a shell script with a function: sql FILE STATEMENT."""
        text = SH_HEAD.format(python=sys.executable, home=self.home) + "\n".join(lines)
        return self.script(name, f"{head}\n{text}\n")

    def sql(self, statement, db="x.db", **options):
        connection = sqlite3.connect(db, isolation_level=None, **options)
        try:
            connection.execute("PRAGMA foreign_keys = OFF")  # some builds have them on
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def version(self, db="x.db"):
        return self.sql("SELECT version FROM _meta", db)[0][0]

    def tables(self, db="x.db"):
        return {name for name, in self.sql(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '\\_%' "
            "ESCAPE '\\'", db)}

    def dump(self, db="x.db"):
        """All that a database holds, in a form that can be compared."""
        schema = self.sql("SELECT type, name, sql FROM sqlite_master ORDER BY name", db)
        return schema, [self.sql(f'SELECT * FROM "{name}"', db) for kind, name, sql in schema
                        if kind == "table"]

    def beside(self, db="x.db"):
        """The files that lie beside a database, but for those that the test made."""
        return {name for name in os.listdir(self.home) if name.startswith(db + "-")
                or name.startswith(db + ".")}

    def backups(self, db="x.db", ending=".backup"):
        return {name for name in self.beside(db) if name.endswith(ending)}

    def copies(self, db="x.db"):
        return {name for name in self.beside(db) if "-copy-" in name}

    def run_main(self, *arguments, **options):
        """Run the command line in this process, on x.db and m unless told otherwise."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = fastmigrate.main([str(a) for a in arguments], **options)
        return Result(code, out.getvalue(), err.getvalue())

    def go(self, *arguments, **options):
        return self.run_main("--db", "x.db", "--migrations", "m", *arguments, **options)

    def start(self, *arguments, **options):
        """Start the command line as a process of its own."""
        process = subprocess.Popen(
            [sys.executable, str(MODULE), "--db", "x.db", "--migrations", "m", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        self.addCleanup(self.clear_away, process)
        return process

    def clear_away(self, process):
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()

    def end(self, process):
        """Wait for the end of a process that was started, and return what came of it."""
        out, err = process.communicate(timeout=120)
        return Result(process.returncode, out, err)

    def refuses(self, result, *parts):
        """The command line refused: exit 1, one message with these parts, no traceback."""
        self.assertEqual(result.code, 1, result)
        self.assertNotRegex(result.err, "(?m)^Traceback")
        self.assertEqual(len(re.findall("(?m)^error: ", result.err)), 1, result)
        for part in parts:
            self.assertIn(part, result.err)
        return result

    def works(self, result):
        self.assertEqual(result.code, 0, result)
        return result

    def wait_for(self, condition, what):
        """Wait until a condition holds that another process brings about."""
        until = time.monotonic() + 60
        while not condition():
            if time.monotonic() > until:
                self.fail(f"{what} did not come about")
            time.sleep(0.01)


class Usage(Case):
    def test_commands_to_paste_name_the_program_as_it_was_started(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        os.makedirs("app")
        for path in ("fastmigrate.py", "app/fastmigrate.py"):
            shutil.copy(MODULE, path)
        for module in ("fastmigrate", "app.fastmigrate"):
            found = subprocess.run([sys.executable, "-m", module, "--db", "x.db", "--migrations",
                                    "m", "--check"], stderr=subprocess.PIPE, text=True)
            self.assertIn(f"Run python -m {module} --db x.db --migrations m\n", found.stderr)
        self.assertIn("Run fastmigrate --db x.db --migrations m\n", self.go("--check").err)

    def test_the_sample_of_the_readme_creates_and_migrates(self):
        from fastmigrate.core import ensure_versioned_db, run_migrations
        self.script("0001-create-users.sql", "CREATE TABLE users (id INTEGER PRIMARY KEY);")
        self.assertEqual(ensure_versioned_db("data/app.db"), 0)
        self.assertIs(run_migrations("data/app.db", "m", verbose=False), True)
        self.assertEqual(ensure_versioned_db("data/app.db"), 1)
        self.assertEqual(fastmigrate.get_db_version("data/app.db"), 1)

    def test_scripts_run_in_the_order_of_their_numbers_with_gaps(self):
        self.create()
        for number in (30, 2, 7):
            self.script(f"{number:04d}-x.sql", f"CREATE TABLE IF NOT EXISTS t (n);"
                                               f"INSERT INTO t VALUES ({number});")
        self.assertEqual([p.name for p in migrate("x.db", "m")],
                         ["0002-x.sql", "0007-x.sql", "0030-x.sql"])
        self.assertEqual(self.sql("SELECT n FROM t"), [(2,), (7,), (30,)])
        self.assertEqual(self.version(), 30)

    def test_a_run_stops_at_a_failure_and_resumes_there(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.script("0002-b.sql", "CREATE TABLE b (x);\nSELEC 1;")
        self.script("0003-c.sql", "CREATE TABLE c (x);")
        with self.assertRaises(MigrationError) as caught:
            migrate("x.db", "m")
        error = caught.exception
        self.assertEqual((error.path, error.line, error.version),
                         (os.path.join("m", "0002-b.sql"), 2, 1))
        self.assertEqual(error.statement, "SELEC 1;")
        self.assertEqual(self.tables(), {"a"})
        self.script("0002-b.sql", "CREATE TABLE b (x);")
        self.assertEqual(len(migrate("x.db", "m")), 2)
        self.assertEqual(self.tables(), {"a", "b", "c"})

    def test_to_stops_after_that_version_and_never_goes_back(self):
        self.create()
        for number in (1, 2, 3):
            self.script(f"{number:04d}-x.sql", f"CREATE TABLE t{number} (x);")
        self.works(self.go("--to", "2"))
        self.assertEqual(self.version(), 2)
        self.refuses(self.go("--to", "1"), "at version 2", "Nothing was changed")
        self.works(self.go("--to", "2"))

    def test_run_migrations_returns_false_and_logs_the_reason(self):
        self.create()
        self.script("0001-a.sql", "SELEC;")
        with self.assertLogs("fastmigrate", logging.ERROR) as logs:
            self.assertIs(fastmigrate.run_migrations("x.db", "m"), False)
        self.assertIn("0001-a.sql:1", logs.output[0])
        with self.assertLogs("fastmigrate", logging.ERROR):
            self.assertIs(fastmigrate.run_migrations("missing.db", "m"), False)

    def test_a_path_may_be_a_string_or_a_path(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        for make in (str, Path):
            name = f"{make.__name__}.db"
            fastmigrate.create_db(make(name))
            self.assertTrue(fastmigrate.run_migrations(make(name), make("m")))
            fastmigrate.set_db_version(make(name), 5)
            self.assertEqual(fastmigrate.get_db_version(make(name)), 5)
            self.assertIsInstance(fastmigrate.create_db_backup(make(name)), Path)

    def test_two_copies_of_different_versions_do_not_disturb_one_another(self):
        source = MODULE.read_text(encoding="utf-8")
        for name, version in (("one", "7.0.0"), ("two", "8.0.0")):
            os.mkdir(name)
            Path(name, "__init__.py").touch()
            Path(name, "fastmigrate.py").write_text(re.sub(
                '(?m)^__version__ = .*', f'__version__ = "{version}"', source), encoding="utf-8")
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        code = ("from one.fastmigrate.core import ensure_versioned_db, __version__ as first\n"
                "from two.fastmigrate.core import run_migrations, __version__ as second\n"
                "import one.fastmigrate, two.fastmigrate, sys\n"
                "assert one.fastmigrate.core is not two.fastmigrate.core\n"
                "assert 'fastmigrate' not in sys.modules\n"
                "ensure_versioned_db('x.db'); print(first, second, run_migrations('x.db', 'm'))\n")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr), ("7.0.0 8.0.0 True\n", ""))

    def test_a_copy_in_a_package_works_under_the_name_of_the_package(self):
        package = self.home / "myapp"
        package.mkdir()
        (package / "__init__.py").write_text("")
        shutil.copy(MODULE, package / "fastmigrate.py")
        code = ("from myapp.fastmigrate.core import ensure_versioned_db, run_migrations\n"
                "import myapp.fastmigrate as f, sys\n"
                "assert f.core is f and 'fastmigrate' not in sys.modules\n"
                "ensure_versioned_db('y.db'); assert run_migrations('y.db', 'm')\n")
        subprocess.run([sys.executable, "-c", code], check=True, cwd=self.home)

    def test_the_file_is_a_program(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        for command in ([sys.executable, "-m", "fastmigrate"], [sys.executable, str(MODULE)]):
            done = subprocess.run([*command, "--version"], cwd=MODULE.parent, text=True,
                                  capture_output=True, check=True)
            self.assertEqual(done.stdout, f"fastmigrate {fastmigrate.__version__}\n")

    def test_connect_opens_every_connection(self):
        self.script("0001-a.sql", "CREATE TABLE a (x); INSERT INTO a VALUES (twice(4));")
        self.script("0002-b.sql", "VACUUM; INSERT INTO a VALUES (twice(5));")

        def connect(path):
            connection = sqlite3.connect(path)
            connection.create_function("twice", 1, lambda n: n * 2)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            return connection

        fastmigrate.create_db("x.db", connect=connect)
        migrate("x.db", "m", connect=connect)
        self.assertEqual(self.sql("SELECT x FROM a"), [(8,), (10,)])

    def test_names_that_are_no_script_names_are_no_scripts(self):
        extract = fastmigrate.extract_version_from_filename
        self.assertEqual(extract("0001-a.sql"), 1)
        self.assertEqual(extract("9999-b c.d.py"), 9999)
        for name in ("12-x.sql", "0001_x.sql", "00001-x.sql", "0001-x.SQL", "0000-x.sql",
                     "0001-x.txt", "x.sql", "٠٠٠١-x.sql", "0001-x.sql.bak", ""):
            self.assertIsNone(extract(name), name)

    def test_two_scripts_with_one_index_are_refused_before_anything_runs(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.script("0002-b.sql")
        self.script("0002-c.py")
        self.refuses(self.go(), "0002-b.sql", "0002-c.py")
        self.assertEqual(self.tables(), set())
        with self.assertRaises(ValueError):
            fastmigrate.get_migration_scripts("m")

    def test_get_migration_scripts_returns_paths_by_version(self):
        self.script("0002-b.py")
        self.script("0001-a.sql")
        self.script("notes.txt")
        self.assertEqual(fastmigrate.get_migration_scripts("m"),
                         {1: Path("m/0001-a.sql"), 2: Path("m/0002-b.py")})

    def test_near_misses_get_one_warning_that_names_the_rule(self):
        self.create()
        names = ["12-x.sql", "0001_x.sql", "00001-x.sql", "0001-x.SQL", "0000-x.sql"]
        for name in [*names, "README.md", "x.sql"]:
            self.script(name)
        os.mkdir("m/0003-folder.sql")
        result = self.works(self.go())
        self.assertEqual(result.err.count("warning"), 1)
        for name in [*names, "0003-folder.sql", "NNNN-description.ext"]:
            self.assertIn(name, result.err)
        self.assertNotIn("README.md", result.err)


class Configuration(Case):
    def place(self, *arguments):
        """The database and the directory that the command line settles on, which it names
        because they do not exist, and the warnings before."""
        found = {}
        for _ in range(2):
            result = self.refuses(self.run_main(*arguments))
            warnings, what, path = re.fullmatch(
                r"(?s)(.*)error: there is no (database|migrations directory) (.*?)\. .*",
                result.err).groups()
            found[what] = path
            if what == "database":
                fastmigrate.create_db(path)
            else:
                os.makedirs(path)
        os.unlink(found["database"])
        os.rmdir(found["migrations directory"])
        return found["database"], found["migrations directory"], warnings

    def test_arguments_go_before_the_config_and_the_config_before_defaults(self):
        default = os.path.join("data", "database.db")
        self.assertEqual(self.place(), (default, "migrations", ""))
        Path(".fastmigrate").write_text("[paths]\ndb = 100%/c.db\nmigrations = cm\n")
        self.assertEqual(self.place(), ("100%/c.db", "cm", ""))
        self.assertEqual(self.place("--db", "a.db"), ("a.db", "cm", ""))
        self.assertEqual(self.place("--db", default, "--migrations", "migrations"),
                         (default, "migrations", ""))

    def test_paths_in_a_config_are_relative_to_it(self):
        os.mkdir("etc")
        Path("etc/f.ini").write_text(f"[paths]\ndb = d.db\nmigrations = {self.home}/n\n")
        self.assertEqual(self.place("--config", "etc/f.ini"),
                         (os.path.join("etc", "d.db"), f"{self.home}/n", ""))

    def test_unknown_keys_are_a_warning_and_broken_configs_an_error(self):
        Path(".fastmigrate").write_text("[paths]\nddb = x\n[other]\na = b\n")
        warned = self.place()[2]
        self.assertEqual(warned.count("warning"), 2)
        self.assertIn("ddb", warned)
        Path(".fastmigrate").write_text("db = x\n")
        self.refuses(self.run_main(), "the config .fastmigrate cannot be read")
        self.refuses(self.run_main("--config", "none.ini"), "none.ini")

    def test_without_arguments_the_defaults_are_migrated(self):
        os.mkdir("migrations")
        self.script("0001-a.sql", "CREATE TABLE a (x);", "migrations")
        self.works(self.run_main("--createdb"))
        self.works(self.run_main())
        self.assertEqual(self.version("data/database.db"), 1)


class CommandLine(Case):
    def test_two_dashes_are_no_value_of_an_option(self):
        for option in ("--db", "--migrations", "--new", "--to", "--jobs", "--fill", "--restore"):
            result = self.run_main(f"{option}=--")
            self.assertEqual((result.code, result.out), (2, ""), option)
            self.assertRegex(result.err, rf"\Aerror: {option}\b.*; see --help\n\Z")

    def test_a_run_says_what_it_applied_and_an_up_to_date_run_says_so_in_one_line(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        result = self.works(self.go())
        self.assertRegex(result.out, r"\AApplied 0001-a.sql \(\d+ ms\)\n"
                                     r"x.db is at version 1, 1 migration applied\n\Z")
        result = self.works(self.go())
        self.assertEqual((result.out, result.err), ("x.db is up to date at version 1\n", ""))
        self.assertEqual(self.works(self.go("-q")).out, "")

    def test_a_run_that_stops_before_the_last_script_is_not_said_to_be_up_to_date(self):
        self.create()
        for number in (1, 2):
            self.script(f"{number:04d}-a.sql")
        for _ in range(2):
            out = self.works(self.go("--to", "1")).out
        self.assertEqual(out, "x.db is at version 1\n")

    def test_createdb_creates_at_version_0_and_refuses_an_unversioned_database(self):
        self.assertIn("created", self.works(self.go("--createdb")).out)
        self.assertEqual(self.version(), 0)
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.assertIn("already exists", self.works(self.go("--createdb")).out)
        self.assertEqual(self.version(), 0)
        self.sql("CREATE TABLE t (x)", "u.db")
        before = Path("u.db").read_bytes()
        self.refuses(self.run_main("--db", "u.db", "--createdb"), "unversioned")
        self.assertEqual(Path("u.db").read_bytes(), before)

    def test_wrong_usage_exits_with_2(self):
        for arguments in (["--nonsense"], ["--to", "x"], ["--to", "-1"], ["--set-version", "x"],
                          ["--set-version", "10000"], ["--timeout", "soon"],
                          ["--timeout", "nan"], ["--createdb", "--set-version", "1"], ["--json"],
                          ["--status", "--backup"], ["--check", "--to", "1"]):
            result = self.run_main(*arguments)
            self.assertEqual((result.code, result.out), (2, ""), arguments)
            self.assertRegex(result.err, r"\Aerror: .*; see --help\n\Z", arguments)

    def test_set_version_manages_an_unversioned_database_and_forgets_later_history(self):
        self.sql("CREATE TABLE t (x)")
        self.works(self.go("--set-version", "3"))
        self.assertEqual(self.version(), 3)
        self.script("0004-a.sql", "CREATE TABLE a (x);")
        self.works(self.go())
        self.works(self.go("--set-version", "3"))
        self.assertEqual(self.sql("SELECT * FROM _migration_history WHERE version > 3"), [])
        self.refuses(self.run_main("--db", "none.db", "--set-version", "3"), "none.db")
        self.assertFalse(os.path.exists("none.db"))

    def test_main_leaves_the_signal_handlers_as_they_were(self):
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        self.create()
        self.works(self.go())
        self.assertEqual(
            (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)), before)


class SqlScripts(Case):
    def fails_at(self, line, text, *parts, name="0001-a.sql"):
        """A script fails at a line, and nothing of it stays."""
        self.script(name, text)
        before = self.sql("SELECT * FROM sqlite_master")
        with self.assertRaises(MigrationError) as caught:
            migrate("x.db", "m")
        self.assertEqual(caught.exception.line, line, caught.exception)
        for part in parts:
            self.assertIn(part, str(caught.exception))
        self.assertEqual(self.sql("SELECT * FROM sqlite_master"), before)
        self.assertEqual(self.beside(), set())
        return caught.exception

    def test_a_script_that_was_not_written_yet_is_said_to_hold_no_statement(self):
        self.create()
        self.script("0001-a.sql", "-- add users\n")
        self.script("0002-b.sql", "PRAGMA synchronous = NORMAL;\n")
        self.script("0003-c.sql", "/* c */ SELECT 1;")
        out = self.works(self.go()).out
        self.assertRegex(out, r"Applied 0001-a.sql \(\d+ ms, no statement in it\)\n"
                              r"Applied 0002-b.sql \(\d+ ms\)\nApplied 0003-c.sql \(\d+ ms\)\n")

    def test_a_failing_script_leaves_nothing_and_its_line_is_exact(self):
        self.create()
        self.fails_at(4, "CREATE TABLE a (x);\n/* two\nlines */ -- more\nINSERT INTO\n b "
                         "VALUES (1);",
                      "no such table: b", "INSERT INTO")
        self.fails_at(2, "SELECT 1; SELECT\n 2; SELECT nope;\n")
        self.fails_at(1, "SELECT nope", "no such column")

    def test_the_line_is_exact_beyond_many_blocks(self):
        self.create()
        many = "INSERT INTO a VALUES ('" + "x;" * 50 + "');\n"
        text = "CREATE TABLE a (x);\n" + many * 9000 + "INSERT INTO a VALUES (1, 2);\n" + many * 10
        self.assertGreater(len(text), 3 * fastmigrate.BLOCK)
        self.fails_at(9002, text)

    def test_the_own_begin_and_commit_of_a_script_do_not_cut_its_transaction(self):
        self.create()
        for begin in ("BEGIN", "BEGIN IMMEDIATE TRANSACTION", "SAVEPOINT s"):
            end = "RELEASE s" if "SAVE" in begin else "COMMIT"
            self.fails_at(5, f"{begin};\nCREATE TABLE a (x);\n{end};\nEND;\nSELECT nope;\n"
                          if "SAVE" not in begin else
                          f"{begin};\nCREATE TABLE a (x);\n{end};\n\nSELECT nope;\n")
        self.script("0001-a.sql", "BEGIN;\nCREATE TABLE a (x);\nCOMMIT;\nBEGIN;\n"
                                  "INSERT INTO a VALUES (1);\nCOMMIT;\n")
        migrate("x.db", "m")
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])

    def test_a_conflict_that_rolls_back_by_itself_does_not_hide_its_error(self):
        self.create()
        self.fails_at(3, "CREATE TABLE a (x UNIQUE);\nINSERT INTO a VALUES (1);\n"
                         "INSERT OR ROLLBACK INTO a VALUES (1);\n", "UNIQUE constraint failed")
        self.fails_at(4, "CREATE TABLE b (x);\nCREATE TRIGGER tr BEFORE INSERT ON b BEGIN\n"
                         "  SELECT RAISE(ROLLBACK, 'never'); END;\nINSERT INTO b VALUES (1);",
                      "never")

    def test_the_words_of_a_script_are_not_taken_for_those_of_sqlite(self):
        self.create()
        for words in ("account is locked", "the cup is full", "not authorized", "interrupted",
                      "access is prohibited", "input malformed", "it is readonly"):
            for first in ("", "-- fastmigrate: no-transaction\n"):
                error = self.fails_at(
                    4 + bool(first), first + "CREATE TABLE t (x);\nCREATE TRIGGER g BEFORE INSERT "
                    f"ON t BEGIN\n  SELECT RAISE(ABORT, '{words}'); END;\nINSERT INTO t VALUES (1);")
                self.assertIn(f": {words}\n", str(error))
        self.fails_at(2, "CREATE TABLE t (x CONSTRAINT is_locked CHECK (x > 0));\n"
                         "INSERT INTO t VALUES (0);", "CHECK constraint failed: is_locked")

    @needs("fts5")
    def test_a_failing_script_with_fts5_leaves_those_before_it_whole(self):
        self.create()
        self.script("0001-a.sql", "CREATE VIRTUAL TABLE f USING fts5 (x);"
                                  "INSERT INTO f VALUES ('one two');")
        self.script("0002-b.sql", "INSERT INTO f VALUES ('three');\nSELECT nope;")
        with self.assertRaises(MigrationError):
            migrate("x.db", "m")
        self.assertEqual(self.version(), 1)
        self.assertEqual(self.sql("SELECT * FROM f WHERE f MATCH 'two'"), [("one two",)])
        self.assertEqual(self.sql("PRAGMA integrity_check"), [("ok",)])

    def test_triggers_strings_and_comments_may_be_full_of_semicolons_and_commits(self):
        self.create()
        text = """
            -- COMMIT; ROLLBACK; it's ;
            CREATE TABLE a (x); CREATE TABLE "odd;na""me" (y); /* ; COMMIT; ' */
            CREATE TRIGGER tr AFTER INSERT ON a BEGIN
                INSERT INTO "odd;na""me" VALUES ('; COMMIT; -- no comment');
                UPDATE a SET x = CASE WHEN x = 1 THEN 2 ELSE x END;
            END;
            INSERT INTO a VALUES (1); INSERT INTO a VALUES ('it''s;
            COMMIT; /* here */');"""
        self.script("0001-a.sql", text)
        migrate("x.db", "m")
        plain = sqlite3.connect(":memory:")
        self.addCleanup(plain.close)
        plain.executescript(text)
        for query in ("SELECT * FROM a", 'SELECT * FROM "odd;na""me"'):
            self.assertEqual(self.sql(query), plain.execute(query).fetchall())

    def test_random_scripts_give_the_database_that_executescript_gives(self):
        generator = random.Random(20)
        pieces = ["INSERT INTO t VALUES ('a;b');", "INSERT INTO t VALUES ('x''y\n;\n');", "\n",
                  "-- it's; a comment\n", "/* ; ' \" */", ";", "  ",
                  "INSERT INTO t\nVALUES ('--no');",
                  "CREATE TRIGGER IF NOT EXISTS g AFTER INSERT ON t BEGIN SELECT 1; "
                  "SELECT ';'; END;",
                  "INSERT INTO t VALUES ('/*');\n",
                  "UPDATE t SET x = CASE WHEN x = 'b' THEN 'c' ELSE x END;"]
        old = fastmigrate.BLOCK
        self.addCleanup(setattr, fastmigrate, "BLOCK", old)
        for number in range(60):
            fastmigrate.BLOCK = generator.choice((7, 40, 200, old))
            text = "CREATE TABLE t (x);\n" + "".join(generator.choices(pieces, k=30))
            self.script("0001-a.sql", text)
            db = f"{number}.db"
            fastmigrate.create_db(db)
            migrate(db, "m")
            plain = sqlite3.connect(":memory:")
            plain.executescript(text)
            for query in ("SELECT x FROM t", "SELECT sql FROM sqlite_master WHERE name = 'g'"):
                self.assertEqual(self.sql(query, db), plain.execute(query).fetchall(), text)
            plain.close()

    def test_a_mark_at_the_start_and_crlf_are_fine(self):
        self.create()
        self.script("0001-a.sql", b"\xef\xbb\xbfCREATE TABLE a (x);\r\n"
                                  b"INSERT INTO a VALUES ('1\r\n2');\r\n")
        migrate("x.db", "m")
        self.assertEqual(self.sql("SELECT x FROM a"), [("1\n2",)])

    def test_what_is_no_sql_text_is_refused_with_its_line(self):
        self.create()
        self.fails_at(2, b"SELECT 1;\nSELECT '\xff';\n", "not UTF-8")
        self.fails_at(3, b"SELECT 1;\n\nSELECT \0 2;\n", "NUL")
        self.fails_at(1, "CREATE TABLE a (x);".encode("utf-16"), "not UTF-8")
        self.fails_at(2, "SELECT 1;\n.import x y\n", "sqlite3 program")
        self.fails_at(2, "SELECT 1;\nCREATE TABLE a (x\n", "file ends within")
        self.fails_at(2, "CREATE TABLE a (x);\nINSERT INTO a VALUES ('it's);\n")
        self.fails_at(1, "-- fastmigrate: no-transactions\nSELECT 1;", "no-transactions")

    def test_an_empty_script_and_one_of_comments_count_as_applied(self):
        self.create()
        self.script("0001-a.sql")
        self.script("0002-b.sql", "-- nothing\n/* at all */")
        self.script("0003-c.sql", "SELECT 1")
        self.assertEqual(len(migrate("x.db", "m")), 3)

    def test_a_script_that_spoils_meta_is_undone(self):
        self.create()
        texts = ("DROP TABLE _meta;", "DELETE FROM _meta;",
                 "PRAGMA writable_schema = ON; DELETE FROM sqlite_master;")
        for text in texts:
            self.script("0001-a.sql", "CREATE TABLE a (x);" + text)
            self.refuses(self.go(), "0001-a.sql")
            self.assertEqual((self.version(), self.tables()), (0, set()))

    def test_history_is_written_with_the_version(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        migrate("x.db", "m")
        (row,) = self.sql("SELECT * FROM _migration_history")
        self.assertEqual(row[:2], (1, "0001-a.sql"))
        self.assertRegex(row[3], r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
        self.assertEqual(self.sql("SELECT sql FROM sqlite_master WHERE name = '_meta'"),
                         [("CREATE TABLE _meta (id INTEGER PRIMARY KEY CHECK (id = 1), "
                           "version INTEGER NOT NULL DEFAULT 0)",)])

    def test_a_database_without_history_is_as_good_as_one_with_it(self):
        self.sql("CREATE TABLE _meta (id INTEGER PRIMARY KEY CHECK (id = 1), "
                 "version INTEGER NOT NULL DEFAULT 0)")
        self.sql("INSERT INTO _meta VALUES (1, 2)")
        for number in (1, 2, 3):
            self.script(f"{number:04d}-x.sql", f"CREATE TABLE t{number} (x);")
        result = self.works(self.go())
        self.assertEqual(result.err, "")
        self.assertEqual(self.tables(), {"t3"})
        self.assertEqual(self.works(self.go()).err, "")
        self.assertEqual(self.sql("SELECT name, applied_at = '' FROM _migration_history"),
                         [("0001-x.sql", 1), ("0002-x.sql", 1), ("0003-x.sql", 0)])
        self.script("0001-x.sql", "CREATE TABLE changed (x);")
        self.refuses(self.go("--check"), "0001-x.sql: edited since applied to x.db")

    def test_a_line_of_dashes_behind_end_costs_no_time(self):
        self.create()
        self.script("0001-a.sql", "PRAGMA user_version = 1;\nSELECT CASE 1 WHEN 1 THEN 2 END "
                    + "-" * 9999 + "\n;\n" + "/* */ " * 9999 + "\nVACUUM;\n")
        self.works(self.go())

    def test_a_name_that_reads_like_a_denial_is_no_interrupt(self):
        self.create()
        self.script("0001-a.sql", "SELECT [this is prohibited] FROM _meta;")
        self.refuses(self.go(), "no such column: this is prohibited")


class ConnectionState(Case):
    def test_temporary_tables_do_not_leak(self):
        self.create()
        for number in (1, 2):
            self.script(f"{number:04d}-x.sql",
                        f"CREATE TEMP TABLE scratch (x); INSERT INTO scratch VALUES ({number});"
                        f"CREATE TABLE t{number} AS SELECT * FROM scratch;")
        migrate("x.db", "m")
        self.assertEqual(self.sql("SELECT * FROM t1, t2"), [(1, 2)])

    def test_the_mode_of_before_is_restored_though_a_reader_came_in_between(self):
        self.create()
        self.script("0001-a.sql", "PRAGMA journal_mode = WAL;\nCREATE TABLE a (x);\nSELECT nope;\n")
        readers = []

        def at(statement):
            if "CREATE TABLE a" in statement and not readers:  # the first of two tries
                readers.append(sqlite3.connect("x.db"))
                readers[0].execute("SELECT * FROM _meta").fetchall()
            elif statement == "SELECT nope;":
                readers[0].close()

        self.refuses(self.go(connect=connecting(at)), "m/0001-a.sql:3: no such column: nope")
        self.assertEqual(len(readers), 1)
        self.assertEqual(self.sql("PRAGMA journal_mode"), [("delete",)])

    def test_words_in_a_comment_are_no_pragma_and_no_directive(self):
        self.create()
        self.script("0001-a.sql", "-- what the old fastmigrate: did\n-- PRAGMA journal_mode = WAL;\n"
                                  "PRAGMA journal_mode = WAL;\nCREATE TABLE a (x);\n")
        self.assertNotIn("unchanged", self.works(self.go()).out)
        self.assertEqual(self.sql("PRAGMA journal_mode"), [("wal",)])

    def test_a_pragma_at_the_head_may_be_written_in_any_way(self):
        for number, text in enumerate((
                'PRAGMA "journal_mode" = WAL;', "PRAGMA `main`.journal_mode=delete;",
                "PRAGMA/**/[journal_mode] (wal);", "pragma main . journal_mode = 'DELETE';"), 1):
            self.create()
            self.script(f"000{number}-x.sql", text)
            migrate("x.db", "m")
            self.assertEqual(self.sql("PRAGMA journal_mode"), [("delete" if number % 2 == 0 else "wal",)])

    def test_counters_of_the_connection_do_not_leak(self):
        counters = "SELECT last_insert_rowid() AS a, changes() AS b, total_changes() AS c"
        self.script("0001-a.sql", "CREATE TABLE t (x); INSERT INTO t VALUES (1), (2), (3);")
        self.script("0002-b.sql", f"CREATE TABLE b AS {counters};")
        self.script("0003-c.sql", f"INSERT INTO t VALUES (4); CREATE TABLE c AS {counters};")
        self.script("0004-d.sql", "CREATE TRIGGER d AFTER INSERT ON b BEGIN"
                                  " INSERT INTO t VALUES (last_insert_rowid()); END;")
        self.script("0005-e.sql", "INSERT INTO b VALUES (1, 1, 1);")
        for name, runs in (("one.db", [5]), ("five.db", [1, 2, 3, 4, 5])):
            self.create(name)
            for to in runs:
                migrate(name, "m", to=to)
            self.assertEqual(self.sql("SELECT * FROM b, c", name)[0], (0, 0, 0, 4, 1, 1))
            self.assertEqual(self.sql("SELECT x FROM t", name), [(1,), (2,), (3,), (4,), (2,)])

    def test_pragmas_do_not_leak(self):
        self.create()
        self.script("0001-a.sql", "PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = ON;"
                                  "CREATE TABLE p (id INTEGER PRIMARY KEY);"
                                  "CREATE TABLE c (p REFERENCES p);")
        self.script("0002-b.sql", "CREATE TABLE seen AS SELECT foreign_keys AS a, "
                                  "(SELECT * FROM pragma_recursive_triggers) AS b "
                                  "FROM pragma_foreign_keys;")
        migrate("x.db", "m")
        self.assertEqual(self.sql("SELECT * FROM seen"), [(0, 0)])

    def test_attached_databases_do_not_leak(self):
        self.create()
        self.sql("CREATE TABLE o (x)", "other.db")
        for number in (1, 2):
            self.script(f"{number:04d}-x.sql", "ATTACH 'other.db' AS other;"
                                               f"INSERT INTO other.o VALUES ({number});")
        migrate("x.db", "m")
        self.assertEqual(self.sql("SELECT x FROM o", "other.db"), [(1,), (2,)])

    def test_who_holds_an_attached_database_is_waited_for_and_the_right_one_is_named(self):
        self.create()
        self.sql("CREATE TABLE o (x)", "other.db")
        for head in ("", "-- fastmigrate: no-transaction\n"):
            self.script("0001-a.sql", head + "ATTACH 'other.db' AS other;\n"
                                             "INSERT INTO other.o VALUES (1);\n")
            other = sqlite3.connect("other.db", isolation_level=None)
            self.addCleanup(other.close)
            other.execute("BEGIN IMMEDIATE")
            self.refuses(self.go("--timeout", 0), f"{2 + bool(head)}: database is locked: another "
                         "connection holds a database that it has attached")
            pauses = []

            def pause(seconds, other=other, pauses=pauses):
                pauses.append(seconds)
                if len(pauses) == 3:
                    other.execute("ROLLBACK")

            with mock.patch("time.sleep", pause):
                self.works(self.go())
            self.assertEqual(len(pauses), 3)
            self.create("y.db")
            os.replace("y.db", "x.db")
        self.assertEqual(self.sql("SELECT x FROM o", "other.db"), [(1,), (1,)])

    def test_the_mode_of_vacuum_is_rolled_back_with_its_script(self):
        self.create()
        with contextlib.closing(sqlite3.connect("x.db")) as connection:
            connection.executescript("PRAGMA auto_vacuum = FULL; VACUUM;")
        self.script("0001-a.sql", "PRAGMA auto_vacuum = INCREMENTAL;\nSELECT nope;\n")
        self.refuses(self.go(), "m/0001-a.sql:2: no such column: nope")
        self.assertEqual(self.sql("PRAGMA auto_vacuum"), [(1,)])
        self.script("0001-a.sql", "PRAGMA auto_vacuum = INCREMENTAL;\nCREATE TABLE a (x);\n")
        self.works(self.go())
        self.assertEqual(self.sql("PRAGMA auto_vacuum"), [(2,)])
        self.script("0002-b.sql", "PRAGMA auto_vacuum = NONE;\nVACUUM;\n")
        self.works(self.go())
        self.assertEqual(self.sql("PRAGMA auto_vacuum"), [(0,)])

    def test_leading_pragmas_work_outside_the_transaction_and_are_undone(self):
        self.create()
        self.script("0001-a.sql", "-- first\nPRAGMA journal_mode = WAL;\nPRAGMA user_version = 7;"
                                  "\nCREATE TABLE a (x);\nSELECT nope;\n")
        with self.assertRaises(MigrationError) as caught:
            migrate("x.db", "m")
        self.assertEqual(caught.exception.line, 5)
        self.assertEqual(self.sql("PRAGMA journal_mode"), [("delete",)])
        self.assertEqual(self.sql("PRAGMA user_version"), [(0,)])
        self.script("0001-a.sql", "PRAGMA journal_mode = WAL;\nPRAGMA user_version = 7;\n")
        migrate("x.db", "m")
        self.assertEqual(self.sql("PRAGMA journal_mode"), [("wal",)])
        self.assertEqual(self.sql("PRAGMA user_version"), [(7,)])

    def test_the_journal_mode_that_a_faster_process_has_set_stays(self):
        self.create()
        self.script("0001-a.sql", "PRAGMA journal_mode = WAL;\nCREATE TABLE a (x);\n")
        faster = []

        def connect(path):
            connection = sqlite3.connect(path)

            def trace(statement):
                if statement == "PRAGMA main.journal_mode = wal" and not faster:
                    faster.append(statement)
                    migrate("x.db", "m")  # between our PRAGMA and our BEGIN

            connection.set_trace_callback(trace)
            return connection

        self.assertEqual(migrate("x.db", "m", connect=connect), [])
        self.assertEqual(len(faster), 1)
        self.assertEqual(self.sql("PRAGMA journal_mode"), [("wal",)])


class Transactions(Case):
    """What a script in SQL does with the transaction that it shares with its version."""

    def make_rows_that_do_not_fit_in_the_cache(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE keep (x, pad);\nINSERT INTO keep WITH RECURSIVE "
                                  "r (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r WHERE n < 1499)"
                                  " SELECT n, zeroblob(500) FROM r;")
        migrate("x.db", "m")

    @staticmethod
    def connect_with_a_small_cache(path):
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA cache_size = 20")  # so that the file is written to soon
        return connection

    def test_no_pragma_weakens_the_transaction(self):
        self.make_rows_that_do_not_fit_in_the_cache()
        change = "UPDATE keep SET pad = randomblob(500), x = x + 100000;\nSELECT nope;\n"
        for mode in ("OFF", "MEMORY"):
            for place in ("PRAGMA journal_mode = {};\n", "pragma main.journal_mode={} ;\n",
                          "PRAGMA synchronous = OFF; PRAGMA journal_mode = {};\n",
                          "SELECT 1;\nPRAGMA journal_mode = {};\n",
                          "-- fastmigrate: no-transaction\nPRAGMA journal_mode = {};\n"):
                self.script("0002-b.sql", place.format(mode) + change)
                self.refuses(self.go(connect=self.connect_with_a_small_cache),
                             "no such column: nope", "still at version 1")
                self.is_as_it_was(place)

    @posix_only
    def test_a_kill_in_the_middle_of_a_script_whose_pragma_would_weaken_it_changes_nothing(self):
        self.make_rows_that_do_not_fit_in_the_cache()

        def connect(path):
            connection = self.connect_with_a_small_cache(path)
            connection.create_function(
                "kill_at", 1, lambda n: os.kill(os.getpid(), 9) if n == 1200 else n + 100_000)
            return connection

        for mode in ("OFF", "MEMORY", "DELETE"):
            self.script("0002-b.sql", f"PRAGMA journal_mode = {mode};\n"
                                      "UPDATE keep SET pad = randomblob(500), x = kill_at(x);")
            result = Forked(lambda: self.go(connect=connect)).result()
            self.assertEqual(result.code, -signal.SIGKILL, result)
            self.is_as_it_was(mode)

    def is_as_it_was(self, why):
        self.assertEqual(self.version(), 1, why)
        self.assertEqual(self.sql("SELECT count(*) FROM keep WHERE x < 1500"), [(1500,)], why)
        self.assertEqual(self.sql("PRAGMA integrity_check"), [("ok",)], why)

    def test_a_savepoint_that_a_script_leaves_open_is_refused(self):
        self.create()
        for text in ("SAVEPOINT s; CREATE TABLE users (x);",
                     "SAVEPOINT s; SAVEPOINT t; CREATE TABLE users (x); RELEASE t;"):
            self.script("0001-a.sql", text)
            self.script("0002-b.sql", "CREATE TABLE other (x); ROLLBACK TO s; RELEASE s;")
            self.refuses(self.go(), "0001-a.sql", "savepoint s", "RELEASE", "still at version 0")
            self.assertEqual(self.tables(), set())

    def test_a_commit_of_the_script_ends_its_savepoints(self):
        self.create()
        self.script("0001-a.sql", "BEGIN; CREATE TABLE a (x); SAVEPOINT S; CREATE TABLE users (x);"
                                  "ROLLBACK TO s; COMMIT;")
        self.script("0002-b.sql", "CREATE TABLE b (x); ROLLBACK TO s;")
        self.refuses(self.go(), "m/0002-b.sql:1: no such savepoint: s", "still at version 1")
        self.assertEqual(self.tables(), {"a"})

    def test_savepoints_that_are_ended_do_what_they_say(self):
        self.create()
        self.script("0001-a.sql", "SAVEPOINT s; CREATE TABLE a (x); SAVEPOINT t;"
                                  "CREATE TABLE b (x); ROLLBACK TO t; CREATE TABLE c (x);"
                                  "RELEASE S; SAVEPOINT s; RELEASE s;")
        self.works(self.go())
        self.assertEqual(self.tables(), {"a", "c"})

    def test_a_temporary_table_does_not_stand_for_the_version_or_the_history(self):
        self.create()
        for table in ("_meta (id, version)", "_migration_history (version, name)",
                      "_Meta (id INTEGER PRIMARY KEY, version)"):
            self.script("0001-a.sql", f"CREATE TEMP TABLE {table};\nCREATE TABLE IF NOT EXISTS a "
                                      "(x);\nINSERT INTO a VALUES (1);")
            self.works(self.go())
            self.assertEqual((self.version(), self.sql("SELECT * FROM a")), (1, [(1,)]), table)
            self.assertEqual(self.sql("SELECT version FROM _migration_history"), [(1,)], table)
            self.works(self.go())
            self.assertEqual(self.sql("SELECT * FROM a"), [(1,)], table)
            self.sql("DELETE FROM a")
            fastmigrate.set_db_version("x.db", 0)

    def test_a_trigger_that_changes_the_version_is_refused(self):
        for trigger in ("AFTER UPDATE ON _meta BEGIN UPDATE _meta SET version = 7; END",
                        "AFTER INSERT ON _migration_history BEGIN UPDATE _meta SET version = 7; END",
                        "BEFORE UPDATE ON _meta BEGIN SELECT RAISE(IGNORE); END"):
            for head in ("", "-- fastmigrate: no-transaction\n"):
                self.create()
                self.script("0001-a.sql", "CREATE TABLE a (x);")
                migrate("x.db", "m", to=1)
                self.script("0002-b.sql", f"{head}CREATE TRIGGER g {trigger};\n")
                self.refuses(self.go(), "0002-b.sql", "version")
                self.assertEqual(self.version(), 1, trigger)
                os.unlink("x.db")

    def test_of_many_scripts_the_one_that_keeps_them_from_being_committed_is_named(self):
        for trigger in ("AFTER UPDATE ON _meta BEGIN UPDATE _meta SET version = 7; END",
                        "BEFORE INSERT ON _migration_history BEGIN SELECT RAISE(FAIL, 'no'); END"):
            self.create()
            self.script("0001-a.sql", "CREATE TABLE _migration_history (version INTEGER PRIMARY "
                        "KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at TEXT NOT NULL);")
            for number in range(2, 9):
                self.script(f"000{number}-x.sql", f"CREATE TABLE t{number} (x);")
            self.script("0005-x.sql", f"CREATE TRIGGER g {trigger};")
            self.refuses(self.go(), "m/0005-x.sql: it ", "x.db is still at version 4")
            self.assertEqual((self.version(), self.tables()), (4, {"t2", "t3", "t4"}))
            os.unlink("x.db")

    def test_pragmas_of_the_connection_do_not_confuse_the_bookkeeping(self):
        for pragma in ("count_changes = 1", "full_column_names = 1", "short_column_names = 0",
                       "reverse_unordered_selects = 1", "empty_result_callbacks = 1",
                       "case_sensitive_like = 1", "cell_size_check = 1", "legacy_file_format = 1",
                       "ignore_check_constraints = 1", "recursive_triggers = 1"):
            for head in ("", "CREATE TABLE a (x);\n", "-- fastmigrate: no-transaction\n"):
                self.create()
                self.script("0001-a.sql", f"{head}PRAGMA {pragma};\nCREATE TABLE b (x);\n"
                                          "INSERT INTO b VALUES (1);\nDELETE FROM b;\n")
                self.script("0002-b.sql", "CREATE TABLE c (x);\n")
                with self.subTest(pragma=pragma, head=head):
                    self.works(self.go())
                    self.assertEqual(self.version(), 2)
                    self.assertLessEqual({"b", "c"}, self.tables())
                os.unlink("x.db")

    @needs((3, 31))
    @posix_only
    def test_a_limit_on_memory_is_ignored_or_an_error_with_a_next_step(self):
        self.create()
        self.script("0001-a.sql", "PRAGMA hard_heap_limit = 100000;\nPRAGMA soft_heap_limit = 1;\n"
                    "CREATE TABLE a AS WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 "
                    "FROM r WHERE n < 900) SELECT zeroblob(3000) FROM r;\n")
        self.works(self.end(self.start()))
        self.assertEqual(self.sql("SELECT count(*) FROM a"), [(900,)])
        self.script("0002-b.sql", "CREATE TABLE b AS SELECT hex(zeroblob(3000000)) AS x;")

        def connect(path):
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA hard_heap_limit = 1000000").fetchall()
            return connection

        result = Forked(lambda: self.go(connect=connect)).result()
        self.refuses(result, "x.db", "memory", "Remove its limit")
        self.assertEqual(self.version(), 1)


class WorkingCopies(Case):
    """Scripts that do not fit in a transaction work on a copy of the database, and the copy
    becomes the database in one transaction."""

    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", PARENTS)
        migrate("x.db", "m")

    def stays_as_it_was(self, *parts):
        """The pending script fails, and the database stays as it was, byte for byte."""
        before = Path("x.db").read_bytes()
        result = self.refuses(self.go("--timeout", "5"), "x.db is still at version 1", *parts)
        self.assertEqual(Path("x.db").read_bytes(), before, result)
        self.assertEqual(self.beside(), set(), result)
        self.assertEqual(self.sql("PRAGMA journal_mode"), [(self.mode,)], result)
        return result

    def artists(self):
        return [name for name, in self.sql("SELECT name FROM artist ORDER BY id")]

    def test_a_directory_in_the_place_of_the_copy_is_removed(self):
        self.script("0002-b.py", "import os, sys\nos.unlink(sys.argv[1])\nos.mkdir(sys.argv[1])\n")
        self.stays_as_it_was("it removed the database that it was given")

    def test_a_python_script_gets_a_copy_beside_the_database_and_the_version(self):
        self.py_script("0002-b.py", """\
            assert sys.stdin.read() == ""
            assert len(sys.argv) == 2, sys.argv
            folder, name = os.path.split(sys.argv[1])
            assert os.path.samefile(folder, os.getcwd()), folder
            assert name.startswith("x.db-copy-0002-"), name
            assert os.environ["FASTMIGRATE_DB"] == "x.db", os.environ
            execute("INSERT INTO artist VALUES (3, ?)", (os.environ["FASTMIGRATE_VERSION"],))
            """)
        self.works(self.go())
        self.assertEqual((self.version(), self.artists()), (2, ["a", "b", "2"]))
        self.assertEqual(self.sql("SELECT version, name FROM _migration_history"),
                         [(1, "0001-a.sql"), (2, "0002-b.py")])
        self.assertEqual(self.sql("PRAGMA journal_mode"), [(self.mode,)])
        self.assertEqual(self.beside(), set())

    @posix_only
    def test_a_shell_script_runs_with_the_interpreter_of_its_first_line(self):
        self.py_script("0002-b.sh", "execute('INSERT INTO artist VALUES (3, 3)')",
                       head=f"#!{sys.executable} -S\n")
        self.sh_script("0003-c.sh", 'echo "$FASTMIGRATE_DB $FASTMIGRATE_VERSION" > seen',
                       head="# no interpreter")
        self.works(self.go())
        self.assertEqual(self.artists(), ["a", "b", "3"])
        self.assertEqual(Path("seen").read_text(), "x.db 3\n")

    @posix_only
    def test_the_database_may_be_given_by_a_link_or_from_another_directory(self):
        os.mkdir("other")
        os.symlink("../x.db", "other/link.db")
        self.sh_script("0002-b.sh", 'sql "$1" "INSERT INTO artist VALUES (3, \'c\')"',
                       'basename "$1" > "$1.seen"')
        os.chdir("other")
        self.works(self.run_main("--db", "link.db", "--migrations", "../m"))
        os.chdir("..")
        self.assertEqual(self.artists(), ["a", "b", "c"])
        self.assertTrue(os.path.islink("other/link.db"))
        self.assertEqual(os.listdir("other"), ["link.db"])
        (seen,) = self.beside()
        self.assertRegex(seen, r"\Ax\.db-copy-0002-")  # beside the database, not the link

    def test_a_failing_script_leaves_the_database_alone_and_its_output_is_shown(self):
        self.py_script("0002-b.py", "execute('DELETE FROM album'); print('half way', flush=True)",
                       "raise ValueError('no more')")
        self.stays_as_it_was("0002-b.py", "exit status 1", "half way", "no more")

    @posix_only
    def test_a_script_that_is_killed_by_a_signal_leaves_the_database_alone(self):
        self.py_script("0002-b.py", "execute('DROP TABLE album'); os.kill(os.getpid(), 9)")
        self.stays_as_it_was("killed by SIGKILL")

    @posix_only
    def test_an_interpreter_that_does_not_exist_is_named(self):
        self.script("0002-b.sh", "#!/no/such/shell -e\n")
        self.stays_as_it_was("/no/such/shell cannot be run")

    def test_a_script_that_changes_the_journal_mode_and_fails_leaves_the_database_alone(self):
        for mode in ("wal", "delete", "off"):
            self.py_script("0002-b.py", f"execute('PRAGMA journal_mode = {mode}').fetchall()",
                           "execute('DROP TABLE album')", "raise SystemExit(3)")
            self.stays_as_it_was("exit status 3")

    def test_a_script_that_leaves_references_dangling_is_refused_unless_it_says_so(self):
        delete = "execute('PRAGMA foreign_keys = OFF'); execute('DELETE FROM artist WHERE id = 2')"
        self.py_script("0002-b.py", delete)
        self.stays_as_it_was("album row 11", "# fastmigrate: no-foreign-key-check")
        self.py_script("0002-b.py", delete,
                       head="#!/usr/bin/env python3\n# fastmigrate: no-foreign-key-check\n")
        self.assertIn("1 dangling reference", self.works(self.go()).err)

    def test_a_script_that_sets_another_version_is_refused(self):
        for statement, part in (("UPDATE _meta SET version = 9", "set the version to 9"),
                                ("UPDATE _meta SET version = 0", "set the version to 0"),
                                ("DELETE FROM _meta", "no row"),
                                ("DROP TABLE _meta", "no table _meta")):
            self.py_script("0002-b.py", f"execute('{statement}')")
            self.stays_as_it_was(part)

    def test_a_script_that_sets_its_version_itself_is_accepted(self):
        self.py_script("0002-b.py", "execute('UPDATE _meta SET version = 2')")
        self.works(self.go())
        self.assertEqual(self.version(), 2)
        self.assertEqual(len(self.sql("SELECT * FROM _migration_history")), 2)

    def test_sql_that_does_not_fit_in_a_transaction_runs_on_a_copy(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);\nVACUUM;\nINSERT INTO b VALUES (1);\n")
        self.script("0003-c.sql", "BEGIN; INSERT INTO b VALUES (2); ROLLBACK;\n"
                                  "BEGIN; INSERT INTO b VALUES (3); COMMIT;\n")
        self.script("0004-d.sql", "-- fastmigrate: no-transaction\nINSERT INTO b VALUES (4);"
                                  "BEGIN; INSERT INTO b VALUES (5);")
        self.works(self.go())
        self.assertEqual(self.sql("SELECT x FROM b"), [(1,), (3,), (4,), (5,)])

    def test_sql_that_fails_on_a_copy_leaves_the_database_alone_and_its_line_is_exact(self):
        self.script("0002-b.sql", "DROP TABLE album;\nVACUUM;\nCREATE TABLE b (x);\n\nSELECT nope;")
        self.stays_as_it_was("0002-b.sql:5", "SELECT nope")

    def test_a_journal_mode_at_the_head_of_a_script_is_that_of_the_database_afterwards(self):
        other = "delete" if self.mode == "wal" else "wal"
        for text in ("VACUUM;", "CREATE TABLE b (x);"):
            self.script("0002-b.sql", f"PRAGMA journal_mode = {other};\n{text}\nSELECT nope;\n")
            before = self.dump()
            result = self.refuses(self.go(), "0002-b.sql:3", "x.db is still at version 1")
            self.assertEqual((self.dump(), self.beside()), (before, set()), result)
            self.assertEqual(self.sql("PRAGMA journal_mode"), [(self.mode,)], result)
        self.script("0002-b.sql", f"PRAGMA journal_mode = {other};\nVACUUM;\n")
        self.works(self.go())
        self.assertEqual(self.sql("PRAGMA journal_mode"), [(other,)])

    def test_a_script_may_put_the_database_into_wal_mode(self):
        for name, write in (("0002-b.sql", self.script), ("0003-c.py", self.py_script)):
            write(name, "CREATE TABLE b (x);\nPRAGMA journal_mode = WAL;\nCREATE TABLE c (x);\n"
                  if name.endswith("sql") else "execute('PRAGMA journal_mode = WAL').fetchall()\n"
                  "execute('DROP TABLE b')")
            self.works(self.go())
            self.assertEqual(self.sql("PRAGMA journal_mode"), [("wal",)])
            self.sql(f"PRAGMA journal_mode = {self.mode}")
        self.assertLessEqual({"c"}, self.tables())

    def test_another_page_size_and_a_smaller_file_reach_the_database(self):
        self.sql("CREATE TABLE big AS SELECT zeroblob(500000) AS x")
        self.script("0002-b.sql", "PRAGMA journal_mode = DELETE;\n")
        self.script("0003-c.sql", "PRAGMA page_size = 8192;\nDELETE FROM big;\nVACUUM;\n")
        self.works(self.go())
        self.assertEqual(self.sql("PRAGMA page_size"), [(8192,)])
        self.assertLess(os.path.getsize("x.db"), 100_000)
        self.assertEqual(self.sql("PRAGMA integrity_check"), [("ok",)])

    def test_a_page_size_that_sqlite_does_not_change_in_wal_mode_is_refused_there(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);\nPRAGMA journal_mode = DELETE;\n"
                                  "PRAGMA page_size = 8192;\nVACUUM;\n")
        if self.mode == "wal":
            self.stays_as_it_was("page size", "PRAGMA journal_mode = DELETE")
        else:
            self.works(self.go())
            self.assertEqual(self.sql("PRAGMA page_size"), [(8192,)])

    def test_the_output_of_a_script_is_shown_when_asked_for(self):
        self.py_script("0002-b.py", "print('seen live')")
        self.assertIn("seen live", self.works(self.end(self.start("-v"))).out)

    def test_a_script_that_changed_nothing_is_said_to(self):
        self.py_script("0002-b.py", "execute('SELECT 1')")
        self.assertRegex(self.works(self.go()).out,
                         r"Applied 0002-b.py \(\d+ ms, the database is unchanged\)")
        self.py_script("0003-c.py", "execute('INSERT INTO artist VALUES (3, 3)')")
        self.assertNotIn("unchanged", self.works(self.go()).out)

    def test_a_script_that_opens_the_database_by_its_name_finds_it_locked_and_hears_why(self):
        insert = ("c = sqlite3.connect('x.db', timeout=0)", "try: c.execute('DELETE FROM album')",
                  "except sqlite3.Error as error: print(error); raise SystemExit({})")
        self.py_script("0002-b.py", *insert[:2], insert[2].format(1))
        self.stays_as_it_was("database is locked", "its first argument")
        self.py_script("0002-b.py", *insert[:2], insert[2].format(0))
        result = self.works(self.go())
        self.assertIn("the database is unchanged", result.out)
        self.assertIn("its first argument", result.err)
        self.assertEqual(self.sql("SELECT count(*) FROM album"), [(3,)])

    def test_readers_read_on_and_writers_are_told_locked_while_a_script_runs(self):
        seen = []

        def connect(path):
            connection = sqlite3.connect(path)
            connection.create_function("now", 0, now)
            return connection

        def now():
            with contextlib.closing(sqlite3.connect("x.db", timeout=0)) as other:
                seen.append(other.execute("SELECT count(*) FROM artist").fetchall())
                for statement in ("BEGIN IMMEDIATE", "INSERT INTO artist VALUES (9, 'lost')"):
                    with self.assertRaisesRegex(sqlite3.Error, "locked"):
                        other.execute(statement)
            return 1

        self.script("0002-b.sql", "-- fastmigrate: no-transaction\nINSERT INTO artist VALUES "
                                  "(3, 'c');\nSELECT now();\nINSERT INTO artist VALUES (4, 'd');\n")
        self.assertEqual(len(migrate("x.db", "m", connect=connect)), 1)
        self.assertEqual(seen, [[(2,)]])
        self.assertEqual(self.artists(), ["a", "b", "c", "d"])

    # -------------------------------------------------------------- what it may do to its copy

    def test_a_script_that_removes_its_copy_is_refused(self):
        self.py_script("0002-b.py", "connection.close(); os.unlink(sys.argv[1])")
        self.stays_as_it_was("removed")

    def test_a_script_that_spoils_its_copy_is_refused(self):
        self.sql("CREATE TABLE u AS SELECT zeroblob(100000) AS x")
        for text, part in (("open(sys.argv[1], 'rb+').truncate(4096 + 3000)", "damaged"),
                           ("open(sys.argv[1], 'w').close()", "version"),
                           ("open(sys.argv[1], 'w').write('no database ' * 999)", "damaged"),
                           ("os.unlink(sys.argv[1]); os.mkdir(sys.argv[1])", "")):
            for end, code in (("", ""), ("sys.exit(1)", "exit status 1")):
                with self.subTest(text=text, end=end):
                    self.py_script("0002-b.py", "connection.close()", text, end)
                    before = Path("x.db").read_bytes()
                    result = self.refuses(self.go(), "x.db is still at version 1", code or part)
                    self.assertEqual(Path("x.db").read_bytes(), before, result)
                    for name in self.beside():  # a directory is left where it is
                        os.rmdir(name)

    def test_a_database_that_a_script_moves_over_its_copy_becomes_the_database(self):
        for number, statements in enumerate((
                "UPDATE artist SET name = 'x';",
                "PRAGMA journal_mode = WAL; UPDATE artist SET name = 'y';",
                "DELETE FROM album; VACUUM; UPDATE artist SET name = 'z';"), 2):
            self.py_script(f"000{number}-b.py", f"""\
                new = sqlite3.connect("new.db", isolation_level=None)
                connection.backup(new)
                new.executescript({statements!r})
                connection.close()
                new.close()
                os.replace("new.db", sys.argv[1])
                """)
            self.works(self.go())
            self.assertEqual(self.version(), number)
            self.assertEqual(self.artists(), ["  xyz"[number]] * 2)
            self.assertEqual(self.sql("PRAGMA integrity_check"), [("ok",)])
            self.assertEqual(self.beside(), set())

    @posix_only
    def test_the_copy_and_the_backup_are_as_private_as_the_database(self):
        os.chmod("x.db", 0o640)
        if os.getuid() == 0:
            os.chown("x.db", 1234, 1235)
        self.py_script("0002-b.py", """\
            import json
            stats = {name: os.stat(name) for name in os.listdir(".") if name.startswith("x.db")}
            with open("seen", "w") as file:
                json.dump([(name, s.st_mode & 0o777, s.st_uid, s.st_gid)
                           for name, s in stats.items()], file)
            """)
        self.addCleanup(os.umask, os.umask(0))
        self.works(self.go("--backup"))
        owner = os.stat("x.db").st_uid, os.stat("x.db").st_gid
        seen = json.loads(Path("seen").read_text())
        self.assertEqual(len([name for name, *_ in seen if "-copy-" in name]), 1, seen)
        self.assertEqual(len([name for name, *_ in seen if name.endswith(".backup")]), 1, seen)
        self.assertEqual({tuple(rest) for name, *rest in seen if name[-4:] not in ("-shm", "-wal")},
                         {(0o640, *owner)}, seen)

    def test_a_script_that_spoils_its_copy_is_at_fault_also_with_a_connect_of_its_own(self):
        self.py_script("0002-b.py", "connection.close()",
                       "open(sys.argv[1], 'w').write('no database' * 999)")
        before = self.dump()
        for options in ({}, {"connect": lambda path: sqlite3.connect(path)}):
            with self.assertRaisesRegex(MigrationError, "it has damaged the database that it was"):
                migrate("x.db", "m", **options)
            self.assertEqual(self.dump(), before)

    # -------------------------------------------------------------- processes that outlive it

    @posix_only
    def test_processes_that_a_script_leaves_behind_are_ended_and_the_script_has_failed(self):
        for end, part in (("exit 0", "processes that it started"), ("exit 1", "exit status 1")):
            self.sh_script("0002-b.sh", "sleep 1000 > /dev/null 2>&1 &", "echo $! > pid", end)
            before = self.dump()
            self.refuses(self.go("--timeout", "0.3"), part)
            self.assertEqual(self.dump(), before)
            self.wait_for(lambda: self.has_ended(int(Path("pid").read_text())), "its end")

    def has_ended(self, pid):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with contextlib.suppress(OSError):  # nobody may have waited for it
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return False

    @posix_only
    def test_processes_that_end_in_time_are_waited_for_and_their_work_counts(self):
        meeting = Meeting(self)
        self.sh_script("0002-b.sh", '{ meet; sql "$1" "INSERT INTO artist VALUES (3, \'c\')"; } &')
        process = self.start()
        meeting.wait(process)
        self.assertIn("0002-b.sh has ended, but not all processes that it started",
                      process.stderr.readline())
        meeting.let_go()
        self.works(self.end(process))
        self.assertEqual(self.artists(), ["a", "b", "c"])

    @posix_only
    def test_a_process_that_cannot_be_ended_can_only_write_to_the_copy(self):
        meeting = Meeting(self)
        self.py_script("late.py", "print('here', flush=True); meet()",
                       "try: execute('INSERT INTO artist VALUES (3, 3)')",
                       "except sqlite3.Error: pass", "finally: meet()").rename("late.py")
        self.py_script("0002-b.py", """\
            late = subprocess.Popen([sys.executable, "late.py", sys.argv[1]],
                                    start_new_session=True, stdout=subprocess.PIPE)
            late.stdout.readline()
            execute("DELETE FROM album")
            """)
        self.works(self.go())
        meeting.receive()
        meeting.let_go()
        meeting.receive()
        self.assertEqual(self.sql("SELECT name FROM artist"), [("a",), ("b",)])
        meeting.let_go()
        self.assertEqual((self.version(), self.sql("SELECT * FROM album")), (2, []))


class WorkingCopiesInWal(WorkingCopies):
    mode = "wal"

    def test_a_script_that_leaves_wal_mode_elsewhere_than_at_its_head_is_warned_of(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);\nPRAGMA journal_mode = DELETE;\n")
        self.assertIn("x.db stays in WAL mode after 0002-b.sql", self.works(self.go()).err)
        self.script("0003-c.sql", "PRAGMA journal_mode = DELETE;\nVACUUM;\n")
        self.assertEqual(self.works(self.go()).err, "")
        self.assertEqual(self.sql("PRAGMA journal_mode"), [("delete",)])


class AttackCase(Case):
    """Whenever a run is killed, interrupted, fails or has no space left: the database is at one
    version, and the next run goes on from there and leaves nothing behind."""

    pages = 16  # that a backup copies at a time, so that there are many moments within one

    def setUp(self):
        super().setUp()
        self.addCleanup(setattr, fastmigrate, "BACKUP_PAGES", fastmigrate.BACKUP_PAGES)
        fastmigrate.BACKUP_PAGES = self.pages
        self.create()
        self.script("0001-a.sql", "CREATE TABLE written (n);\nCREATE TABLE log (n, pad);\n"
                                  + "INSERT INTO log VALUES (1, zeroblob(3000));\n" * 90)
        migrate("x.db", "m")
        shutil.copy("x.db", "at-1.db")
        for number in (2, 3):
            self.script(f"000{number}-x.sql", "-- fastmigrate: no-transaction\n"
                        f"UPDATE log SET n = {number}, pad = zeroblob(3100) WHERE rowid < 40;\n"
                        f"UPDATE log SET n = {number}, pad = zeroblob(2900) WHERE rowid >= 40;\n")

    def start_over(self):
        """Put the database at version 1, whatever lies there."""
        for name in [*self.beside(), "x.db"]:
            os.unlink(name)
        shutil.copy("at-1.db", "x.db")

    def connecting(self, at):
        return connecting(at, "" if self.mode == "wal" else self.mode)

    def check(self, why):
        """The database is at one version, whole. Return that version."""
        version = self.version()
        self.assertIn(version, (1, 2), why)
        self.assertEqual(self.sql("SELECT n, count(*) FROM log GROUP BY n"), [(version, 90)], why)
        self.assertEqual(self.sql("PRAGMA integrity_check"), [("ok",)], why)
        return version

    def check_and_go_on(self, why):
        """The database is whole, also when the next run has made it so. Return its version."""
        version = self.check(why)
        self.works(self.go(connect=self.connecting(str)))
        self.assertEqual(self.sql("SELECT n, count(*) FROM log GROUP BY n"), [(3, 90)], why)
        self.assertEqual(self.beside() - {"x.db-journal"}, set(), why)
        return version

    def at_each_call(self, act):
        """Run to version 2 again and again, and act at each of its calls of SQLite in turn, with
        the number of the call, in a process of its own. Yield what came of it, and at which call
        it was."""
        ended = False
        for last in range(1, 400):
            self.start_over()
            calls = []

            def at(call, calls=calls, last=last):
                calls.append(call)
                if len(calls) == last:
                    act(last)

            def run(at=at, calls=calls, last=last):
                result = self.go("--to", "2", connect=self.connecting(at))
                return result if len(calls) >= last else None

            result = Forked(run).result()
            if (result.code, result.out) == (0, ""):
                ended = True
                break  # the run was over before
            yield result, f"call {last}: {result}"
        self.assertTrue(ended, "the run never ended")
        self.assertGreater(last, 40)


@posix_only
class Kills(AttackCase):
    def test_killed_at_any_call(self):
        versions = []
        for result, why in self.at_each_call(lambda _: os.kill(os.getpid(), signal.SIGKILL)):
            self.assertEqual(result.code, -signal.SIGKILL, why)
            versions.append(self.check_and_go_on(why))
        self.assertEqual(set(versions), {1, 2})
        self.assertEqual(versions, sorted(versions))  # there is one moment at which it changes

    def test_a_disk_that_is_full_at_any_size(self):
        import resource
        size = os.path.getsize("x.db")
        for limit in [*range(0, size + 40_000, 24_576), size, size + 4096, 2 * size]:
            for name in ("0002-x.sql", "0002-x.py"):
                os.unlink("m/0002-x.sql")
                if name.endswith(".sql"):
                    self.script(name, Path("m/0003-x.sql").read_text().replace("n = 3", "n = 2"))
                else:
                    self.py_script(name, "execute('UPDATE log SET n = 2, pad = zeroblob(3100)')")
                self.start_over()

                def run(limit=limit):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                    return self.go("--to", "2", connect=self.connecting(str))

                result = Forked(run).result()
                why = f"{limit} of {size} bytes, {name}: {result}"
                version = self.check(why)
                self.assertEqual(result.code, int(version == 1), why)
                if version == 1:
                    self.refuses(result, "x.db")
                self.assertEqual(self.beside() - {"x.db-journal"}, set(), why)
                os.unlink(f"m/{name}")
                self.script("0002-x.sql", Path("m/0003-x.sql").read_text().replace("= 3", "= 2"))
        self.assertEqual(version, 2, why)  # the last had space enough


class KillsInWal(Kills):
    mode = "wal"


class KillsWhereEachConnectionSetsWal(Kills):
    mode = "wal"

    def connecting(self, at):
        return connecting(at, "wal")  # for the connections to working copies, too


class KillsInTruncate(Kills):
    mode = "truncate"


class KillsInPersist(Kills):
    mode = "persist"


@posix_only
class Attacks(AttackCase):
    def test_interrupted_at_any_call(self):
        def interrupt(call):
            os.kill(os.getpid(), signal.SIGINT if call % 2 else signal.SIGTERM)

        for result, why in self.at_each_call(interrupt):
            version = self.check(why)
            self.assertIn(result.code, (130, 143, 0), why)
            if result.code:
                self.assertIn(f"interrupted: x.db is at version {version}", result.err, why)
            else:
                self.assertEqual(version, 2, why)
            self.assertEqual(self.beside() - {"x.db-journal"}, set(), why)

    def test_failed_at_any_call(self):
        def fail(call):
            raise sqlite3.OperationalError("disk I/O error")

        for result, why in self.at_each_call(fail):
            version = self.check(why)
            self.assertIn(result.code, (0, 1), why)
            if result.code:
                self.assertEqual(len(re.findall("(?m)^error: ", result.err)), 1, why)
                self.assertNotIn("Traceback", result.err, why)
                self.assertIn("x.db", result.err, why)
            if version == 2:
                self.assertNotIn("Nothing was changed", result.err, why)
                self.assertNotIn("still at version", result.err, why)
            self.assertEqual(self.beside() - {"x.db-journal"}, set(), why)

    def test_the_write_lock_is_held_from_before_the_script_to_the_end_of_the_swap(self):
        for lock in ("BEGIN IMMEDIATE", "INSERT INTO log VALUES (9, 'lost')"):
            self.start_over()
            running, tries = [], []

            def at(call, running=running, tries=tries, lock=lock):
                if call.startswith("UPDATE log SET"):
                    running.append(call)
                if not running:
                    return
                with contextlib.closing(sqlite3.connect("x.db", timeout=0,
                                                        isolation_level=None)) as other:
                    try:
                        other.execute(lock)
                    except sqlite3.OperationalError as error:
                        tries.append(str(error))
                    else:
                        other.execute("DELETE FROM log WHERE n = 9")
                        self.assertEqual(other.execute("SELECT version FROM _meta").fetchall(),
                                         [(2,)], call)

            migrate("x.db", "m", to=2, connect=self.connecting(at))
            self.assertEqual(set(tries), {"database is locked"})
            self.assertGreater(len(tries), 10)
            self.assertEqual(self.check_and_go_on(tries), 2)

    def test_what_is_written_at_any_call_before_the_lock_is_not_lost(self):
        ended, seen = False, []
        for last in range(1, 400):
            self.start_over()
            calls = []

            def at(call, calls=calls, last=last):
                calls.append(call)
                if len(calls) == last:
                    with contextlib.suppress(sqlite3.OperationalError):
                        self.sql("INSERT INTO written VALUES (1)", timeout=0)
                        calls.append("written")

            migrate("x.db", "m", to=2, connect=self.connecting(at))
            if len(calls) < last:
                ended = True
                break
            written = calls.count("written")
            seen.append(bool(written))
            self.assertEqual(self.sql("SELECT count(*) FROM written"), [(written,)], calls[:last])
            self.assertEqual(self.check(calls[:last]), 2)
        self.assertTrue(ended)
        self.assertEqual(set(seen), {True, False})

    def test_the_copies_of_killed_runs_go_with_the_next_that_has_a_script_to_run_on_one(self):
        names = {f"x.db-copy-{kind}-12345-0a1b2c{end}" for kind in ("0002", "backup", "restore")
                 for end in ("", "-journal", "-wal", "-shm")}
        others = {"x.db-copy-2-12345-0a1b2c", "x.db-copy-0002-12345-0a1b2c.old", "x.db-copy-",
                  "y.db-copy-0002-12345-0a1b2c", "x.db-snapshot"}
        for name in names | others:
            Path(name).write_text("half a copy")
        self.works(self.go("--to", "1"))
        self.assertEqual(names - self.beside(), set())  # nothing to do, and nothing looked at
        self.works(self.go("--to", "2"))
        self.assertEqual((self.beside() | self.beside("y.db")) - {"x.db-journal"}, others)

    def test_a_leftover_that_cannot_be_removed_stops_nothing(self):
        os.mkdir("x.db-copy-0002-12345-0a1b2c")
        self.works(self.go("--to", "2"))
        self.assertEqual(self.check(""), 2)

    def test_random_kills_of_racing_runners_beside_a_writer_that_counts(self):
        generator = random.Random(11)
        for number in range(4, 10):
            self.script(f"000{number}-x.sql", "-- fastmigrate: no-transaction\n"
                        f"UPDATE log SET n = {number} WHERE n < {number};\n")
        acknowledged, over = [], threading.Event()

        def write():
            with contextlib.closing(sqlite3.connect("x.db", timeout=60,
                                                    isolation_level=None)) as connection:
                while not over.is_set():
                    with contextlib.suppress(sqlite3.OperationalError):
                        connection.execute("INSERT INTO written VALUES (?)", (len(acknowledged),))
                        acknowledged.append(1)
                    over.wait(0.001)  # it is not to starve the others

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(4):
                processes = [self.start() for _ in range(2)]
                for process in processes:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(generator.uniform(0.05, 0.3))
                    process.kill()
                    process.wait()
            results = [self.end(process) for process in [self.start() for _ in range(2)]]
        finally:
            over.set()
            writer.join()
        for result in results:
            self.works(result)
        self.assertEqual(self.sql("SELECT n, count(*) FROM log GROUP BY n"), [(9, 90)], results)
        self.assertEqual(self.sql("SELECT count(*) FROM written"), [(len(acknowledged),)], results)


class AttacksInWal(Attacks):
    mode = "wal"


@posix_only
class Crashes(Case):
    """Signals from outside while a script runs, and runs that meet."""

    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        migrate("x.db", "m")
        self.meeting = Meeting(self)

    def slow_script(self, *lines):
        """A script that has written half of its work when it arrives at the meeting."""
        self.py_script("0002-b.py", "with open('pid', 'w') as file: file.write(str(os.getpid()))",
                       "execute('INSERT INTO a VALUES (1)'); meet()",
                       "execute('INSERT INTO a VALUES (2)')", *lines)

    def in_the_script(self, *arguments, **options):
        """Start a run and wait until it is in its script."""
        process = self.start(*arguments, **options)
        self.meeting.wait(process)
        return process

    def quick_script(self):
        self.script("0002-b.py").unlink()
        self.sh_script("0002-b.sh", 'sql "$1" "INSERT INTO a VALUES (3)"')

    def stands_at_1(self, result):
        self.assertEqual((self.version(), self.sql("SELECT * FROM a")), (1, []), result)
        self.assertEqual(self.beside() - self.copies(), set(), result)

    def test_a_runner_that_is_killed_leaves_the_database_alone_and_a_copy_for_the_next_run(self):
        self.slow_script()
        for group in (False, True):
            process = self.in_the_script(start_new_session=True)
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            self.stands_at_1("")
            self.assertEqual(len(self.copies()), 1)
        self.quick_script()
        self.works(self.go())
        self.assertEqual((self.version(), self.sql("SELECT * FROM a")), (2, [(3,)]))
        self.assertEqual(self.beside(), set())
        self.meeting.let_go()  # what is left of the two scripts writes to nothing that counts
        self.meeting.let_go()
        self.assertEqual(self.sql("SELECT * FROM a"), [(3,)])

    def test_a_script_whose_runner_was_killed_goes_on_beside_the_next_run_and_harms_nothing(self):
        self.py_script("0002-b.py", "execute('INSERT INTO a VALUES (1)'); meet()",
                       "try: execute('INSERT INTO a VALUES (2)')",
                       "except sqlite3.Error: pass", "finally: meet()")
        self.in_the_script().kill()
        self.quick_script()
        self.works(self.go("--timeout", "5"))
        self.meeting.let_go()
        self.meeting.receive()
        self.meeting.let_go()
        self.assertEqual((self.version(), self.sql("SELECT * FROM a")), (2, [(3,)]))

    def test_a_script_that_is_killed_has_failed(self):
        self.slow_script()
        for number in (signal.SIGKILL, signal.SIGTERM):
            process = self.in_the_script()
            os.kill(int(Path("pid").read_text()), number)
            result = self.end(process)
            self.refuses(result, f"killed by {number.name}", "x.db is still at version 1")
            self.stands_at_1(result)

    def test_a_script_that_kills_its_runner_has_not_run(self):
        self.sh_script("0002-b.sh", 'sql "$1" "INSERT INTO a VALUES (1)"', "kill -9 $PPID")
        result = self.end(self.start())
        self.assertEqual(result.code, -signal.SIGKILL, result)
        self.stands_at_1(result)
        self.quick_script()
        self.works(self.go())
        self.assertEqual((self.sql("SELECT * FROM a"), self.beside()), ([(3,)], set()))

    def test_a_stopped_runner_holds_its_lock_and_goes_on(self):
        self.slow_script()
        process = self.in_the_script()
        os.kill(process.pid, signal.SIGSTOP)
        self.meeting.let_go()
        self.refuses(self.go("--timeout", "0.2"), "database is locked",
                     f"process {process.pid}, which runs the script 0002")
        with self.assertRaisesRegex(sqlite3.OperationalError, "locked"):
            self.sql("INSERT INTO a VALUES ('lost')", timeout=0)
        os.kill(process.pid, signal.SIGCONT)
        self.works(self.end(process))
        self.assertEqual((self.version(), self.sql("SELECT * FROM a")), (2, [(1,), (2,)]))

    def test_a_reader_that_holds_the_swap_up_for_too_long_discards_the_work_of_the_script(self):
        self.slow_script()
        process = self.in_the_script("--timeout", "0.3")
        reader = sqlite3.connect("x.db", isolation_level=None)
        self.addCleanup(reader.close)
        reader.execute("BEGIN")
        self.assertEqual(reader.execute("SELECT * FROM a").fetchall(), [])
        self.meeting.let_go()
        result = self.end(process)
        if self.mode == "wal":  # there, readers hold nobody up
            self.works(result)
            self.assertEqual(reader.execute("SELECT * FROM a").fetchall(), [])
        else:
            self.refuses(result, "0002-b.py: its work was discarded", "x.db is still at version 1")
        reader.execute("COMMIT")
        self.assertEqual(reader.execute("SELECT * FROM a").fetchall(),
                         [(1,), (2,)] if self.mode == "wal" else [])
        reader.close()
        self.assertEqual(self.beside(), set())

    def test_a_reader_that_ends_in_time_is_waited_for(self):
        self.slow_script()
        process = self.in_the_script()
        reader = sqlite3.connect("x.db", isolation_level=None)
        self.addCleanup(reader.close)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM a").fetchall()
        self.meeting.let_go()
        if self.mode != "wal":
            self.assertIn("waiting up to 30 s", process.stderr.readline())
        reader.close()
        self.works(self.end(process))
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,), (2,)])

    def test_what_others_write_before_and_after_a_script_is_kept(self):
        acknowledged = []
        self.slow_script()
        self.sql("INSERT INTO a VALUES ('before')")
        process = self.in_the_script()

        def write():
            self.sql("INSERT INTO a VALUES ('after')", timeout=60)
            acknowledged.append("after")

        writer = threading.Thread(target=write)
        writer.start()
        self.meeting.let_go()
        result = self.works(self.end(process))
        writer.join()
        self.assertEqual(acknowledged, ["after"])
        self.assertEqual(self.sql("SELECT * FROM a"), [("before",), (1,), (2,), ("after",)], result)

    def test_a_hot_journal_of_an_application_that_was_killed_is_rolled_back_first(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.sql("CREATE TABLE big AS WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 "
                 "FROM r WHERE n < 900) SELECT n, zeroblob(900) AS pad FROM r")

        def die():
            connection = sqlite3.connect("x.db", isolation_level=None)
            connection.execute("PRAGMA cache_size = 5")
            connection.execute("BEGIN")
            connection.execute("UPDATE big SET n = -1, pad = randomblob(900)")
            os.kill(os.getpid(), signal.SIGKILL)

        self.assertEqual(Forked(die).result().code, -signal.SIGKILL)
        self.assertNotEqual(self.beside(), set())
        self.quick_script()
        self.works(self.go())
        self.assertEqual(self.sql("SELECT count(*) FROM big WHERE n > 0"), [(900,)])
        self.assertEqual(self.sql("PRAGMA integrity_check"), [("ok",)])
        self.assertEqual(self.beside(), set())


class CrashesInWal(Crashes):
    mode = "wal"


@posix_only
class Interrupts(Case):
    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        migrate("x.db", "m")
        self.meeting = Meeting(self)

    def interrupted(self, number, *arguments, by_lock=False):
        """Run, wait until a script arrives at the meeting, or the database is locked, and
        interrupt that run."""
        run = Forked(lambda: self.go(*arguments))
        if by_lock:
            self.wait_for(self.is_locked, "the run")
        else:
            self.meeting.receive()
        os.kill(run.pid, number)
        result = run.result()
        self.assertEqual(result.code, 128 + number, result)
        self.assertIn("interrupted: x.db is at version 1", result.err)
        self.assertNotIn("Traceback", result.err)
        self.assertEqual((self.version(), self.sql("SELECT * FROM a")), (1, []), result)
        self.assertEqual(self.beside(), set(), result)
        return result

    def is_locked(self):
        try:
            self.sql("BEGIN IMMEDIATE", timeout=0)
        except sqlite3.OperationalError:
            return True
        return False

    def test_an_interrupt_while_the_journal_mode_is_set_restores_it(self):
        class Connection(sqlite3.Connection):
            def execute(self, statement, *parameters):
                cursor = super().execute(statement, *parameters)
                if statement == "PRAGMA main.journal_mode = wal":
                    cursor.fetchall()
                    raise KeyboardInterrupt
                return cursor

        version = self.version()
        self.script("0009-wal.sql", "PRAGMA journal_mode = WAL;\nCREATE TABLE w (x);\n")
        result = self.go(connect=lambda path: sqlite3.connect(path, factory=Connection))
        self.assertEqual((result.code, self.version()), (130, version), result)
        self.assertEqual(self.sql("PRAGMA journal_mode"), [("delete",)])

    def test_a_long_statement_is_ended_and_rolled_back(self):
        for head in ("", "-- fastmigrate: no-transaction\n"):
            self.script("0002-b.sql", head + "INSERT INTO a WITH RECURSIVE r (n) AS (SELECT 1 "
                        "UNION ALL SELECT n + 1 FROM r) SELECT n FROM r WHERE n < 0;")
            for number in (signal.SIGINT, signal.SIGTERM):
                self.interrupted(number, by_lock=True)

    def test_a_signal_while_a_function_of_the_application_runs_is_not_lost(self):
        def connect(path):
            connection = sqlite3.connect(path)
            connection.create_function("function", 1, function)
            connection.create_collation("collation", lambda a, b: function((a > b) - (a < b)))
            return connection

        def function(value):
            if not came:
                came.append(1)
                os.kill(os.getpid(), signal.SIGINT)
            return value

        for head in ("", "-- fastmigrate: no-transaction\n"):
            for statement in ("INSERT INTO a SELECT function(1) FROM sqlite_master;",
                              "INSERT INTO a SELECT 'a' < 'b' COLLATE collation;"):
                came = []
                self.script("0002-b.sql", f"{head}{statement}\nCREATE TABLE b (x);\n")
                result = Forked(lambda: self.go(connect=connect)).result()
                self.assertEqual(result.code, 130, result)
                self.assertIn("x.db is at version 1", result.err)
                self.assertEqual(self.tables(), {"a"})

    def test_a_long_file_is_ended_and_rolled_back(self):
        self.script("0002-b.sql", "INSERT INTO a VALUES (1);\n" * 2_000_000)
        self.interrupted(signal.SIGINT, by_lock=True)

    def test_a_script_is_ended_with_all_that_it_has_started(self):
        self.sh_script("0002-b.sh", 'sql "$1" "INSERT INTO a VALUES (1)"', "sleep 1000 &",
                       f'printf . > "{self.home}/arrived"', "sleep 1000", "true")
        os.mkfifo("alive")
        text = Path("m/0002-b.sh").read_text()
        self.script("0002-b.sh", text.replace("#!/bin/sh", "#!/bin/sh\nexec 9> alive"))
        for number in (signal.SIGINT, signal.SIGTERM):
            alive = os.open("alive", os.O_RDONLY | os.O_NONBLOCK)
            self.addCleanup(os.close, alive)
            self.interrupted(number)
            self.assertTrue(select.select([alive], [], [], 60)[0], "something lives on")
            self.assertEqual(os.read(alive, 1), b"")

    def test_a_script_that_ignores_signals_is_killed(self):
        self.py_script("0002-b.py", "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
                       "execute('INSERT INTO a VALUES (1)'); meet()")
        self.interrupted(signal.SIGINT)

    def test_a_signal_while_the_process_of_a_script_starts_is_not_lost(self):
        class Popen(subprocess.Popen):
            def __init__(self, *arguments, **options):
                when(0)
                super().__init__(*arguments, **options)
                when(1)

        os.mkfifo("alive")
        self.py_script("0002-b.py", "alive = open('alive', 'w')",
                       "execute('INSERT INTO a VALUES (1)'); meet()")
        for number in (signal.SIGINT, signal.SIGTERM):
            for moment in (0, 1):
                alive = os.open("alive", os.O_RDONLY | os.O_NONBLOCK)
                self.addCleanup(os.close, alive)

                def when(now, moment=moment, number=number):
                    if now == moment:
                        os.kill(os.getpid(), number)

                def run():
                    with mock.patch("subprocess.Popen", Popen):
                        return self.go()

                result = Forked(run).result()
                self.assertEqual(result.code, 128 + number, result)
                self.assertIn("x.db is at version 1", result.err)
                self.assertEqual(self.sql("SELECT * FROM a"), [])
                self.assertEqual(self.beside(), set(), result)
                # a process that had been started holds the fifo open until it is ended
                self.wait_for(lambda alive=alive: self.is_at_end(alive), "the end of the script")

    def is_at_end(self, descriptor):
        try:
            return os.read(descriptor, 1) == b""
        except BlockingIOError:
            return False

    def test_a_second_signal_does_not_disturb_the_end(self):
        self.py_script("0002-b.py", "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(),"
                       "signal.SIGINT) or os.kill(os.getppid(), signal.SIGTERM) or sys.exit())",
                       "execute('INSERT INTO a VALUES (1)'); meet()")
        self.interrupted(signal.SIGINT)

    @unittest.skipIf(IS_PYPY, "PyPy prints what is raised there, and goes on")
    def test_an_interrupt_in_a_function_that_sqlite_calls_is_not_lost(self):
        class Interrupted(sqlite3.Connection):
            """Each function that SQLite is to call raises an interrupt at one of its calls."""

            def set_authorizer(self, function):
                super().set_authorizer(self.counted(function))

            def set_progress_handler(self, function, number):
                super().set_progress_handler(self.counted(function), 100)

            def counted(self, function):
                def call(*details):
                    if function is None:
                        return None
                    calls.append(details)
                    if len(calls) == last:
                        raise KeyboardInterrupt
                    return function(*details)
                return call if function else None

        for text in ("CREATE TABLE b (x);\nINSERT INTO b VALUES (1), (2);\n",
                     "-- fastmigrate: no-transaction\nCREATE TABLE b (x);\nVACUUM;\n"):
            self.script("0002-b.sql", text)
            last, ended = 1, False
            while not ended:
                calls = []
                try:
                    migrate("x.db", "m",
                            connect=lambda path: sqlite3.connect(path, factory=Interrupted))
                except (KeyboardInterrupt, MigrationError):  # as SQLite words it
                    self.assertEqual((self.version(), self.tables()), (1, {"a"}), last)
                    self.assertEqual(self.beside(), set())
                    last += 1 + last // 20
                else:
                    self.assertLess(len(calls), last, "an interrupt was lost")
                    ended = True
            self.assertGreater(last, 1)  # at least one was tried
            self.sql("DROP TABLE b")
            fastmigrate.set_db_version("x.db", 1)

    def test_a_denied_load_extension_is_an_error_and_no_interrupt(self):
        self.script("0002-b.sql", "SELECT load_extension('none');")
        result = self.refuses(self.go(), "0002-b.sql:1")  # some SQLites do not know it at all
        self.assertRegex(result.err, "not authorized|no such function: load_extension")

    def test_a_wait_for_a_lock_is_ended(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);")
        self.script("0003-c.py")
        for to in ("2", "3"):
            holder = sqlite3.connect("x.db", isolation_level=None)
            self.addCleanup(holder.close)
            holder.execute("BEGIN IMMEDIATE")
            process = self.start("--to", to)
            self.assertIn("waiting up to 30 s", process.stderr.readline())
            process.send_signal(signal.SIGINT)
            result = self.end(process)
            self.assertEqual(result.code, 130, result)
            self.assertIn("is at version", result.err)
            holder.close()
            self.assertEqual(self.beside(), set(), result)
            self.works(self.go("--to", to))

    def test_a_rehearsal_is_ended_with_its_script(self):
        self.py_script("0002-b.py", "execute('INSERT INTO a VALUES (1)'); meet()")
        self.interrupted(signal.SIGINT, "--rehearse")


class ManyStarters(Case):
    def storm(self, number):
        """Start many programs at once that create and migrate one database."""
        code = ("import sys; sys.path.insert(0, sys.argv[1]); import fastmigrate as f\n"
                "f.ensure_versioned_db('x.db')\n"
                "sys.exit(not f.run_migrations('x.db', 'm', timeout=120))\n")
        processes = [subprocess.Popen([sys.executable, "-c", code, str(MODULE.parent)],
                                      stderr=subprocess.PIPE, text=True) for _ in range(number)]
        for process in processes:
            _, err = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, err)

    def test_sixteen_processes_create_and_migrate_each_script_once(self):
        self.script("0001-a.sql", "PRAGMA journal_mode = WAL;\nCREATE TABLE log (n);"
                    if self.mode == "wal" else "CREATE TABLE log (n);")
        for n in range(2, 12):
            self.script(f"{n:04d}-x.sql", f"INSERT INTO log VALUES ({n});")
        self.py_script("0012-x.py", "execute('INSERT INTO log VALUES (12)')")
        self.script("0013-x.sql", "INSERT INTO log VALUES (13); VACUUM;")
        Path("x.db").touch()  # as a mounted volume has it: no database yet
        self.storm(16)
        self.assertEqual([n for n, in self.sql("SELECT n FROM log")], list(range(2, 14)))
        self.assertEqual(self.beside(), set())

    def test_of_many_that_create_one_says_so(self):
        results = [self.end(process) for process in [self.start("--createdb") for _ in range(8)]]
        self.assertEqual([result.code for result in results], [0] * 8, results)
        self.assertEqual(sum("created" in result.out for result in results), 1, results)
        self.assertEqual(self.beside(), set())

    @posix_only
    def test_a_file_system_without_hard_links_does_as_well(self):
        self.script("0001-a.py", PY_INSERT + "c.execute('CREATE TABLE a (x)')")
        refuse = mock.Mock(side_effect=OSError(1, "Operation not permitted"))
        with mock.patch("os.link", refuse), mock.patch("os.fchmod", refuse):
            runs = [Forked(lambda: self.go("--createdb")) for _ in range(6)]
            results = [run.result() for run in runs]
            for result in results:
                self.works(result)
            self.assertEqual(sum("created" in result.out for result in results), 1, results)
            self.works(self.go("--backup"))
        (backup,) = self.beside()
        self.assertEqual(self.version(backup), 0)

    @posix_only
    def test_a_runner_waits_for_the_script_of_another_and_names_it_once(self):
        self.create()
        meeting = Meeting(self)
        self.py_script("0001-a.py", "meet()")
        first = self.start()
        meeting.wait(first)
        second = self.end(self.start("--timeout", "1.5"))
        self.refuses(second, "database is locked",
                     f"process {first.pid}, which runs the script 0001")
        self.assertEqual(second.err.count("waiting up to 1.5 s"), 1, second)
        third = self.start()
        self.assertIn("waiting up to 30 s", third.stderr.readline())
        meeting.let_go()
        for process in (first, third):
            self.assertIn("at version 1", self.works(self.end(process)).out)
        self.assertEqual(self.beside(), set())

    def test_two_databases_migrate_from_one_directory_at_once(self):
        self.py_script("0001-a.py", "execute('CREATE TABLE a (x)')")
        errors = []

        def run(db):
            try:
                fastmigrate.create_db(db)
                migrate(db, "m")
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(f"{n}.db",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        self.assertEqual([self.tables(f"{n}.db") for n in range(4)], [{"a"}] * 4)

    def test_threads_of_one_process_migrate_one_database_once(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.py_script("0002-a.py", "execute('INSERT INTO a VALUES (1)')")
        self.script("0003-a.sql", "VACUUM; INSERT INTO a VALUES (2);")
        results = []
        threads = [threading.Thread(target=lambda: results.append(
            fastmigrate.run_migrations("x.db", "m"))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, [True] * 5)
        self.assertEqual(self.sql("SELECT x FROM a"), [(1,), (2,)])
        self.assertEqual(self.beside(), set())


class ManyStartersInWal(ManyStarters):
    mode = "wal"


class Waiting(Case):
    def test_a_version_that_cannot_be_read_for_a_moment_is_no_progress(self):
        self.create()
        holder = sqlite3.connect("x.db", isolation_level=None)
        self.addCleanup(holder.close)
        holder.execute("BEGIN IMMEDIATE")
        turns, now = [], [time.monotonic()]

        def connect(path):
            turns.append(path)
            if len(turns) % 2:
                raise sqlite3.OperationalError("database is locked")
            return sqlite3.connect(path)

        def pause(seconds):
            now[0] += 5
            self.assertLess(len(turns), 100, "it waits for ever")

        with mock.patch("time.sleep", pause), mock.patch("time.monotonic", lambda: now[0]), \
                self.assertRaisesRegex(MigrationError, "has held x.db for more than 30 s"):
            fastmigrate.set_db_version("x.db", 1, connect=connect)

    @posix_only
    def test_who_waits_waits_anew_when_the_version_moves(self):
        """Two programs, for which each script lasts 20 s; none may wait longer than 30 s."""
        self.create()
        meeting = Meeting(self)
        for number in range(1, 5):
            self.py_script(f"000{number}-a.py", "meet()", f"open('done-{number}', 'w').close()")
        code = ("import os, sys, time; real = time.monotonic\n"
                "time.monotonic = lambda: real() + 20 * sum(n[:5] == 'done-' for n in os.listdir())\n"
                f"sys.path.insert(0, {str(MODULE.parent)!r}); import fastmigrate\n"
                "sys.exit(fastmigrate.main(['--db', 'x.db', '--migrations', 'm']))\n")
        processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for process in processes:
            self.addCleanup(self.clear_away, process)
        for _ in range(4):
            meeting.receive()  # the script of one of them; the other waits for it
            ready = select.select([process.stderr for process in processes], [], [], 60)[0]
            self.assertTrue(ready, "nobody says that it waits")
            self.assertIn("waiting up to 30 s: process", ready[0].readline())
            meeting.let_go()
        for process in processes:
            self.works(self.end(process))
        self.assertEqual(self.version(), 4)


class UpToDate(Case):
    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        migrate("x.db", "m")

    def test_nothing_is_written(self):
        before = Path("x.db").read_bytes(), os.stat("x.db").st_mtime_ns
        folder = os.stat(".").st_mtime_ns if self.mode == "delete" else None
        self.works(self.go("--backup"))
        self.assertEqual((Path("x.db").read_bytes(), os.stat("x.db").st_mtime_ns), before)
        self.assertEqual(self.beside(), set())
        if folder:
            self.assertEqual(os.stat(".").st_mtime_ns, folder)

    def test_it_works_while_another_connection_holds_the_write_lock(self):
        holder = sqlite3.connect("x.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        holder.execute("INSERT INTO a VALUES (1)")
        self.assertTrue(fastmigrate.run_migrations("x.db", "m", timeout=0))
        holder.close()

    def in_read_only_directory(self, run):
        """Return what a user gets from `run` who can only read ro/x.db, a copy of the database."""
        os.mkdir("ro")
        for name in {"x.db", *(name for name in os.listdir() if name == "x.db-journal")}:
            shutil.copy(name, f"ro/{name}")
            os.chmod(f"ro/{name}", 0o444)
        os.chmod("ro", 0o555)
        self.addCleanup(os.chmod, "ro", 0o755)
        os.chmod(self.home, 0o777)
        for name in ("glob", "pathlib", "urllib.parse", "tempfile", "difflib", "random"):
            __import__(name)  # the user of the child may not be able to read it

        def as_other_user():
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            return run()

        return Forked(as_other_user).result()

    @posix_only
    def test_it_works_on_a_read_only_file_in_a_read_only_directory(self):
        result = self.works(self.in_read_only_directory(
            lambda: self.run_main("--db", "ro/x.db", "--migrations", "m")))
        self.assertIn("ro/x.db is up to date at version 1", result.out)
        self.assertEqual(os.listdir("ro"), ["x.db"])

    @posix_only
    def test_a_read_only_file_can_be_rehearsed_on_and_verified_and_restored_from(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);")

        def run():
            for asked in (["--rehearse"], ["--verify"]):
                self.works(self.run_main("--db", "ro/x.db", "--migrations", "m", *asked))
            restored = self.works(self.run_main("--db", "y.db", "--restore", "ro/x.db"))
            return Result(0, restored.out + fastmigrate.get_db_schema("ro/x.db"))

        schema = fastmigrate.get_db_schema("x.db")
        self.assertIn(schema, self.works(self.in_read_only_directory(run)).out)
        self.assertEqual(fastmigrate.get_db_schema("y.db"), schema)
        self.assertEqual(os.listdir("ro"), ["x.db"])

    @posix_only
    def test_what_was_not_committed_is_never_read_from_a_read_only_place(self):
        def die():
            connection = sqlite3.connect("x.db", isolation_level=None)
            connection.executescript(
                "PRAGMA cache_size = 1; CREATE TABLE big (x); BEGIN; UPDATE _meta SET version = 7;"
                "INSERT INTO big VALUES (zeroblob(999999));")
            os._exit(3)

        self.sql("PRAGMA journal_mode = DELETE")
        Forked(die).result()
        self.assertTrue(os.path.exists("x.db-journal"))
        self.refuses(self.in_read_only_directory(
            lambda: self.run_main("--db", "ro/x.db", "--migrations", "m")), "is read-only")
        self.assertEqual(self.version(), 1)


class UpToDateInWal(UpToDate):
    mode = "wal"


class ForeignKeys(Case):
    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", PARENTS)
        migrate("x.db", "m")

    def albums(self):
        return self.sql("SELECT count(*) FROM album")[0][0]

    def rebuilds(self, text):
        self.script("0002-b.sql", text)
        migrate("x.db", "m")
        self.assertEqual(self.albums(), 3)
        ((sql,),) = self.sql("SELECT sql FROM sqlite_master WHERE name = 'artist'")
        self.assertIn("NOT NULL", sql)

    def test_a_rebuild_keeps_the_children_with_no_pragma(self):
        self.rebuilds(REBUILD)

    def test_a_rebuild_keeps_the_children_with_the_pragma_around(self):
        self.rebuilds("PRAGMA foreign_keys = OFF;" + REBUILD + "PRAGMA foreign_keys = ON;")

    def test_a_rebuild_keeps_the_children_with_the_pragma_and_begin(self):
        self.rebuilds("PRAGMA foreign_keys = OFF;\nBEGIN;" + REBUILD
                      + "COMMIT;\nPRAGMA foreign_keys = ON;")

    def test_a_rebuild_keeps_the_children_with_the_pragma_inside_begin(self):
        self.rebuilds("BEGIN;\nPRAGMA foreign_keys = OFF;" + REBUILD
                      + "PRAGMA foreign_keys = ON;\nCOMMIT;")

    def test_a_rebuild_keeps_the_children_where_connections_enforce_foreign_keys(self):
        def connect(path):
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA foreign_keys = ON")
            return connection

        class Enforcing(sqlite3.Connection):  # as where SQLite is built with them on
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options)
                self.execute("PRAGMA foreign_keys = ON")

        def enforcing(*arguments, **options):
            return real(*arguments, factory=Enforcing, **options)

        self.script("0002-b.sql", REBUILD)
        self.script("0003-c.sql", "-- fastmigrate: no-transaction\n" + REBUILD)
        fastmigrate.migrate("x.db", "m", to=2, connect=connect)
        self.assertEqual(self.albums(), 3)
        fastmigrate.migrate("x.db", "m", to=3, connect=connect)
        self.assertEqual(self.albums(), 3)
        self.script("0004-d.sql", REBUILD)
        self.script("0005-e.sql", "-- fastmigrate: no-transaction\n" + REBUILD)
        real = sqlite3.connect
        sqlite3.connect = enforcing
        try:
            migrate("x.db", "m", connect=enforcing)
        finally:
            sqlite3.connect = real
        self.assertEqual((self.version(), self.albums()), (5, 3))

    def test_a_pragma_that_would_do_nothing_between_begin_and_a_deletion_is_refused(self):
        self.script("0002-b.sql", "PRAGMA foreign_keys = ON;\nBEGIN;\n"
                                  "PRAGMA foreign_keys = OFF;" + REBUILD + "COMMIT;")
        self.refuses(self.go(), "0002-b.sql:5", "before BEGIN")
        self.assertEqual(self.albums(), 3)

    def test_a_cascade_that_is_asked_for_happens(self):
        self.script("0002-b.sql", "PRAGMA foreign_keys = ON;\nDELETE FROM artist WHERE id = 1;")
        migrate("x.db", "m")
        self.assertEqual(self.albums(), 1)
        self.script("0003-c.sql", "CREATE TABLE b (x);\nPRAGMA foreign_keys = ON;\n"
                                  "DELETE FROM artist WHERE id = 2;")
        migrate("x.db", "m")
        self.assertEqual(self.albums(), 0)

    def test_a_new_violation_is_refused_whatever_caused_it(self):
        for text in ("CREATE TEMP TABLE album (x); INSERT INTO album VALUES (1);"
                     "INSERT INTO main.album VALUES (13, 99);",
                     "PRAGMA case_sensitive_like = ON; DELETE FROM artist;",
                     "PRAGMA count_changes = ON; DELETE FROM artist;",
                     "DELETE FROM artist WHERE id = 2;", "UPDATE artist SET id = 5 WHERE id = 2;",
                     "INSERT INTO album VALUES (13, 99);", "UPDATE album SET artist = 99;",
                     "REPLACE INTO artist SELECT 1, 'x'; DELETE FROM artist;",
                     'CREATE TABLE "Ämter" (id INTEGER PRIMARY KEY); CREATE TABLE c (a REFERENCES '
                     '"Ämter"); INSERT INTO c VALUES (1);',
                     "CREATE TABLE p (x); CREATE TABLE c (x REFERENCES p (x), a REFERENCES artist);"
                     "INSERT INTO c VALUES (1, 9);",
                     "CREATE TABLE c (a PRIMARY KEY REFERENCES artist) WITHOUT ROWID;"
                     "INSERT INTO c VALUES (9);"):
            for head in ("", "-- fastmigrate: no-transaction\n"):
                self.script("0002-b.sql", head + text)
                self.refuses(self.go(), "dangling", "no-foreign-key-check", "at version 1")
                self.assertEqual((self.version(), self.albums()), (1, 3), text)

    def test_a_parent_that_is_gone_is_refused_with_its_name_and_the_cure(self):
        for text, parts in (
                ("DROP TABLE artist;", ("the table artist, which does not exist", "Keep artist")),
                ("CREATE TABLE c (a REFERENCES nowhere (id)); INSERT INTO c VALUES (1);",
                 ("the table nowhere, which does not exist",)),
                ("PRAGMA legacy_alter_table = ON; ALTER TABLE artist RENAME TO a2;",
                 ("the table artist, which does not exist",)),
                ("ALTER TABLE artist RENAME TO old; CREATE TABLE artist (id INTEGER PRIMARY KEY); "
                 "INSERT INTO artist SELECT id FROM old; DROP TABLE old;",
                 ("album refers to the table old, which does not exist",
                  "PRAGMA legacy_alter_table = ON"))):
            for head in ("", "-- fastmigrate: no-transaction\n"):
                self.script("0002-b.sql", head + text)
                result = self.go()
                self.refuses(result, "dangling", "at version 1", *parts)
                self.assertNotIn(" row ", result.err)
                self.assertEqual((self.version(), self.albums()), (1, 3), text)
        self.script("0002-b.sql", "PRAGMA legacy_alter_table = ON;\n" + text)
        self.assertEqual(self.works(self.go()).err, "")

    def test_names_are_compared_as_sqlite_does(self):
        self.script("0002-b.sql", 'CREATE TABLE "Ämter" (id INTEGER PRIMARY KEY);'
                    'CREATE TABLE "ämter" (id INTEGER PRIMARY KEY);'
                    'CREATE TABLE posts (a REFERENCES "ÄMTER", b REFERENCES "Ämter");'
                    'INSERT INTO "Ämter" VALUES (1); INSERT INTO posts (b) VALUES (1);')
        self.works(self.go())
        self.script("0003-c.sql", 'DELETE FROM "Ämter";')
        self.refuses(self.go(), "posts row 1 refers to a row of Ämter")
        self.script("0003-c.sql", 'DROP TABLE "ämter"; DELETE FROM "Ämter" WHERE id = 2;')
        self.works(self.go())

    def test_a_reference_that_a_later_part_of_a_long_script_adds_is_checked(self):
        self.script("0002-b.sql", "CREATE TABLE c (a); INSERT INTO album VALUES (13, 1);\n"
                    + "INSERT INTO c VALUES (1);\n" * 20_000
                    + "ALTER TABLE c ADD COLUMN b REFERENCES artist (id);\nUPDATE c SET b = 9;\n")
        self.refuses(self.go(), "it leaves 20000 dangling references: c row 1 refers")

    def test_a_violation_that_is_meant_is_a_warning_with_their_number(self):
        self.script("0002-b.sql", "/* why */\n-- fastmigrate: no-foreign-key-check\n"
                                  "DELETE FROM artist;")
        self.assertIn("3 dangling references", self.works(self.go()).err)

    def test_an_old_violation_is_tolerated_also_through_a_rebuild(self):
        self.sql("INSERT INTO album VALUES (14, 98)")
        self.script("0002-b.sql", "UPDATE album SET artist = artist;")
        self.assertIn("1 reference", self.works(self.go()).err)
        self.script("0003-c.sql", "CREATE TABLE n (artist REFERENCES artist (id), id);"
                    "INSERT INTO n SELECT artist, id FROM album ORDER BY artist DESC;"
                    "DROP TABLE album; ALTER TABLE n RENAME TO album;")
        self.works(self.go())
        self.script("0004-d.sql", "INSERT INTO album VALUES (97, 15);")
        self.refuses(self.go(), "1 dangling reference")

    def test_old_violations_are_tolerated_through_any_renaming(self):
        self.sql("INSERT INTO album VALUES (14, 98)")
        for head in ("", "-- fastmigrate: no-transaction\n"):
            for number, text in enumerate((
                    "ALTER TABLE artist RENAME TO people;", "ALTER TABLE album RENAME TO records;",
                    "ALTER TABLE people RENAME COLUMN id TO key;",
                    "ALTER TABLE records RENAME COLUMN artist TO player;",
                    "ALTER TABLE records RENAME TO album; ALTER TABLE album RENAME COLUMN player TO "
                    "artist; ALTER TABLE people RENAME TO artist; ALTER TABLE artist RENAME COLUMN "
                    "key TO id;"), self.version() + 1):
                self.script(f"{number:04d}-b.sql", head + text)
                self.assertIn("1 reference ", self.works(self.go()).err)

    def test_a_new_violation_in_place_of_an_old_one_is_new(self):
        self.script("0002-b.sql", "CREATE TABLE w (id PRIMARY KEY, a REFERENCES artist) WITHOUT ROWID;")
        migrate("x.db", "m")
        self.sql("INSERT INTO album VALUES (14, 98)")
        self.sql("INSERT INTO w VALUES ('k', 98)")
        for head in ("", "-- fastmigrate: no-transaction\n"):
            self.script("0003-c.sql", head + "UPDATE album SET artist = 97 WHERE id = 14;")
            self.refuses(self.go(), "it leaves 1 dangling reference: album row 14 refers")
            self.script("0003-c.sql", head + "UPDATE w SET a = 97;")
            self.refuses(self.go(), "a row of w with a = 97 refers to a row of artist")
        self.script("0003-c.sh", "exit 0")
        os.unlink("m/0003-c.sql")
        self.assertIn("2 references", self.works(self.go()).err)

    def test_each_script_is_judged_by_what_the_one_before_it_left(self):
        self.sql("INSERT INTO album VALUES (14, 98)")
        self.script("0002-b.sql", "DELETE FROM album WHERE id = 14;")
        self.script("0003-c.sql", "CREATE TABLE b (x);")
        self.script("0004-d.sql", "INSERT INTO album VALUES (14, 98);")
        self.refuses(self.go(), "0004-d.sql", "album row 14", "at version 3")

    def test_a_key_that_cannot_work_does_not_hide_another(self):
        self.script("0002-b.sql", "CREATE TABLE p (x); CREATE TABLE c (x REFERENCES p (x), "
                    "a REFERENCES artist); INSERT INTO c VALUES (1, 1);")
        self.assertIn("c has a foreign key that cannot work", self.works(self.go()).err)
        self.script("0003-c.sql", "DELETE FROM artist WHERE id = 1; DELETE FROM album;")
        self.refuses(self.go(), "c row 1 refers to a row of artist")

    def test_keys_are_compared_as_sqlite_compares_them(self):
        self.script("0002-b.sql", """
            CREATE TABLE p (a TEXT COLLATE NOCASE, b NUMERIC, PRIMARY KEY (a, b));
            CREATE TABLE c (b TEXT, a INTEGER, FOREIGN KEY (a, b) REFERENCES p);
            INSERT INTO p VALUES ('x', 1), ('2', 'y');
            INSERT INTO c VALUES ('1.0', 'X'), ('y', 2), (NULL, 'nope'), ('nope', NULL);
        """)
        self.assertEqual(self.works(self.go()).err, "")
        self.script("0003-c.sql", "INSERT INTO c VALUES ('Y', 2);")
        self.refuses(self.go(), "it leaves 1 dangling reference: c row 5")

    def test_text_that_is_not_utf8_is_checked_too(self):
        self.script("0002-b.sql", "CREATE TABLE p (a PRIMARY KEY); CREATE TABLE c (a REFERENCES p);"
                    "INSERT INTO c VALUES (CAST(x'e9ff' AS TEXT));")
        self.refuses(self.go(), "c row 1 refers")

    def test_each_script_answers_for_itself_however_they_are_batched(self):
        self.script("0002-b.sql", "DELETE FROM artist WHERE id = 2;")
        self.script("0003-c.sql", "INSERT INTO artist VALUES (2, 'back');")
        self.refuses(self.go(), "0002-b.sql")
        self.assertEqual(self.version(), 1)


EVENTS = """
CREATE TABLE ev (id INTEGER PRIMARY KEY, what TEXT);
CREATE TABLE tasks (id INTEGER PRIMARY KEY, name TEXT);
CREATE TRIGGER noted AFTER UPDATE ON tasks BEGIN INSERT INTO ev (what) VALUES (new.name); END;
CREATE TRIGGER added AFTER INSERT ON tasks BEGIN SELECT 1; END;
CREATE VIEW names AS SELECT name FROM tasks;
"""


SWAP = ("ALTER TABLE ev RENAME TO ev_old; CREATE TABLE ev (id INTEGER PRIMARY KEY, what TEXT NOT NULL);"
        "INSERT INTO ev SELECT * FROM ev_old; DROP TABLE ev_old;")


class EndState(Case):
    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", EVENTS)
        migrate("x.db", "m")

    def warns(self, script, *parts):
        """The run succeeds, with one warning that names the script and holds the parts."""
        result = self.works(self.go())
        self.assertEqual(result.err.count("warning: after "), 1, result)
        for part in (f"after {script}, ", *parts):
            self.assertIn(part, result.err)

    def test_an_index_that_a_foreign_key_needed_is_missed(self):
        self.script("0002-b.sql", "CREATE TABLE p (u); CREATE UNIQUE INDEX pu ON p (u);"
                                  "CREATE TABLE c (x REFERENCES p (u));")
        self.works(self.go())
        self.script("0003-c.sql", "DROP INDEX pu;")
        self.assertIn("after 0003-c.sql, table c has a foreign key that cannot work",
                      self.works(self.go()).err)

    def test_a_run_that_fails_warns_of_what_its_other_scripts_broke(self):
        self.script("0002-b.sql", SWAP)
        self.script("0003-c.sql", "SELECT nope;")
        result = self.go()
        self.assertEqual((result.code, self.version()), (1, 2), result)
        self.assertIn("warning: after 0002-b.sql, trigger noted does not compile", result.err)

    def test_a_trigger_that_follows_a_renamed_table_is_reported(self):
        self.script("0002-b.sql", SWAP)
        self.script("0003-c.sql", "CREATE TABLE c (x);")
        self.assertEqual(self.go("--rehearse").code, 1)
        self.warns("0002-b.sql", "trigger noted does not compile: no such table: main.ev_old")
        self.assertEqual(self.version(), 3)
        self.refuses(self.go("--check"), "in x.db, trigger noted does not compile")
        self.assertEqual(self.go().err, "")

    def test_a_trigger_for_a_column_that_a_rebuild_left_out_is_reported(self):
        for number, (names, fault) in enumerate((
                ("b", "no such column: b"), ('a, "B"', "no such column: B"), ("a, [on]", "")), 2):
            self.script(f"{number:04d}-b.sql", f"CREATE TABLE t{number} (a, \"on\");"
                        f"CREATE TRIGGER tr{number} AFTER UPDATE OF {names} ON t{number}"
                        " BEGIN SELECT new.a; END;")
            result = self.works(self.go())
            self.assertEqual("does not compile" in result.err, bool(fault), result)
            if fault:
                self.assertIn(f"trigger tr{number} does not compile: {fault}. Fix that", result.err)

    def test_triggers_and_views_that_work_are_not_reported(self):
        self.script("0002-b.sql", "CREATE TABLE of (x); CREATE TABLE t (a);"
                    "CREATE TRIGGER i AFTER INSERT ON t BEGIN UPDATE of SET x = 1; END;"
                    "CREATE TRIGGER r AFTER UPDATE OF rowid, A ON t BEGIN SELECT 1; END;"
                    "CREATE VIEW v AS SELECT * FROM t WHERE a IN series(1, 9);"
                    "CREATE VIEW w AS SELECT * FROM ( series (1, 9) );")
        self.assertEqual(self.works(self.go()).err, "")
        self.works(self.go("--check"))

    def test_a_name_within_another_view_does_not_hide_what_is_gone(self):
        self.script("0002-b.sql", "CREATE VIEW ok AS WITH x(a) AS (SELECT 1), gone(a) AS (SELECT 1)"
                    " SELECT * FROM gone; CREATE VIEW bad AS SELECT * FROM gone;"
                    "CREATE VIEW of_the_application AS SELECT * FROM tasks, series(1, (9)) AS s;")
        self.warns("0002-b.sql", "view bad does not compile: no such table: main.gone")

    def test_what_a_rebuild_has_dropped_without_naming_it_is_reported(self):
        self.sql("CREATE INDEX ev_what ON ev (what)")
        self.sql("CREATE UNIQUE INDEX tasks_name ON tasks (name)")
        self.script("0002-b.sql", "DROP INDEX ev_what; DROP TRIGGER added;"
                    "PRAGMA legacy_alter_table = ON; CREATE TABLE tasks_new (id INTEGER PRIMARY KEY,"
                    "name TEXT NOT NULL); INSERT INTO tasks_new SELECT * FROM tasks; DROP TABLE tasks;"
                    "ALTER TABLE tasks_new RENAME TO tasks;")
        again = "CREATE TRIGGER noted AFTER UPDATE ON tasks BEGIN SELECT 1; END;"
        for text, lost in (("", "index tasks_name of tasks, trigger noted of tasks: dropped"),
                           (again, "warning: index tasks_name of tasks: dropped with its table")):
            shutil.copy("x.db", "y.db")
            self.script("0003-c.sql", text)
            self.assertIn(lost, self.works(self.run_main("--db", "y.db", "--migrations", "m")).err)
        self.script("0003-c.sql", again + "CREATE UNIQUE INDEX tasks_name ON tasks (name, id);")
        self.assertEqual(self.works(self.go()).err, "")

    def test_the_cure_leaves_nothing_broken(self):
        self.script("0002-b.sql", "PRAGMA legacy_alter_table = ON;\n" + SWAP)
        self.assertEqual(self.works(self.go()).err, "")
        self.works(self.go("--check"))
        self.sql("INSERT INTO tasks VALUES (1, 'x')")
        self.sql("UPDATE tasks SET name = 'y'")

    def test_what_a_later_script_of_the_run_puts_right_is_not_reported(self):
        self.script("0002-b.sql", SWAP + "CREATE TABLE c (x REFERENCES later);")
        self.script("0003-c.sql", "DROP TRIGGER noted; CREATE TABLE later (id INTEGER PRIMARY KEY);")
        self.works(self.go("--rehearse"))
        self.assertEqual(self.works(self.go()).err, "")
        self.works(self.go("--check"))

    def test_a_view_on_a_column_that_a_rebuild_left_out_is_reported(self):
        self.script("0002-b.sql", "PRAGMA legacy_alter_table = ON;"
                    "CREATE TABLE n (id INTEGER PRIMARY KEY); DROP TABLE tasks;"
                    "ALTER TABLE n RENAME TO tasks;")
        self.warns("0002-b.sql", "view names does not compile: no such column: name")
        self.script("0003-c.sql", "CREATE VIEW more AS SELECT name FROM tasks;")
        self.script("0004-d.sh", "exit 0")
        self.warns("0003-c.sql", "view more does not compile: no such column: name")

    def test_a_key_whose_parent_is_gone_or_has_no_such_key_is_reported(self):
        self.script("0002-b.sql", PARENTS)
        migrate("x.db", "m")
        self.script("0003-c.sql", REBUILD.replace(" PRIMARY KEY", ""))
        self.warns("0003-c.sql", "album has a foreign key that cannot work: artist refers to the "
                   "table artist, which has no such primary or unique key")
        self.script("0004-d.sql", "DELETE FROM album; DROP TABLE artist;")
        self.assertEqual(self.works(self.go()).err, "")  # it did not work before either
        self.refuses(self.go("--check"), "the table artist, which does not exist")

    def test_what_only_the_application_has_is_no_fault(self):
        self.script("0002-b.sql", "CREATE VIEW f AS SELECT theirs(id) FROM tasks;"
                    "CREATE VIEW s AS SELECT * FROM tasks ORDER BY name COLLATE theirs;"
                    "CREATE VIEW g AS SELECT * FROM theirs(1, 9), tasks;"
                    "CREATE TRIGGER t AFTER DELETE ON tasks BEGIN SELECT theirs(old.id); END;")
        self.assertEqual(self.works(self.go()).err, "")
        self.works(self.go("--check"))

    def test_a_table_that_needs_what_only_the_application_has_is_no_fault(self):
        connection = sqlite3.connect("x.db")
        connection.create_function("theirs", 1, abs)
        connection.create_collation("theirs", lambda a, b: (a > b) - (a < b))
        connection.executescript("""
            CREATE TABLE p (id INTEGER PRIMARY KEY CHECK (theirs(id)), name);
            CREATE TABLE q (a TEXT COLLATE theirs);
            CREATE UNIQUE INDEX i ON q (a);
            CREATE TABLE c (p REFERENCES p (id), q REFERENCES q (a));
            CREATE VIEW v AS SELECT name FROM p;
            CREATE TRIGGER t AFTER UPDATE ON p BEGIN SELECT 1; END;
            CREATE TRIGGER u AFTER UPDATE ON c BEGIN DELETE FROM p; END;
        """)
        connection.close()
        self.script("0002-b.sql", "CREATE VIEW w AS SELECT id FROM p; DROP TRIGGER t;"
                    "CREATE TRIGGER t AFTER DELETE ON p BEGIN DELETE FROM q; END;")
        self.assertEqual(self.works(self.go()).err, "")
        self.assertEqual(self.works(self.go("--check")).err, "")

    def test_the_right_one_of_many_triggers_is_named(self):
        self.script("0002-b.sql", """
            CREATE TABLE log (x); CREATE TABLE gone (x);
            CREATE VIEW v AS SELECT id, name FROM tasks;
            CREATE TRIGGER v1 INSTEAD OF UPDATE OF name ON v BEGIN INSERT INTO log VALUES (1); END;
            CREATE TRIGGER v2 INSTEAD OF UPDATE ON v BEGIN INSERT INTO gone VALUES (1); END;
            CREATE TRIGGER t1 BEFORE UPDATE ON tasks BEGIN INSERT INTO log VALUES (1); END;
            CREATE TRIGGER t2 BEFORE UPDATE ON tasks BEGIN DELETE FROM gone; END;
            CREATE TRIGGER t3 BEFORE UPDATE OF id ON tasks BEGIN UPDATE v SET name = 1; END;
            CREATE TRIGGER t4 BEFORE DELETE ON tasks WHEN old.id > (SELECT x FROM gone) BEGIN
                SELECT 1; END;
            CREATE TRIGGER e1 AFTER INSERT ON ev BEGIN UPDATE tasks SET name = 1; END;
        """)
        self.script("0003-c.sql", "DROP TABLE gone;")
        result = self.works(self.go())
        self.assertEqual(re.findall(r"after (\S+), trigger (\w+) ", result.err), [
            ("0003-c.sql", name) for name in ("v2", "t2", "t3", "t4")], result)  # t3 sets off v2

    def test_triggers_on_tables_of_every_kind_compile(self):
        tables = ["CREATE TABLE {} (a PRIMARY KEY, b NOT NULL CHECK (b > 0)) WITHOUT ROWID"]
        if known("CREATE TABLE t (a, b AS (a + 1))"):
            tables.append("CREATE TABLE {} (a UNIQUE, b AS (a + 1), c AS (b + 1) STORED)")
        text = ""
        for number, table in enumerate(tables):
            for event in ("INSERT", "UPDATE", "DELETE"):
                text += (f"CREATE TRIGGER k{number}{event} AFTER {event} ON k{number} BEGIN "
                         "INSERT INTO tasks (name) VALUES (1) ON CONFLICT (id) DO NOTHING; END;")
            text = table.format(f"k{number}") + ";" + text
        self.script("0002-b.sql", text)
        self.assertEqual(self.works(self.go()).err, "")

    def test_check_only_warns_of_what_was_broken_before_the_tool_knew_the_database(self):
        connection = sqlite3.connect("y.db")
        connection.executescript("CREATE TABLE a (x); CREATE VIEW v AS SELECT * FROM nowhere;"
                                 "CREATE TABLE c (x REFERENCES nowhere);")
        connection.close()
        os.mkdir("n")
        go = lambda *more: self.run_main("--db", "y.db", "--migrations", "n", *more)  # noqa: E731
        self.works(go("--enroll"))
        self.assertEqual(self.works(go("--check")).err.count("warning: "), 2)
        self.script("0002-b.sql", "CREATE TABLE b (x);", "n")
        self.assertEqual(self.works(go()).err, "")
        self.assertEqual(self.works(go("--check")).err.count("warning: "), 2)
        self.script("0003-c.sql", "CREATE VIEW w AS SELECT * FROM nobody;", "n")
        self.assertIn("after 0003-c.sql, view w does not", self.works(go()).err)
        self.refuses(go("--check"), "view w does not compile")

    def test_nothing_is_written_to_find_it(self):
        self.script("0002-b.sql", SWAP)
        self.go()
        before = Path("x.db").read_bytes()
        self.go("--check")
        self.assertEqual(Path("x.db").read_bytes(), before)

    def test_a_stale_view_that_stops_an_alter_table_is_named_with_the_cure(self):
        self.script("0002-b.sql", "CREATE VIEW stale AS SELECT * FROM nowhere;")
        self.assertIn("view stale does not compile", self.works(self.go()).err)
        self.script("0003-c.sql", "CREATE TABLE c (x);\nALTER TABLE tasks RENAME TO jobs;")
        self.refuses(self.go(), "0003-c.sql:2", "error in view stale", "Drop that view",
                     "PRAGMA legacy_alter_table = ON")
        self.script("0003-c.sql", "PRAGMA legacy_alter_table = ON; ALTER TABLE tasks RENAME TO jobs;")
        self.assertIn("view names does not compile", self.works(self.go()).err)


class Drift(Case):
    def setUp(self):
        super().setUp()
        self.create()
        for number in (2, 5):
            self.script(f"{number:04d}-x.sql", f"CREATE TABLE t{number} (x);\n")
        migrate("x.db", "m")

    def states(self):
        return {m["name"]: m["state"] for m in fastmigrate.status("x.db", "m")["migrations"]}

    def test_a_late_script_is_reported_and_those_above_are_applied(self):
        for late in ("0001-first.sql", "0003-mid.sql"):
            self.script(late, "SELECT nope;")
            result = self.works(self.go())
            self.assertIn(late, result.err)
            self.assertIn("never run", result.err)
        self.script("0006-x.sql", "CREATE TABLE t6 (x);")
        self.assertIn("0003-mid.sql", self.works(self.go()).err)
        self.assertEqual(self.version(), 6)

    def test_late_scripts_get_the_next_free_numbers_in_their_order(self):
        self.script("0004-late.sql", "INSERT INTO t2 VALUES (4);")
        self.script("0003-late.sql", "INSERT INTO t2 VALUES (3);")
        self.paste(self.go("--check"))
        self.assertEqual(self.states(), {"0002-x.sql": "applied", "0005-x.sql": "applied",
                                         "0006-late.sql": "pending", "0007-late.sql": "pending"})
        self.works(self.go())
        self.assertEqual(self.sql("SELECT x FROM t2"), [(3,), (4,)])
        self.works(self.go("--check"))

    def paste(self, result):
        """Run the commands that a message ends with in a shell."""
        commands = result.err.partition("\n    mv ")
        self.assertTrue(commands[1], result)
        subprocess.run(["sh", "-ec", "mv " + commands[2]], check=True)

    @posix_only
    def test_the_command_to_renumber_can_be_pasted_whatever_the_path(self):
        folder = "-it's ä $HOME\n`x`\\"
        shutil.move("m", folder)
        self.script("0003-\"late\" & 'ö'*.sql", "SELECT 1;", folder)
        self.paste(self.run_main("--db", "x.db", f"--migrations={folder}", "--check"))
        self.assertEqual(sorted(os.listdir(folder)),
                         ["0002-x.sql", "0005-x.sql", "0006-\"late\" & 'ö'*.sql"])

    def test_where_no_number_is_free_no_command_is_shown(self):
        self.script("9999-last.sql")
        self.script("0003-late.sql")
        result = self.go("--check")
        self.assertIn("renumber it above the latest script.\n", result.err)
        self.assertNotIn("mv ", result.err)

    def test_an_edited_script_is_reported_when_migrating_but_not_for_layout(self):
        for number, text in enumerate((
                b"\xef\xbb\xbfCREATE TABLE t2 (x);  \r\n\r\n \n", b"CREATE TABLE t2 (x);\t\n\f\n",
                b"CREATE TABLE t2 (x);\v\n \f \n", b"CREATE TABLE t2 (x);"), 6):
            self.script("0002-x.sql", text)
            self.script(f"{number:04d}-x.sql", f"CREATE TABLE t{number} (x);")
            self.assertEqual(self.works(self.go()).err, "")
        self.script("0002-x.sql", "CREATE TABLE t2 (x, y);\n")
        self.script("0010-x.sql", "CREATE TABLE t10 (x);")
        result = self.works(self.go())
        self.assertEqual(result.err.count("warning"), 1)
        self.assertIn("0002-x.sql: edited", result.err)

    def test_a_line_of_only_a_form_feed_counts_as_empty_wherever_blanks_are_added(self):
        self.script("0006-a.sql", "CREATE TABLE a (x);\n\f\nCREATE TABLE b (x);\n")
        self.works(self.go())
        for text in ("CREATE TABLE a (x);  \n\f\nCREATE TABLE b (x);\n",
                     "CREATE TABLE a (x);\n\nCREATE TABLE b (x);\t\n\n\f"):
            self.script("0006-a.sql", text)
            self.works(self.go("--check"))

    def test_a_missing_script_is_reported(self):
        os.unlink("m/0002-x.sql")
        self.assertIn("0002-x.sql", self.works(self.go()).err)

    def test_of_a_pruned_directory_only_the_first_names_are_told(self):
        for number in range(6, 40):
            self.script(f"{number:04d}-x.sql")
        self.works(self.go())
        for number in [2, *range(5, 39)]:
            os.unlink(f"m/{number:04d}-x.sql")
        self.script("0040-x.sql", "CREATE TABLE t40 (x);")
        result = self.works(self.go())
        self.assertIn("0010-x.sql, 0011-x.sql and 27 more: applied to x.db, but not in m", result.err)
        self.assertEqual(result.err.count("\n"), 1)
        self.assertEqual(self.version(), 40)
        self.assertIn("0011-x.sql and 27 more", self.works(self.go("--accept")).out)
        self.works(self.go("--check"))
        self.assertEqual(self.sql("SELECT version FROM _migration_history"), [(39,), (40,)])

    def test_a_removal_that_was_accepted_hides_no_late_script(self):
        self.script("0006-x.sql")
        self.works(self.go())
        os.unlink("m/0005-x.sql")
        fastmigrate.set_db_version("x.db", 9)  # else the next row would tell
        self.sql("DELETE FROM _migration_history WHERE version = 6")
        self.works(self.go("--accept"))
        self.script("0003-late.sql")
        self.script("0005-other.sql")
        self.assertEqual(self.states(), {"0002-x.sql": "applied", "0003-late.sql": "late",
                                         "0005-other.sql": "conflict", "0006-x.sql": "applied"})

    def test_old_code_accepts_nothing_of_a_newer_release(self):
        shutil.move("m/0005-x.sql", "0005-x.sql")
        before = self.sql("SELECT * FROM _migration_history")
        self.assertIn("nothing to accept", self.works(self.go("--accept")).out)
        self.assertEqual(self.sql("SELECT * FROM _migration_history"), before)

    def test_a_database_newer_than_the_scripts_is_reported(self):
        os.unlink("m/0005-x.sql")
        result = self.works(self.go())
        self.assertEqual(result.err.count("warning"), 1)
        self.assertIn("newer", result.err)

    def test_scripts_below_a_version_set_by_hand_are_not_late(self):
        fastmigrate.set_db_version("x.db", 20)
        self.script("0010-x.sql", "SELECT nope;")
        self.script("0021-x.sql", "CREATE TABLE t21 (x);")
        for _ in range(2):
            self.assertNotIn("0010-x.sql", self.works(self.go()).err)
        self.assertEqual(self.sql("SELECT version, name, checksum FROM _migration_history "
                                  "WHERE version BETWEEN 6 AND 20"), [
                                      (10, "0010-x.sql", "48bf672b-c"), (20, "", "")])
        self.script("0003-x.sql", "SELECT nope;")
        self.assertIn("0003-x.sql", self.works(self.go()).err)
        self.assertEqual(self.states()["0010-x.sql"], "applied")

    def test_a_history_beyond_the_version_is_forgotten_when_scripts_are_applied(self):
        self.sql("UPDATE _meta SET version = 2")  # as another tool does
        os.unlink("m/0005-x.sql")
        self.script("0003-x.sql", "CREATE TABLE t3 (x);")
        self.works(self.go())
        self.works(self.go("--check"))
        self.assertEqual(self.sql("SELECT version FROM _migration_history"), [(2,), (3,)])

    def test_a_gap_in_the_numbers_is_told_from_a_late_script_at_every_start(self):
        self.script("0009-x.sql")
        self.works(self.go())
        os.unlink("m/0005-x.sql")
        self.script("0006-late.sql")  # the number of scripts is that of the history
        result = self.works(self.go())
        self.assertIn("0006-late.sql: never run", result.err)
        self.assertIn("0005-x.sql: applied to x.db, but not", result.err)

    def test_odd_values_in_the_history_are_values(self):
        for odd in ("x'ff00'", "CAST(x'ff41' AS TEXT)", "7", "1.5", "''"):
            for column in ("name", "checksum", "applied_at"):
                self.sql(f"UPDATE _migration_history SET {column} = {odd} WHERE version = 5")
                for action in ((), ("--status",), ("--status", "--json"), ("--check",), ("--accept",)):
                    result = self.go(*action)
                    self.assertNotIn("Traceback", result.err)
                    self.assertIn(result.code, (0, 1), result)
                self.sql("DELETE FROM _migration_history")
                self.works(self.go("--accept"))

    def test_a_history_in_utf_16_is_read(self):
        self.sql("PRAGMA encoding = 'UTF-16'", "y.db")
        self.sql(fastmigrate.CREATE_META, "y.db")
        self.sql("INSERT INTO _meta VALUES (1, 0)", "y.db")
        self.works(self.run_main("--db", "y.db", "--migrations", "m"))
        self.works(self.run_main("--db", "y.db", "--migrations", "m", "--check"))

    def test_a_script_that_cannot_be_read_is_named(self):
        os.symlink("nowhere", "m/0006-x.sql")
        self.works(self.go("--status"))
        self.refuses(self.go(), "m/0006-x.sql: it is a link to nowhere, and it cannot be read: No such file",
                     "Make the file readable")
        os.unlink("m/0002-x.sql")
        os.symlink("nowhere", "m/0002-x.sql")
        self.refuses(self.go("--status"), "m/0002-x.sql: it is a link to nowhere, ", "Make the file readable")


class Collisions(Case):
    """Two branches that use one number, in every order of events."""

    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-init.sql", "CREATE TABLE init (x);")
        self.script("0002-jane.sql", "CREATE TABLE jane (x);")

    def states(self, db="x.db"):
        return {m["name"]: m["state"] for m in fastmigrate.status(db, "m")["migrations"]}

    def rob_replaces_jane(self):
        migrate("x.db", "m")
        os.rename("m/0002-jane.sql", "jane.sql")
        self.script("0002-rob.sql", "CREATE TABLE rob (x);")

    def test_two_files_that_are_the_same_need_not_both_be_kept(self):
        migrate("x.db", "m")
        shutil.copy("m/0002-jane.sql", "m/0002-copy.sql")
        self.assertNotIn("mv ", self.refuses(self.go(), "They are the same: delete all but one.").err)

    def test_an_empty_script_has_no_twin_under_another_number(self):
        self.script("0003-x.sql", "")
        migrate("x.db", "m")
        os.rename("m/0003-x.sql", "m/0004-x.sql")
        self.works(self.go())

    def test_another_script_under_the_number_of_the_version_is_told_by_every_call(self):
        self.rob_replaces_jane()
        self.assertIn("0002-rob.sql: never run on x.db, where 0002-jane.sql ran", self.go().err)
        with self.assertLogs("fastmigrate", "WARNING") as logs:
            self.assertTrue(fastmigrate.run_migrations("x.db", "m"))
        self.assertIn("0002-rob.sql: never run", logs.output[0])
        self.assertEqual(self.states(), {"0001-init.sql": "applied", "0002-rob.sql": "conflict"})
        found = json.loads(self.works(self.go("--status", "--json")).out)["migrations"][1]
        self.assertEqual(found, {"version": 2, "name": "0002-rob.sql", "state": "conflict",
                                 "applied_at": None})
        self.refuses(self.go("--check"), "0002-rob.sql")

    def test_no_file_is_read_while_the_names_agree(self):
        migrate("x.db", "m")
        for name in os.listdir("m"):
            self.script(name, b"\0 whatever")
        self.assertEqual(self.works(self.go()).err, "")

    def test_a_conflict_below_the_version_is_found_by_status_and_check(self):
        self.rob_replaces_jane()
        self.script("0003-more.sql", "CREATE TABLE more (x);")
        self.assertIn("0002-rob.sql: never run", self.works(self.go()).err)
        self.assertEqual(self.works(self.go()).err, "")
        self.assertEqual(self.states()["0002-rob.sql"], "conflict")
        self.refuses(self.go("--check"), "0002-rob.sql")

    def test_what_has_not_run_is_never_accepted(self):
        self.rob_replaces_jane()
        self.script("0001-late.sql")
        os.unlink("m/0001-init.sql")
        self.assertIn("nothing to accept", self.works(self.go("--accept")).out)
        self.assertEqual(self.states(), {"0001-late.sql": "conflict", "0002-rob.sql": "conflict"})

    def test_an_applied_script_that_was_merely_renamed_is_no_news(self):
        migrate("x.db", "m")
        os.rename("m/0002-jane.sql", "m/0002-janes-table.sql")
        self.assertEqual(self.works(self.go()).err, "")
        self.works(self.go("--check"))
        self.script("0002-janes-table.sql", "CREATE TABLE jane (x, y);")
        self.refuses(self.go("--check"), ", renamed and edited: restore that name")
        os.rename("m/0002-janes-table.sql", "m/0002-jane.sql")
        self.works(self.go("--accept"))
        os.rename("m/0002-jane.sql", "m/0002-janes-table.sql")
        self.works(self.go("--check"))

    def test_the_other_script_is_renumbered_and_all_databases_agree(self):
        self.rob_replaces_jane()
        self.script("0001-zoe.sql", "CREATE TABLE zoe (x);")
        os.unlink("m/0001-init.sql")
        commands = re.findall("(?m)^    (mv .*)$", self.go("--check").err)
        self.assertEqual(commands, ["mv m/0001-zoe.sql m/0003-zoe.sql",
                                    "mv m/0002-rob.sql m/0004-rob.sql"])
        subprocess.run(["sh", "-ec", "\n".join(commands)], check=True)
        os.rename("jane.sql", "m/0002-jane.sql")
        self.script("0001-init.sql", "CREATE TABLE init (x);")
        self.create("y.db")
        for db in ("x.db", "y.db"):
            self.works(self.run_main("--db", db, "--migrations", "m"))
            self.works(self.run_main("--db", db, "--migrations", "m", "--check"))
            self.assertEqual(self.tables(db), {"init", "jane", "rob", "zoe"})

    def test_of_two_files_with_one_number_the_error_says_which_is_applied(self):
        migrate("x.db", "m")
        self.script("0002-rob.sql", "CREATE TABLE rob (x);")
        result = self.go()
        self.refuses(result, "two scripts have the number 0002", "0002-jane.sql is applied to x.db",
                     "\n    mv m/0002-rob.sql m/0003-rob.sql\n")
        self.assertFalse(fastmigrate.run_migrations("x.db", "m"))
        self.assertEqual(self.works(self.go("--status")).out.count("\n"), 4)
        self.assertEqual(self.states(), {"0001-init.sql": "applied", "0002-jane.sql": "applied",
                                         "0002-rob.sql": "conflict"})
        for flag in ("--check", "--accept", "--verify", "--rehearse"):
            self.refuses(self.go(flag), "two scripts have the number 0002",
                         "0002-jane.sql is applied to x.db",
                         "\n    mv m/0002-rob.sql m/0003-rob.sql\n")
        with self.assertRaisesRegex(ValueError, "two scripts have the number 0002"):
            fastmigrate.get_migration_scripts("m")
        os.rename("m/0002-rob.sql", "m/0003-rob.sql")
        self.works(self.go())

    def test_of_two_files_that_both_wait_one_is_renumbered(self):
        self.script("0002-rob.sql")
        self.script("0002-zoe.py")
        result = self.go()
        self.refuses(result, "3 scripts have the number 0002", "None of them is applied",
                     "\n    mv m/0002-rob.sql m/0003-rob.sql\n    mv m/0002-zoe.py m/0004-zoe.py\n")
        self.assertEqual(self.tables(), set())

    def test_of_two_files_that_count_as_applied_none_is_moved(self):
        self.script("0002-rob.sql")
        fastmigrate.set_db_version("x.db", 2)
        result = self.go()
        self.refuses(result, "two scripts have the number 0002")
        self.assertNotIn("mv ", result.err)

    def test_an_applied_script_that_was_renumbered_is_not_run_again(self):
        self.script("0002-jane.sql", "UPDATE init SET x = x * 1.19;")
        migrate("x.db", "m")
        os.rename("m/0002-jane.sql", "m/0003-jane.sql")
        self.refuses(self.go(), "0003-jane.sql is already applied to x.db, as 0002-jane.sql",
                     "\n    mv m/0003-jane.sql m/0002-jane.sql\n")
        self.works(self.go("--accept"))  # does not take it for removed
        self.refuses(self.go(), "already applied")
        self.script("0002-rob.sql", "CREATE TABLE rob (x);")
        self.refuses(self.go(), "Run 0002-rob.sql alone, which x.db lacks. (If a line")
        os.unlink("m/0002-rob.sql")
        self.script("0003-jane.sql", "UPDATE init SET x = x * 1.19; -- again")
        self.works(self.go())
        self.assertEqual(self.version(), 3)

    def renumber(self, *moves):
        """Two scripts that ran get higher numbers."""
        self.script("0001-init.sql", "CREATE TABLE init (x); INSERT INTO init VALUES (100);")
        self.script("0002-jane.sql", "UPDATE init SET x = x * 2;")
        self.script("0003-inc.sql", "UPDATE init SET x = x + 1;")
        migrate("x.db", "m")
        for old, new in moves:
            os.rename(f"m/{old}.sql", f"m/{new}.sql")

    def paste_commands(self, result):
        for command in re.findall("    fastmigrate (.*?)(?: &&)?\n", result.err):
            self.works(self.run_main(*command.split()))

    def test_several_renumbered_scripts_get_their_names_back(self):
        self.renumber(("0003-inc", "0004-inc"), ("0002-jane", "0003-jane"))
        for old, new in re.findall("    mv (.*) (.*)", self.refuses(self.go()).err):
            os.rename(old, new)
        self.works(self.go())
        self.works(self.go("--check"))
        self.assertEqual(self.sql("SELECT x FROM init"), [(201,)])

    def test_several_renumbered_scripts_count_as_applied(self):
        self.renumber(("0002-jane", "0004-jane"), ("0003-inc", "0005-inc"))
        self.paste_commands(self.refuses(self.go(), "Count it as applied under its new number"))
        self.works(self.go("--check"))
        self.script("0006-more.sql", "CREATE TABLE more (x);")
        self.works(self.go())
        self.works(self.go("--check"))
        self.works(self.go("--verify"))
        self.assertEqual(self.sql("SELECT x FROM init"), [(201,)])

    def test_a_script_under_its_new_number_is_not_missing_under_the_old_one(self):
        self.renumber(("0002-jane", "0004-jane"))
        for arguments in ((), ("--check",), ("--to", 2)):
            self.assertNotIn("not in m any more", self.go(*arguments).err)

    def test_scripts_that_swapped_their_numbers_do_not_run_again(self):
        self.script("0003-x.sql", "CREATE TABLE x (x);")
        migrate("x.db", "m")
        os.rename("m/0003-x.sql", "m/0002-x.sql")
        os.rename("m/0002-jane.sql", "m/0003-jane.sql")
        self.assertIn("0003-jane.sql is already applied to x.db, as 0002-jane.sql. Restore the name",
                      self.works(self.go()).err)
        result = self.refuses(self.go("--check"), "0002-x.sql is already applied to x.db, as 0003-x")
        for old, new in re.findall("    mv (.*) (.*)", result.err):
            os.rename(old, new)
        self.works(self.go("--check"))

    def test_a_script_that_was_renumbered_beyond_a_squash_does_not_run_twice(self):
        self.script("0002-jane.sql", "UPDATE init SET x = x * 2;")
        migrate("x.db", "m")
        os.rename("m/0002-jane.sql", "jane.sql")
        self.script("0002-rob.sql", "CREATE TABLE rob (x);")
        self.works(self.run_main("--migrations", "m", "--squash", "2"))
        os.rename("jane.sql", "m/0003-jane.sql")
        self.refuses(self.go(), "0003-jane.sql is already applied to x.db, as 0002-jane.sql",
                     "Restore a backup of x.db from before version 2, or create x.db anew.")

    def test_what_lies_below_a_squash_is_to_be_deleted(self):
        for number in (3, 4, 5):
            self.script(f"000{number}-x.sql", f"CREATE TABLE t{number} (x);")
        migrate("x.db", "m")
        shutil.copytree("m", "m2")
        self.works(self.run_main("--migrations", "m", "--squash", "3"))
        self.works(self.run_main("--migrations", "m2", "--squash", "4"))
        os.unlink("m/0004-x.sql")
        shutil.copy("m2/0004-squashed.sql", "m")
        result = self.refuses(self.go("--check"), "0003-squashed.sql: below 0004-squashed.sql, which "
                              "replaced the scripts up to its number. Delete what it replaced")
        self.assertNotIn("mv ", result.err)
        self.create("new.db")
        self.refuses(self.run_main("--db", "new.db", "--migrations", "m"), "Delete it if "
                     "0004-squashed.sql replaced it")
        os.unlink("m/0003-squashed.sql")
        self.works(self.go("--check"))
        self.works(self.run_main("--db", "new.db", "--migrations", "m"))

    def test_a_rehearsal_prints_commands_for_the_database_itself(self):
        migrate("x.db", "m")
        self.script("0002-jane.sql", "CREATE TABLE jane (x, y);")
        self.script("0003-b.sql", "SELECT 1;")
        self.assertIn("run fastmigrate --db x.db --migrations m --accept",
                      self.works(self.go("--rehearse")).err)

    def test_each_applied_script_has_but_one_new_number(self):
        self.script("0002-jane.sql", "ANALYZE;")
        migrate("x.db", "m")
        os.rename("m/0002-jane.sql", "m/0003-jane.sql")
        self.script("0004-jane.sql", "ANALYZE;")
        result = self.refuses(self.go(), "0003-jane.sql is already applied to x.db, as 0002-jane.sql")
        self.assertNotIn("0004", result.err)

    def test_a_renumbered_script_beyond_the_wanted_version_stops_no_run(self):
        migrate("x.db", "m")
        os.rename("m/0002-jane.sql", "m/0004-jane.sql")
        self.works(self.go("--to", "2"))
        self.script("0003-c.sql", "CREATE TABLE c (x);")
        self.works(self.go("--to", "3"))
        self.paste_commands(self.refuses(self.go(), "already applied"))
        self.works(self.go("--check"))

    def test_a_renumbered_script_is_found_beside_another_with_its_words(self):
        self.script("0005-fix.sql", "UPDATE init SET x = x * 2;")
        migrate("x.db", "m")
        os.rename("m/0005-fix.sql", "m/0006-fix.sql")
        self.script("0007-fix.sql", "UPDATE init SET x = x * 3;")
        self.refuses(self.go(), "0006-fix.sql is already applied to x.db, as 0005-fix.sql")

    def test_a_database_that_had_the_script_that_was_renumbered_gets_the_one_that_it_lacks(self):
        self.script("0002-jane.sql", "UPDATE init SET x = x * 2;")
        migrate("x.db", "m")
        before = self.sql("SELECT x FROM init")
        os.rename("m/0002-jane.sql", "m/0003-jane.sql")
        self.script("0002-rob.sql", "CREATE TABLE rob (x);")
        self.paste_commands(self.refuses(self.go(), "Run 0002-rob.sql alone, which x.db lacks. (If a line"))
        self.works(self.go("--check"))
        self.works(self.go("--verify"))
        self.assertEqual(self.sql("SELECT x FROM init"), before)

    def test_for_one_of_several_databases_no_command_renames_a_script(self):
        self.create("y.db")
        os.rename("m/0002-jane.sql", "jane.sql")
        self.script("0003-more.sql")
        self.works(self.go())
        os.rename("jane.sql", "m/0002-jane.sql")  # late on x.db, and pending on y.db
        both = ("--db", "x.db", "y.db", "--migrations", "m")
        for arguments in ((), ("--status", "--json"), ("--check", "--verbose")):
            result = self.run_main(*both, *arguments)
            self.assertIn("0002-jane.sql: never run on x.db", result.out + result.err)
            self.assertNotIn("mv ", result.out + result.err)

    def test_what_is_wrong_with_the_directory_is_told_once_for_all_databases(self):
        for number in range(20):
            self.create(f"{number}.db")
        several = ("--db", "*.db", "--migrations", "m")
        self.works(self.run_main(*several))
        self.script("3-x.sql")
        for action, code in (((), 0), (("--check",), 1), (("--status",), 0)):
            result = self.run_main(*several, *action)
            self.assertEqual((result.code, result.err.count("3-x.sql")), (code, 1), result)
        self.script("0002-rob.sql", "CREATE TABLE rob (x);")
        self.script("0003-more.sql", "CREATE TABLE more (x);")
        for action, code in (((), 1), (("--check",), 1), (("--status",), 0), (("--rehearse",), 1)):
            result = self.run_main(*several, *action)
            self.assertEqual(result.code, code, result)
            self.assertEqual(result.err.count("two scripts have"), 1, result)
            self.assertEqual(result.err.count("3-x.sql"), 1, result)
        self.assertEqual(self.tables(), {"init", "jane"})  # nothing was run


class OtherTools(Case):
    def setUp(self):
        super().setUp()
        self.create()

    def test_sql_files_by_any_other_rule_are_not_taken_for_an_empty_directory(self):
        for name in ("init.sql", "users.SQL", "init/migration.sql"):
            path = self.home / "other" / name
            path.parent.mkdir(parents=True)
            path.write_text("")
            result = self.run_main("--db", "x.db", "--migrations", "other", "--check")
            self.refuses(result, f"ignored (bad file name): {name.partition('/')[0]}")
            shutil.rmtree("other")

    @posix_only
    def test_links_to_what_is_no_file_are_ignored(self):
        os.symlink("/dev/null", "m/0002-x.sql")
        self.assertIn("ignored (bad file name): 0002-x.sql", self.works(self.go()).err)

    def test_a_directory_by_the_rule_of_another_tool_is_no_empty_one(self):
        for name in ("V1__init.sql", "V1.2__init.sql", "R__views.sql", "20240101_init.sql",
                     "init.up.sql", "20240101120000_init/up.sql", "2024-01-01-000000_init/migration.sql"):
            path = Path("m", name)
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
            name = name.partition("/")[0]
            self.assertIn(f"ignored (bad file name): {name}. In m, a migration script is named "
                          "NNNN-description.ext", self.works(self.go()).err)
            self.refuses(self.go("--check"), name)
            shutil.rmtree("m")
            os.mkdir("m")

    def test_other_files_beside_scripts_are_left_alone(self):
        self.script("schema.sql")
        os.mkdir("m/seeds")
        self.works(self.go("--check"))
        self.script("0001-init.sql")
        self.script("V1__init.sql")
        self.assertEqual(self.works(self.go()).err, "")

    def test_a_long_list_of_names_is_cut(self):
        for number in range(700):
            self.script(f"{number}-x.sql")
        result = self.works(self.go())
        self.assertIn("103-x.sql, 104-x.sql and 692 more. In m,", result.err)
        self.assertLess(len(result.err), 400)

    def test_a_script_with_a_section_that_undoes_it_is_refused_with_its_line(self):
        for up, down in (("-- +goose Up", "-- +goose Down"), ("-- migrate:up", "-- migrate:down"),
                         ("-- +migrate Up", "--+MIGRATE down notransaction"),
                         ("-- Up", "-- Down")):
            for body in ("CREATE TABLE IF NOT EXISTS users (x);", "VACUUM;"):
                self.script("0001-users.sql", f"{up}\n{body}\n\n{down}\nDROP TABLE users;\n")
                self.refuses(self.go(), "m/0001-users.sql:4: ", "from this line on")
                self.assertEqual((self.version(), self.tables()), (0, set()))

    def test_a_script_that_undoes_another_by_its_name_is_refused(self):
        self.script("0001-a.up.sql", "CREATE TABLE a (x);")
        self.script("0001-a.down.sql", "DROP TABLE a;")
        for command in re.findall("    mv (.*)", self.refuses(self.go(), "have the number 0001").err):
            os.rename(*command.split())
        self.refuses(self.go(), "m/0001-a.down.sql: its name ends in .down.sql", "Delete it, or")
        self.assertEqual((self.version(), self.tables()), (0, set()))

    def test_the_section_is_found_in_a_long_script(self):
        rows = "INSERT INTO t VALUES ('some text');\n" * (fastmigrate.BLOCK // 18)
        for up, down in (("-- +goose Up", "-- +goose Down"), ("-- up", "-- down")):
            line = rows.count("\n") + 3
            self.script("0001-a.sql", f"{up}\nCREATE TABLE t (x);\n{rows}{down}\nDROP TABLE t;\n")
            self.refuses(self.go(), f"m/0001-a.sql:{line}: ")
            self.assertEqual(self.tables(), set())

    def test_an_empty_section_and_one_in_a_string_undo_nothing(self):
        self.script("0001-a.sql", "-- +goose Up\nCREATE TABLE a (x);\n-- +goose Down\n-- none\n")
        self.script("0002-b.sql", "INSERT INTO a VALUES ('\n-- +goose Down\n');"
                                  "/*\n-- migrate:down\n*/ SELECT 1;")
        self.script("0003-c.sql", "-- down\nSELECT 1;\n-- up\nSELECT 1;\n-- down\nSELECT 1;\n")
        self.works(self.go())
        self.assertEqual(self.version(), 3)

    @posix_only
    def test_names_that_are_not_utf_8_are_refused_before_anything_runs(self):
        try:
            self.script(os.fsdecode(b"0002-caf\xe9.sql"))
        except OSError:
            self.skipTest("this file system has no such names")
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.refuses(self.go(), r"the name of the script 0002-caf\xe9.sql in m is not UTF-8")
        self.assertEqual(self.tables(), set())

    def test_a_description_of_any_bytes_makes_a_whole_script(self):
        self.works(self.run_main("--migrations", "m", "--new", os.fsdecode(b"caf\xe9 menu")))
        self.assertEqual(Path("m/0001-caf-menu.sql").read_text(), "-- caf\\udce9 menu\n")

    @posix_only
    def test_a_directory_that_cannot_be_read_is_named(self):
        real = os.scandir
        self.addCleanup(setattr, os, "scandir", real)
        os.scandir = lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied", path))
        self.refuses(self.go(), "m: Permission denied. Nothing was changed. Make the file and its "
                                "directory readable")


class Backups(Case):
    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x); INSERT INTO a VALUES (1);")
        migrate("x.db", "m")

    def test_two_in_one_second_both_succeed_with_names_of_the_pattern(self):
        paths = {fastmigrate.create_db_backup("x.db") for _ in range(4)}
        self.assertEqual(len(paths), 4)
        for path in paths:
            self.assertRegex(path.name, r"\Ax\.db\.\d{8}_\d{6}\.backup\Z")
            self.assertEqual(self.sql("SELECT * FROM a", path), [(1,)])
        self.assertEqual(self.beside(), {path.name for path in paths})

    def test_a_backup_takes_nobodys_name(self):
        stamp = time.strftime(".%Y%m%d_%H%M")
        taken = [f"x.db{stamp}{second:02d}.backup" for second in range(60)]
        for name in taken:
            Path(name).write_text("mine")
        path = fastmigrate.create_db_backup("x.db")
        self.assertEqual(self.sql("SELECT * FROM a", path), [(1,)])
        for name in set(taken) - {path.name}:
            self.assertEqual(Path(name).read_text(), "mine")
        self.assertEqual(len(self.beside() - set(taken)), 1)

    def test_a_backup_is_made_while_others_write(self):
        writer = sqlite3.connect("x.db", isolation_level=None)
        self.addCleanup(writer.close)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO a VALUES (2)")
        path = fastmigrate.create_database_backup("x.db")
        writer.execute("COMMIT")
        self.assertEqual(self.sql("SELECT * FROM a", path), [(1,)])

    def test_where_none_can_be_made_nothing_is_migrated(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);")

        def fail(call):
            if call == "backup":
                raise sqlite3.OperationalError("database or disk is full")

        connect = connecting(fail)
        self.refuses(self.go("--backup", connect=connect), "no backup of x.db could be made",
                     "no space is left", "Nothing was changed")
        self.assertEqual((self.version(), self.beside()), (1, set()))
        with self.assertLogs("fastmigrate", logging.ERROR):
            self.assertIsNone(fastmigrate.create_db_backup("x.db", connect=connect))

    @posix_only
    def test_a_maker_that_is_killed_leaves_nothing_that_looks_like_a_backup(self):
        for last in range(1, 100):
            calls = []

            def at(call, calls=calls, last=last):
                calls.append(call)
                if len(calls) == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            def run(at=at):
                fastmigrate.create_db_backup("x.db", connect=connecting(at))

            if Forked(run).result().code == 0:
                break
            self.assertEqual(self.backups(), set(), last)
        self.assertGreater(last, 5)
        (backup,) = self.backups()
        self.assertEqual(self.sql("SELECT * FROM a", backup), [(1,)])
        self.script("0002-b.sql", "VACUUM;")
        self.works(self.go())  # it has a script to run on a copy, and removes leftovers
        self.assertEqual(self.beside(), {backup})

    def test_another_runner_that_takes_a_backup_for_a_leftover_does_not_spoil_it(self):
        calls = []

        def at(call):
            calls.append(call)
            if call == "backed up" and calls.count(call) == 1:
                for name in self.copies():
                    os.unlink(name)

        path = fastmigrate.create_db_backup("x.db", connect=connecting(at))
        self.assertEqual(self.sql("SELECT * FROM a", path), [(1,)])
        self.assertEqual(self.beside(), {path.name})

    def test_the_backup_of_a_run_is_the_state_before_it(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);")
        for name in ("0002-b.sql", "0003-c.py"):
            self.script(name, "CREATE TABLE b (x);" if name.endswith("sql") else "")
            before, version = self.backups(), self.version()
            result = self.works(self.go("--backup", "--to", name[:4]))
            (name,) = self.backups() - before
            self.assertIn(name, result.out)
            self.assertEqual(self.version(name), version)

    def test_no_backup_of_a_database_that_is_not_there(self):
        with self.assertLogs("fastmigrate", logging.ERROR):
            self.assertIsNone(fastmigrate.create_db_backup("none.db"))
        self.assertFalse(os.path.exists("none.db"))

    @posix_only
    def test_no_group_reads_a_backup_of_what_it_cannot_read(self):
        if not shutil.which("setfacl"):
            self.skipTest("needs setfacl")
        os.chmod("x.db", 0o600)
        done = subprocess.run(["setfacl", "-m", "u:12345:r,g::-,m:r", "x.db"],
                              capture_output=True, text=True)
        if done.returncode:
            self.skipTest(done.stderr)
        backup = fastmigrate.create_db_backup("x.db")
        listed = subprocess.run(["getfacl", "-c", backup], capture_output=True, text=True).stdout
        self.assertNotRegex(listed, "(?m)^group:.*:r")
        self.assertNotRegex(listed, "(?m)^other:.*r")

    @posix_only
    def test_what_a_killed_runner_leaves_of_a_private_database_is_private(self):
        os.chmod("x.db", 0o600)
        self.addCleanup(os.umask, os.umask(0))
        self.sh_script("0002-b.sh", 'rm "$1"', "kill -9 $PPID")
        self.end(self.start("--backup"))
        self.script("0002-b.sh", "")
        self.works(self.go())
        for name in ["x.db", *self.beside()]:
            self.assertEqual(stat.S_IMODE(os.stat(name).st_mode), 0o600, name)
        self.assertEqual((self.version(), self.sql("SELECT * FROM a")), (2, [(1,)]))


class Restoring(Case):
    damaged = b"no database any more, and long enough to be read" * 99

    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x); INSERT INTO a VALUES (1);")
        migrate("x.db", "m")
        self.backup = str(fastmigrate.create_db_backup("x.db"))
        self.sql("INSERT INTO a VALUES (2)")

    @posix_only
    def test_a_restore_that_gives_up_on_a_lock_leaves_nothing_behind(self):
        reader = sqlite3.connect("x.db", isolation_level=None)
        self.addCleanup(reader.close)
        reader.execute("BEGIN EXCLUSIVE" if self.mode == "wal" else "BEGIN")
        reader.execute("SELECT * FROM a").fetchall()
        result = self.refuses(self.go("--restore", self.backup, "--timeout", "0.3"), "is locked")
        self.assertEqual((result.out, self.backups(ending=".before-restore")), ("", set()))

    def test_a_database_that_was_cut_to_some_bytes_can_be_restored(self):
        Path("x.db").write_bytes(b"SQLite format 3\0")
        self.works(self.go("--restore", self.backup))
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])

    def test_a_database_that_another_process_has_just_created_is_not_replaced(self):
        link = os.link
        for is_damaged in (False, True):
            os.unlink("x.db")
            if is_damaged:
                Path("x.db").write_bytes(self.damaged)
            other = []

            def create_first(old, path, other=other):
                if "-copy-restore-" in old:
                    other.append(sqlite3.connect(path, isolation_level=None))
                    other[0].execute(f"PRAGMA journal_mode = {self.mode}").fetchall()
                    other[0].executescript("CREATE TABLE b (x); INSERT INTO b VALUES (7)")
                link(old, path)

            with mock.patch("os.link", create_first):
                self.refuses(self.go("--restore", self.backup),
                             "another process has just created x.db, which was not replaced.")
            other[0].close()
            self.assertEqual(self.sql("SELECT * FROM b"), [(7,)])
        self.assertEqual(Path(self.kept()).read_bytes(), self.damaged)

    @posix_only
    def test_an_old_log_is_not_laid_beside_what_another_process_has_just_created(self):
        log = self.log_of_a_killed_process()
        os.unlink("x.db")
        Path("x.db-wal").write_bytes(log)
        link = os.link

        def create_first(old, path):
            if "-copy-restore-" in old:
                self.sql("CREATE TABLE b AS SELECT 7 AS x")
            link(old, path)

        with mock.patch("os.link", create_first):
            self.refuses(self.go("--restore", self.backup), "another process has just created x.db")
        self.assertEqual(self.sql("SELECT * FROM b"), [(7,)])
        (kept,) = self.beside() - {self.backup}
        self.assertTrue(kept.endswith(".before-restore-wal"), kept)
        self.assertEqual(Path(kept).read_bytes(), log)

    def log_of_a_killed_process(self):
        """The content of a log in WAL mode, in which a table is created."""
        def die():
            connection = sqlite3.connect("y.db", isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.execute("CREATE TABLE other (x)")
            os._exit(3)

        Forked(die).result()
        return Path("y.db-wal").read_bytes()

    def test_what_is_created_just_before_a_restore_takes_its_name_is_not_moved_away(self):
        os.unlink("x.db")
        real, created = os.open, []

        def create_first(path, *flags):
            if str(path).endswith(".before-restore") and not created:
                created.append(path)
                self.sql("CREATE TABLE b AS SELECT 7 AS x")
            return real(path, *flags)

        Path("x.db-journal").touch()  # else there is nothing to keep
        with mock.patch("os.open", create_first):
            self.refuses(self.go("--restore", self.backup), "another process has just created x.db")
        self.assertEqual(len(created), 1)
        self.assertEqual(self.sql("SELECT * FROM b"), [(7,)])

    def test_what_cannot_be_read_stays_where_it_is_if_there_is_no_space_for_the_new_file(self):
        Path("x.db").write_bytes(self.damaged)
        real = os.open

        def fail(path, *flags):
            if "-copy-restore-" in path:
                raise OSError(errno.ENOSPC, "No space left on device", path)
            return real(path, *flags)

        with mock.patch("os.open", fail):
            self.refuses(self.go("--restore", self.backup), "No space left")
        self.assertEqual(Path("x.db").read_bytes(), self.damaged)
        self.assertEqual(self.backups(ending=".before-restore"), set())

    def test_what_cannot_be_read_is_put_back_if_the_new_file_gets_no_name(self):
        Path("x.db").write_bytes(self.damaged)

        def failing(real):
            def call(old, new):
                if old.startswith("x.db-copy-restore-"):
                    raise OSError(errno.ENOSPC, "No space left on device", old)
                real(old, new)
            return call

        with mock.patch("os.link", failing(os.link)), \
                mock.patch("os.rename", failing(os.rename)):
            self.refuses(self.go("--restore", self.backup), "No space left")
        self.assertEqual(Path("x.db").read_bytes(), self.damaged)
        self.assertEqual(self.beside(), {self.backup})

    def test_two_restores_in_one_second_keep_a_name_each(self):
        with mock.patch("time.time", lambda: 1_800_000_000):
            self.works(self.go("--restore", self.backup))
            os.unlink("x.db")
            Path("x.db-wal").write_bytes(b"log")
            self.works(self.go("--restore", self.backup))
            Path("x.db").write_bytes(self.damaged)
            self.works(self.go("--restore", self.backup))
            self.sql("INSERT INTO a VALUES (7)")
            self.works(self.go("--restore", self.backup))
        kept = sorted(self.beside() - {self.backup})
        self.assertEqual(len({name.partition("_")[2][:6] for name in kept}), 4, kept)
        self.assertEqual(self.sql("SELECT * FROM a", kept[0]), [(1,), (2,)])
        self.assertEqual(Path(kept[1]).read_bytes(), b"log")
        self.assertEqual(Path(kept[2]).read_bytes(), self.damaged)
        self.assertEqual(self.sql("SELECT * FROM a", kept[3]), [(1,), (7,)])

    def test_a_backup_with_another_page_size_is_restored(self):
        self.script("0002-b.sql", "PRAGMA journal_mode = DELETE;\nPRAGMA page_size = 8192;\nVACUUM;")
        self.works(self.go())
        self.sql("PRAGMA journal_mode = " + self.mode)
        self.works(self.go("--restore", self.backup))
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])
        self.assertEqual(self.sql("PRAGMA page_size", self.backup), self.sql("PRAGMA page_size"))

    def failing_replace(self, path, number):
        """A context in which one file cannot be renamed."""
        replace = os.replace

        def fail(old, new):
            if old == path:
                raise OSError(number, os.strerror(number), old)
            replace(old, new)

        return mock.patch("os.replace", fail)

    @posix_only
    def test_what_cannot_be_read_and_cannot_be_moved_stays_and_no_empty_file_is_named(self):
        Path("x.db").write_bytes(self.damaged)
        with self.failing_replace("x.db", errno.EPERM):
            result = self.refuses(self.go("--restore", self.backup), "Operation not permitted")
        self.assertNotIn("is kept in", result.out + result.err)
        self.assertEqual(Path("x.db").read_bytes(), self.damaged)
        self.assertEqual(self.beside(), {self.backup})

    @posix_only
    def test_a_log_that_cannot_be_moved_away_keeps_a_restore_from_success(self):
        os.unlink("x.db")
        Path("x.db-wal").write_bytes(b"log")
        with self.failing_replace("x.db-wal", errno.EIO):
            self.refuses(self.go("--restore", self.backup), "x.db-wal: Input/output error")
        self.assertEqual(self.beside() - {self.backup}, {"x.db-wal"})
        self.assertFalse(os.path.exists("x.db"))

    def test_a_log_or_journal_that_lies_alone_is_not_taken_for_that_of_the_restored(self):
        for mode, ending in (("WAL", "-wal"), ("PERSIST", "-journal")):
            left = sqlite3.connect("y.db", isolation_level=None)
            self.addCleanup(left.close)
            if left.execute(f"PRAGMA journal_mode = {mode}").fetchall() != [(mode.lower(),)]:
                self.skipTest("this file system has no WAL mode")
            left.executescript("CREATE TABLE a (x); PRAGMA cache_size = 1; BEGIN; "
                               "INSERT INTO a VALUES (zeroblob(99999));" + "COMMIT;" * (mode == "WAL"))
            shutil.copy("y.db" + ending, "z.db" + ending)
            content = Path("z.db" + ending).read_bytes()
            fastmigrate.restore_db("z.db", self.backup)
            self.assertEqual(self.sql("SELECT * FROM a", "z.db"), [(1,)])
            (kept,) = self.beside("z.db")
            self.assertTrue(kept.endswith(".before-restore" + ending), kept)
            self.assertEqual(Path(kept).read_bytes(), content)
            left.close()
            for name in ("y.db", "z.db", kept):
                os.unlink(name)

    def test_a_failed_restore_puts_back_what_could_not_be_read(self):
        import resource
        self.sql("INSERT INTO a SELECT zeroblob(300000)", self.backup)
        Path("x.db").write_bytes(self.damaged)

        def restore():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            return self.go("--restore", self.backup)

        result = Forked(restore).result()
        self.assertEqual(result.code, 1, result)
        self.assertEqual(Path("x.db").read_bytes(), self.damaged)
        self.assertEqual(self.backups(ending=".before-restore"), set())

    def test_the_newest_backup_is_found_however_the_path_is_written(self):
        os.mkdir("data")
        fastmigrate.create_db("data/y.db")
        fastmigrate.create_db_backup("data/y.db")
        for path in ("data//y.db", "./data/y.db", "data/../data/y.db"):
            self.works(self.run_main("--db", path, "--restore", "newest"))

    @posix_only
    def test_the_database_may_be_a_link_that_leads_nowhere_yet(self):
        os.mkdir("far")
        os.symlink("far/y.db", "y.db")
        self.works(self.run_main("--db", "y.db", "--restore", self.backup))
        self.assertEqual(self.version("far/y.db"), 1)

    def test_a_directory_in_the_place_of_the_database_is_said_to_be_one(self):
        os.mkdir("y.db")
        result = self.run_main("--db", "y.db", "--restore", self.backup)
        self.assertEqual(self.refuses(result).err, "error: y.db is a directory, not a database. "
                         "Nothing was changed. Name the database file with --db.\n")

    def kept(self):
        """The file that holds what a restore has replaced."""
        (name,) = self.backups(ending=".before-restore")
        return name

    def test_a_backup_is_restored_while_a_connection_is_open_and_what_was_there_kept(self):
        reader = sqlite3.connect("x.db")
        self.addCleanup(reader.close)
        self.assertEqual(len(reader.execute("SELECT * FROM a").fetchall()), 2)
        result = self.works(self.go("--restore", self.backup))
        self.assertEqual(reader.execute("SELECT * FROM a").fetchall(), [(1,)])
        self.assertIn(self.kept(), result.out)
        self.assertEqual(self.sql("SELECT * FROM a", self.kept()), [(1,), (2,)])
        self.assertEqual(self.sql("PRAGMA journal_mode"), [(self.mode,)])

    def test_a_damaged_database_is_restored_and_kept_byte_for_byte(self):
        Path("x.db").write_bytes(self.damaged)
        result = self.works(self.go("--restore", self.backup))
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])
        self.assertIn(f"What x.db held is kept in {self.kept()}\n", result.out)
        self.assertEqual(Path(self.kept()).read_bytes(), self.damaged)
        self.assertEqual(self.beside() - {self.backup, self.kept()}, set())

    @posix_only
    def test_a_damaged_database_behind_a_link_is_kept_where_it_was(self):
        os.mkdir("far")
        Path("far/y.db").write_bytes(self.damaged)
        os.symlink("far/y.db", "y.db")
        self.works(self.run_main("--db", "y.db", "--restore", self.backup))
        self.assertEqual(self.version("far/y.db"), 1)
        self.assertTrue(os.path.islink("y.db"))
        (kept,) = set(os.listdir("far")) - {"y.db"}
        self.assertEqual(Path("far", kept).read_bytes(), self.damaged)

    def test_a_log_in_use_stays_with_the_damaged_database(self):
        other = sqlite3.connect("x.db", isolation_level=None)
        self.addCleanup(other.close)
        if other.execute("PRAGMA journal_mode = WAL").fetchall() != [("wal",)]:
            self.skipTest("this file system has no WAL mode")
        other.execute("INSERT INTO a VALUES (3)")
        with open("x.db", "r+b", buffering=0) as file:
            file.write(b"damaged!" * 12)
        log = Path("x.db-wal").read_bytes()
        self.works(self.go("--restore", self.backup))
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])
        self.assertEqual(Path(self.kept() + "-wal").read_bytes(), log)

    def test_a_missing_or_empty_database_is_restored(self):
        os.unlink("x.db")
        fastmigrate.restore_db("x.db", self.backup)
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])
        Path("y.db").touch()
        fastmigrate.restore_db("y.db", self.backup)
        self.assertEqual(self.sql("SELECT * FROM a", "y.db"), [(1,)])
        fastmigrate.restore_db("new/deep/z.db", self.backup)
        self.assertEqual(self.sql("SELECT * FROM a", "new/deep/z.db"), [(1,)])
        self.assertEqual(self.beside("x.db") | self.beside("y.db"), {self.backup})

    @posix_only
    def test_a_backup_that_only_may_be_read_is_restored_to_a_database_that_can_be_written(self):
        os.chmod(self.backup, 0o440)
        os.unlink("x.db")

        def restore():
            self.as_nobody()
            return self.go("--restore", self.backup)

        self.works(Forked(restore).result())
        self.assertEqual(stat.S_IMODE(os.stat("x.db").st_mode), 0o640)
        self.sql("INSERT INTO a VALUES (3)")
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,), (3,)])

    def as_nobody(self):
        """Become a user for whom permissions count, who owns all that the test has made."""
        if os.getuid() == 0:
            for folder, _, names in os.walk(self.home):
                for path in [folder, *(os.path.join(folder, name) for name in names)]:
                    os.chown(path, 65534, 65534)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)

    def test_a_restore_that_fails_leaves_what_was_there_or_says_that_it_is_restored(self):
        for there in (True, False):
            for last in range(1, 150):
                for name in self.beside() - {self.backup} | ({"x.db"} & set(os.listdir("."))):
                    os.unlink(name)
                if there:
                    shutil.copy(self.backup, "x.db")
                    self.sql("INSERT INTO a VALUES (2)")
                calls = []

                def at(call, calls=calls, last=last):
                    calls.append(call)
                    if len(calls) == last:
                        raise sqlite3.OperationalError("database or disk is full")

                result = self.go("--restore", self.backup, connect=connecting(at))
                if len(calls) < last:
                    break
                why = f"call {last}, {calls[-1]}: {result}"
                self.assertEqual(self.copies(), set(), why)
                if os.path.exists("x.db"):
                    rows = self.sql("SELECT * FROM a") if self.tables() else "an empty database"
                    self.assertIn(rows, [[(1,), (2,)], [(1,)]] if there else [[(1,)]], why)
                    if rows == [(1,)]:
                        self.assertNotIn("Nothing was changed", result.err, why)
                        continue
                self.refuses(result, "no space is left")
            self.works(result)
            self.assertGreater(last, 15)

    @posix_only
    def test_a_restore_that_is_killed_leaves_the_old_or_the_new(self):
        os.chmod(self.backup, 0o600)
        for content in (Path("x.db").read_bytes(), self.damaged):
            for last in range(1, 150):
                for name in [*self.beside() - {self.backup}, *({"x.db"} & set(os.listdir()))]:
                    os.unlink(name)
                Path("x.db").write_bytes(content)
                os.chmod("x.db", 0o600)
                calls = []

                def at(call, calls=calls, last=last):
                    calls.append(call)
                    if len(calls) == last:
                        os.kill(os.getpid(), signal.SIGKILL)

                def restore(at=at):
                    for name in ("open", "replace", "unlink", "link"):
                        real = getattr(os, name)
                        setattr(os, name, lambda *details, name=name, real=real: (
                            at(name), real(*details))[1])
                    return self.go("--restore", self.backup, connect=connecting(at))

                result = Forked(restore).result()
                if content == self.damaged and result.code:
                    holders = ["x.db", *self.backups(ending=".before-restore")]
                    self.assertIn(content, [Path(name).read_bytes() for name in holders
                                            if os.path.exists(name)], last)
                    self.works(self.go("--restore", self.backup))
                self.assertIn(self.sql("SELECT * FROM a"), ([(1,), (2,)], [(1,)]), last)
                self.assertEqual(self.sql("PRAGMA integrity_check"), [("ok",)])
                self.assertEqual({os.stat(name).st_mode & 0o777 for name in (
                    "x.db", *self.beside() - {self.backup})}, {0o600})
                if result.code == 0:
                    break
            self.works(result)
            self.assertGreater(last, 15)
            self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])

    @posix_only
    def test_a_run_waits_for_a_restore_and_the_restore_for_a_run(self):
        meeting = Meeting(self)
        self.py_script("0002-b.py", "execute('INSERT INTO a VALUES (3)')")

        def at(call):
            if call == "backed up":
                meeting.attend()

        restore = Forked(lambda: self.go("--restore", self.backup, connect=connecting(at)))
        for backup in ("of what is there", "into the copy", "over the database"):
            meeting.receive()
            if backup == "into the copy":
                self.refuses(self.end(self.start("--timeout", "0.2")), "database is locked")
                self.assertEqual(len(self.copies()), 1)
            meeting.let_go()
        self.works(restore.result())
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])
        self.py_script("0002-b.py", "meet(); execute('INSERT INTO a VALUES (3)')")
        run = self.start()
        meeting.wait(run)
        self.refuses(self.go("--restore", self.backup, "--timeout", "0.2"), "database is locked")
        meeting.let_go()
        self.works(self.end(run))
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,), (3,)])

    def test_a_database_is_not_restored_from_itself_nor_several_from_one(self):
        shutil.copy("x.db", "y.db")
        self.refuses(self.go("--restore", "x.db"), "x.db is the database itself")
        result = self.run_main("--db", "x.db", "y.db", "--restore", self.backup)
        self.assertEqual((result.code, result.out), (2, ""))
        self.assertEqual(self.beside() - {self.backup}, set())
        self.assertEqual(self.sql("SELECT * FROM a", "y.db"), [(1,), (2,)])

    def test_what_is_no_sound_versioned_database_is_not_restored(self):
        before = Path("x.db").read_bytes()
        Path("text").write_text("not a database at all, but a text" * 99)
        self.sql("CREATE TABLE t (x)", "plain.db")
        Path("empty").touch()
        data = Path(self.backup).read_bytes()
        Path("cut").write_bytes(data[:-4096])
        for name in ("text", "plain.db", "cut", "none", "m", "empty"):
            self.refuses(self.go("--restore", name), name, "Nothing was changed")
            self.assertEqual(Path("x.db").read_bytes(), before)
            self.refuses(self.run_main("--db", "new.db", "--restore", name), name)
            self.assertFalse(os.path.exists("new.db"))

    def test_what_quick_check_says_of_rows_is_no_damage(self):
        for text in ("CREATE TABLE t (a CHECK (a <> '')); PRAGMA ignore_check_constraints = ON;\n"
                     "INSERT INTO t VALUES ('');",
                     "CREATE TABLE n (a); INSERT INTO n VALUES (NULL);"
                     "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = "
                     "'CREATE TABLE n (a NOT NULL)' WHERE name = 'n';"):
            self.sql("DROP TABLE IF EXISTS t")
            with contextlib.closing(sqlite3.connect("x.db")) as connection:
                try:
                    connection.executescript(text)
                except sqlite3.OperationalError:
                    self.assertIn("writable_schema", text)
                    continue  # this SQLite is defensive
            backup = fastmigrate.create_db_backup("x.db")
            self.works(self.go("--restore", str(backup)))

    def test_a_file_beside_the_database_is_no_reason_to_change_it(self):
        for name in ("x.db-snapshot", "x.db-copy-0002-1-abcdef", "x.db.backup"):
            shutil.copy("x.db", name)
        self.sql("INSERT INTO a VALUES (3)")
        self.script("0002-b.sql", "INSERT INTO a VALUES (4);")
        self.works(self.go("--to", "1"))
        self.works(self.go())
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,), (2,), (3,), (4,)])


class RestoringInWal(Restoring):
    mode = "wal"


OBJECTS = """
CREATE TABLE "two words" (id INTEGER PRIMARY KEY AUTOINCREMENT, "a ""b" TEXT DEFAULT 'x;y');
CREATE TABLE s (a TEXT NOT NULL COLLATE NOCASE, c CHECK (c > 0), PRIMARY KEY (a)) WITHOUT ROWID;
CREATE INDEX part ON s (lower(a), c DESC) WHERE c > 3;
CREATE VIEW v AS SELECT a, 'It''s' AS t FROM s;
CREATE TRIGGER tr INSTEAD OF INSERT ON v BEGIN INSERT INTO s (a) VALUES (new.a); SELECT 1; END;
"""


for optional in ("CREATE VIRTUAL TABLE box USING rtree (id, x0, x1);",
                 "CREATE TABLE g (a, b INT AS (length(a)) STORED, c AS (a || ';'));",
                 "CREATE VIRTUAL TABLE words USING fts5 (a, b);", "CREATE TABLE st (a INT) STRICT;"):
    if known(optional):
        OBJECTS += optional


class Looking(Case):
    def setUp(self):
        super().setUp()
        self.create()
        for number in (1, 2, 4):
            self.script(f"{number:04d}-x.sql", f"CREATE TABLE t{number} (x);\n")
        migrate("x.db", "m")

    def states(self):
        return {m["name"]: m["state"] for m in fastmigrate.status("x.db", "m")["migrations"]}

    def test_status_tells_each_state_and_writes_nothing(self):
        self.script("0001-x.sql", "CREATE TABLE t1 (x, y);\n")
        os.unlink("m/0002-x.sql")
        self.script("0003-x.sql")
        self.script("0005-x.sql")
        before = Path("x.db").read_bytes()
        self.assertEqual(self.states(), {
            "0001-x.sql": "edited", "0002-x.sql": "missing", "0003-x.sql": "late",
            "0004-x.sql": "applied", "0005-x.sql": "pending"})
        result = self.works(self.go("--status"))
        self.assertEqual(result.out.splitlines()[0], "x.db is at version 4; the scripts end at 5")
        self.assertRegex(result.out, r"(?m)^  0004-x.sql  applied  \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ$")
        self.assertRegex(result.out, r"(?m)^  0005-x.sql  pending$")
        self.assertEqual(result.err.count("warning: "), 3)
        self.assertNotIn("\x1b", result.out)
        self.assertEqual(Path("x.db").read_bytes(), before)

    def test_status_as_json_has_the_documented_keys(self):
        found = json.loads(self.works(self.go("--status", "--json")).out)
        self.assertEqual(set(found), {"db", "version", "latest", "migrations", "problems", "warnings", "blocked"})
        self.assertEqual((found["db"], found["version"], found["latest"]), ("x.db", 4, 4))
        self.assertEqual(set(found["migrations"][0]), {"version", "name", "state", "applied_at"})

    def test_check_passes_only_what_is_exactly_as_the_directory_says(self):
        self.works(self.go("--check"))
        for name, text in (("0005-x.sql", ""), ("0003-x.sql", ""), ("0001-x.sql", "SELECT 2;")):
            old = Path("m", name).read_text() if Path("m", name).exists() else None
            self.script(name, text)
            self.refuses(self.go("--check"), name)
            os.unlink(f"m/{name}")
            if old:
                self.script(name, old)
        os.unlink("m/0002-x.sql")
        self.refuses(self.go("--check"), "0002-x.sql")
        os.unlink("m/0004-x.sql")
        self.refuses(self.run_main("--db", "x.db", "--migrations", "m", "--check"), "newer")

    def test_accept_records_an_edit_that_was_meant(self):
        self.script("0001-x.sql", "CREATE TABLE t1 (x, y);\n")
        os.unlink("m/0002-x.sql")
        self.assertIn("0001-x.sql, 0002-x.sql", self.works(self.go("--accept")).out)
        self.works(self.go("--check"))

    def test_verify_names_what_was_changed_by_hand(self):
        self.assertIn("is that of the scripts", self.works(self.go("--verify")).out)
        self.assertEqual(fastmigrate.verify("x.db", "m"), "")
        self.sql("CREATE INDEX by_hand ON t1 (x)")
        result = self.go("--verify")
        self.assertEqual(result.code, 1)
        self.assertIn("+CREATE INDEX by_hand ON t1 (x);", result.out)
        self.assertNotIn("t2", result.out)

    def test_a_rehearsal_reports_a_script_that_opens_the_database_itself(self):
        self.py_script("0005-b.py", "sqlite3.connect('x.db').execute('CREATE TABLE w (x)')")
        result = self.works(self.go("--rehearse"))
        self.assertIn("warning: the file of x.db was written during the rehearsal: by another program "
                      "(in WAL mode, closing it is enough), or by a script that opens it in place of "
                      "its first argument.", result.err)
        self.assertTrue(result.out.endswith("\nThis was a rehearsal on a copy of x.db.\n"), result)
        self.py_script("0005-b.py", "execute('CREATE TABLE v (x)')")
        for mode in ("delete", "wal"):
            self.sql(f"PRAGMA journal_mode = {mode}")
            result = self.works(self.go("--rehearse"))
            self.assertTrue(result.out.endswith("\nThis was a rehearsal: x.db is untouched.\n"), result)

    def test_a_mere_reader_does_not_change_a_database_during_its_rehearsal(self):
        self.sql("PRAGMA journal_mode = wal")
        self.py_script("0005-b.py", "c = sqlite3.connect('x.db')",
                       "c.execute('SELECT * FROM _meta').fetchall(); os._exit(0)")
        self.assertIn("x.db is untouched", self.works(self.go("--rehearse")).out)

    @posix_only
    def test_a_change_behind_a_link_is_seen_during_a_rehearsal(self):
        os.mkdir("r")
        os.rename("x.db", "r/x.db")
        os.symlink("r/x.db", "x.db")
        self.sql("PRAGMA journal_mode = wal")
        holder = sqlite3.connect("x.db")  # so that it stays in the log
        self.addCleanup(holder.close)
        holder.execute("SELECT * FROM _meta").fetchall()
        self.py_script("0005-b.py", "with sqlite3.connect('x.db') as c: c.execute('CREATE TABLE w (x)')")
        self.assertIn("the file of x.db was written", self.works(self.go("--rehearse")).err)

    def test_rehearse_shows_what_would_change_and_changes_nothing(self):
        self.script("0005-x.sql", "CREATE TABLE t5 (x); INSERT INTO t1 VALUES (1), (2);")
        self.script("0006-x.py", PY_INSERT + "c.execute('INSERT INTO t5 VALUES (1)'); c.commit()")
        before = Path("x.db").read_bytes()
        result = self.works(self.go("--rehearse"))
        for part in ("Applied 0005-x.sql", "Applied 0006-x.py", "+CREATE TABLE t5 (x);",
                     "t1  0 -> 2", "t5  0 -> 1", "x.db is untouched"):
            self.assertIn(part, result.out)
        self.assertEqual(Path("x.db").read_bytes(), before)
        self.assertEqual(self.beside(), set())
        self.script("0005-x.sql", "\nSELECT nope;")
        self.refuses(self.go("--rehearse"), "0005-x.sql:2", "This was a rehearsal: x.db is untouched.")

    def test_new_numbers_and_names_a_script(self):
        self.assertEqual(self.works(self.run_main("--migrations", "m", "--new", "Add: Users!")).out,
                         os.path.join("m", "0005-add-users.sql") + "\n")
        self.assertEqual(Path("m/0005-add-users.sql").read_text(), "-- Add: Users!\n")
        path = fastmigrate.new_migration("m", 'backfill \\N "emails".py')
        self.assertEqual(path, Path("m/0006-backfill-n-emails.py"))
        self.works(self.go())
        self.refuses(self.run_main("--migrations", "m", "--new", "!!"), "no words")
        self.script("9999-last.sql")
        self.refuses(self.run_main("--migrations", "m", "--new", "more"), "9999")

    def test_build_db_returns_a_database_in_memory(self):
        connection = fastmigrate.build_db("m", to=2)
        self.assertEqual(connection.execute("SELECT version FROM _meta").fetchall(), [(2,)])
        connection.execute("INSERT INTO t2 VALUES (1)")
        connection.close()


class Enrolling(Case):
    def enrolled(self, text, scripts=None):
        """Enroll a database that has this schema; return the exit."""
        connection = sqlite3.connect("x.db")
        connection.executescript(text)
        connection.close()
        for name, script in (scripts or {}).items():
            self.script(name, script)
        return self.go("--enroll")

    @needs("rtree")
    def test_tables_that_an_extension_or_a_replicator_makes_itself_are_not_the_schema(self):
        self.works(self.enrolled(
            "CREATE VIRTUAL TABLE v USING rtree (id, x0, x1);"
            "CREATE TABLE _litestream_seq (id); CREATE TABLE mine (x);"))
        text = Path("m", "0001-initialize.sql").read_text()
        self.assertEqual(re.findall(r"TABLE (\w+)", text), ["mine", "v"])
        self.assertEqual(fastmigrate.verify("x.db", "m"), "")

    def test_line_ends_within_a_default_are_a_difference(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE t (a DEFAULT 'x\x0by');")
        migrate("x.db", "m")
        self.script("0001-a.sql", "CREATE TABLE t (a DEFAULT 'x\ny');")
        self.assertNotEqual(fastmigrate.verify("x.db", "m"), "")

    def test_without_scripts_the_first_is_written_and_rebuilds_the_schema(self):
        self.works(self.enrolled(OBJECTS))
        self.assertEqual(self.version(), 1)
        self.works(self.go("--verify"))
        fastmigrate.create_db("new.db")
        migrate("new.db", "m")
        self.assertEqual(fastmigrate.verify("new.db", "m"), "")
        connection = sqlite3.connect("y.db")
        connection.executescript(OBJECTS)
        connection.close()
        self.assertEqual(fastmigrate.enroll_db("y.db", "m"), 1)
        self.refuses(self.go("--enroll"), "already versioned, at version 1")

    def test_schemas_that_sqlite_treats_alike_are_alike(self):
        self.works(self.enrolled(
            "create table [a](x integer /* c */,\n  \"y\" text, UNIQUE (x));"
            "ALTER TABLE a ADD COLUMN z DEFAULT 5; CREATE TABLE old (q); "
            "ALTER TABLE old RENAME TO new;",
            {"0001-a.sql": "CREATE TABLE a (x INTEGER, y TEXT, z DEFAULT 5, UNIQUE (x));"
                           "CREATE TABLE new (q);"}))
        self.assertEqual(self.version(), 1)

    def test_the_version_is_found_among_the_scripts(self):
        self.works(self.enrolled("CREATE TABLE a (x); CREATE TABLE b (y);", {
            "0001-a.sql": "CREATE TABLE a (x);", "0002-b.sql": "CREATE TABLE b (y);",
            "0003-c.sql": "CREATE TABLE c (z);"}))
        self.assertEqual(self.version(), 2)

    def test_what_fits_no_version_is_shown_and_left_as_it_was(self):
        for table in ("CREATE TABLE a (y, x)", "CREATE TABLE a (x, y NOT NULL)",
                      "CREATE TABLE a (x, y DEFAULT 'Y')", "CREATE TABLE a (x, y COLLATE NOCASE)",
                      "CREATE TABLE a (x, y); CREATE VIEW w AS SELECT 1"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink("x.db")
            result = self.enrolled(table, {"0001-a.sql": "CREATE TABLE a (x, y);"})
            self.refuses(result, "no version has the schema", "Nothing was changed")
            with self.assertRaises(fastmigrate.UnversionedError):
                fastmigrate.get_db_version("x.db")

    def test_an_empty_database_is_not_enrolled(self):
        Path("x.db").write_text("")
        self.refuses(self.go("--enroll"), "x.db is empty. To make it a database")
        self.assertEqual(os.listdir("m"), [])


class Squashing(Case):
    """Scripts 1 to 3 are squashed; 4 stays."""

    def setUp(self):
        super().setUp()
        self.script("0001-users.sql", "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT);\n"
                    "INSERT INTO users VALUES (1, 'ann'), (7, 'bob');\n")
        self.script("0002-posts.sql", "CREATE TABLE posts (user REFERENCES users, text);\n")
        self.script("0003-ix.sql", "CREATE INDEX by_user ON posts (user);\n")
        self.script("0004-tags.sql", "CREATE TABLE tags (x);\n")

    def at(self, version, db="x.db"):
        """A database that the old scripts brought to a version."""
        self.create(db)
        if version:
            migrate(db, "m", to=version)

    def squash(self, to=3):
        return self.works(self.run_main("--migrations", "m", "--squash", to))

    def only(self, *scripts):
        shutil.rmtree("m")
        os.mkdir("m")
        for number, text in enumerate(scripts, 1):
            self.script(f"{number:04d}-x.{'py' if text.startswith('import') else 'sql'}", text)

    def same(self, to, db="x.db"):
        """Squash; what the new script builds is what the old ones built in x.db; return it."""
        self.at(to, db)
        self.squash(to)
        with contextlib.closing(fastmigrate.build_db("m", to=to)) as built, \
                contextlib.closing(sqlite3.connect(db)) as old:
            for connection in (built, old):
                connection.execute("DROP TABLE _migration_history")
            before, after = self.contents(old), self.contents(built)
        self.assertEqual(before, after)
        return Path("m", f"{to:04d}-squashed.sql").read_text(encoding="utf-8")

    def contents(self, connection):
        """All that a database holds, by other means than those of squash()."""
        connection.text_factory = bytes
        found = {"schema": sorted(connection.execute(
            "SELECT type, name, tbl_name, trim(sql, ' ' || char(10)) FROM sqlite_master "
            "WHERE name <> 'sqlite_sequence'"))}
        for name, in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' "
                "AND sql NOT LIKE 'CREATE VIRTUAL%' AND name NOT LIKE 'ft%'").fetchall():
            table = '"' + name.decode().replace('"', '""') + '"'
            rowid = ["rowid"] if not any(b"rowid" in row[2].lower() for row in connection.execute(
                "SELECT name, type, sql FROM sqlite_master WHERE name = ?", (name.decode(),))) else []
            columns = ['"' + row[1].decode().replace('"', '""') + '"' for row in connection.execute(
                f"PRAGMA table_xinfo({table})")]
            found[name] = [[repr(value) for value in row] for row in connection.execute(
                "SELECT " + ", ".join([*(f"typeof({c}), {c}" for c in columns), *rowid])
                + f" FROM {table} ORDER BY 2")]
        for pragma in ("user_version", "application_id"):
            found[pragma] = connection.execute(f"PRAGMA {pragma}").fetchone()
        return {key: value for key, value in found.items() if value}

    def test_a_squashed_script_of_any_name_runs_on_empty_databases_only(self):
        self.create()
        migrate("x.db", "m")
        version = self.version()
        self.script("0009-baseline.sql", "-- fastmigrate: squashed\nCREATE TABLE b (x);")
        self.refuses(self.go(), "builds new databases only, but this one has tables")
        self.assertEqual(self.version(), version)

    def test_a_squash_that_was_cut_off_is_told_how_to_go_back(self):
        self.create()
        self.works(self.go("--squash", "2"))
        os.rename("m/before-0002/0002-posts.sql", "m/0002-posts.sql")
        self.refuses(self.go(), "move the scripts in before-0002 back, then delete that folder")

    def test_the_new_script_takes_the_place_of_the_old_ones(self):
        self.assertEqual(self.squash().out, f"wrote {os.path.join('m', '0003-squashed.sql')}; moved "
                         f"3 scripts to {os.path.join('m', 'before-0003')}\n")
        self.assertEqual(sorted(os.listdir("m")), ["0003-squashed.sql", "0004-tags.sql", "before-0003"])
        self.assertEqual(sorted(os.listdir("m/before-0003")),
                         ["0001-users.sql", "0002-posts.sql", "0003-ix.sql"])
        self.assertEqual(Path("m/0003-squashed.sql").read_text(), """\
-- fastmigrate: squashed
-- The schema and the rows that the scripts up to 0003 lead to. The scripts are in
-- before-0003. A database at version 3 or above never runs this.
CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT);
INSERT INTO "users" ("id", "name") VALUES
(1, 'ann'),
(7, 'bob');
CREATE TABLE posts (user REFERENCES users, text);
CREATE INDEX by_user ON posts (user);
""")
        self.create()
        self.assertEqual(self.works(self.go()).err, "")
        self.assertEqual((self.version(), self.tables()), (4, {"users", "posts", "tags"}))
        self.works(self.go("--check"))

    def test_squash_returns_the_path(self):
        self.assertEqual(fastmigrate.squash("m", 3), Path("m/0003-squashed.sql"))

    def test_values_of_every_kind_come_back(self):
        values = [None, 0, -1, 2 ** 63 - 1, -2 ** 63, 0.1, -0.0, 5e-324, 1.7976931348623157e308,
                  float("inf"), float("-inf"), 1e22, 0.1 + 0.2, 123456789.123, b"", b"\0'\xff",
                  "", "it's", "a\nb", "a \nb", "a\r\nb", "\r", "\0", "a\0b", ";\n", "--", "\ufeffx",
                  "😀", "123", "1.0", "9e999", "-- ;\nEND;\n"]
        chance = random.Random(5)
        values += [chance.random() * 10.0 ** chance.randrange(-30, 30) for _ in range(300)]
        values += [round(chance.uniform(-1000, 1000), 2) for _ in range(300)]
        self.only(PY_INSERT + f"inf = float('inf')\nvalues = {values!r}\n" + """
for n, kind in enumerate(["", "TEXT", "INTEGER", "REAL", "NUMERIC", "BLOB", "timestamp"]):
    c.execute(f'CREATE TABLE "t {n}" (a {kind}, "b ""[date]" {kind} DEFAULT 5)')
    c.executemany(f'INSERT INTO "t {n}" VALUES (?, ?)', zip(values, values[::-1]))
    c.execute(f'''INSERT INTO "t {n}" VALUES (CAST(X'ff00fe' AS TEXT), CAST(X'c3' AS TEXT))''')
    c.execute(f'DELETE FROM "t {n}" WHERE rowid % 3 = 0')
c.commit()
""")
        self.same(1)

    def test_values_come_back_where_connect_converts_them(self):
        def connect(path):
            return sqlite3.connect(path, detect_types=sqlite3.PARSE_DECLTYPES | sqlite3.PARSE_COLNAMES)
        self.only("CREATE TABLE t (d date, \"e [date]\"); INSERT INTO t VALUES ('no date', 'none');")
        fastmigrate.squash("m", 1, connect=connect)
        self.assertIn("('no date', 'none')", Path("m/0001-squashed.sql").read_text().replace("1, ", ""))

    def test_tables_of_every_kind_come_back(self):
        for number, text in enumerate((
                "CREATE TABLE t (a); INSERT INTO t (rowid, a) VALUES (-5, 1), (3, 2), (2147483648, 3);",
                "CREATE TABLE t (a INTEGER PRIMARY KEY DESC); INSERT INTO t (rowid, a) VALUES (9, 1);",
                "CREATE TABLE t (rowid, oid TEXT); INSERT INTO t (_rowid_, oid) VALUES (7, 'x');",
                "CREATE TABLE t (rowid, oid, _rowid_); INSERT INTO t VALUES (7, 'x', NULL);",
                "CREATE TABLE t (a TEXT, b, PRIMARY KEY (b, a)) WITHOUT ROWID -- end\n; "
                "INSERT INTO t VALUES ('b', 1), ('a', 2);",
                "CREATE TABLE t (a, b AS (a + 1), c AS (a * 2) STORED, d); INSERT INTO t VALUES (1, 2);",
                "CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO t VALUES (5), (9);"
                "DELETE FROM t WHERE a = 9; CREATE TABLE u (a INTEGER PRIMARY KEY AUTOINCREMENT);"
                "INSERT INTO u VALUES (3); DELETE FROM u;",
                "CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO t VALUES (5);"
                "DELETE FROM sqlite_sequence;",
                "CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO t VALUES (5);"
                "DROP TABLE t; CREATE TABLE b (a -- autoincrement\n);",
                "CREATE TABLE t (a CHECK (a <> '')); PRAGMA ignore_check_constraints = ON;"
                "INSERT INTO t VALUES ('');",
                'CREATE TABLE "Ämter" (a); CREATE TABLE "ämter" (b); INSERT INTO "Ämter" VALUES (1);',
                "CREATE TABLE t (a); INSERT INTO t VALUES (1); ALTER TABLE t ADD COLUMN b DEFAULT 'x;y';"
                "ALTER TABLE t RENAME TO [select]; CREATE TABLE c AS SELECT * FROM \"select\";")):
            with self.subTest(text):
                if "AS (" in text and not known("CREATE TABLE t (a, b AS (a))"):
                    continue
                self.only(text)
                self.same(1, f"{number}.db")

    def test_triggers_views_and_pragmas_come_back_and_no_trigger_fires(self):
        self.only("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2); CREATE TABLE log (x);"
                  "CREATE VIEW v AS SELECT a FROM t -- live; rows\n;"
                  "CREATE VIEW w AS SELECT a FROM v /* of v */;"
                  "CREATE TRIGGER one AFTER INSERT ON t BEGIN INSERT INTO log VALUES (';'); END;"
                  "CREATE TRIGGER two INSTEAD OF INSERT ON v BEGIN SELECT CASE 1 WHEN 1 THEN 2 END; END;"
                  "PRAGMA user_version = 7; PRAGMA application_id = -3;")
        self.assertIn("-- live; rows\n;\n", self.same(1))

    def test_the_journal_mode_comes_back(self):
        self.only("PRAGMA journal_mode = WAL;\nCREATE TABLE t (a);")
        self.squash(1)
        self.create()
        self.works(self.go())
        self.assertEqual(self.sql("PRAGMA journal_mode"), [("wal",)])

    def test_references_that_dangle_come_back(self):
        self.only("-- fastmigrate: no-foreign-key-check\nCREATE TABLE p (id INTEGER PRIMARY KEY);"
                  "CREATE TABLE c (p REFERENCES p); INSERT INTO c VALUES (5);")
        self.assertIn("-- fastmigrate: no-foreign-key-check\n", self.same(1))

    def test_a_long_script_is_run_in_blocks(self):
        self.only("CREATE TABLE t (a, b);" + PY_INSERT[:0], PY_INSERT +
                  "c.executemany('INSERT INTO t VALUES (?, ?)', "
                  "((n, \"it's;\\n\" * 20 + 'END;\\n') for n in range(9000)))\nc.commit()\n")
        self.assertGreater(len(self.same(2)), 4 * fastmigrate.BLOCK)

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5 (a)"), "needs FTS5")
    def test_an_empty_virtual_table_comes_back(self):
        self.only("CREATE VIRTUAL TABLE v USING fts5 (autoincrement);")
        self.assertIn("USING fts5 (autoincrement)", self.same(1))

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5 (a)"), "needs FTS5")
    def test_a_full_text_index_over_a_table_is_built_again(self):
        self.only("CREATE TABLE t (id INTEGER PRIMARY KEY, body);"
                  "INSERT INTO t VALUES (4, 'red fox'), (9, 'red hen');"
                  "CREATE VIRTUAL TABLE \"ft words\" USING fts5 (body, content='t', content_rowid=id);"
                  "INSERT INTO \"ft words\"(\"ft words\") VALUES ('rebuild');"
                  "CREATE TRIGGER ai AFTER INSERT ON t BEGIN INSERT INTO \"ft words\" (rowid, body) "
                  "VALUES (new.id, new.body); END;")
        self.squash(1)
        with contextlib.closing(fastmigrate.build_db("m")) as built:
            self.assertEqual(built.execute(
                "SELECT rowid FROM \"ft words\" ('hen')").fetchall(), [(9,)])

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5 (a)"), "needs FTS5")
    def test_a_full_text_index_holds_afterwards_what_its_table_holds(self):
        self.only("CREATE TABLE t (body); INSERT INTO t VALUES ('red fox');"
                  "CREATE VIRTUAL TABLE words USING fts5 (body, content='t');"
                  "INSERT INTO words (rowid, body) VALUES (1, 'blue hen');")
        self.squash(1)
        with contextlib.closing(fastmigrate.build_db("m")) as built:
            self.assertEqual(built.execute("SELECT rowid FROM words ('fox')").fetchall(), [(1,)])
            self.assertEqual(built.execute("SELECT rowid FROM words ('hen')").fetchall(), [])

    def test_a_virtual_table_with_rows_of_its_own_is_refused_by_name(self):
        kinds = ["rtree (id, a, b)"] * known("CREATE VIRTUAL TABLE t USING rtree (id, a, b)") + ["fts5 (a)", "fts5 (a, content='')"] * known(
            "CREATE VIRTUAL TABLE t USING fts5 (a)")
        for kind in kinds:
            make = f"CREATE VIRTUAL TABLE box USING {kind};"
            self.only(make)
            self.squash(1)
            self.only(make, f"INSERT INTO box (rowid{', a' * ('fts' in kind)}) "
                            f"VALUES (1{', 2' * ('fts' in kind)});")
            self.refuses(self.go("--squash", 2), "the virtual table box has rows of its own, which "
                         "cannot be squashed. Nothing was changed. Squash up to a script before")
            self.assertEqual(sorted(os.listdir("m")), ["0001-x.sql", "0002-x.sql"])

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING rtree (id, a, b)"), "needs rtree")
    def test_a_table_beside_a_virtual_one_is_no_part_of_it(self):
        self.only("CREATE VIRTUAL TABLE box USING rtree (id, a, b); CREATE TABLE box_info (x);"
                  "CREATE TABLE box_data2024 (x); INSERT INTO box_info VALUES (1);")
        self.squash(1)
        with contextlib.closing(fastmigrate.build_db("m")) as built:
            self.assertEqual(built.execute("SELECT x FROM box_info, (SELECT count(*) FROM "
                                           "box_data2024)").fetchall(), [(1,)])

    # ---------------------------------------------------------- databases

    def test_a_database_at_or_above_it_has_had_it(self):
        for version in (3, 4):
            self.at(version, f"{version}.db")
        self.squash()
        for version in (3, 4):
            db = f"{version}.db"
            states = {m["name"]: m["state"] for m in fastmigrate.status(db, "m")["migrations"]}
            self.assertEqual(states, {"0003-squashed.sql": "applied",
                                      "0004-tags.sql": "pending" if version == 3 else "applied"})
            self.assertEqual(fastmigrate.status(db, "m")["problems"], [])
            self.assertEqual(fastmigrate.verify(db, "m"), "")
            self.assertEqual(len(fastmigrate.rehearse(db, "m")["migrations"]), 4 - version)
            for _ in range(2):
                self.assertEqual(self.works(self.run_main("--db", db, "--migrations", "m")).err, "")
            self.works(self.run_main("--db", db, "--migrations", "m", "--check"))
            self.works(self.run_main("--db", db, "--migrations", "m", "--accept"))
            self.assertEqual(self.version(db), 4)
            self.assertEqual(self.sql("SELECT name FROM _migration_history WHERE version = 3", db),
                             [("0003-ix.sql",)])

    def test_a_file_that_took_its_name_meanwhile_stays(self):
        self.script("0005-e.py", "open('m/0005-squashed.sql', 'x').write('mine')\n")
        names = set(os.listdir("m"))
        self.refuses(self.run_main("--migrations", "m", "--squash", 5), "0005-squashed.sql")
        self.assertEqual(Path("m/0005-squashed.sql").read_text(), "mine")
        self.assertEqual(set(os.listdir("m")), names | {"0005-squashed.sql"})

    def test_a_database_below_it_is_refused_and_left_as_it_was(self):
        self.at(2)
        self.squash()
        before = Path("x.db").read_bytes()
        text = ("the scripts up to 3 in m were squashed into one, which builds new databases only, "
                "but {} is at version 2. Migrate it first with a release that still has the scripts "
                f"up to 3, or with --migrations {os.path.join('m', 'before-0003')}. Nothing was "
                "changed.")
        for arguments in ((), ("--backup",), ("--to", 3), ("--check",)):
            with self.subTest(arguments):
                self.refuses(self.go(*arguments), text.format("x.db"))
        self.refuses(self.go("--rehearse"), text.format("the copy of x.db"))
        self.refuses(self.go("--verify"), "there is no version 2 any more")
        status = fastmigrate.status("x.db", "m")
        self.assertEqual([m["state"] for m in status["migrations"]], ["pending", "pending"])
        self.assertEqual(status["problems"], [text.format("x.db")])
        self.assertFalse(fastmigrate.run_migrations("x.db", "m"))
        self.works(self.go("--to", 2))
        self.assertEqual(Path("x.db").read_bytes(), before)
        self.assertEqual(self.beside(), set())
        self.works(self.run_main("--db", "x.db", "--migrations", "m/before-0003"))
        self.works(self.go())
        self.assertEqual(self.version(), 4)

    def test_it_never_runs_on_a_database_that_has_tables(self):
        self.create()
        self.sql("CREATE TABLE mine (x)")
        self.squash()
        for arguments in ((), ("--rehearse",), ("--check",)):
            self.refuses(self.go(*arguments), "x.db has tables (mine). If they are those of version 3, "
                         "set the version with --set-version or set_db_version(); else begin with an "
                         "empty database.")
        self.assertEqual(self.tables(), {"mine"})

    def test_a_script_that_is_added_below_it_is_refused_on_a_new_database(self):
        self.at(4)
        self.squash()
        self.script("0002-late.sql", "CREATE TABLE late (x);")
        self.create("new.db")
        for arguments in ((), ("--squash", 4)):
            self.refuses(self.run_main("--db", "new.db", "--migrations", "m", *arguments),
                         "0002-late.sql has a lower number. Delete it if 0003-squashed.sql replaced it; "
                         "else give it a number above the latest script.")
        self.assertEqual(self.tables("new.db"), set())
        self.refuses(self.go("--check"), "0002-late.sql")

    def test_a_version_below_it_cannot_be_built(self):
        self.squash()
        self.create()
        text = "there is no version 2 any more. Stop at 3 or above."
        with self.assertRaisesRegex(MigrationError, text):
            fastmigrate.build_db("m", to=2)
        self.refuses(self.go("--to", 2), text)
        self.works(self.go("--to", 0))
        self.works(self.go("--verify"))
        fastmigrate.build_db("m", to=3).close()

    def test_a_database_is_enrolled_at_it_or_above(self):
        for version in (3, 4):
            self.at(version, f"{version}.db")
            for table in ("_meta", "_migration_history"):
                self.sql(f"DROP TABLE {table}", f"{version}.db")
        self.squash()
        for version in (3, 4):
            self.assertEqual(fastmigrate.enroll_db(f"{version}.db", "m"), version)
            self.assertEqual(fastmigrate.status(f"{version}.db", "m")["problems"], [])

    def test_a_database_that_ran_it_sees_when_it_is_edited(self):
        self.squash()
        self.at(4)
        self.works(self.go("--check"))
        with open("m/0003-squashed.sql", "a") as file:
            file.write("CREATE TABLE more (x);\n")
        self.refuses(self.go("--check"), "0003-squashed.sql: edited")

    def test_another_name_means_the_same(self):
        self.at(4)
        self.squash()
        os.rename("m/0003-squashed.sql", "m/0003-baseline.sql")
        self.works(self.go("--check"))
        self.at(4, "y.db")

    def test_a_second_squash_takes_in_the_first(self):
        self.at(4)
        self.squash()
        self.at(4, "y.db")
        self.script("0005-more.sql", "INSERT INTO tags VALUES (1);")
        self.at(5, "z.db")
        self.squash(4)
        self.assertEqual(sorted(os.listdir("m")),
                         ["0004-squashed.sql", "0005-more.sql", "before-0003", "before-0004"])
        self.assertEqual(sorted(os.listdir("m/before-0004")), ["0003-squashed.sql", "0004-tags.sql"])
        self.create("new.db")
        for db in ("x.db", "y.db", "z.db", "new.db"):
            self.assertEqual(self.works(self.run_main("--db", db, "--migrations", "m")).err, "")
            self.works(self.run_main("--db", db, "--migrations", "m", "--check"))
            self.assertEqual(self.sql("SELECT (SELECT count(*) FROM users), count(*) FROM tags", db),
                             [(2, 1)])

    # ---------------------------------------------------------- refusals and crashes

    def test_what_cannot_be_squashed_is_refused_before_anything_changes(self):
        self.refuses(self.go("--squash", 9), "m has no script with the number 0009. Nothing was "
                     "changed. Give the number of the last script to squash.")
        taken = "{} already exists, and squash puts scripts there. Nothing was changed. Move it out of the way first."
        os.mkdir("m/before-0003")
        self.refuses(self.go("--squash", 3), taken.format("before-0003"))
        os.rmdir("m/before-0003")
        self.squash()
        self.refuses(self.go("--squash", 3), taken.format("0003-squashed.sql"))
        self.script("0005-wrong.sql", "SELECT nope;")
        before = sorted(os.listdir("m"))
        self.refuses(self.go("--squash", 5), "0005-wrong.sql:1: no such column: nope")
        self.assertEqual(sorted(os.listdir("m")), before)
        self.assertEqual(self.go("--squash", 0).code, 2)

    def test_what_scripts_do_elsewhere_is_announced(self):
        self.script("0002-posts.sql", "ATTACH DATABASE ':memory:' AS other;\n"
                    "CREATE TABLE posts (user REFERENCES users, text);\n")
        self.script("0003-ix.sh", "exit 0")
        os.unlink("m/0003-ix.sql")
        self.assertEqual(self.squash().err, "warning: now running on a scratch database or "
                         "copy: 0002-posts.sql, 0003-ix.sh. What is done outside of it (files, other "
                         "databases, the network) really happens.\n")

    def killed(self, step):
        """Squash in a process that dies at one of its changes of the directory; whether it did."""
        code = f"""
import os, shutil, sys
sys.path.insert(0, {str(MODULE.parent)!r})
import fastmigrate
left = [{step}]
def dying(act):
    def call(*arguments, **options):
        if any("before-0003" in str(a) or "0003-squashed" in str(a) for a in arguments):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
        return act(*arguments, **options)
    return call
for module, name in ((os, "mkdir"), (os, "link"), (os, "unlink"), (os, "rename"), (os, "replace"),
                     (shutil, "copyfile")):
    setattr(module, name, dying(getattr(module, name)))
fastmigrate.squash("m", 3)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertIn(done.returncode, (0, 9), done.stderr)
        return done.returncode == 9

    def undo(self):
        """Undo a squash that was cut off, as its error says."""
        if os.path.exists("m/before-0003"):
            for name in os.listdir("m/before-0003"):
                os.rename(f"m/before-0003/{name}", f"m/{name}")
            os.rmdir("m/before-0003")
        os.unlink("m/0003-squashed.sql")

    def test_the_error_of_a_squash_that_stops_half_way_tells_how_to_undo_it(self):
        before, new = os.path.join("m", "before-0003"), os.path.join("m", "0003-squashed.sql")
        names, rename = sorted(os.listdir("m")), os.rename

        def failing(old, target):
            if "0002" in old:
                raise PermissionError(13, "Permission denied", old)
            rename(old, target)

        with unittest.mock.patch("os.rename", failing), self.assertRaises(MigrationError) as caught:
            fastmigrate.squash("m", 3)
        self.assertEqual(str(caught.exception), f"{os.path.join('m', '0002-posts.sql')}: Permission "
                         "denied. The squash stopped, and no script is lost. To undo it, move the "
                         f"scripts in {before} back to m; delete {before} and {new}.")
        self.refuses(self.go("--squash", 3), "two scripts have the number 0003")
        self.undo()
        self.assertEqual(sorted(os.listdir("m")), names)
        self.squash()

    def test_a_squash_that_is_killed_is_never_run_and_loses_nothing(self):
        shutil.copytree("m", "kept")
        step, halves = 0, 0
        while self.killed(step):
            self.create(f"{step}.db")
            result = self.run_main("--db", f"{step}.db", "--migrations", "m")
            if result.code:
                halves += 1
                for arguments in ((), ("--squash", 3), ("--check",)):
                    self.refuses(
                        self.run_main("--db", f"{step}.db", "--migrations", "m", *arguments),
                        "two scripts have the number 0003, so nothing is run")
                self.undo()
            if "0003-ix.sql" in os.listdir("m"):
                for path in Path("m").glob("*.new-*"):
                    path.unlink()
                self.squash()
            self.assertEqual(sorted(os.listdir("m")),
                             ["0003-squashed.sql", "0004-tags.sql", "before-0003"])
            self.assertEqual([name for name in sorted(os.listdir("m/before-0003"))
                              if ".new-" not in name],
                             ["0001-users.sql", "0002-posts.sql", "0003-ix.sql"])
            self.assertEqual(self.version(f"{step}.db"), 0 if result.code else 4)
            for name in ("0001-users.sql", "0002-posts.sql", "0003-ix.sql"):
                self.assertEqual(Path("m/before-0003", name).read_bytes(), Path("kept", name).read_bytes())
            shutil.rmtree("m")
            shutil.copytree("kept", "m")
            step += 1
        self.assertGreater(halves, 2)

    def test_a_script_of_its_number_that_came_later_is_no_interrupted_squash(self):
        self.squash()
        self.script("0003-other.sql", "CREATE TABLE other (x);")
        before = sorted(os.listdir("m"))
        self.refuses(self.go("--squash", 3), "two scripts have the number 0003, so nothing is run")
        self.assertEqual(sorted(os.listdir("m")), before)

    def test_two_at_once_lose_nothing(self):
        started = [self.start("--squash", "3") for _ in range(3)]
        codes = sorted([process.wait() for process in started])
        for process in started:
            process.communicate()
        self.assertEqual(codes[0], 0)
        self.assertEqual(sorted(os.listdir("m")), ["0003-squashed.sql", "0004-tags.sql", "before-0003"])
        self.assertEqual(len(os.listdir("m/before-0003")), 3)


class EnrollingSafely(Case):
    def test_the_first_script_appears_whole_also_without_hard_links(self):
        self.sql("CREATE TABLE a (x)")
        with mock.patch("os.link", side_effect=OSError(errno.EPERM, "no links here")):
            self.works(self.go("--enroll"))
        self.assertEqual(os.listdir("m"), ["0001-initialize.sql"])
        self.assertIn("CREATE TABLE a (x);", Path("m/0001-initialize.sql").read_text())

    def test_what_fits_an_old_version_best_is_led_on_by_a_script(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.script("0002-b.sql", "CREATE TABLE b (x); CREATE TABLE c (x);")
        self.sql("CREATE TABLE a (x)")
        self.sql("CREATE INDEX hotfix ON a (x)")
        self.refuses(self.go("--enroll"), "Or set the version to 1 with --set-version, and let")
        self.script("0003-c.sql", "CREATE INDEX IF NOT EXISTS hotfix ON a (x);")
        for arguments in (("--set-version", 1), (), ("--verify",), ("--check",)):
            self.works(self.go(*arguments))

    def test_a_history_of_somebody_else_is_left_alone(self):
        self.old("CREATE TABLE t (x); CREATE TABLE _migration_history (id, done)")
        before = Path("x.db").read_bytes()
        self.refuses(self.go("--enroll"), "a table _migration_history that is not fastmigrate's")
        self.assertEqual(Path("x.db").read_bytes(), before)

    def test_what_was_broken_before_does_not_hide_a_late_script(self):
        self.old("CREATE VIEW v AS SELECT * FROM nowhere;")
        fastmigrate.ensure_meta_table("x.db")
        self.script("0001-x.sql", "CREATE TABLE t1 (x);")
        self.script("0003-x.sql", "CREATE TABLE t3 (x);")
        self.works(self.go())
        self.script("0002-x.sql", "CREATE TABLE t2 (x);")
        self.assertIn("0002-x.sql: never run", self.works(self.go()).err)

    def test_accepting_keeps_what_was_broken_before(self):
        self.old("CREATE TABLE t (x); CREATE VIEW v AS SELECT nope FROM t;")
        self.script("0001-x.sql", "CREATE TABLE t (x);")
        fastmigrate.set_db_version("x.db", 1)
        self.go("--accept")
        self.script("0002-x.sql", "CREATE TABLE t2 (x);")
        self.works(self.go())
        self.assertIn("warning: in x.db, view v", self.works(self.go("--check")).err)

    def test_an_edit_of_a_script_that_counts_as_applied_is_reported(self):
        for number in (1, 2):
            self.script(f"{number:04d}-x.sql", f"CREATE TABLE t{number} (x);")
        self.old("CREATE TABLE t1 (x); CREATE TABLE t2 (x)")
        self.works(self.go("--enroll"))
        self.old("CREATE TABLE t1 (x); CREATE TABLE t2 (x)", "y.db")
        fastmigrate.set_db_version("y.db", 2)
        self.script("0003-x.sql", "CREATE TABLE t3 (x);")
        self.works(self.run_main("--db", "y.db", "--migrations", "m"))
        self.script("0001-x.sql", "CREATE TABLE t1 (x, y);")
        for db in ("x.db", "y.db"):
            states = [(each["name"], each["state"], bool(each["applied_at"]))
                      for each in fastmigrate.status(db, "m")["migrations"]]
            self.assertEqual(states, [("0001-x.sql", "edited", False),
                                      ("0002-x.sql", "applied", False),
                                      ("0003-x.sql", *(("applied", True) if db == "y.db" else
                                                       ("pending", False)))])
        self.assertEqual(self.works(self.go("--accept")).out, "accepted for x.db: 0001-x.sql\n")
        self.assertEqual(self.sql("SELECT DISTINCT applied_at FROM _migration_history"), [("",)])

    def test_an_edit_is_reported_after_the_version_was_lowered_for_a_late_script(self):
        self.create()
        for number in (1, 3):
            self.script(f"{number:04d}-x.sql", f"CREATE TABLE t{number} (x);")
        self.works(self.go())
        self.script("0002-late.sql", "CREATE TABLE t2 (x);")
        for arguments in (["--set-version", "1"], ["--to", "2"], ["--set-version", "3"]):
            self.works(self.go(*arguments))
        self.works(self.go("--check"))
        self.script("0003-x.sql", "CREATE TABLE t3 (x, y);")
        self.refuses(self.go("--check"), "0003-x.sql: edited since applied")
        self.script("0003-x.sql", "CREATE TABLE t3 (x);")
        self.works(self.go("--check"))

    @unittest.skipIf(os.name != "posix" or not os.getuid(), "root can read all files")
    def test_a_script_that_counts_as_applied_need_not_be_readable(self):
        self.script("0001-x.sql", "CREATE TABLE t1 (x);")
        os.chmod("m/0001-x.sql", 0)
        self.old("CREATE TABLE t1 (x)")
        fastmigrate.set_db_version("x.db", 1)
        self.script("0002-x.sql", "CREATE TABLE t2 (x);")
        self.works(self.go())

    def test_what_was_broken_when_a_database_was_enrolled_is_only_a_warning(self):
        self.old("CREATE TABLE t (x); CREATE VIEW v AS SELECT nope FROM t")
        self.script("0001-x.sql", "CREATE TABLE t (x); CREATE VIEW v AS SELECT nope FROM t;")
        self.works(self.go("--enroll"))
        self.assertIn("view v does not compile", self.works(self.go("--check")).err)
        self.script("0002-x.sql", "CREATE VIEW w AS SELECT gone FROM t;")
        self.works(self.go())
        result = self.refuses(self.go("--check"), "view w does not compile")
        self.assertIn("warning: in x.db, view v does not compile", result.err)

    def test_a_script_with_another_name_in_the_directory_is_reported(self):
        self.old("CREATE TABLE t (x)")
        self.script("1-a.sql", "CREATE TABLE t (x);")
        self.assertIn("1-a.sql", self.works(self.go("--enroll")).err)

    def old(self, text, db="x.db"):
        """A database that no tool manages yet."""
        with contextlib.closing(sqlite3.connect(db)) as connection:
            connection.executescript(text)

    def test_an_empty_database_is_said_to_be_empty(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        for content in (b"", None):
            if content is None:
                os.unlink("x.db")
                self.sql("PRAGMA user_version = 5")
            else:
                Path("x.db").write_bytes(content)
            self.refuses(self.go("--enroll"), "x.db is empty. To make it a database at version 0, call "
                         "ensure_versioned_db(), or run fastmigrate with --createdb.")

    def test_what_ends_in_a_comment_can_be_read_back(self):
        self.old("CREATE TABLE t (a) -- end\n; CREATE VIEW v AS SELECT a FROM t -- live rows\n;"
                 "CREATE VIEW w AS SELECT a FROM t /* open")
        self.assertEqual(self.works(self.go("--enroll")).out,
                         f"wrote {os.path.join('m', '0001-initialize.sql')}\n"
                         "x.db is under management now, at version 1\n")
        self.assertIn("-- live rows\n;\n", Path("m/0001-initialize.sql").read_text())
        self.assertEqual(fastmigrate.verify("x.db", "m"), "")

    def test_two_at_once_on_one_database_agree(self):
        self.old("CREATE TABLE t (a)")
        started = [self.start("--enroll") for _ in range(4)]
        codes = [process.wait() for process in started]
        for process in started:
            process.communicate()
        self.assertIn(0, codes)
        self.assertEqual((self.version(), os.listdir("m")), (1, ["0001-initialize.sql"]))
        self.works(self.go("--verify"))

    def test_what_runs_outside_the_scratch_database_is_announced_before_it_runs(self):
        self.old("CREATE TABLE t (a)")
        self.script("0001-a.sql", "CREATE TABLE t (a); -- attach files as you like\n")
        self.script("0002-b.sh", "exit 0\n")
        text = ("warning: now running on a scratch database or copy: 0002-b.sh. What is done outside "
                "of it (files, other databases, the network) really happens.\n")
        self.assertTrue(self.works(self.go("--enroll")).err.startswith(text))
        Path("schema.sql").write_text("CREATE TABLE t (a);")
        for arguments in (("--verify",), ("--print-schema",), ("--verify", "--schema", "schema.sql")):
            self.assertEqual(self.works(self.go(*arguments)).err, text)
        Path("schema.sql").write_text("CREATE TABLE t (a, b);")
        result = self.works(self.go("--new", "b", "--schema", "schema.sql"))
        self.assertTrue(result.err.startswith(text))
        os.unlink("m/0003-b.sql")
        fastmigrate.set_db_version("x.db", 1)
        self.assertEqual(self.works(self.go("--verify")).err, "")
        self.assertEqual(self.works(self.go("--rehearse")).err, text)

    def test_tables_of_other_tools_are_left_out_and_named(self):
        self.old("CREATE TABLE schema_migrations (version); CREATE TABLE t (a); "
                 "PRAGMA user_version = 7; PRAGMA application_id = 9;")
        line = "left out of the schema of x.db, as another tool's bookkeeping: schema_migrations\n"
        self.assertTrue(self.works(self.go("--enroll")).out.startswith(line))
        text = Path("m/0001-initialize.sql").read_text()
        self.assertNotIn("schema_migrations", text)
        self.assertIn("PRAGMA user_version = 7;\n", text)
        self.assertIn("PRAGMA application_id = 9;\n", text)
        self.assertTrue(self.works(self.go("--verify")).out.startswith(line))

    def test_a_file_system_without_hard_links_will_do(self):
        self.old("CREATE TABLE t (a)")
        with unittest.mock.patch("os.link", side_effect=OSError(1, "not permitted")):
            self.works(self.go("--enroll"))
            self.works(self.go("--squash", 1))
        self.assertEqual(sorted(os.listdir("m")), ["0001-squashed.sql", "before-0001"])


class RehearsingData(Case):
    def rehearsed(self, setup, change, **options):
        """What a rehearsal says of a change of a database."""
        shutil.rmtree("m")
        os.mkdir("m")
        with contextlib.suppress(FileNotFoundError):
            os.unlink("x.db")
        self.create()
        self.script("0001-a.sql", setup)
        migrate("x.db", "m")
        self.script("0002-b.sql", change)
        before = Path("x.db").read_bytes()
        found = fastmigrate.rehearse("x.db", "m", **options)
        self.assertEqual(Path("x.db").read_bytes(), before)
        return {key: found[key] for key in ("lost", "changed", "filled", "sequences") if found[key]}

    USERS = ("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, fax, age);"
             "INSERT INTO users VALUES (1, 'Ann', '12', 30), (2, 'Bob', NULL, 40), (9, 'Cy', '', '050');")

    def test_values_lost_and_changed_are_counted(self):
        rebuild = ("CREATE TABLE n (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, {}); INSERT INTO n "
                   "SELECT id, name, {} FROM users; DROP TABLE users; ALTER TABLE n RENAME TO {};")
        for change, expected in (
                ("SELECT 1;", {}),
                (rebuild.format("age", "age", "users"), {"lost": {"users": {"fax": 2}}}),
                (rebuild.format("telefax, age", "fax, age", "users"), {}),
                (rebuild.format("fax, age INTEGER", "fax, age", "Users"), {"changed": {"Users": {"age": 1}}}),
                (rebuild.format("fax, age TEXT", "fax, age", "users"), {}),
                (rebuild.format("fax, age REAL", "fax, age", "users"), {"changed": {"users": {"age": 1}}}),
                (rebuild.format("fax, age", "age, fax", "users"), {"changed": {"users": {"fax": 3, "age": 3}}}),
                ("UPDATE users SET name = upper(name);", {"changed": {"users": {"name": 3}}}),
                ("UPDATE users SET fax = NULL WHERE fax = '';", {"changed": {"users": {"fax": 1}}}),
                ("UPDATE users SET id = id + 10 WHERE id < 9;", {"changed": {"users": {"id": 2}}}),
                ("DELETE FROM users WHERE id = 2;", {}),
                ("DROP TABLE users;", {}),
                (rebuild.format("age", "fax", "users"), {"changed": {"users": {"age": 3}}}),
                (rebuild.format("telefax, age", "ifnull(fax, 'none'), age", "users"), {}),
                ("ALTER TABLE users ADD COLUMN same; UPDATE users SET same = id; ALTER TABLE users "
                 "RENAME COLUMN same TO other;", {"filled": {"users": {"other": 3}}}),
                ("ALTER TABLE users ADD COLUMN x; UPDATE users SET x = 1 WHERE id < 9;"
                 "INSERT INTO users VALUES (10, 'Di', '', 1, 2);", {"filled": {"users": {"x": 2}}}),
                ("ALTER TABLE users ADD COLUMN x DEFAULT 5; ALTER TABLE users RENAME TO people;", {})):
            with self.subTest(change):
                self.assertEqual(self.rehearsed(self.USERS, change), expected)

    def test_tables_are_matched_by_what_identifies_their_rows(self):
        for table, rows, change, expected in (
                ("t (a, b)", "(1, 'x'), (2, 'y')", "UPDATE t SET b = 'z' WHERE a = 1;", {"b": 1}),
                ("t (a TEXT PRIMARY KEY, b)", "('k', 1), (NULL, 2), (NULL, 3)",
                 "UPDATE t SET b = b + 1 WHERE a = 'k';", {"b": 1}),
                ("t (a, b, c, PRIMARY KEY (b, a)) WITHOUT ROWID", "(1, 2, 3), (1, 3, 4)",
                 "UPDATE t SET c = 0;", {"c": 2}),
                ("t (a TEXT PRIMARY KEY, b)", "('5', 1), ('7', 2)",
                 "CREATE TABLE n (a INTEGER PRIMARY KEY, b); INSERT INTO n SELECT * FROM t;"
                 "DROP TABLE t; ALTER TABLE n RENAME TO t; UPDATE t SET b = 0;", {"b": 2}),
                ("t (rowid, oid, _rowid_)", "(1, 2, 3)", "UPDATE t SET oid = 5;", {}),
                ('t ("a ""b", "select")', "(1, 2)", "UPDATE t SET \"select\" = 5;", {"select": 1})):
            with self.subTest(table):
                found = self.rehearsed(f"CREATE TABLE {table}; INSERT INTO t VALUES {rows};", change)
                self.assertEqual(found, {"changed": {"t": expected}} if expected else {})

    def test_a_sequence_that_goes_back_is_told(self):
        setup = ("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, x); INSERT INTO t VALUES (9, 1);"
                 "DELETE FROM t; INSERT INTO t VALUES (3, 1);")
        rebuild = ("CREATE TABLE n (id INTEGER PRIMARY KEY {}, x); INSERT INTO n SELECT * FROM t;"
                   "DROP TABLE t; ALTER TABLE n RENAME TO t;")
        self.assertEqual(self.rehearsed(setup, rebuild.format("AUTOINCREMENT")),
                         {"sequences": {"t": [9, 3]}})
        self.assertEqual(self.rehearsed(setup, rebuild.format("")), {"sequences": {"t": [9, 0]}})
        self.assertEqual(self.rehearsed(setup, "DROP TABLE t;"), {})
        self.assertEqual(self.rehearsed(setup, "INSERT INTO t (x) VALUES (1);"), {})

    def test_examples_are_shown_only_where_they_are_asked_for(self):
        setup = self.USERS + "CREATE TABLE s (id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO s VALUES (7);"
        self.rehearsed(setup, "ALTER TABLE users RENAME TO n;"
                       "CREATE TABLE users AS SELECT id, name, age FROM n; DROP TABLE n;"
                       "UPDATE sqlite_sequence SET seq = 2;")
        self.assertIn("""
values lost with a dropped column:
  users.fax  2

AUTOINCREMENT goes back, so that ids are used again:
  s  7 -> 2

This was a rehearsal: x.db is untouched.
""", self.works(self.go("--rehearse")).out)
        self.script("0002-b.sql", "UPDATE users SET name = 'X' || name WHERE id < 9;")
        self.assertIn("\nvalues changed:\n  users.name  2\n\n", self.works(self.go("--rehearse")).out)
        self.assertIn("\nvalues changed:\n  users.name  2\n    1: 'Ann' -> 'XAnn'\n    2: 'Bob' -> "
                      "'XBob'\n\n", self.works(self.go("--rehearse", "-v")).out)
        self.assertEqual(fastmigrate.rehearse("x.db", "m")["examples"], {})
        self.script("0002-b.sql", "ALTER TABLE users ADD COLUMN x; UPDATE users SET x = 5 WHERE id = 2;")
        self.assertIn("\nvalues in new columns:\n  users.x  1\n    2: None -> 5\n\n",
                      self.works(self.go("--rehearse", "-v")).out)

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5 (a)"), "needs FTS5")
    def test_the_rows_of_a_virtual_table_are_counted_and_not_compared(self):
        self.rehearsed("CREATE VIRTUAL TABLE v USING fts5 (a); INSERT INTO v VALUES ('x'), ('y');"
                       "CREATE TABLE gone (b); CREATE VIRTUAL TABLE w USING fts5 (b, content='gone');",
                       "DELETE FROM v WHERE a = 'x'; DROP TABLE gone;")
        found = fastmigrate.rehearse("x.db", "m")
        self.assertEqual(found["rows"], {"v": [2, 1]})

    def test_it_works_on_a_database_in_wal_mode(self):
        self.assertEqual(self.rehearsed("PRAGMA journal_mode = WAL;\n" + self.USERS,
                                        "UPDATE users SET name = '';"), {"changed": {"users": {"name": 3}}})


class Schemas(Case):
    """What a schema is, and how it is printed."""

    def printed(self, text):
        """The schema of the scripts, once the first one is this text."""
        self.script("0001-a.sql", text)
        return self.works(self.run_main("--migrations", "m", "--print-schema")).out

    def differ(self, first, second):
        """Whether --verify sees a difference between two ways to write a schema."""
        self.script("0001-a.sql", first)
        Path("s.sql").write_text(second, encoding="utf-8")
        result = self.run_main("--migrations", "m", "--verify", "--schema", "s.sql")
        self.assertIn(result.code, (0, 1), result)
        return bool(result.code)

    def test_a_table_that_was_renamed_is_printed_as_its_author_wrote_it(self):
        self.script("0001-a.sql", "CREATE TABLE b (x); ALTER TABLE b RENAME TO a;\n"
                                  'CREATE TABLE d ("x"); ALTER TABLE d RENAME TO c;')
        self.assertEqual(fastmigrate.get_schema("m"), 'CREATE TABLE a (x);\nCREATE TABLE "c" ("x");\n')

    def test_it_is_printed_in_one_order_as_the_author_wrote_it(self):
        self.assertEqual(self.printed(
            "CREATE VIEW v AS SELECT b  FROM t;\n"
            "CREATE TABLE u (x);\n"
            "CREATE TABLE t (a INTEGER, -- the a\n b TEXT\n);\n"
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; END;\n"
            "CREATE INDEX i ON t (b);\n"
            "CREATE VIEW w AS SELECT * FROM v;\n"
            "CREATE TRIGGER q INSTEAD OF INSERT ON v BEGIN SELECT 2; END;\n"
            "CREATE TABLE schema_migrations (version);\n"
            "CREATE TABLE n (id INTEGER PRIMARY KEY AUTOINCREMENT);\n"
            "PRAGMA user_version = 7;"),
            "PRAGMA user_version = 7;\n"
            "CREATE TABLE n (id INTEGER PRIMARY KEY AUTOINCREMENT);\n"
            "CREATE TABLE t (a INTEGER, -- the a\n b TEXT\n);\n"
            "CREATE INDEX i ON t (b);\n"
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; END;\n"
            "CREATE TABLE u (x);\n"
            "CREATE VIEW v AS SELECT b  FROM t;\n"
            "CREATE TRIGGER q INSTEAD OF INSERT ON v BEGIN SELECT 2; END;\n"
            "CREATE VIEW w AS SELECT * FROM v;\n")

    def test_it_is_printed_up_to_a_version(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);")
        self.assertEqual(self.printed("CREATE TABLE a (x);"),
                         "CREATE TABLE a (x);\nCREATE TABLE b (x);\n")
        self.assertEqual(self.works(self.go("--print-schema", "--to", "1")).out,
                         "CREATE TABLE a (x);\n")
        self.assertEqual(fastmigrate.get_schema("m", to=1), "CREATE TABLE a (x);\n")

    def test_what_is_printed_can_be_run_and_is_the_same_schema(self):
        has_all = known("CREATE VIRTUAL TABLE t USING rtree (id, a, b)") and known(
            "CREATE TABLE t (a, b AS (a))")
        for text in ((OBJECTS,) if has_all else ()) + (
                     "CREATE VIEW v AS SELECT 1 -- live rows\n;CREATE TABLE t (a)",
                     "CREATE VIEW v AS SELECT 1 /* live */", "CREATE TABLE t (a) -- the end"):
            printed = self.printed(text)
            connection = sqlite3.connect("new.db")
            connection.executescript(printed)
            connection.close()
            self.assertEqual(fastmigrate.get_db_schema("new.db"), printed)
            self.assertFalse(self.differ(text, printed))
            os.unlink("new.db")

    def test_get_db_schema_needs_no_version_and_creates_no_database(self):
        self.sql("CREATE TABLE a (x)")
        self.assertEqual(fastmigrate.get_db_schema("x.db"), "CREATE TABLE a (x);\n")
        with self.assertRaises(FileNotFoundError):
            fastmigrate.get_db_schema("none.db")
        self.assertFalse(os.path.exists("none.db"))

    def test_writing_that_sqlite_treats_alike_makes_no_difference(self):
        for first, second in (
                ("CREATE TABLE t (a INTEGER, b TEXT)", 'create  table [T] ("A" integer,`b` text)'),
                ("CREATE TABLE t (a DEFAULT 'x')", 'CREATE TABLE t (a DEFAULT "x")'),
                ("CREATE TABLE t (a CHECK (a IN ('x')))", 'CREATE TABLE t (a CHECK ("a" IN ("x")))'),
                ("CREATE TABLE t (a); CREATE VIEW v AS SELECT a FROM t",
                 'CREATE TABLE t (a); CREATE VIEW v AS SELECT "A" FROM "T"'),
                ("CREATE TABLE t (a, UNIQUE (a)); ALTER TABLE t ADD COLUMN b",
                 "CREATE TABLE t (a, b, UNIQUE (a))")):
            if known(second.partition(";")[0]):  # a build may take "x" for a name only
                self.assertFalse(self.differ(first, second), (first, second))

    def test_writing_that_sqlite_treats_differently_makes_a_difference(self):
        for first, second in (
                ('CREATE TABLE t (s CHECK (s IN ("Active","Off")))',
                 'CREATE TABLE t (s CHECK (s IN ("active","off")))'),
                ('CREATE TABLE t (s); CREATE VIEW v AS SELECT s = "Active" FROM t',
                 'CREATE TABLE t (s); CREATE VIEW v AS SELECT s = "active" FROM t'),
                ("CREATE TABLE t (a DEFAULT 'x')", "CREATE TABLE t (a DEFAULT 'X')"),
                ('CREATE TABLE "Ämter" (a)', 'CREATE TABLE "ämter" (a)'),
                ("CREATE TABLE t (a, b)", "CREATE TABLE t (b, a)"),
                ("CREATE TABLE t (a)", "CREATE TABLE t (a); PRAGMA user_version = 5")):
            if known(second.partition(";")[0]):
                self.assertTrue(self.differ(first, second), (first, second))

    def test_tables_whose_names_differ_in_a_letter_beyond_ascii_are_two(self):
        printed = self.printed('CREATE TABLE "Ämter" (a); CREATE TABLE "ämter" (b);')
        self.assertEqual(printed.count("CREATE TABLE"), 2)

    def test_a_bare_word_is_a_string_where_it_is_a_default(self):
        self.assertTrue(self.differ("CREATE TABLE t (a DEFAULT Active);",
                                    "CREATE TABLE t (a DEFAULT active);"))
        self.assertFalse(self.differ("CREATE TABLE t (a DEFAULT Active);",
                                     "CREATE TABLE t (a DEFAULT 'Active');"))
        self.assertFalse(self.differ("CREATE TABLE t (a DEFAULT NULL);",
                                     "CREATE TABLE t (a DEFAULT null);"))

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5 (a)"), "needs FTS5")
    def test_a_table_beside_an_index_without_its_texts_is_the_applications(self):
        printed = self.printed("CREATE TABLE notes_content (x);"
                               "CREATE VIRTUAL TABLE notes USING fts5 (body, content = '');")
        self.assertIn("CREATE TABLE notes_content", printed)

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5(a)"), "needs FTS5")
    def test_only_the_tables_of_a_virtual_table_are_left_out(self):
        printed = self.printed(
            "CREATE VIRTUAL TABLE recipes USING fts5 (t);"
            "CREATE TABLE recipes_info (a); CREATE TABLE recipes_data2024 (b);"
            "CREATE TABLE notes_content (t);"
            "CREATE VIRTUAL TABLE notes USING fts5 (t, content = 'notes_content');")
        self.assertEqual(re.findall("TABLE (\\w+)", printed), [
            "notes_content", "recipes", "recipes_data2024", "recipes_info", "notes"])

    def test_the_books_of_other_tools_are_left_out_and_named(self):
        for table in ("alembic_version (v)", "mine (x)", "__drizzle_migrations (id)"):
            self.sql(f"CREATE TABLE {table}")
        self.assertEqual(fastmigrate.get_db_schema("x.db"), "CREATE TABLE mine (x);\n")
        self.assertIn("left out of the schema of x.db, as another tool's bookkeeping: "
                      "alembic_version, __drizzle_migrations\n", self.works(self.go("--enroll")).out)

    def test_user_version_is_enrolled(self):
        self.sql("CREATE TABLE a (x)")
        self.sql("PRAGMA user_version = 5")
        self.sql("PRAGMA application_id = -7")
        self.works(self.go("--enroll"))
        fastmigrate.create_db("new.db")
        migrate("new.db", "m")
        self.assertEqual(self.sql("PRAGMA user_version", "new.db"), [(5,)])
        self.assertEqual(self.sql("PRAGMA application_id", "new.db"), [(-7,)])

    def test_verify_shows_how_a_schema_file_differs_without_a_database(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        Path("s.sql").write_text("CREATE TABLE a (x);\nCREATE INDEX i ON a (x);\n")
        result = self.run_main("--migrations", "m", "--verify", "--schema", "s.sql")
        self.assertEqual(result.code, 1)
        self.assertIn("+CREATE INDEX i ON a (x);", result.out)
        self.assertIn("--new", result.err)
        self.assertNotIn("CREATE TABLE", result.out)


class SchemaChanges(Case):
    """From an edited schema.sql to a script, each proved on rows."""

    rows = ("INSERT INTO users VALUES (1, 'a', '1', 3), (2, 'b', NULL, NULL), (9, 'c', 'x', 5);"
            "DELETE FROM users WHERE id = 9; INSERT INTO posts VALUES (1, 1), (2, 2);"
            "UPDATE users SET age = 3 WHERE id = 1;")
    before = (
        "CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, -- the name\n"
        "  fax TEXT DEFAULT 'none', age INT CHECK (age > 0));\n"
        "CREATE UNIQUE INDEX users_name ON users (name);\n"
        "CREATE TRIGGER users_born AFTER INSERT ON users BEGIN SELECT new.name; END;\n"
        "CREATE TABLE posts (id INTEGER PRIMARY KEY,\n"
        "  user INTEGER REFERENCES users (id) ON DELETE CASCADE);\n"
        "CREATE TRIGGER posts_new AFTER INSERT ON posts BEGIN\n"
        "  UPDATE users SET age = age + 1 WHERE id = new.user; END;\n"
        "CREATE VIEW names AS SELECT name FROM users;\n"
        "CREATE VIEW long AS SELECT name FROM names WHERE length(name) > 3;\n")

    def prepare(self, before=None, rows=None):
        self.script("0001-schema.sql", before or self.before)
        self.script("0002-rows.sql", rows if before else self.rows)
        self.create()
        migrate("x.db", "m")

    def write(self, after, **answers):
        """The text of the script that leads to this schema."""
        Path("schema.sql").write_text(after, encoding="utf-8")
        with self.assertLogs("fastmigrate", logging.DEBUG) as logs:
            logging.getLogger("fastmigrate").debug("so that there is a message")
            path = fastmigrate.new_migration("m", "change", schema="schema.sql", **answers)
        self.notes = "\n".join(logs.output)
        return path.read_text(encoding="utf-8")

    def test_a_new_column_of_a_key_needs_a_value_too(self):
        self.prepare("CREATE TABLE t (d);", "INSERT INTO t VALUES (1), (2);")
        after = "CREATE TABLE t (k TEXT PRIMARY KEY, d);"
        self.asks(after, "--fill \"t.k=''\"")
        self.change(after, fill={"t.k": "d || 'x' -- a comment"})
        self.assertEqual(self.sql("SELECT * FROM t"), [("1x", 1), ("2x", 2)])

    def test_no_name_that_anything_has_is_taken_for_a_moment(self):
        self.prepare("CREATE TABLE t (a TEXT); CREATE VIEW t_new AS SELECT 1; CREATE TABLE u (x);"
                     "CREATE TABLE t_to_drop (x);", "INSERT INTO t VALUES ('1');")
        self.change("CREATE TABLE t (a INT); CREATE VIEW t_new AS SELECT 1; CREATE TABLE u (x);"
                    "CREATE TABLE t_to_drop (x);")
        self.change("CREATE TABLE t (x); CREATE VIEW t_new AS SELECT 1; CREATE TABLE t_to_drop (x);",
                    rename={"u": "t"}, drop=["t"])

    def test_the_option_that_is_offered_works_for_every_name(self):
        self.prepare('CREATE TABLE "a.b" ("c.d", "x=y", "q"";" TEXT);', "SELECT 1;")
        Path("schema.sql").write_text('CREATE TABLE "a.b" (e, z, n TEXT NOT NULL);')
        command = ("--migrations", "m", "--new", "x", "--schema", "schema.sql")
        error = self.refuses(self.run_main(*command), "--rename", "--drop").err
        options = [option for line in error.splitlines() if "    --" in line
                   for option in (shlex.split(line.partition("    (in Python")[0]),)]
        drops = sum((option for option in options if option[0] == "--drop"), [])
        self.assertEqual(len(drops), 6)
        fill = self.refuses(self.run_main(*command, *drops)).err
        self.works(self.run_main(*command, *drops, *shlex.split(
            fill.partition("    --fill")[2].partition("    (")[0].join(("--fill", "")))))
        self.works(self.run_main("--migrations", "m", "--verify", "--schema", "schema.sql"))

    def test_a_setting_goes_back_to_zero_where_the_file_says_so(self):
        self.prepare("CREATE TABLE t (a); PRAGMA user_version = 5;", "SELECT 1;")
        self.change("CREATE TABLE t (a); PRAGMA user_version = 0;")
        self.assertEqual(self.sql("PRAGMA user_version"), [(0,)])

    def test_an_index_over_a_view_is_filled_again_if_the_view_changes(self):
        before = ("CREATE TABLE doc (id INTEGER PRIMARY KEY, title, body);\n"
                  "CREATE VIEW low AS SELECT id, title AS t FROM doc;\n"
                  "CREATE VIEW dv AS SELECT * FROM low;\n"
                  "CREATE VIRTUAL TABLE f USING fts5 (t, content='dv', content_rowid='id');\n")
        self.prepare(before, "INSERT INTO doc VALUES (1, 'red', 'cat');"
                             "INSERT INTO f (f) VALUES ('rebuild');")
        self.change(before.replace("title AS t", "title || ' ' || body AS t"))
        self.assertEqual(self.sql("SELECT rowid FROM f ('cat')"), [(1,)])

    def test_a_key_that_becomes_the_rowid_gets_no_invented_numbers(self):
        self.prepare("CREATE TABLE a (id INTEGER, x);", "INSERT INTO a VALUES (30, 1), (NULL, 2);")
        after = "CREATE TABLE a (id INTEGER PRIMARY KEY, x);"
        self.asks(after, "a.id must not be NULL", "--fill a.id=id")
        for own in ("id", '"id"', "ID", "a.id", "id -- itself", "nullif(x, 2)"):
            self.write(after, fill={"a.id": own})
            self.refuses(self.go(), "datatype mismatch")
            os.unlink("m/0003-change.sql")
        self.change(after, fill={"a.id": "100 + x"})
        self.assertEqual(self.sql("SELECT * FROM a"), [(30, 1), (102, 2)])

    def test_a_default_that_a_comment_follows_fills_what_was_null(self):
        self.prepare("CREATE TABLE t (a INTEGER, b);", "INSERT INTO t VALUES (NULL, 1), (2, 3);")
        self.change("CREATE TABLE t (a INTEGER NOT NULL DEFAULT 5 -- note\n, b);")
        self.assertEqual(self.sql("SELECT * FROM t"), [(5, 1), (2, 3)])

    def test_values_to_fill_read_the_other_tables_as_they_are_today(self):
        self.prepare("CREATE TABLE a (id INTEGER PRIMARY KEY, x); CREATE TABLE b (id INTEGER PRIMARY KEY);",
                     "INSERT INTO a VALUES (1, NULL), (2, 'x'); INSERT INTO b VALUES (1), (2);")
        value = "(SELECT x FROM a WHERE a.id = b.id)"
        self.change("CREATE TABLE a (id INTEGER PRIMARY KEY, x NOT NULL);"
                    "CREATE TABLE b (id INTEGER PRIMARY KEY, p);", fill={"a.x": "'F'", "b.p": value})
        self.assertEqual(self.sql("SELECT p FROM b"), [(None,), ("x",)])
        after = "CREATE TABLE a (id INTEGER PRIMARY KEY); CREATE TABLE b (id INTEGER PRIMARY KEY, p, x);"
        self.change(after, drop=["a.x"], fill={"b.x": value})
        self.assertEqual(self.sql("SELECT x FROM b"), [("F",), ("x",)])
        self.asks("CREATE TABLE a (id INTEGER PRIMARY KEY, y); CREATE TABLE b (id INTEGER PRIMARY KEY, x);",
                  "read each other's table", drop=["b.p"],
                  fill={"a.y": "(SELECT p FROM b)", "b.x": "(SELECT max(id) FROM a)"})

    def test_values_of_the_own_row_are_no_values_of_another_table(self):
        self.prepare("CREATE TABLE author (id, book); CREATE TABLE book (id, author);",
                     "INSERT INTO author VALUES (1, NULL); INSERT INTO book VALUES (1, 7);")
        self.change("CREATE TABLE author (id, book, n NOT NULL); CREATE TABLE book (id, author, n NOT NULL);",
                    fill={"author.n": "ifnull(book, 0)", "book.n": "ifnull(author, 'author')"})
        self.assertEqual(self.sql("SELECT a.n, b.n FROM author a, book b"), [(0, 7)])

    def test_only_what_can_have_changed_costs_and_is_named(self):
        before = ("CREATE TABLE doc (id INTEGER PRIMARY KEY, t, g AS (t));\n"
                  "CREATE VIEW dv AS SELECT id, t FROM doc;\nCREATE VIEW other AS SELECT 1;\n"
                  "CREATE VIRTUAL TABLE f USING fts5 (t, content='dv', content_rowid='id');\n")
        if not known("CREATE TABLE t (a, b AS (a))"):
            self.skipTest("no generated columns")
        self.prepare(before, "SELECT 1;")
        self.assertNotIn("rebuild", self.change(before.replace("CREATE VIEW other AS SELECT 1;\n", "")))
        self.change("CREATE TABLE doc (id INTEGER PRIMARY KEY, t);\n" + before.split("\n", 1)[1],
                    drop=["doc.g"])
        self.assertIn("drops the column doc.g\n", self.notes + "\n")

    def test_what_an_index_loses_is_named(self):
        before = ("CREATE TABLE doc (id INTEGER PRIMARY KEY, t);\n"
                  "CREATE VIRTUAL TABLE f USING fts5 (t, content='doc', content_rowid='id');\n")
        self.prepare(before, "INSERT INTO doc VALUES (1, 'red');")
        self.write(before.replace("content='doc', content_rowid='id'", "prefix='2'"))
        self.assertIn("leaves the table f empty", self.notes)

    def test_an_option_of_a_table_is_the_only_thing_named_if_nothing_else_changes(self):
        self.prepare("CREATE TABLE t (a INTEGER PRIMARY KEY, b);", "SELECT 1;")
        self.change("CREATE TABLE t (a INTEGER PRIMARY KEY, b) WITHOUT ROWID;")
        self.assertEqual(self.notes.count("definition of t"), 0, self.notes)
        self.assertIn("--   adds to the definition of t: WITHOUT ROWID\n",
                      Path("m/0003-change.sql").read_text())

    def test_a_column_with_a_check_of_others_is_checked_on_every_version_of_sqlite(self):
        self.prepare("CREATE TABLE t (x);", "INSERT INTO t VALUES (10);")
        self.write("CREATE TABLE t (x, y INT DEFAULT 5 CHECK (y > x));")
        self.refuses(self.go(), "CHECK constraint failed")

    def test_no_name_is_renamed_or_taken_twice(self):
        self.prepare("CREATE TABLE t (a, b);", "SELECT 1;")
        self.asks("CREATE TABLE t (c);", "two are to have this name",
                  rename={"t.a": "c", "t.b": "c"})
        result = self.run_main("--migrations", "m", "--new", "x", "--schema", "schema.sql",
                               "--rename", "t.a=c", "--rename", "t.a=d")
        self.assertEqual(result.code, 2, result)

    def test_a_value_replaces_null_alone(self):
        for before, rows, after, fill, expected in (
                ("date TEXT", "('2001-02-03'), (NULL)", "date TEXT NOT NULL DEFAULT (date(0))", {},
                 [("-4713-11-24",), ("2001-02-03",)]),
                ("x BLOB", "(x'01'), (NULL)", "x BLOB NOT NULL DEFAULT x''", {},
                 [(b"",), (b"\x01",)]),
                ("name", "('n'), (NULL)", "name NOT NULL", {"t.name": "(SELECT name FROM o)"},
                 [("n",), ("other",)]),
                ("name", "('n'), ('m')", "name NOT NULL", {"t.name": "upper(name)"},
                 [("m",), ("n",)])):
            with self.subTest(after):
                self.prepare(f"CREATE TABLE t ({before}); CREATE TABLE o (name);",
                             f"INSERT INTO t VALUES {rows}; INSERT INTO o VALUES ('other');")
                self.change(f"CREATE TABLE t ({after}); CREATE TABLE o (name);", fill=fill)
                self.assertEqual(self.sql("SELECT * FROM t ORDER BY 1"), expected)
                os.unlink("x.db")
                os.unlink("m/0003-change.sql")

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5 (a)"), "needs FTS5")
    def test_a_plain_table_that_speaks_of_content_is_asked_about(self):
        self.prepare("CREATE TABLE t (content TEXT CHECK (content = trim(content)));",
                     "INSERT INTO t VALUES ('a');")
        self.asks("CREATE VIRTUAL TABLE t USING fts5 (content);", "content of its own")

    def test_a_description_is_no_directive(self):
        for words in ("adopt fastmigrate: phase one", "fastmigrate: no-transaction"):
            path = fastmigrate.new_migration("m", words)
            self.assertNotIn("fastmigrate:", path.read_text())
        self.create()
        self.works(self.go())

    def test_a_column_may_have_any_keyword_for_a_name(self):
        names = [f'"{word}"' for word in sorted(fastmigrate.RESERVED) + ["plain"]]
        self.prepare(f"CREATE TABLE t ({', '.join(names)});",
                     f"INSERT INTO t VALUES ({', '.join('1' for _ in names)});")
        self.change(f"CREATE TABLE t ({', '.join(names)}, CHECK (plain > 0));")
        self.assertEqual(set(self.sql("SELECT * FROM t")[0]), {1})

    def test_no_row_is_lost_to_a_conflict_clause(self):
        for table, after in (("t (a, b)", "t (a UNIQUE ON CONFLICT IGNORE, b)"),
                             ("t (a, b)", "t (a PRIMARY KEY ON CONFLICT REPLACE, b)"),
                             ("t (a, b)", "t (a UNIQUE ON CONFLICT REPLACE, b, CHECK (t.b > 0))")):
            self.prepare(f"CREATE TABLE {table};", "INSERT INTO t VALUES (1, 2), (1, 3);")
            options = {"fill": {"t.a": "a"}} if "KEY" in after else {}
            self.write(f"CREATE TABLE {after};", **options)
            self.refuses(self.go(), "UNIQUE constraint failed")
            os.unlink("x.db")
            os.unlink("m/0003-change.sql")

    def test_a_question_names_a_column_as_it_is_called_today(self):
        self.script("0001-a.sql", "CREATE TABLE t (a, b);")
        for after, answers, name in (
                ("CREATE TABLE t (a, c NOT NULL);", {"rename": {"t.b": "c"}}, "t.b"),
                ("CREATE TABLE t (a NOT NULL);", {"rename": {"t.b": "a"}, "drop": ["t.a"]}, "t.b")):
            with self.assertRaisesRegex(MigrationError, f"--fill \"{name}=''\""):
                self.write(after, **answers)
            self.write(after, **answers, fill={name: "''"})
            os.unlink("m/0002-change.sql")

    def test_what_the_file_would_break_is_refused(self):
        for before, after, answers, reason in (
                ("CREATE TABLE p (id INTEGER PRIMARY KEY, x); CREATE VIEW v AS SELECT x FROM p;",
                 "CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE VIEW v AS SELECT x FROM p;",
                 {"drop": ["p.x"]}, "view v does not compile: no such column: x"),
                ("CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c (p REFERENCES p);",
                 "CREATE TABLE c (p REFERENCES p);", {"drop": ["p"]},
                 "table c has a foreign key that cannot work: p refers to the table p, which does not exist")):
            self.script("0001-a.sql", before)
            with self.assertRaisesRegex(MigrationError, f"^schema.sql: {reason}. Nothing was written"):
                self.write(after, **answers)
            self.assertEqual(os.listdir("m"), ["0001-a.sql"])

    def test_a_column_that_may_be_a_renamed_one_needs_no_value_before_that_is_said(self):
        self.script("0001-a.sql", "CREATE TABLE t (a TEXT NOT NULL);")
        after = "CREATE TABLE t (b TEXT NOT NULL);"
        with self.assertRaises(MigrationError) as caught:
            self.write(after)
        self.assertIn("--rename t.a=b", str(caught.exception))
        self.assertNotIn("fill", str(caught.exception))
        with self.assertRaisesRegex(MigrationError, "--fill"):
            self.write(after, drop=["t.a"])
        self.assertIn("RENAME COLUMN a TO b", self.write(after, rename={"t.a": "b"}))

    def change(self, after, **answers):
        """Write the script, run it, and prove the schema; return the text of the script."""
        text = self.write(after, **answers)
        migrate("x.db", "m")
        self.works(self.go("--verify", "--schema", "schema.sql"))
        self.assertEqual(self.sql("PRAGMA integrity_check"), [("ok",)])
        self.assertEqual(self.sql("PRAGMA foreign_key_check"), [])
        self.works(self.go("--verify"))
        self.works(self.run_main("--migrations", "m", "--verify", "--schema", "schema.sql"))
        return text

    def changed(self, old, new):
        self.assertIn(old, self.before)
        return self.before.replace(old, new)

    def asks(self, after, *parts, **answers):
        """The change is refused with these parts, and nothing is written."""
        there = sorted(os.listdir("m"))
        Path("schema.sql").write_text(after, encoding="utf-8")
        with self.assertRaises(MigrationError) as caught:
            fastmigrate.new_migration("m", "change", schema="schema.sql", **answers)
        for part in (*parts, "Nothing was"):
            self.assertIn(part, str(caught.exception))
        self.assertEqual(sorted(os.listdir("m")), there)

    def users(self, columns="*"):
        return self.sql(f"SELECT {columns} FROM users ORDER BY id")

    def keeps_all(self):
        """What hangs on users works as before."""
        self.assertEqual(self.sql("SELECT user FROM posts ORDER BY id"), [(1,), (2,)])
        self.assertEqual(self.sql("SELECT name FROM names ORDER BY 1"), [("a",), ("b",)])
        self.assertEqual(self.sql("SELECT * FROM long"), [])
        self.assertEqual(self.sql("SELECT seq FROM sqlite_sequence"), [(9,)])
        with self.assertRaises(sqlite3.IntegrityError):
            self.sql("INSERT INTO users (name) VALUES ('a')")

    def test_columns_at_the_end_are_added_in_the_words_of_the_author(self):
        self.prepare()
        text = self.change(self.changed("age INT CHECK (age > 0))", (
            "age INT CHECK (age > 0),\n  mail TEXT NOT NULL DEFAULT 'x' COLLATE NOCASE, -- new\n"
            "  boss REFERENCES users)")))
        self.assertEqual(text.split("\n\n")[1].strip(), (
            "ALTER TABLE users ADD COLUMN mail TEXT NOT NULL DEFAULT 'x' COLLATE NOCASE;\n"
            "ALTER TABLE users ADD COLUMN boss REFERENCES users;"))
        self.assertEqual(self.users("name, mail, boss"), [("a", "x", None), ("b", "x", None)])
        self.keeps_all()

    def test_a_column_in_the_middle_or_with_a_changing_default_is_a_rebuild(self):
        self.prepare()
        text = self.change(self.changed("fax TEXT", "at TEXT DEFAULT CURRENT_TIMESTAMP,\n"
                                                    "  six INT NOT NULL DEFAULT (2 * 3), fax TEXT"))
        self.assertIn("PRAGMA legacy_alter_table = ON;", text)
        self.assertEqual(self.users("id, name, six, fax, age"),
                         [(1, "a", 6, "1", 3), (2, "b", 6, None, None)])
        self.assertRegex(self.users("at")[0][0], "^[0-9]{4}-")
        self.keeps_all()

    @unittest.skipUnless(known("CREATE TABLE t (a, b AS (a))"), "needs generated columns")
    def test_generated_columns_come_and_go(self):
        self.prepare()
        self.change(self.changed("age > 0)", "age > 0), n AS (length(name)), m AS (id) STORED"))
        self.assertEqual(self.users("n, m"), [(1, 1), (1, 2)])
        self.asks(self.before, "--drop users.m", "--drop users.n")
        self.change(self.before, drop=["users.m", "users.n"])
        self.asks(self.changed("fax TEXT DEFAULT 'none'", "fax AS (name)"), "--drop users.fax")
        self.keeps_all()

    def test_a_column_that_is_gone_is_asked_about(self):
        self.prepare()
        without = self.changed("fax TEXT DEFAULT 'none', ", "")
        self.asks(without, "users.fax is gone", "--drop users.fax", "drop=['users.fax']")
        self.asks(self.changed("fax TEXT", "phone TEXT"),
                  "--rename users.fax=phone", "rename={'users.fax': 'phone'}", "--drop users.fax")
        self.change(without, drop=["Users.FAX"])
        self.assertEqual(self.users(), [(1, "a", 3), (2, "b", None)])
        self.assertIn("drops the column users.fax, with its data", self.notes)
        self.keeps_all()

    def test_a_renamed_column_keeps_its_values_and_what_names_it(self):
        self.prepare()
        after = self.before.replace("(name)", "(full_name)").replace(
            "name TEXT", "full_name TEXT").replace("new.name", "new.full_name").replace(
            "SELECT name FROM users", "SELECT full_name FROM users").replace(
            "name FROM names WHERE length(full_name)", "full_name FROM names WHERE length(full_name)")
        text = self.change(after, rename={"users.name": "full_name"})
        self.assertIn("ALTER TABLE users RENAME COLUMN name TO full_name;", text)
        self.assertNotIn("DROP TABLE", text)
        self.assertNotIn("INDEX", text)
        self.assertEqual(self.users("full_name"), [("a",), ("b",)])

    def test_a_name_that_is_taken_is_free_after_a_drop_alone(self):
        self.prepare("CREATE TABLE t (a, b); CREATE TABLE u (c);", "INSERT INTO t VALUES (1, 2);")
        after = "CREATE TABLE t (a, b); CREATE TABLE u (c);"
        self.asks(after, "Rename in two scripts", rename={"t.a": "b", "t.b": "a"})
        self.asks(after, "Rename in two scripts", rename={"t": "u", "u": "t"})
        self.asks(after.replace("t", "T"), "the same name", rename={"t": "T"})
        self.change("CREATE TABLE t (b); CREATE TABLE u (c);", rename={"t.a": "b"}, drop=["t.b"])
        self.assertEqual(self.sql("SELECT b FROM t"), [(1,)])
        self.change("CREATE TABLE u (b);", rename={"t": "u"}, drop=["u"])
        self.assertEqual(self.sql("SELECT b FROM u"), [(1,)])

    def test_types_constraints_and_defaults_change_and_what_is_lost_is_named(self):
        self.prepare()
        text = self.change(self.changed(
            "fax TEXT DEFAULT 'none', age INT CHECK (age > 0)",
            "fax INTEGER COLLATE NOCASE, age INT UNIQUE CHECK (age > 1)"))
        self.assertEqual(self.users(), [(1, "a", 1, 3), (2, "b", None, None)])
        for part in ("rebuilds the table users",
                     "changes in users: fax TEXT DEFAULT 'none' -> fax INTEGER COLLATE NOCASE",
                     "changes in users: age INT CHECK (age > 0) -> "
                     "age INT UNIQUE CHECK (age > 1)"):
            self.assertIn(part, text)
            self.assertEqual(part in self.notes, not part.startswith("adds"), part)
        self.keeps_all()

    def test_not_null_asks_for_a_value_unless_there_is_a_default(self):
        self.prepare()
        required = self.changed("age INT CHECK", "age INT NOT NULL CHECK")
        self.asks(required, "--fill users.age=0", "--fill users.age=age",
                  "fill={'users.age': 'age'}")
        self.write(required, fill={"users.age": "age"})
        with self.assertRaisesRegex(MigrationError, "NOT NULL constraint failed"):
            migrate("x.db", "m")
        os.unlink("m/0003-change.sql")
        self.change(required, fill={"users.age": "length(name) + 6"})
        self.assertEqual(self.users("age"), [(3,), (7,)])
        self.change(self.before)
        self.asks(self.changed("fax TEXT DEFAULT", "n INT NOT NULL, fax TEXT DEFAULT"),
                  "users.n", "--fill users.n=0")
        self.change(self.changed("fax TEXT DEFAULT 'none'", "fax TEXT NOT NULL DEFAULT 'none'"))
        self.assertEqual(self.users("fax"), [("1",), ("none",)])
        self.change(self.changed("name TEXT", "name TEXT NOT NULL"), fill={"users.name": "'name'"})
        self.assertEqual(self.users("name"), [("a",), ("b",)])  # a string names no column

    def test_a_new_column_is_filled_from_the_row(self):
        self.prepare("CREATE TABLE t (a INT); CREATE TABLE old (b)",
                     "INSERT INTO t VALUES (4), (5); INSERT INTO old VALUES (9)")
        self.asks("CREATE TABLE t (a INT, n); CREATE TABLE old (b)", "no such column: nosuch",
                  fill={"t.n": "nosuch"})
        self.asks("CREATE TABLE t (a INT, n); CREATE TABLE old (b)", "one value for the whole table",
                  fill={"t.n": "max(a)"})
        for value in ("1; DROP TABLE t", "1, 2", "1 FROM t --", "1) FROM t WHERE (0", "("):
            self.asks("CREATE TABLE t (a INT, n); CREATE TABLE old (b)", "fill", fill={"t.n": value})
        self.change("CREATE TABLE t (a INT, n NOT NULL, m)", drop=["old"],
                    fill={"t.n": "a * 2", "t.m": "(SELECT b FROM old)"})
        self.assertEqual(self.sql("SELECT * FROM t"), [(4, 8, 9), (5, 10, 9)])

    def test_primary_keys_change_and_rowids_stay(self):
        self.prepare("CREATE TABLE t (a); CREATE TABLE w (k TEXT PRIMARY KEY, v);",
                     "INSERT INTO t (rowid, a) VALUES (7, 'x'), (40, 'y');"
                     "INSERT INTO w VALUES ('k', 1);")
        self.change("CREATE TABLE t (a TEXT); CREATE TABLE w (k TEXT PRIMARY KEY, v INT);")
        self.assertEqual(self.sql("SELECT rowid FROM t"), [(7,), (40,)])
        self.change("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT);"
                    "CREATE TABLE w (k TEXT PRIMARY KEY, v INT) WITHOUT ROWID;")
        self.assertEqual(self.sql("SELECT * FROM t"), [(7, "x"), (40, "y")])
        self.change("CREATE TABLE t (id TEXT PRIMARY KEY, a TEXT);"
                    "CREATE TABLE w (k TEXT, v INT PRIMARY KEY);")
        self.assertEqual(self.sql("SELECT rowid, * FROM t"), [(7, "7", "x"), (40, "40", "y")])
        self.assertEqual(self.sql("SELECT * FROM w"), [("k", 1)])

    @unittest.skipUnless(known("CREATE TABLE t (a INT) STRICT"), "needs STRICT")
    def test_tables_become_strict_and_no_longer_strict(self):
        self.prepare("CREATE TABLE t (a INT, b TEXT)", "INSERT INTO t VALUES (4, 5)")
        self.change("CREATE TABLE t (a INT, b TEXT) STRICT")
        self.change("CREATE TABLE t (a INT, b TEXT, c INT DEFAULT 6) STRICT")
        self.change("CREATE TABLE t (a INT, b TEXT, c INT DEFAULT 6)")
        self.assertEqual(self.sql("SELECT * FROM t"), [(4, "5", 6)])

    def test_the_sequence_of_an_emptied_table_goes_on(self):
        create = "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a{});"
        self.prepare(create.format(""), "INSERT INTO t VALUES (41, 1); DELETE FROM t;")
        self.change(create.format(" TEXT"))
        self.change(create.format(" TEXT CHECK (t.a <> '')"))  # which no new table can have
        self.sql("INSERT INTO t (a) VALUES (1)")
        self.assertEqual(self.sql("SELECT id FROM t"), [(42,)])

    def test_a_table_is_renamed_with_its_references_or_dropped_with_what_hangs_on_it(self):
        self.prepare()
        after = self.before.replace("users", "people").replace("people_", "users_")
        self.asks(after, "--rename users=people", "--drop users")
        text = self.change(after, rename={"users": "people"})
        self.assertIn("ALTER TABLE users RENAME TO people;", text)
        self.sql("INSERT INTO posts VALUES (3, 1)")
        self.assertEqual(self.sql("SELECT age FROM people WHERE id = 1"), [(4,)])
        text = self.change("CREATE TABLE posts (id INTEGER PRIMARY KEY, user INTEGER);",
                           drop=["people"])
        for part in ("the table people", "the index users_name", "the trigger users_born",
                     "the view names", "the trigger posts_new"):
            self.assertIn(f"drops {part}", text)
        self.assertIn('changes in posts: user INTEGER REFERENCES "people" (id) ON DELETE CASCADE -> '
                      "user INTEGER", text)
        self.assertEqual(self.sql("SELECT user FROM posts"), [(1,), (2,), (1,)])

    def test_views_and_triggers_and_indexes_are_replaced(self):
        self.prepare("CREATE TABLE t (a, b); CREATE INDEX i ON t (a);"
                     "CREATE VIEW v AS SELECT a FROM t; CREATE VIEW w AS SELECT a FROM v;"
                     "CREATE TRIGGER wi INSTEAD OF INSERT ON w BEGIN INSERT INTO t VALUES (new.a, 0);"
                     " END;", "INSERT INTO t VALUES (1, 'x')")
        text = self.change(
            "CREATE TABLE t (a, b); CREATE INDEX i ON t (lower(b) DESC) WHERE b IS NOT NULL;"
            "CREATE VIEW v AS SELECT a, b FROM t; CREATE VIEW w AS SELECT b AS a FROM v;"
            "CREATE TRIGGER wi INSTEAD OF INSERT ON w BEGIN INSERT INTO t VALUES (new.a, 0); END;")
        for part in ("the index i", "the view v", "the view w"):
            self.assertIn(f"replaces {part}", text)
        self.sql("INSERT INTO w VALUES (5)")
        self.assertEqual(self.sql("SELECT a FROM w"), [("x",), (0,)])

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5(a)"), "needs FTS5")
    def test_full_text_indexes_over_a_table_are_filled_anew(self):
        table = "CREATE TABLE d (id INTEGER PRIMARY KEY, t TEXT{});"
        index = "CREATE VIRTUAL TABLE f USING fts5 (t, {}content = 'd', content_rowid = 'id');"
        self.prepare(table.format(""), "INSERT INTO d VALUES (5, 'hello'), (8, NULL);")
        for after in (table.format("") + index.format(""),
                      table.format(" NOT NULL DEFAULT 'nothing'") + index.format(""),
                      table.format(" NOT NULL DEFAULT 'nothing', u TEXT") + index.format("u, ")):
            self.change(after)
            self.assertEqual(self.sql("SELECT rowid FROM f WHERE f MATCH 'hello'"), [(5,)])
        self.assertEqual(self.sql("SELECT rowid FROM f WHERE f MATCH 'nothing'"), [(8,)])
        self.sql("INSERT INTO f (f) VALUES ('integrity-check')")

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5(a)"), "needs FTS5")
    def test_a_virtual_table_with_content_of_its_own_is_asked_about(self):
        self.prepare("CREATE VIRTUAL TABLE f USING fts5 (t)", "INSERT INTO f VALUES ('hello')")
        after = "CREATE VIRTUAL TABLE f USING fts5 (t, u)"
        self.asks(after, "content of its own", "--drop f")
        self.change(after, drop=["f"])
        self.assertEqual(self.sql("SELECT * FROM f"), [])

    def test_names_that_need_quotes_and_definitions_that_are_hard_to_read(self):
        self.prepare('CREATE TABLE "a-b(" ("x y" TEXT /* ) , ( */, [order] INT -- , c)\n);'
                     "CREATE TABLE t (a, _rowid_, rowid, oid);",
                     """INSERT INTO "a-b(" VALUES (1, 2); INSERT INTO t VALUES (1, 2, 3, 4);""")
        self.change('CREATE TABLE "a-b(" ("x y" TEXT /* ) , ( */, [order] INT -- , c)\n'
                    """ , "d""e" TEXT NOT NULL DEFAULT ', ('); CREATE TABLE t (a INT, _rowid_, rowid,"""
                    " oid);")
        self.change('CREATE TABLE "a-b(" ("x y" TEXT NOT NULL, "group" INT);'
                    "CREATE TABLE t (a INT, _rowid_, rowid, oid);",
                    rename={"a-b(.order": "group"}, drop=['a-b(.d"e'],
                    fill={"a-b(.x y": "'?'"})
        self.assertEqual(self.sql('SELECT * FROM "a-b("'), [("1", 2)])

    def test_several_tables_change_at_once(self):
        self.prepare()
        self.change(self.before.replace("age INT", "age REAL").replace(
            "user INTEGER REFERENCES users (id) ON DELETE CASCADE",
            "user INTEGER NOT NULL DEFAULT 1 REFERENCES users (id)")
            + "CREATE TABLE tags (id INTEGER PRIMARY KEY, post REFERENCES posts);"
              "CREATE INDEX tags_post ON tags (post);")
        self.assertEqual(self.users("age"), [(3.0,), (None,)])
        self.keeps_all()

    def test_from_nothing_the_whole_schema_is_the_first_script(self):
        shutil.rmtree("m")
        Path("schema.sql").write_text(self.before)
        result = self.works(self.run_main("--migrations", "m", "--new", "all", "--schema",
                                          "schema.sql"))
        self.assertEqual(result.out, os.path.join("m", "0001-all.sql") + "\n")
        self.works(self.run_main("--migrations", "m", "--verify", "--schema", "schema.sql"))

    def test_user_version_is_left_alone_unless_the_file_sets_it(self):
        self.prepare("CREATE TABLE t (a); PRAGMA user_version = 3;", "")
        self.assertNotIn("user_version", self.write("CREATE TABLE t (a, b);"))
        self.assertIn("PRAGMA user_version = 4;",
                      self.write("CREATE TABLE t (a, b); PRAGMA user_version = 4;"))

    def test_no_difference_is_refused(self):
        self.prepare()
        self.asks(self.before, "already lead to the schema")

    def test_answers_that_fit_nothing_are_refused(self):
        self.prepare()
        after = self.changed("fax TEXT", "phone TEXT")
        for part, answers in (
                ("no user.fax", {"drop": ["user.fax"]}), ("no users.fox", {"drop": ["users.fox"]}),
                ("no fex", {"rename": {"users.fax": "fex"}}),
                ("drop users.name: schema.sql still has it", {"drop": ["users.name"]}),
                ("drop posts: schema.sql still has it", {"drop": ["posts"]}),
                ("Rename in two scripts", {"rename": {"users.fax": "name"}}),
                ("has no such column", {"rename": {"users.fax": "phone"}, "fill": {"users.x": "1"}}),
                ("is not TABLE or TABLE.COLUMN", {"drop": ["a.b.c"]})):
            self.asks(after, part, **answers)

    def test_the_name_of_one_table_to_drop_is_not_taken_letter_by_letter(self):
        self.prepare()
        self.script("0003-more.sql", "CREATE TABLE p (x); CREATE TABLE c (x); CREATE TABLE pc (x);")
        Path("schema.sql").write_text(self.before + "CREATE TABLE p (x); CREATE TABLE c (x);")
        path = fastmigrate.new_migration("m", "less", schema="schema.sql", drop="pc")
        self.assertIn("DROP TABLE pc;", path.read_text())

    def test_a_schema_file_that_is_no_schema_is_refused_with_its_line(self):
        self.prepare()
        for text, part in (
                ("CREATE TABLE a (x);\n\nCREATE TABEL b (x);", "schema.sql:3: near \"TABEL\""),
                ("CREATE TABLE a (x);\nINSERT INTO a VALUES (1);", "schema.sql:2: INSERT INTO a"),
                ("CREATE TABLE a (x);\nCREATE TEMP TABLE b (x);", "schema.sql:2: CREATE TEMP"),
                ("CREATE TABLE a (x);\nCREATE INDEX i ON a (y);", "schema.sql:2: "),
                ("\nCREATE TABLE a (x", "schema.sql:2: "), ("", "schema.sql:1: "),
                ("-- nothing\n", "schema.sql:1: ")):
            self.asks(text, part)
        Path("latin.sql").write_bytes(b"CREATE TABLE a (x);\n-- \xe4\n")
        with self.assertRaisesRegex(MigrationError, "latin.sql:2: .*UTF-8"):
            fastmigrate.new_migration("m", "x", schema="latin.sql")
        with self.assertRaisesRegex(FileNotFoundError, "no schema file none.sql"):
            fastmigrate.new_migration("m", "x", schema="none.sql")

    def test_a_schema_file_that_needs_a_function_of_the_application_asks_for_a_connect(self):
        self.prepare()
        self.asks(self.before + "CREATE INDEX i ON users (lower(name) COLLATE german);",
                  "no such collation sequence: german. Nothing was written. Correct the name or, if")

    @posix_only
    def test_many_who_create_the_next_script_at_once_get_a_number_each(self):
        makers = [Forked(lambda name=name: self.go("--new", name)) for name in "abcdefgh"]
        for maker in makers:
            self.works(maker.result())
        numbers = [name[:4] for name in os.listdir("m")]
        self.assertEqual((len(numbers), len(set(numbers))), (8, 8), numbers)

    def test_a_number_that_a_killed_maker_has_reserved_is_left_out(self):
        Path("m/.0001.new").touch()
        self.assertEqual(fastmigrate.new_migration("m", "a").name, "0002-a.sql")
        self.assertEqual(fastmigrate.new_migration("m", "b").name, "0003-b.sql")

    def test_the_command_line_writes_asks_and_names_what_is_dropped(self):
        self.prepare()
        Path("schema.sql").write_text(
            self.changed("fax TEXT", "phone TEXT").replace(
                "CREATE UNIQUE INDEX users_name ON users (name);\n", ""))
        new = ("--new", "Phone!", "--schema", "schema.sql")
        self.refuses(self.go(*new), "--rename users.fax=phone", "--drop users.fax")
        self.assertEqual(len(os.listdir("m")), 2)
        result = self.works(self.go(*new, "--rename", "users.fax=phone"))
        self.assertEqual(result.out, os.path.join("m", "0003-phone.sql") + "\n")
        self.assertIn("0003-phone.sql drops the index users_name", result.err)
        self.assertIn("drops the index users_name", Path("m/0003-phone.sql").read_text())
        self.works(self.go())
        self.assertEqual(self.sql("SELECT phone FROM users"), [("1",), (None,)])
        self.refuses(self.go(*new), "already lead to the schema")

    def test_wrong_usage_is_exit_2(self):
        for arguments in (("--schema", "s"), ("--status", "--schema", "s"), ("--rename", "a=b"),
                          ("--drop", "a"), ("--fill", "a.b=1"), ("--new", "x", "--rename", "a.b=c"),
                          ("--new", "x", "--schema", "s", "--rename", "a"),
                          ("--print-schema", "--verify")):
            self.assertEqual(self.go(*arguments).code, 2, arguments)

    def test_a_schema_in_the_config_is_for_new_alone(self):
        self.prepare()
        Path("schema.sql").write_text(self.before)
        Path(".fastmigrate").write_text("[paths]\nschema = schema.sql\n")
        result = self.works(self.go("--new", "data"))
        self.assertIn("already lead to the schema", result.err)
        self.assertEqual(Path("m/0003-data.sql").read_text(), "-- data\n")
        Path("schema.sql").write_text(self.before + "CREATE TABLE more (x);\n")
        self.works(self.go("--new", "in python.py"))
        self.works(self.go("--new", "more"))
        self.assertIn("CREATE TABLE more (x);", Path("m/0005-more.sql").read_text())
        Path("schema.sql").unlink()
        self.refuses(self.go("--new", "again"), "no schema file schema.sql")
        os.unlink("m/0004-in-python.py")
        self.works(self.go())
        self.works(self.go("--verify"))


class Several(Case):
    def test_json_has_a_document_for_each_database_that_cannot_be_read_too(self):
        self.create("y.db")
        Path("x.db").write_bytes(b"x" * 5000)
        result = self.run_main("--db", "x.db", "y.db", "--migrations", "m", "--status", "--json")
        found = [json.loads(line) for line in result.out.splitlines()]
        self.assertEqual(["error" in each for each in found], [True, False])

    def test_the_option_may_be_repeated(self):
        for name in ("y.db", "z.db"):
            self.works(self.run_main("--db", name, "--createdb"))
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.works(self.run_main("--db", "y.db", "--db", "z.db", "--migrations", "m"))
        self.assertEqual((self.version("y.db"), self.version("z.db")), (1, 1))

    def test_several_are_enrolled_by_the_script_that_the_first_one_writes(self):
        names = ("x.db", "y.db", "z.db")
        for name in names:
            self.sql("CREATE TABLE a (x)", name)
        result = self.works(self.run_main("--db", "*.db", "--migrations", "m", "--enroll",
                                          "--jobs", "3"))
        self.assertEqual(result.out, "3 databases done\n")
        self.assertEqual(os.listdir("m"), ["0001-initialize.sql"])
        self.assertEqual([self.version(name) for name in names], [1, 1, 1])

    def test_verifying_several_suggests_no_new_names(self):
        self.script("0003-c.sql", "CREATE TABLE c (x);")
        for name in ("x.db", "y.db"):
            self.create(name)
            migrate(name, "m")
        self.script("0002-b.sql", "")
        result = self.works(self.run_main("--db", "x.db", "y.db", "--migrations", "m", "--verify"))
        self.assertIn("0002-b.sql: never run on y.db", result.err)
        self.assertNotIn("mv ", result.err)

    def test_each_failure_tells_its_database_and_its_reason(self):
        for name in ("x.db", "y.db"):
            self.create(name)
        self.script("0001-a.sql", "CREATE TABLE a (x);\nSELECT nope;\n")
        result = self.run_main("--db", "x.db", "y.db", "--migrations", "m")
        self.assertEqual((result.code, result.out), (1, "0 databases done\n"))
        self.assertEqual(result.err, "".join(f"""\
error: m/0001-a.sql:2: no such column: nope
    SELECT nope;
{name} is still at version 0; the script was rolled back.
Fix the script, then run this again.
""" for name in ("x.db", "y.db")) + "error: 2 of 2 failed: x.db, y.db\n")

    def test_status_has_a_line_or_a_json_document_for_each_and_check_fails_for_all(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        for name in ("x.db", "y.db"):
            self.create(name)
        migrate("x.db", "m")
        both = ("--db", "x.db", "y.db", "--migrations", "m")
        self.assertEqual(self.works(self.run_main(*both, "--status")).out,
                         "x.db is at version 1; the scripts end at 1\n"
                         "y.db is at version 0; the scripts end at 1\n2 databases done\n")
        lines = self.works(self.run_main(*both, "--status", "--json")).out.splitlines()
        self.assertEqual([json.loads(line)["db"] for line in lines], ["x.db", "y.db"])
        result = self.run_main(*both, "--check")
        self.assertEqual((result.code, result.out), (1, "1 database done\n"))
        self.assertEqual(result.err, "error: y.db: 1 pending: 0001-a.sql. Run fastmigrate --db y.db "
                         "--migrations m\nerror: 1 of 2 failed: y.db\n")

    def test_many_databases_are_migrated_and_failures_do_not_stop_the_others(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        os.mkdir("tenants")
        for n in range(6):
            fastmigrate.create_db(f"tenants/{n}.db")
        self.sql("CREATE TABLE a (x)", "tenants/3.db")
        for jobs, applied in (("1", 5), ("2", 0)):
            result = self.run_main("--db", "tenants/*.db", "--migrations", "m", "--jobs", jobs)
            self.assertEqual(result.code, 1, result)
            self.assertEqual(result.out, f"5 databases done ({applied} migrations applied)\n")
            self.assertIn("1 of 6 failed: " + os.path.join("tenants", "3.db"), result.err)
        self.assertEqual(self.version("tenants/5.db"), 1)

    def test_a_pattern_does_not_take_the_files_that_the_tool_lays_beside_a_database(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        os.mkdir("tenants")
        for name in ("one.db", "two.sqlite", "three"):
            fastmigrate.create_db(f"tenants/{name}")
        backup = fastmigrate.create_db_backup("tenants/one.db")
        fastmigrate.restore_db("tenants/one.db", backup)
        for name in ("one.db-copy-0001-77-0a1b2c", "one.db-copy-backup-77-0a1b2c", "three-wal",
                     "one.db-copy-0001-77-0a1b2c-journal", "two.sqlite-journal", "three-shm"):
            shutil.copy(backup, f"tenants/{name}")
        result = self.works(self.run_main("--db", "tenants/*", "--migrations", "m"))
        self.assertIn("3 databases done", result.out)
        self.assertEqual(self.version(backup), 0)

    @posix_only
    def test_an_interrupt_ends_all_of_them_and_leaves_each_at_one_version(self):
        meeting = Meeting(self)
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.py_script("0002-b.py", "execute('INSERT INTO a VALUES (1)')",
                       "open(os.environ['FASTMIGRATE_DB'] + '.up', 'w').close(); meet()")
        for jobs, group in ((1, False), (2, False), (2, True)):
            paths = [f"{jobs}{group}{n}.db" for n in range(4)]
            for path in paths:
                fastmigrate.create_db(path)
            process = subprocess.Popen(
                [sys.executable, str(MODULE), "--migrations", "m", "--jobs", str(jobs), "--db",
                 *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True)
            self.addCleanup(self.clear_away, process)
            for path in paths[:jobs]:
                self.wait_for(lambda path=path: os.path.exists(path + ".up"), "the script")
            (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
            result = self.end(process)
            self.assertEqual(result.code, 130, result)
            self.assertNotIn("Traceback", result.err)
            for path in paths[:jobs]:
                self.assertEqual(self.sql("SELECT count(*) FROM a", path), [(0,)], result)
            self.assertEqual(self.version(paths[-1]), 0, result)
            self.assertEqual([n for n in os.listdir(".") if "-copy-" in n], [], result)
        meeting.let_go()


class Connecting(Case):
    """Databases that only the application's own `connect` can open."""

    def connect(self, path):
        options = {"autocommit": False} if hasattr(sqlite3.Connection, "autocommit") else {}
        connection = sqlite3.connect(path, **options)
        connection.create_collation("backwards", lambda a, b: (a < b) - (a > b))
        connection.row_factory = sqlite3.Row
        connection.text_factory = bytes
        return connection

    def test_a_connection_may_be_wrapped(self):
        class Wrapper:
            def __init__(self, connection):
                vars(self)["connection"] = connection

            def __getattr__(self, name):
                return getattr(self.connection, name)

            def __setattr__(self, name, value):
                setattr(self.connection, name, value)

        self.script("0001-a.sql", "CREATE TABLE a (x);")
        fastmigrate.create_db("w.db")
        migrate("w.db", "m", connect=lambda path: Wrapper(sqlite3.connect(path)))
        self.assertEqual(self.version("w.db"), 1)
        self.refuses(self.run_main("--db", "w.db", "--migrations", "m",
                                   connect=lambda path: object()), "returned a builtins connection")

    def test_a_page_size_may_change_in_memory_too(self):
        self.script("0001-a.sql", "CREATE TABLE a (x); INSERT INTO a VALUES (1);")
        self.script("0002-b.sql", "PRAGMA page_size = 8192; VACUUM;")
        self.script("0003-c.sql", "INSERT INTO a VALUES (2);")
        with contextlib.closing(fastmigrate.build_db("m")) as built:
            self.assertEqual(built.execute("SELECT * FROM a").fetchall(), [(1,), (2,)])

    def test_a_built_file_takes_nobodys_place(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.script("0002-b.sql", "SELECT nope;")

        def connect(path):
            if not os.path.exists("y.db") and path.endswith("y.db"):
                self.create("y.db")  # another process is faster
                self.sql("CREATE TABLE theirs (x)", "y.db")
            return sqlite3.connect(path)

        with self.assertRaisesRegex(MigrationError, "y.db already exists"):
            fastmigrate.build_db("m", "y.db", connect=connect)
        self.assertEqual(self.tables("y.db"), {"theirs"})

    def test_a_version_that_another_process_has_set_meanwhile_stays(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.sql("CREATE TABLE t (x)")
        opened = []

        def connect(path):
            opened.append(path)
            if len(opened) == 2:  # it was unversioned when it was opened first
                fastmigrate.ensure_meta_table("x.db")
                migrate("x.db", "m")
            return sqlite3.connect(path)

        fastmigrate.ensure_meta_table("x.db", connect=connect)
        self.assertEqual(self.version(), 1)

    def test_a_connect_whose_own_pragmas_meet_a_lock_waits(self):
        self.create()
        other = sqlite3.connect("x.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        opened = []

        def connect(path):
            opened.append(path)
            if len(opened) == 3:
                other.execute("ROLLBACK")
            connection = sqlite3.connect(path, timeout=0)
            connection.execute("PRAGMA synchronous = NORMAL").fetchall()
            return connection

        fastmigrate.set_db_version("x.db", 7, connect=connect)
        other.close()
        self.assertEqual(self.version(), 7)

    def test_what_connect_raises_ends_the_command_line_with_its_words(self):
        for name in ("x.db", "y.db"):
            self.create(name)

        def connect(path):
            sys.exit("no key")

        for arguments in (("--db", "x.db"), ("--db", "x.db", "y.db", "--jobs", "2")):
            result = self.run_main(*arguments, "--migrations", "m", connect=connect)
            self.assertEqual((result.code, result.err), (1, "error: no key\n"))

    def test_an_extension_that_connect_may_not_load_is_an_error_with_a_next_step(self):
        def connect(path):
            raise sqlite3.OperationalError("not authorized")

        for call in (lambda: fastmigrate.create_db("new.db", connect=connect),
                     lambda: fastmigrate.build_db("m", connect=connect)):
            with self.assertRaisesRegex(MigrationError, "enable_load_extension"):
                call()

    def test_a_built_file_is_not_kept_if_a_script_fails(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.script("0002-b.sql", "SELECT nope;")
        for _ in range(2):
            with self.assertRaisesRegex(MigrationError, "m/0002-b.sql:1: .*\n.*\ny.db was not kept"):
                fastmigrate.build_db("m", "y.db")
        self.assertFalse(os.path.exists("y.db"))
        os.unlink("m/0002-b.sql")
        fastmigrate.build_db("m", "y.db").close()
        self.assertEqual(self.version("y.db"), 1)

    def test_a_scratch_database_does_not_tell_which_of_two_scripts_ran(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.script("0001-b.sql", "CREATE TABLE b (x);")
        for call in (fastmigrate.build_db, fastmigrate.get_schema, fastmigrate.get_migration_scripts):
            with self.assertRaises(ValueError) as caught:
                call("m")
            self.assertIsInstance(caught.exception, MigrationError)
            self.assertEqual(str(caught.exception), "two scripts have the number 0001, so nothing is "
                             "run: 0001-a.sql, 0001-b.sql in m. Renumber one that production does "
                             "not have (and any later script of yours that needs it).")

    def test_every_call_and_the_command_line_use_it(self):
        options = {"connect": self.connect}
        self.script("0001-a.sql", "CREATE TABLE a (x COLLATE backwards); CREATE INDEX i ON a (x);"
                                  "INSERT INTO a VALUES ('1'), ('2');")
        fastmigrate.ensure_versioned_db("x.db", **options)
        fastmigrate.migrate("x.db", "m", **options)
        self.script("0002-b.sql", "INSERT INTO a VALUES ('3');\nVACUUM;\n")
        self.script("0003-c.py", "pass")
        found = fastmigrate.rehearse("x.db", "m", **options)
        self.assertEqual(found["rows"], {"a": [2, 3]})
        code = fastmigrate.main(["--db", "x.db", "--migrations", "m", "-q"], **options)
        self.assertEqual((code, self.version()), (0, 3))
        self.assertEqual(fastmigrate.verify("x.db", "m", **options), "")
        fastmigrate.restore_db("x.db", fastmigrate.create_db_backup("x.db", **options), **options)
        memory = fastmigrate.build_db("m", **options)
        self.assertEqual([tuple(row) for row in memory.execute("SELECT x FROM a ORDER BY x")],
                         [(b"3",), (b"2",), (b"1",)])
        memory.close()

    def test_a_connect_that_reads_in_exclusive_mode_keeps_nobody_out(self):
        def connect(path):
            connection = sqlite3.connect(path, timeout=0.1)
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            return connection

        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.py_script("0002-b.py", "execute('INSERT INTO a VALUES (1)')")
        migrate("x.db", "m", connect=connect)
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])
        self.sql("PRAGMA journal_mode = WAL")
        self.script("0003-c.sql")
        with self.assertRaisesRegex(MigrationError, "locking_mode = EXCLUSIVE, which cannot be left"):
            migrate("x.db", "m", connect=connect)

    def test_a_connect_that_denies_a_statement_is_no_ctrl_c(self):
        def connect(path):
            connection = sqlite3.connect(path)
            connection.set_authorizer(lambda action, *details: sqlite3.SQLITE_DENY
                                      if action == sqlite3.SQLITE_INSERT else sqlite3.SQLITE_OK)
            return connection

        for call in (lambda: fastmigrate.build_db("m", connect=connect),
                     lambda: fastmigrate.create_db("y.db", connect=connect)):
            with self.assertRaisesRegex(MigrationError, "not authorized"):
                call()

    def test_a_connect_that_makes_a_temporary_table_can_read_a_schema_file(self):
        def connect(path):
            connection = sqlite3.connect(path)
            connection.execute("CREATE TEMP TABLE own (x)")
            return connection

        Path("schema.sql").write_text("CREATE TABLE a (x);")
        path = fastmigrate.new_migration("m", "a", schema="schema.sql", connect=connect)
        self.assertIn("CREATE TABLE a (x);", path.read_text())

    def test_no_setting_of_its_connections_weakens_a_run(self):
        settings = ("journal_mode = OFF", "journal_mode = MEMORY", "journal_mode = PERSIST",
                    "journal_mode = TRUNCATE", "locking_mode = EXCLUSIVE", "synchronous = OFF",
                    "foreign_keys = ON", "count_changes = ON", "mmap_size = 1000000")
        self.script("0001-a.sql", PARENTS)
        self.script("0002-b.sql", REBUILD)
        self.script("0003-c.sql", "-- fastmigrate: no-transaction\n"
                    + REBUILD.replace("artist_new", "artist_2"))
        self.py_script("0004-d.py", "execute('INSERT INTO artist VALUES (3, 3)')")
        self.script("0005-e.sql", "DELETE FROM artist WHERE id = 3;\nSELECT nope;\n")
        self.script("0006-f.sql", "-- fastmigrate: no-transaction\nDELETE FROM artist;\nSELECT nope;")
        for setting in settings:
            for mode in ("delete", "wal"):
                with self.subTest(setting=setting, mode=mode):
                    self.create(mode=mode)

                    def connect(path, setting=setting):
                        connection = sqlite3.connect(path)
                        with contextlib.suppress(sqlite3.OperationalError):  # it is locked
                            connection.execute(f"PRAGMA {setting}").fetchall()
                        return connection

                    migrate("x.db", "m", to=4, connect=connect)
                    for skipped in (4, 5):
                        fastmigrate.set_db_version("x.db", skipped)
                        with self.assertRaisesRegex(MigrationError, "nope"):
                            migrate("x.db", "m", connect=connect)
                    self.assertEqual(self.sql("SELECT id FROM artist"), [(1,), (2,), (3,)])
                    self.assertEqual(self.sql("SELECT count(*) FROM album"), [(3,)])
                    self.assertEqual(self.copies(), set())
                for name in ["x.db", *self.beside()]:
                    os.unlink(name)


class DropIn(Case):
    """What applications of the fastmigrate package call."""

    def test_a_script_may_migrate_its_copy_no_further_than_to_its_own_version(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.py_script("0002-b.py", "execute('INSERT INTO a VALUES (1)')", "import fastmigrate as f",
                       "f.migrate(sys.argv[1], 'n')")
        os.mkdir("n")
        self.script("0001-a.sql", "CREATE TABLE a (x);", folder="n")
        self.script("0002-b.sql", "CREATE TABLE b (x);", folder="n")
        self.works(self.go("--timeout", "5"))
        self.assertEqual((self.version(), self.tables(), self.beside()), (2, {"a", "b"}, set()))
        self.script("0003-c.sql", "CREATE TABLE c (x);", folder="n")
        self.script("0004-c.sql", "CREATE TABLE d (x);", folder="n")
        self.py_script("0003-c.py", "import fastmigrate as f; f.migrate(sys.argv[1], 'n')")
        self.refuses(self.go("--timeout", "5"), "set the version to 4", "still at version 2")
        self.assertEqual((self.tables(), self.beside()), ({"a", "b"}, set()))

    def test_recreate_table_and_set_db_version_work_in_a_script(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x); INSERT INTO a VALUES (1);")
        self.script("0002-b.py", f"import sys; sys.path.insert(0, {str(MODULE.parent)!r})\n"
                    "import fastmigrate as f\n"
                    "f.recreate_table(sys.argv[1], 'a', 'x INTEGER NOT NULL, y')\n"
                    "f.set_db_version(sys.argv[1], 2)\n")
        self.works(self.go("--timeout", "2"))
        self.assertEqual(self.sql("SELECT * FROM a"), [(1, None)])
        self.assertEqual(self.beside(), set())

    def test_rows_that_do_not_fit_a_recreated_table_are_an_error(self):
        self.create()
        self.sql("CREATE TABLE z (a)")
        self.sql("INSERT INTO z VALUES (NULL)")
        with self.assertRaisesRegex(MigrationError, "^the rows of z in x.db do not fit the new "
                                    r"definition: .* z_new.a .*\. Nothing was changed\. Change the rows"):
            fastmigrate.recreate_table("x.db", "z", "a INT NOT NULL")

    @unittest.skipUnless(known("CREATE TABLE t (a, b AS (a))"), "needs generated columns")
    def test_recreate_table_does_not_let_a_column_become_generated(self):
        self.create()
        self.sql("CREATE TABLE b (a, total)")
        with self.assertRaisesRegex(MigrationError, "lacks total, whose values would be lost"):
            fastmigrate.recreate_table("x.db", "b", "a, total INT AS (a * 2)")

    def test_recreate_table_keeps_rows_indexes_and_children(self):
        self.create()
        self.script("0001-a.sql", PARENTS + "CREATE INDEX i ON artist (name);")
        migrate("x.db", "m")
        fastmigrate.recreate_table("x.db", "artist", "id INTEGER PRIMARY KEY, name TEXT, born")
        self.assertEqual(self.sql("SELECT * FROM artist"), [(1, "a", None), (2, "b", None)])
        self.assertEqual(self.sql("SELECT count(*) FROM album"), [(3,)])
        self.assertEqual(self.sql("SELECT name FROM sqlite_master WHERE type = 'index'"), [("i",)])
        with self.assertRaises(MigrationError):
            fastmigrate.recreate_table("x.db", "artist", "id INTEGER PRIMARY KEY")
        self.assertEqual(self.sql("SELECT count(*) FROM artist"), [(2,)])

    def test_recreate_table_does_not_take_the_key_from_a_foreign_key(self):
        self.create()
        self.sql("CREATE TABLE p (id INTEGER PRIMARY KEY, k TEXT UNIQUE)")
        self.sql("CREATE TABLE c (k REFERENCES p (k))")
        before = self.dump()
        with self.assertRaisesRegex(MigrationError, "with the new definition of p, table c has a "
                                    "foreign key that cannot work: k refers to the table p"):
            fastmigrate.recreate_table("x.db", "p", "id INTEGER PRIMARY KEY, k TEXT")
        self.assertEqual(self.dump(), before)

    def test_the_names_that_applications_import_are_there(self):
        from fastmigrate import core
        for name in ("create_db", "create_db_backup", "ensure_meta_table", "get_migration_scripts",
                     "extract_version_from_filename", "get_db_version", "set_db_version",
                     "run_migrations", "_ensure_meta_table", "_set_db_version"):
            self.assertTrue(callable(getattr(core, name, None)), name)
        self.sql("CREATE TABLE t (x)")
        core._ensure_meta_table("x.db")
        core._set_db_version("x.db", 7)
        self.assertEqual(self.version(), 7)

    def test_arun_migrations_awaits_the_run(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.assertIs(asyncio.run(fastmigrate.arun_migrations("x.db", "m")), True)
        self.assertEqual(self.version(), 1)

    def test_a_script_can_import_what_the_application_can(self):
        self.py_script("0001-a.py", "from myapp.fastmigrate import recreate_table",
                       "from myapp.models import TABLE", "execute(f'CREATE TABLE {TABLE} (x)')",
                       "recreate_table(sys.argv[1], TABLE, 'x, y')")
        files = {"myapp/__init__.py": "", "myapp/models.py": "TABLE = 'users'\n",
                 "myapp/fastmigrate.py": MODULE.read_text(encoding="utf-8"),
                 "__main__.py": "from myapp.fastmigrate import ensure_versioned_db, run_migrations\n"
                                "ensure_versioned_db('x.db')\n"
                                "raise SystemExit(not run_migrations('x.db', 'm'))\n"}
        os.mkdir("src")
        os.mkdir("src/myapp")
        with zipfile.ZipFile("app.pyz", "w") as archive:
            for name, text in files.items():
                Path("src", name).write_text(text, encoding="utf-8")
                archive.writestr(name, text)
        for program in ("src", "app.pyz", "src/__main__.py"):
            done = subprocess.run([sys.executable, program], capture_output=True, text=True,
                                  env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
            self.works(Result(done.returncode, done.stdout, done.stderr))
            self.assertEqual(self.sql("SELECT * FROM users"), [])
            os.unlink("x.db")

    @posix_only
    def test_another_python_that_a_script_starts_is_not_harmed(self):
        self.create()
        self.py_script("0001-a.py", """\
            paths = os.environ["PYTHONPATH"].split(os.pathsep)
            library = os.path.dirname(os.__file__)
            assert not [p for p in paths if p.startswith(library)], paths
            """)
        self.sh_script("0002-b.sh", 'test "${PYTHONPATH-none}" = none')
        with mock.patch.dict(os.environ):
            os.environ.pop("PYTHONPATH", None)
            self.works(self.go())

    def recreate(self, before, table, definitions):
        connection = sqlite3.connect("x.db")
        connection.executescript(before)
        connection.close()
        fastmigrate.recreate_table("x.db", table, definitions)

    def test_recreate_table_finds_the_table_in_any_letter_case_with_what_hangs_on_it(self):
        self.recreate("CREATE TABLE users (id INTEGER PRIMARY KEY, mail);"
                      "CREATE UNIQUE INDEX i ON users (mail); INSERT INTO users VALUES (1, 'a');"
                      "CREATE TABLE users_new (x); CREATE VIEW v AS SELECT mail FROM users;"
                      "CREATE TABLE log (x); CREATE TRIGGER r AFTER INSERT ON users BEGIN"
                      " INSERT INTO log VALUES (new.id); END;"
                      "CREATE TRIGGER l AFTER DELETE ON log BEGIN DELETE FROM users; END;",
                      "Users", "id INTEGER PRIMARY KEY, mail TEXT NOT NULL")
        with self.assertRaises(sqlite3.IntegrityError):
            self.sql("INSERT INTO users (mail) VALUES ('a')")
        self.sql("INSERT INTO users (mail) VALUES ('b')")
        self.assertEqual(self.sql("SELECT * FROM log"), [(2,)])
        self.assertEqual(self.sql("SELECT * FROM v"), [("a",), ("b",)])
        self.sql("DELETE FROM log")
        self.assertEqual(self.sql("SELECT * FROM users"), [])

    def test_recreate_table_keeps_the_sequence_also_of_an_emptied_table(self):
        self.recreate("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a);"
                      "INSERT INTO t VALUES (3, 1); DELETE FROM t;",
                      "t", "id INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT")
        self.sql("INSERT INTO t (a) VALUES (1)")
        self.assertEqual(self.sql("SELECT id FROM t"), [(4,)])

    @unittest.skipUnless(known("CREATE TABLE t (a INT) STRICT"), "needs STRICT")
    def test_recreate_table_keeps_strict_and_without_rowid(self):
        self.recreate("CREATE TABLE t (a INT PRIMARY KEY, b ANY) STRICT, WITHOUT ROWID;"
                      "INSERT INTO t VALUES (3, 4);", "t", "a INT PRIMARY KEY, b ANY, c TEXT")
        self.assertEqual(self.sql("SELECT * FROM t"), [(3, 4, None)])
        with self.assertRaises(sqlite3.IntegrityError):
            self.sql("INSERT INTO t VALUES ('x', 1, 1)")
        with self.assertRaises(sqlite3.OperationalError):
            self.sql("SELECT rowid FROM t")

    @unittest.skipUnless(known("CREATE VIRTUAL TABLE t USING fts5(a)"), "needs FTS5")
    def test_recreate_table_keeps_rowids_and_refuses_a_virtual_table(self):
        self.recreate("CREATE TABLE t (a); INSERT INTO t (rowid, a) VALUES (7, 'x'), (9, 'y');"
                      "CREATE VIRTUAL TABLE f USING fts5 (a, content = 't');"
                      "INSERT INTO f (f) VALUES ('rebuild');", "t", "a TEXT, b")
        self.assertEqual(self.sql("SELECT rowid, a FROM f ('y')"), [(9, "y")])
        with self.assertRaisesRegex(MigrationError, "virtual table"):
            fastmigrate.recreate_table("x.db", "F", "a, b")

    def test_recreate_table_refuses_what_it_cannot_do_and_changes_nothing(self):
        self.sql("CREATE TABLE t (a, b)")
        self.sql("INSERT INTO t VALUES (1, 2)")
        before = Path("x.db").read_bytes()
        for table, definitions, part in (
                ("u", "a", "does not exist"), ("t", "a", "lacks b"), ("t", "a, b CHECK (", "not valid"),
                ("t", "a, b CHECK (b > 2)", "CHECK constraint failed"),
                ("t", "a, b); DROP TABLE t; --", "not valid")):
            with self.assertRaisesRegex(MigrationError, part):
                fastmigrate.recreate_table("x.db", table, definitions)
        self.assertEqual(Path("x.db").read_bytes(), before)


class Refusals(Case):
    def setUp(self):
        super().setUp()
        self.script("0001-a.sql", "CREATE TABLE a (x);")

    def test_what_sqlite_takes_for_empty_but_is_not_is_left_alone(self):
        Path("x.db").write_text("x")
        for arguments in (("--createdb",), ("--set-version", "1"), (), ("--enroll",)):
            self.refuses(self.go(*arguments), "x.db is not a database")
        self.assertEqual(Path("x.db").read_text(), "x")

    def test_commands_to_paste_begin_as_the_program_was_started(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        main = f"import sys; sys.path.insert(0, {str(MODULE.parent)!r}); import fastmigrate; "
        Path("db.py").write_text(main + "sys.exit(fastmigrate.main())")
        Path("server.py").write_text(main + "sys.exit(fastmigrate.main(sys.argv[1:]))")
        os.mkdir("app")
        Path("app/__main__.py").write_text(main + "sys.exit(fastmigrate.main())")
        zipapp.create_archive("app", "app.pyz")
        for start, shown in (("db.py", "python db.py"), ("server.py", "fastmigrate"),
                             ("app.pyz", "python app.pyz"), (MODULE, f"python {MODULE}")):
            done = subprocess.run([sys.executable, start, "--db", "x.db", "--migrations", "m", "--check"],
                                  capture_output=True, text=True)
            self.assertEqual(done.stderr, "error: x.db: 1 pending: 0001-a.sql. Run "
                             f"{shown} --db x.db --migrations m\n")

    def test_a_comment_that_does_not_end_would_swallow_the_rest(self):
        self.create()
        for head in ("", "PRAGMA foreign_keys = ON;\n", "-- fastmigrate: no-transaction\n"):
            self.script("0001-a.sql", f"{head}CREATE TABLE a (x);\n/* todo\nINSERT INTO a VALUES (5);\n")
            self.refuses(self.go(), f"m/0001-a.sql:{2 + bool(head)}: a comment begins here, and does "
                         "not end", "x.db is still at version 0", "End it with */")
        self.script("0001-a.sql", "CREATE TABLE a (x); /* a */ -- /* b\nINSERT INTO a VALUES ('/*')")
        self.works(self.go())
        self.assertEqual(self.sql("SELECT x FROM a"), [("/*",)])

    def test_an_empty_file_gets_no_version_but_0_by_hand(self):
        Path("x.db").touch()
        self.refuses(self.go("--set-version", 3), "x.db is empty", "--createdb")
        self.assertEqual(os.path.getsize("x.db"), 0)
        self.works(self.go("--set-version", 0))
        self.assertEqual(self.version(), 0)

    def test_no_error_is_its_own_cause(self):
        self.sql("CREATE TABLE t (x)")
        for call in (fastmigrate.get_db_version, fastmigrate.ensure_versioned_db,
                     lambda db: migrate(db, "m"), lambda db: fastmigrate.restore_db("y.db", db)):
            with self.assertRaises(MigrationError) as caught:
                call("x.db")
            self.assertIsNot(caught.exception.__cause__, caught.exception)

    def test_of_a_database_without_version_and_a_missing_directory_the_first_is_reported(self):
        self.sql("CREATE TABLE t (x)")
        for arguments in ((), ("--status",), ("--check",)):
            self.refuses(self.run_main("--db", "x.db", "--migrations", "none", *arguments),
                         "x.db is unversioned", "enroll_db() or --enroll")

    def test_what_sqlite_cannot_do_and_what_data_does_not_allow_have_a_next_step(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x); INSERT INTO a VALUES (1), (1);")
        self.script("0002-b.sql", "CREATE UNIQUE INDEX ax ON a (x);")
        self.refuses(self.go(), "UNIQUE constraint failed", "Change or remove the rows that have the same")
        self.script("0002-b.sql", "ALTER TABLE a MODIFY x TEXT NOT NULL;")
        self.refuses(self.go(), "m/0002-b.sql:1: near \"MODIFY\": syntax error",
                     "let --new WORDS --schema FILE, or new_migration(schema=...), write the script, then")

    def test_the_url_of_any_database_is_no_path(self):
        for url in ("sqlite+pysqlite:///x.db", "libsql://x", "postgres://x/y"):
            self.refuses(self.run_main("--db", url, "--createdb"), "is not the path of a database")
        self.assertEqual(os.listdir(), ["m"])

    def test_what_is_no_versioned_database_is_told_apart_and_left_as_it_was(self):
        Path("text.db").write_text("just some text, long enough to be a header of SQLite's\n" * 9)
        Path("empty.db").write_text("")
        self.sql("CREATE TABLE t (x)", "plain.db")
        self.create("cut.db")
        data = Path("cut.db").read_bytes()
        Path("cut.db").write_bytes(data[:5000])
        os.mkdir("folder.db")
        for name, part in (("text.db", "not a database"), ("empty.db", "is empty"),
                           ("plain.db", "unversioned"), ("cut.db", "damaged"),
                           ("folder.db", "directory"), ("none.db", "no database")):
            before = Path(name).read_bytes() if Path(name).is_file() else None
            self.refuses(self.run_main("--db", name, "--migrations", "m"), name, part)
            if name not in ("none.db", "empty.db"):
                self.refuses(self.run_main("--db", name, "--createdb"), part)
                with self.assertRaisesRegex(sqlite3.Error, part):
                    fastmigrate.ensure_versioned_db(name)
            with self.assertRaisesRegex((sqlite3.Error, FileNotFoundError), part):
                fastmigrate.get_db_version(name)
            after = Path(name).read_bytes() if Path(name).is_file() else None
            self.assertEqual(after, before)
        for name in ("plain.db", "empty.db"):
            with self.assertRaises(fastmigrate.UnversionedError):
                fastmigrate.get_db_version(name)
        with self.assertRaises(FileNotFoundError):
            fastmigrate.get_db_version("none.db")
        self.assertEqual(sorted(os.listdir(".")),
                         ["cut.db", "empty.db", "folder.db", "m", "plain.db", "text.db"])

    def test_a_meta_without_a_key_can_be_set_right(self):
        self.sql("CREATE TABLE _META (ID, Version)")
        self.sql("INSERT INTO _meta VALUES (1, 'one')")
        self.refuses(self.go(), "--set-version")
        self.works(self.go("--set-version", "0"))
        self.works(self.go())
        self.assertEqual(self.sql("SELECT * FROM _meta"), [(1, 1)])

    def test_every_damaged_or_foreign_meta_is_refused(self):
        table = "CREATE TABLE _meta (id INTEGER PRIMARY KEY, version)"
        for statements, part, repaired in (
                (["CREATE TABLE _meta (key, value)"], "not fastmigrate's", False),
                (["CREATE TABLE _meta (id)"], "not fastmigrate's", False),
                ([table], "no row", True),
                ([table, "INSERT INTO _meta VALUES (1, 1), (2, 2)"], "(2, 2)", False),
                ([table, "INSERT INTO _meta VALUES (1, 'one')"], "'one'", True),
                ([table, "INSERT INTO _meta VALUES (1, '1')"], "'1'", True),
                ([table, "INSERT INTO _meta VALUES (1, -4)"], "-4", True),
                ([table, "INSERT INTO _meta VALUES (1, NULL)"], "None", True),
                ([table, "INSERT INTO _meta VALUES (1, 1.5)"], "1.5", True),
                ([table, "INSERT INTO _meta VALUES (1, x'01')"], "x01", True),
                ([table, "INSERT INTO _meta VALUES (2, 1)"], "(2, 1)", False),
                (["CREATE VIEW _meta AS SELECT 1 AS id, 'x' AS version"], "_meta", False),
                (["CREATE VIEW _meta AS SELECT 1 AS id, 0 AS version"], "_meta", False)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink("x.db")
            for statement in statements:
                self.sql(statement)
            before = Path("x.db").read_bytes()
            self.refuses(self.go(), "_meta", part)
            self.refuses(self.go("--createdb"), "_meta", part)
            self.assertEqual(Path("x.db").read_bytes(), before)
            result = self.go("--set-version", "3")
            self.assertEqual(result.code, 0 if repaired else 1, (statements, result))
            if not repaired:
                self.assertEqual(Path("x.db").read_bytes(), before)

    def test_a_history_with_values_of_another_kind_is_no_reason_to_fail(self):
        self.create()
        self.works(self.go())
        for column, value in (("checksum", "x'00ff'"), ("checksum", "''"), ("checksum", "7"),
                              ("name", "x'00ff'"), ("applied_at", "x'00'"), ("applied_at", "1.5")):
            self.sql(f"UPDATE _migration_history SET {column} = {value}")
            for arguments in ((), ("--status",), ("--check",), ("--status", "--json"), ("--accept",)):
                result = self.go(*arguments)
                self.assertIn(result.code, (0, 1), result)
                self.assertNotIn("Traceback", result.err)
            self.sql("DELETE FROM _migration_history")
            self.sql("INSERT INTO _migration_history VALUES (1, '0001-a.sql', 'c', 't')")

    def test_a_missing_directory_is_an_error_and_not_an_empty_run(self):
        self.create()
        self.refuses(self.run_main("--db", "x.db", "--migrations", "none"), "none")
        self.refuses(self.run_main("--db", "x.db", "--migrations", "x.db"), "Not a directory")
        with self.assertRaises(FileNotFoundError):
            fastmigrate.get_migration_scripts("none")

    def test_a_commit_that_readers_hold_up_waits_once(self):
        self.create()
        for number in range(2, 8):
            self.script(f"000{number}-x.sql", f"CREATE TABLE t{number} (x);")
        reader = sqlite3.connect("x.db", isolation_level=None)
        self.addCleanup(reader.close)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM _meta").fetchall()
        result = self.refuses(self.go("--timeout", "0.7"), "database is locked: a reader has held "
                              "x.db for more than 0.7 s")
        reader.close()
        self.assertLessEqual(result.err.count("waiting"), 1)  # and not one for each of the scripts
        self.assertEqual(self.tables(), set())

    def test_a_history_of_somebody_else_is_left_alone(self):
        self.sql("CREATE TABLE _migration_history (version INT, note TEXT)")
        self.sql("INSERT INTO _migration_history VALUES (1, 'a'), (20, 'b')")
        before = Path("x.db").read_bytes()
        self.refuses(self.go("--set-version", "1"), "_migration_history", "not fastmigrate's")
        self.assertEqual(Path("x.db").read_bytes(), before)

    @posix_only
    def test_closed_streams_are_no_reason_to_fail(self):
        self.create()
        self.script("0002-b.py", "print('x' * 100)")
        command = f'"{sys.executable}" "{MODULE}" --db x.db --migrations m'
        for closed in (" --status >&-", " <&- >&- 2>&-", " --status >&- 2>&-"):
            done = subprocess.run(["sh", "-c", command + closed], stderr=subprocess.PIPE)
            self.assertEqual((done.returncode, done.stderr), (0, b""), closed)
        self.assertEqual(self.version(), 2)

    def test_a_long_trigger_without_its_end_is_refused(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE b (x);\nCREATE TRIGGER q AFTER INSERT ON b BEGIN\n"
                    + "INSERT INTO b VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa');\n" * 40_000)
        self.refuses(self.go(), "0001-a.sql:2", "the file ends within this statement")

    def test_nothing_is_created_where_there_is_no_database(self):
        for action in ("--accept", "--set-version=1", "--status", "--check", "--verify",
                       "--rehearse", "--enroll", "--backup"):
            self.refuses(self.go(action), "there is no database x.db")
        self.refuses(self.run_main("--db", "none/*.db", "--createdb"), "none/*.db")
        self.assertEqual(os.listdir("."), ["m"])

    def test_a_locked_database_is_not_called_unversioned(self):
        self.create()
        holder = sqlite3.connect("x.db", isolation_level=None)
        self.addCleanup(holder.close)
        holder.execute("BEGIN EXCLUSIVE")
        for arguments in ((), ("--status",), ("--check",), ("--set-version", "3"), ("--createdb",)):
            result = self.refuses(self.go("--timeout", "0.1", *arguments), "database is locked",
                                  "--timeout")
            self.assertNotIn("unversioned", result.err)
        with self.assertRaisesRegex(MigrationError, "database is locked"):
            migrate("x.db", "m", timeout=0.1)
        holder.execute("ROLLBACK")
        holder.execute("BEGIN IMMEDIATE")
        self.refuses(self.go("--timeout", "0.1"), "database is locked")
        holder.execute("ROLLBACK")
        self.works(self.go())

    @posix_only
    def test_what_cannot_be_read_or_written_is_refused_with_a_next_step(self):
        self.create()
        self.script("0002-b.py", "")

        def as_nobody(*arguments):
            def run():
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                return self.go(*arguments)
            return Forked(run).result()

        for path, mode, parts in (
                ("m", 0, ("m", "Permission denied")),
                ("m/0001-a.sql", 0, ("0001-a.sql", "Permission denied")),
                ("x.db", 0o444, ("read-only", "x.db")),
                (".", 0o555, ("x.db",))):
            for each in (".", "m"):
                os.chmod(each, 0o755 if each == "m" else 0o777)
            for each in ("m/0001-a.sql", "x.db"):
                os.chmod(each, 0o666)
            before = stat.S_IMODE(os.stat(path).st_mode)
            os.chmod(path, mode)
            result = as_nobody()
            os.chmod(path, before)
            self.refuses(result, *parts)
            self.assertEqual(self.version(), 0, result)
            self.assertEqual(self.beside(), set(), result)
        fastmigrate.set_db_version("x.db", 1)
        os.chmod(".", 0o555)
        try:
            result = as_nobody()
        finally:
            os.chmod(".", 0o777)
        self.refuses(result, "x.db")  # there is no room for a copy
        self.assertEqual(self.version(), 1)


class StartUp(Case):
    """Where a database is, what there is instead, and what surrounds a run."""

    @posix_only
    def test_a_path_through_a_link_is_what_the_system_takes_it_for(self):
        os.makedirs("far/away")
        os.symlink("far/away", "link")
        self.sql("CREATE TABLE t (x)", "link/../probe.db")
        if not os.path.exists("far/probe.db"):
            self.skipTest("this SQLite does not ask the system")
        fastmigrate.create_db("link/../y.db")
        self.assertEqual(set(os.listdir("far")), {"away", "probe.db", "y.db"})

    @posix_only
    def test_a_backup_lies_beside_the_link_on_any_file_system(self):
        os.mkdir("far")
        fastmigrate.create_db("far/y.db")
        os.symlink("far/y.db", "y.db")
        real = os.replace

        def replace(source, target):
            if os.path.dirname(source) != os.path.dirname(target):
                raise OSError(18, "Invalid cross-device link")
            real(source, target)

        with mock.patch("os.replace", replace):
            self.assertIsNotNone(fastmigrate.create_db_backup("y.db"))

    @posix_only
    def test_a_directory_that_cannot_be_listed_will_do(self):
        self.create()
        real = os.scandir

        def scandir(path):
            if path == str(self.home):
                raise PermissionError(13, "Permission denied")
            return real(path)

        with mock.patch("os.scandir", scandir):
            fastmigrate.status("x.db", "m")

    def test_a_name_in_the_schema_that_is_not_utf_8_stops_no_run(self):
        self.create()
        with contextlib.closing(sqlite3.connect("x.db")) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            try:
                connection.execute("INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql) VALUES "
                                   "('view', 'v', 'v', 0, CAST(x'435245415445205649455720762041532053454c45"
                                   "43542031204153202261e92220' AS TEXT))")
            except sqlite3.OperationalError:
                self.skipTest("this SQLite is built to be defensive")
            connection.commit()
        self.script("0001-a.sql", "CREATE TABLE other (x);")
        self.works(self.go())

    def test_every_missing_thing_is_a_file_not_found_error_and_a_migration_error(self):
        self.create()
        for call in (lambda: migrate("no.db", "m"), lambda: migrate("x.db", "no"),
                     lambda: fastmigrate.enroll_db("no.db", "m"), lambda: fastmigrate.verify("x.db", "no"),
                     lambda: fastmigrate.rehearse("no.db", "m"), lambda: fastmigrate.build_db("no"),
                     lambda: fastmigrate.get_db_version("no.db"), lambda: fastmigrate.get_schema("no"),
                     lambda: fastmigrate.restore_db("x.db", "no")):
            for kind in (FileNotFoundError, MigrationError):
                with self.assertRaises(kind):
                    call()

    def test_a_file_of_0_bytes_and_one_without_any_table_are_no_database_yet(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        for make in (lambda name: Path(name).touch(),
                     lambda name: self.sql("PRAGMA user_version = 3", name),
                     lambda name: self.sql("PRAGMA journal_mode = WAL", name),
                     lambda name: self.sql("CREATE TEMP TABLE t (x)", name)):
            for way in ("--createdb", "call"):
                make("x.db")
                self.refuses(self.go(), "x.db is empty", "--createdb")
                self.refuses(self.go("--enroll"), "x.db is empty", "--createdb")
                with self.assertRaises(fastmigrate.UnversionedError):
                    fastmigrate.get_db_version("x.db")
                if way == "call":
                    self.assertEqual(fastmigrate.ensure_versioned_db("x.db"), 0)
                else:
                    self.assertIn("x.db created", self.works(self.go("--createdb")).out)
                self.works(self.go())
                self.assertEqual(self.version(), 1)
                os.unlink("x.db")

    def test_a_link_to_nowhere_is_where_the_database_is_created(self):
        os.mkdir("volume")
        try:
            os.symlink("volume/real.db", "x.db")
        except (OSError, NotImplementedError):
            self.skipTest("no symbolic links")
        fastmigrate.create_db("x.db")
        self.assertEqual(self.version("volume/real.db"), 0)
        self.assertTrue(os.path.islink("x.db"))

    def test_what_sqlite_would_make_a_file_of_is_refused_and_nothing_created(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        for name in (":memory:", "file:app.db", "sqlite:./app.db", "sqlite:///app.db", "FILE:x.db",
                     "file::memory:?cache=shared", "a\0b", ""):
            for arguments in ((), ("--createdb",), ("--status",)):
                if name:
                    self.refuses(self.run_main(f"--db={name}", "--migrations", "m", *arguments))
            for call in (fastmigrate.create_db, fastmigrate.get_db_version,
                         lambda path: migrate(path, "m"),
                         lambda path: fastmigrate.set_db_version(path, 1)):
                with self.assertRaises((sqlite3.Error, ValueError), msg=name) as caught:
                    call(name)
                self.assertIn("database", str(caught.exception))
            self.assertIsNone(fastmigrate.create_db_backup(name))
            self.assertEqual(os.listdir("."), ["m"], name)
        self.refuses(self.run_main("--db", ":memory:", "--createdb"), "build_db()")
        self.refuses(self.run_main("--db", "sqlite:///a.db", "--createdb"), "without a scheme")

    def test_odd_paths_are_paths(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        names = ["with space.db", "it's.db", 'quo"te.db', "q?mode=ro.db", "ha#sh.db", "per%20.db",
                 "-dash.db", "new\nline.db", "ünï.db", "./file:x.db", "./:memory:", "st*r[a].db"]
        if os.name == "nt":
            names = ["with space.db", "it's.db", "ha#sh.db", "per%20.db", "-dash.db", "ünï.db"]
        elif sys.platform == "linux":
            names.append(os.fsdecode(b"b\xffte.db"))
        self.py_script("0002-b.py", "execute('INSERT INTO a VALUES (1)')")
        self.script("0003-c.sql", "VACUUM;")
        for name in names:
            for mode in ("delete", "wal"):
                os.mkdir("-d")
                os.chdir("-d")
                shutil.copytree("../m", "- m?#%")
                if any(sign in name for sign in "?*["):  # a pattern, until there is such a file
                    fastmigrate.create_db(name)
                self.works(self.run_main(f"--db={name}", "--createdb"))
                if mode == "wal":
                    self.sql("PRAGMA journal_mode = wal", os.path.abspath(name))
                self.works(self.run_main(f"--db={name}", "--migrations=- m?#%", "--backup"))
                self.assertEqual(fastmigrate.get_db_version(name), 3)
                made = set(os.listdir("."))
                self.assertEqual(len(made), 3, made)
                self.assertIn(os.path.basename(name), made)
                os.chdir("..")
                shutil.rmtree("-d")

    def test_a_path_through_a_file_is_refused(self):
        self.script("0001-a.sql")
        self.refuses(self.run_main("--db", "m/0001-a.sql/x.db", "--createdb"))

    @posix_only
    def test_a_shell_script_with_crlf_or_a_mark_is_refused_before_it_runs(self):
        self.create()
        for text, part in ((b"#!/bin/sh\r\nDB=$1\r\ntouch ran\r\n", "CR LF"),
                           (b"DB=$1\ntouch ran\r\n", "CR LF"),
                           (b"\xef\xbb\xbf#!/bin/sh\ntouch ran\n", "byte order mark")):
            self.script("0001-a.sh", text)
            self.refuses(self.go(), "0001-a.sh", part, "still at version 0")
            self.assertEqual(sorted(os.listdir(".")), ["m", "x.db"])

    def test_no_usable_temporary_directory_stops_no_run(self):
        self.create()
        self.py_script("0001-a.py", "execute('CREATE TABLE a (x)')")
        self.script("0002-b.sql", "VACUUM;")
        self.script("0003-c.sql", "CREATE TABLE c (x);")
        error = FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
        with mock.patch("tempfile.gettempdir", side_effect=error), \
                mock.patch("tempfile.tempdir", None):
            self.works(self.go("--backup"))
            self.script("0004-d.sql", "CREATE TABLE d (x);")
            for action in ("--rehearse", "--verify"):
                result = self.go(action)
                if result.code:
                    self.refuses(result, "temporary directory", "TMPDIR")
        self.assertEqual(self.version(), 3)

    @posix_only
    def test_a_working_directory_that_is_gone_is_an_error_with_a_next_step(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        os.mkdir("gone")

        def run(*arguments):
            os.chdir("gone")
            os.rmdir("../gone")
            return self.run_main(*arguments)

        self.refuses(Forked(lambda: run("--db", "x.db", "--migrations", "m")).result(),
                     "working directory")
        os.mkdir("gone")
        paths = "--db", str(self.home / "x.db"), "--migrations", str(self.home / "m")
        self.works(Forked(lambda: run(*paths)).result())

    @unittest.skipUnless(sys.platform == "linux", "needs file names of any bytes")
    def test_a_script_whose_name_is_not_text_is_refused_by_its_name(self):
        self.create()
        for name in (b"0001-b\xff.sql", b"0001-b\xff.py"):
            self.script(os.fsdecode(name))
            for arguments in ((), ("--status",), ("--check",), ("--verify",), ("--rehearse",)):
                self.refuses(self.end(self.start(*arguments)), "0001-b\\xff", "Rename it")
            os.unlink(os.fsdecode(b"m/" + name))
        self.script(os.fsdecode(b"1-\xff.sql"))
        self.assertRegex(self.works(self.end(self.start())).err, r" 1-\\(x|udc)ff.sql")
        self.assertEqual(self.version(), 0)

    @posix_only
    def test_a_script_that_is_a_link_to_nowhere_or_to_itself_is_an_error_with_its_name(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        for name in ("0002-b.sql", "0002-b.py", "0002-b.sh"):
            for target in ("nowhere", name):
                os.symlink(target, f"m/{name}")
                self.refuses(self.go(), f"m/{name}: it is a link to ", "still at version 1")
                os.unlink(f"m/{name}")

    def test_what_only_the_application_defines_is_named_with_the_way_to_give_it(self):
        self.create()
        for head in ("", "-- fastmigrate: no-transaction\n"):
            for statement in ("SELECT twice(2);", "CREATE VIRTUAL TABLE v USING none (x);",
                              "SELECT 'a' < 'b' COLLATE none;"):
                self.script("0001-a.sql", f"{head}CREATE TABLE a (x);\n{statement}\n")
                self.refuses(self.go(), f"0001-a.sql:{2 + bool(head)}: no such", "connect",
                             "still at version 0")


class Messages(Case):
    """What the command line says, word for word: wording is designed, not left to chance."""

    maxDiff = None

    def says(self, expected, *arguments, code=1):
        result = self.go(*arguments)
        self.assertEqual((result.code, result.err), (code, expected.lstrip("\n")))

    def test_of_scripts_that_fail(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);\nINSERT INTO b VALUES (1);\n")
        self.says("""
error: m/0001-a.sql:2: no such table: b
    INSERT INTO b VALUES (1);
x.db is still at version 0; the script was rolled back.
Fix the script, then run this again.
""")
        self.script("0001-a.sql", ".mode csv\n")
        self.says("""
error: m/0001-a.sql:1: a command of the sqlite3 program, not SQL
    .mode csv
x.db is still at version 0; the script was rolled back.
Fix the script, then run this again.
""")
        self.script("0001-a.sql", b"\xff")
        self.says("""
error: m/0001-a.sql:1: it is not UTF-8
x.db is still at version 0; the script was rolled back.
Save it as UTF-8, then run this again.
""")
        self.script("0001-a.sql", "SAVEPOINT s;\n")
        self.says("""
error: m/0001-a.sql: it leaves the savepoint s open
x.db is still at version 0; the script was rolled back.
End it with RELEASE, then run this again.
""")

    @posix_only
    def test_of_scripts_on_a_copy_that_fail(self):
        self.create()
        self.script("0001-a.py", "print('half way')\nraise SystemExit(3)\n")
        self.says("""
error: m/0001-a.py: it failed with exit status 3
    half way
x.db is still at version 0; the script was rolled back.
Fix the script, then run this again.
""")
        self.py_script("0001-a.py", "sqlite3.connect('x.db', timeout=0).execute('CREATE TABLE a (x)')")
        self.assertIn("""
A script has to work on the database that is its first argument, which is a copy of x.db. The \
database itself is locked until the copy has replaced it.
""".strip(), self.go().err)
        self.script("0001-a.py", "print('sqlite3.OperationalError: database is locked')")
        self.says("""
warning: 0001-a.py did not change x.db, and it printed "database is locked". A script has to work \
on the database that is its first argument, which is a copy of x.db. The database itself is locked \
until the copy has replaced it.
""", code=0)
        fastmigrate.set_db_version("x.db", 0)
        self.script("0001-a.py", "import os, sys\nos.unlink(sys.argv[1])\n")
        self.says("""
error: m/0001-a.py: it removed the database that it was given
x.db is still at version 0; the script was rolled back.
Fix the script, then run this again.
""")

    def test_of_references(self):
        self.create()
        self.script("0001-a.sql", PARENTS)
        migrate("x.db", "m")
        self.script("0002-b.sql", "DELETE FROM artist;")
        self.says("""
error: m/0002-b.sql: it leaves 3 dangling references: album row 10 refers to a row of artist that \
does not exist
x.db is still at version 1; the script was rolled back.
Let the script change or delete these rows too. (Foreign keys are off while a script runs, so \
ON DELETE does nothing unless the script begins with `PRAGMA foreign_keys = ON;`.) If this is intended, \
start it with the line \
`-- fastmigrate: no-foreign-key-check`, then run this again.
""")
        self.script("0002-b.sql", "-- fastmigrate: no-foreign-key-check\nDELETE FROM artist;")
        self.says("""
warning: 0002-b.sql: it leaves 3 dangling references: album row 10 refers to a row of artist that \
does not exist (allowed by its no-foreign-key-check)
""", code=0)

    def test_of_databases_that_cannot_be_migrated(self):
        self.says("""
error: there is no database x.db. To create it, call ensure_versioned_db(), or run fastmigrate with \
--createdb; to bring it back, restore a backup with --restore. Name another database with --db.
""")
        Path("x.db").write_text("")
        self.says("""
error: x.db is empty. To make it a database at version 0, call ensure_versioned_db(), or run \
fastmigrate with --createdb.
""")
        self.sql("CREATE TABLE t (x)")
        self.says("""
error: x.db is unversioned: it has no table _meta. Put it under management with enroll_db() or \
--enroll, or with set_db_version() or --set-version if you know its version.
""")
        Path("x.db").write_text("no database, but long enough for the header of one" * 9)
        self.says("""
error: x.db is not a database, or is encrypted. Nothing was changed. Name the database file with --db, give its key in connect, or restore a backup with --restore, then run this again.
""")
        os.unlink("x.db")
        self.create()
        holder = sqlite3.connect("x.db", isolation_level=None)
        self.addCleanup(holder.close)
        holder.execute("BEGIN EXCLUSIVE")
        self.says("""
error: database is locked: another connection has held x.db for more than 0 s. Nothing was changed. \
If it is a connection of your own, commit first. Else wait for it to finish, or raise the timeout (--timeout, or timeout= of migrate()), then run this again.
""", "--timeout", "0")
        holder.close()
        self.sql("DELETE FROM _meta")
        self.says("""
error: x.db has a damaged table _meta: it must be a table with one row, (1, version), and has no row. Rename \
it if it is not fastmigrate's. Else set the version with set_db_version() or --set-version.
""")

    def test_of_the_migrations_directory(self):
        self.create()
        self.script("1-a.sql")
        self.says("""
warning: ignored (bad file name): 1-a.sql. In m, a migration script is named NNNN-description.ext: four digits from 0001, a dash, and sql, py or sh.
""", code=0)
        self.script("0001-a.sql")
        self.script("0001-b.sql")
        os.unlink("m/1-a.sql")
        self.says("""
error: two scripts have the number 0001, so nothing is run: 0001-a.sql, 0001-b.sql in m. None of them is applied to x.db. Renumber one that production does not have (and any later script of yours that needs it):
    mv m/0001-b.sql m/0002-b.sql
""")
        self.says("""
error: two scripts have the number 0001, so nothing is run: 0001-a.sql, 0001-b.sql in m. None of them is applied to x.db. Renumber one that production does not have (and any later script of yours that needs it):
    mv m/0001-b.sql m/0002-b.sql
""", "--verify")
        shutil.rmtree("m")
        self.says("""
error: there is no migrations directory m. Create it, or name another one (--migrations).
""")

    def test_of_drift(self):
        self.create()
        for number in (1, 2, 4):
            self.script(f"{number:04d}-x.sql")
        migrate("x.db", "m")
        self.script("0001-x.sql", "SELECT 1;")
        os.unlink("m/0002-x.sql")
        self.script("0003-x.sql")
        self.script("0005-x.sql")
        self.says("""
warning: 0003-x.sql: never run on x.db, which was already at a higher version. Unless production has it, renumber it above the latest script:
    mv m/0003-x.sql m/0006-x.sql
warning: 0001-x.sql: edited since applied to x.db, which does not have the change. Undo the edit, and put the change into a new migration. If x.db needs no change (after an edit of a comment, say), run fastmigrate --db x.db --migrations m --accept instead. If it was built with an edit that is undone by now, build it anew, or make it fit (--verify tells), then --accept.
warning: 0002-x.sql: applied to x.db, but not in m any more. Put back what is missing, because a new database would be built without it, or run fastmigrate --db x.db --migrations m --accept.
""", code=0)
        shutil.rmtree("m")
        os.mkdir("m")
        self.says("""
warning: x.db is at version 5, newer than the scripts in m, which end at 0. Use the release of the application that has the others, or put them back.
""", code=0)

    def test_of_the_help_which_fits_in_80_columns(self):
        result = self.go("--help")
        self.assertLessEqual(max(map(len, result.out.splitlines())), 80)
        for flag in ("--rehearse", "--enroll", "--restore FILE", "examples:", "exit codes:"):
            self.assertIn(flag, result.out)
        self.assertNotIn("snapshot", result.out)

    def test_of_collisions(self):
        self.create()
        for number in (1, 2, 3):
            self.script(f"{number:04d}-jane.sql", f"SELECT {number};")
        migrate("x.db", "m")
        os.rename("m/0003-jane.sql", "m/0004-jane.sql")
        self.says("""
error: 0004-jane.sql is already applied to x.db, as 0003-jane.sql. Nothing is run, or it would be applied twice. (If it has to run again, add a comment to it.) Count it as applied under its new number:
    fastmigrate --db x.db --migrations m --set-version 2 &&
    fastmigrate --db x.db --migrations m --set-version 4
Or, if no other database has the new number, restore the old name:
    mv m/0004-jane.sql m/0003-jane.sql
""")
        self.script("0003-rob.sql", "SELECT 4;")
        os.unlink("m/0004-jane.sql")
        self.says("""
warning: 0003-rob.sql: never run on x.db, where 0003-jane.sql ran under the same number. (If it is 0003-jane.sql, renamed and edited: restore that name, run fastmigrate --db x.db --migrations m --accept, then rename it again.) Unless production has it, give it the next free number:
    mv m/0003-rob.sql m/0004-rob.sql
""", code=0)
        os.rename("m/0002-jane.sql", "m/0002-rob.sql")
        self.script("0002-rob.sql", "SELECT 5;")
        self.script("0004-pending.sql")
        self.says("""
error: 0002-rob.sql, 0003-rob.sql: never run on x.db, where 0002-jane.sql, 0003-jane.sql ran under the same number. (If it is 0002-jane.sql, 0003-jane.sql, renamed and edited: restore that name, run fastmigrate --db x.db --migrations m --accept, then rename it again.) Unless production has it, give it the next free number:
    mv m/0002-rob.sql m/0005-rob.sql
    mv m/0003-rob.sql m/0006-rob.sql
error: x.db: 1 pending: 0004-pending.sql. Run fastmigrate --db x.db --migrations m
""", "--check")

    def test_of_scripts_of_other_tools(self):
        self.create()
        self.script("0001-a.sql", "-- migrate:up\nSELECT 1;\n-- migrate:down\nSELECT 2;\n")
        self.says("""
error: m/0001-a.sql:3: another tool's section to undo the script begins here, and fastmigrate runs a script to its end
x.db is still at version 0; the script was rolled back.
Delete the script's text from this line on, then run this again.
""")


class Internals(Case):
    """The few tests that reach into private names: branches for other systems, and moments
    that nothing but the inside can name."""

    def test_enrolling_leaves_a_script_that_another_process_wrote(self):
        self.sql("CREATE TABLE t (a)")
        create = fastmigrate._create_script

        def late(folder, *arguments):
            if folder == "m":
                Path("m/0001-initialize.sql").write_text("-- theirs\n")
            return create(folder, *arguments)

        with unittest.mock.patch("fastmigrate._create_script", late):
            self.refuses(self.go("--enroll"), "another process wrote to m meanwhile. Nothing was "
                         "changed by this one. Run this again.")
        self.assertEqual(Path("m/0001-initialize.sql").read_text(), "-- theirs\n")
        self.assertEqual(os.listdir("m"), ["0001-initialize.sql"])
        with self.assertRaises(fastmigrate.UnversionedError):
            fastmigrate.get_db_version("x.db")

    def test_nobody_changes_the_schema_or_the_version_while_it_is_enrolled(self):
        self.sql("CREATE TABLE t (a)")
        self.script("0001-a.sql", "CREATE TABLE t (a);")
        find = fastmigrate._find_version

        def late(*arguments):
            with contextlib.closing(sqlite3.connect("x.db", timeout=0)) as other:
                with self.assertRaisesRegex(sqlite3.OperationalError, "database is locked"):
                    other.execute("CREATE TABLE more (a)")
                other.execute("SELECT * FROM t").fetchall()
            return find(*arguments)

        with unittest.mock.patch("fastmigrate._find_version", late):
            self.works(self.go("--enroll"))
        self.assertEqual(self.version(), 1)

    def test_enrolling_can_be_run_again_after_a_failure_to_write(self):
        self.sql("CREATE TABLE t (a)")
        with unittest.mock.patch("fastmigrate._sync", side_effect=OSError(28, "No space left")):
            self.refuses(self.go("--enroll"), "No space left")
        with self.assertRaises(fastmigrate.UnversionedError):
            fastmigrate.get_db_version("x.db")
        self.works(self.go("--enroll"))
        self.assertEqual(self.version(), 1)

    def test_on_windows_the_interpreter_of_a_first_line_is_found_by_its_last_word(self):
        self.script("0001-a.sh")
        script = fastmigrate._Script("m", 1, "0001-a.sh")
        with mock.patch("os.name", "nt"), mock.patch("shutil.which", lambda name: f"C:/{name}.exe"), \
                mock.patch("os.path.exists", lambda path: False):
            for line, command in (("#!/bin/sh", ["C:/sh.exe"]), ("#!/usr/bin/env bash", ["C:/bash.exe"])):
                with mock.patch("builtins.open", mock.mock_open(read_data=line.encode() + b"\n:\n")):
                    found = fastmigrate._interpreter(script)
                self.assertEqual(found, [*command, script.path])

    def test_new_files_are_opened_as_bytes_on_windows(self):
        Path("x.db").touch()
        opened = []
        real = os.open
        with mock.patch("os.O_BINARY", 0, create=True), mock.patch(
                "os.open", lambda *a: opened.append(a[1]) or real(*a)):
            os.O_BINARY = 1 << 29
            with contextlib.suppress(OSError):
                fastmigrate._create_private("y.db", "x.db")
        self.assertTrue(opened[0] & 1 << 29)

    def test_a_leftover_that_somebody_has_open_fails_no_run(self):
        self.create()
        self.script("0001-a.sql", "VACUUM;")
        real = os.unlink

        def unlink(path, **options):
            if "-copy-" in str(path):
                raise PermissionError(13, "The process cannot access the file", path)
            real(path, **options)

        with mock.patch("os.unlink", unlink):
            self.works(self.go())
            self.assertEqual(len(self.copies()), 1)
        self.script("0002-b.sql", "VACUUM;")
        self.works(self.go())
        self.assertEqual(self.beside(), set())

    def test_a_copy_that_is_changed_when_the_script_has_ended_is_refused(self):
        for mode in ("delete", "wal"):
            self.create(mode=mode)
            self.py_script("0001-a.py", "execute('CREATE TABLE a (x)')")
            real = fastmigrate._WorkingCopy._pin

            def pin(copy, source, version, real=real):
                self.sql("UPDATE _meta SET version = 0", copy.path)
                real(copy, source, version)

            with mock.patch.object(fastmigrate._WorkingCopy, "_pin", pin):
                self.refuses(self.go(), "0001-a.py: the version of its copy changed from 1 to 0",
                             "still at version 0")
            self.assertEqual((self.version(), self.tables(), self.beside()), (0, set(), set()))
            os.unlink("x.db")

    def test_a_gate_that_another_runner_takes_for_a_leftover_is_made_anew(self):
        self.create(mode="wal")
        self.script("0001-a.sql", "CREATE TABLE a (x);\nVACUUM;\n")
        real, made = fastmigrate._WorkingCopy._make_gate, []

        def make(copy, target):
            gate = real(copy, target)
            made.append(copy.path)
            if len(made) < 3:
                os.unlink(copy.path)
            return gate

        with mock.patch.object(fastmigrate._WorkingCopy, "_make_gate", make):
            self.works(self.go())
        self.assertEqual((len(made), self.tables(), self.beside()), (3, {"a"}, set()))


@posix_only
class Readme(Case):
    """README.md is one session. Its `sh` and `python` blocks run in their order, each in a
    process of its own, in one directory that at first holds fastmigrate.py and nothing else;
    `python` and `fastmigrate` are on the PATH. A `text` block right below one of them is all
    that it prints, whatever the times. A block fails, with exit code 1, if the output shown
    has a line that begins with `error: `, else no command in it may fail. Other blocks
    (`console`, `py`, configuration) are not run: they need programs that not every machine
    has; nor can the tests run themselves, or an alias outlive its shell.
    """

    maxDiff = None

    def setUp(self):
        super().setUp()
        self.text = MODULE.with_name("README.md").read_text(encoding="utf-8")
        os.rmdir("m")
        shutil.copy(MODULE, "fastmigrate.py")
        path = tempfile.mkdtemp(prefix="fastmigrate-test-")
        self.addCleanup(shutil.rmtree, path, True)
        for name, options in (("python", ""), ("python3", ""), ("fastmigrate", "-m fastmigrate")):
            program = Path(path, name)
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {options} "$@"\n')
            program.chmod(0o755)
        self.environment = {**os.environ, "PATH": path + os.pathsep + os.environ["PATH"]}

    def settled(self, output):
        """Output without what differs from run to run."""
        return re.sub(r"\d{8}_\d{6}|\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ|\d[\d.]* m?s\b", "TIME", output)

    def test_every_block_runs_and_prints_what_is_shown(self):
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$(\n*)", self.text, re.M | re.S)
        for (kind, block, gap), (below, shown, _) in zip(blocks, [*blocks[1:], ("", "", "")]):
            if kind not in ("sh", "python"):
                continue
            program = ["sh", "-ec"] if kind == "sh" else [sys.executable, "-c"]
            done = subprocess.run(
                [*program, block], env=self.environment, text=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            code = int(bool(re.search("^error: ", shown, re.M))) if below == "text" else 0
            self.assertEqual(done.returncode, code, f"\n{block}\n{done.stdout}")
            if below == "text":
                self.assertEqual(gap, "\n", f"not right below its block: {shown}")
                self.assertEqual(self.settled(done.stdout), self.settled(shown), f"\n{block}")

    def test_the_reference_names_every_flag_and_every_public_call(self):
        flags = set(re.findall("--[a-z-]+", self.run_main("--help").out))
        section = self.text.partition("\n### Command line\n")[2].partition("\n### Python\n")
        calls = section[2].partition("\n## ")[0]
        self.assertEqual(flags, set(re.findall("--[a-z-]+", "".join(re.findall("`[^`]*`", section[0])))))
        for name in fastmigrate.__all__:
            self.assertRegex(calls, rf"`{name}\b")


if __name__ == "__main__":
    unittest.main()
