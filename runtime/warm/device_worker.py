"""A process for measurements on a `DevicePool`: owns it, or attaches to it and computes. Needs torch, but no vLLM.

Protocol: one JSON object a line on standard input, ``{"do": name, ...}``, and one on standard output for each. Only
`decode` answers with more: a line for each token, then ``{"done": position}``; it ends at `until`, or after the step in
which ``{"do": "stop"}`` arrives. "stop" itself has no answer. The end of the input ends the process.

The decoder stands for a stage: for each layer it projects its input, appends key and value of one token to the KV
block, attends over everything up to there, and adds the outcome. Weights are random and the same in every process,
so that two processes agree on a token only if they read the same KV.

Arguments: the device's kind, then the descriptor of each pool's tables.
"""

from __future__ import annotations

import hashlib
import select
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.warm.device_pool import DevicePool, PoolHandle
from runtime.warm.devices import Device, open_device, unavailable
from runtime.warm.kv_pool import KVPoolError, KVPoolShape, block_spans

if TYPE_CHECKING:
    import torch

_HEADS, _HEAD_DIM, _VOCABULARY, _WARM_STEPS = 8, 64, 1024, 8
_WIDTH = _HEADS * _HEAD_DIM
_TOKEN_BYTES = 2 * _WIDTH * 4  # key and value, float32


class Decoder:
    """A transformer without feed-forward parts; `kv` of each layer is ``[blocks, block tokens, 2, heads, dim]``."""

    def __init__(self, layers: int, device: str) -> None:
        import torch

        torch.set_grad_enabled(False)
        random = torch.Generator().manual_seed(7)

        def weights(*size: int) -> torch.Tensor:
            return (torch.randn(*size, generator=random) * size[-1] ** -0.5).to(device)

        self._torch = torch
        self._embedding, self._head = weights(_VOCABULARY, _WIDTH), weights(_VOCABULARY, _WIDTH)
        self._project = [weights(3 * _WIDTH, _WIDTH) for _ in range(layers)]
        self._output = [weights(_WIDTH, _WIDTH) for _ in range(layers)]

    def step(self, kv: list[torch.Tensor], blocks: list[int], token: int, position: int) -> int:
        """Append the KV of `token` at `position` of the request that lies in `blocks`; return the next token."""
        torch, size = self._torch, kv[0].shape[1]
        block, slot = blocks[position // size], position % size
        used = torch.tensor(blocks[: position // size + 1], device=self._embedding.device)
        x = self._embedding[token]
        for layer, project, output in zip(kv, self._project, self._output, strict=True):
            query, key, value = (project @ _normal(x)).view(3, _HEADS, _HEAD_DIM)
            layer[block, slot, 0], layer[block, slot, 1] = key, value
            past = layer.index_select(0, used).view(-1, 2, _HEADS, _HEAD_DIM)[: position + 1]
            scores = torch.einsum("hd,thd->ht", query, past[:, 0]) * 4 * _HEAD_DIM**-0.5
            x = x + output @ torch.einsum("ht,thd->hd", scores.softmax(-1), past[:, 1]).reshape(-1)
        return int((self._head @ _normal(x)).argmax())


def _normal(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean() + 1e-6).rsqrt()


class Worker:
    """What one process of the experiment can be asked; each public method but `decode` is a command."""

    def __init__(self, kind: str, descriptors: list[int]) -> None:
        self._kind, self._descriptors = kind, descriptors
        self._block_tokens = 0
        self._pools: list[DevicePool] = []
        self._device: Device
        self._decoder: Decoder

    def unavailable(self) -> dict[str, Any]:
        """Say why this kind of device cannot be used here, if so."""
        return {"reason": unavailable(self._kind)}

    def start(self, layers: int, block_tokens: int, tokens: int) -> dict[str, Any]:
        """Import torch, start the device, and decode on memory of its own, as if at `tokens`, to load all kernels."""
        began = time.perf_counter()
        import torch

        torch.set_num_threads(1)  # two of these processes compute side by side
        imported = time.perf_counter()
        self._device = open_device(self._kind)
        self._device.synchronize()
        started = time.perf_counter()
        where = "cuda" if self._kind == "cuda" else "cpu"
        self._decoder, self._block_tokens = Decoder(layers, where), block_tokens
        blocks = list(range(-(-tokens // block_tokens)))
        scratch = torch.zeros(len(blocks), block_tokens, 2, _HEADS, _HEAD_DIM, device=where)
        for position in range(max(0, tokens - _WARM_STEPS), tokens):
            self._decoder.step([scratch] * layers, blocks, 0, position)
        return {
            "import_ms": _ms(began, imported),
            "device_ms": _ms(imported, started),
            "warm_up_ms": _ms(started),
            "device_name": torch.cuda.get_device_name() if where == "cuda" else "host memory",
            "torch_version": str(torch.__version__),
            "cuda_version": torch.version.cuda,
        }

    def create(self, layers: int, blocks: int) -> list[PoolHandle]:
        """Own the memory of all pools."""
        shape = KVPoolShape(layers, blocks, self._block_tokens, blocks * self._block_tokens * _TOKEN_BYTES)
        self._pools = [DevicePool.create(self._device, descriptor, shape) for descriptor in self._descriptors]
        return [pool.handle for pool in self._pools]

    def attach(self, handles: list[Any]) -> dict[str, Any]:
        """Attach to all pools."""
        began = time.perf_counter()
        self._pools = [
            DevicePool.attach(msgspec.convert(handle, PoolHandle, str_keys=True), descriptor, device=self._device)
            for handle, descriptor in zip(handles, self._descriptors, strict=True)
        ]
        return {"attach_ms": _ms(began)}

    def detach(self) -> dict[str, Any]:
        """Close all pools."""
        for pool in self._pools:
            pool.close()
        self._pools = []
        return {}

    def fill(self, request: list[int], tokens: int, seed: int) -> dict[str, Any]:
        """Erase the first pool and write a context of `tokens` random tokens."""
        import torch

        pool, layers = self._pools[0], range(self._pools[0].tables.shape.layers)
        pool.scrub(layers)
        random = torch.Generator().manual_seed(seed)
        size = (-(-tokens // self._block_tokens) * self._block_tokens, 2, _HEADS, _HEAD_DIM)
        for kv in self._kv():
            content = torch.randn(*size, generator=random)
            content[tokens:] = 0
            content = content.view(-1, self._block_tokens, *size[1:]).to(kv.device)
            kv.index_copy_(0, torch.tensor(request[: len(content)], device=kv.device), content)
        blocks, first, stop = zip(*block_spans(request, self._block_tokens, 0, tokens), strict=True)
        pool.record_written(layers, blocks, first, stop)
        return {}

    def digest(self, request: list[int], tokens: int) -> str:
        """Name the KV of a request's leading tokens, in all layers."""
        import torch

        hashed = hashlib.blake2b(digest_size=16)
        used = request[: -(-tokens // self._block_tokens)]
        for kv in self._kv():
            content = kv.index_select(0, torch.tensor(used, device=kv.device))
            hashed.update(content.view(-1, 2 * _WIDTH)[:tokens].cpu().numpy().tobytes())
        return hashed.hexdigest()

    def copy(self, layers: int, blocks: list[int], repeat: int) -> dict[str, Any]:
        """Copy blocks of the leading `layers` from the first pool to the second, again and again."""
        import torch

        source, target = self._pools
        source.copy_blocks(target, range(layers), blocks)
        self._device.synchronize()
        seconds, copied = [], 0
        for _ in range(repeat):
            began = time.perf_counter()
            copied = source.copy_blocks(target, range(layers), blocks)
            seconds.append(time.perf_counter() - began)
        same = all(torch.equal(source.layer(layer)[blocks], target.layer(layer)[blocks]) for layer in range(layers))
        return {"seconds": seconds, "bytes": copied, "identical": same}

    def decode(self, request: list[int], token: int, position: int, until: int) -> None:
        """Decode from a token whose KV is not written yet; see the module."""
        pool, layers = self._pools[0], range(self._pools[0].tables.shape.layers)
        if stale := pool.tables.stale_blocks(layers, request, position):
            raise KVPoolError(f"{position} tokens were promised, but KV is missing: {stale[:3]}")
        kv = self._kv()
        while position < until and not _told_to_stop():
            token = self._decoder.step(kv, request, token, position)
            blocks, first, stop = zip(*block_spans(request, self._block_tokens, position, position + 1), strict=True)
            pool.record_written(layers, blocks, first, stop)
            position += 1
            _say({"token": token, "position": position})
        _say({"done": position})

    def _kv(self) -> list[torch.Tensor]:
        import torch

        pool = self._pools[0]
        size = (pool.tables.shape.blocks, self._block_tokens, 2, _HEADS, _HEAD_DIM)
        return [pool.layer(layer).view(torch.float32).view(size) for layer in pool.layers]


def _ms(began: float, ended: float | None = None) -> float:
    return ((time.perf_counter() if ended is None else ended) - began) * 1e3


def _say(answer: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def _told_to_stop() -> bool:
    # Whoever asks says "stop" only after a token of this command, so it cannot lie in the reader's buffer already.
    if not select.select([sys.stdin], [], [], 0)[0]:
        return False
    sys.stdin.buffer.readline()
    return True


def main() -> None:
    """Serve commands until the input ends."""
    worker = Worker(sys.argv[1], [int(descriptor) for descriptor in sys.argv[2:]])
    while line := sys.stdin.buffer.readline():
        command = msgspec.json.decode(line)
        do = command.pop("do")
        if do == "stop":  # it crossed the last token on its way
            continue
        try:
            answer = getattr(worker, do)(**command)
        except KVPoolError as error:
            _say({"error": str(error)})
        else:
            if do != "decode":
                _say(answer)


if __name__ == "__main__":
    main()
