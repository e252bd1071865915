"""Both protocols over gRPC: every datatype both ways, and every bad request with its status code and its count."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

from homeostat.serving.capture.writer import frames
from homeostat.serving.protos import message
from homeostat.tensors import DTYPES, datatype_of
from tests.bundles import ONNX_TYPES
from tests.grpc_client import INFERENCE, MODELS, PREDICTION

CONTENTS = {"BOOL": "bool", "INT64": "int64", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64"}
VALUES = {name: np.array([[0, 1], [1, 1]]).astype(name) for name in ONNX_TYPES}
X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4]}}
RAW = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
FLAT = np.array([1, 2, 3, 4], "<f4").tobytes()


def field(datatype: str) -> str:
    return CONTENTS.get(datatype, "uint" if datatype.startswith("U") else "int") + "_contents"


def extreme(dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return np.array([[limits.min, limits.max], [0, 1]], kind)
    return np.array([[1, 0], [0, 1]], kind) if kind.kind == "b" else np.array([[0.1, -2.5], [0, 1e-3]], kind)


def refused(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


def test_every_datatype_travels_as_raw_contents(client) -> None:
    given = {name: extreme(name) for name in ONNX_TYPES}
    inputs = [{"name": n, "datatype": datatype_of(v.dtype), "shape": v.shape} for n, v in given.items()]
    raw = [values.tobytes() for values in given.values()]
    answer = client.call(INFERENCE, "ModelInfer", model_name="kinds", inputs=inputs, raw_input_contents=raw)
    assert {output.datatype for output in answer.outputs} == set(DTYPES)
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        found = np.frombuffer(data, DTYPES[output.datatype]).reshape(list(output.shape))
        np.testing.assert_array_equal(found, given[output.name.removeprefix("out_")], strict=True)
        assert not output.HasField("contents")


def test_every_datatype_but_fp16_travels_as_typed_contents(client) -> None:
    """FP16 has no list: it is refused as an input, and as an output it makes the whole answer raw."""
    for name in ONNX_TYPES:
        values = extreme(name)
        datatype = datatype_of(values.dtype)
        tensor = {"name": name, "datatype": datatype, "shape": [2, 2]}
        if datatype == "FP16":
            code, text = refused(lambda t=tensor: client.call(INFERENCE, "ModelInfer", model_name="kinds", inputs=[t]))
            assert (code, "raw_input_contents" in text) == ("INVALID_ARGUMENT", True)
            continue
        tensor["contents"] = {field(datatype): values.ravel().tolist()}
        code, text = refused(lambda t=tensor: client.call(INFERENCE, "ModelInfer", model_name="kinds", inputs=[t]))
        assert (code, "missing" in text) == ("INVALID_ARGUMENT", True), "it was read: the other inputs are asked for"


def test_typed_outputs(client) -> None:
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1, 2]}},
        {"name": "b", "datatype": "INT64", "shape": [1], "contents": {"int64_contents": [2**40]}},
    ]
    answer = client.call(INFERENCE, "ModelInfer", model_name="pair", inputs=inputs)
    assert list(answer.outputs[0].contents.fp32_contents) == [2, 4]
    assert list(answer.outputs[1].contents.int64_contents) == [2**41]
    assert not answer.raw_output_contents


@pytest.mark.parametrize(
    ("fields", "message_part"),
    [
        ({"inputs": []}, "0 of them"),
        ({"inputs": [X] * 300}, "300 of them"),
        ({"inputs": [X, X]}, "stands twice"),
        ({"inputs": [{**X, "datatype": "FP8"}]}, "'FP8' is not known"),
        ({"inputs": [{**X, "datatype": "INT32"}]}, "belongs into int_contents, not fp32_contents"),
        ({"inputs": [{**X, "shape": []}]}, "0 dimensions"),
        ({"inputs": [{**X, "shape": [1] * 17}]}, "17 dimensions"),
        ({"inputs": [{**X, "shape": [-1, 4]}]}, "-1 is not a size"),
        ({"inputs": [{**X, "shape": [2**41, 4]}]}, "is not a size"),
        ({"inputs": [{**X, "shape": [2, 4]}]}, "4 values, shape [2, 4] needs 8"),
        ({"inputs": [{**X, "shape": [0, 4], "contents": {}}]}, "0 rows"),
        ({"inputs": [{**X, "contents": {"fp32_contents": [float("nan")] * 4}}]}, "NaN"),
        ({"inputs": [{**RAW, "shape": [9, 4]}], "raw_input_contents": [FLAT * 9]}, "9 rows"),
        ({"inputs": [RAW], "raw_input_contents": [FLAT[:-1]]}, "15 bytes; FP32 [1, 4] has 16"),
        ({"inputs": [RAW], "raw_input_contents": [FLAT, FLAT]}, "2 of them for 1 inputs"),
        ({"inputs": [X], "raw_input_contents": [FLAT]}, "beside raw_input_contents"),
        ({"inputs": [X], "outputs": [{"name": "y"}]}, "no output 'y'"),
        ({"inputs": [X], "outputs": [{"name": "output"}] * 300}, "300 of them"),
        ({"inputs": [X], "outputs": [{"name": "output"}] * 2}, "one stands twice"),
        ({"inputs": [X], "id": "\n"}, "printable"),
        ({"inputs": [X], "parameters": {"entity_id": {"int64_param": 3}}}, "parameters.entity_id"),
        ({"inputs": [X], "parameters": {"slices": {"string_param": "site"}}}, "parameters.slices"),
    ],
)
def test_bad_inference_requests(zoo, client, fields, message_part) -> None:
    counts = zoo.repository.models["toy"].live.metrics
    before = counts.statuses.get(400, 0)
    code, text = refused(lambda: client.call(INFERENCE, "ModelInfer", model_name="toy", **fields))
    assert (code, message_part in text) == ("INVALID_ARGUMENT", True), text
    assert counts.statuses[400] == before + 1


def test_a_value_over_its_datatype_is_refused(client) -> None:
    tensor = {"name": "int8", "datatype": "INT8", "shape": [1, 2], "contents": {"int_contents": [128, 0]}}
    code, text = refused(lambda: client.call(INFERENCE, "ModelInfer", model_name="kinds", inputs=[tensor]))
    assert (code, "not all values are INT8" in text) == ("INVALID_ARGUMENT", True)


def test_unknown_models_and_versions(zoo, client) -> None:
    before = zoo.metrics.refused.get(404, 0)
    for fields in ({"model_name": "no"}, {"model_name": "toy", "model_version": "3"}, {"model_name": "../../etc"}):
        assert refused(lambda f=fields: client.call(INFERENCE, "ModelInfer", inputs=[X], **f))[0] == "NOT_FOUND"
    assert refused(lambda: client.call(INFERENCE, "ModelMetadata", name="no"))[0] == "NOT_FOUND"
    assert zoo.metrics.refused[404] == before + 4
    ready = [client.call(INFERENCE, "ModelReady", name=n, version=v).ready for n, v in (("no", ""), ("toy", "9"))]
    assert ready == [False, False]
    assert client.call(INFERENCE, "ModelReady", name="toy", version="3").ready, "a challenger is loaded and warm"


def test_bytes_that_are_no_message_and_methods_that_are_none(client) -> None:
    code, text = refused(lambda: client.send(INFERENCE, "ModelInfer", b"\xff\xff"))
    assert (code, text) == ("INVALID_ARGUMENT", "the bytes are no inference.ModelInferRequest")
    unknown = client.channel.unary_unary(f"/{INFERENCE}/ModelStreamInfer")
    assert refused(lambda: unknown(b"", timeout=10))[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_the_limit_is_refused_also_when_it_comes_compressed(client, compression) -> None:
    data = message("inference.ModelInferRequest")(model_name="toy", raw_input_contents=[b"\0" * 70_000])
    call = lambda: client.send(INFERENCE, "ModelInfer", data.SerializeToString(), compression=compression)  # noqa: E731
    assert refused(call)[0] == "RESOURCE_EXHAUSTED"
    small = message("inference.ModelInferRequest")(model_name="toy", inputs=[X]).SerializeToString()
    assert client.send(INFERENCE, "ModelInfer", small, compression=compression)[0].outputs


def test_an_unexpected_failure_is_internal_and_logged(zoo, client, monkeypatch, caplog) -> None:
    monkeypatch.setattr(zoo.repository, "ready", lambda: 1 / 0)
    code, text = refused(lambda: client.call(INFERENCE, "ServerReady"))
    assert (code, "ZeroDivisionError" in text) == ("INTERNAL", True)
    assert "inference.ServerReadyRequest failed" in caplog.text


def proto(dtype: int, shape: list[int], **fields: Any) -> Any:
    return message("tensorflow.TensorProto")(dtype=dtype, tensor_shape={"dim": [{"size": s} for s in shape]}, **fields)


def predict(client: Any, tensor: Any, **spec: Any) -> Any:
    return client.call(PREDICTION, "Predict", model_spec={"name": "toy", **spec}, inputs={"x": tensor})


def test_one_value_may_stand_for_all(client) -> None:
    assert list(predict(client, proto(1, [2, 4], float_val=[2])).outputs["output"].float_val) == [16, 16]
    assert list(predict(client, proto(1, [1, 4], float_val=[1, 2])).outputs["output"].float_val) == [14]
    assert list(predict(client, proto(1, [1, 4])).outputs["output"].float_val) == [0]


@pytest.mark.parametrize(
    ("tensor", "message_part"),
    [
        (proto(7, [1], string_val=[b"x"]), "DT_STRING"),
        (proto(14, [1]), "DT_BFLOAT16"),
        (proto(99, [1]), "99"),
        (proto(1, []), "0 dimensions"),
        (proto(1, [-1, 4]), "-1 is not a size"),
        (proto(1, [1, 4], tensor_content=FLAT + b"x"), "17 bytes"),
        (proto(1, [1, 4], float_val=[1] * 5), "5 values"),
        (proto(1, [2**40, 4], float_val=[1]), "send all, or a smaller shape"),
        (proto(1, [9, 4], float_val=[1]), "9 rows"),
        (proto(3, [1, 4], int_val=[1]), "expected float32"),
        (message("tensorflow.TensorProto")(dtype=1, tensor_shape={"unknown_rank": True}), "unknown rank"),
    ],
)
def test_bad_tensors(client, tensor, message_part) -> None:
    code, text = refused(lambda: predict(client, tensor))
    assert (code, message_part in text) == ("INVALID_ARGUMENT", True), text


def test_bad_model_specs(zoo, client) -> None:
    tensor = proto(1, [1, 4], float_val=[1])
    assert refused(lambda: predict(client, tensor, name=""))[0] == "INVALID_ARGUMENT"
    assert refused(lambda: predict(client, tensor, signature_name="other"))[0] == "INVALID_ARGUMENT"
    assert refused(lambda: predict(client, tensor, version={"value": 9}))[0] == "NOT_FOUND"
    assert refused(lambda: predict(client, tensor, version_label="stable"))[0] == "NOT_FOUND"
    assert refused(lambda: client.call(MODELS, "GetModelStatus", model_spec={"name": "no"}))[0] == "NOT_FOUND"
    code, text = refused(lambda: client.call(PREDICTION, "GetModelMetadata", model_spec={"name": "toy"}))
    assert (code, "signature_def" in text) == ("INVALID_ARGUMENT", True)
    filtered = {"model_spec": {"name": "toy"}, "inputs": {"x": tensor}, "output_filter": ["y"]}
    assert refused(lambda: client.call(PREDICTION, "Predict", **filtered))[0] == "INVALID_ARGUMENT"


def example(**features: Any) -> dict[str, Any]:
    return {"features": {"feature": features}}


@pytest.mark.parametrize(
    ("examples", "message_part"),
    [
        ([], "0 examples"),
        ([example(x={"float_list": {"value": [1] * 4}})] * 9, "9 examples"),
        ([example()], "examples[0]: nothing for feature 'x'"),
        ([example(x={"bytes_list": {"value": [b"x"]}})], "bytes_list"),
        ([example(x={"float_list": {"value": [1] * 3}})], "3 values"),
    ],
)
def test_bad_examples(client, examples, message_part) -> None:
    given = {"model_spec": {"name": "toy"}, "input": {"example_list": {"examples": examples}}}
    code, text = refused(lambda: client.call(PREDICTION, "Regress", **given))
    assert (code, message_part in text) == ("INVALID_ARGUMENT", True), text


def test_bad_tasks(client) -> None:
    task = {"model_spec": {"name": "toy"}, "method_name": "tensorflow/serving/regress"}
    for tasks in ([], [task] * 9, [{**task, "method_name": "tensorflow/serving/predict"}]):
        code, _ = refused(lambda t=tasks: client.call(PREDICTION, "MultiInference", tasks=t))
        assert code == "INVALID_ARGUMENT"


def test_id_and_entity_come_with_the_metadata_of_the_call(zoo, client) -> None:
    request = message("tensorflow.serving.PredictRequest")(
        model_spec={"name": "toy"}, inputs={"x": proto(1, [1, 4], float_val=[1])}
    ).SerializeToString()
    metadata = (("x-request-id", "tf-1"), ("x-entity-id", "patient-4"))
    _, trailing = client.send(PREDICTION, "Predict", request, metadata=metadata)
    assert trailing["x-request-id"] == "tf-1"
    _, text, _, _ = next(frames(bytearray(zoo.recorder._waiting[-1])))
    assert (json.loads(text)[0], json.loads(text)[5]) == ("tf-1", "patient-4")
    _, trailing = client.send(PREDICTION, "Predict", request)
    assert len(trailing["x-request-id"]) == 32
    for bad in ((("x-request-id", "x" * 129),), (("x-slices", "site"),)):
        call = partial(client.send, PREDICTION, "Predict", request, metadata=bad)
        assert refused(call)[0] == "INVALID_ARGUMENT"
