"""Streams without drift that raise an alarm, and how soon faults are found: `python -m benchmarks.drift_alarms --help`.

Rows are drawn with replacement from a table, so that nothing ever drifts: a reference, then one
window after another. Ours is what `find_drift` decides on, check by check with its state; the others
look at each window by itself. Evidently's default is computed by its documented rule (normed Wasserstein
distance, or for at most 5 values Jensen-Shannon's, of at least 0.1 in half of the columns), which is held
against Evidently itself first.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon
from scipy.stats import beta, ks_2samp, wasserstein_distance

from homeostat.monitoring.columns import column_kind
from homeostat.monitoring.drift import COLUMNS, JOINT, MIN_AUC, sequential_alarms
from homeostat.monitoring.exchangeability import log_weight
from homeostat.monitoring.joint import joint_p
from homeostat.monitoring.sequence import DriftState, check, make_pool

ALPHA, MIN_EFFECT = 0.01, 0.02  # the defaults of project.toml
REFERENCE = 2_000
FAULTS = ("+0.1 sd", "+0.3 sd", "x1.8", "10 % zeroed", "correlation broken")


def tables() -> dict[str, pd.DataFrame]:
    """Breast cancer of scikit-learn; Elec2 and bike sharing from HOMEOSTAT_DATA, if it is set."""
    from sklearn.datasets import load_breast_cancer

    found = {"breast cancer": load_breast_cancer(as_frame=True).data.astype(np.float64)}
    folder = Path(os.environ.get("HOMEOSTAT_DATA", ""))
    if (folder / "electricity.csv").is_file():
        electricity = pd.read_csv(folder / "electricity.csv")
        numbers = electricity.select_dtypes("number").drop(columns=["date", "nswprice"], errors="ignore")
        found["Elec2"] = numbers.iloc[20_000:].astype(np.float64)
        bikes = pd.read_csv(folder / "bike_hour.csv").select_dtypes("number")
        found["bike sharing"] = bikes.drop(columns=["instant", "casual", "registered", "cnt"], errors="ignore")
    return found


def windows(table: pd.DataFrame, rows: int, rng: np.random.Generator) -> Iterator[pd.DataFrame]:
    while True:
        yield table.iloc[rng.integers(0, len(table), rows)].reset_index(drop=True)


def ours(reference: pd.DataFrame, seed: int, *, joint: bool) -> Callable[[pd.DataFrame], bool]:
    """Return what says of each window in turn whether there is drift, with the default settings."""
    kinds = {name: column_kind(reference[name]) for name in reference}
    text = {name: str for name, kind in kinds.items() if kind == "category"}
    before = reference.astype(text)
    pool, state = make_pool(before, kinds), DriftState()

    def look(window: pd.DataFrame) -> bool:
        nonlocal state
        spent = math.exp(log_weight(state.checks + 1)) * ALPHA
        now = window.astype(text)
        found = check(pool, now, state, None, f"bench {seed}")
        state = found.state
        if sequential_alarms(found, COLUMNS * ALPHA, MIN_EFFECT):
            return True
        if not joint:
            return False
        p_value, auc = joint_p(before, now, state.checks)
        return p_value <= JOINT * spent and auc >= MIN_AUC

    return look


def evidently_default(reference: pd.DataFrame) -> Callable[[pd.DataFrame], bool]:
    values = reference.to_numpy(np.float64)
    norms = np.maximum(values.std(axis=0), 1e-3)

    def far(now: np.ndarray, i: int) -> bool:
        before, after = values[:, i], now[:, i]
        if len(np.unique(before)) > 5:
            return bool(wasserstein_distance(before, after) / norms[i] >= 0.1)
        kinds = np.union1d(before, after)
        shares = [[np.mean(side == kind) for kind in kinds] for side in (before, after)]
        return bool(jensenshannon(*shares) >= 0.1)

    def look(window: pd.DataFrame) -> bool:
        now = window.to_numpy(np.float64)
        return float(np.mean([far(now, i) for i in range(values.shape[1])])) >= 0.5

    return look


def columns_ks(reference: pd.DataFrame, level: float) -> Callable[[pd.DataFrame], bool]:
    values = reference.to_numpy(np.float64)

    def look(window: pd.DataFrame) -> bool:
        now = window.to_numpy(np.float64)
        return any(ks_2samp(values[:, i], now[:, i]).pvalue < level for i in range(values.shape[1]))

    return look


def rules(reference: pd.DataFrame, seed: int, *, joint: bool) -> dict[str, Callable[[pd.DataFrame], bool]]:
    return {
        "homeostat": ours(reference, seed, joint=joint),
        "Evidently's default": evidently_default(reference),
        "any column's KS p < 0.05": columns_ks(reference, 0.05),
        "the same, Bonferroni": columns_ks(reference, 0.05 / reference.shape[1]),
    }


def stream(job: tuple[pd.DataFrame, int, int, int, bool]) -> dict[str, int | None]:
    """Return each rule's first check with an alarm, None without any."""
    table, rows, checks, seed, joint = job
    rng = np.random.default_rng(seed)
    reference = next(windows(table, REFERENCE, rng))
    looks = rules(reference, seed, joint=joint)
    first: dict[str, int | None] = dict.fromkeys(looks)
    for number, window in enumerate(itertools.islice(windows(table, rows, rng), checks), 1):
        for name, look in looks.items():
            if first[name] is None and look(window):
                first[name] = number
    return first


def interval(hits: int, n: int) -> str:
    """Return a share with its 95 % interval (Clopper & Pearson)."""
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(0.975, hits + 1, n - hits))
    return f"{hits} of {n} ({low:.1%} to {high:.1%})"


def fault(window: pd.DataFrame, name: str, table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    broken = window.copy()
    column = max((c for c in table if column_kind(table[c]) == "number"), key=lambda c: table[c].nunique())
    sd = float(table[column].std())
    if name.endswith(" sd"):
        broken[column] += float(name.split()[0]) * sd
    elif name == "x1.8":
        broken[column] *= 1.8
    elif name == "10 % zeroed":
        broken.loc[rng.random(len(broken)) < 0.1, column] = 0.0
    else:
        broken[column] = rng.permutation(broken[column].to_numpy())
    return broken


def faulty(job: tuple[pd.DataFrame, int, str, int, int]) -> int | None:
    """Return the check, from the one on at which the fault begins, that finds it; None within 10."""
    table, rows, name, quiet, seed = job
    rng = np.random.default_rng(10_000 + seed)
    looks = ours(next(windows(table, REFERENCE, rng)), seed, joint=True)
    drawn = windows(table, rows, rng)
    for _ in range(quiet):
        looks(next(drawn))
    for number in range(1, 11):
        if looks(fault(next(drawn), name, table, rng)):
            return number
    return None


def verify(table: pd.DataFrame, windows_of: int = 5) -> None:
    """Raise when Evidently says otherwise than our computation of its rule."""
    os.environ["DO_NOT_TRACK"] = "1"
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    rng = np.random.default_rng(5)
    reference = next(windows(table, REFERENCE, rng))
    look, definition = evidently_default(reference), DataDefinition(numerical_columns=list(table))
    for window in itertools.islice(windows(table, 50, rng), windows_of):
        datasets = [Dataset.from_pandas(frame, definition) for frame in (window, reference)]
        counted = Report([DataDriftPreset()]).run(*datasets).dict()["metrics"][0]["value"]
        if (counted["share"] >= 0.5) != look(window):
            raise SystemExit(f"Evidently counts {counted}, the rule says {look(window)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--checks", type=int, default=200)
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 200, 1000, 5000])
    parser.add_argument("--joint-streams", type=int, default=20, help="streams in which the classifier looks too")
    parser.add_argument("--tables", nargs="+", default=[], help="default all")
    parser.add_argument("--power", action="store_true", help="faults instead of streams without drift")
    parser.add_argument("--seeds", type=int, default=50, help="of each fault")
    parser.add_argument("--faulty-rows", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--quiet", type=int, nargs="+", default=[0, 50], help="checks before the fault begins")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="4 streams, 20 checks, 200 rows; 4 seeds")
    given = parser.parse_args()
    if given.quick:
        given.streams, given.checks, given.rows, given.joint_streams, given.seeds = 4, 20, [200], 1, 4
    chosen = {name: table for name, table in tables().items() if not given.tables or name in given.tables}
    with ProcessPoolExecutor(given.workers) as pool:
        for title, table in chosen.items():
            if given.power:
                for rows, quiet, name in itertools.product(given.faulty_rows, given.quiet, FAULTS):
                    jobs = [(table, rows, name, quiet, seed) for seed in range(given.seeds)]
                    found = list(pool.map(faulty, jobs))
                    once, twice = (sum(f is not None and f <= n for f in found) for n in (1, 2))
                    print(
                        f"{title}, {table.shape[1]} columns, {rows} rows, {name} after {quiet} quiet checks: at the "
                        f"first {interval(once, len(found))}, by the second {twice}, within ten "
                        f"{sum(f is not None for f in found)}",
                        flush=True,
                    )
                continue
            verify(table)
            for rows in given.rows:
                jobs = [(table, rows, given.checks, s, s < given.joint_streams) for s in range(given.streams)]
                firsts = list(pool.map(stream, jobs))
                print(f"\n{title}, {table.shape[1]} columns, windows of {rows} rows, {given.checks} checks")
                for name in firsts[0]:
                    alarmed = sum(first[name] is not None for first in firsts)
                    print(f"  {name:26} {interval(alarmed, len(firsts))} streams with an alarm", flush=True)


if __name__ == "__main__":
    main()
