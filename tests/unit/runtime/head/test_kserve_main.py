"""`python -m runtime.head.kserve_server`, up to KServe itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from runtime.head.kserve_server.__main__ import parse


def test_it_is_for_this_machine_unless_told_otherwise() -> None:
    given = parse(["--model-name", "smollm"])
    assert (given.host, given.http_port, given.head) == ("127.0.0.1", 8080, "http://127.0.0.1:8000")


@pytest.mark.parametrize("head", ["127.0.0.1:8000", "http://", "ftp://host", "http://host/v1", "http://host?a=b"])
def test_a_head_that_is_no_address_is_refused(head: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--model-name", "m", "--head", head])
    assert "is no address such as http://127.0.0.1:8000" in capsys.readouterr().err


def test_a_flag_that_is_not_known_is_refused() -> None:
    with pytest.raises(SystemExit):
        parse(["--model-name", "m", "--http_port", "80"])


def test_reading_the_command_line_imports_neither_kserve_nor_an_engine() -> None:
    program = (
        "import sys; import runtime.head.kserve_server.__main__, runtime.head.kserve_server.passthrough\n"
        "print(sorted({'kserve', 'vllm', 'torch', 'zmq', 'typer'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"
