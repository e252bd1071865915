"""Project: found by name, loaded from its import string, and every way that can fail said plainly."""

import sys
from pathlib import Path

import numpy as np
import pytest

from homeostat.dataset import Dataset
from homeostat.errors import ConfigError, DataInvalid
from homeostat.project import Project, find_project, load_project

CLASS = """
from homeostat.project import Project

class Shop(Project):
    def load_data(self): ...
    def build_model(self, train): ...
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch):
    """Return an empty checkout whose modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("shop_"):
            del sys.modules[name]


def write(root: Path, code: str, project: str = "shop_a:Shop") -> Path:
    (root / f"{project.partition(':')[0]}.py").write_text(code)
    path = root / "project.toml"
    path.write_text(f'name = "shop"\nproject = "{project}"\ntask = "regression"\n')
    return path


def test_load(root: Path):
    project, config = load_project(write(root, CLASS), root)
    assert type(project).__name__ == "Shop"
    assert config.name == "shop"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "shop_b has no class 'Shop'; it has no Project class"),
        (CLASS.replace("Shop", "Shed"), "shop_b has no class 'Shop'; it has Shed"),
        ("class Shop: ...", "shop_b:Shop is not a subclass of homeostat.project.Project"),
        ("Shop = 3", "shop_b:Shop is not a subclass"),
        (CLASS.replace("build_model", "build"), "shop_b:Shop does not define build_model"),
        (CLASS.replace("def ", "def no_"), "does not define build_model, load_data"),
        (CLASS + "    def __init__(self, size, color=1): ...", "made without arguments, but needs size"),
        ("import not_there_at_all", "install 'not_there_at_all'"),
        ("from os import not_there", "importing 'shop_b' failed: cannot import name"),
        ("def (", "importing 'shop_b' failed: invalid syntax"),
    ],
)
def test_what_is_wrong_with_the_class(root: Path, code: str, message: str):
    path = write(root, code, "shop_b:Shop")
    with pytest.raises(ConfigError) as caught:
        load_project(path, root)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("module", ["shop_c", "shop_d.project"])
def test_no_such_module(root: Path, module: str):
    path = root / "project.toml"
    path.write_text(f'name = "shop"\nproject = "{module}:Shop"\ntask = "regression"\n')
    with pytest.raises(ConfigError, match=f"no module '{module}' under"):
        load_project(path, root)


def test_find_by_name_folder_and_file(tmp_path: Path):
    file = tmp_path / "projects" / "shop" / "project.toml"
    file.parent.mkdir(parents=True)
    file.touch()
    for name in ("shop", "projects/shop", "projects/shop/project.toml", str(file), str(file.parent)):
        assert find_project(name, tmp_path) == file
    with pytest.raises(ConfigError, match=r"no project 'shed' under .*; there are: shop"):
        find_project("shed", tmp_path)
    with pytest.raises(ConfigError, match="there are: none"):
        find_project("shop", tmp_path / "empty")


class Plain(Project):
    """Plain."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError


def test_the_default_frame():
    rng = np.random.default_rng(0)
    inputs = {
        "body": rng.normal(size=(5, 2)).astype(np.float32),
        "pair": np.ones((5, 2)),
        "sex": np.ones((5, 1), np.int64),
        "flat": np.arange(5),
        "image": rng.normal(size=(5, 3, 3)).astype(np.float32),
        "wide": np.ones((5, 129), np.float32),
    }
    frame = Plain().to_frame(inputs, {"body": ("age", "height")})
    assert list(frame.columns) == [
        *("age", "height", "pair_0", "pair_1", "sex", "flat"),
        *("image_mean", "image_std", "image_min", "image_max"),
        *("wide_mean", "wide_std", "wide_min", "wide_max"),
    ]
    assert frame["sex"].dtype == np.int64
    assert frame["height"].to_numpy() == pytest.approx(inputs["body"][:, 1])
    assert frame["image_max"].to_numpy() == pytest.approx(inputs["image"].max(axis=(1, 2)))


def test_two_columns_of_one_name():
    with pytest.raises(DataInvalid, match="two columns are named age; rename one"):
        Plain().to_frame({"a": np.ones((5, 1)), "b": np.ones((5, 1))}, {"a": ("age",), "b": ("age",)})


def test_the_other_defaults():
    data = Dataset.from_arrays(np.ones((2, 1)), [0, 1], slices={"city": ["Bonn", "Riga"]})
    project = Plain()
    assert project.metrics() == {}
    assert project.expectations() == []
    assert project.slices(data) == data.slices
    inputs = {"x": np.ones((2, 1))}
    assert project.augment(inputs, data.target, np.random.default_rng(0)) is inputs
