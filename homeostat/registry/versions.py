"""Model versions: the gated ONNX bytes with signature, input example and lineage, registered whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.card import description, lineage_tags, version_tags
from homeostat.config import ProjectConfig
from homeostat.dataset import Array, read_artifact
from homeostat.errors import RegistryError
from homeostat.records import Compression, DatasetRecord, Evaluation, Export, Lineage, RunRef, Validation
from homeostat.registry.connection import Connection, quiet
from homeostat.registry.tracking import PIPELINE

logger = logging.getLogger(__name__)


class Versions(Connection):
    """Model versions."""

    def register(
        self,
        run: RunRef,
        config: ProjectConfig,
        dataset: DatasetRecord,
        validation: Validation,
        compression: Compression,
        export: Export,
        evaluation: Evaluation,
        lineage: Lineage,
        card: str,
        example: Mapping[str, Array],
    ) -> int:
        """Make one model version of a pipeline run and return its number; again, return the same number.

        The version holds the gated ONNX bytes with signature and input example; SavedModel,
        .keras, contract, profile and card are artifacts of the run. example: input name ->
        a few rows [n, ...]. The version is made last, of bytes that were read back, so that a
        failure leaves none; what a killed process has left is taken away by the next call.
        """
        onnx_bytes = read_artifact(export.onnx)
        tags = version_tags(dataset, compression, export, evaluation, lineage)
        with self._calls() as client:
            found = self._version_of(client, config.name, run.pipeline_id)
            if found is not None:
                had = client.get_model_version(config.name, str(found)).tags.get("sha256")
                if had != export.onnx.sha256:
                    raise RegistryError(
                        f"{config.name} v{found} of pipeline {run.pipeline_id} has sha256 {had!s:.12}, this one "
                        f"{export.onnx.sha256:.12}: code or project.toml have changed since; start a new pipeline"
                    )
                logger.info("%s: version %d of pipeline run %s is there", config.name, found, run.pipeline_id)
                return found
            self._delete_orphans(client, run)
            self._log_parts(client, run.mlflow_run_id, validation, compression, export, evaluation, card)
            return self._make_version(client, run, config.name, onnx_bytes, tags, description(card), example)

    def register_graph(
        self, run: RunRef, model: str, onnx_bytes: bytes, about: str, example: Mapping[str, Array]
    ) -> int:
        """Make a model version of a graph alone, which no pipeline has made, and return its number.

        about: why it is there. example: input name -> a few rows [n, ...]. A failure leaves none.
        """
        tags = {"sha256": hashlib.sha256(onnx_bytes).hexdigest()}
        with self._calls() as client:
            return self._make_version(client, run, model, onnx_bytes, tags, about, example)

    def _make_version(
        self,
        client: Any,
        run: RunRef,
        model: str,
        onnx_bytes: bytes,
        tags: dict[str, str],
        about: str,
        example: Mapping[str, Array],
    ) -> int:
        with self._undone(client, model, run):
            model_id = self._log_model(client, run, model, onnx_bytes, tags, example)
            self._check_stored(model_id, tags["sha256"])
            version = client.create_model_version(
                model,
                f"models:/{model_id}",
                run_id=run.mlflow_run_id,
                tags=tags | {PIPELINE: run.pipeline_id},
                description=about,
                await_creation_for=0,  # MLflow's own stores are ready at once
                model_id=model_id,
            )
        return int(version.version)

    def describe(self, run: RunRef, model: str, version: int, lineage: Lineage, card: str) -> None:
        """Let a version's card and lineage follow a bundle that a re-run of its pipeline has built anew."""
        with self._calls() as client:
            known = client.get_model_version(model, str(version)).tags
            changed = lineage_tags(lineage).items() - known.items()
            if not changed:
                return
            client.log_text(run.mlflow_run_id, card, "model_card.md")
            client.update_model_version(model, str(version), description(card))
            for name, value in changed:  # last: what is cut off before is done again
                client.set_model_version_tag(model, str(version), name, value)

    def _version_of(self, client: Any, model: str, pipeline_id: str) -> int | None:
        versions = client.search_model_versions(f"name = '{model}' and tags.`{PIPELINE}` = '{pipeline_id}'")
        return max((int(version.version) for version in versions), default=None)

    def _log_parts(
        self,
        client: Any,
        run_id: str,
        validation: Validation,
        compression: Compression,
        export: Export,
        evaluation: Evaluation,
        card: str,
    ) -> None:
        files = {
            "onnx": [export.onnx],
            "keras": [export.keras],
            "data": [validation.contract, validation.profile],
            "compression": [compression.table, compression.plot],
            "evaluation": list(evaluation.plots),
        }
        for folder, artifacts in files.items():
            for artifact in artifacts:
                client.log_artifact(run_id, artifact.path, folder)
        client.log_artifacts(run_id, export.saved_model, "saved_model")
        client.log_text(run_id, card, "model_card.md")

    def _delete_orphans(self, client: Any, run: RunRef) -> None:
        """Delete the run's logged models without a version: a registration was interrupted behind them."""
        experiment = client.get_run(run.mlflow_run_id).info.experiment_id
        registered = {found.source for found in client.search_model_versions(f"run_id = '{run.mlflow_run_id}'")}
        for logged in client.search_logged_models([experiment], f"source_run_id = '{run.mlflow_run_id}'"):
            if f"models:/{logged.model_id}" not in registered:
                logger.info("%s: %s of an interrupted registration is deleted", logged.name, logged.model_id)
                client.delete_logged_model(logged.model_id)

    @contextmanager
    def _undone(self, client: Any, model: str, run: RunRef) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        new = False
        try:
            client.get_registered_model(model)
        except MlflowException as error:
            if error.get_http_status_code() != 404:
                raise
            client.create_registered_model(model)
            new = True
        try:
            yield
        except BaseException:
            try:
                self._delete_orphans(client, run)
                if new and not client.search_model_versions(f"name = '{model}'", max_results=1):
                    client.delete_registered_model(model)
            except (MlflowException, OSError) as error:
                logger.error(
                    "%s: the next registration of pipeline %s has to clean up: %s", model, run.pipeline_id, error
                )
            raise

    def _log_model(
        self,
        client: Any,
        run: RunRef,
        name: str,
        onnx_bytes: bytes,
        tags: dict[str, str],
        example: Mapping[str, Array],
    ) -> str:
        import mlflow
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        mlflow.set_tracking_uri(self.url)  # models:/ addresses are looked up in the global one
        experiment = client.get_run(run.mlflow_run_id).info.experiment_id
        logged = client.create_logged_model(
            experiment, name=name, source_run_id=run.mlflow_run_id, tags=tags, model_type="onnx"
        )
        model = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=run.mlflow_run_id,
            model_id=logged.model_id,
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            _save_model(folder, model, onnx_bytes, example)
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run.mlflow_run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return str(logged.model_id)

    def _check_stored(self, model_id: str, sha256: str) -> None:
        import mlflow

        with tempfile.TemporaryDirectory() as temporary:
            folder = mlflow.artifacts.download_artifacts(
                f"models:/{model_id}", dst_path=temporary, tracking_uri=self.url
            )
            found = hashlib.sha256((Path(folder) / "model.onnx").read_bytes()).hexdigest()
        if found != sha256:
            raise RegistryError(f"MLflow stored a model.onnx of sha256 {found[:12]}; the gated graph has {sha256[:12]}")


def _save_model(folder: Path, model: Any, onnx_bytes: bytes, example: Mapping[str, Array]) -> None:
    import onnx

    with quiet():
        import mlflow.onnx
        import mlflow.pyfunc

    proto = onnx.load_model_from_string(onnx_bytes)
    packages = ("mlflow", "numpy", "onnx", "onnxruntime")
    mlflow.onnx.save_model(
        proto,
        str(folder),
        mlflow_model=model,
        signature=_signature(proto, example),
        input_example=dict(example),
        pip_requirements=[f"{name}=={installed_version(name)}" for name in packages],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    # MLflow writes the graph anew; what passed the gates is these bytes
    (folder / "model.onnx").write_bytes(onnx_bytes)


def _signature(proto: Any, example: Mapping[str, Array]) -> Any:
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    inputs = [TensorSpec(rows.dtype, (-1, *rows.shape[1:]), name) for name, rows in example.items()]
    outputs = []
    for value in proto.graph.output:
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        shape = [dimension.dim_value or -1 for dimension in tensor.shape.dim]
        outputs.append(TensorSpec(dtype, tuple(shape), value.name))
    return ModelSignature(Schema(inputs), Schema(outputs))
