"""Shortest paths within limits, by hand; random ones are in test_compile_properties."""

from __future__ import annotations

import pytest

from intents.compilation.paths import Found, Limits, Paths, SearchBound
from intents.model.inventory import Inventory


def network(*links: tuple[str, str, float]) -> Inventory:
    names = sorted({end for a, b, _ in links for end in (a, b)})
    return Inventory.model_validate(
        {
            "switches": [{"name": name} for name in names],
            "links": [{"a": a, "b": b, "latency_ms": latency} for a, b, latency in links],
        }
    )


def through(*points: str) -> Limits:
    return Limits(through=frozenset(frozenset({point}) for point in points))


def path(inventory: Inventory, limits: Limits, start: str, end: str) -> str | None:
    found = Paths(inventory).find(limits, start, end)
    return None if found is None else "".join(found.path)


DIAMOND = network(("a", "b", 1), ("b", "d", 1), ("a", "c", 1), ("c", "d", 1), ("a", "d", 2))


def test_equal_latency_is_decided_by_hops_then_by_names() -> None:
    assert path(DIAMOND, Limits(), "a", "d") == "ad"
    assert path(DIAMOND, Limits(switches=frozenset("abcd"), links=frozenset(range(4))), "a", "d") == "abd"


def test_latencies_that_are_no_binary_fractions_add_up() -> None:
    line = network(("a", "b", 0.1), ("b", "c", 0.2))
    assert Paths(line).find(Limits(latency=300_000), "a", "c") == Found((300_000, 2), ("a", "b", "c"))
    assert Paths(line).find(Limits(latency=299_999), "a", "c") is None


def test_of_parallel_links_the_fastest_that_is_allowed_is_taken() -> None:
    paths = Paths(network(("a", "b", 5), ("a", "b", 1)))
    assert paths.links(Limits(), ("a", "b")) == (1,)
    assert paths.links(Limits(links=frozenset({0})), ("a", "b")) == (0,)


def test_a_way_point_off_the_shortest_path_makes_a_detour() -> None:
    assert path(DIAMOND, through("c"), "a", "d") == "acd"
    assert path(DIAMOND, through("a", "d"), "a", "d") == "ad"


def test_no_switch_is_passed_twice_for_a_way_point() -> None:
    """w hangs on b alone: a walk a-b-w-b-c exists, a path does not."""
    assert path(network(("a", "b", 1), ("b", "c", 1), ("b", "w", 1)), through("w"), "a", "c") is None


def test_the_best_walk_may_loop_where_a_longer_path_does_not() -> None:
    ring = network(("a", "b", 1), ("b", "w", 1), ("b", "c", 1), ("w", "x", 9), ("x", "c", 9))
    assert path(ring, through("w"), "a", "c") == "abwxc"


def test_between_a_switch_and_itself_only_that_switch_can_be_passed() -> None:
    assert path(DIAMOND, through("a"), "a", "a") == "a"
    assert path(DIAMOND, through("b"), "a", "a") is None


def test_several_way_points_are_passed_in_whatever_order_is_shortest() -> None:
    grid = network(("a", "b", 1), ("b", "c", 1), ("c", "d", 1), ("a", "c", 1), ("b", "d", 9))
    assert path(grid, through("c", "b"), "a", "d") == "abcd"


def test_a_search_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intents.compilation.paths.STEPS", 1)
    ring = network(("a", "b", 1), ("b", "w", 1), ("b", "c", 1), ("w", "x", 9), ("x", "c", 9))
    with pytest.raises(SearchBound, match="from a to c passes all way points was not decided in 1 steps"):
        Paths(ring).find(through("w"), "a", "c")
