"""Profile and inferred contract."""

import numpy as np
import pandas as pd
import pytest
from people import People, make_config, make_dataset

from homeostat.contract import Contract
from homeostat.data.profile import Profile, frame_of, infer_contract, make_profile
from homeostat.errors import DataInvalid


def test_moments_and_counts():
    values = np.r_[np.linspace(0, 10, 99), np.nan]
    profile = make_profile(pd.DataFrame({"a": values, "b": np.arange(100) % 3}), np.arange(100.0))
    a, b = profile.columns
    assert (profile.rows, a.null_share, a.minimum, a.maximum) == (100, 0.01, 0.0, 10.0)
    assert a.mean == pytest.approx(5)
    assert a.std == pytest.approx(np.linspace(0, 10, 99).std())
    assert a.quantiles["0.5"] == pytest.approx(5)
    assert (len(a.edges), len(a.counts), sum(a.counts)) == (21, 20, 99)
    assert a.categories is None
    assert b.categories == {0: 34, 1: 33, 2: 33}
    assert profile.target.maximum == 99


def test_one_outlier_does_not_flatten_the_histogram():
    values = np.r_[np.random.default_rng(0).normal(size=999), 1e6]
    (column,) = make_profile(pd.DataFrame({"a": values}), values).columns
    assert column.edges[-1] < 10
    assert sum(column.counts) == 1000
    assert max(column.counts) < 300


def test_constant_empty_infinite_and_text_columns():
    frame = pd.DataFrame({"c": np.ones(9), "e": np.full(9, np.nan), "i": [np.inf] + [1.0] * 8, "t": ["x"] * 8 + [None]})
    c, e, i, t = make_profile(frame, np.ones(9)).columns
    assert sum(c.counts) == 9
    assert (e.null_share, e.minimum, e.counts) == (1.0, None, ())
    assert i.maximum == 1.0
    assert (t.dtype, t.null_share) == ("object", pytest.approx(1 / 9))


def test_many_integers_are_no_categories():
    (column,) = make_profile(pd.DataFrame({"a": np.arange(21)}), np.arange(21)).columns
    assert column.categories is None


def test_json_round_trip():
    contract, profile = infer_contract(People(), make_dataset(), make_config())
    assert Profile.from_json(profile.to_json()) == profile
    assert Contract.from_json(contract.to_json()) == contract
    with pytest.raises(DataInvalid, match=r"profile\.json is not a profile"):
        Profile.from_json("{}", "profile.json")


def test_the_range_is_widened_by_the_slack():
    body = np.array([[0.0, 5.0, 0.0], [10.0, 5.0, 0.0]] * 50)
    data = make_dataset(100, inputs={"body": body, "sex": np.ones((100, 1), int)})
    contract, _ = infer_contract(People(), data, make_config(range_slack=0.5))
    (spec, sex) = contract.inputs
    assert (spec.name, spec.dtype, spec.shape) == ("body", "float32", (3,))
    assert spec.minimum == (-5.0, 2.5, -0.5)
    assert spec.maximum == (15.0, 7.5, 0.5)
    assert (sex.minimum, sex.maximum) == ((0.5,), (1.5,))
    assert (contract.columns[0].minimum, contract.columns[0].maximum) == (-5.0, 15.0)
    assert contract.columns[3].categories == (1,)
    assert contract.target.categories == (0, 1, 2)


def test_the_training_rows_pass_their_own_contract():
    rng = np.random.default_rng(0)
    data = make_dataset(inputs={"body": rng.normal(size=(200, 3)), "image": np.ones((200, 4, 4, 1))}, columns={})
    contract, _ = infer_contract(People(), data, make_config(range_slack=0.0))
    assert contract.check_tensors(data.inputs, out_of_range="reject") == 0
    assert [len(spec.minimum) for spec in contract.inputs] == [3, 1]


def test_a_column_without_a_training_value():
    data = make_dataset()
    data.inputs["body"][:, 1] = np.nan
    with pytest.raises(DataInvalid, match="input 'body' column 1 has no value in the training part"):
        infer_contract(People(), data, make_config())


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"a": [1.0]}), "gave 1 rows for 200"),
        (pd.DataFrame({"target": np.ones(200)}), "named 'target'"),
        (pd.DataFrame(np.ones((200, 2)), columns=["a", "a"]), "two columns named a"),
    ],
)
def test_a_frame_that_cannot_be_used(frame, message):
    class Odd(People):
        def to_frame(self, inputs, columns):
            return frame

    with pytest.raises(DataInvalid, match=message):
        frame_of(Odd(), make_dataset())
