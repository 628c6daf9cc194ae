"""Control calls over a stand-in for the pipeline: refusals are values, because exceptions do not survive the way."""

import threading
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from runtime.engine.control import ControlCalls
from runtime.engine.dispatcher import TracedBatch
from runtime.layout import Layout, LayoutError
from runtime.migration.errors import (
    ChangeBusy,
    ChangeForbidden,
    ChangeRefused,
    ChangeSuperseded,
    ChangeUnknown,
    ChangeUnneeded,
    GuardAsked,
    GuardSilent,
)
from runtime.migration.journal import Journal
from runtime.migration.protocol import Fallback, Method
from runtime.transport.frames import StageSpan

ASKED = [{"layers": "1,3", "method": "pre_copy", "fallback": "abort", "key": "a#1"}]


class FakeCoordinator:
    """Answers every call with the same report, or error."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def _answer(self, *arguments: Any) -> Any:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            id="change-1",
            report=lambda: {"id": "change-1", "asked": arguments},
            machine=SimpleNamespace(target=Layout.parse("1,3", 4)),
            ended=threading.Event(),
            ended_at=None,
        )

    def request(self, layers: str, *how: Any, move: Any = None, precision: str | None = None) -> Any:
        return self._answer(layers, *how)

    find = cancel = _answer


@pytest.fixture
def pipeline() -> SimpleNamespace:
    return SimpleNamespace(
        coordinator=FakeCoordinator(),
        layout=lambda: Layout.parse("2,2", 4),
        nodes=SimpleNamespace(lost_names=frozenset),
        journal=Journal(),
        status=lambda: {"epoch": 3},
        sleep=SimpleNamespace(awake=True),
        dispatcher=SimpleNamespace(trace=[TracedBatch(7, 2, 5, (StageSpan("stage-1", 1000, 3000),))]),
    )


@pytest.fixture
def calls(pipeline: SimpleNamespace) -> ControlCalls:
    return ControlCalls(pipeline, ["m", "alias"], "0.32.0")


def test_only_names_of_this_project_are_control_calls(calls: ControlCalls):
    assert calls.knows("midstream.status")
    assert not calls.knows("status")
    assert not calls.knows("get_kv_cache_spec")


def test_the_status_says_what_serves_and_which_model_and_engine(calls: ControlCalls):
    assert calls.call("midstream.status", []) == [
        {"model": "m", "vllm_version": "0.32.0", "epoch": 3, "wanted": "2,2", "generation": 0}
    ]


@pytest.mark.parametrize("method", ["report", "cancel"])
def test_changes_are_answered_with_their_report(calls: ControlCalls, method: str):
    assert calls.call(f"midstream.{method}", ["x"]) == [{"id": "change-1", "asked": ("x",)}]


def test_a_change_is_asked_for_once_a_key(calls: ControlCalls):
    asked = ("1,3", Method.PRE_COPY, Fallback.ABORT, "a#1", None)
    assert calls.call("midstream.reconfigure", ASKED) == [{"id": "change-1", "asked": asked, "repeated": False}]
    assert calls.call("midstream.reconfigure", ASKED) == [{"id": "change-1", "asked": asked, "repeated": True}]


def test_a_stage_that_leaves_is_a_change_and_one_without_layers_is_none(calls: ControlCalls):
    (answer,) = calls.call("midstream.release", [7, None, None])
    assert answer == {"change": None, "node": "local", "away": False}
    (answer,) = calls.call("midstream.release", [1, None, None])
    assert answer["change"]["asked"][0] == "4"
    (answer,) = calls.call("midstream.attach", [0, None, None, None])
    assert answer["refused"] == "busy"


def test_a_pipeline_that_sleeps_is_woken_and_nobody_waits_for_it(calls: ControlCalls, pipeline: SimpleNamespace):
    woken = []
    pipeline.sleep = SimpleNamespace(awake=False, wake=lambda: woken.append(1))
    (answer,) = calls.call("midstream.reconfigure", ASKED)
    assert (answer["refused"], "is being woken" in answer["message"], woken) == ("asleep", True, [1])
    pipeline.sleep.awake = True
    assert calls.call("midstream.reconfigure", ASKED)[0]["id"] == "change-1"


def test_a_stage_for_which_nothing_has_to_be_done_does_not_wake_the_pipeline(
    calls: ControlCalls, pipeline: SimpleNamespace
):
    pipeline.sleep = SimpleNamespace(awake=False)  # without `wake`
    assert calls.call("midstream.attach", [1, None, "pod", None])[0]["change"] is None
    assert calls.call("midstream.attach", [7, None, "pod", None])[0]["refused"] == "invalid"
    assert calls.call("midstream.release", [7, "pod", None])[0]["change"] is None


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (ChangeBusy("change-4"), {"refused": "busy", "change": "change-4"}),
        (ChangeRefused("no room"), {"refused": "invalid", "message": "no room"}),
        (ChangeUnneeded("has it"), {"refused": "unchanged", "message": "has it"}),
        (ChangeSuperseded("older"), {"refused": "superseded", "message": "older"}),
        (ChangeForbidden("in the US"), {"refused": "forbidden", "message": "in the US"}),
        (GuardAsked("in a moment"), {"refused": "guard_asked"}),
        (GuardSilent("it is away"), {"refused": "guard_silent"}),
        (LayoutError("add up to 29"), {"refused": "invalid", "message": "add up to 29"}),
        (ChangeUnknown("no change 'x'"), {"refused": "unknown", "message": "no change 'x'"}),
    ],
)
def test_a_refusal_is_a_value_with_its_kind(calls: ControlCalls, pipeline: SimpleNamespace, error, refusal):
    pipeline.coordinator.error = error
    (answer,) = calls.call("midstream.reconfigure", ASKED)
    assert answer == {"message": str(error), **refusal}


def test_a_story_and_a_trace_are_plain_data(calls: ControlCalls, pipeline: SimpleNamespace):
    pipeline.journal.tell("change-1", "planned", target="1,3")
    pipeline.journal.tell("change-2", "planned", target="3,1")
    (story,) = calls.call("midstream.story", ["change-1"])
    assert [entry["target"] for entry in story] == ["1,3"]
    (everything,) = calls.call("midstream.story", [None])
    assert len(everything) == 2
    (trace,) = calls.call("midstream.trace", [])
    assert trace == [
        {"name": "batch 7", "ph": "X", "pid": "epoch 2", "tid": "stage-1", "ts": 1.0, "dur": 2.0, "args": {"tokens": 5}}
    ]
    assert msgspec.msgpack.encode([story, everything, trace])
