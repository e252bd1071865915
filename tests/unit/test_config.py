"""project.toml: every mistake is named with its file, its key and what is allowed there."""

from pathlib import Path

import pytest

from homeostat.config import ProjectConfig, load_config
from homeostat.errors import ConfigError

HEAD = 'name = "digits"\nproject = "projects.digits.project:Digits"\ntask = "classification"\n'


def load(tmp_path: Path, text: str) -> ProjectConfig:
    path = tmp_path / "project.toml"
    path.write_text(text)
    return load_config(path)


def test_three_keys_are_enough(tmp_path: Path):
    config = load(tmp_path, HEAD)
    assert config.primary == "accuracy"
    assert config.train.epochs == 30
    assert load(tmp_path, HEAD.replace("classification", "regression")).primary == "rmse"
    assert load(tmp_path, HEAD + 'metric = "f1"').primary == "f1"


def test_every_section_can_be_given_and_survives_json(tmp_path: Path):
    config = load(
        tmp_path,
        HEAD
        + """
[data]
split = "time"
[train]
early_stopping = { patience = 3 }
schedule = { kind = "cosine", warmup_epochs = 2 }
[compress]
candidates = ["fp32", "pruned"]
max_latency_ms = 5
[gate]
min_metric = 0.9
""",
    )
    assert config.compress.candidates == ("fp32", "pruned")
    assert config.compress.max_latency_ms == 5.0
    assert config.train.schedule.warmup_epochs == 2.0
    assert ProjectConfig.model_validate_json(config.model_dump_json()) == config
    assert ProjectConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_digest_sees_a_changed_default(tmp_path: Path):
    config = load(tmp_path, HEAD)
    assert load(tmp_path, HEAD + "[train]\nepochs = 30").sha256() == config.sha256()
    assert load(tmp_path, HEAD + "[train]\nepochs = 31").sha256() != config.sha256()


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (HEAD + "[train]\nepoch = 3", ["unknown key 'train.epoch'", "allowed here: epochs, batch_size, optimizer"]),
        (HEAD + "[trian]\nepochs = 3", ["unknown key 'trian'", "allowed here: name, project, task"]),
        (HEAD + "[train.schedule]\nkin = 'cosine'", ["unknown key 'train.schedule.kin'", "allowed here: kind,"]),
        (HEAD + "[train]\nearly_stopping = { patienc = 3 }", ["'train.early_stopping.patienc'", "patience, min_delta"]),
        ("", ["missing key 'name'", "missing key 'project': import string", "missing key 'task': \"classification\""]),
        (
            HEAD + '[train]\nepochs = "3"',
            ["train.epochs: Input should be a valid integer (got '3'; write it without quotes)"],
        ),
        (HEAD + "[train]\nepochs = 3.5", ["train.epochs: Input should be a valid integer"]),
        (HEAD + "[train]\nepochs = true", ["train.epochs: Input should be a valid integer"]),
        (HEAD + "[train]\nepochs = 0", ["train.epochs: Input should be greater than or equal to 1"]),
        (HEAD + "[train]\nlearning_rate = inf", ["train.learning_rate: Input should be a finite number"]),
        (HEAD + "[train]\nlearning_rate = nan", ["train.learning_rate"]),
        (HEAD + '[train]\noptimizer = "adm"', ["train.optimizer: Input should be 'adam', 'adamw', 'sgd' or 'rmsprop'"]),
        (HEAD + "train = 3", ["train: Input should be a valid dictionary", "got 3"]),
        (HEAD + "[train]\nepochs = 2\nschedule = { warmup_epochs = 2 }", ["warmup_epochs 2.0 must be under epochs 2"]),
        (HEAD + "[train]\nseed = 4294967296", ["train.seed: Input should be less than 4294967296"]),
        (HEAD + "[train]\nbatch_size = 99999999999999999999", ["train.batch_size: Input should be less than or equal"]),
        (
            HEAD + "[monitor]\nwindow_hours = 1e300",
            ["monitor.window_hours: Input should be less than or equal to 87600"],
        ),
        (
            HEAD + "[retrain]\ncooldown_minutes = 1e300",
            ["retrain.cooldown_minutes: Input should be less than or equal"],
        ),
        (HEAD + "[retrain]\ntraffic_days = 1e9", ["retrain.traffic_days: Input should be less than or equal to 3650"]),
        (HEAD + "[monitor]\nmin_rows = 200\nmax_rows = 100", ["min_rows 200 is above max_rows 100"]),
        (
            HEAD + "[rollout]\nrollback_min_labels = 200\n[rollout.trial]\nmax_labels = 150",
            ["rollout.rollback_min_labels 200 is above rollout.trial.max_labels 150"],
        ),
        (HEAD + "[data]\ntest = 0.7\nvalidation = 0.2", ["= 1.00 leaves under 20 %"]),
        (HEAD + '[compress]\ncandidates = ["pruned"]', ["candidates must name fp32"]),
        (HEAD + '[compress]\ncandidates = ["fp32", "fp32"]', ["candidates names one twice"]),
        (HEAD + '[compress]\ncandidates = ["fp32", "int4"]', ["compress.candidates.1: Input should be 'fp32'"]),
        (HEAD.replace("digits", "Digits"), ["name: String should match pattern"]),
        (HEAD.replace(":Digits", ""), ["project: String should match pattern"]),
        (HEAD.replace('"classification"', '"ranking"'), ["task: Input should be 'classification' or 'regression'"]),
        ("name = \n", ["not valid TOML", "line 1"]),
    ],
)
def test_mistakes(tmp_path: Path, text: str, messages: list[str]):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for message in [str(tmp_path / "project.toml"), *messages]:
        assert message in str(caught.value)


def test_all_mistakes_come_at_once(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, HEAD + "[train]\nepoch = 3\nbatch_size = 0\n[serve]\nnan = 3")
    assert str(caught.value).count("\n  - ") == 3


def test_no_file_a_folder_and_bytes_that_are_no_text(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file; `homeostat init NAME`"):
        load_config(tmp_path / "project.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "project.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "project.toml")
