"""A rollout step by step: start, advance, pause, resume, promote, abort, finish, each by compare-and-set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from homeostat.config import RolloutConfig
from homeostat.control.rows import Decision, at_rest, promoted
from homeostat.control.store import ControlStore
from homeostat.errors import Conflict, ControlError
from homeostat.records import BundleRef, Rollout


@dataclass(frozen=True)
class Why:
    """Who changes a rollout, for what reason, on what evidence."""

    actor: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_decision(self, action: str) -> Decision:
        """Return what the ledger writes down."""
        return Decision(action, self.actor, self.reason, self.evidence)


def in_progress(row: Rollout) -> BundleRef:
    """Return the version on trial; raises ControlError when there is none."""
    if row.on_trial is None:
        raise ControlError(
            f"model {row.model}: no rollout is in progress (mode {row.mode}, generation {row.generation}); "
            f"`homeostat rollout start {row.model} VERSION` starts one"
        )
    return row.on_trial


def first_step(row: Rollout, config: RolloutConfig, time: str) -> Rollout:
    """Return the row at the first step of the strategy; "direct" starts at the first canary step."""
    if "shadow" in config.strategy:
        return replace(row, mode="shadow", weight=0.0, step=0, step_since=time)
    return replace(row, mode="canary", weight=config.steps[0], step=0, step_since=time)


def next_step(row: Rollout, config: RolloutConfig, time: str) -> Rollout | None:
    """Return the row at the step after this one, None when only the promotion is left."""
    if row.mode == "shadow":
        if "canary" not in config.strategy:
            return None
        return replace(row, mode="canary", weight=config.steps[0], step=0, step_since=time)
    if row.step + 1 >= len(config.steps):
        return None
    return replace(row, weight=config.steps[row.step + 1], step=row.step + 1, step_since=time)


def start(
    store: ControlStore,
    bundle: BundleRef,
    config: RolloutConfig,
    why: Why,
    *,
    expected_generation: int,
) -> Rollout:
    """Make a bundle the challenger and begin with the first step of its strategy.

    Raises Conflict when the row has moved on, ControlError when another rollout is in progress
    or there is no champion to compare with, Quarantined.
    """

    def change(row: Rollout, time: str) -> Rollout:
        if row.on_trial is not None:
            raise Conflict(
                f"model {row.model}: {row.mode} of v{row.on_trial.version} is in progress; "
                f"`homeostat rollout status {row.model}` shows it, `promote` or `abort` ends it"
            )
        if row.champion is None:
            raise ControlError(
                f"model {row.model} has no champion to compare v{bundle.version} with; "
                f"`homeostat promote {row.model} {bundle.version}` makes it the first"
            )
        if row.champion == bundle:
            raise ControlError(f"{row.model} v{bundle.version} is champion already")
        begun = replace(row, challenger=bundle, started=row.generation + 1, paused=False)
        return first_step(begun, config, time)

    decision = why.as_decision("start")
    generation = expected_generation
    return store.alter(bundle.model, decision, change, expected_generation=generation, admit=bundle)


def advance(store: ControlStore, model: str, config: RolloutConfig, why: Why, *, expected_generation: int) -> Rollout:
    """Go to the next step; behind the last one promote, and bake. Raises Conflict, ControlError."""
    row = store.row(model)
    in_progress(row)
    if row.mode == "bake":
        return finish(store, model, why, expected_generation=expected_generation)
    if next_step(row, config, "") is None:
        return promote(store, model, config, why, expected_generation=expected_generation)

    def change(row: Rollout, time: str) -> Rollout:
        following = next_step(row, config, time)
        if following is None:
            raise Conflict(f"model {model} is at its last step already")
        return following

    return store.alter(model, why.as_decision("step"), change, expected_generation=expected_generation)


def promote(store: ControlStore, model: str, config: RolloutConfig, why: Why, *, expected_generation: int) -> Rollout:
    """Make the challenger champion, and bake it; a rollout that bakes is finished. Raises Conflict, ControlError."""
    row = store.row(model)
    trial = in_progress(row)
    if row.mode == "bake":
        return finish(store, model, why, expected_generation=expected_generation)

    def change(row: Rollout, time: str) -> Rollout:
        return promoted(row, in_progress(row), time, config.bake_share if config.bake_seconds else 0.0)

    decision = why.as_decision("promote")
    return store.alter(model, decision, change, expected_generation=expected_generation, admit=trial)


def finish(store: ControlStore, model: str, why: Why, *, expected_generation: int) -> Rollout:
    """End the bake: the champion has all traffic. Raises Conflict, ControlError."""

    def change(row: Rollout, _: str) -> Rollout:
        in_progress(row)
        return at_rest(row)

    return store.alter(model, why.as_decision("finish"), change, expected_generation=expected_generation)


def pause(store: ControlStore, model: str, why: Why, *, expected_generation: int) -> Rollout:
    """Stay at this step until `resume`; the guards can still stop the rollout. Raises Conflict, ControlError."""

    def change(row: Rollout, _: str) -> Rollout:
        in_progress(row)
        if row.paused:
            raise ControlError(f"the rollout of {model} is paused already")
        return replace(row, paused=True)

    return store.alter(model, why.as_decision("pause"), change, expected_generation=expected_generation)


def resume(store: ControlStore, model: str, why: Why, *, expected_generation: int) -> Rollout:
    """Go on; the step's time begins anew. Raises Conflict, ControlError."""

    def change(row: Rollout, time: str) -> Rollout:
        in_progress(row)
        if not row.paused:
            raise ControlError(f"the rollout of {model} is not paused")
        return replace(row, paused=False, step_since=time)

    return store.alter(model, why.as_decision("resume"), change, expected_generation=expected_generation)


def abort(store: ControlStore, model: str, why: Why, *, expected_generation: int) -> Rollout:
    """Take the version on trial out and put it into quarantine; in the bake that is a rollback. Raises Conflict."""
    row = store.row(model)
    in_progress(row)
    if row.mode == "bake":
        return store.rollback(
            model, expected_generation=expected_generation, actor=why.actor, reason=why.reason, evidence=why.evidence
        )

    def change(row: Rollout, _: str) -> Rollout:
        in_progress(row)
        return replace(at_rest(row), challenger=None)

    return store.alter(model, why.as_decision("abort"), change, expected_generation=expected_generation, ban=True)
