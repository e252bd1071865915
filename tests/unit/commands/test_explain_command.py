"""`homeostat explain`: a decision with its evidence, computed again."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from homeostat.cli import main
from homeostat.config import RetrainConfig
from homeostat.control.store import ControlStore
from homeostat.policy.retraining import Situation, decide_retrain
from tests.bundles import make_bundle

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path, monkeypatch) -> ControlStore:
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path))
    monkeypatch.delenv("HOMEOSTAT_CONTROL_URL", raising=False)
    store = ControlStore(f"sqlite:///{tmp_path}/control.db")
    store.set_challenger(
        "toy", make_bundle(tmp_path, 1), expected_generation=0, actor="t", reason="new", evidence={"metric": 0.9}
    )
    return store


def keep(store: ControlStore, **changed) -> None:
    situation = Situation(NOW, (NOW - timedelta(minutes=5),), 1, 40, (True, True))
    verdict = asdict(decide_retrain("drift", situation, RetrainConfig())) | changed
    store.record("toy", "verdict", actor="flow_run 1", reason="; ".join(verdict["reasons"]), evidence=verdict)


def run(*words: str):
    return CliRunner().invoke(main, ["explain", *words])


def test_a_verdict_is_computed_again(store):
    keep(store)
    shown = run("2")
    assert shown.exit_code == 0
    assert "2: verdict of toy" in shown.output
    assert "115.0 of 120 minutes of cooldown after 1 challengers" in " ".join(shown.output.split())
    assert "situation.looks = [true, true]" in shown.output
    assert "retrain.max_per_week = 14" in shown.output
    assert "The same evidence decides it again: hold." in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80


def test_one_that_was_edited_decides_otherwise(store):
    keep(store, kind="retrain", reasons=("drift was found",))
    assert "The same evidence now decides otherwise: hold: " in run("2").output


def test_other_decisions_and_numbers(store):
    shown = run("1")
    assert "metric = 0.9" in shown.output
    assert "No rule of the policy decided this" in shown.output
    store.record("toy", "verdict", actor="t", reason="t", evidence={"evidence": {"retrain": {}, "trigger": "drift"}})
    assert "It cannot be computed again" in run("2").output
    unknown = run("9")
    assert unknown.exit_code == 1
    assert "the ledger has no entry 9; it has 1 to 2" in unknown.output
    assert '"sequence": 1' in run("1", "--json").output
    assert run("0").exit_code == 2
