"""`midstream node`: run a node runtime, and say whom it trusts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.console import fail, out

if TYPE_CHECKING:
    from runtime.transport.identity import Enrolment, Identity

app = typer.Typer(help="Run the node runtime of a machine, and say whom it trusts.", no_args_is_help=True)

Name = Annotated[str, typer.Option(help="This node's name, as layouts call it.")]
State = Annotated[
    Path | None,
    typer.Option(
        help="Folder of this node's key and enrolled peers; default: a folder of that name in the user's state."
    ),
]


def state_folder(name: str, state: Path | None) -> Path:
    """Return where a node of that name keeps its key and its peers."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return state or Path(home) / "midstream" / name


@app.command("run")
def run(
    name: Name,
    listen: Annotated[str, typer.Option(help="Address for heads and other nodes, host:port.")],
    state: State = None,
    memory: Annotated[str | None, typer.Option(help="Most memory for weights and KV, such as 4GiB.")] = None,
    lease: Annotated[float, typer.Option(min=0, help="Seconds that pipelines outlive a head that is gone.")] = 30.0,
    keep: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that weights and KV outlive a node runtime that was killed, for the next one to take over; "
            "then they go. 0: they go at once.",
        ),
    ] = 60.0,
    rate_limit: Annotated[
        str | None, typer.Option(help="Most bytes per second for copying to each node, such as 50MB.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Most disk for files of models that come from heads, such as 100GB.")
    ] = None,
) -> None:
    """Keep weights, KV and stages of pipelines on this machine, until it is told to stop.

    SIGTERM ends all of it. After SIGUSR2, or when it was killed, the next one takes over what is warm (--keep).
    """
    from runtime.engine.errors import EngineError
    from runtime.head.node import NodeOptions, run_node
    from runtime.transport.channel import ChannelError
    from runtime.transport.identity import IdentityError
    from runtime.warm.keeper import KeeperError
    from runtime.warm.model_files import ModelStoreError
    from runtime.warm.zygote import ZygoteError

    options = NodeOptions(
        name,
        state_folder(name, state),
        listen,
        _bytes("--memory", memory),
        lease,
        _bytes("--rate-limit", rate_limit),
        _bytes("--models", models),
        keep,
    )
    try:
        run_node(options)
    except (
        IdentityError,
        ChannelError,
        ZygoteError,
        KeeperError,
        EngineError,
        ModelStoreError,
        OSError,
    ) as error:
        fail(str(error))


@app.command("identity")
def identity(name: Name, state: State = None) -> None:
    """Print this node's certificate, made now if there is none: what its peers have to be given."""
    print(_identity(name, state).certificate_pem, end="")  # noqa: T201 - to be redirected to a file


@app.command("trust")
def trust(
    peer: Annotated[str, typer.Argument(help="The peer's name.")],
    name: Name,
    certificate: Annotated[
        Path, typer.Option(help="The peer's certificate, as its `midstream node identity` prints it.")
    ],
    address: Annotated[str, typer.Option(help="Where the peer listens, host:port.")],
    state: State = None,
    controls: Annotated[bool, typer.Option(help="Let the peer control this node: for heads.")] = False,
) -> None:
    """Enrol a peer: from now on it may connect, and is who its certificate says."""
    from runtime.transport.identity import IdentityError, Peer

    try:
        enrolment = _enrolment(name, state)
        enrolment.add(
            Peer(
                name=peer,
                certificate_pem=certificate.read_text(encoding="utf-8"),
                address=address,
                controls=controls,
            )
        )
    except (IdentityError, OSError, UnicodeDecodeError) as error:
        fail(str(error))
    out.print(f"{name} trusts {peer} at {address}: {enrolment.peers()[peer].fingerprint}", soft_wrap=True)


@app.command("forget")
def forget(peer: Annotated[str, typer.Argument(help="The peer's name.")], name: Name, state: State = None) -> None:
    """Trust a peer no longer, from its next connection on; start the node again to end the present one."""
    from runtime.transport.identity import IdentityError

    try:
        _enrolment(name, state).remove(peer)
    except IdentityError as error:
        fail(str(error))
    out.print(f"{name} no longer trusts {peer}")


def _identity(name: str, state: Path | None) -> Identity:
    from runtime.transport.identity import Identity, IdentityError

    try:
        return Identity.load_or_create(state_folder(name, state), name)
    except IdentityError as error:
        fail(str(error))


def _enrolment(name: str, state: Path | None) -> Enrolment:
    from runtime.transport.identity import Enrolment

    return Enrolment(_identity(name, state).folder)


def _bytes(option: str, text: str | None) -> int | None:
    """Read a size such as ``4GiB``."""
    if text is None:
        return None
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size <= 0:
        fail(f"{option} {text!r} is not a size; write, for example, 4GiB or 500MB")
    return size
