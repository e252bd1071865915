"""Whether columns change together while each alone does not: a classifier that tells window from reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from homeostat.dataset import Array

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 2_000
"""Rows of each side, at most: the classifier costs well under a second."""
MIN_ROWS = 100
"""Rows of each side, at least: a half of them teaches the classifier."""


def joint_p(reference: pd.DataFrame, current: pd.DataFrame, seed: int) -> tuple[float, float]:
    """Return the p-value against `drawn alike`, and the share of pairs that a classifier orders rightly (AUC).

    Gradient-boosted trees learn half of the rows of each side; the one-sided Mann-Whitney test of
    their scores for the other halves holds whatever they have learned (Lopez-Paz & Oquab 2017). Both frames have
    the same columns; text is coded by the reference's values. 1 and 0.5 with too few rows or no column.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    sides = min(len(reference), MAX_ROWS), min(len(current), MAX_ROWS)
    if min(sides) < MIN_ROWS or not len(reference.columns):
        return 1.0, 0.5
    rng = np.random.default_rng(seed)
    taken = [frame.iloc[rng.permutation(len(frame))[:n]] for frame, n in zip((reference, current), sides, strict=True)]
    before, now = (_numbers(frame, reference) for frame in taken)
    half = len(before) // 2, len(now) // 2
    x = np.concatenate([before[: half[0]], now[: half[1]]])
    y = np.repeat([0, 1], half)
    model = HistGradientBoostingClassifier(
        max_iter=40, max_leaf_nodes=15, class_weight="balanced", early_stopping=False, random_state=seed
    )
    with threadpool_limits(1, user_api="openmp"):  # threads that wait for a busy core cost ten times what they save
        model.fit(x, y)
    known, new = (model.decision_function(rows) for rows in (before[half[0] :], now[half[1] :]))
    result = mannwhitneyu(new, known, alternative="greater")
    return float(result.pvalue), float(result.statistic / (len(new) * len(known)))


def _numbers(frame: pd.DataFrame, reference: pd.DataFrame) -> Array:
    """Return float64 [n, d]; a value of text or a flag is its place among the reference's values, -1 for a new one."""
    columns = []
    for name in reference.columns:
        column = frame[name]
        if reference[name].dtype.kind in "iuf":
            columns.append(column.to_numpy(dtype=np.float64, na_value=np.nan))
            continue
        known = {value: place for place, value in enumerate(sorted(map(str, reference[name].dropna().unique())))}
        codes = [known.get(str(value), -1) if value == value and value is not None else np.nan for value in column]
        columns.append(np.array(codes, dtype=np.float64))
    return np.stack(columns, axis=1)
