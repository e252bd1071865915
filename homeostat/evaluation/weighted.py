"""The task metrics of many resamples at once, from how often each row was drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from homeostat.dataset import Array
from homeostat.evaluation.metrics import Answers, own_metrics, own_value
from homeostat.project import Metric, Project
from homeostat.records import Task

Weighted = Callable[[Answers, Array], Array]
"""(answers to n rows, counts [b, n]) -> [b]: the metric of b resamples, NaN where it is undefined."""


def _mean(per_row: Array, counts: Array) -> Array:
    mean: Array = counts @ per_row / counts.sum(axis=1)
    return mean


def _divide(above: Array, below: Array) -> Array:
    """Return above / below, NaN where below is 0."""
    quotient: Array = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return quotient


def _average(values: Array) -> Array:
    """Return the mean [b] over the defined ones of [b, classes], NaN where there is none."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


def _accuracy(a: Answers, counts: Array) -> Array:
    return _mean((a.target == a.decided).astype(np.float64), counts)


def _f1_macro(a: Answers, counts: Array) -> Array:
    """F1 = 2 TP / (2 TP + FP + FN) of each class that is drawn or answered, averaged."""
    classes = np.union1d(a.target, a.decided)
    wanted = (a.target[:, None] == classes).astype(np.float64)
    decided = (a.decided[:, None] == classes).astype(np.float64)
    return _average(_divide(2 * (counts @ (wanted * decided)), counts @ (wanted + decided)))


def _log_loss(a: Answers, counts: Array) -> Array:
    tiny = np.finfo(np.float64).eps
    chance = a.chances[np.arange(len(a.target)), a.target]
    return _mean(-np.log(np.clip(chance, tiny, 1 - tiny)), counts)


def _auc(positive: Array, scores: Array, counts: Array) -> Array:
    """Area under the ROC curve as the Mann-Whitney statistic, ties counting half (Hanley & McNeil 1982)."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    drawn = counts[:, order]
    up = np.add.reduceat(drawn * positive[order], starts, axis=1)
    down = np.add.reduceat(drawn * ~positive[order], starts, axis=1)
    beaten = np.cumsum(down, axis=1) - 0.5 * down
    return _divide((up * beaten).sum(axis=1), up.sum(axis=1) * down.sum(axis=1))


def _roc_auc(a: Answers, counts: Array) -> Array:
    classes = [1] if a.chances.shape[1] == 2 else range(a.chances.shape[1])
    return _average(np.stack([_auc(a.target == c, a.chances[:, c], counts) for c in classes], axis=1))


def _rmse(a: Answers, counts: Array) -> Array:
    return np.sqrt(_mean((a.target - a.decided) ** 2, counts))


def _mae(a: Answers, counts: Array) -> Array:
    return _mean(np.abs(a.target - a.decided), counts)


def _r2(a: Answers, counts: Array) -> Array:
    """1 - SSE / SST; a resample whose targets are all equal leaves it undefined."""
    centered = a.target - a.target.mean()  # SST by moments loses digits far from zero
    spread = _mean(centered**2, counts) - _mean(centered, counts) ** 2
    spread[spread <= 1e-12 * np.mean(centered**2)] = 0.0
    return 1 - _divide(_mean((a.target - a.decided) ** 2, counts), spread)


BUILT_IN: dict[Task, dict[str, Weighted]] = {
    "classification": {"accuracy": _accuracy, "f1_macro": _f1_macro, "log_loss": _log_loss, "roc_auc": _roc_auc},
    "regression": {"rmse": _rmse, "mae": _mae, "r2": _r2},
}


def _own(metric: Metric) -> Weighted:
    """Return a project's metric as one of many resamples; what it cannot say of a resample is undefined there."""

    def one(a: Answers, drawn: Array) -> float:
        rows = np.repeat(np.arange(len(drawn)), drawn.astype(np.int64))
        part = Answers(a.target[rows], a.outputs[rows], a.decided[rows], a.chances[rows], a.finite)
        try:
            value = own_value(metric, part)
        except (ValueError, ZeroDivisionError):  # such as a resample without one of the classes
            return np.nan
        return value if np.isfinite(value) else np.nan

    def many(a: Answers, counts: Array) -> Array:
        return np.array([one(a, drawn) for drawn in counts], dtype=np.float64)

    return many


def weighted_metrics(project: Project, task: Task) -> dict[str, Weighted]:
    """Return the metrics of the task and of the project, by name."""
    return BUILT_IN[task] | {name: _own(metric) for name, metric in own_metrics(project, task).items()}
