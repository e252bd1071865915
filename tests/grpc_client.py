"""A gRPC client of our own messages, and a server in a thread for it, for tests of what the wire carries."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from homeostat.serving.access.authorization import Access
from homeostat.serving.dataplane import DataPlane
from homeostat.serving.grpc.server import start
from homeostat.serving.observer import Observer
from homeostat.serving.protos import message, service
from homeostat.serving.rest.app import MAX_BODY

INFERENCE = "inference.GRPCInferenceService"
PREDICTION = "tensorflow.serving.PredictionService"
MODELS = "tensorflow.serving.ModelService"


class GrpcClient:
    """One channel; `call` takes the fields of the request, `send` its bytes."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)])

    def call(self, service_name: str, method: str, **fields: Any) -> Any:
        kind = service(service_name).methods_by_name[method].input_type.full_name
        return self.send(service_name, method, message(kind)(**fields).SerializeToString())[0]

    def send(
        self, service_name: str, method: str, data: bytes, metadata: Any = (), **options: Any
    ) -> tuple[Any, dict[str, str]]:
        """Return the answer and the trailing metadata; raises grpc.RpcError."""
        kind = message(service(service_name).methods_by_name[method].output_type.full_name)
        call = self.channel.unary_unary(f"/{service_name}/{method}", None, kind.FromString)
        answer, done = call.with_call(data, timeout=20, metadata=metadata, **options)
        return answer, dict(done.trailing_metadata())

    def close(self) -> None:
        self.channel.close()


@contextmanager
def grpc_server(
    plane: DataPlane,
    access: Access,
    port: int,
    max_message: int = MAX_BODY,
    observer: Observer | None = None,
    **options: Any,
) -> Iterator[None]:
    """Answer for a data plane from a thread with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    starting = start(plane, access, f"127.0.0.1:{port}", max_message, observer=observer, **options)
    started = asyncio.run_coroutine_threadsafe(starting, loop)
    try:
        server = started.result(20)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(_stop(server), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _stop(server: Any) -> None:
    """End the server, and wait for the calls that it has cancelled."""
    await server.stop(0)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)
