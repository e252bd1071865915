"""start: open the MLflow run and the workspace of one pipeline."""

from homeostat.records import RunRef
from tasks.stage import open_project, stage


@stage(minutes=2)
def start(project: str, pipeline_id: str, trigger: str) -> RunRef:
    """Open (or find again) the pipeline's MLflow run."""
    at = open_project(project)
    at.settings.home.mkdir(parents=True, exist_ok=True)
    tags = {"trigger": trigger, "project": at.config.project}
    parameters = {
        f"{section}.{key}": str(value)
        for section, values in at.config.model_dump(mode="json").items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
    workspace = at.settings.home / "pipelines" / pipeline_id
    return at.registry.start_run(at.config.name, pipeline_id, tags, parameters, workspace)
