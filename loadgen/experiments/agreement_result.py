"""What two load generators said of one server in the same rounds, and whether they agree: pure functions.

A figure of a round is a pair, ours and vLLM's. Its ratio is ours / theirs; over the rounds the geometric mean, with the
95 % interval of Student's t on the logarithms. Two figures *agree* if that interval holds 1 and goes no further than
`KNOWN` from it, or if it is no wider than that and the mean is within `NEGLIGIBLE` of 1. They *differ* if it does not
hold 1. If it holds 1 only because it is wide, the rounds were *too noisy* to tell. How much each generator's own figure
varies from round to round stands beside it: a ratio can not be known better than that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev
from typing import Any, Literal

from loadgen.errors import MeasurementError
from loadgen.reports.student import t_quantile

NEGLIGIBLE = 0.02
KNOWN = 0.15
CONFIDENCE = 0.95
FIGURES = ("ttft_ms_p50", "ttft_ms_mean", "tpot_ms_p50", "tpot_ms_mean", "itl_ms_p50", "tokens_per_s")


@dataclass(frozen=True, slots=True)
class Agreement:
    """One figure of both generators.

    Attributes:
        name: Which.
        ours, theirs: Its value in each round.
        ratio: Geometric mean of ours / theirs.
        low, high: Interval that holds it with `CONFIDENCE`; None with a single round.
        least, most: Of the rounds' ratios.
        spread_ours, spread_theirs: Standard deviation over the rounds, as a share of the mean.
    """

    name: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ratio: float
    low: float | None
    high: float | None
    least: float
    most: float
    spread_ours: float
    spread_theirs: float

    @property
    def verdict(self) -> Literal["agree", "differ", "too noisy"]:
        """Whether the two say the same, as far as can be known."""
        if self.low is None or self.high is None:
            return "agree" if abs(self.ratio - 1) <= NEGLIGIBLE else "too noisy"
        if abs(self.ratio - 1) <= NEGLIGIBLE and self.high / self.low <= (1 + KNOWN) ** 2:
            return "agree"
        if not self.low <= 1 <= self.high:
            return "differ"
        return "agree" if self.low >= 1 / (1 + KNOWN) and self.high <= 1 + KNOWN else "too noisy"


def agreement(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Agreement:
    """Compare one figure over rounds.

    Raises:
        MeasurementError: there is no round, or a figure is not above 0.
    """
    if not ours or len(ours) != len(theirs) or min(*ours, *theirs) <= 0:
        raise MeasurementError(f"{name}: {list(ours)} and {list(theirs)} cannot be compared")
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean, low, high = fmean(logs), None, None
    if len(logs) > 1:
        error = math.sqrt(sum((each - mean) ** 2 for each in logs) / (len(logs) - 1) / len(logs))
        reach = t_quantile(0.5 + CONFIDENCE / 2, len(logs) - 1) * error
        low, high = math.exp(mean - reach), math.exp(mean + reach)
    return Agreement(
        name=name,
        ours=tuple(ours),
        theirs=tuple(theirs),
        ratio=math.exp(mean),
        low=low,
        high=high,
        least=math.exp(min(logs)),
        most=math.exp(max(logs)),
        spread_ours=pstdev(ours) / fmean(ours),
        spread_theirs=pstdev(theirs) / fmean(theirs),
    )


def figures_of_vllm(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a detailed result of `vllm bench serve`, by our definitions.

    Its own throughput counts from before the first request's delay; here it is from the first request's start to the
    last one's end, as in `loadgen.results.figures`.

    Raises:
        MeasurementError: a request failed, or the result is not one.
    """
    try:
        if result["failed"]:
            raise MeasurementError(f"{result['failed']} requests of vllm bench serve failed: {result['errors'][:1]}")
        lengths, ttfts, latencies = result["output_lens"], result["ttfts"], result["latencies"]
        starts = result["start_times"]
        span = max(a + b for a, b in zip(starts, latencies, strict=True)) - min(starts)
        tpots = [
            1e3 * (whole - first) / (tokens - 1)
            for whole, first, tokens in zip(latencies, ttfts, lengths, strict=True)
            if tokens > 1
        ]
        gaps = [1e3 * gap for each in result["itls"] for gap in each]
        return {
            "ttft_ms_p50": 1e3 * median(ttfts),
            "ttft_ms_mean": 1e3 * fmean(ttfts),
            "tpot_ms_p50": median(tpots),
            "tpot_ms_mean": fmean(tpots),
            "itl_ms_p50": median(gaps),
            "tokens_per_s": sum(lengths) / span,
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise MeasurementError(f"this is no detailed result of vllm bench serve: {error!r}") from error
