"""`midstream load`: send a load to an OpenAI-compatible server, or run an experiment; look at results; compare them.

Exit codes: 0 good, 1 an error (what was measured is kept), 2 bad input, 3 the generator fell behind (figures are kept,
but are not the server's alone).
"""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.errors import LoadgenError, OptionsError
from loadgen.mock.command import mock

FAILED, BAD_INPUT, FELL_BEHIND = 1, 2, 3
_DISPLAY_EVERY_S = 0.5

app = typer.Typer(
    help="Load an OpenAI-compatible server and see every gap between tokens; run and compare experiments.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(mock)

# Tables of ten columns need more than the 80 characters that are taken where nobody looks at a terminal.
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)


@app.command()
def run(
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", help="The experiment: a YAML file, or the name of one that comes with Midstream."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results; default: load-results/NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is not finished in the folder.")] = False,
    start_over: Annotated[
        bool, typer.Option("--start-over", help="Remove what the folder holds of an experiment and begin anew.")
    ] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="PATH=VALUE over the file, such as workload.users=4; may be given repeatedly."),
    ] = None,
    marks: Annotated[
        list[str] | None, typer.Option("--mark", help="NAME@SECONDS to mark in every run; may be given repeatedly.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Without a file: the server's address.")] = None,
    model: Annotated[str | None, typer.Option(help="Without a file: its model; default: the first it lists.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Without a file: environment variable that holds the API key.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Without a file: closed, open, sessions or trace.")] = None,
    users: Annotated[int | None, typer.Option(help="Closed loop: users.")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop, sessions: arrivals per second.")] = None,
    arrivals: Annotated[str, typer.Option(help="Open loop, sessions: constant or poisson.")] = "poisson",
    turns: Annotated[int | None, typer.Option(help="Sessions: turns of each.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Trace: its file.")] = None,
    trace_format: Annotated[str | None, typer.Option(help="Trace: azure2023, azure2024, burstgpt or mooncake.")] = None,
    requests: Annotated[int | None, typer.Option(help="Requests in all.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds after which no request begins.")] = None,
    input_tokens: Annotated[int | None, typer.Option(help="Tokens of each prompt.")] = None,
    output_tokens: Annotated[int | None, typer.Option(help="Tokens of each answer.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run an experiment from a file, or one load given here, and write tokens, figures and a report to a folder.

    Exit codes: 0 done, 1 failed, 2 bad input, 3 the generator fell behind (figures are kept).
    """
    from loadgen.experiments.file import Document, check, read_experiment, set_over
    from loadgen.experiments.folders import Existing, ExperimentFolder
    from loadgen.experiments.runner import marks_given

    quick = {
        "url": url,
        "model": model,
        "api_key_env": api_key_env,
        "kind": kind,
        "users": users,
        "rate": rate,
        "turns": turns,
        "trace": trace,
        "trace_format": trace_format,
        "requests": requests,
        "duration": duration,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }
    given = {name: value for name, value in quick.items() if value is not None}
    with _told_in_one_line():
        if resume and start_over:
            raise OptionsError("--resume and --start-over contradict each other: give one")
        if file is not None:
            if given:
                flags = ", ".join("--" + name.replace("_", "-") for name in given)
                raise OptionsError(
                    f"{flags}: with a file, change what it says by --set, such as --set workload.users=4"
                )
            experiment = read_experiment(_experiment_file(file), sets or ())
        else:
            document = Document(quick_experiment(given, arrivals), "the command line")
            for each in sets or ():
                set_over(document, each)
            experiment = check(document)
        given_marks = marks_given(marks or [])
        existing: Existing = "resume" if resume else "start_over" if start_over else "refuse"
        opened = ExperimentFolder(folder or Path("load-results") / experiment.name, experiment)
        opened.open(existing)
        outcome = _run(_run_experiment(experiment, opened, given_marks, json_output=json_output))
        if outcome is None:
            _say(f"ended; what was measured is in {opened.path}, --resume goes on")
            raise typer.Exit(FAILED)
    if json_output:
        print(json.dumps(outcome.as_data()))  # noqa: T201 - the command's output
    else:
        _show_outcome(outcome)
    if outcome.fell_behind:
        _say("the generator fell behind: its own lateness is in these figures; see the warnings")
        raise typer.Exit(FELL_BEHIND)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Run, arm or experiment to compare with.")],
    b: Annotated[Path, typer.Argument(help="What is compared.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print ratios of B to A with confidence intervals, and whether a difference is more than noise."""
    from loadgen.reports.comparison import compare as compared
    from loadgen.reports.terminal import show_comparison
    from loadgen.results.reader import read_runs

    with _told_in_one_line():
        comparison = compared(read_runs(a), read_runs(b))
        if json_output:
            print(msgspec.json.encode(comparison).decode())  # noqa: T201 - the command's output
        else:
            show_comparison(comparison, out)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A run's, an arm's or an experiment's folder.")],
    page: Annotated[bool, typer.Option("--page", help="Also write the report page into the folder.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what was measured, also of a run that goes on or was killed."""
    from loadgen.experiments.analysis.findings import FINDINGS_FILE
    from loadgen.reports.arms import load_arms
    from loadgen.reports.page import write_report
    from loadgen.reports.terminal import show as show_arms

    with _told_in_one_line():
        arms = load_arms(folder)
        if page:
            _say(str(write_report(folder)))
        findings = folder / FINDINGS_FILE
        found = json.loads(findings.read_text(encoding="utf-8")) if findings.is_file() else None
        if json_output:
            runs = [json.loads(summary.json()) for arm in arms for summary in arm.summaries]
            print(json.dumps({"runs": runs, "findings": found}))  # noqa: T201 - the command's output
            return
        show_arms(arms, out)
        if found is not None:
            _print_findings(found)


def quick_experiment(given: dict[str, Any], arrivals: str) -> dict[str, Any]:
    """Return the experiment that options without a file describe, as a file would have it.

    Raises:
        OptionsError: there is no server or no kind of load among them.
    """
    if "url" not in given:
        raise OptionsError("nothing to do: give an experiment with -f FILE, or a server with --url")
    if given.get("kind") not in {"closed", "open", "sessions", "trace"}:
        raise OptionsError("--kind: give closed, open, sessions or trace (and what it needs; see --help)")
    names = {"users", "turns", "requests", "input_tokens", "output_tokens"}
    workload: dict[str, Any] = {"kind": given["kind"], **{name: given[name] for name in names & given.keys()}}
    if "duration" in given:
        workload["duration_s"] = given["duration"]
    if "rate" in given:
        workload["arrivals"] = {"kind": arrivals, "rate": given["rate"]}
    if "trace" in given:
        workload["path"] = str(given["trace"])
    if "trace_format" in given:
        workload["format"] = given["trace_format"]
    if given["kind"] == "sessions" and "requests" in workload:
        workload["sessions"] = workload.pop("requests")
    target = {"kind": "endpoint", "url": given["url"]}
    target |= {name: given[name] for name in ("model", "api_key_env") if name in given}
    return {
        "apiVersion": "midstream.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": "run"},
        "target": target,
        "workload": workload,
    }


def _experiment_file(name: str) -> Path:
    """Return a file, or the one that comes with Midstream by that name."""
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    built_in = Path(str(resources.files("loadgen.experiments").joinpath(f"{name}.yaml")))
    if not built_in.is_file():
        known = sorted(each.stem for each in built_in.parent.glob("*.yaml"))
        raise OptionsError(f"{name!r} is no file, nor one of the experiments {', '.join(known)}")
    return built_in


async def _run_experiment(experiment: Any, folder: Any, marks: Any, *, json_output: bool) -> Any:
    from loadgen.experiments.progress import Progress
    from loadgen.experiments.runner import Runner

    progress = Progress(say=(lambda _: None) if json_output else _say)
    display = asyncio.create_task(_display(progress)) if not json_output else None
    try:
        return await Runner(experiment, folder, progress, marks=marks).run()
    finally:
        if display is not None:
            display.cancel()
            await asyncio.gather(display, return_exceptions=True)


async def _display(progress: Any) -> None:
    """Show the load that is being sent, whenever there is one."""
    from loadgen.reports.live import LiveView

    while True:
        sending = progress.sending
        if sending is not None:
            with LiveView(sending.title, err) as view:
                while progress.sending is sending:
                    view.update(sending.counters())
                    await asyncio.sleep(_DISPLAY_EVERY_S)
                view.update(sending.counters())
        await asyncio.sleep(_DISPLAY_EVERY_S / 5)


def _run(work: Any) -> Any:
    """Run a coroutine on uvloop; SIGINT or SIGTERM ends it in order, and then this returns None."""
    import uvloop

    async def ended_by_signals() -> Any:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _end, task)
        return await task

    ended: list[bool] = []

    def _end(task: "asyncio.Task[Any]") -> None:
        if not ended:  # a second signal must not break the ending
            ended.append(True)
            _say("ending")
            task.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(ended_by_signals())
        except asyncio.CancelledError:
            return None


def _show_outcome(outcome: Any) -> None:
    from loadgen.reports.arms import load_arms
    from loadgen.reports.terminal import show as show_arms
    from loadgen.results.columns import REPORT_FILE

    if outcome.findings is None:
        show_arms(load_arms(outcome.folder), out)
    else:
        _print_findings(asdict(outcome.findings))
    out.print(Text(str(outcome.folder / REPORT_FILE)), soft_wrap=True)


def _print_findings(findings: dict[str, Any]) -> None:
    table = Table(title=Text(findings["title"]), title_justify="left", box=None)
    for number, column in enumerate(findings["columns"]):
        table.add_column(Text(column), justify="left" if number == 0 else "right")
    for row in findings["rows"]:
        table.add_row(*map(Text, row))
    out.print(table)
    for note in findings["notes"]:
        out.print(Text(f"- {note}", style="dim"))
    if findings["published"]:
        others = Table(title="Published", title_justify="left", box=None)
        for column in ("what", "value", "source", "read from", "set-up"):
            others.add_column(column, overflow="fold")
        for each in findings["published"]:
            others.add_row(*(Text(each[key]) for key in ("what", "value", "source", "read_from", "setup")))
        out.print(others)


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    """End the command with one message for an error, and the exit code that says whose fault it is."""
    try:
        yield
    except OptionsError as error:
        _fail(str(error), BAD_INPUT)
    except LoadgenError as error:
        _fail(str(error), FAILED)


def _say(line: str) -> None:
    err.print(Text(line), soft_wrap=True)


def _fail(message: str, code: int) -> NoReturn:
    _say(f"midstream load: {message}")
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
