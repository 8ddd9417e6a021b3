"""Whether groups are what they are taken for: a part is cut, and the numbers compared.

1. A module with channels cut out must give what it gives with zeros in place of all
   weights that read them. Norms over channels see fewer of them and differ by right:
   in the comparison they only scale.
2. A group that fails is refused with what went wrong; the others are not touched by it.
   So a reshape with a number in it, a shuffle or a softmax over channels is found
   here, and not by the user.
"""

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import PassError, one_line
from ..intake.modules import named_outputs, torch_here
from .attention import Attention, unfused
from .cutting import Gone, cut, mask
from .groups import Found, Group

TOLERANCE = 1e-3
"""In parts of the largest output: sums of other lengths differ in their last digits."""


def proved(module: Any, example: Sequence[Any], found: Found) -> Found:
    """The groups that hold, heads among them; the others with their reasons."""
    trial = _Trial(module, example)
    groups, refused = _tied(found.groups, [h for h in found.heads if h.built_in])
    refused = {**found.refused, **refused}
    own = [one for one in found.heads if not one.built_in]
    refused |= {one.name: one.reason for one in own if one.reason}
    groups += [_heads(one) for one in own if not one.reason]
    bad = trial.bad(groups)
    good = [group for group in groups if group.name not in bad]
    # code that takes the inner width for the stream's: both go together
    streams = [group for group in groups if group.name in bad and not group.heads]
    for group in _tied(streams, [one for one in own if one.name in bad])[0]:
        if group.tied and not trial.fault([group]):
            good.append(group)
            for one in group.members:
                bad.pop(one.name, None)
    fault = trial.fault([group for group in good if group.count > group.unit])
    if fault:  # each holds by itself, and not together
        bad |= {group.name: fault for group in good}
        good = []
    for group in groups:
        if group.name in bad:
            names = (group.name, *group.makers)
            refused |= dict.fromkeys(names, bad[group.name])
    order = [name for name, _ in module.named_modules()]
    good.sort(key=lambda group: order.index(group.name))
    return Found(good, found.heads, refused)


def _heads(attention: Attention) -> Group:
    return Group(attention.name, attention.heads, attention.slots, heads=True)


def _tied(
    groups: Sequence[Group], heads: Sequence[Attention]
) -> tuple[list[Group], dict[str, str]]:
    """The groups with the heads that share their width, and the heads without one."""
    refused: dict[str, str] = {}
    result = list(groups)
    for one in heads:
        if one.reason:
            refused[one.name] = one.reason
            continue
        read = {one.name} if one.built_in else {*one.projections}
        ends = {(name, "reads") for name in read}
        ends.add((one.name if one.built_in else one.output, "makes"))
        place = next(
            (
                place
                for place, group in enumerate(result)
                if ends <= {(slot.layer, slot.role) for slot in group.slots}
                and group.count == one.width
            ),
            None,
        )
        if place is None:
            refused[one.name] = "what it reads and what it makes are not tied"
            continue
        group = result[place]
        result[place] = replace(
            group,
            unit=int(np.lcm(group.unit, one.head_width)),
            tied=(*group.tied, _heads(one)),
        )
    untied = set(refused) & {h.name for h in heads if h.built_in}
    for group in [g for g in result if untied & g.layers]:
        reason = f"it goes through {sorted(untied & group.layers)[0]}"
        refused = dict.fromkeys(group.makers, reason) | refused
        result.remove(group)
    return result, refused


class _Trial:
    """One module, and runs of its copies on one seeded input."""

    def __init__(self, module: Any, example: Sequence[Any]) -> None:
        self._module = module
        self._example = example

    def bad(self, groups: Sequence[Group]) -> dict[str, str]:
        """Group → what went wrong; each by itself only where several fail."""
        groups = [group for group in groups if group.count > group.unit]
        fault = self.fault(groups)
        if not fault:
            return {}
        if len(groups) == 1:
            return {groups[0].name: fault}
        half = len(groups) // 2
        return self.bad(groups[:half]) | self.bad(groups[half:])

    def fault(self, groups: Sequence[Group]) -> str:
        """What is wrong with cutting these; "" if nothing is.

        A few channels of each, then a half: widths that only go together by chance
        (both halved) do not do so twice.
        """
        if not groups:
            return ""
        return self._fault(groups, _some(groups, 0.0)) or self._fault(
            groups, _some(groups, 0.5)
        )

    def _fault(self, groups: Sequence[Group], gone: Gone) -> str:
        masked, smaller = (copy.deepcopy(self._module) for _ in range(2))
        mask(masked, groups, gone)
        cut(smaller, groups, gone)
        wanted = self._run(masked)
        try:
            given = self._run(smaller)
        except PassError as error:
            return f"the model does not run with fewer of them: {error}"
        for name, right in wanted.items():
            left = given[name]
            if left.shape != right.shape:
                return f"they are the model's output {name}"
            apart = (left - right).abs().max() if right.numel() else 0.0
            if right.isfinite().all() and not apart <= TOLERANCE * right.abs().max():
                return (
                    "without them the model computes something else than with zeros "
                    "in their place: they are reordered or mixed on the way"
                )
        return ""

    def _run(self, module: Any) -> dict[str, Any]:
        torch = torch_here()
        _neutral(torch, module)
        # modules of torch.fx print what goes wrong in them
        silent = contextlib.redirect_stderr(io.StringIO())
        try:
            with unfused(), torch.no_grad(), silent:
                outputs = named_outputs(module(*self._example))
        except Exception as error:  # the user's own code
            raise PassError(one_line(error)) from error
        return {name: one.double() for name, one in outputs.items()}


def _some(groups: Sequence[Group], share: float) -> Gone:
    """About that share of each group, at least one unit; random but always the same."""
    random = np.random.default_rng(0)
    gone = {}
    for group in groups:
        wanted = int(group.count * share) // group.unit * group.unit
        number = max(group.unit, wanted)
        gone[group.name] = random.permutation(group.count)[:number].tolist()
        for heads in group.tied:
            few = number * heads.count // group.count
            gone[heads.name] = random.permutation(heads.count)[:few].tolist()
    return gone


def _neutral(torch: Any, module: Any) -> None:
    """Have norms over channels only scale and shift."""
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm | torch.nn.GroupNorm):
            last = isinstance(part, torch.nn.LayerNorm)
            part.forward = _scaling(part, last)


def _scaling(part: Any, last: bool) -> Any:
    def forward(x: Any) -> Any:
        if part.weight is None:
            return x
        shape = (-1,) if last else (-1, *[1] * (x.dim() - 2))
        y = x * part.weight.reshape(shape)
        return y if part.bias is None else y + part.bias.reshape(shape)

    return forward
