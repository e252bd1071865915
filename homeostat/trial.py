"""A challenger that the test part could not decide on: live labels do, until one side has won or time is up.

No request is answered by it meanwhile; it answers captured rows again, offline. One in shadow or
canary is followed too, but labels can only stop it there: its steps are the server's (docs/rollout.md).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from homeostat.approval import find_waiting
from homeostat.config import ProjectConfig
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.errors import NotFound
from homeostat.policy.promotion import decide_trial
from homeostat.records import BundleRef, Rollout, Trial, Verdict
from homeostat.rollout import UNDECIDED, evidence_of, take_over


class Tried(NamedTuple):
    """A challenger that live labels decide on."""

    bundle: BundleRef
    since: datetime
    """Rows count that were answered from then on: nobody has learnt from them."""


def find_tried(store: ControlStore, config: ProjectConfig) -> Tried | None:
    """Return the challenger that live labels are to decide on; None when there is none, or a person decides."""
    if not config.rollout.trial.days:
        return None
    try:
        row = store.row(config.name)
    except NotFound:
        return None
    challenger = row.challenger
    if challenger is None or row.champion is None or find_waiting(store, config.name) is not None:
        return None
    if row.on_trial is None:
        held = store.last(config.name, "hold")
        if held is None or held.version != challenger.version or held.evidence.get("verdict") != UNDECIDED:
            return None
    elif row.on_trial != challenger:
        return None
    made = store.last(config.name, "challenger")
    if made is None or (made.version, made.sha256) != (challenger.version, challenger.sha256):
        return None
    return Tried(challenger, datetime.fromisoformat(made.time).astimezone(UTC))


def conclude(
    store: ControlStore, trial: Trial | None, champion: int, config: ProjectConfig, server_url: str, actor: str
) -> Verdict | None:
    """Decide on the challenger of a look, and do it: take over, or go.

    champion: the version that was live at the look. None, and nothing happens, when the row has moved on since.
    Raises ServerUnavailable before anything has changed, Conflict when another decision comes first, RolloutTimeout.
    """
    tried = find_tried(store, config)
    if trial is None or tried is None or tried.bundle.version != trial.version:
        return None
    row = store.row(config.name)
    if row.champion is None or row.champion.version != champion:
        return None
    verdict = decide_trial(trial, config.rollout)
    why = Why(actor, "; ".join(verdict.reasons), evidence_of(verdict))
    if verdict.kind == "hold":
        _end(store, row, why)
    elif verdict.kind == "promote" and row.on_trial is None:
        take_over(store, row, tried.bundle, config, server_url, why)
    return verdict


def _end(store: ControlStore, row: Rollout, why: Why) -> None:
    if row.on_trial is not None:
        progress.abort(store, row.model, why, expected_generation=row.generation)
        return
    store.hold(
        row.model,
        expected_generation=row.generation,
        actor=why.actor,
        reason=why.reason,
        evidence=why.evidence,
        clear_challenger=True,
    )
