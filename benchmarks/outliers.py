"""Single outliers: the share of named rows that are none, and of outliers named: `python -m benchmarks.outliers`.

Breast cancer and digits of scikit-learn, and generated rows of 10 columns that go with each other: a reference of 2,000
rows and a window of 1,000, all drawn with replacement, so that they are exchangeable. Outliers: in tables rows of
which three columns were moved by 4 to 8 standard deviations each; in digits a class that the reference lacks (9), or
images of which a quarter of the pixels was set to black or white. `monitor.outlier_rate` is at its default.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.projects import Rows
from homeostat.config import MonitorConfig
from homeostat.dataset import Array
from homeostat.monitoring.outliers import find_outliers
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows

REFERENCE, WINDOW = 2_000, 1_000
SHARES = (0.0, 0.01, 0.05)


def tables(seed: int) -> dict[str, tuple[Array, Array]]:
    """Return name -> rows, and rows that are outliers among them (empty: they are made)."""
    from sklearn.datasets import load_breast_cancer, load_digits

    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(2 * REFERENCE, 10)) @ rng.normal(size=(10, 10))
    images, kinds = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1)
    cancer = load_breast_cancer(return_X_y=True)[0]
    return {
        "generated, 10 columns": (mixed, np.empty((0, 10))),
        "breast cancer, 30 columns": (cancer, np.empty((0, 30))),
        "digits, 8 x 8: a class never seen": (images[kinds != 9], images[kinds == 9]),
        "digits, 8 x 8: a quarter of the pixels": (
            images,
            np.where(rng.random(images.shape) < 0.25, rng.choice([0.0, 16.0], images.shape), images),
        ),
    }


def strange(rows: Array, count: int, rng: np.random.Generator) -> Array:
    """Return rows with three columns moved by 4 to 8 standard deviations each."""
    made = rows[rng.integers(0, len(rows), count)].copy()
    deviation = rows.std(axis=0)
    for row in made:
        moved = rng.choice(rows.shape[1], 3, replace=False)
        row[moved] += rng.choice([-1, 1], 3) * rng.uniform(4, 8, 3) * deviation[moved]
    return made


def look(rows: Array, others: Array, share: float, rate: float, seed: int) -> tuple[int, int, int, float]:
    """Return how many of a window are outliers, are named, and are both; and the seconds."""
    rng = np.random.default_rng(1_000 + seed)
    reference, window = (rows[rng.integers(0, len(rows), many)] for many in (REFERENCE, WINDOW))
    count = int(share * WINDOW)
    if count:
        window[:count] = others[rng.integers(0, len(others), count)] if len(others) else strange(rows, count, rng)
    names = {"x": tuple(f"x{i}" for i in range(rows[0].size))}
    known = Reference({"x": reference}, {"y": np.zeros((REFERENCE, 1))}, names, np.zeros(REFERENCE))
    asked = TrafficRows(
        inputs={"x": window},
        labels=np.full(WINDOW, np.nan),
        request_ids=np.arange(WINDOW).astype(str),
        places=np.zeros(WINDOW, dtype=np.int64),
    )
    started = time.perf_counter()
    found = find_outliers(Rows(), known, asked, rate, seed, most=WINDOW)
    seconds = time.perf_counter() - started
    if found is None:
        raise SystemExit("nothing was scored")
    named = np.array([int(one.request_id) for one in found.worst], dtype=int)
    return count, len(named), int((named < count).sum()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    given = parser.parse_args()
    rate = MonitorConfig().outlier_rate
    print("| rows | outliers | windows with a name | false among the named (mean, 95 %) | found | seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in tables(0):
        for share in SHARES:
            looks = [look(*tables(seed)[name], share, rate, seed) for seed in range(given.seeds)]
            false = np.array([(named - both) / named if named else 0.0 for _, named, both, _ in looks])
            half = 1.96 * false.std(ddof=1) / np.sqrt(len(false))
            outliers, both = sum(one[0] for one in looks), sum(one[2] for one in looks)
            found = f"{both / outliers:.0%}" if outliers else ""
            print(
                f"| {name} | {share:.0%} | {sum(one[1] > 0 for one in looks)} of {len(looks)} | "
                f"{false.mean():.3f} ({max(0.0, false.mean() - half):.3f} to {false.mean() + half:.3f}) | {found} | "
                f"{np.median([one[3] for one in looks]):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
