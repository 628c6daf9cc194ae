"""What of an `LLMPipeline` becomes flags of `midstream serve`, wherever the head runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controller.platform.llm_pipeline import Spec


def serve_flags(spec: Spec) -> list[str]:
    """Return a flag for each setting that is given; layout, nodes and addresses are the platform's to add."""
    model, capacity, scaling, privacy = spec.model, spec.capacity, spec.scaling, spec.privacy
    flags = {
        "--model": model.id or model.path,
        "--sleep-after": scaling.sleep_after_seconds,
        "--hold-requests": scaling.hold_requests,
        "--hold-seconds": scaling.hold_seconds,
        "--spare-stages": scaling.spare_stages,
        "--guard": privacy.guard,
        # vLLM's own:
        "--revision": model.revision,
        "--dtype": model.dtype,
        "--max-model-len": model.max_length,
        "--num-gpu-blocks-override": capacity.kv_blocks,
        "--max-num-seqs": capacity.max_requests,
        "--max-num-batched-tokens": capacity.max_batch_tokens,
    }
    return [f"{flag}={value}" for flag, value in flags.items() if value is not None]
