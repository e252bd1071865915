"""The evidence that one look at a version's live traffic hands to the next: what has been counted, and what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from homeostat.errors import DataInvalid
from homeostat.monitoring.harm import HarmState
from homeostat.monitoring.sequence import DriftState

FORMAT = 1


@dataclass(frozen=True)
class Evidence:
    """Where the evidence of a version stood at `until`."""

    until: datetime | None = None
    """End of the last look; None before the first one."""
    harm: HarmState | None = None
    drift: DriftState = field(default_factory=DriftState)

    def since(self, champion_since: datetime) -> Evidence:
        """Return the evidence for a version that is champion since then: what came before does not count any more."""
        if self.until is None or self.until >= champion_since:
            return self
        return Evidence(self.until, self.harm.restart(champion_since) if self.harm else None)

    def to_json(self) -> str:
        """Return text that `from_json` reads."""
        return json.dumps(
            {
                "format": FORMAT,
                "until": self.until.isoformat() if self.until else None,
                "harm": json.loads(self.harm.to_json()) if self.harm else None,
                "drift": json.loads(self.drift.to_json()),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Evidence:
        """Read what `to_json` wrote, no text as no evidence yet; raises DataInvalid when it is something else."""
        if not text:
            return cls()
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r:.60}, not {FORMAT}")
            until = datetime.fromisoformat(values["until"]) if values["until"] else None
            harm = HarmState.from_json(json.dumps(values["harm"])) if values["harm"] else None
            drift = DriftState.from_json(json.dumps(values["drift"]))
        except (ValueError, TypeError, KeyError) as error:
            raise DataInvalid(f"the evidence of the looks before cannot be read: {error!s:.200}") from error
        return cls(until, harm, drift)
