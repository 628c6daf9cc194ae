"""A small engine in memory: a scheduler that makes batches, and stages that carry them out, each like vLLM's.

What a stage computes is a checksum of all tokens so far, kept in a pool of KV blocks that all stages of the node share.
A stage that reads what was not written, was overwritten, or belongs to other tokens fails the test, and so does one
that is told of a request it does not know. A sampled token depends on all tokens before it and, when the request is
seeded, on the number of draws: a stream shows every token that was lost, repeated, reordered or drawn from a generator
that started over.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from dataclasses import dataclass, field

from vllm.sampling_params import SamplingParams

from runtime.engine.messages import BatchOutput, KnownRequest, NewRequest, ScheduledBatch, decode_batch, encode
from runtime.transport.frames import Batch, Result

BLOCK_TOKENS = 4
LAYERS = 3


def checksum(tokens: list[int]) -> int:
    return zlib.crc32(bytes(token % 256 for token in tokens))


def next_token(tokens: list[int], draws: int) -> int:
    return zlib.crc32(b"%d" % draws, checksum(tokens)) % 251


def stream(prompt: list[int], count: int, *, seeded: bool) -> list[int]:
    """What a request must answer, computed one token after the other."""
    tokens = list(prompt)
    for draws in range(count):
        tokens.append(next_token(tokens, draws if seeded else 0))
    return tokens[len(prompt) :]


# -- the scheduler -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Request:
    id: str
    prompt: list[int]
    max_tokens: int
    params: SamplingParams
    outputs: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    in_flight: int = 0
    told: bool = False
    preempted: bool = False

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.outputs

    @property
    def seeded(self) -> bool:
        return self.params.seed is not None

    @property
    def left(self) -> int:
        """Tokens that could be computed now."""
        if self.preempted and self.in_flight:
            return 0
        return len(self.tokens) - self.computed


class Scheduler:
    """Makes batches and takes their outputs, in order, as vLLM's does: chunked prefill, shared prefixes, preemption.

    Blocks of a request that ends while it is in flight are given out again only when its last batch came back, as
    vLLM does with `defer_block_free`.
    """

    def __init__(self, blocks: int) -> None:
        self.live: dict[str, Request] = {}
        self.answered: list[Request] = []
        self.finished: list[str] = []
        self._leaving: dict[str, Request] = {}
        self._free = list(range(blocks - 1, 0, -1))  # block 0 is the null block
        self._owners: Counter[int] = Counter()
        self._count = 0

    def add(self, prompt: list[int], max_tokens: int, seed: int | None, donor: Request | None) -> Request:
        """Take a request; with a `donor` it begins with the donor's prompt and shares its full blocks."""
        self._count += 1
        shared = 0
        if donor is not None and donor.told and not donor.preempted:
            shared = min(donor.computed, len(donor.prompt)) // BLOCK_TOKENS
            prompt = donor.prompt[: shared * BLOCK_TOKENS] + prompt
        request = Request(f"r{self._count}", prompt, max_tokens, SamplingParams(seed=seed, temperature=1.0))
        if donor is not None and shared:
            request.blocks, request.computed = donor.blocks[:shared], shared * BLOCK_TOKENS
            self._owners.update(request.blocks)
        self.live[request.id] = request
        return request

    def schedule(self, wanted: dict[str, int]) -> ScheduledBatch | None:
        """Make a batch of up to so many tokens of each request; None when there is nothing that fits."""
        new: list[NewRequest] = []
        known: list[KnownRequest] = []
        scheduled: dict[str, int] = {}
        for request_id, most in wanted.items():
            request = self.live[request_id]
            tokens = min(most, request.left)
            needed = -(-(request.computed + tokens) // BLOCK_TOKENS) - len(request.blocks)
            if tokens <= 0 or needed > len(self._free):
                continue
            fresh = [self._free.pop() for _ in range(needed)]
            self._owners.update(fresh)
            request.blocks += fresh
            scheduled[request_id] = tokens
            if not request.told:
                new.append(
                    NewRequest(
                        request_id, list(request.prompt), request.params, (list(request.blocks),), request.computed
                    )
                )
            else:
                given = request.blocks if request.preempted else fresh
                known.append(
                    KnownRequest(
                        id=request_id,
                        resumed=request.preempted,
                        new_token_ids=request.tokens[request.computed : request.computed + tokens],
                        new_block_ids=(list(given),) if given else None,
                        computed_tokens=request.computed,
                        output_tokens=len(request.outputs),
                    )
                )
            request.told, request.preempted = True, False
            request.computed += tokens
            request.in_flight += 1
        if not scheduled:
            return None
        return ScheduledBatch(new, known, scheduled, self.take_finished(), None, None)

    def take_finished(self) -> list[str]:
        finished, self.finished = self.finished, []
        return finished

    def update(self, batch: ScheduledBatch, output: BatchOutput) -> None:
        """Take the output of the oldest batch in flight."""
        sampled = dict(zip(output.request_ids, output.sampled_token_ids, strict=True))
        for request_id in batch.scheduled_tokens:
            leaving = self._leaving.get(request_id)
            request = leaving or self.live[request_id]
            request.in_flight -= 1
            if leaving:
                if not leaving.in_flight:
                    self._release(self._leaving.pop(request_id))
                continue
            request.outputs += sampled[request_id]
            if len(request.outputs) == request.max_tokens:
                self.answered.append(request)
                self.end(request_id)

    def end(self, request_id: str) -> None:
        """Let go of a request: it is answered, or its client went away."""
        request = self.live.pop(request_id)
        if request.in_flight:
            self._leaving[request_id] = request
        else:
            self._release(request)
        if request.told:
            self.finished.append(request_id)

    def preempt(self, request_id: str) -> None:
        request = self.live[request_id]
        self._release(request)
        request.blocks, request.computed, request.preempted = [], 0, True

    def _release(self, request: Request) -> None:
        for block in reversed(request.blocks):
            self._owners[block] -= 1
            if not self._owners[block]:
                self._free.append(block)  # and it is the next to be given out


# -- stages ------------------------------------------------------------------------------------------------------------


@dataclass
class Known:
    """What a stage believes of a request."""

    prompt: list[int]
    params: SamplingParams
    blocks: list[int]
    computed: int
    outputs: list[int]
    draws: int = 0


@dataclass
class Node:
    """What all stages of a node share: the KV pool, and for the test's eyes the requests that are still wanted."""

    scheduler: Scheduler
    kv: dict[tuple[int, int, int], int] = field(default_factory=dict)
    watermarks: dict[tuple[int, int], int] = field(default_factory=dict)
    results: list[tuple[Result, list[bytes]]] = field(default_factory=list)


@dataclass(eq=False)
class Stage:
    """One stage process: an inbox, routes by epoch, and the requests that it knows."""

    node: Node
    layers: tuple[int, ...]
    first: bool
    last: bool
    alive: bool = True
    inbox: deque[tuple[Batch, list[bytes]]] = field(default_factory=deque)
    routes: dict[int, Stage | None] = field(default_factory=dict)
    requests: dict[str, Known] = field(default_factory=dict)

    def send(self, frame: Batch, buffers: list[bytes]) -> None:
        """Stand in for the outbox to this stage."""
        if self.alive:
            self.inbox.append((frame, [bytes(buffer) for buffer in buffers]))

    def end(self) -> None:
        """End the process: what is on its way to it is lost."""
        self.alive = False
        self.inbox.clear()

    def advance(self) -> None:
        """Carry out the oldest message of the inbox."""
        frame, payload = self.inbox.popleft()
        assert frame.epoch in self.routes, f"epoch {frame.epoch} is not served here"
        batch = decode_batch(payload)
        self._take_over(batch)
        self._update_states(batch)
        self._check_watermarks(batch)
        for entry in batch.entries():
            self._compute(entry.id, batch.scheduled_tokens[entry.id])
        if not self.last:
            following = self.routes[frame.epoch]
            assert following is not None
            following.send(frame, payload)
            return
        encoded = [bytes(buffer) for buffer in encode(self._sample(batch))]
        self.node.results.append((Result(frame.epoch, frame.sequence, len(encoded)), encoded))

    def _take_over(self, batch: ScheduledBatch) -> None:
        for carried in batch.carried:
            self.requests[carried.id] = Known(
                carried.prompt_token_ids,
                carried.sampling_params,
                list(carried.block_ids[0]),
                carried.computed_tokens,
                list(carried.output_token_ids),
                int(carried.generator_state or b"0"),
            )
        if batch.replayed:
            for new in batch.new:
                self.requests.pop(new.id, None)

    def _update_states(self, batch: ScheduledBatch) -> None:
        for request_id in batch.finished:
            self.requests.pop(request_id, None)
        for new in batch.new:
            assert new.id not in self.requests, f"{new.id} is new, but this stage knows it"
            self.requests[new.id] = Known(
                new.prompt_token_ids, new.sampling_params, list(new.block_ids[0]), new.computed_tokens, []
            )
        for known in batch.known:
            assert known.id in self.requests, f"this stage was never told of {known.id}"
            request = self.requests[known.id]
            request.computed = known.computed_tokens
            if self.last:
                del request.outputs[known.output_tokens :]
            else:
                have = len(request.prompt) + len(request.outputs)
                missing = known.computed_tokens + len(known.new_token_ids) - have
                request.outputs += known.new_token_ids[-missing:] if missing > 0 else []
            if known.resumed:
                request.blocks = []
            request.blocks += known.new_block_ids[0] if known.new_block_ids else []

    def _check_watermarks(self, batch: ScheduledBatch) -> None:
        """Check, as a stage does (I2), that what others computed for a request is in the pool to the token."""
        carried = {request.id for request in batch.carried}
        inherited = [new.id for new in batch.new] + [k.id for k in batch.known if k.resumed or k.id in carried]
        for request_id in inherited:
            request = self.requests[request_id]
            for layer in self.layers:
                for index in range(-(-request.computed // BLOCK_TOKENS)):
                    block, promised = request.blocks[index], min(BLOCK_TOKENS, request.computed - index * BLOCK_TOKENS)
                    valid = self.node.watermarks.get((layer, block), 0)
                    assert valid >= promised, f"{request_id}: block {block} of layer {layer} has {valid} valid tokens"

    def _compute(self, request_id: str, count: int) -> None:
        request, wanted = self.requests[request_id], self.node.scheduler.live.get(request_id)
        tokens, stop = request.prompt + request.outputs, request.computed + count
        assert len(tokens) >= stop, f"{request_id} has {len(tokens)} tokens on this stage, not {stop}"
        if wanted is not None:
            assert tokens[:stop] == wanted.tokens[:stop], f"this stage has other tokens of {request_id}"
        for position in range(stop):
            place = request.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
            value = checksum(tokens[: position + 1])
            for layer in self.layers:
                if position >= request.computed:
                    self.node.kv[layer, *place] = value
                    self.node.watermarks[layer, place[0]] = place[1] + 1
                else:
                    held = self.node.kv.get((layer, *place))
                    assert held == value, (
                        f"{request_id}: token {position} of layer {layer} is not what is in block {place}"
                    )
        request.computed = stop

    def _sample(self, batch: ScheduledBatch) -> BatchOutput:
        sampled: list[list[int]] = []
        states: dict[str, bytes] = {}
        for request_id in batch.scheduled_tokens:
            request = self.requests[request_id]
            tokens = request.prompt + request.outputs
            seeded = request.params.seed is not None
            drawn = []
            if request.computed == len(tokens):
                drawn = [next_token(tokens, request.draws if seeded else 0)]
                request.draws += 1
            request.outputs += drawn
            sampled.append(drawn)
            if seeded:
                states[request_id] = b"%d" % request.draws
        return BatchOutput(list(batch.scheduled_tokens), sampled, None, {}, None, states)


def make_chain(node: Node, split: tuple[int, ...], reuse: list[Stage]) -> list[Stage]:
    """Make the stages of a split, taking those of `reuse` that fit as they are."""
    stages, first_layer = [], 0
    for rank, count in enumerate(split):
        layers = tuple(range(first_layer, first_layer + count))
        role = layers, rank == 0, rank == len(split) - 1
        kept = next((stage for stage in reuse if (stage.layers, stage.first, stage.last) == role), None)
        stages.append(kept or Stage(node, *role))
        first_layer += count
    return stages


def route(stages: list[Stage], epoch: int) -> None:
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        stage.routes[epoch] = following
