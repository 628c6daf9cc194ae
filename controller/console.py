"""How the commands speak: results on standard output, everything else on standard error, one line for a failure."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

REFUSED, FAILED = 2, 1
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """End the command with one line that says why."""
    err.print(f"midstream: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(code)
