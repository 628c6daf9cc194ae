"""What a pipeline is made of: as the sample made by hand, and what must hold for every pipeline."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.platform.llm_pipeline import LLMPipeline
from controller.platform.operator.facts import PodFacts, Start
from controller.platform.operator.render import Rendering, head_arguments, render, start_of, start_spec

MANIFESTS = Path(__file__).parents[5] / "manifests"
SINK = "http://broker-ingress.knative-eventing.svc.cluster.local/midstream/midstream"
GPU = {"requests": {"cpu": "4"}, "limits": {"nvidia.com/gpu": "1"}}

Object = dict[str, Any]


def pipeline(**spec: Any) -> LLMPipeline:
    raw = {"apiVersion": "midstream.dev/v1alpha1", "kind": "LLMPipeline", "metadata": {"name": "llm"}, "spec": spec}
    return LLMPipeline.parse(raw)


def sample(name: str) -> LLMPipeline:
    return LLMPipeline.parse(yaml.safe_load((MANIFESTS / "samples" / name).read_text(encoding="utf-8")))


def start(wanted: LLMPipeline, **facts: Any) -> Start:
    known = {"layers": "15,15", "nodes": (), "image": "midstream", "sink": SINK, **facts}
    return Start(spec=start_spec(wanted), **known)


def rendered(wanted: LLMPipeline, functions: int = 2, **facts: Any) -> dict[tuple[str, str], Object]:
    objects = render(Rendering(wanted, "midstream", "u1", start(wanted, **facts), functions))
    found = {(obj["apiVersion"], f"{obj['kind']} {obj['metadata']['name']}"): obj for obj in objects}
    assert len(found) == len(objects)
    return found


def templates(objects: dict[tuple[str, str], Object]) -> dict[str, Object]:
    return {name: obj["spec"]["template"] for (_, name), obj in objects.items() if "template" in obj["spec"]}


def by_hand() -> dict[tuple[str, str], Object]:
    files = (MANIFESTS / "samples" / "by-hand").glob("*.yaml")
    objects = [obj for file in sorted(files) for obj in yaml.safe_load_all(file.read_text(encoding="utf-8"))]
    return {
        (obj["apiVersion"], f"{obj['kind']} {obj['metadata']['name']}"): obj
        for obj in objects
        if obj["kind"] != "Kustomization"
    }


def test_it_makes_the_objects_of_the_sample_by_hand() -> None:
    assert rendered(sample("cpu-two-stages.yaml")).keys() == by_hand().keys()


def test_they_are_as_in_the_sample_by_hand() -> None:
    made = rendered(sample("cpu-two-stages.yaml"))
    for key, hand in by_hand().items():
        ours, theirs = copy.deepcopy(made[key]["spec"]), copy.deepcopy(hand["spec"])
        for spec in (ours, theirs):
            spec.pop("podManagementPolicy", None)
            for port in spec.get("ports", []):
                port.pop("protocol", None)
        for pod in (ours.get("template", {}), theirs.get("template", {})):
            if key[1] == "StatefulSet smollm-head":
                pod["metadata"].pop("annotations", None)
                pod["spec"]["containers"][0]["args"].sort()
            for container in pod.get("spec", {}).get("containers", []):
                container["env"].sort(key=lambda variable: variable["name"])
        if key[1] == "StatefulSet smollm-head":
            # The operator says the precision that the object says.
            ours["template"]["spec"]["containers"][0]["args"].remove("--dtype=float32")
        assert ours == theirs, key
        assert hand["metadata"]["labels"].items() <= made[key]["metadata"]["labels"].items(), key


def test_everything_belongs_to_the_pipeline() -> None:
    for obj in rendered(pipeline(auto={"stages": 2})).values():
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("LLMPipeline", "llm", "u1", True)
        assert obj["metadata"]["labels"]["midstream.dev/pipeline"] == "llm"
        assert obj["metadata"]["namespace"] == "midstream"


@pytest.mark.parametrize(
    "live",
    [
        {"stages": [{"layers": 5}, {"layers": 25}]},
        {"stages": [{"layers": 5}, {"layers": 20, "node": "edge-1"}, {"layers": 5}]},
        {"auto": {"stages": 3}},
        {"migration": {"method": "recompute", "fallback": "recompute"}},
        {"model": {"maxLength": 512, "layers": 30}},
    ],
)
def test_what_changes_live_is_in_no_template(live: dict[str, Any]) -> None:
    before = pipeline(model={"maxLength": 512})
    after = pipeline(**{"model": {"maxLength": 512}, **live})
    assert start_spec(before) == start_spec(after)
    one, other = templates(rendered(before)), templates(rendered(after, functions=3))
    assert one == {name: other[name] for name in one}


def test_the_head_has_the_guards_token_from_a_secret_if_there_is_one() -> None:
    def variables(**spec: Any) -> dict[str, Any]:
        pod = rendered(pipeline(**spec))["apps/v1", "StatefulSet llm-head"]["spec"]["template"]["spec"]
        return {each["name"]: each for each in pod["containers"][0]["env"]}

    assert "MIDSTREAM_GUARD_TOKEN" not in variables()
    source = variables(privacy={"guard": "http://guard:7180"})["MIDSTREAM_GUARD_TOKEN"]["valueFrom"]
    assert source == {"secretKeyRef": {"name": "midstream-guard", "key": "token", "optional": True}}


def test_a_head_without_a_layout_divides_the_layers_itself() -> None:
    arguments = head_arguments(pipeline(), start(pipeline(), layers=None))
    assert [argument for argument in arguments if argument.startswith("--layers")] == []
    assert "--layers=15,15" in head_arguments(pipeline(), start(pipeline()))


@pytest.mark.parametrize(
    ("spec", "field", "argument"),
    [
        ({"model": {"id": "a/b"}}, "spec.model.id", "--model=a/b"),
        ({"model": {"path": "/models/x"}}, "spec.model.path", "--model=/models/x"),
        ({"model": {"maxLength": 9}}, "spec.model.maxLength", "--max-model-len=9"),
        ({"model": {"dtype": "auto"}}, "spec.model.dtype", "--dtype=auto"),
        ({"capacity": {"kvBlocks": 9}}, "spec.capacity.kvBlocks", "--num-gpu-blocks-override=9"),
        ({"capacity": {"maxRequests": 9}}, "spec.capacity.maxRequests", "--max-num-seqs=9"),
        ({"capacity": {"maxBatchTokens": 9}}, "spec.capacity.maxBatchTokens", "--max-num-batched-tokens=9"),
        ({"scaling": {"sleepAfterSeconds": 9}}, "spec.scaling.sleepAfterSeconds", "--sleep-after=9.0"),
        ({"scaling": {"holdRequests": 9}}, "spec.scaling.holdRequests", "--hold-requests=9"),
        ({"scaling": {"holdSeconds": 9}}, "spec.scaling.holdSeconds", "--hold-seconds=9.0"),
        ({"scaling": {"spareStages": 0}}, "spec.scaling.spareStages", "--spare-stages=0"),
        ({"privacy": {"guard": "http://guard:7180"}}, "spec.privacy.guard", "--guard=http://guard:7180"),
        ({"engineArgs": ["--seed=1"]}, "spec.engineArgs", "--seed=1"),
    ],
)
def test_what_a_start_changes_is_in_the_heads_template(spec: dict[str, Any], field: str, argument: str) -> None:
    wanted = pipeline(**spec)
    assert set(start_spec(wanted)) == {field}
    assert argument in head_arguments(wanted, start(wanted))
    before, after = rendered(pipeline()), rendered(wanted)
    key = ("apps/v1", "StatefulSet llm-head")
    assert start_of(before[key]) != start_of(after[key])


def test_a_pod_tells_of_which_start_it_is() -> None:
    head = rendered(pipeline())["apps/v1", "StatefulSet llm-head"]
    pod = {"metadata": {"name": "llm-head-0", **head["spec"]["template"]["metadata"]}}
    assert PodFacts.of(pod).start == start_of(head)


def test_a_stage_with_resources_has_a_pod_of_its_own() -> None:
    wanted = pipeline(
        stages=[{"layers": 15, "nodeSelector": {"gpu": "l4"}, "resources": GPU}, {"layers": 15}], model={"layers": 30}
    )
    objects = rendered(wanted, layers="15@llm-stage-0-0,15", nodes=("llm-stage-0-0",))
    stage = objects["apps/v1", "StatefulSet llm-stage-0"]["spec"]
    labels = stage["template"]["metadata"]["labels"]
    assert labels["midstream.dev/role"] == "stage"
    assert labels["midstream.dev/data-port"] == "true"
    assert stage["updateStrategy"] == {"type": "OnDelete"}
    pod = stage["template"]["spec"]
    assert pod["containers"][0]["resources"] == GPU
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = affinity["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "gpu", "operator": "In", "values": ["l4"]}]
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    head = objects["apps/v1", "StatefulSet llm-head"]["spec"]["template"]["spec"]
    assert "--node=llm-stage-0-0" in head["containers"][0]["args"]
    for name, own in (("llm-stage-0-0", pod), ("Head.llm", head)):
        mounts = own["initContainers"][0]["volumeMounts"]
        assert [mount.get("subPath") for mount in mounts] == [None, f"{name}.key.pem", f"{name}.cert.pem"]
    assert ("apps/v1", "StatefulSet llm-stage-1") not in objects


def test_no_head_and_no_functions_before_its_nodes_are_there() -> None:
    wanted = pipeline(stages=[{"layers": 30, "resources": GPU}])
    facts = start(wanted, nodes=("llm-stage-0-0",))
    objects = render(Rendering(wanted, "midstream", "u1", facts, 1, with_head=False))
    assert [f"{obj['kind']} {obj['metadata']['name']}" for obj in objects] == [
        "Service llm",
        "Service llm-head",
        "StatefulSet llm-stage-0",
    ]


def test_pods_can_do_no_more_than_they_have_to() -> None:
    wanted = pipeline(stages=[{"layers": 30, "resources": GPU}])
    for template in templates(rendered(wanted, nodes=("llm-stage-0-0",))).values():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            security = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert security["runAsNonRoot"] is True
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "token" not in " ".join(container.get("args", []) + container["command"])


@pytest.mark.parametrize("name", ["cpu-two-stages.yaml", "auto.yaml", "three-nodes.yaml", "gpu.yaml"])
@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_kubernetes_own_kinds_follow_its_schemas(name: str, version: str) -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="Kubernetes' schemas are not here; pip install kubernetes-validate"
    )
    wanted = sample(name)
    nodes = (f"{wanted.name}-stage-0-0", f"{wanted.name}-stage-1-0")
    for (api_version, _), obj in rendered(wanted, nodes=nodes).items():
        if "knative" not in api_version:
            validate.validate(obj, version, strict=True)
