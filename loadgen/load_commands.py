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
from rich.text import Text

from loadgen.errors import LoadgenError, OptionsError
from loadgen.mock.command import mock

FAILED, BAD_INPUT, FELL_BEHIND = 1, 2, 3
RESULTS = Path("load-results")
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
        Path | None,
        typer.Option("--out", help="Folder for the results; default: load-results/NAME (without a file: run-1, ...)."),
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
    arrivals: Annotated[
        str | None,
        typer.Option(
            help="Open loop, sessions: constant or poisson (the default); others by --set workload.arrivals='{kind: "
            "gamma, rate: 5, cv: 2}'."
        ),
    ] = None,
    turns: Annotated[int | None, typer.Option(help="Sessions: turns of each.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Trace: its file.")] = None,
    trace_format: Annotated[str | None, typer.Option(help="Trace: azure2023, azure2024, burstgpt or mooncake.")] = None,
    requests: Annotated[int | None, typer.Option(help="Requests in all; for sessions: sessions in all.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds after which no request begins.")] = None,
    input_tokens: Annotated[int | None, typer.Option(help="Tokens of each prompt; default: 128.")] = None,
    output_tokens: Annotated[int | None, typer.Option(help="Tokens of each answer; default: 64.")] = None,
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
        "arrivals": arrivals,
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
            document = Document(quick_experiment(given), "the command line", dict(QUICK_PLACES))
            for each in sets or ():
                set_over(document, each)
            experiment = check(document)
        given_marks = marks_given(marks or [])
        existing: Existing = "resume" if resume else "start_over" if start_over else "refuse"
        name = experiment.name if file is not None else numbered_folder(going_on=resume or start_over)
        opened = ExperimentFolder(folder or RESULTS / name, experiment)
        opened.open(existing)
        outcome = _run(_run_experiment(experiment, opened, given_marks, json_output=json_output))
        if outcome is None:
            kept = f"what was measured is in {opened.path}" if opened.holds_runs else "nothing was measured yet"
            _say(f"ended; {kept}, --resume goes on")
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
    from loadgen.experiments.analysis.findings import Findings
    from loadgen.experiments.analysis.page import write_experiment_report
    from loadgen.reports.arms import load_arms
    from loadgen.reports.terminal import show as show_arms

    with _told_in_one_line():
        arms = load_arms(folder)
        findings = Findings.read(folder)
        if page:
            _say(str(write_experiment_report(folder)))
        if json_output:
            runs = [json.loads(summary.json()) for arm in arms for summary in arm.summaries]
            found = None if findings is None else asdict(findings)
            print(json.dumps({"runs": runs, "findings": found}))  # noqa: T201 - the command's output
            return
        if findings is not None:
            _print_findings(findings)
        show_arms(arms, out)


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished experiment.")],
    to: Annotated[Path, typer.Argument(help="Where to, such as docs/results/NAME.")],
) -> None:
    """Copy what belongs into a repository: report, findings, figures and one plot; no tokens, no paths, no names."""
    from loadgen.experiments.publish import publish as published

    with _told_in_one_line():
        for path in published(folder, to):
            out.print(Text(str(path)), soft_wrap=True)


_LENGTHS = {"input_tokens": 128, "output_tokens": 64}
_KINDS = {
    "closed": {"users", "requests", "duration", *_LENGTHS},
    "open": {"rate", "arrivals", "requests", "duration", *_LENGTHS},
    "sessions": {"rate", "arrivals", "turns", "requests", "duration", *_LENGTHS},
    "trace": {"trace", "trace_format", "requests", "duration"},
}
QUICK_PLACES: dict[tuple[str | int, ...], str] = {
    ("target", "url"): "--url",
    ("target", "model"): "--model",
    ("target", "api_key_env"): "--api-key-env",
    ("workload", "users"): "--users",
    ("workload", "arrivals"): "--rate",
    ("workload", "arrivals", "kind"): "--arrivals",
    ("workload", "turns"): "--turns",
    ("workload", "sessions"): "--requests",
    ("workload", "requests"): "--requests",
    ("workload", "duration_s"): "--duration",
    ("workload", "input_tokens"): "--input-tokens",
    ("workload", "output_tokens"): "--output-tokens",
    ("workload", "path"): "--trace",
    ("workload", "format"): "--trace-format",
}


def quick_experiment(given: dict[str, Any]) -> dict[str, Any]:
    """Return the experiment that options without a file describe, as a file would have it.

    Raises:
        OptionsError: there is no server or no kind of load among them, or an option that this kind has no use for.
    """
    if "url" not in given:
        raise OptionsError("nothing to do: give an experiment with -f FILE, or a server with --url")
    kind = given.get("kind")
    if kind not in _KINDS:
        raise OptionsError("--kind: give closed, open, sessions or trace (and what it needs; see --help)")
    for name in given.keys() - _KINDS[kind] - {"url", "model", "api_key_env", "kind"}:
        having = [each for each, names in _KINDS.items() if name in names]
        raise OptionsError(f"--{name.replace('_', '-')}: is for --kind {' or '.join(having)}, not {kind}")
    if given.get("arrivals", "poisson") not in {"constant", "poisson"}:
        raise OptionsError("--arrivals: give constant or poisson; others by --set workload.arrivals='{kind: ...}'")
    names = {"users", "turns", "requests"}
    workload: dict[str, Any] = {"kind": kind, **{name: given[name] for name in names & given.keys()}}
    workload |= {name: given.get(name, usual) for name, usual in _LENGTHS.items() if name in _KINDS[kind]}
    if "duration" in given:
        workload["duration_s"] = given["duration"]
    if "rate" in given:
        workload["arrivals"] = {"kind": given.get("arrivals", "poisson"), "rate": given["rate"]}
    if "trace" in given:
        workload["path"] = str(given["trace"])
    if "trace_format" in given:
        workload["format"] = given["trace_format"]
    if kind == "sessions" and "requests" in workload:
        workload["sessions"] = workload.pop("requests")
    url = str(given["url"])
    target = {"kind": "endpoint", "url": url if "://" in url else f"http://{url}"}
    target |= {name: given[name] for name in ("model", "api_key_env") if name in given}
    return {
        "apiVersion": "midstream.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": "run"},
        "target": target,
        "workload": workload,
    }


def numbered_folder(*, going_on: bool) -> str:
    """Return the folder of a run without a file: the next of `run-1`, `run-2`, ..., or the last to go on with it."""
    number = 1
    while (RESULTS / f"run-{number + going_on}").exists():
        number += 1
    return f"run-{number}"


def _experiment_file(name: str) -> Path:
    """Return a file, or the one that comes with Midstream by that name."""
    path = Path(name)
    if path.is_file() or path.suffix or len(path.parts) > 1:
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
        _print_findings(outcome.findings)
    out.print(Text(str(outcome.folder / REPORT_FILE)), soft_wrap=True)


def _print_findings(findings: Any) -> None:
    from loadgen.experiments.analysis.page import section_of
    from loadgen.reports.terminal import show_section

    show_section(section_of(findings), out)


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    """End the command with one message for an error, and the exit code that says whose fault it is."""
    try:
        yield
    except OptionsError as error:
        _fail(str(error), BAD_INPUT)
    except (LoadgenError, OSError) as error:
        _fail(str(error), FAILED)


def _say(line: str) -> None:
    err.print(Text(line), soft_wrap=True)


def _fail(message: str, code: int) -> NoReturn:
    _say(f"midstream load: {message}")
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
