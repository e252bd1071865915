"""Requests per second and p99 of our server, everything on, beside others that serve the same graph.

Each server is alone on core 0, the load has core 1; each repetition visits every server in turn,
so that what else the machine does falls on all of them. `session.run` is the graph alone, without
any server. A rival that cannot be installed or started is printed as such.
`python -m benchmarks.serving --help`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rollout_server import cores
from benchmarks.serving_load import Load, load, loaders
from benchmarks.serving_models import WORKLOADS, Workload
from benchmarks.serving_rivals import RIVALS, SERVERS
from benchmarks.serving_server import Server, Skipped, running

WARM_SECONDS = 1
BARE = "session.run"
OURS = {"": "homeostat", "binary": "homeostat binary", "grpc": "homeostat grpc"}
"""How a rival is asked -> who is beside it."""


@dataclass(frozen=True)
class Cell:
    """One server under one number of connections for some seconds."""

    load: Load
    cpu_us: float
    """Of all the server's processes, a request."""


def run_bare(folder: Path, workload: Workload, seconds: int, core: int | None) -> Cell:
    """The graph alone in a loop, in a process of its own."""
    graph, rows = folder / f"{workload.name}.onnx", folder / f"{workload.name}.npy"
    graph.write_bytes(workload.onnx())
    np.save(rows, workload.rows())
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    command = [sys.executable, str(RIVALS / "session_run.py"), str(graph), str(rows), str(seconds)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=seconds + 60, preexec_fn=pin
    ).stdout
    found = json.loads(done)
    return Cell(Load(found["per_second"], *found["ms"], failed=0), found["cpu_us"])


def visit(
    folder: Path, server: Server, workload: Workload, connections: list[int], seconds: int, pinned: bool
) -> dict[int, Cell]:
    """Start a server, load it with each number of connections, and end it; raises Skipped."""
    server_core, load_core = cores(pinned=pinned)
    cells = {}
    with running(folder, server, workload, server_core) as process:
        load(process.request, 8, WARM_SECONDS, load_core)
        for number in connections:
            before = process.cpu_seconds()
            one = load(process.request, number, seconds, load_core)
            spent = process.cpu_seconds() - before
            cells[number] = Cell(one, spent / max(1.0, one.per_second * seconds) * 1e6)
    return cells


def measure(
    folder: Path,
    workload: Workload,
    servers: list[Server],
    connections: list[int],
    repetitions: int,
    seconds: int,
    *,
    bare: bool = True,
    pinned: bool = True,
) -> tuple[dict[str, dict[int, list[Cell]]], dict[str, str]]:
    """Visit every server in turn, again and again; return its cells by connections, and why others were skipped."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[int, list[Cell]]] = {}
    skipped: dict[str, str] = {}
    for repetition in range(repetitions):
        if bare:
            cell = run_bare(folder, workload, seconds, cores(pinned=pinned)[0])
            found.setdefault(BARE, {}).setdefault(0, []).append(cell)
        turn = repetition % max(1, len(servers))  # the order turns with each repetition
        for server in servers[turn:] + servers[:turn]:
            if server.name in skipped:
                continue
            try:
                cells = visit(folder, server, workload, connections, seconds, pinned)
            except Skipped as why:
                skipped[server.name] = str(why)
                print(f"  {server.name} is SKIPPED: {why}", flush=True)
                continue
            for number, cell in cells.items():
                found.setdefault(server.name, {}).setdefault(number, []).append(cell)
            rates = ", ".join(f"{cell.load.per_second:.0f}" for cell in cells.values())
            print(f"  {workload.name} {repetition + 1}/{repetitions} {server.name}: {rates} requests/s", flush=True)
    order = [BARE, *(server.name for server in servers)]
    return {name: found[name] for name in order if name in found}, skipped


def summary(cells: list[Cell]) -> dict[str, Any]:
    """Medians over the repetitions."""
    rates = [one.load.per_second for one in cells]
    return {
        "per_second": statistics.median(rates),
        "per_second_min": min(rates),
        "per_second_max": max(rates),
        "p50_ms": statistics.median(one.load.p50_ms for one in cells),
        "p99_ms": statistics.median(one.load.p99_ms for one in cells),
        "cpu_us": statistics.median(one.cpu_us for one in cells),
        "failed": sum(one.load.failed for one in cells),
        "repetitions": len(cells),
    }


def show(title: str, table: dict[str, dict[int, dict[str, Any]]], skipped: dict[str, str]) -> None:
    """Print a workload's table; the ratios are to ours as it is asked the same way: JSON, binary or gRPC."""
    print(f"\n{title}")
    print(
        f"{'server':18}{'conn.':>6}{'req/s':>9}{'min':>8}{'max':>8}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}"
        f"{'failed':>8}{'ours is':>9}"
    )
    for name, by_connections in table.items():
        ours = table.get(OURS.get(name.partition(" ")[2], OURS[""]), {})
        for number, one in by_connections.items():
            beside = ours.get(number)
            ratio = f"{beside['per_second'] / one['per_second']:8.1f}x" if beside and one["per_second"] else "        -"
            print(
                f"{name:18}{number or '-':>6}{one['per_second']:>9.0f}{one['per_second_min']:>8.0f}"
                f"{one['per_second_max']:>8.0f}{one['p50_ms']:>9.2f}{one['p99_ms']:>9.2f}{one['cpu_us']:>9.0f}"
                f"{one['failed']:>8}{ratio}"
            )
    for name, why in skipped.items():
        print(f"{name:18} SKIPPED: {why}")
    sys.stdout.flush()


def main() -> None:
    """Measure, print, and write serving.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each cell (default 3)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    names = [BARE, *(server.name for server in SERVERS)]
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="SERVER", help=", ".join(names))
    parser.add_argument("--workloads", nargs="+", default=[], choices=[one.name for one in WORKLOADS])
    parser.add_argument("--quick", action="store_true", help="once, one second, 8 connections")
    parser.add_argument("--unpinned", action="store_true", help="server and load on any core, not on one each")
    parser.add_argument("--folder", type=Path, default=Path("var/bench"), help="default var/bench")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server of the moment is ended too
    if given.quick:
        given.repetitions, given.seconds, given.connections = 1, 1, [8]
    pinned = not given.unpinned
    print(
        f"load by {loaders()}; cores {cores(pinned=pinned)}; {given.repetitions} x {given.seconds} s, medians; "
        f"loopback; load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    result: dict[str, Any] = {"cores": cores(pinned=pinned), "load_average": os.getloadavg(), "workloads": {}}
    servers = [server for server in SERVERS if not given.only or server.name in given.only]
    bare = not given.only or BARE in given.only
    path = given.folder / "serving.json"
    for workload in WORKLOADS:
        if given.workloads and workload.name not in given.workloads:
            continue
        found, skipped = measure(
            given.folder,
            workload,
            servers,
            given.connections,
            given.repetitions,
            given.seconds,
            bare=bare,
            pinned=pinned,
        )
        table = {
            name: {number: summary(cells) for number, cells in by_connections.items()}
            for name, by_connections in found.items()
        }
        show(workload.title, table, skipped)
        result["workloads"][workload.name] = {"title": workload.title, "servers": table, "skipped": skipped}
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
