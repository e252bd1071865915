"""Hot swaps under a steady load on a real `homeostat serve`: failed, lost and wrong answers, and p99 beside the swaps.

Each swap is a new version: announced as challenger, preflighted and loaded by the server, then
promoted. Version v answers v times the sum of its row, so that each answer says which version
gave it. `python -m benchmarks.swaps --help`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rollout_models import MODEL, SAID, WIDTH, bundle, make_champion, summing
from benchmarks.rollout_server import Serving, cores, home_in, serving, wait
from benchmarks.steady_load import LOST, Plan, Records, SteadyLoad, milliseconds, rows_as_bodies
from homeostat.records import BundleRef

SETTLE_SECONDS = 0.25
"""Behind the moment at which the server says that the new version is live, this still is the swap's."""


@dataclass(frozen=True)
class Swap:
    """When what happened, on the clock that all processes share."""

    version: int
    announced: float
    loaded: float
    begun: float
    """The promotion."""
    confirmed: float
    """The server says that it is live."""


def swap(server: Serving, ref: BundleRef) -> Swap:
    """Announce, load and promote a version."""
    store = server.store
    announced = time.monotonic()
    row = store.set_challenger(MODEL, ref, expected_generation=store.generation(MODEL), **SAID)
    loaded = wait(lambda: server.is_loaded(MODEL, ref.version), f"v{ref.version} loaded")
    begun = time.monotonic()
    store.promote(MODEL, ref.version, expected_generation=row.generation, **SAID)
    confirmed = wait(lambda: server.live(MODEL) == str(ref.version), f"v{ref.version} live")
    return Swap(ref.version, announced, loaded, begun, confirmed)


def count_wrong(records: Records, swaps: list[Swap]) -> dict[str, int]:
    """Answers that are not their version's, of a version before its promotion, or of one that was replaced already."""
    good = records[records["status"] == 200]
    torn = good["value"] != good["version"] * WIDTH
    begun = np.zeros(int(good["version"].max(initial=0)) + 1)
    newest = np.ones(len(good))
    for one in swaps:
        if one.version < len(begun):
            begun[one.version] = one.begun
        newest[good["due"] > one.confirmed] = one.version
    early, late = good["received"] < begun[good["version"]], good["version"] < newest
    return {"torn": int(torn.sum()), "early": int(early.sum()), "late": int(late.sum())}


def within(records: Records, spans: list[tuple[float, float]]) -> np.ndarray:
    """Whether each request was under way in one of the spans."""
    found = np.zeros(len(records), bool)
    for start, end in spans:
        found |= (records["received"] >= start) & (records["due"] <= end)
    return found


def summary(records: Records, swaps: list[Swap]) -> dict[str, Any]:
    """Everything that is printed."""
    answered = records["status"] != LOST
    loading = within(records, [(one.announced, one.loaded) for one in swaps])
    moving = within(records, [(one.begun, one.confirmed + SETTLE_SECONDS) for one in swaps])
    inside = loading | moving
    firsts = [records["received"][records["version"] == one.version].min(initial=np.inf) for one in swaps]
    parts = {"outside": ~inside, "inside": inside, "while loading": loading & ~moving, "at the swap": moving}
    return {
        "swaps": len(swaps),
        "requests": len(records),
        "failed": int((records["status"][answered] != 200).sum()),
        "lost": int((~answered).sum()),
        "wrong": count_wrong(records, swaps),
        "milliseconds": {
            name: {
                "requests": int(where.sum()),
                **dict(zip(("p50", "p99", "max"), milliseconds(records[where & answered], 0.5, 0.99, 1), strict=True)),
            }
            for name, where in parts.items()
        },
        "loading_seconds": _quantiles([one.loaded - one.announced for one in swaps]),
        "first_answer_seconds": _quantiles([first - one.begun for first, one in zip(firsts, swaps, strict=True)]),
    }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    return dict(zip(("p50", "p99", "max"), map(float, np.quantile(seconds, (0.5, 0.99, 1))), strict=True))


def measure(
    folder: Path, swaps: int, rate: float, connections: int, pause: float, *, pinned: bool = True
) -> dict[str, Any]:
    """Swap so many times under load, and return the summary."""
    server_core, load_core = cores(pinned=pinned)
    with home_in(folder) as home:
        refs = [bundle(home, version, summing(version)) for version in range(1, swaps + 2)]
        make_champion(Serving(home).store, refs[0])
        done: list[Swap] = []
        with serving(home, server_core) as server:
            wait(lambda: server.live(MODEL) == "1", "v1 live")
            bodies = rows_as_bodies(np.ones((1, WIDTH)))
            plan = Plan(server.port, MODEL, bodies, rate, connections, core=load_core)
            with SteadyLoad(plan) as load:
                time.sleep(1 + pause)
                for ref in refs[1:]:
                    done.append(swap(server, ref))
                    time.sleep(pause + SETTLE_SECONDS)
                    if len(done) % 10 == 0:
                        print(f"  {len(done)} of {swaps} swaps", flush=True)
        warm = load.records["due"] > load.records["due"].min() + 1
        return summary(load.records[warm], done)


def show(found: dict[str, Any]) -> None:
    """Print the summary."""
    wrong = found["wrong"]
    print(
        f"{found['swaps']} swaps, {found['requests']} requests: {found['failed']} failed, {found['lost']} lost, "
        f"{sum(wrong.values())} wrong (torn {wrong['torn']}, early {wrong['early']}, late {wrong['late']}); goal 0"
    )
    print(f"{'':16}{'requests':>10}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'p99 is':>9}")
    base = found["milliseconds"]["outside"]["p99"]
    for name, one in found["milliseconds"].items():
        ratio = f"{one['p99'] / base:8.1f}x"
        print(f"{name:16}{one['requests']:>10}{one['p50']:>9.2f}{one['p99']:>9.2f}{one['max']:>9.1f}{ratio}")
    for name, title in (
        ("loading_seconds", "preflight and load"),
        ("first_answer_seconds", "promotion to first answer"),
    ):
        one = found[name]
        print(f"{title}: p50 {one['p50']:.2f} s, p99 {one['p99']:.2f} s, max {one['max']:.2f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=500, help="requests a second (default 500)")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two swaps (default 0.5)")
    parser.add_argument("--unpinned", action="store_true", help="server and load on any core, not on one each")
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--json", type=Path, help="also write the result here")
    given = parser.parse_args()
    print(
        f"{given.swaps} swaps, {given.rate:g} requests a second on {given.connections} connections, loopback, "
        f"{'any core' if given.unpinned else 'server and load a core each'}, load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    found = measure(given.folder, given.swaps, given.rate, given.connections, given.pause, pinned=not given.unpinned)
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
