"""Tokens: what is one word, and what stood where."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intents.translation.embedded.tokens import tokenize


@pytest.mark.parametrize(
    ("sentence", "norms"),
    [
        ("It mustn't leave.", ["it", "must", "not", "leave", "."]),
        (
            "It can't, won't, shan\u2019t, don't",
            ["it", "can", "not", ",", "will", "not", ",", "shall", "not", ",", "do", "not"],
        ),
        ("cannot", ["can", "not"]),
        ("They're there; it's Germany's", ["they", "are", "there", ";", "it", "is", "germany", "'s"]),
        ("the patients' data", ["the", "patients", "'s", "data"]),
        ("EU-based edge-1", ["eu", "based", "edge", "1"]),
        ("disk=ssd", ["disk", "=", "ssd"]),
        ('node "only"', ["node", "only"]),
        ("in the U.S. or", ["in", "the", "u", "s", "or"]),
        ("Zürich (not Bern)", ["zurich", ",", "not", "bern"]),
    ],
)
def test_a_sentence_has_these_tokens(sentence: str, norms: list[str]) -> None:
    assert [token.norm for token in tokenize(sentence)] == norms


def test_a_hyphen_is_kept_as_what_stood_between() -> None:
    first, second = tokenize("edge-1")

    assert (first.glue, second.glue) == (" ", "-")


@given(st.text(max_size=60))
def test_every_letter_and_digit_of_any_text_is_in_a_token(text: str) -> None:
    tokens = tokenize(text)
    covered = {index for token in tokens for index in range(token.start, token.end)}

    assert all(index in covered for index, each in enumerate(text) if each.isalnum())
    assert all(left.end <= right.start for left, right in itertools.pairwise(tokens))
