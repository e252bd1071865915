"""Elec2 and bike sharing lived in the order of their time: the loop beside fixed rules of retraining.

A first model learns from the first fifth of a stream; each later row is answered by the version that is live
then, and its label comes a day later. Once a day a rule looks. *homeostat*: harm and drift as `monitor` finds them,
`decide_retrain`, then promotion on the test part or on live labels, and rollback, all with their defaults;
training goes on in no time. The others train on the same rows, and also on those that homeostat holds out: never; each
week; whenever Evidently's default says drift of the last seven days' rows. They replace the model unasked. Models
are gradient-boosted trees of scikit-learn. `python -m benchmarks.lived --help`; HOMEOSTAT_DATA names the data's folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from benchmarks.drift_alarms import evidently_default
from benchmarks.projects import Rows
from benchmarks.streams import SOURCES, Source
from homeostat.config import ProjectConfig
from homeostat.data.splits import part_of_key
from homeostat.dataset import Array
from homeostat.evaluation.metrics import measure, read_answers
from homeostat.evaluation.paired import gain_interval
from homeostat.evaluation.weighted import weighted_metrics
from homeostat.monitoring.columns import column_kind
from homeostat.monitoring.drift import COLUMNS, sequential_alarms
from homeostat.monitoring.harm import HarmState, begin, count_labels
from homeostat.monitoring.performance import RowLosses, row_losses
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.rivals import compare_answers
from homeostat.monitoring.sequence import DriftState, check, make_pool
from homeostat.monitoring.traffic import TrafficRows
from homeostat.policy.promotion import decide_promotion, decide_trial
from homeostat.policy.retraining import Situation, Trigger, decide_retrain
from homeostat.policy.rollback import decide_rollback
from homeostat.records import Comparison, Harm, Trial

FIRST = 0.2
"""Share of a stream that the first model learns from."""
DAY = 86_400.0
DELAY = DAY
TRAFFIC_DAYS = 90
"""How far back labelled traffic is learnt from, by every rule."""
PROJECT = Rows()


class Stream:
    """Rows in the order of time. x: [n, d] float32. y: [n]. times: [n] unix seconds. parts: [n] str, by hash."""

    def __init__(self, source: Source, folder: Path, seed: int) -> None:
        frame = source.load(folder)
        self.config, self.seed = source.config, seed
        self.columns = tuple(name for name in frame.columns if name not in ("label", "time"))
        self.x = frame[list(self.columns)].to_numpy(np.float32)
        self.y = frame["label"].to_numpy(np.float64)
        self.times = frame["time"].astype("int64").to_numpy() / 10 ** (9 if frame["time"].dt.unit == "ns" else 6)
        self.parts = np.array([part_of_key(f"row {i}", self.config.data, seed) for i in range(len(frame))])
        self.first = int(FIRST * len(frame))
        data = self.config.data
        ends = np.cumsum([1 - data.test - data.validation - data.calibration, data.validation, data.calibration])
        names = np.array(["train", "validation", "calibration", "test"])
        place = np.searchsorted(ends, np.arange(self.first) / self.first, side="right")
        self.parts[: self.first] = names[place]  # the project's own rows are split by time

    def rows(self, rows: Array, outputs: Array, version: int) -> TrafficRows:
        """Return these rows as answered requests whose labels have come."""
        n = len(rows)
        return TrafficRows(
            inputs={"x": self.x[rows]},
            outputs={"output": outputs},
            labels=self.y[rows],
            entity_ids=np.full(n, ""),
            request_ids=rows.astype(str),
            versions=np.full(n, version),
            times=self.times[rows],
            milliseconds=np.ones(n),
            arms=np.full(n, "champion"),
            places=np.zeros(n, np.int64),
            label_times=self.times[rows] + DELAY,
        )

    def target(self, rows: Array) -> Array:
        """Return labels as a dataset has them."""
        return self.y[rows].astype(np.int64) if _classes(self.config) else self.y[rows]

    def frame(self, rows: Array) -> pd.DataFrame:
        return pd.DataFrame(self.x[rows].astype(np.float64), columns=list(self.columns))


@dataclass
class Version:
    """A model, and when it was made (unix seconds). answers: rows [m] -> [m, 1]."""

    number: int
    made: float
    answers: Callable[[Array], Array]
    reference: Reference | None = None


def train(stream: Stream, rows: Array, number: int, made: float) -> Version:
    """Fit trees; number: also the seed."""
    classes = stream.config.task == "classification"
    kind = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    model = kind(max_iter=100, early_stopping=False, random_state=1000 * stream.seed + number)
    model.fit(stream.x[rows], stream.y[rows].astype(np.int64) if classes else stream.y[rows])

    def answers(asked: Array) -> Array:
        if not len(asked):
            return np.empty((0, 1), np.float32)
        found = model.predict_proba(stream.x[asked])[:, 1] if classes else model.predict(stream.x[asked])
        column: Array = found.astype(np.float32)[:, None]
        return column

    return Version(number, made, answers)


@dataclass
class Counts:
    """What a rule has done."""

    trainings: int = 0
    promotions: int = 0
    rollbacks: int = 0


@dataclass
class Rule:
    """What is live, and what happens at the end of each day."""

    stream: Stream
    champion: Version
    counts: Counts = field(default_factory=Counts)

    def known(self, now: float) -> Array:
        """Rows to learn from: the project's own, and the traffic of the last days whose labels have come."""
        times = self.stream.times
        later = np.arange(len(times)) >= self.stream.first
        recent = later & (times + DELAY < now) & (times >= now - TRAFFIC_DAYS * DAY)
        return np.flatnonzero(~later | recent)

    def replace(self, now: float) -> None:
        """Train on all of it, and take the model live unasked."""
        self.counts.trainings += 1
        self.counts.promotions += 1
        self.champion = train(self.stream, self.known(now), self.counts.trainings + 1, now)

    def look(self, now: float, day: int) -> None:
        """Never do anything."""


class Weekly(Rule):
    """Retrain each week."""

    def look(self, now: float, day: int) -> None:
        if day % 7 == 6:
            self.replace(now)


@dataclass
class OnEvidently(Rule):
    """Retrain whenever Evidently's default finds drift against what the live model has learnt from."""

    learnt: Array = field(default_factory=lambda: np.empty(0, np.int64))

    def look(self, now: float, day: int) -> None:
        learnt = self.learnt if len(self.learnt) else np.arange(self.stream.first)
        times = self.stream.times
        window = np.flatnonzero((times >= now - 7 * DAY) & (times < now))
        if len(window) and evidently_default(self.stream.frame(learnt))(self.stream.frame(window)):
            self.learnt = self.known(now)
            self.replace(now)


@dataclass
class Homeostat(Rule):
    """The loop, with its own functions and defaults."""

    harm: HarmState | None = None
    losses: RowLosses | None = None
    pool: Any = None
    drift: DriftState = field(default_factory=DriftState)
    looks: tuple[bool, ...] = ()
    counted: float = 0.0
    challenger: Version | None = None
    previous: Version | None = None
    trainings: tuple[datetime, ...] = ()
    rejected: int = 0
    ended: datetime | None = None
    made: int = 1

    def begin(self) -> None:
        """Start anew with a champion's reference."""
        reference = self._reference(self.champion)
        self.losses = row_losses(PROJECT, self.stream.config, reference)
        self.harm = begin(self.stream.config, reference, self.losses, self.champion.number)
        frame = pd.DataFrame(reference.inputs["x"].astype(np.float64), columns=list(self.stream.columns))
        self.pool, self.drift = (
            make_pool(frame, {name: column_kind(frame[name]) for name in self.stream.columns}),
            DriftState(),
        )
        self.looks = ()

    def _reference(self, version: Version) -> Reference:
        if version.reference is None:
            raise RuntimeError(f"v{version.number} has no reference")
        return version.reference

    def make(self, now: float) -> Version:
        """Train on the train part alone, and keep validation and calibration as the reference."""
        rows = self.known(now) if self.made > 1 else np.arange(self.stream.first)
        parts = self.stream.parts[rows]
        made = train(self.stream, rows[parts == "train"], self.made, now)
        held = rows[np.isin(parts, ("validation", "calibration"))]
        most = self.stream.config.monitor.reference_rows
        if len(held) > most:
            held = np.sort(np.random.default_rng(self.stream.seed).choice(held, most, replace=False))
        inputs, outputs = {"x": self.stream.x[held]}, {"output": made.answers(held)}
        target = (
            self.stream.y[held] if self.stream.config.task == "regression" else self.stream.y[held].astype(np.int64)
        )
        made.reference = Reference(inputs, outputs, {"x": self.stream.columns}, target)
        return made

    def look(self, now: float, day: int) -> None:
        """Do what `monitor` and the automations do."""
        stream, config = self.stream, self.stream.config
        times = stream.times
        if self.harm is None or self.losses is None:
            self.begin()
        assert self.harm is not None
        assert self.losses is not None
        new = np.flatnonzero((times + DELAY >= self.counted) & (times + DELAY < now) & (times >= self.champion.made))
        rows = stream.rows(new, self.champion.answers(new), self.champion.number)
        found = count_labels(self.harm, rows, config, self._reference(self.champion), self.losses)
        self.harm, self.counted = found.state, now
        harmed = any(one.harmed for one in found.harm)
        drifted = self._drifts(now)
        self.looks = (*self.looks, drifted)[-config.retrain.drift_of :]
        self._roll_back(now)
        self._try(now)
        if harmed or drifted:
            self._ask("harm" if harmed else "drift", now, found.harm[0], harmed)

    def _drifts(self, now: float) -> bool:
        times = self.stream.times
        window = np.flatnonzero((times >= now - DAY) & (times < now))
        if len(window) < self.stream.config.monitor.min_rows:
            return False
        monitor = self.stream.config.monitor
        found = check(self.pool, self.stream.frame(window), self.drift, times[window], f"v{self.champion.number}")
        self.drift = found.state
        return bool(sequential_alarms(found, COLUMNS * monitor.alpha, monitor.min_effect))

    def _ask(self, trigger: Trigger, now: float, harm: Harm, harmed: bool) -> None:
        situation = Situation(
            now=_date(now),
            trainings=self.trainings,
            rejected=self.rejected,
            labelled_rows=int((self.known(now) >= self.stream.first).sum()),
            looks=self.looks,
            harm=harm,
            harmed=harmed,
            ended=self.ended,
        )
        if decide_retrain(trigger, situation, self.stream.config.retrain).kind != "retrain":
            return
        self.trainings = (*self.trainings, _date(now))[-20:]
        self.counts.trainings += 1
        self.made += 1
        challenger = self.make(now)
        self.ended = _date(now)
        verdict = decide_promotion(self._on_test(challenger, now), self.stream.config.rollout)
        if verdict.kind == "promote":
            self._promote(challenger, now)
            return
        self.rejected += 1
        self.challenger = challenger if verdict.kind == "inconclusive" else None

    def _on_test(self, challenger: Version, now: float) -> Comparison:
        """Compare with the champion on the test part, as `evaluation.compare` does."""
        config, known = self.stream.config, self.known(now)
        rows = known[self.stream.parts[known] == "test"]
        name, target = config.primary, self.stream.target(rows)
        outputs = [one.answers(rows) for one in (challenger, self.champion)]
        figures = [measure(PROJECT, config, target, {"output": one})[name] for one in outputs]
        answers = [read_answers(config.task, target, one) for one in outputs]
        up = config.task == "classification"
        better, worse = answers if up else reversed(answers)
        gain = gain_interval(weighted_metrics(PROJECT, config.task)[name], better, worse, config.gate, 0, None)
        value = figures[0] - figures[1] if up else figures[1] - figures[0]
        return Comparison(name, self.champion.number, len(rows), figures[0], figures[1], replace(gain, value=value))

    def _live(self, mine: Version, rival: Version, since: float, now: float, at_least: int) -> Comparison | None:
        times, config = self.stream.times, self.stream.config
        rows = np.flatnonzero((times >= since) & (times + DELAY < now))[: config.rollout.trial.max_labels]
        if len(rows) < at_least:
            return None
        traffic = self.stream.rows(rows, mine.answers(rows), mine.number)
        theirs = {"output": rival.answers(rows)}
        return compare_answers(
            PROJECT, config, self._reference(self.champion), traffic, traffic.outputs, theirs, rival.number
        )

    def _try(self, now: float) -> None:
        if self.challenger is None:
            return
        rollout, since = self.stream.config.rollout, self.challenger.made
        found = self._live(self.challenger, self.champion, since, now, rollout.trial.min_labels)
        trial = Trial(self.challenger.number, _date(since).isoformat(), _date(now).isoformat(), found)
        verdict = decide_trial(trial, rollout)
        if verdict.kind == "promote":
            self._promote(self.challenger, now)
        elif verdict.kind == "hold":
            self.challenger = None

    def _roll_back(self, now: float) -> None:
        if self.previous is None:
            return
        rollout, since = self.stream.config.rollout, self.champion.made
        found = self._live(self.champion, self.previous, since, now, rollout.rollback_min_labels)
        if decide_rollback(found, rollout).kind == "roll back":
            self.counts.rollbacks += 1
            self.champion, self.previous = replace(self.previous, made=now), None
            self.begin()

    def _promote(self, version: Version, now: float) -> None:
        self.counts.promotions += 1
        self.rejected = 0
        self.previous, self.champion, self.challenger = self.champion, replace(version, made=now), None
        self.begin()


RULES: dict[str, type[Rule]] = {
    "never": Rule,
    "weekly": Weekly,
    "each Evidently alarm": OnEvidently,
    "homeostat": Homeostat,
}


def _date(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def live(job: tuple[Source, Path, int, str]) -> tuple[float, Counts, Array]:
    """Return the mean loss of all answers (wrong, or absolute error), what was done, and the loss of each day."""
    source, folder, seed, name = job
    stream = Stream(source, folder, seed)
    start = float(stream.times[stream.first])
    teacher = Homeostat(stream, Version(0, 0.0, lambda rows: np.empty((len(rows), 1))))
    rule = RULES[name](stream, replace(teacher.make(start), made=start))
    losses = np.full(len(stream.y), np.nan)
    days = int((stream.times[-1] - start) // DAY) + 1
    for day in range(days):
        begin_at, now = start + day * DAY, start + (day + 1) * DAY
        rows = np.flatnonzero((stream.times >= begin_at) & (stream.times < now))
        answered = rule.champion.answers(rows)[:, 0]
        label = stream.y[rows]
        losses[rows] = (answered >= 0.5) != label if _classes(stream.config) else np.abs(answered - label)
        rule.look(now, day)
    lived = losses[stream.first :]
    daily = pd.Series(lived).groupby(((stream.times[stream.first :] - start) // DAY).astype(int)).mean()
    return float(np.nanmean(lived)), rule.counts, daily.to_numpy()


def _classes(config: ProjectConfig) -> bool:
    return config.task == "classification"


def run(folder: Path, seeds: int, workers: int, sources: list[Source]) -> Iterator[str]:
    """Yield the lines of the report."""
    yield "| stream | rule | share wrong, or MAE | against weekly, points or % | trainings | promotions | rollbacks |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    with ProcessPoolExecutor(workers) as pool:
        for source in sources:
            jobs = [(source, folder, seed, name) for name in RULES for seed in range(seeds)]
            found = list(pool.map(live, jobs))
            lives = {name: found[i * seeds : (i + 1) * seeds] for i, name in enumerate(RULES)}
            for name, each in lives.items():
                losses = np.array([one[0] for one in each])
                weekly = np.array([one[0] for one in lives["weekly"]])
                less = 100 * (losses - weekly) if _classes(source.config) else 100 * (losses / weekly - 1)
                shown = f"{losses.mean():.4f}" if _classes(source.config) else f"{losses.mean():.2f}"
                counts = [
                    f"{np.mean(values):.1f}"
                    for values in zip(*((c.trainings, c.promotions, c.rollbacks) for _, c, _ in each), strict=True)
                ]
                against = f"{less.mean():+.2f} ({less.min():+.2f} to {less.max():+.2f})"
                yield f"| {source.name} | {name} | {shown} | {against} | {' | '.join(counts)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[0, 2], help="numbers of benchmarks.streams' sources")
    parser.add_argument("--quick", action="store_true", help="one seed of bike sharing")
    options = parser.parse_args()
    folder = os.environ.get("HOMEOSTAT_DATA")
    if not folder:
        sys.exit("HOMEOSTAT_DATA names no folder with electricity.csv and bike_hour.csv")
    seeds, streams = (1, [2]) if options.quick else (options.seeds, options.streams)
    for line in run(Path(folder), seeds, options.workers, [SOURCES[number] for number in streams]):
        print(line, flush=True)


if __name__ == "__main__":
    main()
