"""The control store: compare-and-set, the ledger in the same transaction, and clear refusals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from homeostat.control.store import ControlStore
from homeostat.errors import ConfigError, Conflict, ControlError, ControlUnavailable, NotFound
from homeostat.records import BundleRef, Interval

WHY = {"actor": "test", "reason": "because"}


def ref(version: int, model: str = "digits", manifest: str = "a") -> BundleRef:
    return BundleRef(model, version, f"file:///bundles/{model}/{version}", manifest * 64, f"{version:064x}")


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(url: str, clock: Clock) -> ControlStore:
    return ControlStore(url, clock=clock)


def two_versions(store: ControlStore) -> None:
    store.set_challenger("digits", ref(1), expected_generation=0, **WHY)
    store.promote("digits", 1, expected_generation=1, **WHY)
    store.set_challenger("digits", ref(2), expected_generation=2, **WHY)
    store.promote("digits", 2, expected_generation=3, **WHY)


def test_first_version_becomes_champion_directly(store):
    store.register_bundle(ref(1))
    row = store.promote("digits", 1, expected_generation=0, **WHY)
    assert (row.generation, row.champion, row.challenger, row.previous) == (1, ref(1), None, None)
    assert row.since == "2026-01-01T00:00:02.000000+00:00"
    assert store.row("digits") == row
    assert store.generation("digits") == 1
    assert store.generation("other") == 0


def test_promotion_moves_challenger_champion_and_previous(store):
    two_versions(store)
    row = store.row("digits")
    assert (row.generation, row.champion, row.challenger, row.previous) == (4, ref(2), None, ref(1))
    assert [e.action for e in store.history("digits")] == ["challenger", "promote", "challenger", "promote"]
    assert store.verify() == 4


def test_promoting_the_champion_again_changes_nothing(store):
    two_versions(store)
    before = store.row("digits")
    assert store.promote("digits", 2, expected_generation=1, **WHY) == before
    assert store.set_challenger("digits", ref(2), expected_generation=1, **WHY) == before
    assert len(store.history("digits")) == 4


def test_an_old_version_can_be_promoted_by_number_and_the_challenger_stays(store):
    two_versions(store)
    store.set_challenger("digits", ref(3), expected_generation=4, **WHY)
    row = store.promote("digits", 1, expected_generation=5, **WHY)
    assert (row.champion, row.challenger, row.previous) == (ref(1), ref(3), ref(2))


def test_rollback_returns_once_and_then_says_why_not(store):
    two_versions(store)
    row = store.rollback("digits", expected_generation=4, **WHY)
    assert (row.generation, row.champion, row.challenger, row.previous) == (5, ref(1), None, None)
    with pytest.raises(ControlError, match=r"no previous champion to roll back to .*v1.*generation 5"):
        store.rollback("digits", expected_generation=5, **WHY)
    assert store.history("digits")[-1].action == "rollback"
    assert store.verify() == 5


def test_a_rollback_without_a_ban_lets_the_version_be_tried_again(store):
    two_versions(store)
    store.rollback("digits", expected_generation=4, ban=False, **WHY)
    assert store.quarantined() == []
    assert store.promote("digits", 2, expected_generation=5, **WHY).champion == ref(2)


def test_the_version_rolled_back_from_is_not_challenger_but_another_one_stays(store):
    two_versions(store)
    store.set_challenger("digits", ref(3), expected_generation=4, **WHY)
    assert store.rollback("digits", expected_generation=5, **WHY).challenger == ref(3)


def test_hold_keeps_or_clears_the_challenger(store):
    store.set_challenger("digits", ref(1), expected_generation=0, **WHY)
    kept = store.hold("digits", expected_generation=1, **WHY)
    assert (kept.generation, kept.challenger) == (1, ref(1))
    cleared = store.hold("digits", expected_generation=1, clear_challenger=True, **WHY)
    assert (cleared.generation, cleared.challenger, cleared.champion, cleared.since) == (2, None, None, "")
    assert [(e.action, e.version) for e in store.history("digits")[1:]] == [("hold", 1), ("hold", 1)]
    assert store.verify() == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.set_challenger("digits", ref(9), expected_generation=3, **WHY),
        lambda s: s.promote("digits", 1, expected_generation=3, **WHY),
        lambda s: s.rollback("digits", expected_generation=3, **WHY),
        lambda s: s.hold("digits", expected_generation=3, **WHY),
    ],
)
def test_a_lost_race_names_both_generations_and_leaves_no_trace(store, change):
    two_versions(store)
    with pytest.raises(Conflict, match=r"generation 4 .*expected 3.*homeostat status"):
        change(store)
    assert (store.generation("digits"), store.verify()) == (4, 4)
    with pytest.raises(NotFound):
        store.bundle("digits", 9)  # the whole transaction was undone


def test_unknown_models_and_versions_are_named(store):
    with pytest.raises(NotFound, match="none yet"):
        store.row("digits")
    two_versions(store)
    with pytest.raises(NotFound, match=r"no model 'digit' .*digits"):
        store.row("digit")
    with pytest.raises(NotFound, match="no bundle of version 7; there are: v1, v2"):
        store.promote("digits", 7, expected_generation=4, **WHY)
    with pytest.raises(NotFound, match="no model 'nobody'"):
        store.history("nobody")
    with pytest.raises(NotFound, match="no model 'nobody'"):
        store.rollback("nobody", expected_generation=0, **WHY)


def test_what_was_live_is_never_rebuilt_under_the_same_number(store):
    two_versions(store)
    with pytest.raises(ControlError, match="v1 is in use"):
        store.register_bundle(ref(1, manifest="b"))
    with pytest.raises(ControlError, match="of model digits, not of other"):
        store.set_challenger("other", ref(1), expected_generation=0, **WHY)
    store.set_challenger("digits", ref(3), expected_generation=4, **WHY)
    rebuilt = ref(3, manifest="b")
    assert store.set_challenger("digits", rebuilt, expected_generation=5, **WHY).challenger == rebuilt
    assert store.bundle("digits", 3) == rebuilt


def test_champion_at_any_time(store, clock):
    start = clock.now
    two_versions(store)
    store.rollback("digits", expected_generation=4, **WHY)
    decisions = [e for e in store.history("digits") if e.action in ("promote", "rollback")]
    assert [e.version for e in decisions] == [1, 2, 1]
    for entry in decisions:
        moment = datetime.fromisoformat(entry.time)
        assert store.champion_at("digits", moment) == entry
        assert store.champion_at("digits", moment + timedelta(microseconds=1)) == entry
    assert store.champion_at("digits", datetime(2030, 1, 1)) == decisions[-1]  # naive is UTC
    with pytest.raises(NotFound, match="no champion at 2026-01-01T00:00:00"):
        store.champion_at("digits", start)
    with pytest.raises(NotFound, match="no model"):
        store.champion_at("nobody", start)


def test_time_never_goes_back(store, clock):
    two_versions(store)
    clock.now -= timedelta(days=1)
    store.rollback("digits", expected_generation=4, **WHY)
    times = [e.time for e in store.history("digits")]
    assert times == sorted(times)
    assert store.champion_at("digits", datetime.fromisoformat(times[-1])).version == 1


def test_record_and_status(store):
    two_versions(store)
    evidence = {
        "gain": Interval(0.1, float("nan"), float("inf")),
        "n": np.int64(3),
        "f": np.float32(0.5),
        "p": Path("a"),
    }
    entry = store.record("digits", "verdict", actor="flow", reason="better", evidence=evidence, version=2)
    assert entry.evidence == {
        "gain": {"value": 0.1, "low": "nan", "high": "inf", "confidence": 0.95},
        "n": 3,
        "f": 0.5,
        "p": "a",
    }
    store.record("digits", "drift", actor="flow", reason="x_1 drifted", version=2, sha256=ref(2).sha256)
    store.record("other", "verdict", actor="flow", reason="before any row")
    status = store.status("digits").to_json()
    assert status["champion"] == {"version": 2, "sha256": ref(2).sha256, "since": store.row("digits").since}
    assert (status["challenger"], status["previous"]["version"], status["generation"]) == (None, 1, 4)
    assert status["last_verdict"]["evidence"] == entry.evidence
    assert status["last_drift"]["reason"] == "x_1 drifted"
    assert store.verify() == 7
    with pytest.raises(ControlError, match=r"use ControlStore.promote"):
        store.record("digits", "promote", **WHY)
    with pytest.raises(ControlError, match="evidence holds a set"):
        store.record("digits", "verdict", evidence={"x": {1}}, **WHY)


def test_a_second_store_sees_the_same(store, url):
    two_versions(store)
    other = ControlStore(url)
    assert other.rows() == store.rows()
    assert other.history() == store.history()


def test_a_held_lock_is_transient(store, url):
    two_versions(store)
    impatient = ControlStore(url, timeout_seconds=0.1)
    with store._database.write():
        with pytest.raises(ControlUnavailable, match=r"locked|lock timeout") as caught:
            impatient.rollback("digits", expected_generation=4, **WHY)
        assert caught.value.transient
        assert impatient.row("digits").champion == ref(2)  # readers never wait
    assert impatient.rollback("digits", expected_generation=4, **WHY).champion == ref(1)


def test_a_damaged_file_is_not_transient(tmp_path):
    (tmp_path / "control.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(ControlError, match=r"not a database.*backup"):
        ControlStore(f"sqlite:///{tmp_path}/control.db").rows()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "var").write_text("")
    with pytest.raises(ControlError, match="cannot make its folder"):
        ControlStore(f"sqlite:///{tmp_path}/var/control.db").rows()


def test_a_url_that_is_none_does_not_show_its_password():
    with pytest.raises(ConfigError, match="not a database URL") as caught:
        ControlStore("me:secret@host/db")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [("no url", "not a database URL"), ("nonsense://x/y", "use sqlite or postgresql")],
)
def test_a_wrong_url_names_the_variable(url, message):
    with pytest.raises(ConfigError, match=f"HOMEOSTAT_CONTROL_URL .*{message}"):
        ControlStore(url)
