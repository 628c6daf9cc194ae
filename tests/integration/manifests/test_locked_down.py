"""No pod may do more than it has to: what each runs as, what it may write, whom it may talk to, what it may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.manifests.conftest import PARTS, Objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WITH_PODS = {"Deployment", "DaemonSet", "StatefulSet", "Service", "ClusterServingRuntime"}


def _pods(objects: Objects) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Yield the name, the pod's spec and its labels."""
    for obj in objects:
        name = f"{obj['kind']} {obj['metadata']['name']}"
        if obj["kind"] == "ClusterServingRuntime":
            yield name, obj["spec"], {}
        elif obj["kind"] in _WITH_PODS and "template" in obj["spec"]:
            template = obj["spec"]["template"]
            yield name, template["spec"], template["metadata"]["labels"]


@pytest.fixture(scope="module")
def pods(build: Callable[[str], Objects]) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    found = [pod for part in PARTS for pod in _pods(build(part))]
    assert len(found) >= 8
    return found


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_containers_can_change_nothing_but_their_own_folders(pods: list[Any]) -> None:
    for name, pod, _ in pods:
        for container in _containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            both = {**pod.get("securityContext", {}), **context}
            assert both["runAsNonRoot"] is True, name
            assert both["seccompProfile"] == {"type": "RuntimeDefault"}, name


def test_no_pod_uses_the_host(pods: list[Any]) -> None:
    for name, pod, _ in pods:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        assert not any("hostPath" in volume for volume in pod.get("volumes", [])), name
        assert not any("hostPort" in port for container in _containers(pod) for port in container.get("ports", [])), (
            name
        )


def test_memory_and_folders_have_bounds(pods: list[Any]) -> None:
    for name, pod, _ in pods:
        for container in _containers(pod):
            assert "memory" in container["resources"]["limits"], name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        for volume in pod.get("volumes", []):
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], f"{name}: {volume['name']}"


def test_only_the_operator_and_the_function_of_intents_have_a_token_of_the_api_server(pods: list[Any]) -> None:
    """The operator makes what pipelines consist of; what intents come to are objects of the cluster too."""
    with_token = {name for name, pod, _ in pods if pod.get("automountServiceAccountToken", "serviceAccountName" in pod)}
    assert with_token == {"Deployment midstream-operator", "Service midstream-intent"}


def test_an_account_gives_its_token_only_where_the_pod_cannot_ask_for_it(build: Callable[[str], Objects]) -> None:
    accounts = [obj for part in PARTS for obj in build(part) if obj["kind"] == "ServiceAccount"]
    giving = {obj["metadata"]["name"] for obj in accounts if obj.get("automountServiceAccountToken", True)}
    assert giving == {"midstream-intent"}  # Knative takes no such field from a Service


def test_keys_and_tokens_are_not_in_commands_or_values(pods: list[Any]) -> None:
    for name, pod, _ in pods:
        for container in _containers(pod):
            for variable in container.get("env", []):
                if "TOKEN" in variable["name"] or "KEY" in variable["name"]:
                    assert "secretKeyRef" in variable["valueFrom"], name


def test_the_key_of_a_node_is_seen_by_its_own_pod_only_and_stays_in_memory(build: Callable[[str], Objects]) -> None:
    (pod,) = (pod for name, pod, _ in _pods(build("base")) if name == "DaemonSet midstream-node")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = [mount for container in _containers(pod) for mount in container["volumeMounts"]]
    secrets = [mount for mount in mounts if "secret" in volumes[mount["name"]]]
    assert {mount["subPathExpr"] for mount in secrets} == {"$(NODE_NAME).key.pem", "$(NODE_NAME).cert.pem"}
    (state,) = {mount["name"] for mount in mounts if mount["mountPath"] == "/var/lib/midstream"}
    assert volumes[state]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("part", ["base", "overlays/dev", "overlays/gpu", "samples/intents"])
def test_rights_are_named_one_by_one(build: Callable[[str], Objects], part: str) -> None:
    for obj in build(part):
        for rule in obj.get("rules", []) if obj["kind"] in {"Role", "ClusterRole"} else []:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], obj["metadata"]["name"]


def test_the_operator_cannot_list_secrets_and_reads_only_nodes_cluster_wide(build: Callable[[str], Objects]) -> None:
    objects = build("base")
    (role,) = (obj for obj in objects if obj["kind"] == "Role")
    for rule in role["rules"]:
        if "secrets" in rule["resources"]:
            assert not {"list", "watch", "update"} & set(rule["verbs"])
    bindings = [obj for obj in objects if obj["kind"] == "ClusterRoleBinding"]
    roles = {obj["metadata"]["name"]: obj for obj in objects if obj["kind"] == "ClusterRole"}
    assert [roles[binding["roleRef"]["name"]]["rules"] for binding in bindings] == [
        [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    ]


@pytest.mark.parametrize(("part", "account"), [("base", "midstream-operator"), ("samples/intents", "midstream-intent")])
def test_nobody_else_has_a_role(build: Callable[[str], Objects], part: str, account: str) -> None:
    bound = [
        (subject["kind"], subject["namespace"], subject["name"])
        for obj in build(part)
        if obj["kind"] in {"RoleBinding", "ClusterRoleBinding"}
        for subject in obj["subjects"]
    ]
    assert set(bound) == {("ServiceAccount", "midstream", account)}


def test_what_the_function_of_intents_may_change_of_a_namespace_it_may_where_it_is_bound(
    build: Callable[[str], Objects],
) -> None:
    objects = build("samples/intents")
    (everywhere,) = (obj["roleRef"]["name"] for obj in objects if obj["kind"] == "ClusterRoleBinding")
    (role,) = (obj for obj in objects if (obj["kind"], obj["metadata"]["name"]) == ("ClusterRole", everywhere))
    for rule in role["rules"]:
        assert rule["apiGroups"] == ["admissionregistration.k8s.io"] or rule["verbs"] == ["list"], rule
    assert not any("secrets" in rule["resources"] for obj in objects for rule in obj.get("rules", []))


def test_what_is_not_allowed_is_denied(build: Callable[[str], Objects]) -> None:
    objects = [*build("base"), *build("samples/intents")]
    policies = {obj["metadata"]["name"]: obj["spec"] for obj in objects if obj["kind"] == "NetworkPolicy"}
    deny = policies.pop("midstream-default-deny")
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        for rule in policy.get("ingress", []):
            assert rule["from"], name
        for rule in [*policy.get("ingress", []), *policy.get("egress", [])]:
            assert rule["ports"], name
            for peer in [*rule.get("from", []), *rule.get("to", [])]:
                assert all(peer.values()), f"{name}: {peer} is everybody"


def test_every_pod_is_meant_by_a_policy(build: Callable[[str], Objects], pods: list[Any]) -> None:
    objects = [*build("base"), *build("samples/intents")]
    policies = [obj["spec"] for obj in objects if obj["kind"] == "NetworkPolicy"]
    selectors = [policy["podSelector"]["matchLabels"] for policy in policies if policy["podSelector"]]
    for name, _, labels in pods:
        if not name.startswith("ClusterServingRuntime"):
            assert any(selector.items() <= labels.items() for selector in selectors), name
    for selector in selectors:
        assert any(selector.items() <= labels.items() for _, _, labels in pods), selector


def test_services_and_budgets_select_pods_that_there_are(build: Callable[[str], Objects]) -> None:
    for part in ("base", "overlays/gpu", "samples/by-hand"):
        objects = build(part)
        labels = [labels for _, _, labels in _pods(objects)]
        for obj in objects:
            if obj["apiVersion"] == "v1" and obj["kind"] == "Service":
                assert any(obj["spec"]["selector"].items() <= pod.items() for pod in labels), obj["metadata"]["name"]
