"""Streams with a daily cycle: alarms without a change, and days to find one: `python -m benchmarks.seasons --help`.

Ten columns; at night four of them are higher by 0.5 to 1.5 standard deviations, and each hour of each day has a mean of
its own (standard deviation 0.05 to 0.1), as real hours have. The reference holds whole days. Looks come every 6 hours.
Against the reference alone (`monitor.season = ""`) and by hours of the day (`"hour"`), by what `find_drift`
decides on. The changes begin after so many days: 0.3 or 1 standard deviation in one column at all hours or in three of
them, and nights that become days.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from benchmarks.drift_alarms import interval
from homeostat.monitoring.drift import COLUMNS, sequential_alarms
from homeostat.monitoring.seasons import follow, log_evidence
from homeostat.monitoring.sequence import Check, DriftState, check, make_pool

ALPHA, MIN_EFFECT = 0.01, 0.02  # the defaults of project.toml
WIDTH, NIGHTLY, LOOK = 10, 4, 6
HOUR = 3600.0
CHANGES = {
    "0.3 sd, all hours": (0.3, tuple(range(24))),
    "1 sd, all hours": (1.0, tuple(range(24))),
    "1 sd, three hours": (1.0, (9, 10, 11)),
    "nights become days": (0.0, ()),
}
Job = tuple[int, int, int, str, int, str]


def looks(days: int, per_hour: int, change: str, begins: int, seed: int) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Yield the rows of every 6 hours and their times."""
    rng = np.random.default_rng(seed)
    nightly = rng.uniform(0.5, 1.5, WIDTH) * (np.arange(WIDTH) < NIGHTLY)
    noise = rng.uniform(0.05, 0.1, WIDTH)
    for day in range(days):
        for part in range(0, 24, LOOK):
            hour = np.repeat(np.arange(part, part + LOOK), per_hour)
            night = (hour < 6) | (hour > 20)
            changed = day >= begins
            if changed and change == "nights become days":
                night = np.zeros(len(hour), dtype=bool)
            x = rng.normal(size=(len(hour), WIDTH)) + night[:, None] * nightly
            x += (rng.normal(size=(LOOK, WIDTH)) * noise)[hour - part]
            if changed and change in CHANGES:
                size, at = CHANGES[change]
                x[np.isin(hour, at), 0] += size
            times = (24 * day + hour) * HOUR + np.sort(rng.random((LOOK, per_hour)), axis=1).ravel() * HOUR
            yield pd.DataFrame(x, columns=[f"x{i}" for i in range(WIDTH)]), times


def stream(job: Job) -> float | None:
    """Return days from the change (or the start) to the first alarm, None without any."""
    days, per_hour, begins, change, seed, season = job
    rows = list(looks(days + 14, per_hour, change, begins + 14, seed))
    before, rest = rows[: 14 * 24 // LOOK], rows[14 * 24 // LOOK :]
    reference = pd.concat([frame for frame, _ in before[:40]], ignore_index=True)
    reference = reference.iloc[np.random.default_rng(seed).permutation(len(reference))[:5000]].reset_index(drop=True)
    pool = make_pool(reference, dict.fromkeys(reference, "number"))
    state = DriftState()
    for number, (frame, times) in enumerate(rest):
        if season == "hour":
            seasons = follow(pool.cells, frame, times, state.seasons, "hour", "UTC", f"bench {seed}")
            state = DriftState(state.checks + 1, float(times[-1]), {}, seasons)
            known = seasons.columns.items()
            found = Check(state, {n: log_evidence(c) for n, c in known}, {}, {n: c.effect for n, c in known})
        else:
            found = check(pool, frame, state, times, f"bench {seed}")
            state = found.state
        if sequential_alarms(found, COLUMNS * ALPHA, MIN_EFFECT) and (
            change == "none" or number >= begins * 24 // LOOK
        ):
            return (number + 1) * LOOK / 24 - (0 if change == "none" else begins)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--rows-an-hour", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=50, help="of each change")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    per_hour = given.rows_an_hour
    with ProcessPoolExecutor(given.workers) as pool:
        for season in ("", "hour"):
            jobs: list[Job] = [(given.days, per_hour, 0, "none", seed, season) for seed in range(given.streams)]
            alarmed = sum(found is not None for found in pool.map(stream, jobs))
            print(
                f"season {season!r}: {interval(alarmed, given.streams)} streams of {given.days} days with an alarm",
                flush=True,
            )
        for change in CHANGES:
            for begins in (10, 30):
                jobs = [(begins + 10, per_hour, begins, change, seed, "hour") for seed in range(given.seeds)]
                found = list(pool.map(stream, jobs))
                times = sorted(days if days is not None else np.inf for days in found)
                once, ever = (sum(days <= limit for days in times) for limit in (1, 10))
                print(
                    f"{change}, after {begins} days: median {times[len(times) // 2]:g} days, within one {once}, "
                    f"within ten {ever} of {len(times)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
