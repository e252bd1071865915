"""The acts of `make run`: what happens to a model in its life, what the loop does about it, and what became of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.console import Console

from deployments.flowruns import FlowRuns
from deployments.places import Ports, environment
from deployments.timeline import Timeline
from deployments.traffic import Sent, Traffic, count_labels, wait_captured
from homeostat.config import ProjectConfig
from homeostat.control.store import ControlStore
from homeostat.data.splits import assign_parts
from homeostat.dataset import Dataset
from homeostat.errors import ConfigError, ServingError
from homeostat.monitoring.page.words import clip
from homeostat.project import Project, find_project, load_project
from homeostat.records import LedgerEntry, Rollout
from homeostat.settings import Settings

SHIFTED_ROWS = 600
LOOKS = 8
"""At a version that is promoted by force, at most."""
PACE = 0.04
"""Seconds between two requests of a client while labels are to decide: about 80 requests a second in all."""
LONGEST_BAKE = 60.0
ENDS = ("promote", "finish", "abort", "rollback")
"""Actions of the ledger that end a rollout or a phase of it."""


class Story:
    """The acts, in order; each adds its lines to the timeline."""

    def __init__(self, name: str, ports: Ports, settings: Settings, console: Console) -> None:
        self.project: Project
        self.config: ProjectConfig
        self.project, self.config = load_project(find_project(name, settings.root), settings.root)
        self.ports, self.settings, self.console = ports, settings, console
        self.born = datetime.now(UTC)
        self.timeline = Timeline(console)
        self.sent = Sent()
        self.traffic = Traffic(ports.urls["server"], self.config.name, self.config.task)
        self.store = ControlStore(settings.control_url)
        self.data = self.project.load_data()
        self.shifted = self._shifted()
        self.lives: list[dict[str, Any]] = []
        """What each pipeline wrote of the version that it made."""
        self.drift: dict[str, Any] = {}
        """The looks before, at and after the changes."""
        self.faults: dict[str, dict[str, Any]] = {}
        """What was wrong, how soon it was found and how soon it was over."""
        self._flows: FlowRuns | None = None
        self._labels = count_labels(settings.traffic_path)  # of earlier lives
        self._first = 0  # the champion before the world changes
        self._found = 0.0  # when labels showed harm, in unix seconds

    def _shifted(self) -> Dataset:
        module, rollout = sys.modules[type(self.project).__module__], self.config.rollout
        if not hasattr(module, "shift"):
            raise ConfigError(f"{module.__name__} needs shift(inputs, rng) for `make run`")
        if rollout.bake_seconds > LONGEST_BAKE or rollout.min_seconds > LONGEST_BAKE:
            raise ConfigError(
                f"`make run` would wait for {self.config.name}'s rollout for hours: in its project.toml set "
                f"rollout.min_seconds and rollout.bake_seconds to at most {LONGEST_BAKE:g}, as projects/digits does"
            )
        rng = np.random.default_rng(self.config.train.seed)
        return replace(self.data, inputs=module.shift(dict(self.data.inputs), rng))

    def tell(self) -> None:
        """Live the whole life."""
        self.first_version()
        self.live_traffic()
        self.harmless_drift()
        self.the_world_changes()
        self.roll_out()
        self.a_bad_version()
        self.a_subtle_version()
        self.back_to_the_first()

    @property
    def flows(self) -> FlowRuns:
        """The Prefect server, once it is up."""
        if self._flows is None:
            self._flows = FlowRuns(self.ports.urls["prefect"], self.console)
        return self._flows

    def first_version(self) -> None:
        """Run the lifecycle through its deployment."""
        self.timeline.act("a model is born: lifecycle through a Prefect deployment")
        run = self.flows.run(self._deployment("lifecycle"), {})
        self._report_life(self.flows.life_of(run, self.settings))
        version = self.lives[0]["summary"]["version"]
        if self._champion() != version:  # told before: this life begins with its own version all the same
            started = time.monotonic()
            self._command("promote", self.config.name, str(version), "--reason", "make run: a new life begins")
            self.timeline.add("promote", time.monotonic() - started, f"v{version}, by hand: a new life begins")

    def live_traffic(self) -> None:
        """Send the real test rows with their labels, and monitor them."""
        self.timeline.act("it answers real rows, and their labels come")
        parts = assign_parts(self.data, self.config.data, self.config.task, self.config.train.seed)
        self._send("test rows", self.data.take(parts["test"]))
        self.drift["before"] = self._monitor(self.born)

    def harmless_drift(self) -> None:
        """Send rows of one side alone: they drift, their labels show no harm, and the policy holds."""
        self.timeline.act("other rows come than before, but the model knows them")
        self._send("other rows", one_side(self.data, min(SHIFTED_ROWS, len(self.data) // 3)))
        asked = datetime.now(UTC)
        found = self.drift["harmless"] = self._monitor(self.born)
        if found["conclusion"] != "drift":
            raise ServingError(f"other rows are {found['conclusion']}, not drift: {found['reason']}")
        run = self.flows.wait_started_by_event(self._deployment("retrain"), asked)
        verdict = self.store.last(self.config.name, "verdict")
        if verdict is None or self.flows.children_of(run):
            raise ServingError("drift without harm has started a retraining")
        self.timeline.add("policy", self.flows.seconds(run), f"hold: {verdict.reason}")

    def the_world_changes(self) -> None:
        """Send shifted rows until their labels show harm; the automation starts retrain."""
        self.timeline.act("the world changes")
        self._first = self._champion()
        began = time.time()
        rows = np.random.default_rng(self.config.train.seed).permutation(len(self.data))
        chunk = min(SHIFTED_ROWS, len(rows))
        for start in range(0, len(rows), chunk):
            self._send("shifted rows", self.shifted.take(rows[start : start + chunk]))
            asked = datetime.now(UTC)
            self.drift["after"] = self._monitor(self.born)
            if self.drift["after"]["conclusion"] == "harm":
                break
        else:
            raise ServingError(f"no harm was found in {len(rows)} shifted rows: {self.drift['after']['reason']}")
        self._found = _seconds(self._entered("drift"))
        self.faults["changed world"] = {"caught_by": "labels", "detection_seconds": round(self._found - began, 3)}
        self.timeline.act("the harm event has started retrain")
        run = self.flows.wait_started_by_event(self._deployment("retrain"), asked)
        self._report_life(self.flows.life_of(self.flows.child_of(run), self.settings))

    def roll_out(self) -> None:
        """Keep requests and their labels coming until the new version's shadow, canary and bake are over."""
        if self._row().on_trial is not None:
            self.timeline.act("it is tried on live requests: shadow, canary, bake")
            with self._clients("rollout") as (_, show):
                self._follow(lambda row: show(f"{row.mode} {row.weight:.0%}"))
        if self._champion() == self._first:
            entry = self._entered("hold", "abort", "inconclusive")
            self.timeline.add("held", time.time() - self._found, f"v{self._first} stays: {clip(entry.reason, 160)}")
            return
        promoted = _seconds(self._entered("promote"))
        self.faults["changed world"]["recovery_seconds"] = round(promoted - self._found, 3)

    def a_bad_version(self) -> None:
        """Push a version that answers wrongly, and let the guards of its canary stop it."""
        champion = self._champion()
        self.timeline.act("somebody pushes a bad version past the gates: a canary")
        version = self._push("bad", "--strategy", "canary")
        with self._clients("canary of a bad version") as (sent, _):
            wait_captured(self.settings.traffic_path, self._labels + 400)  # the champion's, to compare with
            self._command("rollout", "start", self.config.name, str(version), "--reason", "make run: a bad version")
            started = self._entered("start")
            ended = self._follow(lambda row: None)
        if ended.action != "abort" or self._champion() != champion:
            raise ServingError(f"the bad version was not stopped: {ended.action}: {ended.reason}")
        seconds, wrong = _seconds(ended) - _seconds(started), len(sent.of(version))
        self.faults["bad version"] = {
            "version": version,
            "caught_by": ended.evidence.get("guard", ""),
            "detection_seconds": round(seconds, 3),
            "rollback_seconds": self._still_answered(sent, version, ended),
            "wrong_answers": wrong,
        }
        self.timeline.add("caught", seconds, f"v{version} is in quarantine after {wrong} wrong answers: {ended.reason}")

    def a_subtle_version(self) -> None:
        """Promote by force a version that errs on some rows; late labels take it back."""
        champion = self._champion()
        self.timeline.act("a subtly bad version is promoted by force")
        version = self._push("subtle")
        began = datetime.now(UTC)
        with self._clients("late labels", PACE) as (sent, show):
            self._command("promote", self.config.name, str(version), "--reason", "make run: it looks fine to me")
            promoted = self._entered("promote")
            for look in range(1, LOOKS + 1):
                show(f"look {look} at v{version}")
                time.sleep(2)
                self._monitor(began)
                if self._champion() != version:
                    break
            time.sleep(0.5)
        if self._champion() != champion:
            raise ServingError(f"late labels have not taken v{version} back in {LOOKS} looks")
        ended = self._entered("rollback")
        seconds, after = _seconds(ended) - _seconds(promoted), self._still_answered(sent, version, ended)
        self.faults["subtle version"] = {
            "version": version,
            "caught_by": "labels",
            "looks": look,
            "detection_seconds": round(seconds, 3),
            "rollback_seconds": after,
            "wrong_answers": round(sum(one.loss > 0 for one in sent.of(version))),
        }
        self.timeline.add("taken back", seconds, clip(ended.reason, 200))
        self.timeline.add("rollback", after, f"v{version} -> v{champion}, {len(sent)} answers meanwhile, 0 failed")

    def back_to_the_first(self) -> None:
        """Make the version from before the change champion again by hand, so that the story can be told again."""
        first = self._first
        if self._champion() == first:
            return
        self.timeline.act("the world is as it was: an operator goes back")
        started = time.monotonic()
        self._command("promote", self.config.name, str(first), "--reason", "make run: the world is as it was")
        self.timeline.add("promote", time.monotonic() - started, f"v{first} is champion, by hand")

    def _deployment(self, flow: str) -> str:
        return f"{flow}/{self.config.name}"

    def _report_life(self, pipeline: dict[str, Any]) -> None:
        self.lives.append(pipeline)
        for stage, seconds, figure in pipeline["stages"]:
            self.timeline.add(stage, seconds, figure)

    def _send(self, name: str, data: Dataset) -> None:
        sent, started = Sent(), time.monotonic()
        with self.console.status(f"{name}: {len(data)} requests") as status:
            self.traffic.send(data, sent, lambda n: status.update(f"{name}: {n} of {len(data)} requests"))
            self._keep(sent)
            wait_captured(self.settings.traffic_path, self._labels)
        p50 = sent.quantile(0.5)
        self.timeline.add(name, time.monotonic() - started, f"{len(data)} answered, 0 failed, p50 {p50:.1f} ms")

    @contextmanager
    def _clients(self, name: str, every: float = 0.0) -> Iterator[tuple[Sent, Callable[[str], None]]]:
        """Keep shifted rows and their labels coming; yields what becomes of them, and what shows how far it is."""
        with self.console.status(name) as status, self.traffic.clients(self.shifted, every) as sent:
            yield sent, lambda text: status.update(f"{name}: {text}")
        self._keep(sent)

    def _keep(self, sent: Sent) -> None:
        if sent.errors:
            raise ServingError(f"{len(sent.errors)} of {len(sent)} requests failed; the first: {sent.errors[0]}")
        self.sent.add(sent)
        self._labels += len(sent)

    def _monitor(self, since: datetime) -> dict[str, Any]:
        run = self.flows.run(self._deployment("monitor"), {"since": since.isoformat()})
        found = self.flows.monitoring_of(run, self.settings)
        drifted = [column["column"] for column in found["columns"] if column["drifted"]]
        names = ", ".join(drifted[:3]) + (", ..." if len(drifted) > 3 else "")
        figure = f"{len(drifted)} of {len(found['columns'])} columns drifted: {names}" if drifted else found["reason"]
        figure = f"{found['conclusion']}; {figure}"
        for name, interval in found["quality"].items():
            if name == self.config.primary:
                figure += f"; live {name} {interval['value']:.4f}"
        self.timeline.add("monitor", self.flows.seconds(run), figure)
        return found

    def _row(self) -> Rollout:
        return self.store.row(self.config.name)

    def _champion(self) -> int:
        champion = self._row().champion
        if champion is None:
            raise ServingError(f"{self.config.name} has no champion")
        return champion.version

    def _entered(self, *actions: str) -> LedgerEntry:
        entry = self.store.last(self.config.name, *actions)
        if entry is None:
            raise ServingError(f"the ledger has no {' or '.join(actions)} of {self.config.name}")
        return entry

    def _follow(self, show: Callable[[Rollout], None], seconds: float = 120) -> LedgerEntry:
        """Wait until no version is on trial, with a line for each step; return the entry that ended it."""
        deadline, began, before = time.monotonic() + seconds, time.monotonic(), self._row()
        trial = f"v{before.on_trial.version}" if before.on_trial else ""
        while time.monotonic() < deadline:
            row = self._row()
            show(row)
            if (row.mode, row.step) != (before.mode, before.step):
                entry = self._entered("step", *ENDS)
                if entry.action != "abort":  # its act says that
                    text = f"{trial} {entry.action}: {clip(entry.reason, 90)}"
                    self.timeline.add(before.mode, time.monotonic() - began, text)
                before, began = row, time.monotonic()
            if row.on_trial is None:
                return self._entered(*ENDS)
            if row.paused:
                break
            time.sleep(0.1)
        raise ServingError(f"the rollout did not end within {seconds:g} s: {self._row()}")

    def _still_answered(self, sent: Sent, version: int, ended: LedgerEntry) -> float:
        """Return how long this version has answered behind the decision against it."""
        last = max((one.at for one in sent.of(version)), default=0.0)
        return round(max(0.0, last - _seconds(ended)), 3)

    def _push(self, fault: str, *more: str) -> int:
        started = time.monotonic()
        version = int(self._command("push-faulty", self.config.name, fault, *more))
        self.timeline.add("push", time.monotonic() - started, f"v{version}, {fault}, signed and registered")
        return version

    def _command(self, *words: str) -> str:
        done = subprocess.run(
            ["homeostat", *words],
            env=environment(self.ports, self.settings),
            cwd=self.settings.root,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServingError(f"homeostat {' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def events(self) -> list[LedgerEntry]:
        """Return what the ledger says since the story began, the oldest first."""
        born = self.born.isoformat()
        return [entry for entry in self.store.history(self.config.name) if entry.time >= born]

    def record(self) -> dict[str, Any]:
        """Return what goes into var/run.json."""
        return {
            "project": self.config.name,
            "seconds": round(self.timeline.elapsed(), 3),
            "stages": [{"name": row.name, "seconds": round(row.seconds, 3)} for row in self.timeline.rows],
            "versions": [life["summary"] for life in self.lives],
            "champion": self._champion(),
            "requests": {
                "sent": len(self.sent),
                "failed": len(self.sent.errors),
                "p50_ms": round(self.sent.quantile(0.5), 3),
                "p99_ms": round(self.sent.quantile(0.99), 3),
            },
            "drift": self.drift,
            "faults": self.faults,
            "urls": self.ports.urls,
        }


def _seconds(entry: LedgerEntry) -> float:
    """Return the unix seconds of a ledger entry."""
    return datetime.fromisoformat(entry.time).timestamp()


def one_side(data: Dataset, count: int) -> Dataset:
    """Return the rows whose inputs are largest on the whole: they look unlike the rest, and are real all the same."""
    size = np.zeros(len(data))
    for values in data.inputs.values():
        flat = values.reshape(len(data), -1).astype(np.float64)
        size += ((flat - flat.mean(axis=0)) / (flat.std(axis=0) + 1e-9)).mean(axis=1)
    return data.take(np.sort(np.argsort(size)[-count:]))
