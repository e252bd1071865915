"""One version on trial in this process: which arm a request takes, and what the client gets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnxruntime import RunOptions

from homeostat.dataset import Array
from homeostat.errors import RequestInvalid
from homeostat.guards import PAIRED, Evidence
from homeostat.records import Rollout
from homeostat.serving.batching import Batcher, Departed
from homeostat.serving.rollout.counts import Assignment, Counts, draw, is_finite
from homeostat.serving.rollout.lane import Lane
from homeostat.serving.served import Computed, Served
from homeostat.serving.session import make_run_options
from homeostat.tensors import pack

if TYPE_CHECKING:
    from homeostat.serving.dataplane import DataPlane, InferRequest, InferResponse

log = logging.getLogger(__name__)

LANE_SIZE = 64
LOGGED_SECONDS = 1.0
"""At most so often a failure of the version on trial is logged."""


class Unusable(Exception):
    """An answer of NaN or Inf."""


def unlike(control: Served, candidate: Served) -> str:
    """Return why clients of the control could not read what the candidate answers; empty when they can."""
    if control.task != candidate.task:
        return f"it does {candidate.task}, and the version beside it {control.task}"
    ours, theirs = (
        {output.name: (output.dtype.name, list(output.shape)) for output in served.session.outputs}
        for served in (control, candidate)
    )
    same = ours.keys() == theirs.keys() and all(
        ours[name][0] == theirs[name][0] and _may_agree(ours[name][1], theirs[name][1]) for name in ours
    )
    return "" if same else f"its outputs are {theirs}, and clients know {ours}"


def _may_agree(ours: Sequence[int], theirs: Sequence[int]) -> bool:
    return len(ours) == len(theirs) and all(
        -1 in pair or len(set(pair)) == 1 for pair in zip(ours, theirs, strict=True)
    )


class Trial:
    """A candidate beside its control. `share` follows the rollout row; `out` takes the candidate out at once.

    In mode `shadow` the control answers, and the candidate is run on the same rows in a lane of
    its own. In `canary` and `bake` the candidate answers its share; when it raises, takes too
    long, or says NaN, the control answers instead, and the client sees nothing of it.
    """

    def __init__(self, row: Rollout, control: Served, candidate: Served, evidence: Evidence, plane: DataPlane) -> None:
        self.row, self.control, self.candidate, self.evidence = row, control, candidate, evidence
        self.config = candidate.rollout
        self.out = unlike(control, candidate)
        """Why the candidate is out; empty while it is on trial."""
        self.share = row.weight
        self.lane = Lane(f"{row.mode} v{candidate.ref.version}", LANE_SIZE)
        self._batcher = Batcher(plane.guard, f"{row.mode} v{candidate.ref.version} batches")
        self._shadowing: RunOptions | None = None
        """Of what the lane computes now."""
        self.counts = Counts(
            evidence,
            self.config.guards,
            control.session.output_names[0],
            classes=candidate.task == "classification",
        )
        self._plane = plane
        self._salt = candidate.ref.manifest_sha256
        self._sticky = self.config.sticky == "entity"
        self._late = 0
        self._logged = 0.0

    def move(self, row: Rollout) -> None:
        """Follow the row to another step of the same mode."""
        if row.weight != self.row.weight:
            self.evidence.requests = 0
        self.row, self.share = row, row.weight

    def learn(self) -> None:
        """Take the control's quantiles of now as limits for the requests that come, and notice a call that hangs."""
        self.counts.learn()
        options, busy = self._shadowing, self.lane.busy_seconds()
        if options is not None and busy > self.candidate.deadline_seconds:
            options.terminate = True
        late = int(busy * 1000 / self.config.guards.timeout_ms)
        if self.row.mode == "shadow":  # in a canary the request itself notices
            for _ in range(late - self._late):
                self.evidence.count_pair("errors", control=False, candidate=True)
        self._late = late

    def close(self) -> None:
        """End the threads; what they compute may still end."""
        self.lane.close()
        self._batcher.close(wait=False)

    async def answer(self, request: InferRequest) -> InferResponse:
        """Answer a request, which has an id, by the arm it belongs to; raises what the control raises."""
        client = request.entity_id if self._sticky else None
        place, number = draw(client or request.id, self._salt)
        key = None if client is None else number
        if self.row.mode == "shadow":
            return await self._shadowed(request, Assignment(PAIRED, key))
        at = Assignment(self.share, key)
        if place < at.share and not self.out:
            response = await self._ask_candidate(request, at)
            return response or await self._plane.infer_on(self.control, request)
        return await self._ask_control(request, at)

    async def _ask_candidate(self, request: InferRequest, at: Assignment) -> InferResponse | None:
        start = time.perf_counter()
        served, refused, failed, outside, response = self.candidate, False, False, 0, None
        request.arm = "canary" if self.row.mode == "canary" else "champion"
        try:
            rows, outside = served.check(request.tensors)
            packed = pack(request.tensors)
            answers = await self._run(request.tensors, rows, packed)
            if not is_finite(answers):
                raise Unusable("the answer holds NaN or Inf")
            response = self._plane.finish(served, request, Computed(start, rows, outside, packed, answers))
        except Departed as error:  # it says nothing about the version
            served.metrics.refused(request.arm, request.protocol, error.status)
            raise
        except RequestInvalid as error:
            refused, failed = error.status < 500, error.status >= 500
            served.metrics.refused(request.arm, request.protocol, error.status)
        except Exception as error:  # noqa: BLE001  whatever it is, the control answers instead
            failed = True
            served.metrics.refused(request.arm, request.protocol, 500)
            self._log(error)
        request.arm = "champion"
        self.evidence.note(requests=1)
        self.counts.count("contract", candidate=True, bad=refused or outside > 0, at=at)
        if not refused:
            self.counts.count("errors", candidate=True, bad=failed, at=at)
            self.counts.count_latency(time.perf_counter() - start, candidate=True, at=at)
        if response is not None:
            self.counts.remember(request.id, at, response.outputs, candidate=True)
        return response

    def _compute_inline(self, tensors: Mapping[str, Array], packed: bytes) -> list[Array]:
        guard = self._plane.guard
        slot = guard.enter(self.candidate.ref.manifest_sha256, packed)
        try:
            return self.candidate.session.run(tensors)
        finally:
            guard.leave(slot)

    def _compute_in_lane(self, tensors: Mapping[str, Array]) -> list[Array]:
        guard = self._plane.guard
        slot = guard.enter(self.candidate.ref.manifest_sha256, pack(tensors))
        self._shadowing = options = make_run_options()
        try:
            return self.candidate.session.run_until_told(tensors, options)
        finally:
            self._shadowing = None
            guard.leave(slot)

    async def _run(self, tensors: Mapping[str, Array], rows: int, packed: bytes) -> list[Array]:
        if rows <= self.candidate.inline_rows:
            return self._compute_inline(tensors, packed)
        async with asyncio.timeout(self.config.guards.timeout_ms / 1000):
            return await self._batcher.run(self.candidate, tensors, rows, packed)

    async def _ask_control(self, request: InferRequest, at: Assignment) -> InferResponse:
        start = time.perf_counter()
        try:
            response = await self._plane.infer_on(self.control, request)
        except Departed:
            raise
        except Exception as error:
            refused = isinstance(error, RequestInvalid) and error.status < 500
            self.counts.count("contract", candidate=False, bad=refused, at=at)
            if not refused:
                self.counts.count("errors", candidate=False, bad=True, at=at)
            raise
        seconds = time.perf_counter() - start
        self.counts.count("contract", candidate=False, bad=response.outside > 0, at=at)
        bad = not is_finite(list(response.outputs.values()))
        self.counts.count("errors", candidate=False, bad=bad, at=at)
        self.counts.count_latency(seconds, candidate=False, at=at)
        self.evidence.observe(self.evidence.latency, seconds)
        self.counts.remember(request.id, at, response.outputs, candidate=False)
        return response

    async def _shadowed(self, request: InferRequest, at: Assignment) -> InferResponse:
        start = time.perf_counter()
        try:
            response = await self._plane.infer_on(self.control, request)
        except Departed:
            raise
        except Exception as error:
            refused = isinstance(error, RequestInvalid) and error.status < 500
            if not self.out:
                self.lane.submit(self._compare, request, None, refused, 0.0, at)
            raise
        if not self.out:
            self.lane.submit(self._compare, request, response, False, time.perf_counter() - start, at)
        return response

    def _compare(
        self, request: InferRequest, response: InferResponse | None, refused: bool, seconds: float, at: Assignment
    ) -> None:
        """Run the candidate on what the control has answered; in the lane, so whatever it does, nobody waits."""
        if self.out:
            return
        counts, evidence, served = self.counts, self.evidence, self.candidate
        # the thread's own processor time: the wait for the interpreter is not the model's fault
        start, taken = time.thread_time(), 0.0
        also_refused = failed = False
        outside, answers = 0, None
        try:
            rows, outside = served.check(request.tensors)
            answers = self._compute_in_lane(request.tensors)
            failed = not is_finite(answers)
            taken = time.thread_time() - start
            served.metrics.answered("shadow", request.protocol, taken, taken, rows, outside)
        except RequestInvalid as error:
            also_refused = True
            served.metrics.refused("shadow", request.protocol, error.status)
        except Exception as error:  # noqa: BLE001  it is evidence
            failed = True
            served.metrics.refused("shadow", request.protocol, 500)
            self._log(error)
        evidence.note(requests=1)
        was_outside = refused or (response is not None and response.outside > 0)
        counts.count_pair("contract", control=was_outside, candidate=also_refused or outside > 0, at=at)
        if refused or also_refused:
            return
        bad = response is None or not is_finite(list(response.outputs.values()))
        counts.count_pair("errors", control=bad, candidate=failed, at=at)
        if response is None or answers is None or bad or failed:
            return
        # each arm by itself, not only where they differ: its own rate is what 1 - q is the limit of
        counts.count_latency(seconds, candidate=False, at=at)
        counts.count_latency(taken, candidate=True, at=at)
        evidence.observe(evidence.latency, seconds)
        outputs = dict(zip(served.session.output_names, answers, strict=True))
        counts.count("disagreement", candidate=True, bad=counts.differ(response.outputs, outputs), at=at)
        counts.remember(request.id, at, response.outputs, candidate=False, other=outputs)

    def _log(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._logged > LOGGED_SECONDS:
            self._logged = now
            ref = self.candidate.ref
            log.warning("%s v%d on trial failed: %s: %s", ref.model, ref.version, type(error).__name__, error)
