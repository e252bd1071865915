"""`homeostat init`: all or nothing, and what it writes runs."""

import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from homeostat import scaffold
from homeostat.config import load_config
from homeostat.errors import ConfigError
from homeostat.scaffold import deployment_block, init_project

ROOT = Path(__file__).resolve().parents[2]
FLOWS = ("lifecycle", "monitor", "retrain", "promote", "rollback")
ANCHORS = "definitions:\n" + "".join(f"  {flow}: &{flow} {{entrypoint: x}}\n" for flow in FLOWS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a checkout with the real prefect.yaml and no project of its own."""
    (tmp_path / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    (tmp_path / "projects").mkdir()
    (tmp_path / "projects" / "__init__.py").write_text('"""Projects."""\n')
    return tmp_path


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_files_and_the_deployments(root: Path, task: str):
    before = yaml.safe_load((root / "prefect.yaml").read_text())
    written = init_project("house_prices", root, task)
    folder = root / "projects" / "house_prices"
    assert written == [folder / "__init__.py", folder / "project.py", folder / "project.toml", root / "prefect.yaml"]
    config = load_config(folder / "project.toml")
    assert (config.name, config.task) == ("house_prices", task)
    assert config.project == "projects.house_prices.project:HousePrices"
    after = yaml.safe_load((root / "prefect.yaml").read_text())
    assert after["definitions"] == before["definitions"]
    added = after["deployments"][len(before["deployments"]) :]
    assert [item["entrypoint"] for item in added] == [f"flows/{flow}.py:{flow}" for flow in FLOWS]
    assert {item["name"] for item in added} == {"house_prices"}
    assert all(item["parameters"] == {"project": "house_prices"} for item in added)
    assert not [path for path in tree(root) if ".tmp" in path or path.startswith("projects/.")]


def test_the_examples_have_the_same_block():
    text = (ROOT / "prefect.yaml").read_text()
    for name in ("digits", "breast_cancer", "diabetes"):
        assert deployment_block(name) in text


def test_a_checkout_without_projects(root: Path):
    (root / "projects" / "__init__.py").unlink()
    (root / "projects").rmdir()
    assert root / "projects" / "__init__.py" in init_project("shop", root)


def test_two_projects_stand_side_by_side(root: Path):
    init_project("first_one", root)
    init_project("second_one", root, "regression")
    names = [item["name"] for item in yaml.safe_load((root / "prefect.yaml").read_text())["deployments"]]
    assert (names.count("first_one"), names.count("second_one")) == (5, 5)


def test_an_empty_list_of_deployments(root: Path):
    (root / "prefect.yaml").write_text(f"{ANCHORS}deployments: []\n")
    init_project("shop", root)
    assert len(yaml.safe_load((root / "prefect.yaml").read_text())["deployments"]) == 5


@pytest.mark.parametrize("indent", ["", "  ", "    "])
def test_the_block_is_indented_as_the_list_is(root: Path, indent: str):
    path = root / "prefect.yaml"
    head, _, items = path.read_text().partition("deployments:\n")
    path.write_text(f"{head}deployments:\n" + textwrap.indent(textwrap.dedent(items), indent))
    before = yaml.safe_load(path.read_text())
    init_project("shop", root)
    after = yaml.safe_load(path.read_text())["deployments"]
    assert after[:-5] == before["deployments"]
    assert {item["name"] for item in after[-5:]} == {"shop"}


def test_a_linked_prefect_file_stays_a_link(root: Path):
    (root / "prefect.yaml").rename(root / "shared.yaml")
    (root / "prefect.yaml").symlink_to("shared.yaml")
    init_project("shop", root)
    assert (root / "prefect.yaml").is_symlink()
    assert "project: shop" in (root / "shared.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Shop", "lower-case letters"),
        ("my-shop", "lower-case letters"),
        ("1shop", "lower-case letters"),
        ("_shop", "lower-case letters"),
        ("../shop", "lower-case letters"),
        ("shop\n", "lower-case letters"),
        ("größe", "lower-case letters"),
        ("", "lower-case letters"),
        ("s" * 64, "at most 63"),
        ("class", "Python keyword"),
        ("match", "Python keyword"),
        ("statistics", "can be imported here"),
        ("numpy", "can be imported here"),
        ("homeostat", "can be imported here"),
    ],
)
def test_names_that_cannot_be_used(root: Path, name: str, message: str):
    before = tree(root)
    with pytest.raises(ConfigError, match=message):
        init_project(name, root)
    assert tree(root) == before


def test_an_existing_project_is_left_alone(root: Path):
    init_project("shop", root)
    (root / "projects" / "shop" / "project.py").write_text("mine")
    before = tree(root)
    with pytest.raises(ConfigError, match="exists; choose another name"):
        init_project("shop", root)
    assert tree(root) == before


def test_existing_deployments_are_not_doubled(root: Path):
    before = tree(root)
    with pytest.raises(ConfigError, match="has deployments of a project 'digits'"):
        init_project("digits", root)
    assert tree(root) == before


def test_a_name_that_begins_another_is_not_taken_for_it(root: Path):
    init_project("digits_two", root)
    init_project("digit", root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deployments:\nname: x\n", "must be the last"),
        ("# nothing\n", "must be the last"),
        ("name: x\ndeployments:\n", "no anchor &lifecycle, &monitor"),
        (ANCHORS + "deployments: [{name: x}]\n", "an item a line"),
    ],
)
def test_a_prefect_file_that_cannot_be_added_to(root: Path, text: str, message: str):
    (root / "prefect.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        init_project("shop", root)
    assert tree(root) == {"prefect.yaml": text, "projects/__init__.py": '"""Projects."""\n'}


def test_a_prefect_file_that_is_no_text(root: Path):
    (root / "prefect.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        init_project("shop", root)
    assert not (root / "projects" / "shop").exists()


def test_no_checkout(tmp_path: Path):
    with pytest.raises(ConfigError, match="run this in a checkout"):
        init_project("shop", tmp_path)
    assert tree(tmp_path) == {}


def test_an_unknown_task(root: Path):
    with pytest.raises(ConfigError, match="task 'ranking': choose classification or regression"):
        init_project("shop", root, "ranking")


def test_a_failure_at_the_last_step_takes_the_project_back(root: Path, monkeypatch):
    (root / "projects" / "__init__.py").unlink()
    before = tree(root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("homeostat.scaffold._replace", full)
    with pytest.raises(OSError, match="No space left"):
        init_project("shop", root)
    assert tree(root) == before


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_what_is_written_is_clean_and_its_data_are_good(root: Path, task: str):
    init_project("shop", root, task)
    code = f"""
import sys
from pathlib import Path
import numpy as np
from homeostat.data.prepare import prepare
from homeostat.project import load_project
root = Path({str(root)!r})
project, config = load_project(root / "projects" / "shop" / "project.toml", root)
record = prepare(project, config, root / "work", None)
assert record.rows == {{"train": 550, "validation": 150, "calibration": 100, "test": 200}}, record.rows
shift = sys.modules[type(project).__module__].shift
inputs = dict(project.load_data().inputs)
moved = shift(inputs, np.random.default_rng(0))
assert moved["x"].dtype == inputs["x"].dtype and (moved["x"] != inputs["x"]).any()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=root)
    for verb in (["format", "--check"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *verb, "--config", str(ROOT / "pyproject.toml"), str(root / "projects")]
        subprocess.run(ruff, check=True)


def test_five_at_once_keep_all_blocks(root: Path, monkeypatch):
    write = scaffold._write_folder

    def slowly(target: Path, contents: dict[str, str]) -> None:
        time.sleep(0.05)  # between the check and the write: without the lock all five read the same file
        write(target, contents)

    monkeypatch.setattr(scaffold, "_write_folder", slowly)
    names = [f"shop_{i}" for i in range(5)]
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda name: init_project(name, root), names))
    found = [item["name"] for item in yaml.safe_load((root / "prefect.yaml").read_text())["deployments"]]
    assert [found.count(name) for name in names] == [5] * 5
    assert all((root / "projects" / name / "project.py").is_file() for name in names)


def test_a_root_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="run this in a checkout"):
        init_project("shop", tmp_path / "none")
