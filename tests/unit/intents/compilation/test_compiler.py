"""Placements, transfers and refusals of intents made by hand."""

from __future__ import annotations

import pytest

from intents.compilation import Compiled, compile_intents
from intents.compilation.compiled import Placement, Transfer
from intents.errors import IntentFormatError
from intents.model import labels
from intents.model.intent import IsolationRule, PlacementRule, PrivacyIntent, RouteRule, SpreadRule, TransferRule
from intents.model.inventory import Inventory, parse_inventory
from intents.model.predicate import ANYTHING, named, term
from intents.model.refusal import Refusal, RefusalKind
from tests.unit.intents.compilation.worlds import intent

HEALTH = term(labels.DATA, "health")
TRUSTED = PlacementRule(nodes=term(labels.TRUST, "trusted"))
EU = PlacementRule(nodes=term(labels.JURISDICTION, "DE"))
NOT_US = term(labels.JURISDICTION, "US", op="not_in")
WORLD = """
nodes:
- {name: n1, switch: s1, labels: {midstream.dev/jurisdiction: DE, midstream.dev/trust: trusted}}
- {name: n2, switch: s2, labels: {midstream.dev/jurisdiction: US, midstream.dev/trust: trusted}}
- {name: n3, switch: s3, labels: {midstream.dev/jurisdiction: DE}}
- {name: n4, switch: s3, labels: {midstream.dev/jurisdiction: FR, midstream.dev/trust: untrusted}}
workloads:
- {name: api, node: n2, labels: {midstream.dev/data: health}}
- {name: db, node: n3, labels: {midstream.dev/data: health}}
- {name: web, node: n2}
switches:
- {name: s1, labels: {midstream.dev/jurisdiction: DE}}
- {name: s2, labels: {midstream.dev/jurisdiction: US}}
- {name: s3, labels: {midstream.dev/jurisdiction: DE}}
links:
- {a: s1, b: s2, latency_ms: 1}
- {a: s2, b: s3, latency_ms: 1}
- {a: s1, b: s3, latency_ms: 9}
"""
INVENTORY = parse_inventory(WORLD)


def compiled(*intents: PrivacyIntent, inventory: Inventory = INVENTORY) -> Compiled:
    result = compile_intents(inventory, intents)
    assert isinstance(result, Compiled), result
    return result


def refused(*intents: PrivacyIntent, inventory: Inventory = INVENTORY) -> Refusal:
    result = compile_intents(inventory, intents)
    assert isinstance(result, Refusal), result
    return result


class TestPlacement:
    def test_a_workload_stays_where_it_may(self) -> None:
        rules = compiled(intent("eu", subjects=HEALTH, placement=(EU,))).placements
        assert rules == (Placement("api", ("n1", "n3"), "n1"), Placement("db", ("n1", "n3"), "n3"))

    def test_a_wish_moves_it_and_takes_no_node_away(self) -> None:
        wish = PlacementRule(nodes=named("n4"), strength="preferred")
        (placement,) = compiled(intent("x", subjects=named("db"), placement=(wish,))).placements
        assert placement == Placement("db", ("n1", "n2", "n3", "n4"), "n4")

    def test_nodes_are_chosen_so_that_routes_exist(self) -> None:
        world = parse_inventory(WORLD.replace("latency_ms: 9}", "latency_ms: 9, up: false}"))
        rule = RouteRule(peers=named("db"), switches=NOT_US)
        pair = intent("x", subjects=named("api"), placement=(EU,), routes=(rule,))
        assert [each.node for each in compiled(pair, inventory=world).placements] == ["n3"]

    def test_more_workloads_than_nodes_to_keep_apart_is_seen_at_once(self) -> None:
        count = 14
        world = Inventory.model_validate(
            {
                "nodes": [{"name": f"n{number}"} for number in range(count - 1)],
                "workloads": [{"name": f"w{number}"} for number in range(count)],
            }
        )
        apart = intent("x", subjects=ANYTHING, spread=(SpreadRule(relation="apart", others=ANYTHING),))
        assert refused(apart, inventory=world).message.startswith("no placement and routes meet")

    def test_what_must_not_be_migrated_stays(self) -> None:
        stay = intent("x", subjects=named("db"), transfer=(TransferRule(forbidden=True),), placement=(EU,))
        assert compiled(stay).placements[0].node == "n3"
        assert refused(stay, intent("y", subjects=named("db"), placement=(TRUSTED,))).kind is RefusalKind.CONFLICT


class TestRoutes:
    def test_a_pair_without_a_path_is_cut_off_unless_peers_are_named(self) -> None:
        result = compiled(intent("x", subjects=HEALTH, placement=(EU,), routes=(RouteRule(switches=NOT_US),)))
        assert [(route.source, route.target, route.path) for route in result.routes] == [
            ("api", "db", ("s1", "s3")),
            ("db", "api", ("s3", "s1")),
        ]
        assert result.blocked == (("api", "web"), ("db", "web"), ("web", "api"), ("web", "db"))
        named_peers = RouteRule(peers=named("web"), switches=NOT_US)
        assert (
            refused(intent("x", subjects=HEALTH, placement=(EU,), routes=(named_peers,))).kind
            is RefusalKind.UNSATISFIABLE
        )

    def test_a_subject_that_reaches_nobody_is_refused(self) -> None:
        lonely = intent("x", subjects=named("db"), placement=(EU,), routes=(RouteRule(switches=NOT_US),))
        assert refused(lonely).kind is RefusalKind.UNSATISFIABLE

    def test_nodes_can_be_peers(self) -> None:
        rule = RouteRule(peers=named("n1"), direction="from_subjects", switches=NOT_US)
        (route,) = compiled(intent("x", subjects=named("db"), routes=(rule,))).routes
        assert (route.source, route.target, route.path) == ("db", "n1", ("s3", "s1"))

    def test_a_preferred_rule_chooses_among_what_is_allowed(self) -> None:
        rule = RouteRule(peers=named("n1"), direction="from_subjects", switches=NOT_US, strength="preferred")
        slow = compiled(intent("x", subjects=named("db"), routes=(rule,))).routes[0]
        soon = RouteRule(peers=named("n1"), direction="from_subjects", max_latency_ms=5)
        fast = compiled(intent("x", subjects=named("db"), routes=(rule, soon))).routes[0]
        assert (slow.path, fast.path) == (("s3", "s1"), ("s3", "s2", "s1"))


class TestTransfer:
    def test_it_lists_what_a_migration_may_touch(self) -> None:
        rule = TransferRule(state=("kv",), switches=NOT_US, links=NOT_US)
        (transfer,) = compiled(intent("x", subjects=named("db"), placement=(EU,), transfer=(rule,))).transfers
        assert transfer == Transfer("db", "kv", forbidden=False, nodes=("n1", "n3"), switches=("s1", "s3"), links=(2,))


class TestRefusal:
    def test_a_name_that_does_not_exist_is_refused_with_the_closest(self) -> None:
        for spec, message, nearest in (
            ({"subjects": named("apj")}, "intent x: there is no workload named 'apj'", "name the workload 'api'"),
            (
                {"subjects": named("api"), "routes": (RouteRule(switches=term("name", "S2", op="not_in")),)},
                "intent x: there is no switch named 'S2'",
                "name the switch 's2'",
            ),
        ):
            result = refused(intent("x", **{"placement": (EU,), **spec}))
            assert (result.kind, result.message, result.nearest) == (RefusalKind.VACUOUS, message, nearest)

    def test_subjects_and_peers_must_be_there(self) -> None:
        nobody = term(labels.DATA, "finance")
        assert (
            refused(intent("x", subjects=nobody, placement=(EU,))).message
            == "intent x: no workload has data is finance"
        )
        alone = refused(intent("x", subjects=named("api"), isolation=(IsolationRule(peers=named("api")),)))
        assert alone.message == "intent x: no other workload or node has name is api"

    def test_a_conflict_names_the_pair_and_the_rules(self) -> None:
        result = refused(
            intent("fine", subjects=named("web"), placement=(EU,)),
            intent("home", subjects=named("api"), placement=(EU, TRUSTED)),
            intent("away", subjects=named("api"), placement=(PlacementRule(nodes=named("n2", "n4")),)),
        )
        assert result.kind is RefusalKind.CONFLICT
        assert result.details == (
            "away",
            "home",
            "intent away: workload api: run on nodes where name is n2 or n4",
            "intent home: workload api: run on nodes where jurisdiction is DE",
        )

    def test_talking_and_not_talking_contradict_each_other(self) -> None:
        talk = intent("talk", subjects=named("api"), routes=(RouteRule(peers=named("db"), max_latency_ms=50),))
        hush = intent("hush", subjects=named("db"), isolation=(IsolationRule(peers=named("api")),))
        assert refused(talk, hush).details[:2] == ("hush", "talk")

    def test_two_intents_with_one_name_are_an_error(self) -> None:
        one = intent("x", subjects=HEALTH, placement=(EU,))
        with pytest.raises(IntentFormatError, match="two intents are named 'x'"):
            compile_intents(INVENTORY, [one, one])

    def test_what_is_not_decided_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("intents.compilation.placement.STEPS", 0)
        some = PlacementRule(nodes=named("n1"), at_least=1)
        result = refused(intent("x", subjects=HEALTH, placement=(some,)))
        assert result.message == "not decided, so refused: a placement of 2 workloads was not decided in 0 steps"


class TestNearestChange:
    def _nearest(self, *intents: PrivacyIntent, inventory: Inventory = INVENTORY) -> str | None:
        return refused(*intents, inventory=inventory).nearest

    def test_one_number(self) -> None:
        rule = RouteRule(peers=named("db"), switches=NOT_US, max_latency_ms=5)
        assert self._nearest(
            intent("x", subjects=named("api"), placement=(PlacementRule(nodes=named("n1")),), routes=(rule,)),
            intent("y", subjects=named("db"), placement=(PlacementRule(nodes=named("n3")),)),
        ) in {
            "allow 9 ms instead of 5 ms (intent x)",
            "drop the rule of intent x: workload api: run on nodes where name is n1",
        }
        three = PlacementRule(nodes=named("n1"), at_least=3)
        assert (
            self._nearest(intent("x", subjects=HEALTH, placement=(three,)))
            == "ask for at least 2 instead of 3 (intent x)"
        )

    def test_one_value(self) -> None:
        french = PlacementRule(nodes=term(labels.JURISDICTION, "ES"))
        assert (
            self._nearest(intent("x", subjects=HEALTH, placement=(french,)))
            == "allow also jurisdiction DE: n1 (intent x)"
        )

    def test_one_label_where_it_is_missing(self) -> None:
        unlabelled = intent("x", subjects=HEALTH, placement=(PlacementRule(nodes=named("n3")), TRUSTED))
        assert self._nearest(unlabelled) == "label node n3 trust=trusted"

    def test_a_label_on_a_switch_also_counts_for_its_links(self) -> None:
        world = parse_inventory("""
        nodes: [{name: n1, switch: s1}, {name: n2, switch: s2}]
        workloads: [{name: a, node: n1}, {name: b, node: n2}]
        switches: [{name: s1, labels: {tier: core}}, {name: s2}]
        links: [{a: s1, b: s2}]
        """)
        core = term("tier", "core")
        rule = RouteRule(peers=named("n2"), switches=core, links=core)
        stay = PlacementRule(nodes=named("n1"))
        pinned = intent("x", subjects=named("a"), placement=(stay,), routes=(rule,))
        assert self._nearest(pinned, inventory=world) == "label switch s2 tier=core"

    def test_a_place_is_never_relabelled(self) -> None:
        there = intent("x", subjects=HEALTH, placement=(PlacementRule(nodes=named("n2")), EU))
        assert self._nearest(there) == "allow also jurisdiction US: n2 (intent x)"

    def test_one_link(self) -> None:
        world = parse_inventory(WORLD.replace("latency_ms: 9}", "latency_ms: 9, up: false}"))
        rule = RouteRule(peers=named("n1"), through=(named("s1"),), links=term("name", "s1-s3"))
        assert self._nearest(
            intent("x", subjects=named("db"), placement=(PlacementRule(nodes=named("n3")),), routes=(rule,)),
            inventory=world,
        ) == ("bring link s1-s3 up")

    def test_one_rule(self) -> None:
        one, other = (PlacementRule(nodes=named(name)) for name in ("n1", "n3"))
        assert self._nearest(intent("x", subjects=HEALTH, placement=(one, other))) == (
            "drop the rule of intent x: workloads api and db: run on nodes where name is n1"
        )
