"""Evidence, over any number of checks, that a column's live rows are not drawn like its reference's.

A live row's rank among all rows before it (the reference's, and earlier live ones), ties broken
at random, is uniform on (0, 1) and independent of earlier ranks as long as the rows are
exchangeable: exactly, and whatever the size of the reference (Vovk, Gammerman & Shafer 2005;
Vovk 2021, Testing randomness online). A bet against uniform ranks has expectation 1 then. Each
bet's capital follows S_t = (S_{t-1} + w_t) e_t, with sum w_t <= 1: a mixture over the check at
which a change begins. S_t plus the weights that are still to come is a martingale that starts at
no more than 1, so that S reaches 1 / alpha with probability at most alpha, ever (Ville 1939). The mean over the
bets keeps this.
"""

from __future__ import annotations

import math

import numpy as np

from homeostat.dataset import Array

BLOCK = 32
"""Rows that are ranked among themselves by comparing all pairs: bits of one word."""
ROWS = 2048
"""Rows that are ranked in one go, so that tables stay in the cache."""

LOCATIONS = tuple(sign * size for size in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2) for sign in (-1.0, 1.0))
"""Means of the normal score that are bet on, in standard deviations."""
SPREADS = (0.1, 0.25, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 4.0)
"""Standard deviations of the normal score that are bet on."""
TAU = (0.1, 0.5)
"""Standard deviations of the normal prior of a mean that is drawn anew in each window."""
BINS = np.array([0, 0.001, 0.01, 0.03, *np.arange(0.1, 0.95, 0.1), 0.97, 0.99, 0.999, 1])
"""Bins of the ranks that are the same for all columns: the ends are narrow."""
CONCENTRATIONS = (10.0, 300.0)
"""How near to uniform a histogram is expected, in rows (Dirichlet prior)."""
LEARNED = 30.0
"""The same, of the histogram that starts from what earlier windows showed."""
MEMORY = 0.8
"""What a window's histogram counts for at the next check."""
EDGE = 1e-15

WEIGHTS = np.concatenate(
    [
        np.full(len(LOCATIONS), 0.25 / len(LOCATIONS)),
        np.full(len(SPREADS), 0.2 / len(SPREADS)),
        np.full(len(TAU), 0.15 / len(TAU)),
        np.full(2 * len(CONCENTRATIONS) + 1, 0.4 / (2 * len(CONCENTRATIONS) + 1)),
    ]
)
"""How the capital is divided among the bets at the start."""
BETS = len(WEIGHTS)

SPENDING = 2.10975
"""Just over the sum of 1 / ((t + 1) log(t + 1)^2) over t = 1, 2, ..."""


def log_weight(check: int) -> float:
    """Return log w_t of check t = 1, 2, ...: all of them sum to just under 1."""
    return -math.log(SPENDING * (check + 1)) - 2 * math.log(math.log(check + 1))


def ranks(codes: Array, counts: Array, uniforms: Array) -> Array:
    """Return each row's randomized rank among the pool and the rows before it, [n, d] in (0, 1).

    codes: uint8 [n, d], the cell of each row and column, in the rows' order. counts: [d, k], the pool's rows
    by cell. uniforms: [n, d], drawn independently; they break ties.
    """
    out, pool = np.empty(codes.shape), counts.astype(np.int64)
    for start in range(0, len(codes), ROWS):
        part = slice(start, start + ROWS)
        out[part], pool = _ranks(codes[part], pool, uniforms[part])
    return np.clip(out, EDGE, 1 - EDGE)


def _ranks(codes: Array, pool: Array, uniforms: Array) -> tuple[Array, Array]:
    (n, d), k = codes.shape, pool.shape[1]
    blocks = -(-n // BLOCK)
    padded = np.zeros((blocks * BLOCK, d), dtype=np.uint8)
    padded[:n] = codes
    cells = np.ascontiguousarray(padded.reshape(blocks, BLOCK, d).transpose(0, 2, 1))  # [blocks, d, BLOCK]
    first = (np.arange(blocks * d) * k).reshape(blocks, d, 1)
    seen = np.bincount((first + cells).ravel(), minlength=blocks * d * k).reshape(blocks, d, k)
    before = np.cumsum(seen, axis=0) - seen + pool  # of each block
    under = np.cumsum(before, axis=2) - before
    own = np.take_along_axis(before, cells.astype(np.intp), axis=2) + _earlier(cells, np.equal)
    below = np.take_along_axis(under, cells.astype(np.intp), axis=2) + _earlier(cells, np.less)

    def rows(table: Array) -> Array:
        return table.transpose(0, 2, 1).reshape(blocks * BLOCK, d)[:n]

    total = pool.sum(axis=1) + np.arange(1, n + 1)[:, None]
    p = (rows(below) + uniforms * (rows(own) + 1)) / total
    counted = np.bincount((np.arange(d) * k + codes).ravel(), minlength=d * k).reshape(d, k)
    return p, pool + counted


def _earlier(cells: Array, compare: np.ufunc) -> Array:
    """Count, for each row of a block, the earlier rows of it whose cell compares so."""
    pairs = compare(cells[..., None, :], cells[..., :, None])  # [..., row, other row]
    words = np.packbits(pairs, axis=-1, bitorder="little").view("<u4")[..., 0]
    earlier = (np.uint64(1) << np.arange(BLOCK, dtype=np.uint64)) - np.uint64(1)
    return np.bitwise_count(words & earlier.astype(np.uint32)).astype(np.int64)


def log_bets(p: Array, bins: Array, learned: Array) -> tuple[Array, Array]:
    """Return the log of each bet's gain on a window's ranks of one column, [BETS], and what is learned from it.

    p: [n] in (0, 1). bins: the column's own edges, [b + 1]. learned: [b], counts that earlier
    windows left. Each gain has expectation 1 when p is uniform, given everything before.
    """
    from scipy.special import ndtri

    n, z = len(p), ndtri(p)
    total, squares = z.sum(), (z * z).sum()
    locations, spreads, tau = np.array(LOCATIONS), np.array(SPREADS), np.square(TAU)
    own, common = _counts(p, bins), _counts(p, BINS)
    shares = np.diff(bins)
    histograms = [
        *(_dirichlet(common, np.diff(BINS), c * np.diff(BINS)) for c in CONCENTRATIONS),
        *(_dirichlet(own, shares, c * shares) for c in CONCENTRATIONS),
        _dirichlet(own, shares, LEARNED * shares + learned),
    ]
    gains = np.concatenate(
        [
            locations * total - n * locations**2 / 2,
            -n * np.log(spreads) - squares / 2 * (1 / spreads**2 - 1),
            tau * total**2 / (2 * (1 + n * tau)) - np.log1p(n * tau) / 2,
            histograms,
        ]
    )
    return gains, MEMORY * (learned + own)


def _counts(p: Array, edges: Array) -> Array:
    return np.bincount(np.searchsorted(edges[1:-1], p, "right"), minlength=len(edges) - 1)


def _dirichlet(counts: Array, shares: Array, prior: Array) -> float:
    """Return the log likelihood ratio of counts [b] under a Dirichlet-multinomial, against the shares."""
    from scipy.special import gammaln

    ratio = (gammaln(prior + counts) - gammaln(prior) - counts * np.log(shares)).sum()
    return float(ratio + gammaln(prior.sum()) - gammaln(prior.sum() + counts.sum()))


def log_capital(capitals: Array) -> float:
    """Return the log of the mean capital of the bets; capitals: logs [BETS]."""
    return float(np.logaddexp.reduce(capitals + np.log(WEIGHTS)))


def advance(capitals: Array, gains: Array, check: int) -> Array:
    """Return the log capital of each bet after this check: S_t = (S_{t-1} + w_t) e_t."""
    return np.logaddexp(capitals, log_weight(check)) + gains
