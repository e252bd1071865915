"""What the guards of a rollout have counted and say: evidence that adds up, a judgement of each, and what follows."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from homeostat.config import GuardName, RolloutConfig
from homeostat.records import Mode, Task
from homeostat.sequential import Judgement, Quantiles, Tally, judge_arms, judge_quantiles, judge_rate

QUANTILES = (0.5, 0.9, 0.99)
KNOWN = 200
"""Values of the control before its quantiles are known well enough to call a request slow."""
PAIRED = 0.5
"""Share of a pair: where the arms differ on one request, each is the bad one equally often if they are alike."""
GUARDS: tuple[GuardName, ...] = get_args(GuardName)


@dataclass(frozen=True)
class Action:
    """What follows from the judgements."""

    kind: Literal["wait", "advance", "pause", "abort"]
    reason: str
    guard: GuardName | None = None


class Evidence:
    """Counts of one phase of one rollout (shadow, canary or bake). Evidence of several processes is their sum."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.latency, self.residual = Quantiles(), Quantiles()
        """Seconds, and absolute errors of a regression, of the control."""
        self.requests = 0
        """Requests that the version on trial has answered or shadowed in this step."""
        self.source_errors = 0
        """Labels and answers that could not be used."""
        self._lock = threading.Lock()

    def count(self, guard: str, *, candidate: bool, bad: bool, share: float, trial: bool = True) -> None:
        """Count one request of one arm."""
        with self._lock:
            self._tally(guard).add(candidate=candidate, bad=bad, share=share, trial=trial)

    def count_pair(self, guard: str, *, control: bool, candidate: bool, trial: bool = True) -> None:
        """Count one request that both arms have answered; only where one alone was bad do they differ."""
        with self._lock:
            tally = self._tally(guard)
            tally.add(candidate=False, bad=control and not candidate, share=PAIRED, trial=trial)
            tally.add(candidate=True, bad=candidate and not control, share=PAIRED, trial=trial)

    def note(self, *, requests: int = 0, source_errors: int = 0) -> None:
        """Count requests of the version on trial, and what could not be used."""
        with self._lock:
            self.requests += requests
            self.source_errors += source_errors

    def observe(self, histogram: Quantiles, value: float) -> None:
        """Note a value of the control in `latency` or `residual`."""
        with self._lock:
            histogram.add(value)

    def thresholds(self, histogram: Quantiles) -> dict[float, float]:
        """Return the control's quantiles of now, for the requests that come; empty while too few are known."""
        with self._lock:
            return {q: histogram.quantile(q) for q in QUANTILES} if histogram.total >= KNOWN else {}

    def _tally(self, guard: str) -> Tally:
        tally = self.tallies.get(guard)
        if tally is None:
            tally = self.tallies[guard] = Tally()
        return tally

    def __add__(self, other: Evidence) -> Evidence:
        total = Evidence()
        for guard in self.tallies.keys() | other.tallies.keys():
            total.tallies[guard] = self.tallies.get(guard, Tally()) + other.tallies.get(guard, Tally())
        total.latency, total.residual = self.latency + other.latency, self.residual + other.residual
        total.requests = self.requests + other.requests
        total.source_errors = self.source_errors + other.source_errors
        return total

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        with self._lock:
            return {
                "tallies": {guard: tally.to_json() for guard, tally in self.tallies.items()},
                "latency": list(self.latency.counts.items()),
                "residual": list(self.residual.counts.items()),
                "requests": self.requests,
                "source_errors": self.source_errors,
            }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evidence:
        """Return the evidence; raises KeyError, TypeError or ValueError when it is damaged."""
        made = cls()
        made.tallies = {str(guard): Tally.from_json(tally) for guard, tally in value["tallies"].items()}
        made.latency = Quantiles({int(place): int(count) for place, count in value["latency"]})
        made.residual = Quantiles({int(place): int(count) for place, count in value["residual"]})
        made.requests, made.source_errors = int(value["requests"]), int(value["source_errors"])
        return made

    def copy(self) -> Evidence:
        """Return the counts of now."""
        return Evidence.from_json(self.to_json())


def part(guard: str, q: float) -> str:
    """Return the name of the tally of one quantile."""
    return f"{guard} p{100 * q:g}"


def active(mode: Mode) -> tuple[GuardName, ...]:
    """Return the guards that a mode can measure: only a shadow answers what the champion has answered."""
    return GUARDS if mode == "shadow" else tuple(guard for guard in GUARDS if guard != "disagreement")


def required(mode: Mode, config: RolloutConfig) -> tuple[GuardName, ...]:
    """Return the guards that must pass in a mode: in a shadow the answers are always compared."""
    wanted = {*config.guards.required, *(("disagreement",) if mode == "shadow" else ())}
    return tuple(guard for guard in active(mode) if guard in wanted)


def level(config: RolloutConfig, mode: Mode) -> float:
    """Return the alpha of each guard: shared over the guards and the phases of the strategy (Bonferroni)."""
    phases = config.strategy.count("+") + 1 + (config.bake_seconds > 0)
    return config.alpha / len(active(mode)) / phases


def judge(evidence: Evidence, config: RolloutConfig, mode: Mode, task: Task) -> dict[GuardName, Judgement]:
    """Judge every guard of a mode on the evidence of now."""
    limits, guards = config.guards, active(mode)
    levels: dict[str, Any] = {"alpha": level(config, mode), "pass_alpha": config.pass_alpha}
    begins: dict[str, Any] = {"starts": config.steps if mode == "canary" else ()}
    tallies = evidence.tallies
    none = Tally()

    def quantiles(guard: str) -> Judgement:
        parts = {q: tallies.get(part(guard, q), none) for q in QUANTILES}
        return judge_quantiles(parts, **levels, **begins)

    def arms(guard: str, ratio: float, rate: float) -> Judgement:
        return judge_arms(tallies.get(guard, none), max_ratio=ratio, max_rate=rate, **levels, **begins)

    found: dict[GuardName, Judgement] = {
        "errors": arms("errors", limits.error_ratio, limits.error_rate),
        "latency": quantiles("latency"),
        "contract": arms("contract", limits.contract_ratio, limits.contract_rate),
        "labels": quantiles("labels")
        if task == "regression"
        else arms("labels", limits.label_ratio, limits.label_rate),
    }
    if "disagreement" in guards:
        found["disagreement"] = judge_rate(
            tallies.get("disagreement", none), max_rate=limits.disagreement_rate, **levels
        )
    return {guard: found[guard] for guard in guards}


def decide(
    judgements: Mapping[GuardName, Judgement],
    config: RolloutConfig,
    mode: Mode,
    *,
    paused: bool,
    requests: int,
    seconds: float,
    source_errors: int,
) -> Action:
    """Return what follows: one failed guard aborts, missing data never passes, and too long without an answer pauses.

    requests, seconds: of the version on trial in this step, and since the step began. A bake
    ends with its time: what it has not found until then is left to monitoring.
    """
    for guard, judgement in judgements.items():
        if judgement.outcome == "fail":
            return Action("abort", f"{guard}: {judgement.reason}", guard)
    if paused:
        return Action("wait", "paused")
    if source_errors > config.max_source_errors:
        return Action("pause", f"{source_errors} labels or answers could not be used as evidence")
    if mode == "bake":
        if seconds >= config.bake_seconds:
            return Action("advance", f"no guard has failed in {seconds:.0f} s after the promotion")
        return Action("wait", f"baking, {config.bake_seconds - seconds:.0f} s to go")
    missing: list[str] = [guard for guard in required(mode, config) if judgements[guard].outcome != "pass"]
    if requests < config.min_requests:
        missing.append(f"{requests} of {config.min_requests} requests")
    if seconds < config.min_seconds:
        return Action("wait", f"{config.min_seconds - seconds:.0f} s to go")
    if not missing:
        reasons = "; ".join(f"{guard}: {judgements[guard].reason}" for guard in required(mode, config))
        return Action("advance", reasons or f"{requests} requests, and no guard has failed")
    if seconds > config.max_seconds:
        return Action("pause", f"inconclusive after {seconds:.0f} s: {', '.join(missing)}")
    return Action("wait", f"waiting for {', '.join(missing)}")


def describe(judgements: Mapping[GuardName, Judgement]) -> dict[str, Any]:
    """Return the judgements as JSON holds them."""
    return {guard: asdict(judgement) for guard, judgement in judgements.items()}
