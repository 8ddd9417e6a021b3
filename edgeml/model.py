"""A model on its way to an artifact: its level, its payload and where it came from."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from device_agent.contract.tensors import TensorSpec

Level = Literal["module", "graph"]


@dataclass(frozen=True)
class Step:
    """One thing that was done to the model: the verb and its parameters."""

    verb: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model at one level.

    ``payload`` is a ``torch.nn.Module`` at level ``module`` and an
    ``onnx.ModelProto`` at level ``graph``. Nobody changes a payload in place.
    ``inputs`` and ``outputs`` include the batch dimension; -1 is variable.
    """

    level: Level
    payload: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lineage: tuple[Step, ...] = ()
    origin: Callable[[], "Model"] | None = field(
        default=None, compare=False, repr=False
    )
    """Makes the module-level model again, for tools that work there."""

    def after(self, step: Step, **changes: Any) -> "Model":
        """The model after ``step``, with the step in its lineage."""
        return replace(self, lineage=(*self.lineage, step), **changes)
