"""What every pass promises.

1. It declares the level it takes and the level it gives.
2. ``requires → run → ensures``, always all three, in a final ``__call__``.
3. It never changes the model that came in: a digest before and after shows it.
4. It adds one step to the lineage: its verb, its parameters and what it measured.
5. What leaves it is a :class:`PassError` (or :class:`MachineLacks`) that names the pass
   and what ran before it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from device_agent.contract.tensors import Feeds

from ..errors import MachineLacks, PassError, RecipeError
from ..model import Level, Model
from ..recipes.keys import Place
from ..recipes.verbs import VERBS
from ..training.task import Task


@dataclass(frozen=True)
class Context:
    """What a pass may use besides the model: real samples, the seed, a task.

    ``source`` is the model before anything made it smaller: what distillation learns
    from, and what the accuracy is compared with. ``factory`` makes the module of
    another ``module:factory`` of the recipe's folder, with its weights file or "".
    """

    feeds: tuple[Feeds, ...] = ()
    seed: int = 0
    task: Task | None = None
    source: Model | None = None
    factory: Callable[[str, str], Model] | None = None

    def trained_on(self) -> Task:
        """The task of a pass that trains.

        Raises:
            PassError: the recipe names no training samples.
        """
        if self.task is None:
            raise PassError(
                "it trains, and there are no training samples; name them in the "
                "recipe ([data] train), or set epochs = 0"
            )
        return self.task


class Pass(ABC):
    """One checked step."""

    verb: ClassVar[str]
    takes: ClassVar[Level]
    gives: ClassVar[Level]
    lossy: ClassVar[bool] = False
    """Whether the result is compared with the model before it (prune, distill)."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        place = Place(Path(), [])
        read = VERBS[self.verb].read(dict(parameters), place)
        if place.mistakes:
            raise RecipeError(
                f"pass {self.verb!r}: "
                + "; ".join(f"{one.key}: {one.text}" for one in place.mistakes)
            )
        self.parameters: dict[str, Any] = read

    @final
    def __call__(self, model: Model, context: Context | None = None) -> Model:
        """The model after this pass.

        Raises:
            PassError: it cannot be done or went wrong; names what ran before.
            MachineLacks: a package is missing.
        """
        context = context or Context()
        before = digest(model) if model.level == self.takes else ""
        try:
            self._level(model.level, self.takes, "takes")
            self.requires(model, context)
            after = self.run(model, context)
            self._level(after.level, self.gives, "gives")
            self._unchanged(model, before, after)
            self.ensures(model, after, context)
        except MachineLacks:
            raise
        except Exception as error:
            done = " → ".join(step.verb for step in model.lineage) or "nothing"
            reason = str(error) or type(error).__name__
            raise PassError(
                f"pass {self.verb!r} failed: {reason} (ran before: {done})"
            ) from error
        return after

    def requires(self, model: Model, context: Context) -> None:
        """Refuse, by :class:`PassError`, a model that the pass cannot take."""
        return

    @abstractmethod
    def run(self, model: Model, context: Context) -> Model:
        """Do it; give ``model.after(Step(verb, …), …)`` and leave ``model`` alone."""

    def ensures(self, before: Model, after: Model, context: Context) -> None:
        """Refuse, by :class:`PassError`, a result that is not what was promised."""
        return

    def _level(self, found: Level, wanted: Level, verb: str) -> None:
        if found != wanted:
            raise PassError(f"it {verb} a model of level {wanted}, found {found}")

    def _unchanged(self, model: Model, before: str, after: Model) -> None:
        if digest(model) != before:
            raise PassError("it changed the model that came in")
        steps = after.lineage[len(model.lineage) :]
        if after.lineage[: len(model.lineage)] != model.lineage or [
            step.verb for step in steps
        ] != [self.verb]:
            raise PassError("it did not add exactly its own step to the lineage")


def digest(model: Model) -> str:
    """SHA-256 over everything that makes up the payload."""
    if model.level == "graph":
        data: bytes = model.payload.SerializeToString(deterministic=True)
        return hashlib.sha256(data).hexdigest()
    found = hashlib.sha256(repr(model.payload).encode())
    for name, part in model.payload.named_modules():
        found.update(f"{name} {type(part).__qualname__} {part.training}\n".encode())
    for name, tensor in sorted(model.payload.state_dict(keep_vars=True).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(_content(tensor))
    return found.hexdigest()


def _content(tensor: Any) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw: bytes = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return raw
