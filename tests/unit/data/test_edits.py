"""contract.toml beside project.toml."""

import json
from pathlib import Path

import numpy as np
import pytest
from people import People, make_config, make_dataset

from homeostat.contract import Contract
from homeostat.data.contract import infer_contract
from homeostat.data.edits import apply_edits, read_edits
from homeostat.data.prepare import prepare
from homeostat.data.suite import validate
from homeostat.errors import ConfigError, DataInvalid, RequestInvalid


@pytest.fixture(scope="module")
def contract() -> Contract:
    return infer_contract(People(), make_dataset(), make_config())[0]


def edited(tmp_path: Path, contract: Contract, text: str) -> Contract:
    path = tmp_path / "contract.toml"
    path.write_text(text)
    edits = read_edits(path)
    assert edits is not None
    return apply_edits(contract, edits, path)


def test_without_a_file_nothing_is_said(tmp_path: Path):
    assert read_edits(tmp_path / "contract.toml") is None


def test_a_file_overrides_what_was_inferred(tmp_path: Path, contract: Contract):
    found = edited(
        tmp_path,
        contract,
        """
        mostly = 1.0
        min_rows = 7
        [columns.age]
        minimum = 0
        maximum = 0.5
        null_share = 0.25
        [columns.sex]
        categories = [0, 1, 2]
        [target]
        categories = [0, 1, 2, 3]
        """,
    )
    age, sex = found.columns[0], found.columns[3]
    assert (found.mostly, found.min_rows, found.null_slack) == (1.0, 7, contract.null_slack)
    assert (age.minimum, age.maximum, age.null_share) == (0, 0.5, 0.25)
    assert (sex.categories, found.target.categories) == ((0, 1, 2), (0, 1, 2, 3))
    assert found.columns[1:3] == contract.columns[1:3]
    body, door = found.inputs
    assert (body.minimum[0], body.maximum[0], door.maximum) == (0, 0.5, (2,))
    assert body.maximum[1:] == contract.inputs[0].maximum[1:]
    rows = {"body": np.full((1, 3), 0.6, np.float32), "sex": np.ones((1, 1), np.int64)}
    assert contract.check_tensors(rows, out_of_range="reject") == 0
    with pytest.raises(RequestInvalid, match="1 values outside"):
        found.check_tensors(rows, out_of_range="reject")
    assert Contract.from_json(found.to_json()) == found


def test_a_range_takes_the_place_of_a_list(tmp_path: Path, contract: Contract):
    sex = edited(tmp_path, contract, "[columns.sex]\nminimum = 0\nmaximum = 9\n").columns[3]
    assert (sex.categories, sex.maximum) == (None, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[columns.agee]\nminimum = 0\n", r"contract\.toml:\n  - columns\.agee: .* did you mean age\?"),
        ("[columns.zzzzzz]\nminimum = 0\n", r"there are: age, height, weight, sex"),
        ("[columns.age]\nmin = 0\n", r"unknown key 'columns\.age\.min'; allowed here: minimum, maximum, null_share"),
        ("rows = 3\n", r"unknown key 'rows'; allowed here: min_rows, mostly, null_slack, columns, target"),
        ("[columns.age]\nminimum = '0'\n", r"columns\.age\.minimum: Input should be a valid number \(got '0'\)"),
        ("[columns.age]\nminimum = 3\nmaximum = 2\n", r"columns\.age: .*minimum 3 is above maximum 2"),
        ("[columns.age]\nminimum = 1000\n", r"column 'age': minimum 1000 is above maximum 1\.\d+; write both"),
        ("[columns.age]\nnull_share = 2\n", r"less than or equal to 1"),
        ("[columns.age]\nmaximum = inf\n", r"finite number"),
        ("[columns.age]\ncategories = []\n", r"columns\.age\.categories"),
        ("mostly = \n", r"contract\.toml: not valid TOML"),
    ],
)
def test_a_wrong_file_says_where_and_what(tmp_path: Path, contract: Contract, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        edited(tmp_path, contract, text)


def test_training_data_are_held_against_the_file_and_the_next_version_gets_it(tmp_path: Path, contract: Contract):
    path, project, config = tmp_path / "contract.toml", People(), make_config()
    record = prepare(project, config, tmp_path, None)
    path.write_text("[columns.age]\nminimum = 0.0\nmaximum = 1.0\n")
    result = validate(project, config, record, tmp_path, None, path)
    assert result.contract_from == "inferred with contract.toml"
    kept = Contract.from_json(Path(result.contract.path).read_text())
    assert (kept.columns[0].minimum, kept.inputs[0].maximum[0]) == (0, 1)
    assert '"max_value": 1.0' in json.dumps(json.loads(Path(result.suite.path).read_text()))
    path.write_text("[columns.age]\nmaximum = 0.1\n")
    with pytest.raises(
        DataInvalid, match=r"(?s)\(v3 with contract\.toml\).*column 'age': expected -0\.\d+ to 0\.1: \d+ of 200 rows"
    ) as caught:
        validate(project, config, record, tmp_path, (3, contract), path)
    assert len(caught.value.breaches) == 1
