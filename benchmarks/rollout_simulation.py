"""A rollout at a simulated clock: the server's own code judges requests that nobody sent.

Real: the control store, the bundles and their graphs in ONNX Runtime, the repository, the data
plane, the trial, what it counts, the guards, the controller and its decisions. Simulated: the
clock, when requests and labels come, and how long a graph takes.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import random
import shutil
import tempfile
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any
from unittest import mock

import numpy as np

import homeostat.bundle
from benchmarks.rollout_models import MODEL, SAID, bundle, classifier, labelled_rows, make_champion
from homeostat.bundle import load_public_key
from homeostat.config import RolloutConfig
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.records import BundleRef
from homeostat.serving.capture.recorder import Recorder
from homeostat.serving.dataplane import DataPlane, InferRequest
from homeostat.serving.metrics import Metrics
from homeostat.serving.repository import ModelState, Repository
from homeostat.serving.rollout import controller, trial
from homeostat.serving.served import Served
from homeostat.serving.session import Session

MEDIAN_SECONDS, SPREAD = 0.003, 0.4
"""How long the champion takes: a lognormal of this median and sigma, so its p99 is 7.6 ms."""
LABEL_SECONDS = 1.0
"""Mean time from an answer to its label."""
ROWS = 20_000
ENDS = {"abort": "out", "rollback": "out", "finish": "promoted", "pause": "paused"}
"""Ledger action -> how the rollout has ended."""


class Clock:
    """`time` as the controller and the trial see it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.taken = 0.0
        """Of the request of now."""

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now + self.taken

    def thread_time(self) -> float:
        return self.taken


@dataclass(frozen=True)
class Behavior:
    """What a challenger does, and where it is bad."""

    how: str = "good"
    """See benchmarks.rollout_models.classifier."""
    limit: float = -1.0
    times: float = 1.0
    """So many times the champion's seconds ..."""
    from_quantile: float = 0.0
    """... in requests that take longer than this quantile of the champion's."""
    refuses: float = 0.0
    """Share of requests that its contract refuses."""

    def bundles(self, home: Path, config: RolloutConfig) -> list[BundleRef]:
        """The champion, v1, and the challenger, v2."""
        common: dict[str, Any] = {"task": "classification", "rollout": config, "capture": False}
        graph = classifier(self.how, self.limit)
        limit = 1 - self.refuses / 4 if self.refuses else 10.0  # of four columns, uniform in (-1, 1)
        refusing = "reject" if self.refuses else "accept"
        # requests are drawn by the manifest's digest: another time of making would be another seed
        with mock.patch.object(homeostat.bundle, "datetime", mock.Mock(now=lambda _: datetime(2026, 1, 1, tzinfo=UTC))):
            return [
                bundle(home, 1, classifier(), **common),
                bundle(home, 2, graph, limit=limit, out_of_range=refusing, **common),
            ]


@dataclass(frozen=True)
class Traffic:
    """How many requests come, and how good the champion is."""

    rate: float = 500.0
    """Requests a second, at random times."""
    base_error: float = 0.05
    """Share of labels that both versions miss."""
    labelled: float = 1.0
    """Share of requests whose label comes."""


@dataclass
class Outcome:
    """How a rollout has ended."""

    end: str
    """`out`, `promoted` and baked, `paused`, or `running` when the time was up."""
    seconds: float
    requests: int
    asked: int = 0
    """Requests that fell to the challenger."""
    failures: int = 0
    """Of them the challenger failed so many, and the champion answered instead."""
    bad: int = 0
    """Wrong or slow answers of the challenger that clients got."""
    reason: str = ""


class _Repository(Repository):
    """The repository, which is followed when it was poked instead of by its thread."""

    poked = False

    def poke(self) -> None:
        self.poked = True


class _TimedSession:
    """A session whose calls take simulated time."""

    def __init__(self, session: Session, clock: Clock, behavior: Behavior, rng: random.Random) -> None:
        self.outputs, self.output_names, self._run = session.outputs, session.output_names, session.run
        self._clock, self._behavior, self._rng = clock, behavior, rng
        self._from = math.inf
        if behavior.times != 1.0:
            self._from = _quantile(behavior.from_quantile)
        self.slow = False
        """Whether the last call took longer than the champion would have."""

    def run(self, tensors: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        seconds = MEDIAN_SECONDS * math.exp(SPREAD * self._rng.gauss(0, 1))
        self.slow = seconds > self._from
        self._clock.taken += seconds * self._behavior.times if self.slow else seconds
        return self._run(tensors)


def _quantile(q: float) -> float:
    """Of the champion's seconds."""
    return MEDIAN_SECONDS * math.exp(SPREAD * NormalDist().inv_cdf(q)) if q > 0 else 0.0


class World:
    """One server's parts, and a control store in which a challenger is rolled out."""

    def __init__(self, folder: Path, bundles: Path, refs: list[BundleRef], behavior: Behavior, seed: int) -> None:
        """bundles: the home that has signed them. folder: of this run alone."""
        self.clock, self._rng = Clock(), random.Random(seed)
        self.store = ControlStore(f"sqlite:///{folder}/control.db")
        self._refs, self._behavior = refs, behavior
        metrics = Metrics()
        self._repository = _Repository(
            lambda: self.store, lambda: load_public_key(bundles), folder / "serving", metrics, salt=lambda: b"salt"
        )
        for ref in refs:  # their preflights are not what is measured
            self._repository._memory.add(ref, batch_invariant=True)
        self.plane = DataPlane(self._repository, Recorder(folder / "traffic.db"), metrics)
        self.rollouts = controller.Rollouts(self.plane, lambda: self.store, folder / "serving")
        self._repository.watch = lambda state: self.rollouts.follow(self._timed(state))
        self._timed_versions: dict[int, Served] = {}
        self.challenger: _TimedSession | None = None

    def begin(self, config: RolloutConfig) -> None:
        """Make v1 champion and start to roll out v2."""
        champion, challenger = self._refs
        make_champion(self.store, champion)
        generation = self.store.generation(MODEL)
        row = self.store.set_challenger(MODEL, challenger, expected_generation=generation, **SAID)
        progress.start(self.store, challenger, config, Why("bench", "bench"), expected_generation=row.generation)
        self._repository.poll()

    def close(self) -> None:
        self.rollouts.close()
        self.plane.close()

    def _timed(self, state: ModelState) -> ModelState:
        parts = {"live": state.live, "previous": state.previous, "challenger": state.challenger}
        return replace(state, **{name: self._timed_version(one) for name, one in parts.items()})

    def _timed_version(self, served: Served | None) -> Served | None:
        if served is None:
            return None
        version = served.ref.version
        if version not in self._timed_versions:
            behavior = self._behavior if version == 2 else Behavior()
            session: Any = _TimedSession(served.session, self.clock, behavior, random.Random(self._rng.random()))
            self._timed_versions[version] = replace(served, session=session, inline_rows=served.max_rows)
            if version == 2:
                self.challenger = session
        return self._timed_versions[version]

    def tick(self) -> None:
        """Judge; write what was decided, and follow it."""
        self.rollouts.tick()
        self.rollouts._decisions.write()
        if self._repository.poked:
            self._repository.poked = False
            self._repository.poll()


def _result(answering: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        answering.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the simulated data plane waits for something")


def play(world: World, config: RolloutConfig, traffic: Traffic, seconds: float, seed: int) -> Outcome:
    """Send requests and labels until the rollout has ended, or the time is up."""
    rng, clock = random.Random(seed), world.clock
    labels: list[tuple[float, str, float]] = []
    rows, truth = labelled_rows(ROWS, traffic.base_error, seed)
    world.begin(config)
    began = clock.now
    due, outcome = began + controller.TICK_SECONDS, Outcome("running", seconds, 0)
    while clock.now < began + seconds:
        clock.now += rng.expovariate(traffic.rate)
        while labels and labels[0][0] <= clock.now:
            _, key, label = heapq.heappop(labels)
            if (on_trial := world.plane.trials.get(MODEL)) is not None:
                on_trial.counts.label(key, [label])
        while due <= clock.now:
            world.tick()
            due += controller.TICK_SECONDS
        on_trial = world.plane.trials.get(MODEL)
        if on_trial is None or on_trial.row.paused:
            break
        place = outcome.requests % ROWS
        key = f"{seed}-{outcome.requests}"
        outcome.requests += 1
        _ask(world, on_trial, rows[place : place + 1], truth[place], key, outcome)
        if rng.random() < traffic.labelled:
            heapq.heappush(labels, (clock.now + rng.expovariate(1 / LABEL_SECONDS), key, truth[place]))
    entry = world.store.history(MODEL)[-1]
    if entry.action in ENDS:
        outcome.end, outcome.seconds, outcome.reason = ENDS[entry.action], clock.now - began, entry.reason
    return outcome


def _ask(world: World, on_trial: trial.Trial, row: np.ndarray, truth: float, key: str, outcome: Outcome) -> None:
    world.clock.taken = 0.0
    before = on_trial.evidence.requests
    response = _result(world.plane.infer(on_trial.control, InferRequest({"x": row}, id=key)))
    if on_trial.evidence.requests == before:
        return
    outcome.asked += 1
    if response.served.ref.version != 2:
        outcome.failures += 1
    elif int(response.outputs["output"][0].argmax()) != truth or (world.challenger and world.challenger.slow):
        outcome.bad += 1


@contextlib.contextmanager
def _simulated_time(clock: Clock) -> Iterator[None]:
    with mock.patch.object(controller, "time", clock), mock.patch.object(trial, "time", clock):
        yield


def _memory_folder() -> str | None:
    """A folder that no disk slows down, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a line in the log for each abort and each failure."""
    logger = logging.getLogger("homeostat")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@_quiet()
def run(behavior: Behavior, config: RolloutConfig, traffic: Traffic, seconds: float, seeds: list[int]) -> list[Outcome]:
    """Roll a challenger out once for each seed."""
    outcomes = []
    home = Path(tempfile.mkdtemp(prefix="homeostat-bench-", dir=_memory_folder()))
    try:
        refs = behavior.bundles(home, config)
        for seed in seeds:
            folder = home / str(seed)
            folder.mkdir()
            world = World(folder, home, refs, behavior, seed)
            try:
                with _simulated_time(world.clock):
                    outcomes.append(play(world, config, traffic, seconds, seed))
            finally:
                world.close()
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(home)
    return outcomes
