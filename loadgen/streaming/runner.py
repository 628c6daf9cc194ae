"""Runs a plan: every request at its moment, every token into the results.

One loop serves all workloads (see `loadgen.workloads.plan`): users begin at their moments, and each sends its requests
one after another. A request with a due time is sent at that time or, if that is past, at once; its due time stays as it
was, so waiting counts in its latency and a late request never shifts those after it. At most `max_in_flight` streams
run at a time; what is due beyond them waits in order.

Prompts are drawn in a thread, ahead of time, and a request's bytes and connection are made ready shortly before it is
due, so that neither enters its latency. `sent_ns` is the moment at which a request has a place: where there was no time
to make a connection before, or that takes longer, it is part of the latency.

The end: when all users are through; or `grace_s` after the plan's duration; or by `stop`; or by cancelling `run`.
Streams that still run then are kept, with what arrived, as cancelled.
"""

import asyncio
import contextlib
import gc
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from loadgen.clock import now_ns
from loadgen.errors import LoadgenError, OptionsError
from loadgen.records import Outcome
from loadgen.results.columns import RequestRow
from loadgen.streaming.answer import Answer
from loadgen.streaming.client import Reservation, StreamingClient
from loadgen.streaming.deadlines import Deadlines
from loadgen.streaming.discovery import Discovered, discover
from loadgen.streaming.health import Health, HealthProbe, Sampler, descriptors_for_streams
from loadgen.streaming.target import Limits, RequestWriter, Target, read_address
from loadgen.workloads.plan import Plan, PlannedRequest, PlannedUser

_BATCH = 256  # users that are drawn at a time
_DRAWN_BEFORE_START = 10_000
_FLUSH_NS = 200_000_000
_LEAD_NS = 20_000_000  # how long before it is due a request is made ready
_RETRIED = frozenset({Outcome.REFUSED, Outcome.DISCONNECTED, Outcome.UNREACHABLE, Outcome.EMPTY, Outcome.ERROR})
_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 10.0
_SWITCH_INTERVAL_S = 0.0005  # how long the thread that draws prompts may keep the interpreter from the loop


class Recorder(Sampler, Protocol):
    """Where results go; `loadgen.results.writer.RunWriter` is one."""

    def request(self, row: RequestRow) -> None:
        """Take a request that has ended, after all its tokens."""

    def tokens(
        self,
        request: int,
        first_index: int,
        at_ns: Sequence[int],
        chunk: Sequence[int],
        ids: Sequence[int] | None = None,
    ) -> None:
        """Take consecutive tokens of a request."""


@dataclass(slots=True)
class Progress:
    """Where the run is, for a display.

    Attributes:
        begun: Requests sent.
        in_flight: Streams that run.
        waiting: Requests that are due and wait for a place.
        tokens: Tokens that have arrived, as of the last fraction of a second.
        ended: Ended requests by outcome.
    """

    begun: int = 0
    in_flight: int = 0
    waiting: int = 0
    tokens: int = 0
    ended: Counter[str] = field(default_factory=Counter)


_Drawn = tuple[PlannedUser, PlannedRequest | None]


class Runner:
    """One run of a plan against a target, as an async context manager: what can be made ready is, on entering.

    Args:
        plan: What to send and when.
        target: Where to.
        limits: Where to stop waiting.
        count_tokens: Length of a text in tokens, for servers that give no token ids; None if there is no tokenizer.
    """

    def __init__(
        self,
        plan: Plan,
        target: Target,
        limits: Limits | None = None,
        *,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        self.progress = Progress()
        self._plan = plan
        self._target = target
        self._limits = limits or Limits()
        self._count_tokens = count_tokens
        self._open: dict[int, Answer] = {}
        self._users: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._origin = 0

    async def __aenter__(self) -> Self:
        """Ask the server what it is, find room for the streams and draw the first requests.

        Raises:
            OptionsError: the target or the limits make no sense here.
            ServerError: the server cannot be asked for its model.
            TraceError, PromptError: as `Plan.users`.
        """
        self._places, self._places_by = self._room()
        async with contextlib.AsyncExitStack() as stack:
            self._deadlines = stack.enter_context(Deadlines())
            address = read_address(self._target.base_url)
            self.discovered: Discovered = await discover(self._target)
            self._writer = RequestWriter(
                self._target,
                self.discovered.model,
                token_ids=self.discovered.token_ids,
                run_id=f"load-{uuid.uuid4().hex[:8]}",
            )
            self._client = await stack.enter_async_context(StreamingClient(address, self._limits, self._deadlines))
            self._thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="plan"))
            self._drawing = self._plan.users()
            self._drawn: list[_Drawn] = []
            more = True
            while more and len(self._drawn) < _DRAWN_BEFORE_START and not (self._drawn and self._drawn[-1][0].start_ns):
                batch = await self._draw_ahead()
                self._drawn += batch
                more = bool(batch)
            gc.collect()
            gc.freeze()  # what is there now need not be looked through again and again while tokens arrive
            stack.callback(gc.unfreeze)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def request_id(self) -> Callable[[int], str]:
        """How the X-Request-Id of the request with a given index is made."""
        return self._writer.request_id

    async def run(self, recorder: Recorder, *, origin_ns: int | None = None) -> Health:
        """Run the plan once, with the axis's zero at `origin_ns` of `loadgen.clock` (by default now).

        Raises:
            TraceError, PromptError: as `Plan.users`, from the thread that draws.
            ResultsError: the recorder could not keep up.
        """
        self._origin = now_ns() if origin_ns is None else origin_ns
        self._recorder = recorder
        self._slots = asyncio.Semaphore(self._places)
        self._probe = HealthProbe(self._deadlines, recorder, self._origin, lambda: self.progress.in_flight)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._probe.start()
        if self._plan.duration_ns is not None:
            grace = round(self._limits.grace_s * 1e9)
            end = self._deadlines.at(self._origin + self._plan.duration_ns + grace, self.stop)
        else:
            end = None
        try:
            async with asyncio.TaskGroup() as group:
                flusher = group.create_task(self._flush_now_and_then())
                await self._dispatch(group)
                while self._users:
                    await asyncio.wait(self._users)
                flusher.cancel()
        except* LoadgenError as failures:
            raise _first(failures) from None
        finally:
            if end is not None:
                end.cancel()
            sys.setswitchinterval(interval)
            health = self._probe.stop(self._places, self._places_by)
        return health

    def stop(self) -> None:
        """Begin nothing more and cancel what runs; `run` returns then."""
        self._stopping = True
        for task in self._users:
            task.cancel()

    def _room(self) -> tuple[int, str]:
        """Return how many streams can run at a time, and what sets that number."""
        wanted, users, possible = self._limits.max_in_flight, self._plan.concurrent_users, descriptors_for_streams()
        if users is not None and min(users, wanted) > possible:
            raise OptionsError(
                f"{users} users need as many connections, and this process may open {possible}: raise the limit of "
                "open files (ulimit -n), or give fewer users or a lower max_in_flight"
            )
        return (wanted, "max_in_flight") if wanted <= possible else (possible, "ulimit -n")

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        batch = self._drawn
        while batch:
            following = self._draw_ahead()
            try:
                for user, first in batch:
                    await self._deadlines.sleep_until(self._origin + user.start_ns - _LEAD_NS)
                    if self._stopping:
                        return
                    if first is not None:
                        task = group.create_task(self._run_user(user, first))
                        self._users.add(task)
                        task.add_done_callback(self._users.discard)
                batch = await following
            finally:
                following.cancel()

    def _draw_ahead(self) -> asyncio.Future[list[_Drawn]]:
        return asyncio.get_running_loop().run_in_executor(self._thread, self._draw_users)

    def _draw_users(self) -> list[_Drawn]:
        drawn: list[_Drawn] = []
        for user in self._drawing:
            drawn.append((user, next(user.requests, None)))
            if len(drawn) == _BATCH:
                break
        return drawn

    async def _run_user(self, user: PlannedUser, first: PlannedRequest) -> None:
        request: PlannedRequest | None = first
        free_ns = self._origin + user.start_ns
        while request is not None:
            due = free_ns + request.think_ns if request.due_ns is None else self._origin + request.due_ns
            if user.stop_ns is not None and max(due, now_ns()) >= self._origin + user.stop_ns:
                return
            await self._deadlines.sleep_until(due - _LEAD_NS)
            data = self._writer.write(request, 0)
            reservation = self._client.reserve() if now_ns() < due and not self._slots.locked() else None
            try:
                await self._deadlines.sleep_until(due)
                following = None
                if request.user is not None:  # the others have this one alone
                    following = asyncio.get_running_loop().run_in_executor(self._thread, next, user.requests, None)
                free_ns = await self._serve(request, due, data, reservation)
            finally:
                if reservation is not None:
                    self._client.give_back(reservation)
            request = None if following is None else await following

    async def _serve(self, request: PlannedRequest, due_ns: int, data: bytes, reservation: Reservation | None) -> int:
        """Send a request, attempt by attempt, and record the last one; returns when it ended."""
        full = self._slots.locked()
        answer: Answer | None = None
        attempt = 0
        self.progress.waiting += 1
        try:
            async with self._slots:
                self.progress.waiting -= 1
                self.progress.begun += 1
                self.progress.in_flight += 1
                try:
                    while True:
                        answer = self._begin(request)
                        if attempt == 0 and full:
                            self._probe.held_back += 1
                        elif attempt == 0:
                            self._probe.late_sends.add(answer.sent_ns - due_ns)
                        await self._client.exchange(data, answer, None if attempt else reservation)
                        if attempt == self._limits.retries or answer.outcome not in _RETRIED or answer.at_ns:
                            break
                        await asyncio.sleep(_pause_s(answer, attempt))
                        attempt += 1
                        data = self._writer.write(request, attempt)
                finally:
                    self.progress.in_flight -= 1
            if self._count_tokens is not None and answer.countable:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, answer.spread, self._count_tokens)
        finally:
            self._end(request, answer, attempt)
        return answer.ended_ns

    def _begin(self, request: PlannedRequest) -> Answer:
        needs_ids = self._target.token_ids == "on"  # noqa: S105 - tokens of text
        keep_texts = self._count_tokens is not None
        answer = self._open[request.index] = Answer(now_ns(), needs_ids=needs_ids, keep_texts=keep_texts)
        return answer

    def _end(self, request: PlannedRequest, answer: Answer | None, attempt: int) -> None:
        if answer is None:
            self.progress.waiting -= 1
            answer = Answer(now_ns())
            answer.fail(Outcome.CANCELLED, "never sent: no place was free until the end", answer.sent_ns)
        self._open.pop(request.index, None)
        outcome = answer.outcome or Outcome.CANCELLED
        self._flush(request.index, answer)
        row = RequestRow(
            request=request.index,
            user=request.user,
            turn=request.turn,
            phase=request.phase,
            due_ns=request.due_ns,
            sent_ns=answer.sent_ns - self._origin,
            first_token_ns=answer.at_ns[0] - self._origin if answer.at_ns else None,
            ended_ns=answer.ended_ns - self._origin,
            prompt_tokens=request.prompt.tokens if answer.prompt_tokens is None else answer.prompt_tokens,
            max_tokens=request.max_tokens,
            output_tokens=len(answer.at_ns),
            reported_tokens=answer.reported_tokens,
            chunks=answer.chunks,
            outcome=outcome.value,
            finish_reason=answer.finish_reason,
            detail=answer.detail,
            attempt=attempt,
        )
        self.progress.ended[row.outcome] += 1
        self._recorder.request(row)

    async def _flush_now_and_then(self) -> None:
        """Pass on what has arrived, so that a run that is killed keeps it."""
        while True:
            await self._deadlines.sleep_until(now_ns() + _FLUSH_NS)
            for number, (index, answer) in enumerate(list(self._open.items())):
                if answer.final:
                    self._flush(index, answer)
                if number % 64 == 63:  # give way now and then
                    await asyncio.sleep(0)

    def _flush(self, index: int, answer: Answer) -> None:
        first, last = answer.taken_out, len(answer.at_ns)
        if first == last:
            return
        self.progress.tokens += last - first
        moments = [at - self._origin for at in answer.at_ns[first:last]]
        ids = answer.ids[first:last] if answer.has_ids else None
        answer.taken_out = last
        self._recorder.tokens(index, first, moments, answer.chunks_of[first:last], ids)


def _pause_s(answer: Answer, attempt: int) -> float:
    """Return how long to wait before the next attempt: what the server asked for, else longer each time."""
    asked = answer.retry_after_s
    return min(_BACKOFF_S * 2**attempt if asked is None else asked, _MAX_BACKOFF_S)


def _first(failures: BaseExceptionGroup[LoadgenError]) -> LoadgenError:
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
