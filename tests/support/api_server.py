"""A real Kubernetes API server for custom resources, on loopback, for tests.

Problem: whether a manifest is accepted, which message a wrong one gets and whether applying it twice changes a thing is
decided by the API server's own code (structural schemas, CEL, server-side apply), which no fake repeats.

Protocol: `tests/support/build_api_server.sh` puts etcd and kube-apiextensions-apiserver into the cache once;
`find_programs` finds them there, and builds them only when MIDSTREAM_BUILD_API_SERVER=1 says so. `running_api_server`
starts both with fresh certificates and data in a folder, and ends them, by their process ids, with the test run; the
kernel ends them if the run is killed.

Caveats: this server knows custom resources only: no Pods, no Namespaces, no Secrets, and nothing that acts on objects.
Namespaces need not exist. `/readyz` never turns good, so `/version` is what is waited for.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.model.cache import default_cache_dir

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Callable, Iterable, Iterator, Mapping

REPOSITORY = Path(__file__).parents[2]
BUILD_SCRIPT = Path(__file__).with_name("build_api_server.sh")
BUILD_VARIABLE = "MIDSTREAM_BUILD_API_SERVER"
CRDS_VARIABLE = "MIDSTREAM_CRDS"
FIELD_MANAGER = "midstream-tests"

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_START_S = 60.0
_ESTABLISH_S = 120.0
_STOP_S = 20.0
_BUILD_S = 45 * 60.0
_POLL_S = 0.05
_ATTEMPTS = 3


class ApiServerUnavailable(RuntimeError):
    """There is no API server to test with; the message says why and what would help."""


class ApiServerFailed(RuntimeError):
    """The programs are there, but do not work; the message has the end of their output."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the two programs are."""

    etcd: Path
    server: Path
    setpriv: str
    """Of util-linux: it starts a program that ends when its parent does."""


def find_programs(environ: Mapping[str, str]) -> Programs:
    """Return the programs in the cache, built now if the environment says so.

    Raises:
        ApiServerUnavailable: they are not there, or cannot be built here.

    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ApiServerUnavailable(
            "there is no setpriv (util-linux) here, which ends servers when a test run is killed"
        )
    folder = default_cache_dir(environ) / "api-server"
    programs = Programs(folder / "etcd", folder / "kube-apiextensions-apiserver", setpriv)
    if _complete(programs):
        return programs
    script = BUILD_SCRIPT.relative_to(REPOSITORY)
    if environ.get(BUILD_VARIABLE) != "1":
        raise ApiServerUnavailable(f"no API server in {folder}; run {script} once, or set {BUILD_VARIABLE}=1")
    try:
        build = subprocess.run(
            [str(BUILD_SCRIPT)], capture_output=True, text=True, check=False, timeout=_BUILD_S, env=dict(environ)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ApiServerUnavailable(f"{script} did not end well: {error}") from error
    if not _complete(programs):
        said = build.stderr.strip().splitlines() or ["nothing said"]
        raise ApiServerUnavailable(f"{script} ended with {build.returncode}: {said[-1]}")
    return programs


def upstream_crds(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the CustomResourceDefinitions of Knative and KServe.

    Raises:
        ApiServerUnavailable: their folder is not there.

    """
    folder = Path(environ.get(CRDS_VARIABLE) or REPOSITORY.parent / "shared" / "crds")
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ApiServerUnavailable(f"no upstream CRDs in {folder}; name their folder in {CRDS_VARIABLE}")
    return [crd for file in files for crd in load_objects(file) if crd["kind"] == "CustomResourceDefinition"]


def load_objects(file: Path) -> list[dict[str, Any]]:
    """Return all objects of a YAML file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the upstream files have megabytes
    return [document for document in yaml.load_all(file.read_bytes(), loader) if document]


class ApiServer:
    """One running server, and what tests do with it. `kubeconfig` is for programs that bring their own client."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.kubeconfig = folder / "kubeconfig"
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
        # trust_env: a variable such as SSL_CERT_FILE would replace the authority.
        self.http = httpx.Client(base_url=url, verify=context, trust_env=False, timeout=60.0)
        self._resources: dict[tuple[str, str], tuple[str, bool]] = {
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"): ("customresourcedefinitions", False)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def install(self, crds: Iterable[dict[str, Any]]) -> None:
        """Create CustomResourceDefinitions and wait until their resources are served.

        Raises:
            ApiServerFailed: one is refused or is not established in time.

        """
        crds = list(crds)
        for crd in crds:
            answer = self.apply(crd)
            if answer.is_error:
                raise ApiServerFailed(f"{crd['metadata']['name']} is refused: {_message(answer)}")
            spec = crd["spec"]
            for version in spec["versions"]:
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                self._resources[key] = (spec["names"]["plural"], spec["scope"] == "Namespaced")
        for crd in crds:
            self._wait_served(crd)

    def knows(self, obj: Mapping[str, Any]) -> bool:
        """Whether the server serves objects of that kind and version."""
        return (obj["apiVersion"], obj["kind"]) in self._resources

    def path(self, obj: Mapping[str, Any]) -> str:
        """Return the path of an object; without a namespace it is put into ``default``."""
        plural, namespaced = self._resources[obj["apiVersion"], obj["kind"]]
        namespace = f"/namespaces/{obj['metadata'].get('namespace', 'default')}" if namespaced else ""
        return f"/apis/{obj['apiVersion']}{namespace}/{plural}/{obj['metadata']['name']}"

    def apply(
        self, obj: Mapping[str, Any], manager: str = FIELD_MANAGER, *, subresource: str = "", force: bool = False
    ) -> httpx.Response:
        """Apply an object on the server's side, as strict with unknown fields as kubectl is."""
        return self.http.patch(
            self.path(obj) + (f"/{subresource}" if subresource else ""),
            params={"fieldManager": manager, "fieldValidation": "Strict", "force": str(force).lower()},
            content=json.dumps(obj),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )

    def create(self, obj: Mapping[str, Any]) -> httpx.Response:
        """Create an object, as strict with unknown fields as kubectl is."""
        folder = self.path(obj).rpartition("/")[0]
        return self.http.post(folder, params={"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}, json=obj)

    def get(self, obj: Mapping[str, Any], subresource: str = "") -> httpx.Response:
        """Read an object of that kind, namespace and name."""
        return self.http.get(self.path(obj) + (f"/{subresource}" if subresource else ""))

    def delete(self, obj: Mapping[str, Any]) -> httpx.Response:
        """Delete an object of that kind, namespace and name."""
        return self.http.delete(self.path(obj))

    def _wait_served(self, crd: dict[str, Any]) -> None:
        spec, name = crd["spec"], crd["metadata"]["name"]
        paths = [
            f"/apis/{spec['group']}/{v['name']}/{spec['names']['plural']}" for v in spec["versions"] if v["served"]
        ]

        def served() -> bool:
            status = self.http.get(f"{_CRDS}/{name}").json().get("status", {})
            conditions = status.get("conditions") or []
            for condition in conditions:
                if condition["type"] == "NonStructuralSchema" and condition["status"] == "True":
                    raise ApiServerFailed(f"{name} is not structural: {condition['message']}")
            established = any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
            return established and all(self.http.get(path, params={"limit": 1}).is_success for path in paths)

        _wait(served, _ESTABLISH_S, f"{name} to be served")


@contextlib.contextmanager
def running_api_server(programs: Programs, folder: Path) -> Iterator[ApiServer]:
    """Run etcd and the server with their data in `folder`.

    Raises:
        ApiServerFailed: they do not come up.

    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_certificates(folder)
    for attempt in range(_ATTEMPTS):  # another program may take a port between choosing and binding it
        with contextlib.ExitStack() as stack:
            try:
                server = _start(stack, programs, folder / f"try-{attempt}", folder)
            except ApiServerFailed:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            yield server
            return


def _start(stack: contextlib.ExitStack, programs: Programs, folder: Path, certificates: Path) -> ApiServer:
    folder.mkdir()
    client_port, peer_port, secure_port = _free_ports(3)
    etcd_url, peer_url = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    etcd = _run(
        stack,
        folder / "etcd.log",
        [
            *(programs.setpriv, "--pdeathsig", "KILL", "--", str(programs.etcd)),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={etcd_url}",
            f"--advertise-client-urls={etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
            "--max-request-bytes=16777216",
            "--log-level=warn",
        ],
    )
    with httpx.Client(trust_env=False) as http:
        _wait(lambda: _answers(http, f"{etcd_url}/health", etcd, folder / "etcd.log"), _START_S, "etcd")
    url = f"https://127.0.0.1:{secure_port}"
    _write_kubeconfig(certificates, url)
    kubeconfig = str(certificates / "kubeconfig")
    process = _run(
        stack,
        folder / "server.log",
        [
            *(programs.setpriv, "--pdeathsig", "KILL", "--", str(programs.server)),
            f"--etcd-servers={etcd_url}",
            f"--secure-port={secure_port}",
            "--bind-address=127.0.0.1",
            f"--tls-cert-file={certificates / 'server.pem'}",
            f"--tls-private-key-file={certificates / 'server.key'}",
            f"--client-ca-file={certificates / 'ca.pem'}",
            # There is no other API server to delegate to; the client's group needs no question.
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--authentication-skip-lookup",
            "--enable-priority-and-fairness=false",
            (
                "--disable-admission-plugins=NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook,"
                "ValidatingAdmissionPolicy,MutatingAdmissionPolicy"
            ),
        ],
    )
    server = stack.enter_context(ApiServer(url, certificates))
    _wait(lambda: _answers(server.http, "/version", process, folder / "server.log"), _START_S, "the API server")
    return server


def _run(stack: contextlib.ExitStack, log: Path, command: list[str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(http: httpx.Client, path: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ApiServerFailed(f"{log.stem} ended with {process.returncode}:\n{tail}")
    try:
        return http.get(path).is_success
    except httpx.TransportError:
        return False


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ApiServerFailed(f"waited {seconds:.0f} s for {what}")
        time.sleep(_POLL_S)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _complete(programs: Programs) -> bool:
    return os.access(programs.etcd, os.X_OK) and os.access(programs.server, os.X_OK)


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError):
        return answer.text


def _write_certificates(folder: Path) -> None:
    """Write an authority, the server's certificate and that of a client who may do everything."""
    import ipaddress

    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _name("midstream tests")
    _write_certificate(folder / "ca.pem", authority, authority_key, authority, authority_key, is_authority=True)
    for file, subject, address in (
        ("server", _name("127.0.0.1"), ipaddress.IPv4Address("127.0.0.1")),
        ("client", _name("tests", "system:masters"), None),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        secret = folder / f"{file}.key"
        secret.touch(mode=0o600)
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        _write_certificate(folder / f"{file}.pem", subject, key, authority, authority_key, address=address)


def _name(common_name: str, group: str | None = None) -> x509.Name:
    group_attribute = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*group_attribute, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _write_certificate(
    file: Path,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool = False,
    address: ipaddress.IPv4Address | None = None,
) -> None:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if address is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=False)
    if not is_authority:
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(usages, critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_kubeconfig(folder: Path, url: str) -> None:
    def data(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    cluster = {"server": url, "certificate-authority-data": data("ca.pem")}
    user = {"client-certificate-data": data("client.pem"), "client-key-data": data("client.key")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "tests", "user": user}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests", "namespace": "default"}}],
    }
    file = folder / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
