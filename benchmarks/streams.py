"""Real streams replayed: harmful windows caught in the same or the next window, and alarms elsewhere.

Harmful is a window that lost more than 5 points of loss against the reference.
Elec2 and bike sharing in the order of their time. A small network is trained on the first fifth of each
stream, with our own split by time (its reference is the last quarter of that fifth), its graph is exported,
and the rest is replayed in weekly windows, by monitoring/backtest.py as `homeostat backtest` does,
with labels that come at once, after a day and after a week. Everything is at its default.
`python -m benchmarks.streams --help`; HOMEOSTAT_DATA names the folder of the data.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from benchmarks.projects import Rows
from homeostat.config import DataConfig, ProjectConfig
from homeostat.dataset import Array, Dataset
from homeostat.monitoring.backtest import Backtest, Labels, Replay, Score, score, window_edges
from homeostat.monitoring.history import Columns, read_history
from homeostat.monitoring.reference import Reference, load_reference, make_reference

FIRST = 0.2
"""Share of a stream that the model is trained on, its first rows ..."""
HELD_OUT = 0.25
"""... and of that, its last rows, the reference."""
DELAYS = (0, 1, 7)
WEEK = timedelta(days=7)
SEEDS = 5
BY_TIME = DataConfig(split="time")


def elec2_whole(folder: Path) -> pd.DataFrame:
    """Price up or down against the last 24 hours; by custom without `date` and `nswprice`."""
    frame = pd.read_csv(folder / "electricity.csv")
    times = pd.Timestamp("1996-05-07", tz="UTC") + pd.to_timedelta(30 * np.arange(len(frame)), unit="min")
    return frame.drop(columns=["date", "nswprice"]).rename(columns={"class": "label"}).assign(time=times)


def elec2(folder: Path) -> pd.DataFrame:
    """From where Victoria's figures begin to vary: before, three of six columns are constant, and nothing is learnt."""
    frame = elec2_whole(folder)
    first = int(np.flatnonzero(frame["vicprice"].diff().fillna(0) != 0)[0])
    return frame.iloc[first:]


def bike(folder: Path) -> pd.DataFrame:
    """Rented bicycles of an hour; without what sums up to the target, and without the year."""
    frame = pd.read_csv(folder / "bike_hour.csv")
    days = pd.to_datetime(frame["dteday"], format="mixed", utc=True)
    times = days + pd.to_timedelta(frame["hr"], unit="h")
    gone = ["instant", "dteday", "yr", "casual", "registered", "cnt"]
    return frame.drop(columns=gone).assign(label=frame["cnt"].astype(float), time=times)


@dataclass(frozen=True)
class Source:
    """A stream and its task."""

    name: str
    config: ProjectConfig
    load: Callable[[Path], pd.DataFrame]


SOURCES = (
    Source(
        "Elec2 from May 1997", ProjectConfig(name="elec2", project="s:S", task="classification", data=BY_TIME), elec2
    ),
    Source(
        "Elec2, all of it", ProjectConfig(name="elec2", project="s:S", task="classification", data=BY_TIME), elec2_whole
    ),
    Source("bike sharing", ProjectConfig(name="bike", project="s:S", task="regression", data=BY_TIME), bike),
)


def exported(x: Array, y: Array, task: str, seed: int) -> bytes:
    """Train a network of 32 hidden units on standardized columns, and return its ONNX graph."""
    scale = StandardScaler().fit(x)
    kind = MLPClassifier if task == "classification" else MLPRegressor
    center, spread = (0.0, 1.0) if task == "classification" else (float(y.mean()), float(y.std()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before it converges
        model = kind(hidden_layer_sizes=(32,), max_iter=200, early_stopping=True, random_state=seed)
        model.fit(scale.transform(x), y if task == "classification" else (y - center) / spread)
    first = model.coefs_[0] / scale.scale_[:, None]
    weights = {
        "w0": first,
        "b0": model.intercepts_[0] - scale.mean_ @ first,
        "w1": model.coefs_[1] * spread,
        "b1": model.intercepts_[1] * spread + center,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("Gemm", ["positive", "w1", "b1"], ["last" if task == "classification" else "output"]),
        *([helper.make_node("Sigmoid", ["last"], ["output"])] if task == "classification" else []),
    ]
    graph = helper.make_graph(
        nodes,
        "stream",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", x.shape[1]])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    found: bytes = made.SerializeToString()
    return found


@dataclass(frozen=True)
class Lived:
    """A version and the history after its training."""

    onnx: bytes
    reference: Reference
    path: Path


def live(source: Source, frame: pd.DataFrame, seed: int, share: float, folder: Path) -> Lived:
    """Train on the first part, and write the rest to Parquet."""
    columns = tuple(name for name in frame.columns if name not in ("label", "time"))
    first = int(share * len(frame))
    fitted = int(first * (1 - HELD_OUT))
    x = frame[list(columns)].to_numpy(np.float32)
    y = frame["label"].to_numpy(np.int64 if source.config.task == "classification" else np.float64)
    onnx = exported(x[:fitted], y[:fitted], source.config.task, seed)
    held_out = Dataset.from_arrays({"x": x[fitted:first]}, y[fitted:first], columns={"x": columns})
    reference = load_reference(make_reference(Rows(), source.config, held_out, onnx, seed))
    path = folder / f"{source.config.name}.parquet"
    frame.iloc[first:].to_parquet(path)
    return Lived(onnx, reference, path)


def replay(source: Source, lived: Lived, delay: int, *, drift: bool) -> Backtest:
    """Replay the rest in weekly windows."""
    history = read_history(lived.path, Columns(), source.config, lived.reference, lived.onnx, 1)
    edges = window_edges(history.rows.times, WEEK)
    labels = Labels(timedelta(days=delay))
    again = Replay(Rows(), source.config, lived.reference, 1, history.rows, edges, labels, drift=drift)
    return again.finish(list(again.windows()), history.notes)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "0 of 0"


def _row(source: Source, seed: int, found: Backtest, what: str, score: Score) -> str:
    about = f"| {source.name}, seed {seed} | {len(found.windows)} | {found.reference_loss:.3f} | {found.tolerated:.3f} "
    return f"{about}| {what} | {_share(score.caught, score.harmful)} | {_share(score.elsewhere, score.alarms)} |"


def run(folder: Path, seeds: int, share: float, *, drift: bool) -> Iterator[str]:
    """Yield the lines of the report."""
    yield "| stream | windows | loss of the reference | tolerated | alarm | harmful windows caught | alarms elsewhere |"
    yield "|---|---:|---:|---:|---|---:|---:|"
    totals: dict[tuple[str, str], list[Score]] = {}
    for source in SOURCES:
        frame = source.load(folder)
        for seed in range(seeds):
            with tempfile.TemporaryDirectory(prefix="homeostat-bench-") as temporary:
                lived = live(source, frame, seed, share, Path(temporary))
                for delay in DELAYS:
                    start = time.perf_counter()
                    found = replay(source, lived, delay, drift=drift and delay == 0)
                    seconds = time.perf_counter() - start
                    alone = score([w.harmful for w in found.windows], [w.standing for w in found.windows])
                    scores = {
                        f"harm, labels after {delay} days": found.harm,
                        f"its detector alone, {delay} days": alone,
                    }
                    scores |= {"drift": found.drift} if found.drift else {}
                    for what, one in scores.items():
                        yield _row(source, seed, found, what, one)
                        totals.setdefault((source.name, what), []).append(one)
                    yield f"({seconds:.1f} s)"
    yield "\n| stream | alarm | harmful windows caught (goal >= 80 %) | alarms elsewhere (goal <= 20 %) |"
    yield "|---|---|---:|---:|"
    for (name, what), each in totals.items():
        caught, harmful, elsewhere, alarms = (
            sum(getattr(one, field) for one in each) for field in ("caught", "harmful", "elsewhere", "alarms")
        )
        yield f"| {name} | {what} | {_share(caught, harmful)} | {_share(elsewhere, alarms)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="models of each stream")
    parser.add_argument("--drift", action="store_true", help="also the drift alarms, which take minutes")
    parser.add_argument("--quick", action="store_true", help="one model of each stream")
    parser.add_argument("--first", type=float, default=FIRST, help="share that the model is trained on")
    options = parser.parse_args()
    folder = os.environ.get("HOMEOSTAT_DATA")
    if not folder:
        raise SystemExit("HOMEOSTAT_DATA names no folder with electricity.csv and bike_hour.csv")
    for line in run(Path(folder), 1 if options.quick else options.seeds, options.first, drift=options.drift):
        print(line, flush=True)


if __name__ == "__main__":
    main()
