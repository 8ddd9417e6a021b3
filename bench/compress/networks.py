"""Teachers and students of ``scripts/bench compress``; each factory seeds itself.

Channel counts are multiples of 16, what the kernels of ``cpu-x86_64`` like.
"""

from collections import OrderedDict

import torch
from torch import nn

CLASSES = 10
SEED = 0


def mnist_teacher() -> nn.Module:
    """1.1 M parameters, 15 M multiplications; image [N, 1, 28, 28] → logits."""
    return _seeded(
        block1=_conv(1, 32), pool1=nn.MaxPool2d(2),
        block2=_conv(32, 64), block3=_conv(64, 64), pool2=nn.MaxPool2d(2),
        block4=_conv(64, 128), flatten=nn.Flatten(), drop=nn.Dropout(0.3),
        hidden=nn.Linear(128 * 7 * 7, 160), relu=nn.ReLU(),
        answer=nn.Linear(160, CLASSES),
    )  # fmt: skip


def mnist_student() -> nn.Module:
    """71 k parameters, 1.8 M multiplications; the same input and output."""
    return _seeded(
        block1=_conv(1, 16, stride=2), block2=_conv(16, 32, stride=2),
        block3=_conv(32, 64), block4=_conv(64, 64, stride=2), flatten=nn.Flatten(),
        answer=nn.Linear(64 * 4 * 4, CLASSES),
    )  # fmt: skip


def fsdd_teacher() -> nn.Module:
    """1.2 M parameters, 30 M multiplications; mel [N, 1, 64, 40] → logits."""
    return _seeded(
        block1=_conv(1, 32), pool1=nn.MaxPool2d(2),
        block2=_conv(32, 64), pool2=nn.MaxPool2d(2),
        block3=_conv(64, 128), pool3=nn.MaxPool2d(2),
        block4=_conv(128, 128), flatten=nn.Flatten(), drop=nn.Dropout(0.3),
        hidden=nn.Linear(128 * 8 * 5, 192), relu=nn.ReLU(),
        answer=nn.Linear(192, CLASSES),
    )  # fmt: skip


def fsdd_student() -> nn.Module:
    """86 k parameters, 3 M multiplications; the same input and output."""
    return _seeded(
        block1=_conv(1, 16, stride=2), block2=_conv(16, 32, stride=2),
        block3=_conv(32, 64, stride=2), block4=_conv(64, 64), flatten=nn.Flatten(),
        answer=nn.Linear(64 * 8 * 5, CLASSES),
    )  # fmt: skip


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _seeded(**layers: nn.Module) -> nn.Module:
    """The layers in order, with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for layer in layers.values():
            for part in layer.modules():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()
    return nn.Sequential(OrderedDict(layers))
