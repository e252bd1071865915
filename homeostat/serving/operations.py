"""The model repository extension of the Open Inference Protocol, over REST and gRPC: an index, no operations."""

from __future__ import annotations

from typing import NoReturn

from homeostat.client import current
from homeostat.errors import Forbidden
from homeostat.serving.dataplane import DataPlane
from homeostat.serving.versions import statuses


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


def refuse_operation(model: str) -> NoReturn:
    """Refuse to load or unload a model: the rollout row alone says what is loaded."""
    raise Forbidden(
        f"model {model!r:.80}: nobody loads or unloads a version here; what answers follows the rollout row: "
        "homeostat promote, homeostat rollback"
    )
