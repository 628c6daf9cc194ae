"""Having layers moved: asked once, again only what was aborted or not now, and told when it cannot be done."""

from dataclasses import replace
from typing import Any

import pytest

from intents.errors import EnforcementError, InventoryError
from intents.live_midstream import Change, HeadAway, LayoutRefused, RunningPipeline
from intents.mover import Mover, Told, still_there
from intents.moves import Move
from intents.proof.checker import check
from tests.unit.intents.test_moves import RUNNING, eu_only, observed

MOVED = replace(RUNNING, nodes=("edge-1", "edge-3"), epoch=4)


def change(state: str, number: int = 1, reason: str | None = None) -> Change:
    return Change(id=f"change-{number}", state=state, reason=reason)  # type: ignore[arg-type]


def replace_change(change: Change, **fields: Any) -> Change:
    return change.model_copy(update=fields)


class FakeHead:
    """Answers in order; a change that was committed is seen at the next look."""

    def __init__(self, *answers: Change | Exception, running: RunningPipeline = RUNNING) -> None:
        self.answers, self.running = list(answers), running
        self.asked: list[tuple[str, str]] = []

    def ask_for(self, layers: str, key: str) -> Change:
        self.asked.append((layers, key))
        return self._answer()

    def await_end(self, change: str) -> Change:
        self.asked.append(("await", change))
        return self._answer()

    def _answer(self) -> Change:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer.state == "committed":
            self.running = MOVED
        return answer


class Bench:
    def __init__(self, *answers: Change | Exception) -> None:
        self.head = FakeHead(*answers)
        self.published: list[Move] = []
        self.told: list[Told] = []
        self.paused: list[float] = []
        self.intents: list[Any] = [eu_only()]
        self.mover = Mover(
            self.head, self.published.append, self.told.append, sleep=self.paused.append, clock=lambda: sum(self.paused)
        )

    def move(self) -> bool | None:
        return self.mover.move(lambda: (observed(self.head.running), self.intents, self.head.running))

    @property
    def steps(self) -> list[str]:
        return [each.what for each in self.told]

    @property
    def keys(self) -> list[str]:
        return [key.rpartition(".")[2] for _, key in self.head.asked]


def test_layers_are_moved_once_and_what_for_is_told():
    bench = Bench(change("running"), change("committed"))
    assert bench.move() is True
    assert bench.steps == ["requested", "moved"]
    assert [move.key for move in bench.published] == [bench.head.asked[0][1]]
    line = bench.told[0].as_dict()
    assert (line["requested"], line["intents"], line["to"]) == ("smollm", ["eu-only"], "15@edge-1,15@edge-3")
    assert "edge-2" in line["reason"]
    assert bench.told[1].as_dict()["change"] == "change-1"
    assert bench.move() is None
    assert len(bench.published) == 1


def test_an_aborted_change_is_asked_for_anew_with_growing_pauses_and_not_for_ever():
    bench = Bench(*(change("aborted", number, "no room") for number in (1, 2, 3)))
    assert bench.move() is False
    assert (bench.keys, bench.paused) == (["1", "2", "3"], [1.0, 2.0])
    assert bench.steps == ["requested", "aborted"] * 3 + ["not moved"]
    assert bench.told[-1].why == "change-3 was aborted, as 2 before: no room"


def test_what_a_mover_before_asked_for_in_vain_is_asked_for_anew_and_does_not_count():
    before = [replace_change(change("aborted", number), repeated=True) for number in (1, 2, 3)]
    bench = Bench(*before, change("aborted", 4), change("committed", 5))
    assert bench.move() is True
    assert bench.keys == ["1", "2", "3", "4", "5"]
    assert (bench.steps.count("aborted"), bench.paused) == (1, [1.0])


def test_a_head_that_has_seen_it_all_is_not_asked_for_ever():
    bench = Bench(*[replace_change(change("aborted"), repeated=True)] * 100)
    assert bench.move() is False
    assert len(bench.head.asked) < 40


def test_what_is_aborted_once_can_be_done_the_second_time():
    bench = Bench(change("aborted"), change("committed", 2))
    assert bench.move() is True
    assert bench.steps == ["requested", "aborted", "requested", "moved"]


def test_what_the_head_cannot_do_now_is_asked_again_with_the_same_key():
    bench = Bench(LayoutRefused("change-7 is under way", "busy"), HeadAway("away"), change("committed"))
    assert bench.move() is True
    assert (bench.keys, bench.paused, len(bench.published)) == (["1", "1", "1"], [1.0, 2.0], 1)


def test_nobody_waits_for_ever_for_a_head_that_never_can():
    bench = Bench(*[LayoutRefused("nobody allows it", "guard_silent")] * 100)
    assert bench.move() is False
    assert 60 < sum(bench.paused) < 90
    assert bench.steps == ["requested", "not moved"]
    assert bench.told[-1].why == "nobody allows it (for 60 s)"


@pytest.mark.parametrize("error", [LayoutRefused("the intents forbid it", "forbidden"), InventoryError("no sense")])
def test_any_other_refusal_is_final_and_a_violation_is_told_that_says_what_goes_on(error: Exception):
    bench = Bench(error)
    assert bench.move() is False
    assert (bench.steps, len(bench.head.asked)) == (["requested", "not moved"], 1)
    (violated,) = bench.told[-1].violations
    assert (violated.intent, violated.objects) == ("eu-only", ("smollm", "edge-2"))
    assert violated.reason.startswith(
        f"smollm stays on edge-2, as it cannot be moved: {error}; it computes nothing there if"
    )


def test_that_somebody_else_has_moved_them_is_well():
    bench = Bench(LayoutRefused("it has that layout", "unchanged"))
    looks = iter([RUNNING, MOVED])

    def look() -> Any:
        running = next(looks)
        return observed(running), bench.intents, running

    assert bench.mover.move(look) is True
    assert bench.steps == ["requested"]


def test_an_event_that_cannot_be_published_does_not_hinder_and_is_told():
    bench = Bench(change("committed"))

    def publish(_: Move) -> None:
        raise EnforcementError("http://broker: connection refused")

    mover = Mover(bench.head, publish, bench.told.append)
    assert mover.move(lambda: (observed(bench.head.running), bench.intents, bench.head.running)) is True
    assert bench.told[0].why == "the event could not be published: http://broker: connection refused"


def test_where_there_is_no_layout_nothing_is_asked():
    bench = Bench()
    bench.head.running = replace(RUNNING, awake=False)
    assert bench.move() is False
    assert (bench.steps, bench.head.asked, bench.published) == (["not moved"], [], [])


def test_of_a_pipeline_that_is_not_known_nothing_is_asked():
    bench = Bench()
    assert bench.mover.move(lambda: (observed(), bench.intents, None)) is None


def test_what_goes_on_where_it_must_not_is_not_called_closed():
    failures = check([eu_only()], observed()).failures
    with pytest.raises(EnforcementError, match="smollm goes on running on edge-2 until its guard stops it, or it is"):
        still_there(RUNNING, failures)
    still_there(None, failures)
    still_there(replace(RUNNING, stopped="the intents forbid it"), failures)
    still_there(RUNNING, [])
