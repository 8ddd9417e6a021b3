"""The part of the API for people, over a real repository, asked without a server.

::

    with site(folder, paths) as here:
        answer = here.ask("GET", "/v2/models/linear")

Loop, lanes and sessions are real; only the socket is missing. ``server`` has that too,
and the hot path beside it, for browsers.
"""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI

from device_agent.api.about import alone
from device_agent.api.app import Application
from device_agent.api.body import Budget
from device_agent.api.people import About, build
from device_agent.config import AgentConfig
from device_agent.serving.lane import Lane
from device_agent.serving.repository import Repository

T = TypeVar("T")


@dataclass
class Connections:
    open: int = 3
    reserved: int = 1
    accepted: int = 7
    evicted: Counter[str] = field(default_factory=lambda: Counter(idle=2))
    refused: Counter[str] = field(default_factory=lambda: Counter(headers=4))


@dataclass
class Site:
    """The application, and how to ask it."""

    app: FastAPI
    repository: Repository
    budget: Budget
    about: About
    _runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the application's loop."""
        return self._runner.run(work)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request."""
        return self.run(self.asked(method, path, **options))

    async def asked(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, from within the loop."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as web:
            return await web.request(method, path, **options)


@contextmanager
def site(folder: Path, bundles: Sequence[Path] = (), **settings: Any) -> Iterator[Site]:
    """An application that serves ``bundles``; ``settings`` are AgentConfig's."""
    config = AgentConfig(state=folder / "state", bundles=tuple(bundles), **settings)
    with asyncio.Runner() as runner:
        here = runner.run(_open(config, runner))
        try:
            yield here
        finally:
            runner.run(here.repository.close())


async def _open(config: AgentConfig, runner: asyncio.Runner) -> Site:
    lanes = tuple(Lane(f"lane-{number}") for number in range(config.lanes))
    repository = Repository(config, lanes)
    for path in config.bundles:
        await repository.install(path)
    about = About("1.2.3", time.monotonic(), time.time(), Connections(), lanes, alone)
    budget = Budget(config.limits.buffered_bytes)
    app = await asyncio.to_thread(build, repository, config, about, budget)
    return Site(app, repository, budget, about, runner)


class Anybody:
    """A guard that lets everybody in."""

    def check(self, scope: Any) -> None:
        return


@contextmanager
def server(
    folder: Path, bundles: Sequence[Path] = (), guard: Any = None, **settings: Any
) -> Iterator[str]:
    """The whole API on a free port of loopback; gives its URL."""
    config = AgentConfig(state=folder / "state", bundles=tuple(bundles), **settings)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        started = threading.Event()
        stop: list[Callable[[], None]] = []

        async def serve() -> None:
            here = await _open(config, asyncio.Runner())
            application = Application(
                here.repository, here.budget, guard or Anybody(),
                config.limits.body_bytes, lambda: here.app,
            )  # fmt: skip
            web = uvicorn.Server(
                uvicorn.Config(application, lifespan="off", log_config=None)
            )
            stop.append(lambda: setattr(web, "should_exit", True))
            started.set()
            await web.serve(sockets=[listening])
            await here.repository.close()

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        assert started.wait(60)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            stop[0]()
            thread.join()
