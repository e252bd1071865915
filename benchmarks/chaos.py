"""Chaos: a steady load of valid requests on a real `homeostat serve` to which a seeded fault is done every few seconds.

The load keeps its own ledger: which request it sent when, what was answered, and at which try. A
request whose connection ended without an answer is sent once more, as clients do; both shares are
told. At the end what was captured is held against the ledger. `python -m benchmarks.chaos --help`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos_clients import MAX_CONNECTIONS
from benchmarks.chaos_faults import FAULTS, LOSES
from benchmarks.chaos_scene import Scene
from benchmarks.rollout_models import MODEL, WIDTH, bundle, dividing, make_champion
from benchmarks.rollout_server import Serving, cores, home_in, serving, wait
from benchmarks.serving_rivals import free_port
from benchmarks.steady_load import Plan, Records, SteadyLoad, milliseconds, rows_as_bodies
from benchmarks.swaps import Swap
from homeostat.monitoring.snapshot import Wanted, open_snapshot

WORKERS = 2
NAME = "chaos"
WHOLE_SECONDS = 60.0
"""What takes longer to be whole again counts as never."""
RISK_SECONDS = 2.0
"""An answer that was given so long before or after a fault is none of its losses."""
NOTHING = "no fault at all"
CALM_SECONDS = 2.0
"""Before the first fault."""
PAIRS = 0.25
"""How often two faults are done, the second one before the first is mended."""


@dataclass(frozen=True)
class Done:
    """A fault, or two at once, on the clock that all processes share."""

    kinds: tuple[str, ...]
    begun: float
    over: float
    """What was done is undone; from here on the server has to mend itself."""
    whole: float
    """All processes are back and have what the rollout row names; infinite when they were not in time."""


def deal(seed: int) -> Any:
    """Yield kinds of faults: all of them in a new order again and again."""
    order = random.Random(seed)
    while True:
        kinds = sorted(FAULTS)
        order.shuffle(kinds)
        yield from kinds


def do_faults(scene: Scene, seed: int, seconds: float, every: float) -> list[Done]:
    """Do a fault every so many seconds, and wait until each is mended."""
    done: list[Done] = []
    start, kinds = time.monotonic(), deal(seed)
    for number in range(max(1, int(seconds / every))):
        time.sleep(max(0.0, start + number * every - time.monotonic()))
        chosen = (next(kinds), next(kinds)) if scene.random.random() < PAIRS else (next(kinds),)
        begun = time.monotonic()
        for kind in chosen:
            try:
                FAULTS[kind](scene)
            except TimeoutError as error:
                scene.unexpected.append(f"{kind}: {error}")
        over = time.monotonic()
        try:
            whole = wait(lambda: scene.is_whole(WORKERS), "whole", WHOLE_SECONDS)
        except TimeoutError:
            whole = float("inf")
        done.append(Done(chosen, begun, over, whole))
        print(
            f"  {number + 1:4} {begun - start:7.1f} s  {', '.join(chosen)}: whole after {whole - over:.2f} s",
            flush=True,
        )
    time.sleep(max(0.0, start + seconds - time.monotonic()))
    return done


def count_wrong(records: Records, swaps: list[Swap]) -> dict[str, int]:
    """Answers that are not their version's, and of versions that were not live at any time of the request."""
    good = records[records["status"] == 200]
    torn = good["value"] != good["version"] * WIDTH
    allowed = np.zeros(len(good), bool)
    spans = [Swap(1, 0, 0, 0, 0), *swaps]
    for one, after in zip(spans, [*spans[1:], None], strict=True):
        until = after.confirmed if after else np.inf
        allowed |= (good["version"] == one.version) & (good["received"] >= one.begun) & (good["due"] <= until)
    return {"torn": int(torn.sum()), "of a version that was not live": int((~allowed & ~torn).sum())}


def captured_ids(traffic: Path) -> Counter[str]:
    """How often each id was captured, in SQLite and Parquet."""
    with open_snapshot(traffic) as snapshot:
        return Counter(entry.request_id for entry in snapshot.index(Wanted(MODEL, 0)))


def count_captured(records: Records, captured: Counter[str], done: list[Done]) -> dict[str, Any]:
    """Hold what was captured against the ledger."""
    good = records[records["status"] == 200]
    lost = [one for one in good if f"{NAME}-{one['place']}" not in captured]
    ours = [key for key in captured if key.startswith(f"{NAME}-")]
    by_kind: Counter[str] = Counter()
    for one in lost:
        near = [two for two in done if two.begun - RISK_SECONDS < one["received"] < two.over + RISK_SECONDS]
        near.sort(key=lambda two: LOSES.isdisjoint(two.kinds))
        by_kind["; ".join(near[0].kinds) if near else NOTHING] += 1
    return {
        "answered": len(good),
        "captured": len(ours),
        "lost": len(lost),
        "lost_by_fault": dict(by_kind),
        "lost_elsewhere": sum(count for kinds, count in by_kind.items() if LOSES.isdisjoint(kinds.split("; "))),
        "double": sum(captured[key] > 1 for key in ours),
        "unanswered": len(ours) - (len(good) - len(lost)),
    }


def summary(records: Records, scene: Scene, done: list[Done], captured: Counter[str]) -> dict[str, Any]:
    """Everything that is printed."""
    answered = records["status"] == 200
    first = answered & (records["tries"] == 1)
    faults = {}
    ends = [*(one.begun for one in done[1:]), np.inf]
    for kind in sorted({kind for one in done for kind in one.kinds}):
        mine = [(one, end) for one, end in zip(done, ends, strict=True) if kind in one.kinds]
        inside = np.zeros(len(records), bool)
        for one, end in mine:
            inside |= (records["received"] >= one.begun) & (records["due"] < end)
        alone = [one for one, _ in mine if len(one.kinds) == 1] or [one for one, _ in mine]
        took = [one.whole - one.over for one in alone]
        faults[kind] = {
            "times": len(mine),
            "again": int((inside & (records["tries"] > 1)).sum()),
            "not_answered": int((inside & ~answered).sum()),
            "slowest_seconds": float((records["received"] - records["due"])[inside].max(initial=0)),
            "whole_seconds": {"p50": float(np.median(took)), "max": float(max(took))},
        }
    return {
        "requests": len(records),
        "answered_share": float(answered.mean()),
        "first_try_share": float(first.mean()),
        "statuses": {str(status): int(count) for status, count in Counter(records["status"].tolist()).items()},
        "wrong": count_wrong(records, scene.swaps),
        "unexpected": scene.unexpected,
        "milliseconds": dict(zip(("p50", "p99", "max"), milliseconds(records[answered], 0.5, 0.99, 1), strict=True)),
        "captured": count_captured(records, captured, done),
        "faults": faults,
    }


def server_counts(server: Serving) -> dict[str, int]:
    """What the server itself counts of its capture."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r"^homeostat_(captured|capture_\w+|dropped)_total (\S+)$", text, re.M)
    return {name: int(float(value)) for name, value in found}


def measure(
    folder: Path, seconds: float, every: float, rate: float, connections: int, seed: int, *, pinned: bool = False
) -> dict[str, Any]:
    """Do faults for so long under load, and return the summary."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    server_core, load_core = cores(pinned=pinned)
    with home_in(folder) as home:
        settings = {
            "HOMEOSTAT_WORKERS": str(WORKERS),
            "HOMEOSTAT_GRPC_PORT": str(free_port()),
            "HOMEOSTAT_MAX_CONNECTIONS": str(MAX_CONNECTIONS),
            "HOMEOSTAT_CONTROL_URL": f"sqlite:///{home}/control/control.db",
        }
        refs = bundle(home, 1, dividing(1)), bundle(home, 2, dividing(2))
        store = Serving(home, settings=settings).store
        make_champion(store, refs[0])
        store.register_bundle(refs[1])
        with serving(home, server_core, settings) as server:
            scene = Scene(server, random.Random(seed))
            wait(lambda: scene.is_whole(WORKERS), "whole")
            plan = Plan(
                server.port, MODEL, rows_as_bodies(np.ones((1, WIDTH))), rate, connections,
                core=load_core, name=NAME, retry=True,
            )  # fmt: skip
            with SteadyLoad(plan) as load:
                time.sleep(1 + CALM_SECONDS)
                done = do_faults(scene, seed, seconds, every)
            counts = server_counts(server)
        captured = captured_ids(home / "traffic.db")
        return {"server": counts, **summary(load.records, scene, done, captured)}


def show(found: dict[str, Any]) -> None:
    """Print the summary."""
    kept, wrong, slow = found["captured"], found["wrong"], found["milliseconds"]
    print(
        f"{found['requests']} valid requests: {found['first_try_share']:.4%} answered at once, "
        f"{found['answered_share']:.4%} with one retry (goal 99.9 %); statuses {found['statuses']} (0: no answer)\n"
        f"wrong answers: {wrong}; to attacks: {found['unexpected'] or 'none'}\n"
        f"p50 {slow['p50']:.1f} ms, p99 {slow['p99']:.1f} ms, max {slow['max']:.0f} ms\n"
        f"captured {kept['captured']} for {kept['answered']} answered: {kept['lost']} lost, {kept['double']} double, "
        f"{kept['unanswered']} whose answer the client did not get\n"
        f"lost by fault: {kept['lost_by_fault']}; the server counted {found['server']}"
    )
    print(f"{'fault':36}{'times':>6}{'again':>7}{'not':>5}{'slowest s':>11}{'whole s, p50':>14}{'max':>7}")
    for kind, one in found["faults"].items():
        whole = one["whole_seconds"]
        print(
            f"{kind:36}{one['times']:>6}{one['again']:>7}{one['not_answered']:>5}{one['slowest_seconds']:>11.2f}"
            f"{whole['p50']:>14.2f}{whole['max']:>7.2f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--every", type=float, default=20, help="seconds between two faults (default 20)")
    parser.add_argument("--rate", type=float, default=100, help="requests a second (default 100)")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pinned", action="store_true", help="server and load a core each, not any")
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--json", type=Path, help="also write the result here")
    given = parser.parse_args()
    print(
        f"{given.seconds:g} s, a fault every {given.every:g} s, seed {given.seed}, {given.rate:g} requests a second on "
        f"{given.connections} connections, {WORKERS} workers, loopback, load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    found = measure(
        given.folder, given.seconds, given.every, given.rate, given.connections, given.seed, pinned=given.pinned
    )
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
