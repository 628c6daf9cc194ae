"""Turns a quantised Llama GGUF file into a float32 Hugging Face folder that vLLM loads.

Scope: the Llama family as the built-in model uses it (rotary embedding over the whole head, no biases, no scaled
RoPE). Anything else is refused by name rather than converted wrongly. torch and transformers are not needed.

llama.cpp stores the rows of the query and key projections in another order: it pairs neighbouring rows for the
rotary embedding, Hugging Face pairs row i with row i + head_dim / 2. The order is put back here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import dequantize
from numpy.typing import NDArray

from runtime.model.errors import ConversionError
from runtime.model.gguf_file import GgufFile
from runtime.model.progress import Report
from runtime.model.tokenizer import write_tokenizer
from runtime.model.weights import LazyTensor, write_safetensors

_OUTSIDE_LAYERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(gguf: Path, folder: Path, report: Report) -> None:
    """Write the model in `gguf` into the empty folder `folder`: weights, configuration, tokenizer.

    Raises:
        ConversionError: the file is not a plain Llama model.
    """
    source = GgufFile(gguf)
    source.require("general.architecture", "llama")
    tensors = _tensors(source)
    with report.step("Converting to float32", sum(tensor.size_bytes for tensor in tensors)) as advance:
        write_safetensors(folder / "model.safetensors", tensors, advance)
    write_tokenizer(source, folder)
    config = _config(source, tied=all(tensor.name != "lm_head.weight" for tensor in tensors))
    _write_json(folder / "config.json", config)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _config(source: GgufFile, *, tied: bool) -> dict[str, Any]:
    """Return config.json for `LlamaForCausalLM`."""
    hidden_size = source.get("llama.embedding_length", int)
    heads = source.get("llama.attention.head_count", int)
    head_dim = source.get("llama.rope.dimension_count", int)
    if head_dim * heads != hidden_size:
        raise ConversionError(f"{source.name}: {heads} heads of {head_dim} do not make up hidden size {hidden_size}")
    epsilon = np.float32(source.get("llama.attention.layer_norm_rms_epsilon", float))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": hidden_size,
        "intermediate_size": source.get("llama.feed_forward_length", int),
        "num_hidden_layers": source.get("llama.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": source.get("llama.attention.head_count_kv", int),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": source.get("llama.context_length", int),
        "rms_norm_eps": float(str(epsilon)),  # Stored in 32 bits: 1e-05 instead of 9.999999747378752e-06.
        "rope_parameters": {"rope_type": "default", "rope_theta": source.get("llama.rope.freq_base", float)},
        "tie_word_embeddings": tied,
        "vocab_size": len(source.get("tokenizer.ggml.tokens", list)),
        "bos_token_id": source.get("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": source.get("tokenizer.ggml.eos_token_id", int),
        "pad_token_id": source.get("tokenizer.ggml.padding_token_id", int),
    }


def _tensors(source: GgufFile) -> list[LazyTensor]:
    """Return the file's tensors under their Hugging Face names.

    Raises:
        ConversionError: the set of tensors is not that of a Llama model (a tied output matrix may be absent).
    """
    names = _OUTSIDE_LAYERS | {
        f"blk.{layer}.{theirs}.weight": f"model.layers.{layer}.{ours}.weight"
        for layer in range(source.get("llama.block_count", int))
        for theirs, ours in _INSIDE_A_LAYER.items()
    }
    present = {tensor.name for tensor in source.tensors}
    if strange := present - names.keys():
        raise ConversionError(f"{source.name}: tensors of no plain Llama model: {', '.join(sorted(strange)[:5])}")
    if missing := names.keys() - present - {"output.weight"}:
        raise ConversionError(f"{source.name}: tensors are missing: {', '.join(sorted(missing)[:5])}")
    heads_of = {
        "attn_q": source.get("llama.attention.head_count", int),
        "attn_k": source.get("llama.attention.head_count_kv", int),
    }
    return [_tensor(tensor, names[tensor.name], heads_of.get(tensor.name.split(".")[-2])) for tensor in source.tensors]


def _tensor(stored: Any, name: str, heads: int | None) -> LazyTensor:
    """Return a tensor that is de-quantised when read; `heads` when its rows are in llama.cpp's rotary order."""

    def read() -> NDArray[Any]:
        values: NDArray[Any] = dequantize(stored.data, stored.tensor_type)
        if heads is None:
            return values
        rows, columns = values.shape
        return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)

    # GGUF counts dimensions from the fastest-varying one.
    return LazyTensor(name, tuple(int(size) for size in reversed(stored.shape)), read)
