"""Load on one URL for some seconds: wrk when it is installed, else a few lines of asyncio."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True)
class Request:
    """What is sent, over and over."""

    url: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Load:
    """What came of it."""

    per_second: float
    p50_ms: float
    p99_ms: float
    failed: int


def _lua(request: Request) -> str:
    body = "".join(f"\\{byte:03d}" for byte in request.body)
    headers = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in request.headers.items())
    return f'wrk.method = "POST"\n{headers}wrk.body = "{body}"\n'


def _milliseconds(text: str, name: str) -> float:
    found = re.search(rf"{re.escape(name)}\s+([\d.]+)(us|ms|s|m)\b", text)
    return float(found[1]) * UNITS[found[2]] if found else float("nan")


def with_wrk(request: Request, connections: int, seconds: int, core: int | None) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(_lua(request))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), request.url]
        pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 30, check=True, preexec_fn=pin
        ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done)
    failed = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", done))
    for errors in re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", done):
        failed += sum(map(int, errors))
    return Load(float(rate[1]) if rate else 0.0, _milliseconds(done, "50%"), _milliseconds(done, "99%"), failed)


async def _one(request: Request, until: float, times: list[float]) -> int:
    at = urlsplit(request.url)
    lines = [f"POST {at.path} HTTP/1.1", f"Host: {at.netloc}", f"Content-Length: {len(request.body)}"]
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
    if core is not None:
        os.sched_setaffinity(0, {core})
    times: list[float] = []

    async def run() -> int:
        until = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(_one(request, until, times) for _ in range(connections))))

    failed = asyncio.run(run())
    cuts = statistics.quantiles(times, n=100)
    return Load(len(times) / seconds, cuts[49] * 1000, cuts[98] * 1000, failed)


def loader() -> str:
    return "wrk" if shutil.which("wrk") else "asyncio (wrk is not installed: it limits the faster servers)"


def load(request: Request, connections: int, seconds: int, core: int | None) -> Load:
    return (with_wrk if shutil.which("wrk") else with_asyncio)(request, connections, seconds, core)
