"""promote: make a version the champion by hand, and wait until it answers."""

from prefect import flow

from homeostat.records import Deployed
from tasks.promote import promote as promote_version


@flow(name="promote")
def promote(project: str, version: int, reason: str = "asked for by hand", only_waiting: bool = False) -> Deployed:
    """Promote one registered version.

    only_waiting: approve it, if it waits for that (`rollout.approval_hours`); else do nothing, and fail.
    """
    return promote_version(project, version, reason, only_waiting)
