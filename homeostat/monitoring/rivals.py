"""Two versions on the same labelled live rows, in the order in which their labels came.

Both graphs answer the rows again, whoever answered them when they came, so that a shadow, a canary's
arm and a version without any traffic are held against the champion in one way. The interval of the
gain is a confidence sequence (homeostat.evaluation.betting): it may be looked at after each label.
It takes each row, given those before, to be expected to favour neither side more than the mean does;
rows that follow one another and are about one entity count once, with their mean.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array
from homeostat.errors import GateFailed
from homeostat.evaluation.betting import mean_sequence
from homeostat.evaluation.evaluate import answers_of_both
from homeostat.monitoring.performance import error_shares, row_losses, usable_labels
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows, read_rows
from homeostat.project import Project
from homeostat.records import Comparison, SliceGain
from homeostat.sealing import Keyring

ERROR = "scaled error"
"""A regression's absolute errors, of which the reference's 95 % quantile is 1."""
MAX_SLICES = 100
"""Values of slices that are compared, the most frequent ones."""


def compare_live(
    project: Project,
    config: ProjectConfig,
    reference: Reference,
    mine: bytes,
    rival: tuple[int, bytes],
    *,
    traffic: Path,
    since: datetime,
    now: datetime,
    min_labels: int,
    version: int | None = None,
    keys: Keyring | None = None,
) -> Comparison | None:
    """Return the gain of a graph over its rival's (version, ONNX graph) on the labelled rows answered since a time.

    The gain is of the loss that harm is measured in, positive when `mine` loses less; in regression
    the errors' difference is bounded, not each error, or two models that a changed world has left
    far off could not be told apart. The gain's interval has the confidence config.gate.confidence at
    all looks together. reference: the live version's. version: only rows that this version answered.
    The first config.rollout.trial.max_labels count. None with fewer than min_labels. Raises
    GateFailed when the graphs do not take these rows or they are masked, and as `read_rows` and `row_losses` do.
    """
    most = config.rollout.trial.max_labels
    everything = sys.maxsize  # the first labelled rows bound it: nothing is drawn at random
    rows = read_rows(traffic, config.name, since, now, everything, version=version, first_labelled=most, keys=keys)
    if rows.masking is not None:
        raise GateFailed("captured inputs are masked (serve.masking), so that no version can answer them again")
    rows = in_order_of_labels(usable_labels(rows, config.task))
    rows = rows.take(np.arange(min(len(rows), most)))
    if len(rows) < min_labels:
        return None
    first, second = answers_of_both(config, rows.inputs, mine, rival[1], rival[0])
    return compare_answers(project, config, reference, rows, first, second, rival[0])


def compare_answers(
    project: Project,
    config: ProjectConfig,
    reference: Reference,
    rows: TrafficRows,
    mine: Mapping[str, Array],
    rivals: Mapping[str, Array],
    rival: int,
) -> Comparison:
    """Return the gain of answers over a rival version's to labelled rows, in the order in which their labels came."""
    errors = config.task == "regression" and not config.monitor.harm_metric
    losses = error_shares(reference) if errors else row_losses(project, config, reference)
    ours, theirs = losses(rows.labels, mine), losses(rows.labels, rivals)
    with np.errstate(invalid="ignore"):  # neither is finite: neither gains
        gains = np.clip(np.nan_to_num(theirs - ours, nan=0.0), -1, 1)
    name = ERROR if errors else config.monitor.harm_metric or "accuracy"
    mean, rival_mean = (float((losses if errors else 1 - losses).mean()) for losses in (ours, theirs))
    gain = mean_sequence(once_each(gains, rows.entity_ids), config.gate.confidence)
    return Comparison(name, rival, len(rows), mean, rival_mean, gain, _slice_gains(config, rows, gains))


def in_order_of_labels(rows: TrafficRows) -> TrafficRows:
    """Return the rows by the time at which their labels came, then by that of the answer."""
    return rows.take(np.lexsort((rows.places, rows.times, rows.label_times)))


def once_each(values: Array, entities: Array) -> Array:
    """Return values [n] with each run of one entity (not empty) as its mean: ten rows of a patient are one patient."""
    if not len(values):
        return values
    new = np.r_[True, (entities[1:] != entities[:-1]) | (entities[1:] == "")]
    starts = np.flatnonzero(new)
    means: Array = np.add.reduceat(values, starts) / np.diff(np.r_[starts, len(values)])
    return means


def _slice_gains(config: ProjectConfig, rows: TrafficRows, gains: Array) -> tuple[SliceGain, ...]:
    """Return the gain in each value of config.serve.slices, corrected for their number (Bonferroni)."""
    members = {
        f"{name}={value}": rows.slices[name] == value
        for name in config.serve.slices
        if name in rows.slices
        for value in np.unique(rows.slices[name]).tolist()
        if value
    }
    kept = sorted(members, key=lambda name: (-int(members[name].sum()), name))[:MAX_SLICES]
    confidence = 1 - (1 - config.gate.confidence) / max(1, len(kept))
    return tuple(
        SliceGain(name, int(part.sum()), mean_sequence(once_each(gains[part], rows.entity_ids[part]), confidence))
        for name, part in ((name, members[name]) for name in sorted(kept))
    )
