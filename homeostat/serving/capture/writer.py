"""The capture writer: a process of its own that takes frames from stdin into SQLite and leaves when they end.

No library beyond Python's own, so that it starts in a moment and stays small. A frame is `<IBIII`:
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
import signal
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator

from homeostat.serving.jsonlog import log_to_stderr

REQUEST, LABELS = 1, 2
HEAD = struct.Struct("<IBIII")
ACK = struct.Struct("<QQ")
READ_BYTES = 1 << 20

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
    "INSERT INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (model, request_id, (arm = 'shadow')) "
    "DO UPDATE SET time = excluded.time "
    "WHERE request.time IS excluded.time AND request.milliseconds IS excluded.milliseconds"
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
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # what is acknowledged survives a power cut; 0.5 ms a commit
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


def store(database: sqlite3.Connection, batch: list[tuple[int, bytes, bytes, bytes]]) -> int:
    """Write a batch in one transaction; return how many requests used an id that their model has already.

    The first request of an id stays as it is; the last labels of an id count.
    """
    requests: list[tuple[object, ...]] = []
    labels: list[tuple[object, ...]] = []
    for kind, text, inputs, outputs in batch:
        values = json.loads(text)
        if kind == REQUEST:
            requests.append((*values[:7], inputs, outputs, *values[7:]))
        else:
            labels.extend((*key, json.dumps(numbers)) for *key, numbers in values)
    database.execute("BEGIN IMMEDIATE")
    written = database.executemany(INSERT_REQUEST, requests).rowcount if requests else 0
    database.executemany(REPLACE_LABEL, labels)
    database.execute("COMMIT")
    return len(requests) - written


def main(path: str) -> int:
    """Write until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_to_stderr()
    os.nice(5)  # answering comes first
    database = connect(path)
    buffer, done, duplicates = bytearray(), 0, 0
    while data := os.read(0, READ_BYTES):
        buffer += data
        batch = list(frames(buffer))
        if batch:
            duplicates += store(database, batch)
            done += len(batch)
            with contextlib.suppress(BrokenPipeError):  # the server is gone; stdin may still hold its last frames
                os.write(1, ACK.pack(done, duplicates))
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
