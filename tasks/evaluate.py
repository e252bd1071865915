"""evaluate: final figures on the test part, and the champion again on the same rows."""

from pathlib import Path

from homeostat.bundle import load_public_key, open_bundle
from homeostat.control.store import ControlStore
from homeostat.records import DatasetRecord, Evaluation, Export, RunRef
from tasks.stage import open_project, stage


@stage(minutes=60)
def evaluate(run: RunRef, data: DatasetRecord, exported: Export) -> Evaluation:
    """Return metrics with their intervals; raises GateFailed when the project's bar is not reached."""
    from homeostat.evaluation.evaluate import evaluate as evaluate_graph
    from homeostat.evaluation.fairness import gap_metrics

    at = open_project(run.project)
    champion = ControlStore(at.settings.control_url).champion(at.config.name)
    rival = None
    if champion is not None:
        rival = (champion.version, open_bundle(champion, load_public_key(at.settings.home)).onnx)
    evaluation = evaluate_graph(at.project, at.config, data, exported.onnx, rival, Path(run.workspace))
    at.registry.log_metrics(run, {f"test_{name}": metric.value for name, metric in evaluation.metrics.items()})
    at.registry.log_metrics(run, gap_metrics(evaluation.fairness))
    for plot in evaluation.plots:
        at.registry.log_file(run, Path(plot.path), "evaluation")
    return evaluation
