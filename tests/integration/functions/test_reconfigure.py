"""The reconfigure function under func-python, in a process, with a head over HTTP."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.integration.functions.head import Head, until
from tests.integration.functions.process import FunctionProcess, make_event

WANTED = make_event("reconfiguration.requested", {"layers": "1,3"})


@pytest.fixture
def function(head: Head, start: Callable[..., FunctionProcess]) -> FunctionProcess:
    return start("reconfigure").wait_alive()


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_a_request_changes_the_pipeline_and_is_answered_with_the_end(head: Head, function: FunctionProcess, mode: str):
    response = function.send({**WANTED, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}, mode)
    reply = response.json()
    assert (response.status_code, head.layers) == (200, "1,3")
    assert reply["type"] == "dev.midstream.reconfiguration.committed"
    assert (reply["source"], reply["subject"]) == ("/midstream/pipelines/smollm", "smollm")
    assert reply["id"] == f"{head.coordinator.boot}.change-1.committed"
    assert reply["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-01"
    assert (reply["data"]["request"], reply["data"]["from"], reply["data"]["to"]) == ("event-1", "2,2", "1,3")


def test_probes(function: FunctionProcess):
    assert (function.probe("liveness"), function.probe("readiness")) == (200, 200)


def test_the_same_event_again_changes_nothing_even_to_another_instance(
    head: Head, function: FunctionProcess, start: Callable[..., FunctionProcess]
):
    first = function.send(WANTED).json()
    back = function.send(make_event("reconfiguration.requested", {"layers": "2,2"}, "event-2"))
    assert (back.status_code, head.layers) == (200, "2,2")
    replayed = start("reconfigure").wait_alive().send(WANTED, "binary").json()
    assert (replayed["id"], replayed["data"]) == (first["id"], first["data"])
    assert (head.changes, head.layers) == (2, "2,2")


def test_two_deliveries_at_once_are_one_change(head: Head, function: FunctionProcess):
    gate = head.effects.block("prepare")
    with ThreadPoolExecutor(2) as senders:
        sent = [senders.submit(function.send, WANTED) for _ in range(2)]
        until(lambda: head.asked.count("POST /reconfigurations") == 2, "both were asked for")
        gate.open()
        first, second = (each.result() for each in sent)
    assert first.json()["data"] == second.json()["data"]
    assert head.changes == 1


def test_a_late_generation_is_told_that_it_is_superseded(head: Head, function: FunctionProcess):
    newer = make_event("reconfiguration.requested", {"layers": "1,3", "generation": 5}, "newer")
    older = make_event("reconfiguration.requested", {"layers": "3,1", "generation": 4}, "older")
    assert function.send(newer).json()["type"].endswith("committed")
    reply = function.send(older).json()
    assert (reply["type"].rpartition(".")[2], reply["data"]["change"]) == ("aborted", None)
    assert "older than generation 5" in reply["data"]["reason"]
    assert head.layers == "1,3"


def test_a_layout_that_is_there_is_committed_unchanged(head: Head, function: FunctionProcess):
    reply = function.send(make_event("reconfiguration.requested", {"layers": "2,2"})).json()
    assert (reply["type"].rpartition(".")[2], reply["data"]["unchanged"]) == ("committed", True)
    assert head.changes == 0


def test_a_change_that_fails_is_told_as_aborted(head: Head, function: FunctionProcess):
    head.effects.fail("prepare", RuntimeError("no room"))
    reply = function.send(WANTED).json()
    assert (reply["type"].rpartition(".")[2], head.layers) == ("aborted", "2,2")
    assert "no room" in reply["data"]["reason"]


def test_while_another_change_is_under_way_the_broker_is_to_try_again(head: Head, function: FunctionProcess):
    gate = head.effects.block("prepare")
    with ThreadPoolExecutor(1) as senders:
        sent = senders.submit(function.send, WANTED)
        gate.wait_until_entered()
        busy = function.send(make_event("reconfiguration.requested", {"layers": "3,1"}, "event-2"))
        gate.open()
        assert sent.result().status_code == 200
    assert (busy.status_code, busy.json()["error"]["type"], "retry-after" in busy.headers) == (503, "busy", True)


WRONG = [
    ({**WANTED, "type": "dev.midstream.stage.release", "data": {"pipeline": "smollm", "stage": 0}}, 422),
    ({**WANTED, "type": "dev.midstream.nothing"}, 422),
    ({**WANTED, "data": {"pipeline": "smollm", "layers": "two"}}, 422),
    ({**WANTED, "data": {"pipeline": "other", "layers": "1,3"}, "subject": "other"}, 422),
    ({name: value for name, value in WANTED.items() if name != "subject"}, 400),
]


def test_wrong_events_get_an_error_body_and_change_nothing(head: Head, function: FunctionProcess):
    for event, status in WRONG:
        for mode in ("binary", "structured"):
            response = function.send(event, mode)
            assert (response.status_code, response.json()["error"]["code"]) == (status, status), (event, mode)
    assert head.asked == []


def test_what_is_no_event_is_refused_by_func_python(head: Head, function: FunctionProcess):
    for body in (b"", b"{", b'{"specversion": "1.0"}', b"hello"):
        response = httpx.post(function.url, content=body, headers={"content-type": "application/cloudevents+json"})
        assert response.status_code == 400, body
    assert (head.asked, function.probe("liveness")) == ([], 200)


def test_a_head_that_goes_and_comes_back(port: int, start: Callable[..., FunctionProcess]):
    function = start("reconfigure").wait_alive()
    away = function.send(WANTED)
    assert (away.status_code, "retry-after" in away.headers) == (503, True)
    for _ in range(2):  # the second head knows nothing of the first
        with Head(port).running() as head:
            assert function.send(WANTED).json()["type"].endswith("committed")
            assert head.layers == "1,3"
        assert function.send(WANTED).status_code == 503
        assert (function.probe("liveness"), function.probe("readiness")) == (200, 200)


def test_sigterm_during_a_change_ends_the_function_at_once_and_loses_nothing(
    head: Head, function: FunctionProcess, start: Callable[..., FunctionProcess]
):
    gate = head.effects.block("prepare")
    with ThreadPoolExecutor(1) as senders:
        sent = senders.submit(function.send, WANTED)
        gate.wait_until_entered()
        function.terminate()
        assert function.wait() == 0, function.log  # while the change goes on
        told = sent.result()
    assert (told.status_code, told.json()["error"]["type"]) == (503, "ending")
    again = start("reconfigure").wait_alive()
    gate.open()
    assert again.send(WANTED).json()["id"] == f"{head.coordinator.boot}.change-1.committed"
    assert (head.changes, head.layers) == (1, "1,3")


def test_a_function_without_a_pipeline_says_so_and_does_not_start(start: Callable[..., FunctionProcess]):
    function = start("reconfigure", MIDSTREAM_PIPELINE="")
    assert function.wait() == 1
    assert "MIDSTREAM_PIPELINE is not set" in function.log
    assert "Traceback" not in function.log
