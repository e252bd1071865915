"""observe: look at a window of captured traffic, and show it in MLflow and as a Prefect artifact."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from homeostat.control.ledger import to_json
from homeostat.control.scorecard import make_scorecard
from homeostat.control.store import ControlStore
from homeostat.control.windows import Windows
from homeostat.errors import NotFound
from homeostat.observation import find_live, look, write_pages
from homeostat.reconciliation import reconcile
from homeostat.records import Monitoring
from tasks.stage import open_project, stage


@stage(minutes=60)
def observe(project: str, since: datetime | None) -> Monitoring:
    """Return what the window says of the live version."""
    from homeostat.monitoring.figures import figures, summary

    at = open_project(project)
    name, folder = at.config.name, at.settings.home / "windows" / str(flow_run.id)
    store, windows = ControlStore(at.settings.control_url), Windows(at.settings.control_url)
    actor = f"flow_run {flow_run.id}"
    live = find_live(store, at.settings, at.config)
    version = live.champion.ref.version
    standing = windows.standing(name, version)
    found, state = look(at.project, at.config, at.settings, live, workspace=folder, since=since, state=standing.state)
    windows.keep(name, version, standing, found.window.end, to_json(asdict(found)), state)
    document, page = write_pages(at.project, at.config, live, found, store, windows, folder)
    files = [document, page, *(Path(path) for path in found.reports)]
    ended = int(datetime.fromisoformat(found.window.end).timestamp())
    url = at.registry.log_monitoring(name, figures(found), files, ended)
    create_markdown_artifact(
        f"{summary(found)}\n\n[The page of this window, and figures over time, in MLflow]({url})",
        key=f"{name.replace('_', '-')}-monitoring",
    )
    if found.conclusion != "inconclusive":  # the ledger keeps what was found
        store.record(
            name,
            "drift",
            actor=actor,
            reason=found.reason,
            evidence={
                "conclusion": found.conclusion,
                "drifted": found.drifted,
                "rows": found.window.rows,
                "labelled": found.window.labelled,
                "harm_since": min((one.since for one in found.harm if one.harmed and one.since), default=""),
                "report": url,
            },
            version=version,
        )
    log = get_run_logger()
    try:
        for repair in reconcile(store, at.registry, name, actor):
            log.warning("MLflow was behind: %s", repair)
    except NotFound as error:
        log.warning("the server goes on with what the control store says, but MLflow cannot show it: %s", error)
    scorecard = make_scorecard(name, store.history(name), datetime.now(UTC))
    at.registry.log_monitoring(name, scorecard.metrics(), [], ended)
    return found
