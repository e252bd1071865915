"""A confidence sequence of a mean: an interval that may be looked at after every value, for as long as it takes.

A gambler who starts with 1 and, before each value x in [-1, 1], stakes the share c of what he has on
"more than m" has 1 + c ((x + 1) / (m + 1) - 1) times as much after it. As long as each value, given
those before it, is expected to be at most m, his wealth is a supermartingale: it ever reaches 1 / a
with probability at most a (Ville 1939). So does the mean wealth over a grid of shares. The means that
the gamblers of both sides have not yet refuted are an interval that holds the true mean at all times
together (Waudby-Smith & Ramdas 2024, Estimating means of bounded random variables by betting; the
grid in place of a predictable share keeps the wealth a function of the values' counts).

No library that is kept up does this without compiling C++ on the user's machine.
"""

from __future__ import annotations

import math

import numpy as np

from homeostat.dataset import Array
from homeostat.records import Interval

SHARES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Staked on each value: the small ones find a small gain among noise, the large ones a plain gain soon."""


def log_wealth(values: Array, mean: float, counts: Array | None = None) -> float:
    """Return the log of the wealth of those who bet that values [n] in [-1, 1] are more than `mean` in (-1, 1].

    counts: [n], how often each value came; once by default.
    """
    times = np.ones(len(values)) if counts is None else counts
    gains = (values + 1) / (mean + 1) - 1
    logs = np.log1p(np.array(SHARES)[:, None] * gains) @ times
    top = float(logs.max(initial=-math.inf))
    return top + math.log(float(np.exp(logs - top).mean()))


def mean_sequence(values: Array, confidence: float) -> Interval:
    """Return the mean of values [n] in [-1, 1], with ends that at all n together hold it with probability `confidence`.

    Whatever their distribution, and however they depend on one another, as long as each has the same
    mean given those before it. NaN without any; raises ValueError for a value outside.
    """
    from scipy.optimize import brentq

    if not len(values):
        return Interval(math.nan, math.nan, math.nan, confidence)
    if not (np.abs(values) <= 1).all():
        raise ValueError("values must lie in [-1, 1]")
    found, counts = np.unique(values, return_counts=True)
    limit = math.log(2 / (1 - confidence))

    def low_end(values: Array) -> float:
        def excess(mean: float) -> float:
            return log_wealth(values, mean, counts) - limit

        average, least = float(values @ counts / counts.sum()), np.nextafter(-1.0, 0)
        if average <= least or excess(least) <= 0:
            return -1.0
        return float(brentq(excess, least, average, xtol=1e-6))

    return Interval(float(values.mean()), low_end(found), -low_end(-found), confidence)
