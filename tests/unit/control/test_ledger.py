"""The ledger shows every edit, deletion, insertion and new order, and refuses them in the first place."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import asdict
from pathlib import Path

import pytest

from homeostat.control.store import ControlStore
from homeostat.errors import LedgerBroken
from homeostat.records import BundleRef

WHY = {"actor": "test", "reason": "because"}


def ref(version: int, model: str = "digits") -> BundleRef:
    return BundleRef(model, version, f"file:///bundles/{model}/{version}", "a" * 64, f"{version:064x}")


def two_versions(store: ControlStore) -> None:
    store.set_challenger("digits", ref(1), expected_generation=0, **WHY)
    store.promote("digits", 1, expected_generation=1, **WHY)
    store.set_challenger("digits", ref(2), expected_generation=2, **WHY)
    store.promote("digits", 2, expected_generation=3, **WHY)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.db"


@pytest.fixture
def store(path: Path) -> ControlStore:
    store = ControlStore(f"sqlite:///{path}")
    two_versions(store)
    store.record("digits", "verdict", actor="flow", reason="señal ✓", evidence={"gain": 0.1})
    store.rollback("digits", expected_generation=4, **WHY)
    return store


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER ledger_no_update")
    connection.execute("DROP TRIGGER ledger_no_delete")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_the_hash_can_be_computed_by_anybody(store):
    previous = "0" * 64
    for entry in store.history():
        content = {k: v for k, v in asdict(entry).items() if k != "hash"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == entry.hash
        assert entry.previous_hash == previous
        previous = entry.hash
    assert store.verify() == 6


@pytest.mark.parametrize("statement", ["UPDATE ledger SET reason = 'x'", "DELETE FROM ledger"])
def test_the_database_refuses_to_change_an_entry(store, path, statement):
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()
    assert store.verify() == 6


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        *((f"UPDATE ledger SET {column} = {value} WHERE sequence = 3", "entry 3 .*was edited") for column, value in [
            ("time", "'2020-01-01'"), ("model", "'other'"), ("action", "'hold'"), ("actor", "'nobody'"),
            ("reason", "'another'"), ("generation", "9"), ("version", "9"), ("version", "NULL"), ("sha256", "'f'"),
            ("evidence", "'{\"a\":1}'"), ("evidence", "'{} '"), ("hash", "'f'"),
        ]),
        ("UPDATE ledger SET evidence = '{' WHERE sequence = 3", "entry 3: its evidence is not JSON"),
        ("UPDATE ledger SET previous_hash = 'f' WHERE sequence = 3", "entry 3 does not follow entry 2"),
        ("DELETE FROM ledger WHERE sequence = 1", "entry 1 is missing"),
        ("DELETE FROM ledger WHERE sequence = 3", "entry 3 is missing"),
        ("DELETE FROM ledger WHERE sequence = 6", "ends at entry 5, but its head names entry 6"),
        ("DELETE FROM ledger", "ends at entry 0"),
        ("DELETE FROM head", "head row"),
        ("UPDATE rollout SET generation = 9", "generation 9.*ledger entry 6 left .generation 5"),
        ("UPDATE rollout SET champion = NULL", "champion vNone.*champion v1"),
        ("DELETE FROM rollout", "no rollout row, but ledger entry 6"),
        ("UPDATE rollout SET model = 'x'", "digits has no rollout row"),
    ],
)  # fmt: skip
def test_tampering_is_found_and_the_place_is_named(store, path, statements, message):
    tamper(path, statements)
    with pytest.raises(LedgerBroken, match=message):
        store.verify()


def test_a_new_order_is_found(store, path):
    tamper(
        path,
        "UPDATE ledger SET sequence = -1 WHERE sequence = 2",
        "UPDATE ledger SET sequence = 2 WHERE sequence = 3",
        "UPDATE ledger SET sequence = 3 WHERE sequence = -1",
    )
    with pytest.raises(LedgerBroken, match="entry 2 does not follow entry 1"):
        store.verify()


def test_entries_closed_up_after_a_deletion_are_found(store, path):
    tamper(
        path, "DELETE FROM ledger WHERE sequence = 2", "UPDATE ledger SET sequence = sequence - 1 WHERE sequence > 2"
    )
    with pytest.raises(LedgerBroken, match="entry 2 does not follow entry 1"):
        store.verify()


def test_a_champion_put_in_by_hand_is_found(store, path):
    forged = json.dumps(asdict(ref(2)))
    tamper(path, f"UPDATE rollout SET champion = '{forged}'")
    with pytest.raises(LedgerBroken, match=r"champion v2.*edited by hand"):
        store.verify()
