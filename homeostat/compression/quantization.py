"""int8 graphs by ONNX Runtime's quantizer: dynamic, and static QDQ calibrated on real rows."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
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
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose weights make the file large and whose sums int8 makes fast."""


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


def _advice(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def _workspace(graph: Artifact) -> Iterator[tuple[Path, Path]]:
    """Yield a pre-processed copy of the graph and where the quantized one goes, both temporary."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(_advice)  # the quantizer advises on the root logger itself
    root.addHandler(handler)  # else its logging.info() would set up a handler for the whole process
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
            quant_pre_process(graph.path, str(prepared), skip_symbolic_shape=True)
            yield prepared, quantized
    finally:
        root.removeHandler(handler)
        root.removeFilter(_advice)


def outer_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes before the first and after the last weighted operator of each path.

    Raw features of unlike scale share one int8 range before a Normalization layer, and answers in
    256 steps after the last layer are coarse: these nodes stay fp32, and cost next to nothing.
    """
    after: set[str] = set()  # tensors that depend on a weighted operator
    for node in graph.node:  # in topological order
        if node.op_type in WEIGHTED or after.intersection(node.input):
            after.update(node.output)
    before: set[str] = set()  # tensors that a weighted operator depends on
    for node in reversed(graph.node):
        if node.op_type in WEIGHTED or before.intersection(node.output):
            before.update(node.input)
    return [
        node.name
        for node in graph.node
        if node.op_type not in WEIGHTED and not (after.intersection(node.input) and before.intersection(node.output))
    ]


def to_dynamic_int8(graph: Artifact, path: Path) -> Artifact:
    """Write the graph with int8 weights, activations quantized by the range of each batch."""
    with _workspace(graph) as (prepared, quantized):
        quantize_dynamic(str(prepared), str(quantized), weight_type=QuantType.QInt8)
        return write_artifact(path, quantized.read_bytes())


def to_static_int8(graph: Artifact, path: Path, calibration: Dataset) -> Artifact:
    """Write the graph with int8 weights (per channel) and activations, ranges from the calibration part.

    What lies outside the weighted operators (`outer_nodes`) stays fp32.
    """
    with _workspace(graph) as (prepared, quantized):
        proto = onnx.load(prepared)
        for at, node in enumerate(proto.graph.node):  # the quantizer leaves nodes out by name
            node.name = node.name or f"node_{at}"
        onnx.save(proto, prepared)
        quantize_static(
            str(prepared),
            str(quantized),
            _Rows(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=outer_nodes(proto.graph),
        )
        return write_artifact(path, quantized.read_bytes())
