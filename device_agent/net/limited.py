"""What both HTTP protocols share: deadlines, refusals, lingering, the reserve.

A connection is in one *part* at a time, by what is read from it:

| part | it is | must end within |
|---|---|---|
| ``WAITING`` | between requests | ``keep_alive_s``, unless an answer is under way |
| ``HEAD`` | from the connect, or the first byte of a next request | ``header_s`` |
| ``BODY`` | from the end of the headers | ``body_s``; answered already: ``LINGER_S`` |
| ``CLOSING`` | nothing is read any more, what comes is thrown away | ``LINGER_S`` |

While the agent itself has paused reading, the deadlines stand still.
"""

import asyncio
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from uvicorn._types import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    HTTPScope,
    Scope,
)
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from ..config import LimitsConfig
from .connections import (
    BUSY,
    IDLE,
    LINGER_BYTES,
    LINGER_S,
    PIPELINED_BYTES,
    REFUSED,
    STALL_S,
    STALLED,
    UNUSED,
    Connections,
    Refusal,
    error_answer,
    error_body,
)

WAITING, HEAD, BODY, CLOSING = range(4)
METHODS = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
)  # fmt: skip
_JSON = (b"content-type", b"application/json")


class Limited(asyncio.Protocol, ABC):
    """Goes before a protocol of uvicorn; ``limits`` and ``table`` are set on the class.

    It is one place in the table: a ``connections.Connection``.
    """

    limits: ClassVar[LimitsConfig]
    table: ClassVar[Connections]

    # uvicorn's
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    server_state: ServerState
    app: Any
    scheme: Any
    cycle: Any
    """The request that was read last, and its answer; None before the first."""

    part = HEAD
    since = 0.0
    """When the part began; while WAITING: when the last answer was written."""
    running: Any = None
    """The request that is being answered; earlier than ``cycle`` if pipelined."""
    heard = 0.0
    """When bytes came last."""
    answered = False
    """Whether it ever got an answer from the application."""
    reserved = False
    ended = False
    """Whether the caller has ended its side; what it asked is still answered."""
    verdict: Refusal | None = None
    """What it is told when the answers before it are written."""
    unread_since = 0.0
    unread_bytes = 0
    waiting_bytes = 0
    discarded_bytes = 0
    _served_app: Any = None

    # What the loop calls

    def connection_made(self, transport: Any) -> None:
        """Take a place in the table."""
        super().connection_made(transport)
        self.since = self.table.now
        self.table.admit(self)
        if self.table.stopping:
            self.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever still answers, and give the place back."""
        super().connection_lost(exc)
        self.part = CLOSING
        for cycle in self.unanswered():
            cycle.disconnected = True
            cycle.message_event.set()
        self.cycle = self.running = None
        self.wait_with(0)
        self.table.forget(self)

    def eof_received(self) -> bool | None:
        """A caller that ends its side after whole requests still gets the answers."""
        self.table.flush()
        if self.part != WAITING or not self.busy() or self.scheme == "https":
            return None
        self.ended = True
        return True

    def pause_writing(self) -> None:
        """The caller does not read its answer, for now."""
        super().pause_writing()
        self.table.unread(self, max(self.transport.get_write_buffer_size(), 1))

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        self.table.read(self)

    # What the table calls

    def busy(self) -> bool:
        """Whether an answer is under way."""
        return self.cycle is not None and not self.cycle.response_complete

    def idleness(self) -> int:
        """How little it is missed: ``REFUSED`` to ``BUSY`` of ``connections``."""
        if self.part == CLOSING and not self.busy():
            return REFUSED
        quiet = self.table.now - self.heard > STALL_S
        if self.unread_bytes:
            return STALLED if self.table.now - self.unread_since > STALL_S else BUSY
        if not self.busy():
            return IDLE if self.answered else UNUSED
        return STALLED if quiet and self._owes_body() else BUSY

    def evict(self, reason: str) -> None:
        """Close at once, without an answer."""
        self.table.flush()
        self.part = CLOSING
        self.transport.abort()

    def reserve(self) -> None:
        """From now on answer health and metrics only."""
        self.reserved = True
        self._served_app, self.app = self.app, self._reserved_app

    def expire(self, now: float, step: float) -> None:
        """Close or refuse when a deadline has passed."""
        # ``since`` is a time of the coarse clock and may lie a step too early
        limits, age = self.limits, now - self.since - step
        if self.unread_bytes:
            if now - self.unread_since > limits.response_s:
                self.table.evict(self, "unread")
        elif self.part == CLOSING:
            self._closing_expired(age)
        elif self.part == WAITING:
            if age > limits.keep_alive_s and not self.busy():
                self.table.counts.evicted["keep_alive"] += 1
                self.hang_up()
        elif self.part == BODY and not self.busy():  # it has its answer already
            if age > LINGER_S:
                self.table.evict(self, "discarded")
        elif self.flow.read_paused:
            self.since += step
        elif self.part == HEAD:
            if age > limits.header_s:
                self._head_expired()
        elif age > limits.body_s:
            text = f"the body was not here within {limits.body_s:g} s"
            self.refuse(Refusal(408, text, "body_timeout"))

    def finish(self) -> None:
        """End after what is under way; at once when nothing is."""
        if self.busy():
            self.cycle.keep_alive = False
        elif self.part == WAITING or (self.part == HEAD and not self.begun()):
            self.hang_up()

    # What the protocols call, or give

    @abstractmethod
    def begun(self) -> bool:
        """Whether any byte of the present request has come."""

    def unanswered(self) -> list[Any]:
        """The requests that were read and whose answers are not complete."""
        return [self.running] if self.busy() else []

    def refuse(self, refusal: Refusal) -> None:
        """Answer the request that is being read with an error, and close.

        Answers to requests before it are written first.
        """
        self.table.counts.refused[refusal.reason] += 1
        at_fault = self.part == BODY
        self.part, self.since = CLOSING, self.table.now
        if not at_fault:
            if self.busy():
                self.verdict = refusal
            else:
                self._answer(refusal)
        elif not self.busy():  # it has its answer, before its body was here
            self._linger()
        else:
            self._refuse_latest(refusal)

    def withdraw(self, cycle: Any) -> None:
        """Forget a request that was read and must not be answered."""

    def _refuse_latest(self, refusal: Refusal) -> None:
        cycle = self.cycle
        cycle.disconnected = True
        cycle.message_event.set()
        self.withdraw(cycle)
        if self.running is not cycle:
            self.cycle, self.verdict = self.running, refusal
        elif cycle.head_written:
            self.table.evict(self, "refused")
        else:
            self.cycle = self.running = None
            self._answer(refusal)

    def close_after(self) -> None:
        """An answer is complete and was the last one."""
        if self.verdict is not None:
            self._answer(self.verdict)
            self.verdict = None
        elif self.part == BODY:  # the answer must survive what is still being sent
            self.part, self.since = CLOSING, self.table.now
            self._linger()
        else:
            self.hang_up()

    def hang_up(self) -> None:
        """Close when what was written has been sent."""
        self.table.flush()
        self.part, self.since = CLOSING, self.table.now
        self.transport.close()

    def wait_with(self, size_bytes: int) -> None:
        """So many pipelined bytes now wait for their turn; reading goes on after it."""
        self.table.pipelined_bytes += size_bytes - self.waiting_bytes
        self.waiting_bytes = size_bytes
        if size_bytes:
            self.flow.pause_reading()
            if self.table.pipelined_bytes > PIPELINED_BYTES:
                self.table.evict(self, "pipelined")

    def discard(self, size_bytes: int) -> None:
        """Throw away what comes after the end; not for ever."""
        self.discarded_bytes += size_bytes
        if self.discarded_bytes > LINGER_BYTES:
            self.table.evict(self, "discarded")
        elif not self.flow.read_paused:  # one read, then the others have their turn
            self.flow.pause_reading()
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _answer(self, refusal: Refusal) -> None:
        self.table.flush()
        if not self.transport.is_closing():
            self.transport.write(error_answer(refusal, self.table.date))
            self._linger()

    def _linger(self) -> None:
        # Closing with unread bytes in the socket resets the connection, and the caller
        # loses the answer: end our side, and read on for a while.
        self.table.flush()
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
        else:
            self.transport.close()

    def _owes_body(self) -> bool:
        return self.part == BODY and not self.flow.read_paused

    def _head_expired(self) -> None:
        if not self.begun() and not self.busy():
            self.table.evict(self, "silent")
            return
        text = f"the headers were not here within {self.limits.header_s:g} s"
        self.refuse(Refusal(408, text, "header_timeout"))

    def _closing_expired(self, age: float) -> None:
        full = self.transport.get_write_buffer_size() > 0
        if not self.busy() and age > (self.limits.response_s if full else LINGER_S):
            self.table.evict(self, "unread" if full else "discarded")

    async def _reserved_app(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        app: ASGI3Application = self._served_app
        if self.reserved and self.table.promote(self):
            self.app, self.reserved = app, False
        if not self.reserved or (scope["type"] == "http" and _for_all(scope)):
            await app(scope, receive, send)
            return
        self.table.counts.refused["reserve"] += 1
        text = "all connections are taken; only health and metrics are answered here"
        await send_error(send, 503, text, retry_after_s=1)


def _for_all(scope: HTTPScope) -> bool:
    """Whether it is answered however many are connected."""
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (
        path.startswith("/v2/health/")
        or path == "/metrics"
        or (path.startswith("/v2/models/") and path.endswith("/ready"))
    )


async def send_error(
    send: ASGISendCallable, status: int, text: str, retry_after_s: int | None = None
) -> None:
    """Answer with ``{"error": text}`` and close the connection."""
    body = error_body(text)
    headers = [
        _JSON, (b"content-length", b"%d" % len(body)), (b"connection", b"close")
    ]  # fmt: skip
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
