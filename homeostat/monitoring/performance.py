"""How well the live version answers: quality on labelled rows, the version before it on the same rows, latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array
from homeostat.errors import ConfigError
from homeostat.evaluation.evaluate import intervals
from homeostat.evaluation.fairness import group_figures
from homeostat.evaluation.label_quality import find_label_issues
from homeostat.evaluation.metrics import decisions, matrix, own_metrics
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows
from homeostat.monitoring.window import possible_classes
from homeostat.project import Metric, Project
from homeostat.records import Fairness, Interval, LabelQuality, Task

MIN_LABELLED = 10
"""With fewer labelled rows an interval says nothing."""
ERROR_QUANTILE = 0.95
"""In regression an error as large as this quantile of the reference's costs 1, a larger one no more."""

RowLosses = Callable[[Array, Mapping[str, Array]], Array]
"""(labels [n], outputs by name) -> [n] in [0, 1]: what each answer costs."""


def row_losses(project: Project, config: ProjectConfig, reference: Reference) -> RowLosses:
    """Return how an answer's loss is computed.

    With config.monitor.harm_metric 1 minus that metric of the project, row by row. Else in
    classification 1 for a wrong class, and in regression the absolute error, as a share of the
    ERROR_QUANTILE of the reference's, at most 1. An answer that is not finite costs 1.
    Raises ConfigError when the project has no such metric; so does the function returned, when
    its value for a row is not in [0, 1].
    """
    name = config.monitor.harm_metric
    if name:
        own = own_metrics(project, config.task)
        if name not in own:
            raise ConfigError(
                f"monitor.harm_metric = {name!r} is not one of metrics() of {type(project).__name__}: "
                f"{', '.join(own) or 'it has none'}"
            )
        return _metric_losses(name, own[name])
    if config.task == "classification":
        return lambda labels, outputs: (decisions(outputs, "classification") != labels).astype(np.float64)
    shares = error_shares(reference)
    return lambda labels, outputs: np.minimum(shares(labels, outputs), 1.0)


def error_shares(reference: Reference) -> RowLosses:
    """Return a regression's absolute errors as shares of the ERROR_QUANTILE of the reference's; Inf if not finite."""
    errors = np.abs(decisions(reference.outputs, "regression") - reference.target)
    errors = errors[np.isfinite(errors)]
    scale = float(np.quantile(errors, ERROR_QUANTILE)) if len(errors) else 0.0

    def shares(labels: Array, outputs: Mapping[str, Array]) -> Array:
        error = np.abs(decisions(outputs, "regression") - labels)
        share = error / scale if scale > 0 else (error > 0).astype(np.float64)
        found: Array = np.where(np.isfinite(share), share, np.inf)
        return found

    return shares


def _metric_losses(name: str, metric: Metric) -> RowLosses:
    def losses(labels: Array, outputs: Mapping[str, Array]) -> Array:
        scores = matrix(outputs)
        scores = scores[:, 0] if scores.shape[1] == 1 else scores
        found = np.ones(len(labels))
        for row in np.flatnonzero(np.isfinite(scores.reshape(len(labels), -1)).all(axis=1)):
            value = float(metric(labels[row : row + 1], scores[row : row + 1]))
            if not 0 <= value <= 1:
                raise ConfigError(
                    f"monitor.harm_metric = {name!r} is {value:g} for one row; harm takes a metric in [0, 1] that "
                    "is defined for each row alone"
                )
            found[row] = 1 - value
        return found

    return losses


def usable_labels(rows: TrafficRows, task: Task) -> TrafficRows:
    """Return the rows whose label can be held against the answer: in classification, one of its classes."""
    return rows.take(_usable(rows, task))


def _usable(rows: TrafficRows, task: Task) -> Array:
    if task == "regression" or not rows.labelled.any():
        return rows.labelled
    usable: Array = rows.labelled & possible_classes(rows.labels, max(2, matrix(rows.outputs).shape[1]))
    return usable


def live_fairness(config: ProjectConfig, rows: TrafficRows) -> tuple[Fairness, ...]:
    """Return the figures of the groups in gate.sensitive, as requests name them in their slices.

    Selection rates are of all rows, errors of those with a usable label.
    """
    if not config.gate.sensitive or not len(rows):
        return ()
    labels = np.where(_usable(rows, config.task), rows.labels, np.nan)
    return group_figures(config.task, labels, rows.outputs, rows.slices, config.gate)


def live_labels(config: ProjectConfig, reference: Reference, labelled: TrafficRows) -> LabelQuality | None:
    """Return which labels of live rows are probably wrong, beside the share among the reference's."""
    if config.task == "regression" or not len(labelled):
        return None
    names = [f"request {i} row {k}" for i, k in zip(labelled.request_ids, labelled.places, strict=True)]
    found = find_label_issues(labelled.labels, labelled.outputs, names)
    usual = find_label_issues(reference.target, reference.outputs, [""] * len(reference))
    return replace(found, usual=usual.share)


def live_quality(project: Project, config: ProjectConfig, labelled: TrafficRows, seed: int) -> dict[str, Interval]:
    """Return each metric of the answers that were given, with its bootstrap interval; empty with too few labels."""
    if len(labelled) < MIN_LABELLED:
        return {}
    return intervals(project, config, labelled.labels, labelled.outputs, seed, independent_ids(labelled))


def independent_ids(rows: TrafficRows) -> Array:
    """Return [n] str: the entity that a row is about, or the row itself where none was sent.

    An interval draws whole entities: ten answers about one patient are not ten patients.
    """
    own = np.char.add("row ", np.arange(len(rows)).astype(str))
    ids: Array = np.where(rows.entity_ids == "", own, np.char.add("id ", rows.entity_ids))
    return ids


def latency(rows: TrafficRows) -> tuple[float | None, float | None]:
    """Return p50 and p99 of the requests' milliseconds, None without any."""
    milliseconds = rows.request_milliseconds
    if not len(milliseconds):
        return None, None
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return float(p50), float(p99)
