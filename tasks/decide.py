"""decide_whether_to_retrain: ask the policy, and write its verdict into the ledger."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from homeostat.control.store import ControlStore
from homeostat.control.windows import Windows
from homeostat.errors import Conflict
from homeostat.policy.retraining import Situation, Trigger, decide_retrain, past_trainings
from homeostat.records import BundleRef, Monitoring, Verdict
from homeostat.sealing import load_keyring
from tasks.stage import open_project, stage


@stage(minutes=5)
def decide_whether_to_retrain(project: str, trigger: Trigger) -> Verdict:
    """Return the verdict `retrain` or `hold`, with its reasons."""
    from homeostat.monitoring.window import count_labelled

    at = open_project(project)
    store, name, config = ControlStore(at.settings.control_url), at.config.name, at.config.retrain
    since = datetime.now(UTC) - timedelta(days=config.traffic_days)
    labelled = count_labelled(at.settings.traffic_path, name, since, load_keyring(at.settings))
    looks = _looks(at.settings.control_url, store.champion(name), config.drift_of)
    while True:
        past = past_trainings([entry for entry in store.history() if entry.model == name])
        situation = Situation(
            now=datetime.now(UTC),
            trainings=past.times[-config.max_per_week - 1 :],
            rejected=past.rejected,
            labelled_rows=labelled,
            looks=tuple(look.drifted for look in looks),
            harm=next((harm for look in looks[-1:] for harm in look.harm if harm.name == "all"), None),
        )
        verdict = decide_retrain(trigger, situation, config)
        try:
            store.record(
                name,
                "retrain" if verdict.kind == "retrain" else "verdict",
                actor=f"flow_run {flow_run.id}",
                reason="; ".join(verdict.reasons),
                evidence=asdict(verdict) | {"trigger": trigger},
                after=past.newest if verdict.kind == "retrain" else None,
            )
        except Conflict as conflict:  # another flow run has decided meanwhile: that counts
            get_run_logger().info("%s", conflict)
            continue
        get_run_logger().info("%s: %s", verdict.kind, "; ".join(verdict.reasons))
        return verdict


def _looks(url: str, champion: BundleRef | None, count: int) -> list[Monitoring]:
    """Return the newest looks at the champion, the oldest first."""
    from homeostat.monitoring.document import read_monitoring

    if champion is None:
        return []
    return [read_monitoring(look.found) for look in Windows(url).history(champion.model, champion.version, limit=count)]
