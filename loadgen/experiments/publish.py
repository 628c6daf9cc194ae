"""From the folder of a finished experiment to what belongs into a repository: small, readable, and about no machine
in particular.

    TO/report.html           the report, below 1 MB
    TO/findings.md, .json    what the experiment is for, if it is for a table
    TO/plot.svg              one plot: that of the findings, else tokens over time
    TO/experiment.json       the experiment, its machine, versions, seeds, and when it ran
    TO/ARM/REPEAT/summary.json

Tables of tokens and requests stay where they are. What names a place is made general: of paths only the last part is
kept, of addresses beyond loopback and of e-mail addresses nothing. Then every file is searched for what must not be in
it (this machine's name, this user's, home and working folders, addresses): anything found ends it, and nothing is
written.
"""

import contextlib
import getpass
import json
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadgen.errors import OptionsError
from loadgen.experiments.analysis.drawings import drawing
from loadgen.experiments.analysis.findings import FINDINGS_FILE, FINDINGS_TEXT, Findings
from loadgen.experiments.analysis.page import section_of
from loadgen.experiments.folders import EXPERIMENT_FILE
from loadgen.reports.arms import Arm, arms_of
from loadgen.reports.page import render
from loadgen.reports.plots import WIDTH, timeline
from loadgen.reports.svg import export
from loadgen.results.columns import FINISHED, REPORT_FILE, SUMMARY_FILE
from loadgen.results.errors import ResultsError
from loadgen.results.manifest import RunManifest, write_atomically
from loadgen.results.reader import Run, read_runs
from loadgen.results.summary import marks_of

PLOT_FILE = "plot.svg"
MOST_BYTES = 1_000_000

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "0.0.0.0"})  # noqa: S104 - to be told apart, not listened on
_URL = re.compile(
    r"\b([a-z][a-z0-9+.-]*)://(?:[^\s/@\"'<>]*@)?(\[[0-9a-fA-F:]+\]|[^\s/:\"'<>)\],;]+)([^\s\"'<>)\],;]*)"
)
_PATH = re.compile(r"(?<![\w./~<-])(?:~|\.{1,2})?/(?:[\w.+@ -]*[\w.+@-]/)*([\w.+@-]+)/?")
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")
_IPV4 = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")
_BUILD = re.compile(r"^(\w+-\d+(?:\.\d+)*)-.*(?=-(?:x86_64|aarch64|arm64|i686|ppc64le|s390x|riscv64)\b)")
_PLAIN_NAMES = frozenset({"root", "user", "admin", "ubuntu", "runner", "nobody", "localhost", "test", "main", "work"})


def publish(folder: Path, to: Path) -> list[Path]:
    """Write what belongs into a repository; returns the files.

    Args:
        folder: Of an experiment whose runs are all finished.
        to: Where to; made if it is not there. Files of an earlier publication are replaced.

    Raises:
        OptionsError: it is no experiment's folder, a run is not finished, or `to` is part of it.
        ResultsError: a run is damaged, something that must not be published was found, a file is too large, or `to`
            cannot be written.
    """
    if not (folder / EXPERIMENT_FILE).is_file():
        raise OptionsError(f"{folder} is no experiment's folder: it has no {EXPERIMENT_FILE}")
    if to.resolve().is_relative_to(folder.resolve()):
        raise OptionsError(f"{to} is inside {folder}: give a folder elsewhere")
    experiment = json.loads((folder / EXPERIMENT_FILE).read_text(encoding="utf-8"))
    runs = [_cleaned_run(run, folder) for run in read_runs(folder)]
    unfinished = [run.manifest.title for run in runs if run.state != FINISHED]
    made = {(run.manifest.arm, run.manifest.repeat) for run in runs}
    wanted = {(arm["name"], n) for arm in experiment["arms"] for n in range(experiment["repeats"])}
    missing = [f"{arm} {n + 1}" for arm, n in sorted(wanted - made)]
    if unfinished or missing:
        raise OptionsError(
            f"{folder}: not finished: {', '.join([*unfinished, *missing])}; go on with load run --resume"
        )
    arms = arms_of(sorted(runs, key=lambda run: run.manifest.started_unix_ns))
    files = dict(_files(folder, experiment, arms))
    for name, content in files.items():
        _check(name, content)
    written = []
    try:
        for name, content in files.items():
            path = to / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
            written.append(path)
    except OSError as error:
        raise ResultsError(f"{to} cannot be written: {error}") from error
    return written


def _files(folder: Path, experiment: dict[str, Any], arms: list[Arm]) -> Iterator[tuple[str, str]]:
    findings = Findings.read(folder)
    if findings is not None:
        findings = replace(findings, figures=general(findings.figures), notes=tuple(map(general, findings.notes)))
        yield FINDINGS_FILE, findings.json()
        yield FINDINGS_TEXT, findings.markdown()
    yield REPORT_FILE, render(arms, () if findings is None else (section_of(findings),))
    plot = timeline(arms[:1]) if findings is None else drawing(findings)
    if plot is not None:
        with tempfile.TemporaryDirectory() as scratch:
            export(plot.draw, WIDTH, plot.height, Path(scratch) / PLOT_FILE)
            yield PLOT_FILE, (Path(scratch) / PLOT_FILE).read_text(encoding="utf-8")
    for arm in arms:
        for run, summary in zip(arm.runs, arm.summaries, strict=True):
            yield f"{run.manifest.arm or arm.name}/{run.manifest.repeat}/{SUMMARY_FILE}", summary.json()
    first = arms[0].first.manifest
    document = {
        "experiment": general(experiment),
        "machine": first.machine,
        "versions": first.versions,
        "runs": [
            {
                "arm": run.manifest.arm,
                "repeat": run.manifest.repeat,
                "seed": run.manifest.seed,
                "started_unix_s": run.manifest.started_unix_ns // 1_000_000_000,
            }
            for arm in arms
            for run in arm.runs
        ],
    }
    yield EXPERIMENT_FILE, json.dumps(document, indent=2) + "\n"


def _cleaned_run(run: Run, folder: Path) -> Run:
    """Return a run whose folder, manifest and marks are general; its measurements are the same."""
    document = general(run.manifest.model_dump(mode="json", exclude={"experiment"}))
    if isinstance(platform := document["machine"].get("platform"), str):
        document["machine"]["platform"] = _BUILD.sub(r"\1", platform)
    marks = [general(mark.detail) for mark in marks_of(run)]
    column = run.marks.schema.get_field_index("detail")
    table = run.marks.set_column(column, run.marks.schema.field(column), [marks]) if marks else run.marks
    return replace(
        run, folder=run.folder.relative_to(folder), manifest=RunManifest.model_validate(document), marks=table
    )


def general(value: Any) -> Any:
    """Return plain data in which no text names a path, an address or a mailbox of somebody's."""
    match value:
        case str():
            return _general_text(value)
        case dict():
            return {_general_text(str(key)): general(each) for key, each in value.items()}
        case list() | tuple():
            return [general(each) for each in value]
        case _:
            return value


def _general_text(text: str) -> str:
    parts, at = [], 0
    for url in _URL.finditer(text):
        parts.append(_without_places(text[at : url.start()]))
        scheme, host, rest = url.groups()
        port = re.match(r":\d+", rest)
        parts.append(f"{scheme}://{host}{port[0] if port else ''}" if host in _LOOPBACK else f"{scheme}://HOST")
        at = url.end()
    return "".join(parts) + _without_places(text[at:])


def _without_places(text: str) -> str:
    text = _EMAIL.sub("MAILBOX", text) if "@" in text and not _LAYOUT.search(text) else text
    text = _PATH.sub(lambda found: f".../{found[1]}", text)
    for name in _own_names():
        text = re.sub(rf"(?i)(?<![\w.-]){re.escape(name)}(?![\w-])", "HOST", text)
    return _IPV4.sub(lambda found: found[0] if found[0].startswith(("127.", "0.0.0.0")) else "ADDRESS", text)  # noqa: S104


_LAYOUT = re.compile(r"^\d+@[\w.-]+(,\d+@[\w.-]+)*$")  # layers on nodes, which look like mailboxes


def _own_names() -> list[str]:
    """Return how this machine and its user are called, where that is no common word."""
    host = socket.gethostname()
    names = {host, host.partition(".")[0], socket.getfqdn()}
    with contextlib.suppress(OSError, KeyError):  # a user without an entry
        names.add(getpass.getuser())
    return sorted((name for name in names if len(name) > 2 and name not in _PLAIN_NAMES), key=len, reverse=True)


def _check(name: str, content: str) -> None:
    """Refuse a file that is too large, or that names this machine.

    Raises:
        ResultsError: with what was found and in which file.
    """
    size = len(content.encode())
    if size >= MOST_BYTES:
        raise ResultsError(f"{name} would have {size:,} bytes, {MOST_BYTES:,} is the most: use fewer arms or repeats")
    folders = {str(path) for path in (Path.home(), Path.cwd(), Path(sys.prefix), Path(tempfile.gettempdir()))} - {"/"}
    for place in (*folders, "/home/", "/Users/", "/mnt/", "/srv/"):
        if (at := content.find(place)) >= 0:
            raise ResultsError(f"{name} names a path: {_excerpt(content, at)}: it must not be published")
    for own in _own_names():
        if found := re.search(rf"(?i)(?<![\w.-]){re.escape(own)}(?![\w-])", content):
            raise ResultsError(f"{name} names this machine or its user: {_excerpt(content, found.start())}")


def _excerpt(content: str, at: int) -> str:
    return repr(content[max(0, at - 20) : at + 60])
