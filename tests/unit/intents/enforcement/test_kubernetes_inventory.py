"""An inventory from nodes and pods."""

from __future__ import annotations

from typing import Any

import pytest

from intents.enforcement.kubernetes_inventory import state_of
from intents.errors import EnforcementError
from intents.model.labels import DATA, JURISDICTION
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


def test_one_name_in_two_namespaces_is_an_error():
    pods = [pod("chat-1", "n1", labels=CHAT), pod("chat-1", "n1", namespace="other", labels=CHAT)]
    with pytest.raises(EnforcementError, match="namespaces default and other both have a workload chat"):
        state_of(NODES, pods, DIAMOND, "1")


def test_what_cannot_be_a_node_is_an_error():
    with pytest.raises(EnforcementError, match="cannot be read: KeyError"):
        state_of([{"metadata": {}}], [], DIAMOND, "1")
