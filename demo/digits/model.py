"""The demo's network: a small convolutional classifier of handwritten digits."""

import torch
from torch import nn


def digits_cnn() -> nn.Module:
    """Images [N, 1, 32, 32], float32 from 0 to 1 → logits [N, 10]."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]

    torch.manual_seed(0)
    return nn.Sequential(
        *block(1, 32), *block(32, 64), *block(64, 96),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip
