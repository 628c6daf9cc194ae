"""The `midstream` command: serve a pipeline, change it, look at it, measure it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from controller import bench_commands, node_commands, platform_commands
from controller.console import FAILED, REFUSED, fail, out
from controller.platform import event_commands, operator_commands
from intents import intent_commands
from loadgen import load_commands
from runtime.head.control_client import ControlClient, ControlError
from runtime.migration.protocol import Fallback, Method

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    name="midstream",
    help="Serve an LLM as a pipeline of stages and change that pipeline while requests stream.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_commands.app, name="bench")
app.add_typer(node_commands.app, name="node")
app.add_typer(event_commands.app, name="event")
app.add_typer(intent_commands.app, name="intent")
app.add_typer(load_commands.app, name="load")
for command in (platform_commands.up, platform_commands.down, platform_commands.apply, platform_commands.validate):
    app.command()(command)
app.command()(operator_commands.operator)


_SHOWN_OF = {
    "planned": {"from", "to", "from_precision", "to_precision", "method"},
    "ended": {"state", "reason", "total_ms", "pause_ms", "bytes_moved", "rounds", "requests_carried"},
}
"""Of entries that hold a whole report, what a line of the story shows."""

Endpoint = Annotated[str, typer.Option(envvar="MIDSTREAM_ENDPOINT", help="The server's address.")]
DEFAULT_ENDPOINT = "http://127.0.0.1:8000"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Hugging Face id or local folder; without it, the built-in small model.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers per stage, such as 15,15; default: two stages.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    threads: Annotated[int, typer.Option(help="Compute threads of each stage; 0: the engine's choice.")] = 0,
    batches_in_flight: Annotated[
        int, typer.Option(help="Batches in the pipeline at once; 0: as many as it has nodes.")
    ] = 0,
    spare_stages: Annotated[
        int | None,
        typer.Option(min=0, help="Stages each node keeps ready for a change; default: one more than serve there."),
    ] = None,
    sleep_after: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Seconds without a request after which all stages end until the next; off if not given."
        ),
    ] = None,
    hold_requests: Annotated[
        int,
        typer.Option(
            min=1, help="Requests that may wait while the pipeline sleeps, wakes or recovers; further ones get a 503."
        ),
    ] = 256,
    hold_seconds: Annotated[
        float, typer.Option(min=1.0, help="Seconds that each of them may wait so before it gets a 503.")
    ] = 30.0,
    node: Annotated[
        list[str] | None, typer.Option(help="A node on another machine that layouts may use; may be given repeatedly.")
    ] = None,
    name: Annotated[str, typer.Option(help="This head's name among nodes.")] = "head",
    listen: Annotated[str, typer.Option(help="Address for nodes, host:port.")] = "127.0.0.1:7100",
    node_grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds in which a lost node may come back with its weights and KV, for example restarted; then its "
            "layers are re-placed and computed again. 0: at once.",
        ),
    ] = 8.0,
    guard: Annotated[
        str | None,
        typer.Option(
            envvar="MIDSTREAM_GUARD",
            help="Who knows the privacy intents, such as http://127.0.0.1:7180; token in MIDSTREAM_GUARD_TOKEN.",
        ),
    ] = None,
    state: node_commands.State = None,
) -> None:
    """Serve MODEL as a pipeline behind an OpenAI endpoint. Any further flag goes to `vllm serve`."""
    from runtime.engine.errors import EngineError
    from runtime.head.serve import ServeOptions
    from runtime.head.serve import serve as run_server
    from runtime.model import ModelError, resolve_model

    folder = str(node_commands.state_folder(name, state))
    options = ServeOptions(
        layers,
        host,
        port,
        threads,
        batches_in_flight,
        spare_stages,
        sleep_after,
        hold_requests,
        hold_seconds,
        nodes=tuple(node or ()),
        gateway={"name": name, "folder": folder, "listen": listen} if node else None,
        node_grace_s=node_grace,
        guard={"url": guard, "here": name} if guard else None,
        extra=tuple(context.args),
    )
    try:
        resolved = resolve_model(model)
        out.print(f"serving {resolved.served_name} at http://{host}:{port}/v1")
        run_server(resolved, options)
    except (ModelError, EngineError) as error:
        fail(str(error))


@app.command()
def reconfigure(
    layers: Annotated[
        str | None, typer.Option(help="Layers per stage of the new layout, such as 8,12,10; default: as they are.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Precision of the weights: float32, bfloat16 or float16; default: as it is. KV is kept."),
    ] = None,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    method: Annotated[
        Method, typer.Option(help="How the KV of layers that change their node gets there.")
    ] = Method.PRE_COPY,
    fallback: Annotated[Fallback, typer.Option(help="What to do when pre-copy does not converge.")] = Fallback.ABORT,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until the change has ended.")] = True,
) -> None:
    """Change the running pipeline to another layout or precision, without touching its streams.

    Exit codes: 0 committed (or accepted, with --no-wait), 1 aborted or failed, 2 refused before anything was touched.
    """
    if layers is None and precision is None:
        fail("nothing to change: give --layers, such as 8,12,10, or --precision, such as bfloat16", REFUSED)
    with _client(endpoint) as client:
        report = client.reconfigure(layers, method, fallback, precision=precision)
        if wait:
            report = client.wait(report["id"])
    if json_output:
        print(json.dumps(report))
    else:
        _print_report(report)
    if report["state"] == "aborted":
        raise typer.Exit(FAILED)


@app.command()
def status(
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_output: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Show what serves now."""
    with _client(endpoint) as client:
        state = client.status()
    if json_output:
        print(json.dumps(state))
        return
    weights = ", ".join(f"{size / 2**20:.0f} MiB in {name}" for name, size in state["weights_bytes"].items())
    out.print(
        f"{state['model']} on vLLM {state['vllm_version']}: epoch {state['epoch']}, {state['phase']}, "
        f"in {state['precision']}" + (f"; weights: {weights}" if weights else ""),
        soft_wrap=True,
    )
    if state["stopped"]:
        out.print(f"  stopped: {state['stopped']}", soft_wrap=True)
    for stage in state["stages"]:
        span = f"layers {stage['first_layer']:>3} to {stage['last_layer']:>3}"
        size = f"{stage['memory_bytes'] / 2**20:6.0f} MiB"
        out.print(f"  stage {stage['index']}  {span}  {size}  node {stage['node']}  pid {stage['pid']}")
    for node, number in state["spare_stages"].items():
        out.print(f"  {number} spare on node {node}")
    if state["last_recovery"]:
        last = state["last_recovery"]
        out.print(
            f"{last['id']}: {', '.join(last['stages'])} lost and replaced in {last['total_ms']:.0f} ms, "
            f"{last['replayed_batches']} batches replayed",
            soft_wrap=True,
        )
    if state["last_change"]:
        _print_report(state["last_change"])


@app.command()
def capacity(
    kv_blocks: Annotated[int | None, typer.Option(min=2, help="Blocks of KV to use from now on.")] = None,
    max_requests: Annotated[int | None, typer.Option(min=1, help="Requests that may run at once.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens computed in one batch.")] = None,
    preempt: Annotated[
        bool, typer.Option(help="Compute the youngest requests again later if the blocks in use do not fit.")
    ] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_output: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Show how much the pipeline may hold at once, or change it while it serves.

    Exit codes: 0 shown or changed, 1 not changed, 2 refused.
    """
    wanted = {"kv_blocks": kv_blocks, "max_requests": max_requests, "max_batch_tokens": max_batch_tokens}
    changes = any(value is not None for value in wanted.values())
    with _client(endpoint) as client:
        state = client.change_capacity(**wanted, preempt=preempt) if changes else client.capacity()
    if json_output:
        print(json.dumps(state))
    else:
        for name in wanted:
            out.print(f"{name:<17} {state[name]:>8}  of at most {state['at_most'][name]}")
        out.print(f"{'kv_blocks_used':<17} {state['kv_blocks_used']:>8}")
        if state["last"] and changes:
            last = state["last"]
            out.print(
                f"{last['state']} in {last['total_ms']:.1f} ms: {last['moved_blocks']} blocks moved, "
                f"{last['preempted_requests']} requests preempted"
            )
    if changes and state["last"]["state"] != "done":
        fail(state["last"]["reason"])


@app.command()
def story(
    subject: Annotated[str | None, typer.Argument(help="A change or request id; without it, all changes.")] = None,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Print the journal of what happened to a change or a request."""
    import datetime as dt

    with _client(endpoint) as client:
        entries = client.story(subject)
    if not entries:
        fail(f"nothing is known of {subject!r}" if subject else "nothing has happened yet")
    for entry in entries:
        if json_output:
            print(json.dumps(entry))
            continue
        at = dt.datetime.fromtimestamp(entry["at"], dt.UTC).strftime("%H:%M:%S.%f")[:-3]
        shown = _SHOWN_OF.get(entry["event"], entry.keys() - {"at", "subject", "event"})
        details = "  ".join(f"{k}={v}" for k, v in entry.items() if k in shown and v is not None)
        out.print(f"{at}  {entry['subject']:<12} {entry['event']:<14} {details}", soft_wrap=True)


@app.command()
def trace(
    output: Annotated[str, typer.Option("--output", "-o", help="File to write.")] = "midstream-trace.json",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Write which stage computed which batch when, as a Chrome trace (open it in ui.perfetto.dev)."""
    from pathlib import Path

    with _client(endpoint) as client:
        events = client.trace()
    Path(output).write_text(json.dumps(events), encoding="utf-8")
    out.print(f"{len(events['traceEvents'])} stage spans in {output}")


@app.command()
def demo() -> None:
    """Stream one answer while its pipeline is re-split twice, and check that nobody could have noticed."""
    import asyncio

    from controller.demo import run
    from loadgen.errors import LoadgenError

    try:
        good = asyncio.run(run(Console()))
    except LoadgenError as error:
        fail(str(error))
    raise typer.Exit(0 if good else FAILED)


def main() -> None:
    """Run the command."""
    app()


@contextmanager
def _client(endpoint: str) -> Iterator[ControlClient]:
    """Open a control client whose errors end the command with one line and the right exit code."""
    try:
        with ControlClient(endpoint) as client:
            yield client
    except ControlError as error:
        fail(str(error), REFUSED if error.refused else FAILED)


def _print_report(report: dict[str, Any]) -> None:
    steps = ", ".join(f"{step} {ms:.0f} ms" for step, ms in report["steps_ms"].items())
    before, after = report["from"], report["to"]
    if report["from_precision"] != report["to_precision"]:
        before, after = f"{before} in {report['from_precision']}", f"{after} in {report['to_precision']}"
    out.print(
        f"{report['id']}: {before} -> {after} {report['state']} in {report['total_ms']:.0f} ms "
        f"({steps}); {report['requests_carried']} requests carried, {report['bytes_moved']} bytes of KV moved, "
        f"{report['peak_extra_bytes'] / 2**20:.0f} MiB extra at peak",
        soft_wrap=True,
    )
    if report["reason"]:
        out.print(f"  reason: {report['reason']}", soft_wrap=True)


if __name__ == "__main__":
    main()
