"""A 6-switch network of real packets, for the whole test run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.intents.topology import INVENTORY
from tests.support.mininet_network import MininetNetwork, NetworkUnavailable, require, running_network

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def running() -> Iterator[MininetNetwork]:
    try:
        require()
    except NetworkUnavailable as error:
        pytest.skip(str(error))
    with running_network(INVENTORY) as network:
        yield network


@pytest.fixture
def network(running: MininetNetwork) -> MininetNetwork:
    """The network without rules, every link up, every workload where the inventory says."""
    running.store.delete()
    for index in range(len(INVENTORY.links)):
        running.link(index, up=True)
    for workload in INVENTORY.workloads:
        running.move(workload.name, str(workload.node))
    return running
