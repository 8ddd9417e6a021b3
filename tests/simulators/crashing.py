"""The training that crashes torch 2.13 on a CPU, and the same by our loop.

Two threads, ``channels_last``, a 1x1 convolution of stride 2 with fewer than 16 input
channels, an odd batch from 33 on: the backward pass writes where it must not.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgeml.progress import Progress
from edgeml.training.loop import LoopOptions, train
from edgeml.training.losses import task_loss
from edgeml.training.task import Samples, Task

BATCH, CHANNELS, STEPS = 65, 8, 10


def network() -> nn.Module:
    """A residual network's shortcut after it was pruned to 8 channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1), nn.ReLU(),
        nn.Conv2d(CHANNELS, 2 * CHANNELS, 1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * CHANNELS * 14 * 14, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def directly(argument: object, progress: Progress) -> None:
    """Train as torch's tutorials do."""
    torch.set_num_threads(2)
    progress.stage("training directly")
    module = network()
    x = torch.randn(BATCH, 1, 28, 28).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), 0.001)
    for _ in range(STEPS):
        optimizer.zero_grad()
        module(x).logsumexp(1).mean().backward()
        optimizer.step()


def by_the_loop(argument: str, progress: Progress) -> None:
    """Train the same network with the same batch by our loop; write what it came to."""
    torch.set_num_threads(2)
    random = np.random.default_rng(0)
    samples = Samples(
        {"x": random.normal(size=(BATCH * STEPS, 1, 28, 28)).astype(np.float32)},
        random.integers(0, 10, BATCH * STEPS),
    )
    task = Task(samples, samples.take(np.arange(BATCH)), lambda *_: 0.0, Path())
    options = LoopOptions(epochs=1, batch=BATCH)
    trained = train(
        network(), ["x"], task, options, task_loss({"loss": ""}, task),
        augment=lambda inputs, _: {
            "x": inputs["x"].to(memory_format=torch.channels_last)
        },
    )  # fmt: skip
    Path(argument).write_text(f"{trained.steps} {trained.batch}")
