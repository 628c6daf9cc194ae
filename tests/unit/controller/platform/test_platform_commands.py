"""`midstream apply`, `validate`, `up` and `down`, up to the processes themselves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from controller import platform_commands
from controller.platform.broker.client import BrokerError, Seen, Seens, Undelivered
from controller.platform.local import apply, launch, model_layers
from controller.platform.local.processes import PlatformError, ProcessRecord
from controller.platform.local.state import Applied, PlatformFolder, PlatformRecord
from tests.unit.controller.platform.small_platform import committed, pipeline, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

app = typer.Typer()
for name in ("up", "down", "apply", "validate"):
    app.command(name)(getattr(platform_commands, name))

REPORT = {
    "id": "change-1",
    "boot": "b",
    "from": "15,15",
    "to": "10,10,10",
    "reason": None,
    "total_ms": 7.0,
    "steps_ms": {"plan": 1.0},
    "bytes_moved": 0,
    "rounds": 0,
    "requests_carried": 2,
    "epoch": 3,
    "pause_ms": None,
    "started_at": 1.0,
    "ended_at": 2.0,
    "traceparent": None,
}
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
        self.head = Head(self)
        self.accepted: dict[str, Any] = {}  # what the head says from the request on
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
        self.sent.append({**headers, "data": msgspec.json.decode(body)})
        self.head.says |= self.accepted
        return 5

    def events(self, after: int, wait_s: float, subject: str | None = None) -> Seens:
        request = self.sent[0]["ce-id"]
        if self.undelivered:
            event = {"id": request, "source": apply.SOURCE, "type": "x"}
            return Seens([Seen(6, 0.0, event, self.undelivered)], 6, missed=False)
        report = {"state": self.type, **self.report}
        events = [
            told("dev.midstream.reconfiguration.committed", "text"),
            committed("10,10,10", request=request, change=None, name="other"),
            committed("10,10,10", request="another"),
            committed("10,10,10", **{**report, "request": request}),
        ]
        events[-1].event["type"] = f"dev.midstream.reconfiguration.{self.type}"
        return Seens(events, 9, missed=False)


class Head:
    """What the head says: the layout asked for last, and of changes the end of the one that was asked for."""

    def __init__(self, broker: Answering) -> None:
        self.broker = broker
        self.says: dict[str, Any] = {"boot": "b", "wanted": "15,15", "generation": 4, "change": None}
        self.reports: list[dict[str, Any]] = []

    def __call__(self, endpoint: str) -> Head:
        assert endpoint == "http://127.0.0.1:1"
        return self

    def __enter__(self) -> Head:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return self.says

    def wait(self, change: str) -> dict[str, Any]:
        assert change == "change-1"
        report = dict(REPORT)
        report |= {"state": self.broker.type, **self.broker.report}
        return {**report, "request": f"{apply.SOURCE}#{self.broker.sent[0]['ce-id']}"}


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Answering:
    """The broker of the platform that runs."""
    answering = Answering()
    monkeypatch.setattr(apply, "BrokerClient", answering)
    monkeypatch.setattr(apply, "ControlClient", answering.head)
    return answering


@pytest.fixture
def running() -> Iterator[PlatformFolder]:
    """A platform that runs, as far as its folder says; it serves 15,15."""
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
        assert running.proposals() == []

    def test_a_broker_that_refuses_is_told(self, running, broker: Answering, write):
        broker.refusal = BrokerError("no room", refused=True)
        assert midstream("apply", "-f", write("{auto: {stages: 3}}")).stderr == "midstream: no room\n"
        assert running.proposals() == []

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
        assert broker.sent == []

    def test_an_object_that_says_it_otherwise_is_kept_although_nothing_changes(self, running, broker, write):
        broker.report = {"change": None, "from": None, "unchanged": True, "reason": "the pipeline has it already"}
        broker.accepted = {"generation": 5}
        said = midstream("apply", "-f", write("{stages: [{layers: 15}, {layers: 15}]}"))
        assert said.stdout == "small: generation 5 committed, the pipeline has it already\n"
        assert generation(running) == 5

    @pytest.mark.parametrize("says", [{"wanted": "10,10,10"}, {"change": "change-9"}, {"wanted": None}])
    def test_the_newest_wish_is_always_told(self, running, broker: Answering, write, says: dict[str, Any]):
        broker.head.says |= says
        midstream("apply", "--no-wait", "-f", write("{auto: {stages: 2}}"))
        assert broker.sent[0]["data"]["layers"] == "15,15"

    def test_a_wish_that_still_waits_is_taken_back(self, running, broker: Answering, write):
        midstream("apply", "--no-wait", "-f", write("{auto: {stages: 3}}"))
        midstream("apply", "--no-wait", "-f", write("{auto: {stages: 2}}"))
        assert [(event["data"]["layers"], event["data"]["generation"]) for event in broker.sent] == [
            ("10,10,10", 5),
            ("15,15", 6),
        ]
        running.settle(broker.sent[0]["ce-id"], committed=True)
        assert (generation(running), len(running.proposals())) == (5, 1)
        running.settle(broker.sent[1]["ce-id"], committed=True)
        assert (generation(running), running.proposals()) == (6, [])

    def test_a_generation_is_higher_than_any_that_the_head_accepted(self, running, broker: Answering, write):
        broker.head.says["generation"] = 41
        midstream("apply", "--no-wait", "-f", write("{auto: {stages: 3}}"))
        assert broker.sent[0]["data"]["generation"] == 42

    def test_an_event_that_the_head_knows_nothing_of_is_not_believed(self, running, broker, write, monkeypatch):
        ends = iter([True, True, False])
        monkeypatch.setattr(PlatformFolder, "is_owned", lambda _: next(ends))
        broker.report = {"change": None, "unchanged": True}  # "committed", but generation 5 was never accepted
        result = midstream("apply", "-f", write("{auto: {stages: 3}}"))
        assert (result.exit_code, result.stderr) == (1, "midstream: pipeline 'small' ended before the change did\n")
        assert generation(running) == 4

    def test_the_end_is_seen_without_any_event(self, running, broker: Answering, write, monkeypatch):
        monkeypatch.setattr(Answering, "events", lambda *_, **__: Seens([], 5, missed=True))
        broker.accepted = {"wanted": "10,10,10", "generation": 5}
        result = midstream("apply", "-f", write("{auto: {stages: 3}}"))
        assert result.stdout == "small: generation 5 committed, it is the layout that was asked for last\n"
        assert generation(running) == 5

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
