"""What a stream of the mock goes through follows from settings, seed and prompt alone."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.mock.behaviour import Behaviour, Fault, TimedStall, TokenSource, read_fault, read_stall, script

MS = 1_000_000


def offsets_ms(behaviour: Behaviour, tokens: int, prompt: str = "p", occurrence: int = 0) -> list[float]:
    return [step.offset_ns / MS for step in script(behaviour, prompt, occurrence, tokens).steps]


class TestSchedule:
    def test_each_token_has_its_own_moment_on_an_absolute_schedule(self):
        assert offsets_ms(Behaviour(ttft_ms=50, itl_ms=20), 4) == [50, 70, 90, 110]

    def test_a_chunk_leaves_when_its_first_token_is_due_and_the_last_one_may_be_short(self):
        steps = list(script(Behaviour(ttft_ms=10, itl_ms=5, tokens_per_chunk=4), "p", 0, 10).steps)
        assert [(s.offset_ns / MS, s.first, s.count) for s in steps] == [(10, 0, 4), (30, 4, 4), (50, 8, 2)]

    def test_a_stall_delays_its_token_and_all_after_it(self):
        behaviour = Behaviour(ttft_ms=10, itl_ms=5, faults=(Fault("stall", 2, 300), Fault("stall", 3, 100)))
        assert offsets_ms(behaviour, 5) == [10, 15, 320, 425, 430]

    @given(
        ttft=st.floats(0, 1e4),
        itl=st.floats(0, 1e3),
        jitter=st.floats(0, 1e3),
        seed=st.integers(),
        size=st.integers(1, 9),
        tokens=st.integers(1, 200),
    )
    def test_jitter_is_bounded_never_early_never_accumulates_and_keeps_the_order(
        self, ttft, itl, jitter, seed, size, tokens
    ):
        behaviour = Behaviour(ttft_ms=ttft, itl_ms=itl, jitter_ms=jitter, seed=seed, tokens_per_chunk=size)
        steps = list(script(behaviour, "p", 0, tokens).steps)
        assert sum(step.count for step in steps) == tokens
        assert all(a.offset_ns <= b.offset_ns for a, b in pairwise(steps))
        for step in steps:
            late = step.offset_ns / MS - (ttft + step.first * itl)
            assert -1e-5 <= late <= jitter + 1e-5


class TestDeterminism:
    RATES = Behaviour(error_rate=0.2, disconnect_rate=0.2, truncate_rate=0.2, empty_rate=0.2, jitter_ms=5, seed=7)

    def fates(self, behaviour: Behaviour, occurrence: int = 0) -> list[tuple[int, dict[int, Fault]]]:
        scripts = [script(behaviour, f"prompt {n}", occurrence, 20) for n in range(200)]
        return [(each.tokens, each.faults) for each in scripts]

    def test_the_same_seed_and_prompt_meet_the_same_and_another_seed_or_occurrence_does_not(self):
        assert self.fates(self.RATES) == self.fates(self.RATES)
        assert offsets_ms(self.RATES, 20) == offsets_ms(self.RATES, 20)
        assert self.fates(self.RATES) != self.fates(self.RATES, occurrence=1)
        other = Behaviour(error_rate=0.2, disconnect_rate=0.2, truncate_rate=0.2, empty_rate=0.2, jitter_ms=5, seed=8)
        assert self.fates(self.RATES) != self.fates(other)

    def test_each_rate_breaks_its_share_and_never_before_the_first_token(self):
        fates = self.fates(self.RATES)
        kinds = ["empty" if not tokens else next((f.kind for f in faults.values()), "none") for tokens, faults in fates]
        for kind in ("error", "disconnect", "truncate", "empty", "none"):
            assert 20 <= kinds.count(kind) <= 60
        assert all(1 <= at < 20 for _, faults in fates for at in faults)

    def test_tokens_depend_on_prompt_temperature_and_seed_alone(self):
        def first(prompt: str, temperature: float, seed: int | None) -> list[int]:
            return [TokenSource(prompt, temperature, seed).at(index) for index in range(8)]

        assert first("a", 0.0, 1) == first("a", 0.0, 2)
        assert first("a", 0.8, 1) != first("a", 0.8, 2)
        assert first("a", 0.0, 1) != first("b", 0.0, 1)


class TestReading:
    def test_a_stall_is_before_a_token_or_after_seconds(self):
        assert read_stall("12:300") == Fault("stall", 12, 300)
        assert read_stall("1.5s:300") == TimedStall(1.5, 300)

    def test_a_fault_has_a_kind_and_a_token(self):
        assert read_fault("error:9") == Fault("error", 9)
        assert read_fault("stall:9:50") == Fault("stall", 9, 50)

    @pytest.mark.parametrize("text", ["", "12", "x:3", "12:", "12:-1", "1.5:300", "12:inf", "s:1"])
    def test_a_stall_that_makes_no_sense_is_refused_with_the_text(self, text):
        with pytest.raises(ValueError, match="stall"):
            read_stall(text)

    @pytest.mark.parametrize("text", ["", "error", "burn:3", "error:x", "error:3:4", "stall:3"])
    def test_a_fault_that_makes_no_sense_is_refused_with_the_text(self, text):
        with pytest.raises(ValueError, match="fault"):
            read_fault(text)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"itl_ms": -1.0}, "itl_ms is -1"),
            ({"tokens_per_chunk": 0}, "at least one token"),
            ({"error_rate": 0.7, "empty_rate": 0.4}, "together at most 1"),
            ({"error_rate": -0.1}, "each is 0 or more"),
            ({"refuse_status": 200}, "from 400 to 599"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            Behaviour(**settings)
