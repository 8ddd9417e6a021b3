"""Raw sockets for attacks: nothing here keeps to HTTP unless it is told to."""

import contextlib
import json
import re
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
HOST = b"Host: localhost\r\n"
SLACK_S = 2.0
"""What a busy machine may add to a deadline."""


@dataclass(frozen=True)
class Target:
    """Where the agent is, and its limits as this run has set them."""

    port: int
    header_s: float = 5.0
    body_s: float = 30.0
    response_s: float = 30.0

    def connect(self, timeout_s: float = 10.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def crowd(self, count: int) -> list[socket.socket]:
        """So many connections; the oldest may be closed already."""
        return [self.connect() for _ in range(count)]

    def exchange(self, *parts: bytes, timeout_s: float = 10.0) -> bytes:
        """Send what goes, and read until the agent closes or says no more."""
        with self.connect(timeout_s) as sock:
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    sock.sendall(part)
            return drained(sock)

    def ask(
        self, path: str, body: bytes = b"", *headers: str, timeout_s: float = 10.0
    ) -> tuple[int, bytes]:
        """One request on a connection of its own: status and body of its answer."""
        raw = self.exchange(
            request(path, body, "Connection: close", *headers), timeout_s=timeout_s
        )
        return statuses(raw)[-1], raw.partition(b"\r\n\r\n")[2]


def request(path: str, body: bytes = b"", *headers: str) -> bytes:
    """A POST when there is a body, else a GET."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: localhost"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def post(path: str, *lines: bytes) -> bytes:
    """The head of a POST without its end."""
    head = b"POST %b HTTP/1.1\r\n%b" % (path.encode(), HOST)
    return head + b"".join(line + b"\r\n" for line in lines)


def infer(shape: Any, data: Any, datatype: str = "FP32", **more: Any) -> bytes:
    """The JSON of an infer request; ``data`` may be text that is no JSON."""
    tensor = {"name": "x", "shape": shape, "datatype": datatype, **more}
    if data is not None:
        tensor["data"] = "DATA"
    text = json.dumps({"inputs": [tensor]})
    return text.replace('"DATA"', data if isinstance(data, str) else json.dumps(data)
                        ).encode()  # fmt: skip


def drained(sock: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionError, TimeoutError):
        while part := sock.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def statuses(raw: bytes) -> list[int]:
    """Of every answer in what came back; [0]: none."""
    return [int(found) for found in STATUS.findall(raw)] or [0]


def refused(raw: bytes, *allowed: int) -> int:
    """The one status of an answer that must be an error as JSON, or one of ``allowed``.

    0 is allowed where the agent may also just close.
    """
    status = statuses(raw)[0]
    assert status in allowed, f"{status}: {raw[:500]!r}"
    if status >= 400:
        body = raw.partition(b"\r\n\r\n")[2]
        assert isinstance(json.loads(body)["error"], str), raw[:500]
    return status


def closed(socks: Sequence[socket.socket], within_s: float) -> list[bytes]:
    """Wait until the agent has closed every one of them; what it said to each."""
    said = dict.fromkeys(socks, b"")
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        end = time.monotonic() + within_s
        while selector.get_map():
            left = end - time.monotonic()
            assert left > 0, f"{len(selector.get_map())} are open after {within_s} s"
            for key, _ in selector.select(left):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                part = _received(sock)
                said[sock] += part
                if not part:
                    selector.unregister(sock)
    return list(said.values())


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except ConnectionError:
        return b""


def dripped(socks: Sequence[socket.socket], byte: bytes, for_s: float) -> None:
    """Send a byte a second to each."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.sendall(byte)
        time.sleep(min(1.0, max(end - time.monotonic(), 0)))


def together(run: Callable[[], None], count: int) -> None:
    """Run it so many times at once."""
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def reset(sock: socket.socket) -> None:
    """Close with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextlib.contextmanager
def all_closed(socks: Sequence[socket.socket]) -> Iterator[None]:
    """Close them at the end, whatever happens."""
    try:
        yield
    finally:
        for sock in socks:
            sock.close()
