"""Server processes: real child processes, small ones."""

import asyncio
import os
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

from loadgen.errors import ServerDiedError, ServerError, ServerNotReadyError
from loadgen.server import ServerProcess, free_port
from tests.unit.loadgen.streams import eventually

HEALTHY = """
import http.server, os, signal, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *args):
        pass
print("colour is", os.environ.get("COLOUR"), flush=True)
PRELUDE
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
CHILD = 'print("child", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)'
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def server(tmp_path: Path, prelude: str = "", script: str = HEALTHY, **options: float) -> ServerProcess:
    port = free_port()
    return ServerProcess(
        "small",
        [sys.executable, "-c", script.replace("PRELUDE", prelude), str(port)],
        port=port,
        log_path=tmp_path / "logs" / "small.log",
        env={"COLOUR": "green"},
        **options,
    )


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_it_runs_while_in_use_and_is_gone_afterwards(tmp_path):
    async with server(tmp_path) as running:
        pid = running.pid
        assert alive(pid)
        assert running.log_tail() == "colour is green"
    assert not alive(pid)
    assert running.cpu_seconds() == 0
    with pytest.raises(ServerError, match="not running"):
        _ = running.pid


async def test_it_is_the_leader_of_a_group_of_its_own(tmp_path):
    async with server(tmp_path) as running:
        assert os.getpgid(running.pid) == running.pid != os.getpgid(0)


async def test_it_can_be_started_again_and_its_log_goes_on(tmp_path):
    async with server(tmp_path) as running:
        first = running.pid
        await running.stop()
        await running.start()
        assert running.pid != first
        assert running.log_tail() == "colour is green\ncolour is green"


async def test_starting_it_twice_is_refused(tmp_path):
    async with server(tmp_path) as running:
        with pytest.raises(ServerError, match="already runs"):
            await running.start()


async def test_what_it_started_itself_is_ended_with_it(tmp_path):
    async with server(tmp_path, prelude=CHILD, stop_deadline_s=0.5) as running:
        child = int(running.log_tail().split()[-1])
        assert alive(child)
    assert not alive(child)


async def test_a_process_outside_its_group_is_left_alone(tmp_path):
    bystander = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
    try:
        async with server(tmp_path, prelude=CHILD, stop_deadline_s=0.2):
            pass
        assert bystander.returncode is None
        assert alive(bystander.pid)
    finally:
        bystander.kill()
        await bystander.wait()


async def test_one_that_ignores_sigterm_is_killed_after_the_deadline(tmp_path):
    async with server(tmp_path, prelude=STUBBORN, stop_deadline_s=0.3) as running:
        pid, begun = running.pid, time.monotonic()
        await running.stop()
        assert 0.3 <= time.monotonic() - begun < 10
    assert not alive(pid)


async def test_a_stop_can_be_given_a_deadline_of_its_own(tmp_path):
    async with server(tmp_path, prelude=STUBBORN, stop_deadline_s=60) as running:
        begun = time.monotonic()
        await running.stop(0.2)
        assert time.monotonic() - begun < 10


async def test_death_before_health_is_noticed_at_once_and_told_with_the_log(tmp_path):
    dying = server(tmp_path, script="print('no such layer'); raise SystemExit(3)", start_deadline_s=60)
    begun = time.monotonic()
    with pytest.raises(ServerDiedError, match=r"status 3 before it was healthy(?s:.*)no such layer"):
        await dying.start()
    assert time.monotonic() - begun < 30


async def test_one_that_never_becomes_healthy_is_stopped_at_the_deadline(tmp_path):
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    idle = server(tmp_path, script=script, start_deadline_s=2.0)
    with pytest.raises(ServerNotReadyError, match="not healthy within 2 s"):
        await idle.start()
    assert not alive(int(idle.log_tail()))


async def test_a_cancelled_start_leaves_nothing_behind(tmp_path):
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    idle = server(tmp_path, script=script)
    starting = asyncio.create_task(idle.start())
    await eventually(idle.log_tail)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not alive(int(idle.log_tail()))


async def test_a_command_that_does_not_exist_is_an_error(tmp_path):
    missing = ServerProcess("missing", ["/no/such/command"], port=free_port(), log_path=tmp_path / "log")
    with pytest.raises(ServerError, match="cannot run /no/such/command"):
        await missing.start()


async def test_cpu_time_is_that_of_the_whole_group(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.4: pass\ntime.sleep(600)"
    prelude = f"subprocess.Popen([sys.executable, '-c', {burn!r}])"
    async with server(tmp_path, prelude=prelude, stop_deadline_s=0.2) as running:
        await eventually(lambda: running.cpu_seconds() >= 0.4)


def test_a_free_port_can_be_bound():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
