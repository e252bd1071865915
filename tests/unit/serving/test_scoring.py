"""MLflow's scoring protocol: golden bodies of every form, and every bad one with its exact status and words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from homeostat.contract import Contract
from tests.bundles import Store, contract_of, graph_bytes, linear, make_bundle, two_inputs
from tests.conftest import ROOT
from tests.unit.serving.conftest import Plane, make_plane

GOLDEN = json.loads((ROOT / "tests" / "golden" / "scoring.json").read_text())
NAMES = ("north", "east", "south", "west")
ROWS = [[1, 2, 3, 4], [1, 1, 1, 1]]


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Plane:
    """`toy` (x [n, 4] with named columns -> sum) and `pair` (a [n, 2], b [n] -> both doubled)."""
    home = tmp_path_factory.mktemp("scored")
    made = make_plane(home, Store())
    made.store.promote(make_bundle(home, max_rows=8, columns={"x": NAMES}))
    made.store.promote(make_bundle(home, model="pair", onnx_bytes=two_inputs(), nan="accept"))
    made.repository.poll()
    return made


def ask(plane: Plane, body, content_type="application/json", path="/invocations?model=toy"):
    headers = {"content-type": content_type} if content_type else {}
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return plane.call("POST", path, content=content, headers=headers)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_golden(scored, case):
    answer = ask(scored, case["body"], case["content_type"], f"/invocations?model={case['model']}")
    assert (answer.status_code, answer.json()) == (case["status"], case["answer"])
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        ({"dataframe_split": {"columns": ["north", "east"], "data": [[1, 2]]}}, None, 400, "no column south, west;"),
        ({"dataframe_split": {"columns": ["a"], "data": [[1]]}}, None, 400, "north, east, south, west; there is: a"),
        ({"dataframe_split": {"columns": [0, 1], "data": [[1, 1]]}}, None, 400, "there is: 0, 1"),
        ({"dataframe_split": {"columns": list("aab"), "data": [[1, 1, 1]]}}, None, 400, "column 'a' stands twice"),
        ({"dataframe_split": {"columns": NAMES, "data": [[1, 1, 1]]}}, None, 400, "data[0]: 3 values for 4 columns"),
        ({"dataframe_split": {"columns": NAMES, "data": []}}, None, 400, "no rows; send at least one"),
        ({"dataframe_split": {"columns": NAMES, "data": [[1] * 4] * 9}}, None, 400, "9 rows, at most 8 (serve"),
        ({"dataframe_split": {"columns": "north", "data": [[1]]}}, None, 400, "columns: must be a list of names"),
        ({"dataframe_split": {"data": [1]}}, None, 400, "must be a list of rows, each a list"),
        ({"dataframe_split": {"data": [[1]], "dtype": 1}}, None, 400, "data, and optionally columns and index"),
        ({"dataframe_split": [[1]]}, None, 400, "must be an object with data"),
        ({"dataframe_records": {"north": [1]}}, None, 400, "dataframe_records: must be a list, not dict"),
        ({"dataframe_records": [{"north": 1}, 2]}, None, 400, "each row must be an object"),
        ({"dataframe_records": [{"north": 1}, {"nort": 1}]}, None, 400, "[1]: has not the columns of the first row"),
        ({"inputs": [[1, 2, 3, "4"]]}, None, 400, "inputs[3]: '4', float32 is expected"),
        ({"inputs": [[1, 2, 3]]}, None, 400, "3 values at depth 1, 4 values are expected: input 'x' is [n, 4]"),
        ({"inputs": [1, 2]}, None, 400, "1 at depth 1, 4 values"),
        ({"inputs": {"x": 1}}, None, 400, "each member must be a list of rows; ['x'] is not"),
        ({"inputs": {"x": []}}, None, 400, "column 'x': no rows"),
        ({"inputs": {"x": [[[1], 1, 1, 1]]}}, None, 400, "column 'x'[0]: [1], float32 is expected"),
        ({"inputs": []}, None, 400, "inputs: no rows"),
        ({"inputs": None}, None, 400, "inputs: must be a list, not NoneType"),
        ({"inputs": [[1, 1, 1, None]]}, None, 400, "input 'x': NaN or Inf, which the contract forbids"),
        ('{"inputs": [[1, 1, 1, NaN]]}', None, 400, "input 'x': NaN or Inf, which the contract forbids"),
        ('{"inputs": [[1, 1, 1, Infinity]]}', None, 400, "input 'x': NaN or Inf"),
        ('{"inputs": [[1, 1, 1, NaN}', None, 400, "not valid JSON"),
        ('{"x": NaN, "inputs": ' + "[" * 2000 + "]" * 2000 + "}", None, 400, "not valid JSON"),
        ({"inputs": [[1, 1, 1, 1]], "instances": [[1, 1, 1, 1]]}, None, 400, "exactly one of dataframe_split"),
        ({"input": [[1, 1, 1, 1]]}, None, 400, "its keys are 'input'"),
        ([[1, 1, 1, 1]], None, 400, "an object with one of dataframe_split"),
        ("", None, 400, "not valid JSON"),
        ({"inputs": [[1] * 4], "params": {"temperature": 1}}, None, 400, "an object with id and entity_id and slices"),
        ({"inputs": [[1] * 4], "params": [1]}, None, 400, "params: [1]"),
        ({"inputs": [[1] * 4], "params": False}, None, 400, "params: False"),
        ({"inputs": [[1] * 4], "params": {"id": ""}}, None, 400, "params.id: ''"),
        ({"inputs": [[1] * 4], "params": {"entity_id": 4}}, None, 400, "params.entity_id: 4"),
        ({"inputs": [[1] * 4], "params": {"slices": "site"}}, None, 400, "params.slices: 'site' must be"),
        ("north,east,south,west\n1,2,3\n", "text/csv", 400, "csv line 2: 3 values for 4 columns"),
        ("north,east,south,west\n1,2,3,four\n", "text/csv", 400, "column 'west'[0]: 'four', float32 is expected"),
        ("north,east,south,west\n1,2,3,1_0\n", "text/csv", 400, "column 'west'[0]: '1_0', float32 is expected"),
        ("north,east,south,west\n1,2,3,\n", "text/csv", 400, "NaN or Inf, which the contract forbids"),
        ("north,east,south,west\n" + "1,1,1,1\n" * 20, "text/csv", 400, "csv: 9 rows, at most 8"),
        ("north,east,south,west\n", "text/csv", 400, "csv: no rows"),
        ("", "text/csv", 400, "csv: no rows"),
        ('north,"east\n', "text/csv", 400, "csv: cannot be read"),
        (b"n\xffrth\n1\n", "text/csv", 400, "csv: cannot be read"),
        ({}, "application/vnd.apache.parquet", 415, "send application/json or text/csv"),
        ({}, "application/json; charset=latin-1", 415, "the only charset is utf-8"),
        ({}, "application/json; format=pandas-table", 415, "format=pandas-split or pandas-records"),
        ({}, "application/json; version=2", 415, "parameters may be charset and format"),
    ],
)  # fmt: skip
def test_bad_bodies(scored, body, kind, status, message):
    answer = ask(scored, body, kind or "application/json")
    assert answer.status_code == status
    assert message in answer.json()["message"]
    assert answer.json()["error_code"] == "BAD_REQUEST"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.5], "column 'b'[0]: 1.5, int64 is expected"),
        ([None], "column 'b'[0]: missing, int64 is expected"),
        ([1e300], "column 'b'[0]: 1e+300, int64 is expected"),
        ([2**70], "is expected"),
        ([1, 2], "rows"),
    ],
)
def test_integers_stay_integers(scored, values, message):
    answer = ask(scored, {"inputs": {"a": [[1, 2]], "b": values}}, path="/invocations?model=pair")
    assert (answer.status_code, message in answer.json()["message"]) == (400, True), answer.text


def test_a_gap_is_nan_where_the_contract_allows_it(scored):
    answer = ask(
        scored,
        {"dataframe_split": {"columns": ["a_0", "a_1", "b"], "data": [[1, None, 1]]}},
        path="/invocations?model=pair",
    )
    assert answer.json() == {"predictions": {"total": [[2.0, None]], "doubled": [2]}}


def test_which_model(scored, plane):
    body = {"inputs": [[1, 2, 3, 4]]}
    answer = ask(scored, body, path="/invocations")
    assert (answer.status_code, answer.json()["message"]) == (
        400,
        "which model? say ?model=NAME; there is: pair, toy",
    )
    for path in (
        "/gateway/toy/invocations",
        "/endpoints/toy/invocations",
        "/invocations?model=toy&version=1",
        "/invocations?version=&model=toy",
    ):
        assert ask(scored, body, path=path).json() == {"predictions": [[10.0]]}
    for path in ("/gateway/toys/invocations", "/invocations?model=toy&version=2"):
        answer = ask(scored, body, path=path)
        assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    answer = ask(scored, body, path="/invocations?" + "&".join(["model=toy"] * 17))
    assert (answer.status_code, "more than 16 fields" in answer.json()["message"]) == (400, True)
    answer = ask(plane, body, path="/invocations")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    plane.store.promote(make_bundle(plane.home))
    plane.repository.poll()
    assert ask(plane, body, path="/invocations").json() == {"predictions": [[10.0]]}


def test_an_id_can_be_given_so_that_labels_find_the_request(scored):
    answer = ask(scored, {"inputs": [[1] * 4], "params": {"id": "visit-1", "entity_id": "p 1"}})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "visit-1")


def test_health_and_version(scored, plane):
    for path in ("/ping", "/health"):
        answer = scored.call("GET", path)
        assert (answer.status_code, answer.text) == (200, "\n")
        assert plane.call("GET", path).status_code == 503
        assert scored.call("POST", path).headers["allow"] == "GET, HEAD"
    assert scored.call("GET", "/version").text.count(".") == 2
    assert scored.call("GET", "/invocations").status_code == 405


def test_errors_are_counted_once_and_by_version(tmp_path):
    plane = make_plane(tmp_path, Store())
    plane.store.promote(make_bundle(tmp_path))
    plane.repository.poll()
    counts = plane.repository.models["toy"].live.metrics
    ask(plane, {"inputs": [[1]]}, path="/invocations")
    ask(plane, {"inputs": [[1, 1, 1, None]]}, path="/invocations")
    ask(plane, {"inputs": [[1, 1, 1, 1]]}, path="/invocations")
    ask(plane, {}, path="/gateway/absent/invocations")
    assert counts.statuses == {400: 2, 200: 1}
    assert plane.metrics.refused == {404: 1}


def test_columns_of_the_contract():
    contract = contract_of(linear(), columns={"x": NAMES})
    assert Contract.from_json(contract.to_json()).inputs[0].column_names() == NAMES
    assert [spec.column_names() for spec in contract_of(two_inputs()).inputs] == [("a_0", "a_1"), ("b",)]
    with pytest.raises(ValueError, match="3 names of columns for shape"):
        contract_of(linear(), columns={"x": ("a", "b", "c")})


def test_an_image_is_a_column_of_whole_rows(tmp_path):
    from onnx import TensorProto, helper

    image = graph_bytes(
        [helper.make_node("Flatten", ["image"], ["flat"])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT16, ["n", 2, 2])],
        [helper.make_tensor_value_info("flat", TensorProto.FLOAT16, ["n", 4])],
    )
    plane = make_plane(tmp_path, Store())
    plane.store.promote(make_bundle(tmp_path, onnx_bytes=image))
    plane.repository.poll()
    rows = np.arange(8.0).reshape(2, 2, 2).tolist()
    flat = {"predictions": np.arange(8.0).reshape(2, 4).tolist()}
    for body in (
        {"inputs": rows},
        {"instances": [{"image": row} for row in rows]},
        {"dataframe_split": {"columns": ["image"], "data": [[row] for row in rows]}},
        {"dataframe_split": {"data": [[rows[0]], [rows[1]]], "columns": ["image"]}},
    ):
        assert ask(plane, body, path="/invocations").json() == flat
    answer = ask(plane, {"dataframe_split": {"columns": ["pixel"], "data": [[1]]}}, path="/invocations")
    assert "no column image; the model takes image; there is: pixel" in answer.json()["message"]
