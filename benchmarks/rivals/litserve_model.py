"""The same graph as a LitServe API: `python litserve_model.py PORT`."""

import sys

import litserve
import numpy as np


class Onnx(litserve.LitAPI):
    def setup(self, device: str) -> None:
        import graph  # in the worker, which the server starts by spawning

        self.run = graph.run

    def decode_request(self, request: dict) -> np.ndarray:
        return np.array(request["x"], np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.run(x)

    def encode_response(self, output: np.ndarray) -> dict:
        return {"output": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Onnx(), accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, access_log=False)
