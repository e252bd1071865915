"""Every benchmark in turn: `make bench`; one alone: `python -m benchmarks.overhead`."""

import subprocess
import sys

EACH = (
    "overhead",
    "serving",
    "features",
    "batching",
    "swaps",
    "rollback",
    "challengers",
    "harm",
    "start",
    "chaos --seconds 600",
)
"""The hour of chaos is its default: ask for it alone."""

for line in EACH:
    name, *options = line.split()
    print(f"\n# {name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=True)
