"""`midstream load mock`: the mock server as a command."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Annotated, get_args

import typer
import uvloop

from loadgen.mock.behaviour import Behaviour, FaultKind, TimedStall, read_fault, read_stall
from loadgen.mock.server import MODEL, MockServer

_BACKLOG = 4096  # thousands of clients may come at the same moment
_BAD_INPUT = 2


async def serve(
    behaviour: Behaviour,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    layers: str = "15,15",
    model: str = MODEL,
    api_key: str | None = None,
    record_times: bool = False,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until cancelled; `ready` is told the base URL once clients can connect. Port 0: one that is free.

    Raises:
        OSError: the port cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    mock = MockServer(behaviour, layers, model=model, api_key=api_key, record_times=record_times)
    try:
        server = await loop.create_server(mock.connection, host, port, backlog=_BACKLOG)
        try:
            listening = server.sockets[0]
            shown = f"[{host}]" if listening.family == socket.AF_INET6 else host
            ready(f"http://{shown}:{listening.getsockname()[1]}")
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()
    finally:
        mock.close()


def run_mock(
    behaviour: Behaviour,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    layers: str = "15,15",
    model: str = MODEL,
    api_key: str | None = None,
    record_times: bool = False,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT; otherwise as `serve`."""

    async def until_told() -> None:
        task = asyncio.create_task(
            serve(
                behaviour,
                host=host,
                port=port,
                layers=layers,
                model=model,
                api_key=api_key,
                record_times=record_times,
                ready=ready,
            )
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    uvloop.run(until_told())


def mock(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for one that is free.")] = 8000,
    model: Annotated[str, typer.Option(help="Name to serve the model by.")] = MODEL,
    ttft_ms: Annotated[float, typer.Option(help="Time to first token.")] = 5.0,
    itl_ms: Annotated[float, typer.Option(help="Time from one token to the next.")] = 2.0,
    jitter_ms: Annotated[float, typer.Option(help="Each chunk is late by a random part of this.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of jitter and of which streams break.")] = 0,
    tokens_per_chunk: Annotated[int, typer.Option(help="Tokens in one chunk.")] = 1,
    stall_at: Annotated[
        list[str] | None,
        typer.Option(
            help="TOKEN:MS, before that token of every stream; or SECONDSs:MS, all streams, so long after the first "
            "request. May be given more than once."
        ),
    ] = None,
    error_rate: Annotated[float, typer.Option(help="Share of streams that end with an error event.")] = 0.0,
    disconnect_rate: Annotated[float, typer.Option(help="Share of streams whose connection breaks.")] = 0.0,
    truncate_rate: Annotated[float, typer.Option(help="Share of streams that end too early, without [DONE].")] = 0.0,
    empty_rate: Annotated[float, typer.Option(help="Share of streams that end without a token.")] = 0.0,
    refuse: Annotated[int, typer.Option(help="HTTP status to refuse all completions with; 0 to serve.")] = 0,
    max_streams: Annotated[
        int, typer.Option(help="Streams at a time; more get 503 and Retry-After. 0: any number.")
    ] = 0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help=f"KIND:TOKEN, in every stream; KIND is one of {', '.join(get_args(FaultKind))} (stall:TOKEN:MS). "
            "May be given more than once."
        ),
    ] = None,
    token_ids: Annotated[bool, typer.Option(help="Send token ids to clients that ask for them, as vLLM does.")] = True,
    api_key_env: Annotated[
        str | None, typer.Option(help="Name of an environment variable with the key that clients must send.")
    ] = None,
    record_times: Annotated[bool, typer.Option(help="Keep the send times of all chunks for GET /mock/times.")] = False,
    layers: Annotated[str, typer.Option(help="Layout that the control API starts from.")] = "15,15",
    change_fault: Annotated[str | None, typer.Option(help="A KIND that happens once after a change.")] = None,
    change_ms: Annotated[float, typer.Option(help="Length of a change before its cutover.")] = 20.0,
    change_stall_ms: Annotated[float, typer.Option(help="How long streams stand still at a cutover.")] = 50.0,
    change_outcome: Annotated[str, typer.Option(help="commit, abort, refuse or hang.")] = "commit",
) -> None:
    """Serve a mock of an OpenAI server with exactly these latencies and faults, until it is told to end."""
    try:
        stalls = [read_stall(text) for text in stall_at or ()]
        if change_fault is not None and change_fault not in get_args(FaultKind):
            raise ValueError(f"change fault {change_fault!r} is none of {', '.join(get_args(FaultKind))}")
        if change_outcome not in ("commit", "abort", "refuse", "hang"):
            raise ValueError(f"change outcome {change_outcome!r} is none of commit, abort, refuse, hang")
        behaviour = Behaviour(
            ttft_ms=ttft_ms,
            itl_ms=itl_ms,
            jitter_ms=jitter_ms,
            seed=seed,
            tokens_per_chunk=tokens_per_chunk,
            faults=(*map(read_fault, fault or ()), *(stall for stall in stalls if not isinstance(stall, TimedStall))),
            stalls=tuple(stall for stall in stalls if isinstance(stall, TimedStall)),
            error_rate=error_rate,
            disconnect_rate=disconnect_rate,
            truncate_rate=truncate_rate,
            empty_rate=empty_rate,
            refuse_status=refuse,
            max_streams=max_streams,
            send_token_ids=token_ids,
            change_fault=change_fault,  # type: ignore[arg-type]  # checked above
            change_ms=change_ms,
            change_stall_ms=change_stall_ms,
            change_outcome=change_outcome,  # type: ignore[arg-type]  # checked above
        )
        api_key = None if api_key_env is None else os.environ.get(api_key_env)
        if api_key_env is not None and not api_key:
            raise ValueError(f"the environment variable {api_key_env} is not set or empty: it holds the clients' key")
    except ValueError as wrong:
        typer.echo(f"error: {wrong}", err=True)
        raise typer.Exit(_BAD_INPUT) from wrong
    try:
        run_mock(
            behaviour,
            host=host,
            port=port,
            layers=layers,
            model=model,
            api_key=api_key,
            record_times=record_times,
            ready=lambda url: typer.echo(f"listening on {url}"),
        )
    except OSError as wrong:
        typer.echo(f"error: cannot listen on {host}:{port}: {wrong}", err=True)
        raise typer.Exit(1) from wrong
    sys.stdout.flush()
