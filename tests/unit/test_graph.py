"""graph: what no session may be made of is found in the bytes alone, at any depth."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from homeostat import graph
from homeostat.bundle import BUNDLE_CAP
from homeostat.errors import BundleInvalid
from homeostat.golden import GOLDEN_ROWS
from homeostat.graph import check_graph, read_graph
from homeostat.serving.preflight import CPU_SECONDS, MEMORY_BYTES, WALL_SECONDS
from homeostat.serving.session import GOLDEN_TOLERANCE
from tests.bundles import chain, function_chain, graph_bytes, linear, make_bundle, weighing
from tests.conftest import ROOT

NAN_TYPES = ["float16", "float32", "float64"]


def external(tmp_path: Path) -> bytes:
    model = onnx.load_from_string(linear(width=64))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return (tmp_path / "m.onnx").read_bytes()


def nested(inner: onnx.GraphProto, op: str = "If") -> bytes:
    node = helper.make_node(op, ["c"], ["y"], then_branch=inner, else_branch=inner)
    return helper.make_model(helper.make_graph([node], "o", [], [])).SerializeToString()


def test_a_good_graph_is_counted():
    found = check_graph(linear(), "here")
    assert (found.nodes, found.tensors, found.operators) == (1, 1, {("", "MatMul")})
    assert found.external == found.nan == []


def test_weights_in_other_files(tmp_path):
    with pytest.raises(BundleInvalid, match="weights w lie in other files"):
        make_bundle(tmp_path / "home", onnx_bytes=external(tmp_path))


def test_what_is_deep_in_a_graph_is_found(tmp_path):
    inner = onnx.load_from_string(external(tmp_path)).graph
    found = read_graph(nested(inner))
    assert (found.external, found.nodes, found.operators) == (["w", "w"], 3, {("", "If"), ("", "MatMul")})


@pytest.mark.parametrize("data", [b"\xff" * 40, linear()[:-3], b"\x08", b"\x0b\x0c", linear() + b"\x02\x00"])
def test_bytes_that_are_no_protobuf(data):
    with pytest.raises(BundleInvalid, match="protobuf"):
        read_graph(data)


def test_what_parsers_read_differently_is_refused():
    model = onnx.load_from_string(linear())
    body = model.graph.SerializeToString()
    head = b"\x08\x09"
    length = bytes([len(body) & 0x7F | 0x80, len(body) >> 7]) if len(body) > 127 else bytes([len(body)])
    assert read_graph(head + b"\x3a" + length + body).nodes == 1
    with pytest.raises(BundleInvalid, match="protobuf"):
        read_graph(head + 2 * (b"\x3a" + length + body))
    overlong = b"\xba\x80\x80\x80\x10"  # the tag of field 7, and 2**32
    with pytest.raises(BundleInvalid, match="protobuf"):
        read_graph(head + overlong + length + body)


@pytest.mark.parametrize(
    ("op", "domain"),
    [
        *((op, "") for op in ("If", "Loop", "Scan", "RandomNormal", "SequenceEmpty", "StringConcat", "NoSuch")),
        ("Inverse", "com.microsoft"),
        ("TreeEnsembleRegressor", "ai.onnx.ml"),
        ("Relu", "of.my.own"),
    ],
)
def test_operators_that_are_not_served(op, domain):
    inner = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain=domain)], "g", [], [])
    for data in (helper.make_model(inner).SerializeToString(), nested(inner, "Relu")):
        with pytest.raises(BundleInvalid, match=rf"here: .*not served: {domain or 'ai.onnx'}.{op}"):
            check_graph(data, "here")


def test_a_recurrent_layer_is_told_the_remedy():
    inner = helper.make_graph([helper.make_node("Loop", ["x"], ["y"])], "g", [], [])
    with pytest.raises(BundleInvalid, match="unroll=True"):
        check_graph(helper.make_model(inner).SerializeToString(), "here")


def test_every_operator_that_is_served_is_one_that_onnx_knows():
    known = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    for domain in ("", "ai.onnx.ml"):
        assert {(domain, operator) for operator in graph.OPERATORS[domain]} <= known


def test_functions_and_training():
    with pytest.raises(BundleInvalid, match="here: the graph has 3000 functions of the model's own"):
        check_graph(function_chain(3000), "here")
    model = onnx.load_from_string(linear())
    model.training_info.add()
    with pytest.raises(BundleInvalid, match="training information"):
        check_graph(model.SerializeToString(), "here")


def test_nodes_and_tensors_are_bounded():
    check_graph(chain(graph.MAX_NODES), "here")
    start = time.perf_counter()
    with pytest.raises(BundleInvalid, match="here: the graph has 50000 nodes, at most 20000"):
        check_graph(chain(50_000), "here")
    assert time.perf_counter() - start < 10
    weights = [numpy_helper.from_array(np.zeros(1, np.float32), f"w{i}") for i in range(graph.MAX_TENSORS + 1)]
    with pytest.raises(BundleInvalid, match="20001 tensors"):
        check_graph(graph_bytes([], [], [], weights), "here")


def test_reading_is_bounded(monkeypatch):
    monkeypatch.setattr(graph, "MAX_FIELDS", 1000)
    with pytest.raises(BundleInvalid, match="more than 1000 fields"):
        read_graph(b"\x08\x09" * 1001)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", NAN_TYPES)
def test_nan_in_weights(dtype, raw):
    for values in (np.array([1, np.inf, -np.inf, 0, -1.5]), np.array([1, 2, np.nan]), np.array([-np.nan])):
        data = weighing(values.astype(dtype), raw=raw)
        if dtype == "float16" and not raw:
            with pytest.raises(BundleInvalid, match="half-precision weights w are not raw bytes"):
                check_graph(data, "here")
        elif np.isnan(values).any():
            with pytest.raises(BundleInvalid, match="here: the weights w hold NaN"):
                check_graph(data, "here")
        else:
            check_graph(data, "here")


def test_nan_in_a_constant_and_in_the_last_of_many_weights():
    values = np.ones(3 * 1024 * 1024, np.float32)
    values[-1] = np.nan
    with pytest.raises(BundleInvalid, match="NaN"):
        check_graph(weighing(values), "here")
    constant = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.float32(np.nan), "c"))
    with pytest.raises(BundleInvalid, match="the weights c hold NaN"):
        check_graph(graph_bytes([constant], [], []), "here")
    brain = TensorProto(name="b", data_type=TensorProto.BFLOAT16, dims=[1], raw_data=b"\xc0\x7f")
    with pytest.raises(BundleInvalid, match="the weights b hold NaN"):
        check_graph(graph_bytes([], [], [], [brain]), "here")


def test_the_limits_are_the_documented_ones():
    text = " ".join((ROOT / "docs" / "serving.md").read_text().split())
    assert f"at most {graph.MAX_NODES:,} nodes and {graph.MAX_TENSORS:,} tensors" in text
    assert f"{BUNDLE_CAP / 1024**3:g} GiB in all" in text
    assert f"up to {GOLDEN_ROWS} rows" in text
    assert f"{GOLDEN_TOLERANCE:g} x (1 + its size)" in text
    assert f"{CPU_SECONDS} s of processor time, {WALL_SECONDS:g} s in all, and {MEMORY_BYTES // 1024**3} GiB" in text


def _rich(tmp_path: Path) -> bytes:
    """A little of everything that is read."""
    inner = onnx.load_from_string(external(tmp_path)).graph
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft", name="gelu"),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array([1, np.nan], np.float32), "k")),
    ]
    weights = [helper.make_tensor("v", TensorProto.DOUBLE, [2], [1.0, np.nan])]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], weights))
    own = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], own))
    return model.SerializeToString()


def _by_onnx(model: onnx.ModelProto) -> tuple[set[tuple[str, str]], int, list[str], list[str]]:
    """What read_graph finds, by the onnx package: operators, functions, external tensors, those with NaN."""
    operators, outside, nan = set(), [], []

    def text(value: str | bytes) -> str:
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value  # bytes where it is no UTF-8

    def look(tensor: onnx.TensorProto) -> None:
        if tensor.data_location or tensor.external_data:
            outside.append(text(tensor.name) or "?")
        kinds = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16}
        raw = np.frombuffer(tensor.raw_data, kinds[tensor.data_type]) if tensor.data_type in kinds else ()
        if any(np.isnan(values).any() for values in (raw, tensor.float_data, tensor.double_data)):
            nan.append(text(tensor.name) or "?")

    def visit(nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            operators.add(("" if node.domain == "ai.onnx" else text(node.domain), text(node.op_type)))
            for attribute in node.attribute:
                for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
                    look(tensor)
                for branch in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                    inside(branch)

    def inside(graph: onnx.GraphProto) -> None:
        visit(graph.node)
        for tensor in graph.initializer:
            look(tensor)
        for sparse in graph.sparse_initializer:
            look(sparse.values)
            look(sparse.indices)

    inside(model.graph)
    for training in model.training_info:
        inside(training.initialization)
        inside(training.algorithm)
    for function in model.functions:
        visit(function.node)
    return operators, len(model.functions), outside, nan


def test_mutated_bytes_are_read_as_protobuf_reads_them(tmp_path):
    """What both accept, both understand: no byte hides a node or a weight from this reader."""
    data, random, both = _rich(tmp_path), Random(30), 0
    for _ in range(8000):
        changed = bytearray(data)
        for _ in range(random.randint(1, 3)):
            at, other = random.randrange(len(changed)), random.randrange(len(changed))
            length = random.randint(1, 24)
            match random.randrange(4):
                case 0:
                    changed[at] ^= 1 << random.randrange(8)
                case 1:
                    changed[at] = random.choice([0, 1, 0x0A, 0x12, 0x3A, 0x2A, 0x7A, 0x80, 0xFF, *b"abf"])
                case 2:
                    changed[at : at + length] = changed[other : other + length]
                case _:
                    changed[at:at] = changed[other : other + length]
        try:
            model, found = onnx.ModelProto.FromString(bytes(changed)), read_graph(bytes(changed))
            expected = _by_onnx(model)
        except (DecodeError, BundleInvalid, ValueError):  # the last: raw bytes that are no whole numbers
            continue
        both += 1
        operators, functions, outside, nan = expected
        assert (found.operators, found.functions) == (operators, functions)
        assert not Counter(outside) - Counter(found.external), "this reader is the stricter one"
        assert not Counter(nan) - Counter(found.nan)
    assert both > 1000
