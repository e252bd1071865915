"""Leakage: what lets the answer reach the model or the held-out figures too early, looked for before training."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from homeostat.config import LeakageConfig, ProjectConfig
from homeostat.data.checks import PARTS
from homeostat.data.leaking_columns import (
    COLUMNS,
    COPY_ROWS,
    count_columns,
    find_copies,
    input_columns,
    sample,
    score_columns,
)
from homeostat.data.moments import later_share, training_rows_after_test
from homeostat.data.splits import content_keys
from homeostat.dataset import Dataset, write_artifact
from homeostat.errors import DataInvalid
from homeostat.records import DatasetRecord, Leak, Leakage, LeakCheck

logger = logging.getLogger(__name__)


def check_leakage(config: ProjectConfig, record: DatasetRecord, workspace: Path) -> Leakage:
    """Look for leakage in the four parts, and write validation/leakage.json.

    Raises DataInvalid that names every leak whose check is set to "block"; the others are logged.
    """
    parts = {part: Dataset.load(record.parts[part]) for part in PARTS}
    own = {part: data.take(np.arange(len(data) - record.traffic.get(part, 0))) for part, data in parts.items()}
    found = find_leakage(config, parts, own)
    write_artifact(workspace / "validation" / "leakage.json", json.dumps(asdict(found), indent=1).encode())
    for leak in found.leaks:
        logger.warning("%s of %s: %s", leak.check, config.name, leak)
    blocking = [leak for leak in found.leaks if leak.blocks]
    if blocking:
        raise DataInvalid(
            f"the data of project {config.name!r} leak, so the figures of a model would be better than its answers; "
            "nothing is trained",
            [f"{leak} (data.leakage.{leak.check})" for leak in blocking],
        )
    return found


def find_leakage(
    config: ProjectConfig, parts: Mapping[str, Dataset], own: Mapping[str, Dataset] | None = None
) -> Leakage:
    """Return the leaks of a split dataset; `own` are the parts without rows of live traffic, by default the same.

    Columns are looked at in the training part alone. The time does not grow with the rows, but
    for the hashes of duplicates, which split and fingerprint take too.
    """
    asked, train, seed = config.data.leakage, parts["train"], config.train.seed
    leaks: list[Leak] = []
    notes: list[str] = []
    total = count_columns(train)
    if total > COLUMNS:
        notes.append(f"{COLUMNS} of {total} columns, drawn by chance, were held against the target")
    copies: dict[str, str] = {}
    if asked.target != "off":
        rows = sample(train, COPY_ROWS, seed)
        copies = find_copies(list(input_columns(rows, seed)), rows.target, config.task)
        leaks += [_copy(asked, name, way) for name, way in copies.items()]
    scores = {} if asked.predictor == "off" else score_columns(train, config.task, seed)
    leaks += [
        _predictor(asked, name, score)
        for name, score in sorted(scores.items(), key=lambda item: -item[1])
        if score >= asked.predictor_score and name not in copies
    ]
    shares: dict[str, float] = {}
    if asked.duplicates != "off":
        for part, (share, leak) in _duplicates(asked, parts).items():
            shares[part] = share
            leaks += [leak] if leak else []
    if asked.entities != "off":
        leaks += _entities(asked, parts)
    leaks += _time(config, train, own or parts, notes)
    notes += [f"{name} is off" for name in LeakageConfig.model_fields if getattr(asked, name) == "off"]
    best = max(scores, key=lambda name: scores[name], default="")
    return Leakage(
        leaks=tuple(leaks),
        columns=min(total, COLUMNS) if scores or asked.target != "off" else 0,
        of_columns=total,
        rows=len(train),
        strongest=best,
        strongest_score=scores.get(best),
        duplicates=shares,
        notes=tuple(notes),
    )


def leakage_metrics(found: Leakage) -> dict[str, float]:
    """Return the figures that MLflow keeps of a run."""
    metrics = {"leaks": float(len(found.leaks))}
    if found.strongest_score is not None:
        metrics["leakage_strongest_column"] = found.strongest_score
    return metrics | {f"leakage_duplicates_{part}": share for part, share in found.duplicates.items()}


def _leak(asked: LeakageConfig, check: LeakCheck, where: str, finding: str, remedy: str, value: float) -> Leak:
    return Leak(check, where, finding, remedy, value, getattr(asked, check) == "block")


def _copy(asked: LeakageConfig, name: str, way: str) -> Leak:
    remedy = "leave it out of the inputs"
    return _leak(asked, "target", name, way, f'{remedy}, or allow it by data.leakage.target = "warn"', 1.0)


def _predictor(asked: LeakageConfig, name: str, score: float) -> Leak:
    finding = f"predicts the target almost alone (score {score:.3f}, named from {asked.predictor_score:g})"
    remedy = (
        "if it is only known after the answer, leave it out of the inputs; "
        'if it is known before, set data.leakage.predictor = "off"'
    )
    return _leak(asked, "predictor", name, finding, remedy, score)


def _duplicates(asked: LeakageConfig, parts: Mapping[str, Dataset]) -> dict[str, tuple[float, Leak | None]]:
    """Return part -> share of its rows whose inputs, byte for byte, are those of a training row, and the leak."""
    train = content_keys(parts["train"]).tolist()
    learned, labelled = set(train), set(zip(train, parts["train"].target.tolist(), strict=True))
    found: dict[str, tuple[float, Leak | None]] = {}
    for part in PARTS[1:]:
        keys, data = content_keys(parts[part]).tolist(), parts[part]
        count = sum(key in learned for key in keys)
        same = sum(pair in labelled for pair in zip(keys, data.target.tolist(), strict=True))
        share = count / max(1, len(data))
        leak = None
        if share > asked.duplicates_share:
            finding = (
                f"{count} of {len(data)} rows ({share:.1%}) have the inputs of a training row, "
                f"{same} of them its target too"
            )
            remedy = (
                "if they are copies, drop them in load_data, or give them one id; if different entities are equal, "
                "raise data.leakage.duplicates_share"
            )
            leak = _leak(asked, "duplicates", f"{part} part", finding, remedy, share)
        found[part] = (share, leak)
    return found


def _entities(asked: LeakageConfig, parts: Mapping[str, Dataset]) -> Iterator[Leak]:
    ids = {part: set(data.ids.tolist()) - {""} for part, data in parts.items() if data.ids is not None}
    for place, part in enumerate(ids):
        for other in list(ids)[:place]:
            shared = sorted(ids[part] & ids[other])
            if shared:
                finding = f"{len(shared)} entities stand in both, such as {', '.join(shared[:3])}"
                remedy = "run the stage prepare again, which splits by id"
                yield _leak(
                    asked, "entities", f"{other} and {part} part", finding, remedy, len(shared) / len(ids[part])
                )


def _time(config: ProjectConfig, train: Dataset, own: Mapping[str, Dataset], notes: list[str]) -> Iterator[Leak]:
    """Yield what travels in time. Live traffic is left out of the order: it is later than the project's rows."""
    asked = config.data.leakage
    if train.time is None:
        notes.append("time travel was not looked for: load_data gives no time")
        return
    if config.data.split != "time":
        notes.append(f'order in time was not looked at: data.split is "{config.data.split}"')
    elif asked.time_order != "off":
        late, oldest = training_rows_after_test(own)
        if late:
            count = len(own["train"])
            finding = f"{late} of {count} rows are later than the oldest test row ({oldest})"
            remedy = (
                "an entity goes where its first row lies, with all later ones: end each entity's rows in load_data "
                "where the test part begins, or leave out ids"
            )
            yield _leak(asked, "time_order", "train part", finding, remedy, late / count)
    if asked.later_columns != "off":
        rows = sample(train, COPY_ROWS, config.train.seed)
        for column in input_columns(rows, config.train.seed):
            share, unit = later_share(column, rows.time) if rows.time is not None else (0.0, "")
            if share:
                finding = f"looks like a moment ({unit}) that is later than the row's own time in {share:.1%} of rows"
                remedy = (
                    "if it is only known by then, leave it out of the inputs; a date known before, such as one that "
                    'is due, is no leak: set data.leakage.later_columns = "off"'
                )
                yield _leak(asked, "later_columns", column.name, finding, remedy, share)
