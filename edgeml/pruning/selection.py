"""Which channels go: the least important, in numbers that the kernels like.

1. A count that stays is a multiple of ``multiple`` (and of what the group moves at
   once), or the count that was there. At least one multiple stays; of heads, one.
2. ``layer``: every group loses its share, rounded to the nearest such count.
3. ``global``: groups lose one multiple after the other, that of the least mean score
   first, until the share of all channels of all layers is met as nearly as can be.
4. Shares of single groups go before both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from device_agent.contract.tensors import Array

from .groups import Group


@dataclass(frozen=True)
class Wish:
    """What shall go, in shares of ``widths``: the counts before the first round."""

    share: float
    shares: Mapping[str, float]
    scope: str
    multiple: int
    widths: Mapping[str, int]


def select(
    groups: Sequence[Group], scores: Mapping[str, Array], wish: Wish
) -> dict[str, list[int]]:
    """Group → channels that go; those of tied heads, too."""
    keep: dict[str, int] = {}
    free = []
    for group in groups:
        share = wish.shares.get(group.name)
        if share is None and wish.scope == "layer":
            share = wish.share
        if share is None:
            free.append(group)
        else:
            wanted = wish.widths[group.name] * (1 - share)
            keep[group.name] = _nearest(group, wanted, wish.multiple)
    keep |= _compete(free, scores, wish)
    gone: dict[str, list[int]] = {}
    for group in groups:
        number = group.count - keep[group.name]
        gone[group.name] = _least(scores[group.name], number)
        for heads in group.tied:
            few = number * heads.count // group.count
            gone[heads.name] = _least(scores[heads.name], few)
    return gone


def counts(group: Group, multiple: int) -> list[int]:
    """Counts that the group may be left with, the present one first."""
    step = 1 if group.heads else math.lcm(multiple, group.unit)
    below = range((group.count - 1) // step * step, 0, -step)
    return [group.count, *below]


def _nearest(group: Group, wanted: float, multiple: int) -> int:
    # of two equally near the larger: it is met first
    return min(counts(group, multiple), key=lambda count: abs(count - wanted))


def _compete(
    groups: Sequence[Group], scores: Mapping[str, Array], wish: Wish
) -> dict[str, int]:
    """Counts that are left of groups that share one number of channels to lose."""
    keep = {group.name: group.count for group in groups}
    target = sum(
        group.cost * (group.count - wish.widths[group.name] * (1 - wish.share))
        for group in groups
    )
    blocks = []
    for place, group in enumerate(groups):
        ranked = np.sort(scores[group.name])
        allowed = counts(group, wish.multiple)
        for before, after in pairwise(allowed):
            block = ranked[group.count - before : group.count - after]
            blocks.append((float(block.mean()), place, -after))
    for _, place, after in sorted(blocks):
        group = groups[place]
        lost = group.cost * (keep[group.name] + after)
        if lost / 2 > target:
            break
        keep[group.name] = -after
        target -= lost
    return keep


def _least(scores: Array, number: int) -> list[int]:
    order = np.argsort(scores, kind="stable")[:number]
    return sorted(order.tolist())
