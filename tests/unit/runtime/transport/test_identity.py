import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from runtime.transport.identity import (
    Enrolment,
    Identity,
    IdentityError,
    Peer,
    client_context,
    fingerprint_of,
    parse_address,
    server_context,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def peer(folder: Path, name: str = "edge-1", **fields: object) -> Peer:
    certificate_pem = Identity.load_or_create(folder / f"identity of {name}", name).certificate_pem
    return Peer(name=name, certificate_pem=certificate_pem, **fields)


class TestIdentity:
    def test_it_is_made_once_and_found_again(self, tmp_path: Path):
        made = Identity.load_or_create(tmp_path / "node", "edge-1")
        found = Identity.load_or_create(tmp_path / "node", "edge-1")
        assert (made.name, made.fingerprint) == ("edge-1", found.fingerprint)
        assert made.certificate_pem == found.certificate_pem == (tmp_path / "node" / "cert.pem").read_text()

    def test_two_nodes_have_different_ones(self, tmp_path: Path):
        one, two = (Identity.load_or_create(tmp_path / name, "edge-1") for name in ("one", "two"))
        assert one.fingerprint != two.fingerprint

    def test_the_certificate_names_the_node_and_is_no_authority(self, tmp_path: Path):
        identity = Identity.load_or_create(tmp_path, "edge-1")
        certificate = x509.load_pem_x509_certificate(identity.certificate_pem.encode())
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert [name.value for name in names] == ["edge-1"]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert identity.fingerprint == fingerprint_of(certificate.public_bytes(serialization.Encoding.DER))
        assert identity.fingerprint.startswith("sha256:")

    def test_only_the_owner_can_use_the_key_whatever_the_umask_is(self, tmp_path: Path):
        before = os.umask(0)
        try:
            Identity.load_or_create(tmp_path / "node", "edge-1")
        finally:
            os.umask(before)
        assert mode(tmp_path / "node") == 0o700
        assert mode(tmp_path / "node" / "key.pem") == 0o600

    def test_a_key_that_others_can_read_is_refused(self, tmp_path: Path):
        Identity.load_or_create(tmp_path, "edge-1")
        (tmp_path / "key.pem").chmod(0o644)
        with pytest.raises(IdentityError, match=r"key.pem can be used by others \(mode 0644\); run chmod 600"):
            Identity.load_or_create(tmp_path, "edge-1")

    def test_a_folder_that_others_can_write_to_is_refused(self, tmp_path: Path):
        tmp_path.chmod(0o777)
        with pytest.raises(IdentityError, match=r"others may write in .* \(mode 0777\); run chmod 700"):
            Identity.load_or_create(tmp_path, "edge-1")

    def test_no_text_about_it_contains_the_key(self, tmp_path: Path):
        identity = Identity.load_or_create(tmp_path, "edge-1")
        secret = (tmp_path / "key.pem").read_text().splitlines()[1]
        assert secret not in repr(identity) + str(identity) + str(vars(identity))

    def test_a_folder_made_for_another_name_says_so(self, tmp_path: Path):
        Identity.load_or_create(tmp_path, "edge-1")
        with pytest.raises(IdentityError, match="keeps the identity of 'edge-1', not of 'edge-2'; use another folder"):
            Identity.load_or_create(tmp_path, "edge-2")

    @pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "..", "é", "a\n", "a" * 65])
    def test_a_name_that_no_layout_could_hold_is_refused(self, tmp_path: Path, name: str):
        with pytest.raises(IdentityError, match="is no name for a node"):
            Identity.load_or_create(tmp_path, name)
        assert list(tmp_path.iterdir()) == []

    def test_killed_after_the_key_was_written_the_next_start_goes_on_with_it(self, tmp_path: Path):
        Identity.load_or_create(tmp_path, "edge-1")
        key = (tmp_path / "key.pem").read_bytes()
        (tmp_path / "cert.pem").unlink()
        Identity.load_or_create(tmp_path, "edge-1")
        assert (tmp_path / "key.pem").read_bytes() == key

    def test_killed_while_a_file_was_written_the_next_start_does_not_see_it(self, tmp_path: Path):
        (tmp_path / ".key.pem.partial").write_bytes(b"-----BEGIN PRI")
        (tmp_path / ".cert.pem.partial").write_bytes(b"")
        Identity.load_or_create(tmp_path, "edge-1")
        assert mode(tmp_path / "key.pem") == 0o600
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "cert.pem", "key.pem"]

    def test_a_certificate_whose_key_is_gone_is_not_replaced_silently(self, tmp_path: Path):
        Identity.load_or_create(tmp_path, "edge-1")
        (tmp_path / "key.pem").unlink()
        with pytest.raises(IdentityError, match="put the key back, or remove the certificate"):
            Identity.load_or_create(tmp_path, "edge-1")

    def test_a_certificate_of_another_key_is_refused(self, tmp_path: Path):
        for name in ("one", "two"):
            Identity.load_or_create(tmp_path / name, "edge-1")
        (tmp_path / "one" / "cert.pem").rename(tmp_path / "two" / "cert.pem")
        with pytest.raises(IdentityError, match=r"does not belong to .*key.pem; restore both from one copy"):
            Identity.load_or_create(tmp_path / "two", "edge-1")

    @pytest.mark.parametrize("file", ["key.pem", "cert.pem"])
    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\xfe"], ids=["empty", "nonsense", "binary"])
    def test_a_damaged_file_is_named(self, tmp_path: Path, file: str, content: bytes):
        Identity.load_or_create(tmp_path, "edge-1")
        (tmp_path / file).write_bytes(content)
        with pytest.raises(IdentityError, match=rf"{file} is not a"):
            Identity.load_or_create(tmp_path, "edge-1")

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(IdentityError, match=r"cannot use the folder .*file/node"):
            Identity.load_or_create(tmp_path / "file" / "node", "edge-1")

    def test_processes_that_start_together_agree(self, tmp_path: Path):
        program = (
            "import sys; from pathlib import Path; from runtime.transport.identity import Identity; "
            "print(Identity.load_or_create(Path(sys.argv[1]), 'edge-1').fingerprint)"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "node")]
        racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert len({racer.communicate(timeout=60)[0] for racer in racers}) == 1
        assert [racer.returncode for racer in racers] == [0, 0, 0]


class TestPeer:
    @pytest.mark.parametrize("name", ["", "../edge", "a_b", "a:b"])
    def test_its_name_must_fit_a_layout(self, tmp_path: Path, name: str):
        with pytest.raises(IdentityError, match="is no name for a node"):
            Peer(name=name, certificate_pem=peer(tmp_path).certificate_pem)

    @pytest.mark.parametrize(
        "address", ["", "edge-1", ":1", "edge-1:", "edge-1:x", "edge-1:65536", "::1:80", "a b:1", "[::1]"]
    )
    def test_its_address_must_be_host_and_port(self, tmp_path: Path, address: str):
        with pytest.raises(IdentityError, match="is not host:port"):
            peer(tmp_path, address=address)

    def test_addresses_are_read(self):
        assert parse_address("10.0.0.7:7300") == ("10.0.0.7", 7300)
        assert parse_address("edge-1.example:0") == ("edge-1.example", 0)
        assert parse_address("[::1]:65535") == ("::1", 65535)

    @pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
    def test_a_malformed_certificate_is_refused(self, text: str):
        with pytest.raises(IdentityError, match="the certificate of edge-1 is not a PEM certificate"):
            Peer(name="edge-1", certificate_pem=text)

    def test_a_certificate_cut_short_is_refused(self, tmp_path: Path):
        whole = peer(tmp_path).certificate_pem.splitlines()
        with pytest.raises(IdentityError, match="is not a PEM certificate"):
            Peer(name="edge-1", certificate_pem="\n".join([*whole[:3], whole[-1]]))

    def test_two_certificates_are_refused(self, tmp_path: Path):
        one, two = peer(tmp_path, "edge-1"), peer(tmp_path, "edge-2")
        with pytest.raises(IdentityError, match="must be one certificate, but it is 2"):
            Peer(name="edge-1", certificate_pem=one.certificate_pem + two.certificate_pem)

    def test_a_private_key_handed_over_by_mistake_is_refused_and_not_shown(self, tmp_path: Path):
        certificate_pem = peer(tmp_path).certificate_pem
        key = (tmp_path / "identity of edge-1" / "key.pem").read_text()
        with pytest.raises(IdentityError, match="comes with a private key; give only the certificate") as caught:
            Peer(name="edge-1", certificate_pem=certificate_pem + key)
        assert key.splitlines()[1] not in str(caught.value)


class TestEnrolment:
    def test_nobody_is_enrolled_at_first_and_reading_makes_nothing(self, tmp_path: Path):
        assert Enrolment(tmp_path / "node").peers() == {}
        assert not (tmp_path / "node").exists()

    def test_who_is_added_is_found_by_name_and_by_certificate_in_every_process(self, tmp_path: Path):
        one = peer(tmp_path, "edge-1", address="10.0.0.7:7300", controls=True)
        two = peer(tmp_path, "edge-2")
        Enrolment(tmp_path).add(one)
        Enrolment(tmp_path).add(two)
        enrolment = Enrolment(tmp_path)
        assert enrolment.peers() == {"edge-1": one, "edge-2": two}
        assert enrolment.find_by_fingerprint(one.fingerprint) == one
        assert enrolment.find_by_fingerprint("sha256:00") is None

    def test_one_that_is_open_sees_what_others_add_and_remove(self, tmp_path: Path):
        watching, one = Enrolment(tmp_path), peer(tmp_path)
        Enrolment(tmp_path).add(one)
        assert watching.find_by_fingerprint(one.fingerprint) == one
        Enrolment(tmp_path).remove("edge-1")
        assert watching.find_by_fingerprint(one.fingerprint) is None

    def test_enrolling_a_name_again_replaces_it(self, tmp_path: Path):
        enrolment = Enrolment(tmp_path / "peers")
        first, second = peer(tmp_path / "first"), peer(tmp_path / "second", address="edge-1:7300")
        enrolment.add(first)
        enrolment.add(second)
        assert enrolment.peers() == {"edge-1": second}
        assert enrolment.find_by_fingerprint(first.fingerprint) is None

    def test_two_names_for_one_certificate_are_refused(self, tmp_path: Path):
        one = peer(tmp_path)
        enrolment = Enrolment(tmp_path)
        enrolment.add(one)
        with pytest.raises(IdentityError, match=r"edge-2 has the same certificate as edge-1 \(sha256:"):
            enrolment.add(msgspec.structs.replace(one, name="edge-2"))
        assert enrolment.peers() == {"edge-1": one}

    def test_removing_who_is_unknown_says_who_is_known(self, tmp_path: Path):
        enrolment = Enrolment(tmp_path)
        with pytest.raises(IdentityError, match="no peer 'edge-2' is enrolled; known are none"):
            enrolment.remove("edge-2")
        enrolment.add(peer(tmp_path))
        with pytest.raises(IdentityError, match="known are edge-1"):
            enrolment.remove("edge-2")

    @pytest.mark.parametrize(
        "text", ["", "{", "{}", '[{"name": "edge-1"}]', '[{"name": "../x", "certificate_pem": ""}]', "[\xff]"]
    )
    def test_a_damaged_file_is_an_error_and_not_an_empty_list(self, tmp_path: Path, text: str):
        (tmp_path / "peers.json").write_text(text, "latin-1")
        with pytest.raises(IdentityError, match=r"peers.json is damaged"):
            Enrolment(tmp_path).peers()

    def test_many_threads_may_add_and_none_is_lost(self, tmp_path: Path):
        peers = [peer(tmp_path, f"edge-{number}") for number in range(8)]
        threads = [threading.Thread(target=Enrolment(tmp_path).add, args=(one,)) for one in peers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(Enrolment(tmp_path).peers().values()) == peers

    def test_only_the_owner_can_read_or_change_it(self, tmp_path: Path):
        Enrolment(tmp_path / "node").add(peer(tmp_path))
        assert mode(tmp_path / "node" / "peers.json") == 0o600


def test_the_contexts_trust_exactly_the_peers_they_are_given(tmp_path: Path):
    identity = Identity.load_or_create(tmp_path / "own", "cloud-1")
    one, two = peer(tmp_path, "edge-1"), peer(tmp_path, "edge-2")
    assert server_context(identity, []).get_ca_certs(binary_form=True) == []
    trusted = server_context(identity, [one, two]).get_ca_certs(binary_form=True)
    assert set(trusted) <= {one.certificate_der, two.certificate_der}
    assert server_context(identity, [one, two]).cert_store_stats()["x509"] == 2
    assert client_context(identity, one).cert_store_stats()["x509"] == 1


def test_a_context_whose_key_was_taken_away_says_whose(tmp_path: Path):
    identity = Identity.load_or_create(tmp_path, "edge-1")
    (tmp_path / "key.pem").unlink()
    with pytest.raises(IdentityError, match="cannot load key and certificate of edge-1"):
        server_context(identity, [])


@pytest.mark.parametrize("kind", ["password", "rsa"])
def test_a_key_of_another_kind_is_refused(tmp_path: Path, kind: str):
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "password" else rsa.generate_private_key(65537, 2048)
    protection = serialization.BestAvailableEncryption(b"x") if kind == "password" else serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    (tmp_path / "key.pem").write_bytes(pem)
    (tmp_path / "key.pem").chmod(0o600)
    with pytest.raises(IdentityError, match=r"key.pem is not an? "):
        Identity.load_or_create(tmp_path, "edge-1")
