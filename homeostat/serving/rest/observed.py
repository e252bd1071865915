"""The outermost ASGI application where requests are observed: notes what came and what was answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from homeostat.serving.exchange import Exchange
from homeostat.serving.observer import Observer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Observed:
    """An ASGI application before another one, which tells an observer of each request; each has a task of its own."""

    def __init__(self, app: Application, observer: Observer) -> None:
        self._app, self._observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        user_agent = traceparent = b""
        for name, value in scope["headers"]:
            if name == b"user-agent":
                user_agent = value
            elif name == b"traceparent":
                traceparent = value
        peer = scope.get("client")
        exchange = Exchange(
            transport="rest",
            method=scope["method"],
            path=scope["path"],
            address=peer[0] if peer else "",
            http_version=scope["http_version"],
            user_agent=user_agent.decode("latin-1"),
            traceparent=traceparent.decode("latin-1"),
        )
        self._observer.begin(exchange)

        async def noted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                if exchange.traceresponse:
                    told = (b"traceresponse", exchange.traceresponse.encode())
                    message = {**message, "headers": [*message["headers"], told]}
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            exchange.status = exchange.status or 500
            raise
        finally:
            self._observer.end(exchange)
