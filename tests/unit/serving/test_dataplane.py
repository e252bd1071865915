"""The data plane: where a call runs, what is refused when it cannot keep up, and what a failing graph does."""

from __future__ import annotations

import json
import logging
import time

import numpy as np
import pytest

from homeostat.errors import RequestInvalid
from homeostat.serving import metrics
from homeostat.serving.dataplane import make_id
from homeostat.serving.jsonlog import JsonLines
from tests.bundles import make_bundle

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}]}


@pytest.fixture
def slow(plane, monkeypatch):
    """A plane whose every call counts as slow."""
    monkeypatch.setattr("homeostat.serving.served.INLINE_SECONDS", 0.0)
    plane.store.promote(make_bundle(plane.home))
    plane.repository.poll()
    return plane


def live(plane, model="toy"):
    return plane.repository.models[model].live


def test_a_fast_graph_runs_in_the_event_loop_up_to_its_rows(toy):
    assert live(toy).inline_rows == live(toy).max_rows == 8


def test_a_slow_graph_runs_in_a_thread_and_is_bounded(slow, monkeypatch):
    assert live(slow).inline_rows == 0
    assert slow.infer(BODY).json()["outputs"][0]["data"] == [4.0]
    with monkeypatch.context() as full:
        full.setattr("homeostat.serving.batching.MAX_QUEUED", 0)
        answer = slow.infer(BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert slow.infer(BODY).status_code == 200
    assert live(slow).metrics.statuses == {200: 2, 503: 1}
    slow.app._plane.close()


def test_a_failing_graph_is_a_500_that_names_no_internals(plane, caplog):
    plane.store.promote(make_bundle(plane.home))
    plane.repository.poll()

    def fail(names, tensors):
        raise RuntimeError("secret")

    live(plane).session._run = fail
    with caplog.at_level(logging.CRITICAL):
        answer = plane.infer(BODY)
    assert (answer.status_code, "secret" in answer.text, "log" in answer.json()["error"]) == (500, False, True)
    assert "RuntimeError" in answer.text
    assert (live(plane).metrics.statuses, plane.metrics.refused) == ({500: 1}, {})  # once, by its version
    assert plane.recorder.captured == 0


def test_capture_can_be_switched_off(plane):
    plane.store.promote(make_bundle(plane.home, capture=False))
    plane.repository.poll()
    assert plane.infer(BODY).status_code == 200
    assert plane.recorder.captured == 0


def test_nan_may_be_accepted(plane):
    plane.store.promote(make_bundle(plane.home, nan="accept"))
    plane.repository.poll()
    rows = {"x": np.array([[1, np.nan, 1, 1]], np.float32)}
    assert live(plane).check(rows)[0] == 1


def test_the_fast_check_and_the_contract_agree(toy):
    served = live(toy)
    rng = np.random.default_rng(3)
    for _ in range(300):
        values = rng.choice(
            [-11.0, -10.0, 0.0, 10.0, 10.5, np.nan, np.inf], (2, 4), p=[0.04, 0.3, 0.3, 0.3, 0.04, 0.01, 0.01]
        )
        rows = {"x": values.astype(np.float32)}
        try:
            expected = (2, served.contract.check_tensors(rows))
        except RequestInvalid as error:
            with pytest.raises(RequestInvalid, match=str(error).split(":")[0]):
                served.check(rows)
        else:
            assert served.check(rows) == expected


def test_feedback_is_not_dropped_in_silence(plane):
    plane.recorder._limit = 10
    answer = plane.call("POST", "/v1/feedback", json={"id": "a", "labels": [1]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_full_buffer_does_not_fail_a_request(plane):
    plane.store.promote(make_bundle(plane.home))
    plane.repository.poll()
    plane.recorder._limit = 10
    assert plane.infer(BODY).status_code == 200
    assert plane.recorder.dropped == 1


def test_the_follower_outlives_rows_that_make_no_sense(plane, monkeypatch):
    monkeypatch.setattr("homeostat.serving.repository.FAILED_SECONDS", 0.01)
    plane.store.table["toy"] = None
    plane.repository.start()
    try:
        deadline = time.monotonic() + 10
        while "cannot be followed" not in plane.repository.problem:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        del plane.store.table["toy"]
        plane.store.promote(make_bundle(plane.home))
        while plane.infer(BODY).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        plane.repository.close()


def test_ids_grow_and_differ():
    ids = [make_id() for _ in range(100)]
    assert len({name[16:] for name in ids}) == 100
    assert [name[:16] for name in ids] == sorted(name[:16] for name in ids)
    assert {len(name) for name in ids} == {32}


def test_latency_falls_into_its_bucket():
    counts = metrics.VersionMetrics("m", 1)
    for seconds in (0.0001, 0.00011, 99.0):
        counts.answered("champion", "v2-rest", seconds, seconds, 2, 1)
    buckets = counts.series["champion", "v2-rest"].buckets
    assert (buckets[0], buckets[1], buckets[-1]) == (1, 1, 1)
    assert (counts.rows, counts.out_of_range, counts.statuses) == (6, 3, {200: 3})


def test_a_log_line_is_json():
    try:
        raise ValueError("x")
    except ValueError as error:
        record = logging.LogRecord(
            "a", logging.ERROR, "f", 1, "said %s\n", ("y",), (ValueError, error, error.__traceback__)
        )
    line = JsonLines().format(record)
    assert "\n" not in line
    value = json.loads(line)
    assert (value["message"], value["log.level"], value["log.logger"]) == ("said y\n", "error", "a")
    assert "ValueError: x" in value["error.stack_trace"]
