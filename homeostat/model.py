"""A Keras model as the rooms share it: its inputs by name, its answers, and one .keras file without code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from homeostat.dataset import Array, artifact_of
from homeostat.errors import ConfigError, TrainingFailed
from homeostat.records import Artifact


def arrange(model: keras.Model, inputs: Mapping[str, Array]) -> Any:
    """Return the inputs in the structure that the model takes: one array, a dict or a tuple, as it was built.

    Raises ConfigError when names or shapes are not the dataset's, or the model is not functional.
    """
    tensors = getattr(model, "inputs", None)
    if not tensors:
        raise ConfigError(
            f"{type(model).__name__} has no declared inputs; build a functional model: keras.Model(inputs, outputs)"
        )
    names = [tensor.name for tensor in tensors]
    if sorted(names) != sorted(inputs):
        raise ConfigError(
            f"build_model has inputs {', '.join(names)}; the dataset has {', '.join(inputs)}: "
            'name them alike, keras.Input(shape, name="...")'
        )
    for tensor in tensors:
        declared, found = tuple(tensor.shape[1:]), inputs[tensor.name].shape[1:]
        if len(declared) != len(found) or any(d not in (None, f) for d, f in zip(declared, found, strict=True)):
            raise ConfigError(f"input {tensor.name!r}: build_model takes {declared} a row, the dataset has {found}")
    return structured(model, inputs)


def structured(model: keras.Model, values: Mapping[str, Any]) -> Any:
    """Return values, given by input name, in the structure that the model was built with (lists as tuples)."""
    # Sequential has no structure of its own; Keras 3 names a functional model's only in this attribute
    structure = getattr(model, "_inputs_struct", model.inputs[0])
    if isinstance(structure, list):
        structure = tuple(structure)
    return keras.tree.map_structure(lambda tensor: values[tensor.name], structure)


def answer(model: keras.Model, inputs: Mapping[str, Array]) -> Array:
    """Return the model's outputs [n, k], float32, computed in batches and without training."""
    outputs: Array = np.asarray(model.predict(arrange(model, inputs), batch_size=1024, verbose=0), dtype=np.float32)
    return outputs


def save_model(model: keras.Model, path: Path) -> Artifact:
    """Write a .keras file without the optimizer, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    optimizer, compiled = getattr(model, "optimizer", None), model.compiled
    try:
        model.optimizer, model.compiled = None, False  # Keras has no option that leaves them out of a .keras file
        model.save(temporary)
        temporary.replace(path)
    finally:
        model.optimizer, model.compiled = optimizer, compiled
        temporary.unlink(missing_ok=True)
    return artifact_of(path)


def load_model(artifact: Artifact) -> keras.Model:
    """Load a .keras file that this pipeline wrote; no code in it is run (safe mode)."""
    if artifact_of(Path(artifact.path)) != artifact:
        raise TrainingFailed(f"{artifact.path} is not the recorded model; run the pipeline again")
    return keras.models.load_model(artifact.path, compile=False, safe_mode=True)
