"""announce: emit homeostat.harm or homeostat.drift, so that an automation may act."""

from dataclasses import asdict

from prefect import task
from prefect.events import emit_event

from homeostat.control.ledger import to_json
from homeostat.records import Monitoring


@task(timeout_seconds=60)
def announce(monitoring: Monitoring) -> str:
    """Emit the one event that the window gives cause for, harm before drift, and return its name."""
    harmed = [asdict(one) for one in monitoring.harm if one.harmed]
    columns = [column.column for column in monitoring.columns if column.drifted]
    drift = {"drifted": monitoring.drifted, "reason": monitoring.reason, "columns": columns}
    if harmed:
        return _emit("harm", monitoring, {"harm": to_json(harmed), **drift})
    return _emit("drift", monitoring, drift) if monitoring.drifted else ""


def _emit(name: str, monitoring: Monitoring, payload: dict[str, object]) -> str:
    event = f"homeostat.{name}"
    emit_event(
        event=event,
        resource={
            "prefect.resource.id": f"homeostat.model.{monitoring.model}",
            "prefect.resource.name": monitoring.model,
        },
        payload={
            "version": monitoring.version,
            "rows": monitoring.window.rows,
            "labelled": monitoring.window.labelled,
            "conclusion": monitoring.conclusion,
            **payload,
        },
    )
    return event
