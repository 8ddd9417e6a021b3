"""Small real models and the bundles made of them."""

import hashlib
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from device_agent.contract import machine
from device_agent.contract.golden import Bound, write_golden
from device_agent.contract.manifest import (
    Isa,
    LatencyFigure,
    Limits,
    Manifest,
    Metrics,
    RuntimeSpec,
    Score,
)
from device_agent.contract.tensors import Array, TensorSpec
from edgeml.bundling.bundle import pack

DIGEST = hashlib.sha256(b"samples").hexdigest()
WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


def linear(weight: Array = WEIGHT) -> bytes:
    """An ONNX model: y = relu(x @ weight), x of [-1, rows], y of [-1, columns]."""
    rows, columns = weight.shape
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "mm"),
            helper.make_node("Relu", ["h"], ["y"], "act"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return bytes(onnx.ModelProto.SerializeToString(model))


def vectors(count: int = 16, rows: int = 4) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [
        {"x": rng.standard_normal((1, rows), dtype=np.float32)} for _ in range(count)
    ]


def answers(weight: Array = WEIGHT) -> list[dict[str, Array]]:
    return [{"y": np.maximum(run["x"] @ weight, 0)} for run in vectors()]


def manifest(**changes: Any) -> Manifest:
    plain = Manifest(
        name="linear",
        version="1.0.0",
        target="cpu-x86_64",
        compatible=("x86_64-linux",),
        runtime=RuntimeSpec(name="onnxruntime", min_version="1.17"),
        artifact="artifact/model.onnx",
        precision="fp32",
        isa=Isa(arch=machine.arch()),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
        limits=Limits(),
        metrics=metrics(),
        members=(),
    )
    return plain.model_copy(update=changes)


def metrics(
    accuracy: float = 0.9, p50_ms: float = 0.5, where: str = "elsewhere"
) -> Metrics:
    return Metrics(
        accuracy=Score(
            name="top1", value=accuracy, float_value=0.91, samples=100,
            samples_digest=DIGEST,
        ),
        size_bytes=200,
        latency=LatencyFigure(p50_ms=p50_ms, p99_ms=2 * p50_ms,
                              threads=1, machine=where),
    )  # fmt: skip


def members(weight: Array = WEIGHT, golden: Array | None = None) -> dict[str, Any]:
    """What a bundle of :func:`linear` holds; ``golden``: weights of the answers."""
    expected = answers(weight if golden is None else golden)
    return {
        "artifact/model.onnx": ("artifact", linear(weight)),
        "card.md": ("card", b"# linear\n"),
        "golden.npz": (
            "golden", write_golden(vectors(), expected, {"y": Bound(1e-5, 1e-5)}),
        ),
        "labels.json": ("labels", b'["a","b","c"]'),
    }  # fmt: skip


def bundle(
    weight: Array = WEIGHT, golden: Array | None = None, **changes: Any
) -> bytes:
    return pack(manifest(**changes), members(weight, golden))
