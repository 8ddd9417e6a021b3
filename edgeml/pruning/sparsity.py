"""Single weights that become zero: a smaller compressed bundle, and nothing faster."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..intake.modules import torch_here
from .slots import is_of

Score = Callable[[Any], Any]
"""A weight → how much each of its numbers matters."""


def weights_of(module: Any, keep: Collection[str]) -> dict[str, Any]:
    """Layer → weight, of all convolutions and linear layers but those kept."""
    torch = torch_here()
    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    return {
        name: part.weight
        for name, part in module.named_modules()
        if isinstance(part, kinds) and not is_of(name, keep)
        and isinstance(part._parameters.get("weight"), torch.nn.Parameter)
    }  # fmt: skip


def masks_of(
    scores: Mapping[str, Any], share: float, shares: Mapping[str, float], scope: str
) -> dict[str, Any]:
    """Layer → which of its weights stay (True): all but the least important share."""
    torch = torch_here()
    masks = {}
    free = []
    for name, score in scores.items():
        own = shares.get(name, share if scope == "layer" else None)
        if own is None:
            free.append(name)
        else:
            masks[name] = _kept(score.flatten(), own).reshape(score.shape)
    if free:
        together = torch.cat([scores[name].flatten() for name in free])
        kept = _kept(together, share)
        parts = kept.split([scores[name].numel() for name in free])
        masks |= {
            name: part.reshape(scores[name].shape)
            for name, part in zip(free, parts, strict=True)
        }
    return masks


def apply(module: Any, masks: Mapping[str, Any]) -> None:
    """Zero, in place, what does not stay."""
    torch = torch_here()
    with torch.no_grad():
        for name, mask in masks.items():
            weight = module.get_submodule(name).weight
            weight.mul_(mask.to(weight.device))


def _kept(scores: Any, share: float) -> Any:
    torch = torch_here()
    number = int(scores.numel() * share)
    kept = torch.ones(scores.numel(), dtype=torch.bool)
    # a stable order: equal scores must give equal bytes twice
    kept[scores.argsort(stable=True)[:number]] = False
    return kept
