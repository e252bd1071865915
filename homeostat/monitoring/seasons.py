"""Drift of traffic with hours and weekdays: each block of time is ranked among earlier ones of its own season.

A block is an hour, or a day, of one column's rows. Those of one season (the same hour of the day, day of
the week, or hour of the week) are taken to be exchangeable with each other, whatever other seasons look like
and however far all of them are from the reference. The rank of a block's distance from the blocks of its
season is then uniform (Vovk, Gammerman & Shafer 2005), and bets against small ranks, multiplied over all
seasons, hold an error rate over the version's life as in exchangeability.py. Of a season the newest blocks
alone are kept: ranks among them are uniform, but no longer quite independent of each other.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from homeostat.dataset import Array
from homeostat.monitoring.cells import Cells
from homeostat.monitoring.exchangeability import EDGE, advance

if TYPE_CHECKING:
    import pandas as pd

Season = Literal["hour", "weekday", "hour_of_week"]
BINS = 8
"""Bins of a column's values in a block, by the shares of the reference; missing values have one more."""
KEPT = {"hour": 60, "weekday": 60, "hour_of_week": 20}
"""Blocks of one season that are kept: when there are more, the older half goes."""
MATCHED = 5
"""Blocks of a season before which the reference still decides."""
BLOCK_ROWS = 20
"""A block of fewer rows says nothing."""
POWERS = (0.1, 0.2, 0.35, 0.5, 0.75)
"""Bets e p^(e - 1) against a uniform rank p (Vovk, Gammerman & Shafer 2005, section 7.1)."""

Counts = tuple[int, ...]


@dataclass(frozen=True)
class Column:
    """What one column has shown in the blocks up to now."""

    cells: str
    """Digest of the cells that it was counted by."""
    past: Mapping[str, tuple[Counts, ...]] = field(default_factory=dict)
    """Season -> rows by bin of its newest blocks, the oldest first."""
    block: Counts = ()
    """Rows by bin of the block that is still open."""
    capitals: tuple[float, ...] = (-math.inf,) * len(POWERS)
    """Log capital of each bet."""
    bets: int = 0
    effect: float = 0.0
    """Half the sum of the shares' differences between the last closed block and its season's, in [0, 1]."""


@dataclass(frozen=True)
class SeasonState:
    """What one version's blocks have shown."""

    season: str = ""
    block: str = ""
    """Start of the open block, local time; empty before the first row."""
    matched: int = 0
    """Earlier blocks of its season that the last closed block was ranked among."""
    columns: Mapping[str, Column] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> SeasonState:
        """Read what `asdict` made of it, through JSON; raises TypeError, KeyError or ValueError."""
        columns = {}
        for name, one in values["columns"].items():
            capitals = tuple(-math.inf if v is None else float(v) for v in one["capitals"])
            if len(capitals) != len(POWERS):
                raise ValueError(f"{len(capitals)} bets, not {len(POWERS)}")
            past = {str(s): tuple(tuple(map(int, b)) for b in blocks) for s, blocks in one["past"].items()}
            block = tuple(map(int, one["block"]))
            columns[str(name)] = Column(
                str(one["cells"]), past, block, capitals, int(one["bets"]), float(one["effect"])
            )
        return cls(str(values["season"]), str(values["block"]), int(values["matched"]), columns)

    def write(self) -> dict[str, Any]:
        """Return values that JSON takes."""
        columns = {
            name: asdict(one) | {"capitals": [v if math.isfinite(v) else None for v in one.capitals]}
            for name, one in self.columns.items()
        }
        return {"season": self.season, "block": self.block, "matched": self.matched, "columns": columns}


def log_evidence(column: Column) -> float:
    """Return the natural logarithm of the mean capital of the bets."""
    return float(np.logaddexp.reduce(np.array(column.capitals)) - math.log(len(POWERS)))


def follow(
    cells: Mapping[str, Cells],
    current: pd.DataFrame,
    times: Array,
    state: SeasonState,
    season: Season,
    timezone: str,
    seed: str,
) -> SeasonState:
    """Count rows in the blocks of their time, and rank each block that a later row closes.

    current: rows that were not counted before, categories as text. times: [n] unix seconds, rising. seed: names the
    version, and draws what breaks ties. Another season than before, or cells of another reference, begin anew.
    """
    if state.season != season:
        state = SeasonState(season)
    starts = _starts(times, season, timezone)
    codes = {name: _bins(one)[one.codes(current[name])] for name, one in cells.items()}
    for first, last in _runs(starts):
        start = str(starts[first])
        if start != state.block:
            state = replace(_close(state, seed), block=start)
        columns = dict(state.columns)
        for name, one in cells.items():
            before = columns.get(name)
            if before is None or before.cells != one.digest:
                before = Column(one.digest)
            seen = np.bincount(codes[name][first:last], minlength=BINS + 1)
            block = seen + np.array(before.block) if before.block else seen
            columns[name] = replace(before, block=tuple(block.tolist()))
        state = replace(state, columns=columns)
    return state


def _close(state: SeasonState, seed: str) -> SeasonState:
    if not state.block:
        return state
    name = _season_of(state.block, state.season)
    columns, matched = {}, state.matched
    for place, (column, one) in enumerate(state.columns.items()):
        if sum(one.block) < BLOCK_ROWS:
            columns[column] = replace(one, block=())
            continue
        past = one.past.get(name, ())
        matched = len(past)
        kept = (*past, one.block)
        if len(kept) > KEPT[state.season]:
            kept = kept[len(kept) // 2 :]
        closed = replace(one, past={**one.past, name: kept}, block=())
        columns[column] = _bet(closed, past, one.block, f"{seed} {state.block} {place}") if past else closed
    return replace(state, columns=columns, matched=matched)


def _bet(column: Column, past: tuple[Counts, ...], block: Counts, seed: str) -> Column:
    counts = np.array([*past, block], dtype=np.float64)
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares.mean(axis=0)
    # each block's distance is from all of them, itself too: so they are exchangeable when the blocks are
    distances = (((shares - mean) ** 2)[:, mean > 0] / mean[mean > 0]).sum(axis=1)
    ties = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8])).random()
    larger, equal = (distances > distances[-1]).sum(), (distances == distances[-1]).sum()
    p = min(max(float(larger + ties * equal) / len(distances), EDGE), 1.0)
    gains = np.array([math.log(e) + (e - 1) * math.log(p) for e in POWERS])
    number = column.bets + 1
    capitals = advance(np.array(column.capitals), gains, number)
    effect = float(np.abs(shares[-1] - shares[:-1].mean(axis=0)).sum() / 2)
    return replace(column, capitals=tuple(capitals.tolist()), bets=number, effect=effect)


def _starts(times: Array, season: Season, timezone: str) -> Array:
    """Return the start of each row's block, [n] str, local time."""
    import pandas as pd

    local = pd.to_datetime(times, unit="s", utc=True).tz_convert(timezone).tz_localize(None)
    starts: Array = local.strftime("%Y-%m-%d" if season == "weekday" else "%Y-%m-%dT%H").to_numpy(str)
    return starts


def _season_of(block: str, season: str) -> str:
    """Return which season a block is one of: `13`, `Mon`, or `Mon 13`."""
    day = date.fromisoformat(block[:10]).strftime("%a")
    return {"hour": block[11:], "weekday": day, "hour_of_week": f"{day} {block[11:]}"}[season]


def _runs(values: Array) -> list[tuple[int, int]]:
    """Return first and last + 1 of each run of equal values."""
    if not len(values):
        return []
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    return list(itertools.pairwise(edges))


def _bins(cells: Cells) -> Array:
    """Return the bin of each cell, [cells.size]: so many of equal shares, and one for missing values."""
    shares = np.array(cells.shares[:-1])
    middle = np.cumsum(shares) - shares / 2
    total = shares.sum()
    bins = np.minimum((middle / total * BINS).astype(int), BINS - 1) if total else np.zeros(len(shares), int)
    made: Array = np.append(bins, BINS)
    return made
