import pytest
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy

from runtime.engine.ledger import Footprint, Ledger
from runtime.engine.messages import ScheduledBatch
from tests.unit.runtime.engine.batches import BLOCK_TOKENS, batch, known, new, output


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(BLOCK_TOKENS)


def footprint(requests: str = "", blocks: tuple[int, ...] = (), written: tuple[int, ...] = ()) -> Footprint:
    return Footprint(frozenset(requests), frozenset(blocks) | frozenset(written), frozenset(written))


# -- footprints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        (footprint("a", (1,), (2,)), footprint("b", (3,), (4,)), False),
        (footprint("a", (1,), (2,)), footprint("b", (1,), (4,)), False),  # both only read block 1: a shared prefix
        (footprint("a", (1,), (2,)), footprint("a", (3,), (4,)), True),
        (footprint("a", (1,), (2,)), footprint("b", (2,), (4,)), True),
        (footprint("a", (1,), (2,)), footprint("b", (3,), (1,)), True),
        (footprint("a", (1,), (2,)), footprint("b", (3,), (2,)), True),
        (footprint(), footprint("b", (3,), (2,)), False),
    ],
)
def test_two_batches_conflict_when_they_share_a_request_or_one_writes_what_the_other_uses(first, second, conflict):
    assert first.conflicts_with(second) is conflict
    assert second.conflicts_with(first) is conflict


def test_a_new_request_reads_all_its_blocks_and_writes_those_of_its_tokens(ledger: Ledger):
    touched = ledger.dispatched(batch(new("a", 10, [5, 6, 7], computed=4), tokens=3))
    assert touched == Footprint(frozenset({"a"}), frozenset({5, 6, 7}), frozenset({6}))


def test_a_known_request_writes_where_it_goes_on_even_into_a_block_it_just_got(ledger: Ledger):
    ledger.dispatched(batch(new("a", 6, [5, 6]), tokens=6))
    touched = ledger.dispatched(batch(known("a", 6, [9]), tokens=3))
    assert touched == Footprint(frozenset({"a"}), frozenset({5, 6, 9}), frozenset({6, 9}))


def test_a_resumed_request_forgets_its_former_blocks(ledger: Ledger):
    ledger.dispatched(batch(new("a", 6, [5, 6]), tokens=6))
    touched = ledger.dispatched(batch(known("a", 0, [7, 8], resumed=True), tokens=6))
    assert touched == Footprint(frozenset({"a"}), frozenset({7, 8}), frozenset({7, 8}))


def test_a_batch_that_tells_of_the_end_of_a_request_conflicts_with_one_that_still_computes_it(ledger: Ledger):
    computing = ledger.dispatched(batch(new("a", 4, [5]), tokens=4))
    telling = ledger.dispatched(batch(new("b", 4, [6]), tokens=4, finished=["a"]))
    assert telling == Footprint(frozenset({"a", "b"}), frozenset({6}), frozenset({6}))
    assert telling.conflicts_with(computing)


def test_blocks_that_are_copied_or_zeroed_count_and_the_null_block_never_does(ledger: Ledger):
    copies = [KVCacheBlockCopy(3, 4)]
    touched = ledger.dispatched(batch(new("a", 2, [0]), tokens=2, block_copies=copies, blocks_to_zero=[0, 8]))
    assert touched == Footprint(frozenset({"a"}), frozenset({3, 4, 8}), frozenset({4, 8}))


# -- what is carried over ----------------------------------------------------------------------------------------------


def test_a_request_is_carried_over_as_it_was_after_the_last_settled_batch(ledger: Ledger):
    first, second = batch(new("a", 6, [5, 6]), tokens=6), batch(known("a", 6, outputs=1))
    ledger.dispatched(first)
    ledger.settled(first, output({"a": b"state 1"}, a=41))
    ledger.dispatched(second)
    before = ledger.carried("a")
    assert (before.computed_tokens, before.output_token_ids, before.generator_state) == (6, [41], b"state 1")
    ledger.settled(second, output({"a": b"state 2"}, a=42))
    after = ledger.carried("a")
    assert (after.computed_tokens, after.output_token_ids, after.generator_state) == (7, [41, 42], b"state 2")
    assert (after.id, after.prompt_token_ids) == ("a", [0, 1, 2, 3, 4, 5])


def test_blocks_of_batches_in_flight_are_not_carried_over_yet(ledger: Ledger):
    first, second = batch(new("a", 6, [5, 6]), tokens=6), batch(known("a", 6, [9]), tokens=3)
    ledger.dispatched(first)
    ledger.dispatched(second)
    ledger.settled(first, output(a=None))
    assert ledger.carried("a").block_ids == ([5, 6],)
    ledger.settled(second, output(a=None))
    assert ledger.carried("a").block_ids == ([5, 6, 9],)


def test_a_resumed_request_is_carried_over_with_its_new_blocks_only(ledger: Ledger):
    first, second = batch(new("a", 6, [5, 6]), tokens=6), batch(known("a", 0, [7, 8], 1, resumed=True), tokens=7)
    for sent, sampled in ((first, 41), (second, 42)):
        ledger.dispatched(sent)
        ledger.settled(sent, output(a=sampled))
    carried = ledger.carried("a")
    assert (carried.block_ids, carried.computed_tokens, carried.output_token_ids) == (([7, 8],), 7, [41, 42])


def test_output_that_the_scheduler_dropped_is_dropped_here_too(ledger: Ledger):
    first, second = batch(new("a", 4, [5]), tokens=4), batch(known("a", 4, [6], outputs=0))
    ledger.dispatched(first)
    ledger.settled(first, output(a=41))
    ledger.dispatched(second)
    ledger.settled(second, output(a=43))
    assert ledger.carried("a").output_token_ids == [43]


def test_what_is_carried_over_is_a_copy(ledger: Ledger):
    ledger.dispatched(batch(new("a", 4, [5]), tokens=4))
    carried = ledger.carried("a")
    carried.block_ids[0].append(99)
    carried.output_token_ids.append(99)
    assert (ledger.carried("a").block_ids, ledger.carried("a").output_token_ids) == (([5],), [])


def test_a_batch_without_output_still_computed_its_tokens(ledger: Ledger):
    sent = batch(new("a", 8, [5, 6]), tokens=4)
    ledger.dispatched(sent)
    ledger.settled(sent, None)
    assert ledger.computed_tokens() == {"a": 4}


def test_a_finished_request_is_forgotten_even_while_its_last_batch_is_in_flight(ledger: Ledger):
    first, second = batch(new("a", 4, [5]), tokens=4), batch(new("b", 4, [6]), tokens=4, finished=["a", "unknown"])
    ledger.dispatched(first)
    ledger.dispatched(second)
    assert list(ledger) == ["b"]
    ledger.settled(first, output({"a": b"late"}, a=41))
    assert (list(ledger), len(ledger)) == (["b"], 1)


# -- I7: what cannot be carried over -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0, 5, -1])
@pytest.mark.parametrize(("computed", "unfinished"), [(4, True), (9, True), (10, False)])
def test_i7_prompt_logprobs_are_unfinished_in_the_middle_of_a_prompt(
    ledger: Ledger, wanted: int, computed: int, unfinished: bool
):
    sent = batch(new("a", 10, [5, 6, 7], prompt_logprobs=wanted), new("b", 10, [8, 9, 10]), tokens=computed)
    ledger.dispatched(sent)
    ledger.settled(sent, output(a=None, b=None))
    assert ledger.unfinished_prompt_logprobs([]) == (["a"] if unfinished else [])


def test_i7_prompt_logprobs_are_unfinished_as_soon_as_the_first_part_is_in_flight(ledger: Ledger):
    first = batch(new("a", 10, [5, 6, 7], prompt_logprobs=1), tokens=4)
    second = batch(known("a", 4), tokens=6)
    ledger.dispatched(first)
    assert ledger.unfinished_prompt_logprobs([]) == []  # dispatched, but it waits for its turn
    assert ledger.unfinished_prompt_logprobs([first]) == ["a"]
    ledger.dispatched(second)
    assert ledger.unfinished_prompt_logprobs([first, second]) == []


# -- what is computed again --------------------------------------------------------------------------------------------


def run(ledger: Ledger, *batches: ScheduledBatch, **sampled: int | None) -> None:
    for sent in batches:
        ledger.dispatched(sent)
        ledger.settled(sent, output(**{**dict.fromkeys(sent.scheduled_tokens), **sampled}))


def parts(batches: list[ScheduledBatch]) -> list[tuple[str, int, int]]:
    """(request, first token, tokens) of batches of one known request each."""
    return [
        (entry.id, entry.computed_tokens, sent.scheduled_tokens[entry.id])
        for sent in batches
        for (entry,) in [sent.known]
    ]


@pytest.mark.parametrize(
    ("most", "wanted"),
    [
        (64, [("a", 0, 10)]),
        (10, [("a", 0, 10)]),
        (4, [("a", 0, 4), ("a", 4, 4), ("a", 8, 2)]),
        (1, [("a", n, 1) for n in range(10)]),
    ],
)
def test_what_was_computed_is_computed_again_in_batches_of_so_many_tokens(ledger: Ledger, most: int, wanted):
    run(ledger, batch(new("a", 12, [5, 6, 7]), tokens=10))
    again = ledger.recomputed("a", most)
    assert parts(again) == wanted
    for sent in again:
        assert (sent.new, sent.finished, sent.known[0].resumed, sent.known[0].new_block_ids) == ([], [], False, None)


def test_computing_again_changes_nothing_in_what_is_known_of_a_request(ledger: Ledger):
    run(ledger, batch(new("a", 6, [5, 6]), tokens=6), a=41)
    run(ledger, batch(known("a", 6, outputs=1)), a=42)
    before = ledger.carried("a")
    run(ledger, *ledger.recomputed("a", 3))
    assert ledger.carried("a") == before


def test_a_request_that_is_unknown_cannot_be_computed_again(ledger: Ledger):
    with pytest.raises(KeyError, match="a"):
        ledger.recomputed("a", 4)


def test_a_request_whose_first_batch_is_in_flight_has_nothing_to_compute_again_yet(ledger: Ledger):
    """What it is to find in the prefix cache belongs to its batch."""
    ledger.dispatched(batch(new("a", 12, [5, 6, 7], computed=8), tokens=4))
    assert ledger.recomputed("a", 64) == []


def test_a_preempted_request_is_not_computed_into_blocks_of_others_until_it_was_resumed(ledger: Ledger):
    run(ledger, batch(new("a", 6, [5, 6]), new("b", 6, [7, 8]), tokens=6))
    run(ledger, batch(known("b", 6, [5], outputs=1), preempted=["a"]))
    assert ledger.recomputed("a", 64) == []
    assert parts(ledger.recomputed("b", 64)) == [("b", 0, 7)]
    run(ledger, batch(known("a", 0, [9, 10], 1, resumed=True), tokens=7))
    assert parts(ledger.recomputed("a", 64)) == [("a", 0, 7)]
    assert ledger.carried("a").block_ids == ([9, 10],)


def test_a_request_that_ended_in_flight_can_still_be_computed_again(ledger: Ledger):
    run(ledger, batch(new("a", 6, [5, 6]), new("b", 6, [7, 8]), tokens=6))
    ledger.forget("a")
    ledger.forget("b")
    assert ledger.with_kv(["a"]) == ["a"]
    assert ledger.with_kv([]) == []
    assert parts(ledger.recomputed("a", 64)) == [("a", 0, 6)]
    run(ledger, batch(new("c", 4, [9]), tokens=4))
    assert ledger.with_kv(["a"]) == ["c", "a"]


def test_what_a_batch_finds_in_the_prefix_cache_can_be_computed_before_it(ledger: Ledger):
    run(ledger, batch(new("k", 6, [5, 6]), new("r", 8, [7, 8]), tokens=6))
    run(ledger, batch(known("k", 6, outputs=1), preempted=["r"]))
    sent = batch(
        new("n", 12, [5, 9, 10], computed=4),
        new("fresh", 4, [11]),
        known("k", 7, outputs=2),
        known("r", 8, [5, 12, 13], 1, resumed=True),
        tokens=1,
    )
    ledger.dispatched(sent)
    again = ledger.recomputed_hits(sent, 5)
    assert parts(again) == [("n", 0, 4), ("r", 0, 5), ("r", 5, 3)]
    assert [entry.resumed for hit in again for entry in hit.known] == [False, True, False]
    assert [entry.new_block_ids for hit in again for entry in hit.known] == [None, ([5, 12, 13],), None]


def test_what_a_batch_found_for_a_request_that_ended_meanwhile_is_found_too(ledger: Ledger):
    sent = batch(new("a", 12, [5, 6, 7], computed=8), tokens=4)
    ledger.dispatched(sent)
    ledger.forget("a")
    assert parts(ledger.recomputed_hits(sent, 64)) == [("a", 0, 8)]
    ledger.purge([])
    assert ledger.recomputed_hits(sent, 64) == []
