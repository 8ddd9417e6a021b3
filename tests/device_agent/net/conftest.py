"""A tiny application behind the real server, in a thread with its own event loop."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from device_agent.config import LimitsConfig, ListenConfig
from device_agent.net import connections
from device_agent.net.listen import listen
from device_agent.net.server import Server, loop_factory

BIG_BYTES = 8 << 20


@dataclass
class Tiny:
    """What runs, and what its application has seen."""

    server: Server
    loop: asyncio.AbstractEventLoop
    socket: Path
    port: int
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """Paths whose caller left before its body was whole."""
    released: threading.Event = field(default_factory=threading.Event)
    """What ``/held`` waits for before it answers."""

    @property
    def counts(self) -> connections.ConnectionCounts:
        return self.server.table.counts

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def exchange(self, raw: bytes) -> bytes:
        """All that comes back until the server closes."""
        with self.connect() as sock:
            sock.sendall(raw)
            return drained(sock)

    def get(self, path: str) -> tuple[int, bytes]:
        with self.connect() as sock:
            sock.sendall(request(path))
            return answer(sock)[:2]

    def stop(self, drain_s: float = 5.0) -> bool:
        done = asyncio.run_coroutine_threadsafe(self.server.stop(drain_s), self.loop)
        return done.result(drain_s + 5)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        path = scope["path"]
        if path == "/early":
            await respond(send, 429, b"{}")
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                self.gone.append(path)
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append((scope["method"], path, body))
        if path == "/boom":
            raise ValueError("the application's own mistake")
        if path == "/slow":
            await asyncio.sleep(0.4)
        while path == "/held" and not self.released.is_set():
            await asyncio.sleep(0.01)
        if path == "/headers":
            body = b"\n".join(b"%b=%b" % pair for pair in scope["headers"])
        await respond(send, 200, b"x" * BIG_BYTES if path == "/big" else body)


async def respond(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def request(path: str = "/", body: bytes = b"", *headers: str) -> bytes:
    """A GET, or a POST with a Content-Length."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: localhost"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def answer(sock: socket.socket) -> tuple[int, bytes, http.client.HTTPMessage]:
    """One answer; the socket stays open, and must have nothing after it."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    return response.status, response.read(), response.headers


def drained(sock: socket.socket) -> bytes:
    parts = []
    while True:
        try:
            part = sock.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def error(raw: bytes) -> tuple[int, str]:
    """The status and text of the last answer; it must be JSON."""
    head, _, body = raw.rpartition(b"\r\n\r\n")
    last = head[head.rindex(b"HTTP/1.1 ") :]
    assert b"content-type: application/json" in last
    return int(last.split(b" ", 2)[1]), json.loads(body)["error"]


def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


Serve = Callable[..., AbstractContextManager[Tiny]]


KINDS = [
    "httptools-uvloop", "h11-asyncio",
    *(pytest.param(one, marks=pytest.mark.long)
      for one in ("httptools-asyncio", "h11-uvloop")),
]  # fmt: skip


@pytest.fixture(params=KINDS)
def serve(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Serve:
    """Starts a server: ``with serve(header_s=0.5) as tiny``."""
    parser, _, loop_name = request.param.partition("-")
    for module in (parser, loop_name):
        if module != "asyncio":
            pytest.importorskip(module)
    make_loop = asyncio.new_event_loop if loop_name == "asyncio" else loop_factory()
    monkeypatch.setattr("device_agent.net.limited.LINGER_S", 0.5)
    monkeypatch.setattr("device_agent.net.limited.STALL_S", 0.5)

    @contextmanager
    def start(**limits: Any) -> Iterator[Tiny]:
        ready, ended = threading.Event(), asyncio.Event()
        found: list[Tiny] = []

        async def serve_until_told() -> None:
            listeners, _ = listen(ListenConfig(port=0), tmp_path)

            async def app(scope: Any, receive: Any, send: Any) -> None:
                await found[0].app(scope, receive, send)

            server = Server(app, listeners, LimitsConfig(**limits), http=parser)
            port = listeners[1].socket.getsockname()[1]
            loop = asyncio.get_running_loop()
            found.append(Tiny(server, loop, tmp_path / "agent.sock", port))
            await server.start()
            ready.set()
            await server.watch()
            await ended.wait()

        with asyncio.Runner(loop_factory=make_loop) as runner:
            thread = threading.Thread(target=runner.run, args=(serve_until_told(),))
            thread.start()
            assert ready.wait(10)
            tiny = found[0]
            try:
                yield tiny
            finally:
                tiny.released.set()
                tiny.stop(0.0)
                tiny.loop.call_soon_threadsafe(ended.set)
                thread.join()

    return start
