import threading
import time

import pytest

from runtime.migration.journal import Entry, Journal


def events(journal: Journal, subject: str | None = None, limit: int = 1000) -> list[str]:
    return [entry.event for entry in journal.story(subject, limit)]


def test_a_story_is_told_in_order():
    journal = Journal()
    for event in ("planned", "prepare", "ended"):
        journal.tell("change-1", event)
    assert events(journal, "change-1") == ["planned", "prepare", "ended"]


def test_an_entry_says_when_who_what_and_the_details():
    journal = Journal()
    before = time.time()
    journal.tell("change-1", "ended", state="aborted", reason="it was cancelled")
    (entry,) = journal.story()
    assert before <= entry.at <= time.time()
    assert entry.as_dict() == {
        "at": entry.at,
        "subject": "change-1",
        "event": "ended",
        "state": "aborted",
        "reason": "it was cancelled",
    }


def test_stories_of_different_subjects_do_not_mix():
    journal = Journal()
    for subject in ("change-1", "change-2", "change-10", "pipeline"):
        journal.tell(subject, f"of {subject}")
    assert events(journal, "change-1") == ["of change-1"]
    assert events(journal, "change-3") == []
    assert len(events(journal)) == 4


def test_a_request_is_found_by_the_id_that_its_client_knows():
    journal = Journal()
    journal.tell("chatcmpl-7-b2f9", "carried")
    journal.tell("chatcmpl-77-c3d1", "carried elsewhere")
    assert events(journal, "chatcmpl-7") == ["carried"]
    assert events(journal, "chatcmpl-7-b2f9") == ["carried"]


def test_only_the_newest_entries_are_kept():
    journal = Journal(capacity=3)
    for number in range(5):
        journal.tell("change-1", str(number))
    assert events(journal) == ["2", "3", "4"]


def test_a_limit_gives_the_newest_entries_of_the_subject():
    journal = Journal()
    for number in range(5):
        journal.tell("a", f"a{number}")
        journal.tell("b", f"b{number}")
    assert events(journal, "a", limit=2) == ["a3", "a4"]
    assert events(journal, limit=3) == ["b3", "a4", "b4"]


def test_many_threads_may_tell_at_once_and_each_keeps_its_order():
    journal = Journal()

    def tell(subject: str) -> None:
        for number in range(200):
            journal.tell(subject, str(number))

    threads = [threading.Thread(target=tell, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert events(journal, f"t{number}") == [str(n) for n in range(200)]


def test_a_listener_hears_what_is_told_from_then_on_in_order():
    journal, heard = Journal(), list[Entry]()
    journal.tell("change-1", "before")
    journal.listen(heard.append)
    for number in range(3):
        journal.tell("change-1", str(number), of=3)
    assert heard == journal.story()[1:]


def test_a_listener_may_read_and_tell_the_journal_itself():
    journal = Journal()

    def answer(entry: Entry) -> None:
        if entry.event == "asked":
            journal.tell("echo", f"{entry.event} after {len(journal.story())}")

    journal.listen(answer)
    teller = threading.Thread(target=journal.tell, args=("change-1", "asked"), daemon=True)
    teller.start()
    teller.join(10)
    assert events(journal) == ["asked", "asked after 1"]


def test_a_listener_that_fails_disturbs_neither_who_tells_nor_other_listeners(caplog: pytest.LogCaptureFixture):
    journal, heard = Journal(), list[str]()

    def fail(entry: Entry) -> None:
        raise ValueError(f"cannot bear {entry.event}")

    journal.listen(fail)
    journal.listen(lambda entry: heard.append(entry.event))
    journal.tell("change-1", "planned")
    assert heard == events(journal) == ["planned"]
    assert "cannot bear planned" in caplog.text
