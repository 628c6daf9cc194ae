"""A lost node is awaited: it may come back with its weights and KV, and then nothing is computed again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engine import nodes as nodes_module
from runtime.engine.nodes import Nodes
from runtime.migration.journal import Journal
from runtime.transport.channel import ChannelError
from runtime.warm.node import NodeError
from tests.unit.runtime.engine.test_nodes import SHAPE, FakeNode, layout
from tests.unit.runtime.engine.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BOTH = layout("2@edge-1,4@edge-2")


class ResumableNode(FakeNode):
    """A node that says what it was told to when it is asked to resume."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.answer: dict[str, Any] = {"refused": None, "restarted": True, "kept_tokens": 40}
        self.gate = threading.Event()
        self.gate.set()

    def resume(
        self, hosts: Sequence[str], engine: bytes, model: None, shape: object, layers: list[int], timeout_s: float
    ) -> dict[str, Any]:
        self._ask("resume", layers)
        assert self.gate.wait(DEADLINE_S)
        return self.answer


class Bench:
    """Two nodes that serve `BOTH`, and their pipeline's head."""

    def __init__(self, grace_s: float) -> None:
        self.remote = {name: ResumableNode(name) for name in ("edge-1", "edge-2")}
        self.journal = Journal()
        self.nodes = Nodes(self.remote.values(), None, self.journal, None, grace_s)  # type: ignore[arg-type]
        self.nodes.open(lambda _: (b"tiny", None))
        self.nodes.reserve(SHAPE, [BOTH])

    def events(self, event: str) -> list[dict[str, Any]]:
        return [entry.details for entry in self.journal.story("pipeline") if entry.event == event]

    def opened(self, name: str) -> int:
        return len(self.remote[name].asked_for("open"))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    monkeypatch.setattr(nodes_module, "_TAKE_BACK_S", 0.01)
    monkeypatch.setattr(nodes_module, "_LOOK_AGAIN_S", 0.001)
    made: list[Bench] = []

    def bench(grace_s: float = DEADLINE_S) -> Bench:
        made.append(Bench(grace_s))
        return made[-1]

    yield bench
    for one in made:
        for node in one.remote.values():
            node.gate.set()
        one.nodes.close()


def test_a_node_that_is_back_in_time_keeps_its_layers_and_their_kv(make) -> None:
    bench = make()
    assert bench.nodes.lose("edge-2", "it closed its links")
    assert bench.nodes.placed(BOTH) == BOTH
    assert bench.nodes.kv_gone() == {}
    assert bench.remote["edge-2"].asked_for("resume") == [[[2, 3, 4, 5]]]
    assert (bench.opened("edge-2"), bench.nodes.names()) == (1, ["edge-1", "edge-2"])
    (told,) = bench.events("node resumed")
    assert (told["node"], told["restarted"], told["kept_tokens"]) == ("edge-2", True, 40)


def test_it_is_asked_until_it_answers(make) -> None:
    bench = make()
    edge = bench.remote["edge-2"]
    edge.failing["wait_reachable"] = ChannelError("refused")
    edge.failing["resume"] = NodeError("the link broke again")
    bench.nodes.lose("edge-2", "it closed its links")
    placed = threading.Thread(target=bench.nodes.placed, args=(BOTH,))
    placed.start()
    assert eventually(lambda: len(edge.asked_for("wait_reachable")) > 3)
    assert edge.asked_for("resume") == []
    del edge.failing["wait_reachable"]
    assert eventually(lambda: len(edge.asked_for("resume")) > 3)
    assert bench.opened("edge-2") == 1  # opened anew, its KV would be gone
    del edge.failing["resume"]
    placed.join(DEADLINE_S)
    assert (bench.nodes.names(), bench.nodes.kv_gone()) == (["edge-1", "edge-2"], {})


def test_all_nodes_may_be_away_at_once(make) -> None:
    bench = make()
    for name in bench.remote:
        bench.nodes.lose(name, "power")
    assert bench.nodes.placed(BOTH) == BOTH
    assert bench.nodes.kv_gone() == {}


def test_one_that_is_lost_while_another_is_awaited_is_awaited_too(make) -> None:
    bench = make()
    bench.remote["edge-2"].gate.clear()
    bench.nodes.lose("edge-2", "power")
    found: list[Any] = []
    placed = threading.Thread(target=lambda: found.append(bench.nodes.placed(BOTH)))
    placed.start()
    assert eventually(lambda: bench.remote["edge-2"].asked_for("resume"))
    bench.nodes.lose("edge-1", "power")
    bench.remote["edge-2"].gate.set()
    placed.join(DEADLINE_S)
    assert found == [BOTH]
    assert bench.nodes.kv_gone() == {}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda edge: edge.answer.update(refused="has nothing left"), "has nothing left"),
        (lambda edge: edge.failing.update(wait_reachable=ChannelError("refused")), "it was not back within"),
        (lambda edge: edge.gate.clear(), "it was not back within"),
    ],
    ids=["refuses", "away", "hangs"],
)
def test_else_its_layers_are_placed_elsewhere_and_it_is_opened_anew(make, spoil, reason: str) -> None:
    bench = make(grace_s=0.3)
    edge = bench.remote["edge-2"]
    spoil(edge)
    bench.nodes.lose("edge-2", "it closed its links")
    assert str(bench.nodes.placed(BOTH)) == "6@edge-1"
    assert list(bench.nodes.kv_gone()) == ["edge-2"]
    assert reason in bench.events("node not resumed")[0]["reason"]
    edge.failing.clear()
    edge.gate.set()
    assert eventually(lambda: bench.opened("edge-2") == 2)
    assert eventually(lambda: bench.nodes.names() == ["edge-1", "edge-2"])
    assert bench.events("node resumed") == []


def test_without_grace_it_is_as_if_nothing_was_left(make) -> None:
    bench = make(grace_s=0.0)
    bench.nodes.lose("edge-2", "it closed its links")
    assert str(bench.nodes.placed(BOTH)) == "6@edge-1"
    assert bench.remote["edge-2"].asked_for("resume") == []


def test_a_node_that_is_lost_again_at_once_gets_no_second_grace(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended it may be what it is given to compute."""
    bench = make()
    bench.nodes.lose("edge-2", "it closed its links")
    assert bench.nodes.placed(BOTH) == BOTH
    bench.nodes.lose("edge-2", "it closed them again")
    assert str(bench.nodes.placed(BOTH)) == "6@edge-1"
    monkeypatch.setattr(nodes_module, "_STEADY_S", 0.0)
    assert eventually(lambda: bench.nodes.names() == ["edge-1", "edge-2"])
    bench.nodes.lose("edge-2", "much later")
    assert bench.nodes.placed(BOTH) == BOTH


def test_a_node_that_was_there_all_the_time_while_another_did_not_reach_it_is_done_without(make) -> None:
    bench = make()
    bench.remote["edge-2"].answer["restarted"] = False
    bench.nodes.lose("edge-2", "edge-1: no way", cut_off=False)
    assert str(bench.nodes.placed(BOTH)) == "6@edge-1"
    assert "another node does not reach it" in bench.events("node not resumed")[0]["reason"]


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_a_link_that_was_away_for_all_is_taken_for_healed_whoever_told_first(make, order: tuple[bool, bool]) -> None:
    bench = make()
    bench.remote["edge-2"].answer["restarted"] = False
    for cut_off in order:
        bench.nodes.lose("edge-2", "silent", cut_off=cut_off)
    assert bench.nodes.placed(BOTH) == BOTH


def test_a_node_that_serves_nothing_is_opened_anew_when_its_time_is_over(make) -> None:
    bench = make(grace_s=0.2)
    bench.nodes.lose("edge-2", "it closed its links")
    assert bench.nodes.placed(layout("6@edge-1")) == layout("6@edge-1")
    assert eventually(lambda: bench.opened("edge-2") == 2)
    assert bench.remote["edge-2"].asked_for("resume") == []


def test_kv_that_is_gone_is_known_until_it_is_computed_again(make) -> None:
    """Also of a node that came back, empty, before anybody looked: the layout is the same, its KV is not."""
    bench = make(grace_s=0.0)
    bench.nodes.lose("edge-2", "it closed its links")
    assert eventually(lambda: bench.nodes.names() == ["edge-1", "edge-2"])
    assert bench.nodes.placed(BOTH) == BOTH
    gone = bench.nodes.kv_gone()
    assert list(gone) == ["edge-2"]
    bench.nodes.lose("edge-2", "once more, while it is computed")
    bench.nodes.kv_renewed(gone)
    assert list(bench.nodes.kv_gone()) == ["edge-2"]
    bench.nodes.kv_renewed(bench.nodes.kv_gone())
    assert bench.nodes.kv_gone() == {}


def test_a_node_that_gets_layers_by_a_change_has_nothing_to_be_computed_again(make) -> None:
    bench = make(grace_s=0.0)
    bench.nodes.lose("edge-2", "it closed its links")
    assert eventually(lambda: bench.nodes.names() == ["edge-1", "edge-2"])
    migration = bench.nodes.copy("p1.1", layout("6@edge-1"), BOTH)
    assert migration is not None
    assert bench.nodes.kv_gone() == {}
    migration.end()
