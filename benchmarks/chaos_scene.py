"""The server that faults are done to, and what is known of it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.rollout_models import MODEL
from benchmarks.rollout_server import Serving, wait
from benchmarks.swaps import Swap


@dataclass
class Scene:
    """The server, and what is known of it."""

    server: Serving
    random: random.Random
    swaps: list[Swap] = field(default_factory=list)
    live: int = 1
    """Of the two versions that are champion by turns."""
    built: int = 100
    """Version of the last challenger."""
    unexpected: list[str] = field(default_factory=list)
    """Answers to attacks that should not be."""
    ended: set[int] = field(default_factory=set)
    """Processes that are to be replaced."""

    def worker(self) -> int:
        """One of the workers."""
        return self._one_of(self.server.workers)

    def end(self, processes: Callable[[], list[int]], how: signal.Signals) -> None:
        """Send one of these processes a signal that ends it."""
        one = self._one_of(processes)
        os.kill(one, how)
        self.ended.add(one)

    def _one_of(self, processes: Callable[[], list[int]]) -> int:
        found: list[int] = []
        wait(lambda: found.extend(set(processes()) - self.ended) or found, "running")
        return self.random.choice(sorted(found))

    def is_whole(self, count: int) -> bool:
        """Whether so many workers, and writers, are there and all have what the rollout row names."""
        workers, writers = self.server.workers(), self.server.writers()
        return (
            len(workers) == len(writers) == count
            and self.ended.isdisjoint([*workers, *writers])
            and self.server.live(MODEL) == str(self.live)
        )


Fault = Callable[[Scene], None]
