"""Load on one URL for some seconds: wrk and h2load where they are installed, else a few lines of asyncio and grpcio."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import grpc.aio
import numpy as np

UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
ASK_SECONDS = 10


@dataclass(frozen=True)
class Request:
    """What is sent, over and over: a POST, a GET when there is no body, or a gRPC call at grpc://host:port/method."""

    url: str
    body: bytes
    headers: dict[str, str]

    @property
    def is_grpc(self) -> bool:
        return self.url.startswith("grpc://")

    @property
    def place(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc


@dataclass(frozen=True)
class Load:
    """What came of it."""

    per_second: float
    p50_ms: float
    p99_ms: float
    failed: int


def ask(request: Request) -> tuple[bytes, dict[str, str]]:
    """Send it once; return the answer's body and headers (names in lower case). Raises OSError or grpc.RpcError."""
    if request.is_grpc:
        with grpc.insecure_channel(request.place) as channel:
            metadata = list(request.headers.items())
            answer = channel.unary_unary(urlsplit(request.url).path)(request.body, ASK_SECONDS, metadata=metadata)
            return answer, {}
    sent = urllib.request.Request(request.url, request.body or None, request.headers)
    with urllib.request.urlopen(sent, timeout=ASK_SECONDS) as answer:
        return answer.read(), {name.lower(): value for name, value in answer.headers.items()}


# -- HTTP --------------------------------------------------------------------------------------------------------------


def _lua(request: Request) -> str:
    body = "".join(f"\\{byte:03d}" for byte in request.body)
    headers = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in request.headers.items())
    return f'wrk.method = "POST"\n{headers}wrk.body = "{body}"\n' if request.body else headers


def _milliseconds(text: str, name: str) -> float:
    found = re.search(rf"{re.escape(name)}\s+([\d.]+)(us|ms|s|m)\b", text)
    return float(found[1]) * UNITS[found[2]] if found else float("nan")


def _run(command: list[str], seconds: int, core: int | None) -> str:
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + 30, check=True, preexec_fn=pin
    ).stdout


def with_wrk(request: Request, connections: int, seconds: int, core: int | None) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(_lua(request))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), request.url]
        done = _run(command, seconds, core)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done)
    failed = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", done))
    for errors in re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", done):
        failed += sum(map(int, errors))
    return Load(float(rate[1]) if rate else 0.0, _milliseconds(done, "50%"), _milliseconds(done, "99%"), failed)


async def _one(request: Request, until: float, times: list[float]) -> int:
    at = urlsplit(request.url)
    method = "POST" if request.body else "GET"
    lines = [f"{method} {at.path} HTTP/1.1", f"Host: {at.netloc}", f"Content-Length: {len(request.body)}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    data = "\r\n".join([*lines, "", ""]).encode() + request.body
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    failed = 0
    while (start := time.perf_counter()) < until:
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        failed += b" 200 " not in head.split(b"\r\n", 1)[0]
        times.append(time.perf_counter() - start)
    writer.close()
    return failed


def with_asyncio(request: Request, connections: int, seconds: int, core: int | None) -> Load:
    async def run(times: list[float]) -> int:
        until = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(_one(request, until, times) for _ in range(connections))))

    return _timed(run, seconds, core)


def _timed(run: Callable[[list[float]], asyncio.Future[int]], seconds: int, core: int | None) -> Load:
    """Run a load in this process, which is pinned meanwhile."""
    times: list[float] = []
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        failed = asyncio.run(run(times))
    finally:
        os.sched_setaffinity(0, before)
    cuts = statistics.quantiles(times, n=100)
    return Load(len(times) / seconds, cuts[49] * 1000, cuts[98] * 1000, failed)


# -- gRPC --------------------------------------------------------------------------------------------------------------


def with_h2load(request: Request, connections: int, seconds: int, core: int | None) -> Load:
    """A call is an HTTP/2 POST of the message behind five bytes; its status is in trailers that h2load does not show.

    An answer with an error has no data: what is missing of the data says how many failed.
    """
    expected = 5 + len(ask(request)[0])
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(b"\0" + len(request.body).to_bytes(4, "big") + request.body)
        headers = {"content-type": "application/grpc", "te": "trailers", **request.headers}
        command = ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{seconds}", f"-d{body}", f"--log-file={log}"]
        command += [f"-H{name}: {value}" for name, value in headers.items()]
        done = _run([*command, request.url.replace("grpc://", "http://")], seconds, core)
        times = np.array([int(line.split("\t")[2]) for line in log.read_text().splitlines()]) / 1000
    return read_h2load(done, times, expected, seconds)


def read_h2load(printed: str, times: np.ndarray, expected: int, seconds: int) -> Load:
    """What h2load has printed, milliseconds [n] of its requests, bytes of data in a good answer."""
    counts = re.search(r"requests: .*?(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", printed)
    data = re.search(r"traffic: .*\((\d+)\) data", printed)
    if counts is None or data is None or not len(times):
        raise ValueError(f"h2load: not understood: {printed[-300:]}")
    done, _succeeded, *bad = map(int, counts.groups())
    empty = max(0, round((done * expected - int(data[1])) / expected))
    p50, p99 = np.quantile(times, (0.5, 0.99))
    return Load(done / seconds, float(p50), float(p99), max(sum(bad), empty))


def with_grpcio(request: Request, connections: int, seconds: int, core: int | None) -> Load:
    async def one(until: float, times: list[float]) -> int:
        failed = 0
        options = [("grpc.use_local_subchannel_pool", 1)]  # else all would share one connection
        async with grpc.aio.insecure_channel(request.place, options) as channel:
            call = channel.unary_unary(urlsplit(request.url).path)
            while (start := time.perf_counter()) < until:
                try:
                    await call(request.body, metadata=tuple(request.headers.items()))
                except grpc.aio.AioRpcError:
                    failed += 1
                times.append(time.perf_counter() - start)
        return failed

    async def run(times: list[float]) -> int:
        until = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(one(until, times) for _ in range(connections))))

    return _timed(run, seconds, core)


def loaders() -> str:
    """What is installed, and what it means if it is not."""
    slow = "(not installed: what takes its place limits the faster servers)"
    return ", ".join(name if shutil.which(name) else f"no {name} {slow}" for name in ("wrk", "h2load"))


def load(request: Request, connections: int, seconds: int, core: int | None) -> Load:
    if request.is_grpc:
        send = with_h2load if shutil.which("h2load") else with_grpcio
    else:
        send = with_wrk if shutil.which("wrk") else with_asyncio
    return send(request, connections, seconds, core)
