"""One ONNX node on its way to ``torch.fx``: what its operator's function is given.

While a graph is turned into a module, an ONNX tensor is one of three things:

1. a :class:`Constant`: its value is known now;
2. a :class:`Computed`: a node of the new graph makes it; ``example`` is what that node
   gives for zeros, so shapes are known without shape inference;
3. :class:`Dims`: numbers that were read off a shape. They stay numbers (of Python, or
   ``size()`` of a tensor), so that a module can take other batches and other channel
   counts than the graph was exported with.
"""

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

import torch
from onnx.helper import tensor_dtype_to_np_dtype
from torch import fx, nn

from ..errors import ModelError
from .protos import describe


@dataclass(frozen=True)
class Constant:
    """A tensor that is known; ``name`` is what the ONNX graph calls it."""

    tensor: Any
    name: str


@dataclass(frozen=True)
class Computed:
    """A tensor that a node of the new graph makes."""

    node: Any

    @property
    def example(self) -> Any:
        """What the node gives for zeros."""
        return self.node.meta["example"]


@dataclass(frozen=True)
class Dims:
    """Sizes: ints, or nodes that give an int; ``scalar``: one number, rank 0."""

    sizes: tuple[Any, ...]
    scalar: bool = False

    @property
    def example(self) -> tuple[int, ...]:
        """The sizes for the example."""
        return tuple(
            size.meta["example"] if isinstance(size, fx.Node) else size
            for size in self.sizes
        )

    @property
    def tensor(self) -> Any:
        """The sizes for the example, as ONNX sees them."""
        found = torch.tensor(self.example, dtype=torch.int64)
        return found[0] if self.scalar else found


Value = Constant | Computed | Dims


class Building:
    """The module as far as it is built."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.names: dict[str, str] = {}
        """Name in the module → name in the ONNX graph."""
        self.constants: dict[str, Any] = {}
        """Name of a constant in the ONNX graph → the node that reads it."""
        self._head: Any = None

    def free(self, name: str) -> str:
        """A Python name for an ONNX name that the module does not have yet."""
        found = re.sub(r"\W+", "_", name).strip("_") or "node"
        if not found[0].isalpha() or iskeyword(found):
            found = f"n_{found}"
        while found in self.names or hasattr(self.root, found):
            found += "_"
        self.names[found] = name
        return found

    def input(self, name: str, example: Any) -> Computed:
        """One more input of the module."""
        made = self.graph.placeholder(self.free(name))
        made.meta["example"] = example
        self._head = made
        return Computed(made)

    def attribute(self, constant: Constant, learned: bool | None = None) -> Any:
        """The node that reads a constant; registered once per tensor of the graph.

        It is a parameter when it is ``learned``; unless told: when it has more than one
        number.
        """
        if constant.name not in self.constants:
            tensor, name = constant.tensor, self.free(constant.name)
            if learned is None:
                learned = tensor.is_floating_point() and tensor.numel() > 1
            if learned:
                self.root.register_parameter(name, nn.Parameter(tensor.clone()))
            else:
                self.root.register_buffer(name, tensor.clone())
            # at the head, where every node can read it
            with self.graph.inserting_after(self._head):
                made = self.graph.get_attr(name)
            made.meta["example"] = tensor
            self.constants[constant.name] = self._head = made
        return self.constants[constant.name]

    def call(self, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """The node that calls ``function``; arguments may be nodes."""
        made = self.graph.call_function(function, given, named)
        return self._exemplified(made, function)

    def layer(self, name: str, module: Any, *given: Any) -> Any:
        """The node that calls a new layer, named after the ONNX node ``name``."""
        place = self.free(name)
        self.root.add_module(place, module.eval())
        return self._exemplified(self.graph.call_module(place, given), module)

    def _exemplified(self, made: Any, function: Callable[..., Any]) -> Any:
        example = fx.node.map_arg(made.args, lambda node: node.meta["example"])
        named = fx.node.map_arg(made.kwargs, lambda node: node.meta["example"])
        with torch.no_grad():
            made.meta["example"] = function(*example, **named)
        return made


class Site:
    """One node of the ONNX graph with its inputs, and the means to add to the module.

    Inputs are spoken of by their place. What is missing, or not constant where torch
    needs a constant, is a :class:`ModelError` that names operator and node.
    """

    def __init__(
        self,
        building: Building,
        node: Any,
        attributes: Mapping[str, Any],
        values: Sequence[Value | None],
        readers: Counter[str],
        opset: int,
        layers: bool,
    ) -> None:
        self.building = building
        self.node = node
        self.attributes = attributes
        self.values = values
        self.opset = opset
        self.layers = layers
        """Whether constant weights go into layers; else they stay inputs."""
        self._readers = readers

    def refusal(self, why: str) -> ModelError:
        """An error about this node."""
        return ModelError(f"{describe(self.node)} cannot become torch: {why}")

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def value(self, place: int) -> Value | None:
        """An input, None when it is absent."""
        return self.values[place] if place < len(self.values) else None

    def has(self, place: int) -> bool:
        """Whether the input is there."""
        return self.value(place) is not None

    def fixed(self, *places: int) -> bool:
        """Whether these inputs are constants, or absent."""
        return all(isinstance(self.value(one), Constant | None) for one in places)

    def constant(self, place: int) -> Any:
        """The tensor of an input that has to be known; None when it is absent."""
        value = self.value(place)
        if isinstance(value, Computed):
            name = self.node.input[place]
            raise self.refusal(f"its input {name!r} has to be a constant")
        return None if value is None else value.tensor

    def numbers(self, place: int, attribute: str = "") -> list[Any] | None:
        """A constant input, or else an attribute, as numbers; None without both."""
        if self.has(place):
            found: list[Any] = self.constant(place).reshape(-1).tolist()
            return found
        given = self.get(attribute)
        return None if given is None else list(given)

    def arg(self, place: int) -> Any:
        """An input as an argument: a node, or None when it is absent."""
        value = self.value(place)
        if isinstance(value, Computed):
            return value.node
        if isinstance(value, Constant):
            return self.building.attribute(value)
        if value is None:
            return None
        return self.building.call(sizes_tensor, list(value.sizes), value.scalar)

    def args(self) -> list[Any]:
        """All inputs as arguments."""
        return [self.arg(place) for place in range(len(self.values))]

    def example(self, place: int) -> Any:
        """An input's value for the example."""
        value = self.value(place)
        assert value is not None, "callers ask for inputs that every node has"
        return value.example if isinstance(value, Computed) else value.tensor

    def shape(self, place: int) -> tuple[int, ...]:
        """An input's shape for the example."""
        return tuple(self.example(place).shape)

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute ``axis``, not negative."""
        found = int(self.get("axis", default))
        count = len(self.shape(0)) if rank is None else rank
        return found + count if found < 0 else found

    def call(self, function: Callable[..., Any], *given: Any, **named: Any) -> Computed:
        """The output: ``function`` of these arguments."""
        return Computed(self.building.call(function, *given, **named))

    def layer(self, module: Any, *given: Any) -> Computed:
        """The output: a layer, named after this node, of these arguments."""
        return Computed(self.building.layer(self.node.name, module, *given))

    def parts(self, made: Computed, count: int) -> list[Value]:
        """The first ``count`` parts of a node that gives a sequence."""
        return [self.call(operator.getitem, made.node, one) for one in range(count)]

    def size(self, place: int, axis: int) -> Any:
        """The node that gives one size of an input."""
        return self.building.call(size_of, self.arg(place), axis)

    def read_once(self, place: int) -> bool:
        """Whether this node alone reads the input."""
        return self._readers[self.node.input[place]] == 1


def size_of(x: Any, axis: int) -> Any:
    """One size of a tensor."""
    return x.size(axis)


def sizes_tensor(sizes: Sequence[int], scalar: bool) -> Any:
    """Sizes as the tensor that ONNX takes them for."""
    return torch.tensor(sizes[0] if scalar else sizes, dtype=torch.int64)


def dtype_of(at: Site, number: int) -> Any:
    """Torch's type for a type of ONNX."""
    try:
        return getattr(torch, str(tensor_dtype_to_np_dtype(number)))
    except (AttributeError, KeyError) as error:
        raise at.refusal(f"torch has no type for ONNX type {number}") from error
