"""Channels cut out of a module, or zeroed where they are read.

Both are told the same, so that one can be held against the other (:mod:`proof`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..intake.modules import torch_here
from .groups import Group, flattened

Gone = Mapping[str, Sequence[int]]
"""Group → its channels (or heads) that go; groups that are not named stay whole."""


def cut(module: Any, groups: Sequence[Group], gone: Gone) -> None:
    """Make ``module`` smaller, in place."""
    drops: dict[tuple[str, int], set[int]] = defaultdict(set)
    fewer: dict[tuple[str, str], int] = defaultdict(int)
    for group in flattened(groups):
        channels = gone.get(group.name, ())
        for slot in group.slots if channels else ():
            indices = slot.indices(channels)
            for tensor in slot.tensors:
                drops[tensor].update(indices)
            for owner, attribute, per in slot.counts:
                fewer[owner, attribute] += len(indices) // per
    for (name, dim), indices_gone in drops.items():
        _drop(module, name, dim, indices_gone)
    for (name, attribute), number in fewer.items():
        owner = module.get_submodule(name)
        value = getattr(owner, attribute)
        smaller = (
            (*value[:-1], value[-1] - number)
            if isinstance(value, tuple)
            else value - number
        )
        setattr(owner, attribute, smaller)


def mask(module: Any, groups: Sequence[Group], gone: Gone) -> None:
    """Zero, in place, the weights that read the channels: as if they were not there."""
    torch = torch_here()
    with torch.no_grad():
        for group in flattened(groups):
            for slot in group.slots:
                if slot.role != "reads":
                    continue
                indices = slot.indices(gone.get(group.name, ()))
                for name, dim in slot.tensors:
                    tensor = tensor_of(module, name)
                    tensor.index_fill_(dim, torch.tensor(indices, dtype=int), 0.0)


def tensor_of(module: Any, name: str) -> Any:
    """The parameter or buffer of that name."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def widths(module: Any) -> dict[str, int]:
    """Layer → channels that it makes, and attention → its heads."""
    torch = torch_here()
    found: dict[str, int] = {}
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.modules.conv._ConvNd):
            found[name] = part.out_channels
        elif isinstance(part, torch.nn.Linear):
            found[name] = part.out_features
        elif isinstance(part, torch.nn.MultiheadAttention):
            found[name] = part.num_heads
        elif type(getattr(part, "heads", None)) is int:
            found[name] = part.heads
    return found


def _drop(module: Any, name: str, dim: int, indices: Iterable[int]) -> None:
    torch = torch_here()
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, leaf)
    gone = set(indices)
    kept = [index for index in range(old.shape[dim]) if index not in gone]
    new = old.detach().index_select(dim, torch.tensor(kept)).contiguous()
    if leaf in owner._parameters:
        owner._parameters[leaf] = torch.nn.Parameter(
            new, requires_grad=old.requires_grad
        )
    else:
        owner._buffers[leaf] = new
