"""When to stop pre-copying and cut over.

Pre-copy sends what is stale while decoding makes more stale. Each round is judged by what it left behind:

* what is left fits the pause that is aimed for, at the rate just measured: cut over;
* two rounds in a row brought no new minimum, or the round cap is reached: it will not get better. Cut over if the
  estimated pause is within the limit all the same, else give up.

The rule of two rounds without a new minimum is the one that live migration of virtual machines and of KV caches uses.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Verdict(enum.StrEnum):
    """What to do after a round."""

    COPY_AGAIN = "copy_again"
    CUT_OVER = "cut_over"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class CopyRound:
    """What one round did: bytes sent, seconds taken, and bytes that were stale again when it ended."""

    sent_bytes: int
    seconds: float
    stale_bytes: int

    @property
    def bytes_per_second(self) -> float:
        """The rate of this round; infinite when nothing had to be sent."""
        if self.sent_bytes == 0:
            return float("inf")
        return self.sent_bytes / max(self.seconds, 1e-9)

    @property
    def pause_s(self) -> float:
        """Seconds it would take to send what is stale now."""
        return self.stale_bytes / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to do after a round, and why."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class StopRule:
    """Parameters of the rule: the pause that copying aims for (s), the longest it may cost (s), and the most rounds."""

    pause_aim_s: float = 0.010
    pause_limit_s: float = 0.050
    round_cap: int = 8

    def judge(self, rounds: Sequence[CopyRound]) -> Judgement:
        """Decide after the last of `rounds` (at least one)."""
        pause_s = rounds[-1].pause_s
        if pause_s <= self.pause_aim_s:
            return Judgement(Verdict.CUT_OVER, "fits the pause")
        stale = [copied.stale_bytes for copied in rounds]
        stuck = len(stale) > 2 and min(stale[-2:]) >= min(stale[:-2])
        if not stuck and len(rounds) < self.round_cap:
            return Judgement(Verdict.COPY_AGAIN, "more is stale than fits the pause")
        verdict = Verdict.CUT_OVER if pause_s <= self.pause_limit_s else Verdict.GIVE_UP
        return Judgement(verdict, "no progress" if stuck else "round cap")

    def explain(self, rounds: Sequence[CopyRound]) -> str:
        """Say in numbers why the rule gave up."""
        last = rounds[-1]
        return (
            f"after {len(rounds)} rounds {last.stale_bytes} bytes are stale, which is {1e3 * last.pause_s:.0f} ms at "
            f"{last.bytes_per_second / 1e6:.1f} MB/s; the limit is {1e3 * self.pause_limit_s:.0f} ms"
        )
