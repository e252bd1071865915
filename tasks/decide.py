"""decide_whether_to_retrain: ask the policy, and write its verdict into the ledger."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from homeostat.control.store import ControlStore
from homeostat.control.windows import Windows
from homeostat.policy.retraining import Trigger, decide_retrain
from homeostat.records import BundleRef, Harm, Verdict
from homeostat.sealing import load_keyring
from tasks.stage import open_project, stage


@stage(minutes=5)
def decide_whether_to_retrain(project: str, trigger: Trigger) -> Verdict:
    """Return the verdict `retrain` or `hold`, with its reasons."""
    from homeostat.monitoring.window import count_labelled

    at = open_project(project)
    store, now = ControlStore(at.settings.control_url), datetime.now(UTC)
    last = store.last(at.config.name, "retrain")
    since = now - timedelta(days=at.config.retrain.traffic_days)
    labelled = count_labelled(at.settings.traffic_path, at.config.name, since, load_keyring(at.settings))
    verdict = decide_retrain(
        trigger,
        datetime.fromisoformat(last.time) if last else None,
        now,
        labelled,
        at.config.retrain,
        _last_harm(at.settings.control_url, store.champion(at.config.name)),
    )
    store.record(
        at.config.name,
        "retrain" if verdict.kind == "retrain" else "verdict",
        actor=f"flow_run {flow_run.id}",
        reason="; ".join(verdict.reasons),
        evidence=asdict(verdict) | {"trigger": trigger},
    )
    get_run_logger().info("%s: %s", verdict.kind, "; ".join(verdict.reasons))
    return verdict


def _last_harm(url: str, champion: BundleRef | None) -> Harm | None:
    """Return what the last look at the champion says of its loss on all labels."""
    from homeostat.monitoring.document import read_monitoring

    if champion is None:
        return None
    looks = Windows(url).history(champion.model, champion.version, limit=1)
    return next((harm for look in looks for harm in read_monitoring(look.found).harm if harm.name == "all"), None)
