"""roll_back: go back to the champion before this one, by hand or because live labels say so."""

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from homeostat.control.store import ControlStore
from homeostat.policy.rollback import decide_rollback
from homeostat.records import Deployed, Monitoring, Verdict
from homeostat.rollout import roll_back as roll_back_version
from tasks.stage import Workplace, mirror_aliases, open_project, stage


def _roll_back(at: Workplace, verdict: Verdict, bad_version: int | None = None) -> Deployed:
    store = ControlStore(at.settings.control_url)
    actor = f"flow_run {flow_run.id}"
    deployed = roll_back_version(
        store, at.config.name, at.config, at.settings.server_url, actor, verdict, bad_version=bad_version
    )
    mirror_aliases(at, store)
    return deployed


@stage(minutes=5)
def roll_back(project: str, reason: str) -> Deployed:
    """Take the champion back because somebody asks."""
    return _roll_back(open_project(project), Verdict("roll back", (reason,)))


@stage(minutes=5)
def roll_back_if_worse(project: str, monitoring: Monitoring) -> Verdict:
    """Take the champion back if its live loss on labels is worse than its predecessor's on the same rows."""
    at = open_project(project)
    verdict = decide_rollback(monitoring.predecessor, at.config.rollout)
    get_run_logger().info("%s: %s", verdict.kind, "; ".join(verdict.reasons))
    if verdict.kind == "roll back":
        _roll_back(at, verdict, monitoring.version)
    return verdict
