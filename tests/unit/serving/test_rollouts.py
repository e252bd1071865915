"""The controller of rollouts: out at once, written for as long as it takes, and remembered over a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from homeostat.config import GuardConfig, RolloutConfig
from homeostat.control import progress
from homeostat.records import Rollout
from homeostat.serving.rollout.controller import Rollouts
from homeostat.serving.rollout.journal import DEATHS, Journal, Stopped, last_said
from tests.challengers import classifier
from tests.rollouts import CANARY, WHY, Process, World

BAD = classifier(nan_over=1.5)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def provoke(process: Process, requests: int = 60) -> None:
    """Ask what the bad challenger answers with NaN."""
    for place in range(requests):
        process.ask(key=f"p{place}", x1=2.0)


def versions(process: Process, requests: int = 30) -> set[int]:
    return {process.ask(key=f"v{place}").served.ref.version for place in range(requests)}


def restart(world: World) -> Process:
    """Start another process on the same home, as if the first was killed, with the store out of reach."""
    made = Process(world.home, world.url)
    world.trust(made)
    world.processes.append(made)
    made.fail()
    made.repository.restore()
    return made


def test_a_failed_guard_takes_the_version_out_before_the_store_knows(world):
    process = world.process()
    row = world.start(BAD)
    provoke(process)
    process.fail()
    process.tick()
    assert versions(process) == {1}
    assert world.control.row("toy") == row  # nobody could be told
    process.down = False
    process.tick()
    assert process.plane.trials == {}
    after = world.control.row("toy")
    assert (after.mode, after.champion.version, after.challenger) == ("live", 1, None)
    entry = world.control.history("toy")[-1]
    assert (entry.action, entry.evidence["guard"], entry.evidence["verdict"]) == ("abort", "errors", "roll back")
    assert entry.reason.startswith("errors: ")
    assert entry.evidence["guards"]["errors"]["outcome"] == "fail"
    (banned,) = world.control.quarantined()
    assert (banned["version"], banned["reason"]) == (2, entry.reason)
    assert world.control.verify() == len(world.control.history())


def test_what_is_out_stays_out_over_a_restart_without_the_store_and_is_written_later(world):
    process = world.process()
    world.start(BAD)
    provoke(process)
    process.fail()
    process.tick()
    again = restart(world)
    again.sync()
    assert versions(again) == {1}
    assert again.plane.trials == {}
    again.down = False
    again.tick()
    assert world.control.row("toy").mode == "live"
    assert [one["version"] for one in world.control.quarantined()] == [2]
    assert world.control.verify(again.repository._memory.read()) > 0


def test_evidence_goes_on_after_a_restart_without_the_store(world):
    process = world.process()
    world.start(BAD, CANARY.model_copy(update={"min_requests": 10_000}))
    for place in range(40):
        process.ask(key=f"p{place}")
    before = process.trial.evidence.tallies["errors"].to_json()
    process.rollouts._kept.clear()  # a second has passed
    process.tick()
    again = restart(world)
    assert again.trial.evidence.tallies["errors"].to_json() == before
    assert again.trial.evidence.requests > 0
    provoke(again)
    again.tick()
    assert versions(again) == {1}


def test_a_good_version_is_promoted_and_baked_and_taken_back_when_it_turns_bad(world):
    process = world.process()
    config = CANARY.model_copy(update={"guards": GuardConfig(required=("errors",), error_rate=0.2)})
    world.start(BAD, config)
    for place in range(400):
        process.ask(key=f"g{place}")
    process.tick()
    row = world.control.row("toy")
    assert (row.mode, row.champion.version, row.weight) == ("bake", 2, 0.95)
    assert world.control.history("toy")[-1].evidence["verdict"] == "promote"
    assert versions(process, 200) == {1, 2}  # the old one keeps a share, to compare with
    provoke(process, 400)  # the world changes
    process.tick()
    row = world.control.row("toy")
    assert (row.mode, row.champion.version, row.previous) == ("live", 1, None)
    assert versions(process) == {1}
    assert world.control.history("toy")[-1].action == "rollback"
    assert [one["version"] for one in world.control.quarantined()] == [2]


def test_a_bake_fails_without_the_store_and_the_old_version_answers(world):
    process = world.process()
    config = CANARY.model_copy(update={"guards": GuardConfig(required=())})
    row = world.start(BAD, config)
    progress.promote(world.control, "toy", config, WHY, expected_generation=row.generation)
    process.sync()
    provoke(process, 400)
    process.fail()
    process.tick()
    assert versions(process, 100) == {1}
    assert process.repository.models["toy"].live.ref.version == 1
    again = restart(world)
    assert versions(again, 100) == {1}
    assert world.control.verify(again.repository._memory.read()) > 0  # it remembers the row, not its own veto


def test_the_bake_ends_and_the_old_version_is_still_loaded(world):
    process = world.process()
    config = CANARY.model_copy(update={"bake_seconds": 0.01, "guards": GuardConfig(required=())})
    world.start(classifier(), config)
    process.ask(key="one")
    for _ in range(200):
        process.ask()
        process.tick()
        if world.control.history("toy")[-1].action == "finish":
            break
    row = world.control.row("toy")
    assert (row.mode, row.champion.version, row.previous.version) == ("live", 2, 1)
    assert process.repository.models["toy"].previous.ref.version == 1


def test_no_traffic_waits_and_then_pauses(world):
    process = world.process()
    world.start(classifier(), CANARY.model_copy(update={"min_requests": 1, "max_seconds": 1e-6}))
    process.tick()
    row = world.control.row("toy")
    assert (row.mode, row.paused) == ("canary", True)
    entry = world.control.history("toy")[-1]
    assert entry.action == "pause"
    assert "0 of 1 requests" in entry.reason
    generation = row.generation
    process.tick()
    assert world.control.generation("toy") == generation


def test_a_challenger_that_does_not_load_pauses_the_rollout(world):
    process = world.process()
    ref = world.bundle(2, classifier())
    generation = world.control.generation("toy")
    row = world.control.set_challenger("toy", ref, expected_generation=generation, actor="t", reason="t")
    next(Path(ref.url.removeprefix("file://")).glob("*.onnx")).write_bytes(b"nothing")
    progress.start(world.control, ref, CANARY, WHY, expected_generation=row.generation)
    process.sync()
    process.tick()
    assert world.control.row("toy").paused
    assert "version 2 is refused" in world.control.history("toy")[-1].reason
    assert versions(process) == {1}


def test_of_two_servers_one_stops_it_and_both_follow(world):
    first, second = world.process(), world.process(home="elsewhere")
    world.start(BAD)
    for one in (first, second):
        provoke(one)
        one.rollouts.tick()
        assert versions(one) == {1}
    for one in (first, second):
        one.rollouts._decisions.write()
        one.sync()
        assert one.plane.trials == {}
    actions = [entry.action for entry in world.control.history("toy")]
    assert actions == ["promote", "challenger", "start", "abort"]
    # a second rollout is not the one that either has stopped
    world.control.release("toy", 2, actor="t", reason="t")
    row = world.control.row("toy")
    ref = world.control.bundle("toy", 2)
    progress.start(world.control, ref, CANARY, WHY, expected_generation=row.generation)
    first.sync()
    assert versions(first) == {1, 2}


def test_of_two_servers_one_promotes_and_one_stops_and_there_is_one_champion(world):
    first, second = world.process(), world.process(home="elsewhere")
    config = CANARY.model_copy(update={"guards": GuardConfig(required=()), "bake_seconds": 0.0})
    world.start(BAD, config)
    first.ask(key="v1")
    for place in range(20):
        first.ask(key=f"v{place}")
    provoke(second)
    first.rollouts.tick()
    second.rollouts.tick()
    first.rollouts._decisions.write()  # it has seen nothing bad, and is first
    assert world.control.row("toy").champion.version == 2
    second.rollouts._decisions.write()  # the rollout that it wanted to stop has ended: nothing to do
    first.sync()
    second.sync()
    assert versions(first) == versions(second) == {2}
    assert [entry.action for entry in world.control.history("toy")][-1] == "promote"
    assert world.control.verify() > 0


def test_a_lost_race_is_looked_at_again_before_it_is_given_up(world):
    process = world.process()
    row = world.start(BAD)
    provoke(process)
    process.rollouts.tick()
    progress.pause(world.control, "toy", WHY, expected_generation=row.generation)  # meanwhile
    process.tick()
    assert world.control.history("toy")[-1].action == "abort"


def test_processes_of_one_home_put_their_evidence_together(world):
    first, second = world.process(slot=0), world.process(slot=1)
    # too little each: 3 bad events
    config = CANARY.model_copy(update={"guards": GuardConfig(required=()), "min_requests": 10_000})
    world.start(BAD, config)
    place = 0
    while first.trial.evidence.requests < 3 or second.trial.evidence.requests < 3:
        for one in (first, second):
            if one.trial.evidence.requests < 3:
                one.ask(key=f"{one.slot}{place}", x1=2.0)
        place += 1
    own = first.trial.evidence.tallies["errors"].total()[1]
    for one in (first, second, first):
        one.rollouts._kept.clear()
        one.rollouts.tick()
    found = first.rollouts.judgements["toy"]["errors"].figures
    assert (own, found["bad_candidate"]) == (3, 6.0)
    said = last_said(world.home / "serving", world.control.row("toy"))
    assert said is not None
    assert said["guards"]["errors"]["figures"]["bad_candidate"] == 6.0
    assert said["requests"] == 6


def test_a_failure_to_judge_is_counted_and_the_others_are_judged(world, monkeypatch):
    process = world.process()
    world.start(classifier())
    monkeypatch.setattr(process.trial, "learn", lambda: 1 / 0)
    process.rollouts.tick()
    assert process.rollouts.failures == 1
    assert process.trial.evidence.source_errors == 1


# -- the journal ------------------------------------------------------------------------------------------------------


def row_of(world: World, started: int = 3) -> Rollout:
    row = world.start(classifier())
    return replace(row, started=started)


def test_a_version_under_which_the_server_dies_again_and_again_is_stopped(world):
    row = row_of(world)
    folder = world.home / "serving"
    for death in range(DEATHS):
        journal = Journal(folder, 0)
        assert journal.stopped == {}
        journal.keep(row, row.challenger, journal.evidence(row), {}, running=True)
        assert json.loads((folder / "rollouts" / "toy.0.json").read_text())["deaths"] == death
    stopped = Journal(folder, 0).stopped["toy"]
    assert (stopped.version, stopped.is_of(row)) == (2, True)
    assert "was killed 3 times" in stopped.reason
    assert not stopped.is_of(replace(row, started=99))
    # it is remembered, and counted once
    assert Journal(folder, 0).stopped["toy"] == stopped


def test_a_clean_end_is_no_death(world):
    row = row_of(world)
    for _ in range(DEATHS + 2):
        journal = Journal(world.home / "serving", 0)
        journal.keep(row, row.challenger, journal.evidence(row), {}, running=True)
        journal.close("toy")
        assert journal.stopped == {}
    again = Journal(world.home / "serving", 0)
    again.keep(replace(row, started=7), row.challenger, again.evidence(row), {}, running=True)
    assert Journal(world.home / "serving", 0).stopped == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stopped": 3}', '{"stopped": {"a": 1}, "open": true, "deaths": 1}'])
def test_a_damaged_journal_begins_anew(world, text, caplog):
    row = row_of(world)
    path = world.home / "serving" / "rollouts" / "toy.0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    journal = Journal(world.home / "serving", 0)
    assert "cannot be read" in caplog.text
    assert journal.stopped == {}
    assert journal.evidence(row).requests == 0
    assert Journal(world.home / "serving", 1).others(row).requests == 0
    assert last_said(world.home / "serving", row) is None


def test_requests_of_the_step_before_do_not_count_for_the_next(world):
    row = row_of(world)
    journal = Journal(world.home / "serving", 0)
    evidence = journal.evidence(row)
    evidence.note(requests=5)
    journal.keep(row, row.challenger, evidence, {}, running=True)
    assert Journal(world.home / "serving", 1).others(row).requests == 5
    assert Journal(world.home / "serving", 1).others(replace(row, weight=0.9)).requests == 0
    assert Journal(world.home / "serving", 1).others(replace(row, mode="bake")).requests == 0


def test_a_folder_that_cannot_be_written_does_not_stop_a_stop(world, caplog):
    process = world.process()
    world.start(BAD)
    provoke(process)
    folder = world.home / "serving" / "rollouts"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("in the way")
    process.tick()
    assert "cannot be written" in caplog.text
    assert versions(process) == {1}
    assert world.control.row("toy").mode == "live"


def test_stopped_is_json():
    stopped = Stopped(3, 2, "a" * 64, "because", {"guard": "errors"})
    assert Stopped(**json.loads(json.dumps(stopped.__dict__))) == stopped


def test_a_step_lasts_by_a_clock_that_cannot_jump(world):
    process = world.process()
    row = world.start(classifier(), RolloutConfig(strategy="canary", steps=(0.5,)))
    rollouts: Rollouts = process.rollouts
    first = rollouts._seconds(row)
    assert 0 <= first < 60
    assert rollouts._seconds(row) >= first
    future = replace(row, step_since="2099-01-01T00:00:00.000000+00:00")
    assert 0 <= rollouts._seconds(future) < 1
