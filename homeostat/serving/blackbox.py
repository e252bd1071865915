"""What a worker is computing, in a shared file that outlives it, and the requests that have killed workers."""

from __future__ import annotations

import json
import logging
import mmap
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
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
_COPIED, _FINGERPRINT, _BATCH = 1, 2, 3
_DIGITS = 32
"""Of a fingerprint."""
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

    def enter_batch(self, fingerprints: Sequence[str]) -> int:
        """Note requests that are about to be computed together; return their slot, for `leave`."""
        try:
            slot = self._free.pop()
        except IndexError:
            return -1
        at, data = _BEAT.size + slot * _SLOT, "".join(fingerprints).encode()[:SLOT_BYTES]
        body = at + _HEAD.size
        self._map[body : body + len(data)] = data
        _HEAD.pack_into(self._map, at, _BATCH, len(data), b"")
        return slot

    def leave(self, slot: int) -> None:
        """Forget what has been computed."""
        if slot >= 0:
            _HEAD.pack_into(self._map, _BEAT.size + slot * _SLOT, 0, 0, b"")
            self._free.append(slot)

    def inside(self) -> list[str]:
        """Return the fingerprints of the requests that are computed each by itself."""
        return [
            data.decode() if kind == _FINGERPRINT else fingerprint(digest.rstrip(b"\0").decode(), data)
            for kind, digest, data in self._noted()
            if kind != _BATCH
        ]

    def together(self) -> list[str]:
        """Return the fingerprints of the requests that are computed in batches: any of them may be at fault."""
        texts = [data.decode() for kind, _, data in self._noted() if kind == _BATCH]
        return [text[at : at + _DIGITS] for text in texts for at in range(0, len(text), _DIGITS)]

    def _noted(self) -> Iterator[tuple[int, bytes, bytes]]:
        for slot in range(SLOTS):
            at = _BEAT.size + slot * _SLOT
            kind, length, digest = _HEAD.unpack_from(self._map, at)
            if kind:
                yield kind, digest, self._map[at + _HEAD.size : at + _HEAD.size + length]

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
        self.suspects: frozenset[str] = frozenset()
        """Fingerprints of requests that were there when a worker died: each is computed by itself, until `clear`."""
        self._cleared: set[str] = set()
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
        self._cleared &= self._deaths.keys()
        self.suspects = frozenset(self._deaths) - self._cleared

    def clear(self, fingerprint: str) -> None:
        """Let a request that was computed by itself, and did no harm, into batches again."""
        self._cleared.add(fingerprint)
        self.suspects -= {fingerprint}

    def note(self, fingerprints: Iterable[str], together: Iterable[str] = ()) -> None:
        """Count a death for each of these requests; those that were computed together are only suspected."""
        self.read()
        if self.path is None:
            return
        for one in fingerprints:
            self._deaths[one] = self._deaths.pop(one, 0) + 1
        for one in together:
            self._deaths.setdefault(one, 0)
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
        self.leave, self.enter_batch = self.box.leave, self.box.enter_batch

    def enter(self, manifest_sha256: str, packed: bytes) -> int:
        """Return the slot of a request that may be computed, for `leave`; raises RequestInvalid."""
        if self.killers.refused and fingerprint(manifest_sha256, packed) in self.killers.refused:
            raise RequestInvalid(
                f"these tensors have ended the server's process {DEATHS} times and are computed no more by this "
                "version; the operator finds them in HOME/serving/workers",
                status=422,
            )
        return self.box.enter(manifest_sha256, packed)

    def is_suspect(self, manifest_sha256: str, packed: bytes) -> bool:
        """Return whether a request must be computed by itself: one that was computed with it may have killed."""
        suspects = self.killers.suspects
        return bool(suspects) and fingerprint(manifest_sha256, packed) in suspects

    def clear(self, manifest_sha256: str, packed: bytes) -> None:
        """Note that a suspect has been computed by itself, and the process lives."""
        self.killers.clear(fingerprint(manifest_sha256, packed))
