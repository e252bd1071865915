"""How much worse an exported graph answers when one column of its inputs is permuted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from homeostat.contract import MAX_COLUMNS
from homeostat.dataset import Array, Dataset
from homeostat.evaluation.metrics import matrix, probabilities
from homeostat.inference import predict_all, session
from homeostat.project import Project
from homeostat.records import Task

if TYPE_CHECKING:
    import pandas as pd

REPEATS = 5
ROWS = 2_000
ANSWERS = 200_000
"""Answers that all permutations together ask for at most: with many columns fewer rows are permuted."""
MIN_ROWS = 20


def permutation_importance(
    project: Project, task: Task, data: Dataset, onnx: bytes, seed: int, *, repeats: int = REPEATS
) -> dict[str, float]:
    """Return watched column -> rise of the mean loss when it is permuted, never below 0 (Breiman 2001, section 10).

    data: rows the model was not fitted on. The loss is half the Brier score in classification,
    which lies in [0, 1], and the absolute error in regression, in units of the target. Only a
    column of `to_frame` that is a column of an input as it stands has an importance: images and
    other dense tensors have none, nor does a column that a project derives. Empty with fewer than
    20 rows. The same arguments give the same figures.
    """
    if len(data) < MIN_ROWS:
        return {}
    places = dict(_watched(project, data))
    rng = np.random.default_rng(seed)
    limit = min(ROWS, max(MIN_ROWS, ANSWERS // (repeats * max(1, len(places)))))
    if len(data) > limit:
        data = data.take(np.sort(rng.choice(len(data), limit, replace=False)))
    graph = session(onnx)

    def loss(inputs: Mapping[str, Array]) -> float:
        return float(row_losses(task, data.target, predict_all(graph, inputs)).mean())

    whole = loss(data.inputs)
    found = {}
    for column, (name, place) in places.items():
        rises = [loss({**data.inputs, name: _permuted(data.inputs[name], place, rng)}) - whole for _ in range(repeats)]
        found[column] = max(0.0, float(np.mean(rises)))
    return found


def row_losses(task: Task, target: Array, outputs: Mapping[str, Array] | Array) -> Array:
    """Return the loss [n] of each row: half its Brier score (Brier 1950), or its absolute error.

    An answer that is not finite counts as one without any knowledge: uniform, or 0 in regression.
    """
    scores = matrix(outputs)
    if task == "regression":
        return np.abs(target.astype(np.float64) - np.nan_to_num(scores[:, 0].astype(np.float64), posinf=0, neginf=0))
    classes = target.astype(np.int64)
    chances = probabilities(scores, int(classes.max()) + 1)
    own = chances[np.arange(len(classes)), classes]
    losses: Array = ((chances**2).sum(axis=1) - 2 * own + 1) / 2
    return losses


def _watched(project: Project, data: Dataset) -> Iterator[tuple[str, tuple[str, int | None]]]:
    """Yield watched column -> (input, position in it) where the project's frame holds that very column."""
    frame = project.to_frame(data.inputs, data.columns)
    small = {name: v for name, v in data.inputs.items() if v.ndim == 1 or (v.ndim == 2 and v.shape[1] <= MAX_COLUMNS)}
    for name, values in small.items():
        named = Project.to_frame(project, {name: values}, data.columns)
        for place, column in enumerate(named.columns):
            if column in frame.columns and _equal(frame[column], named[column]):
                yield str(column), (name, None if values.ndim == 1 else place)


def _equal(watched: pd.Series, column: pd.Series) -> bool:
    if watched.dtype.kind not in "fiub":
        return False
    return bool(np.array_equal(watched.to_numpy(np.float64), column.to_numpy(np.float64), equal_nan=True))


def _permuted(values: Array, place: int | None, rng: np.random.Generator) -> Array:
    if place is None:
        return rng.permutation(values)
    changed = values.copy()
    changed[:, place] = rng.permutation(values[:, place])
    return changed
