"""monitor: look at live traffic; tell of drift; take back a version that labels say is worse, promote a better one."""

from datetime import datetime

from prefect import flow

from homeostat.records import Monitoring
from tasks.announce import announce
from tasks.observe import observe
from tasks.roll_back import roll_back_if_worse
from tasks.try_challenger import try_challenger


@flow(name="monitor")
def monitor(project: str, since: datetime | None = None) -> Monitoring:
    """Report on the window that ends now.

    since: start of the window; by default `monitor.window_hours` of project.toml ago.
    """
    monitoring = observe(project, since)
    announce(monitoring)
    roll_back_if_worse(project, monitoring)
    try_challenger(project, monitoring)
    return monitoring
