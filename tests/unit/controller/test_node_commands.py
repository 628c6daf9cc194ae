"""`midstream node`, up to the node runtime itself."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from controller import node_commands
from runtime.head import node as head_node
from runtime.transport.channel import ChannelError
from runtime.transport.identity import Enrolment, Identity
from runtime.warm.zygote import ZygoteError

LISTEN = "127.0.0.1:7300"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state, which is the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "400")
    return tmp_path / "state" / "midstream"


def node(*arguments: str | Path) -> Result:
    return CliRunner().invoke(node_commands.app, [str(argument) for argument in arguments])


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The certificate of a head, as its operator carries it over."""
    file = tmp_path / "head.pem"
    file.write_text(node("identity", "--name", "head").stdout)
    return file


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[head_node.NodeOptions]:
    """What node runtimes were started with."""
    options: list[head_node.NodeOptions] = []
    monkeypatch.setattr(head_node, "run_node", options.append)
    return options


class TestIdentity:
    def test_a_node_makes_its_certificate_once_and_prints_it_whole(self, state: Path):
        first, second = node("identity", "--name", "edge-1"), node("identity", "--name", "edge-1")
        assert first.exit_code == 0
        assert first.stdout == second.stdout == (state / "edge-1" / "cert.pem").read_text()
        assert "PRIVATE" not in first.stdout

    def test_the_state_can_be_elsewhere(self, tmp_path: Path):
        assert node("identity", "--name", "edge-1", "--state", tmp_path / "here").exit_code == 0
        assert (tmp_path / "here" / "key.pem").exists()

    def test_without_a_state_of_its_own_it_is_in_the_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert node_commands.state_folder("edge-1", None) == tmp_path / ".local/state/midstream/edge-1"

    @pytest.mark.parametrize("name", ["../edge", "edge_1", "", "-edge"])
    def test_a_name_that_no_layout_can_say_is_refused_before_anything_is_written(self, tmp_path: Path, name: str):
        result = node("identity", "--name", name)
        assert (result.exit_code, "is no name for a node" in result.stderr) == (1, True)
        assert not (tmp_path / "state").exists()

    def test_a_folder_of_another_node_is_refused(self, tmp_path: Path):
        node("identity", "--name", "edge-1", "--state", tmp_path / "s")
        result = node("identity", "--name", "edge-2", "--state", tmp_path / "s")
        assert result.exit_code == 1
        assert "keeps the identity of 'edge-1', not of 'edge-2'" in result.stderr


class TestTrust:
    @pytest.mark.parametrize("controls", [True, False])
    def test_a_peer_is_enrolled_and_controls_only_if_told_so(self, state: Path, certificate: Path, controls: bool):
        options = ["--name", "edge-1", "--certificate", certificate, "--address", "10.0.0.1:7300"]
        result = node("trust", "head", *options, *(["--controls"] if controls else []))
        assert result.exit_code == 0
        fingerprint = Identity.load_or_create(state / "head", "head").fingerprint
        assert result.stdout == f"edge-1 trusts head at 10.0.0.1:7300: {fingerprint}\n"
        (peer,) = Enrolment(state / "edge-1").peers().values()
        assert (peer.name, peer.address, peer.controls) == ("head", "10.0.0.1:7300", controls)
        assert peer.fingerprint == fingerprint

    def test_trusting_again_changes_the_address(self, state: Path, certificate: Path):
        for address in ("10.0.0.1:7300", "10.0.0.2:7300"):
            node("trust", "head", "--name", "edge-1", "--certificate", certificate, "--address", address)
        assert Enrolment(state / "edge-1").peers()["head"].address == "10.0.0.2:7300"

    @pytest.mark.parametrize(
        ("peer", "address", "content", "message"),
        [
            ("head", "nowhere", None, "address 'nowhere' is not host:port"),
            ("he/ad", "10.0.0.1:7300", None, "is no name for a node"),
            ("head", "10.0.0.1:7300", b"nonsense", "is not a PEM certificate"),
            ("head", "10.0.0.1:7300", b"-----BEGIN PRIVATE KEY-----", "comes with a private key"),
            ("head", "10.0.0.1:7300", b"\xff\xfe", "codec can't decode"),
        ],
    )
    def test_what_cannot_be_trusted_is_refused_with_the_reason(
        self, state: Path, certificate: Path, peer: str, address: str, content: bytes | None, message: str
    ):
        if content is not None:
            certificate.write_bytes(content)
        result = node("trust", peer, "--name", "edge-1", "--certificate", certificate, "--address", address)
        assert result.exit_code == 1
        assert result.stderr.startswith("midstream: ")
        assert message in result.stderr
        assert Enrolment(state / "edge-1").peers() == {}

    def test_a_certificate_that_is_not_there_is_named(self, tmp_path: Path):
        missing = tmp_path / "missing.pem"
        result = node("trust", "head", "--name", "edge-1", "--certificate", missing, "--address", LISTEN)
        assert (result.exit_code, str(missing) in result.stderr) == (1, True)

    def test_a_peer_can_be_forgotten_once(self, state: Path, certificate: Path):
        node("trust", "head", "--name", "edge-1", "--certificate", certificate, "--address", LISTEN)
        assert node("forget", "head", "--name", "edge-1").stdout == "edge-1 no longer trusts head\n"
        assert Enrolment(state / "edge-1").peers() == {}
        again = node("forget", "head", "--name", "edge-1")
        assert (again.exit_code, "no peer 'head' is enrolled" in again.stderr) == (1, True)


class TestRun:
    def test_a_node_is_run_with_what_was_asked_for(self, started: list[head_node.NodeOptions], state: Path):
        options = ["--memory", "4GiB", "--lease", "12.5", "--rate-limit", "50MB"]
        assert node("run", "--name", "edge-1", "--listen", LISTEN, *options).exit_code == 0
        assert started == [head_node.NodeOptions("edge-1", state / "edge-1", LISTEN, 4 << 30, 12.5, 50_000_000)]

    def test_without_limits_there_are_none(self, started: list[head_node.NodeOptions], tmp_path: Path):
        node("run", "--name", "edge-1", "--listen", LISTEN, "--state", tmp_path)
        assert started == [head_node.NodeOptions("edge-1", tmp_path, LISTEN, None, 30.0, None)]

    @pytest.mark.parametrize("option", ["--memory", "--rate-limit"])
    @pytest.mark.parametrize("size", ["", "much", "-1GiB", "0", "4 apples", "1e9999"])
    def test_a_size_that_is_none_is_refused_with_an_example(self, started, option: str, size: str):
        result = node("run", "--name", "edge-1", "--listen", LISTEN, f"{option}={size}")
        assert result.exit_code == 1
        assert f"{option} {size!r} is not a size; write, for example, 4GiB or 500MB" in result.stderr
        assert started == []

    def test_a_lease_is_not_negative(self, started):
        assert node("run", "--name", "edge-1", "--listen", LISTEN, "--lease=-1").exit_code == 2
        assert started == []

    @pytest.mark.parametrize("error", [ChannelError("cannot listen on x"), ZygoteError("cannot preload: no engine")])
    def test_a_node_that_cannot_start_says_why(self, monkeypatch: pytest.MonkeyPatch, error: Exception):
        def fail(_: object) -> None:
            raise error

        monkeypatch.setattr(head_node, "run_node", fail)
        result = node("run", "--name", "edge-1", "--listen", LISTEN)
        assert (result.exit_code, result.stderr) == (1, f"midstream: {error}\n")
