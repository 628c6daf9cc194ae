"""The dispatcher and its ledger against random traffic, random timing, switches and fall-backs.

`traffic` holds the scheduler and the stages; here they are driven. A `Reference` replays the same traffic one batch
after the other, with no notion of chains or epochs: what the ledger carries over must be what it says.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.dispatcher import Chain, Dispatcher
from runtime.engine.ledger import Ledger
from runtime.engine.messages import BatchOutput, CarriedRequest, ScheduledBatch, decode_batch, decode_output
from tests.unit.runtime.engine.traffic import (
    BLOCK_TOKENS,
    LAYERS,
    Node,
    Scheduler,
    Stage,
    make_chain,
    route,
    stream,
)
from tests.unit.runtime.engine.waiting import Background

if TYPE_CHECKING:
    from concurrent.futures import Future

    from runtime.transport.frames import Batch, Result

SPLITS = [(3,), (1, 2), (2, 1), (1, 1, 1)]
assert all(sum(split) == LAYERS for split in SPLITS)


class Reference:
    """What a stage must know of each request after the first `settled` batches, told one batch at a time."""

    def __init__(self) -> None:
        self.settled = 0
        self._requests: dict[str, CarriedRequest] = {}

    def settle(self, batch: ScheduledBatch, output: BatchOutput) -> None:
        self.settled += 1
        for new in batch.new:
            self._requests[new.id] = CarriedRequest(
                new.id, new.prompt_token_ids, new.sampling_params, ([*new.block_ids[0]],), 0, [], None
            )
        for known in batch.known:
            request = self._requests[known.id]
            request.output_token_ids = request.output_token_ids[: known.output_tokens]
            before = [] if known.resumed else request.block_ids[0]
            request.block_ids = (before + (known.new_block_ids[0] if known.new_block_ids else []),)
        for entry in batch.entries():
            self._requests[entry.id].computed_tokens = entry.computed_tokens + batch.scheduled_tokens[entry.id]
        for request_id, tokens in zip(output.request_ids, output.sampled_token_ids, strict=True):
            self._requests[request_id].output_token_ids += tokens
        for request_id, state in output.generator_states.items():
            self._requests[request_id].generator_state = state

    def of(self, request_id: str) -> CarriedRequest:
        return self._requests[request_id]


@dataclass(frozen=True)
class Slots:
    """The requests that a batch advances or ends, and the slots (block, token in it) that it reads and writes."""

    requests: frozenset[str]
    reads: frozenset[tuple[int, int]]
    writes: frozenset[tuple[int, int]]

    @property
    def blocks(self) -> set[int]:
        return {block for block, _ in self.reads | self.writes}

    def disturbs(self, other: Slots) -> bool:
        """Whether the two may not run at the same time on different stages, nor change places on the same ones."""
        overlap = self.requests & other.requests or self.writes & (other.reads | other.writes)
        return bool(overlap or self.reads & other.writes)


class Entrance:
    """Stands in for the outbox to the first stage of a chain, and checks what goes in."""

    def __init__(self, machine: Traffic, stage: Stage) -> None:
        self._machine, self._stage = machine, stage

    def send(self, frame: Batch, buffers: list[bytes]) -> None:
        payload = [bytes(buffer) for buffer in buffers]
        self._machine.check_sent(frame, decode_batch(payload))
        self._stage.send(frame, payload)


class Traffic:
    """One pipeline under way. `stages` serve now; `old` are those of the layout before, until they are released."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.story: list[str] = []
        self.scheduler = Scheduler(random.randint(8, 20))
        self.node = Node(self.scheduler)
        self.settled_epochs: list[int] = []
        self.failures: list[tuple[int, str]] = []
        self.dispatcher = Dispatcher(
            Ledger(BLOCK_TOKENS), self.settled_epochs.append, lambda *failure: self.failures.append(failure)
        )
        self.background = Background(self.dispatcher)
        self.reference = Reference()
        self.epochs = count(1)
        self.slots: list[Slots] = []  # of batch 1, 2, ...
        self.sent: dict[int, ScheduledBatch] = {}
        self.epoch_of: dict[int, int] = {}
        self.outputs: dict[int, BatchOutput] = {}
        self.queue: deque[tuple[ScheduledBatch, Future[BatchOutput]]] = deque()
        self.revealed: list[int] = []
        self.replayed: list[int] = []
        self.abandoned: set[int] = set()
        self.told_finished: list[str] = []  # what the next batch will say on top of its own
        self.on_probation: int | None = None
        self.deserted = False  # nothing in flight and no request left, at some time since the switch
        self.engine_is_free = True
        self.falling_back = False
        self.old: list[Stage] = []
        self.stages = make_chain(self.node, random.choice(SPLITS), [])
        self.dispatcher.install(self.new_chain(self.stages))

    def new_chain(self, stages: list[Stage]) -> Chain:
        epoch = next(self.epochs)
        route(stages, epoch)
        return Chain(epoch, tuple(str(stage.layers) for stage in stages), (Entrance(self, stages[0]),))

    # -- what must hold whenever a batch is sent -----------------------------------------------------------------------

    def check_sent(self, frame: Batch, batch: ScheduledBatch) -> None:
        """Check a batch that goes out (called with the dispatcher's lock held)."""
        head = self.dispatcher._in_flight[0].sequence
        while self.reference.settled < head - 1:
            settled = self.reference.settled + 1
            self.reference.settle(self.sent[settled], self.outputs[settled])
        for carried in batch.carried:
            assert carried == self.reference.of(carried.id)
        assert frame.epoch == self.dispatcher.epoch
        assert batch.replayed == (frame.sequence in self.sent)
        for sequence in range(head, len(self.slots) + 1):
            if sequence == frame.sequence or sequence not in self.sent:
                continue
            elsewhere = self.epoch_of[sequence] != frame.epoch
            follows = batch.replayed and sequence > frame.sequence  # it is replayed as well, after this one
            overtaken = sequence > frame.sequence and not elsewhere
            if (elsewhere and not follows) or overtaken:
                disturbed = self.slots[frame.sequence - 1].disturbs(self.slots[sequence - 1])
                assert not disturbed, f"batch {frame.sequence} is sent beside, or after, batch {sequence}"
        if batch.replayed:
            self.replayed.append(frame.sequence)
        self.sent[frame.sequence], self.epoch_of[frame.sequence] = batch, frame.epoch

    def in_flight(self, epoch: int) -> list[int]:
        return [n for n, sent_in in sorted(self.epoch_of.items()) if sent_in == epoch and n > len(self.revealed)]

    # -- what can happen -----------------------------------------------------------------------------------------------

    def moves(self) -> dict[str, float]:
        """Name everything that can happen now, with its weight."""
        scheduler, free = self.scheduler, self.engine_is_free
        possible = {
            "add": (2, len(scheduler.live) < 5),
            "schedule": (8, free and len(self.queue) < 5 and any(r.left for r in scheduler.live.values())),
            "abort": (0.5, free and scheduler.live),
            "preempt": (0.7, free and self.preemptible),
            "tell_finished": (1, free and scheduler.finished),
            "advance": (8, self.busy),
            "deliver": (6, self.node.results),
            "deliver_again": (0.5, self.node.results),
            "switch": (2, not self.old and not self.falling_back),
            "fall_back": (1, self.old),
            "lose_all": (0.5, not self.falling_back),
            "release": (2, self.old and self.committed and not self.in_flight(self.old_epoch)),
        }
        return {name: weight for name, (weight, can_happen) in possible.items() if can_happen}

    def step(self) -> None:
        moves = self.moves()
        (name,) = self.random.choices(list(moves), list(moves.values()))
        self.story.append(name)
        getattr(self, name)()
        self.check()

    def check(self) -> None:
        """Check what must hold at any time."""
        assert self.failures == []
        assert self.revealed == list(range(1, len(self.revealed) + 1)), "results are not in the order of dispatch (I3)"
        for request in (*self.scheduler.live.values(), *self.scheduler.answered):
            expected = stream(request.prompt, len(request.outputs), seeded=request.seeded)
            assert request.outputs == expected, "a stream is not what it would be without changes (I3)"
        told = {request.id for request in self.scheduler.live.values() if request.told}
        assert set(self.dispatcher.ledger) == told | set(self.scheduler.finished)
        assert len(set(self.settled_epochs)) == len(self.settled_epochs), "a chain was settled twice"
        if self.on_probation is not None:
            answered = any(self.epoch_of[n] == self.on_probation for n in self.revealed)
            self.deserted |= len(self.revealed) == len(self.slots) and not set(self.dispatcher.ledger)
            assert (self.on_probation in self.settled_epochs) == (answered or self.deserted)

    def end(self) -> None:
        """Let everything come to its end: every request that is not aborted is answered in full."""
        while self.scheduler.live or not self.engine_is_free or self.queue:
            sent = len(self.slots)
            while self.busy or self.node.results:
                while self.busy:
                    self.advance()
                while self.node.results:
                    self.deliver()
            assert self.engine_is_free, "a batch waits although nothing is in flight"
            assert not self.queue, "a result is missing (I3)"
            if self.scheduler.live:
                self.schedule(chunk=8)
                if len(self.slots) == sent:
                    self.scheduler.end(next(iter(self.scheduler.live)))  # there is no room for all of them
        self.check()
        assert self.background.blocked == 0
        assert len(self.revealed) == len(self.slots), "a result is missing (I3)"

    # -- traffic -------------------------------------------------------------------------------------------------------

    def add(self) -> None:
        prompt = [self.random.randrange(251) for _ in range(self.random.randint(1, 10))]
        seed = self.random.choice([None, 7])
        donor = self.random.choice([None, *self.scheduler.live.values()])
        self.scheduler.add(prompt, self.random.randint(1, 4), seed, donor)

    def schedule(self, chunk: int | None = None) -> None:
        wanted = {request_id: chunk or self.random.choice([0, 1, 3, 8]) for request_id in self.scheduler.live}
        batch = self.scheduler.schedule(wanted)
        if batch is None:
            return
        reads, writes = set(), set()
        for entry in batch.entries():
            blocks = self.scheduler.live[entry.id].blocks
            for position in range(entry.computed_tokens + batch.scheduled_tokens[entry.id]):
                place = blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
                (reads if position < entry.computed_tokens else writes).add(place)
        requests = frozenset((*batch.scheduled_tokens, *batch.finished, *self.told_finished))
        self.slots.append(Slots(requests, frozenset(reads), frozenset(writes)))
        self.told_finished = []
        sequence = len(self.slots)

        def dispatch() -> None:
            future = self.dispatcher.dispatch(batch)
            future.add_done_callback(lambda _: self.revealed.append(sequence))
            self.queue.append((batch, future))
            self.engine_is_free = True

        self.engine_is_free = False
        self.background.start(dispatch)
        if not self.engine_is_free:
            assert self.falling_back or self.meets_another_chain(self.slots[-1]), "this batch waits for nothing"

    def meets_another_chain(self, slots: Slots) -> bool:
        for epoch in set(self.epoch_of.values()) - {self.dispatcher.epoch}:
            for other in (self.slots[sequence - 1] for sequence in self.in_flight(epoch)):
                if slots.blocks & other.blocks or slots.requests & other.requests:
                    return True
        return False

    def abort(self) -> None:
        self.scheduler.end(self.random.choice(list(self.scheduler.live)))

    @property
    def preemptible(self) -> list[str]:
        return [r.id for r in self.scheduler.live.values() if r.told and not r.in_flight and not r.preempted]

    def preempt(self) -> None:
        self.scheduler.preempt(self.random.choice(self.preemptible))

    def tell_finished(self) -> None:
        finished = self.scheduler.take_finished()
        self.told_finished += finished
        self.dispatcher.finish(finished)

    # -- stages and results --------------------------------------------------------------------------------------------

    @property
    def busy(self) -> list[Stage]:
        return [stage for stage in dict.fromkeys([*self.old, *self.stages]) if stage.inbox]

    def advance(self) -> None:
        self.random.choice(self.busy).advance()

    def deliver(self) -> None:
        """Deliver any result that is on its way, in whatever order they were made."""
        self.take(*self.node.results.pop(self.random.randrange(len(self.node.results))))

    def deliver_again(self) -> None:
        """Deliver a result that will come once more."""
        self.take(*self.random.choice(self.node.results))

    def take(self, result: Result, buffers: list[bytes]) -> None:
        dispatched_in = self.epoch_of[result.sequence]
        wanted = result.epoch == dispatched_in not in self.abandoned and result.sequence > len(self.revealed)
        if wanted:
            self.outputs[result.sequence] = decode_output(buffers)
        dropped, settled = self.dispatcher.counters.dropped_frames, self.dispatcher.snapshot()
        self.dispatcher.on_result(result, buffers)
        assert self.dispatcher.counters.dropped_frames == dropped + (not wanted)
        assert wanted or self.dispatcher.snapshot() == settled
        self.background.settle()
        self.take_outputs()

    def take_outputs(self) -> None:
        """Let the engine's thread, unless it is blocked, hear of what was revealed."""
        while self.engine_is_free and self.queue and self.queue[0][1].done():
            batch, future = self.queue.popleft()
            self.scheduler.update(batch, future.result())

    # -- changes -------------------------------------------------------------------------------------------------------

    def switch(self) -> None:
        keep = self.stages if self.random.random() < 0.5 else []
        stages = make_chain(self.node, self.random.choice(SPLITS), keep)
        before, chain = self.dispatcher.epoch, self.new_chain(stages)
        idle, stuck = self.dispatcher.switch(chain, timeout_s=0)
        assert stuck == []
        assert idle == (not set(self.dispatcher.ledger))
        self.on_probation, self.deserted = None if idle else chain.epoch, False
        self.old, self.old_epoch, self.stages = self.stages, before, stages

    def fall_back(self) -> None:
        abandoned = self.dispatcher.epoch
        for stage in set(self.stages) - set(self.old):
            stage.end()
        self.stages, self.old = self.old, []
        unanswered = self.in_flight(abandoned)
        self.abandoned.add(abandoned)
        self.on_probation, self.replayed = None, []
        chain = self.new_chain(self.stages)

        def fall_back() -> None:
            assert self.dispatcher.fall_back(chain) == unanswered
            assert self.replayed == unanswered, "not exactly the unanswered batches were replayed, in order (I4)"
            self.falling_back = False

        self.falling_back = True
        self.background.start(fall_back)
        self.take_outputs()

    def lose_all(self) -> None:
        """Lose every stage, those of an old chain as well; others take their place."""
        for stage in {*self.old, *self.stages}:
            stage.end()
        self.abandoned |= set(self.epoch_of.values())
        self.old, self.on_probation, self.replayed = [], None, []
        unanswered = list(range(len(self.revealed) + 1, len(self.sent) + 1))
        self.stages = make_chain(self.node, self.random.choice(SPLITS), [])
        assert self.dispatcher.restart(self.new_chain(self.stages), most_tokens=64) == unanswered
        assert self.replayed == unanswered, "not exactly the unanswered batches were replayed, in order (I4)"
        self.background.settle()
        self.take_outputs()

    @property
    def committed(self) -> bool:
        return self.on_probation is None or self.on_probation in self.settled_epochs

    def release(self) -> None:
        assert self.dispatcher.wait_drained(self.old_epoch, timeout_s=0)
        for stage in set(self.old) - set(self.stages):
            stage.end()
        self.old = []


@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(20, 150))
@settings(max_examples=300, deadline=None)
def test_i3_i4_streams_survive_any_interleaving_of_switches_fall_backs_and_late_results(seed: int, steps: int):
    traffic = Traffic(Random(seed))
    try:
        for _ in range(steps):
            traffic.step()
        traffic.end()
    except AssertionError as error:
        error.add_note(f"what happened: {', '.join(traffic.story)}")
        raise
