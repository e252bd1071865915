"""Pass the chosen candidate through every gate, and keep ONNX, .keras and SavedModel side by side."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset, read_artifact, write_artifact
from homeostat.export import gates
from homeostat.model import answer, load_model
from homeostat.project import Project
from homeostat.records import Compression, DatasetRecord, Export, Gate

QUANTIZED = frozenset({"dynamic_int8", "static_int8"})
MAX_ROWS = 1024
"""Real rows that parity is checked on."""


def run_gates(
    data: bytes, rows: Dataset, expected: Array, config: ProjectConfig, *, quantized: bool
) -> tuple[Gate, ...]:
    """Return every gate that the graph has passed; raises GateFailed at the first that it does not.

    rows: real rows; expected: [n, k], what Keras answers on them.
    """
    passed = [gates.check_structure(data), gates.check_operators(data), gates.check_inputs(data, rows.inputs)]
    if quantized:
        least = config.export.quantized_agreement
        passed.append(gates.check_agreement(data, rows.inputs, expected, config.task, least))
    else:
        passed.append(gates.check_parity(data, rows.inputs, expected, config.export.tolerance))
    return (*passed, gates.check_batch_invariance(data, rows.inputs))


def _write_saved_model(model: Any, folder: Path) -> str:
    """Write TensorFlow's SavedModel under a temporary name first; return the folder."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Keras prints its summary whatever `verbose` says
            model.export(temporary, format="tf_saved_model", verbose=False)
        shutil.rmtree(folder, ignore_errors=True)  # a folder cannot be replaced by one
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(folder)


def export(
    project: Project, config: ProjectConfig, record: DatasetRecord, compression: Compression, workspace: Path
) -> Export:
    """Gate the winner of the search on validation rows; keep it under workspace/export/.

    Raises ExportUnsupported, ExportMismatch or GateFailed; nothing is kept then.
    """
    del project
    chosen, folder = compression.chosen, workspace / "export"
    part = Dataset.load(record.parts["validation"])
    rows = part.take(np.arange(min(len(part), MAX_ROWS)))
    model, data = load_model(chosen.keras), read_artifact(chosen.onnx)
    passed = run_gates(data, rows, answer(model, rows.inputs), config, quantized=chosen.name in QUANTIZED)
    saved_model = _write_saved_model(model, folder / "saved_model")
    return Export(
        onnx=write_artifact(folder / "model.onnx", data),
        keras=write_artifact(folder / "model.keras", read_artifact(chosen.keras)),
        saved_model=saved_model,
        candidate=chosen.name,
        gates=passed,
    )
