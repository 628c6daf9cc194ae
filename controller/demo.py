"""The demonstration behind `make demo`: one answer, streamed while its pipeline is re-split under it.

Starts the built-in model as two stages, asks a question once undisturbed and once with two changes in the middle (to
three stages, then to one), prints the second answer as it comes with the moments marked, then the gaps that the client
saw. The exit code is the truth: 0 only if both changes were committed and both answers are the same to the token.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from openai import AsyncOpenAI
from rich.text import Text

from loadgen.control import ControlClient
from loadgen.errors import ControlError
from loadgen.gaps import percentile
from loadgen.server import ServerProcess, free_port

if TYPE_CHECKING:
    from rich.console import Console

    from loadgen.control import ChangeReport

QUESTION = "Tell me a short story about a lighthouse keeper who finds a message in a bottle."
LAYOUTS = ("15,15", "8,12,10", "30")
TOKENS = 240
# The changes are asked for when this many tokens have arrived.
CHANGE_AT = {40: LAYOUTS[1], 140: LAYOUTS[2]}
_START_DEADLINE_S = 150.0
_CHANGE_DEADLINE_S = 60.0


@dataclass(slots=True)
class Answer:
    """One streamed answer: its pieces of text, and when each arrived (seconds of one clock)."""

    pieces: list[str] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)

    def gaps_ms(self, start: float = 0.0, stop: float = float("inf")) -> list[float]:
        """Return the gaps that overlap the span from `start` to `stop`, in ms."""
        return [1e3 * (b - a) for a, b in pairwise(self.arrived) if b > start and a < stop]


async def run(console: Console) -> bool:
    """Run the demonstration; returns whether everything was as it should be."""
    port = free_port()
    with TemporaryDirectory(prefix="midstream-demo-") as folder:
        server = ServerProcess(
            "midstream",
            [sys.executable, "-m", "controller.cli", "serve", "--layers", LAYOUTS[0], "--port", str(port)],
            port=port,
            log_path=Path(folder) / "server.log",
            start_deadline_s=_START_DEADLINE_S,
        )
        with console.status(f"starting the built-in model as stages of {LAYOUTS[0]} layers"):
            await server.start()
        try:
            return await _two_answers(console, server.base_url)
        finally:
            await server.stop()


async def _two_answers(console: Console, base_url: str) -> bool:
    async with AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client, ControlClient(base_url) as control:
        model = (await client.models.list()).data[0].id
        await _ask(client, model, max_tokens=8)  # the first request after a start is never typical
        with console.status("asking once without a change, for comparison"):
            undisturbed = await _ask(client, model)
        console.print(f"[bold]{QUESTION}[/bold]\n")
        changes: list[asyncio.Task[ChangeReport]] = []

        def piece_arrived(count: int, piece: str) -> None:
            console.print(piece, end="", highlight=False, markup=False)
            if count in CHANGE_AT:
                console.print(Text(f"[{CHANGE_AT[count]} asked for]", style="reverse"), end="")
                changes.append(asyncio.create_task(change_to(CHANGE_AT[count])))

        async def change_to(layers: str) -> ChangeReport:
            report = await control.change(layers, _CHANGE_DEADLINE_S)
            console.print(Text(f"[{report.to_layers} serves]", style="reverse green"), end="")
            return report

        clock_offset = time.time() - time.perf_counter()
        answer = await _ask(client, model, on_piece=piece_arrived)
        reports = await asyncio.gather(*changes)
    console.print("\n")
    for report in reports:
        _print_change(console, answer, report, clock_offset)
    same = answer.text == undisturbed.text
    verdict = "[green]identical to[/green]" if same else "[red]DIFFERENT from[/red]"
    console.print(f"answer: {len(answer.pieces)} pieces, {verdict} the undisturbed run")
    return same and len(reports) == len(CHANGE_AT)


async def _ask(client: AsyncOpenAI, model: str, max_tokens: int = TOKENS, on_piece=None) -> Answer:  # type: ignore[no-untyped-def]
    answer = Answer()
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=max_tokens,
        temperature=0.6,
        seed=11,
        stream=True,
        extra_body={"ignore_eos": True, "repetition_penalty": 1.2},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            answer.pieces.append(chunk.choices[0].delta.content)
            answer.arrived.append(time.perf_counter())
            if on_piece is not None:
                on_piece(len(answer.pieces), answer.pieces[-1])
    return answer


def _print_change(console: Console, answer: Answer, report: ChangeReport, clock_offset: float) -> None:
    if report.started_at is None or report.ended_at is None or report.cutover_at is None:
        raise ControlError(f"the server's report of {report.id} has no times")
    start, stop, flip = (at - clock_offset for at in (report.started_at, report.ended_at, report.cutover_at))
    before = percentile(answer.gaps_ms(stop=start), 50)
    during = max(answer.gaps_ms(start, stop), default=float("nan"))
    at_flip = max(answer.gaps_ms(flip, flip), default=float("nan"))
    console.print(
        f"{report.from_layers:>8} -> {report.to_layers:<8} {report.total_ms or 0:5.0f} ms in all, "
        f"{report.bytes_moved} bytes of KV moved; gap between tokens: {before:.0f} ms median before, "
        f"{at_flip:.0f} ms at the flip, {during:.0f} ms at most during the change",
        highlight=False,
        soft_wrap=True,
    )
