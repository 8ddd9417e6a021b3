"""HTTP by h11: for devices that httptools has no wheel for.

1. The same limits and answers as :mod:`.compiled`, several times slower.
2. h11 is lenient where requests are smuggled: a line that ends in a bare LF, folded
   headers, Transfer-Encoding beside Content-Length. These are refused here.
"""

import asyncio
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import (
    STATUS_PHRASES,
    H11Protocol,
    RequestResponseCycle,
)

from .connections import Refusal
from .cycle import COPIED_BYTES_MAX, Answering
from .limited import BODY, CLOSING, HEAD, METHODS, WAITING, Limited

_CHUNK_OVERHEAD_BYTES = 6
"""Digits and line ends of a small chunk."""


class PureCycle(Answering, RequestResponseCycle):
    """One request and its answer, written at once when it has one piece."""

    date: tuple[bytes, bytes] = (b"date", b"")
    head = b""
    head_written = False

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        lines = [self.date, *headers]
        if not self.keep_alive:
            lines.append((b"connection", b"close"))
        event = h11.Response(
            status_code=status, headers=lines, reason=STATUS_PHRASES[status]
        )
        self.head = self.conn.send(event) or b""

    def _continue(self, body: bytes, more: bool) -> None:
        data = b"" if self.scope["method"] == "HEAD" else body
        pass_on = self.conn.send_with_data_passthrough
        pieces = [self.head, *(pass_on(h11.Data(data=data)) or ())]
        if not more:
            pieces += pass_on(h11.EndOfMessage()) or ()
        self.head, self.head_written = b"", True
        if len(data) > COPIED_BYTES_MAX:
            for piece in pieces:
                self.transport.write(piece)
        else:
            self.transport.write(b"".join(pieces))
        if not more:
            self.response_complete = True
            self.message_event.set()
            self.on_response()


class PureHttp(Limited, H11Protocol):  # type: ignore[misc]
    """One connection."""

    body_bytes = 0
    chunks = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffer = _StrictBuffer()
        self.conn._receive_buffer = self._buffer

    # What the loop calls

    def data_received(self, data: bytes) -> None:
        """Parse what there is."""
        self.heard = self.table.now
        if self.part == CLOSING:
            self.discard(len(data))
            return
        if self.part == WAITING:
            self.part, self.since = HEAD, self.table.now
        self.conn.receive_data(data)
        self.handle_events()

    def handle_events(self) -> None:
        """Go through what h11 has found."""
        while self.part != CLOSING:
            try:
                event = self.conn.next_event()
                if isinstance(event, h11.Request):
                    self._request(event)
                elif isinstance(event, h11.Data):
                    self._data(event)
                elif isinstance(event, h11.EndOfMessage):
                    self._end()
                else:
                    if event is h11.PAUSED:
                        self.wait_with(len(self._buffer))
                    return
            except h11.RemoteProtocolError as error:
                self.refuse(self._because(error))
            except Refusal as refusal:
                self.refuse(refusal)

    # What the cycle calls

    def on_response_complete(self) -> None:
        """Go on with the next request, if one has been read."""
        self.server_state.total_requests += 1
        self.answered = True
        if self.part != HEAD:
            self.since = self.table.now
        last = not self.cycle.keep_alive or self.conn.our_state is h11.MUST_CLOSE
        if last or self.verdict is not None:
            self.close_after()
            return
        self.flow.resume_reading()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            self._restart()
            self.handle_events()
        if self.ended and not self.busy():
            self.close_after()

    # What Limited asks

    def begun(self) -> bool:
        """Whether any byte of the present request has come."""
        return self.cycle is not None or bool(self._buffer)

    def _request(self, event: h11.Request) -> None:
        headers = [(name, value) for name, value in event.headers]
        self._check_head(event, headers)
        raw_path, _, query = event.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.3"},
            "http_version": event.http_version.decode("ascii"),
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": event.method.decode("ascii"),
            "root_path": self.root_path,
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
            "state": self.app_state.copy(),
        }
        self.part, self.since = BODY, self.table.now
        self.body_bytes = self.chunks = 0
        cycle = PureCycle(
            scope=scope,  # type: ignore[arg-type]
            conn=self.conn,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            on_response=self.on_response_complete,
        )
        cycle.keep_alive = not self.table.stopping
        cycle.date = (b"date", self.table.date[6:-2])
        self.cycle = self.running = cycle
        task = self.loop.create_task(cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _data(self, event: h11.Data) -> None:
        size_bytes = len(event.data)
        self.body_bytes += size_bytes
        self.chunks += event.chunk_start
        allowed = self.limits.header_bytes + self.body_bytes
        if self.chunks * _CHUNK_OVERHEAD_BYTES > allowed:
            text = "the chunks have more framing than content"
            raise Refusal(400, text, "body")
        if self.cycle.response_complete:
            self.discard(size_bytes)
            return
        self.cycle.body += event.data
        if len(self.cycle.body) > 65536:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def _end(self) -> None:
        self.part = WAITING
        if self.cycle.response_complete:
            self.discarded_bytes = 0
            if self.conn.our_state is h11.DONE:
                self._restart()
            return
        self.cycle.more_body = False
        self.cycle.message_event.set()

    def _restart(self) -> None:
        self.conn.start_next_cycle()
        self.wait_with(0)
        if self._buffer and self.part == WAITING:
            self.part, self.since = HEAD, self.table.now

    def _check_head(
        self, event: h11.Request, headers: list[tuple[bytes, bytes]]
    ) -> None:
        limits = self.limits
        if event.http_version not in (b"1.1", b"1.0"):
            text = f"HTTP/{event.http_version.decode('ascii')} is not served"
            raise Refusal(400, text, "malformed")
        if event.method not in METHODS:
            method = event.method.decode("ascii")
            raise Refusal(501, f"method {method} is not served", "method")
        if len(headers) > limits.headers:
            text = f"more than {limits.headers} headers"
            raise Refusal(431, text, "headers")
        size_bytes = len(event.target) + sum(len(n) + len(v) + 4 for n, v in headers)
        if size_bytes > limits.header_bytes:
            text = f"headers of more than {limits.header_bytes} bytes"
            raise Refusal(431, text, "headers")
        framing = dict(headers)
        length = framing.get(b"content-length")
        if b"transfer-encoding" in framing and (
            length is not None or event.http_version == b"1.0"
        ):
            text = "Transfer-Encoding with Content-Length or HTTP/1.0"
            raise Refusal(400, f"not a valid HTTP request: {text}", "malformed")
        if length is not None and int(length) > limits.body_bytes:
            text = (
                f"a body of {int(length)} bytes; at most {limits.body_bytes} are taken"
            )
            raise Refusal(413, text, "body")

    def _because(self, error: h11.RemoteProtocolError) -> Refusal:
        status = error.error_status_hint
        if status == 431 and self.part == HEAD:
            limit = self.limits.header_bytes
            return Refusal(431, f"headers of more than {limit} bytes", "headers")
        if status == 501:
            return Refusal(501, str(error), "method")
        return Refusal(400, f"not a valid HTTP request: {error}", "malformed")


class _StrictBuffer(ReceiveBuffer):
    """Lines end in CRLF, and headers are not folded."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines up to the empty one; None: it is not here yet."""
        if self._data[:2] == b"\r\n":
            self._extract(2)
            return []
        end = self._data.find(b"\r\n\r\n", max(self._multiple_lines_search - 3, 0))
        head = self._data if end < 0 else self._data[:end]
        start = 0 if end >= 0 else max(self._multiple_lines_search - 1, 0)
        if _bare_lf(head, start):
            raise h11.LocalProtocolError("a line ends in LF without CR")
        if end < 0:
            self._multiple_lines_search = len(self._data)
            return None
        lines = self._extract(end + 4)[:-4].split(b"\r\n")
        if any(line.startswith((b" ", b"\t")) for line in lines):
            raise h11.LocalProtocolError("a folded header")
        lengths = [line for line in lines if line[:15].lower() == b"content-length:"]
        if len(lengths) > 1 or any(b"," in line for line in lengths):
            raise h11.LocalProtocolError("more than one Content-Length")
        return lines


def _bare_lf(data: bytearray, start: int) -> bool:
    at = data.find(b"\n", start)
    while at >= 0:
        if at == 0 or data[at - 1] != 13:
            return True
        at = data.find(b"\n", at + 1)
    return False
