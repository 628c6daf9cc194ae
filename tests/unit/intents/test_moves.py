"""What a broken intent asks of a running pipeline: which layout, in which words, and when nothing helps."""

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from intents.errors import InventoryError
from intents.live_midstream import RunningPipeline, merged
from intents.model.intent import PlacementRule, RouteRule, TransferRule
from intents.model.inventory import parse_inventory
from intents.model.predicate import named, term
from intents.moves import ROOM, Move, Stuck, needed
from intents.proof.observed import Observed
from runtime.events.catalogue import Type
from runtime.events.envelope import make
from tests.unit.intents.pipelines import IN_EU, INVENTORY, intent

RUNNING = RunningPipeline(
    "smollm", ("edge-1", "edge-2"), 3, layers=(12, 18), there=frozenset({"edge-1", "edge-2", "edge-3"}), boot="b"
)


def observed(running: RunningPipeline = RUNNING, *, flows: Any = (), **labels: dict[str, str]) -> Observed:
    document = json.loads(json.dumps(INVENTORY))
    for node in document["nodes"]:
        node["labels"] |= labels.get(node["name"].replace("-", "_"), {})
    inventory = merged(parse_inventory(yaml.safe_dump(document)), [running])
    placement = {each.name: (each.node,) for each in inventory.workloads if each.node}
    return Observed(placement, flows, inventory, inventory.version)


def eu_only(**rules: Any) -> Any:
    return intent(subjects=term("midstream.dev/pipeline", "smollm"), **rules)


def test_layers_leave_a_forbidden_node_for_an_idle_one_that_is_allowed():
    move = needed(observed(), [eu_only()], RUNNING)
    assert isinstance(move, Move)
    assert (move.before, move.after) == ("12@edge-1,18@edge-2", "15@edge-1,15@edge-3")
    assert (move.broken.intents, move.broken.nodes) == (("eu-only",), ("edge-2",))
    assert "smollm-stage-1: node edge-2 is not one where jurisdiction is DE or FR" in move.broken.reason


def test_a_node_that_the_head_has_not_is_no_help():
    running = replace(RUNNING, there=frozenset({"edge-1", "edge-2"}))
    move = needed(observed(running), [eu_only()], running)
    assert isinstance(move, Move)
    assert move.after == "30@edge-1"


def test_stages_beside_the_head_are_written_as_the_head_reads_them():
    running = replace(RUNNING, beside="edge-1")
    move = needed(observed(running), [eu_only()], running)
    assert isinstance(move, Move)
    assert (move.before, move.after) == ("12,18@edge-2", "15,15@edge-3")


def test_nothing_is_needed_while_the_intents_hold():
    assert needed(observed(edge_2={"midstream.dev/jurisdiction": "FR"}), [eu_only()], RUNNING) is None
    assert needed(observed(), [], RUNNING) is None
    assert needed(observed(), [intent(subjects=named("other"))], RUNNING) is None


def test_an_intent_about_one_stage_binds_all_as_it_does_for_the_guard():
    running = replace(RUNNING, nodes=("edge-2", "edge-2"))
    move = needed(observed(running), [intent(subjects=named("smollm-stage-1"))], running)
    assert isinstance(move, Move)
    assert move.broken.nodes == ("edge-2",)
    assert "edge-2" not in move.after


class TestRequest:
    def test_the_same_violation_is_the_same_event_for_whoever_finds_it(self):
        first, second = (needed(observed(), [eu_only()], RUNNING) for _ in range(2))
        assert first == second
        assert isinstance(first, Move)
        assert first.key == f"/midstream/intents/smollm#eu-only.{first.violation}.1"

    @pytest.mark.parametrize(
        "running", [replace(RUNNING, epoch=4), replace(RUNNING, boot="c"), replace(RUNNING, layers=(15, 15))]
    )
    def test_another_violation_is_another_event(self, running: RunningPipeline):
        first, second = needed(observed(), [eu_only()], RUNNING), needed(observed(running), [eu_only()], running)
        assert isinstance(first, Move)
        assert isinstance(second, Move)
        assert first.violation != second.violation

    def test_it_is_an_event_of_the_catalogue_with_the_key_that_the_head_knows_it_by(self):
        move = needed(observed(), [eu_only()], RUNNING)
        assert isinstance(move, Move)
        event = make(Type.RECONFIGURATION_REQUESTED, move.source, "smollm", dict(move.data), id=move.id)
        assert event.key == move.key
        assert event.data == {"pipeline": "smollm", "layers": "15@edge-1,15@edge-3", "method": "recompute"}
        assert move.extensions["intent"] == "eu-only"
        assert move.extensions["reason"].startswith("smollm-stage-1: node edge-2 is not one where")


class TestRoom:
    def test_nodes_that_say_so_get_no_more_layers_than_they_have_room_for(self):
        move = needed(observed(edge_3={ROOM: "15"}), [eu_only()], RUNNING)
        assert isinstance(move, Move)
        assert move.after == "15@edge-1,15@edge-3"

    def test_room_that_is_no_number_is_an_error_that_says_where(self):
        with pytest.raises(InventoryError, match=r"node edge-3: its label midstream\.dev/layers is 'many'"):
            needed(observed(edge_3={ROOM: "many"}), [eu_only()], RUNNING)


class TestStopped:
    """The head's guard forbids what no check of a single stage does: the way from one to the next."""

    bound = eu_only(routes=(RouteRule(switches=named("s9")),))
    stopped = replace(RUNNING, stopped="the intents forbid it")

    def test_layers_go_to_where_no_such_way_is_needed(self):
        move = needed(observed(self.stopped), [self.bound], self.stopped)
        assert isinstance(move, Move)
        assert (move.after, move.broken.intents, move.broken.nodes) == ("30@edge-2", ("eu-only",), ())

    def test_where_that_is_nowhere_it_is_told(self):
        room = {"edge_1": {ROOM: "12"}, "edge_2": {ROOM: "18"}, "edge_3": {ROOM: "1"}}
        stuck = needed(observed(self.stopped, **room), [self.bound], self.stopped)
        assert isinstance(stuck, Stuck)

    def test_what_is_allowed_by_now_asks_for_nothing(self):
        assert needed(observed(self.stopped), [], self.stopped) is None

    def test_what_serves_is_not_asked_for_ways_by_the_watch(self):
        assert needed(observed(), [self.bound], RUNNING) is None


class TestStuck:
    def test_no_node_is_allowed(self):
        stuck = needed(observed(), [eu_only(placement=(PlacementRule(nodes=named("other-node")),))], RUNNING)
        assert isinstance(stuck, Stuck)
        assert stuck.why.startswith("no node that the head has may serve it: node edge-1")

    def test_no_node_has_room(self):
        stuck = needed(observed(edge_1={ROOM: "12"}, edge_3={ROOM: "17"}), [eu_only()], RUNNING)
        assert isinstance(stuck, Stuck)
        assert "(edge-1, edge-3), none has room" in stuck.why

    def test_no_way_between_the_nodes_is_allowed(self):
        in_eu = PlacementRule(nodes=IN_EU)
        over_s9 = RouteRule(switches=named("s9"))
        bound = eu_only(placement=(in_eu,), routes=(over_s9,))
        move = needed(observed(), [bound], RUNNING)
        assert isinstance(move, Move)
        assert move.after == "30@edge-1"  # with one node there is no way to take
        stuck = needed(observed(edge_1={ROOM: "12"}), [bound], RUNNING)
        assert isinstance(stuck, Stuck)
        assert "an allowed way" in stuck.why

    def test_a_pipeline_that_sleeps_is_not_woken_where_it_must_not_run(self):
        asleep = replace(RUNNING, awake=False)
        stuck = needed(observed(asleep), [eu_only()], asleep)
        assert isinstance(stuck, Stuck)
        assert "sleeps" in stuck.why


def test_that_state_may_not_be_transferred_does_not_hinder_as_none_is():
    in_eu = PlacementRule(nodes=IN_EU)
    move = needed(observed(), [eu_only(placement=(in_eu,), transfer=(TransferRule(forbidden=True),))], RUNNING)
    assert isinstance(move, Move)
