"""A model of another family than the built-in one, small enough to be written and loaded in seconds.

Random weights alone make a poor test model: greedy decoding soon repeats one token, which hides a lost or doubled
one, and its best two logits often nearly tie. Here the weights are random but arranged so that

- the output is visible ASCII and never ends by itself: a constant first hidden channel, which no layer writes,
  pushes down the logits of all other tokens, the end token among them;
- without its layers the model would walk through all 94 visible characters in a fixed random order: their
  embeddings are orthogonal and each is the output direction of its successor;
- attention is sharp and strong enough to throw that walk off course every few tokens, depending on the whole
  history, so wrong KV cache entries show as other text: 16 missing positions in one layer always or nearly so.

Serve it with `--dtype float32` (vLLM would choose bfloat16). Over 8192 greedy tokens the best logit never led by
less than 2e-5 of the logits' size, where float32 kernels differ by about 1e-6.
"""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HIDDEN_SIZE = 128
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32
INTERMEDIATE_SIZE = 256
VISIBLE = 94
"""Characters ! to ~; they are the tokens 0 to 93."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a"))
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_qwen(folder: Path, *, layers: int = 4, seed: int = 0) -> Path:
    """Write a Qwen3 model with random float32 weights and a byte-level tokenizer; return `folder`.

    Equal arguments write equal files. About 0.6 MB per layer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    pad, _, end = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
    vocabulary_size = tokenizer.get_vocab_size()
    save_file(_weights(layers, vocabulary_size, seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    ids = {"eos_token_id": end, "pad_token_id": pad}
    _write_json(folder / "generation_config.json", ids)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
            "eos_token": SPECIAL_TOKENS[2],
            "pad_token": SPECIAL_TOKENS[0],
        },
    )
    _write_json(
        folder / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "dtype": "float32",
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": INTERMEDIATE_SIZE,
            "num_hidden_layers": layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "attention_bias": False,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": False,
            "vocab_size": vocabulary_size,
            **ids,
        },
    )
    return folder


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *("".join(merge) for merge in MERGES)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _weights(layers: int, vocabulary_size: int, seed: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> NDArray[np.float64]:
        weight: NDArray[np.float64] = random.standard_normal((rows, columns)) * (scale / sqrt(columns))
        return weight

    def writes_hidden(columns: int, scale: float) -> NDArray[np.float64]:
        weight = matrix(HIDDEN_SIZE, columns, scale * sqrt(4 / layers))
        weight[0] = 0
        return weight

    width = HIDDEN_SIZE - 1
    directions = np.linalg.qr(random.standard_normal((width, width)))[0][:VISIBLE] * sqrt(width)
    walk = random.permutation(VISIBLE)
    successor = np.empty_like(walk)
    successor[walk] = np.roll(walk, -1)

    embedding = random.standard_normal((vocabulary_size, HIDDEN_SIZE))
    embedding[:, 0] = 3
    embedding[:VISIBLE, 1:] = directions
    output = np.zeros((vocabulary_size, HIDDEN_SIZE))
    output[VISIBLE:, 0] = -100
    output[successor, 1:] = directions

    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": output}
    weights["model.norm.weight"] = np.ones(HIDDEN_SIZE)
    for layer in range(layers):
        weights |= {
            f"model.layers.{layer}.{name}.weight": weight
            for name, weight in {
                "input_layernorm": np.ones(HIDDEN_SIZE),
                "post_attention_layernorm": np.ones(HIDDEN_SIZE),
                "self_attn.q_norm": np.full(HEAD_DIM, 4.0),
                "self_attn.k_norm": np.ones(HEAD_DIM),
                "self_attn.q_proj": matrix(HEADS * HEAD_DIM, HIDDEN_SIZE),
                "self_attn.k_proj": matrix(KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
                "self_attn.v_proj": matrix(KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
                "self_attn.o_proj": writes_hidden(HEADS * HEAD_DIM, 1.8),
                "mlp.gate_proj": matrix(INTERMEDIATE_SIZE, HIDDEN_SIZE),
                "mlp.up_proj": matrix(INTERMEDIATE_SIZE, HIDDEN_SIZE),
                "mlp.down_proj": writes_hidden(INTERMEDIATE_SIZE, 1.0),
            }.items()
        }
    return {name: weight.astype(np.float32) for name, weight in weights.items()}
