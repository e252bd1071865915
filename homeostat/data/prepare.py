"""From a project's rows and labelled traffic to the four parts on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.data.checks import PARTS, check_dataset, rows_at
from homeostat.data.splits import Split, assign_parts, content_keys, load_split, part_of_key, row_keys
from homeostat.dataset import Array, Dataset
from homeostat.errors import ConfigError, DataInvalid
from homeostat.project import Project
from homeostat.records import DatasetRecord

logger = logging.getLogger(__name__)


def prepare(
    project: Project, config: ProjectConfig, workspace: Path, traffic: Dataset | None, split: Path | None = None
) -> DatasetRecord:
    """Load, check and split the project's rows, add labelled traffic, and save `workspace/parts/PART.npz`.

    The parts of the project's own rows depend on those rows, [data] and train.seed alone, until they
    are kept in the file `split`: from then on a known row keeps its part, and a new one goes by the
    hash of its key, with the seed of the first split. A split by time is always made anew. traffic:
    labelled rows of a retraining, which leaves the project's rows from before retrain.history_days out; None
    without one. Raises DataInvalid with every breach, ConfigError for a split that the data does not allow.
    """
    own = project.load_data()
    if not isinstance(own, Dataset):
        raise DataInvalid(f"load_data of {config.project} returned {type(own).__name__}, not a Dataset")
    own.check()
    check_dataset(own, config)
    recent = np.ones(len(own), bool) if traffic is None else _recent(own, config)
    if config.data.split == "time":
        split = None
        own, recent = own.take(recent), recent[recent]
    kept = None if split is None else load_split(split, config.train.seed)
    if split is None or kept is None:
        rows = assign_parts(own, config.data, config.task, config.train.seed)
        kept = Split({}, config.train.seed)
    else:
        rows = kept.assign(own, config.data, split)
    added: Mapping[str, Array] = {part: np.empty(0, dtype=np.int64) for part in PARTS}
    whole = own
    if traffic is not None and len(traffic):
        traffic = fit_traffic(traffic, own, config)
        added = place_traffic(traffic, own, rows, config, kept.seed)
        whole = own.join(traffic)
        check_dataset(replace(whole, time=None), config)  # traffic need not have a time
    learnt = {part: rows[part][recent[rows[part]]] for part in PARTS}
    parts = {part: whole.take(np.concatenate([learnt[part], added[part] + len(own)])) for part in PARTS}
    empty = [part for part, data in parts.items() if not len(data)]
    if empty:
        raise DataInvalid(
            f"no row of the last retrain.history_days = {config.retrain.history_days:g} days is left for "
            f"{', '.join(empty)}: let it look farther back"
        )
    digests = {part: data.sha256() for part, data in parts.items()}
    saved = {part: data.save(workspace / "parts" / f"{part}.npz") for part, data in parts.items()}
    if split is not None:
        kept.joined(own, rows).save(split)
    return DatasetRecord(
        project=config.name,
        task=config.task,
        sha256=hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        rows={part: len(data) for part, data in parts.items()},
        parts=saved,
        sources={"project": int(recent.sum()), "traffic": sum(len(positions) for positions in added.values())},
        traffic={part: len(positions) for part, positions in added.items()},
    )


def _recent(own: Dataset, config: ProjectConfig) -> Array:
    """Return [n] bool: the rows within retrain.history_days of the newest one; all of them with 0."""
    days = config.retrain.history_days
    if not days:
        return np.ones(len(own), bool)
    if own.time is None:
        raise ConfigError(
            f"retrain.history_days = {days:g} needs the time of each row: give load_data's Dataset a `time`, or set 0"
        )
    ages = (own.time.max() - own.time) / np.timedelta64(1, "D")
    found: Array = ages <= days
    return found


def fit_traffic(traffic: Dataset, own: Dataset, config: ProjectConfig) -> Dataset:
    """Return the traffic in the form of the project's own data; raises DataInvalid where it does not fit."""
    breaches = []
    for name in sorted(own.inputs.keys() | traffic.inputs.keys()):
        wanted, found = own.inputs.get(name), traffic.inputs.get(name)
        if found is None or wanted is None:
            breaches.append(f"input {name!r} is {'missing in the traffic' if found is None else 'not in load_data'}")
        elif (found.dtype, found.shape[1:]) != (wanted.dtype, wanted.shape[1:]):
            breaches.append(
                f"input {name!r}: traffic has {found.dtype} {list(found.shape[1:])} in a row, "
                f"load_data has {wanted.dtype} {list(wanted.shape[1:])}"
            )
    if not np.isfinite(traffic.target).all():
        breaches.append(f"labels: NaN or Inf in {rows_at(~np.isfinite(traffic.target))}")
    elif config.task == "classification" and (traffic.target != np.floor(traffic.target)).any():
        breaches.append(f"labels: not whole numbers in {rows_at(traffic.target != np.floor(traffic.target))}")
    if breaches:
        raise DataInvalid(f"captured traffic does not fit the data of project {config.name!r}", breaches)
    return replace(
        traffic,
        inputs={name: traffic.inputs[name] for name in own.inputs},
        target=traffic.target.astype(own.target.dtype),
        columns=own.columns,
        classes=own.classes,
    )


def place_traffic(
    traffic: Dataset, own: Dataset, rows: Mapping[str, Array], config: ProjectConfig, seed: int
) -> dict[str, Array]:
    """Return part -> positions of the traffic rows that are used; no entity and no content stands in two parts.

    Rows linked by id or content form a group. A row goes where its id or content is in the project's
    own data, else with its group: where that is, or by the hash of the group's smallest id (else content). Left out
    are rows whose id, content and label are there already, rows without id whose content and label
    are in the project's own data, and rows whose id and content stand in two different parts. A
    content that the project's own data hold in several parts links nothing.
    """
    part_of, shared = _own_parts(own, rows)
    ids = [""] * len(traffic) if traffic.ids is None else traffic.ids.tolist()
    contents, labels = content_keys(traffic).tolist(), traffic.target.tolist()
    keys = row_keys(traffic).tolist()
    names = [(k,) if c in shared else (k, c) for k, c in zip(keys, contents, strict=True)]
    group_of = _groups(names, set(ids))
    homes: dict[str, set[str]] = {}
    for name, group in group_of.items():
        homes.setdefault(group, set()).update([part_of[name]] if name in part_of else [])
    seen = _own_rows(own)
    placed: dict[str, list[int]] = {part: [] for part in PARTS}
    crossed = 0
    for i, row in enumerate(zip(ids, contents, labels, strict=True)):
        if row in seen:
            continue
        seen.add(row)
        group = group_of[names[i][0]]
        home = homes[group]
        at = {part_of[name] for name in names[i] if name in part_of}
        if len(at) > 1:
            crossed += 1
            continue
        part = next(iter(at or (home if len(home) == 1 else {part_of_key(group, config.data, seed)})))
        part_of.update(dict.fromkeys(names[i], part))
        placed[part].append(i)
    if crossed:
        logger.warning("%d traffic rows stand in two parts by id and by content: left out", crossed)
    return {part: np.array(positions, dtype=np.int64) for part, positions in placed.items()}


def _own_parts(own: Dataset, rows: Mapping[str, Array]) -> tuple[dict[str, str], set[str]]:
    """Return the part of each id and content of the project's own rows, and the contents in several parts."""
    keys, contents = row_keys(own), content_keys(own)
    found: dict[str, set[str]] = {}
    for part, positions in rows.items():
        for content in contents[positions].tolist():
            found.setdefault(content, set()).add(part)
    shared = {content for content, parts in found.items() if len(parts) > 1}
    part_of = {content: next(iter(parts)) for content, parts in found.items() if len(parts) == 1}
    for part, positions in rows.items():
        part_of.update(dict.fromkeys(keys[positions].tolist(), part))
    return part_of, shared


def _own_rows(own: Dataset) -> set[tuple[str, str, float]]:
    """Return (id, content, label) of each own row, and the same without id."""
    contents, labels = content_keys(own).tolist(), own.target.tolist()
    ids = [""] * len(own) if own.ids is None else own.ids.tolist()
    blank = [""] * len(own)
    return {*zip(ids, contents, labels, strict=True), *zip(blank, contents, labels, strict=True)}


def _groups(names: Sequence[tuple[str, ...]], ids: set[str]) -> dict[str, str]:
    """Return name -> key of its group (smallest id, else content); rows that share a name are one group."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for first, *others in names:
        for other in (first, *others):
            low, high = sorted((root(first), root(other)), key=lambda name: (name not in ids, name))
            parent[high] = low
    return {name: root(name) for name in list(parent)}
