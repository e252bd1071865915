"""The OpenAPI 3.1 document of everything that the server speaks over REST: one line for each operation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from homeostat import __version__
from homeostat.serving.access.authorization import scope_of
from homeostat.serving.operators import ORDERS, ReleaseOrder
from homeostat.serving.rest import rollouts
from homeostat.serving.rest.schemas import EXAMPLES, PARAMETERS, SCHEMAS
from homeostat.serving.tensorflow_serving import METHODS

Json = dict[str, Any]
JSON, TEXT, CSV, BINARY = "application/json", "text/plain", "text/csv", "application/octet-stream"
BINARY_BODY = (
    "The same JSON, then the values of each input that has parameters.binary_data_size instead of data; "
    "the header Inference-Header-Content-Length says how many bytes the JSON has."
)
ERRORS = {
    400: ("BadRequest", "The request is wrong; the message says what, where, and what to do."),
    401: ("Unauthorized", "A key or token is needed, or the one that came does not hold."),
    403: ("Forbidden", "The client may not do that, or nobody may."),
    404: ("NotFound", "No such model, version or label answers here."),
    408: ("RequestTimeout", "The request did not come whole in time; the connection is closed."),
    409: ("Conflict", "That cannot be done now; the message says why, and what can."),
    413: ("ContentTooLarge", "The body is over its limit, before or after decompression."),
    415: ("UnsupportedMediaType", "Content-Encoding or Content-Type is not understood."),
    422: ("Unprocessable", "These tensors have ended the server's process before; this version computes them no more."),
    429: ("TooManyRequests", "Faster than the client may ask, or too many requests wait on its connection."),
    431: ("HeaderFieldsTooLarge", "Request line and headers are over their limit; the connection is closed."),
    500: ("InternalServerError", "A fault of the server, whose log says where."),
    503: ("ServiceUnavailable", "Not ready, or too much is waiting."),
    504: ("GatewayTimeout", "The version did not answer within the deadline that its project sets."),
}
"""Status -> name of the response, and what it means."""
ANYWHERE = frozenset({400, 408, 429, 431, 500, 503})
"""What any request may be told, whatever its path."""
WORDED_BEFORE = frozenset({401, 408, 409, 429, 431})
"""Said before the path's own protocol has a word, or never by MLflow's."""
WORDED_EITHER = frozenset({400, 403, 503})
"""Said before it, or by it."""


class Operation(NamedTuple):
    """One method of one path; body and answer are names of SCHEMAS."""

    method: str
    path: str
    summary: str
    tag: str
    answer: str = ""
    """Empty where everybody is refused."""
    body: str = ""
    """It needs one of EXAMPLES too."""
    status: int = 200
    """Of the answer."""
    optional: bool = False
    """Whether the body may be left out."""
    parameters: tuple[str, ...] = ()
    """Names of PARAMETERS, for query and headers; those of the path come by themselves."""
    errors: tuple[int, ...] = ()
    """Beside those that follow from path, body and scope: see `_statuses`."""
    infers: bool = False
    """Whether tensors are computed, and the answer has a request's id."""
    unready: bool = False
    """Whether 503 answers with the body of 200: it is what was asked for, and no error."""
    scoring: bool = False
    """Whether errors are worded as MLflow does."""


def _open_inference() -> list[Operation]:
    tag = "Open Inference Protocol v2"
    found = [
        Operation("get", "/v2", "What runs here", tag, "Server"),
        Operation("get", "/v2/health/live", "Whether the process lives", tag, "Live"),
        Operation("get", "/v2/health/ready", "Whether every promoted model answers", tag, "Ready", unready=True),
        Operation("post", "/v2/repository/index", "All versions", tag, "Index", "IndexRequest", optional=True),
    ]
    place = "/v2/repository/models/{model}"
    found += [
        Operation(
            "post", f"{place}/load", "Try what is refused again, and wait until every worker has the model", tag,
            "Loaded", "LoadRequest", optional=True, errors=(409,),
        ),
        Operation("post", f"{place}/unload", "Refused to everybody: what answers follows the rollout row", tag),
    ]  # fmt: skip
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        found += [
            Operation("get", path, "Inputs, outputs and the live version", tag, "Metadata"),
            Operation("get", f"{path}/ready", "Whether it answers", tag, "Readiness", unready=True),
            Operation(
                "post", f"{path}/infer", "Infer", tag, "InferResponse", "InferRequest",
                infers=True, parameters=("X-Entity-Id",),
            ),
        ]  # fmt: skip
    return found


def _tensorflow_serving() -> list[Operation]:
    tag, headers = "TensorFlow Serving", ("X-Request-Id", "X-Entity-Id", "X-Slices")
    found = []
    for place in ("", "/versions/{version}", "/labels/{label}"):
        path = f"/v1/models/{{model}}{place}"
        found += [
            Operation("get", path, "The state of each version", tag, "ModelStatus"),
            Operation("get", f"{path}/metadata", "The signature", tag, "SignatureDef"),
        ]
        for verb in METHODS:
            name = verb.capitalize()
            body = "PredictRequest" if verb == "predict" else "ExamplesRequest"
            found.append(
                Operation("post", f"{path}:{verb}", name, tag, f"{name}Response", body, infers=True, parameters=headers)
            )
    return found


def _mlflow_scoring() -> list[Operation]:
    tag = "MLflow scoring"
    found = [
        Operation(
            "post", path, "Score rows", tag, "ScoringResponse", "ScoringRequest",
            infers=True, scoring=True, parameters=(*asked, "X-Entity-Id"), errors=(404,),
        )
        for path, asked in (
            ("/invocations", ("model", "version")),
            ("/gateway/{model}/invocations", ("version",)),
            ("/endpoints/{model}/invocations", ("version",)),
        )
    ]  # fmt: skip
    found += [
        Operation("get", path, "Whether every promoted model answers", tag, "Text", unready=True)
        for path in ("/ping", "/health")
    ]
    return [*found, Operation("get", "/version", "The server's version", tag, "Text")]


def _rollouts() -> list[Operation]:
    tag, place = "Rollouts", f"{rollouts.PREFIX}/{{model}}"
    found = [
        Operation("get", rollouts.PREFIX, "All rollouts, and the quarantine", tag, "Rollouts"),
        Operation("get", place, "How far a rollout is, and what its guards say", tag, "Rollout", errors=(409,)),
    ]
    for action, order in ORDERS.items():
        name = order.__name__
        optional = order is not ReleaseOrder
        found.append(
            Operation(
                "post", f"{place}/{action}", action.capitalize(), tag, "Rollout", name,
                optional=optional, errors=(409,),
            )
        )  # fmt: skip
    return found


def _own() -> list[Operation]:
    return [
        Operation(
            "post", "/v1/feedback", "Send labels of requests", "Feedback", "FeedbackResponse", "FeedbackRequest", 202
        ),
        Operation(
            "post", "/v1/explain", "What each column adds", "Explanation", "Explanations", "ExplainRequest",
            parameters=("model", "version"), errors=(404, 422),
        ),
        Operation("get", "/metrics", "Figures for Prometheus", "Operation", "Text"),
        Operation("get", "/openapi.json", "This document", "Operation", "Document"),
    ]  # fmt: skip


OPERATIONS = (*_open_inference(), *_tensorflow_serving(), *_mlflow_scoring(), *_rollouts(), *_own())


def _content(schema: str, kind: str = JSON) -> Json:
    return {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _statuses(one: Operation) -> set[int]:
    """Return the errors that an operation may answer with."""
    found = {*ANYWHERE, *one.errors}
    if scope_of(one.path) is not None:
        found |= {401, 403}
    if "{model}" in one.path:
        found.add(404)
    if one.body:
        found |= {413, 415}
    if one.infers:
        found |= {422, 504}
    return found


def _error(status: int, schema: str) -> Json:
    found: Json = {"description": ERRORS[status][1], "content": _content(schema)}
    if status in (429, 503):
        found["headers"] = {"Retry-After": {"required": True, "schema": {"type": "integer"}, "description": "Seconds."}}
    elif status == 401:
        found["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
    return found


def _responses() -> Json:
    """Return the components that errors refer to: as this server words them, and as MLflow does."""
    found = {name: _error(status, "Error") for status, (name, _) in ERRORS.items()}
    for status, (name, _) in ERRORS.items():
        if status not in WORDED_BEFORE:
            found[f"Scoring{name}"] = _error(status, "EitherError" if status in WORDED_EITHER else "ScoringError")
    return found


def _answered(one: Operation) -> Json:
    kind = TEXT if one.answer == "Text" else JSON
    found: Json = {"description": "Answered.", "content": _content(one.answer, kind)}
    if one.infers:
        found["headers"] = {"X-Request-Id": {"required": True, "schema": {"$ref": "#/components/schemas/Id"}}}
    if one.answer == "InferResponse":
        length = {"description": "Bytes of JSON before the binary data.", "schema": {"type": "integer"}}
        found["content"][BINARY] = {}
        found["headers"]["Inference-Header-Content-Length"] = length
    return found


def _answers(one: Operation) -> Json:
    answers: Json = {}
    if one.answer:
        answers[str(one.status)] = _answered(one)
    for status in sorted(_statuses(one)):
        prefix = "Scoring" if one.scoring and status not in WORDED_BEFORE else ""
        answers[str(status)] = {"$ref": f"#/components/responses/{prefix}{ERRORS[status][0]}"}
    if one.unready:
        answers["503"] = _error(503, "Error")
        if one.answer == "Text":
            answers["503"]["content"] |= _content("Text", TEXT)
        else:
            either = [{"$ref": f"#/components/schemas/{name}"} for name in (one.answer, "Error")]
            answers["503"]["content"] = {JSON: {"schema": {"anyOf": either}}}
    return answers


def _request(one: Operation) -> Json:
    content = _content(one.body)
    content[JSON]["example"] = EXAMPLES[one.body]
    if one.body == "ScoringRequest":
        content[CSV] = {"schema": {"type": "string"}, "example": EXAMPLES["csv"]}
    elif one.body in ("InferRequest", "ExplainRequest"):
        content[BINARY] = {"schema": {"description": BINARY_BODY}}
    return {"required": not one.optional, "content": content}


def _security(path: str, asked: frozenset[str]) -> list[Json]:
    scope = scope_of(path)
    if scope is None:
        return []
    roles = [] if scope == "any" else [scope]  # OpenAPI 3.1: the roles that are asked for, whatever the scheme
    either: list[Json] = [{"bearer": roles}, {"key": roles}]
    return either if scope in asked else [{}, *either]


def _operation(one: Operation, asked: frozenset[str]) -> Json:
    names = [name for name in ("model", "version", "label") if f"{{{name}}}" in one.path]
    parameters = [{"$ref": f"#/components/parameters/path-{name}"} for name in names]
    parameters += [{"$ref": f"#/components/parameters/{name}"} for name in one.parameters]
    return {
        "summary": one.summary,
        "tags": [one.tag],
        "security": _security(one.path, asked),
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": _request(one)} if one.body else {}),
        "responses": _answers(one),
    }


def describe(asked: frozenset[str]) -> Json:
    """Return the document of a server that asks for a key where one of these scopes is needed."""
    paths: dict[str, Json] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one, asked)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "homeostat",
            "version": __version__,
            "description": "Ask models, send labels, and see how the server does. Where GET is described HEAD answers "
            "too; any other method is answered 405 with Allow. Bodies may come with Content-Encoding gzip or deflate.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "parameters": PARAMETERS,
            "responses": _responses(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a JSON Web Token."},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


@lru_cache(maxsize=4)
def document(asked: frozenset[str]) -> bytes:
    """Return the document as JSON."""
    return orjson.dumps(describe(asked))
