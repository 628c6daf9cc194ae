"""A vLLM worker that computes one contiguous range of layers and knows nothing of its neighbours.

Stock vLLM ties pipeline stages together in one process group made at start. Here each stage has a group of its own,
of size one; what the model asks its pipeline group (am I first, am I last, which layers are mine) is answered by a
`SoloGroup`. Hidden states come and go as plain tensors, so the chain can be re-wired between two batches, and a stage
that has inherited the whole model can have another role in each.

The KV cache is not allocated: the worker views the layers it owns in the node's pool (`runtime.warm.kv_pool`), records
after each batch how far every block is valid, and checks that record before it goes on with a request that
another stage computed (invariant I2).

Everything here overrides or replaces named parts of vLLM 0.32; `runtime.engine.compat` guards the version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingType
from vllm.sequence import IntermediateTensors
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
from vllm.v1.kv_cache_interface import KVCacheTensor, UniformTypeKVCacheSpecs, create_kv_cache_views
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from runtime.engine.errors import StageError
from runtime.engine.messages import (
    BatchOutput,
    KnownRequest,
    NewRequest,
    ScheduledBatch,
    batch_to_vllm,
    output_from_vllm,
    rehearsal_batch,
)
from runtime.engine.seeded_generator import SeededGenerator
from runtime.engine.substitution import substituted
from runtime.engine.token_map import find_token_map
from runtime.engine.warm_model import GROUPS, SoloGroup
from runtime.warm.kv_pool import KVPool, block_spans

if current_platform.is_cpu():
    from vllm.v1.worker import cpu_worker as base_module
    from vllm.v1.worker.cpu_worker import CPUWorker as BaseWorker
else:
    from vllm.v1.worker import gpu_worker as base_module
    from vllm.v1.worker.gpu_worker import Worker as BaseWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm.v1.kv_cache_interface import KVCacheConfig

    from runtime.engine.role import Role
    from runtime.engine.warm_model import WarmModel


class _HiddenStates(IntermediateTensors):
    """Hidden states that are fetched when the model runner asks for them, after it has prepared the batch."""

    def __init__(self, fetch: Callable[[], dict[str, torch.Tensor]]) -> None:
        self._fetch = fetch
        self._tensors: dict[str, torch.Tensor] | None = None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, each ``[tokens, ...]``; the first access waits for them."""
        if self._tensors is None:
            self._tensors = self._fetch()
        return self._tensors


class StageWorker(BaseWorker):
    """One stage. vLLM constructs it; `role` (what to load) and `warm_model` are set before `init_device`."""

    role: Role
    warm_model: WarmModel
    pool: KVPool
    _kv_view: tuple[Any, ...] | None = None  # how vLLM views one layer of the pool
    met_sizes: dict[int, set[object]]  # by number of tokens: the layers, and the sampler, that met such a batch

    @property
    def inherited(self) -> bool:
        """Whether this stage has the whole model, and can take any role."""
        return self.warm_model.inheritable

    def take_role(self, role: Role) -> None:
        """Be another stage from the next batch on.

        Raises:
            StageError: this stage has only loaded the layers of one role.

        """
        if role == self.role:
            return
        if not self.inherited:
            raise StageError(f"this stage has loaded {self.role}; it cannot be {role}")
        self.role = role
        parallel_state._PP = SoloGroup(role.rank, role.size)
        self.warm_model.compute_only(role.layers)

    def init_device(self) -> None:
        """Open the device and take the place in the pipeline, with nobody to form process groups with."""

        def take_position(*_: Any, **__: Any) -> None:
            for name in GROUPS:
                setattr(parallel_state, name, SoloGroup())
            parallel_state._PP = SoloGroup(self.role.rank, self.role.size)

        with substituted(base_module, "init_worker_distributed_environment", take_position):
            super().init_device()

    def load_model(self, **kwargs: Any) -> None:
        """Take over the model, or load the layers of this stage; make the buffer for hidden states."""
        runner = self.model_runner
        if self.inherited:
            runner.model = self.warm_model.inherit()
        else:
            super().load_model(**kwargs)
        if runner.intermediate_tensors is None and (self.inherited or not self.role.is_first):
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )

    def bind_kv(self, pool: KVPool, layout_name: str) -> None:
        """View the layers this stage has in the node's KV pool and finish vLLM's own set-up around them.

        Raises:
            StageError: the pool has another shape than this model's cache.

        """
        self.pool = pool
        shape = pool.shape
        cache = self.vllm_config.cache_config
        cache.num_gpu_blocks_override = shape.blocks
        with set_current_vllm_config(self.vllm_config):
            self.set_kv_cache_layout(layout_name)
            specs = self.get_kv_cache_spec()
            config = get_kv_cache_configs(self.vllm_config, [specs], [shape.layer_bytes * len(specs)])[0]
            config.kv_cache_layout = layout_name
            if config.num_blocks != shape.blocks:
                raise StageError(f"this stage made {config.num_blocks} KV blocks, the pool has {shape.blocks}")
            with substituted(gpu_model_runner, "allocate_kv_cache", self._view_pool):
                self.initialize_from_config(config)
        if pool.token_map is None and self._kv_view is not None:
            name, *view = self._kv_view
            known = find_token_map(name, self.model_runner.compilation_config.static_forward_context[name], *view)
            if known is not None:
                pool.token_map = known

    @torch.inference_mode()
    def rehearse(self, tokens: int) -> None:
        """Take over and decode a batch of `tokens` made-up requests, unless this part of the model has met that size.

        Whatever meets such a batch for the first time (kernels prepared for its size, memory, code) takes longer than
        the batch itself. The requests live in block 0, which vLLM never reads.
        """
        if self._part() <= self.met_sizes.get(tokens, set()):
            return
        batch = rehearsal_batch(tokens)
        self._take_over(batch)
        runner = self.model_runner
        hidden = runner.model.make_empty_intermediate_tensors(tokens, self.model_config.dtype, self.device)
        self._run(batch, None if self.role.is_first else hidden)
        self.forget_requests()

    def _part(self) -> set[object]:
        """Return what this stage runs in its role: its layers, and the sampler."""
        return {*self.role.layers.as_range(), *(("sampler",) if self.role.is_last else ())}

    def map_kv(self) -> None:
        """Map the KV that other stages have written of this stage's layers, instead of page by page later."""
        self.pool.populate(self.role.layers.as_range())

    def forget_requests(self) -> None:
        """Let go of every request: this stage serves nobody any more, or begins anew."""
        self._forget(list(self.model_runner.requests))

    def _view_pool(
        self, config: KVCacheConfig, device: torch.device, layout: Any, kernel_block_sizes: list[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Do what vLLM's `allocate_kv_cache` does, over the pool: one dense region per layer."""
        views: dict[str, torch.Tensor] = {}
        for group_index, group in enumerate(config.kv_cache_groups):
            for name in group.layer_names:
                spec = group.kv_cache_spec
                if isinstance(spec, UniformTypeKVCacheSpecs):
                    spec = spec.kv_cache_specs[name]
                memory = self.pool.layer_memory(layer_index(name))
                if spec.page_size_bytes * config.num_blocks != len(memory):
                    raise StageError(
                        f"layer {name} needs {spec.page_size_bytes * config.num_blocks} bytes of KV, "
                        f"its place in the pool has {len(memory)}"
                    )
                place = KVCacheTensor(len(memory), [name], layer_stride=len(memory), block_stride=spec.page_size_bytes)
                raw = torch.frombuffer(memory, dtype=torch.int8).to(device)
                kernel_block_size = kernel_block_sizes[group_index] if kernel_block_sizes else None
                self._kv_view = name, spec, layout, kernel_block_size
                (views[name],) = create_kv_cache_views(raw, spec, config.num_blocks, layout, place, kernel_block_size)
        return views

    @torch.inference_mode()
    def compute(
        self, role: Role, batch: ScheduledBatch, fetch_hidden: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor] | BatchOutput:
        """Run one batch through this stage.

        Args:
            role: which stage to be for this batch.
            batch: what the scheduler decided, and the requests this stage has to be told about first.
            fetch_hidden: waits for the hidden states of the previous stage, each ``[tokens, ...]``; called once the
                batch is prepared, and never on the first stage.

        Returns:
            The hidden states for the next stage, or on the last stage the sampled output.

        Raises:
            StageError: a carried request's KV is not valid as far as promised, or the role cannot be taken.

        """
        self.take_role(role)
        self._take_over(batch)
        spans = self._written_spans(batch)
        self._check_watermarks(batch, spans)
        hidden = _HiddenStates(lambda: {name: tensor.to(self.device) for name, tensor in fetch_hidden().items()})
        output = self._run(batch, None if role.is_first else hidden)
        self._record_written(spans)
        return output

    def _run(self, batch: ScheduledBatch, hidden: IntermediateTensors | None) -> dict[str, torch.Tensor] | BatchOutput:
        """Let vLLM's model runner compute a batch of requests that it knows."""
        runner = self.model_runner
        scheduled, grammar = batch_to_vllm(batch)
        self.met_sizes.setdefault(batch.total_tokens, set()).update(self._part())
        output = runner.execute_model(scheduled, hidden)
        if isinstance(output, IntermediateTensors):
            return dict(output.tensors)
        if isinstance(output, ModelRunnerOutput):  # nothing was scheduled
            return output_from_vllm(output, {})
        seeded = self._seeded_generators()
        for generator in seeded.values():
            generator.remember()
        output = runner.sample_tokens(grammar)
        return output_from_vllm(
            output, {request_id: generator.state_bytes() for request_id, generator in seeded.items()}
        )

    def _forget(self, request_ids: Sequence[str]) -> None:
        runner = self.model_runner
        for request_id in request_ids:
            runner.requests.pop(request_id, None)
            runner.num_prompt_logprobs.pop(request_id, None)
            runner.input_batch.remove_request(request_id)

    def _take_over(self, batch: ScheduledBatch) -> None:
        """Learn the carried requests, replacing whatever this stage believed of them."""
        runner = self.model_runner
        outdated = [request.id for request in batch.carried]
        if batch.replayed:
            outdated += [request.id for request in batch.new if request.id in runner.requests]
        self._forget(outdated)
        for carried in batch.carried:
            generator = None
            if carried.sampling_params.sampling_type == SamplingType.RANDOM_SEED:
                generator = SeededGenerator(self.device, carried.sampling_params.seed, carried.generator_state)
            runner.requests[carried.id] = CachedRequestState(
                req_id=carried.id,
                prompt_token_ids=carried.prompt_token_ids,
                mm_features=[],
                sampling_params=carried.sampling_params,
                generator=generator,
                block_ids=carried.block_ids,
                num_computed_tokens=carried.computed_tokens,
                output_token_ids=carried.output_token_ids,
            )
            wanted = carried.sampling_params.prompt_logprobs
            if wanted is not None and carried.computed_tokens < len(carried.prompt_token_ids):
                runner.num_prompt_logprobs[carried.id] = runner.input_batch.vocab_size if wanted == -1 else wanted

    def _written_spans(self, batch: ScheduledBatch) -> list[tuple[int, int, int]]:
        """Return (block, first, stop) of everything this batch is about to write (before vLLM updates its state)."""
        spans = []
        for entry in batch.entries():
            stop = entry.computed_tokens + batch.scheduled_tokens[entry.id]
            blocks = self._blocks_of(entry)
            spans += block_spans(blocks, self.pool.shape.block_tokens, entry.computed_tokens, stop)
        return spans

    def _blocks_of(self, entry: NewRequest | KnownRequest) -> list[int]:
        """Return a request's blocks as they are in this batch."""
        if isinstance(entry, NewRequest):
            return entry.block_ids[0]
        added = entry.new_block_ids[0] if entry.new_block_ids else []
        if entry.resumed:
            return added
        known: list[int] = self.model_runner.requests[entry.id].block_ids[0]
        return known + added

    def _check_watermarks(self, batch: ScheduledBatch, spans: list[tuple[int, int, int]]) -> None:
        """Invariant I2: what this stage did not compute itself is in the pool, to the token.

        Two requests of one batch may share a prefix that the batch itself writes: all keys and values of a layer are
        stored before its attention reads any.
        """
        carried = {request.id for request in batch.carried}
        rows = self.role.layers.as_range()
        about_to_be_written = {block: (first, stop) for block, first, stop in spans}
        size = self.pool.shape.block_tokens
        for entry in batch.entries():
            inherits = isinstance(entry, NewRequest) or entry.resumed or entry.id in carried
            if not inherits or entry.computed_tokens == 0:
                continue
            blocks = self._blocks_of(entry)
            promised = {block: stop for block, _, stop in block_spans(blocks, size, 0, entry.computed_tokens)}
            stale = [
                (layer, block, valid)
                for layer, block, valid in self.pool.stale_blocks(rows, blocks, entry.computed_tokens)
                if not _closes_gap(about_to_be_written.get(block), valid, promised[block])
            ]
            if stale:
                layer, block, valid = stale[0]
                raise StageError(
                    f"request {entry.id}: {entry.computed_tokens} tokens are promised, but layer {layer}, "
                    f"block {block} is valid for {valid} tokens only ({len(stale)} stale blocks in all)"
                )

    def _record_written(self, spans: list[tuple[int, int, int]]) -> None:
        """Advance the pool's watermarks to what this batch has just written."""
        if spans:
            blocks, first, stop = zip(*spans, strict=True)
            self.pool.record_written(self.role.layers.as_range(), blocks, first, stop)

    def _seeded_generators(self) -> dict[str, SeededGenerator]:
        """Return the generators of seeded requests in the batch, in a form whose state can be carried over."""
        seeded = {}
        input_batch = self.model_runner.input_batch
        for index, generator in list(input_batch.generators.items()):
            request_id = input_batch.req_ids[index]
            if isinstance(generator, SeededGenerator):
                seeded[request_id] = generator
                continue
            state = generator.get_state().numpy().tobytes()
            seeded[request_id] = SeededGenerator(self.device, generator.initial_seed(), state)
            input_batch.generators[index] = seeded[request_id]
            self.model_runner.requests[request_id].generator = seeded[request_id]
        return seeded


def _closes_gap(written: tuple[int, int] | None, valid: int, promised: int) -> bool:
    """Whether writing tokens ``[first, stop)`` of a block makes it valid up to `promised`."""
    return written is not None and written[0] <= valid and written[1] >= promised


def layer_index(layer_name: str) -> int:
    """Return the layer number in a vLLM layer name such as ``model.layers.12.self_attn.attn``."""
    numbers = [int(part) for part in layer_name.split(".") if part.isdigit()]
    if len(numbers) != 1:
        raise StageError(f"cannot tell which layer {layer_name!r} belongs to")
    return numbers[0]
