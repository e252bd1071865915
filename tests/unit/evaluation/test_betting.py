"""A confidence sequence: it holds the mean at every look, and closes in on it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.evaluation.betting import log_wealth, mean_sequence


def differences(rng: np.random.Generator, better: float, worse: float, n: int) -> np.ndarray:
    return rng.choice([1.0, -1.0, 0.0], n, p=[better, worse, 1 - better - worse])


def test_equal_models_are_told_apart_at_no_look():
    """Of 300 streams of 2,000 labels, looked at 40 times: 5 % may ever leave zero out; binomial 99.9 % end: 29."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        values = differences(rng, 0.1, 0.1, 2000)
        looks = (mean_sequence(values[:n], 0.95) for n in range(50, 2001, 50))
        wrong += any(one.low > 0 or one.high < 0 for one in looks)
    assert wrong <= 29


def test_a_better_model_is_found_and_the_interval_holds_its_gain():
    rng = np.random.default_rng(1)
    found = [mean_sequence(differences(rng, 0.06, 0.03, 5000), 0.95) for _ in range(20)]
    assert sum(one.low > 0 for one in found) >= 18
    assert sum(one.low <= 0.03 <= one.high for one in found) >= 19


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_ends_lie_about_the_mean_and_mirror_each_other(values):
    found = mean_sequence(np.array(values), 0.95)
    assert -1 <= found.low <= found.value + 1e-5
    assert found.value - 1e-5 <= found.high <= 1
    other = mean_sequence(-np.array(values), 0.95)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low), abs=1e-5)


def test_wealth_is_the_product_of_the_stakes():
    values = np.array([1.0, -0.5, 0.25])
    shares = np.array([0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
    by_hand = np.mean([np.prod(1 + share * ((values + 1) / 1.1 - 1)) for share in shares])
    assert math.exp(log_wealth(values, 0.1)) == pytest.approx(by_hand)
    assert log_wealth(values, 0.1) == pytest.approx(log_wealth(np.array([1.0]), 0.1, np.array([0])) + math.log(by_hand))


def test_no_values_and_bad_ones():
    assert math.isnan(mean_sequence(np.empty(0), 0.95).value)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        mean_sequence(np.array([0.0, 1.5]), 0.95)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        mean_sequence(np.array([0.0, np.nan]), 0.95)
