"""validate: hold the data against its contract, the champion's or one inferred, and look for leakage."""

from dataclasses import replace
from pathlib import Path

from homeostat.bundle import load_public_key, open_bundle
from homeostat.control.store import ControlStore
from homeostat.dataset import Dataset
from homeostat.project import find_project
from homeostat.records import DatasetRecord, RunRef, Validation
from tasks.stage import open_project, stage


@stage(minutes=30)
def validate(run: RunRef, data: DatasetRecord) -> Validation:
    """Return the contract, the profile and the leaks let pass; raises DataInvalid naming columns, counts, examples."""
    from homeostat.data.leakage import check_leakage, leakage_metrics
    from homeostat.data.suite import check_columns
    from homeostat.data.suite import validate as validate_data

    at = open_project(run.project)
    champion = ControlStore(at.settings.control_url).champion(at.config.name)
    applied = None
    if champion is not None:
        contract = open_bundle(champion, load_public_key(at.settings.home)).contract
        check_columns(Dataset.load(data.parts["train"]), contract, champion.version)
        applied = (champion.version, contract) if at.config.data.contract == "champion" else None
    folder = Path(run.workspace) / "validation"
    try:
        edits = find_project(run.project, at.settings.root).with_name("contract.toml")
        validation = validate_data(at.project, at.config, data, Path(run.workspace), applied, edits)
        leakage = check_leakage(at.config, data, Path(run.workspace))
    finally:
        if folder.is_dir():
            at.registry.log_folder(run, folder, "validation")
    at.registry.log_metrics(run, leakage_metrics(leakage))
    return replace(validation, leakage=leakage)
