"""The CUDA device above a driver that keeps its promises in host memory: everything but CUDA's own work."""

import ctypes
import mmap
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from runtime.warm.cuda_driver import CudaDriver, CudaError
from runtime.warm.device_pool import DevicePool
from runtime.warm.devices import CudaDevice, DevicePoolError, unavailable
from tests.unit.runtime.warm.device_pools import (
    SHAPE,
    check_blocks_are_copied_between_pools,
    check_fresh_memory_is_zero,
    owned,
    tables,
    through_json,
)

_CONTEXT, _MIB = 0xC0FFEE, 1 << 20
_INVALID_VALUE, _OUT_OF_MEMORY, _MAP_FAILED, _INVALID_CONTEXT = 1, 2, 205, 201


class FakeDriver:
    """The driver's functions over anonymous memory; a handle is the number of an allocation, padded to 64 bytes."""

    def __init__(self) -> None:
        self.memory: dict[int, mmap.mmap] = {}
        self.opened: list[int] = []
        self.context: int | None = None
        self.limit = 64 * _MIB
        self.may_export = True

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the driver has no function {name}")

    def cuInit(self, flags: ctypes.c_uint) -> int:  # noqa: N802
        return 0

    def cuDeviceGet(self, device: Any, index: ctypes.c_int) -> int:  # noqa: N802
        device._obj.value = 10 + index.value
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: ctypes.c_int) -> int:  # noqa: N802
        context._obj.value = _CONTEXT + device.value
        return 0

    def cuCtxSetCurrent(self, context: ctypes.c_void_p) -> int:  # noqa: N802
        self.context = context.value
        return 0

    def cuGetErrorString(self, code: ctypes.c_int, text: Any) -> int:  # noqa: N802
        text._obj.value = {_OUT_OF_MEMORY: b"out of memory"}.get(code.value)
        return 0

    def cuMemAlloc_v2(self, address: Any, size: ctypes.c_size_t) -> int:  # noqa: N802
        if self.context is None:
            return _INVALID_CONTEXT
        if sum(map(len, self.memory.values())) + size.value > self.limit:
            return _OUT_OF_MEMORY
        memory = mmap.mmap(-1, size.value)
        memory.write(b"\xee" * size.value)
        address._obj.value = ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))
        self.memory[address._obj.value] = memory
        return 0

    def cuMemFree_v2(self, address: ctypes.c_uint64) -> int:  # noqa: N802
        return 0 if self.memory.pop(address.value, None) else _INVALID_VALUE

    def cuIpcGetMemHandle(self, handle: Any, address: ctypes.c_uint64) -> int:  # noqa: N802
        if not self.may_export or address.value not in self.memory:
            return _INVALID_VALUE
        ctypes.memmove(handle, address.value.to_bytes(64, "little"), 64)
        return 0

    def cuIpcOpenMemHandle_v2(self, address: Any, handle: ctypes.Structure, flags: ctypes.c_uint) -> int:  # noqa: N802
        known = int.from_bytes(bytes(handle), "little")
        if flags.value != 1 or known not in self.memory:
            return _MAP_FAILED
        address._obj.value = known
        self.opened.append(known)
        return 0

    def cuIpcCloseMemHandle(self, address: ctypes.c_uint64) -> int:  # noqa: N802
        self.opened.remove(address.value)
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A machine with two GPUs, as far as can be pretended."""
    fake = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)

    def as_tensor(data: Any, *, device: Any) -> torch.Tensor:
        if not hasattr(data, "__cuda_array_interface__"):
            return real(data, device=device)
        interface = data.__cuda_array_interface__
        assert (interface["typestr"], device) == ("|u1", "cuda:0")
        memory = (ctypes.c_ubyte * interface["shape"][0]).from_address(interface["data"][0])
        return torch.frombuffer(memory, dtype=torch.uint8)

    real = torch.as_tensor
    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    return fake


def test_memory_is_zeroed_before_it_is_handed_out(driver: FakeDriver):
    check_fresh_memory_is_zero(CudaDevice())
    assert driver.memory == {}


def test_blocks_are_copied_between_pools(driver: FakeDriver):
    check_blocks_are_copied_between_pools(CudaDevice())


def test_sizes_are_rounded_up_so_that_a_handle_exports_nothing_else(driver: FakeDriver):
    with owned(CudaDevice()):
        assert [len(memory) for memory in driver.memory.values()] == [2 * _MIB] * 3


def test_an_attached_pool_sees_the_owners_bytes_and_closing_it_frees_nothing(driver: FakeDriver):
    with owned(CudaDevice()) as (pool, descriptor):
        pool.layer(2)[4] = 33
        attached = DevicePool.attach(through_json(pool.handle), descriptor, [2])
        assert int(attached.layer(2)[4, 0]) == 33
        assert len(driver.opened) == 1
        attached.close()
        assert (driver.opened, len(driver.memory)) == ([], 3)


def test_every_call_is_made_in_the_context_that_torch_uses(driver: FakeDriver):
    device = CudaDevice()
    driver.context = None  # as in a thread that has not used the GPU yet
    with owned(device):
        assert driver.context == _CONTEXT + 10


def test_a_gpu_is_found_by_its_uuid_not_by_its_number(driver: FakeDriver):
    assert (CudaDevice().identity, CudaDevice("GPU-1").index) == ("GPU-0", 1)
    with pytest.raises(DevicePoolError, match="the pool is on GPU GPU-9, but this process sees only GPU-0, GPU-1"):
        CudaDevice("GPU-9")


def test_the_handle_of_an_owner_that_is_gone_is_refused_and_what_was_opened_is_closed(driver: FakeDriver):
    with owned(CudaDevice()) as (pool, descriptor):
        stale = msgspec.structs.replace(pool.handle, layers={**pool.handle.layers, 2: bytes(64)})
        with pytest.raises(DevicePoolError, match="layer 2 cannot be attached; does its owner still live"):
            DevicePool.attach(stale, descriptor)
        assert driver.opened == []
        short = msgspec.structs.replace(pool.handle, layers={0: b"short"})
        with pytest.raises(DevicePoolError, match="has 64 bytes, not 5"):
            DevicePool.attach(short, descriptor)


def test_out_of_memory_says_how_much_and_gives_back_what_was_taken(driver: FakeDriver):
    driver.limit = 4 * _MIB
    device = CudaDevice()
    with (
        tables() as descriptor,
        pytest.raises(DevicePoolError, match=rf"cannot take {SHAPE.layer_bytes} bytes on GPU GPU-0 .* out of memory"),
    ):
        DevicePool.create(device, descriptor, SHAPE)
    assert driver.memory == {}


def test_memory_that_cannot_be_shared_is_given_back(driver: FakeDriver):
    driver.may_export = False
    device = CudaDevice()
    with tables() as descriptor, pytest.raises(DevicePoolError, match="cannot be shared"):
        DevicePool.create(device, descriptor, SHAPE)
    assert driver.memory == {}


def test_a_machine_without_the_driver_says_so():
    with pytest.raises(CudaError, match="the CUDA driver's library cannot be loaded"):
        CudaDriver(0, "libthere-is-none.so.1")


def test_a_gpu_that_the_driver_refuses_is_an_error_of_the_pool(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver, "cuDeviceGet", lambda device, index: _INVALID_VALUE)
    with pytest.raises(DevicePoolError, match=r"GPU GPU-0 cannot be used: cuDeviceGet failed: unknown error \(1\)"):
        CudaDevice()


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unavailable("cuda") == "no NVIDIA GPU: torch.cuda.is_available() is False"
    assert unavailable("host") is None
    with pytest.raises(DevicePoolError, match="no NVIDIA GPU"):
        CudaDevice()
