"""The primary metric on parts of the test rows, as a table."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset, write_artifact
from homeostat.errors import ConfigError
from homeostat.evaluation.metrics import read_answers
from homeostat.evaluation.paired import metric_intervals
from homeostat.evaluation.weighted import weighted_metrics
from homeostat.project import Project
from homeostat.records import Artifact, Interval

MAX_VALUES = 20
"""Values of one slice that get a line: the most frequent ones."""


def slice_table(
    project: Project, config: ProjectConfig, data: Dataset, outputs: Array, folder: Path
) -> Artifact | None:
    """Write slices.md: the primary metric of each value of each slice, with its interval; None without slices.

    outputs: [n, k]. Raises ConfigError when a slice has another number of rows than the data.
    """
    lines = []
    metric = weighted_metrics(project, config.task)[config.primary]
    for name, values in declared_slices(project, data).items():
        kept, counts = np.unique(values, return_counts=True)
        for value in sorted(kept[np.argsort(-counts, kind="stable")][:MAX_VALUES].tolist()):
            rows = np.flatnonzero(values == value)
            ids = None if data.ids is None else data.ids[rows]
            answers = read_answers(config.task, data.target[rows], outputs[rows])
            found = metric_intervals([metric], answers, config.gate, config.train.seed, ids)[0]
            lines.append(_line(name, value, len(rows), found))
        if len(kept) > MAX_VALUES:
            lines.append(f"| {cell(name)} | {len(kept) - MAX_VALUES} rarer values | | | |")
    if not lines:
        return None
    head = [
        f"# {config.name}: {config.primary} by slice, on the test part",
        "",
        f"| slice | value | rows | {config.primary} | {100 * config.gate.confidence:g} % interval |",
        "|---|---|---:|---:|---|",
    ]
    return write_artifact(folder / "slices.md", "\n".join([*head, *lines, ""]).encode())


def declared_slices(project: Project, data: Dataset) -> dict[str, Array]:
    """Return name -> [n] str, as the project says; raises ConfigError when a slice has another number of rows."""
    found = {}
    for name, given in project.slices(data).items():
        found[name] = values = np.asarray(given).astype(str)
        if values.shape != (len(data),):
            raise ConfigError(
                f"slices() of {type(project).__name__}: {name!r} has shape {values.shape} where the data "
                f"has {len(data)} rows; return one value for each row"
            )
    return found


def _line(name: str, value: str, rows: int, found: Interval) -> str:
    figure, ends = "", ""
    if math.isfinite(found.value):
        figure = f"{found.value:.4f}"
        ends = f"{found.low:.4f} to {found.high:.4f}" if math.isfinite(found.low) else "too few rows"
    return f"| {cell(name)} | {cell(value)} | {rows} | {figure} | {ends} |"


def cell(text: str) -> str:
    """Return text that cannot leave its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
