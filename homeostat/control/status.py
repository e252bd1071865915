"""What `homeostat status` says of a model: who is champion, since when, and the last evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from homeostat.records import BundleRef, LedgerEntry

if TYPE_CHECKING:
    from homeostat.control.store import ControlStore


@dataclass(frozen=True)
class Standing:
    """A version in its role; `since` is UTC, ISO 8601."""

    version: int
    sha256: str
    since: str


@dataclass(frozen=True)
class Status:
    """One model's rollout row and its last verdict and drift report, as JSON prints it."""

    model: str
    champion: Standing | None
    challenger: Standing | None
    previous: Standing | None
    mode: str
    weight: float
    generation: int
    last_verdict: dict[str, Any] | None
    last_drift: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        return asdict(self)


def _standing(history: list[LedgerEntry], ref: BundleRef | None, *actions: str) -> Standing | None:
    if ref is None:
        return None
    times = [entry.time for entry in history if entry.action in actions and entry.version == ref.version]
    return Standing(ref.version, ref.sha256, times[-1] if times else "")


def _evidence(entry: LedgerEntry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    kept = ("sequence", "time", "action", "version", "actor", "reason", "evidence")
    return {name: value for name, value in asdict(entry).items() if name in kept}


def status_of(store: ControlStore, model: str) -> Status:
    """Return the status of one model; raises NotFound that names the known ones.

    A verdict is an entry of its own, or stands as `verdict` in the evidence of the change it caused.
    """
    row = store.row(model)
    history = store.history(model)
    verdicts = [entry for entry in history if entry.action == "verdict" or "verdict" in entry.evidence]
    drifts = [entry for entry in history if entry.action == "drift"]
    return Status(
        model=model,
        champion=_standing(history, row.champion, "promote", "rollback"),
        challenger=_standing(history, row.challenger, "challenger"),
        previous=_standing(history, row.previous, "promote", "rollback"),
        mode=row.mode,
        weight=row.weight,
        generation=row.generation,
        last_verdict=_evidence(verdicts[-1] if verdicts else None),
        last_drift=_evidence(drifts[-1] if drifts else None),
    )
