"""What a pass that trains is given: samples, what is good, where it may keep things.

The rules it keeps:

1. Samples are the recipe's ``[data] train`` split, prepared by its own pre-processing.
   A part of them is held out for early stops; the validation split that candidates
   are judged by is never looked at.
2. ``score`` is the recipe's metric, turned so that higher is better.
3. Everything random comes from ``seed``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from device_agent.contract.tensors import Array

from ..progress import Progress, Silent

HOLDOUT_SHARE = 0.1
HOLDOUT_MAX = 5000
"""Samples; more would only make every epoch slower."""


@dataclass(frozen=True)
class Samples:
    """Samples stacked for batches: ``[N, …]`` per model input, one label each.

    ``classes`` are the names that labels were, where they were text.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, places: Array) -> "Samples":
        """The samples at these places."""
        return Samples(
            {name: array[places] for name, array in self.inputs.items()},
            None if self.labels is None else self.labels[places],
            self.classes,
        )


Score = Callable[[Mapping[str, Array], Array | None], float]
"""(outputs by name ``[N, …]``, labels) → the metric, higher is better."""


@dataclass(frozen=True)
class Task:
    """What to train on and for.

    ``folder`` is where the user's hooks (``module:function``) are looked up.
    ``channel_multiple`` is what channel counts are rounded to: what the kernels of
    the recipe's targets like. ``work`` is where checkpoints are kept (and found again
    after a ``kill -9``); None: nowhere.
    """

    train: Samples
    holdout: Samples
    score: Score
    folder: Path
    seed: int = 0
    channel_multiple: int = 16
    output: str = ""
    """The output that labels are for; empty: the first."""
    work: Path | None = None
    progress: Progress = field(default_factory=Silent)


def numbered(samples: Samples) -> Samples:
    """With class numbers for labels that are text, in the order of the names."""
    if samples.labels is None or samples.labels.dtype.kind != "U":
        return samples
    names, numbers = np.unique(samples.labels, return_inverse=True)
    return Samples(samples.inputs, numbers.astype(np.int64), tuple(map(str, names)))


def hold_out(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Split into what is trained on and what early stops are decided by.

    Labels that are text are numbered first: a rare class may be in one part only.
    """
    samples = numbered(samples)
    count = len(samples)
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(1, round(count * HOLDOUT_SHARE)), HOLDOUT_MAX)
    return samples.take(np.sort(order[held:])), samples.take(np.sort(order[:held]))
