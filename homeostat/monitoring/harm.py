"""Harm over a version's life: each late label is counted once, in order of event time, in state that outlives a run.

Which labels count: those of rows that the version answered, each row once, with the label that is
there when it is first seen; a label that is corrected later changes nothing here. Among the labels
that are new at a look, the order is that of the answers' event times, whatever order they came in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.dataset import Array
from homeostat.errors import DataInvalid
from homeostat.monitoring.detector import ALL, SHARES, Stream, follow, harm_of, make_streams, restart
from homeostat.monitoring.performance import RowLosses, usable_labels
from homeostat.monitoring.reference import Reference
from homeostat.monitoring.traffic import TrafficRows, unix_seconds
from homeostat.records import Harm

logger = logging.getLogger(__name__)

FORMAT = 1
KEPT = 300_000
"""Rows whose count is remembered, the newest by event time; older ones that come now are left out."""
MAX_STREAMS = 200
END_OF_TIME = 253402300800.0
"""Unix seconds of the year 10000: an event time from here on, or below 0, is no time."""
MIN_ONE_SIDED = 30
IMPROBABLE = 1e-6
"""Labels of one value alone, which the reference would give with less probability than this, came selectively."""


@dataclass(frozen=True)
class HarmState:
    """What has been counted of one version's labels."""

    version: int
    streams: tuple[Stream, ...]
    """Overall first, then the slices."""
    counts_from: float = 0.0
    """Rows answered before this event time, unix seconds, do not count: those before the last restart."""
    forgotten: float = 0.0
    """Newest event time of which it is no longer known what was counted: rows up to it do not count any more."""
    keys: bytes = field(default=b"", repr=False)
    """uint64 digest of each counted row's request id and place in it."""
    times: bytes = field(default=b"", repr=False)
    """float64 event time of each."""

    def to_json(self) -> str:
        """Return text that `from_json` reads."""
        packed = {name: base64.b64encode(getattr(self, name)).decode() for name in ("keys", "times")}
        return json.dumps({"format": FORMAT, **asdict(self), **packed})

    @classmethod
    def from_json(cls, text: str | bytes) -> HarmState:
        """Read what `to_json` wrote; raises DataInvalid when it is something else."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            values["streams"] = tuple(_stream(stream) for stream in values["streams"])
            values |= {name: base64.b64decode(values[name], validate=True) for name in ("keys", "times")}
            state = cls(**values)
            if len(state.keys) % 8 or len(state.keys) != len(state.times) or state.streams[0].name != ALL:
                raise ValueError("its parts do not fit together")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise DataInvalid(
                f"the state of the harm detector cannot be read: {error!s:.200}; delete it, and labels count anew"
            ) from error
        return state

    @property
    def harmed(self) -> bool:
        """Whether an alarm stands in any stream."""
        return any(stream.standing for stream in self.streams)

    def restart(self, at: datetime) -> HarmState:
        """Begin anew, without any alarm, with the rows answered from a time on: after the cause has been mended."""
        start = unix_seconds(at)
        times = np.frombuffer(self.times)
        newer = times >= start
        keys = np.frombuffer(self.keys, np.uint64)[newer]
        return replace(
            self,
            streams=tuple(restart(stream) for stream in self.streams),
            counts_from=start,
            keys=keys.tobytes(),
            times=times[newer].tobytes(),
        )


def _stream(values: dict[str, Any]) -> Stream:
    fields: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    stream = Stream(**fields)
    if {len(part) for part in (stream.log_r1, stream.log_run, stream.starts)} != {len(SHARES)}:
        raise ValueError(f"stream {stream.name} has other bets")
    return stream


@dataclass(frozen=True)
class Look:
    """What the labels that were new at one look have changed."""

    state: HarmState
    harm: tuple[Harm, ...]
    """Overall first, then the slices."""
    counted: int
    notes: tuple[str, ...] = ()
    """Why labels did not count."""


def begin(config: ProjectConfig, reference: Reference, losses: RowLosses, version: int) -> HarmState:
    """Return the state of a version before its first label. Raises DataInvalid when the reference has no rows."""
    if not len(reference):
        raise DataInvalid(
            "the reference has no rows: no loss is known that could be tolerated; deploy the version again"
        )
    found = losses(reference.target, reference.outputs)
    streams = make_streams(found, reference.slices, config.monitor, in_time=config.data.split == "time")
    frequent = sorted(streams[1:], key=lambda stream: -stream.reference[0])[: MAX_STREAMS - 1]
    return HarmState(version, (streams[0], *sorted(frequent, key=lambda stream: stream.name)))


def count_labels(
    state: HarmState, rows: TrafficRows, config: ProjectConfig, reference: Reference, losses: RowLosses
) -> Look:
    """Count the labels of `rows` that have not been counted yet; rows of other versions are left out.

    rows: whatever is labelled by now, in any order, also what was counted before. A value of a
    slice that the reference does not have is followed with the tolerated loss of all.
    """
    labelled = rows.take(rows.labelled)
    usable = usable_labels(labelled, config.task)
    notes = [(len(labelled) - len(usable), "labels are not one of the classes")]
    mine = usable.take(usable.versions == state.version)
    notes.append((len(usable) - len(mine), "labels belong to other versions"))
    timed = mine.take((mine.times >= 0) & (mine.times < END_OF_TIME))
    notes.append((len(mine) - len(timed), "labelled rows have no possible event time"))
    new, keys, left_out = _new(state, timed)
    notes += left_out
    why = _selective(new.labels, reference.target)
    if why:
        new, keys = new.take(np.zeros(len(new), bool)), keys[:0]
    order = np.argsort(new.times, kind="stable")
    new, keys = new.take(order), keys[order]
    found = losses(new.labels, new.outputs) if len(new) else np.empty(0)
    streams, parts, more = _follow_all(state.streams, new, found)
    said = [f"{count} {text}: not counted" for count, text in notes if count]
    said += [line for line in (why, more, _unfollowed(state.streams, config)) if line]
    if not streams[0].labels:
        said.append("no label of this version has been counted yet: harm is not known")
    for line in said:
        logger.info("%s v%d: %s", config.name, state.version, line)
    harm = tuple(harm_of(stream, found[part], new.times[part]) for stream, part in zip(streams, parts, strict=True))
    return Look(_remember(replace(state, streams=streams), keys, new.times), harm, len(new), tuple(said))


def _new(state: HarmState, rows: TrafficRows) -> tuple[TrafficRows, Array, list[tuple[int, str]]]:
    """Return the rows that have not been counted, their keys [n] uint64, and how many are left out and why."""
    keys = _keys(rows)
    counted = np.isin(keys, np.frombuffer(state.keys, np.uint64))
    early = ~counted & (rows.times < state.counts_from)
    late = ~counted & ~early & (rows.times <= state.forgotten)
    fresh = np.flatnonzero(~(counted | early | late))
    _, first, group = np.unique(keys[fresh], return_index=True, return_inverse=True)
    values = rows.labels[fresh]
    contradicted = np.zeros(len(first), bool)
    contradicted[group[values != values[first][group]]] = True
    kept = fresh[np.sort(first[~contradicted])]
    notes = [
        (int(early.sum()), "labels are of rows answered before the restart"),
        (int(late.sum()), "labels came too late: it is not known any more whether they were counted"),
        (int(contradicted.sum()), "rows have labels that contradict one another"),
    ]
    return rows.take(kept), keys[kept], notes


def _keys(rows: TrafficRows) -> Array:
    pairs = zip(rows.request_ids.tolist(), rows.places.tolist(), strict=True)
    digests = b"".join(hashlib.blake2b(f"{name}\0{place}".encode(), digest_size=8).digest() for name, place in pairs)
    return np.frombuffer(digests, np.uint64)


def _selective(labels: Array, target: Array) -> str:
    """Return why labels [n] say nothing of all answers; empty where they may."""
    if len(labels) < MIN_ONE_SIDED or (labels != labels[0]).any():
        return ""
    share = float(np.mean(target == labels[0]))
    if share and len(labels) * np.log(share) > np.log(IMPROBABLE):
        return ""
    return (
        f"inconclusive: all of {len(labels)} new labels are {labels[0]:g}, as {share:.0%} of the reference's are; "
        "labels that come for one value alone say nothing of the others: not counted until others come"
    )


def _unfollowed(streams: tuple[Stream, ...], config: ProjectConfig) -> str:
    """Return which slices of requests cannot be followed."""
    known = {stream.name.partition("=")[0] for stream in streams[1:]}
    missing = [name for name in config.serve.slices if name not in known]
    why = "is not among the reference's slices, so that nothing is known to tolerate: return it in slices() and deploy"
    return f"slice {', '.join(missing)} {why}" if missing else ""


def _follow_all(
    streams: tuple[Stream, ...], rows: TrafficRows, losses: Array
) -> tuple[tuple[Stream, ...], list[Array], str]:
    """Return the streams with the losses [n] counted and new values of slices added, each one's rows, and what is not.

    The threshold of the slices stays: it does not depend on the number of values.
    """
    names = sorted({stream.name.partition("=")[0] for stream in streams[1:]})
    members: dict[str, Array] = {ALL: np.arange(len(rows))}
    for name in names:
        values = rows.slices.get(name, np.empty(0, dtype=str))
        members |= {f"{name}={value}": np.flatnonzero(values == value) for value in np.unique(values).tolist() if value}
    known = {stream.name for stream in streams}
    more = [
        replace(restart(streams[0]), name=name, threshold=streams[-1].threshold)
        for name in members
        if name not in known
    ]
    nobody = np.empty(0, dtype=np.int64)
    parts, followed = [], []
    for stream in (*streams, *more)[:MAX_STREAMS]:
        part = members.get(stream.name, nobody)
        parts.append(part)
        followed.append(follow(stream, losses[part], rows.times[part]))
    over = len(streams) + len(more) - MAX_STREAMS
    return tuple(followed), parts, f"{over} values of slices are over {MAX_STREAMS}: not followed" if over > 0 else ""


def _remember(state: HarmState, keys: Array, times: Array) -> HarmState:
    keys = np.concatenate([np.frombuffer(state.keys, np.uint64), keys])
    times = np.concatenate([np.frombuffer(state.times), times])
    forgotten = state.forgotten
    if len(keys) > KEPT:
        order = np.argsort(times, kind="stable")
        forgotten = max(forgotten, float(times[order[-KEPT - 1]]))
        keys, times = keys[order[-KEPT:]], times[order[-KEPT:]]
    return replace(state, keys=keys.tobytes(), times=times.tobytes(), forgotten=forgotten)


__all__ = ["Harm", "HarmState", "Look", "begin", "count_labels"]
