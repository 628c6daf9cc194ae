"""What the API server says to an LLMPipeline that cannot work: each message says what is wrong and what to do.

The local platform refuses the same objects (`controller.platform.llm_pipeline`), in words of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from controller.platform.llm_pipeline import InvalidPipeline, LLMPipeline

if TYPE_CHECKING:
    from tests.support.api_server import ApiServer


class Bad(NamedTuple):
    spec: dict[str, Any]
    message: str
    name: str = "bad"
    only_here: bool = False
    """A rule of clusters: the local platform takes the object."""


TWO = [{"layers": 15}, {"layers": 15}]


def _stage(**fields: Any) -> dict[str, Any]:
    return {"stages": [{"layers": 30, **fields}]}


def _engine(*arguments: str) -> dict[str, Any]:
    return {"engineArgs": list(arguments)}


BAD = {
    # What goes together.
    "stages and auto": Bad(
        {"stages": TWO, "auto": {"stages": 2}},
        "spec: Forbidden: stages and auto are exclusive: list the stages, or give auto.stages for an even split, and "
        "remove the other",
    ),
    "too few layers": Bad(
        {"model": {"layers": 30}, "stages": [{"layers": 8}, {"layers": 12}, {"layers": 9}]},
        "spec.stages: Invalid value: the layers of the stages add up to 29, but model.layers is 30: every layer "
        "belongs to exactly one stage",
    ),
    "too many layers": Bad(
        {"model": {"layers": 30}, "stages": [{"layers": 31}]},
        "the layers of the stages add up to 31, but model.layers is 30",
    ),
    "more stages than layers": Bad(
        {"model": {"layers": 3}, "auto": {"stages": 4}},
        "spec.auto: Invalid value: auto.stages is 4, but the model has 3 layers: a stage needs at least one layer",
    ),
    "id and path": Bad(
        {"model": {"id": "a/b", "path": "/models/b"}},
        "spec.model: Forbidden: id and path are exclusive: id names a model of a hub, path a folder with its files",
    ),
    "revision of a folder": Bad(
        {"model": {"path": "/models/b", "revision": "main"}}, "spec.model: Forbidden: revision goes with id only"
    ),
    "revision of the built-in model": Bad(
        {"model": {"revision": "main"}}, "spec.model: Forbidden: revision goes with id"
    ),
    "node and nodeSelector": Bad(
        _stage(node="edge-1", nodeSelector={"tier": "edge"}),
        "spec.stages[0]: Forbidden: node and nodeSelector are exclusive: name one node, or say which labels it must "
        "have",
    ),
    # Numbers.
    "no stages": Bad({"stages": []}, "spec.stages in body should have at least 1 items"),
    "65 stages": Bad({"stages": [{"layers": 1}] * 65}, "spec.stages: Too many: 65: must have at most 64 items"),
    "an empty stage": Bad(
        {"stages": [{"layers": 0}]}, "spec.stages[0].layers in body should be greater than or equal to 1"
    ),
    "a stage without layers": Bad({"stages": [{"node": "edge-1"}]}, "spec.stages[0].layers: Required value"),
    "layers as text": Bad(
        {"stages": [{"layers": "15"}]}, 'spec.stages[0].layers in body must be of type integer: "string"'
    ),
    "auto without a number": Bad({"auto": {}}, "spec.auto.stages: Required value"),
    "no stages by auto": Bad({"auto": {"stages": 0}}, "spec.auto.stages in body should be greater than or equal to 1"),
    "65 stages by auto": Bad({"auto": {"stages": 65}}, "spec.auto.stages in body should be less than or equal to 64"),
    "one KV block": Bad(
        {"capacity": {"kvBlocks": 1}}, "spec.capacity.kvBlocks in body should be greater than or equal to 2"
    ),
    "asleep at once": Bad(
        {"scaling": {"sleepAfterSeconds": 0}},
        "spec.scaling.sleepAfterSeconds: Invalid value: 0: must be at least 0.1; leave it out to never sleep",
    ),
    "fewer than no spares": Bad(
        {"scaling": {"spareStages": -1}}, "spec.scaling.spareStages in body should be greater than or equal to 0"
    ),
    # Names.
    "a misspelt field": Bad({"stage": TWO}, 'strict decoding error: unknown field "spec.stage"'),
    "a field of another object": Bad(_stage(image="x"), 'strict decoding error: unknown field "spec.stages[0].image"'),
    "an unknown precision": Bad(
        {"model": {"dtype": "int8"}},
        'spec.model.dtype: Unsupported value: "int8": supported values: "auto", "float32", "bfloat16", "float16"',
    ),
    "an unknown method": Bad(
        {"migration": {"method": "copy"}},
        'spec.migration.method: Unsupported value: "copy": supported values: "pre_copy", "stop_and_copy", "recompute"',
    ),
    "an unknown fallback": Bad(
        {"migration": {"fallback": "retry"}},
        'spec.migration.fallback: Unsupported value: "retry": supported values: "abort", "recompute"',
    ),
    "a node with capitals": Bad(
        _stage(node="Edge_1"),
        "spec.stages[0].node: Invalid value: \"Edge_1\": 'Edge_1' is no node's name: use at most 64 lower-case "
        "letters, digits, '-' and '.', such as edge-1",
    ),
    "the head's own node": Bad(_stage(node="local"), "'local' means the head's own node: leave node out for it"),
    "no labels": Bad(_stage(nodeSelector={}), "spec.stages[0].nodeSelector in body should have at least 1 properties"),
    "a label's key": Bad(
        _stage(nodeSelector={"my tier": "edge"}), "every key must be that of a label, such as midstream.dev/tier"
    ),
    "a label's value": Bad(
        _stage(nodeSelector={"tier": "at the edge"}), "spec.stages[0].nodeSelector.tier in body should match"
    ),
    "a quantity": Bad(
        _stage(resources={"limits": {"memory": "lots"}}), "spec.stages[0].resources.limits.memory in body should match"
    ),
    "half a GPU": Bad(
        _stage(resources={"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 2}}),
        "GPUs cannot be overcommitted: give nvidia.com/gpu in limits only, or the same number in both",
        only_here=True,
    ),
    "a folder as id": Bad(
        {"model": {"id": "./models/b"}},
        "spec.model.id: Invalid value: \"./models/b\": './models/b' is no Hugging Face id such as "
        "HuggingFaceTB/SmolLM2-135M-Instruct; give a folder as model.path",
    ),
    "a relative folder": Bad(
        {"model": {"path": "models/b"}}, "spec.model.path: Invalid value: \"models/b\": 'models/b' is a relative path"
    ),
    "a flag as revision": Bad(
        {"model": {"id": "a/b", "revision": "--main"}}, "'--main' is no branch, tag or commit, such as main"
    ),
    "a guard without a scheme": Bad({"privacy": {"guard": "guard:7180"}}, "spec.privacy.guard in body should match"),
    "a guard with a password": Bad(
        {"privacy": {"guard": "http://u:p@guard"}}, "spec.privacy.guard in body should match"
    ),
    # Flags of the engine.
    "a field as flag": Bad(
        _engine("--max-num-seqs=8", "--layers=15,15"),
        "spec.engineArgs[1]: Forbidden: '--layers' has a field of its own in spec: use that, and remove the flag",
    ),
    "a flag's beginning": Bad(
        _engine("--pipeline_par=2"), "Forbidden: '--pipeline_par' is decided by Midstream: remove it"
    ),
    "a short flag": Bad(_engine("-tp=2"), "Forbidden: '-tp' is decided by Midstream: remove it"),
    "foreign code": Bad(_engine("--trust-remote-code"), "'--trust-remote-code' is decided by Midstream"),
    "a secret": Bad(
        _engine("--api-key=x"), "'--api-key' would show a secret to everybody who reads this object: use a Secret"
    ),
    "a value first": Bad(_engine("8"), "'8' is no flag of vLLM: write, for example, --max-num-seqs=8"),
    "a field and its flag": Bad(
        {"model": {"maxLength": 2048}, **_engine("--max-model-len=1024")},
        "spec.engineArgs: Forbidden: model.maxLength and the flag --max-model-len say the same: keep one of them",
    ),
    "another field and its flag": Bad(
        {"capacity": {"maxRequests": 8}, **_engine("--max_num_seqs", "8")},
        "capacity.maxRequests and the flag --max-num-seqs say the same: keep one of them",
    ),
    # The object's own name.
    "a long name": Bad(
        {},
        "use at most 40 lower-case letters, digits and hyphens, with a letter first",
        name="a" * 41,
    ),
    "a name that is no Service's": Bad({}, "metadata.name '7b' names Services too", name="7b"),
}


def _pipeline(bad: Bad) -> dict[str, Any]:
    return {
        "apiVersion": "midstream.dev/v1alpha1",
        "kind": "LLMPipeline",
        "metadata": {"name": bad.name},
        "spec": bad.spec,
    }


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_the_cluster_refuses_it_and_says_why(api_server: ApiServer, bad: Bad) -> None:
    answer = api_server.create(_pipeline(bad))
    assert answer.is_client_error, answer.text
    assert bad.message in answer.json()["message"]
    assert api_server.apply(_pipeline(bad)).is_error
    assert api_server.get(_pipeline(bad)).status_code == 404


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_the_local_platform_agrees(bad: Bad) -> None:
    if bad.only_here:
        LLMPipeline.parse(_pipeline(bad))
    else:
        with pytest.raises(InvalidPipeline):
            LLMPipeline.parse(_pipeline(bad))


GOOD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "an empty auto split": {"auto": {"stages": 1}},
    "64 stages": {"model": {"layers": 64}, "stages": [{"layers": 1}] * 64},
    "huge stages": {"stages": [{"layers": 2**31 - 1}] * 64},
    "a dotted node": _stage(node="edge-1.site.example"),
    "numbers as quantities": _stage(resources={"limits": {"nvidia.com/gpu": 1, "memory": "1.5Gi", "cpu": "500m"}}),
    "a folder": {"model": {"path": "/models/x", "dtype": "auto"}},
    "flags with values beside them": _engine("--max-num-seqs", "8", "--kv-cache-dtype=auto", "--max_model_len=64"),
    "many flags": _engine(*["--hf-overrides=" + "x" * 500] * 256),
    "a guard": {"privacy": {"guard": "https://guard.midstream.svc:7180/intents"}},
    "fractions": {"scaling": {"sleepAfterSeconds": 0.5, "holdSeconds": 1.5, "spareStages": 0}},
}


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD.keys())
def test_what_the_local_platform_takes_a_cluster_takes(api_server: ApiServer, spec: dict[str, Any]) -> None:
    pipeline = _pipeline(Bad(spec, "", name="good"))
    LLMPipeline.parse(pipeline)
    answer = api_server.apply(pipeline)
    assert answer.is_success, answer.text
    api_server.delete(pipeline)
