"""Drift over a version's life: one check after another, each live row counted once, with one error rate for all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import DataInvalid
from homeostat.monitoring.cells import MAX_CUTS, Cells, make_cells
from homeostat.monitoring.columns import Kind
from homeostat.monitoring.exchangeability import BETS, advance, log_bets, log_capital, ranks
from homeostat.monitoring.seasons import SeasonState

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
CELL_ROWS = 4 * MAX_CUTS
"""Rows of the reference that fix the cells, at most; they are not counted. A quarter of a smaller one."""


@dataclass(frozen=True)
class ColumnState:
    """What one column has shown up to the last check."""

    cells: str
    """Digest of the cells that it was counted by."""
    counts: tuple[int, ...]
    """Live rows by cell."""
    capitals: tuple[float, ...]
    """Log capital of each bet."""
    learned: tuple[float, ...]


@dataclass(frozen=True)
class DriftState:
    """What one version's checks have counted."""

    checks: int = 0
    until: float = -math.inf
    """Event time, unix seconds, of the newest row counted: rows up to it do not count again."""
    columns: Mapping[str, ColumnState] = field(default_factory=dict)
    seasons: SeasonState = field(default_factory=SeasonState)

    def to_json(self) -> str:
        """Return text that `from_json` reads."""
        until = None if math.isinf(self.until) else self.until
        columns = {name: asdict(state) | {"capitals": _numbers(state.capitals)} for name, state in self.columns.items()}
        values = {"format": FORMAT, "checks": self.checks, "until": until, "columns": columns}
        return json.dumps(values | ({"seasons": self.seasons.write()} if self.seasons.season else {}))

    @classmethod
    def from_json(cls, text: str) -> DriftState:
        """Read what `to_json` wrote; raises DataInvalid when it is something else."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r:.60}, not {FORMAT}")
            until = -math.inf if values["until"] is None else float(values["until"])
            seasons = SeasonState.read(values["seasons"]) if values.get("seasons") else SeasonState()
            return cls(int(values["checks"]), until, {n: _column(v) for n, v in values["columns"].items()}, seasons)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataInvalid(f"the state of the drift checks cannot be read: {error!s:.200}") from error


def _numbers(values: tuple[float, ...]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _column(values: dict[str, Any]) -> ColumnState:
    capitals = tuple(-math.inf if value is None else float(value) for value in values["capitals"])
    if len(capitals) != BETS:
        raise ValueError(f"{len(capitals)} bets, not {BETS}")
    counts, learned = tuple(map(int, values["counts"])), tuple(map(float, values["learned"]))
    return ColumnState(str(values["cells"]), counts, capitals, learned)


@dataclass(frozen=True)
class Check:
    """One check: the state after it, and what each column says."""

    state: DriftState
    log_e: Mapping[str, float]
    """Natural logarithm of each column's evidence over all checks."""
    log_now: Mapping[str, float]
    """... of this check's fresh rows alone; below 0 they speak for no change."""
    effect: Mapping[str, float]
    """Largest distance between the distribution functions (numbers) or half the sum of the shares' differences
    (categories) of this window and the reference, in [0, 1]; in numbers the missing count as the largest."""


@dataclass(frozen=True)
class Pool:
    """The reference as live rows are held against it: cells of each column, and its other rows by cell."""

    kinds: Mapping[str, Kind]
    cells: Mapping[str, Cells]
    counts: Mapping[str, Array]


def make_pool(reference: pd.DataFrame, kinds: Mapping[str, Kind]) -> Pool:
    """Return the pool of the columns of `kinds`, whose categories are text or missing."""
    fixing = _fixing(len(reference))
    cells = {name: make_cells(reference[name][fixing], kind) for name, kind in kinds.items()}
    rest = reference[~fixing]
    counts = {name: np.bincount(one.codes(rest[name]), minlength=one.size) for name, one in cells.items()}
    return Pool(dict(kinds), cells, counts)


def check(pool: Pool, current: pd.DataFrame, state: DriftState, times: Array | None, seed: str) -> Check:
    """Count the rows of `current` that are new, in their order, in every column of the pool.

    times: event times [n] of `current`, unix seconds, rising; without them every row is new. seed:
    names the version: it and the number of the check draw what breaks ties, so that a replay gives
    the same. A column whose cells are others than before (another reference, other masking) begins anew.
    """
    new = np.ones(len(current), bool) if times is None else times > state.until
    names, number = list(pool.cells), state.checks + 1
    codes = np.empty((len(current), len(names)), dtype=np.uint8)
    for place, name in enumerate(names):
        codes[:, place] = pool.cells[name].codes(current[name])
    before = [_continued(state.columns.get(name), pool.cells[name]) for name in names]
    p = _ranks(pool, before, codes[new], f"{seed} {number}")
    columns, log_e, log_now, effect = dict(state.columns), {}, {}, {}
    for place, name in enumerate(names):
        cells = pool.cells[name]
        columns[name], log_now[name] = _count(before[place], cells, codes[new, place], p[:, place], number)
        log_e[name] = log_capital(np.array(columns[name].capitals))
        seen = np.bincount(codes[:, place], minlength=cells.size)
        effect[name] = _distance(pool.kinds[name], pool.counts[name], seen)
    until = state.until if times is None or not len(times) else max(state.until, float(times.max()))
    return Check(DriftState(number, until, columns, state.seasons), log_e, log_now, effect)


def _fixing(rows: int) -> Array:
    """Return [rows] bool: the reference's rows that fix the cells, spread evenly over it."""
    chosen = np.zeros(rows, bool)
    chosen[np.unique(np.linspace(0, rows - 1, min(rows // 4, CELL_ROWS)).astype(int))] = True
    return chosen


def _continued(column: ColumnState | None, cells: Cells) -> ColumnState:
    if column is not None and column.cells == cells.digest and len(column.counts) == cells.size:
        return column
    return ColumnState(cells.digest, (0,) * cells.size, (-math.inf,) * BETS, (0.0,) * (len(cells.bins()) - 1))


def _ranks(pool: Pool, columns: list[ColumnState], codes: Array, seed: str) -> Array:
    """Return the ranks [n, d] of new rows among the pool, the rows counted before, and one another."""
    counts = np.zeros((codes.shape[1], 256), dtype=np.int64)
    for place, (column, of_reference) in enumerate(zip(columns, pool.counts.values(), strict=True)):
        counts[place, : len(of_reference)] = of_reference + np.array(column.counts)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
    return ranks(codes, counts, rng.random(codes.shape))


def _count(column: ColumnState, cells: Cells, codes: Array, p: Array, number: int) -> tuple[ColumnState, float]:
    gains, learned, counts = np.zeros(BETS), np.array(column.learned), np.array(column.counts)
    if len(codes):
        gains, learned = log_bets(p, cells.bins(), learned)
        counts = counts + np.bincount(codes, minlength=cells.size)
    capitals = advance(np.array(column.capitals), gains, number)
    state = replace(
        column, counts=tuple(counts.tolist()), capitals=tuple(capitals.tolist()), learned=tuple(learned.tolist())
    )
    return state, log_capital(gains)


def _distance(kind: Kind, before: Array, now: Array) -> float:
    if not before.sum() or not now.sum():
        return 0.0
    difference = now / now.sum() - before / before.sum()
    if kind == "number":
        return float(np.abs(np.cumsum(difference)).max())
    return float(np.abs(difference).sum() / 2)


__all__ = ["Check", "ColumnState", "DriftState", "Pool", "check", "make_pool"]
