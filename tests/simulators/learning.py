"""A small training in a process of its own, which a test can kill at a chosen step.

The network has what makes resuming hard: batch norm (buffers), dropout and an
augmentation (random numbers of four generators), momentum, a schedule, text labels.
Processes come from a fork server that has torch loaded, so that each starts at once.
"""

import hashlib
import multiprocessing
import os
import random
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeml.training.loop import LoopOptions, Trained, train
from edgeml.training.losses import task_loss
from edgeml.training.task import Samples, Task, hold_out

SAMPLES, BATCH, EPOCHS = 90, 16, 3
STEPS = EPOCHS * 5
PRELOADED = [
    "torch", "torch._dynamo", "edgeml.training.losses", "safetensors", "pytest",
]  # fmt: skip
"""What is slow to import; the fork server does not find this folder by itself."""


class Net(nn.Module):
    """Convolution, batch norm, dropout, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.drop(self.norm(self.conv(x)).relu().flatten(1)))
        return found


def net() -> Net:
    """The same weights every time; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Net()


def samples() -> Samples:
    """Pictures with a bright row; the class is which third it is in."""
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 6, SAMPLES)
    x = rng.normal(size=(SAMPLES, 1, 6, 6)).astype(np.float32)
    x[np.arange(SAMPLES), 0, rows] += 2
    return Samples({"x": x}, np.array(["top", "mid", "low"])[rows // 2])


def task(work: Path | None = None, seed: int = 0, **changes: Any) -> Task:
    """Train on :func:`samples` for the share of right answers."""
    kept, held = hold_out(samples(), seed)

    def right(outputs: Any, labels: Any) -> float:
        return float((outputs["output"].argmax(1) == labels).mean())

    return Task(kept, held, right, Path(), seed, work=work, **changes)


def noisy(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """An augmentation that draws from every generator there is."""
    noise = torch.randn(inputs["x"].shape, generator=generator)
    scale = 1 + 0.1 * (random.random() + np.random.rand() + float(torch.rand(())))
    return {"x": inputs["x"] * scale + 0.1 * noise}


def options(**changes: Any) -> LoopOptions:
    """A checkpoint after every step, unless told otherwise."""
    given = {"epochs": EPOCHS, "batch": BATCH, "learning_rate": 0.02, **changes}
    return LoopOptions(**{"checkpoint_s": 0.0, **given})


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over every byte of parameters and buffers."""
    digest = hashlib.sha256()
    for name, one in module.state_dict().items():
        digest.update(f"{name} {one.dtype}".encode() + one.numpy().tobytes())
    return digest.hexdigest()


def learn(work: Path | None, after_step: Any = None, **how: Any) -> tuple[str, Trained]:
    """Train once, in this process."""
    module, given = net(), task(work)
    trained = train(
        module, ["x"], given, options(**how), task_loss({"loss": ""}, given),
        augment=noisy, after_step=after_step,
    )  # fmt: skip
    return fingerprint(module), trained


@dataclass(frozen=True)
class Life:
    """What a process did: the steps it made, and what it came to if it lived."""

    steps: list[int]
    result: tuple[str, Trained] | None


def _child(
    line: Connection, work: Path, stall: int | None, how: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    if stall is not None:
        _stall_in_write(line, stall)

    def told() -> None:
        line.send("step")
        line.recv()

    line.send(learn(work, told, **how))
    line.recv()


def _stall_in_write(line: Connection, number: int) -> None:
    """Have the n-th write of a file wait for the kill when it is half done."""
    real, seen = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        seen[0] += 1
        if seen[0] == number:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            line.send("writing")
            line.recv()
        real(descriptor)

    os.fsync = fsync


def live(
    work: Path, *, kill_at: int | None = None, kill_in_write: int | None = None,
    **how: Any,
) -> Life:  # fmt: skip
    """Train in a process; ``kill -9`` it in a step, or in the n-th write of a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    line, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, work, kill_in_write, how))
    process.start()
    theirs.close()
    steps = 0
    try:
        while True:
            said = line.recv()
            if isinstance(said, tuple):
                line.send("end")
                process.join()
                return Life(list(range(steps)), said)
            steps += said == "step"
            if said == "writing" or steps == kill_at:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                assert process.exitcode == -signal.SIGKILL
                return Life(list(range(steps)), None)
            line.send("go on")
    finally:
        if process.is_alive():
            process.kill()
