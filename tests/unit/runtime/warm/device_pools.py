"""What must hold for pools on every device; called for the host by the unit tests, for CUDA by `tests/gpu`."""

import contextlib
import os
import signal
from collections.abc import Iterator

import msgspec
import numpy as np

from runtime.warm.device_pool import DevicePool, PoolHandle
from runtime.warm.devices import Device
from runtime.warm.kv_pool import KVPool, KVPoolShape
from tests.unit.runtime.warm.device_process import DeviceProcess, token

PAGE = os.sysconf("SC_PAGESIZE")
SHAPE = KVPoolShape(layers=3, blocks=8, block_tokens=64, layer_bytes=8 * PAGE)


@contextlib.contextmanager
def tables() -> Iterator[int]:
    descriptor = KVPool.new_descriptor("test")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def owned(device: Device, shape: KVPoolShape = SHAPE) -> Iterator[tuple[DevicePool, int]]:
    with tables() as descriptor:
        pool = DevicePool.create(device, descriptor, shape)
        yield pool, descriptor
        pool.close()


def check_fresh_memory_is_zero(device: Device) -> None:
    with owned(device) as (pool, _):
        assert [tuple(pool.layer(layer).shape) for layer in pool.layers] == [(8, PAGE)] * 3
        assert not any(pool.layer(layer).any() for layer in pool.layers)


def check_two_attached_at_once_share_the_bytes(device: Device) -> None:
    with owned(device) as (pool, descriptor):
        pool.layer(2)[5] = 77
        pool.record_written(range(2, 3), [5], [0], [3])
        with DeviceProcess(pool.handle, descriptor) as one, DeviceProcess(pool.handle, descriptor) as two:
            assert one.attached == two.attached == "[0, 1, 2]"
            assert one.ask("read 2 5") == two.ask("read 2 5") == "77 3"
            one.ask("write 1 4 99")
            assert two.ask("read 1 4") == "99 64"
        assert (int(pool.layer(1)[4, -1]), int(pool.tables.watermark[1, 4])) == (99, 64)


def check_kill_9_of_an_attached_process_costs_nothing(device: Device, rounds: int = 3) -> None:
    with owned(device) as (pool, descriptor):
        pool.layer(0)[1] = 42
        pool.record_written(range(1), [1], [0], [64])
        held = os.listdir("/proc/self/fd")
        for block in range(2, 2 + rounds):
            with DeviceProcess(pool.handle, descriptor) as doomed:
                assert doomed.ask(f"append 2 {block}") == "appending"
                doomed.kill()
            assert doomed.process.returncode == -signal.SIGKILL
            valid = int(pool.tables.watermark[2, block])
            appended = pool.layer(2)[block].view(64, -1)[:valid].cpu().numpy()
            assert valid
            assert (appended == np.array([token(number) for number in range(valid)], np.uint8)[:, None]).all()
            with DeviceProcess(pool.handle, descriptor) as heir:
                assert heir.ask(f"read 2 {block}") == f"{token(0)} {valid}"
                assert heir.ask("read 0 1") == "42 64"
        assert os.listdir("/proc/self/fd") == held


def check_blocks_are_copied_between_pools(device: Device) -> None:
    with owned(device) as (source, _), owned(device) as (target, _):
        for layer in source.layers:
            for block in range(8):
                source.layer(layer)[block] = 10 * layer + block + 1
        source.record_written(range(3), [1, 3, 6, 7], [0] * 4, [64, 5, 64, 1])
        for blocks in ([6, 1, 3], [6, 7]):  # scattered, and one run
            assert source.copy_blocks(target, [1, 2], blocks) == 2 * len(blocks) * PAGE
        for layer in (1, 2):
            copied = [int(target.layer(layer)[block, -1]) for block in range(8)]
            assert copied == [10 * layer + block + 1 if block in {1, 3, 6, 7} else 0 for block in range(8)]
            assert target.tables.watermark[layer].tolist() == [0, 64, 0, 5, 0, 0, 64, 1]
        assert not target.layer(0).any()
        assert not target.tables.watermark[0].any()


def through_json(handle: PoolHandle) -> PoolHandle:
    return msgspec.json.decode(msgspec.json.encode(handle), type=PoolHandle)
