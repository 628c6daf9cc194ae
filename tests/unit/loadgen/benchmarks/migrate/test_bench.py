"""The whole migration experiment on loopback, with make-believe nodes and a mock server in place of the head."""

import sys
from pathlib import Path
from typing import Any

import pytest

from loadgen.benchmarks.migrate.bench import MigrateOptions, render, run
from loadgen.errors import ChangeRefusedError, ServerDiedError
from tests.unit.loadgen.benchmarks.reconfigure.test_bench import own_servers
from tests.unit.loadgen.test_node_processes import COMMAND

MOCK = (sys.executable, "-m", "loadgen.mock", "--itl-ms", "4")


def options(tmp_path: Path, *behaviour: str, **changed: Any) -> MigrateOptions:
    given = {
        "streams": 2,
        "tokens": 60,
        "prompt_tokens": 20,
        "repeat": 1,
        "log_dir": tmp_path,
        "settle_s": 0.01,
        "start_deadline_s": 60.0,
        "change_deadline_s": 20.0,
        "midstream_command": (*MOCK, *behaviour),
        "node_command": COMMAND,
    }
    return MigrateOptions(**(given | changed))


async def test_each_method_is_measured_in_each_repeat_and_changed_back(tmp_path):
    said: list[str] = []
    result = await run(options(tmp_path, "--change-stall-ms", "200", repeat=2), say=said.append)

    assert set(result["methods"]) == {"pre_copy", "stop_and_copy", "recompute"}
    for method, found in result["methods"].items():
        assert [change["method"] for change in found["changes"]] == [method] * 2
        assert {change["from"] for change in found["changes"]} == {"15@edge-1,15@edge-2"}
        assert 190 < found["pause_ms"] < 3000
        assert (found["changes_committed"], found["aborted"]) == (2, [])
        assert (found["tokens_lost"], found["tokens_repeated"], found["outputs_identical"]) == (0, 0, True)
    order = [line.split(" by ")[1].split()[0] for line in said if " by " in line]
    assert order == ["pre_copy", "stop_and_copy", "recompute", "stop_and_copy", "recompute", "pre_copy"]
    assert result["link"]["kind"] == "loopback"
    assert result["machine"]["cpus"] >= 1
    assert render(result).row_count > 10
    assert own_servers() == []


async def test_an_aborted_change_is_a_result(tmp_path):
    result = await run(options(tmp_path, "--change-outcome", "abort", methods=("pre_copy",)))
    found = result["methods"]["pre_copy"]
    assert (found["changes_committed"], found["pause_ms"]) == (0, None)
    assert found["aborted"] == ["the mock server aborts changes, as told"]


async def test_a_refused_change_ends_it_with_the_words_of_the_server(tmp_path):
    with pytest.raises(ChangeRefusedError, match="are refused"):
        await run(options(tmp_path, "--change-outcome", "refuse"))
    assert own_servers() == []


async def test_a_node_that_does_not_start_ends_it_with_its_log(tmp_path):
    dying = "import sys; sys.argv[1] == 'run' and sys.exit('no memory for a node')"
    with pytest.raises(
        ServerDiedError, match=r"edge-\d ended with status 1(?s:.*)no memory for a node(?s:.*)server logs"
    ):
        await run(options(tmp_path, node_command=(sys.executable, "-c", dying)))
