"""The protocol against a world in which anything may go wrong between any two lines."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.migration.protocol import ImpossibleTransition, Step
from tests.unit.runtime.migration.environment import ON_ONE_NODE, TO_ANOTHER_NODE, BrokenPromise, World


def step_forward(name: str, world: World, way: tuple[str, ...]) -> World:
    following = dict(world.moves())[name]
    try:
        successor = following()
        successor.check()
    except (ImpossibleTransition, BrokenPromise) as error:
        raise AssertionError(f"{error}\nthe way there: {' > '.join((*way, name))}") from error
    assert not successor.stuck, f"nothing can end this change: {' > '.join((*way, name))}"
    return successor


def explore(start: World) -> set[World]:
    """Every world that can be reached, each seen once; fails on the shortest way to a broken promise."""
    seen, ways = {start}, deque([(start, ())])
    while ways:
        world, way = ways.popleft()
        for name, _ in world.moves():
            successor = step_forward(name, world, way)
            if successor not in seen:
                seen.add(successor)
                ways.append((successor, (*way, name)))
    return seen


@pytest.mark.parametrize(("target", "luck"), [(ON_ONE_NODE, 2), (TO_ANOTHER_NODE, 1)], ids=["one node", "two nodes"])
def test_whatever_fails_between_any_two_lines_the_change_ends_and_keeps_every_promise(target, luck):
    worlds = explore(World(target, luck))
    outcomes = {world.step for world in worlds if world.ended}
    assert outcomes == {Step.COMMITTED, Step.ABORTED}


@pytest.mark.parametrize("target", [ON_ONE_NODE, TO_ANOTHER_NODE], ids=["one node", "two nodes"])
def test_nothing_is_said_after_the_end_whatever_is_heard(target):
    for world in explore(World(target, luck=1)):
        if world.ended and world.mailbox:
            assert world._hear().told == world.told


@given(st.data(), st.sampled_from([ON_ONE_NODE, TO_ANOTHER_NODE]), st.integers(0, 12), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_any_amount_of_bad_luck_ends_in_committed_or_aborted(data, target, luck, round_cap):
    world, way = World(target, luck, round_cap), ()
    while (moves := [name for name, _ in world.moves()]) and not (world.ended and not world.mailbox):
        name = data.draw(st.sampled_from(moves))
        world = step_forward(name, world, way)
        way = (*way, name)
    assert world.step in {Step.COMMITTED, Step.ABORTED}


@given(st.data(), st.sampled_from([ON_ONE_NODE, TO_ANOTHER_NODE]))
def test_without_bad_luck_and_with_working_effects_every_change_commits(data, target):
    world, way = World(target, luck=0), ()
    good = ("hear", "chain is ready", "copied enough", "route flips", "switch answers", "first result", "released")
    while not world.ended:
        names = [name for name, _ in world.moves() if name.startswith(good)]
        name = data.draw(st.sampled_from(names))
        world = step_forward(name, world, way)
        way = (*way, name)
    assert world.step is Step.COMMITTED
