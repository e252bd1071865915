"""The columns that are watched: those of the project's frame, and what the model answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from homeostat.contract import MAX_CATEGORIES
from homeostat.dataset import Array
from homeostat.evaluation.metrics import decisions, matrix
from homeostat.project import Project
from homeostat.records import Task

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "category"]

PREDICTION = "model.prediction"
SCORE = "model.score"
TARGET = "model.target"


def watched_frame(
    project: Project,
    task: Task,
    inputs: Mapping[str, Array],
    columns: Mapping[str, tuple[str, ...]],
    outputs: Mapping[str, Array],
) -> pd.DataFrame:
    """Return the project's frame of the inputs with the model's answers beside it, n rows."""
    import pandas as pd

    frame = project.to_frame(inputs, columns).reset_index(drop=True)
    frame.columns = frame.columns.map(str)
    return pd.concat([frame, pd.DataFrame(answer_columns(task, outputs))], axis=1)


def answer_columns(task: Task, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the prediction [n], and for classification the scores [n] that it comes from.

    Scores are watched because a classifier's softmax shows a shift of its inputs better than
    most other detectors (BBSDs: Lipton et al. 2018; Rabanser et al. 2019, Failing Loudly). Two
    classes have one score; more than 20 have the largest alone, so that the family of tests
    stays small.
    """
    scores, prediction = matrix(outputs), decisions(outputs, task)
    if task == "regression":
        return {PREDICTION: prediction}
    if scores.shape[1] <= 2:
        return {PREDICTION: prediction, SCORE: scores[:, -1]}
    if scores.shape[1] > MAX_CATEGORIES:
        return {PREDICTION: prediction, SCORE: scores.max(axis=1)}
    return {PREDICTION: prediction} | {f"{SCORE}_{c}": scores[:, c] for c in range(scores.shape[1])}


def answered_frame(task: Task, outputs: Mapping[str, Array], target: Array) -> pd.DataFrame:
    """Return model.target beside model.prediction, n rows; classes as text."""
    import pandas as pd

    pair = {TARGET: target, PREDICTION: answer_columns(task, outputs)[PREDICTION]}
    if task == "classification":
        pair = {name: values.astype(np.int64).astype(str) for name, values in pair.items()}
    return pd.DataFrame(pair)


def column_kind(reference: pd.Series) -> Kind:
    """Return how a column is tested, as its reference says: few whole numbers, text and flags are categories."""
    if reference.dtype.kind == "f":
        return "number"
    if reference.dtype.kind in "iu" and reference.name != PREDICTION:
        return "category" if reference.nunique() <= MAX_CATEGORIES else "number"
    return "category"
