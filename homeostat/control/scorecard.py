"""How maintainable a deployed model is, from its ledger: DORA's four keys (Forsgren et al. 2018), for models."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from homeostat.control.ledger import CHANGES_CHAMPION
from homeostat.records import LedgerEntry

DAY = 86_400.0


@dataclass(frozen=True)
class Spread:
    """How long something took, in seconds: how often it was seen, the median, and the longest."""

    count: int
    median: float | None = None
    longest: float | None = None


@dataclass(frozen=True)
class Scorecard:
    """The figures of one model over a stretch of time; None where nothing was seen to measure."""

    model: str
    since: str
    until: str
    days: float
    promotions: int
    promotions_per_week: float | None
    """None over less than a day."""
    taken_back: int
    """Promotions whose version was rolled back from before another took over."""
    detection: Spread
    """From when harm most likely began to the end of the look that found it."""
    recovery: Spread
    """From the first look that found harm to another champion."""
    open_harm: float | None
    """Seconds since the first look that found harm to which no other champion has come yet."""
    rollback: Spread
    """From a promotion to its rollback: how long a version was live that was taken back."""
    retrainings: int
    held: int
    """Times that retraining or promotion was asked for, and the policy did not."""
    looks: int
    harmless_drift: int
    """Looks that found drift and no harm."""
    coverage: float | None
    """Labelled rows of all rows that were looked at."""
    champion_age: float | None
    """Seconds since the champion took over."""

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and numbers."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """Return every figure that there is as a number, in seconds, such as `scorecard/recovery_median_seconds`."""
        spreads = {"detection": self.detection, "recovery": self.recovery, "rollback": self.rollback}
        figures: dict[str, float | None] = {
            "promotions": self.promotions,
            "promotions_per_week": self.promotions_per_week,
            "taken_back": self.taken_back,
            "open_harm_seconds": self.open_harm,
            "retrainings": self.retrainings,
            "held": self.held,
            "looks": self.looks,
            "harmless_drift": self.harmless_drift,
            "coverage": self.coverage,
            "champion_age_seconds": self.champion_age,
            **{f"{name}_median_seconds": spread.median for name, spread in spreads.items()},
            **{f"{name}_longest_seconds": spread.longest for name, spread in spreads.items()},
        }
        return {f"scorecard/{name}": float(value) for name, value in figures.items() if value is not None}


def make_scorecard(
    model: str, entries: Sequence[LedgerEntry], now: datetime, since: datetime | None = None
) -> Scorecard:
    """Return the figures of a model from its ledger, the oldest entry first, up to `now`.

    since: what was decided before does not count; by default all does.
    """
    start = since.timestamp() if since else (_seconds(entries[0]) if entries else now.timestamp())
    mine = [entry for entry in entries if start <= _seconds(entry) <= now.timestamp()]
    changes = [entry for entry in mine if entry.action in CHANGES_CHAMPION]
    promotions = [entry for entry in changes if entry.action == "promote"]
    back = [
        _seconds(after) - _seconds(before)
        for before, after in itertools.pairwise(changes)
        if (before.action, after.action) == ("promote", "rollback")
    ]
    looks = [entry for entry in mine if entry.action == "drift"]
    detection, recovery, standing = _harm(mine)
    days = (now.timestamp() - start) / DAY
    rows = sum(int(entry.evidence.get("rows") or 0) for entry in looks)
    labelled = sum(int(entry.evidence.get("labelled") or 0) for entry in looks)
    last = next((entry for entry in reversed(entries) if entry.action in CHANGES_CHAMPION), None)
    return Scorecard(
        model=model,
        since=datetime.fromtimestamp(start, now.tzinfo).isoformat(),
        until=now.isoformat(),
        days=days,
        promotions=len(promotions),
        promotions_per_week=len(promotions) * 7 / days if days >= 1 else None,
        taken_back=len(back),
        detection=_spread(detection),
        recovery=_spread(recovery),
        open_harm=None if standing is None else now.timestamp() - standing,
        rollback=_spread(back),
        retrainings=sum(entry.action == "retrain" for entry in mine),
        held=sum(entry.evidence.get("kind") == "hold" or entry.evidence.get("verdict") == "hold" for entry in mine),
        looks=len(looks),
        harmless_drift=sum(entry.evidence.get("conclusion") == "drift" for entry in looks),
        coverage=labelled / rows if rows else None,
        champion_age=now.timestamp() - _seconds(last) if last else None,
    )


def _harm(entries: Sequence[LedgerEntry]) -> tuple[list[float], list[float], float | None]:
    """Return seconds to find each harm, and from there to another champion, and the time of one that stands."""
    detection, recovery, standing = [], [], None
    for entry in entries:
        if entry.action in CHANGES_CHAMPION and standing is not None:
            recovery.append(_seconds(entry) - standing)
            standing = None
        elif entry.action == "drift" and entry.evidence.get("conclusion") == "harm" and standing is None:
            standing = _seconds(entry)
            begun = _moment(entry.evidence.get("harm_since"))
            if begun is not None:
                detection.append(max(0.0, standing - begun))
    return detection, recovery, standing


def _spread(seconds: Sequence[float]) -> Spread:
    return Spread(len(seconds), statistics.median(seconds), max(seconds)) if seconds else Spread(0)


def _seconds(entry: LedgerEntry) -> float:
    return datetime.fromisoformat(entry.time).timestamp()


def _moment(text: object) -> float | None:
    """Return an ISO 8601 time as unix seconds, None for what is none: the ledger also holds what others wrote."""
    try:
        seconds = datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return seconds if math.isfinite(seconds) else None
