import pickle
import threading
from collections.abc import Iterator

import msgspec
import pytest

from runtime.engine.dispatcher import Chain, Dispatcher
from runtime.engine.errors import StageError
from runtime.engine.ledger import Ledger
from runtime.engine.messages import BatchOutput, ScheduledBatch, decode_batch, encode
from runtime.transport.channel import ChannelError
from runtime.transport.frames import Batch, Rejected, Result, StageSpan
from tests.unit.runtime.engine.batches import BLOCK_TOKENS, batch, known, new, output
from tests.unit.runtime.engine.waiting import DEADLINE_S, Background, eventually


class Entrance:
    """Stands in for the outbox to the first stage of a chain; keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Batch, ScheduledBatch]] = []
        self.error: ChannelError | None = None

    def send(self, frame: Batch, buffers: list[bytes]) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((frame, decode_batch([bytes(buffer) for buffer in buffers])))

    @property
    def sequences(self) -> list[int]:
        return [frame.sequence for frame, _ in self.sent]

    def carried(self) -> list[list[str]]:
        return [[request.id for request in sent.carried] for _, sent in self.sent]


class Bench:
    """A dispatcher with a first chain (epoch 1) and entrances for as many more as a test wants."""

    def __init__(self) -> None:
        self.settled: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self.failure = threading.Event()
        self.dispatcher = Dispatcher(Ledger(BLOCK_TOKENS), self.settled.append, self._on_failed)
        self.background = Background(self.dispatcher)
        self.entrances: dict[int, Entrance] = {}
        self.dispatcher.install(self.chain(1))

    def _on_failed(self, epoch: int, reason: str) -> None:
        self.failed.append((epoch, reason))
        self.failure.set()

    def chain(self, epoch: int) -> Chain:
        self.entrances[epoch] = Entrance()
        return Chain(epoch, (f"stage-of-{epoch}",), (self.entrances[epoch],))

    def sent(self, epoch: int) -> list[int]:
        return self.entrances[epoch].sequences

    def answer(self, epoch: int, sequence: int, answer: BatchOutput | None = None) -> None:
        encoded = [bytes(buffer) for buffer in encode(answer or output())]
        self.dispatcher.on_result(Result(epoch, sequence, len(encoded)), encoded)

    def switch(self, epoch: int) -> bool:
        idle, stuck = self.dispatcher.switch(self.chain(epoch), timeout_s=0)
        assert stuck == []
        return idle


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.dispatcher.fail(StageError("the test is over"))
    bench.background.settle()


def start(bench: Bench, request_id: str, block: int) -> None:
    """Let a request with one block run on epoch 1, its prompt of two tokens answered with 41."""
    future = bench.dispatcher.dispatch(batch(new(request_id, 2, [block]), tokens=2))
    bench.answer(1, bench.sent(1)[-1], output({request_id: b"state"}, **{request_id: 41}))
    assert future.done()


# -- I1: one epoch serves a batch --------------------------------------------------------------------------------------


def test_i1_a_batch_belongs_to_the_epoch_it_is_dispatched_in(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.switch(2)
    bench.dispatcher.dispatch(batch(new("b", 2, [2])))
    assert [[frame.epoch for frame, _ in bench.entrances[epoch].sent] for epoch in (1, 2)] == [[1], [2]]
    assert bench.dispatcher.epoch == 2


@pytest.mark.parametrize(("epoch", "sequence"), [(2, 1), (0, 1), (1, 2), (1, -1), (2**63, 1)])
def test_i1_a_result_of_another_epoch_or_batch_is_dropped_and_counted(bench: Bench, epoch: int, sequence: int):
    future = bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.answer(epoch, sequence, output(a=13))
    assert not future.done()
    assert bench.dispatcher.counters.dropped_frames == 1
    bench.answer(1, 1, output(a=41))
    assert future.result(0).sampled_token_ids == [[41]]


@pytest.mark.parametrize(("epoch", "sequence"), [(2, 1), (1, 2), (-1, -1)])
def test_i1_a_rejection_of_another_epoch_or_batch_is_dropped_and_counted(bench: Bench, epoch: int, sequence: int):
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.dispatcher.on_rejected(Rejected("stage-1", epoch, sequence, "no"))
    assert bench.failed == []
    assert bench.dispatcher.counters.dropped_frames == 1


def test_a_rejection_of_a_batch_in_flight_is_told_with_its_stage_and_reason(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.dispatcher.on_rejected(Rejected("stage-1", 1, 1, "StageError: block 5 is stale"))
    assert bench.failed == [(1, "stage stage-1 rejected batch 1: StageError: block 5 is stale")]


# -- I3: order ---------------------------------------------------------------------------------------------------------


def test_i3_results_are_revealed_in_the_order_of_dispatch_whatever_order_they_arrive_in(bench: Bench):
    revealed: list[int] = []
    for number in range(1, 5):
        future = bench.dispatcher.dispatch(batch(new(f"r{number}", 2, [number])))
        future.add_done_callback(lambda done: revealed.append(done.result().sampled_token_ids[0][0]))
    for number, seen in ((3, []), (1, [1]), (4, [1]), (2, [1, 2, 3, 4])):
        bench.answer(1, number, output(r=number))
        assert revealed == seen


def test_i3_a_result_that_comes_twice_is_revealed_once(bench: Bench):
    future = bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.answer(1, 1, output(a=41))
    bench.answer(1, 1, output(a=42))
    assert future.result(0).sampled_token_ids == [[41]]
    assert bench.dispatcher.counters.dropped_frames == 1
    assert bench.dispatcher.ledger.carried("a").output_token_ids == [41]


def test_i3_a_result_of_the_new_chain_waits_for_older_ones_of_the_old_chain(bench: Bench):
    first = bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.switch(2)
    second = bench.dispatcher.dispatch(batch(new("b", 2, [2])))
    bench.answer(2, 2)
    assert not second.done()
    assert bench.settled == []
    bench.answer(1, 1)
    assert first.done()
    assert second.done()
    assert bench.settled == [2]


# -- switching ---------------------------------------------------------------------------------------------------------


def test_after_a_switch_independent_batches_do_not_wait_for_those_in_flight(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.switch(2)
    bench.dispatcher.dispatch(batch(new("b", 2, [2])))
    assert (bench.sent(1), bench.sent(2)) == ([1], [2])
    assert bench.dispatcher.counters.waits == 0


@pytest.mark.parametrize(
    "following",
    [
        batch(known("a", 4), tokens=4),  # the same request
        batch(new("b", 2, [2]), tokens=2),  # a block that the other writes
        batch(new("b", 6, [1, 3], computed=4), tokens=2),  # a prefix that the other computes
        batch(new("b", 2, [3]), tokens=2, blocks_to_zero=[2]),
        batch(new("b", 2, [3]), tokens=2, finished=["a"]),  # a stage of both chains must not hear of the end too early
    ],
    ids=["request", "block", "prefix", "zeroed", "end"],
)
def test_after_a_switch_a_batch_that_meets_one_in_flight_waits_for_it(bench: Bench, following: ScheduledBatch):
    bench.dispatcher.dispatch(batch(new("a", 8, [1, 2]), tokens=8))
    bench.switch(2)
    bench.background.start(lambda: bench.dispatcher.dispatch(following))
    assert bench.sent(2) == []
    bench.answer(1, 1, output(a=41))
    bench.background.settle()
    assert bench.sent(2) == [2]
    assert bench.dispatcher.counters.waits == 1


def test_on_one_chain_batches_follow_each_other_without_waiting(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 8, [1, 2]), tokens=4))
    bench.dispatcher.dispatch(batch(known("a", 4), tokens=4))
    assert bench.sent(1) == [1, 2]


def test_a_request_is_carried_over_with_its_first_batch_on_the_new_chain_and_only_then(bench: Bench):
    start(bench, "a", 1)
    start(bench, "b", 2)
    bench.switch(2)
    for computed, outputs in ((2, 1), (3, 2)):
        bench.dispatcher.dispatch(batch(known("a", computed, outputs=outputs)))
    bench.dispatcher.dispatch(batch(known("b", 2, outputs=1), new("c", 2, [3])))
    entrance = bench.entrances[2]
    assert entrance.carried() == [["a"], [], ["b"]]
    carried = entrance.sent[0][1].carried[0]
    assert (carried.computed_tokens, carried.output_token_ids, carried.block_ids) == (2, [41], ([1],))
    assert carried.generator_state == b"state"
    assert bench.dispatcher.counters.carried_requests == 2


def test_a_chain_is_on_probation_until_its_first_result_and_is_settled_once(bench: Bench):
    start(bench, "a", 1)
    assert bench.switch(2) is False
    for sequence, outputs in ((2, 1), (3, 2)):
        bench.dispatcher.dispatch(batch(known("a", 1 + outputs, outputs=outputs)))
        bench.answer(2, sequence, output(a=42))
    assert bench.settled == [2]


def test_without_a_request_a_chain_is_not_on_probation(bench: Bench):
    assert bench.switch(2) is True
    start_on_two = bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.answer(2, 1)
    assert start_on_two.done()
    assert bench.settled == []


def test_a_probation_is_over_when_the_last_request_ends_without_another_batch(bench: Bench):
    start(bench, "a", 1)
    bench.switch(2)
    bench.dispatcher.finish(["a"])
    assert bench.settled == [2]
    assert bench.dispatcher.epoch == 2


def test_a_probation_goes_on_until_the_batches_in_flight_have_settled(bench: Bench):
    start(bench, "a", 1)
    aborted = bench.dispatcher.dispatch(batch(known("a", 3, outputs=1)))
    bench.switch(2)
    bench.dispatcher.finish(["a"])
    assert bench.settled == []  # falling back would still replay it
    bench.answer(1, 2, output(a=42))
    assert aborted.done()
    assert bench.settled == [2]


def test_a_probation_goes_on_while_a_request_is_left(bench: Bench):
    start(bench, "a", 1)
    start(bench, "b", 2)
    bench.switch(2)
    bench.dispatcher.finish(["a"])
    assert bench.settled == []


def test_a_first_chain_is_not_on_probation(bench: Bench):
    start(bench, "a", 1)
    assert bench.settled == []


# -- I4: falling back --------------------------------------------------------------------------------------------------


def test_i4_falling_back_replays_exactly_what_was_not_answered_in_order_and_with_its_state(bench: Bench):
    start(bench, "a", 1)
    start(bench, "b", 2)
    bench.switch(2)
    answered = bench.dispatcher.dispatch(batch(known("a", 2, outputs=1)))
    bench.answer(2, 3, output(a=42))
    waiting = [
        bench.dispatcher.dispatch(batch(known("a", 3, outputs=2), known("b", 2, outputs=1))),
        bench.dispatcher.dispatch(batch(new("c", 8, [3, 4]), tokens=4)),
        bench.dispatcher.dispatch(batch(known("c", 4), tokens=4)),
    ]
    assert bench.dispatcher.fall_back(bench.chain(3)) == [4, 5, 6]
    entrance = bench.entrances[3]
    assert answered.done()
    assert entrance.sequences == [4, 5, 6]
    assert all(sent.replayed for _, sent in entrance.sent)
    assert entrance.carried() == [["a", "b"], [], []]
    states = {carried.id: carried for carried in entrance.sent[0][1].carried}
    assert [(states[r].computed_tokens, states[r].output_token_ids) for r in "ab"] == [(3, [41, 42]), (2, [41])]
    assert bench.dispatcher.counters.replayed_batches == 3
    for sequence, future in zip((4, 5, 6), waiting, strict=True):
        bench.answer(3, sequence, output(r=sequence))
        assert future.result(0).sampled_token_ids == [[sequence]]


def test_i4_late_results_of_the_abandoned_chain_change_nothing(bench: Bench):
    start(bench, "a", 1)
    bench.switch(2)
    future = bench.dispatcher.dispatch(batch(known("a", 2, outputs=1)))
    bench.dispatcher.fall_back(bench.chain(3))
    bench.answer(2, 2, output(a=13))
    bench.dispatcher.on_rejected(Rejected("stage-of-2", 2, 2, "too late"))
    assert not future.done()
    assert (bench.settled, bench.failed) == ([], [])
    assert bench.dispatcher.counters.dropped_frames == 2
    bench.answer(3, 2, output(a=42))
    assert future.result(0).sampled_token_ids == [[42]]
    assert bench.settled == []


def test_i4_a_result_that_came_but_was_not_revealed_is_made_again(bench: Bench):
    start(bench, "a", 1)
    bench.switch(2)
    first = bench.dispatcher.dispatch(batch(known("a", 2, outputs=1)))
    second = bench.dispatcher.dispatch(batch(new("b", 2, [2])))
    bench.answer(2, 3, output(b=13))
    bench.dispatcher.fall_back(bench.chain(3))
    bench.answer(3, 2)
    assert first.done()
    assert not second.done()
    bench.answer(3, 3, output(b=43))
    assert second.result(0).sampled_token_ids == [[43]]


def test_i4_what_the_old_chain_has_in_flight_settles_before_the_replay(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 8, [1, 2]), tokens=4))
    bench.switch(2)
    bench.dispatcher.dispatch(batch(new("b", 2, [3])))
    bench.background.start(lambda: bench.dispatcher.fall_back(bench.chain(3)))
    assert bench.sent(3) == []
    bench.answer(1, 1)
    bench.background.settle()
    assert bench.sent(3) == [2]


def test_i4_no_new_batch_overtakes_the_replay(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.switch(2)
    bench.dispatcher.dispatch(batch(new("b", 8, [2, 3]), tokens=4))
    bench.background.start(lambda: bench.dispatcher.fall_back(bench.chain(3)))
    bench.background.start(lambda: bench.dispatcher.dispatch(batch(known("b", 4), tokens=4)))
    assert bench.sent(3) == []
    bench.answer(1, 1)
    bench.background.settle()
    assert bench.sent(3) == [2, 3]


def test_i4_a_request_that_ended_while_it_was_in_flight_does_not_stop_the_replay(bench: Bench):
    start(bench, "a", 1)
    start(bench, "b", 2)
    bench.switch(2)
    bench.dispatcher.dispatch(batch(known("a", 2, outputs=1), known("b", 2, outputs=1)))
    bench.dispatcher.finish(["a"])
    bench.dispatcher.fall_back(bench.chain(3))
    assert bench.sent(3) == [3]


# -- I7: move or refuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [True, False], ids=["settled", "in flight"])
def test_i7_a_switch_is_refused_while_a_prompt_computes_its_logprobs(bench: Bench, settled: bool):
    bench.dispatcher.dispatch(batch(new("a", 8, [1, 2], prompt_logprobs=1), tokens=4))
    if settled:
        bench.answer(1, 1, output(a=None))
    assert bench.dispatcher.switch(bench.chain(2), timeout_s=0) == (False, ["a"])
    assert bench.dispatcher.epoch == 1
    bench.dispatcher.dispatch(batch(known("a", 4), tokens=4))
    assert (bench.sent(1), bench.sent(2)) == ([1, 2], [])


def test_i7_a_switch_waits_for_prompt_logprobs_to_be_finished(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 8, [1, 2], prompt_logprobs=1), tokens=4))
    outcome: list[tuple[bool, list[str]]] = []
    chain = bench.chain(2)
    bench.background.start(lambda: outcome.append(bench.dispatcher.switch(chain, DEADLINE_S)))
    assert bench.dispatcher.epoch == 1
    bench.dispatcher.dispatch(batch(known("a", 4), tokens=4))
    bench.answer(1, 1, output(a=None))
    bench.background.settle()
    assert outcome == [(False, [])]
    assert bench.dispatcher.epoch == 2


# -- I8: what comes from the wire --------------------------------------------------------------------------------------

_opened: list[str] = []


class Trap:
    """Says so when somebody unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return _opened.append, ("somebody unpickled it",)


@pytest.mark.parametrize("extension", [1, 2, 3, 99])
def test_i8_a_result_with_a_pickle_in_it_fails_the_batch_and_is_never_opened(bench: Bench, extension: int):
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    fields = {"request_ids": msgspec.msgpack.Ext(extension, pickle.dumps(Trap()))}
    bench.dispatcher.on_result(Result(1, 1, 1), [msgspec.msgpack.encode(fields)])
    assert [epoch for epoch, _ in bench.failed] == [1]
    assert "unreadable result of batch 1" in bench.failed[0][1]
    assert _opened == []


@pytest.mark.parametrize(
    "buffers",
    [[], [b""], [b"\xc1"], [b"\x80"], [b"\x91" * 100_000], [b"\xdd\xff\xff\xff\xff"]],
    ids=["none", "empty", "reserved byte", "empty map", "nested", "huge array"],
)
def test_i8_an_unreadable_result_fails_the_batch_and_nothing_else(bench: Bench, buffers: list[bytes]):
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    bench.dispatcher.on_result(Result(1, 1, len(buffers)), buffers)
    assert bench.failed[0][0] == 1
    assert bench.failed[0][1].startswith("unreadable result of batch 1")


def test_i8_a_result_that_points_at_a_buffer_that_is_not_there_fails_the_batch(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    logprobs = [["int32", [1], 7], ["float32", [1], 8], ["int32", [1], 9], None]
    whole = msgspec.to_builtins(output(a=1)) | {"logprobs": logprobs}
    bench.dispatcher.on_result(Result(1, 1, 1), [msgspec.msgpack.encode(whole)])
    assert [epoch for epoch, _ in bench.failed] == [1]


# -- holding, draining, ending -----------------------------------------------------------------------------------------


def test_a_held_batch_goes_out_when_it_is_resumed(bench: Bench):
    bench.dispatcher.hold(lease_s=DEADLINE_S)
    bench.background.start(lambda: bench.dispatcher.dispatch(batch(new("a", 2, [1]))))
    assert bench.sent(1) == []
    bench.dispatcher.resume()
    bench.background.settle()
    assert bench.sent(1) == [1]


def test_i4_a_hold_that_nobody_ends_ends_by_itself(bench: Bench):
    bench.dispatcher.hold(lease_s=0.01)
    dispatching = threading.Thread(target=lambda: bench.dispatcher.dispatch(batch(new("a", 2, [1]))))
    dispatching.start()
    dispatching.join(DEADLINE_S)
    assert bench.sent(1) == [1]


def test_a_batch_held_over_a_switch_takes_the_new_chain(bench: Bench):
    start(bench, "a", 1)
    bench.dispatcher.hold(lease_s=DEADLINE_S)
    bench.background.start(lambda: bench.dispatcher.dispatch(batch(known("a", 2, outputs=1))))
    bench.switch(2)
    bench.dispatcher.resume()
    bench.background.settle()
    assert (bench.sent(1), bench.entrances[2].carried()) == ([1], [["a"]])


def test_a_chain_is_drained_when_its_last_result_came(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    assert not bench.dispatcher.wait_drained(1, timeout_s=0)
    drained: list[bool] = []
    bench.background.start(lambda: drained.append(bench.dispatcher.wait_drained(1, DEADLINE_S)))
    assert drained == []
    bench.answer(1, 1)
    bench.background.settle()
    assert drained == [True]


def test_when_the_pipeline_fails_every_batch_ends_in_the_error(bench: Bench):
    error = StageError("stage-2 is gone")
    in_flight = bench.dispatcher.dispatch(batch(new("a", 8, [1, 2]), tokens=4))
    bench.switch(2)
    waiting: list = []
    bench.background.start(lambda: waiting.append(bench.dispatcher.dispatch(batch(known("a", 4), tokens=4))))
    bench.dispatcher.fail(error)
    bench.background.settle()
    later = bench.dispatcher.dispatch(batch(new("b", 2, [3])))
    assert [future.exception(0) for future in (in_flight, *waiting, later)] == [error] * 3
    bench.answer(1, 1)
    assert bench.dispatcher.counters.dropped_frames == 1
    assert bench.sent(2) == []


def test_a_stage_that_takes_no_batch_is_told_without_blocking_the_engine(bench: Bench):
    bench.entrances[1].error = ChannelError("ipc://stage-1 takes no messages")
    bench.dispatcher.dispatch(batch(new("a", 2, [1])))
    assert bench.failure.wait(DEADLINE_S)
    assert bench.failed == [(1, "ipc://stage-1 takes no messages")]


def test_without_a_chain_nothing_can_be_sent():
    dispatcher = Dispatcher(Ledger(BLOCK_TOKENS), lambda _: None, lambda *_: None)
    assert dispatcher.epoch == 0
    with pytest.raises(StageError, match="no chain"):
        dispatcher.dispatch(batch(new("a", 2, [1])))


def test_requests_that_end_while_nothing_is_scheduled_are_told_with_the_next_batch(bench: Bench):
    start(bench, "a", 1)
    bench.dispatcher.finish(["a"])
    assert bench.dispatcher.snapshot() == {}
    for request_id, block in (("b", 2), ("c", 3)):
        bench.dispatcher.dispatch(batch(new(request_id, 2, [block]), finished=["z"] if request_id == "c" else []))
    assert [sent.finished for _, sent in bench.entrances[1].sent[1:]] == [["a"], ["z"]]


def test_when_the_last_request_ends_a_waiting_switch_hears_of_it(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 8, [1, 2], prompt_logprobs=1), tokens=4))
    outcome: list[tuple[bool, list[str]]] = []
    chain = bench.chain(2)
    bench.background.start(lambda: outcome.append(bench.dispatcher.switch(chain, DEADLINE_S)))
    bench.dispatcher.finish(["a"])
    assert eventually(lambda: outcome == [(True, [])])


def test_the_trace_says_which_stage_computed_which_batch_when(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 5, [1, 2]), tokens=5))
    encoded = [bytes(buffer) for buffer in encode(output())]
    span = StageSpan("stage-1", 10, 20)
    bench.dispatcher.on_result(Result(1, 1, len(encoded), (span,)), encoded)
    (traced,) = bench.dispatcher.trace
    assert (traced.sequence, traced.epoch, traced.tokens, traced.spans) == (1, 1, 5, (span,))


# -- losing every chain, and having none ------------------------------------------------------------------------------


def test_i4_falling_back_gives_up_when_the_old_chain_can_no_longer_settle_and_a_restart_replays_all(bench: Bench):
    start(bench, "a", 1)
    start(bench, "b", 2)
    on_old = bench.dispatcher.dispatch(batch(known("a", 2, outputs=1)))
    bench.switch(2)
    on_new = bench.dispatcher.dispatch(batch(known("b", 2, outputs=1)))
    with pytest.raises(StageError, match="lost that have batches in flight"):
        bench.dispatcher.fall_back(bench.chain(3), lambda: False)
    assert bench.dispatcher.restart(bench.chain(4), most_tokens=64) == [3, 4]
    assert bench.sent(4) == [3, 4]
    bench.answer(4, 3, output(a=42))
    bench.answer(4, 4, output(b=42))
    assert on_old.result(0).sampled_token_ids == on_new.result(0).sampled_token_ids == [[42]]


def test_a_restart_computes_again_what_only_a_last_stage_knew_of_a_prompt(bench: Bench):
    first = batch(new("a", 10, [1, 2, 3]), tokens=6)
    first.new[0].sampling_params.prompt_logprobs = 2
    bench.dispatcher.dispatch(first)
    bench.answer(1, 1)
    rest = bench.dispatcher.dispatch(batch(known("a", 6), tokens=4))
    assert bench.dispatcher.restart(bench.chain(2), most_tokens=4) == [2]
    sent = [message for _, message in bench.entrances[2].sent]
    assert [message.scheduled_tokens["a"] for message in sent] == [4, 2, 4]
    assert [entry.computed_tokens for message in sent for entry in message.entries()] == [0, 4, 6]
    assert bench.entrances[2].carried() == [["a"], [], []]
    for sequence in bench.sent(2)[:2]:
        bench.answer(2, sequence)
    assert not rest.done()
    bench.answer(2, 2, output(a=41))
    assert rest.result(0).sampled_token_ids == [[41]]


def test_a_suspended_dispatcher_keeps_a_batch_until_a_chain_is_installed_and_says_that_it_waits(bench: Bench):
    awaited: list[str] = []
    assert bench.dispatcher.suspend(lambda: awaited.append("awaited"))
    bench.background.start(lambda: bench.dispatcher.dispatch(batch(new("a", 2, [1]))))
    assert (bench.sent(1), awaited) == ([], ["awaited"])
    bench.dispatcher.install(bench.chain(2))
    assert eventually(lambda: bench.sent(2) == [1])


def test_a_dispatcher_with_a_request_or_a_batch_is_neither_idle_nor_suspended(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 2, [1]), tokens=2))
    assert bench.dispatcher.idle_s() == 0.0
    assert not bench.dispatcher.suspend(lambda: None)
    bench.answer(1, 1, output(a=41))
    assert not bench.dispatcher.suspend(lambda: None)
    bench.dispatcher.finish(["a"])
    assert bench.dispatcher.idle_s() < DEADLINE_S
    assert bench.dispatcher.suspend(lambda: None)


def test_the_usual_size_of_a_batch_is_the_most_common_one_that_a_rehearsal_has_room_for(bench: Bench):
    assert bench.dispatcher.usual_tokens(16) == 1
    for sequence, tokens in enumerate((64, 4, 64, 4, 64, 3, 64), start=1):
        bench.dispatcher.dispatch(batch(new(f"r{sequence}", tokens, [sequence]), tokens=tokens))
        bench.answer(1, sequence)
    assert bench.dispatcher.usual_tokens(64) == 64
    assert bench.dispatcher.usual_tokens(16) == 4
    assert bench.dispatcher.usual_tokens(2) == 1


# -- losing KV ---------------------------------------------------------------------------------------------------------


def computed(bench: Bench, epoch: int) -> list[tuple[int, str, int, int]]:
    """(sequence, request, first token, tokens) of everything that was sent to a chain."""
    return [
        (frame.sequence, entry.id, entry.computed_tokens, sent.scheduled_tokens[entry.id])
        for frame, sent in bench.entrances[epoch].sent
        for entry in sent.entries()
    ]


def lose_kv(bench: Bench, epoch: int, most_tokens: int = 64) -> list[int]:
    return bench.dispatcher.restart(bench.chain(epoch), most_tokens, kv_lost=True)


def test_i3_when_kv_is_lost_all_that_was_settled_is_computed_before_what_was_in_flight(bench: Bench):
    start(bench, "a", 1)
    start(bench, "b", 2)
    waiting = bench.dispatcher.dispatch(batch(known("a", 2, outputs=1), known("b", 2, outputs=1)))
    assert lose_kv(bench, 2) == [3]
    assert computed(bench, 2) == [(4, "a", 0, 2), (5, "b", 0, 2), (3, "a", 2, 1), (3, "b", 2, 1)]
    assert bench.entrances[2].carried() == [["a"], ["b"], []]
    assert all(sent.replayed for _, sent in bench.entrances[2].sent)
    for sequence in (4, 5):
        bench.answer(2, sequence, output())
    assert not waiting.done()
    bench.answer(2, 3, output(a=42, b=43))
    assert waiting.result(0).sampled_token_ids == [[42], [43]]
    assert bench.dispatcher.ledger.carried("a").output_token_ids == [41, 42]


def test_idle_requests_are_computed_again_too(bench: Bench):
    start(bench, "a", 1)
    assert lose_kv(bench, 2) == []
    assert computed(bench, 2) == [(2, "a", 0, 2)]
    bench.dispatcher.dispatch(batch(known("a", 2, outputs=1)))
    assert bench.entrances[2].carried() == [["a"], []]


def test_kv_is_computed_again_in_batches_of_so_many_tokens(bench: Bench):
    bench.dispatcher.dispatch(batch(new("a", 12, [1, 2, 3]), tokens=10))
    bench.answer(1, 1, output(a=None))
    lose_kv(bench, 2, most_tokens=4)
    assert computed(bench, 2) == [(2, "a", 0, 4), (3, "a", 4, 4), (4, "a", 8, 2)]


def test_what_a_new_request_in_flight_was_to_find_in_the_cache_is_computed_just_before_it(bench: Bench):
    start(bench, "a", 1)
    bench.dispatcher.dispatch(batch(known("a", 2, outputs=1)))
    bench.dispatcher.dispatch(batch(new("b", 8, [5, 6], computed=4), tokens=4))
    assert lose_kv(bench, 2) == [2, 3]
    assert computed(bench, 2) == [(4, "a", 0, 2), (2, "a", 2, 1), (5, "b", 0, 4), (3, "b", 4, 4)]
    hit, real = (sent for _, sent in bench.entrances[2].sent[2:])
    assert (hit.carried[0].block_ids, [entry.id for entry in real.new]) == (([5, 6],), ["b"])


def test_what_a_resumed_request_in_flight_was_to_find_is_computed_into_its_new_blocks(bench: Bench):
    start(bench, "a", 1)
    start(bench, "b", 2)
    bench.dispatcher.dispatch(batch(known("b", 2, outputs=1), preempted=["a"]))
    bench.answer(1, 3, output(b=42))
    bench.dispatcher.dispatch(batch(known("a", 2, [7], 1, resumed=True)))
    assert lose_kv(bench, 2) == [4]
    assert computed(bench, 2) == [(5, "b", 0, 3), (6, "a", 0, 2), (4, "a", 2, 1)]
    hit, real = (sent for _, sent in bench.entrances[2].sent[1:])
    assert [(sent.known[0].resumed, sent.known[0].new_block_ids) for sent in (hit, real)] == [(True, ([7],))] * 2
    assert bench.entrances[2].carried() == [["b"], ["a"], ["a"]]


def test_a_batch_that_was_scheduled_before_a_loss_computes_first_what_it_hoped_to_find(bench: Bench):
    start(bench, "a", 1)
    lose_kv(bench, 2, most_tokens=3)
    bench.dispatcher.dispatch(batch(new("b", 8, [5, 6], computed=4), tokens=4), kv_losses_known=0)
    assert computed(bench, 2)[1:] == [(3, "b", 0, 3), (4, "b", 3, 1), (5, "b", 4, 4)]
    assert bench.entrances[2].carried()[1:] == [["b"], [], []]
    assert bench.entrances[2].sent[-1][1].replayed, "the stage must forget what it was told of b before"


def test_a_resumed_request_that_was_scheduled_before_a_loss_is_told_of_anew(bench: Bench):
    start(bench, "a", 1)
    start(bench, "b", 2)
    bench.dispatcher.dispatch(batch(known("b", 2, outputs=1), preempted=["a"]))
    bench.answer(1, 3, output(b=42))
    lose_kv(bench, 2)
    bench.dispatcher.dispatch(batch(known("a", 2, [7], 1, resumed=True)), kv_losses_known=0)
    assert computed(bench, 2)[1:] == [(5, "a", 0, 2), (6, "a", 2, 1)]
    assert bench.entrances[2].carried()[1:] == [["a"], ["a"]]


@pytest.mark.parametrize("known_losses", [1, None])
def test_a_batch_that_was_scheduled_after_a_loss_is_sent_as_it_is(bench: Bench, known_losses: int | None):
    lose_kv(bench, 2)
    bench.dispatcher.dispatch(batch(new("b", 8, [5, 6], computed=4), tokens=4), kv_losses_known=known_losses)
    assert computed(bench, 2) == [(1, "b", 4, 4)]
    assert not bench.entrances[2].sent[0][1].replayed


def test_a_request_that_ends_while_its_batch_waits_does_not_stop_it(bench: Bench):
    bench.dispatcher.hold(DEADLINE_S)
    sent = batch(new("a", 8, [5, 6], computed=4), tokens=4)
    bench.background.start(lambda: bench.dispatcher.dispatch(sent, kv_losses_known=0))
    lose_kv(bench, 2)
    bench.dispatcher.finish(["a"])
    bench.dispatcher.resume()
    bench.background.settle()
    assert [entry[1:] for entry in computed(bench, 2)] == [("a", 0, 4), ("a", 4, 4)]


def test_kv_that_is_lost_once_more_is_computed_once_more(bench: Bench):
    start(bench, "a", 1)
    bench.dispatcher.dispatch(batch(new("b", 8, [5, 6], computed=4), tokens=4))
    assert lose_kv(bench, 2, most_tokens=1) == [2]
    bench.answer(2, 3, output())  # the first token of a, and then that is lost as well
    assert 2 in lose_kv(bench, 3)
    tokens: dict[str, list[int]] = {"a": [], "b": []}
    for _, request_id, first, count in computed(bench, 3):
        tokens[request_id] += range(first, first + count)
    assert list(dict.fromkeys(tokens["a"])) == [0, 1]
    assert list(dict.fromkeys(tokens["b"])) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert bench.dispatcher.kv_losses == 2


def test_a_loss_of_a_stage_alone_computes_no_kv_again(bench: Bench):
    start(bench, "a", 1)
    bench.dispatcher.dispatch(batch(new("b", 8, [5, 6], computed=4), tokens=4))
    assert bench.dispatcher.restart(bench.chain(2), most_tokens=64) == [2]
    assert computed(bench, 2) == [(2, "b", 4, 4)]
    assert bench.dispatcher.kv_losses == 0


def test_computing_again_is_no_answer_of_a_new_chain(bench: Bench):
    start(bench, "a", 6)
    bench.dispatcher.switch(bench.chain(2), timeout_s=0, recompute_tokens=4)
    for sequence in bench.sent(2):
        bench.answer(2, sequence)
    assert bench.settled == []
    bench.dispatcher.dispatch(batch(known("a", 6, outputs=1)))
    bench.answer(2, bench.sent(2)[-1], output(a=42))
    assert bench.settled == [2]
