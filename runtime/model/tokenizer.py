"""Rebuilds the tokenizer that a GGUF file describes, as Hugging Face tokenizer files.

GGUF holds the vocabulary, the merges, the special tokens and the *name* of the rule that splits text before
merging; the rule itself is in llama.cpp. The built-in model's is `smollm`: every digit by itself, then GPT-2's
splitting. Leaving the digits out would go unnoticed on most text, yet spaces before a digit would become tokens
that the model never saw in training.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from runtime.model.gguf_file import GgufFile

CONTROL_TOKEN = 3
"""`gguf.TokenType.CONTROL`: a token that is never part of ordinary text."""


def write_tokenizer(source: GgufFile, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`.

    Raises:
        ConversionError: the file describes another kind of tokenizer, or lacks a part of it.
    """
    source.require("tokenizer.ggml.model", "gpt2")
    source.require("tokenizer.ggml.pre", "smollm")
    tokens = source.get("tokenizer.ggml.tokens", list)
    merges = [tuple(merge.split(" ", 1)) for merge in source.get("tokenizer.ggml.merges", list)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = source.get("tokenizer.ggml.token_type", list)
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.get("llama.context_length", int),
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[source.get("tokenizer.ggml.bos_token_id", int)],
        "eos_token": tokens[source.get("tokenizer.ggml.eos_token_id", int)],
        "unk_token": tokens[source.get("tokenizer.ggml.unknown_token_id", int)],
        "pad_token": tokens[source.get("tokenizer.ggml.padding_token_id", int)],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    template = source.get("tokenizer.chat_template", str)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
