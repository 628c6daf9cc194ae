"""The experiment behind `midstream bench device`: what state paths cost on a GPU, with torch alone.

One process owns two KV pools in device memory; others attach by CUDA IPC (or, with ``host``, map the same bytes in host
memory: the same steps without a GPU). Measured are, each `repeat` times:

- *attach*: a new process that is started, warmed up and waiting opens the handles of all layers. What lies before
  (importing torch, starting the device, loading kernels) is reported beside it, since a pre-started process has
  paid it already;
- *copy*: KV blocks of half of the layers from one pool to the other, as pre-copy does it: scattered blocks and one run
  of blocks. A GB/s counts each byte once, though it is read and written, and includes waiting for the device;
- *kill*: the process that decodes is killed with SIGKILL, a waiting one attaches and goes on;
- *flip*: one attached process stops after its step, another goes on. The pause is the largest gap between two tokens
  around the flip minus the median gap before it (`loadgen.gaps`), beside the same figure of a run left alone.

Tokens must be those of an undisturbed run, and the KV must have the same digest, byte for byte.

Processes are started anew, never forked: CUDA does not survive a fork of a process that has used it. The decoder is
small and not vLLM's; it is there so that a lost or wrong byte of KV shows.
"""

from __future__ import annotations

import contextlib
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from loadgen.benchmarks.device_process import WorkerProcess
from loadgen.clock import now_ns, unix_offset_ns
from loadgen.errors import MeasurementError, OptionsError
from loadgen.gaps import Window, pause, percentile
from loadgen.machine import machine_facts
from loadgen.records import Outcome, StreamRecord, Token

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Say = Callable[[str], None]

_BLOCK_TOKENS = 16
_FIRST_TOKEN, _FIRST_BLOCK = 1, 1  # block 0 is vLLM's null block
_LEAST_TOKENS = 32
_COPIED_BLOCKS = (1, 4, 16, 64, 256, 1024, 4096)


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Options of the experiment.

    Attributes:
        device: ``cuda``, or ``host`` for the same steps without a GPU.
        layers, blocks: Size of each of the two pools; a block of a layer is 64 KiB.
        context: Tokens of KV that a request has when decoding begins.
        tokens: Tokens that are decoded in each run.
        repeat: How often everything is measured.
        deadline_s: How long a process may take for one answer.
    """

    device: str = "cuda"
    layers: int = 16
    blocks: int = 256
    context: int = 500
    tokens: int = 96
    repeat: int = 5
    deadline_s: float = 120.0

    def __post_init__(self) -> None:
        if self.device not in {"cuda", "host"}:
            raise OptionsError(f"there is no device {self.device!r}, only cuda and host")
        least = (("layers", self.layers, 1), ("repeat", self.repeat, 1), ("context", self.context, 1))
        for name, value, lowest in (*least, ("tokens", self.tokens, _LEAST_TOKENS)):
            if value < lowest:
                raise OptionsError(f"{name} is {value}, but must be at least {lowest}")
        needed = _FIRST_BLOCK + -(-(self.context + self.tokens) // _BLOCK_TOKENS)
        if self.blocks < needed:
            raise OptionsError(f"{self.blocks} blocks do not hold {self.context + self.tokens} tokens; needs {needed}")

    @property
    def request(self) -> list[int]:
        """The blocks of the one request: any order but the obvious one."""
        blocks = list(range(_FIRST_BLOCK, self.blocks))
        random.Random(3).shuffle(blocks)  # noqa: S311 - no secret
        return blocks[: -(-(self.context + self.tokens) // _BLOCK_TOKENS)]


@dataclass(frozen=True, slots=True)
class Run:
    """One decoded request: its tokens, its pause, and the digest of its KV at the end, as the owner reads it."""

    tokens: tuple[int, ...]
    pause_ms: float
    digest: str


class Experiment:
    """The processes of one experiment, and what they told. Errors are MeasurementError."""

    def __init__(self, options: DeviceOptions, descriptors: Sequence[int], stack: contextlib.AsyncExitStack) -> None:
        self._options, self._descriptors, self._stack = options, descriptors, stack
        self._owner: WorkerProcess
        self._handles: list[Any]
        self.facts: dict[str, Any] = {}
        self.each: dict[str, list[float]] = {}
        self.block_bytes = 0
        self.state_intact = True

    async def skipped(self) -> str | None:
        """Say why this device cannot be used here, if so; asked in another process, so that this one needs no torch."""
        worker = await self._new()
        reason: str | None = (await worker.ask("unavailable"))["reason"]
        return reason

    async def prepare(self) -> None:
        """Start the owner of the pools."""
        options = self._options
        self._owner = await self._start()
        self._handles = await self._owner.ask("create", layers=options.layers, blocks=options.blocks)
        self.block_bytes = self._handles[0]["shape"]["layer_bytes"] // options.blocks
        await self._fill()

    async def waiting(self) -> WorkerProcess:
        """Start a process that is warmed up, but not attached."""
        worker = await self._start()
        for name in ("import_ms", "device_ms", "warm_up_ms"):
            self.note(name, self.facts[name])
        return worker

    async def attach(self, worker: WorkerProcess) -> WorkerProcess:
        """Let a process attach to all layers."""
        self.note("attach_ms", (await worker.ask("attach", handles=self._handles))["attach_ms"])
        return worker

    async def check(self, worker: WorkerProcess, tokens: int) -> None:
        """Check that a process reads the same bytes as the owner."""
        read = {"request": self._options.request, "tokens": tokens}
        self.state_intact &= await worker.ask("digest", **read) == await self._owner.ask("digest", **read)

    async def copy(self, worker: WorkerProcess) -> list[dict[str, Any]]:
        """Copy more and more blocks of half of the layers to the other pool."""
        options, layers, rows = self._options, max(1, self._options.layers // 2), []
        for count in (count for count in _COPIED_BLOCKS if count < options.blocks):
            row: dict[str, Any] = {"blocks": count, "layers": layers}
            choice = random.Random(count)  # noqa: S311 - no secret
            scattered = choice.sample(range(_FIRST_BLOCK, options.blocks), count)
            for name, blocks in (("run", list(range(_FIRST_BLOCK, _FIRST_BLOCK + count))), ("scattered", scattered)):
                answer = await worker.ask("copy", layers=layers, blocks=blocks, repeat=options.repeat)
                self.state_intact &= answer["identical"]
                rates = [answer["bytes"] / seconds / 1e9 for seconds in answer["seconds"]]
                row |= {"bytes": answer["bytes"], f"{name}_gb_s": round(percentile(rates, 50), 3)}
                row[f"{name}_gb_s_spread"] = [round(min(rates), 3), round(max(rates), 3)]
            rows.append(row)
        return rows

    async def decode(self, first: WorkerProcess, then: WorkerProcess | None = None, *, kill: bool = False) -> Run:
        """Decode the request from its context; halfway `then` takes over, after `first` stopped or was killed."""
        options, tokens = self._options, list[Token]()
        half, began = options.tokens // 2, now_ns()
        flipped = began
        await self._fill()

        def arrived(token: Token) -> bool:
            nonlocal flipped
            tokens.append(token)
            if len(tokens) == half:
                flipped = now_ns()
                if kill:
                    first.kill()
                return then is None or kill
            return True

        until = options.context + options.tokens
        ended_well = await first.decode(options.request, _FIRST_TOKEN, options.context, until, arrived)
        next_token = half
        if then is not None:
            next_token = len(tokens)
            if kill:
                await self.attach(then)
            position = options.context + next_token
            token = tokens[-1].token_id  # a killed step is done again: its token never arrived
            ended_well = await then.decode(options.request, token, position, until, arrived)
        if not ended_well or len(tokens) != options.tokens or next_token >= len(tokens):
            raise MeasurementError(f"{len(tokens)} of {options.tokens} tokens came, {next_token} before the change")
        found = pause(_record(tokens, began), Window(flipped, tokens[next_token].arrived_ns))
        if found.ms is None:
            raise MeasurementError(f"there is no pause to report: {found.status}")
        digest = await self._owner.ask("digest", request=options.request, tokens=until)
        return Run(tuple(token.token_id for token in tokens), found.ms, digest)

    def note(self, name: str, value: float) -> None:
        """Keep one figure of a repeat."""
        self.each.setdefault(name, []).append(round(value, 3))

    async def _start(self) -> WorkerProcess:
        worker, options = await self._new(), self._options
        tokens = options.context + options.tokens
        self.facts = await worker.ask("start", layers=options.layers, block_tokens=_BLOCK_TOKENS, tokens=tokens)
        return worker

    async def _new(self) -> WorkerProcess:
        return await self._stack.enter_async_context(
            WorkerProcess.running(self._options.device, self._descriptors, self._options.deadline_s)
        )

    async def _fill(self) -> None:
        await self._owner.ask("fill", request=self._options.request, tokens=self._options.context, seed=11)


async def run(options: DeviceOptions, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Run the experiment and return its result as one JSON object; `skipped` says why there is none.

    Raises:
        LoadgenError: a process could not do its part, or figures could not be taken.
    """
    descriptors = [os.memfd_create(f"midstream-{name}", 0) for name in ("bench", "bench-target")]
    try:
        async with contextlib.AsyncExitStack() as stack:
            experiment = Experiment(options, descriptors, stack)
            if reason := await experiment.skipped():
                return {"device": options.device, "skipped": reason, "machine": machine_facts()}
            return await _measure(experiment, options, say)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def _measure(experiment: Experiment, options: DeviceOptions, say: Say) -> dict[str, Any]:
    say(f"starting processes on {options.device}")
    await experiment.prepare()
    running, other = [await experiment.attach(await experiment.waiting()) for _ in range(2)]
    for worker in (running, other):  # two attached at once
        await experiment.check(worker, options.context)
    say("copying blocks")
    copy = await experiment.copy(running)
    reference, identical = await experiment.decode(running), True
    for number in range(options.repeat):
        say(f"decoding: left alone, flip, kill ({number + 1} of {options.repeat})")
        alone = await experiment.decode(running)
        flip = await experiment.decode(running, other)
        killed = await experiment.decode(running, replacement := await experiment.waiting(), kill=True)
        for name, found in (("undisturbed_ms", alone), ("pause_ms", flip), ("kill_stall_ms", killed)):
            experiment.note(name, found.pause_ms)
            identical &= found.tokens == reference.tokens
            experiment.state_intact &= found.digest == reference.digest
        running, other = other, replacement
    return {
        "device": options.device,
        **{name: experiment.facts[name] for name in ("device_name", "torch_version", "cuda_version")},
        "layers": options.layers,
        "blocks": options.blocks,
        "block_bytes": experiment.block_bytes,
        "context_tokens": options.context,
        "tokens": options.tokens,
        "repeat": options.repeat,
        **{name: round(percentile(values, 50), 3) for name, values in experiment.each.items()},
        "copy": copy,
        "outputs_identical": identical,
        "state_intact": experiment.state_intact,
        "spread": {name: [min(values), max(values)] for name, values in experiment.each.items()},
        "each": experiment.each,
        "not_measured": [
            "vLLM: the decoder is torch alone, so its time per token is not that of an engine",
            "copies between two GPUs or machines: one device is used",
            *(["device memory and CUDA IPC: host memory was asked for"] if options.device == "host" else []),
        ],
        "machine": machine_facts(),
    }


def _record(tokens: list[Token], began: int) -> StreamRecord:
    ended = tokens[-1].arrived_ns
    return StreamRecord(
        "request", began, ended, unix_offset_ns(), tuple(tokens), (), (), Outcome.FINISHED, "length", None, None
    )


def render(result: Mapping[str, Any]) -> Table:
    """Return a table of the figures that `run` returned."""
    if "skipped" in result:
        table = Table(title=f"state paths on {result['device']}: skipped")
        table.add_column("reason")
        table.add_row(result["skipped"])
        return table
    table = Table(
        title=f"state paths on {result['device_name']}, {result['layers']} layers of {result['blocks']} blocks",
        caption=f"torch {result['torch_version']}; {result['machine']['cpus']} CPUs; not measured: "
        + "; ".join(result["not_measured"]),
    )
    table.add_column("figure")
    table.add_column("median", justify="right")
    table.add_column("least to most", justify="right")
    for label, name in (
        ("import torch", "import_ms"),
        ("start the device", "device_ms"),
        ("attach, once started", "attach_ms"),
        ("pause of a flip", "pause_ms"),
        ("same figure, left alone", "undisturbed_ms"),
        ("pause of a kill -9 and attach", "kill_stall_ms"),
    ):
        least, most = result["spread"][name]
        table.add_row(label, f"{result[name]:,.2f} ms", f"{least:,.2f} to {most:,.2f}")
    for row in result["copy"]:
        label = f"copy {row['blocks']} blocks of {row['layers']} layers: one run / scattered"
        table.add_row(label, f"{row['run_gb_s']:,.2f} / {row['scattered_gb_s']:,.2f} GB/s", "")
    table.add_row("tokens identical", "yes" if result["outputs_identical"] else "no", "")
    table.add_row("KV intact, byte for byte", "yes" if result["state_intact"] else "no", "")
    return table
