"""What the supervisor and `apply` rely on, as the real control calls of a head say it over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from controller.platform.local.head_status import HeadStatus, outcome
from controller.platform.local.link import HttpLink
from controller.platform.local.state import Applied, Proposed
from runtime.head.control_client import ControlClient, ControlError
from tests.integration.functions.head import Head, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

WAITS = Proposed("r", "/s#r", "1,3", Applied(5, {}))


@pytest.fixture
def head() -> Iterator[Head]:
    """A head whose pipeline tells of changes as the engine's does."""
    head = Head(free_port())
    coordinator = head.coordinator

    def status() -> dict[str, object]:
        current, last = coordinator.current, coordinator.last
        return {
            "boot": coordinator.boot,
            "layers": head.layers,
            "change": current.id if current else None,
            "last_change": last.report() if last else None,
        }

    head._pipeline.status = status
    with head.running():
        yield head


@pytest.fixture
def client(head: Head) -> Iterator[ControlClient]:
    with ControlClient(f"http://127.0.0.1:{head.port}") as client:
        yield client


@pytest.fixture
def link(head: Head) -> HttpLink:
    return HttpLink("http://127.0.0.1:9", f"http://127.0.0.1:{head.port}")


async def look(link: HttpLink) -> HeadStatus:
    status = await link.status()
    assert status is not None
    return status


async def test_a_request_is_open_until_its_change_has_ended(head: Head, client: ControlClient, link: HttpLink):
    before = await look(link)
    assert (before.wanted, before.generation, outcome(WAITS, before)) == ("2,2", 0, None)
    gate = head.effects.block("prepare")
    change = client.reconfigure("1,3", key="/s#r", generation=5)["id"]
    gate.wait_until_entered()
    under_way = await look(link)
    assert (under_way.change, under_way.generation, outcome(WAITS, under_way)) == (change, 5, None)
    gate.open()
    client.wait(change)
    after = await look(link)
    assert (after.boot, after.wanted, outcome(WAITS, after)) == (before.boot, "1,3", True)
    report = await link.report(change)
    assert report == after.last_change


async def test_an_aborted_request_never_serves(head: Head, client: ControlClient, link: HttpLink):
    head.effects.fail("prepare", RuntimeError("no room"))
    client.wait(client.reconfigure("1,3", key="/s#r", generation=5)["id"])
    status = await look(link)
    assert (status.wanted, outcome(WAITS, status)) == ("2,2", False)


async def test_a_layout_that_serves_already_is_accepted_with_its_generation(client: ControlClient, link: HttpLink):
    with pytest.raises(ControlError, match="already has the layout"):
        client.reconfigure("2,2", key="/s#r", generation=5)
    status = await look(link)
    assert outcome(Proposed("r", "/s#r", "2,2", Applied(5, {})), status) is True


async def test_a_stage_that_is_away_is_still_wanted(head: Head, client: ControlClient, link: HttpLink):
    client.release_stage(1, 10.0, holder="a")
    until(lambda: head.layers == "4", "the stage is away")
    assert (await look(link)).wanted == "2,2"


async def test_an_unknown_change_and_a_head_that_is_away_are_none(link: HttpLink):
    assert await link.report("change-9/../x") is None
    assert await HttpLink("http://127.0.0.1:9", "http://127.0.0.1:9").status() is None
