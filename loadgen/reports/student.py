"""Quantiles of Student's t distribution.

scipy has them, but is 100 MB for one number. With x = sqrt(f) tan(u) the distribution function is
an integral of cos(u)^(f - 1) over a finite range, smooth enough for a plain sum; the quantile is found by bisection.
"""

import math

import numpy as np

_STEPS = 4_000


def t_quantile(p: float, freedom: float) -> float:
    """Return x such that a t-distributed number is below x with probability p.

    Args:
        p: Probability, 0.5 to below 1.
        freedom: Degrees of freedom, at least 1; need not be whole.
    """
    if not 0.5 <= p < 1 or freedom < 1:
        raise ValueError(f"p = {p} with {freedom} degrees of freedom: needs 0.5 <= p < 1 and at least 1")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _below(middle, freedom) < p:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _below(angle: float, freedom: float) -> float:
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    steps = (np.arange(_STEPS) + 0.5) * (angle / _STEPS)
    return 0.5 + scale * float((np.cos(steps) ** (freedom - 1)).sum()) * angle / _STEPS
