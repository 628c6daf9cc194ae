"""The mock as a process: what it says, what it refuses, and how it ends."""

import os
import signal
import subprocess
import sys

import httpx
import pytest
import typer
from typer.testing import CliRunner

from loadgen.mock.command import mock

MOCK = (sys.executable, "-m", "loadgen.mock")


def strict() -> typer.Typer:
    app = typer.Typer()
    app.command()(mock)
    return app


def test_it_says_where_it_listens_serves_and_ends_on_sigterm_with_streams_open():
    process = subprocess.Popen(
        [*MOCK, "--port", "0", "--itl-ms", "1000", "--api-key-env", "MOCK_KEY", "--max-model-len", "512"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "MOCK_KEY": "secret", "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.removeprefix("listening on ").strip()
        headers = {"authorization": "Bearer secret"}
        with (
            httpx.Client(base_url=url, trust_env=False, headers=headers) as http,
            http.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as response,
        ):
            assert response.status_code == 200
            process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(response.iter_raw())
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stall-at", "soon:5"], "stall 'soon:5'"),
        (["--fault", "burn:5"], "fault 'burn:5'"),
        (["--error-rate", "1.5"], "together at most 1"),
        (["--change-outcome", "maybe"], "change outcome 'maybe'"),
        (["--api-key-env", "MIDSTREAM_NO_SUCH_KEY"], "MIDSTREAM_NO_SUCH_KEY is not set"),
        (["--tft-ms", "5"], "No such option"),
    ],
)
def test_bad_input_is_one_clear_error_with_status_2(arguments, message):
    result = CliRunner().invoke(strict(), arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_port_that_is_taken_is_an_error():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(strict(), ["--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1
    assert "cannot listen on 127.0.0.1" in result.stderr
