"""Build the candidates, measure each as the exported graph, and let the budget choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from homeostat.compression.budget import choose
from homeostat.compression.pruning import prune
from homeostat.compression.quantization import to_dynamic_int8, to_static_int8
from homeostat.compression.report import write_plot, write_table
from homeostat.compression.timing import time_graphs
from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset, read_artifact
from homeostat.errors import BundleInvalid, ExportMismatch, ExportUnsupported, TrainingFailed
from homeostat.evaluation.metrics import higher_is_better, measure
from homeostat.export.gates import INVARIANCE_TOLERANCE, ORT_ERRORS, batch_invariance
from homeostat.export.onnx import to_onnx
from homeostat.inference import predict, session
from homeostat.model import load_model, save_model
from homeostat.project import Project
from homeostat.records import Artifact, Candidate, Compression, DatasetRecord, TrainedModel

Report = Callable[[str], None]
_CANNOT: tuple[type[Exception], ...] = (
    *(ValueError, RuntimeError, TypeError, KeyError, AttributeError),
    *(BundleInvalid, ExportUnsupported, TrainingFailed, *ORT_ERRORS),
)
"""What fine-tuning, the quantizer and the loading of its graph raise for a model that is not made for them."""


@dataclass(frozen=True)
class _Built:
    """A candidate's graph and the Keras model behind it."""

    onnx: Artifact
    keras: Artifact


def _build(
    name: str,
    project: Project,
    config: ProjectConfig,
    record: DatasetRecord,
    trained: TrainedModel,
    fp32: Artifact,
    folder: Path,
) -> _Built:
    path = folder / f"{name}.onnx"
    if name == "dynamic_int8":
        return _Built(to_dynamic_int8(fp32, path), trained.keras)
    if name == "static_int8":
        return _Built(to_static_int8(fp32, path, Dataset.load(record.parts["calibration"])), trained.keras)
    rows, validation = Dataset.load(record.parts["train"]), Dataset.load(record.parts["validation"])
    pruned = prune(load_model(trained.keras), project, config, rows, validation)
    return _Built(to_onnx(pruned, path, config.export.opset), save_model(pruned, folder / f"{name}.keras"))


def _build_all(
    project: Project, config: ProjectConfig, record: DatasetRecord, trained: TrainedModel, folder: Path, report: Report
) -> tuple[dict[str, _Built], list[str]]:
    """Return the candidates that could be built, and `name: why` for those that could not."""
    fp32 = to_onnx(load_model(trained.keras), folder / "fp32.onnx", config.export.opset)
    built, failed = {"fp32": _Built(fp32, trained.keras)}, []
    for name in config.compress.candidates:
        if name == "fp32":
            continue
        try:
            one = _build(name, project, config, record, trained, fp32, folder)
            session(read_artifact(one.onnx))
        except _CANNOT as error:
            failed.append(f"{name}: {type(error).__name__}: {error!s:.200}")
            report(f"{name} cannot be built: {error!s:.200}")
            continue
        built[name] = one
        report(f"{name}: {one.onnx.bytes:,} bytes")
    return built, failed


def _measure(project: Project, config: ProjectConfig, built: dict[str, _Built], validation: Dataset) -> list[Candidate]:
    graphs = {name: read_artifact(one.onnx) for name, one in built.items()}
    latency = time_graphs(graphs, validation.inputs, config.compress.timing_runs)
    answers: dict[str, Array] = {n: predict(session(data), validation.inputs) for n, data in graphs.items()}
    if not np.isfinite(answers["fp32"]).all():
        raise ExportMismatch(
            "the fp32 graph answers NaN or Inf on validation rows; look for log(0) or 0/0 in the model"
        )
    return [
        Candidate(
            name=name,
            onnx=one.onnx,
            keras=one.keras,
            metrics=measure(project, config, validation.target, answers[name]),
            latency=latency[name],
            max_difference=float(np.abs(answers[name] - answers["fp32"]).max()),
            batch_invariant=batch_invariance(graphs[name], validation.inputs) <= INVARIANCE_TOLERANCE,
        )
        for name, one in built.items()
    ]


def compress(
    project: Project,
    config: ProjectConfig,
    record: DatasetRecord,
    trained: TrainedModel,
    workspace: Path,
    report: Report | None = None,
) -> Compression:
    """Return every candidate, measured on validation as the graph that would be served, and the winner.

    report is told of each candidate as it is built. Raises ExportUnsupported when the model itself
    cannot be exported; a candidate that cannot be built is named in the table, not hidden.
    """
    folder, tell = workspace / "compress", report or (lambda _: None)
    built, failed = _build_all(project, config, record, trained, folder, tell)
    measured = _measure(project, config, built, Dataset.load(record.parts["validation"]))
    candidates, winner, reason = choose(measured, config.primary, higher_is_better(config.primary), config.compress)
    tell(f"{winner} chosen: {reason}")
    return Compression(
        candidates=candidates,
        winner=winner,
        reason=reason,
        table=write_table(candidates, winner, reason, failed, folder / "candidates.md"),
        plot=write_plot(candidates, winner, config.primary, folder / "candidates.png"),
        failed=tuple(failed),
    )
