"""Content-Encoding of request bodies: gzip and deflate, never inflated beyond a limit."""

from __future__ import annotations

import asyncio
import zlib

from homeostat.errors import RequestInvalid

_ZLIB, _RAW, _GZIP = zlib.MAX_WBITS, -zlib.MAX_WBITS, 16 + zlib.MAX_WBITS
_WINDOW = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}
IDENTITY = (None, b"", b"identity")
INLINE_BYTES = 256 * 1024
"""Inflating so many bytes takes under a millisecond: less than handing them to a thread is worth."""


class TooLarge(RequestInvalid):
    """The body has more bytes than the limit once it is inflated."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"body: more than {limit} bytes; send fewer rows at a time", status=413)


def check_encoding(encoding: bytes | None) -> None:
    """Raise RequestInvalid with status 415 unless the encoding is one that `inflate` knows, or none."""
    if encoding not in IDENTITY:
        _window(_name(encoding or b""))


def _name(encoding: bytes) -> str:
    return encoding.decode("latin-1").strip().lower()


def _window(name: str) -> int:
    found = _WINDOW.get(name)
    if found is None:
        raise RequestInvalid(
            f"Content-Encoding {name!r:.60} is not understood; send gzip, deflate, or none", status=415
        )
    return found


def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Return the body as it was before it was compressed; at most `limit` + 1 bytes are ever made.

    Raises TooLarge, RequestInvalid with status 415 for an encoding other than gzip or deflate,
    and with 400 when the data is damaged, cut off, or followed by something else.
    """
    name = _name(encoding)
    window = _window(name)
    if window == _ZLIB and (len(body) < 2 or int.from_bytes(body[:2]) % 31 or body[0] & 15 != 8):
        window = _RAW  # RFC 9110 8.4.1.2: some clients send deflate data without the zlib format around it
    stream = zlib.decompressobj(window)
    try:
        data = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestInvalid(f"body: not {name} data: {error}") from error
    if len(data) > limit:
        raise TooLarge(limit)
    if not stream.eof:
        raise RequestInvalid(f"body: the {name} data is cut off")
    if stream.unused_data:  # a second member too: a million empty ones would cost more than any bomb
        raise RequestInvalid(f"body: {len(stream.unused_data)} bytes left over after the {name} data")
    return data


async def inflate_aside(body: bytes, encoding: bytes | None, limit: int) -> bytes:
    """Inflate a short body here, and one that turns out long in a thread, so that no other request waits for it."""
    encoding = encoding or b""
    try:
        return inflate(body, encoding, min(limit, INLINE_BYTES))
    except TooLarge:
        if limit <= INLINE_BYTES:
            raise
    return await asyncio.to_thread(inflate, body, encoding, limit)
