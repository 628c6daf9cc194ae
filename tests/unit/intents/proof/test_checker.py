"""C |= I on hand-made states: what holds, and what is broken in each way that we could think of."""

from __future__ import annotations

import pytest

from intents.model.intent import IsolationRule, PlacementRule, RouteRule, SpreadRule, TransferRule
from intents.model.inventory import Link, Workload
from intents.model.labels import DATA, ENCRYPTED, JURISDICTION, TRUST
from intents.model.predicate import ANYTHING, NOTHING, named, term
from intents.proof.checker import Report, check
from tests.unit.intents.proof.networks import (
    DIAMOND,
    HEALTH,
    NOT_US,
    both_ways,
    intent,
    observed,
    port,
    rule,
    way,
)

AVOID_US = RouteRule(peers=named("store"), switches=NOT_US)
AVOID_US_ANYBODY = RouteRule(switches=NOT_US)
EU_WAY = both_ways(DIAMOND, ["s1", "s2", "s4"])
US_WAY = both_ways(DIAMOND, ["s1", "s3", "s4"])


def why(report: Report) -> str:
    assert not report.holds
    return "; ".join(check.reason for check in report.failures)


def changed(**of: object):
    """The diamond with other elements."""
    return DIAMOND.model_copy(update=of).model_validate(DIAMOND.model_copy(update=of).model_dump())


def with_labels(kind: str, name: str, **labels: str):
    elements = tuple(
        each.model_copy(update={"labels": labels}) if each.name == name else each for each in getattr(DIAMOND, kind)
    )
    return changed(**{kind: elements})


class TestTheStateAsAWhole:
    def test_without_an_intent_there_is_nothing_to_hold(self):
        assert not check([], observed(DIAMOND)).holds

    def test_a_state_that_was_read_at_another_version_fails(self):
        stale = observed(DIAMOND, EU_WAY, version="0")
        assert "read at version 0; the snapshot is at 1" in why(check([intent(routes=(AVOID_US,))], stale))

    def test_subjects_that_do_not_exist_fail(self):
        nobody = intent(subjects=term(DATA, "finance"), placement=(PlacementRule(nodes=ANYTHING),))
        assert "no workload matches" in why(check([nobody], observed(DIAMOND)))

    def test_a_subject_whose_label_is_unknown_is_no_subject(self):
        inventory = with_labels("workloads", "chat")
        assert "no workload matches" in why(check([intent(routes=(AVOID_US,))], observed(inventory, EU_WAY)))

    def test_a_flow_rule_that_cannot_be_read_fails(self):
        broken = [*EU_WAY, {"deviceId": "of:0000000000000001"}]
        assert "flow rule 6 cannot be read: lacks 'priority'" in why(
            check([intent(routes=(AVOID_US,))], observed(DIAMOND, broken))
        )

    def test_something_that_runs_on_a_node_that_is_gone_fails(self):
        lost = observed(DIAMOND, EU_WAY, placement={"chat": ("n1",), "store": ("n9",)})
        assert "store on n9" in why(check([intent(routes=(AVOID_US,))], lost))


class TestPlacement:
    TRUSTED = PlacementRule(nodes=term(TRUST, "trusted"))

    def test_it_is_judged_by_where_replicas_really_run(self):
        report = check([intent(placement=(self.TRUSTED,))], observed(DIAMOND, placement={"chat": ("n1", "n2")}))
        assert report.holds
        assert report.checks[-1].looked_at == ("chat on n1", "chat on n2")

    def test_one_replica_elsewhere_is_enough_to_fail(self):
        report = check(
            [intent(placement=(PlacementRule(nodes=NOT_US),))], observed(DIAMOND, placement={"chat": ("n1", "n3")})
        )
        assert "node n3 is not one where jurisdiction is not US (it has jurisdiction US)" in why(report)
        assert not report.safe

    def test_a_node_without_the_label_fails(self):
        report = check([intent(placement=(self.TRUSTED,))], observed(DIAMOND, placement={"chat": ("n3",)}))
        assert "node n3 lacks the label midstream.dev/trust" in why(report)

    def test_a_subject_that_runs_nowhere_is_not_proven_yet_no_breach(self):
        report = check([intent(placement=(self.TRUSTED,))], observed(DIAMOND, placement={}))
        assert "runs nowhere" in why(report)
        assert report.safe

    def test_at_least_counts_the_subjects(self):
        everybody = intent(subjects=ANYTHING, placement=(PlacementRule(nodes=named("n1"), at_least=1),))
        assert check([everybody], observed(DIAMOND)).holds
        two = intent(subjects=ANYTHING, placement=(PlacementRule(nodes=named("n1"), at_least=2),))
        assert "1 of 2 do: chat" in why(check([two], observed(DIAMOND)))

    def test_a_preferred_rule_does_not_fail(self):
        soft = PlacementRule(nodes=named("n2"), strength="preferred")
        report = check([intent(placement=(soft,))], observed(DIAMOND))
        assert report.holds
        assert report.checks[-1].reason == "preferred: met by 0 of 1"


class TestSpread:
    APART = SpreadRule(relation="apart", others=named("store"))

    def test_apart_on_nodes(self):
        assert check([intent(spread=(self.APART,))], observed(DIAMOND)).holds
        shared = observed(DIAMOND, placement={"chat": ("n1", "n2"), "store": ("n2",)})
        assert "store runs in n2 too" in why(check([intent(spread=(self.APART,))], shared))

    def test_a_subdivision_lies_in_its_country(self):
        inventory = with_labels("nodes", "n2", **{JURISDICTION: "DE-BY"})
        rule_ = SpreadRule(relation="apart", others=named("store"), topology="jurisdiction")
        assert "store runs in DE-BY too" in why(check([intent(spread=(rule_,))], observed(inventory)))

    def test_an_unknown_value_fails_both_relations(self):
        for relation in ("apart", "together"):
            rule_ = SpreadRule(relation=relation, others=named("store"), topology="zone")
            assert "whose zone is not known" in why(check([intent(spread=(rule_,))], observed(DIAMOND)))

    def test_together_means_one_value_for_all(self):
        rule_ = SpreadRule(relation="together", others=named("store"))
        assert "store runs in n2 (n2), chat in n1 (n1)" in why(check([intent(spread=(rule_,))], observed(DIAMOND)))
        same = observed(DIAMOND, placement={"chat": ("n1",), "store": ("n1",)})
        assert check([intent(spread=(rule_,))], same).holds

    def test_others_that_do_not_exist_fail(self):
        alone = SpreadRule(relation="apart", others=named("chat"))
        assert "no other workload matches" in why(check([intent(spread=(alone,))], observed(DIAMOND)))


class TestRoutes:
    def test_the_allowed_way_holds_and_says_which_way_it_looked_at(self):
        report = check([intent(routes=(AVOID_US,))], observed(DIAMOND, EU_WAY))
        assert report.holds
        assert [each.looked_at for each in report.checks[3:]] == [
            ("s1 > s2 > s4 > n2",),
            ("s4 > s2 > s1 > n1",),
        ]

    def test_the_forbidden_way_fails(self):
        report = check([intent(routes=(AVOID_US,))], observed(DIAMOND, US_WAY))
        assert "switch s3 is not one where jurisdiction is not US (it has jurisdiction US)" in why(report)
        assert not report.safe

    def test_a_switch_without_the_label_fails(self):
        inventory = with_labels("switches", "s2")
        report = check([intent(routes=(AVOID_US,))], observed(inventory, EU_WAY))
        assert "switch s2 lacks the label midstream.dev/jurisdiction" in why(report)

    def test_a_packet_that_its_first_switch_drops_has_gone_nowhere(self):
        inventory = with_labels("switches", "s1", **{JURISDICTION: "US"})
        flows = [rule(inventory, "s1", "chat", "store")]
        assert check([intent(routes=(AVOID_US,))], observed(inventory, flows)).safe
        assert not check(
            [intent(routes=(AVOID_US,))], observed(inventory, both_ways(inventory, ["s1", "s2", "s4"]))
        ).safe

    def test_a_packet_that_ends_at_a_later_switch_was_there(self):
        flows = [rule(DIAMOND, "s1", "chat", "store", port(DIAMOND, "s1", "s3"))]
        assert not check([intent(routes=(AVOID_US,))], observed(DIAMOND, flows)).safe

    def test_without_rules_peers_that_must_be_reached_are_not(self):
        report = check([intent(routes=(AVOID_US,))], observed(DIAMOND))
        assert "store cannot be reached from n1: s1: s1 has no rule for it" in why(report)
        assert report.safe

    def test_one_direction_may_be_all_that_is_asked(self):
        there = way(DIAMOND, "chat", "store", ["s1", "s2", "s4"], "n2")
        only = AVOID_US.model_copy(update={"direction": "from_subjects"})
        assert check([intent(routes=(only,))], observed(DIAMOND, there)).holds
        back = AVOID_US.model_copy(update={"direction": "to_subjects"})
        assert not check([intent(routes=(back,))], observed(DIAMOND, there)).holds

    def test_peers_that_do_not_exist_fail(self):
        nobody = RouteRule(peers=NOTHING, switches=NOT_US)
        assert "matches the peers" in why(check([intent(routes=(nobody,))], observed(DIAMOND, EU_WAY)))

    def test_a_node_may_be_the_peer(self):
        flows = way(DIAMOND, "chat", "n2", ["s1", "s2", "s4"], "n2") + way(
            DIAMOND, "n2", "chat", ["s4", "s2", "s1"], "n1"
        )
        assert check([intent(routes=(RouteRule(peers=named("n2"), switches=NOT_US),))], observed(DIAMOND, flows)).holds

    def test_a_higher_priority_decides(self):
        astray = rule(DIAMOND, "s1", "chat", "store", port(DIAMOND, "s1", "s3"), priority=200)
        assert not check([intent(routes=(AVOID_US,))], observed(DIAMOND, [*EU_WAY, astray])).safe
        ignored = astray | {"priority": 50}
        assert check([intent(routes=(AVOID_US,))], observed(DIAMOND, [*EU_WAY, ignored])).holds

    def test_of_two_rules_of_one_priority_either_may_be_taken(self):
        rival = rule(DIAMOND, "s1", "chat", "store", port(DIAMOND, "s1", "s3"))
        assert not check([intent(routes=(AVOID_US,))], observed(DIAMOND, [*EU_WAY, rival])).safe
        dropping = rule(DIAMOND, "s1", "chat", "store")
        report = check([intent(routes=(AVOID_US,))], observed(DIAMOND, [*EU_WAY, dropping]))
        assert "store cannot be reached from n1" in why(report)
        assert report.safe

    def test_every_copy_is_followed(self):
        first = rule(DIAMOND, "s1", "chat", "store", port(DIAMOND, "s1", "s2"), port(DIAMOND, "s1", "s3"))
        report = check([intent(routes=(AVOID_US,))], observed(DIAMOND, [first, *EU_WAY[1:]]))
        assert "goes s1 > s3" in why(report)

    def test_a_flood_reaches_everything_next_to_the_switch(self):
        flood = rule(DIAMOND, "s1", "chat", "store", instructions=[{"type": "OUTPUT", "port": "FLOOD"}])
        assert "goes s1 > s3" in why(check([intent(routes=(AVOID_US,))], observed(DIAMOND, [flood, *EU_WAY[1:]])))

    def test_a_rule_for_some_of_the_packets_counts_as_if_any_may_take_it(self):
        telnet = rule(
            DIAMOND,
            "s1",
            "chat",
            "store",
            port(DIAMOND, "s1", "s3"),
            priority=200,
            criteria=[{"type": "IP_PROTO", "protocol": 6}, {"type": "TCP_DST", "tcpPort": 23}],
        )
        assert not check([intent(routes=(AVOID_US,))], observed(DIAMOND, [*EU_WAY, telnet])).safe

    def test_what_a_rule_for_some_of_the_packets_leaves_goes_by_the_next(self):
        criteria = [{"type": "IP_PROTO", "protocol": 6}]
        some = rule(DIAMOND, "s1", "chat", "store", port(DIAMOND, "s1", "s2"), priority=200, criteria=criteria)
        rest = rule(DIAMOND, "s1", "chat", "store", port(DIAMOND, "s1", "s3"))
        assert not check([intent(routes=(AVOID_US,))], observed(DIAMOND, [some, rest, *EU_WAY[1:]])).safe

    def test_a_rule_for_another_port_does_not_match(self):
        def leak(in_port: int) -> dict:
            criteria = [{"type": "IN_PORT", "port": in_port}]
            return rule(DIAMOND, "s1", "chat", "store", port(DIAMOND, "s1", "s3"), priority=200, criteria=criteria)

        asked = [intent(routes=(AVOID_US,))]
        assert not check(asked, observed(DIAMOND, [*EU_WAY, leak(port(DIAMOND, "s1", "n1"))])).safe
        assert check(asked, observed(DIAMOND, [*EU_WAY, leak(port(DIAMOND, "s1", "s2"))])).holds

    def test_a_rule_that_is_not_surely_in_force_may_be_or_not(self):
        pending = [EU_WAY[0] | {"state": "PENDING_ADD"}, *EU_WAY[1:]]
        assert "store cannot be reached" in why(check([intent(routes=(AVOID_US,))], observed(DIAMOND, pending)))
        added = [flow | {"state": "ADDED"} for flow in EU_WAY]
        assert check([intent(routes=(AVOID_US,))], observed(DIAMOND, added)).holds

    def test_rules_of_other_devices_and_protocols_do_not_matter(self):
        ipv6 = rule(DIAMOND, "s1", None, None, port(DIAMOND, "s1", "s3"), priority=999)
        ipv6["selector"]["criteria"] = [{"type": "ETH_TYPE", "ethType": "0x86dd"}]
        other = EU_WAY[0] | {"deviceId": "of:00000000000000ff", "priority": 999}
        assert check([intent(routes=(AVOID_US,))], observed(DIAMOND, [*EU_WAY, ipv6, other])).holds

    @pytest.mark.parametrize("instruction", [{"type": "OUTPUT", "port": "CONTROLLER"}, {"type": "GROUP", "groupId": 1}])
    def test_what_cannot_be_followed_is_not_proven(self, instruction: dict):
        odd = rule(DIAMOND, "s1", "chat", "store", instructions=[instruction], priority=200)
        report = check([intent(routes=(AVOID_US,))], observed(DIAMOND, [*EU_WAY, odd]))
        assert "does what cannot be followed" in why(report)
        assert not report.safe

    def test_a_link_that_is_down_carries_nothing(self):
        links = tuple(each.model_copy(update={"up": each.name != "s2-s4"}) for each in DIAMOND.links)
        report = check([intent(routes=(AVOID_US,))], observed(changed(links=links), EU_WAY))
        assert "sends it to link s2-s4, which is down" in why(report)
        assert report.safe

    def test_a_loop_fails(self):
        back = rule(DIAMOND, "s2", "chat", "store", port(DIAMOND, "s2", "s1"), priority=200)
        # s2 may not send a packet back to the port it came in by: that is a drop, not a loop.
        assert "sends it back to the port it came in by" in why(
            check([intent(routes=(AVOID_US,))], observed(DIAMOND, [*EU_WAY, back]))
        )
        ring = [
            *EU_WAY,
            rule(DIAMOND, "s4", "chat", "store", port(DIAMOND, "s4", "s3"), priority=200),
            rule(DIAMOND, "s3", "chat", "store", port(DIAMOND, "s3", "s1"), priority=200),
        ]
        anywhere = intent(routes=(RouteRule(peers=named("store"), switches=ANYTHING),))
        assert "comes back to s2" in why(check([anywhere], observed(DIAMOND, ring)))

    def test_a_port_where_nothing_hangs_fails(self):
        empty = rule(DIAMOND, "s4", "chat", "store", 42, priority=200)
        assert "where nothing hangs" in why(check([intent(routes=(AVOID_US,))], observed(DIAMOND, [*EU_WAY, empty])))

    def test_a_pod_that_moved_away_leaves_rules_that_lead_elsewhere(self):
        moved = observed(DIAMOND, EU_WAY, placement={"chat": ("n1",), "store": ("n3",)})
        report = check([intent(routes=(AVOID_US,))], moved)
        assert "is handed to n2, where it does not run" in why(report)

    def test_two_on_one_node_need_no_network(self):
        together = observed(DIAMOND, placement={"chat": ("n1",), "store": ("n1",)})
        report = check([intent(routes=(AVOID_US,))], together)
        assert report.holds
        assert report.checks[-1].looked_at == ("both on n1",)

    def test_packets_within_a_node_pass_no_way_point(self):
        together = observed(DIAMOND, placement={"chat": ("n1",), "store": ("n1",)})
        firewall = RouteRule(peers=named("store"), through=(named("s1"),))
        assert "pass no switch" in why(check([intent(routes=(firewall,))], together))

    def test_way_points_latency_and_bandwidth(self):
        def holds(flows: list, **limits: object) -> bool:
            return check([intent(routes=(RouteRule(peers=named("store"), **limits),))], observed(DIAMOND, flows)).holds

        assert holds(EU_WAY, through=(named("s2"), named("s4")))
        assert not holds(US_WAY, through=(named("s2"),))
        assert holds(EU_WAY, max_latency_ms=10)
        assert not holds(EU_WAY, max_latency_ms=9.9)
        assert holds(EU_WAY, min_bandwidth_mbps=1000)
        assert not holds(US_WAY, min_bandwidth_mbps=1000)

    def test_encrypted_links_only(self):
        links = tuple(
            each.model_copy(update={"labels": {ENCRYPTED: "true"}}) if "s2" in (each.a, each.b) else each
            for each in DIAMOND.links
        )
        only = intent(routes=(RouteRule(peers=named("store"), links=term(ENCRYPTED, "true")),))
        assert check([only], observed(changed(links=links), EU_WAY)).holds
        assert "link s1-s3 lacks the label midstream.dev/encrypted" in why(
            check([only], observed(changed(links=links), US_WAY))
        )

    def test_parallel_links_are_told_apart_by_their_ports(self):
        links = (*DIAMOND.links, Link(a="s2", b="s4", labels={JURISDICTION: "US"}))
        inventory = changed(links=links)
        other = port(inventory, "s2", "s4") + 1
        flows = both_ways(inventory, ["s1", "s2", "s4"])
        asked = intent(routes=(RouteRule(peers=named("store"), links=NOT_US),))
        assert check([asked], observed(inventory, flows)).holds
        flows[1] = rule(inventory, "s2", "chat", "store", other)
        assert "link s2-s4" in why(check([asked], observed(inventory, flows)))


class TestRoutesToWhomever:
    """A rule without peers: nobody must be reached but the other subjects, and nothing may go astray."""

    def test_a_compliant_way_holds(self):
        assert check([intent(routes=(AVOID_US_ANYBODY,))], observed(DIAMOND, EU_WAY)).holds

    def test_a_forbidden_way_to_anybody_fails(self):
        report = check([intent(routes=(AVOID_US_ANYBODY,))], observed(DIAMOND, US_WAY))
        assert "switch s3" in why(report)

    def test_a_rule_for_addresses_that_nobody_has_is_found(self):
        leak = rule(DIAMOND, "s1", "chat", None, port(DIAMOND, "s1", "s3"), priority=1)
        report = check([intent(routes=(AVOID_US_ANYBODY,))], observed(DIAMOND, [*EU_WAY, leak]))
        assert "a packet to 0.0.0.0 goes s1 > s3" in why(report)
        closed = rule(DIAMOND, "s1", "chat", None, priority=2)
        assert check([intent(routes=(AVOID_US_ANYBODY,))], observed(DIAMOND, [*EU_WAY, leak, closed])).holds

    def test_a_rule_for_a_network_of_addresses_is_found(self):
        leak = rule(DIAMOND, "s1", None, None, port(DIAMOND, "s1", "s3"), priority=200)
        leak["selector"]["criteria"].append({"type": "IPV4_DST", "ip": "192.0.2.0/24"})
        report = check([intent(routes=(AVOID_US_ANYBODY,))], observed(DIAMOND, [*EU_WAY, leak]))
        assert "a packet to 192.0.2.0 goes s1 > s3" in why(report)

    def test_a_network_of_which_a_part_is_dropped_is_found(self):
        def to(network: str, *ports: int, priority: int) -> dict:
            criteria = [{"type": "IPV4_DST", "ip": network}]
            return rule(DIAMOND, "s1", "chat", None, *ports, priority=priority, criteria=criteria)

        us = port(DIAMOND, "s1", "s3")
        flows = [*EU_WAY, to("192.0.2.0/24", us, priority=200), to("192.0.2.0/25", priority=300)]
        report = check([intent(routes=(AVOID_US_ANYBODY,))], observed(DIAMOND, flows))
        assert "a packet to 192.0.2.128 goes s1 > s3" in why(report)

    def test_packets_to_a_subject_from_addresses_that_nobody_has_are_found(self):
        leak = rule(DIAMOND, "s3", None, "chat", port(DIAMOND, "s3", "s1"), priority=1)
        report = check([intent(routes=(AVOID_US_ANYBODY,))], observed(DIAMOND, [*EU_WAY, leak]))
        assert "a packet to chat goes s3 > s1" in why(report)

    def test_a_subject_that_is_left_with_nobody_fails(self):
        report = check([intent(routes=(AVOID_US_ANYBODY,))], observed(DIAMOND))
        assert "none of the 1 other workloads can be reached" in why(report)
        assert report.safe

    def test_those_that_it_is_kept_apart_from_are_nobody_to_be_left_with(self):
        apart = intent("apart", isolation=(IsolationRule(peers=named("store")),))
        assert check([intent(routes=(AVOID_US_ANYBODY,)), apart], observed(DIAMOND)).holds

    def test_subjects_must_reach_each_other(self):
        inventory = with_labels("workloads", "store", **{DATA: "health"})
        assert check([intent(routes=(AVOID_US_ANYBODY,))], observed(inventory, EU_WAY)).holds
        report = check([intent(routes=(AVOID_US_ANYBODY,))], observed(inventory, EU_WAY[:3]))
        assert "chat cannot be reached from n2" in why(report)

    def test_subjects_that_are_kept_apart_need_not_reach_each_other(self):
        inventory = with_labels("workloads", "store", **{DATA: "health"})
        apart = intent("apart", isolation=(IsolationRule(peers=named("store")),))
        assert check([intent(routes=(AVOID_US_ANYBODY,)), apart], observed(inventory)).holds

    def test_a_preferred_rule_does_not_fail(self):
        soft = AVOID_US_ANYBODY.model_copy(update={"strength": "preferred"})
        assert check([intent(routes=(soft,))], observed(DIAMOND, US_WAY)).holds


class TestIsolation:
    APART = IsolationRule(peers=named("store"))

    def test_a_network_without_rules_keeps_everybody_apart(self):
        report = check([intent(isolation=(self.APART,))], observed(DIAMOND))
        assert report.holds
        assert report.checks[-2].looked_at == ("1 ways that no rule of the first switch opens",)

    def test_a_packet_that_arrives_fails_in_its_direction_only(self):
        there = way(DIAMOND, "chat", "store", ["s1", "s2", "s4"], "n2")
        assert not check([intent(isolation=(self.APART,))], observed(DIAMOND, there)).safe
        back = IsolationRule(peers=named("store"), direction="to_subjects")
        assert check([intent(isolation=(back,))], observed(DIAMOND, there)).holds

    def test_two_on_one_node_need_a_network_policy(self):
        shared = {"chat": ("n1",), "store": ("n1",)}
        report = check([intent(isolation=(self.APART,))], observed(DIAMOND, placement=shared))
        assert "both on n1, and no NetworkPolicy keeps them apart" in why(report)
        deny = {
            "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"podSelector": {"matchLabels": {DATA: "health"}}, "policyTypes": ["Ingress", "Egress"]},
        }
        apart = observed(DIAMOND, placement=shared, kubernetes=[deny])
        assert check([intent(isolation=(self.APART,))], apart).holds

    def test_nobody_can_be_kept_from_the_node_that_runs_it(self):
        rule_ = IsolationRule(peers=named("n1"))
        assert "one of them runs on the other" in why(check([intent(isolation=(rule_,))], observed(DIAMOND)))

    def test_peers_that_do_not_exist_fail(self):
        rule_ = IsolationRule(peers=NOTHING)
        assert "no peer matches" in why(check([intent(isolation=(rule_,))], observed(DIAMOND)))


def test_all_intents_hold_together_or_not_at_all():
    good = intent("good", routes=(AVOID_US,))
    bad = intent("bad", placement=(PlacementRule(nodes=named("n2")),))
    report = check([good, bad], observed(DIAMOND, EU_WAY))
    assert not report.holds
    assert {each.intent for each in report.failures} == {"bad"}


def test_a_transfer_rule_says_what_it_speaks_of():
    never = intent(transfer=(TransferRule(forbidden=True),))
    report = check([never], observed(DIAMOND))
    assert report.holds
    assert report.checks[-1].looked_at == ("chat on n1",)
    assert not check([never], observed(DIAMOND, placement={})).holds


def test_a_workload_without_replicas_is_not_waited_for():
    none = Workload(name="idle", labels={DATA: "health"}, replicas=0)
    inventory = changed(workloads=(*DIAMOND.workloads, none))
    assert check([intent(placement=(PlacementRule(nodes=named("n1")),))], observed(inventory)).holds
    only = intent(subjects=named("idle"), placement=(PlacementRule(nodes=named("n1")),))
    assert "none of the subjects runs" in why(check([only], observed(inventory)))


def test_health_is_the_subject_of_these_tests():
    assert observed(DIAMOND).subjects(HEALTH) == ["chat"]
