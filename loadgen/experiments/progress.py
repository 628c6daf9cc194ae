"""What an experiment is doing, for whoever shows it: a few fields that change, and lines for the log."""

from collections.abc import Callable
from dataclasses import dataclass

from loadgen.experiments.axis import Axis
from loadgen.experiments.tally import Tally
from loadgen.reports.live import LiveCounters
from loadgen.streaming.runner import Runner


@dataclass(slots=True)
class Sending:
    """A load that is being sent.

    Attributes:
        title: The run's name.
        axis, tally, load: Its time, its counts, and what sends it.
        planned: Requests in all; None if time ends it.
        duration_s: How long it is planned to last; None if that is not known.
    """

    title: str
    axis: Axis
    tally: Tally
    load: Runner
    planned: int | None
    duration_s: float | None

    def counters(self) -> LiveCounters:
        """Return how far it has come."""
        now, seen, sent = self.axis.now(), self.tally, self.load.progress
        return LiveCounters(
            elapsed_s=max(0, now) / 1e9,
            planned=self.planned,
            duration_s=self.duration_s,
            sent=sent.begun,
            running=sent.in_flight,
            finished=seen.finished,
            errors=seen.broken,
            tokens_per_s=seen.tokens_per_s(now),
            ttft_p50_ms=seen.ttft_p50_ms(),
            largest_gap_ms=seen.largest_gap_ns / 1e6 if seen.largest_gap_ns else None,
            lag_ms=seen.lag_p99_ms(),
            note=seen.last_mark,
        )


@dataclass(slots=True)
class Progress:
    """How far an experiment has come.

    Attributes:
        say: Told a line now and then.
        runs: Number of runs in all.
        done: Runs that are finished, of this time or of an earlier one.
        name: Arm and repeat of the run under way.
        sending: Its load; None while none is sent.
    """

    say: Callable[[str], None]
    runs: int = 0
    done: int = 0
    name: str = ""
    sending: Sending | None = None

    def tell(self, doing: str) -> None:
        """Say what is going on now."""
        where = f"[{self.done + 1}/{self.runs}] {self.name}: " if self.name else ""
        self.say(f"{where}{doing}")
