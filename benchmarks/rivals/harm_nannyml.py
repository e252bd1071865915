"""NannyML's realized performance on the streams of benchmarks/harm.py: JSON in, JSON out."""

from __future__ import annotations

import json
import logging
import sys
import warnings

import nannyml
import numpy as np
import pandas as pd
from harm_streams import Scene


def frame(errors: np.ndarray, seed: int) -> pd.DataFrame:
    """Return a binary classifier's answers with these errors, half of the labels being 1."""
    truth = np.random.default_rng(seed).integers(0, 2, len(errors))
    answers = np.where(errors > 0, 1 - truth, truth)
    return pd.DataFrame({"truth": truth, "answer": answers, "score": answers.astype(float)})


def first_alarm(chunk: int, scene: Scene, seed: int) -> int | None:
    """Return the last label of the first chunk whose accuracy NannyML says to be too low, None if none is.

    At its defaults: three standard deviations of the reference's chunks around their mean.
    """
    reference, losses = scene.draw(seed)
    calculator = nannyml.PerformanceCalculator(
        problem_type="classification_binary",
        y_true="truth",
        y_pred="answer",
        y_pred_proba="score",
        metrics=["accuracy"],
        chunk_size=chunk,
    )
    calculator.fit(frame(reference, seed))
    found = calculator.calculate(frame(losses, seed + 1)).filter(period="analysis").to_df()
    values = found["accuracy"]
    low = (values["alert"].astype(bool) & (values["value"] < values["lower_threshold"])).to_numpy()
    ends = found["chunk"]["end_index"].to_numpy()
    return int(ends[low.argmax()]) if low.any() else None


def main() -> None:
    """Read one task a line, and write its alarms."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        task = json.loads(line)
        scene = Scene(**task["scene"])
        alarms = [first_alarm(int(task["setting"]), scene, seed) for seed in task["seeds"]]
        print(json.dumps(alarms), flush=True)


if __name__ == "__main__":
    main()
