"""The gateway's HTTP: POST /hooks/SOURCE takes a webhook, GET /decisions/ID says what has become of it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from homeostat.control.deliveries import Crowded, Deliveries, Delivery
from homeostat.control.store import ControlStore
from homeostat.errors import ControlUnavailable, HomeostatError, NotFound, RequestInvalid, TooManyRequests
from homeostat.gateway.config import Source
from homeostat.gateway.prefect import Prefect, PrefectUnavailable
from homeostat.gateway.rules import find_rule, read_body
from homeostat.gateway.signatures import check_signature
from homeostat.ratelimit import RateLimit

log = logging.getLogger(__name__)

BODY_SECONDS = 10.0
"""How long a body may take to come."""
ADDRESS_RATE, ADDRESS_BURST = 50.0, 200
"""Requests a second of one address, before anything is checked."""
SOURCE_BURST = 20
RETRY_SECONDS = 5
DECISION = re.compile(r"[0-9a-f]{32}")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Sender:
    """A source, and the keys that may sign for it."""

    source: Source
    keys: tuple[bytes, ...]


class Gateway:
    """Answers for the webhooks of all sources. `wake` is called when a decision waits for its flow run."""

    def __init__(
        self,
        senders: Mapping[str, Sender],
        deliveries: Deliveries,
        store: ControlStore,
        prefect: Prefect,
        *,
        max_body: int,
        wake: Callable[[], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._senders, self._deliveries, self._store, self._prefect = senders, deliveries, store, prefect
        self._max_body, self._wake, self._clock = max_body, wake, clock
        self._addresses = RateLimit(ADDRESS_RATE, ADDRESS_BURST, setting="of one address")
        self._rates = {
            name: RateLimit(sender.source.per_minute / 60, SOURCE_BURST, setting=f"sources.{name}.per_minute")
            for name, sender in senders.items()
        }

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/hooks/{source}", self._answered(self.take), methods=["POST"]),
            Route("/decisions/{decision}", self._answered(self.tell), methods=["GET"]),
            Route("/health", self._answered(self.health), methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    async def take(self, request: Request) -> Response:
        """Take one webhook: believe it, keep it, and answer 202 with the id of its decision."""
        name = request.path_params["source"]
        sender = self._senders.get(name)
        if sender is None:
            raise RequestInvalid(f"no source {name!r:.60}; gateway.toml has: {', '.join(self._senders)}", status=404)
        body = await self._read(request)
        return await run_in_threadpool(self._decide, name, sender, dict(request.headers), body)

    async def tell(self, request: Request) -> Response:
        """Say what has become of a decision."""
        decision = request.path_params["decision"]
        if not DECISION.fullmatch(decision):
            raise RequestInvalid("a decision id is 32 hex digits", status=404)
        return await run_in_threadpool(self._tell, decision)

    async def health(self, request: Request) -> Response:
        """Say whether the control store answers, and how many decisions wait for Prefect."""
        del request
        return JSONResponse({"status": "ok", "waiting": await run_in_threadpool(self._deliveries.waiting)})

    def _decide(self, name: str, sender: Sender, headers: Mapping[str, str], body: bytes) -> Response:
        form, now = sender.source.form, self._clock()
        key = check_signature(form, headers, body, sender.keys, now.timestamp())
        known = self._deliveries.known(name, key)
        if known is not None:
            return _taken(known)
        self._rates[name].take(name)
        started = find_rule(sender.source.rules, read_body(form, body))
        kept, new = self._deliveries.accept(name, key, started, now)
        if new:
            log.info("decision %s: %s %s", kept.decision, name, kept.deployment or "starts nothing: no rule fits")
            self._wake()
        return _taken(kept)

    def _tell(self, decision: str) -> Response:
        found = self._deliveries.find(decision)
        answer: dict[str, Any] = {
            **_short(found),
            "source": found.source,
            "received": found.time,
            "deployment": found.deployment or None,
            "note": found.note or None,
            "flow_run": None,
            "ledger": [],
        }
        if found.flow_run:
            answer["flow_run"] = {"id": found.flow_run}
            try:
                answer["flow_run"] |= self._prefect.state(found.flow_run)
            except PrefectUnavailable as error:
                answer["flow_run"]["state"] = None
                answer["note"] = str(error)
            written = self._store.written_by(f"flow_run {found.flow_run}")
            answer["ledger"] = [{name: getattr(e, name) for name in ("sequence", "action", "reason")} for e in written]
        return JSONResponse(answer)

    async def _read(self, request: Request) -> bytes:
        """Return the body; raises RequestInvalid when it is too large or too slow."""
        too_large = RequestInvalid(f"the body is larger than {self._max_body} bytes (max_body_bytes)", status=413)
        declared = request.headers.get("content-length", "0")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RequestInvalid("content-encoding: a webhook's body is signed as it is, uncompressed", status=415)
        if not declared.isdigit() or int(declared) > self._max_body:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._max_body:
                        raise too_large
        except TimeoutError as error:
            raise RequestInvalid(f"the body took longer than {BODY_SECONDS:g} s", status=408) from error
        return bytes(body)

    def _answered(self, handler: Handler) -> Handler:
        """Count the address, and answer errors as JSON."""

        async def answer(request: Request) -> Response:
            try:
                self._addresses.take(request.client.host if request.client else "")
                return await handler(request)
            except TooManyRequests as error:
                return _error(error, 429, {"retry-after": str(error.retry_after)})
            except RequestInvalid as error:
                return _error(error, error.status)
            except NotFound as error:
                return _error(error, 404)
            except (Crowded, ControlUnavailable) as error:
                log.warning("%s", error)
                return _error(error, 503, {"retry-after": str(RETRY_SECONDS)})
            except ClientDisconnect:
                return Response(status_code=400)
            except HomeostatError as error:  # of this machine, and told to nobody outside
                log.error("%s", error)
                return JSONResponse({"error": "the gateway cannot decide; its log says why"}, 500)

        return answer


def _short(delivery: Delivery) -> dict[str, Any]:
    return {"decision": delivery.decision, "status": delivery.status}


def _taken(delivery: Delivery) -> Response:
    return JSONResponse({**_short(delivery), "url": f"/decisions/{delivery.decision}"}, 202)


def _error(error: Exception, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": str(error)}, status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = "POST /hooks/SOURCE, GET /decisions/ID and GET /health"
    del request
    return JSONResponse({"error": f"no such path or method; there are {known}"}, status)
