"""Drift tests: their error rate, their power, and the faults that Evidently lacks."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from homeostat.config import ProjectConfig
from homeostat.errors import MonitoringFailed
from homeostat.monitoring.drift import find_drift, planned_tests
from homeostat.monitoring.faults import null_faults, unit_change
from homeostat.monitoring.homogeneity import homogeneity_p
from homeostat.monitoring.reports import _read_drift, quality_report


def test_a_broken_column_is_found_at_300_rows_and_shown(config, draw, tmp_path):
    current = draw(300, 2)
    current["n3"] *= 1.8
    current.loc[current["few"] == 0, "few"] = 1
    drift = find_drift(draw(500, 1), current, config, tmp_path)
    assert drift.drifted
    assert {c.column for c in drift.columns if c.drifted} == {"n3", "few"}
    assert "n3 (evidence e^" in drift.reason
    assert [Path(p).name for p in drift.reports] == ["drift.json", "drift.html"]


def test_thresholds_are_the_configs_and_shared_over_the_columns(config, draw, tmp_path):
    reference, current = draw(500, 1), draw(300, 2)
    drift = find_drift(reference, current, config, tmp_path)
    assert not drift.drifted, drift.reason
    assert [c.p_value for c in drift.columns] == pytest.approx(p_values(reference, current, 0.01 / 8))
    assert {c.threshold for c in drift.columns} == {config.monitor.alpha / 8}
    assert {c.column: c.method for c in drift.columns} == {
        **{f"n{i}": "ks" for i in range(6)},
        "few": "two_sample_chisquare",
        "many": "two_sample_chisquare",
    }
    assert [Path(p).name for p in drift.reports] == ["drift.json"]
    written = json.loads(Path(drift.reports[0]).read_text())
    asked = [m["config"] for m in written["metrics"] if m["config"]["type"].endswith(":ValueDrift")]
    assert {(a["column"], a["threshold"]) for a in asked} == {(c.column, c.threshold) for c in drift.columns}
    counted = next(m for m in written["metrics"] if m["config"]["type"].endswith(":DriftedColumnsCount"))
    assert counted["config"]["drift_share"] == 1 / 8


def test_a_distance_method_is_held_against_the_distance(config):
    settings = config.monitor.model_copy(update={"numeric_method": "psi", "distance": 0.3})
    tests = planned_tests(settings, 0.001)
    assert (tests["number"].method, tests["number"].threshold) == ("psi", 0.3)
    assert tests["category"].threshold == 0.001


def test_distances_drift_at_or_above_the_distance(config, draw, tmp_path):
    settings = config.monitor.model_copy(
        update={"numeric_method": "wasserstein", "categorical_method": "jensenshannon", "distance": 0.4}
    )
    columns = ["n2", "n3", "few"]
    current = draw(300, 2)[columns]
    current["n3"] += 1.0
    drift = find_drift(draw(500, 1)[columns], current, config.model_copy(update={"monitor": settings}), tmp_path)
    assert [c.column for c in drift.columns if c.drifted] == ["n3"]


def test_faulty_columns_are_drift_and_the_others_are_tested(config, draw, tmp_path):
    """Each of these is silent in Evidently (absent, 95 % NaN) or crashes it (all NaN, numbers as strings)."""
    current = draw(300, 2).drop(columns=["n0"])
    current["n1"] = np.nan
    current["n2"] = np.inf
    current["n3"] = current["n3"].where(current.index % 20 == 0)
    current["n4"] = current["n4"].astype(str)
    current["few"] = current["few"].astype(str)
    drift = find_drift(draw(500, 1), current, config, tmp_path)
    assert drift.drifted
    assert drift.faults == (
        "n0: absent",
        "n1: without any value",
        "n2: without any value",
        "n4: re-typed: object, was float32",
        "few: re-typed: object, was int64",
        "n3: 95% missing, was 0%",
    )
    assert [(c.column, c.drifted) for c in drift.columns] == [("n5", False), ("many", False)]
    assert [Path(p).name for p in drift.reports] == ["drift.json", "drift.html"]


@pytest.mark.parametrize(("now", "before", "fault"), [(0.95, 0.0, True), (0.95, 0.93, False), (0.03, 0.0, False)])
def test_missing_values_are_a_fault_when_far_over_the_references_share(now, before, fault):
    def frame(rows: int, share: float) -> pd.DataFrame:
        return pd.DataFrame({"a": np.where(np.arange(rows) < share * rows, np.nan, 1.0)})

    assert bool(null_faults(frame(500, before), frame(300, now), ["a"], 0.001, slack=0.05)) is fault


def test_a_window_with_nothing_left_to_test_is_all_faults(config, draw, tmp_path):
    current = draw(300, 2)
    drift = find_drift(draw(500, 1), current[[]], config, tmp_path)
    assert drift.drifted
    assert len(drift.faults) == 8
    assert drift.reports == ()


@pytest.mark.parametrize("rows", [0, 1, 99])
def test_a_window_under_the_minimum_is_not_tested(config, draw, tmp_path, rows):
    drift = find_drift(draw(500, 1), draw(rows, 2) + 10, config, tmp_path)
    assert not drift.drifted
    assert f"window of {rows} rows is under monitor.min_rows = 100" in drift.reason
    assert drift.columns == drift.reports == ()


def test_a_tiny_reference_is_not_tested_against(config, draw, tmp_path):
    assert "reference of 20 rows is under 30" in find_drift(draw(20, 1), draw(300, 2), config, tmp_path).reason


def test_odd_columns_are_tested_without_a_crash(config, tmp_path):
    def odd(count: int, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        return pd.DataFrame(
            {
                "constant": np.ones(count),
                "one = class, (x)": np.zeros(count, int),
                "text": rng.choice(["a", "b", None], count),
                "flag": rng.random(count) < 0.5,
                "half missing": np.where(rng.random(count) < 0.5, np.nan, rng.normal(size=count)),
                "never known": np.full(count, np.nan),
            }
        )

    drift = find_drift(odd(300, 1), odd(200, 2), config, tmp_path)
    assert not drift.drifted, drift.reason
    assert [c.column for c in drift.columns] == ["constant", "one = class, (x)", "text", "flag", "half missing"]
    assert drift.columns[0].threshold == config.monitor.alpha / 6


def test_values_in_another_unit_are_named():
    rng = np.random.default_rng(1)
    celsius, later = pd.Series(rng.gamma(2, size=5000) * 10), pd.Series(rng.gamma(2, size=5000) * 10)
    assert re.fullmatch(
        r"values are 1\.[78]\d? times those of the reference and \+3[12][.\d]*, as in another unit",
        unit_change(celsius, later * 1.8 + 32),
    )
    assert "e+03 times" in unit_change(celsius, later * 1000)
    assert unit_change(celsius, later) == ""
    assert unit_change(celsius, later**2) == ""
    assert unit_change(celsius * 0, later) == ""


def test_a_category_never_seen_before_drifts(config, draw, tmp_path):
    columns = ["n0", "few"]
    current = draw(300, 2)[columns]
    current.loc[:29, "few"] = 7
    drift = find_drift(draw(500, 1)[columns], current, config, tmp_path)
    assert drift.drifted
    assert drift.faults == ("few: never seen before, in 10% of its values: '7'",)
    current["few"] = np.where(np.arange(300) < 1, 7, draw(300, 2)["few"])
    assert not find_drift(draw(500, 1)[columns], current, config, tmp_path).drifted


def p_values(reference: pd.DataFrame, current: pd.DataFrame, level: float) -> list[float]:
    """What Evidently must give for the 8 columns of `draw`; asserted below to be what it gives."""
    values = [ks_2samp(reference[f"n{i}"], current[f"n{i}"]).pvalue for i in range(6)]
    for column, categories in (("few", 3), ("many", 12)):
        counts = [np.bincount(f[column], minlength=categories) for f in (reference, current)]
        values.append(homogeneity_p(*counts, level))
    return values


def test_windows_without_drift_rarely_alarm(draw):
    """8 columns, windows of 200 rows against references of 142: the rate is at most alpha = 10 %."""
    level = 0.1 / 8
    alarms = sum(min(p_values(draw(142, seed), draw(200, 10_000 + seed), level)) <= level for seed in range(600))
    assert alarms <= 84  # P(Binomial(600, 0.1) > 84) < 0.001; with Evidently's own chisquare over 400 alarm
    assert alarms >= 30  # a test that never alarms holds any rate


@pytest.mark.parametrize(
    ("before", "now"),
    [("012", "000"), ("012", "022"), ("01", "00"), ("01", "22"), ("01", "012"), ("000", "000")],
)
def test_quality_of_windows_that_lack_classes_is_shown(before, now, tmp_path):
    """With two classes in sight, Evidently's multiclass definition raises KeyError."""

    def frame(labels: str) -> pd.DataFrame:
        answers = np.resize(list(labels), 30).astype(object)
        return pd.DataFrame({"model.target": np.roll(answers, 1), "model.prediction": answers})

    report = quality_report(frame(before), frame(now), "classification")
    names = [metric["metric_name"] for metric in report.values()["metrics"]]
    assert any(name.startswith("Accuracy") for name in names)


def test_a_quality_report_that_evidently_cannot_make_is_named():
    frame = pd.DataFrame({"model.target": np.zeros(30), "model.prediction": np.ones(30)})
    with pytest.raises(MonitoringFailed, match=r"30 rows of model\.target, model\.prediction"):
        quality_report(frame, frame, "regression")


def test_a_rare_category_is_not_an_alarm_by_itself():
    assert homogeneity_p(np.array([500, 0]), np.array([299, 1]), 0.001) > 0.1
    assert homogeneity_p(np.array([500, 0]), np.array([280, 20]), 0.001) <= 0.001
    assert homogeneity_p(np.array([500]), np.array([300]), 0.001) == 1.0


def test_a_million_categories_are_bounded():
    rng = np.random.default_rng(0)
    reference, current = (np.bincount(rng.integers(0, 50_000, 10_000), minlength=50_000) for _ in range(2))
    assert homogeneity_p(reference, current, 0.001) > 0.001


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"metrics": [{"value": 1.0}]},
        {"metrics": [{"config": {"type": "evidently:metric_v2:ValueDrift", "column": "a"}, "value": 0.5}]},
        {"metrics": [{"config": {"type": "evidently:metric_v3:Drift", "column": "a"}, "value": 0.5}]},
    ],
)
def test_an_unknown_structure_of_evidentlys_result_is_an_error(config: ProjectConfig, values):
    with pytest.raises(MonitoringFailed, match="Evidently"):
        _read_drift(values, {"a": "number"}, planned_tests(config.monitor, 0.001))
