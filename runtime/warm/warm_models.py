"""The models that are warm on this machine, and room for them and for KV.

Each model is a zygote that has the weights; pipelines of the same weights use the same one. It stays when nobody uses
it any more, until memory is needed: what was used least recently goes first.

Memory is promised before it is taken. Whoever wants some enters it, where everybody sees it, and then makes room, all
of it while holding ``promising``: what is promised to one must not be promised to another meanwhile. If that fails it
takes back what it has entered.

Locks: ``promising`` as above, and always first; the lock of the table guards which models there are, and who uses
them. Zygotes are loaded and ended without the latter: the ends of their stages may still have to be heard of.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import msgspec
import psutil

from runtime.warm.adoption import WarmModel
from runtime.warm.model_fetch import ModelFetch
from runtime.warm.node import NodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.migration.kv_transfer import KVExchange
    from runtime.warm.adoption import WarmState
    from runtime.warm.model_store import ModelStore
    from runtime.warm.order_arguments import OpenOrder
    from runtime.warm.pipeline_table import PipelineTable
    from runtime.warm.zygote import Zygote

PRELOAD_S = 600.0


class ModelPayload(msgspec.Struct, frozen=True):
    """What a model's zygote gets: the engine's configuration, and the folder with the files if not the one it names."""

    engine: bytes
    folder: str | None


class WarmModels:
    """See the module. Thread-safe, but for `load`.

    Args:
        warm: what is warm already, and keeps what becomes so.
        table: the pipelines, whose KV needs room as well.
        memory_bytes: the most that weights and KV may take; None for what the machine has.
        store: where files of models are kept that this machine does not have; None to use only those it has.
        exchange: the way to heads, which have the files.
        numbers: make the names of models unique.
        log: takes (event, details...).

    """

    def __init__(
        self,
        warm: WarmState,
        table: PipelineTable,
        memory_bytes: int | None,
        store: ModelStore | None,
        exchange: KVExchange,
        numbers: Iterator[int],
        log: Callable[..., None],
    ) -> None:
        self._warm, self._table, self._memory_bytes, self._log = warm, table, memory_bytes, log
        self._store, self._exchange, self._numbers = store, exchange, numbers
        self._lock = table.lock
        self._models = dict(warm.models)  # by the name of their weights
        self.promising = threading.Lock()

    def __len__(self) -> int:
        """Return how many there are."""
        with self._lock:
            return len(self._models)

    def get(self, weights: bytes) -> WarmModel | None:
        """Return the model with these weights, whether its zygote is alive or not; None if there is none."""
        with self._lock:
            return self._models.get(weights)

    def use(self, weights: bytes, pipeline: str) -> WarmModel | None:
        """Return the model with these weights, which nobody lets go of from now on; None if it has to be loaded."""
        with self._lock:
            model = self._models.get(weights)
            if model is not None and not model.zygote.alive:
                del self._models[weights]
                model = None
            if model is not None:
                model.users.add(pipeline)
        return model

    def adopted(self, weights: bytes, pipeline: str) -> WarmModel:
        """Return a model that the last node runtime has left for a pipeline, which uses it from now on."""
        with self._lock:
            model = self._models[weights]
            model.users.add(pipeline)
        return model

    def load(self, order: OpenOrder, head: str) -> WarmModel:
        """Get the model's files and fork a zygote that loads them, for a pipeline. Called by one thread at a time."""
        key = f"model-{next(self._numbers)}"
        folder: Path | None = None
        fetch = (
            ModelFetch(self._store, self._exchange.gateway, self._exchange.calls) if self._store is not None else None
        )
        zygote: Zygote | None = None
        try:
            if order.model is not None and fetch is not None:
                folder, fetched = fetch.folder(head, order.model, key)
                self._log("model files ready", model=order.model.files.name, folder=folder, fetched_bytes=fetched)
            payload = msgspec.msgpack.encode(ModelPayload(order.engine, str(folder) if folder else None))
            zygote = self._warm.load(key, payload)
            facts = zygote.wait_ready(PRELOAD_S)
            model = WarmModel(key, zygote, facts, _private_bytes(zygote.pid))
            model.users.add(order.pipeline)
            with self.promising:
                with self._lock:
                    self._models[order.key] = model
                self.make_room()
            self._warm.keep_model(order.key, model)
        except Exception:
            with self._lock:
                self._models.pop(order.key, None)
            if zygote is not None:
                zygote.close()
            raise
        finally:
            if fetch is not None:
                fetch.release(key)  # what is loaded needs its files no more
        return model

    def done(self, weights: bytes, pipeline: str) -> None:
        """Take note that a pipeline needs its model no more; it stays warm."""
        with self._lock:
            model = self._models.get(weights)
            if model is not None:
                model.users.discard(pipeline)
                model.used_at = time.monotonic()

    def make_room(self) -> None:
        """Let go of models that nobody uses, the least recently used first, until all that is promised fits.

        Called with `promising` held.

        Raises:
            NodeError: they do not fit, with the number of bytes that are missing.

        """
        if self._memory_bytes is None:
            return
        unneeded: list[WarmModel] = []
        with self._lock:
            idle = sorted((model.used_at, weights) for weights, model in self._models.items() if not model.users)
            for _, weights in idle:
                if self._used_bytes() <= self._memory_bytes:
                    break
                unneeded.append(self._models.pop(weights))
            missing = self._used_bytes() - self._memory_bytes
        for model in unneeded:  # without the lock: the ends of its stages may still have to be heard of
            self._warm.end_model(model)
            self._log("model let go", key=model.name, memory_bytes=model.memory_bytes)
        if missing > 0:
            raise NodeError(
                f"node {self._table.node} may take {self._memory_bytes / 2**20:.0f} MiB and lacks "
                f"{missing / 2**20:.0f} MiB for weights and KV; start it with more --memory, "
                "or use a smaller KV cache (--kv-cache-memory-bytes)"
            )

    def _used_bytes(self) -> int:
        with self._lock:
            return sum(model.memory_bytes for model in self._models.values()) + self._table.kv_bytes()

    def on_exit(self, key: str, status: int) -> None:
        """React to the end of a model's zygote: its stages have ended with it, and are reported by the kernel."""
        self._log("model zygote ended", key=key, status=status)
        with self._lock:
            ended = {weights: model for weights, model in self._models.items() if model.name == key}
            for weights in ended:
                del self._models[weights]
        for model in ended.values():
            self._warm.end_model(model)

    def close(self) -> None:
        """End all of them, and whatever else is warm."""
        with self._lock:
            models, self._models = list(self._models.values()), {}
        self._warm.close(models)


def _private_bytes(pid: int) -> int:
    """Return the memory that only this process has: the weights of a zygote's model."""
    usage: int = psutil.Process(pid).memory_full_info().uss
    return usage
