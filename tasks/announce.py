"""announce: emit homeostat.drift, so that an automation may act."""

from prefect import task
from prefect.events import emit_event

from homeostat.records import Monitoring


@task(timeout_seconds=60)
def announce(monitoring: Monitoring) -> bool:
    """Emit the event if the window drifted; say whether it was emitted."""
    if not monitoring.drifted:
        return False
    emit_event(
        event="homeostat.drift",
        resource={
            "prefect.resource.id": f"homeostat.model.{monitoring.model}",
            "prefect.resource.name": monitoring.model,
        },
        payload={
            "version": monitoring.version,
            "rows": monitoring.window.rows,
            "labelled": monitoring.window.labelled,
            "reason": monitoring.reason,
            "columns": [column.column for column in monitoring.columns if column.drifted],
        },
    )
    return True
