"""What the overlays change, and that base and samples fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.manifests.conftest import Objects

WITH_FUNCTIONS = ("samples/by-hand", "samples/intents")


def _one(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = (obj for obj in objects if (obj["kind"], obj["metadata"]["name"]) == (kind, name))
    return found


def _images(objects: Objects) -> set[str]:
    pods = [obj["spec"]["template"]["spec"] for obj in objects if "template" in obj.get("spec", {})]
    return {c["image"] for pod in pods for c in [*pod.get("initContainers", []), *pod["containers"]]}


def test_everything_of_a_namespace_is_in_one(build: Callable[[str], Objects]) -> None:
    for part in ("base", "overlays/dev", "overlays/gpu", "samples/by-hand", "samples/intents", "monitoring"):
        assert {obj["metadata"].get("namespace", "midstream") for obj in build(part)} == {"midstream"}, part


def test_the_operator_has_two_replicas_of_which_one_stays(build: Callable[[str], Objects]) -> None:
    objects = build("base")
    assert _one(objects, "Deployment", "midstream-operator")["spec"]["replicas"] == 2
    assert _one(objects, "PodDisruptionBudget", "midstream-operator")["spec"]["minAvailable"] == 1


def test_dev_runs_an_image_made_on_the_machine_on_any_node(build: Callable[[str], Objects]) -> None:
    objects = build("overlays/dev")
    assert _images(objects) == {"localhost/midstream:dev"}
    assert _one(objects, "Deployment", "midstream-operator")["spec"]["replicas"] == 1
    assert not [
        o for o in objects if (o["kind"], o["metadata"]["name"]) == ("PodDisruptionBudget", "midstream-operator")
    ]
    assert "nodeSelector" not in _one(objects, "DaemonSet", "midstream-node")["spec"]["template"]["spec"]


def test_gpu_asks_for_one_where_there_are_some(build: Callable[[str], Objects]) -> None:
    pod = _one(build("overlays/gpu"), "DaemonSet", "midstream-node")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"midstream.dev/node": "true", "nvidia.com/gpu.present": "true"}
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]
    assert _images(build("overlays/gpu")) == {"registry.example.com/midstream/midstream-gpu:0.1.0"}


def test_a_node_may_use_less_memory_than_its_container_has(build: Callable[[str], Objects]) -> None:
    from pydantic import ByteSize, TypeAdapter

    size = TypeAdapter(ByteSize).validate_python
    for part in ("base", "overlays/dev", "overlays/gpu"):
        pod = _one(build(part), "DaemonSet", "midstream-node")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        options = dict(argument.split("=", 1) for argument in container["args"])
        limits = container["resources"]["limits"]
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume}
        assert size(options["--memory"]) < size(f"{limits['memory']}B")
        assert size(options["--models"]) < size(f"{volumes['models']['sizeLimit']}B")
        assert size(f"{volumes['models']['sizeLimit']}B") <= size(f"{limits['ephemeral-storage']}B")


@pytest.mark.parametrize("part", WITH_FUNCTIONS)
def test_triggers_lead_to_functions_of_the_same_pipeline(build: Callable[[str], Objects], part: str) -> None:
    objects = build(part)
    broker = _one(build("base"), "Broker", "midstream")["metadata"]["name"]
    triggers = [obj for obj in objects if obj["kind"] == "Trigger"]
    functions = [o["metadata"]["name"] for o in objects if o["apiVersion"] == "serving.knative.dev/v1"]
    assert sorted(trigger["spec"]["subscriber"]["ref"]["name"] for trigger in triggers) == sorted(functions)
    for trigger in triggers:
        assert trigger["spec"]["broker"] == broker
        assert {"exact": {"subject": trigger["metadata"]["labels"]["midstream.dev/pipeline"]}} in trigger["spec"][
            "filters"
        ]


@pytest.mark.parametrize("part", WITH_FUNCTIONS)
def test_the_local_broker_reads_the_same_triggers(build: Callable[[str], Objects], part: str) -> None:
    from controller.platform.broker.manifest import TriggerManifest

    for obj in build(part):
        if obj["kind"] == "Trigger":
            TriggerManifest.model_validate(obj)


def test_accounts_that_pods_name_are_there(build: Callable[[str], Objects]) -> None:
    for part in ("base", *WITH_FUNCTIONS):
        objects = [*build("base"), *build(part)]
        accounts = {obj["metadata"]["name"] for obj in objects if obj["kind"] == "ServiceAccount"}
        for obj in build(part):
            if "template" in obj.get("spec", {}):
                assert obj["spec"]["template"]["spec"]["serviceAccountName"] in accounts


def test_reading_by_kserve_goes_through_the_container_in_front(build: Callable[[str], Objects]) -> None:
    objects = build("samples/kserve.yaml")
    runtime = _one(objects, "ClusterServingRuntime", "midstream")
    head, front = runtime["spec"]["containers"]
    assert "--host=127.0.0.1" in head["args"]
    assert "ports" not in head
    assert [port["containerPort"] for port in front["ports"]] == [8080]
    assert _one(objects, "InferenceService", "smollm")["spec"]["predictor"]["model"]["runtime"] == "midstream"
