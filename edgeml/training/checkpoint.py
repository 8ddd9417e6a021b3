"""Checkpoints of a training: what a ``kill -9`` leaves to go on from.

The rules it keeps:

1. A checkpoint is written whole or not at all, and carries its digest; a damaged one,
   or one of another training (``identity``), is not used.
2. Reading one can run no code (``weights_only``).
3. It is written when ``checkpoint_s`` seconds have passed since the last was begun.
"""

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cache import digest_of, sweep, write_atomic
from ..intake.modules import torch_here


class Checkpoints:
    """The latest checkpoint of one training; ``folder`` None: none is kept."""

    def __init__(
        self,
        folder: Path | None,
        identity: str,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = None if folder is None else folder / "checkpoint"
        self._identity = identity
        self._interval_s = interval_s
        self._clock = clock
        self._last = clock()
        if folder is not None and folder.is_dir():
            sweep(folder)

    def due(self) -> bool:
        """Whether it is time for the next one."""
        late = self._clock() - self._last >= self._interval_s
        return self._path is not None and late

    def save(self, content: dict[str, Any]) -> None:
        """Replace the checkpoint by one of ``content``: tensors, numbers, text.

        Raises:
            UsageError: the folder cannot be written.
            MachineLacks: there is no room.
        """
        if self._path is None:
            return
        self._last = self._clock()
        stream = io.BytesIO()
        torch_here().save({"identity": self._identity, **content}, stream)
        raw = stream.getvalue()
        write_atomic(self._path, digest_of(raw).encode() + b"\n" + raw)

    def load(self) -> dict[str, Any] | None:
        """The content of the last one of this training; None: there is none."""
        if self._path is None or not self._path.is_file():
            return None
        digest, _, raw = self._path.read_bytes().partition(b"\n")
        if digest != digest_of(raw).encode():
            return None
        content: dict[str, Any] = torch_here().load(
            io.BytesIO(raw), weights_only=True, map_location="cpu"
        )
        return content if content.pop("identity") == self._identity else None


def tensors_of(module: Any) -> dict[str, Any]:
    """Every parameter and buffer by name, also buffers that are not persistent."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def snapshot(module: Any) -> dict[str, Any]:
    """A copy of all that training changes in a module."""
    return {name: one.detach().clone() for name, one in tensors_of(module).items()}


def restore(module: Any, tensors: dict[str, Any]) -> None:
    """Write a snapshot back into the module, in place."""
    with torch_here().no_grad():
        for name, one in tensors_of(module).items():
            one.copy_(tensors[name])


def digest_of_tensors(module: Any) -> str:
    """SHA-256 of a module's parameters and buffers, names and shapes included."""
    torch = torch_here()
    digest = hashlib.sha256()
    for name, one in sorted(tensors_of(module).items()):
        flat = one.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {one.dtype} {tuple(one.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"")
    return digest.hexdigest()
