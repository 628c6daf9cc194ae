"""The zygote with real processes; each scenario of `zygote_parent` runs in a process of its own."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[4]
DEADLINE_S = 60


def run(scenario: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.unit.runtime.warm.zygote_parent", scenario, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_child_gets_its_payload_and_its_descriptor():
    outcome = run("payload_and_descriptor_reach_the_child")
    assert outcome == {"written": "héllo", "exits": [["a", 0]], "own_pid": True}


def test_a_child_starts_preloaded_with_one_thread_and_none_of_its_parents_connections():
    outcome = run("the_child_starts_clean")
    assert outcome == {"preloaded": "yes", "threads": 1, "sigint": True, "parents_pipes": []}


def test_how_a_child_ended_is_reported_by_status_or_signal():
    outcome = run("endings_are_reported")
    assert outcome["exits"] == [["fine", 0], ["raises", 1], ["signal", -signal.SIGUSR1], ["status", 7]]


def test_a_child_can_be_killed_by_any_signal_and_no_other_is_hit():
    outcome = run("a_child_is_killed")
    assert outcome["first"] == [["a", -signal.SIGKILL]]
    assert outcome["both"] == [["a", -signal.SIGKILL], ["b", -signal.SIGUSR2]]


def test_when_the_zygote_is_killed_its_children_end_and_everybody_is_told():
    outcome = run("the_zygote_is_killed")
    assert outcome["exits"] == [["a", -signal.SIGKILL], ["b", -signal.SIGKILL]]
    assert outcome["children_ended"]
    assert f"cannot start process 'c': the zygote (pid {outcome['named']}) is gone" in outcome["refused"]


def test_a_child_whose_zygote_was_gone_before_it_looked_ends_too():
    assert run("the_zygote_is_killed_before_a_child_drew_its_first_breath") == {"child_ended": True}


def test_closing_ends_the_zygote_and_all_its_children():
    outcome = run("the_zygote_is_closed")
    assert outcome == {"exits": [["a", -signal.SIGKILL], ["b", -signal.SIGKILL]], "all_ended": True}


def test_when_the_parent_goes_without_a_word_nobody_is_left_behind():
    assert run("the_parent_goes_without_a_word") == {"alive_before": True, "all_ended": True}


def test_fifty_children_leave_no_descriptor_and_no_zombie_behind():
    outcome = run("many_children_leave_nothing_behind", "50")
    assert outcome == {"exits": 51, "statuses": [0], "leaked": False, "zombies": [], "own_zombies": []}


def test_a_child_that_ends_at_once_is_still_answered_with_its_pid():
    assert run("a_child_that_ends_at_once_is_still_answered") == {"answered": True}


def test_a_fork_that_the_kernel_refuses_ends_nobody_else():
    outcome = run("a_fork_that_fails_ends_nobody_else")
    assert "cannot start process 'second': the zygote cannot fork" in outcome["refused"]
    assert outcome["first_alive"]


def test_a_child_can_become_a_zygote_which_says_what_it_has_preloaded():
    outcome = run("a_child_becomes_a_zygote")
    assert (outcome["facts"], outcome["own_pid"]) == ({"facts": 7, "outer": "yes"}, True)
    assert outcome["written"] == "x"
    assert outcome["inner"] == [["a", 0], ["b", -signal.SIGKILL]]
    assert outcome["outer"] == [["inner", 0]]
    assert outcome["children_ended"]


def test_who_adopts_a_zygote_knows_its_children_and_believes_no_answer_to_another():
    outcome = run("a_zygote_is_adopted")
    assert outcome == {"children": True, "only": True, "alive": [True, True], "ended": [["kept", -signal.SIGKILL]]}


def test_a_zygote_that_cannot_be_adopted_says_why():
    ended, silent, unready = run("zygotes_that_cannot_be_adopted")["reasons"]
    assert "ended" in ended or "takes no orders" in ended
    assert silent == "the zygote (pid PID) cannot be adopted: does not answer"
    assert unready.endswith("cannot be adopted: RuntimeError: no such file") or "takes no orders" in unready


def test_a_zygote_that_is_never_ready_says_why():
    failed, unsayable, ended, slow = run("zygotes_that_never_are_ready")["reasons"]
    assert failed.startswith("cannot preload: RuntimeError: no such file \N{FIRE}no such file")
    assert unsayable.startswith("cannot preload: TypeError")
    assert ended == "cannot preload: the zygote (pid PID) ended"
    assert slow == "cannot preload: the zygote (pid PID) took over 0.05 s"


def test_when_the_outer_zygote_is_killed_the_inner_one_and_its_children_end():
    assert run("the_outer_zygote_is_killed") == {"ended": True, "exits": [["a", -signal.SIGKILL]], "gone": True}


def test_a_zygote_that_cannot_be_forked_leaves_no_descriptor_and_no_thread():
    assert run("zygotes_that_cannot_be_forked_leave_nothing") == {"leaked": False, "threads": 1}


def test_an_order_that_is_too_long_is_refused_and_ends_nobody():
    outcome = run("an_order_that_is_too_long_ends_nobody")
    assert outcome["alive"]
    assert outcome["refused"].endswith("bytes, not 65536 at most")


def test_a_reaction_that_fails_does_not_end_the_reports():
    assert run("a_reaction_that_fails_is_not_the_last") == {"exits": [["a", 1], ["b", 2]]}
