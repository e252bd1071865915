"""Cohorts of answers by event time: how late their labels come, which have had time to, and the metric realized."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from datetime import datetime

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array
from homeostat.evaluation.metrics import higher_is_better, point_metrics, read_answers
from homeostat.evaluation.paired import metric_intervals
from homeostat.evaluation.weighted import weighted_metrics
from homeostat.monitoring.detector import iso_time
from homeostat.monitoring.performance import MIN_LABELLED, independent_ids, usable_labels
from homeostat.monitoring.traffic import TrafficRows, unix_seconds
from homeostat.project import Project
from homeostat.records import Cohort, Interval, LabelDelay

MATURE = 0.9
"""Share of the delays seen that a mature row's age is over."""
MIN_HORIZON = 60.0
"""Seconds; a learnt horizon is not shorter."""
MIN_DELAYS = 30
"""With fewer labels no horizon is learnt: config.monitor.window_hours stands in for it."""


def label_delay(rows: TrafficRows, now: datetime, config: ProjectConfig) -> LabelDelay:
    """Return how late the labels of `rows` came, and the age at which a row is mature.

    rows: with and without labels, over as long a time as there is: a delay longer than that
    cannot be seen. The delay of a label that was corrected is that of the correction; one from
    before its answer, by a clock that went back, is 0. The horizon is config.monitor.maturity_hours, or
    learnt: the 90 % quantile of the delays of the older half of the rows, since of the newer ones
    only the quick labels have come.
    """
    moment = unix_seconds(now)
    age = moment - rows.times
    delays = np.maximum(rows.label_times - rows.times, 0.0)
    seen = rows.labelled & np.isfinite(delays)
    older = seen & (age >= np.max(age, initial=0.0) / 2)
    settled = delays[older] if older.sum() >= MIN_DELAYS else delays[seen]
    if config.monitor.maturity_hours is not None:
        horizon = config.monitor.maturity_hours * 3600
    elif len(settled) >= MIN_DELAYS:
        horizon = max(MIN_HORIZON, float(np.quantile(settled, MATURE)))
    else:
        horizon = config.monitor.window_hours * 3600
    p50, p90 = (float(np.quantile(settled, q)) for q in (0.5, MATURE)) if len(settled) else (None, None)
    mature = age >= horizon
    coverage = float(rows.labelled[mature].mean()) if mature.any() else None
    return LabelDelay(p50=p50, p90=p90, coverage=coverage, horizon=horizon)


def equal_edges(start: datetime, end: datetime, count: int) -> Array:
    """Return count + 1 edges, unix seconds, of equal stretches between two times."""
    return np.linspace(unix_seconds(start), unix_seconds(end), count + 1)


def make_cohorts(
    project: Project,
    config: ProjectConfig,
    rows: TrafficRows,
    edges: Sequence[float] | Array,
    now: datetime,
    horizon: float,
    seed: int,
) -> tuple[Cohort, ...]:
    """Return the answers between each two edges (unix seconds, rising; a row on one belongs to the later cohort).

    horizon: seconds. A cohort is mature when its youngest possible row is that old. Its metric is
    the primary one with its bootstrap interval; None with fewer than 10 labels, or where these
    leave it undefined.
    """
    place = np.searchsorted(np.asarray(edges), rows.times, side="right") - 1
    moment = unix_seconds(now)
    return tuple(
        _cohort(
            project, config, rows.take(place == i), (float(start), float(end)), moment - float(end) >= horizon, seed
        )
        for i, (start, end) in enumerate(itertools.pairwise(edges))
    )


def mature_parts(rows: TrafficRows, edges: Array, now: datetime, horizon: float) -> tuple[TrafficRows, ...]:
    """Return the rows of each mature stretch between two edges: what an estimate is tested on."""
    place = np.searchsorted(edges, rows.times, side="right") - 1
    mature = unix_seconds(now) - edges[1:] >= horizon
    return tuple(rows.take(place == i) for i in np.flatnonzero(mature))


def worsened(cohorts: Sequence[Cohort], metric: str, reference: float) -> tuple[Cohort, ...]:
    """Return the mature cohorts whose whole interval is on the worse side of the reference's metric."""
    up = higher_is_better(metric)

    def worse(interval: Interval) -> bool:
        return interval.high < reference if up else interval.low > reference

    return tuple(c for c in cohorts if c.mature and c.metric is not None and worse(c.metric))


def realized(project: Project, config: ProjectConfig, labelled: TrafficRows, seed: int) -> Interval | None:
    """Return the primary metric of usable labelled rows; None with fewer than 10, or where it is undefined."""
    if len(labelled) < MIN_LABELLED:
        return None
    answers = read_answers(config.task, labelled.labels, labelled.outputs)
    value = point_metrics(project, config.task, answers).get(config.primary)
    if value is None:
        return None
    weighted = weighted_metrics(project, config.task)[config.primary]
    (interval,) = metric_intervals([weighted], answers, config.gate, seed, independent_ids(labelled))
    found = value(answers)
    return Interval(found, interval.low, interval.high, interval.confidence) if math.isfinite(found) else None


def _cohort(
    project: Project,
    config: ProjectConfig,
    rows: TrafficRows,
    edges: tuple[float, float],
    mature: bool,
    seed: int,
) -> Cohort:
    labelled = usable_labels(rows, config.task)
    return Cohort(
        start=iso_time(edges[0]),
        end=iso_time(edges[1]),
        answered=len(rows),
        labelled=len(labelled),
        mature=mature,
        metric=realized(project, config, labelled, seed),
    )
