"""What every running request looks like between two batches, kept by the head.

A stage learns of a request piecemeal: the prompt once, then only differences. A stage that joins later, or an old
one that takes over again, needs the whole. The ledger follows the traffic through the executor and can state it
at any time, without asking a stage: that is what lets a pipeline change hands between two batches.

Two views are kept apart on purpose:

* *settled*: after the last batch whose result came back. A request is carried over in this state.
* *live blocks*: the blocks the scheduler has given out so far, batches in flight included. They tell whether a batch on
  a new chain could meet a batch that is still in flight on the old one (`Footprint.conflicts_with`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.engine.messages import BatchOutput, CarriedRequest, KnownRequest, NewRequest, ScheduledBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vllm.sampling_params import SamplingParams

    from runtime.engine.messages import BlockIds

_NULL_BLOCK = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """The requests a batch advances or ends, and the KV blocks that it reads and writes."""

    requests: frozenset[str]
    blocks: frozenset[int]
    written: frozenset[int]

    def conflicts_with(self, in_flight: Footprint) -> bool:
        """Whether running this batch beside `in_flight`, on other stages, could change what either computes."""
        return bool(
            self.requests & in_flight.requests or self.blocks & in_flight.written or self.written & in_flight.blocks
        )


@dataclass(slots=True)
class _Request:
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    live_blocks: BlockIds
    blocks: BlockIds
    computed_tokens: int
    output_token_ids: list[int] = field(default_factory=list)
    generator_state: bytes | None = None
    holds_kv: bool = False  # not before its first batch has settled, nor while it is preempted


class Ledger:
    """The state of all requests the stages may know. Not thread-safe; the dispatcher locks around it."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._requests: dict[str, _Request] = {}
        self._ended: dict[str, _Request] = {}  # still in a batch in flight, which may have to be replayed

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[str]:
        return iter(self._requests)

    def dispatched(self, batch: ScheduledBatch) -> Footprint:
        """Take note of a batch that is about to be sent, and return what it touches."""
        for request_id in batch.finished:
            self.forget(request_id)
        for new in batch.new:
            self._requests[new.id] = _Request(
                new.prompt_token_ids,
                new.sampling_params,
                _copy(new.block_ids),
                _copy(new.block_ids),
                new.computed_tokens,
            )
        touched: set[int] = set()
        written: set[int] = set()
        for known in batch.known:
            request = self._requests[known.id]
            request.live_blocks = _extended(request.live_blocks, known)
        for entry in batch.entries():
            first = entry.computed_tokens
            stop = first + batch.scheduled_tokens[entry.id]
            for blocks in self._requests[entry.id].live_blocks:
                touched.update(blocks)
                written.update(blocks[first // self._block_tokens : -(-stop // self._block_tokens)])
        for source, destination in batch.block_copies or ():
            touched.update((source, destination))
            written.add(destination)
        written.update(batch.blocks_to_zero or ())
        touched.discard(_NULL_BLOCK)
        written.discard(_NULL_BLOCK)
        requests = frozenset((*batch.scheduled_tokens, *batch.finished))
        return Footprint(requests, frozenset(touched | written), frozenset(written))

    def forget(self, request_id: str) -> None:
        """Take note that a request ended; unknown ones are fine. It can be carried until it is purged."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._ended[request_id] = request

    def purge(self, in_flight: Iterable[str]) -> None:
        """Drop what ended and is in no batch in flight."""
        kept = set(in_flight)
        for request_id in [request_id for request_id in self._ended if request_id not in kept]:
            del self._ended[request_id]

    def _find(self, request_id: str) -> _Request | None:
        return self._requests.get(request_id) or self._ended.get(request_id)

    def settled(self, batch: ScheduledBatch, output: BatchOutput | None) -> None:
        """Take note of the result of a batch (None when nothing was computed). Batches settle in order of dispatch."""
        for known in batch.known:
            request = self._find(known.id)
            if request is not None:  # it may have finished or been aborted while the batch was in flight
                request.blocks = _extended(request.blocks, known)
                # The scheduler decides how much of the output counts; what it dropped is dropped here too.
                del request.output_token_ids[known.output_tokens :]
        for entry in batch.entries():
            request = self._find(entry.id)
            if request is not None:
                request.computed_tokens = entry.computed_tokens + batch.scheduled_tokens[entry.id]
                request.holds_kv = True
        for request_id in batch.preempted:
            request = self._find(request_id)
            if request is not None:
                request.holds_kv = False
        if output is None:
            return
        for request_id, tokens in zip(output.request_ids, output.sampled_token_ids, strict=False):
            request = self._find(request_id)
            if request is not None:
                request.output_token_ids.extend(tokens)
        for request_id, state in output.generator_states.items():
            request = self._find(request_id)
            if request is not None:
                request.generator_state = state

    def carried(self, request_id: str) -> CarriedRequest:
        """State the settled view of a request."""
        request = self._find(request_id)
        if request is None:
            raise KeyError(request_id)
        return CarriedRequest(
            request_id,
            request.prompt_token_ids,
            request.sampling_params,
            _copy(request.blocks),
            request.computed_tokens,
            list(request.output_token_ids),
            request.generator_state,
        )

    def recomputed(self, request_id: str, most_tokens: int) -> list[ScheduledBatch]:
        """Make batches that compute the settled part of a request once more, in the blocks where it is.

        For what is gone with a stage or a node. None for a request that holds no KV at the moment; what a batch in
        flight expects to find for it is another matter (`recomputed_hits`).
        """
        request = self._find(request_id)
        if request is None:
            raise KeyError(request_id)
        if not request.holds_kv:
            return []
        return self._computing(request_id, request, most_tokens, request.computed_tokens, None)

    def recomputed_hits(self, batch: ScheduledBatch, most_tokens: int) -> list[ScheduledBatch]:
        """Make batches that compute what `batch` (dispatched already) expects to find in the prefix cache."""
        batches: list[ScheduledBatch] = []
        for entry in batch.entries():
            resumed = isinstance(entry, KnownRequest) and entry.resumed
            request = self._find(entry.id)
            if request and entry.computed_tokens and (resumed or isinstance(entry, NewRequest)):
                blocks = entry.new_block_ids if isinstance(entry, KnownRequest) else None
                batches += self._computing(entry.id, request, most_tokens, entry.computed_tokens, blocks)
        return batches

    @staticmethod
    def _computing(
        request_id: str, request: _Request, most_tokens: int, computed_tokens: int, moved_to: BlockIds | None
    ) -> list[ScheduledBatch]:
        """Make batches for the first `computed_tokens` tokens of a request; `moved_to`: its new blocks, if any."""
        batches = []
        for first in range(0, computed_tokens, most_tokens):
            tokens = min(most_tokens, computed_tokens - first)
            batch = ScheduledBatch([], [], {request_id: tokens}, [], None, None)
            resumed = first == 0 and moved_to is not None
            batch.known = [
                KnownRequest(
                    request_id, resumed, [], moved_to if resumed else None, first, len(request.output_token_ids)
                )
            ]
            batches.append(batch)
        return batches

    def blocks_moved(self, moved: Mapping[int, int], preempted: Iterable[str]) -> None:
        """Know KV blocks by their new numbers; some requests hold none any more."""
        for request in self._requests.values():
            request.blocks = _renamed(request.blocks, moved)
            request.live_blocks = _renamed(request.live_blocks, moved)
        for request_id in preempted:
            known = self._requests.get(request_id)
            if known is not None:
                known.holds_kv = False

    def with_kv(self, in_flight: Iterable[str]) -> list[str]:
        """Return the requests whose settled KV is needed: the running ones, and the ended ones that are in flight."""
        wanted = set(in_flight)
        return [*self._requests, *(request_id for request_id in self._ended if request_id in wanted)]

    def computed_tokens(self) -> dict[str, int]:
        """Return the settled number of computed tokens of every request."""
        return {request_id: request.computed_tokens for request_id, request in self._requests.items()}

    def unfinished_prompt_logprobs(self, in_flight: Iterable[ScheduledBatch]) -> list[str]:
        """Return requests in the middle of computing prompt logprobs, which only their last stage remembers.

        What was sent counts, `in_flight` included: the stage that gets the first part of a prompt must get the rest.
        """
        sent = self.computed_tokens()
        for batch in in_flight:
            sent.update(
                {entry.id: entry.computed_tokens + batch.scheduled_tokens[entry.id] for entry in batch.entries()}
            )
        return [
            request_id
            for request_id, request in self._requests.items()
            if request.sampling_params.prompt_logprobs is not None
            and 0 < sent[request_id] < len(request.prompt_token_ids)
        ]


def _copy(blocks: BlockIds) -> BlockIds:
    return tuple(list(group) for group in blocks)


def _renamed(blocks: BlockIds, moved: Mapping[int, int]) -> BlockIds:
    return tuple([moved.get(block, block) for block in group] for group in blocks)


def _extended(blocks: BlockIds, known: KnownRequest) -> BlockIds:
    """Return the blocks of a request after a batch: replaced when it was resumed, else appended to."""
    if known.new_block_ids is None:
        return blocks
    if known.resumed:
        return _copy(known.new_block_ids)
    return tuple(old + new for old, new in zip(blocks, known.new_block_ids, strict=True))
