"""Build the candidates, measure each as the exported graph, and let the budget choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from homeostat.compression.budget import choose
from homeostat.compression.pruning import prune
from homeostat.compression.quantization import to_dynamic_int8, to_static_int8
from homeostat.compression.report import write_plot, write_table
from homeostat.compression.timing import time_graphs
from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset, read_artifact
from homeostat.errors import BundleInvalid, DataInvalid, ExportMismatch, ExportUnsupported, TrainingFailed
from homeostat.evaluation.metrics import higher_is_better, measure, primary_of
from homeostat.export.gates import INVARIANCE_TOLERANCE, ORT_ERRORS, batch_invariance
from homeostat.export.onnx import to_onnx
from homeostat.inference import predict, session
from homeostat.model import load_model, save_model
from homeostat.project import Project
from homeostat.records import Artifact, Candidate, Compression, DatasetRecord, TrainedModel

Report = Callable[[str], None]
_CANNOT: tuple[type[Exception], ...] = (
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    AssertionError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    BundleInvalid,
    DataInvalid,
    ExportUnsupported,
    ExportMismatch,
    TrainingFailed,
    *ORT_ERRORS,
)
"""What fine-tuning, the quantizer, and loading and running its graph raise for a model not made for them."""


@dataclass(frozen=True)
class _Built:
    """A candidate's graph and the Keras model behind it."""

    onnx: Artifact
    keras: Artifact
    answers: Array
    """[n, k] on the validation rows."""


def _build(
    name: str,
    project: Project,
    config: ProjectConfig,
    record: DatasetRecord,
    trained: TrainedModel,
    fp32: Artifact,
    folder: Path,
) -> tuple[Artifact, Artifact]:
    """Return the candidate's graph and the Keras model behind it."""
    path = folder / f"{name}.onnx"
    if name == "dynamic_int8":
        return to_dynamic_int8(fp32, path), trained.keras
    if name == "static_int8":
        return to_static_int8(fp32, path, Dataset.load(record.parts["calibration"])), trained.keras
    rows, validation = Dataset.load(record.parts["train"]), Dataset.load(record.parts["validation"])
    pruned = prune(load_model(trained.keras), project, config, rows, validation)
    return to_onnx(pruned, path, config.export.opset), save_model(pruned, folder / f"{name}.keras")


def _blame(data: Dataset) -> str:
    """Say what makes a model answer NaN: NaN that it is given, or else its own arithmetic."""
    given = []
    for name, values in data.inputs.items():
        if values.dtype.kind != "f":
            continue
        lost = np.isnan(values)
        names = data.columns.get(name, ())
        if names and values.ndim == 2:
            given += [f"column {c!r} in {n} rows" for c, n in zip(names, lost.sum(axis=0), strict=True) if n]
        elif lost.any():
            given.append(f"input {name!r} in {lost.reshape(len(lost), -1).any(axis=1).sum()} rows")
    if given:
        return (
            f"NaN stands in {', '.join(given)}, and the model cannot take it: fill it or drop the rows in load_data, "
            "or handle NaN in the model"
        )
    return "look for log(0) or 0/0 in the model"


def _answers(graph: Artifact, validation: Dataset) -> Array:
    found: Array = predict(session(read_artifact(graph)), validation.inputs)
    if not np.isfinite(found).all():
        raise ExportMismatch(f"the graph answers NaN or Inf on validation rows; {_blame(validation)}")
    return found


def _build_all(
    project: Project, config: ProjectConfig, record: DatasetRecord, trained: TrainedModel, folder: Path, report: Report
) -> tuple[dict[str, _Built], list[str]]:
    """Return the candidates that could be built and answer, and `name: why` for those that do not."""
    validation = Dataset.load(record.parts["validation"])
    fp32 = to_onnx(load_model(trained.keras), folder / "fp32.onnx", config.export.opset)
    built, failed = {"fp32": _Built(fp32, trained.keras, _answers(fp32, validation))}, []
    primary_of(config, measure(project, config, validation.target, built["fp32"].answers))
    report(f"fp32: {fp32.bytes:,} bytes")
    for name in config.compress.candidates:
        if name == "fp32":
            continue
        try:
            graph, model = _build(name, project, config, record, trained, fp32, folder)
            one = _Built(graph, model, _answers(graph, validation))
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
    return [
        Candidate(
            name=name,
            onnx=one.onnx,
            keras=one.keras,
            metrics=measure(project, config, validation.target, one.answers),
            latency=latency[name],
            max_difference=float(np.abs(one.answers - built["fp32"].answers).max()),
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
