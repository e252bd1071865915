"""Which row stands in which part: seeded, stratified, random or by time, and never one entity in two parts."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from homeostat.config import DataConfig
from homeostat.data.checks import PARTS
from homeostat.dataset import Array, Dataset, write_artifact
from homeostat.errors import ConfigError, DataInvalid
from homeostat.records import Task

DECILES = 10


def content_keys(data: Dataset) -> Array:
    """Return [n] str, the blake2b-128 of each row's input bytes (names, then values in C order)."""
    seed = "|".join(f"{name}:{values.dtype.str}" for name, values in sorted(data.inputs.items())).encode()
    blocks = [values.reshape(len(data), -1) for _, values in sorted(data.inputs.items())]
    rows = np.hstack([np.ascontiguousarray(block).view(np.uint8) for block in blocks])
    return np.array([hashlib.blake2b(seed + row.tobytes(), digest_size=16).hexdigest() for row in rows], dtype=str)


def row_keys(data: Dataset) -> Array:
    """Return [n] str: the id of each row's entity, or the hash of its content where it has none."""
    if data.ids is None:
        return content_keys(data)
    if (data.ids != "").all():
        return data.ids
    return np.where(data.ids == "", content_keys(data), data.ids)


def part_of_key(key: str, config: DataConfig, seed: int) -> str:
    """Return the part of an entity by its hash alone, so that it stays there whatever else arrives."""
    digest = hashlib.blake2b(f"{seed}|{key}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "little") / 2**64
    for part in ("test", "validation", "calibration"):
        share: float = getattr(config, part)
        if place < share:
            return part
        place -= share
    return "train"


def assign_parts(data: Dataset, config: DataConfig, task: Task, seed: int) -> dict[str, Array]:
    """Return part -> ascending row positions, disjoint and complete.

    Rows that share an id (without ids: exact duplicates) stand in one part, and each part's number
    of entities is within one of its fraction. `stratified` keeps the share of each class (regression: of
    each tenth of the target) by an entity's first row; `time` puts the oldest into train and the
    newest into test, an entity where its first row lies, equal times together. Raises ConfigError
    for a split by time without time, DataInvalid when a part stays empty.
    """
    _, first, group = np.unique(row_keys(data), return_index=True, return_inverse=True)
    if config.split == "time":
        of_group = _by_time(data, group, config)
    else:
        labels = _strata(data.target[first], task) if config.split == "stratified" else None
        of_group = _by_chance(len(first), labels, config, seed)
    parts = {part: np.flatnonzero(of_group[group] == i) for i, part in enumerate(PARTS)}
    empty = [part for part, rows in parts.items() if len(rows) == 0]
    if empty:
        raise DataInvalid(
            f"no row is left for {', '.join(empty)}: {len(data)} rows make {len(first)} separate entities; "
            f"give more rows, or larger shares under [data]"
        )
    return parts


@dataclass(frozen=True)
class Split:
    """A split that was made before: the part of each key, and the seed that new keys are hashed with."""

    part_of: Mapping[str, str]
    seed: int

    def assign(self, data: Dataset, config: DataConfig, path: Path) -> dict[str, Array]:
        """Return part -> ascending row positions: a known key stays in its part, a new one goes by its hash.

        Raises DataInvalid when a part stays empty; `path` is named there as the file to delete.
        """
        keys = row_keys(data).tolist()
        where = np.array([self.part_of.get(key) or part_of_key(key, config, self.seed) for key in keys], dtype=str)
        parts = {part: np.flatnonzero(where == part) for part in PARTS}
        empty = [part for part, rows in parts.items() if len(rows) == 0]
        if empty:
            raise DataInvalid(
                f"no row is left for {', '.join(empty)} by the split kept in {path}; "
                f"delete that file, and the next run splits all rows anew"
            )
        return parts

    def joined(self, data: Dataset, rows: Mapping[str, Array]) -> Split:
        """Return this split with the keys of `data` added; keys whose rows are gone stay."""
        keys = row_keys(data)
        new = {key: part for part, positions in rows.items() for key in keys[positions].tolist()}
        return Split({**new, **self.part_of}, self.seed)

    def save(self, path: Path) -> None:
        """Write one .npz (no pickle), under a temporary name first: key [n] str, part [n] str, seed int64."""
        keys = sorted(self.part_of)
        buffer = io.BytesIO()
        parts = np.array([self.part_of[key] for key in keys], dtype=str)
        np.savez_compressed(buffer, key=np.array(keys, dtype=str), part=parts, seed=np.int64(self.seed))
        write_artifact(path, buffer.getvalue())


def load_split(path: Path, seed: int) -> Split | None:
    """Read what `Split.save` wrote, None without a file; `seed` stands in where the file names none.

    Raises DataInvalid when the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            keys, parts = arrays["key"].astype(str), arrays["part"].astype(str)
            seed = int(arrays["seed"]) if "seed" in arrays.files else seed
        if keys.ndim != 1 or keys.shape != parts.shape or not np.isin(parts, PARTS).all():
            raise ValueError("keys and parts do not fit")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataInvalid(
            f"the split kept in {path} cannot be read: {error}; restore that file, or delete it to split all rows anew"
        ) from error
    return Split(dict(zip(keys.tolist(), parts.tolist(), strict=True)), seed)


def _strata(target: Array, task: Task) -> Array:
    """Return [groups] labels to stratify by."""
    if task == "classification":
        return target
    bins = max(1, min(DECILES, len(target) // 40))
    edges = np.unique(np.quantile(target, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, target, side="right")


def _sizes(groups: int, config: DataConfig) -> Iterator[tuple[int, int]]:
    for part in ("test", "calibration", "validation"):
        yield PARTS.index(part), max(1, round(groups * float(getattr(config, part))))


def _by_chance(groups: int, labels: Array | None, config: DataConfig, seed: int) -> Array:
    """Return [groups] indices into PARTS; one sklearn split after another takes the held-out parts away."""
    from sklearn.model_selection import train_test_split

    if groups < len(PARTS):
        raise DataInvalid(f"{groups} separate entities cannot fill {len(PARTS)} parts; give more rows")
    if labels is not None:
        _stratifiable(labels, groups, config)
    out, rest = np.zeros(groups, dtype=np.int64), np.arange(groups)
    for part, size in _sizes(groups, config):
        strata = None if labels is None else labels[rest]
        rest, taken = train_test_split(rest, test_size=size, random_state=seed, stratify=strata)
        out[taken] = part
    return out


def _stratifiable(labels: Array, groups: int, config: DataConfig) -> None:
    seen, counts = np.unique(labels, return_counts=True)
    breaches = [
        f"class {label} has {count} separate entities; it needs {len(PARTS)}"
        for label, count in zip(seen, counts, strict=True)
        if count < len(PARTS)
    ]
    breaches += [
        f"{PARTS[part]} would hold {size} entities for {len(seen)} classes; raise data.{PARTS[part]}"
        for part, size in _sizes(groups, config)
        if size < len(seen)
    ]
    if breaches:
        raise DataInvalid('the data cannot be stratified; give more rows, or set data.split = "random"', breaches)


def _by_time(data: Dataset, group: Array, config: DataConfig) -> Array:
    """Return [groups] indices into PARTS: where the first row of each block of equal times lies."""
    if data.time is None:
        raise ConfigError('data.split = "time", but load_data gives no time; pass time= to Dataset.from_arrays')
    groups = int(group.max()) + 1
    when = np.full(groups, np.iinfo(np.int64).max)
    np.minimum.at(when, group, data.time.astype(np.int64))
    rows = np.bincount(group, minlength=groups)
    moments, block = np.unique(when, return_inverse=True)
    before = np.cumsum(np.bincount(block, weights=rows, minlength=len(moments)))
    starts = (np.concatenate([[0.0], before[:-1]]) / len(data))[block]
    train = 1 - config.validation - config.calibration - config.test
    edges = np.cumsum([train, config.validation, config.calibration])
    return np.searchsorted(edges, starts + 1e-9, side="right")
