"""The manifest: what a bundle says of itself.

The rules it keeps:

1. ``format`` is 1; another value is refused by name.
2. Unknown fields are ignored, so that a newer host can say more.
3. Every member of the bundle but the manifest itself is listed once, with size and
   digest.
4. Its canonical JSON (sorted keys, no spaces, UTF-8) is what digests are taken of.
"""

import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from .document import read_document
from .errors import ManifestError
from .tensors import TensorSpec

FORMAT: Final = 1
MANIFEST_BYTES_MAX = 1 << 20

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Role = Literal["artifact", "baseline", "golden", "labels", "card", "provenance", "sbom"]
Option = bool | int | float | str


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RuntimeSpec(_Part):
    """Which runtime loads the artifact, from which version on, with which options."""

    name: Name
    min_version: str
    options: dict[str, Option] = {}


class Isa(_Part):
    """The instruction set that the artifact was validated for and needs."""

    arch: str
    requires: tuple[str, ...] = ()
    """Each item is one CPU feature, or alternatives joined by ``|``."""


class Limits(_Part):
    """What the device may expect at most; 0 means not stated."""

    max_batch: Annotated[int, Field(ge=1)] = 1
    latency_ms: Annotated[float, Field(ge=0)] = 0.0
    peak_memory_bytes: Annotated[int, Field(ge=0)] = 0


class Score(_Part):
    """A metric's value for this artifact and for the float model it came from."""

    name: str
    value: float
    float_value: float
    samples: Annotated[int, Field(ge=1)]
    samples_digest: Digest
    better: Literal["higher", "lower"] = "higher"


class LatencyFigure(_Part):
    """Latency of one inference at batch 1, and where it was measured."""

    p50_ms: float
    p99_ms: float
    threads: int
    machine: str


class Metrics(_Part):
    """What was measured of this very artifact on the validation data."""

    accuracy: Score
    slices: dict[str, dict[str, float]] = {}
    flip_rate: float | None = None
    ece: float | None = None
    size_bytes: int
    latency: LatencyFigure | None = None
    """None: the build had no device of this kind to time it on."""


class CalibrationSet(_Part):
    """Which samples the quantizer saw."""

    samples: int
    sampler: str
    seed: int
    digest: Digest


class Member(_Part):
    """One file in the bundle."""

    path: Annotated[str, Field(min_length=1, max_length=200)]
    size: Annotated[int, Field(ge=0)]
    sha256: Digest
    role: Role


class Manifest(_Part):
    """Everything a device needs to know before it touches the artifact."""

    format: Literal[1] = FORMAT
    name: Name
    version: Version
    release_counter: Annotated[int, Field(ge=0)] = 0
    target: Name
    compatible: tuple[str, ...]
    runtime: RuntimeSpec
    artifact: str
    """Path of the member that the runtime opens."""
    precision: str
    isa: Isa
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    preprocess: tuple[dict[str, Any], ...] = ()
    preprocess_input: str | None = None
    """The input that ``preprocess`` makes; None: the first."""
    postprocess: tuple[dict[str, Any], ...] = ()
    limits: Limits = Limits()
    metrics: Metrics
    calibration: CalibrationSet | None = None
    members: tuple[Member, ...]

    def canonical(self) -> bytes:
        """The manifest as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys, no spaces, no NaN: equal values give equal bytes.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False,
        allow_nan=False,
    ).encode()  # fmt: skip


def parse_manifest(raw: bytes) -> Manifest:
    """Read a manifest that nobody vouches for yet.

    Raises:
        ManifestError: too large, not JSON, an unknown format, or a field is wrong;
            the text names the first wrong fields.
    """
    return read_document(
        raw, Manifest, what="manifest.json", version=("format", FORMAT),
        bytes_max=MANIFEST_BYTES_MAX, error=ManifestError,
    )  # fmt: skip
