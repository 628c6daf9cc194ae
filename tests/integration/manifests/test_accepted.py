"""Every object under manifests/ is one that a cluster takes, and taking it twice changes nothing.

Kinds of Knative, KServe and Midstream go to a real API server; Kubernetes' own kinds, which that server does not have,
are checked against Kubernetes' published schemas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.manifests.conftest import KUSTOMIZATIONS, MANIFESTS, PARTS, Objects

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.api_server import ApiServer

KUBERNETES = ("1.31", "1.34")
OTHERS = {"ServiceMonitor"}
"""Kinds whose schemas are in neither place."""

CUSTOM = ("midstream.dev", "kopf.dev", "knative.dev", "kserve.io", "apiextensions.k8s.io", "monitoring.coreos.com")


def _is_custom(obj: dict[str, object]) -> bool:
    return str(obj["apiVersion"]).partition("/")[0].endswith(CUSTOM)


@pytest.mark.parametrize("part", PARTS)
def test_the_api_server_takes_it_and_takes_it_twice(
    cluster: ApiServer, build: Callable[[str], Objects], part: str
) -> None:
    for obj in build(part):
        if not _is_custom(obj) or obj["kind"] in OTHERS:
            continue
        assert cluster.knows(obj), f"{obj['apiVersion']} {obj['kind']}"
        first = cluster.apply(obj)
        assert first.is_success, f"{obj['kind']} {obj['metadata']['name']}: {first.text}"
        second = cluster.apply(obj)
        assert second.is_success, second.text
        before, after = first.json()["metadata"], second.json()["metadata"]
        assert after["resourceVersion"] == before["resourceVersion"]
        assert after["generation"] == before["generation"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_own_kinds_follow_its_schemas(build: Callable[[str], Objects], part: str, version: str) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="Kubernetes' schemas are not here; pip install kubernetes-validate"
    )
    for obj in build(part):
        if not _is_custom(obj):
            kubernetes_validate.validate(obj, version, strict=True)


def test_every_file_belongs_to_a_part() -> None:
    files = {str(file.relative_to(MANIFESTS)) for file in MANIFESTS.rglob("*.yaml")}
    used = {part for part in PARTS if part in files}
    for kustomization in KUSTOMIZATIONS:
        text = (MANIFESTS / kustomization / "kustomization.yaml").read_text(encoding="utf-8")
        folder = f"{kustomization}/"
        used |= {file for file in files if file.startswith(folder) and f" {file.removeprefix(folder)}\n" in text}
        used.add(f"{kustomization}/kustomization.yaml")
    assert files - used == set()


def test_no_object_is_there_twice(build: Callable[[str], Objects]) -> None:
    for part in PARTS:
        names = [(obj["apiVersion"], obj["kind"], obj["metadata"]["name"]) for obj in build(part)]
        assert len(names) == len(set(names)), part


def test_the_catalogue_of_events_is_whole(build: Callable[[str], Objects]) -> None:
    from runtime.events.catalogue import Type

    told = {obj["spec"]["type"]: obj["spec"]["schema"] for obj in build("base") if obj["kind"] == "EventType"}
    assert told == {str(kind): kind.dataschema for kind in Type}
