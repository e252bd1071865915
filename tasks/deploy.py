"""deploy: make the version challenger, promote it if the policy says so, and wait until the server answers with it."""

from prefect.logging import get_run_logger

from homeostat.control.store import ControlStore
from homeostat.errors import Conflict
from homeostat.records import Deployed, Evaluation, ModelVersion, RunRef
from homeostat.rollout import introduce
from tasks.stage import ask_again, mirror_aliases, open_project, stage


@stage(minutes=10)
def deploy(run: RunRef, version: ModelVersion, evaluation: Evaluation) -> Deployed:
    """Return what the server has reported; raises RolloutTimeout when it does not take the version.

    Raises Conflict when the champion is no longer the one it was compared with; a re-run of the
    pipeline then evaluates it against the champion of that time.
    """
    at = open_project(run.project)
    store = ControlStore(at.settings.control_url)
    try:
        deployed, verdict = introduce(
            store, version.bundle, evaluation, at.config, at.settings.server_url, f"flow_run {run.pipeline_id}"
        )
    except Conflict as error:
        ask_again(run, "evaluate", str(error))
        raise
    get_run_logger().info("v%d: %s: %s", version.version, verdict.kind, "; ".join(verdict.reasons))
    mirror_aliases(at, store)
    return deployed
