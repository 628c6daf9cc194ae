"""Two node runtimes and a head, as three machines would run them: layers move, a node dies and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from loadgen.node_processes import Machine, NodeProcess, enrol, node_runtimes
from loadgen.server import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

MODEL = "SmolLM2-135M-Instruct"
DEADLINE_S = 120.0
COMMAND = (sys.executable, "-m", "controller.cli")
PROMPTS = {
    "greedy": {"prompt": "The capital of France is", "temperature": 0},
    "seeded": {"prompt": "Once upon a time", "temperature": 0.9, "seed": 7},
    "long": {"prompt": "and so on " * 80, "temperature": 0},
}


class Cluster:
    """What a test needs of it."""

    def __init__(self, http: httpx.AsyncClient, nodes: tuple[NodeProcess, ...], folder: Path) -> None:
        self.http, self.nodes, self.folder = http, nodes, folder

    async def answers(self) -> dict[str, str]:
        """Ask for all answers at once."""

        async def ask(request: dict[str, Any]) -> str:
            body = {"model": MODEL, "max_tokens": 80, "ignore_eos": True, **request}
            response = await self.http.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            text: str = response.json()["choices"][0]["text"]
            return text

        return dict(zip(PROMPTS, await asyncio.gather(*map(ask, PROMPTS.values())), strict=True))

    async def change(self, layers: str, **how: str) -> dict[str, Any]:
        response = await self.http.post("/midstream/v1/reconfigurations", json={"layers": layers, **how})
        assert response.status_code == 202, response.text
        change = response.json()["id"]
        report = await self.http.get(f"/midstream/v1/reconfigurations/{change}", params={"wait": 60})
        answer: dict[str, Any] = report.json()
        return answer

    async def status(self) -> dict[str, Any]:
        state: dict[str, Any] = (await self.http.get("/midstream/v1/status")).json()
        return state

    async def until(self, condition: str, holds: Any) -> dict[str, Any]:
        """Wait until `holds` is true of the status."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    state = await self.status()
                    if holds(state):
                        return state
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pytest.fail(f"never {condition}: {state}")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("nodes")
    head = Machine("head", f"127.0.0.1:{free_port()}", controls=True)
    nodes = tuple(Machine(name, f"127.0.0.1:{free_port()}") for name in ("edge-1", "edge-2"))
    await enrol((head, *nodes), folder, (*COMMAND, "node"))
    port = free_port()
    server = ServerProcess(
        "midstream",
        [
            *(*COMMAND, "serve", "--layers", "15@edge-1,15@edge-2", "--port", str(port)),
            *("--node", "edge-1", "--node", "edge-2", "--name", "head", "--state", str(folder / "head")),
            *("--listen", head.address),
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


@pytest.mark.parametrize("method", ["pre_copy", "stop_and_copy", "recompute"])
async def test_layers_move_between_nodes_under_load_and_no_token_changes(cluster: Cluster, method: str) -> None:
    undisturbed = await cluster.answers()
    under_load = asyncio.create_task(cluster.answers())
    await cluster.until("computing", lambda state: state["counters"]["batches"] > 0)
    for layers in ("8@edge-1,22@edge-2", "20@edge-2,10@edge-1", "15@edge-1,15@edge-2"):
        report = await cluster.change(layers, method=method)
        assert report["state"] == "committed", report
        assert (report["bytes_moved"] > 0) == (method != "recompute")
    assert await under_load == undisturbed


async def test_a_layout_with_an_unknown_node_is_refused_by_name(cluster: Cluster) -> None:
    response = await cluster.http.post("/midstream/v1/reconfigurations", json={"layers": "15@edge-1,15@egde-2"})
    assert response.status_code == 422
    assert "egde-2" in response.json()["error"]["message"]
    assert "edge-1, edge-2" in response.json()["error"]["message"]


async def test_a_node_that_dies_costs_no_token_and_serves_again_when_it_is_back(cluster: Cluster) -> None:
    undisturbed = await cluster.answers()
    under_load = asyncio.create_task(cluster.answers())
    await asyncio.sleep(0.5)  # somewhere in the middle of the answers
    lost = cluster.nodes[1]
    os.kill(lost.pid, signal.SIGKILL)
    assert await under_load == undisturbed
    state = await cluster.status()
    assert {stage["node"] for stage in state["stages"]} == {"edge-1"}
    assert await cluster.answers() == undisturbed
    await lost.stop()
    await lost.start()
    await cluster.until("taken back", lambda state: "edge-2" in state["spare_stages"])
    assert (await cluster.change("15@edge-1,15@edge-2"))["state"] == "committed"
    assert await cluster.answers() == undisturbed
