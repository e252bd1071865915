"""The story of `make run`: one model's whole life on real data, through deployments and a worker, then a rollback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from deployments.flowruns import FlowRuns
from deployments.places import Ports, choose_ports, environment, local_settings
from deployments.stack import wait_ready
from deployments.timeline import Timeline
from deployments.traffic import Sent, Traffic, count_labels, infer_body, wait_captured
from homeostat.config import ProjectConfig
from homeostat.control.store import ControlStore
from homeostat.data.splits import assign_parts
from homeostat.dataset import Dataset
from homeostat.errors import ConfigError, HomeostatError, ServingError
from homeostat.project import Project, find_project, load_project
from homeostat.settings import Settings

SHIFTED_ROWS = 600


@contextmanager
def running_stack(ports: Ports, settings: Settings, console: Console) -> Iterator[dict[str, str]]:
    """Start the stack in a process group of its own and stop it at the end; yields its environment."""
    log_path = settings.home / "log" / "stack.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    shared = environment(ports, settings) | {
        "HOMEOSTAT_PREFECT_PORT": str(ports.prefect),
        "HOMEOSTAT_MLFLOW_PORT": str(ports.mlflow),
    }
    with log_path.open("wb") as log:
        stack = subprocess.Popen(
            [sys.executable, "-m", "deployments.stack"],
            cwd=settings.root,
            env=shared | {"HOMEOSTAT_MLFLOW_URL": settings.mlflow_url},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with console.status("starting Prefect, MLflow, the model server and a worker"):
            late = wait_ready(ports, 180, alive=lambda: stack.poll() is None)
        if late:
            tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
            raise ServingError(f"the stack did not start: {', '.join(late)} not ready; the end of {log_path}:\n{tail}")
        yield shared
    finally:
        stack.send_signal(signal.SIGTERM)
        try:
            stack.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(stack.pid, signal.SIGKILL)


class Life:
    """The acts of the story, in order; each adds its line to the timeline."""

    def __init__(self, name: str, ports: Ports, settings: Settings, console: Console) -> None:
        self.project: Project
        self.config: ProjectConfig
        self.project, self.config = load_project(find_project(name, settings.root), settings.root)
        self.ports, self.settings, self.console = ports, settings, console
        self.born = datetime.now(UTC)
        self.timeline = Timeline(console)
        self.sent = Sent()
        self.traffic = Traffic(ports.urls["server"], self.config.name)
        self.data = self.project.load_data()
        self.lives: list[dict[str, Any]] = []
        self.drift: dict[str, Any] = {}
        self.rollback_seconds: float | None = None
        self._flows: FlowRuns | None = None
        self._labels = count_labels(settings.traffic_path)  # of earlier lives

    @property
    def flows(self) -> FlowRuns:
        """The Prefect server, once it is up."""
        if self._flows is None:
            self._flows = FlowRuns(self.ports.urls["prefect"], self.console)
        return self._flows

    def _deployment(self, flow: str) -> str:
        return f"{flow}/{self.config.name}"

    def _report_life(self, pipeline: dict[str, Any]) -> None:
        self.lives.append(pipeline)
        for stage, seconds, figure in pipeline["stages"]:
            self.timeline.add(stage, seconds, figure)

    def first_version(self) -> None:
        """Run the lifecycle through its deployment."""
        self.timeline.act("a model is born: lifecycle through a Prefect deployment")
        run = self.flows.run(self._deployment("lifecycle"), {})
        self._report_life(self.flows.life_of(run, self.settings))

    def _send(self, name: str, data: Dataset) -> None:
        failed_before, started = self.sent.failed, time.monotonic()
        with self.console.status(f"{name}: {len(data)} requests") as status:
            self.traffic.send(data, self.sent, lambda n: status.update(f"{name}: {n} of {len(data)} requests"))
            failed = self.sent.failed - failed_before
            self._labels += len(data) - failed
            wait_captured(self.settings.traffic_path, self._labels)
        if failed:
            raise ServingError(f"{failed} of {len(data)} requests failed; the first: {self.sent.errors[0]}")
        p50 = self.sent.quantile(0.5)
        self.timeline.add(name, time.monotonic() - started, f"{len(data)} answered, 0 failed, p50 {p50:.1f} ms")

    def _monitor(self) -> dict[str, Any]:
        run = self.flows.run(self._deployment("monitor"), {"since": self.born.isoformat()})
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

    def live_traffic(self) -> None:
        """Send the real test rows with their labels, and monitor them."""
        self.timeline.act("it answers real rows, and their labels come")
        parts = assign_parts(self.data, self.config.data, self.config.task, self.config.train.seed)
        self._send("test rows", self.data.take(parts["test"]))
        self.drift["before"] = self._monitor()

    def harmless_drift(self) -> None:
        """Send rows of one side alone: they drift, their labels show no harm, and the policy holds."""
        self.timeline.act("other rows come than before, but the model knows them")
        self._send("other rows", one_side(self.data, min(SHIFTED_ROWS, len(self.data) // 3)))
        asked = datetime.now(UTC)
        found = self.drift["harmless"] = self._monitor()
        if found["conclusion"] != "drift":
            raise ServingError(f"other rows are {found['conclusion']}, not drift: {found['reason']}")
        run = self.flows.wait_started_by_event(self._deployment("retrain"), asked)
        verdict = ControlStore(self.settings.control_url).last(self.config.name, "verdict")
        if verdict is None or self.flows.children_of(run):
            raise ServingError("drift without harm has started a retraining")
        self.timeline.add("policy", self.flows.seconds(run), f"hold: {verdict.reason}")

    def the_world_changes(self) -> None:
        """Send shifted rows until their labels show harm; the automation starts retrain."""
        self.timeline.act("the world changes")
        module = sys.modules[type(self.project).__module__]
        rng = np.random.default_rng(self.config.train.seed)
        rows = rng.permutation(len(self.data))
        chunk = min(SHIFTED_ROWS, len(rows))
        for start in range(0, len(rows), chunk):
            base = self.data.take(rows[start : start + chunk])
            self._send("shifted rows", replace(base, inputs=module.shift(dict(base.inputs), rng)))
            asked = datetime.now(UTC)
            self.drift["after"] = self._monitor()
            if self.drift["after"]["conclusion"] == "harm":
                break
        else:
            raise ServingError(f"no harm was found in {len(rows)} shifted rows: {self.drift['after']['reason']}")
        self.timeline.act("the harm event has started retrain")
        run = self.flows.wait_started_by_event(self._deployment("retrain"), asked)
        self._report_life(self.flows.life_of(self.flows.child_of(run), self.settings))

    def roll_back(self) -> None:
        """Take the newest version back while requests keep coming."""
        name = self.config.name
        outcome = self.lives[-1]
        if outcome["role"] == "quarantined":  # an earlier run made this graph too, and took it back
            self._command("rollout", "release", name, str(outcome["version"]), "--reason", "make run shows it again")
        if outcome["role"] != "champion":
            self.timeline.act(f"version {outcome['version']} was held; promoted by hand to show a rollback")
            self._command("promote", name, str(outcome["version"]), "--reason", "make run shows a rollback")
        self.timeline.act("an operator takes it back")
        with self.traffic.probing(self.data.take(np.arange(min(len(self.data), 1000)))) as answers:
            time.sleep(0.3)
            bad = answers[-1][1]
            started = time.monotonic()
            self._command("rollback", name, "--reason", "make run: shown once")
            time.sleep(0.5)
        last_bad = max(at for at, version in answers if version == bad)
        now = answers[-1][1]
        if now == bad:
            raise ServingError(f"version {bad} still answers after the rollback")
        self.rollback_seconds = max(0.0, last_bad - started)
        self.timeline.add(
            "rollback", self.rollback_seconds, f"v{bad} -> v{now}, {len(answers)} answers meanwhile, 0 failed"
        )

    def _command(self, *words: str) -> None:
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

    def record(self) -> dict[str, Any]:
        """Return what goes into var/run.json."""
        champion = self.traffic.infer(infer_body({n: v[:1] for n, v in self.data.inputs.items()})).json()
        return {
            "project": self.config.name,
            "stages": [{"name": row.name, "seconds": round(row.seconds, 3)} for row in self.timeline.rows],
            "versions": [life["summary"] for life in self.lives],
            "champion": int(champion["model_version"]),
            "requests": {
                "sent": self.sent.sent,
                "failed": self.sent.failed,
                "p50_ms": round(self.sent.quantile(0.5), 3),
                "p99_ms": round(self.sent.quantile(0.99), 3),
            },
            "drift": self.drift,
            "rollback_seconds": self.rollback_seconds,
            "urls": self.ports.urls,
        }


def one_side(data: Dataset, count: int) -> Dataset:
    """Return the rows whose inputs are largest on the whole: they look unlike the rest, and are real all the same."""
    size = np.zeros(len(data))
    for values in data.inputs.values():
        flat = values.reshape(len(data), -1).astype(np.float64)
        size += ((flat - flat.mean(axis=0)) / (flat.std(axis=0) + 1e-9)).mean(axis=1)
    return data.take(np.sort(np.argsort(size)[-count:]))


def _write(settings: Settings, record: dict[str, Any]) -> Path:
    import json

    path = settings.home / "run.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    return temporary.replace(path)


def _live(name: str, keep: bool, console: Console) -> None:
    settings = local_settings()
    ports = choose_ports(take_free=True)
    life = Life(name, ports, settings, console)
    if not hasattr(sys.modules[type(life.project).__module__], "shift"):
        raise ConfigError(f"{life.config.project.partition(':')[0]} needs shift(inputs, rng) for `make run`")
    with running_stack(ports, settings, console), life.traffic:
        life.timeline.add("start", life.timeline.elapsed(), "Prefect, MLflow, model server, worker")
        life.first_version()
        life.live_traffic()
        life.harmless_drift()
        life.the_world_changes()
        life.roll_back()
        path = _write(settings, life.record())
        shown = path.relative_to(settings.root) if path.is_relative_to(settings.root) else path
        life.timeline.finish([c for one in life.lives for c in one["candidates"]], ports.urls, shown)
        if keep:
            console.print("Everything is still running (KEEP=1): Ctrl-C stops it.")
            signal.pause()


@click.command()
@click.argument("project", default="digits")
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
def main(project: str, keep: bool) -> None:
    """Live one model's whole life on real data and print its timeline."""
    console = Console(width=min(80, Console().width), highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _live(project, keep, console)
    except HomeostatError as error:
        console.print(f"[bold red]failed[/]: {error}", markup=True, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        sys.exit(130)


if __name__ == "__main__":
    main()
