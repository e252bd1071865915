"""The capture writer: a process of its own that takes frames from stdin into SQLite and leaves when they end.

Standard library alone, so that it starts in a moment and stays small. A frame is `<IBIII`:
length of what follows the length, kind, and the lengths of its three parts (JSON, inputs,
outputs). Every commit is acknowledged on stdout with the number of frames committed so far
(uint64 LE). Ctrl-C and SIGTERM are not for it: the end of its input is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import struct
import sys
from collections.abc import Iterator

REQUEST, LABELS = 1, 2
HEAD = struct.Struct("<IBIII")
ACK = struct.Struct("<Q")
READ_BYTES = 1 << 20

SCHEMA = """
CREATE TABLE IF NOT EXISTS request (
  request_id TEXT PRIMARY KEY, time REAL, model TEXT, version INTEGER, sha256 TEXT, entity_id TEXT,
  rows INTEGER, inputs BLOB, outputs BLOB, milliseconds REAL
);
CREATE INDEX IF NOT EXISTS request_time ON request (model, time);
CREATE TABLE IF NOT EXISTS label (request_id TEXT PRIMARY KEY, time REAL, labels TEXT);
"""
INSERT_REQUEST = "INSERT OR IGNORE INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
UPSERT_LABEL = (
    "INSERT INTO label VALUES (?, ?, ?) ON CONFLICT (request_id) DO UPDATE "
    "SET time = excluded.time, labels = excluded.labels"
)


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
    """Open (or make) the file, readable by its owner alone."""
    os.umask(0o077)
    database = sqlite3.connect(path, timeout=30, isolation_level=None)
    database.execute("PRAGMA page_size = 8192")  # rows of a few kB: half the processor time of 4096
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.executescript(SCHEMA)
    return database


def store(database: sqlite3.Connection, batch: list[tuple[int, bytes, bytes, bytes]]) -> None:
    """Write a batch in one transaction; a request id that is there already is kept as it is."""
    requests: list[tuple[object, ...]] = []
    labels: list[tuple[object, ...]] = []
    for kind, text, inputs, outputs in batch:
        values = json.loads(text)
        if kind == REQUEST:
            requests.append((*values[:7], inputs, outputs, values[7]))
        else:
            labels.extend((request_id, time, json.dumps(numbers)) for request_id, time, numbers in values)
    database.execute("BEGIN IMMEDIATE")
    database.executemany(INSERT_REQUEST, requests)
    database.executemany(UPSERT_LABEL, labels)
    database.execute("COMMIT")


def main(path: str) -> int:
    """Write until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(5)  # answering comes first
    database = connect(path)
    buffer, done = bytearray(), 0
    while data := os.read(0, READ_BYTES):
        buffer += data
        batch = list(frames(buffer))
        if batch:
            store(database, batch)
            done += len(batch)
            with contextlib.suppress(BrokenPipeError):  # the server is gone; stdin may still hold its last frames
                os.write(1, ACK.pack(done))
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
