"""The risk e-detector: whether the loss on late labels has risen above what is tolerated, and since when.

For the means x of blocks of b losses in [0, 1], a tolerated loss m and a bet lambda in (0, 1/m),
R <- (R + b)(1 + lambda (x - m)) is a Shiryaev-Roberts e-detector on the clock of labels: E[R at any
stopping time] <= E[labels until then] as long as each loss, given those counted before it, is expected
to be at most m, however they depend on one another. So is the mean over a grid of bets, and the alarm
at R >= c has an average run length of at least c labels without harm (Shin, Ramdas & Rinaldo 2023,
E-detectors, section 3; the bets on a bounded risk: Podkopaev & Ramdas 2022, Tracking the risk of a
deployed model). Errors that come in runs break the assumption: after one, the next is expected. Blocks
that are long beside the runs restore it nearly, and cost little power.

Beside it the labels of each look are tested by themselves against the reference's, at the level
labels / run length, so that a short rise is not lost: of independent losses that is one false alarm in
a run length, however often one looks. Each of the two has half of config.monitor.harm_run_length.
Where it fails: docs/evidence.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from homeostat.config import MonitorConfig
from homeostat.dataset import Array
from homeostat.records import Harm, Interval

SHARES = (0.05, 0.12, 0.3, 0.7)
"""The bets, as shares of the largest, 1/m: the small ones find a small rise, the large ones a large rise soon."""
BLOCK, MAX_BLOCK = 5, 500
"""Labels of a block: at least, since 5 cost little where losses are independent; at most."""
PER_DEPENDENCE = 5
"""A block is so many times as long as losses depend on one another."""
LEARNT = 1_000
"""First labels of a stream that, after the reference, teach how long that is."""
BATCH, MIN_BATCHES = 50, 20
ALL = "all"
"""Name of the stream of every label."""
CONFIDENCE = 0.95
RELEASE_LABELS, RELEASE_BLOCKS = 300, 5
"""An alarm stands until the mean loss of so many labels and blocks, or of a look of so many labels, is tolerated again:
then the detector begins anew."""
MIN_LOOK, MAX_LEVEL = 30, 0.02
"""Labels of a look that are tested by themselves at least; the highest level of such a test."""
LARGEST = 0.999
"""A tolerated loss is at most this: above, nothing could be harm."""


def mean_interval(losses: Array, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of losses [n] in [0, 1] with its two-sided interval; NaN without any.

    Exact for independent losses of 0 or 1 (Clopper & Pearson 1934); others vary less about the
    same mean, so that theirs is wider than it need be.
    """
    if not len(losses):
        return Interval(math.nan, math.nan, math.nan, confidence)
    tail = (1 - confidence) / 2
    lower = 1 - upper_mean(1 - losses, 1 - tail)
    return Interval(float(losses.mean()), lower, upper_mean(losses, 1 - tail), confidence)


def upper_mean(losses: Array, confidence: float) -> float:
    """Return the upper end of the one-sided interval of the mean of losses [n] in [0, 1]."""
    from scipy.stats import beta

    total, n = float(losses.sum()), len(losses)
    return 1.0 if total >= n else float(beta.ppf(confidence, total + 1, n - total))


def dependence(losses: Array) -> float:
    """Return for how many labels a loss depends on the ones before, at least 1, by batch means.

    That is the integrated autocorrelation time, 1 + 2 (rho_1 + rho_2 + ...): the variance of the
    mean of a batch against that of independent losses (Flegal & Jones 2010). losses: [n] in order;
    1 with fewer than 1,000.
    """
    batches = len(losses) // BATCH
    spread = float(losses.var()) if batches >= MIN_BATCHES else 0.0
    if not spread:
        return 1.0
    means = losses[: batches * BATCH].reshape(batches, BATCH).mean(axis=1)
    return max(1.0, BATCH * float(means.var(ddof=1)) / spread)


def block_length(losses: Array) -> int:
    """Return the labels of a block that these losses [n], in order, ask for."""
    return min(MAX_BLOCK, max(BLOCK, math.ceil(PER_DEPENDENCE * dependence(losses))))


@dataclass(frozen=True)
class Stream:
    """What has been counted of one stream of labels: all of them, or those of a slice."""

    name: str
    """`all`, or `slice=value`."""
    tolerated: float
    threshold: float
    """Logarithm of the run length, in labels."""
    reference: tuple[float, float, float]
    """Number, mean and variance of the reference's losses."""
    block: int = BLOCK
    labels: int = 0
    first: tuple[float, ...] = ()
    """The first losses, until they have taught the length of a block."""
    waiting: tuple[float, ...] = ()
    """Losses of a block that is not full yet."""
    waiting_since: float = 0.0
    """Event time of the first of them."""
    log_r1: tuple[float, ...] = (0.0,) * len(SHARES)
    """log(R + 1) of each bet."""
    log_run: tuple[float, ...] = (0.0,) * len(SHARES)
    """Of each bet, the log of the largest product of factors that ends with the last block: Page's CUSUM."""
    starts: tuple[float, ...] = (0.0,) * len(SHARES)
    """Event time, unix seconds, at which that product begins: the most likely start of the harm."""
    alarm: float | None = None
    """Event time, unix seconds, of the label that raised the last alarm; kept until `restart`."""
    since: float | None = None
    """Most likely start of the harm, event time, as it was seen at that alarm."""
    standing: bool = False
    """Whether the alarm stands: it was raised, and the loss has not been tolerable since."""
    recent: tuple[float, float] = (0.0, 0.0)
    """Blocks counted since the alarm, or since it was last asked whether it is over, and the sum of their means."""

    @property
    def log_e(self) -> float:
        """Logarithm of the statistic, the mean of R over the bets; 0 while it is under 1."""
        return max(0.0, _log_mean(_log_r(np.array(self.log_r1))))


def _log_r(log_r1: Array) -> Array:
    with np.errstate(divide="ignore"):
        return log_r1 + np.log(-np.expm1(-log_r1))


def _log_mean(logs: Array) -> float:
    top = float(logs.max())
    if math.isinf(top):
        return top
    return top + math.log(float(np.exp(logs - top).mean()))


def follow(stream: Stream, losses: Array, times: Array) -> Stream:
    """Count losses [n] in [0, 1] with their event times [n], in this order."""
    if stream.standing and len(losses) >= RELEASE_LABELS and losses.mean() <= stream.tolerated:
        nothing = (0.0,) * len(SHARES)
        stream = replace(stream, standing=False, log_r1=nothing, log_run=nothing, recent=(0.0, 0.0))
    until = LEARNT - stream.labels
    if 0 < until < len(losses):  # the length of a block may change there
        return follow(follow(stream, losses[:until], times[:until]), losses[until:], times[until:])
    given = np.concatenate([stream.waiting, losses])
    moments = np.concatenate([np.full(len(stream.waiting), stream.waiting_since), times])
    blocks = len(given) // stream.block
    whole = blocks * stream.block
    means = given[:whole].reshape(blocks, stream.block).mean(axis=1)
    followed = _follow_blocks(
        stream, means, moments[: whole : stream.block], moments[stream.block - 1 : whole : stream.block]
    )
    labels = stream.labels + len(losses)
    first = (*stream.first, *losses.tolist()) if labels <= LEARNT else ()
    block = stream.block
    if labels == LEARNT and len(losses):
        block, first = max(block, block_length(np.array(first))), ()
    return replace(
        followed,
        labels=labels,
        block=block,
        first=first,
        waiting=tuple(given[whole:].tolist()),
        waiting_since=float(moments[whole]) if whole < len(moments) else 0.0,
    )


def _follow_blocks(stream: Stream, means: Array, starting: Array, ending: Array) -> Stream:
    """Count the mean losses of whole blocks, with the event times [blocks] of their first and last labels."""
    if not len(means):
        return stream
    factors = np.log1p(np.array(SHARES) * (means[:, None] / stream.tolerated - 1))
    more = math.log(stream.block - 1)
    enough = max(RELEASE_BLOCKS, math.ceil(RELEASE_LABELS / stream.block))
    log_r1, run, starts = np.array(stream.log_r1), np.array(stream.log_run), np.array(stream.starts)
    alarm, since, standing, (blocks, total) = stream.alarm, stream.since, stream.standing, stream.recent
    for mean, factor, start, end in zip(means.tolist(), factors, starting.tolist(), ending.tolist(), strict=True):
        starts[run <= 0] = start
        run = np.maximum(run, 0) + factor
        log_r = np.logaddexp(log_r1, more) + factor
        log_r1 = np.logaddexp(log_r, 0)
        blocks, total = blocks + 1, total + mean
        if not standing and _log_mean(log_r) >= stream.threshold:
            alarm, since, standing, blocks, total = end, float(starts[run.argmax()]), True, 0.0, 0.0
        elif standing and blocks >= enough:
            if total / blocks <= stream.tolerated:
                standing, log_r1, run = False, np.zeros_like(log_r1), np.zeros_like(run)
            blocks, total = 0.0, 0.0
    return replace(
        stream,
        log_r1=tuple(log_r1.tolist()),
        log_run=tuple(run.tolist()),
        starts=tuple(starts.tolist()),
        alarm=alarm,
        since=since,
        standing=standing,
        recent=(blocks, total),
    )


def restart(stream: Stream) -> Stream:
    """Forget what has been counted, and the alarm; the length of a block stays."""
    return Stream(stream.name, stream.tolerated, stream.threshold, stream.reference, stream.block)


def make_streams(
    losses: Array, slices: Mapping[str, Array], config: MonitorConfig, *, in_time: bool = False
) -> tuple[Stream, ...]:
    """Return a stream of all labels, and of each value of each slice, for the losses [n] of the reference's rows.

    slices: name -> [n] str. in_time: the rows are in the order of time, and teach the length of a
    block. Tolerated is the upper end of the one-sided 95 % interval of the reference's loss (over
    k values of slices: 1 - 0.05/k) and config.harm_tolerance on top. All values of one slice share
    its labels' run length: their statistics together are at most one e-detector on the clock of
    all labels, since each label counts for one value; so j slices have the threshold
    j x run length, whatever the number of their values.
    """
    groups = {
        f"{name}={value}": losses[values == value]
        for name, values in sorted(slices.items())
        for value in np.unique(values).tolist()
        if value
    }
    threshold = math.log(2 * config.harm_run_length)
    apart = math.log(max(1, len(slices))) + threshold

    def tolerated(part: Array, confidence: float) -> float:
        return min(LARGEST, upper_mean(part, confidence) + config.harm_tolerance)

    def made(name: str, part: Array, confidence: float, threshold: float) -> Stream:
        known = float(len(part)), float(part.mean()), float(part.var())
        return Stream(name, tolerated(part, confidence), threshold, known, block_length(part) if in_time else BLOCK)

    each = 1 - (1 - CONFIDENCE) / max(1, len(groups))
    every = made(ALL, losses, CONFIDENCE, threshold)
    return every, *(made(name, part, each, apart) for name, part in groups.items())


def look_p_value(stream: Stream, losses: Array) -> float | None:
    """Return the one-sided p-value of a look's losses [n] being like the reference's; None with fewer than 30.

    Losses of 0 and 1: the predictive beta-binomial tail, which is Fisher's exact test but for half
    a row; others: Welch's test.
    """
    from scipy.stats import betabinom, ttest_ind_from_stats

    n, (rows, mean, variance) = len(losses), stream.reference
    if n < MIN_LOOK:
        return None
    errors = float(losses.sum())
    if np.isin(losses, (0.0, 1.0)).all():
        bad = mean * rows
        return float(betabinom.sf(errors - 1, n, bad + 1, max(rows - bad, 0) + 1))
    spread = math.sqrt(variance)
    if not spread and not losses.std():
        return 1.0 if losses[0] <= mean else 0.0
    found = ttest_ind_from_stats(
        losses.mean(), losses.std(), n, mean, spread, rows, equal_var=False, alternative="greater"
    )
    return float(found.pvalue)


def harm_of(stream: Stream, losses: Array, times: Array) -> Harm:
    """Return what a stream says, with the losses [n] that were counted last and their event times [n]."""
    p_value = look_p_value(stream, losses)
    level = min(MAX_LEVEL, len(losses) / math.exp(stream.threshold))
    alone = p_value is not None and p_value <= level and float(losses.mean()) > stream.tolerated
    since = stream.since if stream.standing else float(times[0]) if alone else None
    return Harm(
        name=stream.name,
        labels=stream.labels,
        loss=mean_interval(losses),
        tolerated=stream.tolerated,
        log_e=stream.log_e,
        threshold=stream.threshold,
        harmed=stream.standing or alone,
        since="" if since is None else iso_time(since),
        p_value=p_value,
        standing=stream.standing,
    )


def iso_time(seconds: float) -> str:
    """Return unix seconds as UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
