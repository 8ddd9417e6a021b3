"""Batch norms' statistics, taken anew for the channels that are left.

A layer that reads fewer channels gives other means and variances. With the old ones the
network is far worse than its weights are (Li et al.: EagleEye, 2020).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ..intake.modules import torch_here


def recalibrate(module: Any, batches: Iterable[Sequence[Any]]) -> int:
    """Set running means and variances to the averages over ``batches``; how many norms.

    ``batches`` are the module's inputs. Only the norms that keep statistics see them in
    ``train`` mode; the module is in ``eval`` mode afterwards.
    """
    torch = torch_here()
    norms = [
        one
        for one in module.modules()
        if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)
        and one.track_running_stats
    ]
    module.eval()
    if not norms:
        return 0
    before = [one.momentum for one in norms]
    try:
        for one in norms:
            one.reset_running_stats()
            one.momentum = None  # The plain average of all batches.
            one.train()
        with torch.no_grad():
            for inputs in batches:
                module(*inputs)
    finally:
        for one, momentum in zip(norms, before, strict=True):
            one.momentum = momentum
        module.eval()
    return len(norms)
