"""The same graph as a KServe model: `python kserve_model.py NAME PORT GRPC_PORT`."""

from __future__ import annotations

import logging
import sys
import uuid

import graph
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Onnx(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    def predict(
        self, payload: InferRequest, headers: dict[str, str] | None = None, response_headers: dict | None = None
    ) -> InferResponse:
        answer = graph.run(payload.inputs[0].as_numpy())
        output = InferOutput("output", list(answer.shape), "FP32")
        binary = payload.use_binary_outputs
        output.set_data_from_numpy(answer, binary_data=binary)
        response_id = payload.id or uuid.uuid4().hex  # it answers 500 without one
        return InferResponse(response_id, self.name, [output], use_binary_outputs=binary)


if __name__ == "__main__":
    name, port, grpc_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    server = ModelServer(http_port=port, grpc_port=grpc_port, workers=1, enable_latency_logging=False)
    for logger in ("uvicorn.access", "kserve.trace"):  # three lines for each request else
        logging.getLogger(logger).setLevel("WARNING")
    server.start([Onnx(name)])
