"""Run as a process of its own: attaches to a device pool and does what it is told.

Argument: the descriptor of the tables. Standard input: the handle as JSON, then a command a line; an answer a line.
`read LAYER BLOCK` answers with the first byte and the watermark; `write LAYER BLOCK BYTE` fills a block and records it;
`append LAYER BLOCK` appends tokens for ever, one at a time, after the answer to the first.
"""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Self

import msgspec

from runtime.warm.device_pool import DevicePool, PoolHandle

ROOT = Path(__file__).parents[4]


class DeviceProcess:
    """A process attached to a pool; gone on leaving."""

    def __init__(self, handle: PoolHandle, descriptor: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[descriptor],
            cwd=ROOT,
        )
        self.attached = self.ask(msgspec.json.encode(handle).decode())

    def ask(self, command: str) -> str:
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def token(number: int) -> int:
    """What `append` writes as token `number` of a block, in all its bytes."""
    return 1 + number % 250


def main() -> None:
    descriptor = int(sys.argv[1])
    with os.fdopen(os.dup(0), "rb", buffering=0) as commands:
        pool = DevicePool.attach(msgspec.json.decode(commands.readline(), type=PoolHandle), descriptor)
        say(f"{pool.layers}")
        while line := commands.readline().split():
            layer, block = int(line[1]), int(line[2])
            rows, size = range(layer, layer + 1), pool.tables.shape.block_tokens
            memory = pool.layer(layer)[block]
            if line[0] == b"read":
                say(f"{int(memory[0])} {pool.tables.watermark[layer, block]}")
            elif line[0] == b"write":
                memory.fill_(int(line[3]))
                pool.record_written(rows, [block], [0], [size])
                say("written")
            else:
                for number in count():
                    memory.view(size, -1)[number % size] = token(number % size)
                    pool.record_written(rows, [block], [number % size], [number % size + 1])
                    if number == 0:
                        say("appending")
    pool.close()


def say(answer: str) -> None:
    sys.stdout.write(f"{answer}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
