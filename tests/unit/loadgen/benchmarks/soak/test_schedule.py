"""The schedule of a soak: the same for one seed, every kind in its share, and nothing that cannot be done."""

from collections import Counter
from itertools import islice
from random import Random

import pytest

from loadgen.benchmarks.soak.schedule import (
    CUTTING,
    DECK,
    KILLING,
    Kind,
    Setting,
    layers_by_node,
    nodes_at,
    random_layers,
    schedule,
)

NODES = ("edge-1", "edge-2")
METHODS = ("pre_copy", "recompute")
LINKED = Setting(NODES, 30, METHODS, ("pulled", "silent"))
DECK_SIZE = sum(DECK.values())


def steps(seed: int, number: int, setting: Setting = LINKED):
    return list(islice(schedule(seed, setting), number))


def test_one_seed_makes_one_schedule_and_another_seed_another():
    assert steps(7, 200) == steps(7, 200)
    assert steps(7, 200)[:50] == steps(7, 50)
    assert steps(7, 50) != steps(8, 50)


def test_steps_are_numbered_from_one():
    assert [step.number for step in steps(1, 40)] == list(range(1, 41))


def test_every_kind_takes_its_share_of_every_deck():
    for first in range(0, 4 * DECK_SIZE, DECK_SIZE):
        dealt = steps(3, first + DECK_SIZE)[first:]
        assert Counter(step.kind for step in dealt) == DECK


def test_the_order_within_a_deck_is_random():
    kinds = [step.kind for step in steps(3, 2 * DECK_SIZE)]
    assert kinds[:DECK_SIZE] != kinds[DECK_SIZE:]


def test_a_link_that_cannot_be_cut_is_not_cut():
    kinds = {step.kind for step in steps(1, 3 * DECK_SIZE, Setting(NODES, 30, METHODS))}
    assert kinds == frozenset(Kind) - CUTTING


def test_most_cards_kill():
    assert sum(DECK[kind] for kind in KILLING) > DECK_SIZE / 2


def test_all_methods_all_ways_to_cut_and_both_sides_are_used():
    dealt = steps(1, 5 * DECK_SIZE)
    assert {step.method for step in dealt} == set(METHODS)
    assert {step.cut for step in dealt} == {"pulled", "silent"}
    assert {step.side for step in dealt} == {"source", "target"}
    assert {step.settled for step in dealt} == {step.together for step in dealt} == {True, False}


def test_there_are_cuts_that_a_connection_outlives_and_longer_ones():
    lengths = [step.away_s for step in steps(1, 20 * DECK_SIZE) if step.kind in CUTTING]
    assert min(lengths) < 3 < 5 < max(lengths) <= 15


@pytest.mark.parametrize("total", [2, 5, 30])
def test_a_random_layout_has_all_layers_and_only_the_nodes_there_are(total):
    choice = Random(1)
    for _ in range(200):
        layers = random_layers(total, NODES, choice)
        parts = [part.split("@") for part in layers.split(",")]
        assert sum(int(number) for number, _ in parts) == total
        assert all(int(number) > 0 and node in NODES for number, node in parts)
        assert len(parts) <= 4


def test_layers_are_found_by_node():
    assert layers_by_node("2@a,1@b,2@a") == {"a": {0, 1, 3, 4}, "b": {2}}


@pytest.mark.parametrize(
    ("before", "after", "source", "target"),
    [
        ("15@a,15@b", "20@a,10@b", ["b"], ["a"]),
        ("15@a,15@b", "15@b,15@a", ["a", "b"], ["a", "b"]),
        ("30@a", "30@b", ["a"], ["b"]),
        ("15@a,15@b", "5@a,10@a,15@b", ["a", "b"], ["a", "b"]),
        ("10@a,20@b", "10@a,10@b,10@a", ["b"], ["a"]),
    ],
)
def test_the_sides_of_a_change_are_the_nodes_that_lose_or_gain_layers(before, after, source, target):
    assert nodes_at("source", before, after) == source
    assert nodes_at("target", before, after) == target
