"""Contents of prompts: shared where meant, and nowhere else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.workloads.contents import LEAST_VOCABULARY, Contents

SIZES = st.integers(LEAST_VOCABULARY, 300_000)


@settings(deadline=None)
@given(st.integers(0, 2**64), SIZES)
def test_words_are_within_the_vocabulary_and_follow_from_the_seed(seed, size):
    words = Contents(seed, size).own(40, 7, "phase", 7)
    assert (words >= 0).all()
    assert (words < size).all()
    assert (words == Contents(seed, size).own(40, 7, "phase", 7)).all()


@settings(deadline=None)
@given(st.integers(0, 2**32), SIZES, st.lists(st.integers(0, 2**31 - 1), unique=True, min_size=2, max_size=50))
def test_no_two_prompts_of_a_plan_begin_alike(seed, size, identities):
    contents = Contents(seed, size)
    beginnings = {tuple(contents.own(5, identity, identity)) for identity in identities}  # 128**5 > 2**31
    assert len(beginnings) == len(identities)


@pytest.mark.parametrize("size", [128, 1000, 21504])
def test_consecutive_prompts_differ_in_their_first_word(size):
    contents = Contents(3, size)
    firsts = [int(contents.own(1, identity, identity)[0]) for identity in range(size)]
    assert sorted(firsts) == list(range(size))


def test_a_prefix_is_the_same_for_a_group_and_another_for_another():
    contents = Contents(1, 1000)
    assert (contents.prefix(100, 0) == Contents(1, 1000).prefix(100, 0)).all()
    assert contents.prefix(100, 0)[0] != contents.prefix(100, 1)[0]


@settings(deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 512))
def test_a_shorter_block_is_the_beginning_of_the_whole_one(hash_id, count):
    contents = Contents(1, 1000)
    assert (contents.block(count, hash_id) == contents.block(512, hash_id)[:count]).all()


def test_another_seed_gives_other_words():
    assert (Contents(1, 1000).own(50, 0, 0) != Contents(2, 1000).own(50, 0, 0)).sum() > 40
