"""The ASGI application: the hot path here, everything else in FastAPI.

FastAPI is imported when somebody first asks for what only it answers (metadata,
statistics, the page, …): the agent answers inferences a quarter of a second earlier,
and a device that nobody looks at never pays for it.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from ..errors import AgentError, RequestError, UnavailableError
from ..serving.repository import Repository
from . import codec
from .body import Budget, Receive
from .infer import Infer, Scope, Send, respond, respond_error

_ROUTES_MAX = 1024
"""Paths that are remembered, so that callers cannot fill the memory with them."""


class Guard(Protocol):
    """Who may come in."""

    def check(self, scope: Scope) -> None:
        """Raises :class:`AccessError` when the request may not be answered."""


class Route(NamedTuple):
    """What a path of the hot path means."""

    kind: str
    name: str = ""
    version: str | None = None
    methods: tuple[str, ...] = ("GET", "HEAD")


class Application:
    """One ASGI callable for all listeners."""

    first_step_inline = True
    """Its first step needs no task of its own (``net.compiled``, rule 3)."""

    def __init__(
        self,
        repository: Repository,
        budget: Budget,
        guard: Guard,
        body_bytes: int,
        people: Callable[[], Any],
    ) -> None:
        self._repository = repository
        self._guard = guard
        self._infer = Infer(repository, budget, body_bytes)
        self._make_people = people
        self._people: Any = None
        self._importing = asyncio.Lock()
        self._routes: dict[str, Route | None] = {}
        self.stopping = False
        """Set before the listeners close: ready says no, so that callers go away."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        try:
            route = self._routes[path]
        except KeyError:
            route = self._remember(path, scope)
        try:
            self._guard.check(scope)
            if route is None:
                await self._ask_people(scope, receive, send)
            elif scope["method"] not in route.methods:
                await _not_allowed(send, scope["method"], route.methods)
            elif route.kind == "infer":
                await self._infer(scope, receive, send, route.name, route.version)
            else:
                await respond(send, 200, self._health(route))
        except AgentError as error:
            await respond_error(send, error)

    def _health(self, route: Route) -> bytes:
        if route.kind == "live":
            return b'{"live":true}'
        if self.stopping:
            raise UnavailableError("the agent is stopping")
        if route.kind == "ready":
            if not self._repository.ready:
                raise UnavailableError("not every model is loaded", 1)
            return b'{"ready":true}'
        served = self._repository.find(route.name, route.version)
        return codec.dumps({"name": served.name, "ready": True})

    async def _ask_people(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)  # FastAPI asks in which task it is
        if self._people is None:
            async with self._importing:
                if self._people is None:
                    self._people = await asyncio.to_thread(self._make_people)
        await self._people(scope, receive, send)

    def _remember(self, path: str, scope: Scope) -> Route | None:
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.clear()
        route = self._routes[path] = _route(scope.get("raw_path") or path.encode())
        return route


def _route(raw_path: bytes) -> Route | None:
    """The hot route of a path; None: FastAPI's."""
    parts = [unquote(part) for part in raw_path.decode("latin-1").split("/")]
    match parts:
        case ["", "v2", "health", ("live" | "ready") as kind]:
            return Route(kind)
        case ["", "v2", "models", name, "infer"]:
            return Route("infer", name, None, ("POST",))
        case ["", "v2", "models", name, "versions", version, "infer"]:
            return Route("infer", name, version, ("POST",))
        case ["", "v2", "models", name, "ready"]:
            return Route("model", name)
        case ["", "v2", "models", name, "versions", version, "ready"]:
            return Route("model", name, version)
        case _:
            return None


async def _not_allowed(send: Send, method: str, methods: tuple[str, ...]) -> None:
    error = RequestError(f"{method} is not offered here; {' or '.join(methods)} is")
    allow = ((b"allow", ", ".join(methods).encode()),)
    await respond(send, 405, codec.dumps({"error": str(error)}), extra=allow)
