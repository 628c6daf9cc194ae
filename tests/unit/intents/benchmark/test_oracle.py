import pytest

from intents.benchmark.cases import bundled_intents, bundled_inventories, bundled_traps
from intents.benchmark.judge import judge
from intents.planning import plan_intent
from tests.unit.intents.benchmark.oracle import typed_intent

MET = [case for case in (*bundled_intents(), *bundled_traps()) if case.expect.outcome == "ok"]


class TestPlanningForSomebodyWhoKnowsTheAnswer:
    """Compiler and checker without a translator: the expectations and what planning does mean the same."""

    @pytest.mark.parametrize("case", MET, ids=lambda case: case.id)
    def test_an_intent_that_names_what_is_expected_is_planned_as_expected(self, case):
        inventory = bundled_inventories()[case.inventory]
        plan = plan_intent(typed_intent(case), inventory, active=case.active).to_json()
        judgement = judge(case, inventory, plan)
        assert judgement.verdict.right, judgement.reasons
        assert plan["checks"]
