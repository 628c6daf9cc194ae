"""Sends every scheduled batch down the chain of the current epoch, and can change the chain between two batches.

The rules, all under one lock:

* A batch belongs to the epoch it is dispatched in; results and rejections of another epoch are dropped (I1).
* Batches settle, and their results are revealed, in the order in which they were dispatched (I3).
* After `switch`, new batches take the new chain at once while batches in flight finish on the old one. A batch that
  touches a request or a KV block of a batch still in flight elsewhere waits for it (`Footprint.conflicts_with`).
* A new chain is *on probation* until its first result is revealed, or nobody is left who could want one; then the
  change is committed.
* `fall_back` abandons a chain: what it did not answer is replayed, in order, on another: same slots, same tokens (I4).
  `restart` abandons every chain.
* A request that the current chain has not seen is carried over with its first batch, from the ledger.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.engine.errors import StageError
from runtime.engine.ledger import Footprint
from runtime.engine.messages import BatchOutput, ScheduledBatch, decode_output, encode
from runtime.engine.rhythm import Rhythm
from runtime.transport.channel import ChannelError
from runtime.transport.frames import Batch, Rejected, Result, StageSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from runtime.engine.ledger import Ledger
    from runtime.transport.channel import Outbox
    from runtime.transport.frames import Buffer

_TRACE_LENGTH = 20_000
_LATEST_BATCHES = 32
_LOOK_AGAIN_S = 0.1


def _tell_nobody(_subject: str, _event: str, **_details: object) -> None:
    """Be the journal of a dispatcher that has none."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The stages that serve one epoch, in order: their names and the outboxes to them."""

    epoch: int
    stages: tuple[str, ...]
    outboxes: tuple[Outbox, ...]

    def send(self, sequence: int, payload: Sequence[Buffer]) -> None:
        """Send a batch to all stages: each prepares it while the ones before it compute. Raises ChannelError."""
        for outbox in self.outboxes:
            outbox.send(Batch(self.epoch, sequence, len(payload)), payload)


@dataclass(slots=True, eq=False)
class _InFlight:
    sequence: int
    epoch: int
    batch: ScheduledBatch
    footprint: Footprint
    future: Future[BatchOutput]
    again: bool = False  # computes what was computed before: nobody waits for its answer
    learnt_anew: frozenset[str] = frozenset()  # requests that batches just before it may have told of
    output: BatchOutput | None = None
    spans: tuple[StageSpan, ...] = ()


def _requests_of(batches: Iterable[ScheduledBatch]) -> frozenset[str]:
    return frozenset(request_id for batch in batches for request_id in batch.scheduled_tokens)


@dataclass(frozen=True, slots=True)
class TracedBatch:
    """For the trace: which stage computed a batch when."""

    sequence: int
    epoch: int
    tokens: int
    spans: tuple[StageSpan, ...]


@dataclass(slots=True)
class DispatchCounters:
    """What happened on the way, for reports and metrics."""

    batches: int = 0
    dropped_frames: int = 0
    replayed_batches: int = 0
    carried_requests: int = 0
    waits: int = 0
    wait_ms: float = 0.0


@dataclass(slots=True)
class Dispatcher:
    """See the module's rules. Thread-safe.

    Args:
        ledger: the state of all requests.
        on_settled: called without the lock when a chain's probation is over (its epoch).
        on_failed: called without the lock when a batch was rejected or its stages are gone (epoch, reason).
        tell: takes (request id, event, details...) for the journal.
        on_computed: called without the lock with every batch that was computed, its epoch and what its stages did,
            before its output is known; for traces.

    """

    ledger: Ledger
    on_settled: Callable[[int], None]
    on_failed: Callable[[int, str], None]
    tell: Callable[..., None] = _tell_nobody
    on_computed: Callable[[ScheduledBatch, int, Sequence[StageSpan]], None] | None = None
    counters: DispatchCounters = field(default_factory=DispatchCounters)
    rhythm: Rhythm = field(default_factory=Rhythm)
    trace: deque[TracedBatch] = field(default_factory=lambda: deque(maxlen=_TRACE_LENGTH))
    kv_losses: int = 0  # how often the KV of some layers was lost
    _most_tokens: int = 1  # in a batch that computes again
    _chain: Chain | None = None
    _probation: bool = False
    _known: set[str] = field(default_factory=set)
    _finished: list[str] = field(default_factory=list)
    _sequence: int = 0
    _in_flight: deque[_InFlight] = field(default_factory=deque)
    _held_until: float = 0.0
    _falling_back: bool = False
    _awaited: Callable[[], None] | None = None  # set while suspended: to be called when a batch waits
    _active_at: float = field(default_factory=time.monotonic)
    _dead: Exception | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def epoch(self) -> int:
        """The epoch that new batches are dispatched in; 0 before the first chain."""
        chain = self._chain
        return chain.epoch if chain else 0

    def dispatch(self, batch: ScheduledBatch, kv_losses_known: int | None = None) -> Future[BatchOutput]:
        """Send a batch and return the future of its output.

        `kv_losses_known`: how many losses of KV the scheduler knew of when it looked into its prefix cache (None: all).
        What it found there is computed again first if there was another since.
        """
        future: Future[BatchOutput] = Future()
        with self._changed:
            for request_id in batch.finished:
                self.tell(request_id, "ended", epoch=self.epoch)
            batch.finished += self._finished
            self._finished.clear()
            for new in batch.new:
                self.tell(new.id, "started", epoch=self.epoch, prompt_tokens=len(new.prompt_token_ids))
            footprint = self.ledger.dispatched(batch)
            self.rhythm.asked()
            if self._awaited is not None:
                self._awaited()
            self._wait_for_turn(footprint)
            if self._dead is not None:
                future.set_exception(self._dead)
                return future
            found_too_much = kv_losses_known is not None and kv_losses_known < self.kv_losses
            again = self.ledger.recomputed_hits(batch, self._most_tokens) if found_too_much else []
            entries = [*map(self._computing_again, again), self._entry(batch, footprint, future)]
            entries[-1].learnt_anew = _requests_of(again)
            for entry in entries:
                self._send_new(entry, replayed=bool(again))
            self.counters.batches += 1
        return future

    def _send_new(self, entry: _InFlight, *, replayed: bool = False) -> None:
        self._in_flight.append(entry)
        self._send(entry, replayed=replayed)

    def _entry(self, batch: ScheduledBatch, footprint: Footprint, future: Future[BatchOutput]) -> _InFlight:
        self._sequence += 1
        return _InFlight(self._sequence, self.epoch, batch, footprint, future)

    def _computing_again(self, batch: ScheduledBatch) -> _InFlight:
        entry = self._entry(batch, self._footprint_of(batch), Future())
        entry.again = True
        return entry

    @staticmethod
    def _footprint_of(batch: ScheduledBatch) -> Footprint:
        """Return the footprint of a batch that computes again: its blocks are written with what is in them."""
        return Footprint(frozenset(batch.scheduled_tokens), frozenset(), frozenset())

    def finish(self, request_ids: Iterable[str]) -> None:
        """Forget requests that ended while nothing is scheduled; the stages hear of it with the next batch."""
        with self._changed:
            for request_id in request_ids:
                self.ledger.forget(request_id)
                self._finished.append(request_id)
                self._active_at = time.monotonic()
                self.tell(request_id, "ended", epoch=self.epoch)
            if not len(self.ledger):
                self.rhythm.idle()
            over = self._end_probation(answered=False)
            self._changed.notify_all()
        if over is not None:
            self.on_settled(over)

    def _wait_for_turn(self, footprint: Footprint) -> None:
        def free() -> bool:
            held = time.monotonic() < self._held_until
            suspended = self._awaited is not None
            return self._dead is not None or not (held or suspended or self._falling_back or self._conflicts(footprint))

        if free():
            return
        start = time.perf_counter()
        self.counters.waits += 1
        while not free():
            lease_s = self._held_until - time.monotonic()
            self._changed.wait(lease_s if lease_s > 0 else None)
        self.counters.wait_ms += 1e3 * (time.perf_counter() - start)

    def _conflicts(self, footprint: Footprint) -> bool:
        return any(entry.epoch != self.epoch and footprint.conflicts_with(entry.footprint) for entry in self._in_flight)

    def _send(self, entry: _InFlight, *, replayed: bool = False) -> None:
        """Encode and send; requests the chain does not know yet are carried along."""
        if self._chain is None:
            raise StageError("no chain of stages to send to")
        self._known.difference_update(entry.learnt_anew)
        strangers = [known.id for known in entry.batch.known if known.id not in self._known]
        entry.batch.carried = [self.ledger.carried(request_id) for request_id in strangers]
        entry.batch.replayed = replayed
        self.counters.carried_requests += len(strangers)
        for carried in entry.batch.carried:
            event = "replayed" if replayed else "carried over"
            self.tell(carried.id, event, epoch=entry.epoch, tokens=carried.computed_tokens)
        self._known.difference_update(entry.batch.finished)
        self._known.update(entry.batch.scheduled_tokens)
        try:
            self._chain.send(entry.sequence, encode(entry.batch))
        except ChannelError as error:
            threading.Thread(target=self.on_failed, args=(entry.epoch, str(error)), daemon=True).start()

    # -- results ---------------------------------------------------------------------------------------------------

    def on_result(self, result: Result, buffers: Sequence[Buffer]) -> None:
        """Take a result from the wire (one thread only)."""
        try:
            output = decode_output(buffers)
        except Exception as error:  # noqa: BLE001 - vLLM's decoder raises whatever unexpected bytes make it raise
            self.on_failed(result.epoch, f"unreadable result of batch {result.sequence}: {error}")
            return
        revealed: list[_InFlight] = []
        over = None
        with self._changed:
            entry = self._find(result.sequence, result.epoch)
            if entry is None:
                self.counters.dropped_frames += 1
                return
            entry.output, entry.spans = output, result.spans
            while self._in_flight and (head := self._in_flight[0]).output is not None:
                self._in_flight.popleft()
                self.ledger.settled(head.batch, head.output)
                self.trace.append(TracedBatch(head.sequence, head.epoch, head.batch.total_tokens, head.spans))
                revealed.append(head)
                self._active_at = time.monotonic()
                if not head.again:
                    self.rhythm.answered()
                over = over or self._end_probation(answered=head.epoch == self.epoch and not head.again)
            self.ledger.purge(request_id for e in self._in_flight for request_id in e.footprint.requests)
            self._changed.notify_all()
        for entry in revealed:
            if entry.output is not None:
                if self.on_computed is not None:
                    self.on_computed(entry.batch, entry.epoch, entry.spans)
                entry.future.set_result(entry.output)
        if over is not None:
            self.on_settled(over)

    def _end_probation(self, *, answered: bool) -> int | None:
        """Return the epoch whose probation is over: its chain has answered, or no request is left to ask it."""
        if not self._probation or not (answered or (not self._in_flight and not len(self.ledger))):
            return None
        self._probation = False
        return self.epoch

    def on_rejected(self, rejected: Rejected) -> None:
        """Take a stage's refusal; frames of no batch in flight are only counted."""
        with self._changed:
            if self._find(rejected.sequence, rejected.epoch) is None:
                self.counters.dropped_frames += 1
                return
        self.on_failed(rejected.epoch, f"stage {rejected.stage} rejected batch {rejected.sequence}: {rejected.reason}")

    def _find(self, sequence: int, epoch: int) -> _InFlight | None:
        return next((e for e in self._in_flight if e.sequence == sequence and e.epoch == epoch), None)

    # -- changing the chain ------------------------------------------------------------------------------------------

    def install(self, chain: Chain, recompute_tokens: int | None = None) -> None:
        """Serve from `chain`, with nothing in flight elsewhere: the first chain, or one after `suspend`.

        With `recompute_tokens`, the KV of some layers was lost meanwhile: what a waiting batch is to find in the prefix
        cache is computed again first, in batches of so many tokens at most.
        """
        with self._changed:
            if recompute_tokens is not None:
                self.kv_losses += 1
                self._most_tokens = recompute_tokens
            self._chain, self._probation, self._awaited = chain, False, None
            self._known.clear()
            self._active_at = time.monotonic()
            self._changed.notify_all()

    def idle_s(self) -> float:
        """Return for how many seconds there has been no request and no batch; 0 while there is one."""
        with self._changed:
            return 0.0 if self._in_flight or len(self.ledger) else time.monotonic() - self._active_at

    def suspend(self, awaited: Callable[[], None]) -> bool:
        """Let no batch out until the next `install`; False when there is a request or a batch.

        `awaited` is called, with the lock held, when a batch begins to wait.
        """
        with self._changed:
            if self._in_flight or len(self.ledger):
                return False
            self._awaited = awaited
            return True

    def switch(self, chain: Chain, timeout_s: float, recompute_tokens: int | None = None) -> tuple[bool, list[str]]:
        """Send all further batches down `chain`, on probation; batches in flight finish where they are.

        With `recompute_tokens`, and nothing in flight, it begins with computing the KV of every request again, in
        batches of so many tokens.

        Waits up to `timeout_s` until no request keeps state that only its last stage knows (I7): prompt logprobs of a
        prompt in the middle of its prefill, which finish with the prompt. What is computed again needs no such wait.

        Returns:
            (whether there was no request at all, ids of requests that still cannot be moved: then nothing changed).

        """
        with self._changed:
            anew = recompute_tokens is not None
            if not anew and not self._changed.wait_for(lambda: not self._unmovable(), timeout_s):
                return False, self._unmovable()
            idle = not len(self.ledger)
            self._chain, self._probation = chain, not idle
            self._known.clear()
            if recompute_tokens is not None:
                for batch in self._recomputed(recompute_tokens):
                    self._send_new(self._computing_again(batch))
            self._changed.notify_all()
            return idle, []

    def _recomputed(self, most_tokens: int) -> list[ScheduledBatch]:
        """Make the batches that compute all settled KV again, of which some layers do without from now on."""
        self.kv_losses += 1
        self._most_tokens = most_tokens
        in_flight = [request_id for entry in self._in_flight for request_id in entry.batch.scheduled_tokens]
        return [
            batch
            for request_id in self.ledger.with_kv(in_flight)
            for batch in self.ledger.recomputed(request_id, most_tokens)
        ]

    def _unmovable(self) -> list[str]:
        return self.ledger.unfinished_prompt_logprobs(entry.batch for entry in self._in_flight)

    def fall_back(self, chain: Chain, is_whole: Callable[[], bool] = lambda: True) -> list[int]:
        """Abandon the current chain: replay what it did not answer on `chain`, and go on there.

        Every request is carried over anew, so it does not matter what the stages of `chain` believed before, as long
        as the KV that the ledger promises is in their pools. Returns the sequence numbers of the replayed batches.

        What an older chain has in flight settles first. Raises StageError when it cannot any more: `is_whole` says
        whether all old stages are alive. `restart` must follow then.
        """
        with self._changed:
            return self._abandon({self.epoch}, chain, is_whole)

    def restart(self, chain: Chain, most_tokens: int, *, kv_lost: bool = False) -> list[int]:
        """Abandon every chain, as `fall_back` does with one: stages of all of them may be gone.

        What only a last stage knew of a prompt (its logprobs so far) is computed again first, in batches of
        `most_tokens` tokens at most; with `kv_lost`, the KV of every request is: a node is gone with its layers. What a
        batch in flight was to find in the prefix cache is computed again just before that batch.
        """
        with self._changed:
            before = list(self._in_flight)
            if kv_lost:
                again = self._recomputed(most_tokens)
            else:
                unfinished = self.ledger.unfinished_prompt_logprobs(())
                again = [b for request_id in unfinished for b in self.ledger.recomputed(request_id, most_tokens)]
            self._in_flight = deque(map(self._computing_again, again))
            for entry in before:
                hits = self.ledger.recomputed_hits(entry.batch, most_tokens) if kv_lost else []
                self._in_flight.extend(map(self._computing_again, hits))
                entry.learnt_anew |= _requests_of(hits)
                self._in_flight.append(entry)
            replayed = self._abandon({entry.epoch for entry in self._in_flight}, chain, lambda: True)
            wanted = {entry.sequence for entry in before}
            return [sequence for sequence in replayed if sequence in wanted]

    def _abandon(self, epochs: set[int], chain: Chain, is_whole: Callable[[], bool]) -> list[int]:
        self._chain, self._probation = chain, False
        self._known.clear()
        replayed = [entry for entry in self._in_flight if entry.epoch in epochs]
        for entry in replayed:
            # From here on, late results of the abandoned chain match no batch in flight and are dropped.
            entry.epoch, entry.output = chain.epoch, None
        self._falling_back = True  # no new batch may overtake the replay
        try:
            while self._dead is None and any(entry.epoch != chain.epoch for entry in self._in_flight):
                if not is_whole():
                    raise StageError("stages were lost that have batches in flight")
                self._changed.wait(_LOOK_AGAIN_S)
            for entry in replayed:
                self._send(entry, replayed=True)
        finally:
            self._falling_back = False
        self.counters.replayed_batches += len(replayed)
        self._changed.notify_all()
        return [entry.sequence for entry in replayed]

    def blocks_moved(self, moved: Mapping[int, int], preempted: Iterable[str]) -> None:
        """Know KV blocks by their new numbers; some requests hold none any more. Nothing may be in flight."""
        with self._changed:
            self.ledger.blocks_moved(moved, preempted)
            self._known.clear()

    def hold(self, lease_s: float) -> None:
        """Let no further batch out until `resume`, but for no longer than `lease_s`: then they go out by themselves."""
        with self._changed:
            self._held_until = time.monotonic() + lease_s

    def resume(self) -> None:
        """Let batches out again."""
        with self._changed:
            self._held_until = 0.0
            self._changed.notify_all()

    def waits_for(self, epoch: int) -> bool:
        """Whether a batch of `epoch` is in flight."""
        with self._changed:
            return any(entry.epoch == epoch for entry in self._in_flight)

    def wait_drained(self, epoch: int, timeout_s: float, in_vain: Callable[[], bool] = lambda: False) -> bool:
        """Wait until no batch of `epoch` is in flight; False when `timeout_s` passed first.

        `in_vain` says that there is no use in waiting any longer; who knows of that anew calls `look_again`.
        """

        def drained() -> bool:
            return self._dead is not None or all(e.epoch != epoch for e in self._in_flight)

        with self._changed:
            self._changed.wait_for(lambda: drained() or in_vain(), timeout_s)
            return drained()

    def look_again(self) -> None:
        """Let whoever waits here see whether that has become vain."""
        with self._changed:
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Give up: every batch in flight and every further one ends in `error`."""
        with self._changed:
            self._dead = error
            pending, self._in_flight = list(self._in_flight), deque()
            self._changed.notify_all()
        for entry in pending:
            if not entry.future.done():
                entry.future.set_exception(error)

    def usual_tokens(self, at_most: int) -> int:
        """Return the most common size of the latest batches of `at_most` tokens, larger ones aside; 1 without any."""
        with self._changed:
            latest = [traced.tokens for traced in itertools.islice(reversed(self.trace), _LATEST_BATCHES)]
        return statistics.mode([tokens for tokens in latest if tokens <= at_most] or [1])

    def snapshot(self) -> dict[str, int]:
        """Return the settled number of tokens of every request, for checks."""
        with self._changed:
            return self.ledger.computed_tokens()
