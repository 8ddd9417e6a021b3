"""The user's own loss and augmentation: ``module:function`` of the recipe's folder.

1. What they raise becomes a :class:`PassError` of one line that names them.
2. What they give is looked at: a loss is one number that depends on the weights, and
   augmented inputs keep names and shapes.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PassError, one_line
from ..intake.modules import importable, torch_here
from .batches import Augment, Batch

if TYPE_CHECKING:
    from torch import Generator, Tensor


def hook(source: str, folder: Path, what: str) -> Callable[..., Any]:
    """The function ``module:name``, looked up in ``folder`` first.

    Raises:
        PassError: there is none, or importing it raised.
    """
    module, _, name = source.partition(":")
    try:
        with importable(folder, module):
            found = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:
        raise PassError(
            one_line(
                f"{what} {source} cannot be loaded: {type(error).__name__}: {error}"
            )
        ) from error
    if not callable(found):
        raise PassError(f"{what} {source} is a {type(found).__name__}, no function")
    called: Callable[..., Any] = found
    return called


def own_loss(
    source: str, folder: Path
) -> "Callable[[dict[str, Tensor], Batch], Tensor]":
    """The user's ``f(outputs, labels) -> tensor`` as a loss of the loop.

    Raises:
        PassError: it cannot be loaded; when called: it raised, or gave no number.
    """
    function = hook(source, folder, "loss")

    def loss(outputs: "dict[str, Tensor]", batch: Batch) -> "Tensor":
        found = _called(function, f"loss {source}", outputs, batch.labels)
        if not isinstance(found, torch_here().Tensor) or found.numel() != 1:
            raise PassError(
                f"loss {source} gave {_told(found)}; expected a tensor of one number"
            )
        if not found.requires_grad:
            raise PassError(
                f"loss {source} gave a number that does not depend on the weights; "
                "compute it from the outputs with torch, without detach or numpy"
            )
        return found.reshape(())

    return loss


def augmentation(parameters: Mapping[str, Any], folder: Path) -> Augment | None:
    """The parameter ``augment`` of a pass, ready to be used; None where it is empty.

    Raises:
        PassError: it cannot be loaded; when called: it raised, or changed the shapes.
    """
    source = parameters["augment"]
    if not source:
        return None
    function = hook(source, folder, "augment")

    def augment(
        inputs: "dict[str, Tensor]", generator: "Generator"
    ) -> "dict[str, Tensor]":
        wanted = {name: tuple(one.shape) for name, one in inputs.items()}
        given = _called(function, f"augment {source}", dict(inputs), generator)
        if not isinstance(given, Mapping):
            raise PassError(
                f"augment {source} gave {_told(given)}; expected the inputs by name"
            )
        found = {name: tuple(getattr(one, "shape", ())) for name, one in given.items()}
        if found != wanted:
            raise PassError(
                f"augment {source} gave the shapes {found}; expected {wanted}"
            )
        return {name: one.float() for name, one in given.items()}

    return augment


def _called(function: Callable[..., Any], what: str, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise PassError(
            one_line(f"{what} raised {type(error).__name__}: {error}")
        ) from error


def _told(value: Any) -> str:
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return f"a {kind}" if shape is None else f"a {kind} of shape {list(shape)}"
