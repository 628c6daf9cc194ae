"""When requests (or sessions) arrive in open loop: a discriminated union over `kind`.

All kinds are made the same way. A kind says how the rate runs over time; its integral, the expected number of arrivals
by a moment, is turned around. Points with a mean spacing of 1 are laid on the axis of that number and mapped back to
time (the time-rescaling theorem of point processes: unit exponential spacing becomes a Poisson process with exactly
that rate, also where the rate changes). The spacing is

- even (0, 1, 2, ...): `constant`, and `timing: even` of the kinds whose rate changes. The first arrives at 0, or as
  soon as the rate is above 0;
- exponential: `poisson`, and `timing: poisson`, the default of the kinds whose rate changes;
- gamma distributed with a coefficient of variation `cv`: `gamma`. 1 is Poisson, more is burstier, less is more even.
  (The `burstiness` of vLLM's benchmark is 1 / cv^2.)

Rates are per second, moments in seconds since the start of the workload.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from loadgen.workloads.configuration import Strict
from loadgen.workloads.randomness import BLOCK

Numbers = NDArray[np.float64]
_Rate = Annotated[float, Field(gt=0, description="arrivals per second")]
_RateOrNone = Annotated[float, Field(ge=0, description="arrivals per second")]
_Timing = Literal["poisson", "even"]
_BISECTIONS = 60  # halves a period down to less than a double can tell apart


class _Steady(Strict):
    rate: _Rate

    def moments(self, expected: Numbers) -> Numbers:
        """Return when as many arrivals are expected."""
        return expected / self.rate


class Constant(_Steady):
    """One arrival every 1/rate seconds."""

    kind: Literal["constant"]

    def spacing(self, generator: np.random.Generator) -> Numbers | None:  # noqa: ARG002 one signature for the union
        """Return None: even."""
        return None


class Poisson(_Steady):
    """Arrivals independent of each other."""

    kind: Literal["poisson"]

    def spacing(self, generator: np.random.Generator) -> Numbers | None:
        """Return the next `BLOCK` spacings, mean 1."""
        return generator.exponential(1.0, BLOCK)


class Gamma(_Steady):
    """Gamma distributed gaps: as bursty as asked."""

    kind: Literal["gamma"]
    cv: float = Field(gt=0, le=100, description="coefficient of variation of the gaps: 1 is Poisson, above is burstier")

    def spacing(self, generator: np.random.Generator) -> Numbers | None:
        """Return the next `BLOCK` spacings, mean 1."""
        shape: float = self.cv**-2
        return generator.gamma(shape, 1 / shape, BLOCK)


class _Changing(Strict):
    timing: _Timing = "poisson"

    def spacing(self, generator: np.random.Generator) -> Numbers | None:
        """Return the next `BLOCK` spacings, mean 1; None: even."""
        return generator.exponential(1.0, BLOCK) if self.timing == "poisson" else None


class Ramp(_Changing):
    """The rate goes straight from `from_rate` to `to_rate` over `over_s` seconds and stays there."""

    kind: Literal["ramp"]
    from_rate: _RateOrNone
    to_rate: _RateOrNone
    over_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _some_load(self) -> Self:
        if self.from_rate == self.to_rate == 0:
            raise ValueError("from_rate and to_rate are both 0: nothing would ever arrive")
        return self

    def moments(self, expected: Numbers) -> Numbers:
        """Return when as many arrivals are expected; infinite: never."""
        on_ramp = (self.from_rate + self.to_rate) / 2 * self.over_s
        slope = (self.to_rate - self.from_rate) / self.over_s
        inside = np.minimum(expected, on_ramp)
        # The root of a quadratic in the form that does not cancel; 0/0 where nothing is expected of a rate of 0.
        below: Numbers = self.from_rate + np.sqrt(np.maximum(self.from_rate**2 + 2 * slope * inside, 0))
        climbing: Numbers = np.divide(2 * inside, below, out=np.zeros_like(inside), where=below > 0)
        beyond = expected - inside
        if self.to_rate == 0:
            climbing[beyond > 0] = np.inf
            return climbing
        climbing += beyond / self.to_rate
        return climbing


class Step(Strict):
    """From `at_s` on, the rate is `rate`."""

    at_s: float = Field(ge=0)
    rate: _RateOrNone


class Steps(_Changing):
    """The rate jumps; the last one stays."""

    kind: Literal["step"]
    steps: tuple[Step, ...] = Field(min_length=1)

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if steps[0].at_s != 0:
            raise ValueError(f"the first step is at {steps[0].at_s:g} s: it must say the rate at_s: 0")
        for before, after in pairwise(steps):
            if after.at_s <= before.at_s:
                raise ValueError(f"a step at {after.at_s:g} s follows one at {before.at_s:g} s: put them in order")
        if not any(step.rate for step in steps):
            raise ValueError("every rate is 0: nothing would ever arrive")
        return steps

    def moments(self, expected: Numbers) -> Numbers:
        """Return when as many arrivals are expected; infinite: never."""
        starts = np.array([step.at_s for step in self.steps])
        rates = np.array([step.rate for step in self.steps])
        before = np.concatenate(([0.0], np.cumsum(rates[:-1] * np.diff(starts))))
        # The last segment that begins with no more arrivals than these: segments of rate 0 are passed over.
        segment = np.searchsorted(before, expected, side="right") - 1
        ahead, rate = expected - before[segment], rates[segment]
        waited: Numbers = np.divide(ahead, rate, out=np.full_like(ahead, np.inf), where=rate > 0)
        waited += starts[segment]
        return waited


class Sine(_Changing):
    """The rate swings around `rate`: rate * (1 + amplitude * sin(2 pi t / period_s))."""

    kind: Literal["sine"]
    rate: _Rate
    amplitude: float = Field(ge=0, le=1, description="share of the mean rate: 1 swings between 0 and twice the rate")
    period_s: float = Field(gt=0)

    def moments(self, expected: Numbers) -> Numbers:
        """Return when as many arrivals are expected."""
        omega = 2 * math.pi / self.period_s
        periods, rest = np.divmod(expected, self.rate * self.period_s)  # a whole period has the mean rate
        low, high = np.zeros_like(rest), np.full_like(rest, self.period_s)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            early = self.rate * (middle + self.amplitude / omega * (1 - np.cos(omega * middle))) < rest
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        moments: Numbers = periods * self.period_s + high
        return moments


Arrivals = Annotated[Constant | Poisson | Gamma | Ramp | Steps | Sine, Field(discriminator="kind")]


def arrival_times_ns(arrivals: Arrivals, generator: np.random.Generator) -> Iterator[int]:
    """Return the moments of arrivals, never decreasing; ends only if the rate stays at 0."""
    expected, latest = 0.0, 0
    first = True
    while True:
        spacing = arrivals.spacing(generator)
        if spacing is None:
            points = expected + np.arange(0 if first else 1, BLOCK + (0 if first else 1), dtype=np.float64)
        else:
            points = expected + np.cumsum(spacing)
        expected, first = float(points[-1]), False
        for moment in arrivals.moments(points).tolist():
            if not math.isfinite(moment):
                return
            latest = max(latest, round(moment * 1e9))
            yield latest
