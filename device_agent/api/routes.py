"""The routes of the FastAPI part: models, repository, predict, metrics, pages."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from ..errors import RequestError
from ..serving.repository import Repository
from . import describe, openapi, page, wire
from .bodies import Bodies
from .metrics import Exposition
from .openapi import READ, Name, Version, errors
from .predict import Predict

EXTENSIONS = [
    "binary_tensor_data", "model_configuration", "model_repository", "statistics",
]  # fmt: skip


class Models:
    """What is served, and how it does."""

    def __init__(self, repository: Repository, version: str) -> None:
        self._repository = repository
        self._version = version

    async def server(self) -> wire.Server:
        """Name, version and the protocol's extensions that are spoken here."""
        return wire.Server(
            name="edgeml-agent", version=self._version, extensions=EXTENSIONS
        )

    async def metadata(self, name: Name) -> wire.Metadata:
        """What a model takes and gives; of its active version."""
        return self._metadata(name, None)

    async def metadata_of_version(self, name: Name, version: Version) -> wire.Metadata:
        """What one version of a model takes and gives."""
        return self._metadata(name, version)

    async def config(self, name: Name) -> wire.Config:
        """How a model is served, in Triton's words."""
        return describe.configuration(self._repository.find(name))

    async def config_of_version(self, name: Name, version: Version) -> wire.Config:
        """How one version is served, in Triton's words."""
        return describe.configuration(self._repository.find(name, version))

    async def stats(self) -> wire.AllStats:
        """What every loaded version has done."""
        return self._stats(None)

    async def stats_of_model(self, name: Name) -> wire.AllStats:
        """What every loaded version of a model has done."""
        self._repository.find(name)
        return self._stats(name)

    async def stats_of_version(self, name: Name, version: Version) -> wire.AllStats:
        """What one version has done."""
        found = describe.statistics(self._repository.find(name, version))
        return wire.AllStats(model_stats=[found])

    def _metadata(self, name: str, version: str | None) -> wire.Metadata:
        served = self._repository.find(name, version)
        known = [one for one in self._repository.served() if one.name == served.name]
        return describe.metadata(served, [one.version for one in known])

    def _stats(self, name: str | None) -> wire.AllStats:
        return wire.AllStats(
            model_stats=[
                describe.statistics(one)
                for one in self._repository.served()
                if name in (None, one.name)
            ]
        )


class Control:
    """Load, swap, unload."""

    def __init__(self, repository: Repository, bodies: Bodies) -> None:
        self._repository = repository
        self._bodies = bodies

    async def index(self, request: Request) -> list[wire.IndexEntry]:
        """Every version that is known, or only those that are ready."""
        wanted = await self._bodies.document(request, wire.IndexRequest)
        return [
            wire.IndexEntry.model_validate(vars(entry))
            for entry in self._repository.index()
            if entry.state == "READY" or not wanted.ready
        ]

    async def load(self, name: Name, request: Request) -> Response:
        """Load a model (again) from its bundle; a changed bundle is a swap."""
        asked = await self._bodies.document(request, wire.ControlRequest)
        if asked.parameters:
            raise RequestError(
                f"load takes no parameters, found {', '.join(asked.parameters)}: "
                "a bundle brings its configuration and files"
            )
        await self._repository.load(name)
        return Response()

    async def unload(self, name: Name, request: Request) -> Response:
        """Answer what is under way, then give the memory of every version back."""
        await self._bodies.document(request, wire.ControlRequest)
        await self._repository.unload(name)
        return Response()


class Ask:
    """predict for people."""

    def __init__(
        self, repository: Repository, bodies: Bodies, decoding_bytes: int
    ) -> None:
        self._predict = Predict(repository, decoding_bytes)
        self._bodies = bodies

    async def predict(self, name: Name, request: Request) -> Response:
        """Ask the active version."""
        return await self._answer(request, name, None)

    async def predict_of_version(
        self, name: Name, version: Version, request: Request
    ) -> Response:
        """Ask that version."""
        return await self._answer(request, name, version)

    async def _answer(
        self, request: Request, name: str, version: str | None
    ) -> Response:
        kind = request.headers.get("content-type", "")
        async with self._bodies.read(request) as body:
            answer = await self._predict(body, kind, name, version)
        return Response(answer, media_type="application/json")


def add_models(app: FastAPI, models: Models) -> None:
    """Metadata, configuration and statistics."""
    app.add_api_route(
        "/v2", models.server, tags=["agent"], summary="What this server is"
    )
    app.add_api_route("/v2/", models.server, include_in_schema=False)
    app.add_api_route(
        "/v2/models/stats", models.stats, tags=["models"], summary="Statistics"
    )
    one, exact = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    for path, endpoint, summary in (
        (one, models.metadata, "Metadata of a model"),
        (exact, models.metadata_of_version, "Metadata of a version"),
        (f"{one}/config", models.config, "Configuration of a model"),
        (f"{exact}/config", models.config_of_version, "Configuration of a version"),
        (f"{one}/stats", models.stats_of_model, "Statistics of a model"),
        (f"{exact}/stats", models.stats_of_version, "Statistics of a version"),
    ):
        app.add_api_route(
            path, endpoint, tags=["models"], summary=summary, responses=errors(*READ),
            response_model_exclude_none=True,
        )  # fmt: skip


def add_repository(app: FastAPI, control: Control) -> None:
    """Index, load and unload."""
    post: dict[str, Any] = {"methods": ["POST"], "tags": ["repository"]}
    app.add_api_route(
        "/v2/repository/index", control.index, **post, summary="List the models",
        responses=errors(400, 413, 429),
        openapi_extra=_small(wire.IndexRequest),
    )  # fmt: skip
    for verb, endpoint in (("load", control.load), ("unload", control.unload)):
        app.add_api_route(
            f"/v2/repository/models/{{name}}/{verb}", endpoint, **post,
            summary=f"{verb.capitalize()} a model",
            responses=errors(400, 404, 413, 429, 503), response_class=Response,
            openapi_extra=_small(wire.ControlRequest),
        )  # fmt: skip


def _small(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    return openapi.body({"application/json": {"schema": schema}}, required=False)


def add_predict(app: FastAPI, ask: Ask) -> None:
    """predict, by POST and (``curl -T``) by PUT."""
    # one route for both verbs, so that 405 names both; described in openapi.py
    for path, endpoint in (
        ("/v1/models/{name}/predict", ask.predict),
        ("/v1/models/{name}/versions/{version}/predict", ask.predict_of_version),
    ):
        app.add_api_route(
            path, endpoint, methods=["POST", "PUT"], include_in_schema=False
        )


def add_agent(app: FastAPI, exposition: Exposition) -> None:
    """Metrics and the two pages."""
    text: dict[int | str, Any] = {200: {"content": {"text/plain": {}}}}

    async def metrics(request: Request) -> Response:
        """Prometheus metrics; OpenMetrics where the Accept header asks for it."""
        written, kind = exposition.write(request.headers.get("accept", ""))
        return Response(written, headers={"content-type": kind})

    app.add_api_route(
        "/metrics", metrics, tags=["agent"], responses=text, summary="Metrics",
        response_class=Response,
    )  # fmt: skip
    for path, name in (("/", "page"), ("/docs", "docs")):
        app.add_api_route(path, _shown(name), include_in_schema=False)


def add_device(app: FastAPI, status: Callable[[], dict[str, Any]]) -> None:
    """The device in its fleet."""

    def device() -> wire.Device:
        """Slots, the last attempt at an update, floors, spool and link."""
        return wire.Device(**status())

    app.add_api_route(
        "/v1/device", device, tags=["agent"], summary="The device in its fleet"
    )


def _shown(name: str) -> Any:
    async def show() -> Response:
        shown = page.read(name)
        return Response(shown.html, media_type="text/html", headers=shown.headers)

    return show
