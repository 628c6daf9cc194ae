"""The intent function behind func-python, over files of its own, with a translator and an enforcer of the tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from function.func import Intent, new
from function.house import House
from function.memory import Answer, Memory
from function.settings import IntentSettings, read_intent_settings

from intents.compilation.compiled import Compiled
from intents.errors import EnforcementError, IntentsError
from intents.live_midstream import Change, HeadAway, LayoutRefused, RunningPipeline
from intents.model.intent import IntentMetadata, IntentSpec, PlacementRule, PrivacyIntent
from intents.model.inventory import Inventory
from intents.model.predicate import term
from intents.model.refusal import Refusal, RefusalKind
from intents.proof.observed import Observed
from intents.store import IntentStore
from intents.translation.interface import Translation
from runtime.events.envelope import Event
from runtime.head.event_function import SettingsError

JURISDICTION = "midstream.dev/jurisdiction"
INVENTORY: dict[str, Any] = {
    "kind": "Inventory",
    "nodes": [
        {"name": "edge-1", "labels": {JURISDICTION: "DE"}},
        {"name": "edge-2", "labels": {JURISDICTION: "US"}},
    ],
    "workloads": [
        {"name": "records", "node": "edge-1", "labels": {"midstream.dev/data": "health"}},
        {"name": "website", "node": "edge-2"},
    ],
}
HEALTH = term("midstream.dev/data", "health")
IN_GERMANY = "Health data must stay in Germany."
SENTENCES = {
    IN_GERMANY: [("DE",)],
    "Health data must stay in the US.": [("US",)],
    "Health data must stay in France.": [("FR",)],
}
SUBMITTED = {"pipeline": "smollm", "intent": "home", "text": IN_GERMANY}


class FakeTranslator:
    """Knows a few sentences."""

    name = "fake"

    def translate(self, sentence: str, inventory: object) -> Translation:
        if sentence not in SENTENCES:
            return Translation(None, Refusal(RefusalKind.NOT_UNDERSTOOD, f"not understood: {sentence}", "say it so"))
        rules = tuple(PlacementRule(nodes=term(JURISDICTION, *codes)) for codes in SENTENCES[sentence])
        intent = PrivacyIntent(metadata=IntentMetadata(name="x"), specs=(IntentSpec(subjects=HEALTH, placement=rules),))
        return Translation(intent, None)


class FakeEnforcer:
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.enforced: list[tuple[Compiled, Compiled]] = []
        self.intents: list[list[str]] = []
        self.error: EnforcementError | None = None

    def enforce(self, new: Compiled, old: Compiled, inventory: Inventory, intents: Sequence[PrivacyIntent]) -> None:
        if self.error is not None:
            raise self.error
        self.enforced.append((new, old))
        self.intents.append([each.metadata.name for each in intents])

    @property
    def flows(self) -> tuple[dict[str, Any], ...]:
        return self.enforced[-1][0].flows if self.enforced else ()

    def observe(self, inventory: Inventory) -> Observed:
        placement = {each.name: (each.node,) for each in inventory.workloads if each.node is not None}
        return Observed(placement, self.flows, inventory, inventory.version)


class Bench:
    """A function and what is around it."""

    def __init__(self, folder: Path) -> None:
        self.inventory, self.state = folder / "inventory.yaml", folder / "intents"
        self.write(INVENTORY)
        self.enforcer, self.published = FakeEnforcer(), list[Event]()
        self.function = self.start()

    def start(self, head: Any = None, **settings: Any) -> Intent:
        made = IntentSettings(pipeline="smollm", inventory=self.inventory, state=self.state, watch_s=0.0, **settings)
        return Intent(made, FakeTranslator(), self.enforcer, self.published.append, head)

    def write(self, inventory: dict[str, Any]) -> None:
        self.inventory.write_text(yaml.safe_dump(inventory))

    def active(self) -> dict[str, str | None]:
        return {each.metadata.name: each.metadata.sentence for each in IntentStore(self.state).active()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class TestSubmitting:
    async def test_a_sentence_is_enforced_and_answered_with_what_was_understood(self, bench, client, event, send):
        response = await send(client(bench.function), event("intent.submitted", SUBMITTED))
        told = response.json()
        assert (response.status_code, told["type"]) == (200, "dev.midstream.intent.decided")
        assert (told["source"], told["subject"]) == ("/midstream/pipelines/smollm", "smollm")
        data = told["data"]
        assert (data["outcome"], data["kind"], data["reason"], data["intent"]) == ("ok", None, None, "home")
        assert "Germany" in " ".join(data["readback"]) or "DE" in " ".join(data["readback"])
        assert data["placement"] == {"records": "edge-1"}
        assert bench.active() == {"home": IN_GERMANY}
        ((compiled, before),) = bench.enforcer.enforced
        assert (compiled.placements[0].allowed_nodes, before) == (("edge-1",), Compiled())
        assert bench.published == []

    async def test_the_same_id_replaces_the_intent(self, bench, client, event, send):
        http = client(bench.function)
        await send(http, event("intent.submitted", SUBMITTED))
        other = SUBMITTED | {"text": "Health data must stay in the US."}
        assert (await send(http, event("intent.submitted", other, id="event-2"))).status_code == 200
        assert bench.active() == {"home": other["text"]}
        assert bench.enforcer.enforced[1][1] == bench.enforcer.enforced[0][0]

    async def test_what_others_made_active_meanwhile_is_where_it_goes_on_from(self, bench, client, event, send):
        http = client(bench.function)
        await send(http, event("intent.submitted", SUBMITTED))
        IntentStore(bench.state).remove("home")
        other = SUBMITTED | {"intent": "other", "text": "Health data must stay in the US."}
        assert (await send(http, event("intent.submitted", other, id="event-2"))).status_code == 200
        assert bench.enforcer.enforced[1][1] == Compiled()
        assert bench.enforcer.intents == [["home"], ["other"]]

    async def test_a_typed_intent_is_taken_as_it_is(self, bench, client, event, send):
        specs = [
            {
                "subjects": HEALTH.model_dump(mode="json"),
                "placement": [{"nodes": term(JURISDICTION, "DE").model_dump(mode="json")}],
            }
        ]
        typed = SUBMITTED | {"text": "whatever this means", "specs": specs}
        assert (await send(client(bench.function), event("intent.submitted", typed))).status_code == 200
        assert bench.active() == {"home": "whatever this means"}

    @pytest.mark.parametrize(
        ("changes", "param"),
        [
            ({"intent": "Not A Name"}, "data.intent"),
            ({"specs": [{"subjects": {"any_of": []}}]}, "data.specs.0"),
            ({"specs": [{"subject": {}}]}, "data.specs.0.subjects"),
        ],
    )
    async def test_what_is_no_intent_is_refused_by_field(self, bench, client, event, send, changes, param: str):
        response = await send(client(bench.function), event("intent.submitted", SUBMITTED | changes))
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["param"]) == (422, "invalid_data", param)
        assert (bench.active(), bench.enforcer.enforced) == ({}, [])

    @pytest.mark.parametrize(
        ("text", "kind", "says"),
        [
            (
                "Colourless green ideas.",
                "not_understood",
                "not understood: Colourless green ideas.; nearest: say it so",
            ),
            ("Health data must stay in France.", "unsatisfiable", "no placement"),
        ],
    )
    async def test_a_refusal_changes_nothing_and_is_told_to_the_sink(
        self, bench, client, event, send, text: str, kind: str, says: str
    ):
        response = await send(client(bench.function), event("intent.submitted", SUBMITTED | {"text": text}))
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["param"]) == (422, kind, "data.text")
        assert says in error["message"]
        assert (bench.active(), bench.enforcer.enforced) == ({}, [])
        (told,) = bench.published
        assert (str(told.type), told.data["outcome"], told.data["kind"]) == (
            "dev.midstream.intent.decided",
            "refused",
            kind,
        )

    async def test_an_intent_that_contradicts_an_active_one_is_refused(self, bench, client, event, send):
        http = client(bench.function)
        await send(http, event("intent.submitted", SUBMITTED))
        other = SUBMITTED | {"intent": "other", "text": "Health data must stay in the US."}
        response = await send(http, event("intent.submitted", other, id="event-2"))
        assert (response.status_code, response.json()["error"]["type"]) == (422, "conflict")
        assert bench.active() == {"home": IN_GERMANY}

    async def test_events_for_another_pipeline_are_refused(self, bench, client, event, send):
        other = event("intent.submitted", SUBMITTED | {"pipeline": "other"}, subject="other")
        assert (await send(client(bench.function), other)).status_code == 422


class TestAgain:
    async def test_an_event_that_comes_twice_is_done_once(self, bench, client, event, send):
        http, submitted = client(bench.function), event("intent.submitted", SUBMITTED)
        first, second = (await send(http, submitted)).json(), (await send(http, submitted)).json()
        assert first == second
        assert len(bench.enforcer.enforced) == 1

    async def test_also_after_a_start_and_though_the_intent_was_replaced_since(self, bench, client, event, send):
        submitted = event("intent.submitted", SUBMITTED)
        first = (await send(client(bench.function), submitted)).json()
        other = SUBMITTED | {"text": "Health data must stay in the US."}
        await send(client(bench.function), event("intent.submitted", other, id="event-2"))
        assert (await send(client(bench.start()), submitted)).json() == first
        assert bench.active() == {"home": other["text"]}

    async def test_a_refusal_is_given_again_and_told_once(self, bench, client, event, send):
        submitted = event("intent.submitted", SUBMITTED | {"text": "Health data must stay in France."})
        answers = [await send(client(function), submitted) for function in (bench.function, bench.start())]
        assert answers[0].json() == answers[1].json()
        assert len(bench.published) == 1

    def test_the_oldest_answers_give_way(self, tmp_path: Path):
        memory = Memory(tmp_path / "answers", kept=2)
        for number in range(4):
            memory.keep(f"/a#{number}", Answer({"number": number}, 0.0))
        assert memory.find("/a#3") == Answer({"number": 3}, 0.0)
        assert len(list((tmp_path / "answers").iterdir())) == 2

    def test_an_answer_that_cannot_be_read_is_an_error(self, tmp_path: Path):
        memory = Memory(tmp_path)
        memory.keep("/a#1", Answer({}, 0.0))
        next(tmp_path.iterdir()).write_text("{")
        with pytest.raises(IntentsError, match="cannot be read"):
            memory.find("/a#1")


class TestTrouble:
    async def test_who_cannot_be_told_is_asked_again_later(self, bench, client, event, send):
        bench.enforcer.error = EnforcementError("the controller is away")
        http, submitted = client(bench.function), event("intent.submitted", SUBMITTED)
        response = await send(http, submitted)
        assert (response.status_code, "retry-after" in response.headers) == (503, True)
        assert "the controller is away" in response.json()["error"]["message"]
        assert bench.active() == {}
        bench.enforcer.error = None
        assert (await send(http, submitted)).status_code == 200

    async def test_without_an_inventory_nothing_is_decided(self, bench, client, event, send):
        bench.inventory.unlink()
        response = await send(client(bench.function), event("intent.submitted", SUBMITTED))
        assert response.status_code == 503
        ready, why = bench.function.ready()
        assert (ready, "inventory.yaml" in why) == (False, True)
        bench.write(INVENTORY)
        assert bench.function.ready() == (True, "ready")


class TestWatching:
    async def test_an_intent_that_no_longer_holds_is_told_to_the_sink(self, bench, client, event, send):
        await send(client(bench.function), event("intent.submitted", SUBMITTED))
        bench.function.watch.look()
        assert bench.published == []
        moved = json.loads(json.dumps(INVENTORY))
        moved["workloads"][0]["node"] = "edge-2"
        bench.write(moved | {"version": "2"})
        bench.function.watch.look()
        (told,) = bench.published
        assert str(told.type) == "dev.midstream.intent.violated"
        assert (told.data["pipeline"], told.data["intent"]) == ("smollm", "home")
        assert "edge-2" in told.data["reason"]
        assert len(bench.enforcer.enforced) > 1  # it tried to make it hold again

    async def test_what_cannot_hold_any_more_is_closed(self, bench, client, event, send):
        await send(client(bench.function), event("intent.submitted", SUBMITTED))
        gone = json.loads(json.dumps(INVENTORY))
        gone["nodes"][0]["labels"] = {}
        bench.write(gone | {"version": "2"})
        bench.function.watch.look()
        assert [str(each.type) for each in bench.published] == ["dev.midstream.intent.violated"]
        assert bench.enforcer.flows == ()
        assert bench.function.alive() == (True, "alive")

    def test_a_watch_that_has_ended_by_itself_is_not_alive(self, bench, monkeypatch: pytest.MonkeyPatch):
        def fail() -> None:
            raise ZeroDivisionError("oh")

        watch = bench.function.watch
        monkeypatch.setattr(watch, "look", fail)
        monkeypatch.setattr(watch, "_every_s", 0.0)
        watch._run()
        alive, why = bench.function.alive()
        assert (alive, "not watched any more" in why) == (False, True)

    def test_stages_of_a_running_pipeline_are_where_the_head_says_or_said_last(self, bench):
        answers: list[Any] = [HeadAway("away"), RunningPipeline("smollm", ("edge-2",), 1), HeadAway("away")]

        def ask() -> RunningPipeline:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        house = House(bench.inventory, IntentStore(bench.state), bench.enforcer, ask)
        assert "smollm-stage-0" not in house.inventory().workload
        assert house.inventory().workload["smollm-stage-0"].node == "edge-2"
        assert house.observe().placement["smollm-stage-0"] == ("edge-2",)


class FakeHead:
    """A pipeline of two stages; the layout that is asked for serves at once."""

    def __init__(self) -> None:
        self.running = RunningPipeline(
            "smollm", ("edge-1", "edge-2"), 1, layers=(15, 15), there=frozenset({"edge-1", "edge-2"})
        )
        self.asked: list[tuple[str, str]] = []
        self.refusal: LayoutRefused | None = None

    def read(self) -> RunningPipeline:
        return self.running

    def ask_for(self, layers: str, key: str) -> Change:
        self.asked.append((layers, key))
        if self.refusal is not None:
            raise self.refusal
        self.running = RunningPipeline("smollm", ("edge-1",), 2, layers=(30,), there=self.running.there)
        return Change(id="change-1", state="committed")


class TestMoving:
    """Layers of the running pipeline leave a node that an intent forbids."""

    HEALTHY: ClassVar[dict[str, Any]] = INVENTORY | {
        "workloads": [{"name": "smollm", "node": "edge-1", "labels": {"midstream.dev/data": "health"}}]
    }

    @pytest.fixture
    def head(self, bench) -> FakeHead:
        bench.write(self.HEALTHY)
        rules = (PlacementRule(nodes=term(JURISDICTION, "DE")),)
        specs = (IntentSpec(subjects=HEALTH, placement=rules),)
        store = IntentStore(bench.state)
        with store.locked():
            store.put(PrivacyIntent(metadata=IntentMetadata(name="home"), specs=specs))
        return FakeHead()

    def test_the_request_is_published_and_the_head_asked_with_its_key(self, bench, head):
        bench.start(head).watch.look()
        violated, requested = bench.published
        assert [str(each.type) for each in bench.published] == [
            "dev.midstream.intent.violated",
            "dev.midstream.reconfiguration.requested",
        ]
        assert requested.data == {"pipeline": "smollm", "layers": "30@edge-1", "method": "recompute"}
        assert (requested.extensions["intent"], "edge-2" in requested.extensions["reason"]) == ("home", True)
        assert head.asked == [("30@edge-1", requested.key)]
        assert "edge-2" in violated.data["reason"]

    def test_stages_count_where_the_enforcer_says_what_else_runs(self, bench, head, monkeypatch):
        def only_pods(inventory: Inventory) -> Observed:
            return Observed({}, (), Inventory(nodes=inventory.nodes), inventory.version)

        monkeypatch.setattr(bench.enforcer, "observe", only_pods)
        house = House(bench.inventory, IntentStore(bench.state), bench.enforcer, head.read)
        assert house.observe().placement == {"smollm-stage-0": ("edge-1",), "smollm-stage-1": ("edge-2",)}

    def test_how_long_it_took_is_logged(self, bench, head, caplog):
        bench.start(head).watch.look()
        assert caplog.messages[-1].startswith("re-established: found after 0.")

    def test_once_it_has_moved_nothing_more_is_asked(self, bench, head):
        function = bench.start(head)
        for _ in range(3):
            function.watch.look()
        assert (len(head.asked), len(bench.published)) == (1, 2)

    def test_an_instance_that_starts_anew_makes_the_same_request(self, bench, head):
        head.refusal = LayoutRefused("the intents forbid it", "forbidden")
        for _ in range(2):
            bench.start(head).watch.look()
        assert head.asked[0] == head.asked[1]

    def test_what_cannot_be_moved_is_told_as_a_violation_that_says_what_goes_on(self, bench, head, caplog):
        head.refusal = LayoutRefused("the intents forbid it", "forbidden")
        function = bench.start(head)
        for _ in range(3):
            function.watch.look()
        assert [str(each.type).rpartition(".")[2] for each in bench.published] == ["violated", "requested", "violated"]
        told = bench.published[-1].data
        assert told["reason"].startswith("smollm stays on edge-2, as it cannot be moved: the intents forbid it")
        assert (told["intent"], told["objects"]) == ("home", ["smollm", "edge-2"])
        assert not any(message.startswith("closed") for message in caplog.messages)  # it is not

    def test_where_moving_is_off_it_is_only_told(self, bench, head):
        bench.start(head, move=False).watch.look()
        assert head.asked == []
        assert [str(each.type) for each in bench.published] == ["dev.midstream.intent.violated"]


GOOD = {"MIDSTREAM_PIPELINE": "smollm", "MIDSTREAM_INVENTORY": "/inventory.yaml"}


class TestSettings:
    def test_what_must_be_told(self):
        read = read_intent_settings(GOOD)
        assert (read.pipeline, read.inventory, read.endpoint, read.watch_s, read.move) == (
            "smollm",
            Path("/inventory.yaml"),
            None,
            10.0,
            True,
        )
        assert not read_intent_settings({**GOOD, "MIDSTREAM_MOVE": "false"}).move

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MIDSTREAM_PIPELINE", ""),
            ("MIDSTREAM_INVENTORY", ""),
            ("MIDSTREAM_ENDPOINT", "http://127.0.0.1:x"),
            ("MIDSTREAM_KUBERNETES", "perhaps"),
            ("MIDSTREAM_MOVE", "perhaps"),
            ("MIDSTREAM_WATCH_SECONDS", "-1"),
            ("MIDSTREAM_WATCH_SECONDS", "soon"),
            ("MIDSTREAM_WATCH_SECONDS", "nan"),
        ],
    )
    def test_what_is_wrong_is_named(self, name: str, value: str):
        with pytest.raises(SettingsError, match=name):
            read_intent_settings({**GOOD, name: value})

    def test_without_settings_the_function_does_not_start(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("MIDSTREAM_INVENTORY", raising=False)
        monkeypatch.setenv("MIDSTREAM_PIPELINE", "smollm")
        with pytest.raises(SystemExit, match="MIDSTREAM_INVENTORY is not set"):
            new()
