"""The word that tells the head what the pipeline does, over two views of it and over two processes."""

import os
import time

import pytest

from runtime.phase import PHASE_VARIABLE, Phase, PhaseWord, make_phase_word, open_phase_word


@pytest.fixture
def word(monkeypatch: pytest.MonkeyPatch) -> PhaseWord:
    path = make_phase_word()
    monkeypatch.setenv(PHASE_VARIABLE, path)
    opened = open_phase_word()
    assert opened is not None
    yield opened
    os.close(int(path.rpartition("/")[2]))


def test_a_new_word_says_awake(word: PhaseWord):
    assert word.read().phase is Phase.AWAKE


def test_no_word_is_named_without_the_head(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PHASE_VARIABLE, raising=False)
    assert open_phase_word() is None


def test_a_word_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PHASE_VARIABLE, "/proc/1/fd/no-such")
    with pytest.raises(OSError, match="no-such"):
        open_phase_word()


@pytest.mark.parametrize("phase", Phase)
def test_what_one_process_writes_another_reads_with_the_time(word: PhaseWord, phase: Phase):
    before = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            written = open_phase_word()
            assert written is not None
            written.write(phase)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    standing = word.read()
    assert standing.phase is phase
    assert before <= standing.since <= time.monotonic()


def test_the_time_is_that_of_the_last_change_between_awake_and_not(word: PhaseWord):
    word.write(Phase.ASLEEP)
    asleep = word.read()
    word.write(Phase.WAKING)
    waking = word.read()
    assert (waking.phase, waking.since) == (Phase.WAKING, asleep.since)
    word.write(Phase.AWAKE)
    awake = word.read()
    assert awake.since > waking.since
    word.write(Phase.RECOVERING)
    assert word.read().since > awake.since
