"""What only a database server does: connections that are kept, a restart, and columns with a length."""

from __future__ import annotations

import gc

import pytest

from homeostat.control.store import ControlStore
from homeostat.errors import ControlError, ControlUnavailable
from tests.postgresql import PostgreSQL

WHY = {"actor": "test", "reason": "because"}


@pytest.fixture
def store(postgresql: PostgreSQL) -> ControlStore:
    store = ControlStore(postgresql.make_database())
    store.record("digits", "verdict", **WHY)
    return store


def connections(postgresql: PostgreSQL, store: ControlStore) -> list[int]:
    name = store._database.url.database
    return [pid for (pid,) in postgresql.execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'")]


def test_polling_keeps_one_connection(postgresql, store):
    before = connections(postgresql, store)
    for _ in range(20):
        store.rows()
    assert connections(postgresql, store) == before
    assert len(before) == 1


def test_a_store_that_is_dropped_closes_its_connection(postgresql):
    store = ControlStore(postgresql.make_database())
    store.rows()
    kept = store._database.engine.pool.checkedin()
    engine = store._database.engine
    del store
    gc.collect()
    assert (kept, engine.pool.checkedin()) == (1, 0)


def test_a_restart_is_survived(postgresql, store):
    postgresql.stop()
    try:
        with pytest.raises(ControlUnavailable, match="does not answer") as caught:
            store.rows()
    finally:
        postgresql.start()
    assert caught.value.transient
    assert store.verify() == 1
    store.record("digits", "verdict", **WHY)
    assert store.verify() == 2


def test_a_text_longer_than_its_column_is_refused_whole(store):
    with pytest.raises(ControlError, match=r"refuses a value: value too long .*255.*shorten it"):
        store.record("digits", "verdict", actor="x" * 300, reason="because")
    assert store.verify() == 1


def test_a_password_is_never_shown():
    with pytest.raises(ControlUnavailable, match="does not answer") as caught:
        ControlStore("postgresql+psycopg://ada:secret@127.0.0.1:1/x", timeout_seconds=1).rows()
    assert "secret" not in str(caught.value)
