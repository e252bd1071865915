"""Groups of people: their figures, how far they are apart, and what refuses a version."""

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

from homeostat.config import GateConfig
from homeostat.errors import ConfigError, GateFailed
from homeostat.evaluation.fairness import MAX_GROUPS, check_gap, check_sensitive, gap_metrics, group_figures
from homeostat.evaluation.metrics import decisions

SEX = GateConfig(sensitive=("sex",))


def people(n: int = 4000, seed: int = 0, errors: tuple[float, float] = (0.1, 0.1), base: float = 0.5):
    """Two classes, and answers that are wrong with the probability of the row's group."""
    rng = np.random.default_rng(seed)
    group = rng.choice(["f", "m"], n)
    target = (rng.random(n) < base).astype(float)
    wrong = rng.random(n) < np.where(group == "f", *errors)
    chosen = np.where(wrong, 1 - target, target).astype(int)
    return target, np.eye(2)[chosen], {"sex": group}


def gaps(found) -> dict:
    return {gap.metric: gap for gap in found.gaps}


def test_the_gaps_are_fairlearns():
    target, outputs, groups = people(errors=(0.05, 0.3), base=0.3)
    (found,) = group_figures("classification", target, outputs, groups, SEX)
    decided = decisions(outputs, "classification")
    known = {"y_true": target, "y_pred": decided, "sensitive_features": groups["sex"]}
    assert gaps(found)["demographic_parity"].value.value == pytest.approx(demographic_parity_difference(**known))
    assert gaps(found)["equalized_odds"].value.value == pytest.approx(equalized_odds_difference(**known))
    wrong = [np.mean((decided != target)[groups["sex"] == one]) for one in "fm"]
    assert gaps(found)["error"].value.value == pytest.approx(wrong[1] - wrong[0])
    assert (gaps(found)["error"].high, gaps(found)["error"].low) == ("m", "f")
    of = {group.group: group for group in found.groups}
    assert of["m"].rates["error"].value == pytest.approx(wrong[1])
    assert of["m"].rates["error"].low < wrong[1] < of["m"].rates["error"].high
    assert of["f"].rows == (groups["sex"] == "f").sum()
    assert gap_metrics((found,)).keys() == {"gap_sex_error", "gap_sex_demographic_parity", "gap_sex_equalized_odds"}


def test_a_gap_that_is_certainly_over_the_limit_refuses():
    gate = GateConfig(sensitive=("sex",), max_group_gap=0.1)
    found = group_figures("classification", *people(errors=(0.05, 0.3)), gate)
    assert gaps(found[0])["error"].verdict == "over"
    assert gaps(found[0])["demographic_parity"].verdict == "", "the limit is on the error alone"
    with pytest.raises(GateFailed, match=r"groups of sex are apart: error: 0\.2.* over gate\.max_group_gap 0\.1"):
        check_gap(found, gate)


@pytest.mark.parametrize(("n", "limit", "verdict"), [(4000, 0.2, "within"), (200, 0.02, "inconclusive")])
def test_what_is_not_certain_refuses_nothing(n, limit, verdict):
    gate = GateConfig(sensitive=("sex",), max_group_gap=limit)
    found = group_figures("classification", *people(n, seed=2), gate)
    assert gaps(found[0])["error"].verdict == verdict
    check_gap(found, gate)


def test_another_gap_may_be_limited():
    gate = GateConfig(sensitive=("sex",), max_group_gap=0.05, group_gap="equalized_odds")
    (found,) = group_figures("classification", *people(errors=(0.05, 0.3)), gate)
    assert {gap.metric: gap.verdict for gap in found.gaps} == {
        "error": "",
        "demographic_parity": "",
        "equalized_odds": "over",
    }


@pytest.mark.parametrize("groups", [2, 6])
def test_of_equal_groups_the_interval_holds_the_gap(groups):
    """0 is in it, in 95 % of the draws at least."""
    held = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        target, group = rng.integers(0, 2, 1200).astype(float), rng.integers(0, groups, 1200).astype(str)
        chosen = np.where(rng.random(1200) < 0.2, 1 - target, target).astype(int)
        (found,) = group_figures("classification", target, np.eye(2)[chosen], {"sex": group}, SEX)
        held += gaps(found)["error"].value.low == 0
    assert held >= 25  # fewer of 30 have a chance of 0.3 % at 95 % each


def test_of_many_classes_the_worst_is_named():
    rng = np.random.default_rng(1)
    target, group = rng.integers(0, 4, 6000), rng.choice(["a", "b"], 6000)
    chosen = np.where((group == "a") & (target == 2), 3, target)  # for group a class 2 is never said
    (found,) = group_figures("classification", target.astype(float), np.eye(4)[chosen], {"sex": group}, SEX)
    odds = gaps(found)["equalized_odds"]
    assert (odds.label, odds.high, odds.low) == ("2", "b", "a")
    assert odds.value.value == 1
    assert [set(one.rates) for one in found.groups] == [{"error"}, {"error"}]
    assert "equalized odds of class 2: 1 (" in str(odds)


def test_regression_compares_mean_absolute_errors():
    rng = np.random.default_rng(3)
    group, target = rng.choice(["f", "m"], 2000), rng.normal(size=2000)
    answers = target + rng.normal(size=2000) * np.where(group == "f", 1.0, 2.0)
    gate = GateConfig(sensitive=("sex",), max_group_gap=0.5)
    (found,) = group_figures("regression", target, answers[:, None], {"sex": group}, gate)
    (gap,) = found.gaps
    assert gap.value.low < 0.8 < gap.value.high  # sqrt(2 / pi) x (2 - 1)
    assert (gap.high, gap.low, gap.verdict) == ("m", "f", "over")


def test_rows_without_a_label_count_for_selection_alone():
    target, outputs, groups = people()
    target[:] = np.nan
    (found,) = group_figures("classification", target, outputs, groups, SEX)
    assert set(gaps(found)) == {"demographic_parity"}
    assert [set(one.rates) for one in found.groups] == [{"selection_rate"}, {"selection_rate"}]
    assert [one.labelled for one in found.groups] == [0, 0]


def test_answers_that_are_not_finite_are_errors_of_no_class():
    target, outputs, groups = people(4000)
    outputs[:400] = np.nan
    target[:2000] += 2 * (np.arange(2000) % 2)  # four classes
    (found,) = group_figures("classification", target, outputs, groups, SEX)
    assert sum(one.rates["error"].value * one.rows for one in found.groups) >= 400


def test_groups_that_cannot_be_told():
    target, outputs, groups = people(400)
    groups["sex"][:5], groups["sex"][5:9] = "x", ""
    (found,) = group_figures("classification", target, outputs, groups, SEX)
    assert [one.group for one in found.groups] == ["f", "m"]
    assert "1 groups of fewer than 20 rows are left out: x" in found.notes
    assert "4 of 400 rows name no sex" in found.notes
    (found,) = group_figures("classification", target, outputs, {"sex": np.full(400, "f")}, SEX)
    assert not found.gaps
    assert "fewer than two groups" in found.notes[-1]
    (found,) = group_figures("classification", target, outputs, {}, SEX)
    assert "400 of 400 rows name no sex" in found.notes


def test_of_thousands_of_groups_the_most_frequent_are_shown():
    target, outputs, _ = people(6000)
    group = np.where(np.arange(6000) < 3000, np.arange(6000) // 100, np.arange(6000)).astype(str)
    (found,) = group_figures("classification", target, outputs, {"sex": group}, SEX)
    assert len(found.groups) == MAX_GROUPS
    assert any("the 20 most frequent of 3030 groups are shown" in note for note in found.notes)


def test_a_name_that_is_no_slice_is_an_error_that_says_which_there_are():
    with pytest.raises(ConfigError, match=r"gate\.sensitive names gender, and the project's slices are sex, site"):
        check_sensitive(GateConfig(sensitive=("gender",)), {"sex": np.empty(0), "site": np.empty(0)})
