"""What is drawn of millions of tokens: few enough points for a page, without hiding what matters.

Counts are summed in bins, so that none is lost. A distribution is drawn through its quantiles, with both ends. Of many
points the largest of every stretch of time are kept, because the largest gaps are what the plot is about; how many were
left out is part of the result.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadgen.results.streams import Floats, Int64

_BINS = 200
_CURVE_POINTS = 300
_LARGEST_OF_BIN = 3
_MOST_POINTS = 1_000


@dataclass(frozen=True, slots=True)
class RateSeries:
    """Events per second in bins of equal width, but for the last, which has half to one and a half of it.

    `edges_s` is one longer than `rates`.
    """

    edges_s: Floats
    rates: Floats
    width_s: float


def bin_width_s(span_s: float) -> float:
    """Return a round width (1, 2 or 5 times a power of ten) with which `span_s` has at most 200 bins."""
    least = max(span_s, 1e-3) / _BINS
    decade = 10.0 ** math.floor(math.log10(least))
    return next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= least * (1 - 1e-9))


def rate_series(at_ns: Int64, start_s: float, end_s: float, width_s: float | None = None) -> RateSeries:
    """Return events per second between two moments, both included."""
    width = bin_width_s(end_s - start_s) if width_s is None else width_s
    inner = start_s + width * np.arange(math.ceil((end_s - start_s) / width - 1e-9))
    # A sliver at the end would make a spike of a few events.
    inner = inner[: max(1, int((inner + width / 2 <= end_s).sum()))]
    edges = np.append(inner, end_s) if end_s > start_s else np.array([start_s, start_s + width])
    counts, _ = np.histogram(at_ns / 1e9, bins=edges)
    return RateSeries(edges, counts / np.diff(edges), width)


def cdf_points(values: Floats) -> tuple[Floats, Floats]:
    """Return values and the share of values at or below each, from the smallest to the largest; needs a value."""
    ordered = np.sort(values)
    n = len(ordered)
    if n <= _CURVE_POINTS:
        return ordered, np.arange(1, n + 1) / n
    tail = 1 - np.geomspace(0.05, 1 / n, _CURVE_POINTS // 4)
    ranks = np.unique((np.concatenate((np.linspace(0, 0.95, _CURVE_POINTS), tail)) * n).astype(np.int64))
    ranks = np.unique(np.append(np.minimum(ranks, n - 1), n - 1))
    return ordered[ranks], (ranks + 1) / n


def largest_points(at: Floats, values: Floats) -> npt.NDArray[np.intp]:
    """Return which points to draw, at most about 1,000: the largest of each stretch of time, and a regular rest."""
    n = len(at)
    if n <= _MOST_POINTS:
        return np.arange(n)
    span = float(at.max() - at.min())
    bins = np.minimum((at - at.min()) / max(span, 1e-9) * _BINS, _BINS - 1).astype(np.intp)
    order = np.lexsort((-values, bins))
    rank = np.arange(n) - np.searchsorted(bins[order], bins[order], side="left")
    kept = order[rank < _LARGEST_OF_BIN]
    rest = np.sort(order[rank >= _LARGEST_OF_BIN])
    room = max(1, _MOST_POINTS - len(kept))
    return np.sort(np.concatenate((kept, rest[:: math.ceil(len(rest) / room)] if len(rest) else rest)))


def bin_means(at_s: Floats, values: Floats, width_s: float) -> tuple[Floats, Floats]:
    """Return the mean of values in bins of time that hold any: middles of the bins, and means."""
    bins = np.floor(at_s / width_s).astype(np.int64)
    used, position = np.unique(bins, return_inverse=True)
    means: Floats = np.bincount(position, values) / np.bincount(position)
    middles: Floats = np.multiply(used + 0.5, width_s, dtype=np.float64)
    return middles, means
