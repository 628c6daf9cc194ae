"""For random inventories and intents the compiler says what trying everything says."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from intents.compilation import Compiled, compile_intents
from intents.compilation.explanation import explain
from intents.compilation.judging import Judge
from intents.compilation.nearest import nearest_change
from intents.compilation.placement import place
from intents.compilation.problem import Problem
from intents.compilation.vacuous import find_vacuous
from intents.model.inventory import Inventory
from intents.model.refusal import Refusal, RefusalKind
from tests.unit.intents.compilation import oracle
from tests.unit.intents.compilation.worlds import worlds

thorough = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
World = tuple[Inventory, list]


def _where(inventory: Inventory, compiled: Compiled) -> dict[str, str]:
    now = {each.name: each.node for each in inventory.workloads if each.node is not None}
    return {**now, **{each.workload: each.node for each in compiled.placements}}


@thorough
@given(worlds())
def test_it_compiles_exactly_what_can_be_met(world: World) -> None:
    inventory, intents = world
    result = compile_intents(inventory, intents)
    if isinstance(result, Refusal) and result.kind is RefusalKind.VACUOUS:
        return
    assert isinstance(result, Compiled) == oracle.feasible(inventory, intents), result


@thorough
@given(worlds())
def test_what_it_compiles_meets_the_intents(world: World) -> None:
    inventory, intents = world
    result = compile_intents(inventory, intents)
    assume(isinstance(result, Compiled))
    where = _where(inventory, result)
    assert [each.workload for each in result.placements] == oracle.movable(inventory, intents)
    assert oracle.all_hold(inventory, intents, where)
    for placement in result.placements:
        assert placement.node in placement.allowed_nodes
        for spec in oracle.specs(intents):
            subjects = oracle.meeting(spec.subjects, inventory.workloads)
            for rule in spec.placement:
                if placement.workload in subjects and rule.strength == "required" and rule.at_least is None:
                    assert set(placement.allowed_nodes) <= oracle.meeting(rule.nodes, inventory.nodes)


@thorough
@given(worlds())
def test_every_pair_has_its_best_path_or_is_cut_off(world: World) -> None:
    inventory, intents = world
    result = compile_intents(inventory, intents)
    assume(isinstance(result, Compiled))
    where = _where(inventory, result)
    every = oracle.specs(intents)
    about, cut = oracle.rules_about(inventory, every, where), oracle.isolated(inventory, every)
    routes = {(route.source, route.target): route for route in result.routes}
    expected_blocked = {(one[1], other[1]) for one, other in cut}
    for pair, rules in about.items():
        names = (pair[0][1], pair[1][1])
        possible = oracle.compliant(inventory, rules, pair, where)
        running = all(oracle.node_of(end, where) is not None for end in pair)
        if pair in cut or not possible:
            assert names not in routes
            if running and any(rule.strength == "required" for rule in rules):
                expected_blocked.add(names)
        else:
            path = (routes[names].path, routes[names].links)
            assert path in possible
            assert oracle.cost(inventory, rules, path) == min(oracle.cost(inventory, rules, p) for p in possible)
    assert set(result.blocked) == expected_blocked
    assert len(routes) == len(result.routes) <= len(about)


@thorough
@given(worlds())
def test_an_explanation_cannot_be_made_smaller(world: World) -> None:
    inventory, intents = world
    judge = Judge(inventory)
    assume(find_vacuous(inventory, intents, judge) is None)
    problem = Problem(inventory, intents, judge)
    assume(place(problem, problem.hard) is None)
    explanation = explain(problem)
    assert place(problem, explanation.rules) is None
    assume(inventory.nodes)
    for left_out in explanation.rules:
        assert place(problem, [rule for rule in explanation.rules if rule is not left_out]) is not None
    assert set(explanation.intents) == {rule.id.intent for rule in explanation.rules}


@thorough
@given(worlds())
def test_the_nearest_change_works(world: World) -> None:
    inventory, intents = world
    judge = Judge(inventory)
    assume(find_vacuous(inventory, intents, judge) is None)
    problem = Problem(inventory, intents, judge)
    assume(place(problem, problem.hard) is None)
    change = nearest_change(problem, intents, explain(problem))
    if change is not None:
        assert oracle.feasible(change.inventory, change.intents), change.words
        assert (change.inventory, list(change.intents)) != (inventory, intents)


@thorough
@given(worlds(most=3))
def test_one_more_intent_allows_nothing_more(world: World) -> None:
    inventory, intents = world
    all_of_them = compile_intents(inventory, intents)
    without = compile_intents(inventory, intents[:-1])
    assume(isinstance(all_of_them, Compiled) and isinstance(without, Compiled))
    more = {placement.workload: placement for placement in all_of_them.placements}
    for placement in without.placements:
        assert set(more[placement.workload].allowed_nodes) <= set(placement.allowed_nodes)
    assert oracle.all_hold(inventory, intents[:-1], _where(inventory, all_of_them))


@thorough
@given(worlds(parallel=False), st.integers(0, 2**32))
def test_the_order_of_lists_does_not_matter(world: World, seed: int) -> None:
    inventory, intents = world
    rng = random.Random(seed)
    lists = {name: list(getattr(inventory, name)) for name in ("nodes", "workloads", "switches", "links")}
    for each in lists.values():
        rng.shuffle(each)
    other = Inventory.model_construct(**{name: tuple(each) for name, each in lists.items()})
    shuffled = rng.sample(intents, len(intents))
    one, two = compile_intents(inventory, intents), compile_intents(other, shuffled)
    if isinstance(one, Refusal):
        assert two == one
        return
    assert (two.placements, two.blocked, two.flows, two.kubernetes) == (
        one.placements,
        one.blocked,
        one.flows,
        one.kubernetes,
    )
    assert [route.path for route in two.routes] == [route.path for route in one.routes]
