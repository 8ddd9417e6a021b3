"""Requests that arrive whether or not the earlier ones were answered, and their fate.

::

    fates = arrive([Stream("infer", "POST", url, rate=1500, body=body), …], seconds=8)
    refused = [one for one in fates if one.status == 429]

1. Open loop: the times of arrival are drawn before the first request is sent, and
   latency counts from them. A caller that falls behind makes its figures worse, never
   better.
2. In a process of its own, so that it shares no interpreter with what it measures.
3. Every request has a fate: the status of its answer, or 0 when its connection ended
   or ``PATIENCE_S`` passed without one.
"""

import asyncio
import gc
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

PATIENCE_S = 20.0
START_S = 0.5
"""From the start of the process to the first arrival."""


@dataclass(frozen=True)
class Stream:
    """Requests of one kind, at random times."""

    name: str
    method: str
    url: str
    rate: float
    """Arrivals a second on average."""
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    fresh: bool = False
    """A new connection for each request; else connections are kept and used again."""


class Fate(NamedTuple):
    """What became of one request."""

    stream: str
    at_s: float
    """When it arrived, from the first arrival possible."""
    latency_s: float
    """From its arrival to the last byte of its answer."""
    status: int
    retry_after: str | None
    late_s: float
    """How long after its arrival it was sent: what the caller itself has lost."""


def arrive(streams: Sequence[Stream], seconds: float, seed: int = 0) -> list[Fate]:
    """Send for so many seconds, wait for every answer; all fates, by arrival."""
    order = {
        "streams": [asdict(one) for one in streams], "seconds": seconds, "seed": seed,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(Path(__file__))], input=json.dumps(order).encode(),
        stdout=subprocess.PIPE, timeout=seconds + PATIENCE_S + 30, check=True,
    )  # fmt: skip
    return [Fate(*one) for one in json.loads(done.stdout)]


class _Connection(asyncio.Protocol):
    """One request at a time, each answered by a status, headers and a body."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[int, str | None]] | None = None
        self.usable = True
        self._read = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(b"\r\n\r\n")
        if end < 0 or self.done is None or self.done.done():
            return
        lines = self._read[:end].decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        if len(self._read) < end + 4 + int(headers.get("content-length", "0")):
            return
        self._read.clear()
        self.usable = headers.get("connection", "").lower() != "close"
        self.done.set_result((int(lines[0].split()[1]), headers.get("retry-after")))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self.done is not None and not self.done.done():
            self.done.set_result((0, None))


class _Caller:
    """One stream, on one event loop."""

    def __init__(self, stream: Stream, start: float) -> None:
        address = urlsplit(stream.url)
        self._stream = stream
        self._start = start
        self._host, self._port = str(address.hostname), int(address.port or 80)
        body = stream.body.encode()
        headers = {
            "host": address.netloc, "content-length": str(len(body)), **stream.headers,
        }  # fmt: skip
        if stream.fresh:
            headers["connection"] = "close"
        lines = [f"{stream.method} {address.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._request = "\r\n".join([*lines, "", ""]).encode() + body
        self._idle: list[_Connection] = []
        self.fates: list[Fate] = []

    async def call(self, at_s: float) -> None:
        loop = asyncio.get_running_loop()
        due = self._start + at_s
        late = loop.time() - due
        try:
            status, retry_after = await asyncio.wait_for(self._ask(), PATIENCE_S)
        except (OSError, TimeoutError):
            status, retry_after = 0, None
        took = loop.time() - due
        self.fates.append(
            Fate(self._stream.name, at_s, took, status, retry_after, late)
        )

    async def _ask(self) -> tuple[int, str | None]:
        loop = asyncio.get_running_loop()
        connection = self._kept()
        if connection is None:
            _, connection = await loop.create_connection(
                _Connection, self._host, self._port
            )
        connection.done = loop.create_future()
        connection.transport.write(self._request)
        try:
            answer = await connection.done
        except asyncio.CancelledError:
            connection.transport.abort()
            raise
        if connection.usable and not self._stream.fresh:
            self._idle.append(connection)
        else:
            connection.transport.close()
        return answer

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None


async def _send(streams: Sequence[Stream], seconds: float, seed: int) -> list[Fate]:
    drawn = random.Random(seed)
    loop = asyncio.get_running_loop()
    start = loop.time() + START_S
    callers = [_Caller(stream, start) for stream in streams]
    arrivals = []
    for caller, stream in zip(callers, streams, strict=True):
        at_s = drawn.expovariate(stream.rate)
        while at_s < seconds:
            arrivals.append((at_s, caller))
            at_s += drawn.expovariate(stream.rate)
    arrivals.sort(key=lambda arrival: arrival[0])
    under_way: set[asyncio.Task[None]] = set()
    for at_s, caller in arrivals:
        wait_s = start + at_s - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        task = loop.create_task(caller.call(at_s))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    return sorted(
        (fate for caller in callers for fate in caller.fates),
        key=lambda fate: fate.at_s,
    )


def _main() -> None:
    gc.disable()  # with so many fates in memory it would stop the callers for 0.2 s
    order = json.load(sys.stdin)
    streams = [Stream(**one) for one in order["streams"]]
    fates = asyncio.run(_send(streams, order["seconds"], order["seed"]))
    json.dump(fates, sys.stdout)


if __name__ == "__main__":
    _main()
