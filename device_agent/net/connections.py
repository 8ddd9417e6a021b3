"""All open connections of the agent, and who leaves when there are too many.

1. Up to ``connections`` are served. A newcomer above it takes the place of the one
   that is least missed: refused ones, those that never finished a request, idle ones,
   stalled ones; of these the one that has waited longest. Those just connected get
   time to send their request, as long as they are few.
2. When nobody can go, the newcomer is taken into the reserve, where only health and
   metrics are answered. The reserve, too, never turns anybody away: its idlest leaves.
3. Time is a coarse clock that :meth:`Connections.sweep` moves on, so that a request
   costs no timer. Time in which the agent itself did not come to run is not charged to
   the callers.
4. Answers that callers do not read (a quarter of ``buffered_bytes``), and pipelined
   bytes that wait for their turn, are bounded over all connections together.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from ..config import LimitsConfig

TOGETHER = 8
"""Requests that are started, and answers that are written, at once."""
SWEEP_S = 0.25
"""How often deadlines are looked at; their precision."""
LINGER_S = 2.0
"""How long a caller may go on sending after its request was answered with an error."""
LINGER_BYTES = 64 << 20
"""How much it may send in that time; it is thrown away."""
STALL_S = 2.0
"""A body or a reader without progress for this long may be closed for a newcomer."""
FRESH_S = 1.0
"""How long a newcomer goes before the idle ones, among few."""
_FRESH_SHARE = 8
"""Few: one of so many places."""
PIPELINED_BYTES = 8 << 20
"""Bytes of pipelined requests, over all connections, that wait for their turn."""

REFUSED, UNUSED, IDLE, STALLED, BUSY = range(5)
"""How little a connection is missed, the least missed first."""
_REASONS = {
    REFUSED: "refused", UNUSED: "unused", IDLE: "idle", STALLED: "stalled",
    BUSY: "reserve",
}  # fmt: skip


class Refusal(Exception):  # noqa: N818 - it is an answer more than an error
    """A request that is answered before the application sees it; then it is closed.

    Attributes:
        status: of the answer.
        text: what the caller reads as ``{"error": text}``.
        reason: one word, what it is counted under.
    """

    def __init__(self, status: int, text: str, reason: str) -> None:
        self.status = status
        self.text = text
        self.reason = reason
        super().__init__(text)


@dataclass
class ConnectionCounts:
    """What ``/metrics`` shows of the connections."""

    open: int = 0
    """Served now, without the reserve."""
    reserved: int = 0
    """In the reserve now."""
    accepted: int = 0
    evicted: Counter[str] = field(default_factory=Counter)
    """Closed without an answer, by reason: to make room (refused, unused, idle,
    stalled, reserve), too slow (silent, keep_alive, unread, discarded), too much
    (unread_bytes, pipelined), handshake."""
    refused: Counter[str] = field(default_factory=Counter)
    """Answered with an error by the HTTP layer, by reason: malformed, headers, body,
    method, header_timeout, body_timeout, reserve."""


class Connection(Protocol):
    """What the table asks of a connection."""

    since: float
    """When its present part began, by the table's clock."""
    unread_since: float
    unread_bytes: int
    """Bytes of answers that it has not read; 0: it reads well enough."""

    def idleness(self) -> int:
        """One of ``REFUSED`` to ``BUSY``."""
        ...

    def evict(self, reason: str) -> None:
        """Close at once, without an answer."""
        ...

    def reserve(self) -> None:
        """From now on answer health and metrics only."""
        ...

    def expire(self, now: float, step: float) -> None:
        """Close or refuse when a deadline has passed; ``step``: since the last call."""
        ...

    def finish(self) -> None:
        """End after what is under way; at once when nothing is."""
        ...


class Connections:
    """The table of one agent; used on its event loop only."""

    def __init__(
        self, limits: LimitsConfig, counts: ConnectionCounts | None = None
    ) -> None:
        self.limits = limits
        self.counts = ConnectionCounts() if counts is None else counts
        self.now = 0.0
        """Seconds of the coarse clock."""
        self.date = b""
        """The Date header, a whole line."""
        self.stopping = False
        self._begun: deque[Callable[[], None]] = deque()
        self._answers: list[tuple[asyncio.Transport, bytes]] = []
        self.pipelined_bytes = 0
        self.emptied = asyncio.Event()
        """Set while nobody is connected."""
        self.emptied.set()
        self._open: dict[Connection, None] = {}
        self._reserve: dict[Connection, None] = {}
        self._unread: dict[Connection, None] = {}
        self._unread_bytes = 0

    def begin(self, request: Callable[[], None]) -> None:
        """Start a request when its turn comes: a few, their answers, the next few.

        Between them the loop looks who has come meanwhile, so that nobody waits for two
        rounds because he came a moment after all others were read.
        """
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._turn)
        self._begun.append(request)

    def _turn(self) -> None:
        begun = self._begun
        for _ in range(min(len(begun), TOGETHER)):
            begun[0]()  # it stays there meanwhile, so that no second turn is called
            begun.popleft()
        self.flush()
        if begun:
            asyncio.get_running_loop().call_soon(self._turn)

    def write(self, transport: asyncio.Transport, answer: bytes) -> None:
        """Write a whole answer with the others of its turn.

        A caller that is woken for each of them costs more than the answers do.
        """
        if not self._answers and not self._begun:
            asyncio.get_running_loop().call_soon(self.flush)
        self._answers.append((transport, answer))

    def flush(self) -> None:
        """Write the answers that wait; before anything else is done to a transport."""
        answers, self._answers = self._answers, []
        for transport, answer in answers:
            if not transport.is_closing():
                transport.write(answer)

    def admit(self, newcomer: Connection) -> None:
        """Give a newcomer a place; somebody else may have to go for it."""
        self.counts.accepted += 1
        self.emptied.clear()
        if len(self._open) >= self.limits.connections:
            least = self._least_missed()
            if least is None:
                self._admit_to_reserve(newcomer)
                return
            self.evict(least, _REASONS[least.idleness()])
        self._open[newcomer] = None
        self._count()

    def promote(self, connection: Connection) -> bool:
        """Move a reserved connection to the served ones if a place is free."""
        if (
            len(self._open) >= self.limits.connections
            or connection not in self._reserve
        ):
            return False
        del self._reserve[connection]
        self._open[connection] = None
        self._count()
        return True

    def evict(self, connection: Connection, reason: str) -> None:
        """Close a connection and give its place away at once."""
        if connection not in self._open and connection not in self._reserve:
            return  # it is closing already
        self.counts.evicted[reason] += 1
        self.forget(connection)
        connection.evict(reason)

    def forget(self, connection: Connection) -> None:
        """It is closed, or will be without anybody's doing."""
        self._open.pop(connection, None)
        self._reserve.pop(connection, None)
        self.read(connection)
        self._count()
        if not self._open and not self._reserve:
            self.emptied.set()

    def unread(self, connection: Connection, size_bytes: int) -> None:
        """A caller does not read its answer; too much of that, and some must go."""
        if connection not in self._open and connection not in self._reserve:
            return  # it is closing already
        connection.unread_since = self.now
        connection.unread_bytes = size_bytes
        self._unread[connection] = None
        self._unread_bytes += size_bytes
        allowed_bytes = self.limits.buffered_bytes // 4
        while self._unread_bytes > allowed_bytes and len(self._unread) > 1:
            self.evict(next(iter(self._unread)), "unread_bytes")

    def read(self, connection: Connection) -> None:
        """It has read, or it has gone."""
        if connection in self._unread:
            del self._unread[connection]
            self._unread_bytes -= connection.unread_bytes
            connection.unread_bytes = 0

    def sweep(self, elapsed_s: float, unix_s: float) -> None:
        """Move the clock on and close what is over its deadline.

        Args:
            elapsed_s: since the last sweep.
            unix_s: the time of day, for the Date header.
        """
        step = min(elapsed_s, 2 * SWEEP_S)
        self.now += step
        self.date = b"date: %b\r\n" % formatdate(unix_s, usegmt=True).encode()
        for connection in (*self._open, *self._reserve):
            connection.expire(self.now, step)

    def finish(self) -> None:
        """Let all end what they have under way, and nothing new."""
        self.stopping = True
        for connection in (*self._open, *self._reserve):
            connection.finish()

    def close(self) -> None:
        """Close all that are left, whatever they do."""
        for connection in (*self._open, *self._reserve):
            self.evict(connection, "stop")

    def _admit_to_reserve(self, newcomer: Connection) -> None:
        if len(self._reserve) >= max(self.limits.reserved_connections, 1):
            least = _least_missed(self._reserve)
            if least is not None:
                self.evict(least, "reserve")
        self._reserve[newcomer] = None
        newcomer.reserve()
        self._count()

    def _least_missed(self) -> Connection | None:
        """Who goes for a newcomer; None: nobody does, the reserve takes it."""
        least = _least_missed(self._open)
        if least is None or least.idleness() == BUSY:
            return None
        fresh = least.idleness() == UNUSED and self.now - least.since <= FRESH_S
        unused = sum(one.idleness() == UNUSED for one in self._open) if fresh else 0
        if not fresh or unused > self.limits.connections // _FRESH_SHARE:
            return least
        used = (one for one in self._open if IDLE <= one.idleness() < BUSY)
        return _least_missed(used)

    def _count(self) -> None:
        self.counts.open = len(self._open)
        self.counts.reserved = len(self._reserve)


def error_body(text: str) -> bytes:
    """The body of every answer that is an error."""
    return json.dumps({"error": text}).encode()


def error_answer(refusal: Refusal, date: bytes) -> bytes:
    """A whole HTTP answer that closes the connection."""
    phrase = HTTPStatus(refusal.status).phrase
    body = error_body(refusal.text)
    return (
        f"HTTP/1.1 {refusal.status} {phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n"
    ).encode() + b"%b\r\n%b" % (date, body)


def _least_missed(connections: Iterable[Connection]) -> Connection | None:
    least, found = (BUSY + 1, 0.0), None
    for connection in connections:
        rank = (connection.idleness(), connection.since)
        if rank < least:
            least, found = rank, connection
    return found
