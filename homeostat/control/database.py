"""The control store's database: SQLite in WAL mode or PostgreSQL by URL, and its failures as ours."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Engine, create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateColumn

from homeostat.control.tables import head, metadata, rollout
from homeostat.errors import ConfigError, ControlError, ControlUnavailable

logger = logging.getLogger(__name__)

GENESIS = "0" * 64
"""`previous_hash` of the first ledger entry."""

# SQLite says "operational" of faults that no retry mends: no such table, read-only file.
_LASTING = ("SQLITE_ERROR", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        hidden = re.sub(r":[^@]*@", ":***@", url)  # what may be a password is not repeated
        raise ConfigError(
            f"HOMEOSTAT_CONTROL_URL {hidden!r} is not a database URL; "
            "use sqlite:////path/control.db or postgresql+psycopg://user:password@host/database"
        ) from error


def _on_sqlite_connect(timeout_seconds: float, connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    end = time.monotonic() + timeout_seconds
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            break
        except (
            sqlite3.OperationalError
        ) as error:  # of two that change it at once SQLite lets one wait, and not the other
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > end:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = FULL")  # a decision survives a power cut


def _on_sqlite_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _on_postgresql_begin(milliseconds: int, connection: Connection) -> None:
    if connection.get_execution_options().get("writes", False):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")  # by itself it waits for ever


def _missing(connection: Connection) -> list[Column[Any]]:
    """Return the columns of the rollout table that an older version has not made."""
    there = {column["name"] for column in inspect(connection).get_columns(rollout.name)}
    return [column for column in rollout.columns if column.name not in there]


class Database:
    """An engine, and transactions whose failures are of our tree.

    SQLite opens its file anew each time; PostgreSQL keeps one connection for the server that asks
    ten times a second, and opens more while they are needed.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 5.0) -> None:
        self.url = _parse(url)
        self.where = self.url.render_as_string(hide_password=True)
        self.engine = self._engine(timeout_seconds)
        self._ready = False
        weakref.finalize(self, self.engine.dispose)  # a store is dropped, not closed

    def _engine(self, timeout_seconds: float) -> Engine:
        sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"poolclass": NullPool, "connect_args": {"timeout": timeout_seconds}}
        if not sqlite:
            waits = {"connect_timeout": max(1, round(timeout_seconds))}
            options = {"pool_size": 1, "max_overflow": -1, "pool_pre_ping": True, "connect_args": waits}
        try:
            engine = create_engine(self.url, **options)
        except NoSuchModuleError as error:
            raise ConfigError(f"HOMEOSTAT_CONTROL_URL {self.where}: {error}; use sqlite or postgresql") from error
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{self.where} needs {error.name}: pip install 'homeostat[postgres]' and postgresql+psycopg://"
            ) from error
        if sqlite:
            event.listen(engine, "connect", partial(_on_sqlite_connect, timeout_seconds))
            event.listen(engine, "begin", _on_sqlite_begin)
        else:
            event.listen(engine, "begin", partial(_on_postgresql_begin, round(timeout_seconds * 1000)))
        return engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection in one read transaction."""
        self._prepare()
        with self._failures(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection that holds the write lock; commits at the end, or rolls back on any error."""
        self._prepare()
        with (
            self._failures(),
            self.engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            connection.execute(select(head).with_for_update()).all()  # every writer queues here
            yield connection

    def _prepare(self) -> None:
        if self._ready:
            return
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            try:
                Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ControlError(f"control store {self.where}: cannot make its folder: {error}") from error
        with self._failures():
            if not self._is_complete():
                self._create()
        self._ready = True

    def _is_complete(self) -> bool:
        with self.engine.connect() as connection:
            if not set(metadata.tables) <= set(inspect(connection).get_table_names()) or _missing(connection):
                return False
            return connection.execute(select(head.c.id)).first() is not None

    def _create(self) -> None:
        try:
            with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
                metadata.create_all(connection)
                for column in _missing(connection):
                    definition = CreateColumn(column).compile(dialect=connection.dialect)
                    connection.execute(text(f"ALTER TABLE {rollout.name} ADD COLUMN {definition}"))
                if connection.execute(select(head.c.id)).first() is None:
                    connection.execute(insert(head).values(id=1, sequence=0, time="", hash=GENESIS))
        except DBAPIError:
            # PostgreSQL lets two creators collide; the loser finds the winner's tables
            if not self._is_complete():
                raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            cause = error.orig
            code = getattr(cause, "sqlite_errorname", "") or ""
            passing = isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
            if passing and not code.startswith(_LASTING):
                raise ControlUnavailable(
                    f"control store {self.where} does not answer: {cause}; "
                    "is it running, reachable, and not held by another process?"
                ) from error
            if isinstance(error, DataError):  # PostgreSQL holds columns to their length
                raise ControlError(f"control store {self.where} refuses a value: {cause}; shorten it") from error
            raise ControlError(
                f"control store {self.where} cannot be used: {cause}; restore it from a backup, "
                "then run `homeostat ledger verify`"
            ) from error
