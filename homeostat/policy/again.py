"""A verdict of the ledger, decided once more on its own evidence and the settings of its time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from homeostat.config import RetrainConfig, RolloutConfig, TrialConfig
from homeostat.errors import DataInvalid
from homeostat.policy import promotion, retraining, rollback
from homeostat.records import Comparison, Trial, Verdict

_COMPARISON, _TRIAL = TypeAdapter(Comparison), TypeAdapter(Trial)


class Again(NamedTuple):
    """What the evidence of a verdict leads to, and by which rule."""

    verdict: Verdict
    rule: str


def decide_again(evidence: Mapping[str, Any]) -> Again | None:
    """Return what the evidence of a verdict leads to, None when it is of no rule of the policy.

    Raises DataInvalid when it is damaged, or of another format.
    """
    try:
        if "retrain" in evidence:
            situation = retraining.SITUATION.validate_python(evidence["situation"])
            config = RetrainConfig.model_validate(evidence["retrain"])
            return Again(retraining.decide_retrain(evidence["trigger"], situation, config), retraining.RULE)
        if "trial" in evidence:
            trial = _TRIAL.validate_python(evidence["trial"])
            rollout = RolloutConfig(trial=TrialConfig.model_validate(evidence["rules"]))
            return Again(promotion.decide_trial(trial, rollout), promotion.TRIAL_RULE)
        if "comparison" not in evidence:
            return None
        comparison = _COMPARISON.validate_python(evidence["comparison"])
        if "rollback_margin" in evidence:
            rules = ("rollback_margin", "rollback_min_labels")
            rollout = RolloutConfig.model_validate({name: evidence[name] for name in rules})
            return Again(rollback.decide_rollback(comparison, rollout), rollback.RULE)
        return Again(
            promotion.decide_promotion(comparison, RolloutConfig.model_validate({"margin": evidence["margin"]})),
            promotion.RULE,
        )
    except (KeyError, ValidationError) as error:
        raise DataInvalid(f"no evidence of a verdict: {error!s:.200}") from error
