"""The controller as a process, with warnings as errors: who may tell it what, and what a bad request gets."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from intents.enforcement.openflow_service import OpenFlowStore
from intents.errors import EnforcementError
from tests.unit.intents.proof.networks import DIAMOND, both_ways

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = [sys.executable, "-W", "error", "-m", "intents.enforcement.openflow_service"]


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # the path of a Unix socket is short
        path = Path(folder) / "openflow.sock"
        with subprocess.Popen([*COMMAND, "--socket", str(path), "--port", "0"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["ready"]
            yield path
            process.terminate()
            process.wait(10)


def test_it_is_told_over_a_socket_that_only_its_user_may_open(path: Path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with OpenFlowStore(str(path)) as store:
        assert store.switches() == {}
        assert store.read() == []
        assert store.events() == []
        store.apply([])
        store.delete()


def test_what_it_says_reaches_whoever_told_it(path: Path):
    with OpenFlowStore(str(path)) as store:
        with pytest.raises(EnforcementError, match=r"not connected: of:0000000000000001.*nothing was changed"):
            store.apply(both_ways(DIAMOND, ["s1", "s2", "s4"]))
        with pytest.raises(EnforcementError, match="the request cannot be read"):
            store._ask("PUT", "/flows", json={})


def test_a_controller_that_is_away_is_an_error(tmp_path: Path):
    with OpenFlowStore(str(tmp_path / "none.sock")) as store, pytest.raises(EnforcementError, match="start it first"):
        store.read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "192.0.2.1"], "--host 192.0.2.1 is not loopback: give --tls-cert, --tls-key and --tls-ca"),
        (["--tls-cert", "x"], "--tls-cert, --tls-key and --tls-ca go together"),
        (["--host", "here"], "--host here is not loopback: give --tls-cert, --tls-key and --tls-ca"),
    ],
)
def test_switches_are_not_listened_to_in_the_clear(tmp_path: Path, options: list[str], message: str):
    command = [*COMMAND, "--socket", str(tmp_path / "s"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert message in done.stderr
