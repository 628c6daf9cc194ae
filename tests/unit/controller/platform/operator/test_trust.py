"""The list of peers, as node runtimes and heads read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.platform.operator.trust import peers_text
from runtime.transport.identity import Enrolment, Identity

if TYPE_CHECKING:
    from pathlib import Path


def test_the_runtime_reads_it(tmp_path: Path) -> None:
    names = ("edge-1", "edge-2", "Head.llm")
    identities = {name: Identity.load_or_create(tmp_path / name, name) for name in names}
    certificates = {name: identity.certificate_pem for name, identity in identities.items()}
    text = peers_text(certificates, {"edge-1": "10.0.0.7:7100", "Head.llm": "[fd00::1]:7100", "gone": "10.0.0.9:7100"})
    (tmp_path / "peers.json").write_text(text, encoding="utf-8")
    peers = Enrolment(tmp_path).peers()
    assert {name: peer.fingerprint for name, peer in peers.items()} == {
        name: identity.fingerprint for name, identity in identities.items()
    }
    assert {name: peer.address for name, peer in peers.items()} == {
        "edge-1": "10.0.0.7:7100",
        "edge-2": None,
        "Head.llm": "[fd00::1]:7100",
    }
    assert [name for name, peer in peers.items() if peer.controls] == ["Head.llm"]


def test_it_is_the_same_text_for_the_same_peers(tmp_path: Path) -> None:
    names = ("b", "a")
    certificates = {name: Identity.load_or_create(tmp_path / name, name).certificate_pem for name in names}
    assert peers_text(certificates, {}) == peers_text(dict(reversed(certificates.items())), {})
