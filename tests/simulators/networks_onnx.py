"""Small ONNX networks with weights drawn from a seed, as models at level graph.

| maker | what it is |
|---|---|
| ``convolutional`` | ``image`` [n, 3, 12, 12] → Conv, BatchNormalization, Relu, depthwise Conv, mean, Gemm → ``scores`` [n, 5] |
| ``pooling`` | ``image`` [n, 3, 12, 12] → Conv, BatchNormalization, Relu, depthwise Conv, Relu, sum of both, pool, Gemm → ``scores`` [n, 5] |
| ``branches`` | ``image`` [n, 3, 12, 12] → two Conv, Clip and LeakyRelu, Concat, Conv, Sigmoid, constants, mean, MatMul → ``scores`` [n, 5] |
| ``attention`` | ``tokens`` [1, 6, 8] → one head of attention and a residual → ``out`` [1, 6, 8] |
"""  # noqa: E501

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from device_agent.contract.tensors import TensorSpec
from edgeml.model import Model


def convolutional(seed: int = 0) -> Model:
    """Nodes: first, norm, bend, second, mean, flat, dense."""
    draw = np.random.default_rng(seed)
    values = {
        "w1": draw.normal(size=(8, 3, 3, 3)), "b1": draw.normal(size=8),
        "scale": draw.uniform(0.5, 2, 8), "shift": draw.normal(size=8),
        "at": draw.normal(size=8), "var": draw.uniform(0.5, 2, 8),
        "w2": draw.normal(size=(8, 1, 3, 3)), "b2": draw.normal(size=8),
        "w3": draw.normal(size=(5, 8)), "b3": draw.normal(size=5),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["a"], "first", strides=[2, 2]),
        node("BatchNormalization", ["a", "scale", "shift", "at", "var"], ["b"], "norm"),
        node("Relu", ["b"], ["c"], "bend"),
        node("Conv", ["c", "w2", "b2"], ["d"], "second", group=8, pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["d"], ["e"], "mean"),
        node("Flatten", ["e"], ["f"], "flat"),
        node("Gemm", ["f", "w3", "b3"], ["scores"], "dense", transB=1),
    ]
    return _model(nodes, values, ("image", (-1, 3, 12, 12)), ("scores", (-1, 5)))


def pooling(pool: str, seed: int = 0) -> Model:
    """Nodes: first, norm, bend, second, turn, sum, pool, flat, dense.

    ``pool``: MaxPool or AveragePool.
    """
    draw = np.random.default_rng(seed)
    values = {
        "w1": draw.normal(size=(8, 3, 3, 3)) * 0.3, "b1": draw.normal(size=8) * 0.1,
        "scale": draw.uniform(0.5, 2, 8), "shift": draw.normal(size=8) * 0.3,
        "at": draw.normal(size=8) * 0.3, "var": draw.uniform(0.5, 2, 8),
        "w2": draw.normal(size=(8, 1, 3, 3)) * 0.4, "b2": draw.normal(size=8) * 0.1,
        "w3": draw.normal(size=(5, 72)) * 0.15, "b3": draw.normal(size=5) * 0.1,
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["a"], "first", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "scale", "shift", "at", "var"], ["b"], "norm"),
        node("Relu", ["b"], ["c"], "bend"),
        node("Conv", ["c", "w2", "b2"], ["d"], "second", group=8, pads=[1, 1, 1, 1]),
        node("Relu", ["d"], ["e"], "turn"),
        node("Add", ["c", "e"], ["s"], "sum"),
        node(pool, ["s"], ["f"], "pool", kernel_shape=[4, 4], strides=[4, 4]),
        node("Flatten", ["f"], ["g"], "flat"),
        node("Gemm", ["g", "w3", "b3"], ["scores"], "dense", transB=1),
    ]
    return _model(nodes, values, ("image", (-1, 3, 12, 12)), ("scores", (-1, 5)))


def branches(seed: int = 0) -> Model:
    """Nodes: left, clip, right, leaky, both, third, gate, gain, offset, mean, flat,
    dense, bias."""
    draw = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "w1": draw.normal(size=(8, 3, 3, 3)) * 0.3, "b1": draw.normal(size=8) * 0.1,
        "w2": draw.normal(size=(6, 3, 1, 1)) * 0.4, "b2": draw.normal(size=6) * 0.1,
        "w3": draw.normal(size=(4, 14, 3, 3)) * 0.2,
        "gains": draw.uniform(0.5, 2, (1, 4, 1, 1)),
        "offsets": draw.normal(size=(1, 4, 1, 1)),
        "w4": draw.normal(size=(4, 5)) * 0.4, "b4": draw.normal(size=5) * 0.1,
        "none": np.array(0.0), "six": np.array(6.0),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["a"], "left", pads=[1, 1, 1, 1]),
        node("Clip", ["a", "none", "six"], ["b"], "clip"),
        node("Conv", ["image", "w2", "b2"], ["c"], "right"),
        node("LeakyRelu", ["c"], ["d"], "leaky", alpha=0.1),
        node("Concat", ["b", "d"], ["e"], "both", axis=1),
        node("Conv", ["e", "w3"], ["f"], "third", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Sigmoid", ["f"], ["g"], "gate"),
        node("Mul", ["g", "gains"], ["h"], "gain"),
        node("Add", ["h", "offsets"], ["i"], "offset"),
        node("GlobalAveragePool", ["i"], ["j"], "mean"),
        node("Flatten", ["j"], ["k"], "flat"),
        node("MatMul", ["k", "w4"], ["l"], "dense"),
        node("Add", ["l", "b4"], ["scores"], "bias"),
    ]
    return _model(nodes, values, ("image", (-1, 3, 12, 12)), ("scores", (-1, 5)))


def attention(seed: int = 0) -> Model:
    """Nodes: query, key, value, turned, product, scaled, shares, mixed, out."""
    draw = np.random.default_rng(seed)
    values: dict[str, Any] = {
        name: draw.normal(size=(8, 8)) * 0.4 for name in ("wq", "wk", "wv", "wo")
    }
    values["root"] = np.array(8**-0.5)
    node = helper.make_node
    nodes = [
        node("MatMul", ["tokens", "wq"], ["q"], "query"),
        node("MatMul", ["tokens", "wk"], ["k"], "key"),
        node("MatMul", ["tokens", "wv"], ["v"], "value"),
        node("Transpose", ["k"], ["kt"], "turned", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"], "product"),
        node("Mul", ["s", "root"], ["r"], "scaled"),
        node("Softmax", ["r"], ["p"], "shares", axis=-1),
        node("MatMul", ["p", "v"], ["m"], "mixed"),
        node("MatMul", ["m", "wo"], ["o"], "output"),
        node("Add", ["o", "tokens"], ["out"], "residual"),
    ]
    return _model(nodes, values, ("tokens", (1, 6, 8)), ("out", (1, 6, 8)))


def feeds(model: Model, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Samples of batch 1."""
    draw = np.random.default_rng(seed)
    return [
        {
            spec.name: draw.standard_normal(
                [max(1, size) for size in spec.shape]
            ).astype(np.float32)
            for spec in model.inputs
        }
        for _ in range(count)
    ]


def _model(
    nodes: Sequence[Any],
    values: dict[str, np.ndarray],
    given: tuple[str, tuple[int, ...]],
    made: tuple[str, tuple[int, ...]],
) -> Model:
    def info(name: str, shape: tuple[int, ...]) -> Any:
        sizes = ["n" if size == -1 else size for size in shape]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    graph = helper.make_graph(
        list(nodes), "g", [info(*given)], [info(*made)],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in values.items()
        ],
    )  # fmt: skip
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    specs = [
        TensorSpec(name=name, datatype="FP32", shape=shape)
        for name, shape in (given, made)
    ]
    return Model("graph", proto, (specs[0],), (specs[1],))
