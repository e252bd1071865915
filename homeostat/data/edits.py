"""The contract.toml that a team writes beside project.toml: what it says overrides what was inferred."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from homeostat.contract import ColumnSpec, Contract, TensorSpec
from homeostat.errors import ConfigError

FILE = "contract.toml"
Share = Annotated[float, Field(ge=0, le=1)]


class Edit(BaseModel):
    """Nothing but the keys that it declares, of the types that it declares."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ColumnEdit(Edit):
    """What is said of one column; what is not said stays as it was inferred."""

    minimum: float | None = None
    maximum: float | None = None
    null_share: Share | None = None
    categories: Annotated[list[int], Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _a_range(self) -> ColumnEdit:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is above maximum {self.maximum:g}")
        return self


class ContractEdits(Edit):
    """One contract.toml."""

    min_rows: int | None = Field(None, ge=1)
    mostly: Annotated[float, Field(gt=0, le=1)] | None = None
    null_slack: Share | None = None
    columns: dict[str, ColumnEdit] = Field(default_factory=dict)
    target: ColumnEdit | None = None

    def known_to(self, contract: Contract) -> ContractEdits:
        """Return the edits without columns that an older contract does not have."""
        names = {column.name for column in contract.columns}
        return self.model_copy(update={"columns": {n: edit for n, edit in self.columns.items() if n in names}})


def read_edits(path: Path) -> ContractEdits | None:
    """Read a contract.toml, None without one; raises ConfigError with file, key and what is allowed there."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    try:
        return ContractEdits.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}:" + "".join(f"\n  - {line}" for line in _lines(error))) from error


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        key = ".".join(part for part in place if "[" not in part)
        if problem["type"] == "extra_forbidden":
            allowed = ColumnEdit if place[0] in ("columns", "target") else ContractEdits
            lines.append(f"unknown key {key!r}; allowed here: {', '.join(allowed.model_fields)}")
        else:
            lines.append(f"{key or '(file)'}: {problem['msg']} (got {problem['input']!r})")
    return list(dict.fromkeys(lines))


def apply_edits(contract: Contract, edits: ContractEdits, where: str | Path = FILE) -> Contract:
    """Return the contract with what the edits say, at the server's door too, where a column is one of a tensor's.

    Raises ConfigError for a column that the contract does not have, or a range that becomes empty.
    """
    known = [column.name for column in contract.columns]
    unknown = [_unknown(name, known) for name in edits.columns if name not in known]
    if unknown:
        raise ConfigError(f"{where}:" + "".join(f"\n  - {line}" for line in unknown))
    target = contract.target if edits.target is None else _column(contract.target, edits.target, where)
    figures = {name: getattr(edits, name) for name in ("min_rows", "mostly", "null_slack")}
    return contract.model_copy(
        update={name: value for name, value in figures.items() if value is not None}
        | {
            "columns": tuple(
                _column(column, edits.columns[column.name], where) if column.name in edits.columns else column
                for column in contract.columns
            ),
            "inputs": tuple(_tensor(spec, edits) for spec in contract.inputs),
            "target": target,
        }
    )


def _unknown(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 3, 0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
    return f"columns.{name}: the project has no such column; {meant}"


def _column(column: ColumnSpec, edit: ColumnEdit, where: str | Path) -> ColumnSpec:
    # by keys that were written, so that a rule of the inferred contract can be replaced, not only added to
    said = {name: getattr(edit, name) for name in edit.model_fields_set}
    if edit.categories is not None:
        said["categories"] = tuple(edit.categories)
    found = column.model_copy(update=said)
    if edit.categories is None and {"minimum", "maximum"} & edit.model_fields_set:
        found = found.model_copy(update={"categories": None})  # a range in the place of a list
    if found.minimum is not None and found.maximum is not None and found.minimum > found.maximum:
        raise ConfigError(
            f"{where}: column {column.name!r}: minimum {found.minimum:g} is above maximum {found.maximum:g}; "
            "write both, for the other one is what was inferred"
        )
    return found


def _tensor(spec: TensorSpec, edits: ContractEdits) -> TensorSpec:
    names = spec.column_names()
    if not any(name in edits.columns for name in names):
        return spec
    ranges = {"minimum": list(spec.minimum), "maximum": list(spec.maximum)}
    for i, name in enumerate(names):
        edit = edits.columns.get(name)
        if edit is None:
            continue
        bounds = [value for value in edit.categories or () if isinstance(value, int)]
        for side, given, outer in (("minimum", edit.minimum, min), ("maximum", edit.maximum, max)):
            if given is None and bounds:
                given = float(outer(bounds))
            if given is not None:
                ranges[side][i] = given
    return spec.model_copy(update={side: tuple(values) for side, values in ranges.items()})
