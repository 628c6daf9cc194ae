"""The bench's side of a `runtime.warm.device_worker`: start it, give commands, read its answers, kill it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.clock import now_ns
from loadgen.errors import MeasurementError
from loadgen.records import Token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence


class WorkerProcess:
    """A running worker. Errors are MeasurementError."""

    def __init__(self, process: asyncio.subprocess.Process, deadline_s: float) -> None:
        self._process, self._deadline_s = process, deadline_s

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, device: str, descriptors: Sequence[int], deadline_s: float) -> AsyncIterator[WorkerProcess]:
        """Start one on a device, with the descriptors of the pools' tables; it is gone on leaving."""
        argv = (sys.executable, "-m", "runtime.warm.device_worker", device, *map(str, descriptors))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, pass_fds=descriptors)
        try:
            yield cls(process, deadline_s)
        finally:
            try:
                async with asyncio.timeout(deadline_s):
                    await process.communicate(b"")  # closes its input, which ends it
            except TimeoutError:
                process.kill()
                await process.communicate()

    async def ask(self, do: str, **fields: Any) -> Any:
        """Give a command and return its answer."""
        await self._send(do, **fields)
        answer = await self._answer()
        if answer is None:
            raise MeasurementError(f"a process ended while it was asked to {do}; its standard error says more")
        return answer

    async def decode(
        self, request: list[int], token: int, position: int, until: int, arrived: Callable[[Token], bool]
    ) -> bool:
        """Decode from `token`, whose KV belongs at `position`, up to `until`.

        Args:
            request: The blocks of the request.
            arrived: Called with each token; the process is told to stop when it returns False.

        Returns:
            Whether it came to an end; False if the process died.
        """
        await self._send("decode", request=request, token=token, position=position, until=until)
        while (answer := await self._answer()) is not None:
            if "done" in answer:
                return True
            position += 1
            if answer["position"] != position:
                raise MeasurementError(f"a token came at position {answer['position']}, not at {position}")
            if not arrived(Token(answer["token"], "", now_ns(), position)):
                await self._send("stop")
        return False

    def kill(self) -> None:
        """End it as if the machine had run out of memory: SIGKILL."""
        self._process.kill()

    async def _send(self, do: str, **fields: Any) -> None:
        if self._process.stdin is None:
            raise MeasurementError("a process has no standard input")
        self._process.stdin.write(msgspec.json.encode({"do": do, **fields}) + b"\n")
        with contextlib.suppress(ConnectionError):  # it died: there will be no answer
            await self._process.stdin.drain()

    async def _answer(self) -> Any:
        if self._process.stdout is None:
            raise MeasurementError("a process has no standard output")
        try:
            async with asyncio.timeout(self._deadline_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise MeasurementError(f"a process did not answer within {self._deadline_s:g} s") from None
        answer = msgspec.json.decode(line) if line.endswith(b"\n") else None
        if isinstance(answer, dict) and "error" in answer:
            raise MeasurementError(f"a process could not go on: {answer['error']}")
        return answer
