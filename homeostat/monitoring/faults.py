"""Broken columns that Evidently reports as no drift, or crashes on: absent, re-typed, empty, mostly missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def clean(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with infinite values as missing ones: no test can rank them."""
    return frame.replace([np.inf, -np.inf], np.nan)


def structural_faults(reference: pd.DataFrame, current: pd.DataFrame) -> dict[str, str]:
    """Return column -> what is wrong with it, for what needs no statistics: absent, re-typed, without any value."""
    faults = {}
    for column in reference.columns:
        if column not in current.columns:
            faults[column] = "absent"
        elif current[column].isna().all() and not reference[column].isna().all():
            faults[column] = "without any value"
        elif _is_number(reference[column]) != _is_number(current[column]):
            faults[column] = f"re-typed: {current[column].dtype}, was {reference[column].dtype}"
    return faults


def null_tests(reference: pd.DataFrame, current: pd.DataFrame) -> list[str]:
    """Return the columns whose share of missing values can be tested: where either side misses any.

    Fisher's test is conditional on the total of missing values, so a column without any cannot
    alarm and need not be counted among the tests that share the false-alarm rate.
    """
    shared = [column for column in reference.columns if column in current.columns]
    return [c for c in shared if reference[c].isna().any() or current[c].isna().any()]


def null_faults(
    reference: pd.DataFrame, current: pd.DataFrame, columns: list[str], level: float, slack: float
) -> dict[str, str]:
    """Return column -> how much more of it is missing than in the reference.

    A fault needs both: a one-sided Fisher p-value <= level, and a share that is more than
    `slack` above the reference's.
    """
    from scipy.stats import fisher_exact

    faults = {}
    for column in columns:
        now, before = int(current[column].isna().sum()), int(reference[column].isna().sum())
        share, usual = now / len(current), before / len(reference)
        table = [[now, len(current) - now], [before, len(reference) - before]]
        if share > usual + slack and fisher_exact(table, alternative="greater").pvalue <= level:
            faults[column] = f"{share:.0%} missing, was {usual:.0%}"
    return faults


def unseen_faults(reference: pd.DataFrame, current: pd.DataFrame, columns: list[str], level: float) -> dict[str, str]:
    """Return column -> which values it has that the reference never has, in more rows than chance explains.

    columns: of categories, as text or missing. One-sided Fisher p-value <= level: a rare value that a
    small reference happens to lack is no fault.
    """
    from scipy.stats import fisher_exact

    faults = {}
    for column in columns:
        known = reference[column].dropna()
        values = current[column].dropna()
        new = values[~values.isin(known.unique())]
        if len(new) and fisher_exact([[len(new), len(values) - len(new)], [0, len(known)]], "greater").pvalue <= level:
            shown = ", ".join(f"{value!r:.40}" for value in new.value_counts().index[:3])
            more = f" and {new.nunique() - 3} more" if new.nunique() > 3 else ""
            faults[column] = f"never seen before, in {len(new) / len(values):.0%} of its values: {shown}{more}"
    return faults


def unit_change(reference: pd.Series, current: pd.Series) -> str:
    """Return how current's values follow from the reference's by a factor and an offset, as another unit's do.

    Held against the quantiles from 5 % to 95 %; empty unless they agree within 5 % of their range with a factor
    that is at least a tenth away from 1.
    """
    shares = np.linspace(0.05, 0.95, 19)
    before, now = (np.nanquantile(column.to_numpy(dtype=np.float64), shares) for column in (reference, current))
    spread = before[-1] - before[0]
    if not spread > 0 or not now[-1] > now[0]:
        return ""
    factor, offset = np.polyfit(before, now, 1)
    if np.abs(now - factor * before - offset).max() > 0.05 * (now[-1] - now[0]) or abs(factor - 1) < 0.1:
        return ""
    if abs(offset) < 0.05 * factor * max(spread, float(np.abs(before).max())):
        return f"values are {factor:.3g} times those of the reference, as in another unit"
    return f"values are {factor:.3g} times those of the reference and {offset:+.3g}, as in another unit"


def _is_number(column: pd.Series) -> bool:
    return column.dtype.kind in "fiub"
