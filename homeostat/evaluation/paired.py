"""Bootstrap intervals, and the paired one of a difference: whole entities are drawn, and both models see the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from homeostat.config import GateConfig
from homeostat.dataset import Array
from homeostat.evaluation.metrics import Answers
from homeostat.evaluation.weighted import Weighted
from homeostat.records import Interval

CELLS = 4_000_000
"""Draws held at once: bounds the memory of a batch of resamples."""


def _counts(drawn: Array, entity: Array, entities: int) -> Array:
    """Return how often each row was drawn, float64 [b, n], from the entities drawn [b, entities]."""
    b = len(drawn)
    flat = (drawn + np.arange(b)[:, None] * entities).ravel()
    return np.bincount(flat, minlength=b * entities).reshape(b, entities)[:, entity].astype(np.float64)


def metric_intervals(
    metrics: Sequence[Weighted], answers: Answers, gate: GateConfig, seed: int, ids: Array | None
) -> list[Interval]:
    """Return each metric of the answers with its interval; NaN where the rows leave it undefined."""

    def statistic(counts: Array) -> Array:
        return np.stack([metric(answers, counts) for metric in metrics])

    return _intervals(statistic, len(answers.target), gate, seed, ids)


def gain_interval(
    metric: Weighted, better: Answers, worse: Answers, gate: GateConfig, seed: int, ids: Array | None
) -> Interval:
    """Return metric(better) - metric(worse) on the same rows, with its paired interval."""

    def statistic(counts: Array) -> Array:
        return (metric(better, counts) - metric(worse, counts))[None, :]

    return _intervals(statistic, len(better.target), gate, seed, ids)[0]


def _intervals(
    statistic: Callable[[Array], Array], rows: int, gate: GateConfig, seed: int, ids: Array | None
) -> list[Interval]:
    values = statistic(np.ones((1, rows)))[:, 0]
    low, high = bootstrap_ends(
        statistic, rows, resamples=gate.bootstrap, confidence=gate.confidence, seed=seed, ids=ids
    )
    ends = zip(values.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Interval(value, down, up, gate.confidence) for value, down, up in ends]


def bootstrap_ends(
    statistic: Callable[[Array], Array],
    rows: int,
    *,
    resamples: int,
    confidence: float,
    seed: int,
    ids: Array | None = None,
) -> tuple[Array, Array]:
    """Return the low and high ends [m] of percentile intervals (Efron & Tibshirani 1993, chapter 13).

    statistic: counts [b, rows] of how often each row was drawn -> [m, b]; NaN where a resample
    leaves it undefined, and such resamples are left out. ids: [rows] entities; rows that share
    one are drawn together, since they are not independent. Every statistic sees the same
    resamples, so that a difference of two models' metrics is a paired one. With fewer than two
    entities, or no defined resample, the ends are NaN. Equal values give an interval of no width.
    """
    from scipy.stats import bootstrap

    entity = np.arange(rows) if ids is None else np.unique(ids, return_inverse=True)[1].reshape(-1)
    entities = int(entity.max()) + 1 if rows else 0
    if entities < 2:
        ends = np.full(len(statistic(np.ones((1, rows)))), np.nan)
        return ends, ends

    undefined: list[Array] = []

    def of_draws(drawn: Array, axis: int) -> Array:
        del axis  # the last one
        values = statistic(_counts(drawn.reshape(-1, entities), entity, entities))
        undefined.append(np.isnan(values))
        return np.where(undefined[-1], 0.0, values)  # scipy warns of NaN; they are put back below

    found = bootstrap(
        (np.arange(entities),),
        of_draws,
        n_resamples=resamples,
        batch=max(1, CELLS // max(rows, entities)),
        vectorized=True,
        axis=-1,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    tail = (1 - confidence) / 2
    values = np.where(np.concatenate(undefined, axis=-1), np.nan, found.bootstrap_distribution)
    ends = np.array([_ends(row, tail) for row in values])
    return ends[:, 0], ends[:, 1]


def _ends(values: Array, tail: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
