"""Bundles made to hurt, each signed with the right key: one clear error, and the champion goes on answering."""

from __future__ import annotations

import functools
import io
import os
import time
import zipfile
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from homeostat.records import BundleRef
from homeostat.serving.preflight import preflight
from tests.bundles import (
    Store,
    chain,
    contract_of,
    endless_loop,
    folder_of,
    forge,
    function_chain,
    graph_bytes,
    linear,
    make_bundle,
    memory_bomb,
    npz,
    rollout,
    slow,
    weighing,
)
from tests.unit.serving.conftest import Plane, make_plane, promote
from tests.unit.test_bundle_mutations import apply, files_of, mutations, restore

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}]}
ONES = np.ones((2, 4), np.float32)
GOLDEN = npz(**{"input:x": ONES, "output:output": ONES})
VERSIONS = count(2)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Plane:
    """A server whose champion, version 1, answers 4."""
    plane = make_plane(tmp_path_factory.mktemp("attacked"), Store())
    promote(plane, make_bundle(plane.home, 1))
    plane.repository.poll()
    return plane


def assert_refused(plane: Plane, ref: BundleRef, said: str) -> None:
    """Promote it: the champion of before answers on, and why is said."""
    generation = plane.store.table["toy"].generation
    plane.store.put(rollout(ref, generation + 1))
    plane.repository.poll()
    response = plane.infer(BODY)
    assert (response.status_code, response.json()["model_version"]) == (200, "1")
    assert response.json()["outputs"][0]["data"] == [4.0]
    state = plane.repository.models["toy"]
    assert state.problem.startswith(f"version {ref.version} is refused: ")
    assert said in state.problem
    assert len(state.problem) < 1500
    assert state.problem in plane.call("GET", "/v2/models/toy/ready").json()["problem"]


def forged(plane: Plane, **contents: bytes) -> BundleRef:
    return forge(plane.home, make_bundle(plane.home, next(VERSIONS)), **contents)


GRAPHS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a chain of 3,000 functions": (lambda: function_chain(3000), "3000 functions of the model's own"),
    "50,000 nodes": (lambda: chain(50_000), "50000 nodes, at most 20000"),
    "an endless loop": (endless_loop, "operators that are not served: ai.onnx.Loop"),
    "a memory bomb of ConstantOfShape": (lambda: memory_bomb("ConstantOfShape"), "preflight refused it: "),
    "a memory bomb of Expand": (lambda: memory_bomb("Expand"), "preflight refused it: "),
    "a memory bomb of Tile": (lambda: memory_bomb("Tile"), "preflight refused it: "),
    "too slow": (slow, "SIGXCPU (over 2 s of processor time)"),
    "NaN weights": (lambda: weighing(np.array([1, np.nan], np.float32)), "the weights w hold NaN"),
    "infinite weights": (lambda: linear(np.inf), "answers NaN or Inf on 2 of 2 golden rows"),
    "other weights": (lambda: linear(1.5), "output 'output' of the golden rows is not the one recorded"),
    "text": (lambda: b"#!/bin/sh\nexit\n" * 100, "model.onnx is not a protobuf message"),
    "nothing": (lambda: b"", "model.onnx does not load"),
    "pickle": (lambda: b"\x80\x04\x95" + b"x" * 40, "model.onnx is not a protobuf message"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph(served, monkeypatch, name):
    monkeypatch.setattr("homeostat.serving.repository.preflight", functools.partial(preflight, cpu_seconds=2))
    make, said = GRAPHS[name]
    start = time.perf_counter()
    assert_refused(served, forged(served, model_onnx=make(), golden_npz=GOLDEN), said)
    assert time.perf_counter() - start < 30


def test_a_graph_that_kills_its_process(served):
    """Integer MIN / -1 is SIGFPE on x86; elsewhere the answer is just another one."""
    low = numpy_helper.from_array(np.array([-(2**63)], np.int64), "low")
    x, y = (helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("x", "output"))
    graph = graph_bytes([helper.make_node("Div", ["low", "x"], ["output"])], [x], [y], [low])
    golden = npz(**{"input:x": np.array([-1], np.int64), "output:output": np.array([0], np.int64)})
    found = forged(served, model_onnx=graph, golden_npz=golden)
    assert_refused(served, found, "SIGFPE" if os.uname().machine == "x86_64" else "golden rows")


def _declaring(**changes: object) -> bytes:
    """x [n, 4] float32 -> output, with another input."""
    name, kind, shape = (changes.get(key, value) for key, value in (("name", "x"), ("kind", 1), ("shape", ["n", 4])))
    x = helper.make_tensor_value_info(name, kind, shape)
    y = helper.make_tensor_value_info("output", kind, shape)
    return graph_bytes([helper.make_node("Identity", [name], ["output"])], [x], [y])


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"name": "z"}, np.ones((2, 4), np.float32)),
        ({"kind": TensorProto.DOUBLE}, np.ones((2, 4))),
        ({"shape": ["n", 5]}, np.ones((2, 5), np.float32)),
        ({"shape": ["n", 4, 1]}, np.ones((2, 4, 1), np.float32)),
    ],
)
def test_another_signature(served, changes, rows):
    golden = npz(**{f"input:{changes.get('name', 'x')}": rows, "output:output": rows})
    assert_refused(served, forged(served, model_onnx=_declaring(**changes), golden_npz=golden), "its contract says")


def test_one_input_more(served):
    graph = onnx.load_from_string(linear())
    graph.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["n", 4]))
    golden = npz(**{"input:x": ONES, "input:more": ONES, "output:output": 4 * ONES[:, :1]})
    ref = forged(served, model_onnx=graph.SerializeToString(), golden_npz=golden)
    assert_refused(served, ref, "the graph takes x, more; its contract says x")


def test_the_contract_of_another_model(served):
    ref = forged(served, contract_json=contract_of(linear(width=5)).to_json().encode())
    assert_refused(served, ref, "its contract says float32 [n, (5,)]")


@pytest.mark.parametrize(
    "contract", [b"", b"{}", b"[" * 100_000, b'{"inputs":' * 100_000, b"\xff\xfe", b'{"inputs": [], "inputs": 1}']
)
def test_a_contract_that_is_none(served, contract):
    assert_refused(served, forged(served, contract_json=contract), "contract.json is not a contract")


def _bomb() -> bytes:
    """100 MB of zeros in 100 kB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("input:x.npy", bytes(100 * 1024 * 1024))
    return buffer.getvalue()


def _header(shape: str) -> bytes:
    """An array of 8 bytes that says it has another shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8)
        file.writestr("input:x.npy", data)
        file.writestr("output:output.npy", data)
    return buffer.getvalue()


GOLDENS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a zip bomb": (_bomb, "golden.npz unpacks to 104857600 bytes"),
    "no zip": (lambda: b"PK\x03\x04", "golden.npz cannot be read"),
    "pickle": (lambda: npz(**{"input:x": np.array([{}], object), "output:output": ONES}), "golden.npz cannot be read"),
    "a shape of terabytes": (lambda: _header("(1000000000000, 4)"), "golden.npz cannot be read"),
    "a negative shape": (lambda: _header("(-1, 4)"), "golden.npz"),
    "no rows": (lambda: npz(**{"input:x": ONES[:0], "output:output": ONES[:0]}), "golden.npz holds [0] rows"),
    "other rows": (lambda: npz(**{"input:z": ONES, "output:output": ONES}), "preflight refused it: "),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_rows(served, name):
    make, said = GOLDENS[name]
    assert_refused(served, forged(served, golden_npz=make()), said)


@pytest.mark.parametrize("kind", ["file", "hard link", "symbolic link", "fifo"])
def test_external_data(served, tmp_path, monkeypatch, kind):
    """Weights in another file, which lies where ONNX Runtime would look for it."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load_from_string(linear())
    onnx.save(model, "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = tmp_path / "weights.bin"
    elsewhere = weights.rename(tmp_path / "elsewhere")
    ref = forged(served, model_onnx=Path("m.onnx").read_bytes())
    for path in (weights, folder_of(ref) / "weights.bin"):
        if kind == "file":
            path.write_bytes(elsewhere.read_bytes())
        elif kind == "hard link":
            path.hardlink_to(elsewhere)
        elif kind == "symbolic link":
            path.symlink_to(elsewhere)
        else:
            os.mkfifo(path)
    assert_refused(served, ref, "model.onnx: the weights w lie in other files, which no digest covers")


@pytest.mark.parametrize("location", ["/etc/passwd", "../../../etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_external_data_outside(served, location):
    model = onnx.load_from_string(linear())
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    assert_refused(served, forged(served, model_onnx=model.SerializeToString()), "lie in other files")


def test_mutated_bundles_are_never_served(tmp_path, monkeypatch):
    """200 of the 5,000, through a server that tries each again at once."""
    monkeypatch.setattr("homeostat.serving.repository.RETRY_SECONDS", (0.0,))
    plane = make_plane(tmp_path, Store())
    promote(plane, make_bundle(plane.home, 1))
    plane.repository.poll()
    ref = make_bundle(plane.home, 3)
    folder = folder_of(ref)
    files = files_of(folder)
    for _, change in islice(mutations(plane.home, ref, seed=21), 200):
        apply(folder, change)
        assert_refused(plane, ref, str(folder))
        restore(folder, files, change)
    plane.store.put(rollout(ref, 1000))
    plane.repository.poll()
    assert plane.infer(BODY).json()["model_version"] == "3", "unchanged, it is served"
