"""Any sequence of changes against a plain model of what they mean."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from homeostat.config import RolloutConfig
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.errors import Conflict, ControlError, NotFound, Quarantined
from homeostat.records import BundleRef

WHY = {"actor": "test", "reason": "because"}
BECAUSE = Why("test", "because")
CONFIG = RolloutConfig(strategy="shadow+canary", steps=(0.1, 0.5))
STEPS = [("shadow", 0.0), ("canary", 0.1), ("canary", 0.5), ("bake", 0.95)]


def ref(version: int, model: str = "digits") -> BundleRef:
    return BundleRef(model, version, f"file:///bundles/{model}/{version}", "a" * 64, f"{version:064x}")


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


VERSIONS = st.integers(1, 4)


class Rollouts(RuleBasedStateMachine):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.store = ControlStore(url, clock=Clock())
        self.generation, self.champion, self.challenger, self.previous = 0, None, None, None
        self.seen: set[int] = set()
        self.champions: list[int] = []
        self.banned: set[int] = set()
        self.at: int | None = None
        """Place in STEPS of the rollout in progress."""
        self.paused = False
        self.entries = 0

    def bump(self) -> None:
        self.generation += 1
        self.entries += 1

    def rest(self) -> None:
        self.at, self.paused = None, False

    @rule(version=VERSIONS)
    def set_challenger(self, version):
        new = version not in (self.champion, self.challenger)
        if new and (version in self.banned or self.at in (0, 1, 2)):
            with pytest.raises((Quarantined, ControlError), match=r"quarantine|in progress"):
                self.store.set_challenger("m", ref(version, "m"), expected_generation=self.generation, **WHY)
            return
        self.store.set_challenger("m", ref(version, "m"), expected_generation=self.generation, **WHY)
        self.seen.add(version)
        if version not in (self.champion, self.challenger):
            self.challenger = version
            self.bump()

    @rule(version=VERSIONS)
    def promote(self, version):
        if version not in self.seen:
            with pytest.raises(NotFound):
                self.store.promote("m", version, expected_generation=self.generation, **WHY)
            return
        if version in self.banned and version != self.champion:
            with pytest.raises(Quarantined, match=rf"rollout release m {version}"):
                self.store.promote("m", version, expected_generation=self.generation, **WHY)
            return
        self.store.promote("m", version, expected_generation=self.generation, **WHY)
        if version != self.champion:
            self.rest()
            self.previous, self.champion = self.champion, version
            self.challenger = None if self.challenger == version else self.challenger
            self.champions.append(version)
            self.bump()

    @precondition(lambda self: self.generation)
    @rule()
    def rollback(self):
        if self.previous is None:
            with pytest.raises(ControlError, match="no previous"):
                self.store.rollback("m", expected_generation=self.generation, **WHY)
            return
        self.store.rollback("m", expected_generation=self.generation, **WHY)
        if self.challenger in (self.champion, self.previous):
            self.challenger = None
        self.banned = (self.banned | {self.champion}) - {self.previous}
        self.rest()
        self.champion, self.previous = self.previous, None
        self.champions.append(self.champion)
        self.bump()

    @precondition(lambda self: self.generation)
    @rule(clear=st.booleans())
    def hold(self, clear):
        self.store.hold("m", expected_generation=self.generation, clear_challenger=clear, **WHY)
        if clear and self.challenger:
            self.challenger = None
            if self.at in (0, 1, 2):
                self.rest()
            self.bump()
        else:
            self.entries += 1

    @precondition(lambda self: self.challenger)
    @rule()
    def start(self):
        bundle = ref(self.challenger, "m")
        if self.at is not None or self.champion is None or self.challenger in self.banned:
            with pytest.raises(ControlError, match=r"in progress|no champion|quarantine"):
                progress.start(self.store, bundle, CONFIG, BECAUSE, expected_generation=self.generation)
            return
        progress.start(self.store, bundle, CONFIG, BECAUSE, expected_generation=self.generation)
        self.at = 0
        self.bump()

    @precondition(lambda self: self.at is not None)
    @rule()
    def advance(self):
        progress.advance(self.store, "m", CONFIG, BECAUSE, expected_generation=self.generation)
        if self.at == len(STEPS) - 1:
            self.rest()
        elif self.at == len(STEPS) - 2:
            self.previous, self.champion, self.challenger = self.champion, self.challenger, None
            self.champions.append(self.champion)
            self.at, self.paused = self.at + 1, False
        else:
            self.at += 1
        self.bump()

    @precondition(lambda self: self.at is not None)
    @rule(pause=st.booleans())
    def pause_or_resume(self, pause):
        change = progress.pause if pause else progress.resume
        if pause == self.paused:
            with pytest.raises(ControlError, match="paused"):
                change(self.store, "m", BECAUSE, expected_generation=self.generation)
            return
        change(self.store, "m", BECAUSE, expected_generation=self.generation)
        self.paused = pause
        self.bump()

    @precondition(lambda self: self.at is not None)
    @rule()
    def abort(self):
        progress.abort(self.store, "m", BECAUSE, expected_generation=self.generation)
        if self.at == len(STEPS) - 1:
            self.banned = (self.banned | {self.champion}) - {self.previous}
            if self.challenger in (self.champion, self.previous):
                self.challenger = None
            self.champion, self.previous = self.previous, None
            self.champions.append(self.champion)
        else:
            self.banned = self.banned | {self.challenger}
            self.challenger = None
        self.rest()
        self.bump()

    @precondition(lambda self: self.banned)
    @rule()
    def release(self):
        assert self.store.release("m", min(self.banned), actor="test", reason="mended")
        self.banned = self.banned - {min(self.banned)}
        self.entries += 1

    @precondition(lambda self: self.generation)
    @rule(off=st.sampled_from([-1, 1, 7]))
    def lose_a_race(self, off):
        with pytest.raises(Conflict):
            self.store.hold("m", expected_generation=self.generation + off, **WHY)

    @invariant()
    def agrees(self):
        assert self.store.verify() == self.entries
        if not self.generation:
            return
        row = self.store.row("m")
        found = [r and r.version for r in (row.champion, row.challenger, row.previous)]
        assert [row.generation, *found] == [self.generation, self.champion, self.challenger, self.previous]
        mode, weight = STEPS[self.at] if self.at is not None else ("live", 0.0)
        assert (row.mode, row.weight, row.paused, bool(row.started)) == (mode, weight, self.paused, mode != "live")
        assert {one["version"] for one in self.store.quarantined()} == self.banned
        history = self.store.history("m")
        generations = [e.generation for e in history if e.action not in ("hold", "release")]
        assert generations == sorted(set(generations))
        made = [e for e in history if e.action in ("promote", "rollback")]
        assert [e.version for e in made] == self.champions
        for entry in made:
            assert self.store.champion_at("m", datetime.fromisoformat(entry.time)) == entry


def test_any_sequence_of_changes(make_url):
    few = settings(max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: Rollouts(make_url()), settings=few)
