"""The transfer guard over HTTP: the verdict, who may ask, and what a bad question gets."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from intents.errors import EnforcementError, IntentsError
from intents.model.intent import RouteRule
from intents.proof.guard_service import application
from intents.proof.transfer import TransferGuard
from tests.unit.intents.proof.networks import DIAMOND, NOT_US, intent, way

QUESTION = {
    "workload": "chat",
    "old_nodes": ["n1"],
    "new_nodes": ["n2"],
    "transfers": [{"source": "n1", "target": "n2", "path": ["s1", "s2", "s4"]}],
}


def client(token: str | None = None, host: str = "127.0.0.1", flows: Any = list) -> httpx.AsyncClient:
    guard = TransferGuard(DIAMOND, [intent(routes=(RouteRule(switches=NOT_US),))])
    transport = httpx.ASGITransport(application(lambda: guard, flows, host, token))
    return httpx.AsyncClient(transport=transport, base_url="http://guard")


async def ask(http: httpx.AsyncClient, question: Any, **headers: str) -> httpx.Response:
    async with http:
        return await http.post("/check", json=question, headers=headers)


async def test_the_verdict_comes_with_what_was_looked_at():
    answer = (await ask(client(), QUESTION)).json()
    assert answer["holds"]
    assert "n1 -> n2: s1 > s2 > s4 > n2" in answer["checks"][-1]["looked_at"]


async def test_a_forbidden_path_is_refused_with_the_reason():
    forbidden = QUESTION | {"transfers": [{"source": "n1", "target": "n2", "path": ["s1", "s3", "s4"]}]}
    answer = (await ask(client(), forbidden)).json()
    assert not answer["holds"]
    assert "switch s3" in answer["reason"]


async def test_without_a_path_the_installed_rules_are_read():
    question = QUESTION | {"transfers": [{"source": "n1", "target": "n2"}]}
    flows = way(DIAMOND, "n1", "n2", ["s1", "s2", "s4"], "n2")
    assert (await ask(client(flows=lambda: flows), question)).json()["holds"]

    def unreadable() -> list:
        raise EnforcementError("the controller is away")

    answer = await ask(client(flows=unreadable), question)
    assert (answer.status_code, answer.json()["error"]) == (503, "the controller is away")


async def test_a_token_is_asked_for():
    assert (await ask(client("secret", "192.0.2.1"), QUESTION)).status_code == 401
    assert (await ask(client("secret", "192.0.2.1"), QUESTION, Authorization="Bearer wrong")).status_code == 401
    assert (await ask(client("secret", "192.0.2.1"), QUESTION, Authorization="Bearer secret")).json()["holds"]


def test_outside_loopback_there_must_be_one():
    with pytest.raises(IntentsError, match="give it a token, or serve it on loopback"):
        client(None, "192.0.2.1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workload": 3}, "workload: Input should be a valid string"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"transfers": [{"source": "n1"}]}, "transfers.0.target: Field required"),
        ({"state": []}, "state: Tuple should have at least 1 item"),
    ],
)
async def test_a_bad_question_names_the_field(change: dict, message: str):
    answer = await ask(client(), QUESTION | change)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


async def test_a_question_that_is_too_long_is_not_read():
    answer = await ask(client(), QUESTION | {"workload": "x" * (1 << 20)})
    assert answer.status_code == 413
