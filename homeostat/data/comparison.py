"""How far a table is from a profile, by counts against fixed edges: the training rows are not read again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.data.expressions import Kinds, category_counts, histograms, kinds_of, statistics
from homeostat.data.profile import ColumnProfile, Profile
from homeostat.data.table import Source, open_table
from homeostat.dataset import Array

if TYPE_CHECKING:
    import ibis.expr.types as ir

FLOOR = 1e-4
"""Share that an empty bin counts as in PSI, which would be infinite."""


@dataclass(frozen=True)
class ColumnDistance:
    """How a column of a window differs from its profile; a distance is None where it cannot be measured.

    These are sizes, not tests: a small window is far from its own reference by chance.
    """

    column: str
    rows: int
    """Values that are neither missing nor infinite."""
    null_share: float
    null_difference: float
    """Null share less the profile's."""
    jensen_shannon: float | None = None
    """Distance in [0, 1]: square root of the divergence in bits (Lin 1991)."""
    psi: float | None = None
    """Population stability index."""
    wasserstein: float | None = None
    """Between the binned values, in standard deviations of the profile; of numbers. What is beyond the
    profile's 0.5 % and 99.5 % quantiles counts as being there, so it never overstates."""
    mean_shift: float | None = None
    """Of the mean, in standard deviations of the profile; of numbers."""
    unseen: float | None = None
    """Share of rows in categories that the profile does not list; of categories."""
    fault: str = ""
    """Why it cannot be compared: absent, re-typed, without any value; or that it is no column of the profile."""


def compare(profile: Profile, source: Source) -> tuple[ColumnDistance, ...]:
    """Hold a window (see `Source`) against a profile, column by column; first those of the profile, then new ones.

    Costs two looks at the window, whatever the size of the training set. An empty window has every
    column without any value. Raises DataInvalid when files are damaged.
    """
    known = [*profile.columns, *([profile.target] if profile.target else [])]
    with open_table(source) as table:
        kinds = kinds_of(table)
        figures = statistics(table, kinds)
        rows = int(figures[""]["rows"] or 0)
        faults = {column.name: _fault(column, table, kinds, figures, rows) for column in known}
        sound = [column for column in known if not faults[column.name] and column.name in table.columns]
        binned = histograms(table, {c.name: c.edges for c in sound if c.edges and c.categories is None})
        listed = category_counts(table, {c.name: [v for v, _ in c.categories] for c in sound if c.categories})
        new = [name for name in table.columns if name not in {column.name for column in known}]
    out = []
    for column in known:
        counts = binned.get(column.name, listed.get(column.name))
        out.append(_distance(column, rows, figures.get(column.name, {}), counts, faults[column.name]))
    return (*out, *(ColumnDistance(name, rows, _share(figures[name]["nulls"], rows), 0.0, fault="new") for name in new))


def _share(count: Any, rows: int) -> float:
    return float(count or 0) / rows if rows else 0.0


def _fault(column: ColumnProfile, table: ir.Table, kinds: Kinds, figures: dict[str, Any], rows: int) -> str:
    name = column.name
    if name not in table.columns:
        return "absent"
    if (not rows or figures[name]["nulls"] == rows) and column.null_share < 1:
        return "without any value"
    was_number = bool(column.edges)
    if was_number and name not in kinds.numbers:
        return f"re-typed: {table.schema()[name]}, was {column.dtype}"
    if was_number and figures[name]["minimum"] is None:
        return "without any finite value"
    if column.categories is not None and not was_number and name not in kinds.texts:
        return f"re-typed: {table.schema()[name]}, was {column.dtype}"
    return ""


def _distance(
    column: ColumnProfile, rows: int, figures: dict[str, Any], counts: Array | None, fault: str
) -> ColumnDistance:
    null_share = _share(figures.get("nulls"), rows) if fault != "absent" else 1.0
    base = ColumnDistance(column.name, 0, null_share, null_share - column.null_share, fault=fault)
    if counts is None or not counts.sum():
        return base
    if column.categories is None:
        before = np.array(column.counts, dtype=np.float64)
    else:
        before = np.array([*(count for _, count in column.categories), column.rest], dtype=np.float64)
    p, q = before / before.sum(), counts / counts.sum()
    number = bool(column.edges) and column.std is not None
    spread = float(column.std or 0.0) or None
    moved = spread is not None and figures["mean"] is not None and column.mean is not None
    return ColumnDistance(
        column=column.name,
        rows=int(counts.sum()),
        null_share=null_share,
        null_difference=null_share - column.null_share,
        jensen_shannon=jensen_shannon(p, q),
        psi=psi(p, q),
        wasserstein=_wasserstein(column, p, q) if number and column.categories is None else None,
        mean_shift=(figures["mean"] - column.mean) / spread if number and moved else None,
        unseen=None if column.categories is None or column.rest else float(q[-1]),
    )


def jensen_shannon(p: Array, q: Array) -> float:
    """Return the Jensen-Shannon distance of two distributions [k], in [0, 1]."""
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(side > 0, side * np.log2(side / middle), 0.0).sum() for side in (p, q)]
    return float(np.sqrt(max(0.0, sum(terms) / 2)))


def psi(p: Array, q: Array) -> float:
    """Return the population stability index of two distributions [k], an empty bin counting as 0.01 %."""
    both_empty = (p == 0) & (q == 0)
    p, q = np.maximum(p, FLOOR), np.maximum(q, FLOOR)
    return float(np.where(both_empty, 0.0, (q - p) * np.log(q / p)).sum())


def _wasserstein(column: ColumnProfile, p: Array, q: Array) -> float | None:
    """Return the area between the two distribution functions at the bins, in standard deviations."""
    if not column.std:
        return None
    width = column.edges[1] - column.edges[0]
    return float(np.abs(np.cumsum(p - q)).sum() * width / column.std)
