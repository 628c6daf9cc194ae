"""The stage function under func-python, in a process, with a head over HTTP."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime.head.control_client import ControlClient
from tests.integration.functions.head import Head, until
from tests.integration.functions.process import FunctionProcess, make_event

RELEASE = make_event("stage.release", {"stage": 1}, "release")
PREPARE = make_event("stage.prepare", {"stage": 1}, "prepare")
ASKED_TO_RELEASE = "POST /stages/1/release"


@pytest.fixture
def function(head: Head, start: Callable[..., FunctionProcess]) -> FunctionProcess:
    return start("stage", MIDSTREAM_STAGE="1").wait_ready()


def test_it_comes_when_the_head_comes(port: int, start: Callable[..., FunctionProcess]):
    function = start("stage", MIDSTREAM_STAGE="1").wait_alive()
    until(lambda: "not attached yet" in function.log, "it has tried")
    assert (function.probe("liveness"), function.probe("readiness")) == (200, 500)
    with Head(port).running() as head:
        function.wait_ready()
        assert (head.changes, head.layers) == (0, "2,2")


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_a_stage_goes_and_comes_back_by_event(head: Head, function: FunctionProcess, mode: str):
    released = function.send(RELEASE, mode).json()
    assert (released["type"], head.layers) == ("dev.midstream.stage.released", "4")
    assert released["id"] == f"{head.coordinator.boot}.change-1.stage-1.released"
    prepared = function.send(PREPARE, mode).json()
    assert (prepared["type"], head.layers) == ("dev.midstream.stage.prepared", "2,2")
    assert (prepared["data"]["change"], prepared["source"]) == ("change-2", "/midstream/pipelines/smollm")


def test_a_release_that_is_delivered_twice_is_one_change(head: Head, function: FunctionProcess):
    for _ in range(2):
        assert function.send(RELEASE).json()["type"] == "dev.midstream.stage.released"
    assert head.changes == 1


WRONG = [
    (make_event("stage.release", {}), 422),
    (make_event("stage.swap", {"stage": 1}), 422),
    (make_event("reconfiguration.requested", {"layers": "1,3"}), 422),
    ({**RELEASE, "source": "a b"}, 400),
]


def test_wrong_events_get_an_error_body_and_change_nothing(head: Head, function: FunctionProcess):
    for event, status in WRONG:
        response = function.send(event)
        assert (response.status_code, response.json()["error"]["code"]) == (status, status), event
    assert (head.changes, ASKED_TO_RELEASE in head.asked) == (0, False)


def test_an_event_for_another_stage_is_let_pass(head: Head, function: FunctionProcess):
    response = function.send(make_event("stage.release", {"stage": 0}))
    assert (response.status_code, response.content) == (204, b"")
    assert (head.changes, ASKED_TO_RELEASE in head.asked) == (0, False)


def test_sigterm_moves_the_layers_away(head: Head, function: FunctionProcess):
    function.terminate()
    assert function.wait() == 0, function.log
    assert (head.layers, head.changes) == ("4", 1)
    assert "stage 1 of smollm: released in" in function.log


def test_sigterm_during_another_change_waits_for_it_and_then_moves_the_layers_away(
    head: Head, function: FunctionProcess
):
    gate = head.effects.block("prepare")
    with ControlClient(f"http://127.0.0.1:{head.port}") as asking:
        asking.reconfigure("1,3")
    gate.wait_until_entered()
    function.terminate()
    until(lambda: ASKED_TO_RELEASE in head.asked, "the head was asked to release the stage")
    gate.open()
    assert function.wait() == 0, function.log
    assert (head.layers, head.changes) == ("4", 2)


def test_sigterm_during_its_own_release_is_one_change(head: Head, function: FunctionProcess):
    gate = head.effects.block("prepare")
    with ThreadPoolExecutor(1) as senders:
        sent = senders.submit(function.send, RELEASE)
        gate.wait_until_entered()
        function.terminate()
        told = sent.result()
        gate.open()
    assert (told.status_code, told.json()["error"]["type"]) == (503, "ending")
    assert function.wait() == 0, function.log
    assert (head.layers, head.changes) == ("4", 1)


def test_sigterm_has_an_end_when_the_other_change_has_none(head: Head, start: Callable[..., FunctionProcess]):
    function = start("stage", MIDSTREAM_STAGE="1", MIDSTREAM_DRAIN_SECONDS="2").wait_ready()
    gate = head.effects.block("prepare")
    with ControlClient(f"http://127.0.0.1:{head.port}") as asking:
        asking.reconfigure("1,3")
    gate.wait_until_entered()
    function.terminate()
    assert function.wait() == 0
    assert "leaving without being released" in function.log


def test_the_last_stage_goes_and_leaves_its_layers_where_they_are(head: Head, start: Callable[..., FunctionProcess]):
    first, second = (start("stage", MIDSTREAM_STAGE=stage) for stage in ("0", "1"))
    for function in (first, second):
        function.wait_ready()
    for function in (first, second):
        function.terminate()
        assert function.wait() == 0, function.log
    assert "stage 0 of smollm: released in" in first.log
    assert "leaving without being released: stage 1 is the last one" in second.log
    assert head.layers == "4"


def test_a_head_that_goes_and_comes_back(port: int, start: Callable[..., FunctionProcess]):
    function = start("stage", MIDSTREAM_STAGE="1")
    with Head(port).running():
        function.wait_ready()
    away = function.send(RELEASE)
    assert (away.status_code, "retry-after" in away.headers, function.probe("liveness")) == (503, True, 200)
    with Head(port).running() as head:
        assert function.send(RELEASE).status_code == 200
        assert head.layers == "4"
    function.terminate()
    assert function.wait() == 0


def test_without_a_head_it_says_so_and_goes(start: Callable[..., FunctionProcess]):
    function = start("stage", MIDSTREAM_STAGE="1").wait_alive()
    function.terminate()
    assert function.wait() == 0
    assert "leaving without being released: cannot reach" in function.log


def test_a_stage_that_is_no_number_is_said_and_not_started(start: Callable[..., FunctionProcess]):
    function = start("stage", MIDSTREAM_STAGE="first")
    assert function.wait() == 1
    assert "MIDSTREAM_STAGE is 'first'" in function.log
    assert "Traceback" not in function.log
