"""Reading and changing rollout rows and bundles inside one transaction that holds the lock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, select, update

from homeostat.control import ledger as chain
from homeostat.control.tables import bundle, head, quarantine, rollout
from homeostat.errors import Conflict, ControlError, NotFound, Quarantined
from homeostat.records import BundleRef, LedgerEntry, Rollout


@dataclass(frozen=True)
class Decision:
    """What is done, by whom, why, and on what evidence."""

    action: str
    actor: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


def stamp(time: datetime) -> str:
    """Return UTC, ISO 8601 with microseconds: as text it sorts as time does. A naive time is read as UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="microseconds")


def _ref(text: str | None) -> BundleRef | None:
    return BundleRef(**json.loads(text)) if text else None


def _text(ref: BundleRef | None) -> str | None:
    return chain.canonical(asdict(ref)) if ref else None


def _name(ref: BundleRef | None) -> str:
    return f"v{ref.version}" if ref else "none"


def rollout_of(row: Row[Any]) -> Rollout:
    """Return a row of the rollout table as a record; raises ControlError when it was damaged by hand."""
    try:
        refs = {role: _ref(getattr(row, role)) for role in ("champion", "challenger", "previous")}
    except (ValueError, TypeError) as error:
        raise ControlError(f"the rollout row of {row.model} does not hold bundles: {error}") from error
    return Rollout(
        row.model,
        row.generation,
        **refs,
        since=row.since,
        mode=row.mode,
        weight=row.weight,
        step=row.step,
        step_since=row.step_since,
        started=row.started,
        paused=row.paused,
    )


def find(connection: Connection, model: str) -> Rollout:
    """Return a model's row, or an empty one of generation 0."""
    row = connection.execute(select(rollout).where(rollout.c.model == model)).first()
    return rollout_of(row) if row else Rollout(model, 0, None, None, None, since="")


def require(connection: Connection, model: str) -> Rollout:
    """Return a model's row; raises NotFound that names the known models."""
    row = find(connection, model)
    return row if row.generation else unknown(connection, model)


def unknown(connection: Connection, model: str) -> NoReturn:
    """Raise NotFound that names the known models."""
    known = ", ".join(connection.execute(select(rollout.c.model).order_by(rollout.c.model)).scalars())
    raise NotFound(f"no model {model!r} in the control store; there are: {known or 'none yet'}")


def find_bundle(connection: Connection, model: str, version: int) -> BundleRef:
    """Return the bundle of a version; raises NotFound that names those the store has seen."""
    query = select(bundle.c.version, bundle.c.ref).where(bundle.c.model == model).order_by(bundle.c.version)
    found = {row.version: row.ref for row in connection.execute(query)}
    ref = _ref(found.get(version))
    if ref is None:
        known = ", ".join(f"v{number}" for number in found) or "none"
        raise NotFound(f"model {model} has no bundle of version {version}; there are: {known}")
    return ref


def remember(connection: Connection, ref: BundleRef, time: str) -> None:
    """Keep a version's bundle; raises ControlError when it is live, was just live or is on trial with another one."""
    key = (bundle.c.model == ref.model, bundle.c.version == ref.version)
    known = _ref(connection.execute(select(bundle.c.ref).where(*key)).scalar_one_or_none())
    if known == ref:
        return
    if known is None:
        connection.execute(insert(bundle).values(model=ref.model, version=ref.version, ref=_text(ref), time=time))
        return
    row = find(connection, ref.model)
    if known in (row.champion, row.previous, row.on_trial):
        raise ControlError(
            f"{ref.model} v{ref.version} is in use with the manifest {known.manifest_sha256[:12]} and cannot "
            f"become {ref.manifest_sha256[:12]}: what is or was live is never rebuilt under the same number"
        )
    connection.execute(update(bundle).where(*key).values(ref=_text(ref)))


def expect(row: Rollout, generation: int) -> None:
    """Raise Conflict unless the row is at this generation."""
    if row.generation != generation:
        raise Conflict(
            f"model {row.model} is at generation {row.generation} (champion {_name(row.champion)}), "
            f"not at the expected {generation}: somebody changed it first; "
            "look at `homeostat status` and decide again"
        )


def at_rest(row: Rollout) -> Rollout:
    """Return the row without a rollout in progress."""
    return replace(row, mode="live", weight=0.0, step=0, step_since="", started=0, paused=False)


def promoted(row: Rollout, ref: BundleRef, time: str, bake_share: float) -> Rollout:
    """Return the row with another champion; the old one keeps `bake_share` of traffic in mode `bake`, if any."""
    challenger = None if row.challenger and row.challenger.version == ref.version else row.challenger
    changed = replace(at_rest(row), champion=ref, challenger=challenger, previous=row.champion)
    if bake_share and row.champion:
        started = row.started or row.generation + 1
        return replace(changed, mode="bake", weight=1 - bake_share, step_since=time, started=started)
    return changed


def ban(connection: Connection, ref: BundleRef, reason: str, time: str) -> None:
    """Put a graph into quarantine, by the digest of its bytes: built into another bundle it is still the same."""
    release(connection, ref)
    values = {"version": ref.version, "reason": reason, "time": time}
    connection.execute(insert(quarantine).values(model=ref.model, sha256=ref.sha256, **values))


def _in_quarantine(ref: BundleRef) -> ColumnElement[bool]:
    return and_(quarantine.c.model == ref.model, quarantine.c.sha256 == ref.sha256)


def release(connection: Connection, ref: BundleRef) -> bool:
    """Take a graph out of quarantine; return whether it was in."""
    return connection.execute(delete(quarantine).where(_in_quarantine(ref))).rowcount > 0


def admit(connection: Connection, ref: BundleRef) -> None:
    """Raise Quarantined when a bundle's graph is in quarantine."""
    row = connection.execute(select(quarantine).where(_in_quarantine(ref))).first()
    if row is not None:
        same = "" if row.version == ref.version else f", the graph of v{row.version},"
        raise Quarantined(
            f"{ref.model} v{ref.version} ({ref.sha256[:12]}){same} is in quarantine since {row.time[:19]} UTC: "
            f"{row.reason}; `homeostat rollout release {ref.model} {ref.version}` lets it out"
        )


def now(connection: Connection, clock_time: datetime) -> str:
    """Return the time of the next entry: the clock's, but never before the last entry's."""
    last: str = connection.execute(select(head.c.time)).scalar_one()
    return max(stamp(clock_time), last)


def change(
    connection: Connection, before: Rollout, after: Rollout, ref: BundleRef, decision: Decision, time: str
) -> Rollout:
    """Write the next generation of a row if it still is the one before, with its ledger entry."""
    since = time if after.champion != before.champion else before.since
    row = replace(after, generation=before.generation + 1, since=since)
    values = asdict(row) | {role: _text(getattr(row, role)) for role in ("champion", "challenger", "previous")}
    if before.generation == 0:
        connection.execute(insert(rollout).values(values))
    else:
        same = (rollout.c.model == row.model, rollout.c.generation == before.generation)
        if connection.execute(update(rollout).where(*same).values(values)).rowcount != 1:
            expect(find(connection, row.model), before.generation)
    write_entry(connection, row, decision, time, version=ref.version, sha256=ref.sha256)
    return row


def write_entry(
    connection: Connection, row: Rollout, decision: Decision, time: str, *, version: int | None, sha256: str | None
) -> LedgerEntry:
    """Append a decision about a row to the ledger."""
    content = {
        "time": time,
        "model": row.model,
        "action": decision.action,
        "actor": decision.actor,
        "reason": decision.reason,
        "generation": row.generation,
        "version": version,
        "sha256": sha256,
        "evidence": dict(decision.evidence),
    }
    return chain.append(connection, content)
