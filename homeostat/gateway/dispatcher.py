"""Starts what webhooks ask for: each decision becomes one flow run, however often it is tried."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from homeostat.control.deliveries import Deliveries, Delivery
from homeostat.errors import ControlError, Unavailable
from homeostat.gateway.prefect import FlowRunRefused, Prefect, PrefectUnavailable

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LONGEST_WAIT = 60.0
"""Seconds between two tries at most."""
KEPT = timedelta(days=90)
"""How long settled decisions can be asked for."""
CLEAN_SECONDS = 3600.0


class Dispatcher:
    """A thread's work: takes the decisions that are due, the oldest first, and starts their flow runs.

    The decision is Prefect's idempotency key: a gateway that is killed between the start and its record, or
    a second one beside it, finds the same flow run.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        prefect: Prefect,
        give_up: timedelta,
        permanent: tuple[str, ...],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Do not start yet. permanent: sources whose keys are never forgotten."""
        self._deliveries, self._prefect, self._give_up, self._clock = deliveries, prefect, give_up, clock
        self._permanent = permanent
        self._wake, self._stop = threading.Event(), threading.Event()
        self._clean_at = 0.0

    def wake(self) -> None:
        """Look at once: a webhook has come."""
        self._wake.set()

    def stop(self) -> None:
        """End `run` after the decision at hand."""
        self._stop.set()
        self._wake.set()

    def run(self) -> None:
        """Start what is due, until `stop`."""
        while not self._stop.is_set():
            try:
                self.dispatch()
                self._clean()
            except (ControlError, Unavailable) as error:
                log.warning("%s; again in %g s", error, POLL_SECONDS)
                self._stop.wait(POLL_SECONDS)
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def dispatch(self) -> None:
        """Try what is due now once."""
        for delivery in self._deliveries.due(self._clock().timestamp()):
            if self._stop.is_set():
                return
            self._try(delivery)

    def _try(self, delivery: Delivery) -> None:
        about = f"decision {delivery.decision} of {delivery.source}"
        try:
            tags = ("webhook", delivery.source)
            run = self._prefect.start(delivery.deployment, delivery.parameters, delivery.decision, tags)
        except FlowRunRefused as error:
            log.error("%s: %s", about, error)
            self._deliveries.settle(delivery.decision, "refused", note=str(error))
        except PrefectUnavailable as error:
            now = self._clock()
            if now - datetime.fromisoformat(delivery.time) > self._give_up:
                log.error("%s: given up: %s", about, error)
                self._deliveries.settle(delivery.decision, "expired", note=str(error))
                return
            wait = min(LONGEST_WAIT, 2.0 ** min(delivery.attempts, 10))
            log.warning("%s: %s; again in %g s", about, error, wait)
            self._deliveries.postpone(delivery.decision, now.timestamp() + wait, str(error))
        else:
            log.info("%s: flow run %s of %s", about, run, delivery.deployment)
            self._deliveries.settle(delivery.decision, "started", flow_run=run)

    def _clean(self) -> None:
        if time.monotonic() < self._clean_at:
            return
        self._clean_at = time.monotonic() + CLEAN_SECONDS
        if forgotten := self._deliveries.forget(self._clock() - KEPT, self._permanent):
            log.info("%d decisions older than %d days are forgotten", forgotten, KEPT.days)
