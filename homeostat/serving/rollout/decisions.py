"""Brings the control store to what the server has decided, for as long as that takes."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from homeostat.config import RolloutConfig
from homeostat.errors import Conflict, ControlError, HomeostatError, NotFound
from homeostat.records import Rollout
from homeostat.serving.rollout.journal import Journal, Stopped

if TYPE_CHECKING:
    from homeostat.control.progress import Why
    from homeostat.control.store import ControlStore

log = logging.getLogger(__name__)

RETRY_SECONDS = (0.2, 1.0, 5.0)


@dataclass(frozen=True)
class Move:
    """A step ahead, or a pause, of a rollout as it was when that was decided."""

    row: Rollout
    config: RolloutConfig | None
    """What the next step follows; None to pause."""
    reason: str
    evidence: dict[str, Any]


class Decisions:
    """A thread with the connection that a server writes its own decisions through.

    What was taken out is written until it is there, also after a restart. A move is tried once:
    while it is due, it is decided again. Both are compare-and-set: whoever comes second has
    nothing left to do.
    """

    def __init__(self, connect: Callable[[], ControlStore], journal: Journal, changed: Callable[[], None]) -> None:
        """connect: called in the thread when first needed, and again after it failed. changed: called after a write."""
        self._connect, self._journal, self._changed = connect, journal, changed
        self._store: ControlStore | None = None
        self._actor = f"server:{socket.gethostname()}:{os.getpid()}"
        self._moves: dict[str, Move] = {}
        self._poked, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_always, name="decisions", daemon=True)

    def start(self) -> None:
        """Write, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop writing; what is not in the control store yet is written after the next start."""
        self._closing.set()
        self._poked.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def poke(self) -> None:
        """Write what was stopped."""
        self._poked.set()

    def move(self, move: Move) -> None:
        """Write a move."""
        self._moves[move.row.model] = move
        self._poked.set()

    def _write_always(self) -> None:
        failed = 0
        while not self._closing.is_set():
            failed = 0 if self.write() else failed + 1
            self._poked.wait(RETRY_SECONDS[min(failed, len(RETRY_SECONDS)) - 1] if failed else None)
            self._poked.clear()

    def write(self) -> bool:
        """Write everything once; return whether all that was stopped is there."""
        done = [self._abort(model, one) for model, one in list(self._journal.stopped.items()) if not one.recorded]
        moves = [self._moves.pop(model) for model in list(self._moves)]
        for move in moves:
            self._try(move.row.model, partial(self._advance_or_pause, move))
        return all(done)

    def _abort(self, model: str, stopped: Stopped) -> bool:
        if not self._try(model, partial(self._take_out, model, stopped)):
            return False
        self._journal.stop(model, replace(stopped, recorded=True))
        return True

    def _try(self, model: str, change: Callable[[ControlStore], None]) -> bool:
        try:
            if self._store is None:
                self._store = self._connect()
            change(self._store)
        except Exception as error:  # noqa: BLE001  the store may be anything; what is out stays out
            self._store = None
            kind = "" if isinstance(error, HomeostatError) else f"{type(error).__name__}: "
            log.warning("%s: the decision is not in the control store yet: %s%s", model, kind, error)
            return False
        self._changed()
        return True

    def _why(self, reason: str, evidence: dict[str, Any]) -> Why:
        from homeostat.control.progress import Why  # in the thread: the server answers before SQLAlchemy is loaded

        return Why(self._actor, reason, evidence)

    def _advance_or_pause(self, move: Move, store: ControlStore) -> None:
        from homeostat.control import progress

        row, why = move.row, self._why(move.reason, move.evidence)
        try:
            if move.config is None:
                progress.pause(store, row.model, why, expected_generation=row.generation)
            else:
                progress.advance(store, row.model, move.config, why, expected_generation=row.generation)
        except ControlError as error:  # lost the race: somebody else has decided
            log.info("%s: the rollout row has moved on: %s", row.model, error)

    def _take_out(self, model: str, stopped: Stopped, store: ControlStore) -> None:
        from homeostat.control import progress

        why = self._why(stopped.reason, stopped.evidence)
        while True:
            try:
                row = store.row(model)
                if not stopped.is_of(row):
                    log.info("%s: the rollout that v%d failed in has ended already", model, stopped.version)
                    return
                progress.abort(store, model, why, expected_generation=row.generation)
                return
            except Conflict:
                continue  # another server has moved the row meanwhile: look again
            except NotFound as error:
                log.info("%s: nothing to stop: %s", model, error)
                return
