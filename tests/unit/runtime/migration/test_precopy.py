import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.migration.precopy import WHOLE, KVDelta, KVSource, KVTarget, PreCopy
from runtime.warm.kv_pool import KVPool, KVPoolError, KVPoolShape, TokenMap, block_spans
from tests.support.token_maps import tokens_in_a_row

BLOCK_TOKENS = 4
SHAPE = KVPoolShape(layers=2, blocks=6, block_tokens=BLOCK_TOKENS, layer_bytes=6 * 512)
TOKEN_BYTES = SHAPE.token_bytes
TOKENS_IN_A_ROW = tokens_in_a_row(SHAPE)
INTERLEAVED = TokenMap(4, np.random.default_rng(1).permutation(128).astype(np.int32).reshape(BLOCK_TOKENS, -1))


def make_pool(stack: ExitStack, token_map: TokenMap | None = None) -> KVPool:
    descriptor = KVPool.new_descriptor("precopy-test")
    stack.callback(os.close, descriptor)
    pool = KVPool.reserve(descriptor, SHAPE)
    if token_map is not None:
        pool.token_map = token_map
    return pool


@pytest.fixture
def pools() -> Iterator[tuple[KVPool, KVPool]]:
    """Pools of which nobody has told how tokens lie in a block: whole blocks travel."""
    with ExitStack() as stack:
        yield make_pool(stack), make_pool(stack)


@pytest.fixture(params=[TOKENS_IN_A_ROW, INTERLEAVED], ids=["in a row", "interleaved"])
def mapped(request: pytest.FixtureRequest) -> Iterator[tuple[KVPool, KVPool]]:
    with ExitStack() as stack:
        yield make_pool(stack, request.param), make_pool(stack, request.param)


@pytest.fixture
def copying(pools: tuple[KVPool, KVPool]) -> PreCopy:
    return both_layers(*pools)


def both_layers(source: KVPool, target: KVPool) -> PreCopy:
    return PreCopy(source, target, tuple(range(SHAPE.layers)))


def token_place(pool: KVPool, block: int, slot: int) -> np.ndarray:
    """Return which bytes of a layer a token has."""
    layout = pool.token_map or TOKENS_IN_A_ROW
    size = layout.element_bytes
    start = block * SHAPE.block_bytes + layout.offsets[slot].astype(int) * size
    return (start[:, None] + np.arange(size)).reshape(-1)


def token_bytes(pool: KVPool, layer: int, block: int, slot: int) -> bytes:
    return np.frombuffer(pool.layer_memory(layer), np.uint8)[token_place(pool, block, slot)].tobytes()


def write(pool: KVPool, blocks: list[int], first: int, stop: int, value: int) -> None:
    """Compute tokens ``[first, stop)`` of a request as a stage does: the bytes first, then the record."""
    spans = block_spans(blocks, BLOCK_TOKENS, first, stop)
    for layer in range(SHAPE.layers):
        for block, start, end in spans:
            for slot in range(start, end):
                memory = np.frombuffer(pool.layer_memory(layer), np.uint8)
                memory[token_place(pool, block, slot)] = (value + layer) % 256
    pool.record_written(range(SHAPE.layers), *zip(*spans, strict=True))


def holds_everything(source: KVPool, target: KVPool) -> bool:
    """Whether every valid token of the source is in the target, byte by byte."""
    return all(
        token_bytes(source, layer, block, slot) == token_bytes(target, layer, block, slot)
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


def test_a_block_that_grows_sends_only_its_new_tokens(mapped):
    source, target = mapped
    copying = both_layers(source, target)
    write(source, [2, 5], 0, 6, value=7)
    assert copying.round().sent_bytes == 2 * 6 * TOKEN_BYTES
    write(source, [2, 5], 6, 7, value=8)
    assert copying.stale_bytes() == 2 * TOKEN_BYTES
    assert copying.round().sent_bytes == 2 * TOKEN_BYTES
    assert holds_everything(source, target)
    assert copying.mismatches() == {}


def test_a_block_of_which_most_is_stale_travels_whole_and_its_rest_later(mapped):
    source, target = mapped
    copying = both_layers(source, target)
    write(source, [2], 0, 3, value=7)
    assert copying.round().sent_bytes == 2 * SHAPE.block_bytes
    assert holds_everything(source, target)
    write(source, [2], 3, 4, value=8)
    assert copying.round().sent_bytes == 2 * TOKEN_BYTES
    assert holds_everything(source, target)
    assert copying.mismatches() == {}


def test_a_sender_that_does_not_tell_how_tokens_lie_can_send_whole_blocks_only(pools):
    target = KVTarget(pools[1], (0,), b"")
    with pytest.raises(KVPoolError, match="single tokens"):
        target.apply(KVDelta(_entries((0, 2, 1, 0, 1)), np.ones(TOKEN_BYTES, np.uint8)))
    assert not pools[1].watermark.any()


def test_tokens_that_are_written_again_are_sent_again_even_when_more_have_followed(mapped):
    source, target = mapped
    copying = both_layers(source, target)
    write(source, [2], 0, 3, value=7)
    copying.round()
    write(source, [2], 1, 2, value=8)  # a batch that was replayed, say
    write(source, [2], 2, 4, value=9)
    copying.round()
    assert holds_everything(source, target)
    assert copying.mismatches() == {}


def test_nodes_whose_kernels_lay_tokens_out_differently_exchange_nothing():
    with ExitStack() as stack:
        with pytest.raises(KVPoolError, match="differently"):
            both_layers(make_pool(stack, INTERLEAVED), make_pool(stack, TOKENS_IN_A_ROW))
        with pytest.raises(KVPoolError, match="does not know yet"):
            both_layers(make_pool(stack, INTERLEAVED), make_pool(stack))


def test_a_large_pool_travels_in_several_deltas(mapped, monkeypatch: pytest.MonkeyPatch):
    source, target = mapped
    write(source, [1, 2, 3, 4, 5], 0, 20, value=3)
    monkeypatch.setattr("runtime.migration.precopy.DELTA_BYTES", 5 * TOKEN_BYTES)
    sender = KVSource(source, (0, 1))
    receiver = KVTarget(target, (0, 1), sender.layout_digest)
    deltas = list(sender.deltas())
    assert len(deltas) >= 8
    for delta in deltas:
        receiver.apply(delta)
    assert holds_everything(source, target)
    assert receiver.mismatches(sender.tables()) == {}


def _entries(*rows: tuple[int, ...]) -> np.ndarray:
    return np.array(rows, np.int32)


@pytest.mark.parametrize(
    ("entries", "tokens", "complaint"),
    [
        (_entries((1, 2, 1, 0, 1)), 1, "is for layers"),
        (_entries((0, 6, 1, 0, 1)), 1, "block 6"),
        (_entries((0, -1, 1, 0, 1)), 1, "block"),
        (_entries((0, 2, 1, 0, 5)), 5, "does not have"),
        (_entries((0, 2, 1, 2, 2)), 0, "does not have"),
        (_entries((0, 2, 1, -2, 2)), 4, "does not have"),
        (_entries((0, 2, 1, WHOLE, 0)), 4, "does not have"),
        (_entries((0, 2, 1, WHOLE, 3)), 3, "bytes"),
        (_entries((0, 2, 1, 1, 2)), 1, "never came"),
        (_entries((0, 2, 1, 0, 2)), 1, "bytes"),
        (_entries((0, 2, 1, 0, 2)), 3, "bytes"),
        (np.zeros((0, 5), np.int32), 0, "numbers"),
        (np.zeros((1, 4), np.int32), 0, "numbers"),
    ],
)
def test_a_delta_that_is_not_what_it_says_changes_nothing(entries: np.ndarray, tokens: int, complaint: str):
    with ExitStack() as stack:
        pool = make_pool(stack, INTERLEAVED)
        target = KVTarget(pool, (0,), INTERLEAVED.digest())
        before = bytes(pool.layer_memory(0)), pool.watermark.copy(), pool.generation.copy()
        with pytest.raises(KVPoolError, match=complaint):
            target.apply(KVDelta(entries, np.ones(tokens * TOKEN_BYTES, np.uint8)))
        assert bytes(pool.layer_memory(0)) == before[0]
        assert np.array_equal(pool.watermark, before[1])
        assert np.array_equal(pool.generation, before[2])


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
    copying = PreCopy(source, target, (1,))
    copying.round()
    assert not any(target.layer_memory(0))
    assert target.watermark[0].tolist() == [0] * SHAPE.blocks
    assert copying.mismatches() == {}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_i2_one_last_round_brings_over_whatever_was_written_and_never_claims_more(data: st.DataObject):
    """Requests come, grow and go between rounds, and take over each other's blocks."""
    with ExitStack() as stack:
        token_map = data.draw(st.sampled_from([None, TOKENS_IN_A_ROW, INTERLEAVED]))
        source, target = make_pool(stack, token_map), make_pool(stack, token_map)
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
