"""A static web server with a scripted will of its own, on loopback.

::

    with serving(folder, [Fault(cut_after=1000), Fault(status=503)]) as server:
        ... server.url + "/bundle.edgeml" ...
    assert [one.range for one in server.requests] == [None, *["bytes=1000-"] * 2]

Real sockets, real HTTP/1.1: what is cut is reset or closed in the middle of the body,
what is slow is sent slowly. Each GET that matches takes the next fault; when there is
none left, it is served as a static server does it, with ranges. The rate of the link is
shared by all connections, as on a link.
"""

import hashlib
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

CHUNK = 4096


@dataclass(frozen=True)
class Fault:
    """What one answer does otherwise."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Put in place of the usual ones; an empty value: not sent."""
    cut_after: int | None = None
    """Bytes of the body, then the connection goes."""
    reset: bool = True
    """Whether it goes by RST; else it just ends."""
    no_range: bool = False
    """Send all of it, whatever was asked for."""
    shift: int = 0
    """Begin so many bytes from where was asked, and say so."""
    flip: int | None = None
    """Offset in the file of a byte that is sent wrong."""
    endless: bool = False
    """No length, and no end."""
    chunked: bool = False
    """No length, but an end."""
    wait_s: float = 0.0
    """Before the head."""
    drip: tuple[int, float] | None = None
    """Bytes, and seconds after each such piece."""
    before: Callable[[], None] | None = None
    """Called when the request is there."""


@dataclass(frozen=True)
class Request:
    """What was asked."""

    path: str
    range: str | None


class WebServer:
    """The server; ``url`` is its root."""

    def __init__(
        self,
        folder: Path,
        faults: Iterable[Fault] = (),
        rate_bits_s: float | None = None,
        only: str = "",
    ) -> None:
        self.folder = folder.resolve()
        self.faults = deque(faults)
        self.rate_bits_s = rate_bits_s
        self.only = only
        """Faults are for paths that hold this."""
        self.requests: list[Request] = []
        self.sent_bytes = 0
        """Of bodies, of paths that hold ``only``."""
        self.lock = threading.Lock()
        self._free_at = 0.0
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None
        self._address = ("127.0.0.1", 0)
        self.start()

    @property
    def url(self) -> str:
        return f"http://{self._address[0]}:{self._address[1]}"

    def start(self) -> None:
        """Listen; at the port that it had before, if it had one."""
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = _Server(self._address, handler)
        self._address = ("127.0.0.1", self._server.server_port)
        threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        ).start()

    def stop(self) -> None:
        """Be gone, and with it every connection."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        with self.lock:
            for one in self._connections:
                reset(one)

    def opened(self, connection: socket.socket) -> None:
        with self.lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self.lock:
            self._connections.discard(connection)

    def heard(self, request: Request) -> Fault:
        """Remember the request; what its answer does otherwise."""
        with self.lock:
            self.requests.append(request)
            if self.only in request.path and self.faults:
                return self.faults.popleft()
        return Fault()

    def sent(self, request: Request, size: int) -> None:
        """Count what goes over the link, and wait until it went."""
        with self.lock:
            if self.only in request.path:
                self.sent_bytes += size
            if self.rate_bits_s is None:
                return
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size * 8 / self.rate_bits_s
            wait_s = self._free_at - now
        time.sleep(wait_s)


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever is cut off is no error here; anything else is."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: WebServer

    def setup(self) -> None:
        super().setup()
        self.site.opened(self.request)
        # little is under way, so that what was not sent was not received either
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def finish(self) -> None:
        self.site.closed(self.request)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        request = Request(self.path, self.headers.get("Range"))
        fault = self.site.heard(request)
        if fault.before is not None:
            fault.before()
        time.sleep(fault.wait_s)
        path = (
            self.site.folder / unquote(urlsplit(self.path).path).lstrip("/")
        ).resolve()
        if not path.is_relative_to(self.site.folder) or not path.is_file():
            return self._head(fault.status or 404, {"Content-Length": "0"}, fault)
        if fault.status not in (None, 200, 206):
            return self._head(fault.status or 0, {"Content-Length": "0"}, fault)
        self._file(path, request, fault)
        return None

    def _file(self, path: Path, request: Request, fault: Fault) -> None:
        data = bytearray(path.read_bytes())
        size = len(data)
        headers = {
            "Accept-Ranges": "bytes",
            "ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"',
        }
        if fault.flip is not None:
            data[fault.flip] ^= 0xFF
        status, start, end = 200, 0, size
        if request.range is not None and not fault.no_range:
            first, _, last = request.range.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or size - 1) + 1
            if start >= size:
                headers |= {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
                return self._head(416, headers, fault)
            start, status = start + fault.shift, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        body = bytes(data[start:end])
        if fault.endless or fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body))
        self._head(fault.status or status, headers, fault)
        try:
            self._body(body, request, fault)
        except OSError:  # the other side has gone
            self.close_connection = True
        return None

    def _head(self, status: int, headers: dict[str, str], fault: Fault) -> None:
        self.send_response(status)
        for name, value in (headers | dict(fault.headers)).items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _body(self, body: bytes, request: Request, fault: Fault) -> None:
        limit = len(body) if fault.cut_after is None else fault.cut_after
        piece, pause_s = fault.drip or (CHUNK, 0.0)
        chunked = fault.endless or fault.chunked
        for offset in range(0, min(limit, len(body)), piece):
            part = body[offset : min(offset + piece, limit)]
            self._send(part, chunked)
            self.site.sent(request, len(part))
            time.sleep(pause_s)
        while fault.endless:
            self._send(bytes(CHUNK), chunked)
            self.site.sent(request, CHUNK)
        if fault.cut_after is not None:
            self.close_connection = True
            if fault.reset:
                _drained(self.request)
                reset(self.request)
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send(self, data: bytes, chunked: bool) -> None:
        head, tail = (b"%x\r\n" % len(data), b"\r\n") if chunked else (b"", b"")
        self.wfile.write(head + data + tail)
        self.wfile.flush()


def _drained(connection: socket.socket) -> None:
    """Wait until the other side has what was sent; a reset throws the rest away."""
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        if struct.unpack_from("I", info, 24)[0] == 0:  # tcpi_unacked
            return
        time.sleep(0.002)


def reset(connection: socket.socket) -> None:
    """End a connection by RST."""
    try:
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        connection.shutdown(socket.SHUT_RD)
        connection.close()
    except OSError:  # it has gone already
        pass


@contextmanager
def serving(
    folder: Path,
    faults: Iterable[Fault] = (),
    rate_bits_s: float | None = None,
    only: str = "",
) -> Iterator[WebServer]:
    """A server of a folder, until the end."""
    server = WebServer(folder, faults, rate_bits_s, only)
    try:
        yield server
    finally:
        server.stop()
