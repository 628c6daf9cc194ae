"""How fast KV is copied while decoding goes on."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.migration.copy_pace import HURRIED, PacedCopy, PaceRule
from runtime.migration.stop_rule import CopyRound

MB = 1_000_000
RULE = PaceRule(tolerance=0.02, longest_s=30.0, lead=3.0, slower=0.5, faster=1.25, least=1 * MB)
DEADLINE_S = 10.0

paces = st.floats(1, 1e12)
times = st.floats(1e-4, 10)


class TestRule:
    @pytest.mark.parametrize(("stale_mb", "stale_mb_per_s", "floor_mb"), [(90, 0, 3), (90, 2, 6), (3, 0, 1), (0, 0, 1)])
    def test_the_floor_ends_in_time_and_outruns_decoding(self, stale_mb: float, stale_mb_per_s: float, floor_mb: float):
        assert RULE.floor(stale_mb * MB, stale_mb_per_s * MB) == floor_mb * MB

    def test_who_is_waited_for_copies_within_the_drain_time_of_a_function(self):
        """25 s are for the first round, those after it, and for what comes before and after copying."""
        assert HURRIED.longest_s <= 25 / 2 < PaceRule().longest_s

    def test_it_begins_with_half_of_the_longest_time(self):
        assert RULE.next(None, 3 * MB, 0.030, 0.030) == 6 * MB

    @pytest.mark.parametrize(("now_s", "pace_mb"), [(0.0305, 10), (0.025, 10), (0.031, 4), (1.0, 4)])
    def test_it_becomes_slower_when_decoding_suffers_and_else_faster(self, now_s: float, pace_mb: float):
        assert RULE.next(8 * MB, 3 * MB, 0.030, now_s) == pace_mb * MB

    @pytest.mark.parametrize(("usual_s", "now_s"), [(None, 0.03), (0.03, None), (None, None)])
    @pytest.mark.parametrize("pace", [None, 8 * MB])
    def test_what_disturbs_nobody_has_no_limit(self, pace: float | None, usual_s: float | None, now_s: float | None):
        assert RULE.next(pace, 3 * MB, usual_s, now_s) is None

    @given(pace=st.none() | paces, floor=paces, usual_s=times, now_s=st.lists(times, min_size=1, max_size=20))
    def test_whatever_decoding_does_the_pace_stays_above_the_floor(
        self, pace: float | None, floor: float, usual_s: float, now_s: list[float]
    ):
        for now in now_s:
            pace = RULE.next(pace, floor, usual_s, now)
            assert pace is not None
            assert pace >= floor


class Answers:
    """Decoding, of which a test says how it goes; `None` is idle."""

    def __init__(self, usual_s: float | None) -> None:
        self.now_s = usual_s

    def latest_s(self, seconds: float) -> float | None:
        assert seconds > 0
        return self.now_s

    def undisturbed_s(self, seconds: int) -> float | None:
        return self.latest_s(seconds)


class Copy:
    """A copy whose round ends when it was given so many paces."""

    def __init__(self, paces: int, copied: CopyRound | Exception) -> None:
        self.paces: list[float | None] = []
        self._wanted, self._copied = paces, copied
        self._enough = threading.Event()

    def pace(self, bytes_per_second: float | None) -> None:
        self.paces.append(bytes_per_second)
        if len(self.paces) == self._wanted:
            self._enough.set()

    def round(self) -> CopyRound:
        assert self._enough.wait(DEADLINE_S)
        if isinstance(self._copied, Exception):
            raise self._copied
        return self._copied


def paced(answers: Answers, stale_mb: float) -> PacedCopy:
    copy = PacedCopy(answers, RULE, period_s=0.001)
    copy.begin(int(stale_mb * MB))
    return copy


class TestPacedCopy:
    def test_a_round_that_nobody_feels_gets_faster_and_faster(self):
        copy = Copy(3, CopyRound(90 * MB, 1.0, 0))
        assert paced(Answers(0.03), 90).round(copy) == CopyRound(90 * MB, 1.0, 0)
        assert copy.paces[:3] == [6 * MB, 7.5 * MB, 9.375 * MB]

    def test_a_round_that_decoding_feels_goes_down_to_the_floor(self):
        answers = Answers(0.03)
        whole, copy = paced(answers, 90), Copy(5, CopyRound(90 * MB, 1.0, 0))
        answers.now_s = 0.04
        whole.round(copy)
        assert copy.paces[:3] == [6 * MB, 3 * MB, 3 * MB]

    def test_the_next_round_goes_on_at_the_pace_of_the_last_unless_it_has_to_outrun_decoding(self):
        answers = Answers(0.03)
        whole, copy = paced(answers, 90), Copy(4, CopyRound(90 * MB, 10.0, 40 * MB))
        answers.now_s = 0.04
        whole.round(copy)
        again = Copy(1, CopyRound(40 * MB, 1.0, 0))
        whole.round(again)
        assert again.paces[0] == 12 * MB, "three times the 4 MB that decoding made stale per second"

    def test_nothing_holds_it_back_once_nobody_waits_for_an_answer(self):
        answers = Answers(0.03)
        whole = paced(answers, 90)
        answers.now_s = None
        copy = Copy(2, CopyRound(90 * MB, 1.0, 0))
        whole.round(copy)
        assert set(copy.paces) == {None}

    def test_a_round_that_fails_leaves_no_thread(self):
        before = threading.active_count()
        with pytest.raises(RuntimeError, match="the link broke"):
            paced(Answers(0.03), 90).round(Copy(2, RuntimeError("the link broke")))
        assert threading.active_count() == before
