"""A node runtime is killed and started again: the next one takes over weights and KV, and no token is computed twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import pytest_asyncio

from loadgen.node_processes import Machine, NodeProcess, enrol, node_runtimes
from loadgen.server import ServerProcess, free_port
from tests.e2e.test_nodes import COMMAND, DEADLINE_S, PROMPTS, Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

GRACE_S = 30.0
KEEP_S = 45.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("restart")
    head = Machine("head", f"127.0.0.1:{free_port()}", controls=True)
    nodes = tuple(
        Machine(name, f"127.0.0.1:{free_port()}", options=("--keep", str(KEEP_S))) for name in ("edge-1", "edge-2")
    )
    await enrol((head, *nodes), folder, (*COMMAND, "node"))
    port = free_port()
    server = ServerProcess(
        "midstream",
        [
            *(*COMMAND, "serve", "--layers", "15@edge-1,15@edge-2", "--port", str(port)),
            *("--node", "edge-1", "--node", "edge-2", "--name", "head", "--state", str(folder / "head")),
            *("--listen", head.address, "--node-grace", str(GRACE_S)),
        ],
        port=port,
        log_path=folder / "server.log",
    )
    async with (
        node_runtimes(
            nodes, folder, (*COMMAND, "node"), env={}, log_dir=folder, start_deadline_s=DEADLINE_S
        ) as processes,
        server,
        httpx.AsyncClient(base_url=server.base_url, timeout=DEADLINE_S) as http,
    ):
        yield Cluster(http, processes, folder)


async def events(cluster: Cluster, event: str) -> list[dict[str, Any]]:
    story = (await cluster.http.get("/midstream/v1/story/pipeline")).json()
    return [entry for entry in story["events"] if entry["event"] == event]


async def under_load(cluster: Cluster) -> asyncio.Task[dict[str, str]]:
    """Begin all answers; they are somewhere in the middle when this returns."""
    before = (await cluster.status())["counters"]["batches"]
    answers = asyncio.create_task(cluster.answers())
    await cluster.until("computing", lambda state: state["counters"]["batches"] > before + 12)
    return answers


async def restart(node: NodeProcess, number: int = signal.SIGKILL) -> float:
    """End the node runtime, start it again at once; returns the seconds until it was ready."""
    started = time.monotonic()
    os.kill(node.pid, number)
    await node.stop()
    node.log_path.rename(node.log_path.with_suffix(f".{time.monotonic_ns()}.log"))
    await node.start()
    return time.monotonic() - started


async def test_x(cluster: Cluster) -> None:
    undisturbed = await cluster.answers()
    answers = await under_load(cluster)
    print("restart took", await restart(cluster.nodes[1]))
    assert await answers == undisturbed
    state = await cluster.status()
    print(state)
    print((await cluster.http.get("/midstream/v1/story/pipeline")).text)
    print(cluster.nodes[1].log_path.read_text())
    assert [stage["node"] for stage in state["stages"]] == ["edge-1", "edge-2"]
