"""Asking the policy whether to train: what it is decided on is gathered, and the verdict written into the ledger."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from homeostat.config import ProjectConfig
from homeostat.errors import Conflict
from homeostat.policy.retraining import Situation, Trigger, decide_retrain, past_trainings
from homeostat.records import Monitoring, Verdict
from homeostat.sealing import load_keyring
from homeostat.settings import Settings

if TYPE_CHECKING:
    from homeostat.control.store import ControlStore

# Monitoring is imported by what asks: a flow that imports this module must stay light.

logger = logging.getLogger(__name__)


def ask_to_retrain(
    store: ControlStore, settings: Settings, config: ProjectConfig, trigger: Trigger, actor: str
) -> Verdict:
    """Return the verdict `retrain` or `hold`, which then stands in the ledger with all that it was decided on.

    Of several who ask at once one is told to train: where another one was since the evidence was
    read, it is read and decided again. Raises ControlError, and as `count_labelled` does.
    """
    from homeostat.monitoring.window import count_labelled

    name, rule = config.name, config.retrain
    since = datetime.now(UTC) - timedelta(days=rule.traffic_days)
    labelled = count_labelled(settings.traffic_path, name, since, load_keyring(settings))
    looks = _looks(store, settings, name, rule.drift_of)
    while True:
        past = past_trainings([entry for entry in store.history() if entry.model == name])
        situation = Situation(
            now=datetime.now(UTC),
            trainings=past.times[-rule.max_per_week - 1 :],
            rejected=past.rejected,
            labelled_rows=labelled,
            looks=tuple(look.drifted for look in looks),
            harmed=any(harm.harmed for look in looks[-1:] for harm in look.harm),
            ended=past.ended,
            harm=next((harm for look in looks[-1:] for harm in look.harm if harm.name == "all"), None),
        )
        verdict = decide_retrain(trigger, situation, rule)
        trains = verdict.kind == "retrain"
        try:
            store.record(
                name,
                "retrain" if trains else "verdict",
                actor=actor,
                reason="; ".join(verdict.reasons),
                evidence=asdict(verdict) | {"trigger": trigger},
                after=past.newest if trains else None,
            )
        except Conflict as conflict:
            logger.info("%s", conflict)
            continue
        return verdict


def _looks(store: ControlStore, settings: Settings, model: str, count: int) -> list[Monitoring]:
    """Return the newest looks at the champion, the oldest first; none without a champion."""
    from homeostat.control.windows import Windows
    from homeostat.monitoring.document import read_monitoring

    champion = store.champion(model)
    if champion is None:
        return []
    found = Windows(settings.control_url).history(model, champion.version, limit=count)
    return [read_monitoring(look.found) for look in found]
