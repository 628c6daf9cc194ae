"""What a request in KServe's words asks of the head."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.head.kserve_server.completion import (
    OUTPUTS,
    PARAMETERS,
    Answer,
    HeadAnswerError,
    InvalidCompletionError,
    Tensor,
    answers,
    from_instances,
    from_tensors,
    input_types,
    output_types,
)

PROMPTS = Tensor("prompt", "BYTES", [2], ["Once", "Twice"])


def choice(index: int = 0, **changed: object) -> dict[str, Any]:
    usual = {"text": f"text {index}", "finish_reason": "length", "prompt_token_ids": [1, 2], "token_ids": [3] * 5}
    return {"index": index, **usual, **changed}


class TestTensors:
    def test_the_prompts_are_one_request_in_their_order(self) -> None:
        assert from_tensors([PROMPTS], {}) == {"prompt": ["Once", "Twice"], "return_token_ids": True}

    def test_parameters_are_given_with_the_request_or_as_tensors(self) -> None:
        tensors = [
            PROMPTS,
            Tensor("max_tokens", "INT32", [1], [8]),
            Tensor("temperature", "FP64", [1, 1], [[0.7]]),
            Tensor("stop", "BYTES", [2], ["\n", "END"]),
        ]
        body = from_tensors(tensors, {"seed": 7, "ignore_eos": True, "top_p": 1, "binary_data_output": True})
        assert body == {
            "prompt": ["Once", "Twice"],
            "max_tokens": 8,
            "temperature": 0.7,
            "stop": ["\n", "END"],
            "seed": 7,
            "ignore_eos": True,
            "top_p": 1,
            "return_token_ids": True,
        }

    def test_data_may_be_nested_as_its_shape_says(self) -> None:
        assert from_tensors([Tensor("prompt", "BYTES", [2, 1], [["a"], ["b"]])], {})["prompt"] == ["a", "b"]

    def test_depth_is_no_way_to_bring_the_server_down(self) -> None:
        data: list[Any] = ["a"]
        for _ in range(100_000):
            data = [data]
        assert from_tensors([Tensor("prompt", "BYTES", [1], data)], {})["prompt"] == ["a"]

    @pytest.mark.parametrize(
        ("tensors", "parameters", "message"),
        [
            ([], {}, "no input 'prompt'"),
            ([Tensor("prompt", "BYTES", [0], [])], {}, "no prompt"),
            ([PROMPTS, PROMPTS], {}, "'prompt' is given twice"),
            ([Tensor("prompt", "FP32", [1], [1.0])], {}, "'prompt' is FP32; give it as BYTES"),
            ([Tensor("prompt", "BYTES", [1], [7])], {}, "prompt 0 is int, not a text"),
            (
                [Tensor("prompt", "BYTES", [3], ["a"])],
                {},
                r"shape \[3\] and 1 elements; give 1 prompts the shape \[1\]",
            ),
            ([Tensor("prompt", "BYTES", [-1, -1], ["a"])], {}, r"shape \[-1, -1\]"),
            ([PROMPTS, Tensor("seed", "INT64", [2], [1, 2])], {}, "'seed' has 2 elements"),
            ([PROMPTS, Tensor("seed", "FP64", [1], [1.0])], {}, "'seed' is FP64; give it as INT64"),
            ([PROMPTS, Tensor("seed", "INT64", [1], [1])], {"seed": 1}, "'seed' is given twice"),
            ([PROMPTS, Tensor("seed", "INT64", [1], ["1"])], {}, "'seed' is '1', not a whole number"),
            (
                [PROMPTS, Tensor("input-0", "BYTES", [1], ["a"])],
                {},
                "'input-0' is unknown; known are prompt, max_tokens",
            ),
            ([PROMPTS], {"max_token": 1}, "'max_token' is unknown"),
            ([PROMPTS], {"max_tokens": True}, "'max_tokens' is True, not a whole number"),
            ([PROMPTS], {"ignore_eos": 1}, "'ignore_eos' is 1, not true or false"),
            ([PROMPTS], {"temperature": float("nan")}, "give a finite number"),
            ([PROMPTS], {"stream": True}, "use /openai/v1/completions for streams"),
            ([PROMPTS], {"model": "other"}, "'model' is unknown"),
        ],
    )
    def test_what_is_no_completion_request_is_refused_by_name(
        self, tensors: list[Tensor], parameters: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidCompletionError, match=message):
            from_tensors(tensors, parameters)


class TestInstances:
    def test_an_instance_is_a_prompt_or_has_one(self) -> None:
        body = from_instances({"instances": ["Once", {"prompt": "Twice"}], "parameters": {"stop": ["a", "b"]}})
        assert body == {"prompt": ["Once", "Twice"], "stop": ["a", "b"], "return_token_ids": True}

    @pytest.mark.parametrize(
        ("payload", "message"),
        [
            ({}, "'instances' is not a list"),
            ({"instances": "Once"}, "'instances' is not a list"),
            ({"instances": []}, "no prompt"),
            ({"instances": [{"prompt": "a", "seed": 1}]}, "prompt 0 is dict"),
            ({"instances": ["a"], "parameters": [1]}, "'parameters' is not an object"),
            ({"instances": ["a"], "max_tokens": 1}, "'max_tokens' is unknown; a request has"),
            ({"instances": ["a"], "parameters": {"stop": ["a", 1]}}, "'stop' is 1, not a text"),
            ({"instances": ["a"], "parameters": {"seed": [1]}}, r"'seed' is \[1\], not a whole number"),
        ],
    )
    def test_what_is_no_completion_request_is_refused_by_name(self, payload: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidCompletionError, match=message):
            from_instances(payload)


class TestAnswers:
    def test_answers_come_in_the_order_of_the_prompts(self) -> None:
        found = answers({"choices": [choice(1, finish_reason="stop"), choice(0, token_ids=[])]}, 2)
        assert found == [Answer("text 0", "length", 2, 0), Answer("text 1", "stop", 2, 5)]

    @pytest.mark.parametrize(
        "response",
        [None, [], {}, {"choices": []}, {"choices": [choice(), choice()]}, {"choices": [choice(token_ids=None)]}],
    )
    def test_another_answer_is_told_apart(self, response: object) -> None:
        with pytest.raises(HeadAnswerError):
            answers(response, 1)


class TestMetadata:
    def test_every_name_that_is_understood_is_in_it(self) -> None:
        assert [tensor["name"] for tensor in input_types()] == ["prompt", *PARAMETERS]
        assert [tensor["name"] for tensor in output_types()] == list(OUTPUTS)
        assert input_types()[0] == {"name": "prompt", "datatype": "BYTES", "shape": [-1]}
