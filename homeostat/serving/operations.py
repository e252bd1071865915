"""The model repository extension of the Open Inference Protocol, over REST and gRPC: an index, and load."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from homeostat.client import current
from homeostat.errors import Forbidden, RequestInvalid
from homeostat.serving.dataplane import DataPlane
from homeostat.serving.operators import require_operator
from homeostat.serving.repository import ModelState
from homeostat.serving.versions import statuses

LOAD_SECONDS = 120.0
"""Two preflights, and more."""
LOOK_SECONDS = 0.1


def index(plane: DataPlane, *, ready: bool) -> list[dict[str, str]]:
    """Return name, version, state and reason of each version the client may use; if `ready`, of those that answer."""
    found = []
    client = current.get()
    for name, state in plane.repository.models.items():
        if client is not None and not client.may_use(name):
            continue
        versions = statuses(state)
        for one in versions:
            text = "READY" if one.answers else "UNAVAILABLE"
            found.append({"name": name, "version": str(one.version), "state": text, "reason": one.problem})
        if not versions:
            reason = "loading" if state.expected else "no version is promoted"
            found.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": reason})
    return [one for one in found if one["state"] == "READY" or not ready]


async def load(plane: DataPlane, model: str, *, seconds: float = LOAD_SECONDS) -> None:
    """Read the rollout rows now, try refused bundles of a model again, and return when every worker has its versions.

    Raises Forbidden unless an operator asks, ModelNotFound, and RequestInvalid: 409 when a version
    is refused again or none is promoted, 503 when it takes longer than `seconds` or the control
    store cannot be read.
    """
    require_operator(model)
    try:
        async with asyncio.timeout(seconds):
            await asyncio.wrap_future(plane.repository.refresh())
            state = plane.state(model)
            if state.problems or _missing(plane, state):
                await asyncio.to_thread(plane.repository.retry, model)
                await asyncio.wrap_future(plane.repository.refresh())
                state = plane.state(model)
            _check(plane, state)
            while _missing(plane, state):
                await asyncio.sleep(LOOK_SECONDS)
                state = plane.state(model)
                _check(plane, state)
    except TimeoutError as error:
        raise RequestInvalid(
            f"model {model!r:.80} is still loading after {seconds:g} s; GET /v2/models/{model:.80}/ready says when "
            "it answers",
            status=503,
        ) from error


def _check(plane: DataPlane, state: ModelState) -> None:
    if state.problems:
        raise RequestInvalid(f"model {state.name!r}: {state.problem}", status=409)
    if plane.repository.problem:
        raise RequestInvalid(plane.repository.problem, status=503)
    if not state.expected:
        raise RequestInvalid(
            f"model {state.name!r} has no champion to load; `homeostat promote {state.name} VERSION` makes one",
            status=409,
        )


def _missing(plane: DataPlane, state: ModelState) -> bool:
    """Return whether another worker lacks a version that this one has."""
    board = plane.board
    return board is not None and any(
        board.missing(state.name, served.ref.manifest_sha256, live=served is state.live) for served in state.loaded()
    )


def refuse_unload(model: str) -> NoReturn:
    """Refuse to unload a model: the rollout row alone says what answers, in every worker and server alike."""
    require_operator(model)
    raise Forbidden(
        f"model {model!r:.80}: no server stops to answer for its champion, for what answers follows the rollout row; "
        "`homeostat rollout abort` or `homeostat rollback` takes a version out, in every server and with a reason"
    )
