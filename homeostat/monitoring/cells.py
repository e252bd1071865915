"""Cells that a column's values fall into: fixed by a few rows of the reference that are then never counted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from homeostat.dataset import Array
from homeostat.monitoring.columns import Kind

if TYPE_CHECKING:
    import pandas as pd

MAX_CUTS = 120
"""With a cell for each cut, one for each gap and one for missing values, codes fit a byte."""
MAX_NAMES = 250
"""Categories with a cell of their own; all others share one."""
MIN_BIN = 0.02
"""Smallest share of a bin that is made of neighboring cells."""


@dataclass(frozen=True)
class Cells:
    """How a column's values become codes.

    Numbers: `cuts`, rising; a cut is a cell (a value that many rows share), and so is each gap.
    Categories: `names`, then one cell for all others. The last cell holds missing values.
    shares: of the rows that fixed the cells, by cell.
    """

    kind: Kind
    cuts: tuple[float, ...]
    names: tuple[str, ...]
    shares: tuple[float, ...]

    @property
    def size(self) -> int:
        """Return the number of cells, at most 252."""
        return (2 * len(self.cuts) + 2) if self.kind == "number" else (len(self.names) + 2)

    @property
    def digest(self) -> str:
        """Return what tells these cells from others."""
        return hashlib.sha256(repr((self.kind, self.cuts, self.names)).encode()).hexdigest()[:16]

    def codes(self, column: pd.Series) -> Array:
        """Return the cell of each value, uint8 [n]. Categories must be text or missing."""
        return _codes(column, self.kind, np.array(self.cuts), self.names)

    def bins(self) -> Array:
        """Return where these shares divide (0, 1), in bins of at least MIN_BIN: edges from 0 to 1."""
        edges, last = [0.0], np.cumsum(self.shares)
        for edge in last[:-1]:
            if edge - edges[-1] >= MIN_BIN and 1 - edge >= MIN_BIN:
                edges.append(float(edge))
        return np.array([*edges, 1.0])


def make_cells(column: pd.Series, kind: Kind) -> Cells:
    """Return cells by the values of `column`: its quantiles, or its most frequent categories in their natural order."""
    cuts: Array = np.array([])
    names: tuple[str, ...] = ()
    if kind == "number":
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        values = values[~np.isnan(values)]
        if len(values):
            cuts = np.unique(np.quantile(values, np.linspace(0, 1, MAX_CUTS), method="inverted_cdf"))
    else:
        names = tuple(sorted(map(str, column.value_counts().index[:MAX_NAMES]), key=_natural))
    codes = _codes(column, kind, cuts, names)
    size = 2 * len(cuts) + 2 if kind == "number" else len(names) + 2
    shares = np.bincount(codes, minlength=size) / max(1, len(codes))
    return Cells(kind, tuple(map(float, cuts)), names, tuple(map(float, shares)))


def _codes(column: pd.Series, kind: Kind, cuts: Array, names: tuple[str, ...]) -> Array:
    if kind == "number":
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        codes = np.searchsorted(cuts, values, "left") + np.searchsorted(cuts, values, "right")
        return np.where(np.isnan(values), 2 * len(cuts) + 1, codes).astype(np.uint8)
    places = {name: place for place, name in enumerate(names)}
    found = column.map(places)
    return found.fillna(len(names)).where(column.notna(), len(names) + 1).to_numpy(dtype=np.uint8)


def _natural(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
