"""Which versions can answer: follows the rollout rows, loads and verifies in a thread, swaps by one reference."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from homeostat.bundle import open_bundle
from homeostat.errors import HomeostatError, PreflightFailed
from homeostat.records import BundleRef, Rollout
from homeostat.serving.memory import Memory, Retries, Stamp
from homeostat.serving.metrics import Metrics
from homeostat.serving.preflight import Interrupted, preflight
from homeostat.serving.served import Served

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
FAILED_SECONDS = 5.0
KEPT_SESSIONS = 4
"""Sessions kept warm for a model, those of its row among them."""
RETRY_SECONDS = (1.0, 5.0, 30.0)
"""Wait before a refused bundle is tried again: it may have been repaired, or its store may answer again."""
PREFLIGHT_RETRY_SECONDS = (30.0, 600.0)
"""The same after a failed preflight, which can cost half a minute of processor time and will fail again."""
ANEW = "it was made anew or restored; going on with the last verified versions"
MODEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Rows(Protocol):
    """What the repository follows: the control store, or anything with its rows."""

    def rows(self) -> list[Rollout]:
        """Return the rollout row of each model."""


@dataclass(frozen=True)
class ModelState:
    """What is loaded of one model. Replaced whole, never changed."""

    name: str
    generation: int = 0
    """Of the row whose champion answers; 0 before there is one."""
    expected: bool = False
    """Whether the row names a champion."""
    live: Served | None = None
    previous: Served | None = None
    challenger: Served | None = None
    problems: Mapping[int, str] = field(default_factory=dict)
    """Version -> why it is refused."""
    row: Rollout | None = None
    """The rollout row that this follows."""

    @property
    def problem(self) -> str:
        """All refusals, in one text; empty when there is none."""
        return "; ".join(self.problems.values())

    def answering(self) -> list[Served]:
        """Return the versions that may be asked: the live one first, then the previous one."""
        return [served for served in (self.live, self.previous) if served is not None]

    def loaded(self) -> list[Served]:
        """Return the versions that are verified and warm."""
        return [served for served in (self.live, self.previous, self.challenger) if served is not None]


class Repository:
    """The loaded models. `models` is read by requests without a lock; only the thread replaces it."""

    def __init__(
        self,
        connect: Callable[[], Rows],
        public_key: Callable[[], Ed25519PublicKey],
        folder: Path,
        metrics: Metrics,
        *,
        salt: Callable[[], bytes],
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`connect`, `public_key` and `salt` are called in the thread, when needed, and again after they failed."""
        self.models: dict[str, ModelState] = {}
        self.problem = "the control store has not been read yet"
        """Why the control store cannot be followed; empty when it can."""
        self._connect, self._public_key, self._salt = connect, public_key, salt
        self._source: Rows | None = None
        self._memory, self._retries = Memory(folder), Retries(folder / "retries")
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._sessions: dict[str, OrderedDict[str, Served]] = {}
        self._refused: dict[str, tuple[int, float, str]] = {}
        """Manifest digest -> times refused, when to try again, why."""
        self._asked: dict[str, Stamp] = {}
        """Manifest digest -> how the retries of its model stood when it was refused."""
        self._waiting: SimpleQueue[Future[None]] = SimpleQueue()
        self._rows: dict[str, Rollout] = {}
        """As they were read last, or remembered."""
        self._seen: dict[str, Rollout] = {}
        self.changed: Callable[[], None] = lambda: None
        """Called in the thread after what is loaded of a model has changed."""
        self.veto: Callable[[Rollout], Rollout] = lambda row: row
        """Set by the controller of rollouts: what this server has taken out is not loaded again by a row."""
        self.watch: Callable[[ModelState], None] = lambda state: None
        """Set by the controller of rollouts: called after each change of a model, in the thread."""
        self._poked, self._closing, self._restored = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="repository", daemon=True)

    def start(self) -> None:
        """Restore, then follow the rows, in a thread."""
        self._thread.start()

    def wait_restored(self, seconds: float) -> bool:
        """Wait until what was last verified here answers again and the rows were read once; return whether it was."""
        return self._restored.wait(seconds)

    def poke(self) -> None:
        """Look at the rows now."""
        self._poked.set()

    def refresh(self) -> Future[None]:
        """Look at the rows now; the future is done when every model was brought to a row read after this call."""
        done: Future[None] = Future()
        self._waiting.put(done)
        self.poke()
        return done

    def retry(self, model: str) -> None:
        """Have every worker of this HOME try the refused bundles of a model again at its next look, without a wait."""
        self._retries.ask(model)
        self.poke()

    def close(self) -> None:
        """Stop following."""
        self._closing.set()
        self._poked.set()
        self._thread.join(5)

    def ready(self) -> tuple[bool, str]:
        """Return whether every model that should answer does, and which do not."""
        states = list(self.models.values())
        silent = [
            f"{state.name}: {state.problem or 'loading'}" for state in states if state.expected and not state.live
        ]
        if silent:
            return False, "; ".join(silent)
        return (True, "") if not self.problem or states else (False, self.problem)

    def _follow(self) -> None:
        self.restore()
        while not self._closing.is_set():
            wait = self._poll_seconds
            try:
                self.poll()
            except Exception as error:  # this thread must outlive anything: without it no rollback arrives
                self.problem, wait = f"the rollout rows cannot be followed: {error}", FAILED_SECONDS
                log.exception("following the rollout rows failed; again in %g s", wait)
            self._restored.set()
            self._poked.wait(wait)
            self._poked.clear()

    def restore(self) -> None:
        """Serve what was last verified here, whatever the control store does."""
        for row in self._memory.read():
            self._rows[row.model] = row
            self._apply(row, remembered=True)

    def poll(self) -> None:
        """Read the rows once and bring each model to its row; a failure leaves everything as it is."""
        waiting = [self._waiting.get() for _ in range(self._waiting.qsize())]
        self._poll()
        for done in waiting:
            if done.set_running_or_notify_cancel():
                done.set_result(None)

    def _poll(self) -> None:
        try:
            if self._source is None:
                self._source = self._connect()
            rows = self._source.rows()
        except Exception as error:  # noqa: BLE001  whatever fails there, the data plane goes on with what it has
            self._source = None  # connect anew: it may be another database by then
            text = f"the control store cannot be read: {type(error).__name__}: {error}"
            if text != self.problem:
                log.warning("%s; going on with the last verified versions", text)
            self.problem = text
            for row in list(self._rows.values()):
                self._apply(row)  # what was taken out here meanwhile is vetoed
            return
        found = {row.model: row for row in rows}
        lost = sorted(self._rows.keys() - found.keys())
        text = f"the control store has no rollout row of {', '.join(lost)} any more: {ANEW}" if lost else ""
        if lost and text != self.problem:
            log.error("%s", text)
        elif self.problem and not lost:
            log.info("following the control store, %d models", len(rows))
        self.problem = text
        self._rows |= found
        for row in list(self._rows.values()):
            self._apply(row)

    def _overtaken(self) -> bool:
        """Return whether there is something to do that cannot wait for a preflight: a rollback, say, or the end."""
        if self._closing.is_set() or self._source is None:
            return self._closing.is_set()
        try:
            return any(self._rows.get(row.model) != row for row in self._source.rows())
        except Exception:  # noqa: BLE001  the next poll will meet it too, and report it
            return False

    def _apply(self, decided: Rollout, *, remembered: bool = False) -> None:
        row = self.veto(decided)
        if self._seen.get(row.model) == row and not self._due(row):
            return
        if not MODEL_NAME.fullmatch(row.model):
            log.error("the rollout row of %r is passed over: that is no model name", row.model)
            self._seen[row.model] = row
            return
        seen = self._seen.get(row.model)
        if seen is not None and row.generation < seen.generation:
            log.error(
                "%s: the rollout row went back from generation %d to %d: the control store was made anew or restored; "
                "its newest decisions are missing",
                row.model,
                seen.generation,
                row.generation,
            )
        before = self.models.get(row.model, ModelState(row.model))
        self._replace(before, expected=row.champion is not None)
        problems: dict[int, str] = {}
        live = self._load(row.champion, problems)
        moved = live is not None or row.champion is None
        state = ModelState(
            name=row.model,
            generation=row.generation if moved else before.generation,
            expected=row.champion is not None,
            live=live or (before.live if row.champion else None),
            previous=before.previous if not moved else self._warm(row.previous),
            challenger=before.challenger,
            problems=dict(problems),
            row=row,
        )
        self.models = {**self.models, row.model: state}  # the swap: one assignment
        self.watch(state)
        if live is not None and (before.live is None or before.live.ref != live.ref):
            self._metrics.swapped(row.model)
            log.info("%s: version %d is live (generation %d)", row.model, live.ref.version, row.generation)
        # what is not needed to answer is loaded after the swap
        previous, challenger = self._load(row.previous, problems), self._load(row.challenger, problems)
        self.models = {
            **self.models,
            row.model: ModelState(
                state.name,
                state.generation,
                state.expected,
                state.live,
                previous if moved else state.previous,
                challenger,
                problems,
                row,
            ),
        }
        self.watch(self.models[row.model])
        self._forget(row)
        self._seen[row.model] = row
        self.changed()
        if moved and not remembered:
            self._memory.write(decided, [served.ref.manifest_sha256 for served in self.models[row.model].loaded()])

    def _replace(self, before: ModelState, *, expected: bool) -> None:
        if before.name not in self.models:
            self.models = {**self.models, before.name: ModelState(before.name, expected=expected)}

    def _due(self, row: Rollout) -> bool:
        refs = (row.champion, row.previous, row.challenger)
        return any(ref.manifest_sha256 in self._refused and self._may_try(ref) for ref in refs if ref)

    def _may_try(self, ref: BundleRef) -> bool:
        digest = ref.manifest_sha256
        return time.monotonic() >= self._refused[digest][1] or self._retries.stamp(ref.model) != self._asked[digest]

    def _warm(self, ref: BundleRef | None) -> Served | None:
        return self._sessions.get(ref.model, OrderedDict()).get(ref.manifest_sha256) if ref else None

    def _load(self, ref: BundleRef | None, problems: dict[int, str]) -> Served | None:
        """Return the session of a bundle, loading it unless it is warm; a refusal is noted, and None is returned."""
        if ref is None:
            return None
        sessions = self._sessions.setdefault(ref.model, OrderedDict())
        warm = sessions.get(ref.manifest_sha256)
        if warm is not None:
            sessions.move_to_end(ref.manifest_sha256)
            return warm
        times, _, text = self._refused.get(ref.manifest_sha256, (0, 0.0, ""))
        if times and not self._may_try(ref):
            problems[ref.version] = text
            return None
        self._asked[ref.manifest_sha256] = self._retries.stamp(ref.model)  # before: who asks meanwhile asks again
        try:
            served = self._open(ref)
        except Interrupted:
            problems[ref.version] = f"version {ref.version} waits: its preflight begins anew after newer rollout rows"
            self._refused[ref.manifest_sha256] = (times, time.monotonic(), text)
            return None
        except Exception as error:  # noqa: BLE001  a bundle can fail in any way; the live version must stay
            kind = "" if isinstance(error, HomeostatError) else f"{type(error).__name__}: "
            problems[ref.version] = f"version {ref.version} is refused: {kind}{error}"
            waits = PREFLIGHT_RETRY_SECONDS if isinstance(error, PreflightFailed) else RETRY_SECONDS
            wait = waits[min(times, len(waits) - 1)]
            self._refused[ref.manifest_sha256] = (times + 1, time.monotonic() + wait, problems[ref.version])
            if problems[ref.version] != text:
                log.error("%s: %s", ref.model, problems[ref.version])
            return None
        self._refused.pop(ref.manifest_sha256, None)
        self._asked.pop(ref.manifest_sha256)
        sessions[ref.manifest_sha256] = served
        return served

    def _open(self, ref: BundleRef) -> Served:
        bundle = open_bundle(ref, self._public_key())
        invariant = self._memory.verified(ref)
        if invariant is None:
            report = preflight(bundle.onnx, bundle.golden, ref.url, interrupted=self._overtaken)
            invariant = report.batch_invariant
            self._memory.add(ref, batch_invariant=invariant)
        metrics = self._metrics.version(ref.model, ref.version)
        return Served.load(bundle, batch_invariant=invariant, metrics=metrics, salt=self._salt)

    def _forget(self, row: Rollout) -> None:
        """Drop the sessions that the row does not name, the least recently used first."""
        sessions = self._sessions.get(row.model, OrderedDict())
        named = {ref.manifest_sha256 for ref in (row.champion, row.previous, row.challenger) if ref}
        named |= {served.ref.manifest_sha256 for served in self.models[row.model].loaded()}
        for digest in [digest for digest in sessions if digest not in named]:
            if len(sessions) <= KEPT_SESSIONS:
                break
            self._metrics.retire(row.model, sessions.pop(digest).ref.version)
