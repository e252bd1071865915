"""Roll captured requests from SQLite to Parquet, and keep both within an age and a size.

A row of table `part` is what makes a file count: it is `pending` from before the file is there until
the transaction that also deletes the file's requests from SQLite, and again before it is removed.
Whoever reads takes part rows and requests from one snapshot, so each request is seen once, and a
process killed at any moment leaves nothing that the next one does not finish.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from homeostat.archive import COLUMNS, archive_folder, new_part, parse_part, read_part, temporary_name, write_part
from homeostat.serving.capture.writer import connect, live_bytes
from homeostat.serving.jsonlog import log_to_stderr

log = logging.getLogger(__name__)

PART_BYTES = 64 * 1024 * 1024
"""Tensors in one file: what a roll holds in memory twice."""
PART_ROWS = 50_000
DELETED_ROWS = 10_000
"""Requests that one transaction deletes from SQLite when they are too old or too many."""
DAY = 86_400.0
KEY = ("request_id", "model", "arm", "time", "milliseconds")


@dataclass(frozen=True)
class Rolled:
    """What one run did."""

    requests: int = 0
    """Moved to Parquet."""
    files: int = 0
    adopted: int = 0
    """Files that were there without the SQLite file that they were written from."""
    expired: int = 0
    """Requests deleted, in files or in SQLite."""
    labels: int = 0
    """Labels deleted."""

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{self.requests} requests moved to {self.files} Parquet files; {self.adopted} files taken over; "
            f"{self.expired} requests and {self.labels} labels deleted"
        )


@contextlib.contextmanager
def open_archive(traffic: Path) -> Iterator[sqlite3.Connection | None]:
    """Open the traffic file as the one process that moves or deletes requests; None when another one is at it."""
    folder = archive_folder(traffic)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        with contextlib.closing(connect(str(traffic))) as database:
            _finish(database, folder)
            yield database


def roll(traffic: Path, max_days: float, max_bytes: float, now: float | None = None) -> Rolled | None:
    """Move what SQLite holds to Parquet, then delete what is too old or too much; None when another process is at it.

    max_days, max_bytes: 0 is no limit. Without pyarrow nothing is moved, and the limits hold for SQLite.
    """
    with open_archive(traffic) as database:
        if database is None:
            return None
        folder, done = archive_folder(traffic), Rolled()
        if importlib.util.find_spec("pyarrow") is not None:
            done = replace(done, adopted=_adopt(database, folder))
            requests, files = _move(database, folder)
            done = replace(done, requests=requests, files=files)
        if max_days:
            done = _expire(database, folder, (time.time() if now is None else now) - max_days * DAY, done)
        if max_bytes:
            done = replace(done, expired=done.expired + _shrink(database, folder, max_bytes))
        database.executescript("PRAGMA incremental_vacuum")  # steps to its end, as execute does not
        return done


def delete(traffic: Path, model: str, before: float) -> int | None:
    """Delete a model's requests of whole days before a time, wherever they are; None when another process is at it."""
    with open_archive(traffic) as database:
        if database is None:
            return None
        folder, date = archive_folder(traffic), _date(before)
        gone = _remove(database, folder, "model = ? AND date < ?", (model, date))
        midnight = datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()
        gone += _delete(database, "model = ? AND time < ?", (model, midnight))
        database.executescript("PRAGMA incremental_vacuum")  # steps to its end, as execute does not
        return gone


def summarize(traffic: Path) -> dict[str, Any]:
    """Return how many requests of each model and version there are, where, since when (a date), and all bytes."""
    if not traffic.is_file():
        return {"models": [], "bytes": 0}
    with contextlib.closing(connect(str(traffic))) as database:
        found = database.execute(
            "SELECT model, version, sum(rows), sum(rows * rolled), count(path), min(date) FROM ("
            "SELECT model, version, rows, 1 AS rolled, path, date FROM part WHERE NOT pending UNION ALL "
            "SELECT model, version, count(*), 0, NULL, date(min(time), 'unixepoch') FROM request "
            "GROUP BY model, version) GROUP BY model, version ORDER BY model, version"
        ).fetchall()
        names = "model", "version", "requests", "rolled", "files", "since"
        size = live_bytes(database) + _archived(database, archive_folder(traffic))
    return {"models": [dict(zip(names, row, strict=True)) for row in found], "bytes": size}


def _archived(database: sqlite3.Connection, folder: Path) -> int:
    """Return the bytes of the files that are there."""
    paths = [folder / path for (path,) in database.execute("SELECT path FROM part")]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _finish(database: sqlite3.Connection, folder: Path) -> None:
    """Remove the files whose writing, or removal, was not finished."""
    for part, path in database.execute("SELECT part, path FROM part WHERE pending").fetchall():
        for file in (folder / path, temporary_name(folder / path)):
            file.unlink(missing_ok=True)
        for parent in (folder / path).parents[:3]:
            with contextlib.suppress(OSError):  # holds other files, or is gone
                parent.rmdir()
        database.execute("DELETE FROM part WHERE part = ?", (part,))


def _adopt(database: sqlite3.Connection, folder: Path) -> int:
    """Take over files that no row speaks of, after the SQLite file was lost or restored from an older copy."""
    known = {path for (path,) in database.execute("SELECT path FROM part")}
    count = 0
    for file in sorted(folder.glob("model=*/version=*/date=*/*.parquet")):
        path = file.relative_to(folder).as_posix()
        if path in known or file.name.startswith("."):
            continue
        try:
            model, version, date = parse_part(path)
            table = read_part(file, [name for name in KEY if name != "model"])
        except (OSError, ValueError) as error:  # pyarrow's are ValueErrors
            log.warning("%s is left alone: %s", file, error)
            continue
        keys = [(row["request_id"], model, row["arm"], row["time"], row["milliseconds"]) for row in table.to_pylist()]
        with _transaction(database):
            part = database.execute(
                "INSERT INTO part (path, model, version, date, rows, pending) VALUES (?, ?, ?, ?, ?, 0)",
                (path, model, version, date, len(keys)),
            ).lastrowid
            _note(database, keys, part)
            database.executemany(
                "DELETE FROM request WHERE request_id = ? AND model = ? AND (arm = 'shadow') = (? = 'shadow') "
                "AND time IS ? AND milliseconds IS ?",
                keys,
            )
        count += 1
    return count


def _note(database: sqlite3.Connection, keys: Sequence[Sequence[Any]], part: int | None) -> None:
    """Remember requests that are in a file, so that none of them is kept a second time."""
    database.executemany(
        "INSERT OR IGNORE INTO rolled (request_id, model, shadow, time, milliseconds, part) "
        "VALUES (?, ?, ? = 'shadow', ?, ?, ?)",
        [(*key, part) for key in keys],
    )


def _move(database: sqlite3.Connection, folder: Path) -> tuple[int, int]:
    """Move what is in SQLite now; return how many requests, into how many files."""
    groups = database.execute(
        "SELECT model, version, CAST(time / 86400 AS INTEGER) AS day, count(*) FROM request "
        "WHERE time IS NOT NULL AND version IS NOT NULL GROUP BY model, version, day ORDER BY day"
    ).fetchall()
    requests = files = 0
    for model, version, day, count in groups:
        left = count  # what comes meanwhile is the next run's
        while left > 0 and (rows := _take(database, model, version, day * DAY, left)):
            _write(database, folder, (model, version, _date(day * DAY)), rows)
            requests, files, left = requests + len(rows), files + 1, left - len(rows)
    return requests, files


def _take(database: sqlite3.Connection, model: str, version: int, start: float, most: int) -> list[tuple[Any, ...]]:
    """Return the next requests of the day from `start`, oldest first, as one file takes them: rowid, then COLUMNS."""
    cursor = database.execute(
        f"SELECT rowid, {', '.join(COLUMNS)} FROM request "  # noqa: S608
        "WHERE model = ? AND version = ? AND time >= ? AND time < ? ORDER BY time LIMIT ?",
        (model, version, start, start + DAY, min(most, PART_ROWS)),
    )
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in cursor:
        rows.append(row)
        size += sum(len(value) for value in row if isinstance(value, bytes))
        if size > PART_BYTES:
            break
    cursor.close()
    return rows


def _write(
    database: sqlite3.Connection, folder: Path, group: tuple[str, int, str], rows: list[tuple[Any, ...]]
) -> None:
    model, version, date = group
    path = new_part(model, version, date)
    part = database.execute(
        "INSERT INTO part (path, model, version, date, rows, pending) VALUES (?, ?, ?, ?, ?, 1)",
        (path, model, version, date, len(rows)),
    ).lastrowid
    at = {name: place for place, name in enumerate(COLUMNS, 1)}  # after the rowid
    write_part(folder / path, [_as_bytes(row, at["slices"])[1:] for row in rows])
    keys = [(row[at["request_id"]], model, row[at["arm"]], row[at["time"]], row[at["milliseconds"]]) for row in rows]
    with _transaction(database):
        database.executemany("DELETE FROM request WHERE rowid = ?", [(row[0],) for row in rows])
        _note(database, keys, part)
        database.execute("UPDATE part SET pending = 0 WHERE part = ?", (part,))


def _as_bytes(row: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    value = row[place]
    return (*row[:place], value.encode() if isinstance(value, str) else value, *row[place + 1 :])


def _expire(database: sqlite3.Connection, folder: Path, oldest: float, done: Rolled) -> Rolled:
    """Delete whole days before that of `oldest`, older requests in SQLite, and labels of neither."""
    expired = _remove(database, folder, "date < ?", (_date(oldest),))
    expired += _delete(database, "time < ?", (oldest,))
    labels = database.execute(
        "DELETE FROM label WHERE time < ? "
        "AND NOT EXISTS (SELECT 1 FROM request r WHERE r.request_id = label.request_id) "
        "AND NOT EXISTS (SELECT 1 FROM rolled r WHERE r.request_id = label.request_id)",
        (oldest,),
    ).rowcount
    return replace(done, expired=done.expired + expired, labels=labels)


def _shrink(database: sqlite3.Connection, folder: Path, max_bytes: float) -> int:
    """Delete the oldest days of files, then the oldest requests in SQLite, until all is within max_bytes."""
    gone = 0
    while True:
        if _archived(database, folder) + live_bytes(database) <= max_bytes:
            return gone
        (oldest,) = database.execute("SELECT min(date) FROM part").fetchone()
        if oldest is not None:
            gone += _remove(database, folder, "date = ?", (oldest,))
            continue
        deleted = database.execute(
            f"DELETE FROM request WHERE rowid IN (SELECT rowid FROM request ORDER BY rowid LIMIT {DELETED_ROWS})"  # noqa: S608
        ).rowcount
        if not deleted:
            return gone
        gone += deleted


def _remove(database: sqlite3.Connection, folder: Path, where: str, values: Sequence[Any]) -> int:
    """Remove files, first from what counts and then from the disk; return how many requests they held."""
    parts = database.execute(f"SELECT part, rows FROM part WHERE {where}", values).fetchall()  # noqa: S608
    with _transaction(database):
        for part, _ in parts:
            database.execute("UPDATE part SET pending = 1 WHERE part = ?", (part,))
        if parts:
            marks = ", ".join(str(part) for part, _ in parts)
            database.execute(f"DELETE FROM rolled WHERE part IN ({marks})")  # noqa: S608
    _finish(database, folder)
    return sum(rows for _, rows in parts)


def _delete(database: sqlite3.Connection, where: str, values: Sequence[Any]) -> int:
    count = 0
    while True:  # in steps, so that the writer waits for none of them long
        deleted = database.execute(
            f"DELETE FROM request WHERE rowid IN (SELECT rowid FROM request WHERE {where} LIMIT {DELETED_ROWS})",  # noqa: S608
            values,
        ).rowcount
        count += deleted
        if deleted < DELETED_ROWS:
            return count


def main(traffic: str, max_days: str, max_bytes: str) -> int:
    """Roll once, as the capture writer asks for it."""
    log_to_stderr()
    os.nice(5)  # with the writer's own: after everybody else
    try:
        done = roll(Path(traffic), float(max_days), float(max_bytes))
    except (OSError, sqlite3.Error, ValueError) as error:
        log.error("captured traffic was not rolled, and stays where it is: %s", error)
        return 1
    if done is not None and done != Rolled():
        log.info("captured traffic: %s", done)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
