"""`homeostat contract`: show and diff, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from homeostat.bundle import build, load_key
from homeostat.cli import main
from homeostat.config import ProjectConfig
from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.control.store import ControlStore
from homeostat.records import BundleRef
from homeostat.settings import load_settings
from tests.bundles import LINEAGE, linear

AGE = ColumnSpec(name="age", dtype="float32", null_share=0.0, minimum=0.0, maximum=10.0)
KIND = ColumnSpec(name="kind", dtype="int64", null_share=0.02, minimum=0.0, maximum=1.0, categories=(0, 1))
TARGET = ColumnSpec(name="target", dtype="float32", null_share=0.0, minimum=None, maximum=None)


def bundle(home: Path, version: int, *columns: ColumnSpec):
    x = TensorSpec(name="x", dtype="float32", shape=(4,), minimum=(-1,), maximum=(1,))
    contract = Contract(inputs=(x,), columns=columns, target=TARGET, min_rows=50, mostly=0.95, null_slack=0.05)
    config = ProjectConfig.model_validate({"name": "people", "project": "p:P", "task": "regression"})
    golden = {"x": np.ones((2, 4), np.float32)}
    return build(
        "people",
        version,
        linear(),
        contract,
        b"{}",
        config,
        LINEAGE,
        b"",
        golden,
        load_key(home),
        f"file://{home}/bundles",
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ControlStore:
    monkeypatch.setenv("HOMEOSTAT_ROOT", str(tmp_path))
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path / "var"))
    for name in ("CONTROL_URL", "MLFLOW_URL", "BUNDLES_URL"):
        monkeypatch.delenv(f"HOMEOSTAT_{name}", raising=False)
    home = tmp_path / "var"
    store = ControlStore(load_settings().control_url)
    store.register_bundle(bundle(home, 1, AGE, KIND))
    store.register_bundle(bundle(home, 2, AGE.model_copy(update={"maximum": 12.0})))
    store.promote("people", 1, expected_generation=0, actor="t", reason="t")
    return store


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["contract", *arguments], env={"COLUMNS": "80"})


@pytest.mark.usefixtures("store")
def test_show():
    for words in ((), ("people",), ("1",), ("v1", "--model", "people")):
        shown = run("show", *words)
        assert shown.exit_code == 0, shown.output
        assert "people v1: 95% of the rows" in shown.stdout
        assert "0 to 10" in shown.stdout
        assert "0, 1" in shown.stdout
    assert Contract.from_json(run("show", "2", "--json").stdout).columns[0].maximum == 12


@pytest.mark.usefixtures("store")
def test_diff_exits_as_diff_does():
    found = run("diff", "1", "2")
    assert found.exit_code == 1
    assert "column age" in found.stdout
    assert "0 to 12" in found.stdout
    assert "removed" in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 80
    changes = json.loads(run("diff", "v1", "v2", "--project", "people", "--json").stdout)
    assert [(c["place"], c["rule"], c["effect"]) for c in changes] == [
        ("column kind", "removed", ""),
        ("column age", "range", "wider"),
    ]
    assert len(json.loads(run("diff", "1", "2", "--tolerance", "0.5", "--json").stdout)) == 1
    same = run("diff", "2", "2")
    assert (same.exit_code, same.stdout) == (0, "people: the contracts of v2 and v2 are the same\n")


def test_what_cannot_be_compared_exits_with_2(store: ControlStore, tmp_path: Path):
    unknown = run("diff", "1", "9")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "9" in unknown.stderr
    assert run("diff", "1", "x").exit_code == 2
    (next((tmp_path / "var" / "bundles" / "people").glob("v2-*")) / "contract.json").write_text("{}")
    damaged = run("diff", "1", "2")
    assert damaged.exit_code == 2
    assert "contract.json" in damaged.stderr
    pets = BundleRef("pets", 1, "file:///pets", "a" * 64, "b" * 64)
    store.set_challenger("pets", pets, expected_generation=0, actor="t", reason="t")
    unclear = run("show")
    assert unclear.exit_code == 1
    assert "say which model by --model; there are: people, pets" in unclear.stderr
    assert "pets has no champion yet" in run("show", "pets").stderr
