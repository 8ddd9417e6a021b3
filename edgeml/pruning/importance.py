"""How much each channel of a group matters.

| name | a channel's score |
|---|---|
| ``l1``, ``l2`` | norm of the weights that make it, times that of those that read it |
| ``taylor`` | (Σ weight · gradient)² over all weights that read it |
| ``bn_scale`` | size of its batch norm's scale (Liu et al., 2017) |

1. A batch norm divides the norm of the weights before it out again: where there is one,
   ``l1`` and ``l2`` take its scale in their place.
2. ``taylor`` is the first-order change of the loss when the channel goes (Molchanov et
   al., 2019). The others are in parts of the group's mean; so groups can be compared.
"""

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
_TINY = 1e-12
_WEIGHTS = ("weight", "in_proj_weight")


def magnitude(module: Any, groups: Sequence[Group], power: int) -> Scores:
    """L1 (``power`` 1) or L2 (2) norms."""
    scores = {}
    for group in flattened(groups):
        made = _norms(module, group, "scales", power)
        if made is None:
            made = _norms(module, group, "makes", power)
        read = _norms(module, group, "reads", power)
        score = np.ones(group.count)
        for norms in (made, read):
            score = score if norms is None else score * norms
        scores[group.name] = score / max(score.mean(), _TINY)
    return scores


def norm_scale(module: Any, groups: Sequence[Group]) -> tuple[Scores, list[str]]:
    """Batch norms' scales, and the groups that have none."""
    scores, without = {}, []
    for group in flattened(groups):
        found = _norms(module, group, "scales", 1)
        if found is None:
            without.append(group.name)
        else:
            scores[group.name] = found
    return scores, without


def _norms(module: Any, group: Group, role: str, power: int) -> Array | None:
    """Per channel, the norm of the weights in that role, each layer by its mean."""
    parts = []
    for slot in group.slots:
        name, dim = slot.tensors[0] if slot.tensors else ("", 0)
        if slot.role == role and name.rpartition(".")[2] in _WEIGHTS:
            size = tensor_of(module, name).detach().abs() ** power
            norm = _sums(size, dim, slot) ** (1 / power)
            parts.append(norm / max(norm.mean(), _TINY))
    return np.mean(parts, axis=0) if parts else None


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
