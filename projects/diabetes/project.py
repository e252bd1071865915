"""Diabetes: a regression with several inputs, one of them a category."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes

from homeostat.dataset import Array, Dataset
from homeostat.project import Project

BODY = ("age", "bmi", "bp")
SERUM = ("s1", "s2", "s3", "s4", "s5", "s6")


class Diabetes(Project):
    """Progression of diabetes after one year, from body and blood measures (Efron et al. 2004, 442 patients)."""

    def load_data(self) -> Dataset:
        """Return body [n, 3], sex [n, 1] (1 or 2) and serum [n, 6] with the measure of progression."""
        frame = load_diabetes(as_frame=True, scaled=False).frame
        frame = frame.astype({"sex": "int64"}).assign(patient=[f"diabetes-{i}" for i in frame.index])
        return Dataset.from_frame(
            frame, target="target", inputs={"body": BODY, "sex": ["sex"], "serum": SERUM}, ids="patient"
        )

    def build_model(self, train: Dataset) -> Any:
        """Return a network that answers in units of the target, so that its loss sees them scaled inside."""
        import keras
        from keras import layers

        body = keras.Input((3,), name="body")
        sex = keras.Input((1,), name="sex", dtype="int64")
        serum = keras.Input((6,), name="serum")
        scaled = [layers.Rescaling(2.0, offset=-3.0)(sex)]  # 1 or 2 -> -1.0 or 1.0
        for measure in (body, serum):
            scale = layers.Normalization()
            scale.adapt(train.inputs[measure.name])
            scaled.append(scale(measure))
        x = layers.Dense(24, activation="relu", kernel_regularizer="l2")(layers.concatenate(scaled))
        x = layers.Dense(1)(x)
        x = layers.Rescaling(float(train.target.std()), offset=float(train.target.mean()))(x)
        return keras.Model([body, sex, serum], x)


def shift(inputs: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Return the measures after the laboratory changed its assay: three serum values read higher."""
    serum = inputs["serum"].copy()
    serum[:, 3:] *= rng.normal(1.3, 0.02, size=(len(serum), 3))
    return inputs | {"serum": serum}
