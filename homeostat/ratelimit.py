"""Token buckets: how many requests a client may send in a second, in bounded memory."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from homeostat.errors import TooManyRequests

MAX_BUCKETS = 16_384


class RateLimit:
    """A bucket for each name: `burst` requests at once, then `rate` a second.

    When there are too many names, the one that asked the longest ago is forgotten: its bucket
    would be full again soon anyway.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        *,
        setting: str = "HOMEOSTAT_RATE_LIMIT",
        buckets: int = MAX_BUCKETS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Let `burst` pass at once, then `rate` a second; `setting` is what a refusal names."""
        self._rate, self._burst, self._max, self._clock = rate, float(burst), buckets, clock
        self._setting = setting
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Name -> tokens left, and when that was counted."""

    def __len__(self) -> int:
        """Return how many buckets are kept."""
        return len(self._buckets)

    def take(self, name: str) -> None:
        """Take one token; raises TooManyRequests that says when there will be one."""
        now = self._clock()
        left, then = self._buckets.get(name, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        refused = left < 1.0
        self._buckets[name] = (left if refused else left - 1.0, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._max:
            self._buckets.popitem(last=False)
        if refused:
            wait = max(1, math.ceil((1.0 - left) / self._rate))
            raise TooManyRequests(
                f"more than {self._rate:.3g} requests a second ({self._setting}); again in {wait} s", wait
            )
