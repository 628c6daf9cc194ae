"""Flow rules carry packets along the routes and nowhere else, also while they are being replaced."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from intents.compilation import Compiled, compile_intents
from intents.compilation.difference import Enforced, difference
from intents.model.inventory import Inventory
from tests.unit.intents.compilation import oracle
from tests.unit.intents.compilation.network import Network
from tests.unit.intents.compilation.worlds import World, intent, random_inventory, random_spec, worlds

if TYPE_CHECKING:
    from collections.abc import Iterator

thorough = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def _where(inventory: Inventory, compiled: Compiled) -> dict[str, str]:
    now = {each.name: each.node for each in inventory.workloads if each.node is not None}
    return {**now, **{each.workload: each.node for each in compiled.placements}}


def _ip(network: Network, name: str) -> str:
    addresses = network.addresses
    return addresses.workload_ip.get(name) or addresses.node_ip[name]


def _node(name: str, where: dict[str, str]) -> str:
    return where.get(name, name)


@thorough
@given(worlds())
def test_packets_take_the_routes_and_blocked_ones_stop_at_the_first_switch(world: World) -> None:
    inventory, intents = world
    compiled = compile_intents(inventory, intents)
    assume(isinstance(compiled, Compiled))
    network, where = Network(inventory, compiled.flows), _where(inventory, compiled)
    for route in compiled.routes:
        start, end = _node(route.source, where), _node(route.target, where)
        if route.path:
            walk = network.send(_ip(network, route.source), _ip(network, route.target), inventory.node[start].switch)
            assert (walk.path, walk.node) == (route.path, end)
    for source, target in compiled.blocked:
        start = inventory.node.get(_node(source, where))
        if start is not None and start.switch is not None:
            walk = network.send(_ip(network, source), _ip(network, target), start.switch)
            assert (walk.path, walk.node) == ((start.switch,), None)


@thorough
@given(worlds())
def test_there_is_one_rule_for_each_switch_of_a_route(world: World) -> None:
    inventory, intents = world
    compiled = compile_intents(inventory, intents)
    assume(isinstance(compiled, Compiled))
    forwarding = [rule for rule in compiled.flows if rule["treatment"]["instructions"]]
    assert len(forwarding) == sum(len(route.path) for route in compiled.routes)
    keys = [(rule["deviceId"], rule["priority"], str(rule["selector"])) for rule in compiled.flows]
    assert len(keys) == len(set(keys))


@thorough
@given(worlds())
def test_a_lost_rule_of_a_subject_lets_nothing_through(world: World) -> None:
    """Under whatever else forwards packets at a lower priority: the default of a hard rule stops them."""
    inventory, intents = world
    compiled = compile_intents(inventory, intents)
    assume(isinstance(compiled, Compiled))
    about = oracle.rules_about(inventory, oracle.specs(intents), _where(inventory, compiled))
    hard = {(a[1], b[1]) for (a, b), rules in about.items() if any(rule.strength == "required" for rule in rules)}
    network = Network(inventory, compiled.flows)
    for rule in compiled.flows:
        if rule["treatment"]["instructions"]:
            addresses = [each["ip"].removesuffix("/32") for each in rule["selector"]["criteria"] if "ip" in each]
            names = [
                route
                for route in compiled.routes
                if [_ip(network, route.source), _ip(network, route.target)] == addresses
                and (route.source, route.target) in hard
            ]
            for route in names:
                network.remove(rule)
                switch = next(name for name, device in network.addresses.device.items() if device == rule["deviceId"])
                assert network.stops(*addresses, switch), route
                network.add(rule)


@st.composite
def _changes(draw: st.DrawFn) -> tuple[Inventory, list, Inventory, list]:
    """Intents that change, and labels and links that do."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    inventory = random_inventory(rng, parallel=True)
    specs = [random_spec(rng, inventory) for _ in range(4)]
    old = [intent(f"i{number}", spec) for number, spec in enumerate(specs[: rng.randint(0, 3)])]
    new = [intent(f"i{number}", spec) for number, spec in enumerate(specs) if rng.random() < 0.6]
    links = tuple(
        link.model_copy(update={"up": rng.random() < 0.85}) if rng.random() < 0.3 else link for link in inventory.links
    )
    fields = {name: getattr(inventory, name) for name in ("nodes", "workloads", "switches")}
    return inventory, old, Inventory.model_construct(**fields, links=links), new


def _steps(change: tuple[Inventory, list, Inventory, list]) -> Iterator[tuple[Network, Compiled, Compiled]]:
    """Go through the states of the network once all new drops are in place, each with the old plan and the new one."""
    inventory, old_intents, changed, new_intents = change
    old, new = compile_intents(inventory, old_intents), compile_intents(changed, new_intents)
    assume(isinstance(old, Compiled) and isinstance(new, Compiled))
    network = Network(changed, old.flows)
    steps = difference(Enforced(inventory, old), Enforced(changed, new), new_intents)
    dropping = True
    for step in steps:
        if step.what == "manifest":
            continue
        if not (step.action == "add" and not step.body["treatment"]["instructions"]):
            if dropping:
                yield network, old, new
            dropping = False
        (network.add if step.action == "add" else network.remove)(step.body)
        if not dropping:
            yield network, old, new
    final = Network(changed, new.flows)
    assert network.tables() == final.tables()


@thorough
@given(_changes())
def test_nothing_forbidden_passes_while_rules_are_replaced(change: tuple[Inventory, list, Inventory, list]) -> None:
    before, _, inventory, intents = change
    every = oracle.specs(intents)
    for network, old, new in _steps(change):
        were, where = _where(before, old), _where(inventory, new)
        about, cut = oracle.rules_about(inventory, every, where), oracle.isolated(inventory, every)
        for pair in {*about, *cut}:
            node = oracle.node_of(pair[0], where)
            hard = [rule for rule in about.get(pair, []) if rule.strength == "required"]
            if node is None or not (hard or pair in cut):
                continue
            walk = network.send(_ip(network, pair[0][1]), _ip(network, pair[1][1]), inventory.node[node].switch)
            assert not walk.looped
            if walk.node is not None:
                assert pair not in cut
                possible = oracle.compliant(inventory, hard, pair, where)
                if walk.node == oracle.node_of(pair[1], were):  # to where the target was: fine, on an allowed path
                    possible += oracle.compliant(inventory, hard, pair, where | {pair[1][1]: walk.node})
                alone = (walk.path[:1], ())  # to where the target was, on the switch of where it will be
                if all(oracle.path_meets(inventory, rule, alone) for rule in hard):
                    possible.append(alone)
                assert walk.path in {path for path, _ in possible}
