"""TensorFlow's TensorProto to numpy and back, without TensorFlow."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import RequestInvalid
from homeostat.serving.grpc.wire import check_shape, from_bytes, from_list
from homeostat.serving.protos import POOL, message
from homeostat.serving.tensorflow_serving import DTYPES

MAX_FILLED = 8 * 1024 * 1024
"""Bytes of a tensor whose list is shorter than its shape: one number may stand for all, and for too many."""

_TensorProto = message("tensorflow.TensorProto")
_NUMBERS: dict[str, int] = {
    name: value.number for name, value in POOL.FindEnumTypeByName("tensorflow.DataType").values_by_name.items()
}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_DTYPES = {name: np.dtype(text) for text, name in DTYPES.items()}
_FIELDS = {
    "DT_BOOL": "bool_val",
    **dict.fromkeys(("DT_INT8", "DT_INT16", "DT_INT32", "DT_UINT8", "DT_UINT16"), "int_val"),
    "DT_INT64": "int64_val",
    "DT_UINT32": "uint32_val",
    "DT_UINT64": "uint64_val",
    "DT_HALF": "half_val",
    "DT_FLOAT": "float_val",
    "DT_DOUBLE": "double_val",
}
"""DataType -> list of TensorProto; half_val holds the 16 bits of each value."""


def dtype_number(dtype: np.dtype[Any]) -> int:
    """Return the number of a numpy dtype in TensorFlow's enum DataType."""
    return _NUMBERS[DTYPES[dtype.str]]


def shape_proto(sizes: tuple[int, ...]) -> Any:
    """Return a TensorShapeProto; -1 is a size that is not known."""
    return message("tensorflow.TensorShapeProto")(dim=[{"size": size} for size in sizes])


def decode(tensor: Any, where: str) -> Array:
    """Return a TensorProto as an array; raises RequestInvalid when its parts do not fit one another.

    tensor_content is read where it is set, else the list of the dtype, which may be shorter than
    the shape: its last value then stands for the rest, and an empty list for zeros.
    """
    name = _NAMES.get(tensor.dtype, str(tensor.dtype))
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise RequestInvalid(f"{where}: {name}; the models here take {', '.join(_DTYPES)}")
    if tensor.tensor_shape.unknown_rank:
        raise RequestInvalid(f"{where}: a tensor of unknown rank; give each size")
    shape = check_shape([dim.size for dim in tensor.tensor_shape.dim], where)
    if tensor.tensor_content:
        return from_bytes(tensor.tensor_content, dtype, shape, f"{where}.tensor_content")
    field, count = _FIELDS[name], prod(shape)
    listed = getattr(tensor, field)
    place = f"{where}.{field}"
    if len(listed) > count:
        raise RequestInvalid(f"{place}: {len(listed)} values, shape {list(shape)} needs {count}")
    bits = np.dtype("<u2") if name == "DT_HALF" else dtype
    values = from_list(listed, bits, place).view(dtype)
    if len(values) < count:
        if count * dtype.itemsize > MAX_FILLED:
            raise RequestInvalid(f"{place}: {len(values)} values for shape {list(shape)}; send all, or a smaller shape")
        values = np.pad(values, (0, count - len(values)), mode="edge" if len(values) else "constant")
    return values.reshape(shape)


def encode(values: Array) -> Any:
    """Return an array as a TensorProto whose values stand in the list of its dtype, where clients look for them."""
    name = DTYPES[values.dtype.str]
    flat = values.ravel()
    tensor = _TensorProto(dtype=_NUMBERS[name], tensor_shape=shape_proto(values.shape))
    getattr(tensor, _FIELDS[name]).extend((flat.view("<u2") if name == "DT_HALF" else flat).tolist())
    return tensor
