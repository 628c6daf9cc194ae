"""What a node keeps for one pipeline while stages come and go: the KV pool, and the zygote that has the weights.

A node is a part of a pipeline's layout (``8@edge-1``). It is either on this host (`LocalNode`, several may share a
zygote) or on another one, where a node runtime keeps the same for us (`runtime.warm.remote_node`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from runtime.migration.kv_transfer import KVSender
from runtime.migration.precopy import PreCopy
from runtime.transport.address import Neighbourhood
from runtime.warm.kv_pool import KVPool, KVPoolShape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.migration.kv_transfer import KVExchange
    from runtime.migration.stop_rule import CopyRound
    from runtime.warm.zygote import Zygote


class NodeError(RuntimeError):
    """A node cannot do what it was asked for, or is gone; the message says what would help."""


class StagePayload(msgspec.Struct, frozen=True):
    """What a forked stage gets: where it is, and its orders, which only it understands."""

    home: Neighbourhood
    orders: bytes


class KVCopy(Protocol):
    """The copying of some layers from one node to another."""

    def round(self) -> CopyRound:
        """Copy everything that is stale now, once."""

    def stale_bytes(self) -> int:
        """Bytes that a round would send now."""

    def finish(self) -> tuple[int, Mapping[int, int]]:
        """Copy what is stale, now that nothing writes any more; returns the bytes, and what differs then (I2)."""

    def pace(self, bytes_per_second: float | None) -> None:
        """Copy at most so many bytes per second from now on, also in a round that is under way; None for no limit."""

    def stop(self) -> None:
        """Let a round that is under way fail soon."""

    def end(self) -> None:
        """Nothing more is copied."""


class Zygotes(Protocol):
    """What forks the stages of one model: a zygote for each precision of its weights."""

    def of(self, precision: str) -> Zygote:
        """Return the one that has the weights in a precision; raises ZygoteError when there is none."""

    def kill(self, key: str) -> None:
        """End a process that one of them has forked; nothing happens if it has ended."""


@dataclass(frozen=True, slots=True)
class OnlyZygote:
    """A zygote of weights that are in one precision, whatever it is called."""

    zygote: Zygote

    def of(self, precision: str) -> Zygote:  # noqa: ARG002 - whoever asks knows that there is only one
        """Return the zygote."""
        return self.zygote

    def kill(self, key: str) -> None:
        """End a process that it has forked."""
        self.zygote.kill(key)


class Node(Protocol):
    """One node of one pipeline. Errors are NodeError, KVPoolError, ZygoteError, CallError or ChannelError."""

    name: str
    host: str

    def reserve(self, shape: KVPoolShape, layers: int) -> None:
        """Make a pool of this shape unless there is one, and room for `layers` of its layers to be in use at once."""

    def start(self, stage: str, orders: bytes, precision: str = "") -> int:
        """Fork a stage process with weights in a precision and return its pid on its host."""

    def kill(self, stage: str) -> None:
        """End a stage process; nothing happens if it has ended."""

    def scrub(self, layers: Sequence[int]) -> None:
        """Erase the KV of some layers."""

    def copy_blocks(self, moved: Mapping[int, int]) -> None:
        """Copy blocks to others, by old and new number."""

    def give_back(self, first: int) -> None:
        """Erase the blocks from `first` on; they cost nothing any more."""

    def copy_to(self, target: Node, copy: str, layers: Sequence[int]) -> KVCopy:
        """Begin to copy layers to another node."""

    def allow_copy(self, copy: str, source_host: str) -> None:
        """Take the KV that another host sends in the name of `copy`."""

    def forget_copy(self, copy: str) -> None:
        """Take it no longer."""


class LocalNode:
    """A node on this host.

    Args:
        name: in layouts.
        zygotes: fork its stages.
        home: where their sockets are.
        exchange: with the KV of other hosts; None where there is no way to them.
        prefix: precedes the names of its stages in the zygote, where those of other pipelines may be.
        left: the memory file and the shape of a pool that is there already.

    """

    def __init__(
        self,
        name: str,
        zygotes: Zygotes,
        home: Neighbourhood,
        exchange: KVExchange | None = None,
        prefix: str = "",
        left: tuple[int, KVPoolShape] | None = None,
    ) -> None:
        self.name, self.host = name, home.host
        self._zygotes, self._home, self._exchange, self._prefix = zygotes, home, exchange, prefix
        self._lock = threading.Lock()  # while the descriptor is used
        self._closed = False
        self._descriptor = KVPool.new_descriptor(name) if left is None else left[0]
        self._pool = KVPool(*left) if left is not None else None
        self._allowed: set[str] = set()  # copies that come from other hosts

    @property
    def pool(self) -> KVPool:
        """The node's KV pool."""
        if self._pool is None:
            raise NodeError(f"no KV pool was reserved on node {self.name}")
        return self._pool

    def reserve(self, shape: KVPoolShape, layers: int) -> None:  # noqa: ARG002 - this host has no budget of its own
        """Make a pool of this shape unless there is one."""
        with self._lock:
            self._check_open()
            if self._pool is None or self._pool.shape != shape:
                self._pool = KVPool.reserve(self._descriptor, shape)

    def descriptor(self) -> int:
        """Return the descriptor of the pool's memory file, to be duplicated; raises NodeError when it is given back."""
        self._check_open()
        return self._descriptor

    def start(self, stage: str, orders: bytes, precision: str = "") -> int:
        """Fork a stage process with weights in a precision and return its pid."""
        home = self._home
        payload = msgspec.msgpack.encode(StagePayload(home, orders))
        with self._lock:
            self._check_open()
            try:
                if self._exchange is not None:
                    self._exchange.gateway.admit(home.pipeline, stage, home.inbox(stage), home.peers)
                return self._zygotes.of(precision).fork(self._prefix + stage, payload, [self._descriptor])
            except Exception:
                self.ended(stage)
                raise

    def _check_open(self) -> None:
        if self._closed:
            raise NodeError(f"pipeline {self._home.pipeline} was closed on node {self.name}")

    def ended(self, stage: str) -> None:
        """Clean up after a stage process that has ended."""
        clean_up_after(stage, self._home, self._exchange)

    def kill(self, stage: str) -> None:
        """End a stage process."""
        self._zygotes.kill(self._prefix + stage)

    def scrub(self, layers: Sequence[int]) -> None:
        """Erase the KV of some layers."""
        for layer in layers:
            self.pool.scrub(range(layer, layer + 1))

    def copy_blocks(self, moved: Mapping[int, int]) -> None:
        """Copy blocks to others, by old and new number."""
        self.pool.copy_blocks(moved)

    def give_back(self, first: int) -> None:
        """Erase the blocks from `first` on."""
        self.pool.give_back(first)

    def copy_to(self, target: Node, copy: str, layers: Sequence[int]) -> KVCopy:
        """Begin to copy layers to another node, which has been told to expect them if it is on another host."""
        if isinstance(target, LocalNode):
            return PreCopy(self.pool, target.pool, tuple(layers))
        return self.send_to(target.host, copy, layers)

    def send_to(self, host: str, copy: str, layers: Sequence[int]) -> KVSender:
        """Begin to copy layers to another host."""
        if self._exchange is None:
            raise NodeError(f"host {self.host} has no way to other hosts; start it with --listen")
        return KVSender(copy, self.pool, layers, self._exchange.gateway, host, self._exchange.calls)

    def allow_copy(self, copy: str, source_host: str) -> None:
        """Take the KV that another host sends."""
        if self._exchange is not None and source_host != self.host:
            self._exchange.receiver.allow(copy, source_host, self.pool)
            self._allowed.add(copy)

    def forget_copy(self, copy: str) -> None:
        """Take it no longer."""
        if self._exchange is not None and copy in self._allowed:
            self._allowed.discard(copy)
            self._exchange.receiver.forget(copy)

    def forget_copies(self) -> None:
        """Take no KV from other hosts any more."""
        for copy in list(self._allowed):
            self.forget_copy(copy)

    def warm_bytes(self) -> int:
        """Return how much memory the KV of this pipeline takes."""
        return self._pool.touched_bytes() if self._pool else 0

    def close(self) -> None:
        """Give the KV back; nothing is started any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._pool = None
            os.close(self._descriptor)
        self.forget_copies()


def clean_up_after(stage: str, home: Neighbourhood, exchange: KVExchange | None) -> None:
    """Remove the traces of a stage process that has ended: its way in from other hosts, its socket."""
    if exchange is not None:
        exchange.gateway.dismiss(home.pipeline, stage)
    with contextlib.suppress(OSError):
        os.unlink(home.inbox(stage).removeprefix("ipc://"))
