"""A rollout's steps in the control store: what each leaves, who is refused, and an older store's rows."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from homeostat.config import RolloutConfig
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.errors import Conflict, ControlError, NotFound, Quarantined
from homeostat.records import BundleRef

WHY = Why("test", "because", {"guard": "errors"})
CANARY = RolloutConfig(strategy="canary", steps=(0.05, 0.5), bake_share=0.1)


def ref(version: int, manifest: str = "a") -> BundleRef:
    return BundleRef("digits", version, f"file:///bundles/{version}", manifest * 64, f"{version:064x}")


@pytest.fixture
def store(url: str) -> ControlStore:
    made = ControlStore(url)
    made.register_bundle(ref(1))
    made.promote("digits", 1, expected_generation=0, actor="t", reason="t")
    return made


def begin(store: ControlStore, config: RolloutConfig = CANARY, version: int = 2) -> int:
    generation = store.generation("digits")
    row = store.set_challenger("digits", ref(version), expected_generation=generation, actor="t", reason="t")
    return progress.start(store, ref(version), config, WHY, expected_generation=row.generation).generation


def test_a_canary_goes_through_its_steps_to_promotion_and_bakes(store):
    at = begin(store)
    rows = [store.row("digits")]
    for _ in range(3):
        rows.append(progress.advance(store, "digits", CANARY, WHY, expected_generation=at))
        at += 1
    assert [(row.mode, row.weight, row.step) for row in rows] == [
        ("canary", 0.05, 0),
        ("canary", 0.5, 1),
        ("bake", 0.9, 0),
        ("live", 0.0, 0),
    ]
    assert [row.started for row in rows] == [3, 3, 3, 0]
    assert [row.on_trial for row in rows] == [ref(2), ref(2), ref(2), None]
    assert (rows[2].champion, rows[2].challenger, rows[2].previous) == (ref(2), None, ref(1))
    actions = [entry.action for entry in store.history("digits")]
    assert actions == ["promote", "challenger", "start", "step", "promote", "finish"]
    assert store.history("digits")[-1].evidence == {"guard": "errors"}
    assert store.verify() == 6


@pytest.mark.parametrize(
    ("strategy", "bake", "modes"),
    [
        ("direct", 0.0, ["canary", "canary", "live"]),
        ("shadow", 60.0, ["shadow", "bake", "live"]),
        ("shadow+canary", 0.0, ["shadow", "canary", "canary", "live"]),
    ],
)
def test_each_strategy_has_its_steps(store, strategy, bake, modes):
    config = RolloutConfig(strategy=strategy, steps=(0.05, 0.5), bake_seconds=bake)
    at, found = begin(store, config), [store.row("digits").mode]
    while found[-1] != "live":
        found.append(progress.advance(store, "digits", config, WHY, expected_generation=at).mode)
        at += 1
    assert found == modes
    assert store.row("digits").champion == ref(2)


def test_what_is_aborted_is_in_quarantine_whatever_bundle_it_comes_in(store):
    at = begin(store)
    row = progress.abort(store, "digits", WHY, expected_generation=at)
    assert (row.mode, row.champion, row.challenger) == ("live", ref(1), None)
    (banned,) = store.quarantined()
    assert {**banned, "time": ""} == {
        "model": "digits",
        "sha256": ref(2).sha256,
        "version": 2,
        "reason": "because",
        "time": "",
    }
    again = ref(2, manifest="b")  # built anew
    with pytest.raises(Quarantined, match=r"v2 .* is in quarantine since .*: because; `homeostat rollout release"):
        store.set_challenger("digits", again, expected_generation=row.generation, actor="t", reason="t")
    with pytest.raises(Quarantined, match="quarantine"):
        store.promote("digits", 2, expected_generation=row.generation, actor="t", reason="t")
    with pytest.raises(Quarantined, match="quarantine"):
        progress.start(store, ref(2), CANARY, WHY, expected_generation=row.generation)
    other_number = BundleRef("digits", 5, "file:///5", "c" * 64, ref(2).sha256)
    with pytest.raises(Quarantined, match=r"v5 .*, the graph of v2, is in quarantine"):
        store.set_challenger("digits", other_number, expected_generation=row.generation, actor="t", reason="t")
    assert store.release("digits", 2, actor="t", reason="mended") is True
    assert store.release("digits", 2, actor="t", reason="mended") is False
    assert store.promote("digits", 2, expected_generation=row.generation, actor="t", reason="t").champion == ref(2)
    assert [entry.action for entry in store.history("digits")][-3:] == ["abort", "release", "promote"]
    with pytest.raises(NotFound):
        store.release("digits", 9, actor="t", reason="t")


def test_an_abort_in_the_bake_is_a_rollback(store):
    at = begin(store)
    at = progress.promote(store, "digits", CANARY, WHY, expected_generation=at).generation
    assert store.row("digits").mode == "bake"
    row = progress.abort(store, "digits", WHY, expected_generation=at)
    assert (row.mode, row.champion, row.previous) == ("live", ref(1), None)
    assert [one["version"] for one in store.quarantined()] == [2]
    assert store.history("digits")[-1].action == "rollback"


def test_a_pause_holds_and_a_resume_begins_the_step_anew(store):
    at = begin(store)
    begun = store.row("digits").step_since
    paused = progress.pause(store, "digits", WHY, expected_generation=at)
    assert (paused.paused, paused.step_since) == (True, begun)
    with pytest.raises(ControlError, match="paused already"):
        progress.pause(store, "digits", WHY, expected_generation=at + 1)
    row = progress.resume(store, "digits", WHY, expected_generation=at + 1)
    assert not row.paused
    assert row.step_since > begun
    with pytest.raises(ControlError, match="not paused"):
        progress.resume(store, "digits", WHY, expected_generation=at + 2)


def test_what_cannot_start(store):
    with pytest.raises(ControlError, match="champion already"):
        progress.start(store, ref(1), CANARY, WHY, expected_generation=1)
    at = begin(store)
    with pytest.raises(Conflict, match="canary of v2 is in progress"):
        progress.start(store, ref(3), CANARY, WHY, expected_generation=at)
    with pytest.raises(ControlError, match="canary of v2 is in progress"):
        store.set_challenger("digits", ref(3), expected_generation=at, actor="t", reason="t")
    with pytest.raises(ControlError, match="never rebuilt"):
        store.register_bundle(ref(2, manifest="b"))
    with pytest.raises(Conflict):
        progress.abort(store, "digits", WHY, expected_generation=at - 1)
    store.set_challenger("other", BundleRef("other", 1, "u", "a", "b"), expected_generation=0, actor="t", reason="t")
    with pytest.raises(ControlError, match="no champion to compare"):
        progress.start(store, BundleRef("other", 1, "u", "a", "b"), CANARY, WHY, expected_generation=1)
    for change in (progress.pause, progress.resume, progress.finish, progress.abort):
        with pytest.raises(ControlError, match="no rollout is in progress"):
            change(store, "other", WHY, expected_generation=1)


def test_of_two_that_promote_at_once_one_is_told_so(store, monkeypatch):
    at = begin(store)
    read = store.row("digits")
    progress.promote(store, "digits", CANARY, WHY, expected_generation=at)
    monkeypatch.setattr(store, "row", lambda model: read)  # the second has read the row before the first wrote it
    with pytest.raises(Conflict, match="somebody changed it first"):
        progress.promote(store, "digits", CANARY, WHY, expected_generation=at)
    assert [entry.action for entry in store.history("digits")].count("promote") == 2, "v1, then v2"


def test_a_promotion_or_rollback_by_hand_ends_a_rollout(store):
    at = begin(store)
    store.register_bundle(ref(3))
    row = store.promote("digits", 3, expected_generation=at, actor="t", reason="t")
    assert (row.mode, row.champion, row.challenger, row.started) == ("live", ref(3), ref(2), 0)


def test_of_two_servers_that_decide_one_wins_and_there_is_one_champion(store, url):
    at = begin(store, RolloutConfig(strategy="canary", steps=(0.5,), bake_seconds=0))
    config = RolloutConfig(strategy="canary", steps=(0.5,), bake_seconds=0)
    won, lost = set[bool](), list[bool]()
    barrier = threading.Barrier(4)

    def decide(advance: bool) -> None:
        own = ControlStore(url)
        barrier.wait()
        try:
            if advance:
                progress.advance(own, "digits", config, WHY, expected_generation=at)
            else:
                progress.abort(own, "digits", WHY, expected_generation=at)
            won.add(advance)
        except (Conflict, ControlError):
            lost.append(advance)

    threads = [threading.Thread(target=decide, args=(place % 2 == 0,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1, "who decides the same a second time is told that it is so"
    assert len(lost) >= 2
    row = store.row("digits")
    assert (row.generation, row.mode) == (at + 1, "live")
    assert store.verify() == len(store.history("digits"))


def test_rows_of_an_older_store_are_taken_over(tmp_path):
    path = tmp_path / "control.db"
    store = ControlStore(f"sqlite:///{path}")
    store.register_bundle(ref(1))
    store.promote("digits", 1, expected_generation=0, actor="t", reason="t")
    with sqlite3.connect(path) as database:
        for column in ("step", "step_since", "started", "paused"):
            database.execute(f"ALTER TABLE rollout DROP COLUMN {column}")
        database.execute("DROP TABLE quarantine")
    opened = ControlStore(f"sqlite:///{path}")
    row = opened.row("digits")
    assert (row.champion, row.mode, row.step, row.started, row.paused) == (ref(1), "live", 0, 0, False)
    assert opened.verify() == 1
    assert begin(opened) == 3
