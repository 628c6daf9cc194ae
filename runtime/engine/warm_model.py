"""The model's weights, loaded once per node and shared by every stage that is forked afterwards.

The zygote builds the whole model, packed for the processor's kernels, before it forks the first stage. A stage is a
copy of the zygote, so it has every layer already: the kernel shares the pages, nobody writes to them, and three stages
of a model take the memory of one. Becoming stage ``[8, 20)`` is then a matter of telling the model where it starts and
ends: no byte is read, and the same process can be another stage with the next batch.

Caveats. A forked process cannot use a device that its parent has opened, so on GPUs a stage loads its own layers. The
zygote must not start OpenMP threads (a child would wait for them forever), so it works on one thread. A model without
the layer bounds that vLLM's own pipeline parallelism sets is loaded stage by stage as well.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model
from vllm.platforms import current_platform

from runtime.engine.errors import StageError
from runtime.engine.substitution import substituted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm.config import VllmConfig

    from runtime.layout import LayerRange

logger = init_logger("vllm.midstream.warm_model")

GROUPS = ("_WORLD", "_TP", "_PP", "_DP", "_EP", "_ETP", "_DCP", "_PCP", "_EPLB")


class SoloGroup:
    """Stands in for a vLLM process group: a place in a row of `size` processes, with nobody to talk to."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = self.rank_in_group = self.local_rank = rank
        self.world_size = size
        self.ranks = list(range(size))
        self.is_first_rank = rank == 0
        self.is_last_rank = rank == size - 1

    def all_reduce(self, tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Answer vLLM's collective calls: with one member, what it has is what all have."""
        return tensor

    all_gather = reduce_scatter = gather = broadcast = all_reduce

    def destroy(self) -> None:
        """Answer vLLM's teardown; there is nothing to destroy."""


class WarmModel:
    """The whole model, to be inherited by forked stages; empty until `load` has found that it can be shared."""

    def __init__(self) -> None:
        self._model: torch.nn.Module | None = None

    def load(self, config: VllmConfig) -> None:
        """Load and pack all layers (in the zygote)."""
        if not current_platform.is_cpu():
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with _solo_groups(), set_current_vllm_config(config):
            model = get_model(vllm_config=config)
        torch.set_num_threads(threads)  # for the children; this starts none
        if _bounded_modules(model):
            self._model = model
        else:
            logger.info("%s has no layer bounds; each stage loads its own layers", type(model).__name__)
            # Its layers have entered themselves where those of a stage will.
            config.compilation_config.static_forward_context.clear()
            config.compilation_config.static_all_moe_layers.clear()

    @property
    def inheritable(self) -> bool:
        """Whether a forked stage can take over the model, or has to load its own layers."""
        return self._model is not None

    def tensor_bytes(self) -> int:
        """Return the bytes of the model's own tensors; what kernels have packed elsewhere is not among them."""
        if self._model is None:
            return 0
        tensors = [*self._model.parameters(), *self._model.buffers()]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def inherit(self) -> torch.nn.Module:
        """Return the whole model (in a forked stage)."""
        if self._model is None:
            raise StageError("there is no model to inherit")
        return self._model

    def compute_only(self, layers: LayerRange) -> None:
        """Let the model's forward go through `layers` only."""
        for module in _bounded_modules(self.inherit()):
            module.start_layer, module.end_layer = layers.first, layers.stop


def _bounded_modules(model: torch.nn.Module) -> list[Any]:
    """Return the modules whose forward goes from `start_layer` to `end_layer`."""
    found = [m for m in model.modules() if isinstance(getattr(m, "start_layer", None), int) and hasattr(m, "end_layer")]
    if len(found) > 1:
        raise StageError(f"{type(model).__name__} has {len(found)} stacks of layers; only one can be divided")
    return found


@contextmanager
def _solo_groups() -> Iterator[None]:
    """Let a model be built outside of any distributed environment."""
    with ExitStack() as stack:
        for name in GROUPS:
            stack.enter_context(substituted(parallel_state, name, SoloGroup()))
        yield
