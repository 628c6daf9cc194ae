"""The table of what a node hosts: a name is free once it was removed, whatever of it is still being cleaned up."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.warm.node import NodeError
from runtime.warm.pipeline_table import PipelineTable


@pytest.fixture
def table(tmp_path: Path) -> PipelineTable:
    exchange: Any = SimpleNamespace()
    return PipelineTable("edge-1", str(tmp_path), exchange, itertools.count(1), lambda *_, **__: None)


def settle(table: PipelineTable) -> Any:
    zygote: Any = SimpleNamespace()
    return table.settle("smollm", "head", frozenset({"head"}), b"weights", zygote)


def test_a_name_is_free_again_while_the_last_ones_folder_is_still_there(table: PipelineTable) -> None:
    before = settle(table)
    assert table.remove(before)
    after = settle(table)
    assert table.get("smollm") is after
    assert Path(before.folder).is_dir()
    assert before.folder != after.folder
    assert not table.remove(before)


def test_a_node_that_is_ending_hosts_nothing_more(table: PipelineTable) -> None:
    hosted = settle(table)
    assert table.shut() == [hosted]
    with pytest.raises(NodeError, match="node edge-1 is ending"):
        settle(table)
