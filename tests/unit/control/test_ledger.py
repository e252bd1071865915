"""The ledger shows every edit, deletion, insertion and new order, and refuses them in the first place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import DBAPIError

from homeostat.control.store import ControlStore
from homeostat.errors import LedgerBroken
from homeostat.records import BundleRef, Rollout

WHY = {"actor": "test", "reason": "because"}


def ref(version: int, model: str = "digits") -> BundleRef:
    return BundleRef(model, version, f"file:///bundles/{model}/{version}", "a" * 64, f"{version:064x}")


def two_versions(store: ControlStore) -> None:
    store.set_challenger("digits", ref(1), expected_generation=0, **WHY)
    store.promote("digits", 1, expected_generation=1, **WHY)
    store.set_challenger("digits", ref(2), expected_generation=2, **WHY)
    store.promote("digits", 2, expected_generation=3, **WHY)


@pytest.fixture
def store(url: str) -> ControlStore:
    store = ControlStore(url)
    two_versions(store)
    store.record("digits", "verdict", actor="flow", reason="señal ✓", evidence={"gain": 0.1})
    store.rollback("digits", expected_generation=4, **WHY)
    return store


UNLOCK = {
    "sqlite": ["DROP TRIGGER ledger_no_update", "DROP TRIGGER ledger_no_delete"],
    "postgresql": ["DROP TRIGGER ledger_no_change ON ledger"],
}


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def tamper(url: str, *statements: str) -> None:
    execute(url, *UNLOCK[make_url(url).get_backend_name()], *statements)


def test_the_hash_can_be_computed_by_anybody(store):
    previous = "0" * 64
    for entry in store.history():
        content = {k: v for k, v in asdict(entry).items() if k != "hash"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == entry.hash
        assert entry.previous_hash == previous
        previous = entry.hash
    assert store.verify() == 6


@pytest.mark.parametrize("statement", ["UPDATE ledger SET reason = 'x'", "DELETE FROM ledger", "TRUNCATE ledger"])
def test_the_database_refuses_to_change_an_entry(store, url, statement):
    with pytest.raises(DBAPIError, match=r"append-only|syntax error"):  # SQLite has no TRUNCATE
        execute(url, statement)
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
def test_tampering_is_found_and_the_place_is_named(store, url, statements, message):
    tamper(url, statements)
    with pytest.raises(LedgerBroken, match=message):
        store.verify()


def test_a_new_order_is_found(store, url):
    tamper(
        url,
        "UPDATE ledger SET sequence = -1 WHERE sequence = 2",
        "UPDATE ledger SET sequence = 2 WHERE sequence = 3",
        "UPDATE ledger SET sequence = 3 WHERE sequence = -1",
    )
    with pytest.raises(LedgerBroken, match="entry 2 does not follow entry 1"):
        store.verify()


def test_entries_closed_up_after_a_deletion_are_found(store, url):
    tamper(url, "DELETE FROM ledger WHERE sequence = 2", "UPDATE ledger SET sequence = sequence - 1 WHERE sequence > 2")
    with pytest.raises(LedgerBroken, match="entry 2 does not follow entry 1"):
        store.verify()


def test_a_champion_put_in_by_hand_is_found(store, url):
    forged = json.dumps(asdict(ref(2)))
    tamper(url, f"UPDATE rollout SET champion = '{forged}'")
    with pytest.raises(LedgerBroken, match=r"champion v2.*edited by hand"):
        store.verify()


def test_what_the_server_remembers_is_held_against_the_ledger(store):
    row = store.row("digits")
    earlier = replace(row, generation=4, champion=ref(2))  # the server was down since
    assert store.verify([row]) == store.verify([earlier]) == 6
    assert store.verify([Rollout("digits", 1, None, ref(1), None, since="")]) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation": 6}, r"shorter than what was served.*digits at generation 6 \(v1\).*ends at generation 5"),
        ({"model": "other"}, "shorter than what was served.*other at generation 5.*ends at generation 0.*other.json"),
        ({"champion": ref(2)}, r"not the one that was served.*digits v2 at generation 5.*says v1"),
        ({"champion": None}, r"not the one that was served.*digits no champion at generation 5.*says v1"),
        ({"generation": 1}, r"not the one that was served.*digits v1 at generation 1.*says vNone"),
    ],
)
def test_a_ledger_that_lacks_what_was_served_is_found(store, changes, message):
    with pytest.raises(LedgerBroken, match=message):
        store.verify([replace(store.row("digits"), **changes)])


def test_a_ledger_is_held_to_its_anchors(make_url) -> None:
    """Whoever writes the database can rebuild the chain, but not what is remembered elsewhere."""

    def written(*reasons: str) -> ControlStore:
        made = ControlStore(make_url())
        for reason in reasons:
            made.record("digits", "verdict", actor="t", reason=reason)
        return made

    store, rebuilt, shorter = written("a", "b", "c"), written("a", "x", "c", "d"), written("a")
    anchors = [store.head()]
    assert anchors[0].sequence == 3
    assert store.verify(anchors=anchors) == 3
    store.record("digits", "verdict", actor="t", reason="d")
    assert store.verify(anchors=[*anchors, store.head()]) == 4, "it may go on"
    assert rebuilt.verify() == 4, "a rebuilt chain holds by itself"
    with pytest.raises(LedgerBroken, match=r"ledger entry 3 \(verdict of digits\) is not the one"):
        rebuilt.verify(anchors=anchors)
    with pytest.raises(LedgerBroken, match="ends at entry 1, and MLflow's tags remember entry 3"):
        shorter.verify(anchors=anchors)
