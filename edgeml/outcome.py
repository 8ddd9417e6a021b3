"""What a build found out: one record per candidate, per target and for the build.

These records are what ``report.json`` holds, what the gates read and what the
manifest's figures come from.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from device_agent.runtimes.base import Coverage

from .candidate import LayerError

Status = Literal["chosen", "fits", "missed", "slower", "skipped", "failed"]


@dataclass(frozen=True)
class Flip:
    """A validation sample whose answer changed: what float said, what this says."""

    sample: str
    label: Any
    before: Any
    after: Any


@dataclass(frozen=True)
class Evaluation:
    """One artifact on the validation data.

    ``metrics`` holds the recipe's metric first, then what goes with it. ``flips`` are
    examples, at most 32. ``confusion`` is [label][answer], classification only.
    """

    metrics: dict[str, float]
    samples: int
    samples_digest: str
    slices: dict[str, dict[str, float]] = field(default_factory=dict)
    slice_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    flip_rate: float | None = None
    flips: tuple[Flip, ...] = ()
    ece: float | None = None
    confusion: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference at batch 1; ``float_p50_ms`` measured in turn."""

    p50_ms: float
    p99_ms: float
    float_p50_ms: float
    threads: int
    machine: str
    runs: int
    histogram_ms: tuple[float, ...] = ()
    """Quantiles 0, 5, … 100 % of the single runs."""


@dataclass(frozen=True)
class Miss:
    """A limit that was missed, and who is guilty (layers or slices)."""

    limit: str
    allowed: float
    measured: float | None
    """None: it could not be measured, which misses the limit too."""
    guilty: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The miss in words."""
        blame = f" ({', '.join(self.guilty)})" if self.guilty else ""
        allowed, measured = self._amount(self.allowed), self._amount(self.measured)
        return f"{self.limit} {allowed}, measured {measured}{blame}"

    def _amount(self, value: float | None) -> str:
        if value is None:
            return "not at all"
        return f"{int(value):,}" if self.limit.endswith("_bytes") else f"{value:.4g}"


@dataclass(frozen=True)
class Candidate:
    """One way to make the artifact, tried or skipped, and what came of it."""

    name: str
    precision: str
    status: Status
    reason: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    kept_layers: tuple[str, ...] = ()
    artifact_sha256: str = ""
    size_bytes: int = 0
    proxy_sqnr_db: float | None = None
    evaluation: Evaluation | None = None
    latency: Latency | None = None
    peak_memory_bytes: int | None = None
    load_ms: float | None = None
    coverage: Coverage | None = None
    layer_errors: tuple[LayerError, ...] = ()
    misses: tuple[Miss, ...] = ()


Tried = Literal["chosen", "fits", "missed", "refuted", "pruned", "failed"]
"""What became of a point: ``refuted`` held the budget on the search's samples and not
on all, ``pruned`` was given up before everything about it was measured."""


@dataclass(frozen=True)
class SearchTrial:
    """One point of a search and what was found out of it; None: not measured.

    Figures of accuracy are on the search's samples. ``predicted_`` ones are bounds from
    the untrained network: better ones are not to be expected.
    """

    number: int
    name: str
    point: dict[str, Any]
    status: Tried
    reason: str = ""
    candidate: str = ""
    """The artifact that stands for the point."""
    precision: str = ""
    kept_layers: tuple[str, ...] = ()
    """Nodes that the point leaves in float."""
    value: float | None = None
    """The recipe's metric."""
    flip_rate: float | None = None
    latency_ms: float | None = None
    float_latency_ms: float | None = None
    """Of the same network in float32, measured in turn."""
    size_bytes: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one inference."""
    predicted_latency_ms: float | None = None
    predicted_size_bytes: int | None = None
    misses: tuple[Miss, ...] = ()
    front: bool = False
    """Whether no other is as good in metric, latency and size and better in one."""


@dataclass(frozen=True)
class SearchOutcome:
    """A search for one target, in the order of its trials."""

    trials: tuple[SearchTrial, ...]
    space: dict[str, list[Any]]
    """Axis → values."""
    points: int
    """Of the whole space."""
    samples: int
    """Validation samples that trials are judged on, drawn from all."""
    samples_digest: str
    float_value: float
    """The float model's metric on them."""
    chosen: int | None = None
    """Number of the trial whose recipe ships, validated on all samples."""
    worst_value: float | None = None
    """The worst metric that the budget allows on the search's samples."""


@dataclass(frozen=True)
class TargetOutcome:
    """What became of one target: a bundle, or the reasons why not."""

    target: str
    runtime: str
    candidates: tuple[Candidate, ...] = ()
    chosen: str | None = None
    choice_reason: str = ""
    refusals: tuple[str, ...] = ()
    bundle_file: str | None = None
    bundle_sha256: str | None = None
    bundle_bytes: int | None = None
    artifact_entry: str | None = None
    threads: int = 1
    validated_on: str = ""
    """What ran the artifacts in place of the target's own device; empty: that device,
    or a machine of its kind."""
    unchecked: tuple[str, ...] = ()
    """Limits of the budget that nothing on this machine could tell anything of."""
    search: SearchOutcome | None = None
    check: dict[str, Any] | None = None
    """What the device's own check said of the bundle, where it was asked for."""


@dataclass(frozen=True)
class BuildOutcome:
    """The whole build."""

    name: str
    version: str
    recipe_sha256: str
    model_summary: dict[str, Any]
    metric: str
    better: str
    oracle: Evaluation
    export_error: float
    calibration: dict[str, Any]
    """samples, sampler, seed, digest, coverage (share of classes, value ranges)."""
    budget: dict[str, Any]
    tools: dict[str, str]
    machine: dict[str, Any]
    labels: tuple[str, ...] = ()
    targets: tuple[TargetOutcome, ...] = ()
    reproduce: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What a person must know before trusting any figure."""
