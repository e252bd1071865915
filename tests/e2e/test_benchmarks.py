"""The benchmarks of real servers, each once and small: they run, and count nothing that is not there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import challengers, features, rollback, serving, start, swaps
from benchmarks.rollout_models import bundle, classifier, make_champion
from benchmarks.rollout_server import Serving
from benchmarks.serving_models import WORKLOADS
from benchmarks.serving_protocols import V2, V2_BINARY
from benchmarks.serving_rivals import RIVALS, SERVERS
from benchmarks.serving_server import Server
from benchmarks.steady_load import FIELDS
from homeostat.bundle import load_public_key, open_bundle
from homeostat.serving.session import Session

pytestmark = pytest.mark.e2e


def test_swaps_under_load_lose_nothing(tmp_path, capsys):
    found = swaps.measure(tmp_path, swaps=2, rate=100, connections=2, pause=0.1)
    assert (found["swaps"], found["failed"], found["lost"]) == (2, 0, 0)
    assert found["wrong"] == {"torn": 0, "early": 0, "late": 0}
    parts = found["milliseconds"]
    assert min(one["requests"] for one in parts.values()) > 0
    assert parts["inside"]["requests"] + parts["outside"]["requests"] == found["requests"]
    swaps.show(found)
    assert "2 swaps" in capsys.readouterr().out


def test_wrong_answers_are_seen():
    """v1, then v2: announced at 1 s, promoted at 2 s, and confirmed at 3 s."""
    rows = [
        (0, 0.5, 0.6, 200, 1, 4.0),
        (0, 0.6, 0.7, 200, 1, 8.0),  # torn
        (0, 1.0, 1.1, 200, 2, 8.0),  # early
        (0, 1.9, 2.1, 200, 2, 8.0),
        (0, 2.5, 2.6, 200, 1, 4.0),
        (0, 2.9, 3.4, 200, 1, 4.0),
        (0, 3.1, 3.2, 200, 1, 4.0),  # late
        (0, 3.3, 3.4, 500, 0, 0.0),
        (0, 3.5, 3.6, 0, 0, 0.0),
        (0, 3.7, 3.8, 200, 2, 8.0),
    ]
    done = [swaps.Swap(2, 1.0, 1.5, 2.0, 3.0)]
    records = np.array([(*row, place, 1) for place, row in enumerate(rows)], FIELDS)
    found = swaps.summary(records, done)
    assert found["wrong"] == {"torn": 1, "early": 1, "late": 1}
    assert (found["failed"], found["lost"], found["requests"]) == (1, 1, 10)
    assert found["milliseconds"]["while loading"]["requests"] == 1
    assert found["milliseconds"]["at the swap"]["requests"] == 4


def test_rollbacks_are_timed_to_the_last_bad_answer(tmp_path, capsys):
    found = rollback.measure(tmp_path, repetitions=1, rate=100, connections=2, seed=1)
    assert (found["failed"], found["lost"]) == (0, 0)
    assert found["requests"] > 20
    for way in rollback.WAYS:
        assert 0 < found["last_bad_answer"][way]["max"] < 5
    rollback.show(found)
    assert "command, to the last bad answer" in capsys.readouterr().out


def test_a_bad_challenger_is_out_of_a_real_server(tmp_path):
    (defect,) = [one for one in challengers.DEFECTS if one.name == "nan"]
    found = challengers.roll_out(tmp_path, defect, seed=0, rate=300, seconds=60)
    assert (found["out"], found["failed"], found["lost"]) == (True, 0, 0)
    assert found["reason"].startswith("errors: ")
    assert 0 < found["answers"] < found["requests"]
    assert found["bad"] <= found["answers"]


def test_a_start_is_timed_and_weighed(tmp_path, capsys):
    ref = bundle(tmp_path, 1, classifier(), "classification")
    make_champion(Serving(tmp_path).store, ref)
    took = start.start_ours(tmp_path, ref, Path(sys.executable).parent, tmp_path, grpc=True)
    assert 0 < took["seconds"] < 30
    assert 20 < took["rss"] < 1000
    assert 20 < took["pss"] < 1000
    start.show({"homeostat, first": [took], "mlserver": [took]})
    assert "1.0x" in capsys.readouterr().out


def test_rivals_are_given_the_same_graph(tmp_path):
    opened = open_bundle(bundle(tmp_path, 1, classifier(), "classification"), load_public_key(tmp_path))
    rows = np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32)
    flat = start.flatten(opened.onnx)
    assert flat.layers == (4,)
    (ours,), (theirs,) = (Session(graph).run({"x": rows}) for graph in (opened.onnx, flat.onnx()))
    np.testing.assert_array_equal(ours, theirs)


def test_our_server_is_loaded_by_every_protocol(tmp_path, capsys):
    (small,) = [one for one in WORKLOADS if one.name == "w4"]
    ours = [server for server in SERVERS if server.environment == "homeostat"]
    found, skipped = serving.measure(tmp_path, small, ours, [2], repetitions=1, seconds=1)
    assert not skipped
    assert list(found) == ["session.run", "homeostat", "homeostat binary", "homeostat grpc"]
    for cells in found.values():
        ((cell,),) = cells.values()
        assert cell.load.failed == 0
        assert cell.load.per_second > 50
        assert 0 < cell.load.p50_ms <= cell.load.p99_ms
        assert 0 < cell.cpu_us < 1e6
    table = {name: {at: serving.summary(cells) for at, cells in rows.items()} for name, rows in found.items()}
    serving.show(small.title, table, {"rival": "cannot be installed"})
    assert "rival              SKIPPED: cannot be installed" in capsys.readouterr().out


def _bare_app(folder, workload, port):
    graph = folder / "graph.onnx"
    graph.write_bytes(workload.onnx())
    command = [sys.executable, "-m", "uvicorn", "asgi_app:app", "--port", str(port), "--no-access-log"]
    return command, {"BENCH_ONNX": str(graph), "PYTHONPATH": str(RIVALS)}


def _other_rows(folder, workload, port):
    command, environment = _bare_app(folder, workload, port)
    (folder / "graph.onnx").write_bytes(replace(workload, layers=(30, 8, 2)).onnx())
    return command, environment


def test_rivals_that_end_or_answer_something_else_are_named(tmp_path, capsys):
    (small,) = [one for one in WORKLOADS if one.name == "w4"]
    servers = [
        Server("bare", _bare_app, V2),
        Server("bare binary", _bare_app, V2_BINARY),
        Server("other", _other_rows, V2),
        Server("broken", lambda *_: ([sys.executable, "-c", "raise SystemExit('no such model')"], {}), V2),
    ]
    found, skipped = serving.measure(tmp_path, small, servers, [1], repetitions=1, seconds=1, bare=False)
    assert list(found) == ["bare", "bare binary"]
    assert skipped["other"].startswith("answers (1, 2) [")
    assert skipped["broken"] == "has ended; broken-w4.log ends with: no such model"
    assert "other is SKIPPED" in capsys.readouterr().out


def test_what_features_cost_is_a_difference_within_pairs(tmp_path, capsys):
    (small,) = [one for one in WORKLOADS if one.name == "w4"]
    chosen = [one for one in features.VARIANTS if one.name in {"with an API key", features.EMPTY}]
    found, skipped = features.measure_pairs(tmp_path, small, V2, chosen, number=2, times=1, seconds=1)
    assert not skipped
    table = features.summary(found)
    assert list(table) == [features.BASE, "with an API key", features.EMPTY]
    assert all(one["failed"] == 0 for one in table.values())
    for name, (pair,) in found.items():
        assert table[name]["added_us"] == pair[1].cpu_us - pair[0].cpu_us
    assert table[features.EMPTY]["added_us"] < 0
    features.show(small.title, table, {"other": "has ended"})
    assert "other                      SKIPPED: has ended" in capsys.readouterr().out


def test_parts_that_are_cut_out_do_nothing(tmp_path):
    """What the variants of the server without a part change is there, and still is called so."""
    code = "from benchmarks.server_without import PARTS\nfor cut in PARTS.values(): cut()\n"
    code += "from homeostat.serving.served import Served\nprint(Served.check(None, {'x': [1, 2, 3]}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "(3, 0)\n"
