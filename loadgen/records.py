"""What the client saw of one stream, as plain facts.

A record never interprets: it holds every token with its arrival time and says how the stream ended. All metrics are
functions of records (`loadgen.gaps`, `loadgen.benchmarks.alignment`), so they can be recomputed from a stored run.

Several tokens can arrive in one chunk, and several chunks in one read from the socket. Such tokens share an arrival
time, because that is when a user could have seen them; the gap between them is zero and the gap before them is the
longer. `Token.chunk` keeps them distinguishable.
"""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a stream ended, from the client's side."""

    FINISHED = "finished"  # a finish_reason, then [DONE]
    TRUNCATED = "truncated"  # closed in good order, but without finish_reason or without [DONE]
    EMPTY = "empty"  # ended in good order without a single token
    DISCONNECTED = "disconnected"  # the connection broke after the request was sent
    UNREACHABLE = "unreachable"  # no connection could be made
    TIMED_OUT = "timed_out"  # nothing arrived for longer than the client waits
    REFUSED = "refused"  # an HTTP status other than 200
    ERROR = "error"  # the server sent an error event inside the stream
    MALFORMED = "malformed"  # an event that is not what the protocol promises
    CANCELLED = "cancelled"  # by the client, whose time was up


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        token_id: Id in the model's vocabulary.
        text: Text of the chunk that brought it; of several tokens in a chunk the last one carries the text, since
            a server gives one text per chunk. May be empty (special tokens, half a character).
        arrived_ns: When the bytes were read from the socket, on the axis of `loadgen.clock`.
        chunk: Number of the server-sent event that brought it, from 0.
    """

    token_id: int
    text: str
    arrived_ns: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Identity:
    """The fields that must stay the same in every chunk of a stream (`id`, `created`, `model`)."""

    response_id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One stream as the client saw it.

    Attributes:
        name: The caller's name for the stream.
        started_ns: When the request was sent, on the axis of `loadgen.clock`.
        ended_ns: When the stream ended, in whichever way.
        unix_offset_ns: Unix time minus axis time at the start of the stream.
        tokens: Every generated token in order of arrival.
        prompt_token_ids: The prompt as the server tokenised it; empty if no chunk arrived.
        identities: Distinct identities in order of appearance: more than one breaks invariant I3.
        outcome: How the stream ended.
        finish_reason: The server's reason ("length", "stop"), if it gave one.
        reported_tokens: The server's own count of generated tokens (`usage.completion_tokens`), if it came.
        detail: What went wrong, in words; None for a finished stream.
    """

    name: str
    started_ns: int
    ended_ns: int
    unix_offset_ns: int
    tokens: tuple[Token, ...]
    prompt_token_ids: tuple[int, ...]
    identities: tuple[Identity, ...]
    outcome: Outcome
    finish_reason: str | None
    reported_tokens: int | None
    detail: str | None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The generated ids alone, for comparison with a reference."""
        return tuple(token.token_id for token in self.tokens)

    @property
    def text(self) -> str:
        """The generated text as a user would have read it."""
        return "".join(token.text for token in self.tokens)

    @property
    def broken(self) -> bool:
        """Whether the stream ended in any other way than finished."""
        return self.outcome is not Outcome.FINISHED
