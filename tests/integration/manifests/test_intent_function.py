"""The function of privacy intents as samples/intents deploys it works with what it is given, and is given no more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.functions.head import Head, free_port, until
from tests.integration.functions.process import make_event
from tests.integration.manifests.intent_cluster import (
    NAME,
    WORKLOADS,
    IntentCluster,
    container_of,
    mount,
    rights_for,
    rights_of,
    start,
)
from tests.support.api_proxy import standin_crds
from tests.support.api_server import ApiServerUnavailable, find_programs, running_api_server
from tests.unit.runtime.events.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from intents.model.inventory import Inventory
    from tests.integration.functions.process import FunctionProcess
    from tests.integration.manifests.conftest import Objects

PART = "samples/intents"
POLICIES = "networking.k8s.io/v1/networkpolicies"
ADMISSION = "admissionregistration.k8s.io/v1/validatingadmissionpolicies"
PIPELINE = {"midstream.dev/pipeline": "smollm"}
HEALTH = {"any_of": [{"all_of": [{"key": "midstream.dev/data", "values": ["health"]}]}]}
IN_GERMANY = {"any_of": [{"all_of": [{"key": "midstream.dev/jurisdiction", "values": ["DE"]}]}]}


@pytest.fixture
def objects(build: Callable[[str], Objects]) -> Objects:
    return build(PART)


@pytest.fixture
def mounted(objects: Objects, tmp_path: Path) -> dict[str, Path]:
    return mount(objects, tmp_path)


@pytest.fixture
def inventory(mounted: dict[str, Path]) -> Inventory:
    from intents.model.inventory import read_inventory

    return read_inventory(mounted["/inventory"] / "inventory.yaml")


@pytest.fixture(scope="module")
def intent_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IntentCluster]:
    pytest.importorskip("kubernetes", reason="Kubernetes' client is not here; pip install 'midstream[intents]'")
    from tests.integration.intents.test_cluster import KINDS

    try:
        programs = find_programs(os.environ)
    except ApiServerUnavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("intent-cluster")
    with running_api_server(programs, folder) as server:
        server.install([*standin_crds(), *KINDS])
        with IntentCluster(server, folder).running() as cluster:
            assert isinstance(cluster, IntentCluster)
            yield cluster


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


@pytest.fixture
def head(inventory: Inventory) -> Iterator[Head]:
    """A head whose two stages are on the first two nodes of the sample."""
    head = Head(free_port(), "2@edge-1,2@edge-2")
    head._pipeline.status = lambda: {
        "boot": head.coordinator.boot,
        "epoch": head.effects.epochs,
        "layers": head.layers,
        "stages": [{"index": index, "node": each.node} for index, each in enumerate(head.effects.serving.stages)],
        "spare_stages": dict.fromkeys(inventory.node, 1),
    }
    with head.running():
        yield head


@pytest.fixture
def function(
    objects: Objects,
    mounted: dict[str, Path],
    inventory: Inventory,
    intent_cluster: IntentCluster,
    head: Head,
    sink: Sink,
) -> Iterator[FunctionProcess]:
    for node in inventory.nodes:
        intent_cluster.has_node(node.name, node.labels)
    for name in WORKLOADS:
        workload = inventory.workload[name]
        intent_cluster.has_deployment(name, str(workload.node), workload.labels)
    function = start(
        objects,
        mounted,
        MIDSTREAM_ENDPOINT=f"http://127.0.0.1:{head.port}",
        MIDSTREAM_WATCH_SECONDS="0.1",
        K_SINK=sink.url,
        KUBECONFIG=str(intent_cluster.kubeconfig),
    )
    try:
        yield function.wait_alive().wait_ready()
    finally:
        function.close()


def _submitted(number: int, text: str, **data: Any) -> dict[str, Any]:
    return make_event("intent.submitted", {"intent": "records", "text": text} | data, f"event-{number}")


def test_it_does_all_that_it_does_with_these_rights_and_needs_every_one_of_them(
    objects: Objects,
    mounted: dict[str, Path],
    inventory: Inventory,
    intent_cluster: IntentCluster,
    function: FunctionProcess,
    sink: Sink,
) -> None:
    # Made, replaced, and taken back but for one Deployment's affinity.
    first = function.send(_submitted(1, "Health data must stay in the EU."))
    assert first.status_code == 200, first.text + function.log
    assert first.json()["data"]["placement"] == {"records": "edge-1"}
    assert intent_cluster.names(ADMISSION) == {"midstream-records"}
    assert intent_cluster.names(POLICIES) == {"midstream-records"}
    second = function.send(_submitted(2, "records must be isolated from website."))
    assert second.status_code == 200, second.text + function.log
    assert intent_cluster.names(ADMISSION) == set()
    only_placed = [{"subjects": HEALTH, "placement": [{"nodes": IN_GERMANY}]}]
    third = function.send(_submitted(3, "Health data must run in Germany.", specs=only_placed))
    assert third.status_code == 200, third.text + function.log
    assert intent_cluster.names(POLICIES) == set()

    # Watched: a pod where it must not be is told of, after everything was tried that is in the function's power.
    intent_cluster.has_deployment("records", "cloud-1", inventory.workload["records"].labels)
    sink.wait_for(1)
    assert (str(sink.taken[0].type), sink.taken[0].data["intent"]) == ("dev.midstream.intent.violated", "records")
    assert "cloud-1" in sink.taken[0].data["reason"]
    seen = intent_cluster.looks
    until(lambda: intent_cluster.looks > seen + 1, "it has looked again, and once more")

    assert intent_cluster.used == rights_of(NAME, objects)


def test_an_intent_about_the_pipeline_is_kept_by_moving_its_layers(
    objects: Objects, intent_cluster: IntentCluster, head: Head, function: FunctionProcess, sink: Sink
) -> None:
    _, container = container_of(objects)
    assert {"name": "MIDSTREAM_KUBERNETES", "value": "true"} in container["env"]
    made_by_others = {kind: intent_cluster.names(kind) for kind in (ADMISSION, POLICIES)}
    # The functions' pods have the pipeline's label too, but none of its layers: no matter where they are.
    intent_cluster.has_pod("smollm-reconfigure-1", "cloud-1", PIPELINE | {"midstream.dev/role": "function"})

    decided = function.send(_submitted(1, "smollm must stay in Germany.", intent="smollm-at-home"))
    assert decided.status_code == 200, decided.text + function.log
    assert decided.json()["data"]["placement"] == {"smollm-stage-0": "edge-1", "smollm-stage-1": "edge-1"}
    until(lambda: head.layers == "4@edge-1", "the layers have left France")
    sink.wait_for(2)
    told = {str(each.type).removeprefix("dev.midstream."): each.data for each in sink.taken}
    assert told["intent.violated"]["objects"] == ["smollm-stage-1 on edge-2"]
    assert told["reconfiguration.requested"]["layers"] == "4@edge-1"
    assert {kind: intent_cluster.names(kind) for kind in made_by_others} == made_by_others

    until(lambda: ", over after " in function.log, "it has looked whether that was enough")
    assert "closed: found after" not in function.log


def test_it_writes_to_the_volume_and_nowhere_else(
    objects: Objects, mounted: dict[str, Path], tmp_path: Path, function: FunctionProcess
) -> None:
    before = {path: path.read_bytes() for path in mounted["/inventory"].iterdir()}
    assert function.send(_submitted(1, "Health data must stay in the EU.")).status_code == 200
    _, container = container_of(objects)
    (state,) = (each["value"] for each in container["env"] if each["name"] == "MIDSTREAM_INTENT_STATE")
    assert {path.name for path in (mounted["/state"] / state.removeprefix("/state/")).glob("*.yaml")} == {
        "records.yaml"
    }
    assert {path: path.read_bytes() for path in mounted["/inventory"].iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"function.log", *(each.name for each in mounted.values())}


def test_what_it_may_not_is_seen() -> None:
    eviction = rights_for("POST", "/api/v1/namespaces/midstream/pods/records-1/eviction")
    assert eviction == {("create", "", "pods/eviction", "midstream")}
    assert rights_for("PATCH", "/api/v1/nodes/edge-1") == {("patch", "", "nodes", None)}
    applied = rights_for("PATCH", "/apis/apps/v1/namespaces/midstream/deployments/records", created=True)
    assert {each.verb for each in applied} == {"patch", "create"}


def test_the_volume_is_the_functions_own_and_stays_on_its_node(objects: Objects) -> None:
    pod, container = container_of(objects)
    assert pod["securityContext"]["fsGroup"] == container["securityContext"]["runAsUser"]
    ((rule,),) = pod["affinity"]["podAffinity"].values()
    (service,) = (obj for obj in objects if obj["metadata"]["name"] == NAME and "template" in obj.get("spec", {}))
    template = service["spec"]["template"]["metadata"]
    assert rule["labelSelector"]["matchLabels"].items() <= template["labels"].items()
    scale = {"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1"}
    assert scale.items() <= template["annotations"].items()


def test_knative_allows_what_the_function_asks_for(build: Callable[[str], Objects], objects: Objects) -> None:
    (features,) = build("knative/config-features.yaml")
    pod, _ = container_of(objects)
    needed = {
        "affinity": {"kubernetes.podspec-affinity"},
        "securityContext": {"kubernetes.podspec-securitycontext"},
        "volumes": {
            "kubernetes.podspec-persistent-volume-claim",
            "kubernetes.podspec-persistent-volume-write",
        },
    }
    plain = {"serviceAccountName", "enableServiceLinks", "timeoutSeconds", "containerConcurrency", "containers"}
    assert pod.keys() == needed.keys() | plain
    for flag in set().union(*needed.values()):
        assert features["data"][flag] == "enabled", flag


def test_the_inventory_and_the_state_are_where_the_function_looks(
    objects: Objects, mounted: dict[str, Path], inventory: Inventory
) -> None:
    _, container = container_of(objects)
    told = {each["name"]: each.get("value", "") for each in container["env"]}
    assert told["MIDSTREAM_INVENTORY"] == "/inventory/inventory.yaml"
    assert told["MIDSTREAM_INTENT_STATE"].startswith("/state/")
    assert told["MIDSTREAM_HERE"] in inventory.node
    assert inventory.workload[told["MIDSTREAM_PIPELINE"]].labels.items() >= PIPELINE.items()
    assert {workload.namespace for workload in inventory.workloads} == {"midstream"}
    assert {"/inventory", "/state", "/tmp"} == mounted.keys()  # noqa: S108 - in the container
