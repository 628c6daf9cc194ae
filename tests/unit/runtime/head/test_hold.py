"""What the hold does with requests, over stand-ins for the application, the client and the pipeline, in fake time."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import TYPE_CHECKING, Any

import pytest

from runtime.head.hold import Hold, HoldLimits
from runtime.phase import Phase, Standing
from tests.unit.runtime.head.fake_time import now, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HOURS = 3600.0
LIMITS = HoldLimits(requests=3, seconds=30)
START = {"type": "http.response.start", "status": 200, "headers": []}
FIRST = {"type": "http.response.body", "body": b"first", "more_body": True}
LAST = {"type": "http.response.body", "body": b"last"}
ANSWER = [START, FIRST, LAST]
NOT_AWAKE = [Phase.ASLEEP, Phase.WAKING, Phase.RECOVERING]


class Pipeline:
    """Is in one phase."""

    def __init__(self, phase: Phase = Phase.AWAKE) -> None:
        self._standing = Standing(phase, now())

    def standing(self) -> Standing:
        return self._standing

    def enter(self, phase: Phase) -> None:
        was = self._standing
        stays = phase is not Phase.AWAKE and was.phase is not Phase.AWAKE
        self._standing = Standing(phase, was.since if stays else now())


class App:
    """Answers each request as told: by default a stream whose first token comes when `compute` is called."""

    def __init__(self) -> None:
        self.calls = 0
        self.heard: list[str] = []
        self.cancelled = 0
        self.listens = True
        self.answer: Callable[[Any, Any], Coroutine[Any, Any, None]] = self._stream
        self._computed = asyncio.Event()

    def compute(self) -> None:
        self._computed.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        try:
            await self.answer(receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _stream(self, receive: Any, send: Any) -> None:
        # As Starlette does it: the body is read, headers go out, then tokens or a hang-up end it.
        self.heard.append((await receive())["type"])
        await send(START)
        ends = [asyncio.ensure_future(self._computed.wait())]
        if self.listens:
            ends.append(asyncio.ensure_future(receive()))
        done, pending = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for waiting in pending:
            waiting.cancel()
        if ends[0] not in done:
            self.heard.append(ends[1].result()["type"])
            return
        await send(FIRST)
        await send(LAST)


class Client:
    """Sends one request and keeps what it gets, and when."""

    def __init__(self, hold: Hold, **scope: Any) -> None:
        self._hold = hold
        self._scope = {"type": "http", "method": "POST", "path": "/v1/completions", **scope}
        self._says: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._says.put_nowait({"type": "http.request", "body": b"{}"})
        self.got: list[dict[str, Any]] = []
        self.at: list[float] = []
        self.task = asyncio.ensure_future(self._hold(self._scope, self._says.get, self._take))

    async def _take(self, message: dict[str, Any]) -> None:
        self.got.append(message)
        self.at.append(now())

    def hang_up(self) -> None:
        self._says.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int | None:
        return self.got[0]["status"] if self.got else None

    def refusal(self) -> str:
        """Check that this is a complete 503, and return its reason."""
        assert self.status == 503
        headers = dict(self.got[0]["headers"])
        assert int(headers[b"retry-after"]) > 0
        assert headers[b"content-type"] == b"application/json"
        error = json.loads(b"".join(message["body"] for message in self.got[1:]))["error"]
        assert (error["type"], error["code"], error["param"]) == ("ServiceUnavailableError", 503, None)
        return error["message"]


def in_fake_time(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(scenario)
    def test(**arguments: Any) -> None:
        run(scenario(**arguments))

    return test


def start(phase: Phase, app: Any = None) -> tuple[Pipeline, Any, Hold]:
    pipeline, app = Pipeline(phase), app or App()
    return pipeline, app, Hold(app, pipeline.standing, LIMITS, now)


async def until_the_client_hangs_up(receive: Any, send: Any) -> None:
    """Answer as a long request that is no stream: not at all, for now."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def settle() -> None:
    """Let everybody do what they can do at this moment."""
    await asyncio.sleep(0.001)


# -- awake -------------------------------------------------------------------------------------------------------------


@in_fake_time
async def test_awake_a_response_is_passed_on_as_it_comes():
    _, app, hold = start(Phase.AWAKE)
    client = Client(hold)
    await asyncio.sleep(1)
    app.compute()
    await client.task
    assert client.got == ANSWER
    assert client.at == pytest.approx([1, 1, 1])
    assert app.heard == ["http.request"]


@in_fake_time
async def test_awake_the_headers_of_a_stream_do_not_wait_for_a_token_that_is_far_away():
    _, app, hold = start(Phase.AWAKE)
    client = Client(hold)
    await asyncio.sleep(HOURS)
    app.compute()
    await client.task
    assert client.got == ANSWER
    assert client.at == pytest.approx([2, HOURS, HOURS])


@in_fake_time
async def test_headers_and_first_token_stay_in_order_when_they_are_sent_at_the_same_time():
    pipeline, app = Pipeline(Phase.AWAKE), App()
    got: list[Any] = []

    async def slowly(message: Any) -> None:
        await asyncio.sleep(1 if message is START else 0)
        got.append(message)

    hold = Hold(app, pipeline.standing, LIMITS, now)
    scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
    says: asyncio.Queue[Any] = asyncio.Queue()
    says.put_nowait({"type": "http.request", "body": b"{}"})
    serving = asyncio.ensure_future(hold(scope, says.get, slowly))
    await asyncio.sleep(2.5)  # the headers are on their way
    app.compute()
    await serving
    assert got == ANSWER


@in_fake_time
async def test_awake_nobody_is_refused_however_many_wait_and_however_long():
    async def silent(receive: Any, send: Any) -> None:
        await asyncio.sleep(5 * HOURS)
        for message in ANSWER:
            await send(message)

    _, app, hold = start(Phase.AWAKE)
    app.answer = silent
    clients = [Client(hold) for _ in range(10 * LIMITS.requests)]
    await asyncio.gather(*(client.task for client in clients))
    assert [client.got for client in clients] == [ANSWER] * len(clients)
    assert now() == pytest.approx(5 * HOURS)


@in_fake_time
async def test_what_the_application_raises_is_raised_and_nothing_is_sent():
    async def broken(receive: Any, send: Any) -> None:
        raise ValueError("no")

    for phase in (Phase.AWAKE, Phase.ASLEEP):
        _, app, hold = start(phase)
        app.answer = broken
        client = Client(hold)
        with pytest.raises(ValueError, match="no"):
            await client.task
        assert client.got == []


# -- held --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", NOT_AWAKE)
@in_fake_time
async def test_a_request_is_passed_on_at_once_and_answered_when_the_pipeline_is_awake(phase: Phase):
    pipeline, app, hold = start(phase)
    client = Client(hold)
    await asyncio.sleep(LIMITS.seconds - 1)
    assert (app.calls, client.got) == (1, [])
    pipeline.enter(Phase.AWAKE)
    await asyncio.sleep(2 * HOURS)  # a long prompt, or many before it
    app.compute()
    await client.task
    assert client.got == ANSWER


@pytest.mark.parametrize("phase", NOT_AWAKE)
@in_fake_time
async def test_after_its_time_it_gets_a_503_and_the_application_hears_a_hang_up(phase: Phase):
    _, app, hold = start(phase)
    await asyncio.sleep(HOURS)  # it sleeps since long; that is not held against a request that comes now
    client = Client(hold)
    await client.task
    expected = f"the pipeline is still {phase.name.lower()} after the 30 s that --hold-seconds lets a request wait"
    assert expected in client.refusal()
    assert client.at[0] == pytest.approx(HOURS + LIMITS.seconds)
    assert app.heard == ["http.request", "http.disconnect"]
    assert app.cancelled == 0
    assert now() == pytest.approx(HOURS + LIMITS.seconds), "it had not to be forced"


@in_fake_time
async def test_a_wake_goes_on_counting_where_sleep_began_to():
    pipeline, _, hold = start(Phase.ASLEEP)
    client = Client(hold)
    await asyncio.sleep(20)
    pipeline.enter(Phase.WAKING)
    await client.task
    assert "still waking" in client.refusal()
    assert now() == pytest.approx(LIMITS.seconds)


@in_fake_time
async def test_only_the_latest_time_that_it_was_not_awake_counts():
    pipeline, app, hold = start(Phase.RECOVERING)
    app.answer = until_the_client_hangs_up
    client = Client(hold)
    for phase in (Phase.AWAKE, Phase.RECOVERING) * 3:
        await asyncio.sleep(20)
        pipeline.enter(phase)
    assert client.got == []
    await client.task
    assert client.at[0] == pytest.approx(6 * 20 + LIMITS.seconds)
    assert app.calls == 1


@in_fake_time
async def test_a_request_that_waits_in_an_awake_pipeline_is_held_from_when_it_is_not():
    pipeline, app, hold = start(Phase.AWAKE)
    app.answer = until_the_client_hangs_up
    client = Client(hold)
    await asyncio.sleep(100)
    pipeline.enter(Phase.RECOVERING)
    await client.task
    assert "still recovering" in client.refusal()
    assert client.at[0] == pytest.approx(100 + LIMITS.seconds)


@in_fake_time
async def test_a_stream_that_came_just_before_trouble_was_known_is_held_too():
    pipeline, _, hold = start(Phase.AWAKE)
    client = Client(hold)
    await asyncio.sleep(1)
    pipeline.enter(Phase.RECOVERING)
    await client.task
    assert "still recovering" in client.refusal()
    assert client.at[0] == pytest.approx(1 + LIMITS.seconds)


@in_fake_time
async def test_a_response_that_has_begun_is_never_cut():
    pipeline, app, hold = start(Phase.AWAKE)
    client = Client(hold)
    await asyncio.sleep(3)
    pipeline.enter(Phase.RECOVERING)
    await asyncio.sleep(HOURS)
    app.compute()
    await client.task
    assert client.got == ANSWER


@in_fake_time
async def test_an_answer_that_needs_no_pipeline_is_passed_on_while_it_sleeps():
    bad = [{"type": "http.response.start", "status": 400, "headers": []}, {**LAST, "body": b"no such model"}]

    async def refuse(receive: Any, send: Any) -> None:
        for message in bad:
            await send(message)

    _, app, hold = start(Phase.ASLEEP)
    app.answer = refuse
    client = Client(hold)
    await client.task
    assert client.got == bad


@in_fake_time
async def test_a_client_that_hangs_up_while_held_is_heard_and_makes_room():
    _, app, hold = start(Phase.ASLEEP)
    clients = [Client(hold) for _ in range(LIMITS.requests)]
    await settle()
    clients[0].hang_up()
    await clients[0].task
    assert clients[0].got == []
    assert app.heard[-1] == "http.disconnect"
    assert app.calls == LIMITS.requests
    next_one = Client(hold)
    await settle()
    assert (app.calls, next_one.got) == (LIMITS.requests + 1, [])


@in_fake_time
async def test_an_application_that_does_not_listen_is_cancelled_after_the_503():
    _, app, hold = start(Phase.ASLEEP)
    app.listens = False
    client = Client(hold)
    await client.task
    assert client.at[-1] == pytest.approx(LIMITS.seconds)
    assert app.cancelled == 1


@in_fake_time
async def test_nothing_of_a_refused_request_reaches_the_client_any_more():
    async def late(receive: Any, send: Any) -> None:
        await until_the_client_hangs_up(receive, send)
        for message in ANSWER:
            await send(message)

    _, app, hold = start(Phase.ASLEEP)
    app.answer = late
    client = Client(hold)
    await client.task
    client.refusal()
    assert len(client.got) == 2


@in_fake_time
async def test_a_server_that_ends_takes_the_application_along():
    _, app, hold = start(Phase.ASLEEP)
    client = Client(hold)
    await settle()
    client.task.cancel()
    await asyncio.wait({client.task})
    await settle()
    assert (app.cancelled, client.got) == (1, [])


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", NOT_AWAKE)
@in_fake_time
async def test_one_too_many_gets_a_503_at_once_and_never_reaches_the_application(phase: Phase):
    pipeline, app, hold = start(phase)
    clients = [Client(hold) for _ in range(LIMITS.requests + 1)]
    await settle()
    expected = f"the pipeline is {phase.name.lower()} and 3 requests wait for it, as many as --hold-requests allows"
    assert expected in clients[-1].refusal()
    assert clients[-1].at[-1] < 0.001
    assert app.calls == LIMITS.requests
    pipeline.enter(Phase.AWAKE)
    clients.append(Client(hold))  # refused by nobody: it is awake
    app.compute()
    await asyncio.gather(*(client.task for client in clients))
    assert [client.status for client in clients] == [200, 200, 200, 503, 200]


@in_fake_time
async def test_those_that_waited_their_turn_before_do_not_count():
    async def in_turn(receive: Any, send: Any) -> None:
        await asyncio.sleep(10)
        for message in ANSWER:
            await send(message)

    pipeline, app, hold = start(Phase.AWAKE)
    app.answer = in_turn
    queue = [Client(hold) for _ in range(10 * LIMITS.requests)]
    await asyncio.sleep(1)
    pipeline.enter(Phase.RECOVERING)
    meanwhile = [Client(hold) for _ in range(LIMITS.requests + 1)]
    await settle()
    pipeline.enter(Phase.AWAKE)
    await asyncio.gather(*(client.task for client in [*queue, *meanwhile]))
    assert {client.status for client in queue} == {200}
    assert [client.status for client in meanwhile] == [200, 200, 200, 503]


# -- failed ------------------------------------------------------------------------------------------------------------


async def streams_an_error(receive: Any, send: Any) -> None:
    await send(START)
    await asyncio.sleep(5)
    await send({**FIRST, "body": b'data: {"error": {"code": 500}}\n\n'})
    await send(LAST)


async def answers_500(receive: Any, send: Any) -> None:
    await asyncio.sleep(5)
    await send({**START, "status": 500})
    await send(LAST)


async def raises(receive: Any, send: Any) -> None:
    await asyncio.sleep(5)
    raise ConnectionError("the engine is gone")


@pytest.mark.parametrize("answer", [streams_an_error, answers_500, raises])
@in_fake_time
async def test_when_the_wake_fails_whatever_the_application_says_becomes_a_503(answer: Any):
    pipeline, app, hold = start(Phase.WAKING)
    app.answer = answer
    client = Client(hold)
    await asyncio.sleep(4)
    pipeline.enter(Phase.FAILED)
    if answer is raises:  # the server's log is to have it
        with pytest.raises(ConnectionError):
            await client.task
    else:
        await client.task
    assert "the pipeline failed and this server is ending" in client.refusal()
    assert client.at[-1] == pytest.approx(5)
    assert len(client.got) == 2


@in_fake_time
async def test_after_a_failure_everybody_gets_a_503_at_once():
    _, app, hold = start(Phase.FAILED)
    client = Client(hold)
    await client.task
    assert "the pipeline failed" in client.refusal()
    assert app.calls == 0


# -- what is held at all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "lifespan"},
        {"type": "websocket", "path": "/v1/completions"},
        {"method": "GET"},
        {"method": "OPTIONS"},
        {"path": "/health", "method": "GET"},
        {"path": "/v1/models", "method": "GET"},
        {"path": "/tokenize"},
        {"path": "/v1/messages/count_tokens"},
        {"path": "/midstream/v1/reconfigurations"},
    ],
)
@in_fake_time
async def test_what_generates_nothing_is_not_touched(scope: dict[str, str]):
    _, app, hold = start(Phase.FAILED)
    app.compute()
    client = Client(hold, **scope)
    await client.task
    assert client.got == ANSWER


@pytest.mark.parametrize(
    "scope",
    [
        {"path": "/v1/completions"},
        {"path": "/v1/chat/completions"},
        {"path": "/v1/responses"},
        {"path": "/v1/messages"},
        {"path": "/proxy/v1/completions", "root_path": "/proxy"},
    ],
)
@in_fake_time
async def test_what_generates_is_held(scope: dict[str, str]):
    _, _, hold = start(Phase.ASLEEP)
    client = Client(hold, **scope)
    await client.task
    client.refusal()


def test_the_limits_survive_the_environment():
    limits = HoldLimits(requests=7, seconds=2.5)
    assert HoldLimits.from_environment(limits.as_environment()) == limits
