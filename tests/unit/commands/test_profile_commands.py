"""`homeostat profile`: show and compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from homeostat.bundle import build, load_key
from homeostat.cli import main
from homeostat.config import ProjectConfig
from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.control.store import ControlStore
from homeostat.data.profile import ModelProfile, SliceProfile
from homeostat.data.profiler import make_profile
from homeostat.records import Interval
from homeostat.settings import load_settings
from tests.bundles import LINEAGE, linear


def people(rows: int, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(rows)
    return pd.DataFrame({"age": rng.normal(40 + shift, 10, rows), "kind": rng.choice(["cat", "dog"], rows)})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEOSTAT_ROOT", str(tmp_path))
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path / "var"))
    for name in ("CONTROL_URL", "MLFLOW_URL", "BUNDLES_URL"):
        monkeypatch.delenv(f"HOMEOSTAT_{name}", raising=False)
    home = tmp_path / "var"
    metrics = {"accuracy": Interval(0.9, 0.8, 1.0)}
    answered = ModelProfile(
        rows=100,
        scores=(),
        metrics=metrics,
        slices=(
            SliceProfile(name="kind=cat", rows=50, metrics=metrics),
            SliceProfile(name="kind=dog", rows=1, metrics={}),
        ),
    )
    profile = make_profile(people(1000)).with_model(answered).to_json().encode()
    x = TensorSpec(name="x", dtype="float32", shape=(4,), minimum=(-1,), maximum=(1,))
    age = ColumnSpec(name="age", dtype="float32", null_share=0.0, minimum=0.0, maximum=10.0)
    contract = Contract(inputs=(x,), columns=(age,), target=age, min_rows=50, mostly=0.95, null_slack=0.05)
    config = ProjectConfig.model_validate({"name": "people", "project": "p:P", "task": "regression"})
    golden, url = {"x": np.ones((2, 4), np.float32)}, f"file://{home}/bundles"
    ref = build("people", 1, linear(), contract, profile, config, LINEAGE, b"", golden, load_key(home), url)
    store = ControlStore(load_settings().control_url)
    store.register_bundle(ref)
    store.promote("people", 1, expected_generation=0, actor="t", reason="t")
    return home


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["profile", *arguments])


def test_show():
    found = run("show")
    assert found.exit_code == 0, found.output
    assert "people v1: 1,000 training rows, 2 columns" in found.stdout
    assert "on 100 held-out rows:" in found.stdout
    assert "kind=dog" in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 80
    assert json.loads(run("show", "v1", "--json").stdout)["rows"] == 1000


def test_compare(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    people(2000, shift=20).assign(more=1).to_parquet(file)
    found = run("compare", str(file), "people")
    assert found.exit_code == 0, found.output
    lines = [line for line in found.stdout.splitlines() if " age " in line or " kind " in line or " more " in line]
    assert [line.split()[1] for line in lines] == ["more", "age", "kind"]
    assert "new" in lines[0]
    assert "+2." in lines[1]
    figures = {one["column"]: one for one in json.loads(run("compare", str(file), "--json").stdout)}
    assert figures["age"]["mean_shift"] == pytest.approx(2, abs=0.2)
    assert figures["kind"]["jensen_shannon"] < 0.05


def test_what_cannot_be_read_is_said(tmp_path: Path):
    (tmp_path / "rows.parquet").write_bytes(b"half")
    found = run("compare", str(tmp_path / "rows.parquet"))
    assert found.exit_code == 1
    assert "rows.parquet cannot be read" in found.stderr
    assert run("compare", str(tmp_path / "none.csv")).exit_code == 1
    assert "9" in run("show", "9").stderr
