"""Which layers of a quantized ONNX graph are to blame, and what to put back to float.

The float graph and the quantized one run side by side on the same samples with their
inner tensors exposed. Tensors are matched by name; quantizers keep the names of what
operators compute and add names of their own for what they insert.

A layer is an operator with what was quantized at its inputs (activations, weights), so
leaving it in float takes away just what it adds:

1. ``sqnr_db`` = 10·log10(Σ float² / Σ (float - quantized)²) at the layer's output, the
   noise of everything before it included.
2. ``added_db`` is of the layer alone: it is run on the float graph's own tensors, and
   counted is by how much its output stays below ``CEILING_DB``, what int8 gives at
   best. So a layer behind one that is broken is not blamed, and not hidden either.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from device_agent.contract.tensors import Array, Feeds
from device_agent.runtimes.base import Session

from ..candidate import LayerError, Spec
from .preparation import normalized
from .protos import nodes

CEILING_DB = 40.0
EXACT_DB = 120.0
"""What is reported where the two graphs agree exactly; negative: not finite."""

_INT8 = 3
"""Of ``onnx.TensorProto.DataType``."""
_INSERTED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SUFFIXES = ("_QuantizeLinear_Input", "_quantized", "_quant")

Load = Callable[[Any], Session]
"""Opens an ``onnx.ModelProto`` without optimisation."""


@dataclass(frozen=True)
class _Layer:
    """A quantized layer: its float name, and the tensors to compare in both graphs."""

    node: str
    op: str
    output: tuple[str, str]
    inputs: tuple[tuple[str, str], ...]


def layer_errors(
    float_model: Any, quantized_model: Any, feeds: Sequence[Feeds], load: Load
) -> list[LayerError]:
    """The error of each quantized layer, worst ``added_db`` first.

    Args:
        float_model: the float graph that the quantizer was given.
        quantized_model: what it made of it.
        feeds: samples; a handful tells the layers apart.
        load: opens a graph; must not optimise, or the inner tensors are gone.
    """
    layers = _layers(float_model, quantized_model)
    if not layers or not feeds:
        return []
    names = [name for layer in layers for name, _ in (layer.output, *layer.inputs)]
    session = load(exposed(float_model, names))
    exact = [{**feed, **session.predict(feed)} for feed in feeds]
    session.close()
    outputs = [layer.output for layer in layers]
    whole = _sqnr(
        exposed(quantized_model, [raw for _, raw in outputs]),
        outputs, feeds, exact, load,
    )  # fmt: skip
    apart, given, pieces = _apart(quantized_model, layers, exact[0])
    pieces_feeds = [
        {ours: one[theirs] for ours, theirs in given.items()} for one in exact
    ]
    alone = _sqnr(apart, pieces, pieces_feeds, exact, load)
    errors = [
        LayerError(
            layer.node,
            layer.op,
            round(whole[layer.output[0]], 3),
            round(max(0.0, CEILING_DB - alone[layer.output[0]]), 3),
        )
        for layer in layers
        if layer.output[0] in whole and layer.output[0] in alone
    ]
    return sorted(errors, key=lambda e: (-e.added_db, e.sqnr_db, e.node))


def restore_order(
    errors: Sequence[LayerError], macs: Mapping[str, int]
) -> list[tuple[str, ...]]:
    """Groups of nodes to put back to float, the next worst group at each step.

    Layers whose noise is new (``added_db``) come by what they add per what they cost:
    of two that add alike (within 3 dB, twice the noise), the cheaper one first. The
    groups grow, so that few steps cover the whole net: 1, 1, 2, 4, 8 … layers.
    """
    order = sorted(
        (error for error in errors if error.added_db > 0),
        key=lambda e: (-round(e.added_db / 3), macs.get(e.node, 0), e.node),
    )
    groups, start, size = [], 0, 1
    while start < len(order):
        groups.append(tuple(error.node for error in order[start : start + size]))
        start += size
        size = start
    return groups


def mixed_spec(spec: Spec, keep: Sequence[str]) -> Spec:
    """``spec`` with the nodes ``keep`` left in float besides those that it kept."""
    kept = tuple(dict.fromkeys((*spec.keep, *keep)))
    name = f"mixed {spec.name}, {len(kept)} layers float"
    return replace(spec, name=name, precision="mixed", keep=kept)


def float_readers(quantized: Any, keep: Sequence[str]) -> Any:
    """Let the kept nodes read what was computed, not what was quantized for others.

    ONNX Runtime's quantizer gives every reader of a tensor its quantized copy, the
    nodes it was told to leave alone included. Pairs that nobody reads then go.
    """
    proto = normalized(quantized)
    source = _before_quantization(proto)
    kept = set(keep)
    for node in proto.graph.node:
        if node.name in kept and node.op_type not in _INSERTED:
            for place, name in enumerate(node.input):
                node.input[place] = source.get(name, name)
    return _without_unread(proto)


def own_weights(quantized: Any) -> Any:
    """Every reader of quantized weights gets a copy of its own; most have one already.

    Where u8×s8 must not saturate ONNX Runtime rewrites signed weights as unsigned, once
    per reader and under one name, and then refuses its own graph (1.31).
    """
    proto = normalized(quantized)
    constants = {one.name: one for one in proto.graph.initializer}
    shared: dict[str, Any] = {
        node.output[0]: node
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    seen: set[str] = set()
    copies: list[Any] = []
    copied = 0
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            whole = name in constants and constants[name].data_type == _INT8
            if name not in shared and (not whole or node.op_type in _INSERTED):
                continue
            if name not in seen:
                seen.add(name)
                continue
            stem = f"{node.name}.{place}."
            if name in shared:
                copies.append(_own_pair(proto, shared[name], constants, stem))
            else:
                _own_constant(proto, constants[name], stem)
            node.input[place] = f"{stem}{name}"
            copied += 1
    if not copied:
        return quantized
    rest = [
        type(node).FromString(node.SerializeToString()) for node in proto.graph.node
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(
        [*copies, *rest]
    )  # they read constants: they may come first
    return normalized(proto)


def _own_pair(proto: Any, pair: Any, constants: Mapping[str, Any], stem: str) -> Any:
    """A copy of a DequantizeLinear that reads copies of its constants."""
    copy = type(pair).FromString(pair.SerializeToString())
    copy.name, copy.output[0] = f"{stem}{pair.name}", f"{stem}{pair.output[0]}"
    for place, source in enumerate(pair.input):
        _own_constant(proto, constants[source], stem)
        copy.input[place] = f"{stem}{source}"
    return copy


def _own_constant(proto: Any, tensor: Any, stem: str) -> None:
    copy = proto.graph.initializer.add()
    copy.CopyFrom(tensor)
    copy.name = f"{stem}{tensor.name}"


def _without_unread(proto: Any) -> Any:
    outputs = {value.name for value in proto.graph.output}
    while True:
        read = {name for node in proto.graph.node for name in node.input} | outputs
        alive = [
            node
            for node in proto.graph.node
            if node.op_type not in _INSERTED or read.intersection(node.output)
        ]
        if len(alive) == len(proto.graph.node):
            return normalized(proto)
        copies = [type(node).FromString(node.SerializeToString()) for node in alive]
        del proto.graph.node[:]
        proto.graph.node.extend(copies)


def _before_quantization(proto: Any) -> dict[str, str]:
    """Output of a DequantizeLinear → the float tensor its QuantizeLinear read."""
    producer = {name: node for node in proto.graph.node for name in node.output}
    found: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear":
            quantize = producer.get(node.input[0])
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                found[node.output[0]] = quantize.input[0]
    return found


def _layers(float_model: Any, quantized: Any) -> list[_Layer]:
    known = {name for node in float_model.graph.node for name in node.output}
    known |= {value.name for value in float_model.graph.input}
    named = {node.name: node for node in float_model.graph.node}
    makers = {name: node for node in float_model.graph.node for name in node.output}
    source = _before_quantization(quantized)
    outputs = {before: after for after, before in source.items()}
    dequantized = {
        name
        for node in quantized.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }

    there = {node.name for node in quantized.graph.node}

    def pair(tensor: str) -> tuple[str, str] | None:
        """The same tensor in both graphs, before it is quantized.

        After it where the quantizer has taken over what a Relu or Clip did: until
        then the tensor is what went into the Relu.
        """
        raw = source.get(tensor, tensor)
        for name in (raw, outputs.get(raw, ""), _stem(raw)):
            if name in known:
                folded = name in makers and makers[name].name not in there
                return name, outputs.get(raw, raw) if folded else raw
        return None

    layers = []
    for node in quantized.graph.node:
        if node.op_type in _INSERTED or not dequantized.intersection(node.input):
            continue
        output = pair(node.output[0])
        if output is None:
            continue
        # A Relu that was folded into its quantizer leaves its tensor to the Conv.
        origin = named.get(node.name) or makers[output[0]]
        inputs = tuple(filter(None, map(pair, node.input)))
        layers.append(_Layer(origin.name, origin.op_type, output, inputs))
    return layers


def _stem(tensor: str) -> str:
    for suffix in _SUFFIXES:
        if tensor.endswith(suffix):
            return tensor.removesuffix(suffix)
    return tensor


def _sqnr(
    proto: Any,
    pairs: Sequence[tuple[str, str]],
    feeds: Sequence[Feeds],
    exact: Sequence[Feeds],
    load: Load,
) -> dict[str, float]:
    """Float tensor → SQNR in decibels of its pair in ``proto``, run on ``feeds``."""
    signal = dict.fromkeys((name for name, _ in pairs), 0.0)
    noise = dict(signal)
    session = load(proto)
    for feed, wanted in zip(feeds, exact, strict=True):
        found = session.predict(feed)
        for name, theirs in pairs:
            want, got = wanted.get(name), found.get(theirs)
            if want is None or got is None or not _comparable(want, got):
                continue
            signal[name] += float(np.square(want, dtype=np.float64).sum())
            noise[name] += float(np.square(want - got, dtype=np.float64).sum())
    session.close()
    return {
        name: _decibel(power, noise[name]) for name, power in signal.items() if power
    }


def _apart(
    quantized: Any, layers: Sequence[_Layer], exact: Feeds
) -> tuple[Any, dict[str, str], list[tuple[str, str]]]:
    """The quantized graph cut so that every layer reads the float graph's tensors.

    Returns:
        The cut graph; its inputs → float tensors; float tensors → its outputs, which
        are after quantization for layers that a Relu or Clip was folded into.
    """
    import onnx

    proto = normalized(quantized)
    graph = proto.graph
    quantizes = {n.input[0]: n for n in graph.node if n.op_type == "QuantizeLinear"}
    source = _before_quantization(proto)
    raws = {
        source.get(theirs, theirs): name
        for layer in layers
        for name, theirs in (layer.output, *layer.inputs)
        if name in exact and exact[name].dtype == np.float32
    }
    pieces = [(raws[raw], raw) for raw in raws]
    for place, layer in enumerate(layers):
        raw = source.get(layer.output[1], layer.output[1])
        if raw == layer.output[1] or raw not in quantizes:
            continue
        pair = f"edgeml.folded.{place}", f"edgeml.out.{place}"
        scales = list(quantizes[raw].input[1:])
        make = onnx.helper.make_node
        graph.node.append(make("QuantizeLinear", [raw, *scales], [pair[0]], pair[0]))
        graph.node.append(
            make("DequantizeLinear", [pair[0], *scales], [pair[1]], pair[1])
        )
        pieces = [(name, pair[1] if was == raw else was) for name, was in pieces]
    given = {f"edgeml.exact.{place}": raw for place, raw in enumerate(raws)}
    cut = {raw: name for name, raw in given.items()}
    for node in graph.node:
        if not node.name.startswith("edgeml.folded."):
            for place, name in enumerate(node.input):
                node.input[place] = cut.get(name, name)
    read = {name for node in nodes(proto) for name in node.input}
    rest = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(rest)
    for name, raw in given.items():
        shape = [None] * exact[raws[raw]].ndim
        kind = onnx.TensorProto.FLOAT
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    cut_up = exposed(proto, [theirs for _, theirs in pieces], quantized)
    fed = {value.name: value.name for value in rest}
    return cut_up, fed | {name: raws[raw] for name, raw in given.items()}, pieces


def _comparable(want: Array, got: Array) -> bool:
    return want.shape == got.shape and want.dtype.kind == got.dtype.kind == "f"


def _decibel(signal: float, noise: float) -> float:
    if noise <= 0:
        return EXACT_DB
    if not math.isfinite(signal) or not math.isfinite(noise):
        return -EXACT_DB
    return max(-EXACT_DB, min(EXACT_DB, 10 * math.log10(signal / noise)))


def exposed(proto: Any, names: Sequence[str], typed: Any = None) -> Any:
    """The graph with the tensors ``names`` as its only outputs."""
    import onnx

    shown = normalized(proto)
    known = _types(typed if typed is not None else proto)
    made = {name for node in shown.graph.node for name in node.output}
    del shown.graph.output[:]
    for name in dict.fromkeys(names):
        if name in made:
            kind = onnx.TensorProto.FLOAT
            value = known.get(name)
            if value is None:
                value = onnx.helper.make_tensor_value_info(name, kind, None)
            shown.graph.output.append(value)
    return shown


def _types(proto: Any) -> dict[str, Any]:
    import onnx

    graph = onnx.shape_inference.infer_shapes(normalized(proto)).graph
    return {value.name: value for value in (*graph.value_info, *graph.output)}
