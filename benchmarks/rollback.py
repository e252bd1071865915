"""Seconds from a rollback to the last answer by the bad version, under load, with MLflow and Prefect down.

On a real `homeostat serve`, by turns with `homeostat rollback` as an operator types it, from the
start of its process, and with the transaction in the control store alone, as a flow makes it: the
difference is what the command's start costs. `python -m benchmarks.rollback --help`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rollout_models import MODEL, SAID, WIDTH, bundle, make_champion, summing
from benchmarks.rollout_server import Serving, cores, home_in, serving, wait
from benchmarks.steady_load import LOST, Plan, Records, SteadyLoad, rows_as_bodies

GOOD, BAD = 1, 2
WAYS = ("command", "transaction")
COMMAND_SECONDS = 60


@dataclass(frozen=True)
class Rollback:
    """When it was begun, was done, and might at the latest still be answered by the bad version."""

    way: str
    begun: float
    done: float
    """The command has ended, or the transaction is written."""
    until: float


def promote_bad(server: Serving) -> None:
    """Make the bad version champion, again, and wait until it answers."""
    store = server.store
    store.release(MODEL, BAD, **SAID)
    store.promote(MODEL, BAD, expected_generation=store.generation(MODEL), **SAID)
    wait(lambda: server.live(MODEL) == str(BAD), "the bad version live")


def roll_back(server: Serving, way: str, rng: random.Random) -> Rollback:
    """Take the bad version back, at no particular moment of the server's own rhythm."""
    time.sleep(rng.uniform(0.2, 0.4))
    store = server.store
    generation = store.generation(MODEL)
    begun = time.monotonic()
    if way == "transaction":
        store.rollback(MODEL, expected_generation=generation, **SAID)
    else:
        command = [sys.executable, "-m", "homeostat.cli", "rollback", MODEL, "--reason", "bench"]
        subprocess.run(
            command, env=server.environment, cwd=server.home, capture_output=True, check=True, timeout=COMMAND_SECONDS
        )
    done = time.monotonic()
    wait(lambda: server.live(MODEL) == str(GOOD), "the good version live")
    time.sleep(0.1)
    return Rollback(way, begun, done, time.monotonic())


def last_bad(records: Records, one: Rollback) -> float:
    """Seconds from the rollback to the last answer by the bad version."""
    received = records["received"]
    bad = received[(records["version"] == BAD) & (received >= one.begun) & (received <= one.until)]
    return float(bad.max() - one.begun) if len(bad) else 0.0


def _quantiles(seconds: list[float]) -> dict[str, Any]:
    p50, p99, most = map(float, np.quantile(seconds, (0.5, 0.99, 1)))
    return {"repetitions": len(seconds), "p50": p50, "p99": p99, "max": most, "seconds": seconds}


def measure(
    folder: Path, repetitions: int, rate: float, connections: int, seed: int, *, pinned: bool = True
) -> dict[str, Any]:
    """Roll back so many times in each way under load; return the seconds of each, and what failed."""
    server_core, load_core = cores(pinned=pinned)
    rng = random.Random(seed)
    with home_in(folder) as home:
        store = Serving(home).store
        make_champion(store, bundle(home, GOOD, summing(GOOD)))
        store.register_bundle(bundle(home, BAD, summing(BAD)))
        done: list[Rollback] = []
        with serving(home, server_core) as server:
            plan = Plan(server.port, MODEL, rows_as_bodies(np.ones((1, WIDTH))), rate, connections, core=load_core)
            with SteadyLoad(plan) as load:
                for turn in range(repetitions):
                    for way in WAYS[:: 1 if turn % 2 else -1]:
                        promote_bad(server)
                        done.append(roll_back(server, way, rng))
                    if (turn + 1) % 10 == 0:
                        print(f"  {turn + 1} of {repetitions} times in each way", flush=True)
        records = load.records
    answered = records["status"] != LOST
    return {
        "requests": len(records),
        "failed": int((records["status"][answered] != 200).sum()),
        "lost": int((~answered).sum()),
        "last_bad_answer": {way: _quantiles([last_bad(records, r) for r in done if r.way == way]) for way in WAYS},
        "done": {way: _quantiles([r.done - r.begun for r in done if r.way == way]) for way in WAYS},
    }


def show(found: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"{found['requests']} requests, {found['failed']} failed, {found['lost']} lost")
    print(f"{'seconds':38}{'n':>5}{'p50':>8}{'p99':>8}{'max':>8}{'p50 is':>8}")
    base = found["last_bad_answer"]["transaction"]["p50"]
    for name, title in (("last_bad_answer", "to the last bad answer"), ("done", "to its own end")):
        for way in WAYS:
            one = found[name][way]
            ratio = f"{one['p50'] / base:7.1f}x" if base else "      -"
            print(
                f"{way + ', ' + title:38}{one['repetitions']:>5}"
                f"{one['p50']:>8.3f}{one['p99']:>8.3f}{one['max']:>8.3f}{ratio}"
            )
    print("goal: p99 of the command to the last bad answer under 1 s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=100, help="of each way (default 100)")
    parser.add_argument("--rate", type=float, default=500, help="requests a second (default 500)")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the pauses between rollbacks (default 0)")
    parser.add_argument("--unpinned", action="store_true", help="server and load on any core, not on one each")
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--json", type=Path, help="also write the result here")
    given = parser.parse_args()
    print(
        f"{given.repetitions} rollbacks in each way, {given.rate:g} requests a second on {given.connections} "
        f"connections, loopback, MLflow and Prefect down, load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    found = measure(
        given.folder, given.repetitions, given.rate, given.connections, given.seed, pinned=not given.unpinned
    )
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
