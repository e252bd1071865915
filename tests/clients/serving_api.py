"""TensorFlow Serving's own client package against a server: `python serving_api.py GRPC_PORT`.

Runs in a process of its own, since its messages and TensorFlow's share one descriptor pool. Prints `ok` at the end.
"""

import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

ROWS = np.array([[1, 2, 3, 4], [1, 1, 1, 1]], np.float32)


def example(values: list[float]) -> tf.train.Example:
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Example(features=tf.train.Features(feature={"x": feature}))


def predict(service: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "toy"
    for expected, label in (([[20], [8]], None), ([[20], [8]], "champion"), ([[10], [4]], "previous")):
        if label:
            request.model_spec.version_label = label
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(ROWS))
        answer = service.Predict(request, 20)
        np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["output"]), np.array(expected, np.float32))
    request.model_spec.version.value = 1
    assert list(service.Predict(request, 20).outputs["output"].float_val) == [10, 4]

    every = (
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    )
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "kinds"
    for name in every:
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array([[0, 1]]).astype(name)))
    answer = service.Predict(request, 20)
    for name in every:
        found = tf.make_ndarray(answer.outputs[f"out_{name}"])
        np.testing.assert_array_equal(found, np.array([[0, 1]]).astype(name), strict=True)


def examples(service: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    request = regression_pb2.RegressionRequest()
    request.model_spec.name = "toy"
    request.input.example_list.examples.extend([example([1, 2, 3, 4]), example([1, 1, 1, 1])])
    assert [one.value for one in service.Regress(request, 20).result.regressions] == [20, 8]

    wanted = classification_pb2.ClassificationRequest()
    wanted.model_spec.name = "coin"
    wanted.input.example_list.examples.append(example([0]))
    (scored,) = service.Classify(wanted, 20).result.classifications
    assert [(one.label, one.score) for one in scored.classes] == [("tails", 0.5), ("heads", 0.5)]

    several = inference_pb2.MultiInferenceRequest(input=request.input)
    several.tasks.add(model_spec=request.model_spec, method_name="tensorflow/serving/regress")
    (result,) = service.MultiInference(several, 20).results
    assert result.regression_result.regressions[0].value == 20


def describe(service: prediction_service_pb2_grpc.PredictionServiceStub, channel: grpc.Channel) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "toy"
    answer = service.GetModelMetadata(request, 20)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    tensor = signatures.signature_def["serving_default"].inputs["x"]
    assert (tensor.dtype, [dim.size for dim in tensor.tensor_shape.dim]) == (tf.float32.as_datatype_enum, [-1, 4])

    models = model_service_pb2_grpc.ModelServiceStub(channel)
    wanted = get_model_status_pb2.GetModelStatusRequest()
    wanted.model_spec.name = "toy"
    versions = models.GetModelStatus(wanted, 20).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(one.version, one.state) for one in versions] == [(2, available), (1, available)]
    call = models.HandleReloadConfigRequest.future(model_management_pb2.ReloadConfigRequest(), 20)
    assert call.code() == grpc.StatusCode.PERMISSION_DENIED


if __name__ == "__main__":
    with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}") as opened:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
        predict(stub)
        examples(stub)
        describe(stub, opened)
    sys.stdout.write("ok\n")
