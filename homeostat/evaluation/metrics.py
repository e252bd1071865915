"""Metrics of a task on one set of rows, by scikit-learn, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array
from homeostat.errors import ConfigError, DataInvalid
from homeostat.project import Metric, Project
from homeostat.records import Task

LOWER_IS_BETTER = frozenset({"rmse", "mae", "log_loss"})


def higher_is_better(name: str) -> bool:
    """Whether a larger value is the better one; a project's own metrics always say yes."""
    return name not in LOWER_IS_BETTER


def matrix(outputs: Mapping[str, Array] | Array) -> Array:
    """Return the output that the target belongs to (`output`, or the first of several) as [n, k]."""
    if isinstance(outputs, Mapping):
        outputs = outputs["output"] if "output" in outputs else outputs[min(outputs)]
    return outputs.reshape(len(outputs), math.prod(outputs.shape[1:]))


def decisions(outputs: Mapping[str, Array] | Array, task: Task) -> Array:
    """Return the predictions [n]: class indices (int64), or values (float64).

    Two or more columns: the largest; one column in classification: whether it is >= 0.5. A row
    with an answer that is not finite gets the class -1, which no target has.
    """
    scores = matrix(outputs)
    if task == "regression":
        return scores[:, 0].astype(np.float64)
    chosen = scores.argmax(axis=1) if scores.shape[1] > 1 else scores[:, 0] >= 0.5
    return np.where(np.isfinite(scores).all(axis=1), chosen, -1).astype(np.int64)


def probabilities(outputs: Array, classes: int) -> Array:
    """Return float64 [n, max(k, classes)] whose rows sum to 1, from [n, k], or from one sigmoid [n, 1].

    Quantized graphs answer in steps, so that rows may sum to other than 1: they are divided by
    their sum. A row without any probability, or with one that is not finite, becomes uniform.
    """
    values = np.clip(np.nan_to_num(outputs.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)
    if values.shape[1] == 1:
        values = np.hstack([1 - values, values])
    lost = ~np.isfinite(outputs).all(axis=1) | (values.sum(axis=1) == 0)
    values[lost] = 1.0
    values = values / values.sum(axis=1, keepdims=True)
    return np.pad(values, ((0, 0), (0, max(0, classes - values.shape[1]))))


@dataclass(frozen=True)
class Answers:
    """Rows as the metrics want them.

    target, decided: [n] int64 or float64. outputs: [n, k]. chances: [n, classes] float64, empty
    in regression. finite: whether every output is.
    """

    target: Array
    outputs: Array
    decided: Array
    chances: Array
    finite: bool


def read_answers(task: Task, target: Array, outputs: Mapping[str, Array] | Array) -> Answers:
    """Put targets [n] beside outputs; raises DataInvalid when there are no rows or their numbers differ."""
    scores = matrix(outputs)
    if len(target) == 0 or len(target) != len(scores):
        raise DataInvalid(f"{len(target)} targets and {len(scores)} answers cannot be measured; give one for each row")
    finite = bool(np.isfinite(scores).all())
    if task == "regression":
        return Answers(target.astype(np.float64), scores, decisions(scores, task), np.empty((len(scores), 0)), finite)
    wanted = target.astype(np.int64)
    return Answers(wanted, scores, decisions(scores, task), probabilities(scores, int(wanted.max()) + 1), finite)


def _accuracy(a: Answers) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(a.target, a.decided))


def _f1_macro(a: Answers) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(a.target, a.decided, average="macro", zero_division=0.0))


def _log_loss(a: Answers) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(a.target, a.chances, labels=np.arange(a.chances.shape[1])))


def _roc_auc(a: Answers) -> float:
    """Each class against the rest, the plain average over the classes."""
    from sklearn.metrics import roc_auc_score

    if a.chances.shape[1] == 2:
        return float(roc_auc_score(a.target, a.chances[:, 1]))
    return float(roc_auc_score(a.target, a.chances, multi_class="ovr", average="macro"))


def _rmse(a: Answers) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(a.target, a.decided)) if a.finite else math.nan


def _mae(a: Answers) -> float:
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(a.target, a.decided)) if a.finite else math.nan


def _r2(a: Answers) -> float:
    from sklearn.metrics import r2_score

    return float(r2_score(a.target, a.decided)) if a.finite and len(a.target) > 1 else math.nan


BUILT_IN: dict[Task, dict[str, Callable[[Answers], float]]] = {
    "classification": {"accuracy": _accuracy, "f1_macro": _f1_macro, "log_loss": _log_loss, "roc_auc": _roc_auc},
    "regression": {"rmse": _rmse, "mae": _mae, "r2": _r2},
}


def every_class_present(a: Answers) -> bool:
    """Whether each class that the graph can answer is among the targets: only then is there a ROC curve for it."""
    return bool(len(np.unique(a.target)) == a.chances.shape[1])


def own_metrics(project: Project, task: Task) -> dict[str, Metric]:
    """Return the project's further metrics; raises ConfigError when one takes a built-in name."""
    own = dict(project.metrics())
    taken = sorted(set(own) & {name for metrics in BUILT_IN.values() for name in metrics})
    if taken:
        raise ConfigError(f"metrics() of {type(project).__name__} returns {', '.join(taken)}, which {task} has already")
    return own


def own_value(metric: Metric, a: Answers) -> float:
    """Return a project's metric of (target [n], outputs [n, classes], or [n] when there is one column)."""
    outputs = a.outputs[:, 0] if a.outputs.shape[1] == 1 else a.outputs
    return float(metric(a.target, outputs))


def measure(
    project: Project, config: ProjectConfig, target: Array, outputs: Mapping[str, Array] | Array
) -> dict[str, float]:
    """Return every metric of the task and of the project on these rows.

    target: [n]. outputs: [n, k], or output name -> [n, k]. `roc_auc` is left out while a class
    is absent. Regression figures are NaN when an answer is not finite. Raises DataInvalid
    without rows, ConfigError when the project's metrics cannot be used.
    """
    answers = read_answers(config.task, target, outputs)
    return {name: value(answers) for name, value in point_metrics(project, config.task, answers).items()}


def point_metrics(project: Project, task: Task, answers: Answers) -> dict[str, Callable[[Answers], float]]:
    """Return the metrics that these answers allow, by name."""
    found = dict(BUILT_IN[task])
    if task == "classification" and not every_class_present(answers):
        del found["roc_auc"]
    for name, metric in own_metrics(project, task).items():
        found[name] = _named(project, name, metric)
    return found


def _named(project: Project, name: str, metric: Metric) -> Callable[[Answers], float]:
    def value(a: Answers) -> float:
        try:
            return own_value(metric, a)
        except Exception as error:
            raise ConfigError(f"metrics()[{name!r}] of {type(project).__name__} failed: {error!r}") from error

    return value


def primary_of(config: ProjectConfig, names: Mapping[str, object]) -> str:
    """Return the primary metric's name; raises ConfigError when it is not among those that were measured."""
    if config.primary not in names:
        why = "; roc_auc needs every class among the rows" if config.primary == "roc_auc" else ""
        raise ConfigError(f"metric = {config.primary!r} of {config.name} is not measured: use {', '.join(names)}{why}")
    return config.primary
