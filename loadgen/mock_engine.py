"""The make-believe engine of the mock server: deterministic tokens at a steady rhythm, and faults on order.

Everything a client should measure is a setting here, so that a measurement can be compared with the truth. The token
at position i of a stream depends on prompt, temperature and seed alone, as with a real engine that samples per request.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

VOCABULARY = 49152

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


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at the token with index `at_token` of every stream."""

    kind: FaultKind
    at_token: int
    stall_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the mock server behaves.

    Attributes:
        first_token_ms: Time to first token.
        token_ms: Time between two chunks.
        tokens_per_chunk: Tokens in one chunk.
        fault: What goes wrong in every stream.
        change_fault: What goes wrong once, in the first stream that generates after a change's cutover, at its next
            token (`at_token` is ignored).
        change_ms: Length of a change before its cutover.
        change_stall_ms: How long all streams stand still at the cutover.
        change_outcome: Whether changes are committed, aborted, refused, or never end.
        send_token_ids: Whether chunks carry token ids when asked for.
        refuse_status: HTTP status that completions are refused with; 0 to serve.
    """

    first_token_ms: float = 5.0
    token_ms: float = 2.0
    tokens_per_chunk: int = 1
    fault: Fault | None = None
    change_fault: FaultKind | None = None
    change_ms: float = 20.0
    change_stall_ms: float = 50.0
    change_outcome: Literal["commit", "abort", "refuse", "hang"] = "commit"
    send_token_ids: bool = True
    refuse_status: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """One chunk to send: token ids, or a fault that the HTTP layer has to act out."""

    token_ids: tuple[int, ...]
    fault: FaultKind | None = None


def token_at(prompt: str, temperature: float, seed: int | None, index: int) -> int:
    """Return the token id at a position of a stream."""
    source = f"{prompt}|{temperature and seed}|{index}"
    return zlib.crc32(source.encode()) % VOCABULARY


class MockEngine:
    """Generates streams; `hold` and `release` stop and resume all of them, as a cutover does."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pending_fault: FaultKind | None = None

    def hold(self) -> None:
        """Stop all streams before their next chunk."""
        self._flowing.clear()

    def release(self) -> None:
        """Let all streams go on."""
        self._pending_fault = self.behaviour.change_fault
        self._flowing.set()

    async def generate(self, prompt: str, temperature: float, seed: int | None, max_tokens: int) -> AsyncIterator[Sent]:
        """Yield the chunks of one stream."""
        salt, index = "", 0
        while index < max_tokens:
            await asyncio.sleep((self.behaviour.token_ms if index else self.behaviour.first_token_ms) / 1e3)
            await self._flowing.wait()
            ids = []
            for position in range(index, min(index + self.behaviour.tokens_per_chunk, max_tokens)):
                token = token_at(salt + prompt, temperature, seed, position)
                match self._fault_at(position):
                    case None:
                        ids.append(token)
                    case Fault("stall", stall_ms=stall_ms):
                        await asyncio.sleep(stall_ms / 1e3)
                        ids.append(token)
                    case Fault("lose"):
                        pass
                    case Fault("repeat"):
                        ids += [token, token]
                    case Fault("replace"):
                        salt = "another engine"
                        ids.append(token_at(salt + prompt, temperature, seed, position))
                    case fault:
                        yield Sent(tuple(ids), fault.kind)
                        ids = [token]
            if ids:
                yield Sent(tuple(ids))
            index += self.behaviour.tokens_per_chunk

    def _fault_at(self, position: int) -> Fault | None:
        if self._pending_fault is not None:
            kind, self._pending_fault = self._pending_fault, None
            return Fault(kind, position)
        fault = self.behaviour.fault
        return fault if fault is not None and fault.at_token == position else None
