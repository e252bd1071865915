"""What capture keeps of a request, value by value."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from homeostat.config import MaskingConfig, ServeConfig, check_action, load_config
from homeostat.errors import ConfigError
from homeostat.keys import load_salt
from homeostat.masking import MAX_SLICES, Mask, mask, mask_like, parse_slices
from tests.bundles import contract_of, linear, make_bundle, patients

CONTRACT = contract_of(patients(), columns={"body": ("age", "bmi", "bp")})
SALT = b"s" * 32
ROWS = {
    "body": np.array([[59, 32.5, 101], [17.9, 20.25, np.nan]], "<f4"),
    "sex": np.array([[2], [1]], "<i8"),
    "serum": np.arange(12, dtype="<f4").reshape(2, 6),
}


def make(columns=None, entity="hash", slices=(), contract=CONTRACT) -> Mask | None:
    masking = None if columns is None else MaskingConfig(columns=columns, entity_id=entity)
    return Mask.make(ServeConfig(masking=masking, slices=slices), contract, lambda: SALT)


def test_what_is_not_named_is_dropped_and_the_request_itself_stays_as_it_is():
    before = {name: values.copy() for name, values in ROWS.items()}
    made = make({"age": "step 10", "bmi": "keep", "sex": "keep"})
    kept, entity, slices = made.apply(ROWS, None, "")
    np.testing.assert_array_equal(kept["body"], np.array([[50, 32.5, np.nan], [10, 20.25, np.nan]], "<f4"))
    np.testing.assert_array_equal(kept["sex"], ROWS["sex"])
    assert np.isnan(kept["serum"]).all()
    assert (entity, slices) == (None, None)
    assert {name: (v.dtype, v.shape) for name, v in kept.items()} == {n: (v.dtype, v.shape) for n, v in ROWS.items()}
    for name, values in before.items():
        np.testing.assert_array_equal(ROWS[name], values)


def test_an_inputs_name_stands_for_its_columns_that_are_not_named():
    kept, _, _ = make({"body": "keep", "bp": "drop", "sex": "drop"}).apply(ROWS, None, "")
    np.testing.assert_array_equal(kept["body"][:, :2], ROWS["body"][:, :2])
    assert np.isnan(kept["body"][:, 2]).all()
    assert kept["sex"].tolist() == [[0], [0]], "there is no NaN of whole numbers"


def test_a_hash_links_equal_values_of_one_column_under_one_salt():
    rows = ROWS | {"sex": np.array([[2], [2]]), "body": np.full((2, 3), 2, "<f4")}
    _, entity, text = make({"sex": "hash", "age": "hash", "bmi": "hash"}).apply(rows, "visit 17", "")
    hashes = json.loads(text)
    assert sorted(hashes) == ["age", "bmi", "sex"]
    assert all(one == two and len(one) == 32 for one, two in hashes.values())
    assert len({pair[0] for pair in hashes.values()}) == 3, "equal values of two columns do not show as equal"
    assert (len(entity), "17" in entity) == (32, False)
    other = Mask.make(ServeConfig(masking=MaskingConfig(columns={"sex": "hash"})), CONTRACT, lambda: b"t" * 32)
    assert json.loads(other.apply(rows, None, "")[2])["sex"][0] != hashes["sex"][0]


@pytest.mark.parametrize(("entity", "expected"), [("keep", "visit 17"), ("drop", None)])
def test_the_entity_is_kept_or_dropped_as_asked(entity, expected):
    assert make({}, entity=entity).apply(ROWS, "visit 17", "")[1] == expected


def test_slices_are_an_allow_list_with_actions_of_their_own():
    columns = {"site": "categories north south", "device": "hash", "age": "keep"}
    made = make(columns, slices=("site", "device", "shift"))
    text = made.apply(ROWS, None, "site=Ulm,device=17-4,shift=night,name=Ann")[2]
    found = json.loads(text)
    assert (found["site"], found["shift"], len(found["device"])) == ("other", "night", 32)
    assert sorted(found) == ["device", "shift", "site"]
    assert json.loads(made.apply(ROWS, None, "site=north")[2]) == {"site": "north"}


def test_slices_alone_mask_nothing():
    made = make(None, slices=("site",))
    kept, entity, slices = made.apply(ROWS, "e", "site=north")
    assert (kept is ROWS, entity, json.loads(slices), made.text) == (True, "e", {"site": "north"}, None)


def test_without_masking_and_slices_there_is_no_mask():
    assert make() is None


def test_an_image_is_one_column():
    contract = contract_of(linear(width=200))
    images = {"x": np.arange(400, dtype="<f4").reshape(2, 200)}
    made = make({"x": "edges 0 100 300"}, contract=contract)
    assert sorted(set(made.apply(images, None, "")[0]["x"].ravel())) == [0, 100, 300]
    text = make({"x": "hash"}, contract=contract).apply(images, None, "")[2]
    assert len(set(json.loads(text)["x"])) == 2


def test_other_rows_can_be_masked_alike():
    made = make({"age": "step 10", "bmi": "edges 0 25", "bp": "hash", "sex": "keep"})
    like = mask_like(made.text, ROWS)
    kept, _, _ = made.apply(ROWS, None, "")
    for name, values in kept.items():
        np.testing.assert_array_equal(like[name], values)


@pytest.mark.parametrize(
    ("columns", "slices", "message"),
    [
        ({"agee": "keep"}, (), r"names agee; the columns are age, bmi, body, bp, serum"),
        ({"site": "keep"}, (), "names site"),
        ({"sex": "step 0.5"}, (), r"sex: 'step 0.5' does not fit its dtype int64"),
        ({"sex": "edges 1 1e30"}, (), "whole numbers in its range"),
        ({"age": "categories 1 2"}, (), '"categories" is for slices'),
        ({"age": "keep"}, ("age",), "serve.slices names age"),
    ],
)
def test_names_and_actions_that_do_not_fit_the_contract_are_refused(columns, slices, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make(columns, slices=slices)
    masking = MaskingConfig(columns=columns)
    with pytest.raises(ConfigError, match=message):
        make_bundle(
            tmp_path, onnx_bytes=patients(), columns={"body": ("age", "bmi", "bp")}, masking=masking, slices=slices
        )


@pytest.mark.parametrize("text", ["", "Keep", "step", "step 0", "step -1", "step nan", "step x", "edges", "edges 2 1"])
def test_an_action_that_is_none_lists_the_known_ones(text, tmp_path):
    with pytest.raises(ValidationError):
        MaskingConfig(columns={"age": text})
    path = tmp_path / "project.toml"
    head = 'name = "toy"\nproject = "a:B"\ntask = "regression"\n'
    path.write_text(f'{head}[serve.masking.columns]\nage = "{text}"\n')
    with pytest.raises(ConfigError, match=r"serve\.masking\.columns\.age"):
        load_config(path)


@given(
    values=st.lists(st.integers(-128, 127), min_size=1),
    action=st.sampled_from(["step 1", "step 7", "step 100", "edges -100 0 5", "drop"]),
)
def test_whole_numbers_coarsen_downwards_within_their_dtype(values, action):
    check_action(action)
    given_values = np.array(values, np.int8).reshape(-1, 1)
    kept = mask({"x": {"x": action}}, {"x": given_values})[0]["x"].ravel().tolist()
    for value, coarse in zip(values, kept, strict=True):
        kind, *numbers = action.split()
        if kind == "step":
            expected = max(value // int(numbers[0]) * int(numbers[0]), -128)
        elif kind == "edges":
            expected = max((int(n) for n in numbers if int(n) <= value), default=-100)
        else:
            expected = 0
        assert coarse == expected


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_coarsen_in_their_own_dtype(dtype):
    values = np.array([[-0.5], [19.99], [np.inf], [-np.inf], [np.nan]], dtype)
    steps = mask({"x": {"x": "step 10"}}, {"x": values})[0]["x"]
    assert steps.dtype == dtype
    np.testing.assert_array_equal(steps.ravel(), [-10, 10, np.inf, -np.inf, np.nan])
    edges = mask({"x": {"x": "edges 0 18"}}, {"x": values})[0]["x"]
    np.testing.assert_array_equal(edges.ravel(), [0, 18, 18, 0, np.nan])


@pytest.mark.parametrize(
    "text", ["site", "site=", "=north", "site=a,", "site=a;b=c\n", "1=a", "a=b=c", "a=" + "b" * MAX_SLICES]
)
def test_slices_that_cannot_be_read_are_refused(text):
    with pytest.raises(ValueError, match="name=value"):
        parse_slices(text)


def test_the_documents_example_fits_the_diabetes_model():
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (block,) = re.findall(r"```toml\n(\[serve\].*?)```", text, re.S)
    serve = ServeConfig.model_validate(tomllib.loads(block)["serve"])
    made = Mask.make(serve, CONTRACT, lambda: SALT)
    kept, _, _ = made.apply(ROWS, None, "site=Ulm")
    np.testing.assert_array_equal(kept["body"], np.array([[40, 30, np.nan], [0, 20, np.nan]], "<f4"))
    np.testing.assert_array_equal(kept["serum"], ROWS["serum"])


def test_the_salt_is_made_once_and_private(tmp_path):
    salt = load_salt(tmp_path)
    assert (load_salt(tmp_path), len(salt)) == (salt, 32)
    path = tmp_path / "keys" / "masking.salt"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_salt(tmp_path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="has 5 bytes, not 32"):
        load_salt(tmp_path)
