from pathlib import Path

import pytest
from filelock import FileLock

from intents import store
from intents.errors import IntentFormatError, IntentsError
from intents.model.intent import IntentMetadata, IntentSpec, PlacementRule, PrivacyIntent
from intents.model.labels import DATA, JURISDICTION
from intents.model.predicate import term
from intents.store import IntentStore, dump_intent, read_intent


def intent(name: str, country: str = "NO") -> PrivacyIntent:
    rule = PlacementRule(nodes=term(JURISDICTION, country))
    spec = IntentSpec(subjects=term(DATA, "health"), placement=(rule,))
    return PrivacyIntent(metadata=IntentMetadata(name=name, sentence="Bleib in Köln: immer"), specs=(spec,))


def test_what_is_put_is_active_until_it_is_removed(tmp_path: Path):
    kept = IntentStore(tmp_path / "intents")
    with kept.locked():
        kept.put(intent("b"))
        kept.put(intent("a"))
    assert kept.active() == (intent("a"), intent("b"))
    kept.remove("a")
    kept.remove("a")
    assert kept.active() == (intent("b"),)


def test_an_intent_of_the_same_name_is_replaced(tmp_path: Path):
    kept = IntentStore(tmp_path)
    kept.put(intent("a"))
    kept.put(intent("a", "DE"))
    assert kept.active() == (intent("a", "DE"),)


def test_others_cannot_read_an_intent(tmp_path: Path):
    IntentStore(tmp_path).put(intent("a"))
    assert (tmp_path / "a.yaml").stat().st_mode & 0o077 == 0


def test_a_write_that_broke_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = IntentStore(tmp_path)
    kept.put(intent("a"))

    def broken(_: PrivacyIntent) -> str:
        raise OSError("no space")

    monkeypatch.setattr(store, "dump_intent", broken)
    with pytest.raises(OSError, match="no space"):
        kept.put(intent("a", "DE"))
    assert kept.active() == (intent("a"),)


def test_two_commands_do_not_change_the_intents_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "_LOCK_S", 0.05)
    kept = IntentStore(tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(IntentsError, match="another command"), kept.locked():
        pass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not YAML"),
        ("kind: Secret", "kind: Input should be 'PrivacyIntent'"),
        ("{kind: PrivacyIntent, metadata: {name: A b}, specs: []}", "metadata.name"),
        ("{kind: PrivacyIntent, metadata: {name: a}, specs: [{subjects: {any_of: []}}]}", "at least one rule"),
    ],
)
def test_a_file_that_is_no_intent_is_an_error_that_names_file_and_field(tmp_path: Path, text: str, said: str):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(IntentFormatError, match=said) as caught:
        read_intent(path)
    assert str(path) in str(caught.value)


def test_norway_survives_being_written_and_read(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text(dump_intent(intent("a")))
    assert read_intent(path) == intent("a")
