"""/v1/explain: what it answers, what is refused, and that it stays out of everything else."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import httpx
import numpy as np
import pytest

from homeostat.config import ServeConfig
from homeostat.serving import explainer
from homeostat.serving.batching import Departed, departed
from homeostat.serving.explainer import MAX_WAITING, Options
from homeostat.serving.session import Session
from tests.bundles import make_bundle, slow, softmax, two_inputs
from tests.unit.serving.conftest import make_plane
from tests.unit.serving.test_repository import Store

NAMES = ("north", "east", "south", "west")


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """`toy` (x [n, 4] -> sum), `pair` (two inputs and outputs), `flowers` (softmax of three), `silent` (off)."""
    home = tmp_path_factory.mktemp("explained")
    made = make_plane(home, Store(), max_body=64 * 1024)
    made.store.promote(make_bundle(home, columns={"x": NAMES}, explain=True))
    made.store.promote(make_bundle(home, model="pair", onnx_bytes=two_inputs(), explain=True))
    flowers = {"task": "classification", "classes": ("iris", "rose", "tulip")}
    made.store.promote(make_bundle(home, model="flowers", onnx_bytes=softmax(), explain=True, **flowers))
    made.store.promote(make_bundle(home, model="silent"))
    made.repository.poll()
    yield made
    made.plane.close()


def ask(explained, data, model="toy", name="x", shape=None, datatype="FP32", **parameters):
    inputs = [
        {"name": name, "shape": shape or list(np.shape(data)), "datatype": datatype, "data": np.ravel(data).tolist()}
    ]
    body = {"inputs": inputs} | ({"parameters": parameters} if parameters else {})
    return explained.call("POST", f"/v1/explain?model={model}", json=body)


def test_a_sum_is_told_apart(explained):
    answer = ask(explained, [[1, 2, 3, 4], [4, 3, 2, 1]], permutations=4).json()
    assert (answer["model_name"], answer["model_version"], answer["columns"]) == ("toy", "1", list(NAMES))
    first, second = answer["explanations"]
    rows = explained.plane.find("toy").background["x"]
    assert answer["background_rows"] == len(rows)
    np.testing.assert_allclose(first["contributions"], [1, 2, 3, 4] - rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(second["contributions"], [4, 3, 2, 1] - rows.mean(axis=0), atol=1e-5)
    assert (first["prediction"], first["permutations"]) == (10, 4)
    assert first["base"] + sum(first["contributions"]) == pytest.approx(10)
    assert max(first["standard_errors"]) < 1e-5


def test_the_highest_score_is_explained_or_the_class_that_is_named(explained):
    row = [[0.1, 0.5, 0.2]]
    scores = explained.infer({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": row[0]}]},
                             "/v2/models/flowers/infer").json()["outputs"][0]["data"]  # fmt: skip
    (highest,) = ask(explained, row, "flowers").json()["explanations"]
    assert (highest["class"], highest["prediction"]) == (int(np.argmax(scores)), pytest.approx(max(scores)))
    assert highest["class_name"] == ("iris", "rose", "tulip")[highest["class"]]
    (named,) = ask(explained, row, "flowers", **{"class": 2}).json()["explanations"]
    assert (named["class"], named["class_name"], named["prediction"]) == (2, "tulip", pytest.approx(scores[2]))
    assert named["base"] + sum(named["contributions"]) == pytest.approx(scores[2])


def test_one_seed_one_answer_and_it_is_remembered(explained):
    counts = explained.plane.explainer.counts
    before = dict(counts)
    first, again = (ask(explained, [[0.3, 0.2, 0.1]], "flowers", seed=7) for _ in range(2))
    assert first.content == again.content
    assert counts["computed"] - before["computed"] == counts["remembered"] - before["remembered"] == 1
    assert f'homeostat_explanations_total{{outcome="computed"}} {float(counts["computed"])}' in rendered(explained)


def rendered(explained):
    from homeostat.serving.gauges import Gauges

    if not any(isinstance(one, Gauges) for one in explained.metrics._registry._collector_to_names):
        explained.metrics.add(Gauges(explained.plane))
    return explained.metrics.render().decode()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"permutations": 3}, "permutations: Input should be a multiple of 2"),
        ({"permutations": 1000}, "permutations: Input should be less than or equal to 512"),
        ({"permutations": True}, "permutations: Input should be a valid integer"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"class": 3}, "class: 3 is not below 1"),
        ({"class": -1}, "class"),
        ({"output": "nothing"}, "output: 'nothing' is not one of"),
        ({"samples": 3}, "samples: Extra inputs are not permitted; known: output, class, permutations, seed"),
    ],
)
def test_wrong_parameters_are_named(explained, parameters, message):
    answer = ask(explained, [[1, 2, 3, 4]], **parameters)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


def test_what_is_refused(explained):
    off = ask(explained, [[1, 2, 3, 4]], "silent")
    assert (off.status_code, "serve.explain = true" in off.json()["error"]) == (403, True)
    many = ask(explained, np.ones((17, 4)))
    assert (many.status_code, "at most 16 are explained" in many.json()["error"]) == (400, True)
    nan = ask(explained, [[1, 2, 3]])
    assert (nan.status_code, "shape [1, 3], expected [n, 4]" in nan.json()["error"]) == (400, True)
    unknown = ask(explained, [[1, 2, 3, 4]], "nobody")
    assert unknown.status_code == 404
    several = explained.call("POST", "/v1/explain", json={"inputs": []})
    assert (several.status_code, "which model? say ?model=NAME" in several.json()["error"]) == (400, True)


def test_it_is_neither_captured_nor_counted_as_an_answer(explained, monkeypatch):
    captured = []
    monkeypatch.setattr(explained.recorder, "put", captured.append)
    metrics = explained.plane.find("toy").metrics
    before = (metrics.rows, dict(metrics.statuses))
    assert ask(explained, [[9, 2, 3, 4]]).status_code == 200
    assert (metrics.rows, dict(metrics.statuses), captured) == (*before, [])


def test_time_that_runs_out_is_said(explained, monkeypatch):
    monkeypatch.setattr(explainer, "SECONDS", 0.0)
    answer = ask(explained, [[8, 2, 3, 4]])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "not explained within 0 s" in answer.json()["error"]


def test_a_call_that_takes_too_long_is_ended(explained, monkeypatch):
    monkeypatch.setattr(explainer, "SECONDS", 0.2)
    served = explained.plane.find("toy")
    graph = Session(slow(products=6000, size=600))  # ten seconds for one row
    monkeypatch.setattr(served.session, "run_until_told", graph.run_until_told)
    started = time.monotonic()
    assert ask(explained, [[6, 2, 3, 4]]).status_code == 503
    assert time.monotonic() - started < 5
    monkeypatch.undo()
    assert ask(explained, [[6, 2, 3, 4]]).status_code == 200


def test_only_so_many_wait(explained, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    compute = explained.plane.explainer._compute

    def held(*arguments):
        begun.set()
        assert go.wait(20)
        return compute(*arguments)

    monkeypatch.setattr(explained.plane.explainer, "_compute", held)

    async def crowd():
        transport = httpx.ASGITransport(explained.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bodies = [
                {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [i, i, i, i]}]}
                for i in range(MAX_WAITING + 2)
            ]
            asked = [asyncio.create_task(client.post("/v1/explain?model=toy", json=body)) for body in bodies]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            go.set()
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    statuses = asyncio.run(crowd())
    assert begun.is_set()
    assert (statuses.count(200), statuses.count(503)) == (MAX_WAITING, 2)


def test_a_client_that_has_left_is_explained_no_further(explained, monkeypatch):
    """Else a few that ask and leave would take the one thread from everybody, for ten seconds each."""
    begun, left = threading.Event(), threading.Event()
    served, explain = explained.plane.find("toy"), explained.plane.explain
    run, calls = served.session.run_until_told, []

    def held(tensors, options):
        calls.append(len(tensors["x"]))
        begun.set()
        assert left.wait(20)
        return run(tensors, options)

    monkeypatch.setattr(served.session, "run_until_told", held)

    def asking(number, gone):
        departed.set(gone)  # in the context that the task copies
        return asyncio.create_task(explain(served, {"x": np.full((1, 4), number, np.float32)}, Options()))

    async def ask_and_leave():
        asked = [asking(number, left.is_set) for number in (7.5, 7.25)]
        stays = asking(7.125, lambda: False)
        assert await asyncio.to_thread(begun.wait, 20)
        left.set()
        return await asyncio.gather(*asked, stays, return_exceptions=True)

    computing, waiting, answer = contextvars.copy_context().run(asyncio.run, ask_and_leave())
    assert isinstance(computing, Departed)
    assert isinstance(waiting, Departed)
    assert isinstance(answer, bytes)
    whole = len(calls)
    again = ask(explained, [[7.5] * 4])  # nothing of what was given up is remembered
    assert again.json()["explanations"][0]["permutations"] == 32
    each = len(calls) - whole
    assert whole < 2 * each, "of two that left one was begun, and ended"


def test_rows_are_asked_alone_where_they_depend_on_each_other(explained, monkeypatch):
    served = explained.plane.find("toy")
    sizes = set()
    run = served.session.run_until_told

    def watched(tensors, options):
        sizes.add(len(tensors["x"]))
        return run(tensors, options)

    monkeypatch.setattr(served.session, "run_until_told", watched)
    object.__setattr__(served, "batch_invariant", False)
    try:
        assert ask(explained, [[7, 2, 3, 4]], permutations=2).status_code == 200
    finally:
        object.__setattr__(served, "batch_invariant", True)
    assert sizes == {1}


def test_it_is_off_unless_asked_for():
    assert ServeConfig().explain is False
