"""A PostgreSQL server for tests: its own cluster in a temporary folder, reached by a socket there."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian keeps them off the PATH


def find(program: str) -> str | None:
    """Where a program of PostgreSQL's is, if it is installed."""
    return shutil.which(program, path=os.pathsep.join([*map(str, PLACES), os.environ.get("PATH", "")]))


class PostgreSQL:
    """A cluster of its own; as root it runs as nobody, since PostgreSQL refuses to be root."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgresql"))  # short: a socket's path has 107 bytes at most
        self.user = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self.numbers = itertools.count(1)
        options = ["--username=homeostat", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        self._run("initdb", "-D", "data", *options)
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [find(program), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, **self.user)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        settings = ["listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off"]
        command = [find("postgres"), "-D", "data", *(part for setting in settings for part in ("-c", setting))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self.user)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: it ends the sessions itself
        self.process.wait(30)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def execute(self, statement: str) -> list[tuple]:
        """Run one statement in the database `postgres`, and return its rows."""
        with psycopg.connect(host=str(self.folder), user="homeostat", dbname="postgres", autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def make_database(self) -> str:
        """Return the URL of a new, empty database."""
        name = f"test{next(self.numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://homeostat@/{name}?host={self.folder}"

    def make_schema(self) -> str:
        """Return the URL of a new, empty schema of the database `postgres`: made in a fraction of a database's time."""
        name = f"test{next(self.numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"postgresql+psycopg://homeostat@/postgres?host={self.folder}&options=-csearch_path%3D{name}"
