"""Models for servers to serve: small, exact, one for each thing that can go wrong.

| name | inputs | outputs |
|---|---|---|
| ``linear`` 1.0.0 | ``x`` FP32 [-1, 4] | ``y`` FP32 [-1, 3] = relu(x @ WEIGHT) |
| ``linear`` 2.0.0 | the same | relu(x @ -WEIGHT) |
| ``pair`` | ``a`` FP32 [-1, 3], ``b`` INT32 [-1, 2] | ``doubled``, ``negated`` |
| ``fixed`` | ``image`` FP32 [1, 3, 8, 8] | ``mean`` FP32 [1, 3], of each channel |
| ``identity_fp32``, … | ``x`` [-1, 4] of that datatype | ``y`` = x |
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import onnx
from onnx import TensorProto, helper

from device_agent.contract.golden import Bound, write_golden
from device_agent.contract.tensors import Array, TensorSpec
from edgeml.bundling.bundle import pack

ONNX: Mapping[str, int] = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
}  # fmt: skip
DATATYPES = tuple(ONNX)
GOLDEN_VECTORS = 16
EXACT = Bound(0.0, 0.0)
CLOSE = Bound(1e-6, 1e-6)

Specs = Sequence[tuple[str, str, tuple[int, ...]]]
"""(name, datatype, shape) of each tensor."""


def linear(version: str = "1.0.0", weight: Array = bundles.WEIGHT) -> bytes:
    """The model of :mod:`bundles`, in any version."""
    return bundles.bundle(weight, version=version)


def linear2() -> bytes:
    """The other version of ``linear``: it answers what the first left at 0."""
    return linear("2.0.0", -bundles.WEIGHT)


def pair() -> bytes:
    """Two inputs and two outputs, each of another datatype and shape."""
    return _bundle(
        "pair",
        [
            helper.make_node("Add", ["a", "a"], ["doubled"], "double"),
            helper.make_node("Neg", ["b"], ["negated"], "negate"),
        ],
        [("a", "FP32", (-1, 3)), ("b", "INT32", (-1, 2))],
        [("doubled", "FP32", (-1, 3)), ("negated", "INT32", (-1, 2))],
        lambda run: {"doubled": run["a"] * 2, "negated": -run["b"]},
    )


def fixed() -> bytes:
    """No variable dimension: an image of 3 x 8 x 8, and the mean of each channel."""
    mean = helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0)
    return _bundle(
        "fixed",
        [mean],
        [("image", "FP32", (1, 3, 8, 8))],
        [("mean", "FP32", (1, 3))],
        lambda run: {"mean": run["image"].mean(axis=(2, 3), dtype=np.float32)},
    )


def identity(datatype: str) -> bytes:
    """Gives back what it is given, of one datatype."""
    return _bundle(
        f"identity_{datatype.lower()}",
        [helper.make_node("Identity", ["x"], ["y"], "same")],
        [("x", datatype, (-1, 4))],
        [("y", datatype, (-1, 4))],
        lambda run: {"y": run["x"]},
    )


def write(folder: Path, *names: str) -> list[Path]:
    """Write bundles into a folder.

    Args:
        folder: where to.
        names: ``linear``, ``linear2``, ``pair``, ``fixed`` or ``identity_<datatype>``;
            none: all of them, the first version of ``linear`` before the second.
    """
    makers: dict[str, Callable[[], bytes]] = {
        "linear": linear, "linear2": linear2, "pair": pair, "fixed": fixed,
        **{
            f"identity_{one.lower()}": (lambda datatype=one: identity(datatype))
            for one in DATATYPES
        },
    }  # fmt: skip
    paths = []
    for name in names or makers:
        paths.append(folder / f"{name}.edgeml")
        paths[-1].write_bytes(makers[name]())
    return paths


def values(datatype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Small exact numbers of a datatype; -1 in the shape is 1."""
    random = np.random.default_rng(seed)
    spec = TensorSpec(name="any", datatype=datatype, shape=shape)
    size = tuple(1 if one == -1 else one for one in shape)
    if datatype == "BOOL":
        return random.integers(0, 2, size).astype(bool)
    low = 0 if datatype.startswith("U") else -100
    scale = 4 if datatype.startswith("FP") else 1
    return (random.integers(low, 100, size) / scale).astype(spec.dtype)


def _bundle(
    name: str,
    nodes: list[Any],
    inputs: Specs,
    outputs: Specs,
    compute: Callable[[dict[str, Array]], dict[str, Array]],
) -> bytes:
    graph = helper.make_graph(nodes, name, _infos(inputs), _infos(outputs))
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    runs = [
        {one: values(kind, shape, seed) for one, kind, shape in inputs}
        for seed in range(GOLDEN_VECTORS)
    ]
    bounds = {
        one: CLOSE if kind.startswith("FP") else EXACT for one, kind, _ in outputs
    }
    golden = write_golden(runs, [compute(run) for run in runs], bounds)
    raw = bytes(onnx.ModelProto.SerializeToString(model))
    manifest = bundles.manifest(
        name=name, inputs=_specs(inputs), outputs=_specs(outputs)
    )
    return pack(
        manifest,
        {
            "artifact/model.onnx": ("artifact", raw),
            "card.md": ("card", f"# {name}\n".encode()),
            "golden.npz": ("golden", golden),
        },
    )


def _infos(tensors: Specs) -> list[Any]:
    return [
        helper.make_tensor_value_info(
            name, ONNX[kind], ["n" if size == -1 else size for size in shape]
        )
        for name, kind, shape in tensors
    ]


def _specs(tensors: Specs) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, datatype=kind, shape=shape)
        for name, kind, shape in tensors
    )
