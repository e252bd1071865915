"""The OpenAPI document: valid, complete both ways, and what it says of methods, bodies and keys is so."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from itertools import product

import pytest
from jsonschema import Draft202012Validator
from schemathesis.openapi import from_dict

from homeostat.apikeys import FILE, create_key
from homeostat.client import SCOPES
from homeostat.errors import Unauthenticated
from homeostat.serving.access.authorization import ANY, Access
from homeostat.serving.operators import ORDERS, Operators
from homeostat.serving.rest import app, openapi, rollouts, tensorflow
from homeostat.serving.tensorflow_serving import METHODS
from homeostat.settings import Settings
from tests.unit.serving.conftest import make_plane

OPEN = openapi.describe(frozenset())
CLOSED = openapi.describe(frozenset({*SCOPES, ANY}))
OPERATIONS = [(path, method) for path, methods in OPEN["paths"].items() for method in methods]


def filled(path: str) -> str:
    return path.format(model="toy", version="1", label="champion")


def places(pattern: ast.pattern) -> list[str]:
    """What may stand in one place of a path, as the document writes it."""
    match pattern:
        case ast.MatchValue(value=ast.Constant(value=str(text))):
            return [text]
        case ast.MatchAs(pattern=None, name=str(name)):
            return [f"{{{name}}}"]
        case ast.MatchAs(pattern=ast.pattern() as inner):
            return places(inner)
        case ast.MatchOr(patterns=several):
            return [text for one in several for text in places(one)]
    raise AssertionError(f"a path is matched in a way that this test does not read: {ast.dump(pattern)}")


def routed(function) -> set[str]:
    """The paths that a routing function matches, read from its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function.__wrapped__)))
    cases = [node.pattern for node in ast.walk(tree) if isinstance(node, ast.match_case)]
    lists = [case.patterns for case in cases if isinstance(case, ast.MatchSequence)]
    assert len(lists) > 3
    return {"/".join(segments) for one in lists for segments in product(*map(places, one))}


def test_every_path_that_is_routed_is_described_and_no_other():
    models = {tensorflow.PREFIX + place for place in routed(tensorflow.route)}
    verbs = {f"{path}:{verb}" for path in models if not path.endswith("/metadata") for verb in METHODS}
    actions = {f"{rollouts.PREFIX}/{{model}}{action}" for action in ("", *(f"/{action}" for action in ORDERS))}
    assert set(OPEN["paths"]) == app.FIXED.keys() | routed(app.route) | models | verbs | actions | {rollouts.PREFIX}


@pytest.mark.parametrize("document", [OPEN, CLOSED], ids=["open", "closed"])
def test_it_is_valid_and_refers_to_all_that_it_defines(document):
    from_dict(document).validate()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    text = json.dumps(document)
    for kind, members in document["components"].items():
        for name in members if kind != "securitySchemes" else ():
            assert f'"#/components/{kind}/{name}"' in text
    wanted = {part.partition('"')[0] for part in text.split('"$ref": "#/')[1:]}
    for place in wanted:
        found = document
        for key in place.split("/"):
            found = found[key]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_the_methods_that_are_described_are_taken_and_no_other(toy, monkeypatch, tmp_path, path, method):
    operators = Operators(toy.repository._connect, tmp_path, toy.repository.poke)
    monkeypatch.setattr(toy, "app", app.App(toy.plane, operators=operators))
    described = OPEN["paths"][path][method]["responses"]
    answer = toy.call(method.upper(), filled(path))
    assert str(answer.status_code) in described
    forbidden = path.startswith(rollouts.PREFIX)  # to whoever shows no key
    assert answer.status_code == (403 if forbidden else 200) or method == "post"
    assert answer.status_code != 404
    for other in {"GET", "POST", "PUT", "PATCH", "DELETE"} - {method.upper()}:
        refused = toy.call(other, filled(path))
        assert refused.status_code == 405
        assert method.upper() in refused.headers["allow"].split(", ")
    assert toy.call("HEAD", filled(path)).status_code == (405 if method == "post" else 403 if forbidden else 200)
    operators.close()


@pytest.mark.parametrize("open_metrics", [False, True])
def test_it_says_where_a_key_is_asked_for(tmp_path, open_metrics):
    create_key(tmp_path / FILE, "one", ["infer"])
    access = Access(Settings(home=tmp_path), open_metrics=open_metrics)
    document = openapi.describe(access.asked())
    for path, method in OPERATIONS:
        security = document["paths"][path][method]["security"]
        try:
            access.admit(filled(path), {}, "")
            admitted = True
        except Unauthenticated:
            admitted = False
        assert admitted == (security == [] or {} in security), path
    assert document["paths"]["/v1/feedback"]["post"]["security"] == [{"bearer": ["label"]}, {"key": ["label"]}]
    assert Access(Settings(home=tmp_path / "open"), open_metrics=open_metrics).asked() == frozenset()


def test_it_is_served_as_the_server_is_now(toy):
    asked = frozenset()
    served = app.App(toy.plane, asked=lambda: asked)
    made = make_plane(toy.home / "document", toy.store)
    made.app = served
    answer = made.call("GET", "/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == OPEN
    asked = frozenset({*SCOPES, ANY})
    assert made.call("GET", "/openapi.json").json() == CLOSED
