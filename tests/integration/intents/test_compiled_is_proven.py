"""Whatever the compiler emits satisfies the checker, which knows nothing of it; whatever is changed in it is judged
as by a naive reference."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from intents.compilation import Compiled, compile_intents
from intents.model.intent import (
    IntentMetadata,
    IntentSpec,
    IsolationRule,
    PlacementRule,
    PrivacyIntent,
    RouteRule,
    SpreadRule,
    TransferRule,
)
from intents.model.inventory import Inventory, Link, Node, Switch, Workload
from intents.model.labels import DATA, ENCRYPTED, JURISDICTION, TRUST
from intents.model.predicate import named, opposite, term
from intents.proof.checker import Observed, check
from tests.unit.intents.proof.test_mutations import PAIRS, ROUTES, mutated, naive_verdict, networks

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

COUNTRIES = ["DE", "FR", "US", "US-CA"]


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """Up to six switches and eight nodes; any label may be missing, any link down, any workload without a node."""

    def some(**choices: list[str]) -> dict[str, str]:
        keys = {"country": JURISDICTION, "trust": TRUST, "secret": ENCRYPTED, "data": DATA}
        drawn = {keys[name]: draw(st.sampled_from([None, *values, *values])) for name, values in choices.items()}
        return {key: value for key, value in drawn.items() if value is not None}

    names = [f"s{n}" for n in range(draw(st.integers(1, 6)))]
    switches = tuple(Switch(name=name, labels=some(country=COUNTRIES)) for name in names)
    nodes = tuple(
        Node(
            name=f"n{n}",
            labels=some(country=COUNTRIES, trust=["trusted", "untrusted"]),
            switch=draw(st.sampled_from([*names, *names, *names, None])),
        )
        for n in range(draw(st.integers(1, 8)))
    )
    ends = st.tuples(st.sampled_from(names), st.sampled_from(names)).filter(lambda pair: pair[0] != pair[1])
    links = tuple(
        Link(
            a=a,
            b=b,
            labels=some(secret=["true", "false"]),
            latency_ms=draw(st.integers(1, 5)),
            bandwidth_mbps=draw(st.sampled_from([10, 1000])),
            up=draw(st.integers(0, 9)) > 0,
        )
        for a, b in (draw(st.lists(ends, max_size=12)) if len(names) > 1 else [])
    )
    workloads = tuple(
        Workload(
            name=f"w{n}",
            labels=some(data=["health", "public"]),
            node=draw(st.sampled_from([*(node.name for node in nodes), None])),
            replicas=draw(st.sampled_from([1, 1, 1, 2])),
        )
        for n in range(draw(st.integers(1, 5)))
    )
    return Inventory(nodes=nodes, workloads=workloads, switches=switches, links=links)


PLACES = st.sampled_from(
    [
        term(JURISDICTION, "US", op="not_in"),
        term(JURISDICTION, "DE", "FR"),
        term(JURISDICTION, "US"),
        opposite(term(JURISDICTION, "US", "FR")),
    ]
)
NODES = st.one_of(PLACES, st.sampled_from([term(TRUST, "trusted"), named("n0"), named("n0", "n1", "n2")]))
PEOPLE = st.sampled_from(
    [term(DATA, "health"), term(DATA, "public"), named("w0"), named("w1"), named("w0", "w1", "w2")]
)
PEERS = st.one_of(PEOPLE, st.just(named("n0")))
STRENGTH = st.sampled_from(["required", "required", "preferred"])
DIRECTION = st.sampled_from(["both", "from_subjects", "to_subjects"])


@st.composite
def intents(draw: st.DrawFn) -> PrivacyIntent:
    """One or two specs with any kind of rule."""

    def maybe(rules: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(rules, max_size=1)))

    def limits(what: dict[str, Any]) -> bool:
        return bool(what["through"]) or any(
            what[key] is not None for key in ("switches", "links", "max_latency_ms", "min_bandwidth_mbps")
        )

    routes = st.fixed_dictionaries(
        {
            "peers": st.none() | PEERS,
            "direction": DIRECTION,
            "switches": st.none() | PLACES,
            "links": st.none() | st.just(term(ENCRYPTED, "true")) | PLACES,
            "through": st.just(()) | st.just(()) | st.tuples(PLACES),
            "max_latency_ms": st.none() | st.integers(1, 8),
            "min_bandwidth_mbps": st.none() | st.just(100),
            "strength": STRENGTH,
        }
    ).filter(limits)

    def spec() -> dict[str, Any]:
        return {
            "subjects": draw(PEOPLE),
            "placement": maybe(
                st.builds(PlacementRule, nodes=NODES, at_least=st.sampled_from([None, None, 1, 2]), strength=STRENGTH)
            ),
            "spread": maybe(
                st.builds(
                    SpreadRule,
                    relation=st.sampled_from(["apart", "together"]),
                    others=PEOPLE,
                    topology=st.sampled_from(["node", "jurisdiction"]),
                    strength=STRENGTH,
                )
            ),
            "routes": tuple(RouteRule(**each) for each in maybe(routes)),
            "isolation": maybe(st.builds(IsolationRule, peers=PEOPLE, direction=DIRECTION)),
            "transfer": maybe(st.builds(TransferRule, nodes=NODES)),
        }

    drawn = [spec() for _ in range(draw(st.integers(1, 2)))]
    specs = [each for each in drawn if any(each[key] for key in each.keys() - {"subjects"})]
    assume(specs)
    return PrivacyIntent(
        metadata=IntentMetadata(name=f"i{draw(st.integers(0, 999))}"), specs=tuple(IntentSpec(**each) for each in specs)
    )


def state_of(inventory: Inventory, compiled: Compiled) -> Observed:
    """Return the state in which everything is as the compiler wants it."""
    placement = {each.name: (each.node,) for each in inventory.workloads if each.node is not None}
    placement |= {each.workload: (each.node,) for each in compiled.placements}
    return Observed(placement, list(compiled.flows), inventory, inventory.version, compiled.kubernetes)


@SLOW
@given(
    inventory=inventories(),
    asked=st.lists(intents(), min_size=1, max_size=2, unique_by=lambda each: each.metadata.name),
)
def test_what_is_compiled_holds(inventory: Inventory, asked: list[PrivacyIntent]):
    compiled = compile_intents(inventory, asked)
    assume(isinstance(compiled, Compiled))
    report = check(asked, state_of(inventory, compiled))
    assert report.holds, report.failures


@SLOW
@given(data=st.data(), inventory=networks())
def test_a_changed_rule_of_the_compiler_is_judged_as_the_reference_judges_it(data: st.DataObject, inventory: Inventory):
    stay = {each.name: PlacementRule(nodes=named(str(each.node))) for each in inventory.workloads}
    specs = [IntentSpec(subjects=named(name), placement=(rule,)) for name, rule in stay.items()]
    specs.append(IntentSpec(subjects=term(DATA, "health"), routes=(ROUTES,)))
    asked = [PrivacyIntent(metadata=IntentMetadata(name="i"), specs=tuple(specs))]
    compiled = compile_intents(inventory, asked)
    assume(isinstance(compiled, Compiled) and compiled.flows)
    changed = data.draw(mutated(inventory, list(compiled.flows)))
    report = check(asked, Observed(state_of(inventory, compiled).placement, changed, inventory, inventory.version))
    assert (report.holds, report.safe) == naive_verdict(inventory, changed, PAIRS)
