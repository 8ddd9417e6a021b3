"""What every runtime promises.

1. ``load`` raises :class:`ArtifactError` and nothing else for a bad artifact, and
   :class:`MachineError` when this machine lacks something.
2. A session's ``inputs`` and ``outputs`` are as the artifact declares them.
3. ``predict`` takes arrays of the declared datatypes, the batch dimension included,
   and returns every output; the same feeds give the same bytes.
4. Options come from the target profile; an unknown option is an error, not a shrug.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..contract.errors import ArtifactError
from ..contract.manifest import Option
from ..contract.tensors import Array, Feeds, TensorSpec

ENGINE_CACHE = "engine_cache"
"""The option that says where a runtime keeps what it compiled on this very machine.

A bundle says ``""`` (nowhere) or ``"device"``: the device chooses the folder
(:func:`placed`). Where nobody does, nothing is kept and every start compiles anew.
"""
ON_DEVICE = "device"


def placed(options: Mapping[str, Option], folder: Path | None) -> dict[str, Option]:
    """A bundle's options, its cache put into ``folder`` where it asks for one.

    Raises:
        ArtifactError: the bundle names a folder itself; what is compiled is code, so
            it could have its own run.
    """
    wanted = options.get(ENGINE_CACHE, "")
    if wanted not in ("", ON_DEVICE):
        raise ArtifactError(
            f"option {ENGINE_CACHE} is {ON_DEVICE!r} or empty in a bundle, got "
            f"{wanted!r}: the device chooses the folder"
        )
    if not wanted or folder is None:
        return dict(options)
    return {**options, ENGINE_CACHE: str(folder)}


@dataclass(frozen=True)
class Coverage:
    """Which operators the wanted device runs itself.

    ``fallback`` names the nodes that would run elsewhere (``op name``).
    """

    nodes: int
    fallback: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()

    @property
    def fallback_share(self) -> float:
        """Share of nodes that run elsewhere, 0 to 1."""
        return len(self.fallback) / self.nodes if self.nodes else 0.0


class Session(ABC):
    """A loaded artifact."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def predict(self, feeds: Feeds) -> dict[str, Array]:
        """Run once.

        Raises:
            ArtifactError: an input is missing, unknown, or of a wrong type or shape,
                or the runtime failed.
        """

    def close(self) -> None:
        """Give the memory back; the session cannot be used afterwards."""
        return


class Runtime(ABC):
    """Loads artifacts of one kind."""

    name: ClassVar[str]
    options: ClassVar[frozenset[str]]
    """Names of the options that ``load`` understands."""

    @abstractmethod
    def version(self) -> str:
        """Version of the installed runtime package."""

    @abstractmethod
    def load(self, path: Path, options: Mapping[str, Option]) -> Session:
        """Open the artifact at ``path``.

        Raises:
            ArtifactError: the artifact is not readable, or an option is unknown.
            MachineError: a provider or device named in ``options`` is absent.
        """

    @abstractmethod
    def coverage(self, path: Path, options: Mapping[str, Option]) -> Coverage:
        """Which nodes the device named in ``options`` runs itself.

        Raises:
            ArtifactError: the artifact is not readable.
        """
