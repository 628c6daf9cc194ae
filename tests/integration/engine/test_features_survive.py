"""Every feature of the engine gives the same answers while the pipeline is re-split under it (I3, I6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runtime.migration.protocol import Method
from tests.integration.engine.harness import Harness, Prompt, tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]

LAYOUTS = ("2,1,3", "6", "1,1,2,2", "3,3")
LONG = " ".join(f"word{i}" for i in range(30))  # several chunks of prefill: the engine takes 64 tokens at a time
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}

FEATURES: Mapping[str, Mapping[str, Prompt]] = {
    "greedy": {f"r{i}": Prompt(f"the number {i}") for i in range(4)},
    "seeded": {f"r{i}": Prompt(f"the number {i}", {"temperature": 0.9, "seed": 40 + i}) for i in range(4)},
    "several completions": {"r": Prompt("in the", {"n": 3, "temperature": 0.8, "seed": 5})},
    "penalties": {
        "r": Prompt("a the", {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4}),
        "s": Prompt("a the", {"temperature": 0.7, "seed": 3, "frequency_penalty": 0.9}),
    },
    "logprobs": {"r": Prompt("the thin", {"logprobs": 3})},
    "prompt logprobs": {"r": Prompt(LONG, {"prompt_logprobs": 2})},
    "min tokens, bias and bad words": {
        "r": Prompt("the", {"min_tokens": 10, "logit_bias": {5: 2.0}, "bad_words": ["q"]}),
        "s": Prompt("the", {"min_p": 0.1, "top_k": 20, "top_p": 0.9, "temperature": 1.1, "seed": 9}),
    },
    "chunked prefill": {f"r{i}": Prompt(LONG + str(i)) for i in range(3)},
    "chunked prefill, seeded": {"r": Prompt(LONG, {"temperature": 0.8, "seed": 11})},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_i6_answers_are_identical_with_and_without_changes(two_stages: Harness, feature: str) -> None:
    prompts = FEATURES[feature]
    undisturbed = two_stages.run(prompts)
    two_stages.engine.reset_prefix_cache()
    disturbed = two_stages.run_with_changes(prompts, *LAYOUTS, every=2)
    assert tokens(disturbed) == tokens(undisturbed)


def test_logprobs_survive_to_the_digit(two_stages: Harness) -> None:
    prompts = {"r": Prompt("the thin", {"logprobs": 3})}
    undisturbed = two_stages.run(prompts)["r"].outputs[0].logprobs
    disturbed = two_stages.run_with_changes(prompts, *LAYOUTS)["r"].outputs[0].logprobs
    for before, after in zip(undisturbed, disturbed, strict=True):
        assert before.keys() == after.keys()
        assert all(after[token].logprob == pytest.approx(before[token].logprob, abs=1e-4) for token in before)


@pytest.mark.parametrize("method", [Method.PRE_COPY, Method.RECOMPUTE])
def test_prompt_logprobs_are_complete_after_a_change_was_asked_for_in_the_middle_of_them(
    two_stages: Harness, method: Method
) -> None:
    prompts = {"r": Prompt(LONG, {"prompt_logprobs": 1, "max_tokens": 4})}
    undisturbed = two_stages.run(prompts)["r"].prompt_logprobs
    disturbed = two_stages.run_with_changes(prompts, "2,4", every=1, method=method)["r"].prompt_logprobs
    assert len(disturbed) == len(undisturbed)
    assert [None if p is None else set(p) for p in disturbed] == [None if p is None else set(p) for p in undisturbed]


def test_structured_output_stays_valid(two_stages: Harness) -> None:
    import json

    from vllm.sampling_params import StructuredOutputsParams

    structured = {"structured_outputs": StructuredOutputsParams(json=SCHEMA), "ignore_eos": False}
    prompts = {f"r{i}": Prompt(f"give {i}", {**structured, "seed": i, "temperature": 0.5}) for i in range(3)}
    undisturbed = two_stages.run(prompts)
    disturbed = two_stages.run_with_changes(prompts, "2,1,3", "3,3", every=3)
    assert tokens(disturbed) == tokens(undisturbed)
    finished = [o.outputs[0].text for o in disturbed.values() if o.outputs[0].finish_reason == "stop"]
    for text in finished:
        assert isinstance(json.loads(text)["a"], int)


def test_stop_strings_end_a_stream_where_they_would_have(two_stages: Harness) -> None:
    full = two_stages.run({"r": Prompt("the end of", {"max_tokens": 60})})["r"].outputs[0].text
    stop = full[30:33]
    prompts = {"r": Prompt("the end of", {"max_tokens": 60, "stop": [stop]})}
    undisturbed = two_stages.run(prompts)["r"].outputs[0]
    disturbed = two_stages.run_with_changes(prompts, "1,5", "3,3", every=4)["r"].outputs[0]
    assert (disturbed.text, disturbed.finish_reason, disturbed.stop_reason) == (undisturbed.text, "stop", stop)


def test_the_prefix_cache_stays_valid_across_a_change(two_stages: Harness) -> None:
    first = two_stages.run({"r": Prompt(LONG)})["r"]
    two_stages.change("2,1,3")
    second = two_stages.run({"r": Prompt(LONG)})["r"]
    assert second.num_cached_tokens >= len(second.prompt_token_ids) // 32 * 32 - 32
    assert list(second.outputs[0].token_ids) == list(first.outputs[0].token_ids)


def test_the_prefix_cache_moves_along_when_layers_change_their_node(two_stages: Harness) -> None:
    first = two_stages.run({"r": Prompt(LONG)})["r"]
    change = two_stages.change("3@a,3@b")
    assert two_stages.pipeline.coordinator.find(change).report()["bytes_moved"] > 0
    second = two_stages.run({"r": Prompt(LONG)})["r"]
    assert second.num_cached_tokens > 0
    assert list(second.outputs[0].token_ids) == list(first.outputs[0].token_ids)


@pytest.mark.parametrize("method", list(Method))
def test_layers_move_between_nodes_under_load(two_stages: Harness, method: Method) -> None:
    prompts = {
        f"r{i}": Prompt(f"the number {i}", {"max_tokens": 60, "temperature": 0.5 * (i % 2), "seed": i})
        for i in range(4)
    }
    undisturbed = two_stages.run(prompts)
    disturbed = two_stages.run_with_changes(prompts, "3@a,3@b", "2@b,2,2@a", "3,3", every=3, method=method)
    assert tokens(disturbed) == tokens(undisturbed)


def test_prefixes_that_were_not_computed_again_are_not_found_any_more(two_stages: Harness) -> None:
    first = two_stages.run({"r": Prompt(LONG)})["r"]
    two_stages.change("3@a,3@b", Method.RECOMPUTE)
    second = two_stages.run({"r": Prompt(LONG)})["r"]
    assert second.num_cached_tokens == 0
    assert list(second.outputs[0].token_ids) == list(first.outputs[0].token_ids)


def test_several_batches_are_in_flight_and_stages_busy_at_once(two_stages: Harness) -> None:
    """On two nodes two batches are in flight; the trace shows both stages computing at the same time."""
    two_stages.change("3@a,3@b")
    two_stages.pipeline.dispatcher.trace.clear()
    later = {f"s{i}": Prompt(f"later {i}", {"max_tokens": 60}) for i in range(2)}
    two_stages.run(
        {f"r{i}": Prompt(f"now {i}", {"max_tokens": 60}) for i in range(2)},
        lambda steps: two_stages.add(later) and None if steps == 3 else None,
    )
    spans = [span for batch in two_stages.pipeline.dispatcher.trace for span in batch.spans]
    stages = sorted({span.stage for span in spans})
    overlaps = [
        (a, b)
        for a in spans
        for b in spans
        if (a.stage, b.stage) == (stages[0], stages[1]) and a.start_ns < b.end_ns and b.start_ns < a.end_ns
    ]
    assert len(overlaps) > 10
