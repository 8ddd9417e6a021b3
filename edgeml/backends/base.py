"""What every backend promises.

1. ``refusals`` gives every reason why this model cannot go to this target; an empty
   list means yes.
2. ``specs`` lists the candidates worth trying, cheapest to make first; it includes
   the float32 one (always first) and the defaults of the tools we compare with.
3. ``lower`` is deterministic: the same inputs give the same bytes, in any process.
4. Nothing changes the model that came in.
5. Every option of the recipe's ``[quantize]`` table reaches a tool, or becomes a
   candidate that fails with the reason; none is dropped in silence.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from device_agent.contract.manifest import Option
from device_agent.contract.tensors import Feeds
from device_agent.runtimes import runtime
from device_agent.runtimes.base import Session
from targets.profile import Target

from ..candidate import Artifact, LayerError, QuantizeOptions, Spec
from ..errors import BackendError
from ..model import Model

CEILING_DB = 60.0
"""Above this a signal counts as exact: 8 bits cannot do better than about 50."""


@dataclass(frozen=True)
class Host:
    """How this machine runs artifacts of a target.

    ``validated_on`` says what runs them in place of the target's own device; empty:
    that device is here. ``timed``: whether latency, memory and coverage found here say
    anything of the target.
    """

    validated_on: str = ""
    timed: bool = True


@dataclass(frozen=True)
class Base:
    """What QAT began from: a candidate, and what that was made of."""

    model: Model
    spec: Spec
    calibration: Sequence[Feeds]


class Backend(ABC):
    """Makes artifacts for the runtime of the same name."""

    name: ClassVar[str]

    def host(self, target: Target) -> Host:
        """Whether the target's device is here, or what stands in for it."""
        return Host()

    def host_options(
        self, target: Target, options: Mapping[str, Option]
    ) -> dict[str, Option]:
        """Runtime options of an artifact as this machine can run it."""
        return dict(options)

    def oldest(self, target: Target) -> str | None:
        """From which version of the runtime on it was seen to work; None: this one."""
        return None

    @abstractmethod
    def refusals(self, model: Model, target: Target) -> list[str]:
        """Every reason why ``model`` (level graph) cannot be built for ``target``."""

    @abstractmethod
    def specs(
        self, model: Model, target: Target, options: QuantizeOptions
    ) -> list[Spec]:
        """The candidates to try for this model, target and recipe."""

    @abstractmethod
    def lower(
        self, model: Model, target: Target, spec: Spec, calibration: Sequence[Feeds]
    ) -> Artifact:
        """Make one candidate.

        Raises:
            BackendError: the tool failed; the text says which and why.
        """

    @abstractmethod
    def layer_errors(
        self, model: Model, artifact: Artifact, feeds: Sequence[Feeds]
    ) -> list[LayerError]:
        """Error of each quantized layer over ``feeds``, worst ``added_db`` first.

        Empty for artifacts without quantized layers.
        """

    def opened(
        self, path: Path, target: Target, options: Mapping[str, Option]
    ) -> Session:
        """An artifact in what answers for the target's runtime on this machine.

        Raises:
            DeviceError, BackendError: it refuses the artifact.
        """
        return runtime(target.runtime).load(path, options)

    def trainable(
        self,
        model: Model,
        target: Target,
        spec: Spec,
        artifact: Artifact,
        calibration: Sequence[Feeds],
    ) -> Any | None:
        """The quantized graph (QDQ) behind a candidate, for QAT; None: there is none.

        Raises:
            BackendError: the tool that makes it failed.
        """
        return None

    def retrained(
        self, model: Model, target: Target, spec: Spec, base: Base
    ) -> Artifact:
        """The artifact of such a graph, after QAT.

        Args:
            model: :meth:`trainable`'s graph with what was learned.
            target: whom it is for.
            spec: the candidate to be made.
            base: the one whose graph was trained.

        Raises:
            BackendError: the graph is refused.
        """
        raise BackendError(f"{self.name} has no quantized graphs to train")


def unmet(
    options: QuantizeOptions,
    target: Target,
    tools: Mapping[str, Sequence[str]],
    unasked: Sequence[str],
) -> list[Spec]:
    """What the recipe asks for by name and no tool of a backend does, as refusals.

    Args:
        options: the recipe's ``[quantize]`` table.
        target: has the precisions.
        tools: all quantizers of the backend, with the calibration methods of each.
        unasked: those that it takes when the recipe names none.
    """
    backend = f"{target.name} ({target.runtime})"
    found = [
        Spec(one, one, refused=f"{backend} has {', '.join(target.precisions)}")
        for one in options.precisions
        if one not in target.precisions
    ]
    known = ", ".join(tools)
    used = options.quantizers or unasked
    for one in options.quantizers:
        if one not in tools:
            why = f"{backend} is quantized for with {known}"
        elif (
            options.methods
            and tools[one]
            and not set(options.methods) & set(tools[one])
        ):
            why = f"its calibration methods are {', '.join(tools[one])}"
        else:
            continue
        found.append(Spec(f"int8 {one}", "int8", one, refused=why))
    for method in options.methods:
        able = [one for one in tools if method in tools[one]]
        if not set(able) & set(used):
            why = f"{method} is a method of {', '.join(able) or 'none'} of {known}"
            found.append(Spec(f"int8 {method}", "int8", refused=why))
    return found


def decibels(signal: float, noise: float) -> float:
    """Signal to noise ratio of two powers in dB, from -CEILING_DB to CEILING_DB."""
    if noise == 0:
        return CEILING_DB
    if signal == 0:
        return -CEILING_DB
    ratio = 10 * math.log10(signal / noise)
    return min(max(ratio, -CEILING_DB), CEILING_DB)
