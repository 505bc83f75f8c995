"""The promises of fastmigrate, each kept by tests that are named as sentences.

Run them with `python -m unittest`; they need the standard library only.
"""

import asyncio
import contextlib
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from pathlib import Path, PureWindowsPath

import fastmigrate
from fastmigrate import MigrationError, migrate

MODULE = Path(fastmigrate.__file__).resolve()
logging.getLogger("fastmigrate").addHandler(logging.NullHandler())  # tests look at them
posix_only = unittest.skipUnless(os.name == "posix", "needs POSIX")

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


def known(statement):
    """Whether this SQLite has what a statement needs."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError:
            return False
        return True


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n{self.out}{self.err}"


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
        if (mode or self.mode) != "delete":
            self.sql(f"PRAGMA journal_mode = {mode or self.mode}", db)

    def script(self, name, text="", folder="m"):
        path = Path(folder, name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def sql(self, statement, db="x.db", **options):
        connection = sqlite3.connect(db, isolation_level=None, **options)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def version(self, db="x.db"):
        return self.sql("SELECT version FROM _meta", db)[0][0]

    def tables(self, db="x.db"):
        return {name for name, in self.sql(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '\\_%' "
            "ESCAPE '\\'", db)}

    def beside(self, db="x.db"):
        """The files that lie beside a database, but for those that the test made."""
        return {name for name in os.listdir(self.home) if name.startswith(db + "-")
                or name.startswith(db + ".")}

    def run_main(self, *arguments):
        """Run the command line in this process, on x.db and m unless told otherwise."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = fastmigrate.main([str(a) for a in arguments])
        return Result(code, out.getvalue(), err.getvalue())

    def go(self, *arguments):
        return self.run_main("--db", "x.db", "--migrations", "m", *arguments)

    def start(self, *arguments, **options):
        """Start the command line as a process of its own."""
        return subprocess.Popen(
            [sys.executable, str(MODULE), "--db", "x.db", "--migrations", "m", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    def refuses(self, result, *parts):
        """The command line refused: exit 1, one message with these parts, no traceback."""
        self.assertEqual(result.code, 1, result)
        self.assertNotRegex(result.err, "(?m)^Traceback")
        self.assertEqual(len(re.findall("(?m)^error: ", result.err)), 1, result)
        for part in parts:
            self.assertIn(part, result.err)

    def works(self, result):
        self.assertEqual(result.code, 0, result)
        return result

    def wait_for(self, condition, what):
        """Wait until a condition holds that another process brings about."""
        until = time.monotonic() + 20
        while not condition():
            if time.monotonic() > until:
                self.fail(f"{what} did not come about")
            time.sleep(0.01)


# ---------------------------------------------------------------- the contract of its use


class Usage(Case):
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
        """The database and the directory that the command line settles on."""
        parsed = fastmigrate._parser().parse_args(arguments)
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            fastmigrate._configure(parsed)
        (db,) = parsed.db
        return db, parsed.migrations, err.getvalue()

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
        Path("etc/f.ini").write_text(f"[paths]\ndb = d.db\nmigrations = {self.home}/m\n")
        self.assertEqual(self.place("--config", "etc/f.ini"),
                         (os.path.join("etc", "d.db"), f"{self.home}/m", ""))

    def test_unknown_keys_are_a_warning_and_broken_configs_an_error(self):
        Path(".fastmigrate").write_text("[paths]\nddb = x\n[other]\na = b\n")
        warned = self.place()[2]
        self.assertEqual(warned.count("warning"), 2)
        self.assertIn("ddb", warned)
        Path(".fastmigrate").write_text("db = x\n")
        self.refuses(self.run_main(), ".fastmigrate is broken")
        self.refuses(self.run_main("--config", "none.ini"), "none.ini")

    def test_without_arguments_the_defaults_are_migrated(self):
        os.mkdir("migrations")
        self.script("0001-a.sql", "CREATE TABLE a (x);", "migrations")
        self.works(self.run_main("--createdb"))
        self.works(self.run_main())
        self.assertEqual(self.version("data/database.db"), 1)


class CommandLine(Case):
    def test_a_run_says_what_it_applied_and_an_up_to_date_run_says_so_in_one_line(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        result = self.works(self.go())
        self.assertRegex(result.out, r"\AApplied 0001-a.sql \(\d+ ms\)\n"
                                     r"x.db is at version 1, 1 migration applied\n\Z")
        result = self.works(self.go())
        self.assertEqual((result.out, result.err), ("x.db is up to date at version 1\n", ""))
        self.assertEqual(self.works(self.go("-q")).out, "")

    def test_createdb_creates_at_version_0_and_refuses_an_unversioned_database(self):
        self.assertIn("created", self.works(self.go("--createdb")).out)
        self.assertEqual(self.version(), 0)
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.assertIn("there already", self.works(self.go("--createdb")).out)
        self.assertEqual(self.version(), 0)
        self.sql("CREATE TABLE t (x)", "u.db")
        before = Path("u.db").read_bytes()
        self.refuses(self.run_main("--db", "u.db", "--createdb"), "unversioned")
        self.assertEqual(Path("u.db").read_bytes(), before)

    def test_wrong_usage_exits_with_2(self):
        for arguments in (["--nonsense"], ["--to", "x"], ["--to", "-1"], ["--set-version", "x"],
                          ["--set-version", "10000"], ["--timeout", "soon"],
                          ["--timeout", "nan"], ["--createdb", "--set-version", "1"]):
            self.assertEqual(self.run_main(*arguments).code, 2, arguments)

    def test_set_version_manages_an_unversioned_database_and_forgets_later_history(self):
        self.sql("CREATE TABLE t (x)")
        self.works(self.go("--set-version", "3"))
        self.assertEqual(self.version(), 3)
        self.script("0004-a.sql", "CREATE TABLE a (x);")
        self.works(self.go())
        self.works(self.go("--set-version", "3"))
        self.assertEqual(self.sql("SELECT * FROM _migration_history"), [])
        self.refuses(self.run_main("--db", "none.db", "--set-version", "3"), "none.db")
        self.assertFalse(os.path.exists("none.db"))

    def test_main_leaves_the_signal_handlers_as_they_were(self):
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        self.create()
        self.works(self.go())
        self.assertEqual(
            (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)), before)


# ---------------------------------------------------------------- promise 1: one version


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
                since = time.monotonic()
                error = self.fails_at(
                    4 + bool(first), first + "CREATE TABLE t (x);\nCREATE TRIGGER g BEFORE INSERT "
                    f"ON t BEGIN\n  SELECT RAISE(ABORT, '{words}'); END;\nINSERT INTO t VALUES (1);")
                self.assertIn(f": {words}\n", str(error))
                self.assertLess(time.monotonic() - since, 20)  # it waited for no lock
        self.fails_at(2, "CREATE TABLE t (x CONSTRAINT is_locked CHECK (x > 0));\n"
                         "INSERT INTO t VALUES (0);", "CHECK constraint failed: is_locked")

    def test_a_failing_script_with_fts5_leaves_those_before_it_whole(self):
        if not known("CREATE VIRTUAL TABLE f USING fts5 (x)"):
            self.skipTest("SQLite has no FTS5")
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
        for text in ("DROP TABLE _meta;", "DELETE FROM _meta;"):
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
        self.assertEqual(self.sql("SELECT version FROM _migration_history"), [(3,)])


class ConnectionState(Case):
    def test_temporary_tables_do_not_leak(self):
        self.create()
        for number in (1, 2):
            self.script(f"{number:04d}-x.sql",
                        f"CREATE TEMP TABLE scratch (x); INSERT INTO scratch VALUES ({number});"
                        f"CREATE TABLE t{number} AS SELECT * FROM scratch;")
        migrate("x.db", "m")
        self.assertEqual(self.sql("SELECT * FROM t1, t2"), [(1, 2)])

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
                if statement.startswith("PRAGMA journal_mode = WAL") and not faster:
                    faster.append(statement)
                    migrate("x.db", "m")  # between our PRAGMA and our BEGIN

            connection.set_trace_callback(trace)
            return connection

        self.assertEqual(migrate("x.db", "m", connect=connect), [])
        self.assertEqual(len(faster), 1)
        self.assertEqual(self.sql("PRAGMA journal_mode"), [("wal",)])


class Snapshots(Case):
    """Scripts that do not fit in a transaction."""

    def stays_as_it_was(self, *parts):
        """The pending script fails, and the database stays as it was."""
        before = self.dump()
        result = self.go("--timeout", "5")
        self.refuses(result, *parts)
        self.assertEqual(self.dump(), before)
        self.assertEqual({n for n in self.beside() if not n.endswith(("-wal", "-shm"))}, set())
        self.assertEqual(self.sql("PRAGMA journal_mode"), [(self.mode,)])
        return result

    def dump(self):
        connection = sqlite3.connect("x.db")
        try:
            return list(connection.iterdump())
        finally:
            connection.close()

    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", PARENTS)
        migrate("x.db", "m")

    def test_a_python_script_runs_with_the_database_and_the_version(self):
        self.script("0002-b.py", "import os, sys, sqlite3\n"
                    "assert sys.stdin.read() == '' and sys.argv[1:] == ['x.db']\n"
                    "c = sqlite3.connect(sys.argv[1])\n"
                    "c.execute('INSERT INTO artist VALUES (3, ?)',"
                    "(os.environ['FASTMIGRATE_VERSION'] + os.getcwd(),))\nc.commit()\n")
        migrate("x.db", "m")
        self.assertEqual(self.sql("SELECT name FROM artist WHERE id = 3"), [(f"2{self.home}",)])
        self.assertEqual(self.version(), 2)

    @posix_only
    def test_a_shell_script_runs_with_the_interpreter_of_its_first_line(self):
        self.script("0002-b.sh", f"#!{sys.executable} -S\r\n" + PY_INSERT +
                    "c.execute('INSERT INTO artist VALUES (3, 3)'); c.commit()\n")
        self.script("0003-c.sh", 'echo "$1 $FASTMIGRATE_VERSION" > seen\n')
        migrate("x.db", "m")
        self.assertEqual(self.sql("SELECT count(*) FROM artist"), [(3,)])
        self.assertEqual(Path("seen").read_text(), "x.db 3\n")

    def test_a_failing_script_is_put_back_and_its_output_is_shown(self):
        self.script("0002-b.py", PY_INSERT + "c.execute('DELETE FROM album'); c.commit()\n"
                    "print('half way')\nraise ValueError('no more')\n")
        self.stays_as_it_was("0002-b.py", "exit status 1", "half way", "no more",
                             "at version 1")

    @posix_only
    def test_a_script_killed_by_a_signal_is_put_back(self):
        self.script("0002-b.py", PY_INSERT + "c.execute('DROP TABLE album'); c.commit()\n"
                    "import os\nos.kill(os.getpid(), 9)\n")
        self.stays_as_it_was("killed by SIGKILL")

    @posix_only
    def test_an_interpreter_that_does_not_exist_is_said(self):
        self.script("0002-b.sh", "#!/no/such/shell -e\n")
        self.stays_as_it_was("/no/such/shell")

    def test_a_script_that_changes_the_journal_mode_and_fails_is_put_back(self):
        self.script("0002-b.py", PY_INSERT + "print(c.execute('PRAGMA journal_mode = ' + ("
                    f"'delete' if '{self.mode}' == 'wal' else 'wal')).fetchall())\n"
                    "c.execute('DROP TABLE album'); c.commit(); c.close()\nraise SystemExit(3)\n")
        self.stays_as_it_was("exit status 3")

    def test_a_script_that_leaves_references_dangling_is_put_back(self):
        self.script("0002-b.py", PY_INSERT + "c.execute('DELETE FROM artist WHERE id = 2')\n"
                                             "c.commit()\n")
        self.stays_as_it_was("album row 11", "no-foreign-key-check")
        text = Path("m/0002-b.py").read_text()
        self.script("0002-b.py", "#!/usr/bin/env python3\n# fastmigrate: no-foreign-key-check\n"
                    + text)
        self.assertIn("1 reference", self.works(self.go()).err)

    def test_a_script_that_sets_another_version_is_put_back(self):
        self.script("0002-b.py", PY_INSERT + "c.execute('UPDATE _meta SET version = 9')\n"
                                             "c.commit()\n")
        self.stays_as_it_was("set the version to 9")

    def test_a_script_that_sets_its_version_itself_is_accepted(self):
        self.script("0002-b.py", PY_INSERT + "c.execute('UPDATE _meta SET version = 2')\n"
                                             "c.commit()\n")
        self.works(self.go())
        self.assertEqual(self.version(), 2)
        self.assertEqual(len(self.sql("SELECT * FROM _migration_history")), 2)

    def test_sql_that_does_not_fit_in_a_transaction_runs_on_its_own(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);\nVACUUM;\nINSERT INTO b VALUES (1);\n")
        self.script("0003-c.sql", "BEGIN; INSERT INTO b VALUES (2); ROLLBACK;\n"
                                  "BEGIN; INSERT INTO b VALUES (3); COMMIT;\n")
        self.script("0004-d.sql", "-- fastmigrate: no-transaction\nINSERT INTO b VALUES (4);"
                                  "BEGIN; INSERT INTO b VALUES (5);")
        self.works(self.go())
        self.assertEqual(self.sql("SELECT x FROM b"), [(1,), (3,), (4,), (5,)])

    def test_sql_that_fails_on_its_own_is_put_back_with_its_line(self):
        self.script("0002-b.sql", "DROP TABLE album;\nVACUUM;\nCREATE TABLE b (x);\n\nSELECT nope;")
        self.stays_as_it_was("0002-b.sql:5", "SELECT nope", "at version 1")

    def test_a_journal_mode_in_the_middle_of_a_script_takes_effect(self):
        other = "delete" if self.mode == "wal" else "wal"
        self.script("0002-b.sql", f"CREATE TABLE b (x);\nPRAGMA journal_mode = {other};\n"
                                  "CREATE TABLE c (x);\n")
        migrate("x.db", "m")
        self.assertEqual(self.sql("PRAGMA journal_mode"), [(other,)])
        self.assertLessEqual({"b", "c"}, self.tables())

    def test_without_a_snapshot_a_failure_says_what_is_not_promised(self):
        self.script("0002-b.py", PY_INSERT + "c.execute('DELETE FROM album'); c.commit()\n"
                                             "raise SystemExit(1)\n")
        self.refuses(self.go("--no-snapshot"), "There was no snapshot", "at version 1")
        self.assertEqual(self.sql("SELECT count(*) FROM album"), [(0,)])
        self.assertEqual({n for n in self.beside() if "snapshot" in n}, set())

    def test_the_output_of_a_script_is_shown_when_asked_for(self):
        self.script("0002-b.py", "print('seen live')\n")
        process = self.start("-v")
        out, _ = process.communicate(timeout=30)
        self.assertIn("seen live", out)

    @posix_only
    def test_processes_that_a_script_leaves_behind_are_ended_and_the_script_has_failed(self):
        self.script("0002-b.sh", f"{sys.executable} -c '{PY_INSERT}\nimport time\n"
                    "for n in range(1000):\n  c.execute(\"INSERT INTO artist VALUES (NULL, 1)\")\n"
                    "  c.commit(); time.sleep(.02)' x.db > /dev/null 2>&1 &\nsleep 0.2\nexit 0\n")
        before = self.dump()
        result = self.go("--timeout", "0.5")
        self.refuses(result, "processes that it started")
        self.assertEqual(self.dump(), before)
        self.script("0002-b.sh", Path("m/0002-b.sh").read_text().replace("exit 0", "exit 1"))
        self.stays_as_it_was("exit status 1")

    @posix_only
    def test_the_snapshot_and_the_backup_are_as_private_as_the_database(self):
        os.chmod("x.db", 0o640)
        self.script("0002-b.py", "import os, stat\nfor end in ('', '-lock'):\n"
                                 "    n = 'x.db-snapshot' + end\n"
                                 "    assert stat.S_IMODE(os.stat(n).st_mode) == 0o640, n\n")
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        if os.getuid() == 0:
            os.chown("x.db", 1234, 1235)
        self.works(self.go())
        backup = fastmigrate.create_db_backup("x.db")
        status = os.stat(backup)
        self.assertEqual(stat.S_IMODE(status.st_mode), 0o640)
        self.assertEqual((status.st_uid, status.st_gid),
                         (os.stat("x.db").st_uid, os.stat("x.db").st_gid))

    @posix_only
    def test_a_script_that_removes_the_snapshot_does_not_empty_the_database(self):
        self.script("0002-b.sh", 'rm -f "$1"-*\nexit 1\n')
        self.sql("CREATE TABLE users (x)")
        self.refuses(self.go(), "the snapshot is gone", "Restore a backup")
        self.assertIn("users", self.tables())

    def test_a_script_that_spoils_the_database_file_is_put_back(self):
        self.sql("CREATE TABLE u AS SELECT zeroblob(100000) AS x")
        for text in ("cut = open(sys.argv[1], 'rb').read(3000); open(sys.argv[1], 'wb').write(cut)",
                     "open(sys.argv[1], 'w').write('no database ' * 999)"):
            for end in ("sys.exit(1)", "os.kill(os.getppid(), 9); time.sleep(0.5)"):
                self.script("0002-b.py", f"import os, sys, time\n{text}\n{end}\n")
                process = self.start()
                process.communicate(timeout=30)
                self.script("0002-b.py", "pass")
                process = self.start("--to", "1")
                _, err = process.communicate(timeout=30)
                self.assertEqual(process.returncode, 0, err)
                self.assertEqual(self.sql("SELECT length(x) FROM u"), [(100000,)])
                self.assertEqual(self.version(), 1)

    def test_nothing_is_put_back_from_what_is_no_snapshot(self):
        for text in ("no snapshot " * 999, ""):
            Path("x.db-snapshot").write_text(text)
            before = self.dump()
            self.script("0002-b.sql", "CREATE TABLE b (x);")
            self.refuses(self.go("--timeout", "1"), "is not a snapshot that fastmigrate made")
            self.assertEqual(self.dump(), before)
            self.assertTrue(os.path.exists("x.db-snapshot"))
            for name in self.beside():
                os.unlink(name)

    def test_a_database_that_a_script_removed_is_put_back(self):
        self.script("0002-b.py", "import os, sys, time\nos.unlink(sys.argv[1])\n"
                                 "os.kill(os.getppid(), 9); time.sleep(0.5)")
        self.start().communicate(timeout=30)
        self.script("0002-b.py", "pass")
        self.works(self.go())
        self.assertEqual(self.version(), 2)

    def test_another_page_size_is_put_back(self):
        self.script("0002-b.sql", "PRAGMA journal_mode = DELETE; PRAGMA page_size = 8192; VACUUM;"
                    "PRAGMA journal_mode = WAL; CREATE TABLE gone (x);\ngarbage;\n")
        before = self.sql("PRAGMA page_size") + self.sql("PRAGMA journal_mode")
        self.refuses(self.go(), "0002-b.sql:2", "at version 1")
        self.assertEqual(self.sql("PRAGMA page_size") + self.sql("PRAGMA journal_mode"), before)
        self.assertEqual(self.tables() & {"gone"}, set())


class SnapshotsInWal(Snapshots):
    mode = "wal"


# ---------------------------------------------------------------- crashes


@posix_only
class Crashes(Case):
    """Whoever is killed, the next run finds one version and goes on."""

    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", "CREATE TABLE log (n, part);")
        slow = PY_INSERT + "import time\nfor part in range(8):\n" \
            "    c.execute('INSERT INTO log VALUES (?, ?)', ({n}, part)); c.commit()\n" \
            "    time.sleep(0.004)\n"
        for number in range(2, 9):
            if number % 3 == 0:
                self.script(f"{number:04d}-x.py", slow.format(n=number))
            elif number % 3 == 1:
                self.script(f"{number:04d}-x.sql", "".join(
                    f"INSERT INTO log VALUES ({number}, {part});\n" for part in range(8))
                    + ("VACUUM;\n" if number == 4 else ""))
            else:
                self.script(f"{number:04d}-x.sh", f'exec {sys.executable} - "$1" <<"E"\n'
                            + slow.format(n=number) + "E\n")

    def check(self):
        version = self.version()
        self.assertEqual(self.sql("PRAGMA integrity_check"), [("ok",)])
        if version:
            self.assertEqual(
                self.sql("SELECT n, count(*), count(DISTINCT part) FROM log GROUP BY n"),
                [(n, 8, 8) for n in range(2, version + 1)])

    def kill_and_go_on(self, whole_group):
        generator = random.Random(7)
        for _ in range(6):
            process = self.start(start_new_session=True)
            time.sleep(generator.uniform(0.05, 0.5))
            if process.poll() is None:
                (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
            process.communicate()
            # bring it to rest without going further, then look
            self.works(self.go("--to", str(max(self.settled(), 1))))
            self.check()
        self.works(self.go())
        self.assertEqual(self.version(), 8)
        self.check()
        self.assertEqual({n for n in self.beside() if not n.endswith(".backup")}, set())

    def settled(self):
        """The version once the script of a killed runner has ended."""
        connection = fastmigrate._Database("x.db").writing()
        try:
            return connection.execute("SELECT version FROM _meta").fetchone()[0]
        finally:
            connection.close()

    def die_in_a_script(self):
        """Leave the database as a runner leaves it that was killed by its second script."""
        migrate("x.db", "m", to=1)
        self.script("0002-x.sh", f'{sys.executable} -c "{PY_INSERT}\n'
                    'c.execute(\'INSERT INTO log VALUES (2, 77)\'); c.commit()" "$1"\n'
                    'kill -9 $PPID\n')
        process = self.start()
        process.communicate()
        self.assertEqual(process.returncode, -signal.SIGKILL)

    def test_of_many_that_find_a_dead_run_one_recovers_and_all_go_on(self):
        self.die_in_a_script()
        self.script("0002-x.sh", f'{sys.executable} -c "{PY_INSERT}\n'
                    'c.execute(\'INSERT INTO log VALUES (2, 2)\'); c.commit()" "$1"\n')
        said = []
        for process in [self.start("--to", "2") for _ in range(6)]:
            _, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, err)
            said.append(err)
        self.assertEqual("".join(said).count("put back"), 1)
        self.assertEqual(self.sql("SELECT * FROM log"), [(2, 2)])
        (backup,) = self.beside()
        self.assertEqual(self.sql("SELECT * FROM log", backup), [(2, 77)])

    def test_after_a_kill_of_the_whole_group(self):
        self.kill_and_go_on(True)

    def test_after_a_kill_of_the_runner_alone(self):
        self.kill_and_go_on(False)

    def test_after_a_script_has_killed_its_runner(self):
        self.die_in_a_script()
        self.assertEqual(self.sql("SELECT * FROM log"), [(2, 77)])
        self.script("0002-x.sh", ":")
        result = self.works(self.go("--to", "2"))
        self.assertIn("put back", result.err)
        self.assertEqual(self.sql("SELECT * FROM log"), [])
        (backup,) = [n for n in self.beside() if n.endswith(".backup")]
        self.assertEqual(self.sql("SELECT * FROM log", backup), [(2, 77)])

    def test_a_script_that_had_finished_is_not_run_again(self):
        migrate("x.db", "m", to=1)
        os.unlink("m/0002-x.sh")
        self.script("0002-x.py", PY_INSERT + "import os, signal\n"
                    "c.execute('INSERT INTO log VALUES (2, 1)')\n"
                    "c.execute('UPDATE _meta SET version = 2'); c.commit()\n"
                    "os.kill(os.getppid(), signal.SIGKILL)\n")
        process = self.start()
        process.communicate()
        self.works(self.go("--to", "2"))
        self.assertEqual(self.sql("SELECT * FROM log"), [(2, 1)])
        self.assertEqual(self.beside(), set())

    def test_a_reader_may_hold_the_database_while_it_is_put_back(self):
        self.die_in_a_script()
        reader = sqlite3.connect("x.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM log").fetchall()
        result = self.go("--to", "1", "--timeout", "0.3")
        if self.mode == "delete":
            self.refuses(result, "locked")
        reader.close()
        self.works(self.go("--to", "1"))
        self.assertEqual(self.sql("SELECT * FROM log"), [])


class CrashesInWal(Crashes):
    mode = "wal"


@posix_only
class Interrupts(Case):
    def interrupted(self, number, ready=lambda: True):
        process = self.start()
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        self.wait_for(ready, "the script")
        time.sleep(0.3)  # well within the script
        self.assertIsNone(process.poll())
        sent = time.monotonic()
        process.send_signal(number)
        process.wait(20)
        took = time.monotonic() - sent
        err = process.stderr.read()
        self.assertEqual(process.returncode, 128 + number, err)
        self.assertIn("x.db is at version 1", err)
        self.assertNotIn("Traceback", err)
        self.assertEqual(self.version(), 1)
        self.assertEqual({n for n in self.beside() if "snapshot" in n or "backup" in n}, set())
        return took

    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        migrate("x.db", "m")

    def test_a_long_statement_ends_soon_and_is_rolled_back(self):
        self.script("0002-b.sql", "INSERT INTO a WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL "
                                  "SELECT n + 1 FROM r) SELECT n FROM r WHERE n < 0;")
        for number in (signal.SIGINT, signal.SIGTERM):
            self.interrupted(number)

    def test_a_long_file_ends_soon_and_is_rolled_back(self):
        self.script("0002-b.sql", "INSERT INTO a VALUES (1);\n" * 3_000_000)
        self.interrupted(signal.SIGINT)
        self.assertEqual(self.sql("SELECT count(*) FROM a"), [(0,)])

    def test_a_script_is_ended_and_waited_for_and_put_back(self):
        self.script("0002-b.sh", f'{sys.executable} -c "{PY_INSERT}\nimport time\n'
                    'c.execute(\'INSERT INTO a VALUES (1)\'); c.commit()\n'
                    'open(\'up\', \'w\'); time.sleep(100)" "$1"; true\n')
        for number in (signal.SIGINT, signal.SIGTERM):
            self.interrupted(number, lambda: os.path.exists("up"))
            os.unlink("up")
            self.assertEqual(self.sql("SELECT count(*) FROM a"), [(0,)])

    def test_a_process_that_cannot_be_ended_is_waited_for_by_the_next_run(self):
        self.script("late.py", PY_INSERT + "import os, time\n"
                    "while os.path.exists('go'): time.sleep(0.01)\n"
                    "c.execute('INSERT INTO a VALUES (1)'); c.commit()\n", folder=".")
        text = ("import subprocess, sys, time\n"
                "subprocess.Popen([sys.executable, 'late.py', sys.argv[1]], close_fds=False,\n"
                "                 start_new_session=True)\n"
                "open('up', 'w'); time.sleep({}); sys.exit(3)\n")
        for seconds, code in ((0, 1), (100, 130)):
            script = self.script("0002-b.py", text.format(seconds))
            Path("go").touch()
            process = self.start()
            self.wait_for(lambda: os.path.exists("up"), "the script")
            if code == 130:
                process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
            self.assertEqual(process.returncode, code, err)
            self.assertIn("A process that it started is still running, and may write to x.db: "
                          "the next run waits for its end, and puts back what was there.", err)
            script.unlink()
            following = self.start()
            self.assertIn("0002-b.py, which process ", following.stderr.readline())
            os.unlink("go")
            _, err = following.communicate(timeout=30)
            self.assertEqual(following.returncode, 0, err)
            self.assertEqual((self.version(), self.sql("SELECT * FROM a")), (1, []))
            os.unlink("up")

    def test_a_failed_script_is_put_back_to_its_end_whenever_the_signal_comes(self):
        self.sql("CREATE TABLE big AS WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 "
                 "FROM r WHERE n < 8000) SELECT randomblob(3900) AS b FROM r")
        self.script("0002-b.py", PY_INSERT + "c.execute('INSERT INTO a VALUES (1)')\n"
                    "c.execute('UPDATE big SET b = zeroblob(3900)'); c.commit(); c.close()\n"
                    "open('up', 'w'); raise SystemExit(3)\n")
        for delay in (0.01, 0.04, 0.08, 0.15):
            process = self.start()
            self.wait_for(lambda: os.path.exists("up"), "the script")
            time.sleep(delay)  # somewhere in the put-back
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
            self.assertIn(process.returncode, (1, 130), err)
            self.assertIn("x.db is at version 1", err)
            self.assertEqual(self.sql("SELECT count(*) FROM a"), [(0,)])
            self.assertEqual(self.beside(), set())
            os.unlink("up")

    def test_an_interrupt_in_a_function_that_sqlite_calls_is_not_lost(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);")
        real = fastmigrate._Watch.__call__
        for last in range(1, 60, 3):
            calls = []

            def call(watch, *details, last=last, calls=calls):
                calls.append(details)
                if len(calls) == last:
                    raise KeyboardInterrupt
                return real(watch, *details)

            fastmigrate._Watch.__call__ = call
            try:
                with self.assertRaises(KeyboardInterrupt):
                    migrate("x.db", "m")
            except AssertionError:
                self.assertLess(len(calls), last)  # the run was over before
                break
            finally:
                fastmigrate._Watch.__call__ = real
            self.assertEqual(self.tables(), {"a"})
        else:
            self.fail("the run never ended")

    def test_a_denied_load_extension_is_an_error_and_no_interrupt(self):
        self.script("0002-b.sql", "SELECT load_extension('none');")
        self.refuses(self.go(), "0002-b.sql:1", "not authorized")

    def test_a_wait_for_a_lock_ends_soon(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);")
        holder = sqlite3.connect("x.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        self.interrupted(signal.SIGINT)
        holder.close()


# ---------------------------------------------------------------- promise 2: exactly once


class ManyStarters(Case):
    def storm(self, number, *arguments):
        code = ("import sys; sys.path.insert(0, sys.argv[1]); import fastmigrate as f\n"
                "f.ensure_versioned_db('x.db')\n"
                "sys.exit(not f.run_migrations('x.db', 'm'))\n")
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
        self.script("0012-x.py", PY_INSERT + "c.execute('INSERT INTO log VALUES (12)');c.commit()")
        self.script("0013-x.sql", "INSERT INTO log VALUES (13); VACUUM;")
        self.storm(16)
        self.assertEqual([n for n, in self.sql("SELECT n FROM log")], list(range(2, 14)))
        self.assertEqual(self.beside(), set())

    def test_of_many_that_create_one_says_so(self):
        processes = [self.start("--createdb") for _ in range(8)]
        said = [process.communicate(timeout=60)[0] for process in processes]
        self.assertEqual([process.returncode for process in processes], [0] * 8)
        self.assertEqual(sum("created" in text for text in said), 1, said)
        self.assertEqual(self.beside(), set())

    def test_a_runner_waits_for_the_script_of_another_and_says_so_once(self):
        self.create()
        self.script("0001-a.py", "open('up', 'w').close()\nimport os, time\n"
                                 "while os.path.exists('up'): time.sleep(0.01)\n")
        first = self.start()
        self.wait_for(lambda: os.path.exists("up"), "the script")
        second = self.start("--timeout", "0.7")
        _, err = second.communicate(timeout=30)
        self.assertEqual(second.returncode, 1)
        self.assertEqual(err.count("waiting up to 0.7 s"), 1, err)
        self.assertIn(f"0001-a.py, which process {first.pid} started,", err)
        self.assertIn("database is locked", err)
        third = self.start()
        self.assertIn("waiting up to 30 s", third.stderr.readline())
        os.unlink("up")
        for process in (first, third):
            out, err = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 0, err)
            self.assertIn("at version 1", out)
        self.assertEqual(self.beside(), set())

    def test_two_databases_migrate_from_one_directory_at_once(self):
        self.script("0001-a.py", PY_INSERT + "import time; time.sleep(0.2)\n"
                                             "c.execute('CREATE TABLE a (x)')\n")
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


class ManyStartersInWal(ManyStarters):
    mode = "wal"


# ---------------------------------------------------------------- promise 3: up to date is free


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

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_it_works_on_a_read_only_file_in_a_read_only_directory(self):
        os.mkdir("ro")
        shutil.copy("x.db", "ro/x.db")
        os.chmod("ro/x.db", 0o444)
        os.chmod("ro", 0o555)
        self.addCleanup(os.chmod, "ro", 0o755)
        os.chmod(self.home, 0o755)
        self.home.as_uri()  # imports what the user of the child may not be able to read
        child = os.fork()
        if not child:
            code = 9
            try:
                if os.getuid() == 0:
                    os.setgid(65534)
                    os.setuid(65534)
                code = int(not fastmigrate.run_migrations("ro/x.db", "m"))
            finally:
                os._exit(code)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(os.listdir("ro"), ["x.db"])


class UpToDateInWal(UpToDate):
    mode = "wal"


# ---------------------------------------------------------------- promise 4: nothing is lost


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
            database = fastmigrate._Database("x.db", connect=enforcing)
            fastmigrate._Run(database, "m").run()
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

    def test_a_parent_that_loses_its_key_is_said(self):
        self.script("0002-b.sql", REBUILD.replace(" PRIMARY KEY", ""))
        said = ("warning: after {}, album has a foreign key that cannot work: there is no table "
                "{}, or what it refers to there is neither a primary key nor unique. Mend that "
                "in a further script.\n")
        self.assertEqual(self.go().err, said.format("0002-b.sql", "artist"))
        self.assertEqual((self.version(), self.albums()), (2, 3))
        self.script("0003-c.sql", "DELETE FROM album; ALTER TABLE artist RENAME TO artist_old;"
                    "CREATE TABLE artist (id INTEGER PRIMARY KEY); DROP TABLE artist_old;")
        self.assertEqual(self.go().err, said.format("0003-c.sql", "artist_old"))

    def test_a_new_violation_is_refused_whatever_caused_it(self):
        for text in ("CREATE TEMP TABLE album (x); INSERT INTO album VALUES (1);"
                     "INSERT INTO main.album VALUES (13, 99);",
                     "DELETE FROM artist WHERE id = 2;", "UPDATE artist SET id = 5 WHERE id = 2;",
                     "INSERT INTO album VALUES (13, 99);", "UPDATE album SET artist = 99;",
                     "DROP TABLE artist;", "REPLACE INTO artist SELECT 1, 'x'; DELETE FROM artist;",
                     "PRAGMA legacy_alter_table = ON; ALTER TABLE artist RENAME TO a2;",
                     "CREATE TABLE c (a REFERENCES nowhere (id)); INSERT INTO c VALUES (1);",
                     "ALTER TABLE artist RENAME TO old; CREATE TABLE artist (id INTEGER PRIMARY "
                     "KEY); INSERT INTO artist SELECT id FROM old; DROP TABLE old;"):
            self.script("0002-b.sql", text)
            self.refuses(self.go(), "dangling", "no-foreign-key-check", "at version 1")
            self.assertEqual((self.version(), self.albums()), (1, 3), text)

    def test_a_reference_that_a_later_part_of_a_long_script_adds_is_checked(self):
        self.script("0002-b.sql", "CREATE TABLE c (a); INSERT INTO album VALUES (13, 1);\n"
                    + "INSERT INTO c VALUES (1);\n" * 20_000
                    + "ALTER TABLE c ADD COLUMN b REFERENCES artist (id);\nUPDATE c SET b = 9;\n")
        self.refuses(self.go(), "it leaves 20000 references dangling: c row 1 refers")

    def test_the_error_names_table_row_and_parent(self):
        self.script("0002-b.sql", "DELETE FROM artist WHERE id = 2;")
        self.refuses(self.go(), "album row 11 refers to a row of artist")

    def test_a_violation_that_is_meant_is_a_warning_with_their_number(self):
        self.script("0002-b.sql", "/* why */\n-- fastmigrate: no-foreign-key-check\n"
                                  "DELETE FROM artist;")
        self.assertIn("3 references", self.works(self.go()).err)

    def test_an_old_violation_is_tolerated_also_through_a_rebuild(self):
        self.sql("INSERT INTO album VALUES (14, 98)")
        self.script("0002-b.sql", "UPDATE album SET artist = artist;")
        self.assertIn("1 reference", self.works(self.go()).err)
        self.script("0003-c.sql", "CREATE TABLE n (artist REFERENCES artist (id), id);"
                    "INSERT INTO n SELECT artist, id FROM album ORDER BY artist DESC;"
                    "DROP TABLE album; ALTER TABLE n RENAME TO album;")
        self.works(self.go())
        self.script("0004-d.sql", "INSERT INTO album VALUES (97, 15);")
        self.refuses(self.go(), "1 reference")

    def test_each_script_answers_for_itself_however_they_are_batched(self):
        self.script("0002-b.sql", "DELETE FROM artist WHERE id = 2;")
        self.script("0003-c.sql", "INSERT INTO artist VALUES (2, 'back');")
        self.refuses(self.go(), "0002-b.sql")
        self.assertEqual(self.version(), 1)

    def test_a_reference_that_sqlite_cannot_check_stops_nothing(self):
        self.script("0002-b.sql", "CREATE TABLE p (x); CREATE TABLE c (x REFERENCES p (x));"
                                  "INSERT INTO c VALUES (1);")
        self.works(self.go())


class Drift(Case):
    def setUp(self):
        super().setUp()
        self.create()
        for number in (2, 5):
            self.script(f"{number:04d}-x.sql", f"CREATE TABLE t{number} (x);\n")
        migrate("x.db", "m")

    def test_a_late_script_is_said_and_those_above_are_applied(self):
        for late in ("0001-first.sql", "0003-mid.sql"):
            self.script(late, "SELECT nope;")
            result = self.works(self.go())
            self.assertIn(late, result.err)
            self.assertIn("never run", result.err)
        self.script("0006-x.sql", "CREATE TABLE t6 (x);")
        self.assertIn("0003-mid.sql", self.works(self.go()).err)
        self.assertEqual(self.version(), 6)

    def test_an_edited_script_is_said_when_migrating_but_not_for_layout(self):
        self.script("0002-x.sql", b"\xef\xbb\xbfCREATE TABLE t2 (x);  \r\n\r\n \n")
        self.script("0006-x.sql", "CREATE TABLE t6 (x);")
        self.assertEqual(self.works(self.go()).err, "")
        self.script("0002-x.sql", "CREATE TABLE t2 (x, y);\n")
        self.script("0007-x.sql", "CREATE TABLE t7 (x);")
        result = self.works(self.go())
        self.assertEqual(result.err.count("warning"), 1)
        self.assertIn("0002-x.sql: edited", result.err)

    def test_a_missing_script_is_said(self):
        os.unlink("m/0002-x.sql")
        self.assertIn("0002-x.sql", self.works(self.go()).err)

    def test_a_database_newer_than_the_scripts_is_said(self):
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
        self.script("0003-x.sql", "SELECT nope;")
        self.assertIn("0003-x.sql", self.works(self.go()).err)


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

    def test_a_backup_is_made_while_others_write(self):
        writer = sqlite3.connect("x.db", isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO a VALUES (2)")
        path = fastmigrate.create_database_backup("x.db")
        writer.execute("COMMIT")
        writer.close()
        self.assertEqual(self.sql("SELECT * FROM a", path), [(1,)])

    def test_where_none_can_be_made_nothing_is_migrated(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);")
        real = fastmigrate._create_private

        def fail(path, like):
            raise PermissionError(13, "Permission denied", path)

        fastmigrate._create_private = fail
        self.addCleanup(setattr, fastmigrate, "_create_private", real)
        self.refuses(self.go("--backup"), "backup", "Permission denied")
        self.assertEqual(self.version(), 1)
        with self.assertLogs("fastmigrate", logging.ERROR):
            self.assertIsNone(fastmigrate.create_db_backup("x.db"))

    @posix_only
    def test_what_is_half_made_has_no_final_name_and_goes_when_its_maker_is_dead(self):
        killed = ("import os, sys; sys.path.insert(0, sys.argv[1]); import fastmigrate as f\n"
                  "f._sync = lambda path: os.kill(os.getpid(), 9)\nf.{}\n")
        for call in ("create_db('y.db')", "create_db_backup('x.db')"):
            subprocess.run([sys.executable, "-c", killed.format(call), str(MODULE.parent)])
            self.assertEqual(len(self.beside() | self.beside("y.db")), 1)
            self.assertEqual([n for n in os.listdir(".") if n.endswith("backup")], [])
            exec("fastmigrate." + call)
            self.assertEqual([n for n in os.listdir(".") if "-new-" in n], [])

    def test_the_backup_of_a_run_is_the_state_before_it(self):
        self.script("0002-b.sql", "CREATE TABLE b (x);")
        result = self.works(self.go("--backup"))
        (name,) = self.beside()
        self.assertIn(name, result.out)
        self.assertEqual(self.version(name), 1)

    def test_no_backup_of_a_database_that_is_not_there(self):
        with self.assertLogs("fastmigrate", logging.ERROR):
            self.assertIsNone(fastmigrate.create_db_backup("none.db"))
        self.assertFalse(os.path.exists("none.db"))


# ---------------------------------------------------------------- what a person runs


OBJECTS = """
CREATE TABLE "two words" (id INTEGER PRIMARY KEY AUTOINCREMENT, "a ""b" TEXT DEFAULT 'x;y');
CREATE TABLE s (a TEXT NOT NULL COLLATE NOCASE, b INT AS (length(a)) STORED,
                c CHECK (c > 0), PRIMARY KEY (a)) WITHOUT ROWID;
CREATE INDEX part ON s (lower(a), c DESC) WHERE c > 3;
CREATE VIEW v AS SELECT a, 'It''s' AS t FROM s;
CREATE TRIGGER tr INSTEAD OF INSERT ON v BEGIN INSERT INTO s (a) VALUES (new.a); SELECT 1; END;
CREATE VIRTUAL TABLE box USING rtree (id, x0, x1);
"""

for optional in ("CREATE VIRTUAL TABLE words USING fts5 (a, b);", "CREATE TABLE st (a INT) STRICT;"):
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
        self.assertEqual(set(found), {"db", "version", "latest", "migrations", "problems"})
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
        self.refuses(self.go("--rehearse"), "0005-x.sql:2", "the copy of x.db is at version 4")

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

    def test_tables_that_an_extension_or_a_replicator_makes_itself_are_not_the_schema(self):
        self.works(self.enrolled(
            "CREATE VIRTUAL TABLE v USING rtree (id, x0, x1);"
            "CREATE TABLE v_vector_chunks00 (x); CREATE TABLE v_rowids (x);"  # as sqlite-vec
            "CREATE TABLE _litestream_seq (id); CREATE TABLE mine (x);"))
        text = Path("m", "0001-initialize.sql").read_text()
        self.assertEqual(re.findall(r"TABLE (\w+)", text), ["v", "mine"])
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
        self.refuses(self.go("--enroll"), "versioned already, and at version 1")

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
        self.refuses(self.go("--enroll"), "nothing in it")
        self.assertEqual(os.listdir("m"), [])


class Restoring(Case):
    def setUp(self):
        super().setUp()
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x); INSERT INTO a VALUES (1);")
        migrate("x.db", "m")
        self.backup = str(fastmigrate.create_db_backup("x.db"))
        self.sql("INSERT INTO a VALUES (2)")

    def test_a_backup_is_restored_while_a_connection_is_open_and_what_was_there_kept(self):
        reader = sqlite3.connect("x.db")
        self.assertEqual(len(reader.execute("SELECT * FROM a").fetchall()), 2)
        result = self.works(self.go("--restore", self.backup))
        self.assertEqual(reader.execute("SELECT * FROM a").fetchall(), [(1,)])
        reader.close()
        (kept,) = {n for n in self.beside() if n.endswith(".backup")} - {self.backup}
        self.assertIn(kept, result.out)
        self.assertEqual(self.sql("SELECT * FROM a", kept), [(1,), (2,)])

    def test_a_damaged_or_missing_database_is_restored(self):
        Path("x.db").write_bytes(b"no database any more, and long enough to be read" * 99)
        damaged = Path("x.db").read_bytes()
        result = self.works(self.go("--restore", self.backup))
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])
        (kept,) = {n for n in self.beside() if n.endswith(".backup")} - {self.backup}
        self.assertIn(f"What x.db held is kept in {kept}\n", result.out)
        self.assertEqual(Path(kept).read_bytes(), damaged)
        os.unlink("x.db")
        fastmigrate.restore_db("x.db", self.backup)
        self.assertEqual(self.sql("SELECT * FROM a"), [(1,)])

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
        data = Path(self.backup).read_bytes()
        Path("cut").write_bytes(data[:-4096])
        for name in ("text", "plain.db", "cut", "none", "m"):
            self.refuses(self.go("--restore", name), name)
            self.assertEqual(Path("x.db").read_bytes(), before)


class Several(Case):
    def test_many_databases_are_migrated_and_failures_do_not_stop_the_others(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        os.mkdir("tenants")
        for n in range(6):
            fastmigrate.create_db(f"tenants/{n}.db")
        self.sql("CREATE TABLE a (x)", "tenants/3.db")
        for jobs in ("1", "2"):
            result = self.run_main("--db", "tenants/*.db", "--migrations", "m", "--jobs", jobs)
            self.assertEqual(result.code, 1)
            self.assertIn("5 databases at version 1, 1 database failed", result.out)
            self.assertIn(os.path.join("tenants", "3.db"), result.err)
        self.assertEqual(self.version("tenants/5.db"), 1)

    @posix_only
    def test_a_process_that_is_killed_fails_its_database_and_is_said(self):
        self.script("0001-a.sh", 'case "$1" in *2.db) kill -9 $PPID;; esac\n')
        for n in range(4):
            fastmigrate.create_db(f"{n}.db")
        result = self.run_main("--db", "0.db", "1.db", "2.db", "3.db", "--migrations", "m",
                               "--jobs", "2")
        self.assertEqual(result.code, 1)
        self.assertEqual(result.err, "error: 2.db: its process was killed by signal 9\n"
                                     "error: 1 of 4 failed: 2.db\n")

    @posix_only
    def test_an_interrupt_ends_all_of_them_and_puts_back_what_they_are_at(self):
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.script("0002-b.py", PY_INSERT + "import time\n"
                    "c.execute('INSERT INTO a VALUES (1)'); c.commit()\n"
                    "open(sys.argv[1] + '.up', 'w'); time.sleep(100)")
        for jobs, group in ((1, False), (2, False), (2, True)):
            paths = [f"{jobs}{group}{n}.db" for n in range(4)]
            for path in paths:
                fastmigrate.create_db(path)
            process = subprocess.Popen(
                [sys.executable, str(MODULE), "--migrations", "m", "--jobs", str(jobs), "--db",
                 *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True)
            for path in paths[:jobs]:
                self.wait_for(lambda path=path: os.path.exists(path + ".up"), "the script")
            (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 130, err)
            self.assertNotIn("Traceback", err)
            for path in paths[:jobs]:
                self.assertIn(f"interrupted: {path} is at version 1.", err)
                self.assertEqual(self.sql("SELECT count(*) FROM a", path), [(0,)])
            self.assertEqual(self.version(paths[-1]), 0)
            self.assertEqual([n for n in os.listdir(".") if "snapshot" in n], [])


class Windows(Case):
    """What a POSIX machine can tell of the branches for Windows."""

    def setUp(self):
        super().setUp()
        self.name = os.name
        self.addCleanup(setattr, os, "name", self.name)

    def test_uris_of_drives_and_shares_are_what_sqlite_reads(self):
        for path, uri in (("C:\\a b\\x#1.db", "file:///C:/a%20b/x%231.db"),
                          ("\\\\server\\share\\\u00e9.db", "file:////server/share/%C3%A9.db")):
            self.assertEqual(fastmigrate._uri(PureWindowsPath(path)), uri)

    @posix_only
    def test_a_lock_that_somebody_holds_is_not_taken(self):
        held = set()

        def locking(descriptor, mode, size):
            key = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
            if key in held:
                raise PermissionError(13, "Permission denied")
            held.add(key)

        sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
        self.addCleanup(sys.modules.pop, "msvcrt")
        Path("lock").touch()
        os.name = "nt"
        first = fastmigrate._try_lock("lock")
        os.write(first, b"text")
        self.assertEqual(fastmigrate._try_lock("lock"), -1)
        os.close(first)
        held.clear()
        os.close(fastmigrate._try_lock("lock"))
        os.name = self.name
        self.assertEqual(Path("lock").read_text(), "text")  # the lock lies beyond it

    @posix_only
    def test_a_new_file_takes_no_name_that_is_taken(self):
        def rename(new, path):  # as on Windows
            if os.path.exists(path):
                raise FileExistsError(path)
            real(new, path)

        real, os.rename = os.rename, rename
        self.addCleanup(setattr, os, "rename", real)
        Path("first").write_text("first")
        Path("second").write_text("second")
        os.name = "nt"
        there = str(self.home / "there")
        placed = fastmigrate._place("first", there), fastmigrate._place("second", there)
        self.assertNotEqual(fastmigrate._aside("x.db"), fastmigrate._aside("x.db"))
        os.name = self.name
        self.assertEqual((placed, Path("there").read_text()), ((True, False), "first"))


class Connecting(Case):
    """Databases that only the application's own `connect` can open."""

    def connect(self, path):
        options = {"autocommit": False} if sys.version_info >= (3, 12) else {}
        connection = sqlite3.connect(path, **options)
        connection.create_collation("backwards", lambda a, b: (a < b) - (a > b))
        connection.row_factory = sqlite3.Row
        connection.text_factory = bytes
        return connection

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


class DropIn(Case):
    """What applications of the fastmigrate package call."""

    def test_a_script_that_migrates_its_own_database_fails_and_is_put_back(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.script("0002-b.py", f"import sys; sys.path.insert(0, {str(MODULE.parent)!r})\n"
                    + PY_INSERT + "c.execute('INSERT INTO a VALUES (1)'); c.commit()\n"
                    "import fastmigrate as f\nf.migrate(sys.argv[1], 'm')\n")
        self.refuses(self.go("--timeout", "2"), "no snapshot can be made", "at version 1")
        self.assertEqual((self.sql("SELECT * FROM a"), self.beside()), ([], set()))

    def test_a_process_that_outlives_its_script_is_not_taken_for_a_script_later(self):
        self.create()
        snapshot = fastmigrate._Database("x.db").snapshot
        os.environ["FASTMIGRATE_SNAPSHOT"] = f"1 {snapshot.path}"
        self.addCleanup(os.environ.pop, "FASTMIGRATE_SNAPSHOT")
        snapshot.take("0001-a.py", True)
        self.addCleanup(snapshot.release)
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.refuses(self.go("--timeout", "0"), "0001-a.py, which process ", "database is locked")

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

    def test_arun_migrations_awaits_the_run(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);")
        self.assertIs(asyncio.run(fastmigrate.arun_migrations("x.db", "m")), True)
        self.assertEqual(self.version(), 1)


# ---------------------------------------------------------------- promise 5: refusals


class Refusals(Case):
    def setUp(self):
        super().setUp()
        self.script("0001-a.sql", "CREATE TABLE a (x);")

    def test_what_is_no_versioned_database_is_told_apart_and_left_as_it_was(self):
        Path("text.db").write_text("just some text, long enough to be a header of SQLite's\n" * 9)
        Path("empty.db").write_text("")
        self.sql("CREATE TABLE t (x)", "plain.db")
        self.create("cut.db")
        data = Path("cut.db").read_bytes()
        Path("cut.db").write_bytes(data[:5000])
        os.mkdir("folder.db")
        for name, part in (("text.db", "not a database"), ("empty.db", "unversioned"),
                           ("plain.db", "unversioned"), ("cut.db", "damaged"),
                           ("folder.db", "directory"), ("none.db", "no database")):
            before = Path(name).read_bytes() if Path(name).is_file() else None
            self.refuses(self.run_main("--db", name, "--migrations", "m"), name, part)
            if name != "none.db":
                self.refuses(self.run_main("--db", name, "--createdb"), part)
            with self.assertRaises((sqlite3.Error, FileNotFoundError)) as caught:
                fastmigrate.get_db_version(name)
            self.assertIn(part, str(caught.exception))
            after = Path(name).read_bytes() if Path(name).is_file() else None
            self.assertEqual(after, before)
        with self.assertRaises(FileNotFoundError):
            fastmigrate.get_db_version("none.db")
        self.assertEqual(sorted(os.listdir(".")),
                         ["cut.db", "empty.db", "folder.db", "m", "plain.db", "text.db"])

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
                ([table, "INSERT INTO _meta VALUES (2, 1)"], "(2, 1)", False),
                (["CREATE VIEW _meta AS SELECT 1 AS id, 'x' AS version"], "'x'", False)):
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

    def test_a_missing_directory_is_an_error_and_not_an_empty_run(self):
        self.create()
        self.refuses(self.run_main("--db", "x.db", "--migrations", "none"), "none")
        self.refuses(self.run_main("--db", "x.db", "--migrations", "x.db"), "not a migrations dir")
        with self.assertRaises(FileNotFoundError):
            fastmigrate.get_migration_scripts("none")

    def test_a_commit_that_readers_hold_up_waits_once(self):
        self.create()
        for number in range(2, 8):
            self.script(f"000{number}-x.sql", f"CREATE TABLE t{number} (x);")
        reader = sqlite3.connect("x.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM _meta").fetchall()
        waits = []
        real = fastmigrate._Wait.goes_on
        fastmigrate._Wait.goes_on = lambda wait, whom: waits.append(wait) or real(wait, whom)
        self.addCleanup(setattr, fastmigrate._Wait, "goes_on", real)
        result = self.go("--timeout", "1")
        reader.close()
        self.refuses(result, "database is locked: another connection holds x.db")
        self.assertEqual(len(set(waits)), 1)  # and not one for each of the scripts
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

    def test_a_long_trigger_without_its_end_is_refused_soon(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE b (x);\nCREATE TRIGGER q AFTER INSERT ON b BEGIN\n"
                    + "INSERT INTO b VALUES ('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa');\n" * 40_000)
        self.refuses(self.go(), "0001-a.sql:2", "the file ends within this statement")

    def test_nothing_is_created_where_there_is_no_database(self):
        for action in ("--accept", "--set-version=1", "--status", "--check", "--verify",
                       "--rehearse", "--enroll", "--backup"):
            self.refuses(self.go(action), "there is no database x.db")
        self.refuses(self.run_main("--db", "none/*.db", "--createdb"), "no database none/*.db")
        self.assertEqual(os.listdir("."), ["m"])

    def test_odd_paths_are_paths(self):
        names = ["with space.db", "it's.db", 'quo"te.db', "q?mode=ro.db", "ha#sh.db", "per%20.db",
                 "-dash.db", "new\nline.db", "ünï.db", "file:x.db", ":memory:"]
        if os.name == "nt":
            names = ["with space.db", "it's.db", "ha#sh.db", "per%20.db", "-dash.db", "ünï.db"]
        self.script("0002-b.py", PY_INSERT.replace("sys.argv[1]", "__import__('os').path.abspath("
                    "sys.argv[1])") + "c.execute('INSERT INTO a VALUES (1)'); c.commit()\n")
        self.script("0003-c.sql", "VACUUM;")
        for name in names:
            os.mkdir("-d")
            os.chdir("-d")
            shutil.copytree("../m", "- m?#%")
            self.works(self.run_main(f"--db={name}", "--createdb"))
            self.works(self.run_main(f"--db={name}", "--migrations=- m?#%", "--backup"))
            self.assertEqual(fastmigrate.get_db_version(name), 3)
            made = set(os.listdir("."))
            self.assertEqual(len(made), 3, made)
            self.assertIn(name, made)
            os.chdir("..")
            shutil.rmtree("-d")

    def test_impossible_paths_are_refused(self):
        for name in ("", "a\0b", "m/0001-a.sql/x.db"):
            self.refuses(self.run_main("--db", name or "\0", "--createdb"))

    def test_a_locked_database_is_not_called_unversioned(self):
        self.create()
        holder = sqlite3.connect("x.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        self.refuses(self.go("--timeout", "0.2"), "database is locked", "--timeout")
        with self.assertRaises(sqlite3.Error) as caught:
            fastmigrate._Database("x.db", 0.2).look()
        self.assertIn("locked", str(caught.exception))
        self.assertNotIn("unversioned", str(caught.exception))
        holder.execute("ROLLBACK")
        holder.execute("BEGIN IMMEDIATE")
        self.refuses(self.go("--timeout", "0.2"), "database is locked")
        holder.close()
        self.works(self.go())

    @unittest.skipUnless(hasattr(os, "fork") and os.path.exists("/dev/full"), "needs Linux")
    def test_a_limit_on_file_sizes_leaves_the_database_as_it_was(self):
        self.create()
        self.works(self.go())
        self.script("0002-b.sql", "INSERT INTO a VALUES (zeroblob(3000000));")
        before = self.sql("SELECT * FROM sqlite_master"), self.version()
        code = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
                "resource.setrlimit(resource.RLIMIT_FSIZE, (400000, 400000))\n"
                "import fastmigrate; sys.exit(fastmigrate.main(sys.argv[1:]))")

        def limited(*arguments):
            done = subprocess.run(
                [sys.executable, "-c", code, "--db", "x.db", "--migrations", "m", *arguments],
                capture_output=True, text=True,
                env={**os.environ, "PYTHONPATH": str(MODULE.parent)})
            return Result(done.returncode, done.stdout, done.stderr)

        self.refuses(limited(), "0002-b.sql")
        self.assertEqual((self.sql("SELECT * FROM sqlite_master"), self.version()), before)
        self.assertEqual(self.beside(), set())
        self.sql("INSERT INTO a VALUES (zeroblob(3000000))")
        self.script("0002-b.py", "")
        os.unlink("m/0002-b.sql")
        self.refuses(limited(), "x.db")
        self.refuses(limited("--backup"), "backup")
        self.assertEqual(self.beside(), set())
        self.works(self.go())


class Messages(Case):
    """What the command line says, word for word: wording is designed, not left to chance."""

    def says(self, expected, *arguments, code=1):
        result = self.go(*arguments)
        self.assertEqual((result.code, result.err), (code, expected.lstrip("\n")))

    def test_of_scripts_that_fail(self):
        self.create()
        self.script("0001-a.sql", "CREATE TABLE a (x);\nINSERT INTO b VALUES (1);\n")
        self.says("""
error: m/0001-a.sql:2: no such table: b
    INSERT INTO b VALUES (1);
x.db is at version 0; nothing of this script was kept.
Mend the script, then run this again.
""")
        self.script("0001-a.sql", ".mode csv\n")
        self.says("""
error: m/0001-a.sql:1: a command of the sqlite3 program, not SQL
    .mode csv
x.db is at version 0; nothing of this script was kept.
Mend the script, then run this again.
""")
        self.script("0001-a.sql", b"\xff")
        self.says("""
error: m/0001-a.sql:1: it is not UTF-8
x.db is at version 0; nothing of this script was kept.
Save it as UTF-8, then run this again.
""")
        os.unlink("m/0001-a.sql")
        self.script("0001-a.py", "print('half way')\nraise SystemExit(3)\n")
        self.says("""
error: m/0001-a.py: it failed with exit status 3
    half way
x.db is at version 0; nothing of this script was kept.
Mend the script, then run this again.
""")
        self.says("""
error: m/0001-a.py: it failed with exit status 3
    half way
There was no snapshot: x.db is at version 0, and holds what 0001-a.py did before it failed.
Make the database right by hand, or restore a backup, then run this again.
""", "--no-snapshot")

    def test_of_references(self):
        self.create()
        self.script("0001-a.sql", PARENTS)
        migrate("x.db", "m")
        self.script("0002-b.sql", "DELETE FROM artist;")
        self.says("""
error: m/0002-b.sql: it leaves 3 references dangling: album row 10 refers to a row of artist that does not exist
x.db is at version 1; nothing of this script was kept.
Mend the script or, if this is meant, begin it with the line `-- fastmigrate: no-foreign-key-check`, then run this again.
""")
        self.script("0002-b.sql", "-- fastmigrate: no-foreign-key-check\nDELETE FROM artist;")
        self.says("""
warning: 0002-b.sql leaves 3 references dangling, as its no-foreign-key-check allows
""", code=0)

    def test_of_databases_that_cannot_be_migrated(self):
        self.says("""
error: there is no database x.db. Create it with --createdb, or name another one with --db.
""")
        Path("x.db").write_text("")
        self.says("""
error: x.db is unversioned: it has no table _meta. Put it under management with --enroll, or with --set-version if you know its version.
""")
        Path("x.db").write_text("no database, but long enough for the header of one" * 9)
        self.says("""
error: x.db is not a database, or is encrypted. Nothing was changed. Name the database file with --db, or give its key in connect, then run this again.
""")
        os.unlink("x.db")
        self.create()
        holder = sqlite3.connect("x.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        self.says("""
error: database is locked: another connection holds x.db. Nothing was changed. Wait for that, or wait longer with --timeout, then run this again.
""", "--timeout", "0")
        holder.close()
        self.sql("DELETE FROM _meta")
        self.says("""
error: x.db has a damaged table _meta: it must hold one row, (1, version), and holds no row. Set the version with --set-version if you know it.
""")

    def test_of_the_migrations_directory(self):
        self.create()
        self.script("1-a.sql")
        self.says("""
warning: not run, for their names: 1-a.sql. In m, a migration script is named NNNN-description.ext: four digits from 0001, a dash, and sql, py or sh.
""", code=0)
        self.script("0001-a.sql")
        self.script("0001-b.sql")
        result = self.go()
        self.assertIn("two scripts have the index 0001: ", result.err)
        self.assertIn("Nothing was run. Give one another number.", result.err)
        shutil.rmtree("m")
        self.says("""
error: there is no migrations directory m. Create it, or name another one with --migrations.
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
warning: 0003-x.sql: never run on x.db, which was at a higher version when this script was added. Give it a number above the latest.
warning: 0001-x.sql: edited since it was applied to x.db, which does not have the change. Put the change into a new migration, or if none is needed run --accept.
warning: 0002-x.sql: applied to x.db, but not in m any more. Put it back, for a new database would be built without it, or run --accept.
""", code=0)
        shutil.rmtree("m")
        os.mkdir("m")
        self.says("""
warning: x.db is at version 5, newer than the scripts in m, which end at 0: is this an old release of the application?
""", code=0)

    def test_of_the_help_which_fits_in_80_columns(self):
        result = self.go("--help")
        self.assertLessEqual(max(map(len, result.out.splitlines())), 80)
        for flag in ("--rehearse", "--enroll", "--restore FILE", "examples:", "exit codes:"):
            self.assertIn(flag, result.out)


# ---------------------------------------------------------------- the manual


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
