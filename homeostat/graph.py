"""A reading of an ONNX graph's bytes without the onnx package: which weights lie in other files."""

from __future__ import annotations

from homeostat.errors import BundleInvalid

# message -> field number -> message, as published in onnx.proto; only the fields that can reach a tensor
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14
_SKIP = {1: 8, 5: 4}  # wire type -> bytes


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


def external_tensors(onnx: bytes) -> list[str]:
    """Return the names of the tensors, at any depth, whose values are not in these bytes.

    Raises BundleInvalid when the bytes are not protobuf. Time grows with the nodes, not with
    the weights.
    """
    found: list[str] = []
    pending = [("model", 0, len(onnx))]
    try:
        while pending:
            kind, at, end = pending.pop()
            fields, name, external = _FIELDS.get(kind, {}), "?", False
            while at < end:
                tag, at = _varint(onnx, at)
                number, wire = tag >> 3, tag & 7
                if wire == 0:
                    value, at = _varint(onnx, at)
                    external |= kind == "tensor" and number == _TENSOR_LOCATION and value != 0
                elif wire == 2:
                    length, at = _varint(onnx, at)
                    if at + length > end:
                        raise IndexError
                    if number in fields:
                        pending.append((fields[number], at, at + length))
                    elif kind == "tensor" and number == _TENSOR_NAME:
                        name = onnx[at : at + length].decode("utf-8", "replace")
                    elif kind == "tensor" and number == _TENSOR_EXTERNAL:
                        external = True
                    at += length
                else:
                    at += _SKIP[wire]
            if at != end:
                raise IndexError
            if external:
                found.append(name)
    except (IndexError, KeyError) as error:
        raise BundleInvalid("model.onnx is not a protobuf message; export the model again") from error
    return found
