"""Passes against the mock server: what they wait for, and what they do when streams break."""

import asyncio

import pytest

from loadgen.benchmarks.client import CompletionClient, StreamRequest
from loadgen.benchmarks.closed_loop import ClosedLoop
from loadgen.benchmarks.passes import DisturbedPass, disturbed_pass, quiet_pass
from loadgen.control import ControlClient
from loadgen.errors import ChangeFailedError, ChangeRefusedError, MeasurementError
from loadgen.mock.behaviour import Behaviour, Fault
from loadgen.mock.server import MODEL
from loadgen.records import Outcome
from tests.unit.loadgen.streams import mock_server

REQUESTS = [StreamRequest(f"stream-{n}", f"prompt {n}", 30, seed=n) for n in range(3)]


async def disturb(behaviour: Behaviour, deadline_s: float = 30.0, tail_tokens: int = 30) -> DisturbedPass:
    async with (
        mock_server(behaviour) as (url, _),
        CompletionClient(url, MODEL) as client,
        ControlClient(url) as control,
    ):
        return await disturbed_pass(
            client,
            control,
            REQUESTS,
            layers="8,12,10",
            after_tokens=30,
            tail_tokens=tail_tokens,
            deadline_s=deadline_s,
        )


class TestClosedLoop:
    async def test_each_client_runs_its_request_once_unless_told_to_go_on(self):
        async with mock_server() as (url, _), CompletionClient(url, MODEL) as client:
            records = await ClosedLoop(client, REQUESTS).run()
        assert sorted(r.name for r in records) == ["stream-0", "stream-1", "stream-2"]

    async def test_clients_ask_again_until_it_is_enough(self):
        async with mock_server() as (url, _), CompletionClient(url, MODEL) as client:
            loop = ClosedLoop(client, REQUESTS)
            records = await loop.run(lambda: len(loop.records) >= 6)
        counts = {name: sum(r.name == name for r in records) for name in ("stream-0", "stream-1", "stream-2")}
        assert sum(counts.values()) >= 6
        assert all(counts.values())
        assert loop.tokens_arrived == sum(len(r.tokens) for r in records)

    async def test_a_client_whose_stream_broke_stops(self):
        async with mock_server(Behaviour(refuse_status=500)) as (url, _), CompletionClient(url, MODEL) as client:
            records = await ClosedLoop(client, REQUESTS).run(lambda: False)
        assert [r.outcome for r in records] == [Outcome.REFUSED] * 3

    async def test_waiting_for_tokens_ends_while_the_streams_still_run(self):
        async with mock_server() as (url, _), CompletionClient(url, MODEL) as client:
            loop = ClosedLoop(client, REQUESTS)
            load = asyncio.create_task(loop.run())
            async with asyncio.timeout(30):
                await loop.until_tokens(20)
            assert not load.done()
            assert 20 <= loop.tokens_arrived < 90
            await load
            await loop.until_tokens(90)


class TestQuietPass:
    async def test_a_break_without_a_disturbance_is_an_error(self):
        async with (
            mock_server(Behaviour(faults=(Fault("disconnect", 3),))) as (url, _),
            CompletionClient(url, MODEL) as client,
        ):
            with pytest.raises(MeasurementError, match=r"stream-\d broke with nothing disturbing it: disconnected"):
                await quiet_pass(client, REQUESTS)


class TestDisturbedPass:
    async def test_the_change_is_posted_in_mid_stream_and_seen_to_its_end(self):
        seen = await disturb(Behaviour(change_stall_ms=60), tail_tokens=300)
        assert seen.report.state == "committed"
        before = [t for r in seen.records for t in r.tokens if t.arrived_ns <= seen.change.start_ns]
        after = [t for r in seen.records for t in r.tokens if t.arrived_ns > seen.change.end_ns]
        assert len(before) >= 30
        assert len(after) >= 300

    async def test_the_window_the_client_saw_holds_the_servers_cutover(self):
        seen = await disturb(Behaviour(change_stall_ms=60))
        assert seen.cutover_ns is not None
        assert seen.change.start_ns < seen.cutover_ns < seen.change.end_ns
        assert seen.change.ms >= 60

    async def test_streams_are_renewed_until_a_long_change_has_ended(self):
        seen = await disturb(Behaviour(change_ms=400))
        assert len(seen.records) > len(REQUESTS)
        assert max(r.ended_ns for r in seen.records) > seen.change.end_ns
        assert not any(r.broken for r in seen.records)

    async def test_an_aborted_change_is_a_result_with_its_reason(self):
        seen = await disturb(Behaviour(change_outcome="abort"))
        assert (seen.report.state, seen.cutover_ns) == ("aborted", None)
        assert not any(r.broken for r in seen.records)

    async def test_a_refused_change_ends_the_pass(self):
        with pytest.raises(ChangeRefusedError):
            await disturb(Behaviour(change_outcome="refuse"))

    async def test_a_change_that_hangs_ends_the_pass_at_the_deadline(self):
        with pytest.raises(ChangeFailedError, match="still runs"):
            await disturb(Behaviour(change_outcome="hang"), deadline_s=0.3)

    async def test_streams_that_break_before_the_change_leave_nothing_to_measure(self):
        with pytest.raises(MeasurementError, match=r"before the change could be posted .*disconnected"):
            await disturb(Behaviour(faults=(Fault("disconnect", 3),)))

    async def test_a_stream_that_breaks_in_the_change_is_kept_as_broken(self):
        seen = await disturb(Behaviour(change_fault="disconnect"))
        assert [r.outcome for r in seen.records if r.broken] == [Outcome.DISCONNECTED]
