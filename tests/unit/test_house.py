"""The house itself: the docs say what the code does, no flow shadows a library, every room says what it is for."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from homeostat.cli import main
from homeostat.config import load_config
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_configuration_page_is_made_from_the_code() -> None:
    spec = importlib.util.spec_from_file_location("configuration", ROOT / "docs" / "configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = (ROOT / "docs" / "configuration.md").read_text()
    assert found == module.page(), "run: python docs/configuration.py > docs/configuration.md"


def test_every_command_of_the_readme_is_there() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(("homeostat ", "make "))]
    words = [shlex.split(line, comments=True) for line in lines]
    commands = [line[1] for line in words if line[:1] == ["homeostat"]]
    assert len(commands) >= 7
    assert set(commands) <= set(main.commands)
    targets = {line[1] for line in words if line[:1] == ["make"]}
    makefile = (ROOT / "Makefile").read_text()
    assert {"run", "test", "up"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_code_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(80, 3)), columns=["age", "calls", "bill"])
    frame = frame.assign(left=rng.integers(0, 2, 80), customer=range(80), country="nl")
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    churn = names["Churn"]()  # type: ignore[operator]
    data = churn.load_data()
    assert data.inputs["x"].shape == (80, 3)
    assert churn.build_model(data).output_shape == (None, 2)


@pytest.mark.parametrize("path", sorted((ROOT / "flows").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_no_flow_file_shadows_a_library(path: Path) -> None:
    """Prefect puts flows/ first on sys.path; a file named like a library would be imported instead of it."""
    assert path.stem not in sys.stdlib_module_names
    spec = importlib.util.find_spec(path.stem)
    assert spec is None or spec.origin == str(path)


def test_each_module_opens_with_one_sentence() -> None:
    for folder in ("homeostat", "tasks", "flows", "deployments", "projects"):
        for path in (ROOT / folder).rglob("*.py"):
            doc = ast.get_docstring(ast.parse(path.read_text()))
            assert doc, path
            assert doc.splitlines()[0].endswith((".", ":")), path


def test_every_deployment_is_of_a_flow_and_a_project_and_its_schedules_are_off() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    names = [(one["entrypoint"], one["name"]) for one in deployments]
    assert len(names) == len(set(names))
    for one in deployments:
        file, _, function = one["entrypoint"].partition(":")
        assert f"def {function}(" in (ROOT / file).read_text()
        assert load_config(ROOT / "projects" / one["parameters"]["project"] / "project.toml").name == one["name"]
        assert one["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        assert all(schedule["active"] is False for schedule in one.get("schedules", []))
    crons = {one["entrypoint"]: one["schedules"][0]["cron"] for one in deployments if "schedules" in one}
    assert set(crons) == {"flows/monitor.py:monitor", "flows/retrain.py:retrain"}


def test_importing_the_flows_and_the_command_imports_nothing_heavy() -> None:
    import subprocess

    heavy = "('tensorflow','keras','mlflow','evidently','great_expectations','sklearn','pandas','onnxruntime'"
    heavy += ",'duckdb','ibis')"
    for modules in (
        "homeostat.cli, homeostat.config, homeostat.settings",
        "flows.lifecycle, flows.monitor, flows.retrain",
    ):
        code = f"import {modules}, sys; print([m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", modules


def test_unit_tests_have_names_of_their_own():
    """Pytest cannot import two of one name from folders that are no packages, and tells only when both are run."""
    names = [path.name for path in (ROOT / "tests" / "unit").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
