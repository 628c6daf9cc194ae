"""The KV cache of one pipeline on one node, in device memory that outlives the stage processes.

Problem: what `KVPool` is for a CPU, a GPU needs in its own memory. The node runtime allocates one piece of device
memory for each layer it holds and exports a handle of each; a stage opens the handles of its layers and views them as
tensors, and the next owner of a layer opens the same handle. Watermarks, generations and the token map stay in host
memory, in the tables of a `KVPool` whose layers nobody touches, which costs nothing.

Protocol: the owner makes a `DevicePool` and gives `handle` (plain data) and the tables' descriptor to whoever shall
attach. Work on a GPU is queued, so tables are written only after the device has done it (`record_written`): a
watermark never promises what a killed process had merely queued.

What survives: `kill -9` of an attached process takes its mappings and nothing else. The driver keeps no count that
only the dead could lower, the memory stays with the owner, and tokens below their watermark are whole, because blocks
are only appended to. Attaching again needs the same handle and no help from the owner.

Caveats: the memory goes with the *owner's* process, unlike a `KVPool`'s, which lives as long as anyone maps it. The
owner must not close the pool while a process is attached: what that one reads then is undefined. A process that has
attached must drop all tensors over the pool before it closes it. Device memory is taken at once, not on first touch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from runtime.warm.devices import DevicePoolError, open_device
from runtime.warm.kv_pool import KVPool, KVPoolError, KVPoolShape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

    from runtime.warm.devices import Device


class PoolHandle(msgspec.Struct, frozen=True):
    """What a process needs, beside the tables' descriptor, to attach to a pool.

    Args:
        kind: ``cuda`` or ``host``.
        device: UUID of the GPU; empty for the host.
        tables: device and inode number of the tables' memory file: which pool this is.
        shape: the pool's dimensions.
        layers: by layer that the node holds, the device's handle of its memory.

    """

    kind: str
    device: str
    tables: tuple[int, int]
    shape: KVPoolShape
    layers: dict[int, bytes]


class DevicePool:
    """One process's view of a pool: its tables and the layers it may touch; made by `create` or `attach`."""

    def __init__(
        self, device: Device, tables: KVPool, handle: PoolHandle, memory: dict[int, torch.Tensor], *, owner: bool
    ) -> None:
        self.device, self.tables, self.handle = device, tables, handle
        self._memory, self._owner = memory, owner

    @classmethod
    def create(
        cls, device: Device, descriptor: int, shape: KVPoolShape, layers: Iterable[int] | None = None
    ) -> DevicePool:
        """Take zeroed memory for `layers` (all of `shape`, if not given); `descriptor` gets the tables.

        Raises:
            KVPoolError: there is not enough memory.

        """
        tables = KVPool.reserve(descriptor, shape)
        pool = cls(
            device, tables, PoolHandle(device.kind, device.identity, _file(descriptor), shape, {}), {}, owner=True
        )
        try:
            for layer in range(shape.layers) if layers is None else layers:
                pool._memory[layer], pool.handle.layers[layer] = device.allocate(tables, layer)
        except KVPoolError:
            pool.close()
            raise
        return pool

    @classmethod
    def attach(
        cls, handle: PoolHandle, descriptor: int, layers: Iterable[int] | None = None, device: Device | None = None
    ) -> DevicePool:
        """Map `layers` (all that the node holds, if not given) of a pool that another process owns.

        Raises:
            KVPoolError: the handle is of another pool or GPU, its owner is gone, or sizes or layers do not fit.

        """
        if _file(descriptor) != handle.tables:
            raise DevicePoolError("this handle is of another pool than these tables: was the pool made anew since?")
        size = os.fstat(descriptor).st_size
        if size != handle.shape.total_bytes:
            raise DevicePoolError(f"the handle's tables have {handle.shape.total_bytes} bytes, but the pool's {size}")
        device = device or open_device(handle.kind, handle.device)
        if (device.kind, device.identity) != (handle.kind, handle.device):
            raise DevicePoolError(
                f"the pool is on {handle.kind} {handle.device}, not on {device.kind} {device.identity}".rstrip()
            )
        pool = cls(device, KVPool(descriptor, handle.shape), handle, {}, owner=False)
        try:
            for layer in handle.layers if layers is None else layers:
                if layer not in handle.layers:
                    raise DevicePoolError(f"layer {layer} is not in this pool, only {sorted(handle.layers)}")
                pool._memory[layer] = device.attach(pool.tables, layer, handle.layers[layer])
        except KVPoolError:
            pool.close()
            raise
        return pool

    @property
    def layers(self) -> list[int]:
        """The layers that can be viewed here."""
        return sorted(self._memory)

    def layer(self, layer: int) -> torch.Tensor:
        """View a layer as ``[blocks, bytes of a block]``, uint8."""
        if layer not in self._memory:
            raise DevicePoolError(f"layer {layer} is not attached here, only {self.layers}")
        return self._memory[layer][: self.tables.shape.blocks * self.tables.shape.block_bytes].view(
            self.tables.shape.blocks, -1
        )

    def record_written(self, layers: range, blocks: Sequence[int], first: Sequence[int], stop: Sequence[int]) -> None:
        """Do what `KVPool.record_written` does, once the device has written the tokens."""
        self.device.synchronize()
        self.tables.record_written(layers, blocks, first, stop)

    def copy_blocks(self, target: DevicePool, layers: Iterable[int], blocks: Sequence[int]) -> int:
        """Copy blocks to the same place in another pool on this device, then say so in its tables.

        Tokens appended here meanwhile are not promised there, and nothing of a block that starts over meanwhile.

        Returns:
            bytes copied.

        Raises:
            DevicePoolError: the pools differ in their shape, or a layer or block is not there.

        """
        import torch

        shape, rows = self.tables.shape, list(layers)
        if (target.tables.shape, target.device.identity) != (shape, self.device.identity):
            raise DevicePoolError(f"blocks cannot be copied between {self.handle} and {target.handle}")
        ids = np.asarray(blocks, np.intp)
        if ids.size == 0 or ids.min() < 0 or ids.max() >= shape.blocks:
            raise DevicePoolError(f"blocks to copy must be within 0 to {shape.blocks - 1}, not {list(blocks)}")
        cells = np.ix_(np.asarray(rows, np.intp), ids)
        generation = self.tables.generation[cells]
        promised = self.tables.watermark[cells]
        target.tables.watermark[cells] = 0
        target.tables.generation[cells] += 1
        start, run = int(ids[0]), bool((np.diff(ids) == 1).all())
        for layer in rows:
            source, sink = self.layer(layer), target.layer(layer)
            if run:
                sink[start : start + ids.size].copy_(source[start : start + ids.size])
            else:
                index = torch.as_tensor(ids, device=source.device)
                wide = torch.int64 if shape.block_bytes % 8 == 0 else torch.uint8  # gathering single bytes is slow
                sink.view(wide).index_copy_(0, index, source.view(wide).index_select(0, index))
        self.device.synchronize()
        same = generation == self.tables.generation[cells]  # else the block started over under our hands
        target.tables.watermark[cells] = np.where(same, promised, 0)
        return len(rows) * ids.size * shape.block_bytes

    def scrub(self, layers: range) -> None:
        """Erase the KV and the bookkeeping of `layers`."""
        self.tables.watermark[layers.start : layers.stop] = 0
        self.tables.generation[layers.start : layers.stop] = 0
        for layer in layers:
            self.layer(layer).zero_()
        self.device.synchronize()

    def close(self) -> None:
        """Free the memory if this process owns it, else unmap it. Tensors over it must not be used any more."""
        for layer, memory in self._memory.items():
            if self._owner:
                self.device.free(self.tables, layer, memory)
            else:
                self.device.detach(memory)
        self._memory.clear()


def _file(descriptor: int) -> tuple[int, int]:
    state = os.fstat(descriptor)
    return state.st_dev, state.st_ino
