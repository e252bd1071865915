"""Whether to train a challenger now."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from homeostat.config import RetrainConfig
from homeostat.records import Verdict

Trigger = Literal["manual", "schedule", "drift"]


def decide_retrain(
    trigger: Trigger,
    last_training: datetime | None,
    now: datetime,
    labelled_rows: int,
    config: RetrainConfig,
) -> Verdict:
    """Retrain, or hold with every reason why not; what is asked for by hand is always done.

    last_training and now are aware; a last training in the future counts as just now.
    """
    evidence = {
        "trigger": trigger,
        "last_training": last_training.isoformat() if last_training else None,
        "now": now.isoformat(),
        "labelled_rows": labelled_rows,
        "cooldown_minutes": config.cooldown_minutes,
        "min_labelled_rows": config.min_labelled_rows,
    }
    if trigger == "manual":
        return Verdict("retrain", ("asked for by hand",), evidence)
    against = []
    if last_training is not None:
        elapsed = max(now - last_training, timedelta(0)) / timedelta(minutes=1)
        if elapsed < config.cooldown_minutes:
            against.append(
                f"the last training was {elapsed:.1f} minutes ago: "
                f"{config.cooldown_minutes - elapsed:.1f} of {config.cooldown_minutes:g} minutes of cooldown remain"
            )
    if trigger == "drift" and labelled_rows < config.min_labelled_rows:
        against.append(f"{labelled_rows} labelled rows of traffic are fewer than {config.min_labelled_rows}")
    if against:
        return Verdict("hold", tuple(against), evidence)
    cause = "drift was found" if trigger == "drift" else "the schedule says so"
    return Verdict("retrain", (f"{cause}; {labelled_rows} labelled rows of traffic",), evidence)
