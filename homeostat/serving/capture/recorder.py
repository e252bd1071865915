"""The server's side of capture: a bounded buffer that the hot path appends to, and a thread that feeds the writer."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from homeostat.errors import ConfigError
from homeostat.serving.capture.writer import ACK, KEY, UNWRITABLE, frame

log = logging.getLogger(__name__)

BUFFER_BYTES = 64 * 1024 * 1024
"""Frames that wait; what comes on top is dropped and counted."""
FLIGHT_BYTES = 16 * 1024 * 1024
"""Frames sent that the writer has not yet committed; they are sent again when it dies."""
PIPE_BYTES = 1 << 20
"""The writer commits what one reading of the pipe brings: few large transactions."""
FLUSH_SECONDS = 0.05
DEATHS = 3
"""A batch in flight through so many deaths of the writer is dropped and counted, for it may be what kills it."""


@dataclass(frozen=True)
class Retention:
    """How long, and how much, captured traffic is kept; 0 is no limit."""

    max_days: float = 90.0
    max_bytes: float = 10e9
    roll_seconds: float = 3600.0
    """Between two moves of requests to Parquet."""

    def arguments(self) -> list[str]:
        """Return it as the writer takes it."""
        return [str(self.max_days), str(self.max_bytes), str(self.roll_seconds)]


def _ready(descriptor: int, event: int, seconds: float) -> bool:
    poll = select.poll()  # select() fails on descriptors over 1023, which a busy server has
    poll.register(descriptor, event)
    return bool(poll.poll(seconds * 1000))


class Recorder:
    """Takes frames from any thread; `put` never waits.

    Counters: `captured` frames offered, `written` frames committed, `duplicates` requests whose id
    their model had already (not written), `dropped` frames lost (buffer full, writer dead again and
    again, or not flushed by the end); after `close`, captured = written + duplicates + dropped.
    `restarts` of the writer.
    """

    def __init__(
        self,
        path: Path,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        retention: Retention | None = None,
        key: bytes | None = None,
    ) -> None:
        """key: what the writer encrypts with; None writes as it is."""
        self.path, self.retention, self._key = path, retention or Retention(), key
        self.captured = self.written = self.duplicates = self.dropped = self.restarts = 0
        self._limit = buffer_bytes
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._flight: deque[bytes] = deque()
        self._flight_bytes = 0
        self._acknowledged = self._repeated = 0
        self._deaths = self._failures = 0
        """Of writers since the last commit; a failure for which no frame can be blamed is no death."""
        self._writer: subprocess.Popen[bytes] | None = None
        self._acks = b""
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._feed, name="capture", daemon=True)

    def start(self) -> None:
        """Start the writer and the thread that feeds it; raises ConfigError when its folder cannot be made."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.path.parent}, the folder of captured traffic, cannot be made: {error.strerror}; "
                "set HOMEOSTAT_TRAFFIC to a file in a folder that this user may write"
            ) from error
        self._spawn()
        self._thread.start()

    @property
    def limit_bytes(self) -> int:
        """Bytes of frames that may wait; more are dropped."""
        return self._limit

    @property
    def backlog(self) -> tuple[int, int]:
        """Frames that are not yet committed, and their bytes."""
        return len(self._waiting) + len(self._flight), self._waiting_bytes + self._flight_bytes

    @property
    def pid(self) -> int | None:
        """Process id of the writer."""
        return self._writer.pid if self._writer else None

    def put(self, data: bytes) -> bool:
        """Take one frame, or count it as dropped when the buffer is full."""
        with self._lock:
            self.captured += 1
            if self._waiting_bytes + len(data) > self._limit:
                self.dropped += 1
                return False
            self._waiting_bytes += len(data)
            self._waiting.append(data)
        return True

    def close(self, seconds: float = 5.0) -> None:
        """Write what is left, and end the writer; what is not written in time is counted as dropped."""
        self._deadline = time.monotonic() + seconds
        self._closing.set()
        self._thread.join(seconds + 1)
        if self._writer is not None:
            assert self._writer.stdin is not None
            self._writer.stdin.close()
            try:
                self._writer.wait(max(0.1, self._deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._writer.kill()
                self._writer.wait()
            self._read_acks()
            self._writer.stdout.close()  # type: ignore[union-attr]
        lost = len(self._waiting) + len(self._flight)
        if lost:
            self.dropped += lost
            log.error("capture: %d frames were not written within %g s", lost, seconds)

    def _spawn(self) -> None:
        self._writer = subprocess.Popen(
            [sys.executable, "-m", "homeostat.serving.capture.writer", str(self.path), *self.retention.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._writer.stdin is not None
        pipe = self._writer.stdin.fileno()
        os.set_blocking(pipe, False)
        if self._key is not None:
            os.write(pipe, frame(KEY, self._key))  # a pipe of its own: neither arguments nor environment show it
        with contextlib.suppress(OSError):  # over the user's limit of pipe memory: smaller batches, no loss
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._acknowledged, self._repeated, self._acks = 0, 0, b""

    def _feed(self) -> None:
        while not (self._closing.is_set() and self._finished()):
            try:
                if self._writer is None:
                    self._spawn()
                    self.restarts += 1
                    self._write(b"".join(self._flight))
                self._send()
                self._read_acks()
                if self._closing.is_set():
                    self._wait_ack(0.02)
            except OSError as error:
                self._bury(error)
            self._closing.wait(FLUSH_SECONDS)

    def _finished(self) -> bool:
        return time.monotonic() > self._deadline or not (self._waiting or self._flight)

    def _wait_ack(self, seconds: float) -> None:
        assert self._writer is not None
        assert self._writer.stdout is not None
        _ready(self._writer.stdout.fileno(), select.POLLIN, seconds)

    def _take(self) -> list[bytes]:
        batch = []
        with self._lock:
            while self._waiting and self._flight_bytes < FLIGHT_BYTES:
                data = self._waiting.popleft()
                self._waiting_bytes -= len(data)
                self._flight_bytes += len(data)
                batch.append(data)
        self._flight.extend(batch)
        return batch

    def _send(self) -> None:
        while batch := self._take():
            self._write(b"".join(batch))
            self._read_acks()

    def _write(self, data: bytes) -> None:
        assert self._writer is not None
        assert self._writer.stdin is not None
        pipe, view = self._writer.stdin.fileno(), memoryview(data)
        while view:
            try:
                view = view[os.write(pipe, view) :]
            except BlockingIOError:
                if self._closing.is_set() and time.monotonic() > self._deadline:
                    return
                _ready(pipe, select.POLLOUT, FLUSH_SECONDS)
                self._read_acks()

    def _read_acks(self) -> None:
        """Forget the frames that the writer says it has committed; raises BrokenPipeError when it is gone."""
        assert self._writer is not None
        assert self._writer.stdout is not None
        pipe = self._writer.stdout.fileno()
        while _ready(pipe, select.POLLIN, 0):
            data = os.read(pipe, 4096)
            if not data:
                if self._writer.stdin is not None and self._writer.stdin.closed:
                    return
                raise BrokenPipeError(f"the capture writer ended with code {self._writer.poll()}")
            self._acks += data
            whole = len(self._acks) // ACK.size * ACK.size
            if whole:
                done, repeated = ACK.unpack_from(self._acks, whole - ACK.size)
                self._acks = self._acks[whole:]
                for _ in range(done - self._acknowledged):
                    self._flight_bytes -= len(self._flight.popleft())
                self.written += done - self._acknowledged - (repeated - self._repeated)
                self.duplicates += repeated - self._repeated
                self._acknowledged, self._repeated = done, repeated
                self._deaths = self._failures = 0

    def _bury(self, error: OSError) -> None:
        """Clean up after a writer that died (or could not start); what it had not committed stays in flight."""
        writer, self._writer = self._writer, None
        self._failures += 1
        if writer is not None:
            writer.stdin.close()  # type: ignore[union-attr]
            writer.stdout.close()  # type: ignore[union-attr]
            writer.kill()
            self._deaths += writer.wait() != UNWRITABLE
        log.error("capture writer lost (%s); %d frames will be sent again", error, len(self._flight))
        if self._deaths >= DEATHS and self._flight:
            self.dropped += len(self._flight)
            log.error("capture: %d frames dropped after %d deaths of the writer", len(self._flight), self._deaths)
            self._flight.clear()
            self._flight_bytes = 0
        self._closing.wait(min(5.0, 0.1 * 2**self._failures))
