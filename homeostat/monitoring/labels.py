"""Everything that late labels, and the lack of them, say of the live version at one look."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array
from homeostat.masking import mask_like
from homeostat.monitoring.changes import calibration_change, error_change, latency_changes
from homeostat.monitoring.cohorts import equal_edges, label_delay, make_cohorts, mature_parts
from homeostat.monitoring.estimate import estimate_metric, fit_estimator
from homeostat.monitoring.harm import HarmState, begin, count_labels
from homeostat.monitoring.performance import row_losses, usable_labels
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows, read_rows, unix_seconds
from homeostat.project import Project
from homeostat.records import Change, Cohort, Estimate, Harm, LabelDelay
from homeostat.sealing import Keyring

WINDOWS = 8
"""Cohorts are windows: so many are looked back at, this one included."""
MAX_LABELS = 300_000
"""Labelled rows that one look counts at most; more are counted by the next ones."""


@dataclass(frozen=True)
class LabelEvidence:
    """What goes into `Monitoring`, and the state for the next look."""

    state: HarmState
    harm: tuple[Harm, ...]
    cohorts: tuple[Cohort, ...]
    delay: LabelDelay
    estimate: Estimate
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def look_at_labels(
    project: Project,
    config: ProjectConfig,
    reference: Reference,
    state: HarmState | None,
    *,
    version: int,
    traffic: Path,
    champion_since: datetime,
    since: datetime,
    now: datetime,
    seed: int,
    keys: Keyring | None = None,
) -> LabelEvidence:
    """Count the labels that are new, and measure cohorts, delay, estimate and changes up to `now`.

    state: of the look before; None, or of another version, begins anew. The window is from `since`;
    cohorts are it and up to 7 as long before it, since the version became champion. The estimate
    and the changes are of the window; they are held against the cohorts before it, and calibration
    against the reference. Raises as `read_rows` does.
    """
    losses = row_losses(project, config, reference)
    if state is None or state.version != version:
        state = begin(config, reference, losses, version)

    def read(start: datetime, rows: int, *, labelled_only: bool = False) -> TrafficRows:
        return read_rows(
            traffic, config.name, start, now, rows, version=version, labelled_only=labelled_only, seed=seed, keys=keys
        )

    look = count_labels(state, read(champion_since, MAX_LABELS, labelled_only=True), config, reference, losses)
    edges = _edges(champion_since, since, now)
    rows = read(max(champion_since, now - WINDOWS * (now - since)), WINDOWS * config.monitor.max_rows)
    window, before = rows.take(rows.times >= edges[-2]), rows.take(rows.times < edges[-2])
    delay = label_delay(rows, now, config)
    if rows.masking is not None:
        reference = replace(reference, inputs=mask_like(rows.masking, reference.inputs))
    past = mature_parts(rows, edges[:-1], now, delay.horizon)
    alpha = config.monitor.alpha
    changes = [*latency_changes(before.request_milliseconds, window.request_milliseconds, alpha)]
    changes.append(error_change(before, window, alpha))
    if config.task == "classification":
        changes.insert(0, calibration_change(reference, usable_labels(window, config.task), alpha, seed))
    return LabelEvidence(
        state=look.state,
        harm=look.harm,
        cohorts=make_cohorts(project, config, rows, edges, now, delay.horizon, seed),
        delay=delay,
        estimate=estimate_metric(fit_estimator(project, config, reference, seed), config, window, past),
        changes=tuple(changes),
        notes=look.notes,
    )


def _edges(champion_since: datetime, since: datetime, now: datetime) -> Array:
    """Return the edges of the windows up to now, unix seconds: at least one, none from before the version."""
    length = max(now - max(since, champion_since), timedelta(seconds=1))
    count = max(1, min(WINDOWS, int((unix_seconds(now) - unix_seconds(champion_since)) // length.total_seconds())))
    edges: Array = np.asarray(equal_edges(now - count * length, now, count))
    return edges
