"""The pipelines on this machine, by name, and the one lock of a node runtime.

A pipeline is here from `settle` to `remove`. What it had then may still be given back for a moment, but nobody finds
it any more. Once the table is shut nothing is settled.

``lock`` guards the table, what the pipelines in it say of themselves (`runtime.warm.hosted_pipeline`), the models
(`runtime.warm.warm_models`) and the leases (`runtime.warm.head_leases`): whether a model may be let go, or a lease
begins, depends on all of them at once. It is reentrant. Whoever ends or loads something does so without it: ends of
stages may have to be heard of meanwhile.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.transport.address import Neighbourhood
from runtime.warm.hosted_pipeline import HostedPipeline
from runtime.warm.node import LocalNode, NodeError, OnlyZygote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.migration.kv_transfer import KVExchange
    from runtime.warm.kv_pool import KVPoolShape
    from runtime.warm.zygote import Zygote


class PipelineTable:
    """See the module. Thread-safe, but for `settle`.

    Args:
        node: the name of this one.
        folder: where the folders with the stages' sockets are made.
        exchange: the way to heads and other nodes.
        numbers: make the names of stages unique; models are named by them as well.
        log: takes (event, details...).

    """

    def __init__(
        self, node: str, folder: str, exchange: KVExchange, numbers: Iterator[int], log: Callable[..., None]
    ) -> None:
        self.node = node
        self.lock = threading.RLock()
        self._folder, self._exchange, self._numbers, self._log = folder, exchange, numbers, log
        self._hosted: dict[str, HostedPipeline] = {}
        self._shut = False

    def get(self, name: str) -> HostedPipeline | None:
        """Return a pipeline; None if it is not here."""
        with self.lock:
            return self._hosted.get(name)

    def all(self) -> list[HostedPipeline]:
        """Return those that are here now."""
        with self.lock:
            return list(self._hosted.values())

    def kv_bytes(self) -> int:
        """Return how much memory is promised for the KV of all of them."""
        with self.lock:
            return sum(hosted.kv_bytes for hosted in self._hosted.values())

    def settle(
        self,
        pipeline: str,
        head: str,
        hosts: frozenset[str],
        weights: bytes,
        zygote: Zygote,
        left: tuple[int, KVPoolShape] | None = None,
    ) -> HostedPipeline:
        """Make a place for a pipeline, empty or with the pool that it has left. Called by one thread at a time."""
        number = next(self._numbers)
        prefix = f"{pipeline}.{number}/"
        folder = str(Path(self._folder) / str(number))  # the last one's may not be gone yet
        home = Neighbourhood(self.node, pipeline, folder, self._folder, hosts)
        with self.lock:
            if self._shut:
                raise NodeError(f"node {self.node} is ending")
            Path(folder).mkdir(mode=0o700)
            node = LocalNode(self.node, OnlyZygote(zygote), home, self._exchange, prefix, left)
            hosted = HostedPipeline(
                pipeline, head, hosts, weights, node, folder, prefix, self.lock, self._exchange, self._log
            )
            self._hosted[pipeline] = hosted
        return hosted

    def remove(self, hosted: HostedPipeline) -> bool:
        """Take a pipeline out of the table; False if somebody else has."""
        with self.lock:
            if hosted.closed:
                return False
            del self._hosted[hosted.name]
            hosted.closed = True
        return True

    def shut(self) -> list[HostedPipeline]:
        """Settle nothing any more; returns what is here."""
        with self.lock:
            self._shut = True
            return list(self._hosted.values())

    def on_stage_exit(self, key: str, status: int) -> None:
        """React to the end of a stage, by its name in the zygote."""
        prefix, slash, stage = key.partition("/")
        hosted = next((one for one in self.all() if one.prefix == prefix + slash), None)
        if hosted is not None:
            hosted.stage_exited(stage, status)
