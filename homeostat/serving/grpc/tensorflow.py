"""TensorFlow Serving over gRPC: PredictionService and ModelService, without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, NoReturn

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import Forbidden, RequestInvalid
from homeostat.serving.dataplane import DataPlane, InferRequest, InferResponse, check_entity, check_id, check_slices
from homeostat.serving.grpc import tensorproto
from homeostat.serving.grpc.wire import from_list
from homeostat.serving.protos import message
from homeostat.serving.served import Served
from homeostat.serving.tensorflow_serving import (
    METHODS,
    SIGNATURE,
    ModelSpec,
    Tensor,
    classify,
    regress,
    signature,
    state_of,
)
from homeostat.tensors import MAX_TENSORS, datatype_of

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
INFERENCES = frozenset({"Predict", "Classify", "Regress", "MultiInference"})
"""Methods that count their refusals by version."""
MAX_TASKS = 8
"""In one MultiInferenceRequest."""
FAILED_PRECONDITION = 9

_ClassificationResult = message("tensorflow.serving.ClassificationResult")
_ModelSpec = message("tensorflow.serving.ModelSpec")
_PredictResponse = message("tensorflow.serving.PredictResponse")
_RegressionResult = message("tensorflow.serving.RegressionResult")


def _read_spec(spec: Any) -> ModelSpec:
    choice = spec.WhichOneof("version_choice")
    return ModelSpec(
        name=spec.name,
        version=str(spec.version.value) if choice == "version" else None,
        label=spec.version_label if choice == "version_label" else None,
        signature=spec.signature_name,
    )


def _spec_of(served: Served, name: str = SIGNATURE) -> Any:
    return _ModelSpec(name=served.ref.model, version={"value": served.ref.version}, signature_name=name)


def _request(tensors: dict[str, Array], context: Any, *, pinned: bool) -> InferRequest:
    """Return the request, with id, entity and slices from the call's metadata: the messages have no place for them."""
    metadata = dict(context.invocation_metadata())
    given, entity, slices = (metadata.get(f"x-{name}") for name in ("request-id", "entity-id", "slices"))
    return InferRequest(
        tensors,
        id="" if given is None else check_id(given, "x-request-id"),
        entity_id=None if entity is None else check_entity(entity, "x-entity-id"),
        slices="" if slices is None else check_slices(slices, "x-slices"),
        pinned=pinned,
    )


def _tensors(inputs: Mapping[str, Any]) -> dict[str, Array]:
    if not 0 < len(inputs) <= MAX_TENSORS:
        raise RequestInvalid(f"inputs: {len(inputs)} of them; 1 to {MAX_TENSORS} in one request")
    return {name: tensorproto.decode(tensor, f"inputs[{name!r:.80}]") for name, tensor in inputs.items()}


def _check_filter(served: Served, names: Iterable[str]) -> None:
    for name in names:
        if name not in served.session.output_names:
            raise RequestInvalid(
                f"output_filter: no output {name!r:.80}; there is: {', '.join(served.session.output_names)}"
            )


def _values(example: Any, spec: Any, where: str) -> Array:
    """Return the values [d] that an Example has for an input."""
    feature = example.features.feature.get(spec.name)
    kind = feature.WhichOneof("kind") if feature is not None else None
    dtype, count = np.dtype(spec.dtype), prod(spec.shape)
    if kind not in ("float_list", "int64_list") or (kind == "float_list" and dtype.kind != "f"):
        raise RequestInvalid(f"{where}: {kind or 'nothing'} for feature {spec.name!r}, which is {datatype_of(dtype)}")
    values = getattr(feature, kind).value
    if len(values) != count:
        raise RequestInvalid(f"{where}: {len(values)} values for feature {spec.name!r}, which has {count}")
    return from_list(values, dtype, f"{where}: feature {spec.name!r}")


def _examples(served: Served, given: Any) -> dict[str, Array]:
    """Return the tensors that a list of Examples stands for: a feature for each input, flat."""
    kind = given.WhichOneof("kind")
    examples = list(getattr(given, kind).examples) if kind else []
    if not 0 < len(examples) <= served.max_rows:
        raise RequestInvalid(f"input: {len(examples)} examples; 1 to {served.max_rows} in one request")
    if kind == "example_list_with_context":
        context = given.example_list_with_context.context
        for place, example in enumerate(examples):
            merged = type(context)()
            merged.CopyFrom(context)
            merged.MergeFrom(example)
            examples[place] = merged
    return {
        spec.name: np.stack([_values(one, spec, f"examples[{place}]") for place, one in enumerate(examples)]).reshape(
            len(examples), *spec.shape
        )
        for spec in served.contract.inputs
    }


def _classification(response: InferResponse) -> Any:
    labels, scores = classify(response)
    return _ClassificationResult(
        classifications=[
            {"classes": [{"label": label, "score": score} for label, score in zip(labels, row, strict=True)]}
            for row in scores.tolist()
        ]
    )


def _regression(response: InferResponse) -> Any:
    return _RegressionResult(regressions=[{"value": value} for value in regress(response).tolist()])


class PredictionService:
    """PredictionService over one data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self.methods = {
            "Predict": self._predict,
            "Classify": self._classify,
            "Regress": self._regress,
            "MultiInference": self._multi_inference,
            "GetModelMetadata": self._metadata,
        }

    async def _answer(
        self, spec: Any, verb: str, tensors: Callable[[Served], dict[str, Array]], context: Any
    ) -> InferResponse:
        wanted = _read_spec(spec)
        response = await self._plane.answer(
            "tensorflow-grpc",
            lambda: wanted.find(self._plane, verb),
            lambda served: _request(tensors(served), context, pinned=wanted.pinned),
        )
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), ("x-request-id", response.id)))
        return response

    async def _predict(self, request: Any, context: Any) -> Any:
        def tensors(served: Served) -> dict[str, Array]:
            _check_filter(served, request.output_filter)
            return _tensors(request.inputs)

        response = await self._answer(request.model_spec, "predict", tensors, context)
        names = request.output_filter or response.outputs
        return _PredictResponse(
            model_spec=_spec_of(response.served),
            outputs={name: tensorproto.encode(response.outputs[name]) for name in names},
        )

    async def _infer_examples(self, spec: Any, verb: str, given: Any, context: Any) -> InferResponse:
        return await self._answer(spec, verb, lambda served: _examples(served, given), context)

    async def _classify(self, request: Any, context: Any) -> Any:
        response = await self._infer_examples(request.model_spec, "classify", request.input, context)
        return message("tensorflow.serving.ClassificationResponse")(
            model_spec=_spec_of(response.served), result=_classification(response)
        )

    async def _regress(self, request: Any, context: Any) -> Any:
        response = await self._infer_examples(request.model_spec, "regress", request.input, context)
        return message("tensorflow.serving.RegressionResponse")(
            model_spec=_spec_of(response.served), result=_regression(response)
        )

    async def _multi_inference(self, request: Any, context: Any) -> Any:
        verbs = {METHODS[verb]: verb for verb in ("classify", "regress")}
        known = all(task.method_name in verbs for task in request.tasks)
        if not known or not 0 < len(request.tasks) <= MAX_TASKS:
            self._plane.metrics.refuse(400)
            raise RequestInvalid(f"tasks: 1 to {MAX_TASKS} of them, each with a method_name of {', '.join(verbs)}")
        results = []
        for task in request.tasks:
            verb = verbs[task.method_name]
            response = await self._infer_examples(task.model_spec, verb, request.input, context)
            result = _classification(response) if verb == "classify" else _regression(response)
            field = "classification_result" if verb == "classify" else "regression_result"
            results.append({"model_spec": _spec_of(response.served), field: result})
        return message("tensorflow.serving.MultiInferenceResponse")(results=results)

    async def _metadata(self, request: Any, context: Any) -> Any:
        del context
        if list(request.metadata_field) != ["signature_def"]:
            raise RequestInvalid('metadata_field: must be ["signature_def"]')
        served = _read_spec(request.model_spec).find_version(self._plane)
        inputs, outputs = signature(served)
        definition = {"inputs": _infos(inputs), "outputs": _infos(outputs), "method_name": METHODS["predict"]}
        signatures = message("tensorflow.serving.SignatureDefMap")(signature_def={SIGNATURE: definition})
        packed = message("google.protobuf.Any")(
            type_url="type.googleapis.com/tensorflow.serving.SignatureDefMap", value=signatures.SerializeToString()
        )
        return message("tensorflow.serving.GetModelMetadataResponse")(
            model_spec=_spec_of(served, ""), metadata={"signature_def": packed}
        )


def _infos(tensors: list[Tensor]) -> dict[str, Any]:
    info = message("tensorflow.TensorInfo")
    return {
        one.name: info(
            name=f"{one.name}:0",
            dtype=tensorproto.dtype_number(one.dtype),
            tensor_shape=tensorproto.shape_proto(one.shape),
        )
        for one in tensors
    }


class ModelService:
    """ModelService over one data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self.methods = {"GetModelStatus": self._status, "HandleReloadConfigRequest": self._reload}

    async def _status(self, request: Any, context: Any) -> Any:
        del context
        return message("tensorflow.serving.GetModelStatusResponse")(
            model_version_status=[
                {
                    "version": one.version,
                    "state": state_of(one),
                    "status": {"error_code": 0 if one.label else FAILED_PRECONDITION, "error_message": one.problem},
                }
                for one in _read_spec(request.model_spec).statuses(self._plane)
            ]
        )

    async def _reload(self, request: Any, context: Any) -> NoReturn:
        del request, context
        raise Forbidden(
            "nobody reloads a configuration here; what answers follows the rollout row: homeostat promote, "
            "homeostat rollback"
        )
