"""The OpenAPI document of the whole API, the hot path included.

Inference and health are answered before FastAPI is even imported (``app.py``); their
routes are described here and served there. So is predict, which is one route with two
verbs, where OpenAPI wants two operations.
"""

from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from . import wire

Name = Annotated[str, Path(description="The model's name", examples=["digits"])]
Version = Annotated[str, Path(description="Its version", examples=["1.0.0"])]

TAGS = [
    {"name": "people", "description": "A photo, a sound or numbers in, labels out."},
    {"name": "inference", "description": "Open Inference Protocol v2."},
    {"name": "health", "description": "Never waits behind inference."},
    {"name": "models", "description": "What is served, and how it does."},
    {"name": "repository", "description": "Load, swap and unload."},
    {"name": "agent", "description": "The agent itself."},
]

_ERRORS = {
    400: "The request does not fit the protocol or the model",
    404: "There is no such model or version",
    413: "More bytes, rows or pixels than allowed",
    422: "The answer cannot be written: it holds NaN or infinities",
    429: "It cannot be answered in time; nothing was started",
    500: "The runtime failed",
    503: "Not loaded, on its way out, or its circuit breaker is open",
    504: "The deadline passed before the answer was there",
}
_RETRY = {
    "Retry-After": {
        "description": "Seconds after which to ask again",
        "schema": {"type": "integer", "minimum": 1},
    }
}
ASKED = (400, 404, 413, 422, 429, 500, 503, 504)
"""Errors of what runs a model."""
READ = (404, 503)
"""Errors of what only looks at a model."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route."""
    return {
        status: {
            "model": wire.Error,
            "description": _ERRORS[status],
            **({"headers": _RETRY} if status in (429, 503) else {}),
        }
        for status in statuses
    }


def body(content: dict[str, Any], required: bool = True) -> dict[str, Any]:
    """A request body that the route reads itself."""
    return {"requestBody": {"required": required, "content": content}}


def schema_of(model: type) -> dict[str, Any]:
    """A media type whose schema is one of the documents."""
    return {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}


_BYTES = {"schema": {"type": "string", "format": "binary"}}
_NUMBERS = {"description": "Numbers, nested as the input's shape is"}

_PREDICT = body(
    {
        "image/*": _BYTES,
        "audio/wav": _BYTES,
        "text/csv": {
            "schema": {"type": "string", "description": "A line is a sample"},
            "example": "5.1,3.5,1.4,0.2\n",
        },
        "application/json": {
            "schema": {
                "anyOf": [
                    {"type": "array", "items": {}, "minItems": 1},
                    {
                        "type": "object",
                        "properties": {
                            "inputs": {
                                "type": "object",
                                "minProperties": 1,
                                "additionalProperties": _NUMBERS,
                            }
                        },
                        "required": ["inputs"],
                        "additionalProperties": False,
                    },
                    {
                        "type": "object",
                        "properties": {
                            "instances": {"type": "array", "items": {}, "minItems": 1}
                        },
                        "required": ["instances"],
                        "additionalProperties": False,
                    },
                ]
            },
            "examples": {
                "list": {"value": [5.1, 3.5, 1.4, 0.2]},
                "inputs": {"value": {"inputs": {"x": [5.1, 3.5, 1.4, 0.2]}}},
                "instances": {"value": {"instances": [[5.1, 3.5, 1.4, 0.2]]}},
            },
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "string", "format": "binary"}},
                "required": ["file"],
            }
        },
    }
)
_INFER: dict[str, Any] = {
    **body(
        {
            "application/json": schema_of(wire.InferRequest),
            "application/octet-stream": {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": (
                        "JSON, then the inputs' bytes in order (binary_tensor_data)"
                    ),
                }
            },
        }
    ),
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": (
                "Bytes of JSON before binary tensors; 0: the body is the one input's "
                "bytes"
            ),
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of the routes of ``app`` and of those beside it."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        tags=TAGS,
        routes=[*app.routes, *_hot().routes],
    )
    schemas = found["components"]["schemas"]
    _, bodies = models_json_schema(
        [(wire.InferRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    schemas.update(bodies["$defs"])
    found["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": _BEARER_TEXT}
    }
    found["security"] = [{}, {"token": []}]
    # FastAPI's own answer to wrong parameters never leaves: ours has another form
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operations in found["paths"].values():
        for operation in operations.values():
            stale = operation["responses"].get("422")
            if stale and stale["description"] == "Validation Error":
                del operation["responses"]["422"]
    return found


def _hot() -> APIRouter:
    """Routes that are described only."""
    router = APIRouter()

    async def plain() -> None: ...
    async def of_model(name: Name) -> None: ...
    async def of_version(name: Name, version: Version) -> None: ...

    for what, model in (("live", wire.Live), ("ready", wire.Ready)):
        router.add_api_route(
            f"/v2/health/{what}", plain, methods=["GET"], tags=["health"],
            summary=_SUMMARIES[what], operation_id=what, response_model=model,
            responses=errors(503) if what == "ready" else None,
        )  # fmt: skip
    for path, endpoint, suffix in (
        ("/v2/models/{name}", of_model, ""),
        ("/v2/models/{name}/versions/{version}", of_version, "_of_version"),
    ):
        router.add_api_route(
            f"{path}/ready", endpoint, methods=["GET"], tags=["health"],
            summary=_SUMMARIES["model"], operation_id=f"model_ready{suffix}",
            response_model=wire.Ready, responses=errors(*READ),
        )  # fmt: skip
        router.add_api_route(
            f"{path}/infer", endpoint, methods=["POST"], tags=["inference"],
            summary=_SUMMARIES["infer"], description=_INFER_TEXT,
            operation_id=f"infer{suffix}", response_model=wire.InferResponse,
            responses=errors(*ASKED) | {200: {"content": {
                "application/octet-stream": _BYTES,
            }}},
            openapi_extra=_INFER,
        )  # fmt: skip
        for method in ("POST", "PUT"):
            router.add_api_route(
                path.replace("v2", "v1") + "/predict", endpoint, methods=[method],
                tags=["people"], summary="Ask a model", description=_PREDICT_TEXT,
                operation_id=f"predict{suffix}_{method.lower()}",
                response_model=wire.Prediction, responses=errors(*ASKED),
                openapi_extra=_PREDICT,
            )  # fmt: skip
    return router


_SUMMARIES = {
    "live": "Whether the process answers",
    "ready": "Whether every model is loaded",
    "model": "Whether a model can be asked",
    "infer": "Run a model on tensors",
}
_BEARER_TEXT = (
    "Listeners beyond loopback and the unix socket ask for the agent's token; without "
    "it every answer is 401."
)
_PREDICT_TEXT = (
    "The bundle's own pre- and postprocessing turn a file into what the model takes, "
    "and its outputs into labels and scores. `curl -T photo.jpg`, "
    "`curl -F file=@photo.jpg` and `curl --data-binary @photo.jpg` all do: where the "
    "Content-Type says nothing, the first bytes tell. A line of CSV is a sample; "
    'several give `rows`. JSON is the bare sample, `{"inputs": {name: sample}}`, or '
    '`{"instances": [sample, …]}`, which gives `predictions`; `{"b64": "…"}` stands '
    "for a file."
)
_INFER_TEXT = (
    "Values as JSON, or as bytes behind it (`binary_tensor_data`); gzip and deflate "
    "in both directions. JSON carries no NaN or infinity: in a request that is 400, in "
    "an answer 422; binary data carries both. Answered while the circuit breaker is "
    "open by the configured fallback model, whose name then is in `model_name`."
)
