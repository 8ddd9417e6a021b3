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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from device_agent.contract.tensors import Feeds

from ..errors import MachineLacks, PassError, RecipeError
from ..model import Level, Model


@dataclass(frozen=True)
class Context:
    """What a pass may use besides the model: real samples and the seed."""

    feeds: tuple[Feeds, ...] = ()
    seed: int = 0


class Pass(ABC):
    """One checked step."""

    verb: ClassVar[str]
    takes: ClassVar[Level]
    gives: ClassVar[Level]
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Every parameter that the pass knows, with its default."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        unknown = sorted(parameters.keys() - self.defaults.keys())
        if unknown:
            raise RecipeError(
                f"pass {self.verb!r} has no parameter {', '.join(unknown)}; "
                f"it knows {', '.join(sorted(self.defaults)) or 'none'}"
            )
        for name, value in parameters.items():
            if not _like(value, self.defaults[name]):
                raise RecipeError(
                    f"pass {self.verb!r}: {name} = {value!r}; expected a value like "
                    f"{self.defaults[name]!r}"
                )
        self.parameters: dict[str, Any] = {**self.defaults, **parameters}

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


def _like(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


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
