"""Node runtimes under an experiment: who trusts whom, and when a node counts as ready."""

import sys
from pathlib import Path

import pytest

from loadgen.errors import ServerDiedError, ServerError
from loadgen.node_processes import Machine, NodeProcess, enrol, node_runtimes, trust_arguments

HEAD = Machine("head", "10.0.0.1:1", controls=True)
NODES = (Machine("edge-1", "10.0.0.1:2"), Machine("edge-2", "10.0.0.2:3", ("env",)))
NODE = """
import sys, time
name = sys.argv[sys.argv.index("--name") + 1]
match sys.argv[1]:
    case "identity":
        print("certificate of", name)
    case "trust":
        certificate = open(sys.argv[sys.argv.index("--certificate") + 1]).read().strip()
        with open(sys.argv[sys.argv.index("--state") + 1] + ".peers", "a") as peers:
            print(certificate, "controls" if "--controls" in sys.argv else "serves", file=peers)
    case "run":
        print("12:00:00.000  ready              node=" + name, file=sys.stderr, flush=True)
        time.sleep(600)
"""
COMMAND = (sys.executable, "-c", NODE)


def test_everybody_trusts_everybody_else_and_only_the_head_controls(tmp_path):
    arguments = trust_arguments((HEAD, *NODES), tmp_path)
    assert {(a[a.index("--name") + 1], a[1], "--controls" in a) for a in arguments} == {
        ("head", "edge-1", False),
        ("head", "edge-2", False),
        ("edge-1", "head", True),
        ("edge-1", "edge-2", False),
        ("edge-2", "head", True),
        ("edge-2", "edge-1", False),
    }
    first = arguments[0]
    assert first == (
        *("trust", "edge-1", "--name", "head", "--state", str(tmp_path / "head")),
        *("--certificate", str(tmp_path / "edge-1.pem"), "--address", "10.0.0.1:2"),
    )


async def test_certificates_are_carried_from_each_to_all_others(tmp_path):
    await enrol((HEAD, *NODES), tmp_path, COMMAND)
    assert (tmp_path / "head.peers").read_text() == "certificate of edge-1 serves\ncertificate of edge-2 serves\n"
    assert (tmp_path / "edge-1.peers").read_text() == "certificate of head controls\ncertificate of edge-2 serves\n"


async def test_a_command_that_fails_is_an_error_with_its_words(tmp_path):
    with pytest.raises(ServerError, match=r"identity --name head .*\(status 1\): .*no key today"):
        await enrol((HEAD,), tmp_path, (sys.executable, "-c", "raise SystemExit('no key today')"))


async def run(tmp_path: Path, command: tuple[str, ...] = COMMAND) -> list[str]:
    async with node_runtimes(NODES, tmp_path, command, env={}, log_dir=tmp_path, start_deadline_s=30):
        return [(tmp_path / f"{node.name}.log").read_text() for node in NODES]


async def test_nodes_are_ready_when_their_logs_say_so(tmp_path):
    assert all("ready" in log for log in await run(tmp_path))


async def test_a_node_that_ends_before_is_an_error_with_its_last_lines(tmp_path):
    with pytest.raises(
        ServerDiedError, match=r"edge-\d ended with status 1 before it was ready(?s:.*)not ready at all"
    ):
        await run(tmp_path, (sys.executable, "-c", "raise SystemExit('not ready at all')"))


async def test_only_the_nodes_own_line_counts(tmp_path):
    node = NodeProcess("edge-1", COMMAND, log_path=tmp_path / "log")
    async with node._probe() as ready:
        for text, expected in (("", False), ("getting ready \n", False), ("1:00  ready    node=a\n", True)):
            node.log_path.write_text(text)
            assert await ready() is expected
