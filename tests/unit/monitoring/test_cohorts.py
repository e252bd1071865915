"""Label delay, the maturity horizon, and cohorts by event time."""

import dataclasses
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from homeostat.config import MonitorConfig, ProjectConfig
from homeostat.monitoring.cohorts import equal_edges, label_delay, make_cohorts, worsened
from homeostat.monitoring.traffic import TrafficRows, read_rows
from homeostat.project import Project

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)  # the capture fixture's
CONFIG = ProjectConfig(name="toy", project="toy:Toy", task="classification")


class Toy(Project):
    """Two classes."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError


def answered(hours_ago, delay_hours, right=True):
    """Rows so many hours old, whose labels took so long; NaN: none came."""
    hours_ago, delay_hours = np.asarray(hours_ago, float), np.asarray(delay_hours, float)
    n = len(hours_ago)
    times = NOW.timestamp() - 3600 * hours_ago
    arrivals = times + 3600 * delay_hours
    arrivals[arrivals > NOW.timestamp()] = np.nan
    labels = np.where(np.isfinite(arrivals), np.arange(n) % 2, np.nan)
    decided = np.where(right, np.arange(n) % 2, 1 - np.arange(n) % 2)
    return TrafficRows(
        inputs={"x": np.zeros((n, 1))},
        outputs={"output": np.eye(2)[decided]},
        labels=labels,
        entity_ids=np.full(n, ""),
        request_ids=np.arange(n).astype(str),
        versions=np.full(n, 3),
        times=times,
        milliseconds=np.ones(n),
        arms=np.full(n, "champion"),
        places=np.zeros(n, dtype=int),
        label_times=arrivals,
    )


def test_delay_horizon_and_coverage():
    delays = np.where(np.arange(400) % 5 == 0, np.nan, np.linspace(1, 11, 400))
    found = label_delay(answered(np.linspace(40, 0, 400), np.random.default_rng(1).permutation(delays)), NOW, CONFIG)
    assert found.p50 == pytest.approx(6 * 3600, rel=0.15)
    assert found.p90 == pytest.approx(10 * 3600, rel=0.1)
    assert found.horizon == found.p90
    assert found.coverage == pytest.approx(0.8, abs=0.05)


def test_a_given_horizon_and_none_that_can_be_learnt():
    given = CONFIG.model_copy(update={"monitor": MonitorConfig(maturity_hours=5.0)})
    rows = answered(np.linspace(20, 0, 40), np.full(40, 1.0))
    assert label_delay(rows, NOW, given).horizon == 5 * 3600
    few = label_delay(rows.take(np.arange(10)), NOW, CONFIG)
    assert few.horizon == CONFIG.monitor.window_hours * 3600
    assert (few.p50, few.coverage) == (pytest.approx(3600), None)
    nothing = label_delay(TrafficRows(), NOW, CONFIG)
    assert (nothing.p50, nothing.p90, nothing.coverage) == (None, None, None)


def test_labels_at_once_and_before_their_answer():
    rows = answered(np.linspace(20, 0, 100), np.full(100, -1.0))
    found = label_delay(rows, NOW, CONFIG)
    assert (found.p50, found.p90, found.horizon) == (0, 0, 60)


def test_cohorts_by_event_time():
    right = np.arange(200) < 150
    rows = answered(np.linspace(7.99, 0.01, 200), np.full(200, 1.0), right)
    edges = equal_edges(NOW - timedelta(hours=8), NOW, 4)
    cohorts = make_cohorts(Toy(), CONFIG, rows, edges, NOW, 3600.0, 1)
    assert [cohort.answered for cohort in cohorts] == [50] * 4
    assert [cohort.labelled for cohort in cohorts] == [50, 50, 50, 25]
    assert [cohort.mature for cohort in cohorts] == [True, True, True, False]
    assert [cohort.metric.value for cohort in cohorts] == [1, 1, 1, 0]
    assert cohorts[0].start == "2026-03-01T04:00:00+00:00"
    assert worsened(cohorts, "accuracy", 0.9) == ()  # the bad one is not mature
    mature = make_cohorts(Toy(), CONFIG, rows, edges, NOW + timedelta(hours=2), 3600.0, 1)
    assert worsened(mature, "accuracy", 0.9) == (mature[3],)
    assert worsened(mature, "log_loss", 2.0) == ()


def test_cohorts_without_rows_or_with_labels_that_leave_the_metric_undefined():
    edges = equal_edges(NOW - timedelta(hours=8), NOW, 2)
    assert [c.metric for c in make_cohorts(Toy(), CONFIG, TrafficRows(), edges, NOW, 60.0, 1)] == [None, None]
    rows = answered(np.linspace(7.9, 0.1, 60), np.zeros(60))
    one_class = dataclasses.replace(rows, labels=np.zeros(60))
    auc = CONFIG.model_copy(update={"metric": "roc_auc"})
    assert [c.metric for c in make_cohorts(Toy(), auc, one_class, edges, NOW, 60.0, 1)] == [None, None]


def test_arrival_times_come_out_of_the_capture(capture):
    first = capture.answer(np.zeros((2, 1), np.float32), np.eye(2, dtype=np.float32), minutes_ago=30)
    capture.answer(np.zeros((1, 1), np.float32), np.eye(2, dtype=np.float32)[:1], minutes_ago=20)
    capture.label(first, [1, None])
    rows = read_rows(capture.path, "toy", NOW - timedelta(days=1), NOW, 100)
    assert rows.places.tolist() == [0, 1, 0]
    delays = (rows.label_times - rows.times).tolist()
    assert delays[0] == pytest.approx(1800)
    assert np.isnan(delays[1:]).all()
