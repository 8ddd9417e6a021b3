"""Batches of samples, in an order that only seed and epoch decide.

The rules it keeps:

1. All batches are of one even size: kernels of torch 2.13 crash on odd ones. What is
   left over at the end of an epoch is dropped; the next epoch's order is another.
2. Any batch of any epoch can be made again without the ones before it.
3. Tensors are contiguous, float32 (inputs, labels that are numbers) and int64 (labels
   that are classes).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from device_agent.contract.tensors import Array

from ..errors import PassError
from ..intake.modules import torch_here
from .task import Samples, numbered

if TYPE_CHECKING:
    from torch import Generator, Tensor

Augment = Callable[["dict[str, Tensor]", "Generator"], "dict[str, Tensor]"]
"""(inputs by name, generator) → inputs by name, of the same shapes."""


@dataclass
class Batch:
    """What one step is made on; ``places`` are indices into the training samples."""

    inputs: "dict[str, Tensor]"
    labels: "Tensor | None"
    places: Array


class Batches:
    """The batches of training samples, on a device.

    Raises:
        PassError: there is no sample, or labels that are neither classes nor numbers.
    """

    def __init__(
        self,
        samples: Samples,
        size: int,
        seed: int,
        device: str = "cpu",
        augment: Augment | None = None,
    ) -> None:
        if not len(samples):
            raise PassError("there are no training samples; expected at least one")
        self._samples = numbered(samples)
        self._labels = _labels(self._samples.labels)
        self._seed = seed
        self._device = device
        self._augment = augment
        self._order: tuple[int, Array] = -1, np.arange(0)
        size = min(size, len(samples))
        self.size = size if size == 1 else size - size % 2
        """Samples of one batch."""

    @property
    def steps(self) -> int:
        """Batches of one epoch."""
        return len(self._samples) // self.size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch (from 0)."""
        return (self.batch(epoch, place) for place in range(self.steps))

    def batch(self, epoch: int, place: int) -> Batch:
        """The batch at a place (from 0) of an epoch."""
        if self._order[0] != epoch:
            random = np.random.default_rng([self._seed, epoch])
            self._order = epoch, random.permutation(len(self._samples))
        return self._batch(
            self._order[1][place * self.size : (place + 1) * self.size],
            step_seed(self._seed, epoch * self.steps + place),
        )

    def _batch(self, places: Array, seed: int) -> Batch:
        torch = torch_here()
        inputs = {
            name: torch.from_numpy(np.ascontiguousarray(array[places]))
            for name, array in self._samples.inputs.items()
        }
        if self._augment is not None:
            inputs = self._augment(inputs, torch.Generator().manual_seed(seed))
        return Batch(
            {name: one.contiguous().to(self._device) for name, one in inputs.items()},
            None
            if self._labels is None
            else torch.from_numpy(self._labels[places]).to(self._device),
            places,
        )


def step_seed(seed: int, step: int) -> int:
    """The seed of everything random in one step; steps far apart do not resemble."""
    return int(
        np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1
    )


def _labels(labels: Array | None) -> Array | None:
    if labels is None:
        return None
    if labels.dtype.kind in "biu":
        return labels.astype(np.int64)
    if labels.dtype.kind == "f":
        return labels.astype(np.float32)
    raise PassError(
        f"labels of type {labels.dtype} cannot be learned; expected numbers or text"
    )


def outputs_of(
    forward: Callable[..., "dict[str, Tensor]"],
    names: Any,
    samples: Samples,
    size: int,
    device: str = "cpu",
) -> dict[str, Array]:
    """The outputs of all samples, ``[N, …]`` by name; ``forward`` takes the inputs.

    It runs without gradients; the module must be in ``eval`` mode.
    """
    torch = torch_here()
    parts: dict[str, list[Array]] = {}
    with torch.no_grad():
        for at in range(0, len(samples), size):
            given = [
                torch.from_numpy(
                    np.ascontiguousarray(samples.inputs[name][at : at + size])
                )
                for name in names
            ]
            for name, one in forward(*(tensor.to(device) for tensor in given)).items():
                one = one.float() if one.is_floating_point() else one
                parts.setdefault(name, []).append(one.cpu().numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
