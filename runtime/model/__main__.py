"""`python -m runtime.model`: make the built-in model ready and print its folder."""

from pathlib import Path
from typing import Annotated

import typer

from runtime.model import ModelError, prepare_built_in


def main(
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Check every byte; rebuild if one differs.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Cache folder instead of $MIDSTREAM_CACHE.")] = None,
) -> None:
    """Download and convert the built-in model unless it is ready, then print its folder."""
    try:
        typer.echo(prepare_built_in(cache, verify=verify))
    except ModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
