"""The shape of ``report.json``, schema 1: every field, its type and its meaning.

Readers ignore fields they do not know; ``schema`` changes only when a field changes
its meaning or goes away. ``docs/report.md`` is written from these classes.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
AnyDigest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class Flip(_Part):
    """One sample whose answer changed."""

    sample: str = Field(description="identifier of the validation sample")
    label: Any = Field(description="what is true")
    before: Any = Field(description="what the float model answers")
    after: Any = Field(description="what this artifact answers")


class Interval(_Part):
    """95 % interval of the change against float."""

    low: float = Field(description="lower end, in the metric's unit")
    high: float = Field(description="upper end")
    method: str = Field(description="how it was computed")


class Metric(_Part):
    """One metric of the shipped artifact, with what is needed to recompute it."""

    value: float | None = Field(description="of this artifact")
    float_value: float | None = Field(alias="float", description="of the float model")
    samples: Count = Field(description="validation samples it is over")
    samples_digest: str = Field(description="digest of these samples, in order")
    interval: Interval | None = Field(
        description="95 % interval of the change; null where none is known"
    )


class Evaluation(_Part):
    """One model on the validation data."""

    metrics: dict[str, float | None] = Field(description="metric → value")
    samples: Count = Field(description="validation samples")
    samples_digest: str = Field(description="digest of these samples, in order")
    slices: dict[str, dict[str, float | None]] = Field(
        description="column → value → the recipe's metric on those samples"
    )
    slice_counts: dict[str, dict[str, int]] = Field(
        description="column → value → samples"
    )
    flip_rate: float | None = Field(description="share of answers that float gave not")
    flips: list[Flip] = Field(description="examples, at most 32")
    ece: float | None = Field(description="expected calibration error")
    confusion: list[list[int]] = Field(description="[label][answer] → samples")


class Latency(_Part):
    """One inference at batch 1."""

    p50_ms: float = Field(description="median, milliseconds")
    p99_ms: float = Field(description="99th percentile, milliseconds")
    float_p50_ms: float = Field(description="float32 median, measured in turn")
    threads: int = Field(description="threads of the runtime")
    machine: str = Field(description="where it was measured")
    runs: int = Field(description="inferences that were timed")
    histogram_ms: list[float] = Field(description="quantiles 0, 5, … 100 %")


class LayerError(_Part):
    """How far one quantized layer is from float."""

    node: str = Field(description="name in the graph")
    op: str = Field(description="operator")
    sqnr_db: float | None = Field(
        description="signal to quantization noise, decibels; null: no noise at all"
    )
    added_db: float | None = Field(description="how much worse than its own inputs")


class Miss(_Part):
    """A limit that was missed."""

    limit: str = Field(description="name of the limit")
    allowed: float = Field(description="what the recipe allows")
    measured: float | None = Field(description="null: it could not be measured")
    guilty: list[str] = Field(description="layers or slices")


class Coverage(_Part):
    """Which operators the wanted device runs itself."""

    nodes: Count = Field(description="nodes in the graph")
    fallback: list[str] = Field(description="nodes that run elsewhere")
    providers: list[str] = Field(description="who runs them")


class Candidate(_Part):
    """One way to make the artifact."""

    name: str = Field(description="what people call it")
    precision: str = Field(description="fp32, fp16, int8, int8-dynamic, int4 or mixed")
    status: Literal["chosen", "fits", "missed", "slower", "skipped", "failed"] = Field(
        description="what came of it"
    )
    reason: str = Field(description="why it is not shipped")
    parameters: dict[str, Any] = Field(description="what reached the quantizer")
    kept_layers: list[str] = Field(description="graph nodes left in float")
    artifact_sha256: AnyDigest = Field(description="empty: no artifact was made")
    size_bytes: Count = Field(description="all files of the artifact")
    proxy_sqnr_db: float | None = Field(description="error on the calibration set")
    evaluation: Evaluation | None = Field(description="null: not evaluated")
    latency: Latency | None = Field(description="null: not timed")
    peak_memory_bytes: int | None = Field(description="peak of a fresh process")
    load_ms: float | None = Field(description="time to load, milliseconds")
    coverage: Coverage | None = Field(description="null: not asked")
    layer_errors: list[LayerError] = Field(description="worst first")
    misses: list[Miss] = Field(description="limits that were missed")


class Refused(_Part):
    """A candidate that is not shipped, and why."""

    candidate: str = Field(description="its name")
    status: str = Field(description="as in candidates")
    reason: str = Field(description="in words")


class Bundle(_Part):
    """The file that was written."""

    file: str = Field(description="beside the report")
    sha256: Sha256 | None = Field(description="of the whole file")
    size_bytes: int | None = Field(description="of the whole file")


class Artifact(_Part):
    """What the runtime opens, as ``edgeml unpack`` writes it."""

    file: str = Field(description="path inside the bundle")
    sha256: AnyDigest = Field(description="of the artifact's files")
    precision: str = Field(description="as in candidates")


class Trial(_Part):
    """One point of a search; figures are on the search's samples."""

    number: Count = Field(description="in the order of trials, from 0")
    name: str = Field(description="the point in words")
    point: dict[str, Any] = Field(
        description="axis → value; null: as the recipe's own passes have it"
    )
    status: Literal["chosen", "fits", "missed", "refuted", "pruned", "failed"] = Field(
        description="what came of it; refuted: missed the budget on all samples"
    )
    reason: str = Field(description="why it is not shipped")
    candidate: str = Field(description="the artifact that stands for it")
    precision: str = Field(description="as in candidates")
    kept_layers: list[str] = Field(description="graph nodes left in float")
    value: float | None = Field(description="the recipe's metric; null: not measured")
    flip_rate: float | None = Field(description="share of changed answers")
    latency_ms: float | None = Field(description="median; null: not measured")
    float_latency_ms: float | None = Field(
        description="of the same network in float32, measured in turn"
    )
    size_bytes: int | None = Field(description="of the artifact; null: not made")
    macs: int | None = Field(description="multiply-accumulates of one inference")
    predicted_latency_ms: float | None = Field(
        description="lower bound from the untrained network"
    )
    predicted_size_bytes: int | None = Field(
        description="lower bound from the untrained network"
    )
    misses: list[Miss] = Field(description="limits that were missed")
    front: bool = Field(
        description="whether no other is as good in all and better in one"
    )


class Search(_Part):
    """A search for the best variation of the recipe."""

    trials: list[Trial] = Field(description="in their order")
    space: dict[str, list[Any]] = Field(description="axis → values")
    points: Count = Field(description="points of the whole space")
    samples: Count = Field(description="validation samples that trials are judged on")
    samples_digest: str = Field(description="digest of these samples, in order")
    float_value: float | None = Field(description="the float model's metric on them")
    chosen: int | None = Field(description="number of the trial that ships")
    worst_value: float | None = Field(description="worst metric that is allowed there")


class Target(_Part):
    """What became of one target; figures are those of the chosen candidate."""

    target: str = Field(description="name of the profile")
    runtime: str = Field(description="runtime that measured it and will run it")
    threads: int = Field(description="threads of the profile")
    validated_on: str = Field(
        default="",
        description="what ran the artifacts in place of the target's own device; "
        "empty: that device, or a machine of its kind",
    )
    unchecked: list[str] = Field(
        default_factory=list,
        description="limits that nothing on the build machine could tell anything of",
    )
    chosen: str | None = Field(description="chosen candidate; null: nothing ships")
    choice_reason: str = Field(description="why this one, in words")
    refusals: list[str] = Field(description="why nothing ships")
    bundle: Bundle | None = Field(description="null: nothing ships")
    check: dict[str, Any] | None = Field(
        default=None,
        description="report of the device's own check, as edgeml check --json prints "
        "it; null: it was not asked for",
    )
    artifact: Artifact | None = Field(description="null: nothing ships")
    metrics: dict[str, Metric] = Field(description="metric → value and origin")
    slices: dict[str, dict[str, float | None]] = Field(
        description="column → value → the recipe's metric"
    )
    flip_rate: float | None = Field(description="share of changed answers")
    flips: list[Flip] = Field(description="examples, at most 32")
    latency: Latency | None = Field(description="at batch 1")
    memory_bytes: int | None = Field(description="peak of a fresh process")
    size_bytes: int | None = Field(description="all files of the artifact")
    refused: list[Refused] = Field(description="candidates that are not shipped")
    candidates: list[Candidate] = Field(description="all that was considered")
    search: Search | None = Field(
        default=None, description="null: the recipe was built as it is"
    )


class Report(_Part):
    """``report.json``."""

    schema_: Literal[1] = Field(alias="schema", description="this shape: 1")
    name: str = Field(description="name of the model")
    version: str = Field(description="version of the release")
    recipe_sha256: str = Field(description="digest of the recipe")
    model: dict[str, Any] = Field(description="facts about the model that came in")
    metric: str = Field(description="the recipe's metric")
    better: Literal["higher", "lower"] = Field(description="which way is better")
    oracle: Evaluation = Field(description="the float model, before any target")
    export_error: float | None = Field(
        description="largest difference between the model and its exported graph"
    )
    calibration: dict[str, Any] = Field(description="samples the quantizer saw")
    budget: dict[str, Any] = Field(description="limit → allowed; null: no limit")
    tools: dict[str, str] = Field(description="tool → version")
    machine: dict[str, Any] = Field(description="build machine")
    labels: list[str] = Field(description="class names by number")
    reproduce: list[str] = Field(description="commands that make this report again")
    warnings: list[str] = Field(
        default=[], description="what to know before trusting any figure"
    )
    targets: list[Target] = Field(description="one per target, in recipe order")


def fields(
    part: type[BaseModel] = Report, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Every field of the report as (path, meaning), in order.

    ``[]`` stands for any item of a list, ``{}`` for any key of a mapping.
    """
    for name, field in part.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path, field.description or ""
        for mark, inner in _inner(field.annotation):
            yield from fields(inner, f"{path}{mark}.")


def _inner(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
        return
    origin = getattr(annotation, "__origin__", None)
    mark = {list: "[]", dict: "{}"}.get(origin, "") if origin else ""
    for argument in get_args(annotation):
        for inner_mark, inner in _inner(argument):
            yield mark + inner_mark, inner
