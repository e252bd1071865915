"""Webhooks that were believed and what has become of them, and how far each target has been told of the ledger."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Row, delete, func, insert, select, update

from homeostat.control.database import Database
from homeostat.control.tables import delivery, head, notice
from homeostat.errors import ControlError, NotFound

Status = Literal["accepted", "started", "ignored", "refused", "expired"]
MAX_WAITING = 1_000
"""Webhooks that may wait for Prefect at once."""


class Crowded(ControlError):
    """More webhooks wait for Prefect than may."""


@dataclass(frozen=True)
class Delivery:
    """One webhook, and the one flow run that all its copies start.

    status: accepted (it waits for Prefect), started, ignored (no rule fits), refused (Prefect does not take
    it, and `note` says why) or expired (Prefect did not answer for too long). key: what its copies share.
    """

    source: str
    key: str
    decision: str
    time: str
    """When it came (UTC, ISO 8601)."""
    status: Status
    deployment: str
    parameters: Mapping[str, Any]
    flow_run: str = ""
    note: str = ""
    attempts: int = 0
    due: float = 0.0
    """When it is tried next (Unix time, s)."""


class Deliveries:
    """The webhooks of all sources, in the control store's database, so that several gateways share them."""

    def __init__(self, url: str, *, timeout_seconds: float = 5.0) -> None:
        self._database = Database(url, timeout_seconds=timeout_seconds)

    def accept(
        self, source: str, key: str, started: tuple[str, Mapping[str, Any]] | None, now: datetime
    ) -> tuple[Delivery, bool]:
        """Keep a webhook, unless one with its key is kept; return the one that is kept, and whether it is new.

        started: deployment and parameters, None where no rule fits. Raises Crowded.
        """
        same = (delivery.c.source == source) & (delivery.c.key == key)
        with self._database.write() as connection:
            row = connection.execute(select(delivery).where(same)).first()
            if row is not None:
                return _delivery(row), False
            waiting = select(func.count()).where(delivery.c.status == "accepted")
            if started and connection.execute(waiting).scalar_one() >= MAX_WAITING:
                raise Crowded(f"{MAX_WAITING} webhooks wait for Prefect; it does not answer, or is too slow for them")
            deployment, parameters = started or ("", {})
            values = {
                "source": source,
                "key": key,
                "decision": secrets.token_hex(16),
                "time": now.astimezone(UTC).isoformat(timespec="milliseconds"),
                "status": "accepted" if started else "ignored",
                "deployment": deployment,
                "parameters": json.dumps(parameters),
                "flow_run": "",
                "note": "" if started else "no rule of the source fits",
                "attempts": 0,
                "due": 0.0,
            }
            connection.execute(insert(delivery).values(values))
            return _delivery(connection.execute(select(delivery).where(same)).one()), True

    def known(self, source: str, key: str) -> Delivery | None:
        """Return the webhook of a key, None when it has not come yet."""
        with self._database.read() as connection:
            row = connection.execute(select(delivery).where(delivery.c.source == source, delivery.c.key == key)).first()
            return _delivery(row) if row else None

    def find(self, decision: str) -> Delivery:
        """Return the webhook of a decision id; raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(select(delivery).where(delivery.c.decision == decision)).first()
        if row is None:
            raise NotFound(f"no decision {decision!r:.60}; it is forgotten after some months, or was never made")
        return _delivery(row)

    def due(self, now: float, limit: int = 50) -> list[Delivery]:
        """Return the webhooks to try now (Unix time, s), the oldest first."""
        query = select(delivery).where(delivery.c.status == "accepted", delivery.c.due <= now)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(delivery.c.time).limit(limit)).all()
        return [_delivery(row) for row in found]

    def waiting(self) -> int:
        """Return how many webhooks wait for Prefect."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).where(delivery.c.status == "accepted")).scalar_one())

    def settle(self, decision: str, status: Status, *, flow_run: str = "", note: str = "") -> None:
        """Say what has become of a webhook that waits; one that is settled stays as it is."""
        self._change(decision, {"status": status, "flow_run": flow_run, "note": note})

    def postpone(self, decision: str, due: float, note: str) -> None:
        """Try a webhook that waits again at `due` (Unix time, s)."""
        self._change(decision, {"due": due, "note": note, "attempts": delivery.c.attempts + 1})

    def forget(self, before: datetime, but: Sequence[str]) -> int:
        """Forget the settled webhooks from before a time, of all sources but these; return how many."""
        old = (delivery.c.status != "accepted") & (delivery.c.time < before.astimezone(UTC).isoformat())
        with self._database.write() as connection:
            return int(connection.execute(delete(delivery).where(old, delivery.c.source.not_in(but))).rowcount)

    def told(self, target: str) -> int:
        """Return the last ledger entry that a target was told of; a new target begins at the ledger's end."""
        query = select(notice.c.sequence).where(notice.c.target == target)
        with self._database.read() as connection:
            found = connection.execute(query).scalar()
        if found is not None:
            return int(found)
        with self._database.write() as connection:
            end = connection.execute(select(head.c.sequence)).scalar_one()
            if connection.execute(query).scalar() is None:  # another gateway may have been first
                connection.execute(insert(notice).values(target=target, sequence=end))
            return int(connection.execute(query).scalar_one())

    def tell(self, target: str, sequence: int) -> None:
        """Remember that a target was told of the ledger up to here."""
        ours = (notice.c.target == target) & (notice.c.sequence < sequence)
        with self._database.write() as connection:
            connection.execute(update(notice).where(ours).values(sequence=sequence))

    def _change(self, decision: str, values: Mapping[str, Any]) -> None:
        waiting = (delivery.c.decision == decision) & (delivery.c.status == "accepted")
        with self._database.write() as connection:
            connection.execute(update(delivery).where(waiting).values(**values))


def _delivery(row: Row[Any]) -> Delivery:
    values = dict(row._mapping)
    try:
        values["parameters"] = json.loads(values["parameters"])
    except ValueError as error:
        raise ControlError(f"decision {row.decision}: its parameters are not JSON: {error}") from error
    return Delivery(**values)
