"""The contract at the door: a request is let in, counted or refused with what was expected."""

import re

import numpy as np
import pytest

from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.errors import DataInvalid, RequestInvalid

CONTRACT = Contract(
    inputs=(
        TensorSpec(name="body", dtype="float32", shape=(2,), minimum=(0.0, 10.0), maximum=(1.0, 20.0)),
        TensorSpec(name="sex", dtype="int64", shape=(1,), minimum=(0.0,), maximum=(1.0,)),
        TensorSpec(name="image", dtype="float32", shape=(2, 2), minimum=(0.0,), maximum=(9.0,)),
        TensorSpec(name="flat", dtype="float32", shape=(), minimum=(-1.0,), maximum=(1.0,)),
    ),
    columns=(ColumnSpec(name="age", dtype="float32", null_share=0.0, minimum=0.0, maximum=1.0),),
    target=ColumnSpec(name="target", dtype="int64", null_share=0.0, minimum=0.0, maximum=1.0, categories=(0, 1)),
    min_rows=50,
    mostly=0.95,
    null_slack=0.05,
)


def tensors(n: int = 3, **changes):
    good = {
        "body": np.tile(np.array([0.5, 15.0], np.float32), (n, 1)),
        "sex": np.ones((n, 1), np.int64),
        "image": np.full((n, 2, 2), 5, np.float32),
        "flat": np.zeros(n, np.float32),
    }
    return good | changes


def test_good_rows_pass():
    assert CONTRACT.check_tensors(tensors(), out_of_range="reject") == 0
    assert CONTRACT.check_tensors(dict(reversed(tensors(1).items())), out_of_range="reject") == 0


def without(name: str):
    return {key: values for key, values in tensors().items() if key != name}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (without("sex"), "inputs must be body, sex, image, flat; missing: sex; unknown: none"),
        (tensors(age=np.ones(3)), "missing: none; unknown: age"),
        ({}, "missing: body, flat, image, sex"),
        (tensors(body=np.ones((3, 2))), "input 'body': dtype float64, expected float32 (FP32)"),
        (tensors(sex=np.ones((3, 1), np.int32)), "input 'sex': dtype int32, expected int64"),
        (tensors(body=np.ones((3, 2), ">f4")), "input 'body': dtype >f4, expected float32"),
        (tensors(body=np.ones((3, 3), np.float32)), "input 'body': shape [3, 3], expected [n, 2]"),
        (tensors(body=np.ones(2, np.float32)), "input 'body': shape [2], expected [n, 2]"),
        (tensors(image=np.ones((3, 4), np.float32)), "input 'image': shape [3, 4], expected [n, 2, 2]"),
        (tensors(flat=np.float32(1) * np.ones(())).copy(), "input 'flat': dtype float64"),
        (tensors(flat=np.array(1, np.float32)), "input 'flat': shape [], expected [n]"),
        (tensors(sex=np.ones((2, 1), np.int64)), "input 'sex' has 2 rows where another input has 3"),
        (tensors(0), "input 'body' has no rows"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(RequestInvalid, match=re.escape(message)) as caught:
        CONTRACT.check_tensors(given)
    assert caught.value.status == 400


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value):
    body = tensors()["body"]
    body[1, 0] = value
    with pytest.raises(RequestInvalid, match="input 'body': NaN or Inf, which the contract forbids"):
        CONTRACT.check_tensors(tensors(body=body))
    assert CONTRACT.check_tensors(tensors(body=body), nan="accept") == int(np.isinf(value))


def test_the_range_is_counted_column_by_column_or_refused():
    body = np.array([[0.5, 25.0], [2.0, 5.0], [0.0, 20.0]], np.float32)
    given = tensors(body=body, sex=np.full((3, 1), 2))
    assert CONTRACT.check_tensors(given) == 6
    with pytest.raises(RequestInvalid, match=r"input 'body': 3 values outside \[0, 20\]"):
        CONTRACT.check_tensors(given, out_of_range="reject")


def test_json_round_trip():
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT


@pytest.mark.parametrize(
    "text", ["", "{}", CONTRACT.to_json().replace("min_rows", "minrows"), CONTRACT.to_json().replace("10.0", "10.0, 1")]
)
def test_what_is_no_contract(text):
    with pytest.raises(DataInvalid, match=r"v3/contract\.json is not a contract"):
        Contract.from_json(text, "v3/contract.json")
