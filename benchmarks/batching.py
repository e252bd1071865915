"""What batches gain: a model of 100 MB with them and without, the same server, requests of one row, by turns."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.rollout_models import make_champion
from benchmarks.rollout_server import Serving, cores, home_in, serving, wait
from benchmarks.serving_load import Load, load, loaders
from benchmarks.serving_models import Workload
from benchmarks.serving_protocols import V2
from benchmarks.steady_load import LENGTH, rows_as_bodies
from homeostat.serving.session import Session

LARGE = Workload("large", (784, 4096, 4096, 1024, 1024, 10), "784-4096-4096-1024-1024-10, 101 MB", scale=0.02)
ROUNDS, CLIENTS = 10, 32
TOLERANCE = 1e-4
"""Of the equality check: |a - b| <= tolerance * (1 + |b|)."""
ARMS = {"batched": {}, "unbatched": {"max_batch_rows": 1}}


def batches(server: Serving) -> tuple[float, float]:
    """Runs of the graph that were counted, and their rows."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    runs, rows = (
        sum(float(number) for number in re.findall(rf"^homeostat_batch_rows_{what}{{.*}} (\S+)$", text, re.M))
        for what in ("count", "sum")
    )
    return runs, rows


async def _ask(port: int, model: str, bodies: list[bytes]) -> list[np.ndarray]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    for body in bodies:
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(answer)
        content = await reader.readexactly(int(length[1]) if length else 0)
        if answer[9:12] != b"200":
            raise RuntimeError(content.decode())
        found.append(np.array(orjson.loads(content)["outputs"][0]["data"], np.float32))
    writer.close()
    return found


def largest_difference(server: Serving, workload: Workload, clients: int, rounds: int) -> float:
    """Ask with so many clients at once, each for rows of its own; return the most that |a - b| / (1 + |b|) is.

    b: what the graph says to the row alone. Raises AssertionError when it is over the tolerance.
    """
    rows = np.random.default_rng(3).random((clients * rounds, workload.layers[0])).round(4).astype(np.float32)
    session, bodies = Session(workload.onnx()), rows_as_bodies(rows)

    async def ask_all() -> list[list[np.ndarray]]:
        own = (bodies[at : at + rounds] for at in range(0, len(bodies), rounds))
        return await asyncio.gather(*(_ask(server.port, workload.name, some) for some in own))

    found = np.concatenate([np.stack(some) for some in asyncio.run(ask_all())])
    alone = np.concatenate([session.run({"x": rows[at : at + 1]})[0] for at in range(len(rows))])
    difference = float((np.abs(found - alone) / (1 + np.abs(alone))).max())
    if difference > TOLERANCE:
        raise AssertionError(f"answers differ by {difference:g}, allowed {TOLERANCE:g}")
    return difference


def _summary(loads: list[Load]) -> dict[str, Any]:
    return {
        "per_second": statistics.median(one.per_second for one in loads),
        "p50_ms": statistics.median(one.p50_ms for one in loads),
        "p99_ms": statistics.median(one.p99_ms for one in loads),
        "failed": sum(one.failed for one in loads),
    }


def measure(
    folder: Path,
    workload: Workload = LARGE,
    connections: tuple[int, ...] = (1, 8, 32),
    repetitions: int = 3,
    seconds: int = 4,
    *,
    pinned: bool = True,
    **serve: Any,
) -> dict[str, Any]:
    """Load both servers by turns, and return rates, latencies, ratios in pairs, and the equality check's result.

    serve: how the batched arm differs from the default.
    """
    server_core, load_core = cores(pinned=pinned)
    found: dict[str, Any] = {"difference": {}, "connections": {}}
    with contextlib.ExitStack() as stack:
        servers = {}
        for arm, options in ARMS.items():
            home = stack.enter_context(home_in(folder))
            make_champion(Serving(home).store, workload.bundle(home, **(options or serve)))
            servers[arm] = server = stack.enter_context(serving(home, server_core))
            wait(lambda server=server: server.live(workload.name) == "1", "v1 live")
            found["difference"][arm] = largest_difference(server, workload, CLIENTS, ROUNDS)
        for count in connections:
            loads: dict[str, list[Load]] = {arm: [] for arm in ARMS}
            before = batches(servers["batched"])
            for _ in range(repetitions):
                for arm, server in servers.items():
                    loads[arm].append(load(V2.request(workload, server.port), count, seconds, load_core))
            runs, rows = (after - one for after, one in zip(batches(servers["batched"]), before, strict=True))
            pairs = zip(loads["batched"], loads["unbatched"], strict=True)
            ratios = [with_.per_second / max(without.per_second, 1e-9) for with_, without in pairs]
            found["connections"][str(count)] = {arm: _summary(some) for arm, some in loads.items()} | {
                "ratios": ratios,
                "rows_per_run": rows / max(runs, 1),
            }
    return found


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"{'connections':>11}{'':12}{'req/s':>8}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}")
    for count, one in found["connections"].items():
        for arm in ARMS:
            of = one[arm]
            rate = f"{of['per_second']:8.0f}{of['p50_ms']:9.1f}{of['p99_ms']:9.1f}{of['failed']:8}"
            print(f"{count:>11} {arm:11}{rate}")
        low, high = min(one["ratios"]), max(one["ratios"])
        print(
            f"{'':11} {statistics.median(one['ratios']):.1f}x in pairs ({low:.1f} to {high:.1f}), "
            f"{one['rows_per_run']:.1f} rows a run"
        )
    print("largest difference from the row alone:", ", ".join(f"{k} {v:.1g}" for k, v in found["difference"].items()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--wait", type=float, default=2.0, help="serve.batch_wait_ms (default 2)")
    parser.add_argument("--unpinned", action="store_true", help="server and load on any core, not on one each")
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--json", type=Path, help="also write the result here")
    given = parser.parse_args()
    print(
        f"{LARGE.title}, one row a request as JSON, {given.repetitions} repetitions of {given.seconds} s by turns, "
        f"load by {loaders()}, {'any core' if given.unpinned else 'server and load a core each'}, "
        f"load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    found = measure(
        given.folder,
        connections=tuple(given.connections),
        repetitions=given.repetitions,
        seconds=given.seconds,
        pinned=not given.unpinned,
        batch_wait_ms=given.wait,
    )
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
