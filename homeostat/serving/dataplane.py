"""The transport-neutral data plane: models, versions, tensors and errors; protocols only translate."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from homeostat.client import client_id, current
from homeostat.dataset import Array
from homeostat.errors import RequestInvalid, ServingError
from homeostat.masking import parse_slices
from homeostat.serving.batching import Batcher
from homeostat.serving.blackbox import Guard
from homeostat.serving.board import Board
from homeostat.serving.capture.recorder import Recorder
from homeostat.serving.capture.writer import LABELS, REQUEST, frame
from homeostat.serving.exchange import Exchange
from homeostat.serving.exchange import current as current_exchange
from homeostat.serving.explainer import Explainer, Options
from homeostat.serving.metrics import Arm, Metrics, Protocol
from homeostat.serving.repository import MODEL_NAME, ModelState, Repository
from homeostat.serving.rollout.trial import Trial
from homeostat.serving.served import Computed, Served
from homeostat.tensors import pack

MAX_ID = 128
MAX_ENTITY = 256
MAX_LABELS = 65_536
"""Labels in one feedback request."""
MAX_ITEMS = 10_000


class ModelNotFound(RequestInvalid):
    """No such model, or the version is not one that answers."""

    def __init__(self, name: str, version: str | None, known: Sequence[str]) -> None:
        what = f"model {name!r:.80}" if version is None else f"version {version!r:.40} of model {name!r:.80}"
        super().__init__(f"{what} does not answer here; there is: {', '.join(known) or 'none'}", status=404)


class NotServing(RequestInvalid):
    """The model is known, but cannot answer now."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=503)


class DeadlineExceeded(RequestInvalid):
    """The version did not answer in time."""

    def __init__(self, served: Served) -> None:
        ref = served.ref
        super().__init__(
            f"version {ref.version} of model {ref.model!r} did not answer within {served.deadline_seconds:g} s "
            "(serve.deadline_seconds); send fewer rows in one request, or fewer requests at once",
            status=504,
        )


class InferenceFailed(ServingError):
    """The graph failed, which its version has counted; the cause is what it raised."""


@dataclass(slots=True)
class InferRequest:
    """One inference request, whatever protocol it came by."""

    tensors: dict[str, Array]
    id: str = ""
    """The client's id, or empty: one is made then."""
    entity_id: str | None = None
    protocol: Protocol = "v2-rest"
    arm: Arm = "champion"
    """What the version is asked as; a rollout says otherwise."""
    started: float = 0.0
    """When the whole request had come, as time.perf_counter says it; 0 when nobody noted it."""
    slices: str = ""
    """`name=value,name=value`: what figures of this request are broken down by."""
    pinned: bool = False
    """The client asked for this very version: no rollout takes it elsewhere."""


@dataclass(slots=True)
class InferResponse:
    """What is answered: the version that did, and its outputs [n, ...] by name."""

    id: str
    served: Served
    outputs: dict[str, Array]
    outside: int = 0
    """Values of the request that are out of the contract's range."""


def check_id(value: object, where: str) -> str:
    """Return an id that may stand in a header and a database; raises RequestInvalid otherwise."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID or not (value.isascii() and value.isprintable()):
        raise RequestInvalid(f"{where}: {value!r:.60} must be 1 to {MAX_ID} printable ASCII characters")
    return value


def check_entity(value: object, where: str) -> str:
    """Return the name of an entity whose rows belong together; raises RequestInvalid when it is no short text."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ENTITY or not value.isprintable():
        raise RequestInvalid(f"{where}: {value!r:.60} must be 1 to {MAX_ENTITY} printable characters")
    return value


def check_slices(value: object, where: str) -> str:
    """Return the slices of a request as text; raises RequestInvalid when they cannot be read."""
    if not isinstance(value, str):
        raise RequestInvalid(f"{where}: {value!r:.60} must be text")
    try:
        parse_slices(value)
    except ValueError as error:
        raise RequestInvalid(f"{where}: {value!r:.60} {error}") from error
    return value


def make_id() -> str:
    """Return 32 hex digits: the time, so that SQLite appends, then 64 random bits, so that none is guessed."""
    return f"{time.time_ns():016x}{os.urandom(8).hex()}"


def _labels(values: object, where: str) -> list[float]:
    if not isinstance(values, list) or not values:
        raise RequestInvalid(f"{where}.labels: a list with one number per row of the request is needed")
    for place, value in enumerate(values):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise RequestInvalid(f"{where}.labels[{place}]: {value!r:.40} is not a finite number")
    return values


def _model(item: dict[str, Any], where: str) -> str:
    """Return the model that an item names, empty where it names none."""
    if "model" not in item:
        return ""
    model = item["model"]
    if not isinstance(model, str) or not MODEL_NAME.fullmatch(model):
        raise RequestInvalid(f"{where}.model: {model!r:.80} is no model name")
    return model


def _note(
    exchange: Exchange, served: Served, request: InferRequest, request_id: str, times: tuple[float, float]
) -> None:
    """Note what answered a request, and when its inference began and ended."""
    exchange.model, exchange.version = served.ref.model, str(served.ref.version)
    exchange.arm, exchange.protocol, exchange.request_id = request.arm, request.protocol, request_id
    exchange.decode_start, (exchange.infer_start, exchange.infer_end) = request.started, times


class DataPlane:
    """Answers for the models of a repository, and records what it answered."""

    def __init__(
        self, repository: Repository, recorder: Recorder, metrics: Metrics, guard: Guard | None = None
    ) -> None:
        self.repository, self.recorder, self.metrics = repository, recorder, metrics
        self.guard = guard or Guard()
        self.board: Board | None = None
        """Where there are other workers."""
        self.trials: Mapping[str, Trial] = {}
        """The rollouts in progress, by model; replaced whole."""
        self.explainer = Explainer(self.guard)
        self._batcher = Batcher(self.guard)

    def close(self) -> None:
        """End the threads; calls in them are finished first."""
        self.explainer.close()
        self._batcher.close()

    def state(self, name: str) -> ModelState:
        """Return what is loaded of a model; raises ModelNotFound, or Forbidden when the client may not use it."""
        client = current.get()
        if client is not None:
            client.require_model(name)
        state = self.repository.models.get(name)
        if state is None:
            raise ModelNotFound(name, None, list(self.repository.models))
        return state

    def find(self, name: str, version: str | None = None) -> Served:
        """Return the live version, or the one asked for if it is live or the previous one.

        Raises ModelNotFound, NotServing when the model has no live version, or Forbidden when the
        client may not use it.
        """
        state = self.state(name)
        live = state.live
        if live is None:
            raise NotServing(
                f"model {name!r} has no live version yet: {state.problem or 'none is promoted, or it is loading'}"
            )
        served = live
        if version is not None:
            found = [one for one in state.answering() if str(one.ref.version) == version]
            if not found:
                raise ModelNotFound(name, version, [str(one.ref.version) for one in state.answering()])
            served = found[0]
        exchange = current_exchange.get()
        if exchange is not None:
            exchange.model, exchange.version = name, str(served.ref.version)
        return served

    @property
    def queued(self) -> int:
        """Requests that wait for the inference thread."""
        return self._batcher.queued

    async def answer(
        self, protocol: Protocol, find: Callable[[], Served], decode: Callable[[Served], InferRequest]
    ) -> InferResponse:
        """Find the version, read the request for it and infer; a refusal is counted once, wherever it comes from.

        Raises RequestInvalid.
        """
        started = time.perf_counter()
        try:
            served = find()
        except RequestInvalid as error:
            self.metrics.refuse(error.status)
            raise
        try:
            request = decode(served)
        except RequestInvalid as error:
            served.metrics.refused("champion", protocol, error.status)
            raise
        request.protocol, request.started = protocol, started
        return await self.infer(served, request)

    def infer(self, served: Served, request: InferRequest) -> Awaitable[InferResponse]:
        """Answer with a version, or with the arm of its rollout that the request falls to.

        Raises RequestInvalid or InferenceFailed.
        """
        trial = self.trials.get(served.ref.model) if self.trials else None
        if trial is None or request.pinned:
            return self.infer_on(served, request)
        request.id = request.id or make_id()  # it may decide the arm
        return trial.answer(request)

    async def infer_on(self, served: Served, request: InferRequest) -> InferResponse:
        """Check the tensors, run the graph, count and record; raises RequestInvalid or InferenceFailed."""
        start = time.perf_counter()
        try:
            rows, outside = served.check(request.tensors)
            packed = pack(request.tensors)
            if rows <= served.inline_rows:
                slot = self.guard.enter(served.ref.manifest_sha256, packed)
                try:
                    answers = served.session.run(request.tensors)
                finally:
                    self.guard.leave(slot)
            else:
                answers = await self._in_thread(served, request.tensors, rows, packed)
        except RequestInvalid as error:
            served.metrics.refused(request.arm, request.protocol, error.status)
            raise
        except Exception as error:
            served.metrics.refused(request.arm, request.protocol, 500)
            ref = served.ref
            raise InferenceFailed(f"version {ref.version} of {ref.model!r}: {type(error).__name__}") from error
        return self.finish(served, request, Computed(start, rows, outside, packed, answers))

    def finish(self, served: Served, request: InferRequest, computed: Computed) -> InferResponse:
        """Record and count what a version has computed, and return the answer."""
        start, rows, outside, packed, answers = computed
        end = time.perf_counter()
        seconds = end - start
        outputs = dict(zip(served.session.output_names, answers, strict=True))
        request_id = request.id or make_id()
        if served.capture:
            self._record(served, request, request_id, rows, packed, outputs, seconds)
        exchange = current_exchange.get()
        if exchange is not None and request.arm != "shadow":
            _note(exchange, served, request, request_id, (start, end))
        whole = end - (request.started or start)
        served.metrics.answered(request.arm, request.protocol, whole, seconds, rows, outside)
        return InferResponse(request_id, served, outputs, outside)

    async def explain(self, served: Served, tensors: Mapping[str, Array], options: Options) -> bytes:
        """Return why a version answers as it does, as JSON; raises RequestInvalid. Nothing is captured or judged."""
        rows, _ = served.check(tensors)
        return await self.explainer.explain(served, tensors, rows, pack(tensors), options)

    async def _in_thread(self, served: Served, tensors: Mapping[str, Array], rows: int, packed: bytes) -> list[Array]:
        try:
            async with asyncio.timeout(served.deadline_seconds):
                return await self._batcher.run(served, tensors, rows, packed)
        except TimeoutError as error:
            raise DeadlineExceeded(served) from error

    def _record(
        self,
        served: Served,
        request: InferRequest,
        request_id: str,
        rows: int,
        inputs: bytes,
        outputs: dict[str, Array],
        seconds: float,
    ) -> None:
        ref, mask = served.ref, served.mask
        entity, slices, masking = request.entity_id, None, None
        if mask is not None:
            kept, entity, slices = mask.apply(request.tensors, request.entity_id, request.slices)
            inputs, masking = pack(kept), mask.text
        milliseconds = seconds * 1000
        about = (request_id, time.time(), ref.model, ref.version, ref.sha256, entity, rows, milliseconds)
        text = orjson.dumps((*about, request.arm, client_id(), slices, masking))
        self.recorder.put(frame(REQUEST, text, inputs, pack(outputs)))

    def feedback(self, items: Sequence[Any]) -> dict[str, Any]:
        """Take labels, each item {"id", "labels"} and perhaps "model"; the last ones of an id count.

        Returns what can be said before they are written: how many items were taken, and which of the
        models they name are not known here. Raises RequestInvalid, or Forbidden for a model that the
        client may not use, before anything is taken; NotServing when the buffer is full.
        """
        if not 0 < len(items) <= MAX_ITEMS:
            raise RequestInvalid(f"items: {len(items)} of them; 1 to {MAX_ITEMS} in one request")
        now, checked, count = time.time(), [], 0
        for place, item in enumerate(items):
            where = f"items[{place}]"
            if not isinstance(item, dict) or not {"id", "labels"} <= item.keys() <= {"id", "labels", "model"}:
                raise RequestInvalid(f'{where}: must be {{"id": "...", "labels": [...]}}, and "model" if you like')
            labels = _labels(item["labels"], where)
            count += len(labels)
            if count > MAX_LABELS:
                raise RequestInvalid(f"{where}: more than {MAX_LABELS} labels in one request; send several")
            checked.append((check_id(item["id"], f"{where}.id"), _model(item, where), now, labels))
        client = current.get()
        if client is not None:
            for model in {model for _, model, *_ in checked}:
                client.require_model(model)  # without a name labels would reach every model
        if not self.recorder.put(frame(LABELS, orjson.dumps(checked))):
            raise NotServing("the capture buffer is full, nothing was recorded; send the labels again in a second")
        for request_id, model, _, labels in checked if self.trials else ():
            for name, trial in self.trials.items():
                if model in ("", name):
                    trial.counts.label(request_id, labels)
        unknown = sorted({model for _, model, *_ in checked if model} - self.repository.models.keys())
        return {"accepted": len(checked)} | ({"unknown_models": unknown} if unknown else {})
