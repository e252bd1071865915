"""What the serving benchmark sends and counts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.serving_load import read_h2load
from benchmarks.serving_models import WORKLOADS
from benchmarks.serving_protocols import JSON, MLFLOW, PLAIN, V2, V2_BINARY, V2_GRPC
from benchmarks.serving_table import rows
from homeostat.serving.protos import message
from homeostat.serving.rest.inference import decode
from homeostat.serving.session import Session

PRINTED = """
finished in 2.00s, {done} req/s, 1.00MB/s
requests: {done} total, {done} started, {done} done, {done} succeeded, {failed} failed, 0 errored, 0 timeout
status codes: {done} 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.00MB (1048576) total, 10B (10) headers (space savings 95.00%), 1.00MB ({data}) data
"""


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one.name)
def test_graphs_answer_a_probability_of_each_class(workload):
    (output,) = Session(workload.onnx()).run({"x": workload.rows()})
    assert output.shape == (workload.batch, workload.layers[-1])
    np.testing.assert_allclose(output.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one.name)
def test_every_protocol_sends_the_same_rows(workload):
    rows = workload.rows()
    body, _ = V2.encode(workload)
    np.testing.assert_array_equal(decode(body, None)[0].tensors["x"], rows)
    body, headers = V2_BINARY.encode(workload)
    np.testing.assert_array_equal(decode(body, headers["Inference-Header-Content-Length"])[0].tensors["x"], rows)
    body, _ = V2_GRPC.encode(workload)
    request = message("inference.ModelInferRequest").FromString(body)
    assert (request.inputs[0].name, tuple(request.inputs[0].shape)) == ("x", rows.shape)
    assert request.raw_input_contents[0] == rows.tobytes()
    for protocol, place in ((PLAIN, lambda value: value["x"]), (MLFLOW, lambda value: value["inputs"]["x"])):
        body, headers = protocol.encode(workload)
        assert headers == JSON
        np.testing.assert_array_equal(np.array(place(json.loads(body)), np.float32), rows)


def test_answers_are_read_alike():
    values = np.array([[0.25, 0.75]], np.float32)
    tensor = {"name": "output", "shape": [1, 2], "datatype": "FP32"}
    head = json.dumps({"outputs": [tensor]}).encode()
    answer = message("inference.ModelInferResponse")(raw_output_contents=[values.tobytes()])
    answer.outputs.add(**tensor)
    typed = message("inference.ModelInferResponse")()
    typed.outputs.add(**tensor).contents.fp32_contents.extend([0.25, 0.75])
    for protocol, body, headers in (
        (V2, json.dumps({"outputs": [{**tensor, "data": [0.25, 0.75]}]}).encode(), {}),
        (V2_BINARY, head + values.tobytes(), {"inference-header-content-length": str(len(head))}),
        (V2_GRPC, answer.SerializeToString(), {}),
        (V2_GRPC, typed.SerializeToString(), {}),
        (PLAIN, b'{"output": [[0.25, 0.75]]}', {}),
        (MLFLOW, b'{"predictions": {"output": [[0.25, 0.75]]}}', {}),
    ):
        np.testing.assert_array_equal(protocol.decode(body, headers), values)


def test_a_grpc_answer_without_data_is_a_failed_one():
    times = np.arange(1, 101, dtype=float)
    good = read_h2load(PRINTED.format(done=100, failed=0, data=100 * 40), times, expected=40, seconds=2)
    assert (good.per_second, good.failed) == (50, 0)
    assert (good.p50_ms, good.p99_ms) == pytest.approx((50.5, 99.01))
    assert read_h2load(PRINTED.format(done=100, failed=0, data=70 * 40), times, 40, 2).failed == 30
    assert read_h2load(PRINTED.format(done=100, failed=3, data=97 * 40), times, 40, 2).failed == 3
    with pytest.raises(ValueError, match="not understood: connection refused"):
        read_h2load("connection refused", times, 40, 2)


def test_the_table_names_what_was_skipped():
    one = {"per_second": 100.4, "cpu_us": 12.3, "failed": 1}
    servers = {"session.run": {"0": one}, "homeostat grpc": {"1": one, "8": {**one, "cpu_us": 9.0}}}
    lines = rows({"w1": {"servers": servers, "skipped": {"ray": "cannot be installed"}}})
    assert lines == [
        "| server | W1: req/s | CPU us |",
        "|---|---:|---:|",
        "| `session.run` alone | 100 | 12 |",
        "| homeostat, gRPC | 100, 100 | 9 |",
        "| Ray Serve | skipped |  |",
        "",
        "Failed requests: 3.",
        "Ray Serve: cannot be installed",
    ]
