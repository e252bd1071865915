"""How a model answered, as its version's profile keeps it."""

import numpy as np
import pytest

from homeostat.config import ProjectConfig
from homeostat.data.profile import Profile
from homeostat.data.profiler import make_profile
from homeostat.dataset import Dataset
from homeostat.evaluation.metrics import decisions
from homeostat.inference import predict
from homeostat.monitoring.model_profile import profile_model
from tests.unit.monitoring.test_monitor import GOOD, NAMES, Toy, graph, rows


class Sliced(Toy):
    """... with one slice of two values, one of them rare."""

    def slices(self, data):
        return {"side": np.where(np.arange(len(data)) == 7, "left", "right")}


def test_scores_calibration_metrics_and_slices():
    x, y = rows(400, 0)
    config = ProjectConfig(name="toy", project="toy:Toy", task="classification")
    data = Dataset.from_arrays({"x": x}, y, columns={"x": NAMES})
    found = profile_model(Sliced(), config, data, GOOD, 1)
    answered = decisions(predict(GOOD, {"x": x}), "classification")
    assert found.rows == 400
    assert [c.name for c in found.scores] == ["model.prediction", *(f"model.score_{i}" for i in range(3))]
    assert sum(b.rows for b in found.calibration) == 400
    right = sum(b.rows * (b.right or 0) for b in found.calibration) / 400
    assert found.metrics["accuracy"].value == pytest.approx(np.mean(answered == y)) == pytest.approx(right)
    assert found.metrics["accuracy"].low < right < found.metrics["accuracy"].high
    left, rest = found.slices
    assert (left.name, left.rows, left.metrics) == ("side=left", 1, {}), "one row has no interval"
    assert (rest.name, rest.rows) == ("side=right", 399)
    whole = make_profile(Toy().to_frame(data.inputs, data.columns)).with_model(found)
    assert Profile.from_json(whole.to_json()) == whole


def test_regression_and_answers_that_are_not_finite():
    x, _ = rows(100, 1)
    config = ProjectConfig(name="toy", project="toy:Toy", task="regression")
    data = Dataset.from_arrays({"x": x}, x[:, 0].astype(np.float64), columns={"x": NAMES})
    found = profile_model(Toy(), config, data, graph(np.eye(3)[:, :1], "Log"), 1)  # of negative numbers: NaN
    assert (found.calibration, found.metrics) == ((), {})
    assert found.scores[0].null_share > 0.3
