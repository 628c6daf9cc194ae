"""Where layers go from forbidden nodes, and what holds of it whatever the layout is."""

from collections import Counter
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intents.relocation import Placed, relocate

NODES = "abcdef"


def layout(text: str) -> tuple[Placed, ...]:
    return tuple(Placed(int(layers), node) for layers, node in (stage.split("@") for stage in text.split(",")))


def written(stages: tuple[Placed, ...] | None) -> str | None:
    return None if stages is None else ",".join(f"{each.layers}@{each.node}" for each in stages)


def nodes_by_layer(stages: tuple[Placed, ...]) -> list[str]:
    return [each.node for each in stages for _ in range(each.layers)]


@pytest.mark.parametrize(
    ("now", "allowed", "then"),
    [
        ("10@a,10@b,10@c", "abc", "10@a,10@b,10@c"),
        ("10@a,10@b,10@c", "ac", "15@a,15@c"),
        ("10@a,10@b,10@c", "acd", "10@a,10@d,10@c"),
        ("15@a,15@b", "a", "30@a"),
        ("15@a,15@b", "c", "30@c"),
        ("15@a,15@b", "cd", "15@c,15@d"),
        ("30@b", "acde", "30@a"),
        ("20@a,5@b,2@c", "acd", "20@a,7@c"),
        ("4@a,8@b,8@d,4@c", "ac", "12@a,12@c"),
        ("10@a,10@b,10@a", "a", "20@a,10@a"),
        ("1@a,6@x,1@b,6@y,1@c", "abc", "5@a,5@b,5@c"),
        ("15@a,15@b", "", None),
    ],
)
def test_layers_of_forbidden_stages_are_shared_evenly(now: str, allowed: str, then: str | None):
    assert written(relocate(layout(now), set(allowed))) == then


class TestRoom:
    def test_a_full_node_gets_no_more_than_it_has_room_for(self):
        assert written(relocate(layout("10@a,10@b,10@c"), set("ac"), room={"a": 12})) == "12@a,18@c"

    def test_more_nodes_are_recruited_where_one_has_no_room(self):
        assert written(relocate(layout("4@a,8@b"), set("acd"), room={"a": 4, "c": 4, "d": 5})) == "4@a,4@d,4@c"

    def test_without_room_there_is_no_layout(self):
        assert relocate(layout("10@a,10@b"), set("ac"), room={"a": 12, "c": 7}) is None

    def test_who_has_too_much_already_keeps_it_and_gets_nothing(self):
        assert written(relocate(layout("10@a,10@b,5@c"), set("ac"), room={"a": 3})) == "10@a,15@c"

    def test_those_with_more_room_are_recruited_first(self):
        assert written(relocate(layout("10@b"), set("cde"), room={"c": 10, "d": 20, "e": 20})) == "10@d"


class TestWays:
    def test_stages_that_cannot_reach_each_other_do_not_come_to_stand_side_by_side(self):
        barred = {("a", "c")}
        joined = lambda a, b: (a, b) not in barred  # noqa: E731
        assert relocate(layout("10@a,10@b,10@c"), set("ac"), joined=joined) is None
        assert written(relocate(layout("20@a,1@b,20@c"), set("acd"), joined=joined)) == "20@a,1@d,20@c"

    def test_stages_that_stay_must_reach_each_other_too(self):
        joined = lambda a, b: (a, b) != ("a", "c")  # noqa: E731
        assert relocate(layout("5@a,5@c,5@b"), set("ac"), joined=joined) is None

    def test_recruits_are_ordered_so_that_they_reach_each_other(self):
        joined = lambda a, b: (a, b) in {("a", "d"), ("d", "c")}  # noqa: E731
        assert written(relocate(layout("6@a,6@x,6@y"), set("acd"), joined=joined)) == "6@a,6@d,6@c"


stages = st.lists(st.builds(Placed, st.integers(1, 6), st.sampled_from(NODES)), min_size=1, max_size=6).map(tuple)
some = st.sets(st.sampled_from(NODES))
rooms = st.dictionaries(st.sampled_from(NODES), st.integers(0, 12))
pairs = st.sets(st.sampled_from(list(product(NODES, NODES))))


@given(stages, some, rooms, pairs)
def test_laws(now: tuple[Placed, ...], allowed: set[str], room: dict[str, int], barred: set[tuple[str, str]]):
    then = relocate(now, allowed, room=room, joined=lambda a, b: (a, b) not in barred)
    assert then == relocate(now, allowed, room=room, joined=lambda a, b: (a, b) not in barred)
    if {each.node for each in now} <= allowed:
        assert then == now
        return
    if then is None:
        return
    before, after = nodes_by_layer(now), nodes_by_layer(then)
    assert len(after) == len(before)
    assert all(each.layers > 0 for each in then)
    assert set(after) <= allowed
    assert all(a == b for b, a in zip(before, after, strict=True) if b in allowed)
    held, holds = Counter(before), Counter(after)
    assert all(holds[node] <= max(room.get(node, len(after)), held[node]) for node in holds)
    assert all(a.node == b.node or (a.node, b.node) not in barred for a, b in pairwise(then))
    kept = [each.node for each in now if each.node in allowed]
    assert len(then) <= len(kept) + len(set(after) - set(kept))  # a recruit has one stage
    rest = iter(each.node for each in then)
    assert all(node in rest for node in kept)  # in the same order


@given(stages, some)
def test_there_is_a_layout_if_and_only_if_a_node_is_allowed(now: tuple[Placed, ...], allowed: set[str]):
    assert (relocate(now, allowed) is None) == (not allowed)


@given(stages, some.filter(bool))
def test_no_other_layout_has_a_fullest_node_with_fewer_layers(now: tuple[Placed, ...], allowed: set[str]):
    """Compared with every way to give each forbidden layer to a neighbour, or to one recruit a forbidden stage."""
    then = relocate(now, allowed)
    assert then is not None
    fullest = max(Counter(nodes_by_layer(then)).values())
    assert fullest <= min(map(_fullest, _merged_only(now, allowed)), default=fullest)


def _merged_only(now: tuple[Placed, ...], allowed: set[str]) -> list[list[str]]:
    """Return nodes by layer of each layout in which the stages beside a gap take all of its layers."""
    found: list[list[str]] = [[]]
    runs: list[tuple[bool, list[str]]] = []
    for node in nodes_by_layer(now):
        if not runs or runs[-1][0] != (node in allowed):
            runs.append((node in allowed, []))
        runs[-1][1].append(node)
    for position, (stays, run) in enumerate(runs):
        left = runs[position - 1][1][-1] if position else None
        right = runs[position + 1][1][0] if position + 1 < len(runs) else None
        if stays:
            ways = [run]
        elif left is None or right is None:
            only = left or right
            ways = [] if only is None else [[only] * len(run)]
        else:
            ways = [[left] * cut + [right] * (len(run) - cut) for cut in range(len(run) + 1)]
        found = [head + way for head, way in product(found, ways)]
    return found


def _fullest(nodes: list[str]) -> int:
    return max(Counter(nodes).values())


def test_all_idle_nodes_are_considered_however_many_there_are():
    many = {f"n{number:02}" for number in range(40)}
    assert all(relocate(layout("8@x"), set(two)) is not None for two in combinations(sorted(many)[:5], 2))
    only = "n39"
    joined = lambda a, b: a == "a" and b == only  # noqa: E731
    assert written(relocate(layout("9@a,8@x"), many | {"a"}, joined=joined)) == f"9@a,8@{only}"
