"""The data contract as a Great Expectations suite; a breach stops the flow and names columns, counts and examples."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from homeostat.config import ProjectConfig
from homeostat.contract import ColumnSpec, Contract
from homeostat.data.checks import EXAMPLES, PARTS
from homeostat.data.contract import infer_contract
from homeostat.data.edits import FILE, apply_edits, read_edits
from homeostat.data.profile import TARGET, frame_of
from homeostat.dataset import Dataset, write_artifact
from homeostat.errors import DataInvalid
from homeostat.project import Project
from homeostat.records import DatasetRecord, Validation

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # it reads this when it is imported
import great_expectations as gx
from great_expectations import expectations as gxe
from great_expectations.data_context.types.base import ProgressBarsConfig

logger = logging.getLogger(__name__)


def validate(
    project: Project,
    config: ProjectConfig,
    record: DatasetRecord,
    workspace: Path,
    champion_contract: tuple[int, Contract] | None,
    edits: Path | None = None,
) -> Validation:
    """Hold the four parts against the contract, and write contract, profile, suite and Data Docs.

    Without a champion every row is held against the contract inferred from the training part.
    With one, its contract is applied: to all rows for what a tensor is, to the project's own rows
    for values (traffic may have drifted; it came in by the champion's door). What is written for the next
    version is the inferred contract. edits: the project's contract.toml, if it has one, overrides both.
    Raises DataInvalid with a line for each breach; the Data Docs are there by then; ConfigError for the edits.
    """
    folder = workspace / "validation"
    parts = {part: Dataset.load(record.parts[part]) for part in PARTS}
    inferred, profile = infer_contract(project, parts["train"], config)
    said = None if edits is None else read_edits(edits)
    if said is not None:
        inferred = apply_edits(inferred, said, edits or "")
    contract, source = inferred, "inferred"
    if champion_contract is not None:
        contract, source = champion_contract[1], f"v{champion_contract[0]}"
        if said is not None:
            contract = apply_edits(contract, said.known_to(contract), edits or "")
        _check_tensors(parts["train"], contract, source)
        parts = {part: data.take(np.arange(len(data) - record.traffic.get(part, 0))) for part, data in parts.items()}
    frame = pd.concat([_labelled(frame_of(project, data), part) for part, data in parts.items()])
    suite = make_suite(contract, project, config)
    docs = folder / "data_docs"
    results = _run(suite, frame, docs)
    written = Validation(
        contract=write_artifact(folder / "contract.json", inferred.to_json().encode()),
        profile=write_artifact(folder / "profile.json", profile.to_json().encode()),
        suite=write_artifact(folder / "suite.json", _suite_json(suite).encode()),
        docs=str(docs.resolve()),
        checks=len(results),
        contract_from=source if said is None else f"{source} with {FILE}",
    )
    breaches = list(_breaches(results, frame))
    if breaches:
        meant = '; if the change is meant, set data.contract = "inferred" in project.toml'
        remedy = ("" if source == "inferred" else meant) + (
            f"; the project's own rules stand in {edits}" if said else ""
        )
        raise DataInvalid(
            f"the data of project {config.name!r} breaks its contract ({written.contract_from}) "
            f"in {len(breaches)} of {len(results)} checks; correct the data, or look at "
            f"{docs.resolve() / 'index.html'}{remedy}",
            breaches,
        )
    logger.info("%d checks of the contract (%s) hold on %d rows", len(results), written.contract_from, len(frame))
    return written


def _labelled(frame: pd.DataFrame, part: str) -> pd.DataFrame:
    """Name each row by its part and position, as breaches quote it: `test:17`."""
    return frame.set_axis(pd.Index([f"{part}:{i}" for i in range(len(frame))]), axis=0)


def check_columns(data: Dataset, contract: Contract, version: int) -> None:
    """Raise DataInvalid unless each input's columns are the champion's, in its order, where both have names.

    A client sends numbers by position: the same columns in another order are other inputs, and a
    champion that is scored on them is scored on nonsense.
    """
    breaches, mend = [], ""
    for spec in contract.inputs:
        mine = tuple(data.columns.get(spec.name, ()))
        if not (mine and spec.columns) or mine == spec.columns:
            continue
        if set(mine) == set(spec.columns):
            mend = "; clients send them by position: keep the order, with inputs= of Dataset.from_frame"
            breaches.append(f"input {spec.name!r}: columns {', '.join(mine)}; v{version} has {', '.join(spec.columns)}")
            continue
        missing = [name for name in spec.columns if name not in mine]
        new = [name for name in mine if name not in spec.columns]
        told = [f"{', '.join(names)} {word}" for names, word in ((missing, "missing"), (new, "new")) if names]
        breaches.append(f"input {spec.name!r}: {'; '.join(told)}; v{version} has {', '.join(spec.columns)}")
        mend = mend or "; a model with other inputs is another model: give the project a new name"
    if breaches:
        raise DataInvalid(f"the columns of the inputs are not those of champion v{version}{mend}", breaches)


def _check_tensors(data: Dataset, contract: Contract, source: str) -> None:
    """Raise DataInvalid unless names, dtypes and shapes are the contract's: without them there is no frame."""
    wanted = {spec.name: (spec.dtype, tuple(spec.shape)) for spec in contract.inputs}
    found = {name: (values.dtype.name, values.shape[1:]) for name, values in data.inputs.items()}
    breaches = [
        f"input {name!r}: contract has {wanted.get(name, 'no such input')}, data has {found.get(name, 'no such input')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if breaches:
        raise DataInvalid(
            f"the model's inputs are not those of the contract of {source}; if the change is meant, set "
            'data.contract = "inferred" in project.toml',
            breaches,
        )


def make_suite(contract: Contract, project: Project, config: ProjectConfig) -> Any:
    """Return the ExpectationSuite of a contract and of the project's own expectations."""
    columns = (*contract.columns, contract.target)
    expectations = [
        gxe.ExpectTableRowCountToBeBetween(min_value=contract.min_rows),
        gxe.ExpectTableColumnsToMatchSet(column_set=[column.name for column in columns]),
    ]
    for column in columns:
        expectations += _column_expectations(column, contract)
    return gx.ExpectationSuite(name=config.name, expectations=[*expectations, *project.expectations()])


def _column_expectations(column: ColumnSpec, contract: Contract) -> Iterator[Any]:
    is_class = column.name == TARGET and column.dtype.startswith(("int", "uint"))
    mostly = 1.0 if is_class else contract.mostly
    filled = 1.0 - column.null_share - contract.null_slack
    if filled > 0:
        yield gxe.ExpectColumnValuesToNotBeNull(column=column.name, mostly=1.0 if column.name == TARGET else filled)
    if column.dtype != "object":
        yield gxe.ExpectColumnValuesToBeOfType(column=column.name, type_=column.dtype)
    if column.categories is not None:
        yield gxe.ExpectColumnValuesToBeInSet(column=column.name, value_set=list(column.categories), mostly=mostly)
    elif column.minimum is not None:
        yield gxe.ExpectColumnValuesToBeBetween(
            column=column.name, min_value=column.minimum, max_value=column.maximum, mostly=mostly
        )


def _run(suite: Any, frame: pd.DataFrame, docs: Path) -> list[dict[str, Any]]:
    """Run the suite on a frame, write Data Docs, and return one plain dictionary for each expectation."""
    if docs.exists():
        shutil.rmtree(docs)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for default in context.get_site_names():
        context.delete_data_docs_site(default)  # it would be built in a temporary folder and stay there
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    site = {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
    context.add_data_docs_site("workspace", site)
    asset = context.data_sources.add_pandas("parts").add_dataframe_asset(suite.name)
    rows = asset.add_batch_definition_whole_dataframe("all rows")
    definition = gx.ValidationDefinition(name=suite.name, data=rows, suite=context.suites.add(suite))
    checkpoint = gx.Checkpoint(
        name=suite.name,
        validation_definitions=[context.validation_definitions.add(definition)],
        actions=[gx.checkpoint.UpdateDataDocsAction(name="data docs")],
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES},
    )
    outcome = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
    (validation,) = outcome.run_results.values()
    return [result.to_json_dict() for result in validation.results]


def _suite_json(suite: Any) -> str:
    """Return the suite without the random ids that Great Expectations gives it."""
    kept = [{k: e[k] for k in ("type", "kwargs", "meta") if k in e} for e in suite.to_json_dict()["expectations"]]
    return json.dumps({"name": suite.name, "expectations": kept}, indent=1, allow_nan=False)


def _breaches(results: list[dict[str, Any]], frame: pd.DataFrame) -> Iterator[str]:
    absent = set()
    for failed in (result for result in results if not result["success"]):
        kind, given = failed["expectation_config"]["type"], failed["expectation_config"]["kwargs"]
        column = given.get("column")
        if column is not None and column not in frame.columns:
            if column not in absent:
                yield f"column {column!r}: missing"
            absent.add(column)
            continue
        place = f"column {column!r}" if column else "table"
        yield f"{place}: {_rule(kind, given)}: {_finding(failed)}"


def _rule(kind: str, given: Mapping[str, Any]) -> str:
    if kind == "expect_column_values_to_be_between" and {"min_value", "max_value"} <= given.keys():
        return f"expected {given['min_value']:g} to {given['max_value']:g}"
    if kind == "expect_column_values_to_be_in_set":
        return f"expected one of {given['value_set']}"
    if kind == "expect_column_values_to_not_be_null":
        return f"expected at most {100 * (1 - given.get('mostly', 1.0)):.3g} % missing"
    if kind == "expect_column_values_to_be_of_type":
        return f"expected {given['type_']}"
    rest = {k: v for k, v in given.items() if k not in ("column", "batch_id")}
    return f"{kind.replace('_', ' ')} {rest}"


def _finding(failed: Mapping[str, Any]) -> str:
    """Return what was seen: the count of bad rows and up to three of them, or the value observed."""
    result = failed["result"]
    if "unexpected_count" in result:
        rows = result.get("partial_unexpected_index_list") or []
        values = result.get("partial_unexpected_list") or []
        examples = ", ".join(
            f"{row} is {value:g}" if isinstance(value, float) else f"{row} is {value}"
            for row, value in zip(rows, values, strict=False)
        )
        return f"{result['unexpected_count']} of {result['element_count']} rows ({examples})"
    if "details" in result and "mismatched" in result["details"]:
        return ", ".join(f"{k} {v}" for k, v in result["details"]["mismatched"].items())
    if "observed_value" in result:
        return f"found {result['observed_value']}"
    raised = failed.get("exception_info") or {}
    details = raised if "exception_message" in raised else next(iter(raised.values()), {})
    return f"could not be checked: {details.get('exception_message')}"
