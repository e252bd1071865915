"""What each of our server's features costs: microseconds of CPU a request, beside the same server with everything on.

CPU is of all the server's processes, the writer of captured requests included, on one core; a
difference is taken within each repetition, in which every variant has its turn. What users can
switch is switched by its setting, the rest is cut out by benchmarks/server_without.py:
validation (the contract: names, dtypes, shapes, ranges, NaN; what JSON itself has to hold stays),
metrics, and quarantine (each request is noted before it is computed).
`python -m benchmarks.features --help`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.rollout_server import cores
from benchmarks.serving import Cell, measure
from benchmarks.serving_load import loaders
from benchmarks.serving_models import WORKLOADS, Workload
from benchmarks.serving_protocols import V2, V2_BINARY, Protocol
from benchmarks.serving_rivals import Command, make_live, settings_of
from benchmarks.serving_server import Server
from homeostat.apikeys import FILE, create_key

BASE = "everything on"
EMPTY = "empty answer"


@dataclass(frozen=True)
class Variant:
    """The server as it is, or otherwise in one respect."""

    name: str
    without: tuple[str, ...] = ()
    """Parts that are cut out."""
    capture: bool = True
    settings: tuple[tuple[str, str], ...] = ()
    key: bool = False
    """A key is asked for, and sent."""
    empty: bool = False
    """GET /v2/health/live instead of an inference."""


VARIANTS = (
    Variant(BASE),
    Variant("without validation", ("validation",)),
    Variant("without metrics", ("metrics",)),
    Variant("without quarantine", ("quarantine",)),
    Variant("without capture", capture=False),
    Variant("without all four", ("validation", "metrics", "quarantine"), capture=False),
    Variant("with an API key", key=True),
    Variant("with a rate limit", settings=(("HOMEOSTAT_RATE_LIMIT", "1000000"),)),
    Variant("with encrypted capture", settings=(("HOMEOSTAT_TRAFFIC_KEY", base64.b64encode(bytes(32)).decode()),)),
    Variant("with an access log", settings=(("HOMEOSTAT_ACCESS_LOG", "1"),)),
    Variant(EMPTY, empty=True),
)


LIVE = Protocol("/v2/health/live", lambda workload: (b"", {}), None)


def server_of(variant: Variant, protocol: Protocol) -> Server:
    """The server of a variant, asked by a protocol."""
    headers: dict[str, str] = {}

    def start(folder: Path, workload: Workload, port: int) -> Command:
        home = Path(tempfile.mkdtemp(prefix=f"{workload.name}-", dir=folder))
        make_live(home, workload.bundle(home, capture=variant.capture))
        if variant.key:
            headers["Authorization"] = f"Bearer {create_key(home / FILE, 'bench', ('infer',))[0]}"
        environment = settings_of(home, port, 0) | dict(variant.settings)
        return [sys.executable, "-m", "benchmarks.server_without", *variant.without], environment | {
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent)
        }

    def encode(workload: Workload) -> tuple[bytes, dict[str, str]]:
        body, given = protocol.encode(workload)
        return body, {**given, **headers}

    return Server(variant.name, start, LIVE if variant.empty else replace(protocol, encode=encode))


def summary(found: dict[str, list[Cell]]) -> dict[str, dict[str, float]]:
    """Medians over the repetitions; `added_us` is what a variant takes more than everything on."""
    base, table = found[BASE], {}
    for name, cells in found.items():
        added = [one.cpu_us - beside.cpu_us for one, beside in zip(cells, base, strict=False)]
        table[name] = {
            "per_second": statistics.median(one.load.per_second for one in cells),
            "p99_ms": statistics.median(one.load.p99_ms for one in cells),
            "cpu_us": statistics.median(one.cpu_us for one in cells),
            "added_us": statistics.median(added),
            "added_us_min": min(added),
            "added_us_max": max(added),
            "failed": sum(one.load.failed for one in cells),
        }
    return table


def show(title: str, table: dict[str, dict[str, float]], skipped: dict[str, str]) -> None:
    """Print one workload's table."""
    print(f"\n{title}")
    print(f"{'':26}{'req/s':>8}{'p99 ms':>8}{'CPU us':>8}{'added':>8}{'min':>7}{'max':>7}{'failed':>8}")
    for name, one in table.items():
        print(
            f"{name:26}{one['per_second']:>8.0f}{one['p99_ms']:>8.2f}{one['cpu_us']:>8.1f}{one['added_us']:>+8.1f}"
            f"{one['added_us_min']:>+7.1f}{one['added_us_max']:>+7.1f}{one['failed']:>8.0f}"
        )
    for name, why in skipped.items():
        print(f"{name:26} SKIPPED: {why}")
    if EMPTY in table:
        print(f"{table[BASE]['per_second'] / table[EMPTY]['per_second']:.2f} of the requests of an empty answer")
    sys.stdout.flush()


def main() -> None:
    """Measure, print, and write features.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each cell (default 3)")
    parser.add_argument("--connections", type=int, default=8)
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="VARIANT", help=", ".join(names))
    parser.add_argument("--workloads", nargs="+", default=["w1", "w4"], choices=[one.name for one in WORKLOADS])
    parser.add_argument("--quick", action="store_true", help="once, one second")
    parser.add_argument("--folder", type=Path, default=Path("var/bench"), help="default var/bench")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server of the moment is ended too
    if given.quick:
        given.repetitions = given.seconds = 1
    print(
        f"load by {loaders()}; cores {cores()}; {given.repetitions} x {given.seconds} s, {given.connections} "
        f"connections, medians; load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    chosen = [variant for variant in VARIANTS if variant.name in {BASE, *given.only}]
    result: dict[str, Any] = {"load_average": os.getloadavg()}
    for workload in WORKLOADS:
        if workload.name not in given.workloads:
            continue
        for kind, protocol in (("JSON", V2), ("binary", V2_BINARY)):
            servers = [server_of(variant, protocol) for variant in chosen]
            cells, skipped = measure(
                given.folder, workload, servers, [given.connections], given.repetitions, given.seconds, bare=False
            )
            if BASE not in cells:
                sys.exit(f"the server does not answer: {skipped[BASE]}")
            table = summary({name: by_connections[given.connections] for name, by_connections in cells.items()})
            show(f"{workload.title}, {kind}", table, skipped)
            result[f"{workload.name} {kind}"] = table
            (given.folder / "features.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
