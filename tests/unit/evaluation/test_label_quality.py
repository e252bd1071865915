"""Labels that are probably wrong: how many, which, and when none can be judged."""

import json

import numpy as np
import pytest

from homeostat.dataset import Dataset
from homeostat.evaluation.label_quality import WORST, find_label_issues, labels_of_graph


def answered(n: int, noise: float, seed: int = 0, classes: int = 3):
    """Labels of which a share was changed, the answers of a good model, and which were changed."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    scores = 3 * np.eye(classes)[truth] + rng.normal(size=(n, classes))
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    changed = rng.random(n) < noise
    return np.where(changed, (truth + 1) % classes, truth), chances, changed


def find(target, chances, **options):
    return find_label_issues(target, chances, [f"row {i}" for i in range(len(target))], **options)


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_the_share_of_wrong_labels_is_estimated_and_they_are_found(noise):
    target, chances, changed = answered(3000, noise)
    found = find(target, chances, most=3000)
    assert found.rows == 3000
    assert found.share.value == pytest.approx(noise, abs=0.03)
    named = np.zeros(3000, dtype=bool)
    named[[int(issue.row.split()[1]) for issue in found.worst]] = True
    assert changed[named].mean() > 0.7
    assert named[changed].mean() > 0.7
    assert sum(found.by_class.values()) == found.issues == len(found.worst)


def test_the_most_doubtful_comes_first_with_what_it_probably_is():
    target, chances, _ = answered(500, 0.0)
    target[7], chances[7] = 0, [0.0, 1.0, 0.0]
    found = find(target, chances, classes=("cat", "dog", "cow"))
    assert (found.worst[0].row, found.worst[0].given, found.worst[0].likely) == ("row 7", "cat", "dog")
    assert str(found.worst[0]) == "row 7: labelled cat, dog by 100%"
    assert len(found.worst) <= WORST


def test_of_right_labels_few_are_named():
    assert find(*answered(2000, 0.0)[:2]).share.value < 0.03


def test_one_sigmoid_and_answers_that_are_not_finite():
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 400)
    chances = np.clip(target + rng.normal(0, 0.2, 400), 0.01, 0.99)[:, None]
    chances[3] = np.nan
    target[10:20] = 1 - target[10:20]
    named = {issue.row for issue in find(target, chances).worst}
    assert len(named & {f"row {i}" for i in range(10, 20)}) >= 8


def test_classes_without_rows_are_left_out():
    target, chances, _ = answered(400, 0.1)
    wide = np.hstack([chances, np.zeros((400, 2))])  # class 3 has 3 rows, class 4 none
    found = find(np.append(target, [3, 3, 3]), np.vstack([wide, np.full((3, 5), 0.2)]))
    assert found.rows == 400
    assert found.reason == "3 rows of classes with fewer than 5 are left out"


@pytest.mark.parametrize("rows", [0, 1, 60])
def test_few_rows_or_one_class_are_not_judged(rows):
    found = find(np.zeros(rows, dtype=int), np.full((rows, 2), 0.5))
    assert found.share is None
    assert "100 of two are needed" in found.reason
    assert find(np.zeros(300, dtype=int), np.full((300, 2), 0.5)).share is None


def test_a_graph_judges_the_parts_that_it_was_not_fitted_on(classes, graph, tmp_path):
    data = classes()
    parts = {"validation": data, "test": Dataset.from_arrays(data.inputs, data.target, ids=np.arange(len(data)))}
    found, artifact = labels_of_graph(parts, graph(np.eye(3) * 3), tmp_path)
    assert found.rows == 2 * len(data)
    assert 0.05 < found.share.value < 0.2  # the fixture's rows: mostly the largest column
    written = json.loads((tmp_path / "label_issues.json").read_text())
    assert len(written["worst"]) == found.issues > len(found.worst) == WORST
    assert {issue["row"].split()[0] for issue in written["worst"]} == {"validation", "test"}
    assert any(issue["row"].endswith(")") for issue in written["worst"])
    assert artifact.path.endswith("label_issues.json")
