from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.streaming.token_counts import spread, token_weights

WEIGHTS = st.lists(st.integers(0, 50), min_size=1, max_size=60)


@given(st.integers(0, 500), WEIGHTS)
def test_the_parts_add_up_and_every_chunk_with_text_has_a_token_if_they_suffice(total, weights):
    parts = spread(total, weights)
    assert sum(parts) == total
    assert len(parts) == len(weights)
    assert min(parts) >= (1 if total >= len(weights) else 0)


@given(WEIGHTS)
def test_where_the_tokenizer_agrees_with_the_server_its_counts_are_kept(weights):
    weights = [max(weight, 1) for weight in weights]
    assert spread(sum(weights), weights) == weights


@given(st.integers(0, 500), WEIGHTS)
def test_a_heavier_chunk_never_gets_fewer(total, weights):
    parts = spread(total, weights)
    pairs = sorted(zip(weights, parts, strict=True))
    for (light, fewer), (heavy, more) in pairwise(pairs):
        assert heavy == light or more >= fewer


def test_tokens_without_chunks_cannot_be_spread():
    with pytest.raises(ValueError, match="3 tokens over chunks"):
        spread(3, [])
    assert spread(0, []) == []


def test_a_text_counts_with_the_one_before_it_because_tokens_join():
    def count(text: str) -> int:  # pairs of letters are one token
        return -(-len(text) // 2)

    assert token_weights(["abc", "d", "efgh"], count) == [2, 0, 2]
