"""How commands end."""

import pytest
import typer

from controller.console import FAILED, fail


def test_a_failure_is_told_as_it_is_written(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit) as ended:
        fail("the operator needs kopf: pip install '.[operator]'")
    assert ended.value.exit_code == FAILED
    assert capsys.readouterr().err == "midstream: the operator needs kopf: pip install '.[operator]'\n"
