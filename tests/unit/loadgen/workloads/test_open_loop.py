"""Open loop: due times, lengths, prompts, and what a seed keeps when something else changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.workloads import PromptError, TokenIdSource, parse_workload, requests_in_order

SOURCE = TokenIdSource(50_000)
OPEN = {
    "kind": "open",
    "arrivals": {"kind": "poisson", "rate": 10},
    "requests": 50,
    "input_tokens": {"kind": "uniform", "min": 5, "max": 40},
    "output_tokens": {"kind": "uniform", "min": 1, "max": 9},
}


def plan(seed=1, source=SOURCE, **changes):
    return parse_workload(OPEN | changes).plan(seed, source)


def requests(seed=1, source=SOURCE, **changes):
    return list(requests_in_order(plan(seed, source, **changes)))


class WithSpecials(TokenIdSource):
    special_tokens = 2

    def prompt(self, words):
        prompt = super().prompt(words)
        return type(prompt)(prompt.tokens + 2, None, (1, *prompt.token_ids, 2))


@settings(deadline=None)
@given(st.integers(0, 2**64))
def test_the_same_seed_gives_the_same_requests(seed):
    assert requests(seed) == requests(seed)


def test_a_plan_can_be_gone_through_again():
    once = plan()
    assert list(requests_in_order(once)) == list(requests_in_order(once))


def test_another_seed_gives_other_moments_lengths_and_prompts():
    for one, other in zip(requests(1), requests(2), strict=True):
        assert one.due_ns != other.due_ns
        assert one.prompt != other.prompt
    assert [r.max_tokens for r in requests(1)] != [r.max_tokens for r in requests(2)]


def test_requests_are_numbered_in_the_order_of_their_due_times_and_each_is_a_user_of_its_own():
    found = requests()
    assert [request.index for request in found] == list(range(50))
    assert [request.due_ns for request in found] == sorted(request.due_ns for request in found)
    assert {(request.user, request.turn, request.think_ns, request.phase) for request in found} == {(None, 0, 0, None)}
    assert [user.start_ns for user in plan().users()] == [request.due_ns for request in found]


@settings(deadline=None)
@given(st.integers(1, 30), st.sampled_from([SOURCE, WithSpecials(5000)]), st.integers(0, 20))
def test_prompts_have_exactly_the_length_asked_for(extra, source, prefix):
    shared = {"tokens": prefix} if prefix else None
    length = source.special_tokens + extra
    for request in requests(source=source, requests=5, input_tokens=length, shared_prefix=shared):
        assert request.prompt.tokens == len(request.prompt.token_ids) == length + prefix


def test_a_prompt_of_special_tokens_alone_is_refused():
    with pytest.raises(Exception, match="input_tokens can be 2, but the least is 3 with this tokenizer"):
        plan(source=WithSpecials(5000), input_tokens=2)
    with pytest.raises(PromptError, match="a prompt of 2 tokens of its own cannot be made"):
        plan(source=WithSpecials(5000)).scope.prompt(SOURCE.prompt, 2, 0)


def test_prompts_differ_from_their_first_token_on():
    assert len({request.prompt.token_ids[0] for request in requests(requests=1000)}) == 1000


def test_a_shared_prefix_is_all_that_prompts_share():
    found = requests(shared_prefix={"tokens": 16})
    assert len({request.prompt.token_ids[:16] for request in found}) == 1
    assert len({request.prompt.token_ids[16] for request in found}) == len(found)


def test_prefix_groups_are_spread_over_the_requests():
    found = requests(requests=300, shared_prefix={"tokens": 16, "groups": 3})
    prefixes = [request.prompt.token_ids[:16] for request in found]
    assert len(set(prefixes)) == 3
    assert all(prefixes.count(prefix) > 50 for prefix in set(prefixes))


def test_changing_one_thing_leaves_the_others_as_they_were():
    before = requests()
    longer = requests(output_tokens=500)
    assert [(r.due_ns, r.prompt) for r in longer] == [(r.due_ns, r.prompt) for r in before]
    faster = requests(arrivals={"kind": "gamma", "rate": 99, "cv": 2})
    assert [(r.prompt, r.max_tokens) for r in faster] == [(r.prompt, r.max_tokens) for r in before]
    more = requests(requests=80)
    assert more[:50] == before
    prefixed = requests(shared_prefix={"tokens": 7})
    assert [r.prompt.token_ids[7:] for r in prefixed] == [r.prompt.token_ids for r in before]


def test_time_and_number_end_the_load_whichever_comes_first():
    assert len(requests(duration_s=1000)) == 50
    by_time = requests(requests=None, duration_s=2)
    assert by_time == [request for request in requests() if request.due_ns < 2e9]
    assert plan().total_requests == 50
    assert plan().duration_ns is None
    assert plan(duration_s=2).total_requests is None
    assert plan(duration_s=2).duration_ns == 2_000_000_000
    assert plan().concurrent_users is None


def test_what_a_seed_means_does_not_change_unnoticed():
    # Results are compared across versions by their seeds: if this must change, say so in the changelog.
    request = requests(7)[3]
    assert (request.due_ns, request.max_tokens) == (27852222, 8)
    assert request.prompt.token_ids[:6] == (3628, 31643, 48663, 37192, 33941, 4859)
