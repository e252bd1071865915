"""Breast cancer: a small network on thirty columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer

from homeostat.dataset import Array, Dataset
from homeostat.project import Project


class BreastCancer(Project):
    """Malignant or benign, from 30 measures of cell nuclei (Wisconsin diagnostic data, 569 patients)."""

    def load_data(self) -> Dataset:
        """Return the measures [n, 30]; class 1 is benign."""
        data = load_breast_cancer(as_frame=True)
        frame = data.frame.assign(patient=[f"breast_cancer-{i}" for i in data.frame.index])
        return Dataset.from_frame(
            frame,
            target="target",
            inputs={"cells": list(data.feature_names)},
            ids="patient",
            classes=list(data.target_names),
        )

    def build_model(self, train: Dataset) -> Any:
        """Return a network with one sigmoid: the probability of class 1."""
        import keras
        from keras import layers

        cells = keras.Input((30,), name="cells")
        scale = layers.Normalization()
        scale.adapt(train.inputs["cells"])
        x = layers.Dense(32, activation="relu")(scale(cells))
        x = layers.Dropout(0.2)(layers.Dense(16, activation="relu")(x))
        return keras.Model([cells], layers.Dense(1, activation="sigmoid")(x))

    def slices(self, data: Dataset) -> Mapping[str, Array]:
        """Return the size of the nuclei by their mean radius (under 12, 12 to 15, over 15)."""
        radius = data.inputs["cells"][:, 0]
        return {"size": np.array(["small", "medium", "large"])[np.digitize(radius, [12, 15])]}


def shift(inputs: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Return the measures as a device with another calibration gives them: the ten worst nuclei read too large."""
    cells = inputs["cells"].copy()
    cells[:, 20:] *= rng.normal(1.5, 0.02, size=(len(cells), 10))
    return {"cells": cells}
