"""observe: report on a window of captured traffic, to MLflow and as a Prefect artifact."""

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from homeostat.bundle import load_public_key, open_bundle
from homeostat.control.ledger import to_json
from homeostat.control.store import ControlStore
from homeostat.control.windows import Windows
from homeostat.dataset import write_artifact
from homeostat.errors import NotFound
from homeostat.records import BundleRef, Monitoring
from homeostat.sealing import load_keyring
from tasks.stage import open_project, stage


@stage(minutes=60)
def observe(project: str, since: datetime | None) -> Monitoring:
    """Return what the window says of the live version."""
    from homeostat.monitoring.figures import figures, summary
    from homeostat.monitoring.monitor import monitor as monitor_traffic

    at = open_project(project)
    store = ControlStore(at.settings.control_url)
    row = store.row(at.config.name)
    if row.champion is None:
        raise NotFound(f"{at.config.name} has no champion to monitor; prefect deployment run 'lifecycle/{project}'")
    public_key, now = load_public_key(at.settings.home), datetime.now(UTC)

    def opened(bundle: BundleRef) -> tuple[int, bytes, bytes]:
        content = open_bundle(bundle, public_key)
        return bundle.version, content.onnx, content.reference

    folder = at.settings.home / "windows" / str(flow_run.id)
    version, onnx, reference = opened(row.champion)
    windows = Windows(at.settings.control_url)
    standing = windows.standing(at.config.name, version)
    found, state = monitor_traffic(
        at.project,
        at.config,
        version=version,
        onnx=onnx,
        reference=reference,
        predecessor=opened(row.previous)[:2] if row.previous else None,
        traffic=at.settings.traffic_path,
        workspace=folder,
        since=since or now - timedelta(hours=at.config.monitor.window_hours),
        champion_since=datetime.fromisoformat(row.since),
        now=now,
        seed=at.config.train.seed,
        keys=load_keyring(at.settings),
        state=standing.state,
    )
    windows.keep(at.config.name, version, standing, found.window.end, to_json(asdict(found)), state)
    written = write_artifact(folder / "monitoring.json", json.dumps(to_json(asdict(found)), indent=1).encode())
    files = [Path(written.path), *(Path(path) for path in found.reports)]
    url = at.registry.log_monitoring(at.config.name, figures(found), files, int(now.timestamp()))
    create_markdown_artifact(
        f"{summary(found)}\n\n[Figures over time in MLflow]({url})",
        key=f"{at.config.name.replace('_', '-')}-monitoring",
    )
    if found.conclusion != "inconclusive":  # the ledger keeps what was found
        store.record(
            at.config.name,
            "drift",
            actor=f"flow_run {flow_run.id}",
            reason=found.reason,
            evidence={
                "conclusion": found.conclusion,
                "drifted": found.drifted,
                "rows": found.window.rows,
                "labelled": found.window.labelled,
                "report": url,
            },
            version=version,
        )
    return found
