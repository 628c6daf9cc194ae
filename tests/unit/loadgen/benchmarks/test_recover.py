"""The recovery experiment against the mock server, whose stages can be lost."""

import pytest

from loadgen.benchmarks.client import CompletionClient, StreamRequest
from loadgen.benchmarks.passes import Pass, quiet_pass
from loadgen.benchmarks.recover import Loss, RecoverOptions, loss_pass, render, roles, summarise
from loadgen.control import ControlClient
from loadgen.errors import MeasurementError
from loadgen.mock.behaviour import Behaviour
from loadgen.mock.server import MODEL
from tests.unit.loadgen.streams import mock_server

REQUESTS = [StreamRequest(f"stream-{n}", f"prompt {n}", 60, seed=n) for n in range(3)]
STALL_MS = 120.0


async def lose_first(behaviour: Behaviour, deadline_s: float = 30.0) -> tuple[Pass, Loss, dict[str, object]]:
    async with (
        mock_server(behaviour) as (url, server),
        CompletionClient(url, MODEL) as client,
        ControlClient(url) as control,
    ):
        reference = await quiet_pass(client, REQUESTS)
        loss = await loss_pass(
            client,
            control,
            REQUESTS,
            role="first",
            ranks=(0,),
            after_tokens=60,
            tail_tokens=30,
            deadline_s=deadline_s,
            kill=lambda pid, _: server.lose(pid),
        )
        status = await control.status()
    return reference, loss, summarise(RecoverOptions(streams=3, tokens=60, repeat=1), status, [(reference, [loss])])


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (1, {"first": (0,)}),
        (2, {"first": (0,), "last": (1,), "all": (0, 1)}),
        (3, {"first": (0,), "middle": (1,), "last": (2,), "all": (0, 1, 2)}),
        (4, {"first": (0,), "middle": (2,), "last": (3,), "all": (0, 1, 2, 3)}),
    ],
)
def test_each_role_names_the_stages_to_kill_at_once(stages: int, expected: dict[str, tuple[int, ...]]):
    assert roles(stages) == expected


async def test_a_stall_is_measured_from_the_streams_and_the_recovery_from_the_server():
    _, loss, result = await lose_first(Behaviour(change_stall_ms=STALL_MS))
    assert loss.killed == ("stage-1",)
    assert loss.recovery.id == "recovery-1"
    (kill,) = result["kills"]  # type: ignore[misc]
    assert STALL_MS - 20 < kill["stall_ms"] < STALL_MS + 1000
    assert kill["stall_ms"] == result["stall_ms"] == max(kill["stall_ms_each"])
    assert (kill["recovery_ms"], kill["replayed_batches"]) == (STALL_MS, 1)
    assert (result["errors"], result["tokens_lost"], result["tokens_repeated"]) == (0, 0, 0)
    assert result["outputs_identical"] is True


async def test_a_token_that_a_recovery_repeats_is_counted():
    _, _, result = await lose_first(Behaviour(change_fault="repeat"))
    assert (result["tokens_repeated"], result["outputs_identical"]) == (1, False)


async def test_a_stream_that_a_recovery_breaks_is_an_error():
    _, _, result = await lose_first(Behaviour(change_fault="disconnect"))
    assert (result["errors"], result["outputs_identical"]) == (1, False)


async def test_a_server_that_does_not_recover_is_an_error_with_the_stage():
    with pytest.raises(MeasurementError, match=r"stage-1: not recovered within 0\.2 s"):
        await lose_first(Behaviour(change_outcome="hang"), deadline_s=0.2)


async def test_the_table_has_a_row_for_every_kill():
    _, _, result = await lose_first(Behaviour())
    machine = {"cpus": 2, "python": "3.11"}
    assert render({**result, "machine": machine, "log_dir": "-"}).row_count == 1
