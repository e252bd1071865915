"""One moment of the captures: each server's SQLite file, beside its writer, and the Parquet files that belong to it."""

from __future__ import annotations

import logging
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.archive import archive_folder
from homeostat.errors import DataInvalid, Unavailable
from homeostat.monitoring.index import Entry, Index, join, make_index
from homeostat.monitoring.parts import Part, index_parts, read_requests

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 3
"""PRAGMA user_version of the files that the server writes and that are understood here."""
ANSWERED = "r.model = ? AND r.time >= ? AND r.time < ? AND r.arm != 'shadow'"
"""Of requests r: those of a model in a time; what a shadow answered, nobody got."""
RECORD = (
    "request_id",
    "time",
    "version",
    "entity_id",
    "rows",
    "inputs",
    "outputs",
    "milliseconds",
    "arm",
    "slices",
    "masking",
)
"""What `fetch` gives of a request, before its labels."""
CLOCK_SECONDS = 60.0
"""Several workers write one file a little out of order; more than this is a clock that was set back."""
REMEDY = "move it away, the server starts a new one"
CHUNK = 500
"""Requests fetched by one statement; SQLite allows 999 parameters in its oldest builds."""


@dataclass(frozen=True)
class Wanted:
    """Which answered requests of a model: start <= time < end, unix seconds."""

    model: str
    start: float
    end: float = float("inf")
    version: int | None = None
    labelled_only: bool = False
    newest: int | None = None
    """The last requests alone, of so many rows together."""
    first_labelled: int | None = None
    """The requests alone whose labels came first, of so many rows together."""


Labels = dict[str, tuple[Any, Any]]
"""Request id -> newest labels and when they came."""


class _Capture:
    """One server's file."""

    def __init__(self, connection: sqlite3.Connection, folder: Path, number: int) -> None:
        self._connection, self._folder, self._number = connection, folder, number

    def index(self, wanted: Wanted, problems: list[str]) -> list[Index]:
        """Return where the requests of any version are."""
        found = self._connection.execute(
            f"SELECT r.time, r.request_id, r.rows, r.version, r.masking IS NOT NULL, r.rowid FROM request r "  # noqa: S608
            f"WHERE {ANSWERED} ORDER BY r.rowid",
            (wanted.model, wanted.start, wanted.end),
        ).fetchall()
        indexes = [make_index(tuple(zip(*found, strict=True)) or ((),) * 6, self._number)]
        rolled = index_parts(self._folder, self._parts(wanted), wanted.start, wanted.end, self._number, problems)
        return [*indexes, *([rolled] if rolled is not None else [])]

    def records(self, entries: Iterable[Entry], problems: list[str]) -> Iterator[tuple[Any, ...]]:
        """Yield the requests: RECORD."""
        places = defaultdict(list)
        for entry in entries:
            places[entry.part].append(entry.place)
        for chunk in _chunks(places.pop("", [])):
            marks = ", ".join("?" * len(chunk))
            yield from self._connection.execute(
                f"SELECT {', '.join(RECORD)} FROM request WHERE rowid IN ({marks})",  # noqa: S608
                chunk,
            )
        for path, rows in places.items():
            (version,) = self._connection.execute("SELECT version FROM part WHERE path = ?", (path,)).fetchone()
            for row in read_requests(self._folder, path, rows, [n for n in RECORD if n != "version"], problems):
                row |= {"version": version}
                yield tuple(row[name] for name in RECORD)

    def labels(self, model: str, ids: Sequence[str] | None = None) -> Labels:
        """Return the newest labels of these requests, or of all that a model's request may have."""
        labels: Labels = {}
        for chunk in [None] if ids is None else _chunks(ids):
            some = "" if chunk is None else f" AND request_id IN ({', '.join('?' * len(chunk))})"
            found = self._connection.execute(
                f"SELECT request_id, labels, time FROM label WHERE model IN (?, ''){some} ORDER BY sequence",  # noqa: S608
                (model, *(chunk or ())),
            )
            labels.update((request_id, (text, time)) for request_id, text, time in found)
        return labels

    def _parts(self, wanted: Wanted) -> list[Part]:
        first = datetime.fromtimestamp(wanted.start, UTC).date().isoformat()
        last = "9999" if wanted.end == float("inf") else datetime.fromtimestamp(wanted.end, UTC).date().isoformat()
        parts = self._connection.execute(
            "SELECT path, version, rows FROM part WHERE NOT pending AND model = ? AND date BETWEEN ? AND ? "
            "ORDER BY part",
            (wanted.model, first, last),
        )
        return [Part(*row) for row in parts]


class Snapshot:
    """Captured requests as they were at one moment, each once, wherever they are.

    `problems` fills with what could not be read, and `notes` with what a reader should know of the last index.
    """

    def __init__(self, captures: Sequence[_Capture], problems: Sequence[str] = ()) -> None:
        self._captures = captures
        self.problems, self.notes = list(problems), list[str]()

    def index(self, wanted: Wanted) -> Index:
        """Return where the requests are, oldest first; one that two captures hold counts once, as it came first."""
        self.notes = []
        found = [index for capture in self._captures for index in capture.index(wanted, self.problems)]
        if not found:
            return make_index(((),) * 6, 0)
        self._note_clock(found)
        index = join(found).ordered()
        if len(self._captures) > 1:
            index = self._once(index)
        if wanted.version is not None:
            mine = index.versions == wanted.version
            if not mine.all():
                self.notes.append(
                    f"{int((~mine).sum())} requests of the window were answered by another version than "
                    f"v{wanted.version}: left out"
                )
            index = index.take(mine)
        if wanted.labelled_only or wanted.first_labelled is not None:
            labels = self._labels(wanted.model)
            has = [labels.get(request_id, (None,))[0] is not None for request_id in index.request_ids]
            index = index.take(np.array(has, dtype=bool))
            if wanted.first_labelled is not None:
                came = [labels[request_id][1] or 0.0 for request_id in index.request_ids]
                index = index.first(wanted.first_labelled, np.array(came, dtype=np.float64))
        return index if wanted.newest is None else index.newest(wanted.newest)

    def fetch(self, model: str, entries: Index | Sequence[Entry]) -> list[tuple[Any, ...]]:
        """Return the requests, oldest first: RECORD, then the newest labels and when they came, or None twice."""
        of = defaultdict(list)
        for entry in entries:
            of[entry.capture].append(entry)
        records = [
            record for number, mine in of.items() for record in self._captures[number].records(mine, self.problems)
        ]
        labels = self._labels(model, [record[0] for record in records])
        found = [(*record, *labels.get(record[0], (None, None))) for record in records]
        return sorted(found, key=lambda record: (record[1], record[0]))

    def labelled(self, wanted: Wanted) -> Iterator[tuple[str, int, Any]]:
        """Yield id, row count and newest labels of the labelled requests that are not masked."""
        index = self.index(wanted)
        index = index.take(~index.masked)
        labels = self._labels(wanted.model)
        for request_id, rows in zip(index.request_ids.tolist(), index.rows.tolist(), strict=True):
            text = labels.get(request_id, (None,))[0]
            if text is not None:
                yield request_id, rows, text

    def _labels(self, model: str, ids: Sequence[str] | None = None) -> Labels:
        """Return the newest labels, whichever server they were sent to."""
        newest: Labels = {}
        for capture in self._captures:
            found = capture.labels(model, ids)
            if not newest:
                newest = found
                continue
            for request_id, (text, time) in found.items():
                known = newest.get(request_id)
                if known is None or (time or 0.0) >= (known[1] or 0.0):
                    newest[request_id] = (text, time)
        return newest

    def _once(self, index: Index) -> Index:
        _, first = np.unique(index.request_ids.astype(str), return_index=True)
        double = len(index) - len(first)
        if not double:
            return index
        self.notes.append(f"{double} requests stand in two captures: counted once")
        return index.take(np.sort(first))

    def _note_clock(self, found: Sequence[Index]) -> None:
        """Say by how much a clock went back, of requests in the order in which they were written to SQLite."""
        back = 0.0
        for index in found:
            if len(index) > 1 and not index.parts.any():
                back = max(back, float((np.maximum.accumulate(index.times) - index.times).max()))
        if back > CLOCK_SECONDS:
            self.notes.append(f"a server's clock went back by {back:.0f} s: times of this window are not to be trusted")


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[first : first + CHUNK] for first in range(0, len(values), CHUNK))


def capture_files(traffic: Path) -> list[Path]:
    """Return the SQLite files of captured traffic that are there: of one server, or by a glob of several."""
    if any(mark in str(traffic) for mark in "*?["):
        root = Path(traffic.anchor or ".")
        return sorted(path for path in root.glob(str(traffic.relative_to(root))) if path.is_file())
    return [traffic] if traffic.is_file() else []


@contextmanager
def open_snapshot(traffic: Path) -> Iterator[Snapshot]:
    """Open read-only, each file in one transaction: a writer goes on (WAL), and we see one moment of it.

    traffic: a server's SQLite file, or a glob of several servers' files. Raises DataInvalid when the
    only file is damaged (of several it is left out, and named in `problems`), Unavailable when one is
    locked or of another schema.
    """
    files = capture_files(traffic) or [traffic]
    captures: list[_Capture] = []
    problems: list[str] = []
    with ExitStack() as opened:
        for path in files:
            try:
                captures += opened.enter_context(_open(path, len(captures)))
            except DataInvalid as error:
                if len(files) == 1:
                    raise
                problems.append(f"{path}: {error}")
        try:
            yield Snapshot(captures, problems)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"captured traffic {traffic} cannot be read now: {error}; try again") from error
        except sqlite3.DatabaseError as error:
            raise DataInvalid(f"captured traffic {traffic} is damaged: {error}; {REMEDY}") from error


@contextmanager
def _open(path: Path, number: int) -> Iterator[list[_Capture]]:
    """Yield the capture of a file; none before the server has made its tables."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN")
            ready = has_tables(connection, path)
            if ready:
                connection.execute("SELECT 1 FROM request LIMIT 1")
            yield [_Capture(connection, archive_folder(path), number)] if ready else []
    except sqlite3.OperationalError as error:
        raise Unavailable(f"captured traffic {path} cannot be read now: {error}; try again") from error
    except sqlite3.DatabaseError as error:
        raise DataInvalid(f"captured traffic {path} is damaged: {error}; {REMEDY}") from error


def has_tables(connection: sqlite3.Connection, traffic: Path) -> bool:
    """Return whether the server has made its tables; raises Unavailable when they are of another schema."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return True
    if version == 0 and not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'request'").fetchone():
        return False
    raise Unavailable(
        f"captured traffic {traffic} has schema {version}, not {SCHEMA_VERSION}; "
        "the model server brings an older one up to date when it starts"
    )
