"""The gate before the REST application: nobody passes without a key where one is asked for, nor faster than allowed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from homeostat.client import current
from homeostat.errors import RequestInvalid, TooManyRequests, Unauthenticated
from homeostat.serving.access.authorization import Access
from homeostat.serving.exchange import current as current_exchange

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

CHALLENGE = b'Bearer realm="homeostat"'


class Gate:
    """An ASGI application before another one; where it has nothing to do it is one call."""

    def __init__(self, app: Application, access: Access, refuse: Callable[[int], None]) -> None:
        """`refuse` counts an answer that was an error, by HTTP status."""
        self._app, self._access, self._refuse = app, access, refuse

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request."""
        if self._access.idle():
            return self._app(scope, receive, send)
        return self._guarded(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope.get("client")
        try:
            client = self._access.admit(scope["path"], dict(scope["headers"]), peer[0] if peer else "")
        except RequestInvalid as error:
            self._refuse(error.status)
            await _write_error(send, error)
            return
        exchange = current_exchange.get()
        if exchange is not None and client is not None:
            exchange.client = client.id
        token = current.set(client)
        try:
            await self._app(scope, receive, send)
        finally:
            current.reset(token)


async def _write_error(send: Send, error: RequestInvalid) -> None:
    body = orjson.dumps({"error": str(error)})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", CHALLENGE))
    elif isinstance(error, TooManyRequests):
        headers.append((b"retry-after", b"%d" % error.retry_after))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
