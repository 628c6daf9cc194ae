"""Node runtimes that an experiment starts: keys, enrolment, processes.

Problem: a pipeline over several machines needs a runtime on each, and all of them have to know each other's
certificates before a byte is read. Everything goes through the `midstream node` commands, as an operator would do it.

Protocol: `identity` prints a certificate, `trust` enrols a peer, `run` serves and writes a line `ready` to standard
error when its engine is imported.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import ServerError
from loadgen.process import WatchedProcess

_READY = re.compile(r"^\S+  ready\s", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a head or a node runtime of an experiment runs.

    Attributes:
        name: As the others call it.
        address: host:port that it listens on for the others.
        command: Put before its command line, so that it runs there.
        controls: Whether it may give the others orders, as a head does.
        options: Further options of its node runtime.
    """

    name: str
    address: str
    command: tuple[str, ...] = ()
    controls: bool = False
    options: tuple[str, ...] = ()


class NodeProcess(WatchedProcess):
    """A node runtime; its log file must be its own and new."""

    READY = "ready"

    @contextlib.asynccontextmanager
    async def _probe(self) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        async def ready() -> bool:
            return _READY.search(self.log_path.read_text(encoding="utf-8", errors="replace")) is not None

        yield ready


def trust_arguments(machines: Sequence[Machine], folder: Path) -> list[tuple[str, ...]]:
    """Return the arguments of `midstream node` that make every machine trust every other one."""
    return [
        (
            *("trust", peer.name, "--name", machine.name, "--state", str(folder / machine.name)),
            *("--certificate", str(_certificate(folder, peer)), "--address", peer.address),
            *(("--controls",) if peer.controls else ()),
        )
        for machine in machines
        for peer in machines
        if peer != machine
    ]


async def enrol(machines: Sequence[Machine], folder: Path, node_command: Sequence[str]) -> None:
    """Make a key for every machine in a folder of its name below `folder`, and let all of them trust each other.

    Raises:
        ServerError: a command failed; the message has its words.
    """
    for machine in machines:
        state = str(folder / machine.name)
        certificate = await _output((*node_command, "identity", "--name", machine.name, "--state", state))
        _certificate(folder, machine).write_text(certificate, encoding="utf-8")
    for arguments in trust_arguments(machines, folder):
        await _output((*node_command, *arguments))


@contextlib.asynccontextmanager
async def node_runtimes(
    nodes: Sequence[Machine],
    folder: Path,
    node_command: Sequence[str],
    *,
    env: Mapping[str, str],
    log_dir: Path,
    start_deadline_s: float,
) -> AsyncIterator[tuple[NodeProcess, ...]]:
    """Run the enrolled nodes, all started at once and ready, and stop them in the end.

    Raises:
        ServerError: one of them did not become ready.
    """
    processes = tuple(
        node_process(
            node,
            folder,
            node_command,
            env=env,
            log_path=log_dir / f"{node.name}.log",
            start_deadline_s=start_deadline_s,
        )
        for node in nodes
    )
    try:
        await asyncio.gather(*(process.start() for process in processes))
        yield processes
    finally:
        await asyncio.gather(*(process.stop() for process in processes))


def node_process(
    node: Machine,
    folder: Path,
    node_command: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    start_deadline_s: float,
) -> NodeProcess:
    """Make the process of an enrolled node, not started; `log_path` must be a new file each time."""
    named = ["--name", node.name, "--state", str(folder / node.name), "--listen", node.address]
    argv = [*node.command, *node_command, "run", *named, *node.options]
    return NodeProcess(node.name, argv, log_path=log_path, env=env, start_deadline_s=start_deadline_s)


def _certificate(folder: Path, machine: Machine) -> Path:
    return folder / f"{machine.name}.pem"


async def _output(argv: Sequence[str]) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise ServerError(f"cannot run {argv[0]}: {error}") from error
    out, err = await process.communicate()
    if process.returncode != 0:
        raise ServerError(f"{' '.join(argv)} (status {process.returncode}): {err.decode(errors='replace')[-500:]}")
    return out.decode()
