"""Scheduled batches and outputs, built by hand."""

from __future__ import annotations

from vllm.sampling_params import SamplingParams

from runtime.engine.messages import BatchOutput, KnownRequest, NewRequest, ScheduledBatch

BLOCK_TOKENS = 4


def new(
    request_id: str, prompt: int | list[int], blocks: list[int], computed: int = 0, prompt_logprobs: int | None = None
) -> NewRequest:
    """A request that is scheduled for the first time; its prompt can be given as a number of tokens."""
    tokens = list(range(prompt)) if isinstance(prompt, int) else prompt
    params = SamplingParams(prompt_logprobs=prompt_logprobs)
    return NewRequest(request_id, tokens, params, (list(blocks),), computed)


def known(
    request_id: str, computed: int, blocks: list[int] | None = None, outputs: int = 0, *, resumed: bool = False
) -> KnownRequest:
    """A request that goes on, with the blocks that it got for it."""
    given = None if blocks is None else (list(blocks),)
    return KnownRequest(request_id, resumed, [], given, computed, outputs)


def batch(*entries: NewRequest | KnownRequest, tokens: dict[str, int] | int = 1, **fields: object) -> ScheduledBatch:
    """A batch of these requests; `tokens` of each are computed."""
    scheduled = tokens if isinstance(tokens, dict) else {entry.id: tokens for entry in entries}
    return ScheduledBatch(
        new=[entry for entry in entries if isinstance(entry, NewRequest)],
        known=[entry for entry in entries if isinstance(entry, KnownRequest)],
        scheduled_tokens=scheduled,
        **{"finished": [], "blocks_to_zero": None, "block_copies": None, **fields},
    )


def output(states: dict[str, bytes] | None = None, **sampled: int | None) -> BatchOutput:
    """What the last stage made of a batch: a token, or None, for each request."""
    tokens = [[] if token is None else [token] for token in sampled.values()]
    return BatchOutput(list(sampled), tokens, None, {}, None, states or {})
