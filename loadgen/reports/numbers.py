"""Figures as people read them: three digits that matter, never a false zero, a dash for what is not there."""

import math

from loadgen.results.figures import Distribution

MISSING = "\u2013"


def number(value: float | None, digits: int = 3) -> str:
    """Return the value with that many significant digits, and thousands apart."""
    if value is None or math.isnan(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.replace(",", "\u202f")


def milliseconds(value: float | None) -> str:
    """Return a duration given in ms, in seconds from ten seconds on."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{number(value / 1e3)} s" if abs(value) >= 10_000 else f"{number(value)} ms"


def count(value: int | None) -> str:
    """Return a count with thousands apart."""
    return MISSING if value is None else f"{value:,}".replace(",", "\u202f")


def percentile(values: Distribution | None, name: str) -> str:
    """Return a percentile in ms; with a ≈ where so few values lie beyond it that it is nearly the largest."""
    if values is None:
        return MISSING
    beyond = {"p90": 0.1, "p95": 0.05, "p99": 0.01, "p99_9": 0.001}.get(name)
    rough = "≈ " if beyond is not None and values.n * beyond < 1 else ""
    return rough + milliseconds(getattr(values, name))
