"""ratelimit: a burst, then so many a second, in bounded memory."""

from __future__ import annotations

import pytest

from homeostat.errors import TooManyRequests
from homeostat.ratelimit import RateLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def take(limit: RateLimit, name: str, times: int) -> int:
    taken = 0
    for _ in range(times):
        try:
            limit.take(name)
        except TooManyRequests:
            continue
        taken += 1
    return taken


def test_a_burst_then_the_rate():
    clock = Clock()
    limit = RateLimit(8.0, 5, clock=clock)
    assert take(limit, "a", 20) == 5
    clock.now = 1.0
    assert take(limit, "a", 20) == 5, "no more than the burst, however long nobody asked"
    for step in range(100):
        clock.now = 1.0 + (step + 1) * 0.125
        assert take(limit, "a", 3) == 1
    assert take(limit, "b", 20) == 5


def test_refusals_cost_nothing_and_say_when():
    clock = Clock()
    limit = RateLimit(0.25, 1, clock=clock)
    limit.take("a")
    for _ in range(3):
        with pytest.raises(TooManyRequests, match="again in 4 s") as caught:
            limit.take("a")
        assert caught.value.retry_after == 4
    clock.now = 4.0
    limit.take("a")


def test_memory_is_bounded_and_the_busy_are_kept():
    clock = Clock()
    limit = RateLimit(1.0, 2, buckets=100, clock=clock)
    take(limit, "busy", 2)
    for number in range(1000):
        limit.take(f"address {number}")
        assert take(limit, "busy", 1) == 0
    assert len(limit) == 100
