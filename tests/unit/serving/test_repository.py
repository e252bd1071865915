"""The repository: follows the rows, swaps whole, and keeps what is live when anything fails."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.bundles import Store, contract_of, linear, make_bundle, npz, rollout, slow
from tests.unit.serving.conftest import make_plane, promote

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}]}


def answer(plane, path="/v2/models/toy/infer"):
    response = plane.infer(BODY, path)
    return (
        (response.json().get("model_version"), response.json()["outputs"][0]["data"]) if response.is_success else None
    )


def damage(ref, name="model.onnx"):
    path = Path(ref.url.removeprefix("file://")) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def status(plane, path):
    response = plane.call("GET", path)
    return response.status_code, response.json()


def test_nothing_is_known_before_the_first_reading(plane):
    plane.store.down = True
    plane.repository.poll()
    refused = plane.call("GET", "/v2/health/ready")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "does not answer" in status(plane, "/v2/health/ready")[1]["problem"]
    plane.store.down = False
    plane.repository.poll()
    assert status(plane, "/v2/health/ready") == (200, {"ready": True, "problem": ""})


def test_challenger_then_champion_then_back(plane):
    one, two = make_bundle(plane.home, 1), make_bundle(plane.home, 2)
    plane.store.put(rollout(None, 1, challenger=one))
    plane.repository.poll()
    assert status(plane, "/v2/models/toy/versions/1/ready")[0] == 200
    assert status(plane, "/v2/models/toy/ready")[0] == 503
    assert status(plane, "/v2/health/ready")[0] == 200, "no champion is named yet, so none is missing"
    assert plane.infer(BODY).status_code == 503
    assert plane.infer(BODY, "/v2/models/toy/versions/1/infer").status_code == 503

    plane.store.put(rollout(one, 2))
    plane.repository.poll()
    plane.store.put(rollout(one, 3, challenger=two))
    plane.repository.poll()
    assert answer(plane) == ("1", [4.0])
    assert status(plane, "/v2/models/toy/versions/2/ready")[1]["ready"]
    assert plane.infer(BODY, "/v2/models/toy/versions/2/infer").status_code == 404, "a challenger does not answer"

    session = plane.repository.models["toy"].challenger
    plane.store.put(rollout(two, 4, previous=one))
    plane.repository.poll()
    assert plane.repository.models["toy"].live is session, "it was warm, and is not loaded again"
    assert answer(plane) == ("2", [8.0])
    assert answer(plane, "/v2/models/toy/versions/1/infer") == ("1", [4.0])
    assert status(plane, "/v2/models/toy/ready")[1]["generation"] == 4

    damage(one)  # rollback needs the bundle no more: its session is warm
    plane.store.put(rollout(one, 5, previous=two))
    plane.repository.poll()
    assert answer(plane) == ("1", [4.0])
    assert plane.metrics.swaps == {"toy": 3}


@pytest.mark.parametrize("name", ["model.onnx", "contract.json", "manifest.json", "manifest.sig", "golden.npz"])
def test_a_damaged_bundle_leaves_the_live_version(plane, name):
    one, two = make_bundle(plane.home, 1), make_bundle(plane.home, 2)
    plane.store.promote(one)
    plane.repository.poll()
    damage(two, name)
    plane.store.promote(two)
    plane.repository.poll()
    assert answer(plane) == ("1", [4.0])
    code, ready = status(plane, "/v2/models/toy/ready")
    assert (code, ready["version"], ready["generation"]) == (200, "1", 1)
    assert name.split(".")[0] in ready["problem"]
    code, two_ready = status(plane, "/v2/models/toy/versions/2/ready")
    assert status(plane, "/v2/models/toy/versions/3/ready")[0] == 404, "nobody named that one"
    assert (code, two_ready["ready"]) == (503, False)
    assert "version 2 is refused" in two_ready["problem"]
    assert 'homeostat_swaps_total{model="toy"} 1.0' in plane.call("GET", "/metrics").text


def test_a_repaired_bundle_is_tried_again(plane, monkeypatch):
    monkeypatch.setattr("homeostat.serving.repository.RETRY_SECONDS", (0.0,))
    one = make_bundle(plane.home, 1)
    path = Path(one.url.removeprefix("file://")) / "model.onnx"
    data = path.read_bytes()
    path.write_bytes(b"x")
    plane.store.promote(one)
    plane.repository.poll()
    assert answer(plane) is None
    assert status(plane, "/v2/health/ready")[0] == 503
    path.write_bytes(data)
    plane.repository.poll()
    assert answer(plane) == ("1", [4.0])
    assert status(plane, "/v2/models/toy/ready")[1]["problem"] == ""


def test_a_refused_bundle_is_not_tried_at_every_poll(plane):
    one = make_bundle(plane.home, 1)
    damage(one)
    plane.store.promote(one)
    plane.repository.poll()
    times = dict(plane.repository._refused)
    plane.repository.poll()
    assert plane.repository._refused == times


def test_a_graph_that_does_not_fit_its_contract(plane, monkeypatch):
    monkeypatch.setattr("tests.bundles.contract_of", lambda graph, columns=None: contract_of(linear(width=5)))
    monkeypatch.setattr("homeostat.bundle.make_golden", lambda onnx, rows: _golden_of_four())
    plane.store.promote(make_bundle(plane.home, 1))
    plane.repository.poll()
    assert "contract says" in status(plane, "/v2/models/toy/ready")[1]["problem"]


def _golden_of_four():
    return npz(**{"input:x": np.ones((1, 4), np.float32), "output:output": np.full((1, 1), 4, np.float32)})


def test_the_last_verified_version_survives_a_restart_without_the_control_store(plane):
    one, two = make_bundle(plane.home, 1), make_bundle(plane.home, 2)
    plane.store.promote(one)
    plane.repository.poll()
    plane.store.promote(two)
    plane.repository.poll()

    again = make_plane(plane.home, Store(down=True))
    again.repository.restore()
    again.repository.poll()
    assert answer(again) == ("2", [8.0])
    assert answer(again, "/v2/models/toy/versions/1/infer") == ("1", [4.0])
    assert status(again, "/v2/health/ready")[0] == 200
    assert status(again, "/v2/models/toy/ready")[1]["generation"] == 2

    again.store.down = False
    again.store.put(rollout(one, 3, previous=two))
    again.repository.poll()
    assert answer(again) == ("1", [4.0])


def test_a_restart_with_a_damaged_bundle_does_not_serve_it(plane):
    one = make_bundle(plane.home, 1)
    plane.store.promote(one)
    plane.repository.poll()
    damage(one)
    again = make_plane(plane.home, Store(down=True))
    again.repository.restore()
    assert again.infer(BODY).status_code == 503
    assert "model.onnx" in status(again, "/v2/models/toy/ready")[1]["problem"]


def test_a_refused_version_is_not_remembered(plane):
    one, two = make_bundle(plane.home, 1), make_bundle(plane.home, 2)
    plane.store.promote(one)
    plane.repository.poll()
    damage(two)
    plane.store.promote(two)
    plane.repository.poll()
    assert json.loads((plane.home / "serving" / "toy.json").read_text())["row"]["champion"]["version"] == 1


def test_a_row_that_went_back_is_followed_and_reported(plane, caplog):
    one, two = make_bundle(plane.home, 1), make_bundle(plane.home, 2)
    plane.store.put(rollout(two, 7, previous=one))
    plane.repository.poll()
    assert [
        record for record in caplog.records if record.levelno >= logging.WARNING
    ] == []  # INFO: as other tests leave it
    plane.store.put(rollout(one, 1))
    plane.repository.poll()
    assert answer(plane) == ("1", [4.0])
    assert "toy: the rollout row went back from generation 7 to 1" in caplog.text


def test_a_row_that_is_gone_is_reported_and_what_it_named_answers(plane, caplog):
    plane.store.put(rollout(make_bundle(plane.home, 1)))
    plane.repository.poll()
    table, plane.store.table = plane.store.table, {}
    for _ in range(3):
        plane.repository.poll()
    said = "the control store has no rollout row of toy any more"
    assert plane.repository.problem.startswith(said)
    assert caplog.text.count(said) == 1
    assert answer(plane) == ("1", [4.0])
    assert status(plane, "/v2/health/ready")[0] == 200
    plane.store.table = table
    plane.repository.poll()
    assert plane.repository.problem == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"row": {}, "verified": {}}', '{"row": {"champion": 1}}'])
def test_a_damaged_memory_is_passed_over(plane, text):
    (plane.home / "serving").mkdir()
    (plane.home / "serving" / "toy.json").write_text(text)
    plane.repository.restore()
    assert plane.repository.models == {}


def test_a_model_name_that_is_a_path_is_passed_over(plane):
    one = make_bundle(plane.home, 1)
    plane.store.put(replace(rollout(one), model="../../toy"))
    plane.repository.poll()
    assert plane.repository.models == {}
    assert not list(plane.home.parent.glob("toy*.json"))


def test_few_sessions_are_kept(plane):
    for version in range(1, 8):
        plane.store.promote(make_bundle(plane.home, version))
        plane.repository._memory.add(plane.store.table["toy"].champion, batch_invariant=True)  # spares 7 processes
        plane.repository.poll()
    assert len(plane.repository._sessions["toy"]) == 4
    assert answer(plane) == ("7", [28.0])


def test_a_rollback_does_not_wait_for_a_preflight(plane, monkeypatch):
    """A challenger may keep its preflight busy for half a minute; what answers is decided meanwhile."""
    monkeypatch.setattr("homeostat.bundle.make_golden", lambda onnx, rows: GOLDEN)
    one, two = make_bundle(plane.home, 1), make_bundle(plane.home, 2)
    bad = make_bundle(plane.home, 3, onnx_bytes=slow())
    promote(plane, one, two)
    plane.repository.start()
    try:
        until(lambda: answer(plane) == ("2", [8.0]), plane)
        plane.store.put(rollout(two, 5, previous=one, challenger=bad))
        until(lambda: preflights() != [], plane)
        first = preflights()
        start = time.perf_counter()
        plane.store.put(rollout(one, 6, challenger=bad))
        until(lambda: answer(plane) == ("1", [4.0]), plane)
        assert time.perf_counter() - start < 5
        until(lambda: preflights() not in ([], first), plane)  # it begins anew
    finally:
        plane.repository.close()
    assert not plane.repository._thread.is_alive(), "nor does the server's end"
    assert preflights() == []


GOLDEN = npz(**{"input:x": np.ones((1, 4), np.float32), "output:output": np.ones((1, 4), np.float32)})


def preflights() -> list[int]:
    """The processes of this one that try a graph."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "homeostat.serving.preflight" in child.cmdline():
                found.append(child.pid)
    return found


def until(condition, plane) -> None:
    for _ in range(600):
        if condition():
            return
        plane.repository.poke()
        time.sleep(0.05)
    raise AssertionError(plane.repository.models)


def test_a_failed_preflight_is_not_tried_again_soon(plane, monkeypatch):
    monkeypatch.setattr("homeostat.serving.repository.RETRY_SECONDS", (0.0,))
    monkeypatch.setattr("homeostat.bundle.make_golden", lambda onnx, rows: GOLDEN)  # its answer is 4, not 1
    plane.store.promote(make_bundle(plane.home, 1))
    plane.repository.poll()
    times = dict(plane.repository._refused)
    plane.repository.poll()
    assert plane.repository._refused == times
    assert "preflight refused it" in status(plane, "/v2/models/toy/ready")[1]["problem"]


def test_the_thread_follows_and_is_poked(plane):
    one = make_bundle(plane.home, 1)
    plane.store.promote(one)
    plane.repository.start()
    try:
        for _ in range(200):
            if answer(plane) is not None:
                break
            plane.repository.poke()
            time.sleep(0.05)
        assert answer(plane) == ("1", [4.0])
    finally:
        plane.repository.close()
    assert not plane.repository._thread.is_alive()
