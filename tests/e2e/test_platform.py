"""A pipeline as its user runs it: up, ask, change it by event and by object under a stream, down, nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from controller.platform.local.state import PlatformFolder, PlatformRecord
from loadgen.server import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

DEADLINE_S = 240.0
ANSWER_S = 120.0
TOKENS = 160
QUESTION = "Tell me a short story about a lighthouse keeper."
REQUESTED = "dev.midstream.reconfiguration.requested"
HEAD = "apiVersion: midstream.dev/v1alpha1\nkind: LLMPipeline\nmetadata: {name: %s}\n"


class User:
    """Somebody with a shell: commands run as they would be typed, with a state and temporary files of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.temporary = TemporaryDirectory(prefix="u-")
        self.environment = {
            **os.environ,
            "XDG_STATE_HOME": str(folder / "state"),
            "TMPDIR": self.temporary.name,
            "COLUMNS": "400",
        }

    async def run(self, *arguments: str, code: int = 0) -> str:
        """Run `midstream` and return what it says."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "controller.cli", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment,
            cwd=self.folder,
        )
        async with asyncio.timeout(DEADLINE_S):
            output = (await process.communicate())[0].decode()
        assert process.returncode == code, f"{output}\n{self.logs()}"
        return output

    def logs(self) -> str:
        """Return the last lines of all logs there are, for a failure."""
        logs = sorted(self.folder.glob("state/midstream/platform/*/logs/*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def write(self, name: str, spec: str) -> str:
        file = self.folder / f"{name}.yaml"
        file.write_text(f"{HEAD % name}spec: {spec}\n")
        return str(file)

    def platform(self, name: str) -> PlatformFolder:
        return PlatformFolder(name, self.folder / "state" / "midstream" / "platform")

    def record(self, name: str) -> PlatformRecord:
        record = self.platform(name).record()
        assert record is not None
        return record

    def functions(self, name: str) -> list[str]:
        """Return the functions of stages that run."""
        return sorted(child for child in self.record(name).children if child.startswith("stage-"))

    async def send(self, name: str, data: dict[str, Any], *options: str, code: int = 0) -> str:
        """Send a request for another layout by hand and wait for its answer."""
        data = {"pipeline": name, **data}
        options = ("--broker", self.record(name).broker, "--wait", f"{ANSWER_S:g}", *options)
        return await self.run("event", "send", REQUESTED, "--data", json.dumps(data), *options, code=code)

    async def status(self) -> dict[str, Any]:
        async with httpx.AsyncClient(timeout=DEADLINE_S, trust_env=False) as http:
            state: dict[str, Any] = (await http.get(f"http://127.0.0.1:{self.port}/midstream/v1/status")).json()
        return state

    async def until(self, condition: str, holds: Any) -> None:
        """Wait until `holds` is true."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not await holds():  # noqa: ASYNC110 - of other processes
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pytest.fail(f"never {condition}")


class Stream:
    """One answer, read piece by piece."""

    def __init__(self, port: int) -> None:
        self._client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        self._arrived = asyncio.Condition()
        self.pieces: list[str] = []
        self.tokens = 0

    async def read(self) -> None:
        async with self._client as client:
            chunks = await client.completions.create(
                model="SmolLM2-135M-Instruct",
                prompt=QUESTION,
                max_tokens=TOKENS,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            async for chunk in chunks:
                async with self._arrived:
                    self.pieces += [choice.text for choice in chunk.choices]
                    self.tokens = chunk.usage.completion_tokens if chunk.usage else self.tokens
                    self._arrived.notify_all()

    async def has(self, pieces: int) -> None:
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.pieces) >= pieces)


def alive(record: PlatformRecord) -> list[str]:
    """Return what of a platform still runs."""
    return [name for name, child in {"supervisor": record.supervisor, **record.children}.items() if child.group()]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def user(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[User]:
    """Somebody for whom the default pipeline runs."""
    person = User(tmp_path_factory.mktemp("platform"))
    try:
        said = await person.run("up", "-d", "--port", str(person.port))
        assert f"default serves at http://127.0.0.1:{person.port}/v1" in said
        yield person
    finally:
        await person.run("down", "default")
        person.temporary.cleanup()


async def test_a_stream_does_not_notice_a_change_by_event_and_one_by_object(user: User):
    undisturbed = Stream(user.port)
    await undisturbed.read()
    assert undisturbed.tokens == TOKENS
    disturbed = Stream(user.port)
    reading = asyncio.create_task(disturbed.read())
    await disturbed.has(5)
    said = await user.send("default", {"layers": "8,12,10"}, "--id", "by-hand")
    assert "committed" in said
    assert not reading.done()
    said = await user.run("apply", "-f", user.write("default", "{auto: {stages: 1}}"))
    assert "8,12,10 -> 30 committed" in said
    await reading
    assert "".join(disturbed.pieces) == "".join(undisturbed.pieces)
    assert disturbed.tokens == TOKENS
    applied = user.platform("default").applied()
    assert applied is not None
    assert (applied.generation, applied.pipeline.layout_text(30)) == (2, "30")


async def test_an_event_that_comes_again_or_late_changes_nothing(user: User):
    before = await user.status()
    assert before["layers"] == "30"

    async def one() -> bool:
        return user.functions("default") == ["stage-0"]

    await user.until("the function of one stage", one)
    await user.send("default", {"layers": "8,12,10"}, "--id", "by-hand")  # its answer of then
    late = await user.send("default", {"layers": "10,20", "generation": 1}, code=1)
    assert "generation 1 is older than generation 2" in late
    wrong = await user.send("default", {"layers": "8,12,9"}, code=1)
    assert "add up to 29" in wrong
    after = await user.status()
    assert (after["layers"], after["epoch"]) == (before["layers"], before["epoch"])
    log = user.platform("default").log("supervisor")

    async def heard() -> bool:
        return "add up to 29" in log.read_text()

    await user.until("the supervisor heard of all of that", heard)
    triggers = user.platform("default").triggers.read_text()
    assert ("name: stage-0\n" in triggers, "name: stage-1\n" in triggers) == (True, False)
    assert user.functions("default") == ["stage-0"]


async def test_what_only_a_restart_changes_is_refused_by_name(user: User):
    said = await user.run("apply", "-f", user.write("default", "{capacity: {kvBlocks: 64}}"), code=2)
    assert "only a restart changes spec.capacity.kvBlocks" in said


async def test_functions_follow_the_stages_and_come_back_when_they_end(user: User):
    await user.run("apply", "-f", user.write("default", "{auto: {stages: 3}}"))

    async def three() -> bool:
        return user.functions("default") == ["stage-0", "stage-1", "stage-2"]

    await user.until("three functions of stages", three)
    functions = {name: child for name, child in user.record("default").children.items() if name.startswith("stage-")}
    os.kill(functions["stage-2"].pid, signal.SIGTERM)  # it gives its layers to the others first

    async def again() -> bool:
        child = user.record("default").children.get("stage-2")
        return child is not None and child != functions["stage-2"] and (await user.status())["layers"] == "10,10,10"

    await user.until("a new function with its old layers", again)


async def test_a_second_platform_of_that_name_or_port_is_refused(user: User):
    assert "runs already" in await user.run("up", "-d", "--port", str(free_port()), code=1)
    other = user.write("other", "{}")
    assert f"port {user.port} cannot be used" in await user.run("up", "-f", other, "--port", str(user.port), code=1)


async def test_down_leaves_nothing(user: User):
    record = user.record("default")
    assert len(alive(record)) == 7
    said = await user.run("down", "default")
    assert said.startswith("default ended: ")
    assert alive(record) == []
    assert list(user.platform("default").path.parent.iterdir()) == []
    assert os.listdir(user.temporary.name) == []
    assert not [process for process in psutil.process_iter() if str(user.folder) in " ".join(command(process))]
    assert "no pipeline 'default' runs here" in await user.run("down", "default")


def command(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        words = []
    return words


async def test_layers_move_between_nodes_that_the_object_names(tmp_path: Path):
    user = User(tmp_path)
    placed = "{stages: [{layers: %d, node: edge-1}, {layers: %d, node: edge-2}]}"
    try:
        await user.run("up", "-d", "-f", user.write("nodes", placed % (15, 15)), "--port", str(user.port))
        record = user.record("nodes")
        assert "15@edge-1,15@edge-2 -> 8@edge-1,22@edge-2 committed" in await user.run(
            "apply", "-f", user.write("nodes", placed % (8, 22))
        )
        elsewhere = user.write("nodes", "{stages: [{layers: 30, node: edge-9}]}")
        assert "spec.stages[0].node: 'edge-9' does not run" in await user.run("apply", "-f", elsewhere, code=2)
    finally:
        await user.run("down", "nodes")
    assert alive(record) == []
    assert os.listdir(user.temporary.name) == []
    user.temporary.cleanup()
