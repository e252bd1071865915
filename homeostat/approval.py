"""A person's yes to a promotion that the policy has decided: asked for in the ledger, and good for some hours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from homeostat.bundle import load_public_key, open_bundle
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.errors import Conflict, NotFound
from homeostat.records import BundleRef, LedgerEntry, Rollout

ASKED = "approval"
"""The ledger's action of a promotion that waits."""


@dataclass(frozen=True)
class Waiting:
    """A promotion that waits for a yes."""

    bundle: BundleRef
    generation: int
    """Of the row that it was decided on: it may be approved at no other."""
    until: datetime
    sequence: int
    """Of its entry in the ledger."""
    evidence: Mapping[str, Any]

    def is_over(self, now: datetime) -> bool:
        """Whether it has waited too long."""
        return now >= self.until


def ask_approval(
    store: ControlStore, bundle: BundleRef, hours: float, why: Why, generation: int, now: datetime
) -> Waiting:
    """Write that a challenger waits for a yes, unless it does already. now: aware."""
    known = find_waiting(store, bundle.model)
    if known is not None and known.bundle == bundle and known.generation == generation and not known.is_over(now):
        return known
    until = now + timedelta(hours=hours)
    entry = store.record(
        bundle.model,
        ASKED,
        actor=why.actor,
        reason=f"{why.reason}; waits for approval until {until:%Y-%m-%d %H:%M} UTC",
        evidence={**why.evidence, "until": until.isoformat(timespec="seconds"), "at_generation": generation},
        version=bundle.version,
        sha256=bundle.sha256,
    )
    return _waiting(entry, bundle)


def find_waiting(store: ControlStore, model: str) -> Waiting | None:
    """Return the promotion that waits for a yes, or has waited too long; None when there is none, or no longer."""
    entry = store.last(model, ASKED, "promote", "start", "rollback", "hold")
    row = store.row(model)
    challenger = row.challenger
    if entry is None or entry.action != ASKED or challenger is None or row.on_trial is not None:
        return None
    if (entry.version, entry.sha256) != (challenger.version, challenger.sha256):
        return None
    found = _waiting(entry, challenger)
    return found if found.generation == row.generation else None


def approve(
    store: ControlStore, home: Path, model: str, version: int | None, actor: str, reason: str, now: datetime
) -> Rollout:
    """Do what waits: promote the version, or begin its shadow or canary, as its signed bundle says; return the row.

    version: None for the one that waits. Raises NotFound when none or another one waits, Conflict when it has
    waited too long or the row has moved on, BundleInvalid, Quarantined.
    """
    waiting = _require(store, model, version)
    if waiting.is_over(now):
        raise Conflict(
            f"{model} v{waiting.bundle.version} could be approved until {waiting.until:%Y-%m-%d %H:%M} UTC: what it "
            f"was decided on is old; run `lifecycle` or `retrain` again, or `homeostat promote {model} "
            f"{waiting.bundle.version}` all the same"
        )
    config = open_bundle(waiting.bundle, load_public_key(home)).manifest.rollout
    why = Why(actor, f"approved: {reason}", {**waiting.evidence, "approval": waiting.sequence})
    if config.strategy != "direct":
        return progress.start(store, waiting.bundle, config, why, expected_generation=waiting.generation)
    return store.promote(
        model,
        waiting.bundle.version,
        expected_generation=waiting.generation,
        actor=why.actor,
        reason=why.reason,
        evidence=why.evidence,
    )


def reject(store: ControlStore, model: str, version: int | None, actor: str, reason: str) -> Rollout:
    """Say no to what waits, or has waited too long: the challenger goes, and may come again. Raises as `approve`."""
    waiting = _require(store, model, version)
    return store.hold(
        model,
        expected_generation=waiting.generation,
        actor=actor,
        reason=f"rejected: {reason}",
        evidence={"approval": waiting.sequence},
        clear_challenger=True,
    )


def _require(store: ControlStore, model: str, version: int | None) -> Waiting:
    waiting = find_waiting(store, model)
    if waiting is None or version not in (None, waiting.bundle.version):
        what = "no version waits" if waiting is None else f"v{waiting.bundle.version} waits, not v{version},"
        raise NotFound(f"{model}: {what} for approval; `homeostat status` shows what does")
    return waiting


def _waiting(entry: LedgerEntry, bundle: BundleRef) -> Waiting:
    evidence = dict(entry.evidence)
    until, generation = evidence.pop("until"), evidence.pop("at_generation")
    return Waiting(bundle, int(generation), datetime.fromisoformat(until).astimezone(UTC), entry.sequence, evidence)
