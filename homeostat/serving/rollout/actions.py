"""What an operator does to a rollout and sees of it: the one place behind the commands and the operator API."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from homeostat import guards
from homeostat.bundle import load_public_key, open_bundle
from homeostat.config import RolloutConfig
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.errors import NotFound
from homeostat.records import Rollout
from homeostat.serving.rollout.journal import last_said


def act(
    store: ControlStore,
    home: Path,
    model: str,
    action: str,
    why: Why,
    *,
    version: int | None = None,
    generation: int | None = None,
) -> Rollout:
    """Change the rollout of a model, and return its row.

    action: start, pause, resume, promote, abort, rollback or release. version: what is started
    (default: the challenger) or released. generation: the only one of the row at which this may
    be done; without it, the one that the row has now. Raises BundleInvalid, NotFound, Conflict,
    ControlError, Quarantined.
    """
    row = store.row(model)
    expected = row.generation if generation is None else generation
    if action == "start":
        return _start(store, home, row, version, why, expected)
    if action == "promote":
        return progress.promote(store, model, config_of(row, home), why, expected_generation=expected)
    if action == "rollback":
        return store.rollback(model, expected_generation=expected, actor=why.actor, reason=why.reason)
    if action == "release":
        if version is None:
            raise NotFound(f"model {model}: name the version that is to leave quarantine")
        store.release(model, version, actor=why.actor, reason=why.reason)
        return row
    return STEPS[action](store, model, why, expected_generation=expected)


STEPS: dict[str, Callable[..., Rollout]] = {
    "pause": progress.pause,
    "resume": progress.resume,
    "abort": progress.abort,
}


def _start(
    store: ControlStore, home: Path, row: Rollout, version: int | None, why: Why, expected_generation: int
) -> Rollout:
    """Verify a version's bundle and start to roll it out; without a version, the challenger."""
    bundle = row.challenger if version is None else store.bundle(row.model, version)
    if bundle is None:
        raise NotFound(
            f"model {row.model} has no challenger; name a version: `homeostat rollout start {row.model} VERSION`"
        )
    config = open_bundle(bundle, load_public_key(home)).manifest.rollout
    return progress.start(store, bundle, config, why, expected_generation=expected_generation)


def config_of(row: Rollout, home: Path) -> RolloutConfig:
    """Return the rollout section that is signed with the version on trial; raises BundleInvalid, ControlError."""
    return open_bundle(progress.in_progress(row), load_public_key(home)).manifest.rollout


def summarize(row: Rollout) -> dict[str, Any]:
    """Return what a row says of its rollout, as JSON holds it."""
    found: dict[str, Any] = {
        "model": row.model,
        "generation": row.generation,
        "champion": f"v{row.champion.version}" if row.champion else None,
        "rollout": {"mode": row.mode},
    }
    if row.on_trial is not None:
        found["rollout"] |= {
            "version": row.on_trial.version,
            "sha256": row.on_trial.sha256,
            "weight": row.weight,
            "step": row.step,
            "step_since": row.step_since,
            "paused": row.paused,
        }
    return found


def describe(row: Rollout, home: Path) -> dict[str, Any]:
    """Return how far a rollout is, and what the guards of the server of this home said last; raises BundleInvalid."""
    found = summarize(row) | {"evidence": None}
    if row.on_trial is None:
        return found
    config = config_of(row, home)
    found["rollout"] |= {
        "steps": len(config.steps),
        "required": list(guards.required(row.mode, config)),
        "fail_at": -math.log(guards.level(config, row.mode)),
    }
    found["evidence"] = last_said(home / "serving", row)
    return found
