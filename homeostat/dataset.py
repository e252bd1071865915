"""Dataset: named numpy inputs with a target, and optional time, ids and slice columns."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from homeostat.errors import DataInvalid
from homeostat.records import Artifact

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]


def _array(part: str, values: Any) -> Array:
    if np.ma.is_masked(values):  # asarray would bring back what the mask hides
        raise DataInvalid(
            f"{part} is a masked array; fill what is missing first, e.g. .astype('float32').filled(np.nan)"
        )
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataInvalid(f"{part} cannot be made an array: {error}") from error


def _to_numbers(column: pd.Series[Any]) -> str:
    """Say how a column becomes numbers that mean the same at each training, and to each client."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column):
        return "make it a number, such as days since a fixed day: (column - pd.Timestamp('2020-01-01')).dt.days"
    known = column.dropna()
    try:
        pd.to_numeric(known)
    except (ValueError, TypeError):
        values = ", ".join(f"{value!r}: {place}" for place, value in enumerate(sorted(map(str, known.unique()))[:3]))
        return f"map its values to numbers that stay the same at each training: .map({{{values}, ...}})"
    return "its text is numbers: pd.to_numeric"


def _as_input(name: str, values: Any) -> Array:
    array = _array(f"input {name!r}", values)
    if array.dtype.kind not in "fiub":
        raise DataInvalid(
            f"input {name!r} has dtype {array.dtype}; a model takes numbers: map text to numbers of your own choice"
        )
    if array.dtype.kind == "f" and array.dtype != np.float16:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf, which the hard checks name
            array = array.astype(np.float32)
    elif array.dtype.kind == "b":
        array = array.astype(np.int64)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _as_target(values: Any) -> Array:
    array = _array("target", values)
    return array.astype(np.int64) if array.dtype.kind == "b" else array


def _as_time(values: Any) -> Array:
    try:
        return np.asarray(values).astype("datetime64[us]")
    except ValueError as error:
        raise DataInvalid(f"time must be datetime64, or text such as 2026-01-31T12:00: {error}") from error


def _as_ids(values: Any) -> Array:
    array = np.asarray(values)
    missing = np.array([v is None or v != v for v in array.ravel().tolist()], dtype=bool)
    if missing.any():
        raise DataInvalid(
            f"ids: {missing.sum()} of {len(missing)} rows have none; every row needs the id of its entity"
        )
    return array.astype(str)


@dataclass(frozen=True)
class Dataset:
    """Rows of one or several named inputs.

    inputs: name -> array [n, ...], float16, float32 or integer (other floats become float32, bool int64).
    target: [n], integer class indices from 0 for classification, float for regression.
    columns: input name -> the names of its columns, for inputs of shape [n, d].
    time: [n] datetime64, for splits by time. ids: [n] str; rows that share an id never
    stand in different parts. slices: name -> [n] values that metrics are broken down by.
    classes: names of the classes, in order of their index.
    """

    inputs: Mapping[str, Array]
    target: Array
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    time: Array | None = None
    ids: Array | None = None
    slices: Mapping[str, Array] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @classmethod
    def from_arrays(
        cls,
        inputs: Mapping[str, Any] | Any,
        target: Any,
        *,
        columns: Mapping[str, Sequence[str]] | None = None,
        time: Any = None,
        ids: Any = None,
        slices: Mapping[str, Any] | None = None,
        classes: Sequence[str] = (),
    ) -> Dataset:
        """Make a dataset from arrays; a single array becomes the input `x`.

        Raises DataInvalid when lengths differ, a dtype is not numeric, or there are no rows.
        """
        named = inputs if isinstance(inputs, Mapping) else {"x": inputs}
        dataset = cls(
            inputs={str(name): _as_input(str(name), values) for name, values in named.items()},
            target=_as_target(target),
            columns={name: tuple(map(str, names)) for name, names in (columns or {}).items()},
            time=None if time is None else _as_time(time),
            ids=None if ids is None else _as_ids(ids),
            slices={name: np.asarray(values).astype(str) for name, values in (slices or {}).items()},
            classes=tuple(map(str, classes)),
        )
        dataset.check()
        return dataset

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        target: str,
        inputs: Mapping[str, Sequence[str]] | None = None,
        time: str | None = None,
        ids: str | None = None,
        slices: Sequence[str] = (),
        classes: Sequence[str] = (),
    ) -> Dataset:
        """Make a dataset from a pandas frame.

        target: column to predict: class numbers 0, 1, ... for a classification, else numbers.
        inputs: name -> columns of a model input of shape [n, len(columns)], in the order in which
        clients will send them; by default every column that has no other part is one of the input `x`.
        time: column of moments, for `data.split = "time"`.
        ids: column that names what a row is about (a patient): its rows stay in one part.
        slices: columns that figures are broken down by; they are no inputs unless named there too.
        classes: names of the classes 0, 1, ..., for reports.

        Raises DataInvalid that names the columns which are missing or not numeric.
        """
        if inputs is None:
            taken = {target, time, ids, *slices}
            inputs = {"x": [c for c in frame.columns if c not in taken]}
        wanted = [target, *(c for c in (time, ids) if c), *slices, *(c for group in inputs.values() for c in group)]
        missing = [str(c) for c in wanted if c not in frame.columns]
        if missing:
            raise DataInvalid(
                f"no such column: {', '.join(missing)}; the frame has {', '.join(map(str, frame.columns))}"
            )
        twice = [str(c) for c in frame.columns[frame.columns.duplicated()] if c in wanted]
        if twice:
            raise DataInvalid(f"the frame has two columns named {', '.join(twice)}; rename one")
        bare = [f"input {name!r} has no columns" for name, group in inputs.items() if not len(group)]
        bare += [f"input {name!r} holds the target {target!r}" for name, group in inputs.items() if target in group]
        if bare:
            raise DataInvalid("the columns cannot be made inputs", bare)
        text = [
            f"column {c!r} has dtype {frame[c].dtype}; {_to_numbers(frame[c])}"
            for group in inputs.values()
            for c in group
            if frame[c].dtype.kind not in "fiub"
        ]
        if text:
            raise DataInvalid("inputs must be numeric", text)
        return cls.from_arrays(
            {name: _matrix(frame, group) for name, group in inputs.items()},
            frame[target].to_numpy(),
            columns=inputs,
            time=None if time is None else _moments(frame[time]),
            ids=None if ids is None else frame[ids].to_numpy(),
            slices={name: frame[name].to_numpy() for name in slices},
            classes=classes,
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.target)

    def check(self) -> None:
        """Raise DataInvalid unless every part has the same number of rows and the columns fit their inputs."""
        if not self.inputs:
            raise DataInvalid("a dataset needs at least one input")
        rows = len(self.target) if self.target.ndim else 0
        breaches = []
        if self.target.ndim != 1:
            breaches.append(f"target has shape {self.target.shape}; it must be one value per row")
        if self.target.dtype.kind not in "fiu":
            breaches.append(f"target has dtype {self.target.dtype}; map classes to integers from 0, without gaps")
        odd = [name for name in self.inputs if not (name.isascii() and name.isidentifier())]
        breaches += [f"{name!r} cannot name an input: use letters, digits and _" for name in odd]
        if rows == 0:
            breaches.append("there are no rows")
        parts: dict[str, Array] = {f"input {name!r}": values for name, values in self.inputs.items()}
        parts |= {f"slice {name!r}": values for name, values in self.slices.items()}
        parts |= {name: values for name, values in (("time", self.time), ("ids", self.ids)) if values is not None}
        for name, values in parts.items():
            if values.ndim == 0 or len(values) != rows:
                breaches.append(f"{name} has shape {values.shape} where the target has {rows} rows")
        for name, names in self.columns.items():
            if name not in self.inputs:
                breaches.append(f"columns names an input {name!r} that is not there: {', '.join(self.inputs)}")
            elif self.inputs[name].shape[1:] != (len(names),):
                breaches.append(f"input {name!r} of shape {self.inputs[name].shape} cannot have {len(names)} columns")
        if breaches:
            raise DataInvalid("the dataset does not hold together", breaches)

    def take(self, rows: Array) -> Dataset:
        """Return the rows at these integer positions (or of this boolean mask), in this order."""
        return Dataset(
            inputs={name: values[rows] for name, values in self.inputs.items()},
            target=self.target[rows],
            columns=self.columns,
            time=None if self.time is None else self.time[rows],
            ids=None if self.ids is None else self.ids[rows],
            slices={name: values[rows] for name, values in self.slices.items()},
            classes=self.classes,
        )

    def join(self, other: Dataset) -> Dataset:
        """Return these rows, then the other's; what the other does not have (time, ids, slices) is empty there."""
        blank = np.full(len(other), "", dtype=str)
        time = other.time if other.time is not None else np.full(len(other), "NaT", dtype="datetime64[us]")
        ids = other.ids if other.ids is not None else blank
        return Dataset(
            inputs={name: np.concatenate([values, other.inputs[name]]) for name, values in self.inputs.items()},
            target=np.concatenate([self.target, other.target]),
            columns=self.columns,
            time=None if self.time is None else np.concatenate([self.time, time]),
            ids=None if self.ids is None else np.concatenate([self.ids, ids]),
            slices={name: np.concatenate([v, other.slices.get(name, blank)]) for name, v in self.slices.items()},
            classes=self.classes,
        )

    def _arrays(self) -> dict[str, Array]:
        arrays: dict[str, Array] = {f"input:{name}": values for name, values in self.inputs.items()}
        arrays |= {f"columns:{name}": np.array(names, dtype=str) for name, names in self.columns.items()}
        arrays |= {f"slice:{name}": values for name, values in self.slices.items()}
        arrays["target"] = self.target
        if self.time is not None:
            arrays["time"] = self.time
        if self.ids is not None:
            arrays["ids"] = self.ids
        if self.classes:
            arrays["classes"] = np.array(self.classes, dtype=str)
        return arrays

    def sha256(self) -> str:
        """Digest of every value, dtype, shape and name; independent of the file it is stored in."""
        digest = hashlib.sha256()
        for name, values in sorted(self._arrays().items()):
            digest.update(f"{name}|{values.dtype.str}|{values.shape}|".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> Artifact:
        """Write one .npz (no pickle), under a temporary name first."""
        buffer = io.BytesIO()
        np.savez(buffer, **self._arrays())  # type: ignore[arg-type]
        return write_artifact(path, buffer.getvalue())

    @classmethod
    def load(cls, artifact: Artifact) -> Dataset:
        """Read what `save` wrote; raises DataInvalid when the bytes are not the recorded ones."""
        data = read_artifact(artifact)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            named = {name: arrays[name] for name in arrays.files}

        def group(prefix: str) -> dict[str, Array]:
            return {name.removeprefix(prefix): v for name, v in named.items() if name.startswith(prefix)}

        return cls(
            inputs=group("input:"),
            target=named["target"],
            columns={name: tuple(map(str, v)) for name, v in group("columns:").items()},
            time=named.get("time"),
            ids=named.get("ids"),
            slices=group("slice:"),
            classes=tuple(map(str, named["classes"])) if "classes" in named else (),
        )


def _matrix(frame: pd.DataFrame, group: Sequence[str]) -> Array:
    """Return [n, len(group)] in one dtype: booleans become integers, what is missing NaN."""
    return np.column_stack([_numbers(frame[name]) for name in group])


def _numbers(column: pd.Series[Any]) -> Array:
    if column.isna().any():
        return column.to_numpy("float64", na_value=np.nan)
    if column.dtype.kind == "b":
        return column.to_numpy("int64")
    plain: Any = getattr(column.dtype, "numpy_dtype", getattr(column.dtype, "subtype", column.dtype))
    return column.to_numpy(plain)


def _moments(column: pd.Series[Any]) -> Array:
    """Return datetime64, in UTC when the column has a time zone."""
    zoned = getattr(column.dtype, "tz", None) is not None
    return (column.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else column).to_numpy()


def write_artifact(path: Path, data: bytes) -> Artifact:
    """Write bytes under a temporary name, rename, and return their record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Artifact(str(path.resolve()), hashlib.sha256(data).hexdigest(), len(data))


def artifact_of(path: Path) -> Artifact:
    """Record a file that is already in its place."""
    data = path.read_bytes()
    return Artifact(str(path.resolve()), hashlib.sha256(data).hexdigest(), len(data))


def read_artifact(artifact: Artifact) -> bytes:
    """Return the bytes of an artifact; raises DataInvalid when they are missing or not the recorded ones."""
    try:
        data = Path(artifact.path).read_bytes()
    except FileNotFoundError as error:
        raise DataInvalid(f"{artifact.path} is gone; run the pipeline again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != artifact.sha256:
        raise DataInvalid(f"{artifact.path} has sha256 {found[:12]}, recorded was {artifact.sha256[:12]}")
    return data
