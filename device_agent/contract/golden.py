"""Golden vectors: inputs with the outputs expected of this very artifact.

The rules it keeps:

1. An output is right when ``|got - want| <= atol + rtol * |want|`` holds everywhere.
   NaN is never right, not even where NaN was expected; so no golden holds one.
2. Shape and datatype must be equal too.
3. Argmax flips are counted beside it: a tolerance that hides a changed answer shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .errors import BundleError
from .npz import read_tensors, write_tensors
from .tensors import Array, Feeds

FORMAT = 1


class Bound(NamedTuple):
    """Tolerance of one output: ``|got - want| <= atol + rtol * |want|``."""

    atol: float
    rtol: float


@dataclass(frozen=True)
class Golden:
    """Vectors and tolerances, as they were written."""

    inputs: tuple[dict[str, Array], ...]
    outputs: tuple[dict[str, Array], ...]
    tolerances: Mapping[str, Bound]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Difference:
    """One output of one vector against what was expected.

    ``excess`` is the worst ``|got - want|`` in units of what is allowed there: at most
    1 is right. ``max_abs_diff`` is infinite for NaN or a wrong shape or datatype.
    """

    vector: int
    output: str
    max_abs_diff: float
    excess: float
    argmax_flips: int
    found: str = ""
    """What else is wrong: a shape, a datatype, a NaN."""

    @property
    def wrong(self) -> bool:
        """Whether the output is out of tolerance."""
        return not self.excess <= 1.0


@dataclass(frozen=True)
class GoldenReport:
    """All vectors together."""

    vectors: int
    wrong_vectors: tuple[int, ...]
    max_abs_diff: float
    argmax_flips: int
    worst: Difference | None
    """The output farthest out of its tolerance, or nearest to its edge."""

    @property
    def ok(self) -> bool:
        """Whether every vector is right."""
        return not self.wrong_vectors


def write_golden(
    inputs: Sequence[Feeds],
    outputs: Sequence[Mapping[str, Array]],
    tolerances: Mapping[str, tuple[float, float]],
) -> bytes:
    """``golden.npz``: equal vectors give equal bytes.

    ``tolerances`` are (atol, rtol) of each output.

    Raises:
        ValueError: counts differ, an output has no tolerance or a negative one, an
            output holds NaN, or a datatype is not known.
    """
    if len(inputs) != len(outputs) or not inputs:
        raise ValueError(
            f"{len(inputs)} inputs and {len(outputs)} outputs; expected as many, not 0"
        )
    for number, run in enumerate(outputs):
        if set(run) != set(tolerances):
            raise ValueError(
                f"vector {number} has outputs {sorted(run)}; "
                f"tolerances are for {sorted(tolerances)}"
            )
        for name, array in run.items():
            if np.issubdtype(array.dtype, np.inexact) and np.isnan(array).any():
                raise ValueError(f"vector {number}: output {name!r} holds NaN")
    bounds = {
        name: {"atol": float(atol), "rtol": float(rtol)}
        for name, (atol, rtol) in tolerances.items()
    }
    if any(not 0 <= part < np.inf for one in bounds.values() for part in one.values()):
        raise ValueError(f"a tolerance is negative or not finite: {bounds}")
    about = {"format": FORMAT, "tolerances": bounds}
    return write_tensors({"inputs": inputs, "outputs": outputs}, about)


def read_golden(raw: bytes, name: str = "golden.npz") -> Golden:
    """Read golden vectors that nobody vouches for yet; ``name`` is for errors.

    Raises:
        BundleError: damaged, of another format, or parts contradict each other.
    """
    groups, about = read_tensors(raw, name)
    try:
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}; expected {FORMAT}")
        bounds = {
            key: Bound(float(value["atol"]), float(value["rtol"]))
            for key, value in about["tolerances"].items()
        }
        inputs, outputs = groups["inputs"], groups["outputs"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{name} is not a golden file: {error}") from error
    if len(inputs) != len(outputs) or not inputs:
        raise BundleError(f"{name}: {len(inputs)} inputs, {len(outputs)} outputs")
    if any(set(run) != set(bounds) for run in outputs):
        raise BundleError(f"{name}: not every output has a tolerance")
    if any(not 0 <= part < np.inf for bound in bounds.values() for part in bound):
        raise BundleError(f"{name}: a tolerance is negative or not finite")
    return Golden(tuple(inputs), tuple(outputs), bounds)


def compare(
    golden: Golden, vector: int, outputs: Mapping[str, Array]
) -> tuple[Difference, ...]:
    """Every expected output of one vector against what the artifact gave.

    Outputs that were not expected are not looked at.
    """
    return tuple(
        _difference(vector, name, want, outputs.get(name), golden.tolerances[name])
        for name, want in sorted(golden.outputs[vector].items())
    )


def judge(golden: Golden, runs: Sequence[Mapping[str, Array]]) -> GoldenReport:
    """All vectors against all runs; a run that is missing is wrong."""
    found = [
        difference
        for vector in range(len(golden))
        for difference in compare(
            golden, vector, runs[vector] if vector < len(runs) else {}
        )
    ]
    return GoldenReport(
        vectors=len(golden),
        wrong_vectors=tuple(sorted({one.vector for one in found if one.wrong})),
        max_abs_diff=max((one.max_abs_diff for one in found), default=0.0),
        argmax_flips=sum(one.argmax_flips for one in found),
        worst=max(found, key=lambda one: one.excess, default=None),
    )


def argmax_flips(want: Array, got: Array) -> int:
    """How many rows (last axis) have their largest value elsewhere."""
    if want.ndim == 0 or want.shape != got.shape or want.shape[-1] < 2 or not want.size:
        return 0
    return int(np.count_nonzero(want.argmax(-1) != got.argmax(-1)))


def _difference(
    vector: int, name: str, want: Array, got: Array | None, bound: Bound
) -> Difference:
    def lost(found: str) -> Difference:
        return Difference(vector, name, np.inf, np.inf, 0, found)

    if got is None:
        return lost("the output is missing")
    if got.shape != want.shape:
        return lost(f"shape {list(got.shape)}, expected {list(want.shape)}")
    if got.dtype != want.dtype:
        return lost(f"datatype {got.dtype}, expected {want.dtype}")
    wide_got, wide_want = got.astype(np.float64), want.astype(np.float64)
    if np.isnan(wide_got).any() or np.isnan(wide_want).any():
        return lost("NaN")
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.where(got == want, 0.0, np.abs(wide_got - wide_want))
        allowed = bound.atol + bound.rtol * np.abs(wide_want)
        # an infinity is right only where the same infinity was expected
        excess = np.where(
            apart == 0, 0.0, np.where(np.isinf(apart), np.inf, apart / allowed)
        )
    return Difference(
        vector, name, float(apart.max(initial=0.0)), float(excess.max(initial=0.0)),
        argmax_flips(want, got),
    )  # fmt: skip
