"""Small real bundles for ARM targets, and where the emulator is.

| maker | what is in it |
|---|---|
| ``linear`` | ONNX Runtime, float32; the golden of another one on demand |
| ``convolutions`` | ONNX Runtime, int8 QDQ, about 5 MB |
| ``added`` | LiteRT; of a newer operator version on demand |
| ``greedy`` | ONNX Runtime, asks for gigabytes at its first run |
| ``unknown`` | ONNX Runtime, an operator of a domain that nobody has |
"""

import functools
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agent.contract import machine
from device_agent.contract.golden import Bound, write_golden
from device_agent.contract.manifest import Isa, RuntimeSpec
from device_agent.contract.tensors import Array, TensorSpec
from device_agent.runtimes import runtime
from edgeml.bundling.bundle import pack
from edgeml.cache import user_cache
from edgeml.emulator.store import Store

ARM64, ARMV7 = Isa(arch="aarch64"), Isa(arch="armv7l")


@functools.cache
def store(*arches: str) -> Store:
    """The user's own emulator; skips where it was not made for these guests."""
    found = Store(user_cache() / "emulator")
    if machine.arch() not in found.lock.qemu:
        pytest.skip(f"there is no pinned QEMU for {machine.arch()}")
    parts = [found.lock.qemu[machine.arch()]]
    parts += [found.lock.guests[arch] for arch in arches]
    for part in parts:
        if not (found.folder / part.folder).is_dir():
            pytest.skip(f"no emulator of {part.name} (edgeml emulator setup makes it)")
    return found


def lent(cache: Path) -> bool:
    """Have the user's emulator in another cache; whether there is a whole one."""
    own = user_cache() / "emulator"
    found = Store(own)
    parts = [found.lock.qemu.get(machine.arch()), *found.lock.guests.values()]
    if not all(part and (own / part.folder).is_dir() for part in parts):
        return False
    (cache / "edgeml").mkdir(parents=True, exist_ok=True)
    if not (cache / "edgeml" / "emulator").is_symlink():
        (cache / "edgeml" / "emulator").symlink_to(own)
    return True


def anywhere(folder: Path) -> Store:
    """A store that has nothing."""
    return Store(folder / "emulator")


def linear(folder: Path, *, golden: Array | None = None, **changes: Any) -> Path:
    changes = {"isa": ARM64, "target": "rpi4", **changes}
    return _written(folder, bundles.bundle(golden=golden, **changes))


def convolutions(folder: Path, isa: Isa = ARM64, target: str = "rpi4") -> Path:
    """Four convolutions of 8-bit weights, 5 MB; its golden is this host's."""
    model = _quantized(channels=380, layers=4)
    specs = _specs([1, 380, 6, 6], [1, 380, 6, 6])
    feeds = _feeds((1, 380, 6, 6), 4)
    return _written(folder, _onnx(folder, model, specs, feeds, isa, target))


def added(folder: Path, target: str, isa: Isa, version: int = 1) -> Path:
    """``y = a + b``; ``version`` is the operator's, which newer runtimes have."""
    tflites = pytest.importorskip("tflites", reason="ai-edge-litert has the schema")
    model = tflites.read(tflites.added())
    model.operatorCodes[0].version = version
    feeds = [
        {"a": np.full((1, 3), n, np.float32), "b": np.ones((1, 3), np.float32)}
        for n in range(4)
    ]
    manifest = bundles.manifest(
        isa=isa, target=target, artifact="artifact/model.tflite",
        runtime=RuntimeSpec(name="litert", min_version="0.2.14"),
        inputs=tuple(
            TensorSpec(name=name, datatype="FP32", shape=(1, 3)) for name in "ab"
        ),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(1, 3)),),
    )  # fmt: skip
    members = {
        "artifact/model.tflite": ("artifact", tflites.written(model)),
        "golden.npz": _golden(feeds, [{"y": one["a"] + one["b"]} for one in feeds]),
        "card.md": ("card", b"# added\n"),
    }
    return _written(folder, pack(manifest, members))


def greedy(folder: Path, gigabytes: int = 3, target: str = "rpi4") -> Path:
    """Fills that much memory with ones and adds it up."""
    size = gigabytes << 28
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], "ones",
                         value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
        helper.make_node("Mul", ["ones", "x"], ["scaled"], "scaled"),
        helper.make_node("ReduceSum", ["scaled", "axes"], ["y"], "y", keepdims=1),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "greedy", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([size]), "shape"),
         numpy_helper.from_array(np.array([0]), "axes")],
    )  # fmt: skip
    specs = _specs([1], [1])
    feeds = _feeds((1,), 1)
    members = _members(_saved(graph), feeds, [{"y": feeds[0]["x"] * size}])
    manifest = bundles.manifest(isa=ARM64, target=target, **specs)
    return _written(folder, pack(manifest, members))


def unknown(folder: Path) -> Path:
    """An operator that no runtime has."""
    graph = helper.make_graph(
        [helper.make_node("Warp", ["x"], ["y"], "warp", domain="com.example")],
        "unknown", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    specs = _specs([1], [1])
    feeds = _feeds((1,), 1)
    members = _members(_saved(graph, ("com.example", 1)), feeds, [{"y": feeds[0]["x"]}])
    manifest = bundles.manifest(isa=ARM64, target="rpi4", **specs)
    return _written(folder, pack(manifest, members))


def _onnx(
    folder: Path, model: bytes, specs: dict[str, Any], feeds: list[dict[str, Array]],
    isa: Isa, target: str,
) -> bytes:  # fmt: skip
    """A bundle whose golden vectors are what this host answers."""
    path = folder / "model.onnx"
    path.write_bytes(model)
    options = {"x64quantprecision": True}  # as builds do: never saturates
    session = runtime("onnxruntime").load(path, options)
    answers = [session.predict(one) for one in feeds]
    manifest = bundles.manifest(isa=isa, target=target, precision="int8", **specs)
    return pack(manifest, _members(model, feeds, answers))


def _quantized(channels: int, layers: int) -> bytes:
    """QDQ convolutions, 8-bit activations and weights per channel."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for name, value, dtype in (("s", 0.05, np.float32), ("z", 0, np.int8)):
        weights.append(numpy_helper.from_array(np.array(value, dtype), name))
    for n in range(layers):
        weight = rng.integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8)
        weights += [
            numpy_helper.from_array(weight, f"w{n}"),
            numpy_helper.from_array(np.full(channels, 2e-4, np.float32), f"ws{n}"),
            numpy_helper.from_array(np.zeros(channels, np.int8), f"wz{n}"),
        ]
        nodes += [
            helper.make_node("QuantizeLinear", [last, "s", "z"], [f"q{n}"]),
            helper.make_node("DequantizeLinear", [f"q{n}", "s", "z"], [f"d{n}"]),
            helper.make_node(
                "DequantizeLinear", [f"w{n}", f"ws{n}", f"wz{n}"], [f"v{n}"], axis=0
            ),
            helper.make_node("Conv", [f"d{n}", f"v{n}"], [f"c{n}"], pads=[1] * 4),
        ]
        last = f"c{n}"
    nodes += [
        helper.make_node("QuantizeLinear", [last, "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    shape = [1, channels, 6, 6]
    graph = helper.make_graph(
        nodes, "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], weights,
    )  # fmt: skip
    return _saved(graph)


def _saved(graph: onnx.GraphProto, *domains: tuple[str, int]) -> bytes:
    opsets = [helper.make_opsetid(*one) for one in (("", 17), *domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def _members(
    model: bytes, feeds: list[dict[str, Array]], answers: list[dict[str, Array]]
) -> dict[str, Any]:
    return {
        "artifact/model.onnx": ("artifact", model),
        "card.md": ("card", b"# a model\n"),
        "golden.npz": _golden(feeds, answers),
    }


def _golden(feeds: Any, answers: Any) -> tuple[str, bytes]:
    return ("golden", write_golden(feeds, answers, {"y": Bound(1e-5, 1e-5)}))


def _specs(x: list[int], y: list[int]) -> dict[str, Any]:
    return {
        "inputs": (TensorSpec(name="x", datatype="FP32", shape=tuple(x)),),
        "outputs": (TensorSpec(name="y", datatype="FP32", shape=tuple(y)),),
    }


def _feeds(shape: tuple[int, ...], count: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal(shape, dtype=np.float32)} for _ in range(count)]


def _written(folder: Path, packed: bytes) -> Path:
    path = folder / "model.edgeml"
    path.write_bytes(packed)
    return path
