"""A node on another host: what `runtime.warm.node_daemon` keeps there, asked for over the hosts' gateways."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.migration.stop_rule import CopyRound
from runtime.transport.channel import ChannelError
from runtime.transport.gateway import NODE
from runtime.warm.node import NodeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    from runtime.transport.calls import Calls
    from runtime.transport.gateway import Gateway
    from runtime.warm.kv_pool import KVPoolShape
    from runtime.warm.model_fetch import ModelOrder
    from runtime.warm.node import KVCopy, Node

_ANSWER_S = 60.0
_LOOK_AGAIN_S = 0.5


class RemoteNode:
    """One node of pipeline `pipeline` on the host of the same name.

    Args:
        name: of the node and its host.
        pipeline: whose state is meant.
        gateway: the way there.
        calls: whose answers come back to this pipeline's head.

    """

    def __init__(self, name: str, pipeline: str, gateway: Gateway, calls: Calls) -> None:
        self.name = self.host = name
        self._pipeline, self._gateway, self._calls = pipeline, gateway, calls
        self.boot: str | None = None  # of the node runtime that hosts this pipeline
        self.lost: str | None = None  # why nobody should be asked there at the moment

    def call(self, method: str, timeout_s: float = _ANSWER_S, /, **arguments: Any) -> Any:
        """Call the node runtime.

        Raises:
            NodeError: it refused, failed, is gone, or did not answer in time.

        """
        if self.lost is not None:
            raise NodeError(f"node {self.name} is lost: {self.lost}")
        number, future = self._send(method, arguments)
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            self._calls.forget(number)
            raise NodeError(f"node {self.name} did not answer {method!r} within {timeout_s:g} s") from error
        except self._calls.error as error:
            raise NodeError(str(error)) from error

    def _send(self, method: str, arguments: dict[str, Any]) -> tuple[int, Future[Any]]:
        return self._calls.send(
            self.host,
            lambda frame, buffers: self._gateway.send(self.host, NODE, frame, buffers),
            method,
            {"pipeline": self._pipeline, **arguments},
        )

    def tell(self, method: str, /, **arguments: Any) -> None:
        """Call the node runtime without waiting for what it answers."""
        if self.lost is None:
            self._send(method, arguments)

    def wait_reachable(self, timeout_s: float) -> None:
        """Wait until the node runtime can be reached; raises ChannelError when `timeout_s` seconds passed first."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._gateway.greet(self.host)
            except ChannelError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_LOOK_AGAIN_S)
            else:
                return

    def close(self) -> None:
        """Have the pipeline hosted no more. Does not wait."""
        self._send("close", {})

    def open(self, hosts: Sequence[str], engine: bytes, model: ModelOrder | None, timeout_s: float) -> dict[str, Any]:
        """Have the pipeline of these hosts hosted, with what its zygote needs; returns what the zygote has to say."""
        plain = msgspec.to_builtins(model)
        facts: dict[str, Any] = self.call("open", timeout_s, hosts=list(hosts), engine=engine, model=plain)
        self.boot = facts["boot"]
        return facts

    def resume(
        self,
        hosts: Sequence[str],
        engine: bytes,
        model: ModelOrder | None,
        shape: KVPoolShape,
        layers: Sequence[int],
        timeout_s: float,
    ) -> dict[str, Any]:
        """Go on, after the node was lost, with the weights and the KV of `layers` that it still has.

        All stages of before are gone then, and the KV of all other layers.

        Returns:
            kept_tokens: how many tokens, of all layers, are still there.
            restarted: whether another node runtime has taken over since.
            refused: why it cannot go on; None when it can.

        Raises:
            NodeError: it could not be asked.

        """
        facts: dict[str, Any] = self.call(
            "resume",
            timeout_s,
            hosts=list(hosts),
            engine=engine,
            model=msgspec.to_builtins(model),
            shape=msgspec.to_builtins(shape),
            layers=list(layers),
        )
        if facts["refused"] is not None:
            return facts
        before, self.boot = self.boot, facts["boot"]
        return {**facts, "restarted": before != self.boot}

    def reserve(self, shape: KVPoolShape, layers: int) -> None:
        """Make a pool of this shape unless there is one, and room for `layers` of its layers to be in use at once."""
        self.call("reserve", shape=msgspec.to_builtins(shape), layers=layers)

    def start(self, stage: str, orders: bytes, precision: str = "") -> int:  # noqa: ARG002 - it has only the head's
        """Fork a stage process and return its pid there."""
        try:
            pid: int = self.call("start", stage=stage, orders=orders)
        except NodeError:
            self.kill(stage)  # it may come late
            raise
        return pid

    def kill(self, stage: str) -> None:
        """End a stage process. Does not wait."""
        self.tell("kill", stage=stage)

    def scrub(self, layers: Sequence[int]) -> None:
        """Erase the KV of some layers."""
        self.call("scrub", layers=list(layers))

    def copy_blocks(self, moved: Mapping[int, int]) -> None:
        """Copy blocks to others, by old and new number."""
        self.call("copy_blocks", moved=dict(moved))

    def give_back(self, first: int) -> None:
        """Erase the blocks from `first` on."""
        self.call("give_back", first=first)

    def copy_to(self, target: Node, copy: str, layers: Sequence[int]) -> KVCopy:
        """Begin to copy layers to another node, which has been told to expect them."""
        self.call("copy_begin", copy=copy, layers=list(layers), host=target.host)
        return _RemoteCopy(self, copy)

    def allow_copy(self, copy: str, source_host: str) -> None:
        """Take the KV that another host sends."""
        self.call("copy_allow", copy=copy, host=source_host)

    def forget_copy(self, copy: str) -> None:
        """Take it no longer."""
        self.call("copy_forget", copy=copy)


class _RemoteCopy:
    """A copy that another host sends."""

    def __init__(self, source: RemoteNode, copy: str) -> None:
        self._source, self._copy = source, copy

    def round(self) -> CopyRound:
        return CopyRound(*self._source.call("copy_round", 600.0, copy=self._copy))

    def stale_bytes(self) -> int:
        stale: int = self._source.call("copy_stale", copy=self._copy)
        return stale

    def finish(self) -> tuple[int, Mapping[int, int]]:
        sent, differing = self._source.call("copy_finish", 600.0, copy=self._copy)
        return sent, differing

    def pace(self, bytes_per_second: float | None) -> None:
        self._source.tell("copy_pace", copy=self._copy, bytes_per_second=bytes_per_second)

    def stop(self) -> None:
        self._source.call("copy_stop", copy=self._copy)

    def end(self) -> None:
        self._source.call("copy_end", copy=self._copy)
