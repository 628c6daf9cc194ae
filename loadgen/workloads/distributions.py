"""Distributions of lengths (tokens) and pauses (seconds): a discriminated union over `kind`.

A bare number stands for `{kind: fixed, value: ...}`. `mean` and `std` of normal and lognormal are those of the
distribution before it is cut to `min` and `max`; values outside are set to the bound, not drawn again.
Numbers of tokens are rounded to the nearest whole number.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from loadgen.workloads.configuration import Strict
from loadgen.workloads.randomness import BLOCK

Numbers = NDArray[np.float64]
_NotNegative = Annotated[float, Field(ge=0)]


class Fixed(Strict):
    """Always the same value."""

    kind: Literal["fixed"] = "fixed"
    value: _NotNegative

    @property
    def stated_least(self) -> float:
        """The smallest value stated outright."""
        return self.value

    def draw(self, generator: np.random.Generator) -> Numbers:  # noqa: ARG002 one signature for the union
        """Return the next `BLOCK` values."""
        return np.full(BLOCK, self.value)


class Uniform(Strict):
    """Every value from `min` to `max` alike, both included."""

    kind: Literal["uniform"]
    min: _NotNegative
    max: _NotNegative

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max ({self.max:g}) is below min ({self.min:g})")
        return self

    @property
    def stated_least(self) -> float:
        """The smallest value stated outright."""
        return self.min

    def draw(self, generator: np.random.Generator) -> Numbers:
        """Return the next `BLOCK` values; whole numbers, each as likely as the others, if both bounds are whole."""
        if self.min.is_integer() and self.max.is_integer():
            return generator.integers(int(self.min), int(self.max), BLOCK, endpoint=True).astype(np.float64)
        return generator.uniform(self.min, self.max, BLOCK)


class _Bounded(Strict):
    mean: float = Field(gt=0)
    std: _NotNegative
    min: _NotNegative = 0.0
    max: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max ({self.max:g}) is below min ({self.min:g})")
        return self

    @property
    def stated_least(self) -> float:
        """The smallest value stated outright: lower ones are tails, which `tokens` cuts."""
        return math.inf if self.max is None else self.max

    def _cut(self, values: Numbers) -> Numbers:
        return np.clip(values, self.min, self.max)


class Normal(_Bounded):
    """The normal distribution."""

    kind: Literal["normal"]

    def draw(self, generator: np.random.Generator) -> Numbers:
        """Return the next `BLOCK` values."""
        return self._cut(generator.normal(self.mean, self.std, BLOCK))


class Lognormal(_Bounded):
    """The lognormal distribution, by its own mean and standard deviation (not those of its logarithm)."""

    kind: Literal["lognormal"]

    def draw(self, generator: np.random.Generator) -> Numbers:
        """Return the next `BLOCK` values."""
        sigma2 = math.log1p((self.std / self.mean) ** 2)
        return self._cut(generator.lognormal(math.log(self.mean) - sigma2 / 2, math.sqrt(sigma2), BLOCK))


class Choice(Strict):
    """One of `values`, each as likely as its weight says, or all alike."""

    kind: Literal["choice"]
    values: tuple[_NotNegative, ...] = Field(min_length=1)
    weights: tuple[_NotNegative, ...] | None = None

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.values):
            raise ValueError(f"{len(self.weights)} weights for {len(self.values)} values: give one weight to each")
        if self.weights is not None and sum(self.weights) == 0:
            raise ValueError("all weights are 0: give at least one value a weight above 0")
        return self

    @property
    def stated_least(self) -> float:
        """The smallest value stated outright."""
        weights = self.weights or (1.0,) * len(self.values)
        return min(value for value, weight in zip(self.values, weights, strict=True) if weight > 0)

    def draw(self, generator: np.random.Generator) -> Numbers:
        """Return the next `BLOCK` values."""
        weights = None if self.weights is None else np.asarray(self.weights) / sum(self.weights)
        return generator.choice(np.asarray(self.values), BLOCK, p=weights)


_Kinds = Annotated[Fixed | Uniform | Normal | Lognormal | Choice, Field(discriminator="kind")]


def _spelled_out(value: Any) -> Any:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, Mapping) or plain or isinstance(value, Strict):
        return {"kind": "fixed", "value": value} if plain else value
    raise ValueError("should be a number, or a distribution such as {kind: uniform, min: 10, max: 20}")


Distribution = Annotated[_Kinds, BeforeValidator(_spelled_out, json_schema_input_type=float | _Kinds)]


def tokens(distribution: Distribution, generator: np.random.Generator, *, least: int = 1) -> Iterator[int]:
    """Return endless whole numbers of tokens.

    What a normal or lognormal distribution gives below `least` is set to it: their tails are no one's intention.
    What the other kinds give below it is the user's own choice, which the caller has refused before (`stated_least`).
    """
    while True:
        block = np.rint(distribution.draw(generator)).astype(np.int64)
        yield from np.maximum(block, least).tolist()


def nanoseconds(distribution: Distribution, generator: np.random.Generator) -> Iterator[int]:
    """Return endless pauses in nanoseconds of a distribution in seconds."""
    while True:
        yield from np.rint(distribution.draw(generator) * 1e9).astype(np.int64).tolist()
