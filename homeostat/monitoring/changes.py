"""What else gets worse: calibration, latency and the rate of failed answers, each against before."""

from __future__ import annotations

import numpy as np

from homeostat.dataset import Array
from homeostat.evaluation.metrics import matrix
from homeostat.monitoring.estimate import confidence, right
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows
from homeostat.records import Change

MIN_ROWS = 100
"""Rows, or requests, of either side; with fewer nothing is tested."""
BINS = 10
PERMUTATIONS = 999
SLACK = 0.02
"""A rise of the calibration error up to this is no change that matters; so is one of the rate of failed answers."""
RATIO, FLOOR_MS = 1.5, 1.0
"""A quantile of latency changes when it is more than so many times what it was, and over the floor."""


def calibration_change(reference: Reference, labelled: TrafficRows, alpha: float, seed: int) -> Change:
    """Return the expected calibration error of labelled rows beside the reference's; classification alone.

    The confidence of each answer against whether it is right, in 10 bins of equal counts of both
    together (Guo et al. 2017; equal counts: Nguyen & O'Connor 2015). The p-value is of a
    one-sided permutation test of the difference, rows of window and reference being exchangeable
    without a change: the bias of the error in small samples is on both sides of it.
    """
    name = "calibration_error"
    if len(labelled) < MIN_ROWS or len(reference) < MIN_ROWS:
        reason = f"{len(labelled)} labelled rows and {len(reference)} of the reference: {MIN_ROWS} of each are needed"
        return Change(name, None, None, None, changed=False, reason=reason)
    gaps = [right(reference.outputs, reference.target) - confidence(reference.outputs)]
    gaps.append(right(labelled.outputs, labelled.labels) - confidence(labelled.outputs))
    known = np.concatenate([confidence(reference.outputs), confidence(labelled.outputs)])
    gap, n = np.concatenate(gaps), len(reference)
    order = np.argsort(known, kind="stable")
    bins = np.empty(len(known), dtype=np.int64)
    bins[order] = np.arange(len(known)) * BINS // len(known)

    def error(rows: Array) -> float:
        return float(np.abs(np.bincount(bins[rows], gap[rows], BINS)).sum() / len(rows))

    rng = np.random.default_rng(seed)
    every = np.arange(len(known))
    before, now = error(every[:n]), error(every[n:])
    draws = (rng.permutation(every) for _ in range(PERMUTATIONS))
    beyond = sum(error(drawn[n:]) - error(drawn[:n]) >= now - before for drawn in draws)
    p_value = (1 + beyond) / (1 + PERMUTATIONS)
    changed = p_value <= alpha and now - before > SLACK
    reason = f"calibration error {now:.3f}, was {before:.3f} on the reference (p = {p_value:.2g})"
    return Change(name, before, now, p_value, changed, reason)


def latency_changes(before: Array, now: Array, alpha: float) -> tuple[Change, ...]:
    """Return p50 and p99 of requests' milliseconds [n] beside those of a time before [m].

    Each quantile q of the time before is held against both sides by a one-sided Fisher test of how
    many requests are over it, at alpha / 2. Requests of one burst are slow together, so that the
    p-value is too small then: a change also needs RATIO times the quantile, and FLOOR_MS.
    """
    return tuple(_latency_change(before, now, q, alpha / 2) for q in (0.5, 0.99))


def _latency_change(before: Array, now: Array, q: float, level: float) -> Change:
    name = f"latency_p{100 * q:g}_ms"
    before, now = before[np.isfinite(before)], now[np.isfinite(now)]
    if min(len(before), len(now)) < MIN_ROWS:
        reason = f"{len(now)} requests, and {len(before)} before them: {MIN_ROWS} of each are needed"
        return Change(name, None, None, None, changed=False, reason=reason)
    was, found = float(np.quantile(before, q)), float(np.quantile(now, q))
    p_value = _more_often(int((now > was).sum()), len(now), int((before > was).sum()), len(before))
    changed = p_value <= level and found > RATIO * was and found > FLOOR_MS
    return Change(name, was, found, p_value, changed, f"p{100 * q:g} {found:.3g} ms, was {was:.3g} (p = {p_value:.2g})")


def error_change(before: TrafficRows, now: TrafficRows, alpha: float) -> Change:
    """Return the share of answers that are NaN or infinite beside that of a time before.

    Requests that got no answer are not captured: their rate is in the server's metrics.
    """
    name = "error_rate"
    if min(len(before), len(now)) < MIN_ROWS:
        reason = f"{len(now)} rows, and {len(before)} before them: {MIN_ROWS} of each are needed"
        return Change(name, None, None, None, changed=False, reason=reason)
    bad_now, bad_before = (int((~np.isfinite(matrix(rows.outputs)).all(axis=1)).sum()) for rows in (now, before))
    was, found = bad_before / len(before), bad_now / len(now)
    p_value = _more_often(bad_now, len(now), bad_before, len(before))
    changed = p_value <= alpha and found > was + SLACK
    reason = f"{found:.2%} of the answers are not finite, were {was:.2%} (p = {p_value:.2g})"
    return Change(name, was, found, p_value, changed, reason)


def _more_often(now: int, trials: int, before: int, trials_before: int) -> float:
    """Return the one-sided p-value of Fisher's exact test."""
    from scipy.stats import fisher_exact

    table = [[now, trials - now], [before, trials_before - before]]
    return float(fisher_exact(table, alternative="greater").pvalue)
