"""Bootstrap distributions of figures of one run, cheap enough for millions of tokens.

Tokens of one stream are not independent (a slow stream is slow throughout), so the unit that is drawn with replacement
is a whole stream, for figures of streams and of their gaps alike. For rates it is a stretch of time: which requests
share a moment decides throughput, and drawing requests would say nothing about it. Both sides of a comparison draw the
same stretches, so that what they share (the plan's arrivals, the start, the end) is no noise.

Three methods, each returns the figure for every one of the draws:

- `quantile_draws`: a percentile of one value per stream. The k-th smallest of n values drawn with replacement is the
  value at the relative rank U(k), the k-th smallest of n uniform numbers, which is Beta(k, n - k + 1): no drawing of n
  values is needed. Two neighbouring ranks are drawn together to interpolate as `numpy.percentile` does.
- `clustered_quantile_draws`: a percentile of all gaps, streams drawn whole. Gaps are counted in narrow logarithmic bins
  for each stream; a draw is a weighted sum of the streams' counts. Streams beyond a few hundred are first put into
  random groups, which does not change the variance that is estimated.
- `rate_draws`: events per second, stretches of time drawn.
"""

import numpy as np
import numpy.typing as npt

from loadgen.results.streams import Floats, Int64

STRETCHES = 24  # of equal length, that a run is cut into for rates
_GROUPS = 512
_BIN_WIDTH = 0.002  # of a gap, relative
_SMALLEST_MS, _LARGEST_MS = 0.01, 1e6


def quantile_draws(values: Floats, q: float, draws: int, generator: np.random.Generator) -> Floats:
    """Draw the q-th percentile (0 to 100) of values, one per stream.

    Args:
        values: One value for each stream; at least one.
        q: Percentile.
        draws: Number of draws.
        generator: Source of chance.
    """
    ordered = np.sort(values)
    n = len(ordered)
    position = (n - 1) * q / 100
    k, part = int(np.floor(position)), position - np.floor(position)
    lower = generator.beta(k + 1, n - k, draws)
    drawn: Floats = ordered[_rank(lower, n)]
    if part:
        upper = lower + (1 - lower) * generator.beta(1, n - k - 1, draws)
        drawn = drawn + part * (ordered[_rank(upper, n)] - drawn)
    return drawn


def _rank(relative: Floats, n: int) -> npt.NDArray[np.intp]:
    return np.minimum((relative * n).astype(np.intp), n - 1)


def clustered_quantile_draws(
    gaps_ms: Floats, stream: Int64, qs: tuple[float, ...], draws: int, generator: np.random.Generator
) -> dict[float, Floats]:
    """Draw percentiles of all gaps, streams drawn whole.

    Args:
        gaps_ms: Every gap.
        stream: Number of the stream of each.
        qs: Percentiles.
        draws: Number of draws.
        generator: Source of chance.
    """
    _, unit = np.unique(stream, return_inverse=True)
    units = int(unit.max()) + 1
    if units > _GROUPS:
        unit = (generator.permutation(units) % _GROUPS)[unit]
        units = _GROUPS
    clipped = np.clip(gaps_ms, _SMALLEST_MS, _LARGEST_MS)
    bins = np.floor(np.log(clipped / _SMALLEST_MS) / _BIN_WIDTH).astype(np.int64)
    used, column = np.unique(bins, return_inverse=True)
    counts = np.bincount(unit * len(used) + column, minlength=units * len(used)).reshape(units, len(used))
    weights = generator.multinomial(units, np.full(units, 1 / units), size=draws)
    cumulative = np.cumsum(weights.astype(np.float32) @ counts.astype(np.float32), axis=1, dtype=np.float64)
    lower_edge = _SMALLEST_MS * np.exp(used * _BIN_WIDTH)
    return {q: _binned_quantile(cumulative, lower_edge, q) for q in qs}


def _binned_quantile(cumulative: Floats, lower_edge: Floats, q: float) -> Floats:
    wanted = cumulative[:, -1:] * q / 100
    column = np.minimum((cumulative < wanted).sum(axis=1), cumulative.shape[1] - 1)
    row = np.arange(len(cumulative))
    before = np.where(column > 0, cumulative[row, column - 1], 0.0)
    inside = cumulative[row, column] - before
    part = np.where(inside > 0, (wanted[:, 0] - before) / np.maximum(inside, 1), 0.5)
    edge: Floats = lower_edge[column] * np.exp(np.clip(part, 0, 1) * _BIN_WIDTH)
    return edge


def stretch_draws(draws: int, generator: np.random.Generator) -> Int64:
    """Draw stretches of time for `rate_draws`, shape (draws, STRETCHES)."""
    return generator.integers(0, STRETCHES, size=(draws, STRETCHES))


def rate_draws(at_ns: Int64, span_ns: tuple[int, int], stretches: Int64) -> tuple[Floats, Floats]:
    """Draw events per second; returns the draws, and the rates of the stretches they are drawn from.

    Args:
        at_ns: Moment of each event.
        span_ns: First and last moment that count.
        stretches: What `stretch_draws` drew, the same for both sides.
    """
    start, end = span_ns
    counts, _ = np.histogram(at_ns, bins=STRETCHES, range=(start, end))
    rates = counts / ((end - start) / STRETCHES / 1e9)
    drawn: Floats = rates[stretches].mean(axis=1)
    widen = np.sqrt(STRETCHES / (STRETCHES - 1))  # the variance of a mean of few drawn values is too small by this
    return rates.mean() + (drawn - rates.mean()) * widen, rates
