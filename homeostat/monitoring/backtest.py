"""A labelled history replayed window by window: when each alarm would have come, and whether it was right."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array
from homeostat.errors import ConfigError
from homeostat.monitoring.columns import watched_frame
from homeostat.monitoring.detector import iso_time, mean_interval
from homeostat.monitoring.drift import find_drift
from homeostat.monitoring.harm import begin, count_labels
from homeostat.monitoring.performance import RowLosses, row_losses, usable_labels
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.sequence import DriftState
from homeostat.monitoring.traffic import TrafficRows
from homeostat.project import Project
from homeostat.records import Interval

MAX_WINDOWS = 5_000
MIN_TRUE = 30
"""Labels of a window without which nobody can say whether it was harmed."""


@dataclass(frozen=True)
class Labels:
    """How labels come in the replay."""

    delay: timedelta = timedelta(0)
    """After the answer."""
    coverage: float = 1.0
    """Share of the labels that come at all, drawn at random."""


@dataclass(frozen=True)
class ReplayedWindow:
    """One scheduled look: what was known at its end, what was said, and what was true."""

    start: str
    end: str
    rows: int
    known: int
    """Labels of this window's rows that had come by its end."""
    counted: int
    """Labels of any rows that had come since the look before."""
    loss: Interval | None
    """True mean loss in [0, 1] by all labels, also those that came later; None with fewer than 30."""
    harmful: bool | None
    """Whether that is more points over the reference's than allowed; None when it is not known."""
    harmed: bool
    """Whether all labels that had come by its end say harm: `Harm.harmed`."""
    standing: bool
    """Whether the detector's alarm stands: if not, it is the labels of this look alone."""
    since: str
    slices: tuple[str, ...]
    """Slices that are harmed."""
    drifted: bool | None
    """None when it was not tested."""
    reason: str
    """Of the drift verdict, and why labels did not count."""


@dataclass(frozen=True)
class Score:
    """Alarms of one kind against what was true."""

    harmful: int
    """Windows that were harmful."""
    caught: int
    """... of them, with an alarm at their own end or the next window's."""
    alarms: int
    elsewhere: int
    """... of them, where neither the window nor the one before was harmful."""
    unknown: int = 0
    """Alarms of which nobody can say, for want of labels: in neither of the two above."""


@dataclass(frozen=True)
class Backtest:
    """A replay as a whole."""

    model: str
    version: int
    reference_loss: float
    tolerated: float
    points: float
    """A window is harmful over the reference's loss by more than so many hundredths."""
    windows: tuple[ReplayedWindow, ...]
    harm: Score
    drift: Score | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replay:
    """One version, its reference, and the history that it answers."""

    project: Project
    config: ProjectConfig
    reference: Reference
    version: int
    rows: TrafficRows
    """Oldest first, all with their answers; label_times are set by `labels`."""
    edges: Array
    """Unix seconds, rising: between each two a window, the end not in it."""
    labels: Labels
    points: float = 5.0
    drift: bool = True

    def windows(self) -> Iterator[ReplayedWindow]:
        """Yield each window as the scheduled monitor would have seen it at its end."""
        losses = row_losses(self.project, self.config, self.reference)
        state = begin(self.config, self.reference, losses, self.version)
        bar = reference_loss(losses, self.reference) + self.points / 100
        rows = _with_arrivals(self.rows, self.labels, self.config.train.seed)
        place = np.searchsorted(self.edges, rows.times, side="right") - 1
        last = -math.inf
        with tempfile.TemporaryDirectory(prefix="homeostat-backtest-") as folder:
            look = _DriftLook(self, Path(folder))
            for i, (start, end) in enumerate(itertools.pairwise(self.edges.tolist())):
                mine = place == i
                window = rows.take(mine)
                counted = count_labels(
                    state,
                    rows.take((rows.label_times >= last) & (rows.label_times < end)),
                    self.config,
                    self.reference,
                    losses,
                )
                state, last = counted.state, end
                truth = _true_loss(self.rows.take(mine), self.config, losses)
                drifted, reason = look.at(window) if self.drift else (None, "")
                yield ReplayedWindow(
                    start=iso_time(start),
                    end=iso_time(end),
                    rows=len(window),
                    known=int((window.label_times < end).sum()),
                    counted=counted.counted,
                    loss=truth,
                    harmful=None if truth is None else truth.value > bar,
                    harmed=counted.harm[0].harmed,
                    standing=counted.harm[0].standing,
                    since=counted.harm[0].since,
                    slices=tuple(harm.name for harm in counted.harm[1:] if harm.harmed),
                    drifted=drifted,
                    reason="; ".join(part for part in (reason, *counted.notes) if part),
                )

    def finish(self, windows: Sequence[ReplayedWindow], notes: tuple[str, ...] = ()) -> Backtest:
        """Return the replay as a whole."""
        losses = row_losses(self.project, self.config, self.reference)
        harmful = [window.harmful for window in windows]
        drift = score(harmful, [bool(window.drifted) for window in windows]) if self.drift else None
        return Backtest(
            model=self.config.name,
            version=self.version,
            reference_loss=reference_loss(losses, self.reference),
            tolerated=begin(self.config, self.reference, losses, self.version).streams[0].tolerated,
            points=self.points,
            windows=tuple(windows),
            harm=score(harmful, [window.harmed for window in windows]),
            drift=drift,
            notes=notes,
        )


def reference_loss(losses: RowLosses, reference: Reference) -> float:
    """Return the mean loss of the reference's rows."""
    return float(losses(reference.target, reference.outputs).mean())


def window_edges(times: Array, window: timedelta | int) -> Array:
    """Return the edges of equal times, or of equal counts of rows, for times [n] in order; the last may be shorter.

    Raises ConfigError when they are more than 5,000.
    """
    first, last = float(times[0]), float(times[-1])
    if isinstance(window, timedelta):
        seconds = window.total_seconds()
        count = math.floor((last - first) / seconds) + 1
        span = f"windows of {window}"
    else:
        count = math.ceil(len(times) / window)
        span = f"windows of {window} rows"
    if count > MAX_WINDOWS:
        raise ConfigError(f"{count} {span} are too many, at most {MAX_WINDOWS}: choose a longer --window")
    if isinstance(window, timedelta):
        return first + np.arange(count + 1) * seconds
    starts = np.unique(times[::window])
    return np.append(starts, np.nextafter(last, math.inf))


def score(harmful: Sequence[bool | None], alarms: Sequence[bool]) -> Score:
    """Hold alarms against windows: right in a harmful window or the one after."""
    before = [None, *harmful[:-1]]
    after = [*alarms[1:], False]
    known = [h is not None for h in harmful]
    right = [bool(h or b) for h, b in zip(harmful, before, strict=True)]
    elsewhere = [a and not r and k for a, r, k in zip(alarms, right, known, strict=True)]
    return Score(
        harmful=sum(bool(h) for h in harmful),
        caught=sum(bool(h) and (a or later) for h, a, later in zip(harmful, alarms, after, strict=True)),
        alarms=sum(alarms),
        elsewhere=sum(elsewhere),
        unknown=sum(a and not r and not k for a, r, k in zip(alarms, right, known, strict=True)),
    )


def _with_arrivals(rows: TrafficRows, labels: Labels, seed: int) -> TrafficRows:
    """Return the rows with the times at which their labels come, NaN where they never do."""
    comes = np.random.default_rng(seed).random(len(rows)) < labels.coverage
    arrivals = np.where(rows.labelled & comes, rows.times + labels.delay.total_seconds(), np.nan)
    return replace(rows, label_times=arrivals)


def _true_loss(rows: TrafficRows, config: ProjectConfig, losses: RowLosses) -> Interval | None:
    usable = usable_labels(rows, config.task)
    return mean_interval(losses(usable.labels, usable.outputs)) if len(usable) >= MIN_TRUE else None


class _DriftLook:
    """The drift verdict of one window after another, each going on from the one before."""

    def __init__(self, replay: Replay, workspace: Path) -> None:
        reference = replay.reference
        self._replay, self._workspace, self._state = replay, workspace, DriftState()
        self._expected = watched_frame(
            replay.project, replay.config.task, reference.inputs, reference.columns, reference.outputs
        )

    def at(self, rows: TrafficRows) -> tuple[bool | None, str]:
        """Return whether the window drifted, None when it was not tested, and why."""
        config = self._replay.config
        if len(rows) < config.monitor.min_rows:
            return None, f"{len(rows)} rows are under monitor.min_rows = {config.monitor.min_rows}: drift not tested"
        if len(rows) > config.monitor.max_rows:
            rng = np.random.default_rng(config.train.seed)
            rows = rows.take(np.sort(rng.choice(len(rows), config.monitor.max_rows, replace=False)))
        current = watched_frame(
            self._replay.project, config.task, rows.inputs, self._replay.reference.columns, rows.outputs
        )
        drift = find_drift(
            self._expected,
            current,
            config,
            self._workspace,
            state=self._state,
            times=rows.times,
            seed=f"{config.name} v{self._replay.version}",
            importance=self._replay.reference.importance,
        )
        self._state = drift.state
        return drift.drifted if drift.judged else None, drift.reason
