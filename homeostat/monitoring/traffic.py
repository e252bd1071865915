"""Captured requests, answers and late labels as rows, decoded from a snapshot of the capture."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from homeostat.dataset import Array
from homeostat.errors import DataInvalid
from homeostat.monitoring.index import Index
from homeostat.monitoring.snapshot import Wanted, capture_files, open_snapshot
from homeostat.sealing import Keyring
from homeostat.tensors import unpack

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrafficRows:
    """Rows of answered requests, oldest first; a request of k rows gives k of them.

    inputs, outputs: name -> [n, ...]. labels: [n] float64, NaN where there is none (yet).
    entity_ids (empty where none was sent), request_ids: [n] str. versions: [n] int64.
    times: [n] float64, unix seconds. milliseconds: [n] float64, of the whole request. arms: [n] str,
    champion or canary. slices: name -> [n] str, empty where a row has none of that name; also the
    hashes of hashed columns. places: [n] int64, of a row in its request. label_times: [n] float64,
    unix seconds at which the newest label of a row's request came, NaN where there is none.
    """

    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    labels: Array = field(default_factory=lambda: np.empty(0))
    entity_ids: Array = field(default_factory=lambda: np.empty(0, dtype=str))
    request_ids: Array = field(default_factory=lambda: np.empty(0, dtype=str))
    versions: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    times: Array = field(default_factory=lambda: np.empty(0))
    milliseconds: Array = field(default_factory=lambda: np.empty(0))
    arms: Array = field(default_factory=lambda: np.empty(0, dtype=str))
    places: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    label_times: Array = field(default_factory=lambda: np.empty(0))
    slices: dict[str, Array] = field(default_factory=dict)
    masking: str | None = None
    """What was done to the inputs before they were kept, for `homeostat.masking.mask_like`; None is nothing."""
    found: int = 0
    """Rows that the capture holds for the window, before sampling."""
    unreadable: tuple[str, ...] = ()
    """`request id: why`, for each captured request or label that could not be used."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the window: a version change in it, a clock that went back."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    @property
    def labelled(self) -> Array:
        """[n] bool: the rows that have a label."""
        return np.isfinite(self.labels)

    @property
    def request_milliseconds(self) -> Array:
        """[requests] float64: the time of each request, once."""
        _, first = np.unique(self.request_ids, return_index=True)
        milliseconds = self.milliseconds[first]
        return milliseconds[np.isfinite(milliseconds)]

    def take(self, rows: Array) -> TrafficRows:
        """Return the rows at these positions (or of this boolean mask), in this order."""
        per_row = (
            "labels", "entity_ids", "request_ids", "versions", "times", "milliseconds", "arms", "places", "label_times"
        )  # fmt: skip
        return TrafficRows(
            inputs={name: values[rows] for name, values in self.inputs.items()},
            outputs={name: values[rows] for name, values in self.outputs.items()},
            **{name: getattr(self, name)[rows] for name in per_row},
            slices={name: values[rows] for name, values in self.slices.items()},
            masking=self.masking,
            found=self.found,
            unreadable=self.unreadable,
            notes=self.notes,
        )


class _Request(NamedTuple):
    """One captured request, decoded."""

    request_id: str
    time: float
    version: int
    entity_id: str
    milliseconds: float
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    labels: Array
    arm: str
    slices: dict[str, Array]
    masking: str | None
    label_time: float = np.nan

    def signature(self) -> tuple[object, ...]:
        """Masking, names, dtypes and row shapes: only rows of one signature can stand in one array."""
        both = (*(("i", *item) for item in self.inputs.items()), *(("o", *item) for item in self.outputs.items()))
        return (
            self.masking,
            *((side + name, values.dtype.str, values.shape[1:]) for side, name, values in sorted(both, key=_name)),
        )


def _name(item: tuple[str, str, Array]) -> tuple[str, str]:
    return item[0], item[1]


def unix_seconds(moment: datetime) -> float:
    """Return unix seconds; a time without a zone is read as UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def read_rows(
    traffic: Path,
    model: str,
    start: datetime,
    end: datetime,
    max_rows: int,
    *,
    version: int | None = None,
    labelled_only: bool = False,
    newest: int | None = None,
    first_labelled: int | None = None,
    seed: int = 0,
    keys: Keyring | None = None,
) -> TrafficRows:
    """Return a model's answered rows with start <= time < end, each with its newest label, if it has one.

    When there are more than max_rows, whole requests are drawn at random by `seed`, so that the
    sample speaks for the window. traffic: a server's file, or a glob of several servers' files; a missing
    or empty one means no rows. newest: the last so many rows of the window alone. first_labelled: the so
    many whose labels came first. keys: of encrypted traffic. A request, label or Parquet file that
    cannot be read is left out and named in `unreadable`.
    Raises DataInvalid when the file is not a SQLite database, ConfigError when a key is missing,
    Unavailable when the file is locked or of another schema.
    """
    if not capture_files(traffic):
        return TrafficRows(notes=(f"no captured traffic at {traffic}",))
    wanted = Wanted(model, unix_seconds(start), unix_seconds(end), version, labelled_only, newest, first_labelled)
    with open_snapshot(traffic) as snapshot:
        index = snapshot.index(wanted)
        found = int(index.rows.sum())
        requests, unreadable = _decode_all(
            snapshot.fetch(model, _sample(index, max_rows, seed)), keys or Keyring(), model
        )
        problems, notes = snapshot.problems, tuple(snapshot.notes)
    requests, odd = _same_signature(requests)
    rows = replace(_stack(requests, found, (*problems, *unreadable, *odd)), notes=notes)
    if rows.unreadable:
        logger.warning(
            "%s: %d captured requests or labels left out: %s", traffic, len(rows.unreadable), rows.unreadable
        )
    if len(rows) <= max_rows:
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).choice(len(rows), max_rows, replace=False)))


def _sample(index: Index, max_rows: int, seed: int) -> Index:
    """Return requests whose rows add up to at least max_rows (all, when there are fewer), in the index's order."""
    sizes = np.maximum(index.rows, 1)
    if sizes.sum() <= max_rows:
        return index
    order = np.random.default_rng(seed).permutation(len(index))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), max_rows)) + 1
    return index.take(np.sort(order[:enough]))


def _decode_all(records: Iterable[tuple[Any, ...]], keys: Keyring, model: str) -> tuple[list[_Request], list[str]]:
    requests, unreadable = [], []
    for record in records:
        request_id, rows, text, when = str(record[0]), record[4], record[-2], record[-1]
        try:
            request = _decode(record, keys, model)
        except (ValueError, TypeError, DataInvalid) as error:
            unreadable.append(f"{request_id}: {error!s:.200}")
            continue
        if text is not None:
            try:
                labels = read_labels(keys.open(text, "", request_id, "labels"), rows)
                request = request._replace(labels=labels, label_time=np.nan if when is None else float(when))
            except (ValueError, TypeError, DataInvalid) as error:
                unreadable.append(f"{request_id}: labels: {error!s:.200}")
        requests.append(request)
    return requests, unreadable


def _decode(record: tuple[Any, ...], keys: Keyring, model: str) -> _Request:
    request_id, time, version, entity_id, rows, inputs, outputs, milliseconds, arm, slices, masking, *_ = record
    inputs, outputs, slices = (
        keys.open(value, model, str(request_id), f"{name} of {arm}")
        for name, value in (("inputs", inputs), ("outputs", outputs), ("slices", slices))
    )
    return _Request(
        request_id=str(request_id),
        time=float(time),
        version=int(version),
        entity_id=str(entity_id or ""),
        milliseconds=np.nan if milliseconds is None else float(milliseconds),
        inputs=_tensors(inputs, rows),
        outputs=_tensors(outputs, rows),
        labels=np.full(rows, np.nan),
        arm=str(arm),
        slices=_slices(slices, rows),
        masking=masking,
    )


def _slices(text: Any, rows: int) -> dict[str, Array]:
    given = json.loads(text) if text else {}
    if not isinstance(given, dict):
        raise ValueError("slices are not an object")
    slices = {}
    for name, value in given.items():
        values = value if isinstance(value, list) else [value] * rows
        if len(values) != rows:
            raise ValueError(f"slice {name} has {len(values)} values where the request has {rows} rows")
        slices[name] = np.array(values, dtype=str)
    return slices


def _tensors(blob: Any, rows: Any) -> dict[str, Array]:
    if not isinstance(blob, bytes) or not isinstance(rows, int) or rows < 1:
        raise ValueError("tensors or row count missing")
    tensors = unpack(blob)
    for name, values in tensors.items():
        if values.ndim == 0 or len(values) != rows:
            raise ValueError(f"{name} has shape {values.shape} where the request has {rows} rows")
    if not tensors:
        raise ValueError("no tensors")
    return tensors


def read_labels(text: str | bytes, rows: int) -> Array:
    """Return the labels [rows] of one request, NaN where there is none; raises ValueError or TypeError."""
    labels = np.array([np.nan if value is None else float(value) for value in _given_labels(text, rows)])
    return np.where(np.isfinite(labels), labels, np.nan)


def count_finite(text: str | bytes, rows: int) -> int:
    """Return how many labels of one request there are; raises as `read_labels` does."""
    return sum(value is not None and math.isfinite(float(value)) for value in _given_labels(text, rows))


def _given_labels(text: str | bytes, rows: int) -> list[Any]:
    given = json.loads(text)
    if not isinstance(given, list):
        raise ValueError("not a list")
    if len(given) != rows:
        raise ValueError(f"{len(given)} of them for a request of {rows} rows")
    return given


def _same_signature(requests: list[_Request]) -> tuple[list[_Request], list[str]]:
    """Keep the requests whose tensors look like most of the window's; name the others."""
    signatures = [request.signature() for request in requests]
    if len(set(signatures)) < 2:
        return requests, []
    most = Counter(signatures).most_common(1)[0][0]
    kept = [r for r, signature in zip(requests, signatures, strict=True) if signature == most]
    odd = [
        f"{r.request_id}: other tensors or masking than the rest of the window"
        for r, signature in zip(requests, signatures, strict=True)
        if signature != most
    ]
    return kept, odd


def _stack(requests: list[_Request], found: int, unreadable: tuple[str, ...]) -> TrafficRows:
    if not requests:
        return TrafficRows(found=found, unreadable=unreadable)
    sizes = [len(request.labels) for request in requests]
    labels = np.concatenate([request.labels for request in requests])

    def repeat(name: str, dtype: Any) -> Array:
        return np.repeat(np.array([getattr(request, name) for request in requests], dtype=dtype), sizes)

    return TrafficRows(
        inputs={name: np.concatenate([r.inputs[name] for r in requests]) for name in requests[0].inputs},
        outputs={name: np.concatenate([r.outputs[name] for r in requests]) for name in requests[0].outputs},
        labels=labels,
        entity_ids=repeat("entity_id", str),
        request_ids=repeat("request_id", str),
        versions=repeat("version", np.int64),
        times=repeat("time", np.float64),
        milliseconds=repeat("milliseconds", np.float64),
        arms=repeat("arm", str),
        places=np.concatenate([np.arange(size) for size in sizes]),
        label_times=np.where(np.isfinite(labels), repeat("label_time", np.float64), np.nan),
        slices={
            name: np.concatenate([r.slices.get(name, np.full(len(r.labels), "")) for r in requests])
            for name in sorted({name for r in requests for name in r.slices})
        },
        masking=requests[0].masking,
        found=found,
        unreadable=unreadable,
    )
