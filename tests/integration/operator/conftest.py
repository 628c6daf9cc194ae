"""A real API server (with stand-ins for Kubernetes' own kinds), a Broker, and operators as processes."""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.integration.operator.cluster import Broker, Namespace, OperatorProcess, until
from tests.support.api_proxy import ApiProxy, standin_crds
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
    from pathlib import Path

_CRDS = REPOSITORY / "manifests" / "base" / "crd"
_UPSTREAM = {"services.serving.knative.dev", "triggers.eventing.knative.dev", "brokers.eventing.knative.dev"}
_numbers = count(1)


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProxy]:
    try:
        programs = find_programs(os.environ)
        upstream = [crd for crd in upstream_crds(os.environ) if crd["metadata"]["name"] in _UPSTREAM]
    except ApiServerUnavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("api-server")
    with running_api_server(programs, folder) as server:
        server.install(crd for file in sorted(_CRDS.glob("*.yaml")) for crd in load_objects(file))
        server.install([*upstream, *standin_crds()])
        with ApiProxy(server, folder).running() as proxy:
            yield proxy


@pytest.fixture
def namespace(proxy: ApiProxy) -> Namespace:
    return Namespace(proxy, f"space-{next(_numbers)}")


@pytest.fixture
def broker(namespace: Namespace) -> Iterator[Broker]:
    broker = Broker()
    with broker.running() as url:
        namespace.add_broker(url)
        yield broker


@pytest.fixture
def start_operator(namespace: Namespace, tmp_path: Path) -> Iterator[Callable[..., OperatorProcess]]:
    """Start a replica, and wait until it answers probes."""
    started: list[OperatorProcess] = []

    def start(name: str = "operator") -> OperatorProcess:
        started.append(OperatorProcess(namespace, tmp_path / f"{name}-{len(started)}.log", name))
        until(started[-1].alive, "the operator answers probes", lambda: started[-1].said)
        return started[-1]

    yield start
    for operator in started:
        operator.stop()
