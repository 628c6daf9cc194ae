"""`midstream event`, against a broker in this process."""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import pytest
from typer.testing import CliRunner, Result

from controller.platform import event_commands
from controller.platform.broker.client import BrokerError, Seen, Seens
from controller.platform.broker.ring import Undelivered

REQUESTED = "dev.midstream.reconfiguration.requested"
COMMITTED = "dev.midstream.reconfiguration.committed"
PLANNED = "dev.midstream.reconfiguration.planned"
PREPARE = "dev.midstream.stage.prepare"
PREPARED = "dev.midstream.stage.prepared"
ABORTED = "dev.midstream.reconfiguration.aborted"
DATA = json.dumps({"pipeline": "smollm", "layers": "8,12,10"})


class FakeBroker:
    """What commands see of a broker: `seen` is what comes after an event was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, str], bytes]] = []
        self.seen: list[Seen] = []
        self.asked: list[dict[str, Any]] = []
        self.error: BrokerError | None = None

    def __call__(self, address: str) -> "FakeBroker":
        self.address = address
        if self.error:
            raise self.error
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, headers: dict[str, str], body: bytes) -> int:
        self.sent.append((headers, body))
        return 4

    def watch(self, after: int, within_s: float | None, **wanted: str | None):
        self.asked.append({"after": after, "within_s": within_s, **wanted})
        yield from self.seen

    def events(self, after: object, **wanted: str | None) -> Seens:
        self.asked.append({"after": after, **wanted})
        return Seens([], 17, False) if after else Seens(self.seen, 9, False)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    """The broker that commands reach."""
    fake = FakeBroker()
    monkeypatch.setattr(event_commands, "BrokerClient", fake)
    monkeypatch.delenv("MIDSTREAM_BROKER", raising=False)
    return fake


def run(*arguments: str, standard_input: str | None = None) -> Result:
    return CliRunner().invoke(event_commands.app, list(arguments), input=standard_input)


def seen(kind: str, name: str = "e1", undelivered: Undelivered | None = None, **data: Any) -> Seen:
    event = {"specversion": "1.0", "source": "/midstream/pipelines/smollm", "id": name, "type": kind}
    return Seen(5, 1_769_860_800.25, {**event, "subject": "smollm", "data": data}, undelivered)


class TestSend:
    def test_an_event_is_made_checked_and_sent(self, broker: FakeBroker):
        result = run("send", REQUESTED, "--data", DATA, "--id", "r1")
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == f"accepted: {REQUESTED} r1 about smollm\n"
        ((headers, body),) = broker.sent
        assert (headers["ce-id"], headers["ce-source"], headers["ce-subject"]) == ("r1", "/midstream/command", "smollm")
        assert json.loads(body) == json.loads(DATA)
        assert broker.address == "http://127.0.0.1:8090"

    def test_data_comes_from_a_file_or_standard_input(self, broker: FakeBroker, tmp_path: Path):
        file = tmp_path / "data.json"
        file.write_text(DATA)
        assert run("send", REQUESTED, "--data", f"@{file}").exit_code == 0
        assert run("send", REQUESTED, "--data", "-", standard_input=DATA).exit_code == 0
        assert [json.loads(body) for _, body in broker.sent] == [json.loads(DATA)] * 2

    def test_the_broker_can_be_elsewhere(self, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("MIDSTREAM_BROKER", "http://127.0.0.1:1")
        run("send", REQUESTED, "--data", DATA)
        assert broker.address == "http://127.0.0.1:1"

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (
                ["dev.midstream.nothing"],
                2,
                "nothing is known of events of the type 'dev.midstream.nothing'; known are: ",
            ),
            ([REQUESTED], 2, "data.pipeline is missing"),
            ([REQUESTED, "--data", "{"], 2, "--data is no JSON"),
            ([REQUESTED, "--data", "[" * 100_000], 2, "--data is no JSON"),
            ([REQUESTED, "--data", "[]"], 2, "--data must be a JSON object"),
            ([REQUESTED, "--data", '{"pipeline": "smollm", "layers": 8}'], 2, "data.layers is 8"),
            ([REQUESTED, "--data", "@/nothing/there"], 1, "No such file"),
            ([REQUESTED, "--data", DATA, "--subject", "other"], 2, "subject"),
            (
                ["dev.midstream.node.lost", "--wait", "1", "--data", '{"node":"n","pipeline":"p","reason":"r"}'],
                2,
                "no event answers",
            ),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_sent(self, broker, arguments: list[str], code: int, message: str):
        result = run("send", *arguments)
        assert result.exit_code == code
        assert result.stderr.startswith("midstream: ")
        assert message in result.stderr
        assert broker.sent == []

    @pytest.mark.parametrize(("refused", "code"), [(True, 2), (False, 1)])
    def test_a_refusal_and_a_missing_broker_have_their_exit_codes(self, broker: FakeBroker, refused: bool, code: int):
        broker.error = BrokerError("no room", refused=refused)
        result = run("send", REQUESTED, "--data", DATA)
        assert (result.exit_code, result.stderr) == (code, "midstream: no room\n")


class TestWaiting:
    def send(self) -> Result:
        return run("send", REQUESTED, "--data", DATA, "--id", "r1", "--wait", "30", "--json")

    def ids(self, result: Result) -> list[str]:
        return [json.loads(line)["event"]["id"] for line in result.stdout.splitlines()]

    @pytest.mark.parametrize(("end", "code"), [(COMMITTED, 0), (ABORTED, 1)])
    def test_the_answers_are_printed_once_each_until_it_is_over(self, broker: FakeBroker, end: str, code: int):
        broker.seen = [
            seen(REQUESTED, "r1"),
            seen(PLANNED, "other", request="r0"),
            seen(PLANNED, "p", request="r1"),
            seen(PLANNED, "p", request="r1"),
            seen(end, "c", request="r1"),
            seen(PLANNED, "later", request="r1"),
        ]
        result = self.send()
        assert (result.exit_code, self.ids(result)) == (code, ["p", "c"])
        assert broker.asked == [{"after": 4, "within_s": 30.0, "subject": "smollm"}]

    @pytest.mark.parametrize("said", ["no such layer", '{"error": {"message": "no such layer", "code": 422}}'])
    def test_a_function_that_refuses_is_quoted(self, broker: FakeBroker, said: str):
        event = seen(REQUESTED, "r1", Undelivered("reconfigure", "http://f", 422, said))
        event.event["source"] = "/midstream/command"
        broker.seen = [event]
        result = self.send()
        assert result.exit_code == 2
        assert "trigger reconfigure could not hand the event to http://f: 422 no such layer" in result.stderr

    def test_no_answer_is_a_failure(self, broker: FakeBroker):
        broker.seen = [seen(COMMITTED, "c", request="r0")]
        result = self.send()
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"no answer to {REQUESTED} r1 within 30 s" in result.stderr

    def test_the_answer_to_a_stage_is_about_that_stage(self, broker: FakeBroker):
        broker.seen = [seen(PREPARED, "s0", stage=0), seen(COMMITTED, "x", stage=1), seen(PREPARED, "s1", stage=1)]
        result = self.prepare()
        assert (result.exit_code, self.ids(result)) == (0, ["s1"])

    def prepare(self) -> Result:
        data = json.dumps({"pipeline": "smollm", "stage": 1})
        return run(*("send", PREPARE, "--data", data, "--id", "r1", "--wait", "1", "--json"))

    def test_the_answer_to_somebody_elses_request_for_that_stage_is_none(self, broker: FakeBroker):
        mine = f"{own_id('/midstream/command#r1')}.prepared"
        broker.seen = [
            seen(PREPARED, f"{own_id('/somebody#r1')}.prepared", stage=1),
            seen(PREPARED, "boot.change-1.stage-1.prepared", stage=1, request="r0"),
            elsewhere(seen(PREPARED, "forged", stage=1)),
            seen(PREPARED, mine, stage=1),
        ]
        result = self.prepare()
        assert (result.exit_code, self.ids(result)) == (0, [mine])

    def test_a_refusal_of_somebody_elses_request_with_the_same_id_is_none(self, broker: FakeBroker):
        mine = f"{own_id('/midstream/command#r1')}.aborted"
        broker.seen = [
            seen(ABORTED, f"{own_id('/somebody#r1')}.aborted", request="r1"),
            elsewhere(seen(COMMITTED, "forged", request="r1")),
            seen("my.own.type", "other", request="r1"),
            seen(ABORTED, mine, request="r1"),
        ]
        result = self.send()
        assert (result.exit_code, self.ids(result)) == (1, [mine])


def own_id(key: str) -> str:
    """Begin the id of what a function answers without the head."""
    return f"request-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def elsewhere(told: Seen) -> Seen:
    told.event["source"] = "/midstream/pipelines/other"
    return told


class TestLooking:
    def test_recent_events_are_listed(self, broker: FakeBroker):
        broker.seen = [
            seen(COMMITTED, request="[bold]"),
            seen(REQUESTED, "r1", Undelivered("reconfigure", "http://f", 422, "no")),
        ]
        result = run("list", "--subject", "smollm")
        assert result.stdout.splitlines() == [
            f'12:00:00.250  smollm  {COMMITTED}  {{"request": "[bold]"}}',
            f"12:00:00.250  smollm  {REQUESTED}  {{}}",
            "  not taken by http://f (trigger reconfigure): 422 no",
        ]
        assert broker.asked[0] == {"after": 0, "subject": "smollm", "type": None}
        assert broker.asked[-1]["after"] == 9

    def test_watching_begins_now(self, broker: FakeBroker):
        broker.seen = [seen(COMMITTED)]
        result = run("watch", "--type", COMMITTED, "--seconds", "5")
        assert (result.exit_code, COMMITTED in result.stdout) == (0, True)
        assert broker.asked[-1] == {"after": 17, "within_s": 5.0, "subject": None, "type": COMMITTED}
