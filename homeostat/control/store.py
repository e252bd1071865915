"""ControlStore: every change of a rollout row is compare-and-set, with its ledger entry in the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from homeostat.control import ledger as chain
from homeostat.control import rows
from homeostat.control.database import Database
from homeostat.control.rows import Decision
from homeostat.control.status import Status, status_of
from homeostat.control.tables import head, ledger, quarantine, rollout
from homeostat.errors import Conflict, ControlError, NotFound
from homeostat.records import BundleRef, LedgerEntry, LedgerHead, Rollout

NO_EVIDENCE: Mapping[str, Any] = {}


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ControlStore:
    """The truth about who is champion, in SQLite or PostgreSQL.

    url: a SQLAlchemy URL. timeout_seconds: how long to wait for a lock or a connection.
    clock: returns the time; ledger times never go back even if it does. Every method raises
    ControlUnavailable when the database does not answer (a retry may pass) and ControlError
    when it is damaged. Safe to use from several threads and processes.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 5.0, clock: Callable[[], datetime] = _utc_now) -> None:
        self._database = Database(url, timeout_seconds=timeout_seconds)
        self._clock = clock

    def row(self, model: str) -> Rollout:
        """Return the rollout row of a model; raises NotFound that names the known models."""
        with self._database.read() as connection:
            return rows.require(connection, model)

    def rows(self) -> list[Rollout]:
        """Return every rollout row, by model name."""
        with self._database.read() as connection:
            found = connection.execute(select(rollout).order_by(rollout.c.model))
            return [rows.rollout_of(row) for row in found]

    def champion(self, model: str) -> BundleRef | None:
        """Return the bundle that is champion, None for a model that has none yet."""
        with self._database.read() as connection:
            return rows.find(connection, model).champion

    def generation(self, model: str) -> int:
        """Return the generation to expect in a change; 0 for a model that has no row yet."""
        with self._database.read() as connection:
            return rows.find(connection, model).generation

    def bundle(self, model: str, version: int) -> BundleRef:
        """Return the bundle of a version that the store has seen; raises NotFound that names those it has."""
        with self._database.read() as connection:
            return rows.find_bundle(connection, model, version)

    def history(self, model: str | None = None) -> list[LedgerEntry]:
        """Return the ledger of one model (or of all), oldest first; raises NotFound for an unknown model."""
        query = select(ledger).order_by(ledger.c.sequence)
        with self._database.read() as connection:
            found = connection.execute(query if model is None else query.where(ledger.c.model == model)).all()
            if model is not None and not found:
                rows.unknown(connection, model)
            return [chain.entry_of(row) for row in found]

    def written_by(self, actor: str, limit: int = 100) -> list[LedgerEntry]:
        """Return the newest entries of an actor, such as one flow run, oldest first."""
        query = select(ledger).where(ledger.c.actor == actor).order_by(ledger.c.sequence.desc()).limit(limit)
        with self._database.read() as connection:
            return [chain.entry_of(row) for row in reversed(connection.execute(query).all())]

    def entries_after(self, sequence: int, limit: int) -> list[LedgerEntry]:
        """Return the next entries of the ledger, of all models, oldest first."""
        query = select(ledger).where(ledger.c.sequence > sequence).order_by(ledger.c.sequence).limit(limit)
        with self._database.read() as connection:
            return [chain.entry_of(row) for row in connection.execute(query).all()]

    def status(self, model: str) -> Status:
        """Return champion, challenger and the last evidence; raises NotFound that names the known models."""
        return status_of(self, model)

    def last(self, model: str, *actions: str) -> LedgerEntry | None:
        """Return the newest ledger entry of a model with one of these actions, if there is one."""
        query = select(ledger).where(ledger.c.model == model, ledger.c.action.in_(actions))
        with self._database.read() as connection:
            row = connection.execute(query.order_by(ledger.c.sequence.desc()).limit(1)).first()
            return chain.entry_of(row) if row else None

    def champion_at(self, model: str, time: datetime) -> LedgerEntry:
        """Return the decision that made the champion of that time; a naive time is UTC.

        Raises NotFound for an unknown model, and when there was no champion yet.
        """
        at = rows.stamp(time)
        query = select(ledger).where(
            ledger.c.model == model, ledger.c.action.in_(chain.CHANGES_CHAMPION), ledger.c.time <= at
        )
        with self._database.read() as connection:
            row = connection.execute(query.order_by(ledger.c.sequence.desc()).limit(1)).first()
            if row is None:
                rows.require(connection, model)
                raise NotFound(f"model {model} had no champion at {at}; see `homeostat history {model}`")
            return chain.entry_of(row)

    def head(self) -> LedgerHead:
        """Return the last entry of the ledger."""
        with self._database.read() as connection:
            last = connection.execute(select(head.c.sequence, head.c.hash)).one()
            return LedgerHead(last.sequence, last.hash)

    def verify(self, served: Sequence[Rollout] = (), anchors: Sequence[LedgerHead] = ()) -> int:
        """Check the whole ledger, and the rollout rows against it; return the number of entries.

        served: rows that a server remembers, whose decisions the ledger must hold too. anchors: earlier
        ends of the ledger that are remembered elsewhere, which it must hold too. Raises
        LedgerBroken that names the sequence. Holds the write lock meanwhile.
        """
        with self._database.write() as connection:
            return chain.verify(connection, served, anchors)

    def register_bundle(self, ref: BundleRef) -> None:
        """Remember a version's bundle, so that it can be promoted by number.

        Raises ControlError when the version is live, was just before, or is on trial, with another bundle.
        """
        with self._database.write() as connection:
            rows.remember(connection, ref, rows.now(connection, self._clock()))

    def set_challenger(
        self,
        model: str,
        bundle: BundleRef,
        *,
        expected_generation: int,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] = NO_EVIDENCE,
    ) -> Rollout:
        """Make a bundle the challenger; returns the row as it is when it already is, or is champion.

        expected_generation is 0 for a model without a row. Raises Conflict, ControlError, and
        Quarantined; a challenger that is being rolled out is not replaced.
        """
        if bundle.model != model:
            raise ControlError(f"the bundle {bundle.url} is of model {bundle.model}, not of {model}")
        with self._database.write() as connection:
            time = rows.now(connection, self._clock())
            rows.remember(connection, bundle, time)
            row = rows.find(connection, model)
            if bundle in (row.champion, row.challenger):
                return row
            rows.expect(row, expected_generation)
            if row.mode in ("shadow", "canary"):
                raise ControlError(
                    f"model {model}: {row.mode} of v{row.challenger.version if row.challenger else '?'} is in "
                    f"progress; `homeostat rollout abort {model}` or `promote {model}` ends it first"
                )
            rows.admit(connection, bundle)
            decision = Decision("challenger", actor, reason, evidence)
            return rows.change(connection, row, replace(row, challenger=bundle), bundle, decision, time)

    def promote(
        self,
        model: str,
        version: int,
        *,
        expected_generation: int,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] = NO_EVIDENCE,
        bake_share: float = 0.0,
    ) -> Rollout:
        """Make a version champion; the champion becomes the one that `rollback` returns to.

        bake_share: the share of traffic that the old champion keeps in mode `bake`; 0 ends any
        rollout. Returns the row as it is when the version already is champion. Raises NotFound
        when the store has seen no bundle of that version, Conflict when the row has moved on,
        Quarantined.
        """
        with self._database.write() as connection:
            row = rows.find(connection, model)
            if row.champion and row.champion.version == version:
                return row
            ref = rows.find_bundle(connection, model, version)
            rows.expect(row, expected_generation)
            rows.admit(connection, ref)
            time = rows.now(connection, self._clock())
            changed = rows.promoted(row, ref, time, bake_share)
            return rows.change(connection, row, changed, ref, Decision("promote", actor, reason, evidence), time)

    def hold(
        self,
        model: str,
        *,
        expected_generation: int,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] = NO_EVIDENCE,
        clear_challenger: bool = False,
    ) -> Rollout:
        """Write down that the challenger does not take over; it stays, unless `clear_challenger`.

        Keeping it leaves the row and its generation as they are. Raises NotFound, Conflict.
        """
        with self._database.write() as connection:
            row = rows.require(connection, model)
            rows.expect(row, expected_generation)
            time = rows.now(connection, self._clock())
            decision = Decision("hold", actor, reason, evidence)
            held = row.challenger
            if held and clear_challenger:
                rest = row if row.mode == "bake" else rows.at_rest(row)
                return rows.change(connection, row, replace(rest, challenger=None), held, decision, time)
            version, sha256 = (held.version, held.sha256) if held else (None, None)
            rows.write_entry(connection, row, decision, time, version=version, sha256=sha256)
            return row

    def rollback(
        self,
        model: str,
        *,
        expected_generation: int | None = None,
        bad_version: int | None = None,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] = NO_EVIDENCE,
        ban: bool = True,
    ) -> Rollout:
        """Bring the previous champion back, and put the version rolled back from into quarantine, if `ban`.

        expected_generation, bad_version: what must still hold, the row's generation or only its champion:
        the latter loses to no change of anything else. The version does not stay as challenger, and a
        rollout in progress ends. Raises NotFound, Conflict, and ControlError when there is no previous champion.
        """
        with self._database.write() as connection:
            row = rows.require(connection, model)
            if expected_generation is not None:
                rows.expect(row, expected_generation)
            if bad_version is not None and (row.champion is None or row.champion.version != bad_version):
                live = f"v{row.champion.version}" if row.champion else "none"
                raise Conflict(
                    f"{model}: v{bad_version} was to be rolled back, but the champion is {live} now; nothing changed"
                )
            if row.previous is None:
                live = f"v{row.champion.version}" if row.champion else "none"
                raise ControlError(
                    f"model {model} has no previous champion to roll back to (champion {live}, generation "
                    f"{row.generation}); name a version instead: `homeostat promote {model} VERSION`"
                )
            challenger = None if row.challenger in (row.champion, row.previous) else row.challenger
            changed = replace(rows.at_rest(row), champion=row.previous, challenger=challenger, previous=None)
            decision = Decision("rollback", actor, reason, evidence)
            time = rows.now(connection, self._clock())
            if row.champion and ban:
                rows.ban(connection, row.champion, reason, time)
            rows.release(connection, row.previous)
            return rows.change(connection, row, changed, row.previous, decision, time)

    def alter(
        self,
        model: str,
        decision: Decision,
        change: Callable[[Rollout, str], Rollout],
        *,
        expected_generation: int,
        ban: bool = False,
        admit: BundleRef | None = None,
    ) -> Rollout:
        """Change how a model is rolled out: `change` takes the row and the time, and returns the next row or raises.

        ban: put the version on trial into quarantine. admit: refuse this bundle if it is in
        quarantine. Raises NotFound, Conflict, Quarantined.
        """
        with self._database.write() as connection:
            row = rows.require(connection, model)
            rows.expect(row, expected_generation)
            time = rows.now(connection, self._clock())
            after = change(row, time)
            if admit:
                rows.admit(connection, admit)
            ref = row.on_trial or after.on_trial
            if ref is None:
                raise ControlError(f"model {model}: no rollout is in progress")
            if ban:
                rows.ban(connection, ref, decision.reason, time)
            return rows.change(connection, row, after, ref, decision, time)

    def release(self, model: str, version: int, *, actor: str, reason: str) -> bool:
        """Let a version out of quarantine; return whether it was in. Raises NotFound."""
        with self._database.write() as connection:
            row, ref = rows.require(connection, model), rows.find_bundle(connection, model, version)
            if not rows.release(connection, ref):
                return False
            time = rows.now(connection, self._clock())
            decision = Decision("release", actor, reason)
            rows.write_entry(connection, row, decision, time, version=version, sha256=ref.sha256)
            return True

    def quarantined(self) -> list[dict[str, Any]]:
        """Return what is in quarantine: model, version, sha256 of the graph, reason and time."""
        query = select(quarantine).order_by(quarantine.c.model, quarantine.c.version)
        with self._database.read() as connection:
            return [{str(name): value for name, value in row._mapping.items()} for row in connection.execute(query)]

    def record(
        self,
        model: str,
        action: str,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] = NO_EVIDENCE,
        version: int | None = None,
        sha256: str | None = None,
        after: int | None = None,
    ) -> LedgerEntry:
        """Write an entry that changes no row, such as `verdict` or `drift`; returns it.

        after: number of the newest entry of this model and action that the caller knows, 0 for none:
        raises Conflict when another one has come since, so that of two who decide at once one does.
        """
        if action in chain.CHANGES_CHAMPION:
            raise ControlError(f"{action!r} changes the rollout row: use ControlStore.{action}")
        with self._database.write() as connection:
            if after is not None:
                known = (ledger.c.model == model) & (ledger.c.action == action)
                newest = connection.execute(select(func.max(ledger.c.sequence)).where(known)).scalar() or 0
                if newest != after:
                    raise Conflict(f"{model}: ledger entry {newest} is a newer {action} than {after}; decide again")
            row = rows.find(connection, model)
            decision = Decision(action, actor, reason, evidence)
            time = rows.now(connection, self._clock())
            return rows.write_entry(connection, row, decision, time, version=version, sha256=sha256)
