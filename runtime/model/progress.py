"""Tells a person how a preparation advances, on standard error.

On a terminal every step is a bar. Elsewhere (a log file, CI, a container) every step is one line when it
starts. Standard output stays free for results.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[int], None]
"""Called with the number of bytes done since the last call."""


class Report(Protocol):
    """Where a preparation tells what it is doing."""

    def step(self, what: str, total_bytes: int | None = None) -> AbstractContextManager[Advance]:
        """Announce the step `what` for the length of the `with` block; None: its size is not known."""


class ConsoleReport:
    """A `Report` on a rich console (default: standard error)."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    @contextmanager
    def step(self, what: str, total_bytes: int | None = None) -> Iterator[Advance]:
        """See `Report.step`."""
        if not self._console.is_terminal:
            size = "" if total_bytes is None else f" ({decimal(total_bytes)})"
            self._console.print(f"{what}{size}", markup=False, highlight=False, soft_wrap=True)
            yield lambda _done: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(what, total=total_bytes)
            yield lambda done: bars.advance(task, done)
            bars.update(task, total=total_bytes or 1, completed=total_bytes or 1)
