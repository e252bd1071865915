"""finish: write the life down for people and programs, and close the MLflow run."""

import json
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging import get_run_logger

from homeostat.dataset import write_artifact
from homeostat.errors import RegistryUnavailable
from homeostat.records import (
    Artifact,
    Compression,
    DatasetRecord,
    Deployed,
    Evaluation,
    Export,
    ModelVersion,
    RunRef,
    TrainedModel,
    Validation,
)
from homeostat.summary import summarize, to_markdown
from tasks.stage import open_project, stage


@stage(minutes=5, once=False)  # `start` has opened the MLflow run again
def finish(
    run: RunRef,
    data: DatasetRecord,
    validation: Validation,
    trained: TrainedModel,
    compression: Compression,
    exported: Export,
    evaluation: Evaluation,
    version: ModelVersion,
    deployed: Deployed,
) -> Artifact:
    """Write life.json beside the pipeline's files and in MLflow, and show the summary in Prefect."""
    at = open_project(run.project)
    life = summarize(run, data, validation, trained, compression, exported, evaluation, version, deployed)
    written = write_artifact(Path(run.workspace) / "life.json", json.dumps(life, indent=1).encode())
    at.registry.log_file(run, Path(written.path), "")
    at.registry.end_run(run, "FINISHED")
    create_markdown_artifact(
        to_markdown(life, at.registry.run_url(run.mlflow_run_id)), key=f"{at.config.name.replace('_', '-')}-life"
    )
    return written


def fail(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Close the MLflow run of a flow run that did not complete, if MLflow can be told."""
    del flow
    parameters = flow_run.parameters or {}
    at = open_project(str(parameters["project"]))
    pipeline_id = str(parameters.get("pipeline_id") or flow_run.id)
    try:
        at.registry.fail_run(at.config.name, pipeline_id, str(state.message))
    except RegistryUnavailable as error:
        get_run_logger().warning("the MLflow run of pipeline %s stays open: %s", pipeline_id, error)
