"""The running agent: it owns the clocks, the sockets, the threads and the tasks.

1. It listens first and loads then: ``/v2/health/live`` answers at once,
   ``/v2/health/ready`` says when every model is there.
2. One line on stdout when it is ready; everything else goes to the log.
3. SIGTERM and SIGINT: ready says no, no new connections, requests under way finish,
   then it ends. A second signal ends it at once.
4. A task that dies ends the agent; its supervisor starts it again. A call that keeps
   the event loop keeps WATCHDOG=1 from systemd, which does the same.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .api.app import Application
from .api.body import Budget
from .config import AgentConfig, is_watched, notify_socket
from .contract.machine import memory_bytes
from .durable import StateLock
from .errors import RefusedError
from .identity import is_enrolled
from .log import Recent, configure, event
from .net.listen import listen, raise_file_limit
from .net.server import Server, loop_factory
from .serving.lane import Lane
from .serving.memory import give_back, keep_small
from .serving.repository import Repository
from .updating import STATE_DB

if TYPE_CHECKING:
    from .enrolled import Enrolled

OK, REFUSED, STUCK = 0, 4, 1
_WATCH_S = 1.0
_GROWN_BYTES = 4 << 20
"""What the process may grow before what is free in its heaps is given back."""
_LOG = logging.getLogger("edgeml.agent")


def run(config: AgentConfig) -> int:
    """Serve until told to stop.

    Returns:
        The exit code: 0 stopped as asked, 4 no bundle was taken and there is no fleet
        to give another, 1 too many inferences hang (the supervisor starts a fresh
        process).

    Raises:
        ConfigError: an address cannot be listened on as the configuration says.
        LockedError: another agent uses the same state directory.
        StorageError: the state directory cannot be written.
    """
    keep_small()
    configure(config.log)
    config.state.mkdir(parents=True, exist_ok=True)
    with (
        StateLock(config.state),
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        return runner.run(Agent(config).serve())


class Agent:
    """One agent, from the first socket to the last request."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._stop = asyncio.Event()
        """Set by the first signal, or by what cannot go on."""
        self._code = OK
        self._started = time.monotonic()
        self._started_wall = time.time()
        self._enrolled: Enrolled | None = None

    async def serve(self) -> int:
        """Listen, load, serve, drain; the exit code."""
        config = self._config
        self._listen_to_signals()
        raise_file_limit(config.limits)
        listeners, access = listen(config.listen, config.state)
        self._lanes = tuple(Lane(f"lane-{n}") for n in range(config.lanes))
        self._repository = Repository(config, self._lanes)
        self._repository.starting = True
        self._budget = Budget(config.limits.buffered_bytes)
        application = Application(
            self._repository, self._budget, access, config.limits.body_bytes,
            self._people,
        )  # fmt: skip
        self._server = Server(application, listeners, config.limits)
        await self._server.start()
        async with asyncio.TaskGroup() as tasks:
            owned = [
                tasks.create_task(self._watch()),
                tasks.create_task(self._server.watch()),
            ]
            if await self._load():
                if self._enrolled is not None:
                    owned.append(tasks.create_task(self._enrolled.run()))
                self._announce()
                await self._stop.wait()
            application.stopping = True
            self._notify("STOPPING=1")
            event(_LOG, logging.INFO, "stopping", drain_s=config.drain_s)
            for task in owned:
                task.cancel()
        await self._server.stop(config.drain_s)
        if self._enrolled is not None:
            await self._enrolled.stop(self._code == OK)
        await self._repository.close()
        return self._code

    async def _load(self) -> bool:
        """Install what the fleet gave and every bundle; whether anything is served."""
        if _is_fleets(self._config.state):
            from .enrolled import Enrolled  # 8 MB that others do without

            recent = Recent()
            logging.getLogger().addHandler(recent)
            self._enrolled = Enrolled(
                self._config, self._repository, self._give_up, recent.lines
            )
            await self._enrolled.boot()
        self._repository.starting = False
        refused = 0
        for path in self._config.bundles:
            try:
                if not await self._covered(path):
                    await self._repository.install(path)
            except RefusedError:
                refused += 1  # the repository has said why, and keeps it in its index
            if self._stop.is_set():
                return False
        alone = self._enrolled is None  # the others can be helped by their fleet
        if refused and alone and not self._repository.served():
            self._code = REFUSED
            return False
        _freeze()
        return True

    async def _covered(self, path: Path) -> bool:
        """Whether the fleet has given another release of a bundle's model."""
        enrolled = self._enrolled
        if enrolled is None or enrolled.updater.running is None:
            return False
        name = await self._repository.name_of(path)
        if not enrolled.covers(name):
            return False
        self._repository.pass_over(path, name)
        return True

    def _give_up(self, reason: str) -> None:
        """This process cannot go on; the supervisor starts a fresh one."""
        event(_LOG, logging.CRITICAL, "giving up", reason=reason)
        self._code = STUCK
        self._stop.set()

    def _announce(self) -> None:
        served = self._repository.served()
        models = ", ".join(f"{one.name} {one.version}" for one in served) or "no model"
        where = " ".join(self._server.addresses)
        took_s = time.monotonic() - self._started
        line = f"ready: {where} · {models} ({took_s:.2f} s)"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        self._notify(f"READY=1\nSTATUS={models}")

    async def _watch(self) -> None:
        settled_bytes, watched = memory_bytes("VmRSS"), is_watched()
        while True:
            await asyncio.sleep(_WATCH_S)
            if watched:
                self._notify("WATCHDOG=1")
            if memory_bytes("VmRSS") > settled_bytes + _GROWN_BYTES:
                give_back()
                settled_bytes = memory_bytes("VmRSS")
            hopeless = self._repository.watch(self._config.hang_s)
            if hopeless is not None and not self._stop.is_set():
                self._give_up(hopeless)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self._stop.is_set():
            os._exit(128 + signal.SIGTERM)
        self._stop.set()

    def _people(self) -> Any:
        """The FastAPI part; called in a thread when it is first needed."""
        from .api.about import About, alone
        from .api.people import build

        about = About(
            version=__version__,
            started=self._started,
            started_wall=self._started_wall,
            connections=self._server.table.counts,
            lanes=self._lanes,
            device=self._enrolled.status if self._enrolled is not None else alone,
        )
        made = build(self._repository, self._config, about, self._budget)
        _freeze()
        return made

    def _notify(self, text: str) -> None:
        """Tell systemd, where it waits for it."""
        address = notify_socket()
        if address is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto(text.encode(), address.replace("@", "\0", 1))


def _is_fleets(state: Path) -> bool:
    """Whether this device is enrolled, or was and serves what it was given."""
    return is_enrolled(state) or (state / STATE_DB).exists()


def _freeze() -> None:
    """What is there now stays: the collector need not look at it again and again.

    With the part for people loaded a full collection takes 13 ms, and everybody waits.
    """
    gc.collect()
    gc.freeze()
