"""What an analysis yields: a table for people, the figures behind it, and what must be read with them.

`findings.json` holds all of it, with the figures unrounded; `findings.md` the table.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Self

import msgspec
import yaml

from loadgen.results.errors import ResultsError
from loadgen.results.manifest import write_atomically

FINDINGS_FILE = "findings.json"
FINDINGS_TEXT = "findings.md"
_PUBLISHED = "published.yaml"


@dataclass(frozen=True, slots=True)
class Published:
    """A figure of somebody else, as it was found.

    Attributes:
        what: What was measured.
        value: The figure with its unit, as published.
        source: Where it is from.
        read_from: How far the source was read: abstract, repository, or a digest by others.
        setup: What it was measured on.
    """

    what: str
    value: str
    source: str
    read_from: str
    setup: str


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of an analysis.

    Attributes:
        kind: Which analysis.
        title: What the table shows.
        headline: What was found, in a sentence or two that can be quoted.
        columns: Heads of the columns; the first is that of the rows' names.
        rows: Cells as they are to be read.
        figures: The same and more, as numbers: ms, bytes, tokens.
        notes: What a reader must know: how it was counted, what differs from others' set-up.
        published: Figures of others, to be read beside ours.
    """

    kind: str
    title: str
    headline: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: dict[str, Any]
    notes: tuple[str, ...]
    published: tuple[Published, ...] = field(default=())

    def write(self, folder: Path) -> None:
        """Write both files, each whole or not at all."""
        write_atomically(folder / FINDINGS_FILE, self.json())
        write_atomically(folder / FINDINGS_TEXT, self.markdown())

    def json(self) -> str:
        """Return all of it as a document."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the findings of an experiment's folder; None if it has none.

        Raises:
            ResultsError: they are not what they should be, or of another version of this program.
        """
        path = folder / FINDINGS_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise ResultsError(f"{path} cannot be read: {error}; `load run --resume` makes it anew") from error

    def markdown(self) -> str:
        """Return the headline, the table, the notes and the published figures as Markdown."""
        lines = [
            f"# {self.title}",
            "",
            self.headline,
            "",
            *_table(self.columns, self.rows),
            "",
            *(f"- {note}" for note in self.notes),
            "",
        ]
        if self.published:
            columns = ("published", "figure", "source", "read from", "set-up")
            rows = [(p.what, p.value, p.source, p.read_from, p.setup) for p in self.published]
            lines += [*_table(columns, rows), ""]
        return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    shown = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in shown]


@cache
def published(topic: str) -> tuple[Published, ...]:
    """Return the published figures on a topic."""
    text = resources.files("loadgen.experiments.analysis").joinpath(_PUBLISHED).read_text("utf-8")
    document = yaml.safe_load(text)
    return tuple(
        Published(
            what=each["what"],
            value=each["value"],
            source=document["sources"][each["source"]],
            read_from=each["read_from"],
            setup=document["setups"][each["setup"]],
        )
        for each in document["figures"]
        if topic in each["topics"]
    )


def ms(value: float | None) -> str:
    """Return a time as it is read in a table."""
    if value is None:
        return "-"
    if abs(value) >= 10_000:
        return f"{value / 1e3:.1f} s"
    return f"{value:.0f} ms" if abs(value) >= 100 else f"{value:.1f} ms"


def times(value: float | None) -> str:
    """Return a ratio as it is read in a table."""
    return "-" if value is None else f"{value:.2f}x"


def size(value: float | None) -> str:
    """Return bytes as they are read in a table."""
    if value is None:
        return "-"
    if not value:
        return "0"
    return f"{value / 1e6:.1f} MB" if abs(value) >= 1e5 else f"{value / 1e3:.1f} kB"


def ratio(value: float | None, base: float | None) -> float | None:
    """Return value over base; None without both."""
    return None if value is None or not base else value / base
