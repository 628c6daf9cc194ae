"""One stream as it arrives: from reads of the socket to tokens with their moments, and a verdict at its end.

Every token of a read gets the moment at which the read was taken from the socket, however long the reading of events
takes then. Where tokens have no ids, `loadgen.streaming.token_counts` says how they are counted.
"""

import asyncio
from collections.abc import Callable

import msgspec

from loadgen.records import Outcome
from loadgen.sse import EventDecoder
from loadgen.streaming.chunks import Said, StreamError, Usage, read_event
from loadgen.streaming.token_counts import spread, token_weights

_COMPLETE = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})  # else the server gave it up


class Answer:
    """What has arrived of one answer so far.

    Args:
        needs_ids: A chunk with text but without token ids is malformed.
        keep_texts: Keep the text of chunks without ids, so that a tokenizer can count their tokens at the end.

    Attributes:
        at_ns: Arrival of each token, on the axis of `loadgen.clock`.
        chunks_of: Chunk of each token: number of the event within the stream.
        ids: Id of each token; shorter than `at_ns` if the server gave none.
        chunks: Chunks that brought tokens.
        taken_out: Tokens that the caller has passed on already (see `Runner`).
        ended: Becomes done when the answer has ended, whichever way.
    """

    __slots__ = (
        "_by_usage",
        "_decoder",
        "_done",
        "_events",
        "_needs_ids",
        "_texts",
        "at_ns",
        "chunks",
        "chunks_of",
        "detail",
        "ended",
        "ended_ns",
        "finish_reason",
        "ids",
        "last_ns",
        "outcome",
        "prompt_tokens",
        "reported_tokens",
        "retry_after_s",
        "sent_ns",
        "taken_out",
    )

    def __init__(self, sent_ns: int, *, needs_ids: bool = False, keep_texts: bool = False) -> None:
        self.sent_ns = self.last_ns = sent_ns
        self.ended_ns = sent_ns
        self.at_ns: list[int] = []
        self.chunks_of: list[int] = []
        self.ids: list[int] = []
        self.chunks = 0
        self.taken_out = 0
        self.finish_reason: str | None = None
        self.reported_tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.retry_after_s: float | None = None
        self.outcome: Outcome | None = None
        self.detail: str | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._decoder = EventDecoder()
        self._needs_ids = needs_ids
        self._texts: list[str] | None = [] if keep_texts else None
        self._events = 0
        self._by_usage: bool | None = None  # whether chunks come with the usage so far; the first text tells
        self._done = False

    @property
    def has_ids(self) -> bool:
        """Whether every token has its id."""
        return len(self.ids) == len(self.at_ns)

    @property
    def final(self) -> bool:
        """Whether the tokens so far stay as they are: those without ids may be counted anew by a tokenizer."""
        return self._texts is None or self.has_ids

    def take(self, read: bytes, at_ns: int) -> None:
        """Take in a part of the body that was read at `at_ns`; what comes after the end is skipped."""
        if self.outcome is not None:
            return
        self.last_ns = at_ns
        try:
            for event in self._decoder.feed(read):
                if event == "[DONE]":
                    self._done = True
                    self.close(at_ns)
                    return
                self._take(read_event(event), at_ns)
                self._events += 1
        except StreamError as error:
            self.fail(Outcome.ERROR, str(error), at_ns)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.fail(Outcome.MALFORMED, f"event {self._events}: {error}", at_ns)

    def _take(self, said: Said, at_ns: int) -> None:
        ids = said.token_ids
        if ids is not None:
            count = len(ids)
            self.ids += ids
        elif said.text and self._needs_ids:
            raise msgspec.ValidationError("a chunk without token_ids: does the server know return_token_ids?")
        else:
            count = self._count(said)
        if count:
            if ids is None and self._texts is not None:
                self._texts.append(said.text)
            self.at_ns += [at_ns] * count
            self.chunks_of += [self._events] * count
            self.chunks += 1
        if said.finish_reason is not None:
            self.finish_reason = said.finish_reason
        if said.usage is not None:
            self._report(said.usage)

    def _count(self, said: Said) -> int:
        if self._by_usage is None and said.text:
            self._by_usage = said.usage is not None
        if self._by_usage and said.usage is not None:
            return max(said.usage.completion_tokens - len(self.at_ns), 0) if said.from_choice else 0
        return 1 if said.text else 0

    def _report(self, usage: Usage) -> None:
        self.reported_tokens = usage.completion_tokens
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens

    def close(self, at_ns: int) -> None:
        """The message ended in good order, or with `[DONE]`: judge it."""
        if not self.at_ns:
            self.fail(Outcome.EMPTY, f"the stream ended without a token (finish_reason {self.finish_reason!r})", at_ns)
        elif self.finish_reason not in _COMPLETE:
            detail = f"ended after {len(self.at_ns)} tokens with {self.finish_reason!r}"
            self.fail(Outcome.TRUNCATED, detail, at_ns)
        elif not self._done:
            self.fail(Outcome.TRUNCATED, "the stream was closed before [DONE]", at_ns)
        else:
            self.fail(Outcome.FINISHED, self._difference(), at_ns)

    def fail(self, outcome: Outcome, detail: str | None, at_ns: int) -> None:
        """The answer ended in this way; the first end counts."""
        if self.outcome is None:
            self.outcome, self.detail, self.ended_ns = outcome, detail, at_ns
            if not self.ended.done():
                self.ended.set_result(None)

    def _difference(self) -> str | None:
        arrived, reported = len(self.at_ns), self.reported_tokens
        if reported is None or reported == arrived:
            return None
        if self.has_ids:
            return f"{arrived} tokens arrived, the server counts {reported}"
        return f"several tokens in one chunk: {self.chunks} chunks, the server counts {reported} tokens"

    @property
    def countable(self) -> bool:
        """Whether a tokenizer has something to say: text without ids, in fewer or more chunks than tokens."""
        reported = self.reported_tokens
        return bool(self._texts) and not self.has_ids and reported is not None and reported != len(self.at_ns)

    def spread(self, count: Callable[[str], int]) -> None:
        """Divide the tokens that the server counts among the chunks by a tokenizer; only if `countable`."""
        if not self.countable or self._texts is None or self.reported_tokens is None:
            raise ValueError("this answer needs no tokenizer")
        arrivals = dict(zip(self.chunks_of, self.at_ns, strict=True))  # one entry a chunk, in order
        parts = spread(self.reported_tokens, token_weights(self._texts, count))
        self.at_ns = [at for at, part in zip(arrivals.values(), parts, strict=True) for _ in range(part)]
        self.chunks_of = [chunk for chunk, part in zip(arrivals, parts, strict=True) for _ in range(part)]
