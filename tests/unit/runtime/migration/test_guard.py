"""What a guard is asked, and that nothing is allowed without its word, or later than its time."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.layout import Layout
from runtime.migration.errors import ChangeForbidden, GuardAsked, GuardSilent
from runtime.migration.guard import Permission, Question, questions
from tests.unit.runtime.migration.fake_effects import DEADLINE_S
from tests.unit.runtime.migration.fake_guard import FakeGuard


def layout(text: str) -> Layout:
    return Layout.parse(text, 6)


A_B, A_C = layout("3@a,3@b"), layout("3@a,3@c")


class TestQuestions:
    def test_a_change_is_asked_about_kv_that_moves_and_then_about_prompts_along_the_new_stages(self):
        assert questions(A_B, A_C, "head") == (
            Question(("a", "b"), ("a", "c"), (("b", "c"),), "kv"),
            Question((), ("a", "c"), (("a", "c"),), "prompts"),
        )

    def test_where_nothing_is_carried_over_old_nodes_are_no_matter(self):
        assert questions(None, A_C, "head") == (Question((), ("a", "c"), (("a", "c"),), "prompts"),)
        assert questions(layout("6@a"), layout("2@a,4@a"), "head") == (Question((), ("a",), (), "prompts"),)

    def test_the_node_of_the_head_itself_has_the_heads_name(self):
        assert questions(layout("6"), layout("3,3@b"), "edge-0") == (
            Question(("edge-0",), ("b", "edge-0"), (("edge-0", "b"),), "kv"),
            Question((), ("b", "edge-0"), (("edge-0", "b"),), "prompts"),
        )

    @given(st.data())
    def test_every_byte_between_two_nodes_is_asked_about(self, data: st.DataObject):
        def drawn() -> Layout:
            counts = data.draw(st.sampled_from(["6", "3,3", "1,5", "2,2,2", "1,1,1,1,1,1"])).split(",")
            return layout(",".join(f"{count}@{data.draw(st.sampled_from('abcd'))}" for count in counts))

        before, after = drawn(), drawn()
        asked = {each.state: each for each in questions(before, after, "head")}
        for layer in range(6):
            way = before.node_of(layer), after.node_of(layer)
            assert way[0] == way[1] or way in asked["kv"].transfers
            following = after.node_of(layer), after.node_of(min(layer + 1, 5))
            assert following[0] == following[1] or following in asked["prompts"].transfers
        assert all(set(each.new) == after.nodes for each in asked.values())
        assert "kv" not in asked or set(asked["kv"].old) == before.nodes


@pytest.fixture
def guard() -> Iterator[FakeGuard]:
    guard = FakeGuard()
    yield guard
    if guard.hung is not None:
        guard.hung.set()


def permission(guard: FakeGuard, answer_s: float = DEADLINE_S) -> Permission:
    return Permission(guard, "smollm", "head", answer_s)


def settled(asking: Permission, before: Layout | None, after: Layout) -> None:
    """Begin until there is a ruling."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return asking.begin(before, after)
        except GuardAsked:
            assert time.monotonic() < deadline
            time.sleep(0.001)


class TestPermission:
    def test_what_is_allowed_passes(self, guard: FakeGuard):
        permission(guard).require(A_B, A_C)
        assert [each.state for each in guard.asked] == ["kv", "prompts"]

    @pytest.mark.parametrize("node", ["b", "c"])
    def test_old_and_new_nodes_are_refused_with_the_reason(self, guard: FakeGuard, node: str):
        guard.nodes.add(node)
        with pytest.raises(ChangeForbidden, match=f"the intents forbid smollm on a, c: {node} is in the US"):
            permission(guard).require(A_B, A_C)

    @pytest.mark.parametrize("way", [("b", "c"), ("a", "c")], ids=["of KV", "of prompts"])
    def test_ways_are_refused(self, guard: FakeGuard, way: tuple[str, str]):
        guard.ways.add(way)
        with pytest.raises(ChangeForbidden):
            permission(guard).require(A_B, A_C)

    def test_a_node_is_asked_about_before_it_gets_weights(self, guard: FakeGuard):
        guard.nodes.add("b")
        permission(guard).require_node("a")
        with pytest.raises(ChangeForbidden):
            permission(guard).require_node("b")
        assert guard.asked == [Question((), ("a",), (), "weights"), Question((), ("b",), (), "weights")]

    def test_a_guard_that_knows_nothing_allows_nothing(self, guard: FakeGuard):
        guard.known = False
        with pytest.raises(GuardSilent, match="it is away"):
            permission(guard).require(A_B, A_C)

    def test_a_guard_that_fails_allows_nothing(self, guard: FakeGuard):
        def fail(_: Question) -> None:
            raise ZeroDivisionError("oh")

        guard.before_answer = fail
        with pytest.raises(GuardSilent, match="ZeroDivisionError: oh"):
            permission(guard).require(A_B, A_C)

    def test_a_guard_that_does_not_answer_in_time_allows_nothing(self, guard: FakeGuard):
        guard.hung = threading.Event()
        with pytest.raises(GuardSilent, match=r"no answer within 0\.01 s"):
            permission(guard, 0.01).require(A_B, A_C)
        asking = permission(guard, 0.01)
        with pytest.raises(GuardSilent, match="no answer"):
            settled(asking, A_B, A_C)

    def test_with_patience_a_guard_that_comes_late_is_heard(self, guard: FakeGuard, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("runtime.migration.guard._ASK_AGAIN_S", 0.001)
        guard.known = False

        def come(_: Question) -> None:
            guard.known = len(guard.asked) > 3

        guard.before_answer = come
        permission(guard).require(None, A_C, patience_s=DEADLINE_S)
        assert len(guard.asked) == 4


class TestBeginning:
    """The engine's thread, which computes for all streams, waits for no guard."""

    def test_it_is_not_waited_for(self, guard: FakeGuard):
        guard.hung = threading.Event()
        asking = permission(guard)
        for _ in range(3):
            with pytest.raises(GuardAsked):
                asking.begin(A_B, A_C)
        guard.hung.set()
        settled(asking, A_B, A_C)
        assert len(guard.asked) == 2  # once, about KV and prompts

    def test_a_ruling_serves_once(self, guard: FakeGuard):
        asking = permission(guard)
        settled(asking, A_B, A_C)
        guard.nodes.add("c")
        with pytest.raises(ChangeForbidden):
            settled(asking, A_B, A_C)

    def test_a_ruling_about_one_layout_says_nothing_of_another(self, guard: FakeGuard):
        asking = permission(guard)
        settled(asking, A_B, A_C)
        guard.nodes.add("d")
        with pytest.raises(ChangeForbidden):
            settled(asking, A_B, layout("3@a,3@d"))

    def test_a_ruling_that_is_old_is_not_used(self, guard: FakeGuard, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("runtime.migration.guard._FRESH_S", 0.0)
        asking = permission(guard)
        asked = questions(A_B, A_C, "head")
        asking._begun[asked] = time.monotonic(), asking._ask(asked)
        asking._begun[asked][1].result(DEADLINE_S)
        guard.nodes.add("c")
        with pytest.raises(ChangeForbidden):
            settled(asking, A_B, A_C)
