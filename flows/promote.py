"""promote: make a version the champion by hand, and wait until it answers."""

from prefect import flow

from homeostat.records import Deployed
from tasks.promote import promote as promote_version


@flow(name="promote")
def promote(project: str, version: int, reason: str = "asked for by hand") -> Deployed:
    """Promote one registered version."""
    return promote_version(project, version, reason)
