"""The typed intent of somebody who knows the answer: it names the nodes, switches and links of an expectation."""

from intents.benchmark.cases import EVERY_OTHER, Case, RouteExpectation
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
from intents.model.labels import NAME
from intents.model.predicate import named, term


def typed_intent(case: Case) -> PrivacyIntent:
    """Return an intent that says what the case expects, in names only."""
    expect = case.expect
    specs = [
        IntentSpec(subjects=named(w), placement=[PlacementRule(nodes=named(*n))]) for w, n in expect.placement.items()
    ]
    specs += [
        IntentSpec(subjects=named(w), placement=[PlacementRule(nodes=named(*n), strength="preferred")])
        for w, n in expect.prefers.items()
    ]
    specs += [
        IntentSpec(subjects=named(*e.workloads), placement=[PlacementRule(nodes=named(*e.nodes), at_least=e.count)])
        for e in expect.at_least
    ]
    for relation, spreads in (("apart", expect.apart), ("together", expect.together)):
        for e in spreads:
            everyone = named(*e.workloads, *e.others)
            rule = SpreadRule(relation=relation, others=everyone, topology=e.topology)
            specs.append(IntentSpec(subjects=everyone, spread=[rule]))
    specs += [IntentSpec(subjects=named(*e.source), routes=rules) for e in expect.routes if (rules := _route_rules(e))]
    explicit = {pair for pair in expect.blocked if not _cut_off_by_a_route(case, pair)}
    specs += [
        IntentSpec(subjects=named(a), isolation=[IsolationRule(peers=named(b), direction="from_subjects")])
        for a, b in sorted(explicit)
    ]
    for name, e in expect.transfer.items():
        rule = TransferRule(
            state=e.state,
            forbidden=e.forbidden,
            nodes=None if e.nodes is None else named(*e.nodes),
            switches=None if e.switches is None else named(*e.switches),
        )
        specs.append(IntentSpec(subjects=named(name), transfer=[rule]))
    return PrivacyIntent(metadata=IntentMetadata(name="known", sentence=case.sentence), specs=specs)


def _cut_off_by_a_route(case: Case, pair: tuple[str, str]) -> bool:
    return any(e.target == (EVERY_OTHER,) and set(pair) & set(e.source) for e in case.expect.routes)


def _route_rules(e: RouteExpectation) -> list[RouteRule]:
    peers = None if e.target == (EVERY_OTHER,) else named(*e.target)
    direction = "both" if e.both else "from_subjects"
    rules = (
        [
            RouteRule(
                peers=peers,
                direction=direction,
                switches=term(NAME, *e.avoid, op="not_in") if e.avoid else None,
                links=term(NAME, *e.avoid_links, op="not_in") if e.avoid_links else None,
                through=tuple(named(*group) for group in e.through),
                max_latency_ms=e.max_latency_ms,
                min_bandwidth_mbps=e.min_bandwidth_mbps,
            )
        ]
        if e.avoid or e.avoid_links or e.through or e.max_latency_ms or e.min_bandwidth_mbps
        else []
    )
    if e.prefer_path is not None:
        rules.append(RouteRule(peers=peers, direction=direction, switches=named(*e.prefer_path), strength="preferred"))
    return rules
