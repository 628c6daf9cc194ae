"""From a label that changes to a pipeline that has moved: guard, head, functions and the mover, over real HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from intents.enforcement.event_sink import EventSink
from intents.live_midstream import LayoutRefused, MidstreamSource, merged
from intents.model.inventory import read_inventory
from intents.mover import Mover, Told
from intents.moves import Move, needed
from intents.proof.observed import Observed
from runtime.events.catalogue import Type, schema
from runtime.events.envelope import make
from runtime.migration.guard import Permission
from runtime.migration.http_guard import HttpGuard
from tests.integration.functions.guard import IN_EU, TOKEN, GuardService
from tests.integration.functions.head import Head, until
from tests.unit.runtime.events.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.functions.process import FunctionProcess

NODES = ("edge-1", "edge-2", "edge-3")


class Site:
    """A pipeline on edge-1 and edge-3, its guard, and who watches its intents."""

    def __init__(self, folder: Path, guard: GuardService, head: Head) -> None:
        self.guard, self.head, self.told = guard, head, list[Told]()
        self._file = folder / "inventory.yaml"
        head._pipeline.status = self._status
        self.source = MidstreamSource(f"http://127.0.0.1:{head.port}", "smollm")

    def _status(self) -> dict[str, Any]:
        serving = self.head.effects.serving
        last = self.head.coordinator.last
        return {
            "boot": self.head.coordinator.boot,
            "epoch": self.head.effects.epochs,
            "layers": str(serving),
            "stages": [{"index": index, "node": stage.node} for index, stage in enumerate(serving.stages)],
            "spare_stages": dict.fromkeys(NODES, 1),
            "last_change": last.report() if last else None,
        }

    def look(self) -> Any:
        running = self.source.read()
        inventory = merged(read_inventory(self._file), [running])
        placement = {each.name: (each.node,) for each in inventory.workloads if each.node is not None}
        return Observed(placement, (), inventory, inventory.version), [IN_EU], running

    def move(self) -> Move:
        wanted = needed(*self.look())
        assert isinstance(wanted, Move)
        return wanted

    def mover(self, publish: Callable[[Move], None] = lambda _: None) -> Mover:
        return Mover(self.source, publish, self.told.append, sleep=lambda _: None)


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[GuardService]:
    with GuardService(tmp_path).running() as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, port: int, guard: GuardService) -> Iterator[Site]:
    permission = Permission(HttpGuard(guard.url, TOKEN), "smollm", "head")
    with Head(port, "2@edge-1,2@edge-3", permission).running() as head:
        site = Site(tmp_path, guard, head)
        with site.source:
            yield site


def test_layers_leave_a_node_that_turns_american_and_the_guard_has_allowed_it(site: Site):
    assert site.mover().move(site.look) is None
    site.guard.move("edge-1", "US")
    assert site.mover().move(site.look) is True, site.told
    assert (site.head.layers, [each.what for each in site.told]) == ("4@edge-3", ["requested", "moved"])
    (planned,) = [entry for entry in site.head.journal.story(None) if entry.event == "planned"]
    assert "eu-only" in planned.details["request"]  # the head's story says what it was for
    assert site.mover().move(site.look) is None
    assert site.head.changes == 1


def test_kv_is_not_carried_over_from_the_forbidden_node_as_the_guard_would_not_allow_it(site: Site):
    site.guard.move("edge-1", "US")
    with httpx.Client(base_url=f"http://127.0.0.1:{site.head.port}/midstream/v1") as http:
        refused = http.post("/reconfigurations", json={"layers": "4@edge-3", "method": "pre_copy"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "forbidden")
    assert site.mover().move(site.look) is True
    assert "copy_stale" not in site.head.effects.calls


def test_the_event_is_what_the_catalogue_says_and_anybody_reads_it(site: Site):
    site.guard.move("edge-1", "US")
    move = site.move()
    with Sink() as sink:
        EventSink(sink.url).publish(move)
    (event,) = sink.taken
    Draft202012Validator(schema(Type.RECONFIGURATION_REQUESTED)).validate(event.data)
    assert (event.type, event.subject, event.key) == (Type.RECONFIGURATION_REQUESTED, "smollm", move.key)
    assert event.data == {"pipeline": "smollm", "layers": "4@edge-3", "method": "recompute"}
    assert event.extensions["intent"] == "eu-only"
    assert "node edge-1" in event.extensions["reason"]
    again = make(event.type, event.source, event.subject, event.data, id=event.id)
    assert again.key == event.key


def test_event_and_question_delivered_twice_change_the_pipeline_once(site: Site, start: Callable[..., FunctionProcess]):
    function = start("reconfigure").wait_alive()
    site.guard.move("edge-1", "US")
    move = site.move()
    sink = EventSink(function.url)
    sink.publish(move)
    first = site.source.ask_for(move.after, move.key)
    sink.publish(move)
    second = site.source.ask_for(move.after, move.key)
    assert (first.state, second, site.head.changes, site.head.layers) == ("committed", first, 1, "4@edge-3")
    site.guard.move("edge-1", "DE")
    moved_back = site.source.ask_for("2@edge-1,2@edge-3", "/me#1")
    assert site.source.await_end(moved_back.id).state == "committed"
    sink.publish(move)  # late, and still the same
    assert (site.head.changes, site.head.layers) == (2, "2@edge-1,2@edge-3")


def test_through_the_function_and_by_asking_the_head_it_is_one_change(
    site: Site, start: Callable[..., FunctionProcess]
):
    function = start("reconfigure").wait_alive()
    site.guard.move("edge-3", "US")
    assert site.mover(EventSink(function.url).publish).move(site.look) is True
    assert (site.head.layers, site.head.changes) == ("4@edge-1", 1)
    assert site.told[0].why is None


def test_what_was_aborted_is_asked_for_again_as_another_request(site: Site):
    site.guard.move("edge-1", "US")
    site.head.effects.fail("prepare", RuntimeError("no room"))
    assert site.mover().move(site.look) is True, site.told
    assert [each.what for each in site.told] == ["requested", "aborted", "requested", "moved"]
    assert "no room" in str(site.told[1].why)
    assert len({each.move.key for each in site.told if each.move is not None}) == 2
    assert site.head.layers == "4@edge-3"


def test_what_the_guard_forbids_is_not_moved_and_told_as_a_violation_that_goes_on(site: Site):
    site.guard.move("edge-1", "US")
    move = site.move()
    site.guard.move("edge-3", "US")  # between the look and the question
    with pytest.raises(LayoutRefused, match="node edge-3") as refused:
        site.source.ask_for(move.after, move.key)
    assert (refused.value.kind, refused.value.passing) == ("forbidden", False)
    for node in ("edge-1", "edge-2", "edge-3"):
        site.guard.move(node, "US")
    assert site.mover().move(site.look) is False
    (told,) = site.told
    assert told.violations[0].reason.startswith("smollm stays on edge-1, edge-3, as it cannot be moved: no node")
    assert (site.head.layers, site.head.changes) == ("2@edge-1,2@edge-3", 0)


def test_while_the_guard_is_silent_the_same_is_asked_again(site: Site):
    site.guard.move("edge-1", "US")
    move = site.move()
    site.guard.stop()
    with pytest.raises(LayoutRefused) as refused:
        site.source.ask_for(move.after, move.key)
    assert (refused.value.kind, refused.value.passing) == ("guard_silent", True)


def test_the_intent_function_moves_layers_by_the_same_road(
    site: Site, guard: GuardService, tmp_path: Path, start: Callable[..., FunctionProcess]
):
    with Sink() as sink:
        start(
            "intent",
            MIDSTREAM_INVENTORY=str(tmp_path / "inventory.yaml"),
            MIDSTREAM_INTENT_STATE=str(tmp_path / "intents"),
            MIDSTREAM_WATCH_SECONDS="0.05",
            K_SINK=sink.url,
        ).wait_ready()
        guard.move("edge-1", "US")
        until(lambda: site.head.layers == "4@edge-3", "the layers have left edge-1")
        sink.wait_for(2)
        kinds = [event.type for event in sink.taken]
        assert kinds[:2] == [Type.INTENT_VIOLATED, Type.RECONFIGURATION_REQUESTED]
        requested = sink.taken[1]
        (change,) = {entry.details["request"] for entry in site.head.journal.story(None) if entry.event == "planned"}
        assert change == requested.key
        assert requested.extensions["intent"] == "eu-only"
