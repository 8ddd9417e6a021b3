"""Attention: its heads as things that can go.

Two kinds are known:

1. ``nn.MultiheadAttention`` over one sequence. Its inner width is the width of what it
   reads and writes, so heads go together with as many channels of the stream.
2. A module of one's own with an integer ``heads`` and linear layers inside: those whose
   outputs are split into heads (``q``, ``k``, ``v``, or all in one), and one that
   reads the joined heads. Heads go by themselves; where the module's code takes the
   inner width for the stream's, with as many channels.

That the layout is the usual one (heads outermost) is not believed but proved
(:mod:`proof`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..intake.modules import torch_here
from .slots import Places, Slot, refusal

IN, OUT = "edgeml_in", "edgeml_out"
"""Linear layers that stand in for a built-in attention while it is traced."""


@dataclass(frozen=True)
class Attention:
    """One attention module: its heads, and the slots that they lie in."""

    name: str
    heads: int
    head_width: int
    slots: tuple[Slot, ...]
    projections: tuple[str, ...]
    """Layers whose outputs are split into heads."""
    output: str
    """The layer that reads the joined heads."""
    built_in: bool
    reason: str = ""
    """Why its heads cannot go."""

    @property
    def width(self) -> int:
        """Of all heads together."""
        return self.heads * self.head_width

    @property
    def split(self) -> tuple[str, ...]:
        """Layers, while it is traced, whose outputs are heads and no channels."""
        prefix = f"{self.name}." if self.name else ""
        return (f"{prefix}{IN}",) if self.built_in else self.projections

    @property
    def stand_ins(self) -> dict[str, Callable[[Places], Slot]]:
        """Name of a stand-in layer → the slot of the attention that it stands for."""
        prefix = f"{self.name}." if self.name else ""
        out = f"{prefix}out_proj"

        def reads(places: Places) -> Slot:
            tensor = (f"{prefix}in_proj_weight", 1)
            return Slot(self.name, "reads", (tensor,), (), places)

        def makes(places: Places) -> Slot:
            counts = [(out, "out_features", 1)]
            counts += [(self.name, key, 1) for key in ("embed_dim", "kdim", "vdim")]
            tensors = tuple((name, 0) for name in _tensors(out, self._bias))
            return Slot(self.name, "makes", tensors, tuple(counts), places)

        return {f"{prefix}{IN}": reads, f"{prefix}{OUT}": makes}

    @property
    def _bias(self) -> bool:
        return any(
            tensor.endswith("in_proj_bias")
            for slot in self.slots
            for tensor, _ in slot.tensors
        )


@contextmanager
def unfused() -> Iterator[None]:
    """Have torch's encoder layers call their parts one by one, as when they train."""
    fused = torch_here().backends.mha
    before = fused.get_fastpath_enabled()
    fused.set_fastpath_enabled(False)
    try:
        yield
    finally:
        fused.set_fastpath_enabled(before)


def attentions(module: Any, example: Sequence[Any]) -> list[Attention]:
    """All attention modules of ``module``, in its order."""
    torch = torch_here()
    crossed = _crossed(torch, module, example)
    found = []
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.MultiheadAttention):
            found.append(_built_in(name, part, name in crossed))
        elif (own := _own(torch, name, part)) is not None:
            found.append(own)
    return [one for one in found if not _inside(one, found)]


def _inside(outer: Attention, found: Sequence[Attention]) -> bool:
    """Whether another of ``found`` is a part of this one, which then is none itself."""
    prefix = f"{outer.name}." if outer.name else ""
    return any(
        one is not outer and one.name.startswith(prefix) and one.name != outer.name
        for one in found
    )


def stand_in(traced: Any, attention: Attention) -> Any:
    """Make the built-in attention of ``traced`` two plain linear layers; gives it."""
    torch = torch_here()
    part = traced.get_submodule(attention.name)
    width = attention.width
    part.add_module(IN, torch.nn.Linear(width, width))
    part.add_module(OUT, torch.nn.Linear(width, width))

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        read = getattr(part, IN)
        joined = read(query)
        for other in (key, value):
            if other is not query:
                joined = joined + read(other).mean()
        return getattr(part, OUT)(joined), None

    part.forward = forward
    return part


def _built_in(name: str, part: Any, crossed: bool) -> Attention:
    heads, width = part.num_heads, part.head_dim
    reason = ""
    if crossed:
        reason = "it attends to something else than it asks from"
    elif not part._qkv_same_embed_dim or part.bias_k is not None:
        reason = "its keys and values are of another width, or have a bias of their own"
    prefix = f"{name}." if name else ""
    total = heads * width
    rows = tuple(
        tuple(
            which * total + head * width + one
            for which in range(3)
            for one in range(width)
        )
        for head in range(heads)
    )
    made = [(f"{prefix}in_proj_weight", 0)]
    if part.in_proj_bias is not None:
        made.append((f"{prefix}in_proj_bias", 0))
    out = f"{prefix}out_proj"
    counts = ((out, "in_features", 1), (name, "num_heads", width))
    slots = (
        Slot(name, "makes", tuple(made), (), rows),
        Slot(out, "reads", ((f"{out}.weight", 1),), counts, _spans(heads, width, 1)),
    )
    return Attention(name, heads, width, slots, (), out, True, reason)


def _own(torch: Any, name: str, part: Any) -> Attention | None:
    heads = getattr(part, "heads", None)
    if type(heads) is not int or heads < 1:
        return None
    linear = {
        f"{name}.{leaf}" if name else leaf: layer
        for leaf, layer in part.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    if len(linear) not in (2, 4):
        return None
    *split, output = linear
    width = linear[output].in_features
    times = 1 if len(split) == 3 else 3
    if width % heads or any(linear[one].out_features != times * width for one in split):
        return None
    reason = next(filter(None, (refusal(torch, one) for one in linear.values())), "")
    each = width // heads
    slots = [
        Slot(
            one, "makes",
            tuple((t, 0) for t in _tensors(one, linear[one].bias is not None)),
            ((one, "out_features", 1),),
            _spans(heads, each, times),
        )
        for one in split
    ]  # fmt: skip
    counts = ((output, "in_features", 1), (name, "heads", each))
    read = ((f"{output}.weight", 1),)
    slots.append(Slot(output, "reads", read, counts, _spans(heads, each, 1)))
    return Attention(
        name, heads, each, tuple(slots), tuple(split), output, False, reason
    )


def _spans(heads: int, width: int, times: int) -> Places:
    """Head → its indices, heads outermost, ``times`` after one another."""
    return tuple(
        tuple(
            which * heads * width + head * width + one
            for which in range(times)
            for one in range(width)
        )
        for head in range(heads)
    )


def _tensors(layer: str, bias: bool) -> list[str]:
    return [f"{layer}.weight", f"{layer}.bias"] if bias else [f"{layer}.weight"]


def _crossed(torch: Any, module: Any, example: Sequence[Any]) -> set[str]:
    """Built-in attentions whose query, key and value are not one tensor."""
    crossed: set[str] = set()
    hooks = []
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.MultiheadAttention):

            def look(_: Any, given: Any, named: Any, name: str = name) -> None:
                every = [
                    *given[:3],
                    *(named[k] for k in ("key", "value") if k in named),
                ]
                if any(one is not every[0] for one in every):
                    crossed.add(name)

            hooks.append(part.register_forward_pre_hook(look, with_kwargs=True))
    try:
        if hooks:
            with unfused(), torch.no_grad():
                module(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return crossed
