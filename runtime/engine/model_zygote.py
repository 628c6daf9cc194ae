"""What zygotes run: first the engine is imported, then in a child of that a model is loaded.

::

    seed (`import_engine`) --fork--> model zygote (weights) --fork--> stages (`run_stage`)

The model zygotes of a node runtime are of any model (`be_model_zygote`), those of a head are of its own one, in one
precision each (`be_precision_zygote`).
"""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.config import VllmConfig

    from runtime.engine.warm_model import WarmModel


def import_engine() -> None:
    """Import what every stage of every model needs, and register its kernels.

    Measured for a stage of twelve layers on two cores: 2.0 s of processor time without this and `load_model`, of which
    0.7 s were two full garbage collections that loading a model runs, 0.45 s registering kernels, 0.5 s reading and
    packing weights.
    """
    from vllm.model_executor.layers.quantization.online import base  # noqa: F401
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    import runtime.engine.engine_config
    import runtime.engine.stage_process
    import runtime.engine.stage_worker  # noqa: F401

    load_general_plugins()
    current_platform.register_triton_kernel_overrides()


def load_model(config: VllmConfig) -> WarmModel:
    """Load and pack the weights for all stages that are forked afterwards; freeze the heap."""
    from vllm.model_executor.model_loader.utils import get_model_architecture

    from runtime.engine.warm_model import WarmModel

    get_model_architecture(config.model_config)
    warm_model = WarmModel()
    warm_model.load(config)
    # What is frozen is never walked again: a collection in a child then costs what the child itself made.
    gc.collect()
    gc.freeze()
    return warm_model


def be_model_zygote(payload: bytes, descriptors: Sequence[int]) -> None:
    """Be the zygote of one model until the node runtime closes the socket `descriptors` holds."""
    from runtime.engine.engine_config import EngineConfig, build
    from runtime.engine.stage_process import run_stage
    from runtime.warm.warm_models import ModelPayload
    from runtime.warm.zygote import be_zygote

    loaded: list[Any] = []

    def preload() -> dict[str, Any]:
        given = msgspec.msgpack.decode(payload, type=ModelPayload)
        config = build(msgspec.msgpack.decode(given.engine, type=EngineConfig), given.folder)
        loaded[:] = config, load_model(config)
        return {"layers": config.model_config.get_total_num_hidden_layers()}

    be_zygote(descriptors[0], lambda orders, pool: run_stage(orders, pool, *loaded), preload)


def be_precision_zygote(payload: bytes, descriptors: Sequence[int], config: VllmConfig) -> None:
    """Be the zygote of the head's model in one precision until the head closes the socket `descriptors` holds."""
    from runtime.engine.precision import set_precision
    from runtime.engine.stage_process import run_stage
    from runtime.transport.priority import in_background
    from runtime.warm.memory import measured
    from runtime.warm.weights import LoadOrder
    from runtime.warm.zygote import be_zygote

    loaded: list[WarmModel] = []

    def preload() -> dict[str, Any]:
        order = msgspec.msgpack.decode(payload, type=LoadOrder)
        set_precision(config, order.precision)
        model, taken = measured(
            lambda: in_background(lambda: load_model(config), _give_way) if order.background else load_model(config)
        )
        loaded.append(model)
        # Loading collects garbage, that of the parent too: a small model could seem to take less than nothing.
        return {"bytes": max(taken, model.tensor_bytes())}

    be_zygote(descriptors[0], lambda orders, pool: run_stage(orders, pool, config, loaded[0]), preload)


def _give_way() -> None:
    """Let this thread run only when nobody else wants the processor."""
    os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
