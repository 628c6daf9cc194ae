"""`midstream bench`: single figures, each measured by starting what it needs.

Exit codes: 0 measured, 1 not measured (or, for `soak`, not passed), 2 bad input of `agreement`.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.console import FAILED, REFUSED, err, fail, out

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from rich.table import Table

app = typer.Typer(help="Measure: every benchmark starts what it needs and prints one JSON object or a table.")


@app.command("reconfigure")
def bench_reconfigure(
    layers_from: Annotated[str, typer.Option("--from", help="Layers per stage before the change.")] = "15,15",
    layers_to: Annotated[str, typer.Option("--to", help="Layers per stage after it.")] = "8,12,10",
    streams: Annotated[int, typer.Option(help="Closed-loop streams; every second one samples with a seed.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 128,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Tokens of each prompt, roughly; a short sentence each if not given.")
    ] = None,
    repeat: Annotated[int, typer.Option(help="How often the change is measured.")] = 3,
    model: Annotated[str | None, typer.Option(help="Hugging Face id or folder; default: the built-in model.")] = None,
    stock: Annotated[bool, typer.Option(help="Also run stock vLLM, for the ratios and the cost of a restart.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a live re-split from the client's side, next to stock vLLM in the same run."""
    from loadgen.benchmarks.reconfigure.bench import ReconfigureOptions, render, run

    _measure(
        lambda: run(
            ReconfigureOptions(
                layers_from=layers_from,
                layers_to=layers_to,
                model=model,
                streams=streams,
                tokens=tokens,
                prompt_tokens=prompt_tokens,
                repeat=repeat,
                compare_stock=stock,
            ),
            say=err.print,
        ),
        render,
        json_output=json_output,
    )


@app.command("recover")
def bench_recover(
    layers: Annotated[str, typer.Option(help="Layers per stage.")] = "8,12,10",
    streams: Annotated[int, typer.Option(help="Closed-loop streams; every second one samples with a seed.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 128,
    repeat: Annotated[int, typer.Option(help="How often each role is killed.")] = 3,
    model: Annotated[str | None, typer.Option(help="Hugging Face id or folder; default: the built-in model.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Kill stages of each role under load and measure what the streams notice."""
    from loadgen.benchmarks.recover import RecoverOptions, render, run

    _measure(
        lambda: run(
            RecoverOptions(layers_from=layers, model=model, streams=streams, tokens=tokens, repeat=repeat),
            say=err.print,
        ),
        render,
        json_output=json_output,
    )


@app.command("wake")
def bench_wake(
    layers: Annotated[str, typer.Option(help="Layers per stage.")] = "15,15",
    repeat: Annotated[int, typer.Option(help="How often the pipeline sleeps and is woken.")] = 3,
    model: Annotated[str | None, typer.Option(help="Hugging Face id or folder; default: the built-in model.")] = None,
    stock: Annotated[bool, typer.Option(help="Also start stock vLLM cold.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the time to the first token from zero, next to a cold start of stock vLLM."""
    from loadgen.benchmarks.wake import WakeOptions, render, run

    _measure(
        lambda: run(
            WakeOptions(layers_from=layers, model=model, tokens=48, repeat=repeat, compare_stock=stock), say=err.print
        ),
        render,
        json_output=json_output,
    )


@app.command("device")
def bench_device(
    device: Annotated[str, typer.Option(help="cuda, or host: the same steps in host memory.")] = "cuda",
    layers: Annotated[int, typer.Option(help="Layers of each of two KV pools.")] = 16,
    blocks: Annotated[int, typer.Option(help="KV blocks of each layer, 64 KiB each.")] = 256,
    repeat: Annotated[int, typer.Option(help="How often everything is measured.")] = 5,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure state paths of a GPU with torch alone: attach, copy, kill and flip."""
    from loadgen.benchmarks.device import DeviceOptions, render, run

    _measure(
        lambda: run(DeviceOptions(device=device, layers=layers, blocks=blocks, repeat=repeat), say=err.print),
        render,
        json_output=json_output,
    )


@app.command("migrate")
def bench_migrate(
    link: Annotated[
        str, typer.Option(help="What joins the two machines: 1gbit or 100mbit (needs root, ip, tc), or loopback.")
    ] = "loopback",
    layers_from: Annotated[
        str, typer.Option("--from", help="Layers per stage on edge-1 and edge-2 before the change.")
    ] = "15@edge-1,15@edge-2",
    layers_to: Annotated[str, typer.Option("--to", help="Layers per stage after it.")] = "8@edge-1,22@edge-2",
    streams: Annotated[int, typer.Option(help="Closed-loop streams; every second one samples with a seed.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 1400,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt, roughly.")] = 500,
    repeat: Annotated[int, typer.Option(help="How often each method is measured.")] = 1,
    model: Annotated[str | None, typer.Option(help="Hugging Face id or folder; default: the built-in model.")] = None,
    methods: Annotated[
        str, typer.Option(help="Ways to move the KV, to be compared.")
    ] = "pre_copy,stop_and_copy,recompute",
    check_wire: Annotated[
        bool, typer.Option("--check-wire", help="Also record one pass on the link and search it for plaintext.")
    ] = False,
    rate_limit: Annotated[
        str | None, typer.Option(help="Most bytes per second for copying between the nodes, such as 10MB.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Move layers between two machines under load, and measure what the streams notice."""
    from loadgen.benchmarks.migrate.bench import MigrateOptions, render, run

    _measure(
        lambda: run(
            MigrateOptions(
                link=link,
                layers_from=layers_from,
                layers_to=layers_to,
                model=model,
                streams=streams,
                tokens=tokens,
                prompt_tokens=prompt_tokens,
                repeat=repeat,
                methods=tuple(methods.split(",")),
                check_wire=check_wire,
                rate_limit=rate_limit,
            ),
            say=err.print,
        ),
        render,
        json_output=json_output,
    )


@app.command("soak")
def bench_soak(
    kills: Annotated[int, typer.Option(help="Kills and cuts of the link after which it ends.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the schedule; the same seed makes the same steps.")] = 1,
    link: Annotated[
        str, typer.Option(help="What joins the nodes: 1gbit or 100mbit (needs root, ip, tc), or loopback, never cut.")
    ] = "loopback",
    layers: Annotated[str, typer.Option(help="Layers per stage at the beginning.")] = "15@edge-1,15@edge-2",
    streams: Annotated[int, typer.Option(help="Closed-loop clients, greedy and seeded.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 96,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the longest prompts, roughly.")] = 400,
    model: Annotated[str | None, typer.Option(help="Hugging Face id or folder; default: the built-in model.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Kill stages, node runtimes and the link at random under load; compare every answer, and what is left."""
    from loadgen.benchmarks.soak.bench import SoakOptions, render, run

    result = _measure(
        lambda: run(
            SoakOptions(
                kills=kills,
                seed=seed,
                link=link,
                layers_from=layers,
                streams=streams,
                tokens=tokens,
                prompt_tokens=prompt_tokens,
                model=model,
            ),
            say=err.print,
        ),
        render,
        json_output=json_output,
    )
    if not result["passed"]:
        raise typer.Exit(FAILED)


@app.command("load")
def bench_load(
    streams: Annotated[int, typer.Option(help="Streams at a time.")] = 500,
    rate: Annotated[float, typer.Option(help="Tokens per second of each.")] = 50.0,
    seconds: Annotated[float, typer.Option(help="How long each stream lasts.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Seed of the moments at which streams begin.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what the load generator costs and how exact its timestamps are, against the mock server."""
    import uvloop

    from loadgen.streaming.overhead import OverheadOptions, measure, render

    _measure(
        lambda: measure(OverheadOptions(streams, rate, seconds, seed)),
        render,
        json_output=json_output,
        runner=uvloop.run,
    )


@app.command("agreement")
def bench_agreement(
    url: Annotated[str | None, typer.Option(help="A server that runs; without it, one is started.")] = None,
    stock: Annotated[bool, typer.Option(help="Start stock vLLM instead of Midstream.")] = False,
    layers: Annotated[str, typer.Option(help="Layers per stage of the Midstream that is started.")] = "15,15",
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id of the tokenizer; default: the built-in model's.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests of each round.")] = 24,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 0.8,
    input_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 64,
    rounds: Annotated[int, typer.Option(help="How often both generators run.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the first round; each further one has the next.")] = 1,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for what is measured; default: temporary.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare this generator with `vllm bench serve`, in turns on one server."""
    from loadgen.errors import LoadgenError, OptionsError
    from loadgen.experiments.agreement import AgreementOptions, compared_server, render, run

    try:
        options = AgreementOptions(
            target=compared_server(url, layers, stock=stock),
            tokenizer=tokenizer,
            requests=requests,
            rate=rate,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            rounds=rounds,
            seed=seed,
        )
        kept = folder or Path(tempfile.mkdtemp(prefix="midstream-agreement-"))
        kept.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(run(options, kept, say=lambda line: err.print(line, markup=False)))
    except (LoadgenError, ValueError) as error:
        fail(str(error), REFUSED if isinstance(error, OptionsError | ValueError) else FAILED)
    _show(result, render, json_output=json_output)


def _measure(
    experiment: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
    render: Callable[[dict[str, Any]], Table],
    *,
    json_output: bool,
    runner: Callable[[Coroutine[Any, Any, dict[str, Any]]], dict[str, Any]] = asyncio.run,
) -> dict[str, Any]:
    """Run an experiment, print its result, and return it."""
    from loadgen.errors import LoadgenError

    try:
        result = runner(experiment())
    except LoadgenError as error:
        fail(str(error))
    _show(result, render, json_output=json_output)
    return result


def _show(result: dict[str, Any], render: Callable[[dict[str, Any]], Table], *, json_output: bool) -> None:
    """Print a result as a table or as one JSON object."""
    if json_output:
        typer.echo(json.dumps(result))
    else:
        out.print(render(result))
