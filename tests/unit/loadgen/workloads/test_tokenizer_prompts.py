"""Prompts by a tokenizer: exactly as long as asked for, by the tokenizer's own count.

The small tokenizers here are of the kinds that models have: byte-level, sentence pieces with a space of their own in
front, with special tokens around a text, and whole words. The built-in model's is used where its files are at hand.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from loadgen.workloads import PromptError, TokenIds, open_prompts, parse_workload, requests_in_order
from loadgen.workloads import Tokenizer as TokenizerPrompts
from loadgen.workloads.common_words import COMMON_WORDS
from loadgen.workloads.tokenizer_prompts import TokenizerSource
from runtime.model.builtin import BUILT_IN
from runtime.model.cache import default_cache_dir

TEXT = [" ".join(COMMON_WORDS)] * 3 + ["strange wordings are tokenised in pieces"]


class Called:
    """A tokenizer called as those of transformers are."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts, *, add_special_tokens, verbose):
        found = self.tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in found]}

    def get_vocab(self):
        return self.tokenizer.get_vocab()


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=1500, show_progress=False))
    return tokenizer


def sentence_pieces():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=1500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    )
    return tokenizer


def with_specials():
    tokenizer = sentence_pieces()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))],
    )
    return tokenizer


def whole_words():
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(COMMON_WORDS)}, unk_token="the"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


KINDS = {kind.__name__: kind() for kind in (byte_level, sentence_pieces, with_specials, whole_words)}
SOURCES = {name: TokenizerSource(Called(tokenizer), name) for name, tokenizer in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_most_common_words_are_found(name):
    assert SOURCES[name].vocabulary > 250


def test_special_tokens_are_found_and_counted():
    assert {name: source.special_tokens for name, source in SOURCES.items()} == {
        "byte_level": 0,
        "sentence_pieces": 0,
        "with_specials": 2,
        "whole_words": 0,
    }
    assert SOURCES["with_specials"].special_tokens_before == 1


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_any_words_are_exactly_as_many_tokens(name, data):
    source, tokenizer = SOURCES[name], KINDS[name]
    words = data.draw(st.lists(st.integers(0, source.vocabulary - 1), min_size=1, max_size=60))
    prompt = source.prompt(np.array(words))
    found = tokenizer.encode(prompt.text)
    assert prompt.tokens == len(words) + source.special_tokens == len(found.ids)
    assert list(prompt.token_ids) == found.ids


@pytest.mark.parametrize("name", KINDS)
def test_prompts_of_a_plan_have_the_length_that_was_asked_for(name):
    workload = parse_workload(
        {
            "kind": "sessions",
            "arrivals": {"kind": "constant", "rate": 1},
            "sessions": 3,
            "turns": 3,
            "input_tokens": 20,
            "output_tokens": 30,
            "shared_prefix": {"tokens": 10},
        }
    )
    for request in requests_in_order(workload.plan(1, SOURCES[name])):
        assert len(KINDS[name].encode(request.prompt.text).ids) == request.prompt.tokens == 30 + 50 * request.turn


def test_a_word_of_the_vocabulary_that_no_text_becomes_is_left_out():
    description = json.loads(byte_level().to_str())
    vocabulary = description["model"]["vocab"]
    vocabulary["\u0120unreachable"] = len(vocabulary)  # without the merges that lead to it
    source = TokenizerSource(Called(Tokenizer.from_str(json.dumps(description))), "with a word of no use")
    assert source.vocabulary == SOURCES["byte_level"].vocabulary


def test_a_tokenizer_that_joins_words_is_refused():
    joining = Tokenizer(models.Unigram([("<unk>", 0.0), *[(chr(97 + i) * 2, -1.0) for i in range(26)]], unk_id=0))
    with pytest.raises(PromptError, match=r"'joining' has no words that keep apart.*kind: token_ids"):
        TokenizerSource(Called(joining), "joining")


def test_an_inexact_prompt_is_an_error_and_not_a_wrong_figure():
    source = TokenizerSource(Called(byte_level()), "changing")
    source._tokenizer.tokenizer.add_tokens([source._vocabulary.words[0]])
    with pytest.raises(PromptError, match=r"'changing' makes .* tokens of a text meant to be 3"):
        source.prompt(np.array([0, 0, 1]))


def test_a_folder_without_a_tokenizer_is_one_error(tmp_path):
    with pytest.raises(PromptError, match=r"cannot load the tokenizer '.*': .* Give a folder or a hub id\."):
        TokenizerSource.load(str(tmp_path))


@pytest.fixture(scope="module")
def built_in():
    folder = default_cache_dir(os.environ) / "models" / BUILT_IN.name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"the built-in model's tokenizer is not in {folder}: `python -m runtime.model` prepares it")
    source = open_prompts(TokenizerPrompts(kind="tokenizer", tokenizer=str(folder)))
    return source, Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def test_the_built_in_models_tokenizer_has_a_large_vocabulary_of_words(built_in):
    source, _ = built_in
    assert source.vocabulary > 10_000
    assert source.special_tokens == 0


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_prompts_are_exact_by_the_built_in_models_tokenizer(built_in, data):
    source, tokenizer = built_in
    words = data.draw(st.lists(st.integers(0, source.vocabulary - 1), min_size=1, max_size=200))
    prompt = source.prompt(np.array(words))
    assert tokenizer.encode(prompt.text).ids == list(prompt.token_ids)
    assert prompt.tokens == len(words)


def test_long_prompts_are_exact_by_the_built_in_models_tokenizer(built_in):
    source, tokenizer = built_in
    workload = parse_workload(
        {
            "kind": "open",
            "arrivals": {"kind": "constant", "rate": 1},
            "requests": 20,
            "input_tokens": {"kind": "choice", "values": [1, 2, 500, 9000]},
            "output_tokens": 1,
        }
    )
    for request in requests_in_order(workload.plan(5, source)):
        assert len(tokenizer.encode(request.prompt.text).ids) == request.prompt.tokens


def test_token_ids_need_no_tokenizer():
    prompt = open_prompts(TokenIds(kind="token_ids", vocabulary=5000)).prompt(np.array([0, 4899]))
    assert (prompt.text, prompt.token_ids, prompt.tokens) == (None, (100, 4999), 2)
