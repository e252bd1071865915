"""tensors: what is packed comes back bit for bit; damaged bytes never come back as tensors."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import DataInvalid, RequestInvalid
from homeostat.tensors import DTYPES, MAX_HEADER, datatype_of, dtype_of, pack, unpack


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (2, 3, 1)])
def test_every_datatype_comes_back(name, shape):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(DTYPES[name])
    back = unpack(pack({"a": values, "b": values}))
    assert list(back) == ["a", "b"]
    for found in back.values():
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values, strict=True)


def test_the_layout_is_the_one_agreed():
    data = pack({"x": np.array([[1.0, 2.0]], "<f4")})
    (length,) = struct.unpack_from("<I", data)
    assert json.loads(data[4 : 4 + length]) == [{"name": "x", "dtype": "<f4", "shape": [1, 2]}]
    assert data[4 + length :] == struct.pack("<2f", 1, 2)


def test_unpack_copies_nothing_and_lets_nothing_be_written():
    data = pack({"x": np.arange(1000.0)})
    values = unpack(data)["x"]
    assert not values.flags.owndata
    assert values.flags.aligned
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_non_contiguous_and_big_endian_values_survive():
    values = np.arange(12, dtype=">f4").reshape(3, 4).T
    np.testing.assert_array_equal(unpack(pack({"x": values}))["x"], values)


def test_text_cannot_be_packed():
    with pytest.raises(DataInvalid, match="dtype"):
        pack({"x": np.array(["a"])})


def _packed(entries: object, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return struct.pack("<I", len(text)) + text + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (b"\xff\xff\xff\xff", "header of"),
        (struct.pack("<I", MAX_HEADER + 1) + b" " * (MAX_HEADER + 1), "header of"),
        (_packed(b"{"), "not JSON"),
        (_packed(b"[" * 60_000), "not JSON"),
        (_packed({}), "not a list"),
        (_packed([1]), "needs name"),
        (_packed([{"name": "x", "dtype": "<f4", "shape": [1], "more": 1}]), "needs name"),
        (_packed([{"name": 1, "dtype": "<f4", "shape": [1]}]), "not text"),
        (_packed([{"name": "x", "dtype": "|O", "shape": [1]}], b"12345678"), "dtype"),
        (_packed([{"name": "x", "dtype": "<U4", "shape": [1]}], b"1" * 16), "dtype"),
        (_packed([{"name": "x", "dtype": "<f4", "shape": [-1]}]), "shape"),
        (_packed([{"name": "x", "dtype": "<f4", "shape": [True]}], b"1234"), "shape"),
        (_packed([{"name": "x", "dtype": "<f4", "shape": [2**62, 2**62, 4]}]), "needs bytes"),
        (_packed([{"name": "x", "dtype": "<f4", "shape": 4}]), "shape"),
        (_packed([{"name": "x", "dtype": "<f4", "shape": [2]}], b"1234"), "needs bytes"),
        (_packed([{"name": "x", "dtype": "<f4", "shape": [1]}], b"12345"), "left over"),
        (_packed([{"name": "x", "dtype": "|u1", "shape": [1]}] * 2, b"12"), "twice"),
    ],
)
def test_damaged_bytes_are_refused(data, message):
    with pytest.raises(DataInvalid, match=message):
        unpack(data)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 200), st.binary(max_size=4))
def test_any_cut_or_overwritten_bytes_are_refused_or_of_the_same_size(at, junk):
    data = pack({"x": np.arange(6, dtype="<f4").reshape(2, 3), "y": np.arange(2, dtype="<i8")})
    with pytest.raises(DataInvalid):
        unpack(data[: at % len(data)])
    try:
        back = unpack(data[:at] + junk + data[at + len(junk) :])
    except DataInvalid:
        return
    assert sum(values.nbytes for values in back.values()) <= len(data)


def test_datatype_names():
    assert datatype_of(np.dtype("float32")) == "FP32"
    assert dtype_of("UINT8") == np.uint8
    for wrong in ("BYTES", "fp32", None, 3, ["FP32"]):
        with pytest.raises(RequestInvalid, match="FP32"):
            dtype_of(wrong)
