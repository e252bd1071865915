"""Input columns that hold the target, or predict it almost alone, looked for in the training rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from homeostat.dataset import Array, Dataset
from homeostat.records import Task

COLUMNS = 512
"""Columns that are looked at most; of larger inputs a sample."""
COPY_ROWS = 100_000
"""Rows in which a column is held against the target, at most."""
CELLS, LEAST_ROWS, MOST_ROWS = 300_000, 600, 10_000
"""Rows times columns that trees are grown on, so that the time does not grow with the data."""
LEAVES, FOLDS = 64, 3
CLASSES = 20
"""The most frequent classes, whose rows alone are scored."""
CHANCE = 1e-6
"""A column that follows the target in all rows by chance with more probability than this is no finding."""
UNEXPLAINED = 1e-8
"""Share of the target's variance that float32 may lose in a copy: a residual of 1e-4 standard deviations."""
DISORDER = 1e-6
"""What Spearman's rank correlation may miss of 1 by ties of float32."""


@dataclass(frozen=True)
class Column:
    """One number of each row: values [n] float64, Inf as NaN."""

    name: str
    values: Array


def count_columns(data: Dataset) -> int:
    """Return how many numbers one row of the inputs has."""
    return sum(int(np.prod(values.shape[1:])) for values in data.inputs.values())


def input_columns(data: Dataset, seed: int) -> Iterator[Column]:
    """Yield each number of a row as a column; of more than 512 a seeded sample of them, in order."""
    total = count_columns(data)
    chosen = np.arange(total)
    if total > COLUMNS:
        chosen = np.sort(np.random.default_rng(seed).choice(total, COLUMNS, replace=False))
    start = 0
    for name, values in data.inputs.items():
        flat = values.reshape(len(values), -1)
        for place in chosen[(chosen >= start) & (chosen < start + flat.shape[1])] - start:
            column = flat[:, place].astype(np.float64)
            yield Column(_name(data, name, int(place)), np.where(np.isinf(column), np.nan, column))
        start += flat.shape[1]


def _name(data: Dataset, name: str, place: int) -> str:
    if name in data.columns:
        return f"column {data.columns[name][place]!r}"
    shape = data.inputs[name].shape[1:]
    at = ", ".join(str(int(i)) for i in np.unravel_index(place, shape)) if shape else ""
    return f"input {name!r}" + (f" at [{at}]" if at else "")


def sample(data: Dataset, rows: int, seed: int) -> Dataset:
    """Return at most so many rows, drawn by seed, in their order."""
    if len(data) <= rows:
        return data
    return data.take(np.sort(np.random.default_rng(seed).choice(len(data), rows, replace=False)))


def find_copies(columns: list[Column], target: Array, task: Task) -> dict[str, str]:
    """Return column -> in which way it holds the target [n], over the rows in which it has a value.

    Classification: each value stands for one class and each class for one value, or columns that
    together are the classes one-hot. Regression: equal, a linear map, or the same order. Columns so short, or
    targets of so few rows in a class, that chance explains it (1e-6) are left alone.
    """
    found = {}
    for column in columns:
        known = ~np.isnan(column.values)
        values, wanted = column.values[known], target[known]
        if _chance(wanted) > CHANCE or np.ptp(values) == 0:
            continue
        way = _recoded(values, wanted) if task == "classification" else _transformed(values, wanted)
        if way:
            found[column.name] = way + ("" if known.all() else f" in the {known.sum()} rows in which it has a value")
    if task == "classification":
        found |= {name: "is the target one-hot, with others" for name in _one_hot(columns, target) if name not in found}
    return found


def _chance(target: Array) -> float:
    """Return the probability that values in random order stand beside equal targets only: prod(n_c!) / n!."""
    from scipy.special import gammaln

    if len(target) == 0:
        return 1.0
    counts = np.unique(target, return_counts=True)[1]
    return float(np.exp(gammaln(counts + 1).sum() - gammaln(len(target) + 1)))


def _recoded(values: Array, target: Array) -> str:
    classes = len(np.unique(target))
    if len(np.unique(values[:1000])) > classes:
        return ""
    seen, place = np.unique(values, return_inverse=True)
    pairs = np.unique(place * (int(target.max()) + 1) + target)
    if not len(seen) == classes == len(pairs):
        return ""
    return "is equal to the target" if (values == target).all() else "is the target recoded: one value for each class"


def _one_hot(columns: list[Column], target: Array) -> list[str]:
    """Return the columns which, together, tell every class from all others."""
    classes = np.unique(target)
    found: dict[int, str] = {}
    for column in columns:
        if np.isnan(column.values).any() or len(np.unique(column.values[:1000])) > 2:
            continue
        high = column.values == column.values.max()
        label = int(target[high][0])
        if np.array_equal(high, target == label):
            found.setdefault(label, column.name)
    complete = len(classes) > 2 and len(found) >= len(classes) - 1 and _chance(target) <= CHANCE
    return list(found.values()) if complete else []


def _transformed(values: Array, target: Array) -> str:
    from scipy.stats import rankdata

    head = slice(0, 1000)
    if np.ptp(target) == 0 or np.ptp(values[head]) == 0 or np.ptp(target[head]) == 0:
        return ""
    if 1 - abs(_correlation(rankdata(values[head]), rankdata(target[head]))) > 100 * DISORDER:
        return ""
    if np.allclose(values, target, rtol=1e-6, atol=1e-6 * float(np.std(target))):
        return "is equal to the target"
    if 1 - _correlation(values, target) ** 2 <= UNEXPLAINED:
        return "is the target in another unit: a linear map of it"
    if 1 - abs(_correlation(rankdata(values), rankdata(target))) <= DISORDER:
        return "is the target transformed: it rises or falls with it in every row"
    return ""


def _correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def score_columns(data: Dataset, task: Task, seed: int) -> dict[str, float]:
    """Return column -> how well a decision tree on it alone predicts the target, cross-validated, 0 to 1.

    Classification: balanced accuracy, scaled so that 0 is a guess and 1 no error. Regression: R2 on
    the ranks of the target, so that a few large values do not decide. Entities stay in one fold.
    """
    rows = int(np.clip(CELLS // max(1, min(count_columns(data), COLUMNS)), LEAST_ROWS, MOST_ROWS))
    data = sample(_frequent(data) if task == "classification" else data, rows, seed)
    if len(data) < 2 * FOLDS or len(np.unique(data.target)) < 2:
        return {}
    folds = _folds(data, seed)
    return {column.name: _score(column.values, data.target, folds, task, seed) for column in input_columns(data, seed)}


def _frequent(data: Dataset) -> Dataset:
    labels, counts = np.unique(data.target, return_counts=True)
    if len(labels) <= CLASSES:
        return data
    return data.take(np.isin(data.target, labels[np.argsort(-counts, kind="stable")[:CLASSES]]))


def _folds(data: Dataset, seed: int) -> Array:
    """Return the fold [n] of each row: rows of one entity in one fold, by chance."""
    entity = np.arange(len(data))
    if data.ids is not None:
        known = np.unique(data.ids, return_inverse=True)[1]
        entity = np.where(data.ids == "", known.max() + 1 + entity, known)
    shuffled = np.random.default_rng(seed).permutation(int(entity.max()) + 1)
    return shuffled[entity] % FOLDS


def _score(values: Array, target: Array, folds: Array, task: Task, seed: int) -> float:
    from scipy.stats import rankdata
    from sklearn.metrics import balanced_accuracy_score, r2_score
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    known = values[~np.isnan(values)]
    if len(known) == 0 or (np.ptp(known) == 0 and len(known) == len(values)):
        return 0.0  # all NaN, or constant
    matrix = values[:, np.newaxis]
    wanted = target if task == "classification" else rankdata(target)
    answers = np.empty_like(wanted)
    for fold in np.unique(folds):
        inside = folds != fold
        if not inside.any():
            return 0.0  # all rows are of one entity
        tree = (
            DecisionTreeClassifier(max_leaf_nodes=LEAVES, class_weight="balanced", random_state=seed)
            if task == "classification"
            else DecisionTreeRegressor(max_leaf_nodes=LEAVES, random_state=seed)
        )
        answers[~inside] = tree.fit(matrix[inside], wanted[inside]).predict(matrix[~inside])
    if task == "classification":
        return max(0.0, float(balanced_accuracy_score(wanted, answers, adjusted=True)))
    return max(0.0, float(r2_score(wanted, answers)))
