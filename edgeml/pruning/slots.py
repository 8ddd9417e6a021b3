"""Where the channels of a group lie: dimensions of tensors, and the counts of them.

A slot is told as names and numbers, so that it holds for every copy of the module.

| role | layer | is it zeroed in place of being cut? |
|---|---|---|
| ``makes`` | convolution, linear: its outputs | no |
| ``reads`` | convolution, linear: its inputs | yes: then nobody sees the channel |
| ``scales`` | batch norm | no |
| ``carries`` | depthwise, other norms, PReLU, embedding, a bare parameter | no |
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["makes", "reads", "scales", "carries"]
Places = tuple[tuple[int, ...], ...]
"""Channel → its indices; none, one, or several where channels are flattened."""


@dataclass(frozen=True)
class Slot:
    """One dimension of a layer's tensors along which channels lie.

    ``tensors`` are (name, dimension), the weight first; ``counts`` are (module,
    attribute, indices that count as one).
    """

    layer: str
    role: Role
    tensors: tuple[tuple[str, int], ...]
    counts: tuple[tuple[str, str, int], ...]
    places: Places

    def indices(self, channels: Sequence[int]) -> list[int]:
        """Where these channels lie."""
        return [index for channel in channels for index in self.places[channel]]


def is_of(layer: str, names: Collection[str]) -> bool:
    """Whether ``layer`` is one of ``names``, or a part of one."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def is_depthwise(part: Any) -> bool:
    """Whether each channel of a convolution is by itself."""
    return bool(part.groups == part.in_channels == part.out_channels > 1)


def refusal(torch: Any, part: Any) -> str:
    """Why the channels of this layer cannot be cut; "" if they can."""
    nn = torch.nn
    known = (
        nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase,
        nn.GroupNorm, nn.LayerNorm, nn.PReLU, nn.Embedding,
    )  # fmt: skip
    if not isinstance(part, known):
        return f"it is a {type(part).__name__}"
    for name in ("weight", "bias"):
        if hasattr(part, name) and name not in part._parameters:
            return f"its {name} is computed (a parametrization); fold it first"
    if isinstance(part, nn.modules.conv._ConvNd):
        if part.groups > 1 and not is_depthwise(part):
            return f"it is a convolution of {part.groups} groups"
    elif isinstance(part, nn.GroupNorm) and part.num_groups > 1:
        return f"it is a group norm of {part.num_groups} groups"
    elif isinstance(part, nn.LayerNorm) and len(part.normalized_shape) > 1:
        return "it is a layer norm over more than one dimension"
    return ""


def slot_of(torch: Any, name: str, part: Any, out: bool, places: Places) -> Slot:
    """The slot of a layer that :func:`refusal` has nothing against.

    ``out``: whether the channels are those that it makes, not those that it reads.
    """
    nn = torch.nn
    role: Role = "carries"
    rows: dict[str, int] = {"weight": 0, "bias": 0}
    if isinstance(part, nn.modules.conv._ConvNd):
        counts = ["in_channels", "out_channels", "groups"]
        if not is_depthwise(part):
            role, counts = ("makes", counts[1:2]) if out else ("reads", counts[:1])
            side = int(out == part.transposed)
            rows = {"weight": side, "bias": 0} if out else {"weight": side}
    elif isinstance(part, nn.Linear):
        role, counts = (
            ("makes", ["out_features"]) if out else ("reads", ["in_features"])
        )
        rows = rows if out else {"weight": 1}
    elif isinstance(part, nn.modules.batchnorm._NormBase):
        role, counts = "scales", ["num_features"]
        rows |= {"running_mean": 0, "running_var": 0}
    elif isinstance(part, nn.GroupNorm):
        counts = ["num_channels"]
    elif isinstance(part, nn.LayerNorm):
        counts = ["normalized_shape"]
    elif isinstance(part, nn.Embedding):
        counts, rows = ["embedding_dim"], {"weight": 1}
    else:
        counts = ["num_parameters"]
        if part.num_parameters == 1:  # one slope for all channels
            counts, rows = [], {}
    return Slot(
        name,
        role,
        tuple(
            (f"{name}.{leaf}".lstrip("."), dim)
            for leaf, dim in rows.items()
            if getattr(part, leaf, None) is not None
        ),
        tuple((name, attribute, 1) for attribute in counts),
        places,
    )
