"""Tiny Keras projects and records for the tests of training, compression and export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset, read_artifact
from homeostat.project import Project
from homeostat.records import Artifact, Candidate, DatasetRecord, Latency


class Made(Project):
    """A project whose model is given as a function."""

    def __init__(self, build: Callable[[Dataset], Any]) -> None:
        self._build = build

    def load_data(self) -> Dataset:
        raise NotImplementedError

    def build_model(self, train: Dataset) -> Any:
        return self._build(train)


class Augmenting(Made):
    """Notes what it is called with, and adds noise."""

    def __init__(self, build: Callable[[Dataset], Any]) -> None:
        super().__init__(build)
        self.calls: list[tuple[int, float]] = []

    def augment(self, inputs: dict[str, Array], target: Array, rng: np.random.Generator) -> dict[str, Array]:
        self.calls.append((len(target), float(inputs["x"].sum())))
        return {"x": inputs["x"] + rng.normal(0, 0.01, inputs["x"].shape)}


def config(task: str = "classification", **sections: Mapping[str, Any]) -> ProjectConfig:
    values: dict[str, Any] = {"name": "tiny", "project": "tiny:Tiny", "task": task}
    values["train"] = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, **sections.pop("train", {})}
    return ProjectConfig.model_validate(values | sections)


def blobs(rows: int, seed: int, classes: int = 3) -> Dataset:
    """Points in the plane [n, 4] around `classes` centers, well apart."""
    rng = np.random.default_rng(seed)
    target = np.arange(rows) % classes
    centers = np.random.default_rng(0).normal(0, 3, (classes, 4))
    return Dataset.from_arrays(centers[target] + rng.normal(0, 1, (rows, 4)), target)


def record(folder: Path, make: Callable[[int, int], Dataset], task: str = "classification") -> DatasetRecord:
    sizes = {"train": 96, "validation": 48, "calibration": 32, "test": 32}
    parts = {name: make(n, i + 1).save(folder / f"{name}.npz") for i, (name, n) in enumerate(sizes.items())}
    return DatasetRecord("tiny", task, "0" * 64, sizes, parts)  # type: ignore[arg-type]


def mlp(outputs: int = 3, activation: str | None = "softmax", *, normalize: bool = True) -> Callable[[Dataset], Any]:
    """A function that builds x [n, 4] -> 16 -> outputs."""

    def build(train: Dataset) -> Any:
        import keras
        from keras import layers

        x = keras.Input((4,), name="x")
        scale = layers.Normalization()
        if normalize:
            scale.adapt(train.inputs["x"])
        inner = scale(x) if normalize else x
        hidden = layers.Dense(16, activation="relu", name="hidden")(inner)
        return keras.Model(x, layers.Dense(outputs, activation=activation, name="last")(hidden), name="mlp")

    return build


def candidate(
    name: str,
    *,
    size: int = 1000,
    accuracy: float = 0.9,
    p50: float = 10.0,
    p99: float = 20.0,
    invariant: bool = True,
    metric: str = "accuracy",
) -> Candidate:
    pinned = Artifact(f"/{name}.onnx", "0" * 64, size)
    latency = (Latency(1, p50, p99), Latency(32, 10 * p50, 10 * p99))
    return Candidate(name, pinned, pinned, {metric: accuracy}, latency, 0.0, invariant)


def uneven(rows: int, seed: int) -> Dataset:
    """One row more than two devices can share equally."""
    return blobs(rows + 1, seed)


def check_kept(keras_file: Artifact, data: DatasetRecord, folder: Path, metrics: Mapping[str, float]) -> None:
    """The kept model is float32, its figures are those of all validation rows, and its graph passes the gates."""
    from homeostat.export.export import run_gates
    from homeostat.export.onnx import to_onnx
    from homeostat.model import answer, load_model

    model, rows = load_model(keras_file), Dataset.load(data.parts["validation"])
    assert {layer.compute_dtype for layer in model.layers} == {layer.variable_dtype for layer in model.layers}
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    expected = answer(model, rows.inputs)
    share = np.mean(expected.argmax(axis=1) == rows.target)
    assert metrics["val_accuracy"] == pytest.approx(share)
    assert share > 0.9
    graph = read_artifact(to_onnx(model, folder / "model.onnx", 17))
    passed = run_gates(graph, rows, expected, config(), quantized=False)
    assert {"inputs", "parity"} <= {gate.name for gate in passed}
