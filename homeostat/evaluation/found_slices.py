"""Slices that nobody declared: conditions under which the model errs more, proposed on some rows, tested on others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset, write_artifact
from homeostat.evaluation.metrics import decisions
from homeostat.evaluation.slices import cell, declared_slices
from homeostat.inference import predict
from homeostat.project import Project
from homeostat.records import Artifact, FoundSlice, FoundSlices, Task

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
"""Probability of naming any slice where the model errs alike everywhere."""
DEPTH = 3
LEAVES = 8
LEAF_SHARE, LEAF_ROWS = 0.05, 20
"""The least that a slice holds of the rows that propose it."""
MIN_ROWS = 60
"""Of the rows that propose slices, and of those that test them."""
ROWS = 50_000
"""Rows that a tree is grown on at most."""
MAX_VALUES = 20
"""Values of a column of text that a condition may name: the most frequent ones."""


def errors(task: Task, target: Array, outputs: Mapping[str, Array] | Array) -> Array:
    """Return [n] float64: 1 for a wrong class, or the absolute error."""
    decided = decisions(outputs, task)
    found: Array = (decided != target).astype(np.float64) if task == "classification" else np.abs(decided - target)
    return found


def find_slices(
    proposing: pd.DataFrame,
    proposing_errors: Array,
    testing: pd.DataFrame,
    testing_errors: Array,
    *,
    ids: Array | None = None,
    seed: int = 0,
    alpha: float = ALPHA,
) -> FoundSlices:
    """Grow a shallow tree on the errors [n] of some rows, and test its worse nodes on others [m].

    A node that errs more than all rows is a hypothesis; whether it does so on the testing rows too
    is asked by Fisher's exact test where errors are 0 or 1, else by Mann and Whitney's, one-sided,
    and Holm's correction (1979) over the nodes. So, where errors depend on no column, a slice is
    named with probability at most `alpha`. Of nodes within one another the surest is named.
    ids: [m] entities of the testing rows, of which each one's first row counts.
    """
    from sklearn.tree import DecisionTreeRegressor

    if ids is not None:
        first = np.sort(np.unique(ids, return_index=True)[1])
        testing, testing_errors = testing.iloc[first], testing_errors[first]
    if min(len(proposing), len(testing)) < MIN_ROWS:
        return FoundSlices((), 0, f"not enough rows: {len(proposing)} to propose slices, {len(testing)} to test them")
    if np.ptp(proposing_errors) == 0:
        return FoundSlices((), 0, "every row that could propose a slice has the same error")
    if len(proposing) > ROWS:
        kept = np.sort(np.random.default_rng(seed).choice(len(proposing), ROWS, replace=False))
        proposing, proposing_errors = proposing.iloc[kept], proposing_errors[kept]
    encoding = _Encoding(proposing)
    tree = DecisionTreeRegressor(
        max_depth=DEPTH,
        max_leaf_nodes=LEAVES,
        min_samples_leaf=max(LEAF_ROWS, int(LEAF_SHARE * len(proposing))),
        random_state=seed,
    ).fit(encoding.apply(proposing), proposing_errors)
    inside = _worse_nodes(tree, encoding.apply(testing), float(proposing_errors.mean()))
    if not inside:
        return FoundSlices((), 0, "no part of the rows errs more than the rest")
    p_values = dict(zip(inside, _holm([_p_value(testing_errors, rows) for rows in inside.values()]), strict=True))
    named: list[int] = []
    for node in sorted((n for n, p in p_values.items() if p <= alpha), key=lambda n: (p_values[n], n)):
        if not any((inside[node] & inside[other]).any() for other in named):  # a part of it, or what it is a part of
            named.append(node)
    found = [
        FoundSlice(
            words=encoding.words(tree.tree_, node),
            rows=int(inside[node].sum()),
            error=float(testing_errors[inside[node]].mean()),
            rest=float(testing_errors[~inside[node]].mean()),
            p_value=p_values[node],
        )
        for node in named
    ]
    found.sort(key=lambda one: one.rest - one.error)
    reason = f"{len(inside)} parts of the rows were tested, at {100 * alpha:g} % for all of them together"
    return FoundSlices(tuple(found), len(inside), reason)


def _worse_nodes(tree: Any, matrix: Array, mean: float) -> dict[int, Array]:
    """Return node -> the rows [m] bool in it, for each node but the root that errs more than `mean` where it grew."""
    passed = tree.decision_path(matrix).toarray().astype(bool)
    worse = [node for node in range(1, passed.shape[1]) if tree.tree_.value[node, 0, 0] > mean]
    return {node: passed[:, node] for node in worse if 0 < passed[:, node].sum() < len(matrix)}


def slices_of_graph(
    project: Project, config: ProjectConfig, proposing: Dataset, testing: Dataset, onnx: bytes, folder: Path
) -> tuple[FoundSlices, tuple[Artifact, ...]]:
    """Find slices of an exported graph in the project's frame and its declared slices; writes found_slices.md."""
    frames, wrong = [], []
    for data in (proposing, testing):
        frames.append(_frame(project, data))
        wrong.append(errors(config.task, data.target, predict(onnx, data.inputs)))
    found = find_slices(frames[0], wrong[0], frames[1], wrong[1], ids=testing.ids, seed=config.train.seed)
    return found, (write_artifact(folder / "found_slices.md", _page(config, found).encode()),)


def _frame(project: Project, data: Dataset) -> pd.DataFrame:
    frame = project.to_frame(data.inputs, data.columns).reset_index(drop=True)
    frame.columns = frame.columns.map(str)
    declared = {name: values for name, values in declared_slices(project, data).items() if name not in frame.columns}
    return frame.assign(**declared)


def _page(config: ProjectConfig, found: FoundSlices) -> str:
    unit = "share of errors" if config.task == "classification" else "mean absolute error"
    head = f"# {config.name}: where it errs more, on the test part\n\n{found.reason}. The rows are those of the test "
    head += f"part, which did not propose them; the figures are the {unit}.\n\n"
    if not found.slices:
        return f"{head}No slice was found.\n"
    lines = ["| slice | rows | error | elsewhere | p |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {cell(one.words)} | {one.rows} | {one.error:.4g} | {one.rest:.4g} | {one.p_value:.2g} |"
        for one in found.slices
    ]
    return head + "\n".join(lines) + "\n"


def _p_value(wrong: Array, inside: Array) -> float:
    from scipy.stats import fisher_exact, mannwhitneyu

    within, without = wrong[inside], wrong[~inside]
    if not np.isin(wrong, (0, 1)).all():
        return float(mannwhitneyu(within, without, alternative="greater").pvalue)
    table = [[int(group.sum()), int(len(group) - group.sum())] for group in (within, without)]
    return float(fisher_exact(table, alternative="greater").pvalue)


def _holm(p_values: list[float]) -> list[float]:
    """Return the p-values adjusted by Holm's step-down (1979)."""
    order = np.argsort(p_values)
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return [float(p) for p in adjusted]


@dataclass(frozen=True)
class _Feature:
    """One column of the tree's matrix: numbers (text ""), whether a value is missing, or whether it is one text."""

    column: str
    kind: str
    text: str = ""
    fill: float = 0.0


class _Encoding:
    """A frame as numbers that a tree splits, learned from one frame and applied to others with its columns."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._features = [feature for column in frame.columns for feature in self._of(str(column), frame[column])]
        self._whole = {str(c) for c in frame.columns if frame[c].dtype.kind in "iub"}

    @staticmethod
    def _of(column: str, values: pd.Series) -> Iterator[_Feature]:
        if values.dtype.kind in "fiub":
            known = values.to_numpy(np.float64)
            known = known[np.isfinite(known)]
            yield _Feature(column, "number", fill=float(np.median(known)) if len(known) else 0.0)
        else:
            counts = values.dropna().astype(str).value_counts()
            yield from (_Feature(column, "text", text) for text in counts.index[:MAX_VALUES])
        if values.isna().any():
            yield _Feature(column, "missing")

    def apply(self, frame: pd.DataFrame) -> Array:
        """Return [n, features] float32."""
        matrix = np.zeros((len(frame), max(1, len(self._features))), dtype=np.float32)
        for place, feature in enumerate(self._features):
            values = frame[feature.column]
            if feature.kind == "number":
                numbers = values.to_numpy(np.float64)
                numbers = np.where(np.isfinite(numbers), numbers, feature.fill)
                matrix[:, place] = np.clip(numbers, -1e38, 1e38)
            elif feature.kind == "text":
                matrix[:, place] = (values.astype(str) == feature.text).to_numpy()
            else:
                matrix[:, place] = values.isna().to_numpy()
        return matrix

    def words(self, tree: Any, leaf: int) -> str:
        """Return the conditions that lead to a leaf, as a person says them: `age >= 61 and bmi < 22.4`."""
        bounds: dict[tuple[str, str, str], list[float]] = {}
        node = leaf
        parents = {int(child): p for p in range(tree.node_count) for child in self._children(tree, p)}
        path = [leaf]
        while node in parents:
            node = parents[node]
            path.append(node)
        for parent, child in zip(path[:0:-1], path[-2::-1], strict=True):
            feature = self._features[tree.feature[parent]]
            ends = bounds.setdefault((feature.column, feature.kind, feature.text), [-np.inf, np.inf])
            threshold = float(tree.threshold[parent])
            if child == tree.children_left[parent]:
                ends[1] = min(ends[1], threshold)
            else:
                ends[0] = max(ends[0], threshold)
        return " and ".join(self._condition(*key, low, high) for key, (low, high) in bounds.items())

    @staticmethod
    def _children(tree: Any, node: int) -> list[int]:
        return [c for c in (int(tree.children_left[node]), int(tree.children_right[node])) if c >= 0]

    def _condition(self, column: str, kind: str, text: str, low: float, high: float) -> str:
        if kind == "missing":
            return f"{column} is {'missing' if low > -np.inf else 'known'}"
        if kind == "text":
            return f"{column} is {'' if low > -np.inf else 'not '}{text}"
        if column in self._whole:
            first, last = np.floor(low) + 1, np.floor(high)
            if first == last:
                return f"{column} = {first:.0f}"
            parts = [f"{column} >= {first:.0f}"] if low > -np.inf else []
            return " and ".join([*parts, *([f"{column} <= {last:.0f}"] if high < np.inf else [])])
        parts = [f"{column} > {low:.4g}"] if low > -np.inf else []
        return " and ".join([*parts, *([f"{column} <= {high:.4g}"] if high < np.inf else [])])
