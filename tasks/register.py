"""register: one MLflow model version with its lineage and card, and the signed bundle built from it."""

from dataclasses import replace
from pathlib import Path

from homeostat.bundle import build, load_key
from homeostat.card import model_card
from homeostat.contract import Contract
from homeostat.control.store import ControlStore
from homeostat.data.profile import Profile
from homeostat.dataset import Dataset, read_artifact, write_artifact
from homeostat.lineage import make_lineage
from homeostat.records import (
    Compression,
    DatasetRecord,
    Evaluation,
    Export,
    ModelVersion,
    RunRef,
    TrainedModel,
    Validation,
)
from tasks.stage import open_project, stage

GOLDEN_ROWS = 4


@stage(minutes=15)
def register(
    run: RunRef,
    data: DatasetRecord,
    validation: Validation,
    trained: TrainedModel,
    compression: Compression,
    exported: Export,
    evaluation: Evaluation,
) -> ModelVersion:
    """Return the registered version; a repeated call for the same pipeline returns the same one."""
    from homeostat.monitoring.model_profile import profile_model
    from homeostat.monitoring.reference import make_reference

    at = open_project(run.project)
    parent = evaluation.comparison.champion_version if evaluation.comparison else None
    lineage = make_lineage(run.pipeline_id, data.sha256, at.config, at.settings.root, parent)
    doc = type(at.project).__doc__ or ""
    card = model_card(doc, at.config, data, validation, trained, compression, exported, evaluation, lineage)
    held_out = Dataset.load(data.parts["validation"]).join(Dataset.load(data.parts["calibration"]))
    onnx, seed = read_artifact(exported.onnx), at.config.train.seed
    answered = profile_model(at.project, at.config, held_out, onnx, seed)
    profile = Profile.from_json(read_artifact(validation.profile), validation.profile.path).with_model(answered)
    whole = write_artifact(Path(run.workspace) / "registration" / "profile.json", profile.to_json().encode())
    validation = replace(validation, profile=whole)
    golden = {name: values[:GOLDEN_ROWS] for name, values in held_out.inputs.items()}
    version = at.registry.register(
        run, at.config, data, validation, compression, exported, evaluation, lineage, card, golden
    )
    bundle = build(
        at.config.name,
        version,
        onnx,
        Contract.from_json(read_artifact(validation.contract), validation.contract.path),
        read_artifact(whole),
        at.config,
        lineage,
        make_reference(at.project, at.config, held_out, onnx, seed),
        golden,
        load_key(at.settings.home),
        at.settings.bundles_url,
        held_out.classes,
    )
    ControlStore(at.settings.control_url).register_bundle(bundle)
    # only now: the control store refuses another bundle for a version that is live
    at.registry.describe(run, at.config.name, version, lineage, card)
    return ModelVersion(at.config.name, version, run.mlflow_run_id, bundle)
