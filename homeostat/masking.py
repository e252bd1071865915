"""What capture keeps of a request: each column kept, dropped, hashed or coarsened, before it is queued."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from homeostat.config import ServeConfig
from homeostat.contract import Contract
from homeostat.dataset import Array
from homeostat.errors import ConfigError

Actions = Mapping[str, Mapping[str, str]]
"""Input name -> column name -> action, for every column of the input, in order. An input that is not
made of columns has one entry, "", for all its values."""

MAX_SLICES = 1024
"""Characters of the slices that come with one request."""
SLICES = re.compile(r"[A-Za-z_][\w.-]{0,63}=[^=,]{1,128}(?:,[A-Za-z_][\w.-]{0,63}=[^=,]{1,128})*")
OTHER = "other"
"""What a slice's value becomes that is not among its categories."""
DIGEST_BYTES = 16


def parse_slices(text: str) -> dict[str, str]:
    """Return the slices of `name=value,name=value`; raises ValueError when it is something else."""
    if len(text) > MAX_SLICES or not text.isprintable() or not SLICES.fullmatch(text):
        raise ValueError(f'must be "name=value,name=value", printable, at most {MAX_SLICES} characters')
    return dict(pair.split("=", 1) for pair in text.split(","))


def actions_for(columns: Mapping[str, str], contract: Contract, slices: tuple[str, ...] = ()) -> Actions:
    """Return what happens to each column of the contract; what `columns` does not name is dropped.

    columns: name of a column, or of an input for all its columns that are not named -> action.
    Raises ConfigError for a name that is neither (nor a slice), and for an action that does not
    fit the column's dtype.
    """
    known, actions = set(slices), {}
    for spec in contract.inputs:
        names = spec.column_names() or ("",)
        known |= {spec.name, *names}
        actions[spec.name] = {name: columns.get(name, columns.get(spec.name, "drop")) for name in names}
        for name, action in actions[spec.name].items():
            _check_dtype(action, np.dtype(spec.dtype), f"serve.masking.columns: {name or spec.name}")
    unknown = sorted(columns.keys() - known)
    if unknown:
        raise ConfigError(
            f"serve.masking.columns names {', '.join(unknown)}; the columns are {', '.join(sorted(known - {''}))}"
        )
    return actions


def _check_dtype(action: str, dtype: np.dtype[Any], where: str) -> None:
    kind, *numbers = action.split()
    if kind == "categories":
        raise ConfigError(f'{where}: "categories" is for slices; coarsen a number by "step" or "edges"')
    if kind not in ("step", "edges") or dtype.kind == "f":
        return
    if dtype.kind == "b":
        raise ConfigError(f'{where}: is true or false: "keep", "drop" or "hash" it')
    limits = np.iinfo(dtype)
    if any(not float(n).is_integer() or not limits.min <= float(n) <= limits.max for n in numbers):
        raise ConfigError(f"{where}: {action!r} does not fit its dtype {dtype}; give whole numbers in its range")


def mask(
    actions: Actions, tensors: Mapping[str, Array], salt: bytes | None = None
) -> tuple[dict[str, Array], dict[str, list[str]]]:
    """Return the tensors as they may be kept, and the hashes [n] of the columns that are hashed.

    tensors: input name -> [n, ...]; they stay as they are. A value that is dropped or hashed
    becomes NaN, or 0 where the dtype has no NaN. Hashes are BLAKE2b keyed with `salt`, of the
    column's name and value, in hex; without a salt there are none.
    """
    masked, hashes = dict(tensors), {}
    for name, columns in actions.items():
        values = tensors.get(name)
        if values is None or all(action == "keep" for action in columns.values()):
            continue
        copy = np.array(values, order="C")
        flat = copy.reshape(len(copy), -1)
        blank = []
        for place, (column, action) in enumerate(columns.items()):
            if action == "keep":
                continue
            view = flat[:, place] if column else flat
            if action == "hash" and salt is not None:
                hashes[column or name] = [_digest(salt, column or name, row.tobytes()) for row in view]
            if action in ("drop", "hash"):
                blank.append(place)
            else:
                view[...] = _coarsen(action, view)
        if blank:  # all at once: a request has few rows, and each step costs the event loop
            flat[:, blank if "" not in columns else slice(None)] = np.nan if copy.dtype.kind == "f" else 0
        masked[name] = copy
    return masked, hashes


def _digest(salt: bytes, name: str, value: bytes) -> str:
    return hashlib.blake2b(b"\0".join((name.encode(), value)), key=salt, digest_size=DIGEST_BYTES).hexdigest()


def _coarsen(action: str, values: Array) -> Array:
    """Return the values of a column, or of a whole input, by step or edges; the dtype stays."""
    kind, *numbers = action.split()
    whole = values.dtype.kind in "iu"
    if kind == "step" and whole:
        low = np.iinfo(values.dtype).min
        rest = values % values.dtype.type(float(numbers[0]))
        return np.where(values < low + rest, low, values - rest).astype(values.dtype)  # no step starts under the lowest
    if kind == "step":
        step = float(numbers[0])
        with np.errstate(over="ignore", invalid="ignore"):
            steps: Array = (np.floor(values.astype(np.float64) / step) * step).astype(values.dtype)
        return steps
    edges = np.array([float(n) for n in numbers]).astype(values.dtype)
    coarse: Array = edges[np.maximum(np.searchsorted(edges, values, side="right") - 1, 0)]
    return coarse if whole else np.where(np.isnan(values), values, coarse)


@dataclass(frozen=True)
class Mask:
    """What one version's capture keeps: columns, slices and the entity."""

    actions: Actions | None
    """None keeps every column."""
    slices: Mapping[str, str]
    """Slice name -> action; others are not kept."""
    entity: str
    """keep, drop or hash."""
    salt: bytes
    text: str | None
    """The actions as JSON, to stand beside each request; None when every column is kept."""

    @classmethod
    def make(cls, serve: ServeConfig, contract: Contract, salt: Callable[[], bytes]) -> Mask | None:
        """Return the mask, or None when requests are kept as they come; raises ConfigError.

        `salt` is called if something may be hashed.
        """
        if serve.masking is None and not serve.slices:
            return None
        columns = {} if serve.masking is None else serve.masking.columns
        taken = {name for spec in contract.inputs for name in (spec.name, *spec.column_names())} & set(serve.slices)
        if taken:
            raise ConfigError(f"serve.slices names {', '.join(sorted(taken))}: columns, which are captured as such")
        actions = None if serve.masking is None else actions_for(columns, contract, serve.slices)
        entity = "keep" if serve.masking is None else serve.masking.entity_id
        kept = actions is None or all(action == "keep" for one in actions.values() for action in one.values())
        return cls(
            actions=actions,
            slices={name: columns.get(name, "keep") for name in serve.slices},
            entity=entity,
            salt=salt() if "hash" in (entity, *columns.values()) else b"",
            text=None if kept else json.dumps(actions, separators=(",", ":")),
        )

    def apply(
        self, tensors: Mapping[str, Array], entity: str | None, slices: str
    ) -> tuple[Mapping[str, Array], str | None, str | None]:
        """Return the tensors, the entity and the slices as they may be kept; slices as JSON, None without any.

        slices: as `parse_slices` reads it, or empty. A slice is one text, a hashed column a list of one for each row.
        """
        kept: dict[str, str | list[str]] = {}
        for name, value in parse_slices(slices).items() if slices else ():
            if name in self.slices:
                kept |= self._slice(name, value, self.slices[name])
        if self.actions is not None:
            tensors, hashes = mask(self.actions, tensors, self.salt)
            kept |= hashes
        if entity is not None and self.entity != "keep":
            entity = _digest(self.salt, "entity_id", entity.encode()) if self.entity == "hash" else None
        return tensors, entity, json.dumps(kept) if kept else None

    def _slice(self, name: str, value: str, action: str) -> dict[str, str]:
        kind, *known = action.split()
        if kind == "categories":
            return {name: value if value in known else OTHER}
        if kind == "hash":
            return {name: _digest(self.salt, name, value.encode())}
        return {name: value} if kind == "keep" else {}


def mask_like(text: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return other rows as `Mask.text` leaves a request, without hashes: to hold them against captured ones."""
    masked, _ = mask(json.loads(text), tensors)
    return masked
