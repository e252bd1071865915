"""MLflow's scoring protocol: frames, instances, inputs and CSV to requests, responses to predictions; no pandas."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import orjson

from homeostat.client import current
from homeostat.contract import TensorSpec
from homeostat.dataset import Array
from homeostat.errors import RequestInvalid
from homeostat.serving.dataplane import DataPlane, InferRequest, InferResponse, check_entity, check_id, check_slices
from homeostat.serving.rest.rows import read_numbers, read_rows
from homeostat.serving.served import Served

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
FORMATS = {"pandas-split": "dataframe_split", "pandas-records": "dataframe_records"}
"""`format=` of MLflow 1.x's content type -> the form of 2.x whose value the body is."""
PARAMS = ("id", "entity_id", "slices")
MAX_DEPTH = 100
ERROR_CODES = {
    400: "BAD_REQUEST",
    404: "RESOURCE_DOES_NOT_EXIST",
    413: "REQUEST_LIMIT_EXCEEDED",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""HTTP status -> MLflow's error_code; INTERNAL_ERROR beside them."""


def choose(plane: DataPlane, model: str, query: bytes) -> tuple[Served, bool]:
    """Return the version that is to answer: of the path's model, of `?model=NAME&version=V`, or of the only one.

    And whether it was asked for by its number. The only one is that of those the client may use.
    Raises RequestInvalid when there are several and none is named, ModelNotFound, NotServing, Forbidden.
    """
    try:
        asked = parse_qs(query.decode("latin-1"), max_num_fields=16) if query else {}
    except ValueError as error:
        raise RequestInvalid("the query has more than 16 fields; model and version are known") from error
    name = model or asked.get("model", [""])[0]
    if not name:
        client = current.get()
        known = [one for one in sorted(plane.repository.models) if client is None or client.may_use(one)]
        if len(known) != 1:
            there = ", ".join(known) or "none yet"
            raise RequestInvalid(f"which model? say ?model=NAME; there is: {there}", 400 if known else 503)
        name = known[0]
    version = asked.get("version", [None])[0]
    return plane.find(name, version), version is not None


def decode(body: bytes, content_type: bytes, served: Served) -> InferRequest:
    """Read a body of one of MLflow's content types; raises RequestInvalid that says what is wrong where."""
    kind, form = _content_type(content_type)
    if kind == "text/csv":
        return InferRequest(_from_csv(body, served))
    value = parse_json(body)
    if form is not None:
        value = {form: value}
    if not isinstance(value, dict):
        raise RequestInvalid(f"body: an object with one of {', '.join(FORMS)} is expected, not {type(value).__name__}")
    params = value.get("params")
    params = {} if params is None else params
    if not isinstance(params, dict) or not params.keys() <= set(PARAMS):
        raise RequestInvalid(f"params: {params!r:.80}; must be an object with {' and '.join(PARAMS)} at most")
    given, entity, slices = params.get("id"), params.get("entity_id"), params.get("slices")
    return InferRequest(
        tensors_of(value, served),
        id="" if given is None else check_id(given, "params.id"),
        entity_id=None if entity is None else check_entity(entity, "params.entity_id"),
        slices="" if slices is None else check_slices(slices, "params.slices"),
    )


def encode(response: InferResponse) -> bytes:
    """Return {"predictions": rows} of a model with one output, {"predictions": {name: rows}} of one with several."""
    outputs = response.outputs
    predictions = next(iter(outputs.values())) if len(outputs) == 1 else outputs
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def error_body(status: int, message: str) -> dict[str, str]:
    """Return an error as MLflow words it."""
    return {
        "error_code": ERROR_CODES.get(status, "INTERNAL_ERROR" if status >= 500 else "BAD_REQUEST"),
        "message": message,
    }


def parse_json(body: bytes) -> Any:
    """Return a JSON value; NaN and Infinity, which MLflow's client sends, are let through to the contract."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in body and b"Infinity" not in body:
            raise RequestInvalid(f"body: not valid JSON: {error}") from error
    if _depth(body) > MAX_DEPTH:  # orjson has a limit of its own; json recurses until the stack ends
        raise RequestInvalid(f"body: not valid JSON: more than {MAX_DEPTH} lists and objects in one another")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestInvalid(f"body: not valid JSON: {error}") from error


def _depth(body: bytes) -> int:
    """Return how deep brackets are nested at most; those within strings count too."""
    marks = np.frombuffer(body, np.uint8) | 0x20  # [ and { differ in this bit, and so do ] and }
    steps = (marks == ord("{")).view(np.int8) - (marks == ord("}")).view(np.int8)
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def tensors_of(value: Mapping[str, Any], served: Served) -> dict[str, Array]:
    """Return the tensors of the one form that `value` holds; raises RequestInvalid."""
    forms = [form for form in FORMS if form in value]
    if len(forms) != 1:
        found = ", ".join(map(repr, sorted(value))) or "none"
        raise RequestInvalid(f"body: exactly one of {', '.join(FORMS)} is expected; its keys are {found:.200}")
    form, data = forms[0], value[forms[0]]
    if form == "dataframe_split":
        return _from_frame(*_split(data, served), served, form)
    if form == "inputs" and isinstance(data, dict):
        lists = {name: column for name, column in data.items() if isinstance(column, list)}
        if len(lists) < len(data):
            raise RequestInvalid(
                f"inputs: each member must be a list of rows; {sorted(data.keys() - lists)!r:.80} is not"
            )
        return _from_frame(list(lists), list(lists.values()), served, form)
    if not isinstance(data, list):
        raise RequestInvalid(f"{form}: must be a list, not {type(data).__name__}")
    _check_rows(len(data), served, form)
    if form == "dataframe_records" or isinstance(data[0], dict):
        return _from_frame(*_records(data, form), served, form)
    specs = served.contract.inputs
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise RequestInvalid(f"{form}: the model has several inputs; name them in each row: {names}")
    return {specs[0].name: read_rows(data, specs[0], form)}


def _content_type(header: bytes) -> tuple[str, str | None]:
    """Return the media type, and the form that `format=` stands for; raises RequestInvalid with status 415."""
    kind, *rest = (part.strip() for part in header.decode("latin-1").lower().split(";"))
    parameters = {name.strip(): value.strip(' "') for name, _, value in (one.partition("=") for one in rest if one)}
    if kind not in ("", "application/json", "text/csv"):
        raise RequestInvalid(f"Content-Type {kind!r:.60} is not understood; send application/json or text/csv", 415)
    if parameters.pop("charset", "utf-8") not in ("utf-8", "utf8"):
        raise RequestInvalid("Content-Type: the only charset is utf-8", 415)
    form = parameters.pop("format", None)
    if parameters or (form is not None and (form not in FORMATS or kind == "text/csv")):
        raise RequestInvalid(f"Content-Type: parameters may be charset and format={' or '.join(FORMATS)}", 415)
    return kind or "application/json", None if form is None else FORMATS[form]


def _check_rows(rows: int, served: Served, where: str) -> None:
    """Refuse before anything is converted, so that a long body costs little."""
    if rows == 0:
        raise RequestInvalid(f"{where}: no rows; send at least one")
    if rows > served.max_rows:
        raise RequestInvalid(f"{where}: {rows} rows, at most {served.max_rows} (serve.max_rows); send several")


def _split(frame: Any, served: Served) -> tuple[list[Any], list[Sequence[Any]]]:
    where = "dataframe_split"
    if not isinstance(frame, dict) or not {"data"} <= frame.keys() <= {"columns", "data", "index"}:
        raise RequestInvalid(f"{where}: must be an object with data, and optionally columns and index")
    rows, names = frame["data"], frame.get("columns")
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise RequestInvalid(f"{where}.data: must be a list of rows, each a list")
    _check_rows(len(rows), served, where)
    if names is None:
        names = list(range(len(rows[0])))
    if not isinstance(names, list):
        raise RequestInvalid(f"{where}.columns: must be a list of names")
    for place, row in enumerate(rows):
        if len(row) != len(names):
            raise RequestInvalid(f"{where}.data[{place}]: {len(row)} values for {len(names)} columns")
    return names, list(zip(*rows, strict=True))


def _records(rows: list[Any], where: str) -> tuple[list[Any], list[Sequence[Any]]]:
    if not all(isinstance(row, dict) for row in rows):
        raise RequestInvalid(f"{where}: each row must be an object, column name to value")
    names = list(rows[0])
    for place, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            odd = sorted(row.keys() ^ rows[0].keys())
            raise RequestInvalid(f"{where}[{place}]: has not the columns of the first row: {', '.join(odd):.200}")
    return names, [[row[name] for row in rows] for name in names]


def _from_csv(body: bytes, served: Served) -> dict[str, Array]:
    rows: list[list[str]] = []
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        names = next(lines, [])
        for row in lines:
            if not row:
                continue
            if len(row) != len(names):
                raise RequestInvalid(f"csv line {lines.line_num}: {len(row)} values for {len(names)} columns")
            rows.append(row)
            if len(rows) > served.max_rows:
                break
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestInvalid(f"csv: cannot be read: {error}") from error
    _check_rows(len(rows), served, "csv")
    wanted = {name for spec in served.contract.inputs for name in spec.column_names()}
    columns = [
        [_value(cell) for cell in column] if name in wanted else column
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    ]
    return _from_frame(names, columns, served, "csv")


def _value(cell: str) -> Any:
    """Return the number, truth value or gap that a cell of a CSV file is; text stays text, and is refused later."""
    text = cell.strip()
    if text in ("", "True", "False"):
        return text == "True" if text else None
    if "_" in text:  # Python's own spelling of 1_000, which no CSV writer means
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _from_frame(names: list[Any], columns: Iterable[Sequence[Any]], served: Served, where: str) -> dict[str, Array]:
    """Return the contract's inputs from the columns of a frame; others are passed over, as MLflow does."""
    specs = served.contract.inputs
    wanted = [name for spec in specs for name in spec.column_names()]
    if names == list(range(len(names))) and len(names) == len(wanted):
        names = wanted  # a frame without names: the contract's order
    frame: dict[str, Sequence[Any]] = {}
    for name, column in zip(map(str, names), columns, strict=True):
        if name in frame:
            raise RequestInvalid(f"{where}: column {name!r:.80} stands twice")
        frame[name] = column
    missing = [name for spec in specs for name in _needed(spec, frame) if name not in frame]
    if missing:
        takes = ", ".join(name for spec in specs for name in spec.column_names() or (spec.name,))
        raise RequestInvalid(
            f"{where}: no column {', '.join(missing):.300}; the model takes {takes:.300}; "
            f"there is: {', '.join(frame) or 'none':.300}"
        )
    return {spec.name: _read_input(spec, frame, served, where) for spec in specs}


def _needed(spec: TensorSpec, frame: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that make an input: its own name when each cell is a whole row, else its column names."""
    columns = spec.column_names()
    return columns if columns and (spec.name not in frame or spec.name in columns) else (spec.name,)


def _read_input(spec: TensorSpec, frame: Mapping[str, Sequence[Any]], served: Served, where: str) -> Array:
    needed = _needed(spec, frame)
    for name in needed:
        _check_rows(len(frame[name]), served, f"{where}, column {name!r:.80}")
    if needed == (spec.name,) and (spec.name not in spec.column_names() or isinstance(frame[spec.name][0], list)):
        return read_rows(list(frame[spec.name]), spec, f"{where}, column {spec.name!r}")
    columns = [read_numbers(frame[name], np.dtype(spec.dtype), f"{where}, column {name!r:.80}") for name in needed]
    if len({len(column) for column in columns}) > 1:
        raise RequestInvalid(f"{where}: the columns of input {spec.name!r} differ in length")
    return np.column_stack(columns) if spec.shape else columns[0]
