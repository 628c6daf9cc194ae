"""A program: an engine whose model cannot be inherited, so that every stage loads its own layers, as on GPUs.

Run by `test_per_stage_loading`, in a process of its own: a process can have one engine.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.engine.harness import Harness


def main(model: str) -> None:
    """Change, lose and change again; every answer must be what it was undisturbed."""
    from runtime.engine import warm_model
    from tests.integration.engine.harness import Harness, Prompt, tokens

    warm_model._bounded_modules = lambda _: []
    harness = Harness(model, layers="3,3", blocks=24)
    pipeline = harness.pipeline
    try:
        prompts = {
            "greedy": Prompt("a long story about the sea", {"max_tokens": 60}),
            "seeded": Prompt("the lighthouse", {"max_tokens": 60, "temperature": 0.9, "seed": 7}),
        }
        undisturbed = tokens(harness.run(prompts))
        assert not any(stage.any_role for stage in pipeline.fleet.stages()), "these stages were meant to load layers"
        assert len(pipeline.fleet.stages()) == 2, "such stages cannot be kept as spares"

        harness.settle("3,3")
        assert tokens(harness.run_with_changes(prompts, "2,2,2")) == undisturbed
        assert len(pipeline.fleet.stages()) == 3, "the old stages were meant to be released"

        def lose(steps: int) -> None:
            if steps == 10:
                os.kill(pipeline.serving.assembly.stages[1].pid, signal.SIGKILL)

        harness.engine.reset_prefix_cache()
        assert tokens(harness.run(prompts, lose)) == undisturbed
        harness.recovered()
        assert pipeline.recovery.count == 1
        harness.settle("3,3")
        assert tokens(harness.run(prompts)) == undisturbed

        exact = _sureness(harness)
        harness.change("", precision="bfloat16")
        harness.engine.reset_prefix_cache()
        rounded = tokens(harness.run(prompts))
        assert {name: len(answer) for name, (answer,) in rounded.items()} == {"greedy": 60, "seeded": 60}
        assert _sureness(harness) != exact, "these stages were meant to load other weights"
        harness.settle("3,3")
        assert pipeline.layout().precision == "float32"
        assert tokens(harness.run(prompts)) == undisturbed
    finally:
        directory = pipeline.fleet._folder.path
        assert directory.exists()
        harness.close()
    assert not directory.exists(), "sockets were left behind"
    print("every answer was the same")  # noqa: T201


def _sureness(harness: Harness) -> list[float]:
    """Return how likely each token of an answer was."""
    from tests.integration.engine.harness import Prompt

    answer = harness.run({"sure": Prompt("the number 1", {"max_tokens": 20, "logprobs": 1})})["sure"].outputs[0]
    return [at[token].logprob for token, at in zip(answer.token_ids, answer.logprobs, strict=True)]


if __name__ == "__main__":
    main(sys.argv[1])
