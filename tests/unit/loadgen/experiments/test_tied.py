import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from loadgen.experiments.tied import tied

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")

PARENT = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def test_a_server_ends_when_who_started_it_is_killed():
    command = tied([sys.executable, "-c", "import time; time.sleep(600)"])
    with subprocess.Popen([sys.executable, "-c", PARENT, *command], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            deadline = time.monotonic() + 40
            # Between fork and exec it has no command line, or that of its parent.
            while psutil.Process(child).cmdline()[1:2] != ["-c"] or PARENT in psutil.Process(child).cmdline():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            parent.send_signal(signal.SIGKILL)
            parent.wait(10)
            assert gone_within(child, 40)
        finally:
            if psutil.pid_exists(child):
                os.kill(child, signal.SIGKILL)


def test_the_program_is_the_process_itself_and_keeps_its_arguments():
    done = subprocess.run(tied(["echo", "a  b"]), capture_output=True, text=True, check=True)
    assert done.stdout == "a  b\n"


def test_a_program_that_is_not_there_is_named():
    done = subprocess.run(tied(["/no/such"]), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot run /no/such" in done.stderr
