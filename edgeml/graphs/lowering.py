"""ONNX graph → ``.tflite`` in float32, by way of torch, checked layer by layer.

The rules it keeps:

1. Two ways lead there: the torch module that the graph was exported from, when there
   is one, and the graph itself made a module again. The first whose outputs agree with
   the ONNX graph within :data:`ALLOWED` is taken.
2. The batch is 1; inputs and outputs carry the model's own names.
3. Tensors are named after the ONNX nodes that end in them, so that people (and
   ``keep``) find their layers again; the converter's own names tell of its insides.
4. The same model gives the same bytes.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from device_agent.contract.tensors import Array, Feeds

from ..errors import BackendError, EdgemlError, MachineLacks, one_line
from ..model import Model
from .conversion import label_of, labelled
from .tflite import Inside, main_ports, renamed, silence
from .twins import Twins, compare, is_weighted

ALLOWED = 1e-4
"""How far an output may be off, in parts of its largest magnitude."""
SEEDED = 2
"""Feeds made up where a model comes without samples."""


@dataclass(frozen=True)
class Lowered:
    """A ``.tflite`` in float32 and how it belongs to the ONNX graph."""

    raw: bytes
    owners: Mapping[str, str]
    """ONNX node → name of the tensor in which it ends."""
    layers: Mapping[str, tuple[str, str]]
    """Name of a tensor → the ONNX node that stands for its operator, and its kind."""
    tensors: frozenset[str]
    """Names of all that is computed; some belong to no ONNX node."""
    error: float
    """Largest difference from the ONNX graph, in parts of an output's magnitude."""
    twins: Twins
    """Which tensors of the ONNX graph the operators make."""

    def tensors_of(self, keep: Sequence[str]) -> tuple[str, ...]:
        """The tensors in which the nodes ``keep`` end; a tensor's name is good, too.

        Raises:
            BackendError: there is no such node.
        """
        known = {**{name: name for name in self.tensors}, **self.owners}
        unknown = [name for name in keep if name not in known]
        if unknown:
            raise BackendError(
                f"keep names {', '.join(map(repr, unknown[:5]))}, which is no node "
                "that is left of the model in LiteRT"
            )
        return tuple(dict.fromkeys(known[name] for name in keep))


def lower(
    model: Model, feeds: Sequence[Feeds] = (), like: Lowered | None = None
) -> Lowered:
    """The model (level graph) as a checked ``.tflite``.

    Args:
        model: at level graph.
        feeds: a few samples of batch 1.
        like: of the same graph with other weights: the names will be the same.

    Raises:
        BackendError: no way leads there; says how each ended.
        MachineLacks: torch or litert-torch is not installed.
    """
    feeds = feeds or seeded(model)
    ways: list[tuple[str, Callable[[], Model]]] = []
    if model.origin is not None:
        ways.append(("torch module", model.origin))
    ways.append(("ONNX graph", lambda: _module_of(model)))
    failures = []
    for way, module in ways:
        try:
            return checked(model, converted(module()), feeds, like)
        except MachineLacks:
            raise
        except EdgemlError as error:
            failures.append(f"from the {way}: {error}")
    raise BackendError("LiteRT conversion failed " + "; ".join(failures))


def converted(module: Model) -> bytes:
    """What litert-torch makes of a module, as it is.

    Raises:
        BackendError: litert-torch cannot.
        MachineLacks: it is not installed.
    """
    torch = _torch()
    example = tuple(
        torch.zeros(
            fixed(spec.shape), dtype=torch.from_numpy(np.zeros(1, spec.dtype)).dtype
        )
        for spec in module.inputs
    )
    with silence(), _one_thread(torch), torch.no_grad():
        try:
            import litert_torch
        except ImportError as error:
            raise MachineLacks(
                f"litert-torch is not installed ({error}); "
                "install it with: pip install 'edgeml[litert]'"
            ) from error
        try:
            made = litert_torch.convert(_flat(torch, module.payload), example)
            raw: bytes = made.model_content()
        except Exception as error:
            raise BackendError(f"litert-torch: {_heart(error)}") from error
    return raw


def checked(
    model: Model, raw: bytes, feeds: Sequence[Feeds], like: Lowered | None = None
) -> Lowered:
    """A ``.tflite`` under the names of the ONNX graph, once it is seen to agree.

    Raises:
        BackendError: its outputs differ; names the first layer that was lost. Or its
            operators are not those of ``like``.
    """
    inside = _ported(model, raw)
    twins = compare(model, inside, feeds)
    disagree(twins)
    if like is not None:
        if _wiring(inside) != _wiring(Inside(like.raw)):
            raise BackendError("with other weights litert-torch makes other operators")
        twins = replace(like.twins, errors=twins.errors)
    return _named(model, raw, inside, twins)


def disagree(twins: Twins) -> None:
    """Nothing, when the outputs agree.

    Raises:
        BackendError: they do not; names the first layer that was lost.
    """
    wrong = {name: error for name, error in twins.errors.items() if error > ALLOWED}
    if not wrong:
        return
    name = max(wrong, key=lambda one: wrong[one])
    blame = (
        f"; the first layer whose values are nowhere in it is {twins.lost[0]}"
        if twins.lost
        else ""
    )
    raise BackendError(
        f"the converted model differs: output {name!r} by {wrong[name]:.1e} of its "
        f"largest value, allowed {ALLOWED:.0e}{blame}"
    )


def seeded(model: Model) -> list[Feeds]:
    """Feeds for a model without samples: normal numbers, ones for other types."""
    random = np.random.default_rng(0)

    def values(spec: Any) -> Array:
        if spec.dtype.kind == "f":
            return random.standard_normal(fixed(spec.shape)).astype(spec.dtype)
        return np.ones(fixed(spec.shape), spec.dtype)

    return [{spec.name: values(spec) for spec in model.inputs} for _ in range(SEEDED)]


def fixed(shape: Sequence[int]) -> list[int]:
    """A shape of batch 1."""
    return [1 if size == -1 else size for size in shape]


def _wiring(inside: Inside) -> list[Any]:
    """Each operator, and which ones it reads; numbers of constants may differ."""
    makers = {index: op.place for index, op in inside.made.items()}
    return [(op.name, [makers.get(one) for one in op.inputs]) for op in inside.ops]


def _ported(model: Model, raw: bytes) -> Inside:
    """The file as it is, its inputs and outputs under the names of the model."""
    inside = Inside(raw)
    inputs, outputs = main_ports(raw)
    wanted = [len(model.inputs), len(model.outputs)]
    if [len(inputs), len(outputs)] != wanted:
        raise BackendError(
            f"litert-torch made a model of {len(inputs)} inputs and {len(outputs)} "
            f"outputs; expected {wanted[0]} and {wanted[1]}: an input without effect "
            "is left out, an output given twice is merged"
        )
    pairs = zip(model.inputs, inputs, strict=True)
    inside.inputs = {spec.name: index for spec, index in pairs}
    made = zip(model.outputs, outputs, strict=True)
    inside.outputs = {spec.name: index for spec, index in made}
    return inside


def _named(model: Model, raw: bytes, inside: Inside, twins: Twins) -> Lowered:
    kinds = {label_of(node): node.op_type for node in labelled(model)}
    weighted = {label_of(node) for node in labelled(model) if is_weighted(model, node)}
    groups: dict[int, list[str]] = {}
    for node in labelled(model):
        label = label_of(node)
        if label in twins.homes:
            groups.setdefault(twins.homes[label], []).append(label)
    titles = {
        place: next((one for one in labels if one in weighted), labels[-1])
        for place, labels in groups.items()
    }
    names = _names(model, inside, titles)
    first = {op.place: names[op.outputs[0]] for op in inside.ops}
    return Lowered(
        raw=renamed(
            raw, names,
            [spec.name for spec in model.inputs], [spec.name for spec in model.outputs],
        ),
        owners={label: first[place] for label, place in twins.homes.items()},
        layers={first[place]: (label, kinds[label]) for place, label in titles.items()},
        tensors=frozenset(first.values()),
        error=max(twins.errors.values()), twins=twins,
    )  # fmt: skip


def _names(model: Model, inside: Inside, titles: Mapping[int, str]) -> dict[int, str]:
    """A name for every tensor, each once: after ports, layers, and what reads it."""
    names = {index: name for name, index in inside.inputs.items()}
    names.update({index: name for name, index in inside.outputs.items()})
    for op in inside.ops:
        title = titles.get(op.place, f"{op.name.lower()}_{op.place}")
        for place, index in enumerate(op.outputs):
            names.setdefault(index, f"{title}:{place}" if place else title)
        for place, index in enumerate(op.inputs):
            if inside.is_constant(index):
                word = {1: "weight", 2: "bias"}.get(place, f"input_{place}")
                names.setdefault(index, f"{title}/{word}")
    taken: Counter[str] = Counter()
    for index in sorted(inside.tensors):
        name = names.get(index) or f"tensor_{index}"
        taken[name] += 1
        names[index] = f"{name}#{taken[name]}" if taken[name] > 1 else name
    return names


def _module_of(model: Model) -> Model:
    from .torched import module_of

    return module_of(model)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MachineLacks(
            "torch is not installed; install it with: pip install 'edgeml[litert]'"
        ) from error
    return torch


def _flat(torch: Any, module: Any) -> Any:
    """The module, its outputs as a flat tuple, whatever it returns."""

    class Flat(torch.nn.Module):  # type: ignore[misc]
        """Nothing but the call."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *inputs: Any) -> Any:
            """Outputs in the order in which the module gives them."""
            made = self.inner(*inputs)
            if isinstance(made, torch.Tensor):
                return made
            parts = made.values() if isinstance(made, Mapping) else made
            return tuple(parts)

    return Flat().eval()


@contextmanager
def _one_thread(torch: Any) -> Any:
    """Sums in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _heart(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(f"{type(error).__name__}: {' '.join(lines[:2])}", 240)
