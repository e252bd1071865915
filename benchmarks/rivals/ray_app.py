"""The same graph as a Ray Serve deployment: `python ray_app.py PORT SCRATCH`."""

import signal
import sys

import numpy as np
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=100)
class Onnx:
    def __init__(self) -> None:
        import graph

        self.run = graph.run

    async def __call__(self, request: Request) -> dict:
        rows = np.array((await request.json())["x"], np.float32)
        return {"output": self.run(rows).tolist()}


if __name__ == "__main__":
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2], _node_ip_address="127.0.0.1"
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config={"enable_access_log": False}
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve.run(Onnx.bind(), route_prefix="/predict")
    signal.pause()
