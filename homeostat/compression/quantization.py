"""int8 graphs by ONNX Runtime's quantizer: dynamic, and static QDQ calibrated on real rows."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from homeostat.dataset import Array, Dataset, write_artifact
from homeostat.records import Artifact

CALIBRATION_ROWS = 512
BATCH = 64


class _Rows(CalibrationDataReader):  # type: ignore[misc]
    """The calibration part, a batch at a time."""

    def __init__(self, data: Dataset) -> None:
        rows = min(len(data), CALIBRATION_ROWS)
        self._batches: Iterator[dict[str, Array]] = iter(
            [
                {name: np.ascontiguousarray(values[at : min(at + BATCH, rows)]) for name, values in data.inputs.items()}
                for at in range(0, rows, BATCH)
            ]
        )

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch, None after the last."""
        return next(self._batches, None)


@contextmanager
def _workspace(graph: Artifact) -> Iterator[tuple[Path, Path]]:
    """Yield a pre-processed copy of the graph and where the quantized one goes, both temporary."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer advises on the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
            quant_pre_process(graph.path, str(prepared), skip_symbolic_shape=True)
            yield prepared, quantized
    finally:
        root.setLevel(level)


def to_dynamic_int8(graph: Artifact, path: Path) -> Artifact:
    """Write the graph with int8 weights, activations quantized by the range of each batch."""
    with _workspace(graph) as (prepared, quantized):
        quantize_dynamic(str(prepared), str(quantized), weight_type=QuantType.QInt8)
        return write_artifact(path, quantized.read_bytes())


def to_static_int8(graph: Artifact, path: Path, calibration: Dataset) -> Artifact:
    """Write the graph with int8 weights (per channel) and activations, ranges from the calibration part."""
    with _workspace(graph) as (prepared, quantized):
        quantize_static(
            str(prepared),
            str(quantized),
            _Rows(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return write_artifact(path, quantized.read_bytes())
