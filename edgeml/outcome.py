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
