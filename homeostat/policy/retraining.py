"""Whether to train a challenger now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from pydantic import TypeAdapter

from homeostat.config import RetrainConfig
from homeostat.records import Harm, LedgerEntry, Verdict

Trigger = Literal["manual", "schedule", "drift", "harm", "webhook"]
CAUSES = {
    "schedule": "the schedule says so",
    "drift": "drift was found",
    "harm": "labels show harm",
    "webhook": "a webhook asks",
}
LONGEST_WAIT = timedelta(days=7)
"""What the cooldown grows to at most after challengers that did not take over."""
WEEK = timedelta(days=7)
OUTCOMES = ("promote", "hold", "start", "approval")
"""What the ledger says of a challenger once it has been evaluated."""


@dataclass(frozen=True)
class Situation:
    """What retraining is decided on."""

    now: datetime
    trainings: tuple[datetime, ...] = ()
    """When the policy let a training start before, the oldest first; one in the future counts as just now."""
    rejected: int = 0
    """Trainings since the last promotion: none of their challengers took over."""
    labelled_rows: int = 0
    looks: tuple[bool, ...] = ()
    """Whether the newest looks at the live version found drift, the oldest first."""
    harm: Harm | None = None
    """What the labels of the last look say of the loss of all rows, if any have come."""
    harmed: bool | None = None
    """Whether the newest look at the live version found harm, of all rows or of a slice; None: not known."""
    ended: datetime | None = None
    """When what the last training has made was decided on; None: it goes on, or has failed."""


class PastTrainings(NamedTuple):
    """Trainings that the policy let start."""

    times: tuple[datetime, ...]
    rejected: int
    """Since the last promotion."""
    newest: int
    """Number of the newest one's ledger entry, 0 for none."""
    ended: datetime | None
    """When what the newest one has made was promoted, held or asked for approval."""


SITUATION = TypeAdapter(Situation)


RULE = (
    "retrain: asked for by hand, or nothing stands against it. hold: automatic is off, cooldown or the week's budget, "
    "too few labels, harm that is gone, or drift that passes or does no harm."
)


def decide_retrain(trigger: Trigger, situation: Situation, config: RetrainConfig) -> Verdict:
    """Retrain, or hold with every reason why not; what is asked for by hand is always done.

    Times are aware. The evidence of the verdict is all that it was decided on: see `policy.again`.
    """
    evidence = {
        "trigger": trigger,
        "situation": SITUATION.dump_python(situation, mode="json"),
        "retrain": config.model_dump(mode="json"),
    }
    if trigger == "manual":
        return Verdict("retrain", ("asked for by hand",), evidence)
    against = [*_switched_off(config), *_too_soon(situation, config), *_over_budget(situation, config)]
    if trigger in ("drift", "harm") and situation.labelled_rows < config.min_labelled_rows:
        against.append(f"{situation.labelled_rows} labelled rows of traffic are fewer than {config.min_labelled_rows}")
    if trigger == "harm" and situation.harmed is False:
        against.append("the newest look at the live version found no harm: what was found was of a version before it")
    if trigger == "drift":
        against += [*_passing(situation.looks, config), *_harmless(situation.harm, config)]
    if against:
        return Verdict("hold", tuple(against), evidence)
    return Verdict("retrain", (f"{CAUSES[trigger]}; {situation.labelled_rows} labelled rows of traffic",), evidence)


def past_trainings(entries: Sequence[LedgerEntry]) -> PastTrainings:
    """Return what a model's ledger says of the trainings that were let start, the oldest entry first."""
    trainings = [entry for entry in entries if entry.action == "retrain"]
    newest = trainings[-1].sequence if trainings else 0
    promoted = max((entry.sequence for entry in entries if entry.action == "promote"), default=0)
    outcomes = [entry for entry in entries if newest and entry.sequence > newest and entry.action in OUTCOMES]
    return PastTrainings(
        times=tuple(datetime.fromisoformat(entry.time) for entry in trainings),
        rejected=sum(entry.sequence > promoted for entry in trainings),
        newest=newest,
        ended=datetime.fromisoformat(outcomes[0].time) if outcomes else None,
    )


def is_harmless(harm: Harm, margin: float) -> bool:
    """Whether labels show, rather than do not deny, that the loss is within `margin` of what is tolerated."""
    return not harm.harmed and math.isfinite(harm.loss.high) and harm.loss.high <= harm.tolerated + margin


def _switched_off(config: RetrainConfig) -> list[str]:
    return [] if config.automatic else ["retrain.automatic is false: only what is asked for by hand is trained"]


def _too_soon(situation: Situation, config: RetrainConfig) -> list[str]:
    """Hold for the cooldown, doubled for each challenger in a row that did not take over."""
    if not situation.trainings:
        return []
    cooldown = timedelta(minutes=config.cooldown_minutes)
    wait = max(cooldown, min(cooldown * 2 ** min(situation.rejected, 20), LONGEST_WAIT))
    last = max(situation.trainings[-1], situation.ended or situation.trainings[-1])
    elapsed = max(situation.now - last, timedelta(0))
    if elapsed >= wait:
        return []
    minutes, minute = wait / timedelta(minutes=1), timedelta(minutes=1)
    why = f" after {situation.rejected} challengers in a row that did not take over" if situation.rejected else ""
    return [
        f"the last training was {elapsed / minute:.1f} minutes ago: "
        f"{(wait - elapsed) / minute:.1f} of {minutes:g} minutes of cooldown{why} remain"
    ]


def _over_budget(situation: Situation, config: RetrainConfig) -> list[str]:
    recent = sum(situation.now - training < WEEK for training in situation.trainings)
    if recent < config.max_per_week:
        return []
    return [f"{recent} trainings in the last 7 days; retrain.max_per_week is {config.max_per_week}"]


def _passing(looks: Sequence[bool], config: RetrainConfig) -> list[str]:
    """Hold for drift that not enough of the last looks have found."""
    last = looks[-config.drift_of :]
    if sum(last) >= config.drift_looks:
        return []
    return [
        f"{sum(last)} of the last {len(last)} looks found drift; {config.drift_looks} of {config.drift_of} are needed"
    ]


def _harmless(harm: Harm | None, config: RetrainConfig) -> list[str]:
    if harm is None or not is_harmless(harm, config.harmless_margin):
        return []
    return [
        f"the drift does no harm: loss {harm.loss.value:.4f} (at most {harm.loss.high:.4f}) on labels, "
        f"{harm.tolerated:.4f} and {config.harmless_margin:g} more are tolerated"
    ]
