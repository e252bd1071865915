"""Whether to train a challenger now."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Literal

from homeostat.config import RetrainConfig
from homeostat.records import Harm, Verdict

Trigger = Literal["manual", "schedule", "drift", "harm"]
CAUSES = {"schedule": "the schedule says so", "drift": "drift was found", "harm": "labels show harm"}


def decide_retrain(
    trigger: Trigger,
    last_training: datetime | None,
    now: datetime,
    labelled_rows: int,
    config: RetrainConfig,
    harm: Harm | None = None,
) -> Verdict:
    """Retrain, or hold with every reason why not; what is asked for by hand is always done.

    last_training and now are aware; a last training in the future counts as just now. harm: what the
    labels of the window that drifted say of the loss of all rows, if any have come.
    """
    evidence = {
        "trigger": trigger,
        "last_training": last_training.isoformat() if last_training else None,
        "now": now.isoformat(),
        "labelled_rows": labelled_rows,
        "cooldown_minutes": config.cooldown_minutes,
        "min_labelled_rows": config.min_labelled_rows,
        "harm": asdict(harm) if harm else None,
        "harmless_margin": config.harmless_margin,
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
    if trigger in ("drift", "harm") and labelled_rows < config.min_labelled_rows:
        against.append(f"{labelled_rows} labelled rows of traffic are fewer than {config.min_labelled_rows}")
    if trigger == "drift" and harm is not None and is_harmless(harm, config.harmless_margin):
        against.append(
            f"the drift does no harm: loss {harm.loss.value:.4f} (at most {harm.loss.high:.4f}) on labels, "
            f"{harm.tolerated:.4f} and {config.harmless_margin:g} more are tolerated"
        )
    if against:
        return Verdict("hold", tuple(against), evidence)
    return Verdict("retrain", (f"{CAUSES[trigger]}; {labelled_rows} labelled rows of traffic",), evidence)


def is_harmless(harm: Harm, margin: float) -> bool:
    """Whether labels show, rather than do not deny, that the loss is within `margin` of what is tolerated."""
    return not harm.harmed and math.isfinite(harm.loss.high) and harm.loss.high <= harm.tolerated + margin
