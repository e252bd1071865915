"""export: pass the chosen graph through every gate, and keep SavedModel and .keras beside it."""

from pathlib import Path

from homeostat.records import Compression, DatasetRecord, Export, RunRef
from tasks.stage import open_project, stage


@stage(minutes=60)
def export(run: RunRef, data: DatasetRecord, compression: Compression) -> Export:
    """Return the gated artifacts; raises ExportUnsupported or ExportMismatch, and nothing is registered."""
    from homeostat.export.export import export as export_model

    at = open_project(run.project)
    return export_model(at.project, at.config, data, compression, Path(run.workspace))
