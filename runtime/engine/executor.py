"""The plug that vLLM's engine calls: `--distributed-executor-backend runtime.engine.executor.PipelineExecutor`.

It turns the engine's calls into those of a `Pipeline` and nothing more. vLLM's own scheduler, KV cache manager,
sampler and server stay what they are. The engine calls from one thread; everything that must go on meanwhile (changes,
results, lost processes) runs on threads of the pipeline.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

from runtime.engine.compat import check_config, check_torchvision, installed_version
from runtime.engine.control import ControlCalls
from runtime.engine.depth import Depth
from runtime.engine.errors import EngineError, UnsupportedFeature
from runtime.engine.fleet import GatewaySettings
from runtime.engine.messages import BatchOutput, ScheduledBatch, batch_from_vllm, grammar_from_vllm, output_to_vllm
from runtime.engine.pipeline import Pipeline
from runtime.engine.tracing import Tracing
from runtime.events.pipeline_name import pipeline_name
from runtime.events.publisher import Publisher, PublisherError
from runtime.layout import Layout, even_split
from runtime.migration.guard import Permission
from runtime.migration.http_guard import TOKEN_VARIABLE, GuardAddressError, HttpGuard
from runtime.warm.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput

_DEFAULT_STAGES = 2
_DEFAULT_KV_BYTES = 1 << 30
_KV_SHARE_OF_FREE_MEMORY = 0.4

_depths: dict[int, Depth] = {}


class GuardSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who knows the intents that bound this pipeline.

    url: of the guard's service, such as ``http://127.0.0.1:7180``; its token is in the environment.
    here: name of the head's own machine in the intents' inventory.
    """

    url: str
    here: str

    def permission(self, pipeline: str, environment: Mapping[str, str]) -> Permission:
        """Return what asks this guard.

        Raises:
            EngineError: it has no usable address.
        """
        try:
            guard = HttpGuard(self.url, environment.get(TOKEN_VARIABLE) or None)
        except GuardAddressError as error:
            raise EngineError(str(error)) from error
        return Permission(guard, pipeline, self.here)


class PipelineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `--additional-config '{"midstream": {...}}'` may say.

    layers: the first layout, such as ``15,15``; empty for two stages.
    threads: compute threads of each stage; 0 leaves it to the engine.
    batches_in_flight: batches that are in the pipeline at once; 0 for as many as it has nodes.
    spare_stages: stages that each node keeps ready for the next change; null for one more than it has serving.
    sleep_after_s: seconds without a request after which all stages end until the next one; null for never.
    nodes: nodes on other hosts, enrolled in the gateway's folder.
    gateway: how to reach them.
    node_grace_s: seconds in which a lost node may come back with its weights and KV before its layers are re-placed.
    guard: must allow where anything of this pipeline goes; null when no intents bound it.
    """

    layers: str = ""
    threads: int = 0
    batches_in_flight: int = 0
    spare_stages: int | None = None
    sleep_after_s: float | None = None
    nodes: tuple[str, ...] = ()
    gateway: GatewaySettings | None = None
    node_grace_s: Annotated[float, msgspec.Meta(ge=0)] = 8.0
    guard: GuardSettings | None = None


class PipelineExecutor(Executor):
    """Runs every scheduled batch through a chain of stages that can be changed between two batches."""

    supports_pp = True

    @staticmethod
    def depth_of(config: VllmConfig) -> Depth:
        """Return the live depth of the pipeline that serves `config` (one engine, one process)."""
        return _depths.setdefault(id(config), Depth())

    def _init_executor(self) -> None:
        self.version = installed_version()
        check_torchvision()
        check_config(self.vllm_config)
        settings = msgspec.convert(
            dict(self.vllm_config.additional_config or {}).get("midstream", {}), PipelineSettings
        )
        total_layers = self.model_config.get_total_num_hidden_layers()
        layout = Layout.parse(settings.layers or even_split(total_layers, _DEFAULT_STAGES), total_layers)
        self._failure_callback: Callable[[], None] | None = None
        self._failure: str | None = None
        self._pending: ScheduledBatch | None = None
        self._kv_losses_known = 0
        config = self.vllm_config
        if config.cache_config.kv_cache_memory_bytes is None:
            share = int(_KV_SHARE_OF_FREE_MEMORY * available_bytes())
            config.cache_config.kv_cache_memory_bytes = min(_DEFAULT_KV_BYTES, share)
        # One KV cache group for all layers: a layer may then belong to any stage.
        config.scheduler_config.disable_hybrid_kv_cache_manager = True
        name = pipeline_name(os.environ)
        self.pipeline = Pipeline(
            config,
            layout,
            threads=settings.threads,
            batches_in_flight=settings.batches_in_flight,
            spare_stages=settings.spare_stages,
            sleep_after_s=settings.sleep_after_s,
            nodes=settings.nodes,
            gateway=settings.gateway,
            permission=settings.guard.permission(name, os.environ) if settings.guard else None,
            node_grace_s=settings.node_grace_s,
            on_failed=self._on_failed,
        )
        boot = self.pipeline.coordinator.boot
        try:
            self._publisher = Publisher.from_environment(os.environ, name, boot)
        except PublisherError as error:
            raise EngineError(f"events cannot be published: {error}") from error
        if self._publisher is not None:
            self.pipeline.journal.listen(self._publisher.told)
        self._tracing = Tracing.start(config, self.pipeline.journal, self.pipeline.dispatcher)
        self._control = ControlCalls(self.pipeline, self.model_config.served_model_name, self.version)
        self._kv_specs = self.pipeline.start()
        _depths[id(config)] = self.pipeline.depth
        # The engine's queue of batches must have room for the longest pipeline; the scheduler keeps to the actual one.
        config.parallel_config.pipeline_parallel_size = total_layers + 1

    # -- KV cache ------------------------------------------------------------------------------------------------------

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        """Return each stage's KV cache specs by layer name."""
        return self._kv_specs

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """Return the inner layouts each stage's kernels support."""
        return self.collective_rpc("get_supported_kv_cache_layouts")

    def set_kv_cache_layout(self, layout_name: str) -> None:
        """Remember the resolved inner layout; stages get it with the pool."""
        self._layout_name = layout_name

    def determine_available_memory(self) -> list[int]:
        """Divide the node's KV budget by layers, so that every layout gives the same number of blocks."""
        budget = self.cache_config.kv_cache_memory_bytes
        total = self.pipeline.layout().total_layers
        return [budget * len(specs) // total for specs in self._kv_specs]

    def initialize_from_config(self, kv_cache_configs: list[KVCacheConfig]) -> None:
        """Reserve the KV pool for all layers and let the stages view theirs."""
        config = kv_cache_configs[0]
        specs = {group.kv_cache_spec for c in kv_cache_configs for group in c.kv_cache_groups}
        if len(specs) != 1 or not isinstance(spec := next(iter(specs)), AttentionSpec):
            raise UnsupportedFeature(f"all layers must keep their KV cache in one form, but this model has {specs}")
        blocks = config.num_blocks
        self.pipeline.bind(blocks, spec.block_size, spec.page_size_bytes * blocks, self._layout_name)

    def compile_or_warm_up_model(self) -> None:
        """Nothing to do: a stage warms up when it is bound."""

    # -- batches -------------------------------------------------------------------------------------------------------

    def execute_model(
        self, scheduler_output: SchedulerOutput, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput | None] | None:
        """Take a scheduled batch; it is sent when the engine has computed its grammar (`sample_tokens`)."""
        answer: Future[ModelRunnerOutput | None] = Future()
        if scheduler_output.total_num_scheduled_tokens == 0:
            self.pipeline.dispatcher.finish(scheduler_output.finished_req_ids)
            answer.set_result(EMPTY_MODEL_RUNNER_OUTPUT)
        else:
            self._pending = batch_from_vllm(scheduler_output)
            self._kv_losses_known = self.pipeline.depth.kv_losses_known
            answer.set_result(None)
        return answer if non_block else answer.result()

    def sample_tokens(
        self, grammar_output: GrammarOutput | None, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput]:
        """Send the batch that `execute_model` took down the chain."""
        batch, self._pending = self._pending, None
        if batch is None:
            raise EngineError("sample_tokens() without a batch from execute_model()")
        batch.grammar = grammar_from_vllm(grammar_output)
        answer: Future[ModelRunnerOutput] = Future()

        def convert(done: Future[BatchOutput]) -> None:
            error = done.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(output_to_vllm(done.result()))

        self.pipeline.dispatcher.dispatch(batch, self._kv_losses_known).add_done_callback(convert)
        return answer if non_block else answer.result()

    # -- control -------------------------------------------------------------------------------------------------------

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """Call a worker method with plain data on all stages, or one of the pipeline's own control calls."""
        if not isinstance(method, str):
            raise UnsupportedFeature("only named worker methods can be called: functions would have to be pickled")
        results = (
            self._control.call(method, args)
            if self._control.knows(method)
            else self._call_stages(method, timeout, args, kwargs or {})
        )
        if not non_block:
            return results
        answer: Future[Any] = Future()
        answer.set_result(results)
        return answer

    def _call_stages(
        self, method: str, timeout: float | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        fleet = self.pipeline.fleet
        try:
            futures = [
                fleet.call_async(stage, "worker", method=method, args=list(args), kwargs=kwargs)
                for stage in fleet.stages()
            ]
        except TypeError as error:
            raise UnsupportedFeature(f"worker method {method!r} cannot be called with {args!r}: {error}") from error
        return [future.result(timeout) for future in futures]

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        """Text generation."""
        return ("generate",)

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the pipeline can serve no more."""
        self._failure_callback = callback
        if self._failure is not None:
            callback()

    def _on_failed(self, reason: str) -> None:
        self._failure = reason
        if self._failure_callback is not None:
            self._failure_callback()

    def check_health(self) -> None:
        """Raise when the pipeline can serve no more."""
        if self._failure is not None:
            raise EngineError(f"the pipeline failed: {self._failure}")

    def shutdown(self) -> None:
        """End all stages."""
        self.pipeline.close()
        if self._publisher is not None:
            self._publisher.close()
        if self._tracing is not None:
            self._tracing.close()
