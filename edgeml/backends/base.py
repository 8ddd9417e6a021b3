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

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from device_agent.contract.manifest import Option
from device_agent.contract.tensors import Feeds
from targets.profile import Target

from ..errors import BackendError
from ..model import Model


@dataclass(frozen=True)
class Spec:
    """How to make one candidate.

    ``name`` is what people read (``int8 ort minmax u8s8``); ``parameters`` reach the
    quantizer as they are; ``keep`` names the graph nodes left in float.
    """

    name: str
    precision: str
    """``fp32``, ``fp16``, ``int8``, ``int8-dynamic`` or ``mixed``."""
    quantizer: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    ships: bool = True
    """False: made to be compared with; it can saturate on a host the target allows."""
    refused: str = ""
    """Why what the recipe asks for cannot be made; ``lower`` fails with it."""

    def check(self) -> None:
        """Nothing, or the refusal.

        Raises:
            BackendError: the recipe asks for what this backend cannot make.
        """
        if self.refused:
            raise BackendError(f"{self.name}: {self.refused}")


@dataclass(frozen=True)
class Artifact:
    """What a runtime loads: files by relative name, and the one to open."""

    runtime: str
    entry: str
    files: dict[str, bytes]
    options: dict[str, Option] = field(default_factory=dict)
    """Runtime options for this artifact, over those of the target."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))

    @property
    def digest(self) -> str:
        """SHA-256 over names and bytes of all files."""
        digest = hashlib.sha256()
        for name, data in sorted(self.files.items()):
            digest.update(f"{name}\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()


@dataclass(frozen=True)
class LayerError:
    """How far one layer's output is from the float model's.

    ``sqnr_db`` is the signal to quantization noise ratio in decibels (higher is
    better); ``added_db`` is the error that this layer itself adds, in decibels below
    the backend's ceiling (higher is worse): what came from before does not count.
    """

    node: str
    op: str
    sqnr_db: float
    added_db: float


class Backend(ABC):
    """Makes artifacts for the runtime of the same name."""

    name: ClassVar[str]

    @abstractmethod
    def refusals(self, model: Model, target: Target) -> list[str]:
        """Every reason why ``model`` (level graph) cannot be built for ``target``."""

    @abstractmethod
    def specs(
        self, model: Model, target: Target, options: "QuantizeOptions"
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


@dataclass(frozen=True)
class QuantizeOptions:
    """The recipe's ``[quantize]`` table; every option reaches the tools.

    Empty tuples mean: whatever the backend and the target can do.
    """

    precisions: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    """Calibration methods: ``minmax``, ``entropy``, ``percentile``."""
    quantizers: tuple[str, ...] = ()
    """``ort``, ``nncf``, ``inc``."""
    keep: tuple[str, ...] = ()
    """Nodes that stay in float in every candidate."""
    mixed: bool = True
    """Whether sensitive layers are tried in float before giving up."""
    percentile: float = 99.99
    per_channel: bool = True


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
        elif options.methods and not set(options.methods) & set(tools[one]):
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
