"""Open Inference Protocol v2 over gRPC: messages to requests, responses to messages; typed and raw contents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import RequestInvalid
from homeostat.serving.dataplane import DataPlane, InferRequest, InferResponse, check_entity, check_id, check_slices
from homeostat.serving.grpc.wire import check_shape, from_bytes, from_list
from homeostat.serving.operations import index, load, refuse_unload
from homeostat.serving.protos import message
from homeostat.serving.rest import inference as rest
from homeostat.serving.served import Served
from homeostat.tensors import MAX_TENSORS, datatype_of, dtype_of

SERVICE = "inference.GRPCInferenceService"
INFERENCES = frozenset({"ModelInfer"})
"""Methods that count their refusals by version."""

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Datatype -> field of InferTensorContents; FP16 has none."""

_Contents = message("inference.InferTensorContents")
_InferResponse = message("inference.ModelInferResponse")
_MetadataResponse = message("inference.ModelMetadataResponse")


def _dtype(datatype: str, where: str) -> np.dtype[Any]:
    if datatype == "BYTES":
        raise RequestInvalid(f"{where}: BYTES; no model here takes text, encode it as the numbers that the model takes")
    return dtype_of(datatype)


def _typed(tensor: Any, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Array:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise RequestInvalid(f"{where}: {tensor.datatype} has no list in `contents`; send it in raw_input_contents")
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled not in ([], [field]):
        raise RequestInvalid(f"{where}: {tensor.datatype} belongs into {field}, not {', '.join(filled)}")
    values = getattr(tensor.contents, field)
    if len(values) != prod(shape):
        raise RequestInvalid(f"{where}.{field}: {len(values)} values, shape {list(shape)} needs {prod(shape)}")
    return from_list(values, dtype, f"{where}.{field}").reshape(shape)


def _tensors(request: Any) -> dict[str, Array]:
    raw = request.raw_input_contents
    if not 0 < len(request.inputs) <= MAX_TENSORS:
        raise RequestInvalid(f"inputs: {len(request.inputs)} of them; 1 to {MAX_TENSORS} in one request")
    if raw and len(raw) != len(request.inputs):
        raise RequestInvalid(f"raw_input_contents: {len(raw)} of them for {len(request.inputs)} inputs; one for each")
    tensors: dict[str, Array] = {}
    for place, tensor in enumerate(request.inputs):
        where = f"inputs[{place}]"
        dtype, shape = _dtype(tensor.datatype, where), check_shape(tensor.shape, where)
        if tensor.name in tensors:
            raise RequestInvalid(f"{where}: input {tensor.name!r:.80} stands twice")
        if not raw:
            tensors[tensor.name] = _typed(tensor, dtype, shape, where)
        elif tensor.HasField("contents"):
            raise RequestInvalid(f"{where}: `contents` beside raw_input_contents; send all inputs one way")
        else:
            tensors[tensor.name] = from_bytes(raw[place], dtype, shape, f"raw_input_contents[{place}]")
    return tensors


def decode(served: Served, request: Any) -> InferRequest:
    """Read a ModelInferRequest; raises RequestInvalid that says what is wrong where."""
    tensors, entity, slices = _tensors(request), None, ""
    if "entity_id" in request.parameters:
        entity = check_entity(request.parameters["entity_id"].string_param, "parameters.entity_id")
    if "slices" in request.parameters:
        slices = check_slices(request.parameters["slices"].string_param, "parameters.slices")
    rest.check_wanted(served, _wanted(request))
    given = check_id(request.id, "id") if request.id else ""
    return InferRequest(tensors, given, entity, slices=slices, pinned=bool(request.model_version))


def _wanted(request: Any) -> rest.Wanted:
    if len(request.outputs) > MAX_TENSORS:
        raise RequestInvalid(f"outputs: {len(request.outputs)} of them, at most {MAX_TENSORS}")
    wanted = rest.Wanted(bool(request.raw_input_contents))
    wanted.names = [output.name for output in request.outputs] or None
    return wanted


def encode(response: InferResponse, request: Any) -> Any:
    """Return the ModelInferResponse: raw contents if the inputs came so or an output is FP16, else typed ones."""
    names = [output.name for output in request.outputs] or list(response.outputs)
    raw = bool(request.raw_input_contents) or any(response.outputs[name].dtype.str == "<f2" for name in names)
    ref = response.served.ref
    answer = _InferResponse(model_name=ref.model, model_version=str(ref.version), id=response.id)
    for name in names:
        values = response.outputs[name]
        datatype = datatype_of(values.dtype)
        output = answer.outputs.add(name=name, datatype=datatype, shape=values.shape)
        if raw:
            answer.raw_output_contents.append(values.tobytes())
        else:
            getattr(output.contents, _CONTENTS[datatype]).extend(values.ravel().tolist())
    return answer


class InferenceService:
    """GRPCInferenceService over one data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self.methods = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    async def _server_live(self, request: Any, context: Any) -> Any:
        del request, context
        return message("inference.ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, context: Any) -> Any:
        del request, context
        return message("inference.ServerReadyResponse")(ready=self._plane.repository.ready()[0])

    async def _model_ready(self, request: Any, context: Any) -> Any:
        del context
        state = self._plane.repository.models.get(request.name)
        ready = state is not None and rest.readiness(state, request.version or None, self._plane.board)["ready"]
        return message("inference.ModelReadyResponse")(ready=ready)

    async def _server_metadata(self, request: Any, context: Any) -> Any:
        del request, context
        return message("inference.ServerMetadataResponse")(**rest.SERVER)

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        del context
        served = self._plane.find(request.name, request.version or None)
        found = rest.metadata(self._plane.state(request.name), served)
        return _MetadataResponse(properties=_properties(found.pop("parameters")), **found)

    async def _model_infer(self, request: Any, context: Any) -> Any:
        del context
        response = await self._plane.answer(
            "v2-grpc",
            lambda: self._plane.find(request.model_name, request.model_version or None),
            lambda served: decode(served, request),
        )
        return encode(response, request)

    async def _index(self, request: Any, context: Any) -> Any:
        del context
        return message("inference.RepositoryIndexResponse")(models=index(self._plane, ready=request.ready))

    async def _load(self, request: Any, context: Any) -> Any:
        del context
        if request.parameters:
            raise RequestInvalid("parameters: none are taken; the signed bundle says how a model is served")
        await load(self._plane, request.model_name)
        return message("inference.RepositoryModelLoadResponse")()

    async def _unload(self, request: Any, context: Any) -> Any:
        del context
        refuse_unload(request.model_name)


def _properties(values: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata as text, lists as JSON: the protocol has a map of text alone."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
