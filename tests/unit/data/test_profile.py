"""Profile and inferred contract."""

import json

import numpy as np
import pandas as pd
import pytest
from people import People, make_config, make_dataset

from homeostat.contract import Contract
from homeostat.data.comparison import compare
from homeostat.data.contract import infer_contract
from homeostat.data.profile import ModelProfile, Profile, SliceProfile, frame_of
from homeostat.data.profiler import calibration_bins, make_profile
from homeostat.errors import DataInvalid
from homeostat.records import Interval


def test_moments_and_counts():
    values = np.r_[np.linspace(0, 10, 99), np.nan]
    profile = make_profile(pd.DataFrame({"a": values, "b": np.arange(100) % 3, "target": np.arange(100.0)}))
    a, b = profile.columns
    assert (profile.rows, a.null_share, a.minimum, a.maximum) == (100, 0.01, 0.0, 10.0)
    assert a.mean == pytest.approx(5)
    assert a.std == pytest.approx(np.linspace(0, 10, 99).std())
    assert a.quantiles["0.5"] == pytest.approx(5)
    assert (len(a.edges), len(a.counts), sum(a.counts)) == (21, 20, 99)
    assert a.categories is None
    assert b.categories == ((0, 34), (1, 33), (2, 33))
    assert profile.target.maximum == 99


def test_one_outlier_does_not_flatten_the_histogram():
    values = np.r_[np.random.default_rng(0).normal(size=999), 1e6]
    (column,) = make_profile(pd.DataFrame({"a": values})).columns
    assert column.edges[-1] < 10
    assert sum(column.counts) == 1000
    assert max(column.counts) < 300


def test_constant_empty_infinite_and_text_columns():
    frame = pd.DataFrame({"c": np.ones(9), "e": np.full(9, np.nan), "i": [np.inf] + [1.0] * 8, "t": ["x"] * 8 + [None]})
    c, e, i, t = make_profile(frame).columns
    assert sum(c.counts) == 9
    assert (e.null_share, e.minimum, e.counts) == (1.0, None, ())
    assert i.maximum == 1.0
    assert (t.dtype, t.null_share, t.categories) == ("object", pytest.approx(1 / 9), (("x", 8),))


def test_many_integers_are_no_categories():
    (column,) = make_profile(pd.DataFrame({"a": np.arange(21)})).columns
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


def test_a_million_categories_are_a_hundred_and_the_rest():
    values = np.r_[np.arange(150).astype(str), np.full(50, "often"), np.full(9, "x" * 5000)]
    (column,) = make_profile(pd.DataFrame({"a": values})).columns
    assert column.categories[:3] == (("often", 50), ("x" * 200, 9), ("0", 1))
    assert len(column.categories) == 100
    assert sum(rows for _, rows in column.categories) + column.rest == 209


def test_an_id_is_not_counted_by_name(monkeypatch):
    monkeypatch.setattr("homeostat.data.profiler.MAX_DISTINCT", 100)
    (column,) = make_profile(pd.DataFrame({"a": np.arange(1000).astype(str)})).columns
    assert (column.categories, column.rest) == ((), 1000)
    assert column.distinct == pytest.approx(1000, rel=0.1)


def test_a_large_table_is_sampled_and_counted_whole(monkeypatch):
    monkeypatch.setattr("homeostat.data.profiler.SAMPLE_ROWS", 10_000)
    frame = pd.DataFrame({"a": np.random.default_rng(0).normal(size=40_000)})
    profile = make_profile(frame, seed=3)
    assert make_profile(frame, seed=3) == profile
    assert profile.sampled == pytest.approx(10_000, rel=0.05)
    (column,) = profile.columns
    assert sum(column.counts) == 40_000
    assert column.quantiles["0.5"] == pytest.approx(frame["a"].median(), abs=0.05)
    assert column.mean == pytest.approx(frame["a"].mean())


def test_dependence_is_spearman():
    rng = np.random.default_rng(0)
    a = rng.normal(size=500)
    frame = pd.DataFrame({"a": a, "b": np.exp(a), "c": rng.normal(size=500), "d": np.ones(500), "target": -a})
    dependence = make_profile(frame).dependence
    assert dependence.columns == ("a", "b", "c", "d", "target")
    wanted = frame[["a", "b", "c"]].corr(method="spearman").to_numpy()
    assert np.array([row[:3] for row in dependence.spearman[:3]]) == pytest.approx(wanted, abs=1e-6)
    assert dependence.spearman[0][4] == -1
    assert set(dependence.spearman[3]) == {None}


def test_the_first_format_is_read_and_a_later_one_refused():
    column = {"name": "k", "dtype": "int64", "null_share": 0.0, "minimum": 0, "maximum": 1, "mean": 0.5, "std": 0.5}
    column |= {"quantiles": {"0.5": 0.5}, "edges": [0.0, 1.0], "counts": [2], "categories": {"0": 1, "1": 1}}
    target = column | {"name": "target", "categories": None}
    profile = Profile.from_json(json.dumps({"rows": 2, "columns": [column], "target": target}))
    assert (profile.format, profile.columns[0].categories) == (2, ((0, 1), (1, 1)))
    assert compare(profile, pd.DataFrame({"k": [0, 1], "target": [0, 1]}))[0].jensen_shannon == 0
    with pytest.raises(DataInvalid, match=r"p\.json is a profile of format 3, and this homeostat reads 1 and 2: use"):
        Profile.from_json('{"format": 3}', "p.json")
    for text in ("[]", "no", '{"columns": [1]}'):
        with pytest.raises(DataInvalid, match="is not a profile"):
            Profile.from_json(text)


def test_how_the_model_answered_is_kept_beside_it():
    confidence, right = np.array([0.05, 0.1, 0.95, 1.0]), np.array([False, False, True, False])
    bins = calibration_bins(confidence, right)
    assert [b.rows for b in bins] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (bins[0].right, bins[1].right, bins[9].right, bins[9].confidence) == (0, None, 0.5, pytest.approx(0.975))
    scores = make_profile(pd.DataFrame({"model.score": confidence})).columns
    whole = Interval(0.5, 0.1, 0.9)
    model = ModelProfile(
        rows=4,
        scores=scores,
        calibration=bins,
        metrics={"accuracy": whole},
        slices=(SliceProfile(name="sex=1", rows=2, metrics={"accuracy": whole}),),
    )
    profile = make_profile(pd.DataFrame({"a": np.arange(30.0)})).with_model(model)
    assert Profile.from_json(profile.to_json()) == profile
    assert profile.model.metrics["accuracy"] == whole


def test_text_of_few_values_is_part_of_the_contract():
    class Named(People):
        def to_frame(self, inputs, columns):
            return super().to_frame(inputs, columns).assign(kind=["cat", "dog"] * (len(inputs["sex"]) // 2))

    contract, _ = infer_contract(Named(), make_dataset(), make_config())
    assert contract.columns[-1].categories == ("cat", "dog")
    assert Contract.from_json(contract.to_json()) == contract
