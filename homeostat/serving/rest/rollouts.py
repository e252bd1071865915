"""The operator API over REST: /v1/rollouts, what `homeostat rollout` does, for keys with the scope `operate`."""

from __future__ import annotations

from typing import Any, NamedTuple

from homeostat.errors import RequestInvalid
from homeostat.serving.operators import ORDERS, Operators, read_order
from homeostat.serving.rest import inference

PREFIX = "/v1/rollouts"
MAX_ORDER = 16 * 1024


class Route(NamedTuple):
    """What a path means; without an action it is read, without a model it is all of them."""

    model: str = ""
    action: str = ""


def ours(path: str) -> bool:
    """Return whether a path is under the prefix."""
    return path.startswith(PREFIX) and path[len(PREFIX) : len(PREFIX) + 1] in ("", "/")


def route(path: str) -> Route | None:
    """Return what a path under the prefix means, or None."""
    match path.removeprefix(PREFIX).rstrip("/").split("/"):
        case [""]:
            return Route()
        case ["", model] if model:
            return Route(model)
        case ["", model, action] if model and action in ORDERS:
            return Route(model, action)
    return None


async def answer(operators: Operators, found: Route, body: bytes) -> dict[str, Any]:
    """Return the body of the answer; raises RequestInvalid."""
    if not found.model:
        return await operators.describe_all()
    if not found.action:
        return await operators.describe(found.model)
    if len(body) > MAX_ORDER:
        raise RequestInvalid(f"body: more than {MAX_ORDER} bytes; a reason, a version and a generation are less", 413)
    order = read_order(found.action, inference.parse_json(body) if body else {})
    return await operators.act(found.model, found.action, order)
