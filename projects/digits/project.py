"""Handwritten digits: a small convolutional network on 8 x 8 images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from homeostat.dataset import Array, Dataset
from homeostat.project import Project


class Digits(Project):
    """Handwritten digits, 8 x 8 grey pixels from 0 to 16 (UCI ML hand-written digits, 1,797 images)."""

    def load_data(self) -> Dataset:
        """Return the images [n, 8, 8, 1] and their digits."""
        data = load_digits()
        return Dataset.from_arrays(
            {"image": data.images[..., np.newaxis]},
            data.target,
            ids=[f"digits-{i}" for i in range(len(data.target))],
            classes=[str(digit) for digit in range(10)],
        )

    def build_model(self, train: Dataset) -> Any:
        """Return a network of 38,282 parameters."""
        import keras
        from keras import layers

        image = keras.Input((8, 8, 1), name="image")
        x = layers.Rescaling(1 / 16)(image)
        x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
        x = layers.Flatten()(layers.MaxPooling2D()(x))
        x = layers.Dropout(0.3)(layers.Dense(64, activation="relu")(x))
        return keras.Model([image], layers.Dense(10, activation="softmax")(x))

    def to_frame(self, inputs: Mapping[str, Array], columns: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
        """Return the mean intensity of each row and column of pixels, where a drift report sees ink move."""
        image = inputs["image"][..., 0]
        rows = {f"row_{i}": image[:, i, :].mean(axis=1) for i in range(8)}
        return pd.DataFrame(rows | {f"col_{i}": image[:, :, i].mean(axis=1) for i in range(8)})


def shift(inputs: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Return the images as a re-mounted scanner gives them: two pixels to the right, one down, and dimmer."""
    image = np.roll(inputs["image"], (1, 2), axis=(1, 2))
    dim = rng.uniform(0.6, 0.8, size=(len(image), 1, 1, 1))
    return {"image": (image * dim).astype(np.float32)}
