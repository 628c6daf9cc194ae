"""Compiled manifests on a real API server: applied, contended, taken back; nodes and pods read into an inventory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes import client, config

from intents.compilation import Compiled, compile_intents
from intents.enforcement.kubernetes import FIELD_MANAGER, Cluster
from intents.enforcement.kubernetes_inventory import read_cluster
from intents.errors import EnforcementError
from intents.model.intent import IntentMetadata, IntentSpec, IsolationRule, PlacementRule, PrivacyIntent
from intents.model.labels import JURISDICTION
from intents.model.predicate import named, term
from intents.proof.checker import Observed, check
from tests.integration.intents.topology import INVENTORY
from tests.support.api_proxy import ApiProxy, standin_crds
from tests.support.api_server import ApiServerUnavailable, find_programs, running_api_server

if TYPE_CHECKING:
    from collections.abc import Iterator

INTENT = PrivacyIntent(
    metadata=IntentMetadata(name="apart"),
    specs=(
        IntentSpec(
            subjects=named("chat"),
            placement=(PlacementRule(nodes=term(JURISDICTION, "DE")),),
            isolation=(IsolationRule(peers=named("logs")),),
        ),
    ),
)


def standin(group: str, kind: str, plural: str, scope: str) -> dict[str, Any]:
    """A kind of Kubernetes as a custom resource that takes any field."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"},
        },
        "spec": {"group": group, "scope": scope, "names": names, "versions": [version]},
    }


KINDS = [
    standin("networking.k8s.io", "NetworkPolicy", "networkpolicies", "Namespaced"),
    standin("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", "Cluster"),
    standin(
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "Cluster",
    ),
    standin("apps.standin.example", "Deployment", "deployments", "Namespaced"),
]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProxy]:
    try:
        programs = find_programs(os.environ)
    except ApiServerUnavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("api-server")
    with running_api_server(programs, folder) as server:
        server.install([*standin_crds(), *KINDS])
        with ApiProxy(server, folder).running() as proxy:
            yield proxy


@pytest.fixture
def cluster(proxy: ApiProxy) -> Iterator[Cluster]:
    with config.new_client_from_config(str(proxy.kubeconfig)) as api:
        assert isinstance(api, client.ApiClient)
        yield Cluster(api)


def manifests() -> list[dict[str, Any]]:
    compiled = compile_intents(INVENTORY, [INTENT])
    assert isinstance(compiled, Compiled)
    return list(compiled.kubernetes)


def deploy(proxy: ApiProxy, name: str) -> None:
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": 3}}
    answer = proxy.http.patch(
        f"/apis/apps/v1/namespaces/default/deployments/{name}",
        params={"fieldManager": "somebody"},
        json=body,
        headers={"Content-Type": "application/apply-patch+yaml"},
    )
    assert answer.is_success, answer.text


def of_kind(kind: str) -> dict[str, Any]:
    return next(each for each in manifests() if each["kind"] == kind)


class TestManifests:
    def test_a_deployment_that_is_not_there_is_an_error_and_nothing_is_applied(self, cluster: Cluster):
        with pytest.raises(EnforcementError, match="no Deployment default/chat"):
            cluster.apply(manifests())
        assert cluster.installed() == []

    def test_they_are_applied_twice_without_a_change_and_taken_back(self, proxy: ApiProxy, cluster: Cluster):
        deploy(proxy, "chat")
        deploy(proxy, "logs")
        cluster.apply(manifests())
        first = cluster.installed()
        cluster.apply(manifests())
        assert cluster.installed() == first
        assert [each["metadata"]["name"] for each in first] == [of_kind("NetworkPolicy")["metadata"]["name"]]
        deployment = proxy.http.get("/apis/apps/v1/namespaces/default/deployments/chat").json()
        assert deployment["spec"]["replicas"] == 3
        assert "affinity" in deployment["spec"]["template"]["spec"]

        cluster.delete(manifests())
        assert cluster.installed() == []
        deployment = proxy.http.get("/apis/apps/v1/namespaces/default/deployments/chat").json()
        assert deployment["spec"] == {"replicas": 3}

    def test_policies_that_are_in_force_keep_two_on_one_node_apart(self, proxy: ApiProxy, cluster: Cluster):
        deploy(proxy, "chat")
        deploy(proxy, "logs")
        together = {"chat": ("n1",), "logs": ("n1",)}
        without = Observed(together, (), INVENTORY, "1", cluster.installed())
        assert "no NetworkPolicy keeps them apart" in check([INTENT], without).failures[0].reason
        cluster.apply(manifests())
        assert check([INTENT], Observed(together, (), INVENTORY, "1", cluster.installed())).holds
        cluster.delete(manifests())

    def test_what_somebody_else_has_is_not_taken(self, proxy: ApiProxy, cluster: Cluster):
        policy = of_kind("NetworkPolicy")
        name = policy["metadata"]["name"]
        theirs = {**policy, "spec": {**policy["spec"], "policyTypes": []}}
        proxy.http.patch(
            f"/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/{name}",
            params={"fieldManager": "somebody"},
            json=theirs,
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        with pytest.raises(EnforcementError, match=r'somebody else has it.*"somebody"'):
            cluster.apply([policy])
        cluster.delete([policy])

    def test_other_kinds_are_refused(self, cluster: Cluster):
        with pytest.raises(EnforcementError, match="ClusterRole of rbac"):
            cluster.apply([{"apiVersion": "rbac", "kind": "ClusterRole", "metadata": {"name": "x"}}])

    def test_fields_are_owned_by_one_manager(self, proxy: ApiProxy, cluster: Cluster):
        policy = of_kind("NetworkPolicy")
        cluster.apply([policy])
        managers = {each["manager"] for each in cluster.installed()[0]["metadata"]["managedFields"]}
        assert managers == {FIELD_MANAGER}
        cluster.delete([policy])


def test_nodes_and_pods_are_read(proxy: ApiProxy, cluster: Cluster):
    created = [
        ("/api/v1/nodes", {"kind": "Node", "metadata": {"name": "n1", "labels": {JURISDICTION: "DE"}}}),
        (
            "/api/v1/namespaces/default/pods",
            {
                "kind": "Pod",
                "metadata": {"name": "chat-1", "labels": {"midstream.dev/workload": "chat"}},
                "spec": {"nodeName": "n1"},
                "status": {"phase": "Running"},
            },
        ),
    ]
    for path, body in created:
        assert proxy.http.post(path, json={"apiVersion": "v1", **body}).is_success
    state = read_cluster(cluster, INVENTORY)
    assert state.placement == {"chat": ("n1",)}
    assert state.inventory.node["n1"].labels == {JURISDICTION: "DE"}
    assert state.inventory.version.count(".") == 1

    cluster.cordon("n1")
    assert proxy.http.get("/api/v1/nodes/n1").json()["spec"] == {"unschedulable": True}
    cluster.evict("default", "gone")  # a pod that is not there has left


def test_an_api_server_that_is_away_is_an_error(proxy: ApiProxy, cluster: Cluster):
    proxy.broken = True
    try:
        with pytest.raises(EnforcementError):
            read_cluster(cluster, INVENTORY)
    finally:
        proxy.broken = False
