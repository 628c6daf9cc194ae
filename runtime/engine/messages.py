"""vLLM's per-batch messages as typed wire structs, without pickle.

vLLM's own encoder carries them (arrays and tensors as raw buffers); the structs name exactly the fields that a stage
acts on. What they do not name is refused when the pipeline starts (`runtime.engine.compat`), so nothing is dropped
on the way by accident.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.core.sched.output import CachedRequestData, GrammarOutput, NewRequestData, SchedulerOutput
from vllm.v1.outputs import LogprobsLists, LogprobsTensors, ModelRunnerOutput
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.transport.frames import Buffer

BlockIds = tuple[list[int], ...]


class NewRequest(msgspec.Struct):
    """A request that is scheduled for the first time."""

    id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    block_ids: BlockIds
    computed_tokens: int


class KnownRequest(msgspec.Struct):
    """What changed for a request that the stages know: fields as in vLLM's `CachedRequestData`."""

    id: str
    resumed: bool
    new_token_ids: list[int]
    new_block_ids: BlockIds | None
    computed_tokens: int
    output_tokens: int


class CarriedRequest(msgspec.Struct):
    """Everything a stage that never saw a request must know to go on with it.

    `generator_state` is the state of the request's seeded random generator after its last sampled token, or None
    when it has not sampled yet or is not seeded.
    """

    id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    block_ids: BlockIds
    computed_tokens: int
    output_token_ids: list[int]
    generator_state: bytes | None


class Grammar(msgspec.Struct):
    """Token masks of structured output, as vLLM's `GrammarOutput`."""

    request_ids: list[str]
    bitmask: np.ndarray


class ScheduledBatch(msgspec.Struct):
    """One batch as the scheduler made it, plus the requests that its chain has to be told about first.

    `preempted`: requests that hold no KV any more, for the head's ledger.
    `replayed`: the batch is sent a second time, to other stages or to ones that may have seen it before.
    """

    new: list[NewRequest]
    known: list[KnownRequest]
    scheduled_tokens: dict[str, int]
    finished: list[str]
    blocks_to_zero: list[int] | None
    block_copies: list[KVCacheBlockCopy] | None
    preempted: list[str] = []
    grammar: Grammar | None = None
    carried: list[CarriedRequest] = []
    replayed: bool = False

    def entries(self) -> Iterator[NewRequest | KnownRequest]:
        """Yield what the batch says of each of its requests, new ones first."""
        yield from self.new
        yield from self.known

    @property
    def total_tokens(self) -> int:
        """Tokens computed in this batch."""
        return sum(self.scheduled_tokens.values())


class BatchOutput(msgspec.Struct):
    """What the last stage sampled: vLLM's `ModelRunnerOutput`, plus the generators' new states."""

    request_ids: list[str]
    sampled_token_ids: list[list[int]]
    logprobs: LogprobsLists | None
    prompt_logprobs: dict[str, LogprobsTensors | None]
    nans_in_logits: dict[str, int] | None
    generator_states: dict[str, bytes]


_batch_decoder = MsgpackDecoder(ScheduledBatch)
_output_decoder = MsgpackDecoder(BatchOutput)


def encode(message: ScheduledBatch | BatchOutput) -> Sequence[Buffer]:
    """Return the buffers of a message; the first is msgpack, the others are raw arrays."""
    # An encoder keeps the buffers of the message at hand, so each thread and call has its own.
    return [_flat(buffer) for buffer in MsgpackEncoder().encode(message)]


def decode_batch(buffers: Sequence[Buffer]) -> ScheduledBatch:
    """Read a batch; raises msgspec.DecodeError or ValidationError when it is not one."""
    return _batch_decoder.decode(buffers)


def decode_output(buffers: Sequence[Buffer]) -> BatchOutput:
    """Read an output; raises msgspec.DecodeError or ValidationError when it is not one."""
    return _output_decoder.decode(buffers)


def rehearsal_batch(requests: int) -> ScheduledBatch:
    """Make up a batch like the first one after a change: each request is carried over and decodes its second token."""
    names = [f"rehearsal-{number}" for number in range(requests)]
    greedy, seeded = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, seed=0)
    return ScheduledBatch(
        new=[],
        known=[KnownRequest(name, False, [0], None, computed_tokens=1, output_tokens=1) for name in names],
        scheduled_tokens=dict.fromkeys(names, 1),
        finished=[],
        blocks_to_zero=None,
        block_copies=None,
        carried=[
            CarriedRequest(name, [0], (greedy, seeded)[number % 2], ([0],), 1, [0], None)
            for number, name in enumerate(names)
        ],
    )


def batch_from_vllm(scheduled: SchedulerOutput) -> ScheduledBatch:
    """Take what stages need from the scheduler's output; the grammar follows when vLLM has computed it."""
    cached = scheduled.scheduled_cached_reqs
    return ScheduledBatch(
        new=[
            NewRequest(
                request.req_id,
                request.prompt_token_ids,
                request.sampling_params,
                request.block_ids,
                request.num_computed_tokens,
            )
            for request in scheduled.scheduled_new_reqs
        ],
        known=[
            KnownRequest(
                request_id,
                request_id in cached.resumed_req_ids,
                cached.new_token_ids[index],
                cached.new_block_ids[index],
                cached.num_computed_tokens[index],
                cached.num_output_tokens[index],
            )
            for index, request_id in enumerate(cached.req_ids)
        ],
        scheduled_tokens=scheduled.num_scheduled_tokens,
        finished=sorted(scheduled.finished_req_ids),
        blocks_to_zero=scheduled.new_block_ids_to_zero,
        block_copies=scheduled.kv_cache_block_copies,
        preempted=sorted(scheduled.preempted_req_ids or ()),
    )


def batch_to_vllm(batch: ScheduledBatch) -> tuple[SchedulerOutput, GrammarOutput | None]:
    """Rebuild what vLLM's model runner expects."""
    new = [
        NewRequestData(
            req_id=request.id,
            prompt_token_ids=request.prompt_token_ids,
            mm_features=[],
            sampling_params=request.sampling_params,
            pooling_params=None,
            block_ids=request.block_ids,
            num_computed_tokens=request.computed_tokens,
            lora_request=None,
        )
        for request in batch.new
    ]
    known = CachedRequestData(
        req_ids=[request.id for request in batch.known],
        resumed_req_ids={request.id for request in batch.known if request.resumed},
        new_token_ids=[request.new_token_ids for request in batch.known],
        all_token_ids={},
        new_block_ids=[request.new_block_ids for request in batch.known],
        num_computed_tokens=[request.computed_tokens for request in batch.known],
        num_output_tokens=[request.output_tokens for request in batch.known],
    )
    scheduled = SchedulerOutput(
        scheduled_new_reqs=new,
        scheduled_cached_reqs=known,
        num_scheduled_tokens=batch.scheduled_tokens,
        total_num_scheduled_tokens=batch.total_tokens,
        scheduled_spec_decode_tokens={},
        scheduled_encoder_inputs={},
        finished_req_ids=set(batch.finished),
        free_encoder_mm_hashes=[],
        new_block_ids_to_zero=batch.blocks_to_zero,
        kv_cache_block_copies=batch.block_copies,
    )
    grammar = batch.grammar and GrammarOutput(batch.grammar.request_ids, batch.grammar.bitmask)
    return scheduled, grammar


def grammar_from_vllm(grammar: GrammarOutput | None) -> Grammar | None:
    """Take the masks of structured output."""
    return grammar and Grammar(grammar.structured_output_request_ids, grammar.grammar_bitmask)


def output_from_vllm(output: ModelRunnerOutput, generator_states: dict[str, bytes]) -> BatchOutput:
    """Take what the scheduler needs from the model runner's output."""
    return BatchOutput(
        request_ids=output.req_ids,
        sampled_token_ids=output.sampled_token_ids,
        logprobs=output.logprobs,
        prompt_logprobs=output.prompt_logprobs_dict,
        nans_in_logits=output.num_nans_in_logits,
        generator_states=generator_states,
    )


def output_to_vllm(output: BatchOutput) -> ModelRunnerOutput:
    """Rebuild what vLLM's scheduler expects."""
    return ModelRunnerOutput(
        req_ids=output.request_ids,
        req_id_to_index={request_id: index for index, request_id in enumerate(output.request_ids)},
        sampled_token_ids=output.sampled_token_ids,
        logprobs=output.logprobs,
        prompt_logprobs_dict=output.prompt_logprobs,
        num_nans_in_logits=output.nans_in_logits,
    )


def _flat(buffer: Buffer) -> Buffer:
    """Give a buffer as bytes in one dimension, which is what a socket counts."""
    view = memoryview(buffer)
    return view if view.ndim == 1 and view.itemsize == 1 else view.cast("B")
