"""What stands first on an experiment's page, made by whoever knows what the experiment is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.reports.plots import Plot
    from loadgen.reports.tables import Table


@dataclass(frozen=True, slots=True)
class Section:
    """A result: what was found, in a sentence; the table it rests on; what must be known to read it.

    Attributes:
        title: What the table shows.
        headline: What was found, in words that can be quoted.
        table: The figures.
        notes: How they were counted, and what they are not.
        plot: A drawing of them; None if they need none.
        further: Further tables, such as figures of others.
    """

    title: str
    headline: str
    table: Table
    notes: Sequence[str] = ()
    plot: Plot | None = None
    further: Sequence[Table] = ()
