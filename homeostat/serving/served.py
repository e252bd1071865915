"""A model version that can answer: its session, its contract as prepared arrays, and what it costs to call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from homeostat.bundle import Bundle
from homeostat.config import RolloutConfig
from homeostat.contract import Contract, TensorSpec
from homeostat.dataset import Array
from homeostat.errors import BundleInvalid, ConfigError, RequestInvalid
from homeostat.golden import read_golden
from homeostat.masking import Mask
from homeostat.records import BundleRef, Task
from homeostat.serving.metrics import VersionMetrics
from homeostat.serving.session import ORT_DTYPES, Session, time_rows
from homeostat.tensors import datatype_of

INLINE_SECONDS = 0.002
"""A call expected to be shorter runs in the event loop; a thread would cost more than it frees."""


BATCH_GAIN = 0.8
"""A version is batched if a further row costs at most this share of a call with one."""


def _check_signature(session: Session, specs: tuple[TensorSpec, ...], where: str) -> None:
    wanted = {spec.name: (spec.dtype, spec.shape) for spec in specs}
    found = {
        name: (np.dtype(ORT_DTYPES[kind]).name if kind in ORT_DTYPES else kind, shape[1:])
        for name, (kind, shape) in session.inputs.items()
    }
    if found.keys() != wanted.keys():
        raise BundleInvalid(f"{where}: the graph takes {', '.join(found)}; its contract says {', '.join(wanted)}")
    for name, (dtype, shape) in wanted.items():
        same = len(shape) == len(found[name][1]) and all(
            not isinstance(size, int) or size == want for size, want in zip(found[name][1], shape, strict=True)
        )
        if found[name][0] != np.dtype(dtype).name or not same:
            raise BundleInvalid(
                f"{where}: input {name!r} of the graph is {found[name][0]} [n, {found[name][1]}]; "
                f"its contract says {dtype} [n, {shape}]"
            )


class Computed(NamedTuple):
    """What a version has computed for a request: when it began, the rows, and what went in and came out."""

    start: float
    rows: int
    outside: int
    """Values out of the contract's range."""
    packed: bytes
    answers: list[Array]


@dataclass(frozen=True)
class Served:
    """One loaded, verified, warm version. Immutable: a request that holds it can finish on it."""

    ref: BundleRef
    contract: Contract
    task: Task
    nan: str
    out_of_range: str
    max_rows: int
    deadline_seconds: float
    capture: bool
    mask: Mask | None
    """What capture keeps; None is everything."""
    classes: tuple[str, ...]
    session: Session
    inline_rows: int
    """A call of at most this many rows runs in the event loop."""
    batch_invariant: bool
    """Whether a row's answer depends on no other row of its batch."""
    batch_rows: int
    """Rows of several requests that are computed together at most; 1 is never."""
    batch_wait_seconds: float
    """How long a batch may wait for the clients of the one before."""
    loaded: float
    metrics: VersionMetrics
    rollout: RolloutConfig
    background: Mapping[str, Array] | None
    """Input -> golden rows [b, ...] that explanations compare with; None where explanations are off."""
    _bounds: tuple[tuple[str, np.dtype[np.generic], tuple[int, ...], Array, Array], ...] = field(repr=False)

    @classmethod
    def load(
        cls, bundle: Bundle, *, batch_invariant: bool, metrics: VersionMetrics, salt: Callable[[], bytes]
    ) -> Served:
        """Make a session of the bundle's bytes, time it, and hold its inputs against the contract.

        salt: called if the bundle's masking hashes something. Raises BundleInvalid.
        """
        session = Session(bundle.onnx)
        _check_signature(session, bundle.contract.inputs, bundle.ref.url)
        one, further = time_rows(session, bundle.golden)
        rows = 1 + int((INLINE_SECONDS - one) / max(further, 1e-9)) if one < INLINE_SECONDS else 0
        serve = bundle.manifest.serve
        open_rows = all(not isinstance(shape[0], int) for _, shape in session.inputs.values())
        batched = batch_invariant and open_rows and further <= BATCH_GAIN * one
        try:
            mask = Mask.make(serve, bundle.contract, salt)
        except ConfigError as error:
            raise BundleInvalid(f"{bundle.ref.url}: {error}") from error
        bounds = []
        for spec in bundle.contract.inputs:
            dtype = np.dtype(spec.dtype)
            datatype_of(dtype)
            low, high = np.asarray(spec.minimum), np.asarray(spec.maximum)
            if dtype.kind == "f":  # compare in the input's own dtype: no conversion of the rows
                low, high = low.astype(dtype), high.astype(dtype)
            bounds.append((spec.name, dtype, spec.shape, low, high))
        return cls(
            ref=bundle.ref,
            contract=bundle.contract,
            task=bundle.manifest.task,
            nan=serve.nan,
            out_of_range=serve.out_of_range,
            max_rows=serve.max_rows,
            deadline_seconds=serve.deadline_seconds,
            capture=serve.capture,
            mask=mask,
            classes=bundle.manifest.classes,
            session=session,
            inline_rows=min(rows, serve.max_rows),
            batch_invariant=batch_invariant,
            batch_rows=serve.max_batch_rows if batched else 1,
            batch_wait_seconds=min(serve.batch_wait_ms / 1000, one),  # waiting for longer than a call never pays
            loaded=time.time(),
            metrics=metrics,
            rollout=bundle.manifest.rollout,
            background=read_golden(bundle.golden)[0] if serve.explain else None,
            _bounds=tuple(bounds),
        )

    def check(self, tensors: Mapping[str, Array]) -> tuple[int, int]:
        """Hold a request against the contract; return its rows and how many of its values are out of range.

        Raises RequestInvalid. When every value is in range, nothing can be NaN or Inf, and two
        comparisons were enough; otherwise the contract itself says what is wrong.
        """
        rows = -1
        for name, dtype, shape, low, high in self._bounds:
            values = tensors.get(name)
            if values is None or values.dtype != dtype or values.shape[1:] != shape or values.ndim == 0:
                break
            if rows not in (-1, len(values)) or not ((values >= low).all() and (values <= high).all()):
                break
            rows = len(values)
        else:
            if len(tensors) == len(self._bounds):
                self._check_rows(rows)
                return rows, 0
        for name, values in tensors.items():
            if values.ndim == 0:
                raise RequestInvalid(f"input {name!r}: a single number; the first dimension is rows: shape [n, ...]")
        outside = self.contract.check_tensors(tensors, nan=self.nan, out_of_range=self.out_of_range)
        rows = len(next(iter(tensors.values())))
        self._check_rows(rows)
        return rows, outside

    def _check_rows(self, rows: int) -> None:
        if rows == 0:
            raise RequestInvalid("a request of 0 rows; send at least one")
        if rows > self.max_rows:
            raise RequestInvalid(f"{rows} rows in one request, at most {self.max_rows} (serve.max_rows); send several")
