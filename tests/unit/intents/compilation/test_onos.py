"""Flow rules and ONOS intents in the form that ONOS' REST API takes."""

from __future__ import annotations

from intents.compilation import Compiled, compile_intents
from intents.compilation.onos_intents import onos_intents
from intents.model.intent import IsolationRule, PrivacyIntent, RouteRule
from intents.model.inventory import parse_inventory
from intents.model.predicate import named
from tests.unit.intents.compilation.worlds import intent

INVENTORY = parse_inventory("""
nodes: [{name: n1, switch: s1, port: 7}, {name: n2, switch: s3}]
workloads: [{name: a, node: n1, ip: 10.0.0.1}, {name: b, node: n2, ip: 10.0.0.2}, {name: c, node: n2}]
switches: [{name: s1}, {name: s2}, {name: s3, device: "of:00000000000000aa"}, {name: s4}]
links: [{a: s1, b: s2, b_port: 4}, {a: s2, b: s3}, {a: s1, b: s4}, {a: s4, b: s3, latency_ms: 0.1}]
""")


def compiled(*intents: PrivacyIntent) -> Compiled:
    result = compile_intents(INVENTORY, intents)
    assert isinstance(result, Compiled), result
    return result


def route_from_a_to_b(**fields: object) -> PrivacyIntent:
    rule = RouteRule.model_validate({"peers": named("b"), "direction": "from_subjects", **fields})
    return intent("x", subjects=named("a"), routes=(rule,))


AVOID = route_from_a_to_b(switches={"any_of": [{"all_of": [{"key": "name", "op": "not_in", "values": ["s4"]}]}]})


def test_a_route_is_one_rule_a_switch_over_its_default() -> None:
    rules = compiled(AVOID).flows
    assert rules[0] == {
        "priority": 50200,
        "timeout": 0,
        "isPermanent": True,
        "deviceId": "of:0000000000000001",
        "tableId": 0,
        "treatment": {"instructions": [{"type": "OUTPUT", "port": "1"}]},
        "selector": {
            "criteria": [
                {"type": "ETH_TYPE", "ethType": "0x800"},
                {"type": "IPV4_SRC", "ip": "10.0.0.1/32"},
                {"type": "IPV4_DST", "ip": "10.0.0.2/32"},
            ]
        },
    }
    assert [(rule["deviceId"][-2:], rule["priority"]) for rule in rules] == [
        ("01", 50200),
        ("01", 50100),
        ("02", 50200),
        ("02", 50100),
        ("aa", 50200),
        ("aa", 50100),
    ]


def test_isolation_drops_at_both_ends_and_touches_nothing_else() -> None:
    rules = compiled(
        intent("x", subjects=named("a"), isolation=(IsolationRule(peers=named("b"), direction="from_subjects"),))
    )
    assert [(rule["deviceId"][-2:], rule["priority"], rule["treatment"]) for rule in rules.flows] == [
        ("01", 50300, {"instructions": []}),
        ("aa", 50300, {"instructions": []}),
    ]


def test_a_rule_without_peers_drops_whatever_else_concerns_its_subjects() -> None:
    rules = compiled(
        intent("x", subjects=named("a"), routes=(RouteRule(max_latency_ms=50, direction="to_subjects"),))
    ).flows
    default = [rule for rule in rules if rule["priority"] == 50000]
    assert {str(rule["selector"]["criteria"][1:]) for rule in default} == {
        "[{'type': 'IPV4_DST', 'ip': '10.0.0.1/32'}]"
    }
    assert {rule["deviceId"][-2:] for rule in default} == {"01", "03", "aa"}


def test_endpoints_on_one_node_need_no_rules() -> None:
    near = intent("x", subjects=named("b"), routes=(RouteRule(peers=named("c"), max_latency_ms=1),))
    assert compiled(near).flows == ()
    assert [route.path for route in compiled(near).routes] == [(), ()]


def test_forbidden_switches_and_way_points_become_constraints() -> None:
    both_limits = route_from_a_to_b(
        switches={"any_of": [{"all_of": [{"key": "name", "op": "not_in", "values": ["s4"]}]}]}, through=(named("s2"),)
    )
    (found,), left_out = onos_intents(INVENTORY, [both_limits], compiled(both_limits))
    assert found == {
        "type": "PointToPointIntent",
        "appId": "org.onosproject.core",
        "priority": 50200,
        "selector": compiled(both_limits).flows[0]["selector"],
        "ingressPoint": {"device": "of:0000000000000001", "port": "7"},
        "egressPoint": {"device": "of:00000000000000aa", "port": "1"},
        "constraints": [
            {"type": "ObstacleConstraint", "obstacles": ["of:0000000000000003"]},
            {"type": "WaypointConstraint", "waypoints": ["of:0000000000000002"]},
        ],
    }
    assert left_out == ()


def test_limits_that_onos_cannot_be_told_are_left_to_flow_rules() -> None:
    slow = route_from_a_to_b(max_latency_ms=3)
    assert onos_intents(INVENTORY, [slow], compiled(slow)) == ((), (("a", "b"),))
