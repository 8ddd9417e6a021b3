"""What a student learns from: a teacher's outputs, and those of layers that are hints.

The rules it keeps:

1. The teacher is a copy in ``eval`` mode without gradients; the model stays as it is.
2. Without augmentation every sample is answered once and remembered. With it each
   batch is answered as it is augmented: teacher and student see the same input.
3. How an output is read is decided once, on the teacher's answers to held-out samples.

References:
    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015.
    Beyer et al.: A good teacher is patient and consistent, 2022.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agent.contract.signals import Kind, kind_of
from device_agent.contract.tensors import Array

from ..errors import PassError
from ..intake.modules import named_outputs, torch_here
from ..progress import Progress
from .losses import distillation, squeezed
from .task import Samples

REMEMBERED_BYTES_MAX = 2 << 30
"""Bytes of remembered answers; beyond it each batch is answered anew."""
SAME = 0.05
"""Values count as the same answer up to this share of the teacher's deviation."""


@dataclass(frozen=True)
class Answer:
    """Tensors of one batch: outputs by name, and outputs of layers by theirs."""

    outputs: dict[str, Any]
    layers: dict[str, Any]

    def each(self, change: Any) -> "Answer":
        """With ``change`` applied to every tensor."""
        return Answer(
            {name: change(tensor) for name, tensor in self.outputs.items()},
            {name: change(tensor) for name, tensor in self.layers.items()},
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [*self.outputs.values(), *self.layers.values()]
        return sum(tensor.nbytes for tensor in tensors)


class Taps:
    """The outputs of named layers, as the last forward pass gave them."""

    def __init__(self, module: Any, layers: Iterable[str]) -> None:
        self._found: dict[str, Any] = {}
        parts = dict(module.named_modules())
        self._hooks = [
            parts[name].register_forward_hook(self._keeper(name))
            for name in dict.fromkeys(layers)
        ]

    def take(self, name: str) -> Any:
        """The layer's output.

        Raises:
            PassError: the forward pass did not call it, or it gives no tensor.
        """
        if name not in self._found:
            raise PassError(f"hints: layer {name!r} is not called in the forward pass")
        found = self._found[name]
        if not isinstance(found, torch_here().Tensor):
            raise PassError(
                f"hints: layer {name!r} gives a {type(found).__name__}; expected a "
                "layer that gives one tensor"
            )
        return found

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._found.clear()

    def _keeper(self, name: str) -> Any:
        def keep(_part: Any, _given: Any, output: Any) -> None:
            self._found[name] = output

        return keep


class Teacher:
    """A network that answers; ``names`` are its inputs in the order of forward."""

    def __init__(
        self, module: Any, names: Sequence[str], layers: Iterable[str] = ()
    ) -> None:
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._names = tuple(names)
        self._layers = tuple(dict.fromkeys(layers))
        self._taps = Taps(self._module, self._layers)
        self._device: Any = None
        self._known: Answer | None = None

    def answer(self, inputs: Mapping[str, Any]) -> Answer:
        """What it says to a batch of inputs, on their device."""
        given = [inputs[name] for name in self._names]
        if given[0].device != self._device:
            self._device = given[0].device
            self._module.to(self._device)
        with torch_here().no_grad():
            outputs = named_outputs(self._module(*given))
        return Answer(outputs, {name: self._taps.take(name) for name in self._layers})

    def outputs(self, samples: Samples, size: int) -> dict[str, Any]:
        """Its outputs for all of ``samples``, on the CPU."""
        parts = [
            self.answer(inputs).each(_on_cpu).outputs
            for inputs in in_batches(samples, size)
        ]
        return _joined(parts)

    def remember(self, samples: Samples, size: int, progress: Progress) -> None:
        """Answer all of ``samples`` once, unless that takes too much memory."""
        some = self.answer(next(in_batches(samples, 1)))
        if some.nbytes * len(samples) > REMEMBERED_BYTES_MAX:
            return
        progress.stage("the teacher's answers")
        parts = []
        for place, inputs in enumerate(in_batches(samples, size), start=1):
            parts.append(self.answer(inputs).each(_on_cpu))
            progress.step(min(place * size, len(samples)), len(samples))
        self._known = Answer(
            _joined([part.outputs for part in parts]),
            _joined([part.layers for part in parts]),
        )

    def told(self, inputs: Mapping[str, Any], places: Array) -> Answer:
        """The answer to a batch: remembered by its ``places``, or given now."""
        if self._known is None:
            return self.answer(inputs)
        chosen = torch_here().from_numpy(places)
        device = next(iter(inputs.values())).device
        return self._known.each(lambda tensor: tensor[chosen].to(device))


def in_batches(samples: Samples, size: int) -> Iterator[dict[str, Any]]:
    """All samples as tensors, in order, where they are computed fastest."""
    torch = torch_here()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for start in range(0, len(samples), size):
        yield {
            name: torch.from_numpy(
                np.ascontiguousarray(array[start : start + size])
            ).to(device)
            for name, array in samples.inputs.items()
        }


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    torch = torch_here()
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _on_cpu(tensor: Any) -> Any:
    return tensor.cpu()


def readings(outputs: Mapping[str, Any], labels: Array | None) -> dict[str, Kind]:
    """How each output is read; whole-numbered ones teach nothing and are left out.

    Labels that are quantities (fractions, or several numbers a sample) make values of
    all outputs; without labels ``[N, C]`` counts as scores of classes.

    Raises:
        PassError: nothing is left.
    """
    regression = labels is not None and _are_quantities(labels)
    found: dict[str, Kind] = {
        name: "tensor" if regression else kind_of(tensor.float().numpy())
        for name, tensor in outputs.items()
        if tensor.is_floating_point()
    }
    if not found:
        raise PassError(
            "the teacher gives classes and no scores, and bare answers teach nothing "
            "that labels would not; expected an output of floats"
        )
    return found


def _are_quantities(labels: Array) -> bool:
    fractions = labels.dtype.kind == "f" and bool((labels != np.rint(labels)).any())
    return labels.ndim > 1 or fractions


def soft_loss(student: Any, teacher: Any, kind: Kind, temperature: float) -> Any:
    """How far the student's output ``[N, …]`` is from the teacher's, mean of samples.

    1. scores of classes: the divergence of the softened answers
    2. values and tensors: the mean squared error
    """
    student, teacher = student.float(), teacher.float()
    if kind in ("logits", "probabilities"):
        return distillation(squeezed(student), squeezed(teacher), temperature)
    if kind == "probability":
        return distillation(_two_classes(student), _two_classes(teacher), temperature)
    return torch_here().nn.functional.mse_loss(student, teacher)


def _two_classes(output: Any) -> Any:
    yes = output.reshape(len(output), 1)
    return torch_here().cat([1 - yes, yes], dim=1)


def same_answers(student: Any, teacher: Any, kind: Kind) -> Any:
    """Per sample whether both give the same answer; ``[N]`` bools."""
    if kind in ("logits", "probabilities"):
        return squeezed(student).argmax(1) == squeezed(teacher).argmax(1)
    if kind == "probability":
        return (student.flatten() >= 0.5) == (teacher.flatten() >= 0.5)
    apart = (student - teacher).float().reshape(len(student), -1)
    return apart.square().mean(1).sqrt() <= SAME * teacher.float().std()
