"""Experiments as users run them: the command as a process, against the mock server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from loadgen.load_commands import BAD_INPUT, FAILED
from loadgen.results.errors import ResultsError
from loadgen.results.reader import read_run
from loadgen.results.streams import streams_of
from loadgen.results.summary import marks_of

EXPERIMENT = """\
apiVersion: midstream.dev/v1alpha1
kind: Experiment
metadata: {name: demo}
settle_s: 0
target: {kind: mock, layers: "15,15", args: ["--ttft-ms", "20", "--itl-ms", "10"]}
workload: {kind: closed, users: 3, duration_s: 1.5, input_tokens: 16, output_tokens: 40}
client: {grace_s: 0.5}
marks: [{kind: journal}]
arms:
- name: static
- name: dynamic
  actions: [{kind: reconfigure, layers: "8,12,10", at_s: 0.8}]
"""
COMMAND = (sys.executable, "-m", "loadgen.load_commands", "run")
DEADLINE_S = 120.0
SHORTER = 40  # times


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(EXPERIMENT)
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail(f"not within {DEADLINE_S:g} s: {what}")


def folder_state(folder: Path) -> str | None:
    """Return the state of a run; None if it has not begun, or is just being put aside."""
    try:
        return read_run(folder).state
    except ResultsError:
        return None


def tokens_of(folder: Path) -> int:
    try:
        return len(read_run(folder).tokens)
    except ResultsError:
        return 0


def test_one_command_makes_all_runs_and_a_report_that_shows_what_happened(file: Path, tmp_path: Path):
    done = run("-f", str(file), "--out", str(tmp_path / "out"), "--mark", "hello@0.5", "--json")
    assert done.returncode in {0, 3}, done.stderr
    result = json.loads(done.stdout)
    assert [summary["run"]["arm"] for summary in result["runs"]] == ["static", "dynamic"]
    assert (tmp_path / "out" / "report.html").is_file()
    dynamic = read_run(tmp_path / "out" / "dynamic" / "0")
    marks = {mark.name: mark for mark in marks_of(dynamic)}
    assert set(marks) == {"hello", "reconfigure", "reconfigure.cutover"}
    change = marks["reconfigure"]
    assert 0.75e9 < change.start_ns < change.end_ns < 1.5e9
    detail = json.loads(change.detail)
    assert (detail["from"], detail["to"], detail["state"]) == ("15,15", "8,12,10", "committed")
    assert detail["bytes_moved"] == 4096
    assert not streams_of(dynamic).broken.any()
    prompts = {
        arm: read_run(tmp_path / "out" / arm / "0").requests.column("prompt_tokens").to_pylist()[:3]
        for arm in ("static", "dynamic")
    }
    assert prompts["static"] == prompts["dynamic"] == [16, 16, 16]


def test_a_killed_experiment_keeps_what_it_measured_and_goes_on(file: Path, tmp_path: Path):
    out = tmp_path / "out"
    slow = ["--set", "arms.dynamic.workload.duration_s=60"]
    killed = subprocess.Popen([*COMMAND, "-f", str(file), "--out", str(out), *slow], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: tokens_of(out / "dynamic" / "0") > 60, "tokens of the second run on disk")
        servers = [child.pid for child in psutil.Process(killed.pid).children(recursive=True)]
    finally:
        killed.kill()
        killed.wait()
    assert servers
    wait_for(lambda: not any(map(is_alive, servers)), "the target ends with its experiment")
    assert folder_state(out / "static" / "0") == "finished"
    assert folder_state(out / "dynamic" / "0") == "killed"
    kept, finished = tokens_of(out / "dynamic" / "0"), (out / "static" / "0" / "run.json").read_text()

    again = run("-f", str(file), "--out", str(out), *slow)
    assert again.returncode == BAD_INPUT
    assert "--resume" in again.stderr
    assert "--start-over" in again.stderr
    other = run("-f", str(file), "--out", str(out), "--resume")
    assert other.returncode == BAD_INPUT
    assert "arms[1].workload.duration_s was 60.0, is 1.5" in other.stderr

    resumed = subprocess.Popen(
        [*COMMAND, "-f", str(file), "--out", str(out), "--resume", *slow], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: folder_state(out / "dynamic" / "0") == "running", "the second run goes on anew")
        resumed.send_signal(signal.SIGINT)
        assert resumed.wait(DEADLINE_S) == FAILED
    finally:
        resumed.kill()
        resumed.wait()
    assert (out / "static" / "0" / "run.json").read_text() == finished
    aside = tmp_path / "out-unfinished" / "dynamic-0-1"
    assert folder_state(aside) == "interrupted"
    assert tokens_of(aside) == kept

    over = run("-f", str(file), "--out", str(out), "--start-over")
    assert over.returncode in {0, 3}, over.stderr
    assert folder_state(out / "dynamic" / "0") == "finished"
    assert (out / "static" / "0" / "run.json").read_text() != finished


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_order(file: Path, tmp_path: Path, number: signal.Signals):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "-f", str(file), "--out", str(out), "--set", "workload.duration_s=60"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: tokens_of(out / "static" / "0") > 60, "tokens on disk")
        servers = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(number)
        _, told = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == FAILED
    assert "--resume goes on" in told
    assert "Traceback" not in told
    assert not any(map(is_alive, servers))
    found = read_run(out / "static" / "0")
    assert (found.state, found.manifest.error) == ("interrupted", "ended by a signal")
    assert len(found.tokens) > 60
    summary = json.loads((out / "static" / "0" / "summary.json").read_text())
    assert summary["state"] == "interrupted"


def test_a_restart_breaks_its_streams_and_users_come_back(file: Path, tmp_path: Path):
    text = EXPERIMENT.partition("arms:")[0].replace("output_tokens: 40", "output_tokens: 40, think_s: 0.05")
    file.write_text(text + 'actions: [{kind: restart, layers: "8,22", at_s: 0.6, grace_s: 0.2}]\n')
    done = run("-f", str(file), "--out", str(tmp_path / "out"), "--set", "workload.duration_s=4")
    assert done.returncode in {0, 3}, done.stderr
    measured = read_run(tmp_path / "out" / "run" / "0")
    (mark,) = [mark for mark in marks_of(measured) if mark.kind == "restart"]
    detail = json.loads(mark.detail)
    assert (detail["from"], detail["to"]) == ("15,15", "8,22")
    outcomes = set(measured.requests.column("outcome").to_pylist())
    assert outcomes >= {"disconnected", "unreachable", "finished"}
    streams = streams_of(measured)
    assert (streams.first_ns[streams.finished] > mark.end_ns).any()


def test_an_error_in_an_action_ends_the_run_with_its_reason_and_keeps_the_tokens(file: Path, tmp_path: Path):
    done = run("-f", str(file), "--out", str(tmp_path / "out"), "--set", 'target.args=["--change-outcome", "abort"]')
    assert done.returncode == FAILED
    assert "dynamic, repeat 0: change-1 to 8,12,10 was aborted" in done.stderr
    assert folder_state(tmp_path / "out" / "static" / "0") == "finished"
    found = read_run(tmp_path / "out" / "dynamic" / "0")
    assert found.state == "interrupted"
    assert "was aborted" in str(found.manifest.error)
    assert len(found.tokens) > 0


def test_a_server_can_be_loaded_without_a_file_and_without_being_ours(tmp_path: Path):
    environment = {**os.environ, "MOCK_KEY": "k-123"}
    mock = subprocess.Popen(
        [sys.executable, "-m", "loadgen.mock", "--port", "0", "--api-key-env", "MOCK_KEY"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert mock.stdout is not None
        url = mock.stdout.readline().split()[-1]
        arguments = [
            *("--url", f"{url}/v1", "--kind", "open", "--rate", "20", "--requests", "10", "--api-key-env", "MOCK_KEY"),
            *("--input-tokens", "8", "--output-tokens", "16", "--out", str(tmp_path / "out"), "--json"),
            *("--set", "prompts={kind: token_ids, vocabulary: 1000}"),
        ]
        done = subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, env=environment, check=False
        )
        assert done.returncode in {0, 3}, done.stderr
        (summary,) = json.loads(done.stdout)["runs"]
        assert summary["figures"]["outcomes"] == {"finished": 10}
        assert summary["figures"]["output_tokens"] == 160
        written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
        assert b"k-123" not in written
    finally:
        mock.terminate()
        mock.wait(10)
        if mock.stdout is not None:
            mock.stdout.close()


def test_rows_of_a_trace_that_cannot_be_right_are_counted_and_named(file: Path, tmp_path: Path):
    trace = tmp_path / "trace.csv"
    rows = ["20,10", "abc,10", "20,-5", "20,7"]
    moments = (f"2023-11-16 18:15:4{n}.1,{row}" for n, row in enumerate(rows))
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *moments]))
    workload = f"workload={{kind: trace, format: azure2023, path: {trace}, time_scale: 0.1, on_bad_rows: count}}"
    done = run(
        "-f", str(file), "--out", str(tmp_path / "out"), "--set", workload, "--set", "arms=[{name: only}]", "--json"
    )
    assert done.returncode in {0, 3}, done.stderr
    (summary,) = json.loads(done.stdout)["runs"]
    assert summary["figures"]["requests"] == 2
    assert any(told.startswith("2 of 4 rows of the trace cannot be right") for told in summary["warnings"])
    assert "line 3: ContextTokens is &#39;abc&#39;" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("name", ["static-against-dynamic", "ways-to-change", "shift", "burst-and-scale", "growth"])
def test_every_experiment_that_comes_with_midstream_runs_on_the_mock(name: str, tmp_path: Path):
    """Its arms, actions and analysis, with the mock in place of every server and only seconds of load."""
    source = Path(__file__).parents[3] / "loadgen" / "experiments" / f"{name}.yaml"
    document = shortened(yaml.safe_load(source.read_text()))
    path = tmp_path / f"{name}.yaml"
    path.write_text(json.dumps(document))
    done = run("-f", str(path), "--out", str(tmp_path / "out"))
    assert done.returncode in {0, 3}, done.stderr
    if "analysis" in document:
        findings = json.loads((tmp_path / "out" / "findings.json").read_text())
        assert findings["rows"]
        assert findings["published"]


def shortened(document: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment for the mock: a fortieth of the time, a third of many arms."""
    mock = {"kind": "mock", "args": ["--itl-ms", "8", "--ttft-ms", "10"]}
    document |= {
        "repeats": 1,
        "settle_s": 0,
        "client": {"grace_s": 5},
        "prompts": {"kind": "token_ids", "vocabulary": 1000},
    }
    if document["metadata"]["name"] == "growth":
        document["arms"] = document["arms"][::3]
    for settings in (document, *document["arms"]):
        if "target" in settings:
            settings["target"] = {**mock, "layers": str(settings["target"].get("layers", "15,15"))}
        shorten_workload(settings.get("workload", {}))
        for action in settings.get("actions", []):
            for field in ("at_s", "after_tokens"):
                if field in action:
                    action[field] = action[field] / SHORTER if field == "at_s" else max(1, action[field] // 20)
        settings["actions"] = [each for each in settings.get("actions", []) if each.get("until") != "asleep"]
    return document


def shorten_workload(workload: dict[str, Any]) -> None:
    if workload.get("duration_s"):
        workload["duration_s"] /= SHORTER
    if isinstance(workload.get("output_tokens"), int):
        workload["output_tokens"] = max(8, workload["output_tokens"] // 5)
    for phase in workload.get("phases", []):
        phase["duration_s"] /= SHORTER
        phase["workload"]["arrivals"]["rate"] *= SHORTER
