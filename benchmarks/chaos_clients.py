"""What clients do to a running server: requests that kill, floods, connections that say little, clients that leave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

import grpc.aio

from benchmarks.chaos_scene import Scene
from benchmarks.rollout_models import MODEL, WIDTH
from benchmarks.rollout_server import wait

PATH = f"/v2/models/{MODEL}/infer"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: chaos\r\n".encode()
FLOOD_SECONDS = 1.0
SLOW, FLOOD, GONE, MALFORMED = 300, 900, 100, 300
"""So many connections, or requests."""
MAX_CONNECTIONS = 400
"""Of each worker: a flood meets the limit."""
CALLS, CHANNELS, CALLS_SECONDS = 400, 4, 2.5
GIVEN_UP = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}
"""By the server; a message came at last, which names no model; the connection was closed."""
RUBBISH = (
    b"",
    b"null",
    b"{",
    b"[" * 50_000,
    b'{"inputs":[]}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":["a",1,1,1]}]}',
    b'{"inputs":[{"name":"x","shape":[-1,4],"datatype":"FP32","data":[1,1,1,1]}]}',
    b'{"inputs":[{"name":"y","shape":[1,4],"datatype":"FP32","data":[1,1,1,1]}]}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"INT64","data":[1,1,1,1]}]}',
    b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,1,1,null]}]}',
)


def send_killer(scene: Scene) -> None:
    """A request whose tensors end the process that computes them, never the same twice."""
    row = [round(scene.random.uniform(-1, 1), 6) for _ in range(WIDTH)]
    row[1] = -2.0
    tensor = {"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": row}
    body = json.dumps({"inputs": [tensor]}).encode()
    before = scene.server.workers()
    while (answer := asyncio.run(_ask(scene.server.port, body))).startswith(b"HTTP/1.1 503"):
        time.sleep(0.1)  # another fault is not over yet
    if answer:
        scene.unexpected.append(f"the killer was answered {answer[:60]!r}")
        return
    gone: set[int] = set()
    wait(lambda: gone.update(set(before) - set(scene.server.workers())) or gone, "a worker dead")


async def _ask(port: int, body: bytes) -> bytes:
    """Return the head of the answer to one request, nothing when the connection ended without one."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b""
    try:
        writer.write(HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(10):
            return await reader.readuntil(b"\r\n\r\n")
    except (OSError, EOFError):
        return b""
    finally:
        writer.transport.abort()


async def _connect(port: int, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Return as many connections as can be had."""
    tried = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", port) for _ in range(count)), return_exceptions=True
    )
    return [one for one in tried if not isinstance(one, BaseException)]


async def _hold(port: int, count: int, seconds: float, send: Callable[[asyncio.StreamWriter], None]) -> None:
    """Hold connections, and send on each of them a few times."""
    wires = await _connect(port, count)
    for _ in range(4):
        for _, writer in wires:
            if not writer.is_closing():
                send(writer)
        await asyncio.sleep(seconds / 4)
    for _, writer in wires:
        writer.transport.abort()


def send_slowly(scene: Scene) -> None:
    """Connections whose request comes a line at a time."""
    asyncio.run(_hold(scene.server.port, SLOW, FLOOD_SECONDS, lambda writer: writer.write(HEAD[:20])))


def flood_connections(scene: Scene) -> None:
    """More connections than may be, which ask nothing."""
    asyncio.run(_hold(scene.server.port, FLOOD, FLOOD_SECONDS, lambda writer: None))


def send_rubbish(scene: Scene) -> None:
    """Bodies that are no requests, as fast as they are refused."""

    async def flood() -> list[bytes]:
        gate = asyncio.Semaphore(32)

        async def one(body: bytes) -> bytes:
            async with gate:
                return await _ask(scene.server.port, body)

        bodies = scene.random.choices(RUBBISH, k=MALFORMED)
        return await asyncio.gather(*(one(body) for body in bodies))

    for head in asyncio.run(flood()):
        if not head.startswith((b"HTTP/1.1 4", b"HTTP/1.1 503")):
            scene.unexpected.append(f"rubbish was answered {head[:60]!r}")


def leave(scene: Scene) -> None:
    """Clients that go in the middle of their request, or before the answer."""

    async def all_of_them() -> None:
        body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,1,1,1]}]}'
        for number, (_, writer) in enumerate(await _connect(scene.server.port, GONE)):
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[: None if number % 2 else 20])
            await writer.drain()
            writer.transport.abort()

    asyncio.run(all_of_them())


def hold_calls(scene: Scene) -> None:
    """gRPC calls whose message does not come, until the server gives them up."""

    async def never() -> AsyncIterator[bytes]:
        await asyncio.sleep(CALLS_SECONDS)
        yield b""

    async def hold() -> None:
        address = f"127.0.0.1:{scene.server.environment['HOMEOSTAT_GRPC_PORT']}"
        own = [("grpc.use_local_subchannel_pool", 1)]  # or all channels would share a connection
        channels = [grpc.aio.insecure_channel(address, options=own) for _ in range(CHANNELS)]
        calls = [
            channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(never())
            for channel in channels
            for _ in range(CALLS // CHANNELS)
        ]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        for channel in channels:
            await channel.close()
        for code in {end.code() for end in ends if isinstance(end, grpc.aio.AioRpcError)} - GIVEN_UP:
            scene.unexpected.append(f"calls without a message were answered {code}")

    asyncio.run(hold())
