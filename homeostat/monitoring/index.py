"""Where captured requests are, as columns: a million of them in a few arrays, oldest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from homeostat.dataset import Array


class Entry(NamedTuple):
    """Where one captured request is."""

    time: float
    request_id: str
    rows: int
    """0 where the capture holds no row count."""
    capture: int
    part: str
    """Path of its Parquet file; empty in SQLite."""
    place: int
    """Its row in the file, or its rowid."""


@dataclass(frozen=True)
class Index:
    """Requests as columns of n values; `paths` names the Parquet files, of which the first is SQLite's empty one."""

    times: Array
    request_ids: Array
    rows: Array
    versions: Array
    masked: Array
    captures: Array
    parts: Array
    places: Array
    paths: tuple[str, ...] = ("",)

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.times)

    def __getitem__(self, i: int) -> Entry:
        """Return one request's place."""
        return Entry(
            float(self.times[i]),
            self.request_ids[i],
            int(self.rows[i]),
            int(self.captures[i]),
            self.paths[self.parts[i]],
            int(self.places[i]),
        )

    def __iter__(self) -> Iterator[Entry]:
        """Yield each request's place."""
        return (self[i] for i in range(len(self)))

    def take(self, positions: Array) -> Index:
        """Return the requests at these positions, or of this boolean mask."""
        names = [f.name for f in fields(self) if f.name != "paths"]
        return Index(**{name: getattr(self, name)[positions] for name in names}, paths=self.paths)

    def newest(self, rows: int) -> Index:
        """Return the last requests whose rows add up to at least `rows`, or all."""
        sizes = np.maximum(self.rows[::-1], 1)
        enough = int(np.searchsorted(np.cumsum(sizes), rows)) + 1
        return self.take(np.arange(max(0, len(self) - enough), len(self)))

    def first(self, rows: int, when: Array) -> Index:
        """Return the requests of the smallest `when` [n] whose rows add up to at least `rows`, or all, oldest first."""
        order = np.argsort(when, kind="stable")
        enough = int(np.searchsorted(np.cumsum(np.maximum(self.rows[order], 1)), rows)) + 1
        return self.take(np.sort(order[:enough]))

    def ordered(self) -> Index:
        """Return the requests by time, then by id."""
        order = np.argsort(self.times, kind="stable")
        times = self.times[order]
        same = times[1:] == times[:-1]
        tied = np.flatnonzero(np.r_[same, False] | np.r_[False, same])
        if len(tied):
            among = order[tied]
            order[tied] = among[np.lexsort((self.request_ids[among].astype(str), self.times[among]))]
        return self.take(order)


def join(parts: Sequence[Index]) -> Index:
    """Return the requests of several indexes, in their order."""
    paths = ("", *dict.fromkeys(path for part in parts for path in part.paths if path))
    place = {path: i for i, path in enumerate(paths)}
    columns = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in fields(Index)
        if f.name not in ("paths", "parts")
    }
    codes = [np.array([place[path] for path in part.paths], dtype=np.int64)[part.parts] for part in parts]
    return Index(**columns, parts=np.concatenate(codes), paths=paths)


def make_index(
    columns: Sequence[Sequence[object]], capture: int, parts: Array | None = None, paths: tuple[str, ...] = ("",)
) -> Index:
    """Return the index of one capture; columns: times, ids, rows, versions, masked, places, of n values each."""
    times, ids, rows, versions, masked, places = columns
    named = np.empty(len(times), dtype=object)
    named[:] = ids
    counts = [value if isinstance(value, int) and value > 0 else 0 for value in rows] if parts is None else rows
    return Index(
        times=np.asarray(times, dtype=np.float64),
        request_ids=named,
        rows=np.asarray(counts, dtype=np.int64),
        versions=np.array([-1 if v is None else v for v in versions] if parts is None else versions, dtype=np.int64),
        masked=np.asarray(masked, dtype=bool),
        captures=np.full(len(times), capture, dtype=np.int64),
        parts=np.zeros(len(times), dtype=np.int64) if parts is None else parts,
        places=np.asarray(places, dtype=np.int64),
        paths=paths,
    )
