"""`python -m loadgen.mock`: the mock in place of a real server, whose flags it accepts and ignores."""

import typer

from loadgen.mock.command import mock

if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(mock)
    app()
