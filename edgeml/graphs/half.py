"""A graph in float16, float32 at its inputs and outputs, and whether float16 holds it.

The rules it keeps:

1. What stays in float32 stays so whole: constants that it shares with others are its
   own, and what goes from one such node to the next is never rounded.
2. What float16 cannot hold is found on real samples: a CPU computes a float16 graph in
   float32, so that running it there shows nothing.
3. Numbers on their way to be whole ones (tokens, places) are not rounded to 11 bits.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from device_agent.contract.tensors import Feeds

from ..errors import BackendError
from .layers import Load, exposed
from .preparation import kept_nodes, normalized

HALF_MAX = 65504.0
"""The largest number of float16."""
_FLOAT, _HALF = 1, 10
"""Of ``onnx.TensorProto.DataType``."""
_WHOLE = frozenset({2, 3, 4, 5, 6, 7, 12, 13})
"""The whole numbers of it."""


def half(proto: Any, keep: Sequence[str]) -> Any:
    """The graph in float16 but for the nodes ``keep``.

    Raises:
        BackendError: the converter failed on it, or a name is of no node.
    """
    from onnxconverter_common.float16 import convert_float_to_float16

    given = normalized(proto)
    blocked = {*kept_nodes(proto, given, keep), *integer_readers(given)}
    _own_constants(given, blocked)
    try:
        with warnings.catch_warnings():
            # It warns of each constant too small for float16; the proxy sees those.
            warnings.simplefilter("ignore")
            made = convert_float_to_float16(
                given, keep_io_types=True, node_block_list=sorted(blocked)
            )
    except Exception as error:
        text = " ".join(str(error).split())
        raise BackendError(f"onnxconverter-common cannot make fp16: {text}") from error
    _restore_outputs(made, given)
    return made


def beyond_half(proto: Any, feeds: Sequence[Feeds], load: Load) -> dict[str, float]:
    """Nodes that cannot be in float16 → the largest magnitude they write or read.

    Args:
        proto: the float graph.
        feeds: samples to run.
        load: opens a graph; must not optimise, or the inner tensors are gone.
    """
    touching: dict[str, list[str]] = {}
    for node in proto.graph.node:
        for name in (*node.output, *node.input):
            touching.setdefault(name, []).append(node.name)
    made = [name for node in proto.graph.node for name in node.output]
    peaks: dict[str, float] = {}
    session = load(exposed(proto, made))
    try:
        for feed in feeds:
            for name, array in {**feed, **session.predict(feed)}.items():
                if array.dtype == np.float32 and array.size:
                    peak = float(np.abs(array).max())
                    peaks[name] = max(peak, peaks.get(name, 0.0))
    finally:
        session.close()
    found: dict[str, float] = {}
    for name, peak in peaks.items():
        if not peak <= HALF_MAX:
            for node in touching.get(name, []):
                found[node] = max(peak, found.get(node, 0.0))
    return found


def integer_readers(proto: Any) -> tuple[str, ...]:
    """Casts to whole numbers."""
    return tuple(
        node.name
        for node in proto.graph.node
        if node.op_type == "Cast"
        and any(one.name == "to" and one.i in _WHOLE for one in node.attribute)
    )


def _own_constants(proto: Any, blocked: Iterable[str]) -> None:
    """Give blocked nodes constants of their own: the converter changes shared ones."""
    names = set(blocked)
    constants = {one.name: one for one in proto.graph.initializer}
    shared = {
        name
        for node in proto.graph.node
        if node.name not in names
        for name in node.input
        if name in constants
    }
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if node.name in names and name in shared:
                copy = proto.graph.initializer.add()
                copy.CopyFrom(constants[name])
                copy.name = node.input[place] = f"{node.name}.{name}"


def _restore_outputs(made: Any, given: Any) -> None:
    """Outputs of blocked nodes as they were: the converter makes them float16."""
    floats = {
        value.name
        for value in given.graph.output
        if value.type.tensor_type.elem_type == _FLOAT
    }
    for value in made.graph.output:
        if value.name in floats:
            value.type.tensor_type.elem_type = _FLOAT
    for node in made.graph.node:
        if node.op_type == "Cast" and floats.intersection(node.output):
            for one in node.attribute:
                if one.name == "to" and one.i == _HALF:
                    one.i = _FLOAT
