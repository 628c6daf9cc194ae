"""Run a node runtime in this process: `midstream node run`."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import runtime
from runtime.head.serve import engine_environment
from runtime.transport.identity import Enrolment, Identity
from runtime.warm.adoption import PROTOCOL, NodeRecord, WarmState, new_seed
from runtime.warm.keeper import Keeper
from runtime.warm.model_store import ModelStore
from runtime.warm.node_daemon import NodeDaemon
from runtime.warm.zygote import ZygoteError


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What `midstream node run` was asked for; sizes in bytes, times in seconds."""

    name: str
    folder: Path
    listen: str
    memory_bytes: int | None
    lease_s: float
    bulk_bytes_per_second: float | None
    models_bytes: int | None = None
    keep_s: float = 60.0


def run_node(options: NodeOptions) -> None:
    """Serve until SIGTERM or SIGINT, then end everything; or until SIGUSR2, and leave it to the next node runtime.

    Raises:
        IdentityError, ChannelError, ZygoteError, KeeperError: the node cannot start; the message says why.
        ZygoteError: the process with the engine has ended, and the node with it.

    """
    from runtime.engine.compat import built_for_cpu, check_torchvision, installed_version

    identity = Identity.load_or_create(options.folder, options.name)
    version = installed_version()
    os.environ.update(engine_environment(os.environ, on_cpu=built_for_cpu()))
    check_torchvision()
    enrolment = Enrolment(options.folder)
    this = NodeRecord(PROTOCOL, f"{version} {_digest_of_code()}", identity.name, identity.fingerprint)
    heads = {peer.name: peer.fingerprint for peer in enrolment.peers().values() if peer.controls}
    told, leaving = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    signal.signal(signal.SIGUSR2, lambda *_: leaving.set())
    keeper, warm = _warm_state(options, this, heads)
    try:
        daemon = NodeDaemon(
            identity,
            enrolment,
            options.listen,
            warm,
            options.memory_bytes,
            options.lease_s,
            log,
            options.bulk_bytes_per_second,
            ModelStore(options.folder / "models", options.models_bytes),
        )
    except Exception:
        if keeper.is_new:
            keeper.end()
        else:
            keeper.leave()  # a port that is still taken, say: what is warm can wait
        raise
    log("ready", node=identity.name, address=daemon.address, fingerprint=identity.fingerprint)
    while warm.seed.alive and not (leaving.is_set() or told.wait(0.5)):
        continue
    if leaving.is_set() and not told.is_set():
        daemon.leave()
        log("left", keep_s=options.keep_s)
        return
    lost = not warm.seed.alive
    daemon.close()
    if lost:
        raise ZygoteError("the process with the engine has ended; start the node again")


def _warm_state(options: NodeOptions, this: NodeRecord, heads: dict[str, str]) -> tuple[Keeper, WarmState]:
    """Adopt what the last node runtime of this folder left, or begin anew."""
    from runtime.engine.model_zygote import be_model_zygote, import_engine

    while True:
        # A new one is forked before this process has threads and sockets.
        keeper = Keeper.attach(options.folder, be_model_zygote, import_engine, new_seed, options.keep_s)
        try:
            return keeper, WarmState(keeper, this, heads, log)
        except ZygoteError as error:
            keeper.end()
            if keeper.is_new:
                raise
            log("not adopted", reason=error)


def _digest_of_code() -> str:
    """Name the code of this package: processes that run other code are not adopted."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(Path(runtime.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def log(event: str, **details: object) -> None:
    """Write one line to standard error."""
    at = dt.datetime.now(dt.UTC).strftime("%H:%M:%S.%f")[:-3]
    text = "  ".join(f"{name}={value}" for name, value in details.items())
    print(f"{at}  {event:<18} {text}", file=sys.stderr, flush=True)  # noqa: T201 - this is the node's log
