"""Streams over as many connections as it takes, to one server.

Connections are reused, last used first. There is no limit to their number but the file descriptors of the process.
Proxies of the environment are ignored: a proxy would batch tokens and falsify their arrival times. No trouble of the
network escapes as an exception: an answer says how it ended. Cancelling a caller closes its stream.
"""

import asyncio
import contextlib
import socket
import ssl
from functools import partial
from types import TracebackType
from typing import Any, Self

from loadgen.clock import now_ns
from loadgen.errors import OptionsError
from loadgen.records import Outcome
from loadgen.streaming.answer import Answer
from loadgen.streaming.connection import Connection
from loadgen.streaming.deadlines import Deadline, Deadlines
from loadgen.streaming.target import Address, Limits

_IDLE_NS = 3_000_000_000  # servers close idle connections after 5 s and more; a request must not meet that moment
_LATE_NS = 20_000_000
_END_NS = 1_000_000_000  # from the last event to the end of the message, or the connection is given up


Reservation = asyncio.Task[Connection | None]


class StreamingClient:
    """Sends requests to one address and fills their answers."""

    def __init__(self, address: Address, limits: Limits, deadlines: Deadlines) -> None:
        self._address = address
        self._limits = limits
        self._deadlines = deadlines
        self._tls = ssl.create_default_context() if address.tls else None
        self._places: list[tuple[Any, ...]] = []
        self._idle: list[Connection] = []
        # By reservation, not by connection: a connection that was used goes on to the next one's reservation.
        self._reserved: set[Reservation] = set()
        self._connections: set[Connection] = set()

    async def __aenter__(self) -> Self:
        """Find the host's addresses.

        Raises:
            OptionsError: it has none.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise OptionsError(f"target URL: no address for the host {self._address.host!r}: {error}") from error
        self._places = list(dict.fromkeys(entry[4][:2] for entry in found))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in list(self._connections):
            connection.abort()
        while self._connections:  # noqa: ASYNC110 - each goes in a callback of the loop, within its next rounds
            await asyncio.sleep(0)

    def reserve(self) -> Reservation:
        """Have a connection ready for a request that is soon to be sent; `give_back` in the end, used or not."""
        reservation = asyncio.get_running_loop().create_task(self._reserve())
        self._reserved.add(reservation)
        return reservation

    def give_back(self, reservation: Reservation) -> None:
        """Let others use the reserved connection if `exchange` did not."""
        if reservation not in self._reserved:
            return
        self._reserved.discard(reservation)
        if not reservation.done():
            reservation.cancel()
        elif not reservation.cancelled():
            connection = reservation.result()
            if connection is not None and connection.usable:
                self._idle.append(connection)

    async def exchange(self, request: bytes, answer: Answer, reservation: Reservation | None = None) -> None:
        """Send a request and wait until its answer has ended."""
        try:
            async with asyncio.timeout(self._limits.connect_s):
                connection = None
                if reservation is not None:
                    connection = await reservation
                    self._reserved.discard(reservation)
                if connection is None or not connection.usable:
                    connection = self._free_connection() or await self._connect()
        except TimeoutError:
            answer.fail(Outcome.UNREACHABLE, f"no connection within {self._limits.connect_s:g} s", now_ns())
            return
        except OSError as error:
            answer.fail(Outcome.UNREACHABLE, str(error), now_ns())
            return
        except asyncio.CancelledError:
            answer.fail(Outcome.CANCELLED, "cancelled while connecting", now_ns())
            raise
        connection.send(request, answer)
        watch = _Watch(self._deadlines, self._limits, connection, answer)
        try:
            await answer.ended
            if not connection.usable:  # the end of the message is still to come
                self._deadlines.at(now_ns() + _END_NS, partial(connection.drop, answer))
        except asyncio.CancelledError:
            connection.abort()
            answer.fail(Outcome.CANCELLED, f"cancelled after {len(answer.at_ns)} tokens", now_ns())
            raise
        finally:
            watch.stop()

    async def _reserve(self) -> Connection | None:
        connection = self._free_connection()
        if connection is None:
            with contextlib.suppress(OSError):  # the request itself will meet it, and say so
                connection = await self._connect()
        return connection

    def _free_connection(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now_ns() - connection.idle_since_ns < _IDLE_NS:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        """Connect to the first of the host's addresses that answers; it is tried first from then on."""
        loop = asyncio.get_running_loop()
        failure: OSError | None = None
        for place in tuple(self._places):
            try:
                _, connection = await loop.create_connection(
                    partial(Connection, self._idle.append, self._connections.discard),
                    place[0],
                    place[1],
                    ssl=self._tls,
                    server_hostname=self._address.host if self._tls else None,
                )
            except OSError as error:
                failure = error
                continue
            if place != self._places[0]:
                self._places.sort(key=lambda other: other != place)
            self._connections.add(connection)
            return connection
        raise failure or OSError("the host has no address")


class _Watch:
    """Ends an answer that is silent or takes too long."""

    __slots__ = ("_answer", "_connection", "_deadline", "_deadlines", "_silence_ns", "_total_ns")

    def __init__(self, deadlines: Deadlines, limits: Limits, connection: Connection, answer: Answer) -> None:
        self._deadlines = deadlines
        self._connection = connection
        self._answer = answer
        self._silence_ns = round(limits.silence_s * 1e9)
        self._total_ns = None if limits.total_s is None else round(limits.total_s * 1e9)
        self._deadline: Deadline = deadlines.at(self._limit(), self._look)

    def stop(self) -> None:
        """Watch no longer."""
        self._deadline.cancel()

    def _limit(self) -> int:
        silence = self._answer.last_ns + self._silence_ns
        return silence if self._total_ns is None else min(silence, self._answer.sent_ns + self._total_ns)

    def _look(self, again: bool = True) -> None:
        limit, now = self._limit(), now_ns()
        if now < limit:
            self._deadline = self._deadlines.at(limit, self._look)
        elif now > limit + _LATE_NS and again:  # this loop stood still: what came meanwhile is still to be read
            self._deadline = self._deadlines.at(now + 1, partial(self._look, again=False))
        else:
            silent = now >= self._answer.last_ns + self._silence_ns
            waited = f"{self._silence_ns / 1e9:g} s without a byte" if silent else f"{(self._total_ns or 0) / 1e9:g} s"
            self._connection.abort()
            self._answer.fail(Outcome.TIMED_OUT, f"timed out after {waited}", now)
