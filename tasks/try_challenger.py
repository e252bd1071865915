"""try_challenger: let live labels decide on a challenger that the test part could not decide on."""

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from homeostat.control.store import ControlStore
from homeostat.records import Monitoring, Verdict
from homeostat.trial import conclude
from tasks.stage import mirror_aliases, open_project, stage


@stage(minutes=5)
def try_challenger(project: str, monitoring: Monitoring) -> Verdict | None:
    """Promote the challenger, let it go, or wait for more labels; None when there is none to decide on."""
    at = open_project(project)
    store = ControlStore(at.settings.control_url)
    actor = f"flow_run {flow_run.id}"
    verdict = conclude(store, monitoring.trial, monitoring.version, at.config, at.settings.server_url, actor)
    if verdict is not None:
        get_run_logger().info("%s: %s", verdict.kind, "; ".join(verdict.reasons))
        mirror_aliases(at, store)
    return verdict
