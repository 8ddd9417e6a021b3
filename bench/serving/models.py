"""The two models that everybody serves, made here, and our bundles of them.

1. ``mlp``: 16 → 32 → 4 in float32, about 6 µs: the cost of a request is the server's.
2. ``image``: a convolutional network on 3x96x96 in int8 (QDQ), about 2 ms: the cost of
   a request is the model's and, as JSON, that of 27,648 numbers.

Weights and inputs are drawn with fixed seeds, so two runs serve the same bytes.
"""

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from device_agent.contract import machine
from device_agent.contract.golden import Bound, write_golden
from device_agent.contract.manifest import (
    Isa,
    LatencyFigure,
    Manifest,
    Metrics,
    Option,
    RuntimeSpec,
    Score,
)
from device_agent.contract.tensors import Array, TensorSpec
from edgeml.bundling.bundle import pack

from . import session as bare

OPTIONS: dict[str, Option] = {"threads": 1, "spinning": False, "arena": bare.ARENA}
VECTORS = 16
CLASSES = 10
BLOCKS = (
    (32, 1), (32, 1), (64, 2), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1), (128, 1),
    (256, 2), (256, 1),
)  # fmt: skip
"""Channels and stride of the image model's 3x3 convolutions, in order."""


@dataclass(frozen=True)
class Model:
    """One artifact, one input for it and what it answers."""

    name: str
    artifact: Path
    bundle: Path
    inputs: Path
    """The input as ``.npz``, for the bare session."""
    feed: Array
    answer: Array

    @property
    def shape(self) -> list[int]:
        """Shape of the one input, named ``x``."""
        return list(self.feed.shape)


def made(name: str, folder: Path) -> Model:
    """Write artifact, bundle and input of one model below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    artifact = folder / f"{name}.onnx"
    artifact.write_bytes(ARTIFACTS[name]())
    session = bare.opened(str(artifact))
    shape = session.get_inputs()[0].shape
    feeds = [{"x": one} for one in drawn(VECTORS, shape)]
    answers = [{"y": session.run(["y"], feed)[0]} for feed in feeds]
    inputs = folder / f"{name}.npz"
    np.savez(inputs, x=feeds[0]["x"])
    golden = write_golden(feeds, answers, {"y": Bound(1e-4, 1e-3)})
    p50_ms, p99_ms = timed(artifact, inputs)
    bundle = folder / f"{name}.edgeml"
    bundle.write_bytes(
        pack(
            manifest(name, feeds[0]["x"], answers[0]["y"], artifact, p50_ms, p99_ms),
            {
                "artifact/model.onnx": ("artifact", artifact.read_bytes()),
                "card.md": ("card", f"# {name}\n".encode()),
                "golden.npz": ("golden", golden),
            },
        )
    )
    return Model(name, artifact, bundle, inputs, feeds[0]["x"], answers[0]["y"])


def timed(artifact: Path, inputs: Path) -> tuple[float, float]:
    """p50 and p99 in ms of the bare session in a process of its own."""
    done = subprocess.run(
        [sys.executable, bare.__file__, artifact, inputs],
        input="0.5\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures = json.loads(done.stdout.splitlines()[-1])
    return figures["p50_us"] / 1e3, figures["p99_us"] / 1e3


def drawn(count: int, shape: list[int]) -> list[Array]:
    """Inputs whose numbers are of the length that pixels scaled to 0..1 have."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, *shape))
    return list((pixels / 255).round(4).astype(np.float32))


def manifest(
    name: str, feed: Array, answer: Array, artifact: Path, p50_ms: float, p99_ms: float
) -> Manifest:
    """Of a model whose accuracy nobody asks for."""
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    arch = machine.arch()
    return Manifest(
        name=name, version="1", target=f"cpu-{arch}", compatible=(f"{arch}-linux",),
        runtime=RuntimeSpec(name="onnxruntime", min_version="1.17", options=OPTIONS),
        artifact="artifact/model.onnx",
        precision="fp32" if name == "mlp" else "int8",
        isa=Isa(arch=arch),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=feed.shape),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=answer.shape),),
        metrics=Metrics(
            accuracy=Score(name="top1", value=1.0, float_value=1.0, samples=VECTORS,
                           samples_digest=digest),
            size_bytes=artifact.stat().st_size,
            latency=LatencyFigure(p50_ms=p50_ms, p99_ms=p99_ms, threads=1,
                                  machine=machine.name()),
        ),
        members=(),
    )  # fmt: skip


def mlp() -> bytes:
    """Two layers with Relu between."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(0, 0.4, (16, 32)), "b1": rng.normal(0, 0.1, 32),
        "w2": rng.normal(0, 0.3, (32, 4)), "b2": rng.normal(0, 0.1, 4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"]),
    ]
    return _model("mlp", nodes, weights, [1, 16], [1, 4])


def image() -> bytes:
    """Convolutions with Relu, then the mean over the picture and a linear layer."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {}
    nodes, channels, last = [], 3, "x"
    for number, (width, stride) in enumerate(BLOCKS):
        scale = (2 / (9 * channels)) ** 0.5
        weights[f"w{number}"] = rng.normal(0, scale, (width, channels, 3, 3))
        weights[f"b{number}"] = rng.normal(0, 0.05, width)
        given = [last, f"w{number}", f"b{number}"]
        nodes += [
            helper.make_node(
                "Conv", given, [f"c{number}"], f"conv{number}",
                kernel_shape=[3, 3], strides=[stride] * 2, pads=[1] * 4,
            ),
            helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"),
        ]  # fmt: skip
        channels, last = width, f"r{number}"
    weights["w"] = rng.normal(0, channels**-0.5, (channels, CLASSES))
    weights["b"] = rng.normal(0, 0.05, CLASSES)
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], "fc"),
    ]
    return _quantized(_model("image", nodes, weights, [1, 3, 96, 96], [1, CLASSES]))


ARTIFACTS = {"mlp": mlp, "image": image}


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, shape: list[int]) -> None:
        self._left: Iterator[Array] = iter(drawn(8, shape))

    def get_next(self) -> dict[str, Array] | None:
        sample = next(self._left, None)
        return None if sample is None else {"x": sample}


def _quantized(model: bytes) -> bytes:
    """Int8 by ONNX Runtime's quantizer: u8 activations, s8 weights per channel."""
    with tempfile.TemporaryDirectory(prefix="edgeml.") as folder:
        given, made = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        given.write_bytes(model)
        # Its advice on pre-processing is for models with shapes left to infer.
        logging.disable(logging.WARNING)
        quantize_static(
            given, made, _Samples([1, 3, 96, 96]), quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            per_channel=True,
        )  # fmt: skip
        logging.disable(logging.NOTSET)
        return made.read_bytes()


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    given: list[int],
    answered: list[int],
) -> bytes:
    graph = helper.make_graph(
        nodes, name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, answered)],
        [numpy_helper.from_array(value.astype(np.float32), key)
         for key, value in weights.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return bytes(model.SerializeToString())
