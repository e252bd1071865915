"""The decision ledger: append-only, each entry chained to the one before by its sha256.

The idea is Haber & Stornetta, "How to time-stamp a digital document" (1991): a chain of
hashes fixes content and order, so that an edit, a deletion or a new order shows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from homeostat.control.database import GENESIS
from homeostat.control.tables import head, ledger, rollout
from homeostat.errors import ControlError, LedgerBroken
from homeostat.records import LedgerEntry, LedgerHead, Rollout

CHANGES_CHAMPION = ("promote", "rollback")
"""Actions that put another version live."""


def to_json(value: Any) -> Any:
    """Return a value that JSON can hold: records as objects, NaN and Inf as text; raises ControlError."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        return value.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(to_json(str(name))): to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, datetime | PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return to_json(value.tolist())
    raise ControlError(f"evidence holds a {type(value).__name__}; use numbers, text, lists, dicts and records")


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def entry_hash(content: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) over the canonical JSON of every field but `hash`."""
    return hashlib.sha256(canonical({k: v for k, v in content.items() if k != "hash"}).encode()).hexdigest()


def append(connection: Connection, content: dict[str, Any]) -> LedgerEntry:
    """Write the next entry inside the caller's transaction, which must hold the lock on `head`.

    content: model, action, actor, reason, generation, version, sha256, evidence, time.
    """
    last = connection.execute(select(head)).one()
    entry = to_json(content) | {"sequence": last.sequence + 1, "previous_hash": last.hash}
    entry["hash"] = entry_hash(entry)
    connection.execute(insert(ledger).values(entry | {"evidence": canonical(entry["evidence"])}))
    connection.execute(update(head).values(sequence=entry["sequence"], hash=entry["hash"], time=entry["time"]))
    return LedgerEntry(**entry)


def entry_of(row: Row[Any]) -> LedgerEntry:
    """Return a row of the ledger as a record; raises LedgerBroken when its evidence is not JSON."""
    values = {field.name: getattr(row, field.name) for field in fields(LedgerEntry)}
    try:
        values["evidence"] = json.loads(row.evidence)
    except ValueError as error:
        raise LedgerBroken(f"ledger entry {row.sequence}: its evidence is not JSON: {error}") from error
    return LedgerEntry(**values)


def verify(connection: Connection, served: Sequence[Rollout] = (), anchors: Sequence[LedgerHead] = ()) -> int:
    """Walk the whole chain and hold the rollout rows against it; return the number of entries.

    served: rows that a server remembers, whose decisions the ledger must hold too. anchors: earlier ends of
    the ledger, remembered elsewhere: whoever can write the database can rebuild the whole chain, but not
    these. Raises LedgerBroken that names the sequence at which an edit, a deletion, an insertion or a new
    order shows.
    """
    end = connection.execute(select(head)).one_or_none()
    if end is None:
        raise LedgerBroken("the ledger has lost its head row; restore the control store from a backup")
    sequence, previous = 0, GENESIS
    last: dict[str, LedgerEntry] = {}
    live: dict[str, LedgerEntry] = {}
    champions: dict[str, list[LedgerEntry]] = {}
    for row in connection.execute(select(ledger).order_by(ledger.c.sequence)):
        sequence += 1
        if row.sequence != sequence:
            raise LedgerBroken(f"ledger entry {sequence} is missing: the next one is {row.sequence}")
        entry = entry_of(row)
        _check(entry, row.evidence, previous)
        previous = entry.hash
        if any(anchor.sequence == sequence and anchor.hash != entry.hash for anchor in anchors):
            raise LedgerBroken(
                f"ledger entry {sequence} ({entry.action} of {entry.model}) is not the one that MLflow's tags "
                "remember: it was rebuilt, or HOMEOSTAT_CONTROL_URL names another one; restore the newest backup"
            )
        last[entry.model] = entry
        if entry.action in CHANGES_CHAMPION:
            live[entry.model] = entry
            champions.setdefault(entry.model, []).append(entry)
    if (end.sequence, end.hash) != (sequence, previous):
        raise LedgerBroken(f"the ledger ends at entry {sequence}, but its head names entry {end.sequence}")
    longest = max((anchor.sequence for anchor in anchors), default=0)
    if longest > sequence:
        raise LedgerBroken(
            f"the ledger ends at entry {sequence}, and MLflow's tags remember entry {longest}: it was cut off, or made "
            "anew, or HOMEOSTAT_CONTROL_URL names another one; restore the newest backup. If you began anew on "
            "purpose, delete the tag homeostat.ledger of each registered model"
        )
    _check_rows(connection, last, live)
    for remembered in served:
        _check_served(remembered, last.get(remembered.model), champions.get(remembered.model, []))
    return sequence


def _check(entry: LedgerEntry, evidence: str, previous: str) -> None:
    if entry.previous_hash != previous:
        raise LedgerBroken(
            f"ledger entry {entry.sequence} does not follow entry {entry.sequence - 1}: "
            f"previous_hash {str(entry.previous_hash)[:12]}, expected {previous[:12]}"
        )
    if entry_hash(asdict(entry)) != entry.hash or canonical(entry.evidence) != evidence:
        raise LedgerBroken(f"ledger entry {entry.sequence} ({entry.action} of {entry.model}) was edited")


def _check_rows(connection: Connection, last: dict[str, LedgerEntry], live: dict[str, LedgerEntry]) -> None:
    rows = {row.model: row for row in connection.execute(select(rollout))}
    for model in live.keys() - rows.keys():
        raise LedgerBroken(f"model {model} has no rollout row, but ledger entry {live[model].sequence} names one")
    for model, row in rows.items():
        champion = json.loads(row.champion) if row.champion else {}
        found = (row.generation, champion.get("version"), champion.get("sha256"))
        if model not in last:
            raise LedgerBroken(f"the rollout row of {model} has no entry in the ledger")
        decided = live.get(model)
        expected = (last[model].generation, decided and decided.version, decided and decided.sha256)
        if found != expected:
            raise LedgerBroken(
                f"the rollout row of {model} (generation {found[0]}, champion v{found[1]}) is not what ledger entry "
                f"{last[model].sequence} left (generation {expected[0]}, champion v{expected[1]}): edited by hand?"
            )


def _check_served(row: Rollout, last: LedgerEntry | None, champions: Sequence[LedgerEntry]) -> None:
    """Hold what a server remembers against the decisions about its model, oldest first."""
    champion = f"v{row.champion.version}" if row.champion else "no champion"
    known = last.generation if last else 0
    if known < row.generation:
        raise LedgerBroken(
            f"the ledger is shorter than what was served: the server here had {row.model} at generation "
            f"{row.generation} ({champion}), and the ledger ends at generation {known}. The control store was made "
            "anew, or restored from an older backup, or HOMEOSTAT_CONTROL_URL names another one: restore the newest "
            f"backup. If you began anew on purpose, remove serving/{row.model}.json under HOMEOSTAT_HOME"
        )
    then = [entry for entry in champions if entry.generation <= row.generation]
    found = (then[-1].version, then[-1].sha256) if then else (None, None)
    if found != ((row.champion.version, row.champion.sha256) if row.champion else (None, None)):
        raise LedgerBroken(
            f"the ledger is not the one that was served: the server here had {row.model} {champion} at generation "
            f"{row.generation}, and the ledger says v{found[0]} ({str(found[1])[:12]}); restore the newest backup"
        )
