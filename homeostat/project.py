"""What a user writes: a Project, two methods and, where the defaults do not fit, a few more."""

from __future__ import annotations

import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.config import ProjectConfig, load_config
from homeostat.contract import MAX_COLUMNS
from homeostat.dataset import Array, Dataset
from homeostat.errors import ConfigError, DataInvalid

if TYPE_CHECKING:
    import keras
    import pandas as pd

Metric = Callable[[Array, Array], float]
"""(target [n], outputs [n, classes] or [n]) -> value."""


class Project(ABC):
    """A model, its data, and what is special about them; the class docstring opens the model card."""

    @abstractmethod
    def load_data(self) -> Dataset:
        """Return all rows that may be learned from."""

    @abstractmethod
    def build_model(self, train: Dataset) -> keras.Model:
        """Return an uncompiled Keras model that takes raw features.

        Preprocessing belongs inside: adapt a Normalization layer on `train`, which holds the
        training rows alone. Inputs carry the dataset's names; a classifier ends in
        probabilities [n, classes] (or one sigmoid [n, 1]), a regressor in [n, 1].
        """

    def metrics(self) -> Mapping[str, Metric]:
        """Return further metrics by name; a larger value must be the better one."""
        return {}

    def expectations(self) -> list[Any]:
        """Return further Great Expectations expectations on the columns of `to_frame`."""
        return []

    def slices(self, data: Dataset) -> Mapping[str, Array]:
        """Return name -> [n] values that metrics are broken down by."""
        return data.slices

    def augment(self, inputs: dict[str, Array], target: Array, rng: np.random.Generator) -> dict[str, Array]:
        """Return one training batch's inputs, changed at random; called once for each batch."""
        del target, rng
        return inputs

    def to_frame(self, inputs: Mapping[str, Array], columns: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
        """Return the inputs as the columns that contract and drift reports speak of.

        Inputs [n], [n, 1] and [n, d] with d <= 128 give one column each; larger tensors (images)
        give mean, std, min and max of each row.
        """
        import pandas as pd

        out: list[tuple[str, Array]] = []
        for name, values in inputs.items():
            if values.ndim == 1:
                out.append((name, values))
            elif values.ndim == 2 and values.shape[1] <= MAX_COLUMNS:
                names = columns.get(name) or (
                    (name,) if values.shape[1] == 1 else tuple(f"{name}_{i}" for i in range(values.shape[1]))
                )
                out += [(column, values[:, i]) for i, column in enumerate(names[: values.shape[1]])]
            else:
                flat = values.reshape(len(values), -1).astype(np.float32)
                out += [(f"{name}_{s}", getattr(flat, s)(axis=1)) for s in ("mean", "std", "min", "max")]
        twice = sorted({name for name, _ in out if sum(name == other for other, _ in out) > 1})
        if twice:
            raise DataInvalid(f"two columns are named {', '.join(twice)}; rename one in load_data, or write to_frame")
        return pd.DataFrame(dict(out))


def find_project(name: str, root: Path) -> Path:
    """Return the project.toml of a project by name or by path (of the file or its folder)."""
    given = Path(name)
    for path in (root / "projects" / name / "project.toml", root / given / "project.toml", root / given):
        if path.is_file():
            return path
    known = sorted(p.parent.name for p in root.glob("projects/*/project.toml"))
    raise ConfigError(f"no project {name!r} under {root / 'projects'}; there are: {', '.join(known) or 'none'}")


def load_project(path: Path, root: Path) -> tuple[Project, ProjectConfig]:
    """Read a project.toml and make its class; raises ConfigError that says what is missing where."""
    config = load_config(path)
    module_name, _, class_name = config.project.partition(":")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(
                f"{path}: project = {config.project!r}: no module {module_name!r} under {root}"
            ) from error
        raise ConfigError(f"{path}: importing {module_name!r} failed: {error}; install {error.name!r}") from error
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{path}: importing {module_name!r} failed: {error}") from error
    found = getattr(module, class_name, None)
    if found is None:
        there = [
            n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Project) and v is not Project
        ]
        raise ConfigError(
            f"{path}: project = {config.project!r}: {module_name} has no class {class_name!r}; "
            f"it has {', '.join(there) or 'no Project class'}"
        )
    if not (isinstance(found, type) and issubclass(found, Project)):
        raise ConfigError(f"{path}: {config.project} is not a subclass of homeostat.project.Project")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(f"{path}: {config.project} does not define {', '.join(missing)}")
    parameters = inspect.signature(found).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise ConfigError(f"{path}: {config.project} is made without arguments, but needs {', '.join(needed)}")
    return found(), config


__all__ = ["Dataset", "Metric", "Project", "find_project", "load_project"]
