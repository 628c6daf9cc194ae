"""`midstream up`, `down`, `apply` and `validate`: an LLMPipeline on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.console import FAILED, REFUSED, err, fail, out

if TYPE_CHECKING:
    from controller.platform.llm_pipeline import LLMPipeline
    from controller.platform.local.launch import Order
    from controller.platform.local.state import PlatformRecord

File = Annotated[Path, typer.Option("--file", "-f", help="YAML file with an LLMPipeline.")]


def up(
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", help="YAML file with an LLMPipeline; without it, the built-in model in two stages."
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it is ready, and leave it running.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the endpoint.")] = 8000,
) -> None:
    """Run a pipeline on this machine: its nodes, a broker for events, the head and its functions.

    Ends with Ctrl-C, or with `midstream down` if detached.
    """
    from controller.platform.llm_pipeline import PipelineError
    from controller.platform.local import launch
    from controller.platform.local.processes import PlatformError

    try:
        order = _order(file, port)
        if detach:
            _tell_ready(launch.start_detached(order, _say), detached=True)
        else:
            launch.run(order, _say, _tell_ready)
    except PipelineError as error:
        fail(str(error), REFUSED)
    except PlatformError as error:
        fail(str(error))


def down(
    name: Annotated[str | None, typer.Argument(help="The pipeline's name; not needed if only one runs.")] = None,
) -> None:
    """End a pipeline that `up` runs, with all that belongs to it. Does nothing if none runs."""
    from controller.platform.local.down import end
    from controller.platform.local.processes import PlatformError

    try:
        for line in end(name):
            out.print(line, soft_wrap=True)
    except PlatformError as error:
        fail(str(error))


def apply(
    file: File,
    wait: Annotated[bool, typer.Option(help="Wait until the change has ended.")] = True,
) -> None:
    """Make a running pipeline what FILE says, without touching its streams.

    Exit codes: 0 changed (or nothing to change, or asked for with --no-wait), 1 aborted or failed, 2 refused before
    anything was touched.
    """
    from controller.platform.llm_pipeline import PipelineError
    from controller.platform.local.apply import apply as apply_object
    from controller.platform.local.processes import PlatformError

    try:
        pipeline = _read(file)
        outcome = apply_object(pipeline, wait=wait)
    except PipelineError as error:
        fail(str(error), REFUSED)
    except PlatformError as error:
        fail(str(error))
    if outcome.request is None:
        out.print(f"{pipeline.name}: generation {outcome.generation}, nothing to change in what runs")
    elif outcome.report is None:
        out.print(
            f"{pipeline.name}: generation {outcome.generation} asked for with event {outcome.request}", soft_wrap=True
        )
    else:
        _print_report(pipeline.name, outcome.generation, outcome.report)
        if not outcome.committed:
            raise typer.Exit(FAILED)


def validate(file: File) -> None:
    """Check FILE without starting anything. Exit codes: 0 valid, 2 not."""
    from controller.platform.llm_pipeline import PipelineError, UnsupportedHere
    from controller.platform.local.plan import refuse_what_only_a_cluster_has

    try:
        pipeline = _read(file)
    except PipelineError as error:
        fail(str(error), REFUSED)
    out.print(f"{file}: LLMPipeline {pipeline.name} is valid")
    try:
        refuse_what_only_a_cluster_has(pipeline)
    except UnsupportedHere as error:
        out.print(f"It needs a cluster:\n{error}", soft_wrap=True)


def _read(file: Path | None) -> LLMPipeline:
    from controller.platform.pipeline_file import read_pipeline

    return read_pipeline(file)


def _order(file: Path | None, port: int) -> Order:
    from controller.platform.local.launch import Order
    from controller.platform.local.model_layers import count_layers
    from controller.platform.local.plan import refuse_what_only_a_cluster_has

    pipeline = _read(file)
    refuse_what_only_a_cluster_has(pipeline)
    total_layers = count_layers(pipeline)
    pipeline.layout_text(total_layers)
    return Order(pipeline.to_object(), total_layers, port)


def _say(who: str, what: str) -> None:
    from controller.platform.local.launch import time_of_day

    err.print(f"{time_of_day()}  {who:<14} {what}", soft_wrap=True, markup=False)


def _tell_ready(record: PlatformRecord, *, detached: bool = False) -> None:
    out.print(f"{record.name} serves at {record.endpoint}/v1, takes events at {record.broker}", soft_wrap=True)
    file = "FILE"
    out.print(f"  change  midstream apply -f {file}")
    out.print(f"  end     {f'midstream down {record.name}' if detached else 'Ctrl-C'}")


def _print_report(name: str, generation: int, report: dict[str, Any]) -> None:
    if report["change"] is None:
        out.print(f"{name}: generation {generation} {report['state']}, {report['reason']}", soft_wrap=True)
        return
    steps = ", ".join(f"{step} {ms:.0f} ms" for step, ms in report["steps_ms"].items())
    out.print(
        f"{name}: generation {generation}, {report['change']}: {report['from']} -> {report['to']} {report['state']} in "
        f"{report['total_ms']:.0f} ms ({steps}); {report['requests_carried']} requests carried, "
        f"{report['bytes_moved']} bytes of KV moved",
        soft_wrap=True,
    )
    if report["reason"]:
        out.print(f"  reason: {report['reason']}", soft_wrap=True)
