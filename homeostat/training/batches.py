"""Batches for the fit loop: shuffled by seed each epoch, augmented by the project, weighted by class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from homeostat.dataset import Array, Dataset
from homeostat.errors import ConfigError
from homeostat.model import arrange
from homeostat.project import Project


def augments(project: Project) -> bool:
    """Whether the project changes its training batches."""
    return type(project).augment is not Project.augment


class Augmented:
    """The training rows in another order each epoch, each batch passed through `project.augment` once."""

    def __init__(
        self, model: keras.Model, project: Project, data: Dataset, batch_size: int, seed: int, weights: Array | None
    ) -> None:
        self._model, self._project, self._data, self._weights = model, project, data, weights
        self._size, self._rng = batch_size, np.random.default_rng(seed)

    def _augment(self, inputs: dict[str, Array], target: Array) -> dict[str, Array]:
        shapes = {name: values.shape for name, values in inputs.items()}
        changed = self._project.augment(inputs, target, self._rng)
        found = {name: np.shape(values) for name, values in changed.items()}
        if found != shapes:
            raise ConfigError(f"augment of {type(self._project).__name__} returned {found} for a batch of {shapes}")
        return {name: np.asarray(changed[name], dtype=self._data.inputs[name].dtype) for name in shapes}

    def _epoch(self) -> Iterator[tuple[Any, ...]]:
        """Yield (inputs, target) of each batch, with the rows' weights if there are any."""
        order = self._rng.permutation(len(self._data))
        for at in range(0, len(order), self._size):
            rows = order[at : at + self._size]
            target = self._data.target[rows]
            inputs = self._augment({name: values[rows] for name, values in self._data.inputs.items()}, target)
            arranged = arrange(self._model, inputs)
            yield (arranged, target) if self._weights is None else (arranged, target, self._weights[rows])

    def dataset(self) -> tf.data.Dataset:
        """Return a tf.data dataset of one epoch; it is drawn anew each time it is iterated."""
        parts: list[Any] = [arrange(self._model, self._data.inputs), self._data.target]
        if self._weights is not None:
            parts.append(self._weights)
        signature = tf.nest.map_structure(lambda v: tf.TensorSpec((None, *v.shape[1:]), v.dtype), tuple(parts))
        batches = tf.data.Dataset.from_generator(self._epoch, output_signature=signature)
        return batches.apply(tf.data.experimental.assert_cardinality(math.ceil(len(self._data) / self._size)))


def balanced_weights(target: Array) -> Array:
    """Return [n] float32 weights that give every class the same sum (n / (classes * count))."""
    classes, inverse, counts = np.unique(target, return_inverse=True, return_counts=True)
    weights: Array = (len(target) / (len(classes) * counts)).astype(np.float32)[inverse]
    return weights


def even_rows(data: Dataset, replicas: int) -> Dataset:
    """Return the rows without the last few, so that each replica gets as many: Keras fails at uneven shares."""
    return data.take(np.arange(len(data) - len(data) % replicas)) if len(data) % replicas else data
