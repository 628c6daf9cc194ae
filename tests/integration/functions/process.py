"""A function as a process of its own, served as `midstream up` serves it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.integration.functions.head import DEADLINE_S, until

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[3]
FUNCTIONS = ROOT / "functions"
# func builds functions with a newer Python than the engine may run on; this tests them with it.
PYTHON = os.environ.get("MIDSTREAM_FUNCTIONS_PYTHON", sys.executable)


@dataclass
class FunctionProcess:
    """A running function."""

    process: subprocess.Popen[bytes]
    log_file: Path
    url: str

    @classmethod
    def start(cls, name: str, port: int, log_file: Path, settings: Mapping[str, str]) -> FunctionProcess:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("MIDSTREAM_")}
        own = {"LISTEN_ADDRESS": f"127.0.0.1:{port}", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [PYTHON, "-W", "error", "-m", "controller.platform.serve_function", str(FUNCTIONS / name)],
                cwd=log_file.parent,
                env={**inherited, **own, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return cls(process, log_file, f"http://127.0.0.1:{port}")

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def probe(self, name: str) -> int:
        try:
            return httpx.get(f"{self.url}/health/{name}", timeout=DEADLINE_S).status_code
        except httpx.TransportError:
            return 0

    def wait_alive(self) -> FunctionProcess:
        until(lambda: self.process.poll() is not None or self.probe("liveness") == 200, "the function is alive")
        assert self.process.poll() is None, self.log
        return self

    def wait_ready(self) -> FunctionProcess:
        until(lambda: self.probe("readiness") == 200, f"the function is ready; its log: {self.log}")
        return self

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return the exit status."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the function did not end; its log: {self.log}") from None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def send(self, event: Mapping[str, Any], mode: str = "structured") -> httpx.Response:
        """Send an event, given as the structured mode has it."""
        if mode == "structured":
            headers, content = {"content-type": "application/cloudevents+json"}, json.dumps(event)
        else:
            headers = {f"ce-{name}": value for name, value in event.items() if name != "data"}
            headers["content-type"], content = "application/json", json.dumps(event["data"])
        return httpx.post(self.url, content=content, headers=headers, timeout=60)


def make_event(kind: str, data: Mapping[str, Any], identity: str = "event-1", **attributes: str) -> dict[str, Any]:
    """Make an event for the pipeline of these tests."""
    return {
        "specversion": "1.0",
        "type": f"dev.midstream.{kind}",
        "source": "/tests",
        "id": identity,
        "subject": "smollm",
        "data": {"pipeline": "smollm", **data},
        **attributes,
    }
