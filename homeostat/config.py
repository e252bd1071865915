"""project.toml as frozen pydantic; an unknown or missing key is an error that names the allowed ones."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from homeostat.errors import ConfigError
from homeostat.records import Task

Fraction = Annotated[float, Field(gt=0, lt=1)]
MAX_DAYS = 3650
"""The longest time span."""
CandidateName = Literal["fp32", "dynamic_int8", "static_int8", "pruned"]
GuardName = Literal["errors", "latency", "disagreement", "contract", "labels"]
LeakAction = Literal["block", "warn", "off"]
Strategy = Literal["direct", "shadow", "canary", "shadow+canary"]


def check_action(text: str) -> str:
    """Return what is done to a column; raises ValueError that lists what can be."""
    kind, *words = text.split() or ("",)
    if kind == "categories":
        fits = bool(words)
    elif kind in ("step", "edges"):
        numbers = [float(word) for word in words]
        one = len(numbers) == 1 and numbers[0] > 0
        fits = all(map(math.isfinite, numbers)) and (one if kind == "step" else numbers == sorted(set(numbers)) != [])
    else:
        fits = text in ("keep", "drop", "hash")
    if not fits:
        raise ValueError('"keep", "drop", "hash", "step S" (S > 0), "edges A B ..." (rising) or "categories A B ..."')
    return text


Action = Annotated[str, AfterValidator(check_action)]


class Section(BaseModel):
    """A section: frozen, and nothing but the keys it declares, of the types it declares."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LeakageConfig(Section):
    """What is looked for between split and training: "block" stops the flow, "warn" goes on and says so."""

    target: LeakAction = Field("block", description="an input column that holds the target, as it is or recoded")
    predictor: LeakAction = Field("warn", description="an input column that predicts the target almost alone")
    predictor_score: Fraction = Field(
        0.97, description="cross-validated score of one column, from 0 (a guess) to 1 (no error), at which it is named"
    )
    duplicates: LeakAction = Field("warn", description="held-out rows whose inputs stand in a training row too")
    duplicates_share: float = Field(0.01, ge=0, lt=1, description="of a held-out part's rows; more are named")
    entities: LeakAction = Field("block", description="an id in two parts")
    time_order: LeakAction = Field(
        "warn", description='training rows later than the oldest test row, with split = "time"'
    )
    later_columns: LeakAction = Field("warn", description="an input column of moments later than the row's own time")


class DataConfig(Section):
    """How rows are split, and how far new data may leave the contract."""

    split: Literal["stratified", "random", "time"] = Field("stratified", description="how rows are assigned")
    validation: Fraction = Field(0.15, description="share for early stopping and for choosing candidates")
    calibration: Fraction = Field(0.1, description="share for int8 ranges")
    test: Fraction = Field(0.2, description="share for the final figures alone")
    contract: Literal["champion", "inferred"] = Field(
        "champion", description="what new data is held against: the champion's contract, or one inferred anew"
    )
    range_slack: float = Field(0.5, ge=0, description="how far a value may leave the seen range, as a share of it")
    null_slack: Fraction = Field(0.05, description="how much larger a column's null share may become")
    mostly: Fraction = Field(0.95, description="share of rows that must be in range")
    min_rows: int = Field(50, ge=10, description="fewer rows than this stop the flow")
    leakage: LeakageConfig = LeakageConfig()

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> DataConfig:
        held = self.validation + self.calibration + self.test
        if held > 0.8:
            raise ValueError(f"validation + calibration + test = {held:.2f} leaves under 20 % of the rows to train on")
        return self


class Schedule(Section):
    """The learning rate over the epochs."""

    kind: Literal["constant", "exponential", "cosine", "reduce_on_plateau"] = "constant"
    decay_rate: Fraction = Field(0.96, description="exponential: factor per epoch; reduce_on_plateau: factor")
    patience: int = Field(3, ge=1, description="reduce_on_plateau: epochs without improvement")
    min_learning_rate: float = Field(1e-6, gt=0, description="floor of cosine and reduce_on_plateau")
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up from zero, in epochs")


class EarlyStopping(Section):
    """Stop when the validation loss no longer improves, and keep the best weights."""

    patience: int = Field(10, ge=1)
    min_delta: float = Field(0.0, ge=0)


class TrainConfig(Section):
    """How the model is fitted."""

    epochs: int = Field(30, ge=1, le=100_000)
    batch_size: int = Field(64, ge=1, le=1_000_000_000)
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Schedule = Schedule()
    early_stopping: EarlyStopping | None = None
    class_weights: Literal["none", "balanced"] = "none"
    seed: int = Field(1, ge=0, lt=2**32)
    mixed_precision: bool = Field(
        False, description="train in float16; weights, file and graph are float32. A GPU gains by it, a CPU loses"
    )

    @model_validator(mode="after")
    def _warmup_within_epochs(self) -> TrainConfig:
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(f"schedule.warmup_epochs {self.schedule.warmup_epochs} must be under epochs {self.epochs}")
        return self


class CompressConfig(Section):
    """Which candidates are built, and the budget that the winner keeps."""

    # not strict, because TOML has arrays and no tuples
    candidates: tuple[CandidateName, ...] = Field(("fp32", "dynamic_int8", "static_int8", "pruned"), strict=False)
    max_metric_drop: float = Field(0.01, ge=0, description="primary metric on validation, against fp32, in its units")
    max_latency_ratio: float = Field(1.5, gt=0, description="p50 at batch 1 against fp32")
    max_latency_ms: float | None = Field(None, gt=0, description="p99 at batch 1")
    sparsity: Fraction = Field(0.8, description="final share R of pruned weights")
    pruning_epochs: int = Field(8, ge=1, description="fine-tuning epochs while R rises to `sparsity`")
    timing_runs: int = Field(200, ge=20, le=100_000, description="timed calls for each batch size")

    @model_validator(mode="after")
    def _has_fp32(self) -> CompressConfig:
        if "fp32" not in self.candidates:
            raise ValueError("candidates must name fp32: it is what the others are measured against")
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError("candidates names one twice")
        return self


class ExportConfig(Section):
    """The gates that an exported graph must pass."""

    opset: int = Field(17, ge=13, le=18, description="tf2onnx 1.17 goes up to 18")
    tolerance: float = Field(1e-4, gt=0, description="parity with Keras: |a-b| <= tolerance * (1 + |b|), fp32")
    quantized_agreement: Fraction = Field(0.95, description="int8: share of equal classes, or R2 with Keras' answers")


class GateConfig(Section):
    """What a challenger must show on the test part before it may be registered."""

    min_metric: float | None = Field(None, description="primary metric must be at least this (accuracy, r2, ...)")
    max_metric: float | None = Field(None, description="primary metric must be at most this (rmse, mae, ...)")
    sensitive: tuple[str, ...] = Field(
        (),
        max_length=10,
        strict=False,
        description="slices that are groups of people, whose figures are held beside each other",
    )
    max_group_gap: float | None = Field(
        None, gt=0, description="a gap of groups that is certainly larger refuses a version; default: reported only"
    )
    group_gap: Literal["error", "demographic_parity", "equalized_odds"] = Field(
        "error", description="the gap that max_group_gap limits"
    )
    bootstrap: int = Field(1000, ge=200, le=100_000, description="resamples for each interval")
    confidence: Fraction = 0.95


class GuardConfig(Section):
    """What may stop a version on trial; "ratio" compares it with the other arm, "rate" is its own."""

    required: tuple[GuardName, ...] = Field(
        ("errors", "latency"),
        strict=False,
        description="must pass before the next step; every guard with data can fail",
    )
    error_ratio: float = Field(1.5, ge=1, description="errors, timeouts and answers of NaN or Inf: so many times")
    error_rate: Fraction = Field(0.01, description="or under this share of requests, whatever the other arm does")
    latency_ratio: float = Field(1.5, ge=1, description="p50, p90 and p99 may be so many times the champion's")
    latency_floor_ms: float = Field(1.0, ge=0, description="a request is never slow under this")
    timeout_ms: float = Field(1000.0, gt=0, description="then the champion answers instead, and it is an error")
    disagreement_rate: Fraction = Field(0.05, description="shadow: share of requests answered otherwise")
    disagreement_tolerance: float = Field(
        0.1, ge=0, description="regression: |a - b| up to this * (1 + |b|) is the same answer"
    )
    contract_ratio: float = Field(1.5, ge=1, description="requests refused by the contract or out of its range")
    contract_rate: Fraction = Field(0.01, description="or under this share of requests")
    label_ratio: float = Field(1.1, ge=1, description="answers that labels say are wrong: so many times")
    label_rate: Fraction = Field(0.01, description="or under this share of labelled requests")


class TrialConfig(Section):
    """What live labels must say of two versions; gains are of the loss in [0, 1] that harm is measured in."""

    margin: float = Field(
        0.0,
        gt=-1,
        lt=1,
        description="a challenger takes over when it gains certainly more than this; negative: is not that much worse",
    )
    slice_margin: float = Field(
        0.05, ge=0, lt=1, description="and no value of serve.slices certainly loses more than this"
    )
    min_labels: int = Field(100, ge=10, description="labelled rows before they say anything")
    max_labels: int = Field(
        20_000, ge=10, le=1_000_000, description="the first so many labelled rows decide; also in a rollback"
    )
    days: float = Field(
        14.0, ge=0, le=MAX_DAYS, description="then the champion stays; 0: no challenger is tried on live labels"
    )

    @model_validator(mode="after")
    def _can_be_reached(self) -> TrialConfig:
        if self.min_labels > self.max_labels:
            raise ValueError(f"min_labels {self.min_labels} is above max_labels {self.max_labels}: no trial could end")
        return self


class RolloutConfig(Section):
    """When a challenger takes over, and when a champion is taken back; travels with the bundle."""

    margin: float = Field(
        0.0,
        description="test part: the lower end of the paired interval must be above this, in units of the metric; "
        "negative: not that much worse is enough",
    )
    rollback_margin: float = Field(
        0.0, ge=0, lt=1, description="live loss, in [0, 1], that may be lost against the predecessor"
    )
    rollback_min_labels: int = Field(50, ge=10, description="labelled rows before a live comparison says anything")
    timeout_seconds: float = Field(60.0, gt=0, description="how long the server may take to report a version")
    strategy: Strategy = Field("direct", description="how a challenger that beats the champion offline takes over")
    approval_hours: float = Field(
        0.0,
        ge=0,
        le=24 * 365,
        description="a promotion that is decided waits so long for `homeostat approve`; 0: nobody is asked",
    )
    steps: tuple[Fraction, ...] = Field(
        (0.05, 0.25, 0.5),
        min_length=1,
        strict=False,
        description="canary: the challenger's share of traffic, step by step",
    )
    min_requests: int = Field(100, ge=1, description="requests that the version on trial answers in each step")
    min_seconds: float = Field(60.0, ge=0, description="how long a step takes at least")
    max_seconds: float = Field(86_400.0, gt=0, description="then a step that is still inconclusive is paused")
    sticky: Literal["entity", "request"] = Field(
        "entity", description="what keeps its arm: an entity_id where there is one, or each request id alone"
    )
    alpha: Fraction = Field(0.02, description="of stopping a challenger that keeps every limit, however often looked")
    pass_alpha: Fraction = Field(0.05, description="of passing one that is over a limit, for each guard and phase")
    bake_seconds: float = Field(3600.0, ge=0, description="after promotion: how long the guards go on; 0 is not at all")
    bake_share: Fraction = Field(0.05, description="bake: share of traffic that the old version keeps, to compare with")
    max_source_errors: int = Field(100, ge=1, description="evidence that could not be used; more pause the rollout")
    guards: GuardConfig = GuardConfig()
    trial: TrialConfig = TrialConfig()

    @model_validator(mode="after")
    def _steps_rise(self) -> RolloutConfig:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"rollout.steps must rise, such as [0.05, 0.25, 0.5]; they are {list(self.steps)}")
        if "disagreement" in self.guards.required and "shadow" not in self.strategy and self.strategy != "direct":
            raise ValueError('rollout.guards.required names "disagreement", which only a shadow strategy measures')
        return self


class MaskingConfig(Section):
    """What capture keeps of a request; a column that is not named is dropped."""

    columns: dict[str, Action] = Field(
        {}, description='column, or input for all its columns: "keep", "drop", "hash", "step 10", "edges 0 18 65"'
    )
    entity_id: Literal["hash", "drop", "keep"] = Field("hash", description="the id that rows of one entity share")


class ServeConfig(Section):
    """What the server lets in, and keeps of it; travels with the bundle."""

    nan: Literal["reject", "accept"] = Field("reject", description="NaN or Inf in a request")
    out_of_range: Literal["accept", "reject"] = Field("accept", description="a value outside the contract's range")
    max_rows: int = Field(1024, ge=1, description="rows in one request")
    max_batch_rows: int = Field(
        64, ge=1, le=1024, description="rows of requests that are computed together in the inference thread; 1: never"
    )
    batch_wait_ms: float = Field(
        2.0, ge=0, le=1000, description="a batch waits so long for the clients of the one before; a lone request never"
    )
    deadline_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="a request that waits for the inference thread, or is computed there, for longer is answered 504",
    )
    capture: bool = Field(True, description="keep requests and answers for monitoring")
    explain: bool = Field(False, description="answer /v1/explain: what each column adds to an answer")
    slices: tuple[str, ...] = Field((), strict=False, description="slices that clients send, kept with the request")
    masking: MaskingConfig | None = None


class MonitorConfig(Section):
    """How a window of traffic is held against the reference."""

    min_rows: int = Field(100, ge=30, description="a smaller window is not tested")
    max_rows: int = Field(10_000, ge=100, le=1_000_000, description="a larger window is sampled")
    window_hours: float = Field(24.0, gt=0, le=MAX_DAYS * 24)
    numeric_method: Literal["ks", "wasserstein", "psi", "jensenshannon"] = "ks"
    categorical_method: Literal["chisquare", "psi", "jensenshannon"] = "chisquare"
    alpha: Fraction = Field(
        0.01, description="p-value methods: probability of any false alarm of drift in a version's whole life"
    )
    season: Literal["", "hour", "weekday", "hour_of_week"] = Field(
        "",
        description="p-value methods: hold each hour or day against earlier ones of the same; default: the reference",
    )
    timezone: str = Field("UTC", description="of the hours and days of `season`, such as Europe/Berlin")
    min_effect: float = Field(
        0.02, ge=0, le=1, description="p-value methods: distance of distributions under which a change is a trifle"
    )
    distance: float = Field(0.2, gt=0, description="distance methods: a column drifts at or above this")
    outlier_rate: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="of single requests named as outliers, the share that are none; 0: none is looked for",
    )
    reference_rows: int = Field(5_000, ge=100, le=100_000, description="rows of the reference kept with the version")
    harm_run_length: int = Field(
        20_000, ge=100, le=10**9, description="labels to a false alarm of harm, on average and at least"
    )
    harm_tolerance: float = Field(
        0.01, ge=0, lt=1, description="loss, in [0, 1], over the reference's upper 95 % end that is no harm yet"
    )
    harm_metric: str = Field(
        "",
        description="one of the project's metrics, in [0, 1] for each row alone: harm is its fall; "
        "default: classification error, or the absolute error as a share of the reference's 95 % quantile",
    )
    maturity_hours: float | None = Field(
        None,
        gt=0,
        le=MAX_DAYS * 24,
        description="age at which labels have come; default: learnt, 90 % of the delays seen",
    )

    @field_validator("timezone")
    @classmethod
    def _is_a_timezone(cls, name: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(name)
        except (LookupError, ValueError, OSError) as error:
            raise ValueError(f"{name!r:.60} is no time zone; say one like Europe/Berlin, or UTC") from error
        return name

    @model_validator(mode="after")
    def _seasons_have_a_rate(self) -> MonitorConfig:
        if self.season and (self.numeric_method, self.categorical_method) != ("ks", "chisquare"):
            raise ValueError(
                f'season = "{self.season}" needs the methods ks and chisquare: distances hold no error rate'
            )
        return self

    @model_validator(mode="after")
    def _can_be_tested(self) -> MonitorConfig:
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows {self.min_rows} is above max_rows {self.max_rows}: no window would be tested")
        return self


class RetrainConfig(Section):
    """When retraining may start by itself, and on what."""

    automatic: bool = Field(True, description="false: only what is asked for by hand is trained")
    cooldown_minutes: float = Field(
        60.0,
        ge=0,
        le=MAX_DAYS * 24 * 60,
        description="time between two trainings that were not asked for by hand; doubles for each challenger in a row "
        "that did not take over, to 7 days at most",
    )
    max_per_week: int = Field(14, ge=1, le=10_000, description="trainings in 7 days that were not asked for by hand")
    drift_looks: int = Field(1, ge=1, le=100, description="looks with drift that drift retrains after ...")
    drift_of: int = Field(1, ge=1, le=100, description="... among so many last ones")
    min_labelled_rows: int = Field(0, ge=0, description="labelled traffic needed before drift or harm retrains")
    harmless_margin: float = Field(
        0.05, ge=0, le=1, description="drift does not retrain when labels show a loss, in [0, 1], within this"
    )
    traffic_days: float = Field(
        30.0, ge=0, le=MAX_DAYS, description="how far back labelled traffic is learnt from; 0: not at all"
    )
    history_days: float = Field(
        0.0,
        ge=0,
        le=MAX_DAYS,
        description="a retraining leaves out the project's rows that are older than its newest one by more; 0: none",
    )

    @model_validator(mode="after")
    def _can_be_reached(self) -> RetrainConfig:
        if self.drift_looks > self.drift_of:
            raise ValueError(f"drift_looks {self.drift_looks} of drift_of {self.drift_of} looks: drift never retrains")
        return self


class ProjectConfig(Section):
    """One project.toml."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$", description="lower case; names the model everywhere")
    project: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="import string of the class, package.module:Class"
    )
    task: Task = Field(description='"classification" or "regression"')
    metric: str = Field("", description="primary metric; default accuracy or rmse")
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    compress: CompressConfig = CompressConfig()
    export: ExportConfig = ExportConfig()
    gate: GateConfig = GateConfig()
    rollout: RolloutConfig = RolloutConfig()
    serve: ServeConfig = ServeConfig()
    monitor: MonitorConfig = MonitorConfig()
    retrain: RetrainConfig = RetrainConfig()

    @model_validator(mode="after")
    def _can_be_rolled_back(self) -> ProjectConfig:
        most = self.rollout.trial.max_labels
        if self.rollout.rollback_min_labels > most:
            raise ValueError(
                f"rollout.rollback_min_labels {self.rollout.rollback_min_labels} is above rollout.trial.max_labels "
                f"{most}: no live comparison would ever say anything"
            )
        return self

    @property
    def primary(self) -> str:
        """Name of the primary metric."""
        return self.metric or ("accuracy" if self.task == "classification" else "rmse")

    def sha256(self) -> str:
        """Digest of every value, defaults included."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> Mapping[str, FieldInfo]:
    """Return the keys that may stand where the last part of `location` does."""
    annotation: Any = model
    for part in location[:-1]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(part)].annotation
        else:  # a table of sections by name, or a list of them
            annotation = get_args(annotation)[-1 if get_origin(annotation) is dict else 0]
        options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        annotation = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), annotation)
    return annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}


def _problem(model: type[BaseModel], problem: ErrorDetails) -> str:
    location = problem["loc"]
    key = ".".join(str(part) for part in location) or "(file)"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed here: {', '.join(_fields(model, location))}"
    if problem["type"] == "missing":
        field = _fields(model, location).get(str(location[-1]))
        return f"missing key {key!r}: {(field.description if field else None) or ''}"
    quoted = isinstance(problem["input"], str) and problem["type"] in ("int_type", "float_type", "bool_type")
    return f"{key}: {problem['msg']} (got {problem['input']!r}{'; write it without quotes' if quoted else ''})"


Read = TypeVar("Read", bound=BaseModel)


def read_toml(path: Path, model: type[Read], missing: str) -> Read:
    """Return a TOML file as a model; raises ConfigError with the file, the key and what is allowed there.

    missing: what to do when the file is not there.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; {missing}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; name the file in it") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = "".join(f"\n  - {_problem(model, problem)}" for problem in error.errors())
        raise ConfigError(f"{path}:{lines}") from error


def load_config(path: Path) -> ProjectConfig:
    """Read one project.toml; raises ConfigError with the file, the key and what is allowed there."""
    return read_toml(path, ProjectConfig, "`homeostat init NAME` makes a project")
