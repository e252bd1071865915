"""What each of our server's features costs: microseconds of CPU a request, beside the same server with everything on.

CPU is of all the server's processes, the writer of captured requests included, on one core; a
difference is taken between two servers that were measured one after the other. What users can
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

Pairs = list[tuple[Cell, Cell]]
"""(everything on, the variant), measured one after the other."""
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


def measure_pairs(
    folder: Path, workload: Workload, protocol: Protocol, variants: list[Variant], number: int, times: int, seconds: int
) -> tuple[dict[str, Pairs], dict[str, str]]:
    """Measure each variant by turns with everything on; return the pairs of cells, and why others were skipped."""
    found: dict[str, Pairs] = {}
    skipped: dict[str, str] = {}
    for variant in variants:
        servers = [server_of(VARIANTS[0], protocol), server_of(variant, protocol)]
        cells, why = measure(folder, workload, servers, [number], times, seconds, bare=False)
        skipped |= why
        if not why:
            found[variant.name] = list(zip(cells[BASE][number], cells[variant.name][number], strict=True))
    return found, skipped


def _medians(cells: list[Cell]) -> dict[str, float]:
    return {
        "per_second": statistics.median(one.load.per_second for one in cells),
        "p99_ms": statistics.median(one.load.p99_ms for one in cells),
        "cpu_us": statistics.median(one.cpu_us for one in cells),
        "failed": sum(one.load.failed for one in cells),
    }


def summary(found: dict[str, Pairs]) -> dict[str, dict[str, float]]:
    """Medians, everything on first; `added_us` is what a variant takes more than everything on, `share` of its rate."""
    table = {BASE: _medians([beside for pairs in found.values() for beside, _ in pairs])}
    for name, pairs in found.items():
        added = [one.cpu_us - beside.cpu_us for beside, one in pairs]
        table[name] = {
            **_medians([one for _, one in pairs]),
            "added_us": statistics.median(added),
            "added_us_min": min(added),
            "added_us_max": max(added),
            "share": statistics.median(one.load.per_second / beside.load.per_second for beside, one in pairs),
        }
    return table


def show(title: str, table: dict[str, dict[str, float]], skipped: dict[str, str]) -> None:
    """Print one workload's table."""
    print(f"\n{title}")
    print(f"{'':26}{'req/s':>8}{'is':>7}{'p99 ms':>8}{'CPU us':>8}{'added':>8}{'min':>7}{'max':>7}{'failed':>8}")
    for name, one in table.items():
        added = [one.get(key, 0.0) for key in ("added_us", "added_us_min", "added_us_max")]
        print(
            f"{name:26}{one['per_second']:>8.0f}{one.get('share', 1):>6.2f}x{one['p99_ms']:>8.2f}{one['cpu_us']:>8.1f}"
            f"{added[0]:>+8.1f}{added[1]:>+7.1f}{added[2]:>+7.1f}{one['failed']:>8.0f}"
        )
    for name, why in skipped.items():
        print(f"{name:26} SKIPPED: {why}")
    sys.stdout.flush()


def main() -> None:
    """Measure, print, and write features.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each cell (default 3)")
    parser.add_argument("--connections", type=int, default=8)
    names = [variant.name for variant in VARIANTS[1:]]
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
    chosen = [variant for variant in VARIANTS if variant.name in given.only]
    result: dict[str, Any] = {"load_average": os.getloadavg()}
    for workload in WORKLOADS:
        if workload.name not in given.workloads:
            continue
        for kind, protocol in (("JSON", V2), ("binary", V2_BINARY)):
            pairs, skipped = measure_pairs(
                given.folder, workload, protocol, chosen, given.connections, given.repetitions, given.seconds
            )
            if not pairs:
                sys.exit(f"nothing was measured: {skipped}")
            table = summary(pairs)
            show(f"{workload.title}, {kind}", table, skipped)
            result[f"{workload.name} {kind}"] = table
            (given.folder / "features.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
