"""How much each channel of a group matters.

| name | a channel's score |
|---|---|
| ``l1``, ``l2`` | norm of all weights that make it or read it, each layer by its own mean |
| ``taylor`` | (Σ weight · gradient)² over all weights that read it: the first-order change of the loss when it goes (Molchanov et al., 2019) |
| ``bn_scale`` | size of its batch norm's scale (Liu et al., 2017) |

All but ``taylor`` are in parts of the group's mean: they can be compared between groups.
"""  # noqa: E501 - a table

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from device_agent.contract.tensors import Array

from ..intake.modules import torch_here
from .cutting import tensor_of
from .groups import Group, flattened
from .slots import Slot

Scores = dict[str, Array]
"""Group → one score per channel (or head); more is more important."""


def magnitude(module: Any, groups: Sequence[Group], power: int) -> Scores:
    """L1 (``power`` 1) or L2 (2) norms."""
    scores = {}
    for group in flattened(groups):
        parts = []
        for slot in group.slots:
            if slot.role in ("makes", "reads"):
                name, dim = slot.tensors[0]
                size = tensor_of(module, name).detach().abs() ** power
                norm = _sums(size, dim, slot) ** (1 / power)
                parts.append(norm / max(norm.mean(), 1e-12))
        scores[group.name] = np.mean(parts, axis=0)
    return scores


def norm_scale(module: Any, groups: Sequence[Group]) -> tuple[Scores, list[str]]:
    """Batch norms' scales, and the groups that have none."""
    scores, without = {}, []
    for group in flattened(groups):
        parts = [
            _sums(tensor_of(module, slot.tensors[0][0]).detach().abs(), 0, slot)
            for slot in group.slots
            if slot.role == "scales" and slot.tensors[0][0].endswith(".weight")
        ]
        if parts:
            scores[group.name] = np.mean([p / max(p.mean(), 1e-12) for p in parts], 0)
        else:
            without.append(group.name)
    return scores, without


def taylor(module: Any, groups: Sequence[Group], backward: Iterable[None]) -> Scores:
    """``backward`` leaves the gradients of another batch in ``module`` at each turn."""
    scores = {g.name: np.zeros(g.count) for g in flattened(groups)}
    for _ in backward:
        for group in flattened(groups):
            change = np.zeros(group.count)
            for slot in group.slots:
                if slot.role == "reads":
                    name, dim = slot.tensors[0]
                    weight = tensor_of(module, name)
                    if weight.grad is not None:
                        product = (weight * weight.grad).detach()
                        change += _sums(product, dim, slot)
            scores[group.name] += change**2
    return scores


def _sums(tensor: Any, dim: int, slot: Slot) -> Array:
    """Per channel, the sum over everything that is at its indices."""
    torch = torch_here()
    dims = [other for other in range(tensor.dim()) if other != dim % tensor.dim()]
    line = tensor.to(torch.float64)
    line = (line.sum(dims) if dims else line).cpu().numpy()
    return np.array([line[list(places)].sum() for places in slot.places])
