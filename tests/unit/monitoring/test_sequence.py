"""Evidence over many checks: uniform ranks, fair bets, an error rate for a whole life, and rows that count once."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from homeostat.errors import DataInvalid
from homeostat.monitoring.cells import make_cells
from homeostat.monitoring.drift import COLUMNS, sequential_alarms
from homeostat.monitoring.exchangeability import BETS, LOCATIONS, SPREADS, WEIGHTS, log_bets, log_weight, ranks
from homeostat.monitoring.joint import joint_p
from homeostat.monitoring.sequence import DriftState, check, make_pool

KINDS = {"a": "number", "b": "number", "c": "category"}


def frame(rows: int, seed: int, *, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "a": rng.normal(shift, 1, rows),
            "b": np.where(rng.random(rows) < 0.1, np.nan, rng.integers(0, 6, rows)),
            "c": rng.choice(["x", "y", "z"], rows, p=[0.7, 0.2, 0.1]),
        }
    )


def live(windows: list[pd.DataFrame], reference: pd.DataFrame, seed: str = "toy v1") -> list[bool]:
    pool, state, alarms = make_pool(reference, KINDS), DriftState(), []
    for window in windows:
        found = check(pool, window, state, None, seed)
        state = found.state
        alarms.append(bool(sequential_alarms(found, COLUMNS * 0.01, 0.02)))
    return alarms


def test_ranks_are_what_a_loop_gives_and_uniform():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 5, (300, 2)).astype(np.uint8)
    counts, uniforms = rng.integers(0, 20, (2, 5)), rng.random((300, 2))
    found = ranks(codes, counts, uniforms)
    pool = [np.repeat(np.arange(5), counts[d]).tolist() for d in range(2)]
    for row in range(300):
        for d in range(2):
            under = sum(value < codes[row, d] for value in pool[d])
            equal = sum(value == codes[row, d] for value in pool[d]) + 1
            assert found[row, d] == pytest.approx((under + uniforms[row, d] * equal) / (len(pool[d]) + 1))
            pool[d].append(int(codes[row, d]))
    drawn = [
        ranks(
            rng.integers(0, 5, (200, 1)).astype(np.uint8),
            np.bincount(rng.integers(0, 5, 50))[None],
            rng.random((200, 1)),
        )
        for _ in range(50)
    ]
    assert kstest(np.concatenate(drawn).ravel(), "uniform").pvalue > 0.01


def test_every_bet_is_fair():
    """The mean gain on uniform ranks is 1 for each bet whose gains vary little enough to see it."""
    rng = np.random.default_rng(2)
    bins = np.array([0, 0.3, 0.31, 0.9, 1.0])
    learned = np.array([3.0, 0.0, 10.0, 1.0])
    gains = np.exp([log_bets(rng.random(20), bins, learned)[0] for _ in range(20_000)])
    assert gains.shape == (20_000, BETS)
    seen = np.zeros(BETS, bool)
    seen[: len(LOCATIONS)] = np.abs(LOCATIONS) <= 0.2
    seen[len(LOCATIONS) : len(LOCATIONS) + len(SPREADS)] = (np.array(SPREADS) > 0.6) & (np.array(SPREADS) < 1.4)
    seen[len(LOCATIONS) + len(SPREADS)] = True  # the narrower prior of a mean
    seen[-4] = seen[-2] = True  # histograms that are expected near to uniform
    error = gains.std(axis=0) / math.sqrt(len(gains))
    assert (np.abs(gains.mean(axis=0) - 1)[seen] <= 5 * error[seen]).all()
    assert float(WEIGHTS.sum()) == pytest.approx(1)


def test_the_weights_of_all_checks_are_at_most_one():
    total = sum(math.exp(log_weight(t)) for t in range(1, 100_000))
    assert 0.9 < total + 1 / 2.10975 / math.log(1e5) <= 1.0001


def test_streams_without_drift_hardly_ever_alarm():
    alarmed = sum(
        any(live([frame(60, 1000 * s + t) for t in range(1, 26)], frame(300, 1000 * s), f"toy v{s}")) for s in range(40)
    )
    assert alarmed <= 2


def test_a_change_is_found_at_once_and_after_a_quiet_time():
    reference = frame(2000, 0)
    assert live([frame(500, 1, shift=0.5)], reference) == [True]
    quiet = [frame(500, seed) for seed in range(1, 31)]
    alarms = live([*quiet, frame(500, 31, shift=0.5), frame(500, 32, shift=0.5)], reference)
    assert not any(alarms[:30])
    assert any(alarms[30:])


def test_a_small_change_that_lasts_adds_up():
    alarms = live([frame(1000, seed, shift=0.12) for seed in range(1, 9)], frame(4000, 0))
    assert not alarms[0]
    assert any(alarms)


def test_a_row_counts_once():
    reference, window = frame(500, 0), frame(200, 1, shift=0.3)
    times = np.arange(200.0)
    first = check(make_pool(reference, KINDS), window, DriftState(), times, "toy v1")
    again = check(make_pool(reference, KINDS), window, first.state, times, "toy v1")
    assert again.state.columns["a"].counts == first.state.columns["a"].counts
    assert again.state.until == first.state.until == 199.0
    assert again.log_now["a"] == pytest.approx(0, abs=1e-9)
    assert again.log_e["a"] == pytest.approx(first.log_e["a"], abs=1)
    assert check(make_pool(reference, KINDS), window, DriftState(), times, "toy v1") == first  # a replay gives the same


def test_the_state_comes_back_from_json():
    found = check(make_pool(frame(500, 0), KINDS), frame(200, 1), DriftState(), np.arange(200.0), "toy v1")
    assert DriftState.from_json(found.state.to_json()) == found.state
    assert DriftState.from_json(DriftState().to_json()) == DriftState()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 2}', '{"format": 1, "checks": 1, "until": 1, "columns": {"a": {"capitals": [1]}}}']
)
def test_a_damaged_state_is_named(text):
    with pytest.raises(DataInvalid, match="state of the drift checks"):
        DriftState.from_json(text)


def test_a_column_of_other_cells_begins_anew():
    first = check(make_pool(frame(500, 0), KINDS), frame(200, 1), DriftState(), None, "toy v1")
    other = check(make_pool(frame(500, 7), KINDS), frame(200, 2), first.state, None, "toy v1")
    assert sum(other.state.columns["a"].counts) == 200


def test_cells_hold_ties_gaps_missing_and_new_values():
    numbers = make_cells(pd.Series([1.0, 1.0, 2.0, np.nan]), "number")
    assert numbers.codes(pd.Series([0.0, 1.0, 1.5, 2.0, 9.0, np.nan])).tolist() == [0, 1, 2, 3, 4, 5]
    names = make_cells(pd.Series(["10", "9", None, "9"]), "category")
    assert names.names == ("9", "10")
    assert names.codes(pd.Series(["10", "new", None])).tolist() == [1, 2, 3]


def test_columns_that_change_together_alone_are_told_by_the_classifier():
    def pair(rows: int, seed: int, correlation: float) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        x = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], rows)
        return pd.DataFrame({"x": x[:, 0], "y": x[:, 1], "t": np.where(x[:, 0] > 0, "up", "down")})

    broken, auc = joint_p(pair(1000, 0, 0.9), pair(1000, 1, 0.0), 0)
    assert broken < 1e-6
    assert auc > 0.6
    assert np.mean([joint_p(pair(200, 2 * s, 0.9), pair(200, 2 * s + 1, 0.9), s)[0] < 0.1 for s in range(15)]) < 0.4
    assert joint_p(pair(20, 0, 0.9), pair(1000, 1, 0.0), 0) == (1.0, 0.5)
