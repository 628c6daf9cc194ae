import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.warm.kv_pool import KVPool, KVPoolError, KVPoolShape, block_spans
from tests.support.token_maps import tokens_in_a_row

ROOT = Path(__file__).parents[4]
PAGE = os.sysconf("SC_PAGESIZE")
BLOCK_TOKENS = 4
SHAPE = KVPoolShape(layers=3, blocks=8, block_tokens=BLOCK_TOKENS, layer_bytes=8 * PAGE)
ALL = range(3)


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = KVPool.new_descriptor("test")
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def pool(descriptor: int) -> KVPool:
    return KVPool.reserve(descriptor, SHAPE)


def write(pool: KVPool, blocks: list[int], first: int, stop: int, layers: range = ALL) -> None:
    """Record tokens ``[first, stop)`` of a request that lies in `blocks`, as a stage does."""
    spans = block_spans(blocks, pool.shape.block_tokens, first, stop)
    pool.record_written(layers, *zip(*spans, strict=True))


def resident_bytes(descriptor: int) -> int:
    return 512 * os.fstat(descriptor).st_blocks


# -- the memory --------------------------------------------------------------------------------------------------------


def test_a_fresh_pool_has_its_size_and_costs_nothing(descriptor: int, pool: KVPool):
    assert os.fstat(descriptor).st_size == SHAPE.total_bytes
    assert resident_bytes(descriptor) == 0
    assert len(pool.layer_memory(2)) == SHAPE.layer_bytes


def test_layers_do_not_overlap_and_neither_do_the_tables(pool: KVPool):
    for layer in ALL:
        memory = pool.layer_memory(layer)
        memory[:] = bytes([layer + 1]) * len(memory)
    assert not pool.watermark.any()
    assert not pool.generation.any()
    pool.watermark[:], pool.generation[:] = -1, -1
    for layer in ALL:
        assert bytes(pool.layer_memory(layer)) == bytes([layer + 1]) * SHAPE.layer_bytes


def test_layers_that_are_no_multiple_of_a_page_still_begin_at_one(descriptor: int):
    pool = KVPool.reserve(descriptor, KVPoolShape(layers=2, blocks=3, block_tokens=2, layer_bytes=PAGE + 6))
    pool.layer_memory(0)[:] = b"\xff" * (PAGE + 6)
    assert not any(pool.layer_memory(1))
    pool.scrub(range(1))
    assert not any(pool.layer_memory(0))


def test_two_mappings_of_one_pool_see_the_same(descriptor: int, pool: KVPool):
    other = KVPool(descriptor, SHAPE)
    other.layer_memory(1)[100] = 7
    other.record_written(range(1, 2), [5], [0], [3])
    assert pool.layer_memory(1)[100] == 7
    assert pool.stale_blocks(range(1, 2), [5], 3) == []


def test_another_process_maps_the_same_pool_and_both_see_what_the_other_writes(descriptor: int, pool: KVPool):
    pool.layer_memory(0)[5] = 99
    pool.record_written(range(1), [3], [0], [2])
    arguments = (descriptor, SHAPE.layers, SHAPE.blocks, SHAPE.block_tokens, SHAPE.layer_bytes, 0, 2)
    command = [sys.executable, "-m", "tests.unit.runtime.warm.second_process", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, pass_fds=[descriptor], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "99 2\n", "")
    # The process is gone, what it wrote is not.
    assert pool.layer_memory(2)[7] == 42
    assert pool.stale_blocks(range(2, 3), [2], BLOCK_TOKENS - 1) == []
    assert pool.stale_blocks(range(2, 3), [2], BLOCK_TOKENS) == [(2, 2, BLOCK_TOKENS - 1)]


def test_a_descriptor_of_another_size_is_refused(descriptor: int):
    os.ftruncate(descriptor, SHAPE.total_bytes - 1)
    with pytest.raises(KVPoolError, match=rf"has {SHAPE.total_bytes - 1} bytes, but 3 layers with 8 blocks need"):
        KVPool(descriptor, SHAPE)


@pytest.mark.parametrize("layer_bytes", [1 << 50, 1 << 62])
def test_a_size_that_the_kernel_refuses_is_an_error_of_the_pool(descriptor: int, layer_bytes: int):
    with pytest.raises(KVPoolError, match="bytes"):
        KVPool.reserve(descriptor, KVPoolShape(1, 8, BLOCK_TOKENS, layer_bytes))


@pytest.mark.parametrize("layer", [-1, 3, 1000])
def test_a_layer_outside_the_pool_is_refused(pool: KVPool, layer: int):
    with pytest.raises(KVPoolError, match=f"layer {layer} is not in this pool of 3 layers"):
        pool.layer_memory(layer)


def test_sizes_are_what_they_say():
    shape = KVPoolShape(layers=30, blocks=10, block_tokens=128, layer_bytes=10 * 128 * 1536)
    assert (shape.block_bytes, shape.token_bytes) == (128 * 1536, 1536)
    assert shape.table_bytes % PAGE == 0
    assert shape.total_bytes == 2 * shape.table_bytes + shape.map_bytes + 30 * shape.layer_bytes


# -- watermarks and generations ----------------------------------------------------------------------------------------


def test_a_write_is_recorded_for_its_layers_and_blocks_and_nowhere_else(pool: KVPool):
    write(pool, [5, 2, 7], 0, 10, layers=range(1, 3))
    expected = {(layer, block): stop for layer in (1, 2) for block, stop in ((5, 4), (2, 4), (7, 2))}
    for layer in ALL:
        for block in range(SHAPE.blocks):
            assert pool.watermark[layer, block] == expected.get((layer, block), 0)
            assert pool.generation[layer, block] == ((layer, block) in expected)


def test_going_on_in_a_block_moves_the_watermark_and_not_the_generation(pool: KVPool):
    write(pool, [5], 0, 2)
    write(pool, [5], 2, 3)
    assert (pool.watermark[0, 5], pool.generation[0, 5]) == (3, 1)


def test_i2_a_half_filled_block_is_stale_beyond_its_last_token(pool: KVPool):
    write(pool, [5, 2], 0, 6)
    assert pool.stale_blocks(ALL, [5, 2], 6) == []
    assert pool.stale_blocks(ALL, [5, 2], 7) == [(layer, 2, 2) for layer in ALL]


def test_i2_a_layer_that_lags_behind_is_named_with_its_block_and_watermark(pool: KVPool):
    write(pool, [5, 2], 0, 7)
    write(pool, [5, 2], 7, 8, layers=range(2))
    assert pool.stale_blocks(ALL, [5, 2], 8) == [(2, 2, 3)]


def test_i2_a_block_reused_by_a_shorter_request_is_stale_for_the_longer_promise(pool: KVPool):
    write(pool, [5], 0, 4)
    write(pool, [5], 0, 1)
    assert pool.stale_blocks(ALL, [5], 4) == [(layer, 5, 1) for layer in ALL]
    assert pool.generation[0, 5] == 2


def test_the_null_block_holds_no_token_and_promises_none(pool: KVPool):
    write(pool, [0, 5], 4, 5)
    assert pool.stale_blocks(ALL, [0, 5], BLOCK_TOKENS + 1) == []


def test_a_promise_of_nothing_is_kept(pool: KVPool):
    assert pool.stale_blocks(ALL, [], 0) == []
    assert pool.stale_blocks(ALL, [5], 0) == []


def test_blocks_beyond_the_promise_do_not_matter(pool: KVPool):
    write(pool, [5], 0, 4)
    assert pool.stale_blocks(ALL, [5, 6, 7], 4) == []


def test_a_promise_of_more_tokens_than_its_blocks_hold_is_refused(pool: KVPool):
    with pytest.raises(KVPoolError, match="9 tokens are promised, but 2 blocks hold 8 at most"):
        pool.stale_blocks(ALL, [5, 6], 9)


class NaivePool:
    """What the pool promises, one token at a time: the tokens of each layer and block recorded since it was started."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[int, int], set[int]] = {}
        self.starts: dict[tuple[int, int], int] = {}

    def write(self, layers: range, blocks: list[int], first: int, stop: int) -> None:
        for layer in layers:
            for token in range(first, stop):
                block, slot = blocks[token // BLOCK_TOKENS], token % BLOCK_TOKENS
                if slot == 0:
                    self.tokens[layer, block] = set()
                    self.starts[layer, block] = self.starts.get((layer, block), 0) + 1
                self.tokens[layer, block].add(slot)

    def stale(self, layers: range, blocks: list[int], tokens: int) -> list[tuple[int, int, int]]:
        promised: dict[int, set[int]] = {}
        for token in range(tokens):
            promised.setdefault(token // BLOCK_TOKENS, set()).add(token % BLOCK_TOKENS)
        return [
            (layer, blocks[index], len(held))
            for layer in layers
            for index, slots in promised.items()
            if blocks[index] != 0 and not slots <= (held := self.tokens.get((layer, blocks[index]), set()))
        ]


ranges = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(lambda ends: range(min(ends), max(ends)))


@settings(max_examples=150)
@given(st.data())
def test_i2_no_block_is_stale_when_and_only_when_every_promised_token_is_recorded(data: st.DataObject):
    """Requests come and go, advance in chunks on any range of layers, and inherit each other's blocks."""
    descriptor = KVPool.new_descriptor("model")
    try:
        pool, naive = KVPool.reserve(descriptor, SHAPE), NaivePool()
        free = list(range(1, SHAPE.blocks))
        live: dict[int, tuple[list[int], dict[int, int]]] = {}
        for number in range(data.draw(st.integers(1, 12))):
            if live and data.draw(st.booleans()):
                blocks, _ = live.pop(data.draw(st.sampled_from(sorted(live))))
                free += blocks
            if free:
                blocks = [free.pop(data.draw(st.integers(0, len(free) - 1))) for _ in range(min(2, len(free)))]
                live[number] = blocks, dict.fromkeys(ALL, 0)
            for blocks, written in live.values():
                layers = data.draw(ranges)
                stop = data.draw(st.integers(0, BLOCK_TOKENS * len(blocks)))
                for layer in layers:
                    if stop > written[layer]:
                        one = range(layer, layer + 1)
                        write(pool, blocks, written[layer], stop, one)
                        naive.write(one, blocks, written[layer], stop)
                        written[layer] = stop
            for blocks, _ in live.values():
                asked, tokens = data.draw(ranges), data.draw(st.integers(0, BLOCK_TOKENS * len(blocks)))
                assert pool.stale_blocks(asked, blocks, tokens) == naive.stale(asked, blocks, tokens)
        for (layer, block), starts in naive.starts.items():
            assert pool.generation[layer, block] == starts
    finally:
        os.close(descriptor)


@given(st.integers(1, 8), st.data())
def test_spans_of_tokens_cover_each_token_once_in_its_block(block_tokens: int, data: st.DataObject):
    blocks = data.draw(st.lists(st.integers(1, 100), min_size=1, max_size=6, unique=True))
    stop = data.draw(st.integers(0, block_tokens * len(blocks)))
    first = data.draw(st.integers(0, stop))
    covered = [
        (block, slot)
        for block, start, end in block_spans(blocks, block_tokens, first, stop)
        for slot in range(start, end)
    ]
    assert covered == [(blocks[token // block_tokens], token % block_tokens) for token in range(first, stop)]


# -- populate and scrub ------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.integers(0, 7), max_size=8, unique=True), st.integers(1, 3 * PAGE))
def test_populating_never_changes_what_is_in_the_pool(used: list[int], layer_bytes: int):
    shape = KVPoolShape(3, 8, BLOCK_TOKENS, layer_bytes - layer_bytes % 8 + 8)
    descriptor = KVPool.new_descriptor("populate")
    try:
        pool = KVPool.reserve(descriptor, shape)
        for layer in ALL:
            memory = pool.layer_memory(layer)
            memory[:] = bytes((7 * layer + index) % 251 for index in range(len(memory)))
        pool.watermark[:, used] = 1
        before = os.pread(descriptor, shape.total_bytes, 0)
        KVPool(descriptor, shape).populate(ALL)
        assert os.pread(descriptor, shape.total_bytes, 0) == before
    finally:
        os.close(descriptor)


def test_populating_takes_no_memory_for_blocks_that_nobody_uses(descriptor: int, pool: KVPool):
    write(pool, [2], 0, 1, layers=range(1))
    pool.populate(ALL)
    assert resident_bytes(descriptor) <= 2 * SHAPE.table_bytes + SHAPE.block_bytes


def test_scrubbing_zeroes_the_layers_and_gives_their_memory_back(descriptor: int, pool: KVPool):
    other = KVPool(descriptor, SHAPE)
    for layer in ALL:
        pool.layer_memory(layer)[:] = b"\xab" * SHAPE.layer_bytes
    write(pool, [1, 2], 0, 8)
    full = resident_bytes(descriptor)
    pool.scrub(range(1, 3))
    assert resident_bytes(descriptor) == full - 2 * SHAPE.layer_bytes
    assert not any(other.layer_memory(1))
    assert not any(other.layer_memory(2))
    assert bytes(other.layer_memory(0)) == b"\xab" * SHAPE.layer_bytes
    assert other.stale_blocks(ALL, [1, 2], 8) == [(layer, block, 0) for layer in (1, 2) for block in (1, 2)]
    assert other.generation.tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [0] * 8, [0] * 8]


def test_i2_nobody_who_reads_beside_a_writer_sees_an_old_watermark_with_a_new_generation(pool: KVPool):
    """Pre-copy reads both, generation first: an old watermark beside it would say that tokens to come were sent."""
    write(pool, [5], 0, 4)
    seen: list[tuple[int, int]] = []

    class Watched(np.ndarray):
        def __setitem__(self, key: object, value: object) -> None:
            super().__setitem__(key, value)
            seen.append((int(pool.generation[0, 5]), int(pool.watermark[0, 5])))

    pool.generation, pool.watermark = pool.generation.view(Watched), pool.watermark.view(Watched)
    write(pool, [5], 0, 2)
    write(pool, [5], 1, 3)
    assert seen == [(1, 0), (2, 0), (2, 2), (2, 1), (3, 1), (3, 3)]


class TestCheckingWhatAProcessLeft:
    def test_a_pool_in_use_is_possible(self, pool: KVPool):
        pool.check()
        pool.token_map = tokens_in_a_row(pool.shape)
        pool.record_written(range(pool.shape.layers), [1, 2], [0, 0], [pool.shape.block_tokens, 1])
        pool.check()

    @pytest.mark.parametrize("tokens", [-1, 1 << 30])
    def test_a_watermark_outside_its_block_is_not(self, pool: KVPool, tokens: int):
        pool.watermark[1, 2] = tokens
        with pytest.raises(KVPoolError, match="watermarks that are not within 0 and"):
            pool.check()

    @pytest.mark.parametrize("element_bytes", [-4, 3, 1 << 20])
    def test_elements_that_do_not_fill_a_block_are_not(self, pool: KVPool, element_bytes: int):
        pool._map_table[0] = element_bytes
        with pytest.raises(KVPoolError, match=f"for elements of {element_bytes} bytes"):
            pool.check()

    @given(st.data())
    def test_a_map_that_gives_two_tokens_one_place_is_not(self, data: st.DataObject):
        descriptor = KVPool.new_descriptor("checked")
        try:
            pool = KVPool.reserve(descriptor, SHAPE)
            known = tokens_in_a_row(SHAPE)
            known.offsets.reshape(-1)[data.draw(st.integers(1, known.offsets.size - 1))] = 0
            pool.token_map = known
            with pytest.raises(KVPoolError, match="does not map every place of a block once"):
                pool.check()
        finally:
            os.close(descriptor)
