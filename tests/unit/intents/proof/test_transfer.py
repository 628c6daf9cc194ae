"""The transfer guard: old and new nodes, and every switch and link between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from intents.model.intent import IsolationRule, PlacementRule, RouteRule, SpreadRule, TransferRule
from intents.model.labels import TRUST
from intents.model.predicate import named, term
from intents.proof.transfer import Transfer, TransferGuard
from tests.unit.intents.proof.networks import DIAMOND, NOT_US, intent, way

if TYPE_CHECKING:
    from intents.proof.report import Report

BY_EU = Transfer("n1", "n2", ("s1", "s2", "s4"))
BY_US = Transfer("n1", "n2", ("s1", "s3", "s4"))


def judge(rules: dict, *transfers: Transfer, new: tuple[str, ...] = ("n2",), **more: object) -> Report:
    guard = TransferGuard(DIAMOND, [intent(**rules)])
    return guard.judge("chat", ["n1"], new, transfers or [BY_EU], **more)


def why(report: Report) -> str:
    assert not report.holds
    return "; ".join(each.reason for each in report.failures)


def test_a_migration_over_allowed_nodes_and_switches_may_start():
    rules = {"placement": (PlacementRule(nodes=NOT_US),), "routes": (RouteRule(switches=NOT_US),)}
    report = judge(rules)
    assert report.holds
    assert any("s1 > s2 > s4 > n2" in line for each in report.checks for line in each.looked_at)


def test_old_and_new_nodes_must_both_be_allowed():
    only_new = {"placement": (PlacementRule(nodes=named("n2")),)}
    assert "node n1 is not one where name is n2" in why(judge(only_new))
    trusted = {"placement": (PlacementRule(nodes=term(TRUST, "trusted")),)}
    by_us = Transfer("n1", "n3", ("s1", "s3"))
    assert "node n3 lacks the label" in why(judge(trusted, by_us, new=("n3",)))


def test_an_old_node_that_sends_nothing_counts():
    guard = TransferGuard(DIAMOND, [intent(placement=(PlacementRule(nodes=NOT_US),))])
    assert "node n3 is not one where" in why(guard.judge("chat", ["n3"], ["n2"], [BY_EU]))


def test_a_node_that_state_only_passes_through_counts():
    trusted = {"placement": (PlacementRule(nodes=term(TRUST, "trusted")),)}
    relay = [Transfer("n1", "n3", ("s1", "s3")), Transfer("n3", "n2", ("s3", "s4"))]
    assert "node n3" in why(judge(trusted, *relay))


@pytest.mark.parametrize("peers", [None, named("store")])
def test_state_does_not_go_where_packets_may_not_go(peers: object):
    rules = {"routes": (RouteRule(peers=peers, switches=NOT_US),)}
    assert "goes s1 > s3 > s4 > n2, and switch s3" in why(judge(rules, BY_US))
    assert judge(rules, BY_EU).holds


def test_links_of_the_path_count_too():
    rules = {"transfer": (TransferRule(links=term("midstream.dev/encrypted", "true")),)}
    assert "link s1-s2 lacks the label midstream.dev/encrypted" in why(judge(rules))


def test_way_points_bind_what_moves_if_no_peers_are_named():
    rules = {"routes": (RouteRule(through=(named("s3"),)),)}
    assert judge(rules, BY_US).holds
    assert "passes no switch where name is s3" in why(judge(rules, BY_EU))


def test_nothing_moves_where_migration_is_forbidden():
    rules = {"transfer": (TransferRule(forbidden=True),)}
    assert "kv and prompts and weights would move" in why(judge(rules))
    assert judge(rules, Transfer("n1", "n1"), new=("n1",)).holds


def test_a_rule_about_some_state_leaves_other_state_alone():
    rules = {"transfer": (TransferRule(state=("kv",), forbidden=True),)}
    assert judge(rules, state=("weights",)).holds
    assert not judge(rules, state=("weights", "kv")).holds


def test_transfer_rules_limit_nodes_and_switches():
    assert "name is n1" in why(judge({"transfer": (TransferRule(nodes=named("n1")),)}))
    assert judge({"transfer": (TransferRule(switches=NOT_US),)}).holds
    assert not judge({"transfer": (TransferRule(switches=NOT_US),)}, BY_US).holds


def test_spread_is_asked_of_old_and_new_nodes_together():
    apart = {"spread": (SpreadRule(relation="apart", others=named("store")),)}
    assert "store runs in n2 too" in why(judge(apart))


def test_state_does_not_reach_a_node_that_is_an_isolated_peer():
    assert "touches n2" in why(judge({"isolation": (IsolationRule(peers=named("n2")),)}))


def test_without_a_path_the_installed_rules_tell_it():
    rules = {"routes": (RouteRule(switches=NOT_US),)}
    unknown = Transfer("n1", "n2")
    assert "neither a path is given nor do flow rules surely lead there" in why(judge(rules, unknown))
    assert judge(rules, unknown, flows=way(DIAMOND, "n1", "n2", ["s1", "s2", "s4"], "n2")).holds
    assert "switch s3" in why(judge(rules, unknown, flows=way(DIAMOND, "n1", "n2", ["s1", "s3", "s4"], "n2")))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ((), "does not lead from one node to the other"),
        (("s1", "s2"), "does not lead from one node to the other"),
        (("s1", "s4"), "no link that is up joins s1 and s4"),
        (("s1", "s9", "s4"), "no link that is up joins s1 and s9"),
    ],
)
def test_a_path_that_cannot_be_is_not_proven(path: tuple[str, ...], reason: str):
    assert reason in why(judge({"routes": (RouteRule(switches=NOT_US),)}, Transfer("n1", "n2", path)))


def test_at_least_counts_the_other_subjects_where_they_run():
    rules = {"subjects": named("chat", "store"), "placement": (PlacementRule(nodes=named("n2"), at_least=1),)}
    assert judge(rules).holds


def test_a_workload_that_no_intent_is_about_may_move():
    guard = TransferGuard(DIAMOND, [intent(placement=(PlacementRule(nodes=named("n1")),))])
    report = guard.judge("store", ["n2"], ["n3"], [Transfer("n2", "n3", ("s4", "s3"))])
    assert report.holds
    assert TransferGuard(DIAMOND, []).judge("whoever", [], [], []).holds


def test_a_workload_that_nobody_knows_may_not():
    guard = TransferGuard(DIAMOND, [intent(placement=(PlacementRule(nodes=named("n1")),))])
    assert "not in the inventory" in why(guard.judge("other", ["n1"], ["n2"], [BY_EU]))


def test_a_plan_for_another_snapshot_is_out_of_date():
    rules = {"placement": (PlacementRule(nodes=NOT_US),)}
    assert "planned at version 0; the snapshot is at 1" in why(judge(rules, version="0"))


def test_nodes_that_do_not_exist_are_not_allowed():
    rules = {"routes": (RouteRule(switches=NOT_US),)}
    assert "node n9 is not in the inventory" in why(judge(rules, Transfer("n1", "n9", ("s1",)), new=("n9",)))
