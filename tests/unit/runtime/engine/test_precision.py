"""Which precisions a pipeline can change to; every refusal says why, and what would do."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine import precision as precision_module
from runtime.engine.precision import bytes_to_load, check_precision, choices, precision_of, set_precision
from runtime.migration.errors import ChangeRefused


def config(**differences: Any) -> Any:
    made = {
        "dtype": torch.float32,
        "quantization": None,
        "cache_dtype": "auto",
        "use_mla": False,
        "model_type": "llama",
    } | differences
    model = SimpleNamespace(
        dtype=made["dtype"],
        quantization=made["quantization"],
        use_mla=made["use_mla"],
        hf_text_config=SimpleNamespace(model_type=made["model_type"]),
    )
    return SimpleNamespace(model_config=model, cache_config=SimpleNamespace(cache_dtype=made["cache_dtype"]))


@pytest.fixture(autouse=True)
def platform(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(supported_dtypes=[torch.bfloat16, torch.float16, torch.float32], is_cpu=lambda: True)
    monkeypatch.setattr(precision_module, "current_platform", made)
    return made


def test_the_choices_are_those_of_the_platform_most_precise_first(platform: SimpleNamespace):
    assert choices() == ["float32", "bfloat16", "float16"]
    platform.supported_dtypes = [torch.float16, torch.float32]
    assert choices() == ["float32", "float16"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_an_ordinary_model_can_have_each(precision: str):
    check_precision(config(), precision, ())


@pytest.mark.parametrize("precision", ["int8", "bf16", "", "float64", "nonsense"])
def test_what_is_none_is_refused_with_the_choices(precision: str):
    with pytest.raises(ChangeRefused, match=f"'{precision}' .* it can be float32, bfloat16, float16"):
        check_precision(config(), precision, ())


@pytest.mark.parametrize(
    ("differences", "hosts", "reason"),
    [
        ({}, ["edge-2", "edge-1"], r"only be changed on one machine yet.*\(edge-1, edge-2\).*--dtype bfloat16"),
        ({"quantization": "gptq"}, [], "quantized .gptq."),
        ({"cache_dtype": "fp8"}, [], "type of its own .fp8.*--kv-cache-dtype"),
        ({"use_mla": True}, [], "MLA"),
    ],
)
def test_a_pipeline_that_cannot_is_told_why(differences: dict[str, Any], hosts: list[str], reason: str):
    with pytest.raises(ChangeRefused, match=reason):
        check_precision(config(**differences), "bfloat16", hosts)


def test_on_a_gpu_it_cannot_be_changed(platform: SimpleNamespace):
    platform.is_cpu = lambda: False
    with pytest.raises(ChangeRefused, match="only be changed on processors yet"):
        check_precision(config(), "bfloat16", ())


def test_a_model_that_is_unstable_in_float16_is_not_changed_to_it():
    with pytest.raises(ChangeRefused, match="gemma3_text is numerically unstable in it; bfloat16 would do"):
        check_precision(config(model_type="gemma3_text"), "float16", ())
    check_precision(config(model_type="gemma3_text"), "bfloat16", ())


def test_the_precision_of_the_start_replaces_nothing():
    started = config()
    set_precision(started, "float32")
    assert precision_of(started) == "float32"


@given(st.integers(0, 1 << 40))
def test_half_the_precision_needs_half_the_memory(size: int):
    there, back = bytes_to_load(size, "float32", "bfloat16"), bytes_to_load(size, "bfloat16", "float32")
    assert size / 2 <= there <= size
    assert 2 * size <= back <= 4 * size
