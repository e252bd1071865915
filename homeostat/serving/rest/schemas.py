"""What the OpenAPI document refers to by name: JSON Schemas of the REST bodies, their examples, and parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args

from homeostat.masking import MAX_SLICES, SLICES
from homeostat.records import Mode
from homeostat.serving.dataplane import MAX_ENTITY, MAX_ID, MAX_ITEMS, MAX_LABELS
from homeostat.serving.explainer import Options
from homeostat.serving.operators import ORDERS
from homeostat.serving.repository import MODEL_NAME
from homeostat.serving.rest.scoring import FORMS, PARAMS
from homeostat.serving.versions import LABELS
from homeostat.tensors import DTYPES, MAX_RANK, MAX_TENSORS

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
TRUTH: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
LIST: Schema = {"type": "array"}
ROWS: Schema = {"type": ["array", "object"]}
VALUE: Schema = {"type": ["number", "boolean", "null"]}
DATATYPE: Schema = {"enum": list(DTYPES)}


def _object(required: Collection[str] = (), /, **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _exactly(**properties: Schema) -> Schema:
    """Return the schema of an object that has just these members."""
    return {**_object(properties, **properties), "additionalProperties": False}


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


MODEL = {**TEXT, "pattern": f"^{MODEL_NAME.pattern}$", "examples": ["diabetes"]}
VERSION = {**TEXT, "pattern": "^[1-9][0-9]{0,8}$", "examples": ["1"]}
LABEL = {"enum": list(LABELS), "examples": [LABELS[0]]}
ID = {**TEXT, "minLength": 1, "maxLength": MAX_ID, "pattern": "^[ -~]+$"}
CONTROLS = r"\u0000-\u001f\u007f-\u009f"
"""What is never printable; JSON Schema cannot say it of the rest."""
ENTITY = {**TEXT, "minLength": 1, "maxLength": MAX_ENTITY, "pattern": f"^[^{CONTROLS}]+$", "examples": ["patient-4"]}
SLICED = {
    **TEXT,
    "maxLength": MAX_SLICES,
    "pattern": f"^{SLICES.pattern.replace('[^=,]', f'[^=,{CONTROLS}]')}$",
    "examples": ["site=north"],
}

_TENSOR = _exactly(name=TEXT, datatype=DATATYPE, shape=_list({**WHOLE, "minimum": -1}))
_INPUT = _object(
    ("name", "shape", "datatype", "data"),
    name=TEXT,
    shape=_list({**WHOLE, "minimum": 0, "maximum": 2**40}, minItems=1, maxItems=MAX_RANK),
    datatype=DATATYPE,
    data={**LIST, "description": "Numbers or truth values, flat or nested as the shape is."},
)
_OUTPUT = _object(
    ("name", "datatype", "shape"),
    name=TEXT,
    datatype=DATATYPE,
    shape=_list(WHOLE),
    data=_list(VALUE),
    parameters=_exactly(binary_data_size=WHOLE),
)
_WANTED = _object(("name",), name=TEXT, parameters=_or_null(_object(binary_data=_or_null(TRUTH))))
_FEEDBACK = {
    **_object(("id", "labels"), id=_ref("Id"), labels=_list(NUMBER, minItems=1, maxItems=MAX_LABELS), model=MODEL),
    "additionalProperties": False,
}
_PARAMS = {
    **_object((), **{name: _or_null(schema) for name, schema in zip(PARAMS, (ID, ENTITY, SLICED), strict=True)}),
    "type": ["object", "null"],
    "additionalProperties": False,
}
_METADATA = _object(
    ("live_version", "sha256", "generation", "classes", "max_rows"),
    live_version=TEXT,
    sha256=TEXT,
    generation=WHOLE,
    classes=_list(TEXT),
    max_rows={**WHOLE, "minimum": 1},
    columns={**OBJECT, "additionalProperties": _list(TEXT)},
)
_STATUS = _exactly(
    version=TEXT,
    state={"enum": ["START", "AVAILABLE", "END"]},
    status=_exactly(error_code=TEXT, error_message=TEXT),
)
_EXPLANATION = {
    **_object(
        ("class", "prediction", "base", "contributions", "standard_errors", "permutations"),
        **{"class": WHOLE},
        class_name=TEXT,
        prediction=_or_null(NUMBER),
        base=_or_null(NUMBER),
        contributions=_list(_or_null(NUMBER)),
        standard_errors=_or_null(_list(_or_null(NUMBER))),
        permutations=WHOLE,
    ),
    "additionalProperties": False,
}
_ROLLOUT = _object(
    ("mode",),
    mode={"enum": list(get_args(Mode))},
    version=WHOLE,
    sha256=TEXT,
    weight=NUMBER,
    step=WHOLE,
    step_since=TEXT,
    paused=TRUTH,
    steps=WHOLE,
    required=_list(TEXT),
    fail_at=NUMBER,
)

SCHEMAS: dict[str, Schema] = {
    "Error": _exactly(error=TEXT),
    "ScoringError": _exactly(error_code=TEXT, message=TEXT),
    "EitherError": {"anyOf": [_ref("Error"), _ref("ScoringError")]},
    "Id": ID,
    "Text": TEXT,
    "Document": _object(("openapi", "info", "paths")),
    "Server": _exactly(name=TEXT, version=TEXT, extensions=_list(TEXT)),
    "Live": _exactly(live=TRUTH),
    "Ready": _exactly(ready=TRUTH, problem=TEXT),
    "Readiness": _exactly(
        name=TEXT, version=_or_null(TEXT), sha256=_or_null(TEXT), generation=WHOLE, ready=TRUTH, problem=TEXT
    ),
    "Metadata": _exactly(
        name=TEXT,
        versions=_list(TEXT),
        platform=TEXT,
        inputs=_list(_TENSOR),
        outputs=_list(_TENSOR),
        parameters=_METADATA,
    ),
    "IndexRequest": _object(ready=TRUTH),
    "Index": _list(_exactly(name=TEXT, version=TEXT, state={"enum": ["READY", "UNAVAILABLE"]}, reason=TEXT)),
    "LoadRequest": _object(parameters=_or_null({**OBJECT, "maxProperties": 0})),
    "Loaded": _exactly(),
    "InferRequest": _object(
        ("inputs",),
        id=_or_null({**ID, "minLength": 0, "pattern": "^[ -~]*$"}),
        parameters=_or_null(
            _object(entity_id=_or_null(ENTITY), slices=_or_null(SLICED), binary_data_output=_or_null(TRUTH))
        ),
        inputs=_list(_INPUT, minItems=1, maxItems=MAX_TENSORS),
        outputs=_or_null(_list(_WANTED, maxItems=MAX_TENSORS)),
    ),
    "InferResponse": _exactly(model_name=TEXT, model_version=TEXT, id=_ref("Id"), outputs=_list(_OUTPUT, minItems=1)),
    "ExplainRequest": _object(
        ("inputs",),
        parameters=_or_null(Options.model_json_schema() | {"additionalProperties": False}),
        inputs=_list(_INPUT, minItems=1, maxItems=MAX_TENSORS),
    ),
    "Explanations": _exactly(
        model_name=TEXT,
        model_version=TEXT,
        output=TEXT,
        columns=_list(TEXT),
        background_rows=WHOLE,
        seed=WHOLE,
        explanations=_list(_EXPLANATION),
    ),
    "ModelStatus": _exactly(model_version_status=_list(_STATUS)),
    "SignatureDef": _exactly(
        model_spec=_exactly(name=TEXT, signature_name=TEXT, version=TEXT),
        metadata=_exactly(signature_def=_exactly(signature_def=OBJECT)),
    ),
    "PredictRequest": {
        **_object(signature_name=TEXT, instances=LIST, inputs=ROWS),
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "PredictResponse": {
        **_object(predictions=LIST, outputs=ROWS),
        "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
        "additionalProperties": False,
    },
    "ExamplesRequest": _object(("examples",), signature_name=TEXT, context=OBJECT, examples=_list(OBJECT, minItems=1)),
    "ClassifyResponse": _exactly(result=_list(_list(_list({"type": ["string", "number", "null"]})))),
    "RegressResponse": _exactly(result=_list(_or_null(NUMBER))),
    "ScoringRequest": {
        **_object(
            params=_PARAMS,
            dataframe_split=_object(("data",), columns=_or_null(LIST), index={}, data=_list(LIST, minItems=1)),
            dataframe_records=_list(OBJECT, minItems=1),
            instances={**LIST, "minItems": 1},
            inputs=ROWS,
        ),
        "oneOf": [{"required": [form]} for form in FORMS],
    },
    "ScoringResponse": _exactly(predictions=ROWS),
    "Rollouts": _exactly(models={**OBJECT, "additionalProperties": _ref("Rollout")}, quarantine=_list(OBJECT)),
    "Rollout": _object(
        ("model", "generation", "champion", "rollout"),
        model=TEXT,
        generation=WHOLE,
        champion=_or_null(TEXT),
        rollout=_ROLLOUT,
        evidence=_or_null(OBJECT),
    ),
    **{order.__name__: order.model_json_schema() for order in ORDERS.values()},
    "FeedbackRequest": {
        "anyOf": [_FEEDBACK, _exactly(items=_list(_FEEDBACK, minItems=1, maxItems=MAX_ITEMS))],
    },
    "FeedbackResponse": {
        **_object(("accepted",), accepted=WHOLE, unknown_models=_list(TEXT)),
        "additionalProperties": False,
    },
}

_BODY, _SEX, _SERUM = [59, 32.1, 101], [2], [157, 93.2, 38, 4, 4.9, 87]
_INPUTS = [
    {"name": "body", "shape": [1, 3], "datatype": "FP32", "data": _BODY},
    {"name": "sex", "shape": [1, 1], "datatype": "INT64", "data": _SEX},
    {"name": "serum", "shape": [1, 6], "datatype": "FP32", "data": _SERUM},
]
EXAMPLES: dict[str, Any] = {
    "IndexRequest": {"ready": True},
    "InferRequest": {"id": "visit-17", "inputs": _INPUTS},
    "ExplainRequest": {"parameters": {"permutations": 32}, "inputs": _INPUTS},
    "PredictRequest": {"instances": [{"body": _BODY, "sex": _SEX, "serum": _SERUM}]},
    "ExamplesRequest": {"examples": [{"body": _BODY, "sex": 2, "serum": _SERUM}]},
    "ScoringRequest": {"instances": [{"body": _BODY, "sex": 2, "serum": _SERUM}]},
    "csv": "age,sex,bmi,bp,s1,s2,s3,s4,s5,s6\n59,2,32.1,101,157,93.2,38,4,4.9,87\n",
    "FeedbackRequest": {"id": "visit-17", "labels": [151]},
    "LoadRequest": {},
    "Order": {"reason": "release freeze"},
    "VersionOrder": {"version": 2},
    "ReleaseOrder": {"version": 2, "reason": "mended"},
}
"""Bodies by the name of their schema, and a CSV file: what docs/serving.md asks of the model `diabetes`."""


def _header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": schema, "description": description}


# blanks around a header's value are none of it
_ID_HEADER = {**ID, "pattern": "^[!-~]([ -~]*[!-~])?$"}
_ENTITY_HEADER = {**ENTITY, "pattern": f"^[^ {CONTROLS}]([^{CONTROLS}]*[^ {CONTROLS}])?$"}
PARAMETERS: dict[str, Schema] = {
    "path-model": {"name": "model", "in": "path", "required": True, "schema": MODEL},
    "path-version": {"name": "version", "in": "path", "required": True, "schema": VERSION},
    "path-label": {"name": "label", "in": "path", "required": True, "schema": LABEL},
    "model": {"name": "model", "in": "query", "schema": MODEL, "description": "Needed where there are several."},
    "version": {"name": "version", "in": "query", "schema": VERSION, "description": "The live one, or the one before."},
    "X-Request-Id": _header("X-Request-Id", _ID_HEADER, "What labels are sent for."),
    "X-Entity-Id": _header("X-Entity-Id", _ENTITY_HEADER, "Whose rows belong together; the body's own counts first."),
    "X-Slices": _header("X-Slices", SLICED, "What figures are broken down by: name=value,name=value."),
}
"""Parameters by name; those of the path begin with `path-`."""
