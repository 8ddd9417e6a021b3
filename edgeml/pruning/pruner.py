"""One module made smaller, round by round.

1. A round finds the groups anew, ranks their channels and cuts the least important.
2. After round n of N the share that is gone is n/N of the whole.
3. Layers that lose nothing have a reason: kept, refused, or too narrow for a multiple.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from device_agent.contract.tensors import TensorSpec

from ..errors import PassError
from ..intake.modules import torch_here
from .cutting import cut, widths
from .groups import Group, find
from .importance import Scores, magnitude, norm_scale, taylor
from .proof import proved
from .selection import Wish, counts, select
from .slots import is_of

Backward = Callable[[], Iterable[None]]
"""Leaves the gradients of one more batch in the module at each turn."""

_SHOWN = 6
"""How many reasons a refusal shows."""


@dataclass(frozen=True)
class Order:
    """What is asked for; names and meanings are those of the recipe's pass."""

    ratio: float
    ratios: Mapping[str, float] = field(default_factory=dict)
    scope: str = "global"
    importance: str = "l2"
    keep: Sequence[str] = ()
    multiple: int = 16


class Pruner:
    """Prunes ``module`` in place; ``example`` are inputs that it can be run on."""

    def __init__(self, module: Any, example: Sequence[Any], order: Order) -> None:
        self.module = module
        self._example = example
        self._order = order
        self._names = {name for name, _ in module.named_modules()}
        self._before = widths(module)
        self._counts: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._room = False
        known_layers(module, order.keep, "keep")
        known_layers(module, order.ratios, "ratios")

    def round(self, part: float, backward: Backward | None = None) -> None:
        """Prune until ``part`` (0 to 1) of what was asked for is gone.

        Raises:
            PassError: a layer with a ratio of its own cannot be pruned, or nothing can.
        """
        order = self._order
        groups, shares = self._groups()
        if not self._counts:
            self._counts = {group.name: group.count for group in groups}
        groups = [group for group in groups if group.name in self._counts]
        groups, scores = self._ranked(groups, backward)
        wish = Wish(
            share=part * order.ratio,
            shares={name: part * share for name, share in shares.items()},
            scope=order.scope,
            multiple=order.multiple,
            widths=self._counts,
        )
        gone = select(groups, scores, wish)
        for group in groups:
            if len(counts(group, order.multiple)) == 1:
                self._reasons.setdefault(group.name, self._narrow(group))
            else:
                self._room = True
        cut(self.module, groups, gone)

    def changed(self) -> dict[str, list[int]]:
        """Layer → [channels before, after]; of attention, its heads."""
        after = widths(self.module)
        return {
            name: [before, after[name]]
            for name, before in self._before.items()
            if after[name] != before
        }

    def unchanged(self) -> dict[str, str]:
        """Layer → why it lost nothing."""
        changed = self.changed()
        return {
            name: reason
            for name, reason in sorted(self._reasons.items())
            if name not in changed
        }

    def check(self) -> None:
        """Refuse that nothing at all was pruned.

        Raises:
            PassError: with the reasons.
        """
        order = self._order
        asked = max(order.ratio, *order.ratios.values(), 0.0)
        if self.changed() or not asked:
            return
        reasons = [f"{name}: {why}" for name, why in self.unchanged().items()]
        if self._room:
            reasons = [
                f"a share of {asked:g} is less than half of {order.multiple} channels "
                "of a layer; set a larger ratio, or a smaller channel_multiple"
            ]
        elif not reasons:
            reasons = ["it has no convolution and no linear layer"]
        raise PassError(f"nothing can be pruned; {'; '.join(reasons[:_SHOWN])}")

    def _groups(self) -> tuple[list[Group], dict[str, float]]:
        """The groups that may be pruned, and the shares of single ones."""
        found = proved(self.module, self._example, find(self.module, self._example))
        self._reasons |= found.refused
        groups = []
        for group in found.groups:
            kept = sorted(
                name for name in group.layers if is_of(name, self._order.keep)
            )
            if kept:
                reason = f"{kept[0]} is kept"
                self._reasons |= dict.fromkeys((group.name, *group.makers), reason)
            else:
                groups.append(group)
        return groups, self._shares(groups)

    def _shares(self, groups: Sequence[Group]) -> dict[str, float]:
        """Group → its own share.

        Raises:
            PassError: no group is called by that layer, or two shares fall on one.
        """
        owner = {
            name: group
            for group in groups
            for one in group.members
            for name in (group.name, *group.makers, one.name, *one.makers)
        }
        shares: dict[str, float] = {}
        said: dict[str, str] = {}
        for layer, share in self._order.ratios.items():
            group = owner.get(layer)
            if group is None:
                why = self._reasons.get(
                    layer, "it makes no channels of its own; name the layer before it"
                )
                raise PassError(f"ratios: {layer} cannot be pruned: {why}")
            if shares.get(group.name, share) != share:
                raise PassError(
                    f"ratios: {said[group.name]} and {layer} lose the same channels; "
                    f"expected one share, found {shares[group.name]:g} and {share:g}"
                )
            shares[group.name], said[group.name] = share, layer
        return shares

    def _ranked(
        self, groups: list[Group], backward: Backward | None
    ) -> tuple[list[Group], Scores]:
        how = self._order.importance
        if how == "taylor":
            if backward is None:
                raise PassError("importance taylor needs training samples")
            scores = taylor(self.module, groups, backward())
        elif how == "bn_scale":
            scores, without = norm_scale(self.module, groups)
            bare = [g for g in groups if {one.name for one in g.members} & {*without}]
            for group in bare:
                reason = "it has no batch norm to be ranked by"
                if group.name in self._shares(groups):
                    raise PassError(f"ratios: {group.name} cannot be pruned: {reason}")
                self._reasons |= dict.fromkeys((group.name, *group.makers), reason)
            groups = [group for group in groups if group not in bare]
        else:
            scores = magnitude(self.module, groups, 1 if how == "l1" else 2)
        for name, score in scores.items():
            if not np.isfinite(score).all():
                raise PassError(f"{name}: its weights or gradients are not finite")
        return groups, scores

    def _narrow(self, group: Group) -> str:
        if group.heads:
            return "it has one head"
        return (
            f"it has {group.count} channels, and what stays is a multiple of "
            f"{int(np.lcm(self._order.multiple, group.unit))}"
        )


def known_layers(module: Any, names: Iterable[str], key: str) -> None:
    """Refuse names that the module has not.

    Raises:
        PassError: names the nearest one.
    """
    known = [name for name, _ in module.named_modules() if name]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise PassError(f"{key}: the model has no layer {name!r}{hint}")


def example_of(inputs: Sequence[TensorSpec]) -> tuple[Any, ...]:
    """Seeded inputs of one sample, in the order of ``forward``; whole numbers are 0."""
    torch = torch_here()
    random = np.random.default_rng(0)
    arrays = []
    for spec in inputs:
        shape = [max(size, 1) for size in spec.shape]
        floats = np.issubdtype(spec.dtype, np.floating)
        drawn = random.standard_normal(shape) if floats else np.zeros(shape)
        arrays.append(drawn.astype(spec.dtype))
    return tuple(torch.from_numpy(array) for array in arrays)
