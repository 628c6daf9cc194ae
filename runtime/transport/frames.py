"""The messages between head and stages, and how they become bytes.

A message is a ZeroMQ multipart: one msgpack header (a tagged struct of this module, decoded strictly) followed by
the raw buffers that the header announces. Nothing is ever unpickled, and a header of an unknown kind, with a missing
or mistyped field, or with the wrong number of buffers is rejected as a whole (invariant I8).

::

    head ----- Batch ----> every stage of the chain, which prepares it while the stages before it compute
               stage 0 --- Hidden ---> stage 1 --- Hidden ---> ... ---> last stage
    head <----------------------------- Result ----------------------------+
    head <---- Rejected ---- any stage            (a frame of an epoch that it has no route for)
    head ----- Call -------> any stage, any node  (control: prepare, bind, route, release; start, copy)
    head <---- Reply ------- any stage, any node
    head <---- Ended ------- any node             (a stage process of it has ended)
    head <---- Lost -------- any node             (it has lost the way to another host)
    node ----- KVTokens ---> another node         (KV on its way, `runtime.migration.precopy`)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    Buffer = bytes | bytearray | memoryview


PROBE = 0
"""Sequence of the batch of nothing that checks a chain from end to end; real batches count from 1."""


class FrameError(ValueError):
    """A message that must not be acted on: unknown kind, malformed header, or buffers that do not match it."""


class TensorMeta(msgspec.Struct, frozen=True):
    """What a raw tensor buffer holds: `dtype` is torch's name without the prefix, such as ``float32``."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class StageSpan(msgspec.Struct, frozen=True):
    """When a stage computed a batch, in nanoseconds of CLOCK_MONOTONIC (one clock for all processes of a machine).

    It starts when the stage has the hidden states of the stage before it; what it prepared until then is not in it.
    """

    stage: str
    start_ns: int
    end_ns: int


class Batch(msgspec.Struct, tag="batch", frozen=True):
    """One scheduled batch for all stages of the chain of `epoch`; the buffers hold the engine's own encoding.

    A batch without buffers is a probe: it passes through the chain, as number `PROBE`, and is computed by nobody.
    """

    epoch: int
    sequence: int
    buffers: int


class Hidden(msgspec.Struct, tag="hidden", frozen=True):
    """What a stage computed of a batch, for the next stage: one raw buffer per entry of `tensors`."""

    epoch: int
    sequence: int
    tensors: tuple[TensorMeta, ...] = ()
    spans: tuple[StageSpan, ...] = ()

    @property
    def buffers(self) -> int:
        """Return how many buffers follow the header."""
        return len(self.tensors)


class Result(msgspec.Struct, tag="result", frozen=True):
    """What the last stage made of a batch; the buffers hold the engine's own encoding of its output."""

    epoch: int
    sequence: int
    buffers: int
    spans: tuple[StageSpan, ...] = ()


class Rejected(msgspec.Struct, tag="rejected", frozen=True):
    """A stage refused or could not compute a batch; nothing of it was forwarded."""

    stage: str
    epoch: int
    sequence: int
    reason: str
    buffers: int = 0


class Call(msgspec.Struct, tag="call", frozen=True):
    """A control call to one stage; the one buffer holds the msgpack-encoded arguments."""

    call: int
    method: str
    buffers: int = 1


class Reply(msgspec.Struct, tag="reply", frozen=True):
    """The answer to a `Call`; the one buffer holds the msgpack-encoded result unless there is an `error`."""

    stage: str
    call: int
    error: str | None = None
    buffers: int = 1


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """A stage process of a node has ended; `status` is its exit code, negative for a signal."""

    stage: str
    status: int
    buffers: int = 0


class Lost(msgspec.Struct, tag="lost", frozen=True):
    """A node has lost the way to another host; what was on it may be lost."""

    node: str
    host: str
    reason: str
    buffers: int = 0


class KVTokens(msgspec.Struct, tag="kv", frozen=True):
    """Tokens of a copy between nodes; the buffers are the entries and the payload of a `KVDelta`."""

    copy: str
    buffers: int = 2


Frame = Batch | Hidden | Result | Rejected | Call | Reply | Ended | Lost | KVTokens

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def pack(frame: Frame, buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the multipart message for `frame` and its buffers.

    Raises:
        FrameError: the number of buffers is not what the header announces (a bug of the sender).

    """
    if len(buffers) != frame.buffers:
        raise FrameError(f"{type(frame).__name__} announces {frame.buffers} buffers, but got {len(buffers)}")
    return [_encoder.encode(frame), *buffers]


def unpack(parts: Sequence[Buffer]) -> tuple[Frame, Sequence[Buffer]]:
    """Read a multipart message.

    Raises:
        FrameError: the message must be dropped; the text says why.

    """
    if not parts:
        raise FrameError("empty message")
    try:
        frame = _decoder.decode(parts[0])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"not a frame of this protocol: {error}") from error
    buffers = parts[1:]
    if len(buffers) != frame.buffers:
        raise FrameError(f"{type(frame).__name__} announces {frame.buffers} buffers, but {len(buffers)} came")
    expected = _buffers_of(frame)
    if expected is not None and frame.buffers != expected:
        raise FrameError(f"a {type(frame).__name__} has {expected} buffers, not {frame.buffers}")
    return frame, buffers


def _buffers_of(frame: Frame) -> int | None:
    """Return how many buffers a frame must have; None where it says so itself."""
    match frame:
        case Call():
            return 1
        case Reply():
            return 1 if frame.error is None else 0
        case KVTokens():
            return 2
        case Ended() | Lost() | Rejected():
            return 0
    return None
