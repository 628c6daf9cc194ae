import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest
import torch

from runtime.warm.device_pool import DevicePool, PoolHandle
from runtime.warm.devices import DevicePoolError, HostDevice, open_device
from runtime.warm.kv_pool import KVPool, KVPoolError
from tests.unit.runtime.warm.device_pools import (
    SHAPE,
    check_blocks_are_copied_between_pools,
    check_fresh_memory_is_zero,
    check_kill_9_of_an_attached_process_costs_nothing,
    check_two_attached_at_once_share_the_bytes,
    owned,
    tables,
    through_json,
)
from tests.unit.runtime.warm.device_process import ROOT


@pytest.fixture
def pool_and_descriptor() -> Iterator[tuple[DevicePool, int]]:
    with owned(HostDevice()) as made:
        yield made


@pytest.fixture
def pool(pool_and_descriptor: tuple[DevicePool, int]) -> DevicePool:
    return pool_and_descriptor[0]


@pytest.fixture
def descriptor(pool_and_descriptor: tuple[DevicePool, int]) -> int:
    return pool_and_descriptor[1]


# -- on every device ---------------------------------------------------------------------------------------------------


def test_fresh_memory_is_zero():
    check_fresh_memory_is_zero(HostDevice())


def test_two_attached_at_once_share_the_bytes():
    check_two_attached_at_once_share_the_bytes(HostDevice())


def test_kill_9_of_an_attached_process_costs_nothing():
    check_kill_9_of_an_attached_process_costs_nothing(HostDevice())


def test_blocks_are_copied_between_pools():
    check_blocks_are_copied_between_pools(HostDevice())


# -- attaching ---------------------------------------------------------------------------------------------------------


def test_a_stage_views_only_the_layers_it_asked_for(pool: DevicePool, descriptor: int):
    attached = DevicePool.attach(through_json(pool.handle), descriptor, range(1, 3))
    attached.layer(1)[0] = 9
    assert attached.layers == [1, 2]
    assert int(pool.layer(1)[0, 0]) == 9
    with pytest.raises(DevicePoolError, match=r"layer 0 is not attached here, only \[1, 2\]"):
        attached.layer(0)
    attached.close()
    assert int(pool.layer(1)[0, 0]) == 9


def test_a_handle_of_a_pool_that_was_made_anew_is_stale(pool: DevicePool):
    with owned(HostDevice()) as (_, other), pytest.raises(DevicePoolError, match="another pool than these tables"):
        DevicePool.attach(pool.handle, other)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": msgspec.structs.replace(SHAPE, layers=4)}, "the handle's tables have"),
        ({"shape": msgspec.structs.replace(SHAPE, layer_bytes=SHAPE.layer_bytes // 2)}, "the handle's tables have"),
        ({"device": "GPU-1"}, "not on host"),
        ({"kind": "cuda"}, "not on host"),
        ({"layers": {0: b"", 1: b"x" * 64}}, "layer 1 has a handle of 64 bytes"),
        ({"layers": {7: b""}}, "layer 7 is not in this pool of 3 layers"),
    ],
)
def test_a_handle_that_does_not_fit_is_refused(pool: DevicePool, descriptor: int, changed: dict, message: str):
    handle = msgspec.structs.replace(pool.handle, **changed)
    with pytest.raises(KVPoolError, match=message):
        DevicePool.attach(handle, descriptor, device=HostDevice())


def test_a_layer_that_the_node_does_not_hold_is_refused():
    with tables() as descriptor:
        pool = DevicePool.create(HostDevice(), descriptor, SHAPE, [1])
        with pytest.raises(DevicePoolError, match=r"layer 2 is not in this pool, only \[1\]"):
            DevicePool.attach(pool.handle, descriptor, [1, 2])


@pytest.mark.parametrize("damaged", [b"{}", b'{"kind": "host"}', b'{"layers": {"one": ""}}', b"[]"])
def test_a_handle_from_outside_is_checked(damaged: bytes):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(damaged, type=PoolHandle)


def test_an_unknown_kind_of_device_is_refused():
    with pytest.raises(DevicePoolError, match="no device 'tpu', only cuda and host"):
        open_device("tpu")


# -- owning ------------------------------------------------------------------------------------------------------------


class ScarceDevice(HostDevice):
    """Has memory for two layers."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allocate(self, tables: KVPool, layer: int) -> tuple[torch.Tensor, bytes]:
        if len(self.taken) == 2:
            raise DevicePoolError("out of memory")
        self.taken.append(layer)
        return super().allocate(tables, layer)

    def free(self, tables: KVPool, layer: int, memory: torch.Tensor) -> None:
        self.taken.remove(layer)


def test_when_memory_runs_out_what_was_taken_is_given_back():
    device = ScarceDevice()
    with tables() as descriptor, pytest.raises(DevicePoolError, match="out of memory"):
        DevicePool.create(device, descriptor, SHAPE)
    assert device.taken == []


def test_scrubbing_erases_bytes_and_tables_of_a_layer(pool: DevicePool):
    for layer in (1, 2):
        pool.layer(layer).fill_(5)
    pool.record_written(range(1, 3), [0], [0], [64])
    pool.scrub(range(1, 2))
    assert not pool.layer(1).any()
    assert not pool.tables.watermark[1].any()
    assert (int(pool.layer(2)[0, 0]), int(pool.tables.watermark[2, 0])) == (5, 64)


class LazyDevice(HostDevice):
    """Calls `during` while it waits for what was queued."""

    def __init__(self) -> None:
        self.during = lambda: None

    def synchronize(self) -> None:
        self.during()


def test_tokens_are_promised_only_once_the_device_has_written_them():
    device = LazyDevice()
    with owned(device) as (pool, _):
        seen: list[int] = []
        device.during = lambda: seen.append(int(pool.tables.watermark[0, 3]))
        pool.record_written(range(1), [3], [0], [7])
        assert (seen, int(pool.tables.watermark[0, 3])) == ([0], 7)


def test_what_changes_while_blocks_are_copied_is_not_promised():
    device = LazyDevice()
    with owned(device) as (source, _), owned(HostDevice()) as (target, _):
        source.record_written(range(3), [1, 2], [0, 0], [4, 4])

        def go_on() -> None:
            source.tables.record_written(range(3), [1], [4], [5])  # appended
            source.tables.record_written(range(3), [2], [0], [3])  # started over

        device.during = go_on
        source.copy_blocks(target, [0], [1, 2])
        assert target.tables.watermark[0, [1, 2]].tolist() == [4, 0]


@pytest.mark.parametrize("blocks", [[], [8], [-1, 2]])
def test_blocks_that_are_not_there_cannot_be_copied(pool: DevicePool, blocks: list[int]):
    with owned(HostDevice()) as (target, _), pytest.raises(DevicePoolError, match="must be within 0 to 7"):
        pool.copy_blocks(target, [0], blocks)


def test_pools_of_different_shape_exchange_nothing(pool: DevicePool):
    other = msgspec.structs.replace(SHAPE, blocks=4)
    with owned(HostDevice(), other) as (target, _), pytest.raises(DevicePoolError, match="cannot be copied between"):
        pool.copy_blocks(target, [0], [1])


# -- without torch -----------------------------------------------------------------------------------------------------


def test_the_package_can_be_imported_without_torch_and_says_so():
    code = (
        "import sys; sys.modules['torch'] = None; import runtime.warm.device_pool, runtime.warm.devices as devices;"
        "print(devices.unavailable('host'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torch cannot be imported")
