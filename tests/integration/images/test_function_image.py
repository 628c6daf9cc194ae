"""The function's image, built here and run as the manifests run it."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.integration.functions.head import Head, free_port, until
from tests.integration.images.containers import Containers, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    if reason := why_not(os.environ):
        pytest.skip(reason)
    made = Containers(tmp_path_factory.mktemp("images"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def image(containers: Containers) -> str:
    return containers.build("midstream-function")


def test_a_stage_function_takes_its_stage_and_gives_it_back(containers: Containers, image: str) -> None:
    head_port, port = free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    container = containers.run(
        image,
        {
            "LISTEN_ADDRESS": f"127.0.0.1:{port}",
            "MIDSTREAM_ENDPOINT": f"http://127.0.0.1:{head_port}",
            "MIDSTREAM_PIPELINE": "smollm",
            "MIDSTREAM_STAGE": "1",
        },
    )
    until(lambda: _status(f"{address}/health/liveness") == 200, "the function is alive")
    assert _status(f"{address}/health/readiness") == 500  # nobody has its stage to give

    with Head(head_port).running() as head:
        until(lambda: _status(f"{address}/health/readiness") == 200, "the function is ready")

        containers.podman("stop", "--time=20", container)

        assert head.asked == ["POST /stages/1/attach", "POST /stages/1/release"]
    assert containers.podman("inspect", "--format={{.State.ExitCode}}", container).strip() == "0"


def test_it_runs_without_rights_and_can_write_to_nothing_but_tmp(containers: Containers, image: str) -> None:
    container = containers.run(
        image,
        {
            "LISTEN_ADDRESS": f"127.0.0.1:{free_port()}",
            "MIDSTREAM_PIPELINE": "smollm",
            "MIDSTREAM_STAGE": "0",
        },
    )

    assert containers.inside(container, "id", "-u").strip() == "65532"
    status = containers.inside(container, "cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    # As the node runtime's init containers do.
    containers.inside(container, "sh", "-c", "cd /tmp && install --mode=0600 /etc/hostname copy && ln -s copy link")
    for place in ("/", "/opt/midstream", "/var/lib", "/run"):
        with pytest.raises(subprocess.CalledProcessError, match=r"exit status"):
            containers.inside(container, "touch", f"{place}/written")
    containers.podman("rm", "--force", "--time=0", container)


def test_it_has_no_engine_no_pip_and_nothing_of_the_build(containers: Containers, image: str) -> None:
    packages = "import importlib.util as u; print([n for n in ('pip', 'torch', 'vllm') if u.find_spec(n)])"

    look = f'test ! -e /etc/pip.conf && python -c "{packages}" && ls /opt && ls -a /tmp && env'
    found = containers.podman("run", "--rm", "--network=none", image, "sh", "-c", look)

    assert found.startswith("[]\nmidstream\n.\n..\n")
    assert "PIP_" not in found


def _status(url: str) -> int | None:
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return None
