"""The supervisor: keeps the server's workers running, and notes what they were computing when they died.

It holds the listening socket, so that clients wait while a worker comes back, and imports next
to nothing, so that it stays small and nothing can happen to it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from homeostat.serving.blackbox import SIZE, BlackBox, Killers
from homeostat.serving.jsonlog import log_to_stderr
from homeostat.serving.post import receive

log = logging.getLogger(__name__)

HANG_CHECKS = 10
"""A worker whose event loop has not turned between so many looks, a second apart, is killed."""
STOP_SECONDS = 20.0
"""How long workers may take to drain before they are killed."""
EARLY_SECONDS = 5.0
"""A worker that dies younger than this is started again more and more slowly."""
MAX_WAIT_SECONDS = 5.0
WRONG_SETTINGS = 2
"""Exit code of a worker that cannot run as it is told."""


@dataclass
class Worker:
    """One worker process."""

    index: int
    process: subprocess.Popen[bytes]
    control: socket.socket
    box: BlackBox
    file: IO[bytes]
    since: float = field(default_factory=time.monotonic)
    beat: int = 0
    missed: int = 0
    """Looks since the event loop turned last."""

    def release(self) -> None:
        """Close what is shared with a process that has ended."""
        self.control.close()
        self.box.close()
        self.file.close()


class Supervisor:
    """Runs workers until a signal; `run` returns the exit code."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment}
        self._listening: list[socket.socket] = []
        self._wanted = 1
        self._lock: int | None = None
        self._killers: Killers | None = None
        self._served = False
        """Whether any worker has been ready: what fails after that may pass."""
        self._workers: dict[int, Worker] = {}
        self._due: dict[int, float] = {}
        """Index -> when a worker that died is to be started again."""
        self._early: dict[int, int] = {}
        """Index -> how often in a row it has died young."""
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._looked = 0.0
        self._deadline: float | None = None
        self._code: int | None = None

    def run(self) -> int:
        """Start the first worker, then as many as it says, and replace each that ends."""
        woken, wake = socket.socketpair()
        woken.setblocking(False)
        wake.setblocking(False)
        before = {one: signal.signal(one, self._handle) for one in (signal.SIGTERM, signal.SIGINT)}
        signal.set_wakeup_fd(wake.fileno())
        self._selector.register(woken, selectors.EVENT_READ)
        try:
            self._start(0)
            while self._workers or self._due:
                self._turn(woken)
        finally:
            for worker in list(self._workers.values()):  # an error of ours: leave nothing behind
                worker.process.kill()
                worker.process.wait()
            signal.set_wakeup_fd(-1)
            for one, handler in before.items():
                signal.signal(one, handler)
            self._selector.close()
            for end in (woken, wake, *self._listening):
                end.close()
            if self._lock is not None:
                os.close(self._lock)
        return self._code or 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signals.append(number)

    def _turn(self, woken: socket.socket) -> None:
        until = min([time.monotonic() + 1, *self._due.values()])
        for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
            if key.fileobj is woken:
                with contextlib.suppress(BlockingIOError):
                    woken.recv(4096)
            else:
                self._hear(key.data)
        while self._signals:
            self._stop(self._signals.pop(0))
        now = time.monotonic()
        for index in [index for index, due in self._due.items() if due <= now]:
            del self._due[index]
            self._start(index)
        if now - self._looked >= 1:
            self._looked = now
            self._look(now)

    def _start(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        file = os.fdopen(os.memfd_create("homeostat-blackbox"), "r+b")  # no disk sees what clients send
        file.truncate(SIZE)
        control, box, listening = theirs.fileno(), file.fileno(), [one.fileno() for one in self._listening]
        arguments = map(str, (control, box, index, *listening))
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "homeostat.serving.worker", *arguments],
                env=self._environment,
                pass_fds=[control, box, *listening],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        worker = Worker(index, process, ours, BlackBox(file.fileno()), file)
        self._workers[index] = worker
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _hear(self, worker: Worker) -> None:
        heard = receive(worker.control)
        if heard is None:
            self._bury(worker)
            return
        messages, descriptors = heard
        for message in messages:
            if message.get("ready"):
                self._served = True
            else:
                if message.get("locked"):
                    self._lock = descriptors.pop()  # of HOME; closed when this process ends
                self._listening = [socket.socket(fileno=one) for one in descriptors]
                self._wanted = message["workers"]
                self._killers = Killers(Path(message["killers"]))
                self._due |= dict.fromkeys(range(1, self._wanted), 0.0)

    def _bury(self, worker: Worker) -> None:
        """Take leave of a worker that has ended, and have the next one started."""
        self._selector.unregister(worker.control)
        del self._workers[worker.index]
        try:
            code = worker.process.wait(2)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        inside, together = worker.box.inside(), worker.box.together()
        worker.release()
        if self._deadline is not None:
            self._code = self._code or (code if code > 0 else 0)
            return
        if self._killers is None or (code == WRONG_SETTINGS and not self._served):
            self._code = code if code > 0 else 1  # it has said why
            self._stop(signal.SIGTERM)
            return
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        log.error(
            "worker %d (process %d) ended with %s; %d requests were in it",
            worker.index, worker.process.pid, how, len(inside) + len(together),
        )  # fmt: skip
        if code < 0:
            self._killers.note(inside, together)
        young = time.monotonic() - worker.since < EARLY_SECONDS
        times = self._early[worker.index] = self._early.get(worker.index, 0) + 1 if young else 0
        wait = min(MAX_WAIT_SECONDS, 0.1 * 2**times) if times > 1 else 0.0
        self._due[worker.index] = time.monotonic() + wait

    def _stop(self, number: int) -> None:
        if self._deadline is None:
            number = signal.SIGTERM  # also for Ctrl-C, which would have one that still starts print where it is
            self._deadline = time.monotonic() + STOP_SECONDS
            for one in self._listening:
                one.close()  # or clients would wait for a server that does not come back
            self._due.clear()
        for worker in self._workers.values():
            worker.process.send_signal(number)

    def _look(self, now: float) -> None:
        for worker in self._workers.values():
            beat = worker.box.last_beat()
            worker.missed = 0 if beat != worker.beat or not beat else worker.missed + 1
            worker.beat = beat
            late = self._deadline is not None and now > self._deadline
            if late or worker.missed > HANG_CHECKS:
                log.error("worker %d (process %d) hangs and is killed", worker.index, worker.process.pid)
                worker.process.kill()


def supervise(environment: Mapping[str, str] | None = None) -> int:
    """Run the server, its settings from this environment on top of the process's; return the exit code."""
    log_to_stderr()
    return Supervisor(environment or {}).run()
