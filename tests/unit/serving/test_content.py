"""Compressed bodies: what is inflated, what is refused, and how much is ever made of a bomb."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib

import pytest

from homeostat.errors import RequestInvalid
from homeostat.serving.rest.content import INLINE_BYTES, TooLarge, inflate

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
TEXT = json.dumps(BODY).encode()


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(TEXT, mtime=0)),
        ("GZIP", gzip.compress(TEXT, mtime=0)),
        ("x-gzip", gzip.compress(TEXT, mtime=0)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
        ("identity", TEXT),
    ],
)
def test_a_compressed_body_is_the_same_request(toy, encoding, body):
    answer = toy.call("POST", "/v2/models/toy/infer", content=body, headers={"content-encoding": encoding})
    assert answer.json()["outputs"][0]["data"] == [10.0]


def test_binary_tensors_and_labels_too(toy):
    head = json.dumps(
        {"inputs": [{**BODY["inputs"][0], "data": None, "parameters": {"binary_data_size": 16}}]}
    ).encode()
    body = gzip.compress(head + bytes(16))
    headers = {"content-encoding": "gzip", "inference-header-content-length": str(len(head))}
    assert toy.call("POST", "/v2/models/toy/infer", content=body, headers=headers).json()["outputs"][0]["data"] == [0.0]
    labels = gzip.compress(b'{"id": "a", "labels": [1]}')
    assert toy.call("POST", "/v1/feedback", content=labels, headers={"content-encoding": "gzip"}).status_code == 202


@pytest.mark.parametrize(
    ("encoding", "body", "status", "message"),
    [
        ("br", TEXT, 415, "send gzip, deflate, or none"),
        ("gzip, gzip", TEXT, 415, "is not understood"),
        ("gzip", TEXT, 400, "not gzip data"),
        ("deflate", b"\xff\xff\xff", 400, "not deflate data"),
        ("gzip", b"", 400, "cut off"),
        ("deflate", b"", 400, "cut off"),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-1], 400, "cut off"),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-4] + b"\0\0\0\0", 400, "not gzip data"),
        ("gzip", gzip.compress(TEXT, mtime=0) * 2, 400, "left over"),
        ("gzip", gzip.compress(b"", mtime=0) * 200, 400, "left over"),
        ("gzip", gzip.compress(b" " * 5000, mtime=0), 413, "more than 4096 bytes"),
        ("deflate", zlib.compress(b" " * 4097), 413, "more than 4096 bytes"),
    ],
)
def test_bad_bodies(toy, encoding, body, status, message):
    answer = toy.call("POST", "/v2/models/toy/infer", content=body, headers={"content-encoding": encoding})
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_the_limit_is_exact():
    for limit in (1, 4096):
        assert inflate(gzip.compress(b"a" * limit), b"gzip", limit) == b"a" * limit
        with pytest.raises(TooLarge):
            inflate(gzip.compress(b"a" * (limit + 1)), b"gzip", limit)


def test_a_bomb_is_not_inflated_beyond_the_limit():
    bomb = gzip.compress(bytes(200 * 1024 * 1024), compresslevel=1)
    tracemalloc.start()
    with pytest.raises(RequestInvalid, match="more than 1048576 bytes") as refused:
        inflate(bomb, b"gzip", 1024 * 1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.status == 413
    assert peak < 4 * 1024 * 1024


def test_a_long_body_is_inflated_in_a_thread_and_whole(tmp_path):
    from tests.bundles import Store, make_bundle
    from tests.unit.serving.conftest import make_plane

    plane = make_plane(tmp_path, Store(), max_body=4 * INLINE_BYTES)
    plane.store.promote(make_bundle(tmp_path))
    plane.repository.poll()
    long = gzip.compress(TEXT + b" " * INLINE_BYTES)
    headers = {"content-encoding": "gzip"}
    assert plane.call("POST", "/v2/models/toy/infer", content=long, headers=headers).status_code == 200
    longer = gzip.compress(b" " * (4 * INLINE_BYTES + 1))
    assert plane.call("POST", "/v2/models/toy/infer", content=longer, headers=headers).status_code == 413
