"""train: fit the project's Keras model, with metrics of every epoch in MLflow."""

from pathlib import Path

from prefect.logging import get_run_logger

from homeostat.records import DatasetRecord, RunRef, TrainedModel, Validation
from homeostat.registry import EpochLogger
from tasks.stage import open_project, stage


@stage(minutes=24 * 60)
def train(run: RunRef, data: DatasetRecord, validation: Validation) -> TrainedModel:
    """Return the fitted model; `validation` is asked for so that nothing trains on unchecked rows."""
    from homeostat.training.fit import train as fit

    del validation
    at, log = open_project(run.project), get_run_logger()
    epochs = at.config.train.epochs
    with EpochLogger(at.registry, run) as log_epoch:

        def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
            log_epoch(epoch, metrics)
            if epoch in {0, epochs - 1} or epoch % max(1, epochs // 10) == 0:
                log.info("epoch %d of %d: %s", epoch + 1, epochs, ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

        trained = fit(at.project, at.config, data, Path(run.workspace), on_epoch)
    at.registry.log_metrics(run, {"train_seconds": trained.seconds, "parameters": float(trained.parameters)})
    return trained
