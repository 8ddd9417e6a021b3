"""The FastAPI application: everything that people and tools look at.

It is imported when somebody first asks for it (``app.py``); inference and health do
without. Bodies are read by :func:`read_body` alone, so that the limits hold here too.
"""

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import AgentConfig
from ..errors import AgentError
from ..log import event
from ..serving.repository import Repository
from . import openapi, routes
from .about import About
from .bodies import Bodies, reasons
from .body import Budget
from .metrics import Exposition

__all__ = ["About", "build"]

_LOG = logging.getLogger("edgeml.api")
_DESCRIPTION = (
    "Serves the models of this device by the Open Inference Protocol v2, and to people "
    "with curl: `curl -T photo.jpg http://localhost:8000/v1/models/digits/predict`. "
    'Every error is `{"error": "text"}`.'
)


class Json(JSONResponse):
    """JSON that leaves a terminal's prompt where it was."""

    def render(self, content: Any) -> bytes:
        """The document and a newline."""
        return super().render(content) + b"\n"


def build(
    repository: Repository, config: AgentConfig, about: About, budget: Budget
) -> FastAPI:
    """The application over a repository; may be called in any thread."""
    app = FastAPI(
        title="edgeml-agent",
        version=about.version,
        summary="Models on this device",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=Json,
        generate_unique_id_function=lambda route: route.name,
    )
    bodies = Bodies(config.limits.body_bytes, budget)
    routes.add_models(app, routes.Models(repository, about.version))
    routes.add_repository(app, routes.Control(repository, bodies))
    routes.add_predict(
        app, routes.Ask(repository, bodies, config.limits.decoding_bytes)
    )
    routes.add_agent(app, Exposition(repository, about, budget))
    routes.add_device(app, about.device)
    _add_errors(app)
    app.add_middleware(Heads)

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi.document(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
    return app


class Heads:
    """Answers HEAD as GET; the server sends no body then."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def _add_errors(app: FastAPI) -> None:
    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, AgentError)
        headers = {}
        if error.retry_after_s is not None:
            headers["retry-after"] = str(error.retry_after_s)
        return Json({"error": str(error)}, error.status, headers)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, text = request.url.path, error.detail
        if error.status_code == 404:
            text = f"there is no {path}; /docs says what there is"
        elif error.status_code == 405:
            offered = set((error.headers or {}).get("Allow", "").split(", "))
            if "GET" in offered:
                offered.add("HEAD")
            allow = ", ".join(sorted(offered))
            text = f"{request.method} is not offered here; expected {allow}"
            return Json({"error": text}, 405, {"allow": allow})
        return Json({"error": text}, error.status_code, error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return Json({"error": reasons(error.errors())}, 400)

    async def unexpected(request: Request, error: Exception) -> Response:
        event(
            _LOG, logging.ERROR, "request failed", exc_info=error,
            method=request.method, path=request.url.path,
        )  # fmt: skip
        text = f"internal error ({type(error).__name__}); the agent's log says more"
        return Json({"error": text}, 500)

    app.add_exception_handler(AgentError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)
