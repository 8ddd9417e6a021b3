"""ONNX graph → ``openvino.Model``, and which operation came from which node.

The rules it keeps:

1. Inputs and outputs keep the names and the order that they have in the ONNX graph.
2. A variable batch dimension becomes 1, which is what a device serves; other variable
   dimensions stay variable.
3. Names that OpenVINO makes up contain a counter of the process, so they are replaced
   by ones that depend on the graph alone: equal graphs give equal bytes.
4. Layers are spoken of by their names in the ONNX graph: the node's own name, or that
   of its first output where it has none.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import device_agent.runtimes.openvino  # noqa: F401 - keeps OpenVINO's telemetry away
from device_agent.contract.tensors import Feeds

from ..errors import BackendError, one_line
from ..model import Model

WEIGHTED = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention")
)
"""ONNX operators after which a layer is named."""


def core() -> Any:
    """OpenVINO's entry point; making one is cheap."""
    import openvino as ov

    return ov.Core()


def converted(model: Model, feeds: Sequence[Feeds]) -> Any:
    """The graph as an ``openvino.Model``, fused as usual, names made stable.

    Raises:
        BackendError: OpenVINO cannot convert it; operators and nodes are named.
    """
    # What ov.convert_model does after reading, without its telemetry and its paths.
    from openvino._offline_transformations import apply_moc_transformations

    proto = _pinned(model, feeds)
    try:
        graph = core().read_model(proto.SerializeToString())
        stabilize(graph, "onnx")
        named = {op.get_friendly_name() for op in graph.get_ops()}
        apply_moc_transformations(graph, cf=True)
    except Exception as error:
        raise BackendError(_conversion_failure(str(error), proto)) from error
    stabilize(graph, "fused", named)
    _name_outputs(graph, proto)
    return graph


def _pinned(model: Model, feeds: Sequence[Feeds]) -> Any:
    """A copy of the ONNX model whose known dimensions are numbers."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(model.payload)
    del proto.graph.value_info[:]
    specs = {spec.name: spec.shape for spec in model.inputs}
    batch: set[str] = set()
    for item in proto.graph.input:
        shape = item.type.tensor_type.shape.dim
        for place, known in enumerate(specs.get(item.name, ())):
            variable = place < len(shape) and not shape[place].HasField("dim_value")
            if variable and known > 0:
                shape[place].dim_value = known
            elif variable and place == 0 and _is_one(item.name, feeds):
                if shape[place].dim_param:
                    batch.add(shape[place].dim_param)
                shape[place].dim_value = 1
    for item in proto.graph.input:
        for dimension in item.type.tensor_type.shape.dim:
            if dimension.dim_param in batch:
                dimension.dim_value = 1
    return proto


def _is_one(name: str, feeds: Sequence[Feeds]) -> bool:
    return all(name not in feed or feed[name].shape[:1] == (1,) for feed in feeds)


def _conversion_failure(text: str, proto: Any) -> str:
    """OpenVINO's report in one line: operator, node, reason."""
    lacking = re.search(r"No conversion rule found for operations: (.*)", text)
    if lacking:  # what follows from it is not worth telling
        names = lacking[1].split(", ")
        kinds = {re.sub(r"-\d+$", "", name).split(".")[-1] for name in names}
        nodes = [label_of(node) for node in proto.graph.node if node.op_type in kinds]
        where = f" (node {', '.join(nodes[:5])})" if nodes else ""
        return f"OpenVINO has no operator {lacking[1].strip()}{where}"
    pattern = r"<Node\((?P<op>[^)]*)\): (?P<node>[^>]*)>"
    found = []
    for part in re.split(r"\n-- ", text.split("Summary:")[0])[1:]:
        match = re.search(pattern, part)
        lines = [line.strip() for line in part.splitlines()]
        why = [
            line.split("': Check")[0]
            for line in lines[1:]
            if line and not line.startswith(("While validating", "Check '", "FrontEnd"))
        ]
        where = f"{match['op']} {match['node']}" if match else lines[0]
        found.append(f"{where}: {' '.join(why[-1:]) or 'not convertible'}")
    if not found:
        return f"OpenVINO cannot convert the model: {one_line(Exception(text))}"
    hint = ""
    if "rank has to be known" in text or "type dynamic" in text:
        hint = "; fixed shapes under [model] inputs may help"
    return f"OpenVINO cannot convert {'; '.join(found[:5])}{hint}"


def stabilize(graph: Any, stage: str, known: Collection[str] | None = None) -> None:
    """Name the operations that nobody named by their place in the graph.

    OpenVINO numbers them by a counter of the process, and hands such names on when it
    fuses: with ``known`` given, only those names are taken for good. ``stage`` keeps
    the names apart that are given before and after a transformation.
    """
    seen: set[str] = set()
    nameless = []
    for op in graph.get_ordered_ops():
        name = op.get_friendly_name()
        made_up = name == op.get_name() or (known is not None and name not in known)
        if made_up or name in seen:
            nameless.append(op)
        seen.add(name)
    for place, op in enumerate(nameless):
        op.set_friendly_name(f"{op.get_type_name()}.{stage}{place}")


def _name_outputs(graph: Any, proto: Any) -> None:
    """Outputs carry their ONNX names, whatever other names they have."""
    for port, item in zip(graph.outputs, proto.graph.output, strict=True):
        port.get_node().set_friendly_name(f"{item.name}/sink_port_0")
        port.get_tensor().add_names({item.name})


def written(graph: Any, half: bool) -> dict[str, bytes]:
    """``model.xml`` and ``model.bin``; ``half`` stores the weights as float16.

    Raises:
        BackendError: OpenVINO could not write them.
    """
    import openvino as ov

    with TemporaryDirectory() as folder:
        entry = Path(folder) / "model.xml"
        try:
            ov.save_model(graph, str(entry), compress_to_fp16=half)
        except Exception as error:
            raise BackendError(f"OpenVINO cannot write: {one_line(error)}") from error
        return {
            name: (Path(folder) / name).read_bytes()
            for name in ("model.xml", "model.bin")
        }


def read(files: Mapping[str, bytes], entry: str) -> Any:
    """The ``openvino.Model`` in the files of an artifact.

    Raises:
        BackendError: OpenVINO could not read them.
    """
    with TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        try:
            return core().read_model(str(Path(folder) / entry)).clone()
        except Exception as error:
            raise BackendError(f"OpenVINO cannot read: {one_line(error)}") from error


def labelled(model: Model) -> list[Any]:
    """The nodes of the ONNX graph that have a name or an output to be named by."""
    return [node for node in model.payload.graph.node if any(node.output)]


def label_of(node: Any) -> str:
    """What people call a node: its name, or its first output where it has none."""
    return str(node.name or next(name for name in node.output if name))


@dataclass(frozen=True)
class Layers:
    """Which OpenVINO operations became of which layer of the ONNX graph.

    ``operations``: friendly name → layer. ``names``: name of an ONNX node or of one
    of its outputs → the layer it went into.
    """

    operations: dict[str, str]
    names: dict[str, str]


def layers_of(model: Model, graph: Any) -> Layers:
    """Follow every ONNX node into the converted graph.

    A node may become several operations; only the last carries its tensor names, so
    the nameless ones before it belong to the same node. A node of which nothing is
    left was fused into the one that reads it; the two are one layer, named after the
    one with weights.
    """
    nodes = labelled(model)
    makers = {
        name: output.get_node()
        for op in graph.get_ordered_ops()
        if op.get_type_name() != "Result"
        for output in op.outputs()
        for name in output.get_names()
    }
    owners: dict[str, str] = {}
    for node in nodes:
        _claim([makers[name] for name in node.output if name in makers], node, owners)
    left = set(owners.values())
    readers = {name: node for node in reversed(nodes) for name in node.input}
    into: dict[str, str] = {}
    title: dict[str, str] = {}
    for node in reversed(nodes):
        label = label_of(node)
        reader = next((readers[name] for name in node.output if name in readers), None)
        if label in left or reader is None:
            into[label] = label
        else:
            into[label] = into.get(label_of(reader), label)
        if node.op_type in WEIGHTED:
            title[into[label]] = label
    names: dict[str, str] = {}
    for node in nodes:
        group = into[label_of(node)]
        for name in filter(None, (node.name, *node.output)):
            names.setdefault(name, title.get(group, group))
    return Layers({op: title.get(label, label) for op, label in owners.items()}, names)


def _claim(ends: list[Any], node: Any, owners: dict[str, str]) -> None:
    """Give a node its last operations and the nameless ones that lead to them."""
    stack = [(op, True) for op in ends]
    while stack:
        op, is_end = stack.pop()
        name = op.get_friendly_name()
        foreign = not is_end and any(output.get_names() for output in op.outputs())
        fixed = op.get_type_name() in ("Parameter", "Constant")
        if not (foreign or fixed or name in owners):
            owners[name] = label_of(node)
            stack += [(value.get_node(), False) for value in op.input_values()]
