"""What each look at a version's live traffic has found, in order, and the state from which the next look goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from homeostat.control.database import Database
from homeostat.control.tables import window
from homeostat.errors import ControlError, LookConflict

MAX_WINDOWS = 10_000
"""The newest looks that are kept of a version: over a year of hourly ones."""


@dataclass(frozen=True)
class Look:
    """One look: its number from 1 on, the end of its window (UTC, ISO 8601), and what it found, as JSON holds it."""

    sequence: int
    end: str
    found: Mapping[str, Any]


@dataclass(frozen=True)
class Standing:
    """Where sequential evidence stands after `sequence` looks; `state` is empty before the first one."""

    sequence: int
    state: str


class Windows:
    """The looks at live traffic, of all models, in the control store's database.

    Evidence over many looks holds its error rate only if each row of traffic counts once, so a look
    is kept with the state that it leaves behind, and only by the one who saw the look before it.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 5.0) -> None:
        self._database = Database(url, timeout_seconds=timeout_seconds)

    def standing(self, model: str, version: int) -> Standing:
        """Return where a version's evidence stands."""
        query = select(window.c.sequence, window.c.state).where(window.c.model == model, window.c.version == version)
        with self._database.read() as connection:
            row = connection.execute(query.order_by(window.c.sequence.desc()).limit(1)).first()
            return Standing(row.sequence, row.state) if row else Standing(0, "")

    def history(self, model: str, version: int, limit: int = MAX_WINDOWS) -> list[Look]:
        """Return a version's newest looks, oldest first; raises ControlError when one was damaged by hand."""
        query = select(window.c.sequence, window.c.end, window.c.found).where(
            window.c.model == model, window.c.version == version
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(window.c.sequence.desc()).limit(limit)).all()
        try:
            return [Look(row.sequence, row.end, json.loads(row.found)) for row in reversed(rows)]
        except ValueError as error:
            raise ControlError(
                f"control store {self._database.where}: a look at {model} v{version} is not JSON: {error}"
            ) from error

    def keep(self, model: str, version: int, before: Standing, end: str, found: Mapping[str, Any], state: str) -> None:
        """Keep a look that went on from `before`; of older ones the state goes, and the oldest go whole.

        Raises LookConflict when another look has gone on from there meanwhile.
        """
        ours = (window.c.model == model) & (window.c.version == version)
        sequence = before.sequence + 1
        text = json.dumps(found, allow_nan=False)
        with self._database.write() as connection:
            last = connection.execute(select(func.max(window.c.sequence)).where(ours)).scalar() or 0
            if last != before.sequence:
                raise LookConflict(
                    f"{model} v{version}: look {last} is the last, not {before.sequence}: "
                    "another one has gone on meanwhile; look again"
                )
            connection.execute(update(window).where(ours).values(state=""))
            connection.execute(delete(window).where(ours & (window.c.sequence <= sequence - MAX_WINDOWS)))
            row = {"model": model, "version": version, "sequence": sequence, "end": end, "found": text, "state": state}
            connection.execute(insert(window).values(row))
