"""The documents of the API, as its callers see them.

What is sent is made of these classes, so the OpenAPI document cannot say otherwise.
The names are those of the Open Inference Protocol v2 and of its Triton extensions.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..contract.tensors import Datatype

Parameter = bool | int | float | str
_DIGITS = {"model_name": "digits", "model_version": "1.0.0"}


class _Document(BaseModel):
    # "model_" is the protocol's prefix, not pydantic's
    model_config = ConfigDict(protected_namespaces=())


class Error(_Document):
    """Why there is no answer."""

    error: Annotated[str, Field(examples=["there is no model 'digit'"])]


class Server(_Document):
    """What this server is and which extensions of the protocol it speaks."""

    name: Annotated[str, Field(examples=["edgeml-agent"])]
    version: Annotated[str, Field(examples=["0.1.0"])]
    extensions: Annotated[list[str], Field(examples=[["binary_tensor_data"]])]


class Tensor(_Document):
    """An input or output; -1 in the shape is any size."""

    name: Annotated[str, Field(examples=["image"])]
    datatype: Datatype
    shape: Annotated[list[int], Field(examples=[[-1, 1, 32, 32]])]


class Metadata(_Document):
    """What a model takes and gives.

    ``parameters`` says what this agent knows beyond the protocol: ``sha256`` (of the
    bundle), ``target``, ``precision``, ``runtime``, ``takes`` (``image``, ``wav`` or
    ``numbers``: what predict decodes), its metric, size and latency on this device.
    """

    name: Annotated[str, Field(examples=["digits"])]
    versions: Annotated[list[str], Field(examples=[["1.0.0"]])]
    platform: Annotated[str, Field(examples=["onnxruntime_onnx"])]
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: dict[str, Parameter]


class ConfigTensor(_Document):
    """An input or output as Triton writes it; without the batch where there is one."""

    name: str
    data_type: Annotated[str, Field(examples=["TYPE_FP32"])]
    dims: Annotated[list[int], Field(examples=[[1, 32, 32]])]


class Instances(_Document):
    """How many sessions answer, and where."""

    name: str
    kind: Literal["KIND_CPU"] = "KIND_CPU"
    count: int = 1


class QueuePolicy(_Document):
    """What waits, how long, and what happens then."""

    timeout_action: Literal["REJECT"] = "REJECT"
    default_timeout_microseconds: int
    max_queue_size: int


class DynamicBatching(_Document):
    """Requests that wait together are run together."""

    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int
    default_queue_policy: QueuePolicy


class Text(_Document):
    """A parameter of a model configuration."""

    string_value: str


class Config(_Document):
    """A model's configuration in Triton's words.

    ``max_batch_size`` 0: the model has no variable batch, ``dims`` are whole shapes.
    ``parameters`` holds the pre- and postprocessing steps as JSON.
    """

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any] = {"latest": {"num_versions": 1}}
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    instance_group: list[Instances]
    default_model_filename: str
    dynamic_batching: DynamicBatching | None = None
    parameters: dict[str, Text]


class Count(_Document):
    """How often, and nanoseconds in all."""

    count: int = 0
    ns: int = 0


class InferenceStats(_Document):
    """Requests by where their time went; what this agent does not tell apart is 0."""

    success: Count
    fail: Count
    queue: Count
    compute_input: Count = Count()
    compute_infer: Count
    compute_output: Count = Count()
    cache_hit: Count = Count()
    cache_miss: Count = Count()


class BatchStats(_Document):
    """Runs over so many rows."""

    batch_size: int
    compute_input: Count = Count()
    compute_infer: Count
    compute_output: Count = Count()


class ModelStats(_Document):
    """What one version has done since it was loaded.

    ``refused`` (ours): requests that were never run, by reason; ``waiting`` (ours):
    requests in its queue now.
    """

    name: str
    version: str
    last_inference: Annotated[int, Field(description="Milliseconds since 1970")]
    inference_count: Annotated[int, Field(description="Rows answered")]
    execution_count: Annotated[int, Field(description="Runs of the session")]
    inference_stats: InferenceStats
    batch_stats: list[BatchStats]
    memory_usage: list[dict[str, Any]] = []
    response_stats: dict[str, Any] = {}
    refused: dict[str, int]
    waiting: int


class AllStats(_Document):
    """Statistics of the versions that were asked for."""

    model_stats: list[ModelStats]


class IndexRequest(_Document):
    """Which models to list."""

    model_config = ConfigDict(strict=True)

    ready: Annotated[bool, Field(description="Only those that are READY")] = False


class IndexEntry(_Document):
    """One version that this agent knows."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str = ""


class ControlRequest(_Document):
    """Parameters of load and unload; Triton's ``unload_dependents`` has no effect."""

    model_config = ConfigDict(strict=True)

    parameters: dict[str, Parameter] = {}


class Class(_Document):
    """A class and its score."""

    label: str
    index: int
    score: float


class Timing(_Document):
    """Milliseconds; ``infer`` includes waiting for the model's turn."""

    preprocess: float
    infer: float
    postprocess: float


class Prediction(_Document):
    """The answer for people; which fields are there follows from the postprocessing.

    ``label, index, score`` of one class; ``predictions``, best first, of several;
    ``indexes`` of a map of classes; ``boxes``; or the bare ``outputs``. Several rows
    give ``rows`` (``predictions`` where ``instances`` were sent), each such an answer.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                **_DIGITS,
                "predictions": [
                    {"label": "7", "index": 7, "score": 0.98},
                    {"label": "1", "index": 1, "score": 0.01},
                ],
                "timing_ms": {"preprocess": 0.61, "infer": 0.12, "postprocess": 0.05},
            }
        }
    )

    model_name: str
    model_version: str
    label: str | None = None
    index: int | None = None
    score: float | None = None
    predictions: list[dict[str, Any]] | None = None
    indexes: Any = None
    boxes: list[dict[str, Any]] | None = None
    outputs: dict[str, Any] | None = None
    rows: list[dict[str, Any]] | None = None
    timing_ms: Timing


class RequestTensor(_Document):
    """An input with its values, flat or nested, row by row; or ``binary_data_size``."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, Parameter] = {}
    data: list[Any] | None = None


class RequestOutput(_Document):
    """An output that is wanted; ``binary_data: true`` sends it as bytes."""

    name: str
    parameters: dict[str, Parameter] = {}


class InferRequest(_Document):
    """Open Inference Protocol v2; ``timeout`` (parameters) is in microseconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "1",
                "inputs": [
                    {
                        "name": "x", "datatype": "FP32", "shape": [1, 4],
                        "data": [5.1, 3.5, 1.4, 0.2],
                    }
                ],
            }
        }
    )  # fmt: skip

    id: str | None = None
    parameters: dict[str, Parameter] = {}
    inputs: Annotated[list[RequestTensor], Field(min_length=1)]
    outputs: list[RequestOutput] | None = None


class ResponseTensor(_Document):
    """An output; without ``data`` its bytes follow the JSON."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, Parameter] | None = None
    data: list[Any] | None = None


class InferResponse(_Document):
    """The outputs that were asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model_name": "iris",
                "model_version": "1.0.0",
                "id": "1",
                "outputs": [
                    {
                        "name": "y", "datatype": "FP32", "shape": [1, 3],
                        "data": [0.97, 0.02, 0.01],
                    }
                ],
            }
        }
    )  # fmt: skip

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseTensor]


class Live(_Document):
    """The process answers."""

    live: Literal[True]


class Ready(_Document):
    """It can be asked; ``name`` of the model where one was meant."""

    ready: Literal[True]
    name: str | None = None


class SlotContent(_Document):
    """A bundle in a slot."""

    model: str
    version: str
    digest: str
    counter: int


class Device(_Document):
    """What a device has got of its fleet, and how it stands with it.

    A device that is not enrolled says no more than that.
    """

    enrolled: bool
    device: str | None = None
    tenant: str | None = None
    slots: dict[str, SlotContent | None] = {}
    committed: str | None = None
    """The slot that was proven."""
    active: str | None = None
    """The slot that is served; another one than ``committed`` while on trial."""
    phase: str | None = None
    running: dict[str, Any] | None = None
    """As the fleet hears it."""
    attempt: dict[str, Any] | None = None
    """The last update, under way or ended."""
    note: dict[str, Any] | None = None
    """Why the last word of the fleet was not followed."""
    floors: dict[str, Any] | None = None
    """Versions and counters that it goes below never again."""
    spool: dict[str, Any] | None = None
    link: dict[str, Any] | None = None
