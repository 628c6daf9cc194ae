"""Random re-splits under everything at once: arrivals, aborts, preemption, prefill, greedy and seeded streams."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tests.integration.engine.harness import Harness, Prompt, tokens

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]

CHANGES = 20
STREAMS = 8


def test_i3_no_token_is_lost_or_changed_over_twenty_random_changes_under_load(two_stages: Harness) -> None:
    chance = random.Random(20)
    prompts = {
        f"r{i}": Prompt(
            f"stream {i} " + "the thin " * (4 * i),
            {"max_tokens": 150, **({"temperature": 0.9, "seed": i} if i % 2 else {})},
        )
        for i in range(STREAMS)
    }
    undisturbed = {}
    for name, prompt in prompts.items():  # one at a time: no preemption, no company
        undisturbed |= two_stages.run({name: prompt})
        two_stages.engine.reset_prefix_cache()
    reference = tokens(undisturbed)
    preempted_before = two_stages.preemptions()

    coordinator = two_stages.pipeline.coordinator
    accepted: list[str] = []
    guests: dict[str, int] = {}

    def between(steps: int) -> None:
        if coordinator.current is None and len(accepted) < CHANGES:
            layout = _other_layout(chance, str(two_stages.pipeline.layout()))
            accepted.append(coordinator.request(layout).id)
        if steps % 7 == 0:
            (guest,) = two_stages.add({"guest": Prompt("a guest " * chance.randint(1, 25), {"max_tokens": 30})})
            guests[guest] = steps + chance.randint(1, 12)
        for guest in [g for g, until in guests.items() if until <= steps]:
            del guests[guest]
            two_stages.engine.abort_request([guest])

    while len(accepted) < CHANGES:
        assert tokens(two_stages.run(prompts, between)) == reference
    two_stages.idle()
    reports = [coordinator.find(change).report() for change in accepted]
    assert [report for report in reports if report["state"] != "committed"] == []
    assert two_stages.preemptions() > preempted_before, "the load was meant to preempt"
    assert two_stages.pipeline.dispatcher.counters.carried_requests > CHANGES


def _other_layout(chance: random.Random, current: str) -> str:
    while True:
        cuts = sorted(chance.sample(range(1, 6), chance.randint(0, 3)))
        bounds = [0, *cuts, 6]
        layout = ",".join(str(b - a) for a, b in pairwise(bounds))
        if layout != current:
            return layout
