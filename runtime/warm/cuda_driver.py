"""The six calls of the CUDA driver that share device memory between processes; torch does all else.

Why not torch's own sharing (`UntypedStorage._share_cuda_`): it counts each attachment in a file of the owner, and only
the consumer counts it off. A consumer that dies by SIGKILL never does, so the owner keeps that memory for ever; a
handle may be opened only once; and what is exported is the whole block of the caching allocator, with the tensors of
others in it. Why not the `cuda-bindings` package: how it gives the bytes of a handle differs between its releases,
while the driver's own interface has stayed the same since CUDA 4.

Caveats: IPC handles need Linux and a GPU that is not a Tegra. A handle cannot be opened in the process that made it.
Memory smaller than 2 MiB may lie in a block with other allocations, and the handle then exports all of it; therefore
sizes are rounded up.
"""

from __future__ import annotations

import ctypes
from typing import Any

HANDLE_BYTES = 64
_GRANULE = 2 << 20
_LAZY_ENABLE_PEER_ACCESS = 1  # the only flag there is, and one must be given


class CudaError(RuntimeError):
    """A call of the CUDA driver failed; the message says which and with what error."""


class _IpcHandle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


class CudaDriver:
    """Device memory of one GPU, in its primary context: the one that torch uses.

    Args:
        index: number of the GPU, as torch counts.
        library: what to load; the driver's library has this name on every machine.

    Raises:
        CudaError: there is no driver, or it refuses.

    """

    def __init__(self, index: int, library: str = "libcuda.so.1") -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise CudaError(f"the CUDA driver's library cannot be loaded: {error}") from error
        self._call("cuInit", ctypes.c_uint(0))
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def allocate(self, size: int) -> int:
        """Take `size` bytes of device memory, with any content, and return their address."""
        address = ctypes.c_uint64()
        self._in_context("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(-(-size // _GRANULE) * _GRANULE))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back. What another process that has it open reads then is undefined."""
        self._in_context("cuMemFree_v2", ctypes.c_uint64(address))

    def export(self, address: int) -> bytes:
        """Return the handle by which other processes open the memory at `address`."""
        handle = _IpcHandle()
        self._in_context("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle.reserved)

    def open(self, handle: bytes) -> int:
        """Map memory of another process and return its address here."""
        if len(handle) != HANDLE_BYTES:
            raise CudaError(f"a CUDA memory handle has {HANDLE_BYTES} bytes, not {len(handle)}")
        address, flag = ctypes.c_uint64(), ctypes.c_uint(_LAZY_ENABLE_PEER_ACCESS)
        self._in_context("cuIpcOpenMemHandle_v2", ctypes.byref(address), _IpcHandle.from_buffer_copy(handle), flag)
        return address.value

    def close(self, address: int) -> None:
        """Unmap what `open` mapped; the memory itself stays."""
        self._in_context("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def _in_context(self, function: str, *arguments: Any) -> None:
        self._call("cuCtxSetCurrent", self._context)  # of this thread; costs nothing when it is already
        self._call(function, *arguments)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            raise CudaError(f"{function} failed: {(text.value or b'unknown error').decode()} ({code})")
