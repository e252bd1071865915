"""The metric estimated without labels, where its back-test beats `no change`; otherwise it abstains and says why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array
from homeostat.evaluation.metrics import decisions, matrix, probabilities
from homeostat.monitoring.columns import watched_frame
from homeostat.monitoring.performance import usable_labels
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows
from homeostat.project import Project
from homeostat.records import Estimate, Task

logger = logging.getLogger(__name__)

MIN_REFERENCE = 200
"""Rows of the reference that an estimator is fitted on at least."""
MIN_WINDOWS = 5
"""Past mature windows that a back-test needs: with fewer, chance alone may beat the constant."""
MIN_LABELS = 30
"""Labels of a window without which its realized metric is too rough to test an estimate on."""
ALPHA = 0.05

RowEstimates = Callable[[Mapping[str, Array], Mapping[str, Array]], Array]
"""(inputs, outputs) -> [n]: the expected score of each answer, 1 or 0 for right or wrong, or its error."""


@dataclass(frozen=True)
class Estimator:
    """How a metric is expected to be, from rows without labels."""

    metric: str
    """accuracy; mae or, where it is the primary metric, rmse."""
    rows: RowEstimates
    constant: float
    """The metric of the reference: `no change`."""

    def estimate(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> float:
        """Return the metric that is expected of these rows."""
        mean = float(self.rows(inputs, outputs).mean())
        return float(np.sqrt(max(0.0, mean))) if self.metric == "rmse" else mean


def confidence(outputs: Mapping[str, Array]) -> Array:
    """Return [n]: the probability that a classifier gives to the class it answers."""
    largest: Array = probabilities(matrix(outputs), 2).max(axis=1)
    return largest


def right(outputs: Mapping[str, Array], target: Array) -> Array:
    """Return [n] float64: 1 where the class answered is the target."""
    hit: Array = decisions(outputs, "classification") == target
    return hit.astype(np.float64)


def fit_estimator(project: Project, config: ProjectConfig, reference: Reference, seed: int) -> Estimator | None:
    """Fit on the reference's rows; None when it has fewer than 200 with a finite answer.

    Classification: the confidence of each answer, calibrated by isotonic regression, is the chance
    that it is right (Garg et al. 2022; the expectation is NannyML's CBPE for accuracy). Regression:
    gradient boosting of the error on the watched columns and the answer. Both hold while the
    target, given what they see, is as it was: neither can see a change of concept.
    """
    finite = np.isfinite(matrix(reference.outputs)).all(axis=1) & np.isfinite(reference.target)
    if finite.sum() < MIN_REFERENCE:
        return None
    inputs, outputs = ({k: v[finite] for k, v in part.items()} for part in (reference.inputs, reference.outputs))
    target = reference.target[finite]
    if config.task == "classification":
        score = right(outputs, target)
        return Estimator("accuracy", _calibrated(confidence(outputs), score), float(score.mean()))
    metric = "rmse" if config.primary == "rmse" else "mae"
    errors = np.abs(decisions(outputs, "regression") - target) ** (2 if metric == "rmse" else 1)
    mean = float(errors.mean())
    constant = float(np.sqrt(mean)) if metric == "rmse" else mean
    return Estimator(metric, _error_model(project, reference.columns, inputs, outputs, errors, seed), constant)


def _calibrated(known: Array, score: Array) -> RowEstimates:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(known, score)

    def rows(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Array:
        del inputs
        expected: Array = model.predict(confidence(outputs))
        return expected

    return rows


def _error_model(
    project: Project,
    columns: Mapping[str, tuple[str, ...]],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    errors: Array,
    seed: int,
) -> RowEstimates:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    task: Task = "regression"

    def features(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Array:
        frame = watched_frame(project, task, inputs, columns, outputs)
        numbers = frame.select_dtypes(["number", "bool"]).to_numpy(np.float64)
        return np.where(np.isfinite(numbers), numbers, np.nan)

    model = HistGradientBoostingRegressor(max_iter=100, min_samples_leaf=20, random_state=seed)
    known = features(inputs, outputs)
    with threadpool_limits(1, user_api="openmp"):  # threads that wait for a busy core cost ten times what they save
        model.fit(known, errors)

    def rows(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Array:
        asked = features(inputs, outputs)
        with threadpool_limits(1, user_api="openmp"):
            expected: Array = np.maximum(model.predict(asked), 0.0)
        return expected

    return rows


def realized_metric(metric: str, task: Task, labelled: TrafficRows) -> float:
    """Return accuracy, mae or rmse of labelled rows."""
    if task == "classification":
        return float(right(labelled.outputs, labelled.labels).mean())
    errors = np.abs(decisions(labelled.outputs, task) - labelled.labels)
    return float(np.sqrt(np.mean(errors**2)) if metric == "rmse" else np.mean(errors))


def estimate_metric(
    estimator: Estimator | None, config: ProjectConfig, rows: TrafficRows, past: Sequence[TrafficRows]
) -> Estimate:
    """Return the metric expected of `rows`, held against what it would have said of past mature windows.

    past: earlier windows of the same version that are mature; those with fewer than 30 usable
    labels are left out. It is shown when, over at least 5 of them, its mean absolute error is
    under that of the reference's metric, and a one-sided Wilcoxon test of the paired errors says
    that this is not chance (p <= 0.05).
    """
    fallback = "accuracy" if config.task == "classification" else "rmse" if config.primary == "rmse" else "mae"
    if estimator is None:
        reason = f"the reference has fewer than {MIN_REFERENCE} usable rows: deploy a version with more"
        return Estimate(fallback, float("nan"), shown=False, error=None, constant_error=None, reason=reason)
    answered = _finite(rows)
    if not len(answered):
        reason = "the window has no finite answer"
        return Estimate(estimator.metric, float("nan"), shown=False, error=None, constant_error=None, reason=reason)
    value = estimator.estimate(answered.inputs, answered.outputs)
    shown, reason, error, constant = _back_test(estimator, config.task, past)
    return Estimate(estimator.metric, value, shown=shown, error=error, constant_error=constant, reason=reason)


def _finite(rows: TrafficRows) -> TrafficRows:
    """Return the rows whose answer is finite."""
    if not len(rows):
        return rows
    return rows.take(np.flatnonzero(np.isfinite(matrix(rows.outputs)).all(axis=1)))


def _back_test(
    estimator: Estimator, task: Task, past: Sequence[TrafficRows]
) -> tuple[bool, str, float | None, float | None]:
    """Return whether the estimate is shown, why, and the mean absolute errors of the estimate and of the constant."""
    from scipy.stats import wilcoxon

    pairs = []
    for window in past:
        labelled = _finite(usable_labels(window, task))
        if len(labelled) < MIN_LABELS:
            continue
        found = realized_metric(estimator.metric, task, labelled)
        said = estimator.estimate(labelled.inputs, labelled.outputs)
        pairs.append((abs(said - found), abs(estimator.constant - found)))
    if len(pairs) < MIN_WINDOWS:
        return False, f"{len(pairs)} past mature windows with {MIN_LABELS} labels, {MIN_WINDOWS} are needed", None, None
    errors = np.array(pairs)
    error, constant = (float(mean) for mean in errors.mean(axis=0))
    reason = f"over {len(pairs)} past windows it was {error:.3g} off, `no change` {constant:.3g}"
    gains = errors[:, 1] - errors[:, 0]
    if error >= constant:
        return False, reason, error, constant
    p_value = float(wilcoxon(gains, alternative="greater").pvalue)
    return p_value <= ALPHA, f"{reason} (p = {p_value:.2g})", error, constant
