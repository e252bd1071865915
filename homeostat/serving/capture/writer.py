"""The capture writer: a process of its own that takes frames from stdin into SQLite and leaves when they end.

No library beyond Python's own, so that it starts in a moment and stays small; a process that it starts
now and then moves what is written to Parquet (rolling.py). A frame is `<IBIII`:
length of what follows the length, kind, and the lengths of its three parts (JSON, inputs,
outputs). Every commit is acknowledged on stdout with two numbers (uint64 LE): the frames
committed so far, and how many of them were a second use of a request id. Ctrl-C and SIGTERM
are not for it: the end of its input is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from homeostat.serving.jsonlog import log_to_stderr

if TYPE_CHECKING:
    from homeostat.sealing import Sealer

REQUEST, LABELS, KEY = 1, 2, 3
"""A request; labels of some; before all others, the key that they are encrypted with."""
HEAD = struct.Struct("<IBIII")
ACK = struct.Struct("<QQ")
READ_BYTES = 1 << 20
SEALED = {"inputs": 7, "outputs": 8, "slices": 12}
"""Column of `request` that is encrypted, when there is a key -> its place in a row."""
ROLL_BYTES = 256 * 1024 * 1024
"""Growth of the file after which it is rolled before its time."""
JOURNAL_BYTES = 64 * 1024 * 1024
"""What stays of the journal after a large transaction."""
JUMP_SECONDS = 12 * 3600
"""A clock that has jumped further says nothing of how old a request is."""
UNWRITABLE = 74
"""Exit code (EX_IOERR) when the file cannot be written at present: no frame is at fault."""
PASSING = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
"""What SQLite reports of a full disk, and of what else may pass."""

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
"""PRAGMA user_version of the file; the first schema, keyed by request id alone, left it at 0."""
TABLES = (
    # arm: champion, canary or shadow; client: id of the key that asked; slices: JSON, name -> text, or texts of the
    # rows; masking: JSON, what was done to which column, NULL where all are as they came
    """CREATE TABLE request (
  request_id TEXT NOT NULL, time REAL, model TEXT NOT NULL, version INTEGER, sha256 TEXT, entity_id TEXT,
  rows INTEGER, inputs BLOB, outputs BLOB, milliseconds REAL,
  arm TEXT NOT NULL, client TEXT, slices BLOB, masking TEXT
)""",
    # a shadow answers the same request as the arm that is answered from
    "CREATE UNIQUE INDEX request_id ON request (model, request_id, (arm = 'shadow'))",
    "CREATE INDEX request_time ON request (model, time)",
    # a Parquet file; it counts while it is not pending
    """CREATE TABLE part (
  part INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, model TEXT NOT NULL, version INTEGER NOT NULL,
  date TEXT NOT NULL, rows INTEGER NOT NULL, pending INTEGER NOT NULL
)""",
    # the requests that are in Parquet: what tells a second use of an id
    """CREATE TABLE rolled (
  request_id TEXT NOT NULL, model TEXT NOT NULL, shadow INTEGER NOT NULL, time REAL, milliseconds REAL,
  part INTEGER NOT NULL, PRIMARY KEY (request_id, model, shadow)
) WITHOUT ROWID""",
    # model is empty where the client named none; sequence is the order of arrival
    """CREATE TABLE label (
  sequence INTEGER PRIMARY KEY, request_id TEXT NOT NULL, model TEXT NOT NULL, time REAL, labels TEXT,
  UNIQUE (request_id, model)
)""",
)
COPY_REQUESTS = (
    "INSERT INTO request SELECT request_id, time, model, version, sha256, entity_id, rows, inputs, outputs, "
    "milliseconds, 'champion', NULL, NULL, NULL FROM request_before ORDER BY time"
)
ASIDE = {
    0: (
        "CREATE TABLE IF NOT EXISTS label (request_id TEXT PRIMARY KEY, time REAL, labels TEXT)",
        "DROP INDEX IF EXISTS request_time",
        "ALTER TABLE request RENAME TO request_before",
        "ALTER TABLE label RENAME TO label_before",
    ),
    2: (
        "DROP INDEX request_time",
        "ALTER TABLE request RENAME TO request_before",
        "ALTER TABLE label RENAME TO label_before",
    ),
}
"""Schema of a file -> what moves its tables out of the way."""
TAKE_OVER = {
    0: (
        COPY_REQUESTS,
        "INSERT INTO label (request_id, model, time, labels) "
        "SELECT request_id, '', time, labels FROM label_before ORDER BY time",
        "DROP TABLE request_before",
        "DROP TABLE label_before",
    ),
    2: (
        COPY_REQUESTS,
        "INSERT INTO label SELECT sequence, request_id, model, time, labels FROM label_before",
        "DROP TABLE request_before",
        "DROP TABLE label_before",
    ),
}
"""Schema of a file -> what brings its rows into the new tables."""
# One row changes when the request is new, and when it comes again because a writer died after its
# commit (the same times, to the last bit); none changes at a second use of the id.
INSERT_REQUEST = (
    "INSERT INTO request SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14 "
    "WHERE NOT EXISTS (SELECT 1 FROM rolled WHERE request_id = ?1 AND model = ?3 AND shadow = (?11 = 'shadow')) "
    "ON CONFLICT (model, request_id, (arm = 'shadow')) "
    "DO UPDATE SET time = excluded.time "
    "WHERE request.time IS excluded.time AND request.milliseconds IS excluded.milliseconds"
)
# Likewise of one that has been moved to Parquet since that writer's commit.
AGAIN = (
    "UPDATE rolled SET part = part WHERE request_id = ?1 AND model = ?3 AND shadow = (?11 = 'shadow') "
    "AND time IS ?2 AND milliseconds IS ?10"
)
REPLACE_LABEL = "INSERT OR REPLACE INTO label (request_id, model, time, labels) VALUES (?, ?, ?, ?)"


def frame(kind: int, text: bytes, inputs: bytes = b"", outputs: bytes = b"") -> bytes:
    """Return one frame: `text` is JSON, `inputs` and `outputs` packed tensors."""
    sizes = len(text), len(inputs), len(outputs)
    return b"".join((HEAD.pack(HEAD.size - 4 + sum(sizes), kind, *sizes), text, inputs, outputs))


def frames(buffer: bytearray) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """Take the whole frames off the front of `buffer`, and leave what is not whole yet."""
    at = 0
    while at + HEAD.size <= len(buffer):
        length, kind, text, inputs, outputs = HEAD.unpack_from(buffer, at)
        if length != HEAD.size - 4 + text + inputs + outputs:
            raise ValueError(f"a frame of {length} bytes with parts of {text}, {inputs} and {outputs}")
        end = at + 4 + length
        if end > len(buffer):
            break
        first = at + HEAD.size
        second, third = first + text, first + text + inputs
        yield kind, bytes(buffer[first:second]), bytes(buffer[second:third]), bytes(buffer[third:end])
        at = end
    del buffer[:at]


def connect(path: str) -> sqlite3.Connection:
    """Open (or make) the file, readable by its owner alone, and bring it to this schema."""
    os.umask(0o077)
    database = sqlite3.connect(path, timeout=30, isolation_level=None)
    database.execute("PRAGMA page_size = 8192")  # rows of a few kB: half the processor time of 4096
    database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file: what is deleted is given back
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # what is acknowledged survives a power cut; 0.5 ms a commit
    database.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")
    try:
        migrate(database, path)
    except BaseException:
        database.close()  # what was begun is undone
        raise
    return database


def migrate(database: sqlite3.Connection, path: str) -> None:
    """Make the tables, or take over those of an earlier schema, in one transaction: all of it or nothing."""
    start = time.monotonic()
    database.execute("BEGIN IMMEDIATE")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION and version not in ASIDE:
        raise ValueError(
            f"{path} has schema {version}, written by another homeostat; this one writes {SCHEMA_VERSION}: "
            "set HOMEOSTAT_TRAFFIC to another file, or serve with the other homeostat"
        )
    earlier = database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'request'").fetchone()
    if version != SCHEMA_VERSION:
        aside, taken_over = (ASIDE[version], TAKE_OVER[version]) if earlier else ((), ())
        for statement in (*aside, *TABLES, *taken_over, f"PRAGMA user_version = {SCHEMA_VERSION}"):
            database.execute(statement)
    database.execute("COMMIT")
    if version != SCHEMA_VERSION and earlier:
        requests, labels = database.execute(
            "SELECT (SELECT count(*) FROM request), (SELECT count(*) FROM label)"
        ).fetchone()
        log.warning(
            "%s: %d requests and %d labels brought from schema %d to %d in %.1f s",
            path,
            requests,
            labels,
            version,
            SCHEMA_VERSION,
            time.monotonic() - start,
        )


def store(
    database: sqlite3.Connection, batch: list[tuple[int, bytes, bytes, bytes]], sealer: Sealer | None = None
) -> int:
    """Write a batch in one transaction; return how many requests used an id that their model has already.

    The first request of an id stays as it is; the last labels of an id count.
    """
    requests: list[list[Any]] = []
    labels: list[tuple[object, ...]] = []
    for kind, text, inputs, outputs in batch:
        values = json.loads(text)
        if kind == REQUEST:
            request = [*values[:7], inputs, outputs, *values[7:]]
            requests.append(request if sealer is None else _seal_request(sealer, request))
        else:
            for request_id, model, when, numbers in values:
                given = json.dumps(numbers)
                # no model: labels that name none are any model's
                kept = given if sealer is None else sealer.seal(given.encode(), "", request_id, "labels")
                labels.append((request_id, model, when, kept))
    database.execute("BEGIN IMMEDIATE")
    written = database.executemany(INSERT_REQUEST, requests).rowcount if requests else 0
    if written < len(requests):
        written += database.executemany(AGAIN, [values[:11] for values in requests]).rowcount
    database.executemany(REPLACE_LABEL, labels)
    database.execute("COMMIT")
    return len(requests) - written


def _seal_request(sealer: Sealer, request: list[Any]) -> list[Any]:
    """Return a row of the table with its inputs, outputs and slices sealed."""
    sealed = list(request)
    for name, place in SEALED.items():
        value = request[place]
        if value is not None:
            data = value.encode() if isinstance(value, str) else value
            sealed[place] = sealer.seal(data, request[2], request[0], f"{name} of {request[10]}")
    return sealed


def live_bytes(database: sqlite3.Connection) -> int:
    """Return the size of what the file holds, without the pages that are free."""
    pages, free, size = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def clock_offset() -> float:
    """Return how far the clock is ahead of one that nobody sets, and that goes on while the machine sleeps."""
    return time.time() - time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Roller:
    """Starts a process that rolls, each hour and when the file has grown; one at a time."""

    def __init__(
        self, database: sqlite3.Connection, path: str, max_days: str, max_bytes: str, roll_seconds: float
    ) -> None:
        """Roll first after a tenth of roll_seconds; the other arguments are those of the process."""
        self._database, self._path, self._max_days, self._max_bytes = database, path, max_days, max_bytes
        self._seconds, self._offset = roll_seconds, clock_offset()
        self._due = time.monotonic() + roll_seconds / 10
        self._base = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def wait_seconds(self) -> float:
        """How long nothing needs to be looked after."""
        return 1.0 if self._process else max(0.0, self._due - time.monotonic())

    def look(self) -> None:
        """Start what is due, or see whether it has ended."""
        now = time.monotonic()
        if self._process is not None:
            if self._process.poll() is not None:
                self._process, self._base = None, live_bytes(self._database)
                self._due = now + self._seconds
        elif now >= self._due or live_bytes(self._database) > self._base + ROLL_BYTES:
            command = [sys.executable, "-m", "homeostat.serving.capture.rolling", *self.arguments()]
            # stdout is where commits are acknowledged
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def arguments(self) -> list[str]:
        """Return what the process is told: to delete nothing by age when the clock has jumped since the start."""
        jump, days = clock_offset() - self._offset, self._max_days
        if abs(jump) > JUMP_SECONDS:
            log.error(
                "the clock has jumped by %+.1f days: captured requests are not deleted by age; restart the server "
                "when the time is right",
                jump / 86400,
            )
            days = "0"
        return [self._path, days, self._max_bytes]

    def close(self) -> None:
        """End the process: it can be ended at any moment."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def main(path: str, max_days: str, max_bytes: str, roll_seconds: str) -> int:
    """Write until stdin ends; the exit code says whether what went wrong may pass."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_to_stderr()
    os.nice(5)  # answering comes first
    try:
        _write(path, max_days, max_bytes, float(roll_seconds))
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING:
            log.error("%s cannot be written now: %s (%s)", path, error, error.sqlite_errorname)
            return UNWRITABLE
        log.exception("%s cannot be written", path)
        return 1
    except OSError as error:
        log.error("capture: %s", error)
        return UNWRITABLE
    except ValueError as error:
        log.error("capture: %s", error)
        return 1
    return 0


def _write(path: str, max_days: str, max_bytes: str, roll_seconds: float) -> None:
    database = connect(path)
    roller = Roller(database, path, max_days, max_bytes, roll_seconds)
    stdin = select.poll()
    stdin.register(0, select.POLLIN)
    buffer, done, duplicates, sealer = bytearray(), 0, 0, None
    while True:
        roller.look()
        if not stdin.poll(roller.wait_seconds * 1000):
            continue
        data = os.read(0, READ_BYTES)
        if not data:
            break
        buffer += data
        batch = list(frames(buffer))
        if batch and batch[0][0] == KEY:
            from homeostat.sealing import Sealer  # costs a writer without a key nothing

            sealer = Sealer(batch.pop(0)[1])
        if batch:
            duplicates += store(database, batch, sealer)
            done += len(batch)
            with contextlib.suppress(BrokenPipeError):  # the server is gone; stdin may still hold its last frames
                os.write(1, ACK.pack(done, duplicates))
    roller.close()
    database.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
