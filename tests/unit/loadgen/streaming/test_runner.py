"""The runner against the mock: who sends what when, who waits, and what is kept when it ends early."""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from loadgen.clock import now_ns
from loadgen.errors import LoadgenError, OptionsError, ServerError
from loadgen.mock.behaviour import Behaviour, Fault
from loadgen.mock.server import MODEL
from loadgen.server import free_port
from loadgen.streaming import runner as runner_module
from loadgen.streaming.runner import Runner
from loadgen.streaming.target import Limits, Target
from loadgen.workloads.plan import PlannedUser
from tests.unit.loadgen.streaming.support import MS, HandMade, Kept, open_loop, planned, run
from tests.unit.loadgen.streams import eventually, mock_server


class TestOpenLoop:
    async def test_each_request_is_sent_when_it_is_due_and_its_row_and_tokens_are_whole(self):
        async with mock_server() as (url, mock):
            kept, _ = await run(open_loop(10, every_ms=20), url)
        assert [row.request for row in kept.rows] == list(range(10))
        for row in kept.rows:
            assert row.due_ns == row.request * 20 * MS
            assert row.due_ns <= row.sent_ns < row.due_ns + 200 * MS
            assert (row.outcome, row.output_tokens, row.reported_tokens, row.chunks) == ("finished", 5, 5, 5)
            assert (row.prompt_tokens, row.max_tokens, row.attempt) == (len("prompt 0"), 5, 0)
            tokens = kept.arrivals[row.request]
            assert [index for index, *_ in tokens] == list(range(5))
            assert row.first_token_ns == tokens[0][1]
            assert row.ended_ns == tokens[-1][1]
            assert all(token_id is not None for *_, token_id in tokens)
        assert sorted(row.sent_ns - row.due_ns for row in kept.rows)[5] < 20 * MS
        assert mock.ends == {"finished": 10}

    async def test_a_slow_server_does_not_shift_later_requests(self):
        """Coordinated omission: a closed loop would send the second request after the first one's answer."""
        async with mock_server(Behaviour(ttft_ms=500)) as (url, _):
            kept, health = await run(open_loop(5, every_ms=20), url)
        assert max(row.sent_ns for row in kept.rows) < kept.row(0).first_token_ns
        assert health.held_back == 0

    async def test_what_waits_for_a_place_keeps_its_due_time_and_is_counted(self):
        async with mock_server(Behaviour(ttft_ms=100, itl_ms=0)) as (url, mock):
            kept, health = await run(open_loop(6, every_ms=1), url, Limits(max_in_flight=2))
        assert mock.most_streams == 2
        assert [row.due_ns for row in kept.rows] == [n * MS for n in range(6)]
        assert [row.sent_ns // (90 * MS) for row in kept.rows] == [0, 0, 1, 1, 2, 2]
        assert health.held_back == 4
        assert any("4 requests waited because 2 streams" in warning for warning in health.warnings)

    async def test_the_end_of_the_time_cancels_what_runs_and_keeps_what_arrived(self):
        plan = open_loop(3, every_ms=10, tokens=100_000)
        plan.duration_ns = 100 * MS
        async with mock_server(Behaviour(ttft_ms=10, itl_ms=5)) as (url, mock):
            kept, _ = await run(plan, url, Limits(grace_s=0.2))
            await eventually(lambda: not mock.open_streams)
        assert [row.outcome for row in kept.rows] == ["cancelled"] * 3
        for row in kept.rows:
            assert 0 < row.output_tokens == len(kept.arrivals[row.request]) < 100
            assert 300 * MS <= row.ended_ns < 2000 * MS
            assert row.detail == f"cancelled after {row.output_tokens} tokens"
        assert mock.ends == {"left": 3}

    async def test_what_found_no_place_until_the_end_is_a_result_too(self):
        plan = open_loop(3, every_ms=1, tokens=100_000)
        plan.duration_ns = 50 * MS
        async with mock_server() as (url, _):
            kept, _ = await run(plan, url, Limits(max_in_flight=1, grace_s=0.1))
        assert [row.outcome for row in kept.rows] == ["cancelled"] * 3
        assert [row.detail for row in kept.rows[1:]] == ["never sent: no place was free until the end"] * 2

    async def test_a_million_requests_are_drawn_as_they_are_needed(self):
        drawn = 0

        class Endless(HandMade):
            def users(self):
                nonlocal drawn
                while True:
                    request = planned(drawn, due_ms=drawn * 1000)
                    drawn += 1
                    yield PlannedUser(request.due_ns or 0, None, iter([request]))

        async with mock_server() as (url, _):
            kept, _ = await run(Endless([], duration_ns=10 * MS), url, Limits(grace_s=0.1))
        assert len(kept.rows) == 1
        assert drawn <= 3 * runner_module._BATCH


class TestUsers:
    def closed(self, users: int, requests: int, think_ms: float = 0) -> HandMade:
        def of(user: int):
            return (
                planned(user * 100 + n, due_ms=None, user=user, think_ms=think_ms if n else 0) for n in range(requests)
            )

        return HandMade([PlannedUser(0, None, of(user)) for user in range(users)], concurrent_users=users)

    async def test_a_closed_loop_has_one_request_of_each_user_at_a_time(self):
        async with mock_server() as (url, mock):
            kept, _ = await run(self.closed(3, 4), url)
        assert mock.most_streams == 3
        for user in range(3):
            rows = [row for row in kept.rows if row.user == user]
            assert [row.due_ns for row in rows] == [None] * 4
            assert all(before.ended_ns <= after.sent_ns for before, after in pairwise(rows))

    async def test_a_user_thinks_after_an_answer(self):
        async with mock_server() as (url, _):
            kept, health = await run(self.closed(2, 3, think_ms=80), url)
        for user in range(2):
            rows = [row for row in kept.rows if row.user == user]
            assert all(after.sent_ns - before.ended_ns >= 80 * MS for before, after in pairwise(rows))
        assert health.late_send_ms["p50"] < 50

    async def test_a_user_goes_on_after_a_broken_answer(self):
        async with mock_server(Behaviour(faults=(Fault("disconnect", 2),))) as (url, _):
            kept, _ = await run(self.closed(1, 3), url)
        assert [row.outcome for row in kept.rows] == ["disconnected"] * 3

    async def test_no_request_begins_after_the_users_stop(self):
        def endless():
            n = 0
            while True:
                yield planned(n, due_ms=None, user=0)
                n += 1

        async with mock_server(Behaviour(ttft_ms=30, itl_ms=0)) as (url, _):
            kept, _ = await run(HandMade([PlannedUser(0, 200 * MS, endless())], concurrent_users=1), url)
        assert 2 <= len(kept.rows) <= 7
        assert all(row.sent_ns < 200 * MS for row in kept.rows)
        assert [row.outcome for row in kept.rows] == ["finished"] * len(kept.rows)  # the last one may end later

    async def test_the_turns_of_a_session_follow_its_first_that_has_a_due_time(self):
        def turns(session: int, due_ms: float):
            yield planned(session * 10, due_ms=due_ms, user=session)
            yield planned(session * 10 + 1, due_ms=None, user=session, turn=1, think_ms=50)

        users = [PlannedUser(round(due * MS), None, turns(n, due)) for n, due in enumerate((0, 100))]
        async with mock_server() as (url, _):
            kept, _ = await run(HandMade(users), url)
        for session, due in enumerate((0, 100)):
            first, second = kept.row(session * 10), kept.row(session * 10 + 1)
            assert first.sent_ns >= first.due_ns == due * MS
            assert second.due_ns is None
            assert second.sent_ns >= first.ended_ns + 50 * MS


class TestRetries:
    async def test_a_refused_request_is_sent_again_when_the_server_said_and_the_last_attempt_is_kept(self):
        async with mock_server(Behaviour(ttft_ms=300, itl_ms=0, max_streams=1)) as (url, _):
            kept, _ = await run(open_loop(2, every_ms=1), url, Limits(retries=3))
            without, _ = await run(open_loop(2, every_ms=1), url)
        assert [(row.outcome, row.attempt) for row in kept.rows] == [("finished", 0), ("finished", 1)]
        assert kept.row(1).sent_ns >= 1000 * MS  # Retry-After: 1
        assert kept.row(1).due_ns == 1 * MS
        assert [(row.outcome, row.attempt) for row in without.rows] == [("finished", 0), ("refused", 0)]

    async def test_what_broke_after_its_first_token_is_not_sent_again(self):
        async with mock_server(Behaviour(faults=(Fault("error", 2),))) as (url, mock):
            kept, _ = await run(open_loop(1), url, Limits(retries=3))
        assert (kept.row(0).outcome, kept.row(0).attempt, kept.row(0).output_tokens) == ("error", 0, 2)
        assert mock.ends == {"error": 1}


class TestSlowGenerator:
    async def test_a_loop_that_stood_still_is_said_and_the_stamps_are_not_hidden(self):
        class Blocks(Kept):
            def request(self, row):
                super().request(row)
                if row.request == 3:
                    time.sleep(0.3)  # the test's own fault: it blocks the generator's loop

        kept = Blocks()
        async with (
            mock_server(Behaviour(ttft_ms=20, itl_ms=10)) as (url, _),
            Runner(open_loop(30, every_ms=20, tokens=20), Target(url)) as load,
        ):
            health = await load.run(kept)
        assert health.fell_behind
        assert health.lag_ms["max"] >= 250
        assert "the generator fell behind" in health.warnings[0]
        lags = [value for name, _, value in kept.samples if name == "client.lag_ms"]
        assert max(lags) >= 250
        assert sum(lag > 5 for lag in lags) >= 20  # every probe that was missed counts
        kept.rows.sort(key=lambda row: row.request)
        assert [row.due_ns for row in kept.rows] == [n * 20 * MS for n in range(30)]
        late = [(row.sent_ns - row.due_ns) / MS for row in kept.rows]
        assert max(late) >= 150
        # Those that were due after it are not shifted: if all were, each would be as late as the stall was long.
        assert min(late[-3:]) < 150

    async def test_the_run_samples_its_own_cpu_memory_and_streams(self):
        async with mock_server(Behaviour(ttft_ms=1200)) as (url, _):
            kept, health = await run(open_loop(2), url)
        named: dict[str, list[float]] = {}
        for name, _, value in kept.samples:
            named.setdefault(name, []).append(value)
        assert set(named) == {"client.lag_ms", "client.cpu", "client.rss_mb", "client.in_flight"}
        assert 2 in named["client.in_flight"]
        assert named["client.rss_mb"][0] > 10
        assert 100 <= len(named["client.lag_ms"]) <= 200  # one each 10 ms
        assert health.rss_mb >= max(named["client.rss_mb"])


class TestEnds:
    async def test_stop_cancels_and_returns(self):
        kept = Kept()
        async with mock_server() as (url, _), Runner(open_loop(2, tokens=100_000), Target(url)) as load:
            asyncio.get_running_loop().call_later(0.2, load.stop)
            async with asyncio.timeout(20):
                await load.run(kept)
        assert [row.outcome for row in kept.rows] == ["cancelled"] * 2

    async def test_cancelling_the_run_keeps_what_arrived_and_is_not_swallowed(self):
        kept = Kept()
        async with mock_server() as (url, _), Runner(open_loop(2, tokens=100_000), Target(url)) as load:
            running = asyncio.create_task(load.run(kept))
            await eventually(lambda: load.progress.in_flight == 2 and load.progress.tokens > 10)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert [row.outcome for row in kept.rows] == ["cancelled"] * 2
        assert all(len(kept.arrivals[row.request]) == row.output_tokens > 0 for row in kept.rows)

    async def test_tokens_are_passed_on_while_their_stream_runs(self):
        kept = Kept()
        async with mock_server() as (url, _), Runner(open_loop(1, tokens=100_000), Target(url)) as load:
            running = asyncio.create_task(load.run(kept))
            await eventually(lambda: kept.arrivals)
            assert not kept.rows
            load.stop()
            await running

    @pytest.mark.parametrize("source", ["plan", "results"])
    async def test_an_error_of_the_plan_or_the_results_ends_the_run_and_keeps_the_rest(self, source):
        def fails_at(index: int):
            for n in range(600):
                if source == "plan" and n == index:
                    raise LoadgenError("line 300 of the trace")
                yield PlannedUser(n * MS, None, iter([planned(n, due_ms=n, tokens=1)]))

        class Plan(HandMade):
            def users(self):
                return fails_at(300)

        class Full(Kept):
            def request(self, row):
                if source == "results" and row.request >= 300:
                    raise LoadgenError("line 300 of the disk")
                super().request(row)

        kept = Full()
        async with mock_server() as (url, _), Runner(Plan([]), Target(url)) as load:
            with pytest.raises(LoadgenError, match="line 300"):
                await load.run(kept)
        assert len(kept.rows) >= 100


class TestBeforeTheRun:
    async def test_model_and_token_ids_are_found_out(self):
        async with mock_server() as (url, _), Runner(open_loop(1), Target(url)) as load:
            assert (load.discovered.model, load.discovered.token_ids) == (MODEL, True)
        async with mock_server(Behaviour(send_token_ids=False)) as (url, _):
            kept, _ = await run(open_loop(1), url)
        assert [token_id for *_, token_id in kept.arrivals[0]] == [None] * 5

    async def test_what_is_stated_is_not_asked_for(self):
        target = Target(f"http://127.0.0.1:{free_port()}", model="m", token_ids="off")
        async with Runner(open_loop(1), target) as load:
            assert (load.discovered.model, load.discovered.token_ids) == ("m", False)

    async def test_a_server_that_does_not_answer_is_an_error_before_the_run(self):
        with pytest.raises(ServerError, match="does not name a model"):
            await run(open_loop(1), f"http://127.0.0.1:{free_port()}")

    async def test_a_server_that_wants_a_key_says_so_and_gets_it_from_the_environment(self, monkeypatch):
        async with mock_server() as (url, mock):
            mock._api_key = "secret"
            with pytest.raises(ServerError, match="HTTP 401: the bearer key is missing or wrong"):
                await run(open_loop(1), url)
            monkeypatch.setenv("LOAD_TEST_KEY", "secret")
            kept, _ = await run(open_loop(1), url, target=Target(url, api_key_env="LOAD_TEST_KEY"))
        assert kept.row(0).outcome == "finished"

    async def test_a_host_without_an_address_is_an_error_with_its_name(self):
        target = Target("http://no-such-host.invalid", model="m", token_ids="off")
        with pytest.raises(OptionsError, match=r"no-such-host\.invalid"):
            await run(open_loop(1), "", target=target)

    async def test_more_users_than_file_descriptors_is_an_error_that_says_what_to_raise(self, monkeypatch):
        monkeypatch.setattr(runner_module, "descriptors_for_streams", lambda: 100)
        with pytest.raises(OptionsError, match=r"101 users .*ulimit -n"):
            await run(HandMade([], concurrent_users=101), "http://127.0.0.1:1")

    async def test_file_descriptors_limit_the_streams_and_that_is_said(self, monkeypatch):
        monkeypatch.setattr(runner_module, "descriptors_for_streams", lambda: 1)
        async with mock_server(Behaviour(ttft_ms=50)) as (url, _):
            _, health = await run(open_loop(3, every_ms=1), url)
        assert any("ulimit -n; raise the limit of open files" in warning for warning in health.warnings)

    async def test_a_zero_in_the_future_is_waited_for(self):
        kept = Kept()
        async with mock_server() as (url, _), Runner(open_loop(1), Target(url)) as load:
            origin = now_ns() + 100 * MS
            await load.run(kept, origin_ns=origin)
        assert kept.row(0).sent_ns >= 0


def counts_pairs() -> Callable[[str], int]:
    return lambda text: len(text.split())


async def test_without_ids_a_tokenizer_spreads_the_tokens_of_larger_chunks():
    kept = Kept()
    behaviour = Behaviour(tokens_per_chunk=4, send_token_ids=False)
    async with (
        mock_server(behaviour) as (url, _),
        Runner(open_loop(1, tokens=10), Target(url), count_tokens=counts_pairs()) as load,
    ):
        await load.run(kept)
    assert [chunk for _, _, chunk, _ in kept.arrivals[0]] == [0] * 4 + [1] * 4 + [2] * 2
    assert (kept.row(0).output_tokens, kept.row(0).reported_tokens) == (10, 10)
    assert (kept.row(0).detail or "").startswith("several tokens in one chunk")
