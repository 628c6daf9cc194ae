"""What a run shows while it goes on.

A command makes a `LiveView` and gives it `LiveCounters` every now and then. On a terminal one block is redrawn;
elsewhere (a log, a pipe) a line is printed every few seconds, and one at the end.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadgen.reports.numbers import count, milliseconds, number
from loadgen.reports.terminal import plain
from loadgen.results.summary import LATE_MS


@dataclass(frozen=True, slots=True)
class LiveCounters:
    """How far a run has come.

    Attributes:
        elapsed_s: Since its start.
        planned: Requests in all; None if the plan has no end but time.
        duration_s: How long it will take; None if it ends with its requests.
        sent: Requests sent.
        running: Of these, still streaming.
        finished: Ended as they should.
        errors: Ended otherwise.
        tokens_per_s: Over the last few seconds.
        ttft_p50_ms: Median so far; None before the first token.
        largest_gap_ms: Largest gap between two tokens of a stream so far; None before there is one.
        lag_ms: The generator's own lateness, p99 so far; None before it was sampled.
        note: What happens at the moment ("reconfigure 8,12,10"); None for nothing.
    """

    elapsed_s: float
    planned: int | None
    duration_s: float | None
    sent: int
    running: int
    finished: int
    errors: int
    tokens_per_s: float
    ttft_p50_ms: float | None
    largest_gap_ms: float | None
    lag_ms: float | None
    note: str | None = None


class LiveView:
    """Shows a run's counters; a context manager.

    Args:
        title: Name of the run.
        console: Where to show it.
        line_every_s: Without a terminal, seconds between two lines.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        title: str,
        console: Console | None = None,
        *,
        line_every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = plain(title)
        self._console = Console(stderr=True) if console is None else console
        self._every_s, self._clock = line_every_s, clock
        self._next_line = clock()
        self._last: LiveCounters | None = None
        self._printed: LiveCounters | None = None
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._last is not None and self._last is not self._printed:
            self._print(self._last)

    def update(self, counters: LiveCounters) -> None:
        """Show these counters."""
        self._last = counters
        if self._live is not None:
            self._live.update(self._block(counters), refresh=True)
        elif self._clock() >= self._next_line:
            self._next_line = self._clock() + self._every_s
            self._print(counters)

    def _print(self, counters: LiveCounters) -> None:
        self._printed = counters
        self._console.print(Text(f"{self._title}: {line(counters)}"), soft_wrap=True)

    def _block(self, counters: LiveCounters) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(Text(self._title, style="bold"), Text(_progress(counters), style="dim"))
        for name, value, style in _parts(counters):
            table.add_row(Text(name, style="dim"), Text(value, style=style))
        return table


def line(counters: LiveCounters) -> str:
    """Return the counters as one line of plain text."""
    return ", ".join([_progress(counters), *(f"{name} {value}" for name, value, _ in _parts(counters))])


def _progress(counters: LiveCounters) -> str:
    elapsed = f"{counters.elapsed_s:.0f} s"
    if counters.duration_s is not None:
        return f"{elapsed} of {counters.duration_s:.0f} s"
    return (
        elapsed if counters.planned is None else f"{elapsed}, {count(counters.sent)} of {count(counters.planned)} sent"
    )


def _parts(counters: LiveCounters) -> list[tuple[str, str, str]]:
    late = counters.lag_ms is not None and counters.lag_ms > LATE_MS
    parts = [
        ("sent", count(counters.sent), ""),
        ("running", count(counters.running), ""),
        ("finished", count(counters.finished), ""),
        ("errors", count(counters.errors), "red" if counters.errors else ""),
        ("tokens/s", number(counters.tokens_per_s), ""),
        ("TTFT p50", milliseconds(counters.ttft_p50_ms), ""),
        ("largest gap", milliseconds(counters.largest_gap_ms), ""),
        ("own lag p99", milliseconds(counters.lag_ms), "yellow" if late else ""),
    ]
    return parts if counters.note is None else [*parts, ("now", plain(counters.note), "bold")]
