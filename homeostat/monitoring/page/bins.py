"""Binned counts of a column, reference beside window, for small histograms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from homeostat.dataset import Array

if TYPE_CHECKING:
    import pandas as pd

COUNT = 12
"""Bins of a number."""
CATEGORIES = 8
"""Categories that are shown by name; the rest is `other`."""
OUTER = 0.005
"""What lies outside of these quantiles of either side goes into the first or last bin."""


@dataclass(frozen=True)
class Bins:
    """Rows in each bin, the reference's and the window's; `names` says what each bin holds."""

    names: tuple[str, ...]
    reference: tuple[int, ...]
    window: tuple[int, ...]


def bin_columns(reference: pd.DataFrame, window: pd.DataFrame, columns: Iterable[str]) -> dict[str, Bins]:
    """Return the bins of those columns that both frames have, with a value on either side."""
    found = {c: _bins(reference[c], window[c]) for c in columns if c in reference and c in window}
    return {column: bins for column, bins in found.items() if bins is not None}


def _bins(reference: pd.Series, window: pd.Series) -> Bins | None:
    if reference.dtype.kind == "f" or (reference.dtype.kind in "iu" and reference.nunique() > COUNT):
        return _numbers(reference, window)
    return _categories(reference, window)


def _finite(column: pd.Series) -> Array:
    import pandas as pd

    values: Array = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return values[np.isfinite(values)]


def _numbers(reference: pd.Series, window: pd.Series) -> Bins | None:
    before, now = _finite(reference), _finite(window)
    sides = [side for side in (before, now) if len(side)]
    if not sides:
        return None
    ends = np.array([np.quantile(side, [OUTER, 1 - OUTER]) for side in sides])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if not low < high or not np.isfinite(high - low):
        return None
    edges = np.linspace(low, high, COUNT + 1)
    counts = [np.histogram(np.clip(side, low, high), edges)[0].tolist() for side in (before, now)]
    names = tuple(f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges))
    return Bins(names, tuple(counts[0]), tuple(counts[1]))


def _categories(reference: pd.Series, window: pd.Series) -> Bins | None:
    before, now = (column.dropna().map(str).value_counts() for column in (reference, window))
    both = before.add(now, fill_value=0).sort_values(ascending=False, kind="stable")
    if both.empty:
        return None
    shown = sorted(map(str, both.index[:CATEGORIES]))
    counts = [[int(side.get(name, 0)) for name in shown] for side in (before, now)]
    names = tuple(shown)
    if len(both) > CATEGORIES:
        names += ("other",)
        for side, count in zip((before, now), counts, strict=True):
            count.append(int(side.sum()) - sum(count))
    return Bins(names, tuple(counts[0]), tuple(counts[1]))
