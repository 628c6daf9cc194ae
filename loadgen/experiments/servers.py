"""Targets as processes: start one, restart it with other flags, put its layers back, end it.

A started target keeps its port when it is restarted, so that clients find it again. Node runtimes, if it has any, are
started before it and stay when it restarts: weights are warm then, as they would be in use.
"""

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from loadgen.benchmarks.reconfigure.options import STOCK_COMMAND, ReconfigureOptions, default_model_folder
from loadgen.clock import now_ns
from loadgen.errors import LinkError, MeasurementError, ServerError
from loadgen.experiments.target_control import TargetControl
from loadgen.experiments.targets import (
    NODES,
    EndpointTarget,
    MidstreamTarget,
    MockTarget,
    StartedTarget,
    VllmTarget,
    has_control,
)
from loadgen.experiments.tied import tied
from loadgen.link import LOOPBACK, Link, joined
from loadgen.node_processes import Machine, enrol, node_runtimes
from loadgen.process import WatchedProcess
from loadgen.server import ServerProcess, free_port
from loadgen.workloads.prompts import Prompts, PromptSource

Say = Callable[[str], None]
AnyTarget = EndpointTarget | MidstreamTarget | VllmTarget | MockTarget

_HEAD = "head"
_ASK_S = 10.0
MIDSTREAM = ("-m", "controller.cli")
MOCK = ("-m", "loadgen.mock")


@dataclass(slots=True)
class RunningTarget:
    """A target that can be asked.

    Attributes:
        wanted: What it was started as.
        base_url: Its address, without `/v1`.
        model: The model to ask for.
        control: Its control API; None if it has none.
        facts: What results should say of it: model, versions, link.
        others: Further processes of it: node runtimes.
        prompts: Where prompts for it come from, once it was asked, and as which description.
    """

    wanted: AnyTarget
    base_url: str
    model: str
    control: TargetControl | None
    facts: dict[str, Any]
    others: tuple[WatchedProcess, ...] = ()
    prompts: tuple[Prompts, PromptSource] | None = None
    _server: ServerProcess | None = None
    _new_server: Callable[[StartedTarget], ServerProcess] | None = field(default=None, repr=False)

    @property
    def server(self) -> ServerProcess | None:
        """The process that was started; None for an endpoint."""
        return self._server

    def processes(self) -> tuple[WatchedProcess, ...]:
        """Return the processes that were started."""
        return (*(() if self._server is None else (self._server,)), *self.others)

    async def restart(self, *, layers: str | None, args: tuple[str, ...] | None, grace_s: float) -> float:
        """End the server and start it again on the same port with other flags; return when the old one was gone.

        Returns:
            `loadgen.clock` moment, in ns, at which the old process had gone.

        Raises:
            ServerError: it did not come back.
        """
        if self._server is None or self._new_server is None or not isinstance(self.wanted, StartedTarget):
            raise ServerError("a server that was not started here cannot be restarted")
        changes: dict[str, Any] = {} if layers is None else {"layers": layers}
        changes |= {} if args is None else {"args": args}
        wanted = self.wanted.model_copy(update=changes)
        await self._server.stop(grace_s)
        stopped = now_ns()
        self._server = self._new_server(wanted)
        await self._server.start()
        self.wanted = wanted
        return stopped

    async def put_back(self, target: AnyTarget) -> None:
        """Make it what `target` says again: the layers by a change without load, other flags by a restart.

        Raises:
            ChangeRefusedError, ChangeFailedError, ControlError: the layers could not be put back.
            ServerError: it did not come back.
        """
        if self.wanted != target and isinstance(target, StartedTarget):
            await self.restart(layers=getattr(target, "layers", None), args=target.args, grace_s=30.0)
        if self.control is not None and isinstance(target, MidstreamTarget | MockTarget):
            found = (await self.control.status()).layers
            if found != target.layers:
                await self.control.change(target.layers, target.start_within_s)

    async def stop(self) -> None:
        """End the server that was started."""
        if self._server is not None:
            await self._server.stop()


@asynccontextmanager
async def running(target: AnyTarget, logs: Path, say: Say) -> AsyncIterator[RunningTarget]:
    """Start a target, wait until it is ready, and end it when this is left, in whichever way.

    Must be used on the main thread if the target has node runtimes on a shaped link.

    Args:
        target: What to start, or where it is.
        logs: Folder for the logs of what is started.
        say: Told what is going on.

    Raises:
        ServerError: it could not be started, or does not answer.
    """
    async with AsyncExitStack() as stack:
        if isinstance(target, EndpointTarget):
            model, facts = await _asked(target.base_url, target.model, _bearer(target))
            control = await stack.enter_async_context(TargetControl(target.base_url)) if target.midstream else None
            yield RunningTarget(target, target.base_url, model, control, facts)
            return
        head: tuple[str, ...] = ()
        link_facts: dict[str, Any] = {}
        nodes: tuple[WatchedProcess, ...] = ()
        if isinstance(target, MidstreamTarget) and target.nodes is not None:
            link = _link(stack, target.nodes.link, say)
            link_facts = {"link": link.facts}
            head, nodes = await _nodes(stack, target, link, logs, say)
        port = free_port()
        folder = await _model_folder(target)

        def new_server(wanted: StartedTarget) -> ServerProcess:
            return ServerProcess(
                wanted_name(wanted),
                tied([*command_line(wanted, port, folder), *head]),
                port=port,
                log_path=logs / f"{wanted_name(wanted)}.log",
                env=wanted.env,
                start_deadline_s=wanted.start_within_s,
            )

        say(f"starting {described(target)}")
        server = new_server(target)
        await server.start()
        started = None
        try:
            model, facts = await _asked(server.base_url, None, None)
            control = None
            if has_control(target):
                control = await stack.enter_async_context(TargetControl(server.base_url))
            started = RunningTarget(
                target, server.base_url, model, control, facts | link_facts, nodes, None, server, new_server
            )
            yield started
        finally:
            # After a restart it is another process.
            await (server.stop() if started is None else started.stop())


def command_line(target: StartedTarget, port: int, model_folder: str | None = None) -> list[str]:
    """Return the command line that serves a target on a port of loopback; `model_folder` is stock vLLM's model."""
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    match target:
        case MidstreamTarget():
            command = target.command or (sys.executable, *MIDSTREAM, "serve")
            model = ["--model", target.model] if target.model else []
            return [*command, *model, "--layers", target.layers, *listen, *target.args]
        case VllmTarget():
            return [*(target.command or STOCK_COMMAND), "--model", str(model_folder), *listen, *target.args]
        case MockTarget():
            command = target.command or (sys.executable, *MOCK)
            return [*command, "--port", str(port), "--layers", target.layers, *target.args]
        case _:
            raise ServerError(f"{type(target).__name__} is not started here")


def wanted_name(target: StartedTarget) -> str:
    """Return what a started target is called in messages and logs."""
    return str(getattr(target, "kind", "server"))


def described(target: AnyTarget) -> str:
    """Return a target in a few words."""
    match target:
        case EndpointTarget():
            return target.base_url
        case MidstreamTarget():
            where = f" on two nodes, link {target.nodes.link}" if target.nodes else ""
            return f"Midstream with layers {target.layers}{where}"
        case VllmTarget():
            return "stock vLLM"
        case _:
            return f"the mock server with layers {target.layers}"


def _link(stack: AsyncExitStack, kind: str, say: Say) -> Link:
    """Make the link; loopback where it cannot be made, which its facts then say."""
    try:
        return stack.enter_context(joined(kind))
    except LinkError as error:
        say(f"{error}; going on over loopback")
        link = stack.enter_context(joined(LOOPBACK))
        link.facts.update(asked_for=kind, why_not=str(error))
        return link


async def _nodes(
    stack: AsyncExitStack, target: MidstreamTarget, link: Link, logs: Path, say: Say
) -> tuple[tuple[str, ...], tuple[WatchedProcess, ...]]:
    """Start the node runtimes; return the head's flags that reach them, and their processes."""
    if target.nodes is None:
        return (), ()
    command = target.command[:-1] if target.command else (sys.executable, *MIDSTREAM)
    limit = ("--rate-limit", target.nodes.rate_limit) if target.nodes.rate_limit else ()
    head = Machine(_HEAD, f"{link.near}:{free_port()}", controls=True)
    machines = (
        Machine(NODES[0], f"{link.near}:{free_port()}", options=limit),
        Machine(NODES[1], f"{link.far}:{free_port()}", link.far_command, options=limit),
    )
    state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="midstream-load-keys-")))
    node_command = (*tied([*command]), "node")
    await enrol((head, *machines), state, node_command)
    say(f"starting the nodes {' and '.join(NODES)}, link {link.facts['kind']}")
    log_dir = Path(tempfile.mkdtemp(prefix="nodes-", dir=logs))  # the log of a node runtime must be new
    processes = await stack.enter_async_context(
        node_runtimes(
            machines,
            state,
            node_command,
            env=target.env,
            log_dir=log_dir,
            start_deadline_s=target.start_within_s,
        )
    )
    named = [argument for node in NODES for argument in ("--node", node)]
    return (*named, "--name", _HEAD, "--state", str(state / _HEAD), "--listen", head.address), processes


async def _model_folder(target: AnyTarget) -> str | None:
    if not isinstance(target, VllmTarget):
        return None
    return target.model or await default_model_folder(ReconfigureOptions())


def _bearer(target: EndpointTarget) -> str | None:
    if target.api_key_env is None:
        return None
    key = os.environ.get(target.api_key_env)
    if not key:
        raise ServerError(f"the environment variable {target.api_key_env}, which is to hold the API key, is not set")
    return key


async def _asked(base_url: str, model: str | None, key: str | None) -> tuple[str, dict[str, Any]]:
    """Return the model to ask for and what the server says of itself.

    Raises:
        ServerError: it does not answer.
        MeasurementError: it serves no model, or not the one that is wanted.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=_ASK_S, trust_env=False) as http:
        try:
            response = await http.get("/v1/models")
        except httpx.HTTPError as error:
            raise ServerError(f"{base_url} does not answer: {error or type(error).__name__}; is it running?") from error
        if response.is_error:
            raise ServerError(f"{base_url}/v1/models answers HTTP {response.status_code}; is it an OpenAI endpoint?")
        try:
            served = [str(each["id"]) for each in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{base_url}/v1/models lists no models; is it an OpenAI endpoint?") from error
        try:  # vLLM's own; other servers may answer anything
            version = str((await http.get("/version")).raise_for_status().json()["version"])
        except (ValueError, KeyError, TypeError, httpx.HTTPError):
            version = None
    if not served:
        raise MeasurementError(f"{base_url} serves no model")
    if model is not None and model not in served:
        raise MeasurementError(f"{base_url} does not serve {model!r}; it serves {', '.join(served)}")
    return model or served[0], {"model": model or served[0], "vllm_version": version, "base_url": base_url}
