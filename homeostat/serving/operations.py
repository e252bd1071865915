"""The model repository extension of the Open Inference Protocol, over REST and gRPC: an index, no operations."""

from __future__ import annotations

from typing import NoReturn

from homeostat.errors import RequestInvalid
from homeostat.serving.dataplane import DataPlane
from homeostat.serving.versions import statuses


def index(plane: DataPlane, *, ready: bool) -> list[dict[str, str]]:
    """Return name, version, state and reason of each version; of those that answer alone if `ready`."""
    found = []
    for name, state in plane.repository.models.items():
        versions = statuses(state)
        for one in versions:
            text = "READY" if one.answers else "UNAVAILABLE"
            found.append({"name": name, "version": str(one.version), "state": text, "reason": one.problem})
        if not versions:
            reason = "loading" if state.expected else "no version is promoted"
            found.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": reason})
    return [one for one in found if one["state"] == "READY" or not ready]


def refuse_operation(model: str) -> NoReturn:
    """Refuse to load or unload a model: without authentication nobody is an operator."""
    raise RequestInvalid(
        f"model {model!r:.80}: loading and unloading is for operators, and this server has no authentication to know "
        "them by; what answers follows the rollout row: homeostat promote, homeostat rollback",
        status=403,
    )
