"""How a model answered held-out rows: scores, calibration and metrics, for the reference profile of its version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.data.profile import CalibrationBin, ModelProfile, SliceProfile
from homeostat.data.profiler import calibration_bins, make_profile
from homeostat.dataset import Array, Dataset
from homeostat.evaluation.evaluate import intervals
from homeostat.evaluation.metrics import matrix
from homeostat.evaluation.slices import MAX_VALUES, declared_slices
from homeostat.inference import predict
from homeostat.monitoring.columns import answer_columns
from homeostat.monitoring.estimate import confidence, right
from homeostat.project import Project

if TYPE_CHECKING:
    from homeostat.records import Interval


def profile_model(project: Project, config: ProjectConfig, data: Dataset, onnx: bytes, seed: int) -> ModelProfile:
    """Profile the graph's answers to rows that it was not fitted on, whole and by each value of each slice.

    data: validation and calibration part. Metrics come with their bootstrap intervals, and are left
    out where too few rows give none; of a slice the 20 most frequent values are kept. Raises
    ConfigError as `declared_slices` does.
    """
    import pandas as pd

    outputs = predict(onnx, data.inputs)
    scores = make_profile(pd.DataFrame(answer_columns(config.task, outputs)), seed=seed).columns
    bins: tuple[CalibrationBin, ...] = ()
    if config.task == "classification":
        finite = np.isfinite(matrix(outputs)).all(axis=1)
        kept = {name: values[finite] for name, values in outputs.items()}
        bins = calibration_bins(confidence(kept), right(kept, data.target[finite]) == 1)

    def measured(rows: Array) -> dict[str, Interval]:
        part = {name: values[rows] for name, values in outputs.items()}
        ids = None if data.ids is None else data.ids[rows]
        found = intervals(project, config, data.target[rows], part, seed, ids)
        return {name: one for name, one in found.items() if np.isfinite((one.value, one.low, one.high)).all()}

    slices = []
    for name, values in declared_slices(project, data).items():
        found, counts = np.unique(values, return_counts=True)
        for value in sorted(found[np.argsort(-counts, kind="stable")][:MAX_VALUES].tolist()):
            rows = np.flatnonzero(values == value)
            slices.append(SliceProfile(name=f"{name}={value}", rows=len(rows), metrics=measured(rows)))
    return ModelProfile(
        rows=len(data),
        scores=scores,
        calibration=bins,
        metrics=measured(np.arange(len(data))),
        slices=tuple(slices),
    )
