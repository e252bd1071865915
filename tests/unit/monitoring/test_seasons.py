"""Traffic with hours and weekdays: what comes back each night is no drift, and what is new at its hour is."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from homeostat.config import MonitorConfig, ProjectConfig
from homeostat.errors import DataInvalid
from homeostat.monitoring.drift import COLUMNS, find_drift, sequential_alarms
from homeostat.monitoring.seasons import BINS, KEPT, MATCHED, SeasonState, follow, log_evidence
from homeostat.monitoring.sequence import Check, DriftState, make_pool

START = pd.Timestamp("2026-03-02", tz="UTC").timestamp()  # a Monday
HOUR, DAY = 3600.0, 86_400.0
KINDS = {"a": "number", "c": "category"}


def rows(day: float, hours: range, per_hour: int, rng: np.random.Generator, new: float = 0.0):
    """Rows of some hours of a day: `a` is higher and `c` another at night; each hour has noise of its own."""
    hour = np.repeat(np.array(hours), per_hour)
    times = START + day * DAY + hour * HOUR + np.sort(rng.random(len(hour)).reshape(-1, per_hour)).ravel() * HOUR
    night = (hour < 6) | (hour > 20)
    own = rng.normal(0, 0.1, 24)[hour % 24]
    a = 1.5 * night + own + new + rng.normal(size=len(hour))
    c = np.where(rng.random(len(hour)) < np.where(night, 0.8, 0.2), "x", "y")
    return pd.DataFrame({"a": a, "c": c}), times


def reference(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.concat([rows(-40 + day, range(24), 8, rng)[0] for day in range(10)], ignore_index=True)


def live(windows, season: str = "hour", timezone: str = "UTC"):
    """Yield for each window whether there is drift by the seasons, and the state."""
    pool, state = make_pool(reference(), KINDS), SeasonState()
    for current, times in windows:
        state = follow(pool.cells, current, times, state, season, timezone, "toy v1")
        evidence = {name: log_evidence(column) for name, column in state.columns.items()}
        effects = {name: column.effect for name, column in state.columns.items()}
        found = Check(DriftState(), evidence, {}, effects)
        yield bool(sequential_alarms(found, COLUMNS * 0.01, 0.02)), state


def days(count: int, seed: int, per_hour: int = 25, changed: int = 10**6, at: tuple[int, ...] = tuple(range(24))):
    rng = np.random.default_rng(seed)
    for day in range(count):
        for part in range(0, 24, 6):
            hours = range(part, part + 6)
            new = 1.0 * (day >= changed and any(hour in at for hour in hours))
            yield rows(day, hours, per_hour, rng, new)


def test_what_comes_back_at_its_hour_is_no_drift_in_any_of_many_streams():
    alarms = sum(any(alarm for alarm, _ in live(days(14, seed))) for seed in range(12))
    assert alarms <= 1  # 0.7 % of the streams, at most


def test_a_change_at_every_hour_is_found_within_a_day():
    found = [alarm for alarm, _ in live(days(12, 3, changed=10))]
    assert not any(found[:40])
    assert any(found[40:44])


def test_a_day_value_at_night_is_found_though_the_reference_knows_it():
    """Nights that are like days: all values are as usual, at another hour."""
    rng = np.random.default_rng(4)

    def windows():
        yield from days(10, 5)
        for day in range(10, 14):
            current, times = rows(day, range(6), 25, rng, new=-1.5)
            yield current.assign(c=np.where(rng.random(len(current)) < 0.2, "x", "y")), times

    found = [alarm for alarm, _ in live(windows())]
    assert not any(found[:40])
    assert any(found[40:])


def test_weekdays_and_hours_of_the_week_in_local_time():
    *_, (_, state) = live(days(8, 6), "weekday")
    past = state.columns["a"].past
    assert {name: len(blocks) for name, blocks in past.items()} == dict.fromkeys(
        ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"), 1
    )
    assert sum(past["Mon"][0]) == 24 * 25
    assert state.block == "2026-03-09"
    assert sum(state.columns["a"].block) == 24 * 25, "the second Monday is still open"
    *_, (_, state) = live(days(1, 6), "hour_of_week", "Europe/Berlin")
    assert next(iter(state.columns["a"].past)) == "Mon 01"


def test_a_block_may_come_in_many_looks():
    rng = np.random.default_rng(7)
    current, times = rows(0, range(3), 60, rng)
    one = list(live([(current, times)]))[-1][1]
    parts = [(current[i : i + 7].reset_index(drop=True), times[i : i + 7]) for i in range(0, len(current), 7)]
    assert list(live(parts))[-1][1] == one


def test_small_blocks_say_nothing_and_old_ones_go():
    rng = np.random.default_rng(8)
    *_, (_, state) = live([rows(day, range(2), 5, rng) for day in range(3)])
    assert not state.columns["a"].past
    *_, (_, state) = live([rows(day, range(2), 25, rng) for day in range(70)])
    lengths = {name: len(blocks) for name, blocks in state.columns["a"].past.items()}
    assert all(KEPT["hour"] / 2 <= length <= KEPT["hour"] for length in lengths.values())
    assert all(len(block) == BINS + 1 for block in state.columns["a"].past["00"])


def test_the_state_goes_through_json_and_a_broken_one_is_refused():
    *_, (_, state) = live(days(6, 9))
    kept = DriftState(3, 5.0, {}, state)
    assert DriftState.from_json(kept.to_json()) == kept
    assert "seasons" not in json.loads(DriftState().to_json()), "an earlier homeostat reads it"
    values = json.loads(kept.to_json())
    values["seasons"]["columns"]["a"]["capitals"] = [1]
    with pytest.raises(DataInvalid, match="cannot be read: 1 bets, not 5"):
        DriftState.from_json(json.dumps(values))


def test_another_season_or_other_cells_begin_anew():
    *_, (_, state) = live(days(6, 9))
    pool = make_pool(reference(1), KINDS)
    current, times = rows(6, range(2), 25, np.random.default_rng(1))
    other = follow(pool.cells, current, times, state, "hour", "UTC", "")
    assert not any(len(blocks) > 1 for blocks in other.columns["a"].past.values())
    weekly = follow(make_pool(reference(), KINDS).cells, current, times, state, "weekday", "UTC", "")
    assert not weekly.columns["a"].past


def test_a_look_says_what_it_held_the_columns_against(tmp_path):
    config = ProjectConfig(name="toy", project="toy:Toy", task="classification", monitor={"season": "hour"})
    plain = config.model_copy(update={"monitor": config.monitor.model_copy(update={"season": ""})})
    rng = np.random.default_rng(11)
    expected, state = reference().assign(a=lambda frame: frame["a"] - 1), None
    for day in range(MATCHED + 2):
        now, times = rows(day, range(24), 25, rng)  # other than the reference, each time
        found = find_drift(expected, now, config, tmp_path, state=state, times=times)
        state = found.state
        assert not found.drifted, found.reason
        if day == 0:
            assert find_drift(expected, now, plain, tmp_path, times=times).drifted
            assert not found.judged
            assert found.reason == f"not judged: 0 earlier blocks of the same hour, {MATCHED} are needed"
    assert found.judged
    assert found.basis == f"{MATCHED + 1} earlier blocks of the same hour"
    assert any(note.startswith("other than the reference, as before at the same hour: ") for note in found.notes)
    assert "no drift in 2 columns" in found.reason
    now, times = rows(MATCHED + 2, range(24), 25, rng, new=2.0)
    found = find_drift(expected, now, config, tmp_path, state=state, times=times)
    assert found.drifted
    assert [column.column for column in found.columns if column.drifted] == ["a"]


def test_settings_that_promise_nothing_are_refused():
    with pytest.raises(ValueError, match="no time zone; say one like Europe/Berlin"):
        MonitorConfig(timezone="Mars/Olympus")
    with pytest.raises(ValueError, match="needs the methods ks and chisquare"):
        MonitorConfig(season="hour", numeric_method="psi")
    assert replace(SeasonState(), season="hour").season == MonitorConfig(season="hour").season
