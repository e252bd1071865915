"""Tensors as the gRPC protocols send them, as raw bytes or as lists of values, checked before numpy sees them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import RequestInvalid
from homeostat.tensors import MAX_RANK, datatype_of

MAX_SIZE = 2**40
"""Of one dimension, so that no product of them is surprising."""


def check_shape(sizes: Sequence[int], where: str) -> tuple[int, ...]:
    """Return a shape; raises RequestInvalid when it has no dimension, too many, or one that is no size."""
    if not 0 < len(sizes) <= MAX_RANK:
        raise RequestInvalid(f"{where}: a shape of {len(sizes)} dimensions; 1 to {MAX_RANK} are taken, rows first")
    for size in sizes:
        if not 0 <= size <= MAX_SIZE:
            raise RequestInvalid(f"{where}: shape {list(sizes)!s:.60}: {size} is not a size")
    return tuple(sizes)


def from_bytes(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Array:
    """Return little-endian values in C order as an array, a view where that is possible."""
    wanted = prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise RequestInvalid(f"{where}: {len(data)} bytes; {datatype_of(dtype)} {list(shape)} has {wanted}")
    if dtype.kind == "b":  # a byte over 1 is no boolean
        truths: Array = np.frombuffer(data, np.uint8) != 0
        return truths.reshape(shape)
    values: Array = np.frombuffer(data, dtype).reshape(shape) if wanted else np.empty(shape, dtype)
    return values


def from_list(values: Any, dtype: np.dtype[Any], where: str) -> Array:
    """Return the numbers of a protobuf list as `dtype` [len(values)]; raises RequestInvalid when one does not fit.

    A list of 32-bit integers carries the narrower ones too.
    """
    wide = np.asarray(values)
    narrow: Array = wide.astype(dtype)
    if dtype.itemsize < wide.itemsize and dtype.kind in "iu" and not np.array_equal(narrow, wide):
        raise RequestInvalid(f"{where}: not all values are {datatype_of(dtype)}")
    return narrow
