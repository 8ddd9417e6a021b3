"""A static web server for a registry that does to a client whatever a test wants.

::

    with liar(folder) as server:
        server.lies["/metadata/timestamp.json"] = endless
        fetch(server.url)
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Lie = Callable[["Visit"], None]


class Visit(BaseHTTPRequestHandler):
    """One request; a lie may write what it likes to ``wfile``."""

    server: "Liar"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        lie = self.server.lies.get(self.path) or self.server.lies.get("*")
        if lie is not None:
            lie(self)
            return
        self.honest()

    def honest(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.answer(404, b"not found")
            return
        self.answer(200, path.read_bytes())

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Liar(ThreadingHTTPServer):
    """The server; ``folder`` may be exchanged while it runs."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.folder = folder
        self.lies: dict[str, Lie] = {}
        self.asked: list[str] = []
        self.ending = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has had enough is no error here."""


@contextmanager
def liar(folder: Path) -> Iterator[Liar]:
    """A server for a test's time."""
    server = Liar(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()


def endless(visit: Visit) -> None:
    """Bytes, until the client has had enough."""
    visit.send_response(200)
    visit.send_header("Connection", "close")
    visit.end_headers()
    while not visit.server.ending.is_set():
        visit.wfile.write(b" " * 65536)


def endless_chunks(visit: Visit) -> None:
    """The same, without a length and in chunks."""
    visit.send_response(200)
    visit.send_header("Transfer-Encoding", "chunked")
    visit.end_headers()
    while not visit.server.ending.is_set():
        visit.wfile.write(b"10000\r\n" + b" " * 65536 + b"\r\n")


def trickle(visit: Visit) -> None:
    """A byte now and then: never quite silent."""
    visit.send_response(200)
    visit.send_header("Content-Length", "4000")
    visit.end_headers()
    while not visit.server.ending.is_set():
        visit.wfile.write(b" ")
        visit.wfile.flush()
        time.sleep(0.05)


def trickled_header(visit: Visit) -> None:
    """A header that never ends."""
    visit.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not visit.server.ending.is_set():
        visit.wfile.write(b"x")
        visit.wfile.flush()
        time.sleep(0.05)


def silent(visit: Visit) -> None:
    """Takes the request and says nothing."""
    visit.server.ending.wait(30)


def cut(visit: Visit) -> None:
    """Promises more than it sends."""
    visit.send_response(200)
    visit.send_header("Content-Length", "100000")
    visit.end_headers()
    visit.wfile.write(b"{")
    visit.close_connection = True


def bomb(visit: Visit) -> None:
    """A little that would be a lot if it were unpacked."""
    import zlib

    packed = zlib.compress(b" " * (8 << 20), 1)
    visit.answer(200, packed, Content_Encoding="deflate")


def redirected(to: str) -> Lie:
    """Elsewhere, please."""

    def lie(visit: Visit) -> None:
        visit.answer(302, b"", Location=to)

    return lie


def status(code: int) -> Lie:
    """Only a status."""

    def lie(visit: Visit) -> None:
        visit.answer(code, b"")

    return lie


def content(raw: bytes) -> Lie:
    """These bytes."""

    def lie(visit: Visit) -> None:
        visit.answer(200, raw)

    return lie
