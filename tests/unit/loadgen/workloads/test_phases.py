"""Phases: one workload after another, each as it would be alone."""

from itertools import islice

import pytest

from loadgen.errors import OptionsError
from loadgen.workloads import TokenIdSource, parse_workload

SOURCE = TokenIdSource(50_000)
OPEN = {"kind": "open", "arrivals": {"kind": "constant", "rate": 2}, "input_tokens": 50, "output_tokens": 2}
CLOSED = {"kind": "closed", "users": 2, "input_tokens": 5, "output_tokens": 60}
SESSIONS = {
    "kind": "sessions",
    "arrivals": {"kind": "constant", "rate": 1},
    "turns": 2,
    "input_tokens": 5,
    "output_tokens": 5,
}


def phase(name, workload, duration_s=3):
    return {"name": name, "duration_s": duration_s, "workload": workload}


def plan(*phases, seed=1):
    return parse_workload({"kind": "phases", "phases": list(phases)}).plan(seed, SOURCE)


def test_phases_follow_each_other_in_time_and_are_named():
    users = list(plan(phase("prefill", OPEN), phase("decode", CLOSED), phase("talk", SESSIONS)).users())
    assert [user.start_ns / 1e9 for user in users] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3, 6, 7, 8]
    assert [user.stop_ns / 1e9 for user in users] == [3] * 6 + [6] * 2 + [9] * 3
    assert [next(user.requests).phase for user in users] == ["prefill"] * 6 + ["decode"] * 2 + ["talk"] * 3


def test_indices_and_users_are_unique_over_all_phases():
    requests = [
        request
        for user in plan(phase("a", OPEN), phase("b", CLOSED), phase("c", SESSIONS)).users()
        for request in islice(user.requests, 4)
    ]
    assert len({request.index for request in requests}) == len(requests)
    closed = {request.user for request in requests if request.phase == "b"}
    talking = {request.user for request in requests if request.phase == "c"}
    assert len(closed) == 2
    assert not closed & talking


def test_two_phases_alike_send_different_prompts():
    requests = [request for user in plan(phase("a", OPEN), phase("b", OPEN)).users() for request in user.requests]
    assert len({request.prompt.token_ids[0] for request in requests}) == len(requests)
    assert len({request.prompt.token_ids[-20:] for request in requests}) == len(requests)


def test_another_phase_before_leaves_a_phase_as_it_was():
    poisson = OPEN | {"arrivals": {"kind": "poisson", "rate": 4}}
    alone = [next(user.requests) for user in plan(phase("b", poisson)).users()]
    after = [next(user.requests) for user in plan(phase("a", CLOSED, 7), phase("b", poisson)).users()][2:]
    assert [request.due_ns - 7_000_000_000 for request in after] == [request.due_ns for request in alone]
    for one, other in zip(alone, after, strict=True):
        assert one.prompt.token_ids[2:] == other.prompt.token_ids[2:]  # behind the words that tell prompts apart


def test_the_same_prefix_is_shared_across_phases():
    prefixed = OPEN | {"shared_prefix": {"tokens": 9}}
    requests = [next(user.requests) for user in plan(phase("a", prefixed), phase("b", prefixed)).users()]
    assert len({request.prompt.token_ids[:9] for request in requests}) == 1


def test_a_plan_of_phases_lasts_as_long_as_they_do():
    assert plan(phase("a", OPEN, 2.5), phase("b", CLOSED, 4)).duration_ns == 6_500_000_000


def test_a_phase_may_end_earlier_by_number():
    assert len(list(plan(phase("a", OPEN | {"requests": 2})).users())) == 2


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([phase("a", OPEN), phase("a", OPEN)], "workload.phases: two phases are called 'a'"),
        ([phase("a", OPEN | {"duration_s": 9})], r"workload.phases\[0\]: phase 'a' lasts 3 s: leave duration_s out"),
        (
            [phase("a", {"kind": "phases", "phases": [phase("b", OPEN)]})],
            r"workload.phases\[0\].workload: input tag 'phases' found",
        ),
    ],
)
def test_impossible_phases_are_refused(phases, told):
    with pytest.raises(OptionsError, match=told):
        plan(*phases)


def test_what_a_phase_refuses_is_told_with_its_name():
    with pytest.raises(OptionsError, match="phase 'b': input_tokens can be 0"):
        plan(phase("a", OPEN), phase("b", CLOSED | {"input_tokens": 0}))
