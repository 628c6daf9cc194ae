"""Intents understood by a language model that Midstream itself serves, with output held to a schema by the engine.

The built-in model is far too small for the task: that is the point. Whatever it says has the form of an intent, and
nothing that it alone has understood is enforced without a person.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI

from intents.benchmark.cases import bundled_inventories
from intents.knowledge.naming import union_members
from intents.planning import plan_sentence, same_effect
from intents.translation.answer import answer_schema
from intents.translation.openai import OpenAITranslator
from intents.translation.snapshot import take_snapshot
from intents.translators import witness

if TYPE_CHECKING:
    from loadgen.server import ServerProcess

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

CLINIC = bundled_inventories()["clinic"]
SENTENCES = ("triage must run on ward-1.", "Wards are nice places and should stay so.")


async def test_the_engine_holds_the_model_to_the_form_of_an_intent(server: ServerProcess) -> None:
    """The model would answer a greeting with a greeting; held to the schema it must begin an intent."""
    schema = answer_schema(take_snapshot(SENTENCES[0], CLINIC), union_members())
    async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none") as client:
        answered = await client.chat.completions.create(
            model=(await client.models.list()).data[0].id,
            messages=[{"role": "user", "content": "Good morning!"}],
            temperature=0,
            max_tokens=30,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "intent", "schema": schema, "strict": True},
            },
        )
    assert re.match(r'\{\s*"refused"\s*:\s*(null|\{\s*"kind")', answered.choices[0].message.content or "")


@pytest.mark.parametrize("sentence", SENTENCES)
async def test_nothing_that_only_a_weak_model_understood_is_enforced(server: ServerProcess, sentence: str) -> None:
    model = OpenAITranslator(f"{server.base_url}/v1", unions=union_members(), rounds=1, max_tokens=120, timeout_s=250)
    plan = plan_sentence(sentence, CLINIC, model, witness=witness())
    assert plan.tokens > 0
    if plan.refusal is None and not plan.needs_confirmation:
        witnessed = witness().translate(sentence, CLINIC).intent
        assert witnessed is not None
        assert plan.intent is not None
        assert same_effect(plan.intent, witnessed, CLINIC)
