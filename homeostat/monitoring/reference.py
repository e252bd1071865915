"""The reference that travels with a version: held-out rows, the model's answers to them, and their targets."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from zipfile import BadZipFile

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array, Dataset
from homeostat.errors import BundleInvalid
from homeostat.evaluation.importance import permutation_importance
from homeostat.inference import predict
from homeostat.project import Project


@dataclass(frozen=True)
class Reference:
    """Held-out rows as the live version answers them.

    inputs, outputs: name -> [n, ...]. columns: input name -> names of its columns. target: [n].
    slices: name -> [n] str, as the project says. importance: watched column -> rise of the loss
    when it is permuted; empty for a version from before it was measured.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    columns: dict[str, tuple[str, ...]]
    target: Array
    slices: dict[str, Array] = field(default_factory=dict)
    importance: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.target)


def make_reference(project: Project, config: ProjectConfig, data: Dataset, onnx: bytes, seed: int) -> bytes:
    """Return an .npz (no pickle) of at most config.monitor.reference_rows rows of `data`, drawn by `seed`.

    data: rows the model was not fitted on (validation and calibration parts). The same
    arguments give the same bytes.
    """
    # inputs are kept raw, so that a project's later `to_frame` applies to both sides
    rows = np.arange(len(data))
    if len(data) > config.monitor.reference_rows:
        rows = np.sort(np.random.default_rng(seed).choice(rows, config.monitor.reference_rows, replace=False))
    kept = data.take(rows)
    arrays: dict[str, Array] = {f"input:{name}": values for name, values in kept.inputs.items()}
    arrays |= {f"output:{name}": values for name, values in predict(onnx, kept.inputs).items()}
    arrays |= {f"columns:{name}": np.array(names, dtype=str) for name, names in kept.columns.items()}
    arrays |= {f"slice:{name}": np.asarray(values).astype(str) for name, values in project.slices(kept).items()}
    importance = permutation_importance(project, config.task, kept, onnx, seed)
    arrays["importance:columns"] = np.array(list(importance), dtype=str)
    arrays["importance:values"] = np.array(list(importance.values()), dtype=np.float64)
    arrays["target"] = kept.target
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def answer_again(reference: bytes, onnx: bytes) -> bytes:
    """Return the reference of another version as this graph answers its rows; raises DataInvalid when it cannot."""
    found = load_reference(reference)
    with np.load(io.BytesIO(reference), allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files if not name.startswith("output:")}
    answers = {f"output:{name}": values for name, values in predict(onnx, found.inputs).items()}
    buffer = io.BytesIO()
    np.savez(buffer, **(kept | answers))
    return buffer.getvalue()


def load_reference(data: bytes) -> Reference:
    """Read what `make_reference` wrote; raises BundleInvalid when the bytes are something else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            named: dict[str, Array] = {name: arrays[name] for name in arrays.files}
        target = named.pop("target")
    except (ValueError, KeyError, EOFError, OSError, AttributeError, BadZipFile) as error:
        raise BundleInvalid(f"the bundle's reference.npz cannot be read: {error}; deploy the version again") from error

    def group(prefix: str) -> dict[str, Array]:
        return {name.removeprefix(prefix): v for name, v in named.items() if name.startswith(prefix)}

    columns = {name: tuple(map(str, v)) for name, v in group("columns:").items()}
    measured = group("importance:")
    names, values = (measured.get(name, np.empty(0)).tolist() for name in ("columns", "values"))
    if len(names) != len(values):
        raise BundleInvalid("the bundle's reference.npz names columns without importance; deploy the version again")
    importance = dict(zip(map(str, names), map(float, values), strict=True))
    reference = Reference(group("input:"), group("output:"), columns, target, group("slice:"), importance)
    parts = (target, *reference.inputs.values(), *reference.outputs.values(), *reference.slices.values())
    lengths = {len(v) for v in parts}
    if not reference.inputs or not reference.outputs or len(lengths) != 1:
        raise BundleInvalid("the bundle's reference.npz lacks inputs, outputs or rows; deploy the version again")
    return reference
