"""TensorFlow Serving's words for models, whichever way they come: signatures, labels, status, classify and regress."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import RequestInvalid
from homeostat.serving.dataplane import DataPlane, InferResponse, ModelNotFound
from homeostat.serving.served import Served
from homeostat.serving.versions import VersionStatus, find_label, statuses

SIGNATURE = "serving_default"
"""The one signature of a model here."""
METHODS = {verb: f"tensorflow/serving/{verb}" for verb in ("predict", "classify", "regress")}
TASKS = {"classify": "classification", "regress": "regression"}
DTYPES = {
    "|b1": "DT_BOOL",
    "|i1": "DT_INT8",
    "<i2": "DT_INT16",
    "<i4": "DT_INT32",
    "<i8": "DT_INT64",
    "|u1": "DT_UINT8",
    "<u2": "DT_UINT16",
    "<u4": "DT_UINT32",
    "<u8": "DT_UINT64",
    "<f2": "DT_HALF",
    "<f4": "DT_FLOAT",
    "<f8": "DT_DOUBLE",
}
"""numpy dtype -> TensorFlow's name of it."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model, version or label, and signature a request is for."""

    name: str
    version: str | None = None
    label: str | None = None
    signature: str = ""

    @property
    def pinned(self) -> bool:
        """Whether one version is meant, and no other."""
        return self.version is not None or self.label is not None

    def find(self, plane: DataPlane, verb: str) -> Served:
        """Return the version that is to answer, if its model can do what the verb says; raises RequestInvalid."""
        served = self.find_version(plane)
        if self.signature not in ("", SIGNATURE, METHODS[verb]):
            raise RequestInvalid(f"model {self.name!r} has no signature {self.signature!r:.80}; use {SIGNATURE!r}")
        if verb in TASKS and served.task != TASKS[verb]:
            raise RequestInvalid(f"model {self.name!r} does {served.task}, and cannot {verb}; use predict")
        if verb in TASKS and len(served.session.outputs) != 1:
            raise RequestInvalid(f"model {self.name!r} has more than one output; use predict")
        if verb == "regress" and prod(served.session.outputs[0].shape) != 1:
            raise RequestInvalid(f"model {self.name!r} answers more than one value a row; use predict")
        return served

    def find_version(self, plane: DataPlane) -> Served:
        """Return the version that is meant, if it answers; raises RequestInvalid."""
        if not self.name:
            raise RequestInvalid("model_spec.name: empty; name a model")
        if self.label is not None:
            return find_label(plane, self.name, self.label)
        return plane.find(self.name, self.version)

    def statuses(self, plane: DataPlane) -> list[VersionStatus]:
        """Return the status of each version that is meant; raises ModelNotFound when there is none."""
        every = statuses(plane.state(self.name))
        found = [one for one in every if self.version in (None, str(one.version)) and self.label in (None, one.label)]
        if not found:
            raise ModelNotFound(self.name, self.version or self.label, [str(one.version) for one in every])
        return found


@dataclass(frozen=True)
class Tensor:
    """An input or output of a signature; shape: -1 is the batch, or any open size."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


def signature(served: Served) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs and outputs of a version."""
    inputs = [Tensor(spec.name, np.dtype(spec.dtype), (-1, *spec.shape)) for spec in served.contract.inputs]
    outputs = [Tensor(output.name, output.dtype, (-1, *output.shape)) for output in served.session.outputs]
    return inputs, outputs


def state_of(status: VersionStatus) -> str:
    """Return TensorFlow Serving's name of a state: a challenger is at START, a refused version at END."""
    if status.answers:
        return "AVAILABLE"
    return "START" if status.label else "END"


def _only_output(response: InferResponse) -> Array:
    (values,) = response.outputs.values()
    return values.reshape(len(values), -1).astype(np.float64)


def classify(response: InferResponse) -> tuple[list[str], Array]:
    """Return the labels of k classes, and the score of each [n, k]; a single sigmoid gives the scores of two classes.

    Classes that the bundle does not name are numbered.
    """
    scores = _only_output(response)
    if scores.shape[1] == 1:
        scores = np.hstack([1 - scores, scores])
    names, count = response.served.classes, scores.shape[1]
    return (list(names) if len(names) == count else [str(place) for place in range(count)]), scores


def regress(response: InferResponse) -> Array:
    """Return one value for each row [n]."""
    return _only_output(response)[:, 0]
