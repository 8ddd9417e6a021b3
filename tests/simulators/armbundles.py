"""Small bundles for 64-bit Arm, one per runtime of the agent's image."""

from typing import Any

import bundles
import numpy as np
from commands import ROOT

from device_agent.contract.golden import Bound, write_golden
from device_agent.contract.manifest import Isa, RuntimeSpec
from device_agent.contract.tensors import Array, TensorSpec
from edgeml.bundling.bundle import pack

EXPORTS = ROOT / "build" / "image"
"""Where ``scripts/qemu-test`` has ``scripts/image`` export to, by runtime."""
ARM = Isa(arch="aarch64", requires=("asimd",))
X = {
    "onnxruntime": np.array([[1, -2, 0.5, 3]], np.float32),
    "litert": np.array([[1, -2]], np.float32),
}
_DENSE = np.array([[1, 2], [3, 4]], np.float32), np.array([5, 6], np.float32)


def bundle(runtime: str, *, wrong: bool = False, **changes: Any) -> bytes:
    """A bundle named ``linear``; ``wrong``: its golden answers are not the model's."""
    if runtime == "onnxruntime":
        golden = -bundles.WEIGHT if wrong else None
        return bundles.bundle(
            golden=golden, **{"isa": ARM, "target": "rpi4", **changes}
        )
    import tflites

    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 2), dtype=np.float32)} for _ in range(16)]
    golden_runs = [{"y": answer("litert", one["x"]) + wrong} for one in feeds]
    members: dict[str, Any] = {
        "artifact/model.tflite": ("artifact", tflites.dense(bias=True)),
        "card.md": ("card", b"# linear\n"),
        "golden.npz": (
            "golden", write_golden(feeds, golden_runs, {"y": Bound(1e-5, 1e-5)}),
        ),
        "labels.json": ("labels", b'["a","b"]'),
    }  # fmt: skip
    made = bundles.manifest(
        **{
            "target": "rpi4",
            "isa": ARM,
            "runtime": RuntimeSpec(name="litert", min_version="2.0"),
            "artifact": "artifact/model.tflite",
            "inputs": (TensorSpec(name="x", datatype="FP32", shape=(1, 2)),),
            "outputs": (TensorSpec(name="y", datatype="FP32", shape=(1, 2)),),
            **changes,
        }
    )
    return pack(made, members)


def answer(runtime: str, x: Array) -> Array:
    """What the model says to ``x``, by its definition."""
    if runtime == "onnxruntime":
        return np.maximum(x @ bundles.WEIGHT, 0)
    weight, bias = _DENSE
    return x @ weight + bias
