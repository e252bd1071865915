"""rollback: go back to the champion before this one, and wait until it answers."""

from prefect import flow

from homeostat.records import Deployed
from tasks.roll_back import roll_back


@flow(name="rollback")
def rollback(project: str, reason: str = "asked for by hand") -> Deployed:
    """Take the champion back."""
    return roll_back(project, reason)
