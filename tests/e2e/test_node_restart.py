"""A node runtime dies and the next one takes over its weights and KV: no token is lost, and none computed twice."""

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
from runtime.engine import nodes as nodes_module
from runtime.warm.keeper import Keeper, close_all
from tests.e2e.test_nodes import COMMAND, DEADLINE_S, Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

GRACE_S = 20.0
KEEP_S = 25.0


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


async def restart(
    *nodes: NodeProcess, number: int = signal.SIGKILL, meanwhile: Callable[[], object] | None = None
) -> None:
    """End node runtimes and start them again at once."""
    for node in nodes:
        os.kill(node.pid, number)
    for node in nodes:
        if number == signal.SIGUSR2:
            await until_left(node)  # for `stop` says SIGTERM, which is to end everything
        await node.stop()
        # What says that it is ready must be its own.
        node.log_path.rename(node.log_path.with_suffix(f".{time.monotonic_ns()}.log"))
    if meanwhile is not None:
        meanwhile()
    await asyncio.gather(*(node.start() for node in nodes))


async def until_left(node: NodeProcess) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if "  left  " in node.log_path.read_text(encoding="utf-8"):
                return
            await asyncio.sleep(0.02)


async def steady(cluster: Cluster) -> None:
    """Let as much time pass as a node must have served before it is awaited again."""
    resumed = await events(cluster, "node resumed")
    if resumed:
        await asyncio.sleep(max(0.0, resumed[-1]["at"] + nodes_module._STEADY_S + 0.5 - time.time()))


async def serve_as_at_first(cluster: Cluster) -> None:
    """Serve with both nodes, each with all its spares."""
    await cluster.until("whole", lambda state: {"edge-1", "edge-2"} <= state["spare_stages"].keys())
    if (await cluster.status())["layers"] != "15@edge-1,15@edge-2":
        assert (await cluster.change("15@edge-1,15@edge-2"))["state"] == "committed"
    await steady(cluster)


@pytest.mark.parametrize(
    ("which", "number"),
    [((1,), signal.SIGKILL), ((0,), signal.SIGKILL), ((0, 1), signal.SIGKILL), ((1,), signal.SIGUSR2)],
    ids=["last-killed", "first-killed", "both-killed", "last-told-to-leave"],
)
async def test_streams_go_on_with_the_same_tokens_and_nothing_is_computed_or_loaded_again(
    cluster: Cluster, which: tuple[int, ...], number: int
) -> None:
    await serve_as_at_first(cluster)
    undisturbed = await cluster.answers()
    resumed, opened = len(await events(cluster, "node resumed")), len(await events(cluster, "node ready"))
    answers = await under_load(cluster)
    counted = (await cluster.status())["counters"]
    restarted = [cluster.nodes[index] for index in which]
    await restart(*restarted, number=number)
    assert await answers == undisturbed
    state = await cluster.status()
    assert state["layers"] == "15@edge-1,15@edge-2"
    told = (await events(cluster, "node resumed"))[resumed:]
    assert sorted(entry["node"] for entry in told) == sorted(node.name for node in restarted)
    assert all(entry["restarted"] and entry["kept_tokens"] > 0 for entry in told)
    assert await events(cluster, "layers re-placed") == []
    assert len(await events(cluster, "node ready")) == opened  # nobody opened it anew
    # What was in flight, and nothing of the prompts: those would be many batches of 80 streams' tokens.
    assert state["counters"]["replayed_batches"] - counted["replayed_batches"] <= 4
    for node in restarted:
        log = node.log_path.read_text(encoding="utf-8")
        assert "adopted            models=1" in log
        assert "not adopted" not in log


@pytest.mark.parametrize("side", [0, 1], ids=["source", "target"])
async def test_a_change_that_loses_a_side_for_a_moment_costs_no_token(cluster: Cluster, side: int) -> None:
    await serve_as_at_first(cluster)
    undisturbed = await cluster.answers()
    answers = await under_load(cluster)
    change = asyncio.create_task(cluster.change("8@edge-1,22@edge-2"))
    await cluster.until("changing", lambda state: state["change"] is not None or change.done())
    await restart(cluster.nodes[side])
    assert await answers == undisturbed
    assert (await change)["state"] in {"aborted", "committed"}
    assert await events(cluster, "layers re-placed") == []
    await serve_as_at_first(cluster)
    assert await cluster.answers() == undisturbed


async def test_when_its_record_is_damaged_the_node_counts_as_lost_and_no_token_is(cluster: Cluster) -> None:
    await serve_as_at_first(cluster)
    undisturbed = await cluster.answers()
    answers = await under_load(cluster)

    def damage() -> None:
        keeper = Keeper.attach(cluster.folder / "edge-2", _never, _never, _never, 0.0)
        for item in keeper.items:
            if item.name.startswith("pool."):
                keeper.keep(item.name, item.record[:-5], item.descriptor)
        keeper.leave()
        close_all(keeper.items)

    await restart(cluster.nodes[1], meanwhile=damage)
    assert await answers == undisturbed
    assert "has nothing left" in (await events(cluster, "node not resumed"))[-1]["reason"]
    assert "its record is damaged" in cluster.nodes[1].log_path.read_text(encoding="utf-8")
    await cluster.until("taken back", lambda state: {"edge-1", "edge-2"} <= state["spare_stages"].keys())
    assert (await events(cluster, "node ready"))[-1]["weights_were_warm"]
    await serve_as_at_first(cluster)
    assert await cluster.answers() == undisturbed


async def test_a_node_runtime_that_never_comes_back_leaves_nothing(cluster: Cluster) -> None:
    await serve_as_at_first(cluster)
    undisturbed = await cluster.answers()
    answers = await under_load(cluster)
    lost = cluster.nodes[1]
    left = [
        process
        for process in psutil.process_iter()
        if _has_open(process, cluster.folder / "edge-2.log") and process.pid != lost.pid
    ]
    assert len(left) >= 4  # keeper, seed, model and stages
    os.kill(lost.pid, signal.SIGKILL)
    await lost.stop()
    assert await answers == undisturbed
    _, alive = await asyncio.to_thread(psutil.wait_procs, left, DEADLINE_S)
    assert alive == []
    assert not (cluster.folder / "edge-2" / "keeper").exists()
    lost.log_path.rename(lost.log_path.with_suffix(f".{time.monotonic_ns()}.log"))
    await lost.start()
    await cluster.until("taken back", lambda state: "edge-2" in state["spare_stages"])
    assert not (await events(cluster, "node ready"))[-1]["weights_were_warm"]


def _has_open(process: psutil.Process, log: Path) -> bool:
    """Whether a process writes to a log, under whichever name it has now."""
    try:
        return os.readlink(f"/proc/{process.pid}/fd/2").startswith(str(log).removesuffix(".log"))
    except OSError:
        return False


def _never(*_: object) -> bytes:
    raise AssertionError("there is no keeper")
