"""The Open Inference Protocol over REST: golden bodies, and every bad request with its exact status."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from homeostat.client import Client, current
from homeostat.config import MaskingConfig
from homeostat.keys import load_salt
from homeostat.serving.capture.writer import frames
from homeostat.serving.rest.app import route
from homeostat.tensors import unpack
from tests.bundles import Store, make_bundle
from tests.unit.serving.conftest import make_plane

ROWS = [[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]]
INPUT = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": ROWS}
FLAT = [1.0, 2.0, 3.0, 4.0]


def one(**changes) -> dict:
    return {"inputs": [{**INPUT, **changes}]}


def recorded(plane) -> tuple[int, list, bytes, bytes]:
    kind, text, inputs, outputs = next(frames(bytearray(plane.recorder._waiting[-1])))
    return kind, json.loads(text), inputs, outputs


def test_infer_json(toy):
    answer = toy.infer({"id": "a-1", "inputs": [INPUT], "parameters": {"entity_id": "Zoë"}})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "a-1"
    assert answer.json() == {
        "model_name": "toy",
        "model_version": "1",
        "id": "a-1",
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [2, 1], "data": [10.0, 4.0]}],
    }
    kind, (request_id, _, model, version, sha256, entity, rows, milliseconds, *rest), inputs, outputs = recorded(toy)
    assert (kind, request_id, model, version, entity, rows) == (1, "a-1", "toy", 1, "Zoë", 2)
    assert sha256 == toy.store.table["toy"].champion.sha256
    assert 0 < milliseconds < 1000
    assert rest == ["champion", None, None, None], "arm, client, slices, masking"
    np.testing.assert_array_equal(unpack(inputs)["x"], np.array(ROWS, np.float32), strict=True)
    np.testing.assert_array_equal(unpack(outputs)["output"], np.array([[10], [4]], np.float32), strict=True)


def test_what_is_queued_is_masked(tmp_path):
    plane = make_plane(tmp_path, Store())
    masking = MaskingConfig(columns={"x_0": "step 10", "x_1": "hash", "site": "categories north"})
    plane.store.promote(make_bundle(tmp_path, masking=masking, slices=("site",)))
    plane.repository.poll()
    secret = {**INPUT, "data": [[17, 1234.5, 1234.5, 4], [25, 1234.5, 1234.5, 4]]}
    parameters = {"entity_id": "Zoë", "slices": "site=Ulm,name=Zoë"}
    token = current.set(Client("key-7", frozenset({"infer"})))
    answer = plane.infer({"inputs": [secret], "parameters": parameters})
    current.reset(token)
    assert answer.json()["outputs"][0]["data"] == [2490.0, 2498.0], "answered from the request as it came"
    _, about, inputs, _ = recorded(plane)
    np.testing.assert_array_equal(unpack(inputs)["x"], np.array([[10, *[np.nan] * 3], [20, *[np.nan] * 3]], "<f4"))
    entity, (arm, client, slices, masked) = about[5], about[8:]
    found = json.loads(slices)
    assert (arm, client, found["site"], sorted(found)) == ("champion", "key-7", "other", ["site", "x_1"])
    assert len(set(found["x_1"])) == 1
    assert len(entity) == 32
    assert json.loads(masked) == {"x": {"x_0": "step 10", "x_1": "hash", "x_2": "drop", "x_3": "drop"}}
    frame = plane.recorder._waiting[-1]
    assert not any(text in frame for text in ("Zoë".encode(), b"Ulm", np.float32(1234.5).tobytes()))


def test_a_salt_that_others_may_read_refuses_a_version_that_needs_it(tmp_path):
    plane = make_plane(tmp_path, Store())
    load_salt(tmp_path)
    (tmp_path / "keys" / "masking.salt").chmod(0o644)
    plane.store.promote(make_bundle(tmp_path))
    plane.repository.poll()
    plane.store.promote(make_bundle(tmp_path, 2, masking=MaskingConfig(columns={"x": "keep"})))
    plane.repository.poll()
    assert "chmod 600" in plane.repository.models["toy"].problem
    assert plane.infer(one()).json()["model_version"] == "1"


def test_flat_and_nested_and_whole_numbers_are_the_same(toy):
    flat = toy.infer(one(data=[value for row in ROWS for value in row])).json()["outputs"]
    assert flat == toy.infer(one()).json()["outputs"] == toy.infer(one(data=[[1, 2, 3, 4], [1] * 4])).json()["outputs"]


def test_an_id_is_made_when_none_is_given(toy):
    first, second = toy.infer(one()), toy.infer({**one(), "id": ""})
    assert first.json()["id"] == first.headers["x-request-id"]
    assert len({first.json()["id"], second.json()["id"]}) == 2


def test_several_inputs_and_chosen_outputs(toy):
    body = {
        "inputs": [
            {"name": "b", "shape": [2], "datatype": "INT64", "data": [3, 4]},
            {"name": "a", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]},
        ]
    }
    answer = toy.infer(body, "/v2/models/pair/versions/1/infer").json()
    assert {o["name"]: (o["datatype"], o["shape"], o["data"]) for o in answer["outputs"]} == {
        "total": ("FP32", [2, 2], [2.0, 4.0, 6.0, 8.0]),
        "doubled": ("INT64", [2], [6, 8]),
    }
    chosen = toy.infer({**body, "outputs": [{"name": "doubled"}]}, "/v2/models/pair/infer").json()
    assert [o["name"] for o in chosen["outputs"]] == ["doubled"]


def binary(header: dict, *blobs: bytes) -> dict:
    head = json.dumps(header).encode()
    return {"content": b"".join((head, *blobs)), "headers": {"Inference-Header-Content-Length": str(len(head))}}


def binary_input(**changes) -> dict:
    return {"name": "x", "shape": [2, 4], "datatype": "FP32", "parameters": {"binary_data_size": 32}, **changes}


BLOB = np.array(ROWS, "<f4").tobytes()


@pytest.mark.parametrize("pad", range(4))
def test_infer_binary_in_and_out(toy, pad):
    header = {"inputs": [binary_input()], "parameters": {"binary_data_output": True}, "id": "i" * (pad + 1)}
    answer = toy.call("POST", "/v2/models/toy/infer", **binary(header, BLOB))
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.content[:length])
    assert head["outputs"] == [
        {"name": "output", "datatype": "FP32", "shape": [2, 1], "parameters": {"binary_data_size": 8}}
    ]
    assert answer.headers["content-type"] == "application/octet-stream"
    np.testing.assert_array_equal(np.frombuffer(answer.content[length:], "<f4"), [10, 4])


def test_binary_and_json_mixed(toy):
    inputs = [
        {"name": "b", "shape": [1], "datatype": "INT64", "data": [3]},
        {"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
    ]
    outputs = [{"name": "doubled", "parameters": {"binary_data": True}}, {"name": "total"}]
    request = binary({"inputs": inputs, "outputs": outputs}, np.array([1, 2], "<f4").tobytes())
    answer = toy.call("POST", "/v2/models/pair/infer", **request)
    length = int(answer.headers["inference-header-content-length"])
    assert [o.get("data") for o in json.loads(answer.content[:length])["outputs"]] == [None, [2.0, 4.0]]
    assert answer.content[length:] == np.array([6], "<i8").tobytes()
    only_json = toy.call("POST", "/v2/models/toy/infer", **binary({"inputs": [binary_input()]}, BLOB))
    assert only_json.json()["outputs"][0]["data"] == [10.0, 4.0]


@pytest.mark.parametrize(
    ("header", "blob", "message"),
    [
        ({"inputs": [binary_input()]}, BLOB[:-1], "announced"),
        ({"inputs": [binary_input()]}, BLOB + b"x", "left over"),
        ({"inputs": [binary_input(parameters={"binary_data_size": 31})]}, BLOB[:-1], "32 bytes"),
        ({"inputs": [binary_input(parameters={"binary_data_size": -32})]}, BLOB, "32 bytes"),
        ({"inputs": [binary_input(parameters={"binary_data_size": "32"})]}, BLOB, "32 bytes"),
        ({"inputs": [binary_input(parameters=[])]}, BLOB, "must be an object"),
        ({"inputs": [binary_input(shape=[2**40] * 4)]}, BLOB, "bytes"),
        ({"inputs": [binary_input()]}, np.full(8, np.nan, "<f4").tobytes(), "NaN"),
    ],
)
def test_bad_binary(toy, header, blob, message):
    answer = toy.call("POST", "/v2/models/toy/infer", **binary(header, blob))
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.parametrize("length", ["-1", "x", "99999", "9" * 5000, "²"])
def test_bad_header_length(toy, length):
    headers = [(b"Inference-Header-Content-Length", length.encode("latin-1"))]
    answer = toy.call("POST", "/v2/models/toy/infer", content=b"{}", headers=headers)
    assert (answer.status_code, "Inference-Header" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: empty"),
        (b"{", "not valid JSON"),
        (b"[]", "object is expected"),
        (b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, NaN]}]}', "not valid JSON"),
        (b"[" * 4000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        ({}, "inputs: a list"),
        ({"inputs": []}, "inputs: a list"),
        ({"inputs": {}}, "inputs: a list"),
        ({"inputs": [1]}, "inputs[0]"),
        ({"inputs": [INPUT, INPUT]}, "twice"),
        ({"inputs": [INPUT], "id": 3}, "id: 3"),
        ({"inputs": [INPUT], "id": "x" * 129}, "1 to 128"),
        ({"inputs": [INPUT], "id": "a\r\nb"}, "printable"),
        ({"inputs": [INPUT], "parameters": []}, "parameters: must be an object"),
        ({"inputs": [INPUT], "parameters": {"entity_id": 7}}, "entity_id"),
        ({"inputs": [INPUT], "parameters": {"slices": {"site": "north"}}}, "parameters.slices"),
        ({"inputs": [INPUT], "parameters": {"slices": "site"}}, "name=value"),
        ({"inputs": [INPUT], "parameters": {"entity_id": "a\x00b"}}, "entity_id"),
        ({"inputs": [INPUT], "outputs": {}}, "outputs: must be a list"),
        ({"inputs": [INPUT], "outputs": [{}]}, "outputs[0]"),
        ({"inputs": [INPUT], "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output: 1 must be true"),
        (
            {"inputs": [INPUT], "outputs": [{"name": "output", "parameters": {"binary_data": "no"}}]},
            "outputs[0].parameters.binary_data: 'no' must be true or false",
        ),
        ({"inputs": [INPUT], "outputs": [{"name": "y"}]}, "no output 'y'; there is: output"),
        ({"inputs": [INPUT], "outputs": [{"name": "output"}] * 2}, "outputs: one stands twice: output, output"),
        (one(name="y"), "missing: x; unknown: y"),
        (one(name=None), "inputs[0]"),
        (one(datatype="BYTES"), "use one of BOOL"),
        (one(datatype=None), "use one of BOOL"),
        (one(datatype="FP64"), "dtype float64, expected float32 (FP32)"),
        (one(datatype="INT64", data=[1] * 8), "dtype int64, expected float32"),
        (one(shape=[4, 2], data=[1] * 8), "expected [n, 4]"),
        (one(shape=[8], data=[1] * 8), "expected [n, 4]"),
        (one(shape=[]), "shape"),
        (one(shape="2,4"), "shape"),
        (one(shape=[2, -4]), "not a size"),
        (one(shape=[2, 4.0]), "not a size"),
        (one(shape=[True, 4]), "not a size"),
        (one(shape=[10**30, 4]), "not a size"),
        (one(shape=[1] * 17), "1 to 16 sizes"),
        (one(shape=[0, 4], data=[]), "0 rows"),
        (one(shape=[9, 4], data=[1] * 36), "at most 8"),
        (one(data=None), "list of numbers"),
        (one(data=7), "list of numbers"),
        (one(data="12345678"), "list of numbers"),
        (one(data=[1] * 7), "7 values"),
        (one(data=[[1, 2, 3, 4], [1, 2, 3]]), "3 values at depth 1"),
        (one(data=[[1, 2, 3, 4], 1]), "int at depth 1"),
        (one(data=[[1, 2, 3, 4]]), "1 values at depth 0"),
        (one(data=[[FLAT], [FLAT]]), "1 values at depth 1"),
        (one(data=["1"] * 8), "not all values are FP32"),
        (one(data=[None] * 8), "not all values are FP32"),
        (one(data=[[1, 2, 3, "x"], FLAT]), "not all values are FP32"),
        (one(data=[1e300] * 8), "NaN or Inf"),
    ],
)
def test_bad_requests(toy, body, message):
    before = toy.recorder.captured
    answer = toy.infer(body)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]
    assert list(answer.json()) == ["error"]
    assert toy.recorder.captured == before


def test_what_is_too_deep_to_be_worded_is_refused(toy):
    deep = json.dumps(one(shape=0)).replace('"shape": 0', '"shape": ' + "[" * 1000 + "]" * 1000)
    answer = toy.infer(deep.encode())
    assert (answer.status_code, answer.json()) == (400, {"error": "body: its lists or objects are nested too deep"})


@pytest.mark.parametrize(
    ("data", "message"),
    [([1.5], "INT64"), ([2**63], "INT64"), ([True, 1], "2 values"), ([99], "outside"), (["1"], "INT64")],
)
def test_bad_integers(toy, data, message):
    inputs = [
        {"name": "b", "shape": [1], "datatype": "INT64", "data": data},
        {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
    ]
    answer = toy.infer({"inputs": inputs}, "/v2/models/pair/infer")
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


def test_a_whole_float_is_an_integer_as_json_has_one_kind_of_number(toy):
    inputs = [
        {"name": "b", "shape": [2], "datatype": "INT64", "data": [2.0, -3]},
        {"name": "a", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]},
    ]
    answer = toy.infer({"inputs": inputs, "outputs": [{"name": "doubled"}]}, "/v2/models/pair/infer")
    assert answer.json()["outputs"][0]["data"] == [4, -6]


def test_inputs_of_different_length(toy):
    inputs = [
        {"name": "b", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]},
        {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
    ]
    answer = toy.infer({"inputs": inputs}, "/v2/models/pair/infer")
    assert (answer.status_code, "rows" in answer.json()["error"]) == (400, True)


def test_out_of_range_is_counted_or_refused(toy):
    before = toy.metrics.version("toy", 1).out_of_range
    assert toy.infer(one(data=[11, 1, 1, 1, -11, 1, 1, 1])).status_code == 200
    assert toy.metrics.version("toy", 1).out_of_range == before + 2
    inputs = [
        {"name": "b", "shape": [1], "datatype": "INT64", "data": [1]},
        {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 11]},
    ]
    answer = toy.infer({"inputs": inputs}, "/v2/models/pair/infer")
    assert (answer.status_code, "range" in answer.json()["error"]) == (400, True)


def test_a_body_over_the_limit(toy):
    for content in (b" " * 4097, iter([b" " * 3000] * 3), b" " * 100_000):
        kind = {"content": content} if isinstance(content, bytes) else {"content": _chunks(content)}
        answer = toy.call("POST", "/v2/models/toy/infer", **kind)
        assert (answer.status_code, answer.json()["error"].startswith("body: more than 4096 bytes")) == (413, True)
    assert toy.infer(one()).status_code == 200


async def _chunks(parts):
    for part in parts:
        yield part


def test_a_body_in_chunks(toy):
    text = json.dumps(one()).encode()
    answer = toy.call("POST", "/v2/models/toy/infer", content=_chunks([text[:10], text[10:40], text[40:]]))
    assert answer.json()["outputs"][0]["data"] == [10.0, 4.0]


def test_a_client_that_leaves_gets_nothing(toy):
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v2/models/toy/infer", "headers": []}
    asyncio.run(toy.app(scope, receive, send))
    assert sent == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/toy/versions/1/other", 404),
        ("GET", "/v2/models/absent", 404),
        ("GET", "/v2/models/absent/ready", 404),
        ("POST", "/v2/models/absent/infer", 404),
        ("POST", "/v2/models/..%2f..%2fetc/infer", 404),
        ("POST", "/v2/models/toy%00/infer", 404),
        ("POST", "/v2/models/" + "x" * 60_000 + "/infer", 404),
        ("POST", "/v2/models/toy/versions/2/infer", 404),
        ("POST", "/v2/models/toy/versions/x/infer", 404),
        ("GET", "/v2/models/toy/versions/2", 404),
        ("GET", "/v2/models/toy/infer", 405),
        ("DELETE", "/v2/models/toy", 405),
        ("POST", "/v2", 405),
        ("POST", "/metrics", 405),
        ("GET", "/v1/feedback", 405),
        ("GET", "/v2/models/toy/versions/2/ready", 404),
        ("GET", "/v2/models/toy/versions/x/ready", 404),
        ("GET", "/v2/models/toy/versions/1/ready", 200),
        ("GET", "/v2/models/toy/ready", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
    ],
)
def test_statuses(toy, method, path, status):
    answer = toy.call(method, path)
    assert answer.status_code == status
    if status in (404, 405):
        assert list(answer.json()) == ["error"]
    if status == 405:
        assert answer.headers["allow"] in ("POST", "GET, HEAD")


def test_metadata_names_the_column_at_each_position(tmp_path):
    made = make_plane(tmp_path, Store())
    made.store.promote(make_bundle(tmp_path, columns={"x": ("age", "bmi", "bp", "s1")}))
    made.repository.poll()
    assert made.call("GET", "/v2/models/toy").json()["parameters"]["columns"] == {"x": ["age", "bmi", "bp", "s1"]}


def test_metadata_bodies(toy):
    sha256 = toy.store.table["toy"].champion.sha256
    assert toy.call("GET", "/v2").json()["extensions"] == ["binary_tensor_data"]
    assert toy.call("GET", "/v2/models/toy").json() == {
        "name": "toy",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 1]}],
        "parameters": {"live_version": "1", "sha256": sha256, "generation": 1, "classes": [], "max_rows": 8},
    }
    assert toy.call("GET", "/v2/models/toy/ready").json() == {
        "name": "toy",
        "version": "1",
        "sha256": sha256,
        "generation": 1,
        "ready": True,
        "problem": "",
    }


def test_feedback_is_recorded(toy):
    assert toy.call("POST", "/v1/feedback", json={"id": "a-1", "labels": [1, 0.5]}).status_code == 202
    kind, items, _, _ = recorded(toy)
    assert (kind, [(item[0], item[1], item[3]) for item in items]) == (2, [("a-1", "", [1, 0.5])])
    several = {"items": [{"id": "a", "labels": [1]}, {"id": "b", "labels": [2]}]}
    assert toy.call("POST", "/v1/feedback", json=several).json() == {"accepted": 2}


def test_feedback_may_name_its_model_and_is_told_of_one_that_is_not_here(toy):
    one = {"id": "a", "labels": [1], "model": "toy"}
    assert toy.call("POST", "/v1/feedback", json=one).json() == {"accepted": 1}
    assert [item[:2] for item in recorded(toy)[1]] == [["a", "toy"]]
    several = {"items": [one, {**one, "model": "tyo"}, {"id": "b", "labels": [1]}, {**one, "model": "pear"}]}
    answer = toy.call("POST", "/v1/feedback", json=several)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 4, "unknown_models": ["pear", "tyo"]})
    assert len(recorded(toy)[1]) == 4, "labels may come before their model does"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": "a"},
        {"id": "a", "labels": []},
        {"id": "a", "labels": 1},
        {"id": "a", "labels": ["1"]},
        {"id": "a", "labels": [True]},
        {"id": "a", "labels": [None]},
        {"id": "a", "labels": [[1]]},
        {"id": "", "labels": [1]},
        {"id": 3, "labels": [1]},
        {"id": "a", "labels": [1], "more": 1},
        {"id": "a", "labels": [1], "model": None},
        {"id": "a", "labels": [1], "model": ""},
        {"id": "a", "labels": [1], "model": "../a"},
        {"id": "a", "labels": [1], "items": []},
        {"items": [{"id": "a", "labels": [1]}], "model": "toy"},
        {"items": []},
        {"items": {}},
        {"items": None},
        {"items": [1]},
        {"items": [{"id": "a", "labels": [1]}, {"id": "b"}]},
    ],
)
def test_bad_feedback(toy, body):
    before = toy.recorder.captured
    answer = toy.call("POST", "/v1/feedback", json=body)
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    assert toy.recorder.captured == before


def test_metrics_count_what_happened(toy):
    version = toy.metrics.version("toy", 1)
    ok, bad = version.statuses.get(200, 0), version.statuses.get(400, 0)
    toy.infer(one())
    toy.infer(b"{")
    toy.infer(one(datatype="FP64"))
    text = toy.call("GET", "/metrics").text
    toy_one = 'arm="champion",model="toy",protocol="v2-rest",'
    assert f'homeostat_requests_total{{{toy_one}status="200",version="1"}} {ok + 1}.0' in text
    assert f'homeostat_requests_total{{{toy_one}status="400",version="1"}} {bad + 2}.0' in text
    assert f'homeostat_request_duration_seconds_count{{{toy_one}version="1"}} {ok + 1}.0' in text


def test_the_table_of_paths_is_bounded():
    for number in range(3000):
        route(f"/v2/models/m{number}/infer")
    assert route.cache_info().currsize <= 1024
