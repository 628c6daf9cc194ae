from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.migration.stop_rule import CopyRound, Judgement, StopRule, Verdict

MB = 1_000_000
RULE = StopRule(pause_aim_s=0.010, pause_limit_s=0.050, round_cap=8)

sizes = st.integers(0, 10**12)
rounds = st.builds(CopyRound, sizes, st.floats(0, 1e4), sizes)
histories = st.lists(rounds, min_size=1, max_size=12)
pauses = st.floats(0, 10)
rules = st.builds(lambda aim, more, cap: StopRule(aim, aim + more, cap), pauses, pauses, st.integers(1, 10))


def left_behind(*stale_mb: float) -> list[CopyRound]:
    """Rounds of one second at 100 MB/s that left so many MB stale: the aim is worth 1 MB, the limit 5."""
    return [CopyRound(100 * MB, 1.0, int(stale * MB)) for stale in stale_mb]


@pytest.mark.parametrize("stale", [0, 0.5, 1])
def test_what_fits_the_pause_aimed_for_at_the_measured_rate_is_cut_over(stale: float):
    assert RULE.judge(left_behind(50, stale)).verdict is Verdict.CUT_OVER


def test_what_does_not_fit_yet_but_shrinks_is_copied_again():
    assert RULE.judge(left_behind(50)).verdict is Verdict.COPY_AGAIN
    assert RULE.judge(left_behind(50, 40, 30, 20)).verdict is Verdict.COPY_AGAIN


@pytest.mark.parametrize("stale", [(10, 10, 10), (50, 10, 20, 11), (9, 10, 9), (20, 5, 6, 7)])
def test_two_rounds_in_a_row_without_a_new_minimum_give_up(stale: tuple[float, ...]):
    assert RULE.judge(left_behind(*stale)).verdict is Verdict.GIVE_UP


@pytest.mark.parametrize("stale", [(10, 20), (10, 20, 9), (50, 10, 20), (9, 10, 8, 9)])
def test_one_round_without_a_new_minimum_may_happen(stale: tuple[float, ...]):
    assert RULE.judge(left_behind(*stale)).verdict is Verdict.COPY_AGAIN


def test_the_round_cap_ends_what_shrinks_too_slowly():
    shrinking = left_behind(*range(50, 50 - RULE.round_cap, -1))
    assert RULE.judge(shrinking[:-1]).verdict is Verdict.COPY_AGAIN
    assert RULE.judge(shrinking).verdict is Verdict.GIVE_UP


def test_even_the_last_round_cuts_over_when_the_rest_fits():
    assert RULE.judge(left_behind(*[50] * (RULE.round_cap - 1), 1)).verdict is Verdict.CUT_OVER


@pytest.mark.parametrize(("stale", "reason"), [((9, 4, 4, 4), "no progress"), (range(50, 3, -6), "round cap")])
def test_what_gets_no_better_is_cut_over_when_it_is_within_the_limit(stale: tuple[float, ...], reason: str):
    judged = RULE.judge(left_behind(*stale)[:-1]), RULE.judge(left_behind(*stale[:-1], 4))
    assert judged[0].verdict is Verdict.COPY_AGAIN
    assert judged[1] == Judgement(Verdict.CUT_OVER, reason)


def test_nothing_to_copy_and_nothing_stale_is_cut_over_at_once():
    assert RULE.judge([CopyRound(0, 0.0, 0)]).verdict is Verdict.CUT_OVER
    assert CopyRound(0, 0.0, 0).bytes_per_second == float("inf")


def test_a_round_too_quick_to_measure_has_a_rate_all_the_same():
    assert RULE.judge([CopyRound(MB, 0.0, MB)]).verdict is Verdict.CUT_OVER


def test_giving_up_is_explained_in_numbers():
    assert RULE.explain(left_behind(50, 50, 50)) == (
        "after 3 rounds 50000000 bytes are stale, which is 500 ms at 100.0 MB/s; the limit is 50 ms"
    )


@given(rules, histories)
def test_what_fits_the_aim_is_cut_over_at_once_and_what_exceeds_the_limit_never(
    rule: StopRule, history: list[CopyRound]
):
    verdict, pause_s = rule.judge(history).verdict, history[-1].pause_s
    if pause_s <= rule.pause_aim_s:
        assert verdict is Verdict.CUT_OVER
    if pause_s > rule.pause_limit_s:
        assert verdict is not Verdict.CUT_OVER


@given(rules, histories, st.integers(0, 10**12))
def test_less_stale_never_turns_a_cutover_into_giving_up(rule: StopRule, history: list[CopyRound], less: int):
    """It may turn "no progress" into one more round: less than ever before is progress."""
    judged = rule.judge(history)
    if judged.verdict is Verdict.CUT_OVER:
        fewer = replace(history[-1], stale_bytes=min(less, history[-1].stale_bytes))
        again = rule.judge([*history[:-1], fewer])
        assert again.verdict is not Verdict.GIVE_UP
        assert again.verdict is Verdict.CUT_OVER or judged.reason == "no progress"


def test_a_new_minimum_within_the_limit_but_beyond_the_aim_is_worth_another_round():
    assert RULE.judge(left_behind(4, 4, 4)) == Judgement(Verdict.CUT_OVER, "no progress")
    assert RULE.judge(left_behind(4, 4, 3)).verdict is Verdict.COPY_AGAIN


@given(rules, histories, st.floats(0, 10))
def test_a_longer_pause_never_stops_a_cutover(rule: StopRule, history: list[CopyRound], more: float):
    if rule.judge(history).verdict is Verdict.CUT_OVER:
        patient = replace(rule, pause_aim_s=rule.pause_aim_s + more, pause_limit_s=rule.pause_limit_s + more)
        assert patient.judge(history).verdict is Verdict.CUT_OVER


@given(rules, histories)
def test_a_larger_cap_never_gives_up_sooner(rule: StopRule, history: list[CopyRound]):
    if rule.judge(history).verdict is Verdict.COPY_AGAIN:
        assert replace(rule, round_cap=rule.round_cap + 1).judge(history).verdict is Verdict.COPY_AGAIN


@given(rules, st.lists(rounds, min_size=10, max_size=10))
def test_every_sequence_of_rounds_is_decided_by_the_cap_at_the_latest(rule: StopRule, history: list[CopyRound]):
    verdicts = [rule.judge(history[: count + 1]).verdict for count in range(rule.round_cap)]
    assert verdicts[-1] is not Verdict.COPY_AGAIN


@given(st.lists(sizes, min_size=1, max_size=12), st.integers(2, 12))
def test_giving_up_before_the_cap_means_that_the_minimum_is_two_rounds_old(stale: list[int], cap: int):
    rule = StopRule(pause_aim_s=-1.0, pause_limit_s=-1.0, round_cap=cap)  # nothing fits a negative pause
    verdict = rule.judge([CopyRound(1, 1.0, size) for size in stale]).verdict
    stuck = len(stale) >= 3 and stale.index(min(stale)) < len(stale) - 2
    assert (verdict is Verdict.GIVE_UP) == (stuck or len(stale) >= cap)
