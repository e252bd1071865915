"""What Prefect and MLflow add: the lifecycle through its deployment against a bare script that computes the same."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from deployments.flowruns import FlowRuns
from deployments.life import running_stack
from deployments.places import choose_ports, local_settings
from homeostat.settings import load_settings


@click.command()
@click.option("--project", default="breast_cancer", show_default=True)
@click.option("--repetitions", default=5, show_default=True)
def main(project: str, repetitions: int) -> None:
    """Time both by turns, servers up, and print seconds and the pairwise differences."""
    console = Console(width=80, highlight=False)
    root = local_settings().root
    home = root / "var" / "bench" / f"overhead-{os.getpid()}"
    settings = load_settings(root=root, home=home, mlflow_url=f"sqlite:///{home}/mlflow.db")
    ports = choose_ports(take_free=True)
    flow: list[float] = []
    bare: list[float] = []
    with running_stack(ports, settings, console) as shared:
        flows = FlowRuns(ports.urls["prefect"], console)
        flows.run(f"lifecycle/{project}", {})  # warm-up: the champion that both compare with
        for turn in range(repetitions):
            started = time.monotonic()
            flows.run(f"lifecycle/{project}", {})
            flow.append(time.monotonic() - started)
            started = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "benchmarks.bare", project, str(1000 + turn)],
                env=shared,
                cwd=root,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            bare.append(time.monotonic() - started)
            console.print(f"  turn {turn + 1}: flow {flow[-1]:.1f} s, bare {bare[-1]:.1f} s")
    added = [a - b for a, b in zip(flow, bare, strict=True)]
    record = {"project": project, "flow_seconds": flow, "bare_seconds": bare, "added_seconds": added}
    path = Path(root / "var" / "bench" / "overhead.json")
    path.write_text(json.dumps(record, indent=1) + "\n")
    median = statistics.median
    console.print(
        f"flow {median(flow):.1f} s, bare {median(bare):.1f} s: {median(flow) / median(bare):.2f}x; "
        f"added {median(added):.1f} s (median of {repetitions}, from {min(added):.1f} to {max(added):.1f}; aim 5 s)"
    )


if __name__ == "__main__":
    main()
