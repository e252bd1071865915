"""promote: make a version the champion by hand."""

from prefect.runtime import flow_run

from homeostat.control.store import ControlStore
from homeostat.records import Deployed
from homeostat.rollout import promote as promote_version
from tasks.stage import mirror_aliases, open_project, stage


@stage(minutes=5)
def promote(project: str, version: int, reason: str) -> Deployed:
    """Promote a registered version and wait until the server answers with it."""
    at = open_project(project)
    store = ControlStore(at.settings.control_url)
    actor = f"flow_run {flow_run.id}"
    deployed = promote_version(store, at.config.name, version, at.config, at.settings.server_url, actor, reason)
    mirror_aliases(at, store)
    return deployed
