"""HTTP by httptools: uvicorn's protocol within limits, and with fewer steps a request.

1. Bytes are parsed in small slices while they may hold further requests, so that what
   waits for its turn waits as bytes and not as objects.
2. What a request sends beside its body (headers, framing of chunks, trailers) is
   counted, and bounded.
3. The first step of an application that allows it (``first_step_inline``) is taken
   outside any task: most requests need no second one. A few requests have their turn
   together, and their answers are written together: a fifth of a small request's CPU.
4. ``Upgrade`` is ignored, as HTTP allows: the request is answered as if it were not
   there, with its body (Java's client asks for h2c on every first request).
"""

import asyncio
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from .connections import Connections, Refusal
from .cycle import COPIED_BYTES_MAX, Answering
from .limited import BODY, CLOSING, HEAD, METHODS, WAITING, Limited

SLICE_BYTES = 1024
"""Read at once while a further request may follow: some 50 of them at most."""
_FRAMING = frozenset(
    (b"content-length", b"transfer-encoding", b"upgrade", b"expect")
)  # fmt: skip
_PLAIN = frozenset(
    (b"content-type", b"content-length", b"inference-header-content-length")
)  # fmt: skip
"""Names that need no look."""


class CompiledCycle(Answering, RequestResponseCycle):
    """One request and its answer, written at once when it has one piece."""

    date = b""
    """A header line."""
    head: list[bytes] | None = None
    """The head of the answer, kept until its body comes."""
    head_written = False
    table: Connections

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        content = [STATUS_LINE[status], self.date]
        closes = False
        for name, value in headers:
            if name not in _PLAIN:
                if HEADER_RE.search(name):
                    raise RuntimeError(f"{name!r} is not the name of a header")
                name = name.lower()
            if HEADER_VALUE_RE.search(value):
                raise RuntimeError(f"header {name!r}: {value!r} cannot be sent")
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"connection" and value.lower() == b"close":
                closes, self.keep_alive = True, False
            elif name == b"transfer-encoding":
                continue  # ours to choose
            content += (name, b": ", value, b"\r\n")
        if not self.keep_alive and not closes:
            content.append(b"connection: close\r\n")
        bodiless = status in (204, 304) or self.scope["method"] == "HEAD"
        if self.chunked_encoding is None and not bodiless:
            self.chunked_encoding = True
            content.append(b"transfer-encoding: chunked\r\n")
        content.append(b"\r\n")
        self.head = content

    def _continue(self, body: bytes, more: bool) -> None:
        content, self.head = self.head or [], None
        whole = not (more or self.head_written or len(body) > COPIED_BYTES_MAX)
        if not whole:
            self.table.flush()
        if len(body) > COPIED_BYTES_MAX and content:
            self.transport.write(b"".join(content))
            content = []
        self.head_written = True
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            if body:
                content += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more:
                content.append(b"0\r\n\r\n")
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the answer is longer than its Content-Length")
            content.append(body)
        if whole:
            self.table.write(self.transport, b"".join(content))
        else:
            self.transport.write(b"".join(content))
        if not more:
            if self.expected_content_length:
                raise RuntimeError("the answer is shorter than its Content-Length")
            self.response_complete = True
            self.message_event.set()
            self.on_response()


class CompiledHttp(Limited, HttpToolsProtocol):  # type: ignore[misc]
    """One connection."""

    overhead_bytes = 0
    """What the present request sent that is not body."""
    body_bytes = 0
    length_bytes: int | None = None
    """Its Content-Length; None: none."""
    chunked = False
    upgrade = False
    held = b""
    """What came behind requests that are still to be answered."""

    # What the loop calls

    def data_received(self, data: bytes) -> None:
        """Parse, or keep for later."""
        self.heard = self.table.now
        if len(data) <= SLICE_BYTES and not self.pipeline and self.part != CLOSING:
            self._feed(data)
        else:
            self._feed_slices(memoryview(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is left to answer."""
        super().connection_lost(exc)
        self.pipeline.clear()
        self.held = b""

    # What the parser calls

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self.length_bytes = None
        self.chunked = self.upgrade = False
        self.body_bytes = 0
        if self.part == WAITING:
            self.part, self.since = HEAD, self.table.now

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer."""
        name = name.lower()
        if name in _FRAMING:
            self._frame(name, value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The end of the headers: refuse it or start the application."""
        parser, scope = self.parser, self.scope
        method, version = parser.get_method(), parser.get_http_version()
        self._check_head(method, version)
        url = self.url
        if url[:1] != b"/":
            parsed = httptools.parse_url(url)
            url = parsed.path or b"/"
            if parsed.query:
                url += b"?" + parsed.query
        raw_path, _, query = url.partition(b"?")
        path = raw_path.decode("ascii")
        scope["method"] = method.decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = query.partition(b"#")[0]
        self.part, self.since = BODY, self.table.now
        self.headers = []  # trailers are not the application's
        self.upgrade = self.upgrade and parser.should_upgrade()
        self._begin(version != "1.0" and parser.should_keep_alive())

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        size_bytes = len(body)
        self.overhead_bytes -= size_bytes
        self.body_bytes += size_bytes
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self.discard(size_bytes)
            return
        cycle.body += body
        if len(cycle.body) > 65536:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The end of the body."""
        if self.upgrade:  # httptools says so before the body
            return
        self.part = WAITING
        self.overhead_bytes = 0
        cycle = self.cycle
        if cycle.response_complete:
            self.discarded_bytes = 0
        else:
            cycle.more_body = False
            cycle.message_event.set()

    # What the cycle calls

    def on_response_complete(self) -> None:
        """Go on with the next request, if one has been read."""
        self.server_state.total_requests += 1
        self.answered = True
        if self.part != HEAD:
            self.since = self.table.now
        if (
            not self.running.keep_alive
            or self.pipeline
            or self.held
            or self.ended
            or self.verdict is not None
        ):
            self._next()
        else:
            self.flow.resume_reading()

    # What Limited asks

    def begun(self) -> bool:
        """Whether any byte of the present request has come."""
        return self.overhead_bytes > 0 or self.cycle is not None

    def unanswered(self) -> list[Any]:
        """The one that is being answered, and those behind it."""
        return super().unanswered() + [cycle for cycle, _ in self.pipeline]

    def withdraw(self, cycle: Any) -> None:
        """Forget a request that was read and must not be answered."""
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()

    def _begin(self, keep_alive: bool) -> None:
        cycle = CompiledCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive and not self.table.stopping,
            on_response=self.on_response_complete,
        )
        cycle.date = self.table.date
        cycle.table = self.table
        if self.expect_100_continue:
            self.table.flush()
        before, self.cycle = self.cycle, cycle
        if before is None or before.response_complete:
            if getattr(self.app, "first_step_inline", False):
                self.running = cycle
                self.table.begin(partial(self._start, cycle))
            else:
                self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _start_asgi_task(
        self, cycle: RequestResponseCycle, app: ASGI3Application
    ) -> None:
        self.running = cycle
        self._go_on(cycle.run_asgi(app))

    def _start(self, cycle: RequestResponseCycle) -> None:
        """Take the first step of a request; a task goes on if there is a second."""
        if cycle.disconnected:  # refused while the rest of it was read, or gone
            return
        steps = cycle.run_asgi(self.app)
        try:
            waits_for = steps.send(None)
        except StopIteration:
            return
        self._go_on(_Begun(steps, waits_for))

    def _go_on(self, steps: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(steps)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _next(self) -> None:
        if not self.running.keep_alive:
            self.pipeline.clear()
            self._hold(b"")
            self.close_after()
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if not self.pipeline and self.held:
            held = memoryview(self.held)
            self._hold(b"")
            self._feed_slices(held)
        if (self.ended or self.verdict is not None) and not self.busy():
            self.close_after()
        elif not self.pipeline:
            self.flow.resume_reading()

    def _feed(self, data: bytes | memoryview) -> None:
        self.overhead_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as at:
            self._feed_without_upgrade(memoryview(data)[at.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse_because(error)
        else:
            if self.overhead_bytes > self.limits.header_bytes:
                self._check_overhead()

    def _feed_slices(self, data: memoryview) -> None:
        at, end = 0, len(data)
        while at < end:
            if self.part == CLOSING:
                self.discard(end - at)
                return
            if self.pipeline:
                self._hold(self.held + data[at:])
                return
            size = SLICE_BYTES
            if self.part == BODY and self.length_bytes is not None:
                size = max(self.length_bytes - self.body_bytes, 1)
            self._feed(data[at : at + size])
            at += size

    def _hold(self, data: bytes) -> None:
        self.held = data
        self.wait_with(len(data))

    def _frame(self, name: bytes, value: bytes) -> None:
        if self.part == BODY:  # of a trailer
            return
        if name == b"content-length":
            self.length_bytes = int(value)  # httptools lets digits through, only
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                text = f"Transfer-Encoding {value!r} is not read here, only chunked"
                raise Refusal(501, text, "method")
            self.chunked = True
        elif name == b"upgrade":
            self.upgrade = True
        elif value.lower() == b"100-continue":
            self.expect_100_continue = True

    def _check_head(self, method: bytes, version: str) -> None:
        limits = self.limits
        if method not in METHODS:
            raise Refusal(501, f"method {method.decode()} is not served", "method")
        if version not in ("1.1", "1.0") or (self.chunked and version == "1.0"):
            text = f"HTTP/{version} is not served like this; use HTTP/1.1"
            raise Refusal(400, text, "malformed")
        if len(self.headers) > limits.headers:
            text = f"more than {limits.headers} headers"
            raise Refusal(431, text, "headers")
        if self.length_bytes is not None and self.length_bytes > limits.body_bytes:
            text = (
                f"a body of {self.length_bytes} bytes; "
                f"at most {limits.body_bytes} are taken"
            )
            raise Refusal(413, text, "body")

    def _check_overhead(self) -> None:
        limits = self.limits
        if self.part == HEAD:
            text = f"headers of more than {limits.header_bytes} bytes"
            self.refuse(Refusal(431, text, "headers"))
        elif self.overhead_bytes > limits.header_bytes + self.body_bytes:
            text = "the chunks have more framing than content"
            self.refuse(Refusal(400, text, "body"))

    def _refuse_because(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if not isinstance(cause, Refusal):
            text = f"not a valid HTTP request: {cause or error}"
            cause = Refusal(400, text, "malformed")
        self.refuse(cause)

    def _feed_without_upgrade(self, rest: memoryview) -> None:
        framing = b"content-length: %d" % (self.length_bytes or 0)
        if self.chunked:
            framing = b"transfer-encoding: chunked"
        self.upgrade = False
        self.parser = httptools.HttpRequestParser(_Headless(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        self._feed_slices(rest)


class _Begun(Coroutine[Any, Any, None]):
    """A coroutine that has taken its first step, for the task that goes on with it."""

    def __init__(self, steps: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for
        self._handed_on = False

    def send(self, value: None) -> Any:
        """What the first step waits for; then what the others do."""
        if self._handed_on:
            return self._steps.send(value)
        self._handed_on = True
        return self._waits_for

    def throw(self, *error: Any) -> Any:
        """Raise where it waits."""
        return self._steps.throw(*error)

    def close(self) -> None:
        """End it."""
        self._steps.close()

    def __await__(self) -> Any:
        return self._steps.__await__()


class _Headless:
    """Passes on what a parser calls, but for the head of the first request."""

    def __init__(self, protocol: CompiledHttp) -> None:
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete
        self._protocol = protocol
        self._passing = False

    def on_message_begin(self) -> None:
        if self._passing:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._passing:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._passing:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._passing:
            self._protocol.on_headers_complete()
        self._passing = True
