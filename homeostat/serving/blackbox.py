"""What a worker is computing, in a shared file that outlives it, and the requests that have killed workers."""

from __future__ import annotations

import json
import logging
import mmap
import struct
import time
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from homeostat.errors import RequestInvalid

log = logging.getLogger(__name__)

SLOTS = 8
"""Calls of one worker at once: the event loop's and its threads'; what comes on top is not noted."""
SLOT_BYTES = 256 * 1024
"""Tensors of at most this size are copied, which is cheaper; of larger ones the fingerprint is kept."""
DEATHS = 2
"""So many dead workers make a request refused."""
MAX_KILLERS = 1000
"""Fingerprints that are remembered; the newest stay."""

_BEAT = struct.Struct("<Q")
_HEAD = struct.Struct("<II64s")  # kind, length of what follows, manifest digest of the version
_COPIED, _FINGERPRINT = 1, 2
_SLOT = _HEAD.size + SLOT_BYTES
SIZE = _BEAT.size + SLOTS * _SLOT
"""Bytes of the shared file."""


def fingerprint(manifest_sha256: str, packed: bytes | memoryview) -> str:
    """Return what tells one request to one version from all others: BLAKE2b of both, 32 hex digits."""
    return blake2b(packed, digest_size=16, key=manifest_sha256.encode()[:64]).hexdigest()


class BlackBox:
    """A worker's shared file, mapped by it and by its supervisor.

    A worker notes what it hands to ONNX Runtime before it does, for a graph can end the process
    (integer division of the smallest number by -1, memory), and nothing else is left then.
    """

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, SIZE)
        self._free = list(range(SLOTS))

    def beat(self) -> None:
        """Say that the event loop turns."""
        _BEAT.pack_into(self._map, 0, time.monotonic_ns())

    def last_beat(self) -> int:
        """Return when `beat` was last called, in nanoseconds of a clock that starts anywhere; 0 is never."""
        (beat,) = _BEAT.unpack_from(self._map, 0)
        return int(beat)

    def enter(self, manifest_sha256: str, packed: bytes) -> int:
        """Note a request that is about to be computed; return its slot, for `leave`."""
        try:
            slot = self._free.pop()
        except IndexError:
            return -1
        at = _BEAT.size + slot * _SLOT
        kind, data = _COPIED, packed
        if len(packed) > SLOT_BYTES:
            kind, data = _FINGERPRINT, fingerprint(manifest_sha256, packed).encode()
        body = at + _HEAD.size
        self._map[body : body + len(data)] = data
        _HEAD.pack_into(self._map, at, kind, len(data), manifest_sha256.encode())
        return slot

    def leave(self, slot: int) -> None:
        """Forget a request that has been computed."""
        if slot >= 0:
            _HEAD.pack_into(self._map, _BEAT.size + slot * _SLOT, 0, 0, b"")
            self._free.append(slot)

    def inside(self) -> list[str]:
        """Return the fingerprints of the requests that are noted."""
        found = []
        for slot in range(SLOTS):
            at = _BEAT.size + slot * _SLOT
            kind, length, digest = _HEAD.unpack_from(self._map, at)
            if kind:
                data = self._map[at + _HEAD.size : at + _HEAD.size + length]
                found.append(
                    data.decode() if kind == _FINGERPRINT else fingerprint(digest.rstrip(b"\0").decode(), data)
                )
        return found

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()


class Killers:
    """Requests that were being computed when workers died: a JSON file, fingerprint -> deaths."""

    def __init__(self, path: Path | None = None) -> None:
        """Without a path nothing is read, and no request refused."""
        self.path = path
        self.refused: frozenset[str] = frozenset()
        """Fingerprints of the requests that are computed no more."""
        self._deaths: dict[str, int] = {}
        self._read_at = -1

    def read(self) -> None:
        """Read the file again if it has changed; a file that cannot be read refuses nothing, and is logged."""
        if self.path is None:
            return
        try:
            changed = self.path.stat().st_mtime_ns
            if changed == self._read_at:
                return
            self._read_at = changed
            values = json.loads(self.path.read_bytes())
            self._deaths = {str(key): int(deaths) for key, deaths in values.items()}
        except FileNotFoundError:
            self._read_at, self._deaths = -1, {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.error("%s cannot be read (%s); it refuses no request until it can", self.path, error)
            self._deaths = {}
        self.refused = frozenset(key for key, deaths in self._deaths.items() if deaths >= DEATHS)

    def note(self, fingerprints: Iterable[str]) -> None:
        """Count a death for each of these requests."""
        self.read()
        if self.path is None:
            return
        for one in fingerprints:
            self._deaths[one] = self._deaths.pop(one, 0) + 1
        newest = dict(list(self._deaths.items())[-MAX_KILLERS:])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(newest, indent=1))
            temporary.replace(self.path)
        except OSError as error:
            log.error("%s cannot be written (%s); the request may kill a worker again", self.path, error)


class Guard:
    """Notes each request before it is computed, and keeps out those that have killed workers."""

    def __init__(self, box: BlackBox | None = None, killers: Killers | None = None) -> None:
        self.box, self.killers = box or BlackBox(-1), killers or Killers()
        self.leave = self.box.leave

    def enter(self, manifest_sha256: str, packed: bytes) -> int:
        """Return the slot of a request that may be computed, for `leave`; raises RequestInvalid."""
        if self.killers.refused and fingerprint(manifest_sha256, packed) in self.killers.refused:
            raise RequestInvalid(
                f"these tensors have ended the server's process {DEATHS} times and are computed no more by this "
                "version; the operator finds them in HOME/serving/workers",
                status=422,
            )
        return self.box.enter(manifest_sha256, packed)
