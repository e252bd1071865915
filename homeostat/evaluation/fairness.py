"""Fairness: figures of each group of people, and how far groups are apart, with intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from homeostat.config import GateConfig
from homeostat.dataset import Array
from homeostat.errors import ConfigError, GateFailed
from homeostat.evaluation.metrics import decisions
from homeostat.records import Fairness, Gap, GroupFigures, Interval, Task

if TYPE_CHECKING:
    import pandas as pd

MIN_ROWS = 20
"""A smaller group, or one with fewer rows of a class, has no figure there."""
MAX_GROUPS, MAX_CLASSES = 20, 20
"""The most frequent ones."""
RATES = {"selection_rate": "demographic_parity", "true_positive_rate": "equalized_odds"}
RATES |= {"false_positive_rate": "equalized_odds"}
"""Rate -> the gap that its differences belong to; those of `error` are one of their own."""
MEASURED = ("error", *RATES)


def group_figures(
    task: Task, target: Array, outputs: Mapping[str, Array] | Array, groups: Mapping[str, Array], gate: GateConfig
) -> tuple[Fairness, ...]:
    """Return the figures of each attribute in gate.sensitive, by group and between groups.

    target: [n] float64, NaN where it is not known yet. outputs: [n, k], or output name -> [n, k]. groups:
    attribute -> [n] str, empty where it is unknown.

    Classification: error, and for each class (of two: the second alone) the shares selected, true positive and
    false positive (fairlearn); regression: the mean absolute error. The gaps are the largest differences
    of two groups: `error`, `demographic_parity` (of selection rates), `equalized_odds` (the larger of the
    true and the false positive rates' gap; Hardt et al. 2016). A group's interval is Wilson's, or of the mean by
    Student's t. A gap's interval holds the largest of the true differences with gate.confidence, however many groups
    there are: Newcombe's interval of a difference of shares (statsmodels), Welch's of means, at a level
    divided by the number of pairs of groups, classes and rates (Bonferroni). Rows count as independent.
    """
    decided = decisions(outputs, task)
    return tuple(
        _attribute(name, task, target, decided, groups.get(name, np.full(len(target), "")), gate)
        for name in gate.sensitive
    )


def check_gap(found: Sequence[Fairness], gate: GateConfig) -> None:
    """Raise GateFailed when a gap is over gate.max_group_gap beyond doubt."""
    for one in found:
        for gap in one.gaps:
            if gap.verdict == "over":
                raise GateFailed(
                    f"groups of {one.attribute} are apart: {gap} {gate.max_group_gap:g}; "
                    f"nothing is registered: look at the rows of {gap.high!r} and {gap.low!r}, "
                    "weigh or collect more of them, or move the limit in project.toml"
                )


def check_sensitive(gate: GateConfig, known: Mapping[str, Array]) -> None:
    """Raise ConfigError when gate.sensitive names what is no slice of the project."""
    absent = [name for name in gate.sensitive if name not in known]
    if absent:
        raise ConfigError(
            f"gate.sensitive names {', '.join(absent)}, and the project's slices are {', '.join(known) or 'none'}; "
            "return it in slices(), or name it in Dataset.from_frame(..., slices=[...])"
        )


def gap_metrics(found: Sequence[Fairness]) -> dict[str, float]:
    """Return the gaps by name, for MLflow."""
    return {f"gap_{one.attribute}_{gap.metric}": gap.value.value for one in found for gap in one.gaps}


def _attribute(name: str, task: Task, target: Array, decided: Array, group: Array, gate: GateConfig) -> Fairness:
    known = group != ""
    values, counts = np.unique(group[known], return_counts=True)
    kept = values[np.argsort(-counts, kind="stable")][:MAX_GROUPS]
    small = [str(value) for value, count in zip(values, counts, strict=True) if count < MIN_ROWS]
    kept = np.sort(kept[~np.isin(kept, small)])
    notes = []
    if small:
        notes.append(f"{len(small)} groups of fewer than {MIN_ROWS} rows are left out: {', '.join(small[:5])}")
    if len(values) > MAX_GROUPS:
        notes.append(f"the {MAX_GROUPS} most frequent of {len(values)} groups are shown")
    if (~known).any():
        notes.append(f"{int((~known).sum())} of {len(group)} rows name no {name}")
    if len(kept) < 2:
        return Fairness(name, notes=(*notes, "fewer than two groups are large enough: no gap can be told"))
    rows = np.isin(group, kept)
    target, decided, group = target[rows], decided[rows], group[rows]
    if task == "regression":
        return _errors(name, target, decided, group, kept, gate, notes)
    return _shares(name, target, decided, group, kept, gate, notes)


def _errors(
    name: str, target: Array, decided: Array, group: Array, kept: Array, gate: GateConfig, notes: list[str]
) -> Fairness:
    from scipy.stats import ttest_1samp, ttest_ind

    error = np.abs(decided - target)
    seen = np.isfinite(error)
    losses = {str(one): error[seen & (group == one)] for one in kept}
    figures = []
    for one, of in losses.items():
        if len(of) >= MIN_ROWS:
            ends = ttest_1samp(of, 0).confidence_interval(gate.confidence)
            error_of = {"error": Interval(float(of.mean()), float(ends.low), float(ends.high), gate.confidence)}
        else:
            error_of = {}
        figures.append(GroupFigures(one, int((group == one).sum()), len(of), error_of))
    usable = {one: of for one, of in losses.items() if len(of) >= MIN_ROWS}
    if len(usable) < 2:
        return Fairness(name, tuple(figures), notes=(*notes, "too few labels: no gap can be told"))
    pairs = list(itertools.combinations(usable, 2))
    level = 1 - (1 - gate.confidence) / len(pairs)
    gaps = []
    for a, b in pairs:
        a, b = (a, b) if usable[a].mean() >= usable[b].mean() else (b, a)
        ends = ttest_ind(usable[a], usable[b], equal_var=False).confidence_interval(level)
        value = float(usable[a].mean() - usable[b].mean())
        gaps.append(Gap("error", "", a, b, Interval(value, float(ends.low), float(ends.high), gate.confidence)))
    return Fairness(name, tuple(figures), (_judged(_largest(gaps), gate),), tuple(notes))


def _shares(
    name: str, target: Array, decided: Array, group: Array, kept: Array, gate: GateConfig, notes: list[str]
) -> Fairness:
    labelled = np.isfinite(target)
    said = np.concatenate([target[labelled], decided]).astype(np.int64)
    classes, counts = np.unique(said[said >= 0], return_counts=True)  # -1: an answer that is not finite
    watched = [1] if set(classes.tolist()) <= {0, 1} else classes[np.argsort(-counts, kind="stable")][:MAX_CLASSES]
    frames = {int(label): _counts(target, decided, group, int(label)) for label in watched}
    first = next(iter(frames.values()))
    binary = len(frames) == 1
    figures = tuple(
        GroupFigures(
            str(one),
            int(first.loc[one, "rows"]),
            int(first.loc[one, "labelled"]),
            {
                rate: _wilson(first.loc[one, f"{rate}_of"], first.loc[one, f"{rate}_n"], gate.confidence)
                for rate in (MEASURED if binary else ("error",))
                if first.loc[one, f"{rate}_n"] >= MIN_ROWS
            },
        )
        for one in kept
    )
    gaps: dict[str, list[Gap]] = {}
    family = math.comb(len(kept), 2)
    for label, frame in frames.items():
        for rate in MEASURED:
            if rate == "error" and frame is not first:
                continue
            many = family * (1 if rate == "error" else len(frames) * (2 if RATES[rate] == "equalized_odds" else 1))
            metric = RATES.get(rate, rate)
            named = "" if binary or rate == "error" else str(label)
            gaps.setdefault(metric, []).extend(
                replace(gap, metric=metric, label=named) for gap in _pairs(frame, rate, many, gate.confidence)
            )
    found = tuple(_judged(_largest(those), gate) for those in gaps.values() if those)
    return Fairness(name, figures, found, tuple(notes))


def _counts(target: Array, decided: Array, group: Array, label: int) -> pd.DataFrame:
    """Return for each group the counts behind its rates, class `label` against the others."""
    from fairlearn.metrics import MetricFrame, count, selection_rate

    labelled = np.isfinite(target)
    positive, selected = target == label, decided == label

    def frame(mask: Array, hit: Array) -> tuple[pd.Series, pd.Series]:
        """Return the hits and the rows of each group."""
        if not mask.any():
            return none, none
        found = MetricFrame(
            metrics={"n": count, "rate": selection_rate},
            y_true=np.ones(int(mask.sum())),
            y_pred=hit[mask].astype(int),
            sensitive_features=group[mask],
        ).by_group.reindex(none.index)
        return (found["rate"] * found["n"]).fillna(0), found["n"].fillna(0)

    import pandas as pd

    none = pd.Series(0.0, index=np.unique(group))
    everything = np.ones(len(target), dtype=bool)
    rows, wanted = frame(everything, selected)[1], frame(labelled, selected)[1]
    columns = {"rows": rows, "labelled": wanted}
    for rate, mask, hit in (
        ("error", labelled, decided != target),
        ("selection_rate", everything, selected),
        ("true_positive_rate", labelled & positive, selected),
        ("false_positive_rate", labelled & ~positive, selected),
    ):
        columns[f"{rate}_of"], columns[f"{rate}_n"] = frame(mask, hit)
    return pd.DataFrame(columns).round().astype(int)


def _wilson(hits: int, rows: int, confidence: float) -> Interval:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(hits, rows, 1 - confidence, method="wilson")
    return Interval(hits / rows, float(low), float(high), confidence)


def _pairs(frame: pd.DataFrame, rate: str, many: int, confidence: float) -> list[Gap]:
    """Return the difference of a rate in each pair of groups, the larger minus the smaller one."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    usable = frame[frame[f"{rate}_n"] >= MIN_ROWS]
    pairs = []
    for a, b in itertools.combinations(usable.index, 2):
        ratio = {one: usable.loc[one, f"{rate}_of"] / usable.loc[one, f"{rate}_n"] for one in (a, b)}
        pairs.append((a, b) if ratio[a] >= ratio[b] else (b, a))
    if not pairs:
        return []
    of, n = (
        [usable.loc[[pair[side] for pair in pairs], f"{rate}_{what}"].to_numpy() for side in (0, 1)]
        for what in ("of", "n")
    )
    low, high = confint_proportions_2indep(
        of[0], n[0], of[1], n[1], method="newcomb", compare="diff", alpha=(1 - confidence) / many
    )
    value = of[0] / n[0] - of[1] / n[1]
    return [
        Gap(rate, "", str(a), str(b), Interval(float(value[i]), float(low[i]), float(high[i]), confidence))
        for i, (a, b) in enumerate(pairs)
    ]


def _largest(gaps: Sequence[Gap]) -> Gap:
    """Return the largest gap; its ends are the largest of all pairs' ends, which hold together."""
    worst = max(gaps, key=lambda gap: gap.value.value)
    low = max(0.0, *(gap.value.low for gap in gaps))
    return replace(worst, value=replace(worst.value, low=low, high=max(gap.value.high for gap in gaps)))


def _judged(gap: Gap, gate: GateConfig) -> Gap:
    """Hold a gap against the limit, if it is the one that is limited."""
    limit = gate.max_group_gap
    if limit is None or gap.metric != gate.group_gap:
        return gap
    inside, over = gap.value.high <= limit, gap.value.low > limit
    return replace(gap, verdict="over" if over else "within" if inside else "inconclusive")
