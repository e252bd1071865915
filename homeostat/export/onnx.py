"""Keras to ONNX by freezing: our own names, a dynamic batch dimension, and every weight in the file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import onnx
import tensorflow as tf
import tf2onnx
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from homeostat.dataset import Array, write_artifact
from homeostat.errors import ExportUnsupported
from homeostat.model import structured
from homeostat.records import Artifact

BATCH = "batch"
OUTPUT = "output"


def _freeze(model: keras.Model) -> Any:
    """Return the model's concrete function with its variables as constants, called without training."""
    tensors = model.inputs
    signature = [tf.TensorSpec((None, *t.shape[1:]), t.dtype, name=t.name) for t in tensors]

    @tf.function(input_signature=signature, autograph=False)  # type: ignore[untyped-decorator]
    def call(*values: Any) -> Any:
        named = {tensor.name: value for tensor, value in zip(tensors, values, strict=True)}
        return model(structured(model, named), training=False)

    return convert_variables_to_constants_v2(call.get_concrete_function(), lower_control_flow=False)


def _erfc(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Write TensorFlow's Erfc (exact GELU has it) as 1 - Erf, which ONNX knows."""
    del name, args
    dtype, shape = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0])
    source, output = node.input[0], node.output[0]
    ctx.remove_node(node.name)
    erf = ctx.make_node("Erf", [source], dtypes=[dtype], shapes=[shape])
    one = ctx.make_const(f"{node.name}_one", tf2onnx.utils.map_onnx_to_numpy_type(dtype)(1))
    ctx.make_node(
        "Sub", [one.output[0], erf.output[0]], outputs=[output], name=node.name, dtypes=[dtype], shapes=[shape]
    )


def _convert(frozen: Any, names: Mapping[str, str], opset: int) -> onnx.ModelProto:
    quiet = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    before = [logger.level for logger in quiet]
    for logger in quiet:  # what the converter cannot do is found by the gates, with the layer's name
        logger.setLevel(logging.CRITICAL)
    try:
        proto, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(),
            name="homeostat",
            input_names=[tensor.name for tensor in frozen.inputs],
            output_names=[tensor.name for tensor in frozen.outputs],
            opset=opset,
            custom_op_handlers={"Erfc": (_erfc, [])},
            tensors_to_rename=dict(names),
        )
    finally:
        for logger, level in zip(quiet, before, strict=True):
            logger.setLevel(level)
    return proto


def unknown_ops(proto: onnx.ModelProto) -> list[str]:
    """Return `op (node)` for each node whose operator no ONNX domain at the graph's opset knows."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    found = []

    def visit(graph: Any) -> None:
        for node in graph.node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            known = domain in versions and onnx.defs.has(
                node.op_type, max_inclusive_version=versions[domain], domain=domain
            )
            if not known and domain != "com.microsoft":
                found.append(f"{node.op_type} ({node.name})")
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    if inner.node:
                        visit(inner)

    visit(proto.graph)
    return found


def to_onnx(model: keras.Model, path: Path, opset: int) -> Artifact:
    """Write the model as one ONNX file, under a temporary name first.

    Inputs keep the model's names, the output is `output` (several: output_0, output_1, ...), the
    first dimension of each is `batch`. Raises ExportUnsupported that names the operator and the
    layer when ONNX cannot express the model.
    """
    try:
        frozen = _freeze(model)
        inputs = {tensor.name: tensor.name.removesuffix(":0") for tensor in frozen.inputs}
        several = len(frozen.outputs) > 1
        outputs = {t.name: f"{OUTPUT}_{i}" if several else OUTPUT for i, t in enumerate(frozen.outputs)}
        proto = _convert(frozen, inputs | outputs, opset)
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, tf.errors.OpError) as error:
        raise ExportUnsupported(
            f"{model.name} cannot be converted to ONNX (opset {opset}): {type(error).__name__}: {error!s:.500}; "
            "replace the layer that the message names by one of keras.layers"
        ) from error
    unknown = unknown_ops(proto)
    if unknown:
        raise ExportUnsupported(
            f"{model.name} uses operators that ONNX opset {opset} does not have: {', '.join(unknown[:5])}; the name in "
            "brackets is the path of the layer: replace it by one of keras.layers, or compute it outside the model"
        )
    for value in (*proto.graph.input, *proto.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if dimensions:
            dimensions[0].dim_param = BATCH
    return write_artifact(path, proto.SerializeToString())


def declared_inputs(inputs: Mapping[str, Array]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return what a graph must declare for these arrays: name -> (numpy dtype, shape without the batch)."""
    return {name: (values.dtype.name, values.shape[1:]) for name, values in inputs.items()}
