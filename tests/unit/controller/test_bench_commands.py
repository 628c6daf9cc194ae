"""`midstream bench`, up to the measurements themselves."""

import pytest
from typer.testing import CliRunner

from controller.cli import app


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("load --streams 0", 1, "at least one stream"),
        ("agreement --rounds 0", 2, "rounds is 0, but must be at least 1"),
        ("agreement --url ftp://127.0.0.1", 2, "url"),
        ("reconfigure --from 15,15 --to 15,15", 1, "nothing to change"),
        ("wake --repeat 0", 1, "repeat is 0, but must be at least 1"),
    ],
)
def test_nonsense_is_refused_before_anything_is_started(arguments: str, code: int, said: str):
    result = CliRunner().invoke(app, ["bench", *arguments.split()])
    assert result.exit_code == code
    assert said in result.stderr
    assert not result.stdout
