"""One moment of the capture: the server's SQLite file, beside its writer, and the Parquet files that belong to it."""

from __future__ import annotations

import logging
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from homeostat.archive import archive_folder, read_part
from homeostat.errors import DataInvalid, Unavailable

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 3
"""PRAGMA user_version of the files that the server writes and that are understood here."""
NEWEST_LABEL = (
    "(SELECT l.labels FROM label l WHERE l.request_id = r.request_id AND l.model IN (r.model, '') "
    "ORDER BY l.sequence DESC LIMIT 1)"
)
"""Of a request r: the labels that came last for its model, or for no model by name."""
LABEL_TIME = NEWEST_LABEL.replace("l.labels", "l.time")
"""When they came."""
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
CHUNK = 500
"""Requests fetched by one statement; SQLite allows 999 parameters in its oldest builds."""


class Entry(NamedTuple):
    """Where a captured request is."""

    time: float
    request_id: str
    rows: Any
    part: str
    """Path of its Parquet file; empty in SQLite."""
    place: int
    """Its row in the file, or its rowid."""


@dataclass(frozen=True)
class Wanted:
    """Which answered requests of a model: start <= time < end, unix seconds."""

    model: str
    start: float
    end: float = float("inf")
    version: int | None = None
    labelled_only: bool = False


@dataclass(frozen=True)
class _Part:
    path: str
    version: int


class Snapshot:
    """Captured requests as they were at one moment, each once, wherever they are."""

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self._connection, self._folder = connection, folder

    def index(self, wanted: Wanted) -> list[Entry]:
        """Return where the requests are, oldest first."""
        where, values = ANSWERED, [wanted.model, wanted.start, wanted.end]
        if wanted.version is not None:
            where, values = where + " AND r.version = ?", [*values, wanted.version]
        if wanted.labelled_only:
            where += f" AND {NEWEST_LABEL} IS NOT NULL"
        found = self._connection.execute(
            f"SELECT r.time, r.request_id, r.rows, '', r.rowid FROM request r WHERE {where}",  # noqa: S608
            values,
        )
        entries = [Entry(*row) for row in found]
        for part, row, place in self._rolled(wanted, ("rows",)):
            entries.append(Entry(row["time"], row["request_id"], row["rows"], part.path, place))
        return sorted(entries, key=lambda entry: entry[:2])

    def fetch(self, model: str, entries: Sequence[Entry]) -> list[tuple[Any, ...]]:
        """Return the requests, oldest first: RECORD, then the newest labels and when they came, or None twice."""
        places = defaultdict(list)
        for entry in entries:
            places[entry.part].append(entry.place)
        records = list(self._fetch_sqlite(places.pop("", [])))
        labels = self._labels(model) if places else {}
        for path, rows in places.items():
            (version,) = self._connection.execute("SELECT version FROM part WHERE path = ?", (path,)).fetchone()
            table = self._read(path, [name for name in RECORD if name != "version"])
            if table is None:
                raise Unavailable(f"{self._folder / path} was deleted while it was being read; try again")
            for row in table.take(rows).to_pylist():
                row |= {"version": version}
                records.append((*(row[name] for name in RECORD), *labels.get(row["request_id"], (None, None))))
        return sorted(records, key=lambda record: (record[1], record[0]))

    def labelled(self, wanted: Wanted) -> Iterator[tuple[str, Any, Any]]:
        """Yield id, row count and newest labels of the labelled requests that are not masked."""
        yield from self._connection.execute(
            f"SELECT * FROM (SELECT r.request_id, r.rows, {NEWEST_LABEL} AS labels FROM request r "  # noqa: S608
            f"WHERE {ANSWERED} AND r.masking IS NULL) WHERE labels IS NOT NULL",
            (wanted.model, wanted.start, wanted.end),
        )
        labels = self._labels(wanted.model)
        for _, row, _ in self._rolled(wanted, ("rows", "masking")):
            if row["masking"] is None and row["request_id"] in labels:
                yield row["request_id"], row["rows"], labels[row["request_id"]][0]

    def _labels(self, model: str) -> dict[str, tuple[Any, Any]]:
        """Return request id -> newest labels and when they came, for every label that a model's request may have."""
        found = self._connection.execute(
            "SELECT request_id, labels, time FROM label WHERE model IN (?, '') ORDER BY sequence", (model,)
        )
        return {request_id: (labels, time) for request_id, labels, time in found}

    def _fetch_sqlite(self, rowids: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        for first in range(0, len(rowids), CHUNK):
            chunk = rowids[first : first + CHUNK]
            marks = ", ".join("?" * len(chunk))
            yield from self._connection.execute(
                f"SELECT {', '.join(f'r.{name}' for name in RECORD)}, {NEWEST_LABEL}, {LABEL_TIME} "  # noqa: S608
                f"FROM request r WHERE r.rowid IN ({marks})",
                chunk,
            )

    def _rolled(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[tuple[_Part, dict[str, Any], int]]:
        """Yield the answered requests in Parquet: their file, some of their columns, their place in it."""
        labels = self._labels(wanted.model) if wanted.labelled_only else None
        for part in self._parts(wanted):
            table = self._read(part.path, ["time", "request_id", "arm", *columns])
            for place, row in enumerate(table.to_pylist() if table is not None else ()):
                inside = wanted.start <= row["time"] < wanted.end and row["arm"] != "shadow"
                if inside and (labels is None or row["request_id"] in labels):
                    yield part, row, place

    def _parts(self, wanted: Wanted) -> list[_Part]:
        first = datetime.fromtimestamp(wanted.start, UTC).date().isoformat()
        last = "9999" if wanted.end == float("inf") else datetime.fromtimestamp(wanted.end, UTC).date().isoformat()
        parts = self._connection.execute(
            "SELECT path, version FROM part WHERE NOT pending AND model = ? AND date BETWEEN ? AND ? ORDER BY part",
            (wanted.model, first, last),
        )
        return [_Part(*row) for row in parts if wanted.version in (None, row[1])]

    def _read(self, path: str, columns: Sequence[str]) -> pa.Table | None:
        """Return columns of a file; None when it has been deleted since this moment, as too old or too much."""
        try:
            return read_part(self._folder / path, columns)
        except FileNotFoundError:
            logger.info("%s has been deleted since", self._folder / path)
            return None
        except OSError as error:
            raise Unavailable(f"captured traffic {self._folder / path} cannot be read now: {error}") from error
        except (ValueError, KeyError) as error:  # pyarrow's are ValueErrors
            raise DataInvalid(
                f"captured traffic {self._folder / path} is damaged: {error}; move it away, "
                "its requests are then left out"
            ) from error


class _Empty(Snapshot):
    """What there is before the server has made its tables."""

    def index(self, wanted: Wanted) -> list[Entry]:
        return []

    def labelled(self, wanted: Wanted) -> Iterator[tuple[str, Any, Any]]:
        return iter(())


@contextmanager
def open_snapshot(traffic: Path) -> Iterator[Snapshot]:
    """Open read-only, in one transaction: a writer goes on (WAL), and we see one moment of it.

    Raises DataInvalid when the file is damaged, Unavailable when it is locked or of another schema.
    """
    try:
        with closing(sqlite3.connect(f"{traffic.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN")
            kind = Snapshot if has_tables(connection, traffic) else _Empty
            yield kind(connection, archive_folder(traffic))
    except sqlite3.OperationalError as error:
        raise Unavailable(f"captured traffic {traffic} cannot be read now: {error}; try again") from error
    except sqlite3.DatabaseError as error:
        raise DataInvalid(
            f"captured traffic {traffic} is damaged: {error}; move it away, the server starts a new one"
        ) from error


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
