"""The pause of a change as the pipeline itself sees it."""

import pytest

from runtime.engine.rhythm import Rhythm


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rhythm(clock: Clock) -> Rhythm:
    return Rhythm(clock)


def answer(rhythm: Rhythm, clock: Clock, *gaps: float) -> None:
    for gap in gaps:
        rhythm.asked()
        clock.now += gap
        rhythm.answered()


def test_the_pause_is_the_largest_gap_beyond_the_usual_one(rhythm: Rhythm, clock: Clock):
    answer(rhythm, clock, 0.04, 0.04, 0.05, 0.04)
    since = clock.now + 0.001
    answer(rhythm, clock, 0.05, 0.09, 0.04)
    assert rhythm.pause_ms(since, clock.now) == 50.0


def test_a_gap_that_ends_in_the_change_or_begins_in_it_counts(rhythm: Rhythm, clock: Clock):
    answer(rhythm, clock, 0.01, 0.01)
    rhythm.asked()
    clock.now += 0.5
    since = until = clock.now
    clock.now += 0.5
    rhythm.answered()
    assert rhythm.pause_ms(since, until) == 990.0


def test_waiting_for_a_request_is_no_pause(rhythm: Rhythm, clock: Clock):
    answer(rhythm, clock, 0.01, 0.01)
    rhythm.idle()
    since = clock.now
    clock.now += 60
    answer(rhythm, clock, 0.03)
    assert rhythm.pause_ms(since + 1, clock.now) == 20.0


def test_without_answers_there_is_no_figure(rhythm: Rhythm, clock: Clock):
    assert rhythm.pause_ms(0, 1000) is None
    answer(rhythm, clock, 0.01)
    assert rhythm.pause_ms(0, 1000) is None  # nothing before to compare with
    assert rhythm.pause_ms(clock.now + 1, clock.now + 2) is None


def test_a_faster_change_is_no_negative_pause(rhythm: Rhythm, clock: Clock):
    answer(rhythm, clock, 0.04, 0.04)
    since = clock.now + 0.001
    answer(rhythm, clock, 0.01, 0.01)
    assert rhythm.pause_ms(since, clock.now) == 0.0


class TestLatest:
    def test_it_is_the_mean_of_the_gaps_within_that_time(self, rhythm: Rhythm, clock: Clock):
        answer(rhythm, clock, 0.5, 0.03, 0.05)
        assert rhythm.latest_s(0.1) == pytest.approx(0.04)

    def test_a_gap_much_longer_than_most_is_left_out(self, rhythm: Rhythm, clock: Clock):
        answer(rhythm, clock, 0.03, 0.03, 0.03, 0.2, 0.05)
        assert rhythm.latest_s(10) == pytest.approx(0.035)

    def test_there_is_none_without_answers_in_that_time(self, rhythm: Rhythm, clock: Clock):
        assert rhythm.latest_s(10) is None
        answer(rhythm, clock, 0.03)
        clock.now += 1
        assert rhythm.latest_s(0.5) is None

    def test_what_disturbed_one_second_is_not_in_the_best_of_them(self, rhythm: Rhythm, clock: Clock):
        assert rhythm.undisturbed_s(3) is None
        answer(rhythm, clock, *[0.125] * 8, *[0.25] * 4, *[0.5] * 2)
        assert rhythm.undisturbed_s(3) == pytest.approx(0.125)
        assert rhythm.undisturbed_s(2) == pytest.approx(0.25)
