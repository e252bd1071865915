"""Toy projects, graphs of one matrix product, and rows for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from homeostat.config import ProjectConfig
from homeostat.dataset import Dataset
from homeostat.project import Project
from homeostat.records import DatasetRecord


class Toy(Project):
    """Nothing but its metrics and slices."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError


@pytest.fixture
def project() -> Toy:
    return Toy()


@pytest.fixture
def configure() -> Callable[..., ProjectConfig]:
    """Make a config: (task, metric, gate keys)."""

    def make(task: str, metric: str = "", **gate: float) -> ProjectConfig:
        return ProjectConfig(name="toy", project="toy:Toy", task=task, metric=metric, gate=gate)

    return make


@pytest.fixture
def graph() -> Callable[..., bytes]:
    """Make a graph: x [n, d] @ weights, then one last operation."""

    def make(weights, last: str = "Softmax") -> bytes:
        weights = np.asarray(weights, np.float32)
        d, k = weights.shape
        model = helper.make_model(
            helper.make_graph(
                [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node(last, ["y"], ["output"])],
                "toy",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", d])],
                [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", k])],
                [numpy_helper.from_array(weights, "w")],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        onnx.checker.check_model(model)
        return model.SerializeToString()

    return make


@pytest.fixture
def classes() -> Callable[..., Dataset]:
    """Rows whose class is mostly the largest of k columns: (n, seed, k)."""

    def make(n: int = 360, seed: int = 0, k: int = 3, **options) -> Dataset:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, k))
        return Dataset.from_arrays(x, np.where(rng.random(n) < 0.1, rng.integers(0, k, n), x.argmax(axis=1)), **options)

    return make


@pytest.fixture
def values() -> Callable[..., Dataset]:
    """Rows whose target is the sum of three columns and noise of deviation 0.5: (n, seed)."""

    def make(n: int = 200, seed: int = 0, **options) -> Dataset:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, 3))
        return Dataset.from_arrays(x, x.sum(axis=1) + rng.normal(scale=0.5, size=n), **options)

    return make


@pytest.fixture
def record(tmp_path: Path) -> Callable[[Dataset, str], DatasetRecord]:
    """A record whose held-out parts are this dataset."""

    def make(data: Dataset, task: str) -> DatasetRecord:
        parts = dict.fromkeys(("validation", "calibration", "test"), data.save(tmp_path / "test.npz"))
        return DatasetRecord("toy", task, data.sha256(), {"test": len(data)}, parts)

    return make
