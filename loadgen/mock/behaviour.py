"""What the mock server does, as settings: everything a client should measure is one of them.

Determinism: what a request meets follows from the mock's seed, the request's prompt, and how often that prompt has
been seen before, never from the order in which requests happen to arrive. The same load gives the same faults, and a
prompt that is sent again (by a retry, or by a user in a closed loop) meets another fate. The tokens themselves depend
on prompt, temperature and the request's seed alone, as with a real engine.

Rhythm: the chunk that begins with token i is due at `begin + ttft + i * itl`, plus the stalls so far, plus jitter.
That is an absolute schedule: a chunk that leaves late does not delay the next one.
"""

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

VOCABULARY = 49152
_MS = 1_000_000

FaultKind = Literal[
    "stall",  # wait `stall_ms` before the token
    "lose",  # do not send the token
    "repeat",  # send it twice
    "replace",  # send another token instead, and other ones from there on
    "error",  # an error event instead of the token, as vLLM sends one
    "disconnect",  # break the connection
    "truncate",  # end the response in good order, without [DONE]
    "abort",  # end with finish_reason "abort"
    "garbage",  # an event that is not JSON
    "rename",  # go on under another response id
]
Fate = Literal["error", "disconnect", "truncate", "empty"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at the token with index `at_token` of every stream."""

    kind: FaultKind
    at_token: int
    stall_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class TimedStall:
    """All streams stand still, `at_s` seconds after the first request came."""

    at_s: float
    stall_ms: float


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the mock server behaves.

    Attributes:
        ttft_ms: Time to first token.
        itl_ms: Time from one token to the next.
        jitter_ms: Each chunk is late by a random part of this.
        seed: Of jitter, and of which streams break.
        tokens_per_chunk: Tokens in one chunk, which leaves when the first of them is due.
        faults: What goes wrong in every stream.
        stalls: When all streams stand still at once.
        error_rate: Share of streams that end with an error event, at a random token but the first.
        disconnect_rate: Share of streams whose connection breaks, likewise.
        truncate_rate: Share of streams that end without finish_reason and [DONE], likewise.
        empty_rate: Share of streams that end in good order without a token.
        refuse_status: HTTP status that completions are refused with; 0 to serve.
        max_streams: Streams at a time; more are refused with 503. 0: any number.
        send_token_ids: Whether chunks carry token ids when asked for.
        change_fault: What goes wrong once, in the first stream that generates after a change's cutover, at its next
            token (`at_token` is ignored).
        change_ms: Length of a change before its cutover.
        change_stall_ms: How long all streams stand still at the cutover.
        change_outcome: Whether changes are committed, aborted, refused, or never end.
    """

    ttft_ms: float = 5.0
    itl_ms: float = 2.0
    jitter_ms: float = 0.0
    seed: int = 0
    tokens_per_chunk: int = 1
    faults: tuple[Fault, ...] = ()
    stalls: tuple[TimedStall, ...] = ()
    error_rate: float = 0.0
    disconnect_rate: float = 0.0
    truncate_rate: float = 0.0
    empty_rate: float = 0.0
    refuse_status: int = 0
    max_streams: int = 0
    send_token_ids: bool = True
    change_fault: FaultKind | None = None
    change_ms: float = 20.0
    change_stall_ms: float = 50.0
    change_outcome: Literal["commit", "abort", "refuse", "hang"] = "commit"

    def __post_init__(self) -> None:
        for name in ("ttft_ms", "itl_ms", "jitter_ms", "max_streams", "change_ms", "change_stall_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name):g}: a time or a number is never below 0")
        if self.tokens_per_chunk < 1:
            raise ValueError(f"tokens_per_chunk is {self.tokens_per_chunk}: a chunk has at least one token")
        rates = [rate for _, rate in self.rates]
        if min(rates) < 0 or sum(rates) > 1:
            raise ValueError(f"the rates {rates} of streams that break: each is 0 or more, together at most 1")
        if self.refuse_status and not 400 <= self.refuse_status <= 599:
            raise ValueError(f"refuse_status is {self.refuse_status}: a refusal is an HTTP status from 400 to 599")

    @property
    def rates(self) -> tuple[tuple[Fate, float], ...]:
        """Each way in which a share of the streams breaks, with that share."""
        return (
            ("error", self.error_rate),
            ("disconnect", self.disconnect_rate),
            ("truncate", self.truncate_rate),
            ("empty", self.empty_rate),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One chunk that is due `offset_ns` after its stream began: `count` tokens from index `first` on."""

    offset_ns: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Script:
    """What one stream is to go through.

    Attributes:
        tokens: Tokens that it generates unless it breaks; 0 for an empty one.
        faults: What goes wrong, by token.
        steps: Its chunks, in order; one pass.
    """

    tokens: int
    faults: dict[int, Fault]
    steps: Iterator[Step]


def script(behaviour: Behaviour, prompt: str, occurrence: int, tokens: int) -> Script:
    """Return what a stream goes through whose prompt comes for the `occurrence`-th time (from 0)."""
    source = random.Random(f"{behaviour.seed}|{zlib.crc32(prompt.encode())}|{occurrence}")  # noqa: S311 - a mock's dice
    faults = {fault.at_token: fault for fault in behaviour.faults}
    fate = _fate(behaviour, source.random())
    breaks_at = source.randrange(1, tokens) if tokens > 1 else 0
    if fate == "empty":
        return Script(0, {}, iter([Step(round(behaviour.ttft_ms * _MS), 0, 0)]))
    if fate is not None:
        faults[breaks_at] = Fault(fate, breaks_at)
    return Script(tokens, faults, _steps(behaviour, faults, source, tokens))


def _fate(behaviour: Behaviour, draw: float) -> Fate | None:
    for fate, rate in behaviour.rates:
        if draw < rate:
            return fate
        draw -= rate
    return None


def _steps(behaviour: Behaviour, faults: dict[int, Fault], source: random.Random, tokens: int) -> Iterator[Step]:
    ttft, itl, jitter = (value * _MS for value in (behaviour.ttft_ms, behaviour.itl_ms, behaviour.jitter_ms))
    size, stalled, latest = behaviour.tokens_per_chunk, 0.0, 0
    stalls = {at: fault.stall_ms * _MS for at, fault in faults.items() if fault.kind == "stall"}
    for first in range(0, tokens, size):
        count = min(size, tokens - first)
        if stalls:
            stalled += sum(stalls.get(index, 0.0) for index in range(first, first + count))
        offset = ttft + first * itl + stalled + (jitter * source.random() if jitter else 0)
        latest = max(latest, round(offset))
        yield Step(latest, first, count)


class TokenSource:
    """The tokens of one stream: the same for the same prompt, temperature and seed."""

    def __init__(self, prompt: str, temperature: float, seed: int | None) -> None:
        self._base = zlib.crc32(f"{prompt}|{temperature and seed}|".encode())

    def at(self, index: int) -> int:
        """Return the token id at a position."""
        return zlib.crc32(b"%d" % index, self._base) % VOCABULARY

    def replaced(self) -> "TokenSource":
        """Return another stream's tokens, as after a fault that changes the text."""
        other = TokenSource("", 0.0, None)
        other._base = zlib.crc32(b"another engine", self._base)
        return other


def read_fault(text: str) -> Fault:
    """Read `KIND:TOKEN` or `stall:TOKEN:MS`.

    Raises:
        ValueError: it is neither.
    """
    kind, *numbers = text.split(":")
    wanted = 2 if kind == "stall" else 1
    if kind not in get_args(FaultKind) or len(numbers) != wanted:
        raise ValueError(
            f"fault {text!r}: give KIND:TOKEN, or stall:TOKEN:MS; KIND is one of {', '.join(get_args(FaultKind))}"
        )
    token, ms = _numbers(f"fault {text!r}", numbers)
    return Fault(cast("FaultKind", kind), int(token), ms)


def read_stall(text: str) -> Fault | TimedStall:
    """Read `TOKEN:MS`, before that token of every stream, or `SECONDSs:MS`, so long after the first request.

    Raises:
        ValueError: it is neither.
    """
    where, _, ms_text = text.partition(":")
    at, ms = _numbers(f"stall {text!r}: give TOKEN:MS or SECONDSs:MS", [where.removesuffix("s"), ms_text])
    if where.endswith("s"):
        return TimedStall(at, ms)
    if at != int(at):
        raise ValueError(f"stall {text!r}: a token has a whole number; for seconds write {where}s:{ms_text}")
    return Fault("stall", int(at), ms)


def _numbers(where: str, texts: Sequence[str]) -> tuple[float, float]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not all(0 <= number < float("inf") for number in numbers):
        raise ValueError(f"{where}: a number is below 0 or not finite")
    return numbers[0], numbers[1] if len(numbers) > 1 else 0.0
