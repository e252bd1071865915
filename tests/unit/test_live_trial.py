"""A challenger that live labels decide on: when it is one, and what each verdict does to the row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from homeostat.config import ProjectConfig, RolloutConfig, TrialConfig
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.errors import ServerUnavailable
from homeostat.policy.again import decide_again
from homeostat.policy.promotion import decide_trial
from homeostat.records import Comparison, Interval, SliceGain, Trial
from homeostat.trial import conclude, find_tried
from tests.bundles import linear, make_bundle

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
NOBODY = "http://127.0.0.1:9"
"""Where no server answers."""
CANARY = RolloutConfig(strategy="canary", steps=(0.1, 0.5))


def trial(low: float, high: float, rows: int = 200, days: float = 1.0, slices: tuple[SliceGain, ...] = ()) -> Trial:
    gain = Interval((low + high) / 2, low, high)
    comparison = Comparison("accuracy", 1, rows, 0.9 + gain.value, 0.9, gain, slices)
    return Trial(2, NOW.isoformat(), (NOW + timedelta(days=days)).isoformat(), comparison)


def config(**rollout: object) -> ProjectConfig:
    return ProjectConfig(name="toy", project="a:B", task="classification", rollout=RolloutConfig(**rollout))


@pytest.fixture
def store(tmp_path: Path) -> ControlStore:
    """Version 1 is champion, and version 2 a challenger on which the test part says nothing."""
    made = ControlStore(f"sqlite:///{tmp_path}/control.db")
    for version in (1, 2):
        bundle = make_bundle(tmp_path, version, onnx_bytes=linear(float(version)), rollout=CANARY)
        generation = made.generation("toy")
        row = made.set_challenger("toy", bundle, expected_generation=generation, actor="t", reason="t")
        if version == 1:
            made.promote("toy", 1, expected_generation=row.generation, actor="t", reason="t")
    hold(made, "inconclusive")
    return made


def hold(store: ControlStore, verdict: str) -> None:
    evidence = {"verdict": verdict}
    store.hold("toy", expected_generation=store.generation("toy"), actor="t", reason="t", evidence=evidence)


@pytest.mark.parametrize(
    ("found", "kind", "why"),
    [
        (trial(0.011, 0.05), "promote", "above the margin 0.01"),
        (trial(0.01, 0.05), "inconclusive", "holds the margin 0.01"),
        (trial(-0.05, 0.009), "hold", "below the margin 0.01"),
        (trial(0.011, 0.05, rows=99), "inconclusive", "min_labels is 100"),
        (trial(0.011, 0.05, rows=99, days=14), "hold", "14 days of trial are over"),
        (trial(0.0, 0.05, days=14), "hold", "14 days of trial are over"),
        (trial(0.011, 0.05, days=14), "promote", "above the margin"),
        (trial(0.0, 0.05, rows=5000), "hold", "max_labels 5000 have come"),
        (Trial(2, NOW.isoformat(), NOW.isoformat(), None), "inconclusive", "too few labelled rows"),
        (
            trial(0.02, 0.05, slices=(SliceGain("region=south", 90, Interval(-0.2, -0.4, -0.06)),)),
            "hold",
            "slice_margin 0.05: region=south gains -0.2000",
        ),
        (trial(0.02, 0.05, slices=(SliceGain("region=south", 90, Interval(-0.2, -0.4, -0.05)),)), "promote", "above"),
    ],
)
def test_verdicts(found: Trial, kind: str, why: str) -> None:
    verdict = decide_trial(found, RolloutConfig(trial=TrialConfig(margin=0.01, max_labels=5000)))
    assert (verdict.kind, why in verdict.reasons[-1]) == (kind, True), verdict.reasons
    again = decide_again(verdict.evidence)
    assert again is not None
    assert (again.verdict.kind, again.verdict.reasons) == (verdict.kind, verdict.reasons)


def test_one_that_is_not_much_worse_may_take_over_where_that_is_asked_for() -> None:
    rules = RolloutConfig(trial=TrialConfig(margin=-0.02))
    assert decide_trial(trial(-0.015, 0.01), rules).kind == "promote"
    assert decide_trial(trial(-0.03, 0.01), rules).kind == "inconclusive"
    assert decide_trial(trial(-0.05, -0.021), rules).kind == "hold"


def test_which_challenger_is_tried(store: ControlStore) -> None:
    tried = find_tried(store, config())
    assert tried is not None
    assert (tried.bundle.version, tried.since.isoformat()[:19]) == (2, store.last("toy", "challenger").time[:19])
    assert find_tried(store, config(trial=TrialConfig(days=0))) is None
    assert find_tried(store, ProjectConfig(name="other", project="a:B", task="classification")) is None
    hold(store, "hold")
    assert find_tried(store, config()) is None


def test_a_better_one_begins_its_rollout_on_the_evidence(store: ControlStore) -> None:
    verdict = conclude(store, trial(0.01, 0.05), 1, config(**CANARY.model_dump()), NOBODY, "t")
    row = store.row("toy")
    assert (verdict.kind, row.challenger.version, row.mode, row.weight) == ("promote", 2, "canary", 0.1)
    entry = store.history("toy")[-1]
    assert (entry.action, entry.evidence["verdict"], entry.evidence["trial"]["version"]) == ("start", "promote", 2)
    assert conclude(store, trial(0.01, 0.05), 1, config(), NOBODY, "t").kind == "promote"
    assert store.row("toy") == row  # its steps are the server's


def test_a_better_one_waits_for_approval(store: ControlStore) -> None:
    conclude(store, trial(0.01, 0.05), 1, config(approval_hours=1), NOBODY, "t")
    assert store.history("toy")[-1].action == "approval"
    assert find_tried(store, config()) is None  # a person decides


def test_nothing_moves_without_a_server(store: ControlStore) -> None:
    before = store.row("toy")
    with pytest.raises(ServerUnavailable):
        conclude(store, trial(0.01, 0.05), 1, config(), NOBODY, "t")
    assert store.row("toy") == before


def test_a_worse_one_goes_and_its_graph_is_not_banned(store: ControlStore) -> None:
    verdict = conclude(store, trial(-0.05, -0.01), 1, config(), NOBODY, "t")
    assert (verdict.kind, store.row("toy").challenger) == ("hold", None)
    assert (store.history("toy")[-1].action, store.history("toy")[-1].version) == ("hold", 2)
    assert store.quarantined() == []
    assert conclude(store, trial(-0.05, -0.01), 1, config(), NOBODY, "t") is None


def test_labels_stop_one_in_canary(store: ControlStore) -> None:
    bundle, why = store.row("toy").challenger, Why("t", "t")
    progress.start(store, bundle, CANARY, why, expected_generation=store.generation("toy"))
    assert find_tried(store, config()) is not None
    verdict = conclude(store, trial(-0.05, -0.01), 1, config(), NOBODY, "t")
    assert (verdict.kind, store.row("toy").mode, store.history("toy")[-1].action) == ("hold", "live", "abort")
    assert [one["version"] for one in store.quarantined()] == [2]


def test_evidence_of_another_time_moves_nothing(store: ControlStore) -> None:
    assert conclude(store, trial(0.01, 0.05), 9, config(), NOBODY, "t") is None  # another champion
    assert conclude(store, None, 1, config(), NOBODY, "t") is None
    other = Trial(7, NOW.isoformat(), NOW.isoformat(), None)
    assert conclude(store, other, 1, config(), NOBODY, "t") is None
