"""A pipeline is judged by all its stages: those that the inventory lists, and those that intents speak of."""

import json
from typing import Any

import pytest
import yaml

from intents.live_midstream import PIPELINE
from intents.model.intent import IsolationRule, PlacementRule, RouteRule, TransferRule
from intents.model.inventory import parse_inventory
from intents.model.predicate import both, named, term
from intents.pipeline_guard import PipelineGuard
from intents.proof.transfer import Transfer
from tests.unit.intents.pipelines import HEALTH, IN_EU, INVENTORY, intent


def guard(*intents: Any) -> PipelineGuard:
    return PipelineGuard(parse_inventory(yaml.safe_dump(INVENTORY)), intents)


class TestPipelines:
    def test_an_intent_about_one_stage_binds_the_pipeline(self):
        assert guard(intent()).judge("smollm", ["edge-1"], ["edge-1", "edge-3"], []).holds
        report = guard(intent()).judge("smollm", ["edge-1"], ["edge-1", "edge-2"], [])
        assert not report.holds
        assert {each.subject for each in report.failures} == {"smollm-stage-0"}

    def test_a_workload_with_the_pipelines_name_is_the_pipeline_too(self):
        one = guard(intent(subjects=named("other")))
        assert not one.judge("other", [], ["edge-2"], []).holds
        assert one.judge("smollm", [], ["edge-2"], []).holds

    @pytest.mark.parametrize("subjects", [named("smollm-stage-7"), term(PIPELINE, "other"), named("other-stage-0")])
    def test_stages_that_the_inventory_does_not_list_are_bound_as_well(self, subjects: Any):
        bound = guard(intent(subjects=subjects))
        pipeline = "smollm" if "smollm" in str(subjects) else "other"
        assert not bound.judge(pipeline, [], ["edge-2"], []).holds
        assert bound.judge(pipeline, [], ["edge-1"], []).holds

    def test_a_stage_has_the_labels_of_its_pipeline(self):
        inventory = json.loads(json.dumps(INVENTORY))
        inventory["workloads"] = [{"name": "chat", "labels": {"midstream.dev/data": "health"}}]
        health = intent(subjects=both(HEALTH, term(PIPELINE, "chat")))
        bound = PipelineGuard(parse_inventory(yaml.safe_dump(inventory)), [health])
        assert not bound.judge("chat", [], ["edge-2"], []).holds

    def test_a_pipeline_that_the_inventory_does_not_know_is_allowed_nothing_while_any_intent_is_active(self):
        report = guard(intent()).judge("unknown", [], ["edge-1"], [])
        assert not report.holds
        assert "not in the inventory" in report.failures[0].reason
        assert guard().judge("unknown", [], ["edge-1"], []).holds

    def test_prompts_between_stages_are_no_migration_but_all_other_rules_hold_for_them(self):
        never = intent(transfer=(TransferRule(forbidden=True),))
        hop = [Transfer("edge-1", "edge-2")]
        assert guard(never).judge("smollm", [], ["edge-1", "edge-2"], hop, state=["prompts"]).holds
        assert not guard(never).judge("smollm", ["edge-1"], ["edge-1", "edge-2"], hop, state=["kv"]).holds
        for rules in (
            {"routes": (RouteRule(switches=named("s1")),)},
            {"isolation": (IsolationRule(peers=named("edge-2")),)},
            {"placement": (PlacementRule(nodes=IN_EU),)},
        ):
            limited = guard(intent(**rules))
            assert not limited.judge("smollm", [], ["edge-1", "edge-2"], hop, state=["prompts"]).holds, rules
