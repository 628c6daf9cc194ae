"""How late something was, as a distribution that costs the same however long it is counted.

Bins of 10 microseconds up to one second; what is later falls into the last bin, and the maximum is kept exactly. A
percentile is the upper edge of its bin, so it never flatters.
"""

import math
from dataclasses import dataclass, field

_BIN_NS = 10_000
_BINS = 100_000


@dataclass(slots=True)
class Lateness:
    """Counts of latenesses in nanoseconds; early counts as not late."""

    count: int = 0
    max_ns: int = 0
    _counts: list[int] = field(default_factory=lambda: [0] * (_BINS + 1), repr=False)

    def add(self, late_ns: int) -> None:
        """Count one."""
        self.count += 1
        if late_ns > self.max_ns:
            self.max_ns = late_ns
        self._counts[min(max(late_ns, 0) // _BIN_NS, _BINS)] += 1

    def percentile_ms(self, q: float) -> float:
        """Return the q-th percentile (0 to 100) in milliseconds, rounded up to its bin; 0 if nothing was counted."""
        wanted, seen = math.ceil(self.count * q / 100), 0
        for number, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return self.max_ms if number == _BINS else min((number + 1) * _BIN_NS / 1e6, self.max_ms)
        return 0.0

    @property
    def max_ms(self) -> float:
        """The largest in milliseconds, exactly."""
        return self.max_ns / 1e6

    def figures(self) -> dict[str, float]:
        """Return median, 99th percentile and maximum in milliseconds, by name."""
        return {"p50": self.percentile_ms(50), "p99": self.percentile_ms(99), "max": self.max_ms}
