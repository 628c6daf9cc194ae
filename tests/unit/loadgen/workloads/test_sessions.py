"""Sessions: every turn carries the earlier ones, exactly."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.errors import OptionsError
from loadgen.workloads import PromptError, TokenIdSource, parse_workload, requests_in_order

SOURCE = TokenIdSource(50_000)
SESSIONS = {
    "kind": "sessions",
    "arrivals": {"kind": "poisson", "rate": 1},
    "sessions": 6,
    "turns": {"kind": "uniform", "min": 1, "max": 5},
    "think_s": 2,
    "input_tokens": {"kind": "uniform", "min": 3, "max": 20},
    "output_tokens": {"kind": "uniform", "min": 2, "max": 9},
}


def plan(seed=1, **changes):
    return parse_workload(SESSIONS | changes).plan(seed, SOURCE)


def sessions(seed=1, **changes):
    return [list(user.requests) for user in plan(seed, **changes).users()]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 10))
def test_a_turn_begins_with_the_whole_prompt_before_it_and_an_answer_of_the_length_asked_for(seed, prefix):
    for session in sessions(seed, shared_prefix={"tokens": prefix} if prefix else None):
        for before, after in pairwise(session):
            assert after.prompt.token_ids[: before.prompt.tokens] == before.prompt.token_ids
            message = after.prompt.tokens - before.prompt.tokens - before.max_tokens
            assert 3 <= message <= 20


def test_the_first_turn_has_a_due_time_and_later_ones_follow_the_answer():
    for number, session in enumerate(sessions()):
        assert [request.turn for request in session] == list(range(len(session)))
        assert {request.user for request in session} == {number}
        assert session[0].due_ns is not None
        assert session[0].think_ns == 0
        assert {(request.due_ns, request.think_ns) for request in session[1:]} <= {(None, 2_000_000_000)}


def test_turns_are_numbered_through_all_sessions():
    found = [request.index for request in requests_in_order(plan())]
    assert found == list(range(len(found)))
    assert len(found) > 6


def test_sessions_share_the_prefix_and_nothing_more():
    firsts = [session[0].prompt.token_ids for session in sessions(shared_prefix={"tokens": 12})]
    assert len({first[:12] for first in firsts}) == 1
    assert len({first[12] for first in firsts}) == len(firsts)


def test_a_session_is_the_same_whether_the_ones_before_it_were_gone_through_or_not():
    users = list(plan().users())
    last = list(users[-1].requests)
    assert last == sessions()[-1]


def test_a_session_ends_before_it_outgrows_the_context():
    wide = plan(turns=9)
    narrow = plan(turns=9, max_context_tokens=60)
    for session, cut in zip(
        [list(u.requests) for u in wide.users()], [list(u.requests) for u in narrow.users()], strict=True
    ):
        assert [r.prompt for r in cut] == [r.prompt for r in session[: len(cut)]]
        assert cut[-1].prompt.tokens + cut[-1].max_tokens <= 60
        following = session[len(cut)]
        assert following.prompt.tokens + following.max_tokens > 60
    assert narrow.notes() == {"sessions_shortened": 6}


def test_a_first_turn_beyond_the_context_is_an_error():
    with pytest.raises(PromptError, match=r"the first turn of session 0 needs \d+ tokens with its answer, more than"):
        sessions(max_context_tokens=4)


def test_sessions_by_time_begin_no_turn_later():
    users = list(plan(sessions=None, duration_s=3).users())
    assert users
    assert all(user.start_ns < 3e9 and user.stop_ns == 3_000_000_000 for user in users)


def test_sessions_without_turns_are_refused():
    with pytest.raises(OptionsError, match="turns can be 0, but a session has at least one"):
        plan(turns=0)
