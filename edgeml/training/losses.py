"""What training makes small.

The loss for labels, decided by what labels and the judged output are:

=======================  =============================  ===============================
labels                   output, unit dimensions off    loss
=======================  =============================  ===============================
whole numbers, or text   ``[N, C]``                     cross entropy
0 and 1, or two texts    ``[N]``                        binary cross entropy
numbers                  the labels' shape              mean squared error
=======================  =============================  ===============================

An output that is already probabilities (a softmax or sigmoid inside the model) is
taken as such: its logarithm is used, not a second softmax.

References:
    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015.
    Romero et al.: FitNets: Hints for Thin Deep Nets, 2015.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PassError
from ..intake.modules import torch_here
from .hooks import own_loss
from .loop import Batch, Loss
from .task import Task, numbered

if TYPE_CHECKING:
    from torch import Tensor

SUM_SLACK = 1e-3
"""How far the sum of a float softmax may be from 1."""
SMALLEST = 1e-7
"""Probabilities are not taken for smaller: their logarithm must be finite."""


def task_loss(
    parameters: Mapping[str, Any], task: Task, folder: Path | None = None
) -> Loss:
    """The loss of a pass: its own (``loss``), or that of the table above.

    Raises:
        PassError: there are no labels and no own loss; when called: labels and output
            do not fit.
    """
    if parameters["loss"]:
        return own_loss(parameters["loss"], folder or task.folder)
    samples = numbered(task.train)
    if samples.labels is None:
        raise PassError(
            "the training samples have no labels; name their key or column "
            "([data] label), give a loss of your own, or distill"
        )
    labels, named = samples.labels, len(samples.classes)
    whole = labels.ndim == 1 and bool((labels == labels.astype(np.int64)).all())
    classes = int(labels.max()) + 1 if whole and labels.min() >= 0 else 0

    def loss(outputs: "dict[str, Tensor]", batch: Batch) -> "Tensor":
        assert batch.labels is not None, "the task has labels"
        judged = outputs[task.output or next(iter(outputs))]
        output = squeezed(judged.float())
        if classes and output.ndim == 2:
            _check_classes(classes, named, output.shape[1])
            return cross_entropy(output, batch.labels.long())
        if 0 < classes <= 2 and output.ndim == 1:
            return binary_cross_entropy(output, batch.labels.float())
        numbers = squeezed(batch.labels.float())
        if not named and output.shape == numbers.shape:
            return torch_here().nn.functional.mse_loss(output, numbers)
        raise PassError(
            f"labels of shape {list(labels.shape)} and an output of shape "
            f"{list(output.shape)} have no loss by themselves; give one "
            '(loss = "module:function")'
        )

    return loss


def _check_classes(classes: int, named: int, width: int) -> None:
    """Numbers may leave out classes; names may not, for the others would shift."""
    if classes > width or named not in (0, width):
        raise PassError(
            f"the labels have {named or classes} classes and the output scores "
            f"{width}; expected one score per class, and class numbers where a class "
            "is missing"
        )


def squeezed(output: "Tensor") -> "Tensor":
    """``[N, …]`` without dimensions of length 1 after the first."""
    kept = [size for size in output.shape[1:] if size != 1]
    return output.reshape(len(output), *kept)


def log_probabilities(output: "Tensor") -> "Tensor":
    """The logarithm of ``[N, C]`` probabilities, or of the softmax of logits."""
    if are_probabilities(output):
        return output.clamp(min=SMALLEST).log()
    return output.log_softmax(1)


def are_probabilities(output: "Tensor") -> bool:
    """Whether every row of ``[N, C]`` is not negative and sums to 1."""
    rows = output.detach()
    return bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() <= SUM_SLACK).all())


def cross_entropy(output: "Tensor", labels: "Tensor") -> "Tensor":
    """Of class numbers; ``output`` are logits or probabilities ``[N, C]``."""
    return torch_here().nn.functional.nll_loss(log_probabilities(output), labels)


def binary_cross_entropy(output: "Tensor", labels: "Tensor") -> "Tensor":
    """Of 0 and 1; ``output`` ``[N]`` are probabilities if all lie in [0, 1].

    Logits may all lie there by chance: the step is then another, but in the same
    direction.
    """
    functional = torch_here().nn.functional
    rows = output.detach()
    if bool(((rows >= 0) & (rows <= 1)).all()):
        inside = output.clamp(SMALLEST, 1 - SMALLEST)
        return functional.binary_cross_entropy(inside, labels)
    return functional.binary_cross_entropy_with_logits(output, labels)


def distillation(student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """Kullback-Leibler divergence from the teacher's softened answers, times T².

    Both are logits or probabilities ``[N, C]`` (Hinton et al. 2015).
    """
    functional = torch_here().nn.functional
    soft, wanted = (
        (log_probabilities(one.float()) / temperature).log_softmax(1)
        for one in (student, teacher.detach())
    )
    divergence = functional.kl_div(soft, wanted, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def regressor(student: "Tensor", teacher: "Tensor") -> Any:
    """What brings a layer's output of the student to the width of the teacher's.

    A 1x1 convolution for ``[N, C, H, W]``, a linear layer on the last dimension for
    others; ``nn.Identity`` where the widths agree (Romero et al. 2015).

    Raises:
        PassError: the shapes differ by more than the width.
    """
    nn = torch_here().nn
    axis = 1 if student.ndim in (3, 4, 5) and student.ndim == teacher.ndim else -1
    if student.shape == teacher.shape:
        return nn.Identity()
    if student.ndim == 4 and student.shape[2:] == teacher.shape[2:]:
        return nn.Conv2d(student.shape[axis], teacher.shape[axis], 1)
    if student.shape[:-1] == teacher.shape[:-1]:
        return nn.Linear(student.shape[-1], teacher.shape[-1])
    raise PassError(
        f"a hint compares outputs of shape {list(student.shape)} (student) and "
        f"{list(teacher.shape)} (teacher); expected shapes that differ in width alone"
    )


def hint(student: "Tensor", teacher: "Tensor", regress: Any) -> "Tensor":
    """Mean squared error of two layers' outputs; ``regress`` is a regressor."""
    functional = torch_here().nn.functional
    return functional.mse_loss(regress(student.float()), teacher.detach().float())
