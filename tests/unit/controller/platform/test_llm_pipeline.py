"""The LLMPipeline object: what it may say, what it means as a layout, and what a change of it takes."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.platform.llm_pipeline import (
    API_VERSION,
    KIND,
    InvalidPipeline,
    LiveChange,
    LLMPipeline,
    Restart,
    diff,
)
from runtime.layout import Layout
from runtime.migration.protocol import Fallback, Method


def raw(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "smollm"}, "spec": spec}


def pipeline(**spec: Any) -> LLMPipeline:
    return LLMPipeline.parse(raw(**spec))


def problems(data: object) -> list[str]:
    with pytest.raises(InvalidPipeline) as refusal:
        LLMPipeline.parse(data)
    return [str(problem) for problem in refusal.value.problems]


class TestWhatItMaySay:
    def test_everything_at_once(self):
        whole = pipeline(
            model={"id": "a/b", "revision": "main", "dtype": "float32", "maxLength": 2048, "layers": 30},
            stages=[
                {"layers": 15, "node": "edge-1"},
                {
                    "layers": 15,
                    "nodeSelector": {"midstream.dev/tier": "edge"},
                    "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"nvidia.com/gpu": "1"}},
                },
            ],
            migration={"method": "recompute", "fallback": "recompute"},
            capacity={"kvBlocks": 100, "maxRequests": 8, "maxBatchTokens": 512},
            scaling={"sleepAfterSeconds": 60, "holdRequests": 3, "holdSeconds": 1.5, "spareStages": 0},
            privacy={"guard": "http://127.0.0.1:7180"},
            engineArgs=["--seed=1", "--block-size", "16"],
        )
        assert whole.spec.stages is not None
        assert whole.spec.stages[1].resources is not None
        assert whole.spec.stages[1].resources.requests == {"cpu": "2", "memory": "4Gi"}
        assert whole.nodes == ("edge-1",)
        assert LLMPipeline.parse(whole.to_object()) == whole

    def test_what_a_cluster_adds_is_not_part_of_what_is_wanted(self):
        read_back = raw(auto={"stages": 3})
        read_back["status"] = {"phase": "Serving"}
        read_back["metadata"].update(uid="1", resourceVersion="7", managedFields=[{}], generation=4)
        assert LLMPipeline.parse(read_back) == pipeline(auto={"stages": 3})

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            *[
                (
                    {"privacy": {"guard": wrong}},
                    f"spec.privacy.guard: {wrong!r} is no address such as http://guard:7180",
                )
                for wrong in ("guard:7180", "ftp://guard", "http://u:p@guard", "http://", "http://guard:7180\n")
            ],
            ({"stages": []}, "spec.stages: is empty; give at least one, or leave it out"),
            ({"stages": [{"layers": 1}] * 65}, "spec.stages: has 65 entries; 64 at most"),
            ({"stages": [{"layers": 15}, {"layers": 0}]}, "spec.stages[1].layers: 0 is too small; 1 at least"),
            ({"stages": [{"layers": "15"}]}, "spec.stages[0].layers: '15' is not a whole number"),
            ({"stages": [{"layers": True}]}, "spec.stages[0].layers: True is not a whole number"),
            ({"stages": [{}]}, "spec.stages[0].layers: is missing; add it"),
            (
                {"stages": [{"layers": 1, "nod": "x"}]},
                "spec.stages[0].nod: is no field of spec.stages[0]; did you mean node?",
            ),
            ({"stages": {"layers": 1}}, "spec.stages: {'layers': 1} is not a list"),
            (
                {"stages": [{"layers": 1, "node": "local"}]},
                "spec.stages[0].node: 'local' means the head's own node; leave",
            ),
            ({"stages": [{"layers": 1, "node": "Edge"}]}, "spec.stages[0].node: 'Edge' is no node's name"),
            (
                {"stages": [{"layers": 1, "node": "a", "nodeSelector": {"b": "c"}}]},
                "spec.stages[0]: has both `node` and",
            ),
            ({"stages": [{"layers": 1, "nodeSelector": {}}]}, "spec.stages[0].nodeSelector: is empty"),
            (
                {"stages": [{"layers": 1, "resources": {"limits": {"cpu": "much"}}}]},
                "'much' is no quantity, such as '2'",
            ),
            (
                {"stages": [{"layers": 1}], "auto": {"stages": 1}},
                "spec: has both `stages` and `auto`; keep one of them",
            ),
            ({"auto": {}}, "spec.auto.stages: is missing; add it"),
            ({"auto": {"stages": 65}}, "spec.auto.stages: 65 is too large; 64 at most"),
            ({"auto": {"stages": 3}, "model": {"layers": 2}}, "spec.auto.stages: 3 stages of a model with 2 layers"),
            (
                {"stages": [{"layers": 8}, {"layers": 12}, {"layers": 9}], "model": {"layers": 30}},
                "spec.stages: the layers 8,12,9 add up to 29, but spec.model.layers is 30; 10,10,10 would work",
            ),
            ({"model": {"id": "a/b", "path": "/m"}}, "spec.model: has both `id` and `path`; keep one of them"),
            (
                {"model": {"path": "/m", "revision": "x"}},
                "spec.model: has a `revision`, which only a model with an `id`",
            ),
            ({"model": {"path": "models"}}, "spec.model.path: 'models' is no absolute path"),
            ({"model": {"id": "--help"}}, "spec.model.id: '--help' is no Hugging Face id"),
            ({"model": {"id": "a", "revision": "--x"}}, "spec.model.revision: '--x' is no branch, tag or commit"),
            ({"model": {"dtype": "int4"}}, "spec.model.dtype: 'int4' is not known here; write 'auto', 'float32'"),
            ({"migration": {"method": "copy"}}, "spec.migration.method: 'copy' is not known here; write 'pre_copy'"),
            ({"capacity": {"kvBlocks": 1}}, "spec.capacity.kvBlocks: 1 is too small; 2 at least"),
            ({"capacity": None}, "spec.capacity: None is not a mapping of fields"),
            (
                {"scaling": {"sleepAfterSeconds": float("inf")}},
                "spec.scaling.sleepAfterSeconds: inf is not a finite number",
            ),
            ({"scaling": {"holdSeconds": 0.5}}, "spec.scaling.holdSeconds: 0.5 is too small; 1.0 at least"),
            ({"engineArgs": [3]}, "spec.engineArgs[0]: 3 is not text"),
            ({"engineArgs": ["8"]}, "spec.engineArgs[0]: '8' is no flag of vLLM"),
            ({"engineArgs": ["--seed", "1", "2"]}, "spec.engineArgs[2]: '2' is no flag of vLLM"),
            ({"engineArgs": ["--"]}, "spec.engineArgs[0]: '--' is no flag of vLLM"),
            ({"engineArgs": ["--layers=30"]}, "spec.engineArgs[0]: '--layers' cannot be given here: spec.stages or"),
            (
                {"engineArgs": ["--distributed_executor_backend=ray"]},
                "'--distributed-executor-backend' cannot be given",
            ),
            (
                {"engineArgs": ["--mod=x"]},
                "spec.engineArgs[0]: '--mod' cannot be given here: spec.model says it (--model)",
            ),
            (
                {"engineArgs": ["-tp", "2"]},
                "spec.engineArgs[0]: '-tp' cannot be given here: Midstream decides it (-tp)",
            ),
            ({"engineArgs": ["-pp=2"]}, "spec.engineArgs[0]: '-pp' cannot be given here: Midstream decides it (-pp)"),
            ({"engineArgs": ["-dp=2"]}, "spec.engineArgs[0]: '-dp' cannot be given here: Midstream decides it (-dp)"),
            ({"engineArgs": ["--api-key", "s"]}, "command lines can be read by others; set it in the environment"),
            (
                {"engineArgs": ["--max-model-len=8"], "model": {"maxLength": 8}},
                "spec.engineArgs[0]: '--max-model-len' cannot be given here: spec.model.maxLength says it",
            ),
            ({"stagse": []}, "spec.stagse: is no field of spec; did you mean stages?"),
        ],
    )
    def test_a_mistake_is_told_with_its_place_its_value_and_what_to_do(self, spec: dict[str, Any], message: str):
        (problem,) = problems(raw(**spec))
        assert message in problem

    @pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a_b", "7b", "a" * 41, "../x", "a\n"])
    def test_a_name_can_be_that_of_a_service(self, name: str):
        (problem,) = problems({**raw(), "metadata": {"name": name}})
        assert problem.startswith(f"metadata.name: {name!r} is no name"[:60])

    def test_a_name_has_forty_characters_at_most(self):
        assert LLMPipeline.parse({**raw(), "metadata": {"name": "a" * 40}}).name == "a" * 40

    @pytest.mark.parametrize("data", [None, [], "x", 3])
    def test_what_is_no_mapping_is_refused(self, data: object):
        (problem,) = problems(data)
        assert problem == f"{data!r} is not a mapping of fields"

    def test_all_mistakes_are_told_at_once(self):
        wrong = raw(stages=[{"layers": 0}], capacity={"kvBlocks": 0}, engineArgs=[1])
        wrong["kind"] = "Pipeline"
        assert [problem.split(":")[0] for problem in problems(wrong)] == [
            "kind",
            "spec.stages[0].layers",
            "spec.capacity.kvBlocks",
            "spec.engineArgs[0]",
        ]

    def test_an_empty_object_says_what_is_missing(self):
        assert problems({}) == [
            "apiVersion: is missing; add it: midstream.dev/v1alpha1",
            "kind: is missing; add it: LLMPipeline",
            "metadata: is missing; add it: {name: smollm}",
        ]

    def test_a_flag_that_only_begins_like_one_of_ours_is_left_to_vllm(self):
        assert (
            pipeline(engineArgs=["--model-impl=vllm", "--max-model-len=8"]).spec.engine_args[0] == "--model-impl=vllm"
        )


class TestLayout:
    def test_stages_say_layers_and_nodes(self):
        stages = [{"layers": 8, "node": "edge-1"}, {"layers": 12}, {"layers": 10, "node": "edge-2"}]
        assert pipeline(stages=stages).layout_text(30) == "8@edge-1,12,10@edge-2"

    @pytest.mark.parametrize(("spec", "layout"), [({}, "15,15"), ({"auto": {"stages": 4}}, "8,8,7,7")])
    def test_without_stages_the_split_is_even(self, spec: dict[str, Any], layout: str):
        assert pipeline(**spec).layout_text(30) == layout

    def test_a_model_with_one_layer_has_one_stage_by_default(self):
        assert pipeline().layout_text(1) == "1"

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (
                {"stages": [{"layers": 8}, {"layers": 12}]},
                "the layers 8,12 add up to 20, but the model has 30; 15,15 would work",
            ),
            ({"auto": {"stages": 31}}, "31 stages of a model with 30 layers"),
            ({"model": {"layers": 24}}, "spec.model.layers: 24, but the model has 30; correct or remove it"),
        ],
    )
    def test_stages_that_do_not_fit_the_model_are_refused(self, spec: dict[str, Any], message: str):
        with pytest.raises(InvalidPipeline, match=message):
            pipeline(**spec).layout_text(30)


NODES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(lambda name: name != "local")
STAGES = st.lists(
    st.fixed_dictionaries({"layers": st.integers(1, 40)}, optional={"node": NODES}), min_size=1, max_size=64
)
COUNTS = st.integers(2, 2**31 - 1)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.fixed_dictionaries(
            {}, optional={"path": st.just("/m"), "dtype": st.just("auto"), "maxLength": COUNTS}
        ),
        "migration": st.fixed_dictionaries(
            {},
            optional={
                "method": st.sampled_from(list(map(str, Method))),
                "fallback": st.sampled_from(["abort", "recompute"]),
            },
        ),
        "capacity": st.fixed_dictionaries({}, optional={"kvBlocks": COUNTS, "maxRequests": COUNTS}),
        "scaling": st.fixed_dictionaries(
            {}, optional={"sleepAfterSeconds": st.floats(0.1, 1e6), "spareStages": st.integers(0, 64)}
        ),
        "engineArgs": st.lists(st.text(string.ascii_lowercase).map(lambda text: f"--x-{text}={text}")),
    },
)


@given(spec=SPECS, stages=STAGES)
def test_any_valid_object_survives_a_round_trip_and_gives_a_layout_that_the_runtime_reads(
    spec: dict[str, Any], stages: list[dict[str, Any]]
):
    total = sum(stage["layers"] for stage in stages)
    wanted = pipeline(**spec, stages=stages)
    assert LLMPipeline.parse(wanted.to_object()) == wanted
    layout = Layout.parse(wanted.layout_text(total), total)
    assert layout.counts == tuple(stage["layers"] for stage in stages)
    assert [stage.node for stage in layout.stages] == [stage.get("node", "local") for stage in stages]


@given(stages=st.integers(1, 64), layers=st.integers(64, 200))
def test_any_even_split_is_a_layout(stages: int, layers: int):
    layout = Layout.parse(pipeline(auto={"stages": stages}).layout_text(layers), layers)
    assert len(layout) == stages
    assert max(layout.counts) - min(layout.counts) <= 1


class TestDiff:
    @pytest.mark.parametrize(
        ("old", "new", "layers"),
        [
            ({}, {"auto": {"stages": 3}}, "10,10,10"),
            ({}, {"stages": [{"layers": 15}, {"layers": 15}]}, None),  # another way to say the same
            ({}, {"auto": {"stages": 2}}, None),
            ({"stages": [{"layers": 30}]}, {"stages": [{"layers": 30, "node": "edge-1"}]}, "30@edge-1"),
            ({"stages": [{"layers": 30}]}, {}, "15,15"),
            ({}, {"model": {"layers": 30}}, None),
            ({}, {"capacity": {}, "scaling": {}}, None),
        ],
    )
    def test_stages_change_while_it_serves(self, old: dict[str, Any], new: dict[str, Any], layers: str | None):
        change = diff(pipeline(**old), pipeline(**new), 30)
        assert change == LiveChange(layers, Method.PRE_COPY, Fallback.ABORT)

    def test_the_new_object_says_how(self):
        how = {"method": "stop_and_copy", "fallback": "recompute"}
        change = diff(pipeline(), pipeline(auto={"stages": 1}, migration=how), 30)
        assert change == LiveChange("30", Method.STOP_AND_COPY, Fallback.RECOMPUTE)

    def test_labels_change_nothing_that_serves(self):
        labelled = LLMPipeline.parse({**raw(), "metadata": {"name": "smollm", "labels": {"team": "a"}}})
        assert diff(pipeline(), labelled, 30) == LiveChange(None, Method.PRE_COPY, Fallback.ABORT)

    @pytest.mark.parametrize(
        ("new", "fields"),
        [
            ({"model": {"dtype": "float16"}}, ("spec.model.dtype",)),
            ({"model": {"path": "/m"}}, ("spec.model.path",)),
            ({"capacity": {"kvBlocks": 10}}, ("spec.capacity.kvBlocks",)),
            (
                {"scaling": {"sleepAfterSeconds": 3, "holdRequests": 1}},
                ("spec.scaling.sleepAfterSeconds", "spec.scaling.holdRequests"),
            ),
            ({"privacy": {"guard": "http://guard:7180"}}, ("spec.privacy.guard",)),
            ({"engineArgs": ["--seed=1"], "auto": {"stages": 3}}, ("spec.engineArgs",)),
        ],
    )
    def test_everything_else_takes_a_restart_and_is_named(self, new: dict[str, Any], fields: tuple[str, ...]):
        assert diff(pipeline(), pipeline(**new), 30) == Restart(fields)

    def test_another_name_is_another_pipeline(self):
        other = LLMPipeline.parse({**raw(), "metadata": {"name": "other"}})
        assert diff(pipeline(), other, 30) == Restart(("metadata.name",))

    def test_the_number_of_layers_may_come_from_either_object(self):
        change = diff(pipeline(stages=[{"layers": 4}]), pipeline(auto={"stages": 4}))
        assert isinstance(change, LiveChange)
        assert change.layers == "1,1,1,1"

    def test_if_nobody_knows_the_number_of_layers_it_is_asked_for(self):
        with pytest.raises(InvalidPipeline, match=r"spec.model.layers: is missing"):
            diff(pipeline(), pipeline(auto={"stages": 3}))
        assert diff(pipeline(), pipeline(migration={})) == LiveChange(None, Method.PRE_COPY, Fallback.ABORT)

    def test_stages_that_do_not_fit_are_refused(self):
        with pytest.raises(InvalidPipeline, match="add up to 29"):
            diff(pipeline(), pipeline(stages=[{"layers": 29}]), 30)
