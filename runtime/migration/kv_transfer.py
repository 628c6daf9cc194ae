"""KV from the pool of one host to that of another, in rounds, over the hosts' bulk link.

::

    source                                                   target
      Call kv_expect(copy, layers, layout) ------------------> makes room (`KVTarget`), or refuses
      <------------------------------------------------ Reply
      KVTokens, KVTokens, ... -------------------------------> applied as they come
      Call kv_applied(copy) ---------------------------------> answered when all before it is applied
      <---------------------------- Reply(bytes, or the error)
      at the cutover, on the link of batches:
      KVTokens, Call kv_compare(copy) + tables --------------> I2: both sides' watermarks and generations
      <--------------------------------------- Reply(mismatches)

A round travels on one link, so a call is answered after what was sent before it. What a target has not been told
to expect, or not from that peer, is refused and the peer cut off. A target that fails to apply something remembers the
first error and answers it; memory is bounded by the link's queue on one side and by nothing but the pool on the other.
When the link breaks, tokens that count as sent may be lost: the copy has failed, and has to be begun anew.
"""

from __future__ import annotations

import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from runtime.migration.precopy import KVDelta, KVSource, KVTarget
from runtime.migration.stop_rule import CopyRound
from runtime.transport.calls import CallError, Calls
from runtime.transport.channel import ChannelError
from runtime.transport.frames import Call, FrameError, KVTokens, Reply
from runtime.transport.gateway import HELLO, NODE
from runtime.warm.kv_pool import KVPoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.transport.frames import Buffer, Frame
    from runtime.transport.gateway import Gateway
    from runtime.warm.kv_pool import KVPool

_ANSWER_S = 60.0
_AT_ONCE_BYTES = 1 << 20


class KVSender:
    """The sending side of one copy.

    Args:
        copy: its name, unique between the two hosts.
        pool, layers: what moves.
        gateway, host: the way to the target.
        calls: of this host's node runtime, whose answers come back there.

    """

    def __init__(
        self, copy: str, pool: KVPool, layers: Sequence[int], gateway: Gateway, host: str, calls: Calls
    ) -> None:
        self.copy = copy
        self.layers = tuple(layers)
        self._pool = pool
        self._gateway, self._host, self._calls = gateway, host, calls
        self._source = KVSource(pool, layers)
        self._sent_bytes = 0
        self._stopped = self._urgent = self._hurries = False
        self._wanted_pace: float | None = None
        self._waits_for: int | None = None  # the number of the call that a round waits for
        self._breaks = gateway.bulk_breaks(host)
        self._call("kv_expect", layers=list(layers), layout=self._source.layout_digest)

    def stale_bytes(self) -> int:
        """Bytes that a round would send now."""
        return self._source.stale_bytes()

    def pace(self, bytes_per_second: float | None) -> None:
        """Send at most so many bytes per second from now on; None for as many as possible."""
        self._wanted_pace = bytes_per_second
        self._set_pace()

    def _set_pace(self) -> None:
        self._gateway.pace_bulk(self._host, self.copy, None if self._hurries else self._wanted_pace)

    def round(self) -> CopyRound:
        """Send everything that is stale now and wait until it is applied.

        A little is sent without regard to the pace: it is over in no time, and its time tells what the link carries.

        Raises:
            CallError: the target refused, failed or is gone.
            ChannelError: the link is down.

        """
        self._hurries = self.stale_bytes() <= _AT_ONCE_BYTES
        self._set_pace()
        started = time.perf_counter()
        sent = 0
        self._check()
        for delta in self._source.deltas():
            self._check()
            buffers = [delta.entries.data.cast("B"), delta.payload.data.cast("B")]
            self._send(KVTokens(self.copy), buffers)
            sent += delta.payload.nbytes
        self._sent_bytes += sent
        if sent and not self._urgent:
            applied = self._call("kv_applied")
            self._check()
            if applied != self._sent_bytes:
                raise CallError(f"{self._host} has applied {applied} of the {self._sent_bytes} bytes of {self.copy!r}")
        return CopyRound(sent, time.perf_counter() - started, self.stale_bytes())

    def finish(self) -> tuple[int, dict[int, int]]:
        """Send what is stale, now that nothing writes any more, and compare both sides (I2).

        Takes the way of batches, of which there are none at the moment: without the limits of the bulk link.

        Returns:
            Bytes sent, and {layer: blocks that differ}.

        Raises:
            CallError, ChannelError: as `round`.

        """
        self._urgent = True
        return self.round().sent_bytes, self.mismatches()

    def mismatches(self) -> dict[int, int]:
        """Compare both sides' tables (I2): {layer: blocks that differ}."""
        self._check()
        differing: dict[int, int] = self._call("kv_compare", tables=self._source.tables().tobytes())
        return differing

    def stop(self) -> None:
        """Let a round that is under way fail, and every later one."""
        self._stopped = True
        self.pace(None)
        number = self._waits_for
        if number is not None:
            self._calls.cancel(number, self._why_stopped())

    def end(self) -> None:
        """Tell the target that nothing more comes."""
        self.pace(None)
        self._call("kv_end")

    def _check(self) -> None:
        if self._stopped:
            raise CallError(self._why_stopped())
        if self._gateway.bulk_breaks(self._host) != self._breaks:
            raise CallError(f"copy {self.copy!r} has failed: the bulk link to {self._host} broke, and tokens with it")

    def _send(self, frame: Frame, buffers: Sequence[Buffer]) -> None:
        if self._urgent:
            self._gateway.send(self._host, NODE, frame, buffers)
        else:
            self._gateway.send_bulk(self._host, frame, buffers)

    def _why_stopped(self) -> str:
        return f"copy {self.copy!r} was stopped"

    def _call(self, method: str, **arguments: Any) -> Any:
        number, future = self._calls.send(
            self._host,
            self._send,
            method,
            {"copy": self.copy, **arguments},
        )
        if method == "kv_applied":
            self._waits_for = number
            if self._stopped:
                self._calls.cancel(number, self._why_stopped())
        try:
            return future.result(_ANSWER_S)
        except TimeoutError as error:
            self._calls.forget(number)
            raise CallError(f"{self._host} did not answer {method!r} within {_ANSWER_S:g} s") from error
        finally:
            self._waits_for = None


class _Expectation(msgspec.Struct, frozen=True):
    """Arguments of ``kv_expect``."""

    copy: str
    layers: list[int]
    layout: bytes


class _Incoming:
    """One copy at its target: filled by the peer that announced it."""

    def __init__(self, peer: str, pool: KVPool) -> None:
        self.peer, self.pool = peer, pool
        self.target: KVTarget | None = None
        self.applied_bytes = 0
        self.error: str | None = None


class KVReceiver:
    """The receiving side of all copies to one host. Thread-safe: each copy is touched by the thread of its link only.

    A copy is *allowed* first, by whoever controls this host: from which peer, for which pool.
    """

    METHODS = frozenset({"kv_expect", "kv_applied", "kv_compare", "kv_end"})

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: dict[str, _Incoming] = {}

    def allow(self, copy: str, peer: str, pool: KVPool) -> None:
        """Let `peer` fill `pool` in the name of `copy`."""
        with self._lock:
            self._copies[copy] = _Incoming(peer, pool)

    def forget(self, copy: str) -> None:
        """Take nothing for a copy any more."""
        with self._lock:
            self._copies.pop(copy, None)

    def on_tokens(self, peer: str, frame: KVTokens, buffers: Sequence[Buffer]) -> None:
        """Apply tokens; raises FrameError for what was not to be expected."""
        incoming = self._find(frame.copy, peer)
        if incoming.target is None:
            raise FrameError(f"tokens of copy {frame.copy!r} came before it was announced")
        if incoming.error is not None:
            return
        try:
            entries = np.frombuffer(buffers[0], np.int32).reshape(-1, 5)
            incoming.applied_bytes += incoming.target.apply(KVDelta(entries, np.frombuffer(buffers[1], np.uint8)))
        except (KVPoolError, ValueError) as error:
            incoming.error = str(error)
            raise FrameError(f"copy {frame.copy!r}: {error}") from error

    def on_call(self, peer: str, method: str, arguments: dict[str, Any]) -> Any:
        """Answer a call of the source; what it raises is the answer. FrameError for what was not to be expected."""
        if method == "kv_end" and arguments.get("copy") not in self._copies:
            return None  # forgotten already, by whoever controls this host
        incoming = self._find(arguments.get("copy"), peer)
        if method == "kv_expect":
            expected = msgspec.convert(arguments, _Expectation)
            layers = expected.layers
            if (
                not layers
                or min(layers) < 0
                or max(layers) >= incoming.pool.shape.layers
                or len(set(layers)) < len(layers)
            ):
                raise FrameError(f"copy {expected.copy!r} is for layers {layers} of {incoming.pool.shape.layers}")
            incoming.target = KVTarget(incoming.pool, layers, expected.layout)
            return None
        if method == "kv_end":
            self.forget(arguments["copy"])
            return None
        if incoming.target is None:
            raise FrameError(f"{method} of copy {arguments['copy']!r} came before it was announced")
        if incoming.error is not None:
            raise KVPoolError(incoming.error)
        if method == "kv_applied":
            return incoming.applied_bytes
        if method == "kv_compare":
            shape = (2, len(incoming.target.layers), incoming.pool.shape.blocks)
            try:
                tables = np.frombuffer(arguments["tables"], np.int32).reshape(shape)
            except (KeyError, TypeError, ValueError) as error:
                raise FrameError(f"the tables of copy {arguments['copy']!r} are not {shape}: {error}") from error
            return incoming.target.mismatches(tables)
        raise FrameError(f"{method!r} is no call about a copy")

    def _find(self, copy: object, peer: str) -> _Incoming:
        with self._lock:
            incoming = self._copies.get(copy) if isinstance(copy, str) else None
        if incoming is None or incoming.peer != peer:
            raise FrameError(f"nobody told this host to expect copy {copy!r} from {peer}")
        return incoming


class KVExchange:
    """Both sides of one host, behind the ``node`` destination of its gateway.

    `gateway` is set once it is there: it hands what comes to `on_frame`.
    """

    gateway: Gateway

    def __init__(self, name: str) -> None:
        self._name = name
        self.calls = Calls()
        self.receiver = KVReceiver()

    def on_frame(self, peer: str, frame: Frame, buffers: Sequence[Buffer]) -> bool:
        """Take a frame if it is about a copy; False when it is not. Raises FrameError for what a peer must not send."""
        if isinstance(frame, KVTokens):
            self.receiver.on_tokens(peer, frame, buffers)
        elif isinstance(frame, Reply):
            self.calls.answered(frame, buffers, by=peer)
        elif isinstance(frame, Call) and frame.method in KVReceiver.METHODS:
            arguments = read_arguments(frame, buffers[0])
            answer(
                self.gateway,
                self._name,
                peer,
                NODE,
                frame,
                lambda: self.receiver.on_call(peer, frame.method, arguments),
            )
        else:
            return isinstance(frame, Call) and frame.method == HELLO  # nothing is to be done for that
        return True


def read_arguments(call: Call, raw: Buffer) -> dict[str, Any]:
    """Read a call's arguments; raises FrameError."""
    try:
        return msgspec.msgpack.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"unreadable arguments of {call.method!r}: {error}") from error


def answer(gateway: Gateway, name: str, peer: str, to: str, call: Call, work: Callable[[], object]) -> None:
    """Do what a peer asked for and send it what came of it. FrameError is raised: the peer is to be cut off."""
    try:
        reply, buffers = Reply(name, call.call), [msgspec.msgpack.encode(work())]
    except FrameError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is told to whoever asked
        traceback.print_exc()
        reply, buffers = Reply(name, call.call, f"{type(error).__name__}: {error}", 0), []
    try:
        gateway.send(peer, to, reply, buffers)
    except ChannelError as error:
        gateway.log("not answered", peer=peer, method=call.method, reason=str(error))
