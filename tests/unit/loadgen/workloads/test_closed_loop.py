"""Closed loop: who sends what, however fast the others are."""

from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.workloads import TokenIdSource, parse_workload

SOURCE = TokenIdSource(50_000)
CLOSED = {
    "kind": "closed",
    "users": 3,
    "requests": 10,
    "think_s": {"kind": "uniform", "min": 0.5, "max": 1.5},
    "input_tokens": {"kind": "uniform", "min": 5, "max": 40},
    "output_tokens": 8,
}


def plan(seed=1, **changes):
    return parse_workload(CLOSED | changes).plan(seed, SOURCE)


def test_users_share_the_requests_out_among_them():
    found = [[request.index for request in user.requests] for user in plan().users()]
    assert found == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert plan().concurrent_users == 3
    assert plan().total_requests == 10


def test_a_user_thinks_between_requests_and_not_before_the_first():
    for number, user in enumerate(plan().users()):
        requests = list(user.requests)
        assert requests[0].think_ns == 0
        assert all(0.5e9 <= request.think_ns <= 1.5e9 for request in requests[1:])
        assert {(request.user, request.due_ns) for request in requests} == {(number, None)}


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_a_user_sends_does_not_depend_on_when_the_others_do(random):
    alone = [list(user.requests) for user in plan().users()]
    rows = [user.requests for user in plan().users()]
    mixed = [[], [], []]
    waiting = [0, 1, 2]
    while waiting:
        user = random.choice(waiting)
        request = next(rows[user], None)
        if request is None:
            waiting.remove(user)
        else:
            mixed[user].append(request)
    assert mixed == alone


def test_users_do_not_all_do_the_same():
    first, second = [list(islice(user.requests, 9)) for user in plan(users=2, requests=18).users()]
    assert [request.think_ns for request in first[1:]] != [request.think_ns for request in second[1:]]
    assert [request.prompt.tokens for request in first] != [request.prompt.tokens for request in second]


def test_one_user_more_leaves_think_times_and_lengths_of_the_others_as_they_were():
    before = [list(islice(user.requests, 3)) for user in plan(requests=30).users()]
    after = [list(islice(user.requests, 3)) for user in plan(requests=30, users=4).users()]
    for old, new in zip(before, after, strict=False):
        assert [(r.think_ns, r.prompt.tokens) for r in old] == [(r.think_ns, r.prompt.tokens) for r in new]


def test_a_load_by_time_has_endless_users_that_stop():
    users = list(plan(requests=None, duration_s=4).users())
    assert [user.stop_ns for user in users] == [4_000_000_000] * 3
    assert [request.index for request in islice(users[1].requests, 1000)] == list(range(1, 3001, 3))


def test_users_can_begin_one_after_another():
    assert [user.start_ns for user in plan(ramp_up_s=6).users()] == [0, 2_000_000_000, 4_000_000_000]
    assert len(list(plan(ramp_up_s=6, duration_s=3).users())) == 2


def test_there_are_no_users_without_requests():
    assert len(list(plan(users=30).users())) == 10
