"""Batches for Keras: shuffled by seed each epoch, augmented by the project, weighted by class."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from homeostat.dataset import Array, Dataset
from homeostat.model import arrange
from homeostat.project import Project


class Batches(keras.utils.PyDataset):
    """The training rows, in another order each epoch; the last batch may be smaller."""

    def __init__(self, model: keras.Model, project: Project, data: Dataset, batch_size: int, seed: int) -> None:
        super().__init__(workers=1)
        self._model, self._project, self._data = model, project, data
        self._size, self._rng = batch_size, np.random.default_rng(seed)
        self._augments = type(project).augment is not Project.augment
        self._order = self._rng.permutation(len(data))
        self.weights: Array | None = None
        """[n] float32: weight of each row in the loss."""

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self._data) / self._size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return (inputs, target) of one batch, with the rows' weights if there are any."""
        rows = self._order[index * self._size : (index + 1) * self._size]
        inputs = {name: values[rows] for name, values in self._data.inputs.items()}
        target = self._data.target[rows]
        if self._augments:
            inputs = self._project.augment(inputs, target, self._rng)
        arranged = arrange(self._model, inputs)
        return (arranged, target) if self.weights is None else (arranged, target, self.weights[rows])

    def on_epoch_end(self) -> None:
        """Shuffle anew."""
        self._order = self._rng.permutation(len(self._data))


def balanced_weights(target: Array) -> Array:
    """Return [n] float32 weights that give every class the same sum (n / (classes * count))."""
    classes, inverse, counts = np.unique(target, return_inverse=True, return_counts=True)
    weights: Array = (len(target) / (len(classes) * counts)).astype(np.float32)[inverse]
    return weights
