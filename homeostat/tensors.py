"""Named tensors as bytes, for captured traffic, and the Open Inference Protocol's names for dtypes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import DataInvalid, RequestInvalid

MAX_HEADER = 64 * 1024
"""Bytes of the JSON header; a longer one is refused before it is parsed."""
MAX_TENSORS = 256
MAX_RANK = 16

_LENGTH = struct.Struct("<I")
_DATATYPES = {
    "BOOL": "?",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(text) for name, text in _DATATYPES.items()}
"""Open Inference Protocol datatype -> little-endian numpy dtype."""
DATATYPES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}
"""The same, the other way round."""
_BY_TEXT = {dtype.str: dtype for dtype in DTYPES.values()}


def dtype_of(datatype: object) -> np.dtype[Any]:
    """Return the numpy dtype of a protocol datatype such as FP32; raises RequestInvalid that lists the known ones."""
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise RequestInvalid(f"datatype {datatype!r:.40} is not known; use one of {', '.join(DTYPES)}")
    return dtype


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return the protocol's name of a numpy dtype; raises DataInvalid when it has none."""
    name = DATATYPES.get(dtype.newbyteorder("<"))
    if name is None:
        raise DataInvalid(f"dtype {dtype} has no name in the Open Inference Protocol; use one of {', '.join(DTYPES)}")
    return name


@lru_cache(maxsize=1024)
def _header(specs: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> bytes:
    for _, dtype, _ in specs:
        datatype_of(dtype)
    entries = [{"name": name, "dtype": dtype.str, "shape": shape} for name, dtype, shape in specs]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + _LENGTH.size) % 8)  # JSON may end in blanks; the first tensor is then aligned
    if len(text) > MAX_HEADER or len(specs) > MAX_TENSORS:
        raise DataInvalid(
            f"{len(specs)} tensors with a header of {len(text)} bytes; at most {MAX_TENSORS}, {MAX_HEADER}"
        )
    return _LENGTH.pack(len(text)) + text


def pack(tensors: Mapping[str, Array]) -> bytes:
    """Return tensors as bytes: uint32 LE header length, JSON header, then each tensor's values in C order.

    tensors: name -> array of any shape, numbers or booleans, little-endian (big-endian is
    swapped). Raises DataInvalid for any other dtype, and when the header passes its limit.
    """
    little = {
        name: values if values.dtype.str[0] != ">" else values.astype(values.dtype.newbyteorder("<"))
        for name, values in tensors.items()
    }
    header = _header(tuple((name, values.dtype, values.shape) for name, values in little.items()))
    return b"".join((header, *(values.tobytes() for values in little.values())))


def _entry(entry: object, place: int) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    if not isinstance(entry, dict) or entry.keys() != {"name", "dtype", "shape"}:
        raise DataInvalid(f"packed tensor {place}: needs name, dtype and shape and nothing else")
    name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
    if not isinstance(name, str):
        raise DataInvalid(f"packed tensor {place}: the name is not text")
    if not isinstance(dtype, str) or dtype not in _BY_TEXT:
        raise DataInvalid(f"packed tensor {name!r:.80}: dtype {dtype!r:.40} is not one of {', '.join(_BY_TEXT)}")
    sizes: Sequence[object] = shape if isinstance(shape, list) else (None,)
    if len(sizes) > MAX_RANK or any(type(size) is not int or size < 0 or size > 2**62 for size in sizes):
        raise DataInvalid(f"packed tensor {name!r:.80}: shape {shape!r:.80} is not a list of up to {MAX_RANK} sizes")
    return name, _BY_TEXT[dtype], tuple(shape)


def unpack(data: bytes | memoryview) -> dict[str, Array]:
    """Return what `pack` wrote, as read-only views of `data` (nothing is copied).

    Raises DataInvalid when a length, a dtype, a shape or a name does not hold, or bytes are
    missing or left over.
    """
    view = memoryview(data)
    if len(view) < _LENGTH.size:
        raise DataInvalid(f"packed tensors: {len(view)} bytes, too short for a header length")
    (length,) = _LENGTH.unpack_from(view)
    start = _LENGTH.size + length
    if length > MAX_HEADER or start > len(view):
        raise DataInvalid(f"packed tensors: header of {length} bytes in {len(view)} (at most {MAX_HEADER})")
    try:
        entries = json.loads(bytes(view[_LENGTH.size : start]))
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"packed tensors: the header is not JSON: {error}") from error
    if not isinstance(entries, list) or len(entries) > MAX_TENSORS:
        raise DataInvalid(f"packed tensors: the header is not a list of up to {MAX_TENSORS} tensors")
    tensors: dict[str, Array] = {}
    for place, entry in enumerate(entries):
        name, dtype, shape = _entry(entry, place)
        count = prod(shape)  # of Python integers: cannot overflow
        end = start + count * dtype.itemsize
        if end > len(view):
            raise DataInvalid(f"packed tensor {name!r:.80}: needs bytes up to {end}, there are {len(view)}")
        if name in tensors:
            raise DataInvalid(f"packed tensor {name!r:.80} stands twice")
        values = np.frombuffer(view[start:end], dtype=dtype).reshape(shape) if count else np.empty(shape, dtype)
        values.flags.writeable = False
        tensors[name] = values
        start = end
    if start != len(view):
        raise DataInvalid(f"packed tensors: {len(view) - start} bytes left over after the last tensor")
    return tensors
