"""Candidates on their way: how one is made, what was made, how wrong its layers are.

Records only; who makes candidates is in ``backends``, who judges them in ``trial``.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from device_agent.contract.manifest import Option

from .errors import BackendError


@dataclass(frozen=True)
class Spec:
    """How to make one candidate.

    ``name`` is what people read (``int8 ort minmax u8s8``); ``parameters`` reach the
    quantizer as they are; ``keep`` names the graph nodes left in float.
    """

    name: str
    precision: str
    """``fp32``, ``fp16``, ``int8``, ``int8-dynamic``, ``int4`` or ``mixed``."""
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


@dataclass(frozen=True)
class QuantizeOptions:
    """The recipe's ``[quantize]`` table; every option reaches the tools.

    Empty tuples mean: whatever the backend and the target can do.
    """

    precisions: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    """Calibration methods: ``minmax``, ``entropy``, ``percentile``."""
    quantizers: tuple[str, ...] = ()
    """``ort``, ``nncf``, ``inc``, ``nbits``."""
    keep: tuple[str, ...] = ()
    """Nodes that stay in float in every candidate."""
    mixed: bool = True
    """Whether sensitive layers are tried in float before giving up."""
    percentile: float = 99.99
    per_channel: bool = True
