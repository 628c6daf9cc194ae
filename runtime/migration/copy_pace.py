"""How fast to copy while decoding goes on: as fast as decoding hardly notices, but not for ever.

Copying takes processor time, caches and link from decoding. How much of that matters depends on the machine, so it is
observed: the time between answers now, compared with what was usual before the change. A thread of its own
(of `PacedCopy`) looks every now and then, asks `PaceRule`, and sets the pace of the copy:

* decoding is slower than tolerated: more slowly, down to a floor;
* it is not: a bit faster;
* nobody waits for an answer: as fast as possible.

The floor is what it takes to end in time: everything that was stale at first within `longest_s`, and no less than
`lead` times what decoding makes stale meanwhile, since otherwise no round would bring less than the one before.

Caveat: what else slows decoding down (longer contexts, more requests, other programs) is put down to copying, which
then takes as long as the floor allows.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from runtime.migration.stop_rule import CopyRound

_USUAL_OF_S = 5


@dataclass(frozen=True, slots=True)
class PaceRule:
    """Parameters of the rule.

    Args:
        tolerance: by which part decoding may become slower.
        longest_s: seconds that the first round may take at most; the first pace is for half of that.
        lead: how many times faster than decoding makes KV stale it has to be copied.
        slower, faster: the factors by which the pace changes.
        least: the lowest pace, in bytes per second.

    """

    tolerance: float = 0.02
    longest_s: float = 60.0
    lead: float = 3.0
    slower: float = 0.7
    faster: float = 1.15
    least: float = float(1 << 20)

    def floor(self, stale_bytes: int, stale_per_s: float) -> float:
        """Return the lowest pace for a copy that began with `stale_bytes`, of which so many are made per second."""
        return max(self.least, stale_bytes / self.longest_s, self.lead * stale_per_s)

    def next(self, pace: float | None, floor: float, usual_s: float | None, now_s: float | None) -> float | None:
        """Return the next pace, None for no limit.

        Args:
            pace: so far; None when there was no limit, or nothing was copied yet.
            floor: the lowest.
            usual_s: time between answers before the change; None when there were none.
            now_s: the same now; None when nobody waits for an answer.

        """
        if usual_s is None or now_s is None:
            return None
        if pace is None:
            return 2 * floor
        return max(floor, pace * (self.slower if now_s > usual_s * (1 + self.tolerance) else self.faster))


HURRIED = PaceRule(longest_s=10.0)
"""For a change whose end somebody waits for, such as a function that has 25 s to go."""


class Copy(Protocol):
    """What is paced: rounds that may be told how fast to be while they run."""

    def round(self) -> CopyRound:
        """Copy everything that is stale now, once."""

    def pace(self, bytes_per_second: float | None) -> None:
        """Copy at most so many bytes per second from now on; None for no limit."""


class Answers(Protocol):
    """What tells how decoding goes."""

    def latest_s(self, seconds: float) -> float | None:
        """Return the usual time between two answers in the last so many seconds; None without any."""

    def undisturbed_s(self, seconds: int) -> float | None:
        """Return the same for the best of the last so many seconds."""


class PacedCopy:
    """The copying of one change. Made before anything of it disturbs decoding.

    Args:
        answers: what decoding is judged by.
        rule: decides.
        period_s: how often to look.

    """

    def __init__(self, answers: Answers, rule: PaceRule, period_s: float = 0.5) -> None:
        self._answers, self._rule, self._period_s = answers, rule, period_s
        self._usual_s = answers.undisturbed_s(_USUAL_OF_S)
        self._pace: float | None = None
        self._stale_bytes, self._stale_per_s = 0, 0.0

    def begin(self, stale_bytes: int) -> None:
        """Take note of how much there is to copy."""
        self._stale_bytes = stale_bytes

    def round(self, copy: Copy) -> CopyRound:
        """Have `copy` make a round, at a pace."""
        over = threading.Event()
        self._look(copy, self._pace)
        governor = threading.Thread(target=self._govern, args=(copy, over), name="copy-pace", daemon=True)
        governor.start()
        try:
            copied = copy.round()
        finally:
            over.set()
            governor.join()
        self._stale_per_s = copied.stale_bytes / max(copied.seconds, 1e-9)
        return copied

    def _govern(self, copy: Copy, over: threading.Event) -> None:
        while not over.wait(self._period_s):
            self._look(copy, self._pace)

    def _look(self, copy: Copy, pace: float | None) -> None:
        floor = self._rule.floor(self._stale_bytes, self._stale_per_s)
        self._pace = self._rule.next(pace, floor, self._usual_s, self._answers.latest_s(self._period_s))
        copy.pace(self._pace)
