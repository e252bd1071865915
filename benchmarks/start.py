"""Seconds from the start of a process to its first answer, and its memory then: ours with digits, and rivals.

Ours starts twice: `first` verifies, preflights and loads the bundle; `again` finds that it has
passed before. Every server has a virtual environment of its own; ours has the extra `serve`, and
once more `serve` and `grpc`. The rivals load the very same graph, which takes its image as a flat
row there. Memory is of all processes of a server: PSS, in which what they share counts once, and
the RSS of the largest of them.
`python -m benchmarks.start --help`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from benchmarks.rollout_models import make_champion
from benchmarks.rollout_server import Serving, compiling, home_in
from benchmarks.serving_load import Request
from benchmarks.serving_models import Workload
from benchmarks.serving_protocols import JSON
from benchmarks.serving_rivals import SERVERS
from benchmarks.serving_server import Server, Skipped, answers, environment_of, free_port
from deployments.traffic import infer_body
from homeostat.bundle import load_public_key, open_bundle
from homeostat.golden import read_golden
from homeostat.records import BundleRef
from homeostat.settings import load_settings

POLL_SECONDS, START_SECONDS, SETTLE_SECONDS, STOP_SECONDS = 0.005, 90, 1.0, 20
RIVALS = ("fastapi", "mlserver", "mlflow")
ROOT = Path(__file__).resolve().parent.parent
OURS = {
    "homeostat": ("--editable", f"{ROOT}[serve]"),
    "homeostat-grpc": ("--editable", f"{ROOT}[serve,grpc]"),
}
"""Name -> what is installed for it: this checkout, with its extras."""
GOAL_SECONDS, GOAL_MEGABYTES = 1.0, 100


@dataclass(frozen=True)
class Flat(Workload):
    """A served graph that takes its one input as a flat row `x`, as the rivals' few lines of code send it."""

    graph: bytes = b""

    def onnx(self) -> bytes:
        return self.graph


def flatten(graph: bytes) -> Flat:
    """Put a Reshape in front of a graph with one input [n, ...] float32."""
    model = onnx.load_from_string(graph)
    (given,) = model.graph.input
    shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:]
    width = int(np.prod(shape))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, *shape], np.int64), "bench_shape"))
    for node in model.graph.node:
        node.input[:] = ["bench_shaped" if name == given.name else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "bench_shape"], ["bench_shaped"]))
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width]))
    return Flat("digits", (width,), "digits", graph=model.SerializeToString())


def live_digits(home: Path) -> BundleRef:
    """Train, compress, export and bundle digits: half a minute, in a process of its own for TensorFlow's sake."""
    from benchmarks.bare import live

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    settings = load_settings(root=ROOT, home=home, control_url=f"sqlite:///{home}/control.db")
    return live("digits", 1, settings)[0]


def memory(pid: int) -> dict[str, float]:
    """In MB: the PSS of a process and all that it has started together, and the RSS of the largest."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = [one.memory_full_info() for one in family]
    return {"pss": sum(one.pss for one in found) / 1e6, "rss": max(one.rss for one in found) / 1e6}


@contextmanager
def _started(command: list[str], environment: dict[str, str], folder: Path, name: str) -> Iterator[int]:
    """Run a server in a session of its own, and end it with all that it started."""
    with (folder / f"start-{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start_once(
    command: list[str], environment: dict[str, str], request: Request, folder: Path, name: str
) -> dict[str, float]:
    """Start, wait for the first answer, and weigh; return seconds, rss and pss."""
    began = time.monotonic()
    with _started(command, environment, folder, name) as pid:
        while not answers(request):
            if time.monotonic() - began > START_SECONDS:
                raise TimeoutError(f"{name} does not answer after {START_SECONDS} s; see {folder}/start-{name}.log")
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        time.sleep(SETTLE_SECONDS)
        return {"seconds": seconds, **memory(pid)}


def install(folder: Path, name: str, packages: tuple[str, ...]) -> Path | None:
    """Make a virtual environment, once; return its bin folder, None when it cannot be made."""
    print(f"  installing {name}", flush=True)
    try:
        return environment_of(folder, name, packages)
    except Skipped as why:
        print(f"  {name} is skipped: {why}", flush=True)
        return None


def start_ours(home: Path, ref: BundleRef, tools: Path, folder: Path, *, grpc: bool) -> dict[str, float]:
    """Start our server on a home with this champion."""
    rows, _ = read_golden(open_bundle(ref, load_public_key(home)).golden)
    body = json.dumps(infer_body({name: values[:1] for name, values in rows.items()})).encode()
    server = Serving(home)
    environment = {name: value for name, value in server.environment.items() if grpc or "GRPC" not in name}
    url = f"http://127.0.0.1:{server.port}/v2/models/{ref.model}/infer"
    command = [str(tools / "homeostat"), "serve"]
    return start_once(command, environment, Request(url, body, JSON), folder, "homeostat")


def start_rival(server: Server, workload: Workload, folder: Path) -> dict[str, float]:
    """Start a rival; what it needs beforehand, such as a saved model, is not timed."""
    port = free_port()
    command, environment = server.command(folder, workload, port)
    request = server.request(workload, port)
    return start_once(command, compiling() | environment, request, folder, server.name)


def measure(folder: Path, repetitions: int, rivals: list[str], make: Callable[[Path], BundleRef]) -> dict[str, Any]:
    """Start each by turns; return name -> what each start took."""
    folder = folder.resolve()
    found: dict[str, list[Any]] = {}
    with home_in(folder) as home:
        print("  making the bundle", flush=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            ref = pool.submit(make, home).result()
        make_champion(Serving(home).store, ref)
        workload = flatten(open_bundle(ref, load_public_key(home)).onnx)
        ours = {name: install(folder, name, packages) for name, packages in OURS.items()}
        theirs = [one for one in SERVERS if one.name in rivals and install(folder, one.name, one.packages)]
        for turn in range(repetitions):
            for name, tools in ours.items():
                shutil.rmtree(home / "serving", ignore_errors=True)  # where it remembers what has passed
                for when in ("first", "again") if tools else ():
                    took = start_ours(home, ref, tools, folder, grpc=name.endswith("grpc"))
                    found.setdefault(f"{name}, {when}", []).append(took)
            for server in theirs:
                found.setdefault(server.name, []).append(start_rival(server, workload, folder))
            print(f"  {turn + 1} of {repetitions}", flush=True)
    return found


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Print medians, and how many times ours the rivals take."""
    print(f"{'':24}{'n':>4}{'seconds':>9}{'min':>7}{'max':>7}{'is':>7}{'PSS MB':>9}{'is':>7}{'largest RSS MB':>16}")
    base = found["homeostat, first"]

    def median(values: list[dict[str, float]], name: str) -> float:
        return statistics.median(one[name] for one in values)

    for name, values in found.items():
        seconds = [one["seconds"] for one in values]
        slower = median(values, "seconds") / median(base, "seconds")
        larger = median(values, "pss") / median(base, "pss")
        print(
            f"{name:24}{len(values):>4}{median(values, 'seconds'):>9.2f}{min(seconds):>7.2f}{max(seconds):>7.2f}"
            f"{slower:>6.1f}x{median(values, 'pss'):>9.0f}{larger:>6.1f}x{median(values, 'rss'):>16.0f}"
        )
    print(f"goal: under {GOAL_SECONDS:g} s and {GOAL_MEGABYTES} MB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS)
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--json", type=Path, help="also write the result here")
    given = parser.parse_args()
    print(f"{given.repetitions} starts each, by turns, medians; load average {os.getloadavg()[0]:.1f}", flush=True)
    found = measure(given.folder, given.repetitions, given.rivals, live_digits)
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
