"""Progress is a bar for a person at a terminal and one line per step for everyone else."""

import io

from rich.console import Console

from runtime.model.progress import ConsoleReport


def shown(*, terminal: bool, total_bytes: int | None) -> str:
    output = io.StringIO()
    report = ConsoleReport(Console(file=output, force_terminal=terminal, width=120))
    with report.step("Downloading [it]", total_bytes) as advance:
        for _ in range(4):
            advance(250_000)
    return output.getvalue()


def test_a_log_gets_one_line_per_step() -> None:
    assert shown(terminal=False, total_bytes=1_000_000) == "Downloading [it] (1.0 MB)\n"
    assert shown(terminal=False, total_bytes=None) == "Downloading [it]\n"


def test_a_terminal_gets_a_bar_that_fills_up() -> None:
    assert "1.0/1.0 MB" in shown(terminal=True, total_bytes=1_000_000)


def test_by_default_standard_output_stays_free() -> None:
    assert ConsoleReport()._console.stderr
