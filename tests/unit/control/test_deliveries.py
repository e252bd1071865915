"""Deliveries: one decision for all copies, on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from homeostat.control import deliveries as room
from homeostat.control.deliveries import Crowded, Deliveries
from homeostat.control.store import ControlStore
from homeostat.errors import NotFound

NOW = datetime(2026, 11, 27, tzinfo=UTC)
STARTED = ("retrain/digits", {"trigger": "webhook"})


def test_a_webhook_is_kept_once(url: str):
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda _: Deliveries(url).accept("ci", "key", STARTED, NOW), range(40)))
    assert sum(new for _, new in kept) == 1
    assert len({one.decision for one, _ in kept}) == 1
    first = kept[0][0]
    store = Deliveries(url)
    assert store.find(first.decision) == store.known("ci", "key") == first
    assert (first.status, first.deployment, first.parameters) == ("accepted", *STARTED)
    assert store.known("other", "key") is None


def test_what_waits_is_tried_and_settled_once(url: str):
    store = Deliveries(url)
    one, _ = store.accept("ci", "1", STARTED, NOW)
    two, _ = store.accept("ci", "2", STARTED, NOW + timedelta(seconds=1))
    none, _ = store.accept("ci", "3", None, NOW)
    assert none.status == "ignored"
    assert [d.decision for d in store.due(0)] == [one.decision, two.decision]
    store.postpone(one.decision, 100.0, "no answer")
    assert [d.decision for d in store.due(99)] == [two.decision]
    assert store.find(one.decision).attempts == 1
    store.settle(one.decision, "started", flow_run="a")
    store.settle(one.decision, "expired", note="later")
    assert (store.find(one.decision).status, store.find(one.decision).flow_run) == ("started", "a")
    assert store.waiting() == 1


def test_too_many_wait(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "MAX_WAITING", 2)
    store = Deliveries(url)
    for key in "12":
        store.accept("ci", key, STARTED, NOW)
    with pytest.raises(Crowded):
        store.accept("ci", "3", STARTED, NOW)
    assert store.accept("ci", "1", STARTED, NOW)[1] is False, "a copy is answered all the same"
    assert store.accept("ci", "4", None, NOW)[1]


def test_old_ones_are_forgotten(url: str):
    store = Deliveries(url)
    waits, _ = store.accept("ci", "1", STARTED, NOW)
    old, _ = store.accept("ci", "2", None, NOW)
    forever, _ = store.accept("github", "3", None, NOW)
    assert store.forget(NOW + timedelta(days=1), ("github",)) == 1
    store.find(waits.decision)
    store.find(forever.decision)
    with pytest.raises(NotFound, match="no decision"):
        store.find(old.decision)


def test_a_new_target_begins_at_the_end(url: str):
    ledger, store = ControlStore(url), Deliveries(url)
    ledger.record("toy", "verdict", actor="a", reason="r")
    assert store.told("team") == 1
    ledger.record("toy", "verdict", actor="b", reason="r")
    assert store.told("team") == 1
    assert [e.sequence for e in ledger.entries_after(store.told("team"), 10)] == [2]
    store.tell("team", 2)
    store.tell("team", 1)
    assert store.told("team") == 2
    assert [e.sequence for e in ledger.written_by("b")] == [2]
