"""A program: an engine that was started in bfloat16 says how likely it finds texts, and changes to float32 and back.

Run by `test_precision`, in a process of its own: a process can have one engine. Reads ``[[token, ...], ...]`` as JSON
on standard input. Its last line is, for every text, ``[logprob of the token, best logprob]`` at each position but the
first.
"""

from __future__ import annotations

import json
import sys


def main(model: str) -> None:
    """Answer for the texts; then every answer of a request must be complete across changes."""
    from vllm import SamplingParams

    from tests.integration.engine.harness import Harness, Prompt, tokens

    harness = Harness(model, layers="3,3", blocks=24, precision="bfloat16")
    pipeline = harness.pipeline
    try:
        found = []
        for number, text in enumerate(json.load(sys.stdin)):
            sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
            harness.engine.add_request(f"text-{number}", {"prompt_token_ids": text}, sampling)
            while harness.engine.has_unfinished_requests():
                for output in harness.engine.step():
                    said = output.prompt_logprobs
            found.append(
                [
                    [at[token].logprob, max(entry.logprob for entry in at.values())]
                    for token, at in zip(text[1:], said[1:], strict=True)
                ]
            )
        prompts = {"greedy": Prompt("a long story about the sea", {"max_tokens": 60})}
        undisturbed = tokens(harness.run(prompts))["greedy"][0]
        harness.settle("3,3")
        asked: list[int] = []

        def between(steps: int) -> None:
            if steps in {10, 30}:
                harness.begin("", precision="float32" if steps == 10 else "bfloat16")
                asked.append(steps)

        disturbed = tokens(harness.run(prompts, between))["greedy"][0]
        harness.idle()
        assert asked == [10, 30], "the changes were not asked for"
        assert len(disturbed) == 60, "the answer is not complete"
        assert disturbed[:9] == undisturbed[:9], "tokens before the change differ"
        assert pipeline.layout().precision == "bfloat16"
        assert pipeline.coordinator.last is not None
        assert pipeline.coordinator.last.report()["state"] == "committed"
    finally:
        harness.close()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
