"""How much the pipeline may hold at once, changed while it serves: KV blocks, requests, tokens in a batch.

The pool has room for as many blocks as it was started with; fewer can be in use. To shrink, blocks beyond the new end
that requests hold are copied, on every node, to free ones before it, and the scheduler's blocks swap their numbers
with them: everything in vLLM that refers to a block refers to the object, so only the number has to change. The head's
ledger follows, and every request is carried over anew with its next batch. Cached prefixes beyond the end are
forgotten. To grow, the blocks beyond the old end are free again. Pages that nobody uses go back to the system.

All of it happens on the engine's own thread, between two batches, with none in flight; while it waits for that, nothing
new is scheduled. No change of the layout is made meanwhile, and none may be under way.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from runtime.migration.errors import ChangeRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm.v1.core.kv_cache_utils import KVCacheBlock

_HOLDER = "a change of the capacity"


class CapacityOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change; None leaves a thing as it is.

    kv_blocks: blocks of KV in all, the null block included.
    max_requests: requests that run at once.
    max_batch_tokens: tokens computed in one batch.
    preempt: compute the youngest requests again later, when the blocks in use do not fit otherwise.
    """

    kv_blocks: int | None = None
    max_requests: int | None = None
    max_batch_tokens: int | None = None
    preempt: bool = False


class PipelineSide(Protocol):
    """What a change of the capacity needs of the pipeline."""

    def copy_blocks(self, moved: Mapping[int, int]) -> None:
        """Copy KV blocks on every node, by old and new number."""

    def blocks_moved(self, moved: Mapping[int, int], kept: int, preempted: Sequence[str]) -> None:
        """Know the blocks by their new numbers, give back those from `kept` on; some requests hold none any more."""

    def hold_changes(self, holder: str) -> bool:
        """Let no other change begin; False when one is under way."""

    def let_changes_go(self) -> None:
        """Let changes begin again."""


class Capacity:
    """The scheduler's limits. Only the engine's thread may use it.

    Args:
        scheduler: vLLM's, as `PipelineScheduler`.
        pipeline: the other side.

    """

    def __init__(self, scheduler: Any, pipeline: PipelineSide) -> None:
        self._scheduler, self._pipeline = scheduler, pipeline
        self._blocks = scheduler.kv_cache_manager.block_pool
        self._most = CapacityOrder(
            self._blocks.num_gpu_blocks, scheduler.max_num_active_reqs, scheduler.max_num_scheduled_tokens
        )
        self._beyond: list[KVCacheBlock] = []  # blocks that are not to be used
        self._order: CapacityOrder | None = None
        self._last: dict[str, Any] | None = None

    @property
    def waits(self) -> bool:
        """Whether something is to be changed as soon as no batch is in flight."""
        return self._order is not None

    def report(self) -> dict[str, Any]:
        """Return the limits now and at most, and what became of the last order."""
        return {
            "kv_blocks": self._blocks.num_gpu_blocks,
            "kv_blocks_used": self._blocks.num_gpu_blocks - self._blocks.get_num_free_blocks(),
            "max_requests": self._scheduler.max_num_active_reqs,
            "max_batch_tokens": self._scheduler.max_num_scheduled_tokens,
            "at_most": {name: getattr(self._most, name) for name in ("kv_blocks", "max_requests", "max_batch_tokens")},
            "waiting": self.waits,
            "last": self._last,
        }

    def ask(self, order: CapacityOrder) -> None:
        """Take an order; `carry_out` follows when no batch is in flight.

        Raises:
            ChangeRefused: it cannot be carried out, whatever is in flight.

        """
        if self._order is not None:
            raise ChangeRefused("another change of the capacity waits to be carried out; try again in a moment")
        for name, least in (("kv_blocks", 2), ("max_requests", 1), ("max_batch_tokens", 1)):
            wanted, most = getattr(order, name), getattr(self._most, name)
            if wanted is not None and not least <= wanted <= most:
                raise ChangeRefused(
                    f"{name} {wanted} is not between {least} and {most}, which the server was started for"
                )
        self._order = order

    def carry_out(self) -> None:
        """Do what was asked for; no batch may be in flight. Nothing happens while another change is under way."""
        order = self._order
        if order is None or not self._pipeline.hold_changes(_HOLDER):
            return
        self._order = None
        started = time.perf_counter()
        done: dict[str, Any] = {"state": "done", "moved_blocks": 0, "preempted_requests": 0, "reason": None}
        try:
            if order.kv_blocks is not None:
                done |= self._resize(order.kv_blocks, preempt=order.preempt)
            if order.max_requests is not None:
                # Admission only: the runner's slots stay, and who runs already may end.
                self._scheduler.max_num_active_reqs = order.max_requests
            if order.max_batch_tokens is not None:
                self._scheduler.max_num_scheduled_tokens = order.max_batch_tokens
        except Exception as error:  # noqa: BLE001 - the engine goes on with what it had; who asked is told
            done |= {"state": "refused", "reason": str(error)}
        finally:
            self._pipeline.let_changes_go()
        self._last = {**done, "total_ms": round(1e3 * (time.perf_counter() - started), 1)}

    def _resize(self, blocks: int, *, preempt: bool) -> dict[str, int]:
        """Use `blocks` blocks from now on.

        Raises:
            ChangeRefused: those in use do not fit.

        """
        pool = self._blocks
        before = pool.num_gpu_blocks
        if blocks >= before:
            again = [block for block in self._beyond if block.block_id < blocks]
            self._beyond = [block for block in self._beyond if block.block_id >= blocks]
            pool.free_block_queue.append_n(sorted(again, key=lambda block: block.block_id))
            pool.num_gpu_blocks = blocks
            return {}
        preempted = self._make_fit(blocks - 1, preempt=preempt)
        used = [block for block in pool.blocks if block.ref_cnt > 0 and not block.is_null]
        outside = [block for block in used if block.block_id >= blocks]
        free = [block for block in pool.free_block_queue.get_all_free_blocks() if block.block_id < blocks]
        targets = free[: len(outside)]  # from the front: what would be evicted first
        moved = {source.block_id: target.block_id for source, target in zip(outside, targets, strict=True)}
        self._pipeline.copy_blocks(moved)
        # From here on nothing may fail: both sides must agree on the numbers.
        for block in pool.free_block_queue.get_all_free_blocks():
            if block.block_id >= blocks or block.block_id in moved.values():
                pool._maybe_evict_cached_block(block)
        for source, target in zip(outside, targets, strict=True):
            _swap_numbers(pool, source, target)
        beyond = [block for block in pool.free_block_queue.get_all_free_blocks() if block.block_id >= blocks]
        for block in beyond:
            pool.free_block_queue.remove(block)
        self._beyond += beyond
        pool.num_gpu_blocks = blocks
        self._pipeline.blocks_moved(moved, blocks, preempted)
        return {"moved_blocks": len(moved), "preempted_requests": len(preempted)}

    def _make_fit(self, room: int, *, preempt: bool) -> list[str]:
        """Preempt the youngest requests until the blocks in use fit into `room`, if allowed; returns their ids."""
        scheduler = self._scheduler
        preempted: list[str] = []
        while (used := self._used()) > room:
            if not preempt:
                raise ChangeRefused(
                    f"{used} KV blocks are in use, but only {room} would be left; wait, or ask to preempt requests"
                )
            if not scheduler.running:
                raise ChangeRefused(f"{used} KV blocks are in use and no request is left to preempt")
            youngest = scheduler.running.pop()
            scheduler._preempt_request(youngest, time.monotonic())
            preempted.append(youngest.request_id)
        # As vLLM does when it preempts all: they must not count as scheduled in the step before.
        scheduler.prev_step_scheduled_req_ids.difference_update(preempted)
        return preempted

    def _used(self) -> int:
        return sum(block.ref_cnt > 0 and not block.is_null for block in self._blocks.blocks)


def _swap_numbers(pool: Any, used: KVCacheBlock, free: KVCacheBlock) -> None:
    """Let a block in use and a free one that caches nothing take each other's number, wherever it is noted."""
    own, tokens = used.block_hash, used.block_hash_num_tokens
    others = set(pool.cached_block_hashes_by_block.get(used.block_id, ()))
    pool._remove_cached_block_hashes(used)
    used.block_id, free.block_id = free.block_id, used.block_id
    pool.blocks[used.block_id], pool.blocks[free.block_id] = used, free
    if own is not None:
        used.set_block_hash(own, tokens)
        pool.cached_block_hash_to_block.insert(own, used)
    for other in others:
        pool.cached_block_hash_to_block.insert(other, used)
    if others:
        pool.cached_block_hashes_by_block[used.block_id] = others
