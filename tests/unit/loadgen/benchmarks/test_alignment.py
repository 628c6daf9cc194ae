import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.benchmarks.alignment import TokenDifference, compare

REFERENCE = list(range(100, 130))


def test_the_same_sequence_is_identical():
    assert compare(REFERENCE, tuple(REFERENCE)) == TokenDifference(True, 0, 0, 0, None)


def test_a_missing_token_is_lost():
    assert compare(REFERENCE, REFERENCE[:7] + REFERENCE[8:]) == TokenDifference(False, 1, 0, 0, None)


def test_a_token_sent_twice_is_repeated():
    assert compare(REFERENCE, REFERENCE[:8] + REFERENCE[7:]) == TokenDifference(False, 0, 1, 0, None)


def test_a_token_repeated_within_the_servers_limit_pushes_the_last_one_out():
    assert compare(REFERENCE, (REFERENCE[:8] + REFERENCE[7:])[:30]) == TokenDifference(False, 1, 1, 0, None)


def test_a_cut_stream_lost_its_tail():
    assert compare(REFERENCE, REFERENCE[:20]) == TokenDifference(False, 10, 0, 0, None)


def test_an_empty_stream_lost_everything():
    assert compare(REFERENCE, []) == TokenDifference(False, 30, 0, 0, None)


def test_a_stream_that_goes_on_differently_has_diverged_and_lost_nothing():
    other = REFERENCE[:12] + [t + 1000 for t in REFERENCE[12:]]
    assert compare(REFERENCE, other) == TokenDifference(False, 0, 0, 18, 12)


@pytest.mark.parametrize(("length", "lost", "repeated", "replaced"), [(17, 13, 0, 5), (40, 0, 10, 18)])
def test_a_divergence_of_another_length_lost_or_repeated_the_difference(length, lost, repeated, replaced):
    other = [*REFERENCE[:12], *range(length - 12)]
    assert compare(REFERENCE, other) == TokenDifference(False, lost, repeated, replaced, 12)


def test_common_words_after_a_divergence_are_not_counted_as_losses():
    diverged = [*REFERENCE[:12], 7, 8, REFERENCE[20], 9, REFERENCE[15], *range(13)]
    assert compare(REFERENCE, diverged) == TokenDifference(False, 0, 0, 18, 12)


def test_frequent_tokens_of_a_long_stream_are_aligned_like_any_other():
    looping = [1, 2, 3] * 100  # difflib would by default ignore what makes up a long sequence
    assert compare(looping, looping[:150] + looping[151:]) == TokenDifference(False, 1, 0, 0, None)


tokens = st.lists(st.integers(0, 5), max_size=40)


@given(tokens, tokens)
def test_lengths_always_add_up(reference, got):
    found = compare(reference, got)
    assert len(got) == len(reference) - found.lost + found.repeated
    assert min(found.lost, found.repeated, found.replaced) >= 0


@given(tokens, tokens)
def test_identical_means_equal(reference, got):
    found = compare(reference, got)
    assert found.identical == (reference == got)
    assert found.identical == (found.lost == found.repeated == found.replaced == 0)


unique = st.lists(st.integers(0, 10**6), min_size=3, max_size=60, unique=True)


@given(unique, st.data())
def test_any_single_loss_or_repetition_is_found(reference, data):
    at = data.draw(st.integers(0, len(reference) - 1))
    assert compare(reference, reference[:at] + reference[at + 1 :]) == TokenDifference(False, 1, 0, 0, None)
    assert compare(reference, reference[: at + 1] + reference[at:]) == TokenDifference(False, 0, 1, 0, None)
