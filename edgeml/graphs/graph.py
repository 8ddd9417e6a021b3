"""Questions about a graph that runs: what it costs, and what it sees in a sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from device_agent.contract.tensors import Array, Feeds

from ..model import Model
from .preparation import macs, normalized, op_counts, opset_of, weight_bytes

WEIGHTED = {"Gemm", "MatMul", "Conv"}


def summary(model: Model) -> dict[str, Any]:
    """What a report says of the model: size, work, operators, inputs and outputs."""
    return {
        "opset": opset_of(model.payload),
        "operators": op_counts(model.payload),
        "nodes": sum(op_counts(model.payload).values()),
        "macs": sum(macs(model.payload).values()),
        "weight_bytes": sum(weight_bytes(model.payload).values()),
        "inputs": [spec.model_dump(mode="json") for spec in model.inputs],
        "outputs": [spec.model_dump(mode="json") for spec in model.outputs],
        "steps": [step.verb for step in model.lineage],
    }


def embeddings(model: Model, feeds: Sequence[Feeds]) -> Array:
    """What the last weighted layer reads, per sample: [samples, features].

    A model without such a layer is described by its first output.

    Raises:
        ArtifactError: the graph does not run.
    """
    import onnx
    import onnxruntime

    proto = normalized(model.payload)
    constants = {one.name for one in proto.graph.initializer}
    readers = [node for node in proto.graph.node if node.op_type in WEIGHTED]
    last = next((node for node in reversed(readers)), None)
    inputs = [name for name in last.input if name not in constants] if last else []
    wanted = inputs[0] if inputs else proto.graph.output[0].name
    if wanted not in {one.name for one in proto.graph.output}:
        proto.graph.output.append(onnx.ValueInfoProto(name=wanted))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.stack([session.run([wanted], dict(feed))[0].ravel() for feed in feeds])
