"""Where the layers of a `DevicePool` lie: in the memory of a GPU, or of the host.

Both speak one protocol, so that everything above the calls of CUDA runs, and is tested, on a machine without a GPU.
On a GPU memory is shared by CUDA IPC (`cuda_driver`); on the host it is the `KVPool`'s own, shared by its descriptor.
torch is imported when a device is used: this package must be importable without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from runtime.warm.cuda_driver import CudaDriver, CudaError
from runtime.warm.kv_pool import KVPool, KVPoolError

if TYPE_CHECKING:
    import torch


class DevicePoolError(KVPoolError):
    """Device memory cannot be taken, or a handle does not fit what it is used with."""


class Device(Protocol):
    """Where the layers lie. Memory is a tensor of ``layer_bytes`` bytes (uint8). Errors are DevicePoolError."""

    kind: str
    identity: str

    def allocate(self, tables: KVPool, layer: int) -> tuple[torch.Tensor, bytes]:
        """Take zeroed memory for a layer and return it with its handle."""

    def attach(self, tables: KVPool, layer: int, handle: bytes) -> torch.Tensor:
        """Map a layer's memory that another process owns."""

    def free(self, tables: KVPool, layer: int, memory: torch.Tensor) -> None:
        """Give back what `allocate` took."""

    def detach(self, memory: torch.Tensor) -> None:
        """Unmap what `attach` mapped."""

    def synchronize(self) -> None:
        """Wait until everything this process has queued is done."""


class HostDevice:
    """The host's memory: the layers of the `KVPool` itself, shared by its descriptor."""

    kind = "host"
    identity = ""

    def allocate(self, tables: KVPool, layer: int) -> tuple[torch.Tensor, bytes]:
        """See `Device`."""
        return self.attach(tables, layer, b""), b""

    def attach(self, tables: KVPool, layer: int, handle: bytes) -> torch.Tensor:
        """See `Device`."""
        import torch

        if handle:
            raise DevicePoolError(f"layer {layer} has a handle of {len(handle)} bytes, but host memory has none")
        return torch.frombuffer(tables.layer_memory(layer), dtype=torch.uint8)

    def free(self, tables: KVPool, layer: int, memory: torch.Tensor) -> None:  # noqa: ARG002 - the tables know it
        """See `Device`."""
        tables.scrub(range(layer, layer + 1))

    def detach(self, memory: torch.Tensor) -> None:
        """See `Device`; the mapping goes with the tables'."""

    def synchronize(self) -> None:
        """See `Device`; the host queues nothing."""


class CudaDevice:
    """The memory of one GPU, shared by CUDA IPC.

    Args:
        identity: UUID of the GPU; the first one if not given. Processes may number the same GPUs differently.

    """

    kind = "cuda"

    def __init__(self, identity: str | None = None) -> None:
        if reason := unavailable("cuda"):
            raise DevicePoolError(reason)
        import torch

        known = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
        if identity is not None and identity not in known:
            raise DevicePoolError(f"the pool is on GPU {identity}, but this process sees only {', '.join(known)}")
        self.index = 0 if identity is None else known.index(identity)
        self.identity = known[self.index]
        torch.cuda.set_device(self.index)
        try:
            self._driver = CudaDriver(self.index)
        except CudaError as error:
            raise DevicePoolError(f"GPU {self.identity} cannot be used: {error}") from error

    def allocate(self, tables: KVPool, layer: int) -> tuple[torch.Tensor, bytes]:
        """See `Device`."""
        size = tables.shape.layer_bytes
        try:
            address = self._driver.allocate(size)
        except CudaError as error:
            raise DevicePoolError(
                f"cannot take {size} bytes on GPU {self.identity} for layer {layer}: {error}"
            ) from error
        try:
            handle = self._driver.export(address)
        except CudaError as error:
            self._driver.free(address)
            raise DevicePoolError(f"memory of GPU {self.identity} cannot be shared: {error}") from error
        memory = self._view(address, size).zero_()  # it may hold what another pipeline left
        self.synchronize()
        return memory, handle

    def attach(self, tables: KVPool, layer: int, handle: bytes) -> torch.Tensor:
        """See `Device`."""
        try:
            address = self._driver.open(handle)
        except CudaError as error:
            raise DevicePoolError(f"layer {layer} cannot be attached; does its owner still live? {error}") from error
        return self._view(address, tables.shape.layer_bytes)

    def free(self, tables: KVPool, layer: int, memory: torch.Tensor) -> None:  # noqa: ARG002 - for the host
        """See `Device`."""
        self.synchronize()
        self._driver.free(memory.data_ptr())

    def detach(self, memory: torch.Tensor) -> None:
        """See `Device`."""
        self.synchronize()
        self._driver.close(memory.data_ptr())

    def synchronize(self) -> None:
        """See `Device`."""
        import torch

        torch.cuda.synchronize(self.index)

    def _view(self, address: int, size: int) -> torch.Tensor:
        import torch

        return torch.as_tensor(_Bytes(address, size), device=f"cuda:{self.index}")


class _Bytes:
    """Bytes of device memory as a tensor library expects them; see "CUDA Array Interface (Version 3)"."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def unavailable(kind: str) -> str | None:
    """Say why pools of this kind cannot be made here; None if they can."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    return (
        "no NVIDIA GPU: torch.cuda.is_available() is False"
        if kind == "cuda" and not torch.cuda.is_available()
        else None
    )


def open_device(kind: str, identity: str | None = None) -> Device:
    """Return the device of a kind (``cuda`` or ``host``), on which work may start.

    Raises:
        DevicePoolError: there is none here, or no such kind.

    """
    if kind == "cuda":
        return CudaDevice(identity)
    if kind == "host":
        return HostDevice()
    raise DevicePoolError(f"there is no device {kind!r}, only cuda and host")
