"""TensorFlow Serving over REST: its paths, and its JSON bodies in row and column format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from homeostat.contract import TensorSpec
from homeostat.dataset import Array
from homeostat.errors import RequestInvalid
from homeostat.serving.dataplane import DataPlane, InferRequest, InferResponse, check_entity, check_id, check_slices
from homeostat.serving.rest import inference
from homeostat.serving.served import Served
from homeostat.serving.tensorflow_serving import (
    DTYPES,
    METHODS,
    SIGNATURE,
    ModelSpec,
    Tensor,
    classify,
    regress,
    signature,
    state_of,
)
from homeostat.tensors import MAX_TENSORS

PREFIX = "/v1/models/"


class Route(NamedTuple):
    """What a path means: `status`, `metadata`, or the verb that is posted."""

    action: str
    model: str
    version: str | None = None
    label: str | None = None


@lru_cache(maxsize=1024)
def route(path: str) -> Route | None:
    """Return what a path under PREFIX means, or None."""
    place, colon, verb = path.removeprefix(PREFIX).partition(":")
    if len(path) > 512 or (colon and verb not in METHODS):
        return None
    match place.split("/"):
        case [model]:
            which = {}
        case [model, "metadata"] if not colon:
            return Route("metadata", model)
        case [model, "versions", version]:
            which = {"version": version}
        case [model, "labels", label]:
            which = {"label": label}
        case [model, "versions", version, "metadata"] if not colon:
            return Route("metadata", model, version=version)
        case [model, "labels", label, "metadata"] if not colon:
            return Route("metadata", model, label=label)
        case _:
            return None
    return Route(verb or "status", model, **which)


def status(plane: DataPlane, found: Route) -> dict[str, Any]:
    """Return the body of a status request; raises RequestInvalid."""
    versions = ModelSpec(found.model, found.version, found.label).statuses(plane)
    return {
        "model_version_status": [
            {
                "version": str(one.version),
                "state": state_of(one),
                "status": {"error_code": "OK" if one.label else "FAILED_PRECONDITION", "error_message": one.problem},
            }
            for one in versions
        ]
    }


def metadata(plane: DataPlane, found: Route) -> dict[str, Any]:
    """Return the body of a metadata request; raises RequestInvalid."""
    served = ModelSpec(found.model, found.version, found.label).find_version(plane)
    inputs, outputs = signature(served)
    definition = {"inputs": _infos(inputs), "outputs": _infos(outputs), "method_name": METHODS["predict"]}
    return {
        "model_spec": {"name": served.ref.model, "signature_name": "", "version": str(served.ref.version)},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: definition}}},
    }


def _infos(tensors: list[Tensor]) -> dict[str, Any]:
    return {
        one.name: {
            "dtype": DTYPES[one.dtype.str],
            "tensor_shape": {"dim": [{"size": str(size), "name": ""} for size in one.shape], "unknown_rank": False},
            "name": f"{one.name}:0",
        }
        for one in tensors
    }


READ = {"status": status, "metadata": metadata}
"""What is read with GET."""


async def infer(plane: DataPlane, found: Route, body: bytes, headers: Mapping[bytes, bytes]) -> tuple[bytes, str]:
    """Answer `:predict`, `:classify` or `:regress`; return the JSON body and the request's id. Raises RequestInvalid.

    headers: X-Request-Id, X-Entity-Id and X-Slices are taken for the request's id, entity and slices.
    """
    value: dict[str, Any] = {}

    def find() -> Served:
        value.update(inference.parse_json(body))
        name = value.get("signature_name", "")
        return ModelSpec(found.model, found.version, found.label, str(name)).find(plane, found.action)

    def decode(served: Served) -> InferRequest:
        tensors = _tensors(served, value) if found.action == "predict" else _examples(served, value)
        given, entity = headers.get(b"x-request-id"), headers.get(b"x-entity-id")
        slices = headers.get(b"x-slices")
        return InferRequest(
            tensors,
            id="" if given is None else check_id(given.decode("latin-1"), "X-Request-Id"),
            entity_id=None if entity is None else check_entity(entity.decode("latin-1"), "X-Entity-Id"),
            slices="" if slices is None else check_slices(slices.decode("latin-1"), "X-Slices"),
            pinned=ModelSpec(found.model, found.version, found.label).pinned,
        )

    response = await plane.answer("tensorflow-rest", find, decode)
    answer = orjson.dumps(_encode(response, found.action, value), option=orjson.OPT_SERIALIZE_NUMPY)
    return answer, response.id


def _tensor(data: Any, spec: TensorSpec, where: str) -> Array:
    if not isinstance(data, list):
        raise RequestInvalid(f"{where}: must be a list of rows, not {type(data).__name__}")
    return inference.from_json(data, np.dtype(spec.dtype), (len(data), *spec.shape), where)


def _tensors(served: Served, value: dict[str, Any]) -> dict[str, Array]:
    """Return the tensors of `instances` (a row each) or `inputs` (a column each)."""
    specs = served.contract.inputs
    if ("instances" in value) == ("inputs" in value):
        raise RequestInvalid('body: give either "instances" (rows) or "inputs" (columns)')
    if "inputs" in value:
        columns, where = value["inputs"], "inputs"
    else:
        columns, where = _columns(value["instances"], [spec.name for spec in specs]), "instances"
    if not isinstance(columns, dict):
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise RequestInvalid(f"{where}: the model has inputs {names}; name each")
        return {specs[0].name: _tensor(columns, specs[0], where)}
    if columns.keys() != {spec.name for spec in specs} or len(columns) > MAX_TENSORS:
        raise RequestInvalid(f"{where}: must name {', '.join(spec.name for spec in specs)}, and nothing else")
    return {spec.name: _tensor(columns[spec.name], spec, f"{where}.{spec.name}") for spec in specs}


def _columns(instances: Any, names: list[str]) -> Any:
    """Return instances that are objects as one list for each input; others as they are."""
    if not isinstance(instances, list) or not instances:
        raise RequestInvalid("instances: a list with one entry a row is needed")
    if not isinstance(instances[0], dict):
        return instances
    for place, one in enumerate(instances):
        if not isinstance(one, dict) or one.keys() != set(names):
            raise RequestInvalid(f"instances[{place}]: must be an object with {', '.join(names)}, and nothing else")
    return {name: [one[name] for one in instances] for name in names}


def _examples(served: Served, value: dict[str, Any]) -> dict[str, Array]:
    """Return the tensors of `examples`: a feature for each input, flat; what is in `context` counts for all."""
    examples, context = value.get("examples"), value.get("context", {})
    if not isinstance(examples, list) or not 0 < len(examples) <= served.max_rows:
        raise RequestInvalid(f"examples: a list of 1 to {served.max_rows} objects is needed")
    if not isinstance(context, dict) or not all(isinstance(one, dict) for one in examples):
        raise RequestInvalid("context, and each of examples: must be an object of features")
    tensors = {}
    for spec in served.contract.inputs:
        flat: list[Any] = []
        for place, one in enumerate(examples):
            values = one.get(spec.name, context.get(spec.name))
            values = values if isinstance(values, list) else [values]
            if len(values) != prod(spec.shape):
                raise RequestInvalid(
                    f"examples[{place}]: {len(values)} values for feature {spec.name!r}, which has {prod(spec.shape)}"
                )
            flat += values
        shape = (len(examples), *spec.shape)
        tensors[spec.name] = inference.from_json(flat, np.dtype(spec.dtype), shape, f"feature {spec.name!r}")
    return tensors


def _encode(response: InferResponse, action: str, value: dict[str, Any]) -> dict[str, Any]:
    if action == "classify":
        labels, scores = classify(response)
        return {"result": [list(zip(labels, row, strict=True)) for row in scores.tolist()]}
    if action == "regress":
        return {"result": regress(response)}
    outputs = response.outputs
    if len(outputs) == 1:
        return {"outputs" if "inputs" in value else "predictions": next(iter(outputs.values()))}
    if "inputs" in value:
        return {"outputs": outputs}
    # rows of one value as Python's numbers: ONNX Runtime's int64 is a C long long, which orjson does not know alone
    columns = [values if values.ndim > 1 else values.tolist() for values in outputs.values()]
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]}
