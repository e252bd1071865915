"""The table in docs/benchmarks.md: `python -m benchmarks.serving_table FILE...`, of its results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "session.run": "`session.run` alone",
    "asgi": "bare ASGI",
    "fastapi": "FastAPI, `async def`",
    "fastapi def": "FastAPI, `def`",
    "mlserver": "MLServer",
    "kserve": "KServe",
    "litserve": "LitServe",
    "bentoml": "BentoML",
    "ray": "Ray Serve",
    "torchserve": "TorchServe",
    "mlflow": "mlflow models serve",
}
BESIDE = "8"
"""Connections at which CPU is told."""


def title(name: str) -> str:
    """What a server is called in the table."""
    first, _, how = name.partition(" ")
    how = {"grpc": "gRPC"}.get(how, how)
    return NAMES.get(name) or f"{NAMES.get(first, first)}, {how}".removesuffix(", ")


def rows(workloads: dict[str, Any]) -> list[str]:
    """Markdown lines: requests a second at each number of connections and CPU a request, for each workload."""
    heads = [f"{name.upper()}: req/s | CPU us" for name in workloads]
    lines = ["| server | " + " | ".join(heads) + " |", "|---|" + "---:|" * 2 * len(workloads)]
    names = dict.fromkeys(name for one in workloads.values() for name in [*one["servers"], *one["skipped"]])
    for name in names:
        cells = []
        for one in workloads.values():
            found = one["servers"].get(name)
            if found is None:
                cells.append("skipped | ")
                continue
            rates = ", ".join(f"{load['per_second']:.0f}" for load in found.values())
            cpu = found.get(BESIDE) or next(iter(found.values()))
            cells.append(f"{rates} | {cpu['cpu_us']:.0f}")
        lines.append(f"| {title(name)} | " + " | ".join(cells) + " |")
    failed = sum(load["failed"] for one in workloads.values() for by in one["servers"].values() for load in by.values())
    skipped = [f"{title(name)}: {why}" for one in workloads.values() for name, why in one["skipped"].items()]
    return [*lines, "", f"Failed requests: {failed}.", *dict.fromkeys(skipped)]


def main(files: list[str]) -> None:
    """Print the table of all workloads in these files; of one that is there twice the last counts."""
    workloads: dict[str, Any] = {}
    for file in files:
        workloads |= json.loads(Path(file).read_text())["workloads"]
    print("\n".join(rows(dict(sorted(workloads.items())))))


if __name__ == "__main__":
    main(sys.argv[1:])
