"""Kubernetes' rules for NetworkPolicies, and what counts as allowed where they leave something open."""

from __future__ import annotations

from typing import Any

import pytest

from intents.proof.network_policy import Pod, allows

CHAT = Pod("default", {"app": "chat"})
STORE = Pod("default", {"app": "store"})
FAR = Pod("other", {"app": "store"})


def policy(app: str = "store", namespace: str = "default", **spec: Any) -> dict[str, Any]:
    selector = {"matchLabels": {"app": app}}
    metadata = {"name": "p", "namespace": namespace}
    return {"kind": "NetworkPolicy", "metadata": metadata, "spec": {"podSelector": selector, **spec}}


def ingress(*peers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return policy(ingress=[{"from": list(peers), **more}])


def test_without_a_policy_everything_is_open():
    assert allows([], CHAT, STORE)
    assert allows([{"kind": "Deployment"}], CHAT, STORE)


def test_a_pod_that_is_selected_is_closed_but_for_what_is_allowed():
    assert not allows([policy(policyTypes=["Ingress"])], CHAT, STORE)
    assert allows([ingress({"podSelector": {"matchLabels": {"app": "chat"}}})], CHAT, STORE)
    assert not allows([ingress({"podSelector": {"matchLabels": {"app": "web"}}})], CHAT, STORE)


def test_a_policy_of_another_namespace_or_pod_closes_nothing():
    assert allows([policy(namespace="other", policyTypes=["Ingress"])], CHAT, STORE)
    assert allows([policy("web", policyTypes=["Ingress"])], CHAT, STORE)


def test_both_the_senders_egress_and_the_receivers_ingress_are_needed():
    assert not allows([policy("chat", policyTypes=["Egress"])], CHAT, STORE)
    assert allows([policy("chat", policyTypes=["Egress"])], STORE, CHAT)
    assert allows([policy("chat", policyTypes=["Ingress"])], CHAT, STORE)


def test_types_that_are_not_given_follow_from_the_rules():
    assert not allows([policy()], CHAT, STORE)
    only_dns = policy("chat", egress=[{"to": [{"podSelector": {"matchLabels": {"app": "dns"}}}]}])
    assert not allows([only_dns], CHAT, STORE)


def test_several_policies_add_up():
    allowing = ingress({"podSelector": {}})
    assert allows([policy(policyTypes=["Ingress"]), allowing], CHAT, STORE)


def test_a_rule_without_peers_allows_everybody():
    assert allows([policy(ingress=[{}])], CHAT, STORE)


def test_peers_without_a_namespace_selector_are_of_the_policys_namespace():
    assert not allows([policy(ingress=[{"from": [{"podSelector": {}}]}])], FAR, STORE)
    name = {"matchLabels": {"kubernetes.io/metadata.name": "other"}}
    assert allows([ingress({"namespaceSelector": name})], FAR, STORE)
    assert not allows([ingress({"namespaceSelector": name})], CHAT, STORE)


@pytest.mark.parametrize(
    "peer",
    [
        {"ipBlock": {"cidr": "192.0.2.0/24"}},
        {"namespaceSelector": {"matchLabels": {"team": "a"}}},
        {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]}},
    ],
)
def test_what_is_not_known_counts_as_allowed(peer: dict[str, Any]):
    assert allows([ingress(peer)], CHAT, STORE)


def test_a_rule_for_some_ports_counts_as_allowing():
    assert allows([ingress({"podSelector": {}}, ports=[{"port": 80}])], CHAT, STORE)


@pytest.mark.parametrize(
    ("operator", "values", "open_"),
    [
        ("In", ["chat", "web"], True),
        ("In", ["web"], False),
        ("NotIn", ["chat"], False),
        ("NotIn", ["web"], True),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ],
)
def test_expressions(operator: str, values: list[str], open_: bool):
    expression = {"key": "app", "operator": operator, "values": values}
    assert allows([ingress({"podSelector": {"matchExpressions": [expression]}})], CHAT, STORE) is open_


def test_an_operator_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="'Like'; there are In, NotIn"):
        allows([ingress({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}})], CHAT, STORE)
