"""Bad challengers at a 5 % canary: seconds and bad answers until each is out; and how many identical ones are stopped.

Twice. **Simulated**: many seeded runs at a simulated clock, in which the server's own trial, guards,
controller and control store judge requests that nobody sent (benchmarks/rollout_simulation.py says
what is real there). **Real**: a few runs with `homeostat serve`, a steady load and its labels.
The server's settings are the defaults. `python -m benchmarks.challengers --help`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rollout_models import MODEL, SAID, bundle, classifier, labelled_rows, make_champion
from benchmarks.rollout_server import Serving, cores, home_in, serving, wait
from benchmarks.rollout_simulation import Behavior, Outcome, Traffic, run
from benchmarks.steady_load import LOST, Plan, SteadyLoad, milliseconds, rows_as_bodies
from homeostat.config import RolloutConfig
from homeostat.control import progress
from homeostat.control.progress import Why

STEPS = (0.05, 0.25, 0.5)
STAYING = RolloutConfig(strategy="canary", steps=STEPS, min_seconds=3600.0)
"""At 5 % for as long as it takes; otherwise the defaults."""
PASSING = RolloutConfig(strategy="canary", steps=STEPS, bake_seconds=60.0)
"""Through all steps and the bake, all of it in minutes."""
CHUNK = 5
"""Simulated runs of one task."""
SLOW_RATE = 100.0
GOAL_SECONDS, GOAL_BAD, GOAL_FALSE = 60, 500, 0.02


@dataclass(frozen=True)
class Defect:
    """One way to be bad."""

    name: str
    title: str
    behavior: Behavior
    base_error: float = 0.05
    """Share of labels that the champion misses."""
    simulated: bool = True
    real: bool = True
    products: int = 0
    """In a real server: of matrices in the champion, so that it takes time."""


def _more_errors(points: float, base: float) -> Behavior:
    """Wrong in a share of the rows such that its error is the base error and so many points more."""
    return Behavior("wrong", -1 + 2 * points / (1 - 2 * base))


DEFECTS = (
    Defect("labels", "+5 points of errors (champion: 5 %)", _more_errors(0.05, 0.05)),
    Defect("labels2", "+5 points of errors (champion: 2 %)", _more_errors(0.05, 0.02), 0.02, real=False),
    Defect("labels10", "+5 points of errors (champion: 10 %)", _more_errors(0.05, 0.1), 0.1, real=False),
    Defect("slice", "wrong on a slice of 10 %", Behavior("slice", -0.8)),
    Defect("slow", "twice as slow: p50, p90 and p99", Behavior(times=2), products=6),
    Defect("tail", "p99 twice as slow, the slowest 2 % alone", Behavior(times=2, from_quantile=0.98), real=False),
    Defect("raises", "raises for 5 % of the rows", Behavior("raises", -0.9)),
    Defect("kills", "kills its process for 5 % of the rows", Behavior("kills", -0.9), simulated=False),
    Defect("nan", "answers NaN for 5 % of the rows", Behavior("nan", -0.9)),
    Defect("contract", "its contract refuses 5 % of the rows", Behavior(refuses=0.05)),
)
TWIN = Behavior()
REAL_TWINS = (
    Defect("twin", "A/A: identical", TWIN),
    Defect("twin of a slow one", "A/A: identical, and about 2 ms long", TWIN, products=14),
)
"""The second is about as long as what the server computes in its event loop at most, and on which side is chance."""


# -- simulated ---------------------------------------------------------------------------------------------------------


def simulate(
    behavior: Behavior, config: RolloutConfig, traffic: Traffic, seconds: float, seeds: list[int], processes: int
) -> Iterator[Outcome]:
    """Yield the outcome for each seed as they come."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if processes == 1:
        for chunk in chunks:
            yield from run(behavior, config, traffic, seconds, chunk)
        return
    with ProcessPoolExecutor(processes) as pool:
        for done in as_completed([pool.submit(run, behavior, config, traffic, seconds, chunk) for chunk in chunks]):
            yield from done.result()


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """What is printed of the runs of one defect; those that were not out have lasted as long as they could."""

    def quantiles(values: list[float]) -> dict[str, float]:
        return dict(zip(("p50", "p99", "max"), map(float, np.quantile(values, (0.5, 0.99, 1))), strict=True))

    return {
        "runs": len(outcomes),
        "ends": dict(Counter(one.end for one in outcomes)),
        "guards": dict(Counter(one.reason.partition(":")[0] for one in outcomes if one.end == "out")),
        "seconds": quantiles([one.seconds for one in outcomes]),
        "asked": quantiles([one.asked for one in outcomes]),
        "bad": quantiles([one.bad for one in outcomes]),
        "failures": quantiles([one.failures for one in outcomes]),
        "in_time": sum(one.end == "out" and one.seconds < GOAL_SECONDS for one in outcomes),
        "few_bad": sum(one.end == "out" and one.bad <= GOAL_BAD for one in outcomes),
    }


def run_simulated(given: argparse.Namespace) -> dict[str, Any]:
    """Simulate every defect and the twin, and print what is found."""
    found: dict[str, Any] = {}
    seeds = list(range(given.seed, given.seed + given.runs))
    chosen = [one for one in DEFECTS if one.simulated and given.runs and (not given.only or one.name in given.only)]
    if chosen:
        print(
            f"\nSimulated clock, {given.rate:g} requests a second, 5 % of them to the challenger, each with its label "
            f"within about a second; {given.runs} runs a defect; at most {given.seconds:g} s each.\n"
            "Bad: wrong or slow answers of the challenger that clients got, the champion's own share of errors "
            "included;\nmasked: requests that it failed, and the champion answered instead."
        )
        print(
            f"{'':42}{'out':>5}{'seconds p50':>12}{'p99':>6}{'bad p50':>9}{'p99':>6}{'max':>6}"
            f"{'masked':>8}{'its requests':>14}  {'guard'}"
        )
    for defect in chosen:
        traffic = Traffic(given.rate, defect.base_error)
        outcomes = list(simulate(defect.behavior, STAYING, traffic, given.seconds, seeds, given.processes))
        one = found[defect.name] = summary(outcomes)
        print(
            f"{defect.title:42}{one['ends'].get('out', 0):>5}{one['seconds']['p50']:>12.1f}"
            f"{one['seconds']['p99']:>6.0f}{one['bad']['p50']:>9.0f}{one['bad']['p99']:>6.0f}{one['bad']['max']:>6.0f}"
            f"{one['failures']['p50']:>8.0f}{one['asked']['p50']:>14.0f}  {', '.join(one['guards'])}"
            f"{'' if one['in_time'] == one['few_bad'] == one['runs'] else '  *'}",
            flush=True,
        )
    if chosen:
        print(f"* not every run was out in under {GOAL_SECONDS} s and with at most {GOAL_BAD} bad answers")
    if given.twins:
        found["twins"] = _run_twins(given)
    return found


def _run_twins(given: argparse.Namespace) -> dict[str, Any]:
    outcomes: list[Outcome] = []
    traffic = Traffic(given.twin_rate)
    seeds = list(range(given.seed, given.seed + given.twins))
    print(
        f"\nA/A, simulated clock: {given.twins} identical challengers, {given.twin_rate:g} requests a second, through "
        f"5, 25 and 50 % and a bake of {PASSING.bake_seconds:g} s, at most {given.twin_seconds:g} s",
        flush=True,
    )
    for outcome in simulate(TWIN, PASSING, traffic, given.twin_seconds, seeds, given.processes):
        outcomes.append(outcome)
        if len(outcomes) % max(1, given.twins // 10) == 0:
            print(f"  {len(outcomes)} of {given.twins}: {sum(o.end == 'out' for o in outcomes)} stopped", flush=True)
    one = summary(outcomes)
    stopped = one["ends"].get("out", 0)
    print(
        f"falsely stopped {stopped} of {given.twins} ({stopped / given.twins:.1%}; goal at most {GOAL_FALSE:.0%})"
        f"{', by ' + ', '.join(one['guards']) if stopped else ''}; {one['ends'].get('promoted', 0)} promoted and "
        f"baked, {one['ends'].get('running', 0)} still under way; median {one['seconds']['p50']:.0f} s"
    )
    return one


# -- real --------------------------------------------------------------------------------------------------------------


def run_real(given: argparse.Namespace) -> dict[str, Any]:
    """Roll every defect out in a real server, and print what is found."""
    found: dict[str, Any] = {}
    chosen = [one for one in DEFECTS if one.real and (not given.only or one.name in given.only)]
    print(
        f"\nReal server, {given.real_rate:g} requests a second with labels ({SLOW_RATE:g} where it is about time); "
        "5 % canary; until the last answer of the challenger; load average "
        f"{os.getloadavg()[0]:.1f}"
    )
    print(f"{'':42}{'seconds':>9}{'bad':>6}{'its answers':>13}{'failed':>8}{'lost':>6}  {'guard'}", flush=True)
    for defect in chosen:
        found[defect.name] = []
        for seed in range(given.seed, given.seed + given.real):
            one = roll_out(given.folder, defect, seed, given.real_rate, given.seconds)
            found[defect.name].append(one)
            print(
                f"{defect.title:42}{one['seconds']:>9.1f}{one['bad']:>6}{one['answers']:>13}{one['failed']:>8}"
                f"{one['lost']:>6}  {one['reason'] if one['out'] else 'NOT OUT'}",
                flush=True,
            )
    for twin in REAL_TWINS if not given.only else ():
        found[twin.name] = []
        for seed in range(given.seed, given.seed + given.real):
            one = roll_out(given.folder, twin, seed, given.real_rate, given.real_twin_seconds)
            found[twin.name].append(one)
            said = f"FALSELY: {one['reason']}" if one["out"] else "not stopped, as it should be"
            print(
                f"{twin.title:42}{one['seconds']:>9.1f}{'':6}{one['answers']:>13}{one['failed']:>8}{one['lost']:>6}"
                f"  {said}",
                flush=True,
            )
    return found


def _graphs(defect: Defect) -> tuple[bytes, bytes]:
    """The champion's and the challenger's."""
    if defect.products:
        products = round(defect.products * defect.behavior.times)
        return classifier("time", products=defect.products), classifier("time", products=products)
    return classifier(), classifier(defect.behavior.how, defect.behavior.limit)


def roll_out(folder: Path, defect: Defect, seed: int, rate: float, seconds: float) -> dict[str, Any]:
    """Roll a bad challenger out in a real server until it is out; return what clients saw of it."""
    server_core, load_core = cores()
    behavior = defect.behavior
    rows, labels = labelled_rows(20_000, defect.base_error, seed)
    champion, challenger = _graphs(defect)
    common: dict[str, Any] = {"task": "classification", "rollout": STAYING}
    if behavior.refuses:
        common |= {"limit": 1 - behavior.refuses / 4, "out_of_range": "reject"}
    with home_in(folder) as home:
        store = Serving(home).store
        make_champion(store, bundle(home, 1, champion, "classification"))
        ref = bundle(home, 2, challenger, **common)
        row = store.set_challenger(MODEL, ref, expected_generation=store.generation(MODEL), **SAID)
        with serving(home, server_core) as server:
            wait(lambda: server.is_loaded(MODEL, 2), "the challenger loaded")
            bodies, here = rows_as_bodies(rows), SLOW_RATE if defect.products else rate
            with SteadyLoad(Plan(server.port, MODEL, bodies, here, 8, labels.tolist(), load_core)) as load:
                time.sleep(1)
                begun = time.monotonic()
                progress.start(store, ref, STAYING, Why("bench", "bench"), expected_generation=row.generation)
                try:
                    wait(lambda: store.row(MODEL).mode == "live", "out", seconds)
                    out = True
                except TimeoutError:
                    out = False
                time.sleep(0.5)
        entry = store.history(MODEL)[-1]
    records = load.records[load.records["due"] >= begun]
    answered = records["status"] != LOST
    its = records[records["version"] == 2]
    wrong = its["value"] != labels[its["row"]]
    return {
        "seed": seed,
        "out": out,
        "reason": entry.reason if out else "",
        "seconds": float(its["received"].max(initial=begun) - begun) if out else seconds,
        "bad": len(its) if behavior.times != 1.0 else int(wrong.sum()),
        "answers": len(its),
        "failed": int((records["status"][answered] != 200).sum()),
        "lost": int((~answered).sum()),
        "requests": len(records),
        "p99_ms": milliseconds(records[answered], 0.99)[0],
    }


def main() -> None:
    """Simulate, roll out, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="simulated, of each defect (default 100; 0 is none)")
    parser.add_argument("--rate", type=float, default=1000, help="simulated requests a second (default 1000)")
    parser.add_argument("--seconds", type=float, default=300, help="a run lasts at most (default 300)")
    parser.add_argument("--twins", type=int, default=500, help="simulated, A/A (default 500; 0 is none)")
    parser.add_argument("--twin-rate", type=float, default=200, help="requests a second of these (default 200)")
    parser.add_argument("--twin-seconds", type=float, default=300, help="at most (default 300)")
    parser.add_argument("--real", type=int, default=3, help="runs of each defect in a real server (default 3)")
    parser.add_argument("--real-rate", type=float, default=400, help="requests a second of these (default 400)")
    parser.add_argument("--real-twin-seconds", type=float, default=60, help="of each real A/A run (default 60)")
    parser.add_argument("--only", nargs="+", default=[], choices=[one.name for one in DEFECTS])
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next has the next (default 0)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that simulate")
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--json", type=Path, help="also write the result here")
    given = parser.parse_args()
    result = {"simulated": run_simulated(given), "real": run_real(given) if given.real else {}}
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
