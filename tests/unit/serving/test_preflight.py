"""preflight: whatever a graph does to the process that tries it first, the server learns it as one clear error."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from homeostat.bundle import load_public_key, open_bundle
from homeostat.errors import BundleInvalid, PreflightFailed
from homeostat.golden import check_finite, read_golden
from homeostat.serving.preflight import NICENESS, Interrupted, preflight
from homeostat.serving.session import Session, check_golden
from tests.bundles import chain, endless_loop, graph_bytes, identity, linear, make_bundle, memory_bomb, npz, weighing

ONES = np.ones((3, 4), np.float32)


def _opened(home, graph=None):
    return open_bundle(make_bundle(home, onnx_bytes=graph), load_public_key(home))


def test_preflight_reports(tmp_path):
    bundle = _opened(tmp_path)
    report = preflight(bundle.onnx, bundle.golden, "here")
    assert report.batch_invariant
    assert 0 < report.seconds_one_row < 1


def test_preflight_takes_a_graph_that_does_not_fit_into_the_pipe_before_it_looks_up(tmp_path, monkeypatch):
    monkeypatch.setattr("homeostat.serving.preflight.LOOK_SECONDS", 0.001)  # the process has not begun to read by then
    bundle = _opened(tmp_path, weighing(np.zeros(8_000_000, np.float32)))
    assert preflight(bundle.onnx, bundle.golden, "here", wall_seconds=20).batch_invariant


def test_preflight_takes_every_dtype(tmp_path):
    bundle = _opened(tmp_path, identity())
    assert preflight(bundle.onnx, bundle.golden, "here").batch_invariant
    golden = npz(**{"input:bool": np.ones((1, 2), bool), "output:out_bool": np.zeros((1, 2), bool)})
    with pytest.raises(BundleInvalid, match="golden rows"):
        preflight(identity(["bool"]), golden, "here")


def test_preflight_refuses_another_graphs_answers(tmp_path):
    bundle = _opened(tmp_path)
    with pytest.raises(BundleInvalid, match=r"here: preflight refused it: .*golden rows"):
        preflight(linear(1.1), bundle.golden, "here")
    with pytest.raises(BundleInvalid, match="does not load"):
        preflight(b"\x08\x09", bundle.golden, "here")
    with pytest.raises(BundleInvalid, match=r"golden.npz"):
        preflight(bundle.onnx, b"PK", "here")


def test_preflight_makes_way_for_requests():
    with subprocess.Popen([sys.executable, "-m", "homeostat.serving.preflight"], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        own = psutil.Process().nice()
        while psutil.Process(process.pid).nice() != min(own + NICENESS, 19):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()


def test_preflight_has_limits(tmp_path):
    bundle = _opened(tmp_path)
    with pytest.raises(BundleInvalid, match=r"over 0.01 s"):
        preflight(bundle.onnx, bundle.golden, "here", wall_seconds=0.01)
    with pytest.raises(BundleInvalid, match="here: "):
        preflight(bundle.onnx, bundle.golden, "here", memory_bytes=40 * 1024 * 1024)


def test_preflight_survives_a_graph_that_kills_its_process(tmp_path):
    """Integer MIN / -1 is SIGFPE on x86; elsewhere the golden rows just differ."""
    low = numpy_helper.from_array(np.array([-(2**63)], np.int64), "low")
    graph = graph_bytes(
        [helper.make_node("Div", ["low", "x"], ["output"])],
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("output", TensorProto.INT64, ["n"])],
        [low],
    )
    golden = npz(**{"input:x": np.array([-1], np.int64), "output:output": np.array([0], np.int64)})
    with pytest.raises(BundleInvalid, match=r"SIGFPE|golden rows"):
        preflight(graph, golden, "here")


def test_an_endless_loop_is_ended_by_its_processor_time():
    golden = npz(**{"input:x": ONES, "output:output": ONES})
    start = time.perf_counter()
    with pytest.raises(PreflightFailed, match=r"here: .* SIGXCPU \(over 1 s of processor time\); it is not served"):
        preflight(endless_loop(), golden, "here", cpu_seconds=1)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile"])
def test_a_memory_bomb(op):
    golden = npz(**{"input:x": ONES, "output:output": ONES})
    with pytest.raises(PreflightFailed, match=r"here: preflight refused it: .*([Mm]emory|alloc|bytes)"):
        preflight(memory_bomb(op), golden, "here")


def test_it_can_be_interrupted_and_leaves_no_process():
    looks = iter([False, True])
    golden = npz(**{"input:x": ONES, "output:output": ONES})
    with pytest.raises(Interrupted):
        preflight(endless_loop(), golden, "here", interrupted=lambda: next(looks))
    left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not [command for command in left if "homeostat.serving.preflight" in command]


def test_nan_answers_are_refused():
    golden = npz(**{"input:x": -ONES, "output:output": np.full((3, 4), np.nan, np.float32)})
    with pytest.raises(PreflightFailed, match=r"answers NaN or Inf on 3 of 3 golden rows .* first on row 0"):
        preflight(chain(1, "Log"), golden, "here")


def test_a_row_with_nan_may_be_answered_so():
    rows = {"x": ONES.copy()}
    rows["x"][1, 2] = np.nan
    check_finite(rows, {"output": rows["x"]})
    with pytest.raises(BundleInvalid, match="on 1 of 3 golden rows of finite numbers, first on row 2"):
        check_finite(rows, {"output": rows["x"], "other": np.array([1, 2, np.inf])})


def test_golden_rows_that_unpack_to_too_much(monkeypatch):
    monkeypatch.setattr("homeostat.golden.GOLDEN_BYTES", 1000)
    with pytest.raises(BundleInvalid, match=r"golden.npz unpacks to \d+ bytes, at most 1000"):
        read_golden(npz(**{"input:x": np.zeros((16, 100)), "output:y": np.zeros((16, 1))}))


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"input:x": ONES},
        {"output:y": ONES},
        {"input:x": ONES[:0], "output:y": ONES[:0]},
        {"input:x": ONES, "input:z": ONES[:2], "output:y": ONES},
        {"input:x": np.ones((17, 4)), "output:y": ONES},
        {"input:x": np.float32(1), "output:y": ONES},
    ],
)
def test_golden_rows_that_are_none(arrays):
    with pytest.raises(BundleInvalid, match=r"golden.npz holds \[.*\] rows, expected 1 to 16 of each input"):
        read_golden(npz(**arrays))


def test_golden_rows_with_pickle_are_refused():
    with pytest.raises(BundleInvalid, match=r"golden.npz cannot be read"):
        read_golden(npz(**{"input:x": np.array([{}], object), "output:y": ONES}))


def _measured(graph: bytes, rows: np.ndarray) -> bool:
    (answer,) = Session(graph).run({"x": rows})
    return check_golden(Session(graph), npz(**{"input:x": rows, "output:output": answer}))


def _between_rows(node: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = ()) -> bytes:
    """x [n, 4] float32 -> output, by way of what one node makes of the whole batch."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "output"))
    return graph_bytes([node, helper.make_node("Add", ["x", "mixed"], ["output"])], [x], [y], list(weights))


def test_batch_invariance_is_measured():
    rows = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)
    axis = numpy_helper.from_array(np.int64(0), "axis")
    for rows_given in (rows, rows[:1]):
        assert _measured(linear(), rows_given)
        assert not _measured(_between_rows(helper.make_node("ReduceMax", ["x"], ["mixed"], axes=[0])), rows_given)
        assert not _measured(_between_rows(helper.make_node("CumSum", ["x", "axis"], ["mixed"]), (axis,)), rows_given)


def test_a_dependence_that_calm_rows_hide():
    """The largest of the batch, over a bound: as with the scales of dynamic quantization, it takes an extreme row."""
    low, high = (numpy_helper.from_array(np.float32(v), n) for v, n in ((500, "low"), (1e9, "high")))
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], axes=[0]),
        helper.make_node("Clip", ["largest", "low", "high"], ["clipped"]),
        helper.make_node("Add", ["x", "clipped"], ["output"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "output"))
    assert not _measured(graph_bytes(nodes, [x], [y], [low, high]), ONES)


def test_a_row_that_makes_its_neighbours_fail_is_a_dependence():
    """Gather by a number from the row: what lies outside the table fails the whole call."""
    table = numpy_helper.from_array(np.arange(8, dtype=np.float32), "table")
    nodes = [
        helper.make_node("Cast", ["x"], ["places"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "places"], ["output"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "output"))
    assert not _measured(graph_bytes(nodes, [x], [y], [table]), ONES)
