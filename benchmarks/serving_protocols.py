"""What is sent to each server of the benchmark and what it answers, as the protocol it speaks has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.serving_load import Request
from benchmarks.serving_models import Workload
from homeostat.serving.protos import message

JSON = {"Content-Type": "application/json"}
BINARY = {"Content-Type": "application/octet-stream"}
LENGTH = "Inference-Header-Content-Length"

_InferRequest = message("inference.ModelInferRequest")
_InferResponse = message("inference.ModelInferResponse")


@dataclass(frozen=True)
class Protocol:
    """How rows are asked for, and how the output [n, last] is read from the answer."""

    path: str
    """With {model} where the model's name belongs."""
    encode: Callable[[Workload], tuple[bytes, dict[str, str]]]
    """Body and headers."""
    decode: Callable[[bytes, Mapping[str, str]], np.ndarray] | None
    """(body, headers with names in lower case) -> output; None where nothing comes that could be compared."""
    scheme: str = "http"

    def request(self, workload: Workload, port: int) -> Request:
        body, headers = self.encode(workload)
        return Request(f"{self.scheme}://127.0.0.1:{port}{self.path.format(model=workload.name)}", body, headers)


def _lists(workload: Workload) -> list[list[float]]:
    """The rows with four decimals, as a client would write them."""
    return [[round(value, 4) for value in row] for row in workload.rows().astype(float).tolist()]


def _tensor(workload: Workload) -> dict[str, Any]:
    return {"name": "x", "shape": list(workload.rows().shape), "datatype": "FP32"}


def _v2(workload: Workload) -> tuple[bytes, dict[str, str]]:
    flat = [value for row in _lists(workload) for value in row]
    return json.dumps({"inputs": [{**_tensor(workload), "data": flat}]}).encode(), JSON


def _read_v2(body: bytes, headers: Mapping[str, str]) -> np.ndarray:
    (output,) = json.loads(body)["outputs"]
    return np.array(output["data"]).reshape(output["shape"])


def _v2_binary(workload: Workload) -> tuple[bytes, dict[str, str]]:
    data = workload.rows().tobytes()
    tensor = {**_tensor(workload), "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {**BINARY, LENGTH: str(len(head))}


def _read_v2_binary(body: bytes, headers: Mapping[str, str]) -> np.ndarray:
    length = int(headers[LENGTH.lower()])
    (output,) = json.loads(body[:length])["outputs"]
    return np.frombuffer(body[length:], np.float32).reshape(output["shape"])


def _v2_grpc(workload: Workload) -> tuple[bytes, dict[str, str]]:
    request = _InferRequest(model_name=workload.name, raw_input_contents=[workload.rows().tobytes()])
    request.inputs.add(**_tensor(workload))
    return request.SerializeToString(), {}


def _read_v2_grpc(body: bytes, headers: Mapping[str, str]) -> np.ndarray:
    answer = _InferResponse.FromString(body)
    (output,) = answer.outputs
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(output.shape)
    return np.array(output.contents.fp32_contents).reshape(output.shape)


def _plain(workload: Workload) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"x": _lists(workload)}).encode(), JSON


def _read_plain(body: bytes, headers: Mapping[str, str]) -> np.ndarray:
    return np.array(json.loads(body)["output"])


def _mlflow(workload: Workload) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"inputs": {"x": _lists(workload)}}).encode(), JSON


def _read_mlflow(body: bytes, headers: Mapping[str, str]) -> np.ndarray:
    return np.array(json.loads(body)["predictions"]["output"])


V2 = Protocol("/v2/models/{model}/infer", _v2, _read_v2)
V2_BINARY = Protocol("/v2/models/{model}/infer", _v2_binary, _read_v2_binary)
V2_GRPC = Protocol("/inference.GRPCInferenceService/ModelInfer", _v2_grpc, _read_v2_grpc, "grpc")
PLAIN = Protocol("/predict", _plain, _read_plain)
"""{"x": [[...]]} -> {"output": [[...]]}."""
MLFLOW = Protocol("/invocations", _mlflow, _read_mlflow)
PLAIN_IN_THREAD = replace(PLAIN, path="/predict_in_thread")
TORCHSERVE = replace(PLAIN, path="/predictions/{model}")
