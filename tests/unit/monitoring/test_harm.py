"""Harm on late labels: run length, detection, which labels count, and state that outlives a run."""

import dataclasses
import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import fisher_exact

from homeostat.config import MonitorConfig, ProjectConfig
from homeostat.errors import ConfigError, DataInvalid
from homeostat.monitoring import harm as module
from homeostat.monitoring.detector import (
    ALL,
    Stream,
    block_length,
    dependence,
    follow,
    harm_of,
    make_streams,
    mean_interval,
    upper_mean,
)
from homeostat.monitoring.harm import HarmState, begin, count_labels
from homeostat.monitoring.performance import row_losses
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows
from homeostat.project import Project

START = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
CONFIG = ProjectConfig(name="toy", project="toy:Toy", task="classification")


class Toy(Project):
    """Two classes."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError

    def metrics(self):
        return {"chance": lambda target, outputs: float(outputs[0, int(target[0])]), "double": lambda t, o: 2.0}


def answers(wrong):
    """Labels [n] and outputs of which those of `wrong` miss."""
    wrong = np.asarray(wrong, dtype=bool)
    labels = np.arange(len(wrong)) % 2
    decided = np.where(wrong, 1 - labels, labels)
    return labels.astype(float), {"output": np.eye(2)[decided] * 0.6 + 0.2}


def reference(error=0.1, rows=4000, slices=None):
    wrong = np.random.default_rng(0).permutation(np.arange(rows) < rows * error)
    labels, outputs = answers(wrong)
    return Reference({"x": np.zeros((rows, 1))}, outputs, {}, labels.astype(int), slices or {})


def traffic(wrong, first=0, **changes):
    labels, outputs = answers(wrong)
    n = len(labels)
    rows = TrafficRows(
        inputs={"x": np.zeros((n, 1))},
        outputs=outputs,
        labels=labels,
        entity_ids=np.full(n, ""),
        request_ids=np.array([f"r{first + i}" for i in range(n)]),
        versions=np.full(n, 3),
        times=START + first + np.arange(n, dtype=float),
        milliseconds=np.ones(n),
        arms=np.full(n, "champion"),
        places=np.zeros(n, dtype=int),
        label_times=np.full(n, START + 1e6),
    )
    return dataclasses.replace(rows, **changes)


def started(expected=None, config=CONFIG):
    expected = reference() if expected is None else expected
    losses = row_losses(Toy(), config, expected)
    return begin(config, expected, losses, 3), expected, losses


def look(state, rows, expected, losses, config=CONFIG):
    return count_labels(state, rows, config, expected, losses)


def draw(rate, n, seed):
    return np.random.default_rng(seed).random(n) < rate


def first_alarm(losses, tolerated, run_length):
    stream = Stream(ALL, tolerated, math.log(run_length), (1000.0, tolerated, 0.1))
    found = follow(stream, losses.astype(float), np.arange(len(losses), dtype=float))
    return math.inf if found.alarm is None else found.alarm + 1


def test_runs_are_as_long_as_promised_at_the_tolerated_loss():
    lengths = [min(first_alarm(draw(0.2, 1500, seed), 0.2, 150), 1500) for seed in range(40)]
    assert np.mean(lengths) >= 150


def test_runs_are_as_long_when_losses_depend_on_one_another():
    """Each loss is expected to be what is tolerated, given the others: a good one follows a bad one."""
    lengths = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        spread = np.where(np.arange(1500) // 20 % 2, 0.2, 0.02)  # of a loss around 0.2, in turns
        lengths.append(min(first_alarm(0.2 + spread * rng.choice([-1, 1], 1500), 0.2, 150), 1500))
    assert np.mean(lengths) >= 150


@pytest.mark.parametrize(("points", "most"), [(5, 1500), (10, 350), (20, 150)])
def test_a_rise_is_found_soon(points, most):
    state, _, _ = started(reference(rows=5000))
    delays = []
    for seed in range(9):
        wrong = np.concatenate([draw(0.1, 300, 100 + seed), draw(0.1 + points / 100, 3000, seed)]).astype(float)
        found = follow(state.streams[0], wrong, np.arange(3300.0))
        delays.append(math.inf if found.alarm is None else found.alarm - 300)
        if points == 20:
            assert abs(found.since - 300) < 100
    assert 0 < np.median(delays) <= most


def test_the_length_of_a_block_follows_the_runs_of_errors():
    rng = np.random.default_rng(1)
    alone = (rng.random(3000) < 0.2).astype(float)
    runs = np.repeat((rng.random(150) < 0.2).astype(float), 20)
    assert dependence(alone) < 1.5
    assert dependence(runs) > 10
    assert block_length(alone) < 9 < 50 < block_length(runs)
    assert block_length(np.zeros(3000)) == block_length(runs[:500]) == 5
    known = make_streams(runs, {}, MonitorConfig(), in_time=True)[0]
    assert known.block == block_length(runs)
    new = make_streams(alone, {}, MonitorConfig())[0]
    assert new.block == 5
    for first in range(0, 1200, 300):  # the first thousand labels teach what a shuffled reference cannot
        new = follow(new, runs[first : first + 300], np.arange(first, first + 300.0))
        new = HarmState.from_json(HarmState(3, (new,)).to_json()).streams[0]
    assert new.block == block_length(runs[:1000])
    assert new.first == ()


def test_runs_of_errors_are_no_harm():
    state, _, _ = started(reference(0.2))
    alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        runs = np.repeat(rng.random(300) < 0.2, 10).astype(float)
        alarms += follow(dataclasses.replace(state.streams[0], block=50), runs, np.arange(3000.0)).alarm is not None
    assert alarms <= 1


def test_looks_of_any_size_follow_the_same_stream():
    losses, times = draw(0.13, 2500, 5).astype(float), np.arange(2500.0)
    at_once = in_parts = started()[0].streams[0]
    at_once = follow(at_once, losses, times)
    for first in range(0, 2500, 7):
        in_parts = follow(in_parts, losses[first : first + 7], times[first : first + 7])
    assert in_parts.log_r1 == pytest.approx(at_once.log_r1)
    assert dataclasses.replace(in_parts, log_r1=at_once.log_r1, log_run=at_once.log_run) == at_once


def test_a_look_is_tested_by_itself():
    state, _, _ = started(reference(rows=2000))
    losses, times = np.zeros(200), START + np.arange(200.0)
    losses[:38] = 1  # 19 %, was 10 %: a chance of 1 in 2,000
    found = harm_of(state.streams[0], losses, times)
    assert (found.harmed, found.standing, found.since) == (True, False, "2026-03-01T00:00:00+00:00")
    assert found.p_value == pytest.approx(fisher_exact([[38, 162], [200, 1800]], "greater").pvalue, rel=0.3)
    losses[30:38] = 0
    assert not harm_of(state.streams[0], losses, times).harmed
    assert harm_of(state.streams[0], losses[:20], times[:20]).p_value is None


def test_looks_raise_one_false_alarm_in_a_run_length_at_most():
    stream = make_streams(draw(0.1, 5000, 0).astype(float), {}, MonitorConfig(harm_run_length=5000))[0]
    looks = [harm_of(stream, draw(0.1, 100, seed).astype(float), np.zeros(100)).harmed for seed in range(500)]
    assert sum(looks) <= 10  # of 10 run lengths


def test_a_look_of_losses_between_0_and_1():
    rng = np.random.default_rng(1)
    stream = make_streams(rng.uniform(0, 0.4, 2000), {}, MonitorConfig())[0]
    assert harm_of(stream, rng.uniform(0.1, 0.5, 100), np.zeros(100)).p_value < 1e-6
    assert harm_of(stream, rng.uniform(0, 0.4, 100), np.zeros(100)).p_value > 0.01
    constant = make_streams(np.full(500, 0.25), {}, MonitorConfig())[0]
    assert harm_of(constant, np.full(50, 0.25), np.zeros(50)).p_value == 1
    assert harm_of(constant, np.full(50, 0.5), np.zeros(50)).p_value == 0


def test_intervals_of_a_mean():
    assert upper_mean(np.zeros(100), 0.95) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper_mean(np.ones(5), 0.95) == 1
    found = mean_interval(np.repeat([0.0, 1.0], [90, 10]))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.0490, 0.1762), abs=1e-4)
    assert math.isnan(mean_interval(np.empty(0)).value)


def test_slices_share_one_run_length():
    values = np.where(np.arange(4000) % 4 == 0, "old", "young")
    other = np.where(np.arange(4000) % 2 == 0, "a", "")
    streams = make_streams(draw(0.1, 4000, 1).astype(float), {"age": values, "kind": other}, MonitorConfig())
    assert [s.name for s in streams] == ["all", "age=old", "age=young", "kind=a"]
    assert [math.exp(s.threshold) for s in streams] == pytest.approx([40_000, 80_000, 80_000, 80_000])
    assert streams[1].tolerated > streams[0].tolerated > 0.11


def test_each_row_counts_once_whatever_the_order_it_comes_in():
    state, expected, losses = started()
    rows = traffic(draw(0.15, 600, 1))
    shuffled = rows.take(np.random.default_rng(1).permutation(600))
    once = look(state, rows, expected, losses)
    assert once.counted == 600
    assert look(state, shuffled, expected, losses).state.streams == once.state.streams
    again = look(once.state, shuffled, expected, losses)
    assert again.counted == 0
    assert again.state.streams == once.state.streams
    assert math.isnan(again.harm[0].loss.value)
    assert again.harm[0].labels == 600


def test_a_corrected_label_does_not_count_again():
    state, expected, losses = started()
    rows = traffic(draw(0.1, 100, 1))
    state = look(state, rows, expected, losses).state
    corrected = dataclasses.replace(rows, labels=1 - rows.labels)
    assert look(state, corrected, expected, losses).counted == 0


def test_two_rows_of_one_request_are_two():
    state, expected, losses = started()
    both = traffic([False, True], request_ids=np.array(["r", "r"]), places=np.array([0, 1]))
    assert look(state, both, expected, losses).counted == 2
    first = both.take(np.array([0]))
    state = look(state, first, expected, losses).state
    assert look(state, both, expected, losses).counted == 1


def test_harm_is_found_over_several_looks_and_through_json():
    state, expected, losses = started()
    harmed = []
    for part in range(6):
        rows = traffic(draw(0.1 if part < 3 else 0.3, 200, part), first=200 * part)
        found = look(HarmState.from_json(state.to_json()), rows, expected, losses)
        assert HarmState.from_json(found.state.to_json()) == found.state
        state = found.state
        harmed.append(found.harm[0].harmed)
    assert harmed == [False, False, False, True, True, True]
    alarm = state.streams[0].alarm
    since = datetime.fromisoformat(found.harm[0].since).timestamp()
    assert START + 500 < since <= START + 640 < alarm + 40
    json.dumps(dataclasses.asdict(found.harm[0]))


def test_an_alarm_stands_while_nothing_new_comes_and_is_over_when_the_loss_is():
    state, expected, losses = started()
    state = look(state, traffic(draw(0.4, 300, 1)), expected, losses).state
    silent = look(state, traffic([]), expected, losses)
    assert silent.harm[0].harmed
    assert silent.state.harmed
    healthy = look(state, traffic(draw(0.1, 600, 2), first=300), expected, losses)
    assert not healthy.harm[0].harmed
    assert healthy.harm[0].since == ""
    assert healthy.state.streams[0].alarm == state.streams[0].alarm  # kept until it is restarted


def test_a_restart_forgets_the_alarm_and_what_was_answered_before_it():
    state, expected, losses = started()
    rows = traffic(draw(0.4, 300, 1))
    state = look(state, rows.take(np.arange(200)), expected, losses).state
    state = state.restart(datetime.fromtimestamp(START + 250, UTC))
    assert (state.streams[0].labels, state.streams[0].alarm, state.harmed) == (0, None, False)
    found = look(state, rows, expected, losses)
    assert found.counted == 50
    assert found.notes == ("250 labels are of rows answered before the restart: not counted",)


def test_slices_are_followed_and_new_values_too():
    names = np.where(np.arange(4000) % 2 == 0, "a", "b")
    state, expected, losses = started(reference(slices={"kind": names}))
    values = np.array(["a", "b", "c"])[np.arange(900) % 3]
    wrong = draw(0.1, 900, 1) | ((values == "c") & draw(0.5, 900, 2))
    found = look(state, traffic(wrong, slices={"kind": values}), expected, losses)
    assert {harm.name: harm.harmed for harm in found.harm} == {
        "all": True, "kind=a": False, "kind=b": False, "kind=c": True,
    }  # fmt: skip
    assert [harm.labels for harm in found.harm] == [900, 300, 300, 300]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"versions": np.full(40, 2)}, "40 labels belong to other versions: not counted"),
        ({"times": np.full(40, np.inf)}, "40 labelled rows have no possible event time: not counted"),
        ({"times": np.full(40, 1e18)}, "40 labelled rows have no possible event time: not counted"),
        ({"labels": np.full(40, 7.0)}, "40 labels are not one of the classes: not counted"),
        ({"labels": np.full(40, 1.0)}, "inconclusive: all of 40 new labels are 1, as 50% of the reference's are; "),
    ],
)
def test_what_does_not_count_is_said(changes, note):
    state, expected, losses = started()
    found = look(state, traffic(draw(0.5, 40, 1), **changes), expected, losses)
    assert found.counted == 0
    assert found.notes[0].startswith(note)
    assert found.state.streams == state.streams
    assert not found.harm[0].harmed


def test_labels_of_one_class_count_when_the_others_have_come():
    state, expected, losses = started()
    rows = traffic(draw(0.1, 100, 1))
    state = look(state, rows.take(rows.labels == 1), expected, losses).state
    assert look(state, rows, expected, losses).counted == 100


def test_contradicting_and_repeated_labels():
    state, expected, losses = started()
    rows = traffic(draw(0.1, 20, 1))
    twice = rows.take(np.r_[np.arange(20), 3, 5])
    labels = twice.labels.copy()
    labels[20] = 1 - labels[20]
    found = look(state, dataclasses.replace(twice, labels=labels), expected, losses)
    assert found.counted == 19
    assert found.notes == ("1 rows have labels that contradict one another: not counted",)


def test_a_clock_that_goes_back_is_only_another_order():
    state, expected, losses = started()
    state = look(state, traffic(draw(0.1, 50, 1), first=1000), expected, losses).state
    found = look(state, traffic(draw(0.1, 50, 2), first=0), expected, losses)
    assert (found.counted, found.notes) == (50, ())
    assert found.state.streams[0].labels == 100


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "KEPT", 100)
    state, expected, losses = started()
    rows = traffic(draw(0.1, 150, 1))
    state = look(state, rows, expected, losses).state
    assert len(state.times) == 800
    found = look(state, rows, expected, losses)
    assert found.counted == 0
    assert found.notes == ("50 labels came too late: it is not known any more whether they were counted: not counted",)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "version": 1, "streams": [], "keys": "", "times": ""}']
)
def test_state_that_cannot_be_read(text):
    with pytest.raises(DataInvalid, match="delete it, and labels count anew"):
        HarmState.from_json(text)


def test_state_of_other_bets_or_half_of_it():
    text = started()[0].to_json()
    values = json.loads(text)
    values["streams"][0]["log_r1"] = [0.0]
    for damaged in (json.dumps(values), text[: len(text) // 2], text.replace('"keys": ""', '"keys": "?"')):
        with pytest.raises(DataInvalid, match="cannot be read"):
            HarmState.from_json(damaged)


def test_regression_losses_are_bounded_by_the_references_errors():
    config = ProjectConfig(name="toy", project="toy:Toy", task="regression")
    errors = np.linspace(0, 1, 1001)
    expected = Reference({"x": np.zeros((1001, 1))}, {"output": errors[:, None]}, {}, np.zeros(1001))
    losses = row_losses(Toy(), config, expected)
    found = losses(np.zeros(4), {"output": np.array([[0.0], [-0.475], [9.0], [np.nan]])})
    assert found.tolist() == pytest.approx([0, 0.5, 1, 1])


def test_a_projects_own_metric():
    config = CONFIG.model_copy(update={"monitor": MonitorConfig(harm_metric="chance")})
    losses = row_losses(Toy(), config, reference())
    labels, outputs = answers([False, True])
    outputs["output"] = np.vstack([outputs["output"], [[np.nan, 0.5]]])
    assert losses(np.append(labels, 1), outputs).tolist() == pytest.approx([0.2, 0.8, 1])
    with pytest.raises(ConfigError, match="'double' is 2 for one row"):
        row_losses(Toy(), CONFIG.model_copy(update={"monitor": MonitorConfig(harm_metric="double")}), reference())(
            labels, answers([False, True])[1]
        )
    with pytest.raises(ConfigError, match="not one of metrics"):
        row_losses(Toy(), CONFIG.model_copy(update={"monitor": MonitorConfig(harm_metric="f2")}), reference())


def test_a_reference_without_rows_is_refused():
    with pytest.raises(DataInvalid, match="no rows"):
        started(reference(rows=0))
