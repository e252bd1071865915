"""Outliers: single requests unlike the rows that the version knows, at a stated rate of false ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from homeostat.dataset import Array
from homeostat.monitoring.columns import column_kind
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows
from homeostat.project import Project
from homeostat.records import Outlier, Outliers

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 10_000
"""Rows of a window that are scored: a sample of more."""
FITTED, LEAST_FITTED, LEAST = 0.25, 128, 100
"""Share of the reference that a score is fitted on, the least rows of it, and the least that are left."""
MAX_VALUES = 4_096
"""Values of a tensor that are reconstructed: a sample of more."""
EXPLAINED = 0.95
"""Share of the variance that the principal components keep."""
TREES = 200
LEAST_SPAN = 1e-6
WORST, COLUMNS = 20, 3
MOST = 0.2
"""Share of rows from which on it is the traffic that has changed, and not single requests."""


def find_outliers(
    project: Project, reference: Reference, rows: TrafficRows, rate: float, seed: int = 0, most: int = WORST
) -> Outliers | None:
    """Return the rows of a window that are unlike the reference, `most` by name; None when rate is 0.

    A quarter of the reference fits a score, which never sees the rest: for tables an isolation forest (Liu
    et al. 2008) on the columns of the project's frame, for inputs of three axes or more (images) how unlikely
    principal components make them, by the error of their reconstruction above all. The rest gives each
    row a conformal p-value, and Benjamini and Hochberg's procedure at `rate` names rows: of those named at
    most that share, on average, is none, as long as the others are exchangeable with the reference
    (Bates et al. 2023, "Testing for outliers with conformal p-values", theorem 2).
    """
    if rate == 0 or not len(rows):
        return None
    if reference.inputs.keys() - rows.inputs.keys():
        return None  # drift's first finding
    if rows.masking is not None:
        return _none(rows, rate, "captured inputs are masked (serve.masking): requests are not scored")
    if len(reference) < LEAST_FITTED + LEAST:
        least = LEAST_FITTED + LEAST
        return _none(rows, rate, f"the reference has {len(reference)} rows, and {least} are needed to score requests")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(reference))
    fitted, calibrated = np.split(order, [max(LEAST_FITTED, int(FITTED * len(reference)))])
    taken = np.arange(len(rows))
    if len(rows) > MAX_ROWS:
        taken = np.sort(rng.choice(taken, MAX_ROWS, replace=False))
    images = {name: values for name, values in reference.inputs.items() if values.ndim > 2}
    if images:
        name = max(images, key=lambda one: images[one][0].size)
        before, now = (_flat(side, rng_seed=seed) for side in (images[name], rows.inputs[name][taken]))
        if before.shape[1] != now.shape[1]:
            return None  # drift's first finding, too
        method, scores = "reconstruction", _reconstruction(before[fitted])
        frames = None
    else:
        frames = (
            project.to_frame(reference.inputs, reference.columns).reset_index(drop=True),
            project.to_frame({k: v[taken] for k, v in rows.inputs.items()}, reference.columns).reset_index(drop=True),
        )
        before, now = _numbers(*frames, fitted)
        if before.shape[1] == 0:
            return _none(rows, rate, "no column of the project's frame is in the traffic: requests are not scored")
        method, scores = "isolation forest", _forest(before[fitted], seed)
    known, found = scores(before[calibrated]), scores(now)
    p_values = conformal_p(known, found)
    named = benjamini_hochberg(p_values, rate)
    worst = np.flatnonzero(named)[np.argsort(-found[named], kind="stable")][:most]
    places = _places(*frames, worst) if frames else {}
    return Outliers(
        method=method,
        rate=rate,
        scored=len(taken),
        of_rows=len(rows),
        flagged=int(named.sum()),
        least=int(np.ceil(len(taken) / (rate * (len(calibrated) + 1)))),
        worst=tuple(
            Outlier(
                request_id=str(rows.request_ids[taken[i]]),
                row=int(rows.places[taken[i]]),
                score=float(found[i]),
                p_value=float(p_values[i]),
                columns=places.get(int(i), ()),
            )
            for i in worst
        ),
        reason=_reason(int(named.sum()), len(taken), rate),
    )


def conformal_p(calibration: Array, scores: Array) -> Array:
    """Return [n] p-values: the share of calibration scores [m], and of the score itself, that are as large.

    Valid for each row by itself where it is exchangeable with the calibration rows (Vovk et al. 2005).
    """
    known = np.sort(calibration)
    larger = len(known) - np.searchsorted(known, scores, side="left")
    p_values: Array = (1.0 + larger) / (1.0 + len(known))
    return p_values


def benjamini_hochberg(p_values: Array, rate: float) -> Array:
    """Return [n] bool: what is named at a false discovery rate (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    named: Array = false_discovery_control(p_values, method="bh") <= rate
    return named


def _none(rows: TrafficRows, rate: float, reason: str) -> Outliers:
    return Outliers("", rate, 0, len(rows), 0, 0, (), reason)


def _reason(flagged: int, scored: int, rate: float) -> str:
    of = f"{flagged:,} of {scored:,} requests' rows are unlike the reference"
    if flagged == 0:
        return f"none of {scored:,} requests' rows is unlike the reference"
    if flagged > MOST * scored:
        return f"{of}: the traffic has changed, these are no single outliers"
    return f"{of}; at most {rate:.0%} of those named are none, on average"


def _flat(values: Array, rng_seed: int) -> Array:
    """Return [n, d] float64: the values of a tensor, a sample of the same ones where there are many."""
    flat = values.reshape(len(values), -1)
    if flat.shape[1] > MAX_VALUES:
        flat = flat[:, np.sort(np.random.default_rng(rng_seed).choice(flat.shape[1], MAX_VALUES, replace=False))]
    made: Array = flat.astype(np.float64)
    return made


def _reconstruction(fitted: Array) -> Callable[[Array], Array]:
    """Return what scores rows [n, d] by how unlikely principal components make them; higher is stranger.

    The error of the reconstruction by the variance that the components leave, and the distance within them
    (Tipping & Bishop 1999, "Probabilistic principal component analysis").
    """
    from sklearn.decomposition import PCA

    low, high = np.nanmin(fitted), np.nanmax(fitted)
    reach = max(float(high - low), LEAST_SPAN)

    def finite(values: Array) -> Array:
        # what is no number, or far out of reach, is far from everything that was fitted
        clipped: Array = np.clip(np.nan_to_num(values, nan=np.inf), low - 10 * reach, high + 10 * reach)
        return clipped

    model = PCA(EXPLAINED, svd_solver="full").fit(finite(fitted))

    def score(values: Array) -> Array:
        unlikely: Array = -model.score_samples(finite(values))
        return unlikely

    return score


def _forest(fitted: Array, seed: int) -> Callable[[Array], Array]:
    """Return what scores rows [n, columns] by an isolation forest; higher is stranger.

    To a forest all that lies beyond what it was fitted on is at the edge: how far out each column is, in
    spans of the fitted values, is added to its score (0 to 1).
    """
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(fitted)
    low, high = fitted.min(axis=0), fitted.max(axis=0)
    span = np.maximum(high - low, LEAST_SPAN)

    def score(values: Array) -> Array:
        beyond = np.maximum(np.maximum(low - values, values - high), 0.0) / span
        stranger: Array = beyond.sum(axis=1) - forest.score_samples(values)
        return stranger

    return score


def _numbers(reference: pd.DataFrame, current: pd.DataFrame, fitted: Array) -> tuple[Array, Array]:
    """Return both frames as numbers [n, columns] of the columns that both have.

    Categories are numbered by how frequent they are among the fitted rows, unseen ones after all others. A
    number that is missing stands below all that were fitted; one that is far out, by their span beside them.
    """
    sides: tuple[list[Array], list[Array]] = ([], [])
    for name in [name for name in reference if name in current]:
        before, now = reference[name], current[name]
        if column_kind(before) == "category":
            ranks = {value: i for i, value in enumerate(before.iloc[fitted].astype(str).value_counts().index)}
            for side, column in zip(sides, (before, now), strict=True):
                side.append(column.astype(str).map(ranks).fillna(len(ranks) + 1).to_numpy(np.float64))
            continue
        known = _column(before)[fitted]
        known = known[np.isfinite(known)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        reach = max(high - low, LEAST_SPAN)
        for side, column in zip(sides, (before, now), strict=True):
            values = _column(column)
            side.append(np.clip(np.where(np.isnan(values), -np.inf, values), low - reach, high + reach))
    lengths = len(reference), len(current)
    known, found = (
        np.column_stack(side) if side else np.empty((length, 0)) for side, length in zip(sides, lengths, strict=True)
    )
    return known, found


def _column(values: pd.Series) -> Array:
    """Return a column as float64, NaN where it holds no number: it may have another type than the reference's."""
    import pandas as pd

    numbers: Array = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return numbers


def _places(reference: pd.DataFrame, current: pd.DataFrame, rows: Array) -> Mapping[int, tuple[str, ...]]:
    """Return row -> its most unusual columns with their values, the most unusual first."""
    unusual: dict[int, list[tuple[float, str]]] = {int(i): [] for i in rows}
    for name in [name for name in reference if name in current]:
        before, now = reference[name], current[name].iloc[rows]
        if column_kind(before) == "category":
            shares = before.astype(str).value_counts(normalize=True)
            for i, value in zip(rows, now.astype(str), strict=True):
                share = float(shares.get(value, 0.0))
                unusual[int(i)].append((share, f"{name} {value:.40}, {share:.1%} of the reference"))
            continue
        known = np.sort(_column(before))
        known = known[np.isfinite(known)]
        if not len(known):
            continue
        low, high = np.quantile(known, [0.01, 0.99])
        for i, value in zip(rows, _column(now), strict=True):
            below = np.searchsorted(known, value, side="right") / len(known)
            above = 1 - np.searchsorted(known, value, side="left") / len(known)
            tail = 2 * float(min(below, above)) if np.isfinite(value) else 0.0
            unusual[int(i)].append((tail, f"{name} {value:.4g}, mostly {low:.4g} to {high:.4g}"))
    return {i: tuple(text for _, text in sorted(those)[:COLUMNS]) for i, those in unusual.items()}
