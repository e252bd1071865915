"""What the server knows of each version of a model: its label, whether it answers, and why not."""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.errors import RequestInvalid
from homeostat.serving.dataplane import DataPlane, ModelNotFound
from homeostat.serving.repository import ModelState
from homeostat.serving.served import Served

LABELS = ("champion", "previous", "challenger")
"""MLflow's aliases, and the version that was champion before; the last one does not answer."""


@dataclass(frozen=True)
class VersionStatus:
    """One version."""

    version: int
    label: str
    """One of LABELS; empty for a version that was refused."""
    answers: bool
    problem: str
    """Why it does not answer; empty when it does."""


def statuses(state: ModelState) -> list[VersionStatus]:
    """Return the versions of a model: those that answer first, the refused ones last."""
    found: list[VersionStatus] = []
    for label, served in zip(LABELS, (state.live, state.previous, state.challenger), strict=True):
        if served is None or any(one.version == served.ref.version for one in found):
            continue
        answers = label != "challenger"
        problem = "" if answers else "verified and loaded; answers once it is promoted"
        found.append(VersionStatus(served.ref.version, label, answers, problem))
    known = {one.version for one in found}
    refused = [VersionStatus(number, "", False, text) for number, text in state.problems.items() if number not in known]
    return found + refused


def check_version(state: ModelState, version: str) -> None:
    """Raise ModelNotFound unless the version is loaded, was refused, or is named by the rollout row."""
    row = state.row
    named = [ref.version for ref in (row.champion, row.previous, row.challenger) if ref] if row else []
    known = [*named, *(one.ref.version for one in state.loaded()), *state.problems]
    if version not in map(str, known):
        raise ModelNotFound(state.name, version, [str(one.ref.version) for one in state.answering()])


def find_label(plane: DataPlane, name: str, label: str) -> Served:
    """Return the version that has a label, if it answers; raises RequestInvalid (404) otherwise."""
    champion = plane.find(name)
    if label == "champion":
        return champion
    previous = plane.state(name).previous
    if label == "previous" and previous is not None:
        return previous
    if label == "challenger":
        raise RequestInvalid(f"the challenger of model {name!r} does not answer until it is promoted", status=404)
    raise RequestInvalid(
        f"model {name!r} has no version labelled {label!r:.40}; the labels that answer are champion and previous",
        status=404,
    )
