"""The weights of a host with real processes; each scenario of `weights_parent` runs in a process of its own."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[4]
DEADLINE_S = 60


def run(scenario: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.unit.runtime.warm.weights_parent", scenario]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_precisions_can_be_there_and_one_that_is_not_wanted_goes_with_its_stages():
    outcome = run("two_precisions_come_and_one_goes")
    assert outcome["loaded"] == [True, False]
    assert outcome["held"] == {"16": 16, "8": 8}
    assert (outcome["gone"], outcome["ended"]) == (["16"], True)
    assert outcome["seen"] == [["a", -signal.SIGKILL]]
    assert outcome["both"] == [["a", -signal.SIGKILL], ["b", -signal.SIGKILL]]
    assert outcome["refused"] == "no weights in 16 are loaded, only 8"
    assert outcome["back"] == ["16", "8"]


def test_loading_that_is_stopped_fails_and_leaves_what_was_there():
    outcome = run("loading_is_stopped")
    assert len(outcome["failed"]) == 1
    assert any(word in outcome["failed"][0] for word in ("ended", "stopped"))
    assert outcome["held"] == {"16": 16}
    assert outcome["ended"]
