"""prepare: load the project's rows (and labelled traffic), check them, and split them once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from homeostat.records import DatasetRecord, RunRef
from homeostat.sealing import load_keyring
from tasks.stage import open_project, stage


@stage(minutes=30)
def prepare(run: RunRef, with_traffic: bool) -> DatasetRecord:
    """Return the dataset in four parts; raises DataInvalid that lists every breach."""
    from homeostat.data.prepare import prepare as prepare_data
    from homeostat.monitoring.window import labelled_traffic

    at = open_project(run.project)
    traffic = None
    if with_traffic:
        since = datetime.now(UTC) - timedelta(days=at.config.retrain.traffic_days)
        traffic = labelled_traffic(
            at.settings.traffic_path, at.config.name, since, at.project.load_data(), keys=load_keyring(at.settings)
        )
    split = at.settings.home / "splits" / f"{at.config.name}.npz"
    record = prepare_data(at.project, at.config, Path(run.workspace), traffic, split)
    counts = record.rows | {f"from_{source}": rows for source, rows in record.sources.items()}
    at.registry.log_metrics(run, {f"rows_{name}": float(rows) for name, rows in counts.items()})
    return record
