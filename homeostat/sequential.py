"""Anytime-valid tests of randomized arms: evidence that may be looked at after every request, for as long as it takes.

Given that a bad event happened, it came from the candidate with probability
w t / (w t + 1 - w): w is the candidate's share of traffic when the request was assigned, t the
ratio of the arms' rates of bad events. The rates themselves cancel, so that an outage which
hits both arms says nothing against the candidate. A likelihood ratio against the limit of t,
averaged over a grid on one side of it, is a test supermartingale for every t on the other
side (it is monotone in t), whatever the base rate does; so it exceeds 1 / alpha with
probability at most alpha, ever (Ville 1939; Robbins 1970; Ramdas, Grunwald, Vovk & Shafer 2023).

The counts are sufficient: evidence of several processes is the sum of their counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["pass", "fail", "inconclusive"]

ABOVE = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0)
"""Ratios over the limit that the evidence against a candidate is averaged over."""
BELOW = (0.02, 0.1, 0.25, 0.5, 0.67, 0.8, 0.9)
"""Ratios under the limit that the evidence for a candidate is averaged over."""
LARGEST = 1e-12


def log_mean(logs: Sequence[float]) -> float:
    """Return log(mean(exp(logs))); -inf for evidence that is zero everywhere."""
    top = max(logs)
    if math.isinf(top):
        return top
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))


@dataclass
class Tally:
    """Counts of one kind of bad event. `control` and `candidate` are the arms; a sum of tallies is a tally."""

    bad: dict[float, tuple[int, int]] = field(default_factory=dict)
    """Candidate's share of traffic -> bad events of (control, candidate)."""
    trials: tuple[int, int] = (0, 0)
    """Requests of (control, candidate) that could have been bad."""

    def add(self, *, candidate: bool, bad: bool, share: float, trial: bool = True) -> None:
        """Count one request that was assigned when the candidate's share was `share`.

        trial: False for one whose client has been counted as a trial before.
        """
        if trial:
            self.trials = _plus(self.trials, (0, 1) if candidate else (1, 0))
        if bad:
            first, second = self.bad.get(share, (0, 0))
            self.bad[share] = (first + (not candidate), second + candidate)

    def total(self) -> tuple[int, int]:
        """Return the bad events of (control, candidate)."""
        return sum(pair[0] for pair in self.bad.values()), sum(pair[1] for pair in self.bad.values())

    def __add__(self, other: Tally) -> Tally:
        shares = self.bad.keys() | other.bad.keys()
        none = (0, 0)
        bad = {w: _plus(self.bad.get(w, none), other.bad.get(w, none)) for w in shares}
        return Tally(bad, _plus(self.trials, other.trials))

    def to_json(self) -> dict[str, Any]:
        """Return lists and numbers."""
        return {"trials": list(self.trials), "bad": [[w, *pair] for w, pair in sorted(self.bad.items())]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        """Return the tally that `to_json` wrote; raises KeyError, TypeError or ValueError."""
        control, candidate = value["trials"]
        bad = {float(w): (int(first), int(second)) for w, first, second in value["bad"]}
        return cls(bad, (int(control), int(candidate)))


def _plus(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _log_ratio(tally: Tally, limit: float, other: float) -> float:
    """Return the log likelihood ratio of `other` against `limit`, both ratios of rates."""
    total = 0.0
    for share, (control, candidate) in tally.bad.items():
        if not 0 < share < 1:  # one arm alone had traffic: nothing to compare
            continue
        odds = share / (1 - share)
        # p = odds t / (odds t + 1): log p and log(1 - p) differ from the limit's by these
        scale = math.log1p(odds * limit) - math.log1p(odds * other)
        total += candidate * (math.log(other / limit) + scale) + control * scale
    return total


def log_e_worse(tally: Tally, limit: float, starts: Sequence[float] = ()) -> float:
    """Return the log evidence that the ratio candidate / control of the rates exceeds `limit`.

    starts: the planned shares of traffic, rising. The evidence is then the mean over beginning
    anew at each of them, so that a long good step does not outweigh a bad one behind it; what
    begins at a share that has not come yet counts as 1.
    """
    parts = [Tally({w: pair for w, pair in tally.bad.items() if w >= start}) for start in starts] or [tally]
    return log_mean([log_mean([_log_ratio(part, limit, limit * step) for step in ABOVE]) for part in parts])


def log_e_no_worse(tally: Tally, limit: float) -> float:
    """Return the log evidence that the ratio candidate / control of the rates is under `limit`."""
    return log_mean([_log_ratio(tally, limit, limit * step) for step in BELOW])


def _log_rate(bad: int, trials: int, limit: float, other: float) -> float:
    return bad * math.log(other / limit) + (trials - bad) * (math.log1p(-other) - math.log1p(-limit))


def log_e_over(bad: int, trials: int, limit: float) -> float:
    """Return the log evidence that a rate exceeds `limit` (0 < limit < 1), if it was ever to stay at or under it."""
    odds = limit / (1 - limit)
    return log_mean([_log_rate(bad, trials, limit, odds * step / (1 + odds * step)) for step in ABOVE])


def log_e_under(bad: int, trials: int, limit: float) -> float:
    """Return the log evidence that a rate is under `limit` (0 < limit < 1), if it was ever to stay at or over it."""
    return log_mean([_log_rate(bad, trials, limit, limit * step) for step in BELOW])


def upper_bound(bad: int, trials: int, alpha: float) -> float:
    """Return what a rate stays under with probability 1 - alpha, at all times together: an upper confidence sequence.

    The evidence `log_e_under` grows with the limit; the bound is where it reaches 1 / alpha.
    """
    needed = -math.log(alpha)
    low, high = 0.0, 1.0
    if trials == 0 or log_e_under(bad, trials, 1 - LARGEST) < needed:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if 0 < middle < 1 and log_e_under(bad, trials, middle) >= needed:
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True)
class Judgement:
    """What a guard says now, why, and on what figures."""

    outcome: Outcome
    reason: str
    figures: dict[str, float] = field(default_factory=dict)


def describe(tally: Tally) -> str:
    """Return both arms' counts, such as `3 of 40 against 12 of 760`."""
    control, candidate = tally.total()
    return f"{candidate} of {tally.trials[1]} against {control} of {tally.trials[0]}"


def _figures(tally: Tally, alpha: float) -> dict[str, float]:
    control, candidate = tally.total()
    figures = {
        "control": tally.trials[0],
        "candidate": tally.trials[1],
        "bad_control": control,
        "bad_candidate": candidate,
        "upper_bound": upper_bound(candidate, tally.trials[1], alpha),
    }
    return {name: float(value) for name, value in figures.items()}


def judge_arms(
    tally: Tally,
    *,
    max_ratio: float,
    max_rate: float | None,
    alpha: float,
    pass_alpha: float,
    starts: Sequence[float] = (),
) -> Judgement:
    """Judge the candidate against the control: fail over `max_ratio`, pass under it or under `max_rate`.

    The candidate passes when its rate is shown to be under max_ratio times the control's, or
    under max_rate whatever the control's is (so that two arms without any bad event pass).
    alpha: of failing one that is not over max_ratio, ever. pass_alpha: of passing one that is
    over both limits, ever. starts: see `log_e_worse`.
    """
    if not tally.trials[1]:
        return Judgement("inconclusive", "no request of the challenger has been counted", _figures(tally, alpha))
    worse, no_worse = log_e_worse(tally, max_ratio, starts), log_e_no_worse(tally, max_ratio)
    bad = tally.total()[1]
    under = -math.inf if max_rate is None else log_e_under(bad, tally.trials[1], max_rate)
    figures = _figures(tally, pass_alpha / 2) | {"log_e_fail": worse, "log_e_pass": max(no_worse, under)}
    said = describe(tally)
    if worse >= -math.log(alpha):
        return Judgement("fail", f"{said}: more than {max_ratio:g} times as often", figures)
    if under >= -math.log(pass_alpha / 2):
        return Judgement("pass", f"{said}: the rate is under {max_rate:g}", figures)
    if no_worse >= -math.log(pass_alpha / 2):
        return Judgement("pass", f"{said}: less than {max_ratio:g} times as often", figures)
    return Judgement("inconclusive", f"{said}: too little to tell", figures)


def judge_rate(tally: Tally, *, max_rate: float, alpha: float, pass_alpha: float) -> Judgement:
    """Judge one rate, the candidate's: fail over `max_rate`, pass under it."""
    bad, trials = tally.total()[1], tally.trials[1]
    if not trials:
        return Judgement("inconclusive", "nothing has been compared", _figures(tally, alpha))
    over, under = log_e_over(bad, trials, max_rate), log_e_under(bad, trials, max_rate)
    figures = _figures(tally, pass_alpha) | {"log_e_fail": over, "log_e_pass": under}
    if over >= -math.log(alpha):
        return Judgement("fail", f"{bad} of {trials}: the rate is over {max_rate:g}", figures)
    if under >= -math.log(pass_alpha):
        return Judgement("pass", f"{bad} of {trials}: the rate is under {max_rate:g}", figures)
    return Judgement("inconclusive", f"{bad} of {trials}: too little to tell", figures)


def judge_quantiles(
    tallies: Mapping[float, Tally],
    *,
    alpha: float,
    pass_alpha: float,
    starts: Sequence[float] = (),
) -> Judgement:
    """Judge requests over each quantile q of the control: fail on the mean evidence, pass when each passes.

    tallies: q -> counts, where a request is bad when its time (or its error) is over the
    control's quantile q known before it; the candidate's is divided by the ratio allowed to it
    first. The control is over q in 1 - q of its requests, which therefore is the limit too.
    """
    parts = {
        q: judge_arms(tally, max_ratio=1.0, max_rate=1 - q, alpha=alpha, pass_alpha=pass_alpha, starts=starts)
        for q, tally in tallies.items()
    }
    if not parts or any(not tally.trials[1] for tally in tallies.values()):
        return Judgement("inconclusive", "too few requests to know the champion's quantiles")
    logs = [part.figures["log_e_fail"] for part in parts.values()]
    evidence = log_mean(logs)
    figures = {f"p{100 * q:g}_{name}": value for q, part in parts.items() for name, value in part.figures.items()}
    figures |= {"log_e_fail": evidence, "log_e_pass": min(part.figures["log_e_pass"] for part in parts.values())}
    worst = max(parts, key=lambda q: parts[q].figures["log_e_fail"])
    said = f"over the champion's p{100 * worst:g}: {describe(tallies[worst])}"
    if evidence >= -math.log(alpha):
        return Judgement("fail", said, figures)
    if all(part.outcome == "pass" for part in parts.values()):
        return Judgement("pass", said, figures)
    return Judgement("inconclusive", f"{said}: too little to tell", figures)


class Quantiles:
    """A histogram of positive numbers in logarithmic bins of 2 %, for running quantiles; a sum of them is one."""

    WIDTH = math.log(1.02)
    SMALLEST, LAST = 1e-9, 2500

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        """counts: bin -> how many values."""
        self.counts: dict[int, int] = dict(counts or {})
        self.total = sum(self.counts.values())

    def add(self, value: float) -> None:
        """Count a value; 1e-9 and below falls into the first bin, 1e12 and above, Inf and NaN into the last."""
        place = self._place(value)
        self.counts[place] = self.counts.get(place, 0) + 1
        self.total += 1

    def _place(self, value: float) -> int:
        if not value < 1e12:
            return self.LAST
        return int(math.log(max(value, self.SMALLEST) / self.SMALLEST) / self.WIDTH)

    def __add__(self, other: Quantiles) -> Quantiles:
        places = self.counts.keys() | other.counts.keys()
        return Quantiles({place: self.counts.get(place, 0) + other.counts.get(place, 0) for place in places})

    def quantile(self, q: float) -> float:
        """Return the upper edge of the bin that holds quantile q; raises ValueError when nothing was counted."""
        if not self.total:
            raise ValueError("no quantile of nothing")
        wanted, seen = q * self.total, 0
        for place in sorted(self.counts):
            seen += self.counts[place]
            if seen >= wanted:
                break
        return math.inf if place == self.LAST else self.SMALLEST * math.exp((place + 1) * self.WIDTH)
