"""The least that speaks the Open Inference Protocol, for one input and one output: raw ASGI, and nothing is checked."""

from __future__ import annotations

from typing import Any

import graph
import numpy as np
import orjson

JSON = (b"content-type", b"application/json")


def from_json(body: bytes) -> bytes:
    (given,) = orjson.loads(body)["inputs"]
    output = graph.run(np.array(given["data"], np.float32).reshape(given["shape"]))
    about = {"name": "output", "datatype": "FP32", "shape": output.shape, "data": output.ravel()}
    return orjson.dumps({"model_name": "bench", "outputs": [about]}, option=orjson.OPT_SERIALIZE_NUMPY)


def from_binary(body: bytes, length: int) -> tuple[bytes, int]:
    (given,) = orjson.loads(body[:length])["inputs"]
    output = graph.run(np.frombuffer(body, np.float32, offset=length).reshape(given["shape"]))
    about = {"name": "output", "datatype": "FP32", "shape": output.shape}
    parameters = {"binary_data_size": output.nbytes}
    head = orjson.dumps({"model_name": "bench", "outputs": [{**about, "parameters": parameters}]})
    return head + output.tobytes(), len(head)


async def app(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length = dict(scope["headers"]).get(b"inference-header-content-length")
    headers = [JSON]
    if length is not None:
        answer, size = from_binary(body, int(length))
        headers = [(b"inference-header-content-length", b"%d" % size)]
    else:
        answer = from_json(body) if body else b"{}"
    headers.append((b"content-length", b"%d" % len(answer)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
