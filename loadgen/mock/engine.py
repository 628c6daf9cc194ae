"""The make-believe engine of the mock server: it lets the chunks of all streams go when they are due.

One heap and one kernel timer serve every stream. The heap is ordered by the engine's own time, which stands still
while the streams do: then whatever is left of a gap comes after the stall, exactly as with an engine that computed
nothing meanwhile. `hold` and `release` stop it by hand, as a cutover does; a `TimedStall` stops it to the nanosecond.
"""

import heapq
import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from loadgen.clock import now_ns
from loadgen.mock.behaviour import Behaviour, Fault, FaultKind, Script, Step, TokenSource
from loadgen.streaming.deadlines import PreciseTimer
from loadgen.streaming.lateness import Lateness

_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Sent:
    """What a stream has to send: token ids, or a fault that the HTTP layer has to act out, or both."""

    token_ids: tuple[int, ...]
    fault: FaultKind | None = None
    last: bool = False


class Stream(ABC):
    """One stream, as the engine sees it. `ended` takes it out."""

    def __init__(self, plan: Script, source: TokenSource) -> None:
        self.plan = plan
        self.source = source
        self.ended = False

    @abstractmethod
    def send(self, sent: list[Sent], due_ns: int) -> None:
        """Send what is due; all of it at once, in order. `due_ns` is when it should have been."""


@dataclass(slots=True)
class Truth:
    """What the mock really did, so that its own errors are not taken for the client's."""

    chunks: int = 0
    tokens: int = 0
    lateness: Lateness = field(default_factory=Lateness)


class MockEngine:
    """Runs the streams of one server on the running loop."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.truth = Truth()
        self._timer = PreciseTimer(self._fire)
        self._heap: list[tuple[int, int, Stream, Step]] = []
        self._numbers = itertools.count()
        self._held = False
        self._stood_ns = 0  # how long the engine's time has stood still so far: the clock's time minus its own
        self._floor_ns = 0  # the engine's time at the latest stall; it never goes back behind it
        self._stalls: list[tuple[int, int]] | None = None  # (when, for how long), on the engine's own time
        self._pending_fault: FaultKind | None = None

    def begin(self, stream: Stream) -> None:
        """Run a stream from now on."""
        now = now_ns()
        if self._stalls is None:
            stalls = sorted(self.behaviour.stalls, key=lambda stall: stall.at_s)
            self._stalls = [(now + round(s.at_s * 1e9), round(s.stall_ms * _MS)) for s in stalls]
        self._stand_still(now)
        self._queue(stream, self._time(now))
        self._arm()

    def hold(self) -> None:
        """Stop all streams before their next chunk."""
        self._floor_ns, self._held = self._time(now_ns()), True
        self._arm()

    def release(self) -> None:
        """Let all streams go on."""
        self._pending_fault = self.behaviour.change_fault
        self._stood_ns, self._held = now_ns() - self._floor_ns, False
        self._arm()

    def close(self) -> None:
        """Give the timer back; no stream goes on."""
        self._timer.close()

    def _time(self, now: int) -> int:
        return self._floor_ns if self._held else max(now - self._stood_ns, self._floor_ns)

    def _stand_still(self, now: int) -> None:
        """Take in the timed stalls that have begun by `now`."""
        while self._stalls and not self._held and self._stalls[0][0] + self._stood_ns <= now:
            at, length = self._stalls.pop(0)
            self._floor_ns = at
            self._stood_ns += length

    def _queue(self, stream: Stream, begin: int) -> None:
        step = next(stream.plan.steps, None)
        if step is not None and not stream.ended:
            heapq.heappush(self._heap, (begin + step.offset_ns, next(self._numbers), stream, step))

    def _arm(self) -> None:
        due = None if self._held or not self._heap else self._heap[0][0] + self._stood_ns
        if due is not None and self._stalls:
            due = min(due, self._stalls[0][0] + self._stood_ns)
        self._timer.arm(due)

    def _fire(self) -> None:
        while self._heap and not self._held:
            now = now_ns()
            self._stand_still(now)
            own, _, stream, step = self._heap[0]
            due = own + self._stood_ns
            if due > now:
                break
            heapq.heappop(self._heap)
            if stream.ended:
                continue
            self.truth.lateness.add(now - due)
            stream.send(self._chunks(stream, step), due)
            if not stream.ended:
                self._queue(stream, own - step.offset_ns)
        self._arm()

    def _chunks(self, stream: Stream, step: Step) -> list[Sent]:
        last = step.first + step.count >= stream.plan.tokens
        chunks, ids = [], []
        for index in range(step.first, step.first + step.count):
            match self._fault_at(stream, index):
                case None | "stall":
                    ids.append(stream.source.at(index))
                case "lose":
                    pass
                case "repeat":
                    ids += [stream.source.at(index)] * 2
                case "replace":
                    stream.source = stream.source.replaced()
                    ids.append(stream.source.at(index))
                case fault:
                    if ids:
                        chunks.append(Sent(tuple(ids)))
                    chunks.append(Sent((), fault))
                    ids = [stream.source.at(index)]
                    if fault not in ("garbage", "rename"):
                        return self._counted(chunks)
        return self._counted([*chunks, Sent(tuple(ids), last=last)])

    def _counted(self, chunks: list[Sent]) -> list[Sent]:
        self.truth.chunks += len(chunks)
        self.truth.tokens += sum(len(chunk.token_ids) for chunk in chunks)
        return chunks

    def _fault_at(self, stream: Stream, index: int) -> FaultKind | None:
        if self._pending_fault is not None:
            kind, self._pending_fault = self._pending_fault, None
            return kind
        fault: Fault | None = stream.plan.faults.get(index)
        return None if fault is None else fault.kind
