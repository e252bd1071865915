"""Explanations of answers: computed beside the hot path by one patient thread, and remembered."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import Annotated, Any

import numpy as np
import orjson
from onnxruntime import RunOptions
from pydantic import Field, ValidationError

from homeostat.contract import WHOLE, Strict
from homeostat.dataset import Array
from homeostat.errors import Forbidden, RequestInvalid
from homeostat.explanation import Attribution, OutOfTime, Players, attribute
from homeostat.serving.batching import Departed, departed
from homeostat.serving.blackbox import Guard
from homeostat.serving.served import Served
from homeostat.serving.session import make_run_options

MAX_ROWS = 16
"""Rows in one request."""
MAX_WAITING = 8
"""Requests that wait for the thread, or are in it; more are answered 503."""
SECONDS = 10.0
"""For one request; permutations that do not fit are left out."""
REMEMBERED = 64
"""Answers that are kept, of at most so many bytes each:"""
REMEMBERED_BYTES = 256 * 1024
NICENESS = 10
"""Of the thread: the requests that are answered come first."""

INFERENCE = frozenset({"entity_id", "slices", "binary_data_output"})
"""Parameters of an inference request that change no explanation."""


class Options(Strict):
    """What is explained, and how exactly."""

    output: str = Field(default="", max_length=256)
    """Empty: the first."""
    place: Annotated[int, Field(ge=0, strict=True), WHOLE] | None = Field(default=None, alias="class")
    """Which number of the output; None: the largest of each row, or the only one."""
    permutations: Annotated[int, Field(ge=2, le=512, multiple_of=2, strict=True), WHOLE] = 32
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True), WHOLE] = 0


def read_options(value: Mapping[str, Any]) -> Options:
    """Return the options among the parameters of an inference request; raises RequestInvalid that names the key."""
    try:
        return Options.model_validate({key: value[key] for key in value.keys() - INFERENCE})
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        known = "output, class, permutations, seed"
        raise RequestInvalid(f"parameters: {where:.80}: {problem['msg']}; known: {known}") from error


def _never() -> bool:
    return False


def _be_patient() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class Explainer:
    """One thread that explains, and the answers that it gave."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.counts = {"computed": 0, "remembered": 0, "refused": 0}
        """Requests by what became of them."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain", initializer=_be_patient)
        self._waiting = 0
        self._remembered: OrderedDict[bytes, bytes] = OrderedDict()
        self._closed = threading.Event()
        self._running: RunOptions | None = None

    def close(self) -> None:
        """End the thread; what it computes is given up."""
        self._closed.set()
        if self._running is not None:
            self._running.terminate = True
        self._thread.shutdown(cancel_futures=True)

    async def explain(
        self, served: Served, tensors: Mapping[str, Array], rows: int, packed: bytes, options: Options
    ) -> bytes:
        """Return the explanation of checked tensors, whose packed form is given, as JSON; raises RequestInvalid.

        A client that leaves is explained no further: Departed.
        """
        try:
            background, output, size = self._check(served, rows, options)
        except RequestInvalid:
            self.counts["refused"] += 1
            raise
        what = f"{served.ref.manifest_sha256}{options.model_dump_json()}".encode()
        key = blake2b(packed, digest_size=32, key=blake2b(what, digest_size=32).digest()).digest()
        found = self._remembered.get(key)
        if found is not None:
            self._remembered.move_to_end(key)
            self.counts["remembered"] += 1
            return found
        if self._waiting >= MAX_WAITING:
            self.counts["refused"] += 1
            raise RequestInvalid(f"{self._waiting} explanations are waited for already; try again later", status=503)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            gone = departed.get(_never)
            answer = await loop.run_in_executor(
                self._thread, self._noted, served, background, tensors, packed, gone, output, size, options
            )
        except Departed:
            self.counts["refused"] += 1
            raise
        except OutOfTime as error:
            self.counts["refused"] += 1
            raise RequestInvalid(
                f"{rows} rows are not explained within {SECONDS:g} s; send fewer rows, or ask when less is going on",
                status=503,
            ) from error
        finally:
            self._waiting -= 1
        self.counts["computed"] += 1
        if len(answer) <= REMEMBERED_BYTES:
            self._remembered[key] = answer
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return answer

    def _check(self, served: Served, rows: int, options: Options) -> tuple[Mapping[str, Array], int, int]:
        """Return the rows to compare with, the place of the output among the graph's, and its numbers a row."""
        model = served.ref.model
        if served.background is None:
            raise Forbidden(
                f"explanations of {model!r} are off; set serve.explain = true in its project.toml and deploy it again"
            )
        if rows > MAX_ROWS:
            raise RequestInvalid(f"{rows} rows in one request, at most {MAX_ROWS} are explained; send several")
        names = served.session.output_names
        name = options.output or names[0]
        if name not in names:
            raise RequestInvalid(f"parameters: output: {name!r:.80} is not one of {', '.join(names)}")
        output = served.session.outputs[names.index(name)]
        if len(output.shape) > 1 or -1 in output.shape:
            raise RequestInvalid(
                f"parameters: output: {name!r} has shape [n, {', '.join(map(str, output.shape))}]; an output with one "
                "row of numbers for each row is explained"
            )
        size = output.shape[0] if output.shape else 1
        if options.place is not None and options.place >= size:
            raise RequestInvalid(f"parameters: class: {options.place} is not below {size}, the numbers of {name!r}")
        return served.background, names.index(name), size

    def _noted(
        self,
        served: Served,
        background: Mapping[str, Array],
        tensors: Mapping[str, Array],
        packed: bytes,
        gone: Callable[[], bool],
        *what: Any,
    ) -> bytes:
        """Explain, and note it for just so long: a row that ends the process by itself does so here too.

        One call of a slow graph may take longer than all should: it is ended after twice the time.
        """
        if gone():
            raise Departed
        slot = self._guard.enter(served.ref.manifest_sha256, packed)
        running = self._running = make_run_options()
        timer = threading.Timer(2 * SECONDS, setattr, (running, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return self._compute(served, background, tensors, running, gone, *what)
        except Exception as error:
            if running.terminate:
                raise OutOfTime from error
            raise
        finally:
            timer.cancel()
            self._guard.leave(slot)

    def _compute(
        self,
        served: Served,
        background: Mapping[str, Array],
        tensors: Mapping[str, Array],
        running: RunOptions,
        gone: Callable[[], bool],
        output: int,
        size: int,
        options: Options,
    ) -> bytes:
        started, players = time.monotonic(), Players.of(served.contract.inputs)
        found, places = [], []
        rows = len(next(iter(tensors.values())))
        for number in range(rows):
            row = {name: values[number] for name, values in tensors.items()}
            place = options.place
            if place is None:
                place = _largest(served, running, output, row) if size > 1 else 0
            places.append(place)
            found.append(
                attribute(
                    partial(_evaluate, served, running, output, size, place),
                    row,
                    background,
                    players,
                    permutations=options.permutations,
                    rng=np.random.default_rng((options.seed, number)),
                    in_time=partial(self._in_time, started + SECONDS * (number + 1) / rows, gone),
                )
            )
        return _encode(served, players, served.session.output_names[output], places, found, options)

    def _in_time(self, end: float, gone: Callable[[], bool]) -> bool:
        if gone():
            raise Departed
        return time.monotonic() < end and not self._closed.is_set()


def _largest(served: Served, running: RunOptions, output: int, row: Mapping[str, Array]) -> int:
    answers = served.session.run_until_told({name: values[None] for name, values in row.items()}, running)
    return int(np.argmax(answers[output]))


def _evaluate(
    served: Served, running: RunOptions, output: int, size: int, place: int, inputs: Mapping[str, Array]
) -> Array:
    if served.batch_invariant:
        answers: Array = served.session.run_until_told(inputs, running)[output]
    else:  # each row must be answered as it is alone
        rows = len(next(iter(inputs.values())))
        alone = [{name: values[i : i + 1] for name, values in inputs.items()} for i in range(rows)]
        answers = np.concatenate([served.session.run_until_told(one, running)[output] for one in alone])
    return answers.reshape(-1, size)[:, place].astype(np.float64)


def _encode(
    served: Served, players: Players, output: str, places: list[int], found: list[Attribution], options: Options
) -> bytes:
    background = served.background or {}
    answer = {
        "model_name": served.ref.model,
        "model_version": str(served.ref.version),
        "output": output,
        "columns": players.names,
        "background_rows": len(next(iter(background.values()), ())),
        "seed": options.seed,
        "explanations": [
            {
                "class": place,
                **({"class_name": served.classes[place]} if place < len(served.classes) else {}),
                "prediction": one.prediction,
                "base": one.base,
                "contributions": one.contributions,
                "standard_errors": one.errors,
                "permutations": one.permutations,
            }
            for place, one in zip(places, found, strict=True)
        ],
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
