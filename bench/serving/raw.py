"""The least a Python server can do: parse, infer, answer; the limit for everybody.

An ``asyncio.Protocol`` on uvloop with httptools and orjson. It answers what our agent
answers (Open Inference Protocol, JSON or binary tensors) and does nothing else: no
limits, no deadlines, no checks, no counters.

Usage: ``raw.py MODEL PORT SOCKET inline|lane``; ``lane`` runs the model on one thread.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httptools
import numpy as np
import orjson
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import session as bare

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%scontent-length: %d\r\n\r\n"
Work = tuple["Connection", bytes, int]


class Server:
    """The model, run inline or on one thread in the order of arrival."""

    def __init__(self, model: str, threaded: bool) -> None:
        self._session = bare.opened(model)
        self._shape = self._session.get_inputs()[0].shape
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: SimpleQueue[Work] = SimpleQueue()
        self.take: Callable[[Connection, bytes, int], None] = self._inline
        if threaded:
            self.take = self._hand_over
            threading.Thread(target=self._work, daemon=True).start()

    async def run(self, port: int, path: str) -> None:
        """Listen on both until the process ends."""
        self._loop = asyncio.get_running_loop()
        tcp = await self._loop.create_server(
            lambda: Connection(self), "127.0.0.1", port, backlog=128
        )
        unix = await self._loop.create_unix_server(lambda: Connection(self), path)
        await asyncio.gather(tcp.serve_forever(), unix.serve_forever())

    def _answer(self, given: bytes, header_bytes: int) -> bytes:
        if header_bytes:
            array = np.frombuffer(given, np.float32, offset=header_bytes)
        else:
            array = np.array(orjson.loads(given)["inputs"][0]["data"], np.float32)
        output = self._session.run(["y"], {"x": array.reshape(self._shape)})[0]
        told = {"name": "y", "datatype": "FP32", "shape": output.shape}
        body = {"model_name": "m", "model_version": "1", "outputs": [told]}
        if not header_bytes:
            told["data"] = output.ravel()
            text = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
            return HEAD % (b"application/json", b"", len(text)) + text
        told["parameters"] = {"binary_data_size": output.nbytes}
        text, data = orjson.dumps(body), bytes(output.tobytes())
        extra = b"inference-header-content-length: %d\r\n" % len(text)
        kind = b"application/octet-stream"
        return HEAD % (kind, extra, len(text) + len(data)) + text + data

    def _inline(self, connection: "Connection", given: bytes, header: int) -> None:
        connection.write(self._answer(given, header))

    def _hand_over(self, connection: "Connection", given: bytes, header: int) -> None:
        self._queue.put((connection, given, header))

    def _work(self) -> None:
        while True:
            connection, given, header = self._queue.get()
            answer = self._answer(given, header)
            assert self._loop is not None, "work comes from connections of the loop"
            self._loop.call_soon_threadsafe(connection.write, answer)


class Connection(asyncio.Protocol):
    """One connection; requests that come one after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser: Any = None
        self._transport: Any = None
        self._parts: list[bytes] = []
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Into the parser, which calls the methods below."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """Forget the request before."""
        self._parts, self._header_bytes = [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """The one header that decides how the body is read."""
        if name.lower() == b"inference-header-content-length":
            self._header_bytes = int(value)

    def on_body(self, part: bytes) -> None:
        """Bodies come in parts."""
        self._parts.append(part)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._server.take(self, b"".join(self._parts), self._header_bytes)

    def write(self, answer: bytes) -> None:
        """Send, if the other side still listens."""
        if not self._transport.is_closing():
            self._transport.write(answer)


def main() -> None:
    """Serve until the process ends."""
    model, port, path, place = sys.argv[1:]
    uvloop.run(Server(model, place == "lane").run(int(port), path))


if __name__ == "__main__":
    main()
