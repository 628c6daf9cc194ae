"""A function's folder served as func's scaffolding would: by the real func-python, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from controller.platform import serve_function
from controller.platform.local.plan import free_port

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("func_python", reason="functions are served by func-python, which is not installed")

DEADLINE_S = 30.0
FUNCTION = """
class Echo:
    async def handle(self, scope, receive, send):
        await send(scope["event"])
    def stop(self):
        print("stopped", flush=True)
def new():
    return Echo()
"""


def test_a_function_answers_events_and_is_stopped_by_sigterm(tmp_path: Path):
    package = tmp_path / "function"
    package.mkdir()
    (package / "__init__.py").write_text(FUNCTION)
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "controller.platform.serve_function", str(tmp_path)],
        env={**os.environ, "LISTEN_ADDRESS": address},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=DEADLINE_S) as http:
            wait_until_ready(http, process)
            event = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/test", "ce-type": "test"}
            answer = http.post("/", headers={**event, "Content-Type": "application/json"}, content=b"{}")
            assert (answer.status_code, answer.json()["id"]) == (200, "1")
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, output) == (0, "stopped\n")
    finally:
        process.kill()
        process.communicate()


def wait_until_ready(http: httpx.Client, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            if http.get("/health/readiness").status_code == 200:
                return
        except httpx.TransportError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "usage: "), (["a", "b"], "usage: "), (["/does/not/exist"], "/does/not/exist holds no function")],
)
def test_what_is_no_function_is_told(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["serve_function", *arguments])
    with pytest.raises(SystemExit, match=message):
        serve_function.main()
