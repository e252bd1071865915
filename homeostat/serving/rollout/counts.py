"""What one trial counts as evidence: each request and label once, and each client that keeps its arm once."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from homeostat.config import GuardConfig
from homeostat.dataset import Array
from homeostat.guards import Evidence, part

REMEMBERED = 50_000
"""Answers of a trial that labels can still be joined to."""
CLIENTS = 20_000
"""Clients told apart for each guard and arm; beyond it a half of them, then a quarter, ... stands for all."""
UNIT = 2.0**64


@dataclass(frozen=True, slots=True)
class Assignment:
    """How a request came to its arm."""

    share: float
    """The candidate's share of traffic then; 0.5 where both arms answered."""
    client: int | None
    """Of a client that keeps its arm; None for a request drawn by itself."""


@dataclass(frozen=True, slots=True)
class _Answered:
    """What a label will be held against: one row of one request."""

    at: Assignment
    candidate: bool
    rows: int
    row: int
    said: float
    other: float | None
    """What the candidate said, where both arms have answered; `said` is the control's then."""


def draw(key: str, salt: str) -> tuple[float, int]:
    """Return a place in [0, 1) and a number, both fixed by key and salt, and unlike for another salt."""
    digest = hashlib.blake2b(key.encode(), digest_size=16, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest[:8]) / UNIT, int.from_bytes(digest[8:])


def is_finite(outputs: Sequence[Array]) -> bool:
    """Return whether no output holds NaN or Inf."""
    return all(values.dtype.kind != "f" or bool(np.isfinite(values).all()) for values in outputs)


def _classes(values: Array) -> Array:
    """Return the class [n] that an output [n] or [n, k] says: of the largest score, or a sigmoid's over a half."""
    flat = values.reshape(len(values), -1)
    return flat.argmax(axis=1) if flat.shape[1] > 1 else (flat[:, 0] >= 0.5).astype(np.int64)


def _said(values: Array, row: int, *, classes: bool) -> float:
    """Return what an output [n] or [n, k] says of a row: its class, or its number."""
    one = values[row : row + 1]
    return float(_classes(one)[0] if classes else one.reshape(-1)[0])


class Counts:
    """Counts into the evidence of one trial; from the event loop, and in a shadow from its lane.

    A client that keeps its arm is one draw of the lot, however many requests it sends: it counts
    once as a trial and once as bad, or one broken client would condemn its arm. Which clients
    count when there are too many says a hash, the same in both arms.
    """

    def __init__(self, evidence: Evidence, guards: GuardConfig, output: str, *, classes: bool) -> None:
        """output: the name of the output that labels are about. classes: whether it says a class, or a number."""
        self.evidence = evidence
        self._guards, self._output, self._classes = guards, output, classes
        self._latency_limits: Mapping[float, float] = {}
        self._residual_limits: Mapping[float, float] = {}
        self._answered: OrderedDict[str, _Answered] = OrderedDict()
        self._clients: dict[str, set[int]] = {}
        """Guard and arm, and the same for bad events -> clients counted."""
        self._every = 1
        self._lock = threading.Lock()

    def learn(self) -> None:
        """Take the control's quantiles of now as limits for the requests that come."""
        self._latency_limits = self.evidence.thresholds(self.evidence.latency)
        self._residual_limits = self.evidence.thresholds(self.evidence.residual)

    def count(self, guard: str, *, candidate: bool, bad: bool, at: Assignment) -> None:
        """Count a request of one arm."""
        counts, trial, bad = self._once(f"{guard} {candidate}", bad, at.client)
        if counts:
            self.evidence.count(guard, candidate=candidate, bad=bad, share=at.share, trial=trial)

    def count_pair(self, guard: str, *, control: bool, candidate: bool, at: Assignment) -> None:
        """Count a request that both arms have answered: whether it was bad in each."""
        counts, trial, first = self._once(guard, control != candidate, at.client)
        if counts:
            self.evidence.count_pair(guard, control=control and first, candidate=candidate and first, trial=trial)

    def count_latency(self, seconds: float, *, candidate: bool, at: Assignment) -> None:
        """Count a request as slow or not, against each quantile of the control that was known before it."""
        allowed = self._guards.latency_ratio if candidate else 1.0
        slow = seconds > self._guards.latency_floor_ms / 1000
        for q, limit in self._latency_limits.items():
            self.count(part("latency", q), candidate=candidate, bad=slow and seconds / allowed > limit, at=at)

    def differ(self, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> bool:
        """Return whether two answers say something else: another class, or a number beyond the tolerance."""
        a, b = ours[self._output], theirs[self._output]
        if a.shape != b.shape:
            return True
        if self._classes:
            return bool((_classes(a) != _classes(b)).any())
        tolerance = self._guards.disagreement_tolerance
        return bool((np.abs(a - b) > tolerance * (1 + np.abs(a))).any())

    def remember(
        self,
        request_id: str,
        at: Assignment,
        outputs: Mapping[str, Array],
        *,
        candidate: bool,
        other: Mapping[str, Array] | None = None,
    ) -> None:
        """Keep one row of a request, chosen by its id, for a label that may come: its rows are not independent.

        other: what the candidate answered, where `outputs` are the control's and both have answered.
        """
        values = outputs[self._output]
        row = draw(request_id, "row")[1] % len(values)
        said = _said(values, row, classes=self._classes)
        also = None if other is None else _said(other[self._output], row, classes=self._classes)
        if len(self._answered) >= REMEMBERED:
            self._answered.popitem(last=False)
        self._answered[request_id] = _Answered(at, candidate, len(values), row, said, also)

    def label(self, request_id: str, labels: Sequence[float]) -> None:
        """Hold the first labels of an answered request against what was said; corrections are for monitoring."""
        answered = self._answered.pop(request_id, None)
        if answered is None:
            return
        if len(labels) != answered.rows:
            self.evidence.note(source_errors=1)
            return
        label, at = labels[answered.row], answered.at
        if not self._classes:
            self._count_residuals(answered, label)
        elif answered.other is not None:
            self.count_pair("labels", control=answered.said != label, candidate=answered.other != label, at=at)
        else:
            self.count("labels", candidate=answered.candidate, bad=answered.said != label, at=at)

    def _count_residuals(self, answered: _Answered, label: float) -> None:
        said, at, ratio = abs(answered.said - label), answered.at, self._guards.label_ratio
        if not answered.candidate:
            self.evidence.observe(self.evidence.residual, said)
        for q, limit in self._residual_limits.items():
            name = part("labels", q)
            if answered.other is not None:
                self.count(name, candidate=False, bad=said > limit, at=at)
                self.count(name, candidate=True, bad=abs(answered.other - label) / ratio > limit, at=at)
            else:
                bad = said / (ratio if answered.candidate else 1.0) > limit
                self.count(name, candidate=answered.candidate, bad=bad, at=at)

    def _once(self, name: str, bad: bool, client: int | None) -> tuple[bool, bool, bool]:
        """Return whether a request counts, whether as a trial, and whether as bad."""
        if client is None:
            return True, True, bad
        with self._lock:
            if client % self._every:
                return False, False, False
            trial = self._is_new(name, client)
            first = bad and self._is_new(f"{name} bad", client)
            return trial or first, trial, first

    def _is_new(self, name: str, client: int) -> bool:
        known = self._clients.setdefault(name, set())
        if client in known:
            return False
        known.add(client)
        if len(known) > CLIENTS:
            self._every *= 2
            for place, clients in self._clients.items():
                self._clients[place] = {one for one in clients if one % self._every == 0}
        return True
