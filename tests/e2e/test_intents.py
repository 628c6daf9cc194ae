"""I5 with a real engine: two node runtimes, a head, and a guard whose intents keep one of the nodes out.

And what follows when a node in use becomes forbidden: `midstream intent watch` has the layers leave it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from loadgen.node_processes import Machine, enrol, node_runtimes
from loadgen.server import ServerProcess, free_port
from tests.e2e.test_nodes import Cluster
from tests.integration.functions.guard import IN_EU, TOKEN, GuardService
from tests.integration.functions.process import FunctionProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

DEADLINE_S = 120.0
COMMAND = (sys.executable, "-m", "controller.cli")


class GuardedCluster(Cluster):
    """A cluster with a guard; edge-2 is in the US, everything else in the EU."""

    guard: GuardService

    async def ask(self, layers: str) -> httpx.Response:
        return await self.http.post("/midstream/v1/reconfigurations", json={"layers": layers})

    async def story(self, event: str) -> list[dict[str, Any]]:
        entries = (await self.http.get("/midstream/v1/story")).json()["events"]
        return [entry for entry in entries if entry["event"] == event]

    async def under_load(self) -> asyncio.Task[dict[str, str]]:
        """Begin all answers, and return once they are being computed."""
        before = (await self.status())["counters"]["batches"]
        answers = asyncio.create_task(self.answers())
        await self.until("computing", lambda state: state["counters"]["batches"] > before)
        return answers

    def intent(self, command: str, *options: str) -> tuple[str, ...]:
        """Return a command line of `midstream intent` about this pipeline."""
        site = ("-i", str(self.folder / "inventory.yaml"), "--state", str(self.folder / "intents"))
        return (*COMMAND, "intent", command, *site, "--head", str(self.http.base_url), "--here", "head", *options)

    async def run(self, *command: str) -> tuple[int | None, str]:
        """Run a command to its end; returns its exit code and what it printed."""
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(DEADLINE_S):
            told, _ = await process.communicate()
        return process.returncode, told.decode()


@contextlib.asynccontextmanager
async def watching(*command: str) -> AsyncIterator[asyncio.Queue[dict[str, Any]]]:
    """Run `midstream intent watch`; yields the lines that it prints, as they come."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def read(stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            lines.put_nowait(json.loads(line))

    reading = asyncio.create_task(read(process.stdout))
    try:
        yield lines
    finally:
        process.kill()
        await process.wait()
        await reading


@contextlib.contextmanager
def reconfigure_function(cluster: GuardedCluster) -> Iterator[str]:
    """Serve the function that takes requests for a layout; yields its address."""
    settings = {"MIDSTREAM_ENDPOINT": str(cluster.http.base_url), "MIDSTREAM_PIPELINE": "default"}
    function = FunctionProcess.start("reconfigure", free_port(), cluster.folder / "reconfigure.log", settings)
    try:
        yield function.wait_alive().url
    finally:
        function.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedCluster]:
    folder = tmp_path_factory.mktemp("intents")
    head = Machine("head", f"127.0.0.1:{free_port()}", controls=True)
    nodes = tuple(Machine(name, f"127.0.0.1:{free_port()}") for name in ("edge-1", "edge-2"))
    await enrol((head, *nodes), folder, (*COMMAND, "node"))
    guard = GuardService(folder, "default", {"head": "DE", "edge-1": "FR", "edge-2": "US"})
    port = free_port()
    server = ServerProcess(
        "midstream",
        [
            *(*COMMAND, "serve", "--layers", "10@edge-1,20", "--port", str(port), "--guard", guard.url),
            *("--node", "edge-1", "--node", "edge-2", "--name", "head", "--state", str(folder / "head")),
            *("--listen", head.address),
        ],
        port=port,
        log_path=folder / "server.log",
        env={**os.environ, "MIDSTREAM_GUARD_TOKEN": TOKEN},
    )
    with guard.running():
        async with (
            node_runtimes(
                nodes, folder, (*COMMAND, "node"), env={}, log_dir=folder, start_deadline_s=DEADLINE_S
            ) as processes,
            server,
            httpx.AsyncClient(base_url=server.base_url, timeout=DEADLINE_S) as http,
        ):
            cluster = GuardedCluster(http, processes, folder)
            cluster.guard = guard
            yield cluster


async def test_a_forbidden_node_was_given_nothing_at_the_start(cluster: GuardedCluster) -> None:
    assert {entry["node"] for entry in await cluster.story("node ready")} == {"edge-1"}
    (kept_out,) = await cluster.story("node kept out")
    assert (kept_out["node"], "node edge-2" in kept_out["reason"]) == ("edge-2", True)


async def test_layers_go_where_they_may_under_a_stream_and_nowhere_else(cluster: GuardedCluster) -> None:
    undisturbed = await cluster.answers()
    answers = await cluster.under_load()
    refused = await cluster.ask("10@edge-1,20@edge-2")
    error = refused.json()["error"]
    assert (refused.status_code, error["type"]) == (422, "forbidden")
    assert "node edge-2 is not one where jurisdiction is DE or FR (it has jurisdiction US)" in error["message"]
    report = await cluster.change("20@edge-1,10")
    assert report["state"] == "committed", report
    assert report["bytes_moved"] > 0
    assert await answers == undisturbed
    assert {entry["node"] for entry in await cluster.story("node ready")} == {"edge-1"}


async def test_an_intent_that_comes_during_a_change_aborts_it_and_no_stream_notices(cluster: GuardedCluster) -> None:
    undisturbed = await cluster.answers()
    cluster.guard.store.remove(IN_EU.metadata.name)
    await cluster.until("taken in", lambda state: "edge-2" in state["spare_stages"])
    answers = await cluster.under_load()
    before = (await cluster.status())["layers"]
    accepted = await cluster.ask("10@edge-1,20@edge-2")
    assert accepted.status_code == 202, accepted.text
    cluster.guard.store.put(IN_EU)  # while its stages are being prepared
    change = accepted.json()["id"]
    report = (await cluster.http.get(f"/midstream/v1/reconfigurations/{change}", params={"wait": 60})).json()
    assert report["state"] == "aborted", report
    assert report["reason"].startswith("in step pre_copy: the intents forbid default on edge-1, edge-2")
    assert report["bytes_moved"] == 0
    assert await answers == undisturbed
    assert (await cluster.status())["layers"] == before


async def test_layers_leave_a_node_that_loses_its_label_under_a_stream_and_the_intents_hold_again(
    cluster: GuardedCluster,
) -> None:
    cluster.guard.move("edge-2", "FR")
    await cluster.until("taken in", lambda state: "edge-2" in state["spare_stages"])
    undisturbed = await cluster.answers()
    changes = {entry["subject"] for entry in await cluster.story("planned")}
    assert (await cluster.run(*cluster.intent("check")))[0] == 0
    with reconfigure_function(cluster) as function:
        async with (
            asyncio.timeout(DEADLINE_S),
            watching(*cluster.intent("watch", "--every", "0.2", "--broker", function)) as lines,
        ):
            answers = await cluster.under_load()
            cluster.guard.move("edge-1", "US")
            told = [await lines.get()]
            while "settled" not in told[-1]:
                told.append(await lines.get())
    assert [next(iter(line)) for line in told] == ["violated", "requested", "moved", "settled"], told
    violated, requested, moved, settled = told
    assert (violated["violated"], requested["intents"], settled["settled"]) == (
        "eu-only",
        ["eu-only"],
        "re-established",
    )
    assert "why" not in requested, requested
    assert (requested["to"], moved["to"]) == ("15@edge-2,15", "15@edge-2,15")
    assert 0 < settled["detect_s"] < settled["compliant_s"]
    assert await answers == undisturbed
    state = await cluster.status()
    assert (state["layers"], {stage["node"] for stage in state["stages"]}) == ("15@edge-2,15", {"edge-2", "local"})
    (change,) = {entry["subject"] for entry in await cluster.story("planned")} - changes
    assert (change, state["last_change"]["request"]) == (moved["change"], requested["request"])
    assert state["last_change"]["bytes_moved"] == 0  # what lay on the forbidden node stayed there
    assert (await cluster.run(*cluster.intent("check")))[0] == 0


async def test_where_no_node_is_left_nothing_is_computed_until_it_may_be_and_no_stream_is_lost(
    cluster: GuardedCluster,
) -> None:
    before, undisturbed = await cluster.status(), await cluster.answers()
    stops = [len(await cluster.story(event)) for event in ("stopped", "no longer stopped")]
    answers = await cluster.under_load()
    async with asyncio.timeout(DEADLINE_S), watching(*cluster.intent("watch", "--every", "0.5")) as lines:
        for node in ("head", "edge-2"):
            cluster.guard.move(node, "US")
        told = [await lines.get()]
        while "settled" not in told[-1]:
            told.append(await lines.get())
        stopped = await cluster.status()
        assert (await cluster.run(*cluster.intent("check")))[0] == 2  # what takes its time
        assert (await cluster.status())["counters"]["batches"] == stopped["counters"]["batches"]
        assert not answers.done()
        for node in ("head", "edge-2"):
            cluster.guard.move(node, "FR")
        assert await answers == undisturbed
    assert told[-1]["settled"] == "closed"
    assert not any("requested" in line for line in told), told
    assert any("default stays on edge-2, head, as it cannot be moved: no node" in str(line) for line in told), told
    assert (stopped["phase"], "edge-2" in stopped["stopped"]) == ("forbidden", True)
    after = await cluster.status()
    assert (after["layers"], after["stopped"], after["epoch"]) == (before["layers"], None, before["epoch"])
    events = [await cluster.story(event) for event in ("stopped", "no longer stopped")]
    assert [len(each) for each in events] == [count + 1 for count in stops]


async def test_without_the_guard_the_pipeline_serves_on_and_nothing_moves(cluster: GuardedCluster) -> None:
    undisturbed = await cluster.answers()
    answers = await cluster.under_load()
    cluster.guard.stop()
    refused = await cluster.ask("15@edge-1,15")
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "guard_silent")
    assert await answers == undisturbed
