"""What an ONNX graph may be before anything runs it: its bytes read without the onnx package, and held to limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from homeostat.errors import BundleInvalid

MAX_NODES = 20_000
"""ONNX Runtime loads a chain of these in a second, one of 50,000 in many."""
MAX_TENSORS = 20_000
"""Weights and constants."""
MAX_FIELDS = 2_000_000
"""Protobuf fields that are read one by one: seconds at most, whatever the bytes say."""

_ARITHMETIC = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
    Celu Clip Cos Cosh CumSum Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Hardmax
    IsInf IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu
    Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu
    Where Xor
"""
_REDUCTIONS = """
    ArgMax ArgMin GlobalAveragePool GlobalLpPool GlobalMaxPool ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare TopK
"""
_LAYERS = """
    Attention AveragePool BatchNormalization Conv ConvInteger ConvTranspose DFT Det Dropout Einsum Gemm GRU
    GroupNormalization InstanceNormalization LayerNormalization LpNormalization LpPool LRN LSTM MatMul MatMulInteger
    MaxPool MaxUnpool MeanVarianceNormalization RMSNormalization RNN RotaryEmbedding STFT
"""
_SHAPES = """
    AffineGrid BlackmanWindow CenterCropPad Col2Im Compress Concat Constant ConstantOfShape DepthToSpace Expand EyeLike
    Flatten Gather GatherElements GatherND GridSample HammingWindow HannWindow Identity MaxRoiPool MelWeightMatrix
    NonMaxSuppression NonZero OneHot Pad Range Reshape Resize ReverseSequence RoiAlign Scatter ScatterElements ScatterND
    Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unique Unsqueeze Upsample
"""
_QUANTIZATION = "DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul QuantizeLinear"
_CONTRIBUTED = """
    DynamicQuantizeLSTM DynamicQuantizeMatMul FusedConv MatMulIntegerToFloat QGemm QLinearAdd QLinearAveragePool
    QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax
"""
OPERATORS: dict[str, frozenset[str]] = {
    "": frozenset(f"{_ARITHMETIC} {_REDUCTIONS} {_LAYERS} {_SHAPES} {_QUANTIZATION}".split()),
    "ai.onnx.ml": frozenset({"LabelEncoder"}),
    "com.microsoft": frozenset(_CONTRIBUTED.split()),
}
"""Domain -> the operators that are served: each ends, answers the same every time, and knows numbers alone.

Not among them: control flow (If, Loop, Scan: docs/adr/0011), random numbers, sequences, optionals and strings,
losses. Of the other domains, what the exporters (lookup layers) and ONNX Runtime's quantizer write. Which opset
has which operator ONNX Runtime knows itself.
"""

# message -> field number -> message, as published in onnx.proto; only the fields that can reach a node or a tensor
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_SINGULAR = {("model", 7), ("training", 1), ("training", 2), ("attribute", 5), ("attribute", 6), ("attribute", 22)} | {
    ("sparse", 1),
    ("sparse", 2),
}
"""Messages that protobuf would merge when they come twice, so that no part shows what the whole is."""
_OP_TYPE, _DOMAIN = 4, 7
_DATA_TYPE, _FLOATS, _INTEGERS, _NAME, _RAW, _DOUBLES, _EXTERNAL, _LOCATION = 2, 4, 5, 8, 9, 10, 13, 14
_FLOAT, _DOUBLE = 1, 11
_BITS = {
    _FLOAT: ("<u4", 0x7F80_0000),
    10: ("<u2", 0x7C00),
    _DOUBLE: ("<u8", 0x7FF0_0000_0000_0000),
    16: ("<u2", 0x7F80),
}
"""TensorProto.data_type of FLOAT, FLOAT16, DOUBLE and BFLOAT16 -> an integer of its size, and the bits of infinity."""
_HALVES = (10, 16)
_CHUNK = 1 << 20
_SKIP = {1: 8, 5: 4}  # wire type -> bytes


@dataclass
class Graph:
    """What the bytes say: how much there is, and the names of what must not be there."""

    operators: set[tuple[str, str]] = field(default_factory=set)
    """(domain, operator), at any depth, functions included."""
    nodes: int = 0
    tensors: int = 0
    functions: int = 0
    trainings: int = 0
    external: list[str] = field(default_factory=list)
    """Tensors whose values are not in these bytes."""
    nan: list[str] = field(default_factory=list)
    """Tensors that hold a NaN."""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


class _Reader:
    """Walks the messages of one graph; IndexError and KeyError mean that the bytes are not protobuf."""

    def __init__(self, onnx: bytes) -> None:
        self._onnx = onnx
        self._left = MAX_FIELDS
        self.graph = Graph()

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield each field: its number, its wire type, then a varint's value and 0, or else its start and end."""
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise BundleInvalid(f"model.onnx has more than {MAX_FIELDS} fields; export a smaller model")
            tag, at = _varint(self._onnx, at)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:  # parsers differ in what they make of these
                raise IndexError
            if wire == 0:
                value, at = _varint(self._onnx, at)
                yield number, wire, value, 0
                continue
            if wire == 2:
                length, at = _varint(self._onnx, at)
            else:
                length = _SKIP[wire]
            if at + length > end:
                raise IndexError
            yield number, wire, at, at + length
            at += length
        if at != end:
            raise IndexError

    def read(self) -> Graph:
        pending = [("model", 0, len(self._onnx))]
        while pending:
            kind, at, end = pending.pop()
            if kind == "tensor":
                self._tensor(at, end)
            else:
                pending.extend(self._message(kind, at, end))
        return self.graph

    def _message(self, kind: str, at: int, end: int) -> Iterator[tuple[str, int, int]]:
        """Yield the messages in one that may hold nodes or tensors; a node is counted."""
        fields, seen, operator, domain = _FIELDS[kind], set(), "", ""
        for number, wire, start, stop in self._fields(at, end):
            if wire != 2:
                continue
            if number in fields:
                if (kind, number) in _SINGULAR and number in seen:
                    raise IndexError
                seen.add(number)
                yield fields[number], start, stop
            elif kind == "node" and number == _OP_TYPE:
                operator = self._text(start, stop)
            elif kind == "node" and number == _DOMAIN:
                domain = self._text(start, stop)
        if kind == "node":
            self.graph.nodes += 1
            self.graph.operators.add(("" if domain == "ai.onnx" else domain, operator))
        self.graph.functions += kind == "function"
        self.graph.trainings += kind == "training"

    def _tensor(self, at: int, end: int) -> None:
        name, external, integers, data_type, values = "?", False, False, 0, []
        for number, wire, start, stop in self._fields(at, end):
            if number == _LOCATION and wire == 0:
                external |= start != 0
            elif number == _DATA_TYPE and wire == 0:
                data_type = start & 0xFFFF_FFFF
            elif number == _EXTERNAL:
                external = True
            elif number == _NAME and wire == 2:
                name = self._text(start, stop) or "?"
            elif number in (_RAW, _FLOATS, _DOUBLES) and wire != 0:
                values.append((number, start, stop))
            elif number == _INTEGERS:
                integers = True
        if integers and data_type in _HALVES:
            raise BundleInvalid(f"model.onnx: the half-precision weights {name} are not raw bytes; export them as such")
        self.graph.tensors += 1
        if external:
            self.graph.external.append(name)
        for number, start, stop in values:
            dtype = {_FLOATS: _FLOAT, _DOUBLES: _DOUBLE}.get(number, data_type)
            if dtype in _BITS and _has_nan(self._onnx, start, stop, *_BITS[dtype]):
                self.graph.nan.append(name)
                break

    def _text(self, start: int, stop: int) -> str:
        return self._onnx[start:stop].decode("utf-8", "replace")


def _has_nan(data: bytes, start: int, stop: int, integer: str, infinity: int) -> bool:
    size = np.dtype(integer).itemsize
    if (stop - start) % size:
        raise IndexError
    values = np.frombuffer(data, integer, (stop - start) // size, start)
    unsigned = (1 << (8 * size - 1)) - 1
    return any(bool(((values[i : i + _CHUNK] & unsigned) > infinity).any()) for i in range(0, len(values), _CHUNK))


def read_graph(onnx: bytes) -> Graph:
    """Read what there is in a graph, at any depth, functions included.

    Raises BundleInvalid when the bytes are not the protobuf that every parser reads the same
    way. Time grows with the nodes; the weights are looked through at memory speed.
    """
    try:
        return _Reader(onnx).read()
    except (IndexError, KeyError) as error:
        raise BundleInvalid("model.onnx is not a protobuf message; export the model again") from error


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_graph(onnx: bytes, where: str) -> Graph:
    """Raise BundleInvalid unless the graph has only what is served, in bounds; nothing of it is run."""
    graph = read_graph(onnx)
    # ONNX Runtime resolves such paths against the working folder even when it is given bytes
    if graph.external:
        raise BundleInvalid(
            f"{where}: the weights {_few(graph.external)} lie in other files, which no digest covers; "
            "export with save_as_external_data=False"
        )
    if graph.functions or graph.trainings:
        what = f"{graph.functions} functions of the model's own" if graph.functions else "training information"
        raise BundleInvalid(f"{where}: the graph has {what}; export it without, each function inlined")
    for count, limit, what in ((graph.nodes, MAX_NODES, "nodes"), (graph.tensors, MAX_TENSORS, "tensors")):
        if count > limit:
            raise BundleInvalid(f"{where}: the graph has {count} {what}, at most {limit}; export a smaller model")
    unserved = sorted(
        f"{domain or 'ai.onnx'}.{operator}"
        for domain, operator in graph.operators
        if operator not in OPERATORS.get(domain, frozenset())
    )
    if unserved:
        raise BundleInvalid(
            f"{where}: the graph has operators that are not served: {_few(unserved)}; replace the layers that need them"
            + (" (a recurrent one: unroll=True)" if "ai.onnx.Loop" in unserved else "")
        )
    if graph.nan:
        raise BundleInvalid(f"{where}: the weights {_few(graph.nan)} hold NaN; train the model again")
    return graph
