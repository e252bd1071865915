"""decide_whether_to_retrain: ask the policy, and write its verdict into the ledger."""

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from homeostat.control.store import ControlStore
from homeostat.policy.retraining import Trigger
from homeostat.records import Verdict
from homeostat.retraining import ask_to_retrain
from tasks.stage import open_project, stage


@stage(minutes=5)
def decide_whether_to_retrain(project: str, trigger: Trigger) -> Verdict:
    """Return the verdict `retrain` or `hold`, with its reasons."""
    at = open_project(project)
    store = ControlStore(at.settings.control_url)
    verdict = ask_to_retrain(store, at.settings, at.config, trigger, f"flow_run {flow_run.id}")
    get_run_logger().info("%s: %s", verdict.kind, "; ".join(verdict.reasons))
    return verdict
