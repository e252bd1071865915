"""`homeostat backtest`: a signed bundle, a project and a Parquet file; what it prints, and what it says of bad ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from homeostat.cli import main
from homeostat.commands.backtest import read_span, read_window
from homeostat.control.store import ControlStore
from homeostat.settings import load_settings
from tests.bundles import make_bundle, npz, softmax
from tests.conftest import forget_projects

WHY = {"actor": "test", "reason": "because"}
PROJECT = '''
from homeostat.project import Project


class Toy(Project):
    """Which of three columns is the largest."""

    def load_data(self):
        raise NotImplementedError

    def build_model(self, train):
        raise NotImplementedError
'''
TOML = 'name = "toy"\nproject = "projects.toy.project:Toy"\ntask = "classification"\n'


def drawn(n: int, seed: int, wrong: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return x, np.where(rng.random(n) < wrong, (x.argmax(axis=1) + 1) % 3, x.argmax(axis=1))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEOSTAT_ROOT", str(tmp_path))
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path / "var"))
    monkeypatch.delenv("HOMEOSTAT_CONTROL_URL", raising=False)
    folder = tmp_path / "projects" / "toy"
    folder.mkdir(parents=True)
    for name, text in (("__init__.py", ""), ("project.py", PROJECT), ("project.toml", TOML)):
        (folder / name).write_text(text)
    (folder.parent / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_projects()
    yield tmp_path
    forget_projects()


@pytest.fixture
def champion(root: Path) -> Path:
    x, y = drawn(2000, 0, 0.1)
    scores = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    columns = np.array(["a", "b", "c"])
    reference = npz(**{"input:x": x, "output:scores": scores, "columns:x": columns, "target": y})
    made = make_bundle(root / "var", 1, "toy", softmax(), "classification", reference=reference)
    store = ControlStore(load_settings().control_url)
    store.set_challenger("toy", made, expected_generation=0, **WHY)
    store.promote("toy", 1, expected_generation=1, **WHY)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    parts = [drawn(300, 10 + day, 0.4 if day == 2 else 0.1) for day in range(4)]
    frame = pd.DataFrame(np.concatenate([x for x, _ in parts]), columns=["a", "b", "c"])
    frame["label"] = np.concatenate([y for _, y in parts])
    frame["time"] = datetime(2026, 1, 1, tzinfo=UTC) + pd.to_timedelta(np.arange(1200) * 288, unit="s")
    frame.to_parquet(tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["backtest", *arguments], env={"COLUMNS": "80"})


def test_it_prints_each_window_and_what_it_comes_to(champion: Path, data: Path) -> None:
    result = run("toy", str(data), "--window", "1d", "--no-drift")
    assert result.exit_code == 0, result.output
    assert "4 windows" in result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    (harmful,) = [line for line in lines if "2026-01-03 00:00" in line and "right" in line]
    assert "since 2026-01-0" in harmful
    assert "harm: 1 of 1 harmful windows caught" in result.stdout


def test_it_prints_json(champion: Path, data: Path) -> None:
    options = (
        "--version",
        "v1",
        "--label-delay",
        "12h",
        "--coverage",
        "0.9",
        "--window",
        "300",
        "--no-drift",
        "--json",
    )
    result = run("toy", str(data), *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert [window["rows"] for window in found["windows"]] == [300] * 4
    assert found["harm"]["caught"] == 1
    assert found["drift"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--version", "7"), "toy has no bundle of version 7"),
        (("--label", "truth"), "no column 'truth'; name the right one with --label"),
        (("--window", "1s"), "choose a longer --window"),
        (("--window", "soon"), "is no time span"),
        (("--coverage", "2"), "2.0 is not in the range"),
    ],
)
def test_what_is_wrong_is_said(champion: Path, data: Path, arguments: tuple[str, ...], said: str) -> None:
    result = run("toy", str(data), "--no-drift", *arguments)
    assert result.exit_code != 0
    assert said in " ".join(result.output.split())
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_before_anything_is_rolled_out(root: Path, data: Path) -> None:
    result = run("toy", str(data))
    assert (result.exit_code, "nothing has been rolled out yet" in result.output) == (1, True)


def test_time_spans() -> None:
    assert read_span("0") == timedelta(0)
    assert read_span("1.5h") == timedelta(minutes=90)
    assert (read_window("500"), read_window("2w")) == (500, timedelta(weeks=2))
    for text in ("", "d", "-1d", "1y", "9" * 9 + "d"):
        with pytest.raises(click.BadParameter):
            read_span(text)
    for text in ("0", "0s", "9" * 12):
        with pytest.raises(click.BadParameter):
            read_window(text)
