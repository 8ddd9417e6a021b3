"""What an ONNX graph holds: walking it, tidying it, its inputs and outputs.

1. Works on ``onnx.ModelProto`` by its fields and imports nothing heavy.
2. The walk covers subgraphs (``If``, ``Loop``, ``Scan``) and local functions.
3. Functions that change a graph say so in their first word; callers own the copy.
"""

from collections.abc import Iterator
from typing import Any

from device_agent.contract.tensors import Datatype, TensorSpec

from ..errors import ModelError

# the element types of onnx.TensorProto that the serving protocol has a word for
DATATYPES: dict[int, Datatype] = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32",
    7: "INT64", 9: "BOOL", 10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64",
}  # fmt: skip
_OTHER_TYPES = {8: "string", 14: "complex64", 15: "complex128", 16: "bfloat16"}
EXTERNAL = 1
"""``TensorProto.data_location`` of a tensor that lives in another file."""


def graphs(model: Any) -> Iterator[Any]:
    """Every graph of the model: the main one and all subgraphs, outermost first."""
    yield model.graph
    for node in [*model.graph.node, *_function_nodes(model)]:
        yield from _subgraphs(node)


def nodes(model: Any) -> Iterator[Any]:
    """Every node of the model, those of subgraphs and functions included."""
    for graph in graphs(model):
        yield from graph.node
    yield from _function_nodes(model)


def tensors(model: Any) -> Iterator[Any]:
    """Every constant tensor: initializers and node attributes, at any depth."""
    for graph in graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor.values
                yield attribute.sparse_tensor.indices


def _function_nodes(model: Any) -> Iterator[Any]:
    for function in model.functions:
        yield from function.node


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        found = [attribute.g] if attribute.HasField("g") else []
        for graph in [*found, *attribute.graphs]:
            yield graph
            for inner in graph.node:
                yield from _subgraphs(inner)


def is_quantized(model: Any) -> bool:
    """Whether activations are quantized with scales that are known (QDQ)."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def name_nodes(model: Any) -> None:
    """Give every node a name of its own; a good name stays.

    A node without a name, or with one already taken, is named after its operator and
    its place, so quantizers and reports can tell the nodes apart.
    """
    taken: set[str] = set()
    free: list[tuple[int, Any]] = []
    for place, node in enumerate(nodes(model)):
        if node.name and node.name not in taken:
            taken.add(node.name)
        else:
            free.append((place, node))
    for place, node in free:
        name = f"{node.op_type}_{place}"
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name


def strip_remarks(model: Any) -> None:
    """Drop what exporters write for people: doc strings, stack traces, file paths.

    They hold paths of the machine that exported, and differ from run to run. Stale
    ``value_info`` goes too: it breaks ONNX Runtime's quantizers.
    """
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for part in [*graphs(model), *nodes(model), *tensors(model), *model.functions]:
        part.doc_string = ""
        del part.metadata_props[:]
    for graph in graphs(model):
        for value in [*graph.input, *graph.output, *graph.value_info]:
            value.doc_string = ""
            del value.metadata_props[:]
    for function in model.functions:
        del function.value_info[:]
    for node in nodes(model):
        for attribute in node.attribute:
            attribute.doc_string = ""


def real_inputs(graph: Any) -> list[Any]:
    """The inputs a caller feeds: old models list their initializers among them."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {sparse.values.name for sparse in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in constants]


def describe(node: Any) -> str:
    """A node as messages name it."""
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    where = node.name or ", ".join(node.output)
    return f"operator {op} (node {where!r})"


def spec_of(value: Any, kind: str = "input") -> TensorSpec:
    """The spec of a graph input or output; a dimension without a value is -1.

    Raises:
        ModelError: it is no tensor, or of a type that the serving protocol lacks.
    """
    which = value.type.WhichOneof("value")
    if which != "tensor_type":
        what = str(which or "nothing").removesuffix("_type")
        raise ModelError(
            f"{kind} {value.name!r} is of type {what}, and only tensors can be served; "
            "export the model again without it (scikit-learn: zipmap=False)"
        )
    tensor = value.type.tensor_type
    if tensor.elem_type not in DATATYPES:
        word = _OTHER_TYPES.get(tensor.elem_type, f"type {tensor.elem_type}")
        raise ModelError(
            f"{kind} {value.name!r} has elements of {word}; "
            f"expected one of {', '.join(DATATYPES.values())}"
        )
    if not tensor.HasField("shape"):
        raise ModelError(f"{kind} {value.name!r} has no shape; export it with one")
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in
            tensor.shape.dim]  # fmt: skip
    if any(dim == 0 or dim < -1 for dim in dims):
        raise ModelError(f"{kind} {value.name!r} has the impossible shape {dims}")
    try:
        return TensorSpec(
            name=value.name, datatype=DATATYPES[tensor.elem_type], shape=tuple(dims)
        )
    except ValueError as error:
        raise ModelError(
            f"{kind} {value.name!r} of shape {dims} cannot be served: its name or "
            "shape is over the limits (512 letters, 16 dimensions, 2^31)"
        ) from error
