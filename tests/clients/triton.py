"""tritonclient, HTTP and gRPC, sync and async, against a server: `python triton.py HTTP_PORT GRPC_PORT`.

Runs in an environment of its own, since tritonclient needs an older protobuf. Prints `ok` at the end.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

ROWS = np.array([[1, 2, 3, 4], [1, 1, 1, 1]], np.float32)


async def call(answer: Any) -> Any:
    """Return what a client answers, whether it is sync or async."""
    return await answer if inspect.isawaitable(answer) else answer


async def refusal(attempt: Callable[[], Any]) -> str:
    """Return the server's message; an attempt that passes is a failure."""
    try:
        await call(attempt())
    except InferenceServerException as error:
        return str(error.message())
    raise AssertionError("it was not refused")


async def infer(module: Any, client: Any, model: str, arrays: dict[str, np.ndarray], **options: Any) -> Any:
    inputs = []
    for name, values in arrays.items():
        datatype = tritonclient.utils.np_to_triton_dtype(values.dtype)
        inputs.append(module.InferInput(name, list(values.shape), datatype))
        inputs[-1].set_data_from_numpy(values)
    return await call(client.infer(model, inputs, **options))


async def check(module: Any, client: Any) -> None:
    """Do with a client what its users do."""
    assert await call(client.is_server_live())
    assert await call(client.is_server_ready())
    assert await call(client.is_model_ready("toy"))
    assert not await call(client.is_model_ready("absent"))
    over_grpc = "grpc" in module.__name__
    server, model = await call(client.get_server_metadata()), await call(client.get_model_metadata("toy"))
    index = await call(client.get_model_repository_index())
    if over_grpc:
        assert (server.name, model.inputs[0].name, list(model.inputs[0].shape)) == ("homeostat", "x", [-1, 4])
        assert {one.name for one in index.models} == {"toy", "kinds"}
    else:
        assert (server["name"], model["inputs"][0]["name"], model["inputs"][0]["shape"]) == ("homeostat", "x", [-1, 4])
        assert {one["name"] for one in index} == {"toy", "kinds"}

    result = await infer(module, client, "toy", {"x": ROWS}, request_id="triton-1")
    np.testing.assert_array_equal(result.as_numpy("output"), np.array([[20], [8]], np.float32), strict=True)
    answer = result.get_response()
    assert (answer.id if over_grpc else answer["id"]) == "triton-1"
    result = await infer(
        module, client, "toy", {"x": ROWS}, model_version="1", outputs=[module.InferRequestedOutput("output")]
    )
    np.testing.assert_array_equal(result.as_numpy("output"), np.array([[10], [4]], np.float32), strict=True)

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
    arrays = {name: np.array([[0, 1]]).astype(name) for name in every}
    result = await infer(module, client, "kinds", arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"out_{name}"), values, strict=True)

    for model, values in (("absent", ROWS), ("toy", ROWS[:, :3]), ("toy", np.full((1, 4), np.nan, np.float32))):
        assert await refusal(lambda m=model, v=values: infer(module, client, m, {"x": v}))
    for operation in (client.load_model, client.unload_model):
        assert "homeostat key create" in await refusal(lambda o=operation: o("toy"))
    await call(client.close())


async def main() -> None:
    http, rpc = (f"127.0.0.1:{port}" for port in sys.argv[1:3])
    await check(tritonclient.grpc, tritonclient.grpc.InferenceServerClient(rpc))
    await check(tritonclient.grpc.aio, tritonclient.grpc.aio.InferenceServerClient(rpc))
    await check(tritonclient.http, tritonclient.http.InferenceServerClient(http))
    await check(tritonclient.http.aio, tritonclient.http.aio.InferenceServerClient(http))


if __name__ == "__main__":
    asyncio.run(main())
    sys.stdout.write("ok\n")
