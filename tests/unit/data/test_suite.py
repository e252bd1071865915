"""The contract as a Great Expectations suite: what passes, and what a breach says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from people import People, make_config, make_dataset

from homeostat.contract import Contract
from homeostat.data.prepare import prepare
from homeostat.data.profile import Profile
from homeostat.data.suite import check_columns, validate
from homeostat.dataset import Dataset
from homeostat.errors import DataInvalid
from homeostat.records import DatasetRecord, Validation

CONFIG = make_config()


def run(data: Dataset, workspace: Path, champion=None, project=None) -> Validation:
    project = project or People(data)
    return validate(project, CONFIG, prepare(project, CONFIG, workspace, None), workspace, champion)


@pytest.fixture(scope="session")
def contract(tmp_path_factory) -> Contract:
    """Return the contract of good data."""
    folder = tmp_path_factory.mktemp("good")
    return Contract.from_json(Path(run(make_dataset(), folder).contract.path).read_text())


def breaches(data: Dataset, workspace: Path, contract: Contract, project=None) -> tuple[str, ...]:
    with pytest.raises(DataInvalid) as caught:
        run(data, workspace, (3, contract), project)
    return caught.value.breaches


def test_good_data_leave_contract_profile_suite_and_docs(tmp_path: Path):
    result = run(make_dataset(), tmp_path)
    assert result.contract_from == "inferred"
    assert Path(result.contract.path) == tmp_path / "validation" / "contract.json"
    assert Profile.from_json(Path(result.profile.path).read_text()).rows == 110
    suite = json.loads(Path(result.suite.path).read_text())
    assert len(suite["expectations"]) == result.checks
    assert (Path(result.docs) / "index.html").is_file()
    assert run(make_dataset(), tmp_path).suite == result.suite


def test_the_champions_contract_is_applied_and_the_new_one_written(tmp_path: Path, contract: Contract):
    result = run(make_dataset(seed=4), tmp_path, (3, contract))
    assert result.contract_from == "v3"
    assert Path(result.contract.path).read_text() != contract.to_json()


def test_a_range_breach_names_column_rule_counts_and_examples(tmp_path: Path, contract: Contract):
    data = make_dataset()
    data.inputs["body"][:, 1] *= 100  # meters became centimeters
    with pytest.raises(DataInvalid) as caught:
        run(data, tmp_path, (3, contract))
    (line,) = caught.value.breaches
    assert line.startswith("column 'height': expected -0.")
    assert "of 200 rows (train:" in line
    assert line.count(" is ") == 3
    docs = tmp_path / "validation" / "data_docs" / "index.html"
    assert str(docs) in str(caught.value)
    assert docs.is_file()
    assert "data.contract" in str(caught.value)


def test_a_few_rows_out_of_range_are_tolerated(tmp_path: Path, contract: Contract):
    data = make_dataset()
    data.inputs["body"][:5, 1] = 100
    run(data, tmp_path, (3, contract))


def test_a_new_category(tmp_path: Path, contract: Contract):
    data = make_dataset()
    data.inputs["sex"][:40] = 7
    (line,) = breaches(data, tmp_path, contract)
    assert line.startswith("column 'sex': expected one of [0, 1]: 40 of 200 rows (")
    assert " is 7" in line


def test_more_missing_values_than_the_slack(tmp_path: Path, contract: Contract):
    data = make_dataset()
    data.inputs["body"][:60, 0] = np.nan
    (line,) = breaches(data, tmp_path, contract)
    assert line.startswith("column 'age': expected at most 5 % missing: 60 of 200 rows (")


def test_a_class_the_champion_never_saw(tmp_path: Path, contract: Contract):
    target = make_dataset().target.copy()
    target[:8] = 3
    (line,) = breaches(make_dataset(target=target), tmp_path, contract)
    assert line.startswith("column 'target': expected one of [0, 1, 2]: 8 of 200 rows")


def test_missing_and_unknown_columns(tmp_path: Path, contract: Contract):
    data = make_dataset(columns={"body": ["age", "height", "girth"], "sex": ["sex"]})
    found = breaches(data, tmp_path, contract)
    assert "column 'weight': missing" in found
    assert len(found) == 2
    assert "girth" in "".join(found)


def test_too_few_rows(tmp_path: Path, contract: Contract):
    (line,) = breaches(make_dataset(), tmp_path, contract.model_copy(update={"min_rows": 1000}))
    assert "found 200" in line


def test_a_column_of_another_type(tmp_path: Path, contract: Contract):
    class Text(People):
        def to_frame(self, inputs, columns):
            frame = super().to_frame(inputs, columns)
            return frame.assign(age=frame["age"].astype("float64"))

    (line,) = breaches(make_dataset(), tmp_path, contract, Text())
    assert line == "column 'age': expected float32: found float64"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"body": np.ones((200, 3))}, "input 'sex': contract has ('int64', (1,)), data has no such input"),
        (
            {"body": np.ones((200, 2)), "sex": np.ones((200, 1), int)},
            "input 'body': contract has ('float32', (3,)), data has ('float32', (2,))",
        ),
    ],
)
def test_tensors_that_are_not_the_contracts(tmp_path: Path, contract: Contract, inputs, message):
    rng = np.random.default_rng(0)
    inputs = {name: values + rng.integers(0, 50, (200, 1)).astype(values.dtype) for name, values in inputs.items()}
    assert breaches(make_dataset(inputs=inputs, columns={}), tmp_path, contract) == (message,)


@pytest.mark.parametrize(
    ("columns", "line", "remedy"),
    [
        (("age", "weight", "height"), "columns age, weight, height; v3 has {wanted}", "keep the order, with inputs="),
        (("weight", "size", "height"), "age missing; size new; v3 has {wanted}", "give the project a new name"),
    ],
)
def test_other_columns_than_the_champions_or_in_another_order(contract: Contract, columns, line, remedy):
    (body,) = (spec for spec in contract.inputs if spec.name == "body")
    assert body.columns not in ((), columns)
    data = make_dataset()
    check_columns(data, contract, 3)
    with pytest.raises(DataInvalid, match=remedy) as caught:
        check_columns(replace(data, columns={**data.columns, "body": columns}), contract, 3)
    assert caught.value.breaches == (f"input 'body': {line.format(wanted=', '.join(body.columns))}",)


def test_columns_without_names_are_not_compared(contract: Contract):
    check_columns(replace(make_dataset(), columns={}), contract, 3)


def test_expectations_of_the_project(tmp_path: Path):
    class Strict(People):
        def expectations(self):
            from great_expectations import expectations as gxe

            return [
                gxe.ExpectColumnMeanToBeBetween(column="age", min_value=0.9, max_value=1.0),
                gxe.ExpectColumnMeanToBeBetween(column="size", min_value=0.9, max_value=1.0),
            ]

    with pytest.raises(DataInvalid) as caught:
        run(make_dataset(), tmp_path, None, Strict())
    assert "column 'age': expect column mean to be between" in str(caught.value)
    assert any("'size'" in line for line in caught.value.breaches)


def test_drifted_traffic_does_not_break_the_champions_contract(tmp_path: Path, contract: Contract):
    own = make_dataset()
    moved = {"body": own.inputs["body"] + 50, "sex": own.inputs["sex"]}
    project = People(own)
    record = prepare(project, CONFIG, tmp_path, Dataset.from_arrays(moved, own.target))
    result = validate(project, CONFIG, record, tmp_path, (3, contract))
    written = Contract.from_json(Path(result.contract.path).read_text())
    assert written.inputs[0].maximum[0] > 50
    blind: DatasetRecord = replace(record, traffic={})
    with pytest.raises(DataInvalid, match="column 'age'"):
        validate(project, CONFIG, blind, tmp_path, (3, contract))
