"""compress: build the candidates, measure each as the exported graph, and choose by the budget."""

from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from homeostat.records import Compression, DatasetRecord, RunRef, TrainedModel
from tasks.stage import open_project, stage


@stage(minutes=12 * 60)
def compress(run: RunRef, data: DatasetRecord, trained: TrainedModel) -> Compression:
    """Return every candidate with its figures, and the winner."""
    from homeostat.compression.search import compress as search

    at = open_project(run.project)
    found = search(at.project, at.config, data, trained, Path(run.workspace), get_run_logger().info)
    at.registry.log_file(run, Path(found.table.path), "compression")
    at.registry.log_file(run, Path(found.plot.path), "compression")
    at.registry.log_metrics(run, {f"bytes_{one.name}": float(one.onnx.bytes) for one in found.candidates})
    create_markdown_artifact(Path(found.table.path).read_text(), key=f"{at.config.name.replace('_', '-')}-candidates")
    return found
