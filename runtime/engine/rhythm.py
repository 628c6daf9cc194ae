"""How evenly the pipeline answers, and how much longer a change made it pause.

The pause that counts is what a client sees (`midstream bench` measures it); this is the same figure from the inside,
for every change and without a client: the largest gap between two answers while it ran, minus the median gap before.
Time without any request is no gap.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_KEPT_GAPS = 8192
_GAPS_BEFORE = 100
_MUCH_LONGER = 2.5


class Rhythm:
    """The latest gaps between answers. Thread-safe.

    Args:
        clock: seconds; what `pause_ms` is asked about is in the same.

    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._gaps: deque[tuple[float, float]] = deque(maxlen=_KEPT_GAPS)  # begin and end

    def asked(self) -> None:
        """A batch was sent: from now on, if not before, an answer is waited for."""
        with self._lock:
            if self._since is None:
                self._since = self._clock()

    def answered(self) -> None:
        """A batch was answered."""
        now = self._clock()
        with self._lock:
            if self._since is not None:
                self._gaps.append((self._since, now))
            self._since = now

    def idle(self) -> None:
        """There is no request any more."""
        with self._lock:
            self._since = None

    def latest_s(self, seconds: float) -> float | None:
        """Return the mean gap within the last so many seconds; None without any.

        Gaps much longer than most are left out: a prompt was computed, say.
        """
        now = self._clock()
        return self._mean_s(now - seconds, now)

    def undisturbed_s(self, seconds: int) -> float | None:
        """Return the least mean gap in any of the last so many seconds, taken one by one; None without any.

        What else uses the machine comes and goes: the second that it disturbed least is the one to compare with.
        """
        now = self._clock()
        means = [self._mean_s(now - ago, now - ago + 1) for ago in range(seconds, 0, -1)]
        return min((mean for mean in means if mean is not None), default=None)

    def _mean_s(self, since: float, until: float) -> float | None:
        with self._lock:
            gaps = [end - begin for begin, end in self._gaps if begin >= since and end <= until]
        if not gaps:
            return None
        longest = _MUCH_LONGER * statistics.median(gaps)
        return statistics.fmean(gap for gap in gaps if gap <= longest)

    def pause_ms(self, since: float, until: float) -> float | None:
        """Return by how much the largest gap that touches [since, until] exceeds the median of those before, in ms.

        None when nothing was answered in that time or nothing before it.
        """
        with self._lock:
            gaps = list(self._gaps)
        during = [end - begin for begin, end in gaps if end >= since and begin <= until]
        before = [end - begin for begin, end in gaps if end < since][-_GAPS_BEFORE:]
        if not during or not before:
            return None
        return round(1e3 * max(0.0, max(during) - statistics.median(before)), 1)
