"""Two versions on the same labelled live rows, in the order in which their labels came."""

from datetime import timedelta

import numpy as np
import pytest

from homeostat.config import MonitorConfig, ProjectConfig, RolloutConfig, ServeConfig, TrialConfig
from homeostat.dataset import Dataset
from homeostat.errors import GateFailed
from homeostat.evaluation.betting import mean_sequence
from homeostat.inference import predict
from homeostat.monitoring.reference import load_reference, make_reference
from homeostat.monitoring.rivals import ERROR, compare_live, once_each
from tests.unit.monitoring.test_monitor import BAD, GOOD, NAMES, NOW, Toy, graph, rows

CONFIG = ProjectConfig(name="toy", project="toy:Toy", task="classification")


@pytest.fixture(scope="module")
def reference():
    x, y = rows(400, 0)
    data = Dataset.from_arrays({"x": x}, y, columns={"x": NAMES})
    return load_reference(make_reference(Toy(), CONFIG, data, GOOD, 1))


def compare(capture, reference, config=CONFIG, mine=GOOD, rival=BAD, version=None, least=10, days=7.0, project=None):
    return compare_live(
        project or Toy(),
        config,
        reference,
        mine,
        (2, rival),
        traffic=capture.path,
        since=NOW - timedelta(days=days),
        now=NOW,
        min_labels=least,
        version=version,
    )


def answer(capture, count, seed=2, labelled=1.0, **words):
    x, y = rows(count, seed)
    for row in range(count):
        request = capture.answer(x[row : row + 1], predict(GOOD, {"x": x[row : row + 1]})["output"], **words)
        capture.label(request, [int(y[row])], minutes_ago=labelled)
    return x, y


def test_the_gain_is_of_accuracy_and_whoever_answered_counts(capture, reference):
    x, y = answer(capture, 40)
    answer(capture, 20, seed=3, version=7, arm="canary")
    found = compare(capture, reference)
    assert (found.metric, found.champion_version, found.rows) == ("accuracy", 2, 60)
    assert found.gain.value == pytest.approx(found.challenger - found.champion)
    assert found.gain.low > 0.2
    assert compare(capture, reference, mine=BAD, rival=GOOD).gain.high < -0.2
    mine = compare(capture, reference, version=3)
    assert (mine.rows, mine.challenger) == (40, pytest.approx(np.mean(x.argmax(axis=1) == y)))


def test_too_few_labels_and_old_rows_say_nothing(capture, reference):
    answer(capture, 30, minutes_ago=3 * 24 * 60)
    assert compare(capture, reference, least=31) is None
    assert compare(capture, reference, least=30).rows == 30
    assert compare(capture, reference, days=2) is None


def test_the_labels_that_came_first_decide_and_later_ones_change_nothing(capture, reference):
    config = CONFIG.model_copy(update={"rollout": RolloutConfig(trial=TrialConfig(min_labels=10, max_labels=20))})
    answer(capture, 25, minutes_ago=20)
    first = compare(capture, reference, config)
    assert first.rows == 20
    answer(capture, 25, seed=9, labelled=0.5, minutes_ago=30)  # answered before, labelled after
    assert compare(capture, reference, config) == first


def test_slices_have_gains_of_their_own_corrected_for_their_number(capture, reference):
    config = CONFIG.model_copy(update={"serve": ServeConfig(slices=("region",))})
    answer(capture, 30, slices={"region": "north"})
    answer(capture, 20, seed=3, slices={"region": "south"})
    found = compare(capture, reference, config)
    assert [(one.name, one.rows) for one in found.slices] == [("region=north", 30), ("region=south", 20)]
    assert {one.gain.confidence for one in found.slices} == {0.975}


def test_a_run_of_one_entity_counts_once(capture, reference):
    assert once_each(np.array([1.0, 0, 1, 1]), np.array(["a", "a", "", ""])).tolist() == [0.5, 1, 1]
    assert once_each(np.array([1.0, 0]), np.array(["a", "b"])).tolist() == [1, 0]
    assert once_each(np.empty(0), np.empty(0, str)).tolist() == []
    answer(capture, 60, entity="the same")
    found = compare(capture, reference)
    assert found.rows == 60
    assert found.gain.low == mean_sequence(np.array([found.gain.value]), 0.95).low < 0


def test_regressions_that_are_both_far_off_are_told_apart(capture):
    config = CONFIG.model_copy(update={"task": "regression"})
    model = graph(np.ones((3, 1)), last="Identity")
    x, _ = rows(120, 2)
    data = Dataset.from_arrays({"x": x}, x.sum(axis=1) + 0.1, columns={"x": NAMES})
    reference = load_reference(make_reference(Toy(), config, data, model, 1))
    for row in range(len(x)):
        one = x[row : row + 1]
        capture.label(capture.answer(one, predict(model, {"x": one})["output"]), [float(one.sum() * 10 + 5)])
    rival = graph(np.full((3, 1), 5.0), last="Identity")
    found = compare(capture, reference, config, mine=rival, rival=model)
    assert found.metric == ERROR
    assert found.challenger > 1
    assert found.gain.low > 0
    lost = graph(np.full((3, 1), np.nan), last="Identity")
    assert compare(capture, reference, config, mine=lost, rival=model).gain.value == -1
    assert compare(capture, reference, config, mine=lost, rival=lost).gain.value == 0


def test_rows_that_cannot_be_answered_again(capture, reference):
    x, y = rows(20, 2)
    capture.label(capture.answer(x, predict(GOOD, {"x": x})["output"], masking='{"x": {}}'), y.tolist())
    with pytest.raises(GateFailed, match="masked"):
        compare(capture, reference)


def test_a_metric_of_the_project_is_the_loss(capture, reference):
    class Own(Toy):
        def metrics(self):
            return {"never": lambda labels, scores: 0.0}

    answer(capture, 20)
    config = CONFIG.model_copy(update={"monitor": MonitorConfig(harm_metric="never")})
    found = compare(capture, reference, config, project=Own())
    assert (found.metric, found.challenger, found.gain.value) == ("never", 0.0, 0.0)
