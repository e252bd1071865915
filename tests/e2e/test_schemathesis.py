"""The served OpenAPI document under attack by schemathesis: each operation of a real server does what it says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from homeostat.apikeys import FILE, create_key
from tests.bundles import contract_of, patients, softmax
from tests.e2e.test_server import Server

pytestmark = pytest.mark.e2e

COLUMNS = {"body": ("age", "bmi", "bp"), "sex": ("sex",), "serum": ("s1", "s2", "s3", "s4", "s5", "s6")}
LIMIT = 1000
"""No number may be larger, nor smaller than its negative, to be in the contract."""
REFUSED = {"/v2/repository/models/{model}/unload"}
"""What nobody may do."""

ROLLOUTS = "/v1/rollouts"


@dataclass
class Keyed:
    """A server that asks for a key, and one that may do everything."""

    server: Server
    key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """Serves the model of the document's examples, diabetes, and the classifier flowers; v2 and, before it, v1."""
    home = tmp_path_factory.mktemp("openapi") / "home"
    key, _ = create_key(home / FILE, "all", ["admin"])
    server = Server(home)
    flowers = {"task": "classification", "classes": ("iris", "rose", "tulip")}
    kinds = {"diabetes": (patients(), {}), "flowers": (softmax(), flowers)}
    for version, (model, (graph, kind)) in product((1, 2), kinds.items()):
        contract = contract_of(graph, -LIMIT, LIMIT, COLUMNS)
        strict = {"contract": contract, "out_of_range": "reject", "max_rows": 1, "explain": True}
        server.promote(version, model=model, onnx_bytes=graph, **kind, **strict)
    yield Keyed(server, key)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


def attack(keyed: Keyed, folder: Path, document: str, config: str) -> dict[str, set[int]]:
    """Run schemathesis with all its checks and a fixed seed; return the statuses that each operation has answered."""
    place = folder / "schemathesis.toml"
    place.write_text(f"""
        seed = 1
        continue-on-failure = true
        cache.enabled = false
        generation.max-examples = 10
        generation.database = "none"
        phases.coverage.extra-data-sources.responses = false # nothing may depend on ids that the server makes
        phases.fuzzing.extra-data-sources.responses = false
        reports.ndjson.path = "{folder}/report.ndjson"
        {config}
    """)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(place), "run", document),
            *("--url", keyed.url, "--header", f"Authorization: Bearer {keyed.key}"),
            *("--phases", "examples,coverage,fuzzing", "--checks", "all"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answered: dict[str, set[int]] = {}
    for line in (folder / "report.ndjson").read_text().splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for one in recorder.get("interactions", {}).values():
            answered.setdefault(recorder["label"], set()).add(one["response"]["status_code"])
    return answered


def test_schemathesis_finds_nothing_in_the_document(keyed, tmp_path):
    """Where tensors are computed, 400 may be what a model's contract says of a body that no schema forbids."""
    answered = attack(
        keyed,
        tmp_path,
        f"{keyed.url}/openapi.json",
        """
        [[operations]]
        include-tag = ["Open Inference Protocol v2", "TensorFlow Serving", "MLflow scoring", "Explanation"]
        checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404]

        [[operations]]
        include-tag = ["Rollouts"]
        enabled = false
        """,
    )
    assert all(405 in statuses for statuses in answered.values())


def having(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def exactly(**properties: Any) -> dict[str, Any]:
    return {**having(**properties), "additionalProperties": False}


def listed(items: Any, least: int, most: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most or least}


def in_order(items: list[Any]) -> dict[str, Any]:
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def narrow(document: dict[str, Any]) -> dict[str, Any]:
    """Say what the models here take too: of this document all that is allowed must be answered."""
    schemas, parameters = document["components"]["schemas"], document["components"]["parameters"]
    number = {"type": ["number", "boolean"], "minimum": -LIMIT, "maximum": LIMIT}
    whole = {**number, "type": ["integer", "boolean"]}
    sizes = {name: (whole if name == "sex" else number, len(names)) for name, names in COLUMNS.items()}
    row = {name: listed(*size) for name, size in sizes.items()}
    row["sex"] = {"anyOf": [row["sex"], whole]}
    cells = {name: sizes[of][0] for of, names in COLUMNS.items() for name in names}
    tensors = [
        having(
            name={"const": name},
            shape={"const": [1, size]},
            datatype={"const": "INT64" if name == "sex" else "FP32"},
            data=listed(kind, size),
        )
        for name, (kind, size) in sizes.items()
    ]
    columns = exactly(**{name: listed(one, 1) for name, one in row.items()})
    wanted = having(name={"const": "output"})
    or_null = {**listed(wanted, 0, 1), "type": ["array", "null"]}
    schemas["InferRequest"]["properties"] |= {"inputs": in_order(tensors), "outputs": or_null}
    schemas["ExplainRequest"]["properties"] |= {
        "inputs": in_order(tensors),
        "parameters": {
            "type": ["object", "null"],
            "properties": {
                "output": {"enum": ["", "output"]},
                "class": {"enum": [0, None]},
                "permutations": {"type": "integer", "minimum": 2, "maximum": 64, "multipleOf": 2},
                "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
            },
            "additionalProperties": False,
        },
    }
    schemas["PredictRequest"]["properties"] |= {
        "signature_name": {"enum": ["", "serving_default"]},
        "instances": listed(exactly(**row), 1),
        "inputs": columns,
    }
    schemas["ExamplesRequest"] = having(examples=listed(having(**row), 1))
    schemas["FlowersRequest"] = having(examples=listed(having(x=listed(number, 3)), 1))
    schemas["ScoringRequest"]["properties"] |= {
        "dataframe_split": exactly(columns={"const": list(cells)}, data=listed(in_order(list(cells.values())), 1)),
        "dataframe_records": listed(having(**cells), 1),
        "instances": listed(having(**row), 1),
        "inputs": {**having(**columns["properties"]), "additionalProperties": {"type": "array"}},
    }
    parameters["model"]["required"] = True
    parameters["X-Slices"]["schema"] = {"enum": ["site=north"]}  # schemathesis 4.32 sends "0", whatever the pattern
    parameters["path-flowers"] = {**parameters["path-model"], "schema": {"enum": ["flowers"]}}
    for name, values in (("model", ["diabetes"]), ("version", ["1", "2"]), ("label", ["champion", "previous"])):
        for one in (name, f"path-{name}"):
            if one in parameters:
                parameters[one]["schema"] = {"enum": values}
    for path, methods in document["paths"].items():
        for one in methods.values():
            for kind, content in dict(one.get("requestBody", {}).get("content", {})).items():
                content.pop("example", None)
                if kind != "application/json":
                    del one["requestBody"]["content"][kind]
            if path.endswith(":classify"):
                one["requestBody"]["content"]["application/json"]["schema"]["$ref"] = (
                    "#/components/schemas/FlowersRequest"
                )
                one["parameters"][0]["$ref"] = "#/components/parameters/path-flowers"
    return document


def test_schemathesis_finds_nothing_in_a_document_that_says_what_the_models_take(keyed, tmp_path):
    document = keyed.server.get("/openapi.json")[1]
    document["paths"] = {path: methods for path, methods in document["paths"].items() if not path.startswith(ROLLOUTS)}
    document = narrow(document)
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    answered = attack(keyed, tmp_path, str(tmp_path / "openapi.json"), 'generation.codec = "ascii"')
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            statuses = answered[f"{method.upper()} {path}"]
            assert 405 in statuses
            assert statuses & ({403} if path in REFUSED else {200, 202})
            if path not in REFUSED:  # where nobody is let in schemathesis does not try without a key
                assert (401 in statuses) == (one["security"] != [] and {} not in one["security"])


def test_schemathesis_finds_nothing_in_what_operators_may_do(keyed, tmp_path):
    """Last here, since it changes what answers: each action is done, or told that it cannot be done now."""
    document = keyed.server.get("/openapi.json")[1]
    document["paths"] = {path: methods for path, methods in document["paths"].items() if path.startswith(ROLLOUTS)}
    document["components"]["parameters"]["path-model"]["schema"] = {"enum": ["diabetes", "flowers"]}
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    answered = attack(
        keyed,
        tmp_path,
        str(tmp_path / "openapi.json"),
        """
        [[operations]]
        include-tag = ["Rollouts"]
        checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409]
        """,
    )
    assert len(answered) == sum(map(len, document["paths"].values()))
    for statuses in answered.values():
        assert 405 in statuses
        assert statuses & {200, 404, 409}
        assert not statuses & {500, 503}
    assert answered[f"GET {ROLLOUTS}"] >= {200, 401}
    assert keyed.server.control.verify() > 4
