"""Tells of the ledger's decisions: each target follows the ledger by itself, from where it stood when it was new."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from homeostat.control.deliveries import Deliveries
from homeostat.control.store import ControlStore
from homeostat.errors import ControlError, HomeostatError, Unavailable
from homeostat.gateway.config import Event
from homeostat.gateway.prefect import FlowRunRefused, Prefect
from homeostat.gateway.signatures import sign
from homeostat.records import LedgerEntry

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LONGEST_WAIT = 300.0
"""Seconds between two tries at most."""
BATCH = 100
_EVENTS: dict[str, Event] = {
    "promote": "promoted",
    "rollback": "rolled-back",
    "retrain": "retraining",
    "hold": "held",
    "challenger": "challenger",
    "approval": "approval",
}
PREFECTS: tuple[Event, ...] = ("promoted", "rolled-back", "retraining", "held", "challenger", "approval")
"""What Prefect is told of: the flow `monitor` emits drift and harm itself."""


class NoticeRefused(HomeostatError):
    """A target does not take a notice, or does not answer."""


class Sender(Protocol):
    """How one target is told; raises NoticeRefused or Unavailable when it could not be."""

    def __call__(self, event: Event, entry: LedgerEntry) -> None:
        """Tell of one decision."""


def event_of(entry: LedgerEntry) -> Event | None:
    """Return what happened, None for what nobody is told of, such as a look that found nothing."""
    if entry.action == "drift":
        found = entry.evidence.get("conclusion")
        return "harm" if found == "harm" else "drift" if found == "drift" else None
    return _EVENTS.get(entry.action)


def document(event: Event, entry: LedgerEntry) -> dict[str, Any]:
    """Return the body of an outbound webhook: type, timestamp and data, as Standard Webhooks recommends."""
    names = ("sequence", "model", "version", "sha256", "actor", "reason", "generation", "hash")
    data = {name: getattr(entry, name) for name in names}
    return {"type": f"homeostat.{event}", "timestamp": entry.time, "data": data}


def title(event: Event, entry: LedgerEntry) -> str:
    """Return one line for a person."""
    version = f" v{entry.version}" if entry.version else ""
    return f"{entry.model}{version}: {event.replace('-', ' ')}"


class WebhookSender:
    """POSTs a signed webhook; its id is the ledger entry's hash, so that a copy can be told by it."""

    def __init__(self, url: str, key: bytes, *, timeout_seconds: float = 10.0) -> None:
        self._url, self._key = url, key
        self._client = httpx.Client(timeout=timeout_seconds, trust_env=False)

    def __call__(self, event: Event, entry: LedgerEntry) -> None:
        """Tell of one decision."""
        body = json.dumps(document(event, entry)).encode()
        headers = sign(entry.hash, int(time.time()), body, self._key) | {"content-type": "application/json"}
        try:
            answer = self._client.post(self._url, content=body, headers=headers)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise NoticeRefused(f"no answer: {type(error).__name__}") from error  # its text may hold the URL
        if not answer.is_success:
            raise NoticeRefused(f"answers {answer.status_code}")


class AppriseSender:
    """Chat, e-mail and whatever else Apprise has a URL for, such as slack://, mmost:// or mailtos://."""

    def __init__(self, url: str) -> None:
        """Raises NoticeRefused when Apprise knows no such URL."""
        import apprise

        logging.getLogger("apprise").setLevel(logging.ERROR)  # it tells of each notice it has sent
        self._target, self._text = apprise.Apprise(), apprise.NotifyFormat.TEXT
        if not self._target.add(url):
            raise NoticeRefused("Apprise knows no such URL: see its list of services")

    def __call__(self, event: Event, entry: LedgerEntry) -> None:
        """Tell of one decision."""
        text = f"{entry.reason}\nby {entry.actor}, {entry.time}; homeostat explain {entry.sequence}"
        if not self._target.notify(title=title(event, entry), body=text, body_format=self._text):
            raise NoticeRefused("not taken")


class PrefectSender:
    """Emits a Prefect event, so that automations can act on it; a copy has the same id."""

    def __init__(self, prefect: Prefect) -> None:
        self._prefect = prefect

    def __call__(self, event: Event, entry: LedgerEntry) -> None:
        """Tell of one decision."""
        resource = {
            "prefect.resource.id": f"homeostat.model.{entry.model}",
            "prefect.resource.name": entry.model,
        }
        body = document(event, entry)
        try:
            self._prefect.emit(
                {
                    "id": str(uuid.uuid5(uuid.NAMESPACE_OID, entry.hash)),
                    "occurred": entry.time,
                    "event": body["type"],
                    "resource": resource,
                    "payload": body["data"],
                }
            )
        except FlowRunRefused as error:
            raise NoticeRefused(str(error)) from error


@dataclass
class Follower:
    """One target, and where it stands."""

    name: str
    on: Collection[Event]
    models: Collection[str]
    """Empty for all."""
    send: Sender
    failures: int = 0
    failing_since: float = 0.0
    again_at: float = field(default=0.0)


class Notifier:
    """A thread's work: tells each target of what it has not been told of, in the ledger's order, at least once.

    A target that does not answer holds up itself alone; after `give_up_seconds` on one entry, that one is
    left out, and the log says so.
    """

    def __init__(
        self,
        store: ControlStore,
        deliveries: Deliveries,
        followers: Collection[Follower],
        give_up_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._deliveries, self._followers = store, deliveries, followers
        self._give_up, self._clock = give_up_seconds, clock
        self._stop = threading.Event()

    def stop(self) -> None:
        """End `run` after the notice at hand."""
        self._stop.set()

    def run(self) -> None:
        """Tell, until `stop`."""
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.tell()
            except (ControlError, Unavailable) as error:
                log.warning("%s; again in %g s", error, POLL_SECONDS)

    def tell(self) -> None:
        """Tell every target that is not waiting of all that is new."""
        for follower in self._followers:
            if self._clock() >= follower.again_at and not self._stop.is_set():
                self._follow(follower)

    def _follow(self, follower: Follower) -> None:
        told = self._deliveries.told(follower.name)
        for entry in self._store.entries_after(told, BATCH):
            event = event_of(entry)
            wanted = event in follower.on and (not follower.models or entry.model in follower.models)
            if event is not None and wanted and not self._send(follower, event, entry):
                return
            self._deliveries.tell(follower.name, entry.sequence)

    def _send(self, follower: Follower, event: Event, entry: LedgerEntry) -> bool:
        """Return whether to go on: it was told, or is given up."""
        try:
            follower.send(event, entry)
        except (NoticeRefused, Unavailable) as error:
            now = self._clock()
            follower.failing_since = follower.failing_since or now
            follower.failures += 1
            about = f"target {follower.name}: ledger entry {entry.sequence} ({event} of {entry.model})"
            if now - follower.failing_since > self._give_up:
                log.error("%s is left out: %s", about, error)
                follower.failures, follower.failing_since = 0, 0.0
                return True
            wait = min(LONGEST_WAIT, 2.0 ** min(follower.failures, 10))
            follower.again_at = now + wait
            log.warning("%s: %s; again in %g s", about, error, wait)
            return False
        follower.failures, follower.failing_since, follower.again_at = 0, 0.0, 0.0
        return True
