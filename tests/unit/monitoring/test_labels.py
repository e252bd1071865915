"""One look at the labels in a capture: harm, cohorts, delay, the estimate and what else has changed."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from homeostat.config import ProjectConfig, ServeConfig
from homeostat.dataset import Dataset
from homeostat.monitoring.harm import HarmState
from homeostat.monitoring.labels import look_at_labels
from homeostat.monitoring.reference import load_reference, make_reference
from homeostat.project import Project
from tests.bundles import softmax

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)  # the capture fixture's


class Toy(Project):
    """Which of three columns is the largest."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError


def drawn(n, seed, wrong):
    rng = np.random.default_rng(seed)
    x = (3 * rng.normal(size=(n, 3))).astype(np.float32)
    return x, np.where(rng.random(n) < wrong, (x.argmax(axis=1) + 1) % 3, x.argmax(axis=1))


@pytest.fixture(scope="module")
def reference():
    x, y = drawn(1000, 0, 0.1)
    data = Dataset.from_arrays({"x": x}, y, columns={"x": ("a", "b", "c")}, slices={"site": np.arange(1000) % 2})
    made = make_reference(
        Toy(), ProjectConfig(name="toy", project="toy:Toy", task="classification"), data, softmax(), 1
    )
    return load_reference(made)


def send(capture, day, wrong, *, rows=200, labelled=True, seed=0, milliseconds=2.0):
    """A day's requests of ten rows each, so many days ago."""
    x, y = drawn(rows, 100 + day + seed, wrong)
    scores = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    for first in range(0, rows, 10):
        part = slice(first, first + 10)
        minutes = 1440 * (day + 1 - (first + 5) / rows)
        about = {"slices": {"site": str(first // 10 % 2)}, "milliseconds": milliseconds}
        request = capture.answer(x[part], scores[part].astype(np.float32), minutes_ago=minutes, **about)
        if labelled:
            capture.label(request, y[part].tolist())


def look(config, capture, reference, state=None, since=NOW - timedelta(days=1), now=NOW, **changes):
    options = {"version": 3, "champion_since": NOW - timedelta(days=9.5), "seed": 1} | changes
    return look_at_labels(
        Toy(), config, reference, state, traffic=capture.path, since=since, now=now, **options
    )  # fmt: skip


def test_the_reference_keeps_its_slices(reference):
    assert reference.slices["site"].tolist() == ["0", "1"] * 500


def test_a_version_that_gets_worse(config, capture, reference):
    for day in range(1, 8):
        send(capture, day, 0.1)
    before = look(config, capture, reference, since=NOW - timedelta(days=2), now=NOW - timedelta(days=1))
    assert not before.state.harmed
    assert not any(harm.harmed for harm in before.harm)
    send(capture, 0, 0.45, milliseconds=9.0)
    kept = HarmState.from_json(before.state.to_json())
    found = look(config, capture, reference, kept)
    assert [harm.name for harm in found.harm] == ["all", "site=0", "site=1"]
    assert [harm.harmed for harm in found.harm] == [True, True, True]
    assert (found.harm[0].labels, found.harm[0].standing) == (1600, True)
    assert found.harm[0].since >= "2026-02-28T09"
    assert [cohort.answered for cohort in found.cohorts] == [200] * 8
    assert found.cohorts[-1].metric.value == pytest.approx(0.55, abs=0.1)
    assert (found.delay.coverage, found.estimate.shown) == (1.0, False)
    assert {change.name: change.changed for change in found.changes} == {
        "calibration_error": True, "latency_p50_ms": False, "latency_p99_ms": False, "error_rate": False,
    }  # fmt: skip
    again = look(config, capture, reference, found.state)
    assert again.harm[0].labels == 1600
    json.dumps([dataclasses.asdict(part) for part in (*again.harm, again.delay, again.estimate)])


def test_another_version_begins_anew(config, capture, reference):
    send(capture, 0, 0.45)
    state = look(config, capture, reference).state
    found = look(config, capture, reference, state, version=4)
    assert (found.state.version, found.harm[0].labels) == (4, 0)


def test_no_label_and_no_traffic(config, capture, reference):
    unknown = "no label of this version has been counted yet: harm is not known"
    assert look(config, capture, reference).notes == (unknown,)
    send(capture, 0, 0.1, labelled=False)
    found = look(config, capture, reference)
    assert found.notes == (unknown,)
    assert (found.delay.coverage, found.delay.p50) == (None, None)
    assert [cohort.metric for cohort in found.cohorts][-1] is None
    assert found.estimate.value == pytest.approx(0.9, abs=0.05)


def test_slices_that_the_reference_does_not_have(config, capture, reference):
    asked = config.model_copy(update={"serve": ServeConfig(slices=("site", "country"))})
    send(capture, 0, 0.1)
    (note,) = look(asked, capture, reference).notes
    assert note.startswith("slice country is not among the reference's slices")


def test_labels_of_a_week_ago_and_a_version_of_a_minute(config, capture, reference):
    send(capture, 7, 0.1)
    found = look(config, capture, reference, champion_since=NOW - timedelta(minutes=1))
    assert (len(found.cohorts), found.cohorts[0].answered) == (1, 0)
    late = look(config, capture, reference)
    assert late.harm[0].labels == 200
    assert late.delay.p50 > 6 * 86400
