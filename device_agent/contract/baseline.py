"""The baseline: what reference data looks like, through the artifact that ships.

Drift is measured against it. The rules it keeps:

1. Signals are computed by :mod:`.signals`, on the device as when it was made.
2. Bin edges are frozen: bin ``i`` holds ``edges[i - 1] <= x < edges[i]``, the first
   and the last are open, so histograms of all devices merge exactly.
3. ``format`` is 1; another value is refused by name. Unknown fields are ignored.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .document import read_document
from .errors import BundleError
from .signals import SIGNALS_MAX, InputView, Kind

FORMAT: Literal[1] = 1
BASELINE_BYTES_MAX = 32 << 20
BINS_MAX = 32
SAMPLE_MAX = 2000
"""Values of the reference sample of one signal."""
CLASSES_MAX = 10_000

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Signal(_Part):
    """One signal of the reference data: its histogram and a sample of its values.

    The values of all signals are of the same inferences, in the same order.
    """

    name: Annotated[str, Field(min_length=1, max_length=600)]
    mean: Number
    std: Annotated[Number, Field(ge=0)]
    min: Number
    max: Number
    edges: Annotated[tuple[Number, ...], Field(max_length=BINS_MAX - 1)]
    counts: Annotated[tuple[Count, ...], Field(max_length=BINS_MAX)]
    sample: Annotated[tuple[Number, ...], Field(max_length=SAMPLE_MAX)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(
                f"{len(self.edges)} edges make {len(self.edges) + 1} bins; "
                f"found {len(self.counts)} counts"
            )
        if any(b <= a for a, b in pairwise(self.edges)):
            raise ValueError("edges must grow")
        return self


class CalibrationMap(_Part):
    """Confidence → share of right answers: straight lines between points, flat outside.

    Both grow.
    """

    confidence: Annotated[tuple[Share, ...], Field(min_length=1, max_length=100_000)]
    accuracy: Annotated[tuple[Share, ...], Field(min_length=1, max_length=100_000)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.confidence) != len(self.accuracy):
            raise ValueError("as many confidences as accuracies are needed")
        for values in (self.confidence, self.accuracy):
            if any(b < a for a, b in pairwise(values)):
                raise ValueError("the map must grow")
        return self


class Baseline(_Part):
    """The baseline file of a bundle."""

    format: Literal[1] = FORMAT
    samples: Annotated[int, Field(ge=1)]
    output: str
    """The model output that the answer signals are of."""
    kind: Kind
    inputs: tuple[InputView, ...]
    signals: Annotated[tuple[Signal, ...], Field(max_length=SIGNALS_MAX)]
    class_counts: Annotated[tuple[Count, ...], Field(max_length=CLASSES_MAX)] = ()
    """How often each class was the answer; empty where there are no classes."""
    calibration: CalibrationMap | None = None
    accuracy: Share | None = None
    """Share of right answers in the reference data, which the map expects too."""


def parse_baseline(raw: bytes) -> Baseline:
    """Read a baseline that nobody vouches for yet.

    Raises:
        BundleError: too large, not JSON, an unknown format, or a field is wrong.
    """
    return read_document(
        raw, Baseline, what="the baseline", version=("format", FORMAT),
        bytes_max=BASELINE_BYTES_MAX, error=BundleError,
    )  # fmt: skip
