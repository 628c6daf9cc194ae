import httpx
import pytest

from loadgen.control import ControlClient
from loadgen.errors import ChangeFailedError, ChangeRefusedError, ControlError
from loadgen.mock.behaviour import Behaviour
from loadgen.server import free_port
from tests.unit.loadgen.streams import mock_server


def canned(response: httpx.Response) -> ControlClient:
    return ControlClient("http://mock", transport=httpx.MockTransport(lambda _: response))


async def test_a_committed_change_is_reported_and_visible_in_the_status():
    async with mock_server() as (url, _), ControlClient(url) as control:
        begun = await control.request_change("8,12,10")
        report = await control.wait_for_end(begun.id, 10)
        status = await control.status()
    assert begun.state == "running"
    assert (report.id, report.state, report.from_layers, report.to_layers) == (
        begun.id,
        "committed",
        "15,15",
        "8,12,10",
    )
    assert (status.layers, status.epoch, status.vllm_version) == ("8,12,10", 1, "mock")


async def test_figures_that_the_server_leaves_out_are_none():
    async with mock_server() as (url, _), ControlClient(url) as control:
        report = await control.change("8,12,10", 10)
    assert report.requests_carried is None
    assert report.peak_extra_bytes == 8192


async def test_a_second_change_is_refused_while_one_runs():
    async with mock_server(Behaviour(change_outcome="hang")) as (url, _), ControlClient(url) as control:
        await control.request_change("8,12,10")
        with pytest.raises(ChangeRefusedError, match=r"409: .*another change runs"):
            await control.request_change("10,20")


async def test_a_plan_that_is_not_possible_is_refused_with_the_servers_words():
    async with mock_server() as (url, _), ControlClient(url) as control:
        with pytest.raises(ChangeRefusedError, match=r"422: .*'many' are refused"):
            await control.request_change("many")


async def test_a_change_that_does_not_end_is_a_failure_after_the_deadline():
    async with mock_server(Behaviour(change_outcome="hang")) as (url, _), ControlClient(url) as control:
        with pytest.raises(ChangeFailedError, match=r"change-1 still runs after 0\.2 s"):
            await control.change("8,12,10", 0.2)


async def test_an_aborted_change_is_a_failure_with_its_reason():
    async with mock_server(Behaviour(change_outcome="abort")) as (url, _), ControlClient(url) as control:
        with pytest.raises(ChangeFailedError, match="aborted: the mock server aborts changes"):
            await control.change("8,12,10", 10)


async def test_no_answer_is_an_error_of_the_control_api():
    async with ControlClient(f"http://127.0.0.1:{free_port()}") as control:
        with pytest.raises(ControlError, match="no answer"):
            await control.status()


@pytest.mark.parametrize("body", [b"not json", b"{}", b'{"id": "c", "state": "sleeping", "from": "1", "to": "2"}'])
async def test_an_answer_outside_the_contract_is_an_error(body):
    async with canned(httpx.Response(202, content=body)) as control:
        with pytest.raises(ControlError, match="outside the contract"):
            await control.request_change("8,12,10")


async def test_the_token_from_the_environment_is_sent(monkeypatch):
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization"))
        return httpx.Response(500)

    for token in ("", "secret"):
        monkeypatch.setenv("MIDSTREAM_CONTROL_TOKEN", token)
        async with ControlClient("http://mock", transport=httpx.MockTransport(answer)) as control:
            with pytest.raises(ControlError, match="HTTP 500"):
                await control.status()
    assert seen == [None, "Bearer secret"]
