"""Open Inference Protocol v2 over REST: bodies to requests, responses to bodies; JSON and binary tensors."""

from __future__ import annotations

from array import array
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import orjson

from homeostat import __version__
from homeostat.contract import whole
from homeostat.dataset import Array
from homeostat.errors import RequestInvalid
from homeostat.serving.board import Board
from homeostat.serving.dataplane import InferRequest, InferResponse, check_entity, check_id, check_slices
from homeostat.serving.repository import ModelState
from homeostat.serving.served import Served
from homeostat.tensors import MAX_RANK, MAX_TENSORS, datatype_of, dtype_of

SERVER = {"name": "homeostat", "version": __version__, "extensions": ["binary_tensor_data"]}
JSON, BINARY = b"application/json", b"application/octet-stream"

_TYPECODES = {np.dtype(code).str: code for code in "bBhHiIqQfd"}
"""numpy dtype -> typecode of `array`, which takes numbers alone and refuses text, null and lists."""


class Wanted:
    """Which outputs are asked for, and which of them as binary data."""

    __slots__ = ("binary", "default", "names")

    def __init__(self, default: bool) -> None:
        self.default = default
        self.names: list[str] | None = None
        self.binary: dict[str, bool] = {}

    def __contains__(self, name: str) -> bool:
        """Return whether an output is to be sent as binary data."""
        return self.binary.get(name, self.default)


def parse_json(body: bytes | memoryview, where: str = "body") -> dict[str, Any]:
    """Return a JSON object; raises RequestInvalid with the place of the mistake."""
    if not body:
        raise RequestInvalid(f"{where}: empty; a JSON object is expected")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestInvalid(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestInvalid(f"{where}: a JSON object is expected, not {type(value).__name__}")
    return value


def _member(value: Any, key: str, kind: type, where: str) -> Any:
    found = value.get(key)
    if found is None:
        found = kind()
    if not isinstance(found, kind):
        name = "an object" if kind is dict else "a list"
        raise RequestInvalid(f"{where}{key}: must be {name}, not {type(found).__name__}")
    return found


def _truth(value: dict[str, Any], key: str, where: str) -> bool | None:
    found = value.get(key)
    if found is not None and not isinstance(found, bool):
        raise RequestInvalid(f"{where}{key}: {found!r:.60} must be true or false")
    return found


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_RANK:
        raise RequestInvalid(f"{where}.shape: {value!r:.60} must be a list of 1 to {MAX_RANK} sizes, rows first")
    for size in value:
        if type(size) is not int or size < 0 or size > 2**40:
            raise RequestInvalid(f"{where}.shape: {value!r:.60}: {size!r:.30} is not a size")
    return tuple(value)


def _flatten(data: list[Any], shape: tuple[int, ...], where: str) -> list[Any]:
    """Return nested lists as one, if their lengths are those of `shape`; flat data is returned as it is."""
    if not data or not isinstance(data[0], list):
        return data
    level, lists = data, [data]
    for depth, size in enumerate(shape):
        for one in lists:
            if not isinstance(one, list) or len(one) != size:
                found = f"{len(one)} values" if isinstance(one, list) else type(one).__name__
                raise RequestInvalid(f"{where}.data: {found} at depth {depth} where shape {list(shape)} says {size}")
        level = list(chain.from_iterable(lists))
        lists = level
    return level


def from_json(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Array:
    """Return JSON numbers, flat or nested as `shape` is, as an array; raises RequestInvalid when they do not fit."""
    if not isinstance(data, list):
        raise RequestInvalid(f"{where}.data: must be a list of numbers, not {type(data).__name__}")
    flat = _flatten(data, shape, where)
    if len(flat) != prod(shape):
        raise RequestInvalid(f"{where}.data: {len(flat)} values, shape {list(shape)} needs {prod(shape)}")
    if dtype.kind == "b":
        if not all(type(value) is bool for value in flat):
            raise RequestInvalid(f"{where}.data: true or false is expected for BOOL")
        return np.array(flat, dtype=dtype).reshape(shape)
    code = _TYPECODES.get(dtype.str, "f")
    try:
        try:
            values: Array = np.frombuffer(array(code, flat), dtype=code)
        except TypeError:  # JSON has one kind of number: some clients write 2 as 2.0
            values = np.frombuffer(array(code, map(whole, flat)), dtype=code)
    except (TypeError, OverflowError, ValueError) as error:
        raise RequestInvalid(f"{where}.data: not all values are {datatype_of(dtype)}: {error}") from error
    if values.dtype != dtype:  # FP16 has no typecode
        with np.errstate(over="ignore"):  # becomes Inf, which the contract judges
            values = values.astype(dtype)
    return values.reshape(shape)


def _from_binary(
    body: memoryview, at: int, size: Any, dtype: np.dtype[Any], shape: tuple[int, ...], where: str
) -> Array:
    wanted = prod(shape) * dtype.itemsize
    if type(size) is not int or size != wanted:
        raise RequestInvalid(
            f"{where}.parameters.binary_data_size: {size!r:.30}; {datatype_of(dtype)} {list(shape)} has {wanted} bytes"
        )
    if at + size > len(body):
        raise RequestInvalid(f"{where}: {size} bytes of binary data announced, {max(0, len(body) - at)} are there")
    if size == 0:
        return np.empty(shape, dtype)
    if dtype.kind == "b":  # a byte over 1 is no boolean
        truths: Array = np.frombuffer(body, np.uint8, size, at) != 0
        return truths.reshape(shape)
    values: Array = np.frombuffer(body, dtype, prod(shape), at).reshape(shape)
    return values if values.flags.aligned else values.copy()


def _wanted(value: dict[str, Any], parameters: dict[str, Any]) -> Wanted:
    wanted = Wanted(_truth(parameters, "binary_data_output", "parameters.") is True)
    outputs, names = _member(value, "outputs", list, ""), []
    for place, output in enumerate(outputs[: MAX_TENSORS + 1]):
        where = f"outputs[{place}]"
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise RequestInvalid(f'{where}: must be {{"name": "..."}}')
        name = output["name"]
        names.append(name)
        binary = _truth(_member(output, "parameters", dict, f"{where}."), "binary_data", f"{where}.parameters.")
        if binary is not None:
            wanted.binary[name] = binary
    wanted.names = names or None
    if len(outputs) > MAX_TENSORS:
        raise RequestInvalid(f"outputs: {len(outputs)} of them, at most {MAX_TENSORS}")
    return wanted


def decode(body: bytes, header_length: str | None = None) -> tuple[InferRequest, Wanted]:
    """Read an inference request; raises RequestInvalid that says what is wrong where."""
    request, wanted, _ = decode_all(body, header_length)
    return request, wanted


def decode_all(body: bytes, header_length: str | None = None) -> tuple[InferRequest, Wanted, dict[str, Any]]:
    """Read an inference request, and all its parameters; raises RequestInvalid that says what is wrong where.

    header_length: value of Inference-Header-Content-Length, when the client sent it: so many
    bytes of JSON stand before the binary data.
    """
    view, at = memoryview(body), len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()) or int(header_length[:20]) > len(body):
            raise RequestInvalid(
                f"Inference-Header-Content-Length: {header_length!r:.40} is no number up to {len(body)}, the bytes sent"
            )
        at = int(header_length)
    value = parse_json(view[:at])
    parameters = _member(value, "parameters", dict, "")
    inputs = value.get("inputs")
    if not isinstance(inputs, list) or not 0 < len(inputs) <= MAX_TENSORS:
        raise RequestInvalid('inputs: a list of {"name", "shape", "datatype", "data"} is needed')
    tensors: dict[str, Array] = {}
    for place, one in enumerate(inputs):
        where = f"inputs[{place}]"
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise RequestInvalid(f'{where}: must be {{"name", "shape", "datatype", "data"}}')
        dtype, shape = dtype_of(one.get("datatype")), _shape(one.get("shape"), where)
        size = _member(one, "parameters", dict, f"{where}.").get("binary_data_size") if "parameters" in one else None
        if one["name"] in tensors:
            raise RequestInvalid(f"{where}: input {one['name']!r:.80} stands twice")
        if size is None:
            tensors[one["name"]] = from_json(one.get("data"), dtype, shape, where)
        else:
            tensors[one["name"]] = _from_binary(view, at, size, dtype, shape, where)
            at += size
    if header_length is not None and at != len(body):
        raise RequestInvalid(f"body: {len(body) - at} bytes left over after the last input's binary data")
    given, entity, slices = value.get("id"), parameters.get("entity_id"), parameters.get("slices")
    request = InferRequest(
        tensors,
        id="" if given is None or given == "" else check_id(given, "id"),
        entity_id=None if entity is None else check_entity(entity, "parameters.entity_id"),
        slices="" if slices is None else check_slices(slices, "parameters.slices"),
    )
    return request, _wanted(value, parameters), parameters


def check_wanted(served: Served, wanted: Wanted) -> None:
    """Raise RequestInvalid when an output is asked for that the model does not have, or twice."""
    names = wanted.names or ()
    for name in names:
        if name not in served.session.output_names:
            raise RequestInvalid(f"outputs: no output {name!r:.80}; there is: {', '.join(served.session.output_names)}")
    if len(set(names)) < len(names):
        raise RequestInvalid(f"outputs: one stands twice: {', '.join(names):.200}")


def encode(response: InferResponse, wanted: Wanted) -> tuple[bytes, int | None]:
    """Return the body, and the length of its JSON part when binary data follows it (else None)."""
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name in wanted.names or response.outputs:
        values = response.outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": datatype_of(values.dtype), "shape": values.shape}
        if name in wanted:
            blob = values.tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = values.ravel() if values.dtype.isnative else values.ravel().tolist()
        outputs.append(entry)
    ref = response.served.ref
    head = orjson.dumps(
        {"model_name": ref.model, "model_version": str(ref.version), "id": response.id, "outputs": outputs},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    return (b"".join((head, *blobs)), len(head)) if blobs else (head, None)


def metadata(state: ModelState, served: Served) -> dict[str, Any]:
    """Return a model's metadata: names, datatypes and shapes (-1 is the batch), columns by position, what is live."""
    inputs = [
        {"name": spec.name, "datatype": datatype_of(np.dtype(spec.dtype)), "shape": [-1, *spec.shape]}
        for spec in served.contract.inputs
    ]
    outputs = [
        {"name": output.name, "datatype": datatype_of(output.dtype), "shape": [-1, *output.shape]}
        for output in served.session.outputs
    ]
    columns = {spec.name: list(spec.columns) for spec in served.contract.inputs if spec.columns}
    live = state.live or served
    return {
        "name": state.name,
        "versions": [str(one.ref.version) for one in state.answering()],
        "platform": "onnxruntime_onnx",
        "inputs": inputs,
        "outputs": outputs,
        "parameters": {
            "live_version": str(live.ref.version),
            "sha256": served.ref.sha256,
            "generation": state.generation,
            "classes": list(served.classes),
            "max_rows": served.max_rows,
            **({"columns": columns} if columns else {}),
        },
    }


def readiness(state: ModelState, version: str | None, board: Board | None = None) -> dict[str, Any]:
    """Return what is live (or, of a version, whether it is loaded): version, sha256, generation, and any problem.

    Where there are several workers it is ready when all of them are.
    """
    if version is None:
        served, problem = state.live, state.problem
    else:
        served = next((one for one in state.loaded() if str(one.ref.version) == version), None)
        problem = next((text for number, text in state.problems.items() if str(number) == version), "")
    if served is not None and board is not None:
        missing = board.missing(state.name, served.ref.manifest_sha256, live=version is None)
        problem = problem or (f"{missing} other workers do not have it yet" if missing else "")
    else:
        missing = 0
    return {
        "name": state.name,
        "version": str(served.ref.version) if served else version,
        "sha256": served.ref.sha256 if served else None,
        "generation": state.generation,
        "ready": served is not None and not missing,
        "problem": problem,
    }
