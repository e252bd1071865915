"""The REST adapter: a raw ASGI application that routes, reads bodies within their limit, and writes answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from homeostat import __version__
from homeostat.errors import RequestInvalid
from homeostat.serving import metrics, operations
from homeostat.serving.dataplane import DataPlane, InferenceFailed, InferRequest, check_entity
from homeostat.serving.explainer import read_options
from homeostat.serving.operators import Operators, require_operator
from homeostat.serving.rest import content, inference, openapi, rollouts, scoring, tensorflow
from homeostat.serving.versions import check_version

log = logging.getLogger(__name__)

MAX_BODY = 8 * 1024 * 1024
MAX_PATH = 512
DISCARDED = 8
"""So many times the limit is read and thrown away before a 413, so that a client that is still sending sees it."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
TEXT = b"text/plain; charset=utf-8"
Headers = list[tuple[bytes, bytes]]


class Route(NamedTuple):
    """What a path means."""

    action: str
    model: str = ""
    version: str | None = None


FIXED = {
    "/v2": Route("server"),
    "/v2/health/live": Route("alive"),
    "/v2/health/ready": Route("ready"),
    "/v2/repository/index": Route("index"),
    "/v1/feedback": Route("feedback"),
    "/v1/explain": Route("explain"),
    "/metrics": Route("metrics"),
    "/invocations": Route("invocations"),
    "/ping": Route("ping"),
    "/health": Route("ping"),
    "/version": Route("version"),
    "/openapi.json": Route("openapi"),
}
POSTED = {"infer", "feedback", "explain", "index", "load", "unload", "invocations"}
COUNTED = {"infer", "invocations"}
"""These count their errors by version themselves."""


@lru_cache(maxsize=1024)
def route(path: str) -> Route | None:
    """Return what a path means, or None."""
    fixed = FIXED.get(path.rstrip("/") or "/")
    if fixed is not None:
        return fixed
    match path.split("/"):
        case ["", "v2", "models", model]:
            return Route("metadata", model)
        case ["", "v2", "models", model, ("ready" | "infer") as action]:
            return Route(action if action == "infer" else "model_ready", model)
        case ["", "v2", "models", model, "versions", version]:
            return Route("metadata", model, version)
        case ["", "v2", "models", model, "versions", version, ("ready" | "infer") as action]:
            return Route(action if action == "infer" else "model_ready", model, version)
        case ["", "v2", "repository", "models", model, ("load" | "unload") as action]:
            return Route(action, model)
        case ["", ("gateway" | "endpoints"), model, "invocations"]:  # as MLflow's gateway says, and its client
            return Route("invocations", model)
    return None


class Crowded(RequestInvalid):
    """More requests wait than may."""

    def __init__(self) -> None:
        super().__init__("too many requests wait for their answer; try again in a second", status=503)


class Disconnected(Exception):
    """The client left before its body had come."""


def _name_entity(request: InferRequest, header: bytes | None) -> None:
    """Take the entity from the header X-Entity-Id, unless the body names one; raises RequestInvalid."""
    if header is not None and request.entity_id is None:
        request.entity_id = check_entity(header.decode("latin-1"), "X-Entity-Id")


class App:
    """The ASGI application over one data plane."""

    def __init__(
        self,
        plane: DataPlane,
        *,
        max_body: int = MAX_BODY,
        crowded: Callable[[], bool] = lambda: False,
        asked: Callable[[], frozenset[str]] = frozenset,
        operators: Operators | None = None,
    ) -> None:
        """Answer for a data plane.

        crowded: returns whether more requests wait than may; those that have a body are refused
        then. asked: returns the scopes for which a key is asked, for the OpenAPI document.
        operators: answers for the paths of rollouts, which are there with it alone.
        """
        self._plane, self._max_body, self._crowded, self._asked = plane, max_body, crowded, asked
        self._operators = operators
        self._actions = {
            "server": self._server,
            "alive": self._alive,
            "ready": self._ready,
            "metadata": self._metadata,
            "model_ready": self._model_ready,
            "metrics": self._metrics,
            "ping": self._ping,
            "version": self._version,
            "openapi": self._openapi,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the server speaks HTTP alone, not {scope['type']}")
        found = None
        try:
            if len(scope["path"]) > MAX_PATH:  # before anything remembers it
                raise RequestInvalid(f"no such path: {scope['path']!r:.200}", status=404)
            if scope["path"].startswith(tensorflow.PREFIX):
                await self._tensorflow(scope, receive, send)
                return
            if self._operators is not None and rollouts.ours(scope["path"]):
                await self._rollouts(self._operators, scope, receive, send)
                return
            found = route(scope["path"])
            if found is None:
                raise RequestInvalid(f"no such path: {scope['path']!r:.200}; GET /openapi.json lists them", status=404)
            if found.action in POSTED:
                if scope["method"] != "POST":
                    await self._refuse(send, 405, f"{scope['method']:.20} is not for this path; use POST", b"POST")
                elif found.action == "infer":
                    await self._infer(found, scope, receive, send)
                elif found.action == "load":
                    await self._load(found, scope, receive, send)
                elif found.action == "unload":
                    operations.refuse_unload(found.model)
                elif found.action == "index":
                    await self._index(scope, receive, send)
                elif found.action == "invocations":
                    await self._invocations(found, scope, receive, send)
                elif found.action == "explain":
                    await self._explain(scope, receive, send)
                else:
                    await self._feedback(scope, receive, send)
            elif scope["method"] in ("GET", "HEAD"):
                await self._actions[found.action](found, send)
            else:
                await self._refuse(send, 405, f"{scope['method']:.20} is not for this path; use GET", b"GET, HEAD")
        except RequestInvalid as error:
            if found is None or found.action not in COUNTED:
                self._plane.metrics.refuse(error.status)
            await self._tell(send, found, error.status, str(error))
        except RecursionError:  # what is wrong with a body is worded by repr, which cannot word any depth
            self._plane.metrics.refuse(400)
            await self._tell(send, found, 400, "body: its lists or objects are nested too deep")
        except Disconnected:
            self._plane.metrics.refuse(499)
        except Exception as error:
            if not isinstance(error, InferenceFailed):
                self._plane.metrics.refuse(500)
            log.exception("%s %s failed", scope["method"], scope["path"])
            kind = type(error.__cause__ or error).__name__
            await self._tell(send, found, 500, f"{kind} while answering; the server's log says where")

    async def _infer(self, found: Route, scope: Scope, receive: Receive, send: Send) -> None:
        length = encoding = entity = None
        for name, value in scope["headers"]:
            if name == b"inference-header-content-length":
                length = value.decode("latin-1")
            elif name == b"content-encoding":
                encoding = value
            elif name == b"x-entity-id":
                entity = value
        try:
            served = self._plane.find(found.model, found.version)
            body = await self._body(scope, receive, encoding)
        except RequestInvalid as error:
            self._plane.metrics.refuse(error.status)
            raise
        started = time.perf_counter()
        try:
            request, wanted = inference.decode(body, length)
            inference.check_wanted(served, wanted)
            request.pinned = found.version is not None
            _name_entity(request, entity)
        except RequestInvalid as error:
            served.metrics.refused("champion", "v2-rest", error.status)
            raise
        request.started = started
        response = await self._plane.infer(served, request)
        answer, head = inference.encode(response, wanted)
        headers: Headers = [(b"x-request-id", response.id.encode())]
        if head is not None:
            headers.append((b"inference-header-content-length", str(head).encode()))
        await self._write(send, 200, answer, inference.JSON if head is None else inference.BINARY, headers)

    async def _invocations(self, found: Route, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            served, pinned = scoring.choose(self._plane, found.model, scope["query_string"])
            body = await self._body(scope, receive, headers.get(b"content-encoding"))
        except RequestInvalid as error:
            self._plane.metrics.refuse(error.status)
            raise
        started = time.perf_counter()
        try:
            request = scoring.decode(body, headers.get(b"content-type", b""), served)
            request.pinned = pinned
            _name_entity(request, headers.get(b"x-entity-id"))
        except RequestInvalid as error:
            served.metrics.refused("champion", "mlflow-rest", error.status)
            raise
        request.protocol, request.started = "mlflow-rest", started
        response = await self._plane.infer(served, request)
        await self._write(
            send, 200, scoring.encode(response), inference.JSON, [(b"x-request-id", response.id.encode())]
        )

    async def _feedback(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = dict(scope["headers"]).get(b"content-encoding")
        value = inference.parse_json(await self._body(scope, receive, encoding))
        items = value["items"] if value.keys() == {"items"} else [value]
        if not isinstance(items, list):
            raise RequestInvalid('items: must be a list of {"id": "...", "labels": [...]}')
        await self._json(send, 202, self._plane.feedback(items))

    async def _explain(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"inference-header-content-length")
        served, _pinned = scoring.choose(self._plane, "", scope["query_string"])
        body = await self._body(scope, receive, headers.get(b"content-encoding"))
        request, _wanted, parameters = inference.decode_all(body, None if length is None else length.decode("latin-1"))
        answer = await self._plane.explain(served, request.tensors, read_options(parameters))
        await self._write(send, 200, answer, inference.JSON, [])

    async def _index(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._body(scope, receive, dict(scope["headers"]).get(b"content-encoding"))
        ready = inference.parse_json(body).get("ready", False) if body else False
        if not isinstance(ready, bool):
            raise RequestInvalid(f"ready: {ready!r:.60} must be true or false")
        await self._json(send, 200, operations.index(self._plane, ready=ready))

    async def _load(self, found: Route, scope: Scope, receive: Receive, send: Send) -> None:
        require_operator(found.model)
        body = await self._body(scope, receive, dict(scope["headers"]).get(b"content-encoding"))
        if body and inference.parse_json(body).get("parameters") not in (None, {}):
            raise RequestInvalid("parameters: none are taken; the signed bundle says how a model is served")
        await operations.load(self._plane, found.model)
        await self._json(send, 200, {})

    async def _rollouts(self, operators: Operators, scope: Scope, receive: Receive, send: Send) -> None:
        found = rollouts.route(scope["path"])
        if found is None:
            raise RequestInvalid(f"no such path: {scope['path']!r:.200}; docs/rollout.md lists them", status=404)
        allowed = ("POST",) if found.action else ("GET", "HEAD")
        if scope["method"] not in allowed:
            text = f"{scope['method']:.20} is not for this path; use {allowed[0]}"
            await self._refuse(send, 405, text, ", ".join(allowed).encode())
            return
        require_operator(found.model)
        encoding = dict(scope["headers"]).get(b"content-encoding")
        body = await self._body(scope, receive, encoding) if found.action else b""
        await self._json(send, 200, await rollouts.answer(operators, found, body))

    async def _tensorflow(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = tensorflow.route(scope["path"])
        if found is None:
            raise RequestInvalid(f"no such path: {scope['path']!r:.200}; GET /openapi.json lists them", status=404)
        posted = found.action not in tensorflow.READ
        allowed = ("POST",) if posted else ("GET", "HEAD")
        if scope["method"] not in allowed:
            text = f"{scope['method']:.20} is not for this path; use {allowed[0]}"
            await self._refuse(send, 405, text, ", ".join(allowed).encode())
        elif posted:
            headers = dict(scope["headers"])
            body = await self._body(scope, receive, headers.get(b"content-encoding"))
            try:
                answer, request_id = await tensorflow.infer(self._plane, found, body, headers)
            except RequestInvalid as error:  # the data plane has counted it
                await self._error(send, error.status, str(error))
            else:
                await self._write(send, 200, answer, inference.JSON, [(b"x-request-id", request_id.encode())])
        else:
            await self._json(send, 200, tensorflow.READ[found.action](self._plane, found))

    async def _server(self, _: Route, send: Send) -> None:
        await self._json(send, 200, inference.SERVER)

    async def _alive(self, _: Route, send: Send) -> None:
        await self._json(send, 200, {"live": True})

    async def _ready(self, _: Route, send: Send) -> None:
        ready, problem = self._plane.repository.ready()
        await self._json(send, 200 if ready else 503, {"ready": ready, "problem": problem})

    async def _metadata(self, found: Route, send: Send) -> None:
        served = self._plane.find(found.model, found.version)
        await self._json(send, 200, inference.metadata(self._plane.state(found.model), served))

    async def _model_ready(self, found: Route, send: Send) -> None:
        state = self._plane.state(found.model)
        if found.version is not None:
            check_version(state, found.version)
        body = inference.readiness(state, found.version, self._plane.board)
        await self._json(send, 200 if body["ready"] else 503, body)

    async def _metrics(self, _: Route, send: Send) -> None:
        board = self._plane.board
        text = self._plane.metrics.render() if board is None else board.render()
        await self._write(send, 200, text, metrics.CONTENT_TYPE.encode(), [])

    async def _ping(self, _: Route, send: Send) -> None:
        ready, _problem = self._plane.repository.ready()
        await self._write(send, 200 if ready else 503, b"\n", TEXT, [] if ready else [(b"retry-after", b"1")])

    async def _version(self, _: Route, send: Send) -> None:
        await self._write(send, 200, __version__.encode(), TEXT, [])

    async def _openapi(self, _: Route, send: Send) -> None:
        await self._write(send, 200, openapi.document(self._asked()), inference.JSON, [])

    async def _body(self, scope: Scope, receive: Receive, encoding: bytes | None) -> bytes:
        content.check_encoding(encoding)
        message = await receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.request" and not message.get("more_body") and len(body) <= self._max_body:
            if self._crowded():
                raise Crowded
            return body if encoding in content.IDENTITY else await content.inflate_aside(body, encoding, self._max_body)
        chunks, total = [body], len(body)
        while message["type"] == "http.request" and message.get("more_body"):
            message = await receive()
            chunks.append(message.get("body", b""))
            total += len(chunks[-1])
            if total > self._max_body:
                chunks.clear()
                if total > DISCARDED * self._max_body:
                    break
        if total > self._max_body:
            raise RequestInvalid(f"body: more than {self._max_body} bytes; send fewer rows at a time", status=413)
        if message["type"] == "http.disconnect":
            raise Disconnected
        if self._crowded():
            raise Crowded
        body = b"".join(chunks)
        return body if encoding in content.IDENTITY else await content.inflate_aside(body, encoding, self._max_body)

    async def _refuse(self, send: Send, status: int, message: str, allow: bytes) -> None:
        self._plane.metrics.refuse(status)
        await self._error(send, status, message, [(b"allow", allow)])

    async def _tell(self, send: Send, found: Route | None, status: int, message: str) -> None:
        """Answer an error as the protocol of the path words it."""
        if found is not None and found.action == "invocations":
            await self._error(send, status, scoring.error_body(status, message))
        else:
            await self._error(send, status, message)

    async def _error(
        self, send: Send, status: int, message: str | dict[str, str], headers: Headers | None = None
    ) -> None:
        headers = headers or []
        if status == 413:
            headers.append((b"connection", b"close"))
        await self._json(send, status, message if isinstance(message, dict) else {"error": message}, headers)

    async def _json(self, send: Send, status: int, value: Any, headers: Headers | None = None) -> None:
        headers = headers or []
        if status == 503:
            headers.append((b"retry-after", b"1"))
        await self._write(send, status, orjson.dumps(value), inference.JSON, headers)

    async def _write(self, send: Send, status: int, body: bytes, kind: bytes, headers: Headers) -> None:
        headers += [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
