"""From a project's rows and labelled traffic to the four parts on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from homeostat.config import ProjectConfig
from homeostat.data.checks import PARTS, check_dataset, rows_at
from homeostat.data.splits import assign_parts, content_keys, part_of_key, row_keys
from homeostat.dataset import Array, Dataset
from homeostat.errors import DataInvalid
from homeostat.project import Project
from homeostat.records import DatasetRecord


def prepare(project: Project, config: ProjectConfig, workspace: Path, traffic: Dataset | None) -> DatasetRecord:
    """Load, check and split the project's rows, add labelled traffic, and save `workspace/parts/PART.npz`.

    The parts of the project's own rows depend on those rows, [data] and train.seed alone. Raises
    DataInvalid with every breach, ConfigError for a split that the data does not allow.
    """
    own = project.load_data()
    if not isinstance(own, Dataset):
        raise DataInvalid(f"load_data of {config.project} returned {type(own).__name__}, not a Dataset")
    own.check()
    check_dataset(own, config)
    rows = assign_parts(own, config.data, config.task, config.train.seed)
    added: Mapping[str, Array] = {part: np.empty(0, dtype=np.int64) for part in PARTS}
    whole = own
    if traffic is not None and len(traffic):
        traffic = fit_traffic(traffic, own, config)
        added = place_traffic(traffic, own, rows, config)
        whole = own.join(traffic)
        check_dataset(replace(whole, time=None), config)  # traffic need not have a time
    parts = {part: whole.take(np.concatenate([rows[part], added[part] + len(own)])) for part in PARTS}
    digests = {part: data.sha256() for part, data in parts.items()}
    return DatasetRecord(
        project=config.name,
        task=config.task,
        sha256=hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        rows={part: len(data) for part, data in parts.items()},
        parts={part: data.save(workspace / "parts" / f"{part}.npz") for part, data in parts.items()},
        sources={"project": len(own), "traffic": sum(len(positions) for positions in added.values())},
        traffic={part: len(positions) for part, positions in added.items()},
    )


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


def place_traffic(traffic: Dataset, own: Dataset, rows: Mapping[str, Array], config: ProjectConfig) -> dict[str, Array]:
    """Return part -> positions of the traffic rows that are used, so that no entity stands in two parts.

    A row whose id, or else whose input content, is in the project's own data goes where that row
    is; any other goes by the hash of its id (content). A row is dropped when its inputs and label
    are there already, or when its id and its content stand in two different parts.
    """
    part_of_row = np.empty(len(own), dtype=object)
    for part, positions in rows.items():
        part_of_row[positions] = part
    contents = content_keys(own).tolist()
    known = dict(zip(contents, part_of_row, strict=True)) | dict(zip(row_keys(own).tolist(), part_of_row, strict=True))
    seen = set(zip(contents, own.target.tolist(), strict=True))
    placed: dict[str, list[int]] = {part: [] for part in PARTS}
    arriving = zip(row_keys(traffic).tolist(), content_keys(traffic).tolist(), traffic.target.tolist(), strict=True)
    for i, (key, content, label) in enumerate(arriving):
        if (content, label) in seen:
            continue
        seen.add((content, label))
        at_home = {known[name] for name in (key, content) if name in known}
        if len(at_home) > 1:
            continue
        known[key] = at_home.pop() if at_home else part_of_key(key, config.data, config.train.seed)
        placed[known[key]].append(i)
    return {part: np.array(positions, dtype=np.int64) for part, positions in placed.items()}
