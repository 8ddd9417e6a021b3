"""A trained or pruned module as bytes, and the module made again from them.

A pruned network's weights do not load into the class that made it. So the shapes go
with them: the tensors as safetensors, and every integer attribute (``out_channels``,
``groups``, ``num_features``, a user's own ``heads``) that differs from a fresh module
of the same factory. Nothing here can run code when it is read.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from device_agent.contract.tensors import TensorSpec

from ..errors import ModelError
from ..model import Model, Step
from .modules import torch_here

Fresh = Callable[[Model], Any]
"""(a model without payload) → a fresh ``torch.nn.Module`` to restore into."""


def packed(model: Model, fresh: Any) -> bytes:
    """``model`` (level module) as bytes; ``fresh``: a module of the same factory."""
    from safetensors.torch import save

    head = {
        "inputs": [spec.model_dump() for spec in model.inputs],
        "outputs": [spec.model_dump() for spec in model.outputs],
        "lineage": [[step.verb, step.parameters] for step in model.lineage],
        "attributes": _changed(model.payload, fresh),
    }
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.payload.state_dict().items()
    }
    raw: bytes = save(tensors)
    return json.dumps(head).encode() + b"\n" + raw


def unpacked(raw: bytes, fresh: Fresh) -> Model:
    """The model that :func:`packed` wrote, in ``eval`` mode.

    Raises:
        ModelError: the fresh module has other layers than the one that was packed.
    """
    from safetensors.torch import load

    line, _, tensors = raw.partition(b"\n")
    head = json.loads(line)
    model = Model(
        level="module",
        payload=None,
        inputs=tuple(TensorSpec(**spec) for spec in head["inputs"]),
        outputs=tuple(TensorSpec(**spec) for spec in head["outputs"]),
        lineage=tuple(Step(verb, parameters) for verb, parameters in head["lineage"]),
    )
    module = fresh(model)
    reshape(module, load(tensors), head["attributes"])
    module.eval()
    return Model("module", module, model.inputs, model.outputs, model.lineage)


def reshape(
    module: Any, tensors: Mapping[str, Any], attributes: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give ``module`` these tensors, whatever their shapes, and these attributes.

    Raises:
        ModelError: the names do not fit.
    """
    torch = torch_here()
    wanted = module.state_dict()
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())
        raise ModelError(
            f"the factory makes other layers than before: {', '.join(odd[:6])}"
        )
    parts = dict(module.named_modules())
    for name, values in attributes.items():
        for attribute, value in values.items():
            found = tuple(value) if isinstance(value, list) else value
            setattr(parts[name], attribute, found)
    made: dict[int, Any] = {}  # layers that shared a parameter share it again
    for name, tensor in tensors.items():
        place, _, leaf = name.rpartition(".")
        part = parts[place]
        old = part._parameters.get(leaf)
        if old is None:
            part._buffers[leaf] = tensor
            continue
        if id(old) not in made:
            new = torch.nn.Parameter(tensor, requires_grad=old.requires_grad)
            made[id(old)] = old, new  # the old one lives on: ids are not used twice
        part._parameters[leaf] = made[id(old)][1]


def _changed(module: Any, fresh: Any) -> dict[str, dict[str, Any]]:
    before = dict(fresh.named_modules())
    found: dict[str, dict[str, Any]] = {}
    for name, part in module.named_modules():
        other = vars(before[name]) if name in before else {}
        different = {
            key: value
            for key, value in vars(part).items()
            if _numbers(value) and key in other and other[key] != value
        }
        if different:
            found[name] = different
    return found


def _numbers(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_numbers, value))
    return type(value) is int
