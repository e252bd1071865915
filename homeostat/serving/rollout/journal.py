"""What a server keeps of its rollouts over a restart: the evidence, and the versions that it has taken out."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from homeostat.dataset import write_artifact
from homeostat.guards import Evidence
from homeostat.records import BundleRef, Rollout

log = logging.getLogger(__name__)

SAID = ("guards", "requests", "dropped", "next", "time")
"""What `homeostat rollout status` shows of a trial."""
DEATHS = 3
"""So many times a server may be killed while a version is on trial; then it is the version's fault."""


@dataclass(frozen=True)
class Stopped:
    """A version that this server has taken out, and why."""

    started: int
    """The rollout: generation at which it started."""
    version: int
    manifest_sha256: str
    reason: str
    evidence: dict[str, Any]
    recorded: bool = False
    """Whether the control store knows."""

    def is_of(self, row: Rollout) -> bool:
        """Return whether this is what the row has on trial, in this very rollout."""
        trial = row.on_trial
        return trial is not None and (self.started, self.manifest_sha256) == (row.started, trial.manifest_sha256)


def _read_phase(folder: Path, row: Rollout, slot: int | None = None) -> list[dict[str, Any]]:
    """Return what the processes wrote of the phase that a row is in, but for the one of a slot."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"{row.model}.*.json")):
        if path.name == f"{row.model}.{slot}.json":
            continue
        try:
            values = json.loads(path.read_bytes())
            if (values.get("started"), values.get("mode")) == (row.started, row.mode):
                found.append(values)
        except (OSError, ValueError, AttributeError) as error:
            log.warning("%s cannot be read (%s); it does not count for now", path, error)
    return found


def last_said(folder: Path, row: Rollout) -> dict[str, Any] | None:
    """Return what the processes of HOME/serving last wrote about a row's rollout; None when none has yet."""
    found = [{name: values.get(name) for name in SAID} for values in _read_phase(folder / "rollouts", row)]
    return max(found, key=lambda values: str(values["time"]), default=None)


class Journal:
    """One JSON file for each model and process, HOME/serving/rollouts/MODEL.SLOT.json, written whole.

    A process reads its own file when it starts, and those of the others while it judges: evidence
    of several is the sum of their counts.
    """

    def __init__(self, folder: Path, slot: int) -> None:
        """slot: tells apart the processes that share a HOME."""
        self._folder, self._slot = folder / "rollouts", slot
        self._files = threading.Lock()
        self._values: dict[str, dict[str, Any]] = {}
        self.stopped: dict[str, Stopped] = {}
        """Model -> what was taken out last."""
        for path in sorted(self._folder.glob(f"*.{slot}.json")):
            self._restore(path)

    def _restore(self, path: Path) -> None:
        model = path.name.split(".")[0]
        try:
            values = json.loads(path.read_bytes())
            stopped = Stopped(**values["stopped"]) if values["stopped"] else None
            killed = bool(values["open"])
            values["deaths"] = values["deaths"] + killed
            values["open"] = False
            known = stopped is not None and stopped.started == values.get("started")
            if killed and values["deaths"] >= DEATHS and not known:
                reason = f"the server was killed {values['deaths']} times while the version was on trial"
                which = values["started"], values["version"], values["manifest_sha256"]
                stopped = Stopped(*which, reason, {"verdict": "roll back", "deaths": values["deaths"]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("%s cannot be read (%s); the evidence begins anew", path, error)
            return
        self._values[model] = values
        if stopped is not None:
            self.stopped[model] = stopped
        if killed:
            log.warning("%s: killed with v%s on trial, %d times by now", model, values["version"], values["deaths"])
            self._write(model)

    def evidence(self, row: Rollout) -> Evidence:
        """Return the evidence of this phase that this process has kept; empty when there is none."""
        values = self._values.get(row.model, {})
        if (values.get("started"), values.get("mode")) != (row.started, row.mode):
            return Evidence()
        return self._read_evidence(row, values) or Evidence()

    def others(self, row: Rollout) -> Evidence:
        """Return the evidence of this phase of the other processes of this HOME, as they last wrote it."""
        total = Evidence()
        for values in _read_phase(self._folder, row, self._slot):
            total = total + (self._read_evidence(row, values) or Evidence())
        return total

    def _read_evidence(self, row: Rollout, values: dict[str, Any]) -> Evidence | None:
        try:
            evidence = Evidence.from_json(values["evidence"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.error("%s: kept evidence cannot be read (%s); it begins anew", row.model, error)
            return None
        if values.get("weight") != row.weight:
            evidence.requests = 0  # those of the step before
        return evidence

    def keep(self, row: Rollout, trial: BundleRef, evidence: Evidence, said: dict[str, Any], *, running: bool) -> None:
        """Write what a trial has counted; `running` until the process ends as it should.

        said: what `homeostat rollout status` shows beside it.
        """
        before = self._values.get(row.model, {})
        deaths = before.get("deaths", 0) if before.get("started") == row.started else 0
        self._values[row.model] = said | {
            "started": row.started,
            "mode": row.mode,
            "weight": row.weight,
            "version": trial.version,
            "manifest_sha256": trial.manifest_sha256,
            "evidence": evidence.to_json(),
            "deaths": deaths,
            "open": running,
        }
        self._write(row.model)

    def stop(self, model: str, stopped: Stopped) -> None:
        """Note what was taken out, or that the control store knows it."""
        self.stopped[model] = stopped
        self._write(model)

    def close(self, model: str) -> None:
        """Note that no trial of a model is running any more."""
        if self._values.get(model, {}).get("open"):
            self._values[model]["open"] = False
            self._write(model)

    def _write(self, model: str) -> None:
        stopped = self.stopped.get(model)
        values = self._values.setdefault(model, {"open": False, "deaths": 0})
        path = self._folder / f"{model}.{self._slot}.json"
        try:
            with self._files:
                text = json.dumps(values | {"stopped": asdict(stopped) if stopped else None})
                write_artifact(path, text.encode())
        except OSError as error:
            log.error("%s cannot be written (%s); after a restart the evidence begins anew", path, error)
