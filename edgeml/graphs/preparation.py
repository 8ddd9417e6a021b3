"""An ONNX graph made ready for the tools, and what it costs to run it.

The rules it keeps:

1. Nothing changes the graph that came in; every function gives a new one.
2. Every node of a graph that leaves here has a name, and no two have the same one.
3. The bytes of a graph depend on its content alone: no doc strings, stack traces,
   paths or dates, and no shapes that an exporter wrote down and a tool made stale.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# The one place that switches ONNX Runtime's telemetry off, before its first import.
from device_agent.runtimes import onnxruntime as _runtime

from ..errors import BackendError
from .protos import describe, graphs, name_nodes, nodes, real_inputs, strip_remarks

QDQ_OPSET = 13
"""The first opset whose QuantizeLinear knows channels."""
IR_VERSION = 8
"""The IR that artifacts have at least; device runtimes since 2021 read it."""


def normalized(proto: Any) -> Any:
    """The same model with named nodes and nothing in it that is not content.

    Names stay as they are where they are there and single; a node without one becomes
    ``Conv_12`` (its operator and its place). Initializers are not inputs.
    """
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.ir_version = max(copy.ir_version, IR_VERSION)
    copy.producer_name, copy.producer_version = "edgeml", ""
    inputs = real_inputs(copy.graph)
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    read = {name for node in nodes(copy) for name in node.input}
    read |= {value.name for graph in graphs(copy) for value in graph.output}
    used = [tensor for tensor in copy.graph.initializer if tensor.name in read]
    if len(used) < len(copy.graph.initializer):
        del copy.graph.initializer[:]
        copy.graph.initializer.extend(used)
    name_nodes(copy)
    strip_remarks(copy)
    return copy


def to_bytes(proto: Any) -> bytes:
    """The bytes of the normalized model; equal models give equal bytes.

    Raises:
        BackendError: the model is larger than protobuf can write (2 GiB).
    """
    try:
        written: bytes = normalized(proto).SerializeToString(deterministic=True)
    except ValueError as error:
        raise BackendError(
            "the graph is larger than the 2 GiB that one ONNX file can hold"
        ) from error
    return written


def from_bytes(written: bytes) -> Any:
    """The model in ``written``, as :func:`to_bytes` made it."""
    import onnx

    return onnx.load_model_from_string(written)


def opset_of(proto: Any) -> int:
    """Version of the standard operators that the model is written in."""
    versions = (o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    return max(versions, default=0)


def op_counts(proto: Any) -> dict[str, int]:
    """How often each operator occurs, subgraphs included, most frequent first."""
    counts = Counter(node.op_type for node in nodes(proto))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def at_opset(proto: Any, version: int) -> Any:
    """The model in at least that opset; normalized, else as it is, if it is there.

    Raises:
        BackendError: onnx cannot convert one of the operators; the text names it.
    """
    found = opset_of(proto)
    if found >= version:
        return normalized(proto)
    import onnx
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(normalized(proto), version)
        onnx.checker.check_model(converted)
    except Exception as error:
        # onnx's own text for these leaves out the name: "Op '%s' has no … schema"
        foreign = [n for n in nodes(proto) if not onnx.defs.has(n.op_type, n.domain)]
        why = (
            f"it does not know {', '.join(map(describe, foreign[:3]))}"
            if foreign
            else _runtime.reason(error)
        )
        raise BackendError(
            f"int8 per channel needs opset {version}, the model has opset {found} and "
            f"onnx cannot convert it: {why}"
        ) from error
    return normalized(converted)


def prepare(proto: Any) -> Any:
    """The graph as quantizers want it: opset ≥ 13, shapes inferred, constants folded.

    Batch normalizations are folded into convolutions and identities are removed by
    ONNX Runtime's hardware-independent optimiser (``quant_pre_process``).

    Raises:
        BackendError: the graph cannot be converted or loaded, or its shapes contradict.
    """
    prepared = _inferred(folded(at_opset(proto, QDQ_OPSET)))
    prepared.ir_version = max(prepared.ir_version, IR_VERSION)
    name_nodes(prepared)
    _unshare_biases(prepared)
    _flatten_biases(prepared)
    return prepared


def folded(proto: Any) -> Any:
    """Constants folded and batch normalizations fused, by ONNX Runtime (basic)."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="edgeml.") as folder:
        path = Path(folder, "optimized.onnx")
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = 1
        settings.optimized_model_filepath = str(path)
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            ort.InferenceSession(
                to_bytes(proto), settings, providers=[_runtime.PROVIDERS["cpu"]]
            )
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime cannot load the graph: {_runtime.reason(error)}"
            ) from error
        return normalized(onnx.load(path))


def _inferred(proto: Any) -> Any:
    """Shapes of all tensors, symbolically where the tool manages that."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="edgeml.") as folder:
        given, made = Path(folder, "given.onnx"), Path(folder, "made.onnx")
        onnx.save(proto, given)
        run: Callable[[bool], None] = lambda symbolic: quant_pre_process(  # noqa: E731
            str(given), str(made), skip_optimization=True,
            skip_symbolic_shape=not symbolic,
        )  # fmt: skip
        for symbolic in (True, False):  # symbolic inference gives up on control flow
            try:
                run(symbolic)
                break
            except Exception as error:
                if not symbolic:
                    raise BackendError(
                        f"shape inference failed: {_runtime.reason(error)}"
                    ) from error
        return onnx.load(made)


def _constant_biases(proto: Any) -> list[tuple[Any, Any]]:
    initial = {tensor.name: tensor for tensor in proto.graph.initializer}
    return [
        (node, initial[node.input[2]])
        for node in proto.graph.node
        if node.op_type in _BIASED and len(node.input) > 2 and node.input[2] in initial
    ]


def _unshare_biases(proto: Any) -> None:
    """Every convolution and Gemm gets a constant bias of its own.

    ONNX Runtime's quantizer names the copies of a shared bias ``b`` itself: ``b2``,
    ``b3`` …, without a look at what is there; an exporter may have named a tensor so.
    """
    taken = {name for node in nodes(proto) for name in (*node.input, *node.output)}
    uses = Counter(name for node in nodes(proto) for name in node.input)
    for node, bias in _constant_biases(proto):
        if uses[bias.name] == 1:
            continue
        name = f"{node.name}_bias"
        while name in taken:
            name += "_"
        taken.add(name)
        copy = proto.graph.initializer.add()
        copy.CopyFrom(bias)
        copy.name = node.input[2] = name


def _flatten_biases(proto: Any) -> None:
    """[1, N] biases of Gemm become [N]; per channel the tools know no other."""
    for node, bias in _constant_biases(proto):
        if node.op_type == "Gemm" and len(bias.dims) == 2 and bias.dims[0] == 1:
            size = bias.dims[1]
            del bias.dims[:]
            bias.dims.append(size)


def kept_nodes(original: Any, prepared: Any, keep: Iterable[str]) -> tuple[str, ...]:
    """The nodes of ``prepared`` that stand for the nodes ``keep`` of ``original``.

    A node that was fused into another stands for that one (a batch normalization for
    its convolution); one that was folded into a constant stands for none.

    Raises:
        BackendError: neither graph has a node of that name.
    """
    wanted = list(keep)
    if not wanted:
        return ()
    present = {node.name for node in prepared.graph.node}
    producer = {o: node.name for node in prepared.graph.node for o in node.output}
    before = {node.name: node for node in normalized(original).graph.node}
    kept: list[str] = []
    for name in wanted:
        if name in present:
            kept.append(name)
        elif name in before:
            kept += _successors(before[name], list(before.values()), producer)
        else:
            raise BackendError(f"keep names {name!r}, which is no node of the model")
    return tuple(dict.fromkeys(kept))


def _successors(
    node: Any, before: Sequence[Any], producer: Mapping[str, str]
) -> list[str]:
    """What now makes the first surviving tensors after ``node``."""
    found: list[str] = []
    frontier, seen = list(node.output), set(node.output)
    while frontier:
        tensor = frontier.pop(0)
        if tensor in producer:
            found.append(producer[tensor])
            continue
        after = [o for n in before if tensor in n.input for o in n.output]
        frontier += [name for name in after if name not in seen]
        seen.update(after)
    return found


def macs(proto: Any) -> dict[str, int]:
    """Multiply-accumulates of each node that has any; variable dimensions count as 1.

    Convolutions, matrix products and recurrent cells of the top-level graph.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(normalized(proto)).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    shapes = {value.name: _dimensions(value) for value in values}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    counted = {node.name: _node_macs(node, shapes) for node in inferred.node}
    return {name: count for name, count in counted.items() if count}


def weight_bytes(proto: Any) -> dict[str, int]:
    """Operator type → bytes of the constants that its nodes read, subgraphs included.

    Constants seen from inside a subgraph count there.
    """
    sizes: dict[str, int] = {}
    for graph in graphs(proto):
        for tensor in graph.initializer:
            sizes[tensor.name] = int(np.prod(tensor.dims)) * _ELEMENT_BYTES
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("t"):
                    count = int(np.prod(attribute.t.dims))
                    sizes[node.output[0]] = count * _ELEMENT_BYTES
    total: Counter[str] = Counter()
    for node in nodes(proto):
        total[node.op_type] += sum(sizes.get(name, 0) for name in set(node.input))
    return dict(total)


_ELEMENT_BYTES = 4
_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
_MACS = frozenset({*_BIASED, "MatMul", "LSTM", "GRU", "RNN"})


def _node_macs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    known = [shapes.get(name, ()) for name in (*node.input, *node.output)]
    if node.op_type not in _MACS or not (known[0] and known[1]):
        return 0
    left, right, out = known[0], known[1], int(np.prod(known[len(node.input)]))
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return out * int(np.prod(right[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(left)) * int(np.prod(right[1:]))
    if node.op_type == "Gemm":
        return out * left[0 if attributes.get("transA") else -1]
    if node.op_type == "MatMul":
        return out * left[-1]
    # sequence × batch × directions × gates·hidden × (input + hidden)
    hidden = attributes.get("hidden_size", 0)
    return int(left[0] * left[1] * right[0] * right[1] * (right[2] + hidden))


def _dimensions(value: Any) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else 1 for d in dims)
