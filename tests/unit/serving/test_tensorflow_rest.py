"""TensorFlow Serving's REST paths, and every bad request with its status."""

from __future__ import annotations

import json

import pytest

from homeostat.serving.capture.writer import frames
from homeostat.serving.rest.tensorflow import Route, route

ROW = [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/models/toy", Route("status", "toy")),
        ("/v1/models/toy/labels/champion", Route("status", "toy", label="champion")),
        ("/v1/models/toy/metadata", Route("metadata", "toy")),
        ("/v1/models/toy/versions/1/metadata", Route("metadata", "toy", version="1")),
        ("/v1/models/toy/labels/previous/metadata", Route("metadata", "toy", label="previous")),
        ("/v1/models/toy:predict", Route("predict", "toy")),
        ("/v1/models/toy/versions/1:classify", Route("classify", "toy", version="1")),
        ("/v1/models/toy/labels/champion:regress", Route("regress", "toy", label="champion")),
        ("/v1/models/toy:", None),
        ("/v1/models/toy:train", None),
        ("/v1/models/toy/metadata:predict", None),
        ("/v1/models/toy/versions", None),
        ("/v1/models/toy/versions/1/2", None),
        ("/v1/models/" + "x" * 600, None),
    ],
)
def test_routes(path, expected) -> None:
    assert route(path) == expected


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("toy", {}, "either"),
        ("toy", {"instances": [ROW], "inputs": [ROW]}, "either"),
        ("toy", {"instances": []}, "a list with one entry a row"),
        ("toy", {"instances": 1}, "a list with one entry a row"),
        ("toy", {"instances": [ROW[:3]]}, "3 values at depth 1"),
        ("toy", {"instances": [ROW, 1]}, "int at depth 1"),
        ("toy", {"instances": [["a", 2, 3, 4]]}, "not all values are FP32"),
        ("toy", {"instances": [[None, 2, 3, 4]]}, "not all values are FP32"),
        ("toy", {"instances": [{"b64": "eA=="}]}, "must be an object with x"),
        ("toy", {"instances": [ROW] * 9}, "9 rows"),
        ("toy", {"instances": [ROW], "signature_name": "other"}, "no signature 'other'"),
        ("toy", {"inputs": 3}, "must be a list of rows"),
        ("toy", {"inputs": {"y": [ROW]}}, "must name x"),
        ("pair", {"instances": [[1, 2]]}, "name each"),
        ("pair", {"instances": [{"a": [1, 2], "b": 1}, {"a": [1, 2]}]}, "instances[1]"),
        ("pair", {"inputs": {"a": [[1, 2]], "b": [1, 2]}}, "rows"),
        ("pair", {"instances": [{"a": [1, 2], "b": 1.5}]}, "not all values are INT64"),
    ],
)
def test_bad_predictions(zoo, model, body, message) -> None:
    answer = zoo.call("POST", f"/v1/models/{model}:predict", json=body)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "examples: a list"),
        ({"examples": [{"x": ROW}] * 9}, "1 to 8"),
        ({"examples": [ROW]}, "must be an object"),
        ({"examples": [{}], "context": []}, "must be an object"),
        ({"examples": [{}]}, "1 values for feature 'x', which has 4"),
        ({"examples": [{"x": [[1], 2, 3, 4]}]}, "feature 'x'"),
    ],
)
def test_bad_examples(zoo, body, message) -> None:
    answer = zoo.call("POST", "/v1/models/toy:regress", json=body)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


def test_what_a_model_cannot_do(zoo) -> None:
    body = {"examples": [{"a": [1, 2], "b": 1}]}
    for path, message in (
        ("pair:regress", "more than one output"),
        ("flowers:regress", "does classification"),
        ("kinds:classify", "does regression"),
    ):
        answer = zoo.call("POST", f"/v1/models/{path}", json=body)
        assert (answer.status_code, message in answer.json()["error"]) == (400, True)


def test_methods_paths_and_models_that_are_not_there(zoo) -> None:
    assert zoo.call("GET", "/v1/models/toy:predict").status_code == 405
    assert zoo.call("GET", "/v1/models/toy:predict").headers["allow"] == "POST"
    assert zoo.call("POST", "/v1/models/toy", json={}).headers["allow"] == "GET, HEAD"
    for path in ("/v1/models/", "/v1/models/no", "/v1/models/no/metadata", "/v1/models/toy/labels/stable"):
        assert zoo.call("GET", path).status_code == 404, path
    assert zoo.call("GET", "/v1/models/toy/labels/challenger/metadata").status_code == 404
    assert zoo.call("POST", "/v1/models/toy:predict", content=b"x").status_code == 400
    assert zoo.call("POST", "/v1/models/toy:predict", content=b"x" * 70_000).status_code == 413


def test_id_and_entity_come_in_headers(zoo) -> None:
    headers = {"X-Request-Id": "tf-2", "X-Entity-Id": "patient-5"}
    answer = zoo.call("POST", "/v1/models/toy:predict", json={"instances": [ROW]}, headers=headers)
    assert answer.headers["x-request-id"] == "tf-2"
    _, text, _, _ = next(frames(bytearray(zoo.recorder._waiting[-1])))
    assert (json.loads(text)[0], json.loads(text)[5]) == ("tf-2", "patient-5")
    for bad in ({"X-Request-Id": "x" * 129}, {"X-Slices": "site"}):
        refused = zoo.call("POST", "/v1/models/toy:predict", json={"instances": [ROW]}, headers=bad)
        assert (refused.status_code, next(iter(bad)) in refused.text) == (400, True)


def test_each_refusal_is_counted_once(zoo) -> None:
    def count(text: str) -> int:
        lines = [line for line in text.splitlines() if line.startswith("homeostat_requests_total") and '"400"' in line]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)

    before = count(zoo.call("GET", "/metrics").text)
    zoo.call("POST", "/v1/models/toy:predict", json={"instances": [[1]]})
    zoo.call("POST", "/v1/models/toy:predict", content=b"x")
    assert count(zoo.call("GET", "/metrics").text) == before + 2


def test_the_index_and_the_operations(zoo) -> None:
    everything = zoo.call("POST", "/v2/repository/index", content=b"").json()
    assert {"name": "toy", "version": "3"}.items() <= next(one for one in everything if one["reason"]).items()
    assert zoo.call("GET", "/v2/repository/index").status_code == 405
    assert zoo.call("POST", "/v2/repository/index", json=[]).status_code == 400
    assert zoo.call("POST", "/v2/repository/index", json={"ready": 1}).status_code == 400
    refused = zoo.call("POST", "/v2/repository/models/toy/unload", json={})
    assert (refused.status_code, "homeostat key create" in refused.json()["error"]) == (403, True)
