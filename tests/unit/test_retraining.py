"""Asking the policy whether to train: what it is told, what the ledger keeps, and one training of many who ask."""

from __future__ import annotations

import threading

import pytest

from homeostat import retraining
from homeostat.config import ProjectConfig
from homeostat.control.store import ControlStore
from homeostat.policy.again import decide_again
from homeostat.retraining import ask_to_retrain
from homeostat.settings import Settings
from tests.bundles import make_bundle

WHY = {"actor": "test", "reason": "because"}
CONFIG = ProjectConfig(name="toy", project="toy:Toy", task="classification")


@pytest.fixture
def settings(tmp_path) -> Settings:
    settings = Settings(home=tmp_path, control_url=f"sqlite:///{tmp_path}/control.db")
    store = ControlStore(settings.control_url)
    store.set_challenger("toy", make_bundle(tmp_path, 1), expected_generation=0, **WHY)
    store.promote("toy", 1, expected_generation=1, **WHY)
    return settings


def ask(settings: Settings, trigger="schedule", config=CONFIG):
    return ask_to_retrain(ControlStore(settings.control_url, timeout_seconds=20), settings, config, trigger, "me")


def test_the_ledger_keeps_what_it_was_decided_on(settings):
    assert ask(settings).kind == "retrain"
    held = ask(settings)
    assert held.kind == "hold"
    assert "120 minutes of cooldown after 1 challengers" in held.reasons[0]
    trained, entry = ControlStore(settings.control_url).history("toy")[-2:]
    assert (trained.action, entry.action, entry.actor) == ("retrain", "verdict", "me")
    assert decide_again(entry.evidence["evidence"]).verdict.reasons == held.reasons
    assert entry.evidence["trigger"] == "schedule"


def test_without_a_champion_earlier_trainings_still_count(tmp_path):
    settings = Settings(home=tmp_path, control_url=f"sqlite:///{tmp_path}/control.db")
    ControlStore(settings.control_url).set_challenger("toy", make_bundle(tmp_path, 1), expected_generation=0, **WHY)
    assert [ask(settings).kind for _ in range(2)] == ["retrain", "hold"]


def test_drift_without_a_look_that_found_it_is_held(settings):
    assert "0 of the last 0 looks found drift" in ask(settings, "drift").reasons[0]


def test_harm_that_is_not_of_the_live_version_is_held(settings):
    assert "of a version before it" in ask(settings, "harm").reasons[0]


def test_of_many_who_ask_at_once_one_is_told_to_train(settings, monkeypatch):
    """All have read the same evidence before the first of them writes."""
    askers, found = 6, []
    barrier, read = threading.Barrier(askers), retraining.past_trainings
    first = threading.local()

    def past(entries):
        seen = read(entries)
        if not getattr(first, "done", False):
            first.done = True
            barrier.wait(10)
        return seen

    monkeypatch.setattr(retraining, "past_trainings", past)
    threads = [threading.Thread(target=lambda: found.append(ask(settings).kind)) for _ in range(askers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == ["hold"] * (askers - 1) + ["retrain"]
    actions = [entry.action for entry in ControlStore(settings.control_url).history("toy")]
    assert (actions.count("retrain"), actions.count("verdict")) == (1, askers - 1)
