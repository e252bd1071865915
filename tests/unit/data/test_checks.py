"""Hard checks: each breach is found, named and counted, and all come at once."""

import numpy as np
import pytest
from people import make_config, make_dataset

from homeostat.data.checks import check_dataset
from homeostat.dataset import Dataset
from homeostat.errors import DataInvalid


def breaches(data: Dataset, task: str = "classification", **config) -> str:
    with pytest.raises(DataInvalid) as caught:
        check_dataset(data, make_config(task, **config))
    return "\n".join(caught.value.breaches)


def test_good_data_pass():
    check_dataset(make_dataset(), make_config())
    check_dataset(make_dataset(target=np.arange(200.0)), make_config("regression"))


def test_some_missing_values_pass():
    body = np.ones((200, 3))
    body[:50, 0] = np.nan
    check_dataset(make_dataset(inputs={"body": body}, columns={}), make_config())


def test_empty():
    empty = Dataset(inputs={"x": np.empty((0, 3), np.float32)}, target=np.empty(0, np.int64))
    assert breaches(empty) == "there are no rows"


def test_too_few_rows():
    assert "40 rows, fewer than data.min_rows = 60" in breaches(make_dataset(40), min_rows=60)


def test_all_nan_column_is_named():
    data = make_dataset()
    data.inputs["body"][:, 1] = np.nan
    assert breaches(data) == "column 'height': every value is missing (NaN)"


def test_all_nan_column_without_names_and_image():
    data = make_dataset(columns={}, inputs={"x": np.full((200, 2), np.nan), "image": np.full((200, 4, 4), np.nan)})
    assert "column 'x[1]': every value" in breaches(data)
    assert "input 'image': every value" in breaches(data)


def test_infinite_values_are_counted_with_positions():
    data = make_dataset()
    data.inputs["body"][[4, 9, 30, 31], 2] = np.inf
    assert "column 'weight': Inf in 4 of 200 rows (positions 4, 9, 30, ...)" in breaches(data)


def test_what_float32_cannot_hold_is_infinite():
    assert "Inf in 1 of 200 rows" in breaches(make_dataset(inputs={"x": [[1e300]] + [[1.0]] * 199}, columns={}))


def test_missing_time():
    time = np.full(200, "2026-01-01", dtype="datetime64[us]")
    time[7] = "NaT"
    assert "time: missing in 1 of 200 rows (positions 7)" in breaches(make_dataset(time=time))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_missing_target(task):
    target = np.arange(200.0)
    target[5] = np.nan
    assert "target: NaN or Inf in 1 of 200 rows (positions 5)" in breaches(make_dataset(target=target), task)


def test_float_classes():
    assert "target has dtype float64; classes are integers from 0" in breaches(make_dataset(target=np.zeros(200)))


def test_negative_class():
    assert "negative class in 200 of 200" in breaches(make_dataset(target=np.full(200, -1)))


def test_classes_counted_from_one():
    told = "target: no row has class 0; classes are counted from 0: subtract 1"
    assert breaches(make_dataset(target=np.arange(200) % 2 + 1)) == told
    assert breaches(make_dataset(target=np.arange(200) % 2 + 1, classes=("no", "yes"))) == told
    assert "0 (0)" in breaches(make_dataset(target=np.arange(200) % 2 + 1, classes=("no", "yes", "perhaps")))


def test_one_class_only():
    assert breaches(make_dataset(target=np.zeros(200, int))) == (
        "target: only one class (0), so there is nothing to tell apart"
    )


def test_fewer_rows_than_classes():
    assert "60 rows are fewer than the 1000000 classes" in breaches(make_dataset(60, target=[999_999] * 59 + [0]))


def test_small_and_absent_classes_are_named_with_their_rows():
    assert "fewer than 4 rows, one for each part: 1 (3), 2 (0)" in breaches(
        make_dataset(target=[0] * 100 + [1] * 3 + [3] * 97)
    )


def test_more_classes_than_names():
    assert "class 2 in" in breaches(make_dataset(classes=["a", "b"]))


def test_name_without_rows():
    assert "3 (0)" in breaches(make_dataset(classes=["a", "b", "c", "d"]))


def test_regression_needs_floats_that_vary():
    found = breaches(make_dataset(target=np.ones(200, int)), "regression")
    assert "needs float" in found
    assert "every value is 1" in found


def test_all_breaches_come_at_once():
    data = make_dataset(40, target=np.zeros(40, int))
    data.inputs["body"][:, 0] = np.nan
    data.inputs["body"][3, 1] = -np.inf
    assert len(breaches(data).splitlines()) == 4
