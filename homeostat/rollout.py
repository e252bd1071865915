"""Move a rollout row, and be done only when the server answers with the version and digest that it names."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from homeostat.approval import ask_approval
from homeostat.config import ProjectConfig
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.errors import Conflict, ControlError, NotFound, Quarantined, RolloutTimeout, ServerUnavailable
from homeostat.policy.promotion import decide_promotion
from homeostat.records import BundleRef, Deployed, Evaluation, Rollout, Verdict

POLL_SECONDS = 0.05
UNDECIDED = "inconclusive"
"""Verdict of the test part that leaves a challenger to live labels (homeostat.trial)."""


def _object(body: bytes) -> dict[str, Any]:
    parsed = json.loads(body or b"{}")
    if not isinstance(parsed, dict):
        raise ValueError(f"a JSON object was expected, not {body[:80]!r}")
    return parsed


def check_server(server_url: str) -> None:
    """Raise ServerUnavailable unless a model server answers: asked before a row moves."""
    _get(f"{server_url.rstrip('/')}/v2/health/live")


def _get(url: str) -> tuple[int, dict[str, Any]]:
    if not url.startswith(("http://", "https://")):
        raise ServerUnavailable(f"HOMEOSTAT_SERVER_URL must be http:// or https://, not {url!r}")
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - the scheme is checked above
            return answer.status, _object(answer.read())
    except urllib.error.HTTPError as error:
        try:
            return error.code, _object(error.read())
        except ValueError:
            return error.code, {}
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ServerUnavailable(
            f"no model server answers at {url}: {error}; start it (`homeostat serve` or `make up`) "
            "or set HOMEOSTAT_SERVER_URL"
        ) from error


def wait_until_ready(server_url: str, bundle: BundleRef, timeout: float, *, live: bool) -> float:
    """Wait until the server reports this version and digest; return the seconds it took.

    live: it must be what answers requests; otherwise loaded and verified is enough. Raises
    RolloutTimeout with what the server says instead, ServerUnavailable when it does not answer.
    """
    path = f"/v2/models/{bundle.model}/ready" if live else f"/v2/models/{bundle.model}/versions/{bundle.version}/ready"
    started = time.monotonic()
    while True:
        status, body = _get(server_url.rstrip("/") + path)
        if status == 200 and body.get("sha256") == bundle.sha256 and int(body.get("version", -1)) == bundle.version:
            return time.monotonic() - started
        if time.monotonic() - started > timeout:
            raise RolloutTimeout(
                f"{server_url} does not serve {bundle.model} v{bundle.version} ({bundle.sha256[:12]}) "
                f"after {timeout:g} s; "
                f"it says {status}: {body.get('problem') or body.get('error') or body}"
            )
        time.sleep(POLL_SECONDS)


def _deployed(rollout: Rollout, bundle: BundleRef, seconds: float) -> Deployed:
    role = "champion" if rollout.champion == bundle else "challenger"
    return Deployed(bundle.model, bundle.version, bundle.sha256, rollout.generation, seconds, role)  # type: ignore[arg-type]


def _current(store: ControlStore, model: str) -> Rollout | None:
    try:
        return store.row(model)
    except NotFound:
        return None


def introduce(
    store: ControlStore, bundle: BundleRef, evaluation: Evaluation, config: ProjectConfig, server_url: str, actor: str
) -> tuple[Deployed, Verdict]:
    """Make a bundle the challenger, let the policy decide, and promote or hold it, roll it out, or ask for approval.

    The server has verified and loaded the challenger before the row makes it champion. A graph
    that is in quarantine, as training on the same rows makes it again, is held and moves nothing.
    Raises ServerUnavailable before anything has changed, Conflict when another champion came first.
    """
    check_server(server_url)
    before = _current(store, bundle.model)
    verdict = decide_promotion(evaluation.comparison, config.rollout)
    if before is not None and before.champion == bundle:
        return _deployed(
            before, bundle, wait_until_ready(server_url, bundle, config.rollout.timeout_seconds, live=True)
        ), verdict
    compared_with = evaluation.comparison.champion_version if evaluation.comparison else None
    champion = before.champion.version if before is not None and before.champion is not None else None
    if champion != compared_with:
        raise Conflict(
            f"{bundle.model}: the champion is v{champion}, but v{bundle.version} was compared with v{compared_with}; "
            "run the lifecycle again with its pipeline_id to compare it with the champion of now"
        )
    generation = before.generation if before is not None else 0
    if before is not None and before.on_trial == bundle:  # asked for again
        return _deployed(before, bundle, 0.0), verdict
    try:
        row = store.set_challenger(
            bundle.model, bundle, expected_generation=generation, actor=actor, reason="registered", evidence={}
        )
    except Quarantined as error:
        return _hold_quarantined(store, bundle, generation, actor, str(error))
    took = wait_until_ready(server_url, bundle, config.rollout.timeout_seconds, live=False)
    evidence = evidence_of(verdict)
    if verdict.kind != "promote":
        days = config.rollout.trial.days
        tried = f"; live labels are to decide within {days:g} days" if verdict.kind == UNDECIDED and days else ""
        row = store.hold(
            bundle.model,
            expected_generation=row.generation,
            actor=actor,
            reason="; ".join(verdict.reasons) + tried,
            evidence=evidence,
        )
        return _deployed(row, bundle, took), verdict
    why = Why(actor, "; ".join(verdict.reasons), evidence)
    return take_over(store, row, bundle, config, server_url, why, took), verdict


def evidence_of(verdict: Verdict) -> dict[str, Any]:
    """Return what the ledger keeps of a verdict on a promotion."""
    return {"verdict": verdict.kind, "reasons": list(verdict.reasons), **verdict.evidence}


def take_over(
    store: ControlStore,
    row: Rollout,
    bundle: BundleRef,
    config: ProjectConfig,
    server_url: str,
    why: Why,
    took: float = 0.0,
) -> Deployed:
    """Do what a decided promotion asks for: ask for approval, begin the rollout, or promote at once.

    row: with the bundle as its challenger; Conflict when it has moved on. took: seconds until the server had it.
    """
    rollout, generation = config.rollout, row.generation
    if rollout.approval_hours and row.champion is not None:
        ask_approval(store, bundle, rollout.approval_hours, why, generation, datetime.now(UTC))
        return _deployed(row, bundle, took)
    if rollout.strategy != "direct" and row.champion is not None:
        row = progress.start(store, bundle, rollout, why, expected_generation=generation)
        return _deployed(row, bundle, took)
    check_server(server_url)
    row = store.promote(
        row.model,
        bundle.version,
        expected_generation=generation,
        actor=why.actor,
        reason=why.reason,
        evidence=why.evidence,
    )
    return confirm(store, row, bundle, config, server_url)


def _hold_quarantined(
    store: ControlStore, bundle: BundleRef, generation: int, actor: str, reason: str
) -> tuple[Deployed, Verdict]:
    store.record(bundle.model, "hold", actor=actor, reason=reason, version=bundle.version, sha256=bundle.sha256)
    deployed = Deployed(bundle.model, bundle.version, bundle.sha256, generation, 0.0, "quarantined", reason)
    return deployed, Verdict("hold", (reason,))


def promote(
    store: ControlStore, model: str, version: int, config: ProjectConfig, server_url: str, actor: str, reason: str
) -> Deployed:
    """Make a version the champion and wait until it answers; if it does not, go back and raise RolloutTimeout."""
    check_server(server_url)
    row = store.row(model)
    row = store.promote(model, version, expected_generation=row.generation, actor=actor, reason=reason)
    bundle = row.champion
    if bundle is None or bundle.version != version:
        raise ControlError(f"{model}: the row names {bundle} after the promotion of v{version}")
    return confirm(store, row, bundle, config, server_url)


def confirm(store: ControlStore, row: Rollout, bundle: BundleRef, config: ProjectConfig, server_url: str) -> Deployed:
    """Wait until the server has what a row says of a version: as champion, or loaded for its trial.

    If it does not take a champion, go back. Raises RolloutTimeout.
    """
    live, timeout = row.champion == bundle, config.rollout.timeout_seconds
    try:
        return _deployed(row, bundle, wait_until_ready(server_url, bundle, timeout, live=live))
    except RolloutTimeout as error:
        if live and row.previous is not None:
            generation = row.generation  # not banned: it may be the server's fault
            store.rollback(row.model, expected_generation=generation, actor="homeostat", reason=str(error), ban=False)
        raise


def roll_back(
    store: ControlStore,
    model: str,
    config: ProjectConfig,
    server_url: str,
    actor: str,
    verdict: Verdict,
    *,
    bad_version: int | None = None,
) -> Deployed:
    """Go back to the champion before this one and wait until it answers.

    bad_version: roll back only while this is the champion, by default what is now; Conflict when it no
    longer is. It wins against any other change. Raises ServerUnavailable before anything has changed.
    """
    check_server(server_url)
    row = store.row(model)
    live = row.champion.version if row.champion else None
    row = store.rollback(
        model,
        bad_version=live if bad_version is None else bad_version,
        actor=actor,
        reason="; ".join(verdict.reasons),
        evidence=asdict(verdict),
    )
    if row.champion is None:
        raise ControlError(f"{model}: the row names no champion after the rollback")
    took = wait_until_ready(server_url, row.champion, config.rollout.timeout_seconds, live=True)
    return _deployed(row, row.champion, took)
