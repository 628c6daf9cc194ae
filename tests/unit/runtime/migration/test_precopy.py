import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.migration.precopy import LayerMove, PreCopy
from runtime.warm.kv_pool import KVPool, KVPoolShape, block_spans

BLOCK_TOKENS = 4
SHAPE = KVPoolShape(layers=2, blocks=6, block_tokens=BLOCK_TOKENS, layer_bytes=6 * 512)
TOKEN_BYTES = SHAPE.token_bytes


def make_pool(stack: ExitStack) -> KVPool:
    descriptor = KVPool.new_descriptor("precopy-test")
    stack.callback(os.close, descriptor)
    return KVPool.reserve(descriptor, SHAPE)


@pytest.fixture
def pools() -> Iterator[tuple[KVPool, KVPool]]:
    with ExitStack() as stack:
        yield make_pool(stack), make_pool(stack)


@pytest.fixture
def copying(pools: tuple[KVPool, KVPool]) -> PreCopy:
    return both_layers(*pools)


def both_layers(source: KVPool, target: KVPool) -> PreCopy:
    return PreCopy(tuple(LayerMove(layer, source, target) for layer in range(SHAPE.layers)))


def token_memory(pool: KVPool, layer: int, block: int, slot: int) -> memoryview:
    start = block * SHAPE.block_bytes + slot * TOKEN_BYTES
    return pool.layer_memory(layer)[start : start + TOKEN_BYTES]


def write(pool: KVPool, blocks: list[int], first: int, stop: int, value: int) -> None:
    """Compute tokens ``[first, stop)`` of a request as a stage does: the bytes first, then the record."""
    spans = block_spans(blocks, BLOCK_TOKENS, first, stop)
    for layer in range(SHAPE.layers):
        for block, start, end in spans:
            for slot in range(start, end):
                token_memory(pool, layer, block, slot)[:] = bytes([(value + layer) % 256]) * TOKEN_BYTES
    pool.record_written(range(SHAPE.layers), *zip(*spans, strict=True))


def holds_everything(source: KVPool, target: KVPool) -> bool:
    """Whether every valid token of the source is in the target, byte by byte."""
    return all(
        bytes(token_memory(source, layer, block, slot)) == bytes(token_memory(target, layer, block, slot))
        for layer in range(SHAPE.layers)
        for block in range(SHAPE.blocks)
        for slot in range(source.watermark[layer, block])
    ) and np.array_equal(source.watermark, target.watermark)


def test_an_empty_pool_has_nothing_to_copy(copying: PreCopy):
    copied = copying.round()
    assert (copied.sent_bytes, copied.stale_bytes) == (0, 0)
    assert copying.mismatches() == {}


def test_only_blocks_with_tokens_travel_and_only_once(pools, copying: PreCopy):
    write(pools[0], [2, 5], 0, 6, value=7)
    assert copying.stale_bytes() == 2 * 2 * SHAPE.block_bytes
    copied = copying.round()
    assert (copied.sent_bytes, copied.stale_bytes) == (2 * 2 * SHAPE.block_bytes, 0)
    assert copied.seconds > 0
    assert holds_everything(*pools)
    assert copying.round().sent_bytes == 0
    assert copying.sent_bytes == copied.sent_bytes


def test_i2_a_half_filled_block_goes_stale_with_its_next_token(pools, copying: PreCopy):
    write(pools[0], [2, 5], 0, 6, value=7)
    copying.round()
    write(pools[0], [2, 5], 6, 7, value=8)
    assert copying.mismatches() == {0: 1, 1: 1}
    assert copying.round().sent_bytes == 2 * SHAPE.block_bytes
    assert copying.mismatches() == {}
    assert holds_everything(*pools)


@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_i2_a_block_that_started_over_goes_stale_even_with_the_same_number_of_tokens(
    pools, copying: PreCopy, tokens: int
):
    write(pools[0], [2], 0, 3, value=7)
    copying.round()
    write(pools[0], [2], 0, tokens, value=9)
    assert copying.mismatches() == {0: 1, 1: 1}
    copying.round()
    assert copying.mismatches() == {}
    assert holds_everything(*pools)


def test_what_an_earlier_owner_left_at_the_target_counts_for_nothing(pools):
    source, target = pools
    write(target, [1, 2, 3], 0, 12, value=99)
    write(source, [2], 0, 4, value=7)
    copying = both_layers(source, target)
    assert target.stale_blocks(range(2), [1], 1) == [(0, 1, 0), (1, 1, 0)]
    copying.round()
    assert holds_everything(source, target)


def test_a_layer_that_stays_is_not_touched(pools):
    source, target = pools
    write(source, [2], 0, 4, value=7)
    copying = PreCopy((LayerMove(1, source, target),))
    copying.round()
    assert not any(target.layer_memory(0))
    assert target.watermark[0].tolist() == [0] * SHAPE.blocks
    assert copying.mismatches() == {}


def test_after_a_commit_the_source_is_erased_and_after_an_abort_the_target(pools, copying: PreCopy):
    source, target = pools
    write(source, [2], 0, 4, value=7)
    copying.round()
    copying.scrub_target()
    assert not any(target.layer_memory(0))
    assert not target.watermark.any()
    assert source.stale_blocks(range(2), [2], 4) == []
    copying.scrub_source()
    assert not any(source.layer_memory(1))
    assert not source.watermark.any()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_i2_one_last_round_brings_over_whatever_was_written_and_never_claims_more(data: st.DataObject):
    """Requests come, grow and go between rounds, and take over each other's blocks."""
    with ExitStack() as stack:
        source, target = make_pool(stack), make_pool(stack)
        copying = both_layers(source, target)
        for value in range(1, data.draw(st.integers(2, 15))):
            blocks = data.draw(st.permutations(range(1, SHAPE.blocks)))[: data.draw(st.integers(1, 3))]
            stop = data.draw(st.integers(1, BLOCK_TOKENS * len(blocks)))
            middle = data.draw(st.integers(0, stop - 1))
            if middle:
                write(source, blocks, 0, middle, 16 * value)
            if data.draw(st.booleans()):
                copying.round()
                assert holds_everything(source, target)
            write(source, blocks, middle, stop, 16 * value)
        assert copying.round().stale_bytes == 0
        assert copying.mismatches() == {}
        assert holds_everything(source, target)
