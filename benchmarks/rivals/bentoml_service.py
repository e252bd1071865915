"""The same graph as a BentoML service."""

from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Onnx:
    def __init__(self) -> None:
        import graph

        self.run = graph.run

    @bentoml.api
    def predict(self, x: Annotated[np.ndarray, DType("float32")]) -> dict:
        return {"output": self.run(x).tolist()}
