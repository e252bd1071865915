"""Requests per second and p99 of our server (validation, capture and metrics on) beside FastAPI, MLServer and MLflow.

Every server has core 0, the load has core 1; each repetition visits every server in turn, so
that what else the machine does falls on all of them. `python -m benchmarks.serving --help`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.serving_load import Load, Request, load, loader
from benchmarks.serving_models import WORKLOADS, Workload
from benchmarks.serving_rivals import SERVERS, Server, Skipped, running

WARM_SECONDS = 1


def _cores() -> tuple[int | None, int | None]:
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


def _measure(
    folder: Path, workload: Workload, connections: list[int], repetitions: int, seconds: int, only: list[str]
) -> tuple[dict[str, dict[int, list[Load]]], dict[str, str]]:
    """Start every server of a workload, then visit them in turn; idle servers cost the measured one nothing."""
    server_core, load_core = _cores()
    found: dict[str, dict[int, list[Load]]] = {}
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        started: list[tuple[Server, Request]] = []
        for server in SERVERS:
            if only and server.name not in only:
                continue
            print(f"  starting {server.name}", flush=True)
            try:
                request, _ = stack.enter_context(running(folder, server, workload, server_core))
            except Skipped as why:
                skipped[server.name] = str(why)
                print(f"  {server.name} is skipped: {why}", flush=True)
                continue
            load(request, 8, WARM_SECONDS, load_core)
            started.append((server, request))
            found[server.name] = {number: [] for number in connections}
        for repetition in range(repetitions):
            for number in connections:
                # the order turns with each repetition
                for server, request in started[repetition % len(started) :] + started[: repetition % len(started)]:
                    found[server.name][number].append(load(request, number, seconds, load_core))
    return found, skipped


def _summary(loads: list[Load]) -> dict[str, Any]:
    rates = [one.per_second for one in loads]
    return {
        "per_second": statistics.median(rates),
        "per_second_min": min(rates),
        "per_second_max": max(rates),
        "p50_ms": statistics.median(one.p50_ms for one in loads),
        "p99_ms": statistics.median(one.p99_ms for one in loads),
        "failed": sum(one.failed for one in loads),
        "repetitions": [asdict(one) for one in loads],
    }


def _print(workload: Workload, table: dict[str, dict[int, dict[str, Any]]]) -> None:
    print(f"\n{workload.title}")
    print(f"{'server':18}{'conn.':>6}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}{'ours is':>9}")
    for name, by_connections in table.items():
        for number, one in by_connections.items():
            ours = table.get("homeostat", {}).get(number)
            ratio = f"{ours['per_second'] / one['per_second']:8.1f}x" if ours and one["per_second"] else "        -"
            print(
                f"{name:18}{number:>6}{one['per_second']:>9.0f}{one['p50_ms']:>9.2f}{one['p99_ms']:>9.2f}"
                f"{one['failed']:>8}{ratio}",
                flush=True,
            )


def main() -> None:
    """Measure, print, and write var/bench/serving.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--only", nargs="+", default=[], choices=[server.name for server in SERVERS])
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(
        f"load by {loader()}; cores {_cores()}; {given.repetitions} x {given.seconds} s, median; loopback", flush=True
    )
    result: dict[str, Any] = {"loader": loader(), "cores": _cores(), "load_average": os.getloadavg(), "workloads": {}}
    for workload in WORKLOADS:
        found, skipped = _measure(folder, workload, given.connections, given.repetitions, given.seconds, given.only)
        table = {name: {number: _summary(loads) for number, loads in rows.items()} for name, rows in found.items()}
        _print(workload, table)
        result["workloads"][workload.name] = {"title": workload.title, "servers": table, "skipped": skipped}
    path = folder / "serving.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1))
    temporary.replace(path)
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
