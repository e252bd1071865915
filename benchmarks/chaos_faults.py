"""What is done to a running server, a fault at a time: each returns when it is over, and what is then to be mended."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks.chaos_clients import flood_connections, hold_calls, leave, send_killer, send_rubbish, send_slowly
from benchmarks.chaos_scene import Fault, Scene
from benchmarks.rollout_models import MODEL, SAID, bundle, dividing
from benchmarks.rollout_server import children, wait
from benchmarks.swaps import Swap

FROZEN_SECONDS, DISK_SECONDS, FILES_SECONDS, STORE_SECONDS = 1.0, 1.5, 1.0, 1.5
DISK_BYTES = 64 * 1024
"""No file of the server may grow past this while its disk is full."""


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
    "gRPC calls without a message": hold_calls,
    "clients that leave": leave,
    "promotion or rollback": swap_versions,
    "a corrupted challenger": announce_corrupted,
    "no control store, worker killed": take_store_away,
    "the disk is full": fill_disk,
    "no file may be opened": use_up_files,
}
LOSES = {"kill -9 of a worker", "a request that kills its worker", "no control store, worker killed"}
"""Where docs/serving.md says that captured requests may be lost."""
