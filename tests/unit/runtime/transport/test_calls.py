import threading
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.transport.calls import CallError, Calls
from runtime.transport.channel import ChannelError
from runtime.transport.frames import Call, Frame, Reply


class Wire:
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Call, object]] = []

    def __call__(self, frame: Frame, buffers: Sequence[bytes]) -> None:
        assert isinstance(frame, Call)
        self.sent.append((frame, msgspec.msgpack.decode(buffers[0])))


class Refused(RuntimeError):
    """What a test wants its futures to fail with."""


def answer(calls: Calls, number: int, value: object, by: str | None = None) -> None:
    calls.answered(Reply("edge-1", number), [msgspec.msgpack.encode(value)], by)


def waiting(calls: Calls) -> int:
    return len(calls._waiting)


def test_a_call_is_sent_with_its_arguments_and_answered_by_its_number():
    calls, wire = Calls(), Wire()
    first, one = calls.send("edge-1", wire, "start", {"stage": "stage-1"})
    second, two = calls.send("edge-1", wire, "kill", {})
    assert wire.sent == [(Call(first, "start"), {"stage": "stage-1"}), (Call(second, "kill"), {})]
    answer(calls, second, None)
    assert not one.done()
    answer(calls, first, {"pid": 7})
    assert (one.result(0), two.result(0), waiting(calls)) == ({"pid": 7}, None, 0)


@given(st.permutations(range(1, 9)))
def test_answers_may_come_in_any_order(order: list[int]):
    calls = Calls()
    futures = dict(calls.send("edge-1", Wire(), "add", {}) for _ in order)
    for number in order:
        answer(calls, number, number * 2)
    assert {number: future.result(0) for number, future in futures.items()} == {n: n * 2 for n in order}
    assert waiting(calls) == 0


def test_a_refusal_is_told_with_the_name_of_who_refused():
    calls = Calls(Refused)
    number, future = calls.send("edge-1", Wire(), "start", {})
    calls.answered(Reply("edge-1", number, "NodeError: no room", 0), [])
    with pytest.raises(Refused, match=r"^edge-1: NodeError: no room$"):
        future.result(0)


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x91" * 100_000, b"\xd9\x02\xff\xff"])
def test_i8_an_unreadable_answer_fails_its_call_and_no_other(raw: bytes):
    calls = Calls()
    number, future = calls.send("edge-1", Wire(), "start", {})
    _, other = calls.send("edge-1", Wire(), "start", {})
    calls.answered(Reply("edge-1", number), [raw])
    with pytest.raises(CallError, match="edge-1: unreadable answer"):
        future.result(0)
    assert not other.done()


def test_an_answer_that_nobody_waits_for_is_dropped():
    calls = Calls()
    answer(calls, 99, "late")
    number, future = calls.send("edge-1", Wire(), "start", {})
    calls.forget(number)
    answer(calls, number, "too late")
    assert (future.done(), waiting(calls)) == (False, 0)


def test_a_second_answer_changes_nothing():
    calls = Calls()
    number, future = calls.send("edge-1", Wire(), "start", {})
    answer(calls, number, "first")
    answer(calls, number, "second")
    calls.fail("edge-1", "gone")
    assert future.result(0) == "first"


def test_nobody_answers_in_the_place_of_another():
    calls = Calls()
    number, future = calls.send("edge-1", Wire(), "kv_compare", {})
    answer(calls, number, {}, by="edge-2")
    calls.answered(Reply("edge-1", number, "no", 0), [], by="edge-2")
    assert not future.done()
    answer(calls, number, {3: 1}, by="edge-1")
    assert future.result(0) == {3: 1}


def test_when_a_host_is_gone_its_calls_fail_and_those_to_others_go_on():
    calls = Calls()
    gone = [calls.send("edge-1", Wire(), "start", {})[1] for _ in range(3)]
    _, other = calls.send("edge-2", Wire(), "start", {})
    calls.fail("edge-1", "node edge-1 is silent")
    calls.fail("edge-1", "and lost once more")
    for future in gone:
        with pytest.raises(CallError, match=r"^node edge-1 is silent$"):
            future.result(0)
    assert (other.done(), waiting(calls)) == (False, 1)


def test_one_call_can_be_cancelled():
    calls = Calls()
    number, future = calls.send("edge-1", Wire(), "kv_applied", {})
    calls.cancel(number, "the copy was stopped")
    calls.cancel(number, "again")
    with pytest.raises(CallError, match=r"^the copy was stopped$"):
        future.result(0)


def test_a_call_that_cannot_be_sent_fails_at_once():
    def refuse(*_: object) -> None:
        raise ChannelError("the link is down")

    calls = Calls()
    _, future = calls.send("edge-1", refuse, "start", {})
    with pytest.raises(CallError, match=r"^edge-1: the link is down$"):
        future.result(0)
    assert waiting(calls) == 0


def test_a_call_that_is_a_bug_is_raised_and_leaves_nothing_behind():
    calls = Calls()
    with pytest.raises(TypeError):
        calls.send("edge-1", Wire(), "start", {"stage": object()})
    assert waiting(calls) == 0


def test_calls_of_many_threads_are_not_mixed_up():
    calls = Calls()

    def reply(frame: Frame, buffers: Sequence[bytes]) -> None:
        assert isinstance(frame, Call)
        calls.answered(Reply("edge-1", frame.call), [bytes(buffers[0])])

    results: dict[int, list[object]] = {}

    def run(thread: int) -> None:
        results[thread] = [
            calls.send("edge-1", reply, "echo", {"thread": thread, "n": n})[1].result(10) for n in range(100)
        ]

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {t: [{"thread": t, "n": n} for n in range(100)] for t in range(4)}
