"""Label quality: which labels are probably wrong, by confident learning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from homeostat.dataset import Array, Dataset, write_artifact
from homeostat.evaluation.metrics import matrix, probabilities
from homeostat.inference import predict
from homeostat.records import Artifact, Interval, LabelIssue, LabelQuality

MIN_ROWS, MIN_CLASS = 100, 5
"""Fewer rows, or rows of a class, say nothing of how sure the model usually is of it."""
WORST = 20
CONFIDENCE = 0.95


def find_label_issues(
    target: Array,
    outputs: Mapping[str, Array] | Array,
    names: Sequence[str],
    classes: Sequence[str] = (),
    most: int = WORST,
) -> LabelQuality:
    """Return the labels that are probably wrong, `most` of them by name, or why none can be told.

    target: [n] class indices. outputs: [n, k], or output name -> [n, k]: what the model answers to rows that it
    was not fitted on. names: [n] of the rows. classes: names of the classes, in order.

    Confident learning (Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty
    in Dataset Labels") by cleanlab: a row of class i counts as one of j where the model is as sure of j as it
    usually is of rows of j; so many of each pair are named, by the smallest margin. It takes the
    model to be right more often than the labels are wrong: it cannot tell a model that has become
    worse from labels that have.
    """
    chances = probabilities(matrix(outputs), int(target.max(initial=0)) + 1)
    present, counts = np.unique(target.astype(np.int64), return_counts=True)
    kept = present[counts >= MIN_CLASS]
    rows = np.flatnonzero(np.isin(target, kept))
    if len(rows) < MIN_ROWS or len(kept) < 2:
        said = f"{len(rows)} labelled rows of {len(kept)} classes: {MIN_ROWS} of two are needed to judge labels"
        return LabelQuality(len(target), reason=said)

    from cleanlab.filter import find_label_issues as find
    from statsmodels.stats.proportion import proportion_confint

    # classes that no row has are taken out, and the rest numbered anew
    given = np.searchsorted(kept, target[rows].astype(np.int64))
    shares = chances[np.ix_(rows, kept)]
    shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    ranked = find(given, shares, return_indices_ranked_by="normalized_margin", n_jobs=1)
    low, high = proportion_confint(len(ranked), len(rows), 1 - CONFIDENCE, method="wilson")

    def name(label: int) -> str:
        return str(classes[label]) if label < len(classes) else str(label)

    by_class = {name(int(kept[c])): int((given[ranked] == c).sum()) for c in range(len(kept))}
    worst = tuple(
        LabelIssue(
            str(names[rows[i]]), name(int(kept[given[i]])), name(int(kept[shares[i].argmax()])), float(shares[i].max())
        )
        for i in ranked[:most]
    )
    left_out = len(target) - len(rows)
    return LabelQuality(
        rows=len(rows),
        issues=len(ranked),
        share=Interval(len(ranked) / len(rows), float(low), float(high), CONFIDENCE),
        by_class={label: count for label, count in by_class.items() if count},
        worst=worst,
        reason=f"{left_out} rows of classes with fewer than {MIN_CLASS} are left out" if left_out else "",
    )


def labels_of_graph(parts: Mapping[str, Dataset], onnx: bytes, folder: Path) -> tuple[LabelQuality, Artifact]:
    """Return what a graph says of the labels of rows that it was not fitted on, and write all to label_issues.json.

    parts: part of the split -> its rows. A row is named by its part and its place there, with its id, if it has one.
    """
    names = [
        f"{part} {i}" + (f" ({data.ids[i]})" if data.ids is not None and data.ids[i] else "")
        for part, data in parts.items()
        for i in range(len(data))
    ]
    target = np.concatenate([data.target for data in parts.values()])
    outputs = np.concatenate([matrix(predict(onnx, data.inputs)) for data in parts.values()])
    classes = next(iter(parts.values())).classes
    found = find_label_issues(target, outputs, names, classes, most=len(target))
    artifact = write_artifact(folder / "label_issues.json", json.dumps(asdict(found), indent=1).encode())
    return replace(found, worst=found.worst[:WORST]), artifact
