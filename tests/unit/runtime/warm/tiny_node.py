"""A real node runtime in a process of its own, whose models and stages are tiny.

``python -m tests.unit.runtime.warm.tiny_node FOLDER NAME OPTIONS`` prints where it listens, answers each line of its
standard input with what it hosts, and says what is left of it when its input ends. All lines are JSON.

A stage answers a batch with a result of the same buffers, and does as it is told by calls.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import zmq

from runtime.transport.address import Address
from runtime.transport.channel import Inbox
from runtime.transport.frames import Batch, Call, Reply, Result, unpack
from runtime.transport.identity import Enrolment, Identity
from runtime.warm.adoption import PROTOCOL, NodeRecord, WarmState, new_seed
from runtime.warm.keeper import Keeper
from runtime.warm.kv_pool import KVPool, KVPoolShape
from runtime.warm.node import StagePayload
from runtime.warm.node_daemon import NodeDaemon
from runtime.warm.warm_models import ModelPayload
from runtime.warm.zygote import be_zygote
from tests.support.token_maps import tokens_in_a_row

SHAPE = KVPoolShape(layers=4, blocks=16, block_tokens=4, layer_bytes=16 * 4096)
_ballast: list[bytearray] = []


def engine(name: str, **fields: Any) -> bytes:
    """Say what a model is: `mib` of weights, or a `failure` (so many `times`); it waits for the file `gate`."""
    return msgspec.msgpack.encode({"name": name, "mib": 0, "failure": None, "times": 1, "gate": None, **fields})


def orders(stage: str, head: str, **fields: Any) -> bytes:
    """Say what a stage is."""
    return msgspec.msgpack.encode({"stage": stage, "head": head, **fields})


def be_tiny_model(payload: bytes, descriptors: list[int]) -> None:
    """Be the zygote of a model."""
    described = msgspec.msgpack.decode(msgspec.msgpack.decode(payload, type=ModelPayload).engine)

    def preload() -> dict[str, Any]:
        while described["gate"] and not Path(described["gate"]).exists():
            time.sleep(0.002)
        if described["failure"]:
            raise RuntimeError(described["failure"] * described["times"])
        _ballast.append(bytearray(b"\x01" * (described["mib"] << 20)))
        return {"layers": SHAPE.layers, "model": described["name"], "zygote": os.getpid()}

    be_zygote(descriptors[0], be_tiny_stage, preload)


def be_tiny_stage(payload: bytes, descriptors: list[int]) -> None:
    """Be a stage."""
    placed = msgspec.msgpack.decode(payload, type=StagePayload)
    order = msgspec.msgpack.decode(placed.orders)
    name = order["stage"]
    if order.get("exit") is not None:
        os._exit(order["exit"])
    context: zmq.Context[Any] = zmq.Context()
    inbox = Inbox(context, placed.home.inbox(name))
    head = placed.home.outbox(context, Address(order["head"], "head"))
    while True:
        frame, buffers = unpack(inbox.receive() or [])
        if isinstance(frame, Batch):
            head.send(Result(frame.epoch, frame.sequence, frame.buffers), [bytes(buffer) for buffer in buffers])
        elif isinstance(frame, Call):
            answer = do(frame.method, msgspec.msgpack.decode(buffers[0]), descriptors[0])
            head.send(Reply(name, frame.call), [msgspec.msgpack.encode(answer)])


def do(method: str, arguments: dict[str, Any], descriptor: int) -> Any:
    """Do what a stage is told."""
    if method == "exit":
        os._exit(arguments["status"])
    pool = KVPool(descriptor, SHAPE)
    if pool.token_map is None:
        pool.token_map = tokens_in_a_row(SHAPE)
    if method == "write":  # all tokens of some blocks, in all layers
        for block in arguments["blocks"]:
            for layer in range(SHAPE.layers):
                start = block * SHAPE.block_bytes
                pool.layer_memory(layer)[start : start + SHAPE.block_bytes] = bytes([block]) * SHAPE.block_bytes
            pool.record_written(range(SHAPE.layers), [block], [0], [SHAPE.block_tokens])
    return {
        "pid": os.getpid(),
        "tokens": pool.watermark.sum(axis=1).tolist(),
        "bytes": [sum(pool.layer_memory(layer)) for layer in range(SHAPE.layers)],
    }


def main(folder: str, name: str, options: dict[str, Any]) -> None:
    """Run until the input ends."""
    place = Path(folder)
    identity, enrolment = Identity.load_or_create(place, name), Enrolment(place)
    # Forked before this process has threads and sockets.
    keeper = Keeper.attach(place, be_tiny_model, lambda: None, new_seed, options["keep_s"])
    log = (Path(folder) / "log").open("a", buffering=1)

    def write(event: str, **details: object) -> None:
        log.write(json.dumps({"event": event, **{key: str(value) for key, value in details.items()}}) + "\n")

    this = NodeRecord(PROTOCOL, "tiny", name, identity.fingerprint)
    heads = {peer.name: peer.fingerprint for peer in enrolment.peers().values() if peer.controls}
    warm = WarmState(keeper, this, heads, write)
    daemon = NodeDaemon(
        identity,
        enrolment,
        options["listen"],
        warm,
        options["memory_bytes"],
        options["lease_s"],
        write,
        options["rate"],
    )
    say({"address": daemon.address, "seed": warm.seed.pid, "folder": daemon._folder})
    for _ in sys.stdin:
        say(state(daemon))
    daemon.close()
    log.close()
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    say({"threads": left, "folder": Path(daemon._folder).exists(), **state(daemon)})


def state(daemon: NodeDaemon) -> dict[str, Any]:
    """What a node runtime has at the moment."""
    return {
        "pipelines": daemon.pipelines(),
        "models": len(daemon._models),
        "copies": sorted(daemon._exchange.receiver._copies),
        "descriptors": psutil.Process().num_fds(),
        "admitted": sorted(daemon.gateway._admitted),
        "files": sorted(os.listdir(daemon._folder)) if Path(daemon._folder).exists() else [],
        "children": len(psutil.Process().children(recursive=True)),
    }


def say(what: dict[str, Any]) -> None:
    """Tell the test."""
    print(json.dumps(what), flush=True)  # noqa: T201 - the test reads it


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
