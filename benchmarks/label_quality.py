"""Flipped labels that are named as probably wrong: `python -m benchmarks.label_quality --help`.

Breast cancer and digits of scikit-learn: a logistic regression is fitted on one half, and judges the labels of the
other by `find_label_issues`. In both a share of the labels is changed to another class, each as likely.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from homeostat.dataset import Array
from homeostat.evaluation.label_quality import find_label_issues

SHARES = (0.0, 0.01, 0.05, 0.1, 0.2)


def judge(x: Array, y: Array, share: float, seed: int) -> tuple[float, float, float]:
    """Return the estimated share, the precision and the recall (NaN where nothing is named, or changed)."""
    rng = np.random.default_rng(seed)
    classes = int(y.max()) + 1
    changed = rng.random(len(y)) < share
    labels = np.where(changed, (y + rng.integers(1, classes, len(y))) % classes, y)
    fitted, judged = np.array_split(rng.permutation(len(y)), 2)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    chances = model.fit(x[fitted], labels[fitted]).predict_proba(x[judged])
    found = find_label_issues(labels[judged], chances, [str(i) for i in judged], most=len(judged))
    named = np.array([int(issue.row) for issue in found.worst], dtype=int)
    if found.share is None:
        raise SystemExit(found.reason)
    right = int(changed[named].sum())
    wrong = int(changed[judged].sum())
    return found.share.value, right / len(named) if len(named) else np.nan, right / wrong if wrong else np.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args()
    print("| rows | changed | estimated: mean (least to most) | precision | recall |\n|---|---:|---:|---:|---:|")
    for name, load in (("breast cancer", load_breast_cancer), ("digits", load_digits)):
        x, y = load(return_X_y=True)
        for share in SHARES:
            found = np.array([judge(x, y, share, seed) for seed in range(given.seeds)])
            of = found[:, 0]
            means = [f"{np.nanmean(side):.2f}" if np.isfinite(side).any() else "" for side in found[:, 1:].T]
            ends = f"{of.mean():.1%} ({of.min():.1%} to {of.max():.1%})"
            print(f"| {name}, {len(y) // 2} judged | {share:.0%} | {ends} | {means[0]} | {means[1]} |", flush=True)


if __name__ == "__main__":
    main()
