"""A quantised GGUF file becomes a float32 Hugging Face folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize
from gguf.quants import quantize
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from runtime.model import ConversionError
from runtime.model.convert import convert
from runtime.model.weights import LazyTensor, write_safetensors
from tests.unit.runtime.model.reports import MemoryReport
from tests.unit.runtime.model.tiny_wheel import (
    CHAT_TEMPLATE,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    TOKENS,
    TinyGguf,
    hugging_face_weights,
)


def converted(tmp_path: Path, tiny: TinyGguf) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    convert(tiny.write(tmp_path / "tiny.gguf"), folder, MemoryReport())
    return folder


def test_unquantised_weights_come_back_bit_for_bit_under_their_hugging_face_names(tmp_path: Path) -> None:
    written = load_file(converted(tmp_path, TinyGguf()) / "model.safetensors")
    expected = hugging_face_weights()
    assert written.keys() == expected.keys()
    for name, weight in expected.items():
        assert written[name].dtype == np.float32
        np.testing.assert_array_equal(written[name], weight, err_msg=name)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0])
def test_quantised_weights_are_what_their_blocks_say(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    written = load_file(converted(tmp_path, TinyGguf(quantization=kind)) / "model.safetensors")
    for name, weight in hugging_face_weights().items():
        stored = weight if weight.ndim == 1 else dequantize(quantize(weight, kind), kind)
        np.testing.assert_array_equal(written[name], stored, err_msg=name)


def test_the_configuration_describes_a_plain_float32_llama(tmp_path: Path) -> None:
    folder = converted(tmp_path, TinyGguf(quantization=GGMLQuantizationType.Q8_0))
    config = json.loads((folder / "config.json").read_text())
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "vocab_size": len(TOKENS),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_an_output_matrix_of_its_own_is_kept_and_untied(tmp_path: Path) -> None:
    output = np.ones((len(TOKENS), HIDDEN), np.float32)
    folder = converted(tmp_path, TinyGguf(extra_tensors={"output.weight": output}))
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    np.testing.assert_array_equal(load_file(folder / "model.safetensors")["lm_head.weight"], output)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("hello", ["hell", "o"]),
        ("  1", ["ĠĠ", "1"]),  # Digits stand alone, so the two spaces may merge.
        ("12", ["1", "2"]),
        ("<|im_start|>hell<|im_end|>", ["<|im_start|>", "hell", "<|im_end|>"]),
    ],
)
def test_the_tokenizer_splits_as_the_model_was_trained(text: str, tokens: list[str], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted(tmp_path, TinyGguf()) / "tokenizer.json"))
    encoded = tokenizer.encode(text)
    assert encoded.tokens == tokens
    assert encoded.ids == [TOKENS.index(token) for token in tokens]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def test_the_tokenizer_files_name_special_tokens_limit_and_chat_template(tmp_path: Path) -> None:
    folder = converted(tmp_path, TinyGguf())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 256
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    assert [config[name] for name in names] == ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>"]
    assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("tiny", "complaint"),
    [
        (TinyGguf(architecture="qwen2"), "general.architecture is 'qwen2'; only 'llama' can be converted"),
        (TinyGguf(pre_tokenizer="qwen2"), "tokenizer.ggml.pre is 'qwen2'; only 'smollm' can be converted"),
        (TinyGguf(eos=False), "metadata tokenizer.ggml.eos_token_id is None, expected int"),
        (TinyGguf(rope_dimensions=16), "2 heads of 16 do not make up hidden size 64"),
        (TinyGguf(left_out="blk.1.ffn_up.weight"), "tensors are missing: blk.1.ffn_up.weight"),
        (
            TinyGguf(extra_tensors={"rope_freqs.weight": np.ones(16, np.float32)}),
            "tensors of no plain Llama model: rope_freqs.weight",
        ),
    ],
)
def test_what_would_be_converted_wrongly_is_refused_by_name(tiny: TinyGguf, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as refusal:
        converted(tmp_path, tiny)
    assert complaint in str(refusal.value)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(bytes(1000))
    with pytest.raises(ConversionError, match=r"other\.gguf is not a GGUF file"):
        convert(other, tmp_path, MemoryReport())


def test_a_tensor_of_an_unannounced_shape_is_refused(tmp_path: Path) -> None:
    tensor = LazyTensor("w", (2, 3), lambda: np.zeros((3, 2)))
    with pytest.raises(ConversionError, match=r"tensor w has shape \(3, 2\), expected \(2, 3\)"):
        write_safetensors(tmp_path / "w", [tensor], lambda _done: None)
