"""The nodes of a pipeline, with nodes that only remember what they were asked for."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine import nodes as nodes_module
from runtime.engine.nodes import Migration, Nodes
from runtime.layout import LOCAL_NODE, Layout
from runtime.migration.errors import ChangeForbidden, ChangeRefused, GuardSilent
from runtime.migration.guard import Permission
from runtime.migration.journal import Journal
from runtime.migration.stop_rule import CopyRound
from runtime.transport.calls import CallError
from runtime.transport.channel import ChannelError
from runtime.warm.kv_pool import KVPoolShape
from runtime.warm.node import NodeError
from tests.unit.runtime.engine.waiting import DEADLINE_S, eventually
from tests.unit.runtime.migration.fake_guard import FakeGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SHAPE = KVPoolShape(layers=6, blocks=4, block_tokens=4, layer_bytes=4 * 512)


class FakeNode:
    """A node that notes what it was asked for, and fails where a test says so."""

    def __init__(self, name: str, host: str | None = None) -> None:
        self.name, self.host = name, host or name
        self.asked: list[tuple[Any, ...]] = []
        self.failing: dict[str, Exception] = {}
        self.copies: list[FakeCopy] = []
        self.lost: str | None = None

    def _ask(self, what: str, *details: Any) -> None:
        self.asked.append((what, *details))
        if what in self.failing:
            raise self.failing[what]

    def asked_for(self, what: str) -> list[tuple[Any, ...]]:
        return [details for asked, *details in self.asked if asked == what]

    def wait_reachable(self, timeout_s: float) -> None:
        self._ask("wait_reachable")

    def open(self, hosts: Sequence[str], engine: bytes, model: None, timeout_s: float) -> dict[str, Any]:
        self._ask("open", list(hosts), engine)
        return {"was_warm": True}

    def close(self) -> None:
        self._ask("close")

    def reserve(self, shape: KVPoolShape, layers: int) -> None:
        self._ask("reserve", layers)

    def scrub(self, layers: Sequence[int]) -> None:
        self._ask("scrub", list(layers))

    def allow_copy(self, copy: str, source_host: str) -> None:
        self._ask("allow_copy", copy, source_host)

    def forget_copy(self, copy: str) -> None:
        self._ask("forget_copy", copy)

    def copy_to(self, target: FakeNode, copy: str, layers: Sequence[int]) -> FakeCopy:
        self._ask("copy_to", target.name, copy, list(layers))
        self.copies.append(FakeCopy(layers))
        return self.copies[-1]


class FakeCopy:
    """The copying of some layers: two rounds of 100 and 10 bytes for each."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = layers
        self.sizes = iter((100, 10, 0))
        self.stopped = self.ended = False
        self.paces: list[float | None] = []
        self.gate: threading.Barrier | None = None
        self.failing: dict[str, Exception] = {}

    def _maybe_fail(self, what: str) -> None:
        if what in self.failing:
            raise self.failing[what]

    def round(self) -> CopyRound:
        if self.gate is not None:
            self.gate.wait(DEADLINE_S)
        self._maybe_fail("round")
        return CopyRound(next(self.sizes) * len(self.layers), 0.0, 3)

    def pace(self, bytes_per_second: float | None) -> None:
        self.paces.append(bytes_per_second)

    def stale_bytes(self) -> int:
        return 100 * len(self.layers)

    def finish(self) -> tuple[int, dict[int, int]]:
        return 7, {layer: 1 for layer in self.layers if layer % 2}

    def stop(self) -> None:
        self._maybe_fail("stop")
        self.stopped = True

    def end(self) -> None:
        self._maybe_fail("end")
        self.ended = True


class Bench:
    """Nodes over fakes."""

    def __init__(self, *remote: str, local: bool = True, guard: FakeGuard | None = None) -> None:
        self.remote = {name: FakeNode(name) for name in remote}
        self.local: dict[str, FakeNode] = {}
        self.journal = Journal()
        permission = None if guard is None else Permission(guard, "smollm", "head")
        make_local = self._make if local else None
        self.nodes = Nodes(self.remote.values(), make_local, self.journal, permission)  # type: ignore[arg-type]

    def _make(self, name: str) -> FakeNode:
        assert name not in self.local, "made twice"
        self.local[name] = FakeNode(name, "head")
        return self.local[name]

    def __getitem__(self, name: str) -> FakeNode:
        return self.remote.get(name) or self.local[name]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [entry.details for entry in self.journal.story("pipeline") if entry.event == event]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    monkeypatch.setattr(nodes_module, "_TAKE_BACK_S", 0.01)
    monkeypatch.setattr(nodes_module, "_LOOK_AGAIN_S", 0.001)
    monkeypatch.setattr(nodes_module, "_ASK_AGAIN_S", 0.001)
    made: list[Bench] = []

    def bench(*remote: str, **how: Any) -> Bench:
        made.append(Bench(*remote, **how))
        return made[-1]

    yield bench
    for one in made:
        one.nodes.close()


def layout(text: str) -> Layout:
    return Layout.parse(text, SHAPE.layers)


class TestKnownNodes:
    def test_without_other_hosts_any_name_is_a_node_of_this_one(self, make):
        bench = make()
        assert bench.nodes.get("doomed") is bench.nodes.get("doomed")
        assert bench.nodes.names() == ["doomed"]

    def test_with_other_hosts_a_name_that_is_none_of_them_is_refused_with_those_that_are(self, make):
        bench = make("edge-1", "edge-2")
        assert bench.nodes.get("edge-1") is bench.remote["edge-1"]
        assert bench.nodes.get(LOCAL_NODE) is bench.local[LOCAL_NODE]
        with pytest.raises(NodeError, match="there is no node 'edge-3'; known are: edge-1, edge-2, local"):
            bench.nodes.get("edge-3")

    def test_a_head_without_weights_has_no_node_of_its_own(self, make):
        with pytest.raises(NodeError, match="there is no node 'local'; known are: edge-1"):
            make("edge-1", local=False).nodes.get(LOCAL_NODE)

    def test_all_nodes_are_opened_with_the_same_engine_and_told_of_each_other(self, make):
        bench = make("edge-1", "edge-2")
        bench.nodes.open(lambda _: (b"tiny", None))
        for node in bench.remote.values():
            assert node.asked_for("open") == [[["edge-1", "edge-2"], b"tiny"]]
        assert {told["node"] for told in bench.events("node ready")} == {"edge-1", "edge-2"}

    def test_a_pipeline_of_one_host_needs_no_description(self, make):
        make().nodes.open(lambda _: pytest.fail("nobody needs this"))

    @pytest.mark.parametrize(
        ("step", "error"), [("open", NodeError("lacks 5 MiB")), ("wait_reachable", ChannelError("is down"))]
    )
    def test_a_node_that_cannot_be_opened_ends_the_start_with_its_reason(self, make, step: str, error: Exception):
        bench = make("edge-1", "edge-2")
        bench["edge-2"].failing[step] = error
        with pytest.raises(type(error), match=str(error)):
            bench.nodes.open(lambda _: (b"tiny", None))


class TestReserving:
    def test_every_node_makes_room_for_its_layers_in_any_layout(self, make):
        bench = make("edge-1", "edge-2", "edge-3")
        bench.nodes.reserve(SHAPE, [layout("4@edge-1,2@edge-2"), layout("1@edge-2,3@edge-1,2@edge-2")])
        wanted = {"edge-1": 4, "edge-2": 3, "edge-3": 0}
        assert {name: node.asked_for("reserve") for name, node in bench.remote.items()} == {
            name: [[layers]] for name, layers in wanted.items()
        }

    def test_a_node_of_this_host_that_comes_later_gets_a_pool_too(self, make):
        bench = make()
        bench.nodes.reserve(SHAPE, [layout("6")])
        bench.nodes.get("late")
        assert bench["late"].asked_for("reserve") == [[0]]

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda b: None, "node edge-9: there is no node 'edge-9'; known are: edge-1"),
            (lambda b: b.nodes.lose("edge-1", "unplugged"), "node edge-1: node edge-1 is lost: unplugged"),
            (lambda b: b["edge-1"].failing.update(reserve=NodeError("lacks 7 MiB")), "node edge-1: lacks 7 MiB"),
        ],
        ids=["unknown", "lost", "full"],
    )
    def test_a_node_that_is_needed_and_cannot_make_room_refuses_the_change(self, make, spoil, message: str):
        bench = make("edge-1")
        spoil(bench)
        with pytest.raises(ChangeRefused, match=message):
            bench.nodes.reserve(SHAPE, [layout("3@edge-1,3@edge-9")])

    def test_a_node_that_is_not_needed_does_not_refuse_anything(self, make):
        bench = make("edge-1", "edge-2")
        bench["edge-2"].failing["reserve"] = NodeError("gone")
        bench.nodes.reserve(SHAPE, [layout("6@edge-1")])


class TestLosses:
    def test_a_node_is_lost_once_and_only_if_it_is_ours(self, make):
        bench = make("edge-1")
        assert not bench.nodes.lose("stranger", "is silent")
        assert bench.nodes.lose("edge-1", "is silent")
        assert not bench.nodes.lose("edge-1", "and silent again")
        assert bench.nodes.names() == []
        assert bench["edge-1"].lost == "and silent again"
        with pytest.raises(NodeError, match="node edge-1 is lost: and silent again"):
            bench.nodes.get("edge-1")

    @pytest.mark.parametrize(
        ("before", "lost", "after"),
        [
            ("3@a,3@b", [], "3@a,3@b"),
            ("3@a,3@b", ["c"], "3@a,3@b"),
            ("3@a,3@b", ["b"], "6@a"),
            ("2@a,2@b,2@c", ["b"], "3@a,3@c"),
            ("2@a,2@b,2@c", ["a", "b"], "6@c"),
            ("6@a", ["a"], "3@b,3@c"),
            ("3@a,3@b", ["a", "b"], "6@c"),
        ],
    )
    def test_layers_of_lost_nodes_go_to_those_that_are_left(self, make, before: str, lost: list[str], after: str):
        bench = make("a", "b", "c")
        for name in lost:
            bench.nodes.lose(name, "gone")
        assert str(bench.nodes.placed(layout(before))) == after

    def test_when_all_nodes_are_lost_the_first_that_comes_back_serves(self, make):
        bench = make("a", "b")
        for node in bench.remote.values():
            node.failing["wait_reachable"] = ChannelError("the link is down")
            bench.nodes.lose(node.name, "is silent")
        threading.Thread(target=bench.nodes._take_back, daemon=True).start()
        assert eventually(lambda: len(bench.events("node still lost")) == 2)
        bench["b"].failing.clear()
        assert str(bench.nodes.placed(layout("3@a,3@b"))) == "6@b"

    def test_when_none_comes_back_there_is_nothing_left_to_try(self, make, monkeypatch):
        monkeypatch.setattr(nodes_module, "_COME_BACK_S", 0.01)
        bench = make("a", "b")
        for name in "ab":
            bench.nodes.lose(name, f"{name} is silent")
        with pytest.raises(NodeError, match="all nodes are lost: a is silent; b is silent"):
            bench.nodes.placed(layout("3@a,3@b"))

    @given(st.data())
    def test_whatever_is_lost_the_rest_serves_all_layers(self, data: st.DataObject):
        bench = Bench(*"abcd")
        counts = data.draw(st.sampled_from(["6", "3,3", "1,5", "2,2,2", "1,1,1,1,1,1"])).split(",")
        text = ",".join(f"{count}@{data.draw(st.sampled_from('abcd'))}" for count in counts)
        lost = data.draw(st.sets(st.sampled_from("abcd"), max_size=3))
        for name in lost:
            bench.nodes.lose(name, "gone")
        left = bench.nodes.placed(layout(text))
        assert left.total_layers == SHAPE.layers
        assert not left.nodes & lost

    def test_a_lost_node_is_taken_back_as_soon_as_it_can_be_opened_again(self, make):
        bench = make("edge-1", "edge-2")
        bench.nodes.open(lambda _: (b"tiny", None))
        bench.nodes.reserve(SHAPE, [layout("3@edge-1,3@edge-2")])
        node = bench["edge-1"]
        node.failing["wait_reachable"] = ChannelError("the link is down")
        bench.nodes.lose("edge-1", "is silent")
        assert eventually(lambda: bench.events("node still lost") == [{"node": "edge-1", "reason": "the link is down"}])
        assert bench.nodes.names() == ["edge-2"]
        node.failing.clear()
        assert eventually(lambda: bench.nodes.names() == ["edge-1", "edge-2"])
        assert (node.lost, len(node.asked_for("open")), node.asked_for("reserve")) == (None, 2, [[3], [0]])
        assert bench.nodes.lose("edge-1", "is silent again")

    def test_a_closed_pipeline_lets_go_of_the_nodes_that_are_there(self, make):
        bench = make("edge-1", "edge-2")
        bench.nodes.lose("edge-1", "is silent")
        bench.nodes.close()
        assert [len(node.asked_for("close")) for node in bench.remote.values()] == [0, 1]


class TestIntents:
    """I5: nothing goes to a node, or over a way to one, that the guard of the intents does not allow."""

    @pytest.fixture
    def guard(self) -> FakeGuard:
        return FakeGuard()

    @pytest.mark.parametrize(
        ("before", "lost", "forbidden", "after"),
        [
            ("3@a,3@b", [], [], "3@a,3@b"),
            ("3@a,3@b", [], ["c"], "3@a,3@b"),
            ("3@a,3@b", [], ["b"], "6@a"),
            ("3@a,3@b", ["b"], [], "6@a"),
            ("2@a,2@b,2@c", ["b"], ["c"], "6@a"),
            ("6@a", ["a"], ["b"], "6@c"),
            ("6@a", [], ["a"], "3@b,3@c"),
            ("3@a,3@b", ["a"], ["b"], "6@c"),
        ],
    )
    def test_layers_of_lost_stages_go_to_nodes_that_are_allowed(
        self, make, guard: FakeGuard, before: str, lost: list[str], forbidden: list[str], after: str
    ):
        bench = make("a", "b", "c", guard=guard)
        guard.nodes.update(forbidden)
        for name in lost:
            bench.nodes.lose(name, "gone")
        assert str(bench.nodes.placed(layout(before))) == after

    def test_the_way_between_two_allowed_nodes_counts_too(self, make, guard: FakeGuard):
        bench = make("a", "b", "c", guard=guard)
        guard.ways.update({("a", "c"), ("c", "a")})
        bench.nodes.lose("b", "gone")
        assert str(bench.nodes.placed(layout("2@a,2@b,2@c"))) == "6@a"

    @pytest.mark.parametrize("known", [True, False], ids=["forbidden", "nobody answers"])
    def test_without_an_allowed_node_the_pipeline_stands_as_long_as_it_takes_and_says_why(
        self, make, guard: FakeGuard, monkeypatch: pytest.MonkeyPatch, known: bool
    ):
        monkeypatch.setattr(nodes_module, "_COME_BACK_S", 0.05)
        monkeypatch.setattr(nodes_module, "_ASK_AGAIN_S", 0.02)
        bench = make("a", "b", guard=guard)
        guard.known = known
        guard.nodes.update({"a", "b"})

        def end_after_a_while(_: object) -> None:
            if len(guard.asked) > 20:
                bench.nodes.close()

        guard.before_answer = end_after_a_while
        why = "no node is left that may serve: .*a is in the US.*b is in the US" if known else "nobody allows"
        with pytest.raises(NodeError, match=why):
            bench.nodes.placed(layout("3@a,3@b"))
        assert len(bench.events("no place")) == 1
        assert len(guard.asked) > 20

    def test_what_was_kept_out_is_no_lost_node_that_is_waited_for_only_so_long(
        self, make, guard: FakeGuard, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(nodes_module, "_COME_BACK_S", 0.05)
        monkeypatch.setattr(nodes_module, "_ASK_AGAIN_S", 0.02)
        bench = make("a", guard=guard)
        guard.nodes.add("a")
        bench.nodes.lose("a", "its runtime was restarted")
        assert bench.nodes._refusal_of("a") is not None
        placing = threading.Thread(target=bench.nodes.placed, args=(layout("6@a"),), daemon=True)
        placing.start()
        placing.join(0.5)
        assert placing.is_alive()
        guard.nodes.clear()
        bench.nodes._lost.clear()
        bench.nodes._kept_out.clear()
        placing.join(20)
        assert not placing.is_alive()

    def test_a_pipeline_without_a_place_goes_on_as_soon_as_it_has_one(self, make, guard: FakeGuard):
        bench = make("a", "b", guard=guard)
        guard.nodes.update({"a", "b"})

        def allow(_: object) -> None:
            if len(bench.events("no place")) == 1:
                guard.nodes.discard("b")

        guard.before_answer = allow
        assert str(bench.nodes.placed(layout("6@a"))) == "6@b"

    @given(st.data())
    def test_whatever_is_forbidden_the_place_is_allowed(self, data: st.DataObject):
        guard = FakeGuard()
        bench = Bench(*"abcd", guard=guard)
        counts = data.draw(st.sampled_from(["6", "3,3", "2,2,2", "1,1,1,1,1,1"])).split(",")
        text = ",".join(f"{count}@{data.draw(st.sampled_from('abcd'))}" for count in counts)
        names = data.draw(st.permutations("abcd"))
        guard.nodes.update(names[: data.draw(st.integers(0, 2))])
        guard.ways.update(data.draw(st.sets(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")))))
        bench.nodes.lose(names[2], "gone")
        place = bench.nodes.placed(layout(text))
        assert not place.nodes & {names[2], *guard.nodes}
        chain = [stage.node for stage in place.stages]
        assert not {(one, other) for one, other in itertools.pairwise(chain) if one != other} & guard.ways

    def test_what_a_forbidden_node_held_is_erased(self, make):
        bench = make("a", "b", "c")
        bench.nodes.lose("c", "gone")
        assert bench.nodes.scrub_left(layout("2@a,2@b,2@c"), layout("6@a")) == []
        assert {name: bench[name].asked_for("scrub") for name in "abc"} == {"a": [], "b": [[[2, 3]]], "c": []}

    def test_a_forbidden_node_is_not_opened_and_counts_as_kept_out(self, make, guard: FakeGuard):
        bench = make("edge-1", "edge-2", guard=guard)
        guard.nodes.add("edge-2")
        bench.nodes.open(lambda _: (b"tiny", None))
        assert bench["edge-2"].asked == []
        assert (bench.nodes.names(), bench.nodes.lost_names()) == (["edge-1"], frozenset())
        with pytest.raises(ChangeForbidden, match="edge-2 is in the US"):
            bench.nodes.check(layout("3@edge-1,3@edge-2"))
        (told,) = bench.events("node kept out")
        assert told["node"] == "edge-2"

    def test_a_node_that_nobody_spoke_for_is_not_forbidden_for_good(self, make, guard: FakeGuard):
        bench = make("edge-1", guard=guard)
        guard.known = False
        bench.nodes.open(lambda _: (b"tiny", None))
        assert bench["edge-1"].asked == []
        with pytest.raises(GuardSilent):
            bench.nodes.check(layout("6@edge-1"))

    def test_it_is_opened_when_it_is_allowed(self, make, guard: FakeGuard):
        bench = make("edge-1", "edge-2", guard=guard)
        guard.nodes.add("edge-2")
        bench.nodes.open(lambda _: (b"tiny", None))
        bench.nodes.reserve(SHAPE, [layout("6@edge-1")])
        guard.nodes.clear()
        assert eventually(lambda: bench.nodes.names() == ["edge-1", "edge-2"])
        assert (len(bench["edge-2"].asked_for("open")), bench["edge-2"].lost) == (1, None)
        bench.nodes.check(layout("3@edge-1,3@edge-2"))

    def test_a_lost_node_that_is_forbidden_meanwhile_is_not_taken_back(self, make, guard: FakeGuard):
        bench = make("edge-1", "edge-2", guard=guard)
        bench.nodes.open(lambda _: (b"tiny", None))
        guard.nodes.add("edge-1")
        bench.nodes.lose("edge-1", "is silent")
        assert eventually(lambda: bench.events("node kept out"))
        asked = len(guard.asked)
        assert eventually(lambda: len(guard.asked) > asked + 2)
        assert len(bench["edge-1"].asked_for("open")) == 1
        assert len(bench.events("node kept out")) == 1


class TestMigration:
    def test_layers_that_stay_on_their_node_are_not_copied(self, make):
        assert make("a", "b").nodes.copy("p.1", layout("3@a,3@b"), layout("1@a,2@a,3@b")) is None

    def test_each_pair_of_nodes_has_a_copy_of_its_own_which_the_target_is_told_of_first(self, make):
        bench = make("a", "b", "c")
        order: list[str] = []
        for node in bench.remote.values():
            ask = node._ask
            node._ask = lambda what, *rest, ask=ask: (order.append(what), ask(what, *rest))[1]  # type: ignore[method-assign]
        migration = bench.nodes.copy("p.1", layout("3@a,3@b"), layout("2@a,2@c,2@a"))
        assert migration is not None
        assert bench["a"].asked_for("copy_to") == [["c", "p.1.0", [2]]]
        assert bench["b"].asked_for("copy_to") == [["c", "p.1.1", [3]], ["a", "p.1.2", [4, 5]]]
        assert bench["c"].asked_for("allow_copy") == [["p.1.0", "a"], ["p.1.1", "b"]]
        assert order == ["allow_copy", "copy_to"] * 3
        migration.end()

    def test_a_round_is_one_of_all_copies_side_by_side(self, make):
        bench = make("a", "b")
        migration = bench.nodes.copy("p.1", layout("3@a,3@b"), layout("3@b,3@a"))
        assert migration is not None
        gate = threading.Barrier(2)  # nobody gets through alone
        for name in "ab":
            bench[name].copies[0].gate = gate
        assert migration.stale_bytes() == 600
        first, second = migration.round(), migration.round()
        assert [(copied.sent_bytes, copied.stale_bytes) for copied in (first, second)] == [(600, 6), (60, 6)]
        assert migration.finish() == (14, {1: 1, 3: 1, 5: 1})
        migration.end()

    def test_the_copies_share_the_pace(self, make):
        migration = make("a", "b").nodes.copy("p.1", layout("3@a,3@b"), layout("3@b,3@a"))
        assert migration is not None
        for pace in (8e6, None):
            migration.pace(pace)
        assert [leg.copy.paces for leg in migration._legs] == [[4e6, None]] * 2
        migration.end()

    def test_a_round_fails_with_the_error_of_a_copy(self, make):
        bench = make("a", "b")
        migration = bench.nodes.copy("p.1", layout("3@a,3@b"), layout("3@b,3@a"))
        assert migration is not None
        bench["b"].copies[0].failing["round"] = CallError("the bulk link to a broke")
        with pytest.raises(CallError, match="the bulk link to a broke"):
            migration.round()
        assert migration.stop() == []
        assert all(bench[name].copies[0].stopped for name in "ab")
        migration.end()

    def test_when_one_copy_cannot_begin_those_that_did_are_ended_and_nobody_expects_anything(self, make):
        bench = make("a", "b", "c")
        bench["b"].failing["copy_to"] = CallError("refused")
        bench["a"].failing["forget_copy"] = NodeError("node a is lost")
        with pytest.raises(CallError, match="refused"):
            bench.nodes.copy("p.1", layout("3@a,3@b"), layout("3@c,3@a"))
        assert bench["a"].copies[0].ended
        assert bench["c"].asked_for("forget_copy") == [["p.1.0"]]
        assert bench["a"].asked_for("forget_copy") == [["p.1.1"]]

    @pytest.mark.parametrize("committed", [True, False])
    def test_what_is_left_over_is_erased_where_it_is_not_needed(self, make, committed: bool):
        bench = make("a", "b")
        migration = bench.nodes.copy("p.1", layout("6@a"), layout("4@a,2@b"))
        assert migration is not None
        assert (migration.scrub_source() if committed else migration.scrub_target()) == []
        scrubbed = {name for name in "ab" if bench[name].asked_for("scrub") == [[[4, 5]]]}
        assert scrubbed == ({"a"} if committed else {"b"})
        assert bench["a"].copies[0].ended
        assert bench["b"].asked_for("forget_copy") == [["p.1.0"]]

    def test_what_cannot_be_done_in_the_end_is_told_and_the_rest_is_done(self, make):
        bench = make("a", "b")
        migration = bench.nodes.copy("p.1", layout("3@a,3@b"), layout("3@b,3@a"))
        assert migration is not None
        bench["a"].copies[0].failing.update(end=NodeError("node a is lost"), stop=NodeError("node a is lost"))
        bench["a"].failing["scrub"] = NodeError("node a is lost")
        assert migration.stop() == ["NodeError: node a is lost"]
        assert migration.scrub_source() == ["NodeError: node a is lost"] * 2
        assert bench["b"].asked_for("scrub") == [[[3, 4, 5]]]
        assert bench["b"].copies[0].ended

    def test_a_migration_of_nothing_is_over_at_once(self):
        migration = Migration("p.1")
        assert (migration.round().sent_bytes, migration.finish(), migration.end()) == (0, (0, {}), [])
