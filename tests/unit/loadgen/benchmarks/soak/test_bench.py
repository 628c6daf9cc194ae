"""A whole soak on loopback, with make-believe nodes and a mock server in place of the head."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from loadgen.benchmarks.soak.bench import SoakOptions, render, run
from loadgen.benchmarks.soak.schedule import Kind
from tests.unit.loadgen.benchmarks.reconfigure.test_bench import own_servers
from tests.unit.loadgen.streams import eventually
from tests.unit.loadgen.test_node_processes import COMMAND

MOCK = (sys.executable, "-m", "loadgen.mock", "--itl-ms", "4")
DECK = {Kind.NODE: 1, Kind.CHANGE_NODE: 1, Kind.CHANGE: 1, Kind.CAPACITY: 1, Kind.STAGE: 1}


def options(tmp_path: Path, *behaviour: str, **changed: Any) -> SoakOptions:
    given = {
        "streams": 2,
        "tokens": 60,
        "prompt_tokens": 20,
        "kills": 2,
        "deck": DECK,
        "log_dir": tmp_path,
        "settle_s": 0.5,
        "start_deadline_s": 60.0,
        "change_deadline_s": 20.0,
        "recovered_deadline_s": 20.0,
        "idle_deadline_s": 20.0,
        "midstream_command": (*MOCK, *behaviour),
        "node_command": COMMAND,
    }
    return SoakOptions(**(given | changed))


def events(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


async def test_nodes_are_killed_and_come_back_and_all_answers_are_compared(tmp_path):
    said: list[str] = []
    result = await run(options(tmp_path), say=said.append)

    assert result["violations"] == []
    assert result["passed"] is True
    kinds = result["disturbances"]
    assert result["kills"] == kinds["node"]["made"] + kinds["change_node"]["made"] == 2
    assert kinds["stage"]["made"] == 0  # make-believe nodes have none
    assert (result["different"], result["errors"], result["left"]) == (0, {}, [])
    assert result["answers"] > 4
    assert result["node_away_ms"]["max"] > 0
    assert result["idle_point"]["edge-1"]["after"]["processes"] == 1
    assert [line for line in said if "PROBLEM" in line] == []
    assert len(events(tmp_path, "step")) == result["steps"]
    assert (tmp_path / "journal.jsonl").read_text().count('"planned"') >= 2
    assert render(result).row_count == len(Kind)
    assert own_servers() == []


async def test_a_head_that_answers_otherwise_than_before_has_not_passed(tmp_path):
    result = await run(options(tmp_path, "--change-fault", "replace", "--change-stall-ms", "50"))
    assert result["passed"] is False
    assert result["different"] > 0
    assert any("answers differ" in violation for violation in result["violations"])
    assert own_servers() == []


async def test_nothing_is_left_when_it_is_ended(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    task = asyncio.create_task(run(options(tmp_path, kills=10_000)))
    await eventually(lambda: (tmp_path / "events.jsonl").exists() and events(tmp_path, "step"), 60)
    assert os.listdir(temporary)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert own_servers() == []
    assert os.listdir(temporary) == []
