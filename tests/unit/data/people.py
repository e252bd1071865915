"""A small project and its rows, for the tests of this folder."""

from typing import Any

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Dataset
from homeostat.project import Project

COLUMNS = ("age", "height", "weight")


def make_config(task: str = "classification", seed: int = 1, **data: Any) -> ProjectConfig:
    return ProjectConfig.model_validate(
        {"name": "people", "project": "people:People", "task": task, "data": data, "train": {"seed": seed}}
    )


def make_dataset(n: int = 200, seed: int = 0, **overrides: Any) -> Dataset:
    rng = np.random.default_rng(seed)
    given = {
        "inputs": {"body": rng.uniform(0, 1, (n, 3)), "sex": rng.integers(0, 2, (n, 1))},
        "target": rng.integers(0, 3, n),
        "columns": {"body": COLUMNS, "sex": ["sex"]},
    }
    return Dataset.from_arrays(**(given | overrides))


class People(Project):
    """People."""

    def __init__(self, data: Dataset | None = None) -> None:
        self.data = data or make_dataset()

    def load_data(self) -> Dataset:
        return self.data

    def build_model(self, train: Dataset) -> Any:
        raise NotImplementedError
