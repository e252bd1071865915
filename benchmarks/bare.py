"""What the lifecycle flow computes, as a bare script: the same library calls, without Prefect and MLflow."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

from homeostat.bundle import build, load_key, load_public_key, open_bundle
from homeostat.compression.search import compress
from homeostat.config import ProjectConfig
from homeostat.contract import Contract
from homeostat.control.store import ControlStore
from homeostat.data.prepare import prepare
from homeostat.data.suite import validate
from homeostat.dataset import Dataset, read_artifact
from homeostat.evaluation.evaluate import evaluate
from homeostat.export.export import export
from homeostat.lineage import make_lineage
from homeostat.monitoring.reference import make_reference
from homeostat.project import find_project, load_project
from homeostat.records import BundleRef, Evaluation
from homeostat.rollout import introduce
from homeostat.settings import Settings, load_settings
from homeostat.training.fit import train


def live(name: str, version: int, settings: Settings) -> tuple[BundleRef, Evaluation, ProjectConfig]:
    """Live one life as far as the bundle."""
    project, config = load_project(find_project(name, settings.root), settings.root)
    pipeline_id = uuid.uuid4().hex
    workspace: Path = settings.home / "pipelines" / pipeline_id
    store = ControlStore(settings.control_url)
    champion = store.champion(name)
    live = open_bundle(champion, load_public_key(settings.home)) if champion else None
    data = prepare(project, config, workspace, None)
    validation = validate(
        project, config, data, workspace, (champion.version, live.contract) if champion and live else None
    )
    trained = train(project, config, data, workspace)
    compression = compress(project, config, data, trained, workspace)
    exported = export(project, config, data, compression, workspace)
    rival = (champion.version, live.onnx) if champion and live else None
    evaluation = evaluate(project, config, data, exported.onnx, rival, workspace)
    lineage = make_lineage(pipeline_id, data.sha256, config, settings.root, champion.version if champion else None)
    held_out = Dataset.load(data.parts["validation"]).join(Dataset.load(data.parts["calibration"]))
    onnx = read_artifact(exported.onnx)
    bundle = build(
        name,
        version,
        onnx,
        Contract.from_json(read_artifact(validation.contract)),
        read_artifact(validation.profile),
        config,
        lineage,
        make_reference(project, config, held_out, onnx, config.train.seed),
        {key: values[:4] for key, values in held_out.inputs.items()},
        load_key(settings.home),
        settings.bundles_url,
        held_out.classes,
    )
    return bundle, evaluation, config


def main(name: str, version: int) -> None:
    """Live one life; the version is a challenger of the running server's model afterwards."""
    settings = load_settings()
    bundle, evaluation, config = live(name, version, settings)
    introduce(ControlStore(settings.control_url), bundle, evaluation, config, settings.server_url, "bare script")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
