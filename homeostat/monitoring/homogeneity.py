"""The chi-square test that two samples of a category come from one distribution."""

from __future__ import annotations

import math

import numpy as np

from homeostat.dataset import Array

MIN_EXPECTED = 5.0
"""Smallest expected count at which the chi-square distribution is trusted (Cochran 1954)."""
MAX_CELLS = 50
"""More categories than this are tested as the most frequent ones and `all others`."""


def homogeneity_p(reference: Array, current: Array, level: float, seed: int = 0) -> float:
    """Return the p-value of Pearson's chi-square for the 2 x k table of counts.

    reference, current: counts [k] of the same categories. Both are samples: Evidently's
    `chisquare` takes the reference's shares for exact, and with 142 reference rows and a window
    of 300 alarms 22 % (3 categories) to 69 % (10) of the time at a level of 1 %. Where an
    expected count is under 5, the p-value is counted over tables drawn at random with the same
    margins (Patefield 1981), enough of them that it can fall under `level`.
    """
    from scipy.stats import chi2_contingency

    table = np.array([reference, current], dtype=np.int64)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] > MAX_CELLS:
        order = np.argsort(-table.sum(axis=0), kind="stable")
        rest = table[:, order[MAX_CELLS - 1 :]].sum(axis=1, keepdims=True)
        table = np.hstack([table[:, order[: MAX_CELLS - 1]], rest])
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return 1.0
    expected = _expected(table)
    if expected.min() >= MIN_EXPECTED:
        return float(chi2_contingency(table, correction=False).pvalue)
    return _monte_carlo(table, expected, level, seed)


def _expected(table: Array) -> Array:
    expected: Array = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return expected


def _monte_carlo(table: Array, expected: Array, level: float, seed: int) -> float:
    from scipy.stats import random_table

    draws = min(100_000, max(9_999, math.ceil(20 / level)))
    drawn = random_table(table.sum(axis=1), table.sum(axis=0)).rvs(size=draws, random_state=np.random.default_rng(seed))
    observed = ((table - expected) ** 2 / expected).sum()
    statistics = ((drawn - expected) ** 2 / expected).sum(axis=(1, 2))
    at_least = np.count_nonzero(statistics >= observed * (1 - 1e-12))
    return float((1 + at_least) / (1 + draws))
