import pytest

from runtime.migration.protocol import (
    ENDED,
    ArmLease,
    Cancelled,
    Carry,
    ChainReady,
    ChangeMachine,
    CopyStale,
    Failed,
    Fallback,
    Finish,
    ImpossibleTransition,
    LeaseLapsed,
    Method,
    NotMovable,
    Planned,
    Prepare,
    Release,
    Released,
    RollBack,
    RolledBack,
    RoundCopied,
    Settled,
    Step,
    Switch,
    Switched,
)
from runtime.migration.stop_rule import CopyRound
from tests.unit.runtime.migration.environment import DOES_NOT_FIT, FITS, ON_ONE_NODE, SOURCE, TO_ANOTHER_NODE

EVENTS = {
    "planned": Planned(),
    "ready": ChainReady(),
    "copied": RoundCopied(FITS),
    "stale": RoundCopied(DOES_NOT_FIT),
    "switched": Switched(idle=False),
    "idle": Switched(idle=True),
    "settled": Settled(),
    "released": Released(),
    "undone": RolledBack(),
    "failed": Failed("the stage is gone"),
    "stuck": NotMovable("prompt logprobs"),
    "cancel": Cancelled("it was cancelled"),
}

# What each event does in each step of a change between two nodes: the step it leads to, "-" where it is ignored,
# "!" where it would be a bug. A lapsed lease is treated apart: it says which step it belongs to.
TABLE = """
            planned   ready     copied    stale     switched  idle      settled   released  undone    failed    stuck     cancel
plan        prepare   !         !         !         !         !         !         !         !         aborting  aborting  aborting
prepare     !         pre_copy  !         !         !         !         !         !         !         aborting  aborting  aborting
pre_copy    !         !         cutover   pre_copy  !         !         !         !         !         aborting  aborting  aborting
cutover     !         !         !         !         -         release   release   !         !         aborting  aborting  aborting
release     !         !         !         !         -         -         !         committed !         -         -         -
aborting    !         -         -         -         -         -         -         !         aborted   -         -         -
committed   !         !         !         !         -         -         !         -         !         -         -         -
aborted     !         -         -         -         -         -         -         !         !         -         -         -
"""  # noqa: E501 - a table reads best as one

INSTRUCTED_ON_THE_WAY_TO = {
    Step.PREPARE: [ArmLease(Step.PREPARE), Prepare()],
    Step.CUTOVER: [ArmLease(Step.CUTOVER), Switch(Carry.COPY)],
    Step.RELEASE: [ArmLease(Step.RELEASE), Release()],
    Step.ABORTING: [RollBack()],
    Step.COMMITTED: [Finish(Step.COMMITTED, None)],
    Step.ABORTED: [Finish(Step.ABORTED, "why")],
}


def cases() -> list[tuple[Step, str, str]]:
    header, *rows = [line.split() for line in TABLE.strip().splitlines()]
    return [(Step(row[0]), name, cell) for row in rows for name, cell in zip(header, row[1:], strict=True)]


def machine_in(step: Step, target=TO_ANOTHER_NODE) -> ChangeMachine:
    reason = "why" if step in {Step.ABORTING, Step.ABORTED} else None
    return ChangeMachine("change-7", SOURCE, target, step=step, reason=reason)


def run(machine: ChangeMachine, *events) -> list:
    return [instruction for event in events for instruction in machine.handle(event)]


def test_the_table_has_every_step_and_every_event():
    listed = cases()
    assert {step for step, _, _ in listed} == set(Step)
    assert {name for _, name, _ in listed} == set(EVENTS)
    assert len(listed) == len(Step) * len(EVENTS)


@pytest.mark.parametrize(("step", "name", "cell"), cases(), ids=str)
def test_each_event_does_in_each_step_what_the_table_says(step, name, cell):
    machine, event = machine_in(step), EVENTS[name]
    if cell == "!":
        with pytest.raises(ImpossibleTransition, match=rf"change-7 cannot take .* while in {step}; its story: {step}:"):
            machine.handle(event)
        assert machine.step is step
        return
    instructions = machine.handle(event)
    if cell == "-":
        assert (instructions, machine.step) == ([], step)
        return
    assert machine.step is Step(cell)
    if name == "ready":
        assert instructions == [ArmLease(Step.PRE_COPY), CopyStale(1)]
    elif name == "stale":
        assert instructions == [CopyStale(2)]
    else:
        assert instructions == INSTRUCTED_ON_THE_WAY_TO[machine.step]


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("lapsed", Step)
def test_a_lapsed_lease_counts_only_in_its_own_step(step, lapsed):
    machine = machine_in(step)
    instructions = machine.handle(LeaseLapsed(lapsed))
    if lapsed is not step or step in ENDED or step is Step.ABORTING:
        assert (instructions, machine.step) == ([], step)
    elif step is Step.RELEASE:
        assert (instructions, machine.step) == ([Finish(Step.COMMITTED, None)], Step.COMMITTED)
    else:
        assert (instructions, machine.step) == ([RollBack()], Step.ABORTING)
        assert machine.reason == f"in step {step}: {step} took too long"


def test_a_change_on_one_node_copies_nothing():
    machine = machine_in(Step.PLAN, ON_ONE_NODE)
    assert run(machine, Planned(), ChainReady(), Switched(idle=False), Settled(), Released()) == [
        ArmLease(Step.PREPARE),
        Prepare(),
        ArmLease(Step.CUTOVER),
        Switch(Carry.NOTHING),
        ArmLease(Step.RELEASE),
        Release(),
        Finish(Step.COMMITTED, None),
    ]
    assert machine.ended
    assert not machine.copies


def test_a_change_between_nodes_copies_until_the_rest_fits_and_then_the_delta():
    machine = machine_in(Step.PLAN)
    shrinking = [RoundCopied(CopyRound(1000, 1.0, stale)) for stale in (500, 100, 10)]
    assert run(machine, Planned(), ChainReady(), *shrinking, Switched(idle=False), Settled(), Released()) == [
        ArmLease(Step.PREPARE),
        Prepare(),
        ArmLease(Step.PRE_COPY),
        CopyStale(1),
        CopyStale(2),
        CopyStale(3),
        ArmLease(Step.CUTOVER),
        Switch(Carry.COPY),
        ArmLease(Step.RELEASE),
        Release(),
        Finish(Step.COMMITTED, None),
    ]
    assert machine.rounds == [event.copied for event in shrinking]


def test_a_pre_copy_that_does_not_converge_is_given_up_with_its_numbers():
    machine = machine_in(Step.PRE_COPY)
    stale = [RoundCopied(CopyRound(1000, 1.0, 1000))] * 3
    assert run(machine, *stale) == [CopyStale(2), CopyStale(3), RollBack()]
    assert machine.step is Step.ABORTING
    told = "in step pre_copy: pre-copy does not converge (no progress): after 3 rounds 1000 bytes are stale"
    assert told in str(machine.reason)


def test_a_pre_copy_that_does_not_converge_ends_in_computing_again_if_that_was_asked_for():
    machine = machine_in(Step.PRE_COPY)
    machine.fallback = Fallback.RECOMPUTE
    stale = [RoundCopied(CopyRound(1000, 1.0, 1000))] * 3
    assert run(machine, *stale) == [CopyStale(2), CopyStale(3), ArmLease(Step.CUTOVER), Switch(Carry.RECOMPUTE)]
    assert (machine.stop_reason, machine.carry) == ("no progress", Carry.RECOMPUTE)


@pytest.mark.parametrize(
    ("method", "target", "carry"),
    [
        (Method.STOP_AND_COPY, TO_ANOTHER_NODE, Carry.COPY),
        (Method.STOP_AND_COPY, ON_ONE_NODE, Carry.NOTHING),
        (Method.RECOMPUTE, TO_ANOTHER_NODE, Carry.RECOMPUTE),
        (Method.RECOMPUTE, ON_ONE_NODE, Carry.RECOMPUTE),
    ],
)
def test_the_other_methods_copy_nothing_while_decoding_goes_on(method: Method, target, carry: Carry):
    machine = machine_in(Step.PLAN, target)
    machine.method = method
    assert run(machine, Planned(), ChainReady())[2:] == [ArmLease(Step.CUTOVER), Switch(carry)]


def test_the_first_result_may_overtake_the_answer_to_the_flip():
    machine = machine_in(Step.CUTOVER)
    instructions = run(machine, Settled(), Switched(idle=False), Released())
    assert instructions == [ArmLease(Step.RELEASE), Release(), Finish(Step.COMMITTED, None)]


def test_an_idle_pipeline_waits_for_no_first_result():
    machine = machine_in(Step.CUTOVER)
    assert run(machine, Switched(idle=True)) == [ArmLease(Step.RELEASE), Release()]


def test_a_first_result_that_comes_while_rolling_back_does_not_stop_it():
    machine = machine_in(Step.CUTOVER)
    instructions = run(machine, Switched(idle=False), Failed("stage-4 is gone"), Settled(), RolledBack(), Settled())
    assert instructions == [RollBack(), Finish(Step.ABORTED, "in step cutover: stage-4 is gone")]


@pytest.mark.parametrize("again", ["failed", "cancel", "stuck"])
def test_a_second_misfortune_neither_rolls_back_twice_nor_hides_the_first_reason(again):
    machine = machine_in(Step.PREPARE)
    run(machine, Failed("stage-2 was ended by signal 9"))
    assert machine.handle(EVENTS[again]) == []
    assert run(machine, RolledBack()) == [Finish(Step.ABORTED, "in step prepare: stage-2 was ended by signal 9")]


@pytest.mark.parametrize("misfortune", ["failed", "cancel", "stuck"])
def test_what_is_committed_is_not_undone(misfortune):
    machine = machine_in(Step.RELEASE)
    assert run(machine, EVENTS[misfortune], Released()) == [Finish(Step.COMMITTED, None)]


def test_an_impossible_event_is_told_with_the_whole_story_of_the_change():
    machine = machine_in(Step.PLAN)
    run(machine, Planned(), ChainReady())
    with pytest.raises(ImpossibleTransition) as error:
        machine.handle(Released())
    assert str(error.value) == (
        "change change-7 cannot take Released() while in pre_copy; its story: "
        "plan: Planned() | prepare: ChainReady() | pre_copy: Released()"
    )
