"""The project of a benchmark that brings its rows and its graph: nothing of it is loaded or trained."""

from __future__ import annotations

from homeostat.dataset import Dataset
from homeostat.project import Project


class Rows(Project):
    """Rows and columns as they are given."""

    def load_data(self) -> Dataset:
        """Refuse: the benchmark makes its rows."""
        raise TypeError("a benchmark brings its rows; there are none to load")

    def build_model(self, train: Dataset) -> object:
        """Refuse: the benchmark makes its graph."""
        raise TypeError("a benchmark brings its graph; there is none to train")
