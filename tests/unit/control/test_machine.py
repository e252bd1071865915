"""Any sequence of changes against a plain model of what they mean."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from homeostat.control.store import ControlStore
from homeostat.errors import Conflict, ControlError, NotFound
from homeostat.records import BundleRef

WHY = {"actor": "test", "reason": "because"}


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
        self.entries = 0

    def bump(self) -> None:
        self.generation += 1
        self.entries += 1

    @rule(version=VERSIONS)
    def set_challenger(self, version):
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
        self.store.promote("m", version, expected_generation=self.generation, **WHY)
        if version != self.champion:
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
        self.champion, self.previous = self.previous, None
        self.champions.append(self.champion)
        self.bump()

    @precondition(lambda self: self.generation)
    @rule(clear=st.booleans())
    def hold(self, clear):
        self.store.hold("m", expected_generation=self.generation, clear_challenger=clear, **WHY)
        if clear and self.challenger:
            self.challenger = None
            self.bump()
        else:
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
        history = self.store.history("m")
        generations = [e.generation for e in history if e.action != "hold"]
        assert generations == sorted(set(generations))
        made = [e for e in history if e.action in ("promote", "rollback")]
        assert [e.version for e in made] == self.champions
        for entry in made:
            assert self.store.champion_at("m", datetime.fromisoformat(entry.time)) == entry


def test_any_sequence_of_changes(make_url):
    few = settings(max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(lambda: Rollouts(make_url()), settings=few)
