"""The worked examples: their data pass, their models fit them, and the world they simulate changes."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from homeostat.data.checks import check_dataset
from homeostat.data.profile import frame_of
from homeostat.data.splits import assign_parts
from homeostat.project import load_project

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.parent.name for path in ROOT.glob("projects/*/project.toml"))


@pytest.fixture(params=["breast_cancer", "diabetes", "digits"])
def example(request):
    """Return (module, project, config, data) of one example."""
    project, config = load_project(ROOT / "projects" / request.param / "project.toml", ROOT)
    return importlib.import_module(type(project).__module__), project, config, project.load_data()


def test_all_examples_are_tested():
    assert {"breast_cancer", "diabetes", "digits"} <= set(NAMES)  # and those that a user has added


def test_data_pass_and_entities_are_named(example):
    _, _, config, data = example
    check_dataset(data, config)
    assert data.ids[17] == f"{config.name}-17"
    assert len(set(data.ids)) == len(data)
    parts = assign_parts(data, config.data, config.task, config.train.seed)
    assert min(map(len, parts.values())) >= 40


def test_the_frame_has_a_column_for_what_can_drift(example):
    _, project, config, data = example
    frame = frame_of(project, data)
    columns = {"digits": 16, "breast_cancer": 30, "diabetes": 10}[config.name]
    assert frame.shape == (len(data), columns + 1)
    assert frame.notna().all().all()


def test_slices_cover_every_row(example):
    _, project, _, data = example
    for values in project.slices(data).values():
        assert len(values) == len(data)
        assert min(np.unique(values, return_counts=True)[1]) > 50


def test_the_model_takes_the_datasets_inputs(example):
    _, project, config, data = example
    model = project.build_model(data)
    assert {i.name: tuple(i.shape[1:]) for i in model.inputs} == {n: v.shape[1:] for n, v in data.inputs.items()}
    assert {i.name: i.dtype for i in model.inputs} == {n: v.dtype.name for n, v in data.inputs.items()}
    answers = np.asarray(model({name: values[:7] for name, values in data.inputs.items()}))
    assert answers.shape == (7, {"digits": 10, "breast_cancer": 1, "diabetes": 1}[config.name])
    if config.task == "classification":
        assert answers.min() >= 0
        assert answers.max() <= 1
    assert (config.name != "digits") or 20_000 <= model.count_params() <= 60_000


def test_the_shift_is_seeded_and_leaves_its_input_alone(example):
    module, project, _, data = example
    before = data.sha256()
    moved = module.shift(dict(data.inputs), np.random.default_rng(0))
    again = module.shift(dict(data.inputs), np.random.default_rng(0))
    assert data.sha256() == before
    assert {n: (v.dtype, v.shape) for n, v in moved.items()} == {n: (v.dtype, v.shape) for n, v in data.inputs.items()}
    assert all((moved[name] == again[name]).all() for name in moved)
    frame, shifted = (project.to_frame(inputs, data.columns) for inputs in (data.inputs, moved))
    away = (shifted.mean() - frame.mean()).abs() / frame.std()
    assert (away > 0.5).sum() >= 3
