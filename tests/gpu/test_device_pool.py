"""Pools in the memory of a real GPU: the checks that the unit tests make on the host, and what only a GPU can show."""

import msgspec
import pytest
import torch

from loadgen.benchmarks.device_process import WorkerProcess
from runtime.warm.device_pool import DevicePool, PoolHandle
from runtime.warm.devices import CudaDevice, DevicePoolError
from tests.unit.runtime.warm.device_pools import (
    check_blocks_are_copied_between_pools,
    check_fresh_memory_is_zero,
    check_kill_9_of_an_attached_process_costs_nothing,
    check_two_attached_at_once_share_the_bytes,
    owned,
    tables,
)

pytestmark = pytest.mark.gpu

_OTHERS_BYTES = 64 << 20  # what else may change on the GPU meanwhile


def test_fresh_memory_is_zero(device: CudaDevice):
    check_fresh_memory_is_zero(device)


def test_two_attached_at_once_share_the_bytes(device: CudaDevice):
    check_two_attached_at_once_share_the_bytes(device)


def test_blocks_are_copied_between_pools(device: CudaDevice):
    check_blocks_are_copied_between_pools(device)


def test_kill_9_of_an_attached_process_costs_nothing_and_leaks_no_device_memory(device: CudaDevice):
    check_kill_9_of_an_attached_process_costs_nothing(device, rounds=1)
    free, _ = torch.cuda.mem_get_info()
    check_kill_9_of_an_attached_process_costs_nothing(device, rounds=5)
    assert torch.cuda.mem_get_info()[0] >= free - _OTHERS_BYTES


def test_closing_a_pool_gives_its_memory_back(device: CudaDevice):
    free, _ = torch.cuda.mem_get_info()
    for _ in range(20):
        with owned(device) as (pool, _):
            pool.layer(0).fill_(1)
    assert torch.cuda.mem_get_info()[0] >= free - _OTHERS_BYTES


def test_a_process_that_owns_a_pool_cannot_attach_to_it(device: CudaDevice):
    with owned(device) as (pool, descriptor), pytest.raises(DevicePoolError, match="cannot be attached"):
        DevicePool.attach(pool.handle, descriptor)


async def test_the_handle_of_an_owner_that_is_gone_is_refused(device: CudaDevice):
    with tables() as descriptor:
        async with WorkerProcess.running("cuda", [descriptor], deadline_s=120) as owner:
            await owner.ask("start", layers=1, block_tokens=16, tokens=16)
            (handle,) = await owner.ask("create", layers=1, blocks=8)
        with pytest.raises(DevicePoolError, match="does its owner still live"):
            DevicePool.attach(msgspec.convert(handle, PoolHandle, str_keys=True), descriptor)
