"""Every benchmark in turn: `make bench`; one alone: `python -m benchmarks.overhead`."""

import subprocess
import sys

for name in ("overhead", "serving", "swaps", "rollback", "challengers", "start", "chaos"):
    print(f"\n# {name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
