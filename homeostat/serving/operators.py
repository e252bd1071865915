"""Operators: who is one, and what they ask of rollouts, done out of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from homeostat.client import Client, current
from homeostat.contract import WHOLE, Strict
from homeostat.errors import (
    BundleInvalid,
    ConfigError,
    ControlError,
    ControlUnavailable,
    Forbidden,
    HomeostatError,
    NotFound,
    RequestInvalid,
)

if TYPE_CHECKING:
    from homeostat.control.store import ControlStore

THREADS = 2
"""More wait: a control store that hangs must not fill the threads that others need."""
STATUS: tuple[tuple[type[HomeostatError], int], ...] = (
    (NotFound, 404),
    (ControlError, 409),
    (BundleInvalid, 409),
    (ControlUnavailable, 503),
    (ConfigError, 500),
)
"""HTTP status of an error; the first that fits."""

T = TypeVar("T")


def require_operator(model: str = "") -> Client:
    """Return the client that is being answered; raises Forbidden unless it proves to be an operator, of this model."""
    client = current.get()
    if client is None:
        raise Forbidden(
            "only an operator may do that, and this server asks for no key, so it cannot tell who is one: "
            "`homeostat key create NAME --scope operate` (then every request needs a key), or use the commands of "
            "homeostat on its machine"
        )
    client.require_scope("operate")
    if model:
        client.require_model(model)
    return client


Number = Annotated[int, Field(ge=1, strict=True), WHOLE]


class Order(Strict):
    """The body of an action."""

    reason: str = Field(default="asked for by hand", min_length=1, max_length=500)
    generation: Number | None = None
    """The only one of the rollout row at which this may be done."""


class VersionOrder(Order):
    """The body of an action that may name a version."""

    version: Number | None = None


class ReleaseOrder(VersionOrder):
    """The body of an action that must name a version; its generation does not matter."""

    version: Number


ORDERS: dict[str, type[Order]] = {
    "start": VersionOrder,
    **dict.fromkeys(("pause", "resume", "promote", "abort", "rollback"), Order),
    "release": ReleaseOrder,
}
"""Action -> what its body may hold."""


def read_order(action: str, value: dict[str, Any]) -> Order:
    """Return the body of an action; raises RequestInvalid that names the key."""
    try:
        return ORDERS[action].model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        known = ", ".join(ORDERS[action].model_fields)
        where = ".".join(str(part) for part in problem["loc"])
        raise RequestInvalid(f"body: {where:.80}: {problem['msg']}; {action} knows {known}") from error


class Operators:
    """What operators ask of rollouts: the functions behind the commands of homeostat, in threads of their own."""

    def __init__(self, connect: Callable[[], ControlStore], home: Path, changed: Callable[[], None]) -> None:
        """connect: called in a thread when first needed, and again after it failed. changed: called after a change."""
        self._connect, self._home, self._changed = connect, home, changed
        self._store: ControlStore | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="operators")

    def close(self) -> None:
        """End the threads; what has begun is finished."""
        self._threads.shutdown(cancel_futures=True)

    async def describe_all(self) -> dict[str, Any]:
        """Return every rollout that the client may see, and what is in quarantine; raises RequestInvalid."""
        client = require_operator()

        def look(store: ControlStore) -> dict[str, Any]:
            from homeostat.serving.rollout.actions import describe

            return {
                "models": {row.model: describe(row, self._home) for row in store.rows() if client.may_use(row.model)},
                "quarantine": [one for one in store.quarantined() if client.may_use(one["model"])],
            }

        return await self._do(look)

    async def describe(self, model: str) -> dict[str, Any]:
        """Return how far the rollout of a model is, and what its guards say; raises RequestInvalid."""
        require_operator(model)

        def look(store: ControlStore) -> dict[str, Any]:
            from homeostat.serving.rollout.actions import describe

            return describe(store.row(model), self._home)

        return await self._do(look)

    async def act(self, model: str, action: str, order: Order) -> dict[str, Any]:
        """Do one of ORDERS, in the name of the client's key, and return the row after it; raises RequestInvalid."""
        client = require_operator(model)
        name = client.id if client.id.startswith("jwt:") else f"key:{client.id}"

        def change(store: ControlStore) -> dict[str, Any]:
            from homeostat.control.progress import Why
            from homeostat.serving.rollout.actions import act, summarize

            why, version = Why(name, order.reason), getattr(order, "version", None)
            row = act(store, self._home, model, action, why, version=version, generation=order.generation)
            self._changed()
            return summarize(row)

        return await self._do(change)

    async def _do(self, work: Callable[[ControlStore], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._try, work)

    def _try(self, work: Callable[[ControlStore], T]) -> T:
        try:
            if self._store is None:
                self._store = self._connect()
            return work(self._store)
        except HomeostatError as error:
            if error.transient:
                self._store = None  # connect anew: it may be another database by then
            for kind, status in STATUS:
                if isinstance(error, kind):
                    raise RequestInvalid(str(error), status=status) from error
            raise
