"""The controller of rollouts: judges the guards again and again, and takes a bad version out at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homeostat.config import GuardName
from homeostat.guards import Action, Evidence, decide, describe, judge
from homeostat.records import Rollout
from homeostat.sequential import Judgement
from homeostat.serving.repository import ModelState
from homeostat.serving.rollout.decisions import Decisions, Move
from homeostat.serving.rollout.journal import Journal, Stopped
from homeostat.serving.rollout.trial import Trial
from homeostat.serving.served import Served

if TYPE_CHECKING:
    from homeostat.control.store import ControlStore
    from homeostat.serving.dataplane import DataPlane

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
KEEP_SECONDS = 1.0
VERDICTS = {"abort": "roll back", "advance": "promote", "pause": "inconclusive"}


def arms(state: ModelState) -> tuple[Served, Served] | None:
    """Return control and candidate of a model's rollout, when both are loaded; None without a rollout."""
    row = state.row
    if row is None or row.mode == "live":
        return None
    control, candidate = (state.previous, state.live) if row.mode == "bake" else (state.live, state.challenger)
    wanted = row.previous if row.mode == "bake" else row.champion
    if control is None or candidate is None or control.ref != wanted or candidate.ref != row.on_trial:
        return None
    return control, candidate


class Rollouts:
    """Every rollout in progress in this process, and a thread that judges them.

    A failed guard takes the version out in memory first; then the control store is written.
    """

    def __init__(self, plane: DataPlane, connect: Callable[[], ControlStore], folder: Path, *, slot: int = 0) -> None:
        """connect: see Decisions. folder: HOME/serving. slot: tells apart the processes that share a HOME."""
        self._plane = plane
        self._journal = Journal(folder, slot)
        self._decisions = Decisions(connect, self._journal, plane.repository.poke)
        self._since: dict[str, tuple[tuple[Any, ...], float]] = {}
        self._kept: dict[str, float] = {}
        self._others: dict[str, Evidence] = {}
        self._lock = threading.Lock()
        self.judgements: Mapping[str, dict[GuardName, Judgement]] = {}
        """What the guards said last, by model; replaced whole."""
        self.failures = 0
        """Times the guards could not be judged."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._judge_always, name="rollouts", daemon=True)
        plane.repository.veto, plane.repository.watch = self.veto, self.follow

    def start(self) -> None:
        """Judge and write, in threads."""
        self._thread.start()
        self._decisions.start()

    def close(self) -> None:
        """Stop judging; what has been counted is kept for the next start."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._decisions.close()
        for trial in self._plane.trials.values():
            self._keep(trial, "", running=False)
            trial.close()

    # -- following the rows ------------------------------------------------------------------

    def veto(self, row: Rollout) -> Rollout:
        """Return the row without the version that this process has taken out of this very rollout."""
        stopped = self._journal.stopped.get(row.model)
        if stopped is None or not stopped.is_of(row):
            return row
        rest = replace(row, mode="live", weight=0.0, step=0, step_since="", started=0, paused=False)
        if row.mode == "bake":
            return replace(rest, champion=row.previous, previous=None)
        return replace(rest, challenger=None)

    def follow(self, state: ModelState) -> None:
        """Begin, move or end a model's trial after its row or its sessions have changed."""
        with self._lock:
            old, pair, row = self._plane.trials.get(state.name), arms(state), state.row
            if row is None or pair is None:
                self._replace(state.name, None)
                return
            control, candidate = pair
            same = old is not None and (
                (old.row.started, old.row.mode, old.control.ref, old.candidate.ref)
                == (row.started, row.mode, control.ref, candidate.ref)
            )
            if old is not None and same:
                old.move(row)
                return
            evidence = self._journal.evidence(row)
            trial = Trial(row, control, candidate, evidence, self._plane)
            self._keep(trial, "", running=True)
            self._replace(state.name, trial)
            log.info("%s: %s of v%d, share %g", row.model, row.mode, candidate.ref.version, row.weight)

    def _replace(self, model: str, trial: Trial | None) -> None:
        old = self._plane.trials.get(model)
        others = {name: one for name, one in self._plane.trials.items() if name != model}
        self._plane.trials = {**others, **({model: trial} if trial else {})}
        self._others.pop(model, None)
        self.judgements = {name: found for name, found in self.judgements.items() if name != model}
        if old is not None:
            old.close()
            if trial is None:
                self._journal.close(model)

    # -- judging -----------------------------------------------------------------------------

    def _judge_always(self) -> None:
        while not self._closing.wait(TICK_SECONDS):
            self.tick()

    def tick(self) -> None:
        """Judge every rollout once; a failure is counted, and never ends the thread."""
        for trial in list(self._plane.trials.values()):
            try:
                self._judge(trial)
            except Exception:
                self.failures += 1
                trial.evidence.note(source_errors=1)
                log.exception("%s: the guards cannot be judged", trial.row.model)
        for state in list(self._plane.repository.models.values()):
            self._pause_refused(state)

    def _pause_refused(self, state: ModelState) -> None:
        row = state.row
        if row is None or row.on_trial is None or row.paused or row.model in self._plane.trials:
            return
        problem = state.problems.get(row.on_trial.version)
        if problem and row.mode != "bake":
            self._decisions.move(Move(row, None, problem, {"verdict": VERDICTS["pause"]}))

    def _judge(self, trial: Trial) -> None:
        row, config, model = trial.row, trial.config, trial.row.model
        stopped = self._journal.stopped.get(model)
        if stopped is not None and stopped.is_of(row):
            return
        trial.learn()
        due = time.monotonic() - self._kept.get(model, 0.0) > KEEP_SECONDS
        if due:
            self._others[model] = self._journal.others(row)
        evidence = trial.evidence.copy() + self._others.get(model, Evidence())
        found = judge(evidence, config, row.mode, trial.candidate.task)
        self.judgements = {**self.judgements, model: found}
        action = decide(
            found,
            config,
            row.mode,
            paused=row.paused,
            requests=evidence.requests,
            seconds=self._seconds(row),
            source_errors=evidence.source_errors,
        )
        if trial.out:
            action = Action("abort", trial.out)
        if due:
            self._keep(trial, action.reason, running=True, requests=evidence.requests)
        if action.kind == "wait":
            return
        what = {
            "verdict": VERDICTS[action.kind],
            "mode": row.mode,
            "share": row.weight,
            "requests": evidence.requests,
            "guard": action.guard,
            "guards": describe(found),
        }
        if action.kind == "abort":
            self._take_out(trial, action.reason, what)
        else:
            self._decisions.move(Move(row, None if action.kind == "pause" else config, action.reason, what))

    def _take_out(self, trial: Trial, reason: str, evidence: dict[str, Any]) -> None:
        trial.out = reason  # from here on the control answers
        row, ref = trial.row, trial.candidate.ref
        log.error("%s: v%d is out: %s", row.model, ref.version, reason)
        self._keep(trial, reason, running=True)
        self._journal.stop(row.model, Stopped(row.started, ref.version, ref.manifest_sha256, reason, evidence))
        self._plane.repository.poke()
        self._decisions.poke()

    def _seconds(self, row: Rollout) -> float:
        """Return how long the step has lasted: by the wall clock when first seen, then by one that cannot jump."""
        key, now = (row.started, row.mode, row.step_since), time.monotonic()
        known, begun = self._since.get(row.model, ((), 0.0))
        if known != key:
            age = datetime.now(UTC) - datetime.fromisoformat(row.step_since)
            begun = now - max(0.0, age.total_seconds())
            self._since[row.model] = (key, begun)
        return now - begun

    def _keep(self, trial: Trial, following: str, *, running: bool, requests: int | None = None) -> None:
        model, evidence = trial.row.model, trial.evidence
        self._kept[model] = time.monotonic()
        said = {
            "requests": evidence.requests if requests is None else requests,
            "dropped": trial.lane.dropped,
            "guards": describe(self.judgements.get(model, {})),
            "next": following,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._journal.keep(trial.row, trial.candidate.ref, evidence, said, running=running)
