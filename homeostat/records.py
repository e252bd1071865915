"""The records that pass between stages: frozen, small, JSON-able; a path and a sha256, never a live model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Task = Literal["classification", "regression"]
Mode = Literal["live", "shadow", "canary", "bake"]
VerdictKind = Literal["promote", "hold", "inconclusive", "roll back", "retrain"]


@dataclass(frozen=True)
class Artifact:
    """A file whose content is pinned: absolute path, sha256 (hex) and size in bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Interval:
    """A point estimate with its two-sided confidence interval."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Lineage:
    """Where a model version comes from, all as digests."""

    pipeline_id: str
    dataset_sha256: str
    config_sha256: str
    requirements_sha256: str
    git_commit: str
    git_dirty: bool = False
    parent_version: int | None = None


@dataclass(frozen=True)
class RunRef:
    """One MLflow run, with the local workspace of the pipeline beside it."""

    project: str
    pipeline_id: str
    mlflow_run_id: str
    workspace: str


@dataclass(frozen=True)
class DatasetRecord:
    """A dataset on disk: four parts as .npz, split once."""

    project: str
    task: Task
    sha256: str
    rows: dict[str, int]
    parts: dict[str, Artifact]
    sources: dict[str, int] = field(default_factory=dict)
    """Rows by where they come from: `project` and `traffic`."""
    traffic: dict[str, int] = field(default_factory=dict)
    """Rows of each part that come from traffic: its last ones."""


LeakCheck = Literal["target", "predictor", "duplicates", "entities", "time_order", "later_columns"]


@dataclass(frozen=True)
class Leak:
    """A way in which the answer may reach the model, or the held-out figures, before it should."""

    check: LeakCheck
    where: str
    """The column, or the part of the split."""
    finding: str
    remedy: str
    value: float
    """Share of rows that it concerns; for `predictor` the score of the column, from 0 (a guess) to 1."""
    blocks: bool

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.where}: {self.finding}; {self.remedy}"


@dataclass(frozen=True)
class Leakage:
    """What was looked for between the split and the training, and what was found."""

    leaks: tuple[Leak, ...]
    columns: int
    """Input columns that were held against the target."""
    of_columns: int
    rows: int
    """Training rows, of which the columns were held against a sample where there are many."""
    strongest: str = ""
    """The column that predicts the target best alone; empty when none was scored."""
    strongest_score: float | None = None
    duplicates: dict[str, float] = field(default_factory=dict)
    """Part -> share of its rows whose inputs stand in a training row too."""
    notes: tuple[str, ...] = ()
    """What was not looked for, and why."""


@dataclass(frozen=True)
class Validation:
    """What the data contract says of a dataset that passed it."""

    contract: Artifact
    profile: Artifact
    suite: Artifact
    docs: str
    """Folder of the Great Expectations Data Docs (HTML)."""
    checks: int
    contract_from: str
    """`inferred`, or the version whose contract was applied, such as `v3`; `... with contract.toml`."""
    leakage: Leakage | None = None


@dataclass(frozen=True)
class TrainedModel:
    """A fitted Keras model on disk."""

    keras: Artifact
    epochs: int
    seconds: float
    metrics: dict[str, float]
    parameters: int
    device: str = "CPU"


@dataclass(frozen=True)
class Latency:
    """Time of one ONNX Runtime call, one intra-op thread, in microseconds."""

    batch: int
    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class Candidate:
    """One compressed form of the model, measured as the exported ONNX graph on the validation part."""

    name: str
    onnx: Artifact
    keras: Artifact
    """The Keras model that the graph was exported from (for `pruned`, the fine-tuned one)."""
    metrics: dict[str, float]
    latency: tuple[Latency, ...]
    max_difference: float
    """Largest absolute difference of the outputs from the fp32 graph's on validation rows."""
    batch_invariant: bool
    refused: str = ""
    """Why the budget refuses it; empty when it is eligible."""


@dataclass(frozen=True)
class Compression:
    """The candidates and the one that the budget chose."""

    candidates: tuple[Candidate, ...]
    winner: str
    reason: str
    table: Artifact
    plot: Artifact
    failed: tuple[str, ...] = ()
    """`name: why`, for each candidate that could not be built."""

    @property
    def chosen(self) -> Candidate:
        """The winning candidate."""
        return next(c for c in self.candidates if c.name == self.winner)


@dataclass(frozen=True)
class Gate:
    """One gate that an exported graph has passed."""

    name: str
    detail: str


@dataclass(frozen=True)
class Export:
    """What is kept of a model: the gated ONNX graph, and the formats beside it."""

    onnx: Artifact
    keras: Artifact
    saved_model: str
    """Folder of the TensorFlow SavedModel."""
    candidate: str
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class SliceGain:
    """The gain of one value of a slice, such as `region=north`."""

    name: str
    rows: int
    gain: Interval


@dataclass(frozen=True)
class Comparison:
    """Challenger against champion on the same rows: positive `gain` means that the challenger is better."""

    metric: str
    champion_version: int
    rows: int
    challenger: float
    champion: float
    gain: Interval
    slices: tuple[SliceGain, ...] = ()
    """Of live rows, the values of serve.slices; their intervals are corrected for their number."""


@dataclass(frozen=True)
class Trial:
    """A challenger beside the live version on labelled live rows, which neither has learnt from."""

    version: int
    since: str
    """UTC time (ISO 8601) from which rows count."""
    until: str
    """Time of the look."""
    comparison: Comparison | None
    """None while too few labels have come, or where the rows cannot be answered again."""


@dataclass(frozen=True)
class FoundSlice:
    """Rows on which the model errs more than elsewhere, in rows that did not propose them."""

    words: str
    """The conditions, such as `age >= 61 and bmi <= 22.4`."""
    rows: int
    error: float
    """Share of wrong classes, or mean absolute error."""
    rest: float
    """The same on all other rows."""
    p_value: float
    """Corrected for the number of slices that were tested."""


@dataclass(frozen=True)
class FoundSlices:
    """The slices that were found, the worst first, of so many that were tested; and why there are no more."""

    slices: tuple[FoundSlice, ...]
    tested: int
    reason: str


@dataclass(frozen=True)
class GroupFigures:
    """One group of people."""

    group: str
    rows: int
    labelled: int
    rates: dict[str, Interval] = field(default_factory=dict)
    """error and, of two classes, selection_rate, true_positive_rate and false_positive_rate; no rate of few rows."""


GAP_VERDICTS = {
    "": "",
    "within": ", within gate.max_group_gap",
    "over": ", over gate.max_group_gap",
    "inconclusive": ", too few rows to say whether it is within gate.max_group_gap",
}


@dataclass(frozen=True)
class Gap:
    """How far the two groups that are farthest apart are; the interval holds for all pairs together."""

    metric: str
    """error, demographic_parity or equalized_odds."""
    label: str
    """The class, of more than two."""
    high: str
    low: str
    value: Interval
    verdict: Literal["", "within", "over", "inconclusive"] = ""
    """Against gate.max_group_gap; empty where it sets no limit."""

    def __str__(self) -> str:
        """One line for people, with what the limit says of it."""
        of = f" of class {self.label}" if self.label else ""
        size = f"{self.value.value:.3g} ({self.value.low:.3g} to {self.value.high:.3g})"
        groups = f"between {self.high} and {self.low}"
        return f"{self.metric.replace('_', ' ')}{of}: {size} {groups}{GAP_VERDICTS[self.verdict]}"


@dataclass(frozen=True)
class Fairness:
    """The groups of one sensitive attribute."""

    attribute: str
    groups: tuple[GroupFigures, ...] = ()
    gaps: tuple[Gap, ...] = ()
    notes: tuple[str, ...] = ()
    """What was left out, and why."""


@dataclass(frozen=True)
class LabelIssue:
    """A label that is probably wrong."""

    row: str
    """Part and place in it, with the row's id; in live traffic the request's id and the place in it."""
    given: str
    likely: str
    probability: float
    """Of the class that is likely, by the model."""

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.row}: labelled {self.given}, {self.likely} by {self.probability:.0%}"


@dataclass(frozen=True)
class LabelQuality:
    """Labels held against what the model is usually sure of."""

    rows: int
    issues: int = 0
    share: Interval | None = None
    """Of the labels that are probably wrong; None where labels are not judged."""
    by_class: dict[str, int] = field(default_factory=dict)
    """Given class -> labels that are probably wrong."""
    worst: tuple[LabelIssue, ...] = ()
    reason: str = ""
    """Why labels are not judged, or which are left out."""
    usual: Interval | None = None
    """In live traffic: the share among the rows of the version's reference."""


@dataclass(frozen=True)
class Evaluation:
    """Final figures on the test part."""

    primary: str
    metrics: dict[str, Interval]
    rows: int
    plots: tuple[Artifact, ...]
    comparison: Comparison | None = None
    found_slices: FoundSlices | None = None
    fairness: tuple[Fairness, ...] = ()
    label_quality: LabelQuality | None = None


@dataclass(frozen=True)
class BundleRef:
    """A signed bundle: its URL, the sha256 of its manifest and the sha256 of the ONNX graph in it."""

    model: str
    version: int
    url: str
    manifest_sha256: str
    sha256: str


@dataclass(frozen=True)
class ModelVersion:
    """A version in the MLflow registry and the bundle that was built from it."""

    model: str
    version: int
    mlflow_run_id: str
    bundle: BundleRef


@dataclass(frozen=True)
class Rollout:
    """The rollout row: the truth about who is champion of a model."""

    model: str
    generation: int
    champion: BundleRef | None
    challenger: BundleRef | None
    previous: BundleRef | None
    """The champion before this one: where `rollback` goes."""
    since: str
    """UTC time (ISO 8601) at which the champion became champion."""
    mode: Mode = "live"
    weight: float = 0.0
    """Share of traffic that the version on trial answers: the challenger, or in mode `bake` the champion."""
    step: int = 0
    """Place of `weight` in rollout.steps, in mode `canary`."""
    step_since: str = ""
    """UTC time (ISO 8601) at which the step began, or was resumed."""
    started: int = 0
    """Generation at which the rollout started: its identity through all of its steps; 0 without one."""
    paused: bool = False
    """The step goes on, and its guards can stop the rollout, but nothing advances."""

    @property
    def on_trial(self) -> BundleRef | None:
        """The version whose guards are judged, if there is a rollout."""
        return None if self.mode == "live" else self.champion if self.mode == "bake" else self.challenger


@dataclass(frozen=True)
class Verdict:
    """What a policy decides, why, and on what evidence."""

    kind: VerdictKind
    reasons: tuple[str, ...]
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LedgerEntry:
    """One decision, chained to the one before by `previous_hash`."""

    sequence: int
    time: str
    model: str
    action: str
    actor: str
    reason: str
    generation: int
    version: int | None
    sha256: str | None
    evidence: dict[str, Any]
    previous_hash: str
    hash: str


@dataclass(frozen=True)
class LedgerHead:
    """The last entry of the ledger at some time, 0 and zeros before the first: its number and its hash."""

    sequence: int
    hash: str


@dataclass(frozen=True)
class Deployed:
    """The server has reported that it answers with this version and digest.

    role `quarantined`: its graph is in quarantine, so nothing was moved, and `reason` says why.
    """

    model: str
    version: int
    sha256: str
    generation: int
    seconds: float
    role: Literal["champion", "challenger", "quarantined"]
    reason: str = ""


@dataclass(frozen=True)
class Window:
    """Captured traffic between two times (UTC, ISO 8601), labels joined by request id."""

    model: str
    start: str
    end: str
    rows: int
    labelled: int
    path: str
    """Parquet file of the window; empty when `rows` is 0."""
    found: int = 0
    """Rows captured in the window, before it was sampled down to `rows`."""
    unreadable: int = 0
    """Captured requests or labels that could not be decoded."""


@dataclass(frozen=True)
class ColumnDrift:
    """One column's test: method, p-value and the threshold it was held against."""

    column: str
    method: str
    p_value: float
    threshold: float
    drifted: bool
    log_e: float | None = None
    """Natural logarithm of the evidence against `no change since the version went live`, over all checks."""
    importance: float | None = None
    """Rise of the loss when the column is permuted, measured at training; in units of the loss."""
    severity: float | None = None
    """Size of the change times importance: the largest first is what to look at."""


@dataclass(frozen=True)
class Harm:
    """What the labels that have come say of the live version's loss, overall or on one slice."""

    name: str
    """`all`, or `slice=value`."""
    labels: int
    """Labels counted since the version went live, or since the last alarm."""
    loss: Interval
    """Mean loss, in [0, 1], of this window's mature labels."""
    tolerated: float
    log_e: float
    """Natural logarithm of the detector's statistic."""
    threshold: float
    """Natural logarithm of its average run length without harm, in labels."""
    harmed: bool
    """Whether the detector's alarm stands, or this window's labels alone are worse."""
    since: str = ""
    """UTC time (ISO 8601) at which the harm most likely began; empty without harm."""
    p_value: float | None = None
    """Of this window's labels alone against the reference; None with too few."""
    standing: bool = False
    """Whether the detector's alarm stands: if not, it is this window's labels alone that are worse."""


@dataclass(frozen=True)
class Cohort:
    """The requests answered in one stretch of time, by event time, whenever their labels came."""

    start: str
    end: str
    answered: int
    labelled: int
    mature: bool
    """Whether labels of this stretch have had time to come."""
    metric: Interval | None = None
    """Realized primary metric; None with too few labels."""


@dataclass(frozen=True)
class LabelDelay:
    """How late labels come: seconds between answer and label, of the requests old enough to be labelled."""

    p50: float | None
    p90: float | None
    coverage: float | None
    """Share of the mature rows that have a label."""
    horizon: float
    """Age in seconds at which a row is mature."""


@dataclass(frozen=True)
class Estimate:
    """The primary metric estimated without labels, and its back-test against `no change`."""

    metric: str
    value: float
    shown: bool
    """Whether the back-test beat the constant; otherwise the estimate abstains."""
    error: float | None
    """Mean absolute error over past mature windows."""
    constant_error: float | None
    reason: str


@dataclass(frozen=True)
class Change:
    """A figure of the window beside the same figure of the reference, or of the time before the window."""

    name: str
    """calibration_error, latency_p50_ms, latency_p99_ms, error_rate."""
    before: float | None
    now: float | None
    p_value: float | None
    """Of a test against `no change`; None when there is too little to test."""
    changed: bool
    """Whether it is worse: p-value at its level, and the change large enough to matter."""
    reason: str


@dataclass(frozen=True)
class Violation:
    """A rule of the contract that rows of a window break."""

    column: str
    rule: str
    """absent, new, dtype, null_share, range or categories."""
    rows: int
    share: float
    """Of the window's rows."""
    allowed: float
    """Share that the contract lets pass."""
    broken: bool
    """Whether the share is above what is allowed; otherwise the rows are named for the reader's sake."""
    expected: str
    examples: tuple[tuple[int, Any], ...] = ()
    """Position in the window, and value, of the first few."""

    def __str__(self) -> str:
        """One line for people."""
        seen = ", ".join(f"row {row} is {value}" for row, value in self.examples)
        count = f"{self.rows} rows ({self.share:.1%}, allowed {self.allowed:.1%})" if self.rows else self.rule
        return f"{self.column}: expected {self.expected}: {count}" + (f": {seen}" if seen else "")


@dataclass(frozen=True)
class SkewFinding:
    """One value that serving and the training-side code do not agree on."""

    request_id: str
    row: int
    """In its request."""
    kind: str
    """feature or answer."""
    column: str
    served: Any
    replayed: Any


@dataclass(frozen=True)
class Skew:
    """What replaying logged requests found; `reason` is one sentence for people, also when none could be replayed."""

    requests: int
    rows: int
    skewed: int
    """Requests with a finding."""
    findings: tuple[SkewFinding, ...]
    """The first 20 of them."""
    reason: str
    conclusive: bool = True


@dataclass(frozen=True)
class Outlier:
    """One row of a request that is unlike those that the version knows."""

    request_id: str
    row: int
    """In its request."""
    score: float
    p_value: float
    columns: tuple[str, ...] = ()
    """Its most unusual columns, with value and usual range; empty for tensors."""


@dataclass(frozen=True)
class Outliers:
    """What scoring the rows of a window by themselves found; `reason` is one sentence for people."""

    method: str
    """isolation forest or reconstruction; empty when nothing was scored."""
    rate: float
    """False discovery rate: of the rows named, so many at most are no outliers, on average."""
    scored: int
    of_rows: int
    flagged: int
    least: int
    """Fewer outliers than this among the rows scored may go unnamed, however far out they are."""
    worst: tuple[Outlier, ...]
    """The first 20 of those named, the strangest first."""
    reason: str


Conclusion = Literal["healthy", "drift", "harm", "inconclusive"]


@dataclass(frozen=True)
class Monitoring:
    """What a window of live traffic says about the live version."""

    model: str
    version: int
    window: Window
    drifted: bool
    reason: str
    """Why there is no report, or which columns drifted."""
    columns: tuple[ColumnDrift, ...] = ()
    faults: tuple[str, ...] = ()
    """Columns that are absent, re-typed, or without any value."""
    basis: str = "reference"
    """What the columns were held against, in words."""
    quality: dict[str, Interval] = field(default_factory=dict)
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    reports: tuple[str, ...] = ()
    """Paths of the JSON and HTML reports."""
    predecessor: Comparison | None = None
    """The live version against its predecessor on the same labelled rows."""
    trial: Trial | None = None
    """The challenger against the live version, where labels are to decide between them."""
    notes: tuple[str, ...] = ()
    """What a reader should know that is no drift: unreadable requests, labels that could not be used."""
    conclusion: Conclusion = "inconclusive"
    harm: tuple[Harm, ...] = ()
    """Overall first, then the slices."""
    cohorts: tuple[Cohort, ...] = ()
    delay: LabelDelay | None = None
    estimate: Estimate | None = None
    changes: tuple[Change, ...] = ()
    """Calibration, latency and error rate against before."""
    violations: tuple[Violation, ...] = ()
    """Rules of the version's contract that rows of the window break, the broken ones first."""
    skew: Skew | None = None
    """Requests of the window replayed through the training-side code."""
    outliers: Outliers | None = None
    """Single requests unlike the reference; None when they are not looked for."""
    fairness: tuple[Fairness, ...] = ()
    """Groups of each sensitive attribute among this window's rows."""
    label_quality: LabelQuality | None = None
    """Labels of this window that are probably wrong; None in regression, and without labels."""
