"""`make run`: one model's whole life on real data, through deployments and a worker (the acts: story.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console

from deployments.page import make_page
from deployments.places import Ports, choose_ports, environment, local_settings
from deployments.stack import wait_ready
from deployments.story import Story
from homeostat.errors import HomeostatError, ServingError
from homeostat.settings import Settings


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


def _write(path: Path, text: str) -> Path:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    return temporary.replace(path)


def _live(name: str, keep: bool, console: Console) -> None:
    settings = local_settings()
    ports = choose_ports(take_free=True)
    story = Story(name, ports, settings, console)
    with running_stack(ports, settings, console), story.traffic:
        story.timeline.add("start", story.timeline.elapsed(), "Prefect, MLflow, model server, worker")
        story.tell()
        told = story.record()
        record = _write(settings.home / "run.json", json.dumps(told, indent=1) + "\n")
        unit = "share of wrong answers" if story.config.task == "classification" else "mean absolute error"
        text = make_page(told, story.timeline.rows, story.sent.answers, story.events(), unit)
        page = _write(settings.home / "run.html", text)
        story.timeline.finish([c for one in story.lives for c in one["candidates"]], ports.urls)
        for what, path in {"record": record, "page": page}.items():
            shown = path.relative_to(settings.root) if path.is_relative_to(settings.root) else path
            console.print(f"  {what:8} {shown}", soft_wrap=True)
        console.print(f"\n[bold]lived in {story.timeline.elapsed():.0f} s[/]; `make up` shows its runs in both UIs")
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
