"""Which channels can only go together: the groups of a module.

1. The dependencies come from torch-pruning's DepGraph (Fang et al., 2023), which
   follows the autograd graph of one run: additions, concatenations, flattening.
2. Heads are groups of their own (:mod:`attention`).
3. Nothing is believed: :mod:`proof` cuts a part of every group and compares.
4. What cannot be pruned has a reason that names the layer.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import MachineLacks, PassError, one_line
from ..intake.modules import torch_here
from .attention import Attention, attentions, stand_in
from .slots import Places, Slot, refusal, slot_of


@dataclass(frozen=True)
class Group:
    """Channels (or heads) that can go, each with all that hangs on it.

    ``name`` is the layer that they are called by; ``unit`` is how many go at once;
    ``tied`` are heads that share their width with these channels: as many indices go
    in them.
    """

    name: str
    count: int
    slots: tuple[Slot, ...]
    unit: int = 1
    heads: bool = False
    tied: tuple["Group", ...] = ()

    @property
    def layers(self) -> frozenset[str]:
        """All layers that change when a channel goes."""
        mine = {slot.layer for slot in self.slots}
        return frozenset(mine.union(*(one.layers for one in self.tied)))

    @property
    def makers(self) -> tuple[str, ...]:
        """The layers whose outputs become fewer."""
        return tuple(slot.layer for slot in self.slots if slot.role == "makes")

    @property
    def cost(self) -> float:
        """Channels of layers that go with one of the group."""
        made = [
            len(slot.indices(range(self.count)))
            for slot in self.slots
            if slot.role == "makes"
        ]
        return max(1.0, sum(made) / self.count)

    @property
    def members(self) -> tuple["Group", ...]:
        """Itself and the heads that are tied to it."""
        return (self, *self.tied)


@dataclass
class Found:
    """The groups before proof, heads that can be tied to them, and what was refused."""

    groups: list[Group] = field(default_factory=list)
    heads: list[Attention] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def find(module: Any, example: Sequence[Any]) -> Found:
    """The groups of ``module``, which stays as it is; ``example`` are its inputs.

    Raises:
        PassError: the module cannot be traced.
        MachineLacks: torch-pruning is not installed.
    """
    torch = torch_here()
    if not any(isinstance(part, _roots(torch)) for part in module.modules()):
        return Found()
    traced = copy.deepcopy(module)
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    found = Found(heads=attentions(traced, example))
    opaque = [stand_in(traced, one) for one in found.heads if one.built_in]
    graph = _traced(torch, traced, example, opaque)
    reader = _Reader(torch, module, graph, found.heads)
    order = {name: place for place, (name, _) in enumerate(module.named_modules())}
    done = {
        traced.get_submodule(name) for one in found.heads for name in one.split
    } | set(opaque)
    for root in [part for part in graph.module2node if isinstance(part, _roots(torch))]:
        if root in done:
            continue
        done.add(root)
        slots, made, why = reader.read(root, done)
        made.sort(key=lambda name: order[name])
        if why is None:
            count = len(slots[0].places)
            found.groups.append(Group(made[0], count, tuple(slots)))
            continue
        culprit, reason = why
        for name in made:
            tied = "" if culprit == name else f"tied to {culprit}: "
            found.refused[name] = tied + reason
    found.groups.sort(key=lambda group: order[group.name])
    return found


def _roots(torch: Any) -> tuple[type, ...]:
    return (torch.nn.modules.conv._ConvNd, torch.nn.Linear)


def _traced(torch: Any, traced: Any, example: Sequence[Any], opaque: list[Any]) -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise MachineLacks(
            "torch-pruning is not installed; install it with: "
            "pip install 'edgeml[torch]'"
        ) from error
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch_pruning.DependencyGraph().build_dependency(
                traced, tuple(example), ignored_layers=opaque, verbose=False
            )
        except Exception as error:
            raise PassError(
                f"DepGraph cannot follow the model: {one_line(error)}"
            ) from error


class _Reader:
    """Translates a group of DepGraph's, which holds modules, into slots."""

    def __init__(
        self, torch: Any, module: Any, graph: Any, heads: Sequence[Attention]
    ) -> None:
        self._torch = torch
        self._parts = dict(module.named_modules())
        self._graph = graph
        self._names = {part: name for name, part in graph.model.named_modules()}
        self._parameters = {
            id(parameter): name for name, parameter in graph.model.named_parameters()
        }
        self._shared = _shared(module)
        self._stand_ins = {
            name: (one, slot)
            for one in heads
            if one.built_in
            for name, slot in one.stand_ins.items()
        }

    def read(
        self, root: Any, done: set[Any]
    ) -> tuple[list[Slot], list[str], tuple[str, str] | None]:
        """The group of a layer: its slots, the layers that make its channels, and why
        it cannot be pruned (which layer, what reason). These layers join ``done``.
        """
        name = self._names[root]
        try:
            raw = self._group(root)
        except PassError as error:
            return [], [name], (name, str(error))
        slots: list[Slot] = []
        made: list[str] = []
        why: tuple[str, str] | None = None
        for item in raw.items:
            found = self._item(item, len(raw[0].idxs))
            if self._makes(item):
                done.add(item.dep.target.module)
            if isinstance(found, Slot):
                slots.append(found)
                if found.role == "makes":
                    made.append(found.layer)
            elif found is not None:
                why = why or found
                if self._makes(item):
                    made.append(found[0])
        if why is None and not any(slot.role == "reads" for slot in slots):
            reason = "no layer reads its channels: they are the model's output"
            why = (made[0], reason)
        slots.sort(key=lambda slot: slot.role != "makes")
        return slots, made, why

    def _group(self, root: Any) -> Any:
        pruner = self._graph.get_pruner_of_module(root)
        every = list(range(pruner.get_out_channels(root)))
        try:
            return self._graph.get_pruning_group(root, pruner.prune_out_channels, every)
        except Exception as error:
            raise PassError(f"DepGraph cannot follow it: {one_line(error)}") from error

    def _item(self, item: Any, count: int) -> Slot | tuple[str, str] | None:
        """The slot, or (layer, why not), or None for what is no layer."""
        target, places = item.dep.target, _places(item, count)
        if isinstance(target.module, self._torch.nn.Parameter):
            name = self._parameters[id(target.module)]
            tensor = (name, target.pruning_dim)
            return self._fitting(Slot(name, "carries", (tensor,), (), places))
        name = self._names.get(target.module, "")
        if target.module not in self._names:
            return None
        if name in self._stand_ins:
            attention, slot = self._stand_ins[name]
            if attention.reason:
                return attention.name, attention.reason
            return self._fitting(slot(places))
        part = self._parts[name]
        reason = refusal(self._torch, part) or self._shared.get(name, "")
        if reason:
            return name, reason
        out = self._graph.is_out_channel_pruning_fn(item.dep.handler)
        return self._fitting(slot_of(self._torch, name, part, out, places))

    def _fitting(self, slot: Slot) -> Slot | tuple[str, str]:
        """The slot, unless DepGraph counts more channels than there are."""
        highest = max((index for place in slot.places for index in place), default=-1)
        for name, dim in slot.tensors:
            owner, _, leaf = name.rpartition(".")
            tensor = getattr(self._parts[owner], leaf)
            if highest >= tensor.shape[dim]:
                return slot.layer, "DepGraph cannot follow its channels"
        return slot

    def _makes(self, item: Any) -> bool:
        return isinstance(
            item.dep.target.module, _roots(self._torch)
        ) and self._graph.is_out_channel_pruning_fn(item.dep.handler)


def _places(item: Any, count: int) -> Places:
    places: list[list[int]] = [[] for _ in range(count)]
    for index, root in zip(item.idxs, item.root_idxs, strict=True):
        places[root].append(index)
    return tuple(tuple(sorted(one)) for one in places)


def _shared(module: Any) -> dict[str, str]:
    """Layer → reason, of those that share a tensor with another."""
    owners: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {
        one: f"it shares its weights with {next(n for n in names if n != one)}"
        for names in owners.values()
        if len(set(names)) > 1
        for one in names
    }


def flattened(groups: Sequence[Group]) -> Iterator[Group]:
    """The groups and the heads tied to them."""
    for group in groups:
        yield from group.members
