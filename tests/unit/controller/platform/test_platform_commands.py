"""`midstream apply`, `validate`, `up` and `down`, up to the processes themselves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner, Result

from controller import platform_commands
from controller.platform.broker.client import BrokerError, Seen, Seens, Undelivered
from controller.platform.local import apply, launch, model_layers
from controller.platform.local.processes import PlatformError, ProcessRecord
from controller.platform.local.state import Applied, PlatformFolder, PlatformRecord
from tests.unit.controller.platform.small_platform import pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

app = typer.Typer()
for name in ("up", "down", "apply", "validate"):
    app.command(name)(getattr(platform_commands, name))

HEAD = "apiVersion: midstream.dev/v1alpha1\nkind: LLMPipeline\nmetadata: {name: small}\n"


def midstream(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's state is the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes an object and returns its file."""

    def file(spec: str) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(f"{HEAD}spec: {spec}\n")
        return path

    return file


class Answering:
    """A broker that answers a request with what the test says."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.type = "committed"
        self.report: dict[str, Any] = {}
        self.undelivered: Undelivered | None = None
        self.refusal: BrokerError | None = None

    def __call__(self, address: str) -> Answering:
        assert address == "http://127.0.0.1:2"
        return self

    def __enter__(self) -> Answering:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, headers: Mapping[str, str], body: bytes) -> int:
        if self.refusal:
            raise self.refusal
        import msgspec

        self.sent.append({**headers, "data": msgspec.json.decode(body)})
        return 5

    def events(self, after: int, wait_s: float, subject: str | None = None) -> Seens:
        request = self.sent[0]["ce-id"]
        if self.undelivered:
            return Seens([Seen(6, 0.0, {"id": request, "type": "x"}, self.undelivered)], 6, missed=False)
        report = {
            "change": "change-1",
            "from": "15,15",
            "to": "10,10,10",
            "state": self.type,
            "reason": None,
            "total_ms": 7.0,
            "steps_ms": {"plan": 1.0},
            "bytes_moved": 0,
            "requests_carried": 2,
            "unchanged": False,
            **self.report,
        }
        events = [
            {"id": "1", "type": "dev.midstream.reconfiguration.committed", "data": {**report, "request": "another"}},
            {"id": "2", "type": "dev.midstream.reconfiguration.planned", "data": {**report, "request": request}},
            {"id": "3", "type": f"dev.midstream.reconfiguration.{self.type}", "data": {**report, "request": request}},
        ]
        return Seens([Seen(5 + number, 0.0, event) for number, event in enumerate(events)], 9, missed=False)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Answering:
    """The broker of the platform that runs."""
    answering = Answering()
    monkeypatch.setattr(apply, "BrokerClient", answering)
    return answering


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlatformFolder]:
    """A platform that runs, as far as its folder says; it serves 15,15."""
    monkeypatch.setattr(apply, "_serving_layout", lambda _: "15,15")
    folder = PlatformFolder("small")
    with folder.own():
        folder.prepare()
        folder.write_applied(Applied(4, pipeline(auto={"stages": 2}).to_object()))
        supervisor = ProcessRecord.of(os.getpid())
        folder.write_record(
            PlatformRecord("small", supervisor, "/nowhere", {"head": 1, "broker": 2}, ["edge-1"], 30, ready=True)
        )
        yield folder


def generation(folder: PlatformFolder) -> int:
    applied = folder.applied()
    assert applied is not None
    return applied.generation


class TestApply:
    def test_a_change_takes_the_road_of_an_event_and_is_kept_when_committed(self, running, broker: Answering, write):
        result = midstream("apply", "-f", write("{auto: {stages: 3}, migration: {method: recompute}}"))
        assert result.exit_code == 0, result.stderr
        assert result.stdout == (
            "small: generation 5, change-1: 15,15 -> 10,10,10 committed in 7 ms (plan 1 ms); 2 requests carried, "
            "0 bytes of KV moved\n"
        )
        (event,) = broker.sent
        assert event["ce-type"] == "dev.midstream.reconfiguration.requested"
        assert event["data"] == {
            "pipeline": "small",
            "layers": "10,10,10",
            "method": "recompute",
            "fallback": "abort",
            "generation": 5,
        }
        assert generation(running) == 5

    def test_an_aborted_change_is_not_kept(self, running, broker: Answering, write):
        broker.type, broker.report = "aborted", {"reason": "a stage was lost"}
        result = midstream("apply", "-f", write("{auto: {stages: 3}}"))
        assert result.exit_code == 1
        assert "  reason: a stage was lost\n" in result.stdout
        assert generation(running) == 4

    def test_a_request_that_starts_no_change_is_told_with_the_reason(self, running, broker: Answering, write):
        broker.type, broker.report = "aborted", {"change": None, "reason": "generation 5 is older"}
        result = midstream("apply", "-f", write("{auto: {stages: 3}}"))
        assert (result.exit_code, result.stdout) == (1, "small: generation 5 aborted, generation 5 is older\n")

    def test_an_event_that_nobody_took_is_told(self, running, broker: Answering, write):
        broker.undelivered = Undelivered("reconfigure", "http://127.0.0.1:3", 503, "the head is away")
        result = midstream("apply", "-f", write("{auto: {stages: 3}}"))
        assert (result.exit_code, result.stderr) == (1, "midstream: the change was not made: the head is away\n")
        assert not (running.path / "proposed.json").exists()

    def test_a_broker_that_refuses_is_told(self, running, broker: Answering, write):
        broker.refusal = BrokerError("no room", refused=True)
        assert midstream("apply", "-f", write("{auto: {stages: 3}}")).stderr == "midstream: no room\n"
        assert not (running.path / "proposed.json").exists()

    def test_nobody_has_to_wait(self, running, broker: Answering, write):
        result = midstream("apply", "--no-wait", "-f", write("{auto: {stages: 3}}"))
        (event,) = broker.sent
        assert result.stdout == f"small: generation 5 asked for with event {event['ce-id']}\n"
        assert generation(running) == 4
        running.settle(event["ce-id"], committed=True)  # as the supervisor does
        assert generation(running) == 5

    def test_what_serves_already_needs_no_event(self, running, broker: Answering, write):
        again = midstream("apply", "-f", write("{auto: {stages: 2}}"))
        assert again.stdout == "small: generation 4, nothing to change in what runs\n"
        said_otherwise = midstream("apply", "-f", write("{stages: [{layers: 15}, {layers: 15}]}"))
        assert said_otherwise.stdout == "small: generation 5, nothing to change in what runs\n"
        assert broker.sent == []

    def test_a_layout_that_was_changed_by_hand_is_changed_back(self, running, broker: Answering, write, monkeypatch):
        monkeypatch.setattr(apply, "_serving_layout", lambda _: "30")
        midstream("apply", "-f", write("{auto: {stages: 2}}"))
        assert broker.sent[0]["data"]["layers"] == "15,15"

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("{capacity: {kvBlocks: 9}}", "only a restart changes spec.capacity.kvBlocks: run `midstream down small`"),
            ("{stages: [{layers: 30, node: edge-9}]}", "spec.stages[0].node: 'edge-9' does not run (edge-1 does)"),
            ("{stages: [{layers: 29}]}", "the layers 29 add up to 29, but the model has 30"),
            (
                "{stages: [{layers: 30, resources: {}}]}",
                "spec.stages[0].resources: only clusters give stages resources",
            ),
            ("{stages: [{layers: 0}]}", "small.yaml:4: spec.stages[0].layers: 0 is too small"),
        ],
    )
    def test_what_cannot_be_applied_is_refused_and_changes_nothing(
        self, running, broker, write, spec: str, message: str
    ):
        result = midstream("apply", "-f", write(spec))
        assert result.exit_code == 2
        assert message in result.stderr
        assert (broker.sent, generation(running)) == ([], 4)

    def test_a_pipeline_that_does_not_run_is_told(self, write):
        result = midstream("apply", "-f", write("{}"))
        assert (result.exit_code, "no pipeline 'small' runs here" in result.stderr) == (1, True)


class TestUp:
    @pytest.fixture(autouse=True)
    def layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model_layers, "count_layers", lambda _: 30)

    def test_detached_it_tells_where_it_serves_and_how_to_go_on(self, write, monkeypatch: pytest.MonkeyPatch):
        orders = []

        def start(order: launch.Order, say: launch.Say) -> PlatformRecord:
            orders.append(order)
            say("broker", "ready in 0.1 s")
            return PlatformRecord("small", ProcessRecord.of(os.getpid()), "", {"head": 8123, "broker": 2}, ready=True)

        monkeypatch.setattr(launch, "start_detached", start)
        result = midstream("up", "-d", "--port", "8123", "-f", write("{auto: {stages: 3}}"))
        assert result.exit_code == 0
        assert result.stdout == (
            "small serves at http://127.0.0.1:8123/v1, takes events at http://127.0.0.1:2\n"
            "  change  midstream apply -f FILE\n"
            "  end     midstream down small\n"
        )
        assert result.stderr.endswith("broker         ready in 0.1 s\n")
        assert orders == [launch.Order(pipeline(auto={"stages": 3}).to_object(), 30, 8123)]

    def test_a_failed_start_is_told(self, monkeypatch: pytest.MonkeyPatch):
        def fail(*_: object) -> None:
            raise PlatformError("head ended with status 1")

        monkeypatch.setattr(launch, "run", fail)
        result = midstream("up")
        assert (result.exit_code, result.stderr) == (1, "midstream: head ended with status 1\n")

    def test_stages_that_do_not_fit_the_model_are_refused_before_anything_starts(self, write):
        result = midstream("up", "-f", write("{stages: [{layers: 29}]}"))
        assert (result.exit_code, "the layers 29 add up to 29, but the model has 30" in result.stderr) == (2, True)


class TestValidate:
    def test_a_good_file(self, write):
        file = write("{}")
        assert midstream("validate", "-f", file).stdout == f"{file}: LLMPipeline small is valid\n"

    def test_a_file_for_a_cluster(self, write):
        result = midstream("validate", "-f", write("{stages: [{layers: 1, nodeSelector: {a: b}}]}"))
        assert result.exit_code == 0
        assert "It needs a cluster:\nspec.stages[0].nodeSelector: only clusters select nodes by label" in result.stdout

    def test_a_bad_file(self, write):
        result = midstream("validate", "-f", write("{auto: {stages: 0}}"))
        assert (result.exit_code, "small.yaml:4: spec.auto.stages: 0 is too small" in result.stderr) == (2, True)


def test_down_without_anything_running():
    assert midstream("down").stdout == "no pipeline runs here\n"
