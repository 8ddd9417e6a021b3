"""Pinned shapes: the variable dimensions of a graph's inputs, replaced by numbers.

1. A pinned shape holds the batch dimension too; -1 leaves a dimension variable.
2. A symbol that one pin binds is bound wherever it stands, outputs included.
3. A variable first dimension is the batch and may stay variable; a symbol that is the
   batch in one input and another dimension elsewhere (the state of a recurrent model)
   becomes 1, which is the batch that everything here runs at.
4. Any other variable dimension must be pinned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelError
from ..graphs.protos import spec_of


def bind(graph: Any, pinned: Mapping[str, Sequence[int]]) -> None:
    """Change the inputs and outputs of ``graph`` to the pinned shapes.

    Raises:
        ModelError: a pin names no input, has another rank or contradicts a fixed
            dimension; or a dimension is left variable: tells what to pin.
    """
    inputs = {value.name: value for value in graph.input}
    for name in pinned:
        if name not in inputs:
            raise ModelError(
                f"[model] inputs pins {name!r}, which is no input of the model; "
                f"it has {', '.join(inputs) or 'none'}"
            )
    for value in graph.input:
        spec_of(value)
    symbols: dict[str, int] = {}
    for name, shape in pinned.items():
        _pin(name, _dims(inputs[name]), shape, symbols)
    symbols |= {symbol: 1 for symbol in _mixed(graph.input) if symbol not in symbols}
    for value in [*graph.input, *graph.output]:
        for dim in _dims(value):
            if dim.dim_param in symbols and not dim.HasField("dim_value"):
                dim.dim_value = symbols[dim.dim_param]
    _all_known(graph.input)


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def _pin(name: str, dims: Any, shape: Sequence[int], symbols: dict[str, int]) -> None:
    if len(shape) != len(dims):
        raise ModelError(
            f"[model] inputs pins {name!r} to {list(shape)}, "
            f"but the model takes {_text(dims)}"
        )
    for dim, size in zip(dims, shape, strict=True):
        if size == -1:
            continue
        symbol = dim.dim_param
        fixed = dim.dim_value if dim.HasField("dim_value") else symbols.get(symbol)
        if size < 1 or (fixed is not None and fixed != size):
            raise ModelError(
                f"[model] inputs pins {name!r} to {list(shape)}, "
                f"but the model takes {_text(dims)}"
                + (f" and {symbol} is {fixed} already" if symbol and fixed else "")
            )
        if symbol:
            symbols[symbol] = size
        dim.dim_value = size


def _mixed(values: Any) -> list[str]:
    first: set[str] = set()
    other: set[str] = set()
    for value in values:
        for place, dim in enumerate(_dims(value)):
            if dim.dim_param:
                (other if place else first).add(dim.dim_param)
    return sorted(first & other)


def _all_known(values: Any) -> None:
    for value in values:
        dims = _dims(value)
        if any(not dim.HasField("dim_value") for dim in dims[1:]):
            raise ModelError(
                f"input {value.name!r} has the variable shape {_text(dims)}; "
                f"pin it in the recipe: [model] inputs = {{{_hint(value.name, dims)}}}"
            )


def _text(dims: Any) -> str:
    words = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?"
             for d in dims]  # fmt: skip
    return f"[{', '.join(words)}]"


def _hint(name: str, dims: Any) -> str:
    key = name if name.replace("_", "").replace("-", "").isalnum() else f'"{name}"'
    sizes = [str(d.dim_value) if d.HasField("dim_value") else "1" if not place else "…"
             for place, d in enumerate(dims)]  # fmt: skip
    return f"{key} = [{', '.join(sizes)}]"
