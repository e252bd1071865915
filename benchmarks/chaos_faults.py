"""What is done to a running server, a fault at a time: each returns when it is over, and what is then to be mended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.rollout_models import MODEL, SAID, WIDTH, bundle, dividing
from benchmarks.rollout_server import Serving, children, wait
from benchmarks.swaps import Swap

PATH = f"/v2/models/{MODEL}/infer"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: chaos\r\n".encode()
FROZEN_SECONDS, DISK_SECONDS, FILES_SECONDS, STORE_SECONDS, FLOOD_SECONDS = 1.0, 1.5, 1.0, 1.5, 1.0
DISK_BYTES = 64 * 1024
"""No file of the server may grow past this while its disk is full."""
SLOW, FLOOD, GONE, MALFORMED = 300, 900, 100, 300
"""So many connections, or requests."""
MAX_CONNECTIONS = 400
"""Of each worker: a flood meets the limit."""
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


@dataclass
class Scene:
    """The server, and what is known of it."""

    server: Serving
    random: random.Random
    swaps: list[Swap] = field(default_factory=list)
    live: int = 1
    """Of the two versions that are champion by turns."""
    built: int = 100
    """Version of the last challenger."""
    unexpected: list[str] = field(default_factory=list)
    """Answers to attacks that should not be."""
    ended: set[int] = field(default_factory=set)
    """Processes that are to be replaced."""

    def worker(self) -> int:
        """One of the workers."""
        return self._one_of(self.server.workers)

    def end(self, processes: Callable[[], list[int]], how: signal.Signals) -> None:
        """Send one of these processes a signal that ends it."""
        one = self._one_of(processes)
        os.kill(one, how)
        self.ended.add(one)

    def _one_of(self, processes: Callable[[], list[int]]) -> int:
        found: list[int] = []
        wait(lambda: found.extend(set(processes()) - self.ended) or found, "running")
        return self.random.choice(sorted(found))

    def is_whole(self, count: int) -> bool:
        """Whether so many workers, and writers, are there and all have what the rollout row names."""
        workers, writers = self.server.workers(), self.server.writers()
        return (
            len(workers) == len(writers) == count
            and self.ended.isdisjoint([*workers, *writers])
            and self.server.live(MODEL) == str(self.live)
        )


Fault = Callable[[Scene], None]


# -- processes


def kill_worker(scene: Scene) -> None:
    """kill -9 of a worker."""
    scene.end(scene.server.workers, signal.SIGKILL)


def stop_worker(scene: Scene) -> None:
    """SIGTERM of a worker."""
    scene.end(scene.server.workers, signal.SIGTERM)


def freeze_worker(scene: Scene) -> None:
    """SIGSTOP of a worker, SIGCONT a second later."""
    worker = scene.worker()
    os.kill(worker, signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    os.kill(worker, signal.SIGCONT)


def kill_writer(scene: Scene) -> None:
    """kill -9 of a capture writer."""
    scene.end(scene.server.writers, signal.SIGKILL)


def kill_rolling(scene: Scene) -> None:
    """kill -9 of the process that moves captured requests to Parquet."""
    command = [sys.executable, "-m", "homeostat.serving.capture.rolling", str(scene.server.home / "traffic.db")]
    process = subprocess.Popen([*command, "0", "0"], env=scene.server.environment, stderr=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(scene.random.uniform(0.3, 1.2))
    process.kill()
    process.wait()


def send_killer(scene: Scene) -> None:
    """A request whose tensors end the process that computes them, never the same twice."""
    row = [round(scene.random.uniform(-1, 1), 6) for _ in range(WIDTH)]
    row[1] = -2.0
    tensor = {"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": row}
    body = json.dumps({"inputs": [tensor]}).encode()
    before = scene.server.workers()
    answer = asyncio.run(_ask(scene.server.port, body))
    if answer:
        scene.unexpected.append(f"the killer was answered {answer[:60]!r}")
        return
    gone: set[int] = set()
    wait(lambda: gone.update(set(before) - set(scene.server.workers())) or gone, "a worker dead")


# -- clients


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


# -- rollouts


def swap_versions(scene: Scene) -> None:
    """Promote the other version, or roll back to it."""
    store, server = scene.server.store, scene.server
    row = store.row(MODEL)
    other = 3 - scene.live
    begun = time.monotonic()
    if row.previous is not None:
        store.rollback(MODEL, expected_generation=row.generation, ban=False, **SAID)
    else:
        store.promote(MODEL, other, expected_generation=row.generation, **SAID)
    confirmed = wait(lambda: server.live(MODEL) == str(other), f"v{other} live")
    scene.live = other
    scene.swaps.append(Swap(other, begun, begun, begun, confirmed))


def announce_corrupted(scene: Scene) -> None:
    """A challenger one byte of whose graph is another one; gone again when it has been refused."""
    scene.built += 1
    ref = bundle(scene.server.home, scene.built, dividing(scene.built))
    graph = Path(ref.url.removeprefix("file://")) / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[scene.random.randrange(len(data))] ^= 1 << scene.random.randrange(8)
    graph.write_bytes(data)
    store = scene.server.store
    row = store.set_challenger(MODEL, ref, expected_generation=store.generation(MODEL), **SAID)
    said = f"version {ref.version} is refused"
    wait(lambda: said in scene.server.get(f"/v2/models/{MODEL}/ready")[1].get("problem", ""), said)
    if scene.server.is_loaded(MODEL, ref.version):
        scene.unexpected.append(f"the corrupted v{ref.version} is ready")
    store.hold(MODEL, expected_generation=row.generation, clear_challenger=True, **SAID)


def take_store_away(scene: Scene) -> None:
    """The control store is not there for a while, and a worker has to start without it."""
    folder, aside = scene.server.home / "control", scene.server.home / "control.aside"
    folder.rename(aside)
    scene.end(scene.server.workers, signal.SIGKILL)
    time.sleep(STORE_SECONDS)
    while aside.exists():
        shutil.rmtree(folder, ignore_errors=True)  # what the server may have made there
        with contextlib.suppress(OSError):
            aside.rename(folder)


# -- resources


@contextlib.contextmanager
def _limited(processes: Iterable[int], kind: int, soft: Callable[[int], int]) -> Iterator[None]:
    """Lower a limit of running processes for a while."""
    before = {}
    try:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                before[process] = resource.prlimit(process, kind)
                resource.prlimit(process, kind, (soft(process), before[process][1]))
        yield
    finally:
        for process, limit in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process, kind, limit)


def _used_files(process: int) -> int:
    """The limit under which a process may open nothing more."""
    used = {int(one.name) for one in Path(f"/proc/{process}/fd").iterdir()}
    return next(number for number in range(len(used) + 1) if number not in used)


def fill_disk(scene: Scene) -> None:
    """No file grows any more: captured requests, notices and logs find no room."""
    kind, workers = resource.RLIMIT_FSIZE, scene.server.workers()
    with _limited([*workers, *scene.server.writers()], kind, lambda process: DISK_BYTES):
        time.sleep(DISK_SECONDS)
    for child in [child for worker in workers for child in children(worker)]:  # started meanwhile, with this limit
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(child, kind, resource.getrlimit(kind))


def use_up_files(scene: Scene) -> None:
    """A worker may open no further file, and so take no connection."""
    worker = scene.worker()
    with _limited([worker], resource.RLIMIT_NOFILE, _used_files):
        time.sleep(FILES_SECONDS)


FAULTS: dict[str, Fault] = {
    "kill -9 of a worker": kill_worker,
    "SIGTERM of a worker": stop_worker,
    "a worker stands still for 1 s": freeze_worker,
    "a request that kills its worker": send_killer,
    "kill -9 of a capture writer": kill_writer,
    "kill -9 while moving to Parquet": kill_rolling,
    "slow clients": send_slowly,
    "a flood of connections": flood_connections,
    "a flood of rubbish": send_rubbish,
    "clients that leave": leave,
    "promotion or rollback": swap_versions,
    "a corrupted challenger": announce_corrupted,
    "no control store, worker killed": take_store_away,
    "the disk is full": fill_disk,
    "no file may be opened": use_up_files,
}
LOSES = {"kill -9 of a worker", "a request that kills its worker", "no control store, worker killed"}
"""Where docs/serving.md says that captured requests may be lost."""
