"""The desk: a request that comes twice changes once, a late one changes nothing, and stages come and go."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.layout import Layout
from runtime.migration.coordinator import Change, Coordinator
from runtime.migration.desk import Desk, Order
from runtime.migration.errors import (
    ChangeBusy,
    ChangeRefused,
    ChangeSuperseded,
    ChangeUnneeded,
    LastStage,
    PipelineAsleep,
)
from runtime.migration.journal import Entry, Journal
from runtime.migration.stop_rule import CopyRound
from tests.unit.runtime.migration.fake_effects import DEADLINE_S, LAYERS, FakeEffects


@dataclass
class Bench:
    effects: FakeEffects
    coordinator: Coordinator
    desk: Desk
    lost: set[str]

    def do(self, change: Change | None) -> str:
        """Wait for a change's end; returns the layout that serves then."""
        if change is not None:
            assert change.ended.wait(DEADLINE_S)
        return str(self.effects.serving)

    def apply(self, layers: str, **order: object) -> str:
        return self.do(self.desk.reconfigure(Order(layers, **order))[0])

    def prepared(self) -> int:
        return self.effects.count("prepare")


def make(layout: str = "2,2") -> Bench:
    effects = FakeEffects(layout)
    effects.rounds = [CopyRound(sent_bytes=1, seconds=0.1, stale_bytes=0)] * 4  # for layers that change their node
    coordinator, lost = Coordinator(effects, Journal()), set[str]()
    return Bench(effects, coordinator, Desk(coordinator, effects.layout, lambda wanted: wanted.without(lost)), lost)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = make()
    yield made
    made.effects.open_all()
    made.coordinator.close()


# -- keys ------------------------------------------------------------------------------------------------------------


def test_the_same_key_gets_the_same_change_while_it_runs_and_after(bench: Bench):
    gate = bench.effects.block("prepare")
    first, repeated = bench.desk.reconfigure(Order("1,3", key="a#1"))
    again, repeated_then = bench.desk.reconfigure(Order("1,3", key="a#1"))
    assert (first.id, repeated, repeated_then) == (again.id, False, True)
    gate.open()
    assert bench.do(first) == "1,3"
    assert bench.apply("2,2", key="a#2") == "2,2"
    assert bench.desk.reconfigure(Order("1,3", key="a#1")) == (first, True)
    assert str(bench.effects.serving) == "2,2"
    assert bench.prepared() == 2


def test_a_change_knows_the_key_it_was_asked_for_with(bench: Bench):
    change, _ = bench.desk.reconfigure(Order("1,3", key="a#1"))
    bench.do(change)
    assert change.report()["request"] == "a#1"
    assert change.report()["boot"] == bench.coordinator.boot


def test_a_refusal_is_remembered_with_its_key_and_its_kind(bench: Bench):
    bench.effects.fail("prepare", RuntimeError("no"))
    for key, layers, kind in [("k1", "2,2", ChangeUnneeded), ("k2", "9,9", ChangeRefused)]:
        with pytest.raises(kind) as refusal:
            bench.desk.reconfigure(Order(layers, key=key))
        bench.effects.serving = Layout.parse("1,3", LAYERS)
        with pytest.raises(kind, match=str(refusal.value)[:20]):
            bench.desk.reconfigure(Order(layers, key=key))
        bench.effects.serving = Layout.parse("2,2", LAYERS)
    assert bench.prepared() == 0


def test_a_request_that_met_another_change_is_not_remembered(bench: Bench):
    gate = bench.effects.block("prepare")
    running, _ = bench.desk.reconfigure(Order("1,3"))
    with pytest.raises(ChangeBusy):
        bench.desk.reconfigure(Order("3,1", key="k"))
    gate.open()
    bench.do(running)
    assert bench.apply("3,1", key="k") == "3,1"


def test_requests_without_a_key_are_never_the_same(bench: Bench):
    assert bench.apply("1,3") == "1,3"
    assert bench.apply("2,2") == "2,2"
    assert bench.apply("1,3") == "1,3"


# -- generations -----------------------------------------------------------------------------------------------------


def test_an_older_generation_is_refused_and_changes_nothing(bench: Bench):
    assert bench.apply("1,3", generation=5) == "1,3"
    with pytest.raises(ChangeSuperseded, match="generation 4 is older than generation 5"):
        bench.desk.reconfigure(Order("2,2", generation=4))
    assert bench.apply("3,1", generation=5) == "3,1"
    assert bench.apply("2,2") == "2,2"


def test_a_generation_that_changes_nothing_still_counts(bench: Bench):
    with pytest.raises(ChangeUnneeded):
        bench.desk.reconfigure(Order("2,2", generation=3))
    with pytest.raises(ChangeSuperseded):
        bench.desk.reconfigure(Order("1,3", generation=2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["1,3", "2,2", "3,1", "4"])), max_size=8), st.data())
def test_events_in_any_order_and_number_end_in_the_newest_generation(generations, data):
    """Each generation has one layout; its event is delivered one to three times, at any place."""
    layouts = dict(generations)
    deliveries = data.draw(st.permutations([g for g in layouts for _ in range(data.draw(st.integers(1, 3)))]))
    bench = make()
    try:
        for generation in deliveries:
            try:
                bench.apply(layouts[generation], key=f"g{generation}", generation=generation)
            except ChangeRefused:
                continue
        if layouts:
            assert str(bench.effects.serving) == layouts[max(layouts)]
        assert bench.prepared() <= len(layouts)
    finally:
        bench.coordinator.close()


# -- stages that come and go -----------------------------------------------------------------------------------------


def test_a_stage_that_leaves_gives_its_layers_to_its_neighbours_and_gets_them_back():
    bench = make("1,2,1")
    assert bench.do(bench.desk.release(1)) == "2,2"
    assert bench.desk.release(1) is None
    assert bench.do(bench.desk.attach(1)) == "1,2,1"
    assert bench.desk.attach(1) is None


def test_a_stage_keeps_its_number_while_others_are_away():
    bench = make("1,2,1")
    assert bench.do(bench.desk.release(0)) == "3,1"
    assert bench.do(bench.desk.release(1)) == "4"
    assert bench.do(bench.desk.attach(0)) == "2,2"
    assert bench.do(bench.desk.attach(1)) == "1,2,1"


def test_the_last_stage_cannot_leave():
    bench = make("2,2")
    assert bench.do(bench.desk.release(0)) == "4"
    with pytest.raises(LastStage, match="stage 1 is the last one"):
        bench.desk.release(1)
    assert str(bench.effects.serving) == "4"


def test_a_stage_comes_back_on_another_node():
    bench = make("2@a,2@b")
    assert bench.do(bench.desk.release(1)) == "4@a"
    assert bench.do(bench.desk.attach(1, "c")) == "2@a,2@c"


def test_a_stage_that_never_left_moves_to_the_node_it_is_announced_on():
    bench = make("2@a,2@b")
    assert bench.do(bench.desk.attach(0, "b")) == "2@b,2@b"


def test_what_is_asked_for_again_with_its_key_moves_nothing():
    bench = make("1,2,1")
    assert bench.do(bench.desk.release(1, key="r#1")) == "2,2"
    assert bench.do(bench.desk.attach(1, key="a#1")) == "1,2,1"
    again = bench.desk.release(1, key="r#1")
    assert again is not None
    assert (bench.do(again), again.machine.target) == ("1,2,1", Layout.parse("2,2", LAYERS))


def test_a_stage_that_could_not_come_may_be_asked_for_again_with_the_same_key():
    bench = make("1,2,1")
    bench.do(bench.desk.release(1))
    bench.effects.fail("prepare", RuntimeError("no memory"))
    assert bench.do(bench.desk.attach(1, key="a#1")) == "2,2"
    assert bench.do(bench.desk.attach(1, key="a#1")) == "1,2,1"


def test_the_same_key_for_coming_and_going_is_two_requests():
    bench = make("1,2,1")
    assert bench.do(bench.desk.release(1, key="x#1")) == "2,2"
    assert bench.do(bench.desk.attach(1, key="x#1")) == "1,2,1"


def test_a_stage_that_was_sent_away_comes_back_only_when_it_is_sent_for():
    bench = make("1,2,1")
    assert bench.do(bench.desk.release(1, key="r#1")) == "2,2"
    assert bench.desk.attach(1, holder="anew") is None
    assert bench.desk.is_away(1)
    assert bench.do(bench.desk.attach(1, key="a#1")) == "1,2,1"
    assert not bench.desk.is_away(1)


def test_a_stage_that_left_by_itself_can_be_sent_away_too():
    bench = make("1,2,1")
    bench.do(bench.desk.release(1, holder="pod"))
    assert bench.desk.release(1, key="r#1") is None
    assert bench.desk.attach(1, holder="pod-2") is None
    assert str(bench.effects.serving) == "2,2"


def test_a_function_of_a_stage_that_is_gone_takes_nothing_of_a_later_one():
    bench = make("1,2,1")
    bench.desk.attach(2, holder="old")
    assert bench.apply("2,2") == "2,2"
    assert bench.apply("1,1,2") == "1,1,2"
    assert bench.desk.release(2, holder="old") is None
    assert bench.desk.attach(2, holder="new") is None
    assert bench.do(bench.desk.release(2, holder="new")) == "1,3"


def test_a_pipeline_that_sleeps_is_no_answer():
    bench = make()
    asleep = [True, False]

    def wake() -> None:
        if asleep.pop(0):
            raise PipelineAsleep("it sleeps")

    bench.desk._wake = wake
    with pytest.raises(PipelineAsleep):
        bench.desk.reconfigure(Order("1,3", key="k"))
    assert bench.apply("1,3", key="k") == "1,3"


def test_whoever_sees_that_a_change_has_ended_can_ask_for_the_next_one(bench: Bench):
    """A client looks at the report, not at what the coordinator does after it."""
    told = []

    def ask_for_the_next(entry: Entry) -> None:
        if entry.event == "ended":
            told.append(entry.details)
            if len(told) == 1:
                bench.desk.reconfigure(Order("3,1"))

    bench.coordinator._journal.listen(ask_for_the_next)
    first = bench.desk.reconfigure(Order("1,3"))[0]
    bench.do(first)
    last = bench.coordinator.last
    assert last is not None
    assert bench.do(last) == "3,1"
    assert told[0]["pause_ms"] == first.report()["pause_ms"] is not None


def test_the_world_is_told_of_the_stage_that_moves_and_of_no_other():
    bench = make("1,2,1")
    change = bench.desk.release(1)
    bench.do(change)
    story = [entry for entry in bench.coordinator._journal.story(change.id) if entry.event.startswith("stage")]
    assert [(e.event, e.details["stage"], e.details["ms"]) for e in story] == [
        ("stage released", 1, change.report()["total_ms"])
    ]


def test_a_function_that_comes_or_goes_waits_for_its_change_and_nobody_else_does():
    bench = make("1,2,1")
    bench.do(bench.desk.release(1))
    bench.do(bench.desk.attach(1))
    bench.apply("2,2")
    assert bench.effects.awaited == [True, True, False]


def test_of_two_instances_the_one_that_came_last_holds_the_stage():
    bench = make("1,2,1")
    assert bench.desk.attach(1, holder="old") is None
    assert bench.desk.attach(1, holder="new") is None
    assert bench.desk.release(1, holder="old") is None
    assert bench.do(bench.desk.release(1, holder="new")) == "2,2"
    assert bench.do(bench.desk.attach(1, holder="next")) == "1,2,1"
    assert bench.do(bench.desk.release(1)) == "2,2"


def test_the_node_of_a_stage_is_where_it_was_asked_for():
    bench = make("2@a,2@b")
    bench.do(bench.desk.release(1))
    assert [bench.desk.node_of(stage) for stage in range(3)] == ["a", "b", "local"]


def test_a_stage_that_does_not_exist_cannot_come_and_has_nothing_to_leave(bench: Bench):
    with pytest.raises(ChangeRefused, match="no stage 2: the layout 2,2 has stages 0 to 1"):
        bench.desk.attach(2)
    assert bench.desk.release(2) is None


def test_a_release_that_is_undone_is_as_if_it_had_not_been_asked_for():
    bench = make("1,2,1")
    bench.effects.fail("prepare", RuntimeError("no memory"))
    assert bench.do(bench.desk.release(1)) == "1,2,1"
    assert bench.desk.attach(1) is None
    assert bench.do(bench.desk.release(1)) == "2,2"


def test_nobody_comes_or_goes_during_a_change(bench: Bench):
    gate = bench.effects.block("prepare")
    change, _ = bench.desk.reconfigure(Order("1,3"))
    with pytest.raises(ChangeBusy):
        bench.desk.release(0)
    with pytest.raises(ChangeBusy):
        bench.desk.attach(0)
    gate.open()
    bench.do(change)
    assert bench.do(bench.desk.release(0)) == "4"


def test_a_new_layout_forgets_who_is_away_once_it_is_committed():
    bench = make("1,2,1")
    bench.do(bench.desk.release(1))
    bench.effects.fail("prepare", RuntimeError("no"))
    assert bench.apply("1,3") == "2,2"
    assert bench.do(bench.desk.attach(1)) == "1,2,1"
    bench.do(bench.desk.release(1))
    assert bench.apply("1,3") == "1,3"
    assert bench.desk.attach(1) is None


def test_layers_are_not_given_to_a_node_that_is_lost():
    bench = make("1@a,2@b,1@c")
    bench.lost.add("a")
    assert bench.do(bench.desk.release(2)) == "4@b"


def test_with_no_node_left_to_take_the_layers_nothing_happens():
    bench = make("2@a,2@b")
    bench.lost.add("a")
    with pytest.raises(ChangeRefused, match="no stage is left"):
        bench.desk.release(1)
    assert str(bench.effects.serving) == "2@a,2@b"


def test_another_precision_leaves_the_layers_and_who_is_away_as_they_are():
    bench = make("1,2,1")
    assert bench.do(bench.desk.release(1)) == "2,2"
    assert bench.apply("", precision="bfloat16") == "2,2"
    assert bench.effects.serving.precision == bench.desk.wanted().precision == "bfloat16"
    assert bench.desk.is_away(1)
    assert bench.do(bench.desk.attach(1)) == "1,2,1"
    assert bench.effects.serving.precision == "bfloat16"


def test_other_layers_leave_the_precision_as_it_is():
    bench = make("1,2,1")
    bench.apply("", precision="bfloat16")
    assert bench.apply("2,2") == "2,2"
    assert bench.effects.serving.precision == "bfloat16"


def test_a_precision_that_could_not_be_had_is_not_wanted_later():
    bench = make("1,2,1")
    bench.effects.fail("prepare", RuntimeError("no memory"))
    assert bench.apply("", precision="bfloat16") == "1,2,1"
    assert bench.do(bench.desk.release(1)) == "2,2"
    assert bench.effects.serving.precision == ""
