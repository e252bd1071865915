"""The same graph as an MLServer runtime."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        import graph

        self.run = graph.run
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answer = self.run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", answer)])
