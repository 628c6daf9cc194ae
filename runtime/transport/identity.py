"""Who a node is, and whom it knows.

Problem: head and stages on different machines talk over a network that others can reach. A byte from somebody whom
nobody let in must never be read (invariants I5 and I8), and no authority stands above the nodes of a pipeline.

Protocol: every node makes its own key and a certificate that it signs itself. An operator carries the certificates
from node to node once (enrolment), as one does with SSH host keys. Both sides of a connection then prove their key by
mutual TLS 1.3 and accept exactly the enrolled certificates. ::

    <folder>/key.pem     the private key, mode 0600; it never leaves the folder
    <folder>/cert.pem    the certificate, for the other nodes
    <folder>/peers.json  the enrolled peers (the folder of `Enrolment` may be the same one or another)

Caveats: TLS verifies a chain, so an enrolled certificate that is an authority would vouch for certificates that nobody
enrolled. The fingerprint of what the peer showed is therefore compared after every handshake; that comparison, not
the name inside a certificate, says who the peer is. Certificates last for decades: to lock a node out, remove it
everywhere. Nodes need clocks that agree to a day.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import re
import ssl
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_NODE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")  # as in a layout; an X.509 name holds 64
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]]+):(?P<port>[0-9]{1,5})")
_LIFETIME = dt.timedelta(days=50 * 365)
_CLOCK_TOLERANCE = dt.timedelta(days=1)


class IdentityError(ValueError):
    """A key, certificate, name, address or enrolment cannot be used; the message says which and what to do."""


def fingerprint_of(certificate_der: bytes) -> str:
    """Return ``sha256:<hex>`` of a certificate in DER."""
    return f"sha256:{hashlib.sha256(certificate_der).hexdigest()}"


def parse_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` (``[::1]:port`` for IPv6).

    Raises:
        IdentityError: it is something else.

    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise IdentityError(f"address {address!r} is not host:port, such as 10.0.0.7:7300, edge-1:7300 or [::1]:7300")
    return match["host"].strip("[]"), int(match["port"])


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another node as an operator enrolled it: `address` is ``host:port``; `controls` lets it give control orders.

    Raises:
        IdentityError: the name, the certificate or the address is malformed.

    """

    name: str
    certificate_pem: str
    address: str | None = None
    controls: bool = False

    def __post_init__(self) -> None:
        """Refuse what could not be used later."""
        _check_name(self.name)
        _read_certificate(self.certificate_pem, f"the certificate of {self.name}")
        if self.address is not None:
            parse_address(self.address)

    @property
    def certificate_der(self) -> bytes:
        """The certificate as TLS shows it."""
        return _der(_read_certificate(self.certificate_pem, f"the certificate of {self.name}"))

    @property
    def fingerprint(self) -> str:
        """``sha256:<hex>`` of the certificate."""
        return fingerprint_of(self.certificate_der)


class Identity:
    """This node's name, key and certificate. The key stays in its file: no attribute holds it."""

    def __init__(self, folder: Path, name: str, certificate_pem: str) -> None:
        self.folder = folder
        self.name = name
        self.certificate_pem = certificate_pem
        self.fingerprint = fingerprint_of(_der(_read_certificate(certificate_pem, f"{folder / 'cert.pem'}")))

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, {self.fingerprint})"

    @classmethod
    def load_or_create(cls, folder: Path, name: str) -> Identity:
        """Return the identity that `folder` keeps, made now if there is none.

        A process may be killed at any point: the next call goes on with the key that was written, or makes one.

        Raises:
            IdentityError: the folder was made for another name, is damaged, can be read by others, or cannot be used.

        """
        _check_name(name)
        with _exclusive(folder):
            key_file, certificate_file = folder / "key.pem", folder / "cert.pem"
            if not certificate_file.exists():
                key = _read_key(key_file) if key_file.exists() else _new_key(key_file)
                _write(certificate_file, _self_signed(name, key))
            elif not key_file.exists():
                raise IdentityError(
                    f"{certificate_file} has no {key_file} beside it; put the key back, or remove the certificate to "
                    "make a new identity, which has to be enrolled again at every peer"
                )
            certificate_pem = certificate_file.read_bytes().decode("ascii", "replace")
            certificate = _read_certificate(certificate_pem, str(certificate_file))
            if (made_for := _common_name(certificate)) != name:
                raise IdentityError(f"{folder} keeps the identity of {made_for!r}, not of {name!r}; use another folder")
            if certificate.public_key() != _read_key(key_file).public_key():
                raise IdentityError(
                    f"{certificate_file} does not belong to {key_file}; restore both from one copy, or remove the "
                    "certificate to make a new one, which has to be enrolled again at every peer"
                )
            return cls(folder, name, certificate_pem)


class Enrolment:
    """The peers that a node knows, in one file that several processes may change. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "peers.json"
        self._known: tuple[bytes | None, dict[str, Peer]] = (None, {})

    def peers(self) -> dict[str, Peer]:
        """Return the peers by name, as the file has them now.

        Raises:
            IdentityError: the file cannot be read or was damaged.

        """
        try:
            text = self._file.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise IdentityError(f"cannot read the enrolled peers: {error}") from error
        known_text, known = self._known
        if text != known_text:
            try:
                known = {peer.name: peer for peer in msgspec.json.decode(text, type=list[Peer])}
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise IdentityError(
                    f"{self._file} is damaged: {error}; repair it, or remove it and enrol every peer again"
                ) from error
            self._known = (text, known)
        return dict(known)

    def find_by_fingerprint(self, fingerprint: str) -> Peer | None:
        """Return the peer whose certificate has `fingerprint`.

        Raises:
            IdentityError: as `peers`.

        """
        return next((peer for peer in self.peers().values() if peer.fingerprint == fingerprint), None)

    def add(self, peer: Peer) -> None:
        """Enrol `peer`; a peer of that name is replaced.

        Raises:
            IdentityError: another name has the same certificate, or the folder cannot be written.

        """
        with _exclusive(self.folder):
            others = [other for other in self.peers().values() if other.name != peer.name]
            for other in others:
                if other.fingerprint == peer.fingerprint:
                    raise IdentityError(
                        f"{peer.name} has the same certificate as {other.name} ({peer.fingerprint}); "
                        f"every node needs its own: remove {other.name} first if it was renamed"
                    )
            self._save([*others, peer])

    def remove(self, name: str) -> None:
        """Forget the peer `name`; its open connections are for the caller to end (`LinkListener.drop`).

        Raises:
            IdentityError: there is no such peer, or the folder cannot be written.

        """
        with _exclusive(self.folder):
            peers = self.peers()
            if peers.pop(name, None) is None:
                raise IdentityError(f"no peer {name!r} is enrolled; known are {', '.join(sorted(peers)) or 'none'}")
            self._save(peers.values())

    def _save(self, peers: Iterable[Peer]) -> None:
        ordered = sorted(peers, key=lambda peer: peer.name)
        _write(self._file, msgspec.json.format(msgspec.json.encode(ordered), indent=2))


def server_context(identity: Identity, peers: Iterable[Peer]) -> ssl.SSLContext:
    """Return what an accepting node uses: it takes `peers` and nobody else, and proves that it is `identity`.

    Raises:
        IdentityError: key or certificate of `identity` cannot be loaded.

    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity, peers)
    # No session is resumed: each connection proves both keys anew.
    context.num_tickets = 0
    return context


def client_context(identity: Identity, peer: Peer) -> ssl.SSLContext:
    """Return what a dialling node uses: it takes `peer` and nobody else, and proves that it is `identity`.

    Raises:
        IdentityError: key or certificate of `identity` cannot be loaded.

    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity, [peer])


def shown_fingerprint(connection: ssl.SSLSocket) -> str:
    """Return the fingerprint of the certificate that the peer showed in the handshake."""
    return fingerprint_of(connection.getpeercert(binary_form=True) or b"")


def _context(protocol: int, identity: Identity, peers: Iterable[Peer]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate is the identity; a host may have any name
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(identity.folder / "cert.pem", identity.folder / "key.pem")
    except OSError as error:  # ssl.SSLError is one
        raise IdentityError(f"cannot load key and certificate of {identity.name}: {error}") from error
    if trusted := b"".join(peer.certificate_der for peer in peers):
        context.load_verify_locations(cadata=trusted)
    return context


def _check_name(name: str) -> None:
    if _NODE_NAME.fullmatch(name) is None:
        raise IdentityError(
            f"{name!r} is no name for a node; use up to 64 letters, digits, dots and hyphens, with a letter or digit "
            "first and last"
        )


def _read_certificate(pem: str, what: str) -> x509.Certificate:
    if "PRIVATE KEY" in pem:
        raise IdentityError(f"{what} comes with a private key; give only the certificate (cert.pem)")
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise IdentityError(f"{what} is not a PEM certificate: {error}") from error
    if len(certificates) != 1:
        raise IdentityError(f"{what} must be one certificate, but it is {len(certificates)}")
    return certificates[0]


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _common_name(certificate: x509.Certificate) -> str:
    return ", ".join(
        str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    )


def _new_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, private_format = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _write(file, key.private_bytes(encoding, private_format, serialization.NoEncryption()))
    return key


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    if (mode := file.stat().st_mode & 0o777) & 0o077:
        raise IdentityError(f"{file} can be used by others (mode {mode:04o}); run chmod 600 on it if nobody copied it")
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{file} is not a private key without a password: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{file} is not an elliptic curve key; remove it and cert.pem to make a new identity")
    return key


def _self_signed(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Be the only process that writes to `folder` (made with mode 0700 if it is missing), and explain OS errors."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (mode := folder.stat().st_mode & 0o777) & 0o022:
            raise IdentityError(f"others may write in {folder} (mode {mode:04o}); run chmod 700 on it")
        with FileLock(folder / ".lock"):
            yield
    except OSError as error:
        raise IdentityError(f"cannot use the folder {folder}: {error}") from error


def _write(file: Path, content: bytes) -> None:
    """Put `content` in the place of `file`, mode 0600, whole or not at all even when power fails."""
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
