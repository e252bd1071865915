"""promote: make a version the champion by hand."""

from datetime import UTC, datetime

from prefect.runtime import flow_run

from homeostat.approval import approve
from homeostat.control.store import ControlStore
from homeostat.records import Deployed
from homeostat.rollout import check_server, confirm
from homeostat.rollout import promote as promote_version
from tasks.stage import mirror_aliases, open_project, stage


@stage(minutes=5)
def promote(project: str, version: int, reason: str, only_waiting: bool) -> Deployed:
    """Promote a registered version, or approve it if it waits, and wait until the server answers with it."""
    at = open_project(project)
    store = ControlStore(at.settings.control_url)
    name, url, actor = at.config.name, at.settings.server_url, f"flow_run {flow_run.id}"
    if only_waiting:
        check_server(url)
        row = approve(store, at.settings.home, name, version, actor, reason, datetime.now(UTC))
        deployed = confirm(store, row, store.bundle(name, version), at.config, url)
    else:
        deployed = promote_version(store, name, version, at.config, url, actor, reason)
    mirror_aliases(at, store)
    return deployed
