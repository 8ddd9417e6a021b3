"""One ASGI application on all listeners, until it is told to stop.

1. uvicorn's protocols and nothing else of it: no signals, no lifespan, no access log.
2. TLS connections are accepted one by one, because a caller that does not finish its
   handshake is not yet in the table of connections: the oldest handshake gives way.
3. The tasks behind it (the sweep, the TLS accepts) end only by :meth:`Server.stop`;
   what else ends one is raised by :meth:`Server.watch`.
"""

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from ..config import LimitsConfig
from .connections import LINGER_S, SWEEP_S
from .limits import Connections, Http, protocol
from .listen import BACKLOG, Listener, close

ACCEPT_BURST = 64
"""Newcomers taken before anybody else gets a turn."""
HANDSHAKES_MAX = 64
_CANCELLED_S = 1.0
"""What requests get to notice that they are over."""
_NO_FILES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_RETRY_S = 0.1


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop: uvloop where it is installed, else asyncio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class Server:
    """Serves from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        app: Any,
        listeners: Sequence[Listener],
        limits: LimitsConfig,
        *,
        table: Connections | None = None,
        http: Http = "auto",
    ) -> None:
        """Make it; nothing is accepted yet.

        Args:
            app: ASGI 3 application; it gets ``http`` scopes only.
            listeners: from ``listen.listen``; closed by :meth:`stop`.
            limits: what one connection, and all together, may take.
            table: of the connections; its ``counts`` are for the metrics.
            http: the parser, see ``limits.protocol``.
        """
        self.limits = limits
        self.table = Connections(limits) if table is None else table
        self._listeners = tuple(listeners)
        self._config = uvicorn.Config(
            app, http=protocol(limits, self.table, http), ws="none", lifespan="off",
            interface="asgi3", log_config=None, log_level="warning", access_log=False,
            proxy_headers=False,
            server_header=False, date_header=False,
            h11_max_incomplete_event_size=limits.header_bytes,
        )  # fmt: skip
        self._state = ServerState()
        self._servers: list[asyncio.AbstractServer] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._handshakes: dict[asyncio.Task[None], None] = {}

    @property
    def addresses(self) -> list[str]:
        """Where it listens: ``unix:…`` first, then ``http://…`` or ``https://…``."""
        return [listener.address for listener in self._listeners]

    async def start(self) -> None:
        """Accept from now on."""
        loop = asyncio.get_running_loop()
        self._config.load()
        self.table.sweep(0.0, time.time())
        self._tasks.append(loop.create_task(self._sweep()))
        for listener in self._listeners:
            sock = listener.socket
            if listener.tls is not None:
                accepting = self._accept(sock, listener.tls)
                self._tasks.append(loop.create_task(accepting))
                continue
            serve = loop.create_server if listener.path is None else _unix(loop)
            server = await serve(self._connection, sock=sock, backlog=ACCEPT_BURST)
            self._servers.append(server)
            sock.listen(BACKLOG)  # the loop takes one number for burst and backlog

    async def watch(self) -> None:
        """Wait until it is stopped.

        Raises:
            BaseException: what ended a task behind it.
        """
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self._raise_failure()

    async def stop(self, drain_s: float) -> bool:
        """Take nobody new, let what is under way end, and close everything.

        Args:
            drain_s: how long requests under way may take.

        Returns:
            Whether all of them ended in that time.

        Raises:
            BaseException: what had ended a task behind it.
        """
        for server in self._servers:
            server.close()
        sweep, *accepting = self._tasks
        for task in (*accepting, *self._handshakes):
            task.cancel()
        close(self._listeners)
        self.table.finish()
        try:
            async with asyncio.timeout(drain_s):
                await self.table.emptied.wait()
                await self._requests_end()
            ended = True
        except TimeoutError:
            ended = False
            await self._cut_off()
        sweep.cancel()
        await asyncio.wait(self._tasks)
        self._raise_failure()
        return ended

    def _raise_failure(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _cut_off(self) -> None:
        self.table.close()
        # First they hear that their caller has gone; who does not listen is cancelled.
        for _ in range(2):
            end = asyncio.create_task(self._requests_end())
            _, waiting = await asyncio.wait([end], timeout=_CANCELLED_S / 2)
            if not waiting:
                return
            end.cancel()
            for request in self._state.tasks:
                request.cancel()

    async def _requests_end(self) -> None:
        while self._state.tasks:
            await asyncio.wait(list(self._state.tasks))

    def _connection(self) -> asyncio.Protocol:
        make: Any = self._config.http_protocol_class
        connection: asyncio.Protocol = make(
            config=self._config, server_state=self._state, app_state={}
        )
        return connection

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            self.table.sweep(now - last, time.time())
            last = now

    async def _accept(self, listening: socket.socket, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _NO_FILES:
                    raise
                await asyncio.sleep(_RETRY_S)
                continue
            while len(self._handshakes) >= HANDSHAKES_MAX:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
                self.table.counts.evicted["handshake"] += 1
            task = loop.create_task(self._greet(sock, tls))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _greet(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._connection, sock, ssl=tls,
                ssl_handshake_timeout=self.limits.header_s,
                ssl_shutdown_timeout=LINGER_S,
            )  # fmt: skip
        except OSError:  # plain text, a certificate that is not ours to trust, a reset
            self.table.counts.refused["handshake"] += 1
            sock.close()


def _unix(loop: asyncio.AbstractEventLoop) -> Callable[..., Any]:
    return loop.create_unix_server
