"""Steps a real engine by hand and changes its pipeline in between."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.llm_engine import LLMEngine

from runtime.migration.protocol import Method, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm.outputs import RequestOutput

    from runtime.engine.executor import PipelineExecutor
    from runtime.engine.pipeline import Pipeline

_DEADLINE_S = 60.0

Outputs = dict[str, "RequestOutput"]


@dataclass(slots=True)
class Prompt:
    """A request to make: its text and how to sample."""

    text: str
    params: dict[str, Any] = field(default_factory=dict)

    def sampling(self) -> SamplingParams:
        return SamplingParams(**{"max_tokens": 40, "temperature": 0.0, "ignore_eos": True, **self.params})


class Harness:
    """A real engine in this process."""

    def __init__(self, model: str, *, layers: str, blocks: int, precision: str = "float32") -> None:
        self._precision = precision
        self._numbers = itertools.count(1)
        self.engine = LLMEngine.from_engine_args(
            EngineArgs(
                model,
                dtype=precision,
                enforce_eager=True,
                max_model_len=512,
                max_num_seqs=16,
                max_num_batched_tokens=64,
                block_size=32,
                num_gpu_blocks_override=blocks,
                kv_cache_memory_bytes=1 << 26,
                distributed_executor_backend="runtime.engine.executor.PipelineExecutor",
                scheduler_cls="runtime.engine.scheduler.PipelineScheduler",
                additional_config={"midstream": {"layers": layers, "threads": 1}},
            )
        )
        self.core = self.engine.engine_core.engine_core
        self.executor: PipelineExecutor = self.core.model_executor
        self.pipeline: Pipeline = self.executor.pipeline
        self._preempted = 0
        preempt = self.core.scheduler._preempt_request

        def count_then_preempt(*args: Any, **kwargs: Any) -> None:
            self._preempted += 1
            preempt(*args, **kwargs)

        self.core.scheduler._preempt_request = count_then_preempt

    def close(self) -> None:
        self.engine.engine_core.shutdown()

    # -- running requests ----------------------------------------------------------------------------------------------

    def add(self, prompts: Mapping[str, Prompt]) -> dict[str, str]:
        """Add requests; returns {engine's id: name}."""
        names = {}
        for name, prompt in prompts.items():
            request_id = f"{name}-{next(self._numbers)}"
            self.engine.add_request(request_id, prompt.text, prompt.sampling())
            names[request_id] = name
        return names

    def run(self, prompts: Mapping[str, Prompt], between: Callable[[int], None] | None = None) -> Outputs:
        """Run requests to their end; `between(steps)` is called before each step. Returns the last output of each."""
        names = self.add(prompts)
        outputs: Outputs = {}
        steps = 0
        while self.engine.has_unfinished_requests():
            if between is not None:
                between(steps)
            for output in self.engine.step():
                if output.request_id in names:
                    outputs[names[output.request_id]] = output
            steps += 1
        return outputs

    def run_with_changes(
        self, prompts: Mapping[str, Prompt], *layouts: str, every: int = 6, method: Method = Method.PRE_COPY
    ) -> Outputs:
        """Run requests while the pipeline goes through `layouts`, one after the other, as fast as they commit."""
        waiting = list(layouts)
        changes: list[str] = []

        def between(steps: int) -> None:
            if waiting and steps >= every and self.pipeline.coordinator.current is None:
                changes.append(self.begin(waiting.pop(0), method))

        outputs = self.run(prompts, between)
        self.idle()
        assert not waiting, f"the requests ended before {waiting} could be asked for; make them longer"
        for change in changes:
            report = self.pipeline.coordinator.find(change).report()
            assert report["state"] == "committed", report
        return outputs

    def preemptions(self) -> int:
        """Requests that were preempted so far, counted by wrapping the scheduler's own method."""
        return self._preempted

    # -- changing the pipeline -----------------------------------------------------------------------------------------

    def use_up_spares(self) -> None:
        """Let the next change find no stage that is ready: it has to start its own."""
        self.wait_for_spares()
        spares = self.pipeline.serving.spares
        while (stage := spares.take("local", self.pipeline.layout().precision)) is not None:
            self.pipeline.fleet.release(stage)

    def wait_for_spares(self) -> None:
        """Wait until no spare stage is being started any more."""
        deadline = time.monotonic() + _DEADLINE_S
        while self.pipeline.serving.spares._missing() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def begin(self, layout: str, method: Method = Method.PRE_COPY, precision: str | None = None) -> str:
        """Ask for a change and wait until it is ready to cut over (or has failed); returns its id."""
        change = self.pipeline.coordinator.request(layout, method, precision=precision)
        deadline = time.monotonic() + _DEADLINE_S
        while change.machine.step in {Step.PLAN, Step.PREPARE, Step.PRE_COPY}:
            assert time.monotonic() < deadline, change.report()
            change.ended.wait(0.002)
        return change.id

    def change(self, layout: str, method: Method = Method.PRE_COPY, precision: str | None = None) -> str:
        """Change the pipeline, wait, and check that the change was committed; returns its id."""
        change = self.pipeline.coordinator.request(layout, method, precision=precision)
        self.idle()
        assert change.report()["state"] == "committed", change.report()
        return change.id

    def idle(self) -> None:
        """Wait until no change is under way, stepping the engine as its own loop would."""
        deadline = time.monotonic() + _DEADLINE_S
        while (change := self.pipeline.coordinator.current) is not None:
            assert time.monotonic() < deadline, change.report()
            if self.core.scheduler.has_requests():  # finished ones, of which the stages have to hear
                self.engine.step()
            change.ended.wait(0.01)
        last = self.pipeline.coordinator.last
        assert last is None or last.ended.wait(_DEADLINE_S)

    def recovered(self, *lost: int) -> None:
        """Wait until no recovery is under way, and none of the processes `lost` serves any more."""
        deadline = time.monotonic() + _DEADLINE_S
        pipeline = self.pipeline
        while (
            pipeline.recovery.running
            or not pipeline.serving.is_whole()
            or {stage.pid for stage in pipeline.serving.assembly.stages}.intersection(lost)
        ):
            assert time.monotonic() < deadline, pipeline.status()
            time.sleep(0.01)

    def settle(self, layout: str) -> None:
        """Finish all requests and return to `layout`, in the precision that the engine was started with."""
        while self.engine.has_unfinished_requests():
            self.engine.step()
        self.idle()
        self.recovered()
        serving = self.pipeline.layout()
        if (str(serving), serving.precision) != (layout, self._precision):
            self.change(layout, precision=self._precision)
        self.engine.reset_prefix_cache()


def tokens(outputs: Outputs) -> dict[str, list[list[int]]]:
    """Return the generated token ids of every completion of every request."""
    return {
        name: [list(completion.token_ids) for completion in sorted(output.outputs, key=lambda c: c.index)]
        for name, output in sorted(outputs.items())
    }
