"""I5 with a real engine: two node runtimes, a head, and a guard whose intents keep one of the nodes out."""

from __future__ import annotations

import asyncio
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


async def test_without_the_guard_the_pipeline_serves_on_and_nothing_moves(cluster: GuardedCluster) -> None:
    undisturbed = await cluster.answers()
    answers = await cluster.under_load()
    cluster.guard.stop()
    refused = await cluster.ask("15@edge-1,15")
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "guard_silent")
    assert await answers == undisturbed
