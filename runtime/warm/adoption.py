"""What a node runtime leaves behind and the next one takes over: the records, the judgement, the taking.

::

    node runtime dies (kill -9, a crash, an upgrade)     what is left: the keeper, and what it holds (`keeper`)
      seed zygote, model zygotes, KV pools                 untouched; a stage may still compute its last batch
    the next one attaches to the keeper
      1 records are read and judged (`judge`)              pure: what fits this node, and why the rest does not
      2 seed: Fence(spared: the models that fit)           children without a record are gone
      3 each model: Fence(spared: none)                    every stage is gone, and with it every writer of KV
      4 each pool: size and tables are checked
      5 what was refused is dropped; the gateway opens
    its head is heard of again
      6 Call resume(pipeline, engine, model, shape, layers): refused unless all of it is what is here; layers that
        the head does not name are erased
      7 the head starts stages (a fork of the warm model), gives them a fresh epoch and replays

A stage of the old life cannot write any more when its successor is started: step 3 is answered by the zygote after
it has waited for the process (no process id is trusted that its parent does not vouch for). What it wrote last
belongs to batches that are replayed with the same values, or is found by the check of watermarks (I2).

Dying between any two of these lines leaves what the line before left, for the next one to adopt or for the keeper's
time to run out:

* between a fork and its record: the process is no child that is spared (2), or its socket closed with its parent
* between a pool and its record: it is gone; the head had no answer to its ``reserve`` and loses the node
* between the end of a model or pipeline and the dropping of its record: a dead zygote refuses the fence (3); a pool
  whose head does not ask for it goes when its lease ends
* in 2 to 5: all of them can be done again
* in 6 and 7: the stages that were started are ended by the next fence, the head is told by its link

Nothing of a record is trusted beyond its type: a node of another name, key, protocol or version adopts nothing; a pool
is its head's only while that head is enrolled with the same certificate. Everything else is refused by name, and the
path of a lost node is taken: layers are re-placed, KV is computed again from tokens.
"""

from __future__ import annotations

import math
import os
import re
import socket
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.warm.keeper import SEED, KeptItem
from runtime.warm.kv_pool import KVPool, KVPoolError, KVPoolShape
from runtime.warm.zygote import Zygote, ZygoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from runtime.warm.keeper import Keeper

PROTOCOL = 1
"""Of what zygotes are ordered and what records mean: a node runtime with another one adopts nothing."""

NODE = "node"
_MODEL = re.compile(r"model-([0-9]{1,9})", re.ASCII)
_POOL = re.compile(r"pool\.([A-Za-z0-9-]{1,32})", re.ASCII)
_FENCE_S = 10.0
_IMPORT_S = 300.0
_MOST_POOL_BYTES = 1 << 50


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who left all this: the node, its key, and the software that its zygotes run."""

    protocol: int
    software: str
    name: str
    fingerprint: str


class SeedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A zygote with the engine imported; `ready`: it has been."""

    pid: int
    ready: bool = False


def new_seed(pid: int) -> bytes:
    """Make the record of a zygote that begins to import the engine."""
    return msgspec.msgpack.encode(SeedRecord(pid))


class ModelRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A zygote with weights: `model` names them, `facts` is what it said when they were loaded."""

    model: bytes
    pid: int
    facts: dict[str, Any]
    memory_bytes: int


class PoolRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The KV of one pipeline, and whose it is."""

    head: str
    fingerprint: str
    hosts: tuple[str, ...]
    model: bytes
    shape: KVPoolShape
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What can be adopted, by name as it is kept, and why the rest cannot."""

    seed: SeedRecord | None = None
    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    pools: Mapping[str, PoolRecord] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def judge(items: Iterable[KeptItem], node: NodeRecord, heads: Mapping[str, str]) -> Judgement:
    """Judge what is kept by its records alone.

    Args:
        items: as the keeper gave them.
        node: who is to adopt.
        heads: fingerprints of the peers that may control this node now, by name.

    """
    kept = {item.name: item for item in items}
    refused: dict[str, str] = {}

    def read(name: str, kind: Any) -> Any:
        item = kept.pop(name)
        if (item.descriptor is None) != (kind is NodeRecord):
            refused[name] = "it has no descriptor" if item.descriptor is None else "it has a descriptor"
            return None
        try:
            return msgspec.msgpack.decode(item.record, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            refused[name] = f"its record is damaged: {error}"
        return None

    left_by = read(NODE, NodeRecord) if NODE in kept else None
    seed: SeedRecord | None = read(SEED, SeedRecord) if SEED in kept else None
    why = _why_not(left_by, node) or ("there is no seed zygote" if seed is None or seed.pid <= 1 else None)
    if why is not None:
        return Judgement(refused={**dict.fromkeys(kept, why), **refused, SEED: why})
    models: dict[str, ModelRecord] = {}
    for name in sorted(name for name in kept if _MODEL.fullmatch(name)):
        model: ModelRecord | None = read(name, ModelRecord)
        if model is None:
            continue
        if model.pid <= 1 or model.memory_bytes < 0:
            refused[name] = "its record makes no sense"
        elif any(model.model == other.model or model.pid == other.pid for other in models.values()):
            refused[name] = "another has the same weights or is the same process"
        else:
            models[name] = model
    pools: dict[str, PoolRecord] = {}
    for name in sorted(name for name in kept if _POOL.fullmatch(name)):
        pool: PoolRecord | None = read(name, PoolRecord)
        if pool is None:
            continue
        if heads.get(pool.head) != pool.fingerprint:
            refused[name] = f"its head {pool.head!r} is not enrolled any more, or is another one"
        elif not any(pool.model == model.model for model in models.values()):
            refused[name] = "its model is not there"
        elif not _is_sane(pool.shape, pool.kv_bytes):
            refused[name] = "its shape makes no sense"
        else:
            pools[name] = pool
    refused.update(dict.fromkeys(kept, "nobody knows what it is"))
    return Judgement(seed, models, pools, refused)


def _why_not(left_by: NodeRecord | None, node: NodeRecord) -> str | None:
    if left_by is None:
        return "there is no record of the node that left it"
    for name in ("protocol", "software", "name", "fingerprint"):
        if (was := getattr(left_by, name)) != (now := getattr(node, name)):
            return f"the {name} of the node that left it is {was!r}, this one's is {now!r}"
    return None


def _is_sane(shape: KVPoolShape, kv_bytes: int) -> bool:
    counts = (shape.layers, shape.blocks, shape.block_tokens, shape.layer_bytes)
    return (
        all(0 < count <= _MOST_POOL_BYTES for count in counts)
        and math.prod(counts[:2]) <= _MOST_POOL_BYTES
        and shape.block_bytes >= shape.block_tokens
        and shape.total_bytes <= _MOST_POOL_BYTES
        and 0 <= kv_bytes <= shape.total_bytes
    )


def pool_name(pipeline: str) -> str:
    """Return the name under which the KV of a pipeline is kept."""
    return f"pool.{pipeline}"


def _take_socket(name: str, descriptors: dict[str, int]) -> socket.socket:
    try:
        taken = socket.socket(fileno=descriptors[name])
    except OSError as error:
        raise ZygoteError(f"there is no way to its process: {error}") from error
    del descriptors[name]
    return taken


@dataclass(slots=True)
class WarmModel:
    """A zygote that has the weights of a model; `name` is its key in the seed zygote."""

    name: str
    zygote: Zygote
    facts: dict[str, Any]
    memory_bytes: int
    used_at: float = field(default_factory=time.monotonic)
    users: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class LeftPool:
    """The KV that a pipeline has left, checked; `descriptor` belongs to whoever takes it."""

    pipeline: str
    record: PoolRecord
    descriptor: int


def _nothing(_key: str, _status: int) -> None:
    """Be the reaction to an end that nobody waits for yet."""


class WarmState:
    """What a node runtime has warm, all of it kept: the seed, models, and the pools that the last one left.

    `models` are by the name of their weights. `on_seed_child_exit` and `on_stage_exit` are called with (key, status),
    from other threads.
    """

    def __init__(self, keeper: Keeper, node: NodeRecord, heads: Mapping[str, str], log: Callable[..., None]) -> None:
        """Adopt what fits and drop the rest; waits until a new seed has imported the engine.

        Raises:
            ZygoteError: there is no seed, or it cannot be used: nothing can be adopted then, but a new keeper started.

        """
        self._keeper = keeper
        self.on_seed_child_exit: Callable[[str, int], None] = _nothing
        self.on_stage_exit: Callable[[str, int], None] = _nothing
        self.models: dict[bytes, WarmModel] = {}
        self.pools: list[LeftPool] = []
        if keeper.is_new:
            keeper.keep(NODE, msgspec.msgpack.encode(node))
            keeper.items.append(KeptItem(NODE, msgspec.msgpack.encode(node)))
        started = time.perf_counter()
        found = judge(keeper.items, node, heads)
        descriptors = {item.name: item.descriptor for item in keeper.items if item.descriptor is not None}
        keeper.items = []
        refused = dict(found.refused)
        try:
            if found.seed is None:
                raise ZygoteError(f"the warm state does not fit: {refused[SEED]}")
            self.seed = self._adopt_seed(found, descriptors)
            self._adopt_models(found, descriptors, refused)
            self._adopt_pools(found, descriptors, refused)
        finally:
            for descriptor in descriptors.values():  # those that nobody took
                os.close(descriptor)
        for name, reason in refused.items():
            keeper.drop(name)
            log("not adopted", name=name, reason=reason)
        if not keeper.is_new:
            ms = round(1e3 * (time.perf_counter() - started), 1)
            pipelines = ",".join(pool.pipeline for pool in self.pools)
            log("adopted", models=len(self.models), pipelines=pipelines, ms=ms)

    def _adopt_seed(self, found: Judgement, descriptors: dict[str, int]) -> Zygote:
        record = found.seed
        if record is None:
            raise ZygoteError("there is no seed zygote")
        reports = _take_socket(SEED, descriptors)
        spared = [model.pid for model in found.models.values()]
        wait_s = _FENCE_S if record.ready else _IMPORT_S
        seed = Zygote.adopt(reports, record.pid, spared, self._seed_child_ended, wait_s)
        ready = msgspec.structs.replace(record, ready=True)
        self._keeper.keep(SEED, msgspec.msgpack.encode(ready), seed.descriptor())
        return seed

    def _adopt_models(self, found: Judgement, descriptors: dict[str, int], refused: dict[str, str]) -> None:
        children = self.seed.children()
        for name, record in found.models.items():
            if children.get(name) != record.pid:  # the seed vouches for its children, no process id does
                refused[name] = "its process is gone"
                continue
            try:
                reports = _take_socket(name, descriptors)
                zygote = Zygote.adopt(reports, record.pid, (), self._stage_ended, _FENCE_S)
            except ZygoteError as error:
                self.seed.kill(name)
                refused[name] = str(error)
                continue
            self.models[record.model] = WarmModel(name, zygote, record.facts, record.memory_bytes)

    def _adopt_pools(self, found: Judgement, descriptors: dict[str, int], refused: dict[str, str]) -> None:
        for name, record in found.pools.items():
            if record.model not in self.models:
                refused[name] = "its model is gone"
                continue
            descriptor = descriptors[name]
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise KVPoolError("it is no memory file")
                KVPool(descriptor, record.shape).check()
            except (KVPoolError, OSError) as error:
                refused[name] = str(error)
                continue
            self.pools.append(LeftPool(name.partition(".")[2], record, descriptors.pop(name)))

    def _seed_child_ended(self, key: str, status: int) -> None:
        self.on_seed_child_exit(key, status)  # which is set later than this is handed on

    def _stage_ended(self, key: str, status: int) -> None:
        self.on_stage_exit(key, status)

    @property
    def last_number(self) -> int:
        """The highest number in the name of a model."""
        return max((int(model.name.partition("-")[2]) for model in self.models.values()), default=0)

    def load(self, name: str, payload: bytes) -> Zygote:
        """Fork a zygote that loads weights; it is kept from `keep_model` on. Raises ZygoteError."""
        return Zygote.within(self.seed, name, payload, self._stage_ended)

    def keep_model(self, weights: bytes, model: WarmModel) -> None:
        """Have a model survive this process."""
        record = ModelRecord(weights, model.zygote.pid, model.facts, model.memory_bytes)
        self._keeper.keep(model.name, msgspec.msgpack.encode(record), model.zygote.descriptor())

    def end_model(self, model: WarmModel) -> None:
        """End a model's zygote."""
        model.zygote.close()
        self._keeper.drop(model.name)

    def keep_pool(self, pipeline: str, record: PoolRecord, descriptor: int) -> None:
        """Have the KV of a pipeline survive this process."""
        self._keeper.keep(pool_name(pipeline), msgspec.msgpack.encode(record), descriptor)

    def drop_pool(self, pipeline: str) -> None:
        """Have the KV of a pipeline survive no longer."""
        self._keeper.drop(pool_name(pipeline))

    def close(self, models: Sequence[WarmModel]) -> None:
        """End everything."""
        for model in models:
            model.zygote.close()
        self.seed.close()
        self._keeper.end()
