"""An inventory from nodes and pods."""

from __future__ import annotations

from typing import Any

import pytest

from intents.enforcement.kubernetes_inventory import state_of
from intents.errors import EnforcementError
from intents.model.intent import PlacementRule
from intents.model.inventory import Inventory, Workload
from intents.model.labels import DATA, JURISDICTION, PIPELINE
from intents.model.predicate import named, term
from intents.proof.checker import Observed, check
from tests.unit.intents.compilation.worlds import intent
from tests.unit.intents.proof.networks import DIAMOND


def node(name: str, ip: str | None = None, **labels: str) -> dict[str, Any]:
    addresses = [] if ip is None else [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]
    return {"metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses}}


def pod(name: str, on: str | None, phase: str = "Running", namespace: str = "default", **more: Any) -> dict[str, Any]:
    labels = more.get("labels", {})
    status = {"phase": phase, **({"podIP": more["ip"]} if "ip" in more else {})}
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {} if on is None else {"nodeName": on},
        "status": status,
    }


CHAT = {"midstream.dev/workload": "chat", DATA: "health"}
NODES = [node("n1", "192.0.2.1", **{JURISDICTION: "DE"}), node("n2")]


def test_nodes_have_their_labels_and_hang_where_they_hung():
    inventory = state_of(NODES, [], DIAMOND, "7.8").inventory
    assert inventory.version == "7.8"
    assert (inventory.node["n1"].labels, inventory.node["n1"].ip) == ({JURISDICTION: "DE"}, "192.0.2.1")
    assert (inventory.node["n1"].switch, inventory.node["n2"].switch) == ("s1", "s4")
    assert inventory.links == DIAMOND.links


def test_pods_of_one_label_are_one_workload():
    state = state_of(NODES, [pod("chat-1", "n1", labels=CHAT), pod("chat-2", "n2", labels=CHAT)], DIAMOND, "1")
    chat = state.inventory.workload["chat"]
    assert (chat.replicas, chat.node, chat.labels[DATA]) == (2, "n1", "health")
    assert state.placement == {"chat": ("n1", "n2")}
    assert state.pods == {"chat": (("default", "chat-1"), ("default", "chat-2"))}


def test_labels_that_differ_are_not_known():
    other = CHAT | {DATA: "public"}
    state = state_of(NODES, [pod("chat-1", "n1", labels=CHAT), pod("chat-2", "n1", labels=other)], DIAMOND, "1")
    assert DATA not in state.inventory.workload["chat"].labels


def test_names_fall_back_to_the_usual_label_and_the_pod():
    pods = [pod("web-1", "n1", labels={"app.kubernetes.io/name": "web"}), pod("alone", None)]
    state = state_of(NODES, pods, DIAMOND, "1")
    assert state.placement == {"web": ("n1",), "alone": ()}


def test_pods_that_have_ended_do_not_count_those_that_are_leaving_do():
    leaving = pod("chat-2", "n2", labels=CHAT)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    state = state_of(NODES, [pod("chat-1", "n1", "Succeeded", labels=CHAT), leaving], DIAMOND, "1")
    assert state.placement == {"chat": ("n2",)}


def test_a_single_pod_has_its_own_address():
    state = state_of(NODES, [pod("chat-1", "n1", ip="10.244.0.7", labels=CHAT)], DIAMOND, "1")
    assert state.inventory.workload["chat"].ip == "10.244.0.7"


def test_a_pod_on_a_node_that_is_gone_is_still_seen_there():
    state = state_of(NODES, [pod("chat-1", "n9", labels=CHAT)], DIAMOND, "1")
    assert state.placement == {"chat": ("n9",)}
    assert state.inventory.workload["chat"].node is None


HELM = {"app.kubernetes.io/name": "redis"}


def knowing(name: str, namespace: str) -> Inventory:
    workload = Workload(name=name, namespace=namespace)
    return Inventory.model_validate(DIAMOND.model_dump() | {"workloads": [workload.model_dump()]})


def test_a_name_that_two_namespaces_have_and_the_inventory_has_not_is_told_apart():
    pods = [
        pod("a", "n1", namespace="cache", labels=HELM | {DATA: "health"}),
        pod("b", "n2", namespace="shop", labels=HELM),
        pod("c", "n2", namespace="shop", labels=HELM),
    ]
    state = state_of(NODES, pods, DIAMOND, "1")
    assert state.placement == {"cache/redis": ("n1",), "shop/redis": ("n2",)}
    assert state.pods["shop/redis"] == (("shop", "b"), ("shop", "c"))
    assert state.inventory.workload["cache/redis"].labels[DATA] == "health"
    assert state.inventory.workload["cache/redis"].namespace == "cache"


def test_an_intent_about_a_name_that_cannot_be_told_does_not_hold():
    pods = [pod("a", "n1", namespace="cache", labels=HELM), pod("b", "n1", namespace="shop", labels=HELM)]
    germany = PlacementRule(nodes=term(JURISDICTION, "DE"))

    def holds(*found: dict[str, Any]) -> bool:
        state = state_of(NODES, found, DIAMOND, "1")
        observed = Observed(state.placement, (), state.inventory, "1")
        return check([intent("x", subjects=named("redis"), placement=(germany,))], observed).holds

    assert holds(pods[0])
    assert not holds(*pods)


def test_a_workload_of_the_inventory_is_read_from_its_namespace():
    pods = [pod("a", "n1", namespace="cache", labels=HELM), pod("b", "n2", namespace="shop", labels=HELM)]
    state = state_of(NODES, pods, knowing("redis", "shop"), "1")
    assert state.placement == {"cache/redis": ("n1",), "redis": ("n2",)}
    elsewhere = state_of(NODES, pods[:1], knowing("redis", "shop"), "1")
    assert elsewhere.placement == {"cache/redis": ("n1",)}


def test_a_pod_that_says_to_be_a_workload_of_another_namespace_is_an_error():
    pods = [pod("chat-1", "n1", labels=CHAT), pod("chat-2", "n1", namespace="other", labels=CHAT)]
    with pytest.raises(EnforcementError, match=r"pod other/chat-2 says .* inventory has in namespace default"):
        state_of(NODES, pods, knowing("chat", "default"), "1")
    assert state_of(NODES, pods, knowing("redis", "shop"), "1").placement.keys() == {"default/chat", "other/chat"}


def test_pods_that_midstream_runs_are_no_stages_of_their_pipeline():
    of_a_pipeline = {PIPELINE: "smollm", "midstream.dev/role": "function"}
    pods = [pod("smollm-reconfigure-1", "n1", labels=of_a_pipeline), pod("mine", "n1", labels={PIPELINE: "smollm"})]
    workload = state_of(NODES, pods, DIAMOND, "1").inventory.workload
    assert PIPELINE not in workload["smollm-reconfigure-1"].labels
    assert workload["mine"].labels == {PIPELINE: "smollm"}


def test_what_cannot_be_a_node_is_an_error():
    with pytest.raises(EnforcementError, match="cannot be read: KeyError"):
        state_of([{"metadata": {}}], [], DIAMOND, "1")
