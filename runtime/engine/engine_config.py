"""vLLM's configuration as plain data, so that a node runtime can make the same one without a pickle.

What is named here is rebuilt on the node through vLLM's own `EngineArgs`. What is not named must come out the same:
vLLM's own hash of everything that shapes the computation is compared, so a flag that this module does not know is
refused when the pipeline starts, not noticed as wrong tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from vllm.engine.arg_utils import EngineArgs

from runtime.engine.errors import UnsupportedFeature

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stage's engine needs to know; names as in vLLM's `EngineArgs`. `hash` is vLLM's, of the whole."""

    model: str
    revision: str | None
    dtype: str
    seed: int
    max_model_len: int
    quantization: str | None
    enforce_eager: bool
    load_format: str
    hf_overrides: dict[str, Any]
    block_size: int
    kv_cache_dtype: str
    kv_cache_memory_bytes: int
    enable_prefix_caching: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    max_logprobs: int
    logprobs_mode: str
    hash: str


def describe(config: VllmConfig) -> EngineConfig:
    """Describe a configuration (before the pipeline changes its parallel settings).

    Raises:
        UnsupportedFeature: something in it cannot travel as plain data.

    """
    model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    if model.trust_remote_code:
        raise UnsupportedFeature(
            "stages on other hosts do not run code that comes with a model; drop --trust-remote-code"
        )
    if not isinstance(model.hf_overrides, dict):
        raise UnsupportedFeature("stages on other hosts take --hf-overrides as a JSON object only")
    return EngineConfig(
        model=model.model,
        revision=model.revision,
        dtype=str(model.dtype).removeprefix("torch."),
        seed=model.seed,
        max_model_len=model.max_model_len,
        quantization=model.quantization,
        enforce_eager=model.enforce_eager,
        load_format=str(config.load_config.load_format),
        hf_overrides=model.hf_overrides,
        block_size=cache.block_size,
        kv_cache_dtype=cache.cache_dtype,
        kv_cache_memory_bytes=cache.kv_cache_memory_bytes,
        enable_prefix_caching=cache.enable_prefix_caching,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_logprobs=model.max_logprobs,
        logprobs_mode=model.logprobs_mode,
        hash=_hash(config, model.model),
    )


def build(described: EngineConfig, folder: str | None = None) -> VllmConfig:
    """Make the configuration that was described; `folder` has the model's files if they are not where it says.

    Raises:
        UnsupportedFeature: it came out different; the message says what can be the cause.

    """
    wanted = {name: value for name, value in msgspec.to_builtins(described).items() if name != "hash"}
    if folder is not None:
        wanted["model"] = folder
    config = EngineArgs(**wanted, async_scheduling=False).create_engine_config()
    config.scheduler_config.disable_hybrid_kv_cache_manager = True
    if (actual := _hash(config, described.model)) != described.hash:
        raise UnsupportedFeature(
            f"this node's engine would compute something else than the head's (vLLM's hash of the configuration is "
            f"{actual} here, {described.hash} there): use the same vLLM on both, and no flag that changes the "
            f"computation other than {', '.join(wanted)}"
        )
    return config


def _hash(config: VllmConfig, model: str) -> str:
    """Return vLLM's hash of what shapes the computation, wherever the model's files are."""
    own, config.model_config.model = config.model_config.model, model
    extra, config.additional_config = config.additional_config, {}
    try:
        return config.compute_hash()
    finally:
        config.model_config.model, config.additional_config = own, extra
